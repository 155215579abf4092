// SPDX-License-Identifier: MIT OR Apache-2.0
//! Clients at work while everything that can happen to a mount happens to it, in an order that the seed decides. Each
//! round is the life of one mount and starts from a seed of its own, one more than the round before it had: to repeat
//! the round with seed N first, start with N.

use std::fs;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use rustix::io::Errno;
use rustix::mount::{unmount, UnmountFlags};
use rustix::process::Signal;

use super::fixture::ensure_eq;
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
use crate::tool::{famfs, server, signal_server, Connection};

pub const TESTS: &[(&str, Test)] = &[("random_order", random_order)];

const EVENTS_PER_ROUND: u64 = 6;

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
    for file in 0..FILES {
        let strips = if file % 2 == 0 { "1" } else { "2" };
        famfs(&["cp", "--nstrips", strips, &from, &path(file)])?;
    }
    umount()?;
    let mut written = vec![Written::new(); CLIENTS as usize];
    let (started, counts, mut seed) = (Instant::now(), Counts::default(), guest.seed);
    while started.elapsed() < guest.soak {
        let mut rng = Rng(seed);
        let count = 1 + rng.below(EVENTS_PER_ROUND);
        let events: Vec<_> = (0..count).map(|_| Event::pick(&mut rng)).collect();
        channel.step(&format!("seed {seed}: {events:?}"));
        one_round(guest, &mounted, &events, &mut rng, &mut written, &counts)
            .with_context(|| format!("the round with seed {seed}, {events:?}"))?;
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
    Ok(())
}

fn one_round(
    guest: &Guest,
    mounted: &Mounted,
    events: &[Event],
    rng: &mut Rng,
    written: &mut [Written],
    counts: &Counts,
) -> Result<()> {
    mounted.mount()?;
    let round = Round::default();
    let mut controller = Controller {
        guest,
        round: &round,
        connection: Connection::of(MOUNTPOINT)?,
        detached: false,
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = written
            .iter_mut()
            .enumerate()
            .map(|(id, written)| {
                let mut client = Client::new(id as u64, rng.next(), &round, counts, written);
                scope.spawn(move || client.run())
            })
            .collect();
        let mut result = Ok(());
        for event in events {
            std::thread::sleep(Duration::from_millis(rng.below(400)));
            counts.add(event);
            result = controller
                .cause(*event)
                .with_context(|| format!("{event:?}"));
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
    counts.add("Round");
    if !controller.detached {
        umount()?;
    }
    put_right(guest, &round, rng)
}

/// Gives poisoned pages and unbound devices back to the next round, which may have another policy.
fn put_right(guest: &Guest, round: &Round, rng: &mut Rng) -> Result<()> {
    if round.damaged.load(Ordering::Relaxed) {
        for device in &guest.devices {
            device.bind(Driver::Devdax)?;
            device.bind(Driver::Fsdev)?;
        }
    }
    if rng.once_in(3) {
        module::rmmod("famfs").context("rmmod after umount")?;
        let policy = [c"failure_range=0", c"failure_range=1"][rng.below(2) as usize];
        module::insmod_with(module::FAMFS, policy)?.context("insmod")?;
    }
    Ok(())
}

struct Controller<'a> {
    guest: &'a Guest,
    round: &'a Round,
    connection: Connection,
    detached: bool,
}

impl Controller<'_> {
    fn is_dead(&self) -> bool {
        self.round.dead.load(Ordering::Relaxed)
    }

    fn cause(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Nothing => (),
            Event::DropCaches => fs::write("/proc/sys/vm/drop_caches", "3")?,
            Event::RefusedRmmod if self.detached => (),
            Event::RefusedRmmod => {
                ensure_eq!(module::rmmod("famfs"), Err(Errno::WOULDBLOCK), "rmmod");
            }
            Event::PauseServer if self.is_dead() => (),
            Event::PauseServer => {
                let pid = server()?;
                signal_server(pid, Signal::STOP, "T")?;
                std::thread::sleep(Duration::from_millis(200));
                signal_server(pid, Signal::CONT, "RSDZX")?;
            }
            Event::KillServer | Event::Abort | Event::LazyUmount if self.is_dead() => (),
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
            Event::Poison { file, page } => self.poison(file, page * 4096)?,
            Event::Unbind(index) => {
                self.round.damaged.store(true, Ordering::SeqCst);
                let device = self.guest.devices.get(index).context("two daxdevs")?;
                device.bind(Driver::Devdax)?;
            }
        }
        Ok(())
    }

    /// By a process that maps the page, unless the file or the page can't be had any more.
    fn poison(&mut self, file: u64, pos: u64) -> Result<()> {
        let first = !self.round.damaged.swap(true, Ordering::SeqCst);
        let mut probe = Probe::start()?;
        if !matches!(
            probe.map(&path(file), SIZE, Kind::SharedWrite)?,
            Reply::Value(_)
        ) {
            ensure!(self.is_dead() || !first, "no mapping to poison");
            return Ok(());
        }
        if !matches!(probe.get(pos)?, Reply::Value(_)) {
            ensure!(!first, "no page to poison");
            return Ok(());
        }
        let reply = probe.poison(pos)?;
        ensure!(
            !first || matches!(reply, Reply::Sigbus(libc::BUS_MCEERR_AR, _)),
            "the process that met the error: {reply:?}"
        );
        Ok(())
    }
}
