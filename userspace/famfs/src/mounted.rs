// SPDX-License-Identifier: MIT OR Apache-2.0
//! A mounted famfs, seen from the command line: found by a path in it, reached through its .meta files.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use famfs_fuse::{map_file, Region};
use famfs_media::{Replay, Superblock, SUPERBLOCK_BYTES, SUPERBLOCK_LEN};
use rustix::fs::{
    fstat, makedev, openat2, statx, AtFlags, Mode, OFlags, ResolveFlags, StatxFlags, CWD,
};
use rustix::io::Errno;

use crate::exit::{self, fail, Exit};
use crate::mountinfo::{mounts, Mount};
use crate::server::control;
use crate::{device, log, master};

/// Path of the superblock in a mount.
const SUPERBLOCK: &str = ".meta/.superblock";

/// A mounted famfs.
pub struct Mounted {
    /// Its mount point.
    pub root: PathBuf,
    /// Path of device 0, as /proc shows it.
    pub device: PathBuf,
    /// st_dev of its files, as (major, minor).
    pub number: (u32, u32),
    /// Its superblock.
    pub superblock: Superblock,
}

impl Mounted {
    /// The famfs that `path`, which must exist, is in.
    pub fn of(path: &Path) -> anyhow::Result<Self> {
        let stat = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)
            .map_err(|errno| stat_error(path, errno))?;
        let not_famfs = || {
            fail(
                Exit::NoFamfs,
                format!(
                    "{} is not in a mounted famfs; `famfs status` shows where one is",
                    path.display()
                ),
            )
        };
        let mount = mounts()?
            .into_iter()
            .find(|m| m.id == stat.stx_mnt_id)
            .ok_or_else(not_famfs)?;
        if !mount.may_be_famfs() {
            return Err(not_famfs());
        }
        let file = mount.point.join(SUPERBLOCK);
        match statx(CWD, &file, AtFlags::empty(), StatxFlags::TYPE) {
            Ok(_) => (),
            Err(Errno::NOTCONN) => return Err(stat_error(path, Errno::NOTCONN)),
            Err(_) => return Err(not_famfs()),
        }
        if mount.root != b"/" {
            let text = format!(
                "{} is part of a famfs; use the mount point of the whole",
                mount.point.display()
            );
            return Err(fail(Exit::NoFamfs, text));
        }
        let superblock = read_superblock(&file)?;
        let (device, fs) = (mount.source.display(), superblock.fs_uuid);
        tracing::info!("{} shows famfs {fs} on {device}", mount.point.display());
        Ok(Self {
            root: mount.point,
            device: mount.source,
            number: mount.device,
            superblock,
        })
    }

    /// The same with the superblock as it is by now.
    pub fn again(self) -> anyhow::Result<Self> {
        let superblock = read_superblock(&self.root.join(SUPERBLOCK))?;
        Ok(Self { superblock, ..self })
    }

    /// The famfs whose device 0 is `device`, if it is mounted.
    pub fn on_device(device: &Path) -> anyhow::Result<Option<Self>> {
        mount_point(device)?
            .map(|point| Self::of(&point))
            .transpose()
    }

    /// Its root directory.
    pub fn open_root(&self) -> anyhow::Result<Root> {
        Root::open(&self.root, self.number)
    }

    /// Bytes of device 0.
    pub fn device_size(&self) -> anyhow::Result<u64> {
        Ok(device::open(&self.device)?.size)
    }

    /// The log, for reading.
    pub fn log(&self) -> anyhow::Result<Region> {
        map(&self.root.join(".meta/.log"), self.superblock.log_len)
    }

    /// The log, replayed.
    pub fn replay(&self) -> anyhow::Result<Replay> {
        let region = self.log()?;
        let mut replay = Replay::new(&self.superblock, self.device_size()?);
        log::catch_up(
            &region,
            &log::header(&region, &self.superblock)?,
            &mut replay,
        )?;
        Ok(replay)
    }

    /// Let the server read the log up to `next_index` at least. Returns, when it has, how far that was.
    pub fn logplay(&self, next_index: u64) -> anyhow::Result<u64> {
        control::logplay(&self.device, next_index).map_err(|error| unread(&self.root, error))
    }

    /// Path of `path` from the root of the file system. Its parent must exist, itself need not.
    pub fn relative(&self, path: &Path) -> anyhow::Result<Vec<u8>> {
        let name = path
            .file_name()
            .with_context(|| format!("{} names no file", path.display()))?;
        let full = parent(path)
            .canonicalize()
            .with_context(|| path.display().to_string())?
            .join(name);
        Ok(self.below(&full)?.as_os_str().as_bytes().to_vec())
    }

    /// Path of `full`, which is absolute and has no symbolic links, from the root of the file system.
    pub fn below<'a>(&self, full: &'a Path) -> anyhow::Result<&'a Path> {
        full.strip_prefix(&self.root).map_err(|_| {
            let (full, root) = (full.display(), self.root.display());
            fail(Exit::Usage, format!("{full} is not below {root}"))
        })
    }
}

