// SPDX-License-Identifier: MIT OR Apache-2.0
//! A process to be sent into faults: it maps and touches files as told, and what becomes of it is the result.

use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hasher};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};

use anyhow::{bail, ensure, Context, Result};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{
    set_machine_check_memory_corruption_kill_policy, MachineCheckMemoryCorruptionKillPolicy,
};

use crate::sys::{report_sigbus, scan_pages_of, Kind, Mapping};

/// Stands for bytes in a [`Reply`].
pub fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

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
        Self::start_by(&mut Command::new("/init"))
    }

    /// In a mount namespace of its own.
    pub fn start_apart() -> Result<Self> {
        Self::start_by(Command::new("busybox").args(["unshare", "-m", "/init"]))
    }

    fn start_by(command: &mut Command) -> Result<Self> {
        let mut child = command
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
        self.start_map(path, len, kind)?;
        self.answer()
    }

    /// As [`map`](Self::map), but whoever calls it asks for the answer.
    pub fn start_map(&mut self, path: &str, len: u64, kind: Kind) -> Result<()> {
        let kind = match kind {
            Kind::SharedRead => "r",
            Kind::SharedWrite => "w",
            Kind::Private => "p",
        };
        self.tell(&format!("map {path} {len} {kind}"))
    }

    /// Reads one byte of the mapping.
    pub fn get(&mut self, at: u64) -> Result<Reply> {
        self.ask(&format!("get {at}"))
    }

    /// Reads a byte of each page of the mapping.
    pub fn touch(&mut self) -> Result<Reply> {
        self.ask("touch")
    }

    /// The [`digest`] of a part of the mapping.
    pub fn digest(&mut self, at: u64, len: u64) -> Result<Reply> {
        self.ask(&format!("digest {at} {len}"))
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

    /// Reads from the mapped file by pread; the reply's value is the number of bytes.
    pub fn pread(&mut self, at: u64, len: u64) -> Result<Reply> {
        self.ask(&format!("pread {at} {len}"))
    }

    /// Writes zeros to the mapped file by pwrite; the reply's value is the number of bytes.
    pub fn pwrite(&mut self, at: u64, len: u64) -> Result<Reply> {
        self.ask(&format!("pwrite {at} {len}"))
    }

    /// Drops the mapping; the file stays open.
    pub fn unmap(&mut self) -> Result<Reply> {
        self.ask("unmap")
    }

    /// Closes the file as well.
    pub fn close(&mut self) -> Result<Reply> {
        self.ask("close")
    }

    /// Puts a page of the mapping into a pipe of its own, by reference.
    pub fn splice(&mut self, at: u64) -> Result<Reply> {
        self.ask(&format!("splice {at}"))
    }

    /// Reads all of that pipe, and drops it; the reply's value is the [`digest`].
    pub fn drain(&mut self) -> Result<Reply> {
        self.ask("drain")
    }

    /// Registers `len` bytes of the mapping as a fixed buffer of io_uring.
    pub fn register(&mut self, at: u64, len: u64) -> Result<Reply> {
        self.ask(&format!("register {at} {len}"))
    }

    /// Begins to read `len` bytes from `path` into the mapping with O_DIRECT.
    pub fn start_direct_read(&mut self, path: &str, at: u64, len: u64) -> Result<()> {
        self.tell(&format!("direct {path} {at} {len}"))
    }

    /// Reads, writes or touches all of the file, over and over until that fails. Returns after the first round; the
    /// answer is why it ended.
    pub fn hammer(&mut self, what: &str) -> Result<()> {
        let first = self.ask(&format!("hammer {what}"))?;
        ensure!(first == Reply::Value(0), "hammer {what}: {first:?}");
        Ok(())
    }

    /// Waits for a round of [`hammer`](Self::hammer) that begins after this; an error says what ended it instead.
    pub fn another_round(&mut self) -> Result<()> {
        let done = self.ask("another round")?;
        ensure!(done == Reply::Value(0), "it has ended: {done:?}");
        Ok(())
    }

    /// Bytes that are present in `len` bytes from `address` on, by the page tables and by smaps.
    pub fn present(&self, address: u64, len: u64) -> Result<(u64, u64)> {
        let pid = self.pid();
        let regions = scan_pages_of(&pid.to_string(), address, len)?;
        let mapped = regions.iter().map(|region| region.end - region.start).sum();
        let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
        let rss = smaps
            .split_once(&format!("{address:08x}-"))
            .and_then(|(_, rest)| rest.split_once("Rss:"))
            .and_then(|(_, rest)| rest.split_ascii_whitespace().next()?.parse::<u64>().ok());
        Ok((mapped, rss.context("no Rss in smaps")? << 10))
    }

    fn tell(&mut self, command: &str) -> Result<()> {
        // A probe that was killed is found out by its empty answer.
        let _ = writeln!(self.stdin, "{command}");
        Ok(())
    }

    fn ask(&mut self, command: &str) -> Result<Reply> {
        self.tell(command)?;
        self.answer().with_context(|| command.to_owned())
    }

    /// The answer to what was asked without waiting for it, or a signal that no command has caused.
    pub fn answer(&mut self) -> Result<Reply> {
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
                        .with_context(|| format!("the probe ended with {status}"))?,
                )
            }
            _ => bail!("the probe answered {answer:?}"),
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
    for line in std::iter::from_fn(next_command) {
        match state.obey(&line) {
            Ok(Ok(value)) => println!("value {value}"),
            Ok(Err(error)) => println!("errno {}", error.raw_os_error().unwrap_or(0)),
            Err(error) => println!("{error:#}"),
        }
    }
    ExitCode::SUCCESS
}

