// SPDX-License-Identifier: MIT OR Apache-2.0
//! Replay of the log, through the files of `.meta`: at the mount, and whenever somebody has appended to it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use famfs_fuse::{map_file, DevFuse, Region};
use famfs_media::{Replay, Superblock, SUPERBLOCK_BYTES, SUPERBLOCK_LEN};
use rustix::fs::{makedev, statx, AtFlags, StatxFlags, CWD};
use rustix::mount::{open_tree, OpenTreeFlags};
use uuid::Uuid;

use super::kept::LogCopy;
use super::opener::{Meta, Opener};
use super::ops::Server;
use crate::exit::{fail, Exit};
use crate::log::{self, Store};
use crate::master;

/// Opens a file of `.meta` below `root` and maps its first `len` bytes. The file itself is closed again: while it
/// lives, the mapping alone pins the mount.
pub fn map_meta(
    opener: &mut Opener,
    root: BorrowedFd<'_>,
    file: Meta,
    len: u64,
    writable: bool,
) -> anyhow::Result<Region> {
    let file = opener.open(root, file, writable)?;
    Ok(map_file(&file, usize::try_from(len)?, writable)?)
}

/// The superblock, as it is in memory now. With `successor`, the host that is about to become the master, also one that
/// this host was about to change when it was interrupted.
pub fn read_superblock(
    opener: &mut Opener,
    root: BorrowedFd<'_>,
    successor: Option<Uuid>,
) -> anyhow::Result<Superblock> {
    let region = map_meta(opener, root, Meta::Superblock, SUPERBLOCK_LEN, false)?;
    let bytes = log::read_fresh(&region, 0, SUPERBLOCK_BYTES)?;
    match successor.and_then(|system| master::interrupted(&bytes, system)) {
        Some(superblock) => Ok(superblock),
        None => master::parse(&bytes),
    }
}

/// Makes the host with this uuid the master.
pub fn take_over(
    opener: &mut Opener,
    root: BorrowedFd<'_>,
    superblock: &mut Superblock,
    system: Uuid,
) -> anyhow::Result<()> {
    let region = map_meta(opener, root, Meta::Superblock, SUPERBLOCK_LEN, true)?;
    superblock.system_uuid = system;
    Ok(master::become_master(&region, superblock)?)
}

/// Replays the entries of the log `region` that are new since `replay` was advanced last, and copies them.
pub fn advance(
    replay: &mut Replay,
    superblock: &Superblock,
    region: &impl Store,
    copy: &LogCopy,
) -> anyhow::Result<()> {
    let (known, from) = (replay.findings.len(), replay.next_index());
    let header = log::header(region, superblock)?;
    // Of what was replayed, not of what memory has by now: the successor must see the same files.
    let replayed = log::catch_up(region, &header, replay)?;
    copy.follow(&header, from, &replayed)
        .context("copying the log for a successor")?;
    if replay.next_index() < header.next_index {
        let (end, announced) = (replay.next_index(), header.next_index);
        tracing::warn!("the log announces {announced} entries, those from {end} on are not whole");
    }
    for finding in replay.findings.iter().skip(known) {
        tracing::warn!("{finding}");
    }
    Ok(())
}

/// What replays the log of a mount. It keeps nothing of the mount open between two replays, so that umount(8) finds it
/// idle.
#[derive(Debug)]
pub struct Player {
    /// Whose namespace it fills.
    pub server: Arc<Server>,
    /// Of the file system, which does not change.
    pub superblock: Superblock,
    /// Where the file system is mounted.
    pub mountpoint: PathBuf,
    /// Device number of the file system, to know it by.
    pub device: u64,
    /// Tells the kernel what has changed.
    pub channel: DevFuse,
    /// What replaying takes, held by who replays.
    pub tools: Mutex<(Opener, LogCopy)>,
}

impl Player {
    /// Replays once, in a thread of its own: what came while nobody served.
    pub fn catch_up(self: Arc<Self>) -> io::Result<()> {
        let work = move || {
            if let Err(error) = self.replay(0) {
                tracing::error!("replaying what is new in the log: {error:#}");
            }
        };
        thread::Builder::new().name("catch-up".into()).spawn(work)?;
        Ok(())
    }

    /// Replays at this interval from now on, in a thread of its own.
    pub fn follow(self: Arc<Self>, interval: Duration) -> io::Result<()> {
        let work = move || loop {
            thread::sleep(interval);
            if let Err(error) = self.replay(0) {
                tracing::debug!("following the log: {error:#}");
            }
        };
        thread::Builder::new().name("follow".into()).spawn(work)?;
        Ok(())
    }

    /// Replays what is new in the log. Returns how many entries are known then; fails if that is less than `target`.
    pub fn replay(&self, target: u64) -> anyhow::Result<u64> {
        let known = self.try_replay(target);
        self.server.counters.replayed();
        known
    }

    fn try_replay(&self, target: u64) -> anyhow::Result<u64> {
        let mut tools = self.tools.lock().unwrap_or_else(PoisonError::into_inner);
        let (opener, copy) = &mut *tools;
        // Through a mount of its own: a file that is open through the user's would make umount(8) fail.
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let root = open_tree(CWD, &self.mountpoint, flags)?;
        // Without a mask, for which the kernel asks nothing of the server.
        let stat = statx(&root, "", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
        if makedev(stat.stx_dev_major, stat.stx_dev_minor) != self.device {
            let mountpoint = self.mountpoint.display();
            anyhow::bail!("{mountpoint} does not show this file system: it was moved, or another is mounted over it");
        }
        let region = map_meta(
            opener,
            root.as_fd(),
            Meta::Log,
            self.superblock.log_len,
            false,
        )?;
        // Touching the region asks nothing of the workers, which wait for the namespace meanwhile.
        let changed = self
            .server
            .namespace_mut()
            .advance(|replay| advance(replay, &self.superblock, &region, copy))?;
        for nodeid in changed {
            self.channel.invalidate_attributes(nodeid)?;
        }
        let namespace = self.server.namespace();
        let known = namespace.replay().map_or(0, Replay::next_index);
        if known < target {
            let text = format!("the log has {known} entries, {target} were announced");
            return Err(fail(Exit::Corrupt, text));
        }
        Ok(known)
    }
}
