// SPDX-License-Identifier: MIT OR Apache-2.0
//! The famfs binary at its normal work: file systems, files, two devices, a server that dies.

use std::fs::{self, File, OpenOptions};
use std::path::Path;

use anyhow::{ensure, Context, Result};
use rustix::fs::{flock, FlockOperation};
use rustix::mount::{unmount, UnmountFlags};
use rustix::process::Signal;
use serde_json::{json, Value};

use super::fixture::{ensure_eq, pattern, ready, Ready};
use super::Test;
use crate::channel::Channel;
use crate::fmap::{extent, Fmap, AU};
use crate::runner::Guest;
use crate::sys::{Kind, Mapping};
use crate::tool::{famfs, getmap, mkfs, run, server, signal_server};

pub const TESTS: &[(&str, Test)] = &[
    ("files_appear_and_stay", files_appear_and_stay),
    (
        "a_lock_on_the_log_stops_nobody",
        a_lock_on_the_log_stops_nobody,
    ),
    (
        "raw_bytes_are_where_getmap_says",
        raw_bytes_are_where_getmap_says,
    ),
    ("directories_are_made_at_once", directories_are_made_at_once),
    ("recursive_copy", recursive_copy),
    ("interleaved_file", interleaved_file),
    ("many_files_at_once", many_files_at_once),
    ("lists_and_sums", lists_and_sums),
    ("a_program_runs_from_famfs", a_program_runs_from_famfs),
    ("killed_server", killed_server),
    ("cached_opens_ask_nobody", cached_opens_ask_nobody),
];

/// For guests with two daxdevs.
pub const STRIPED: &[(&str, Test)] = &[
    ("two_daxdevs", two_daxdevs),
    ("daxdevs_are_known_by_uuid", daxdevs_are_known_by_uuid),
];

pub const MOUNTPOINT: &str = "/mnt/famfs";
const SIZE: u64 = AU + 4219;
const MIB: u64 = 1 << 20;
const USAGE: i32 = 2;
const DEVICE: i32 = 4;
const NO_SPACE: i32 = 7;
const CORRUPT: i32 = 8;

/// A fresh file system on the first devices, mounted; dropping it unmounts.
pub struct Mounted {
    pub ready: Ready,
    devices: Vec<String>,
}

impl Mounted {
    pub fn new(guest: &Guest, devices: usize) -> Result<Self> {
        let ready = ready(guest)?;
        ready.raw(devices as u32 - 1)?;
        let devices: Vec<String> = ready.paths.iter().take(devices).cloned().collect();
        let args: Vec<&str> = ["--force"]
            .into_iter()
            .chain(devices.iter().map(String::as_str))
            .collect();
        mkfs(&args)?;
        let mounted = Self { ready, devices };
        mounted.mount()?;
        Ok(mounted)
    }

    pub fn mount(&self) -> Result<()> {
        fs::create_dir_all(MOUNTPOINT)?;
        famfs(&["mount", &self.devices[0], MOUNTPOINT]).map(drop)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(MOUNTPOINT, UnmountFlags::DETACH);
    }
}

pub fn umount() -> Result<()> {
    unmount(MOUNTPOINT, UnmountFlags::empty()).context("umount")
}

pub fn at(name: &str) -> String {
    format!("{MOUNTPOINT}/{name}")
}

pub fn source(name: &str, size: u64) -> Result<String> {
    let path = format!("/tmp/{name}");
    fs::write(&path, pattern(0, size as usize))?;
    Ok(path)
}

/// What is created is there at once, and there again after a new mount.
fn files_appear_and_stay(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mounted = Mounted::new(guest, 1)?;
    ensure!(
        Path::new(&at(".meta/.superblock")).exists(),
        "no .meta/.superblock in the mount"
    );
    famfs(&["mkdir", &at("dir")])?;
    famfs(&["creat", "--size", "3m", &at("dir/made")])?;
    famfs(&["cp", &source("copied", SIZE)?, &at("copied")])?;
    let check = || -> Result<()> {
        ensure_eq!(
            fs::metadata(at("dir/made"))?.len(),
            3 << 20,
            "size of the created file"
        );
        ensure!(
            fs::read(at("dir/made"))?.iter().all(|byte| *byte == 0),
            "a created file is not all zeros"
        );
        ensure!(
            fs::read(at("copied"))? == pattern(0, SIZE as usize),
            "the copied file has other bytes than its source"
        );
        famfs(&["fsck", MOUNTPOINT]).map(drop)
    };
    check().context("first mount")?;
    umount()?;
    famfs(&["fsck", &mounted.devices[0]]).context("fsck of the device")?;
    mounted.mount()?;
    check().context("second mount")?;
    umount()
}

