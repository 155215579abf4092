// SPDX-License-Identifier: MIT OR Apache-2.0
//! A process to be sent into faults: it maps and touches files as told, and what becomes of it is the result.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};

use anyhow::{bail, ensure, Context, Result};
use rustix::process::{
    set_machine_check_memory_corruption_kill_policy, MachineCheckMemoryCorruptionKillPolicy,
};

use crate::sys::{report_sigbus, Kind, Mapping};

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Value(u64),
    Errno(i32),
    /// si_code, si_addr; the process is gone.
    Sigbus(i32, usize),
    /// The process was killed by this signal.
    Killed(i32),
}

pub struct Probe {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    lsb: Option<u8>,
}

impl Probe {
    pub fn start() -> Result<Self> {
        let mut child = Command::new("/init")
            .arg("probe")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().context("probe without input")?;
        let stdout = BufReader::new(child.stdout.take().context("probe without output")?);
        Ok(Self {
            child,
            stdin,
            stdout,
            lsb: None,
        })
    }

    /// si_addr_lsb of the SIGBUS that ended the process: log2 of how much memory is lost.
    pub fn lsb(&self) -> Option<u8> {
        self.lsb
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Opens the file and maps `len` bytes of it; the reply's value is the address.
    pub fn map(&mut self, path: &str, len: u64, kind: Kind) -> Result<Reply> {
        let kind = match kind {
            Kind::SharedRead => "r",
            Kind::SharedWrite => "w",
            Kind::Private => "p",
        };
        self.ask(&format!("map {path} {len} {kind}"))
    }

    /// Reads one byte of the mapping.
    pub fn get(&mut self, at: u64) -> Result<Reply> {
        self.ask(&format!("get {at}"))
    }

    /// Writes one byte of the mapping.
    pub fn set(&mut self, at: u64, value: u8) -> Result<Reply> {
        self.ask(&format!("set {at} {value}"))
    }

    /// Reports a hardware error in the page at `at` of the mapping.
    pub fn poison(&mut self, at: u64) -> Result<Reply> {
        self.ask(&format!("poison {at}"))
    }

    /// Asks for a signal when memory fails that the process has mapped, not only when it is touched.
    pub fn ask_for_early_kill(&mut self) -> Result<Reply> {
        self.ask("early")
    }

    /// Waits for a signal that no command has caused.
    pub fn wait_for_signal(&mut self) -> Result<Reply> {
        self.answer_to("waiting")
    }

    /// Reads from the mapped file by pread; the reply's value is the number of bytes.
    pub fn pread(&mut self, at: u64, len: u64) -> Result<Reply> {
        self.ask(&format!("pread {at} {len}"))
    }

    /// Writes zeros to the mapped file by pwrite; the reply's value is the number of bytes.
    pub fn pwrite(&mut self, at: u64, len: u64) -> Result<Reply> {
        self.ask(&format!("pwrite {at} {len}"))
    }

    fn ask(&mut self, command: &str) -> Result<Reply> {
        // A probe that was killed is found out by its empty answer.
        let _ = writeln!(self.stdin, "{command}");
        self.answer_to(command)
    }

    fn answer_to(&mut self, command: &str) -> Result<Reply> {
        let mut answer = String::new();
        self.stdout.read_line(&mut answer)?;
        let words: Vec<&str> = answer.split_ascii_whitespace().collect();
        Ok(match words[..] {
            ["value", value] => Reply::Value(value.parse()?),
            ["errno", errno] => Reply::Errno(errno.parse()?),
            ["sigbus", code, address, lsb] => {
                self.lsb = Some(u8::from_str_radix(lsb, 16)?);
                Reply::Sigbus(code.parse()?, usize::from_str_radix(address, 16)?)
            }
            [] => {
                let status = self.child.wait()?;
                Reply::Killed(
                    status
                        .signal()
                        .with_context(|| format!("the probe ended with {status} at {command:?}"))?,
                )
            }
            _ => bail!("the probe answered {answer:?} to {command:?}"),
        })
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The probe's own side: one command a line on standard input, one answer a line on standard output.
pub fn child_main() -> ExitCode {
    let mut state = State::default();
    if report_sigbus().is_err() {
        return ExitCode::FAILURE;
    }
    for line in std::io::stdin().lines().map_while(Result::ok) {
        match state.obey(&line) {
            Ok(Ok(value)) => println!("value {value}"),
            Ok(Err(error)) => println!("errno {}", error.raw_os_error().unwrap_or(0)),
            Err(error) => println!("{error:#}"),
        }
    }
    ExitCode::SUCCESS
}

#[derive(Default)]
struct State {
    file: Option<File>,
    mapping: Option<Mapping>,
}

impl State {
    fn obey(&mut self, line: &str) -> Result<std::io::Result<u64>> {
        let words: Vec<&str> = line.split(' ').collect();
        if let ["map", path, len, kind] = words[..] {
            return Ok(self.map(path, len.parse()?, kind));
        }
        if words == ["early"] {
            let early = Some(MachineCheckMemoryCorruptionKillPolicy::Early);
            let set = set_machine_check_memory_corruption_kill_policy(early);
            return Ok(set.map(|()| 0).map_err(Into::into));
        }
        let file = self.file.as_ref().context("no file")?;
        let mapping = self.mapping.as_ref().context("no mapping")?;
        Ok(match words[..] {
            ["get", at] => Ok(u64::from(mapping.byte(at.parse()?))),
            ["set", at, value] => {
                mapping.set_byte(at.parse()?, value.parse()?);
                Ok(0)
            }
            ["poison", at] => mapping.poison(at.parse()?).map(|()| 0),
            ["pread", at, len] => file
                .read_at(&mut vec![0; len.parse()?], at.parse()?)
                .map(|count| count as u64),
            ["pwrite", at, len] => file
                .write_at(&vec![0; len.parse()?], at.parse()?)
                .map(|count| count as u64),
            _ => bail!("unknown command {line:?}"),
        })
    }

    fn map(&mut self, path: &str, len: usize, kind: &str) -> std::io::Result<u64> {
        let kind = match kind {
            "r" => Kind::SharedRead,
            "w" => Kind::SharedWrite,
            _ => Kind::Private,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(kind == Kind::SharedWrite)
            .open(path)?;
        let mapping = Mapping::new(&file, 0, len, kind)?;
        let address = mapping.address() as u64;
        (self.file, self.mapping) = (Some(file), Some(mapping));
        Ok(address)
    }
}

/// Page faults of this process so far, of both kinds.
pub fn faults_of_self() -> Result<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name in parentheses may hold blanks; minflt and majflt are fields 10 and 12.
    let (_, rest) = stat.rsplit_once(") ").context("/proc/self/stat")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    ensure!(fields.len() > 9, "/proc/self/stat: {stat}");
    Ok(fields[7].parse::<u64>()? + fields[9].parse::<u64>()?)
}
