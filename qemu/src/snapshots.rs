// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a host that dies while it appends leaves in the shared memory. QEMU is stopped (SIGSTOP) at random points of an
//! append, and the log as its memory has it then is copied: SIGKILL would have left the same. famfs on this host judges
//! the copies.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use famfs_media::{
    entry_offset, LogHeader, Superblock, ALLOC_UNIT, HEADER_BYTES, LOG_OFFSET, SUPERBLOCK_BYTES,
};
use rustix::process::{kill_process, waitpid, Pid, Signal, WaitOptions};
use serde_json::Value;

/// Snapshots of each append.
const POINTS: usize = 10;
/// How long a guest may take to begin an append that it has announced.
const PATIENCE: Duration = Duration::from_secs(60);

/// Copies of a log under way.
pub struct Snapshots {
    memory: File,
    famfs: PathBuf,
    image: PathBuf,
    random: u64,
    /// Copies that nobody has judged yet, of an append of so many entries after so many.
    taken: Vec<Vec<u8>>,
    append: (u64, u64),
    superblock: Vec<u8>,
    judged: usize,
    midway: usize,
    /// The first thing that went wrong.
    wrong: Option<String>,
}

impl Snapshots {
    /// Of the log that will be in this file; `famfs` is the program.
    pub fn new(memory: &Path, famfs: PathBuf, seed: u64) -> Result<Self> {
        Ok(Self {
            memory: File::open(memory).with_context(|| memory.display().to_string())?,
            famfs,
            image: memory.with_extension("snapshot"),
            random: seed,
            taken: Vec::new(),
            append: (0, 0),
            superblock: Vec::new(),
            judged: 0,
            midway: 0,
            wrong: None,
        })
    }

    /// Stops the guest while it appends `count` entries, and copies its log.
    pub fn take(&mut self, qemu: &Child, count: u64) {
        if let Err(error) = self.try_take(qemu, count) {
            self.wrong.get_or_insert(format!("{error:#}"));
        }
    }

    fn try_take(&mut self, qemu: &Child, count: u64) -> Result<()> {
        let base = self.find_superblock()?;
        let log = base + LOG_OFFSET;
        let header = LogHeader::decode(&self.bytes(log, HEADER_BYTES as u64)?);
        let before = header.context("log header")?.next_index;
        self.superblock = self.bytes(base, SUPERBLOCK_BYTES as u64)?;
        self.append = (before, count);
        let mut points: Vec<u64> = (0..POINTS).map(|_| self.next_random() % count).collect();
        points.sort_unstable();
        let end = entry_at(before + count)?;
        let pid = Pid::from_child(qemu);
        let start = Instant::now();
        for point in points {
            let entry = log + entry_at(before + point)?;
            while self.word(entry)? == 0 {
                ensure!(start.elapsed() < PATIENCE, "nothing is appended");
            }
            kill_process(pid, Signal::STOP)?;
            // Until all of its threads have stopped.
            waitpid(Some(pid), WaitOptions::UNTRACED)?;
            let copy = self.bytes(log, end);
            kill_process(pid, Signal::CONT)?;
            self.taken.push(copy?);
        }
        Ok(())
    }

    /// Judges what was taken; gives the sum of it in one line, which begins with "whole" if all is.
    pub fn judge(&mut self) -> String {
        for copy in std::mem::take(&mut self.taken) {
            let result = self.judge_one(&copy);
            self.judged += 1;
            if let Err(error) = result {
                let text = format!("snapshot {}: {error:#}", self.judged);
                self.wrong.get_or_insert(text);
            }
        }
        let (judged, midway) = (self.judged, self.midway);
        match &self.wrong {
            Some(wrong) => wrong.replace('\n', " "),
            None => format!("whole {judged} of which {midway} in the middle"),
        }
    }

    /// All entries of before are there, all or none of the append, each whole, and nothing left out.
    fn judge_one(&mut self, log: &[u8]) -> Result<()> {
        let image = File::create(&self.image)?;
        image.write_all_at(&self.superblock, 0)?;
        image.write_all_at(log, LOG_OFFSET)?;
        let fsck = self.famfs_json("fsck")?;
        ensure!(fsck["errors"] == Value::Array(Vec::new()), "fsck: {fsck}");
        let (before, count) = self.append;
        let entries = fsck["log_entries"].as_u64().context("no log_entries")?;
        ensure!(
            entries == before || entries == before + count,
            "{entries} entries, {count} were appended to {before}"
        );
        let dump = self.famfs_json("dump")?;
        let dumped = dump["log"]["entries"].as_array().context("no entries")?;
        ensure!(
            dumped.len() as u64 == entries,
            "{} in the dump",
            dumped.len()
        );
        let whole = dumped.iter().all(|entry| entry["crc_ok"] == true);
        ensure!(whole, "an entry in the dump is not whole");
        let files = fsck["files"].as_u64().unwrap_or(0) + fsck["directories"].as_u64().unwrap_or(0);
        let daxdevs = fsck["daxdevs"].as_array().map_or(0, Vec::len) as u64;
        ensure!(
            files + daxdevs == entries + 1,
            "{files} files and directories of {entries} entries"
        );
        let has_more = entries == before && word_at(log, entry_at(before)?) != 0;
        let header = LogHeader::decode(log).context("log header")?;
        let differ = header.next_seqnum != header.next_index;
        self.midway += usize::from(has_more || differ);
        Ok(())
    }

    fn famfs_json(&self, verb: &str) -> Result<Value> {
        let output = Command::new(&self.famfs)
            .args([verb, "--json"])
            .arg(&self.image)
            .output()
            .with_context(|| self.famfs.display().to_string())?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "famfs {verb}: {}", said.trim());
        serde_json::from_slice(&output.stdout).context("JSON of famfs")
    }

    /// Behind what ndctl has written of the namespace.
    fn find_superblock(&self) -> Result<u64> {
        for base in (0..64 * ALLOC_UNIT).step_by(ALLOC_UNIT as usize) {
            if self.word(base)? == Superblock::MAGIC {
                return Ok(base);
            }
        }
        bail!("no superblock in the shared memory")
    }

    fn word(&self, at: u64) -> Result<u64> {
        let mut word = [0; 8];
        self.memory.read_exact_at(&mut word, at)?;
        Ok(u64::from_le_bytes(word))
    }

    fn bytes(&self, at: u64, len: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        self.memory.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// Of a linear congruential generator, whose high bits are good enough.
    fn next_random(&mut self) -> u64 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.random >> 33
    }
}

impl Drop for Snapshots {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.image);
    }
}

fn entry_at(index: u64) -> Result<u64> {
    entry_offset(index).context("log entry index too large")
}

fn word_at(bytes: &[u8], at: u64) -> u64 {
    let at = at as usize;
    let word = bytes.get(at..at + 8).and_then(|word| word.try_into().ok());
    word.map_or(0, u64::from_le_bytes)
}
