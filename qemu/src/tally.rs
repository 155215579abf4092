// SPDX-License-Identifier: MIT OR Apache-2.0
//! Counts results and prints each as one line.

use crate::guest::Ending;
use crate::ktap::{Event, Outcome, TestResult};

#[derive(Debug, Default)]
pub struct Tally {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

/// The results of one guest, on their way into the tally.
pub struct Run<'a> {
    tally: &'a mut Tally,
    name: &'a str,
    suite: String,
    /// Depth of the result before.
    depth: usize,
    /// A test failed below a result that is still to come.
    failed_below: bool,
    planned: Option<usize>,
    reported: usize,
}

impl Tally {
    pub fn run<'a>(&'a mut self, name: &'a str) -> Run<'a> {
        Run {
            tally: self,
            name,
            suite: String::new(),
            depth: 0,
            failed_below: false,
            planned: None,
            reported: 0,
        }
    }

    pub fn skip(&mut self, name: &str, reason: &str) {
        self.add(name, Outcome::Skipped, reason);
    }

    /// A test that could not even be tried.
    pub fn fail(&mut self, name: &str, reason: &str) {
        self.add(name, Outcome::Failed, "");
        println!("    {reason}");
    }

    pub fn summary(&self) -> String {
        let skipped = match self.skipped {
            0 => String::new(),
            count => format!(", {count} skipped"),
        };
        format!("{} passed, {} failed{skipped}", self.passed, self.failed)
    }

    fn add(&mut self, name: &str, outcome: Outcome, reason: &str) {
        let (line, count) = match outcome {
            Outcome::Passed => (format!("ok {name}"), &mut self.passed),
            Outcome::Failed => (format!("not ok {name}"), &mut self.failed),
            Outcome::Skipped => (format!("ok {name} # SKIP {reason}"), &mut self.skipped),
        };
        *count += 1;
        println!("{line}");
    }
}

impl Run<'_> {
    pub fn record(&mut self, event: &Event) {
        match event {
            Event::Result(result) => self.result(result),
            Event::Suite(name) => self.suite.clone_from(name),
            Event::Plan(count) => self.planned = Some(*count),
            Event::Why(text) | Event::Say(text) => println!("    {text}"),
            _ => (),
        }
    }

    fn result(&mut self, result: &TestResult) {
        if result.depth == 0 {
            self.reported += 1;
        }
        let sums_up = result.depth < self.depth;
        self.depth = result.depth;
        let failed = result.outcome == Outcome::Failed;
        // The tests below have been counted; what failed beside them has not.
        let told_below = sums_up && (!failed || self.failed_below);
        self.failed_below = if result.depth == 0 {
            false
        } else {
            failed || self.failed_below
        };
        if told_below {
            return;
        }
        let name = match result.depth {
            0 => result.name.clone(),
            _ if sums_up => format!("{}.{}", self.name, result.name),
            _ => format!("{}.{}.{}", self.name, self.suite, result.name),
        };
        self.tally.add(&name, result.outcome, &result.reason);
    }

    /// The run itself is a test: that it ended as planned and left no complaint in the kernel's log.
    pub fn conclude(mut self, mut ending: Ending) {
        if let Some(planned) = self.planned.filter(|planned| *planned != self.reported) {
            let reported = self.reported;
            ending
                .faults
                .push(format!("{reported} results for {planned} planned tests"));
        }
        let name = format!("{}.clean_run", self.name);
        if ending.faults.is_empty() && self.planned == Some(0) {
            return;
        }
        if ending.faults.is_empty() {
            return self.tally.add(&name, Outcome::Passed, "");
        }
        self.tally.add(&name, Outcome::Failed, "");
        for fault in &ending.faults {
            self.record(&Event::Why(fault.clone()));
        }
        self.record(&Event::Why(format!(
            "console log: {}",
            ending.console.display()
        )));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ktap::parse;

    fn tally(lines: &[&str], faults: &[&str]) -> (usize, usize, usize) {
        let mut tally = Tally::default();
        let mut run = tally.run("vm");
        lines.iter().for_each(|line| run.record(&parse(line)));
        let faults = faults.iter().map(|fault| (*fault).to_owned()).collect();
        run.conclude(Ending {
            faults,
            console: "log".into(),
        });
        (tally.passed, tally.failed, tally.skipped)
    }

    #[test]
    fn only_leaves_count() {
        let nested = [
            "1..1",
            "        # Subtest: parse",
            "        ok 1 a",
            "        ok 2 b",
            "    ok 1 parse",
            "        # Subtest: resolve",
            "        not ok 1 c",
            "    not ok 2 resolve",
            "not ok 1 kunit.suites",
        ];
        assert_eq!(tally(&nested, &[]), (3, 1, 0));
    }

    #[test]
    fn a_suite_that_fails_without_a_failed_test_counts() {
        let nested = [
            "1..1",
            "        ok 1 a",
            "    not ok 1 parse",
            "not ok 1 kunit.suites",
        ];
        assert_eq!(tally(&nested, &[]), (2, 1, 0));
    }

    #[test]
    fn missing_results_and_faults_fail_the_run() {
        assert_eq!(
            tally(&["1..2", "ok 1 a", "ok 2 b # SKIP no"], &[]),
            (2, 0, 1)
        );
        assert_eq!(tally(&["1..2", "ok 1 a"], &[]), (1, 1, 0));
        assert_eq!(tally(&["1..1", "ok 1 a"], &["hung"]), (1, 1, 0));
        assert_eq!(tally(&["1..0"], &[]), (0, 0, 0));
        assert_eq!(tally(&[], &["hung"]), (0, 1, 0));
    }
}
