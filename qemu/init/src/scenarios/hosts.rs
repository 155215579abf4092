// SPDX-License-Identifier: MIT OR Apache-2.0
//! Several hosts on one memory, as one guest can show them: it gets another system uuid, and what another host writes
//! to the log comes through the raw memory.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use famfs_media::{LogHeader, Superblock, SUPERBLOCK_BYTES};
use rustix::fs::{flock, FlockOperation};
use rustix::io::Errno;
use rustix::mount::{unmount, UnmountFlags};
use serde_json::Value;

use super::fixture::{ensure_eq, pattern};
use super::tool::{at, umount, Mounted, MOUNTPOINT};
use super::Test;
use crate::channel::Channel;
use crate::fmap::AU;
use crate::raw::Raw;
use crate::runner::Guest;
use crate::tool::{famfs, run};

pub const TESTS: &[(&str, Test)] = &[
    ("image_of_upstream_is_listed", image_of_upstream_is_listed),
    ("client_follows_the_log", client_follows_the_log),
    ("client_waits_for_logplay", client_waits_for_logplay),
    ("client_is_read_only", client_is_read_only),
    ("another_host_takes_over", another_host_takes_over),
    (
        "interrupted_take_over_is_finished",
        interrupted_take_over_is_finished,
    ),
    (
        "take_over_needs_a_log_to_continue",
        take_over_needs_a_log_to_continue,
    ),
    ("torn_append_is_continued", torn_append_is_continued),
    (
        "following_keeps_no_mount_busy",
        following_keeps_no_mount_busy,
    ),
    ("a_master_goes_not_back", a_master_goes_not_back),
    (
        "a_master_that_waited_looks_again",
        a_master_that_waited_looks_again,
    ),
    (
        "superblock_changes_under_a_mount",
        superblock_changes_under_a_mount,
    ),
];

const UUID_FILE: &str = "/opt/famfs/system_uuid";
const OTHER_UUID: &str = "00000000-0000-4000-8000-0000000000aa";
const OTHER_UUID_BYTES: u128 = 0x0000_0000_0000_4000_8000_0000_0000_00aa;
/// Where the two counters are on device 0.
const COUNTERS: u64 = AU + 32;
const PERMISSION: i32 = 5;
const CORRUPT: i32 = 8;

/// A file system that this host has made; from then on it is another host, until this is dropped.
struct Client {
    mounted: Mounted,
    master: Vec<u8>,
}

impl Client {
    /// `names` are made one after the other by the master, those with a slash as directories; the counters are then
    /// set back to `announced` entries.
    fn new(guest: &Guest, names: &[&str], announced: u64) -> Result<Self> {
        let mounted = Mounted::new(guest, 1)?;
        for name in names {
            match name.ends_with('/') {
                true => famfs(&["mkdir", &at(name)])?,
                false => famfs(&["creat", "--randomize", "--size", "1m", &at(name)])?,
            };
        }
        umount()?;
        let client = Self {
            mounted,
            master: fs::read(UUID_FILE)?,
        };
        become_host(OTHER_UUID.as_bytes())?;
        client.announce(announced)?;
        Ok(client)
    }

    fn raw(&self) -> Result<&Raw> {
        self.mounted.ready.raw(0)
    }

    /// What the master does when the entries are written.
    fn announce(&self, entries: u64) -> Result<()> {
        let word = entries.to_le_bytes();
        self.raw()?.write(COUNTERS, &[word, word].concat())
    }

    fn mount(&self, options: &[&str]) -> Result<String> {
        let device = &self.mounted.ready.paths[0];
        famfs(&[&["mount"], options, &[device, MOUNTPOINT]].concat())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = umount();
        let _ = become_host(&self.master);
    }
}

/// The file can't be written, as it is read-only; so it is replaced.
fn become_host(uuid: &[u8]) -> Result<()> {
    fs::remove_file(UUID_FILE)?;
    fs::write(UUID_FILE, uuid).context(UUID_FILE)
}

