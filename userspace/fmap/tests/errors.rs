// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Each reason to refuse a message, and the nearest message that is accepted.

mod model;

use famfs_fmap::{parse, DevIndex, DevRange, Extents, FileType, FmapError, Interleaved, Message};

const MIB: u64 = 1 << 20;
const EINVAL: i32 = 22;

fn range(index: u32, offset: u64, len: u64) -> DevRange {
    DevRange {
        index: DevIndex(index),
        offset,
        len,
    }
}

fn encode(file_size: u64, extents: Extents<'_>) -> Vec<u8> {
    let message = Message {
        file_type: FileType::Regular,
        file_size,
        extents,
        push: false,
    };
    let mut out = vec![0; message.len()];
    message.encode(&mut out).expect("room");
    out
}

fn simple(file_size: u64, ranges: &[DevRange]) -> Vec<u8> {
    encode(file_size, Extents::Simple(ranges))
}

fn interleaved(file_size: u64, iexts: &[(u32, u64, &[DevRange])]) -> Vec<u8> {
    let iexts: Vec<_> = iexts
        .iter()
        .map(|(chunk, nbytes, strips)| Interleaved {
            chunk: *chunk,
            nbytes: *nbytes,
            strips,
        })
        .collect();
    encode(file_size, Extents::Interleaved(&iexts))
}

/// One extent of 4 MiB at 8 MiB, for a file of 3 MiB.
fn one() -> Vec<u8> {
    simple(3 * MIB, &[range(0, 8 * MIB, 4 * MIB)])
}

fn edit(mut message: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    message[at..at + bytes.len()].copy_from_slice(bytes);
    message
}

fn verdict(message: &[u8]) -> Result<(), FmapError> {
    let fmap = parse(message)?;
    let mut cells = vec![0; fmap.cells_len()];
    fmap.build(|DevIndex(i)| (i != 99).then_some(i as u16), &mut cells)
        .map(drop)
}

/// The message is refused so, and the other one, which differs as little as can be, is not.
#[track_caller]
fn refused(bad: &[u8], error: FmapError, errno: i32, good: &[u8]) {
    assert_eq!(verdict(bad), Err(error));
    assert_eq!(error.errno(), errno);
    assert_eq!(verdict(good), Ok(()));
    if !matches!(error, FmapError::UnknownDevice(_)) {
        assert!(!model::compare(bad, &[]));
    }
    assert!(model::compare(good, &[]));
}

#[test]
fn header() {
    let good = one();
    refused(&good[..55], FmapError::Truncated(55), EINVAL, &good);
    refused(&good[..31], FmapError::Truncated(31), EINVAL, &good);
    refused(
        &edit(one(), 2, &[2, 0]),
        FmapError::Version(2),
        EINVAL,
        &good,
    );
    refused(
        &edit(one(), 2, &[0, 0]),
        FmapError::Version(0),
        EINVAL,
        &good,
    );
    refused(
        &edit(one(), 0, &[3]),
        FmapError::FileType(3),
        EINVAL,
        &edit(one(), 0, &[2]),
    );
    refused(
        &edit(one(), 4, &[2]),
        FmapError::ExtentType(2),
        EINVAL,
        &good,
    );
    refused(&edit(one(), 8, &[0]), FmapError::NoExtents, 34, &good);
    refused(
        &edit(one(), 8, &[2]),
        FmapError::Truncated(56),
        EINVAL,
        &good,
    );
    let all = edit(one(), 8, &[0xff; 4]);
    refused(&all, FmapError::Truncated(56), EINVAL, &good);
    let all = edit(
        interleaved(1, &[(2 << 20, 2 * MIB, &[range(0, 0, 2 * MIB)])]),
        8,
        &[0xff; 4],
    );
    refused(&all, FmapError::Truncated(80), EINVAL, &good);
}

