// SPDX-License-Identifier: MIT OR Apache-2.0
//! What goes to stderr besides errors: progress on terminals, traces, priorities for the journal.

// Helpers of tests may panic; clippy.toml knows only the tests themselves.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use famfs_media::{PrimaryDax, Superblock, LOG_LEN_MIN};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{grantpt, openpt, ptsname, unlockpt, OpenptFlags};
use uuid::Uuid;

const SIZE: u64 = 8 << 20;

/// Files of zeroes, which chkread finds to be as they should be, and verify not.
fn zeroes(dir: &Path) -> String {
    let path = dir.join("zeroes");
    File::create(&path).unwrap().set_len(SIZE).unwrap();
    path.to_str().unwrap().to_owned()
}

fn famfs(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_famfs"));
    command.args(args).env_remove("RUST_LOG");
    command
}

/// What a command writes to stderr when that is a terminal.
fn on_terminal(command: &mut Command) -> String {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let slave = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    let mut child = command.stdout(Stdio::null()).stderr(slave).spawn().unwrap();
    // Only the child has the other end now.
    command.stderr(Stdio::null());
    let mut text = Vec::new();
    // EIO is the end of a terminal.
    let _ = File::from(master).read_to_end(&mut text);
    child.wait().unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

fn on_pipe(command: &mut Command) -> String {
    String::from_utf8(command.output().unwrap().stderr).unwrap()
}

#[test]
fn progress_on_terminals_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = zeroes(dir.path());
    let pattern = dir.path().join("pattern").to_str().unwrap().to_owned();
    fs::write(&pattern, splitmix(7, SIZE)).unwrap();
    for args in [
        &["chkread", &path][..],
        &["verify", "--seed", "7", &pattern],
    ] {
        let shown = on_terminal(&mut famfs(args));
        assert!(shown.contains("/8.00 MiB"), "{args:?}: {shown:?}");
        assert_eq!(on_pipe(&mut famfs(args)), "", "{args:?}");
    }
    let quiet = on_terminal(&mut famfs(&["verify", "--quiet", "--seed", "7", &pattern]));
    assert_eq!(quiet, "");
}

/// docs/cli.md, "The pattern".
fn splitmix(seed: u64, len: u64) -> Vec<u8> {
    let word = |index: u64| {
        let z = seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    };
    (0..len / 8).flat_map(word).collect()
}

#[test]
fn comparisons_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let path = zeroes(dir.path());
    let rows = |args: &[&str]| -> (Option<i32>, serde_json::Value) {
        let output = famfs(args).output().unwrap();
        let rows = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), rows)
    };
    let row = |differs_at: Option<u64>| serde_json::json!([{ "file": path, "size": SIZE, "differs_at": differs_at }]);
    assert_eq!(rows(&["chkread", "--json", &path]), (Some(0), row(None)));
    assert_eq!(rows(&["verify", "--json", &path]), (Some(8), row(Some(0))));
}

#[test]
fn names_in_json_need_not_be_utf_8() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
    fs::write(&path, [0; 8]).unwrap();
    let output = famfs(&["chkread", "--json"]).arg(&path).output().unwrap();
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(
        rows[0]["file"].as_str().unwrap().ends_with("/caf\u{fffd}"),
        "{rows}"
    );
}

/// A shell gives the names that it finds.
#[test]
fn names_are_escaped() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name| dir.path().join(name).to_str().unwrap().to_owned();
    let (raw, shown) = (path("a\u{1b}[2J\u{9b}\n"), path("a\\u{1b}[2J\\u{9b}\\n"));
    File::create(&raw).unwrap().set_len(SIZE).unwrap();
    let said = |args: &[&str]| {
        let output = famfs(args).output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap(),
        )
    };
    let text = format!("famfs: {shown}: byte 0 is not that of the pattern with seed 0\n");
    assert_eq!(said(&["verify", &raw]), (Some(8), text));
    let (code, text) = said(&["chkread", "--\u{9b}2J"]);
    assert_eq!(code, Some(2));
    let line = "error: unexpected argument '--\\u{9b}2J' found\n";
    assert!(text.starts_with(line), "{text:?}");
    let bar = on_terminal(&mut famfs(&["chkread", &raw]));
    assert!(bar.contains(r"/a\u{1b}[2J\u{9b}\n"), "{bar:?}");
    assert!(!bar.contains(['\u{9b}']), "{bar:?}");
}

/// JSON needs no escapes for all of them.
#[test]
fn names_in_a_dump_are_escaped() {
    let dax = PrimaryDax {
        size: 64 << 20,
        uuid: Uuid::nil(),
        name: "\u{7f}\u{9b}2J".into(),
    };
    let nil = Uuid::nil();
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let superblock = Superblock::new(LOG_LEN_MIN, nil, nil, nil, dax).encode();
    fs::write(&image, superblock).unwrap();
    let output = famfs(&["dump"]).arg(&image).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(r#""daxdev_name":"\u{7f}\u{9b}2J""#), "{text}");
}

#[test]
fn verbs_tell_what_they_do_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = zeroes(dir.path());
    let args = ["chkread", &path];
    assert_eq!(on_pipe(&mut famfs(&args)), "");
    let called = format!(
        "called as [\"{}\", \"chkread\"",
        env!("CARGO_BIN_EXE_famfs")
    );
    let told = on_pipe(famfs(&args).env("RUST_LOG", "info"));
    assert!(
        told.starts_with(" INFO famfs ") && told.contains(&called),
        "{told}"
    );
    for verb in ["doctor", "status", "df", "verify", "getmap", "logplay"] {
        let told = on_pipe(&mut famfs(&["-v", verb, &path]));
        assert!(told.contains(" INFO famfs "), "{verb}: {told}");
    }
    assert!(!on_pipe(famfs(&["-v", "df"]).env("RUST_LOG", "error")).contains("INFO"));
}

/// The journal's priorities, where JOURNAL_STREAM names what stderr is.
#[test]
fn priorities_for_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let path = zeroes(dir.path());
    let log = dir.path().join("log");
    let file = File::create(&log).unwrap();
    let meta = file.metadata().unwrap();
    let said = |stream: String| {
        file.set_len(0).unwrap();
        let stderr = File::options().append(true).open(&log).unwrap();
        let mut command = famfs(&["-v", "verify", &path]);
        let command = command.env("JOURNAL_STREAM", stream).stderr(stderr);
        assert_eq!(command.status().unwrap().code(), Some(8));
        fs::read_to_string(&log).unwrap()
    };
    let (device, inode) = (meta.dev(), meta.ino());
    let text = said(format!("{device}:{inode}"));
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("<6>famfs "), "{text}");
    let error = format!("<3>famfs: {path}: byte 0 is not that of the pattern with seed 0");
    assert_eq!(lines.last(), Some(&&error[..]), "{text}");
    assert!(lines.iter().all(|line| line.starts_with('<')), "{text}");
    let text = said(format!("{device}:{}", inode + 1));
    assert!(
        text.starts_with(" INFO famfs ") && !text.contains('<'),
        "{text}"
    );
}
