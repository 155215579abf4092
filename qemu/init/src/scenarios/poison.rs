// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a memory error takes away, to the byte: who is told, and what stays.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;

use anyhow::{ensure, Context, Result};

use super::faults::expect_value;
use super::fixture::{ensure_eq, first_difference, pattern, ready, Ready};
use super::{poison_load, Test};
use crate::channel::Channel;
use crate::fmap::{extent, Fmap, AU};
use crate::probe::{digest, Probe, Reply};
use crate::runner::Guest;
use crate::server::{ServedFile, TestFs};
use crate::sys::{scan_pages, Kind, Mapping, PAGE_IS_HUGE};
use crate::tool::debugfs_file;

pub const TESTS: &[(&str, Test)] = &[
    ("one_page_is_lost", one_page_is_lost),
    ("the_device_is_lost", the_device_is_lost),
    ("nobody_met_it", nobody_met_it),
    ("two_errors_at_once", two_errors_at_once),
    (
        "open_while_memory_fails",
        poison_load::open_while_memory_fails,
    ),
    (
        "access_while_memory_fails",
        poison_load::access_while_memory_fails,
    ),
    ("the_device_under_load", poison_load::the_device_under_load),
    ("a_range_under_load", poison_load::a_range_under_load),
];

pub const EHWPOISON: i32 = libc::EHWPOISON;
pub const PAGE: u64 = 4096;
/// log2 of PAGE and of AU, as si_addr_lsb has it.
pub const PAGE_LSB: u8 = 12;
const AU_LSB: u8 = 21;
/// failure_policy in GET_DAXDEV's answer.
pub const DEVICE: u16 = 1;
pub const RANGE: u16 = 2;
/// What the server's ioctl asks to forget errors with.
const FORGET: u32 = 4;
/// Takes the number of a page, and has memory_failure() run for it.
const CORRUPT_PFN: &str = "/sys/kernel/debug/hwpoison/corrupt-pfn";
/// Where the first file lies on device 0; its neighbours are right behind it.
pub const FILE_AT: u64 = 64 << 20;
/// The last one is on another daxdev, if there is one.
const NAMES: [&str; 4] = ["file", "neighbour", "later", "elsewhere"];

/// A mount with files, all of them with their patterns in the memory.
pub struct Setup {
    pub ready: Ready,
    pub fmaps: Vec<Fmap>,
    policy: u16,
    pub fs: TestFs,
}

fn mount(ready: &Ready, fmaps: &[Fmap], policy: u16) -> Result<TestFs> {
    let files = NAMES.into_iter().zip(fmaps);
    let files = files.map(|(name, fmap)| ServedFile::new(name, fmap));
    TestFs::mount(ready.serve(files.collect()).with_policy(policy))
}

impl Setup {
    pub fn new(guest: &Guest, policy: u16) -> Result<Self> {
        let ready = ready(guest)?;
        // Every access to CXL memory is emulated, slowly.
        let size = if guest.fast { 32 * AU } else { 3 * AU };
        let places = [
            extent(0, FILE_AT, size),
            extent(0, FILE_AT + size, 2 * AU),
            extent(0, FILE_AT + size + 2 * AU, AU),
            extent(1, FILE_AT, AU),
        ];
        let there = places.iter().filter(|at| ready.raw(at.dev).is_ok());
        let fmaps: Vec<_> = there.map(|at| Fmap::simple(at.len, &[*at])).collect();
        for fmap in &fmaps {
            ready.fill(fmap)?;
        }
        let fs = mount(&ready, &fmaps, policy)?;
        Ok(Self {
            ready,
            fmaps,
            policy,
            fs,
        })
    }

    /// The same mount once more, after that one has gone.
    pub fn mount_again(&mut self) -> Result<()> {
        self.fs = mount(&self.ready, &self.fmaps, self.policy).context("the next mount")?;
        Ok(())
    }

    /// What the server says when the memory is good again.
    pub fn forget(&self) -> Result<std::result::Result<(), i32>> {
        let device = File::open(self.ready.paths.first().context("no daxdev")?)?;
        Ok(self.forget_of(device.as_raw_fd(), 0))
    }

