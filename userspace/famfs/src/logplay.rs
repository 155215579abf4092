// SPDX-License-Identifier: MIT OR Apache-2.0
//! `famfs logplay`: let the server of a mount read new log entries.

use std::path::PathBuf;

use crate::log;
use crate::mounted::Mounted;

/// Options of logplay.
#[derive(clap::Args)]
pub struct Args {
    /// A path in a mounted famfs.
    path: PathBuf,
}

/// Read the log.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mounted = Mounted::of(&args.path)?;
    let header = log::header(&mounted.log()?, &mounted.superblock)?;
    mounted.logplay(header.next_index)?;
    println!("{} log entries are in use", header.next_index);
    Ok(())
}
