// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each memory allocation of an open, a push and a mount fails once: slabs, pages and what vmalloc takes. Needs a kernel
//! with fault injection.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{ensure, Context, Result};
use rustix::mount::{unmount, MountFlags, UnmountFlags};

use super::fixture::{ensure_eq, one_extent, pattern, ready, Ready};
use super::push::{device, shuffled};
use super::Test;
use crate::channel::Channel;
use crate::fmap::{extent, Fmap, AU};
use crate::runner::Guest;
use crate::server::{mount_fuse, MountPoint, ServedFile, TestFs};
use crate::wire::{self, Request};

pub const TESTS: &[(&str, Test)] = &[
    ("open_with_one_daxdev", open_with_one_daxdev),
    ("open_with_two_daxdevs", open_with_two_daxdevs),
    ("open_interleaved", open_interleaved),
    ("open_many_extents", open_many_extents),
    ("push", push),
    ("mount", mount),
    ("init", init),
];

const DEBUGFS: &str = "/sys/kernel/debug";
/// Every allocation that can fail does: those that may wait, those of highmem, single pages. And without a stack dump.
const SETTINGS: [(&str, &str); 6] = [
    ("failslab/ignore-gfp-wait", "N"),
    ("failslab/verbose", "0"),
    ("fail_page_alloc/ignore-gfp-wait", "N"),
    ("fail_page_alloc/ignore-gfp-highmem", "N"),
    ("fail_page_alloc/min-order", "0"),
    ("fail_page_alloc/verbose", "0"),
];
/// No call here makes that many allocations.
const MOST_STEPS: u32 = 3000;

pub fn is_there() -> bool {
    Path::new(DEBUGFS).join("failslab").exists()
}

/// Makes allocations of the calling thread fail.
struct Injector {
    /// /proc/thread-self/fail-nth: the number of allocations up to the one that fails, 0 when it has.
    nth: File,
}

impl Injector {
    fn new() -> Result<Self> {
        for (name, value) in SETTINGS {
            fs::write(format!("{DEBUGFS}/{name}"), value).context(name)?;
        }
        let nth = File::options()
            .read(true)
            .write(true)
            .open("/proc/thread-self/fail-nth")
            .context("fail-nth")?;
        Ok(Self { nth })
    }

    /// The result of `call` with its `step`th allocation failing, and whether there were so many.
    fn during<T>(&self, step: u32, call: impl FnOnce() -> T) -> Result<(T, bool)> {
        let number = step.to_string();
        self.nth.write_all_at(number.as_bytes(), 0)?;
        let result = call();
        let mut left = [0; 16];
        let len = self.nth.read_at(&mut left, 0)?;
        self.nth.write_all_at(b"0", 0)?;
        Ok((result, left[..len].trim_ascii() == b"0"))
    }

    /// Fails the 1st, 2nd, ... allocation of `attempt`'s call, until one step has no such allocation. `attempt` gets
    /// the number of the step, makes the call by way of `during`, checks what became of it, and gives the errno (0 for
    /// success) and what `during` said. Every errno must be one of `expected`.
    fn step_through(
        &self,
        channel: &mut Channel,
        what: &str,
        expected: &[i32],
        mut attempt: impl FnMut(u32) -> Result<(i32, bool)>,
    ) -> Result<()> {
        let (mut failed, mut survived) = (0, 0);
        for step in 1..MOST_STEPS {
            let (errno, hit) =
                attempt(step).with_context(|| format!("{what}, allocation {step}"))?;
            if !hit {
                ensure_eq!(errno, 0, "errno of {what} with no allocation failing");
                channel.say(&format!(
                    "{what}: {failed} allocations failed it, {survived} did not"
                ));
                ensure!(failed >= 3, "only {failed} allocations made it fail");
                return Ok(());
            }
            match errno {
                0 => survived += 1,
                _ => failed += 1,
            }
            ensure!(
                errno == 0 || expected.contains(&errno),
                "{what}, allocation {step} failing: errno {errno}, expected one of {expected:?}"
            );
        }
        anyhow::bail!("{what} makes more than {MOST_STEPS} allocations");
    }
}

fn errno<T>(result: &std::io::Result<T>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(-1),
    }
}

/// The first and the last bytes of each unit of the file.
fn expect_contents(file: &File, fmap: &Fmap) -> Result<()> {
    for unit in (0..fmap.size).step_by(AU as usize) {
        for at in [unit, (unit + AU).min(fmap.size) - 64] {
            let mut bytes = [0; 64];
            file.read_exact_at(&mut bytes, at)?;
            ensure_eq!(bytes.to_vec(), pattern(at, 64), "bytes at {at:#x}");
        }
    }
    Ok(())
}

fn fill(ready: &Ready, fmap: &Fmap) -> Result<()> {
    for unit in (0..fmap.size).step_by(AU as usize) {
        for at in [unit, (unit + AU).min(fmap.size) - 64] {
            ready.fill_span(fmap, at, &pattern(at, 64))?;
        }
    }
    Ok(())
}

/// Each step has a mount of its own, so that devices, inode and map are had anew. An open that failed is repeated.
fn step_through_open(
    ready: &Ready,
    channel: &mut Channel,
    what: &str,
    fmap: &Fmap,
    pushed: &[(usize, u64)],
    served: &Fmap,
) -> Result<()> {
    fill(ready, fmap)?;
    let injector = Injector::new()?;
    injector.step_through(channel, what, &[libc::ENOMEM], |step| {
        let fs = &mut TestFs::mount(ready.serve(vec![ServedFile::new("file", served)]))?;
        for (place, index) in pushed {
            fs.push(&device(ready, *place)?, *index)?;
        }
        let path = fs.path("file");
        let (opened, hit) = injector.during(step, || File::open(&path))?;
        let errno = errno(&opened);
        let file = match opened {
            Ok(file) => file,
            Err(_) => fs
                .open("file")
                .context("the open after the one that failed")?,
        };
        expect_contents(&file, fmap)?;
        drop(file);
        fs.umount().context("umount")?;
        Ok((errno, hit))
    })
}

