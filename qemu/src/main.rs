// SPDX-License-Identifier: MIT OR Apache-2.0
//! Builds guest images, boots them in QEMU, collects what they report.

mod bench;
mod budget;
mod c_series;
mod console;
mod guest;
mod image;
mod ktap;
mod pair;
mod plot;
mod profile;
mod qemu;
mod qmp;
mod report;
mod run;
mod snapshots;
mod tally;
mod tools;
mod topology;
mod trace;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use tools::Kit;
use topology::Topology;

#[derive(Debug, Parser)]
#[command(about, version)]
struct Cli {
    #[command(flatten)]
    parts: Parts,
    #[command(subcommand)]
    verb: Verb,
}

/// The products that guests are made of; the Makefile sets all of them.
#[derive(Args, Debug)]
struct Parts {
    /// Patched kernel
    #[arg(long, env = "BZIMAGE")]
    bzimage: Option<PathBuf>,
    /// The same kernel without the patch, for the test that the module refuses it
    #[arg(long, env = "BZIMAGE_STOCK")]
    bzimage_stock: Option<PathBuf>,
    /// famfs.ko
    #[arg(long, env = "KO")]
    ko: Option<PathBuf>,
    /// famfs_kunit.ko
    #[arg(long, env = "KUNIT_KO")]
    kunit_ko: Option<PathBuf>,
    /// The famfs binary
    #[arg(long, env = "FAMFS")]
    famfs: Option<PathBuf>,
    /// Where the guest image goes, and beside it those with other kits (default: in the cache)
    #[arg(long, env = "INITRD")]
    initrd: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Build the guest image and print its path
    Initrd,
    /// Show famfs at work, step by step
    Demo {
        #[arg(long, env = "TOPOLOGY", default_value = "cxl", value_parser = topology::by_name)]
        topology: &'static Topology,
    },
    /// Boot the demo's guest with a shell, the file system mounted
    Shell {
        #[arg(long, env = "TOPOLOGY", default_value = "cxl", value_parser = topology::by_name)]
        topology: &'static Topology,
    },
    /// Measure what faults, reads, writes and opens cost, in instructions
    Bench {
        /// Where the table, the figures and the plot go
        #[arg(long)]
        out: PathBuf,
        /// What is measured, as `git describe` puts it
        #[arg(long)]
        commit: String,
        /// Where the kernel's functions are
        #[arg(long, env = "SYSTEM_MAP")]
        system_map: PathBuf,
    },
    /// Tell which functions the instructions of rows of the bench are in
    Profile {
        /// "SUBJECT: OPERATION", as in the tables of docs/performance.md
        #[arg(required = true)]
        rows: Vec<String>,
        /// Where the kernel's functions are
        #[arg(long, env = "SYSTEM_MAP")]
        system_map: PathBuf,
    },
    /// Run the KUnit and VM tests
    Test {
        /// Only tests whose name contains this
        #[arg(long, default_value = "")]
        only: String,
        /// Where random input starts from
        #[arg(long, env = "SEED", default_value_t = 1)]
        seed: u64,
        /// The kernel is the debug tier's: it takes more time and memory, and the demo is one more test
        #[arg(long)]
        debug: bool,
    },
    /// Let everything that can happen to a mount happen to it, in random order
    Soak {
        #[arg(long, env = "MINUTES", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=1440))]
        minutes: u64,
        /// What the order is made from (default: another one each time)
        #[arg(long, env = "SEED")]
        seed: Option<u64>,
        /// The kernel is the debug tier's
        #[arg(long)]
        debug: bool,
    },
}

fn main() -> ExitCode {
    match run_verb(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("harness: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_verb(cli: Cli) -> Result<()> {
    let parts = &cli.parts;
    let booter = || -> Result<run::Booter> {
        qemu::check_version()?;
        Ok(run::Booter {
            kernel: parts
                .bzimage
                .clone()
                .context("no kernel given: set BZIMAGE (make kernel builds one)")?,
            stock_kernel: parts.bzimage_stock.clone().filter(|path| path.is_file()),
            images: Images::new(parts),
            famfs: parts.famfs.clone(),
            logs: parts.initrd()?.with_extension("logs"),
        })
    };
    match cli.verb {
        Verb::Initrd => println!("{}", Images::new(parts).get(&tools::KIT)?.display()),
        Verb::Bench {
            out,
            commit,
            system_map,
        } => bench::run(&booter()?, &system_map, &out, &commit)?,
        Verb::Profile { rows, system_map } => {
            let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
            let profiles = profile::run(&booter()?, &system_map, &rows)?;
            println!("{}", profile::table(&profiles, true));
        }
        Verb::Demo { topology } => run::demo(&booter()?, topology)?,
        Verb::Shell { topology } => run::shell(&booter()?, topology)?,
        Verb::Test { only, seed, debug } => {
            let only = &only;
            run::test(&booter()?, run::Order { only, seed, debug })?;
        }
        Verb::Soak {
            minutes,
            seed,
            debug,
        } => {
            let seed = seed.unwrap_or_else(some_seed);
            run::soak(&booter()?, Duration::from_secs(60 * minutes), seed, debug)?;
        }
    }
    Ok(())
}

/// Short enough to be typed.
fn some_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(1, |now| u64::from(now.subsec_micros()) + 1)
}

impl Parts {
    fn initrd(&self) -> Result<PathBuf> {
        match &self.initrd {
            Some(path) => Ok(path.clone()),
            None => Ok(tools::cache()?.join("guest.cpio")),
        }
    }

    /// Builds the guest image that has this kit in it; gives its path.
    fn build_initrd(&self, kit: &'static Kit) -> Result<PathBuf> {
        let path = match kit.name {
            "" => self.initrd()?,
            name => self.initrd()?.with_extension(format!("{name}.cpio")),
        };
        let contents = image::Contents {
            init: tools::guest_init()?,
            tools: tools::guest_tools(kit)?,
            kit,
            ko: self.ko.clone(),
            kunit_ko: self.kunit_ko.clone(),
            famfs: self.famfs.clone(),
        };
        contents.write(&path)?;
        Ok(path)
    }
}

/// The guest images of one run, each built when it is needed first.
#[derive(Debug)]
pub struct Images<'a> {
    parts: &'a Parts,
    built: RefCell<BTreeMap<&'static str, PathBuf>>,
}

impl<'a> Images<'a> {
    fn new(parts: &'a Parts) -> Self {
        Self {
            parts,
            built: RefCell::default(),
        }
    }

    /// The path of the image with this kit in it.
    pub fn get(&self, kit: &'static Kit) -> Result<PathBuf> {
        let mut built = self.built.borrow_mut();
        if let Some(path) = built.get(kit.name) {
            return Ok(path.clone());
        }
        let path = self.parts.build_initrd(kit)?;
        built.insert(kit.name, path.clone());
        Ok(path)
    }
}
