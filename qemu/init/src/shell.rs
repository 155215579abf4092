// SPDX-License-Identifier: MIT OR Apache-2.0
//! An interactive shell on the first serial port, with a file system mounted.

use std::fs::OpenOptions;
use std::process::Command;

use anyhow::{Context, Result};

use crate::module;
use crate::runner::Guest;
use crate::tool;

const MOUNTPOINT: &str = "/mnt/famfs";

pub fn run(guest: &Guest) -> Result<()> {
    let terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/ttyS0")
        .context("/dev/ttyS0")?;
    Command::new("busybox")
        .args(["--install", "-s", "/usr/bin"])
        .status()
        .context("busybox")?;
    let greeting = match mount(guest) {
        Ok(device) => format!("{device} is mounted on {MOUNTPOINT}. `exit` powers the guest off."),
        Err(error) => format!("The file system could not be mounted: {error:#}"),
    };
    let shell = format!(
        "echo; echo '{}'; cd {MOUNTPOINT}; exec sh",
        greeting.replace('\'', "\"")
    );
    Command::new("busybox")
        .args(["setsid", "-c", "sh", "-c", &shell])
        .env("PS1", "famfs:$PWD# ")
        .stdin(terminal.try_clone()?)
        .stdout(terminal.try_clone()?)
        .stderr(terminal)
        .status()
        .context("shell")?;
    Ok(())
}

fn mount(guest: &Guest) -> Result<String> {
    let device = guest.devices.first().context("no daxdev")?.path();
    std::fs::create_dir_all(MOUNTPOINT)?;
    module::ensure_famfs()?;
    tool::mkfs(&["--set-daxmode", &device])?;
    tool::famfs(&["mount", &device, MOUNTPOINT])?;
    Ok(device)
}
