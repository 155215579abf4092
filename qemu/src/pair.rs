// SPDX-License-Identifier: MIT OR Apache-2.0
//! Two guests on one memory. What one of them tells goes to the other; the second is booted when the first has told
//! for the first time, as it finds then what that has made of the memory.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::ChildStdin;
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::console::Console;
use crate::guest::{judge, Ending, Limits, Reaper};
use crate::ktap::{self, Event};
use crate::qemu::Machine;
use crate::snapshots::Snapshots;

/// The memory of both, gone with this: files and their sizes.
#[derive(Default)]
pub struct SharedMemory(Vec<(PathBuf, u64)>);

impl SharedMemory {
    /// Sparse files in memory.
    pub fn new(sizes: &[u64]) -> Result<Self> {
        let mut memory = Self::default();
        for (index, &size) in sizes.iter().enumerate() {
            let path = PathBuf::from(format!("/dev/shm/famfs-rs-{}.{index}", std::process::id()));
            let file = File::create(&path).with_context(|| path.display().to_string())?;
            memory.0.push((path, size));
            file.set_len(size).context("size of the shared memory")?;
        }
        Ok(memory)
    }

    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        self.0.clone()
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        for (path, _) in &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// A guest that runs.
struct Side {
    reaper: Reaper,
    stdin: ChildStdin,
    step: String,
}

/// What became of a guest.
#[derive(Default)]
pub struct Outcome {
    pub events: Vec<Event>,
    complete: bool,
    /// The other one had it killed.
    killed: bool,
}

/// A line of a guest, or its end.
type Line = (usize, Option<String>);

/// Boots both machines; gives what each reported and how its run ended.
pub fn run(
    machines: [&Machine; 2],
    limits: Limits,
    snapshots: &mut Snapshots,
) -> Result<[(Outcome, Ending); 2]> {
    for machine in machines {
        let _ = fs::remove_file(&machine.console);
    }
    let (sender, lines) = channel();
    let mut sides = [Some(start(0, machines[0], &sender)?), None];
    let mut outcomes = [Outcome::default(), Outcome::default()];
    let boot = |index: usize| start(index, machines[index], &sender);
    let mut consoles = machines.map(|machine| Console::new(machine.console.clone()));
    let mut faults = follow(
        &mut sides,
        &mut outcomes,
        &mut consoles,
        &lines,
        limits,
        snapshots,
        boot,
    )?;
    drop(sides);
    let mut endings = consoles.map(|mut console| Ending {
        faults: console.last_defects(),
        console: console.path,
    });
    for (index, outcome) in outcomes.iter_mut().enumerate() {
        if outcome.killed {
            // It has not come to all that it had planned.
            outcome
                .events
                .retain(|event| !matches!(event, Event::Plan(_)));
        } else if !outcome.complete && faults.is_empty() {
            faults.push(format!("guest {index} stopped before it had done all"));
        }
    }
    endings[1].faults.append(&mut faults);
    Ok(zip(outcomes, endings))
}

fn zip<A, B>([a0, a1]: [A; 2], [b0, b1]: [B; 2]) -> [(A, B); 2] {
    [(a0, b0), (a1, b1)]
}

fn start(index: usize, machine: &Machine, sender: &Sender<Line>) -> Result<Side> {
    let mut child = machine.start(None)?;
    let stdout = child.stdout.take().context("QEMU without output")?;
    let stdin = child.stdin.take().context("QEMU without input")?;
    crate::guest::each_line(stdout, index, sender.clone());
    Ok(Side {
        reaper: Reaper(child),
        stdin,
        step: "boot".to_owned(),
    })
}

/// Passes on what the guests tell, until both are gone; gives what was wrong.
fn follow(
    sides: &mut [Option<Side>; 2],
    outcomes: &mut [Outcome; 2],
    consoles: &mut [Console; 2],
    lines: &Receiver<Line>,
    limits: Limits,
    snapshots: &mut Snapshots,
    boot: impl Fn(usize) -> Result<Side>,
) -> Result<Vec<String>> {
    let started = Instant::now();
    while sides.iter().any(Option::is_some) {
        let left = limits.total.saturating_sub(started.elapsed());
        let (index, line) = match lines.recv_timeout(left.min(limits.silence)) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let steps: Vec<_> = sides.iter().flatten().map(|side| &side.step).collect();
                let seconds = started.elapsed().as_secs();
                return Ok(vec![format!(
                    "hung at steps {steps:?}, {seconds} s after the start"
                )]);
            }
        };
        let peer = 1 - index;
        let Some(line) = line else {
            sides[index] = None;
            continue;
        };
        match ktap::parse(&line) {
            Event::Tell(_)
                if sides[peer].is_none() && peer == 1 && outcomes[1].events.is_empty() =>
            {
                sides[peer] = Some(boot(peer)?);
            }
            Event::Tell(text) => {
                if let Some(side) = &mut sides[peer] {
                    // One that is gone hears nothing; that shows in its results.
                    let _ = writeln!(side.stdin, "{text}");
                    let _ = side.stdin.flush();
                }
            }
            Event::Appends(count) => {
                if let Some(side) = &mut sides[index] {
                    let answer = snapshots.judge();
                    let _ = writeln!(side.stdin, "{answer}");
                    let _ = side.stdin.flush();
                    if count > 0 {
                        snapshots.take(&side.reaper.0, count);
                    }
                }
            }
            Event::KillPeer => {
                outcomes[peer].killed = true;
                if let Some(side) = &mut sides[peer] {
                    let _ = side.reaper.0.kill();
                }
            }
            Event::Result(result) if result.depth == 0 => {
                judge(&result, consoles[index].new_defects(), &mut |event| {
                    outcomes[index].events.push(event.clone());
                });
            }
            event => {
                if let (Event::Step(text), Some(side)) = (&event, &mut sides[index]) {
                    side.step.clone_from(text);
                }
                outcomes[index].complete |= event == Event::Done;
                outcomes[index].events.push(event);
            }
        }
    }
    Ok(Vec::new())
}
