// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a server keeps in memfds beside its own memory, so that a successor can go on where it was interrupted: the
//! log as far as it was replayed, the daxdevs, and the attributes that were changed. A successor can not read the log
//! before it serves, for the mount answers nobody without a server; nor look for the daxdevs, which the mount holds.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use famfs_fuse::abi::Attr;
use famfs_media::{
    entry_offset, LogHeader, Replay, Superblock, ENTRY_BYTES, HEADER_BYTES, SUPERBLOCK_BYTES,
};
use rustix::fs::{memfd_create, MemfdFlags};
use zerocopy::{FromBytes as _, IntoBytes as _};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Starts the file of the attributes. The last byte is a version, to change with either file's layout.
const MAGIC: [u8; 8] = *b"famfs\0\0\x01";

fn memfd(name: &str) -> io::Result<File> {
    Ok(memfd_create(name, MemfdFlags::CLOEXEC)?.into())
}

/// The superblock and behind it the log, up to the last entry that was replayed.
#[derive(Debug)]
pub struct LogCopy(File);

impl LogCopy {
    /// Of a file system of which nothing was replayed yet.
    pub fn new(superblock: &Superblock) -> io::Result<Self> {
        let copy = Self(memfd("famfs-log")?);
        copy.0.write_all_at(&superblock.encode(), 0)?;
        copy.write(0, &LogHeader::new(superblock.log_len).encode())?;
        Ok(copy)
    }

    /// Takes over `entries`, which were replayed: the first of them has index `from` in the log with this header.
    pub fn follow(&self, header: &LogHeader, from: u64, entries: &[u8]) -> anyhow::Result<()> {
        if !entries.is_empty() {
            let at = entry_offset(from).context("log entry index too large")?;
            self.write(at, entries)?;
            let header = LogHeader {
                next_index: from.saturating_add((entries.len() / ENTRY_BYTES) as u64),
                ..*header
            };
            // Last, so that whoever reads meanwhile finds whole entries.
            self.write(0, &header.encode())?;
        }
        Ok(())
    }

    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.0
            .write_all_at(bytes, at.saturating_add(SUPERBLOCK_BYTES as u64))
    }

    /// Replays the copy, on a device 0 of `device_size` bytes.
    pub fn replay(&self, device_size: u64) -> anyhow::Result<(Superblock, Replay)> {
        let len = usize::try_from(self.0.metadata()?.len())?;
        let mut bytes = vec![0; len.max(SUPERBLOCK_BYTES + HEADER_BYTES)];
        self.0
            .read_exact_at(&mut bytes, 0)
            .context("the predecessor's copy of the log")?;
        let (superblock, log) = bytes.split_at(SUPERBLOCK_BYTES);
        let superblock = Superblock::parse(superblock)?;
        let replay = Replay::of_log(&superblock, device_size, log)?;
        Ok((superblock, replay))
    }

    /// A descriptor for the successor.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        Ok(self.0.try_clone()?.into())
    }
}

impl From<OwnedFd> for LogCopy {
    fn from(fd: OwnedFd) -> Self {
        Self(fd.into())
    }
}

/// Attributes that differ from what the log says, and the time that all others have.
///
/// In the file are a [`Header`], the paths of the daxdevs with a NUL behind each, and [`Record`]s.
#[derive(Debug)]
pub struct Changed {
    /// Time of the mount in seconds: the log has no times.
    pub time: u64,
    /// By node id, with the place of the record in `file`.
    attrs: HashMap<u64, (usize, Attr)>,
    /// With the place of the first record. Absent while no successor could take over.
    file: Option<(File, usize)>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    time: u64,
    /// Bytes of all paths.
    paths: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Record {
    nodeid: u64,
    attr: Attr,
}

impl Default for Changed {
    fn default() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            time: now.map_or(0, |now| now.as_secs()),
            attrs: HashMap::new(),
            file: None,
        }
    }
}

impl Changed {
    /// Keeps the changes that are to come, and the paths of the daxdevs. Returns a descriptor for the successor.
    pub fn keep(&mut self, devices: &[PathBuf]) -> io::Result<OwnedFd> {
        let file = memfd("famfs-attributes")?;
        let paths = devices
            .iter()
            .flat_map(|path| [path.as_os_str().as_bytes(), &[0]]);
        let paths: Vec<u8> = paths.flatten().copied().collect();
        let header = Header {
            magic: MAGIC,
            time: self.time,
            paths: paths.len() as u64,
        };
        let start = [header.as_bytes(), &paths].concat();
        file.write_all_at(&start, 0)?;
        let descriptor = file.try_clone()?;
        self.file = Some((file, start.len()));
        Ok(descriptor.into())
    }

    /// What a predecessor has kept in `fd`, and the paths of the daxdevs.
    pub fn adopt(fd: OwnedFd) -> anyhow::Result<(Self, Vec<PathBuf>)> {
        let file = File::from(fd);
        let mut bytes = vec![0; usize::try_from(file.metadata()?.len())?];
        file.read_exact_at(&mut bytes, 0)?;
        let version = "the server that runs is of another version: umount and mount instead";
        let (header, rest) = Header::read_from_prefix(&bytes)
            .ok()
            .filter(|(header, _)| header.magic == MAGIC)
            .context(version)?;
        let (paths, records) = usize::try_from(header.paths)
            .ok()
            .and_then(|len| rest.split_at_checked(len))
            .context(version)?;
        let start = bytes.len().saturating_sub(records.len());
        let paths = paths.strip_suffix(&[0]).context(version)?;
        let devices = paths
            .split(|&byte| byte == 0)
            .map(|path| OsStr::from_bytes(path).into());
        let records = records.chunks_exact(size_of::<Record>()).enumerate();
        let attrs = records
            .filter_map(|(at, bytes)| Some((at, Record::read_from_bytes(bytes).ok()?)))
            .map(|(at, record)| (record.nodeid, (at, record.attr)));
        let changed = Self {
            time: header.time,
            attrs: attrs.collect(),
            file: Some((file, start)),
        };
        Ok((changed, devices.collect()))
    }

