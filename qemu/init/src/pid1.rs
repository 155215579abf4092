// SPDX-License-Identifier: MIT OR Apache-2.0
//! PID 1: mounts what every Linux has, starts the runner, buries orphans, powers the machine off when the runner is gone.

use std::process::{Command, ExitCode};

use anyhow::{bail, Context, Result};
use rustix::mount::{mount, MountFlags};
use rustix::process::{wait, WaitOptions};
use rustix::system::{reboot, RebootCommand};

use crate::channel::Channel;

/// (type, target)
const MOUNTS: [(&str, &str); 7] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
    ("debugfs", "/sys/kernel/debug"),
    ("fusectl", "/sys/fs/fuse/connections"),
];

pub fn main() -> ExitCode {
    if let Err(error) = boot() {
        match Channel::open() {
            Ok(mut channel) => channel.why(&format!("{error:#}")),
            Err(_) => eprintln!("guest init: {error:#}"),
        }
    }
    rustix::fs::sync();
    let error = reboot(RebootCommand::PowerOff);
    eprintln!("guest init: power off: {error:?}");
    // Leaving here makes the kernel panic, which ends QEMU as well (panic=-1, -no-reboot).
    ExitCode::FAILURE
}

fn boot() -> Result<()> {
    for (fstype, target) in MOUNTS {
        std::fs::create_dir_all(target).ok();
        mount(fstype, target, fstype, MountFlags::empty(), None)
            .with_context(|| format!("mount {fstype} on {target}"))?;
    }
    std::env::set_var("PATH", "/usr/bin:/usr/sbin:/bin:/sbin");
    std::env::set_var("HOME", "/");
    let runner = Command::new("/init")
        .arg("run")
        .spawn()
        .context("start the runner")?;
    loop {
        // Processes that lost their parent are ours to bury.
        let (pid, status) = wait(WaitOptions::empty())?.context("no child to wait for")?;
        if u32::try_from(pid.as_raw_nonzero().get()) == Ok(runner.id()) {
            return match status.terminating_signal() {
                Some(signal) => bail!("the runner was killed by signal {signal}"),
                None => Ok(()),
            };
        }
    }
}
