// SPDX-License-Identifier: MIT OR Apache-2.0
//! Faults that bypass fs/dax.c: what they map, and that nothing which takes memory away misses one.

// Lists of ranges, often of one.
#![allow(clippy::single_range_in_vec_init)]

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{ensure, Context, Result};
use rustix::thread::disable_transparent_huge_pages;

use super::fixture::{ensure_eq, pattern, ready, Ready};
use super::{failure, faults, Test};
use crate::channel::Channel;
use crate::dax::Driver;
use crate::fmap::{extent, Fmap, AU};
use crate::hostile::Rng;
use crate::module::{self, reload_famfs as reload};
use crate::runner::Guest;
use crate::server::TestFs;
use crate::sys::{scan_pages, Kind, Mapping};

pub const TESTS: &[(&str, Test)] = &[
    ("small_faults_map_around", small_faults_map_around),
    ("around_ends_with_the_mapping", around_ends_with_the_mapping),
    ("around_leaves_copies_alone", around_leaves_copies_alone),
    ("store_to_private_memory", store_to_private_memory),
    ("protection_changes", protection_changes),
    ("storm", storm),
    ("removal_in_a_storm", removal_in_a_storm),
    ("without_fast_faults", without_fast_faults),
];

const PAGE: usize = 4096;
const UNIT: usize = AU as usize;
/// Pages that a small fault maps at most, an aligned part of the file.
const AROUND: usize = 16;

fn two_units(dev: u32) -> Fmap {
    Fmap::simple(2 * AU, &[extent(dev, 16 * AU, 2 * AU)])
}

/// Numbers of the pages that are mapped, in ranges.
fn present(mapping: &Mapping) -> Result<Vec<Range<usize>>> {
    let page = |at: u64| (at as usize - mapping.address()) / PAGE;
    let regions = scan_pages(mapping)?;
    Ok(regions
        .iter()
        .map(|region| page(region.start)..page(region.end))
        .collect())
}

/// A mapping with small pages only, all of which fs/dax.c has prepared.
fn prepared(fs: &TestFs, kind: Kind) -> Result<Mapping> {
    let file = fs.open_rw("file")?;
    for _ in 0..2 {
        let mapping = Mapping::new(&file, 0, 2 * UNIT, Kind::SharedRead)?;
        mapping.no_huge_pages()?;
        mapping.populate_part(0, 2 * UNIT, false)?;
    }
    let mapping = Mapping::new(&file, 0, 2 * UNIT, kind)?;
    mapping.no_huge_pages()?;
    Ok(mapping)
}

/// One fault maps the aligned 16 pages around it, but for those that nobody has touched yet; with `fast_faults=0` it
/// maps the one.
fn small_faults_map_around(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    for (parameters, around) in [(c"fast_faults=1", AROUND), (c"fast_faults=0", 1)] {
        reload(parameters)?;
        let fs = ready(guest)?.one_file("file", &two_units(0))?;
        let file = fs.open_rw("file")?;
        let new = Mapping::new(&file, 0, UNIT, Kind::SharedRead)?;
        new.no_huge_pages()?;
        for page in [40, 41, 47] {
            new.byte(page * PAGE);
            new.drop_entries(0, UNIT)?;
        }
        new.byte(41 * PAGE);
        let touched = match around {
            1 => vec![41..42],
            _ => vec![40..42, 47..48],
        };
        ensure_eq!(present(&new)?, touched, "pages, {parameters:?}");
        for kind in [Kind::SharedRead, Kind::SharedWrite, Kind::Private] {
            let mapping = prepared(&fs, kind)?;
            mapping.byte(37 * PAGE + 5);
            let first = 37 / around * around;
            ensure_eq!(
                present(&mapping)?,
                vec![first..first + around],
                "pages around 37, {parameters:?}, {kind:?}"
            );
        }
        let mapping = prepared(&fs, Kind::SharedWrite)?;
        mapping.set_byte(UNIT, 1);
        ensure_eq!(
            present(&mapping)?,
            vec![512..512 + around],
            "pages around a store, {parameters:?}"
        );
        drop((new, mapping, file, fs));
    }
    module::rmmod("famfs").context("rmmod famfs")
}

/// Nothing is mapped outside of the vma, and what is mapped is the right memory.
fn around_ends_with_the_mapping(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    reload(c"fast_faults=1")?;
    let fs = ready(guest)?.one_file("file", &two_units(0))?;
    drop(prepared(&fs, Kind::SharedRead)?);
    for (first, pages, touched, around) in [
        (5, 3, 6, 0..3),
        (5, 30, 5, 0..11),
        (5, 30, 34, 27..30),
        (511, 2, 511, 0..1),
        (511, 2, 512, 1..2),
        (0, 1, 0, 0..1),
        (1000, 24, 1023, 8..24),
    ] {
        let offset = (first * PAGE) as u64;
        let mapping = Mapping::new(&fs.open("file")?, offset, pages * PAGE, Kind::SharedRead)?;
        mapping.byte((touched - first) * PAGE);
        ensure_eq!(
            present(&mapping)?,
            vec![around.clone()],
            "pages of {pages} from {first} on, after touching {touched}"
        );
        ensure_eq!(
            mapping.read(0, pages * PAGE),
            pattern(offset, pages * PAGE),
            "contents"
        );
    }
    Ok(())
}

