// SPDX-License-Identifier: MIT OR Apache-2.0
//! A device that is taken away under a mount, in each way there is: with mappings of several processes, open files, and
//! reads, writes and faults under way. Nothing stays mapped, every access fails, and what was written is there when the
//! device is back.

use std::fs;

use anyhow::{ensure, Context, Result};

use super::failure::expect_state;
use super::faults::expect_value;
use super::fixture::{ensure_eq, first_difference, pattern, ready, Ready};
use super::Test;
use crate::channel::Channel;
use crate::dax::{self, DaxDev, Driver};
use crate::fmap::{extent, Fmap, AU};
use crate::probe::{Probe, Reply};
use crate::runner::Guest;
use crate::server::{ServedFile, TestFs};
use crate::sys::{Kind, Mapping};

pub const PMEM: &[(&str, Test)] = &[
    ("unbind_fsdev", unbind_fsdev),
    ("unbind_dax_pmem", unbind_dax_pmem),
    ("unbind_nd_region", unbind_nd_region),
    ("disable_namespace", disable_namespace),
    ("one_of_two_mounts", one_of_two_mounts),
];
pub const CXL: &[(&str, Test)] = &[
    ("destroy_region", destroy_region),
    ("unbind_cxl_mem", unbind_cxl_mem),
    ("disable_memdev", disable_memdev),
];

const PAGE: u64 = 4096;
const SIZE: u64 = AU;
/// The private mappings have so many pages of their own.
const COPIES: u64 = 2;
const COPIED: u8 = 0x77;

/// One process with a mapping whose pages are all there.
struct User {
    probe: Probe,
    address: u64,
    kind: Kind,
}

impl User {
    fn start(path: &str, kind: Kind) -> Result<Self> {
        let mut probe = Probe::start()?;
        let address = expect_value(probe.map(path, SIZE, kind)?)?;
        if kind == Kind::Private {
            for page in 0..COPIES {
                expect_value(probe.set(page * PAGE, COPIED)?)?;
            }
        }
        expect_value(probe.touch()?)?;
        let user = Self {
            probe,
            address,
            kind,
        };
        ensure_eq!(
            user.probe.present(address, SIZE)?,
            (SIZE, SIZE),
            "bytes present by page tables and smaps, {kind:?}"
        );
        Ok(user)
    }

    /// Nothing of the device is mapped; what the process has copied is.
    fn expect_gone(&mut self) -> Result<()> {
        let kind = self.kind;
        let own = match kind {
            Kind::Private => COPIES * PAGE,
            _ => 0,
        };
        ensure_eq!(
            self.probe.present(self.address, SIZE)?,
            (own, own),
            "bytes present after the removal by page tables and smaps, {kind:?}"
        );
        ensure_eq!(
            self.probe.pread(PAGE, 64)?,
            Reply::Errno(libc::ENXIO),
            "pread, {kind:?}"
        );
        match kind {
            Kind::Private => ensure_eq!(
                self.probe.get(PAGE)?,
                Reply::Value(u64::from(COPIED)),
                "a page that the process has copied"
            ),
            Kind::SharedWrite => ensure_eq!(
                self.probe.pwrite(PAGE, 64)?,
                Reply::Errno(libc::ENXIO),
                "pwrite"
            ),
            Kind::SharedRead => (),
        }
        let at = COPIES * PAGE + 7;
        ensure_eq!(
            self.probe.get(at)?,
            Reply::Sigbus(libc::BUS_ADRERR, (self.address + at) as usize),
            "a page that was mapped, {kind:?}"
        );
        Ok(())
    }
}

/// Processes that read, write and fault until they can't.
struct Load {
    reader: Probe,
    writer: Probe,
    faulter: Probe,
    address: u64,
}

impl Load {
    fn start(path: &str) -> Result<Self> {
        let start = |what: &str, kind| -> Result<(Probe, u64)> {
            let mut probe = Probe::start()?;
            let address = expect_value(probe.map(path, SIZE, kind)?)?;
            probe.hammer(what)?;
            Ok((probe, address))
        };
        let (faulter, address) = start("fault", Kind::SharedRead)?;
        Ok(Self {
            reader: start("read", Kind::SharedRead)?.0,
            writer: start("write", Kind::SharedWrite)?.0,
            faulter,
            address,
        })
    }

