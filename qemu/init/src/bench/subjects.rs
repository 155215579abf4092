// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is measured: famfs with maps of several shapes, and the other ways to map memory.

use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use rustix::fs::{fallocate, FallocateFlags};
use rustix::mount::{mount, unmount, MountFlags, UnmountFlags};

use super::ops::{self, Target};
use super::Rows;
use crate::channel::Channel;
use crate::dax::{self, DaxDev, Driver};
use crate::fmap::{extent, Extent, Fmap, AU};
use crate::module;
use crate::runner::Guest;
use crate::server::{Serve, ServedFile, TestFs};
use crate::tool::{famfs, mkfs};

/// Bytes of the files that have no reason to be larger.
const SIZE: u64 = 256 << 20;
/// The device for everything that is not famfs.
const OTHER: usize = 3;
const DIR: &str = "/mnt/bench";

pub fn run(channel: &mut Channel, guest: &Guest) -> Result<()> {
    let other = guest
        .devices
        .get(OTHER)
        .context("four dax devices are needed")?;
    fs::create_dir_all(DIR)?;
    device_dax(channel, other)?;
    module::ensure_famfs()?;
    for device in &guest.devices {
        device.bind(Driver::Fsdev)?;
    }
    for (name, fmap) in maps() {
        one_map(channel, guest, name, &fmap)?;
    }
    opens(channel, other)?;
    for (name, program, args, options) in FILE_SYSTEMS {
        let disk = dax::make_pmem(OTHER)?;
        let args: Vec<&str> = args.iter().copied().chain([disk.as_str()]).collect();
        dax::run(program, &args)?;
        other_dax(channel, name, &disk, options)?;
    }
    memory(channel)
}

/// Memory without a device.
fn memory(channel: &mut Channel) -> Result<()> {
    let mut in_memory = |subject: &str, name: &str, options: &CStr, huge: bool, small: bool| {
        channel.step(subject);
        mount(name, DIR, name, MountFlags::empty(), options)
            .with_context(|| format!("mount {name} with {options:?}"))?;
        let file = open(&format!("{DIR}/file"))?;
        file.set_len(SIZE)?;
        let target = Target {
            file: &file,
            size: SIZE,
        };
        let mut rows = Rows { channel, subject };
        if huge {
            ops::huge_faults(&mut rows, &target)?;
        }
        if small {
            ops::small_faults(&mut rows, &target)?;
            ops::read_write(&mut rows, &target)?;
        }
        ops::whole(&mut rows, &target)?;
        drop(file);
        unmount(DIR, UnmountFlags::empty()).context("unmount")
    };
    in_memory(
        "tmpfs huge=never",
        "tmpfs",
        c"huge=never,size=300M",
        false,
        true,
    )?;
    in_memory(
        "tmpfs huge=always",
        "tmpfs",
        c"huge=always,size=300M",
        true,
        false,
    )?;
    fs::write("/proc/sys/vm/nr_hugepages", "130")?;
    in_memory("hugetlbfs", "hugetlbfs", c"pagesize=2M", true, false)?;
    fs::write("/proc/sys/vm/nr_hugepages", "0")?;
    channel.step("anonymous");
    for (subject, huge) in [("anonymous", false), ("anonymous, THP", true)] {
        ops::anonymous(&mut Rows { channel, subject }, huge)?;
    }
    Ok(())
}

fn open(path: &str) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| path.to_owned())
}

/// Name, mkfs and its arguments, mount options. Aligned and striped so that a large file gets extents of 2 MiB.
const FILE_SYSTEMS: [(&str, &str, &[&str], &str); 2] = [
    (
        "ext4",
        "mkfs.ext4",
        &[
            "-q",
            "-F",
            "-b",
            "4096",
            "-E",
            "stride=512,stripe-width=512,lazy_itable_init=1",
        ],
        "dax=always",
    ),
    (
        "xfs",
        "mkfs.xfs",
        &["-q", "-f", "-m", "reflink=0", "-d", "su=2m,sw=1"],
        "dax=always",
    ),
];

