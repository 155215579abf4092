// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every way to reach a file's bytes gives and takes what lies in the raw memory, for every kind of fmap.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use anyhow::{bail, Context, Result};
use rustix::pipe::{pipe, splice, SpliceFlags};

use super::fixture::{ensure_eq, first_difference, pattern, ready, Ready};
use super::kinds::kinds;
use super::Test;
use crate::channel::Channel;
use crate::fmap::{Fmap, AU};
use crate::runner::Guest;
use crate::server::{ServedFile, TestFs};
use crate::sys::{Kind, Mapping};

pub const TESTS: &[(&str, Test)] = &[
    ("mmap", |guest, _| reading(guest, by_mmap)),
    ("read", |guest, _| reading(guest, by_read)),
    ("pread_odd", |guest, _| reading(guest, by_pread_odd)),
    ("splice", |guest, _| reading(guest, by_splice)),
    ("sendfile", |guest, _| reading(guest, by_sendfile)),
    ("o_direct", |guest, _| reading(guest, by_o_direct)),
    ("write", |guest, _| writing(guest, by_write)),
    ("pwrite_odd", |guest, _| writing(guest, by_pwrite_odd)),
    ("pwrite_o_direct", |guest, _| {
        writing(guest, by_pwrite_o_direct)
    }),
    ("mmap_store", |guest, _| writing(guest, by_mmap_store)),
    ("end_of_file", end_of_file),
];

const NAME: &str = "file";

/// A path of the file and a stretch of it.
struct Span<'a> {
    path: &'a str,
    pos: u64,
    len: usize,
}

type ReadBy = fn(&Span) -> Result<Vec<u8>>;
type WriteBy = fn(&Span, &[u8]) -> Result<()>;

/// The stretches of a file that are compared: the surroundings of every place where its map may change, more of them
/// where an access is not emulated.
fn spans(guest: &Guest, size: u64) -> Vec<(u64, usize)> {
    let reach = if guest.fast { 70_001 } else { 333 };
    let edges = (0..=size / AU).map(|index| index * AU).chain([size]);
    edges
        .map(|edge| (edge.saturating_sub(reach), size.min(edge + reach)))
        .map(|(from, to)| (from, (to - from) as usize))
        .collect()
}

fn each_kind(guest: &Guest, check: impl Fn(&Ready, &TestFs, &Fmap) -> Result<()>) -> Result<()> {
    let ready = ready(guest)?;
    for (kind, fmap) in kinds(ready.paths.len()) {
        let fs = TestFs::mount(ready.serve(vec![ServedFile::new(NAME, &fmap)])).context(kind)?;
        check(&ready, &fs, &fmap).context(kind)?;
    }
    Ok(())
}

/// The pattern is put into the raw memory and looked for in the file.
fn reading(guest: &Guest, read_by: ReadBy) -> Result<()> {
    each_kind(guest, |ready, fs, fmap| {
        for (pos, len) in spans(guest, fmap.size) {
            ready.fill_span(fmap, pos, &pattern(pos, len))?;
            let got = read_by(&Span {
                path: &fs.path(NAME),
                pos,
                len,
            })?;
            if let Some(difference) = first_difference(&got, &pattern(pos, len)) {
                bail!("from {pos:#x}: {difference}");
            }
        }
        Ok(())
    })
}

/// The pattern is written to the file and looked for in the raw memory, where zeros lay before.
fn writing(guest: &Guest, write_by: WriteBy) -> Result<()> {
    each_kind(guest, |ready, fs, fmap| {
        for (pos, len) in spans(guest, fmap.size) {
            ready.fill_span(fmap, pos, &vec![0; len])?;
            write_by(
                &Span {
                    path: &fs.path(NAME),
                    pos,
                    len,
                },
                &pattern(pos, len),
            )?;
            let got = ready.raw_bytes(fmap, pos, len)?;
            if let Some(difference) = first_difference(&got, &pattern(pos, len)) {
                bail!("raw memory from {pos:#x}: {difference}");
            }
        }
        Ok(())
    })
}

fn open_rw(span: &Span) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(span.path)
        .context("open for writing")
}

fn open_direct(span: &Span) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(span.path)
        .context("open with O_DIRECT")
}

fn by_mmap(span: &Span) -> Result<Vec<u8>> {
    let file = File::open(span.path)?;
    let end = span.pos as usize + span.len;
    Ok(Mapping::new(&file, 0, end, Kind::SharedRead)?.read(span.pos as usize, span.len))
}