    fn expect_ended(&mut self) -> Result<()> {
        let gone = Reply::Errno(libc::ENXIO);
        ensure_eq!(self.reader.answer()?, gone, "reads under way");
        ensure_eq!(self.writer.answer()?, gone, "writes under way");
        let address = self.address as usize;
        match self.faulter.answer()? {
            Reply::Sigbus(libc::BUS_ADRERR, at)
                if (address..address + SIZE as usize).contains(&at) =>
            {
                Ok(())
            }
            other => anyhow::bail!("faults under way: got {other:?}, expected SIGBUS"),
        }
    }
}

/// The last device, which is taken away, and two files there.
struct Setup<'a> {
    ready: Ready,
    device: &'a DaxDev,
    fmaps: [Fmap; 2],
}

impl<'a> Setup<'a> {
    fn new(guest: &'a Guest) -> Result<Self> {
        let ready = ready(guest)?;
        let device = guest.devices.last().context("no daxdev")?;
        let index = guest.devices.len() as u32 - 1;
        let fmaps = [24, 32].map(|at| Fmap::simple(SIZE, &[extent(index, at * AU, SIZE)]));
        for fmap in &fmaps {
            ready.fill(fmap)?;
        }
        Ok(Self {
            ready,
            device,
            fmaps,
        })
    }

    fn mount(&self) -> Result<TestFs> {
        let files = ["file", "later"].into_iter().zip(&self.fmaps);
        let files = files.map(|(name, fmap)| ServedFile::new(name, fmap));
        TestFs::mount(self.ready.serve(files.collect()))
    }

    /// The device is back: it can be mounted, and has what it had.
    fn expect_data(&self, guest: &Guest) -> Result<()> {
        ready(guest)?;
        let mut fs = self.mount()?;
        for name in ["file", "later"] {
            let file = fs.open_rw(name)?;
            let mapping = Mapping::new(&file, 0, SIZE as usize, Kind::SharedRead)?;
            let want = pattern(0, SIZE as usize);
            for (how, got) in [
                ("read", fs::read(fs.path(name))?),
                ("mapping", mapping.read(0, SIZE as usize)),
            ] {
                if let Some(difference) = first_difference(&got, &want) {
                    anyhow::bail!("{name} by {how} after the removal: {difference}");
                }
            }
        }
        fs.umount().context("umount of the second mount")
    }
}

/// Takes the device away by `take` and back by `bring_back`.
fn removal(
    guest: &Guest,
    channel: &mut Channel,
    take: impl Fn(&DaxDev) -> Result<()>,
    bring_back: impl Fn(&DaxDev) -> Result<()>,
) -> Result<()> {
    let setup = Setup::new(guest)?;
    let mut fs = setup.mount()?;
    let path = fs.path("file");
    let mut users = Vec::new();
    for kind in [Kind::SharedWrite, Kind::Private, Kind::SharedRead] {
        users.push(User::start(&path, kind)?);
        users.push(User::start(&path, kind)?);
    }
    let mut load = Load::start(&path)?;
    channel.step("take the device away");
    take(setup.device).context("the removal")?;
    channel.step("use what was taken away");
    load.expect_ended()?;
    for user in &mut users {
        user.expect_gone()?;
    }
    ensure_eq!(
        fs.open_errno("later"),
        libc::ENXIO,
        "errno of a first open after the removal"
    );
    expect_state(&fs, guest.devices.len() - 1, "removed")?;
    drop((users, load));
    channel.step("umount, and bring the device back");
    fs.umount().context("umount after the removal")?;
    bring_back(setup.device).context("the device's return")?;
    dax::wait_for(guest.devices.len())?;
    setup.expect_data(guest)
}

fn unbind_fsdev(guest: &Guest, channel: &mut Channel) -> Result<()> {
    removal(guest, channel, DaxDev::unbind, |device| {
        device.bind(Driver::Fsdev)
    })
}

