// SPDX-License-Identifier: MIT OR Apache-2.0
//! A hostile server against busy clients. Every word of the memory holds its own address, and whoever writes, writes
//! what is there: so each byte that a file shows can be held against the fmaps that the server sent, and a byte that
//! was written to a wrong place is found at the end.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, ensure, Context, Result};
use rustix::mount::{unmount, MountFlags, UnmountFlags};

use super::fixture::{ensure_eq, ready, Ready};
use super::Test;
use crate::channel::Channel;
use crate::dax::Driver;
use crate::fmap::{Fmap, AU};
use crate::hostile::{Hostile, Ledger, Rng};
use crate::module;
use crate::runner::Guest;
use crate::server::mount_fuse;
use crate::sys::{daxdev_open, Kind, Mapping};

pub const TESTS: &[(&str, Test)] = &[("replies", replies), ("init_replies", init_replies)];

/// Replies and notifications that are sent in all, and in one round.
const REPLIES: u64 = 20_000;
const PER_ROUND: u64 = 2_500;
const CLIENTS: u64 = 4;
const SERVERS: u64 = 3;
const ROUND: Duration = Duration::from_secs(60);
/// Mounts with an INIT that is not what it should be.
const INITS: u64 = 150;

const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";
const DEBUGFS: &str = "/sys/kernel/debug/famfs";

/// The top of every word of the memory.
const MARK: u64 = 0xfa0d << 48;

/// The word at `offset` of a device.
fn word(device: usize, offset: u64) -> u64 {
    MARK | (device as u64) << 40 | offset
}

/// (device, offset) of a word; None if it is none of ours.
fn place_of(word: u64) -> Option<(usize, u64)> {
    let place = word ^ MARK;
    (place >> 48 == 0).then_some(((place >> 40) as usize, place & ((1 << 40) - 1)))
}

fn unit_words(device: usize, unit: u64) -> Vec<u8> {
    (unit * AU..(unit + 1) * AU)
        .step_by(8)
        .flat_map(|offset| word(device, offset).to_le_bytes())
        .collect()
}

/// Calls `f` for every unit of every device, with the bytes that belong there.
fn for_each_unit(guest: &Guest, mut f: impl FnMut(usize, u64, &[u8]) -> Result<()>) -> Result<()> {
    for (index, device) in guest.devices.iter().enumerate() {
        for unit in 0..device.size()? / AU {
            f(index, unit * AU, &unit_words(index, unit))?;
        }
    }
    Ok(())
}

/// A mount, and what its server sent.
struct Target {
    dir: String,
    dev: File,
    ledger: Ledger,
    /// The guest's device that is its index 0.
    first: usize,
}

/// What the clients have held against the ledger.
#[derive(Debug, Default)]
struct Seen {
    opened: AtomicU64,
    read: AtomicU64,
    faulted: AtomicU64,
    written: AtomicU64,
}

impl Target {
    /// `pushed`: of the generation that pushes.
    fn new(ready: &Ready, first: usize, pushed: bool) -> Result<Self> {
        let (dir, dev) = mount_fuse(0, MountFlags::NODEV)?;
        let ledger = Ledger::default();
        if pushed {
            ledger.name(0, first);
        }
        let target = Self {
            dir,
            dev,
            ledger,
            first,
        };
        ensure!(ready.paths.len() > first, "too few daxdevs");
        Ok(target)
    }

    fn server(&self, guest: &Guest, ready: &Ready, mutate_init: bool) -> Result<Hostile<'_>> {
        let mut devices = Vec::new();
        for (path, device) in ready.paths.iter().zip(&guest.devices) {
            devices.push((path.clone(), device.size()?));
        }
        devices.rotate_left(self.first);
        Ok(Hostile {
            ledger: &self.ledger,
            devices,
            first: self.first,
            mutate_init,
        })
    }
}

/// To open with. Whatever LOOKUP says that a file is, nobody but the server is waited for.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(libc::O_NONBLOCK);
    options
}

