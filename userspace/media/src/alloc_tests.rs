// SPDX-License-Identifier: MIT OR Apache-2.0

use super::*;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const DATA: u64 = 10 * MIB;

fn space(sizes: &[u64]) -> Space {
    let mut space = Space::new(sizes[0], DATA);
    for (index, &size) in (1..).zip(&sizes[1..]) {
        space.add(index, size);
    }
    space
}

fn extent(devindex: u64, offset: u64, len: u64) -> Extent {
    Extent {
        devindex,
        offset,
        len,
    }
}

#[test]
fn contiguous_is_first_fit_in_whole_units() {
    let mut space = space(&[32 * MIB]);
    let one = |s: &mut Space, size| s.allocate(size, None, 0);
    assert_eq!(
        one(&mut space, 1),
        Ok(Map::Simple(vec![extent(0, 10 * MIB, 2 * MIB)]))
    );
    assert_eq!(
        one(&mut space, 5_000_000),
        Ok(Map::Simple(vec![extent(0, 12 * MIB, 6 * MIB)]))
    );
    assert_eq!(
        one(&mut space, 14 * MIB + 1),
        Err(AllocError::NoSpace {
            wanted: 16 * MIB,
            longest: 14 * MIB
        })
    );
    assert_eq!(
        one(&mut space, 14 * MIB),
        Ok(Map::Simple(vec![extent(0, 18 * MIB, 14 * MIB)]))
    );
    assert_eq!(
        one(&mut space, 1),
        Err(AllocError::NoSpace {
            wanted: 2 * MIB,
            longest: 0
        })
    );
    assert_eq!((space.used(), space.units()), (16, 16));
}

#[test]
fn last_partial_unit_is_not_used() {
    let mut space = space(&[33 * MIB]);
    assert!(space.allocate(22 * MIB, None, 0).is_ok());
    assert!(space.allocate(1, None, 0).is_err());
}

#[test]
fn sizes_that_can_not_be() {
    let mut space = space(&[32 * MIB]);
    assert_eq!(space.allocate(0, None, 0), Err(AllocError::Empty));
    assert_eq!(
        space.allocate(u64::MAX, None, 0),
        Err(AllocError::TooLarge(u64::MAX))
    );
    let near = i64::MAX as u64;
    assert_eq!(
        space.allocate(near, None, 0),
        Err(AllocError::TooLarge(near))
    );
}

#[test]
fn second_daxdev_when_the_first_is_full() {
    let mut space = space(&[32 * MIB, 64 * MIB]);
    let map = space.allocate(23 * MIB, None, 0).unwrap();
    assert_eq!(map, Map::Simple(vec![extent(1, 2 * MIB, 24 * MIB)]));
}

#[test]
fn strip_lengths() {
    // docs/abi.md, section 3: 4 strips, chunks of 2 MiB.
    for (size, len) in [
        (8 * MIB, 2 * MIB),
        (8 * MIB + 1, 4 * MIB),
        (16 * MIB + 1, 6 * MIB),
    ] {
        let p = Interleave {
            nbuckets: 8,
            nstrips: 4,
            chunk_size: 2 * MIB,
        };
        let map = space(&[16 * GIB]).allocate(size, Some(&p), 7).unwrap();
        assert_eq!(map.extents().len(), 4);
        assert!(map.extents().iter().all(|e| e.len == len), "{map:?}");
    }
}

#[test]
fn smaller_than_a_chunk_is_contiguous() {
    let p = Interleave {
        nbuckets: 4,
        nstrips: 4,
        chunk_size: 4 * MIB,
    };
    let mut space = space(&[GIB]);
    let map = space.allocate(4 * MIB - 1, Some(&p), 0);
    assert_eq!(map, Ok(Map::Simple(vec![extent(0, DATA, 4 * MIB)])));
    assert!(matches!(
        space.allocate(4 * MIB, Some(&p), 0),
        Ok(Map::Interleaved { .. })
    ));
}

#[test]
fn strips_go_to_the_daxdevs_in_turn() {
    let p = Interleave {
        nbuckets: 2,
        nstrips: 4,
        chunk_size: 2 * MIB,
    };
    for seed in 0..20 {
        let map = space(&[GIB, GIB])
            .allocate(64 * MIB, Some(&p), seed)
            .unwrap();
        let devices: Vec<u64> = map.extents().iter().map(|e| e.devindex).collect();
        assert!(
            devices == [0, 1, 0, 1] || devices == [1, 0, 1, 0],
            "{devices:?}"
        );
    }
}

