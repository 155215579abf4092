// SPDX-License-Identifier: MIT OR Apache-2.0
//! `make bench`: boots the guest that measures, twice, and reports what both boots agree on.

use std::path::Path;
use std::time::Duration;

use anyhow::{ensure, Result};

use crate::guest::{self, Limits};
use crate::ktap::Event;
use crate::qemu::Cpus;
use crate::run::Booter;
use crate::topology::{self, Topology};
use crate::{profile, report};

const LIMITS: Limits = Limits {
    total: Duration::from_secs(3600),
    silence: Duration::from_secs(900),
};
/// Two boots agree if their figures do not differ by more than one part in this many.
const AGREEMENT: u64 = 200;

/// What an operation costs one subject: instructions, or what the operation's name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub subject: String,
    pub operation: String,
    pub figure: u64,
}

impl Row {
    pub fn new(subject: &str, operation: &str, figure: u64) -> Self {
        Self {
            subject: subject.to_owned(),
            operation: operation.to_owned(),
            figure,
        }
    }
}

/// Measures, prints the tables, and writes them, the figures and a plot to the folder `out`.
pub fn run(booter: &Booter, system_map: &Path, out: &Path, commit: &str) -> Result<()> {
    let mut rows = Vec::new();
    for topology in [&topology::BENCH_LARGE, &topology::BENCH] {
        let first = measure(booter, topology, 1)?;
        disagreement(&first, &measure(booter, topology, 2)?)?;
        // The usual maps come first.
        rows.splice(0..0, first);
    }
    let tables = report::tables(&rows);
    println!("{tables}");
    let profiles = profile::run(booter, system_map, &profile::MAIN)?;
    let profiles = profile::table(&profiles, false);
    println!("{profiles}");
    report::write(out, commit, &rows, &tables, &profiles)
}

fn measure(booter: &Booter, topology: &'static Topology, boot: u32) -> Result<Vec<Row>> {
    let plan = vec!["famfs.mode=bench".to_owned()];
    let name = format!("{}{boot}", topology.name);
    let mut machine = booter.machine(topology, &booter.kernel, &name, plan)?;
    machine.cpus = Cpus::Counting;
    let mut rows = Vec::new();
    guest::run_to_success(&machine, LIMITS, None, |event| match event {
        Event::Row(subject, operation, figure) => {
            rows.push(Row::new(subject, operation, *figure));
        }
        Event::Step(text) => eprintln!("{name}: {text}"),
        _ => (),
    })?;
    Ok(rows)
}

/// Fails if two boots gave different rows, or figures that are too far apart.
fn disagreement(first: &[Row], second: &[Row]) -> Result<()> {
    ensure!(
        first.len() == second.len(),
        "one boot gave {} figures, the other {}",
        first.len(),
        second.len()
    );
    let mut apart = Vec::new();
    for (a, b) in first.iter().zip(second) {
        ensure!(
            (&a.subject, &a.operation) == (&b.subject, &b.operation),
            "one boot measured {a:?} where the other measured {b:?}"
        );
        if a.figure.abs_diff(b.figure) > a.figure.max(b.figure) / AGREEMENT {
            apart.push(format!(
                "{}, {}: {} and {}",
                a.subject, a.operation, a.figure, b.figure
            ));
        }
    }
    ensure!(
        apart.is_empty(),
        "two boots differ by more than 0.5 %:\n{}",
        apart.join("\n")
    );
    Ok(())
}

/// The figure of a subject and an operation.
pub fn find(rows: &[Row], subject: &str, operation: &str) -> Option<u64> {
    rows.iter()
        .find(|row| row.subject == subject && row.operation == operation)
        .map(|row| row.figure)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(figures: &[u64]) -> Vec<Row> {
        let row = |figure: &u64| Row::new("famfs", "pread", *figure);
        figures.iter().map(row).collect()
    }

    #[test]
    fn two_boots_agree_within_half_a_percent() {
        assert!(disagreement(&rows(&[1000, 60]), &rows(&[1005, 60])).is_ok());
        assert!(disagreement(&rows(&[1000, 60]), &rows(&[1000, 61])).is_err());
        assert!(disagreement(&rows(&[1000]), &rows(&[1006])).is_err());
        assert!(disagreement(&rows(&[1000]), &rows(&[])).is_err());
    }
}
