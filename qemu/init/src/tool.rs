// SPDX-License-Identifier: MIT OR Apache-2.0
//! The famfs binary, as a user runs it.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{ensure, Context, Result};
use famfs_media::{entry_offset, path_bytes, Body, Entry, Extent, FileEntry, LogHeader, RawMap};
use rustix::process::{kill_process, Pid, Signal};
use rustix::thread::{
    capabilities, remove_capability_from_bounding_set, set_capabilities, CapabilitySet,
};
use serde_json::Value;

/// What a run of the binary came to.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// What it printed, if it ended with exit code 0.
    pub fn expect_success(self) -> Result<String> {
        ensure!(
            self.code == Some(0),
            "exit code {:?}: {}",
            self.code,
            self.stderr.trim()
        );
        Ok(self.stdout)
    }

    /// It ended with `code`, and its message has `words` in it.
    pub fn expect_failure(&self, code: i32, words: &str) -> Result<()> {
        ensure!(
            self.code == Some(code) && self.stderr.contains(words),
            "expected exit code {code} and a message with {words:?}, got {self:?}"
        );
        Ok(())
    }
}

pub fn run(program: &str, args: &[&str]) -> Result<Outcome> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| {
            format!("run {program} (not in the image: give its path to the harness)")
        })?;
    Ok(Outcome {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs `famfs ARGS`, which must succeed; gives what it printed.
pub fn famfs(args: &[&str]) -> Result<String> {
    run("famfs", args)?
        .expect_success()
        .with_context(|| format!("famfs {}", args.join(" ")))
}

/// Runs `mkfs.famfs ARGS`, which must succeed.
pub fn mkfs(args: &[&str]) -> Result<()> {
    let done = run("mkfs.famfs", args)?.expect_success();
    done.map(drop)
        .with_context(|| format!("mkfs.famfs {}", args.join(" ")))
}

/// The extents or strips of a file: device index, offset, length.
pub fn getmap(path: &str) -> Result<Vec<(u64, u64, u64)>> {
    let text = famfs(&["getmap", "--json", path])?;
    let json: Value =
        serde_json::from_str(&text).with_context(|| format!("getmap printed {text:?}"))?;
    let number = |extent: &Value, key: &str| {
        extent[key]
            .as_u64()
            .with_context(|| format!("no {key} in {text:?}"))
    };
    json["extents"]
        .as_array()
        .with_context(|| format!("no extents in {text:?}"))?
        .iter()
        .map(|extent| {
            Ok((
                number(extent, "devindex")?,
                number(extent, "offset")?,
                number(extent, "len")?,
            ))
        })
        .collect()
}

/// Adds files with these names, sizes and extents to the log of a mount, as another tool could: ours gives each file one
/// extent, and fills it. The server is not told.
pub fn append_to_log(
    mountpoint: &str,
    files: impl IntoIterator<Item = (String, u64, Vec<Extent>)>,
) -> Result<()> {
    let log = OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("{mountpoint}/.meta/.log"))?;
    let mut header = [0; 48];
    log.read_exact_at(&mut header, 0)?;
    let header = LogHeader::decode(&header).context("log header")?;
    let mut next = header.next_index;
    for (name, size, extents) in files {
        let body = Body::File(FileEntry {
            size,
            flags: FileEntry::ALL_HOSTS_RW,
            uid: 0,
            gid: 0,
            mode: 0o644,
            path: path_bytes(name.as_bytes()),
            map: RawMap::Simple {
                nextents: extents.len() as u32,
                extents,
            },
        });
        let offset = entry_offset(next).context("log entry")?;
        log.write_all_at(&Entry { seqnum: next, body }.encode(), offset)?;
        next += 1;
    }
    let after = LogHeader {
        next_seqnum: next,
        next_index: next,
        ..header
    };
    log.write_all_at(&after.encode_counters(), LogHeader::COUNTERS_AT)?;
    Ok(())
}

/// The process that serves the only famfs mount of this machine.
pub fn server() -> Result<Pid> {
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name
            .to_str()
            .and_then(|name| name.parse().ok())
            .and_then(Pid::from_raw)
        else {
            continue;
        };
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        if words.next().is_some_and(|word| word.ends_with(b"famfs"))
            && words.next() == Some(b"serve")
        {
            return Ok(pid);
        }
    }
    anyhow::bail!("no process serves famfs")
}