fn appears(path: &str) -> Result<()> {
    for _ in 0..1000 {
        if Path::new(path).exists() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
    anyhow::bail!("{path} did not appear within 20 s")
}

/// Superblock and log that upstream's code wrote, for a larger device: what fits on this one is there, as the manifest
/// says, and the rest is left out.
fn image_of_upstream_is_listed(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let client = Client::new(guest, &[], 0)?;
    client.raw()?.write(
        0,
        include_bytes!("../../../../testdata/vectors/media/superblock.bin"),
    )?;
    client.raw()?.write(
        AU,
        include_bytes!("../../../../testdata/vectors/media/log.bin"),
    )?;
    client.mount(&[])?;
    let manifest = include_str!("../../../../testdata/vectors/manifest.json");
    let manifest: Value = serde_json::from_str(manifest)?;
    let vectors = manifest["vectors"].as_array().context("no vectors")?;
    let log = vectors
        .iter()
        .find(|vector| vector["file"] == "media/log.bin");
    let entries = log.context("no log.bin")?["decoded"]["entries"].as_array();
    let size = guest.devices[0].size()?;
    let (mut there, mut left_out) = (0, 0);
    for entry in entries.context("no entries")? {
        let path = at(entry["relpath"].as_str().context("no path")?);
        let ends = ["extents", "strips"]
            .iter()
            .filter_map(|key| entry[*key].as_array())
            .flatten();
        let mut ends = ends.filter_map(|e| Some(e["offset"].as_u64()? + e["len"].as_u64()?));
        if ends.any(|end| end > size) {
            ensure!(
                !Path::new(&path).exists(),
                "{path} does not fit on the device"
            );
            left_out += 1;
            continue;
        }
        there += 1;
        let meta = fs::metadata(&path).with_context(|| path.clone())?;
        let mode = format!("{:04o}", meta.mode() & 0o7777);
        ensure_eq!(entry["mode"], mode.as_str(), "mode of {path}");
        ensure_eq!(entry["uid"], meta.uid(), "owner of {path}");
        ensure_eq!(entry["gid"], meta.gid(), "group of {path}");
        if meta.is_file() {
            ensure_eq!(entry["size"], meta.len(), "size of {path}");
        }
    }
    ensure_eq!(
        (there, left_out),
        (6, 4),
        "entries that are there, and left out"
    );
    run("famfs", &["fsck", MOUNTPOINT])?.expect_failure(CORRUPT, "4 log entries are wrong")
}

fn client_follows_the_log(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let client = Client::new(guest, &["a", "b/"], 0)?;
    client.mount(&["--follow", "0.1"])?;
    ensure_eq!(fs::metadata(MOUNTPOINT)?.nlink(), 3, "links of the root");
    ensure!(
        !Path::new(&at("a")).exists(),
        "a file that was not announced"
    );
    client.announce(1)?;
    appears(&at("a"))?;
    ensure!(
        !Path::new(&at("b")).exists(),
        "a file that was not announced"
    );
    client.announce(2)?;
    appears(&at("b"))?;
    ensure_eq!(
        fs::metadata(MOUNTPOINT)?.nlink(),
        4,
        "links with a new directory"
    );
    famfs(&["verify", &at("a")])?;
    let names: Vec<_> = fs::read_dir(MOUNTPOINT)?
        .map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default()))
        .collect::<Result<_>>()?;
    ensure_eq!(names, [".meta", "a", "b"], "the directory");
    Ok(())
}

fn client_waits_for_logplay(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let client = Client::new(guest, &["a"], 1)?;
    client.mount(&["--follow", "0"])?;
    famfs(&["verify", &at("a")])?;
    umount()?;
    client.announce(0)?;
    client.mount(&["--follow", "0"])?;
    ensure!(
        !Path::new(&at("a")).exists(),
        "a file that was not announced"
    );
    client.announce(1)?;
    let said = famfs(&["logplay", MOUNTPOINT])?;
    ensure_eq!(said.trim(), "1 log entries are in use", "what logplay said");
    famfs(&["verify", &at("a")]).map(drop)
}

fn client_is_read_only(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let client = Client::new(guest, &["a"], 1)?;
    client.mount(&[])?;
    let write = || OpenOptions::new().write(true).open(at("a"));
    let errno = write().err().and_then(|error| error.raw_os_error());
    ensure_eq!(errno, Some(libc::EROFS), "errno of an open for writing");
    let refused = run("famfs", &["mkdir", &at("d")])?;
    refused.expect_failure(PERMISSION, "only that host can add to it")?;
    umount()?;
    client.mount(&["--rw"])?;
    write()?.write_all_at(&pattern(0, 100), 0)?;
    ensure!(
        fs::read(at("a"))?[..100] == pattern(0, 100),
        "the bytes written"
    );
    let refused = run("famfs", &["mkdir", &at("d")])?;
    refused.expect_failure(PERMISSION, "only that host can add to it")
}

