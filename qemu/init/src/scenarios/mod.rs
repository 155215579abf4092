// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tests of the VM tier, grouped by what they need and show.

use std::fmt;

use anyhow::{bail, Result};

use crate::channel::Channel;
use crate::runner::Guest;

mod contents;
mod failure;
mod faults;
mod fixture;
mod lifetime;
mod modules;
mod protocol;
mod refusals;
mod tool;
mod wrong_use;

pub use protocol::is_offered;

pub type Test = fn(&Guest, &mut Channel) -> Result<()>;

/// (name, tests as (name, function)); a test is reported as "scenario.test".
const SCENARIOS: [(&str, &[(&str, Test)]); 11] = [
    ("kunit", modules::KUNIT),
    ("stock", modules::STOCK),
    ("module", modules::MODULE),
    ("contents", contents::TESTS),
    ("protocol", protocol::TESTS),
    ("refusals", refusals::TESTS),
    ("faults", faults::TESTS),
    ("lifetime", lifetime::TESTS),
    ("tool", tool::TESTS),
    ("wrong_use", wrong_use::TESTS),
    ("failure", failure::TESTS),
];

/// An error that says the test cannot be run here, and why.
#[derive(Debug)]
pub struct Skip(pub String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skipped: {}", self.0)
    }
}

impl std::error::Error for Skip {}

/// The tests of the named scenarios, in the order of `names`, whose full name contains `only`.
pub fn select(names: &[String], only: &str) -> Result<Vec<(String, Test)>> {
    let mut selected = Vec::new();
    for name in names {
        let Some((_, tests)) = SCENARIOS.iter().find(|(known, _)| known == name) else {
            bail!("no scenario {name:?} in this image");
        };
        selected.extend(
            tests
                .iter()
                .map(|(test, function)| (format!("{name}.{test}"), *function)),
        );
    }
    selected.retain(|(name, _)| name.contains(only));
    Ok(selected)
}
