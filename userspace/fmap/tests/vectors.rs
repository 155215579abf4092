// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Upstream's messages, and those made for the cases that upstream never sends.

mod model;

use std::{ffi::CStr, fs, path::PathBuf};

use famfs_fmap::{
    daxdev_reply, parse, parse_daxdev, wanted_size, DaxdevReply, DevIndex, DevRange, Extents,
    FileType, FmapError, Interleaved, Message, Policy,
};
use serde_json::Value;
use zerocopy::IntoBytes;

/// What parsing, or else building, answers to each message.
const VERDICTS: &[(&str, Result<&str, FmapError>)] = &[
    ("msg/bad_fmap_devindex1.bin", Ok("single")),
    ("msg/bad_fmap_exttype2.bin", Err(FmapError::ExtentType(2))),
    (
        "msg/bad_fmap_len_unaligned.bin",
        Err(FmapError::UnalignedLength(0x5f_f000)),
    ),
    ("msg/bad_fmap_nextents0.bin", Err(FmapError::NoExtents)),
    (
        "msg/bad_fmap_nextents33.bin",
        Err(FmapError::UnalignedStripe(19_927_041)),
    ),
    (
        "msg/bad_fmap_size_gt_map.bin",
        Err(FmapError::MapTooShort(0x60_0000)),
    ),
    (
        "msg/bad_fmap_trunc_hdr31.bin",
        Err(FmapError::Truncated(31)),
    ),
    (
        "msg/bad_fmap_trunc_strips.bin",
        Err(FmapError::Truncated(100)),
    ),
    ("msg/bad_fmap_version2.bin", Err(FmapError::Version(2))),
    ("msg/fmap_e02.bin", Ok("single")),
    ("msg/fmap_e03.bin", Ok("single")),
    ("msg/fmap_e04.bin", Ok("mixed")),
    ("msg/fmap_e05.bin", Ok("interleaved")),
    ("msg/fmap_e06.bin", Ok("single")),
    ("msg/fmap_meta_log_asreg.bin", Ok("single")),
    ("msg/fmap_meta_log_type2.bin", Ok("single")),
    ("msg/fmap_meta_superblock_asreg.bin", Ok("single")),
    ("msg/fmap_meta_superblock_type1.bin", Ok("single")),
    (
        "msg/quirk_interleave_devindex.bin",
        Err(FmapError::DeviceIndex(0x1_0000)),
    ),
    ("msg/quirk_simple_devindex.bin", Ok("uniform")),
    ("msg_derived/d_empty.bin", Err(FmapError::Truncated(0))),
    ("msg_derived/d_ext_past_device.bin", Ok("single")),
    (
        "msg_derived/d_header_only.bin",
        Err(FmapError::Truncated(32)),
    ),
    (
        "msg_derived/d_iext_33strips.bin",
        Err(FmapError::StripCount(33)),
    ),
    (
        "msg_derived/d_iext_chunk0.bin",
        Err(FmapError::ChunkSize(0)),
    ),
    (
        "msg_derived/d_iext_chunk1m.bin",
        Err(FmapError::ChunkSize(1 << 20)),
    ),
    (
        "msg_derived/d_iext_nbytes0.bin",
        Err(FmapError::EmptyStripe),
    ),
    (
        "msg_derived/d_iext_nbytes_lt_size.bin",
        Err(FmapError::MapTooShort(8 << 20)),
    ),
    (
        "msg_derived/d_iext_nstrips0.bin",
        Err(FmapError::StripCount(0)),
    ),
    ("msg_derived/d_len0_extent.bin", Err(FmapError::EmptyExtent)),
    (
        "msg_derived/d_offset_plus_len_wraps.bin",
        Err(FmapError::OffsetOverflow(0xffff_ffff_ffe0_0000)),
    ),
    (
        "msg_derived/d_offset_unaligned.bin",
        Err(FmapError::UnalignedOffset(0xa0_1000)),
    ),
    ("msg_derived/d_simple32.bin", Ok("uniform")),
    ("msg_derived/d_simple33.bin", Ok("uniform")),
    ("msg_derived/d_size0.bin", Err(FmapError::EmptyFile)),
    ("msg_derived/d_size_equals_map.bin", Ok("single")),
    (
        "msg_derived/d_trunc_simple_list.bin",
        Err(FmapError::Truncated(103)),
    ),
    ("msg_derived/push_169ext_fits.bin", Ok("uniform")),
    ("msg_derived/push_e02.bin", Ok("single")),
    ("msg_derived/push_e03.bin", Ok("single")),
    ("msg_derived/push_e04.bin", Ok("mixed")),
    ("msg_derived/push_e05.bin", Ok("uniform")),
    ("msg_derived/push_e06.bin", Ok("single")),
];

