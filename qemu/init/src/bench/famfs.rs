// SPDX-License-Identifier: MIT OR Apache-2.0
//! famfs, with maps of several shapes, and made by its own tools.

use std::fs::{self, File};

use anyhow::{Context, Result};
use famfs_media::Extent as LogExtent;
use rustix::mount::{unmount, UnmountFlags};
use serde_json::Value;

use super::ops::{self, Target};
use super::subjects::{many, open, DIR, FILES, MANY, SIZE};
use super::Report;
use crate::dax::DaxDev;
use crate::fmap::{extent, Extent, Fmap, AU};
use crate::module;
use crate::runner::Guest;
use crate::server::{Serve, ServedFile, TestFs};
use crate::tool::{append_to_log, debugfs_file, famfs, mkfs};

/// All maps, with fast faults and without.
pub fn all_maps(report: &mut Report, guest: &Guest, maps: &[(&str, Fmap)]) -> Result<()> {
    module::reload_famfs(c"fast_faults=1")?;
    for (name, fmap) in maps {
        one_map(report, guest, name, fmap, true)?;
    }
    module::reload_famfs(c"fast_faults=0")?;
    for (name, fmap) in maps {
        one_map(
            report,
            guest,
            &format!("{name}, fast_faults=0"),
            fmap,
            false,
        )?;
    }
    module::reload_famfs(c"fast_faults=1")
}

/// Extents on the device are in the opposite order to that in the file, so that no two of them are one.
fn reversed(lens: &[u64]) -> Fmap {
    let mut end: u64 = lens.iter().sum();
    let mut place = |len: &u64| {
        end -= len;
        extent(0, end, *len)
    };
    let extents: Vec<Extent> = lens.iter().map(&mut place).collect();
    Fmap::simple(lens.iter().sum(), &extents)
}

/// Maps of famfs, in the order of the table.
pub fn maps() -> Vec<(&'static str, Fmap)> {
    let mixed = |n: usize, unit: u64| {
        let lens: Vec<u64> = (0..n).map(|i| unit * (1 + i as u64 % 2)).collect();
        reversed(&lens)
    };
    let striped = |daxdevs: u32| {
        let strips: Vec<Extent> = (0..4)
            .map(|i| extent(i % daxdevs, u64::from(i / daxdevs) * (SIZE / 4), SIZE / 4))
            .collect();
        Fmap::interleaved(SIZE, AU as u32, &strips)
    };
    vec![
        ("famfs, 1 extent", Fmap::simple(SIZE, &[extent(0, 0, SIZE)])),
        ("famfs, 32 uniform", reversed(&[SIZE / 32; 32])),
        ("famfs, 4096 uniform", reversed(&[AU; 4096])),
        ("famfs, 32 mixed", mixed(32, 12 * AU)),
        ("famfs, 4096 mixed", mixed(4096, AU)),
        ("famfs, 4 strips, 1 daxdev", striped(1)),
        ("famfs, 4 strips, 2 daxdevs", striped(2)),
        ("famfs, 4 strips, 4 daxdevs", striped(4)),
    ]
}

/// Of half a TiB: one extent, as many as that is units, and the same with one unit in 4096 twice as long.
pub fn large_maps() -> Vec<(&'static str, Fmap)> {
    const N: u64 = 262_144;

    let mixed: Vec<u64> = (0..N)
        .map(|i| AU * (1 + u64::from(i % 4096 == 0)))
        .collect();
    vec![
        (
            "famfs, 1 extent of 512 GiB",
            Fmap::simple(N * AU, &[extent(0, 0, N * AU)]),
        ),
        ("famfs, 262144 uniform", reversed(&[AU; N as usize])),
        ("famfs, 262144 mixed", reversed(&mixed)),
    ]
}

fn one_map(report: &mut Report, guest: &Guest, name: &str, fmap: &Fmap, every: bool) -> Result<()> {
    let Some(mut rows) = report.subject(name) else {
        return Ok(());
    };
    let fs = TestFs::mount(Serve {
        files: vec![ServedFile::new("file", fmap)],
        ..Serve::default()
    })?;
    for (index, device) in guest.devices.iter().enumerate() {
        let device = open(&device.path())?;
        fs.push(&device, index as u64)?;
    }
    let target = Target {
        file: &fs.open_rw("file")?,
        size: fmap.size,
    };
    let before = fs.total();
    ops::huge_faults(&mut rows, &target)?;
    ops::small_faults(&mut rows, &target)?;
    if every {
        ops::read_write(&mut rows, &target)?;
    }
    ops::whole_file(&mut rows, &target)?;
    rows.add("FUSE requests during all these", fs.total() - before);
    if every {
        rows.add("bytes of the cached map", cached_bytes(&fs.path("."))?);
    }
    Ok(())
}

/// What the only cached map of a mount takes, as debugfs has it.
fn cached_bytes(mountpoint: &str) -> Result<u64> {
    let text = fs::read_to_string(debugfs_file(mountpoint)?)?;
    let bytes = |word: &str| word.strip_prefix("bytes=")?.parse().ok();
    text.split_ascii_whitespace()
        .find_map(bytes)
        .with_context(|| format!("no map in {text:?}"))
}

/// A file system of famfs's own tools and server.
pub fn tool_made(report: &mut Report, device: &DaxDev) -> Result<()> {
    let Some(mut rows) = report.subject("famfs, 1 extent") else {
        return Ok(());
    };
    let path = |i| format!("{DIR}/file{i}");
    mkfs(&["--force", &device.path()])?;
    famfs(&["mount", &device.path(), DIR])?;
    for i in 0..FILES {
        famfs(&["creat", "-s", "2M", &path(i)])?;
    }
    famfs(&["mkdir", &many()])?;
    // Behind those, and the log.
    let entry = |i| {
        let (devindex, offset, len) = (0, (64 + i as u64) * AU, AU);
        let extent = LogExtent {
            devindex,
            offset,
            len,
        };
        (format!("many/file{i}"), AU, vec![extent])
    };
    append_to_log(DIR, (0..MANY).map(entry))?;
    let remount = || {
        unmount(DIR, UnmountFlags::empty())?;
        famfs(&["mount", &device.path(), DIR]).map(drop)
    };
    ops::open_close(&mut rows, remount, path, FILES)?;
    let before = requests()?;
    File::open(path(0))?;
    rows.add(
        "open and close, cached: FUSE requests",
        requests()? - before,
    );
    ops::list(&mut rows, &many(), MANY)?;
    unmount(DIR, UnmountFlags::empty())?;
    Ok(())
}

/// How many the server of the mount has seen.
fn requests() -> Result<u64> {
    let status: Value = serde_json::from_str(&famfs(&["status", "--json", DIR])?)?;
    status["requests_total"]
        .as_u64()
        .with_context(|| format!("no requests_total in {status}"))
}
