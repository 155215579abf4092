// SPDX-License-Identifier: MIT OR Apache-2.0
//! Superblock and log of a file system, wherever they are: a mount, a dax device, or a plain file that holds a
//! device's first bytes.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::Context;
use famfs_fuse::Region;
use famfs_media::{
    entry_offset, LogError, LogHeader, Superblock, HEADER_BYTES, LOG_LEN_MIN, LOG_OFFSET,
    SUPERBLOCK_BYTES,
};

use crate::mounted::Mounted;
use crate::server::meta::MetaAccess;
use crate::{device, log, master};

/// A valid superblock, and the log as far as it has entries.
pub struct Image {
    /// Bytes of the superblock.
    pub superblock_bytes: Vec<u8>,
    /// The same, decoded.
    pub superblock: Superblock,
    /// Header and entries; shorter than the header says where a file ends early, empty on a secondary daxdev.
    pub log: Vec<u8>,
    /// Bytes of device 0.
    pub device_size: u64,
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
        Self::of_file(&file, meta.size()).with_context(|| path.display().to_string())
    }

    fn of_mount(mounted: &Mounted) -> anyhow::Result<Self> {
        let superblock = mounted.superblock.clone();
        let superblock_bytes = superblock.encode().to_vec();
        let log = log_of(&mounted.log()?, &superblock)?;
        Ok(Self {
            superblock_bytes,
            superblock,
            log,
            device_size: mounted.device_size()?,
        })
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
        let log = log_of(access.log(), &superblock)?;
        Ok(Self {
            superblock_bytes,
            superblock,
            log,
            device_size: dev.size,
        })
    }

    fn of_file(file: &File, len: u64) -> anyhow::Result<Self> {
        let superblock_bytes = read_some(file, 0, SUPERBLOCK_BYTES as u64)?;
        let superblock = master::parse(&superblock_bytes)?;
        let header = read_some(file, LOG_OFFSET, HEADER_BYTES as u64)?;
        let entries = LogHeader::decode(&header).map_or(0, |header| header.next_index);
        let most = superblock.log_len.min(len);
        let log = match entry_offset(entries) {
            _ if superblock.is_secondary() => Vec::new(),
            Some(end) => read_some(file, LOG_OFFSET, end.min(most))?,
            None => read_some(file, LOG_OFFSET, most)?,
        };
        let device_size = if superblock.dax.size == 0 {
            len
        } else {
            superblock.dax.size
        };
        Ok(Self {
            superblock_bytes,
            superblock,
            log,
            device_size,
        })
    }

    /// The header, checked.
    pub fn header(&self) -> Result<LogHeader, LogError> {
        Ok(LogHeader::parse(&self.log, self.superblock.log_len)?)
    }

    /// Bytes of the entries.
    pub fn entries(&self) -> &[u8] {
        self.log.get(HEADER_BYTES..).unwrap_or_default()
    }
}

/// Header and entries of a mapped log; just the header when it is not valid.
fn log_of(region: &Region, sb: &Superblock) -> anyhow::Result<Vec<u8>> {
    if sb.is_secondary() {
        return Ok(Vec::new());
    }
    let mut bytes = log::read_fresh(region, 0, HEADER_BYTES)?;
    if let Ok(header) = LogHeader::parse(&bytes, sb.log_len) {
        bytes.extend(log::entries(region, 0, header.next_index)?);
    }
    Ok(bytes)
}

/// Up to `len` bytes at `at`, fewer where the file ends.
fn read_some(file: &File, at: u64, len: u64) -> anyhow::Result<Vec<u8>> {
    let left = file.metadata()?.len().saturating_sub(at);
    let mut out = vec![0; usize::try_from(len.min(left))?];
    file.read_exact_at(&mut out, at)?;
    Ok(out)
}
