// SPDX-License-Identifier: MIT OR Apache-2.0
//! The operations, and how one of each is timed.

use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;

use anyhow::{ensure, Context, Result};
use rustix::fs::RawDir;

use super::Rows;
use crate::fmap::AU;
use crate::sys::{scan_pages, ticks, Kind, Mapping, PAGE_IS_HUGE};

/// Operations of one kind; odd, for the median's sake.
const SAMPLES: u64 = 31;
const PAGE: usize = 4096;
/// Pages that a fault maps at most, if it maps those around it.
const AROUND: usize = 16;
/// Bytes that are mapped, and populated, as a whole.
const WHOLE: usize = 1 << 30;

/// A file that is mapped and, unless it is a device, read and written.
pub struct Target<'a> {
    pub file: &'a File,
    /// Bytes: at least 1 GiB and three units, where the small pages are.
    pub size: u64,
}

/// Ticks that `operation` takes, less those of taking the time. Four looks at the clock; the time between the third
/// and the fourth is what is taken off.
fn timed<T>(operation: impl FnOnce() -> T) -> (T, u64) {
    let start = ticks();
    let result = operation();
    let end = ticks();
    let again = ticks();
    let nothing = ticks().wrapping_sub(again);
    (result, end.wrapping_sub(start).saturating_sub(nothing))
}

/// Faults at a stride of 2 MiB, all over the file. Three groups of units take turns: those read first, those written
/// first, and those written after they were read.
pub fn huge_faults(rows: &mut Rows, target: &Target) -> Result<()> {
    let stride = target.size / AU / (3 * SAMPLES);
    ensure!(stride > 0, "a file of {} bytes is too small", target.size);
    let at = |group: u64| move |sample: u64| ((3 * sample + group) * stride * AU) as usize;
    let map = |kind| Mapping::new(target.file, 0, target.size as usize, kind);
    let faults = |mapping: &Mapping, group, write| {
        (0..SAMPLES)
            .map(|sample| mapping.fault(at(group)(sample), write))
            .collect()
    };
    for (group, kind, name) in [
        (0, Kind::SharedRead, "read"),
        (1, Kind::SharedWrite, "write"),
    ] {
        let write = kind == Kind::SharedWrite;
        for state in ["cold", "warm"] {
            let mapping = map(kind)?;
            rows.median(&format!("2 MiB fault, {state} {name}"), || {
                Ok(faults(&mapping, group, write))
            })?;
            ensure!(
                scan_pages(&mapping)?
                    .iter()
                    .all(|page| page.categories & PAGE_IS_HUGE != 0),
                "2 MiB faults made small entries"
            );
        }
    }
    let mapping = map(Kind::SharedWrite)?;
    let _: Vec<u64> = faults(&mapping, 2, false);
    rows.median("2 MiB fault, upgrade", || Ok(faults(&mapping, 2, true)))
}

/// Faults at a stride of 4 KiB in a mapping that is too short for more, in the last three units of the file.
pub fn small_faults(rows: &mut Rows, target: &Target) -> Result<()> {
    const WINDOW: usize = 1 << 20;

    let map =
        |unit: u64, kind| Mapping::new(target.file, target.size - (unit + 1) * AU, WINDOW, kind);
    let faults = |mapping: &Mapping, write| -> Vec<u64> {
        (0..WINDOW)
            .step_by(PAGE)
            .map(|at| mapping.fault(at, write))
            .collect()
    };
    // What a page costs where one fault maps several.
    let averages = |faults: &[u64]| -> Vec<u64> {
        faults
            .chunks(AROUND)
            .map(|range| range.iter().sum::<u64>() / AROUND as u64)
            .collect()
    };
    for (unit, kind, name) in [
        (0, Kind::SharedRead, "read"),
        (1, Kind::SharedWrite, "write"),
    ] {
        let write = kind == Kind::SharedWrite;
        for state in ["cold", "warm"] {
            let mapping = map(unit, kind)?;
            let mut ranges = Vec::new();
            rows.median(&format!("4 KiB fault, {state} {name}"), || {
                let all = faults(&mapping, write);
                ranges = averages(&all);
                Ok(all)
            })?;
            rows.add_median(&format!("4 KiB page in a range, {state} {name}"), ranges);
        }
    }
    let mapping = map(2, Kind::SharedWrite)?;
    faults(&mapping, false);
    rows.median("4 KiB fault, upgrade", || Ok(faults(&mapping, true)))
}

/// First touches of memory that belongs to no file, and all of it at once.
pub fn anonymous(rows: &mut Rows, huge: bool) -> Result<()> {
    let (step, name) = if huge {
        (AU as usize, "2 MiB")
    } else {
        (PAGE, "4 KiB")
    };
    let map = |len: usize| -> Result<Mapping> {
        let mapping = Mapping::anonymous(len)?;
        match huge {
            true => mapping.huge_pages()?,
            false => mapping.no_huge_pages()?,
        }
        Ok(mapping)
    };
    for (write, kind) in [(false, "read"), (true, "write")] {
        let mapping = map(SAMPLES as usize * step + AU as usize)?;
        let first = mapping.address().next_multiple_of(step) - mapping.address();
        let at = |sample: u64| first + sample as usize * step;
        rows.median(&format!("{name} fault, cold {kind}"), || {
            Ok((0..SAMPLES)
                .map(|sample| mapping.fault(at(sample), write))
                .collect())
        })?;
    }
    whole(rows, || map(WHOLE))
}