fn around_leaves_copies_alone(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    reload(c"fast_faults=1")?;
    let fmap = two_units(0);
    let ready = ready(guest)?;
    let fs = ready.one_file("file", &fmap)?;
    let private = prepared(&fs, Kind::Private)?;
    private.set_byte(3 * PAGE, 0xee);
    ensure_eq!(present(&private)?, vec![3..4], "pages after a store");
    private.byte(7 * PAGE);
    ensure_eq!(present(&private)?, vec![0..16], "pages after a load");
    ensure_eq!(private.byte(3 * PAGE), 0xee, "the byte stored");
    private.set_byte(8 * PAGE, 0xee);
    for page in [3, 8] {
        let at = (page * PAGE) as u64;
        ensure_eq!(
            ready.raw_bytes(&fmap, at, 1)?,
            pattern(at, 1),
            "raw byte of page {page}"
        );
    }
    Ok(())
}

/// Where a huge page is prepared, a process whose first access to any private memory is a store gets its copy.
fn store_to_private_memory(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    reload(c"fast_faults=1")?;
    let fmap = two_units(0);
    let ready = ready(guest)?;
    let fs = ready.one_file("file", &fmap)?;
    let file = fs.open_rw("file")?;
    Mapping::new(&file, 0, 2 * UNIT, Kind::SharedRead)?.populate_part(0, 2 * UNIT, false)?;
    for load in [false, true] {
        let private = Mapping::new(&file, 0, 2 * UNIT, Kind::Private)?;
        if load {
            private.byte(UNIT);
        }
        private.set_byte(UNIT + 9, 0x11);
        ensure_eq!(
            private.byte(UNIT + 9),
            0x11,
            "the byte stored, load first {load}"
        );
        ensure_eq!(
            ready.raw_bytes(&fmap, AU + 9, 1)?,
            pattern(AU + 9, 1),
            "raw byte, load first {load}"
        );
    }
    Ok(())
}

/// Entries follow mprotect in both directions, for both sizes, and survive mremap and fork as those of any file.
fn protection_changes(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    reload(c"fast_faults=1")?;
    let fmap = two_units(0);
    let ready = ready(guest)?;
    for small in [false, true] {
        let fs = ready.one_file("file", &fmap)?;
        let file = fs.open_rw("file")?;
        for round in 0..3u8 {
            let mut mapping = Mapping::new(&file, 0, 2 * UNIT, Kind::SharedRead)?;
            if small {
                mapping.no_huge_pages()?;
            }
            let at = UNIT + 3 * PAGE + usize::from(round);
            mapping.byte(at);
            mapping.protect(true)?;
            mapping.set_byte(at, 0x40 + round);
            mapping.protect(false)?;
            let refused = mapping.populate_part(at / PAGE * PAGE, PAGE, true);
            ensure_eq!(
                refused.map_err(|error| error.raw_os_error()),
                Err(Some(libc::EINVAL)),
                "to populate what can't be written, small {small}"
            );
            mapping.remap(4 * UNIT)?;
            ensure_eq!(
                mapping.byte(at),
                0x40 + round,
                "the byte after mremap, small {small}"
            );
            ensure_eq!(
                ready.raw_bytes(&fmap, at as u64, 1)?,
                [0x40 + round],
                "the raw byte, small {small}"
            );
        }
    }
    Ok(())
}

/// Threads that fault on the same memory in all ways, while caches are dropped and huge pages are switched off and
/// on: every byte is always what it has to be.
fn storm(guest: &Guest, channel: &mut Channel) -> Result<()> {
    reload(c"fast_faults=1")?;
    const STEPS: u64 = 3_000;

    let fmap = two_units(0);
    let ready = ready(guest)?;
    for switch in [false, true] {
        channel.step(&format!("storm, huge pages switched {switch}"));
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
        outcome.context(format!("huge pages switched {switch}"))?;
        ensure_eq!(
            ready.raw_bytes(&fmap, 0, 2 * UNIT)? == pattern(0, 2 * UNIT),
            true,
            "the memory is what it was"
        );
    }
    Ok(())
}

/// What one thread of the storm does. What it stores is what is there.
fn weather(shared: &Mapping, file: &std::fs::File, mut rng: Rng, steps: u64) -> Result<()> {
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
    reload(c"fast_faults=1")?;
    let ready = ready(guest)?;
    ready.raw(1)?;
    for round in 0..6 {
        channel.step(&format!("removal {round}"));
        remove_in_a_storm(guest, &ready, round).with_context(|| format!("removal {round}"))?;
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

/// The ordinary path goes on working by itself.
fn without_fast_faults(guest: &Guest, channel: &mut Channel) -> Result<()> {
    for (name, test) in faults::TESTS.iter().chain(failure::TESTS) {
        channel.step(name);
        reload(c"fast_faults=0")?;
        test(guest, channel).context(*name)?;
    }
    if module::is_loaded("famfs") {
        module::rmmod("famfs").context("rmmod famfs")?;
    }
    ensure!(!module::is_loaded("famfs"), "famfs.ko is still loaded");
    Ok(())
}
