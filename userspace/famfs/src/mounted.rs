// SPDX-License-Identifier: MIT OR Apache-2.0
//! A mounted famfs, seen from the command line: found by a path in it, reached through its .meta files.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use famfs_fuse::{map_file, Region};
use famfs_media::{Body, LogHeader, Replay, Role, Superblock, SUPERBLOCK_BYTES, SUPERBLOCK_LEN};
use rustix::fs::{flock, setxattr, statx, AtFlags, FlockOperation, StatxFlags, XattrFlags, CWD};
use rustix::io::Errno;
use uuid::Uuid;

use crate::exit::{fail, Exit};
use crate::{device, log, system};

/// Extended attribute of the root whose setting makes the server read the log up to an index.
const LOGPLAY_XATTR: &str = "user.famfs.logplay";

/// A mounted famfs.
pub struct Mounted {
    /// Its mount point.
    pub root: PathBuf,
    /// Path of device 0, as /proc shows it.
    pub device: PathBuf,
    /// Its superblock.
    pub superblock: Superblock,
}

/// A mount as /proc/self/mountinfo has it.
struct Mount {
    id: u64,
    root: Vec<u8>,
    point: PathBuf,
    fstype: Vec<u8>,
    source: PathBuf,
}

impl Mounted {
    /// The famfs that `path`, which must exist, is in.
    pub fn of(path: &Path) -> anyhow::Result<Self> {
        let stat = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).map_err(|errno| stat_error(path, errno))?;
        let not_famfs = || fail(Exit::NoFamfs, format!("{} is not in a mounted famfs", path.display()));
        let mount = mounts()?.into_iter().find(|m| m.id == stat.stx_mnt_id).ok_or_else(not_famfs)?;
        let file = mount.point.join(".meta/.superblock");
        if !mount.fstype.starts_with(b"fuse") || !file.exists() {
            return Err(not_famfs());
        }
        if mount.root != b"/" {
            let text = format!("{} is part of a famfs; use the mount point of the whole", mount.point.display());
            return Err(fail(Exit::NoFamfs, text));
        }
        let region = map(&file, SUPERBLOCK_LEN, false)?;
        let bytes = log::read_fresh(&region, 0, SUPERBLOCK_BYTES)?;
        let superblock = Superblock::parse(&bytes).with_context(|| file.display().to_string())?;
        Ok(Self { root: mount.point, device: mount.source, superblock })
    }

    /// The famfs whose device 0 is `device`, if it is mounted.
    pub fn on_device(device: &Path) -> anyhow::Result<Option<Self>> {
        mount_point(device)?.map(|point| Self::of(&point)).transpose()
    }

    /// Bytes of device 0.
    pub fn device_size(&self) -> anyhow::Result<u64> {
        Ok(device::open(&self.device)?.size)
    }

    /// The log, for reading.
    pub fn log(&self) -> anyhow::Result<Region> {
        map(&self.root.join(".meta/.log"), self.superblock.log_len, false)
    }

    /// The log, replayed.
    pub fn replay(&self) -> anyhow::Result<Replay> {
        let region = self.log()?;
        let mut replay = Replay::new(&self.superblock, self.device_size()?);
        log::catch_up(&region, &log::header(&region, &self.superblock)?, &mut replay)?;
        Ok(replay)
    }

    /// Let the server read the log up to `next_index`. Returns when it has.
    pub fn logplay(&self, next_index: u64) -> anyhow::Result<()> {
        let value = next_index.to_string();
        setxattr(&self.root, LOGPLAY_XATTR, value.as_bytes(), XattrFlags::empty())
            .map_err(io::Error::from)
            .with_context(|| {
                let root = self.root.display();
                format!("the server of {root} did not read the log; `famfs logplay {root}` tries again")
            })
    }

    /// Path of `path` from the root of the file system. Its parent must exist, itself need not.
    pub fn relative(&self, path: &Path) -> anyhow::Result<Vec<u8>> {
        let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?;
        let full = parent(path).canonicalize().with_context(|| path.display().to_string())?.join(name);
        let outside = || fail(Exit::Usage, format!("{} is not below {}", full.display(), self.root.display()));
        let relative = full.strip_prefix(&self.root).map_err(|_| outside())?;
        Ok(relative.as_os_str().as_bytes().to_vec())
    }
}