    /// The same for the daxdev of that index, with this descriptor to show for it.
    pub fn forget_of(&self, device: i32, index: u64) -> std::result::Result<(), i32> {
        let done = self.fs.push_raw(device, FORGET, index);
        done.map_err(|error| error.raw_os_error().unwrap_or(0))
    }

    pub fn size(&self) -> u64 {
        self.fmaps[0].size
    }

    /// A process that has a file mapped and all of it touched, with the mapping's address.
    pub fn user(&self, name: &str, kind: Kind) -> Result<(Probe, u64)> {
        let len = if name == "file" { self.size() } else { 2 * AU };
        let mut probe = Probe::start()?;
        let address = expect_value(probe.map(&self.fs.path(name), len, kind)?)?;
        for at in (0..len).step_by(AU as usize) {
            expect_value(probe.get(at)?)?;
        }
        Ok((probe, address))
    }

    /// Number of the memory's page that has the byte `at` of "file".
    pub fn pfn(&self, at: u64) -> Result<u64> {
        self.pfn_in("file", at)
    }

    /// The same for any of the files.
    pub fn pfn_in(&self, name: &str, at: u64) -> Result<u64> {
        let (device, offset) = self.place(name, at)?;
        Ok(self.ready.raw(device)?.pfn(offset))
    }

    /// Index of the device that has the byte `at` of a file, and where there.
    fn place(&self, name: &str, at: u64) -> Result<(u32, u64)> {
        let mut files = NAMES.into_iter().zip(&self.fmaps);
        let (_, fmap) = files.find(|(known, _)| *known == name).context("no file")?;
        fmap.locate(at).context("past the end of the file")
    }

    /// The file can be read and mapped, byte for byte, but for the page at `lost`.
    pub fn expect_the_rest(&self, lost: Option<u64>) -> Result<()> {
        let file = self.fs.open("file")?;
        let mapping = Mapping::new(&file, 0, self.size() as usize, Kind::SharedRead)?;
        let hole = lost.map_or(self.size()..self.size(), |at| at..at + PAGE);
        for (from, to) in [(0, hole.start), (hole.end, self.size())] {
            for at in (from..to).step_by(AU as usize) {
                let len = AU.min(to - at) as usize;
                expect_bytes(&file, &mapping, at, len)?;
            }
        }
        let neighbour = self.fs.open("neighbour")?;
        let mapping = Mapping::new(&neighbour, 0, 2 * AU as usize, Kind::SharedRead)?;
        expect_bytes(&neighbour, &mapping, 0, 2 * AU as usize).context("the neighbour")
    }
}

/// Runs `test` on a mount of policy `device`, and on one of policy `range`.
pub fn with_each_policy(
    guest: &Guest,
    channel: &mut Channel,
    test: fn(Setup, &mut Channel, u16) -> Result<()>,
) -> Result<()> {
    for policy in [DEVICE, RANGE] {
        channel.step(&format!("failure_policy {policy}"));
        Setup::new(guest, policy)
            .and_then(|setup| test(setup, channel, policy))
            .with_context(|| format!("failure_policy {policy}"))?;
    }
    Ok(())
}

/// Both ways to the bytes of a file from `at` on lead to its pattern.
pub fn expect_bytes(file: &File, mapping: &Mapping, at: u64, len: usize) -> Result<()> {
    let want = pattern(at, len);
    let mut got = vec![0; len];
    ensure_eq!(file.read_at(&mut got, at)?, len, "pread at {at:#x}");
    for (how, got) in [
        ("pread", got),
        ("the mapping", mapping.read(at as usize, len)),
    ] {
        if let Some(difference) = first_difference(&got, &want) {
            anyhow::bail!("{how} at {at:#x}: {difference}");
        }
    }
    Ok(())
}

/// Touches the lost page at `at` of the mapping at `address`, byte 9, which must say so exactly.
pub fn expect_lost(user: &mut Probe, address: u64, at: u64) -> Result<()> {
    let lost = Reply::Sigbus(libc::BUS_MCEERR_AR, (address + at + 9) as usize);
    ensure_eq!(user.get(at + 9)?, lost, "a load from the lost page");
    ensure_eq!(
        user.lsb(),
        Some(PAGE_LSB),
        "si_addr_lsb of a load from the lost page"
    );
    Ok(())
}

