// SPDX-License-Identifier: MIT OR Apache-2.0
//! A client of the soak: it knows what its bytes are, and when an access may fail.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Debug};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{bail, ensure, Context, Result};

use super::fixture::{ensure_eq, pattern};
use super::tool::at;
use crate::fmap::AU;
use crate::hostile::Rng;
use crate::probe::{Probe, Reply};
use crate::sys::Kind;

/// The daxdevs of each file's strips.
pub const STRIPS: [&[usize]; 6] = [&[0], &[0, 1], &[1], &[1, 0], &[0], &[0, 1]];
pub const FILES: u64 = STRIPS.len() as u64;
pub const CLIENTS: u64 = 3;
/// Bytes of a file that belong to one client: nobody else writes there.
const SHARE: u64 = AU;
pub const SIZE: u64 = CLIENTS * SHARE - 4219;
const PAGE: u64 = 4096;

/// A file, and the daxdevs of its strips: a share lies in one strip.
pub struct Placed {
    pub name: String,
    pub strips: Vec<usize>,
}

/// Files and their pages that are poisoned, daxdevs without a driver.
#[derive(Default)]
pub struct Damage {
    pub poisoned: BTreeSet<(u64, u64)>,
    pub unbound: BTreeSet<usize>,
}

/// What the clients must put up with in this round.
pub struct Round<'a> {
    /// The policy of memory errors.
    pub range: bool,
    pub files: &'a [Placed],
    /// The server or the connection has ended, or is about to.
    pub unserved: AtomicBool,
    /// The mount is not in the tree any more, or is about to go.
    pub detached: AtomicBool,
    /// What may be so, noted a moment before.
    coming: Mutex<Damage>,
    /// What is so, noted a moment after.
    done: Mutex<Damage>,
    pub over: AtomicBool,
}

impl<'a> Round<'a> {
    pub fn new(range: bool, files: &'a [Placed]) -> Self {
        Self {
            range,
            files,
            unserved: AtomicBool::new(false),
            detached: AtomicBool::new(false),
            coming: Mutex::default(),
            done: Mutex::default(),
            over: AtomicBool::new(false),
        }
    }

    pub fn is_unserved(&self) -> bool {
        self.unserved.load(Ordering::SeqCst)
    }

    pub fn is_detached(&self) -> bool {
        self.detached.load(Ordering::SeqCst)
    }

    pub fn coming(&self) -> MutexGuard<'_, Damage> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn done(&self) -> MutexGuard<'_, Damage> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn file(&self, number: u64) -> Result<&Placed> {
        self.files.get(number as usize).context("no such file")
    }

    fn daxdev(&self, file: u64, pos: u64) -> Result<usize> {
        let strips = self.file(file)?.strips.iter().cycle();
        let strip = strips.copied().nth((pos / SHARE) as usize);
        strip.context("a file without strips")
    }

    /// Whether the file's memory at `pos` is on a daxdev that has gone.
    pub fn is_gone(&self, damage: &Damage, file: u64, pos: u64) -> Result<bool> {
        Ok(damage.unbound.contains(&self.daxdev(file, pos)?))
    }

