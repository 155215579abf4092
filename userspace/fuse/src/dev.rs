// SPDX-License-Identifier: MIT OR Apache-2.0
//! `/dev/fuse`: one whole request per read, one whole reply per write.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::{fs, io};

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::abi::{NotifyInvalInodeOut, NOTIFY_INVAL_INODE, NOTIFY_RESEND};
use crate::ioctl;
use crate::reply::Reply;

/// Size that a receive buffer should have: room for a SETXATTR with the largest value (64 KiB) and its name.
pub const BUFFER_SIZE: usize = 68 << 10;

/// An open `/dev/fuse`, connected to a mount once one has been made with it.
#[derive(Debug)]
pub struct DevFuse(OwnedFd);

impl DevFuse {
    /// Opens the device, not connected to a mount yet.
    pub fn open() -> io::Result<Self> {
        Ok(Self(rustix::fs::open(
            "/dev/fuse",
            OFlags::RDWR | OFlags::CLOEXEC,
            Mode::empty(),
        )?))
    }

    /// A second descriptor on the same connection, with a queue of its own in the kernel: what one receives must be
    /// answered through the same one.
    pub fn new_channel(&self) -> io::Result<Self> {
        let channel = Self::open()?;
        ioctl::clone_connection(channel.as_fd(), self.as_fd())?;
        Ok(channel)
    }

    /// Has the kernel ask for the attributes of an inode again, if it has cached them.
    pub fn invalidate_attributes(&self, nodeid: u64) -> io::Result<()> {
        let what = NotifyInvalInodeOut {
            ino: nodeid,
            off: -1,
            len: 0,
        };
        self.send(&Reply::notification(NOTIFY_INVAL_INODE, &what))
    }

    /// Queues again all requests that were read from the connection, through whichever descriptor, and not answered.
    /// Whoever read them can not answer them any more: they come with another `unique`.
    pub fn resend(&self) -> io::Result<()> {
        self.send(&Reply::notification(NOTIFY_RESEND, &[0_u8; 0]))
    }

    /// Number of the connection: the minor device number of its file system. None when it is gone.
    pub fn connection(&self) -> io::Result<Option<u32>> {
        let mut state = [PollFd::new(&self.0, PollFlags::empty())];
        poll(&mut state, Some(&Timespec::default()))?;
        if state.iter().any(|fd| !fd.revents().is_empty()) {
            return Ok(None);
        }
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", self.0.as_raw_fd()))?;
        let number = info
            .lines()
            .find_map(|line| line.strip_prefix("fuse_connection:"));
        Ok(number.and_then(|number| number.trim().parse().ok()))
    }

    /// Has the mount use the memory of its daxdev `index`, which is `device`, as if it had never failed. NotFound if
    /// it has no such daxdev yet.
    pub fn forget_errors(&self, device: BorrowedFd<'_>, index: u16) -> io::Result<()> {
        ioctl::forget_errors(self.as_fd(), device, index)
    }

    /// Waits for a request and reads it into `buffer`. `None` means that the connection is gone: unmounted or aborted.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        loop {
            match rustix::io::read(&self.0, &mut *buffer) {
                Ok(0) | Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(None),
                Ok(len) => return Ok(buffer.get(..len)),
                // The request was interrupted or aborted before it was read; there may be another.
                Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => (),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Sends a reply. A requester that has gone away in the meantime (interrupt, unmount) is not an error.
    pub fn send(&self, reply: &Reply) -> io::Result<()> {
        match rustix::io::retry_on_intr(|| rustix::io::write(&self.0, reply.as_bytes())) {
            Ok(_) | Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for DevFuse {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Anything that keeps message boundaries can stand in for the device, such as a SOCK_SEQPACKET socket in a test.
impl From<OwnedFd> for DevFuse {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}
