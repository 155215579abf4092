// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The fmap in the plainest terms: lists, walks, and numbers that can't overflow. Written from
//! docs/abi.md, it shares no code with what it is compared to.

#![allow(
    dead_code,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use std::ops::Range;

use famfs_fmap::{parse, wanted_size, DevIndex, Layout};

pub const UNIT: u128 = 2 << 20;

/// Strips used in turns; a simple extent is a single strip with a single chunk.
#[derive(Clone, Debug)]
pub struct Extent {
    pub chunk: u128,
    pub nbytes: u128,
    /// Device, offset, length.
    pub strips: Vec<(u32, u128, u128)>,
}

#[derive(Clone, Debug)]
pub struct Model {
    pub file_size: u128,
    pub interleaved: bool,
    pub extents: Vec<Extent>,
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], i32> {
        let (head, rest) = self.0.split_first_chunk().ok_or(22)?;
        self.0 = rest;
        Ok(*head)
    }
    fn u32(&mut self) -> Result<u32, i32> {
        self.take().map(u32::from_ne_bytes)
    }
    fn u64(&mut self) -> Result<u128, i32> {
        self.take().map(u64::from_ne_bytes).map(u128::from)
    }
    fn range(&mut self) -> Result<(u32, u128, u128), i32> {
        let (dev, _, offset, len) = (self.u32()?, self.u32()?, self.u64()?, self.u64()?);
        let good = dev <= 65535 && offset % UNIT == 0 && len % UNIT == 0 && len > 0;
        if !good || offset + len > u128::from(u64::MAX) {
            return Err(22);
        }
        Ok((dev, offset, len))
    }
}

/// Decodes a message, or says with which errno to refuse it.
pub fn decode(message: &[u8]) -> Result<Model, i32> {
    let mut reader = Reader(message);
    if message.len() > 16 << 20 {
        return Err(27);
    }
    let [file_type, _, v0, v1] = reader.take()?;
    let (ext_type, nextents) = (reader.u32()?, reader.u32()?);
    let (_, file_size, _) = (reader.u32()?, reader.u64()?, reader.u64()?);
    if u16::from_ne_bytes([v0, v1]) != 1 {
        return Err(22);
    }
    if nextents == 0 {
        return Err(34);
    }
    if file_size == 0 || file_size >= 1 << 63 || file_type > 2 || ext_type > 1 {
        return Err(22);
    }
    let mut extents = Vec::new();
    for i in 0..nextents {
        if ext_type == 0 {
            let range = reader.range()?;
            extents.push(Extent {
                chunk: range.2,
                nbytes: range.2,
                strips: vec![range],
            });
        } else {
            extents.push(decode_interleaved(&mut reader, i + 1 == nextents)?);
        }
    }
    let covered: u128 = extents.iter().map(|extent| extent.nbytes).sum();
    if covered < file_size || covered > u128::from(u64::MAX) {
        return Err(22);
    }
    let model = Model {
        file_size,
        interleaved: ext_type == 1,
        extents,
    };
    if model.overlaps() {
        return Err(22);
    }
    Ok(model)
}

fn decode_interleaved(reader: &mut Reader<'_>, last: bool) -> Result<Extent, i32> {
    let (nstrips, chunk) = (reader.u32()?, u128::from(reader.u32()?));
    let (nbytes, _) = (reader.u64()?, reader.u64()?);
    if !(1..=32).contains(&nstrips) || chunk == 0 || chunk % UNIT != 0 || nbytes == 0 {
        return Err(22);
    }
    if !last && nbytes % UNIT != 0 {
        return Err(22);
    }
    let strips: Vec<_> = (0..nstrips)
        .map(|_| reader.range())
        .collect::<Result<_, _>>()?;
    let chunks = nbytes.div_ceil(chunk);
    for (i, strip) in strips.iter().enumerate() {
        let before = (0..i as u128).len_below(chunks);
        let rows = (chunks - before).div_ceil(u128::from(nstrips));
        if strip.2 < rows * chunk {
            return Err(22);
        }
    }
    Ok(Extent {
        chunk,
        nbytes,
        strips,
    })
}

trait LenBelow {
    fn len_below(self, limit: u128) -> u128;
}

