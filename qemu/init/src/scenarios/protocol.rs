// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which requests the server gets, and when it gets none.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::Barrier;

use anyhow::{ensure, Context, Result};

use super::fixture::{ensure_eq, one_extent, pattern, ready};
use super::Test;
use crate::channel::Channel;
use crate::fmap::{extent, Fmap, AU};
use crate::probe::faults_of_self;
use crate::runner::Guest;
use crate::server::{Answer, Serve, ServedFile, TestFs};
use crate::sys::{Kind, Mapping};
use crate::tool;
use crate::wire;

pub const TESTS: &[(&str, Test)] = &[
    ("one_get_fmap_per_inode", one_get_fmap_per_inode),
    (
        "get_daxdev_only_for_new_devices",
        get_daxdev_only_for_new_devices,
    ),
    ("racing_opens", racing_opens),
    ("large_fmap", large_fmap),
    ("debugfs_shows_the_mount", debugfs_shows_the_mount),
    ("no_request_in_10000_faults", no_request_in_faults),
    (
        "no_request_in_10000_reads_and_writes",
        no_request_in_reads_and_writes,
    ),
    ("offer_only_to_rawio", offer_only_to_rawio),
    ("plain_fuse_is_left_alone", plain_fuse_is_left_alone),
    ("size_is_the_fmaps", size_is_the_fmaps),
    ("size_cannot_be_changed", size_cannot_be_changed),
];

const TIMES: u64 = 10_000;

fn one_get_fmap_per_inode(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let fs = ready(guest)?.one_file("file", &one_extent())?;
    let first = fs.open("file")?;
    let second = fs.open("file")?;
    drop((first, second));
    drop(fs.open("file")?);
    ensure_eq!(
        fs.count(wire::GET_FMAP),
        1,
        "GET_FMAP requests for three opens of one file"
    );
    ensure_eq!(fs.count(wire::GET_DAXDEV), 1, "GET_DAXDEV requests");
    // V9/V10 send the bare header, later kernels add a size.
    ensure!(
        [vec![40], vec![48]].contains(&fs.fmap_request_lens()),
        "GET_FMAP of {:?} bytes",
        fs.fmap_request_lens()
    );
    fs.wait_for(wire::RELEASE, 3)
}

fn get_daxdev_only_for_new_devices(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    ready.raw(1)?;
    let file = |name, extents: &[_]| ServedFile::new(name, &Fmap::simple(AU, extents));
    let fs = TestFs::mount(ready.serve(vec![
        file("zero", &[extent(0, 16 * AU, AU)]),
        file("again", &[extent(0, 17 * AU, AU)]),
        file("one", &[extent(1, 16 * AU, AU)]),
    ]))?;
    for (name, expected) in [("zero", 1), ("again", 1), ("one", 2)] {
        fs.open(name)?;
        ensure_eq!(
            fs.count(wire::GET_DAXDEV),
            expected,
            "GET_DAXDEV requests after opening {name:?}"
        );
    }
    Ok(())
}

/// However many open a file at once, all succeed and each asks at most once.
fn racing_opens(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    const OPENERS: usize = 8;
    let fmap = one_extent();
    let ready = ready(guest)?;
    for _ in 0..10 {
        let fs = ready.one_file("file", &fmap)?;
        let start = Barrier::new(OPENERS);
        let opened = std::thread::scope(|scope| {
            let open = || {
                start.wait();
                std::fs::read(fs.path("file")).map(|bytes| bytes.len() as u64)
            };
            let openers: Vec<_> = (0..OPENERS).map(|_| scope.spawn(open)).collect();
            openers
                .into_iter()
                .filter_map(|opener| opener.join().ok()?.ok())
                .collect::<Vec<_>>()
        });
        ensure_eq!(
            opened,
            vec![fmap.size; OPENERS],
            "bytes that each opener read"
        );
        for opcode in [wire::GET_FMAP, wire::GET_DAXDEV] {
            let asked = fs.count(opcode);
            ensure!(
                (1..=OPENERS as u64).contains(&asked),
                "{asked} requests with opcode {opcode} for {OPENERS} opens at once"
            );
        }
    }
    Ok(())
}

