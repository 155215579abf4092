// SPDX-License-Identifier: MIT OR Apache-2.0
//! Clients at work while everything that can happen to a mount happens to it, in an order that the seed decides. Each
//! round is the life of one mount and starts from a seed of its own, one more than the round before it had: to repeat
//! the round with seed N first, start with N.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use rustix::io::Errno;
use rustix::mount::{unmount, UnmountFlags};
use rustix::process::{Pid, Signal};

use super::fixture::ensure_eq;
use super::poison::read_errno;
use super::soak_client::{
    expected, share, Client, Counts, Placed, Round, Written, CLIENTS, FILES, SIZE, STRIPS,
};
use super::tool::{at, source, umount, Mounted, MOUNTPOINT};
use super::Test;
use crate::channel::Channel;
use crate::dax::Driver;
use crate::hostile::Rng;
use crate::module;
use crate::probe::{Probe, Reply};
use crate::runner::Guest;
use crate::sys::Kind;
use crate::tool::{famfs, getmap, server, signal_server, wait_for_state, Connection};

pub const TESTS: &[(&str, Test)] = &[("random_order", random_order)];

const EVENTS_PER_ROUND: u64 = 6;
/// With so many rounds, everything has happened.
const ROUNDS_WITH_ALL: u64 = 60;

/// What happens to a mount while the clients use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Nothing,
    DropCaches,
    RefusedRmmod,
    PauseServer,
    KillServer,
    Abort,
    LazyUmount,
    Poison { file: u64, page: u64 },
    Unbind(usize),
}

impl Event {
    fn pick(rng: &mut Rng) -> Self {
        match rng.below(14) {
            0..=2 => Self::DropCaches,
            3 | 4 => Self::RefusedRmmod,
            5 | 6 => Self::PauseServer,
            7 => Self::KillServer,
            8 => Self::Abort,
            9 => Self::LazyUmount,
            10 | 11 => Self::Poison {
                file: rng.below(FILES),
                page: rng.below(SIZE / 4096),
            },
            12 => Self::Unbind(rng.below(2) as usize),
            _ => Self::Nothing,
        }
    }
}

fn random_order(guest: &Guest, channel: &mut Channel) -> Result<()> {
    let mounted = Mounted::new(guest, 2)?;
    let files: Vec<_> = (0..FILES)
        .zip(STRIPS)
        .map(|(number, strips)| place(number, strips))
        .collect::<Result<_>>()?;
    let last = server()?;
    umount()?;
    wait_for_state(last, "ZX").context("the server before the first round")?;
    let mut written = vec![Written::new(); CLIENTS as usize];
    let (started, counts, mut seed) = (Instant::now(), Counts::default(), guest.seed);
    let mut policy = None;
    while started.elapsed() < guest.soak {
        let mut rng = Rng(seed);
        let range = rng.once_in(2);
        // The policy is the module's parameter.
        if rng.once_in(3) || policy != Some(range) {
            let parameter = [c"failure_range=0", c"failure_range=1"][usize::from(range)];
            module::reload_famfs(parameter)?;
            policy = Some(range);
        }
        let round = Round::new(range, &files);
        let count = 1 + rng.below(EVENTS_PER_ROUND);
        let events: Vec<_> = (0..count).map(|_| Event::pick(&mut rng)).collect();
        let said = format!("seed {seed}, failure_range={}: {events:?}", u8::from(range));
        channel.step(&said);
        one_round(
            guest,
            &mounted,
            &round,
            &events,
            &mut rng,
            &mut written,
            &counts,
        )
        .with_context(|| format!("the round with {said}"))?;
        seed += 1;
    }
    mounted.mount()?;
    for (file, placed) in (0..).zip(&files) {
        let got = fs::read(at(&placed.name))?;
        let shares = written.iter().enumerate();
        let want: Vec<u8> = shares
            .flat_map(|(id, written)| {
                let (start, end) = share(id as u64);
                expected(written, file, start, (end - start) as usize)
            })
            .collect();
        ensure!(got == want, "file {file} has other bytes in the end");
    }
    umount()?;
    channel.say(&format!(
        "seeds {} to {}, {counts}",
        guest.seed,
        seed.saturating_sub(1)
    ));
    expect_work(&counts)
}