impl LenBelow for Range<u128> {
    /// How many of its numbers are below `limit`.
    fn len_below(self, limit: u128) -> u128 {
        self.end.min(limit) - self.start.min(limit)
    }
}

impl Model {
    pub fn ranges(&self) -> impl Iterator<Item = (u32, u128, u128)> + '_ {
        self.extents.iter().flat_map(|e| e.strips.iter().copied())
    }

    fn overlaps(&self) -> bool {
        let ranges: Vec<_> = self.ranges().collect();
        ranges.iter().enumerate().any(|(i, a)| {
            let later = ranges.iter().skip(i + 1);
            later
                .into_iter()
                .any(|b| a.0 == b.0 && a.1 < b.1 + b.2 && b.1 < a.1 + a.2)
        })
    }

    /// Bytes that a mapping of the file can reach.
    pub fn mapped(&self) -> u128 {
        self.file_size.div_ceil(UNIT) * UNIT
    }

    /// Device, offset and length of what lies behind `pos`, which is below `mapped`.
    pub fn resolve(&self, pos: u128) -> (u32, u128, u128) {
        let mut start = 0;
        for extent in &self.extents {
            let end = (start + extent.nbytes).div_ceil(UNIT) * UNIT;
            if pos < end {
                let (chunk, in_chunk) =
                    ((pos - start) / extent.chunk, (pos - start) % extent.chunk);
                let nstrips = extent.strips.len() as u128;
                let (row, strip) = (chunk / nstrips, chunk % nstrips);
                let (dev, offset, _) = extent.strips[strip as usize];
                let mut len = extent.chunk - in_chunk;
                if self.extents.len() > 1 {
                    len = len.min(end - pos);
                }
                return (dev, offset + row * extent.chunk + in_chunk, len);
            }
            start += extent.nbytes;
        }
        panic!("{pos:#x} is not mapped");
    }

    /// The file as contiguous pieces of device memory; `None` if they are too many to list.
    pub fn pieces(&self) -> Option<Vec<(Range<u128>, u32, u128)>> {
        let mut pieces = Vec::new();
        let mut pos = 0;
        while pos < self.mapped() {
            let (dev, offset, len) = self.resolve(pos);
            let end = self.mapped().min(pos + len);
            pieces.push((pos..end, dev, offset));
            pos = end;
            if pieces.len() > 5000 {
                return None;
            }
        }
        Some(pieces)
    }

    /// The file ranges in `range` of `dev`, joined where they touch.
    pub fn file_ranges(
        pieces: &[(Range<u128>, u32, u128)],
        dev: u32,
        range: Range<u128>,
    ) -> Vec<Range<u128>> {
        let mut found: Vec<Range<u128>> = Vec::new();
        for (file, _, offset) in pieces.iter().filter(|piece| piece.1 == dev) {
            let from = range.start.max(*offset) - offset;
            let to = range.end.max(*offset).min(offset + file.end - file.start) - offset;
            if from >= to {
                continue;
            }
            let part = file.start + from..file.start + to;
            match found.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => found.push(part),
            }
        }
        found
    }
}

/// A map that was built, with its cells. Devices get slots by a rule that can't be guessed.
pub struct Built {
    pub layout: Layout,
    pub cells: Vec<u64>,
}

pub fn slot(dev: u32) -> u16 {
    0xffff - dev as u16
}

pub fn build(message: &[u8]) -> Result<Built, i32> {
    let fmap = parse(message).map_err(|e| e.errno())?;
    let mut cells = vec![0x5555_5555_5555_5555; fmap.cells_len()];
    let layout = fmap
        .build(|DevIndex(dev)| Some(slot(dev)), &mut cells)
        .map_err(|e| e.errno())?;
    cells.truncate(layout.cells_len());
    Ok(Built { layout, cells })
}

impl Built {
    pub fn resolve(&self, pos: u128) -> Option<(u16, u128, u128)> {
        let run = self.layout.resolve(&self.cells, u64::try_from(pos).ok()?)?;
        Some((run.slot, u128::from(run.offset), u128::from(run.len)))
    }

    pub fn file_ranges(&self, dev: u32, range: Range<u128>) -> Vec<Range<u128>> {
        let range = range.start as u64..u64::try_from(range.end).unwrap();
        self.layout
            .file_ranges(&self.cells, slot(dev), range)
            .map(|range| u128::from(range.start)..u128::from(range.end))
            .collect()
    }
}