/// The root directory of a mounted famfs, held open: who owns a directory above it can no longer lead a path elsewhere.
pub struct Root(OwnedFd);

impl Root {
    /// The root at `path`, as /proc shows it, of the file system with this device number.
    fn open(path: &Path, (major, minor): (u32, u32)) -> anyhow::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let (mode, resolve) = (Mode::empty(), ResolveFlags::NO_SYMLINKS);
        let root =
            openat2(CWD, path, flags, mode, resolve).map_err(|errno| stat_error(path, errno))?;
        if fstat(&root)?.st_dev != makedev(major, minor) {
            let text = format!(
                "{} shows another file system than before: it was moved, or that is mounted over it",
                path.display()
            );
            return Err(fail(Exit::Failed, text));
        }
        Ok(Self(root))
    }

    /// The file at `path` below, which was made with `size` bytes, for reading and writing.
    pub fn open_new(&self, path: &[u8], size: u64) -> anyhow::Result<File> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
        let file = match openat2(&self.0, path, flags, Mode::empty(), resolve) {
            Err(Errno::XDEV) => {
                let text = "another file system is mounted over it; umount that and try again";
                return Err(fail(Exit::Failed, text));
            }
            file => File::from(file.map_err(io::Error::from)?),
        };
        let found = file.metadata()?.size();
        if found != size {
            let text = format!("{found} bytes, not {size} as logged");
            return Err(fail(Exit::Failed, text));
        }
        Ok(file)
    }
}

fn read_superblock(file: &Path) -> anyhow::Result<Superblock> {
    let region = map(file, SUPERBLOCK_LEN)?;
    let bytes = log::read_fresh(&region, 0, SUPERBLOCK_BYTES)?;
    master::parse(&bytes).with_context(|| file.display().to_string())
}

/// What it means that the server of the mount at `root` could not read the log.
fn unread(root: &Path, error: anyhow::Error) -> anyhow::Error {
    let root = root.display();
    let mut text = format!("the server of {root} did not read the log");
    // Else what to do stands in the error.
    if exit::code(&error) != Exit::Corrupt {
        text.push_str(&format!("; `famfs logplay {root}` tries again"));
    }
    error.context(text)
}

fn stat_error(path: &Path, errno: Errno) -> anyhow::Error {
    let path = path.display();
    match errno {
        Errno::NOTCONN => fail(
            Exit::Failed,
            format!("{path}: the server of this mount is gone; `umount` it and mount it again"),
        ),
        _ => anyhow::Error::from(io::Error::from(errno)).context(path.to_string()),
    }
}

/// Where the famfs on `device` is mounted, if it is.
pub fn mount_point(device: &Path) -> anyhow::Result<Option<PathBuf>> {
    let mount = mounts()?
        .into_iter()
        .find(|m| m.source == device && m.may_be_famfs());
    Ok(mount.map(|mount| mount.point))
}

/// The mount of the famfs that is mounted on `path` or from it. Looks at nothing but the mount table.
pub fn mount_of(path: &Path) -> anyhow::Result<Option<Mount>> {
    // The mount point of a server that is gone can not be resolved.
    let path = path
        .canonicalize()
        .or_else(|_| std::path::absolute(path))
        .with_context(|| path.display().to_string())?;
    let named = |m: &Mount| m.may_be_famfs() && (m.point == path || m.source == path);
    Ok(mounts()?.into_iter().rev().find(named))
}

/// The mount that [`mount_of`] finds, which must be there.
pub fn mount_at(path: &Path) -> anyhow::Result<Mount> {
    mount_of(path)?.ok_or_else(|| {
        let path = path.display();
        let text = format!(
            "{path}: neither mount point nor device of a mounted famfs; `famfs status` shows those"
        );
        fail(Exit::NoFamfs, text)
    })
}

/// All mounts of famfs that servers of this project serve.
pub fn all() -> anyhow::Result<Vec<Mount>> {
    let mut all = mounts()?;
    all.retain(|mount| mount.fstype == b"fuse.famfs" && mount.may_be_famfs());
    Ok(all)
}

/// The directory that `path` is in.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

/// Map the first `len` bytes of the file at `path`, for reading.
fn map(path: &Path, len: u64) -> anyhow::Result<Region> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    map_open(&file, path, len, false)
}