fn another_host_takes_over(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let client = Client::new(guest, &["a"], 1)?;
    client.mount(&["--take-over"])?;
    famfs(&["mkdir", &at("d")])?;
    famfs(&["verify", &at("a")])?;
    umount()?;
    client.mount(&[])?;
    famfs(&["mkdir", &at("d/e")])?;
    umount()?;
    become_host(&client.master)?;
    client.mount(&[])?;
    let refused = run("famfs", &["mkdir", &at("f")])?;
    refused.expect_failure(PERMISSION, OTHER_UUID)?;
    famfs(&["fsck", MOUNTPOINT]).map(drop)
}

/// The host has died with the new CRC and half of its uuid in memory.
fn interrupted_take_over_is_finished(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let client = Client::new(guest, &["a"], 1)?;
    let raw = client.raw()?;
    let mut bytes = raw.read(0, SUPERBLOCK_BYTES)?;
    bytes[80..96].copy_from_slice(&OTHER_UUID_BYTES.to_be_bytes());
    let bytes = Superblock::decode(&bytes).context("superblock")?.encode();
    raw.write(96, &bytes[96..104])?;
    raw.write(80, &bytes[80..88])?;
    let device = &client.mounted.ready.paths[0];
    let hint = "this host was interrupted when it became the master";
    for args in [
        &["mount", device, MOUNTPOINT][..],
        &["fsck", device],
        &["dump", device],
    ] {
        run("famfs", args)?.expect_failure(CORRUPT, hint)?;
    }
    become_host(&client.master)?;
    for options in [&["mount"][..], &["mount", "--take-over"]] {
        let refused = run("famfs", &[options, &[device, MOUNTPOINT]].concat())?;
        refused.expect_failure(CORRUPT, "superblock: CRC is")?;
    }
    become_host(OTHER_UUID.as_bytes())?;
    // It is finished even if the log can't be continued by now.
    raw.write(COUNTERS, &42u64.to_le_bytes())?;
    let refused = run("famfs", &["mount", "--take-over", device, MOUNTPOINT])?;
    refused.expect_failure(CORRUPT, "disagree")?;
    let found = raw.read(0, SUPERBLOCK_BYTES)?;
    ensure_eq!(found, bytes, "the superblock");
    client.announce(1)?;
    client.mount(&["--take-over"])?;
    let found = raw.read(0, SUPERBLOCK_BYTES)?;
    ensure_eq!(found, bytes, "the superblock");
    famfs(&["mkdir", &at("d")])?;
    famfs(&["verify", &at("a")]).map(drop)
}

/// Counters that no append leaves, then damage: the superblock stays that of the old master.
fn take_over_needs_a_log_to_continue(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let client = Client::new(guest, &["a", "b", "c"], 3)?;
    let raw = client.raw()?;
    let superblock = raw.read(0, SUPERBLOCK_BYTES)?;
    let device = &client.mounted.ready.paths[0];
    let refused = |text| -> Result<()> {
        run("famfs", &["mount", "--take-over", device, MOUNTPOINT])?
            .expect_failure(CORRUPT, text)?;
        let found = raw.read(0, SUPERBLOCK_BYTES)?;
        ensure_eq!(found, superblock, "the superblock");
        Ok(())
    };
    raw.write(COUNTERS, &42u64.to_le_bytes())?;
    refused("next sequence number 42 and next index 3 disagree")?;
    client.announce(3)?;
    raw.write(AU + 48 + 544 + 300, &[0xee; 244])?;
    refused("log entry 1: CRC is")
}

/// Somebody makes a file system with a longer log under a client's mount: its commands end with a message, not SIGBUS.
fn superblock_changes_under_a_mount(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let client = Client::new(guest, &["a"], 1)?;
    client.mount(&["--follow", "0.01"])?;
    let raw = client.raw()?;
    let mut superblock = Superblock::parse(&raw.read(0, SUPERBLOCK_BYTES)?)?;
    superblock.log_len *= 2;
    let header = LogHeader {
        next_index: 20_000,
        ..LogHeader::new(superblock.log_len)
    };
    raw.write(0, &superblock.encode())?;
    raw.write(AU, &header.encode())?;
    for verb in ["ls", "check", "fsck", "dump", "df"] {
        let refused = run("famfs", &[verb, MOUNTPOINT])?;
        refused
            .expect_failure(CORRUPT, "it was changed under this mount")
            .with_context(|| verb.to_owned())?;
    }
    // The server goes on with what it knows.
    famfs(&["verify", &at("a")])?;
    let refused = run("famfs", &["logplay", MOUNTPOINT])?;
    refused.expect_failure(CORRUPT, "log header: log length is")
}

