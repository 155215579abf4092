// SPDX-License-Identifier: MIT OR Apache-2.0
//! `famfs flush`: write files back from the CPU caches, for hosts whose caches are not coherent.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use anyhow::Context;
use famfs_fuse::map_file;

use crate::mounted::Mounted;

/// Options of flush.
#[derive(clap::Args)]
pub struct Args {
    /// Files in a mounted famfs.
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

/// Flush files.
pub fn run(args: &Args) -> anyhow::Result<()> {
    args.files.iter().try_for_each(|file| {
        Mounted::of(file)?;
        flush(file).with_context(|| file.display().to_string())
    })
}

fn flush(path: &Path) -> anyhow::Result<()> {
    let file = OpenOptions::new().read(true).open(path)?;
    let len = usize::try_from(file.metadata()?.len())?;
    map_file(&file, len, false)?.hard_flush(0, len)?;
    Ok(())
}