/// Leaves standard input unlocked.
fn next_command() -> Option<String> {
    std::io::stdin().lines().next()?.ok()
}

/// Whether a command waits. Nobody sends a second one before he has the answer, so none is in a buffer.
fn is_asked() -> bool {
    let stdin = std::io::stdin();
    let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

#[derive(Default)]
struct State {
    file: Option<File>,
    mapping: Option<Mapping>,
    pipe: Option<(OwnedFd, OwnedFd)>,
    ring: Option<OwnedFd>,
}

impl State {
    fn obey(&mut self, line: &str) -> Result<std::io::Result<u64>> {
        let words: Vec<&str> = line.split(' ').collect();
        if let ["map", path, len, kind] = words[..] {
            return Ok(self.map(path, len.parse()?, kind));
        }
        match words[..] {
            ["unmap"] => return Ok(Ok(self.mapping.take().map_or(0, |_| 0))),
            ["close"] => {
                (self.file, self.mapping) = (None, None);
                return Ok(Ok(0));
            }
            ["drain"] => return Ok(self.drain()),
            ["early"] => {
                let early = Some(MachineCheckMemoryCorruptionKillPolicy::Early);
                let set = set_machine_check_memory_corruption_kill_policy(early);
                return Ok(set.map(|()| 0).map_err(Into::into));
            }
            _ => (),
        }
        let file = self.file.as_ref().context("no file")?;
        if let ["pread", at, len] = words[..] {
            let count = file.read_at(&mut vec![0; len.parse()?], at.parse()?);
            return Ok(count.map(|count| count as u64));
        }
        let mapping = self.mapping.as_ref().context("no mapping")?;
        Ok(match words[..] {
            ["splice", at] => {
                let (_, into) = self.pipe.insert(rustix::pipe::pipe()?);
                let count = mapping.vmsplice(at.parse()?, 4096, into);
                count.map(|count| count as u64)
            }
            ["register", at, len] => mapping.register(at.parse()?, len.parse()?).map(|ring| {
                self.ring = Some(ring);
                0
            }),
            ["direct", path, at, len] => {
                let mut options = OpenOptions::new();
                options.read(true).custom_flags(libc::O_DIRECT);
                let from = options.open(path)?;
                let count = mapping.read_from(&from, at.parse()?, len.parse()?);
                count.map(|count| count as u64)
            }
            ["hammer", what] => Err(hammer(file, mapping, what)),
            ["get", at] => Ok(u64::from(mapping.byte(at.parse()?))),
            ["digest", at, len] => Ok(digest(&mapping.read(at.parse()?, len.parse()?))),
            ["touch"] => {
                touch(mapping);
                Ok(0)
            }
            ["set", at, value] => {
                mapping.set_byte(at.parse()?, value.parse()?);
                Ok(0)
            }
            ["poison", at] => mapping.poison(at.parse()?).map(|()| 0),
            ["pwrite", at, len] => file
                .write_at(&vec![0; len.parse()?], at.parse()?)
                .map(|count| count as u64),
            _ => bail!("unknown command {line:?}"),
        })
    }

    fn drain(&mut self) -> std::io::Result<u64> {
        let mut bytes = Vec::new();
        if let Some((out, into)) = self.pipe.take() {
            drop(into);
            File::from(out).read_to_end(&mut bytes)?;
        }
        Ok(digest(&bytes))
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

fn touch(mapping: &Mapping) {
    for at in (0..mapping.len()).step_by(4096) {
        mapping.byte(at);
    }
}

/// Only a failure ends it. Meanwhile each command is answered by the end of the next round.
fn hammer(file: &File, mapping: &Mapping, what: &str) -> std::io::Error {
    let mut bytes = vec![0; mapping.len()];
    let mut asked = true;
    loop {
        let done = match what {
            "read" => file.read_exact_at(&mut bytes, 0),
            // What is there already.
            "write" => file
                .read_exact_at(&mut bytes, 0)
                .and_then(|()| file.write_all_at(&bytes, 0)),
            _ => {
                touch(mapping);
                mapping.drop_entries(0, mapping.len())
            }
        };
        if let Err(error) = done {
            return error;
        }
        if asked {
            println!("value 0");
        }
        asked = is_asked() && next_command().is_some();
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
