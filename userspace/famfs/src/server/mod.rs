// SPDX-License-Identifier: MIT OR Apache-2.0
//! The FUSE server: it gives the kernel names, attributes and fmaps, and never any data.
//!
//! ```text
//! session   /dev/fuse, superblock, worker threads      logplay   superblock and log, read through the mount
//!    |                                                     |
//!   ops     one answer per opcode  ----------------->  namespace   what the log has made, by node id
//!    |                                                     ^
//! control   a socket; stats: requests counted          fmap_reply   a file's map as the kernel wants it
//! ```
//!
//! A server can leave its place to another one: `handover` and `service` pass on the descriptors, `kept` is what a
//! server writes down for that case, `heir` makes a server of it.

pub mod control;
mod fds;
mod fmap_reply;
pub mod handover;
mod heir;
mod kept;
mod logplay;
mod members;
pub mod meta;
mod namespace;
pub mod opener;
mod ops;
#[cfg(test)]
mod player_tests;
#[cfg(test)]
mod scale_tests;
pub mod service;
mod session;
mod stats;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wire_tests;

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use famfs_fmap::Policy;
use famfs_fuse::Errno;
use famfs_media::{Replay, Role, Superblock, LOG_LEN_MIN, SUPERBLOCK_LEN};
use rustix::fs::{makedev, statx, AtFlags, StatxFlags};

use crate::device::{DaxDevice, DeviceError};
use crate::exit::{fail, Exit};
use crate::system;
use control::Socket;
use handover::{Descriptors, Estate, Predecessor};
use heir::{Heir, Place};
use kept::LogCopy;
use logplay::{Player, Reader};
use namespace::Namespace;
use opener::{Meta, Opener};
use ops::Server;
use session::Session;

/// How to mount.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// How often a client looks for new log entries; `None` for never.
    pub follow: Option<Duration>,
    /// Lets programs on a client write to files.
    pub rw: bool,
    /// Lets nobody write.
    pub ro: bool,
    /// Lets nobody execute programs.
    pub noexec: bool,
    /// Makes this host the master.
    pub take_over: bool,
    /// What a memory error takes away; `None` leaves it to the kernel module.
    pub failure: Option<Policy>,
}

/// What there is to say of a mount when it is ready.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Summary {
    pub role: Role,
    pub writable: bool,
    pub files: u64,
    pub dirs: u64,
    /// Log entries that were left out.
    pub left_out: usize,
}

impl Summary {
    fn of(superblock: &Superblock, replay: &Replay, options: &Options) -> Self {
        let role = superblock.role(system::uuid());
        Self {
            role,
            writable: !options.ro && (role == Role::Master || options.rw),
            files: replay.totals.files,
            dirs: replay.totals.dirs,
            left_out: replay.findings.len(),
        }
    }
}

/// Mounts the file system on `devices` at `mountpoint`, calls `ready`, and serves until it is unmounted. On an error
/// nothing is left behind.
pub fn run(
    devices: &[DaxDevice],
    mountpoint: &Path,
    options: &Options,
    ready: impl FnOnce(&Summary) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let first = devices.first().context("no device was given")?;
    let namespace = Namespace::meta_only(LOG_LEN_MIN);
    let server = Arc::new(Server::new(first.path.clone(), options.failure, namespace));
    let mut session = Session::start(&server, options.noexec)?;
    let mut opener = Opener::default();
    let loaded = load(&server, &mut opener, session.root()?, devices, options);
    let (superblock, reader, summary) = loaded?;
    let stat = statx(
        session.root()?,
        "",
        AtFlags::EMPTY_PATH,
        StatxFlags::empty(),
    )?;
    let attributes = server.namespace_mut().keep(server.devices())?;
    if !summary.writable {
        session
            .set_read_only()
            .context("making the mount read-only")?;
    }
    let descriptors = Descriptors {
        log: reader.copy.descriptor()?,
        attributes,
        channels: session.channels()?,
    };
    let player = Arc::new(Player {
        server,
        superblock,
        mountpoint: mountpoint.into(),
        device: makedev(stat.stx_dev_major, stat.stx_dev_minor),
        channel: session.notifier()?,
        tools: Mutex::new((opener, reader)),
    });
    service::store(&descriptors).context("leaving descriptors with the service manager")?;
    let _socket = Socket::open(Arc::clone(&player), Estate::new(descriptors, options))
        .context("opening the control socket")?;
    session
        .attach(mountpoint)
        .with_context(|| format!("mounting on {}", mountpoint.display()))?;
    if options.take_over {
        // The old master may have appended after the log was read.
        Arc::clone(&player).catch_up()?;
    }
    if let (Role::Client, Some(interval)) = (summary.role, options.follow) {
        Arc::clone(&player).follow(interval)?;
    }
    if let Err(error) = ready(&summary) {
        // The mount is there all the same, and who waited for it is not.
        tracing::warn!("nobody was told that the mount is ready: {error:#}");
    }
    serve(session, &player);
    Ok(())
}

