// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! From a checked message to what an inode keeps.

use zerocopy::{
    FromBytes,
    IntoBytes, //
};

use super::{
    error::FmapError,
    extent::{
        Cell,
        DevIndex,
        DevRange, //
    },
    layout::{
        round_up,
        Head,
        Kind,
        Layout,
        Recip,
        Stripe,
        MIB_SHIFT, //
    },
    parse::{
        Fmap,
        Iext, //
    },
    sort::sort,
    tree,
    wire,
    ALIGN, //
};

impl<'a> Fmap<'a> {
    /// Number of cells that [`build`](Self::build) works in. [`Layout::cells_len`] says how many
    /// of them stay in use.
    pub fn cells_len(&self) -> usize {
        let kept = match self.iexts.len() {
            0 | 1 => 0,
            n => n.saturating_mul(2).saturating_add(self.nranges()),
        };
        match self.nranges() {
            1 if self.iexts.len() == 0 => 0,
            n => n.saturating_mul(2).max(kept),
        }
    }

    /// Fills `cells`, at least [`cells_len`](Self::cells_len) of them, for use with the layout
    /// that is returned. Fails if two extents share memory.
    ///
    /// `slot_of` turns the message's number of a device into the caller's, which
    /// [`resolve`](Layout::resolve) will answer with.
    pub fn build(
        &self,
        mut slot_of: impl FnMut(DevIndex) -> Option<u16>,
        cells: &mut [u64],
    ) -> Result<Layout, FmapError> {
        let mut slot_of = |range: DevRange| {
            slot_of(range.index).ok_or(FmapError::UnknownDevice(u64::from(range.index.0)))
        };
        let too_few = FmapError::CellsTooFew(cells.len() as u64);
        let cells = cells.get_mut(..self.cells_len()).ok_or(too_few)?;
        self.check_overlap(&mut slot_of, cells)?;
        let kind = match self.simple {
            [] => self.build_interleaved(&mut slot_of, cells)?,
            [one] => {
                let range = DevRange::read(one);
                Kind::Single {
                    target: Cell::new(slot_of(range)?, range.offset).0,
                    len: range.len,
                }
            }
            simple => build_simple(simple, &mut slot_of, cells)?,
        };
        Ok(Layout {
            file_size: self.file_size,
            kind,
            nextents: self.nextents(),
        })
    }

    /// Sorts the ranges by their place, in `scratch`: two words for each, namely slot and offset,
    /// and length, in units of [`ALIGN`].
    fn check_overlap(
        &self,
        mut slot_of: impl FnMut(DevRange) -> Result<u16, FmapError>,
        scratch: &mut [u64],
    ) -> Result<(), FmapError> {
        /// An offset has 43 bits and may be followed by a length that makes it 2^43.
        const SLOT_SHIFT: u32 = 48;
        if self.nranges() == 1 {
            return Ok(());
        }
        let too_few = FmapError::CellsTooFew(scratch.len() as u64);
        let spans = scratch.as_mut_bytes();
        let (spans, _) =
            <[[u64; 2]]>::mut_from_prefix_with_elems(spans, self.nranges()).map_err(|_| too_few)?;
        for (span, range) in spans.iter_mut().zip(self.ranges()) {
            let slot = u64::from(slot_of(range)?);
            *span = [
                (slot << SLOT_SHIFT) | (range.offset / ALIGN),
                range.len / ALIGN,
            ];
        }
        if !spans.is_sorted() {
            sort(spans);
        }
        for ([start, len], [next, _]) in spans.iter().zip(spans.iter().skip(1)) {
            if start.wrapping_add(*len) > *next {
                let offset = next & ((1 << SLOT_SHIFT) - 1);
                return Err(FmapError::Overlap(offset.wrapping_mul(ALIGN)));
            }
        }
        Ok(())
    }

    fn build_interleaved(
        &self,
        mut slot_of: impl FnMut(DevRange) -> Result<u16, FmapError>,
        cells: &mut [u64],
    ) -> Result<Kind, FmapError> {
        let too_few = FmapError::CellsTooFew(cells.len() as u64);
        let several = self.iexts.len() > 1;
        let heads_len = if several { self.iexts.len() } else { 0 };
        let (ends, rest) = cells.split_at_mut_checked(heads_len).ok_or(too_few)?;
        let (heads, strips) = rest.split_at_mut_checked(heads_len).ok_or(too_few)?;
        for (cell, range) in strips.iter_mut().zip(self.ranges()) {
            *cell = Cell::new(slot_of(range)?, range.offset).0;
        }
        if !several {
            return self
                .iexts
                .clone()
                .next()
                .and_then(interleaved)
                .ok_or(too_few);
        }
        let (mut end, mut first) = (0u64, 0u32);
        for ((cell, head), iext) in ends.iter_mut().zip(heads).zip(self.iexts.clone()) {
            // Only the last one may end off a boundary, behind the end of the file or in its
            // last page: what the file's last access needs is mapped.
            end = end.saturating_add(iext.nbytes);
            *cell = round_up(end);
            let nstrips = iext.strips.len() as u16;
            let chunk = iext.chunk;
            *head = Head {
                chunk,
                nstrips,
                first,
            }
            .pack();
            first = first.saturating_add(u32::from(nstrips));
        }
        Ok(Kind::Striped { nstrips: first })
    }
}

fn interleaved(iext: Iext<'_>) -> Option<Kind> {
    let nstrips = u16::try_from(iext.strips.len()).ok()?;
    let Stripe {
        chunk_index,
        row,
        chunk,
        nstrips,
    } = Stripe::new(iext.chunk, nstrips)?;
    Some(Kind::Interleaved {
        chunk_index,
        row,
        chunk,
        nstrips,
    })
}

/// Builds two or more simple extents.
fn build_simple(
    simple: &[wire::SimpleExt],
    mut slot_of: impl FnMut(DevRange) -> Result<u16, FmapError>,
    cells: &mut [u64],
) -> Result<Kind, FmapError> {
    let too_few = FmapError::CellsTooFew(cells.len() as u64);
    let mut end = 0u64;
    let placed = simple.iter().map(DevRange::read).map(|range| {
        let target = Cell::new(slot_of(range)?, range.offset.wrapping_sub(end));
        end = end.saturating_add(range.len);
        Ok((target.0, end))
    });
    if let Some(kind) = uniform(simple) {
        for (cell, placed) in cells.iter_mut().zip(placed) {
            (*cell, _) = placed?;
        }
        return Ok(kind);
    }
    let len = simple.len();
    let (targets, ends) = cells.split_at_mut_checked(len).ok_or(too_few)?;
    let mut node = tree::first(len);
    for placed in placed {
        let i = node.saturating_sub(1);
        let target = targets.get_mut(i).ok_or(too_few)?;
        (*target, *ends.get_mut(i).ok_or(too_few)?) = placed?;
        node = tree::next(node, len);
    }
    Ok(Kind::Mixed)
}

/// The layout for extents of one length, of which the last may be shorter. Extents above 2 TiB
/// are left to the general one.
fn uniform(simple: &[wire::SimpleExt]) -> Option<Kind> {
    let (last, others) = simple.split_last()?;
    let len = others.first()?.se_len.get();
    if last.se_len.get() > len || others.iter().any(|ext| ext.se_len.get() != len) {
        return None;
    }
    let mib = len >> MIB_SHIFT;
    let mapped = len.checked_mul(others.len() as u64)?;
    Some(Kind::Uniform {
        index: Recip::new(mib)?,
        mapped: mapped.checked_add(last.se_len.get())?,
        mib: u32::try_from(mib).ok()?,
    })
}
