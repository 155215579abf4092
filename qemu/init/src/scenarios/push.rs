// SPDX-License-Identifier: MIT OR Apache-2.0
//! The push generation: the server hands devices over by descriptor, and the kernel says how large an fmap may be.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use anyhow::{ensure, Context, Result};

use super::fixture::{ensure_eq, one_extent, pattern, ready, Ready};
use super::Test;
use crate::channel::Channel;
use crate::dax::Driver;
use crate::fmap::{extent, Extent, Fmap, AU};
use crate::runner::Guest;
use crate::server::{Answer, ServedFile, TestFs};
use crate::wire;

pub const TESTS: &[(&str, Test)] = &[
    ("errnos_of_the_ioctl", errnos_of_the_ioctl),
    (
        "errnos_of_what_cannot_be_held",
        errnos_of_what_cannot_be_held,
    ),
    ("an_index_is_registered_once", an_index_is_registered_once),
    ("sparse_indices", sparse_indices),
    ("large_fmap", large_fmap),
    ("largest_message", largest_message),
    ("sizes_that_are_refused", sizes_that_are_refused),
    ("unknown_device", unknown_device),
];

const FIRST_ROOM: u32 = 4096;
const MAX_MESSAGE: u32 = 16 << 20;
const MAX_INDEX: u64 = 65_535;

/// 0 for success.
fn errno(result: std::io::Result<()>) -> i32 {
    result
        .err()
        .map_or(0, |error| error.raw_os_error().unwrap_or(-1))
}

pub fn device(ready: &Ready, index: usize) -> Result<File> {
    let path = ready.paths.get(index).context("too few daxdevs")?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| path.clone())
}

/// One mount of `files`, to which nothing was pushed; should it ask for devices after all, it gets none.
fn mount(ready: &Ready, files: Vec<ServedFile>) -> Result<TestFs> {
    let mut serve = ready.serve(files);
    serve.devices.clear();
    TestFs::mount(serve)
}

/// A mount of `files` with the first device as index 0.
fn pushed(ready: &Ready, files: Vec<ServedFile>) -> Result<TestFs> {
    let fs = mount(ready, files)?;
    fs.push(&device(ready, 0)?, 0).context("push device 0")?;
    Ok(fs)
}

/// What is refused before the device is looked at, or because it is none. The mount stays one that pulls.
fn errnos_of_the_ioctl(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    let good = device(&ready, 0)?;
    let fd = good.as_raw_fd();
    let (regular, null) = (File::open("/init")?, File::open("/dev/null")?);
    let mut serve = ready.serve(vec![ServedFile::new("file", &one_extent())]);
    let fs = TestFs::mount(serve.clone())?;
    let cases = [
        ("no descriptor", -1, 0, 0, libc::EBADF),
        ("a closed descriptor", 9999, 0, 0, libc::EBADF),
        ("a regular file", regular.as_raw_fd(), 0, 0, libc::EINVAL),
        ("/dev/null", null.as_raw_fd(), 0, 0, libc::ENODEV),
        ("flags", fd, 3, 0, libc::EINVAL),
        ("index 65536", fd, 0, MAX_INDEX + 1, libc::EINVAL),
        ("an index of 64 bits", fd, 0, 1 << 32, libc::EINVAL),
    ];
    for (what, fd, flags, index, expected) in cases {
        ensure_eq!(
            errno(fs.push_raw(fd, flags, index)),
            expected,
            "errno of the ioctl with {what}"
        );
    }
    drop(fs.open("file").context("open after pushes that failed")?);
    ensure_eq!(
        fs.fmap_rooms(),
        [None],
        "the size in GET_FMAP after pushes that failed"
    );
    ensure_eq!(fs.count(wire::GET_DAXDEV), 1, "GET_DAXDEV requests");
    serve.plain = true;
    let plain = TestFs::mount(serve)?;
    ensure_eq!(
        errno(plain.push(&good, 0)),
        libc::EOPNOTSUPP,
        "errno of the ioctl on a plain FUSE file system"
    );
    Ok(())
}

