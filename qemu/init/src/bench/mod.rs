// SPDX-License-Identifier: MIT OR Apache-2.0
//! What memory costs by each of the ways to reach it, for `make bench`. One subject after the other is set up, put
//! through the same operations, and taken down. For `make profile` QEMU logs what is executed meanwhile.

mod famfs;
mod kernel;
mod ops;
mod subjects;

use std::collections::BTreeSet;

use anyhow::{ensure, Context, Result};
use serde_json::json;

use crate::channel::Channel;
use crate::runner::Guest;
use crate::sys;

/// The way of the figures to the harness.
pub struct Report<'a> {
    channel: &'a mut Channel,
    /// Only these rows are wanted, "SUBJECT: OPERATION", and what they execute; empty if all are, without that.
    traced: &'a [String],
    seen: BTreeSet<String>,
}

/// Figures of one subject.
pub struct Rows<'a, 'b> {
    report: &'a mut Report<'b>,
    subject: &'a str,
}

impl<'b> Report<'b> {
    /// Begins with a subject, unless nothing of it is wanted.
    fn subject<'a>(&'a mut self, subject: &'a str) -> Option<Rows<'a, 'b>> {
        if !self.wants(subject) {
            return None;
        }
        self.channel.step(subject);
        Some(Rows {
            report: self,
            subject,
        })
    }

    fn wants(&self, subject: &str) -> bool {
        let of_subject = |row: &String| {
            row.strip_prefix(subject)
                .is_some_and(|rest| rest.starts_with(": "))
        };
        self.traced.is_empty() || self.traced.iter().any(of_subject)
    }

    /// Has QEMU log every instruction, or none.
    fn log_execution(&mut self, on: bool) -> Result<()> {
        let commands = match on {
            true => ["one-insn-per-tb on", "log exec"],
            false => ["log none", "one-insn-per-tb off"],
        };
        for line in commands {
            let arguments = json!({ "command-line": line });
            let said = self
                .channel
                .qmp(&json!({ "execute": "human-monitor-command", "arguments": arguments }))?;
            ensure!(said == "", "QEMU says to \"{line}\": {said}");
        }
        Ok(())
    }
}

impl Rows<'_, '_> {
    fn add(&mut self, operation: &str, figure: u64) {
        self.report.channel.row(self.subject, operation, figure);
    }

    /// The median of ticks, which are instructions with QEMU's icount; nothing if there were none, since no fault was
    /// needed. Says whether there is a row.
    fn add_median(&mut self, operation: &str, mut ticks: Vec<u64>) -> bool {
        ticks.sort_unstable();
        let median = ticks.get(ticks.len() / 2).filter(|ticks| **ticks > 0);
        if let Some(median) = median {
            self.add(operation, *median);
        }
        median.is_some()
    }

    /// The median of single operations, which may be traced: `measure` uses the clock for what it returns, four times
    /// each, and for nothing else.
    fn median(
        &mut self,
        operation: &str,
        measure: impl FnOnce() -> Result<Vec<u64>>,
    ) -> Result<()> {
        let row = format!("{}: {operation}", self.subject);
        let traced = self.report.traced.contains(&row);
        if traced {
            self.report.log_execution(true)?;
        }
        let ticks = measure().context(row.clone())?;
        if traced {
            self.report.log_execution(false)?;
        }
        let samples = ticks.len();
        let is_row = self.add_median(operation, ticks);
        if traced {
            ensure!(is_row, "{row}: most of these need no fault");
            for symbol in kernel::module_symbols()? {
                self.report.channel.symbol(&symbol);
            }
            self.report.channel.traced(samples);
            self.report.seen.insert(row);
        }
        Ok(())
    }
}

pub fn run(channel: &mut Channel, guest: &Guest, traced: &[String]) -> Result<()> {
    let mut report = Report {
        channel,
        traced,
        seen: BTreeSet::new(),
    };
    report.channel.clock(sys::ticks as *const () as usize);
    subjects::run(&mut report, guest)?;
    let unseen = traced.iter().find(|row| !report.seen.contains(*row));
    ensure!(
        unseen.is_none(),
        "no row {:?}: the name of a row is \"SUBJECT: OPERATION\", with what stands at the left and at the top of the tables",
        unseen.map_or("", String::as_str)
    );
    Ok(())
}
