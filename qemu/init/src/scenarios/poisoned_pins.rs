// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory errors in pages that somebody has pinned: whoever pinned them keeps them, nobody pins them again, and neither
//! unmounting nor the next mount minds.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use anyhow::{ensure, Context, Result};
use rustix::mount::UnmountFlags;

use super::fixture::{ensure_eq, pattern};
use super::pins::Background;
use super::poison::{
    expect_lost, read_errno, report_error, shown, with_each_policy, Setup, EHWPOISON, FILE_AT,
    PAGE, RANGE,
};
use super::Test;
use crate::channel::Channel;
use crate::fmap::AU;
use crate::probe::Reply;
use crate::runner::Guest;
use crate::server::{Serve, ServedFile, PLAIN_BYTE};
use crate::stopping::StoppingFs;
use crate::sys::{Kind, Mapping};
use crate::wire;

pub const TESTS: &[(&str, Test)] = &[
    ("pipes_keep_their_pages", pipes_keep_their_pages),
    ("direct_io_reaches_its_pages", direct_io_reaches_its_pages),
    ("made_good_while_pinned", made_good_while_pinned),
];

/// Where the page is that fails, in the middle of 2 MiB.
const AT: u64 = AU + 5 * PAGE;
/// What a pipe gets: the page that fails, with one before it and one behind.
const PINNED: u64 = 3 * PAGE;

/// Puts the pages around `AT` into a new pipe; gives the number of bytes, or an errno, and the pipe. Nothing stays
/// mapped: who maps a page and reports an error in it is taken for the one who met it.
fn pin(setup: &Setup, at: u64, len: u64) -> Result<(std::result::Result<usize, i32>, OwnedFd)> {
    let file = setup.fs.open("file")?;
    let mapping = Mapping::new(&file, 0, 2 * AU as usize, Kind::SharedRead)?;
    let (out, into) = rustix::pipe::pipe()?;
    let count = mapping.vmsplice(at as usize, len as usize, &into);
    Ok((
        count.map_err(|error| error.raw_os_error().unwrap_or(0)),
        out,
    ))
}

/// A pipe with the pages around `AT`.
fn pinned(setup: &Setup) -> Result<OwnedFd> {
    let (count, pipe) = pin(setup, AT - PAGE, PINNED)?;
    ensure_eq!(count, Ok(PINNED as usize), "bytes spliced");
    Ok(pipe)
}

/// All that was put into the pipe comes out of it.
fn expect_delivery(pipe: OwnedFd) -> Result<()> {
    let mut bytes = Vec::new();
    File::from(pipe).read_to_end(&mut bytes)?;
    ensure!(
        bytes == pattern(AT - PAGE, PINNED as usize),
        "the pipe has other bytes than it was given"
    );
    Ok(())
}

/// What is in a pipe stays there. No more of the lost page gets into one, nor of what else the policy takes away.
/// Eviction waits for a pin as ever, and the next mount has the file.
fn pipes_keep_their_pages(guest: &Guest, channel: &mut Channel) -> Result<()> {
    with_each_policy(guest, channel, |mut setup, _, policy| {
        let (first, second) = (pinned(&setup)?, pinned(&setup)?);
        let (mut user, address) = setup.user("file", Kind::SharedWrite)?;
        let (mut reader, _) = setup.user("file", Kind::SharedRead)?;
        report_error(setup.pfn(AT)?)?;
        expect_lost(&mut user, address, AT)?;
        ensure_eq!(
            reader.pread(AT, PAGE)?,
            Reply::Errno(EHWPOISON),
            "pread of the lost page"
        );
        let before =
            [Reply::Errno(EHWPOISON), Reply::Value(PAGE)][usize::from(policy == RANGE)].clone();
        ensure_eq!(reader.pread(AT - PAGE, PINNED)?, before, "pread before it");
        let (again, _) = pin(&setup, AT, PAGE)?;
        ensure_eq!(again, Err(libc::EFAULT), "vmsplice of the lost page");
        let (behind, _) = pin(&setup, AT + PAGE, PAGE)?;
        let expected = [Err(libc::EFAULT), Ok(PAGE as usize)][usize::from(policy == RANGE)];
        ensure_eq!(behind, expected, "vmsplice of the page behind it");
        expect_delivery(first)?;
        drop((user, reader));
        let umount = Background::umount(&mut setup.fs)?;
        umount.expect_waiting()?;
        expect_delivery(second)?;
        umount.join().context("umount after the pin")?;
        setup.mount_again()?;
        setup.expect_the_rest(None)?;
        setup.fs.umount().context("umount of the next mount")
    })
}

