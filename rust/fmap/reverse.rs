// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! From device memory to file ranges, for memory failure; and the listing of a map.

use core::ops::Range;

use super::{
    extent::{
        Cell,
        Extent,
        Strips, //
    },
    layout::{
        Kind,
        Layout,
        MIB_SHIFT, //
    },
    tree, //
};

impl Layout {
    /// The extents in the order of the file. The one of an interleaved map is given the length of
    /// the file, rounded up to [`ALIGN`](super::ALIGN).
    pub fn extents<'a>(&self, cells: &'a [u64]) -> impl Iterator<Item = Extent<'a>> + 'a {
        let layout = *self;
        let len = self.nextents as usize;
        let mixed = matches!(self.kind, Kind::Mixed);
        let mut start = 0;
        let mut node = if mixed { tree::first(len) } else { 1 };
        core::iter::from_fn(move || {
            let i = node.checked_sub(1).filter(|i| *i < len)?;
            let extent = layout.extent(cells, i, start)?;
            start = extent.file.end;
            node = if mixed {
                tree::next(node, len)
            } else {
                node.saturating_add(1)
            };
            Some(extent)
        })
    }

    /// The ranges of the file that lie in the range `dev`, in bytes, of the device in `slot`.
    /// They are in order, none touches the next one, and none goes beyond the file's size rounded
    /// up to [`ALIGN`](super::ALIGN).
    pub fn file_ranges<'a>(
        &self,
        cells: &'a [u64],
        slot: u16,
        dev: Range<u64>,
    ) -> impl Iterator<Item = Range<u64>> + 'a {
        let mapped = self.mapped_len();
        // An extent may go far beyond the end of the file, and has no pieces there.
        let pieces = self
            .extents(cells)
            .take_while(move |extent| extent.file.start < mapped)
            .flat_map(move |extent| extent.cut(mapped).pieces(slot, dev.clone()));
        Coalesce {
            pieces,
            pending: None,
        }
    }

    /// The extent whose cells have index `i`, and which follows the byte `start` of the file.
    fn extent<'a>(&self, cells: &'a [u64], i: usize, start: u64) -> Option<Extent<'a>> {
        match self.kind {
            Kind::Single { target, len } => Extent::simple(start..len, target),
            Kind::Uniform { mapped, mib, .. } => {
                let end = start.checked_add(u64::from(mib) << MIB_SHIFT)?;
                Extent::simple(start..end.min(mapped), *cells.get(i)?)
            }
            Kind::Mixed => {
                let (targets, ends) = cells.split_at_checked(self.nextents as usize)?;
                Extent::simple(start..*ends.get(i)?, *targets.get(i)?)
            }
            Kind::Interleaved { chunk, nstrips, .. } => Some(Extent {
                file: start..self.mapped_len(),
                chunk: u64::from(chunk),
                strips: Strips::many(cells.get(..usize::from(nstrips))?),
            }),
            Kind::Striped { .. } => {
                let (_, end, stripe, strips) = self.stripe(cells, i)?;
                Some(Extent {
                    file: start..end,
                    chunk: u64::from(stripe.chunk),
                    strips: Strips::many(strips),
                })
            }
        }
    }
}

impl<'a> Extent<'a> {
    fn simple(file: Range<u64>, target: u64) -> Option<Self> {
        let target = Cell(target);
        let offset = target.offset().wrapping_add(file.start);
        Some(Self {
            chunk: file.end.checked_sub(file.start)?,
            file,
            strips: Strips::one(target.slot(), offset),
        })
    }

    /// The part before the byte `end` of the file.
    fn cut(mut self, end: u64) -> Self {
        self.file.end = self.file.end.min(end);
        self
    }

    /// The file ranges, in order, of the chunks or parts of chunks within `dev`.
    fn pieces(self, slot: u16, dev: Range<u64>) -> impl Iterator<Item = Range<u64>> + 'a {
        let chunks = self
            .rows_hit(slot, &dev)
            .and_then(|rows| self.chunks_of(rows));
        chunks
            .unwrap_or(0..0)
            .filter_map(move |index| self.piece(index, slot, &dev))
    }

    /// The rows, across all strips, that hold all chunks within `dev`.
    fn rows_hit(&self, slot: u16, dev: &Range<u64>) -> Option<Range<u64>> {
        let mut rows: Option<Range<u64>> = None;
        for (strip, offset) in (0..self.strips.count()).filter_map(|i| self.strips.get(i)) {
            if strip != slot || dev.end <= offset || dev.is_empty() {
                continue;
            }
            let first = dev.start.saturating_sub(offset).checked_div(self.chunk)?;
            let end = dev.end.saturating_sub(offset).div_ceil(self.chunk);
            rows = Some(match rows {
                Some(rows) => rows.start.min(first)..rows.end.max(end),
                None => first..end,
            });
        }
        rows
    }

    /// The chunks of the file in these rows.
    fn chunks_of(&self, rows: Range<u64>) -> Option<Range<u64>> {
        let nstrips = self.strips.count() as u64;
        let all = self
            .file
            .end
            .checked_sub(self.file.start)?
            .div_ceil(self.chunk);
        let end = rows.end.saturating_mul(nstrips).min(all);
        Some(rows.start.saturating_mul(nstrips)..end)
    }

    /// The file range that chunk `index` has in `dev`, if any.
    fn piece(&self, index: u64, slot: u16, dev: &Range<u64>) -> Option<Range<u64>> {
        let nstrips = self.strips.count() as u64;
        let strip = index.checked_rem(nstrips)?;
        let (at, offset) = self.strips.get(strip as usize)?;
        if at != slot {
            return None;
        }
        let row = index.checked_div(nstrips)?;
        let dev_start = offset.checked_add(row.checked_mul(self.chunk)?)?;
        let file_start = self
            .file
            .start
            .checked_add(index.checked_mul(self.chunk)?)?;
        let len = self.chunk.min(self.file.end.checked_sub(file_start)?);
        let from = dev.start.saturating_sub(dev_start);
        let to = dev.end.saturating_sub(dev_start).min(len);
        (from < to).then(|| file_start.saturating_add(from)..file_start.saturating_add(to))
    }
}

/// Joins ranges that touch.
struct Coalesce<I> {
    pieces: I,
    pending: Option<Range<u64>>,
}

impl<I: Iterator<Item = Range<u64>>> Iterator for Coalesce<I> {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Range<u64>> {
        let mut joined = self.pending.take().or_else(|| self.pieces.next())?;
        for piece in self.pieces.by_ref() {
            if piece.start != joined.end {
                self.pending = Some(piece);
                break;
            }
            joined.end = piece.end;
        }
        Some(joined)
    }
}
