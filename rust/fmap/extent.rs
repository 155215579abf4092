// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Ranges of device memory, and what an extent looks like once it is built.

use core::ops::Range;

use super::{
    error::FmapError,
    wire,
    ALIGN, //
};

/// Bits of a cell below a device offset, which is a multiple of [`ALIGN`].
const LOW_BITS: u64 = ALIGN - 1;

/// The number by which messages call a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevIndex(pub u32);

/// A range of a device's memory, as a message names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevRange {
    /// The device.
    pub index: DevIndex,
    /// Bytes from the start of the device.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl DevRange {
    /// Reads a simple extent or a strip, without judging it.
    pub(super) fn read(ext: &wire::SimpleExt) -> Self {
        Self {
            index: DevIndex(ext.se_devindex.get()),
            offset: ext.se_offset.get(),
            len: ext.se_len.get(),
        }
    }

    /// Checks all that can be known without the device.
    pub(super) fn check(self) -> Result<Self, FmapError> {
        if self.index.0 > u32::from(u16::MAX) {
            return Err(FmapError::DeviceIndex(u64::from(self.index.0)));
        }
        if self.offset & LOW_BITS != 0 {
            return Err(FmapError::UnalignedOffset(self.offset));
        }
        if self.len == 0 {
            return Err(FmapError::EmptyExtent);
        }
        if self.len & LOW_BITS != 0 {
            return Err(FmapError::UnalignedLength(self.len));
        }
        if self.offset.checked_add(self.len).is_none() {
            return Err(FmapError::OffsetOverflow(self.offset));
        }
        Ok(self)
    }
}

/// A slot and a device offset in one word.
///
/// # Invariants
///
/// The offset is a multiple of [`ALIGN`], whose low bits hold the slot. It may stand for an
/// offset minus a file offset, modulo 2^64, both of them multiples of [`ALIGN`].
#[derive(Clone, Copy)]
pub(super) struct Cell(pub(super) u64);

impl Cell {
    /// `offset` must be a multiple of [`ALIGN`].
    pub(super) fn new(slot: u16, offset: u64) -> Self {
        // INVARIANT: the mask holds whatever the caller did.
        Self((offset & !LOW_BITS) | u64::from(slot))
    }

    #[inline]
    pub(super) fn slot(self) -> u16 {
        self.0 as u16
    }

    #[inline]
    pub(super) fn offset(self) -> u64 {
        self.0 & !LOW_BITS
    }
}

/// The strips of a built extent: slot and device offset of each.
#[derive(Clone, Copy)]
pub struct Strips<'a>(Kept<'a>);

#[derive(Clone, Copy)]
enum Kept<'a> {
    /// Of a simple extent: slot and offset.
    One(u16, u64),
    /// The cells of an interleaved extent.
    Many(&'a [u64]),
}

impl<'a> Strips<'a> {
    pub(super) fn one(slot: u16, offset: u64) -> Self {
        Self(Kept::One(slot, offset))
    }

    pub(super) fn many(cells: &'a [u64]) -> Self {
        Self(Kept::Many(cells))
    }

    /// Number of strips, 1 for a simple extent.
    pub fn count(&self) -> usize {
        match self.0 {
            Kept::One(..) => 1,
            Kept::Many(cells) => cells.len(),
        }
    }

    /// Slot and device offset, in bytes, of strip `i`.
    pub fn get(&self, i: usize) -> Option<(u16, u64)> {
        match self.0 {
            Kept::One(slot, offset) => (i == 0).then_some((slot, offset)),
            Kept::Many(cells) => {
                let cell = Cell(*cells.get(i)?);
                Some((cell.slot(), cell.offset()))
            }
        }
    }
}

/// An extent of a built map, for listings and for the reverse map.
#[derive(Clone)]
pub struct Extent<'a> {
    /// The bytes of the file that it maps. A multiple of [`ALIGN`] at both ends.
    pub file: Range<u64>,
    /// Bytes taken from a strip before the next one's turn; a simple extent is one chunk.
    pub chunk: u64,
    /// Where the chunks lie.
    pub strips: Strips<'a>,
}
