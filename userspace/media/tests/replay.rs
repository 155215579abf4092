// SPDX-License-Identifier: MIT OR Apache-2.0
//! Logs that upstream's code never wrote: each check of the replay by itself.

// Helpers of tests may panic; clippy.toml knows only the tests themselves.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use famfs_media::{
    path_bytes, AddDaxdev, Body, Daxdev, Entry, Extent, FileEntry, LogError, LogHeader, MkdirEntry,
    PathError, PrimaryDax, Problem, RawMap, Replay, Superblock, LOG_LEN_MIN,
};
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const DEVICE: u64 = 64 * MIB;

fn superblock() -> Superblock {
    let dax = PrimaryDax {
        size: DEVICE,
        uuid: Uuid::nil(),
        name: vec![],
    };
    Superblock::new(LOG_LEN_MIN, Uuid::nil(), Uuid::nil(), Uuid::nil(), dax)
}

fn play(bodies: Vec<Body>) -> Replay {
    play_on(DEVICE, bodies)
}

fn play_on(device: u64, bodies: Vec<Body>) -> Replay {
    let count = bodies.len() as u64;
    let header = LogHeader {
        next_seqnum: count,
        next_index: count,
        ..LogHeader::new(LOG_LEN_MIN)
    };
    let entries = (0..)
        .zip(bodies)
        .flat_map(|(seqnum, body)| Entry { seqnum, body }.encode());
    let log: Vec<u8> = header.encode().into_iter().chain(entries).collect();
    Replay::of_log(&superblock(), device, &log).unwrap()
}

fn problems(bodies: Vec<Body>) -> Vec<Problem> {
    play(bodies)
        .findings
        .into_iter()
        .map(|finding| finding.problem)
        .collect()
}

fn dir(path: &[u8]) -> Body {
    Body::Mkdir(MkdirEntry {
        uid: 0,
        gid: 0,
        mode: 0o755,
        path: path_bytes(path),
    })
}

fn mapped(path: [u8; 80], size: u64, map: RawMap) -> Body {
    Body::File(FileEntry {
        size,
        flags: 2,
        uid: 0,
        gid: 0,
        mode: 0o644,
        path,
        map,
    })
}

fn at(devindex: u64, offset: u64, len: u64) -> RawMap {
    RawMap::Simple {
        nextents: 1,
        extents: vec![Extent {
            devindex,
            offset,
            len,
        }],
    }
}

fn file(path: &[u8], offset: u64) -> Body {
    mapped(path_bytes(path), 1, at(0, offset, 2 * MIB))
}

fn one(map: RawMap) -> Vec<Problem> {
    problems(vec![mapped(path_bytes(b"f"), 1, map)])
}

#[test]
fn paths() {
    let path = |bytes: &[u8]| problems(vec![file(bytes, 10 * MIB)]);
    assert_eq!(path(b"../etc/passwd"), [PathError::Component.into()]);
    assert_eq!(path(b"a/../b"), [PathError::Component.into()]);
    assert_eq!(path(b""), [PathError::Empty.into()]);
    assert_eq!(path(b".meta/.log"), [PathError::Reserved.into()]);
    assert_eq!(path(b"missing/f"), [Problem::NoParent]);
    let unterminated = mapped([b'p'; 80], 1, at(0, 10 * MIB, 2 * MIB));
    assert_eq!(
        problems(vec![unterminated]),
        [PathError::Unterminated.into()]
    );
    assert_eq!(problems(vec![dir(b"..")]), [PathError::Component.into()]);
}

#[test]
fn bytes_behind_the_nul_are_noted_and_the_file_is_there() {
    let mut path = path_bytes(b"f");
    path[5] = b'x';
    let replay = play(vec![mapped(path, 1, at(0, 10 * MIB, 2 * MIB))]);
    assert_eq!(replay.findings[0].problem, Problem::PathTail);
    assert!(replay.tree.resolve(b"f").is_some());
}

#[test]
fn first_name_wins() {
    assert_eq!(problems(vec![dir(b"d"), dir(b"d")]), []);
    assert_eq!(
        problems(vec![file(b"f", 10 * MIB), dir(b"f")]),
        [Problem::NotDirectory { first: 0 }]
    );
    assert_eq!(
        problems(vec![dir(b"d"), file(b"d", 10 * MIB)]),
        [Problem::Duplicate { first: 0 }]
    );
    assert_eq!(
        problems(vec![file(b"f", 10 * MIB), file(b"f/g", 12 * MIB)]),
        [Problem::NoParent]
    );
}