#[test]
fn file_size() {
    let whole = [range(0, 0, !(2 * MIB - 1))];
    let largest = i64::MAX as u64;
    let good = simple(largest, &whole);
    let error = FmapError::FileTooLarge(largest + 1);
    refused(&simple(largest + 1, &whole), error, EINVAL, &good);
    refused(
        &simple(0, &whole),
        FmapError::EmptyFile,
        EINVAL,
        &simple(1, &whole),
    );
    let map = [range(0, 8 * MIB, 4 * MIB), range(0, 16 * MIB, 2 * MIB)];
    let error = FmapError::MapTooShort(6 * MIB);
    refused(
        &simple(6 * MIB + 1, &map),
        error,
        EINVAL,
        &simple(6 * MIB, &map),
    );
}

#[test]
fn ranges() {
    let good = one();
    let bad = |index, offset, len, error: FmapError| {
        refused(
            &simple(MIB, &[range(index, offset, len)]),
            error,
            EINVAL,
            &good,
        );
        let second = [range(0, 0, 2 * MIB), range(index, offset, len)];
        refused(&simple(MIB, &second), error, EINVAL, &good);
        let iext = [(2 << 20, MIB, &second[..])];
        refused(&interleaved(MIB, &iext), error, EINVAL, &good);
    };
    bad(0x1_0000, 8 * MIB, 2 * MIB, FmapError::DeviceIndex(0x1_0000));
    bad(0, 9 * MIB, 2 * MIB, FmapError::UnalignedOffset(9 * MIB));
    bad(
        0,
        8 * MIB + 4096,
        2 * MIB,
        FmapError::UnalignedOffset(8 * MIB + 4096),
    );
    bad(0, 8 * MIB, 0, FmapError::EmptyExtent);
    bad(0, 8 * MIB, 3 * MIB, FmapError::UnalignedLength(3 * MIB));
    let end = !(2 * MIB - 1);
    bad(0, end, 2 * MIB, FmapError::OffsetOverflow(end));
    let last = simple(MIB, &[range(0, end - 2 * MIB, 2 * MIB)]);
    refused(
        &edit(one(), 48, &[1]),
        FmapError::UnalignedLength(4 * MIB + 1),
        EINVAL,
        &last,
    );
    let most = simple(MIB, &[range(0xffff, 8 * MIB, 2 * MIB)]);
    refused(
        &simple(MIB, &[range(99, 0, 2 * MIB)]),
        FmapError::UnknownDevice(99),
        19,
        &most,
    );
}

#[test]
fn sums() {
    let half = 1 << 63;
    let fits = [range(0, 0, half), range(1, 0, half - 2 * MIB)];
    let wraps = [range(0, 0, half), range(1, 0, half)];
    let error = FmapError::LengthOverflow(half);
    refused(&simple(1, &wraps), error, EINVAL, &simple(1, &fits));

    let strips = [0, 1, 2].map(|index| [range(index, 0, half)]);
    let chunk = 2 << 20;
    let fits = [(chunk, half, &strips[0][..]), (chunk, half - 1, &strips[1])];
    let wraps = [(chunk, half, &strips[0][..]), (chunk, half, &strips[1])];
    refused(
        &interleaved(1, &wraps),
        error,
        EINVAL,
        &interleaved(1, &fits),
    );
}

#[test]
fn interleaving() {
    let strips: Vec<_> = (0..33).map(|i| range(i, 0, 4 * MIB)).collect();
    let (chunk, unit) = (4 << 20, 4 * MIB);
    let good = interleaved(8 * MIB, &[(chunk, 8 * MIB, &strips[..2])]);
    let bad = |chunk, nbytes, strips: &[DevRange], error: FmapError| {
        refused(
            &interleaved(1, &[(chunk, nbytes, strips)]),
            error,
            EINVAL,
            &good,
        );
    };
    bad(0, unit, &strips[..2], FmapError::ChunkSize(0));
    bad(3 << 20, unit, &strips[..2], FmapError::ChunkSize(3 << 20));
    bad(1 << 20, unit, &strips[..2], FmapError::ChunkSize(1 << 20));
    bad(chunk, 0, &strips[..2], FmapError::EmptyStripe);
    bad(chunk, unit, &[], FmapError::StripCount(0));
    bad(chunk, unit, &strips, FmapError::StripCount(33));
    let most = interleaved(1, &[(chunk, 32 * unit, &strips[..32])]);
    refused(&good[..103], FmapError::Truncated(103), EINVAL, &most);
    refused(&good[..55], FmapError::Truncated(55), EINVAL, &most);
    let less = interleaved(8 * MIB + 1, &[(chunk, 8 * MIB, &strips[..2])]);
    refused(&less, FmapError::MapTooShort(8 * MIB), EINVAL, &good);
}