/// Anybody can open the log for reading, and that is enough to lock it.
fn a_lock_on_the_log_stops_nobody(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let _mounted = Mounted::new(guest, 1)?;
    let log = File::open(at(".meta/.log"))?;
    flock(&log, FlockOperation::LockExclusive)?;
    famfs(&["mkdir", &at("dir")])?;
    ensure!(Path::new(&at("dir")).is_dir(), "no directory was made");
    drop(log);
    umount()
}

fn raw_bytes_are_where_getmap_says(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mounted = Mounted::new(guest, 1)?;
    let path = at("file");
    famfs(&["cp", &source("file", SIZE)?, &path])?;
    let map = getmap(&path)?;
    ensure_eq!(
        map.len(),
        1,
        "extents of a file that was copied without striping"
    );
    let (index, offset, len) = map[0];
    ensure_eq!(
        (index, len),
        (0, 2 * AU),
        "device index and length of the extent"
    );
    // Behind the superblock and a log of 8 MiB.
    ensure!(
        offset >= 5 * AU && offset % AU == 0,
        "the extent lies at {offset:#x}"
    );
    ensure!(
        mounted.ready.raw(0)?.read(offset, SIZE as usize)? == pattern(0, SIZE as usize),
        "the raw memory has other bytes"
    );
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    let mapping = Mapping::new(&file, 0, SIZE as usize, Kind::SharedWrite)?;
    mapping.set_byte(SIZE as usize - 1, 0x5c);
    ensure_eq!(
        mounted.ready.raw(0)?.read(offset + SIZE - 1, 1)?,
        [0x5c],
        "the raw byte after a store to the mapping"
    );
    Ok(())
}

fn directories_are_made_at_once(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let _mounted = Mounted::new(guest, 1)?;
    let (a, b, c) = (at("a"), at("a/b"), at("c"));
    famfs(&["mkdir", &a, &b])?;
    run("famfs", &["mkdir", &c, &b])?.expect_failure(1, "/a/b: exists")?;
    ensure!(!Path::new(&c).exists(), "one of two directories was made");
    famfs(&["creat", "--size", "2m", &at("file")])?;
    for verb in [&["mkdir"][..], &["creat", "--size", "2m"]] {
        let refused = run("famfs", &[verb, &[&at("file/below")]].concat())?;
        refused.expect_failure(1, "its parent is not a directory")?;
    }
    famfs(&["fsck", MOUNTPOINT])?;
    umount()
}

fn recursive_copy(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let _mounted = Mounted::new(guest, 1)?;
    fs::create_dir_all("/tmp/tree/a/b")?;
    let files = [("top", 1), ("a/one", 4096), ("a/b/two", 70_001)];
    for (name, size) in files {
        fs::write(format!("/tmp/tree/{name}"), pattern(0, size))?;
    }
    famfs(&["cp", "-r", "/tmp/tree", MOUNTPOINT])?;
    for (name, size) in files {
        ensure!(
            fs::read(at(&format!("tree/{name}")))? == pattern(0, size),
            "tree/{name} has other bytes than its source"
        );
    }
    Ok(())
}

fn interleaved_file(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mounted = Mounted::new(guest, 1)?;
    let (path, size) = (at("striped"), 5 * AU - 4219);
    famfs(&["cp", "--nstrips", "3", &source("striped", size)?, &path])?;
    let strips: Vec<_> = getmap(&path)?
        .iter()
        .map(|(dev, offset, len)| extent(*dev as u32, *offset, *len))
        .collect();
    ensure_eq!(strips.len(), 3, "strips");
    let fmap = Fmap::interleaved(size, AU as u32, &strips);
    ensure!(
        mounted.ready.raw_bytes(&fmap, 0, size as usize)? == pattern(0, size as usize),
        "the raw memory has other bytes"
    );
    ensure!(
        fs::read(&path)? == pattern(0, size as usize),
        "the file has other bytes than its source"
    );
    Ok(())
}

