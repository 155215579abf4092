// SPDX-License-Identifier: MIT OR Apache-2.0
//! The golden vectors that upstream's code made, and edits of them (testdata/vectors/README.md).

// Helpers of tests may panic; clippy.toml knows only the tests themselves.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod sound;

use famfs_media::{
    Body, Entry, EntryError, Finding, HeaderError, Kind, LogError, LogHeader, Map, Problem, Replay,
    Role, Superblock, ENTRY_BYTES, HEADER_BYTES, SUPERBLOCK_BYTES,
};
use famfs_media::{PathError, SuperError};
use proptest::prelude::*;
use serde_json::Value;

const DEVICE: u64 = 16 << 30;

fn path(name: &str) -> String {
    format!(
        "{}/../../testdata/vectors/{name}",
        env!("CARGO_MANIFEST_DIR")
    )
}

fn vector(name: &str) -> Vec<u8> {
    std::fs::read(path(&format!("media/{name}"))).unwrap()
}

fn manifest() -> Value {
    serde_json::from_slice(&std::fs::read(path("manifest.json")).unwrap()).unwrap()
}

fn superblock() -> Superblock {
    Superblock::parse(&vector("superblock.bin")).unwrap()
}

fn replay(name: &str) -> Result<Replay, LogError> {
    Replay::of_log(&superblock(), DEVICE, &vector(name))
}

fn findings(name: &str) -> Vec<(u64, Problem)> {
    replay(name)
        .unwrap()
        .findings
        .into_iter()
        .map(|f| (f.index, f.problem))
        .collect()
}

#[test]
fn every_media_vector_is_tested_here() {
    let tests = include_str!("vectors.rs");
    let all = manifest();
    let names = all["vectors"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|v| v["file"].as_str());
    let media: Vec<&str> = names
        .filter_map(|name| name.strip_prefix("media/"))
        .collect();
    assert_eq!(media.len(), 21);
    for name in media {
        assert!(tests.contains(&format!("\"{name}\"")), "{name}");
    }
}

#[test]
fn superblock_fields_and_bytes() {
    let sb = superblock();
    assert_eq!(
        (sb.log_offset, sb.log_len, sb.alloc_unit),
        (2 << 20, 8 << 20, 2 << 20)
    );
    assert_eq!((sb.omf_major, sb.omf_minor, sb.flags), (2, 2, 0));
    assert_eq!(
        sb.fs_uuid.to_string(),
        "10111213-1415-1617-1819-1a1b1c1d1e1f"
    );
    assert_eq!(
        sb.dev_uuid.to_string(),
        "20212223-2425-2627-2829-2a2b2c2d2e2f"
    );
    assert_eq!(
        sb.system_uuid.to_string(),
        "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
    );
    assert_eq!(
        (sb.dax.size, &sb.dax.name[..], sb.dax.uuid.is_nil()),
        (DEVICE, &b"/dev/dax0.0"[..], true)
    );
    assert_eq!(sb.encode(), vector("superblock.bin")[..SUPERBLOCK_BYTES]);
}

#[test]
fn superblock_verdicts() {
    let parse = |name| Superblock::parse(&vector(name));
    assert_eq!(
        parse("bad_sb_magic.bin"),
        Err(SuperError::Magic(0x87b2_82fe))
    );
    assert_eq!(parse("bad_sb_version47.bin"), Err(SuperError::Version(47)));
    assert_eq!(
        parse("bad_sb_crc.bin"),
        Err(SuperError::Crc {
            stored: 0x6116_1df0,
            computed: 0xe47e_bd58
        })
    );
    assert_eq!(
        parse("bad_sb_alloc_unit.bin"),
        Err(SuperError::AllocUnit(8192))
    );
    let local = Some(superblock().system_uuid);
    assert_eq!(superblock().role(local), Role::Master);
    assert_eq!(superblock().role(None), Role::Client);
    assert_eq!(
        parse("odd_sb_other_system_uuid.bin").unwrap().role(local),
        Role::Client
    );
    let odd = parse("odd_sb_uncovered_bytes.bin").unwrap();
    assert_eq!((odd.flags, odd.dax.size), (1, DEVICE + 1));
    assert_eq!(
        Superblock::parse(&vector("superblock.bin")[..199]),
        Err(SuperError::TooShort(199))
    );
}

