// SPDX-License-Identifier: MIT OR Apache-2.0
//! `famfs check`: whether a mount shows what the log says, no more and no less.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use famfs_media::{Kind, Tree};
use serde::Serialize;
use serde_json::json;

use crate::escape::escaped;
use crate::exit::{fail, Exit};
use crate::json;
use crate::mounted::Mounted;

/// Options of check.
#[derive(clap::Args)]
pub struct Args {
    /// A path in a mounted famfs.
    path: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Something that the mount shows in another way than the log.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Difference {
    #[serde(serialize_with = "json::path")]
    path: PathBuf,
    problem: String,
}

/// Compare names, kinds and sizes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mounted = Mounted::of(&args.path)?;
    let replay = mounted.replay()?;
    mounted.logplay(replay.next_index())?;
    let wrong = compare(&mounted.root, &replay.tree)?;
    let (files, directories) = (replay.totals.files, replay.totals.dirs);
    if args.json {
        let report = json!({
            "mountpoint": mounted.root.to_string_lossy(), "files": files, "directories": directories, "differences": wrong,
        });
        crate::json::print(io::stdout().lock(), &report)?;
    } else if wrong.is_empty() {
        println!("{files} files and {directories} directories are as the log says");
    }
    for Difference { path, problem } in wrong.iter().filter(|_| !args.json) {
        println!("{}: {problem}", escaped(path.display()));
    }
    match wrong.len() {
        0 => Ok(()),
        n => Err(fail(
            Exit::Corrupt,
            format!("{n} differences between the mount and its log"),
        )),
    }
}

/// All differences between the directory `root` and `tree`.
fn compare(root: &Path, tree: &Tree) -> anyhow::Result<Vec<Difference>> {
    let mut wrong = Vec::new();
    let logged = tree.walk();
    let dirs = logged.iter().filter(|(_, id)| is_dir(tree, *id));
    for dir in [&b""[..]]
        .into_iter()
        .chain(dirs.map(|(path, _)| &path[..]))
    {
        let full = root.join(OsStr::from_bytes(dir));
        let Ok(entries) = fs::read_dir(&full) else {
            // Named below.
            continue;
        };
        for entry in entries {
            let name = entry
                .with_context(|| full.display().to_string())?
                .file_name();
            let known = tree
                .resolve(dir)
                .and_then(|dir| tree.lookup(dir, name.as_bytes()));
            if known.is_none() && !(dir.is_empty() && name == ".meta") {
                wrong.push(Difference {
                    path: full.join(name),
                    problem: "not in the log".into(),
                });
            }
        }
    }
    for (path, id) in &logged {
        let full = root.join(OsStr::from_bytes(path));
        let found = fs::symlink_metadata(&full).ok();
        let found = found.map(|meta| {
            if meta.is_file() {
                Some(meta.len())
            } else {
                None
            }
        });
        let expected = tree.get(*id).and_then(|node| match node.kind {
            Kind::File { size, .. } => Some(size),
            Kind::Dir(_) => None,
        });
        if found != Some(expected) {
            let is = found.map_or("not there".into(), show);
            wrong.push(Difference {
                path: full,
                problem: format!("{is}; the log says {}", show(expected)),
            });
        }
    }
    Ok(wrong)
}

fn is_dir(tree: &Tree, id: famfs_media::NodeId) -> bool {
    matches!(tree.get(id).map(|node| &node.kind), Some(Kind::Dir(_)))
}

fn show(size: Option<u64>) -> String {
    size.map_or_else(
        || "a directory".into(),
        |size| format!("a file of {size} bytes"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use famfs_media::{Replay, Superblock};

    #[test]
    fn differences_are_named() {
        let media = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/vectors/media");
        let read = |name| fs::read(media.join(name)).unwrap();
        let superblock = Superblock::parse(&read("superblock.bin")).unwrap();
        let replay = Replay::of_log(&superblock, 16 << 30, &read("log.bin")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for (path, id) in replay.tree.walk() {
            let path = dir.path().join(OsStr::from_bytes(&path));
            match replay.tree.get(id).unwrap().kind {
                Kind::File { size, .. } => fs::File::create(path).unwrap().set_len(size).unwrap(),
                Kind::Dir(_) => fs::create_dir(path).unwrap(),
            }
        }
        fs::create_dir(dir.path().join(".meta")).unwrap();
        assert_eq!(compare(dir.path(), &replay.tree).unwrap(), []);
        fs::remove_dir(dir.path().join("empty_dir")).unwrap();
        fs::write(dir.path().join("dir1/more"), "").unwrap();
        fs::write(dir.path().join("dir1/aligned_4m.bin"), "short").unwrap();
        let expected = [
            ("dir1/more", "not in the log"),
            (
                "dir1/aligned_4m.bin",
                "a file of 5 bytes; the log says a file of 4194304 bytes",
            ),
            ("empty_dir", "not there; the log says a directory"),
        ];
        let expected = expected.map(|(name, problem)| Difference {
            path: dir.path().join(name),
            problem: problem.into(),
        });
        assert_eq!(compare(dir.path(), &replay.tree).unwrap(), expected);
    }
}
