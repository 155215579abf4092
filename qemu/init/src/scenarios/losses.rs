// SPDX-License-Identifier: MIT OR Apache-2.0
//! A mount that has lost its server or its place in the tree: files in use stay so, until their memory fails or goes.
//! They are tests of `teardown`.

use std::ffi::CStr;
use std::fs::File;
use std::time::Duration;

use anyhow::{bail, Context, Result};
use rustix::mount::UnmountFlags;

use super::faults::expect_value;
use super::fixture::{ensure_eq, first_difference, one_extent, pattern, ready, Ready};
use super::pins::{first_page, Background, GONE};
use super::poison::{expect_bytes, expect_lost, report_apart, EHWPOISON, PAGE};
use super::teardown::{finish, mount};
use crate::channel::Channel;
use crate::dax::Driver;
use crate::fmap::AU;
use crate::module;
use crate::probe::{Probe, Reply};
use crate::runner::Guest;
use crate::server::{ServedFile, TestFs};
use crate::stopping::StoppingFs;
use crate::sys::{Kind, Mapping};

/// No request has this number.
const NEVER: u32 = 0;
const HAMMERS: [&str; 3] = ["read", "write", "fault"];

/// Processes that read, write and touch an allocation unit of the file until they are killed.
pub fn hammer(path: &str) -> Result<Vec<Probe>> {
    let mut users = Vec::new();
    for what in HAMMERS {
        let mut probe = Probe::start()?;
        expect_value(probe.map(path, AU, Kind::SharedWrite)?)?;
        probe.hammer(what)?;
        users.push(probe);
    }
    Ok(users)
}

/// Whatever has happened, they go on.
pub fn expect_unharmed(users: &mut [Probe]) -> Result<()> {
    for (what, probe) in HAMMERS.iter().zip(users) {
        probe
            .another_round()
            .with_context(|| format!("hammer {what}"))?;
    }
    Ok(())
}

pub type Loss = fn(&mut StoppingFs) -> Result<()>;

/// Ways for a mount to lose its server or its place in the tree.
const LOSSES: [(&str, Loss); 4] = [
    ("the server is killed", StoppingFs::kill),
    ("the server hangs", |fs| fs.stop()),
    ("the connection is aborted", |fs| fs.connection()?.abort()),
    ("the mount is detached", |fs| {
        Ok(fs.umount(UnmountFlags::DETACH)?)
    }),
];

/// Reads, writes and faults go on, and unmounting is as ever.
pub fn losses_under_load(guest: &Guest, channel: &mut Channel) -> Result<()> {
    for (loss, lose) in LOSSES {
        channel.step(loss);
        let ready = ready(guest)?;
        let mut fs = mount(&ready, NEVER)?;
        let mut users = hammer(&fs.path("file"))?;
        let mut idle = Probe::start()?;
        expect_value(idle.map(&fs.path("file"), AU, Kind::SharedWrite)?)?;
        lose(&mut fs)?;
        for at in (0..AU).step_by(4096) {
            ensure_eq!(idle.set(at, 9)?, Reply::Value(0), "a store at {at:#x}");
        }
        ensure_eq!(idle.pread(0, AU)?, Reply::Value(AU), "a read");
        expect_unharmed(&mut users).context(loss)?;
        drop((users, idle));
        finish(fs).context(loss)?;
    }
    Ok(())
}

/// A file that processes have mapped, and the test itself.
struct InUse {
    size: u64,
    /// What the next mount is to show.
    bytes: Vec<u8>,
    file: File,
    mapping: Mapping,
    /// With the address of the mapping; all but the last have touched all of it.
    users: [(Probe, u64); 4],
}

impl InUse {
    fn new(path: &str) -> Result<Self> {
        let size = one_extent().size;
        let user = || -> Result<(Probe, u64)> {
            let mut probe = Probe::start()?;
            let address = expect_value(probe.map(path, size, Kind::SharedWrite)?)?;
            Ok((probe, address))
        };
        let mut users = [user()?, user()?, user()?, user()?];
        for (probe, _) in &mut users[..3] {
            expect_value(probe.touch()?)?;
        }
        let file = File::open(path)?;
        let mapping = Mapping::new(&file, 0, size as usize, Kind::SharedRead)?;
        Ok(Self {
            size,
            bytes: pattern(0, size as usize),
            file,
            mapping,
            users,
        })
    }
}

/// The mount, the module and the driver can go, and come back, and the file has these bytes.
fn expect_next_mount(guest: &Guest, fs: StoppingFs, bytes: &[u8]) -> Result<()> {
    finish(fs)?;
    let device = guest.devices.first().context("no daxdev")?;
    device.unbind()?;
    device.bind(Driver::Fsdev)?;
    let serve = ready(guest)?.serve(vec![ServedFile::new("file", &one_extent())]);
    let mut fs = TestFs::mount(serve).context("the next mount")?;
    let got = std::fs::read(fs.path("file")).context("read in the next mount")?;
    if let Some(difference) = first_difference(&got, bytes) {
        bail!("the next mount: {difference}");
    }
    fs.umount().context("umount of the next mount")
}

/// Runs `test` on a file in use whose mount has lost something, and looks at the next mount.
fn after_each_loss(
    guest: &Guest,
    channel: &mut Channel,
    parameters: &CStr,
    test: impl Fn(&Ready, &mut InUse) -> Result<()>,
) -> Result<()> {
    for (loss, lose) in LOSSES {
        channel.step(&format!("{loss}, {parameters:?}"));
        let all = || -> Result<()> {
            module::reload_famfs(parameters)?;
            let devices = ready(guest)?;
            let mut fs = mount(&devices, NEVER)?;
            let mut file = InUse::new(&fs.path("file"))?;
            lose(&mut fs)?;
            test(&devices, &mut file)?;
            let bytes = std::mem::take(&mut file.bytes);
            drop(file);
            expect_next_mount(guest, fs, &bytes)
        };
        all().with_context(|| format!("{loss}, {parameters:?}"))?;
    }
    module::rmmod("famfs").context("rmmod at the end")
}

