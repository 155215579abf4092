// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tests of the VM tier, grouped by what they need and show.

use std::fmt;

use anyhow::{bail, Result};

use crate::channel::Channel;
use crate::cmdline::Plan;
use crate::runner::Guest;

mod contents;
mod cycles;
mod doctor;
mod failslab;
mod failure;
mod fast;
mod faults;
mod fixture;
mod handover;
mod hostile;
mod hosts;
mod kinds;
mod lifetime;
mod locks;
mod losses;
mod mended;
mod messages;
mod modules;
mod mount8;
mod pin_orders;
mod pins;
mod poison;
mod poison_load;
mod poisoned_pins;
mod protocol;
mod push;
mod recipes;
mod refusals;
mod removal;
mod service;
mod soak;
mod soak_client;
mod storms;
mod teardown;
mod terminal;
mod tool;
mod two_hosts;
mod wrong_use;

pub use failslab::is_there as injects_faults;
pub use protocol::is_offered;

pub type Test = fn(&Guest, &mut Channel) -> Result<()>;

/// (name, tests as (name, function)).
const SCENARIOS: &[(&str, &[(&str, Test)])] = &[
    ("kunit", modules::KUNIT),
    ("stock", modules::STOCK),
    ("module", modules::MODULE),
    ("contents", contents::TESTS),
    ("protocol", protocol::TESTS),
    ("push", push::TESTS),
    ("refusals", refusals::TESTS),
    ("hostile", hostile::TESTS),
    ("faults", faults::TESTS),
    ("fast", fast::TESTS),
    ("fast_storms", storms::TESTS),
    ("lifetime", lifetime::TESTS),
    ("locks", locks::TESTS),
    ("tool", tool::TESTS),
    ("doctor", doctor::TESTS),
    ("doctor_cxl", doctor::CXL),
    ("messages", messages::TESTS),
    ("terminal", terminal::TESTS),
    ("hosts", hosts::TESTS),
    ("striped", tool::STRIPED),
    ("handover", handover::TESTS),
    ("service", service::TESTS),
    ("master", two_hosts::MASTER),
    ("client", two_hosts::CLIENT),
    ("host_a", recipes::HOST_A),
    ("host_b", recipes::HOST_B),
    ("mount8", mount8::TESTS),
    ("wrong_use", wrong_use::TESTS),
    ("failure", failure::TESTS),
    ("poison", poison::TESTS),
    ("mended", mended::TESTS),
    ("mended_cxl", mended::CXL),
    ("poisoned_pins", poisoned_pins::TESTS),
    ("failslab", failslab::TESTS),
    ("cycles", cycles::TESTS),
    ("soak", soak::TESTS),
    ("removal", removal::PMEM),
    ("removal_cxl", removal::CXL),
    ("pins", pins::TESTS),
    ("teardown", teardown::TESTS),
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

/// The tests of the plan's scenarios whose full name, "guest.scenario.test", contains what the plan asks for.
pub fn select(plan: &Plan) -> Result<Vec<(String, Test)>> {
    let mut selected = Vec::new();
    for name in &plan.scenarios {
        let Some((_, tests)) = SCENARIOS.iter().find(|(known, _)| known == name) else {
            bail!("no scenario {name:?} in this image");
        };
        if *name == "failslab" && !failslab::is_there() {
            continue;
        }
        let full = |test: &str| format!("{}.{name}.{test}", plan.name);
        selected.extend(tests.iter().map(|(test, function)| (full(test), *function)));
    }
    selected.retain(|(name, _)| name.contains(&plan.only));
    Ok(selected)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::SCENARIOS;

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// `kunit:suite.test`, or `scenario.test`.
    fn exists(name: &str, suites: &[String]) -> bool {
        let (kunit, name) = match name.strip_prefix("kunit:") {
            Some(name) => (true, name),
            None => (false, name),
        };
        let Some((group, test)) = name.split_once('.') else {
            return false;
        };
        if !kunit {
            let mut groups = SCENARIOS.iter().filter(|(known, _)| *known == group);
            return groups.any(|(_, tests)| tests.iter().any(|(known, _)| *known == test));
        }
        let suite = format!("#[kunit_tests({group})]");
        let test = format!("fn {test}(");
        let mut tests = suites.iter().filter_map(|text| text.split_once(&suite));
        tests.any(|(_, tests)| tests.contains(&test))
    }

    /// Each cell of the matrix names its tests.
    #[test]
    fn the_matrix_names_tests_that_exist() {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
        let folder = std::fs::read_dir(root.join("kunit")).expect("kunit/");
        let files = folder.map(|entry| entry.expect("kunit/").path());
        let sources = files.filter(|path| path.extension().is_some_and(|end| end == "rs"));
        let suites: Vec<String> = sources.map(|path| read(&path)).collect();
        let docs = read(&root.join("docs/reliability.md"));
        let mut rows = docs
            .lines()
            .skip_while(|line| !line.starts_with("| event \\ moment |"))
            .take_while(|line| line.starts_with('|'));
        let columns = rows.next().expect("the matrix").matches('|').count();
        assert_eq!(columns, 8, "columns of the matrix, and one");
        let mut names = 0;
        for row in rows.skip(1) {
            assert_eq!(row.matches('|').count(), columns, "{row}");
            let cells = row.trim_matches('|').split('|').skip(1).map(str::trim);
            for name in cells.flat_map(|cell| cell.split(", ")) {
                assert!(exists(name, &suites), "no test {name:?}: {row}");
                names += 1;
            }
        }
        assert!(names > 60, "{names} names");
    }
}
