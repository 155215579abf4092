// SPDX-License-Identifier: MIT OR Apache-2.0
//! The harness's commands: demo, shell, test.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};

use crate::guest::{self, Ending, Limits};
use crate::ktap::{Event, Outcome};
use crate::qemu::Machine;
use crate::topology::{self, Topology};

const LIMITS: Limits = Limits { total: Duration::from_secs(900), silence: Duration::from_secs(120) };

/// What guests are booted from, and where their logs go.
#[derive(Debug)]
pub struct Booter {
    pub kernel: PathBuf,
    pub stock_kernel: Option<PathBuf>,
    pub initrd: PathBuf,
    pub logs: PathBuf,
}

impl Booter {
    fn machine<'a>(&'a self, topology: &'a Topology, kernel: &'a Path, name: &str, plan: Vec<String>) -> Result<Machine<'a>> {
        ensure!(kernel.is_file(), "no kernel image at {}: run make kernel, or set BZIMAGE", kernel.display());
        fs::create_dir_all(&self.logs).with_context(|| format!("cannot write {}", self.logs.display()))?;
        let console = self.logs.join(format!("{name}.log"));
        Ok(Machine { topology, kernel, initrd: &self.initrd, plan, console })
    }
}

/// One boot of `make test`: a machine and the scenarios that need it.
struct Job {
    name: &'static str,
    topology: &'static Topology,
    scenarios: &'static str,
    /// Boots the kernel without the patch.
    stock: bool,
}

const JOBS: [Job; 4] = [
    Job { name: "kunit", topology: &topology::BARE, scenarios: "kunit", stock: false },
    Job {
        name: "vm",
        topology: &topology::PMEM2,
        scenarios: "devices",
        stock: false,
    },
    Job { name: "cxl", topology: &topology::CXL, scenarios: "devices", stock: false },
    Job { name: "stock", topology: &topology::BARE, scenarios: "stock", stock: true },
];

#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
}

/// Runs every test whose name contains `only`; says at the end how many passed and failed.
pub fn test(booter: &Booter, only: &str) -> Result<()> {
    let mut tally = Tally::default();
    for job in &JOBS {
        run_job(booter, job, only, &mut tally)?;
    }
    let skipped = if tally.skipped > 0 { format!(", {} skipped", tally.skipped) } else { String::new() };
    println!("{} passed, {} failed{skipped}", tally.passed, tally.failed);
    ensure!(tally.failed == 0, "{} tests failed", tally.failed);
    ensure!(tally.passed > 0, "no test has a name with \"{only}\" in it");
    Ok(())
}

fn run_job(booter: &Booter, job: &Job, only: &str, tally: &mut Tally) -> Result<()> {
    let kernel = match (job.stock, &booter.stock_kernel) {
        (false, _) => &booter.kernel,
        (true, Some(kernel)) => kernel,
        (true, None) => {
            println!("ok {}.boot # SKIP no kernel without the patch (BZIMAGE_STOCK)", job.name);
            tally.skipped += 1;
            return Ok(());
        }
    };
    let plan = vec![
        "famfs.mode=test".to_owned(),
        format!("famfs.scenarios={}", job.scenarios),
        format!("famfs.only={only}"),
    ];
    let machine = booter.machine(job.topology, kernel, job.name, plan)?;
    let ending = guest::run(&machine, LIMITS, |event| record(job.name, event, tally))?;
    conclude(job.name, &ending, tally);
    Ok(())
}

fn record(job: &str, event: &Event, tally: &mut Tally) {
    match event {
        Event::Result(result) => {
            let (word, count) = match result.outcome {
                Outcome::Passed => ("ok", &mut tally.passed),
                Outcome::Failed => ("not ok", &mut tally.failed),
                Outcome::Skipped => ("ok", &mut tally.skipped),
            };
            *count += 1;
            let skip = if result.outcome == Outcome::Skipped { format!(" # SKIP {}", result.reason) } else { String::new() };
            println!("{word} {job}.{}{skip}", result.name);
        }
        Event::Why(text) => println!("    {text}"),
        _ => (),
    }
}

/// A run with a fault of its own is one more failed test.
fn conclude(job: &str, ending: &Ending, tally: &mut Tally) {
    if ending.faults.is_empty() {
        println!("ok {job}.clean_run");
        tally.passed += 1;
        return;
    }
    println!("not ok {job}.clean_run");
    tally.failed += 1;
    for fault in &ending.faults {
        println!("    {fault}");
    }
    println!("    console log: {}", ending.console.display());
}

/// The walk-through on the screen.
pub fn demo(booter: &Booter, topology: &Topology) -> Result<()> {
    let machine = booter.machine(topology, &booter.kernel, "demo", vec!["famfs.mode=demo".to_owned()])?;
    println!("Booting the patched kernel in QEMU, topology {} ...", topology.name);
    let mut reasons = Vec::new();
    let ending = guest::run(&machine, LIMITS, |event| match event {
        Event::Say(text) => println!("{text}"),
        Event::Why(text) => reasons.push(text.clone()),
        _ => (),
    })?;
    reasons.extend(ending.faults);
    if !reasons.is_empty() {
        bail!("the demo went wrong: {}\nconsole log: {}", reasons.join("\n"), ending.console.display());
    }
    println!("It all worked.");
    Ok(())
}

/// The demo's guest with a shell in it.
pub fn shell(booter: &Booter, topology: &Topology) -> Result<()> {
    let machine = booter.machine(topology, &booter.kernel, "shell", vec!["famfs.mode=shell".to_owned(), "quiet".to_owned()])?;
    println!("Booting; the shell's `exit` ends the guest, Ctrl-A x ends QEMU at once.");
    machine.run_on_terminal()
}