/// Whether an fmap has the byte of the file where it was found.
fn explains(ledger: &Ledger, fmap: &Fmap, pos: u64, found: (usize, u64)) -> bool {
    fmap.locate(pos)
        .is_some_and(|(index, offset)| offset == found.1 && ledger.was_named(index, found.0))
}

struct Client<'a> {
    targets: &'a [Target],
    rng: Rng,
    seen: &'a Seen,
}

impl Client<'_> {
    fn run(&mut self, stopped: &dyn Fn() -> bool) -> Result<()> {
        while !stopped() {
            let target = &self.targets[self.rng.below(self.targets.len() as u64) as usize];
            let path = format!("{}/f{}", target.dir, self.rng.below(12));
            match self.rng.below(16) {
                0 => drop(std::fs::metadata(&path)),
                1 => drop(std::fs::read_dir(&target.dir).map(Iterator::count)),
                2 => drop(options().write(true).truncate(true).open(&path)),
                3 => drop(std::fs::rename(&path, format!("{path}x"))),
                _ => self.visit(target, &path).with_context(|| path)?,
            }
        }
        Ok(())
    }

    /// Opens a file and holds what it shows against the ledger. That the open fails is no news.
    fn visit(&mut self, target: &Target, path: &str) -> Result<()> {
        let mut options = options();
        options.read(true).write(true).create(self.rng.once_in(8));
        let Ok(file) = options.open(path) else {
            return Ok(());
        };
        let Ok(metadata) = file.metadata() else {
            return Ok(());
        };
        // Below a mount that went away there is the guest's own root.
        let root = std::fs::metadata("/")?.dev();
        if !metadata.is_file() || metadata.dev() == root {
            return Ok(());
        }
        let size = metadata.len();
        let mut fmaps = target.ledger.fmaps_of(size);
        ensure!(!fmaps.is_empty(), "{size} bytes: no fmap said so");
        self.seen.opened.fetch_add(1, Ordering::Relaxed);
        for _ in 0..1 + self.rng.below(4) {
            // Only a file of less than a word has none.
            let Some(words) = (size / 8).checked_sub(1) else {
                return Ok(());
            };
            let pos = self.rng.below(words + 1) * 8;
            let bytes = if self.rng.once_in(2) {
                self.read(&file, pos)
            } else {
                self.fault(&file, pos, size)
            };
            let Ok(bytes) = bytes else { continue };
            let found = place_of(u64::from_le_bytes(bytes));
            let Some(found) = found else {
                bail!("{bytes:02x?} at {pos:#x} are not from a daxdev");
            };
            fmaps.retain(|fmap| explains(&target.ledger, fmap, pos, found));
            ensure!(
                !fmaps.is_empty(),
                "of {size} bytes: {pos:#x} is at {:#x} of device {}, where no fmap has it",
                found.1,
                found.0
            );
        }
        Ok(())
    }

    fn read(&self, file: &File, pos: u64) -> io::Result<[u8; 8]> {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, pos)?;
        file.write_all_at(&bytes, pos)?;
        self.seen.read.fetch_add(1, Ordering::Relaxed);
        Ok(bytes)
    }

    fn fault(&mut self, file: &File, pos: u64, size: u64) -> io::Result<[u8; 8]> {
        let from = pos / AU * AU;
        let len = (size - from).min(2 * AU) as usize;
        let kind = match self.rng.below(3) {
            0 => Kind::SharedRead,
            1 => Kind::Private,
            _ => Kind::SharedWrite,
        };
        let mapping = Mapping::new(file, from, len, kind)?;
        if self.rng.once_in(2) {
            mapping.no_huge_pages()?;
        }
        let at = (pos - from) as usize;
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&mapping.read(at, 8));
        self.seen.faulted.fetch_add(1, Ordering::Relaxed);
        match kind {
            Kind::SharedRead => return Ok(bytes),
            Kind::Private => mapping.write(at, &[0xdd; 8]),
            Kind::SharedWrite => mapping.write(at, &bytes),
        }
        self.seen.written.fetch_add(1, Ordering::Relaxed);
        Ok(bytes)
    }
}

