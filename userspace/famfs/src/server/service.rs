// SPDX-License-Identifier: MIT OR Apache-2.0
//! The server as a service of systemd, or of a service manager that speaks its protocol (sd_notify(3)): it says when
//! it is ready, and leaves copies of its descriptors in the manager's store, from which the next process of the
//! service has them. Without NOTIFY_SOCKET in the environment all of this does nothing.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use rustix::process::{getpid, pidfd_getfd, pidfd_open, PidfdFlags, PidfdGetfdFlags};
use sd_notify::{listen_fds_with_names, notify, notify_with_fds, NotifyState};

use super::handover::Descriptors;

const LOG: &str = "famfs-log";
const ATTRIBUTES: &str = "famfs-attributes";
const CHANNEL: &str = "famfs-channel";

/// Gives copies of the descriptors to the service manager, which drops them when the service has stopped for good.
pub fn store(descriptors: &Descriptors) -> io::Result<()> {
    let fixed = [
        (LOG, &descriptors.log),
        (ATTRIBUTES, &descriptors.attributes),
    ];
    let channels = descriptors
        .channels
        .iter()
        .map(|channel| (CHANNEL, channel));
    for (name, fd) in fixed.into_iter().chain(channels) {
        notify_with_fds(
            &[NotifyState::FdStore, NotifyState::FdName(name)],
            &[fd.as_fd()],
        )?;
    }
    Ok(())
}

/// Has the service manager drop what it has stored.
pub fn discard() -> io::Result<()> {
    [LOG, ATTRIBUTES, CHANNEL]
        .into_iter()
        .try_for_each(|name| notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]))
}

/// Tells the service manager that the mount is there.
pub fn ready() -> io::Result<()> {
    notify(&[NotifyState::Ready])
}

/// Tells the service manager that process `pid` is the service from now on.
pub fn succeeded_by(pid: u32) -> io::Result<()> {
    notify(&[NotifyState::MainPid(pid)])
}

/// What an earlier process of this service has left in the store.
pub fn inherited() -> anyhow::Result<Option<Descriptors>> {
    let (mut log, mut attributes, mut channels) = (None, None, Vec::new());
    // The numbers are all that the manager tells. To own a descriptor by its number takes unsafe code; a copy does not.
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    let copy = |number| -> io::Result<OwnedFd> {
        Ok(pidfd_getfd(&this, number, PidfdGetfdFlags::empty())?)
    };
    for (number, name) in listen_fds_with_names().context("LISTEN_FDS")? {
        match name.as_str() {
            LOG => log = Some(copy(number)?),
            ATTRIBUTES => attributes = Some(copy(number)?),
            CHANNEL => channels.push(copy(number)?),
            _ => tracing::warn!("a descriptor named {name} was passed, which famfs has no use for"),
        }
    }
    Ok(log.zip(attributes).map(|(log, attributes)| Descriptors {
        log,
        attributes,
        channels,
    }))
}
