// SPDX-License-Identifier: MIT OR Apache-2.0
//! A client of the soak: it knows what its bytes are, and when an access may fail.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;

use anyhow::{bail, ensure, Context, Result};

use super::fixture::{ensure_eq, pattern};
use super::tool::at;
use crate::fmap::AU;
use crate::hostile::Rng;
use crate::probe::{Probe, Reply};
use crate::sys::Kind;

pub const FILES: u64 = 6;
pub const CLIENTS: u64 = 3;
/// Bytes of a file that belong to one client: nobody else writes there.
const SHARE: u64 = AU;
pub const SIZE: u64 = CLIENTS * SHARE - 4219;

/// What the clients must put up with in this round.
#[derive(Default)]
pub struct Round {
    /// Files can't be opened any more.
    pub dead: AtomicBool,
    /// Memory may be lost.
    pub damaged: AtomicBool,
    pub over: AtomicBool,
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

pub fn path(file: u64) -> String {
    at(&format!("file{file}"))
}

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
    round: &'a Round,
    counts: &'a Counts,
    written: &'a mut Written,
    file: Option<(u64, File)>,
    probe: Option<(u64, Probe)>,
}

impl<'a> Client<'a> {
    pub fn new(
        id: u64,
        seed: u64,
        round: &'a Round,
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

    fn is_damaged(&self) -> bool {
        self.round.damaged.load(Ordering::SeqCst)
    }

    /// What an open may fail with by now.
    fn excuse_open(&self, errno: i32) -> Result<()> {
        let dead = [libc::ENOTCONN, libc::ECONNABORTED, libc::ENOENT];
        // While its driver goes, when it has none, and when it has another.
        let damaged = [libc::ENODEV, libc::ENXIO, libc::EOPNOTSUPP];
        let excused = self.round.dead.load(Ordering::SeqCst) && dead.contains(&errno)
            || self.is_damaged() && damaged.contains(&errno);
        ensure!(excused, "open failed with errno {errno}");
        self.counts.add("FailedOpen");
        Ok(())
    }

    /// What a read or a write may fail with by now.
    fn excuse_access(&self, errno: i32) -> Result<()> {
        let excused = self.is_damaged() && [libc::EHWPOISON, libc::ENXIO].contains(&errno);
        ensure!(excused, "read or write failed with errno {errno}");
        self.counts.add("FailedAccess");
        Ok(())
    }

    fn open(&mut self) -> Result<()> {
        self.file = None;
        let number = self.rng.below(FILES);
        match OpenOptions::new().read(true).write(true).open(path(number)) {
            Ok(file) => {
                self.file = Some((number, file));
                self.counts.add("Open");
                Ok(())
            }
            Err(error) => self.excuse_open(error.raw_os_error().unwrap_or(-1)),
        }
    }

    fn map(&mut self) -> Result<()> {
        self.probe = None;
        let number = self.rng.below(FILES);
        let mut probe = Probe::start()?;
        match probe.map(&path(number), SIZE, Kind::SharedWrite)? {
            Reply::Value(_) => {
                self.probe = Some((number, probe));
                self.counts.add("Map");
                Ok(())
            }
            Reply::Errno(errno) => self.excuse_open(errno),
            other => bail!("map: {other:?}"),
        }
    }

    /// A place in the client's share; near the start of a page, so that what is written stays little.
    fn place(&mut self, len: u64) -> u64 {
        let (start, end) = share(self.id);
        let page = self.rng.below((end - start) / 4096);
        start + page * 4096 + self.rng.below(64 - len)
    }

    fn load(&mut self) -> Result<()> {
        let pos = self.place(1);
        let Some((number, probe)) = &mut self.probe else {
            return Ok(());
        };
        let want = expected(self.written, *number, pos, 1);
        match probe.get(pos)? {
            Reply::Value(got) => ensure_eq!(
                [got as u8],
                want[..],
                "the byte at {pos:#x} of file {number}, by load"
            ),
            other => return self.excuse_signal(other),
        }
        self.counts.add("Load");
        Ok(())
    }

    fn store(&mut self) -> Result<()> {
        let (pos, value) = (self.place(1), self.rng.next() as u8);
        let Some((number, probe)) = &mut self.probe else {
            return Ok(());
        };
        match probe.set(pos, value)? {
            Reply::Value(_) => self.written.insert((*number, pos), value),
            other => return self.excuse_signal(other),
        };
        self.counts.add("Store");
        Ok(())
    }

    fn excuse_signal(&mut self, reply: Reply) -> Result<()> {
        let excused = matches!(reply, Reply::Sigbus(..));
        ensure!(
            excused && self.is_damaged(),
            "an access ended with {reply:?}"
        );
        self.probe = None;
        self.counts.add("Sigbus");
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        let len = 1 + self.rng.below(4096);
        let (start, end) = share(self.id);
        let pos = start + self.rng.below(end - start - len);
        let Some((number, file)) = &self.file else {
            return Ok(());
        };
        let mut got = vec![0; len as usize];
        match file.read_at(&mut got, pos) {
            Ok(count) => {
                let whole = count == got.len() || self.is_damaged();
                ensure!(whole, "{count} of {len} bytes read at {pos:#x}");
                let want = expected(self.written, *number, pos, count);
                ensure!(
                    got[..count] == want,
                    "bytes at {pos:#x} of file {number}, by read"
                );
            }
            Err(error) => return self.excuse_access(error.raw_os_error().unwrap_or(-1)),
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
        match file.write_at(&bytes, pos) {
            Ok(count) => {
                let whole = count == bytes.len() || self.is_damaged();
                ensure!(whole, "{count} of {len} bytes written at {pos:#x}");
                let places = (pos..).map(|at| (*number, at));
                self.written
                    .extend(places.zip(bytes[..count].iter().copied()));
            }
            Err(error) => return self.excuse_access(error.raw_os_error().unwrap_or(-1)),
        }
        self.counts.add("Write");
        Ok(())
    }
}
