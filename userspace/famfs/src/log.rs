// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reading and appending to a log in shared memory, with the cache operations that let another host see it right
//! (docs/abi.md, section 4.3).

use std::io;

use anyhow::Context;
use famfs_fuse::Region;
use famfs_media::{
    entry_offset, Body, Entry, LogError, LogHeader, Replay, Superblock, ENTRY_BYTES, HEADER_BYTES,
};

/// Memory that other hosts may write to.
pub trait Store {
    /// Copy bytes out.
    fn read(&self, at: usize, out: &mut [u8]) -> io::Result<()>;
    /// Copy bytes in.
    fn write(&self, at: usize, bytes: &[u8]) -> io::Result<()>;
    /// Write cache lines back, before anything that is stored later.
    fn flush(&self, at: usize, len: usize) -> io::Result<()>;
    /// Drop cache lines, so that the next read sees memory.
    fn invalidate(&self, at: usize, len: usize) -> io::Result<()>;
}

impl Store for Region {
    fn read(&self, at: usize, out: &mut [u8]) -> io::Result<()> {
        Region::read(self, at, out)
    }
    fn write(&self, at: usize, bytes: &[u8]) -> io::Result<()> {
        Region::write(self, at, bytes)
    }
    fn flush(&self, at: usize, len: usize) -> io::Result<()> {
        Region::flush(self, at, len)
    }
    fn invalidate(&self, at: usize, len: usize) -> io::Result<()> {
        Region::invalidate(self, at, len)
    }
}

/// Bytes of `store` as memory has them now.
pub fn read_fresh(store: &impl Store, at: usize, len: usize) -> io::Result<Vec<u8>> {
    let mut out = vec![0; len];
    store.invalidate(at, len)?;
    store.read(at, &mut out)?;
    Ok(out)
}

/// Header of a log, which belongs to `sb`.
pub fn header(store: &impl Store, sb: &Superblock) -> anyhow::Result<LogHeader> {
    let bytes = read_fresh(store, 0, HEADER_BYTES).context("reading the log header")?;
    Ok(LogHeader::parse(&bytes, sb.log_len).map_err(LogError::from)?)
}

/// Bytes of entries `from..to`.
pub fn entries(store: &impl Store, from: u64, to: u64) -> anyhow::Result<Vec<u8>> {
    let start = entry_offset(from).context("log entry index too large")?;
    let end = entry_offset(to).context("log entry index too large")?;
    let len = end
        .checked_sub(start)
        .context("log entries run backwards")?;
    read_fresh(store, usize::try_from(start)?, usize::try_from(len)?).context("reading the log")
}

/// Bring `replay` up to date. A broken entry is read once more from memory: another host's write may have been on
/// its way.
pub fn catch_up(store: &impl Store, header: &LogHeader, replay: &mut Replay) -> anyhow::Result<()> {
    let from = replay.next_index();
    let mut bytes = entries(store, from, header.next_index.max(from))?;
    let index = match replay.advance(header, &bytes) {
        Ok(_) => return Ok(()),
        Err(LogError::Entry { index, .. }) => index,
        Err(error) => return Err(error.into()),
    };
    let again = entries(store, index, index.saturating_add(1))?;
    let at = usize::try_from(index.saturating_sub(from))?.saturating_mul(ENTRY_BYTES);
    if let Some(old) = bytes.get_mut(at..at.saturating_add(ENTRY_BYTES)) {
        old.copy_from_slice(&again);
    }
    replay.advance(header, &bytes)?;
    Ok(())
}

/// Append `bodies` and publish them: the entries are in memory before the counters that announce them, so that a
/// reader on another host sees a whole entry or none. Returns the header afterwards; on an error that is a
/// [`LogError`] nothing was written.
pub fn append(
    store: &impl Store,
    header: &LogHeader,
    bodies: Vec<Body>,
) -> anyhow::Result<LogHeader> {
    let after = header.after_append(bodies.len() as u64)?;
    let bytes: Vec<u8> = (header.next_index..)
        .zip(bodies)
        .flat_map(|(seqnum, body)| Entry { seqnum, body }.encode())
        .collect();
    let at =
        usize::try_from(entry_offset(header.next_index).context("log entry index too large")?)?;
    let counters_at = usize::try_from(LogHeader::COUNTERS_AT)?;
    let counters = after.encode_counters();
    let publish = || {
        store.write(at, &bytes)?;
        store.flush(at, bytes.len())?;
        store.write(counters_at, &counters)?;
        store.flush(counters_at, counters.len())
    };
    publish().context("writing the log")?;
    Ok(after)
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
