// SPDX-License-Identifier: MIT OR Apache-2.0
//! A server made from what another one has left.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use famfs_fuse::DevFuse;
use famfs_media::{Daxdev, Role, Superblock};

use super::control::Socket;
use super::handover::{Descriptors, Estate};
use super::kept::{Changed, LogCopy};
use super::logplay::{Player, Reader};
use super::members;
use super::namespace::Namespace;
use super::opener::Opener;
use super::ops::Server;
use super::session::Session;
use super::{Options, Summary};
use crate::device::DaxDevice;
use crate::exit::{fail, Exit};
use crate::mountinfo::mounts;

/// Where a connection's file system is mounted.
#[derive(Clone, Debug)]
pub struct Place {
    /// Mount point.
    point: PathBuf,
    /// What is mounted: the path of device 0.
    source: PathBuf,
    /// Device number of the file system.
    device: u64,
}

impl Place {
    /// Looked up in the mount table, which alone knows where a mount was moved to. None if there is no such mount.
    pub fn of(descriptors: &Descriptors) -> anyhow::Result<Option<Self>> {
        let [channel, ..] = &channels(descriptors)?[..] else {
            return Ok(None);
        };
        let Some(connection) = channel.connection()? else {
            return Ok(None);
        };
        let mount = mounts()?
            .into_iter()
            .find(|mount| mount.device == (0, connection) && mount.root == b"/");
        Ok(mount.map(|mount| Self {
            point: mount.point,
            source: mount.source,
            device: rustix::fs::makedev(0, connection),
        }))
    }
}

fn channels(descriptors: &Descriptors) -> io::Result<Vec<DevFuse>> {
    let copies = descriptors.channels.iter().map(OwnedFd::try_clone);
    copies.map(|fd| Ok(DevFuse::from(fd?))).collect()
}

/// A server that has all it needs to serve and has not begun.
pub struct Heir {
    place: Place,
    /// What there is to say of the mount.
    pub summary: Summary,
    server: Arc<Server>,
    superblock: Superblock,
    daxdevs: Vec<Daxdev>,
    copy: LogCopy,
    parents: BTreeSet<u64>,
}

impl Heir {
    /// The next server of the mount of `device` that the descriptors belong to.
    pub fn of(
        descriptors: &Descriptors,
        device: &DaxDevice,
        options: &Options,
    ) -> anyhow::Result<Self> {
        let place = Place::of(descriptors)?.context("the mount is gone")?;
        if place.source != device.path {
            let (found, wanted) = (place.source.display(), device.path.display());
            let text =
                format!("what is to be taken over is the mount of {found}, not that of {wanted}");
            return Err(fail(Exit::Usage, text));
        }
        let (changed, paths) = Changed::adopt(descriptors.attributes.try_clone()?)?;
        let (copy, superblock, replay) = LogCopy::adopt(descriptors.log.try_clone()?, device.size)?;
        let summary = Summary::of(&superblock, &replay, options);
        let daxdevs = replay.daxdevs.clone();
        let mut namespace = Namespace::meta_only(superblock.log_len);
        namespace.set_superblock(&superblock);
        let parents = namespace.set_replay(replay);
        namespace.set_changed(changed);
        let server = Server::new(device.path.clone(), options.failure, namespace);
        server.set_devices(paths);
        Ok(Self {
            place,
            summary,
            server: Arc::new(server),
            superblock,
            daxdevs,
            copy,
            parents,
        })
    }

    /// Starts to serve. Nobody else may by now.
    pub fn start(
        self,
        descriptors: Descriptors,
        options: &Options,
    ) -> anyhow::Result<(Session, Socket, Arc<Player>)> {
        let channels = channels(&descriptors)?;
        // Now that nobody answers: looking at a device keeps the mount from taking it meanwhile.
        let lost = members::lost(&self.superblock, &self.daxdevs, self.server.devices());
        self.server.set_lost(lost);
        let notifier = channels.first().context("no channel")?.new_channel();
        let player = Arc::new(Player {
            server: self.server,
            superblock: self.superblock,
            mountpoint: self.place.point,
            device: self.place.device,
            channel: notifier.context("cloning /dev/fuse")?,
            tools: Mutex::new((Opener::default(), Reader::new(self.copy))),
        });
        let socket = Socket::open(Arc::clone(&player), Estate::new(descriptors, options))
            .context("opening the control socket")?;
        // The other server may have ended before it could tell the kernel of new ones.
        for nodeid in self.parents {
            player.channel.invalidate_attributes(nodeid)?;
        }
        Arc::clone(&player).catch_up()?;
        if let (Role::Client, Some(interval)) = (self.summary.role, options.follow) {
            Arc::clone(&player).follow(interval)?;
        }
        // Last: what waits for the workers waits, and an error ends this process.
        let session = Session::resume(channels, &player.server)?;
        Ok((session, socket, player))
    }
}
