// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pages that somebody pinned: who waits for whom. Nothing here is measured; each test says what comes before what, and
//! a wait that never ends is found by the harness.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure, Context, Result};
use rustix::mount::UnmountFlags;

use super::faults::expect_value;
use super::fixture::{ensure_eq, pattern, ready, Ready};
use super::Test;
use crate::channel::Channel;
use crate::dax::{DaxDev, Driver};
use crate::fmap::{extent, Fmap, AU};
use crate::module;
use crate::probe::{Probe, Reply};
use crate::runner::Guest;
use crate::server::{Serve, ServedFile, TestFs, PLAIN_BYTE};
use crate::stopping::StoppingFs;
use crate::sys::{Kind, Mapping};
use crate::wire;

pub const TESTS: &[(&str, Test)] = &[
    ("removal_waits_for_a_pipe", removal_waits_for_a_pipe),
    ("removal_waits_for_direct_io", removal_waits_for_direct_io),
    ("removal_kills_who_pins", removal_kills_who_pins),
    ("umount_waits_for_a_pipe", umount_waits_for_a_pipe),
    ("reclaim_waits_for_nobody", reclaim_waits_for_nobody),
    ("fixed_buffers_are_refused", fixed_buffers_are_refused),
    ("debuggers_see_the_removal", debuggers_see_the_removal),
];

const SIGKILL: i32 = libc::SIGKILL;
const GONE: Reply = Reply::Errno(libc::ENXIO);

/// Three files on the last device, mounted.
struct Setup<'a> {
    ready: Ready,
    device: &'a DaxDev,
    fmaps: [Fmap; 3],
    fs: TestFs,
}

impl<'a> Setup<'a> {
    fn new(guest: &'a Guest) -> Result<Self> {
        let ready = ready(guest)?;
        let device = guest.devices.last().context("no daxdev")?;
        let index = guest.devices.len() as u32 - 1;
        let fmaps = [24, 32, 40].map(|at| Fmap::simple(AU, &[extent(index, at * AU, AU)]));
        for fmap in &fmaps {
            ready.fill(fmap)?;
        }
        let files = ["file", "other", "third"].into_iter().zip(&fmaps);
        let files = files.map(|(name, fmap)| ServedFile::new(name, fmap));
        let fs = TestFs::mount(ready.serve(files.collect()))?;
        // Who touches it next finds it prepared.
        Mapping::new(&fs.open("file")?, 0, AU as usize, Kind::SharedRead)?.populate(false)?;
        Ok(Self {
            fs,
            ready,
            device,
            fmaps,
        })
    }

    /// A process with the file mapped, all of it, and the address.
    fn user(&self, name: &str) -> Result<(Probe, u64)> {
        let mut probe = Probe::start()?;
        let address = expect_value(probe.map(&self.fs.path(name), AU, Kind::SharedWrite)?)?;
        expect_value(probe.touch()?)?;
        Ok((probe, address))
    }

    fn start_removal(&self) -> Background {
        let device = self.device.clone();
        Background(std::thread::spawn(move || device.unbind()))
    }

    fn finish(mut self) -> Result<()> {
        self.fs.umount().context("umount after the removal")?;
        self.device.bind(Driver::Fsdev)
    }
}

/// Something that may have to wait.
pub struct Background(JoinHandle<Result<()>>);

