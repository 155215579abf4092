// SPDX-License-Identifier: MIT OR Apache-2.0
//! A FUSE connection and the threads that serve it.
//!
//! The superblock is made with fsopen(2) and stays mounted nowhere until [`Session::attach`]: the server reads the
//! superblock and the log of famfs through it before anybody else can see the files, and when that fails, or the
//! process dies, the kernel takes all of it down with the last descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::Context;
use famfs_fuse::{abi, dev, init, DevFuse, Operation, Reply, Request};
use rustix::fs::{openat2, Mode, OFlags, ResolveFlags, CWD};
use rustix::mount::{
    fsconfig_create, fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    move_mount, FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags,
};

use super::ops::Server;
use crate::exit::{fail, Exit};
use crate::kernel;

/// Threads that answer requests. More than one, so that a request never waits for the server's own accesses to its
/// file system.
const WORKERS: usize = 2;

/// A mounted famfs and its threads. Dropping it takes the mount away, unless it was attached, and waits for the
/// threads, which end when the connection does.
#[derive(Debug)]
pub struct Session {
    /// The file system context, for later changes to the superblock.
    context: Option<OwnedFd>,
    /// The mount while it is attached nowhere. Open descriptors pin it.
    mount: Option<OwnedFd>,
    /// What the threads read from.
    channels: Vec<Arc<DevFuse>>,
    workers: Vec<JoinHandle<()>>,
}

impl Session {
    /// Makes the file system and starts to serve it. With `noexec` nobody can execute programs from it.
    pub fn start(server: &Arc<Server>, noexec: bool) -> anyhow::Result<Self> {
        let device = DevFuse::open().context("opening /dev/fuse")?;
        let context =
            make_superblock(&device, &server.source()).context("making the FUSE file system")?;
        negotiate(&device)?;
        let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        attributes.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, noexec);
        let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .context("fsmount")?;
        let mut session = Self {
            context: Some(context),
            mount: Some(mount),
            channels: Vec::new(),
            workers: Vec::new(),
        };
        for _ in 1..WORKERS {
            let channel = device.new_channel().context("cloning /dev/fuse")?;
            session.spawn(channel, server)?;
        }
        session.spawn(device, server)?;
        Ok(session)
    }

    /// Goes on with a mount that was served by another process, which is gone. What that one has read and not answered
    /// is answered here.
    pub fn resume(channels: Vec<DevFuse>, server: &Arc<Server>) -> anyhow::Result<Self> {
        let mut session = Self {
            context: None,
            mount: None,
            channels: Vec::new(),
            workers: Vec::new(),
        };
        if let Some(channel) = channels.first() {
            channel.resend().context("asking for requests again")?;
        }
        for channel in channels {
            session.spawn(channel, server)?;
        }
        Ok(session)
    }

    fn spawn(&mut self, channel: DevFuse, server: &Arc<Server>) -> io::Result<()> {
        let (channel, server) = (Arc::new(channel), Arc::clone(server));
        self.channels.push(Arc::clone(&channel));
        let thread = thread::Builder::new().name(format!("fuse-{}", self.workers.len()));
        self.workers
            .push(thread.spawn(move || serve(&channel, &server))?);
        Ok(())
    }

    /// Copies of the descriptors that requests are read from, for a successor.
    pub fn channels(&self) -> io::Result<Vec<OwnedFd>> {
        let fds = self.channels.iter().map(|channel| channel.as_fd());
        fds.map(|fd| fd.try_clone_to_owned()).collect()
    }

    /// The root of the mount while it is not attached.
    pub fn root(&self) -> anyhow::Result<BorrowedFd<'_>> {
        Ok(self
            .mount
            .as_ref()
            .context("the mount is attached")?
            .as_fd())
    }

    /// A descriptor to send notifications through.
    pub fn notifier(&self) -> anyhow::Result<DevFuse> {
        let channel = self.channels.first().context("no channel")?;
        channel.new_channel().context("cloning /dev/fuse")
    }

    /// Makes the superblock read-only. Nothing in it may be open for writing.
    pub fn set_read_only(&self) -> io::Result<()> {
        if let Some(context) = &self.context {
            fsconfig_set_flag(context.as_fd(), "ro")?;
            fsconfig_reconfigure(context.as_fd())?;
        }
        Ok(())
    }

    /// Puts the mount at `mountpoint`, a path without links, where umount(8) ends it from then on.
    pub fn attach(&mut self, mountpoint: &Path) -> io::Result<()> {
        if let Some(mount) = self.mount.take() {
            self.context = None;
            let place = open_mountpoint(mountpoint)?;
            let from = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            let to = MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
            move_mount(mount.as_fd(), "", place, "", from | to)?;
        }
        Ok(())
    }

    /// Waits until the connection has ended.
    pub fn wait(mut self) {
        self.join();
    }

    fn join(&mut self) {
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                tracing::error!("a worker thread has panicked");
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.context = None;
        self.mount = None;
        self.join();
    }
}

