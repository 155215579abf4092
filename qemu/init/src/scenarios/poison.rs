// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a memory error takes away, to the byte: who is told, what stays, and how it comes back.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::Arc;

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};

use super::faults::expect_value;
use super::fixture::{ensure_eq, first_difference, pattern, ready, Ready};
use super::tool::{at, source, umount, Mounted, MOUNTPOINT};
use super::Test;
use crate::channel::Channel;
use crate::fmap::{extent, Fmap, AU};
use crate::probe::{Probe, Reply};
use crate::runner::Guest;
use crate::server::{ServedFile, TestFs};
use crate::sys::{scan_pages, Kind, Mapping, PAGE_IS_HUGE};
use crate::tool::{debugfs_file, famfs, getmap, run};

pub const TESTS: &[(&str, Test)] = &[
    ("one_page_is_lost", one_page_is_lost),
    ("the_device_is_lost", the_device_is_lost),
    ("nobody_met_it", nobody_met_it),
    ("open_while_memory_fails", open_while_memory_fails),
    ("access_while_memory_fails", access_while_memory_fails),
    ("forgotten_errors", forgotten_errors),
    ("cleared_by_the_tool", cleared_by_the_tool),
];

/// For guests with a CXL memory device.
pub const CXL: &[(&str, Test)] = &[("poison_in_the_device", poison_in_the_device)];

const EHWPOISON: i32 = libc::EHWPOISON;
const PAGE: u64 = 4096;
/// log2 of PAGE and of AU, as si_addr_lsb has it.
const PAGE_LSB: u8 = 12;
const AU_LSB: u8 = 21;
/// failure_policy in GET_DAXDEV's answer, and what the server's ioctl asks to forget errors with.
const DEVICE: u16 = 1;
const RANGE: u16 = 2;
const FORGET: u32 = 4;
/// Where the file lies on device 0; its neighbour is right behind it.
const FILE_AT: u64 = 64 << 20;

/// A mount with a file and its neighbour, both with their patterns in the memory.
struct Setup {
    ready: Ready,
    fmaps: [Fmap; 2],
    fs: TestFs,
}

impl Setup {
    fn new(guest: &Guest, policy: u16) -> Result<Self> {
        let ready = ready(guest)?;
        // Every access to CXL memory is emulated, slowly.
        let size = if guest.fast { 32 * AU } else { 3 * AU };
        let fmaps = [(FILE_AT, size), (FILE_AT + size, 2 * AU)]
            .map(|(at, size)| Fmap::simple(size, &[extent(0, at, size)]));
        for fmap in &fmaps {
            ready.fill(fmap)?;
        }
        let [file, neighbour] = &fmaps;
        let files = vec![
            ServedFile::new("file", file),
            ServedFile::new("neighbour", neighbour),
        ];
        let fs = TestFs::mount(ready.serve(files).with_policy(policy))?;
        Ok(Self { ready, fmaps, fs })
    }

    fn size(&self) -> u64 {
        self.fmaps[0].size
    }

    /// A process that has a file mapped and all of it touched, with the mapping's address.
    fn user(&self, name: &str, kind: Kind) -> Result<(Probe, u64)> {
        let len = if name == "file" { self.size() } else { 2 * AU };
        let mut probe = Probe::start()?;
        let address = expect_value(probe.map(&self.fs.path(name), len, kind)?)?;
        for at in (0..len).step_by(AU as usize) {
            expect_value(probe.get(at)?)?;
        }
        Ok((probe, address))
    }

    /// Number of the memory's page that has the byte `at` of the file.
    fn pfn(&self, at: u64) -> Result<u64> {
        Ok(self.ready.raw(0)?.pfn(FILE_AT + at))
    }