/// Another host sets the counters back, or makes the file system anew: what the mount shows is not written over.
fn a_master_goes_not_back(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mounted = Mounted::new(guest, 1)?;
    famfs(&["mkdir", &at("a"), &at("b")])?;
    let raw = mounted.ready.raw(0)?;
    let log = raw.read(AU, 48 + 2 * 544)?;
    let announce = |entries: u64| {
        let word = entries.to_le_bytes();
        raw.write(COUNTERS, &[word, word].concat())
    };
    let refuses = |words| -> Result<()> {
        for args in [&["mkdir"][..], &["creat", "--size", "2m"]] {
            let refused = run("famfs", &[args, &[&at("c")]].concat())?;
            refused.expect_failure(CORRUPT, words)?;
        }
        Ok(())
    };
    announce(1)?;
    refuses("has 1 entries, it had 2: it was changed under this mount")?;
    announce(2)?;
    ensure!(raw.read(AU, log.len())? == log, "the log was written to");
    let bytes = raw.read(0, SUPERBLOCK_BYTES)?;
    let mut anew = bytes.clone();
    anew[48..64].fill(7);
    raw.write(
        0,
        &Superblock::decode(&anew).context("superblock")?.encode(),
    )?;
    refuses("the superblock says 07070707-0707-0707-0707-070707070707")?;
    raw.write(0, &bytes)?;
    famfs(&["mkdir", &at("c")])?;
    umount()
}

/// Who waits for the lock goes by nothing that was read or asked before.
fn a_master_that_waited_looks_again(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mounted = Mounted::new(guest, 1)?;
    famfs(&["mkdir", &at("a"), &at("b")])?;
    umount()?;
    let raw = mounted.ready.raw(0)?;
    let announce = |entries: u64| {
        let word = entries.to_le_bytes();
        raw.write(COUNTERS, &[word, word].concat())
    };
    announce(1)?;
    mounted.mount()?;
    let device = Path::new(&mounted.ready.paths[0]);
    let name = device.file_name().context("no name")?.to_string_lossy();
    let mut create = OpenOptions::new();
    create.write(true).create(true).truncate(false);
    let lock = create.open(format!("/run/famfs/{name}.lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let waiting = thread::spawn(|| run("famfs", &["mkdir", &at("c")]));
    let blocked =
        || Ok::<_, anyhow::Error>(fs::read_to_string("/proc/locks")?.contains("-> FLOCK"));
    while !blocked()? {
        ensure!(!waiting.is_finished(), "mkdir did not wait");
        thread::sleep(Duration::from_millis(20));
    }
    announce(2)?;
    famfs(&["logplay", MOUNTPOINT])?;
    announce(1)?;
    drop(lock);
    let refused = waiting.join().ok().context("mkdir")??;
    refused.expect_failure(CORRUPT, "has 1 entries, it had 2")?;
    announce(2)?;
    umount()
}

/// Entry 1 was half written when its host died, with the counters already in memory.
fn torn_append_is_continued(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let client = Client::new(guest, &["a", "b"], 2)?;
    client.raw()?.write(AU + 48 + 544 + 300, &[0xee; 244])?;
    client.mount(&["--take-over"])?;
    famfs(&["verify", &at("a")])?;
    ensure!(!Path::new(&at("b")).exists(), "a file of half an entry");
    famfs(&["creat", "--randomize", "--size", "1m", &at("c")])?;
    umount()?;
    client.mount(&[])?;
    famfs(&["verify", &at("a"), &at("c")])?;
    ensure_eq!(
        client.raw()?.read(COUNTERS, 16)?,
        [2u64.to_le_bytes(); 2].concat(),
        "the counters"
    );
    famfs(&["fsck", MOUNTPOINT]).map(drop)
}

/// umount(8) finds the mount idle however often the server looks at the log, but for the instant of a look.
fn following_keeps_no_mount_busy(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    const TRIES: usize = 5;

    let client = Client::new(guest, &["a"], 1)?;
    for _ in 0..10 {
        client.mount(&["--follow", "0.002"])?;
        thread::sleep(Duration::from_millis(50));
        let mut tries = (0..TRIES).map(|_| unmount(MOUNTPOINT, UnmountFlags::empty()));
        let done = tries.find(|tried| *tried != Err(Errno::BUSY));
        done.with_context(|| format!("busy {TRIES} times"))??;
    }
    Ok(())
}