/// Two mounts, each with several server threads and a notifier, under several clients; now and then the second one
/// is taken away from under them.
fn round(guest: &Guest, ready: &Ready, rng: &mut Rng, seen: &Seen) -> Result<u64> {
    let pushed = rng.once_in(2);
    let targets = [
        Target::new(ready, 0, false)?,
        Target::new(ready, 1, pushed)?,
    ];
    let [keeps, goes] = &targets;
    let leaves = match rng.below(3) {
        0 => None,
        1 => Some(UnmountFlags::DETACH),
        _ => Some(UnmountFlags::DETACH | UnmountFlags::FORCE),
    };
    let stop = AtomicBool::new(false);
    let sent = || keeps.ledger.sent() + goes.ledger.sent();
    let stopped = || stop.load(Ordering::Relaxed);
    std::thread::scope(|scope| -> Result<()> {
        for target in &targets {
            for number in 0..=SERVERS {
                let (server, dev) = (target.server(guest, ready, false)?, target.dev.try_clone()?);
                let rng = Rng(rng.next());
                match number {
                    0 => scope.spawn(move || server.notify(dev, rng, &stopped)),
                    _ => scope.spawn(move || server.serve(dev, rng)),
                };
            }
        }
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let rng = Rng(rng.next());
                let mut client = Client {
                    targets: &targets,
                    rng,
                    seen,
                };
                scope.spawn(move || client.run(&stopped))
            })
            .collect();
        let mut result = match pushed {
            true => push(goes, &ready.paths[1]),
            false => Ok(()),
        };
        let ended = || clients.iter().any(|client| client.is_finished());
        let (outcome, gone) = drive(&sent, &ended, &goes.dir, leaves);
        result = result.and(outcome);
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            let outcome = client.join().map_err(|_| anyhow!("a client panicked"));
            result = result.and(outcome.and_then(|outcome| outcome));
        }
        if !gone {
            result = result.and(umount(&goes.dir));
        }
        result.and(umount(&keeps.dir))
    })?;
    Ok(sent())
}

/// Evicts what nobody uses, over and over, until enough was sent or a client gave up. In the middle of it the mount
/// at `dir` goes, if `leaves` says how; true if it did.
fn drive(
    sent: &dyn Fn() -> u64,
    ended: &dyn Fn() -> bool,
    dir: &str,
    leaves: Option<UnmountFlags>,
) -> (Result<()>, bool) {
    let mut left = leaves;
    let end = Instant::now() + ROUND;
    let mut result = Ok(());
    while sent() < PER_ROUND && !ended() && result.is_ok() {
        result = std::fs::write(DROP_CACHES, "2").context(DROP_CACHES);
        std::thread::sleep(Duration::from_millis(20));
        if sent() > PER_ROUND / 2 {
            if let Some(flags) = left.take() {
                result = unmount(dir, flags).context("umount of a busy mount");
            }
        }
        if Instant::now() > end {
            let states = states().unwrap_or_default();
            result = Err(anyhow!("{} replies in {ROUND:?}:\n{states}", sent()));
        }
    }
    (result, leaves.is_some() && left.is_none())
}

/// Where each thread of this process waits, for who looks into a hang.
fn states() -> Result<String> {
    let mut text = String::new();
    for task in std::fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        let read = |name| std::fs::read_to_string(task.join(name)).unwrap_or_default();
        text += &format!("{}: {}{}", task.display(), read("stat"), read("stack"));
    }
    Ok(text)
}

