// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end of what a mount depends on: the server dies or hangs at each request of an open, the opener is killed, the
//! connection is aborted, the file system is unmounted, the device and the module go.

use std::ffi::CStr;
use std::fs::File;

use anyhow::{anyhow, ensure, Context, Result};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{kill_process, Pid, Signal};

use super::faults::expect_value;
use super::fixture::{ensure_eq, one_extent, pattern, ready, Ready};
use super::poison::{expect_bytes, expect_lost, report_error, EHWPOISON, PAGE};
use super::Test;
use crate::channel::Channel;
use crate::dax::Driver;
use crate::fmap::AU;
use crate::module;
use crate::probe::{Probe, Reply};
use crate::runner::Guest;
use crate::server::ServedFile;
use crate::stopping::StoppingFs;
use crate::sys::{Kind, Mapping};
use crate::tool::signal_server;
use crate::wire::{GET_DAXDEV, GET_FMAP, INIT, LOOKUP, OPEN, RELEASE};

pub const TESTS: &[(&str, Test)] = &[
    ("open_goes_on", open_goes_on),
    ("server_killed_during_open", server_killed_during_open),
    ("abort_during_open", abort_during_open),
    ("lazy_umount_during_open", lazy_umount_during_open),
    ("forced_umount_during_open", forced_umount_during_open),
    ("opener_killed_during_open", opener_killed_during_open),
    ("opener_of_a_hung_server", opener_of_a_hung_server),
    ("device_removed_during_open", device_removed_during_open),
    ("module_gone_before_init", module_gone_before_init),
    ("server_killed_under_load", server_killed_under_load),
    ("errors_after_a_loss", errors_after_a_loss),
    ("removal_after_a_loss", removal_after_a_loss),
];

/// The requests of a first open, in their order.
const STEPS: [(&str, u32); 4] = [
    ("LOOKUP", LOOKUP),
    ("OPEN", OPEN),
    ("GET_FMAP", GET_FMAP),
    ("GET_DAXDEV", GET_DAXDEV),
];
/// No request has this number.
const NEVER: u32 = 0;
const ABORTED: Reply = Reply::Errno(libc::ECONNABORTED);
const KILLED: Reply = Reply::Killed(libc::SIGKILL);

/// A mount whose server hangs, with a request of an open that somebody waits for.
struct Stopped {
    fs: StoppingFs,
    opener: Probe,
}

impl Stopped {
    fn at(ready: &Ready, opcode: u32) -> Result<Self> {
        let fs = mount(ready, opcode)?;
        let mut opener = Probe::start()?;
        opener.start_map(&fs.path("file"), AU, Kind::SharedWrite)?;
        fs.wait_until_stopped()?;
        Ok(Self { fs, opener })
    }

    fn finish(self) -> Result<()> {
        drop(self.opener);
        finish(self.fs)
    }
}

/// Nobody is left: the mount goes, and so does the module, whatever the server does.
fn finish(mut fs: StoppingFs) -> Result<()> {
    if fs.is_mounted() {
        let umount = fs.umount(UnmountFlags::empty());
        umount.context("umount at the end")?;
    }
    module::rmmod("famfs").context("rmmod at the end")
}

fn mount(ready: &Ready, stop_at: u32) -> Result<StoppingFs> {
    let fmap = one_extent();
    ready.fill(&fmap)?;
    let serve = ready.serve(vec![ServedFile::new("file", &fmap)]);
    StoppingFs::mount(&serve, &ready.paths, stop_at)
}

/// Runs `test` for a server that hangs at each request of an open.
fn at_each_step(
    guest: &Guest,
    channel: &mut Channel,
    test: impl Fn(Stopped, u32) -> Result<()>,
) -> Result<()> {
    for (name, opcode) in STEPS {
        channel.step(&format!("the server stops at {name}"));
        let ready = ready(guest)?;
        Stopped::at(&ready, opcode)
            .and_then(|stopped| test(stopped, opcode))
            .with_context(|| format!("with the server stopped at {name}"))?;
    }
    Ok(())
}

fn pid(probe: &Probe) -> Result<Pid> {
    Pid::from_raw(probe.pid() as i32).ok_or_else(|| anyhow!("a process without a number"))
}

/// A server that was only slow; meanwhile the module is in use.
fn open_goes_on(guest: &Guest, channel: &mut Channel) -> Result<()> {
    at_each_step(guest, channel, |mut stopped, _| {
        let busy = Err(Errno::WOULDBLOCK);
        ensure_eq!(module::rmmod("famfs"), busy, "rmmod during the open");
        let umount = stopped.fs.umount(UnmountFlags::empty());
        ensure_eq!(umount, Err(Errno::BUSY), "umount during the open");
        stopped.fs.go_on()?;
        expect_value(stopped.opener.answer()?)?;
        let first = u64::from(pattern(0, 1)[0]);
        ensure_eq!(stopped.opener.get(0)?, Reply::Value(first), "first byte");
        stopped.finish()
    })
}

