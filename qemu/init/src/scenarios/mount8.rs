// SPDX-License-Identifier: MIT OR Apache-2.0
//! mount(8) and /etc/fstab, by way of mount.famfs.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use rustix::mount::{unmount, UnmountFlags};
use serde_json::Value;

use super::fixture::{ensure_eq, ready};
use super::tool::{at, umount, MOUNTPOINT};
use super::Test;
use crate::channel::Channel;
use crate::runner::Guest;
use crate::tool::{famfs, mkfs, run, server};

pub const TESTS: &[(&str, Test)] = &[
    ("options_of_mount", options_of_mount),
    ("lines_of_fstab", lines_of_fstab),
    ("exit_codes_of_mount", exit_codes_of_mount),
    ("places_need_not_be_utf_8", places_need_not_be_utf_8),
];

/// Exit codes of mount(8).
const MOUNT_USAGE: i32 = 1;
const MOUNT_FAILURE: i32 = 32;

/// A file system on the first daxdev, with one file, not mounted.
fn file_system(guest: &Guest) -> Result<String> {
    // Where a test before this one has left it.
    let _ = umount();
    let device = ready(guest)?.paths[0].clone();
    fs::create_dir_all(MOUNTPOINT)?;
    mkfs(&["--force", &device])?;
    mount(&["-t", "famfs", &device, MOUNTPOINT])?;
    famfs(&["creat", "--size", "2m", &at("file")])?;
    end()?;
    Ok(device)
}

fn mount(args: &[&str]) -> Result<String> {
    let done = run("mount", args)?.expect_success();
    done.with_context(|| format!("mount {}", args.join(" ")))
}

/// After umount the server leaves by itself.
fn end() -> Result<()> {
    umount()?;
    let start = Instant::now();
    while server().is_ok() {
        ensure!(
            start.elapsed() < Duration::from_secs(20),
            "the server is still there after umount"
        );
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The options that /proc shows for the mount itself.
fn shown_options() -> Result<String> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let line = text
        .lines()
        .find(|line| line.split(' ').nth(4) == Some(MOUNTPOINT));
    let options = line.and_then(|line| line.split(' ').nth(5));
    Ok(options.context("not in mountinfo")?.to_owned())
}

fn write_errno() -> Option<i32> {
    let opened = OpenOptions::new().write(true).open(at("file"));
    let written = opened.and_then(|file| file.write_at(b"x", 0));
    written.err().and_then(|error| error.raw_os_error())
}

fn options_of_mount(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let device = file_system(guest)?;
    mount(&["-t", "famfs", &device, MOUNTPOINT])?;
    ensure_eq!(write_errno(), None, "errno of a write");
    ensure!(!shown_options()?.contains("noexec"), "noexec unasked");
    end()?;
    let options = "ro,noexec,failure=range,x-systemd.automount";
    mount(&["-v", "-t", "famfs", "-o", options, &device, MOUNTPOINT])?;
    ensure_eq!(write_errno(), Some(libc::EROFS), "errno of a write, -o ro");
    ensure!(shown_options()?.contains("noexec"), "no noexec");
    let status = famfs(&["status", MOUNTPOINT])?;
    ensure!(status.contains("range"), "failure policy: {status}");
    end()
}

fn lines_of_fstab(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let device = file_system(guest)?;
    fs::create_dir_all("/mnt/none")?;
    let fstab = format!(
        "{device} {MOUNTPOINT} famfs defaults,follow=2 0 0\n\
         /dev/dax99.0 /mnt/none famfs nofail 0 0\n\
         {device} /mnt/none famfs noauto 0 0\n"
    );
    fs::write("/etc/fstab", fstab)?;
    let mounted = run("mount", &["-a"])?;
    ensure_eq!(mounted.code, Some(0), "exit code of mount -a: {mounted:?}");
    ensure!(fs::metadata(at("file")).is_ok(), "the file is not there");
    // What is mounted stays.
    mount(&["-a"])?;
    end()?;
    mount(&[MOUNTPOINT])?;
    end()?;
    fs::remove_file("/etc/fstab")?;
    Ok(())
}

fn exit_codes_of_mount(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let device = file_system(guest)?;
    let wrong = run(
        "mount",
        &["-t", "famfs", "-o", "nonsense", &device, MOUNTPOINT],
    )?;
    wrong.expect_failure(MOUNT_USAGE, "unknown option nonsense")?;
    let missing = run("mount", &["-t", "famfs", "/dev/dax99.0", MOUNTPOINT])?;
    missing.expect_failure(MOUNT_FAILURE, "/dev/dax99.0: no such device")?;
    let fake = run("mount", &["--fake", "-t", "famfs", &device, MOUNTPOINT])?;
    fake.expect_success()?;
    ensure!(shown_options().is_err(), "mount --fake has mounted");
    Ok(())
}

/// Paths reach the server as they are; JSON shows them as well as it can.
fn places_need_not_be_utf_8(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let device = file_system(guest)?;
    let place = Path::new(OsStr::from_bytes(b"/mnt/caf\xe9 \xff"));
    fs::create_dir_all(place)?;
    let mounted = Command::new("mount")
        .args(["-t", "famfs", "-o", "rw", &device])
        .arg(place)
        .output()?;
    ensure!(mounted.status.success(), "mount: {mounted:?}");
    let name = place.join(OsStr::from_bytes(b"na\xefve"));
    let made = Command::new("famfs")
        .args(["creat", "--size", "4m"])
        .arg(&name)
        .output()?;
    ensure!(made.status.success(), "famfs creat: {made:?}");
    ensure_eq!(fs::metadata(&name)?.len(), 4 << 20, "size of the new file");
    let json = |verb: &str| -> Result<Value> {
        let output = Command::new("famfs")
            .args([verb, "--json"])
            .arg(place)
            .output()?;
        ensure!(output.status.success(), "famfs {verb}: {output:?}");
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let shown = "/mnt/caf\u{fffd} \u{fffd}";
    ensure_eq!(json("status")?["mountpoint"], shown, "status");
    ensure_eq!(json("df")?["logs"][0]["mountpoint"], shown, "df");
    ensure_eq!(json("check")?["mountpoint"], shown, "check");
    let path = format!("{shown}/na\u{fffd}ve");
    ensure_eq!(json("ls")?[1]["path"], path.as_str(), "ls");
    unmount(place, UnmountFlags::empty()).context("umount")
}
