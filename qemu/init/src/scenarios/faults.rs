// SPDX-License-Identifier: MIT OR Apache-2.0
//! Page faults: how large the entries are, copy-on-write, and where the memory ends.

use std::os::unix::fs::FileExt;

use anyhow::{bail, ensure, Result};

use super::fixture::{ensure_eq, one_extent, pattern, ready};
use super::Test;
use crate::channel::Channel;
use crate::fmap::{extent, Fmap, AU};
use crate::probe::{Probe, Reply};
use crate::runner::Guest;
use crate::sys::{cachestat, scan_pages, Kind, Mapping, PAGE_IS_HUGE};

pub const TESTS: &[(&str, Test)] = &[
    ("huge_where_aligned", huge_where_aligned),
    ("huge_over_many_extents", huge_over_many_extents),
    ("small_where_asked", small_where_asked),
    ("read_then_write", read_then_write),
    ("two_processes_share", two_processes_share),
    ("private_copies", private_copies),
    ("sigbus_past_the_end", sigbus_past_the_end),
    ("cachestat_counts_nothing", cachestat_counts_nothing),
];

const PAGE: u64 = 4096;

/// Bytes mapped by entries of 2 MiB, and by smaller ones.
fn entry_sizes(mapping: &Mapping) -> Result<(u64, u64)> {
    let (mut huge, mut small) = (0, 0);
    for region in scan_pages(mapping)? {
        let bytes = region.end - region.start;
        *(if region.categories & PAGE_IS_HUGE != 0 {
            &mut huge
        } else {
            &mut small
        }) += bytes;
    }
    Ok((huge, small))
}

fn touch(mapping: &Mapping, write: bool) {
    for at in (0..mapping.len()).step_by(PAGE as usize) {
        match write {
            true => mapping.set_byte(at, 1),
            false => drop(mapping.byte(at)),
        }
    }
}

/// A program that asks for nothing gets 2 MiB entries, but for the last, partly used allocation unit.
fn huge_where_aligned(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let fmap = one_extent();
    let fs = ready(guest)?.one_file("file", &fmap)?;
    let file = fs.open_rw("file")?;
    for (kind, write) in [(Kind::SharedRead, false), (Kind::SharedWrite, true)] {
        let mapping = Mapping::new(&file, 0, fmap.size as usize, kind)?;
        ensure_eq!(
            mapping.address() as u64 % AU,
            0,
            "address of the mapping modulo 2 MiB"
        );
        touch(&mapping, write);
        let tail = (fmap.size - AU).next_multiple_of(PAGE);
        ensure_eq!(
            entry_sizes(&mapping)?,
            (AU, tail),
            "bytes in huge and in small entries, {kind:?}"
        );
    }
    Ok(())
}

fn huge_over_many_extents(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let extents = [
        extent(0, 24 * AU, AU),
        extent(0, 18 * AU, 2 * AU),
        extent(0, 16 * AU, AU),
    ];
    let striped = Fmap::interleaved(
        4 * AU,
        AU as u32,
        &[extent(0, 24 * AU, 2 * AU), extent(0, 16 * AU, 2 * AU)],
    );
    let ready = ready(guest)?;
    for fmap in [Fmap::simple(4 * AU, &extents), striped] {
        let fs = ready.one_file("file", &fmap)?;
        let mapping = Mapping::new(&fs.open("file")?, 0, fmap.size as usize, Kind::SharedRead)?;
        touch(&mapping, false);
        ensure_eq!(
            entry_sizes(&mapping)?,
            (4 * AU, 0),
            "bytes in huge and in small entries"
        );
    }
    Ok(())
}

fn small_where_asked(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let fs = ready(guest)?.one_file("file", &one_extent())?;
    let mapping = Mapping::new(&fs.open("file")?, 0, AU as usize, Kind::SharedRead)?;
    mapping.no_huge_pages()?;
    touch(&mapping, false);
    ensure_eq!(
        entry_sizes(&mapping)?,
        (0, AU),
        "bytes in huge and in small entries with MADV_NOHUGEPAGE"
    );
    ensure_eq!(
        mapping.read(0, AU as usize),
        pattern(0, AU as usize),
        "contents"
    );
    Ok(())
}