    /// The file can be read and mapped, byte for byte, but for the page at `lost`.
    fn expect_the_rest(&self, lost: Option<u64>) -> Result<()> {
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

/// Both ways to the bytes of a file from `at` on lead to its pattern.
fn expect_bytes(file: &File, mapping: &Mapping, at: u64, len: usize) -> Result<()> {
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
fn expect_lost(user: &mut Probe, address: u64, at: u64) -> Result<()> {
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
fn report_error(pfn: u64) -> Result<()> {
    let file = "/sys/kernel/debug/hwpoison/corrupt-pfn";
    std::fs::write(file, format!("{pfn:#x}")).with_context(|| format!("{pfn:#x} to {file}"))
}

/// What debugfs shows of the first device: its state, and the ranges that are lost.
fn shown(fs: &TestFs) -> Result<Vec<String>> {
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
    drop((met, other, writer, neighbour));
    setup.fs.umount().context("umount after the error")
}

/// Policy `device`, asked for by the server: the neighbour is lost as well.
fn the_device_is_lost(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mut setup = Setup::new(guest, DEVICE)?;
    let at = AU + 7 * PAGE;
    let (mut met, met_address) = setup.user("file", Kind::SharedWrite)?;
    let (mut other, other_address) = setup.user("file", Kind::SharedWrite)?;
    let hit = Reply::Sigbus(libc::BUS_MCEERR_AR, (met_address + at) as usize);
    ensure_eq!(met.poison(at)?, hit, "the process that met the error");
    expect_lost(&mut other, other_address, at).context("the other process")?;
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
    drop((met, other));
    setup.fs.umount().context("umount after the error")
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
    let (mut early, early_address) = setup.user("file", Kind::SharedRead)?;
    ensure_eq!(early.ask_for_early_kill()?, Reply::Value(0), "PR_MCE_KILL");

    report_error(setup.pfn(at)?)?;
    let told = Reply::Sigbus(libc::BUS_MCEERR_AO, (early_address + at) as usize);
    ensure_eq!(early.answer()?, told, "the early signal");
    ensure_eq!(early.lsb(), Some(AU_LSB), "si_addr_lsb of the early signal");
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
    drop((first, second, third, copier, early));
    setup.fs.umount().context("umount after the errors")
}

/// Opens of files go on while errors arrive, and each knows of those before it.
fn open_while_memory_fails(guest: &Guest, _channel: &mut Channel) -> Result<()> {
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
        let errno = |at| {
            file.read_at(&mut [0; 8], at)
                .map_err(|error| error.raw_os_error().unwrap_or(0))
        };
        ensure_eq!(errno(at), Err(EHWPOISON), "pread of lost page {round}");
        ensure_eq!(errno(at + PAGE), Ok(8), "pread behind lost page {round}");
    }
    setup.fs.umount().context("umount after the errors")
}

/// Reads and faults go on in the 2 MiB where errors arrive, one page further to the front each time. A read ends at an
/// error that was there when it began, and no fault maps the page of one.
fn access_while_memory_fails(guest: &Guest, _channel: &mut Channel) -> Result<()> {
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
        report_error(setup.pfn(AU + at)?)?;
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

/// The server says that the memory is good again: files, mappings and the kernel use it as before.
fn forgotten_errors(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mut setup = Setup::new(guest, RANGE)?;
    let at = AU + 9 * PAGE;
    let (mut user, address) = setup.user("file", Kind::SharedWrite)?;
    let (mut patient, _) = setup.user("file", Kind::SharedWrite)?;
    report_error(setup.pfn(at)?)?;
    expect_lost(&mut user, address, at)?;

    let device = File::open(setup.ready.paths.first().context("no daxdev")?)?;
    let forget = |fd: i32, index| {
        let done = setup.fs.push_raw(fd, FORGET, index);
        done.map_err(|error| error.raw_os_error().unwrap_or(0))
    };
    ensure_eq!(
        forget(-1, 0),
        Err(libc::EBADF),
        "to forget without a device"
    );
    ensure_eq!(
        forget(device.as_raw_fd(), 1),
        Err(libc::ENOENT),
        "to forget the errors of an index without a device"
    );
    ensure_eq!(
        patient.pread(at, 8)?,
        Reply::Errno(EHWPOISON),
        "pread after neither"
    );
    ensure_eq!(
        forget(device.as_raw_fd(), 0),
        Ok(()),
        "to forget the errors"
    );

    ensure_eq!(shown(&setup.fs)?, ["ok policy=range"], "debugfs");
    let byte = Reply::Value(pattern(at + 9, 1)[0].into());
    ensure_eq!(
        patient.get(at + 9)?,
        byte,
        "a load from a mapping of before"
    );
    setup.expect_the_rest(None)?;
    ensure_eq!(patient.pwrite(at, PAGE)?, Reply::Value(PAGE), "pwrite");

    report_error(setup.pfn(at)?)?;
    ensure_eq!(
        patient.pread(at, 8)?,
        Reply::Errno(EHWPOISON),
        "pread after the next error"
    );
    drop((user, patient));
    setup.fs.umount().context("umount")
}

/// `famfs mount --failure range`, an error, its place in `famfs status`, `famfs clear-error`.
fn cleared_by_the_tool(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mounted = Mounted::new(guest, 1)?;
    umount()?;
    let device = mounted.ready.paths.first().context("no daxdev")?.clone();
    famfs(&["mount", "--failure", "range", &device, MOUNTPOINT])?;
    famfs(&["cp", &source("lost", 2 * AU)?, MOUNTPOINT])?;
    let (_, offset, _) = *getmap(&at("lost"))?.first().context("no extent")?;
    let hit = offset + 5 * PAGE;
    report_error(mounted.ready.raw(0)?.pfn(hit))?;
    let errno = |pos| {
        let file = File::open(at("lost"))?;
        let read = file.read_at(&mut [0; 8], pos);
        anyhow::Ok(read.err().and_then(|error| error.raw_os_error()))
    };
    ensure_eq!(errno(5 * PAGE)?, Some(EHWPOISON), "pread of the lost page");
    ensure_eq!(errno(6 * PAGE)?, None, "pread behind it");
    let status: Value = serde_json::from_str(&famfs(&["status", "--json", MOUNTPOINT])?)?;
    ensure_eq!(status["failure"], "range", "the policy that status shows");
    let shown = json!({ "device": device, "offset": format!("{hit:#x}"), "len": "0x1000" });
    let failures = &status["kernel"]["failures"];
    ensure_eq!(failures[1], shown, "the range that status shows");
    let said = famfs(&["clear-error", MOUNTPOINT])?;
    ensure!(said.contains(&device), "clear-error says {said:?}");
    ensure_eq!(errno(5 * PAGE)?, None, "pread after clear-error");
    famfs(&["chkread", &at("lost")])?;
    umount()?;
    run("famfs", &["clear-error", MOUNTPOINT])?.expect_failure(3, "neither mount point nor device")
}

/// Poison that QEMU puts into the CXL device: it is in the device's list of media errors, memory_failure() at its
/// address has the answers of any other memory, and what the device clears is used again.
fn poison_in_the_device(guest: &Guest, channel: &mut Channel) -> Result<()> {
    let mut setup = Setup::new(guest, RANGE)?;
    let at = AU + 11 * PAGE;
    // One device, one region, no interleaving: dax offset and device address are one.
    let address = FILE_AT + at + 128;
    ensure_eq!(media_errors()?, json!([]), "media errors at first");
    channel.qmp(&json!({
        "execute": "cxl-inject-poison",
        "arguments": { "path": "/machine/peripheral/cxl-vmem0", "start": address, "length": 64 },
    }))?;
    let errors = media_errors()?;
    ensure_eq!(
        errors,
        json!([{ "offset": address, "length": 64, "source": "Internal" }]),
        "media errors"
    );

    let (mut user, user_address) = setup.user("file", Kind::SharedWrite)?;
    let (mut other, other_address) = setup.user("file", Kind::SharedWrite)?;
    report_error(setup.pfn(at)?)?;
    expect_lost(&mut user, user_address, at)?;
    expect_lost(&mut other, other_address, at).context("the other process")?;
    setup.expect_the_rest(Some(at))?;
    drop((user, other));

    let clear = "/sys/kernel/debug/cxl/mem0/clear_poison";
    std::fs::write(clear, format!("{address:#x}")).context(clear)?;
    ensure_eq!(media_errors()?, json!([]), "media errors in the end");
    let device = File::open(setup.ready.paths.first().context("no daxdev")?)?;
    setup.fs.push_raw(device.as_raw_fd(), FORGET, 0)?;
    // The device has zeroed what it cleared; the file is written anew.
    let fmap = &setup.fmaps[0];
    ensure_eq!(
        setup.ready.raw_bytes(fmap, at + 128, 64)?,
        [0; 64],
        "what was cleared"
    );
    let file = setup.fs.open_rw("file")?;
    file.write_all_at(&pattern(at, PAGE as usize), at)?;
    drop(file);
    setup.expect_the_rest(None)?;
    setup.fs.umount().context("umount")
}

/// What the first memory device lists as poisoned; cxl leaves an empty list out.
fn media_errors() -> Result<Value> {
    let listed = run("cxl", &["list", "--memdev=mem0", "--media-errors"])?.expect_success()?;
    let mut listed: Value =
        serde_json::from_str(&listed).with_context(|| format!("cxl list printed {listed:?}"))?;
    Ok(match listed[0]["media_errors"].take() {
        Value::Null => json!([]),
        errors => errors,
    })
}
