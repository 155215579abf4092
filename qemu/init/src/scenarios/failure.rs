// SPDX-License-Identifier: MIT OR Apache-2.0
//! A hardware memory error under a mount: it hurts whoever uses that device, and nobody else.

use std::fs::File;

use anyhow::{ensure, Context, Result};
use serde_json::Value;

use super::faults::expect_value;
use super::fixture::{ensure_eq, one_extent, ready};
use super::poison::{read_errno, report_error, EHWPOISON, PAGE};
use super::tool::{at, source, umount, Mounted, MOUNTPOINT};
use super::Test;
use crate::channel::Channel;
use crate::dax::Driver;
use crate::fmap::{extent, Fmap, AU};
use crate::module;
use crate::probe::{Probe, Reply};
use crate::runner::Guest;
use crate::server::{ServedFile, TestFs};
use crate::sys::Kind;
use crate::tool::{debugfs_file, famfs, getmap};

pub const TESTS: &[(&str, Test)] = &[
    ("poison_fails_the_device", poison_fails_the_device),
    ("poison_fails_the_range", poison_fails_the_range),
    ("the_mount_option_counts", the_mount_option_counts),
    ("removal_takes_the_mappings", removal_takes_the_mappings),
];

/// Three files: one is poisoned, one shares its device, one is on another device.
fn poison_fails_the_device(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    ready.raw(1)?;
    let beside = Fmap::simple(2 * AU, &[extent(0, 24 * AU, 2 * AU)]);
    let elsewhere = Fmap::simple(AU, &[extent(1, 16 * AU, AU)]);
    let fmaps = [
        ("hit", one_extent()),
        ("beside", beside),
        ("elsewhere", elsewhere),
    ];
    for (_, fmap) in &fmaps {
        ready.fill(fmap)?;
    }
    let mut fs = TestFs::mount(
        ready.serve(
            fmaps
                .iter()
                .map(|(name, fmap)| ServedFile::new(name, fmap))
                .collect(),
        ),
    )?;
    let probe = |name: &str, len: u64| -> Result<(Probe, u64)> {
        let mut probe = Probe::start()?;
        let address = expect_value(probe.map(&fs.path(name), len, Kind::SharedWrite)?)?;
        expect_value(probe.get(0)?)?;
        Ok((probe, address))
    };
    let (mut poisoner, address) = probe("hit", AU)?;
    let (mut other_user, other_address) = probe("hit", AU)?;
    let (mut neighbour, neighbour_address) = probe("beside", 2 * AU)?;
    let (mut stranger, _) = probe("elsewhere", AU)?;
    let mut late = Probe::start()?;

    let at = 3 * PAGE;
    let hit = Reply::Sigbus(libc::BUS_MCEERR_AR, (address + at) as usize);
    ensure_eq!(poisoner.poison(at)?, hit, "the process that met the error");
    // It did not ask for an early signal (PR_MCE_KILL), so it learns by touching the page.
    let told = Reply::Sigbus(libc::BUS_MCEERR_AR, (other_address + at) as usize);
    ensure_eq!(
        other_user.get(at)?,
        told,
        "another process with the page mapped"
    );

    ensure_eq!(
        neighbour.pread(0, 64)?,
        Reply::Errno(EHWPOISON),
        "pread of a file beside it"
    );
    ensure_eq!(
        neighbour.pwrite(0, 64)?,
        Reply::Errno(EHWPOISON),
        "pwrite of a file beside it"
    );
    let fault = Reply::Sigbus(libc::BUS_ADRERR, (neighbour_address + AU + 5) as usize);
    ensure_eq!(
        neighbour.get(AU + 5)?,
        fault,
        "a new fault in a file beside it"
    );

    let address = expect_value(late.map(&fs.path("hit"), AU, Kind::SharedRead)?)
        .context("open after the error")?;
    ensure_eq!(
        late.pread(AU - 64, 64)?,
        Reply::Errno(EHWPOISON),
        "pread far from the error"
    );
    ensure_eq!(
        late.get(at)?,
        Reply::Sigbus(libc::BUS_MCEERR_AR, (address + at) as usize),
        "a fault on the page"
    );

    ensure_eq!(
        stranger.pread(0, 64)?,
        Reply::Value(64),
        "pread of a file on the other device"
    );
    ensure_eq!(
        stranger.set(5, 9)?,
        Reply::Value(0),
        "store to a file on the other device"
    );
    let shown = std::fs::read_to_string(debugfs_file(&fs.path("."))?)?;
    let states: Vec<_> = shown
        .lines()
        .filter(|line| line.starts_with("daxdev "))
        .collect();
    ensure!(
        states[0].ends_with("state=failed policy=device")
            && states[1].ends_with("state=ok policy=device"),
        "debugfs shows {states:?}"
    );
    drop((poisoner, other_user, neighbour, stranger, late));
    fs.umount().context("umount after the error")
}