#[test]
fn our_own_superblock_checks() {
    let with = |edit: fn(&mut Superblock)| {
        let mut sb = superblock();
        edit(&mut sb);
        Superblock::parse(&sb.encode()).map(|_| ())
    };
    assert_eq!(with(|sb| sb.alloc_unit = 4096), Ok(()));
    assert_eq!(with(|sb| sb.log_offset = 0), Err(SuperError::LogOffset(0)));
    for len in [0, 4 << 20, 12 << 20, u64::MAX] {
        let mut sb = superblock();
        sb.log_len = len;
        assert_eq!(
            Superblock::parse(&sb.encode()),
            Err(SuperError::LogLen(len))
        );
    }
}

#[test]
fn header_verdicts() {
    let empty = LogHeader::parse(&vector("log_empty.bin"), 8 << 20).unwrap();
    assert_eq!(empty, LogHeader::new(8 << 20));
    assert_eq!(empty.encode(), vector("log_empty.bin")[..HEADER_BYTES]);
    let error = |name| replay(name).unwrap_err();
    assert_eq!(
        error("bad_log_magic.bin"),
        HeaderError::Magic(0xbad_cafe_f00e).into()
    );
    let crc = HeaderError::Crc {
        stored: 0xa587_5078,
        computed: 0x692d_50e6,
    };
    assert_eq!(error("bad_log_hdr_crc.bin"), crc.into());
    let other = LogHeader::parse(&vector("log.bin"), 16 << 20);
    assert_eq!(
        other,
        Err(HeaderError::LogLen {
            header: 8 << 20,
            superblock: 16 << 20
        })
    );
}

#[test]
fn entries_encode_to_the_same_bytes() {
    let log = vector("log.bin");
    for index in 0..10 {
        let bytes = &log[HEADER_BYTES + index * ENTRY_BYTES..][..ENTRY_BYTES];
        assert_eq!(
            Entry::parse(bytes, index as u64).unwrap().encode(),
            bytes,
            "entry {index}"
        );
    }
    let header = LogHeader {
        next_seqnum: 10,
        next_index: 10,
        ..LogHeader::new(8 << 20)
    };
    assert_eq!(header.encode(), log[..HEADER_BYTES]);
}

#[test]
fn log_makes_the_namespace() {
    let replay = replay("log.bin").unwrap();
    assert_eq!((replay.findings.len(), replay.next_index()), (0, 10));
    let walk: Vec<String> = replay
        .tree
        .walk()
        .iter()
        .map(|(path, _)| String::from_utf8(path.clone()).unwrap())
        .collect();
    let long = format!("path79_{}", "p".repeat(72));
    assert_eq!(
        walk,
        [
            "dir1",
            "dir1/aligned_4m.bin",
            "dir1/sub",
            "dir1/sub/multi3.bin",
            "empty_dir",
            "max16.bin",
            "one_extent.bin",
            &long,
            "stripe16.bin",
            "stripe4.bin"
        ]
    );
    let node = |path: &str| {
        replay
            .tree
            .get(replay.tree.resolve(path.as_bytes()).unwrap())
            .unwrap()
    };
    let attributes = |path| {
        (
            node(path).index,
            node(path).mode,
            node(path).uid,
            node(path).gid,
        )
    };
    assert_eq!(attributes("dir1/sub"), (Some(1), 0o750, 1000, 1000));
    assert_eq!(attributes("stripe4.bin"), (Some(5), 0o666, 1000, 100));
    assert_eq!(attributes(&long), (Some(6), 0o444, 4_294_967_294, 65534));
    assert_eq!(attributes("empty_dir"), (Some(9), 0o1777, 0, 0));
    let Kind::File {
        size,
        map: Map::Interleaved { chunk_size, strips },
    } = &node("stripe16.bin").kind
    else {
        panic!("stripe16.bin is not interleaved");
    };
    assert_eq!(
        (*size, *chunk_size, strips.len(), strips[15].offset),
        ((64 << 20) + 1, 4 << 20, 16, 10_743_709_696)
    );
}