#[test]
fn bucket_order_depends_on_the_seed() {
    let space = space(&[16 * GIB]);
    assert_eq!(space.bucket_order(8, 1), space.bucket_order(8, 1));
    assert_ne!(space.bucket_order(8, 1), space.bucket_order(8, 2));
    let mut starts: Vec<u64> = space
        .bucket_order(8, 1)
        .iter()
        .map(|(_, b)| b.start)
        .collect();
    starts.sort_unstable();
    assert_eq!(starts, [0, 1024, 2048, 3072, 4096, 5120, 6144, 7168]);
}

#[test]
fn too_few_buckets_with_room_change_nothing() {
    let mut space = space(&[64 * MIB]);
    let p = Interleave {
        nbuckets: 2,
        nstrips: 2,
        chunk_size: 2 * MIB,
    };
    let before = space.used();
    assert_eq!(
        space.allocate(48 * MIB, Some(&p), 0),
        Err(AllocError::NoStrips {
            wanted: 2,
            found: 1,
            strip_len: 24 * MIB
        })
    );
    assert_eq!(space.used(), before);
}

#[test]
fn parameters() {
    let mut space = space(&[64 * MIB]);
    let mut try_with = |nbuckets, nstrips, chunk_size| {
        space.allocate(
            MIB,
            Some(&Interleave {
                nbuckets,
                nstrips,
                chunk_size,
            }),
            0,
        )
    };
    assert_eq!(try_with(2, 2, 3 * MIB), Err(AllocError::ChunkSize(3 * MIB)));
    assert_eq!(try_with(2, 2, MIB), Err(AllocError::ChunkSize(MIB)));
    assert_eq!(try_with(2, 2, 0), Err(AllocError::ChunkSize(0)));
    assert_eq!(try_with(0, 2, 2 * MIB), Err(AllocError::Buckets(0)));
    assert_eq!(try_with(65, 2, 2 * MIB), Err(AllocError::Buckets(65)));
    assert_eq!(
        try_with(2, 3, 2 * MIB),
        Err(AllocError::Strips { strips: 3, max: 2 })
    );
    assert_eq!(
        try_with(2, 0, 2 * MIB),
        Err(AllocError::Strips { strips: 0, max: 2 })
    );
    assert_eq!(
        try_with(20, 17, 2 * MIB),
        Err(AllocError::Strips {
            strips: 17,
            max: 16
        })
    );
    assert_eq!(
        try_with(20, 2, 4 * MIB),
        Err(AllocError::BucketSize {
            bucket: 2 * MIB,
            chunk: 4 * MIB
        })
    );
}

fn interleave() -> impl Strategy<Value = Option<Interleave>> {
    let some = (1u64..9, 1u64..17, 21u32..24).prop_map(|(nbuckets, nstrips, shift)| Interleave {
        nbuckets,
        nstrips,
        chunk_size: 1 << shift,
    });
    prop::option::of(some)
}

proptest! {
    /// Whatever is asked for: inside the device, behind the reserved part, long
    /// enough, and never over anything else.
    #[test]
    fn never_overlaps(
        sizes in prop::collection::vec(32u64..200, 1..4),
        asks in prop::collection::vec((1u64..40 * MIB, interleave(), any::<u64>()), 1..30),
    ) {
        let bytes: Vec<u64> = sizes.iter().map(|mib| mib * MIB + 12345).collect();
        let mut space = space(&bytes);
        let mut taken: Vec<Extent> = vec![];
        for (size, p, seed) in asks {
            let Ok(map) = space.allocate(size, p.as_ref(), seed) else { continue };
            let raw = crate::RawMap::from(&map);
            prop_assert_eq!(Map::check(&raw, size), Ok(map.clone()));
            prop_assert_eq!(space.check(&map), Ok(()));
            for e in map.extents() {
                let clash = taken.iter().find(|t| {
                    t.devindex == e.devindex && t.offset < e.offset + e.len && e.offset < t.offset + t.len
                });
                prop_assert_eq!(clash, None);
                taken.push(*e);
            }
        }
        let reserved = 5 + (bytes.len() as u64 - 1);
        let sum: u64 = taken.iter().map(|e| e.len / ALLOC_UNIT).sum();
        prop_assert_eq!(space.used(), reserved + sum);
    }
}