/// Has the kernel told of a memory error in a page by nobody who uses it, as a patrol scrubber does.
pub fn report_error(pfn: u64) -> Result<()> {
    let written = std::fs::write(CORRUPT_PFN, format!("{pfn:#x}"));
    written.with_context(|| format!("{pfn:#x} to {CORRUPT_PFN}"))
}

/// The same by a process that has nothing mapped: who reports an error in a page that he has mapped himself is killed.
pub fn report_apart(pfn: u64) -> Result<()> {
    let command = format!("echo {pfn:#x} > {CORRUPT_PFN}");
    let status = Command::new("busybox")
        .args(["sh", "-c", &command])
        .status()?;
    ensure!(status.success(), "{command}: {status}");
    Ok(())
}

/// What debugfs shows of the first device: its state, and the ranges that are lost.
pub fn shown(fs: &TestFs) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(debugfs_file(&fs.path("."))?)?;
    let lines = text.lines().filter_map(|line| match line.split_once(' ') {
        Some(("daxdev", rest)) => rest.split_once(" state=").map(|(_, state)| state),
        Some(("poison", range)) => Some(range),
        _ => None,
    });
    Ok(lines.map(str::to_owned).collect())
}

/// Policy `range`: of a file that two processes have mapped, one page goes.
fn one_page_is_lost(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mut setup = Setup::new(guest, RANGE)?;
    let at = setup.size() / 2 + AU / 2 + 5 * PAGE;
    let (mut met, met_address) = setup.user("file", Kind::SharedWrite)?;
    let (mut other, other_address) = setup.user("file", Kind::SharedWrite)?;
    let (mut reader, _) = setup.user("file", Kind::SharedRead)?;
    let (mut neighbour, _) = setup.user("neighbour", Kind::SharedWrite)?;

    let hit = Reply::Sigbus(libc::BUS_MCEERR_AR, (met_address + at) as usize);
    ensure_eq!(met.poison(at)?, hit, "the process that met the error");
    ensure_eq!(
        met.lsb(),
        Some(AU_LSB),
        "si_addr_lsb there: all that was unmapped"
    );
    expect_lost(&mut other, other_address, at).context("the other process")?;

    let end = setup.size();
    ensure_eq!(
        reader.pread(at - 100, end)?,
        Reply::Value(100),
        "pread up to the lost page"
    );
    ensure_eq!(
        reader.pread(at, end)?,
        Reply::Errno(EHWPOISON),
        "pread from it on"
    );
    ensure_eq!(
        reader.pread(at + PAGE - 1, 1)?,
        Reply::Errno(EHWPOISON),
        "pread of its last byte"
    );
    ensure_eq!(
        reader.pread(at + PAGE, end)?,
        Reply::Value(end - at - PAGE),
        "pread behind it"
    );
    setup.expect_the_rest(Some(at))?;
    ensure_eq!(neighbour.set(AU, 1)?, Reply::Value(0), "the neighbour");

    // 2 MiB at once everywhere but around the page.
    let file = setup.fs.open("file")?;
    let mapping = Mapping::new(&file, 0, end as usize, Kind::SharedRead)?;
    let unit = at / AU * AU;
    for near in (0..end).step_by(AU as usize).chain([at - 1, at + PAGE]) {
        mapping.byte(near as usize);
    }
    let base = mapping.address() as u64;
    let huge: u64 = scan_pages(&mapping)?
        .iter()
        .filter(|region| region.categories & PAGE_IS_HUGE != 0)
        .inspect(|region| assert!(region.end <= base + unit || region.start >= base + unit + AU))
        .map(|region| region.end - region.start)
        .sum();
    ensure_eq!(huge, end - AU, "bytes in entries of 2 MiB");

    let mut writer = reader;
    drop((mapping, file));
    expect_value(writer.map(&setup.fs.path("file"), end, Kind::SharedWrite)?)?;
    ensure_eq!(
        writer.pwrite(at - 64, 128)?,
        Reply::Value(64),
        "pwrite up to it"
    );
    ensure_eq!(
        writer.pwrite(at, 1)?,
        Reply::Errno(EHWPOISON),
        "pwrite to it"
    );
    ensure_eq!(
        shown(&setup.fs)?[..2],
        [
            "failed policy=range".to_owned(),
            format!("offset={:#x} len=0x1000", FILE_AT + at)
        ],
        "debugfs"
    );

    // Around it pages of 4 KiB are mapped by now, and the next error takes one of them.
    let next = at + 2 * PAGE;
    let (mut met, met_address) = setup.user("file", Kind::SharedWrite)?;
    let hit = Reply::Sigbus(libc::BUS_MCEERR_AR, (met_address + next) as usize);
    ensure_eq!(met.poison(next)?, hit, "who met the next error");
    ensure_eq!(met.lsb(), Some(PAGE_LSB), "si_addr_lsb there");
    drop((met, other, writer, neighbour));
    setup.fs.umount().context("umount after the errors")
}