/// Compares all there is with the model, for a message of any bytes. `extra` are positions to
/// try besides the boundaries. Returns whether the message was accepted.
pub fn compare(message: &[u8], extra: &[u64]) -> bool {
    let _ = wanted_size(message, extra.len());
    let (model, built) = match (decode(message), build(message)) {
        (Ok(model), Ok(built)) => (model, built),
        (Err(expected), Err(found)) => {
            assert_eq!(found, expected);
            return false;
        }
        (model, built) => panic!("model: {model:?}, accepted: {}", built.is_ok()),
    };
    compare_listing(&model, &built);
    let mut positions: Vec<u128> = extra.iter().map(|pos| u128::from(*pos)).collect();
    positions.extend(
        [0, model.file_size, model.mapped(), u128::from(u64::MAX)]
            .map(around)
            .concat(),
    );
    let pieces = model.pieces();
    for (file, ..) in pieces.iter().flatten() {
        positions.extend(around(file.start));
    }
    for pos in positions {
        let expected = (pos < model.file_size).then(|| model.resolve(pos));
        let expected = expected.map(|(dev, offset, len)| (slot(dev), offset, len));
        assert_eq!(built.resolve(pos), expected, "at {pos:#x} of {model:#x?}");
    }
    if let Some(pieces) = pieces {
        compare_reverse(&model, &built, &pieces, extra);
    }
    true
}

fn around(pos: u128) -> Vec<u128> {
    [0, 1, 4095, 4096]
        .into_iter()
        .flat_map(|by| [pos + by, pos.saturating_sub(by)])
        .collect()
}

fn compare_listing(model: &Model, built: &Built) {
    assert_eq!(u128::from(built.layout.file_size()), model.file_size);
    assert_eq!(built.layout.nextents() as usize, model.extents.len());
    let (mut count, mut start) = (0, 0);
    for (extent, expected) in built.layout.extents(&built.cells).zip(&model.extents) {
        assert_eq!(extent.file.start, start);
        let whole = u128::from(start) + expected.nbytes.div_ceil(UNIT) * UNIT;
        let alone = model.interleaved && model.extents.len() == 1;
        // The last multiple of 2 MiB that is a file offset stands for 2^64.
        let end = if alone {
            model.mapped()
        } else {
            whole.min((1 << 64) - UNIT)
        };
        assert_eq!(u128::from(extent.file.end), end);
        assert_eq!(u128::from(extent.chunk), expected.chunk);
        assert_eq!(extent.strips.count(), expected.strips.len());
        for (i, (dev, offset, _)) in expected.strips.iter().enumerate() {
            let found = extent.strips.get(i).expect("a strip");
            assert_eq!((found.0, u128::from(found.1)), (slot(*dev), *offset));
        }
        assert_eq!(extent.strips.get(expected.strips.len()), None);
        start = extent.file.end;
        count += 1;
    }
    assert_eq!(count, model.extents.len());
}

fn compare_reverse(
    model: &Model,
    built: &Built,
    pieces: &[(Range<u128>, u32, u128)],
    extra: &[u64],
) {
    let check = |dev: u32, range: Range<u128>| {
        let expected = Model::file_ranges(pieces, dev, range.clone());
        assert_eq!(
            built.file_ranges(dev, range.clone()),
            expected,
            "{dev} {range:#x?} {model:#x?}"
        );
    };
    let most = u128::from(u64::MAX);
    for (dev, offset, len) in model.ranges().take(64) {
        check(dev, 0..most);
        check(dev, offset..offset + len);
        check(dev, offset..offset);
        check(dev, offset.saturating_sub(4096)..offset + 4096);
        check(dev, offset + len - 1..(offset + len + UNIT).min(most));
        check(dev, offset + len / 3..offset + len / 2 + 1);
        for pair in extra.windows(2) {
            let from = offset + u128::from(pair[0]) % (len + UNIT);
            check(
                dev,
                from.min(most)..(from + u128::from(pair[1]) % (4 * len)).min(most),
            );
            check(dev, from.min(most)..(from + 4096).min(most));
        }
    }
}