/// Takes over from the server that has started this process: calls `ready`, which lets that one leave, and serves
/// until the file system is unmounted. On an error the other goes on.
pub fn succeed(
    device: &DaxDevice,
    options: &Options,
    ready: impl FnOnce(&Summary) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (predecessor, descriptors) = Predecessor::from_stdin()?;
    ready(&Heir::of(&descriptors, device, options)?.summary)?;
    predecessor.wait()?;
    // Again: what it has left in the end is what counts.
    let heir = Heir::of(&descriptors, device, options)?;
    let (session, _socket, player) = heir.start(descriptors, options)?;
    serve(session, &player);
    Ok(())
}

/// What an earlier process of this service has left, if its mount is still there.
pub fn inherited() -> anyhow::Result<Option<Descriptors>> {
    let Some(descriptors) = service::inherited()? else {
        return Ok(None);
    };
    if Place::of(&descriptors)?.is_none() {
        tracing::info!("the mount of the process before this one is gone");
        service::discard()?;
        return Ok(None);
    }
    Ok(Some(descriptors))
}

/// Goes on where an earlier process of this service was interrupted, calls `ready`, and serves until the file system
/// is unmounted.
pub fn resume(
    device: &DaxDevice,
    options: &Options,
    descriptors: Descriptors,
    ready: impl FnOnce(&Summary) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let heir = Heir::of(&descriptors, device, options)?;
    let summary = heir.summary;
    let (session, _socket, player) = heir.start(descriptors, options)?;
    ready(&summary)?;
    serve(session, &player);
    Ok(())
}

fn serve(session: Session, player: &Player) {
    session.wait();
    tracing::info!("{} is unmounted", player.mountpoint.display());
}

/// Reads superblock and log through the mount, and fills the namespace.
fn load(
    server: &Server,
    opener: &mut Opener,
    root: BorrowedFd<'_>,
    devices: &[DaxDevice],
    options: &Options,
) -> anyhow::Result<(Superblock, Reader, Summary)> {
    let device = devices.first().context("no device was given")?;
    let name = device.path.display();
    let successor = options.take_over.then(system::uuid_or_new).transpose()?;
    let mut superblock = logplay::read_superblock(opener, root, successor)
        .map_err(|error| access_error(device, error))?;
    if superblock.is_secondary() {
        let text =
            format!("{name} holds no log: mount the device that does, it finds this one by itself");
        return Err(fail(Exit::Usage, text));
    }
    require_room(device, superblock.log_len)?;
    if let Some(system) = successor {
        superblock.system_uuid = system;
    }
    server.namespace_mut().set_superblock(&superblock);
    let mut reader = Reader::new(LogCopy::new(&superblock)?);
    let replay = logplay::map_meta(opener, root, Meta::Log, superblock.log_len, false)
        .and_then(|region| reader.look(&superblock, &region))
        .and_then(|()| reader.copy.replay(&superblock, device.size))
        .map_err(|error| access_error(device, error))?;
    logplay::warn(&replay.findings, replay.findings.len());
    let devices = members::find(&superblock, &replay, devices)?;
    if successor.is_some() {
        // Last: what it changes stays, whatever happens to this mount.
        logplay::take_over(opener, root, &superblock, replay.next_index())
            .context("becoming the master")?;
    }
    server.set_devices(devices.into_iter().map(|device| device.path).collect());
    let summary = Summary::of(&superblock, &replay, options);
    server.namespace_mut().set_replay(replay);
    Ok((superblock, reader, summary))
}

/// What it means that superblock or log of `device` cannot be reached or used.
fn access_error(device: &DaxDevice, error: anyhow::Error) -> anyhow::Error {
    let name = device.path.display();
    let errno = error.downcast_ref().and_then(Errno::from_io_error);
    if errno == Some(Errno::BUSY) {
        return DeviceError::Busy(device.path.clone()).into();
    }
    error.context(format!("superblock and log of {name}"))
}

/// Whether superblock and log fit on a device.
fn require_room(device: &DaxDevice, log_len: u64) -> anyhow::Result<()> {
    let needed = SUPERBLOCK_LEN.saturating_add(log_len);
    if device.size < needed {
        let (name, size) = (device.path.display(), device.size);
        let text = format!("{name} has {size} bytes, superblock and log alone take {needed}");
        return Err(fail(Exit::Device, text));
    }
    Ok(())
}