/// One plan for all of them, several filled at a time; what one of them lacks, none of them gets.
fn many_files_at_once(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let _mounted = Mounted::new(guest, 1)?;
    let names: Vec<_> = (0..12).map(|index| at(&format!("f{index}"))).collect();
    let (mut creat, mut verify) = (vec!["creat", "--threads", "3"], vec!["verify", "-t", "3"]);
    let new: Vec<_> = (0u64..)
        .zip(&names)
        .map(|(seed, name)| format!("{name},300k,{seed}"))
        .collect();
    let seeded: Vec<_> = (0u64..)
        .zip(&names)
        .map(|(seed, name)| format!("{name},{seed}"))
        .collect();
    creat.extend(new.iter().flat_map(|new| ["--multi", new]));
    verify.extend(seeded.iter().flat_map(|seeded| ["--multi", seeded]));
    famfs(&creat)?;
    famfs(&verify)?;
    famfs(&creat).context("creat again")?;
    let wrong = run("famfs", &["verify", "--seed", "1", &names[1], &names[2]])?;
    wrong.expect_failure(CORRUPT, "f2: byte 0 is not that of the pattern with seed 1")?;
    let all: Vec<_> = ["chkread"]
        .into_iter()
        .chain(names.iter().map(String::as_str))
        .collect();
    famfs(&all)?;
    let (small, huge) = (format!("{},1m", at("small")), format!("{},1t", at("huge")));
    let refused = run("famfs", &["creat", "--multi", &small, "--multi", &huge])?;
    refused.expect_failure(NO_SPACE, "huge: no space")?;
    ensure!(
        !Path::new(&at("small")).exists(),
        "a file of a plan that was refused"
    );
    famfs(&["check", MOUNTPOINT]).map(drop)
}

/// ls, df and status know the same files and the same space.
fn lists_and_sums(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mounted = Mounted::new(guest, 1)?;
    famfs(&["mkdir", "--mode", "0750", &at("d")])?;
    famfs(&["creat", "--size", "5m", "--nstrips", "2", &at("d/striped")])?;
    famfs(&["cp", "--compare", &source("plain", SIZE)?, &at("plain")])?;
    let json =
        |args: &[&str]| -> Result<serde_json::Value> { Ok(serde_json::from_str(&famfs(args)?)?) };
    let rows = json(&["ls", "-R", "--map", "--json", MOUNTPOINT])?;
    let column = |key: &str| -> Vec<_> {
        rows.as_array()
            .into_iter()
            .flatten()
            .map(|row| row[key].clone())
            .collect()
    };
    let path = |name| serde_json::Value::from(at(name));
    ensure_eq!(
        column("path"),
        [path("d"), path("d/striped"), path("plain")],
        "paths"
    );
    ensure_eq!(column("size"), [0, 5 << 20, SIZE], "sizes");
    ensure_eq!(column("mode"), ["0750", "0644", "0644"], "modes");
    ensure_eq!(
        rows[1]["map"]["extents"].as_array().map(Vec::len),
        Some(2),
        "strips"
    );
    // Superblock and log, two strips of 4 MiB, and 4 MiB.
    let used = 10 * MIB + 8 * MIB + 4 * MIB;
    let df = json(&["df", "--json"])?;
    ensure_eq!(
        df["daxdevs"][0]["used"],
        used,
        "bytes in use according to df"
    );
    ensure_eq!(df["logs"][0]["entries"], 3, "entries");
    let _held = fs::File::open(at("plain"))?;
    let all = json(&["status", "--json"])?;
    let status = &all[0];
    ensure_eq!(all.as_array().map(Vec::len), Some(1), "mounts");
    ensure_eq!(
        status["daxdevs"][0]["device"],
        mounted.devices[0].as_str(),
        "device"
    );
    ensure_eq!(
        status["daxdevs"][0]["units_used"],
        used / AU,
        "units in use according to status"
    );
    ensure_eq!(
        (&status["files"], &status["directories"]),
        (&2.into(), &1.into()),
        "files, directories"
    );
    ensure!(
        status["kernel"]["fmaps"].as_u64() >= Some(1),
        "no fmap in {status}"
    );
    ensure!(
        status["kernel"]["fmap_bytes"].as_u64() >= Some(80),
        "no bytes in {status}"
    );
    ensure_eq!(
        status["kernel"]["failures"],
        serde_json::json!([]),
        "failures"
    );
    Ok(())
}

