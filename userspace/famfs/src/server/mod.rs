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

pub mod control;
mod fmap_reply;
mod logplay;
mod members;
pub mod meta;
mod namespace;
mod ops;
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

use crate::device::DaxDevice;
use crate::exit::{fail, Exit};
use crate::system;
use control::Socket;
use logplay::Player;
use namespace::Namespace;
use ops::Server;
use session::Session;

/// How to mount.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// How often a client looks for new log entries; `None` for never.
    pub follow: Option<Duration>,
    /// Lets programs on a client write to files.
    pub rw: bool,
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
    let mut session = Session::start(&server)?;
    let (superblock, summary) = load(&server, session.root()?, devices, options)?;
    let device = rustix::fs::fstat(session.root()?)?.st_dev;
    if !summary.writable {
        session
            .set_read_only()
            .context("making the mount read-only")?;
    }
    let player = Arc::new(Player {
        server,
        superblock,
        mountpoint: mountpoint.into(),
        device,
        channel: session.channel()?,
        turn: Mutex::new(()),
    });
    let _socket = Socket::open(Arc::clone(&player)).context("opening the control socket")?;
    session
        .attach(mountpoint)
        .with_context(|| format!("mounting on {}", mountpoint.display()))?;
    if let (Role::Client, Some(interval)) = (summary.role, options.follow) {
        player.follow(interval)?;
    }
    if let Err(error) = ready(&summary) {
        // The mount is there all the same, and who waited for it is not.
        tracing::warn!("nobody was told that the mount is ready: {error:#}");
    }
    session.wait();
    tracing::info!("{} is unmounted", mountpoint.display());
    Ok(())
}

/// Reads superblock and log through the mount, and fills the namespace.
fn load(
    server: &Server,
    root: BorrowedFd<'_>,
    devices: &[DaxDevice],
    options: &Options,
) -> anyhow::Result<(Superblock, Summary)> {
    let device = devices.first().context("no device was given")?;
    let name = device.path.display();
    let mut superblock =
        logplay::read_superblock(root).map_err(|error| access_error(device, error))?;
    if superblock.is_secondary() {
        let text =
            format!("{name} holds no log: mount the device that does, it finds this one by itself");
        return Err(fail(Exit::Usage, text));
    }
    require_room(device, superblock.log_len)?;
    if options.take_over {
        logplay::take_over(root, &mut superblock, system::uuid_or_new()?)
            .context("becoming the master")?;
    }
    let role = superblock.role(system::uuid());
    let log_mode = if role == Role::Master { 0o644 } else { 0o444 };
    server.namespace_mut().set_log(superblock.log_len, log_mode);
    let region = logplay::map_meta(root, ".log", superblock.log_len, false);
    let mut replay = Replay::new(&superblock, device.size);
    region
        .map_err(anyhow::Error::from)
        .and_then(|region| logplay::advance(&mut replay, &superblock, &region))
        .map_err(|error| access_error(device, error))?;
    server.set_devices(&members::find(&superblock, &replay, devices)?);
    let (totals, left_out) = (replay.totals, replay.findings.len());
    server.namespace_mut().set_replay(replay);
    Ok((
        superblock,
        Summary {
            role,
            writable: role == Role::Master || options.rw,
            files: totals.files,
            dirs: totals.dirs,
            left_out,
        },
    ))
}

/// What it means that superblock or log of `device` cannot be reached or used.
fn access_error(device: &DaxDevice, error: anyhow::Error) -> anyhow::Error {
    let name = device.path.display();
    let errno = error.downcast_ref().and_then(Errno::from_io_error);
    if errno == Some(Errno::BUSY) {
        return fail(
            Exit::Device,
            format!("{name} is in use by another mount or file system; `findmnt -S {name}`"),
        );
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
