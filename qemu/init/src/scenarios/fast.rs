// SPDX-License-Identifier: MIT OR Apache-2.0
//! Faults that bypass fs/dax.c: what they map, and that nothing which takes memory away misses one.

// Lists of ranges, often of one.
#![allow(clippy::single_range_in_vec_init)]

use std::ffi::CStr;
use std::ops::Range;

use anyhow::{Context, Result};
use rustix::mm::Advice;

use super::fixture::{ensure_eq, pattern, ready};
use super::{failure, faults, pins, poison, poisoned_pins, removal, teardown, Test};
use crate::channel::Channel;
use crate::fmap::{extent, Fmap, AU};
use crate::module::{self, reload_famfs as reload};
use crate::runner::Guest;
use crate::server::{ServedFile, TestFs};
use crate::sys::{scan_pages, Kind, Mapping};

pub const TESTS: &[(&str, Test)] = &[
    ("small_faults_map_around", small_faults_map_around),
    ("around_ends_with_the_mapping", around_ends_with_the_mapping),
    ("around_leaves_copies_alone", around_leaves_copies_alone),
    ("store_to_private_memory", store_to_private_memory),
    ("protection_changes", protection_changes),
    ("forks_copy", forks_copy),
    ("advice", advice),
    ("memory_of_another_file", memory_of_another_file),
    ("without_fast_faults", without_fast_faults),
];

pub const PAGE: usize = 4096;
pub const UNIT: usize = AU as usize;
/// With fast faults and without.
pub const BOTH: [&CStr; 2] = [c"fast_faults=1", c"fast_faults=0"];
/// Pages that a small fault maps at most, an aligned part of the file.
const AROUND: usize = 16;

pub fn two_units(dev: u32) -> Fmap {
    Fmap::simple(2 * AU, &[extent(dev, 16 * AU, 2 * AU)])
}

