// SPDX-License-Identifier: MIT OR Apache-2.0
//! A mount as a service of systemd, PID 1 of this guest, by the project's unit: its server is killed, replaced, stopped.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use rustix::process::{kill_process, Pid, Signal};
use serde_json::Value;

use super::fixture::{ensure_eq, pattern, ready};
use super::handover::{make_files, name, server_pid, shown, under_load, Shown};
use super::tool::{umount, MOUNTPOINT};
use super::Test;
use crate::channel::Channel;
use crate::fmap::AU;
use crate::runner::Guest;
use crate::sys::{Kind, Mapping};
use crate::tool::{mkfs, run, Outcome};

pub const TESTS: &[(&str, Test)] = &[
    ("kills_under_load", kills_under_load),
    ("reload_hands_over", reload_hands_over),
    ("stop_leaves_mappings", stop_leaves_mappings),
    ("messages_reach_the_journal", messages_reach_the_journal),
    ("too_many_deaths", too_many_deaths),
];

/// The instance for MOUNTPOINT, and its files.
const UNIT: &str = "famfs@mnt-famfs.service";
const CONFIG: &str = "/etc/famfs/mnt-famfs.conf";
const DROP_IN: &str = "/run/systemd/system/famfs@mnt-famfs.service.d";
/// The tests kill more often than five times in ten seconds, after which systemd would give up. A descriptor that the
/// server does not know makes it warn.
const DROPPED_IN: &str = "\
[Unit]
StartLimitIntervalSec=0
[Service]
OpenFile=/etc/machine-id:stray
";
/// A slow machine does not die often enough in the ten seconds that are the default.
const LIMITED: &str = "[Unit]\nStartLimitIntervalSec=10min\n";
/// The log, the attributes, and a /dev/fuse for each of two threads.
const STORED: &str = "4";
const PATIENCE: Duration = Duration::from_secs(60);

fn systemctl(args: &[&str]) -> Result<String> {
    run("systemctl", args)?
        .expect_success()
        .with_context(|| format!("systemctl {}", args.join(" ")))
}

/// A property of the unit.
fn property(name: &str) -> Result<String> {
    let shown = systemctl(&["show", "--value", "--property", name, UNIT])?;
    Ok(shown.trim().to_owned())
}

/// The unit's state in a word, and its main process, 0 if there is none.
fn state() -> Result<(String, i32)> {
    let shown = systemctl(&["show", "--property", "SubState,MainPID", UNIT])?;
    let value = |key: &str| {
        let mut pairs = shown.lines().filter_map(|line| line.split_once('='));
        pairs.find(|(name, _)| *name == key).map(|(_, value)| value)
    };
    let pid = value("MainPID").context("no MainPID")?.parse()?;
    Ok((value("SubState").context("no SubState")?.to_owned(), pid))
}

/// Waits until the unit is in that state, and its main process is not `old`.
fn wait_for(wanted: &str, old: i32) -> Result<i32> {
    let end = Instant::now() + PATIENCE;
    loop {
        let (now, pid) = state()?;
        if now == wanted && pid != old {
            return Ok(pid);
        }
        ensure!(
            Instant::now() < end,
            "the service is {now}, its main process {pid}, expected {wanted}: {}",
            journal(&[])?.stdout
        );
    }
}

fn journal(args: &[&str]) -> Result<Outcome> {
    run("journalctl", &["--sync"])?.expect_success()?;
    run(
        "journalctl",
        &[&["--unit", UNIT, "--no-pager"], args].concat(),
    )
}

/// An empty file system, mounted by the unit. Gives the main process.
fn start(guest: &Guest) -> Result<i32> {
    start_with(guest, DROPPED_IN)
}

fn start_with(guest: &Guest, dropped_in: &str) -> Result<i32> {
    let ready = ready(guest)?;
    let device = ready.paths.first().context("no daxdev")?;
    mkfs(&["--force", device])?;
    fs::create_dir_all(MOUNTPOINT)?;
    fs::create_dir_all("/etc/famfs")?;
    let config = format!("DEVICE={device}\nOPTIONS=--failure=range\n");
    fs::write(CONFIG, config)?;
    fs::create_dir_all(DROP_IN)?;
    fs::write(format!("{DROP_IN}/test.conf"), dropped_in)?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["start", UNIT])?;
    expect_running()
}

