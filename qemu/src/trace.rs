// SPDX-License-Identifier: MIT OR Apache-2.0
//! QEMU's log of what a guest executes, one instruction a line (`-d exec`, `one-insn-per-tb`), divided into operations.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::sync::OnceLock;

/// How often each instruction was executed, by its address.
pub type Counts = HashMap<u64, i64>;

/// The operations in the log so far.
#[derive(Debug, Default)]
pub struct Trace {
    pub operations: Vec<Counts>,
    /// Calls of the clock.
    calls: usize,
    /// Executed, unless the next line takes it back.
    pending: Option<u64>,
}

impl Trace {
    /// Reads the log to its end. It counts from when the address of the function that reads the clock is known.
    pub fn read(&mut self, log: impl Read, clock: &OnceLock<u64>) {
        for line in BufReader::new(log).split(b'\n') {
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line);
            match (clock.get(), executed(&line)) {
                (Some(clock), Some(address)) => self.execute(address, *clock),
                // An interrupt came before the instruction, which is tried again later.
                _ if line.starts_with("Stopped execution") => self.pending = None,
                (None, Some(_)) => (),
                (_, None) => eprintln!("QEMU: {line}"),
            }
        }
        self.pending = None;
    }

    /// An operation is what is executed between the first look at the clock and the second, less what is between the
    /// third and the fourth.
    fn execute(&mut self, address: u64, clock: u64) {
        let Some(address) = self.pending.replace(address) else {
            return;
        };
        if address == clock {
            self.calls += 1;
            if self.calls % 4 == 1 {
                self.operations.push(Counts::new());
            }
        }
        let weight = match self.calls % 4 {
            1 => 1,
            3 => -1,
            _ => return,
        };
        if let Some(counts) = self.operations.last_mut() {
            *counts.entry(address).or_default() += weight;
        }
    }
}

/// The address in "Trace 0: 0x7f80 [00000000/ffffffff81000000/00000000/00000000] name".
fn executed(line: &str) -> Option<u64> {
    let fields = line.strip_prefix("Trace ")?.split_once('[')?.1;
    u64::from_str_radix(fields.split('/').nth(1)?, 16).ok()
}
