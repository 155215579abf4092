// SPDX-License-Identifier: MIT OR Apache-2.0
//! One run of a guest: its events as they come, time limits, its end, its console log.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStderr};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};

use crate::console::Console;
use crate::ktap::{self, Event, Outcome, TestResult};
use crate::qemu::Machine;
use crate::qmp::Qmp;

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
pub struct Reaper(pub Child);

impl Drop for Reaper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots the machine and hands every event to `on_event` until the guest is gone. A test during which the kernel
/// reported a defect has failed.
pub fn run(machine: &Machine, limits: Limits, on_event: impl FnMut(&Event)) -> Result<Ending> {
    run_logged(machine, limits, None, on_event)
}

/// Reads what QEMU logs, to its end.
pub type LogReader = Box<dyn FnOnce(ChildStderr) + Send>;

/// As [`run`], for a guest that has no tests: fails with what the guest and the kernel say is wrong.
pub fn run_to_success(
    machine: &Machine,
    limits: Limits,
    log: Option<LogReader>,
    mut on_event: impl FnMut(&Event),
) -> Result<()> {
    let mut reasons = Vec::new();
    let ending = run_logged(machine, limits, log, |event| match event {
        Event::Why(text) => reasons.push(text.clone()),
        event => on_event(event),
    })?;
    reasons.extend(ending.faults);
    ensure!(
        reasons.is_empty(),
        "{}\nconsole log: {}",
        reasons.join("\n"),
        ending.console.display()
    );
    Ok(())
}

fn run_logged(
    machine: &Machine,
    limits: Limits,
    log: Option<LogReader>,
    mut on_event: impl FnMut(&Event),
) -> Result<Ending> {
    let mut console = Console::new(machine.console.clone());
    // A log from before would be taken for this run's.
    let _ = std::fs::remove_file(&console.path);
    let socket = machine.qmp_socket();
    let mut qmp = Qmp::new(&socket);
    let ask = |command: &str| qmp.execute(command);
    let mut child = machine.start(Some(&socket))?;
    if let Some(log) = log {
        let stderr = child.stderr.take().context("QEMU without a log")?;
        std::thread::spawn(move || log(stderr));
    }
    let mut faults = follow(child, limits, ask, |event| match event {
        Event::Result(result) if result.depth == 0 => {
            judge(result, console.new_defects(), &mut on_event);
        }
        event => on_event(event),
    })?;
    faults.extend(console.last_defects());
    Ok(Ending {
        faults,
        console: console.path,
    })
}

/// Hands on the result of a test during which the kernel reported these.
pub fn judge(result: &TestResult, defects: Vec<String>, on_event: &mut impl FnMut(&Event)) {
    let mut result = result.clone();
    if !defects.is_empty() {
        result.outcome = Outcome::Failed;
    }
    on_event(&Event::Result(result));
    for defect in defects {
        on_event(&Event::Why(defect));
    }
}

/// Reads the channel, the child's standard output, to its end; gives what was wrong with it. The answers of `ask` to
/// the guest's commands go back through its standard input.
fn follow(
    child: Child,
    limits: Limits,
    mut ask: impl FnMut(&str) -> String,
    mut on_event: impl FnMut(&Event),
) -> Result<Vec<String>> {
    let mut child = Reaper(child);
    let stdout = child.0.stdout.take().context("QEMU without output")?;
    let mut stdin = child.0.stdin.take().context("QEMU without input")?;
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
                    // A guest that is gone is found out by its silence.
                    Event::Qmp(command) => drop(writeln!(stdin, "{}", ask(command))),
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
    Ok(faults)
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

/// Sends each line with `index`, and None at the end.
pub fn each_line(
    stdout: impl Read + Send + 'static,
    index: usize,
    sender: Sender<(usize, Option<String>)>,
) {
    let lines = read_lines(stdout);
    std::thread::spawn(move || {
        for line in lines {
            if sender.send((index, Some(line))).is_err() {
                return;
            }
        }
        let _ = sender.send((index, None));
    });
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

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn follow_script(script: &str, total: u64, silence: u64) -> (Vec<String>, usize) {
        let child = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let limits = Limits {
            total: Duration::from_millis(total),
            silence: Duration::from_millis(silence),
        };
        let mut events = 0;
        let ask = |command: &str| format!("answer to {command}");
        let faults = follow(child, limits, ask, |_| events += 1).unwrap();
        (faults, events)
    }

    #[test]
    fn a_whole_run_has_no_fault() {
        let script = "echo '# step: a'; echo 'ok 1 a'; echo '# done'";
        assert_eq!(follow_script(script, 5000, 5000), (vec![], 3));
    }

    #[test]
    fn a_guest_gets_its_answers() {
        let script = r#"echo '# qmp: {"a":1}'; read answer; [ "$answer" = 'answer to {"a":1}' ] && echo '# done'"#;
        assert_eq!(follow_script(script, 5000, 5000), (vec![], 2));
    }

    #[test]
    fn a_report_of_the_kernel_fails_the_test_under_way() {
        let mut events = Vec::new();
        let Event::Result(passed) = ktap::parse("ok 1 vm.a.b") else {
            panic!("a result");
        };
        judge(&passed, vec![], &mut |event| events.push(event.clone()));
        judge(&passed, vec!["BUG".to_owned()], &mut |event| {
            events.push(event.clone());
        });
        let failed = ktap::parse("not ok 1 vm.a.b");
        let why = Event::Why("BUG".to_owned());
        assert_eq!(events, [Event::Result(passed), failed, why]);
    }

    #[test]
    fn a_silent_guest_hangs_at_its_last_step() {
        let script = "echo '# step: a'; echo '# step: b'; exec sleep 60";
        let (faults, events) = follow_script(script, 30_000, 300);
        assert_eq!((faults.len(), events), (1, 2));
        assert!(faults[0].starts_with("hung at step \"b\""), "{faults:?}");
    }

    #[test]
    fn a_guest_that_goes_on_for_ever_is_stopped() {
        let script = "while echo 'ok 1 a'; do sleep 0.05; done";
        let (faults, _) = follow_script(script, 400, 30_000);
        assert!(faults[0].starts_with("hung at step \"boot\""), "{faults:?}");
    }

    #[test]
    fn a_guest_that_dies_is_told_with_qemus_words() {
        let (faults, _) = follow_script("echo '# step: a'; echo no memory >&2; exit 1", 5000, 5000);
        let expected = "the guest stopped at step \"a\"; QEMU says: no memory";
        assert_eq!(faults, [expected]);
    }
}