#[test]
fn extents_stay_inside_the_data_of_their_device() {
    assert_eq!(one(at(0, 10 * MIB, 54 * MIB)), []);
    assert_eq!(
        one(at(0, 8 * MIB, 2 * MIB)),
        [Problem::Reserved {
            extent: 0,
            offset: 8 * MIB
        }]
    );
    let past = |offset, len| Problem::PastDevice {
        extent: 0,
        offset,
        len,
        size: DEVICE,
    };
    assert_eq!(one(at(0, 10 * MIB, 56 * MIB)), [past(10 * MIB, 56 * MIB)]);
    // The last unit of a device that ends within it is not there.
    let body = || vec![mapped(path_bytes(b"f"), 1, at(0, 10 * MIB, 54 * MIB))];
    let short = Problem::PastDevice {
        extent: 0,
        offset: 10 * MIB,
        len: 54 * MIB,
        size: DEVICE - 1,
    };
    assert_eq!(play_on(DEVICE - 1, body()).findings[0].problem, short);
    let far = !(2 * MIB - 1);
    assert_eq!(one(at(0, far, 4 * MIB)), [past(far, 4 * MIB)]);
    assert_eq!(
        one(at(0, 11 * MIB, 2 * MIB)),
        [Problem::Offset {
            extent: 0,
            offset: 11 * MIB
        }]
    );
    assert_eq!(
        one(at(0, 12 * MIB, 3 * MIB)),
        [Problem::Len {
            extent: 0,
            len: 3 * MIB
        }]
    );
    assert_eq!(
        one(at(1, 12 * MIB, 2 * MIB)),
        [Problem::Device {
            extent: 0,
            devindex: 1
        }]
    );
    assert_eq!(
        one(at(1 << 32, 12 * MIB, 2 * MIB)),
        [Problem::Device {
            extent: 0,
            devindex: 1 << 32
        }]
    );
}

#[test]
fn overlaps_are_refused_and_stay_in_use() {
    let replay = play(vec![
        file(b"a", 10 * MIB),
        mapped(path_bytes(b"b"), 1, at(0, 10 * MIB, 4 * MIB)),
    ]);
    let overlap = Problem::Overlap {
        extent: 0,
        offset: 10 * MIB,
        units: 1,
    };
    assert_eq!(
        (replay.findings[0].index, &replay.findings[0].problem),
        (1, &overlap)
    );
    assert_eq!(
        (
            replay.totals.collisions,
            replay.space.used(),
            replay.totals.files
        ),
        (1, 7, 1)
    );
    let twice = Extent {
        devindex: 0,
        offset: 10 * MIB,
        len: 2 * MIB,
    };
    let itself = one(RawMap::Simple {
        nextents: 2,
        extents: vec![twice, twice],
    });
    assert_eq!(
        itself,
        [Problem::Overlap {
            extent: 1,
            offset: 10 * MIB,
            units: 1
        }]
    );
}

#[test]
fn counts_an_entry_has_no_room_for() {
    let extent = Extent {
        devindex: 0,
        offset: 10 * MIB,
        len: 2 * MIB,
    };
    let simple = |nextents| RawMap::Simple {
        nextents,
        extents: vec![extent],
    };
    assert_eq!(one(simple(0)), [Problem::Nextents(0)]);
    assert_eq!(one(simple(17)), [Problem::Nextents(17)]);
    let strips = |niext, nstrips| RawMap::Interleaved {
        niext,
        nstrips,
        chunk_size: 2 * MIB,
        strips: vec![extent],
    };
    assert_eq!(one(strips(1, u64::MAX)), [Problem::Nstrips(u64::MAX)]);
    assert_eq!(one(strips(1, 17)), [Problem::Nstrips(17)]);
    assert_eq!(one(strips(2, 1)), [Problem::Niext(2)]);
    assert_eq!(one(RawMap::Unknown(2)), [Problem::ExtType(2)]);
}

