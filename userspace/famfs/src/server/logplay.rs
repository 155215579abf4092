// SPDX-License-Identifier: MIT OR Apache-2.0
//! Replay of the log, through the files of `.meta`: at the mount, and whenever somebody has appended to it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use famfs_fuse::{map_file, DevFuse, Region};
use famfs_media::{
    Finding, LogError, LogHeader, Replay, Superblock, SUPERBLOCK_BYTES, SUPERBLOCK_LEN,
};
use rustix::fs::{makedev, statx, AtFlags, StatxFlags, CWD};
use rustix::mount::{open_tree, OpenTreeFlags};
use uuid::Uuid;

use super::kept::LogCopy;
use super::opener::{Meta, Opener};
use super::ops::Server;
use crate::exit::{fail, Exit};
use crate::log::{self, Broken, Store};
use crate::master;

/// Entries left out that are named in the server's messages after a look.
const SAID: usize = 20;
/// How many times longer than a look the pause behind it is at least.
const PAUSE: u32 = 4;

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
/// this host was about to change when it was interrupted: that is finished at once, for nobody can read it before, and
/// the log was looked at before it began.
pub fn read_superblock(
    opener: &mut Opener,
    root: BorrowedFd<'_>,
    successor: Option<Uuid>,
) -> anyhow::Result<Superblock> {
    let region = map_meta(opener, root, Meta::Superblock, SUPERBLOCK_LEN, false)?;
    let bytes = log::read_fresh(&region, 0, SUPERBLOCK_BYTES)?;
    let Some(superblock) = successor.and_then(|system| master::interrupted(&bytes, system)) else {
        return master::parse(&bytes);
    };
    let region = map_meta(opener, root, Meta::Superblock, SUPERBLOCK_LEN, true)?;
    master::become_master(&region, &superblock)?;
    Ok(superblock)
}

/// Makes the host of `superblock` the master of the log, of which `known` whole entries were read.
pub fn take_over(
    opener: &mut Opener,
    root: BorrowedFd<'_>,
    superblock: &Superblock,
    known: u64,
) -> anyhow::Result<()> {
    let log = map_meta(opener, root, Meta::Log, superblock.log_len, false)?;
    let region = map_meta(opener, root, Meta::Superblock, SUPERBLOCK_LEN, true)?;
    master::take_over(&region, superblock, &log, known)
}

/// What reads a log that other hosts may write to. Only what it has checked and copied is shown.
#[derive(Debug)]
pub struct Reader {
    /// The entries so far.
    pub copy: LogCopy,
    /// The entry at which the last look ended, and the header then. While neither changes, nothing behind is looked at.
    stuck: Option<(LogHeader, Broken)>,
}

impl Reader {
    /// Goes on from what was copied.
    pub fn new(copy: LogCopy) -> Self {
        Self { copy, stuck: None }
    }

    /// Copies the entries of the log `region` that are new, as far as they are whole: all of them or none.
    ///
    /// # Errors
    /// Among others: an entry is broken and one behind it is not.
    pub fn look(&mut self, superblock: &Superblock, region: &impl Store) -> anyhow::Result<()> {
        let header = log::header(region, superblock)?;
        if let Some((then, broken)) = &self.stuck {
            let after = broken.index.saturating_add(1);
            if *then == header && log::entries(region, broken.index, after)? == broken.bytes {
                return Ok(broken.check_end()?);
            }
        }
        self.stuck = None;
        let from = self.copy.next_index();
        let take = |index, entries: &[u8]| self.copy.put(index, entries);
        let scan = log::scan(region, &header, from, take)?;
        let end = scan.broken.as_ref().map_or(Ok(()), Broken::check_end);
        if end.is_ok() && scan.next_index > from {
            self.copy.announce(scan.next_index)?;
        }
        if let Some(broken) = scan.broken {
            let (announced, index) = (header.next_index, broken.index);
            match &end {
                Ok(()) => tracing::warn!(
                    "the log announces {announced} entries, those from {index} on are not whole"
                ),
                Err(error) => {
                    tracing::warn!("{error}, with whole ones behind it: no new entry is used")
                }
            }
            self.stuck = Some((header, broken));
        }
        Ok(end?)
    }
}

/// Whether the log has fewer entries than were read.
fn set_back(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(LogError::Shrunk { .. }))
}

/// Says what is wrong with `count` entries that were left out, of which `findings` has the first: no more than a few,
/// for another host can write any number.
pub fn warn(findings: &[Finding], count: usize) {
    for finding in findings.iter().take(SAID) {
        tracing::warn!("{finding}");
    }
    if let Some(more) = count.checked_sub(SAID).filter(|&more| more > 0) {
        tracing::warn!("and {more} more: `famfs fsck` lists them");
    }
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
    pub tools: Mutex<(Opener, Reader)>,
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

    /// Replays at this interval from now on, in a thread of its own; less often where that takes long, as another host
    /// can bring about.
    pub fn follow(self: Arc<Self>, interval: Duration) -> io::Result<()> {
        let work = move || {
            let (mut pause, mut said) = (interval, false);
            loop {
                thread::sleep(pause);
                let start = Instant::now();
                let result = self.replay(0);
                let set_back = result.as_ref().is_err_and(set_back);
                match result {
                    Err(error) if set_back && !said => {
                        tracing::warn!("following the log: {error:#}");
                    }
                    Err(error) => tracing::debug!("following the log: {error:#}"),
                    Ok(_) => (),
                }
                said = set_back;
                pause = interval.max(start.elapsed().saturating_mul(PAUSE));
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
        let (opener, reader) = &mut *tools;
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
        self.take_in(reader, &region, target)
    }

    /// Replays what is new in the log `region`.
    pub(super) fn take_in(
        &self,
        reader: &mut Reader,
        region: &impl Store,
        target: u64,
    ) -> anyhow::Result<u64> {
        reader
            .look(&self.superblock, region)
            .map_err(|error| match set_back(&error) {
                true => error.context("it was changed under this mount; umount and mount again"),
                false => error,
            })?;
        let known = self.enter(&reader.copy)?;
        if known < target {
            let text = format!("the log has {known} entries, {target} were announced");
            return Err(fail(Exit::Corrupt, text));
        }
        Ok(known)
    }

    /// Shows what the copy has, in one step: all entries of an append are there or none. They come from this host's
    /// memory, so that nobody who looks something up waits for long. Returns how many entries are known then.
    fn enter(&self, copy: &LogCopy) -> anyhow::Result<u64> {
        let position = |replay: &Replay| (replay.next_index(), replay.findings.len());
        let known = self.server.namespace().replay().map(position);
        let (from, findings) = known.unwrap_or_default();
        if from >= copy.next_index() {
            return Ok(from);
        }
        let (upto, entries) = copy.piece(from, copy.next_index())?;
        let changed = self.server.namespace_mut().advance(&upto, &entries)?;
        for nodeid in changed {
            self.channel.invalidate_attributes(nodeid)?;
        }
        let namespace = self.server.namespace();
        let replay = namespace.replay().context("there is no log")?;
        let new = replay.findings.get(findings..).unwrap_or_default();
        let (said, count): (Vec<_>, _) = (new.iter().take(SAID).cloned().collect(), new.len());
        let known = replay.next_index();
        // Who waits to change something waits for whoever looks.
        drop(namespace);
        warn(&said, count);
        Ok(known)
    }
}
