// SPDX-License-Identifier: MIT OR Apache-2.0
//! The files as FUSE shows them: the two files of `.meta`, and what the replay of the log has made.
//!
//! Node ids do not depend on when or how often the log was replayed: 1 to 4 are fixed, an entry of the log has its
//! index + [`FIRST_ENTRY`]. Nothing is ever removed, so that they need no reference counts and no generations.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use famfs_fuse::abi::{fattr, Attr, SetattrIn, ROOT_ID};
use famfs_fuse::Errno;
use famfs_media::{
    Extent, Kind, LogHeader, Map, Node, NodeId, Replay, Role, Superblock, Tree, ALLOC_UNIT,
    ENTRY_BYTES, HEADER_BYTES, LOG_OFFSET, SUPERBLOCK_LEN,
};

use super::kept::Changed;
use crate::system;

/// Node id of `.meta`.
pub const META: u64 = 2;
/// Node id of `.meta/.superblock`.
pub const SUPERBLOCK: u64 = 3;
/// Node id of `.meta/.log`.
pub const LOG: u64 = 4;
/// Node id of the log's entry 0.
pub const FIRST_ENTRY: u64 = 16;

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
/// The block size that famfs reports for a file: that of the pages it maps.
const BLKSIZE: u32 = 4096;

/// All nodes of a mount.
#[derive(Debug)]
pub struct Namespace {
    /// Bytes of the log.
    log_len: u64,
    /// Permission bits of `.meta/.log`.
    log_mode: u32,
    /// Absent in a mount that is made for `.meta` alone.
    replay: Option<Replay>,
    /// Nodes of the replay by their node id.
    entries: HashMap<u64, NodeId>,
    /// What is in a directory, in the order of the log and so of node ids.
    listings: HashMap<NodeId, Vec<NodeId>>,
    /// Attributes that were changed. They live as long as the mount.
    changed: Changed,
}

/// A directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct DirEntry<'a> {
    pub nodeid: u64,
    pub name: &'a [u8],
}

impl Namespace {
    /// A namespace of `.meta` alone.
    pub fn meta_only(log_len: u64) -> Self {
        Self {
            log_len,
            log_mode: 0o644,
            replay: None,
            entries: HashMap::new(),
            listings: HashMap::new(),
            changed: Changed::default(),
        }
    }

    /// Keeps changes of attributes for a successor from now on, and the paths of the daxdevs. Returns where.
    pub fn keep(&mut self, devices: &[PathBuf]) -> io::Result<OwnedFd> {
        self.changed.keep(devices)
    }

    /// Sets the changes that a predecessor has kept.
    pub fn set_changed(&mut self, changed: Changed) {
        self.changed = changed;
    }

    /// Sets what the superblock says of `.meta/.log`: its length, and that only the master may write to it.
    pub fn set_superblock(&mut self, superblock: &Superblock) {
        self.log_len = superblock.log_len;
        self.log_mode = match superblock.role(system::uuid()) {
            Role::Master => 0o644,
            Role::Client => 0o444,
        };
    }

    /// What the log has made, if this is more than `.meta`.
    pub fn replay(&self) -> Option<&Replay> {
        self.replay.as_ref()
    }

    /// Takes over the replay of the log as far as it has gone. Returns the directories that have directories in them.
    pub fn set_replay(&mut self, replay: Replay) -> BTreeSet<u64> {
        self.replay = Some(replay);
        self.index_new()
    }

    /// Carries on the replay with `entries`, up to the last one that `upto` announces. Returns the directories that have
    /// new directories in them: their numbers of links have changed.
    pub fn advance(&mut self, upto: &LogHeader, entries: &[u8]) -> anyhow::Result<BTreeSet<u64>> {
        let replay = self.replay.as_mut().context("there is no log")?;
        replay.advance(upto, entries)?;
        Ok(self.index_new())
    }

    fn index_new(&mut self) -> BTreeSet<u64> {
        let Some(Replay { tree, .. }) = &self.replay else {
            return BTreeSet::new();
        };
        let new: Vec<_> = tree.nodes_from(self.entries.len()).collect();
        let parents = new
            .iter()
            .filter(|(_, node)| matches!(node.kind, Kind::Dir(_)))
            .filter_map(|(_, node)| nodeid_of(tree.get(node.parent)?))
            .collect();
        let ids = new
            .iter()
            .filter_map(|(id, node)| Some((nodeid_of(node)?, *id)));
        self.entries.extend(ids);
        for (id, node) in new {
            self.listings.entry(node.parent).or_default().push(id);
        }
        parents
    }

