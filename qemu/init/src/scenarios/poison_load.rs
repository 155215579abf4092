// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory that fails, and is good again, while it is opened, read, written and mapped. They are tests of `poison`.

use std::fmt::Debug;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::Arc;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, ensure, Context, Result};

use super::faults::expect_value;
use super::fixture::{ensure_eq, first_difference, pattern};
use super::poison::{
    read_errno, report_apart, report_error, Setup, DEVICE, EHWPOISON, PAGE, PAGE_LSB, RANGE,
};
use crate::channel::Channel;
use crate::fmap::AU;
use crate::probe::{digest, Probe, Reply};
use crate::runner::Guest;
use crate::sys::{scan_pages, Kind, Mapping};
use crate::wire::GET_FMAP;

/// Opens of files go on while errors arrive, and each knows of those before it.
pub fn open_while_memory_fails(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    const ROUNDS: u64 = 40;
    let mut setup = Setup::new(guest, RANGE)?;
    // The mount has the device only from the first open on.
    setup.fs.open("neighbour")?;
    for round in 0..ROUNDS {
        // Dropped caches let the next open fetch the map anew.
        std::fs::write("/proc/sys/vm/drop_caches", "2")?;
        let (at, pfn) = (round * 2 * PAGE, setup.pfn(round * 2 * PAGE)?);
        let path = setup.fs.path("file");
        let opener = std::thread::spawn(move || File::open(path));
        report_error(pfn)?;
        let file = opener
            .join()
            .map_err(|_| anyhow::anyhow!("the opener panicked"))??;
        let errno = |at| read_errno(&file, at);
        ensure_eq!(errno(at), EHWPOISON, "pread of lost page {round}");
        ensure_eq!(errno(at + PAGE), 0, "pread behind lost page {round}");
    }
    setup.fs.umount().context("umount after the errors")
}

