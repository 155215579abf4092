// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end of what a mount depends on: the server dies or hangs at each request of an open, the opener is killed, the
//! connection is aborted, the file system is unmounted, the device and the module go.

use anyhow::{anyhow, Context, Result};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{kill_process, Pid, Signal};

use super::faults::expect_value;
use super::fixture::{ensure_eq, one_extent, pattern, ready, Ready};
use super::losses::{self, Loss};
use super::Test;
use crate::channel::Channel;
use crate::dax::Driver;
use crate::fmap::AU;
use crate::module;
use crate::probe::{Probe, Reply};
use crate::runner::Guest;
use crate::server::ServedFile;
use crate::stopping::StoppingFs;
use crate::sys::Kind;
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
    ("losses_under_load", losses::losses_under_load),
    ("errors_after_a_loss", losses::errors_after_a_loss),
    ("removal_after_a_loss", losses::removal_after_a_loss),
    ("losses_during_a_removal", losses::losses_during_a_removal),
];

/// The requests of a first open, in their order.
const STEPS: [(&str, u32); 4] = [
    ("LOOKUP", LOOKUP),
    ("OPEN", OPEN),
    ("GET_FMAP", GET_FMAP),
    ("GET_DAXDEV", GET_DAXDEV),
];
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
pub fn finish(mut fs: StoppingFs) -> Result<()> {
    if fs.is_mounted() {
        let umount = fs.umount(UnmountFlags::empty());
        umount.context("umount at the end")?;
    }
    module::rmmod("famfs").context("rmmod at the end")
}

pub fn mount(ready: &Ready, stop_at: u32) -> Result<StoppingFs> {
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
