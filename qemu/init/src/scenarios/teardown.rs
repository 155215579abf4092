// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ends of a mount in every order: the server dies or hangs at each request of an open, the opener is killed, the
//! connection is aborted, the file system is unmounted, the device and the module go.

use anyhow::{anyhow, ensure, Context, Result};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{kill_process, Pid, Signal};

use super::failure::expect_state;
use super::faults::expect_value;
use super::fixture::{ensure_eq, one_extent, pattern, ready, Ready};
use super::Test;
use crate::channel::Channel;
use crate::dax::Driver;
use crate::fmap::{extent, Fmap, AU};
use crate::module;
use crate::probe::{Probe, Reply};
use crate::runner::Guest;
use crate::server::{ServedFile, TestFs};
use crate::stopping::StoppingFs;
use crate::sys::{Kind, Mapping};
use crate::tool::{signal_server, state_of};
use crate::wire::{GET_DAXDEV, GET_FMAP, INIT, LOOKUP, OPEN, RELEASE};

pub const TESTS: &[(&str, Test)] = &[
    ("open_goes_on", open_goes_on),
    ("server_killed_during_open", server_killed_during_open),
    ("abort_during_open", abort_during_open),
    ("forced_umount_during_open", forced_umount_during_open),
    ("opener_killed_during_open", opener_killed_during_open),
    ("opener_of_a_hung_server", opener_of_a_hung_server),
    ("device_removed_during_open", device_removed_during_open),
    ("module_gone_before_init", module_gone_before_init),
    ("server_killed_under_load", server_killed_under_load),
    ("removal_with_a_hung_server", removal_with_a_hung_server),
    ("umounts_of_a_mapped_file", umounts_of_a_mapped_file),
    ("device_of_another_mount", device_of_another_mount),
    ("namespace_outlives_the_mount", namespace_outlives_the_mount),
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

    /// Nothing is left: the mount goes, and so does the module.
    fn finish(mut self) -> Result<()> {
        drop(self.opener);
        if self.fs.is_mounted() {
            let umount = self.fs.umount(UnmountFlags::empty());
            umount.context("umount at the end")?;
        }
        module::rmmod("famfs").context("rmmod at the end")
    }
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

fn server_killed_during_open(guest: &Guest, channel: &mut Channel) -> Result<()> {
    at_each_step(guest, channel, |mut stopped, _| {
        stopped.fs.kill()?;
        ensure_eq!(stopped.opener.answer()?, ABORTED, "the open under way");
        let later = stopped
            .opener
            .map(&stopped.fs.path("file"), AU, Kind::SharedRead)?;
        ensure_eq!(later, Reply::Errno(libc::ENOTCONN), "an open after that");
        stopped.finish()
    })
}

/// The server still hangs, and has its descriptor.
fn abort_during_open(guest: &Guest, channel: &mut Channel) -> Result<()> {
    at_each_step(guest, channel, |mut stopped, _| {
        stopped.fs.connection()?.abort()?;
        ensure_eq!(stopped.opener.answer()?, ABORTED, "the open under way");
        let later = stopped
            .opener
            .map(&stopped.fs.path("file"), AU, Kind::SharedRead)?;
        ensure_eq!(later, Reply::Errno(libc::ENOTCONN), "an open after that");
        stopped.finish()
    })
}

fn forced_umount_during_open(guest: &Guest, channel: &mut Channel) -> Result<()> {
    at_each_step(guest, channel, |mut stopped, _| {
        // It aborts the connection, and the opener is still in there.
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

/// Whether it dies or hangs: reads, writes and faults go on, and unmounting is as ever.
fn server_killed_under_load(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    for hangs in [true, false] {
        let ready = ready(guest)?;
        let mut fs = mount(&ready, NEVER)?;
        let mut users = Vec::new();
        for what in ["read", "write", "fault"] {
            let mut probe = Probe::start()?;
            expect_value(probe.map(&fs.path("file"), AU, Kind::SharedWrite)?)?;
            probe.hammer(what)?;
            users.push(probe);
        }
        let mut idle = Probe::start()?;
        expect_value(idle.map(&fs.path("file"), AU, Kind::SharedWrite)?)?;
        match hangs {
            true => fs.stop()?,
            false => fs.kill()?,
        }
        for at in (0..AU).step_by(4096) {
            ensure_eq!(idle.set(at, 9)?, Reply::Value(0), "a store at {at:#x}");
        }
        ensure_eq!(idle.pread(0, AU)?, Reply::Value(AU), "a read");
        for probe in &users {
            ensure!(
                !"ZX".contains(state_of(pid(probe)?)),
                "a process under load ended with the server"
            );
        }
        drop((users, idle));
        fs.umount(UnmountFlags::empty()).context("umount")?;
        drop(fs);
        module::rmmod("famfs").context("rmmod")?;
    }
    Ok(())
}

/// Nobody asks the server when its device goes.
fn removal_with_a_hung_server(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    let mut fs = mount(&ready, NEVER)?;
    let mut probe = Probe::start()?;
    let address = expect_value(probe.map(&fs.path("file"), AU, Kind::SharedWrite)?)?;
    expect_value(probe.touch()?)?;
    fs.stop()?;
    guest.devices[0].unbind()?;
    ensure_eq!(
        probe.pread(0, 64)?,
        Reply::Errno(libc::ENXIO),
        "pread after the removal"
    );
    let fault = Reply::Sigbus(libc::BUS_ADRERR, (address + 5) as usize);
    ensure_eq!(probe.get(5)?, fault, "a fault after the removal");
    drop(probe);
    fs.umount(UnmountFlags::empty()).context("umount")?;
    drop(fs);
    module::rmmod("famfs").context("rmmod")?;
    guest.devices[0].bind(Driver::Fsdev)
}

/// `umount -f` ends the connection and then finds the mount busy; the mapping is worth what it was. `umount -l` lets
/// everything go on until the last user.
fn umounts_of_a_mapped_file(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let fmap = one_extent();
    let ready = ready(guest)?;
    let mut fs = ready.one_file("file", &fmap)?;
    let mapping = Mapping::new(&fs.open("file")?, 0, fmap.size as usize, Kind::SharedRead)?;
    mapping.byte(0);
    let busy = Err(Errno::BUSY);
    ensure_eq!(fs.umount_with(UnmountFlags::FORCE), busy, "umount -f");
    ensure_eq!(
        fs.open_errno("file"),
        libc::ENOTCONN,
        "errno of an open after umount -f"
    );
    let whole = || {
        mapping
            .drop_entries(0, mapping.len())
            .map(|()| mapping.read(0, mapping.len()))
    };
    ensure!(
        whole()? == pattern(0, fmap.size as usize),
        "the mapping shows other bytes after umount -f"
    );
    ensure_eq!(
        fs.umount_with(UnmountFlags::FORCE | UnmountFlags::DETACH),
        Ok(()),
        "umount -f -l"
    );
    ensure!(
        whole()? == pattern(0, fmap.size as usize),
        "the mapping shows other bytes after umount -l"
    );
    ensure_eq!(
        module::rmmod("famfs"),
        Err(Errno::WOULDBLOCK),
        "rmmod with a mapping left"
    );
    drop(mapping);
    module::rmmod("famfs").context("rmmod after the last mapping")
}

/// What another mount holds is refused, and the kernel's log says what, and what to do; afterwards it can be had.
fn device_of_another_mount(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let fmap = one_extent();
    let ready = ready(guest)?;
    let mut first = ready.one_file("file", &fmap)?;
    drop(first.open("file")?);
    let mut log = module::KernelLog::open()?;
    let second = TestFs::mount(ready.serve(vec![ServedFile::new("file", &fmap)]))?;
    ensure_eq!(
        second.open_errno("file"),
        libc::EBUSY,
        "errno of an open that needs the device"
    );
    let lines = log.new_lines();
    let words = format!(
        "daxdev 0, name {:?}: in use by another mount or file system, unmount that first",
        ready.paths[0]
    );
    ensure!(
        lines.iter().any(|line| line.contains(&words)),
        "no line with {words:?} in the log: {lines:?}"
    );
    drop(first.open("file").context("the holder's file")?);
    first.umount()?;
    drop(second.open("file").context("after the holder's umount")?);
    expect_state(&second, 0, "ok")
}

/// A mount that was copied into another namespace lives on there, with its device and its module.
fn namespace_outlives_the_mount(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let fmap = Fmap::simple(AU, &[extent(0, 16 * AU, AU)]);
    let ready = ready(guest)?;
    let mut fs = ready.one_file("file", &fmap)?;
    drop(fs.open("file")?);
    let mut apart = Probe::start_apart()?;
    // It has left this namespace when it answers.
    let missing = apart.map("/no-such-file", 1, Kind::SharedRead)?;
    ensure_eq!(missing, Reply::Errno(libc::ENOENT), "the probe");
    let path = fs.path("file");
    fs.umount().context("umount in this namespace")?;
    let busy = Err(Errno::WOULDBLOCK);
    ensure_eq!(module::rmmod("famfs"), busy, "rmmod after the umount");
    let second = TestFs::mount(ready.serve(vec![ServedFile::new("file", &fmap)]))?;
    ensure_eq!(second.open_errno("file"), libc::EBUSY, "the device");
    expect_value(apart.map(&path, AU, Kind::SharedRead)?).context("an open over there")?;
    let first = u64::from(pattern(0, 1)[0]);
    ensure_eq!(apart.get(0)?, Reply::Value(first), "first byte over there");
    drop(apart);
    // The last namespace is taken apart behind the back of who leaves it.
    while second.open_errno("file") == libc::EBUSY {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    drop(second.open("file").context("after the namespace's end")?);
    Ok(())
}