/// A file with its strips on these daxdevs, so that a seed's events meet the same each time: famfs chooses at random.
fn place(number: u64, strips: &[usize]) -> Result<Placed> {
    let from = source("soak", SIZE)?;
    let nstrips = strips.len().to_string();
    for attempt in 0..64 {
        let name = format!("file{number}.{attempt}");
        famfs(&["cp", "--nstrips", &nstrips, &from, &at(&name)])?;
        let extents = getmap(&at(&name))?.into_iter();
        let got: Vec<_> = extents.map(|(daxdev, ..)| daxdev as usize).collect();
        if got == strips {
            return Ok(Placed { name, strips: got });
        }
    }
    bail!("no file gets its strips on {strips:?}")
}

/// A soak in which little happens shows little.
fn expect_work(counts: &Counts) -> Result<()> {
    let rounds = counts.of("Round");
    for what in ["Open", "Map", "Load", "Store", "Read", "Write"] {
        let count = counts.of(what);
        ensure!(count >= rounds, "only {count} times {what}");
    }
    if rounds >= ROUNDS_WITH_ALL {
        let events =
            "DropCaches RefusedRmmod PauseServer KillServer Abort LazyUmount Poison Unbind";
        let answers = "FailedOpen FailedAccess Sigbus Checked";
        for what in events.split(' ').chain(answers.split(' ')) {
            ensure!(counts.of(what) > 0, "never {what}");
        }
    }
    Ok(())
}

fn one_round(
    guest: &Guest,
    mounted: &Mounted,
    round: &Round,
    events: &[Event],
    rng: &mut Rng,
    written: &mut [Written],
    counts: &Counts,
) -> Result<()> {
    mounted.mount()?;
    let mut controller = Controller {
        guest,
        round,
        server: server()?,
        connection: Connection::of(MOUNTPOINT)?,
        root: File::open(MOUNTPOINT)?,
        kept: Vec::new(),
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = written
            .iter_mut()
            .enumerate()
            .map(|(id, written)| {
                let mut client = Client::new(id as u64, rng.next(), round, counts, written);
                scope.spawn(move || client.run())
            })
            .collect();
        let mut result = Ok(());
        for event in events {
            std::thread::sleep(Duration::from_millis(rng.below(400)));
            result = match controller.cause(*event) {
                Ok(true) => {
                    counts.add(event);
                    Ok(())
                }
                other => other.map(drop).with_context(|| format!("{event:?}")),
            };
            if result.is_err() || round.over.load(Ordering::Relaxed) {
                break;
            }
        }
        std::thread::sleep(Duration::from_millis(rng.below(400)));
        round.over.store(true, Ordering::Relaxed);
        for client in clients {
            let ended = client.join().unwrap_or_else(|_| bail!("a client panicked"));
            result = result.and(ended);
        }
        result
    })?;
    controller.expect_damage(counts)?;
    counts.add("Round");
    let server = controller.server;
    drop(controller);
    if !round.is_detached() {
        umount()?;
    }
    // The next round must not take it for its own.
    wait_for_state(server, "ZX").context("the server after the mount")?;
    put_right(guest, round)
}

/// Gives poisoned pages and unbound devices back to the next round, which may have another policy.
fn put_right(guest: &Guest, round: &Round) -> Result<()> {
    let damage = round.coming();
    if !damage.poisoned.is_empty() || !damage.unbound.is_empty() {
        for device in &guest.devices {
            device.bind(Driver::Devdax)?;
            device.bind(Driver::Fsdev)?;
        }
    }
    Ok(())
}

struct Controller<'a> {
    guest: &'a Guest,
    round: &'a Round<'a>,
    server: Pid,
    connection: Connection,
    /// The mount lives as long as this is open, and files are found by it, in the tree or not.
    root: File,
    /// Files open since before they were damaged, where, and what reading that must fail with.
    kept: Vec<(u64, File, u64, i32)>,
}