/// A read with O_DIRECT whose answer comes when one of its two pages is lost: it is done, and what it has read is in
/// both. The next one is not begun.
fn direct_io_reaches_its_pages(guest: &Guest, channel: &mut Channel) -> Result<()> {
    with_each_policy(guest, channel, |mut setup, _, policy| {
        let plain = Serve {
            plain: true,
            ..Serve::new(&[], vec![ServedFile::new("source", &setup.fmaps[1])])
        };
        let mut plain = StoppingFs::mount(&plain, &[], wire::READ)?;
        let (mut pinner, address) = setup.user("file", Kind::SharedWrite)?;
        pinner.start_direct_read(&plain.path("source"), AT, 2 * PAGE)?;
        plain.wait_until_stopped()?;
        report_error(setup.pfn(AT)?)?;
        let file = setup.fs.open("file")?;
        ensure_eq!(read_errno(&file, AT), EHWPOISON, "pread meanwhile");
        plain.go_on()?;
        ensure_eq!(pinner.answer()?, Reply::Value(2 * PAGE), "bytes read");
        ensure!(
            setup
                .ready
                .raw_bytes(&setup.fmaps[0], AT, 2 * PAGE as usize)?
                == [PLAIN_BYTE; 2 * PAGE as usize],
            "what was read is not in the memory"
        );
        pinner.start_direct_read(&plain.path("source"), AT, PAGE)?;
        let refused = Reply::Errno(libc::EFAULT);
        ensure_eq!(pinner.answer()?, refused, "a read into the lost page");
        if policy == RANGE {
            let byte = Reply::Value(PLAIN_BYTE.into());
            ensure_eq!(pinner.get(AT + PAGE)?, byte, "the other page");
        }
        expect_lost(&mut pinner, address, AT)?;
        drop((pinner, file));
        plain
            .umount(UnmountFlags::empty())
            .context("umount of the source")?;
        setup.fs.umount().context("umount after the error")?;
        setup.mount_again()?;
        let mut bytes = [0; 2 * PAGE as usize];
        let file = setup.fs.open("file")?;
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, AT)?;
        ensure!(
            bytes == [PLAIN_BYTE; 2 * PAGE as usize],
            "the next mount shows other bytes"
        );
        drop(file);
        setup.fs.umount().context("umount of the next mount")
    })
}

/// Errors are forgotten while their page is in a pipe: the page is used as before, by all, and can fail again.
fn made_good_while_pinned(guest: &Guest, channel: &mut Channel) -> Result<()> {
    with_each_policy(guest, channel, |mut setup, _, _| {
        let pipe = pinned(&setup)?;
        let (mut user, address) = setup.user("file", Kind::SharedWrite)?;
        let (mut patient, patient_address) = setup.user("file", Kind::SharedWrite)?;
        report_error(setup.pfn(AT)?)?;
        expect_lost(&mut user, address, AT)?;
        ensure_eq!(setup.forget()?, Ok(()), "to forget the error");
        setup.expect_the_rest(None)?;
        let byte = Reply::Value(pattern(AT + 9, 1)[0].into());
        ensure_eq!(patient.get(AT + 9)?, byte, "a mapping of before");
        let again = pinned(&setup)?;
        report_error(setup.pfn(AT)?)?;
        let range = format!("offset={:#x} len=0x1000", FILE_AT + AT);
        ensure_eq!(
            shown(&setup.fs)?[1..],
            [range],
            "debugfs after the next error"
        );
        expect_lost(&mut patient, patient_address, AT).context("the next error")?;
        expect_delivery(pipe)?;
        expect_delivery(again)?;
        ensure_eq!(setup.forget()?, Ok(()), "to forget the next error");
        setup.expect_the_rest(None)?;
        drop((user, patient));
        setup.fs.umount().context("umount")
    })
}
