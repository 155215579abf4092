// SPDX-License-Identifier: MIT OR Apache-2.0
//! `famfs logplay`: let the server of a mount read new log entries.

use std::io;
use std::path::PathBuf;

use serde_json::json;

use crate::mounted::Mounted;

/// Options of logplay.
#[derive(clap::Args)]
pub struct Args {
    /// A path in a mounted famfs.
    path: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Read the log.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mounted = Mounted::of(&args.path)?;
    let entries = mounted.logplay(0)?;
    if args.json {
        let report =
            json!({ "mountpoint": mounted.root.to_string_lossy(), "log_entries": entries });
        crate::json::print(io::stdout().lock(), &report)?;
    } else {
        println!("{entries} log entries are in use");
    }
    Ok(())
}
