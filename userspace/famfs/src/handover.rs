// SPDX-License-Identifier: MIT OR Apache-2.0
//! `famfs server handover`: this program takes over a mount from the server that has it, to replace it by another
//! version without unmounting.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;

use crate::server::control;
use crate::{examples, mounted};

/// How long the successor may take to open its socket after it was ready.
const PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of server.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Let a server of this version of famfs take the place of the one that runs.
    #[command(after_help = examples::SERVER)]
    Handover {
        /// Mount point, or dax device of a mount.
        path: PathBuf,
    },
}

/// Run a verb on a server.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let Verb::Handover { path } = &args.verb;
    let mount = mounted::mount_at(path)?;
    let program = std::env::current_exe().context("the path of this program")?;
    let program = program
        .to_str()
        .context("the path of this program is not UTF-8")?;
    let (pid, text) =
        control::hand_over_to(&mount.source, program).context("the server was not changed")?;
    await_server(&mount.source, pid)?;
    eprintln!("{text}; served by process {pid} now");
    Ok(())
}

/// Waits until process `pid` answers for the mount.
fn await_server(device: &Path, pid: u64) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        match control::status(device) {
            Ok(status) if status.get("pid") == Some(&Value::from(pid)) => return Ok(()),
            Err(error) if start.elapsed() > PATIENCE => return Err(error),
            _ => thread::sleep(Duration::from_millis(10)),
        }
    }
}
