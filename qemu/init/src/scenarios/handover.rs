// SPDX-License-Identifier: MIT OR Apache-2.0
//! Servers that are replaced under a mount that is in use.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use serde_json::Value;

use super::fixture::{ensure_eq, pattern};
use super::tool::{at, umount, Mounted, MOUNTPOINT};
use super::Test;
use crate::channel::Channel;
use crate::fmap::AU;
use crate::runner::Guest;
use crate::sys::{Kind, Mapping};
use crate::tool::{famfs, mkfs, Connection};

pub const TESTS: &[(&str, Test)] = &[
    ("handovers_under_load", handovers_under_load),
    (
        "a_daxdev_may_be_another_by_then",
        a_daxdev_may_be_another_by_then,
    ),
    (
        "failed_handover_changes_nothing",
        failed_handover_changes_nothing,
    ),
];

const FILES: usize = 12;
/// How long one call may take before it counts as hung.
const HUNG: Duration = Duration::from_secs(20);

pub fn name(index: usize) -> String {
    at(&format!("d{}/f{index}", index % 3))
}

/// Directories and files with known bytes.
pub fn make_files() -> Result<()> {
    let dirs: Vec<String> = (0..3).map(|dir| at(&format!("d{dir}"))).collect();
    let mut args = vec!["mkdir"];
    args.extend(dirs.iter().map(String::as_str));
    famfs(&args)?;
    fs::write("/tmp/handover", pattern(0, AU as usize))?;
    for index in 0..FILES {
        famfs(&["cp", "/tmp/handover", &name(index)])?;
    }
    Ok(())
}

/// What the mount shows of each path: inode number, mode, size, time.
pub type Shown = BTreeMap<String, (u64, u32, u64, i64)>;

pub fn shown() -> Result<Shown> {
    // The attributes are to come from the server.
    fs::write("/proc/sys/vm/drop_caches", "2")?;
    let dirs = ["", ".meta", "d0", "d1", "d2"].map(at);
    let mut shown = Shown::new();
    for dir in dirs {
        for entry in fs::read_dir(&dir).with_context(|| dir.clone())? {
            let path = entry?.path();
            let stat = fs::metadata(&path).with_context(|| path.display().to_string())?;
            let what = (stat.ino(), stat.mode(), stat.size(), stat.mtime());
            shown.insert(path.display().to_string(), what);
        }
    }
    Ok(shown)
}