/// A read fault maps the page so that a later write has to fault again, for both sizes of entries.
fn read_then_write(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let fmap = one_extent();
    let ready = ready(guest)?;
    for small in [false, true] {
        let fs = ready.one_file("file", &fmap)?;
        let file = fs.open_rw("file")?;
        let mapping = Mapping::new(&file, 0, AU as usize, Kind::SharedWrite)?;
        if small {
            mapping.no_huge_pages()?;
        }
        let at = 5 * PAGE + 7;
        ensure_eq!(
            vec![mapping.byte(at as usize)],
            pattern(at, 1),
            "the byte before"
        );
        mapping.set_byte(at as usize, 0x5a);
        ensure_eq!(
            ready.raw_bytes(&fmap, at, 1)?,
            [0x5a],
            "the raw byte after, small entries {small}"
        );
    }
    Ok(())
}

fn two_processes_share(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let fs = ready(guest)?.one_file("file", &one_extent())?;
    let (mut writer, mut reader) = (Probe::start()?, Probe::start()?);
    expect_value(writer.map(&fs.path("file"), AU, Kind::SharedWrite)?)?;
    expect_value(reader.map(&fs.path("file"), AU, Kind::SharedRead)?)?;
    for (at, value) in [(0, 1), (AU - 1, 2), (777, 3)] {
        ensure_eq!(
            writer.set(at, value)?,
            Reply::Value(0),
            "store at {at:#x} in one process"
        );
        ensure_eq!(
            reader.get(at)?,
            Reply::Value(u64::from(value)),
            "load at {at:#x} in another"
        );
    }
    Ok(())
}

/// Stores to a private mapping stay in it; what it did not store to it shares.
fn private_copies(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let fmap = one_extent();
    let ready = ready(guest)?;
    let fs = ready.one_file("file", &fmap)?;
    let file = fs.open_rw("file")?;
    let private = Mapping::new(&file, 0, AU as usize, Kind::Private)?;
    // The first page is read before it is written, the second is not.
    private.byte(0);
    private.set_byte(0, 0xee);
    private.set_byte(PAGE as usize, 0xee);
    ensure_eq!(
        ready.raw_bytes(&fmap, 0, 1)?,
        pattern(0, 1),
        "raw byte behind the first page"
    );
    ensure_eq!(
        ready.raw_bytes(&fmap, PAGE, 1)?,
        pattern(PAGE, 1),
        "raw byte behind the second page"
    );
    ensure_eq!(
        (private.byte(0), private.byte(PAGE as usize)),
        (0xee, 0xee),
        "bytes in the private mapping"
    );
    ensure_eq!(
        private.read(1, 4095),
        pattern(1, 4095),
        "the rest of the copied page"
    );
    file.write_all_at(&[0x77], 2 * PAGE)?;
    ensure_eq!(
        private.byte(2 * PAGE as usize),
        0x77,
        "a page that was not stored to"
    );
    Ok(())
}

/// The last page is there as a whole; the next one is SIGBUS with the address that was touched.
fn sigbus_past_the_end(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let fmap = one_extent();
    let fs = ready(guest)?.one_file("file", &fmap)?;
    let end = fmap.size.next_multiple_of(PAGE);
    ensure!(
        end < 2 * AU,
        "the file leaves no page behind it in the last allocation unit"
    );
    for (at, write) in [
        (end, false),
        (end + 1234, true),
        (2 * AU, false),
        (3 * AU - 1, true),
    ] {
        let mut probe = Probe::start()?;
        let address = expect_value(probe.map(&fs.path("file"), 3 * AU, Kind::SharedWrite)?)?;
        ensure!(
            matches!(probe.get(end - 1)?, Reply::Value(_)),
            "the last page cannot be read to its end"
        );
        let reply = if write {
            probe.set(at, 1)?
        } else {
            probe.get(at)?
        };
        ensure_eq!(
            reply,
            Reply::Sigbus(libc::BUS_ADRERR, (address + at) as usize),
            "touching {at:#x}"
        );
    }
    Ok(())
}

/// The value of a reply that has one.
pub fn expect_value(reply: Reply) -> Result<u64> {
    match reply {
        Reply::Value(value) => Ok(value),
        other => bail!("expected a value, got {other:?}"),
    }
}

/// The entries of a DAX mapping are not what the page cache leaves behind. Taken for that, they name nodes of memory that
/// do not exist.
fn cachestat_counts_nothing(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let fmap = one_extent();
    let fs = ready(guest)?.one_file("file", &fmap)?;
    let file = fs.open_rw("file")?;
    let mapping = Mapping::new(&file, 0, fmap.size as usize, Kind::SharedWrite)?;
    mapping.populate(true)?;
    ensure_eq!(cachestat(&file)?, [0; 5], "what cachestat() counts");
    Ok(())
}