/// A map that does not fit into the first reply is asked for again, once, with room for it.
fn large_fmap(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let extents: Vec<_> = (0..170)
        .map(|index| extent(0, (16 + index) * AU, AU))
        .collect();
    let fmap = Fmap::simple(170 * AU, &extents);
    let size = fmap.message().len();
    ensure_eq!(size, 32 + 170 * 24, "bytes of the message");
    let ready = ready(guest)?;
    let last = 170 * AU - 64;
    ready.fill_span(&fmap, last, &pattern(last, 64))?;
    let fs = TestFs::mount(ready.serve(vec![ServedFile::new("file", &fmap)]))?;
    let mut bytes = [0; 64];
    fs.open("file")?.read_exact_at(&mut bytes, last)?;
    ensure_eq!(
        bytes.to_vec(),
        pattern(last, 64),
        "the last bytes of the file"
    );
    ensure_eq!(
        fs.fmap_request_lens(),
        [40, 48],
        "bytes of the GET_FMAP requests"
    );
    Ok(())
}

/// One debugfs file per mount, with its daxdevs and the cached fmaps.
fn debugfs_shows_the_mount(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let fmap = one_extent();
    let fs = ready(guest)?.one_file("file", &fmap)?;
    let path = tool::debugfs_file(&fs.path("."))?;
    let show = || std::fs::read_to_string(&path).with_context(|| path.clone());
    ensure_eq!(show()?, "", "{path} before the first open");
    drop(fs.open("file")?);
    let device = guest.devices.first().context("no daxdev")?.path();
    let text = show()?;
    let (daxdev, map) = text.split_once('\n').context("one line only")?;
    ensure_eq!(
        daxdev,
        format!("daxdev index=0 name={device:?} state=ok policy=device"),
        "the line of the daxdev"
    );
    let expected = format!(
        "fmap ino=2 size={} kind=single extents=1 daxdevs=1 ",
        fmap.size
    );
    ensure!(
        map.starts_with(&expected),
        "the line of the fmap: {map:?}, expected {expected:?}"
    );
    drop(fs);
    ensure!(
        !std::path::Path::new(&path).exists(),
        "{path} is still there after the umount"
    );
    Ok(())
}

fn no_request_in_faults(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let fmap = Fmap::simple(2 * AU, &[extent(0, 16 * AU, 2 * AU)]);
    let fs = ready(guest)?.one_file("file", &fmap)?;
    let file = fs.open_rw("file")?;
    let huge = Mapping::new(&file, 0, 2 * AU as usize, Kind::SharedWrite)?;
    let small = Mapping::new(&file, 0, 2 * AU as usize, Kind::SharedWrite)?;
    small.no_huge_pages()?;
    let (requests, faults) = (fs.total(), faults_of_self()?);
    for index in 0..TIMES as usize {
        let (mapping, at) = if index % 2 == 0 {
            (&huge, 0)
        } else {
            (&small, index % 1024 * 4096)
        };
        if index % 4 < 2 {
            mapping.byte(at);
        } else {
            mapping.set_byte(at, 1);
        }
        // A fault on a small page maps those beside it too.
        mapping.drop_entries(at & !0xffff, 0x10000)?;
        if at == 0 {
            mapping.drop_entries(0, AU as usize)?;
        }
    }
    let taken = faults_of_self()? - faults;
    ensure!(taken >= TIMES, "only {taken} faults were taken");
    ensure_eq!(
        fs.total() - requests,
        0,
        "requests during {taken} faults, all by opcode {:?}",
        fs.counts()
    );
    Ok(())
}

fn no_request_in_reads_and_writes(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let fmap = one_extent();
    let fs = ready(guest)?.one_file("file", &fmap)?;
    let file = fs.open_rw("file")?;
    let requests = fs.total();
    let mut bytes = [0; 64];
    for index in 0..TIMES {
        let at = index * 397 % (fmap.size - 64);
        ensure_eq!(file.read_at(&mut bytes, at)?, 64, "pread at {at:#x}");
        ensure_eq!(file.write_at(&bytes, at)?, 64, "pwrite at {at:#x}");
    }
    ensure_eq!(
        fs.total() - requests,
        0,
        "requests, all by opcode {:?}",
        fs.counts()
    );
    Ok(())
}