/// Threads that call into the mount until they are stopped. None of their calls may fail.
struct Load {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    fn start() -> Self {
        let (stop, calls) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let work: [fn(usize) -> Result<()>; 4] = [open_and_read, stat_all, list, miss];
        let threads = work
            .into_iter()
            .map(|work| {
                let (stop, calls) = (Arc::clone(&stop), Arc::clone(&calls));
                thread::spawn(move || {
                    for round in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        work(round).with_context(|| format!("round {round}"))?;
                        calls.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        Self {
            stop,
            calls,
            threads,
        }
    }

    /// Waits until each thread is likely to have called some more.
    fn go_on(&self) -> Result<()> {
        let goal = self.calls.load(Ordering::Relaxed) + 8;
        let start = Instant::now();
        while self.calls.load(Ordering::Relaxed) < goal {
            ensure!(start.elapsed() < HUNG, "calls into the mount hang");
            ensure!(
                !self.threads.iter().any(JoinHandle::is_finished),
                "a thread has ended"
            );
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// No call has failed, and none hangs. Gives how many there were.
    fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let start = Instant::now();
        for thread in self.threads {
            while !thread.is_finished() {
                if start.elapsed() > HUNG {
                    Connection::of(MOUNTPOINT)?.abort()?;
                    bail!("a call into the mount hangs");
                }
                thread::sleep(Duration::from_millis(5));
            }
            match thread.join() {
                Ok(result) => result?,
                Err(_) => bail!("a thread has panicked"),
            }
        }
        Ok(self.calls.load(Ordering::Relaxed))
    }
}

fn open_and_read(round: usize) -> Result<()> {
    let file = File::open(name(round % (FILES - 1)))?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, (round % AU as usize) as u64)?;
    ensure_eq!(
        byte[0],
        pattern((round % AU as usize) as u64, 1)[0],
        "a byte"
    );
    Ok(())
}

fn stat_all(round: usize) -> Result<()> {
    // Has the kernel ask again.
    fs::write("/proc/sys/vm/drop_caches", "2")?;
    ensure_eq!(fs::metadata(name(round % (FILES - 1)))?.len(), AU, "size");
    Ok(())
}

fn list(round: usize) -> Result<()> {
    let entries = fs::read_dir(at(&format!("d{}", round % 3)))?;
    let names: Vec<_> = entries.collect::<std::io::Result<_>>()?;
    ensure_eq!(names.len(), FILES / 3, "entries of a directory");
    Ok(())
}

/// Names that do not exist are asked for each time, with the directory locked.
fn miss(round: usize) -> Result<()> {
    let path = at(&format!("d{}/none", round % 3));
    let error = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .err();
    let errno = error.and_then(|error| error.raw_os_error());
    ensure_eq!(errno, Some(libc::EOPNOTSUPP), "errno of creat");
    Ok(())
}

pub fn server_pid() -> Result<u64> {
    let text = famfs(&["status", "--json", MOUNTPOINT])?;
    let status: Value = serde_json::from_str(&text)?;
    status["pid"].as_u64().context("no pid in the status")
}

/// What a test keeps in use while servers change, and what it expects afterwards.
struct Use {
    before: Shown,
    file: File,
    mapping: Mapping,
}

impl Use {
    fn start() -> Result<Self> {
        make_files()?;
        fs::set_permissions(name(1), fs::Permissions::from_mode(0o640))?;
        let before = shown()?;
        let file = OpenOptions::new().read(true).write(true).open(name(0))?;
        let mapping = Mapping::new(&file, 0, AU as usize, Kind::SharedWrite)?;
        mapping.byte(0);
        Ok(Self {
            before,
            file,
            mapping,
        })
    }

    /// The server has changed for the `round`th time.
    fn check(&self, round: usize) -> Result<()> {
        ensure_eq!(
            self.mapping.read(4096, 4096),
            pattern(4096, 4096),
            "the mapping"
        );
        self.mapping.set_byte(0, round as u8);
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, 0)?;
        ensure_eq!(byte, [round as u8], "a byte read from the open file");
        Ok(())
    }

    fn finish(self) -> Result<()> {
        // No thread has opened this one.
        let bytes = fs::read(name(FILES - 1)).context("a file opened for the first time")?;
        ensure!(
            bytes == pattern(0, AU as usize),
            "a file opened for the first time has other bytes"
        );
        ensure_eq!(
            shown()?,
            self.before,
            "inode numbers, modes, sizes and times"
        );
        famfs(&["creat", "--size", "2m", &at("late")])?;
        ensure_eq!(
            fs::metadata(at("late"))?.len(),
            2 << 20,
            "a new file's size"
        );
        drop((self.mapping, self.file));
        umount()
    }
}

/// Has `change` change the server so often, with all of that in use.
pub fn under_load(changes: usize, mut change: impl FnMut(usize) -> Result<()>) -> Result<()> {
    let used = Use::start()?;
    let load = Load::start();
    let mut all = || -> Result<()> {
        for round in 0..changes {
            change(round).with_context(|| format!("change {round}"))?;
            load.go_on()?;
            used.check(round)?;
        }
        Ok(())
    };
    let changed = all();
    load.finish()?;
    changed?;
    used.finish()
}

fn handovers_under_load(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mounted = Mounted::new(guest, 1)?;
    let mut pid = server_pid()?;
    under_load(20, |round| {
        let place = [MOUNTPOINT, &mounted.ready.paths[0]][round % 2];
        famfs(&["server", "handover", place])?;
        let next = server_pid()?;
        ensure!(next != pid, "the server is process {pid} as before");
        ensure!(
            !Path::new(&format!("/proc/{pid}/exe")).exists(),
            "the old server is still there"
        );
        pid = next;
        Ok(())
    })
}

/// A successor knows the daxdevs by their uuids; not one that the mount holds, which is the same for sure.
fn a_daxdev_may_be_another_by_then(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mounted = Mounted::new(guest, 2)?;
    let (both, plain) = (at("both"), at("plain"));
    famfs(&["creat", "--size", "4m", "--nstrips", "2", "-r", &both])?;
    famfs(&["creat", "--size", "2m", "-r", &plain])?;
    umount()?;
    mounted.mount()?;
    let hand_over = || famfs(&["server", "handover", MOUNTPOINT]);
    hand_over().context("the second not held")?;
    famfs(&["verify", &both, &plain])?;
    hand_over().context("both held")?;
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    famfs(&["verify", &both, &plain])?;
    umount()?;
    mounted.mount()?;
    // The mount has opened nothing there, so the device is free for another file system.
    mkfs(&["--force", &mounted.ready.paths[1]])?;
    hand_over().context("another file system")?;
    let errno = File::open(&both)
        .err()
        .and_then(|error| error.raw_os_error());
    ensure_eq!(
        errno,
        Some(libc::ENODEV),
        "errno of an open on the lost daxdev"
    );
    famfs(&["verify", &plain])?;
    umount()
}

/// A successor that does not come up leaves the old server where it is.
fn failed_handover_changes_nothing(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mounted = Mounted::new(guest, 1)?;
    make_files()?;
    let pid = server_pid()?;
    let device = Path::new(&mounted.ready.paths[0]);
    let device = device.file_name().context("no name")?.to_string_lossy();
    for (program, words) in [
        ("/nowhere", "starting /nowhere: No such file"),
        // Ends without a word, as a program that is not famfs does.
        ("/bin/true", ""),
        ("", "starting"),
    ] {
        let mut socket = UnixStream::connect(format!("/run/famfs/{device}.sock"))?;
        socket.write_all(format!("handover {program}\n").as_bytes())?;
        let mut text = String::new();
        socket.read_to_string(&mut text)?;
        let answer: Value = serde_json::from_str(&text)?;
        let error = answer["error"].as_str().context(text.clone())?;
        ensure!(error.contains(words), "handover to {program:?}: {error}");
    }
    ensure_eq!(server_pid()?, pid, "the server's process");
    ensure_eq!(fs::metadata(name(0))?.len(), AU, "size");
    umount()
}