    /// Node ids of a directory's entry.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<u64, Errno> {
        match (parent, name) {
            (ROOT_ID, b".meta") => return Ok(META),
            (META, b".superblock") => return Ok(SUPERBLOCK),
            (META, b".log") => return Ok(LOG),
            _ => (),
        }
        let (tree, parent) = self.tree_node(parent).ok_or(Errno::NOENT)?;
        let child = tree
            .lookup(parent, name)
            .and_then(|id| nodeid_of(tree.get(id)?));
        child.ok_or(Errno::NOENT)
    }

    /// The directory that a node is in.
    pub fn parent(&self, nodeid: u64) -> u64 {
        match nodeid {
            SUPERBLOCK | LOG => META,
            _ => self
                .tree_node(nodeid)
                .and_then(|(tree, id)| nodeid_of(tree.get(tree.get(id)?.parent)?))
                .unwrap_or(ROOT_ID),
        }
    }

    /// The entries of a directory whose node id is above `after`, in the order of node ids: new entries come last.
    /// Without "." and "..". What it costs does not depend on how many come before.
    pub fn entries(
        &self,
        dir: u64,
        after: u64,
    ) -> Result<impl Iterator<Item = DirEntry<'_>>, Errno> {
        let fixed: &[(u64, &[u8])] = match dir {
            ROOT_ID => &[(META, b".meta")],
            META => &[(SUPERBLOCK, b".superblock"), (LOG, b".log")],
            _ => &[],
        };
        let below: &[NodeId] = match self.tree_node(dir) {
            // The root may be that of a mount that is made for .meta alone.
            None if !fixed.is_empty() => &[],
            None => return Err(Errno::NOENT),
            Some((tree, id)) => match tree.get(id).map(|node| &node.kind) {
                Some(Kind::Dir(_)) => self.listings.get(&id).map_or(&[], Vec::as_slice),
                _ => return Err(Errno::NOTDIR),
            },
        };
        let tree = self.replay.as_ref().map(|replay| &replay.tree);
        let entry = move |id: &NodeId| {
            let node = tree?.get(*id)?;
            let (nodeid, name) = (nodeid_of(node)?, &*node.name);
            Some(DirEntry { nodeid, name })
        };
        let seen = below.partition_point(|id| entry(id).is_some_and(|entry| entry.nodeid <= after));
        let fixed = fixed
            .iter()
            .map(|&(nodeid, name)| DirEntry { nodeid, name });
        let fixed = fixed.filter(move |entry| entry.nodeid > after);
        Ok(fixed.chain(below.iter().skip(seen).filter_map(entry)))
    }

    /// Attributes of a node.
    pub fn attr(&self, nodeid: u64) -> Result<Attr, Errno> {
        if let Some(attr) = self.changed.get(nodeid) {
            return Ok(attr);
        }
        let file = |mode: u32, size: u64, allocated: u64| (S_IFREG | mode, size, allocated, 1);
        let (mode, size, allocated, nlink) = match nodeid {
            META => (S_IFDIR | 0o755, 0, 0, 2),
            SUPERBLOCK => file(0o444, SUPERBLOCK_LEN, SUPERBLOCK_LEN),
            LOG => file(self.log_mode, self.log_len, self.log_len),
            _ => match self
                .tree_node(nodeid)
                .and_then(|(tree, id)| Some((tree, tree.get(id)?)))
            {
                Some((tree, node)) => match &node.kind {
                    Kind::Dir(children) => (
                        S_IFDIR | node.mode,
                        0,
                        0,
                        nlink(tree, nodeid, children.values()),
                    ),
                    Kind::File { size, map } => file(node.mode, *size, map.allocated()),
                },
                None if nodeid == ROOT_ID => (S_IFDIR | 0o755, 0, 0, 3),
                None => return Err(Errno::NOENT),
            },
        };
        let owner = self.tree_node(nodeid).and_then(|(tree, id)| tree.get(id));
        let (uid, gid) = owner.map_or((0, 0), |node| (node.uid, node.gid));
        let (ino, time) = (nodeid, self.changed.time);
        let times = Attr {
            atime: time,
            mtime: time,
            ctime: time,
            ..Attr::default()
        };
        Ok(Attr {
            ino,
            size,
            blocks: allocated / 512,
            mode,
            nlink,
            uid,
            gid,
            blksize: BLKSIZE,
            ..times
        })
    }

    /// Changes attributes, in memory only. A size cannot be changed.
    pub fn set_attr(&mut self, nodeid: u64, request: &SetattrIn) -> Result<Attr, Errno> {
        let mut attr = self.attr(nodeid)?;
        if request.valid & fattr::SIZE != 0 {
            return Err(Errno::INVAL);
        }
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let now = (now.as_secs(), now.subsec_nanos());
        let wants = |bit| request.valid & bit != 0;
        if wants(fattr::MODE) {
            attr.mode = attr.mode & !0o7777 | request.mode & 0o7777;
        }
        if wants(fattr::UID) {
            attr.uid = request.uid;
        }
        if wants(fattr::GID) {
            attr.gid = request.gid;
        }
        if wants(fattr::ATIME) {
            let given = (request.atime, request.atimensec);
            (attr.atime, attr.atimensec) = if wants(fattr::ATIME_NOW) { now } else { given };
        }
        if wants(fattr::MTIME) {
            let given = (request.mtime, request.mtimensec);
            (attr.mtime, attr.mtimensec) = if wants(fattr::MTIME_NOW) { now } else { given };
        }
        (attr.ctime, attr.ctimensec) = if wants(fattr::CTIME) {
            (request.ctime, request.ctimensec)
        } else {
            now
        };
        self.changed.set(nodeid, attr).map_err(|error| {
            tracing::error!(%error, "changed attributes can not be kept");
            Errno::NOSPC
        })?;
        Ok(attr)
    }

    /// Size and map of a regular file; ENOENT for anything else, as upstream's server answers.
    pub fn map(&self, nodeid: u64) -> Result<(u64, Map), Errno> {
        let meta = |offset, len| {
            Ok((
                len,
                Map::Simple(vec![Extent {
                    devindex: 0,
                    offset,
                    len,
                }]),
            ))
        };
        match nodeid {
            SUPERBLOCK => meta(0, SUPERBLOCK_LEN),
            LOG => meta(LOG_OFFSET, self.log_len),
            _ => match self
                .tree_node(nodeid)
                .and_then(|(tree, id)| Some(&tree.get(id)?.kind))
            {
                Some(Kind::File { size, map }) => Ok((*size, map.clone())),
                _ => Err(Errno::NOENT),
            },
        }
    }

    /// Nodes in total, for statfs.
    pub fn len(&self) -> u64 {
        (self.entries.len() as u64).saturating_add(LOG)
    }

    /// Entries that the log has room for, beside those it has.
    pub fn free_entries(&self) -> u64 {
        let room = self.log_len.saturating_sub(HEADER_BYTES as u64) / ENTRY_BYTES as u64;
        room.saturating_sub(self.replay.as_ref().map_or(room, Replay::next_index))
    }

    /// Units of memory: all, and those that no file uses.
    pub fn units(&self) -> (u64, u64) {
        match &self.replay {
            Some(replay) => {
                let units = replay.space.units();
                (units, units.saturating_sub(replay.space.used()))
            }
            None => (SUPERBLOCK_LEN.saturating_add(self.log_len) / ALLOC_UNIT, 0),
        }
    }

    fn tree_node(&self, nodeid: u64) -> Option<(&Tree, NodeId)> {
        let tree = &self.replay.as_ref()?.tree;
        let id = if nodeid == ROOT_ID {
            Tree::ROOT
        } else {
            *self.entries.get(&nodeid)?
        };
        Some((tree, id))
    }
}

/// Node id of a node of the tree.
fn nodeid_of(node: &Node) -> Option<u64> {
    node.index
        .map_or(Some(ROOT_ID), |index| index.checked_add(FIRST_ENTRY))
}

/// Links of a directory: its own two and one from each directory in it.
fn nlink<'a>(tree: &Tree, nodeid: u64, children: impl Iterator<Item = &'a NodeId>) -> u32 {
    let is_dir = |id: &&NodeId| matches!(tree.get(**id).map(|node| &node.kind), Some(Kind::Dir(_)));
    let meta = usize::from(nodeid == ROOT_ID);
    u32::try_from(
        children
            .filter(is_dir)
            .count()
            .saturating_add(meta)
            .saturating_add(2),
    )
    .unwrap_or(u32::MAX)
}
