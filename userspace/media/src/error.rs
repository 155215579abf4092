// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can be wrong with a superblock, a log and its entries.

use thiserror::Error;

use crate::path::PathError;
use crate::{HEADER_BYTES, MAX_EXTENTS, SUPERBLOCK_BYTES};

/// Why bytes are not a superblock.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // The messages say it.
pub enum SuperError {
    #[error("superblock: {0} bytes, {SUPERBLOCK_BYTES} needed")]
    TooShort(usize),
    #[error("superblock: magic is {0:#x}, not 0x87b282ff: there is no famfs here, `mkfs.famfs` makes one")]
    Magic(u64),
    #[error("superblock: version is {0}, only 48 is understood")]
    Version(u64),
    #[error("superblock: CRC is {stored:#x}, computed {computed:#x}")]
    Crc { stored: u64, computed: u64 },
    #[error("superblock: allocation unit is {0}, not 2 MiB or 4 KiB")]
    AllocUnit(u64),
    #[error("superblock: log offset is {0:#x}, not 0x200000")]
    LogOffset(u64),
    #[error("superblock: log length is {0}, not a power of two of at least 8 MiB")]
    LogLen(u64),
}

/// Why bytes are not the header of a log.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum HeaderError {
    #[error("log header: {0} bytes, {HEADER_BYTES} needed")]
    TooShort(usize),
    #[error("log header: magic is {0:#x}, not 0xbadcafef00d")]
    Magic(u64),
    #[error("log header: CRC is {stored:#x}, computed {computed:#x}")]
    Crc { stored: u64, computed: u64 },
    #[error("log header: log length is {header}, the superblock says {superblock}")]
    LogLen { header: u64, superblock: u64 },
    #[error("log header: last index is {stored}, a log of this length has {expected}")]
    LastIndex { stored: u64, expected: u64 },
    #[error("log header: next index is {next}, beyond the last index {last}")]
    NextIndex { next: u64, last: u64 },
}

/// An entry that was not written whole, or not at this place.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum EntryError {
    #[error("sequence number is {found}")]
    Seqnum { found: u64 },
    #[error("CRC is {stored:#x}, computed {computed:#x}")]
    Crc { stored: u64, computed: u64 },
    #[error("the log ends before it")]
    Missing,
}

/// Why a log can not be replayed or appended to.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum LogError {
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error("log entry {index}: {error}")]
    Entry { index: u64, error: EntryError },
    #[error("log: next index went from {known} back to {found}")]
    Shrunk { known: u64, found: u64 },
    #[error("log header: next sequence number {seqnum} and next index {index} disagree")]
    Counters { seqnum: u64, index: u64 },
    #[error("log full: {used} of {capacity} entries used, {wanted} more wanted")]
    Full {
        used: u64,
        capacity: u64,
        wanted: u64,
    },
}

/// What became of an entry with a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Applied all the same.
    Note,
    /// Not applied, as upstream does not apply it either; harmless.
    Ignored,
    /// Not applied: it could do harm or makes no sense.
    Refused,
}

/// What is wrong with an entry that was written whole.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Problem {
    #[error("broken: {0}")]
    Broken(EntryError),
    #[error("type DELETE is not implemented by any reader")]
    Delete,
    #[error("unknown type {0}")]
    UnknownType(u32),
    #[error("path: {0}")]
    Path(#[from] PathError),
    #[error("path: bytes after its NUL are not zero")]
    PathTail,
    #[error("path exists already since entry {first}; the first one stays")]
    Duplicate { first: u64 },
    #[error("path exists already as a file since entry {first}")]
    NotDirectory { first: u64 },
    #[error("path: its parent directory does not exist")]
    NoParent,
    #[error("size {0} is not possible")]
    Size(u64),
    #[error("unknown extent type {0}")]
    ExtType(u32),
    #[error("nextents is {0}, not 1 to {MAX_EXTENTS}")]
    Nextents(u32),
    #[error("niext is {0}, not 1")]
    Niext(u32),
    #[error("nstrips is {0}, not 1 to {MAX_EXTENTS}")]
    Nstrips(u64),
    #[error("chunk size {0:#x} is not a multiple of 2 MiB, or zero")]
    ChunkSize(u64),
    #[error("extent {extent}: no daxdev has index {devindex}")]
    Device { extent: usize, devindex: u64 },
    #[error("extent {extent}: offset {offset:#x} is not a multiple of 2 MiB")]
    Offset { extent: usize, offset: u64 },
    #[error("extent {extent}: length {len:#x} is not a multiple of 2 MiB, or zero")]
    Len { extent: usize, len: u64 },
    #[error("extent {extent}: offset {offset:#x} lies in the superblock or the log")]
    Reserved { extent: usize, offset: u64 },
    #[error("extent {extent}: {offset:#x}+{len:#x} ends past the device ({size:#x} bytes)")]
    PastDevice {
        extent: usize,
        offset: u64,
        len: u64,
        size: u64,
    },
    #[error("extents hold {mapped} bytes, the file has {size}")]
    Short { mapped: u64, size: u64 },
    #[error("strip {strip}: {len:#x} bytes, {needed:#x} needed")]
    ShortStrip { strip: usize, len: u64, needed: u64 },
    #[error("extent {extent}: {units} of its units at {offset:#x} are in use already")]
    Overlap {
        extent: usize,
        offset: u64,
        units: u64,
    },
    #[error("daxdev index is {0}, not a new one from 1 to 65535")]
    DevIndex(u32),
}

impl Problem {
    /// What becomes of an entry that has this problem.
    pub fn severity(&self) -> Severity {
        match self {
            Self::PathTail => Severity::Note,
            Self::Delete | Self::UnknownType(_) | Self::Duplicate { .. } => Severity::Ignored,
            _ => Severity::Refused,
        }
    }
}

/// A problem and where it is.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{} {}: {problem}{}", self.noun(), self.place(), self.suffix())]
pub struct Finding {
    /// Index of the entry in the log.
    pub index: u64,
    /// Index of the last one, where entries in a row are broken: `problem` is that of the first then. Else `index`.
    pub last: u64,
    /// Its path, as far as it has one.
    pub path: Option<String>,
    /// What is wrong.
    pub problem: Problem,
}

impl Finding {
    /// How many entries it is about.
    pub fn count(&self) -> u64 {
        self.last.saturating_sub(self.index).saturating_add(1)
    }

    /// Which entries it is about: an index, or the first and the last.
    pub fn place(&self) -> String {
        match self.count() {
            1 => self.index.to_string(),
            _ => format!("{} to {}", self.index, self.last),
        }
    }

    fn noun(&self) -> &'static str {
        match self.count() {
            1 => "log entry",
            _ => "log entries",
        }
    }

    fn suffix(&self) -> String {
        self.path
            .as_ref()
            .map_or_else(String::new, |path| format!(" ({path:?})"))
    }
}