/// A device that another mount has, or this one under another index, and one that is in devdax mode.
fn errnos_of_what_cannot_be_held(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    let mut first = pushed(&ready, Vec::new())?;
    let second = mount(&ready, Vec::new())?;
    let held = device(&ready, 0)?;
    ensure_eq!(
        errno(second.push(&held, 0)),
        libc::EBUSY,
        "errno of pushing what another mount holds"
    );
    ensure_eq!(
        errno(first.push(&held, 1)),
        libc::EBUSY,
        "errno of pushing a device under a second index"
    );
    first.umount().context("umount of the first mount")?;
    ensure_eq!(
        errno(second.push(&held, 0)),
        0,
        "errno of pushing it after the first mount is gone"
    );
    drop((held, second));

    let bus = guest.devices.get(1).context("too few daxdevs")?;
    bus.bind(Driver::Devdax)?;
    let fs = mount(&ready, Vec::new())?;
    let refused = errno(fs.push(&device(&ready, 1)?, 0));
    bus.bind(Driver::Fsdev)?;
    ensure_eq!(
        refused,
        libc::EOPNOTSUPP,
        "errno of pushing a device in devdax mode"
    );
    Ok(())
}

/// The second registration of an index is a success that changes nothing.
fn an_index_is_registered_once(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    let fmap = one_extent();
    ready.fill(&fmap)?;
    let other = Fmap::simple(fmap.size, &[extent(1, 16 * AU, 2 * AU)]);
    ready
        .raw(1)?
        .write(16 * AU, &vec![0xee; fmap.size as usize])?;
    let files = vec![
        ServedFile::new("file", &fmap),
        ServedFile::new("other", &other),
    ];
    let fs = pushed(&ready, files)?;
    let second = device(&ready, 1)?;
    ensure_eq!(
        errno(fs.push(&second, 0)),
        0,
        "errno of registering index 0 again, with another device"
    );
    let mut bytes = [0; 64];
    fs.open("file")?.read_exact_at(&mut bytes, 0)?;
    ensure_eq!(bytes.to_vec(), pattern(0, 64), "the file on index 0");
    ensure_eq!(
        errno(fs.push(&second, 1)),
        0,
        "errno of registering that device as index 1"
    );
    drop(second);
    fs.open("other")?.read_exact_at(&mut bytes, 0)?;
    ensure_eq!(bytes.to_vec(), vec![0xee; 64], "the file on index 1");
    ensure_eq!(
        fs.fmap_rooms(),
        [Some(FIRST_ROOM); 2],
        "the sizes in the GET_FMAP requests"
    );
    ensure_eq!(fs.fmap_request_lens(), [48; 2], "bytes of the requests");
    ensure_eq!(fs.count(wire::GET_DAXDEV), 0, "GET_DAXDEV requests");
    Ok(())
}

/// Indices need not follow each other.
fn sparse_indices(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    ready.raw(0)?.write(16 * AU, &pattern(0, 64))?;
    ready.raw(1)?.write(20 * AU, &pattern(AU, 64))?;
    let fmap = Fmap::simple(
        2 * AU,
        &[extent(40_000, 16 * AU, AU), extent(65_535, 20 * AU, AU)],
    );
    let fs = mount(&ready, vec![ServedFile::new("file", &fmap)])?;
    fs.push(&device(&ready, 0)?, 40_000)?;
    fs.push(&device(&ready, 1)?, MAX_INDEX)?;
    let file = fs.open("file")?;
    for at in [0, AU] {
        let mut bytes = [0; 64];
        file.read_exact_at(&mut bytes, at)?;
        ensure_eq!(bytes.to_vec(), pattern(at, 64), "bytes at {at:#x}");
    }
    Ok(())
}

/// Extents of one unit each over both devices, in an order without any.
pub fn shuffled(first: u32, second: u32) -> Vec<Extent> {
    const COUNT: u64 = 270;
    const ON_FIRST: u64 = 170;
    (0..COUNT)
        .map(|index| index * 7919 % COUNT)
        .map(|unit| match unit.checked_sub(ON_FIRST) {
            None => extent(first, (16 + unit) * AU, AU),
            Some(unit) => extent(second, (16 + unit) * AU, AU),
        })
        .collect()
}

