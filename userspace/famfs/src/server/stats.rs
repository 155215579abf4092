// SPDX-License-Identifier: MIT OR Apache-2.0
//! Requests counted, and told with the rest of what there is to know of a server.

use std::sync::atomic::{AtomicU64, Ordering};

use famfs_fuse::Opcode;
use serde_json::{json, Map, Value};

use super::logplay::Player;

/// One more than the highest opcode; slot 0 counts what the table does not have.
const SLOTS: usize = Opcode::GetDaxdev as usize + 1;

/// Requests by opcode, and replays of the log.
#[derive(Debug)]
pub struct Counters([AtomicU64; SLOTS], AtomicU64);

impl Default for Counters {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; SLOTS], AtomicU64::new(0))
    }
}

impl Counters {
    /// Counts a request.
    pub fn count(&self, opcode: Option<Opcode>) {
        if let Some(slot) = self.0.get(opcode.map_or(0, |opcode| opcode as usize)) {
            slot.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a look at the log for new entries, when it is over.
    pub fn replayed(&self) {
        self.1.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests with this opcode so far; None counts those that the table does not have.
    pub fn get(&self, opcode: Option<Opcode>) -> u64 {
        self.0
            .get(opcode.map_or(0, |opcode| opcode as usize))
            .map_or(0, |slot| slot.load(Ordering::Relaxed))
    }

    /// All requests so far.
    pub fn total(&self) -> u64 {
        self.0
            .iter()
            .map(|slot| slot.load(Ordering::Relaxed))
            .fold(0, u64::saturating_add)
    }
}

/// What a server tells about itself.
pub fn report(player: &Player) -> Value {
    let server = &player.server;
    let requests: Map<String, Value> = Opcode::ALL
        .iter()
        .map(|&opcode| (opcode.name().to_owned(), server.counters.get(Some(opcode))))
        .chain([("unknown".to_owned(), server.counters.get(None))])
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| (name, count.into()))
        .collect();
    let namespace = server.namespace();
    let totals = namespace
        .replay()
        .map(|replay| replay.totals)
        .unwrap_or_default();
    let (units, free) = namespace.units();
    let devindexes = namespace
        .replay()
        .into_iter()
        .flat_map(|r| r.space.devindexes());
    let devices = server.devices().iter();
    let devices: Vec<_> = devices.map(|path| path.to_string_lossy()).collect();
    let daxdevs: Vec<Value> = devindexes
        .filter_map(|index| {
            let (units, used) = namespace.replay()?.space.device(index)?;
            let device = devices.get(usize::try_from(index).ok()?);
            Some(json!({ "index": index, "device": device, "units": units, "units_used": used }))
        })
        .collect();
    json!({
        "mountpoint": player.mountpoint.to_string_lossy(),
        "fs_uuid": player.superblock.fs_uuid,
        "devices": devices,
        "failure": server.failure(),
        "pid": std::process::id(),
        "files": totals.files,
        "directories": totals.dirs,
        "daxdevs": daxdevs,
        "entries_free": namespace.free_entries(),
        "next_index": namespace.replay().map(|replay| replay.next_index()),
        "replays": server.counters.1.load(Ordering::Relaxed),
        "units": units,
        "units_free": free,
        "requests_total": server.counters.total(),
        "requests": requests,
    })
}
