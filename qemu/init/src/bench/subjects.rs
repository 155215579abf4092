// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is measured, famfs and the other ways to map memory.

use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use anyhow::{ensure, Context, Result};
use rustix::fs::{fallocate, FallocateFlags};
use rustix::mount::{mount, unmount, MountFlags, UnmountFlags};

use super::ops::{self, Target};
use super::{famfs, kernel, Report};
use crate::dax::{self, DaxDev, Driver};
use crate::fmap::AU;
use crate::runner::Guest;

/// Bytes of the files that have no reason to be larger.
pub const SIZE: u64 = 1088 << 20;
/// Files that are opened, one after the other.
pub const FILES: u64 = 32;
/// Files that are listed.
pub const MANY: usize = 10_000;
/// The device for everything that is not famfs.
const OTHER: usize = 3;
pub const DIR: &str = "/bench";

pub fn run(report: &mut Report, guest: &Guest) -> Result<()> {
    fs::create_dir_all(DIR)?;
    if let [device] = guest.devices.as_slice() {
        device.bind(Driver::Fsdev)?;
        return famfs::all_maps(report, guest, &famfs::large_maps());
    }
    let other = guest
        .devices
        .get(OTHER)
        .context("four dax devices are needed")?;
    kernel::iomap_begin(report)?;
    device_dax(report, other)?;
    for device in &guest.devices {
        device.bind(Driver::Fsdev)?;
    }
    famfs::all_maps(report, guest, &famfs::maps())?;
    famfs::tool_made(report, &guest.devices[0])?;
    for (name, region, program, args, options) in FILE_SYSTEMS {
        let disk = dax::make_pmem(region)?;
        let args: Vec<&str> = args.iter().copied().chain([disk.as_str()]).collect();
        dax::run(program, &args)?;
        other_dax(report, name, &disk, options)?;
    }
    memory(report)
}

/// Memory without a device.
fn memory(report: &mut Report) -> Result<()> {
    let mut in_memory = |subject: &str, name: &str, options: &CStr, huge: bool, small: bool| {
        let Some(mut rows) = report.subject(subject) else {
            return Ok(());
        };
        mount(name, DIR, name, MountFlags::empty(), options)
            .with_context(|| format!("mount {name} with {options:?}"))?;
        let file = open(&format!("{DIR}/file"))?;
        file.set_len(SIZE)?;
        let target = Target {
            file: &file,
            size: SIZE,
        };
        if huge {
            ops::huge_faults(&mut rows, &target)?;
        }
        if small {
            ops::small_faults(&mut rows, &target)?;
            ops::read_write(&mut rows, &target)?;
            make_many()?;
            ops::list(&mut rows, &many(), MANY)?;
        }
        ops::whole_file(&mut rows, &target)?;
        drop(file);
        unmount(DIR, UnmountFlags::empty()).context("unmount")
    };
    in_memory(
        "tmpfs huge=never",
        "tmpfs",
        c"huge=never,size=1200M",
        false,
        true,
    )?;
    in_memory(
        "tmpfs huge=always",
        "tmpfs",
        c"huge=always,size=1200M",
        true,
        false,
    )?;
    let pages = SIZE / AU;
    fs::write("/proc/sys/vm/nr_hugepages", pages.to_string())?;
    let got = fs::read_to_string("/proc/sys/vm/nr_hugepages")?;
    ensure!(
        got.trim() == pages.to_string(),
        "{} huge pages instead of {pages}",
        got.trim()
    );
    in_memory("hugetlbfs", "hugetlbfs", c"pagesize=2M", true, false)?;
    fs::write("/proc/sys/vm/nr_hugepages", "0")?;
    for (subject, huge) in [("anonymous", false), ("anonymous, THP", true)] {
        if let Some(mut rows) = report.subject(subject) {
            ops::anonymous(&mut rows, huge)?;
        }
    }
    Ok(())
}

pub fn open(path: &str) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| path.to_owned())
}

/// Name, device, mkfs and its arguments, mount options. Aligned and striped so that a large file gets extents of 2 MiB;
/// XFS on the large device, where the file lies in one allocation group.
const FILE_SYSTEMS: [(&str, usize, &str, &[&str], &str); 2] = [
    (
        "ext4",
        OTHER,
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
        0,
        "mkfs.xfs",
        &["-q", "-f", "-m", "reflink=0", "-d", "su=2m,sw=1"],
        "dax=always",
    ),
];

fn device_dax(report: &mut Report, device: &DaxDev) -> Result<()> {
    let Some(mut rows) = report.subject("device-dax") else {
        return Ok(());
    };
    device.bind(Driver::Devdax)?;
    let target = Target {
        file: &open(&device.path())?,
        size: device.size()? / AU * AU,
    };
    ops::huge_faults(&mut rows, &target)?;
    ops::whole_file(&mut rows, &target)
}

/// The folder with many files.
pub fn many() -> String {
    format!("{DIR}/many")
}

/// Makes it, with empty files.
fn make_many() -> Result<()> {
    fs::create_dir(many())?;
    for i in 0..MANY {
        File::create(format!("{}/file{i}", many()))?;
    }
    Ok(())
}

/// Another file system on `disk`, which has been made.
fn other_dax(report: &mut Report, name: &str, disk: &str, options: &str) -> Result<()> {
    let subject = format!("{name} -o dax");
    let Some(mut rows) = report.subject(&subject) else {
        return Ok(());
    };
    let options = CString::new(options)?;
    let again = || {
        mount(disk, DIR, name, MountFlags::empty(), options.as_c_str())
            .with_context(|| format!("mount {name} on {disk}"))
    };
    again()?;
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
    make_many()?;
    drop(file);
    let remount = || {
        unmount(DIR, UnmountFlags::empty())?;
        again()
    };
    ops::open_close(&mut rows, remount, |i| format!("{DIR}/file{i}"), FILES)?;
    ops::list(&mut rows, &many(), MANY)?;
    let file = open(&format!("{DIR}/file"))?;
    let target = Target {
        file: &file,
        size: SIZE,
    };
    ops::huge_faults(&mut rows, &target)?;
    ops::small_faults(&mut rows, &target)?;
    ops::read_write(&mut rows, &target)?;
    ops::whole_file(&mut rows, &target)?;
    drop(file);
    unmount(DIR, UnmountFlags::empty())?;
    Ok(())
}