/// A map larger than the first buffer: one retry with room for all of it, then every byte where it belongs.
fn large_fmap(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    ready.raw(1)?;
    let size = 270 * AU;
    let placed = Fmap::simple(size, &shuffled(0, 1));
    let spots: Vec<u64> = (0..270).map(|unit| unit * AU + unit * 512).collect();
    for at in &spots {
        ready.fill_span(&placed, *at, &pattern(*at, 64))?;
    }
    let served = Fmap::simple(size, &shuffled(3, 40_000));
    let bytes = 32 + 270 * 24;
    ensure_eq!(served.message().len(), bytes, "bytes of the message");
    let fs = mount(&ready, vec![ServedFile::new("file", &served)])?;
    fs.push(&device(&ready, 0)?, 3)?;
    fs.push(&device(&ready, 1)?, 40_000)?;
    let file = fs.open("file")?;
    ensure_eq!(
        fs.fmap_rooms(),
        [Some(FIRST_ROOM), Some(bytes as u32)],
        "the sizes in the GET_FMAP requests"
    );
    for at in spots {
        let mut bytes = [0; 64];
        file.read_exact_at(&mut bytes, at)?;
        ensure_eq!(bytes.to_vec(), pattern(at, 64), "bytes at {at:#x}");
    }
    Ok(())
}

/// 16 MiB are read to the last byte, though all but the first extent is padding.
fn largest_message(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    let fmap = one_extent();
    ready.fill(&fmap)?;
    let mut message = fmap.message();
    message.resize(MAX_MESSAGE as usize, 0);
    message.splice(12..16, MAX_MESSAGE.to_le_bytes());
    let file = ServedFile::answering("file", fmap.size, Answer::Bytes(message));
    let fs = pushed(&ready, vec![file])?;
    let mut bytes = [0; 64];
    fs.open("file")?.read_exact_at(&mut bytes, AU)?;
    ensure_eq!(bytes.to_vec(), pattern(AU, 64), "bytes of the file");
    ensure_eq!(
        fs.fmap_rooms(),
        [Some(FIRST_ROOM), Some(MAX_MESSAGE)],
        "the sizes in the GET_FMAP requests"
    );
    Ok(())
}

fn announcing(size: u32, mut message: Vec<u8>) -> Answer {
    message.splice(12..16, size.to_le_bytes());
    Answer::Bytes(message)
}

/// There is one retry, and no buffer above 16 MiB.
fn sizes_that_are_refused(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    let good = one_extent().message();
    let header = good[..wire::FMAP_HEADER].to_vec();
    let cases = [
        (
            "more-again",
            Answer::AlwaysMore,
            libc::EINVAL,
            vec![FIRST_ROOM, FIRST_ROOM + 1],
        ),
        (
            "header-again",
            announcing(8192, header.clone()),
            libc::EINVAL,
            vec![FIRST_ROOM, 8192],
        ),
        (
            "header-that-fits",
            announcing(FIRST_ROOM, header),
            libc::EINVAL,
            vec![FIRST_ROOM],
        ),
        (
            "above-16-MiB",
            announcing(MAX_MESSAGE + 1, good),
            libc::EFBIG,
            vec![FIRST_ROOM],
        ),
    ];
    for (what, answer, expected, rooms) in cases {
        let fs = pushed(&ready, vec![ServedFile::answering("file", AU, answer)])?;
        ensure_eq!(fs.open_errno("file"), expected, "errno of the open: {what}");
        let rooms: Vec<_> = rooms.into_iter().map(Some).collect();
        ensure_eq!(fs.fmap_rooms(), rooms, "sizes in GET_FMAP: {what}");
        fs.wait_for(wire::RELEASE, 1).context(what)?;
    }
    Ok(())
}

/// Nobody is asked for a device that was not pushed; it may still come.
fn unknown_device(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    let fmap = Fmap::simple(AU, &[extent(7, 20 * AU, AU)]);
    let fs = pushed(&ready, vec![ServedFile::new("file", &fmap)])?;
    ensure_eq!(
        fs.open_errno("file"),
        libc::ENODEV,
        "errno of an open on a device that was not pushed"
    );
    ensure_eq!(fs.count(wire::GET_DAXDEV), 0, "GET_DAXDEV requests");
    fs.wait_for(wire::RELEASE, 1)?;
    fs.push(&device(&ready, 1)?, 7).context("push it")?;
    let file = fs.open("file").context("open after it was pushed")?;
    ensure!(
        file.metadata()?.len() == AU,
        "the file's size is not that of its map"
    );
    Ok(())
}
