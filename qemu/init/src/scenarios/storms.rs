// SPDX-License-Identifier: MIT OR Apache-2.0
//! Faults under load while memory is dropped, fails or goes away, fast ones and ordinary ones: nothing that takes memory
//! away misses a mapping.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result};
use rustix::thread::disable_transparent_huge_pages;

use super::fast::{present, two_units, BOTH, PAGE, UNIT};
use super::fixture::{ensure_eq, pattern, ready, Ready};
use super::poison::{report_apart, DEVICE, EHWPOISON, RANGE};
use super::Test;
use crate::channel::Channel;
use crate::dax::Driver;
use crate::fmap::AU;
use crate::hostile::Rng;
use crate::kmemleak;
use crate::module::reload_famfs as reload;
use crate::runner::Guest;
use crate::server::{ServedFile, TestFs};
use crate::sys::{Kind, Mapping};

pub const TESTS: &[(&str, Test)] = &[
    ("storm", storm),
    ("removal_in_a_storm", removal_in_a_storm),
    ("failure_in_a_storm", failure_in_a_storm),
];

/// Threads that fault on the same memory in all ways, while caches are dropped and huge pages are switched off and
/// on: every byte is always what it has to be.
fn storm(guest: &Guest, channel: &mut Channel) -> Result<()> {
    // With all checkers a drop of the caches is most of the time.
    let steps = if kmemleak::is_there() { 600 } else { 3_000 };
    let fmap = two_units(0);
    for (parameters, switch) in BOTH.into_iter().flat_map(|p| [(p, false), (p, true)]) {
        channel.step(&format!(
            "storm, {parameters:?}, huge pages switched {switch}"
        ));
        reload(parameters)?;
        let ready = ready(guest)?;
        let fs = ready.one_file("file", &fmap)?;
        let file = fs.open_rw("file")?;
        let shared = Mapping::new(&file, 0, 2 * UNIT, Kind::SharedWrite)?;
        let done = AtomicBool::new(false);
        let outcome = std::thread::scope(|scope| {
            let (shared, file, done) = (&shared, &file, &done);
            let threads: Vec<_> = (0..3)
                .map(|seed| {
                    scope.spawn(move || weather(shared, file, Rng(guest.seed + seed), steps))
                })
                .collect();
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
                    if switch {
                        let _ = disable_transparent_huge_pages(true);
                        std::thread::yield_now();
                        let _ = disable_transparent_huge_pages(false);
                    }
                    std::thread::yield_now();
                }
            });
            let mut outcome = Ok(());
            for thread in threads {
                let result = thread.join().unwrap_or(Err(anyhow::anyhow!("panicked")));
                outcome = outcome.and(result);
            }
            done.store(true, Ordering::Relaxed);
            outcome
        });
        outcome.context(format!("{parameters:?}, huge pages switched {switch}"))?;
        ensure_eq!(
            ready.raw_bytes(&fmap, 0, 2 * UNIT)? == pattern(0, 2 * UNIT),
            true,
            "the memory is what it was"
        );
    }
    Ok(())
}

/// What one thread of the storm does. What it stores is what is there.
pub fn weather(shared: &Mapping, file: &std::fs::File, mut rng: Rng, steps: u64) -> Result<()> {
    for _ in 0..steps {
        let at = rng.below(2 * AU) as usize;
        let (unit, want) = (at / UNIT * UNIT, pattern(at as u64, 1)[0]);
        match rng.below(8) {
            0 => shared.drop_entries(unit, UNIT)?,
            1 => shared.drop_entries(at / PAGE * PAGE, PAGE)?,
            2 => shared.set_byte(at, want),
            3 | 4 => {
                let kind =
                    [Kind::SharedRead, Kind::SharedWrite, Kind::Private][rng.below(3) as usize];
                let mapping = Mapping::new(file, 0, 2 * UNIT, kind)?;
                if rng.once_in(2) {
                    mapping.no_huge_pages()?;
                }
                ensure_eq!(
                    mapping.byte(at),
                    want,
                    "byte {at:#x} of a new mapping, {kind:?}"
                );
                if kind == Kind::Private {
                    mapping.set_byte(at, !want);
                }
            }
            _ => ensure_eq!(shared.byte(at), want, "byte {at:#x} of the shared mapping"),
        }
    }
    Ok(())
}