fn stat_error(path: &Path, errno: Errno) -> anyhow::Error {
    let path = path.display();
    match errno {
        Errno::NOTCONN => {
            fail(Exit::Failed, format!("{path}: the server of this mount is gone; `umount` it and mount it again"))
        }
        _ => anyhow::Error::from(io::Error::from(errno)).context(path.to_string()),
    }
}

/// Where the famfs on `device` is mounted, if it is.
pub fn mount_point(device: &Path) -> anyhow::Result<Option<PathBuf>> {
    let mount = mounts()?.into_iter().find(|m| m.source == device && m.fstype.starts_with(b"fuse"));
    Ok(mount.map(|mount| mount.point))
}

/// Device 0 of the famfs that is mounted on `path` or from it. Looks at nothing but the mount table.
pub fn device_of(path: &Path) -> anyhow::Result<Option<PathBuf>> {
    // The mount point of a server that is gone can not be resolved.
    let path =
        path.canonicalize().or_else(|_| std::path::absolute(path)).with_context(|| path.display().to_string())?;
    let named = |m: &Mount| m.fstype.starts_with(b"fuse") && (m.point == path || m.source == path);
    Ok(mounts()?.into_iter().rev().find(named).map(|mount| mount.source))
}

/// The directory that `path` is in.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

/// The right to append: the log, locked against the other processes of this host, and all it says.
pub struct Writer {
    /// The file system.
    pub mounted: Mounted,
    /// What the log said when it was locked, and the space taken since.
    pub replay: Replay,
    header: LogHeader,
    region: Region,
    /// Holds the lock.
    _log: File,
}

impl Writer {
    /// Lock the log. Fails on a host that is not the master.
    pub fn new(mounted: Mounted) -> anyhow::Result<Self> {
        check_master(&mounted, system::uuid())?;
        let path = mounted.root.join(".meta/.log");
        let file = open_log(&path)?;
        flock(&file, FlockOperation::LockExclusive)
            .map_err(io::Error::from)
            .with_context(|| format!("locking {}", path.display()))?;
        let region = map_open(&file, &path, mounted.superblock.log_len, true)?;
        let header = log::header(&region, &mounted.superblock)?;
        header.after_append(0)?;
        let mut replay = Replay::new(&mounted.superblock, mounted.device_size()?);
        log::catch_up(&region, &header, &mut replay)?;
        Ok(Self { mounted, replay, header, region, _log: file })
    }

    /// A writer on `log`, a file with the log of `superblock`, for tests.
    #[cfg(test)]
    pub fn on_file(log: File, superblock: Superblock, device_size: u64) -> Self {
        let region = map_file(&log, superblock.log_len as usize, true).unwrap();
        let header = log::header(&region, &superblock).unwrap();
        let mut replay = Replay::new(&superblock, device_size);
        log::catch_up(&region, &header, &mut replay).unwrap();
        let mounted = Mounted { root: "/nowhere".into(), device: "/dev/dax0.0".into(), superblock };
        Self { mounted, replay, header, region, _log: log }
    }

    /// Append `bodies`, unlock, and return when the server knows them.
    pub fn publish(self, bodies: Vec<Body>) -> anyhow::Result<Mounted> {
        if bodies.is_empty() {
            return Ok(self.mounted);
        }
        let after = log::append(&self.region, &self.header, bodies)?;
        self.mounted.logplay(after.next_index)?;
        Ok(self.mounted)
    }
}

fn check_master(mounted: &Mounted, local: Option<Uuid>) -> anyhow::Result<()> {
    if mounted.superblock.role(local) == Role::Master {
        return Ok(());
    }
    let (root, owner) = (mounted.root.display(), mounted.superblock.system_uuid);
    let text = format!("{root} belongs to the host with system uuid {owner}; only that host can add to it");
    Err(fail(Exit::Permission, text))
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new().read(true).write(true).open(path).with_context(|| format!("opening {}", path.display()))
}

