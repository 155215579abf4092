// SPDX-License-Identifier: MIT OR Apache-2.0
//! `famfs status`: what the server of a mount tells about itself. Asking sends no FUSE request but the ones that
//! find the mount.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use serde_json::Value;

use crate::exit::{fail, Exit};
use crate::mounted;
use crate::server::control;

/// Options of status.
#[derive(clap::Args)]
pub struct Args {
    /// Mount point, or dax device of a mount.
    path: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Print the status.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let device = mounted::device_of(&args.path)?.ok_or_else(|| {
        fail(
            Exit::NoFamfs,
            format!(
                "{}: neither mount point nor device of a mounted famfs",
                args.path.display()
            ),
        )
    })?;
    let status = control::status(&device).with_context(|| {
        format!(
            "{} is mounted but its server does not answer; open files go on working",
            device.display()
        )
    })?;
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&status)?)?;
        return Ok(());
    }
    for (key, value) in status.as_object().into_iter().flatten() {
        match value {
            Value::Object(counts) => {
                writeln!(out, "{key}")?;
                counts
                    .iter()
                    .try_for_each(|(name, count)| writeln!(out, "  {name:14}{count}"))?;
            }
            _ => writeln!(out, "{key:16}{}", plain(value))?,
        }
    }
    Ok(())
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}