/// `end` is the end of the connection: the open under way fails, and so does the next one.
fn at_each_step_ends(guest: &Guest, channel: &mut Channel, end: Loss) -> Result<()> {
    at_each_step(guest, channel, |mut stopped, _| {
        end(&mut stopped.fs)?;
        ensure_eq!(stopped.opener.answer()?, ABORTED, "the open under way");
        let later = stopped
            .opener
            .map(&stopped.fs.path("file"), AU, Kind::SharedRead)?;
        ensure_eq!(later, Reply::Errno(libc::ENOTCONN), "an open after that");
        stopped.finish()
    })
}

fn server_killed_during_open(guest: &Guest, channel: &mut Channel) -> Result<()> {
    at_each_step_ends(guest, channel, StoppingFs::kill)
}

/// The server still hangs, and has its descriptor.
fn abort_during_open(guest: &Guest, channel: &mut Channel) -> Result<()> {
    at_each_step_ends(guest, channel, |fs| fs.connection()?.abort())
}

/// The open has the mount until it is answered, and then the file has it.
fn lazy_umount_during_open(guest: &Guest, channel: &mut Channel) -> Result<()> {
    at_each_step(guest, channel, |mut stopped, _| {
        let umount = stopped.fs.umount(UnmountFlags::DETACH);
        umount.context("umount -l during the open")?;
        let busy = Err(Errno::WOULDBLOCK);
        ensure_eq!(module::rmmod("famfs"), busy, "rmmod during the open");
        stopped.fs.go_on()?;
        expect_value(stopped.opener.answer()?).context("the open under way")?;
        for at in [0, AU - 1] {
            let byte = u64::from(pattern(at, 1)[0]);
            let got = stopped.opener.get(at)?;
            ensure_eq!(got, Reply::Value(byte), "the byte at {at:#x}");
        }
        let read = stopped.opener.pread(0, AU)?;
        ensure_eq!(read, Reply::Value(AU), "pread");
        ensure_eq!(module::rmmod("famfs"), busy, "rmmod with the file open");
        stopped.finish()
    })
}

fn forced_umount_during_open(guest: &Guest, channel: &mut Channel) -> Result<()> {
    at_each_step(guest, channel, |mut stopped, _| {
        // It aborts the connection. Mostly the opener, who wakes by that, is still in there when umount looks: once in
        // some hundred times he has left.
        match stopped.fs.umount(UnmountFlags::FORCE) {
            Ok(()) | Err(Errno::BUSY) => (),
            other => anyhow::bail!("umount -f: {other:?}"),
        }
        ensure_eq!(stopped.opener.answer()?, ABORTED, "the open under way");
        stopped.finish()
    })
}

/// A request that the server has read is waited for, whatever happens to who sent it: that is fuse's rule. The end of
/// the server ends it.
fn opener_killed_during_open(guest: &Guest, channel: &mut Channel) -> Result<()> {
    at_each_step(guest, channel, |mut stopped, opcode| {
        let signal = match opcode {
            OPEN | GET_DAXDEV => Signal::INT,
            _ => Signal::KILL,
        };
        // From waiting for any signal to waiting for the answer alone.
        signal_server(pid(&stopped.opener)?, signal, "D")?;
        ensure_eq!(stopped.fs.connection()?.waiting()?, 1, "requests that wait");
        stopped.fs.kill()?;
        let killed = Reply::Killed(signal.as_raw());
        ensure_eq!(stopped.opener.answer()?, killed, "the opener");
        stopped.finish()
    })
}

/// A request that the server has not read dies with who sent it.
fn opener_of_a_hung_server(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    for signal in [Signal::KILL, Signal::INT] {
        let fs = mount(&ready, RELEASE)?;
        fs.stop()?;
        let mut opener = Probe::start()?;
        opener.start_map(&fs.path("file"), AU, Kind::SharedRead)?;
        let mut stopped = Stopped { fs, opener };
        while stopped.fs.connection()?.waiting()? == 0 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        kill_process(pid(&stopped.opener)?, signal)?;
        let killed = Reply::Killed(signal.as_raw());
        ensure_eq!(stopped.opener.answer()?, killed, "the opener");
        stopped.fs.go_on()?;
        stopped.opener = Probe::start()?;
        expect_value(
            stopped
                .opener
                .map(&stopped.fs.path("file"), AU, Kind::SharedRead)?,
        )
        .context("an open by somebody else, later")?;
        stopped.opener = Probe::start()?;
        // The server has stopped again, at the release.
        stopped.fs.wait_until_stopped()?;
        stopped
            .fs
            .umount(UnmountFlags::empty())
            .context("umount with a server that hangs at RELEASE")?;
    }
    module::rmmod("famfs").context("rmmod at the end")
}

