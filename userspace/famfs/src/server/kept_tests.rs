// SPDX-License-Identifier: MIT OR Apache-2.0

use super::*;
use std::cell::RefCell;

use famfs_media::{path_bytes, Body, Entry, MkdirEntry};
use rustix::fs::{fcntl_add_seals, SealFlags};

use crate::log::{append, Store};
use crate::server::logplay::Reader;
use crate::server::tests::read;
use crate::testing::Traced;

#[test]
fn changes_outlive_their_server() {
    let devices: Vec<PathBuf> = vec!["/dev/dax1.0".into(), "/dev/dax0.0".into()];
    let mut changed = Changed {
        time: 5,
        ..Changed::default()
    };
    let fd = changed.keep(&devices).unwrap();
    let adopt = || Changed::adopt(fd.try_clone().unwrap()).unwrap();
    let attr = |mode| Attr {
        mode,
        ..Attr::default()
    };
    for (nodeid, mode) in [(16, 1), (20, 2), (16, 3)] {
        changed.set(nodeid, attr(mode)).unwrap();
    }
    let (mut heir, paths) = adopt();
    assert_eq!((heir.time, paths), (5, devices));
    assert_eq!(heir.get(16).map(|attr| attr.mode), Some(3));
    heir.set(21, attr(4)).unwrap();
    let (heir, _) = adopt();
    let modes = [16, 20, 21, 22].map(|nodeid| heir.get(nodeid).map(|attr| attr.mode));
    assert_eq!(modes, [Some(3), Some(2), Some(4), None]);
}

#[test]
fn another_version_is_refused() {
    let fd = Changed::default().keep(&[]).unwrap();
    let file = File::from(fd.try_clone().unwrap());
    file.write_all_at(&[2], 7).unwrap();
    let error = Changed::adopt(fd).unwrap_err();
    assert!(error.to_string().contains("of another version"), "{error}");
}

fn superblock() -> Superblock {
    Superblock::parse(&read("media/superblock.bin")).unwrap()
}

fn reader() -> Reader {
    Reader::new(LogCopy::new(&superblock()).unwrap())
}

/// What a successor makes of the copy.
fn adopted(copy: &LogCopy) -> anyhow::Result<Replay> {
    let (_, same, replay) = LogCopy::adopt(copy.descriptor().unwrap(), 16 << 30)?;
    assert_eq!(same, superblock());
    Ok(replay)
}

#[test]
fn the_copy_is_replayed_as_the_log_was() {
    let original = Replay::of_log(&superblock(), 16 << 30, &read("media/log.bin")).unwrap();
    let log = Traced::default();
    log.bytes.borrow_mut().extend(read("media/log.bin"));
    let announce = |entries: u64| {
        log.write(40, &entries.to_ne_bytes()).unwrap();
    };
    let (half, all) = (original.next_index() / 2, original.next_index());
    let mut reader = reader();
    for entries in [0, half, all] {
        announce(entries);
        reader.look(&superblock(), &log).unwrap();
        assert_eq!(adopted(&reader.copy).unwrap().next_index(), entries);
    }
    assert_eq!(adopted(&reader.copy).unwrap().totals, original.totals);
}

/// A log of directories, one for each name.
fn log(names: &[&[u8]]) -> (Traced, LogHeader) {
    let log = Traced::default();
    log.bytes.borrow_mut().resize(8 << 20, 0);
    let empty = LogHeader::new(superblock().log_len);
    log.write(0, &empty.encode()).unwrap();
    let header = append(&log, &empty, names.iter().map(|name| dir(name)).collect());
    (log, header.unwrap())
}

#[test]
fn what_cannot_be_copied_is_not_shown_and_copied_later() {
    let (log, header) = log(&[b"a"]);
    let mut reader = reader();
    reader.look(&superblock(), &log).unwrap();
    append(&log, &header, vec![dir(b"b"), dir(b"c")]).unwrap();
    // It can be written to, and does not grow.
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let full = File::from(memfd_create("full", flags).unwrap());
    let mut bytes = vec![0; SUPERBLOCK_BYTES + HEADER_BYTES + ENTRY_BYTES];
    reader.copy.file.read_exact_at(&mut bytes, 0).unwrap();
    full.write_all_at(&bytes, 0).unwrap();
    fcntl_add_seals(&full, SealFlags::GROW).unwrap();
    let file = std::mem::replace(&mut reader.copy.file, full);
    for _ in 0..2 {
        let error = reader.look(&superblock(), &log).unwrap_err();
        let text = "copying the log for a successor: Operation not permitted (os error 1)";
        assert_eq!(format!("{error:#}"), text);
        assert_eq!((reader.copy.next_index(), reader.copy.failed), (1, true));
        assert_eq!(adopted(&reader.copy).unwrap().next_index(), 1);
    }
    // As a write leaves it that was cut short.
    file.write_all_at(
        &[0xee; 700],
        (SUPERBLOCK_BYTES + HEADER_BYTES + ENTRY_BYTES) as u64,
    )
    .unwrap();
    reader.copy.file = file;
    assert_eq!(adopted(&reader.copy).unwrap().next_index(), 1);
    reader.look(&superblock(), &log).unwrap();
    assert!(!reader.copy.failed);
    let replay = adopted(&reader.copy).unwrap();
    assert_eq!((replay.next_index(), replay.totals.dirs), (3, 3));
}