/// Retries while the server's INIT is under way.
fn push(target: &Target, path: &str) -> Result<()> {
    let device = OpenOptions::new().read(true).write(true).open(path)?;
    let end = Instant::now() + Duration::from_secs(5);
    let fd = std::os::fd::AsRawFd::as_raw_fd(&device);
    while let Err(error) = daxdev_open(&target.dev, fd, 0, 0) {
        // The other mount was given it as its second one.
        if error.raw_os_error() == Some(libc::EBUSY) {
            break;
        }
        ensure!(Instant::now() < end, "push {path}: {error}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// A mount that nobody uses any more can be unmounted; if not, it is, lazily, so that its server ends.
fn umount(dir: &str) -> Result<()> {
    unmount(dir, UnmountFlags::empty()).or_else(|error| {
        unmount(dir, UnmountFlags::DETACH | UnmountFlags::FORCE)?;
        Err(error).with_context(|| format!("umount {dir} after its last user"))
    })
}

/// Nothing of famfs is left: neither a mount in debugfs, nor a daxdev that is held, nor the module in use.
fn nothing_is_left(guest: &Guest) -> Result<()> {
    let shown = std::fs::read_dir(DEBUGFS).context(DEBUGFS)?.count();
    ensure_eq!(shown, 0, "mounts that debugfs still shows");
    if module::is_loaded("famfs") {
        let end = Instant::now() + Duration::from_secs(5);
        while let Err(error) = module::rmmod("famfs") {
            ensure!(Instant::now() < end, "rmmod famfs: {error}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    for device in &guest.devices {
        device.bind(Driver::Devdax)?;
        device.bind(Driver::Fsdev)?;
    }
    Ok(())
}

fn replies(guest: &Guest, channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    ready.raw(1)?;
    for_each_unit(guest, |device, offset, bytes| {
        ready.raw(device as u32)?.write(offset, bytes)
    })?;
    // From now on without a line in the kernel log.
    std::fs::write(DROP_CACHES, "4").context(DROP_CACHES)?;
    let (mut rng, seen) = (Rng(guest.seed), Seen::default());
    let (mut sent, started) = (0, Instant::now());
    while sent < REPLIES {
        let what = format!("hostile server, seed {}, after {sent} replies", guest.seed);
        channel.step(&what);
        sent += round(guest, &ready, &mut rng, &seen).context(what)?;
    }
    channel.say(&format!(
        "{sent} replies in {:?}, {seen:?}",
        started.elapsed()
    ));
    for_each_unit(guest, |device, offset, bytes| {
        let now = ready.raw(device as u32)?.read(offset, bytes.len())?;
        ensure!(
            now == bytes,
            "device {device} was written to at {offset:#x} or behind"
        );
        Ok(())
    })?;
    for (what, count) in [
        ("opens", &seen.opened),
        ("reads", &seen.read),
        ("faults", &seen.faulted),
        ("stores", &seen.written),
    ] {
        let count = count.load(Ordering::Relaxed);
        ensure!(
            count >= 200,
            "only {count} {what} met a map: the test shows too little"
        );
    }
    nothing_is_left(guest)
}

/// Whatever INIT is answered with, the mount can be used or not, and goes away.
fn init_replies(guest: &Guest, channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    let mut rng = Rng(guest.seed);
    for index in 0..INITS {
        let what = format!("hostile INIT {index}, seed {}", guest.seed);
        if index % 25 == 0 {
            channel.step(&what);
        }
        let target = Target::new(&ready, 0, false)?;
        let (server, dev) = (target.server(guest, &ready, true)?, target.dev.try_clone()?);
        let server_rng = Rng(rng.next());
        std::thread::scope(|scope| {
            scope.spawn(|| server.serve(dev, server_rng));
            for name in ["f0", "f1"] {
                let path = format!("{}/{name}", target.dir);
                let file = options().read(true).open(path);
                let _ = file.and_then(|file| file.read_at(&mut [0; 64], 0));
            }
            umount(&target.dir)
        })
        .context(what)?;
    }
    nothing_is_left(guest)
}