/// A memory error takes away what it takes away in any mount, and the same processes are told.
pub fn errors_after_a_loss(guest: &Guest, channel: &mut Channel) -> Result<()> {
    const MET: u64 = 5 * PAGE;
    const FOUND: u64 = AU + 3 * PAGE;
    let errors = |ready: &Ready, file: &mut InUse| -> Result<()> {
        let [(met, address), (other, other_address), (third, third_address), _] = &mut file.users;
        let hit = Reply::Sigbus(libc::BUS_MCEERR_AR, (*address + MET) as usize);
        ensure_eq!(met.poison(MET)?, hit, "the process that met the error");
        report_apart(ready.raw(0)?.pfn(16 * AU + FOUND))?;
        expect_lost(other, *other_address, MET).context("the error that was met")?;
        let near = u64::from(pattern(FOUND + 9 * PAGE, 1)[0]);
        let stays = third.get(FOUND + 9 * PAGE)?;
        ensure_eq!(stays, Reply::Value(near), "a page that was mapped");
        expect_lost(third, *third_address, FOUND).context("the error that nobody met")
    };
    let poisoned = Reply::Errno(EHWPOISON);
    after_each_loss(guest, channel, c"failure_range=0", |ready, file| {
        errors(ready, file)?;
        let [.., (late, address)] = &mut file.users;
        ensure_eq!(late.pread(AU - 64, 64)?, poisoned, "pread");
        ensure_eq!(late.pwrite(AU - 64, 64)?, poisoned, "pwrite");
        let fault = Reply::Sigbus(libc::BUS_ADRERR, (*address + AU + 5) as usize);
        ensure_eq!(late.get(AU + 5)?, fault, "a fault in a good page");
        Ok(())
    })?;
    after_each_loss(guest, channel, c"failure_range=1", |ready, file| {
        errors(ready, file)?;
        let size = file.size;
        let [.., (late, address)] = &mut file.users;
        for (from, count) in [
            (MET - 100, 100),
            (MET + PAGE, FOUND - MET - PAGE),
            (FOUND + PAGE, size - FOUND - PAGE),
        ] {
            let read = late.pread(from, size)?;
            ensure_eq!(read, Reply::Value(count), "pread from {from:#x} on");
        }
        for at in [MET, MET + PAGE - 1, FOUND] {
            ensure_eq!(late.pread(at, size)?, poisoned, "pread from {at:#x} on");
        }
        for (from, to) in [(0, MET), (MET + PAGE, FOUND), (FOUND + PAGE, size)] {
            expect_bytes(&file.file, &file.mapping, from, (to - from) as usize)?;
        }
        ensure_eq!(late.pwrite(MET - 64, 128)?, Reply::Value(64), "pwrite");
        file.bytes[(MET - 64) as usize..MET as usize].fill(0);
        ensure_eq!(late.pwrite(FOUND, 64)?, poisoned, "pwrite into the poison");
        expect_lost(late, *address, FOUND).context("a fault")
    })
}

/// Nobody asks the server when its device goes.
pub fn removal_after_a_loss(guest: &Guest, channel: &mut Channel) -> Result<()> {
    after_each_loss(guest, channel, c"", |_, file| {
        guest.devices[0].unbind()?;
        for ((probe, address), half) in file.users.iter_mut().zip(0..) {
            let at = half * AU / 2 + 7;
            ensure_eq!(probe.pread(at, 64)?, GONE, "pread at {at:#x}");
            ensure_eq!(probe.pwrite(at, 64)?, GONE, "pwrite at {at:#x}");
            let fault = Reply::Sigbus(libc::BUS_ADRERR, (*address + at) as usize);
            ensure_eq!(probe.get(at)?, fault, "a fault at {at:#x}");
        }
        Ok(())
    })
}

/// The mount loses what it has while its device goes: the removal waits for a pin as ever.
pub fn losses_during_a_removal(guest: &Guest, channel: &mut Channel) -> Result<()> {
    for (loss, lose) in LOSSES {
        channel.step(loss);
        let all = || -> Result<()> {
            let mut fs = mount(&ready(guest)?, NEVER)?;
            let mut pinner = Probe::start()?;
            expect_value(pinner.map(&fs.path("file"), AU, Kind::SharedRead)?)?;
            ensure_eq!(pinner.splice(0)?, Reply::Value(PAGE), "bytes spliced");
            ensure_eq!(pinner.unmap()?, Reply::Value(0), "munmap");
            let removal = Background::removal(&guest.devices[0])?;
            removal.expect_waiting()?;
            lose(&mut fs)?;
            // It looks at the page ten times a second or more: not the sleep from before is seen.
            std::thread::sleep(Duration::from_millis(300));
            removal.expect_waiting()?;
            ensure_eq!(pinner.pread(0, 64)?, GONE, "pread meanwhile");
            ensure_eq!(pinner.drain()?, first_page(), "what was pinned");
            removal.join().context("the removal after the pin")?;
            ensure_eq!(pinner.pread(0, 64)?, GONE, "pread after the removal");
            drop(pinner);
            expect_next_mount(guest, fs, &pattern(0, one_extent().size as usize))
        };
        all().context(loss)?;
    }
    Ok(())
}
