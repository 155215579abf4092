// SPDX-License-Identifier: MIT OR Apache-2.0
//! The harness's commands: demo, shell, test.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};

use crate::guest::{self, Limits};
use crate::ktap::Event;
use crate::qemu::Machine;
use crate::tally::Tally;
use crate::topology::{self, Topology};

const LIMITS: Limits = Limits {
    total: Duration::from_secs(900),
    silence: Duration::from_secs(120),
};

/// What guests are booted from, and where their logs go.
#[derive(Debug)]
pub struct Booter {
    pub kernel: PathBuf,
    pub stock_kernel: Option<PathBuf>,
    pub initrd: PathBuf,
    pub logs: PathBuf,
}

impl Booter {
    fn machine<'a>(
        &'a self,
        topology: &'a Topology,
        kernel: &'a Path,
        name: &str,
        plan: Vec<String>,
    ) -> Result<Machine<'a>> {
        ensure!(
            kernel.is_file(),
            "no kernel image at {}: run make kernel, or set BZIMAGE",
            kernel.display()
        );
        fs::create_dir_all(&self.logs)
            .with_context(|| format!("cannot write {}", self.logs.display()))?;
        let console = self.logs.join(format!("{name}.log"));
        Ok(Machine {
            topology,
            kernel,
            initrd: &self.initrd,
            plan,
            console,
        })
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
    Job {
        name: "kunit",
        topology: &topology::BARE,
        scenarios: "kunit",
        stock: false,
    },
    Job {
        name: "vm",
        topology: &topology::PMEM2,
        scenarios:
            "module,contents,protocol,push,refusals,hostile,faults,lifetime,tool,hosts,striped,wrong_use,failure",
        stock: false,
    },
    Job {
        name: "cxl",
        topology: &topology::CXL,
        scenarios: "contents,tool",
        stock: false,
    },
    Job {
        name: "stock",
        topology: &topology::BARE,
        scenarios: "stock",
        stock: true,
    },
];

/// Runs every test whose name contains `only`; says at the end how many passed and failed.
///
/// `seed` is what the tests with random input start from.
pub fn test(booter: &Booter, only: &str, seed: u64) -> Result<()> {
    let mut tally = Tally::default();
    // A test's name begins with its guest's.
    let (wanted, others): (Vec<&Job>, Vec<&Job>) = JOBS
        .iter()
        .partition(|job| only.starts_with(&format!("{}.", job.name)));
    let jobs = if wanted.is_empty() { others } else { wanted };
    for job in jobs {
        run_job(booter, job, only, seed, &mut tally)?;
    }
    println!("{}", tally.summary());
    ensure!(tally.failed == 0, "{} tests failed", tally.failed);
    ensure!(tally.passed > 0, "no test has a name with \"{only}\" in it");
    Ok(())
}

fn run_job(booter: &Booter, job: &Job, only: &str, seed: u64, tally: &mut Tally) -> Result<()> {
    let kernel = match (job.stock, &booter.stock_kernel) {
        (false, _) => &booter.kernel,
        (true, Some(kernel)) => kernel,
        (true, None) => {
            tally.skip(
                &format!("{}.boot", job.name),
                "no kernel without the patch (BZIMAGE_STOCK)",
            );
            return Ok(());
        }
    };
    let plan = vec![
        "famfs.mode=test".to_owned(),
        format!("famfs.name={}", job.name),
        format!("famfs.scenarios={}", job.scenarios),
        format!("famfs.only={only}"),
        format!("famfs.seed={seed}"),
    ];
    let machine = booter.machine(job.topology, kernel, job.name, plan)?;
    let mut run = tally.run(job.name);
    let ending = guest::run(&machine, LIMITS, |event| run.record(event))?;
    run.conclude(ending);
    Ok(())
}

/// The walk-through on the screen.
pub fn demo(booter: &Booter, topology: &Topology) -> Result<()> {
    let machine = booter.machine(
        topology,
        &booter.kernel,
        "demo",
        vec!["famfs.mode=demo".to_owned()],
    )?;
    println!(
        "Booting the patched kernel in QEMU, topology {} ...",
        topology.name
    );
    let mut reasons = Vec::new();
    let ending = guest::run(&machine, LIMITS, |event| match event {
        Event::Say(text) => println!("{text}"),
        Event::Why(text) => reasons.push(text.clone()),
        _ => (),
    })?;
    reasons.extend(ending.faults);
    if !reasons.is_empty() {
        bail!(
            "the demo went wrong: {}\nconsole log: {}",
            reasons.join("\n"),
            ending.console.display()
        );
    }
    println!("It all worked.");
    Ok(())
}

/// The demo's guest with a shell in it.
pub fn shell(booter: &Booter, topology: &Topology) -> Result<()> {
    let machine = booter.machine(
        topology,
        &booter.kernel,
        "shell",
        vec!["famfs.mode=shell".to_owned(), "quiet".to_owned()],
    )?;
    println!("Booting; the shell's `exit` ends the guest, Ctrl-A x ends QEMU at once.");
    machine.run_on_terminal()
}
