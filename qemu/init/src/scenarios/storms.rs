// SPDX-License-Identifier: MIT OR Apache-2.0
//! Faults under load while memory is dropped, fails or goes away, fast ones and ordinary ones: nothing that takes memory
//! away misses a mapping.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result};
use rustix::thread::disable_transparent_huge_pages;

use super::fast::{present, two_units, BOTH, PAGE, UNIT};
use super::fixture::{ensure_eq, pattern, ready, Ready};
use super::Test;
use crate::channel::Channel;
use crate::dax::Driver;
use crate::fmap::AU;
use crate::hostile::Rng;
use crate::module::reload_famfs as reload;
use crate::runner::Guest;
use crate::sys::{Kind, Mapping};

pub const TESTS: &[(&str, Test)] = &[("storm", storm), ("removal_in_a_storm", removal_in_a_storm)];

/// Threads that fault on the same memory in all ways, while caches are dropped and huge pages are switched off and
/// on: every byte is always what it has to be.
fn storm(guest: &Guest, channel: &mut Channel) -> Result<()> {
    const STEPS: u64 = 3_000;

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
                    scope.spawn(move || weather(shared, file, Rng(guest.seed + seed), STEPS))
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
