// SPDX-License-Identifier: MIT OR Apache-2.0
//! fsck and dump on plain files that hold a device's first bytes: output and exit codes, on the golden vectors.

// Helpers of tests may panic; clippy.toml knows only the tests themselves.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use famfs_media::{
    entry_offset, path_bytes, Body, Entry, Extent, FileEntry, LogHeader, PrimaryDax, RawMap,
    Superblock, LOG_OFFSET,
};
use serde_json::{json, Value};
use tempfile::TempDir;
use uuid::Uuid;

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/vectors")
}

fn manifest() -> Vec<Value> {
    let text = std::fs::read(vectors().join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&text).unwrap();
    manifest["vectors"].as_array().unwrap().clone()
}

/// A file `image` with a superblock and a log where a device has them.
fn image(superblock: &str, log: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let file = File::create(dir.path().join("image")).unwrap();
    for (name, at) in [(superblock, 0), (log, 2 << 20)] {
        file.write_all_at(
            &std::fs::read(vectors().join("media").join(name)).unwrap(),
            at,
        )
        .unwrap();
    }
    dir
}

/// Exit code, stdout and stderr of famfs in `dir`.
fn famfs(dir: &TempDir, args: &[&str]) -> (i32, String, String) {
    let command = Command::new(env!("CARGO_BIN_EXE_famfs"))
        .args(args)
        .current_dir(dir.path())
        .output();
    let Output {
        status,
        stdout,
        stderr,
    } = command.unwrap();
    (
        status.code().unwrap(),
        String::from_utf8(stdout).unwrap(),
        String::from_utf8(stderr).unwrap(),
    )
}

#[test]
fn dump_decodes_as_the_manifest_does() {
    let mut seen = 0;
    for vector in manifest() {
        let file = vector["file"]
            .as_str()
            .unwrap()
            .strip_prefix("media/")
            .unwrap_or_default()
            .to_owned();
        let (is_sb, is_log) = (vector["kind"] == "superblock", vector["kind"] == "log");
        // dump wants a valid superblock; a whole decoding is given for logs that are not edits.
        let usable = if is_sb {
            vector["upstream_check_super_rc"] == 0
        } else {
            vector["derived_from"].is_null()
        };
        if !usable || !(is_sb || is_log) {
            continue;
        }
        let dir = if is_sb {
            image(&file, "log.bin")
        } else {
            image("superblock.bin", &file)
        };
        let (code, out, err) = famfs(&dir, &["dump", "--json", "image"]);
        assert_eq!((code, &err[..]), (0, ""), "{file}");
        let dump: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(
            dump[if is_sb { "superblock" } else { "log" }],
            vector["decoded"],
            "{file}"
        );
        seen += 1;
    }
    assert_eq!(seen, 5);
}

#[test]
fn dump_shows_what_a_broken_entry_says() {
    let dir = image("superblock.bin", "bad_log_entry_crc.bin");
    let (code, out, _) = famfs(&dir, &["dump", "--json", "image"]);
    let dump: Value = serde_json::from_str(&out).unwrap();
    let entry = &dump["log"]["entries"][4];
    assert_eq!(
        (code, &entry["crc_ok"], &entry["extents"][0]["offset"]),
        (0, &json!(false), &json!(1_241_514_016))
    );
    let (code, out, _) = famfs(&dir, &["dump", "image"]);
    assert_eq!((code, out.lines().count()), (0, 12));
}

