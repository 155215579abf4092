// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What an inode keeps of its fmap: a [`Layout`] by value and an array of cells beside it.

use super::ALIGN;

/// The constant part of a built map. It is only meaningful together with the cells that
/// [`Fmap::build`](super::Fmap::build) filled.
#[derive(Clone, Copy)]
pub struct Layout {
    /// 1 to `i64::MAX`.
    pub(super) file_size: u64,
    pub(super) kind: Kind,
    /// Simple or interleaved extents, at least 1.
    pub(super) nextents: u32,
}

const _: () = assert!(size_of::<Layout>() <= 40);

/// How the cells are laid out. A target is a [`Cell`](super::extent::Cell) whose offset is that
/// of the extent minus the extent's place in the file: adding a file offset gives the device
/// offset.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// One simple extent of `len` bytes. No cells.
    Single { target: u64, len: u64 },
    /// Simple extents of `mib` MiB each, but for the last, which may be shorter; `mapped` bytes
    /// altogether. Cells: n targets.
    Uniform { index: Recip, mapped: u64, mib: u32 },
    /// Any simple extents. Cells: n targets, then n file offsets at which they end, both in the
    /// order of a [`tree`](super::tree).
    Mixed,
    /// One interleaved extent: the fields of a [`Stripe`], apart so that the enum's tag fits in
    /// between. Cells: one per strip, with its device offset.
    Interleaved {
        chunk_index: Recip,
        row: Recip,
        chunk: u32,
        nstrips: u16,
    },
    /// Several interleaved extents. Cells: n file offsets at which they end, n [`Head`]s, and one
    /// per strip.
    Striped { nstrips: u32 },
}

impl Layout {
    /// Bytes in the file: 1 to `i64::MAX`.
    #[inline]
    pub fn file_size(&self) -> u64 {
        self.file_size
    }

    /// Number of extents, simple or interleaved; at least 1.
    pub fn nextents(&self) -> u32 {
        self.nextents
    }

    /// How the map is resolved, in a word.
    pub fn kind(&self) -> &'static str {
        match self.kind {
            Kind::Single { .. } => "single",
            Kind::Uniform { .. } => "uniform",
            Kind::Mixed => "mixed",
            Kind::Interleaved { .. } => "interleaved",
            Kind::Striped { .. } => "striped",
        }
    }

    /// Number of cells that are in use, from the first on. The others may be given back.
    pub fn cells_len(&self) -> usize {
        let n = self.nextents as usize;
        match self.kind {
            Kind::Single { .. } => 0,
            Kind::Uniform { .. } => n,
            Kind::Mixed => n.saturating_mul(2),
            Kind::Interleaved { nstrips, .. } => usize::from(nstrips),
            Kind::Striped { nstrips } => n.saturating_mul(2).saturating_add(nstrips as usize),
        }
    }

    /// The file's size rounded up to [`ALIGN`]: no access and no mapping gets farther.
    pub(super) fn mapped_len(&self) -> u64 {
        round_up(self.file_size)
    }
}

/// The next multiple of [`ALIGN`], or the last one there is.
pub(super) fn round_up(bytes: u64) -> u64 {
    bytes.saturating_add(ALIGN - 1) & !(ALIGN - 1)
}

/// The ordinary number of bits in a [`Recip`]'s unit: positions are divided in MiB, because an
/// extent, a multiple of 2 MiB, then is never 1 unit, whose reciprocal doesn't fit.
pub(super) const MIB_SHIFT: u32 = 20;

/// Division of numbers below 2^43 by a constant from 2 to 2^21, without a division.
///
/// # Invariants
///
/// Holds r = ceil(2^64 / d). With e = r * d - 2^64, which is below d, floor(a * r / 2^64) is
/// floor(a / d + a * e / (d * 2^64)), and that is floor(a / d) as long as a * e < 2^64.
#[derive(Clone, Copy)]
pub(super) struct Recip(u64);

impl Recip {
    /// `None` if `d` is out of range.
    pub(super) fn new(d: u64) -> Option<Self> {
        // INVARIANT: floor((2^64 - 1) / d) + 1 is ceil(2^64 / d), for d >= 2 within 64 bits.
        (2..=1 << 21)
            .contains(&d)
            .then(|| u64::MAX.checked_div(d)?.checked_add(1))
            .flatten()
            .map(Self)
    }