/// Policy `device`, asked for by the server: the neighbour is lost as well, but for what somebody has mapped already. Of
/// that the 2 MiB entry goes in which the error is.
fn the_device_is_lost(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mut setup = Setup::new(guest, DEVICE)?;
    let at = AU + 7 * PAGE;
    let (mut met, met_address) = setup.user("file", Kind::SharedWrite)?;
    let (mut other, other_address) = setup.user("file", Kind::SharedWrite)?;
    let (mut idle, idle_address) = setup.user("file", Kind::SharedRead)?;
    let (mut beside, beside_address) = setup.user("file", Kind::SharedRead)?;
    let (mut neighbour, _) = setup.user("neighbour", Kind::SharedWrite)?;
    // Mapped for stores as well.
    let store = |neighbour: &mut Probe| neighbour.set(7, pattern(7, 1)[0]);
    ensure_eq!(store(&mut neighbour)?, Reply::Value(0), "a store");
    let size = setup.size();
    let present = idle.present(idle_address, size)?;
    ensure_eq!(present, (size, size), "bytes present at first");
    let hit = Reply::Sigbus(libc::BUS_MCEERR_AR, (met_address + at) as usize);
    ensure_eq!(met.poison(at)?, hit, "the process that met the error");
    expect_lost(&mut other, other_address, at).context("the other process")?;
    let present = idle.present(idle_address, size)?;
    ensure_eq!(present, (size - AU, size - AU), "bytes present afterwards");
    let expect_still = |user: &mut Probe, at: u64, len: u64| -> Result<()> {
        let bytes = Reply::Value(digest(&pattern(at, len as usize)));
        ensure_eq!(user.digest(at, len)?, bytes, "mapped bytes from {at:#x} on");
        Ok(())
    };
    expect_still(&mut idle, 0, AU)?;
    expect_still(&mut idle, 2 * AU, size - 2 * AU)?;
    expect_still(&mut neighbour, 0, 2 * AU).context("the neighbour")?;
    let stored = store(&mut neighbour)?;
    ensure_eq!(stored, Reply::Value(0), "a store to what is mapped");
    for (user, address, at) in [
        (&mut idle, idle_address, AU),
        (&mut beside, beside_address, at + PAGE),
    ] {
        let fault = Reply::Sigbus(libc::BUS_ADRERR, (address + at) as usize);
        ensure_eq!(user.get(at)?, fault, "another page of the 2 MiB");
    }
    for name in ["file", "neighbour"] {
        let mut user = Probe::start()?;
        let address = expect_value(user.map(&setup.fs.path(name), AU, Kind::SharedWrite)?)?;
        let errno = Reply::Errno(EHWPOISON);
        ensure_eq!(user.pread(0, 64)?, errno, "pread of {name}");
        ensure_eq!(user.pwrite(AU - 64, 64)?, errno, "pwrite of {name}");
        let fault = Reply::Sigbus(libc::BUS_ADRERR, (address + 5) as usize);
        ensure_eq!(user.get(5)?, fault, "a fault in {name}");
    }
    ensure_eq!(shown(&setup.fs)?[0], "failed policy=device", "debugfs");
    drop((met, other, idle, beside, neighbour));
    setup.fs.umount().context("umount after the error")
}