/// The device goes when the map of the file is under way, and when nothing is known but its name.
fn device_removed_during_open(guest: &Guest, channel: &mut Channel) -> Result<()> {
    at_each_step(guest, channel, |mut stopped, _| {
        guest.devices[0].unbind()?;
        stopped.fs.go_on()?;
        let gone = Reply::Errno(libc::ENXIO);
        ensure_eq!(stopped.opener.answer()?, gone, "the open under way");
        guest.devices[0].bind(Driver::Fsdev)?;
        let path = stopped.fs.path("file");
        expect_value(stopped.opener.map(&path, AU, Kind::SharedRead)?)
            .context("an open when the device is back")?;
        stopped.finish()
    })
}

/// The flag was offered by a module that is gone when the server accepts it.
fn module_gone_before_init(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    let mut fs = mount(&ready, INIT)?;
    fs.wait_until_stopped()?;
    let mut opener = Probe::start()?;
    opener.start_map(&fs.path("file"), AU, Kind::SharedRead)?;
    let mut killed = Probe::start()?;
    killed.start_map(&fs.path("file"), AU, Kind::SharedRead)?;
    kill_process(pid(&killed)?, Signal::KILL)?;
    ensure_eq!(killed.answer()?, KILLED, "an opener that waits for INIT");
    module::rmmod("famfs").context("rmmod before INIT is answered")?;
    fs.go_on()?;
    let lost = Reply::Errno(libc::EIO);
    ensure_eq!(opener.answer()?, lost, "the open under way");
    let refused = Reply::Errno(libc::ECONNREFUSED);
    let later = opener.map(&fs.path("file"), AU, Kind::SharedRead)?;
    ensure_eq!(later, refused, "an open after that");
    drop(opener);
    fs.umount(UnmountFlags::empty()).context("umount")
}

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

type Loss = fn(&mut StoppingFs) -> Result<()>;

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
fn server_killed_under_load(guest: &Guest, channel: &mut Channel) -> Result<()> {
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
            file,
            mapping,
            users,
        })
    }
}

/// Runs `test` on a file in use whose mount has lost something. Afterwards the mount, the module and the driver can go,
/// and come back.
fn after_each_loss(
    guest: &Guest,
    channel: &mut Channel,
    parameters: &CStr,
    test: impl Fn(&Ready, &mut InUse) -> Result<()>,
) -> Result<()> {
    let device = guest.devices.first().context("no daxdev")?;
    for (loss, lose) in LOSSES {
        channel.step(&format!("{loss}, {parameters:?}"));
        let all = || -> Result<()> {
            module::reload_famfs(parameters)?;
            let devices = ready(guest)?;
            let mut fs = mount(&devices, NEVER)?;
            let mut file = InUse::new(&fs.path("file"))?;
            lose(&mut fs)?;
            test(&devices, &mut file)?;
            drop(file);
            finish(fs)?;
            device.unbind()?;
            device.bind(Driver::Fsdev)?;
            let fmap = one_extent();
            let mut fs = ready(guest)?.one_file("file", &fmap)?;
            let bytes = std::fs::read(fs.path("file")).context("read in the next mount")?;
            ensure!(
                bytes == pattern(0, fmap.size as usize),
                "the next mount shows other bytes"
            );
            fs.umount().context("umount of the next mount")
        };
        all().with_context(|| format!("{loss}, {parameters:?}"))?;
    }
    module::rmmod("famfs").context("rmmod at the end")
}

/// A memory error takes away what it takes away in any mount, and the same processes are told.
fn errors_after_a_loss(guest: &Guest, channel: &mut Channel) -> Result<()> {
    const MET: u64 = 5 * PAGE;
    const FOUND: u64 = AU + 3 * PAGE;
    let errors = |ready: &Ready, file: &mut InUse| -> Result<()> {
        let [(met, address), (other, other_address), (third, third_address), _] = &mut file.users;
        let hit = Reply::Sigbus(libc::BUS_MCEERR_AR, (*address + MET) as usize);
        ensure_eq!(met.poison(MET)?, hit, "the process that met the error");
        report_error(ready.raw(0)?.pfn(16 * AU + FOUND))?;
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
        ensure_eq!(late.pwrite(FOUND, 64)?, poisoned, "pwrite into the poison");
        expect_lost(late, *address, FOUND).context("a fault")
    })
}

/// Nobody asks the server when its device goes.
fn removal_after_a_loss(guest: &Guest, channel: &mut Channel) -> Result<()> {
    after_each_loss(guest, channel, c"", |_, file| {
        guest.devices[0].unbind()?;
        let gone = Reply::Errno(libc::ENXIO);
        for ((probe, address), page) in file.users.iter_mut().zip(0..) {
            let at = page * AU / 2 + 7;
            ensure_eq!(probe.pread(at, 64)?, gone, "pread at {at:#x}");
            ensure_eq!(probe.pwrite(at, 64)?, gone, "pwrite at {at:#x}");
            let fault = Reply::Sigbus(libc::BUS_ADRERR, (*address + at) as usize);
            ensure_eq!(probe.get(at)?, fault, "a fault at {at:#x}");
        }
        Ok(())
    })
}
