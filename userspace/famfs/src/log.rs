// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reading and appending to a log in shared memory, with the cache operations that let another host see it right
//! (docs/abi.md, section 4.3).

use std::io;

use anyhow::Context;
use famfs_fuse::Region;
use famfs_media::{
    entry_offset, Body, Entry, EntryError, LogError, LogHeader, Replay, Superblock, ENTRY_BYTES,
    HEADER_BYTES,
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

/// Entries that are read at a time, about half a MiB.
pub const PIECE: u64 = 1024;

/// Bytes of entries `from..to`.
pub fn entries(store: &impl Store, from: u64, to: u64) -> anyhow::Result<Vec<u8>> {
    let start = entry_offset(from).context("log entry index too large")?;
    let end = entry_offset(to).context("log entry index too large")?;
    let len = end
        .checked_sub(start)
        .context("log entries run backwards")?;
    read_fresh(store, usize::try_from(start)?, usize::try_from(len)?).context("reading the log")
}

/// How far a log has whole entries.
#[derive(Debug)]
pub struct Scan {
    /// Index behind the last of them.
    pub next_index: u64,
    /// The entry there, if the header announces one.
    pub broken: Option<Broken>,
}

/// The first entry of a log that is not whole.
#[derive(Debug)]
pub struct Broken {
    /// Its index.
    pub index: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
    error: EntryError,
    /// Whether an entry behind it is whole: then it is damage, else an append that was cut short.
    damage: bool,
}

impl Broken {
    /// # Errors
    /// An entry behind it is whole.
    pub fn check_end(&self) -> Result<(), LogError> {
        let (index, error) = (self.index, self.error);
        match self.damage {
            true => Err(LogError::Entry { index, error }),
            false => Ok(()),
        }
    }
}

/// Reads the entries from `from` on that `header` announces. `take` gets those that are whole, up to the first that is
/// not, piece by piece with the index of the first of each: bytes of this host, for memory may have others by now. A
/// broken entry is read once more from memory: another host's write may have been on its way.
///
/// # Errors
/// The log is shorter than `from`, or `take` fails.
pub fn scan(
    store: &impl Store,
    header: &LogHeader,
    from: u64,
    mut take: impl FnMut(u64, &[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<Scan> {
    let (known, found) = (from, header.next_index);
    if found < known {
        return Err(LogError::Shrunk { known, found }.into());
    }
    let mut scan = Scan {
        next_index: from,
        broken: None,
    };
    for start in (from..found).step_by(usize::try_from(PIECE)?) {
        let mut piece = entries(store, start, start.saturating_add(PIECE).min(found))?;
        for (index, bytes) in (start..).zip(piece.chunks_exact_mut(ENTRY_BYTES)) {
            match &mut scan.broken {
                None => match whole_or_again(store, index, bytes)? {
                    Ok(()) => scan.next_index = index.saturating_add(1),
                    Err(error) => {
                        scan.broken = Some(Broken {
                            index,
                            bytes: bytes.to_vec(),
                            error,
                            damage: false,
                        });
                    }
                },
                Some(broken) if Entry::parse(bytes, index).is_ok() => {
                    broken.damage = true;
                    return Ok(scan);
                }
                Some(_) => {}
            }
        }
        let count = usize::try_from(scan.next_index.saturating_sub(start))?;
        match piece.get(..count.saturating_mul(ENTRY_BYTES)) {
            Some(whole) if !whole.is_empty() => take(start, whole)?,
            _ => {}
        }
    }
    Ok(scan)
}

/// Whether entry `index`, whose bytes are `bytes`, is whole, if need be as it is in memory by now.
fn whole_or_again(
    store: &impl Store,
    index: u64,
    bytes: &mut [u8],
) -> anyhow::Result<Result<(), EntryError>> {
    if Entry::parse(bytes, index).is_ok() {
        return Ok(Ok(()));
    }
    bytes.copy_from_slice(&entries(store, index, index.saturating_add(1))?);
    Ok(Entry::parse(bytes, index).map(drop))
}

/// Bring `replay` up to date, as far as the log has whole entries: `replay.next_index()` is less than the header's
/// where its end was not written whole.
///
/// # Errors
/// An entry is broken and one behind it is not. Nothing was replayed then.
pub fn catch_up(store: &impl Store, header: &LogHeader, replay: &mut Replay) -> anyhow::Result<()> {
    let mut whole = Vec::new();
    let scan = scan(store, header, replay.next_index(), |_, bytes| {
        whole.extend_from_slice(bytes);
        Ok(())
    })?;
    if let Some(broken) = &scan.broken {
        broken.check_end()?;
    }
    let upto = LogHeader {
        next_index: scan.next_index,
        ..*header
    };
    replay.advance(&upto, &whole)?;
    Ok(())
}

/// The header with which to append, of a log that has `known` whole entries of those that `header` announces: what an
/// append that was cut short has left is put right. Counters that announce entries which never arrived go back to the
/// last whole one. Counters that differ, because one was stored and the other was not, count the whole entries from
/// then on: upstream's differ by one then, and ours are stored when all entries up to the larger one are whole.
///
/// # Errors
/// The counters differ for no such reason.
pub fn settled(store: &impl Store, header: &LogHeader, known: u64) -> anyhow::Result<LogHeader> {
    let (seqnum, index) = (header.next_seqnum, header.next_index);
    let mut whole = known;
    if seqnum > index && seqnum <= header.last_index.saturating_add(1) {
        let announced = LogHeader {
            next_index: seqnum,
            ..*header
        };
        let scan = scan(store, &announced, known, |_, _| Ok(()))?;
        scan.broken.as_ref().map_or(Ok(()), Broken::check_end)?;
        whole = scan.next_index;
    }
    if seqnum.abs_diff(index) > 1 && whole != seqnum.max(index) {
        return Err(LogError::Counters { seqnum, index }.into());
    }
    Ok(LogHeader {
        next_seqnum: whole,
        next_index: whole,
        ..*header
    })
}

/// The same after `replay` has caught up with `header`; it has with the new header, too, then.
///
/// # Errors
/// Those of [`settled`] and [`catch_up`].
pub fn settle(
    store: &impl Store,
    header: &LogHeader,
    replay: &mut Replay,
) -> anyhow::Result<LogHeader> {
    let settled = settled(store, header, replay.next_index())?;
    catch_up(store, &settled, replay)?;
    Ok(settled)
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
    let before = header.encode_counters();
    let publish = || {
        // Those of an append that was cut short may announce the first of these entries, which would be seen alone.
        if read_fresh(store, counters_at, before.len())? != before {
            store.write(counters_at, &before)?;
            store.flush(counters_at, before.len())?;
        }
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

#[cfg(test)]
#[path = "log_crash_tests.rs"]
mod crash_tests;

#[cfg(test)]
#[path = "log_kill_tests.rs"]
mod kill_tests;