#[test]
fn space_is_what_upstream_counts() {
    let replay = replay("log.bin").unwrap();
    let expected = &manifest()["bitmap_expected_for_log_bin"];
    let count = |key: &str| expected[key].as_u64().unwrap();
    assert_eq!(replay.space.units(), count("nbits"));
    assert_eq!(replay.space.used(), count("bits_set"));
    assert_eq!(replay.totals.collisions, count("collisions"));
    assert_eq!(replay.totals.file_bytes, count("sum_file_sizes"));
    // Upstream counts superblock and log, 5 units, with the files.
    assert_eq!(
        replay.totals.allocated_bytes + (10 << 20),
        count("sum_allocated_bytes")
    );
    assert_eq!(
        (replay.totals.files, replay.totals.dirs),
        (count("files"), count("directories"))
    );
}

#[test]
fn broken_entries_stop_the_replay_and_apply_nothing() {
    let broken = |index, error| Some(LogError::Entry { index, error });
    let crc = |stored, computed| EntryError::Crc { stored, computed };
    assert_eq!(
        replay("bad_log_entry_crc.bin").err(),
        broken(4, crc(0xa1e6_f630, 0x42ce_53fd))
    );
    assert_eq!(
        replay("bad_log_padding_flipped.bin").err(),
        broken(0, crc(0xd6db_820b, 0x989d_4923))
    );
    assert_eq!(
        replay("bad_log_seq_gap.bin").err(),
        broken(5, EntryError::Seqnum { found: 6 })
    );

    let log = vector("bad_log_seq_gap.bin");
    let header = LogHeader::parse(&log, 8 << 20).unwrap();
    let mut state = Replay::new(&superblock(), DEVICE);
    assert!(state.advance(&header, &log[HEADER_BYTES..]).is_err());
    assert_eq!(
        (state.tree.len(), state.next_index(), state.space.used()),
        (1, 0, 5)
    );
}

#[test]
fn fsck_goes_on_after_a_broken_entry() {
    let inspect = |name| {
        let log = vector(name);
        let mut state = Replay::new(&superblock(), DEVICE);
        state
            .inspect(
                &LogHeader::parse(&log, 8 << 20).unwrap(),
                &log[HEADER_BYTES..],
            )
            .unwrap();
        (state.findings.len(), state.space.used(), state.totals.files)
    };
    // Units as upstream's bitmap builder counts them.
    assert_eq!(inspect("bad_log_entry_crc.bin"), (1, 103, 6));
    assert_eq!(inspect("bad_log_seq_gap.bin"), (1, 95, 6));
}

