// SPDX-License-Identifier: MIT OR Apache-2.0
//! A process that is killed while it appends, with the log in a file that both map: as when a tool on the master is
//! killed, or its machine. [`super::crash_tests`] has every byte; here the instant is the kernel's.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::*;
use famfs_fuse::map_file;
use famfs_media::{path_bytes, MkdirEntry, PrimaryDax, LOG_LEN_MIN};
use uuid::Uuid;

/// Tells [`appends_until_it_is_killed`] which log.
const LOG: &str = "FAMFS_TEST_LOG";
const KILLS: u64 = 200;

fn superblock() -> Superblock {
    let dax = PrimaryDax {
        size: 64 << 20,
        uuid: Uuid::nil(),
        name: vec![],
    };
    Superblock::new(LOG_LEN_MIN, Uuid::nil(), Uuid::nil(), Uuid::nil(), dax)
}

fn dirs(first: u64, count: u64) -> Vec<Body> {
    let dir = |name| {
        Body::Mkdir(MkdirEntry {
            uid: 0,
            gid: 0,
            mode: 0o755,
            path: path_bytes(format!("d{name}").as_bytes()),
        })
    };
    (first..first + count).map(dir).collect()
}

fn map(path: &Path) -> Region {
    let file = File::options().read(true).write(true).open(path).unwrap();
    map_file(&file, LOG_LEN_MIN as usize, true).unwrap()
}

/// What is in the log, ready to be continued.
fn settled(region: &Region) -> (LogHeader, Replay) {
    let mut replay = Replay::new(&superblock(), 64 << 20);
    let found = header(region, &superblock()).unwrap();
    catch_up(region, &found, &mut replay).unwrap();
    (settle(region, &found, &mut replay).unwrap(), replay)
}

/// The process to be killed; says how many entries there are after each append.
#[test]
#[ignore = "does nothing unless killed_at_200_points starts it"]
fn appends_until_it_is_killed() {
    let Some(path) = std::env::var_os(LOG).map(PathBuf::from) else {
        return;
    };
    let region = map(&path);
    let (mut header, _) = settled(&region);
    loop {
        let count = 1 + header.next_index % 3;
        header = append(&region, &header, dirs(header.next_index, count)).unwrap();
        // Not println, which the test harness may keep to itself.
        writeln!(std::io::stdout().lock(), "ack {}", header.next_index).unwrap();
    }
}

/// Starts the process, kills it after `wait` from its first word on; gives the last number of entries that it said.
fn kill_one(path: &Path, wait: Duration) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "log::kill_tests::appends_until_it_is_killed"])
        .args(["--ignored", "--nocapture"])
        .env(LOG, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let acks = lines.map_while(Result::ok);
    let mut acks = acks.filter_map(|line| line.strip_prefix("ack ")?.parse().ok());
    let first: u64 = acks.next().expect("the process has appended nothing");
    let start = Instant::now();
    while start.elapsed() < wait {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    acks.last().unwrap_or(first)
}

#[test]
fn killed_at_200_points() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..KILLS {
        let path = dir.path().join(format!("log{round}"));
        let file = File::create(&path).unwrap();
        file.set_len(LOG_LEN_MIN).unwrap();
        let region = map(&path);
        region
            .write(0, &LogHeader::new(LOG_LEN_MIN).encode())
            .unwrap();
        // Anywhere in an append, and the time that one takes is unknown: a golden ratio spreads the instants.
        let wait = Duration::from_nanos(round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 45);
        let acked = kill_one(&path, wait);
        let (header, replay) = settled(&region);
        assert!(
            header.next_index >= acked,
            "{header:?}, {acked} entries were there"
        );
        assert_eq!(
            (replay.totals.dirs, replay.findings.len()),
            (header.next_index, 0)
        );
        append(&region, &header, dirs(header.next_index, 2)).unwrap();
        let (after, replay) = settled(&region);
        assert_eq!(after.next_index, header.next_index + 2);
        assert_eq!(replay.totals.dirs, after.next_index);
        std::fs::remove_file(&path).unwrap();
    }
}
