// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's own search for memory that nothing points to any more, where it is built in.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{bail, Context, Result};

use crate::module;

const CONTROL: &str = "/sys/kernel/debug/kmemleak";
/// kmemleak says nothing of younger objects.
const AGE: Duration = Duration::from_secs(6);

pub fn is_there() -> bool {
    Path::new(CONTROL).exists()
}

/// What is lost by now is not of our making.
pub fn start_afresh() -> Result<()> {
    command("scan")?;
    command("clear")
}

/// Unloads the modules and fails if anything they allocated is left behind.
pub fn expect_nothing_lost() -> Result<()> {
    for name in ["famfs", "famfs_kunit"] {
        if module::is_loaded(name) {
            module::rmmod(name).with_context(|| format!("rmmod {name}"))?;
        }
    }
    sleep(AGE);
    // The first scan takes an object that it sees for the first time for one that has changed.
    command("scan")?;
    command("scan")?;
    let report = fs::read_to_string(CONTROL).context(CONTROL)?;
    if report.is_empty() {
        return Ok(());
    }
    bail!("memory is lost:\n{report}")
}

fn command(word: &str) -> Result<()> {
    fs::write(CONTROL, word).with_context(|| format!("{word:?} to {CONTROL}"))
}