/// pread and pwrite, all over the file, of memory that was written before.
pub fn read_write(rows: &mut Rows, target: &Target) -> Result<()> {
    for (len, name) in [(64, "64 B"), (PAGE, "4 KiB"), (AU as usize, "2 MiB")] {
        let mut buffer = vec![0u8; len];
        let at = |sample: u64| sample * (target.size / SAMPLES / AU) * AU;
        let write = |buffer: &[u8], sample| {
            let (done, ticks) = timed(|| target.file.write_at(buffer, at(sample)));
            ensure!(done? == len, "a short write");
            Ok(ticks)
        };
        let mut read = |sample| {
            let (done, ticks) = timed(|| target.file.read_at(&mut buffer, at(sample)));
            ensure!(done? == len, "a short read");
            Ok(ticks)
        };
        // The buffer's own pages are there after the first one.
        read(0)?;
        let bytes = vec![1u8; len];
        for sample in 0..SAMPLES {
            write(&bytes, sample)?;
        }
        rows.median(&format!("pread {name}"), || {
            (0..SAMPLES).map(&mut read).collect()
        })?;
        rows.median(&format!("pwrite {name}"), || {
            (0..SAMPLES).map(|sample| write(&bytes, sample)).collect()
        })?;
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

    let open = |i| -> Result<u64> {
        let path = path(i);
        let (file, ticks) = timed(|| File::open(&path));
        drop(file?);
        Ok(ticks)
    };
    // Names are looked up, and answers cached, before.
    let fresh = || -> Result<()> {
        mount()?;
        (0..count).try_for_each(|i| fs::metadata(path(i)).map(drop).context("stat"))
    };
    rows.median("open, first of the mount", || {
        (0..MOUNTS)
            .map(|_| fresh().and_then(|()| open(0)))
            .collect()
    })?;
    rows.median("open, first of the file", || {
        let mut opens = Vec::new();
        for _ in 0..MOUNTS {
            fresh()?;
            File::open(path(0))?;
            for i in 1..count {
                opens.push(open(i)?);
            }
        }
        Ok(opens)
    })?;
    let path = path(0);
    rows.median("open and close, cached", || {
        let once = |_| {
            let (done, ticks) = timed(|| File::open(&path).map(drop));
            done?;
            Ok(ticks)
        };
        (0..TIMES).map(once).collect()
    })?;
    rows.median("stat", || {
        let once = |_| {
            let (done, ticks) = timed(|| rustix::fs::stat(path.as_str()));
            done?;
            Ok(ticks)
        };
        (0..TIMES).map(once).collect()
    })
}

/// Listing a folder with `count` files, again and again.
pub fn list(rows: &mut Rows, folder: &str, count: usize) -> Result<()> {
    const TIMES: usize = 5;

    let once = |_| {
        let file = File::open(folder)?;
        let (entries, ticks) = timed(|| entries(&file));
        // With the folder and its parent.
        let entries = entries?;
        ensure!(entries == count + 2, "{folder} has {entries} entries");
        Ok(ticks)
    };
    once(0)?;
    rows.median("getdents of 10,000 files", || {
        (0..TIMES).map(once).collect()
    })
}

fn entries(folder: &File) -> rustix::io::Result<usize> {
    let mut buffer = [MaybeUninit::uninit(); 32 << 10];
    let mut folder = RawDir::new(folder, &mut buffer);
    let mut count = 0;
    while let Some(entry) = folder.next() {
        entry?;
        count += 1;
    }
    Ok(count)
}

/// Mapping a file without a touch, and having all of what was touched before mapped at once.
pub fn whole_file(rows: &mut Rows, target: &Target) -> Result<()> {
    let map = || Ok(Mapping::new(target.file, 0, WHOLE, Kind::SharedWrite)?);
    map()?.populate(true)?;
    whole(rows, map)
}

fn whole(rows: &mut Rows, map: impl Fn() -> Result<Mapping>) -> Result<()> {
    rows.median("mmap and munmap of 1 GiB", || {
        let once = |_| {
            let (mapping, ticks) = timed(|| map().map(drop));
            mapping?;
            Ok(ticks)
        };
        (0..SAMPLES).map(once).collect()
    })?;
    for (write, name) in [(false, "READ"), (true, "WRITE")] {
        let mapping = map()?;
        rows.median(&format!("MADV_POPULATE_{name} of 1 GiB"), || {
            let (done, ticks) = timed(|| mapping.populate(write));
            done?;
            Ok(vec![ticks])
        })?;
    }
    Ok(())
}
