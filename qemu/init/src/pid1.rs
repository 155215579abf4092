// SPDX-License-Identifier: MIT OR Apache-2.0
//! PID 1: mounts what every Linux has, starts the runner, buries orphans, powers the machine off when the runner is gone.
//! In an image with systemd that is PID 1 from then on, and the runner one of its services.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
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

const SYSTEMD: &str = "/usr/lib/systemd/systemd";
/// It is all that systemd is asked to start; what the runner asks for comes with what it depends on.
const RUNNER: &str = "runner.service";
const RUNNER_UNIT: &str = "\
[Unit]
DefaultDependencies=no
SuccessAction=poweroff-immediate
FailureAction=poweroff-immediate
[Service]
Type=oneshot
Environment=HOME=/
ExecStart=/init run
StandardError=tty
TTYPath=/dev/console
";

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
    if Path::new(SYSTEMD).exists() {
        return become_systemd();
    }
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

/// Comes back only with an error.
fn become_systemd() -> Result<()> {
    fs::create_dir_all("/etc/systemd/system")?;
    fs::write(format!("/etc/systemd/system/{RUNNER}"), RUNNER_UNIT)?;
    // Without one it is a first boot, with questions.
    fs::write("/etc/machine-id", format!("{:032x}\n", 1))?;
    let error = Command::new(SYSTEMD).arg(format!("--unit={RUNNER}")).exec();
    Err(error).context(SYSTEMD)
}
