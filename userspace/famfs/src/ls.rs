// SPDX-License-Identifier: MIT OR Apache-2.0
//! `famfs ls`: files and directories as the log has them, with their maps if asked.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use famfs_media::{Kind, Node, NodeId, Tree};
use serde::Serialize;

use crate::escape::escaped;
use crate::exit::{fail, Exit};
use crate::getmap::{devices, MapReport};
use crate::json;
use crate::mounted::Mounted;
use crate::size;

/// Options of ls.
#[derive(clap::Args)]
pub struct Args {
    /// Files or directories in a mounted famfs.
    #[arg(default_value = ".")]
    paths: Vec<PathBuf>,
    /// Show directories with all that is below them.
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Show where the bytes of each file are.
    #[arg(long)]
    map: bool,
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
    path: PathBuf,
    #[serde(rename = "type")]
    kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    /// 0 for a directory.
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    map: Option<MapReport>,
}

/// Print.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for path in &args.paths {
        rows.extend(rows_of(path, args)?);
    }
    let mut out = io::stdout().lock();
    if args.json {
        json::print(&mut out, &rows)?;
        return Ok(());
    }
    for row in &rows {
        let size = size::show(row.size, args.human);
        let size = if row.kind == "directory" {
            row.kind
        } else {
            &size
        };
        let (mode, uid, gid) = (&row.mode, row.uid, row.gid);
        writeln!(
            out,
            "{mode} {uid:>5} {gid:>5} {size:>18} {}",
            escaped(row.path.display())
        )?;
        if let Some(map) = &row.map {
            map.print(&mut out)?;
        }
    }
    Ok(())
}

fn rows_of(path: &Path, args: &Args) -> anyhow::Result<Vec<Row>> {
    let mounted = Mounted::of(path)?;
    let relative = mounted.relative(&path.canonicalize()?)?;
    let replay = mounted.replay()?;
    let tree = &replay.tree;
    let missing = || {
        fail(
            Exit::Failed,
            format!("{} is not in the log", path.display()),
        )
    };
    let top = tree.resolve(&relative).ok_or_else(missing)?;
    let devices = if args.map {
        devices(&mounted)
    } else {
        Vec::new()
    };
    let row = |path: PathBuf, node: &Node| {
        let (kind, size, map) = match &node.kind {
            Kind::Dir(_) => ("directory", 0, None),
            Kind::File { size, map } => ("file", *size, Some(map)),
        };
        Row {
            path,
            kind,
            mode: format!("{:04o}", node.mode),
            uid: node.uid,
            gid: node.gid,
            size,
            map: map
                .filter(|_| args.map)
                .map(|map| MapReport::new(map, &devices)),
        }
    };
    let nodes = below(tree, top, args.recursive).into_iter();
    Ok(nodes
        .filter_map(|(name, id)| Some(row(path.join(name), tree.get(id)?)))
        .collect())
}

/// What is in the directory `top`, or also below it; `top` itself if it is a file. Paths are relative to `top`.
fn below(tree: &Tree, top: NodeId, recursive: bool) -> Vec<(PathBuf, NodeId)> {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let mut out = Vec::new();
    let mut todo = vec![(PathBuf::new(), top)];
    while let Some((path, id)) = todo.pop() {
        match tree.get(id).map(|node| &node.kind) {
            Some(Kind::Dir(children)) if id == top || recursive => {
                let children = children.iter().rev();
                todo.extend(children.map(|(name, id)| (path.join(OsStr::from_bytes(name)), *id)));
                if id != top {
                    out.push((path, id));
                }
            }
            _ => out.push((path, id)),
        }
    }
    out
}