    /// `a` divided by the constant, rounded down.
    #[inline]
    pub(super) fn divide(self, a: u64) -> u64 {
        (u128::from(a).wrapping_mul(u128::from(self.0)) >> 64) as u64
    }
}

/// The arithmetic of an interleaved extent.
#[derive(Clone, Copy)]
pub(super) struct Stripe {
    /// Divides by `chunk`, in MiB.
    pub(super) chunk_index: Recip,
    /// Divides by `2 * nstrips`.
    pub(super) row: Recip,
    /// Bytes taken from a strip before the next one's turn.
    pub(super) chunk: u32,
    pub(super) nstrips: u16,
}

/// Where a position within an interleaved extent lies.
pub(super) struct Place {
    /// Index of the strip.
    pub(super) strip: usize,
    /// Bytes from the start of the strip.
    pub(super) offset: u64,
    /// Bytes from here to the end of the chunk.
    pub(super) len: u64,
}

impl Stripe {
    /// `None` if `chunk` is below 2 MiB or `nstrips` is 0.
    pub(super) fn new(chunk: u32, nstrips: u16) -> Option<Self> {
        Some(Self {
            chunk_index: Recip::new(u64::from(chunk >> MIB_SHIFT))?,
            row: Recip::new(u64::from(nstrips).wrapping_mul(2))?,
            chunk,
            nstrips,
        })
    }

    /// Places `pos`, in bytes from the start of the extent, below 2^63.
    ///
    /// Nothing wraps: a chunk's index times the chunk size is at most `pos`, and the chunk's end
    /// is at most 2^32 farther.
    #[inline]
    pub(super) fn place(&self, pos: u64) -> Place {
        let chunk = u64::from(self.chunk);
        let index = self.chunk_index.divide(pos >> MIB_SHIFT);
        let row = self.row.divide(index << 1);
        let strip = index.wrapping_sub(row.wrapping_mul(u64::from(self.nstrips)));
        let in_chunk = pos.wrapping_sub(index.wrapping_mul(chunk));
        Place {
            strip: strip as usize,
            offset: row.wrapping_mul(chunk).wrapping_add(in_chunk),
            len: chunk.wrapping_sub(in_chunk),
        }
    }
}

/// One of several interleaved extents, as it is kept in a cell.
///
/// # Invariants
///
/// `nstrips` is at most [`MAX_STRIPS`](super::MAX_STRIPS), and `first` is below 2^24: a message of
/// [`MAX_MESSAGE`](super::MAX_MESSAGE) bytes has fewer strips. So they share the lower half of
/// the cell.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub(super) chunk: u32,
    pub(super) nstrips: u16,
    /// Index of its first strip among those of all extents.
    pub(super) first: u32,
}

impl Head {
    pub(super) fn pack(self) -> u64 {
        (u64::from(self.chunk) << 32) | (u64::from(self.first) << 8) | u64::from(self.nstrips)
    }

    pub(super) fn unpack(cell: u64) -> Self {
        Self {
            chunk: (cell >> 32) as u32,
            nstrips: u16::from(cell as u8),
            first: (cell as u32) >> 8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Recip;

    /// The worst dividends are the last one below a multiple and the multiple, as high as can be.
    #[test]
    fn reciprocals_are_exact_in_their_whole_range() {
        let small = 2..5000u64;
        let large = (0..5000).map(|i| (1 << 21) - i);
        let others = (1..5000).map(|i| 419 * i);
        for d in small.chain(large).chain(others) {
            let recip = Recip::new(d);
            let most = (1u64 << 43) - 1;
            let highest = most - most % d;
            for a in [0, 1, d - 1, d, d + 1, highest - 1, highest, most] {
                let quotient = recip.map(|recip| recip.divide(a));
                assert_eq!(quotient, Some(a / d), "{a} / {d}");
            }
        }
        for d in [0, 1, (1 << 21) + 1, u64::MAX] {
            assert!(Recip::new(d).is_none());
        }
    }
}
