// SPDX-License-Identifier: GPL-2.0-only

//! From the file to the device and back, for every kind of map.

use kernel::prelude::*;

use crate::{
    fixture::Built,
    fmap::Run,
    message::{
        interleaved,
        simple,
        MIB, //
    },
};

/// Whether byte `pos` leads to `offset` of the device in `slot`, `len` bytes before the end of an
/// extent or chunk, and whether the first and the last of them, and no more, lead back.
fn leads(map: &Built, pos: u64, slot: u16, offset: u64, len: u64) -> bool {
    let last = len - 1;
    let size = map.layout.file_size().next_multiple_of(2 * MIB);
    let back = |at: u64, n: u64| {
        let mut ranges = map.file_ranges(slot, offset + at..offset + at + 1);
        let expected = (pos + at < size).then(|| pos + at..pos + at + n);
        ranges.next() == expected && ranges.next().is_none()
    };
    map.resolve(pos) == Some(Run { slot, offset, len }) && back(0, 1) && back(last, 1)
}

/// Whether the map is of this kind and ends with the file.
fn ends_at(map: &Built, kind: &str, size: u64) -> bool {
    map.layout.kind() == kind
        && map.layout.file_size() == size
        && map.resolve(size - 1).is_some()
        && map.resolve(size).is_none()
        && map.resolve(size.next_multiple_of(2 * MIB)).is_none()
        && map.resolve(u64::MAX).is_none()
}

/// Whether every step from byte 0 on leads to where the one before has ended, or to another run,
/// and all of it leads back.
fn is_seamless(map: &Built) -> bool {
    let size = map.layout.file_size();
    let mut pos = 0;
    while pos < size {
        let Some(run) = map.resolve(pos) else {
            return false;
        };
        let last = run.len.min(size - pos) - 1;
        let end = map.resolve(pos + last);
        let expected = Run {
            slot: run.slot,
            offset: run.offset + last,
            len: run.len - last,
        };
        if end != Some(expected) || !leads(map, pos, run.slot, run.offset, run.len) {
            return false;
        }
        pos += run.len;
    }
    true
}

#[kunit_tests(famfs_resolve)]
mod tests {
    use super::*;

    #[test]
    fn one_extent() -> Result {
        let map = Built::new(&simple(5 * MIB - 7, &[(3, 8 * MIB, 6 * MIB)])?)?;
        assert!(ends_at(&map, "single", 5 * MIB - 7));
        assert!(leads(&map, 0, 3, 8 * MIB, 6 * MIB));
        assert!(leads(&map, 1, 3, 8 * MIB + 1, 6 * MIB - 1));
        assert!(leads(&map, 5 * MIB - 8, 3, 13 * MIB - 8, MIB + 8));
        assert!(is_seamless(&map));
        Ok(())
    }

    #[test]
    fn extents_of_one_size() -> Result {
        let extents = [
            (0, 64 * MIB, 4 * MIB),
            (1, 8 * MIB, 4 * MIB),
            (0, 0, 2 * MIB),
        ];
        let map = Built::new(&simple(9 * MIB, &extents)?)?;
        assert!(ends_at(&map, "uniform", 9 * MIB));
        assert!(leads(&map, 4 * MIB - 1, 0, 68 * MIB - 1, 1));
        assert!(leads(&map, 4 * MIB, 1, 8 * MIB, 4 * MIB));
        assert!(leads(&map, 8 * MIB - 1, 1, 12 * MIB - 1, 1));
        assert!(leads(&map, 8 * MIB, 0, 0, 2 * MIB));
        assert!(is_seamless(&map));
        Ok(())
    }

    #[test]
    fn extents_of_many_sizes() -> Result {
        let mut extents = KVec::new();
        let mut offset = 1 << 40;
        for i in 0..100u64 {
            let len = 2 * MIB * (1 + i * i % 7);
            offset -= len + 2 * MIB;
            extents.push(((i % 3) as u32, offset, len), GFP_KERNEL)?;
        }
        let size = extents.iter().map(|extent| extent.2).sum::<u64>() - 1;
        let map = Built::new(&simple(size, &extents)?)?;
        assert!(ends_at(&map, "mixed", size));
        let mut pos = 0;
        for (index, offset, len) in extents {
            assert!(leads(&map, pos, index as u16, offset, len));
            pos += len;
        }
        assert!(is_seamless(&map));
        Ok(())
    }

