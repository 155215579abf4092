// SPDX-License-Identifier: MIT OR Apache-2.0
//! The server's socket: a line with a request, answered by a line of JSON. It reaches a server whose mount is
//! read-only, and asking sends no FUSE request.
//!
//! ```text
//! status              what the server has and has done
//! logplay TARGET      the log is replayed, until TARGET entries are known at least
//! handover PROGRAM    PROGRAM is started and takes over
//! clear-error         the kernel forgets memory errors of the mount
//! ```

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, process, thread};

use anyhow::Context;
use rustix::net::sockopt::socket_peercred;
use serde_json::{json, Value};
use uuid::Uuid;

use super::handover::{Estate, Successor};
use super::logplay::Player;
use super::{service, stats};
use crate::exit::{self, code, fail, Exit};

/// Where servers have their sockets, and writers their locks.
const DIR: &str = "/run/famfs";
/// How long either side may take to send or read.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a replay may take: a full log of the largest kind is read and checked.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(300);
/// More than any request has: the path of a program is the longest part.
const REQUEST_MAX: u64 = 5000;

/// The socket of a server; removed when dropped, unless another server of the device has its own there by then.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Socket {
    /// Opens the socket of `player`'s server and answers on it. A successor gets the `estate`.
    pub fn open(player: Arc<Player>, estate: Estate) -> io::Result<Self> {
        let path = path_of(Path::new(&player.server.source()), "sock");
        directory(Path::new(DIR), 0)?;
        let (socket, listener) = Self::bind(path)?;
        thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                for stream in listener.incoming().filter_map(Result::ok) {
                    if let Err(error) = serve(&stream, &player, &estate) {
                        tracing::debug!(%error, "control socket");
                    }
                }
            })?;
        Ok(socket)
    }

    fn bind(path: PathBuf) -> io::Result<(Self, UnixListener)> {
        // Left behind by a server that was killed or is about to end: this one holds the device.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        let identity = identity(&path)?;
        Ok((Self { path, identity }, listener))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes `dir`, or sees to it that it is a directory of `owner` in which nobody else can make files, whatever the umask
/// is or was: who can keeps writers waiting.
fn directory(dir: &Path, owner: u32) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)?;
    let found = fs::symlink_metadata(dir)?;
    if !found.is_dir() || found.uid() != owner {
        let text = format!("{} is no directory of user {owner}", dir.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

/// Path of what the mount of `device` has with this extension, in a directory that is root's.
pub fn path_of(device: &Path, extension: &str) -> PathBuf {
    let name = device.file_name().unwrap_or_default().to_string_lossy();
    Path::new(DIR).join(format!("{name}.{extension}"))
}

fn serve(mut stream: &UnixStream, player: &Player, estate: &Estate) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut line = String::new();
    BufReader::new(stream.take(REQUEST_MAX)).read_line(&mut line)?;
    match line.trim_end_matches('\n').strip_prefix("handover ") {
        Some(program) => hand_over(stream, program, player, estate),
        None => writeln!(stream, "{}", answer(&line, player)),
    }
}

/// Ends this process if a successor comes up.
fn hand_over(
    mut stream: &UnixStream,
    program: &str,
    player: &Player,
    estate: &Estate,
) -> io::Result<()> {
    // The mode of the socket keeps others away; here it is about what a root process executes.
    let successor = if socket_peercred(stream)?.uid.is_root() {
        let device = player.server.source();
        Successor::start(program, Path::new(&device), &player.mountpoint, estate)
    } else {
        Err(fail(Exit::Permission, "only root can change the server"))
    };
    let successor = match successor {
        Ok(successor) => successor,
        Err(error) => return writeln!(stream, "{}", error_reply(&error)),
    };
    tracing::info!("process {} takes over", successor.pid);
    if let Err(error) = service::succeeded_by(successor.pid) {
        tracing::warn!("the service manager was not told of the successor: {error}");
    }
    let reply = json!({ "pid": successor.pid, "text": successor.text });
    let _ = writeln!(stream, "{reply}");
    process::exit(0)
}

fn error_reply(error: &anyhow::Error) -> Value {
    json!({ "error": format!("{error:#}"), "exit": code(error) as u8 })
}

/// The answer to a request.
pub(super) fn answer(line: &str, player: &Player) -> Value {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let number = |text: &str| text.parse().ok();
    match words[..] {
        ["status"] => stats::report(player),
        ["logplay", target] => match number(target).map(|target| player.replay(target)) {
            Some(Ok(next_index)) => json!({ "next_index": next_index }),
            Some(Err(error)) => error_reply(&error),
            None => json!({ "error": format!("{target:?} is not a number") }),
        },
        ["clear-error"] => match clear_errors(player) {
            Ok(devices) => json!({ "devices": devices }),
            Err(error) => error_reply(&error),
        },
        _ => json!({ "error": format!("no such request: {:?}", line.trim_end()) }),
    }
}

/// Has the kernel use all memory of the mount again. Returns the daxdevs that it has.
fn clear_errors(player: &Player) -> anyhow::Result<Vec<Cow<'_, str>>> {
    let mut cleared = Vec::new();
    for (index, path) in (0..=u16::MAX).zip(player.server.devices()) {
        let context = || format!("memory errors of {}", path.display());
        let device = File::open(path).with_context(context)?;
        match player.channel.forget_errors(device.as_fd(), index) {
            Ok(()) => cleared.push(path.to_string_lossy()),
            // No file there was opened yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => return Err(error).with_context(context),
        }
    }
    Ok(cleared)
}

