// SPDX-License-Identifier: MIT OR Apache-2.0
//! A server that means harm: most of what it sends is mutated, truncated, too long, late, or sent twice. It keeps a
//! ledger of the fmaps that it sent, so that whatever a file shows can be held against them.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::fmap::{extent, Fmap, Interleaved, Layout, AU};
use crate::wire::{self, Bytes, Request};

const S_IFDIR: u32 = 0o040000;
const S_IFREG: u32 = 0o100000;
const INTERRUPT: u32 = 36;
const NOTIFY_REPLY: u32 = 41;

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// 0 to `bound` - 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// What the server of one mount has sent.
#[derive(Debug, Default)]
pub struct Ledger {
    sent: AtomicU64,
    serial: AtomicU64,
    /// By the size of the file.
    fmaps: Mutex<HashMap<u64, Vec<Fmap>>>,
    /// (index of a daxdev, which of the guest's devices it was said to be)
    named: Mutex<HashSet<(u32, usize)>>,
}

impl Ledger {
    /// Replies and notifications.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Every fmap that was sent for a file of this size.
    pub fn fmaps_of(&self, size: u64) -> Vec<Fmap> {
        locked(&self.fmaps).get(&size).cloned().unwrap_or_default()
    }

    pub fn was_named(&self, index: u32, device: usize) -> bool {
        locked(&self.named).contains(&(index, device))
    }

    pub fn name(&self, index: u32, device: usize) {
        locked(&self.named).insert((index, device));
    }

    fn note(&self, message: &[u8]) {
        if let Some(fmap) = Fmap::decode(message) {
            locked(&self.fmaps).entry(fmap.size).or_default().push(fmap);
        }
    }
}

/// The file system was unmounted, or aborted after the server asked to be told so.
fn is_end(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENODEV | libc::ECONNABORTED)
    )
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One mount's server; its threads share it.
pub struct Hostile<'a> {
    pub ledger: &'a Ledger,
    /// The guest's daxdevs, path and size; the first one is the mount's index 0.
    pub devices: Vec<(String, u64)>,
    /// Where the first of them is in the guest's own list.
    pub first: usize,
    /// INIT is answered with as little truth as the rest.
    pub mutate_init: bool,
}

