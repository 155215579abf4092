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
    entry_offset, LogError, LogHeader, Replay, Superblock, ENTRY_BYTES, HEADER_BYTES,
    SUPERBLOCK_BYTES,
};
use rustix::fs::{memfd_create, MemfdFlags};
use zerocopy::{FromBytes as _, IntoBytes as _};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::log::PIECE;

/// Starts the file of the attributes. The last byte is a version, to change with either file's layout.
const MAGIC: [u8; 8] = *b"famfs\0\0\x01";

fn memfd(name: &str) -> io::Result<File> {
    Ok(memfd_create(name, MemfdFlags::CLOEXEC)?.into())
}

/// The superblock and behind it the log, up to the last entry that was read, without a gap: entries are announced when
/// they were written, and who shows them takes them from here.
#[derive(Debug)]
pub struct LogCopy {
    file: File,
    /// As in the file. The sequence number stays 0, which no reader looks at.
    header: LogHeader,
    /// Whether the last write has failed.
    failed: bool,
}

impl LogCopy {
    /// Of a file system of which nothing was read yet.
    pub fn new(superblock: &Superblock) -> anyhow::Result<Self> {
        let mut copy = Self {
            file: memfd("famfs-log")?,
            header: LogHeader::new(superblock.log_len),
            failed: false,
        };
        copy.write(0, &superblock.encode())?;
        copy.announce(0)?;
        Ok(copy)
    }

    /// The copy that a predecessor has left, and its replay on a device 0 of `device_size` bytes.
    pub fn adopt(fd: OwnedFd, device_size: u64) -> anyhow::Result<(Self, Superblock, Replay)> {
        let file = File::from(fd);
        let mut bytes = [0; SUPERBLOCK_BYTES + HEADER_BYTES];
        file.read_exact_at(&mut bytes, 0)
            .context("the predecessor's copy of the log")?;
        let (superblock, header) = bytes.split_at(SUPERBLOCK_BYTES);
        let superblock = Superblock::parse(superblock)?;
        let header = LogHeader::parse(header, superblock.log_len).map_err(LogError::from)?;
        let copy = Self {
            file,
            header,
            failed: false,
        };
        let replay = copy.replay(&superblock, device_size)?;
        Ok((copy, superblock, replay))
    }

    /// Replays all of it, on a device 0 of `device_size` bytes.
    pub fn replay(&self, superblock: &Superblock, device_size: u64) -> anyhow::Result<Replay> {
        let mut replay = Replay::new(superblock, device_size);
        for piece in self.pieces() {
            let (upto, bytes) = piece?;
            replay.advance(&upto, &bytes)?;
            if replay.next_index() < upto.next_index {
                let index = replay.next_index();
                anyhow::bail!("the copy of the log has no entry {index}: umount and mount instead");
            }
        }
        Ok(replay)
    }

    /// Index of the first entry that it does not have.
    pub fn next_index(&self) -> u64 {
        self.header.next_index
    }

    /// Writes `entries`, of which the first has this index, to be announced when all are written.
    pub fn put(&mut self, index: u64, entries: &[u8]) -> anyhow::Result<()> {
        let at = entry_offset(index).context("log entry index too large")?;
        self.write(at.saturating_add(SUPERBLOCK_BYTES as u64), entries)
    }

    /// Says that all entries below `next_index` were written.
    pub fn announce(&mut self, next_index: u64) -> anyhow::Result<()> {
        let header = LogHeader {
            next_index,
            ..self.header
        };
        self.write(SUPERBLOCK_BYTES as u64, &header.encode())?;
        self.header = header;
        Ok(())
    }

    /// All entries, piece by piece.
    fn pieces(&self) -> impl Iterator<Item = anyhow::Result<(LogHeader, Vec<u8>)>> + '_ {
        let mut start = 0_u64;
        std::iter::from_fn(move || {
            let from = start;
            start = self.header.next_index.min(from.saturating_add(PIECE));
            (from < start).then(|| self.piece(from, start))
        })
    }

    /// Entries `from..next_index`, with a header that announces no further ones.
    pub fn piece(&self, from: u64, next_index: u64) -> anyhow::Result<(LogHeader, Vec<u8>)> {
        let count = usize::try_from(next_index.saturating_sub(from))?;
        let mut bytes = vec![0; count.saturating_mul(ENTRY_BYTES)];
        let at = entry_offset(from).context("log entry index too large")?;
        self.file
            .read_exact_at(&mut bytes, at.saturating_add(SUPERBLOCK_BYTES as u64))
            .context("the copy of the log")?;
        let upto = LogHeader {
            next_index,
            ..self.header
        };
        Ok((upto, bytes))
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> anyhow::Result<()> {
        let written = self.file.write_all_at(bytes, at);
        if let (Err(error), false) = (&written, self.failed) {
            tracing::error!(
                "there is no room for a successor's copy of the log ({error}): new files are not shown until there is"
            );
        }
        self.failed = written.is_err();
        written.context("copying the log for a successor")
    }

    /// A descriptor for the successor.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
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
#[path = "kept_tests.rs"]
mod tests;
