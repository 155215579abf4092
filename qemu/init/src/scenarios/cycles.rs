// SPDX-License-Identifier: MIT OR Apache-2.0
//! The whole life of a mount over and over, each ended by the death of its server; the module alone over and over:
//! kernel memory goes back to where it was.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use rustix::process::Signal;

use super::fixture::{ensure_eq, pattern};
use super::tool::{at, source, umount, Mounted};
use super::Test;
use crate::channel::Channel;
use crate::fmap::AU;
use crate::runner::Guest;
use crate::sys::{Kind, Mapping};
use crate::tool::{famfs, server, signal_server};
use crate::{kmemleak, module};

pub const TESTS: &[(&str, Test)] = &[
    ("kernel_memory_stays", kernel_memory_stays),
    ("nothing_stays_of_the_module", nothing_stays_of_the_module),
];

/// The full number is for the debug tier, which has the time.
const CYCLES: (u32, u32) = (1000, 60);
/// So many that one object or page each time is more than what comes and goes.
const RELOADS: u32 = 400;
const WARM_UP: u32 = 20;
/// One of so many cycles loads the module anew.
const RELOAD: u32 = 10;
/// Caches of which a leak would be ours: not one object more.
const EXACT: [&str; 3] = ["fuse_inode", "fuse_request", "dax_cache"];
/// Of others less than one for so many cycles: what is lost in each of them shows.
const SLACK: u64 = 4;
/// Pages that come and go with what else the system does.
const NOISE: u64 = 256;
/// A pool that only grows, of a checker.
const CHECKERS: &str = "debug_objects_cache";
/// Further looks at what seems to have grown, each after some more cycles.
const LOOKS: u32 = 8;
const SIZE: usize = AU as usize + 4219;

fn kernel_memory_stays(guest: &Guest, channel: &mut Channel) -> Result<()> {
    let cycles = match kmemleak::is_there() {
        true => CYCLES.0,
        false => CYCLES.1,
    };
    let mounted = Mounted::new(guest, 1)?;
    famfs(&["cp", &source("file", SIZE as u64)?, &at("file")])?;
    umount()?;
    repeat(channel, cycles, |number| cycle(&mounted, number))
}

/// A module that serves nobody.
fn nothing_stays_of_the_module(_guest: &Guest, channel: &mut Channel) -> Result<()> {
    repeat(channel, RELOADS, |_| module::reload_famfs(c""))
}

/// Does it so many times; kernel memory is then as after the warm-up.
fn repeat(channel: &mut Channel, cycles: u32, cycle: impl Fn(u32) -> Result<()>) -> Result<()> {
    for number in 0..WARM_UP {
        cycle(number).with_context(|| format!("warm-up {number}"))?;
    }
    let (before, started) = (KernelMemory::now()?, Instant::now());
    for number in 0..cycles {
        if number % 50 == 0 {
            channel.step(&format!("cycle {number}"));
        }
        cycle(number).with_context(|| format!("cycle {number}"))?;
    }
    let took = started.elapsed();
    channel.say(&format!("{cycles} cycles in {took:?}"));
    let slack = u64::from(cycles) / SLACK;
    let mut after = KernelMemory::now()?;
    for _ in 0..LOOKS {
        if after.expect_no_more_than(&before, slack).is_ok() {
            break;
        }
        (0..RELOAD).try_for_each(&cycle)?;
        after = after.least(KernelMemory::now()?);
    }
    after.expect_no_more_than(&before, slack)
}

fn cycle(mounted: &Mounted, number: u32) -> Result<()> {
    mounted.mount()?;
    let file = OpenOptions::new().read(true).write(true).open(at("file"))?;
    let mapping = Mapping::new(&file, 0, SIZE, Kind::SharedWrite)?;
    ensure_eq!(mapping.read(AU as usize, 64), pattern(AU, 64), "contents");
    signal_server(server()?, Signal::KILL, "ZX")?;
    mapping.set_byte(0, number as u8);
    ensure_eq!(mapping.byte(0), number as u8, "the byte that was stored");
    drop((mapping, file));
    umount()?;
    if number % RELOAD == 0 {
        module::rmmod("famfs").context("rmmod")?;
        module::ensure_famfs()?;
    }
    Ok(())
}