#[test]
fn odd_entries_are_left_out() {
    assert_eq!(
        findings("odd_log_ext_offset0.bin"),
        [(
            2,
            Problem::Reserved {
                extent: 0,
                offset: 0
            }
        )]
    );
    assert_eq!(
        replay("odd_log_ext_offset0.bin").unwrap().totals.collisions,
        3
    );
    assert_eq!(
        findings("odd_log_abs_path.bin"),
        [(2, Problem::Path(PathError::Absolute))]
    );
    assert_eq!(
        findings("odd_log_unknown_type7.bin"),
        [(9, Problem::UnknownType(7))]
    );
    assert_eq!(findings("odd_log_delete_type2.bin"), [(9, Problem::Delete)]);
    assert_eq!(
        findings("odd_log_duplicate_path.bin"),
        [(3, Problem::Duplicate { first: 2 })]
    );
    assert_eq!(findings("odd_log_padding_nonzero_crc_ok.bin"), []);
    for name in [
        "odd_log_ext_offset0.bin",
        "odd_log_abs_path.bin",
        "odd_log_duplicate_path.bin",
    ] {
        assert_eq!(replay(name).unwrap().totals.files, 6, "{name}");
    }
    let first = replay("odd_log_duplicate_path.bin").unwrap();
    let node = first
        .tree
        .get(first.tree.resolve(b"one_extent.bin").unwrap())
        .unwrap();
    assert!(matches!(
        node.kind,
        Kind::File {
            size: 5_000_000,
            ..
        }
    ));
}

#[test]
fn disagreeing_counters_allow_reading_only() {
    assert_eq!(findings("odd_log_next_seqnum_mismatch.bin"), []);
    let header = LogHeader::parse(&vector("odd_log_next_seqnum_mismatch.bin"), 8 << 20).unwrap();
    assert_eq!(
        header.after_append(1),
        Err(LogError::Counters {
            seqnum: 42,
            index: 10
        })
    );
}

#[test]
fn a_finding_names_entry_field_and_value() {
    let finding = replay("odd_log_ext_offset0.bin")
        .unwrap()
        .findings
        .remove(0);
    let text =
        "log entry 2: extent 0: offset 0x0 lies in the superblock or the log (\"one_extent.bin\")";
    assert_eq!(finding.to_string(), text);
    let bare = |last, problem| Finding {
        index: 7,
        last,
        path: None,
        problem,
    };
    assert_eq!(
        bare(7, Problem::Delete).to_string(),
        "log entry 7: type DELETE is not implemented by any reader"
    );
    assert_eq!(
        bare(9, Problem::Broken(EntryError::Seqnum { found: 0 })).to_string(),
        "log entries 7 to 9: broken: sequence number is 0"
    );
}

/// Entries of log.bin with `edits` applied to one, its CRC put right again.
fn mutated(index: usize, edits: &[(usize, u8)]) -> Vec<u8> {
    let mut log = vector("log.bin");
    let entry = &mut log[HEADER_BYTES + index * ENTRY_BYTES..][..ENTRY_BYTES];
    for &(at, value) in edits {
        entry[at] = value;
    }
    let crc = u64::from(crc32fast::hash(&entry[..536]));
    entry[536..].copy_from_slice(&crc.to_le_bytes());
    log
}

proptest! {
    /// Whatever another host wrote: no panic, and nothing mapped that a file must not have.
    #[test]
    fn hostile_entries(
        index in 0usize..10,
        edits in prop::collection::vec((8usize..536, any::<u8>()), 0..12),
        device in prop_oneof![Just(DEVICE), any::<u64>()],
    ) {
        let replay = Replay::of_log(&superblock(), device, &mutated(index, &edits)).unwrap();
        sound::check(&superblock(), device, &replay);
    }

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..2000), patch in any::<bool>()) {
        let mut bytes = bytes;
        if patch && bytes.len() >= HEADER_BYTES {
            let count = bytes[40] as u64;
            let header = LogHeader { next_index: count, ..LogHeader::new(8 << 20) };
            bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
        }
        let _ = Superblock::parse(&bytes);
        let _ = Replay::of_log(&superblock(), DEVICE, &bytes);
        if let Ok(header) = LogHeader::parse(&bytes, 8 << 20) {
            let mut replay = Replay::new(&superblock(), DEVICE);
            prop_assert!(replay.inspect(&header, &bytes[HEADER_BYTES..]).is_ok());
        }
        if let Some(entry) = Entry::decode(&bytes) {
            let again = Entry::decode(&entry.encode()).unwrap();
            prop_assert!(matches!(again.body, Body::Unknown(_)) || again == entry);
        }
    }
}