#[test]
fn daxdevs() {
    let add = |index, size| {
        Body::AddDaxdev(AddDaxdev {
            size,
            uuid: Uuid::from_u128(9),
            index,
        })
    };
    let on = |devindex, offset| mapped(path_bytes(b"f"), 1, at(devindex, offset, 2 * MIB));
    let replay = play(vec![add(1, 32 * MIB), on(1, 2 * MIB)]);
    assert_eq!(replay.findings, []);
    assert_eq!(
        replay.daxdevs,
        [Daxdev {
            index: 1,
            size: 32 * MIB,
            uuid: Uuid::from_u128(9)
        }]
    );
    assert_eq!(
        (replay.space.device(1), replay.space.device(0)),
        (Some((16, 2)), Some((32, 5)))
    );
    let reserved = Problem::Reserved {
        extent: 0,
        offset: 0,
    };
    assert_eq!(problems(vec![add(1, 32 * MIB), on(1, 0)]), [reserved]);
    assert_eq!(problems(vec![add(0, 32 * MIB)]), [Problem::DevIndex(0)]);
    assert_eq!(
        problems(vec![add(1, 32 * MIB), add(1, 32 * MIB)]),
        [Problem::DevIndex(1)]
    );
    assert_eq!(
        problems(vec![add(65536, 32 * MIB)]),
        [Problem::DevIndex(65536)]
    );
    assert_eq!(
        problems(vec![on(1, 2 * MIB), add(1, 32 * MIB)]),
        [Problem::Device {
            extent: 0,
            devindex: 1
        }]
    );
}

#[test]
fn replay_goes_on_where_it_stopped() {
    let bodies = vec![dir(b"a"), dir(b"a/b"), file(b"a/b/f", 10 * MIB)];
    let entries: Vec<u8> = (0..)
        .zip(bodies)
        .flat_map(|(seqnum, body)| Entry { seqnum, body }.encode())
        .collect();
    let header = |count| LogHeader {
        next_seqnum: count,
        next_index: count,
        ..LogHeader::new(LOG_LEN_MIN)
    };
    let mut replay = Replay::new(&superblock(), DEVICE);
    assert_eq!(replay.advance(&header(1), &entries[..544]), Ok(0..1));
    assert_eq!(replay.advance(&header(1), &[]), Ok(1..1));
    assert_eq!(replay.advance(&header(3), &entries[544..]), Ok(1..3));
    assert_eq!((replay.totals.files, replay.totals.dirs), (1, 2));
    assert_eq!(
        replay.advance(&header(2), &[]),
        Err(LogError::Shrunk { known: 3, found: 2 })
    );
    assert!(matches!(
        replay.advance(&header(4), &[0; 100]),
        Err(LogError::Entry { index: 3, .. })
    ));
}

#[test]
fn the_end_of_a_log_may_be_torn_and_its_middle_not() {
    let mut log: Vec<u8> = (0..3u8)
        .flat_map(|i| {
            let (seqnum, body) = (u64::from(i), dir(&[b'a' + i]));
            Entry { seqnum, body }.encode()
        })
        .collect();
    let header = LogHeader {
        next_seqnum: 5,
        next_index: 5,
        ..LogHeader::new(LOG_LEN_MIN)
    };
    // Entries 3 and 4 were announced and never arrived.
    log.resize(5 * 544, 0);
    let mut replay = Replay::new(&superblock(), DEVICE);
    assert_eq!(replay.advance(&header, &log), Ok(0..3));
    assert_eq!((replay.next_index(), replay.totals.dirs), (3, 3));
    assert_eq!(replay.advance(&header, &log[3 * 544..]), Ok(3..3));
    // Entry 4 arrives before entry 3: that is no end any more.
    let (seqnum, body) = (4, dir(b"e"));
    log[4 * 544..].copy_from_slice(&Entry { seqnum, body }.encode());
    assert!(matches!(
        replay.advance(&header, &log[3 * 544..]),
        Err(LogError::Entry { index: 3, .. })
    ));
    let (seqnum, body) = (3, dir(b"d"));
    log[3 * 544..4 * 544].copy_from_slice(&Entry { seqnum, body }.encode());
    assert_eq!(replay.advance(&header, &log[3 * 544..]), Ok(3..5));
    assert_eq!(replay.totals.dirs, 5);
}
