// SPDX-License-Identifier: MIT OR Apache-2.0
//! The plan of a guest, as the harness wrote it into the kernel command line.

use std::time::Duration;

use anyhow::{bail, Context, Result};

/// What the guest is booted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Test,
    Demo,
    Shell,
    Bench,
}

/// Where the guest's dax devices come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Nothing to set up.
    None,
    /// That many pmem regions, one devdax namespace on each.
    Pmem(usize),
    /// That many devdax namespaces, which another host has made.
    Found(usize),
    /// One region over one CXL type-3 device.
    Cxl,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub mode: Mode,
    pub memory: Memory,
    /// What the harness calls this guest; the first part of every test's name.
    pub name: String,
    /// Names of the scenarios to run, in this order.
    pub scenarios: Vec<String>,
    /// Only tests whose full name contains this.
    pub only: String,
    /// The kernel must have the debug tier's checkers.
    pub debug: bool,
    /// Where random input starts from.
    pub seed: u64,
    /// How long the soak takes.
    pub soak: Duration,
    /// Rows of the bench that are to be traced; empty for all rows without that.
    pub rows: Vec<String>,
}

impl Plan {
    pub fn read() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/cmdline").context("/proc/cmdline")?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        let value = |key: &str| {
            text.split_ascii_whitespace()
                .filter_map(|word| word.split_once('='))
                .find(|(name, _)| *name == key)
                .map(|(_, value)| value)
        };
        Ok(Self {
            mode: match value("famfs.mode") {
                Some("test") => Mode::Test,
                Some("demo") => Mode::Demo,
                Some("shell") => Mode::Shell,
                Some("bench") => Mode::Bench,
                other => bail!(
                    "famfs.mode={other:?} on the kernel command line: expected test, demo, shell or bench"
                ),
            },
            memory: match value("famfs.memory") {
                Some("none") => Memory::None,
                Some("pmem1") => Memory::Pmem(1),
                Some("pmem2") => Memory::Pmem(2),
                Some("pmem4") => Memory::Pmem(4),
                Some("found1") => Memory::Found(1),
                Some("found4") => Memory::Found(4),
                Some("cxl") => Memory::Cxl,
                other => {
                    bail!("famfs.memory={other:?}: expected none, pmem1, pmem2, pmem4, found1, found4 or cxl")
                }
            },
            name: value("famfs.name").unwrap_or("guest").to_owned(),
            scenarios: value("famfs.scenarios")
                .unwrap_or("")
                .split(',')
                .map(str::to_owned)
                .collect(),
            only: value("famfs.only").unwrap_or("").to_owned(),
            debug: value("famfs.debug") == Some("1"),
            seed: value("famfs.seed")
                .unwrap_or("1")
                .parse()
                .context("famfs.seed")?,
            soak: Duration::from_secs(
                value("famfs.soak")
                    .unwrap_or("0")
                    .parse()
                    .context("famfs.soak")?,
            ),
            rows: value("famfs.rows")
                .map(|rows| rows.split(';').map(|row| row.replace('+', " ")).collect())
                .unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_plan() {
        let plan = Plan::parse(
            "console=ttyS0 famfs.mode=test famfs.memory=pmem2 famfs.scenarios=a,b famfs.debug=1 famfs.only=x famfs.rows=a,+b_c:+d;e\n",
        )
        .unwrap();
        assert_eq!((plan.mode, plan.memory), (Mode::Test, Memory::Pmem(2)));
        assert!(plan.debug);
        assert_eq!(
            (plan.scenarios, plan.only),
            (vec!["a".into(), "b".into()], "x".into())
        );
        assert_eq!(plan.rows, ["a, b_c: d", "e"]);
    }

    #[test]
    fn refuses_an_unknown_memory() {
        assert!(Plan::parse("famfs.mode=test famfs.memory=pmem9").is_err());
    }
}