/// With the policy `range`, only the poisoned page is lost, and a read ends before it.
fn poison_fails_the_range(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    if module::is_loaded("famfs") {
        module::rmmod("famfs").context("rmmod famfs")?;
    }
    module::insmod_with(module::FAMFS, c"failure_range=1")?
        .context("insmod famfs.ko failure_range=1")?;
    let ready = ready(guest)?;
    ready.raw(1)?;
    let fmap = Fmap::simple(2 * AU, &[extent(1, 24 * AU, 2 * AU)]);
    ready.fill(&fmap)?;
    let mut fs = TestFs::mount(ready.serve(vec![ServedFile::new("file", &fmap)]))?;
    let at = AU + 5 * PAGE;
    let mut poisoner = Probe::start()?;
    let address = expect_value(poisoner.map(&fs.path("file"), 2 * AU, Kind::SharedWrite)?)?;
    expect_value(poisoner.get(at)?)?;
    let hit = Reply::Sigbus(libc::BUS_MCEERR_AR, (address + at) as usize);
    ensure_eq!(poisoner.poison(at)?, hit, "the process that met the error");

    let mut probe = Probe::start()?;
    let address = expect_value(probe.map(&fs.path("file"), 2 * AU, Kind::SharedWrite)?)?;
    ensure_eq!(
        probe.pread(AU, AU)?,
        Reply::Value(5 * PAGE),
        "pread up to the poison"
    );
    ensure_eq!(
        probe.pread(at, PAGE)?,
        Reply::Errno(EHWPOISON),
        "pread of the poisoned page"
    );
    ensure_eq!(
        probe.pread(at + PAGE, AU)?,
        Reply::Value(AU - 6 * PAGE),
        "pread behind the poison"
    );
    ensure_eq!(
        probe.pwrite(at - 64, 128)?,
        Reply::Value(64),
        "pwrite into the poison"
    );
    for good in [0, at - 1, at + PAGE, 2 * AU - 1] {
        ensure!(
            matches!(probe.get(good)?, Reply::Value(_)),
            "the byte at {good:#x} is lost as well"
        );
    }
    let lost = Reply::Sigbus(libc::BUS_MCEERR_AR, (address + at + 9) as usize);
    ensure_eq!(probe.get(at + 9)?, lost, "a fault on the poisoned page");
    drop((poisoner, probe));
    fs.umount().context("umount after the error")?;
    module::rmmod("famfs").context("rmmod famfs")
}

/// `famfs mount --failure device` counts where the module was loaded with `failure_range=1`, which counts without it.
fn the_mount_option_counts(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    module::reload_famfs(c"failure_range=1")?;
    let mounted = Mounted::new(guest, 1)?;
    famfs(&["cp", &source("lost", 2 * AU)?, MOUNTPOINT])?;
    let (_, offset, _) = *getmap(&at("lost"))?.first().context("no extent")?;
    let pfn = mounted.ready.raw(0)?.pfn(offset + 5 * PAGE);
    let device = mounted.ready.paths.first().context("no daxdev")?;
    for (options, policy, behind) in [
        (&["mount"][..], "default", 0),
        (&["mount", "--failure", "device"], "device", EHWPOISON),
    ] {
        umount()?;
        famfs(&[options, &[device, MOUNTPOINT]].concat())?;
        let status: Value = serde_json::from_str(&famfs(&["status", "--json", MOUNTPOINT])?)?;
        ensure_eq!(status["failure"], policy, "the policy that status shows");
        let file = File::open(at("lost"))?;
        report_error(pfn)?;
        let lost = read_errno(&file, 5 * PAGE);
        ensure_eq!(lost, EHWPOISON, "pread of the lost page, {policy}");
        let errno = read_errno(&file, 6 * PAGE);
        ensure_eq!(errno, behind, "pread behind it, {policy}");
        famfs(&["clear-error", MOUNTPOINT])?;
        ensure_eq!(read_errno(&file, 5 * PAGE), 0, "pread in the end");
    }
    umount()?;
    module::rmmod("famfs").context("rmmod famfs")
}

/// A device that is unbound under a mount leaves no mapping behind, and every access to it fails.
fn removal_takes_the_mappings(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    ready.raw(1)?;
    let fmap = Fmap::simple(2 * AU, &[extent(1, 24 * AU, 2 * AU)]);
    ready.fill(&fmap)?;
    let mut fs = TestFs::mount(ready.serve(vec![ServedFile::new("file", &fmap)]))?;
    let mut probe = Probe::start()?;
    let address = expect_value(probe.map(&fs.path("file"), 2 * AU, Kind::SharedWrite)?)?;
    expect_value(probe.get(7)?)?;
    guest.devices[1]
        .bind(Driver::Devdax)
        .context("to devdax mode under a mount")?;
    ensure_eq!(
        probe.pread(0, 64)?,
        Reply::Errno(libc::ENXIO),
        "pread after the removal"
    );
    ensure_eq!(
        probe.pwrite(0, 64)?,
        Reply::Errno(libc::ENXIO),
        "pwrite after the removal"
    );
    let gone = Reply::Sigbus(libc::BUS_ADRERR, (address + 7) as usize);
    ensure_eq!(
        probe.get(7)?,
        gone,
        "a page that was mapped before the removal"
    );
    drop(probe);
    fs.umount().context("umount after the removal")?;
    guest.devices[1].bind(Driver::Fsdev)
}

/// What debugfs says of the device with this index.
pub fn expect_state(fs: &TestFs, index: usize, state: &str) -> Result<()> {
    let shown = std::fs::read_to_string(debugfs_file(&fs.path("."))?)?;
    let line = shown
        .lines()
        .find(|line| line.starts_with(&format!("daxdev index={index} ")))
        .with_context(|| format!("debugfs shows no daxdev {index}: {shown}"))?;
    ensure!(
        line.split(' ').any(|word| word == format!("state={state}")),
        "debugfs shows {line:?}, expected {state}"
    );
    Ok(())
}
