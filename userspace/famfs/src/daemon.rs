// SPDX-License-Identifier: MIT OR Apache-2.0
//! The server as a process of its own: how it is called, and how it tells who started it that it is ready.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Child;

use crate::exit::{self, fail, Exit};
use crate::server::Options;

/// What the server writes to its standard output when it is ready; what stands behind it is for the user. Anything
/// else is an error's message.
const READY: &str = "ready ";

/// Number of the signal for memory that is not there or is poisoned.
const SIGBUS: i32 = 7;

/// Arguments of `famfs serve` for a mount of `devices` at `mountpoint`.
pub fn arguments(devices: &[PathBuf], mountpoint: &Path, options: &Options) -> Vec<OsString> {
    let mut arguments = Vec::new();
    for device in devices.iter().skip(1) {
        arguments.extend(["--daxdev".into(), device.into()]);
    }
    let seconds = options.follow.unwrap_or_default().as_secs_f64();
    arguments.push(format!("--follow={seconds}").into());
    let flags = [
        (options.rw, "--rw"),
        (options.ro, "--ro"),
        (options.noexec, "--noexec"),
        (options.take_over, "--take-over"),
    ];
    arguments.extend(
        flags
            .iter()
            .filter(|(set, _)| *set)
            .map(|(_, flag)| flag.into()),
    );
    if let Some(policy) = options.failure {
        arguments.extend(["--failure".into(), policy.name().into()]);
    }
    arguments.push("--".into());
    arguments.extend(devices.first().map(Into::into));
    arguments.push(mountpoint.into());
    arguments
}

/// Tells [`await_ready`] that this server stands on its own now.
pub fn tell_ready(text: &str) -> io::Result<()> {
    tell(&format!("{READY}{text}"))?;
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    Ok(rustix::stdio::dup2_stdout(null)?)
}

/// Tells [`await_ready`] why this server ends.
pub fn tell(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Waits until the server says that it is ready, or why it is not. Gives its text.
pub fn await_ready(server: &mut Child) -> anyhow::Result<String> {
    let mut text = String::new();
    if let Some(mut stdout) = server.stdout.take() {
        stdout.read_to_string(&mut text)?;
    }
    if let Some(text) = text.strip_prefix(READY) {
        return Ok(text.to_owned());
    }
    let status = server.wait()?;
    match status.signal() {
        None => Err(fail(
            status.code().map_or(Exit::Failed, exit::of_code),
            text,
        )),
        Some(SIGBUS) => Err(fail(
            Exit::Corrupt,
            "the memory of the superblock or the log cannot be read: SIGBUS",
        )),
        Some(signal) => Err(fail(
            Exit::Failed,
            format!("the server was killed by signal {signal}"),
        )),
    }
}