/// Reports an error in a page that a process has mapped who wants to be told at once.
fn expect_early_signal(setup: &Setup, at: u64, lsb: u8) -> Result<()> {
    let (mut early, address) = setup.user("file", Kind::SharedRead)?;
    expect_value(early.get(at)?)?;
    ensure_eq!(early.ask_for_early_kill()?, Reply::Value(0), "PR_MCE_KILL");
    report_error(setup.pfn(at)?)?;
    let told = Reply::Sigbus(libc::BUS_MCEERR_AO, (address + at) as usize);
    ensure_eq!(early.answer()?, told, "the early signal");
    ensure_eq!(early.lsb(), Some(lsb), "si_addr_lsb of the early signal");
    Ok(())
}

/// An error that was found before anybody used the page: who has it mapped is told by the next access, or at once if
/// he asked for that. A private copy is not the page.
fn nobody_met_it(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mut setup = Setup::new(guest, RANGE)?;
    let at = AU + 3 * PAGE;
    let (mut first, first_address) = setup.user("file", Kind::SharedWrite)?;
    let (mut second, second_address) = setup.user("file", Kind::SharedRead)?;
    let (mut copier, _) = setup.user("file", Kind::Private)?;
    ensure_eq!(copier.set(at, 77)?, Reply::Value(0), "a private copy");
    expect_early_signal(&setup, at, AU_LSB)?;
    expect_lost(&mut first, first_address, at).context("one process")?;
    expect_lost(&mut second, second_address, at).context("another process")?;
    ensure_eq!(copier.get(at)?, Reply::Value(77), "the private copy");
    setup.expect_the_rest(Some(at))?;

    // The same once more, with nobody there who wants to be told at once.
    let at = at + AU / 2;
    let (mut third, third_address) = setup.user("file", Kind::SharedWrite)?;
    ensure!(matches!(third.get(at)?, Reply::Value(_)), "a good page");
    report_error(setup.pfn(at)?)?;
    expect_lost(&mut third, third_address, at).context("with nobody to be told")?;

    // And once more, where pages of 4 KiB are mapped.
    expect_early_signal(&setup, at + 2 * PAGE, PAGE_LSB)?;
    drop((first, second, third, copier));
    setup.fs.umount().context("umount after the errors")
}

/// Two errors are reported at the same time, in two files, again and again. The kernel tells the holder of a device of
/// one after the other; each counts when its report has returned, and nothing is lost but what was reported.
fn two_errors_at_once(guest: &Guest, channel: &mut Channel) -> Result<()> {
    const ROUNDS: u64 = 20;
    with_each_policy(guest, channel, |mut setup, _, policy| {
        let barrier = Arc::new(Barrier::new(2));
        let report = |name: &str| -> Result<JoinHandle<Result<()>>> {
            let (file, barrier) = (setup.fs.open(name)?, Arc::clone(&barrier));
            let pfn = setup.pfn_in(name, 0)?;
            Ok(std::thread::spawn(move || {
                for page in (0..ROUNDS).map(|round| 2 * round) {
                    barrier.wait();
                    report_error(pfn + page)?;
                    let lost = read_errno(&file, page * PAGE);
                    ensure_eq!(lost, EHWPOISON, "pread of lost page {page}");
                    let behind = [EHWPOISON, 0][usize::from(policy == RANGE)];
                    let errno = read_errno(&file, (page + 1) * PAGE);
                    ensure_eq!(errno, behind, "pread behind lost page {page}");
                }
                Ok(())
            }))
        };
        for thread in [report("file")?, report("neighbour")?] {
            let done = thread.join();
            done.map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        let mut lost = Vec::new();
        for name in ["file", "neighbour"] {
            for round in 0..ROUNDS {
                let (_, at) = setup.place(name, 2 * round * PAGE)?;
                lost.push(format!("offset={at:#x} len=0x1000"));
            }
        }
        ensure_eq!(shown(&setup.fs)?[1..], lost, "debugfs");
        ensure_eq!(setup.forget()?, Ok(()), "to forget the errors");
        setup.expect_the_rest(None)?;
        setup.fs.umount().context("umount after the errors")
    })
}

/// 0 if eight bytes can be read there.
pub fn read_errno(file: &File, at: u64) -> i32 {
    let read = file.read_at(&mut [0; 8], at);
    read.err()
        .and_then(|error| error.raw_os_error())
        .unwrap_or(0)
}
