// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Why a message was refused.

use core::fmt;

/// `EINVAL`, as a positive number.
const EINVAL: i32 = 22;
/// `ENODEV`, as a positive number.
const ENODEV: i32 = 19;
/// `EFBIG`, as a positive number.
const EFBIG: i32 = 27;
/// `ERANGE`, as a positive number.
const ERANGE: i32 = 34;

/// The reason why a message was refused, with the value that was found wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FmapError {
    /// The message, of this many bytes, ends before what its header announces.
    Truncated(u64),
    /// The server announces a message of more than [`MAX_MESSAGE`](super::MAX_MESSAGE) bytes.
    MessageTooLarge(u64),
    /// The version of the format is not 1.
    Version(u64),
    /// The file type is none of those known.
    FileType(u64),
    /// The kind of extents is none of those known.
    ExtentType(u64),
    /// There is not a single extent.
    NoExtents,
    /// The file is empty; famfs has no such files.
    EmptyFile,
    /// The file is larger than any file can be.
    FileTooLarge(u64),
    /// The device index doesn't fit in 16 bits.
    DeviceIndex(u64),
    /// The caller knows no device of this index.
    UnknownDevice(u64),
    /// An extent's or strip's device offset is not a multiple of [`ALIGN`](super::ALIGN).
    UnalignedOffset(u64),
    /// An extent or strip is empty.
    EmptyExtent,
    /// An extent's or strip's length is not a multiple of [`ALIGN`](super::ALIGN).
    UnalignedLength(u64),
    /// An extent or strip at this device offset ends beyond the last address.
    OffsetOverflow(u64),
    /// The lengths of the extents add up to more than 64 bits; this one was too much.
    LengthOverflow(u64),
    /// The extents map this many bytes, which is less than the file's size.
    MapTooShort(u64),
    /// The chunk size is not a multiple of [`ALIGN`](super::ALIGN), or it is 0.
    ChunkSize(u64),
    /// The number of strips is 0 or above [`MAX_STRIPS`](super::MAX_STRIPS).
    StripCount(u64),
    /// An interleaved extent covers no byte of the file.
    EmptyStripe,
    /// An interleaved extent that is not the last ends off a multiple of
    /// [`ALIGN`](super::ALIGN).
    UnalignedStripe(u64),
    /// A strip of this length doesn't hold the chunks that fall on it.
    StripTooShort(u64),
    /// Two extents or strips share memory, from this device offset on.
    Overlap(u64),
    /// The caller's buffer, of this many cells, is too small for the map.
    CellsTooFew(u64),
    /// The answer about a device, of this many bytes, has the wrong size.
    DaxdevSize(u64),
    /// The device name is empty or has no end.
    DaxdevName,
    /// The server asks for a failure policy that there is not.
    DaxdevPolicy(u64),
}

impl FmapError {
    /// The name of the wire field, or of the argument, that is wrong.
    pub fn field(self) -> &'static str {
        match self {
            Self::Truncated(_) | Self::DaxdevSize(_) => "reply length",
            Self::MessageTooLarge(_) => "fmap_size",
            Self::Version(_) => "fmap_version",
            Self::FileType(_) => "file_type",
            Self::ExtentType(_) => "ext_type",
            Self::NoExtents => "nextents",
            Self::EmptyFile | Self::FileTooLarge(_) => "file_size",
            Self::DeviceIndex(_) | Self::UnknownDevice(_) => "se_devindex",
            Self::UnalignedOffset(_) | Self::OffsetOverflow(_) | Self::Overlap(_) => "se_offset",
            Self::EmptyExtent
            | Self::UnalignedLength(_)
            | Self::LengthOverflow(_)
            | Self::MapTooShort(_)
            | Self::StripTooShort(_) => "se_len",
            Self::ChunkSize(_) => "ie_chunk_size",
            Self::StripCount(_) => "ie_nstrips",
            Self::EmptyStripe | Self::UnalignedStripe(_) => "ie_nbytes",
            Self::CellsTooFew(_) => "cells",
            Self::DaxdevName => "name",
            Self::DaxdevPolicy(_) => "failure_policy",
        }
    }

    /// The value that was found in [`field`](Self::field).
    pub fn value(self) -> u64 {
        match self {
            Self::Truncated(v)
            | Self::MessageTooLarge(v)
            | Self::Version(v)
            | Self::FileType(v)
            | Self::ExtentType(v)
            | Self::FileTooLarge(v)
            | Self::DeviceIndex(v)
            | Self::UnknownDevice(v)
            | Self::UnalignedOffset(v)
            | Self::UnalignedLength(v)
            | Self::OffsetOverflow(v)
            | Self::LengthOverflow(v)
            | Self::MapTooShort(v)
            | Self::ChunkSize(v)
            | Self::StripCount(v)
            | Self::UnalignedStripe(v)
            | Self::StripTooShort(v)
            | Self::Overlap(v)
            | Self::CellsTooFew(v)
            | Self::DaxdevSize(v)
            | Self::DaxdevPolicy(v) => v,
            Self::NoExtents
            | Self::EmptyFile
            | Self::EmptyExtent
            | Self::EmptyStripe
            | Self::DaxdevName => 0,
        }
    }

    /// What is wrong with [`field`](Self::field), as words that follow its name.
    fn reason(self) -> &'static str {
        match self {
            Self::Truncated(_) => "is shorter than what the header announces",
            Self::MessageTooLarge(_) => "is above 16 MiB",
            Self::Version(_) => "is not 1",
            Self::FileType(_) => "is not 0 (regular), 1 (superblock) or 2 (log)",
            Self::ExtentType(_) => "is not 0 (simple) or 1 (interleaved)",
            Self::NoExtents | Self::EmptyFile | Self::EmptyExtent | Self::EmptyStripe => "is zero",
            Self::FileTooLarge(_) => "is above the largest file size",
            Self::DeviceIndex(_) => "is above 65535",
            Self::UnknownDevice(_) => "names no device of this mount",
            Self::UnalignedOffset(_) | Self::UnalignedLength(_) | Self::UnalignedStripe(_) => {
                "is not a multiple of 2 MiB"
            }
            Self::OffsetOverflow(_) => "plus the length exceeds 64 bits",
            Self::LengthOverflow(_) => "makes the sum of lengths exceed 64 bits",
            Self::MapTooShort(_) => "summed up is less than the file's size",
            Self::ChunkSize(_) => "is not a positive multiple of 2 MiB",
            Self::StripCount(_) => "is not between 1 and 32",
            Self::StripTooShort(_) => "doesn't hold the chunks that fall on the strip",
            Self::Overlap(_) => "lies inside another extent of the same file",
            Self::CellsTooFew(_) => "are too few for the map",
            Self::DaxdevSize(_) => "is not 280",
            Self::DaxdevName => "is empty or not terminated",
            Self::DaxdevPolicy(_) => "is not 0 (none), 1 (device) or 2 (range)",
        }
    }

    /// The error number for system calls, positive.
    pub fn errno(self) -> i32 {
        match self {
            Self::NoExtents => ERANGE,
            Self::MessageTooLarge(_) => EFBIG,
            Self::UnknownDevice(_) => ENODEV,
            _ => EINVAL,
        }
    }
}

impl fmt::Display for FmapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({:#x}) {}",
            self.field(),
            self.value(),
            self.reason()
        )
    }
}

impl core::error::Error for FmapError {}