    #[test]
    fn one_interleaved_extent() -> Result {
        let strips = [
            (2, 32 * MIB, 12 * MIB),
            (0, 0, 8 * MIB),
            (1, 16 * MIB, 8 * MIB),
        ];
        let map = Built::new(&interleaved(25 * MIB, &[(4 << 20, 25 * MIB, &strips)])?)?;
        assert!(ends_at(&map, "interleaved", 25 * MIB));
        assert!(leads(&map, 0, 2, 32 * MIB, 4 * MIB));
        assert!(leads(&map, 4 * MIB - 1, 2, 36 * MIB - 1, 1));
        assert!(leads(&map, 4 * MIB, 0, 0, 4 * MIB));
        assert!(leads(&map, 8 * MIB + 5, 1, 16 * MIB + 5, 4 * MIB - 5));
        assert!(leads(&map, 12 * MIB, 2, 36 * MIB, 4 * MIB));
        assert!(leads(&map, 16 * MIB, 0, 4 * MIB, 4 * MIB));
        assert!(leads(&map, 24 * MIB, 2, 40 * MIB, 4 * MIB));
        assert!(is_seamless(&map));
        Ok(())
    }

    #[test]
    fn several_interleaved_extents() -> Result {
        let strips = [
            (0, 0, 4 * MIB),
            (1, 0, 4 * MIB),
            (0, 64 * MIB, 8 * MIB),
            (1, 64 * MIB, 8 * MIB),
        ];
        // The first one ends within a chunk.
        let iexts = [
            (4 << 20, 6 * MIB, &strips[..2]),
            (4 << 20, 9 * MIB, &strips[2..]),
        ];
        let map = Built::new(&interleaved(14 * MIB, &iexts)?)?;
        assert!(ends_at(&map, "striped", 14 * MIB));
        assert!(leads(&map, 0, 0, 0, 4 * MIB));
        assert!(leads(&map, 4 * MIB, 1, 0, 2 * MIB));
        assert!(leads(&map, 6 * MIB - 1, 1, 2 * MIB - 1, 1));
        assert!(leads(&map, 6 * MIB, 0, 64 * MIB, 4 * MIB));
        assert!(leads(&map, 10 * MIB, 1, 64 * MIB, 4 * MIB));
        assert!(is_seamless(&map));
        Ok(())
    }

    #[test]
    fn a_range_of_a_device_leads_to_ranges_of_the_file() -> Result {
        let strips = [(0, 0, 8 * MIB), (1, 0, 8 * MIB)];
        let map = Built::new(&interleaved(13 * MIB, &[(2 << 20, 13 * MIB, &strips)])?)?;
        let mut hits = map.file_ranges(1, MIB..5 * MIB);
        assert_eq!(hits.next(), Some(3 * MIB..4 * MIB));
        assert_eq!(hits.next(), Some(6 * MIB..8 * MIB));
        assert_eq!(hits.next(), Some(10 * MIB..11 * MIB));
        assert_eq!(hits.next(), None);
        // The strip goes on behind the end of the file, in whose last page byte 13 MiB is.
        let mut hits = map.file_ranges(0, 6 * MIB..u64::MAX);
        assert_eq!(hits.next(), Some(12 * MIB..14 * MIB));
        assert_eq!(hits.next(), None);
        assert_eq!(map.file_ranges(1, 6 * MIB..u64::MAX).next(), None);
        assert_eq!(map.file_ranges(2, 0..u64::MAX).next(), None);
        assert_eq!(map.file_ranges(0, MIB..MIB).next(), None);

        // Two extents that touch are one range.
        let extents = [
            (0, 0, 2 * MIB),
            (0, 2 * MIB, 4 * MIB),
            (0, 8 * MIB, 2 * MIB),
        ];
        let map = Built::new(&simple(8 * MIB, &extents)?)?;
        let mut hits = map.file_ranges(0, MIB..16 * MIB);
        assert_eq!(hits.next(), Some(MIB..8 * MIB));
        assert_eq!(hits.next(), None);
        Ok(())
    }

    #[test]
    fn the_extents_are_listed_in_order() -> Result {
        let extents = [
            (0, 0, 2 * MIB),
            (1, 8 * MIB, 6 * MIB),
            (0, 16 * MIB, 4 * MIB),
        ];
        let map = Built::new(&simple(10 * MIB, &extents)?)?;
        let mut listed = map.layout.extents(&map.cells);
        let mut start = 0;
        for (index, offset, len) in extents {
            let extent = listed.next().ok_or(ENOENT)?;
            assert_eq!(extent.file, start..start + len);
            assert_eq!(extent.strips.count(), 1);
            assert_eq!(extent.strips.get(0), Some((index as u16, offset)));
            start += len;
        }
        assert!(listed.next().is_none());
        assert_eq!(map.layout.nextents(), 3);
        Ok(())
    }
}
