// SPDX-License-Identifier: MIT OR Apache-2.0
//! One run of a guest: its events as they come, time limits, its end, its console log.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::Child;
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::console;
use crate::ktap::{self, Event};
use crate::qemu::Machine;

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For the whole run.
    pub total: Duration,
    /// Between two lines of the channel.
    pub silence: Duration,
}

/// How a run ended.
#[derive(Debug)]
pub struct Ending {
    /// What is wrong with the run as a whole, each in one sentence.
    pub faults: Vec<String>,
    pub console: PathBuf,
}

/// Ends QEMU with the run, however the run ends.
struct Reaper(Child);

impl Drop for Reaper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots the machine and hands every event to `on_event` until the guest is gone.
pub fn run(machine: &Machine, limits: Limits, mut on_event: impl FnMut(&Event)) -> Result<Ending> {
    let mut child = Reaper(machine.start()?);
    let stdout = child.0.stdout.take().context("QEMU without output")?;
    let lines = read_lines(stdout);
    let started = Instant::now();
    let mut step = "boot".to_owned();
    let mut complete = false;
    let mut faults = Vec::new();
    loop {
        let left = limits.total.saturating_sub(started.elapsed());
        match lines.recv_timeout(left.min(limits.silence)) {
            Ok(line) => {
                let event = ktap::parse(&line);
                match &event {
                    Event::Step(text) => step.clone_from(text),
                    Event::Done => complete = true,
                    _ => (),
                }
                on_event(&event);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                faults.push(format!(
                    "hung at step \"{step}\", {} s after the start",
                    started.elapsed().as_secs()
                ));
                break;
            }
        }
    }
    if !complete && faults.is_empty() {
        faults.push(format!(
            "the guest stopped at step \"{step}\"{}",
            qemu_says(&mut child.0)
        ));
    }
    drop(child);
    let log = fs::read(&machine.console)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    faults.extend(
        console::defects(&log)
            .into_iter()
            .map(|line| format!("the kernel reported: {line}")),
    );
    Ok(Ending {
        faults,
        console: machine.console.clone(),
    })
}

fn read_lines(stdout: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n') {
            let Ok(line) = line else { break };
            if sender
                .send(String::from_utf8_lossy(&line).into_owned())
                .is_err()
            {
                break;
            }
        }
    });
    receiver
}

/// QEMU's own complaint, if it made one.
fn qemu_says(child: &mut Child) -> String {
    let mut text = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = child.kill();
        let _ = stderr.read_to_string(&mut text);
    }
    match text.trim() {
        "" => String::new(),
        text => format!("; QEMU says: {text}"),
    }
}
