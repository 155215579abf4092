// SPDX-License-Identifier: MIT OR Apache-2.0
//! `famfs mkdir`: make directories.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::Context;

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

/// Make directories, all or none.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let first = args.paths.first().context("no directory")?;
    let mut plan = Plan::new(Mounted::of(&split(first)?.0)?, None)?;
    let attributes = Attributes::new(&args.ownership, 0o755);
    for path in &args.paths {
        let (base, names) = split(path)?;
        if names.is_empty() && !(args.parents && path.is_dir()) {
            return Err(exists(path));
        }
        let full = base
            .canonicalize()
            .with_context(|| base.display().to_string())?;
        let base = plan.mounted().below(&full)?.to_path_buf();
        add(&mut plan, path, &base, &names, args.parents, attributes)?;
    }
    plan.publish()?;
    Ok(())
}

/// Plan the directories `names`, each in the one before it, the first in `base`. They are what `path` lacks.
fn add(
    plan: &mut Plan,
    path: &Path,
    base: &Path,
    names: &[PathBuf],
    parents: bool,
    attributes: Attributes,
) -> anyhow::Result<()> {
    let mut at = base.to_path_buf();
    let mut names = names.iter().peekable();
    while let Some(name) = names.next() {
        at.push(name);
        let bytes = at.as_os_str().as_bytes();
        let is_last = names.peek().is_none();
        match plan.is_dir(bytes) {
            true if parents || !is_last => continue,
            false if !parents && !is_last => {
                let path = path.display();
                let text = format!("{path}: its parent does not exist; --parents makes it");
                return Err(fail(Exit::Failed, text));
            }
            _ if plan.existing(bytes).is_some() => return Err(exists(path)),
            _ => plan.mkdir(bytes, attributes)?,
        }
    }
    Ok(())
}

fn exists(path: &Path) -> anyhow::Error {
    fail(Exit::Failed, format!("{}: exists", path.display()))
}

/// The part of `path` that exists, and the names behind it.
fn split(path: &Path) -> anyhow::Result<(PathBuf, Vec<PathBuf>)> {
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
    Ok((base.into(), names))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::create::tests::{entries, plan, ATTRIBUTES};

    fn names(names: &[&str]) -> Vec<PathBuf> {
        names.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn what_exists_and_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        for path in ["a", "a/b/c"] {
            let missing = path.split('/').map(PathBuf::from).collect();
            assert_eq!(split(&base.join(path)).unwrap(), (base.into(), missing));
        }
        assert_eq!(split(base).unwrap(), (base.into(), vec![]));
        let error = split(&base.join("a/../b")).unwrap_err();
        assert_eq!(crate::exit::code(&error), Exit::Usage);
    }

    #[test]
    fn all_directories_are_one_append() {
        let (mut plan, log) = plan(None);
        let mut add = |path: &str, parents| {
            let missing = names(&path.split('/').collect::<Vec<_>>());
            let (path, base) = (Path::new(path), Path::new(""));
            add(&mut plan, path, base, &missing, parents, ATTRIBUTES)
        };
        add("a", false).unwrap();
        add("a/b", false).unwrap();
        add("c/d", true).unwrap();
        add("c/e", true).unwrap();
        add("c", true).unwrap();
        let missing = add("f/g", false).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "f/g: its parent does not exist; --parents makes it"
        );
        let twice = add("a", false).unwrap_err();
        assert_eq!(twice.to_string(), "path \"a\" would be made twice");
        assert_eq!(entries(&log), 0);
        let _ = plan.publish();
        assert_eq!(entries(&log), 5);
    }
}