/// Maps of famfs, in the order of the table. Extents on the device are in the opposite order to that in the file, so
/// that no two of them are one.
fn maps() -> Vec<(&'static str, Fmap)> {
    let reversed = |lens: &[u64]| {
        let mut end: u64 = lens.iter().sum();
        let mut place = |len: &u64| {
            end -= len;
            extent(0, end, *len)
        };
        let extents: Vec<Extent> = lens.iter().map(&mut place).collect();
        Fmap::simple(lens.iter().sum(), &extents)
    };
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
        (
            "famfs, 1 extent",
            Fmap::simple(1 << 30, &[extent(0, 0, 1 << 30)]),
        ),
        ("famfs, 32 uniform", reversed(&[SIZE / 32; 32])),
        ("famfs, 4096 uniform", reversed(&[AU; 4096])),
        ("famfs, 32 mixed", mixed(32, 2 * AU)),
        ("famfs, 4096 mixed", mixed(4096, AU)),
        ("famfs, 4 strips, 1 daxdev", striped(1)),
        ("famfs, 4 strips, 2 daxdevs", striped(2)),
        ("famfs, 4 strips, 4 daxdevs", striped(4)),
    ]
}

fn one_map(channel: &mut Channel, guest: &Guest, name: &str, fmap: &Fmap) -> Result<()> {
    channel.step(name);
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
    let mut rows = Rows {
        channel,
        subject: name,
    };
    file_rows(&mut rows, &target)
}

fn file_rows(rows: &mut Rows, target: &Target) -> Result<()> {
    ops::huge_faults(rows, target)?;
    ops::small_faults(rows, target)?;
    ops::read_write(rows, target)?;
    ops::whole(rows, target)
}

fn device_dax(channel: &mut Channel, device: &DaxDev) -> Result<()> {
    channel.step("device-dax");
    device.bind(Driver::Devdax)?;
    let target = Target {
        file: &open(&device.path())?,
        size: device.size()? / AU * AU,
    };
    let mut rows = Rows {
        channel,
        subject: "device-dax",
    };
    ops::huge_faults(&mut rows, &target)?;
    ops::whole(&mut rows, &target)
}

/// A file system of famfs's own server.
fn opens(channel: &mut Channel, device: &DaxDev) -> Result<()> {
    const FILES: u64 = 32;

    channel.step("famfs, opens");
    let path = |i| format!("{DIR}/file{i}");
    mkfs(&["--force", &device.path()])?;
    famfs(&["mount", &device.path(), DIR])?;
    for i in 0..FILES {
        famfs(&["creat", "-s", "2M", &path(i)])?;
    }
    let remount = || {
        unmount(DIR, UnmountFlags::empty())?;
        famfs(&["mount", &device.path(), DIR]).map(drop)
    };
    let mut rows = Rows {
        channel,
        subject: "famfs, 1 extent",
    };
    ops::open_close(&mut rows, remount, path, FILES)?;
    unmount(DIR, UnmountFlags::empty())?;
    Ok(())
}

/// Another file system on `disk`, which has been made.
fn other_dax(channel: &mut Channel, name: &str, disk: &str, options: &str) -> Result<()> {
    const FILES: u64 = 32;

    let subject = format!("{name} -o dax");
    channel.step(&subject);
    let options = CString::new(options)?;
    mount(disk, DIR, name, MountFlags::empty(), options.as_c_str())
        .with_context(|| format!("mount {name} on {disk}"))?;
    let file = open(&format!("{DIR}/file"))?;
    fallocate(&file, FallocateFlags::empty(), 0, SIZE)?;
    // What is allocated but not written costs more at the first write.
    let zeros = vec![0; AU as usize];
    for at in (0..SIZE).step_by(AU as usize) {
        file.write_all_at(&zeros, at)?;
    }
    for i in 0..FILES {
        File::create(format!("{DIR}/file{i}"))?;
    }
    drop(file);
    let remount = || {
        unmount(DIR, UnmountFlags::empty())?;
        Ok(mount(
            disk,
            DIR,
            name,
            MountFlags::empty(),
            options.as_c_str(),
        )?)
    };
    let mut rows = Rows {
        channel,
        subject: &subject,
    };
    ops::open_close(&mut rows, remount, |i| format!("{DIR}/file{i}"), FILES)?;
    let file = open(&format!("{DIR}/file"))?;
    let target = Target {
        file: &file,
        size: SIZE,
    };
    file_rows(&mut rows, &target)?;
    drop(file);
    unmount(DIR, UnmountFlags::empty())?;
    Ok(())
}
