// SPDX-License-Identifier: MIT OR Apache-2.0
//! The operations, and how one of each is timed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::{ensure, Result};

use super::Rows;
use crate::fmap::AU;
use crate::sys::{scan_pages, ticks, Kind, Mapping, PAGE_IS_HUGE};

/// Operations of one kind; odd, for the median's sake.
const SAMPLES: u64 = 31;
const PAGE: usize = 4096;
/// Pages that mm maps around a fault, if it does.
const AROUND: usize = 16;

/// A file that is mapped and, unless it is a device, read and written.
pub struct Target<'a> {
    pub file: &'a File,
    /// Bytes: at least 192 MiB.
    pub size: u64,
}

/// Ticks that `operation` takes, less those of taking the time.
fn timed<T>(operation: impl FnOnce() -> T) -> (T, u64) {
    let start = ticks();
    let result = operation();
    let end = ticks();
    let nothing = ticks().wrapping_sub(end);
    (result, end.wrapping_sub(start).saturating_sub(nothing))
}

/// Faults at a stride of 2 MiB, all over the file. Three groups of units take turns: those read first, those written
/// first, and those written after they were read.
pub fn huge_faults(rows: &mut Rows, target: &Target) -> Result<()> {
    let stride = target.size / AU / (3 * SAMPLES);
    ensure!(stride > 0, "a file of {} bytes is too small", target.size);
    let at = |group: u64| move |sample: u64| ((3 * sample + group) * stride * AU) as usize;
    let map = |kind| Mapping::new(target.file, 0, target.size as usize, kind);
    for (group, kind, name) in [
        (0, Kind::SharedRead, "read"),
        (1, Kind::SharedWrite, "write"),
    ] {
        let write = kind == Kind::SharedWrite;
        for state in ["cold", "warm"] {
            let mapping = map(kind)?;
            let faults = (0..SAMPLES).map(|sample| mapping.fault(at(group)(sample), write));
            rows.add_median(&format!("2 MiB fault, {state} {name}"), faults.collect());
            ensure!(
                scan_pages(&mapping)?
                    .iter()
                    .all(|page| page.categories & PAGE_IS_HUGE != 0),
                "2 MiB faults made small entries"
            );
        }
    }
    let mapping = map(Kind::SharedWrite)?;
    let upgrade = |sample| {
        mapping.fault(at(2)(sample), false);
        mapping.fault(at(2)(sample), true)
    };
    rows.add_median("2 MiB fault, upgrade", (0..SAMPLES).map(upgrade).collect());
    Ok(())
}

/// Faults at a stride of 4 KiB in a mapping that is too short for more, in the last three units of the file.
pub fn small_faults(rows: &mut Rows, target: &Target) -> Result<()> {
    const WINDOW: usize = 1 << 20;

    let map =
        |unit: u64, kind| Mapping::new(target.file, target.size - (unit + 1) * AU, WINDOW, kind);
    for (unit, kind, name) in [
        (0, Kind::SharedRead, "read"),
        (1, Kind::SharedWrite, "write"),
    ] {
        let write = kind == Kind::SharedWrite;
        for state in ["cold", "warm"] {
            let mapping = map(unit, kind)?;
            let all: Vec<u64> = (0..WINDOW)
                .step_by(PAGE)
                .map(|at| mapping.fault(at, write))
                .collect();
            // What a page costs where one fault maps several.
            let ranges = all
                .chunks(AROUND)
                .map(|range| range.iter().sum::<u64>() / AROUND as u64);
            let ranges = ranges.collect();
            rows.add_median(&format!("4 KiB fault, {state} {name}"), all);
            rows.add_median(&format!("4 KiB page in a range, {state} {name}"), ranges);
        }
    }
    let mapping = map(2, Kind::SharedWrite)?;
    let upgrade = |at| {
        mapping.fault(at, false);
        mapping.fault(at, true)
    };
    rows.add_median(
        "4 KiB fault, upgrade",
        (0..WINDOW).step_by(PAGE).map(upgrade).collect(),
    );
    Ok(())
}