impl Controller<'_> {
    /// Gives whether it has happened.
    fn cause(&mut self, event: Event) -> Result<bool> {
        match event {
            Event::Nothing => (),
            Event::DropCaches => fs::write("/proc/sys/vm/drop_caches", "3")?,
            Event::RefusedRmmod => {
                ensure_eq!(module::rmmod("famfs"), Err(Errno::WOULDBLOCK), "rmmod");
            }
            Event::PauseServer | Event::KillServer if self.round.is_unserved() => {
                return Ok(false);
            }
            Event::PauseServer => {
                let stopped = signal_server(self.server, Signal::STOP, "T");
                std::thread::sleep(Duration::from_millis(200));
                // However that ended, clients may wait for it.
                signal_server(self.server, Signal::CONT, "RSDZX")?;
                stopped?;
            }
            Event::KillServer => {
                self.round.unserved.store(true, Ordering::SeqCst);
                signal_server(self.server, Signal::KILL, "ZX")?;
            }
            Event::Abort => {
                self.round.unserved.store(true, Ordering::SeqCst);
                self.connection.abort()?;
            }
            Event::LazyUmount if self.round.is_detached() => return Ok(false),
            Event::LazyUmount => {
                self.round.detached.store(true, Ordering::SeqCst);
                unmount(MOUNTPOINT, UnmountFlags::DETACH)?;
            }
            Event::Poison { file, page } => return self.poison(file, page * 4096),
            Event::Unbind(index) => {
                self.keep_files_of(index)?;
                self.round.coming().unbound.insert(index);
                let device = self.guest.devices.get(index).context("two daxdevs")?;
                device.bind(Driver::Devdax)?;
                self.round.done().unbound.insert(index);
            }
        }
        Ok(true)
    }

    fn path(&self, file: u64) -> Result<String> {
        let (pid, root) = (std::process::id(), self.root.as_raw_fd());
        let name = &self.round.file(file)?.name;
        Ok(format!("/proc/{pid}/fd/{root}/{name}"))
    }

    /// None if there is a reason why it can't be opened.
    fn open(&self, file: u64) -> Result<Option<File>> {
        match File::open(self.path(file)?) {
            Ok(opened) => Ok(Some(opened)),
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(-1);
                self.round.excuse_open(file, false, errno).map(|()| None)
            }
        }
    }

    /// By a process that maps the page, unless the file or the page can't be had any more.
    fn poison(&mut self, file: u64, pos: u64) -> Result<bool> {
        let Some(kept) = self.open(file)? else {
            return Ok(false);
        };
        let mut probe = Probe::start()?;
        let address = match probe.map(&self.path(file)?, SIZE, Kind::SharedWrite)? {
            Reply::Value(address) => address,
            Reply::Errno(errno) => {
                self.round.excuse_open(file, false, errno)?;
                return Ok(false);
            }
            other => bail!("map: {other:?}"),
        };
        let reply = probe.get(pos)?;
        if !matches!(reply, Reply::Value(_)) {
            self.round.excuse_signal(file, pos, address, &reply)?;
            return Ok(false);
        }
        self.round.coming().poisoned.insert((file, pos / 4096));
        let met = Reply::Sigbus(libc::BUS_MCEERR_AR, (address + pos) as usize);
        ensure_eq!(probe.poison(pos)?, met, "the process that met the error");
        self.round.done().poisoned.insert((file, pos / 4096));
        self.kept.push((file, kept, pos, libc::EHWPOISON));
        Ok(true)
    }

    /// The files with a strip on this daxdev, as far as they can be had.
    fn keep_files_of(&mut self, daxdev: usize) -> Result<()> {
        for (file, placed) in (0..).zip(self.round.files) {
            let Some(strip) = placed.strips.iter().position(|on| *on == daxdev) else {
                continue;
            };
            if let Some(opened) = self.open(file)? {
                let pos = share(strip as u64).0;
                self.kept.push((file, opened, pos, libc::ENXIO));
            }
        }
        Ok(())
    }

    /// What was damaged is so until the end.
    fn expect_damage(&mut self, counts: &Counts) -> Result<()> {
        let done = self.round.done();
        for (file, opened, pos, errno) in self.kept.drain(..) {
            // A removal goes before an error that was there.
            if errno == libc::EHWPOISON && self.round.is_gone(&done, file, pos)? {
                continue;
            }
            let got = read_errno(&opened, pos);
            ensure_eq!(got, errno, "errno at {pos:#x} of damaged file {file}");
            counts.add("Checked");
        }
        Ok(())
    }
}
