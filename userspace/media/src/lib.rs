// SPDX-License-Identifier: MIT OR Apache-2.0
//! The famfs on-media format: superblock, log, replay of the log into a
//! namespace, and allocation of space. Byte slices in, values out; no I/O.
//!
//! ```text
//! device 0:  0         2 MiB       2 MiB + log_len
//!            | superblock | log        | data in units of 2 MiB ...
//! others:    | superblock | data ...
//! ```
//!
//! Layouts and limits are those of docs/abi.md, section 2. Nothing read from
//! memory is trusted: another host wrote it.

mod alloc;
mod auset;
mod crc;
mod entry;
mod error;
mod field;
mod header;
mod map;
mod path;
mod replay;
mod space;
mod superblock;
mod tree;

pub use alloc::{AllocError, Interleave};
pub use auset::AuSet;
pub use entry::{AddDaxdev, Body, Entry, FileEntry, MkdirEntry, RawMap};
pub use error::{EntryError, Finding, HeaderError, LogError, Problem, Severity, SuperError};
pub use header::LogHeader;
pub use map::{Extent, Map};
pub use path::{check_new, path_bytes, PathError};
pub use replay::{Daxdev, Replay, Totals};
pub use space::Space;
pub use superblock::{PrimaryDax, Role, Superblock};
pub use tree::{Kind, Node, NodeId, Tree};

/// Allocation unit in bytes.
pub const ALLOC_UNIT: u64 = 0x20_0000;
/// Bytes at the start of every daxdev that hold its superblock.
pub const SUPERBLOCK_LEN: u64 = 0x20_0000;
/// Where the log begins on device 0.
pub const LOG_OFFSET: u64 = 0x20_0000;
/// Smallest and default log length.
pub const LOG_LEN_MIN: u64 = 8 << 20;
/// Smallest device that `mkfs.famfs` accepts.
pub const DEVICE_SIZE_MIN: u64 = 32 << 20;
/// Bytes of an encoded superblock.
pub const SUPERBLOCK_BYTES: usize = 200;
/// Bytes of an encoded log header.
pub const HEADER_BYTES: usize = 48;
/// Bytes of an encoded log entry.
pub const ENTRY_BYTES: usize = 544;
/// Most extents or strips that a log entry can hold.
pub const MAX_EXTENTS: usize = 16;
/// Bytes of a path in a log entry, its NUL included.
pub const PATH_BYTES: usize = 80;
/// Highest daxdev index that can be used: the wire carries it in 16 bits.
pub const MAX_DEVINDEX: u32 = 0xffff;

/// Offset of entry `index` from the start of the log.
pub fn entry_offset(index: u64) -> Option<u64> {
    index
        .checked_mul(ENTRY_BYTES as u64)?
        .checked_add(HEADER_BYTES as u64)
}

/// Bytes of `size` rounded up to whole allocation units, or `None` on overflow.
pub fn round_up_au(size: u64) -> Option<u64> {
    size.checked_next_multiple_of(ALLOC_UNIT)
}
