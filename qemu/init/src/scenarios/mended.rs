// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory that failed and is good again: who may say so, and that everything uses it as before.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use anyhow::{anyhow, ensure, Context, Result};
use serde_json::{json, Value};

use super::fixture::{ensure_eq, pattern};
use super::poison::{
    expect_lost, read_errno, report_error, shown, with_each_policy, Setup, EHWPOISON, FILE_AT,
    PAGE, RANGE,
};
use super::tool::{at, source, umount, Mounted, MOUNTPOINT};
use super::Test;
use crate::channel::Channel;
use crate::fmap::AU;
use crate::probe::Reply;
use crate::runner::Guest;
use crate::sys::Kind;
use crate::tool::{drop_rawio, famfs, getmap, run};

pub const TESTS: &[(&str, Test)] = &[
    ("forgotten_errors", forgotten_errors),
    ("to_forget_takes_rawio", to_forget_takes_rawio),
    ("cleared_by_the_tool", cleared_by_the_tool),
];

/// For guests with a CXL memory device.
pub const CXL: &[(&str, Test)] = &[("poison_in_the_device", poison_in_the_device)];

/// The server says that the memory is good again: files, mappings and the kernel use it as before.
fn forgotten_errors(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mut setup = Setup::new(guest, RANGE)?;
    let at = AU + 9 * PAGE;
    let (mut user, address) = setup.user("file", Kind::SharedWrite)?;
    let (mut patient, _) = setup.user("file", Kind::SharedWrite)?;
    report_error(setup.pfn(at)?)?;
    expect_lost(&mut user, address, at)?;

    let device = File::open(setup.ready.paths.first().context("no daxdev")?)?;
    let none = setup.forget_of(-1, 0);
    ensure_eq!(none, Err(libc::EBADF), "to forget without a device");
    let elsewhere = setup.forget_of(device.as_raw_fd(), 1);
    ensure_eq!(
        elsewhere,
        Err(libc::ENOENT),
        "to forget the errors of an index without a device"
    );
    ensure_eq!(
        patient.pread(at, 8)?,
        Reply::Errno(EHWPOISON),
        "pread after neither"
    );
    ensure_eq!(setup.forget()?, Ok(()), "to forget the errors");

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

/// Who has the server's descriptor, but not CAP_SYS_RAWIO, can't call broken memory good.
fn to_forget_takes_rawio(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mut setup = Setup::new(guest, RANGE)?;
    let file = setup.fs.open("file")?;
    report_error(setup.pfn(0)?)?;
    std::thread::scope(|scope| {
        // The thread's own capabilities are gone with it.
        let unprivileged = scope.spawn(|| {
            drop_rawio()?;
            ensure_eq!(
                setup.forget()?,
                Err(libc::EPERM),
                "to forget without CAP_SYS_RAWIO"
            );
            Ok(())
        });
        unprivileged
            .join()
            .map_err(|_| anyhow!("the thread panicked"))?
    })?;
    ensure_eq!(read_errno(&file, 0), EHWPOISON, "pread after that");
    ensure_eq!(setup.forget()?, Ok(()), "to forget with it");
    ensure_eq!(read_errno(&file, 0), 0, "pread after this");
    drop(file);
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
    let shown = json!({ "device": device, "offset": hit, "len": 0x1000 });
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
    with_each_policy(guest, channel, poison_and_clear)
}

fn poison_and_clear(mut setup: Setup, channel: &mut Channel, policy: u16) -> Result<()> {
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
    let (mut reader, _) = setup.user("file", Kind::SharedWrite)?;
    report_error(setup.pfn(at)?)?;
    expect_lost(&mut user, user_address, at)?;
    expect_lost(&mut other, other_address, at).context("the other process")?;
    let errno = Reply::Errno(EHWPOISON);
    let unless_device = |count| match policy {
        RANGE => Reply::Value(count),
        _ => Reply::Errno(EHWPOISON),
    };
    for (what, pos, len, reply) in [
        ("across its begin", at - 100, 2 * PAGE, unless_device(100)),
        ("from its begin on", at, 2 * PAGE, errno.clone()),
        ("of the poison", at + 128, 64, errno.clone()),
        ("of its last byte", at + PAGE - 1, 2, errno.clone()),
        ("behind it", at + PAGE, PAGE, unless_device(PAGE)),
    ] {
        ensure_eq!(reader.pread(pos, len)?, reply, "pread {what}");
    }
    ensure_eq!(reader.pwrite(at + 128, 64)?, errno, "pwrite of the poison");
    if policy == RANGE {
        setup.expect_the_rest(Some(at))?;
    }
    drop((user, other, reader));

    let clear = "/sys/kernel/debug/cxl/mem0/clear_poison";
    std::fs::write(clear, format!("{address:#x}")).context(clear)?;
    ensure_eq!(media_errors()?, json!([]), "media errors in the end");
    ensure_eq!(setup.forget()?, Ok(()), "to forget the error");
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
