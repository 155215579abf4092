// SPDX-License-Identifier: MIT OR Apache-2.0
//! Requests counted, and told on a socket: reading them sends no FUSE request.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, thread};

use famfs_fuse::Opcode;
use serde_json::{json, Map, Value};

use super::ops::Server;

/// Where servers have their sockets.
const SOCKET_DIR: &str = "/run/famfs";
/// How long a client of the socket may take to read.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(5);
/// One more than the highest opcode; slot 0 counts what the table does not have.
const SLOTS: usize = Opcode::GetDaxdev as usize + 1;

/// Requests by opcode.
#[derive(Debug)]
pub struct Counters([AtomicU64; SLOTS]);

impl Default for Counters {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; SLOTS])
    }
}

impl Counters {
    /// Counts a request.
    pub fn count(&self, opcode: Option<Opcode>) {
        if let Some(slot) = self.0.get(opcode.map_or(0, |opcode| opcode as usize)) {
            slot.fetch_add(1, Ordering::Relaxed);
        }
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

/// The socket of a server; removed when dropped.
#[derive(Debug)]
pub struct Socket(PathBuf);

impl Socket {
    /// Opens the socket of `server` and answers on it: to each connection one JSON document, then the end.
    pub fn open(server: &Arc<Server>, mountpoint: &Path) -> io::Result<Self> {
        let path = path_of(Path::new(&server.source()));
        fs::create_dir_all(SOCKET_DIR)?;
        // Left behind by a server that was killed: this one holds the device.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        let (server, mountpoint) = (Arc::clone(server), mountpoint.to_owned());
        thread::Builder::new().name("stats".into()).spawn(move || {
            for stream in listener.incoming().filter_map(Result::ok) {
                if let Err(error) = tell(stream, &server, &mountpoint) {
                    tracing::debug!(%error, "stats socket");
                }
            }
        })?;
        Ok(Self(path))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Path of the socket of the server of `device`.
fn path_of(device: &Path) -> PathBuf {
    let name = device.file_name().unwrap_or_default().to_string_lossy();
    Path::new(SOCKET_DIR).join(format!("{name}.sock"))
}

fn tell(mut stream: UnixStream, server: &Server, mountpoint: &Path) -> io::Result<()> {
    stream.set_write_timeout(Some(SOCKET_TIMEOUT))?;
    writeln!(stream, "{}", report(server, mountpoint))?;
    stream.shutdown(Shutdown::Both)
}

fn report(server: &Server, mountpoint: &Path) -> Value {
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
    json!({
        "mountpoint": mountpoint,
        "devices": server.devices(),
        "pid": std::process::id(),
        "files": totals.files,
        "directories": totals.dirs,
        "next_index": namespace.replay().map(|replay| replay.next_index()),
        "units": units,
        "units_free": free,
        "requests_total": server.counters.total(),
        "requests": requests,
    })
}

/// What the server of `device` tells, a JSON document.
pub fn read(device: &Path) -> io::Result<Value> {
    let mut stream = UnixStream::connect(path_of(device))?;
    stream.set_read_timeout(Some(SOCKET_TIMEOUT))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}
