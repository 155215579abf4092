// SPDX-License-Identifier: MIT OR Apache-2.0
//! Superblock and log of a file system, wherever they are: a mount, a dax device, or a plain file that holds a
//! device's first bytes.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::Context;
use famfs_fuse::Region;
use famfs_media::{
    entry_offset, LogError, LogHeader, Superblock, ENTRY_BYTES, HEADER_BYTES, LOG_LEN_MIN,
    LOG_OFFSET, SUPERBLOCK_BYTES,
};
use rustix::fs::{seek, SeekFrom};
use rustix::io::Errno;

use crate::log::{self, PIECE};
use crate::mounted::Mounted;
use crate::server::meta::MetaAccess;
use crate::{device, master};

/// A valid superblock, and the log as far as it has entries.
pub struct Image {
    /// Bytes of the superblock.
    pub superblock_bytes: Vec<u8>,
    /// The same, decoded.
    pub superblock: Superblock,
    /// Bytes of the log header, which need not be valid; empty on a secondary daxdev, short where a file ends in it.
    pub header_bytes: Vec<u8>,
    /// Bytes of device 0.
    pub device_size: u64,
    log: Log,
}

/// Where the log is.
enum Log {
    Mount(Region),
    Device(MetaAccess),
    File(File),
}

/// Entries of a log.
pub struct Piece {
    /// Index of the first entry behind them.
    pub end: u64,
    /// Their bytes: fewer where a file ends, those of the first alone where it has a hole.
    pub bytes: Vec<u8>,
}

impl Image {
    /// Read from a path in a mount, a dax device, or a file.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        tracing::info!("reading superblock and log of {}", path.display());
        let meta = fs::metadata(path).with_context(|| path.display().to_string())?;
        if meta.is_dir() {
            return Self::of_mount(&Mounted::of(path)?);
        }
        if meta.file_type().is_char_device() {
            return Self::of_device(path);
        }
        let file = File::open(path).with_context(|| path.display().to_string())?;
        Self::of_file(file, meta.size()).with_context(|| path.display().to_string())
    }

    fn of_mount(mounted: &Mounted) -> anyhow::Result<Self> {
        let superblock = mounted.superblock.clone();
        let log = Log::Mount(mounted.log()?);
        Self::new(
            superblock.encode().to_vec(),
            superblock,
            mounted.device_size()?,
            log,
        )
    }

    fn of_device(path: &Path) -> anyhow::Result<Self> {
        let dev = device::open(path)?;
        if let Some(mounted) = Mounted::on_device(&dev.path)? {
            return Self::of_mount(&mounted);
        }
        dev.require_fsdev()?;
        let mut access = MetaAccess::open(&dev, LOG_LEN_MIN)?;
        let superblock_bytes = log::read_fresh(access.superblock(), 0, SUPERBLOCK_BYTES)?;
        let superblock =
            master::parse(&superblock_bytes).with_context(|| path.display().to_string())?;
        if superblock.log_len > LOG_LEN_MIN {
            drop(access);
            access = MetaAccess::open(&dev, superblock.log_len)?;
        }
        Self::new(superblock_bytes, superblock, dev.size, Log::Device(access))
    }

    fn of_file(file: File, len: u64) -> anyhow::Result<Self> {
        let superblock_bytes = read_some(&file, 0, SUPERBLOCK_BYTES as u64)?;
        let superblock = master::parse(&superblock_bytes)?;
        let device_size = if superblock.dax.size == 0 {
            len
        } else {
            superblock.dax.size
        };
        Self::new(superblock_bytes, superblock, device_size, Log::File(file))
    }

    fn new(
        superblock_bytes: Vec<u8>,
        superblock: Superblock,
        device_size: u64,
        log: Log,
    ) -> anyhow::Result<Self> {
        let header_bytes = match &log {
            _ if superblock.is_secondary() => Vec::new(),
            Log::Mount(region) => log::read_fresh(region, 0, HEADER_BYTES)?,
            Log::Device(access) => log::read_fresh(access.log(), 0, HEADER_BYTES)?,
            Log::File(file) => read_some(file, LOG_OFFSET, HEADER_BYTES as u64)?,
        };
        Ok(Self {
            superblock_bytes,
            superblock,
            header_bytes,
            device_size,
            log,
        })
    }

    /// The header, checked.
    pub fn header(&self) -> Result<LogHeader, LogError> {
        Ok(LogHeader::parse(
            &self.header_bytes,
            self.superblock.log_len,
        )?)
    }

    /// The entries that the header announces and the log has room for, in order, piece by piece: there may be more of
    /// them than fit into this host's memory.
    pub fn pieces(&self) -> impl Iterator<Item = anyhow::Result<Piece>> + '_ {
        let announced = LogHeader::decode(&self.header_bytes).map_or(0, |header| header.next_index);
        let room = LogHeader::new(self.superblock.log_len).last_index;
        let count = announced.min(room.saturating_add(1));
        let mut next = 0u64;
        std::iter::from_fn(move || {
            let from = next;
            let to = count.min(from.saturating_add(PIECE));
            if from >= to {
                return None;
            }
            let piece = match &self.log {
                Log::Mount(region) => whole_piece(region, from, to),
                Log::Device(access) => whole_piece(access.log(), from, to),
                Log::File(file) => piece_of_file(file, from, to, count),
            };
            next = piece.as_ref().map_or(count, |piece| piece.end);
            Some(piece)
        })
    }
}

fn whole_piece(region: &Region, from: u64, to: u64) -> anyhow::Result<Piece> {
    let bytes = log::entries(region, from, to)?;
    Ok(Piece { end: to, bytes })
}

/// Entries from `from` on of a log with `count`: up to `to`, or as many as there is a hole for.
fn piece_of_file(file: &File, from: u64, to: u64, count: u64) -> anyhow::Result<Piece> {
    let place = |index| entry_offset(index)?.checked_add(LOG_OFFSET);
    let (start, end) = place(from)
        .zip(place(to))
        .context("log entry index too large")?;
    let entry = ENTRY_BYTES as u64;
    let data = match seek(file, SeekFrom::Data(start)) {
        Ok(data) => data,
        // No data behind it, or no such place.
        Err(Errno::NXIO) => u64::MAX,
        Err(error) => return Err(io::Error::from(error).into()),
    };
    let in_hole = data.saturating_sub(start) / entry;
    if in_hole > 1 {
        let bytes = read_some(file, start, entry)?;
        let end = count.min(from.saturating_add(in_hole));
        return Ok(Piece { end, bytes });
    }
    let bytes = read_some(file, start, end.saturating_sub(start))?;
    // Nothing is behind the end of the file.
    let short = (bytes.len() as u64) < end.saturating_sub(start);
    Ok(Piece {
        end: if short { count } else { to },
        bytes,
    })
}

/// Up to `len` bytes at `at`, fewer where the file ends.
fn read_some(file: &File, at: u64, len: u64) -> anyhow::Result<Vec<u8>> {
    let left = file.metadata()?.len().saturating_sub(at);
    let mut out = vec![0; usize::try_from(len.min(left))?];
    file.read_exact_at(&mut out, at)?;
    Ok(out)
}
