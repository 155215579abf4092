// SPDX-License-Identifier: MIT OR Apache-2.0
//! famfs: tools and FUSE server in one multi-call binary.

mod check;
mod chkread;
mod clear_error;
mod cli;
mod compared;
mod cp;
mod creat;
mod create;
mod daemon;
mod device;
mod df;
mod docs;
mod doctor;
mod dump;
mod escape;
mod examples;
mod exit;
mod fill;
mod flush;
mod fmap;
mod fsck;
mod getmap;
mod handover;
mod image;
mod json;
mod kernel;
mod log;
mod logplay;
mod ls;
mod master;
mod messages;
mod mkdir;
mod mkfs;
mod mount;
mod mount_helper;
mod mounted;
mod mountinfo;
mod server;
mod size;
mod status;
mod system;
#[cfg(test)]
mod testing;
mod verify;
mod work;
mod writer;

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use escape::{escaped, escaped_lines};
use messages::Messages;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let messages = Messages::new();
    let call = match cli::parse(std::env::args_os()) {
        Ok(Some(call)) => call,
        Ok(None) => return ExitCode::SUCCESS,
        Err(text) => {
            messages.error(format!("mount.famfs: {}", escaped_lines(text)));
            return ExitCode::from(mount_helper::USAGE_CODE);
        }
    };
    trace(messages, call.verbose);
    let arguments: Vec<_> = std::env::args_os().collect();
    tracing::info!(
        "famfs {} called as {arguments:?}",
        env!("CARGO_PKG_VERSION")
    );
    match cli::run(call.verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            messages.error(format!("famfs: {}", escaped(format_args!("{error:#}"))));
            ExitCode::from(match call.from_mount {
                true => mount_helper::FAILURE_CODE,
                false => exit::code(&error) as u8,
            })
        }
    }
}

/// Has all that is traced from now on go to `messages`.
fn trace(messages: Messages, verbose: u8) {
    let default = ["warn", "info", "debug"]
        .get(usize::from(verbose))
        .unwrap_or(&"trace");
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .without_time()
        .with_level(!messages.to_journal)
        .with_writer(messages)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

/// Whether the reader of our output went away, as `head` does.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