/// Where the verdict differs from the manifest's, as the vectors' README explains.
const DIFFERENT: &[&str] = &[
    "msg/bad_fmap_devindex1.bin",
    "msg/bad_fmap_nextents33.bin",
    "msg/quirk_simple_devindex.bin",
    "msg_derived/d_simple33.bin",
];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata/vectors")
}

fn bytes(file: &str) -> Vec<u8> {
    fs::read(folder().join(file)).expect(file)
}

/// The manifest's entries for messages.
fn manifest() -> Vec<Value> {
    let manifest: Value = serde_json::from_slice(&bytes("manifest.json")).expect("manifest");
    let vectors = manifest["vectors"].as_array().expect("vectors").iter();
    let is_message = |v: &&Value| v["file"].as_str().expect("file").starts_with("msg");
    vectors.filter(is_message).cloned().collect()
}

#[test]
fn every_message_gets_its_verdict() {
    for (file, expected) in VERDICTS {
        let message = bytes(file);
        let built = parse(&message).and_then(|fmap| {
            let mut cells = vec![0; fmap.cells_len()];
            fmap.build(|DevIndex(index)| Some(index as u16), &mut cells)
        });
        assert_eq!(built.map(|layout| layout.kind()), *expected, "{file}");
        assert_eq!(wanted_size(&message, 4096), Ok(None), "{file}");
        assert_eq!(
            model::compare(&message, &[12345]),
            expected.is_ok(),
            "{file}"
        );
    }
}

#[test]
fn verdicts_are_those_of_the_manifest() {
    let manifest = manifest();
    assert_eq!(manifest.len(), VERDICTS.len());
    for vector in manifest {
        let file = vector["file"].as_str().expect("file");
        let verdict = vector["expected_verdict"].as_str().expect("verdict");
        let (_, ours) = VERDICTS.iter().find(|(name, _)| *name == file).expect(file);
        let ours = ours.map_err(|error| error.errno()).err();
        let theirs = match verdict {
            "-EINVAL" => Some(22),
            "-ERANGE" => Some(34),
            refused if refused.contains("reject") && !refused.contains("wrongly") => Some(22),
            "V10 accepts; never emitted (famfs has no empty files)" => Some(22),
            accepted if accepted.contains("accept") => None,
            _ => {
                assert!(DIFFERENT.contains(&file), "{file}: {verdict}");
                continue;
            }
        };
        assert_eq!(
            ours == theirs,
            !DIFFERENT.contains(&file),
            "{file}: {verdict}"
        );
    }
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().expect(key)
}

fn ranges(list: &Value) -> Vec<DevRange> {
    let list = list.as_array().expect("extents").iter();
    list.map(|extent| DevRange {
        index: DevIndex(number(extent, "devindex") as u32),
        offset: number(extent, "offset"),
        len: number(extent, "len"),
    })
    .collect()
}

#[test]
fn decoding_and_encoding_are_those_of_the_manifest() {
    let mut encoded = 0;
    for vector in manifest() {
        let (file, decoded) = (vector["file"].as_str().expect("file"), &vector["decoded"]);
        let abridged = decoded["extents"]
            .as_array()
            .is_some_and(|list| list.iter().any(Value::is_string));
        let message = bytes(file);
        let Some(fmap) = parse(&message).ok().filter(|_| !abridged) else {
            continue;
        };
        assert_eq!(fmap.file_size(), number(decoded, "file_size"), "{file}");
        assert_eq!(
            u64::from(fmap.nextents()),
            number(decoded, "nextents"),
            "{file}"
        );
        assert_eq!(
            fmap.file_type() as u64,
            number(decoded, "file_type"),
            "{file}"
        );

        let simple = decoded.get("extents").map(ranges);
        let iexts = decoded.get("iexts").and_then(Value::as_array);
        let strips: Vec<_> = iexts
            .into_iter()
            .flatten()
            .map(|iext| ranges(&iext["strips"]))
            .collect();
        let all: Vec<_> = simple.iter().chain(&strips).flatten().copied().collect();
        assert_eq!(fmap.ranges().collect::<Vec<_>>(), all, "{file}");

        let iexts: Vec<_> = iexts
            .into_iter()
            .flatten()
            .zip(&strips)
            .map(|(iext, strips)| Interleaved {
                chunk: number(iext, "chunk_size") as u32,
                nbytes: number(iext, "nbytes"),
                strips,
            })
            .collect();
        let again = Message {
            file_type: fmap.file_type(),
            file_size: fmap.file_size(),
            extents: match &simple {
                Some(ranges) => Extents::Simple(ranges),
                None => Extents::Interleaved(&iexts),
            },
            push: number(decoded, "reserved0_or_fmap_size") != 0,
        };
        let mut out = vec![0xaa; message.len()];
        assert_eq!(again.encode(&mut out), Ok(message.len()), "{file}");
        assert_eq!(out, message, "{file}");
        let short = out.len() - 1;
        assert_eq!(
            again.encode(&mut out[..short]).map_err(|e| e.0),
            Err(message.len())
        );
        encoded += 1;
    }
    assert_eq!(encoded, 20);
}