/// Unbinds from its driver, and binds to it again, what has the device as a part, so many levels up.
fn rebind(guest: &Guest, channel: &mut Channel, levels: usize, driver: &str) -> Result<()> {
    let folder = format!("/sys/bus/nd/drivers/{driver}");
    let device = guest.devices.last().context("no daxdev")?;
    let parents = device.parents()?;
    let name = parents.get(levels - 1).context("no such parent")?;
    let write = |what: &str| {
        fs::write(format!("{folder}/{what}"), name)
            .with_context(|| format!("{what} {name} at {folder}"))
    };
    removal(guest, channel, |_| write("unbind"), |_| write("bind"))
}

fn unbind_dax_pmem(guest: &Guest, channel: &mut Channel) -> Result<()> {
    rebind(guest, channel, 1, "dax_pmem")
}

fn unbind_nd_region(guest: &Guest, channel: &mut Channel) -> Result<()> {
    rebind(guest, channel, 2, "nd_region")
}

fn disable_namespace(guest: &Guest, channel: &mut Channel) -> Result<()> {
    let namespace = format!("namespace{}.0", guest.devices.len() - 1);
    removal(
        guest,
        channel,
        |_| dax::run("ndctl", &["disable-namespace", &namespace]),
        |_| dax::run("ndctl", &["enable-namespace", &namespace]),
    )
}

/// One of two mounts loses its device; the other one does not notice.
fn one_of_two_mounts(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let setup = Setup::new(guest)?;
    setup.ready.raw(1)?;
    let kept = Fmap::simple(SIZE, &[extent(0, 24 * AU, SIZE)]);
    let mut keeps = setup.ready.one_file("file", &kept)?;
    let mut loses = setup.mount()?;
    let mut users = [keeps.path("file"), loses.path("file")]
        .into_iter()
        .map(|path| User::start(&path, Kind::SharedWrite))
        .collect::<Result<Vec<_>>>()?;
    setup.device.unbind()?;
    let mut lost = users.pop().context("no user")?;
    lost.expect_gone()?;
    let user = users.first_mut().context("no user")?;
    ensure_eq!(
        user.probe.present(user.address, SIZE)?,
        (SIZE, SIZE),
        "bytes present of the other mount's file"
    );
    ensure_eq!(
        user.probe.pwrite(PAGE, 64)?,
        Reply::Value(64),
        "pwrite to the other mount's file"
    );
    drop(lost);
    loses.umount().context("umount of the one")?;
    ensure_eq!(user.probe.set(7, 7)?, Reply::Value(0), "store to the other");
    ensure!(keeps.open("file").is_ok(), "the other can't be opened");
    drop(users);
    keeps.umount().context("umount of the other")?;
    setup.expect_data(guest)
}

fn cxl(args: &str) -> Result<()> {
    dax::run("cxl", &args.split(' ').collect::<Vec<_>>())
}

fn destroy_region(guest: &Guest, channel: &mut Channel) -> Result<()> {
    let destroy = |_: &DaxDev| cxl("destroy-region -f region0");
    removal(guest, channel, destroy, |_| dax::create_cxl_region())
}

/// What is left of a region without its memory device; cxl(1) does not find it.
fn delete_region() -> Result<()> {
    let path = "/sys/bus/cxl/devices/decoder0.0/delete_region";
    fs::write(path, "region0").context(path)
}

fn unbind_cxl_mem(guest: &Guest, channel: &mut Channel) -> Result<()> {
    let write = |what: &str| {
        let path = format!("/sys/bus/cxl/drivers/cxl_mem/{what}");
        fs::write(&path, "mem0").with_context(|| path)
    };
    removal(
        guest,
        channel,
        |_| write("unbind"),
        |_| {
            delete_region()?;
            write("bind")?;
            dax::create_cxl_region()
        },
    )
}

fn disable_memdev(guest: &Guest, channel: &mut Channel) -> Result<()> {
    let disable = |_: &DaxDev| cxl("disable-memdev -f mem0");
    removal(guest, channel, disable, |_| {
        delete_region()?;
        cxl("enable-memdev mem0")?;
        dax::create_cxl_region()
    })
}