/// Reads and faults go on in the 2 MiB where errors arrive, one page further to the front each time. A read ends at an
/// error that was there when it began, and no fault maps the page of one.
pub fn access_while_memory_fails(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    const ROUNDS: u64 = 40;
    let mut setup = Setup::new(guest, RANGE)?;
    let (file, other) = (setup.fs.open("file")?, setup.fs.open("file")?);
    // First lost byte of the 2 MiB: that of an error about to be reported, and of one that was.
    let coming = Arc::new(AtomicU64::new(AU));
    let done = Arc::new(AtomicU64::new(AU));
    let limits = || (Arc::clone(&coming), Arc::clone(&done));
    let (coming_read, done_read) = limits();
    let reader = std::thread::spawn(move || -> Result<()> {
        let mut bytes = vec![0; AU as usize];
        while coming_read.load(SeqCst) > 0 {
            let most = done_read.load(SeqCst);
            let count = file.read_at(&mut bytes, AU)? as u64;
            let least = coming_read.load(SeqCst);
            ensure!(
                least <= count && count <= most,
                "pread gave {count:#x} bytes, expected {least:#x} to {most:#x}"
            );
        }
        Ok(())
    });
    let (coming_fault, done_fault) = limits();
    let faulter = std::thread::spawn(move || -> Result<()> {
        let mapping = Mapping::new(&other, AU, AU as usize, Kind::SharedRead)?;
        while coming_fault.load(SeqCst) > 0 {
            let lost = done_fault.load(SeqCst);
            mapping.drop_entries(0, AU as usize)?;
            mapping.byte(0);
            let page = mapping.address() as u64 + lost;
            ensure!(
                !scan_pages(&mapping)?
                    .iter()
                    .any(|region| region.start <= page && page < region.end),
                "the lost page at {lost:#x} is mapped"
            );
        }
        Ok(())
    });
    for at in (1..=ROUNDS).map(|round| AU - round * 2 * PAGE) {
        coming.store(at, SeqCst);
        report_apart(setup.pfn(AU + at)?)?;
        done.store(at, SeqCst);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    coming.store(0, SeqCst);
    for thread in [reader, faulter] {
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    }
    setup.fs.umount().context("umount after the errors")
}

/// The page of "file" that fails, and the one of "later".
const LOST: u64 = AU + 5 * PAGE;
const LOST_LATER: u64 = 3 * PAGE;
/// What is read at once, all in 2 MiB.
const SPAN: u64 = 16 * PAGE;

/// Bytes that were read, written or mapped, or an errno.
type Answer = std::result::Result<u64, i32>;

/// Memory that fails and is made good, and those who use it meanwhile.
struct Load {
    setup: Setup,
    policy: u16,
    /// Grows by one before and after each change: memory is good at 0, has failed at 2, is good again at 4, and so on.
    now: AtomicU64,
    ended: AtomicBool,
    /// When each user last used memory that did not change meanwhile.
    seen: Vec<AtomicU64>,
}

/// Uses the memory until that is over; the number is its place in `seen`.
type User = fn(&Load, usize) -> Result<()>;

/// What goes on, each by a thread. The last one needs a second daxdev.
const USERS: [(&str, User); 9] = [
    ("preads", Load::preads),
    ("pwrites", Load::pwrites),
    ("first opens", Load::opens),
    ("faults on the lost page", |load, user| {
        load.faults(user, LOST, Err(EHWPOISON))
    }),
    ("faults beside it", |load, user| {
        let failed = match load.policy {
            DEVICE => Err(libc::EFAULT),
            _ => Ok(PAGE),
        };
        load.faults(user, LOST + PAGE, failed)
    }),
    ("new processes at the lost page", |load, user| {
        let failed = Reply::Sigbus(libc::BUS_MCEERR_AR, LOST as usize);
        load.processes(user, LOST, (failed, Some(PAGE_LSB)))
    }),
    ("new processes beside it", |load, user| {
        let at = LOST + PAGE;
        let failed = match load.policy {
            DEVICE => (Reply::Sigbus(libc::BUS_ADRERR, at as usize), Some(0)),
            _ => good_load(at),
        };
        load.processes(user, at, failed)
    }),
    ("what is mapped already", Load::mapped_already),
    ("another daxdev", Load::elsewhere),
];

impl Load {
    /// Does `access` over and over. It comes to `good` or to `failed` as the memory is; if that changes meanwhile, to
    /// one of the two.
    fn repeat<T: PartialEq + Debug>(
        &self,
        user: usize,
        [good, failed]: [T; 2],
        mut access: impl FnMut() -> Result<T>,
    ) -> Result<()> {
        while !self.ended.load(SeqCst) {
            let before = self.now.load(SeqCst);
            let got = access()?;
            let after = self.now.load(SeqCst);
            let steady = before == after && before % 2 == 0;
            let right = match before % 4 {
                0 if steady => got == good,
                2 if steady => got == failed,
                _ => got == good || got == failed,
            };
            ensure!(
                right,
                "got {got:?} from {before} to {after}, expected {good:?} or, at 2, 6, ..., {failed:?}"
            );
            if steady {
                self.seen[user].store(before, SeqCst);
            }
        }
        Ok(())
    }

    /// What reads and writes come to that reach the lost page behind so many bytes.
    fn up_to(&self, count: u64) -> Answer {
        match self.policy {
            RANGE => Ok(count),
            _ => Err(EHWPOISON),
        }
    }

    fn preads(&self, user: usize) -> Result<()> {
        let file = self.setup.fs.open("file")?;
        let expected = [Ok(SPAN), self.up_to(LOST - AU)];
        self.repeat(user, expected, || read(&file, AU, SPAN))
    }

    fn pwrites(&self, user: usize) -> Result<()> {
        let file = self.setup.fs.open_rw("file")?;
        let at = LOST - PAGE;
        let bytes = pattern(at, 3 * PAGE as usize);
        self.repeat(user, [Ok(3 * PAGE), self.up_to(PAGE)], || {
            let count = file.write_at(&bytes, at);
            Ok(count.map(|count| count as u64).map_err(errno))
        })
    }

    /// Nobody else has this file open, so that each open fetches its map.
    fn opens(&self, user: usize) -> Result<()> {
        self.repeat(user, [Ok(SPAN), self.up_to(LOST_LATER)], || {
            std::fs::write("/proc/sys/vm/drop_caches", "2")?;
            read(&self.setup.fs.open("later")?, 0, SPAN)
        })
    }

    fn faults(&self, user: usize, at: u64, failed: Answer) -> Result<()> {
        let file = self.setup.fs.open("file")?;
        let mapping = Mapping::new(&file, 0, 2 * AU as usize, Kind::SharedRead)?;
        self.repeat(user, [Ok(PAGE), failed], || fault(&mapping, at))
    }

    fn processes(&self, user: usize, at: u64, failed: (Reply, Option<u8>)) -> Result<()> {
        let path = self.setup.fs.path("file");
        self.repeat(user, [good_load(at), failed], || {
            let mut probe = Probe::start()?;
            let address = expect_value(probe.map(&path, 2 * AU, Kind::SharedRead)?)? as usize;
            let reply = match probe.get(at)? {
                Reply::Sigbus(code, at) => Reply::Sigbus(code, at.wrapping_sub(address)),
                other => other,
            };
            Ok((reply, probe.lsb()))
        })
    }

    fn mapped_already(&self, user: usize) -> Result<()> {
        let (mut probe, _) = self.setup.user("file", Kind::SharedRead)?;
        let bytes = || Reply::Value(digest(&pattern(2 * AU, SPAN as usize)));
        self.repeat(user, [bytes(), bytes()], || probe.digest(2 * AU, SPAN))
    }

    fn elsewhere(&self, user: usize) -> Result<()> {
        let file = self.setup.fs.open_rw("elsewhere")?;
        let mapping = Mapping::new(&file, 0, AU as usize, Kind::SharedRead)?;
        let bytes = pattern(0, PAGE as usize);
        self.repeat(user, [Ok(SPAN), Ok(SPAN)], || {
            file.write_all_at(&bytes, 0)?;
            ensure_eq!(fault(&mapping, 0)?, Ok(PAGE), "a fault");
            read(&file, 0, SPAN)
        })
    }

    /// Memory fails and is made good, each time when everybody has used it as it is.
    fn changes(
        &self,
        rounds: usize,
        threads: &[ScopedJoinHandle<Result<()>>],
        channel: &mut Channel,
    ) -> Result<()> {
        let setup = &self.setup;
        for round in 0..rounds {
            channel.step(&format!("good memory, round {round}"));
            self.wait_for_users(threads)?;
            self.now.fetch_add(1, SeqCst);
            for (name, at) in [("file", LOST), ("later", LOST_LATER)] {
                report_apart(setup.pfn_in(name, at)?)?;
            }
            self.now.fetch_add(1, SeqCst);
            channel.step(&format!("failed memory, round {round}"));
            self.wait_for_users(threads)?;
            self.now.fetch_add(1, SeqCst);
            ensure_eq!(setup.forget()?, Ok(()), "to forget the errors");
            self.now.fetch_add(1, SeqCst);
        }
        channel.step("good memory in the end");
        self.wait_for_users(threads)
    }

    fn wait_for_users(&self, threads: &[ScopedJoinHandle<Result<()>>]) -> Result<()> {
        let maps = self.setup.fs.count(GET_FMAP);
        let end = Instant::now() + Duration::from_secs(120);
        let now = self.now.load(SeqCst);
        while self.seen.iter().any(|seen| seen.load(SeqCst) != now)
            || self.setup.fs.count(GET_FMAP) == maps
        {
            ensure!(
                !threads.iter().any(ScopedJoinHandle::is_finished),
                "somebody has given up at {now}"
            );
            ensure!(
                Instant::now() < end,
                "at {now} the users were seen at {:?}, with {maps} maps fetched before",
                self.seen
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

fn errno(error: std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or(0)
}

/// Bytes of the file, or an error, but no other bytes.
fn read(file: &File, at: u64, len: u64) -> Result<Answer> {
    let mut bytes = vec![0; len as usize];
    let count = match file.read_at(&mut bytes, at) {
        Ok(count) => count,
        Err(error) => return Ok(Err(errno(error))),
    };
    match first_difference(&bytes[..count], &pattern(at, count)) {
        Some(difference) => bail!("pread at {at:#x}: {difference}"),
        None => Ok(Ok(count as u64)),
    }
}

/// Has a page mapped anew, as a load would.
fn fault(mapping: &Mapping, at: u64) -> Result<Answer> {
    mapping.drop_entries(0, mapping.len())?;
    let done = mapping.populate_part(at as usize, PAGE as usize, false);
    Ok(done.map(|()| PAGE).map_err(errno))
}

/// What a load of a good byte comes to in a new process: its value, and no si_addr_lsb.
fn good_load(at: u64) -> (Reply, Option<u8>) {
    (Reply::Value(pattern(at, 1)[0].into()), None)
}

/// Memory fails, and is made good again, again and again, while it is read, written, mapped and opened: what begins
/// after a change has the answers of the memory as it is then, and what is under way has those of before or after.
fn under_load(guest: &Guest, channel: &mut Channel, policy: u16) -> Result<()> {
    let rounds = if guest.fast { 10 } else { 4 };
    let users = USERS.len() - usize::from(guest.devices.len() < 2);
    let mut load = Load {
        setup: Setup::new(guest, policy)?,
        policy,
        now: AtomicU64::new(0),
        ended: AtomicBool::new(false),
        seen: (0..users).map(|_| AtomicU64::new(u64::MAX)).collect(),
    };
    std::thread::scope(|scope| {
        let load = &load;
        let users = USERS.iter().take(users).enumerate();
        let threads: Vec<_> = users
            .map(|(user, (_, run))| scope.spawn(move || run(load, user)))
            .collect();
        let outcome = load.changes(rounds, &threads, channel);
        load.ended.store(true, SeqCst);
        for (thread, (name, _)) in threads.into_iter().zip(USERS) {
            let done = thread.join().map_err(|_| anyhow!("a thread panicked"));
            done.and_then(|done| done).context(name)?;
        }
        outcome
    })?;
    load.setup.fs.umount().context("umount")
}

/// Policy `device`: with the first error nothing of the device can be had but what is mapped already.
pub fn the_device_under_load(guest: &Guest, channel: &mut Channel) -> Result<()> {
    under_load(guest, channel, DEVICE)
}

pub fn a_range_under_load(guest: &Guest, channel: &mut Channel) -> Result<()> {
    under_load(guest, channel, RANGE)
}