fn map(path: &Path, len: u64, writable: bool) -> anyhow::Result<Region> {
    let open = OpenOptions::new().read(true).write(writable).open(path);
    map_open(&open.with_context(|| format!("opening {}", path.display()))?, path, len, writable)
}

fn map_open(file: &File, path: &Path, len: u64, writable: bool) -> anyhow::Result<Region> {
    map_file(file, usize::try_from(len)?, writable).with_context(|| format!("mapping {}", path.display()))
}

fn mounts() -> anyhow::Result<Vec<Mount>> {
    let text = fs::read("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    Ok(text.split(|&b| b == b'\n').filter_map(parse_mount).collect())
}

/// One line of mountinfo: `ID PARENT DEV ROOT POINT OPTIONS [TAG...] - TYPE SOURCE OPTIONS`.
fn parse_mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&b| b == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let root = unescape(fields.nth(2)?);
    let point = PathBuf::from(std::ffi::OsString::from_vec(unescape(fields.next()?)));
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let fstype = rest.next()?.to_vec();
    let source = PathBuf::from(std::ffi::OsString::from_vec(unescape(rest.next()?)));
    Some(Mount { id, root, point, fstype, source })
}

/// Undo the kernel's `\ooo` for blanks, newlines and backslashes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut parts = field.split(|&b| b == b'\\');
    let mut out = parts.next().unwrap_or_default().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at(part.len().min(3));
        let code = std::str::from_utf8(digits).ok().and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.extend(code);
        out.extend_from_slice(rest);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines() {
        let line = b"36 25 0:31 / /mnt/my\\040mem rw,nosuid shared:1 master:2 - fuse.famfs /dev/dax0.0 rw,user_id=0";
        let mount = parse_mount(line).unwrap();
        assert_eq!((mount.id, &mount.root[..], mount.point.as_path()), (36, &b"/"[..], Path::new("/mnt/my mem")));
        assert_eq!((&mount.fstype[..], mount.source.as_path()), (&b"fuse.famfs"[..], Path::new("/dev/dax0.0")));
        assert!(parse_mount(b"36 25 0:31 / /mnt rw").is_none());
        assert!(parse_mount(b"").is_none());
    }

    #[test]
    fn a_path_elsewhere_is_not_in_a_famfs() {
        let error = Mounted::of(Path::new("/proc/self")).map(|_| ()).unwrap_err();
        assert_eq!(crate::exit::code(&error), Exit::NoFamfs);
        assert!(error.to_string().contains("/proc/self is not in a mounted famfs"), "{error}");
    }

    #[test]
    fn a_server_that_is_gone_is_named() {
        let text = stat_error(Path::new("/mnt"), Errno::NOTCONN).to_string();
        assert_eq!(text, "/mnt: the server of this mount is gone; `umount` it and mount it again");
        let text = format!("{:#}", stat_error(Path::new("/mnt"), Errno::NOENT));
        assert_eq!(text, "/mnt: No such file or directory (os error 2)");
    }

    #[test]
    fn only_the_master_writes() {
        let dax = famfs_media::PrimaryDax { size: 0, uuid: Uuid::nil(), name: vec![] };
        let superblock = Superblock::new(8 << 20, Uuid::nil(), Uuid::nil(), Uuid::from_u128(5), dax);
        let mounted = Mounted { root: "/mnt".into(), device: "/dev/dax0.0".into(), superblock };
        check_master(&mounted, Some(Uuid::from_u128(5))).unwrap();
        for local in [None, Some(Uuid::from_u128(6))] {
            let error = check_master(&mounted, local).unwrap_err();
            assert_eq!(crate::exit::code(&error), Exit::Permission);
            assert!(error.to_string().contains("system uuid 00000000-0000-0000-0000-000000000005"), "{error}");
        }
    }

    #[test]
    fn parents() {
        assert_eq!(parent(Path::new("a")), Path::new("."));
        assert_eq!(parent(Path::new("a/b")), Path::new("a"));
        assert_eq!(parent(Path::new("/a")), Path::new("/"));
        assert_eq!(parent(Path::new("/")), Path::new("/"));
    }
}