    /// Whether reads and writes of the file at `pos` meet a memory error.
    fn is_lost(&self, damage: &Damage, file: u64, pos: u64) -> Result<bool> {
        if self.range {
            return Ok(damage.poisoned.contains(&(file, pos / PAGE)));
        }
        let daxdev = self.daxdev(file, pos)?;
        for (other, page) in &damage.poisoned {
            if self.daxdev(*other, page * PAGE)? == daxdev {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a load or a store at `pos` of the file that begins now must fail.
    fn must_fault(&self, file: u64, pos: u64) -> Result<bool> {
        let done = self.done();
        Ok(done.poisoned.contains(&(file, pos / PAGE)) || self.is_gone(&done, file, pos)?)
    }

    /// Whether a read or a write at `pos` of the file that begins now must fail.
    fn must_fail(&self, file: u64, pos: u64) -> Result<bool> {
        let done = self.done();
        Ok(self.is_lost(&done, file, pos)? || self.is_gone(&done, file, pos)?)
    }

    /// What an open may fail with by now; `by_tree` if not by way of the controller's directory.
    pub fn excuse_open(&self, file: u64, by_tree: bool, errno: i32) -> Result<()> {
        let excused = match errno {
            libc::ENOENT => by_tree && self.is_detached(),
            libc::ENOTCONN | libc::ECONNABORTED => self.is_unserved(),
            // While its driver goes, when it has none, and when it has another.
            libc::ENODEV | libc::ENXIO | libc::EOPNOTSUPP => {
                let coming = self.coming();
                let mut strips = self.file(file)?.strips.iter();
                strips.any(|daxdev| coming.unbound.contains(daxdev))
            }
            _ => false,
        };
        ensure!(excused, "open of file {file} failed with errno {errno}");
        Ok(())
    }

    /// What a read or a write at `pos` may fail with by now.
    fn excuse_access(&self, file: u64, pos: u64, errno: i32) -> Result<()> {
        let coming = self.coming();
        let excused = match errno {
            libc::EHWPOISON => self.is_lost(&coming, file, pos)?,
            libc::ENXIO => self.is_gone(&coming, file, pos)?,
            _ => false,
        };
        ensure!(excused, "errno {errno} at {pos:#x} of file {file}");
        Ok(())
    }

    /// Whether a read or a write may end before `end`.
    fn excuse_short(&self, file: u64, end: u64) -> Result<()> {
        let coming = self.coming();
        let excused = self.is_gone(&coming, file, end)?
            || self.is_lost(&coming, file, end)? && (!self.range || end % PAGE == 0);
        ensure!(excused, "an access to file {file} ended at {end:#x}");
        Ok(())
    }

    /// What a load or a store at `pos` of a mapping at `address` may end with by now.
    pub fn excuse_signal(&self, file: u64, pos: u64, address: u64, reply: &Reply) -> Result<()> {
        let coming = self.coming();
        let excused = match *reply {
            Reply::Sigbus(_, at) if at as u64 != address + pos => false,
            Reply::Sigbus(libc::BUS_MCEERR_AR, _) => coming.poisoned.contains(&(file, pos / PAGE)),
            Reply::Sigbus(libc::BUS_ADRERR, _) => {
                self.is_gone(&coming, file, pos)?
                    || !self.range && self.is_lost(&coming, file, pos)?
            }
            _ => false,
        };
        let place = format!("{pos:#x} of file {file}, mapped at {address:#x}");
        ensure!(excused, "an access to {place} ended with {reply:?}");
        Ok(())
    }
}

/// How often what was done.
#[derive(Default)]
pub struct Counts(Mutex<BTreeMap<String, u64>>);

impl Counts {
    pub fn add(&self, what: impl Debug) {
        let text = format!("{what:?}");
        let key = text.split([' ', '(']).next().unwrap_or_default();
        let key = key.trim_matches('"');
        if let Ok(mut counts) = self.0.lock() {
            *counts.entry(key.to_owned()).or_default() += 1;
        }
    }

    pub fn of(&self, what: &str) -> u64 {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(what).copied().unwrap_or(0)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.lock() {
            Ok(counts) => {
                let words: Vec<_> = counts
                    .iter()
                    .map(|(what, n)| format!("{n} {what}"))
                    .collect();
                write!(f, "{}", words.join(", "))
            }
            Err(_) => Err(fmt::Error),
        }
    }
}

/// The bytes of a client's share of each file that are not those of the pattern.
pub type Written = BTreeMap<(u64, u64), u8>;

/// Where a client's bytes lie in each file.
pub fn share(id: u64) -> (u64, u64) {
    (id * SHARE, SIZE.min((id + 1) * SHARE))
}

pub fn expected(written: &Written, file: u64, pos: u64, len: usize) -> Vec<u8> {
    let mut bytes = pattern(pos, len);
    for ((_, at), byte) in written.range((file, pos)..(file, pos + len as u64)) {
        bytes[(at - pos) as usize] = *byte;
    }
    bytes
}

/// A thread with open files, and a process with a mapping.
pub struct Client<'a> {
    id: u64,
    rng: Rng,
    round: &'a Round<'a>,
    counts: &'a Counts,
    written: &'a mut Written,
    file: Option<(u64, File)>,
    /// And the address of its mapping.
    probe: Option<(u64, Probe, u64)>,
}

impl<'a> Client<'a> {
    pub fn new(
        id: u64,
        seed: u64,
        round: &'a Round<'a>,
        counts: &'a Counts,
        written: &'a mut Written,
    ) -> Self {
        Self {
            id,
            rng: Rng(seed),
            round,
            counts,
            written,
            file: None,
            probe: None,
        }
    }

    pub fn run(&mut self) -> Result<()> {
        let mut result = Ok(());
        while result.is_ok() && !self.round.over.load(Ordering::Relaxed) {
            result = match self.rng.below(12) {
                0 | 1 => self.open(),
                2 => self.map(),
                3..=5 => self.load(),
                6 | 7 => self.store(),
                8 | 9 => self.read(),
                _ => self.write(),
            };
        }
        if result.is_err() {
            self.round.over.store(true, Ordering::Relaxed);
        }
        (self.file, self.probe) = (None, None);
        result.with_context(|| format!("client {}", self.id))
    }

    fn open(&mut self) -> Result<()> {
        self.file = None;
        let number = self.rng.below(FILES);
        let path = at(&self.round.file(number)?.name);
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => {
                self.file = Some((number, file));
                self.counts.add("Open");
                Ok(())
            }
            Err(error) => self.failed_open(number, error.raw_os_error().unwrap_or(-1)),
        }
    }

    fn failed_open(&self, file: u64, errno: i32) -> Result<()> {
        self.counts.add("FailedOpen");
        self.round.excuse_open(file, true, errno)
    }

    fn map(&mut self) -> Result<()> {
        self.probe = None;
        let number = self.rng.below(FILES);
        let path = at(&self.round.file(number)?.name);
        let mut probe = Probe::start()?;
        match probe.map(&path, SIZE, Kind::SharedWrite)? {
            Reply::Value(address) => {
                self.probe = Some((number, probe, address));
                self.counts.add("Map");
                Ok(())
            }
            Reply::Errno(errno) => self.failed_open(number, errno),
            other => bail!("map: {other:?}"),
        }
    }

    /// A place in the client's share; near the start of a page, so that what is written stays little.
    fn place(&mut self, len: u64) -> u64 {
        let (start, end) = share(self.id);
        let page = self.rng.below((end - start) / PAGE);
        start + page * PAGE + self.rng.below(64 - len)
    }

    fn load(&mut self) -> Result<()> {
        let pos = self.place(1);
        let Some((number, probe, _)) = &mut self.probe else {
            return Ok(());
        };
        let want = expected(self.written, *number, pos, 1);
        let lost = self.round.must_fault(*number, pos)?;
        match probe.get(pos)? {
            Reply::Value(got) => {
                ensure!(!lost, "{pos:#x} of file {number} was loaded, and is lost");
                ensure_eq!(
                    [got as u8],
                    want[..],
                    "the byte at {pos:#x} of file {number}, by load"
                );
            }
            other => return self.signalled(pos, other),
        }
        self.counts.add("Load");
        Ok(())
    }

    fn store(&mut self) -> Result<()> {
        let (pos, value) = (self.place(1), self.rng.next() as u8);
        let Some((number, probe, _)) = &mut self.probe else {
            return Ok(());
        };
        let lost = self.round.must_fault(*number, pos)?;
        match probe.set(pos, value)? {
            Reply::Value(_) => {
                ensure!(!lost, "{pos:#x} of file {number} was stored, and is lost");
                self.written.insert((*number, pos), value)
            }
            other => return self.signalled(pos, other),
        };
        self.counts.add("Store");
        Ok(())
    }

    fn signalled(&mut self, pos: u64, reply: Reply) -> Result<()> {
        let (file, _, address) = self.probe.take().context("nobody was signalled")?;
        self.counts.add("Sigbus");
        self.round.excuse_signal(file, pos, address, &reply)
    }

    fn read(&mut self) -> Result<()> {
        let len = 1 + self.rng.below(PAGE);
        let (start, end) = share(self.id);
        let pos = start + self.rng.below(end - start - len);
        let Some((number, file)) = &self.file else {
            return Ok(());
        };
        let mut got = vec![0; len as usize];
        let lost = self.round.must_fail(*number, pos)?;
        match file.read_at(&mut got, pos) {
            Ok(count) => {
                ensure!(!lost, "{pos:#x} of file {number} was read, and is lost");
                if count < got.len() {
                    self.round.excuse_short(*number, pos + count as u64)?;
                }
                let want = expected(self.written, *number, pos, count);
                ensure!(
                    got[..count] == want,
                    "bytes at {pos:#x} of file {number}, by read"
                );
            }
            Err(error) => {
                self.counts.add("FailedAccess");
                let errno = error.raw_os_error().unwrap_or(-1);
                return self.round.excuse_access(*number, pos, errno);
            }
        }
        self.counts.add("Read");
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        let len = 1 + self.rng.below(32);
        let pos = self.place(len);
        let bytes: Vec<u8> = (0..len).map(|_| self.rng.next() as u8).collect();
        let Some((number, file)) = &self.file else {
            return Ok(());
        };
        let lost = self.round.must_fail(*number, pos)?;
        match file.write_at(&bytes, pos) {
            Ok(count) => {
                ensure!(!lost, "{pos:#x} of file {number} was written, and is lost");
                if count < bytes.len() {
                    self.round.excuse_short(*number, pos + count as u64)?;
                }
                let places = (pos..).map(|at| (*number, at));
                self.written
                    .extend(places.zip(bytes[..count].iter().copied()));
            }
            Err(error) => {
                self.counts.add("FailedAccess");
                let errno = error.raw_os_error().unwrap_or(-1);
                return self.round.excuse_access(*number, pos, errno);
            }
        }
        self.counts.add("Write");
        Ok(())
    }
}