/// A strip that is short by as little as can be would let the file reach into what lies behind.
#[test]
fn strips_hold_their_chunks() {
    let strips = |last| {
        [
            range(0, 0, 8 * MIB),
            range(1, 0, 4 * MIB),
            range(2, 0, last),
        ]
    };
    let chunk = 4 << 20;
    let message = |nbytes, last| interleaved(1, &[(chunk, nbytes, &strips(last))]);
    // Four chunks: the first strip holds two, the others one each.
    let good = message(16 * MIB, 4 * MIB);
    refused(
        &message(16 * MIB, 2 * MIB),
        FmapError::StripTooShort(2 * MIB),
        EINVAL,
        &good,
    );
    refused(
        &message(16 * MIB + 1, 4 * MIB),
        FmapError::StripTooShort(4 * MIB),
        EINVAL,
        &good,
    );
    // A strip on which no chunk falls may have any length; a part of a chunk counts as a whole.
    let good = message(8 * MIB, 2 * MIB);
    refused(
        &message(8 * MIB + 1, 2 * MIB),
        FmapError::StripTooShort(2 * MIB),
        EINVAL,
        &good,
    );
    let long = message(u64::MAX, 2 * MIB);
    refused(&long, FmapError::StripTooShort(8 * MIB), EINVAL, &good);
}

#[test]
fn several_interleaved_extents() {
    let strips = [[range(0, 0, 4 * MIB)], [range(1, 0, 4 * MIB)]];
    let message = |first: u64, second: u64| {
        let iexts = [
            (4 << 20, first, &strips[0][..]),
            (4 << 20, second, &strips[1]),
        ];
        interleaved(1, &iexts)
    };
    let good = message(2 * MIB, 2 * MIB + 1);
    let error = FmapError::UnalignedStripe(2 * MIB + 1);
    refused(&message(2 * MIB + 1, 2 * MIB), error, EINVAL, &good);
    let cut = &good[..good.len() - 1];
    refused(cut, FmapError::Truncated(127), EINVAL, &good);
}

#[test]
fn overlaps() {
    let pair = |a: DevRange, b: DevRange| simple(1, &[a, b]);
    let at = |mib| range(0, mib * MIB, 4 * MIB);
    let good = pair(at(8), at(12));
    let error = |mib| FmapError::Overlap(mib * MIB);
    refused(&pair(at(8), at(10)), error(10), EINVAL, &good);
    refused(
        &pair(at(10), at(8)),
        error(10),
        EINVAL,
        &pair(at(12), at(8)),
    );
    refused(
        &pair(at(8), at(8)),
        error(8),
        EINVAL,
        &pair(at(8), range(1, 8 * MIB, 4 * MIB)),
    );
    let within = pair(range(0, 0, 64 * MIB), at(32));
    refused(
        &within,
        error(32),
        EINVAL,
        &pair(range(0, 0, 32 * MIB), at(32)),
    );
    let strips = [at(8), at(16), at(18)];
    let bad = interleaved(1, &[(2 << 20, 2 * MIB, &strips)]);
    refused(
        &bad,
        error(18),
        EINVAL,
        &interleaved(1, &[(2 << 20, 2 * MIB, &strips[..2])]),
    );
    let across = [
        (2 << 20, 2 * MIB, &strips[..2]),
        (2 << 20, 2 * MIB, &strips[..1]),
    ];
    refused(&interleaved(1, &across), error(8), EINVAL, &good);
    // Two numbers for one device.
    let message = pair(range(1, 0, 4 * MIB), range(2, 2 * MIB, 4 * MIB));
    let fmap = parse(&message).expect("a good message");
    let result = fmap.build(|_| Some(5), &mut [0; 4]).map(drop);
    assert_eq!(result, Err(error(2)));
}

