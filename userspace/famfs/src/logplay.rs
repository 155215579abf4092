// SPDX-License-Identifier: MIT OR Apache-2.0
//! `famfs logplay`: let the server of a mount read new log entries.

use std::path::PathBuf;

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
    println!("{} log entries are in use", mounted.logplay(0)?);
    Ok(())
}
