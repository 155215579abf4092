// SPDX-License-Identifier: MIT OR Apache-2.0
//! The change from one server to the next under a mount that stays.
//!
//! ```text
//! famfs server handover -- "handover PROGRAM" --> server (`control`)
//!                                                   | starts PROGRAM serve --successor, its standard input a socket
//!                                                   | descriptors ------------------------> successor
//!                                                   |     replays the predecessor's copy of the log
//!                                                   | <----------------------------- "ready", or what is wrong
//!                                                   | exits                         end of the socket
//!                                                           RESEND: what nobody has answered comes again
//! ```
//! Until it exits the predecessor serves; after that nothing is left that could answer twice. A crash is the same
//! with the service manager in the predecessor's place (`service`).

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::fds;
use super::Options;
use crate::daemon;
use anyhow::Context;

/// What makes a process the server of a mount.
#[derive(Debug)]
pub struct Descriptors {
    /// Of [`super::kept::LogCopy`].
    pub log: OwnedFd,
    /// Of [`super::kept::Changed`].
    pub attributes: OwnedFd,
    /// All /dev/fuse of the connection: a request can be queued again only while the one that it was read from is
    /// open.
    pub channels: Vec<OwnedFd>,
}

impl Descriptors {
    /// Sends all of them.
    fn send(&self, socket: &UnixStream) -> io::Result<()> {
        let fixed = [&self.log, &self.attributes].into_iter();
        let fds: Vec<_> = fixed.chain(&self.channels).map(AsFd::as_fd).collect();
        fds::send(socket, 0, &fds)
    }

    /// Receives what [`Self::send`] has sent.
    pub fn receive(socket: &UnixStream) -> anyhow::Result<Self> {
        let (_, fds) = fds::receive(socket)?.context("no descriptors came")?;
        let mut fds = fds.into_iter();
        let (log, attributes) = fds.next().zip(fds.next()).context("no descriptors came")?;
        Ok(Self {
            log,
            attributes,
            channels: fds.collect(),
        })
    }
}

/// What a server has for its successor.
#[derive(Debug)]
pub struct Estate {
    descriptors: Descriptors,
    options: Options,
}

impl Estate {
    /// Of a server that was started with `options`.
    pub fn new(descriptors: Descriptors, options: &Options) -> Self {
        let options = Options {
            // Has been done.
            take_over: false,
            ..*options
        };
        Self {
            descriptors,
            options,
        }
    }
}

/// A server that is about to leave, as its successor sees it.
#[derive(Debug)]
pub struct Predecessor(UnixStream);

impl Predecessor {
    /// The one that has started this process, at the other end of the standard input, and what it hands over.
    pub fn from_stdin() -> anyhow::Result<(Self, Descriptors)> {
        let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let descriptors =
            Descriptors::receive(&socket).context("standard input is not a server's socket")?;
        Ok((Self(socket), descriptors))
    }

    /// Waits until its last thread is gone, and so can read or answer no request any more.
    pub fn wait(mut self) -> io::Result<()> {
        self.0.read_to_end(&mut Vec::new())?;
        Ok(())
    }
}

/// A server that is ready, and takes over when this process ends.
#[derive(Debug)]
pub struct Successor {
    /// Its process id.
    pub pid: u32,
    /// What it has to say.
    pub text: String,
    /// Its end tells the successor that this process is gone.
    _socket: UnixStream,
}

impl Successor {
    /// Starts `program` for the mount of `device` at `mountpoint`. On an error nothing has changed.
    pub fn start(
        program: &str,
        device: &Path,
        mountpoint: &Path,
        estate: &Estate,
    ) -> anyhow::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        let mut successor = Command::new(program)
            .arg0("famfs")
            .args(["serve", "--successor"])
            .args(daemon::arguments(
                &[device.into()],
                mountpoint,
                &estate.options,
            ))
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        let ready = estate
            .descriptors
            .send(&socket)
            .map_err(anyhow::Error::from)
            .and_then(|()| daemon::await_ready(&mut successor));
        match ready {
            Ok(text) => Ok(Self {
                pid: successor.id(),
                text,
                _socket: socket,
            }),
            Err(error) => {
                // It must not take the end of the socket for the end of this process.
                let _ = successor.kill();
                let _ = successor.wait();
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn descriptors_arrive_in_order() {
        let file = || OwnedFd::from(tempfile::tempfile().unwrap());
        let inode = |fd: &OwnedFd| {
            File::from(fd.try_clone().unwrap())
                .metadata()
                .unwrap()
                .ino()
        };
        let sent = Descriptors {
            log: file(),
            attributes: file(),
            channels: vec![file(), file(), file()],
        };
        let (ours, theirs) = UnixStream::pair().unwrap();
        sent.send(&ours).unwrap();
        let got = Descriptors::receive(&theirs).unwrap();
        let inodes = |d: &Descriptors| {
            let channels = d.channels.iter().map(inode);
            [inode(&d.log), inode(&d.attributes)]
                .into_iter()
                .chain(channels)
                .collect::<Vec<_>>()
        };
        assert_eq!(inodes(&got), inodes(&sent));
        drop(ours);
        assert!(Descriptors::receive(&theirs).is_err());
        Predecessor(theirs).wait().unwrap();
    }
}
