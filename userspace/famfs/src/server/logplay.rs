// SPDX-License-Identifier: MIT OR Apache-2.0
//! Replay of the log, through the files of `.meta`: at the mount, and whenever somebody has appended to it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};
use std::sync::Arc;
use std::thread;

use famfs_fuse::reply::Payload;
use famfs_fuse::{map_file, DevFuse, Errno, Region, Reply};
use famfs_media::{Replay, Superblock, SUPERBLOCK_BYTES, SUPERBLOCK_LEN};
use rustix::fs::{fstat, openat, Mode, OFlags, CWD};

use super::ops::Server;
use crate::exit::{code, fail, Exit};
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

/// A request to replay the log.
#[derive(Debug)]
pub struct Logplay {
    /// Number of entries that the log must have.
    pub target: u64,
    /// The SETXATTR request to answer.
    pub unique: u64,
    /// Where it came from, and the answer goes.
    pub channel: Arc<DevFuse>,
}

/// What the replaying thread works on.
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
}

impl Player {
    /// Starts the thread. It is one of its own because it reads the log through the mount, which the workers must be
    /// free to serve. It keeps nothing of the mount open between two replays, so that umount(8) finds it idle.
    pub fn start(self) -> io::Result<()> {
        let (sender, receiver) = mpsc::channel();
        let server = Arc::clone(&self.server);
        thread::Builder::new()
            .name("logplay".into())
            .spawn(move || self.work(&receiver))?;
        // A server has one player, so the cell is empty.
        let _ = server.logplay.set(sender);
        Ok(())
    }

    fn work(&self, jobs: &Receiver<Logplay>) {
        for job in jobs {
            let result = self.replay(job.target).map_err(|error| {
                tracing::error!("logplay: {error:#}");
                if code(&error) == Exit::Corrupt {
                    Errno::UCLEAN
                } else {
                    Errno::IO
                }
            });
            let reply = Reply::new(job.unique, result.map(|()| Payload::empty()));
            if let Err(error) = job.channel.send(&reply) {
                tracing::error!(%error, "the kernel refused the reply to logplay");
            }
        }
    }

    /// Replays until `target` entries are known.
    fn replay(&self, target: u64) -> anyhow::Result<()> {
        let known = || {
            self.server
                .namespace()
                .replay()
                .map_or(0, Replay::next_index)
        };
        if known() >= target {
            return Ok(());
        }
        let mountpoint = self.mountpoint.display();
        let root = openat(
            CWD,
            &self.mountpoint,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        if fstat(&root)?.st_dev != self.device {
            anyhow::bail!("{mountpoint} does not show this file system: it was moved, or another is mounted over it");
        }
        let region = map_meta(root.as_fd(), ".log", self.superblock.log_len, false)?;
        // Touching the region asks nothing of the workers, which wait for the namespace meanwhile.
        self.server
            .namespace_mut()
            .advance(|replay| advance(replay, &self.superblock, &region))?;
        if known() < target {
            return Err(fail(
                Exit::Corrupt,
                format!("the log has {} entries, {target} were announced", known()),
            ));
        }
        Ok(())
    }
}
