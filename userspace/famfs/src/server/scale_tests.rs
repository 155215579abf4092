// SPDX-License-Identifier: MIT OR Apache-2.0
//! Figures for a file system with 10,000 files, all of user space's part of it: everything but the kernel.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use famfs_fuse::{map_file, Opcode};
use famfs_media::{path_bytes, Body, FileEntry, RawMap, Replay, LOG_LEN_MIN, SUPERBLOCK_LEN};

use super::kept::LogCopy;
use super::logplay::Reader;
use super::namespace::Namespace;
use super::tests::{list, Kernel};
use crate::{log, mkfs};

const FILES: u64 = 10_000;
const DEVICE: u64 = 32 << 30;
/// What mkfs to listed may take.
const TO_HOLD: Duration = Duration::from_millis(200);

/// Resident bytes of this process.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib << 10
}

fn region(dir: &tempfile::TempDir, name: &str, len: u64) -> famfs_fuse::Region {
    let path = dir.path().join(name);
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .unwrap();
    file.set_len(len).unwrap();
    map_file(&file, len as usize, true).unwrap()
}

#[test]
#[ignore = "prints figures: make bench-host"]
fn ten_thousand_files() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (sb, log) = (
        region(&dir, "superblock", SUPERBLOCK_LEN),
        region(&dir, "log", LOG_LEN_MIN),
    );
    let mut total = Duration::ZERO;
    let mut took = |what: &str, start: Instant| {
        total += start.elapsed();
        println!("{what:<26} {:.1?}", start.elapsed());
    };
    println!("{FILES} files");
    let start = Instant::now();
    let superblock = mkfs::tests::make(&sb, &log, DEVICE);
    took("mkfs", start);

    let start = Instant::now();
    let mut space = Replay::new(&superblock, DEVICE).space;
    let file = |number: u64| {
        let map = space.allocate(1 + number, None, 0).unwrap();
        Body::File(FileEntry {
            size: 1 + number,
            flags: FileEntry::ALL_HOSTS_RW,
            uid: 0,
            gid: 0,
            mode: 0o644,
            path: path_bytes(format!("file-{number:05}").as_bytes()),
            map: RawMap::from(&map),
        })
    };
    let bodies: Vec<Body> = (0..FILES).map(file).collect();
    let header = log::header(&log, &superblock).unwrap();
    log::append(&log, &header, bodies).unwrap();
    took("append the entries", start);

    let (start, before) = (Instant::now(), resident());
    let mut reader = Reader::new(LogCopy::new(&superblock).unwrap());
    reader.look(&superblock, &log).unwrap();
    let replay = reader.copy.replay(&superblock, DEVICE).unwrap();
    let mut namespace = Namespace::meta_only(superblock.log_len);
    namespace.set_replay(replay);
    took("mount: copy and replay", start);
    let bytes = resident().saturating_sub(before);

    let start = Instant::now();
    let kernel = Kernel::with(1, None, namespace);
    let listed = list(&kernel, 1, Opcode::ReadDirPlus, 1 << 15);
    took("list", start);
    let held = if total < TO_HOLD { "held" } else { "missed" };
    println!("mkfs to listed             {total:.1?}, to hold: {TO_HOLD:?}: {held}");
    println!(
        "the server's memory        {} bytes for each file",
        bytes / FILES
    );
    assert_eq!(listed.len() as u64, FILES + 3);
}