fn open_with_one_daxdev(guest: &Guest, channel: &mut Channel) -> Result<()> {
    let (ready, fmap) = (ready(guest)?, one_extent());
    step_through_open(&ready, channel, "an open", &fmap, &[], &fmap)
}

fn open_with_two_daxdevs(guest: &Guest, channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    let fmap = Fmap::simple(
        3 * AU,
        &[extent(1, 20 * AU, AU), extent(0, 16 * AU, 2 * AU)],
    );
    step_through_open(&ready, channel, "an open", &fmap, &[], &fmap)
}

fn open_interleaved(guest: &Guest, channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    let strips = [extent(0, 16 * AU, 2 * AU), extent(1, 20 * AU, 2 * AU)];
    let fmap = Fmap::interleaved(4 * AU, AU as u32, &strips);
    step_through_open(&ready, channel, "an open", &fmap, &[], &fmap)
}

/// A map with a retry for its size, of devices that were pushed.
fn open_many_extents(guest: &Guest, channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    let placed = Fmap::simple(270 * AU, &shuffled(0, 1));
    let served = Fmap::simple(270 * AU, &shuffled(3, 40_000));
    let pushed = [(0, 3), (1, 40_000)];
    step_through_open(&ready, channel, "an open", &placed, &pushed, &served)
}

fn push(guest: &Guest, channel: &mut Channel) -> Result<()> {
    let (ready, fmap) = (ready(guest)?, one_extent());
    fill(&ready, &fmap)?;
    let injector = Injector::new()?;
    injector.step_through(channel, "a push", &[libc::ENOMEM], |step| {
        let fs = &mut TestFs::mount(ready.serve(vec![ServedFile::new("file", &fmap)]))?;
        let device = device(&ready, 0)?;
        let (result, hit) = injector.during(step, || fs.push(&device, 0))?;
        if result.is_err() {
            fs.push(&device, 0)
                .context("the push after the one that failed")?;
        }
        drop(device);
        expect_contents(&fs.open("file")?, &fmap)?;
        ensure_eq!(fs.count(wire::GET_DAXDEV), 0, "GET_DAXDEV requests");
        fs.umount().context("umount")?;
        Ok((errno(&result), hit))
    })
}

/// The mount itself. fs/fuse has ENOTCONN for an INIT request that it cannot queue.
fn mount(guest: &Guest, channel: &mut Channel) -> Result<()> {
    let (ready, fmap) = (ready(guest)?, one_extent());
    fill(&ready, &fmap)?;
    let serve = ready.serve(vec![ServedFile::new("file", &fmap)]);
    let injector = Injector::new()?;
    let expected = [libc::ENOMEM, libc::ENOTCONN];
    injector.step_through(channel, "a mount", &expected, |step| {
        let mut point = MountPoint::new(0)?;
        let (result, hit) = injector.during(step, || point.mount(MountFlags::empty()))?;
        if result.is_err() {
            point = MountPoint::new(0)?;
            let again = point.mount(MountFlags::empty());
            again.context("the mount after the one that failed")?;
        }
        let errno = result.err().map_or(0, rustix::io::Errno::raw_os_error);
        let (dir, dev) = (point.dir, point.dev);
        let mut fs = TestFs::start(dir, dev, serve.clone())?;
        expect_contents(&fs.open("file")?, &fmap)?;
        fs.umount().context("umount")?;
        Ok((errno, hit))
    })
}

/// The provider's part of the mount, which happens in the server's write of the INIT reply. Where it fails, fs/fuse
/// refuses every request on that connection with ECONNREFUSED, as for any other INIT that is no good; where the write
/// itself fails, the server is told.
fn init(guest: &Guest, channel: &mut Channel) -> Result<()> {
    let (ready, fmap) = (ready(guest)?, one_extent());
    fill(&ready, &fmap)?;
    let serve = ready.serve(vec![ServedFile::new("file", &fmap)]);
    let injector = Injector::new()?;
    let expected = [libc::ENOMEM, libc::ECONNREFUSED];
    injector.step_through(channel, "INIT", &expected, |step| {
        let (dir, mut dev) = mount_fuse(0, MountFlags::empty())?;
        let mut buffer = vec![0; (1 << 20) + 4096];
        let len = dev.read(&mut buffer).context("read INIT")?;
        let request = Request::parse(&buffer[..len]).context("INIT")?;
        ensure_eq!(request.opcode, wire::INIT, "opcode of the first request");
        let body = wire::init_out(request.body, true, false);
        let reply = wire::reply(request.unique, 0, &body);
        let (written, hit) = injector.during(step, || dev.write(&reply))?;
        let mut errno = errno(&written);
        if errno == 0 {
            let mut fs = TestFs::start(dir, dev, serve.clone())?;
            match fs.open("file") {
                Ok(file) => expect_contents(&file, &fmap)?,
                Err(error) => errno = error.raw_os_error().unwrap_or(-1),
            }
            fs.umount().context("umount")?;
        } else {
            drop(dev);
            unmount(dir.as_str(), UnmountFlags::empty()).context("umount after INIT failed")?;
        }
        Ok((errno, hit))
    })
}