#[test]
fn messages_end_at_16_mib() {
    let unit = 2 * MIB;
    let most = ((16 << 20) - 32) / 24;
    let mut ranges: Vec<_> = (0..most).map(|i| range(0, i * unit, unit)).collect();
    ranges.reverse();
    let good = simple(most * unit, &ranges);
    assert_eq!(verdict(&good), Ok(()));
    let mut large = good.clone();
    large.resize((16 << 20) + 1, 0);
    let error = FmapError::MessageTooLarge((16 << 20) + 1);
    assert_eq!(verdict(&large), Err(error));
    assert_eq!(error.errno(), 27);
    ranges[7].offset += unit;
    let error = FmapError::Overlap((most - 7) * unit);
    assert_eq!(verdict(&simple(most * unit, &ranges)), Err(error));
}

#[test]
fn cells_must_be_enough() {
    let message = simple(1, &[range(0, 0, 2 * MIB), range(0, 4 * MIB, 4 * MIB)]);
    let fmap = parse(&message).expect("a good message");
    assert_eq!(fmap.cells_len(), 4);
    let few = fmap.build(|_| Some(0), &mut [0; 3]).map(drop);
    assert_eq!(few, Err(FmapError::CellsTooFew(3)));
    assert_eq!(FmapError::CellsTooFew(3).errno(), EINVAL);
}

/// The memory that a map takes, in words beside the layout.
#[test]
fn cells_are_no_more_than_the_budget() {
    let len = |message: &[u8]| {
        let fmap = parse(message).expect("a good message");
        let mut cells = vec![0; fmap.cells_len()];
        let layout = fmap.build(|_| Some(0), &mut cells).expect("a good map");
        (layout.kind(), cells.len(), layout.cells_len())
    };
    assert_eq!(len(&one()), ("single", 0, 0));
    let ranges: Vec<_> = (0..100).map(|i| range(0, i * 4 * MIB, 2 * MIB)).collect();
    assert_eq!(len(&simple(1, &ranges)), ("uniform", 200, 100));
    let mut uneven = ranges.clone();
    uneven[50].len += 2 * MIB;
    assert_eq!(len(&simple(1, &uneven)), ("mixed", 200, 200));
    let tib = 1 << 40;
    let two_of = |len| simple(1, &[range(0, 0, len), range(0, len, len)]);
    assert_eq!(len(&two_of(2 * tib)), ("uniform", 4, 2));
    assert_eq!(len(&two_of(2 * tib + 2 * MIB)), ("mixed", 4, 4));
    let longer_at_the_end = simple(1, &[ranges[1], range(0, 8 * MIB, 4 * MIB)]);
    assert_eq!(len(&longer_at_the_end), ("mixed", 4, 4));
    let iext = (2 << 20, 2 * MIB, &ranges[..32]);
    assert_eq!(len(&interleaved(1, &[iext])), ("interleaved", 64, 32));
    let iexts = [iext, (2 << 20, 2 * MIB, &ranges[32..64])];
    assert_eq!(len(&interleaved(1, &iexts)), ("striped", 128, 68));
}

#[test]
fn errors_name_the_field_and_the_value() {
    let text = |message: &[u8]| verdict(message).expect_err("a refusal").to_string();
    assert_eq!(
        text(&simple(1, &[range(0, 9 * MIB, 2 * MIB)])),
        "se_offset (0x900000) is not a multiple of 2 MiB"
    );
    assert_eq!(text(&edit(one(), 2, &[2])), "fmap_version (0x2) is not 1");
    assert_eq!(text(&edit(one(), 8, &[0])), "nextents (0x0) is zero");
}