impl Hostile<'_> {
    /// Answers until the file system is gone.
    pub fn serve(&self, mut dev: File, mut rng: Rng) {
        let mut buffer = vec![0; (1 << 20) + 4096];
        loop {
            let len = match dev.read(&mut buffer) {
                Ok(len) => len,
                Err(error) if is_end(&error) => return,
                Err(_) => continue,
            };
            let Some(request) = buffer.get(..len).and_then(Request::parse) else {
                continue;
            };
            if rng.once_in(64) {
                std::thread::sleep(Duration::from_millis(1 + rng.below(3)));
            }
            let Some((errno, body)) = self.answer(&request, &mut rng) else {
                continue;
            };
            if request.opcode == wire::INIT && !self.mutate_init {
                self.count();
                let _ = dev.write(&wire::reply(request.unique, errno, &body));
                continue;
            }
            self.send(&mut dev, request.unique, errno, &body, &mut rng);
        }
    }

    /// Sends notifications, valid and not, until the file system is gone.
    pub fn notify(&self, mut dev: File, mut rng: Rng, stop: &dyn Fn() -> bool) {
        while !stop() {
            let (code, body) = notification(&mut rng);
            let body = mutated_once_in(3, body, &mut rng);
            let message = wire::reply(0, -code, &body);
            self.count();
            if matches!(dev.write(&message), Err(error) if is_end(&error)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1 + rng.below(4)));
        }
    }

    fn count(&self) {
        self.ledger.sent.fetch_add(1, Ordering::Relaxed);
    }

    /// Sends the answer, perhaps something else before it, perhaps the same once more. However bad the answer is,
    /// the request has an end: a server that leaves it open can only wait for itself.
    fn send(&self, dev: &mut File, unique: u64, errno: i32, body: &[u8], rng: &mut Rng) {
        let good = wire::reply(unique, errno, body);
        let mut bad = good.clone();
        match rng.below(40) {
            0 => put(&mut bad, 0, &(rng.next() as u32).to_le_bytes()),
            1 => put(&mut bad, 4, &interesting(rng).to_le_bytes()[..4]),
            2 => put(&mut bad, 8, &rng.next().to_le_bytes()),
            3 => bad.truncate(rng.below(good.len() as u64) as usize),
            _ => bad.clear(),
        }
        let mut write = |bytes: &[u8]| {
            self.count();
            dev.write(bytes).is_ok()
        };
        if !bad.is_empty() {
            write(&bad);
        }
        if !write(&good) {
            write(&wire::reply(unique, libc::EIO, &[]));
        }
        if rng.once_in(20) {
            write(&good);
        }
    }

    /// None for requests that have no answer.
    fn answer(&self, request: &Request, rng: &mut Rng) -> Option<(i32, Vec<u8>)> {
        if matches!(
            request.opcode,
            wire::FORGET | wire::BATCH_FORGET | INTERRUPT | NOTIFY_REPLY
        ) {
            return None;
        }
        if request.opcode != wire::INIT && rng.once_in(24) {
            return Some((1 + rng.below(511) as i32, Vec::new()));
        }
        let found = |body| Some((0, body));
        match request.opcode {
            wire::INIT => found(self.init(request, rng)),
            wire::LOOKUP => found(mutated_once_in(6, entry(request.name(), rng), rng)),
            wire::GETATTR | wire::SETATTR => {
                let attr = wire::attr_out(request.nodeid, mode(request.nodeid), rng.next() >> 1);
                found(mutated_once_in(12, without_timeout(attr, rng), rng))
            }
            wire::OPEN => found(mutated_once_in(8, open(rng), rng)),
            wire::CREATE => {
                let both = [entry(request.name(), rng), open(rng)].concat();
                found(mutated_once_in(4, both, rng))
            }
            wire::GET_FMAP => found(self.fmap(request, rng)),
            wire::GET_DAXDEV => self.daxdev(request.nodeid, rng),
            wire::RELEASE | wire::DESTROY => found(Vec::new()),
            wire::STATFS => found(mutated_once_in(2, vec![0; 80], rng)),
            _ if rng.once_in(2) => {
                let len = rng.below(256) as usize;
                found(rng.bytes(len))
            }
            _ => Some((libc::ENOSYS, Vec::new())),
        }
    }

    fn init(&self, request: &Request, rng: &mut Rng) -> Vec<u8> {
        let mut out = wire::init_out(request.body, true, true);
        if self.mutate_init {
            // Any of the flags that the kernel offers, most of the time with file maps.
            let low = wire::u32_at(request.body, 12).unwrap_or(0);
            let flags = low & rng.next() as u32 | if rng.once_in(4) { 0 } else { 1 << 30 };
            put(&mut out, 12, &flags.to_le_bytes());
            out = mutated_once_in(2, out, rng);
            // A server with a smaller buffer than that would only shut itself out.
            if wire::u32_at(&out, 20).is_some_and(|max_write| max_write > 1 << 20) {
                put(&mut out, 20, &(1_u32 << 20).to_le_bytes());
            }
        }
        out
    }

    fn fmap(&self, request: &Request, rng: &mut Rng) -> Vec<u8> {
        let serial = self.ledger.serial.fetch_add(1, Ordering::Relaxed);
        let fmap = random_fmap(&self.devices, serial, rng);
        let mut message = mutated_once_in(2, fmap.message(), rng);
        let room = wire::fmap_room(request.body);
        if message.len() > room && !rng.once_in(4) {
            message.truncate(wire::FMAP_HEADER);
        }
        self.ledger.note(&message);
        message
    }

    fn daxdev(&self, index: u64, rng: &mut Rng) -> Option<(i32, Vec<u8>)> {
        let known = usize::try_from(index).ok()?;
        let path = match (rng.below(8), self.devices.get(known)) {
            (0, _) => "/dev/null",
            (1, _) => "/init",
            (2, _) => "/dev/dax7.7",
            (_, Some((path, _))) => path,
            (_, None) => return Some((libc::ENODEV, Vec::new())),
        };
        let body = mutated_once_in(3, wire::daxdev_out(known as u16, path), rng);
        let name = body.get(24..).unwrap_or_default();
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        for (place, (path, _)) in self.devices.iter().enumerate() {
            if path.as_bytes() == name {
                let device = (self.first + place) % self.devices.len();
                self.ledger.name(index as u32, device);
            }
        }
        Some((0, body))
    }
}

