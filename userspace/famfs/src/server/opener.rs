// SPDX-License-Identifier: MIT OR Apache-2.0
//! Opens the files of `.meta` for the server, in a process of its own.
//!
//! A thread that waits for an answer to a FUSE request which was read already can not be killed, and keeps its process
//! from ending. If that process is the server, nobody is left to answer: a server that was killed would never be gone,
//! and its connection would hang with it. So the server asks nothing of its own mount. What it does with the open
//! file, mapping and closing, takes no answer.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use rustix::fs::{openat, Mode, OFlags};
use rustix::io::Errno;

use super::fds;

/// A file of `.meta`, as the first message names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Meta {
    Superblock = 0,
    Log = 1,
}

/// Added to the file's number: for writing too.
const WRITABLE: u8 = 2;

/// The process, seen from the server: started when it is needed first, and again if it was killed.
#[derive(Debug, Default)]
pub struct Opener(Option<Process>);

impl Opener {
    /// Opens a file of the file system that `root` is the root of.
    pub fn open(
        &mut self,
        root: BorrowedFd<'_>,
        file: Meta,
        writable: bool,
    ) -> anyhow::Result<File> {
        let number = file as u8 | if writable { WRITABLE } else { 0 };
        for _ in 0..2 {
            let process = match self.0.take() {
                Some(process) => process,
                None => Process::start()?,
            };
            let Some((errno, mut fds)) = process.ask(number, root)? else {
                continue;
            };
            self.0 = Some(process);
            return match errno {
                0 => Ok(fds.pop().context("no file came")?.into()),
                _ => Err(io::Error::from_raw_os_error(errno.into()).into()),
            };
        }
        anyhow::bail!("famfs open-meta ends before it has answered")
    }
}

/// A running process. It ends with the server, or with this.
#[derive(Debug)]
struct Process {
    child: Child,
    socket: UnixStream,
}

impl Process {
    fn start() -> anyhow::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        // This program even if another version has been installed meanwhile.
        let child = Command::new("/proc/self/exe")
            .arg0("famfs")
            .arg("open-meta")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .context("starting famfs open-meta")?;
        Ok(Self { child, socket })
    }

    /// None if the process has ended.
    fn ask(&self, number: u8, root: BorrowedFd<'_>) -> io::Result<Option<(u8, Vec<OwnedFd>)>> {
        match fds::send(&self.socket, number, &[root]) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(None),
            Err(error) => Err(error),
            Ok(()) => fds::receive(&self.socket),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process itself: opens what it is asked for on its standard input, until that ends.
pub fn run() -> anyhow::Result<()> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    while let Some((number, roots)) = fds::receive(&socket)? {
        let path = match number & !WRITABLE {
            0 => ".meta/.superblock",
            _ => ".meta/.log",
        };
        let access = match number & WRITABLE {
            0 => OFlags::RDONLY,
            _ => OFlags::RDWR,
        };
        let root = roots.first().context("no root came")?;
        match openat(root, path, access | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => fds::send(&socket, 0, &[file.as_fd()])?,
            Err(errno) => fds::send(&socket, one_byte(errno), &[])?,
        }
    }
    Ok(())
}

/// Every errno of Linux has one byte.
fn one_byte(errno: Errno) -> u8 {
    u8::try_from(errno.raw_os_error()).unwrap_or(u8::MAX)
}
