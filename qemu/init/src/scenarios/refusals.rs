// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whatever the server answers to GET_FMAP and GET_DAXDEV, a bad answer fails the open, and the server sees its
//! handle released.

use anyhow::{Context, Result};

use super::fixture::{ensure_eq, one_extent, ready};
use super::Test;
use crate::channel::Channel;
use crate::dax::Driver;
use crate::fmap::{extent, header, put_extent, Extent, Fmap, Interleaved, Layout, AU};
use crate::runner::Guest;
use crate::server::{Answer, ServedFile, TestFs};
use crate::wire::{self, Bytes};

pub const TESTS: &[(&str, Test)] = &[
    ("malformed_fmaps", malformed_fmaps),
    ("errors_of_the_server", errors_of_the_server),
    ("bad_daxdevs", bad_daxdevs),
    ("device_not_in_fsdev_mode", device_not_in_fsdev_mode),
    ("device_held_by_another_mount", device_held_by_another_mount),
    ("memory_of_another_file", memory_of_another_file),
    ("a_good_file_beside_bad_ones", a_good_file_beside_bad_ones),
];

const SIMPLE: u32 = 0;
const GOOD: Extent = extent(0, 16 * AU, AU);

fn simple(size: u64, extents: &[Extent]) -> Vec<u8> {
    Fmap::simple(size, extents).message()
}

fn striped(size: u64, chunk: u64, nbytes: u64, strips: &[Extent]) -> Vec<u8> {
    let one = Interleaved {
        chunk: chunk as u32,
        nbytes,
        strips: strips.to_vec(),
    };
    Fmap {
        size,
        layout: Layout::Interleaved(vec![one]),
    }
    .message()
}

/// The message with the bytes at `at` replaced.
fn edited(mut message: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    message.splice(at..at + bytes.len(), bytes.iter().copied());
    message
}

/// (what is wrong, message, errno of the open)
fn malformed(device_size: u64) -> Vec<(&'static str, Vec<u8>, i32)> {
    let good = || simple(AU, &[GOOD]);
    let one = |offset, len| simple(AU, &[extent(0, offset, len)]);
    let two = [extent(0, 16 * AU, AU), extent(0, 18 * AU, AU)];
    let cut = |mut message: Vec<u8>, len| {
        message.truncate(len);
        message
    };
    let einval = libc::EINVAL;
    let mut list = vec![
        ("an empty reply", Vec::new(), einval),
        ("a header cut short", cut(good(), 31), einval),
        ("a header alone", cut(good(), 32), einval),
        ("extents cut short", cut(good(), 55), einval),
        (
            "strips cut short",
            cut(striped(2 * AU, AU, 2 * AU, &two), 103),
            einval,
        ),
        (
            "an interleaved extent cut short",
            cut(striped(2 * AU, AU, 2 * AU, &two), 55),
            einval,
        ),
        (
            "a message of more than 16 MiB",
            edited(good(), 12, &(16 << 20 | 1_u32).to_le_bytes()),
            libc::EFBIG,
        ),
        ("no extents", header(SIMPLE, 0, AU).0, libc::ERANGE),
        (
            "more extents than bytes",
            put_extent(header(SIMPLE, u32::MAX, AU), &GOOD).0,
            einval,
        ),
        ("an unknown extent type", edited(good(), 4, &[2]), einval),
        ("an unknown version", edited(good(), 2, &[2]), einval),
        ("an unknown file type", edited(good(), 0, &[3]), einval),
        ("a file of no bytes", simple(0, &[GOOD]), einval),
        (
            "a file larger than files can be",
            simple(1 << 63, &[GOOD]),
            einval,
        ),
        (
            "a file larger than its map",
            simple(AU + 1, &[GOOD]),
            einval,
        ),
        ("an unaligned offset", one(16 * AU + 4096, AU), einval),
        ("an unaligned length", one(16 * AU, AU + 4096), einval),
        (
            "an empty extent",
            simple(AU, &[GOOD, extent(0, 18 * AU, 0)]),
            einval,
        ),
        (
            "an extent past the device",
            one(device_size / AU * AU, AU),
            einval,
        ),
        ("an extent that wraps", one(u64::MAX - AU + 1, AU), einval),
        (
            "lengths that wrap",
            simple(
                AU,
                &[extent(0, 16 * AU, 1 << 63), extent(0, 18 * AU, 1 << 63)],
            ),
            einval,
        ),
        (
            "extents that overlap",
            simple(2 * AU, &[GOOD, GOOD]),
            einval,
        ),
        (
            "a device index of 17 bits",
            simple(AU, &[extent(1 << 16, 16 * AU, AU)]),
            einval,
        ),
    ];
    list.extend(malformed_stripes(&two));
    list
}

