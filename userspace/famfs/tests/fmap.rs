// SPDX-License-Identifier: MIT OR Apache-2.0
//! fmap decode on the golden vectors: what it prints, why it refuses, and its exit codes.

// Helpers of tests may panic; clippy.toml knows only the tests themselves.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{json, Value};

fn vector(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../testdata/vectors")
        .join(name)
}

/// Exit code, stdout and stderr.
fn decode(file: &Path, more: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_famfs"))
        .args(["fmap", "decode"])
        .arg(file)
        .args(more)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    (code, text(output.stdout), text(output.stderr))
}

fn decoded(name: &str, more: &[&str]) -> Value {
    let (code, out, err) = decode(&vector(name), more);
    assert_eq!((code, &err[..]), (0, ""), "{name}");
    serde_json::from_str(&out).unwrap()
}

/// The reason, which must come with exit code 8 and without output.
fn refused(file: &Path, more: &[&str]) -> String {
    let (code, out, err) = decode(file, more);
    assert_eq!((code, &out[..]), (8, ""), "{}", file.display());
    let start = format!("famfs: {}: ", file.display());
    err.strip_prefix(&start).unwrap().trim_end().to_owned()
}

/// Every extent and strip that the manifest lists, in its order, and the size of the file.
#[test]
fn decodes_as_the_manifest_does() {
    let text = std::fs::read(vector("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&text).unwrap();
    let mut seen = 0;
    for vector in manifest["vectors"].as_array().unwrap() {
        let name = vector["file"].as_str().unwrap();
        if !(name.starts_with("msg/fmap_") || name.starts_with("msg_derived/push_e")) {
            continue;
        }
        let (got, wanted) = (decoded(name, &[]), &vector["decoded"]);
        assert_eq!(got["file_size"], wanted["file_size"], "{name}");
        let strips = |extent: &Value| extent["strips"].as_array().unwrap().clone();
        let got: Vec<Value> = got["extents"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(strips)
            .collect();
        let listed: Vec<Value> = match wanted["iexts"].as_array() {
            Some(iexts) => iexts.iter().flat_map(strips).collect(),
            None => wanted["extents"].as_array().unwrap().clone(),
        };
        let wanted: Vec<Value> = listed
            .iter()
            .map(|e| json!({"devindex": e["devindex"], "offset": e["offset"], "len": e["len"]}))
            .collect();
        assert_eq!(got, wanted, "{name}");
        seen += 1;
    }
    assert_eq!(seen, 14);
}

#[test]
fn the_whole_of_an_interleaved_map() {
    let map = decoded("msg/fmap_e05.bin", &[]);
    assert_eq!(map["file_type"], "regular");
    assert_eq!(map["kind"], "interleaved");
    assert_eq!(map["file_size"], 19_927_041);
    let extent = &map["extents"][0];
    let bytes = [
        &extent["file_offset"],
        &extent["file_len"],
        &extent["chunk_size"],
    ];
    assert_eq!(bytes, [&json!(0), &json!(20 << 20), &json!(2 << 20)]);
}

#[test]
fn file_types_are_words() {
    for (name, word) in [
        ("msg/fmap_meta_superblock_type1.bin", "superblock"),
        ("msg/fmap_meta_log_type2.bin", "log"),
        ("msg/fmap_meta_log_asreg.bin", "regular"),
    ] {
        assert_eq!(decoded(name, &[])["file_type"], word, "{name}");
    }
}

/// The words are those that the module logs.
#[test]
fn refusals_are_named() {
    for (name, reason) in [
        ("msg/bad_fmap_version2.bin", "fmap_version (0x2) is not 1"),
        ("msg/bad_fmap_nextents0.bin", "nextents (0x0) is zero"),
        (
            "msg/bad_fmap_trunc_hdr31.bin",
            "reply length (0x1f) is shorter than what the header announces",
        ),
        (
            "msg/bad_fmap_len_unaligned.bin",
            "se_len (0x5ff000) is not a multiple of 2 MiB",
        ),
        (
            "msg_derived/d_iext_33strips.bin",
            "ie_nstrips (0x21) is not between 1 and 32",
        ),
    ] {
        assert_eq!(refused(&vector(name), &[]), reason, "{name}");
    }
}

/// One file in two extents on the same memory, and one that announces more than 16 MiB.
#[test]
fn refusals_of_edited_replies() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("reply");
    let mut good = std::fs::read(vector("msg/fmap_e02.bin")).unwrap();
    good.truncate(56);
    let extent = good[32..56].to_vec();
    let mut twice = [good.clone(), extent].concat();
    twice[8] = 2;
    std::fs::write(&path, twice).unwrap();
    assert_eq!(
        refused(&path, &[]),
        "se_offset (0xa00000) lies inside another extent of the same file"
    );
    good[12..16].copy_from_slice(&(16 << 20 | 1_u32).to_le_bytes());
    std::fs::write(&path, good).unwrap();
    assert_eq!(refused(&path, &[]), "fmap_size (0x1000001) is above 16 MiB");
    std::fs::write(&path, vec![0; (16 << 20) + 100]).unwrap();
    assert_eq!(
        refused(&path, &[]),
        "fmap_size (0x1000001) is above 16 MiB",
        "a file of more than 16 MiB"
    );
}

/// The extent of this file ends at 16 MiB.
#[test]
fn device_size_stands_for_the_probe() {
    let name = "msg/fmap_e02.bin";
    assert_eq!(decoded(name, &["--device-size", "16m"])["kind"], "single");
    assert_eq!(
        refused(&vector(name), &["--device-size", "14m"]),
        "se_offset (0xa00000) and se_len (0x600000) can't be reached in daxdev 0"
    );
    assert_eq!(decode(&vector(name), &["--device-size", "x"]).0, 2);
}

#[test]
fn a_file_that_is_not_there() {
    let (code, _, err) = decode(Path::new("/nonexistent/reply"), &[]);
    assert_eq!(code, 1);
    assert!(
        err.starts_with("famfs: cannot read /nonexistent/reply: "),
        "{err}"
    );
}