/// A mounter without CAP_SYS_RAWIO gets an ordinary FUSE mount, and so does one that has it but mounts for somebody
/// else, as fusermount does.
fn offer_only_to_rawio(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    let fs = ready.one_file("file", &one_extent())?;
    ensure!(
        fs.fmap_offered(),
        "FUSE_DAX_FMAP was not offered to a mounter with CAP_SYS_RAWIO"
    );
    let status = Command::new("/init")
        .args(["without-rawio", "/init", "offered"])
        .status()
        .context("start a mounter")?;
    ensure_eq!(
        status.code(),
        Some(1),
        "what a mounter without CAP_SYS_RAWIO was offered (0: FUSE_DAX_FMAP, 1: not)"
    );
    let fs = TestFs::mount_for(1000, Serve::default())?;
    ensure!(
        !fs.fmap_offered(),
        "FUSE_DAX_FMAP was offered to somebody for whom root mounts"
    );
    Ok(())
}

/// The mounter of `offer_only_to_rawio`: true if it was offered FUSE_DAX_FMAP.
pub fn is_offered() -> Result<bool> {
    Ok(TestFs::mount(Serve::default())?.fmap_offered())
}

/// A server that does not accept FUSE_DAX_FMAP gets READ, not GET_FMAP.
fn plain_fuse_is_left_alone(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mut serve = ready(guest)?.serve(vec![ServedFile::new("file", &one_extent())]);
    serve.plain = true;
    let fs = TestFs::mount(serve)?;
    let error = fs
        .open("file")?
        .read_at(&mut [0; 64], 0)
        .err()
        .and_then(|error| error.raw_os_error());
    ensure_eq!(error, Some(libc::EIO), "read where the server refuses READ");
    ensure!(fs.count(wire::READ) > 0, "the server got no READ");
    ensure_eq!(fs.count(wire::GET_FMAP), 0, "GET_FMAP requests");
    Ok(())
}

fn size_is_the_fmaps(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    let fmap = one_extent();
    ready.fill(&fmap)?;
    let wrong = ServedFile::answering("file", 17, Answer::Bytes(fmap.message()));
    let fs = TestFs::mount(ready.serve(vec![wrong]))?;
    let file = fs.open("file")?;
    ensure_eq!(file.metadata()?.len(), fmap.size, "st_size after the open");
    ensure_eq!(
        file.read_at(&mut vec![0; 4 << 20], 0)? as u64,
        fmap.size,
        "bytes read"
    );
    Ok(())
}

fn size_cannot_be_changed(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    let fmap = one_extent();
    let mut serve = ready.serve(vec![ServedFile::new("file", &fmap)]);
    serve.atomic_trunc = true;
    let fs = TestFs::mount(serve)?;
    let file = fs.open_rw("file")?;
    let errno = |result: std::io::Result<()>| result.err().and_then(|error| error.raw_os_error());
    for size in [0, fmap.size - 1, fmap.size + 1] {
        ensure_eq!(
            errno(file.set_len(size)),
            Some(libc::EPERM),
            "ftruncate to {size}"
        );
    }
    let grown = rustix::fs::fallocate(
        &file,
        rustix::fs::FallocateFlags::empty(),
        0,
        fmap.size + AU,
    );
    ensure_eq!(
        grown.err().map(|error| error.raw_os_error()),
        Some(libc::EOPNOTSUPP),
        "fallocate"
    );
    ensure_eq!(fs.count(wire::FALLOCATE), 0, "FALLOCATE requests");
    ensure_eq!(
        errno(File::create(fs.path("file")).map(drop)),
        Some(libc::EPERM),
        "open with O_TRUNC"
    );
    ensure_eq!(fs.count(wire::SETATTR), 0, "SETATTR requests");
    ensure_eq!(file.metadata()?.len(), fmap.size, "st_size");
    Ok(())
}
