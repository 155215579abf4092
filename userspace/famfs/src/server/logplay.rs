// SPDX-License-Identifier: MIT OR Apache-2.0
//! Replay of the log, through the files of `.meta`: at the mount, and whenever somebody has appended to it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use famfs_fuse::{map_file, DevFuse, Region};
use famfs_media::{Replay, Superblock, SUPERBLOCK_BYTES, SUPERBLOCK_LEN};
use rustix::fs::{fstat, openat, Mode, OFlags, CWD};
use rustix::mount::{open_tree, OpenTreeFlags};
use uuid::Uuid;

use super::ops::Server;
use crate::exit::{fail, Exit};
use crate::log;

/// Opens a file of `.meta` below `root` and maps its first `len` bytes. The file itself is closed again: while it
/// lives, the mapping alone pins the mount.
pub fn map_meta(root: BorrowedFd<'_>, name: &str, len: u64, writable: bool) -> io::Result<Region> {
    let access = if writable {
        OFlags::RDWR
    } else {
        OFlags::RDONLY
    };
    let file = openat(
        root,
        format!(".meta/{name}"),
        access | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    map_file(&File::from(file), len, writable)
}

/// The superblock, as it is in memory now.
pub fn read_superblock(root: BorrowedFd<'_>) -> anyhow::Result<Superblock> {
    let region = map_meta(root, ".superblock", SUPERBLOCK_LEN, false)?;
    Ok(Superblock::parse(&log::read_fresh(
        &region,
        0,
        SUPERBLOCK_BYTES,
    )?)?)
}

/// Makes the host with this uuid the master. Nobody else may append meanwhile.
pub fn take_over(
    root: BorrowedFd<'_>,
    superblock: &mut Superblock,
    system: Uuid,
) -> io::Result<()> {
    superblock.system_uuid = system;
    let region = map_meta(root, ".superblock", SUPERBLOCK_LEN, true)?;
    // The uuid and behind it the CRC: one cache line, so that readers on other hosts see both change at once.
    let at = 80;
    let bytes = superblock.encode();
    region.write(at, bytes.get(at..104).unwrap_or_default())?;
    region.flush(at, 24)
}

/// Replays the entries of the log `region` that are new since `replay` was advanced last.
pub fn advance(
    replay: &mut Replay,
    superblock: &Superblock,
    region: &Region,
) -> anyhow::Result<()> {
    let known = replay.findings.len();
    let header = log::header(region, superblock)?;
    log::catch_up(region, &header, replay)?;
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
    /// Held by who replays.
    pub turn: Mutex<()>,
}

impl Player {
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
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // Through a mount of its own: a file that is open through the user's would make umount(8) fail.
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let root = open_tree(CWD, &self.mountpoint, flags)?;
        if fstat(&root)?.st_dev != self.device {
            let mountpoint = self.mountpoint.display();
            anyhow::bail!("{mountpoint} does not show this file system: it was moved, or another is mounted over it");
        }
        let region = map_meta(root.as_fd(), ".log", self.superblock.log_len, false)?;
        // Touching the region asks nothing of the workers, which wait for the namespace meanwhile.
        let changed = self
            .server
            .namespace_mut()
            .advance(|replay| advance(replay, &self.superblock, &region))?;
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
