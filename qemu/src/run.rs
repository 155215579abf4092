// SPDX-License-Identifier: MIT OR Apache-2.0
//! The harness's commands: demo, shell, test.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{ensure, Context, Result};

use crate::guest::{self, Limits};
use crate::ktap::Event;
use crate::pair::{self, SharedMemory};
use crate::qemu::{Cpus, Machine};
use crate::snapshots::Snapshots;
use crate::tally::Tally;
use crate::tools;
use crate::topology::{self, Topology};
use crate::Images;

/// For hosts that are slow, or have other work besides.
const LIMITS: Limits = Limits {
    total: Duration::from_secs(1800),
    silence: Duration::from_secs(240),
};
/// Every checker on, a kernel takes several times as long.
const DEBUG_LIMITS: Limits = Limits {
    total: Duration::from_secs(5400),
    silence: Duration::from_secs(900),
};

/// What guests are booted from, and where their logs go.
#[derive(Debug)]
pub struct Booter<'a> {
    pub kernel: PathBuf,
    pub stock_kernel: Option<PathBuf>,
    pub images: Images<'a>,
    /// The famfs binary, for what the host does with it.
    pub famfs: Option<PathBuf>,
    pub logs: PathBuf,
}

impl Booter<'_> {
    pub fn machine<'a>(
        &self,
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
            initrd: self.images.get(topology.kit)?,
            plan,
            console,
            cpus: Cpus::Two,
            debug: false,
            nvdimms: Vec::new(),
            disk: None,
        })
    }
}

/// What a test run is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    /// Only tests whose name contains this.
    pub only: &'a str,
    /// What the tests with random input start from.
    pub seed: u64,
    /// The patched kernel is the debug tier's.
    pub debug: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tests,
    /// On the kernel without the patch, which the debug tier has none of.
    Stock,
    /// Two guests on one memory, with a scenario each.
    Pair {
        applications: bool,
    },
    /// With two CPUs at the same time. In the debug tier alone, whose kernel patches no code, and counts its locks.
    Parallel,
    /// The demo, as one test. In the debug tier alone: elsewhere it has a target of its own.
    Demo,
}

/// One boot of `make test`: a machine and the scenarios that need it.
struct Job {
    name: &'static str,
    topology: &'static Topology,
    scenarios: &'static str,
    kind: Kind,
}

const JOBS: &[Job] = &[
    Job {
        name: "kunit",
        topology: &topology::BARE,
        scenarios: "kunit",
        kind: Kind::Tests,
    },
    Job {
        name: "vm",
        topology: &topology::PMEM2,
        scenarios:
            "module,contents,protocol,push,refusals,hostile,faults,fast,fast_storms,lifetime,teardown,removal,pins,tool,doctor,messages,terminal,hosts,striped,handover,mount8,wrong_use,failure,poison,mended,poisoned_pins",
        kind: Kind::Tests,
    },
    Job {
        name: "memory",
        topology: &topology::PMEM2,
        scenarios: "failslab,cycles",
        kind: Kind::Tests,
    },
    Job {
        name: "parallel",
        topology: &topology::PMEM2,
        scenarios: "locks",
        kind: Kind::Parallel,
    },
    Job {
        name: "cxl",
        topology: &topology::CXL,
        scenarios: "contents,tool,doctor,poison,mended,mended_cxl,removal_cxl,doctor_cxl",
        kind: Kind::Tests,
    },
    Job {
        name: "systemd",
        topology: &topology::SYSTEMD,
        scenarios: "service",
        kind: Kind::Tests,
    },
    Job {
        name: "two",
        topology: &topology::MASTER,
        scenarios: "master,client",
        kind: Kind::Pair {
            applications: false,
        },
    },
    Job {
        name: "recipes",
        topology: &topology::HOST_A,
        scenarios: "host_a,host_b",
        kind: Kind::Pair { applications: true },
    },
    Job {
        name: "stock",
        topology: &topology::BARE,
        scenarios: "stock",
        kind: Kind::Stock,
    },
    Job {
        name: "demo",
        topology: &topology::CXL,
        scenarios: "",
        kind: Kind::Demo,
    },
];

impl Job {
    fn is_ordered(&self, order: Order) -> bool {
        match self.kind {
            Kind::Tests | Kind::Pair { .. } => true,
            Kind::Stock => !order.debug,
            Kind::Parallel => order.debug,
            Kind::Demo => order.debug && (order.only.is_empty() || order.only == self.name),
        }
    }

    fn plan(&self, order: Order) -> Vec<String> {
        let debug = format!("famfs.debug={}", u8::from(order.debug));
        if self.kind == Kind::Demo {
            return vec!["famfs.mode=demo".to_owned(), debug];
        }
        vec![
            debug,
            "famfs.mode=test".to_owned(),
            format!("famfs.name={}", self.name),
            format!("famfs.scenarios={}", self.scenarios),
            format!("famfs.only={}", order.only),
            format!("famfs.seed={}", order.seed),
        ]
    }
}

/// Runs every test that is ordered; says at the end how many passed and failed.
pub fn test(booter: &Booter, order: Order) -> Result<()> {
    let only = order.only;
    let mut tally = Tally::default();
    // A test's name begins with its guest's.
    let (wanted, others): (Vec<&Job>, Vec<&Job>) = JOBS
        .iter()
        .filter(|job| job.is_ordered(order))
        .partition(|job| only.starts_with(&format!("{}.", job.name)));
    let jobs = if wanted.is_empty() { others } else { wanted };
    for job in jobs {
        run_job(booter, job, order, &mut tally)?;
    }
    println!("{}", tally.summary());
    ensure!(tally.failed == 0, "{} tests failed", tally.failed);
    ensure!(tally.passed > 0, "no test has a name with \"{only}\" in it");
    Ok(())
}

