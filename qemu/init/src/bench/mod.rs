// SPDX-License-Identifier: MIT OR Apache-2.0
//! What memory costs by each of the ways to reach it, for `make bench`. One subject after the other is set up, put
//! through the same operations, and taken down.

mod kernel;
mod ops;
mod subjects;

use anyhow::Result;

use crate::channel::Channel;
use crate::runner::Guest;

/// Figures of one subject, on their way to the harness.
pub struct Rows<'a> {
    channel: &'a mut Channel,
    subject: &'a str,
}

impl Rows<'_> {
    /// `ticks` of the TSC, which are instructions with QEMU's icount.
    fn add(&mut self, operation: &str, ticks: u64) {
        let subject = self.subject;
        self.channel.row(subject, operation, ticks);
    }

    /// The median of single operations; nothing if they took none, since no fault was needed.
    fn add_median(&mut self, operation: &str, mut ticks: Vec<u64>) {
        ticks.sort_unstable();
        if let Some(median) = ticks.get(ticks.len() / 2).filter(|ticks| **ticks > 0) {
            self.add(operation, *median);
        }
    }
}

pub fn run(channel: &mut Channel, guest: &Guest) -> Result<()> {
    channel.step("iomap_begin alone");
    kernel::iomap_begin(channel)?;
    subjects::run(channel, guest)
}
