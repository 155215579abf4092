// SPDX-License-Identifier: MIT OR Apache-2.0
//! Progress of long work: on terminals, and nowhere else. Names that another host has made: nowhere as they are.

use std::fs::{self, File};
use std::io::Read;
use std::process::{Command, Stdio};

use anyhow::{ensure, Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{mount, MountFlags};
use rustix::pty::{grantpt, openpt, ptsname, unlockpt, OpenptFlags};

use super::fixture::ensure_eq;
use super::tool::{at, source, umount, Mounted, MOUNTPOINT};
use super::Test;
use crate::channel::Channel;
use crate::runner::Guest;
use crate::tool::{famfs, run};

pub const TESTS: &[(&str, Test)] = &[
    ("progress_on_terminals_alone", progress_on_terminals_alone),
    ("names_are_escaped", names_are_escaped),
];

/// What `famfs ARGS`, which must succeed, writes to stderr when that is a terminal.
fn on_terminal(args: &[&str]) -> Result<String> {
    fs::create_dir_all("/dev/pts")?;
    // Done already when a test before this one has.
    let _ = mount("devpts", "/dev/pts", "devpts", MountFlags::empty(), None);
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).context("/dev/ptmx")?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let slave = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty())?;
    // What is left of the command closes its end of the terminal.
    let mut child = Command::new("famfs")
        .args(args)
        .stdout(Stdio::null())
        .stderr(slave)
        .spawn()
        .context("famfs")?;
    let mut text = Vec::new();
    // EIO is the end of a terminal.
    let _ = File::from(master).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    ensure!(child.wait()?.success(), "famfs {args:?}: {text:?}");
    Ok(text)
}

fn progress_on_terminals_alone(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mounted = Mounted::new(guest, 1)?;
    let copied = source("copied", 4 << 20)?;
    let (made, copy, again) = (at("made"), at("copied"), at("again"));
    for (args, size) in [
        (
            &["creat", "--randomize", "--size", "4m", &made][..],
            "/4.00 MiB",
        ),
        (&["cp", &copied, &copy], "/4.00 MiB"),
        (&["verify", &made], "/4.00 MiB"),
    ] {
        let shown = on_terminal(args)?;
        ensure!(shown.contains(size), "famfs {args:?} showed {shown:?}");
    }
    for args in [
        &["creat", "--randomize", "--size", "4m", &again][..],
        &["cp", &copied, &copy],
        &["verify", &made],
    ] {
        let outcome = run("famfs", args)?;
        ensure_eq!(
            (outcome.code, &outcome.stderr[..]),
            (Some(0), ""),
            "famfs {args:?}"
        );
    }
    umount()?;
    let mkfs = ["mkfs", "--force", &mounted.ready.paths[0]];
    let shown = on_terminal(&mkfs)?;
    ensure!(shown.contains("/8.00 MiB"), "mkfs showed {shown:?}");
    ensure_eq!(run("famfs", &mkfs)?.stderr, "", "stderr of mkfs");
    Ok(())
}

fn names_are_escaped(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let _mounted = Mounted::new(guest, 1)?;
    let (raw, shown) = (at("a\u{1b}[2J\u{9b}\n"), r"a\u{1b}[2J\u{9b}\n");
    famfs(&["creat", "--randomize", "--size", "2m", &raw])?;
    for (args, code) in [
        (&["ls", "--map", MOUNTPOINT][..], 0),
        (&["ls", "--recursive", MOUNTPOINT], 0),
        (&["getmap", &raw], 0),
        (&["verify", "--seed", "1", &raw], 8),
        (&["creat", "--size", "4m", &raw], 1),
        (&["mkdir", &raw], 1),
    ] {
        let outcome = run("famfs", args)?;
        let said = outcome.stdout + &outcome.stderr;
        ensure_eq!(outcome.code, Some(code), "exit code of famfs {args:?}");
        ensure!(said.contains(shown), "famfs {args:?} said {said:?}");
        let is_raw = |char: char| char.is_control() && char != '\n';
        ensure!(!said.contains(is_raw), "famfs {args:?} said {said:?}");
    }
    umount()
}
