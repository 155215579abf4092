// SPDX-License-Identifier: MIT OR Apache-2.0
//! `make bench`: boots the guest that measures, twice, and reports what both boots agree on.

use std::path::Path;
use std::time::Duration;

use anyhow::{bail, ensure, Result};

use crate::guest::{self, Limits};
use crate::ktap::Event;
use crate::report;
use crate::run::Booter;
use crate::topology;

const LIMITS: Limits = Limits {
    total: Duration::from_secs(1800),
    silence: Duration::from_secs(300),
};
/// Two boots agree if their figures do not differ by more than one part in this many.
const AGREEMENT: u64 = 200;

/// What an operation costs one subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub subject: String,
    pub operation: String,
    pub instructions: u64,
}

/// Measures, prints the tables, and writes them, the figures and a plot to the folder `out`.
pub fn run(booter: &Booter, out: &Path, commit: &str) -> Result<()> {
    let rows = measure(booter, "bench1")?;
    disagreement(&rows, &measure(booter, "bench2")?)?;
    let tables = report::tables(&rows);
    println!("{tables}");
    report::write(out, commit, &rows, &tables)
}

fn measure(booter: &Booter, name: &str) -> Result<Vec<Row>> {
    let plan = vec!["famfs.mode=bench".to_owned()];
    let machine = booter.machine(&topology::BENCH, &booter.kernel, name, plan)?;
    let (mut rows, mut reasons) = (Vec::new(), Vec::new());
    let ending = guest::run(&machine, LIMITS, |event| match event {
        Event::Row(subject, operation, instructions) => rows.push(Row {
            subject: subject.clone(),
            operation: operation.clone(),
            instructions: *instructions,
        }),
        Event::Step(text) => eprintln!("{name}: {text}"),
        Event::Why(text) => reasons.push(text.clone()),
        _ => (),
    })?;
    reasons.extend(ending.faults);
    if !reasons.is_empty() {
        bail!(
            "{}\nconsole log: {}",
            reasons.join("\n"),
            ending.console.display()
        );
    }
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
        if a.instructions.abs_diff(b.instructions) > a.instructions.max(b.instructions) / AGREEMENT
        {
            apart.push(format!(
                "{}, {}: {} and {}",
                a.subject, a.operation, a.instructions, b.instructions
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
        .map(|row| row.instructions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(figures: &[u64]) -> Vec<Row> {
        let row = |instructions: &u64| Row {
            subject: "famfs".into(),
            operation: "pread".into(),
            instructions: *instructions,
        };
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