/// Numbers of the pages that are mapped, in ranges.
pub fn present(mapping: &Mapping) -> Result<Vec<Range<usize>>> {
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
    for (parameters, around) in BOTH.into_iter().zip([AROUND, 1]) {
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

/// Parent and child of a fork: of private memory each has its own, shared memory is one, whichever way a page was mapped
/// before.
fn forks_copy(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    const AT: usize = UNIT + 3 * PAGE + 7;

    for parameters in BOTH {
        reload(parameters)?;
        let fmap = two_units(0);
        let ready = ready(guest)?;
        for small in [false, true] {
            let fs = ready.one_file("file", &fmap)?;
            let file = fs.open_rw("file")?;
            let map = |kind| -> Result<Mapping> {
                let mapping = Mapping::new(&file, 0, 2 * UNIT, kind)?;
                if small {
                    mapping.no_huge_pages()?;
                }
                mapping.populate(false)?;
                Ok(mapping)
            };
            drop(map(Kind::SharedRead)?);
            let (shared, private) = (map(Kind::SharedWrite)?, map(Kind::Private)?);
            let want = pattern(AT as u64, 1)[0];
            // A page that is copied before the fork, for page tables of private memory to be copied too.
            private.set_byte(AT - PAGE, !want);
            let child = private.in_child(|private| {
                let before = private.byte(AT);
                private.set_byte(AT, !want);
                u8::from(
                    before == want && private.byte(AT) == !want && private.byte(AT - PAGE) == !want,
                )
            })?;
            ensure_eq!(
                child,
                1,
                "the child's copy is its own, {parameters:?}, small {small}"
            );
            ensure_eq!(
                private.byte(AT),
                want,
                "the parent's byte, {parameters:?}, small {small}"
            );
            let child = shared.in_child(|shared| {
                let before = shared.byte(AT);
                shared.set_byte(AT, 0x5a);
                u8::from(before == want)
            })?;
            ensure_eq!(child, 1, "the child's byte, {parameters:?}, small {small}");
            for (what, got) in [
                ("shared mapping", shared.byte(AT)),
                ("private mapping, never stored to", private.byte(AT)),
                ("memory", ready.raw_bytes(&fmap, AT as u64, 1)?[0]),
            ] {
                ensure_eq!(got, 0x5a, "{what}, {parameters:?}, small {small}");
            }
        }
    }
    Ok(())
}

/// Accesses said to be random map one page each; nothing reclaims or moves what is mapped.
fn advice(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    reload(c"fast_faults=1")?;
    let fs = ready(guest)?.one_file("file", &two_units(0))?;
    let mapping = prepared(&fs, Kind::SharedRead)?;
    mapping.advise(0, UNIT, Advice::Random)?;
    for page in [37, 512 + 37] {
        mapping.byte(page * PAGE);
    }
    let touched = [37..38, 512 + 32..512 + 48];
    ensure_eq!(present(&mapping)?, touched, "pages, random in one half");
    for advice in [Advice::LinuxCold, Advice::LinuxPageOut] {
        mapping.advise(0, 2 * UNIT, advice)?;
        ensure_eq!(present(&mapping)?, touched, "pages after {advice:?}");
    }
    let moved = mapping.advise(37 * PAGE, PAGE, Advice::LinuxSoftOffline);
    ensure_eq!(
        moved.map_err(|error| error.raw_os_error()),
        Err(Some(libc::EIO)),
        "to have a page moved elsewhere"
    );
    ensure_eq!(present(&mapping)?, touched, "pages after that");
    Ok(())
}

/// Memory that one file had mapped, in both sizes, belongs to another one of the next mount, at other offsets: what
/// fs/dax.c prepared for the first is never taken for the second's.
fn memory_of_another_file(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    for parameters in BOTH {
        reload(parameters)?;
        let ready = ready(guest)?;
        for round in 0..6u64 {
            // Two extents in either order, the pages small in every third round.
            let at = [16 + round % 2, 16 + (round + 1) % 2].map(|unit| extent(0, unit * AU, AU));
            let fmap = Fmap::simple(2 * AU, &at);
            ready.fill(&fmap)?;
            let name = ["one", "other"][round as usize % 2];
            let mut fs = TestFs::mount(ready.serve(vec![ServedFile::new(name, &fmap)]))?;
            for evict in [true, false] {
                let file = fs.open_rw(name)?;
                for _ in 0..2 {
                    let mapping = Mapping::new(&file, 0, 2 * UNIT, Kind::SharedWrite)?;
                    if round % 3 == 2 {
                        mapping.no_huge_pages()?;
                    }
                    for page in 0..1024 {
                        let at = page * PAGE + round as usize;
                        let (got, want) = (mapping.byte(at), pattern(at as u64, 1)[0]);
                        ensure_eq!(got, want, "byte {at:#x}, {parameters:?}, round {round}");
                    }
                }
                drop(file);
                if evict {
                    std::fs::write("/proc/sys/vm/drop_caches", "3")?;
                }
            }
            fs.umount().with_context(|| format!("umount {round}"))?;
        }
    }
    Ok(())
}

/// What a fault meets goes the same way where fs/dax.c gets every one.
fn without_fast_faults(guest: &Guest, channel: &mut Channel) -> Result<()> {
    reload(c"")?;
    module::rmmod("famfs").context("rmmod famfs")?;
    module::set_default(c"fast_faults=0");
    let outcome = ordinary(guest, channel);
    module::set_default(c"");
    if module::is_loaded("famfs") {
        module::rmmod("famfs").context("rmmod famfs")?;
    }
    outcome
}

fn ordinary(guest: &Guest, channel: &mut Channel) -> Result<()> {
    let mapping = prepared(
        &ready(guest)?.one_file("file", &two_units(0))?,
        Kind::SharedRead,
    )?;
    mapping.byte(5 * PAGE);
    ensure_eq!(present(&mapping)?, vec![5..6], "pages that a fault maps");
    drop(mapping);
    let groups = [
        faults::TESTS,
        failure::TESTS,
        poison::TESTS,
        removal::PMEM,
        teardown::TESTS,
        pins::TESTS,
        poisoned_pins::TESTS,
    ];
    for (name, test) in groups.concat() {
        channel.step(name);
        test(guest, channel).context(name)?;
    }
    Ok(())
}
