// SPDX-License-Identifier: MIT OR Apache-2.0
//! `famfs mkdir`: make directories.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::Context;
use famfs_media::Kind;

use crate::cli::Ownership;
use crate::create::{Attributes, Plan};
use crate::exit::{fail, Exit};
use crate::mounted::{parent, Mounted};

/// Options of mkdir.
#[derive(clap::Args)]
pub struct Args {
    /// Directories in a mounted famfs.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Make missing parents too, and do not mind if a directory exists.
    #[arg(short, long)]
    parents: bool,
    #[command(flatten)]
    ownership: Ownership,
}

/// Make directories, one after the other.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let attributes = Attributes::new(&args.ownership, 0o755);
    args.paths
        .iter()
        .try_for_each(|path| mkdir(path, args.parents, attributes))
}

fn mkdir(path: &Path, parents: bool, attributes: Attributes) -> anyhow::Result<()> {
    let (base, missing) = split(path, parents)?;
    let mounted = Mounted::of(&base)?;
    let base = base
        .canonicalize()
        .with_context(|| base.display().to_string())?;
    let relative = base
        .strip_prefix(&mounted.root)
        .context("the mount moved")?
        .to_path_buf();
    let mut plan = Plan::new(mounted, None)?;
    let mut at = relative;
    for name in &missing {
        at.push(name);
        let bytes = at.as_os_str().as_bytes();
        match plan.existing(bytes).map(|node| &node.kind) {
            Some(Kind::Dir(_)) if parents => {}
            Some(_) => return Err(fail(Exit::Failed, format!("{}: exists", path.display()))),
            None => plan.mkdir(bytes, attributes)?,
        }
    }
    plan.publish()?;
    Ok(())
}

/// The part of `path` that exists, and the names behind it: one, or with `parents` any number.
fn split(path: &Path, parents: bool) -> anyhow::Result<(PathBuf, Vec<PathBuf>)> {
    if path.exists() {
        return match parents && path.is_dir() {
            true => Ok((path.into(), Vec::new())),
            false => Err(fail(Exit::Failed, format!("{}: exists", path.display()))),
        };
    }
    let mut base = path;
    let mut names = Vec::new();
    while !base.exists() {
        match base.components().next_back() {
            Some(Component::Normal(name)) => names.insert(0, PathBuf::from(name)),
            _ => {
                return Err(fail(
                    Exit::Usage,
                    format!("{}: not a path of a directory", path.display()),
                ))
            }
        }
        base = parent(base);
    }
    if names.len() > 1 && !parents {
        let text = format!(
            "{}: its parent does not exist; --parents makes it",
            path.display()
        );
        return Err(fail(Exit::Failed, text));
    }
    Ok((base.into(), names))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exists_and_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        let names = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(
            split(&base.join("a"), false).unwrap(),
            (base.into(), names(&["a"]))
        );
        assert_eq!(
            split(&base.join("a/b/c"), true).unwrap(),
            (base.into(), names(&["a", "b", "c"]))
        );
        assert!(split(&base.join("a/b"), false)
            .unwrap_err()
            .to_string()
            .contains("--parents"));
        assert!(split(base, false).is_err());
        assert_eq!(split(base, true).unwrap(), (base.into(), vec![]));
        assert!(split(&base.join("a/../b"), true).is_err());
    }
}
