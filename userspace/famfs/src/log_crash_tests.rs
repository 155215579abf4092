// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host that dies while it appends, at every point where it can: what readers on other hosts see then, and that the
//! next master goes on from it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;

use super::*;
use famfs_media::{path_bytes, Kind, MkdirEntry, PrimaryDax, LOG_LEN_MIN};
use proptest::prelude::*;
use uuid::Uuid;

const LINE: usize = 64;
const DEVICE: u64 = 64 << 20;

/// Memory behind the caches of one host, which dies after so many steps: a byte stored is one, a flush is one. The two
/// counters are stored as aligned words, of which the processor stores all bytes or none.
struct Host {
    memory: RefCell<Vec<u8>>,
    cache: RefCell<BTreeMap<usize, [u8; LINE]>>,
    steps: Cell<usize>,
}

impl Host {
    fn new(memory: Vec<u8>, steps: usize) -> Self {
        Self {
            memory: RefCell::new(memory),
            cache: RefCell::default(),
            steps: Cell::new(steps),
        }
    }

    fn step(&self, count: usize) -> io::Result<()> {
        match self.steps.get().checked_sub(count) {
            Some(left) => {
                self.steps.set(left);
                Ok(())
            }
            None => {
                self.steps.set(0);
                Err(io::Error::other("the host is dead"))
            }
        }
    }

    fn line(&self, line: usize) -> [u8; LINE] {
        let memory = || self.memory.borrow()[line * LINE..][..LINE].try_into();
        let cached = self.cache.borrow().get(&line).copied();
        cached.unwrap_or_else(|| memory().unwrap())
    }

    /// Memory after its death: of the lines that were in its cache, those got there that `evicted` says.
    fn remains(self, evicted: impl Fn(usize) -> bool) -> Vec<u8> {
        let mut memory = self.memory.into_inner();
        for (line, bytes) in self.cache.into_inner() {
            if evicted(line) {
                memory[line * LINE..][..LINE].copy_from_slice(&bytes);
            }
        }
        memory
    }
}

impl Store for Host {
    fn read(&self, at: usize, out: &mut [u8]) -> io::Result<()> {
        out.copy_from_slice(&self.memory.borrow()[at..at + out.len()]);
        for (line, bytes) in self.cache.borrow().iter() {
            let from = (line * LINE).max(at);
            let to = ((line + 1) * LINE).min(at + out.len());
            if from < to {
                out[from - at..to - at].copy_from_slice(&bytes[from % LINE..][..to - from]);
            }
        }
        Ok(())
    }
    fn write(&self, at: usize, bytes: &[u8]) -> io::Result<()> {
        let unit = if bytes.len() == 16 { 8 } else { 1 };
        for (at, unit) in (at..).step_by(unit).zip(bytes.chunks(unit)) {
            self.step(unit.len())?;
            let mut line = self.line(at / LINE);
            line[at % LINE..][..unit.len()].copy_from_slice(unit);
            self.cache.borrow_mut().insert(at / LINE, line);
        }
        Ok(())
    }
    fn flush(&self, at: usize, len: usize) -> io::Result<()> {
        self.step(1)?;
        let kept = self.cache.borrow_mut().split_off(&(at / LINE));
        for (line, bytes) in kept {
            if line * LINE < at + len {
                self.memory.borrow_mut()[line * LINE..][..LINE].copy_from_slice(&bytes);
            } else {
                self.cache.borrow_mut().insert(line, bytes);
            }
        }
        Ok(())
    }
    fn invalidate(&self, at: usize, len: usize) -> io::Result<()> {
        self.cache
            .borrow_mut()
            .retain(|line, _| (line + 1) * LINE <= at || at + len <= line * LINE);
        Ok(())
    }
}

/// As upstream appends: entry and counters are stored, and only then all of the log is flushed, from its start.
fn append_like_upstream(
    host: &Host,
    header: &LogHeader,
    bodies: Vec<Body>,
) -> anyhow::Result<LogHeader> {
    let mut header = *header;
    for body in bodies {
        let seqnum = header.next_index;
        header = header.after_append(1)?;
        let at = usize::try_from(entry_offset(seqnum).unwrap())?;
        host.write(at, &Entry { seqnum, body }.encode())?;
        host.write(32, &header.encode_counters())?;
        for line in (0..at + ENTRY_BYTES).step_by(LINE) {
            host.flush(line, LINE)?;
        }
    }
    Ok(header)
}

fn superblock() -> Superblock {
    let dax = PrimaryDax {
        size: DEVICE,
        uuid: Uuid::nil(),
        name: vec![],
    };
    Superblock::new(LOG_LEN_MIN, Uuid::nil(), Uuid::nil(), Uuid::nil(), dax)
}

fn dirs(names: std::ops::Range<u64>) -> Vec<Body> {
    let dir = |name: u64| {
        Body::Mkdir(MkdirEntry {
            uid: 0,
            gid: 0,
            mode: 0o755,
            path: path_bytes(format!("d{name}").as_bytes()),
        })
    };
    names.map(dir).collect()
}