/// A valid fmap with a size that no other one of its mount has.
fn random_fmap(devices: &[(String, u64)], serial: u64, rng: &mut Rng) -> Fmap {
    let dev = u32::from(devices.len() > 1 && rng.once_in(10));
    let units = devices.get(dev as usize).map_or(64, |(_, size)| size / AU);
    let unit = |len: u64, rng: &mut Rng| rng.below(units - len) * AU;
    let tail = 8 + serial % 200_000 * 8;
    if rng.once_in(64) {
        let count = 171.min(units);
        let list: Vec<_> = (0..count).map(|i| extent(dev, i * AU, AU)).collect();
        return Fmap::simple(count * AU - tail, &list);
    }
    let rows = 1 + rng.below(2);
    let count = 1 + rng.below(4);
    let strips: Vec<_> = (0..count)
        .map(|_| extent(dev, unit(rows, rng), rows * AU))
        .collect();
    let size = count * rows * AU - tail;
    if rng.once_in(3) {
        let one = Interleaved {
            chunk: AU as u32,
            nbytes: count * rows * AU,
            strips,
        };
        let layout = Layout::Interleaved(vec![one]);
        return Fmap { size, layout };
    }
    Fmap::simple(size, &strips)
}

fn mode(nodeid: u64) -> u32 {
    match nodeid {
        1 => S_IFDIR | 0o755,
        _ => S_IFREG | 0o644,
    }
}

/// A name is one of a few inodes, and not always the same one.
fn entry(name: &[u8], rng: &mut Rng) -> Vec<u8> {
    let number = name
        .iter()
        .fold(0, |sum: u64, byte| sum * 31 + u64::from(*byte))
        % 64;
    let nodeid = 2 + number + 64 * rng.below(4);
    let mut entry = wire::entry_out(nodeid, mode(nodeid), rng.next() >> 1);
    put(&mut entry, 16, &[0; 16]);
    entry
}

fn without_timeout(mut attr: Vec<u8>, rng: &mut Rng) -> Vec<u8> {
    if rng.once_in(2) {
        put(&mut attr, 0, &[0; 8]);
    }
    attr
}

fn open(rng: &mut Rng) -> Vec<u8> {
    let flags = if rng.once_in(4) { rng.next() as u32 } else { 0 };
    wire::open_out(rng.next(), flags)
}

/// (code, body) of a notification as the kernel expects it.
fn notification(rng: &mut Rng) -> (i32, Vec<u8>) {
    let nodeid = 1 + rng.below(300);
    let name = format!("f{}", rng.below(12));
    let named = |head: Bytes| {
        let head = head.u32(name.len() as u32).u32(0);
        head.bytes(name.as_bytes()).zeros(1).0
    };
    let head = Bytes::default().u64(nodeid);
    match rng.below(8) {
        0 => (2, head.u64(interesting(rng)).u64(interesting(rng)).0),
        1 => (3, named(Bytes::default().u64(1))),
        2 => (4, head.u64(interesting(rng)).u32(64).u32(0).zeros(64).0),
        3 => {
            let from = interesting(rng);
            (
                5,
                Bytes::default()
                    .u64(rng.next())
                    .bytes(&head.0)
                    .u64(from)
                    .u32(4096)
                    .u32(0)
                    .0,
            )
        }
        4 => (6, named(Bytes::default().u64(1).u64(nodeid))),
        5 => (7, Vec::new()),
        6 => (8, Vec::new()),
        _ => (9, Bytes::default().u32(1).u32(0).u64(0).u64(nodeid).0),
    }
}

fn put(message: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = message.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// Numbers that checks are made for.
fn interesting(rng: &mut Rng) -> u64 {
    let shifted = 1_u64 << rng.below(64);
    match rng.below(8) {
        0 => 0,
        1 => rng.below(16),
        2 => rng.next(),
        3 => shifted,
        4 => shifted.wrapping_sub(1),
        5 => shifted.wrapping_neg(),
        _ => AU * rng.below(256),
    }
}

/// One message in `n` is spoilt.
fn mutated_once_in(n: u64, mut message: Vec<u8>, rng: &mut Rng) -> Vec<u8> {
    if rng.once_in(n) {
        mutate(&mut message, rng);
        if rng.once_in(3) {
            mutate(&mut message, rng);
        }
    }
    message
}

fn mutate(message: &mut Vec<u8>, rng: &mut Rng) {
    let len = message.len() as u64;
    let at = rng.below(len.max(1)) as usize;
    match rng.below(10) {
        0 | 1 => put(message, at, &[1 << rng.below(8)]),
        2 | 3 => put(message, at & !3, &interesting(rng).to_le_bytes()[..4]),
        4 | 5 => put(message, at & !7, &interesting(rng).to_le_bytes()),
        6 => message.truncate(at),
        7 => message.resize(message.len() + rng.below(64) as usize, 0xa5),
        8 => message.resize(rng.below(9000) as usize, 0x5a),
        _ => *message = rng.bytes(message.len()),
    }
}