/// Faults of all kinds, without a signal when one fails, until one does.
fn fault_until_gone(mapping: &Mapping, mut rng: Rng, faults: &AtomicU64) -> io::Error {
    loop {
        let unit = rng.below(2) as usize * UNIT;
        let len = [PAGE, UNIT][rng.below(2) as usize];
        let step = mapping
            .drop_entries(unit, UNIT)
            .and_then(|()| mapping.populate_part(unit, len, rng.once_in(2)));
        if let Err(error) = step {
            return error;
        }
        faults.fetch_add(1, Ordering::Relaxed);
    }
}

/// The driver is unbound while two threads fault on the device's memory, in both sizes: nothing of it stays mapped, and
/// every later fault fails.
fn removal_in_a_storm(guest: &Guest, channel: &mut Channel) -> Result<()> {
    for (parameters, rounds) in BOTH.into_iter().zip([6, 2]) {
        reload(parameters)?;
        let ready = ready(guest)?;
        ready.raw(1)?;
        for round in 0..rounds {
            let step = format!("{parameters:?}, removal {round}");
            channel.step(&step);
            remove_in_a_storm(guest, &ready, round).context(step)?;
        }
    }
    Ok(())
}

fn remove_in_a_storm(guest: &Guest, ready: &Ready, round: u64) -> Result<()> {
    let mut fs = ready.one_file("file", &two_units(1))?;
    let file = fs.open_rw("file")?;
    let mappings = [
        Mapping::new(&file, 0, 2 * UNIT, Kind::SharedWrite)?,
        Mapping::new(&file, 0, 2 * UNIT, Kind::SharedWrite)?,
    ];
    if round % 2 == 1 {
        for mapping in &mappings {
            mapping.no_huge_pages()?;
        }
    }
    mappings[0].populate_part(0, 2 * UNIT, true)?;
    let faults = AtomicU64::new(0);
    let ends = std::thread::scope(|scope| -> Result<Vec<io::Error>> {
        let faults = &faults;
        let threads: Vec<_> = (0..)
            .zip(&mappings)
            .map(|(seed, mapping)| {
                let rng = Rng(guest.seed + 10 * round + seed);
                scope.spawn(move || fault_until_gone(mapping, rng, faults))
            })
            .collect();
        while faults.load(Ordering::Relaxed) < 200 {
            std::thread::yield_now();
        }
        let unbound = guest.devices[1].bind(Driver::Devdax);
        let ends = threads
            .into_iter()
            .filter_map(|thread| thread.join().ok())
            .collect();
        unbound.context("to devdax mode in a storm")?;
        Ok(ends)
    })?;
    for end in &ends {
        ensure_eq!(
            end.raw_os_error(),
            Some(libc::EFAULT),
            "the last fault of a thread"
        );
    }
    ensure_eq!(ends.len(), 2, "threads that ended");
    for mapping in &mappings {
        ensure_eq!(present(mapping)?, vec![], "pages mapped after the removal");
        let late = mapping.populate_part(0, PAGE, false);
        ensure_eq!(
            late.map_err(|error| error.raw_os_error()),
            Err(Some(libc::EFAULT)),
            "a fault after the removal"
        );
    }
    drop((mappings, file));
    fs.umount().context("umount after the removal")?;
    guest.devices[1].bind(Driver::Fsdev)
}

