// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pages that somebody pinned: who waits for whom. Nothing here is measured; each test says what comes before what, and
//! a wait that never ends is found by the harness.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, ensure, Context, Result};
use rustix::mount::UnmountFlags;
use rustix::process::Pid;
use rustix::thread::gettid;

use super::faults::expect_value;
use super::fixture::{ensure_eq, pattern, ready, Ready};
use super::{pin_orders, Test};
use crate::channel::Channel;
use crate::dax::{DaxDev, Driver};
use crate::fmap::{extent, Fmap, AU};
use crate::module;
use crate::probe::{digest, Probe, Reply};
use crate::runner::Guest;
use crate::server::{Serve, ServedFile, TestFs, PLAIN_BYTE};
use crate::stopping::StoppingFs;
use crate::sys::{Kind, Mapping};
use crate::tool::state_of;
use crate::wire;

pub const TESTS: &[(&str, Test)] = &[
    ("removal_waits_for_a_pipe", removal_waits_for_a_pipe),
    ("removal_waits_for_direct_io", removal_waits_for_direct_io),
    ("removal_kills_who_pins", removal_kills_who_pins),
    ("umount_waits_for_a_pipe", umount_waits_for_a_pipe),
    (
        "removal_during_an_eviction",
        pin_orders::removal_during_an_eviction,
    ),
    (
        "umount_during_a_removal",
        pin_orders::umount_during_a_removal,
    ),
    (
        "pinners_without_a_mapping_live",
        pin_orders::pinners_without_a_mapping_live,
    ),
    ("reclaim_waits_for_nobody", reclaim_waits_for_nobody),
    ("fixed_buffers_are_refused", fixed_buffers_are_refused),
    ("debuggers_see_the_removal", debuggers_see_the_removal),
];

const SIGKILL: i32 = libc::SIGKILL;
pub const GONE: Reply = Reply::Errno(libc::ENXIO);

/// Three files on the last device, mounted.
pub struct Setup<'a> {
    pub ready: Ready,
    pub device: &'a DaxDev,
    fmaps: [Fmap; 3],
    pub fs: TestFs,
}

fn mount(ready: &Ready, fmaps: &[Fmap; 3]) -> Result<TestFs> {
    let files = ["file", "other", "third"].into_iter().zip(fmaps);
    let files = files.map(|(name, fmap)| ServedFile::new(name, fmap));
    TestFs::mount(ready.serve(files.collect()))
}

impl<'a> Setup<'a> {
    pub fn new(guest: &'a Guest) -> Result<Self> {
        let ready = ready(guest)?;
        let device = guest.devices.last().context("no daxdev")?;
        let index = guest.devices.len() as u32 - 1;
        let fmaps = [24, 32, 40].map(|at| Fmap::simple(AU, &[extent(index, at * AU, AU)]));
        for fmap in &fmaps {
            ready.fill(fmap)?;
        }
        let fs = mount(&ready, &fmaps)?;
        // Who touches it next finds it prepared.
        Mapping::new(&fs.open("file")?, 0, AU as usize, Kind::SharedRead)?.populate(false)?;
        Ok(Self {
            fs,
            ready,
            device,
            fmaps,
        })
    }

    /// The same mount once more, after that one has gone.
    pub fn mount(&self) -> Result<TestFs> {
        mount(&self.ready, &self.fmaps)
    }

    /// A process with the file mapped, all of it, and the address.
    pub fn user(&self, name: &str) -> Result<(Probe, u64)> {
        let mut probe = Probe::start()?;
        let address = expect_value(probe.map(&self.fs.path(name), AU, Kind::SharedWrite)?)?;
        expect_value(probe.touch()?)?;
        Ok((probe, address))
    }

    /// The same, and the first page in a pipe.
    pub fn pinner(&self, name: &str) -> Result<Probe> {
        let (mut probe, _) = self.user(name)?;
        ensure_eq!(probe.splice(0)?, Reply::Value(4096), "bytes spliced");
        Ok(probe)
    }

    pub fn finish(mut self) -> Result<()> {
        self.fs.umount().context("umount after the removal")?;
        self.device.bind(Driver::Fsdev)
    }
}

/// Something that has to wait for a pin, on a thread of its own.
pub struct Background {
    thread: JoinHandle<Result<()>>,
    task: Pid,
    /// The kernel's function in which it waits.
    place: &'static str,
}

