// SPDX-License-Identifier: MIT OR Apache-2.0
//! `famfs df`: how the space of each daxdev, and the log, are used.

use std::io::{self, Write};
use std::path::PathBuf;

use famfs_media::ALLOC_UNIT;
use serde::Serialize;

use crate::escape::escaped;
use crate::getmap::devices;
use crate::json;
use crate::log;
use crate::mounted::{self, Mounted};
use crate::size;

/// Options of df.
#[derive(clap::Args)]
pub struct Args {
    /// Paths in mounted famfs [default: all mounts of this host].
    paths: Vec<PathBuf>,
    /// Sizes in KiB, MiB and so on.
    #[arg(long)]
    human: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    #[serde(serialize_with = "json::path")]
    mountpoint: PathBuf,
    index: u32,
    /// `None` where only root can ask for it.
    #[serde(serialize_with = "json::some_path")]
    device: Option<PathBuf>,
    /// Whole allocation units, in bytes; what is used includes superblock and log.
    size: u64,
    used: u64,
    free: u64,
}

#[derive(Serialize)]
struct LogRow {
    #[serde(serialize_with = "json::path")]
    mountpoint: PathBuf,
    entries: u64,
    capacity: u64,
}

/// Print.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut paths = args.paths.clone();
    if paths.is_empty() {
        paths = mounted::all()?
            .into_iter()
            .map(|mount| mount.point)
            .collect();
    }
    let (mut rows, mut logs) = (Vec::new(), Vec::new());
    for path in &paths {
        let mounted = Mounted::of(path)?;
        let replay = mounted.replay()?;
        let devices = devices(&mounted);
        let capacity = log::header(&mounted.log()?, &mounted.superblock)?.last_index;
        for index in replay.space.devindexes() {
            let (units, used) = replay.space.device(index).unwrap_or_default();
            rows.push(Row {
                mountpoint: mounted.root.clone(),
                index,
                device: usize::try_from(index)
                    .ok()
                    .and_then(|index| devices.get(index).cloned()),
                size: units.saturating_mul(ALLOC_UNIT),
                used: used.saturating_mul(ALLOC_UNIT),
                free: units.saturating_sub(used).saturating_mul(ALLOC_UNIT),
            });
        }
        logs.push(LogRow {
            mountpoint: mounted.root,
            entries: replay.next_index(),
            capacity: capacity.saturating_add(1),
        });
    }
    let mut out = io::stdout().lock();
    if args.json {
        let all = serde_json::json!({ "daxdevs": rows, "logs": logs });
        json::print(&mut out, &all)?;
        return Ok(());
    }
    let bytes = |n| size::show(n, args.human);
    writeln!(
        out,
        "{:>18} {:>18} {:>18} {:>5}  daxdev",
        "size", "used", "free", "use"
    )?;
    for row in &rows {
        let device = row
            .device
            .as_ref()
            .map_or("-".into(), |path| escaped(path.display()));
        let percent = row
            .used
            .saturating_mul(100)
            .checked_div(row.size)
            .unwrap_or(0);
        let (size, used, free) = (bytes(row.size), bytes(row.used), bytes(row.free));
        let (index, mountpoint) = (row.index, escaped(row.mountpoint.display()));
        writeln!(
            out,
            "{size:>18} {used:>18} {free:>18} {percent:>4}%  {index} {device} {mountpoint}"
        )?;
    }
    for log in &logs {
        let (entries, capacity, mountpoint) =
            (log.entries, log.capacity, escaped(log.mountpoint.display()));
        writeln!(
            out,
            "{entries} of {capacity} log entries of {mountpoint} are used"
        )?;
    }
    Ok(())
}