fn malformed_stripes(two: &[Extent]) -> Vec<(&'static str, Vec<u8>, i32)> {
    let einval = libc::EINVAL;
    let many: Vec<Extent> = (0..33)
        .map(|index| extent(0, (16 + index) * AU, AU))
        .collect();
    vec![
        ("chunks of 0 bytes", striped(2 * AU, 0, 2 * AU, two), einval),
        (
            "chunks of 1 MiB",
            striped(2 * AU, AU / 2, 2 * AU, two),
            einval,
        ),
        ("no strips", striped(2 * AU, AU, 2 * AU, &[]), einval),
        ("33 strips", striped(2 * AU, AU, 2 * AU, &many), einval),
        (
            "an interleaved extent over no bytes",
            striped(2 * AU, AU, 0, two),
            einval,
        ),
        (
            "an interleaved extent over too few bytes",
            striped(2 * AU, AU, AU, two),
            einval,
        ),
        (
            "a strip shorter than its chunks",
            striped(
                4 * AU,
                AU,
                4 * AU,
                &[extent(0, 16 * AU, AU), extent(0, 18 * AU, 3 * AU)],
            ),
            einval,
        ),
        (
            "an unaligned strip",
            striped(
                2 * AU,
                AU,
                2 * AU,
                &[extent(0, 16 * AU + 4096, AU), extent(0, 18 * AU, AU)],
            ),
            einval,
        ),
    ]
}

fn malformed_fmaps(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    let size = guest.devices.first().context("no daxdev")?.size()?;
    let cases = malformed(size);
    let file = |(index, (_, message, _)): (usize, &(_, Vec<u8>, _))| {
        ServedFile::answering(&format!("bad{index}"), AU, Answer::Bytes(message.clone()))
    };
    let fs = TestFs::mount(ready.serve(cases.iter().enumerate().map(file).collect()))?;
    for (index, (what, _, errno)) in cases.iter().enumerate() {
        ensure_eq!(
            fs.open_errno(&format!("bad{index}")),
            *errno,
            "errno of opening a file with {what}"
        );
        fs.wait_for(wire::RELEASE, index as u64 + 1)
            .context(*what)?;
    }
    Ok(())
}

fn errors_of_the_server(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    let failing = |name: &str, errno| ServedFile::answering(name, AU, Answer::Errno(errno));
    let fs = TestFs::mount(ready.serve(vec![
        failing("eio", libc::EIO),
        failing("enoent", libc::ENOENT),
    ]))?;
    ensure_eq!(
        fs.open_errno("eio"),
        libc::EIO,
        "errno of an open whose GET_FMAP gets EIO"
    );
    ensure_eq!(
        fs.open_errno("enoent"),
        libc::ENOENT,
        "errno of an open whose GET_FMAP gets ENOENT"
    );
    fs.wait_for(wire::RELEASE, 2)
}

/// (what GET_DAXDEV says, its answer, errno of the open)
fn bad_daxdev_answers() -> Vec<(&'static str, Answer, i32)> {
    let bytes = |name: &str| Answer::Bytes(wire::daxdev_out(0, name));
    vec![
        ("a short reply", Answer::Bytes(vec![0; 279]), libc::EINVAL),
        ("an empty name", bytes(""), libc::EINVAL),
        (
            "a policy that there is not",
            Answer::Bytes(Bytes::default().u16(0).u16(3).zeros(276).0),
            libc::EINVAL,
        ),
        (
            "a name without an end",
            Answer::Bytes(Bytes::default().zeros(24).bytes(&[b'x'; 256]).0),
            libc::EINVAL,
        ),
        (
            "a name that is not there",
            bytes("/dev/dax9.9"),
            libc::ENOENT,
        ),
        ("a regular file", bytes("/init"), libc::EINVAL),
        (
            "a character device that is no dax device",
            bytes("/dev/null"),
            libc::ENODEV,
        ),
        ("ENODEV", Answer::Errno(libc::ENODEV), libc::ENODEV),
    ]
}

