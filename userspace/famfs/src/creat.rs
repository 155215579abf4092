// SPDX-License-Identifier: MIT OR Apache-2.0
//! `famfs creat`: make files of given sizes, and fill them if asked.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::cli::{Ownership, Striping};
use crate::create::{self, Attributes, Plan, Planned};
use crate::exit::{fail, Exit};
use crate::fill::{progress, Seeded};
use crate::mounted::{parent, Mounted};
use crate::size;
use crate::work::Threads;

/// Options of creat.
#[derive(clap::Args)]
pub struct Args {
    /// The new file, in a mounted famfs; it is filled with zeroes. One that has this size already is left as it is.
    #[arg(required_unless_present = "multi", requires = "size")]
    file: Option<PathBuf>,
    /// Bytes; k, m, g and t behind the number are powers of 1024.
    #[arg(short, long, value_name = size::UNIT, value_parser = size::parse, requires = "file")]
    size: Option<u64>,
    /// Fill it with a pattern instead, that `famfs verify` can check.
    #[arg(short, long)]
    randomize: bool,
    /// Seed of the pattern.
    #[arg(short = 'S', long, default_value_t = 0)]
    seed: u64,
    /// A file, its size (bytes; k, m, g, t), and if it gets the pattern a seed; may be given many times, for all or none of the files.
    #[arg(short = 'M', long, value_name = "FILE,SIZE[,SEED]", value_parser = parse_multi)]
    multi: Vec<New>,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    ownership: Ownership,
    #[command(flatten)]
    striping: Striping,
}

/// A file to make.
#[derive(Clone, Debug, PartialEq, Eq)]
struct New {
    path: PathBuf,
    size: u64,
    /// Of the pattern, for a file that gets one.
    seed: Option<u64>,
}

fn parse_multi(text: &str) -> Result<New, String> {
    let new = |path: &str, size: &str, seed| {
        let (path, size) = (path.into(), size::parse(size)?);
        Ok(New { path, size, seed })
    };
    let (rest, last) = text.rsplit_once(',').ok_or("FILE,SIZE[,SEED] is wanted")?;
    if let (Some((path, size)), Ok(seed)) = (rest.rsplit_once(','), last.parse()) {
        return new(path, size, Some(seed));
    }
    new(rest, last, None)
}

/// Make files.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let one = args.file.iter().zip(args.size).map(|(path, size)| New {
        path: path.clone(),
        size,
        seed: args.randomize.then_some(args.seed),
    });
    let multi = args.multi.iter().cloned().map(|new| New {
        seed: new.seed.or(args.randomize.then_some(args.seed)),
        ..new
    });
    let files: Vec<New> = one.chain(multi).collect();
    let first = files.first().context("no file")?;
    if files.iter().any(|new| new.size == 0) {
        return Err(fail(Exit::Usage, "a famfs file can not be empty"));
    }
    let mut plan = Plan::new(Mounted::of(parent(&first.path))?, Some(&args.striping))?;
    let attributes = Attributes::new(&args.ownership, create::masked(0o644));
    let mut fills = Vec::new();
    for new in &files {
        let relative = plan.mounted().relative(&new.path)?;
        let planned = plan.file(&relative, new.size, attributes)?;
        if new.seed.is_some() || planned == Planned::New {
            fills.push((relative, new.clone()));
        }
    }
    let root = plan.publish()?.open_root()?;
    let what = match &fills[..] {
        [(_, new)] => &new.path,
        _ => Path::new("creat"),
    };
    let total = fills
        .iter()
        .fold(0u64, |sum, (_, new)| sum.saturating_add(new.size));
    let bar = progress(what, total);
    args.threads.each(&fills, |(relative, new)| {
        let file = root.open_new(relative, new.size);
        let file = file.with_context(|| new.path.display().to_string())?;
        let (path, seed) = (new.path.clone(), new.seed);
        Seeded { path, seed }.write(&file, &bar)
    })?;
    bar.finish_and_clear();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_size_and_seed() {
        let new = |path: &str, size, seed| {
            let path = path.into();
            Ok(New { path, size, seed })
        };
        assert_eq!(parse_multi("a,5m"), new("a", 5 << 20, None));
        assert_eq!(parse_multi("a,5m,7"), new("a", 5 << 20, Some(7)));
        assert_eq!(parse_multi("a,b,4096"), Err(size::parse("b").unwrap_err()));
        assert_eq!(parse_multi("a,b,4k"), new("a,b", 4096, None));
        for bad in ["a", "a,", "a,b", "a,5m,"] {
            assert!(parse_multi(bad).is_err(), "{bad}");
        }
    }
}
