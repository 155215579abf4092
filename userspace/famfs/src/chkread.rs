// SPDX-License-Identifier: MIT OR Apache-2.0
//! `famfs chkread`: whether read(2) and a mapping give the same bytes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use famfs_fuse::map_file;

use crate::compared::Compared;
use crate::exit::{fail, Exit};
use crate::fill::{mismatch, progress};
use crate::work::Threads;

/// Options of chkread.
#[derive(clap::Args)]
pub struct Args {
    /// Files in a mounted famfs.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    threads: Threads,
}

/// Compare.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let compared = Compared::default();
    let done = args.threads.each(&args.files, |path| {
        check(path, &compared).with_context(|| path.display().to_string())
    });
    if args.json {
        compared.print()?;
    }
    done
}

fn check(path: &Path, compared: &Compared) -> anyhow::Result<()> {
    let file = File::open(path)?;
    let len = usize::try_from(file.metadata()?.len())?;
    let read = |at: usize, len| {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, at as u64)?;
        Ok(bytes)
    };
    let bar = progress(path, len as u64);
    let differs = mismatch(&map_file(&file, len, false)?, len, read, &bar)?;
    bar.finish_and_clear();
    compared.note(path, len, differs);
    match differs {
        None => Ok(()),
        Some(at) => Err(fail(
            Exit::Corrupt,
            format!("byte {at} differs between read(2) and a mapping"),
        )),
    }
}