/// The service runs, and has what the next process needs. Gives the main process.
fn expect_running() -> Result<i32> {
    let (now, pid) = state()?;
    ensure_eq!(now, "running", "the service");
    ensure_eq!(i32::try_from(server_pid()?)?, pid, "the main process");
    let stored = property("NFileDescriptorStore")?;
    ensure_eq!(stored, STORED, "stored descriptors");
    Ok(pid)
}

/// Kills the main process. Gives the next one, which systemd has started, when it is ready.
fn kill(pid: i32) -> Result<i32> {
    kill_to("running", pid)
}

/// Kills the main process, and waits until the unit is in that state.
fn kill_to(wanted: &str, pid: i32) -> Result<i32> {
    let raw = Pid::from_raw(pid).context("no main process")?;
    kill_process(raw, Signal::KILL)?;
    wait_for(wanted, pid)
}

/// What was under way goes on, and nobody notices but by waiting.
fn kills_under_load(guest: &Guest, channel: &mut Channel) -> Result<()> {
    const KILLS: usize = 10;
    let mut pid = start(guest)?;
    under_load(KILLS, |round| {
        channel.step(&format!("kill {round}"));
        pid = kill(pid)?;
        ensure_eq!(property("NRestarts")?, (round + 1).to_string(), "restarts");
        Ok(())
    })?;
    wait_for("dead", pid)?;
    ensure_eq!(property("Result")?, "success", "the service after umount");
    ensure_eq!(property("ExecMainStatus")?, "0", "its exit code");
    Ok(())
}

/// `systemctl reload`: systemd knows the new main process, which can be killed like the first.
fn reload_hands_over(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mut pid = start(guest)?;
    make_files()?;
    let before = shown()?;
    let mapping = Mapping::new(&fs::File::open(name(0))?, 0, AU as usize, Kind::SharedRead)?;
    for round in 0..3 {
        systemctl(&["reload", UNIT]).with_context(|| format!("round {round}"))?;
        let next = expect_running()?;
        ensure!(next != pid, "the main process is {pid} as before");
        ensure_eq!(shown()?, before, "what the mount shows");
        pid = kill(next)?;
        ensure_eq!(expect_running()?, pid, "the main process");
        ensure_eq!(shown()?, before, "what the mount shows after a crash");
        mapping.drop_entries(0, mapping.len())?;
        ensure_eq!(mapping.read(0, 4096), pattern(0, 4096), "the mapping");
    }
    ensure_eq!(property("NRestarts")?, "3", "restarts");
    drop(mapping);
    systemctl(&["stop", UNIT])?;
    ensure_eq!(property("Result")?, "success", "the service after stop");
    Ok(())
}

/// `systemctl stop` unmounts at once; who has a file mapped keeps it, and with it the device, until he lets go.
fn stop_leaves_mappings(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    start(guest)?;
    make_files()?;
    let before = shown()?;
    let mapping = Mapping::new(&fs::File::open(name(0))?, 0, AU as usize, Kind::SharedRead)?;
    systemctl(&["stop", UNIT])?;
    ensure_eq!(property("SubState")?, "dead", "the service");
    ensure_eq!(property("NFileDescriptorStore")?, "0", "stored descriptors");
    let mounts = fs::read_to_string("/proc/mounts")?;
    ensure!(!mounts.contains(MOUNTPOINT), "it is mounted: {mounts}");
    mapping.drop_entries(0, mapping.len())?;
    ensure!(
        mapping.read(0, mapping.len()) == pattern(0, AU as usize),
        "the mapping shows other bytes"
    );
    run("systemctl", &["start", UNIT])?.expect_failure(1, "failed")?;
    let said = journal(&[])?.stdout;
    ensure!(said.contains("in use"), "the journal says {said}");
    systemctl(&["stop", UNIT])?;
    drop(mapping);
    systemctl(&["start", UNIT])?;
    // Times are of the mount.
    let names = |shown: Shown| shown.into_keys().collect::<Vec<_>>();
    ensure_eq!(names(shown()?), names(before), "what the mount shows");
    systemctl(&["stop", UNIT])?;
    Ok(())
}

