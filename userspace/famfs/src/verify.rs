// SPDX-License-Identifier: MIT OR Apache-2.0
//! `famfs verify`: compare files with the pattern that creat -r writes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::compared::Compared;
use crate::fill::{progress, Seeded};
use crate::work::Threads;

/// Options of verify.
#[derive(clap::Args)]
pub struct Args {
    /// Files that creat -r made.
    #[arg(required_unless_present_any = ["filename", "multi"])]
    files: Vec<PathBuf>,
    /// The same as FILES.
    #[arg(short, long, value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// Seed of the pattern in FILES.
    #[arg(short = 'S', long, default_value_t = 0)]
    seed: u64,
    /// A file with a seed of its own; may be given many times.
    #[arg(short, long, value_name = "FILE,SEED", value_parser = parse_multi)]
    multi: Vec<Seeded>,
    /// Show no progress.
    #[arg(short, long)]
    quiet: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    threads: Threads,
}

fn parse_multi(text: &str) -> Result<Seeded, String> {
    let (path, seed) = text
        .rsplit_once(',')
        .and_then(|(path, seed)| Some((path, seed.parse().ok()?)))
        .ok_or("FILE,SEED is wanted, with a number for the seed")?;
    let (path, seed) = (path.into(), Some(seed));
    Ok(Seeded { path, seed })
}

/// Compare files with the pattern.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let named = args.files.iter().chain(&args.filename);
    let named = named.map(|path| Seeded {
        path: path.clone(),
        seed: Some(args.seed),
    });
    let files: Vec<Seeded> = named.chain(args.multi.iter().cloned()).collect();
    let mut total = 0u64;
    for Seeded { path, .. } in &files {
        let meta = fs::metadata(path).with_context(|| path.display().to_string())?;
        total = total.saturating_add(meta.len());
    }
    let what = match &files[..] {
        [file] => &file.path,
        _ => Path::new("verify"),
    };
    let bar = if args.quiet {
        indicatif::ProgressBar::hidden()
    } else {
        progress(what, total)
    };
    let compared = Compared::default();
    let done = args
        .threads
        .each(&files, |file| file.verify(&bar, &compared));
    bar.finish_and_clear();
    if args.json {
        compared.print()?;
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_and_seed() {
        let (path, seed) = ("/mnt/a,b".into(), Some(7));
        assert_eq!(parse_multi("/mnt/a,b,7"), Ok(Seeded { path, seed }));
        for bad in ["/mnt/a", "/mnt/a,", "/mnt/a,b", "7"] {
            assert!(parse_multi(bad).is_err(), "{bad}");
        }
    }
}
