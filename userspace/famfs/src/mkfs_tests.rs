// SPDX-License-Identifier: MIT OR Apache-2.0

use super::*;
use crate::testing::Traced;
use famfs_media::{Replay, HEADER_BYTES};

const LOG_LEN: usize = 8 << 20;

fn vector(name: &str) -> Vec<u8> {
    std::fs::read(format!(
        "{}/../../testdata/vectors/media/{name}",
        env!("CARGO_MANIFEST_DIR")
    ))
    .unwrap()
}

fn superblock(name: &str, size: u64, dev: u128, flags: u32) -> Superblock {
    let dax = PrimaryDax {
        size,
        uuid: Uuid::nil(),
        name: name.into(),
    };
    let fs = Uuid::from_u128(0x10111213_1415_1617_1819_1a1b1c1d1e1f);
    let system = Uuid::from_u128(0x0f1e2d3c_4b5a_6978_8796_a5b4c3d2e1f0);
    Superblock {
        flags,
        ..Superblock::new(8 << 20, fs, Uuid::from_u128(dev), system, dax)
    }
}

fn first() -> Superblock {
    superblock(
        "/dev/dax0.0",
        16 << 30,
        0x20212223_2425_2627_2829_2a2b2c2d2e2f,
        0,
    )
}

/// Writes a file system on one daxdev of `size` bytes; gives its superblock.
pub fn make<S: Store>(superblock: &S, log: &S, size: u64) -> Superblock {
    let dax = PrimaryDax {
        size,
        ..first().dax
    };
    let made = Superblock { dax, ..first() };
    let plan = Plan::of(vec![made.clone()]);
    plan.write(&[(superblock, log)]).unwrap();
    made
}

/// Superblock and log that are full of something else.
fn device() -> (Traced, Traced) {
    let store = |len| {
        let store = Traced::default();
        store.bytes.borrow_mut().resize(len, 0xee);
        store
    };
    (store(4096), store(LOG_LEN))
}

#[test]
fn bytes_are_those_of_upstream() {
    let (sb, log) = device();
    Plan::of(vec![first()]).write(&[(&sb, &log)]).unwrap();
    assert_eq!(
        sb.bytes.borrow()[..SUPERBLOCK_BYTES],
        vector("superblock.bin")[..SUPERBLOCK_BYTES]
    );
    assert_eq!(log.bytes.borrow()[..4096], vector("log_empty.bin"));
    assert!(log.bytes.borrow()[4096..].iter().all(|&b| b == 0));
}

#[test]
fn magic_goes_first_and_comes_last() {
    let (sb, log) = device();
    Plan::of(vec![first()]).write(&[(&sb, &log)]).unwrap();
    let expected = [
        ("write", 0, 8),
        ("flush", 0, 8),
        ("write", 8, 192),
        ("flush", 0, 200),
        ("write", 0, 8),
        ("flush", 0, 200),
    ];
    assert_eq!(*sb.trace.borrow(), expected);
    let flushed: usize = log
        .trace
        .borrow()
        .iter()
        .filter(|op| op.0 == "flush")
        .map(|op| op.2)
        .sum();
    assert_eq!(flushed, LOG_LEN + HEADER_BYTES);
}

#[test]
fn further_daxdevs_are_in_the_log() {
    let second = superblock("/dev/dax1.0", 64 << 20, 7, Superblock::SECONDARY);
    let (a, b) = (device(), device());
    Plan::of(vec![first(), second.clone()])
        .write(&[(&a.0, &a.1), (&b.0, &b.1)])
        .unwrap();
    let replay = Replay::of_log(&first(), 16 << 30, &a.1.bytes.borrow()).unwrap();
    assert_eq!(replay.findings, []);
    let found: Vec<_> = replay
        .daxdevs
        .iter()
        .map(|d| (d.index, d.size, d.uuid))
        .collect();
    assert_eq!(found, [(1, 64 << 20, Uuid::from_u128(7))]);
    assert_eq!(Superblock::parse(&b.0.bytes.borrow()), Ok(second));
    assert_eq!(b.1.bytes.borrow()[..HEADER_BYTES], [0; HEADER_BYTES]);
}

#[test]
fn sizes_and_names_of_devices() {
    let check = |devices: &[(&str, u64)], log_len| {
        let devices: Vec<_> = devices
            .iter()
            .map(|&(path, size)| (Path::new(path), size))
            .collect();
        check_sizes(&devices, log_len)
            .map_err(|error| (crate::exit::code(&error), error.to_string()))
    };
    assert!(check(&[("a", 32 << 20)], 8 << 20).is_ok());
    let (exit, text) = check(&[("a", (32 << 20) - 1)], 8 << 20).unwrap_err();
    assert_eq!(
        (exit, &text[..]),
        (
            Exit::Device,
            "a has 33554431 bytes, at least 33554432 are needed"
        )
    );
    assert!(check(&[("a", 32 << 20)], 32 << 20).is_err());
    assert!(check(&[("a", 36 << 20)], 32 << 20).is_ok());
    assert!(check(&[("a", 36 << 20), ("b", 31 << 20)], 8 << 20).is_err());
    let (exit, text) = check(&[("a", 32 << 20), ("a", 32 << 20)], 8 << 20).unwrap_err();
    assert_eq!((exit, &text[..]), (Exit::Usage, "a is named twice"));
}

#[test]
fn what_is_there_is_protected() {
    let check = |bytes: &[u8], force| {
        let store = Traced::default();
        store.bytes.borrow_mut().extend_from_slice(bytes);
        check_empty(Path::new("/dev/dax0.0"), &store, force).map_err(|error| error.to_string())
    };
    let text = check(&vector("superblock.bin"), false).unwrap_err();
    assert!(
        text.contains("10111213-1415-1617-1819-1a1b1c1d1e1f) of another host"),
        "{text}"
    );
    assert!(text.contains("--force"), "{text}");
    assert!(check(&vector("bad_sb_version47.bin"), false)
        .unwrap_err()
        .contains("version 47"));
    for empty in [
        "bad_sb_magic.bin",
        "bad_sb_crc.bin",
        "bad_sb_alloc_unit.bin",
    ] {
        assert_eq!(check(&vector(empty), false), Ok(()), "{empty}");
    }
    assert_eq!(check(&vector("superblock.bin"), true), Ok(()));
}