fn run_job(booter: &Booter, job: &Job, order: Order, tally: &mut Tally) -> Result<()> {
    let kernel = match (job.kind, &booter.stock_kernel) {
        (Kind::Tests | Kind::Pair { .. } | Kind::Parallel | Kind::Demo, _) => &booter.kernel,
        (Kind::Stock, Some(kernel)) => kernel,
        (Kind::Stock, None) => {
            tally.skip(
                &format!("{}.boot", job.name),
                "no kernel without the patch (BZIMAGE_STOCK)",
            );
            return Ok(());
        }
    };
    if let Kind::Pair { applications } = job.kind {
        return run_pair(booter, job, applications, order, tally);
    }
    let mut machine = booter.machine(job.topology, kernel, job.name, job.plan(order))?;
    if job.kind == Kind::Parallel {
        machine.cpus = Cpus::Parallel;
    }
    let limits = if order.debug { DEBUG_LIMITS } else { LIMITS };
    run_machine(machine, limits, order.debug, job.name, tally)
}

fn run_machine(
    mut machine: Machine,
    limits: Limits,
    debug: bool,
    name: &str,
    tally: &mut Tally,
) -> Result<()> {
    machine.debug = debug;
    let mut run = tally.run(name);
    let ending = guest::run(&machine, limits, |event| run.record(event))?;
    run.conclude(ending);
    Ok(())
}

/// Random operations for `time`, on the debug tier's kernel if `debug`.
pub fn soak(booter: &Booter, time: Duration, seed: u64, debug: bool) -> Result<()> {
    println!(
        "{} minutes from seed {seed}; SEED=N starts with the round that has seed N",
        time.as_secs() / 60
    );
    let plan = vec![
        "famfs.mode=test".to_owned(),
        "famfs.name=soak".to_owned(),
        "famfs.scenarios=soak".to_owned(),
        format!("famfs.debug={}", u8::from(debug)),
        format!("famfs.seed={seed}"),
        format!("famfs.soak={}", time.as_secs()),
    ];
    let machine = booter.machine(&topology::PMEM2, &booter.kernel, "soak", plan)?;
    let limits = Limits {
        total: DEBUG_LIMITS.total + time,
        ..DEBUG_LIMITS
    };
    let mut tally = Tally::default();
    run_machine(machine, limits, debug, "soak", &mut tally)?;
    println!("{}", tally.summary());
    ensure!(tally.failed == 0, "the soak failed");
    Ok(())
}

/// The tests of the two depend on each other, so they are all run or none.
fn run_pair(
    booter: &Booter,
    job: &Job,
    applications: bool,
    order: Order,
    tally: &mut Tally,
) -> Result<()> {
    let (first, second) = job.scenarios.split_once(',').context("two scenarios")?;
    let [first, second] = [first, second].map(|side| (side, format!("{}.{side}", job.name)));
    let is_meant = |name: &str| name.contains(order.only) || order.only.starts_with(name);
    if ![&first.1, &second.1].into_iter().any(|name| is_meant(name)) {
        return Ok(());
    }
    let disk = match applications.then(tools::applications).transpose() {
        Ok(disk) => disk,
        Err(error) => {
            tally.fail(&format!("{}.boot", job.name), &format!("{error:#}"));
            return Ok(());
        }
    };
    let memory = SharedMemory::new(&topology::SHARED_BYTES)?;
    let nvdimms = memory.files();
    let famfs = booter.famfs.clone().context("no famfs given: set FAMFS")?;
    let mut snapshots = Snapshots::new(&nvdimms[0].0, famfs, order.seed)?;
    let machine = |topology: &'static Topology,
                   (scenarios, name): &(&'static str, String),
                   slots: &[usize]|
     -> Result<_> {
        let job = Job {
            name: job.name,
            topology,
            scenarios,
            kind: Kind::Tests,
        };
        let plan = job.plan(Order { only: "", ..order });
        let mut machine = booter.machine(topology, &booter.kernel, name, plan)?;
        machine.debug = order.debug;
        machine.nvdimms = slots.iter().map(|&slot| nvdimms[slot].clone()).collect();
        machine.disk.clone_from(&disk);
        Ok(machine)
    };
    let machines = if applications {
        [
            machine(&topology::HOST_A, &first, &[0])?,
            machine(&topology::HOST_B, &second, &[0])?,
        ]
    } else {
        [
            machine(&topology::MASTER, &first, &topology::MASTER_SLOTS)?,
            machine(&topology::CLIENT, &second, &topology::CLIENT_SLOTS)?,
        ]
    };
    let limits = if order.debug { DEBUG_LIMITS } else { LIMITS };
    let outcomes = pair::run([&machines[0], &machines[1]], limits, &mut snapshots)?;
    for ((_, name), (outcome, ending)) in [first, second].iter().zip(outcomes) {
        let mut run = tally.run(name);
        outcome.events.iter().for_each(|event| run.record(event));
        run.conclude(ending);
    }
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
    guest::run_to_success(&machine, LIMITS, None, |event| {
        if let Event::Say(text) = event {
            println!("{text}");
        }
    })
    .context("the demo went wrong")?;
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
