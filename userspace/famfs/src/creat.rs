// SPDX-License-Identifier: MIT OR Apache-2.0
//! `famfs creat`: make a file of a given size, and fill it if asked.

use std::path::PathBuf;

use crate::cli::{Ownership, Striping};
use crate::create::{self, Attributes, Plan, Planned};
use crate::exit::{fail, Exit};
use crate::fill;
use crate::mounted::{parent, Mounted};
use crate::size;

/// Options of creat.
#[derive(clap::Args)]
pub struct Args {
    /// The new file, in a mounted famfs; it is filled with zeroes. One that has this size already is left as it is.
    file: PathBuf,
    /// Bytes; k, m, g and t behind the number are powers of 1024.
    #[arg(short, long, value_parser = size::parse)]
    size: u64,
    /// Fill it with a pattern instead, that `famfs verify` can check.
    #[arg(short, long)]
    randomize: bool,
    /// Seed of the pattern.
    #[arg(short = 'S', long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    ownership: Ownership,
    #[command(flatten)]
    striping: Striping,
}

/// Make a file.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.size == 0 {
        return Err(fail(Exit::Usage, "a famfs file can not be empty"));
    }
    let mounted = Mounted::of(parent(&args.file))?;
    let path = mounted.relative(&args.file)?;
    let mut plan = Plan::new(mounted, Some(&args.striping))?;
    let planned = plan.file(
        &path,
        args.size,
        Attributes::new(&args.ownership, create::masked(0o644)),
    )?;
    plan.publish()?;
    create::check_size(&args.file, args.size)?;
    match (args.randomize, planned) {
        (true, _) => fill::fill(&args.file, args.seed),
        (false, Planned::New) => fill::zero(&args.file),
        (false, Planned::Same) => Ok(()),
    }
}
