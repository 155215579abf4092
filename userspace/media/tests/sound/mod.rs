// SPDX-License-Identifier: MIT OR Apache-2.0
//! What holds of every replay, whatever another host wrote. For the tests and the fuzzer.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;

use famfs_media::{Kind, Map, Replay, Severity, Superblock, Tree, ALLOC_UNIT, SUPERBLOCK_LEN};

/// Panics if a file has memory that it must not have, if a name leads elsewhere, or if the sums are wrong.
pub fn check(superblock: &Superblock, device: u64, replay: &Replay) {
    let sizes: BTreeMap<u64, u64> = [(0, device)]
        .into_iter()
        .chain(replay.daxdevs.iter().map(|d| (u64::from(d.index), d.size)))
        .collect();
    assert_eq!(sizes.len(), replay.daxdevs.len() + 1, "a daxdev twice");
    // Ends of extents by daxdev and start.
    let mut taken: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    let (mut files, mut dirs, mut file_bytes) = (0, 0, 0u64);
    for (_, node) in replay.tree.nodes() {
        assert_eq!(node.mode & !0o7777, 0);
        let Kind::File { size, map } = &node.kind else {
            dirs += 1;
            continue;
        };
        files += 1;
        file_bytes = file_bytes.saturating_add(*size);
        assert!(map.allocated() >= *size);
        assert!((1..=16).contains(&map.extents().len()));
        if let Map::Interleaved { chunk_size, .. } = map {
            assert!(*chunk_size > 0 && chunk_size % ALLOC_UNIT == 0);
        }
        for e in map.extents() {
            let reserved = if e.devindex == 0 {
                superblock.data_start()
            } else {
                SUPERBLOCK_LEN
            };
            assert!(e.offset >= reserved && e.offset % ALLOC_UNIT == 0);
            assert!(e.len > 0 && e.len % ALLOC_UNIT == 0);
            let end = e.offset.checked_add(e.len).unwrap();
            assert!(end <= sizes[&e.devindex]);
            let before = taken.range(..(e.devindex, end)).next_back();
            assert!(
                before.is_none_or(|((dev, _), other)| *dev != e.devindex || *other <= e.offset),
                "two extents share memory"
            );
            taken.insert((e.devindex, e.offset), end);
        }
    }
    let totals = &replay.totals;
    assert_eq!((totals.files, totals.dirs), (files, dirs));
    assert_eq!(totals.file_bytes, file_bytes);
    assert!(replay.space.used() <= replay.space.units());
    names(&replay.tree);
    for finding in &replay.findings {
        assert!(finding.index < replay.next_index());
        assert!(!finding.to_string().is_empty());
        let _: Severity = finding.problem.severity();
    }
    new_files_get_free_memory(replay, &taken);
}

/// Each node has one path, that stays below the root and leads to it.
fn names(tree: &Tree) {
    let paths = tree.walk();
    assert_eq!(paths.len() + 1, tree.len());
    for (path, id) in paths {
        assert!(path.len() < 80 && !path.contains(&0) && !path.starts_with(b"/"));
        let mut parts = path.split(|&b| b == b'/');
        assert!(parts.all(|part| !part.is_empty() && part != b".." && part != b"."));
        assert!(path != b".meta" && !path.starts_with(b".meta/"));
        assert_eq!(tree.resolve(&path), Some(id));
    }
}

fn new_files_get_free_memory(replay: &Replay, taken: &BTreeMap<(u64, u64), u64>) {
    let mut space = replay.space.clone();
    for _ in 0..3 {
        let Ok(map) = space.allocate(3 * ALLOC_UNIT, None, 0) else {
            return;
        };
        for e in map.extents() {
            let before = taken.range(..(e.devindex, e.offset + e.len)).next_back();
            assert!(
                before.is_none_or(|((dev, _), end)| *dev != e.devindex || *end <= e.offset),
                "memory of a file given to another"
            );
        }
    }
}
