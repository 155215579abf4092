// SPDX-License-Identifier: MIT OR Apache-2.0
//! `famfs getmap`: where the bytes of a file are, from the log.

use std::io::{self, Write};
use std::path::PathBuf;

use famfs_media::{Extent, Kind, Map};
use serde::{Deserialize, Serialize};

use crate::escape::escaped;
use crate::exit::{fail, Exit};
use crate::json;
use crate::mounted::Mounted;
use crate::server::control;

/// Options of getmap.
#[derive(clap::Args)]
pub struct Args {
    /// A file in a mounted famfs.
    file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    #[serde(serialize_with = "json::path")]
    file: PathBuf,
    size: u64,
    #[serde(flatten)]
    map: MapReport,
}

/// A file's map.
#[derive(Serialize)]
pub struct MapReport {
    kind: &'static str,
    /// Bytes on a strip before the next one; of interleaved files only.
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk_size: Option<u64>,
    extents: Vec<ExtentReport>,
}

#[derive(Serialize)]
struct ExtentReport {
    devindex: u64,
    /// As the server knows it; `None` when it does not answer.
    #[serde(serialize_with = "json::some_path")]
    device: Option<PathBuf>,
    offset: u64,
    len: u64,
}

/// Print the map of a file.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mounted = Mounted::of(&args.file)?;
    let relative = mounted.relative(&args.file)?;
    let replay = mounted.replay()?;
    let node = replay
        .tree
        .resolve(&relative)
        .and_then(|id| replay.tree.get(id));
    let Some(Kind::File { size, map }) = node.map(|node| &node.kind) else {
        return Err(fail(
            Exit::Failed,
            format!("{} is not a file of the log", args.file.display()),
        ));
    };
    Report {
        file: args.file.clone(),
        size: *size,
        map: MapReport::new(map, &devices(&mounted)),
    }
    .print(args.json)
}

/// Paths of the daxdevs by index. Which path a daxdev has on this host is known to the server alone, which
/// root can ask.
pub fn devices(mounted: &Mounted) -> Vec<PathBuf> {
    let status = control::status(&mounted.device).unwrap_or_default();
    let listed = status
        .get("devices")
        .and_then(|devices| Vec::deserialize(devices).ok());
    listed.unwrap_or_else(|| vec![mounted.device.clone()])
}

impl Report {
    fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        if json {
            json::print(&mut out, self)?;
            return Ok(());
        }
        let (file, kind) = (escaped(self.file.display()), self.map.describe());
        writeln!(out, "{file}: {} bytes, {kind}", self.size)?;
        Ok(self.map.print(&mut out)?)
    }
}

impl MapReport {
    /// `devices` are paths of daxdevs by index, as far as they are known.
    pub fn new(map: &Map, devices: &[PathBuf]) -> Self {
        let extent = |e: &Extent| ExtentReport {
            devindex: e.devindex,
            device: usize::try_from(e.devindex)
                .ok()
                .and_then(|index| devices.get(index).cloned()),
            offset: e.offset,
            len: e.len,
        };
        let (kind, chunk_size) = match map {
            Map::Simple(_) => ("simple", None),
            Map::Interleaved { chunk_size, .. } => ("interleaved", Some(*chunk_size)),
        };
        Self {
            kind,
            chunk_size,
            extents: map.extents().iter().map(extent).collect(),
        }
    }

    /// Its kind in words.
    pub fn describe(&self) -> String {
        match self.chunk_size {
            None => self.kind.into(),
            Some(bytes) => format!("{} in chunks of {bytes:#x}", self.kind),
        }
    }

    /// A line for each extent or strip.
    pub fn print(&self, out: &mut impl Write) -> io::Result<()> {
        for e in &self.extents {
            let device = e
                .device
                .as_ref()
                .map_or_else(String::new, |path| format!(" {}", escaped(path.display())));
            writeln!(
                out,
                "  daxdev {}{device} offset {:#x} length {:#x}",
                e.devindex, e.offset, e.len
            )?;
        }
        Ok(())
    }
}