fn bad_daxdevs(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    for (what, answer, errno) in bad_daxdev_answers() {
        let mut serve = ready.serve(vec![ServedFile::new("file", &one_extent())]);
        serve.devices.insert(0, answer);
        let fs = TestFs::mount(serve)?;
        ensure_eq!(
            fs.open_errno("file"),
            errno,
            "errno of an open where GET_DAXDEV gives {what}"
        );
        fs.wait_for(wire::RELEASE, 1).context(what)?;
    }
    Ok(())
}

fn device_not_in_fsdev_mode(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    let fs = TestFs::mount(ready.serve(vec![ServedFile::new("file", &one_extent())]))?;
    let device = guest.devices.first().context("no daxdev")?;
    device.bind(Driver::Devdax)?;
    let errno = fs.open_errno("file");
    device.bind(Driver::Fsdev)?;
    ensure_eq!(
        errno,
        libc::EOPNOTSUPP,
        "errno of an open on a device in devdax mode"
    );
    // The next open asks again: the mistake can be put right without a new mount.
    fs.open("file")
        .context("open after the device was put into fsdev mode")?;
    Ok(())
}

fn device_held_by_another_mount(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    let mount = || TestFs::mount(ready.serve(vec![ServedFile::new("file", &one_extent())]));
    let (mut first, second) = (mount()?, mount()?);
    drop(first.open("file")?);
    ensure_eq!(
        second.open_errno("file"),
        libc::EBUSY,
        "errno of an open on a device that another mount holds"
    );
    first.umount().context("umount of the first mount")?;
    second
        .open("file")
        .context("open after the first mount is gone")?;
    Ok(())
}

/// fs/dax.c keeps one mapping for each page, so a second file with the same memory is refused.
fn memory_of_another_file(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    let file = |name: &str, extents: &[Extent]| {
        let size = extents.iter().map(|extent| extent.len).sum();
        ServedFile::new(name, &Fmap::simple(size, extents))
    };
    let fs = TestFs::mount(ready.serve(vec![
        file(
            "first",
            &[extent(0, 16 * AU, 2 * AU), extent(0, 24 * AU, AU)],
        ),
        file("tail", &[extent(0, 17 * AU, AU)]),
        file("second", &[extent(0, 20 * AU, AU), extent(0, 24 * AU, AU)]),
        file("between", &[extent(0, 18 * AU, 6 * AU)]),
    ]))?;
    let first = fs.open("first")?;
    for (count, name) in (1..).zip(["tail", "second"]) {
        ensure_eq!(
            fs.open_errno(name),
            libc::EADDRINUSE,
            "errno of opening {name}"
        );
        fs.wait_for(wire::RELEASE, count).context(name)?;
    }
    // What was refused holds nothing: the memory of `second` is free but for what `first` has.
    fs.open("between")
        .context("open of a file between the ranges of another")?;
    drop(first);
    Ok(())
}

fn a_good_file_beside_bad_ones(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    let fmap = one_extent();
    ready.fill(&fmap)?;
    let bad = ServedFile::answering("bad", AU, Answer::Bytes(vec![0xff; 11]));
    let fs = TestFs::mount(ready.serve(vec![bad, ServedFile::new("good", &fmap)]))?;
    ensure_eq!(
        fs.open_errno("bad"),
        libc::EINVAL,
        "errno of opening the bad file"
    );
    ensure_eq!(
        std::fs::read(fs.path("good"))?.len() as u64,
        fmap.size,
        "bytes of the good file"
    );
    Ok(())
}