fn by_read(span: &Span) -> Result<Vec<u8>> {
    let mut file = File::open(span.path)?;
    file.seek(SeekFrom::Start(span.pos))?;
    let mut bytes = vec![0; span.len];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Pieces of a prime length, so that they begin and end anywhere in a page.
fn by_pread_odd(span: &Span) -> Result<Vec<u8>> {
    let file = File::open(span.path)?;
    let mut bytes = vec![0; span.len];
    for (index, piece) in bytes.chunks_mut(8191).enumerate() {
        file.read_exact_at(piece, span.pos + index as u64 * 8191)?;
    }
    Ok(bytes)
}

fn by_splice(span: &Span) -> Result<Vec<u8>> {
    let file = File::open(span.path)?;
    let (reader, writer) = pipe()?;
    let (mut reader, mut offset) = (File::from(reader), span.pos);
    let mut bytes = vec![0; span.len];
    let mut filled = 0;
    while filled < span.len {
        let count = splice(
            &file,
            Some(&mut offset),
            &writer,
            None,
            (span.len - filled).min(32768),
            SpliceFlags::empty(),
        )?;
        if count == 0 {
            bail!("splice gave nothing at {offset:#x}");
        }
        reader.read_exact(&mut bytes[filled..filled + count])?;
        filled += count;
    }
    Ok(bytes)
}

fn by_sendfile(span: &Span) -> Result<Vec<u8>> {
    let file = File::open(span.path)?;
    let mut copy = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open("/tmp/sendfile")?;
    let (mut offset, mut sent) = (span.pos, 0);
    while sent < span.len {
        match rustix::fs::sendfile(&copy, &file, Some(&mut offset), span.len - sent)? {
            0 => bail!("sendfile sent nothing at {offset:#x}"),
            count => sent += count,
        }
    }
    let mut bytes = Vec::new();
    copy.rewind()?;
    copy.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn by_o_direct(span: &Span) -> Result<Vec<u8>> {
    let file = open_direct(span)?;
    let mut bytes = vec![0; span.len];
    file.read_exact_at(&mut bytes, span.pos)?;
    Ok(bytes)
}

fn by_write(span: &Span, bytes: &[u8]) -> Result<()> {
    let mut file = open_rw(span)?;
    file.seek(SeekFrom::Start(span.pos))?;
    Ok(file.write_all(bytes)?)
}

fn by_pwrite_odd(span: &Span, bytes: &[u8]) -> Result<()> {
    let file = open_rw(span)?;
    for (index, piece) in bytes.chunks(8191).enumerate() {
        file.write_all_at(piece, span.pos + index as u64 * 8191)?;
    }
    Ok(())
}

fn by_pwrite_o_direct(span: &Span, bytes: &[u8]) -> Result<()> {
    Ok(open_direct(span)?.write_all_at(bytes, span.pos)?)
}

fn by_mmap_store(span: &Span, bytes: &[u8]) -> Result<()> {
    let mapping = Mapping::new(
        &open_rw(span)?,
        0,
        span.pos as usize + span.len,
        Kind::SharedWrite,
    )?;
    mapping.write(span.pos as usize, bytes);
    Ok(())
}

/// Reads and writes end at the file's size, and the bytes behind it stay as they are.
fn end_of_file(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    each_kind(guest, |ready, fs, fmap| {
        let file = fs.open_rw(NAME)?;
        let size = fmap.size;
        ensure_eq!(file.metadata()?.len(), size, "st_size");
        let mut bytes = [0; 64];
        ensure_eq!(
            file.read_at(&mut bytes, size - 10)?,
            10,
            "pread of 64 bytes, 10 before the end"
        );
        ensure_eq!(file.read_at(&mut bytes, size)?, 0, "pread at the end");
        let behind = |fmap: &Fmap| {
            fmap.locate(size)
                .map(|(dev, offset)| ready.raw(dev)?.read(offset, 54))
                .transpose()
        };
        let before = behind(fmap)?;
        ensure_eq!(
            file.write_at(&[0xaa; 64], size - 10)?,
            10,
            "pwrite of 64 bytes, 10 before the end"
        );
        ensure_eq!(
            ready.raw_bytes(fmap, size - 10, 10)?,
            [0xaa; 10],
            "the last 10 bytes"
        );
        ensure_eq!(
            behind(fmap)?,
            before,
            "the bytes behind the end of the file"
        );
        ensure_eq!(file.metadata()?.len(), size, "st_size after the writes");
        Ok(())
    })
}