/// Memory fails while two threads fault on it, in both sizes: no fault that begins when the error has been reported maps
/// the page, and each one says why.
fn failure_in_a_storm(guest: &Guest, channel: &mut Channel) -> Result<()> {
    for (parameters, policy) in BOTH.into_iter().flat_map(|p| [(p, DEVICE), (p, RANGE)]) {
        reload(parameters)?;
        let ready = ready(guest)?;
        ready.raw(1)?;
        for round in 0..4 {
            let step = format!("{parameters:?}, policy {policy}, failure {round}");
            channel.step(&step);
            fail_in_a_storm(guest, &ready, policy, round).context(step)?;
        }
    }
    Ok(())
}

fn fail_in_a_storm(guest: &Guest, ready: &Ready, policy: u16, round: u64) -> Result<()> {
    let fmap = two_units(1);
    ready.fill(&fmap)?;
    let files = vec![ServedFile::new("file", &fmap)];
    let mut fs = TestFs::mount(ready.serve(files).with_policy(policy))?;
    let file = fs.open_rw("file")?;
    let storm = Failing {
        lost: (Rng(guest.seed + round).below(1024)) as usize,
        policy,
        reported: AtomicBool::new(false),
        faults: AtomicU64::new(0),
    };
    let mappings = [
        Mapping::new(&file, 0, 2 * UNIT, Kind::SharedWrite)?,
        Mapping::new(&file, 0, 2 * UNIT, Kind::SharedWrite)?,
    ];
    if round % 2 == 1 {
        for mapping in &mappings {
            mapping.no_huge_pages()?;
        }
    }
    mappings[0].populate(true)?;
    std::thread::scope(|scope| -> Result<()> {
        let storm = &storm;
        let threads: Vec<_> = (0..)
            .zip(&mappings)
            .map(|(seed, mapping)| {
                let rng = Rng(guest.seed + 10 * round + seed);
                scope.spawn(move || storm.fault(mapping, rng))
            })
            .collect();
        while storm.faults.load(Ordering::Relaxed) < 100 && !threads.iter().any(|t| t.is_finished())
        {
            std::thread::yield_now();
        }
        let pfn = ready.raw(1)?.pfn((16 * UNIT + storm.lost * PAGE) as u64);
        let outcome = report_apart(pfn);
        storm.reported.store(true, Ordering::SeqCst);
        for thread in threads {
            let done = thread.join();
            done.map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        outcome
    })?;
    drop((mappings, file));
    fs.umount().context("umount after the failure")
}

/// A page is going to fail.
struct Failing {
    /// Its number in the file.
    lost: usize,
    policy: u16,
    reported: AtomicBool,
    faults: AtomicU64,
}

impl Failing {
    /// Faults of all kinds, and some more after the failure.
    fn fault(&self, mapping: &Mapping, mut rng: Rng) -> Result<()> {
        let mut left = 60;
        while left > 0 {
            let pages = [1, 512][rng.below(2) as usize];
            // Half of the small ones are of the page that is lost.
            let first = match pages == 1 && rng.once_in(2) {
                true => self.lost,
                false => rng.below(1024) as usize / pages * pages,
            };
            let late = self.reported.load(Ordering::SeqCst);
            let unit = first / 512 * UNIT;
            mapping.drop_entries(unit, UNIT)?;
            let done = mapping.populate_part(first * PAGE, pages * PAGE, rng.once_in(2));
            self.faults.fetch_add(1, Ordering::Relaxed);
            if !late {
                continue;
            }
            left -= 1;
            let hit = (first..first + pages).contains(&self.lost);
            let want = match (hit, self.policy) {
                // Page by page, from the front.
                (true, DEVICE) if first != self.lost => Err(Some(libc::EFAULT)),
                (true, _) => Err(Some(EHWPOISON)),
                (false, DEVICE) => Err(Some(libc::EFAULT)),
                (false, _) => Ok(()),
            };
            ensure_eq!(
                done.map_err(|error| error.raw_os_error()),
                want,
                "{pages} pages from {first} on, {} lost",
                self.lost
            );
            let mapped = present(mapping)?;
            anyhow::ensure!(
                !mapped.iter().any(|range| range.contains(&self.lost)),
                "the lost page {} is mapped: {mapped:?}",
                self.lost
            );
        }
        Ok(())
    }
}