/// The server's messages are in the journal, with their priority, and so is what systemd has to say of its end.
fn messages_reach_the_journal(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let pid = start(guest)?;
    let (first, second) = (pid.to_string(), kill(pid)?.to_string());
    systemctl(&["stop", UNIT])?;
    let lines = journal(&["--output", "json"])?.expect_success()?;
    let lines: Vec<Value> = lines
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let priority = |process: &str, words: &str| {
        let line = lines.iter().rev().find(|line| {
            line["_PID"] == process
                && line["MESSAGE"]
                    .as_str()
                    .is_some_and(|text| text.contains(words))
        });
        line.map(|line| line["PRIORITY"].as_str().unwrap_or_default().to_owned())
            .with_context(|| format!("no line of process {process} with {words:?}: {lines:?}"))
    };
    ensure_eq!(
        priority(&first, "mounted on")?,
        "6",
        "priority of what is said of the mount"
    );
    ensure_eq!(
        priority(&second, "a descriptor named stray was passed")?,
        "4",
        "priority of a warning"
    );
    ensure_eq!(
        priority("1", "code=killed, status=9/KILL")?,
        "4",
        "priority of what systemd says of the kill"
    );
    Ok(())
}

/// A server that dies too often is not started again. What was open before is worth what it was; the mount is not, until
/// somebody unmounts it and starts the service.
fn too_many_deaths(guest: &Guest, channel: &mut Channel) -> Result<()> {
    let limit = |name: &str| {
        let shown = systemctl(&["show", "--value", "--property", name])?;
        Ok::<_, anyhow::Error>(shown.trim().to_owned())
    };
    ensure_eq!(limit("DefaultStartLimitBurst")?, "5", "starts allowed");
    ensure_eq!(limit("DefaultStartLimitIntervalUSec")?, "10s", "in a time");
    let mut pid = start_with(guest, LIMITED)?;
    make_files()?;
    let file = fs::File::open(name(0))?;
    let mapping = Mapping::new(&file, 0, AU as usize, Kind::SharedRead)?;
    // The start was not a death.
    systemctl(&["reset-failed", UNIT])?;
    for death in 1..=5 {
        channel.step(&format!("death {death}"));
        pid = kill(pid)?;
    }
    kill_to("failed", pid)?;
    for (key, value) in [
        ("ActiveState", "failed"),
        // What came first; that it is not started again is said in the journal.
        ("Result", "signal"),
        ("NFileDescriptorStore", "0"),
    ] {
        ensure_eq!(property(key)?, value, "{key} after six deaths");
    }
    let said = journal(&[])?.stdout;
    let limited = said.contains("Start request repeated too quickly");
    ensure!(limited, "the journal says {said}");
    // What it has cached, the kernel does not ask for.
    fs::write("/proc/sys/vm/drop_caches", "2")?;
    let errno = |error: Option<std::io::Error>| error.and_then(|error| error.raw_os_error());
    let gone = Some(libc::ENOTCONN);
    // The connection ends when systemd closes the last of what it has stored, a little after it says that there is
    // nothing; till then a request waits, and comes to ECONNABORTED.
    let mut stat = errno(fs::metadata(name(1)).err());
    if stat == Some(libc::ECONNABORTED) {
        stat = errno(fs::metadata(name(1)).err());
    }
    ensure_eq!(stat, gone, "errno of stat");
    ensure_eq!(errno(fs::File::open(name(1)).err()), gone, "errno of open");
    let mut bytes = vec![0; AU as usize];
    file.read_exact_at(&mut bytes, 0)?;
    ensure!(bytes == pattern(0, AU as usize), "pread has other bytes");
    mapping.drop_entries(0, mapping.len())?;
    ensure!(
        mapping.read(0, mapping.len()) == bytes,
        "the mapping shows other bytes"
    );
    drop((mapping, file));
    umount()?;
    systemctl(&["reset-failed", UNIT])?;
    systemctl(&["start", UNIT])?;
    expect_running()?;
    for index in [0, 1] {
        ensure!(
            fs::read(name(index))? == bytes,
            "{} is other bytes",
            name(index)
        );
    }
    systemctl(&["stop", UNIT])?;
    Ok(())
}