impl Background {
    /// Begins to unmount, and comes back when the mount is gone from the namespace; its files are evicted after that.
    pub fn umount(fs: &mut TestFs) -> Result<Self> {
        let umount = Self(fs.start_umount());
        let end = Instant::now() + Duration::from_secs(60);
        let path = fs.path("");
        while std::fs::read_to_string("/proc/mounts")?.contains(path.trim_end_matches('/')) {
            ensure!(Instant::now() < end, "{path} stays mounted");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(umount)
    }

    pub fn expect_waiting(&self, what: &str) -> Result<()> {
        ensure!(!self.0.is_finished(), "{what} did not wait for the pin");
        Ok(())
    }

    pub fn join(self) -> Result<()> {
        self.0.join().map_err(|_| anyhow!("a thread panicked"))?
    }
}

/// Waits until nothing is mapped there.
fn wait_until_unmapped(probe: &Probe, address: u64) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(60);
    while probe.present(address, AU)? != (0, 0) {
        ensure!(Instant::now() < end, "the mappings stay");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The mappings go first, of all files; then the driver waits until the pipe is gone. Nobody is killed for it.
fn removal_waits_for_a_pipe(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let setup = Setup::new(guest)?;
    let (mut pinner, _) = setup.user("file")?;
    let (mut other, address) = setup.user("other")?;
    ensure_eq!(pinner.splice(0)?, Reply::Value(4096), "bytes spliced");
    // Not the mapping is what holds the removal up.
    ensure_eq!(pinner.unmap()?, Reply::Value(0), "munmap");
    let removal = setup.start_removal();
    wait_until_unmapped(&other, address)?;
    ensure_eq!(
        setup.fs.open_errno("file"),
        0,
        "an open of a file that has its map"
    );
    ensure_eq!(pinner.pread(0, 64)?, GONE, "pread while the removal waits");
    let fault = Reply::Sigbus(libc::BUS_ADRERR, address as usize);
    ensure_eq!(other.get(0)?, fault, "a fault while the removal waits");
    removal.expect_waiting("the removal")?;
    ensure_eq!(pinner.drain()?, Reply::Value(0), "end of the pin");
    removal.join().context("the removal after the pin")?;
    ensure_eq!(pinner.pread(0, 64)?, GONE, "pread after the removal");
    drop((pinner, other));
    setup.finish()
}

/// A read with O_DIRECT into the mapping is answered first; it writes to the memory that is about to go.
fn removal_waits_for_direct_io(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let setup = Setup::new(guest)?;
    let source = ServedFile::new("source", &setup.fmaps[0]);
    let plain = Serve {
        plain: true,
        ..Serve::new(&[], vec![source])
    };
    let mut plain = StoppingFs::mount(&plain, &[], wire::READ)?;
    let (mut pinner, address) = setup.user("file")?;
    pinner.start_direct_read(&plain.path("source"), 4096, 4096)?;
    plain.wait_until_stopped()?;
    let removal = setup.start_removal();
    wait_until_unmapped(&pinner, address)?;
    ensure_eq!(
        setup.fs.open_errno("other"),
        libc::ENXIO,
        "a first open while the removal waits"
    );
    removal.expect_waiting("the removal")?;
    plain.go_on()?;
    ensure_eq!(
        pinner.answer()?,
        Reply::Value(4096),
        "bytes read during the removal"
    );
    removal.join().context("the removal after the read")?;
    ensure!(
        setup.ready.raw_bytes(&setup.fmaps[0], 4096, 4096)? == [PLAIN_BYTE; 4096],
        "what was read is not in the memory"
    );
    drop(pinner);
    plain.umount(UnmountFlags::empty())?;
    setup.finish()
}

/// Who maps pages that stay pinned is killed, and with him the pin ends. Others who use the device go on. Patience is
/// lost once, not for each file again.
fn removal_kills_who_pins(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let setup = Setup::new(guest)?;
    let mut pinners = Vec::new();
    for name in ["file", "other"] {
        let (mut pinner, _) = setup.user(name)?;
        ensure_eq!(pinner.splice(0)?, Reply::Value(4096), "bytes spliced");
        pinners.push(pinner);
    }
    let (mut bystander, _) = setup.user("third")?;
    let mut log = module::KernelLog::open()?;
    let removal = setup.start_removal();
    for pinner in &mut pinners {
        ensure_eq!(
            pinner.answer()?,
            Reply::Killed(SIGKILL),
            "a process that keeps a page pinned"
        );
    }
    removal.join().context("the removal after the pins")?;
    let seconds: Vec<u32> = log
        .new_lines()
        .iter()
        .filter_map(|line| line.split_once("pages are pinned for ")?.1.split_once(' '))
        .filter_map(|(seconds, _)| seconds.parse().ok())
        .collect();
    ensure!(
        seconds.len() == 2 && seconds.iter().all(|waited| (10..20).contains(waited)),
        "the log says that pages were pinned for {seconds:?} s when processes were killed"
    );
    ensure_eq!(bystander.pread(0, 64)?, GONE, "a process without a pin");
    drop((pinners, bystander));
    setup.finish()
}

/// Nobody uses the file any more, and still a page is in a pipe: eviction waits, and so umount.
fn umount_waits_for_a_pipe(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mut setup = Setup::new(guest)?;
    let (mut pinner, _) = setup.user("file")?;
    ensure_eq!(pinner.splice(0)?, Reply::Value(4096), "bytes spliced");
    ensure_eq!(pinner.close()?, Reply::Value(0), "munmap and close");
    let umount = Background::umount(&mut setup.fs)?;
    ensure_eq!(
        module::rmmod("famfs"),
        Err(rustix::io::Errno::WOULDBLOCK),
        "rmmod while an eviction waits"
    );
    umount.expect_waiting("umount")?;
    ensure_eq!(pinner.drain()?, Reply::Value(0), "end of the pin");
    umount.join().context("umount after the pin")?;
    drop(pinner);
    module::rmmod("famfs").context("rmmod after the umount")
}

/// Memory is reclaimed, and what nobody has open gives way, but not a file with a page in a pipe; what evicts it
/// afterwards is whoever drops the caches.
fn reclaim_waits_for_nobody(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let setup = Setup::new(guest)?;
    let (mut pinner, _) = setup.user("file")?;
    ensure_eq!(pinner.splice(0)?, Reply::Value(4096), "bytes spliced");
    ensure_eq!(pinner.close()?, Reply::Value(0), "munmap and close");
    let before = setup.fs.count(wire::LOOKUP);
    let (maps, forgotten) = (setup.fs.count(wire::GET_FMAP), setup.fs.count(wire::FORGET));
    // Of the share that a node has in slab caches nothing is to be spared.
    std::fs::write("/proc/sys/vm/min_slab_ratio", "0")?;
    // A name is spared as long as it was used since the last time.
    for _ in 0..4 {
        // EAGAIN: there is not as much to be had.
        let _ = std::fs::write("/sys/devices/system/node/node0/reclaim", "1G");
    }
    ensure_eq!(setup.fs.open_errno("file"), 0, "open after the reclaim");
    ensure_eq!(
        setup.fs.count(wire::LOOKUP),
        before + 1,
        "look-ups, one of them of a name that was reclaimed"
    );
    ensure_eq!(setup.fs.count(wire::GET_FMAP), maps, "maps asked for");
    ensure_eq!(setup.fs.count(wire::FORGET), forgotten, "inodes evicted");
    ensure_eq!(pinner.drain()?, Reply::Value(0), "end of the pin");
    std::fs::write("/proc/sys/vm/drop_caches", "3")?;
    setup.fs.wait_for(wire::FORGET, forgotten + 1)
}

/// What would pin pages for good is refused by the kernel, for every fs-dax mapping.
fn fixed_buffers_are_refused(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let setup = Setup::new(guest)?;
    let refused = Reply::Errno(libc::EOPNOTSUPP);
    for kind in [Kind::SharedWrite, Kind::Private] {
        let mut probe = Probe::start()?;
        expect_value(probe.map(&setup.fs.path("file"), AU, kind)?)?;
        ensure_eq!(
            probe.register(0, 4096)?,
            refused,
            "a fixed buffer of io_uring, page not yet there, {kind:?}"
        );
        expect_value(probe.touch()?)?;
        ensure_eq!(
            probe.register(0, AU)?,
            refused,
            "a fixed buffer of io_uring, {kind:?}"
        );
    }
    Ok(())
}

/// /proc/PID/mem pins for the time of a copy: it shows the memory, and fails after the removal.
fn debuggers_see_the_removal(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let setup = Setup::new(guest)?;
    let (probe, address) = setup.user("file")?;
    let memory = File::open(format!("/proc/{}/mem", probe.pid()))?;
    let mut bytes = [0; 64];
    memory.read_exact_at(&mut bytes, address)?;
    ensure!(pattern(0, 64) == bytes, "/proc/PID/mem shows {bytes:02x?}");
    setup.device.unbind()?;
    let errno = memory
        .read_at(&mut bytes, address)
        .map_err(|error| error.raw_os_error());
    ensure_eq!(
        errno,
        Err(Some(libc::EIO)),
        "/proc/PID/mem after the removal"
    );
    drop(probe);
    setup.finish()
}
