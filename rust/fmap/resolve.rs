// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! From a file offset to device memory: the hot path of every fault, read and write.

use super::{
    extent::Cell,
    layout::{
        Head,
        Kind,
        Layout,
        Stripe,
        MIB_SHIFT, //
    },
    tree, //
};

/// Contiguous device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The device, by the slot that the builder of the map gave it.
    pub slot: u16,
    /// Bytes from the start of the device.
    pub offset: u64,
    /// Bytes, at least 1; up to the end of the extent or of the chunk, whether or not the file
    /// ends before.
    pub len: u64,
}

impl Run {
    /// `end` must be above `pos`, both of them file offsets within the extent of `target`.
    #[inline(always)]
    fn linear(target: u64, pos: u64, end: u64) -> Self {
        let target = Cell(target);
        Self {
            slot: target.slot(),
            offset: pos.wrapping_add(target.offset()),
            len: end.wrapping_sub(pos),
        }
    }

    /// Resolves `pos`, in bytes from the start of the extent that has these strips.
    #[inline(always)]
    fn striped(stripe: Stripe, strips: &[u64], pos: u64) -> Option<Self> {
        let place = stripe.place(pos);
        let strip = Cell(*strips.get(place.strip)?);
        Some(Self {
            slot: strip.slot(),
            offset: strip.offset().wrapping_add(place.offset),
            len: place.len,
        })
    }
}

impl Layout {
    /// The device memory behind the file from byte `pos` on; `None` at and past the end of file.
    ///
    /// `cells` must be those that were filled for this layout. With any others the answer is
    /// meaningless, and nothing worse.
    ///
    /// Takes constant time, but for maps of unequal extents and of several interleaved ones,
    /// where it is logarithmic.
    pub fn resolve(&self, cells: &[u64], pos: u64) -> Option<Run> {
        match self.kind {
            Kind::Striped { .. } => self.resolve_striped(cells, pos),
            _ => self.resolve_one(cells, pos),
        }
    }

    /// What [`resolve`](Self::resolve) says, unless there are several interleaved extents: then
    /// `None`. For where even a call counts.
    #[inline(always)]
    pub fn resolve_one(&self, cells: &[u64], pos: u64) -> Option<Run> {
        if pos >= self.file_size {
            return None;
        }
        match self.kind {
            Kind::Single { target, len } => Some(Run::linear(target, pos, len)),
            Kind::Uniform { index, mapped, mib } => {
                let index = index.divide(pos >> MIB_SHIFT);
                let target = *cells.get(index as usize)?;
                // At most pos plus the length of an extent, 2^41.
                let end = index.wrapping_add(1).wrapping_mul(u64::from(mib)) << MIB_SHIFT;
                Some(Run::linear(target, pos, end.min(mapped)))
            }
            Kind::Interleaved {
                chunk_index,
                row,
                chunk,
                nstrips,
            } => {
                let stripe = Stripe {
                    chunk_index,
                    row,
                    chunk,
                    nstrips,
                };
                Run::striped(stripe, cells, pos)
            }
            Kind::Mixed => self.resolve_mixed(cells, pos),
            Kind::Striped { .. } => None,
        }
    }

    #[inline(always)]
    fn resolve_mixed(&self, cells: &[u64], pos: u64) -> Option<Run> {
        // The last target is the word before the root.
        let tree = cells.get((self.nextents as usize).wrapping_sub(1)..)?;
        let node = tree::above(tree, pos);
        let target = *cells.get(node.wrapping_sub(1))?;
        Some(Run::linear(target, pos, *tree.get(node)?))
    }

    fn resolve_striped(&self, cells: &[u64], pos: u64) -> Option<Run> {
        if pos >= self.file_size {
            return None;
        }
        let ends = cells.get(..self.nextents as usize)?;
        let i = ends.partition_point(|end| *end <= pos);
        let (start, end, stripe, strips) = self.stripe(cells, i)?;
        let run = Run::striped(stripe, strips, pos.checked_sub(start)?)?;
        Some(Run {
            len: run.len.min(end.checked_sub(pos)?),
            ..run
        })
    }

    /// The `i`th of several interleaved extents: the file offsets of its start and end, its
    /// arithmetic and its strips.
    pub(super) fn stripe<'a>(
        &self,
        cells: &'a [u64],
        i: usize,
    ) -> Option<(u64, u64, Stripe, &'a [u64])> {
        let (ends, cells) = cells.split_at_checked(self.nextents as usize)?;
        let (heads, strips) = cells.split_at_checked(self.nextents as usize)?;
        let start = match i.checked_sub(1) {
            Some(before) => *ends.get(before)?,
            None => 0,
        };
        let head = Head::unpack(*heads.get(i)?);
        let strips = strips
            .get(head.first as usize..)?
            .get(..usize::from(head.nstrips))?;
        let stripe = Stripe::new(head.chunk, head.nstrips)?;
        Some((start, *ends.get(i)?, stripe, strips))
    }
}