/// Sends the signal and waits until it took effect, which /proc shows as one of the `states`.
pub fn signal_server(pid: Pid, signal: Signal, states: &str) -> Result<()> {
    kill_process(pid, signal).with_context(|| format!("signal to process {pid}"))?;
    wait_for_state(pid, states).with_context(|| format!("after {signal:?}"))
}

/// The state of a process as /proc shows it; X if it is gone.
pub fn state_of(pid: Pid) -> char {
    state_in(Path::new(&format!("/proc/{pid}")))
}

fn state_in(task: &Path) -> char {
    let stat = fs::read_to_string(task.join("stat")).unwrap_or_else(|_| "x) X".to_owned());
    stat.rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next())
        .unwrap_or('X')
}

/// Whether all threads of a process are in one of the `states`: the first may be dead or stopped while others still
/// have the connection.
fn has_come_to(pid: Pid, states: &str) -> bool {
    match fs::read_dir(format!("/proc/{pid}/task")) {
        Ok(mut tasks) => {
            tasks.all(|task| task.is_ok_and(|task| states.contains(state_in(&task.path()))))
        }
        Err(_) => states.contains('X'),
    }
}

/// Waits until a process is in one of the `states`, with all of its threads.
pub fn wait_for_state(pid: Pid, states: &str) -> Result<()> {
    for _ in 0..500 {
        if has_come_to(pid, states) {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    anyhow::bail!(
        "process {pid} is in state {:?}, expected one of {states:?}",
        state_of(pid)
    )
}

/// The kernel's side of a FUSE mount.
pub struct Connection(String);

impl Connection {
    pub fn of(mountpoint: &str) -> Result<Self> {
        let dev = fs::metadata(mountpoint)
            .with_context(|| mountpoint.to_owned())?
            .dev();
        Ok(Self(format!(
            "/sys/fs/fuse/connections/{}",
            rustix::fs::minor(dev)
        )))
    }

    /// Requests that the server has not answered yet.
    pub fn waiting(&self) -> Result<u64> {
        let text = fs::read_to_string(format!("{}/waiting", self.0))?;
        text.trim()
            .parse()
            .with_context(|| format!("waiting requests: {text:?}"))
    }

    pub fn abort(&self) -> Result<()> {
        fs::write(format!("{}/abort", self.0), "1").context("abort the connection")
    }
}

/// Where the module shows the state of this mount.
pub fn debugfs_file(mountpoint: &str) -> Result<String> {
    let dev = fs::metadata(mountpoint)
        .with_context(|| mountpoint.to_owned())?
        .dev();
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    Ok(format!("/sys/kernel/debug/famfs/{major}:{minor}"))
}

/// Replaces this process with the program in `args`, which then can't have CAP_SYS_RAWIO.
pub fn exec_without_rawio(mut args: impl Iterator<Item = String>) -> ExitCode {
    let error = match drop_rawio() {
        Ok(()) => Command::new(args.next().unwrap_or_default())
            .args(args)
            .exec()
            .into(),
        Err(error) => error,
    };
    eprintln!("guest init: {error:#}");
    ExitCode::from(125)
}

/// Takes CAP_SYS_RAWIO from this thread, for good.
pub fn drop_rawio() -> Result<()> {
    remove_capability_from_bounding_set(CapabilitySet::SYS_RAWIO)?;
    let mut sets = capabilities(None)?;
    sets.effective.remove(CapabilitySet::SYS_RAWIO);
    sets.permitted.remove(CapabilitySet::SYS_RAWIO);
    sets.inheritable.remove(CapabilitySet::SYS_RAWIO);
    Ok(set_capabilities(None, sets)?)
}