#[test]
fn fsck_of_a_good_image() {
    let dir = image("superblock.bin", "log.bin");
    let expected = "\
famfs 10111213-1415-1617-1819-1a1b1c1d1e1f
  device       /dev/dax0.0, 16.00 GiB
  role         client (system uuid 0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0)
  log          10 of 15420 entries used
  files        7, 131.77 MiB
  directories  3
  allocated    204.00 MiB
  space        107 of 8192 units used, 15.79 GiB free
";
    assert_eq!(
        famfs(&dir, &["fsck", "--human", "image"]),
        (0, expected.into(), String::new())
    );
    let (code, out, _) = famfs(&dir, &["fsck", "--json", "image"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    let keys = [
        "units",
        "units_used",
        "files",
        "directories",
        "file_bytes",
        "log_entries",
        "errors",
        "warnings",
    ];
    let found = keys.map(|key| report[key].clone());
    let wanted = [
        json!(8192),
        json!(107),
        json!(7),
        json!(3),
        json!(138_169_156),
        json!(10),
        json!([]),
        json!([]),
    ];
    assert_eq!((code, found), (0, wanted));
}

/// Exit code and what fsck says, for a log with one edit.
fn fsck(log: &str) -> (i32, Vec<String>, String) {
    let (code, out, err) = famfs(&image("superblock.bin", log), &["fsck", "image"]);
    let said = |line: &&str| line.starts_with("error") || line.starts_with("warning");
    (
        code,
        out.lines().filter(said).map(str::to_owned).collect(),
        err,
    )
}

#[test]
fn fsck_names_what_is_wrong_with_entries() {
    let one = "famfs: 1 log entry is wrong and was left out\n";
    for (log, line) in [
        ("bad_log_entry_crc.bin", "error: entry 4: broken: CRC is 0xa1e6f630, computed 0x42ce53fd"),
        ("bad_log_seq_gap.bin", "error: entry 5: broken: sequence number is 6"),
        ("bad_log_padding_flipped.bin", "error: entry 0: broken: CRC is 0xd6db820b, computed 0x989d4923"),
        (
            "odd_log_ext_offset0.bin",
            "error: entry 2 \"one_extent.bin\": extent 0: offset 0x0 lies in the superblock or the log",
        ),
        ("odd_log_abs_path.bin", "error: entry 2 \"/ne_extent.bin\": path: absolute"),
    ] {
        // The directory of entry 0 is missing for the files below it.
        let (code, lines, err) = fsck(log);
        assert_eq!((code, &lines[0][..]), (8, line));
        let count = if log == "bad_log_padding_flipped.bin" { 4 } else { 1 };
        assert_eq!(lines.len(), count, "{lines:?}");
        assert!(count > 1 || err == one, "{err}");
    }
}

const MIB: u64 = 1 << 20;

fn superblock(log_len: u64) -> Superblock {
    let dax = PrimaryDax {
        size: 64 * MIB,
        uuid: Uuid::nil(),
        name: b"/dev/dax0.0\x1b[2J".to_vec(),
    };
    Superblock::new(log_len, Uuid::nil(), Uuid::nil(), Uuid::nil(), dax)
}

fn header(log_len: u64, count: u64) -> LogHeader {
    LogHeader {
        next_seqnum: count,
        next_index: count,
        ..LogHeader::new(log_len)
    }
}

/// A file with one extent, as an entry.
fn entry(seqnum: u64, path: &str, devindex: u64, offset: u64) -> Entry {
    let extent = Extent {
        devindex,
        offset,
        len: 4 * MIB,
    };
    let body = Body::File(FileEntry {
        size: 3 * MIB,
        flags: FileEntry::ALL_HOSTS_RW,
        uid: 0,
        gid: 0,
        mode: 0o644,
        path: path_bytes(path.as_bytes()),
        map: RawMap::Simple {
            nextents: 1,
            extents: vec![extent],
        },
    });
    Entry { seqnum, body }
}

/// What another host can have done to a log that is whole: each named, with its exit code, and nothing else lost.
#[test]
fn fsck_names_what_could_do_harm() {
    for (path, devindex, offset, wrong) in [
        (
            "f",
            0,
            12 * MIB,
            "extent 0: 1 of its units at 0xc00000 are in use already",
        ),
        (
            "f",
            0,
            62 * MIB,
            "extent 0: 0x3e00000+0x400000 ends past the device (0x4000000 bytes)",
        ),
        (
            "f",
            0,
            0xffff_ffff_ffe0_0000,
            "extent 0: 0xffffffffffe00000+0x400000 ends past the device (0x4000000 bytes)",
        ),
        ("f", 1, 20 * MIB, "extent 0: no daxdev has index 1"),
        (
            "f",
            0,
            8 * MIB,
            "extent 0: offset 0x800000 lies in the superblock or the log",
        ),
        (
            "../etc/shadow",
            0,
            20 * MIB,
            "path: has an empty, \".\" or \"..\" component",
        ),
        (
            "a/../../f",
            0,
            20 * MIB,
            "path: has an empty, \".\" or \"..\" component",
        ),
        (".meta/.log", 0, 20 * MIB, "path: .meta is reserved"),
        (
            "none/f",
            0,
            20 * MIB,
            "path: its parent directory does not exist",
        ),
        (
            "good/f",
            0,
            20 * MIB,
            "path: its parent directory does not exist",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("image")).unwrap();
        let entries = [
            entry(0, "good", 0, 10 * MIB),
            entry(1, path, devindex, offset),
        ];
        let log: Vec<u8> = entries.iter().flat_map(Entry::encode).collect();
        let log = [&header(8 * MIB, 2).encode()[..], &log].concat();
        file.write_all_at(&superblock(8 * MIB).encode(), 0).unwrap();
        file.write_all_at(&log, LOG_OFFSET).unwrap();
        let (code, out, err) = famfs(&dir, &["fsck", "image"]);
        let line = format!("error: entry 1 {path:?}: {wrong}\n");
        assert_eq!(
            (code, &err[..]),
            (8, "famfs: 1 log entry is wrong and was left out\n")
        );
        assert!(
            out.ends_with(&line) && out.matches("error").count() == 1,
            "{out}{line}"
        );
        assert!(out.contains("  files        1, "), "{out}");
        // The name of the device is what somebody wrote.
        assert!(
            out.contains("device       /dev/dax0.0\\u{1b}[2J, "),
            "{out}"
        );
    }
}

/// A file of a TiB that holds a few KiB, with a log of a billion entries. In less memory than these would take.
#[test]
fn a_huge_log_costs_what_is_in_it() {
    const LOG_LEN: u64 = 1 << 39;
    let count = LogHeader::new(LOG_LEN).last_index + 1;
    let dir = tempfile::tempdir().unwrap();
    let file = File::create(dir.path().join("image")).unwrap();
    file.set_len(1 << 40).unwrap();
    file.write_all_at(&superblock(LOG_LEN).encode(), 0).unwrap();
    file.write_all_at(&header(LOG_LEN, count).encode(), LOG_OFFSET)
        .unwrap();
    let at = |index| LOG_OFFSET + entry_offset(index).unwrap();
    // Past the device: the log is.
    for (index, path) in [(0, "first"), (count / 2, "middle"), (count - 1, "last")] {
        let bytes = entry(index, path, 0, 10 * MIB).encode();
        file.write_all_at(&bytes, at(index)).unwrap();
    }
    let run = |args: &str| {
        let command = format!(
            "ulimit -v 200000; exec {} {args} image",
            env!("CARGO_BIN_EXE_famfs")
        );
        let output = Command::new("sh")
            .args(["-c", &command])
            .current_dir(dir.path())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let (code, out, err) = run("fsck");
    let wrong = format!("famfs: {count} log entries are wrong and were left out\n");
    assert_eq!((code, err), (Some(8), wrong), "{out}");
    let lines: Vec<_> = out
        .lines()
        .filter(|line| line.starts_with("error"))
        .collect();
    let gap = |from, to| format!("error: entries {from} to {to}: broken: sequence number is 0");
    assert_eq!(lines.len(), 5, "{out}");
    assert!(lines[0].starts_with("error: entry 0 \"first\": "), "{out}");
    assert_eq!(lines[1], gap(1, count / 2 - 1));
    assert_eq!(lines[3], gap(count / 2 + 1, count - 2));
    assert!(
        lines[4].starts_with(&format!("error: entry {} \"last\": ", count - 1)),
        "{out}"
    );
    let (code, out, err) = run("dump --json");
    assert_eq!((code, &err[..]), (Some(0), ""));
    let dump: Value = serde_json::from_str(&out).unwrap();
    let entries = dump["log"]["entries"].as_array().unwrap();
    let whole: Vec<_> = entries
        .iter()
        .filter(|entry| entry["crc_ok"] == true)
        .collect();
    assert_eq!(whole.len(), 3);
    // A piece for each of them; the holes are one each.
    assert!(entries.len() < 4 * 1024, "{} entries", entries.len());
}

#[test]
fn fsck_warns_of_what_does_no_harm() {
    for (log, line) in [
        ("odd_log_unknown_type7.bin", "warning: entry 9: unknown type 7"),
        ("odd_log_delete_type2.bin", "warning: entry 9: type DELETE is not implemented by any reader"),
        (
            "odd_log_duplicate_path.bin",
            "warning: entry 3 \"one_extent.bin\": path exists already since entry 2; the first one stays",
        ),
        (
            "odd_log_next_seqnum_mismatch.bin",
            "warning: entry 10: the next sequence number, 42, is not this index: an append was cut short, or the log header is damaged",
        ),
    ] {
        assert_eq!(fsck(log), (0, vec![line.to_owned()], String::new()));
    }
    assert_eq!(
        fsck("odd_log_padding_nonzero_crc_ok.bin"),
        (0, vec![], String::new())
    );
}

#[test]
fn no_famfs_and_a_broken_one_differ() {
    let run = |superblock, log| {
        let (code, out, err) = famfs(&image(superblock, log), &["fsck", "image"]);
        assert_eq!(out, "");
        (code, err)
    };
    let said = |code, text: &str| (code, format!("famfs: {text}\n"));
    let magic = "image: superblock: magic is 0x87b282fe, not 0x87b282ff: there is no famfs here, `mkfs.famfs` makes one";
    assert_eq!(run("bad_sb_magic.bin", "log.bin"), said(3, magic));
    let version = "image: superblock: version is 47, only 48 is understood";
    assert_eq!(run("bad_sb_version47.bin", "log.bin"), said(3, version));
    let crc = "image: superblock: CRC is 0x61161df0, computed 0xe47ebd58";
    assert_eq!(run("bad_sb_crc.bin", "log.bin"), said(8, crc));
    let unit = "image: superblock: allocation unit is 8192, not 2 MiB or 4 KiB";
    assert_eq!(run("bad_sb_alloc_unit.bin", "log.bin"), said(8, unit));
    let magic = "log header: magic is 0xbadcafef00e, not 0xbadcafef00d";
    assert_eq!(run("superblock.bin", "bad_log_magic.bin"), said(8, magic));
    let crc = "log header: CRC is 0xa5875078, computed 0x692d50e6";
    assert_eq!(run("superblock.bin", "bad_log_hdr_crc.bin"), said(8, crc));
}

#[test]
fn a_file_that_ends_early() {
    let dir = image("superblock.bin", "log.bin");
    let file = File::options()
        .write(true)
        .open(dir.path().join("image"))
        .unwrap();
    file.set_len((2 << 20) + 48 + 9 * 544).unwrap();
    let (code, out, _) = famfs(&dir, &["fsck", "image"]);
    assert_eq!(code, 8);
    assert!(
        out.contains("error: entry 9: broken: the log ends before it\n"),
        "{out}"
    );
    file.set_len(100).unwrap();
    let err = famfs(&dir, &["fsck", "image"]).2;
    assert_eq!(err, "famfs: image: superblock: 100 bytes, 200 needed\n");
}

#[test]
fn link_names_and_usage() {
    let dir = image("superblock.bin", "log.bin");
    let link = dir.path().join("fsck.famfs");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_famfs"), &link).unwrap();
    let out = Command::new(&link)
        .arg("--json")
        .arg(dir.path().join("image"))
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(0));
    assert_eq!(
        serde_json::from_slice::<Value>(&out.stdout).unwrap()["files"],
        7
    );
    for args in [
        &["nonsense"][..],
        &[],
        &["creat"],
        &["creat", "f", "-s", "8q"],
        &["mkfs", "-l", "9m", "/dev/dax0.0"],
    ] {
        assert_eq!(famfs(&dir, args).0, 2, "{args:?}");
    }
    let (code, out, _) = famfs(&dir, &["--help"]);
    let docs = std::fs::read_to_string(vectors().join("../../docs/cli.md")).unwrap();
    let table = docs
        .split("```text\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .unwrap();
    assert_eq!((code, table.lines().count()), (0, 10));
    assert!(out.ends_with(table), "{out}");
}

#[test]
fn verbs_that_need_a_mount_say_so() {
    let dir = image("superblock.bin", "log.bin");
    for args in [
        &["creat", "-s", "1m", "f"][..],
        &["cp", "image", "f"],
        &["mkdir", "d"],
        &["getmap", "image"],
        &["flush", "image"],
        &["logplay", "."],
    ] {
        let (code, out, err) = famfs(&dir, args);
        assert_eq!((code, &out[..]), (3, ""), "{args:?}: {err}");
        assert!(err.contains("is not in a mounted famfs"), "{args:?}: {err}");
    }
    let (code, _, err) = famfs(&dir, &["status", "."]);
    assert_eq!(code, 3, "{err}");
    let (code, _, err) = famfs(&dir, &["fsck", "missing"]);
    assert_eq!(
        (code, &err[..]),
        (
            1,
            "famfs: missing: No such file or directory (os error 2)\n"
        )
    );
}

#[test]
fn mkfs_wants_a_dax_device() {
    let dir = image("superblock.bin", "log.bin");
    for path in ["image", "/dev/null", "/dev/dax99.99"] {
        let (code, out, err) = famfs(&dir, &["mkfs", path]);
        assert_eq!((code, &out[..]), (4, ""), "{err}");
        assert!(err.contains(path), "{err}");
    }
}