/// Free pages that each CPU keeps for itself, a thousand more or less: /proc/meminfo takes them for used ones.
fn pages_on_lists() -> Result<u64> {
    let zones = fs::read_to_string("/proc/zoneinfo")?;
    let counts = zones
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("count:"));
    counts.map(|count| Ok(count.trim().parse::<u64>()?)).sum()
}

/// What the kernel holds when nothing is going on.
struct KernelMemory {
    /// Objects by cache.
    objects: BTreeMap<String, u64>,
    vmalloc_pages: u64,
    used_pages: u64,
}

impl KernelMemory {
    fn now() -> Result<Self> {
        // What waits for a grace period is freed between the first and the last.
        for _ in 0..3 {
            std::thread::sleep(Duration::from_secs(1));
            fs::write("/proc/sys/vm/drop_caches", "3")?;
            for cache in fs::read_dir("/sys/kernel/slab")? {
                // Some caches refuse.
                let _ = fs::write(cache?.path().join("shrink"), "1");
            }
        }
        let mut objects = BTreeMap::new();
        for line in fs::read_to_string("/proc/slabinfo")?.lines().skip(2) {
            let mut words = line.split_ascii_whitespace();
            let (name, active) = (words.next(), words.next());
            let active = active.context("/proc/slabinfo")?.parse()?;
            objects.insert(name.unwrap_or_default().to_owned(), active);
        }
        let text = fs::read_to_string("/proc/meminfo")?;
        let pages = |key: &str| -> Result<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            let words = line.with_context(|| format!("no {key} in /proc/meminfo"))?;
            let kib: u64 = words.trim_end_matches("kB").trim().parse()?;
            Ok(kib / 4)
        };
        Ok(Self {
            objects,
            vmalloc_pages: pages("VmallocUsed:")?,
            used_pages: pages("MemTotal:")? - pages("MemAvailable:")? - pages_on_lists()?,
        })
    }

    /// The lesser of each. What was freed counts as objects while a CPU has it in a sheaf, and sheaves of 28 or 60 come
    /// and go.
    fn least(mut self, other: Self) -> Self {
        for (name, objects) in &mut self.objects {
            *objects = (*objects).min(other.objects.get(name).copied().unwrap_or(0));
        }
        Self {
            objects: self.objects,
            vmalloc_pages: self.vmalloc_pages.min(other.vmalloc_pages),
            used_pages: self.used_pages.min(other.used_pages),
        }
    }

    fn expect_no_more_than(&self, before: &Self, slack: u64) -> Result<()> {
        let mut grown = Vec::new();
        for (name, now) in &self.objects {
            let then = before.objects.get(name).copied().unwrap_or(0);
            let slack = match EXACT.contains(&name.as_str()) {
                true => 0,
                false => slack,
            };
            if *now > then + slack && name != CHECKERS {
                grown.push(format!("{name} from {then} to {now} objects"));
            }
        }
        let pages = [
            ("vmalloc", before.vmalloc_pages, self.vmalloc_pages),
            ("all memory", before.used_pages, self.used_pages),
        ];
        // The checkers keep shadows and stack traces in pages of their own, and kmemleak knows better.
        let judged = if kmemleak::is_there() { 1 } else { 2 };
        for (what, then, now) in pages.into_iter().take(judged) {
            if now > then + slack + NOISE {
                grown.push(format!("{what} from {then} to {now} pages"));
            }
        }
        ensure!(grown.is_empty(), "kernel memory grew: {}", grown.join(", "));
        Ok(())
    }
}