/// A push-generation server that has no room answers with the header alone.
#[test]
fn a_header_alone_says_what_to_ask_for() {
    let ranges: Vec<_> = (0..1000u64)
        .map(|i| DevRange {
            index: DevIndex(0),
            offset: i << 22,
            len: 2 << 20,
        })
        .collect();
    let mut message = Message {
        file_type: FileType::Regular,
        file_size: 2000 << 20,
        extents: Extents::Simple(&ranges),
        push: true,
    };
    let header = message.header();
    assert_eq!(wanted_size(header.as_bytes(), 4096), Ok(Some(24032)));
    assert_eq!(wanted_size(header.as_bytes(), 24032), Ok(None));
    assert_eq!(wanted_size(header.as_bytes(), 24031), Ok(Some(24032)));
    assert_eq!(wanted_size(&header.as_bytes()[..31], 4096), Ok(None));
    assert_eq!(
        parse(header.as_bytes()).err(),
        Some(FmapError::Truncated(32))
    );
    message.push = false;
    assert_eq!(wanted_size(message.header().as_bytes(), 32), Ok(None));

    let announcing = |size: u32| {
        let mut header = header;
        header.fmap_size = size.into();
        wanted_size(header.as_bytes(), 4096)
    };
    assert_eq!(announcing(16 << 20), Ok(Some(16 << 20)));
    let too_large = FmapError::MessageTooLarge((16 << 20) + 1);
    assert_eq!(announcing((16 << 20) + 1), Err(too_large));
    assert_eq!(too_large.errno(), 27);
}

/// The answer of upstream's daemon, which follows a 16-byte header of FUSE.
#[test]
fn answers_about_devices_are_read_and_written_as_upstream_does() {
    let reply = &bytes("wire/wire_get_daxdev_0_rep.bin")[16..];
    let name = c"/dev/dax0.0";
    assert_eq!(parse_daxdev(reply), Ok(DaxdevReply { name, policy: None }));
    let written = |policy| daxdev_reply(0, name, policy).expect("a name that fits");
    assert_eq!(written(None).as_bytes(), reply);
    for policy in [Policy::Device, Policy::Range] {
        let (policy, written) = (Some(policy), written(Some(policy)));
        let parsed = parse_daxdev(written.as_bytes());
        assert_eq!(parsed, Ok(DaxdevReply { name, policy }));
    }

    let refused = |reply: &[u8]| parse_daxdev(reply).err();
    assert_eq!(refused(&reply[..279]), Some(FmapError::DaxdevSize(279)));
    let longer = [reply, &[0]].concat();
    assert_eq!(refused(&longer), Some(FmapError::DaxdevSize(281)));
    let mut nameless = reply.to_vec();
    nameless[24] = 0;
    assert_eq!(refused(&nameless), Some(FmapError::DaxdevName));
    let mut endless = reply.to_vec();
    endless[24..].fill(b'x');
    assert_eq!(refused(&endless), Some(FmapError::DaxdevName));
    let mut wishful = reply.to_vec();
    wishful[2] = 3;
    assert_eq!(refused(&wishful), Some(FmapError::DaxdevPolicy(3)));

    let path = |len| {
        CStr::from_bytes_with_nul(&[&vec![b'x'; len][..], &[0]].concat())
            .map(|p| daxdev_reply(7, p, None))
    };
    assert!(path(255)
        .expect("a string")
        .is_some_and(|out| out.index.get() == 7));
    assert!(path(256).expect("a string").is_none());
}