/// A log with `count` directories.
fn log(count: u64) -> Vec<u8> {
    let mut memory = LogHeader::new(LOG_LEN_MIN).encode().to_vec();
    memory.resize(32 << 10, 0);
    let host = Host::new(memory, usize::MAX);
    append(&host, &LogHeader::new(LOG_LEN_MIN), dirs(0..count)).unwrap();
    host.remains(|_| false)
}

/// What a host reads that had nothing of the memory cached.
fn read(memory: &[u8]) -> (LogHeader, Replay) {
    let host = Host::new(memory.to_vec(), usize::MAX);
    let found = header(&host, &superblock()).unwrap();
    let mut replay = Replay::new(&superblock(), DEVICE);
    catch_up(&host, &found, &mut replay).unwrap();
    (found, replay)
}

/// `old` directories, then `new` ones appended by a host that dies after `steps`. Returns whether it got that far.
fn check(
    upstream: bool,
    old: u64,
    new: u64,
    steps: usize,
    evicted: impl Fn(usize) -> bool,
) -> bool {
    let host = Host::new(log(old), steps);
    let before = header(&host, &superblock()).unwrap();
    let new_dirs = dirs(old..old + new);
    let result = match upstream {
        true => append_like_upstream(&host, &before, new_dirs),
        false => append(&host, &before, new_dirs),
    };
    let done = result.is_ok();
    let memory = host.remains(evicted);
    let (announced, replay) = read(&memory);
    let seen = replay.next_index();
    // Upstream's readers take nothing of a log that announces more than there is.
    assert!(
        upstream || announced.next_index <= seen,
        "{announced:?}, {seen} entries"
    );
    assert!(old <= seen && seen <= old + new, "{seen} entries");
    assert!(
        !done || seen == old + new,
        "{seen} entries of a whole append"
    );
    for name in 0..old + new {
        let found = replay.tree.resolve(format!("d{name}").as_bytes());
        assert_eq!(found.is_some(), name < seen, "d{name} of {seen}");
    }
    // The next master.
    let host = Host::new(memory, usize::MAX);
    let (header, mut replay) = read(&host.memory.borrow().clone());
    let header = settle(&host, &header, &mut replay).unwrap();
    let kept = header.next_index;
    assert!(seen <= kept && kept <= old + new, "{kept} entries kept");
    append(&host, &header, dirs(100..102)).unwrap();
    let (header, replay) = read(&host.remains(|_| false));
    assert_eq!(
        (header.next_index, header.next_seqnum),
        (kept + 2, kept + 2)
    );
    assert_eq!(
        (replay.next_index(), replay.totals.dirs),
        (kept + 2, kept + 2)
    );
    let last = replay
        .tree
        .resolve(b"d101")
        .and_then(|id| replay.tree.get(id));
    assert!(matches!(last.map(|node| &node.kind), Some(Kind::Dir(_))));
    done
}

/// All caches reach the memory, as when a process or a virtual machine is killed.
#[test]
fn killed_at_every_step_of_an_append() {
    for upstream in [false, true] {
        for (old, new) in [(0, 1), (20, 1), (2, 2)] {
            let mut steps = 0;
            while !check(upstream, old, new, steps, |_| true) {
                steps += 1;
            }
            assert!(steps as u64 > new * 544, "{steps} steps");
        }
    }
}

/// Counters that announce an entry which never arrived, and a next master that is killed as well: of its append all is
/// seen, or nothing.
#[test]
fn killed_again_while_going_on() {
    let host = Host::new(log(2), ENTRY_BYTES + 16);
    let (found, _) = read(&host.memory.borrow().clone());
    assert!(append_like_upstream(&host, &found, dirs(2..3)).is_err());
    let memory = host.remains(|line| line == 0);
    let (found, replay) = read(&memory);
    assert_eq!((found.next_index, replay.next_index()), (3, 2));
    for steps in 0.. {
        let host = Host::new(memory.clone(), steps);
        let (found, mut replay) = read(&memory);
        let settled = settle(&host, &found, &mut replay).unwrap();
        let done = append(&host, &settled, dirs(100..102)).is_ok();
        let (_, replay) = read(&host.remains(|_| true));
        let seen = replay.next_index();
        assert!(
            seen == 4 || seen == 2 && !done,
            "{seen} entries after {steps} steps"
        );
        if done {
            assert!(steps > 2 * ENTRY_BYTES, "{steps} steps");
            break;
        }
    }
}

proptest! {
    /// Of what was in the caches any part reaches the memory, as when a host loses power.
    #[test]
    fn lost_with_any_part_of_its_caches(
        upstream: bool, old in 0u64..4, new in 1u64..4, steps in 0usize..1800, seed: u64,
    ) {
        check(upstream, old, new, steps, |line| (line as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 == 0);
    }
}

#[test]
fn counters_that_no_append_left_are_not_continued() {
    let mut memory = log(2);
    memory[32] = 42;
    let (header, mut replay) = read(&memory);
    let error = settle(&Host::new(memory, usize::MAX), &header, &mut replay).unwrap_err();
    let counters = LogError::Counters {
        seqnum: 42,
        index: 2,
    };
    assert_eq!(error.downcast_ref(), Some(&counters));
}
