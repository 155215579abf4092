// SPDX-License-Identifier: MIT OR Apache-2.0
//! `famfs fmap decode`: a GET_FMAP reply for people, judged by the code that the kernel module runs.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use famfs_fmap::{parse, wanted_size, DevRange, FileType, Fmap, FmapError, Layout, MAX_MESSAGE};
use serde::Serialize;

use crate::exit::{fail, Exit};
use crate::json;
use crate::{examples, size};

/// Options of fmap.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Print a GET_FMAP reply as JSON, or say why the kernel refuses it.
    #[command(after_help = examples::FMAP)]
    Decode(DecodeArgs),
}

#[derive(clap::Args)]
struct DecodeArgs {
    /// The reply without its FUSE header.
    file: PathBuf,
    /// Bytes of each daxdev, with k, m, g or t behind the number: no extent may reach beyond.
    #[arg(long, value_name = size::UNIT, value_parser = size::parse)]
    device_size: Option<u64>,
}

#[derive(Serialize)]
struct Report {
    file_type: &'static str,
    file_size: u64,
    /// How the kernel resolves it.
    kind: &'static str,
    extents: Vec<ExtentReport>,
}

#[derive(Serialize)]
struct ExtentReport {
    /// The first of the bytes that it maps.
    file_offset: u64,
    /// Up to the next multiple of 2 MiB.
    file_len: u64,
    /// Bytes on a strip before the next one; the whole extent where there is but one.
    chunk_size: u64,
    strips: Vec<StripReport>,
}

#[derive(Serialize)]
struct StripReport {
    devindex: u32,
    offset: u64,
    len: u64,
}

/// Do what is asked for.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let Verb::Decode(args) = &args.verb;
    let reply = read(&args.file)?;
    let report = decode(&reply, args.device_size)
        .map_err(|reason| fail(Exit::Corrupt, reason))
        .with_context(|| args.file.display().to_string())?;
    Ok(json::print(io::stdout().lock(), &report)?)
}

/// The file, or as much of it as shows that it is too large for a reply.
fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut reply = Vec::new();
    File::open(path)
        .and_then(|file| {
            file.take(u64::from(MAX_MESSAGE) + 1)
                .read_to_end(&mut reply)
        })
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(reply)
}

/// The reply, or why it is refused, in the words of the kernel log.
fn decode(reply: &[u8], device_size: Option<u64>) -> Result<Report, String> {
    let (fmap, layout, cells) = judge(reply).map_err(|error| error.to_string())?;
    for range in fmap.ranges() {
        if device_size.is_some_and(|size| !lies_in(range, size)) {
            let DevRange { index, offset, len } = range;
            return Err(format!(
                "se_offset ({offset:#x}) and se_len ({len:#x}) can't be reached in daxdev {}",
                index.0
            ));
        }
    }
    let mut strips = fmap.ranges().map(|range| StripReport {
        devindex: range.index.0,
        offset: range.offset,
        len: range.len,
    });
    let extents = layout.extents(&cells).map(|extent| ExtentReport {
        file_offset: extent.file.start,
        file_len: extent.file.end.saturating_sub(extent.file.start),
        chunk_size: extent.chunk,
        strips: strips.by_ref().take(extent.strips.count()).collect(),
    });
    Ok(Report {
        extents: extents.collect(),
        file_type: match fmap.file_type() {
            FileType::Regular => "regular",
            FileType::Superblock => "superblock",
            FileType::Log => "log",
        },
        file_size: fmap.file_size(),
        kind: layout.kind(),
    })
}

/// What the module does with a reply, with the daxdevs' indices for slots.
fn judge(reply: &[u8]) -> Result<(Fmap<'_>, Layout, Vec<u64>), FmapError> {
    wanted_size(reply, reply.len())?;
    let fmap = parse(reply)?;
    let mut cells = vec![0; fmap.cells_len()];
    let layout = fmap.build(|index| u16::try_from(index.0).ok(), &mut cells)?;
    Ok((fmap, layout, cells))
}

fn lies_in(range: DevRange, size: u64) -> bool {
    range
        .offset
        .checked_add(range.len)
        .is_some_and(|end| end <= size)
}
