// SPDX-License-Identifier: MIT OR Apache-2.0
//! The server's socket: a line with a request, answered by a line of JSON. It reaches a server whose mount is
//! read-only, and asking sends no FUSE request.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, thread};

use serde_json::{json, Value};

use super::logplay::Player;
use super::stats;
use crate::exit::{self, code, fail, Exit};

/// Where servers have their sockets.
const SOCKET_DIR: &str = "/run/famfs";
/// How long either side may take to send or read.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a replay may take: a full log of the largest kind is read and checked.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(300);
/// More than any request has.
const REQUEST_MAX: u64 = 64;

/// The socket of a server; removed when dropped.
#[derive(Debug)]
pub struct Socket(PathBuf);

impl Socket {
    /// Opens the socket of `player`'s server and answers on it.
    pub fn open(player: Arc<Player>) -> io::Result<Self> {
        let path = path_of(Path::new(&player.server.source()));
        fs::create_dir_all(SOCKET_DIR)?;
        // Left behind by a server that was killed: this one holds the device.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                for stream in listener.incoming().filter_map(Result::ok) {
                    if let Err(error) = serve(&stream, &player) {
                        tracing::debug!(%error, "control socket");
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

fn serve(mut stream: &UnixStream, player: &Player) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut line = String::new();
    BufReader::new(stream.take(REQUEST_MAX)).read_line(&mut line)?;
    writeln!(stream, "{}", answer(&line, player))
}

/// The answer to a request.
pub(super) fn answer(line: &str, player: &Player) -> Value {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let number = |text: &str| text.parse().ok();
    match words[..] {
        ["status"] => stats::report(&player.server, &player.mountpoint),
        ["logplay", target] => match number(target).map(|target| player.replay(target)) {
            Some(Ok(next_index)) => json!({ "next_index": next_index }),
            Some(Err(error)) => {
                json!({ "error": format!("{error:#}"), "exit": code(&error) as u8 })
            }
            None => json!({ "error": format!("{target:?} is not a number") }),
        },
        _ => json!({ "error": format!("no such request: {:?}", line.trim_end()) }),
    }
}

/// What the server of `device` tells about itself.
pub fn status(device: &Path) -> anyhow::Result<Value> {
    ask(device, "status", TIMEOUT)
}

/// Has the server of `device` replay the log until it knows `target` entries at least. Returns how many it knows.
pub fn logplay(device: &Path, target: u64) -> anyhow::Result<u64> {
    let reply = ask(device, &format!("logplay {target}"), REPLAY_TIMEOUT)?;
    Ok(number(&reply, "next_index").unwrap_or(target))
}

fn ask(device: &Path, request: &str, timeout: Duration) -> anyhow::Result<Value> {
    let mut stream = UnixStream::connect(path_of(device))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.set_read_timeout(Some(timeout))?;
    writeln!(stream, "{request}")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let reply: Value = serde_json::from_str(&text)?;
    match reply.get("error") {
        Some(Value::String(error)) => {
            let code = number(&reply, "exit").and_then(|code| i32::try_from(code).ok());
            Err(fail(code.map_or(Exit::Failed, exit::of_code), error))
        }
        _ => Ok(reply),
    }
}

fn number(reply: &Value, key: &str) -> Option<u64> {
    reply.get(key)?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_named_after_devices() {
        let path = path_of(Path::new("/dev/dax1.0"));
        assert_eq!(path, Path::new("/run/famfs/dax1.0.sock"));
    }
}