/// First touches of memory that belongs to no file.
pub fn anonymous(rows: &mut Rows, huge: bool) -> Result<()> {
    let (step, name) = if huge {
        (AU as usize, "2 MiB")
    } else {
        (PAGE, "4 KiB")
    };
    for (write, kind) in [(false, "read"), (true, "write")] {
        let mapping = Mapping::anonymous(SAMPLES as usize * step + AU as usize)?;
        if huge {
            mapping.huge_pages()?;
        } else {
            mapping.no_huge_pages()?;
        }
        let first = mapping.address().next_multiple_of(step) - mapping.address();
        let at = |sample: u64| first + sample as usize * step;
        let faults = (0..SAMPLES).map(|sample| mapping.fault(at(sample), write));
        rows.add_median(&format!("{name} fault, cold {kind}"), faults.collect());
    }
    Ok(())
}

/// pread and pwrite, all over the file.
pub fn read_write(rows: &mut Rows, target: &Target) -> Result<()> {
    for (len, name) in [(64, "64 B"), (PAGE, "4 KiB"), (AU as usize, "2 MiB")] {
        let mut buffer = vec![0u8; len];
        let at = |sample: u64| sample * (target.size / SAMPLES / AU) * AU;
        // The buffer's own pages are there after the first one.
        let mut reads = Vec::new();
        for sample in (0..SAMPLES).chain(0..SAMPLES) {
            let (done, ticks) = timed(|| target.file.read_at(&mut buffer, at(sample)));
            ensure!(done? == len, "a short read");
            reads.push(ticks);
        }
        let mut writes = Vec::new();
        for sample in (0..SAMPLES).chain(0..SAMPLES) {
            let (done, ticks) = timed(|| target.file.write_at(&buffer, at(sample)));
            ensure!(done? == len, "a short write");
            writes.push(ticks);
        }
        rows.add_median(&format!("pread {name}"), reads.split_off(SAMPLES as usize));
        rows.add_median(
            &format!("pwrite {name}"),
            writes.split_off(SAMPLES as usize),
        );
    }
    Ok(())
}

/// Opening the files that `path` gives names to, `count` of them, which nobody has opened since `mount`; then opening
/// and closing, and asking for the attributes, of one.
pub fn open_close(
    rows: &mut Rows,
    mount: impl Fn() -> Result<()>,
    path: impl Fn(u64) -> String,
    count: u64,
) -> Result<()> {
    const MOUNTS: usize = 9;
    const TIMES: usize = 301;

    let (mut firsts, mut opens) = (Vec::new(), Vec::new());
    for _ in 0..MOUNTS {
        mount()?;
        // Names are looked up, and answers cached, before.
        for i in 0..count {
            fs::metadata(path(i))?;
        }
        for i in 0..count {
            let path = path(i);
            let (file, ticks) = timed(|| File::open(&path));
            drop(file?);
            let figures = if i == 0 { &mut firsts } else { &mut opens };
            figures.push(ticks);
        }
    }
    rows.add_median("open, first of the mount", firsts);
    rows.add_median("open, first of the file", opens);
    let path = path(0);
    let (mut again, mut stats) = (Vec::new(), Vec::new());
    for _ in 0..TIMES {
        let (done, ticks) = timed(|| File::open(&path).map(drop));
        done?;
        again.push(ticks);
        let (done, ticks) = timed(|| rustix::fs::stat(path.as_str()));
        done?;
        stats.push(ticks);
    }
    rows.add_median("open and close, cached", again);
    rows.add_median("stat", stats);
    Ok(())
}

/// Mapping without a touch, and having all of what was touched before mapped at once.
pub fn whole(rows: &mut Rows, target: &Target) -> Result<()> {
    const LEN: usize = 192 << 20;

    let map = || Mapping::new(target.file, 0, LEN, Kind::SharedWrite);
    let mut maps = Vec::new();
    for _ in 0..SAMPLES {
        let (mapping, ticks) = timed(|| map().map(drop));
        mapping?;
        maps.push(ticks);
    }
    rows.add_median("mmap and munmap of 192 MiB", maps);
    map()?.populate(true)?;
    for (write, name) in [(false, "READ"), (true, "WRITE")] {
        let mapping = map()?;
        let (done, ticks) = timed(|| mapping.populate(write));
        done?;
        rows.add(&format!("MADV_POPULATE_{name} of 192 MiB"), ticks);
    }
    Ok(())
}