impl Background {
    fn start(
        place: &'static str,
        work: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let _ = tell.send(gettid());
            work()
        });
        Ok(Self {
            thread,
            task: told.recv()?,
            place,
        })
    }

    /// Begins to unbind the device, which looks at the page again and again.
    pub fn removal(device: &DaxDev) -> Result<Self> {
        let device = device.clone();
        Self::start("msleep", move || device.unbind())
    }

    /// Begins to unmount, and comes back when the mount is gone from the namespace; its files are evicted after that.
    pub fn umount(fs: &mut TestFs) -> Result<Self> {
        let dir = fs.path("");
        let path = dir.trim_end_matches('/');
        let umount = Self::start("dax_break_layout_final", fs.umount_elsewhere())?;
        let end = Instant::now() + Duration::from_secs(60);
        while is_mounted(path)? {
            if umount.thread.is_finished() {
                umount.join().with_context(|| format!("umount {path}"))?;
                bail!("umount {path} did not wait for the pin");
            }
            ensure!(Instant::now() < end, "{path} stays mounted");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(umount)
    }

    /// It sleeps where it waits for pins, or will soon; to have ended is an error.
    pub fn expect_waiting(&self) -> Result<()> {
        let place = self.place;
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            ensure!(
                !self.thread.is_finished(),
                "what should wait in {place} did not wait for the pin"
            );
            // A task that ends meanwhile has no stack.
            let stack =
                std::fs::read_to_string(format!("/proc/{}/stack", self.task)).unwrap_or_default();
            if state_of(self.task) == 'D' && stack.contains(place) {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "it does not wait in {place}, but here:\n{stack}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn join(self) -> Result<()> {
        self.thread
            .join()
            .map_err(|_| anyhow!("a thread panicked"))?
    }
}

fn is_mounted(path: &str) -> Result<bool> {
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    let mut places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    Ok(places.any(|place| place == path))
}

pub fn inode_of(fs: &TestFs, name: &str) -> Result<u64> {
    Ok(std::fs::metadata(fs.path(name))?.ino())
}

/// What a pipe with the first page of a file gives.
pub fn first_page() -> Reply {
    Reply::Value(digest(&pattern(0, 4096)))
}

/// What the module says of pages that are pinned for long: inode, seconds, processes killed.
pub fn pinned_for_long(line: &str) -> Option<(u64, u32, u32)> {
    let (inode, rest) = line
        .strip_prefix("famfs: inode ")?
        .split_once(": pages are pinned for ")?;
    let (seconds, killed) = rest.split_once(" s, so their device can't go; processes killed: ")?;
    Some((
        inode.parse().ok()?,
        seconds.parse().ok()?,
        killed.parse().ok()?,
    ))
}

/// Waits until nothing is mapped there.
pub fn wait_until_unmapped(probe: &Probe, address: u64) -> Result<()> {
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
    let mut pinner = setup.pinner("file")?;
    let (mut other, address) = setup.user("other")?;
    // Not the mapping is what holds the removal up.
    ensure_eq!(pinner.unmap()?, Reply::Value(0), "munmap");
    let removal = Background::removal(setup.device)?;
    wait_until_unmapped(&other, address)?;
    removal.expect_waiting()?;
    ensure_eq!(
        setup.fs.open_errno("file"),
        0,
        "an open of a file that has its map"
    );
    ensure_eq!(pinner.pread(0, 64)?, GONE, "pread while the removal waits");
    let fault = Reply::Sigbus(libc::BUS_ADRERR, address as usize);
    ensure_eq!(other.get(0)?, fault, "a fault while the removal waits");
    removal.expect_waiting()?;
    ensure_eq!(pinner.drain()?, first_page(), "what was pinned");
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
    let removal = Background::removal(setup.device)?;
    wait_until_unmapped(&pinner, address)?;
    removal.expect_waiting()?;
    ensure_eq!(
        setup.fs.open_errno("other"),
        libc::ENXIO,
        "a first open while the removal waits"
    );
    removal.expect_waiting()?;
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

/// Who maps pages that stay pinned is killed, be it somebody else's pin, and with him the pin ends. Others who use the
/// device go on. Patience is lost once, not for each file again.
fn removal_kills_who_pins(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let setup = Setup::new(guest)?;
    let mut killed = [
        setup.pinner("file")?,
        setup.user("file")?.0,
        setup.pinner("other")?,
    ];
    let (mut bystander, _) = setup.user("third")?;
    let inodes = [inode_of(&setup.fs, "file")?, inode_of(&setup.fs, "other")?];
    let mut log = module::KernelLog::open()?;
    let removal = Background::removal(setup.device)?;
    for user in &mut killed {
        ensure_eq!(
            user.answer()?,
            Reply::Killed(SIGKILL),
            "a process that has a pinned page mapped"
        );
    }
    removal.join().context("the removal after the pins")?;
    let said: Vec<_> = log
        .new_lines()
        .iter()
        .filter_map(|line| pinned_for_long(line))
        .collect();
    let [first, (second, seconds, one)] = said[..] else {
        bail!("the log says of pinned pages: {said:?}");
    };
    ensure_eq!(first, (inodes[0], 10, 2), "what the log says first");
    ensure_eq!((second, one), (inodes[1], 1), "what it says then");
    ensure!(
        (10..20).contains(&seconds),
        "the second file's pages were pinned for {seconds} s"
    );
    ensure_eq!(bystander.pread(0, 64)?, GONE, "a process without a pin");
    drop((killed, bystander));
    setup.finish()
}

/// Nobody uses the file any more, and still a page is in a pipe: eviction waits, and so umount.
fn umount_waits_for_a_pipe(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mut setup = Setup::new(guest)?;
    let mut pinner = setup.pinner("file")?;
    ensure_eq!(pinner.close()?, Reply::Value(0), "munmap and close");
    let umount = Background::umount(&mut setup.fs)?;
    umount.expect_waiting()?;
    ensure_eq!(
        module::rmmod("famfs"),
        Err(rustix::io::Errno::WOULDBLOCK),
        "rmmod while an eviction waits"
    );
    umount.expect_waiting()?;
    ensure_eq!(pinner.drain()?, first_page(), "what was pinned");
    umount.join().context("umount after the pin")?;
    drop(pinner);
    module::rmmod("famfs").context("rmmod after the umount")
}

/// Memory is reclaimed, and what nobody has open gives way, but not a file with a page in a pipe; what evicts it
/// afterwards is whoever drops the caches.
fn reclaim_waits_for_nobody(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let setup = Setup::new(guest)?;
    let mut pinner = setup.pinner("file")?;
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
    ensure_eq!(pinner.drain()?, first_page(), "what was pinned");
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
