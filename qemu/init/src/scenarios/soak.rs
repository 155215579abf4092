// SPDX-License-Identifier: MIT OR Apache-2.0
//! Clients at work while everything that can happen to a mount happens to it, in an order that the seed decides. Each
//! round is the life of one mount and starts from a seed of its own, one more than the round before it had: to repeat
//! the round with seed N first, start with N.

use std::fs::{self, File};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use rustix::io::Errno;
use rustix::mount::{unmount, UnmountFlags};
use rustix::process::Signal;

use super::fixture::ensure_eq;
use super::poison::read_errno;
use super::soak_client::{
    expected, path, share, Client, Counts, Round, Written, CLIENTS, FILES, SIZE,
};
use super::tool::{source, umount, Mounted, MOUNTPOINT};
use super::Test;
use crate::channel::Channel;
use crate::dax::Driver;
use crate::hostile::Rng;
use crate::module;
use crate::probe::{Probe, Reply};
use crate::runner::Guest;
use crate::sys::Kind;
use crate::tool::{famfs, getmap, server, signal_server, Connection};

pub const TESTS: &[(&str, Test)] = &[("random_order", random_order)];

const EVENTS_PER_ROUND: u64 = 6;
/// With so many rounds, everything has happened.
const ROUNDS_WITH_ALL: u64 = 40;

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
    let from = source("soak", SIZE)?;
    let mut daxdevs = Vec::new();
    for file in 0..FILES {
        let strips = if file % 2 == 0 { "1" } else { "2" };
        famfs(&["cp", "--nstrips", strips, &from, &path(file)])?;
        let extents = getmap(&path(file))?.into_iter();
        daxdevs.push(extents.map(|(daxdev, ..)| daxdev as usize).collect());
    }
    umount()?;
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
        let round = Round::new(range, &daxdevs);
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
    for file in 0..FILES {
        let got = fs::read(path(file))?;
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

/// A soak in which little happens shows little.
fn expect_work(counts: &Counts) -> Result<()> {
    let rounds = counts.of("Round");
    for what in ["Open", "Map", "Load", "Store", "Read", "Write"] {
        let count = counts.of(what);
        ensure!(count >= rounds, "only {count} times {what}");
    }
    if rounds >= ROUNDS_WITH_ALL {
        for what in ["PauseServer", "KillServer", "Abort", "LazyUmount"] {
            ensure!(counts.of(what) > 0, "never {what}");
        }
        for what in ["Poison", "Unbind", "Sigbus", "FailedAccess", "Checked"] {
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
        connection: Connection::of(MOUNTPOINT)?,
        detached: false,
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
    if !controller.detached {
        umount()?;
    }
    put_right(guest, round)
}

/// Gives poisoned pages and unbound devices back to the next round, which may have another policy.
fn put_right(guest: &Guest, round: &Round) -> Result<()> {
    if !round.poisoned().is_empty() || !round.unbound().is_empty() {
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
    connection: Connection,
    detached: bool,
    /// Files open since before they were damaged, where, and what reading that must fail with.
    kept: Vec<(u64, File, u64, i32)>,
}

impl Controller<'_> {
    /// Gives whether it has happened.
    fn cause(&mut self, event: Event) -> Result<bool> {
        match event {
            Event::Nothing => (),
            Event::DropCaches => fs::write("/proc/sys/vm/drop_caches", "3")?,
            Event::RefusedRmmod if self.detached => return Ok(false),
            Event::RefusedRmmod => {
                ensure_eq!(module::rmmod("famfs"), Err(Errno::WOULDBLOCK), "rmmod");
            }
            Event::PauseServer | Event::KillServer | Event::Abort | Event::LazyUmount
                if self.round.is_dead() =>
            {
                return Ok(false);
            }
            Event::PauseServer => {
                let pid = server()?;
                signal_server(pid, Signal::STOP, "T")?;
                std::thread::sleep(Duration::from_millis(200));
                signal_server(pid, Signal::CONT, "RSDZX")?;
            }
            Event::KillServer => {
                self.round.dead.store(true, Ordering::SeqCst);
                signal_server(server()?, Signal::KILL, "ZX")?;
            }
            Event::Abort => {
                self.round.dead.store(true, Ordering::SeqCst);
                self.connection.abort()?;
            }
            Event::LazyUmount => {
                self.round.dead.store(true, Ordering::SeqCst);
                unmount(MOUNTPOINT, UnmountFlags::DETACH)?;
                self.detached = true;
            }
            Event::Poison { file, page } => return self.poison(file, page * 4096),
            Event::Unbind(index) => {
                self.keep_files_of(index);
                self.round.unbound().insert(index);
                let device = self.guest.devices.get(index).context("two daxdevs")?;
                device.bind(Driver::Devdax)?;
            }
        }
        Ok(true)
    }

    /// By a process that maps the page, unless the file or the page can't be had any more.
    fn poison(&mut self, file: u64, pos: u64) -> Result<bool> {
        let kept = File::open(path(file));
        let mut probe = Probe::start()?;
        let address = match probe.map(&path(file), SIZE, Kind::SharedWrite)? {
            Reply::Value(address) => address,
            Reply::Errno(errno) => {
                self.round.excuse_open(file, errno)?;
                return Ok(false);
            }
            other => bail!("map: {other:?}"),
        };
        let reply = probe.get(pos)?;
        if !matches!(reply, Reply::Value(_)) {
            self.round.excuse_signal(file, pos, address, &reply)?;
            return Ok(false);
        }
        self.round.poisoned().insert((file, pos / 4096));
        let met = Reply::Sigbus(libc::BUS_MCEERR_AR, (address + pos) as usize);
        ensure_eq!(probe.poison(pos)?, met, "the process that met the error");
        self.kept.push((file, kept?, pos, libc::EHWPOISON));
        Ok(true)
    }

    /// Files that lie on this daxdev alone, as far as they can be had.
    fn keep_files_of(&mut self, daxdev: usize) {
        for (file, daxdevs) in (0..).zip(self.round.daxdevs) {
            if daxdevs.iter().eq([&daxdev]) {
                let opened = File::open(path(file)).ok();
                let kept = opened.map(|opened| (file, opened, 0, libc::ENXIO));
                self.kept.extend(kept);
            }
        }
    }

    /// What was damaged is so until the end.
    fn expect_damage(&mut self, counts: &Counts) -> Result<()> {
        for (file, opened, pos, errno) in self.kept.drain(..) {
            // A removal goes before an error that was there.
            if errno == libc::EHWPOISON && self.round.is_gone(file)? {
                continue;
            }
            let got = read_errno(&opened, pos);
            ensure_eq!(got, errno, "errno at {pos:#x} of damaged file {file}");
            counts.add("Checked");
        }
        Ok(())
    }
}