/// Has the server of `device` clear the errors of its mount. Returns paths of daxdevs.
pub fn clear_error(device: &Path) -> anyhow::Result<Vec<String>> {
    let reply = ask(device, "clear-error", TIMEOUT)?;
    let devices = reply.get("devices").and_then(Value::as_array);
    let paths = devices.into_iter().flatten().filter_map(Value::as_str);
    Ok(paths.map(str::to_owned).collect())
}

/// What the server of `device` tells about itself.
pub fn status(device: &Path) -> anyhow::Result<Value> {
    ask(device, "status", TIMEOUT)
}

/// What the server of a mount goes by.
#[derive(Debug, PartialEq, Eq)]
pub struct Known {
    /// Of the file system; an older server does not tell.
    pub fs_uuid: Option<Uuid>,
    /// Entries of its log.
    pub entries: u64,
}

/// What the server of `device` goes by.
pub fn known(device: &Path) -> anyhow::Result<Known> {
    // Behind a replay or a handover that somebody else has asked for.
    let status = ask(device, "status", REPLAY_TIMEOUT)?;
    let uuid = status.get("fs_uuid").and_then(Value::as_str);
    Ok(Known {
        fs_uuid: uuid.and_then(|uuid| Uuid::try_parse(uuid).ok()),
        entries: number(&status, "next_index").unwrap_or(0),
    })
}

/// Has the server of `device` replay the log until it knows `target` entries at least. Returns how many it knows.
pub fn logplay(device: &Path, target: u64) -> anyhow::Result<u64> {
    let reply = ask(device, &format!("logplay {target}"), REPLAY_TIMEOUT)?;
    Ok(number(&reply, "next_index").unwrap_or(target))
}

/// Has the server of `device` leave its place to `program`. Returns the successor's process id and what it says.
pub fn hand_over_to(device: &Path, program: &str) -> anyhow::Result<(u64, String)> {
    let reply = ask(device, &format!("handover {program}"), REPLAY_TIMEOUT)?;
    let text = reply.get("text").and_then(Value::as_str);
    let pid = number(&reply, "pid").context("the server's answer has no process id")?;
    Ok((pid, text.unwrap_or_default().to_owned()))
}

/// What there is to say of a mount without a server.
pub fn gone() -> anyhow::Error {
    let text = "its server is gone; `umount` it and mount it again (open files go on working)";
    fail(Exit::Failed, text)
}

fn ask(device: &Path, request: &str, timeout: Duration) -> anyhow::Result<Value> {
    let mut stream =
        UnixStream::connect(path_of(device, "sock")).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => gone(),
            _ => error.into(),
        })?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.set_read_timeout(Some(timeout))?;
    writeln!(stream, "{request}")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    tracing::debug!("the server of {} was asked: {request}", device.display());
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
        let path = path_of(Path::new("/dev/dax1.0"), "sock");
        assert_eq!(path, Path::new("/run/famfs/dax1.0.sock"));
    }

    #[test]
    fn the_directory_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let owner = fs::metadata(dir.path()).unwrap().uid();
        let path = dir.path().join("famfs");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        directory(&path, owner).unwrap();
        assert_eq!(mode(), 0o755);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        directory(&path, owner).unwrap();
        assert_eq!(mode(), 0o755);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for (path, owner) in [(&path, owner ^ 1), (&link, owner)] {
            let error = directory(path, owner).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        }
    }

    #[test]
    fn a_socket_of_another_server_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dax0.0.sock");
        let (old, _listener) = Socket::bind(path.clone()).unwrap();
        let (new, _listener) = Socket::bind(path.clone()).unwrap();
        drop(old);
        UnixStream::connect(&path).unwrap();
        drop(new);
        let error = UnixStream::connect(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