/// Its text is mapped from the memory itself.
fn a_program_runs_from_famfs(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let _mounted = Mounted::new(guest, 1)?;
    let program = at("busybox");
    famfs(&["cp", "--mode", "0755", "/usr/bin/busybox", &program])?;
    let said = run(&program, &["echo", "from famfs"])?.expect_success()?;
    ensure_eq!(said, "from famfs\n", "output");
    let said = run(&program, &["sha256sum", &program, "/usr/bin/busybox"])?.expect_success()?;
    let mut sums = said.lines().filter_map(|line| line.split(' ').next());
    ensure!(
        sums.next()
            .is_some_and(|sum| sum.len() == 64 && sums.next() == Some(sum)),
        "checksums: {said}"
    );
    Ok(())
}

/// A file striped over two daxdevs.
fn two_daxdevs(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mounted = Mounted::new(guest, 2)?;
    let (path, size) = (at("striped"), 4 * AU - 4219);
    famfs(&["cp", "--nstrips", "2", &source("striped", size)?, &path])?;
    let strips: Vec<_> = getmap(&path)?
        .iter()
        .map(|(dev, offset, len)| extent(*dev as u32, *offset, *len))
        .collect();
    let mut devices: Vec<u32> = strips.iter().map(|strip| strip.dev).collect();
    devices.sort_unstable();
    ensure_eq!(devices, [0, 1], "devices of the strips");
    let fmap = Fmap::interleaved(size, AU as u32, &strips);
    ensure!(
        mounted.ready.raw_bytes(&fmap, 0, size as usize)? == pattern(0, size as usize),
        "the raw memory has other bytes"
    );
    ensure!(
        fs::read(&path)? == pattern(0, size as usize),
        "the file has other bytes than its source"
    );
    Ok(())
}

/// A daxdev of another file system is not taken, not found and not by name.
fn daxdevs_are_known_by_uuid(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mounted = Mounted::new(guest, 2)?;
    let [first, second] = [&mounted.devices[0], &mounted.devices[1]];
    let df: serde_json::Value = serde_json::from_str(&famfs(&["df", "--json"])?)?;
    ensure_eq!(
        df["daxdevs"][1]["device"],
        second.as_str(),
        "path of daxdev 1"
    );
    umount()?;
    famfs(&["mount", "--daxdev", second, first, MOUNTPOINT])?;
    umount()?;
    let refused = run("famfs", &["mount", second, MOUNTPOINT])?;
    refused.expect_failure(USAGE, "holds no log")?;
    // The file system on both is gone from the second.
    mkfs(&["--force", second])?;
    for args in [&["mount"][..], &["mount", "--daxdev", second]] {
        let refused = run("famfs", &[args, &[first, MOUNTPOINT]].concat())?;
        refused.expect_failure(DEVICE, "daxdev 1 (uuid ")?;
    }
    Ok(())
}

/// The server is asked to open a file once, which it leaves to the kernel; after that it is asked for maps alone.
fn cached_opens_ask_nobody(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let _mounted = Mounted::new(guest, 1)?;
    let path = at("file");
    famfs(&["creat", "-s", "2M", &path])?;
    let requests = || -> Result<Value> {
        let status: Value = serde_json::from_str(&famfs(&["status", "--json", MOUNTPOINT])?)?;
        Ok(status["requests"].clone())
    };
    drop(File::open(&path)?);
    let before = requests()?;
    for _ in 0..10 {
        drop(File::open(&path)?);
    }
    ensure_eq!(requests()?, before, "requests after ten more opens");
    // The superblock, the log and the file.
    ensure_eq!(
        (&before["OPEN"], &before["GET_FMAP"]),
        (&json!(1), &json!(3)),
        "OPEN and GET_FMAP requests"
    );
    umount()
}

/// Mappings and open files outlive the server; umount and a new mount put things right.
fn killed_server(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mounted = Mounted::new(guest, 1)?;
    let path = at("file");
    famfs(&["cp", &source("file", SIZE)?, &path])?;
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    let mapping = Mapping::new(&file, 0, SIZE as usize, Kind::SharedWrite)?;
    signal_server(server()?, Signal::KILL, "ZX")?;
    ensure!(
        mapping.read(0, SIZE as usize) == pattern(0, SIZE as usize),
        "the mapping has other bytes after the server's death"
    );
    mapping.set_byte(0, 0x21);
    let errno = fs::read_dir(MOUNTPOINT)
        .err()
        .and_then(|error| error.raw_os_error());
    ensure_eq!(
        errno,
        Some(libc::ENOTCONN),
        "errno of readdir without a server"
    );
    drop((mapping, file));
    umount()?;
    mounted.mount()?;
    ensure_eq!(
        fs::read(&path)?[0],
        0x21,
        "the byte stored after the server's death"
    );
    umount()
}