/// The directory at `path`, which had no links in it when it was looked at. Those that are there now were put there by
/// who owns a directory on the way, and are not followed.
fn open_mountpoint(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS;
    Ok(openat2(CWD, path, flags, Mode::empty(), resolve)?)
}

fn make_superblock(device: &DevFuse, source: &str) -> io::Result<OwnedFd> {
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let fd = device.as_fd().as_raw_fd().to_string();
    let options = [
        ("source", source),
        ("subtype", "famfs"),
        ("fd", &fd),
        ("rootmode", "40000"),
        ("user_id", "0"),
        ("group_id", "0"),
    ];
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), key, value)?;
    }
    for flag in ["default_permissions", "allow_other"] {
        fsconfig_set_flag(context.as_fd(), flag)?;
    }
    fsconfig_create(context.as_fd())?;
    Ok(context)
}

/// Answers INIT, which the kernel sends first. Without famfs mode nothing further would work.
fn negotiate(device: &DevFuse) -> anyhow::Result<()> {
    let mut buffer = vec![0; dev::BUFFER_SIZE];
    let request = device
        .receive(&mut buffer)
        .context("/dev/fuse")?
        .context("the kernel ended the connection")?;
    let Ok(Request {
        header,
        operation: Operation::Init(offer),
        ..
    }) = Request::decode(request)
    else {
        return Err(fail(Exit::Kernel, "the kernel did not begin with INIT"));
    };
    let answer = init::negotiate(&offer);
    let reply = Reply::new(header.unique, answer.map(|answer| (&answer.reply).into()));
    device.send(&reply).context("/dev/fuse")?;
    match answer {
        Ok(answer) if answer.dax_fmap => Ok(()),
        Ok(_) => {
            kernel::check()?;
            let text = "the kernel did not offer famfs mode: CAP_SYS_RAWIO is needed in the initial user namespace";
            Err(fail(Exit::Permission, text))
        }
        Err(_) => {
            let (major, minor, ours) = (offer.major, offer.minor, abi::KERNEL_MINOR_VERSION);
            Err(fail(
                Exit::Kernel,
                format!("the kernel speaks FUSE {major}.{minor}, famfs 7.12 to 7.{ours}"),
            ))
        }
    }
}

/// Receives and answers until the connection ends.
pub fn serve(channel: &DevFuse, server: &Server) {
    // Written to, so that its pages are there: the kernel fails a request whose reader is killed while it has to
    // bring in a page to copy the request to.
    let mut buffer = vec![1; dev::BUFFER_SIZE];
    loop {
        match channel.receive(&mut buffer) {
            Ok(Some(bytes)) => {
                let Some(reply) = server.answer(bytes) else {
                    continue;
                };
                if let Err(error) = channel.send(&reply) {
                    tracing::error!(%error, "the kernel refused a reply");
                }
            }
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "cannot read from /dev/fuse");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_mount_point_is_not_led_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        fs::create_dir_all(dir.join("user/mnt")).unwrap();
        fs::create_dir_all(dir.join("etc/mnt")).unwrap();
        let open = |path: &str| open_mountpoint(&dir.join(path));
        assert!(open("user/mnt").is_ok());
        fs::rename(dir.join("user"), dir.join("old")).unwrap();
        symlink("etc", dir.join("user")).unwrap();
        for path in ["user/mnt", "user"] {
            let error = open(path).unwrap_err();
            assert_eq!(Errno::from_io_error(&error), Some(Errno::LOOP), "{path}");
        }
    }
}