/// Map the first `len` bytes of `file`, which is at `path`.
pub fn map_open(file: &File, path: &Path, len: u64, writable: bool) -> anyhow::Result<Region> {
    // Another host may have changed the superblock that says so. Behind its end a file has no memory: SIGBUS.
    let found = file.metadata().map_err(|error| {
        // What the kernel has cached of the attributes may be no longer valid: then this asks the server.
        Errno::from_io_error(&error).map_or(error.into(), |errno| stat_error(path, errno))
    });
    let found = found?.len();
    if found < len {
        let path = path.display();
        let text = format!(
            "{path} has {found} bytes, the superblock says {len}: it was changed under this mount; umount and mount again"
        );
        return Err(fail(Exit::Corrupt, text));
    }
    map_file(file, usize::try_from(len)?, writable)
        .with_context(|| format!("mapping {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_path_elsewhere_is_not_in_a_famfs() {
        let error = Mounted::of(Path::new("/proc/self"))
            .map(|_| ())
            .unwrap_err();
        assert_eq!(crate::exit::code(&error), Exit::NoFamfs);
        assert!(
            error
                .to_string()
                .contains("/proc/self is not in a mounted famfs"),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_was_made_is_opened_where_it_was_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        let device = path.metadata().unwrap().dev();
        let number = (rustix::fs::major(device), rustix::fs::minor(device));
        std::fs::create_dir(path.join("root")).unwrap();
        for name in ["root/file", "secret"] {
            std::fs::write(path.join(name), [1; 5]).unwrap();
        }
        symlink("../secret", path.join("root/link")).unwrap();
        let root = Root::open(&path.join("root"), number).unwrap();
        let error =
            |name: &str, size| format!("{:#}", root.open_new(name.as_bytes(), size).unwrap_err());
        assert_eq!(error("file", 6), "5 bytes, not 6 as logged");
        assert!(error("link", 5).contains("symbolic links"));
        let over = "another file system is mounted over it; umount that and try again";
        assert_eq!(error("../secret", 5), over);
        // By then its path leads elsewhere.
        std::fs::rename(path.join("root"), path.join("moved")).unwrap();
        symlink("moved", path.join("root")).unwrap();
        assert!(root.open_new(b"file", 5).is_ok());
        let error = |path: &Path, number| {
            format!("{:#}", Root::open(path, number).map(|_| ()).unwrap_err())
        };
        assert!(error(&path.join("root"), number).contains("symbolic links"));
        assert!(error(Path::new("/proc"), number).starts_with("/proc shows another file system"));
        let slash = Path::new("/").metadata().unwrap().dev();
        let number = (rustix::fs::major(slash), rustix::fs::minor(slash));
        let root = Root::open(Path::new("/"), number).unwrap();
        let error = root.open_new(b"proc/self/comm", 0).unwrap_err();
        assert_eq!(error.to_string(), over);
    }

    #[test]
    fn a_server_that_is_gone_is_named() {
        let text = stat_error(Path::new("/mnt"), Errno::NOTCONN).to_string();
        assert_eq!(
            text,
            "/mnt: the server of this mount is gone; `umount` it and mount it again"
        );
        let text = format!("{:#}", stat_error(Path::new("/mnt"), Errno::NOENT));
        assert_eq!(text, "/mnt: No such file or directory (os error 2)");
    }

    #[test]
    fn what_is_corrupt_is_not_tried_again() {
        let text = |exit| format!("{:#}", unread(Path::new("/mnt"), fail(exit, "no")));
        let unread = "the server of /mnt did not read the log";
        assert_eq!(text(Exit::Corrupt), format!("{unread}: no"));
        assert_eq!(
            text(Exit::Failed),
            format!("{unread}; `famfs logplay /mnt` tries again: no")
        );
    }

    #[test]
    fn nothing_behind_the_end_of_a_file_is_mapped() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        assert!(map_open(&file, Path::new(".log"), 8 << 20, false).is_ok());
        let error = map_open(&file, Path::new(".log"), 16 << 20, false).unwrap_err();
        assert_eq!(crate::exit::code(&error), Exit::Corrupt);
        assert_eq!(
            error.to_string(),
            ".log has 8388608 bytes, the superblock says 16777216: it was changed under this mount; umount and mount again"
        );
    }

    #[test]
    fn parents() {
        assert_eq!(parent(Path::new("a")), Path::new("."));
        assert_eq!(parent(Path::new("a/b")), Path::new("a"));
        assert_eq!(parent(Path::new("/a")), Path::new("/"));
        assert_eq!(parent(Path::new("/")), Path::new("/"));
    }
}