    /// The attributes of a node, if they were changed.
    pub fn get(&self, nodeid: u64) -> Option<Attr> {
        self.attrs.get(&nodeid).map(|(_, attr)| *attr)
    }

    /// Changes the attributes of a node.
    pub fn set(&mut self, nodeid: u64, attr: Attr) -> io::Result<()> {
        let at = self
            .attrs
            .get(&nodeid)
            .map_or(self.attrs.len(), |(at, _)| *at);
        if let Some((file, start)) = &self.file {
            let offset = at
                .saturating_mul(size_of::<Record>())
                .saturating_add(*start);
            file.write_all_at(Record { nodeid, attr }.as_bytes(), offset as u64)?;
        }
        self.attrs.insert(nodeid, (at, attr));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    use famfs_media::{path_bytes, Body, Entry, MkdirEntry};

    use crate::log::Store;
    use crate::server::logplay::advance;
    use crate::server::tests::read;

    #[test]
    fn changes_outlive_their_server() {
        let devices: Vec<PathBuf> = vec!["/dev/dax1.0".into(), "/dev/dax0.0".into()];
        let mut changed = Changed {
            time: 5,
            ..Changed::default()
        };
        let fd = changed.keep(&devices).unwrap();
        let adopt = || Changed::adopt(fd.try_clone().unwrap()).unwrap();
        let attr = |mode| Attr {
            mode,
            ..Attr::default()
        };
        for (nodeid, mode) in [(16, 1), (20, 2), (16, 3)] {
            changed.set(nodeid, attr(mode)).unwrap();
        }
        let (mut heir, paths) = adopt();
        assert_eq!((heir.time, paths), (5, devices));
        assert_eq!(heir.get(16).map(|attr| attr.mode), Some(3));
        heir.set(21, attr(4)).unwrap();
        let (heir, _) = adopt();
        let modes = [16, 20, 21, 22].map(|nodeid| heir.get(nodeid).map(|attr| attr.mode));
        assert_eq!(modes, [Some(3), Some(2), Some(4), None]);
    }

    #[test]
    fn another_version_is_refused() {
        let fd = Changed::default().keep(&[]).unwrap();
        let file = File::from(fd.try_clone().unwrap());
        file.write_all_at(&[2], 7).unwrap();
        let error = Changed::adopt(fd).unwrap_err();
        assert!(error.to_string().contains("of another version"), "{error}");
    }

    #[test]
    fn the_copy_is_replayed_as_the_log_was() {
        let superblock = Superblock::parse(&read("media/superblock.bin")).unwrap();
        let log = read("media/log.bin");
        let header = LogHeader::parse(&log, superblock.log_len).unwrap();
        let copy = LogCopy::new(&superblock).unwrap();
        let (_, empty) = copy.replay(16 << 30).unwrap();
        assert_eq!(empty.next_index(), 0);
        let (half, all) = (header.next_index / 2, header.next_index);
        let middle = half as usize * ENTRY_BYTES;
        let (first, second) = log[HEADER_BYTES..][..all as usize * ENTRY_BYTES].split_at(middle);
        copy.follow(&header, 0, first).unwrap();
        let (_, replay) = copy.replay(16 << 30).unwrap();
        assert_eq!(replay.next_index(), half);
        copy.follow(&header, half, second).unwrap();
        let (same, replay) = copy.replay(16 << 30).unwrap();
        let original = Replay::of_log(&superblock, 16 << 30, &log).unwrap();
        assert_eq!(same, superblock);
        assert_eq!((replay.next_index(), replay.totals), (all, original.totals));
    }

    /// A log that another host changes as soon as it was read: its directory `a` is called `b` from then on.
    struct Changing(RefCell<Vec<u8>>);

    fn dir(name: &[u8]) -> [u8; ENTRY_BYTES] {
        let body = Body::Mkdir(MkdirEntry {
            uid: 0,
            gid: 0,
            mode: 0o755,
            path: path_bytes(name),
        });
        Entry { seqnum: 0, body }.encode()
    }

    impl Store for Changing {
        fn read(&self, at: usize, out: &mut [u8]) -> io::Result<()> {
            let mut bytes = self.0.borrow_mut();
            out.copy_from_slice(&bytes[at..at + out.len()]);
            if at + out.len() > HEADER_BYTES {
                bytes[HEADER_BYTES..].copy_from_slice(&dir(b"b"));
            }
            Ok(())
        }
        fn write(&self, _: usize, _: &[u8]) -> io::Result<()> {
            Err(io::ErrorKind::PermissionDenied.into())
        }
        fn flush(&self, _: usize, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn invalidate(&self, _: usize, _: usize) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_copy_is_of_what_was_replayed() {
        let superblock = Superblock::parse(&read("media/superblock.bin")).unwrap();
        let header = LogHeader {
            next_seqnum: 1,
            next_index: 1,
            ..LogHeader::new(superblock.log_len)
        };
        let log = Changing(RefCell::new([&header.encode()[..], &dir(b"a")].concat()));
        let copy = LogCopy::new(&superblock).unwrap();
        let mut replay = Replay::new(&superblock, 16 << 30);
        advance(&mut replay, &superblock, &log, &copy).unwrap();
        let (_, successor) = copy.replay(16 << 30).unwrap();
        for name in [&b"a"[..], b"b"] {
            let found = [&replay, &successor].map(|replay| replay.tree.resolve(name).is_some());
            assert_eq!(found, [name == b"a"; 2]);
        }
    }
}
