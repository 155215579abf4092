// SPDX-License-Identifier: MIT OR Apache-2.0
//! The superblock and the log of a device that nobody has mounted.
//!
//! A device in fsdev mode cannot be mapped directly. So a file system of `.meta` alone is made on it, for as long as
//! the access lasts, and mounted nowhere.

use std::sync::Arc;

use famfs_fuse::Region;
use famfs_media::SUPERBLOCK_LEN;

use super::logplay::map_meta;
use super::namespace::Namespace;
use super::opener::{Meta, Opener};
use super::ops::Server;
use super::session::Session;
use crate::device::DaxDevice;
use crate::kernel;

/// Superblock and log, mapped shared and writable. The device is held exclusively until this is dropped.
pub struct MetaAccess {
    // Dropped in this order: a mapping pins the mount.
    superblock: Region,
    log: Region,
    _session: Session,
}

impl MetaAccess {
    /// Reaches the 2 MiB of the superblock, and `log_len` bytes where the log is. Looks at neither.
    pub fn open(device: &DaxDevice, log_len: u64) -> anyhow::Result<Self> {
        kernel::check()?;
        device.require_fsdev()?;
        super::require_room(device, log_len)?;
        let server = Arc::new(Server::new(
            device.path.clone(),
            None,
            Namespace::meta_only(log_len),
        ));
        let session = Session::start(&server, true)?;
        let root = session.root()?;
        let mut opener = Opener::default();
        let mut map = |file, len| {
            map_meta(&mut opener, root, file, len, true)
                .map_err(|error| super::access_error(device, error))
        };
        let superblock = map(Meta::Superblock, SUPERBLOCK_LEN)?;
        let log = map(Meta::Log, log_len)?;
        Ok(Self {
            superblock,
            log,
            _session: session,
        })
    }

    /// The 2 MiB at the start of the device.
    pub fn superblock(&self) -> &Region {
        &self.superblock
    }

    /// The log.
    pub fn log(&self) -> &Region {
        &self.log
    }
}