#[test]
fn a_copy_with_a_gap_is_refused() {
    let (log, _) = log(&[b"a", b"b", b"c"]);
    let mut reader = reader();
    reader.look(&superblock(), &log).unwrap();
    let last = SUPERBLOCK_BYTES + HEADER_BYTES + 2 * ENTRY_BYTES;
    reader
        .copy
        .file
        .write_all_at(&[0; ENTRY_BYTES], last as u64)
        .unwrap();
    let error = adopted(&reader.copy).unwrap_err();
    let text = "the copy of the log has no entry 2: umount and mount instead";
    assert_eq!(error.to_string(), text);
}

#[test]
fn memory_follows_entries_and_not_the_header() {
    let (log, header) = log(&[b"a", b"b"]);
    let announced = LogHeader {
        next_index: header.last_index + 1,
        ..header
    };
    log.write(0, &announced.encode()).unwrap();
    let mut reader = reader();
    reader.look(&superblock(), &log).unwrap();
    let len = SUPERBLOCK_BYTES + HEADER_BYTES + 2 * ENTRY_BYTES;
    assert_eq!(reader.copy.file.metadata().unwrap().len(), len as u64);
}

/// Where a look has read.
fn look(reader: &mut Reader, log: &Traced) -> (anyhow::Result<()>, Vec<(usize, usize)>) {
    log.trace.borrow_mut().clear();
    let result = reader.look(&superblock(), log);
    let trace = log.trace.borrow();
    (
        result,
        trace.iter().map(|&(_, at, len)| (at, len)).collect(),
    )
}

#[test]
fn an_end_that_is_not_whole_is_read_once() {
    let (log, header) = log(&[b"a"]);
    let announced = LogHeader {
        next_seqnum: 5000,
        next_index: 5000,
        ..header
    };
    log.write(0, &announced.encode()).unwrap();
    let mut reader = reader();
    let (result, reads) = look(&mut reader, &log);
    result.unwrap();
    assert_eq!(reads.len(), 1 + 5 + 1, "{reads:?}");
    for _ in 0..2 {
        let (result, reads) = look(&mut reader, &log);
        result.unwrap();
        assert_eq!(reads, [(0, HEADER_BYTES), (592, ENTRY_BYTES)]);
    }
    // The next master goes on behind the last whole one, with as many entries as were announced or with others.
    let bodies = vec![dir(b"b"), dir(b"c")];
    let header = append(&log, &header, bodies).unwrap();
    log.write(0, &announced.encode()).unwrap();
    look(&mut reader, &log).0.unwrap();
    assert_eq!(adopted(&reader.copy).unwrap().totals.dirs, 3);
    log.write(0, &header.encode()).unwrap();
    let (result, reads) = look(&mut reader, &log);
    result.unwrap();
    assert_eq!(reads, [(0, HEADER_BYTES)]);
    append(&log, &header, vec![dir(b"d")]).unwrap();
    look(&mut reader, &log).0.unwrap();
    assert_eq!(adopted(&reader.copy).unwrap().totals.dirs, 4);
}

#[test]
fn damage_is_read_once() {
    let (log, _) = log(&[b"a", b"b", b"c"]);
    let flip = || log.bytes.borrow_mut()[592 + 100] ^= 1;
    flip();
    let mut reader = reader();
    for reads in [3, 2, 2] {
        let (result, read) = look(&mut reader, &log);
        let error = result.unwrap_err().downcast::<LogError>().unwrap();
        assert!(matches!(error, LogError::Entry { index: 1, .. }), "{error}");
        assert_eq!(
            (read.len(), reader.copy.next_index()),
            (reads, 0),
            "{read:?}"
        );
    }
    flip();
    look(&mut reader, &log).0.unwrap();
    assert_eq!(adopted(&reader.copy).unwrap().totals.dirs, 3);
}

/// A log that another host changes as soon as it was read: its directory `a` is called `b` from then on.
struct Changing(RefCell<Vec<u8>>);

fn dir(name: &[u8]) -> Body {
    Body::Mkdir(MkdirEntry {
        uid: 0,
        gid: 0,
        mode: 0o755,
        path: path_bytes(name),
    })
}

fn entry(name: &[u8]) -> [u8; ENTRY_BYTES] {
    let body = dir(name);
    Entry { seqnum: 0, body }.encode()
}

impl Store for Changing {
    fn read(&self, at: usize, out: &mut [u8]) -> io::Result<()> {
        let mut bytes = self.0.borrow_mut();
        out.copy_from_slice(&bytes[at..at + out.len()]);
        if at + out.len() > HEADER_BYTES {
            bytes[HEADER_BYTES..].copy_from_slice(&entry(b"b"));
        }
        Ok(())
    }
    fn write(&self, _: usize, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
    fn flush(&self, _: usize, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn invalidate(&self, _: usize, _: usize) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_is_shown_is_what_was_checked() {
    let header = LogHeader {
        next_seqnum: 1,
        next_index: 1,
        ..LogHeader::new(superblock().log_len)
    };
    let log = Changing(RefCell::new([&header.encode()[..], &entry(b"a")].concat()));
    let mut reader = reader();
    reader.look(&superblock(), &log).unwrap();
    let shown = reader.copy.replay(&superblock(), 16 << 30).unwrap();
    let successor = adopted(&reader.copy).unwrap();
    for name in [&b"a"[..], b"b"] {
        let found = [&shown, &successor].map(|replay| replay.tree.resolve(name).is_some());
        assert_eq!(found, [name == b"a"; 2]);
    }
}
