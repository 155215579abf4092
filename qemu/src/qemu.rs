// SPDX-License-Identifier: MIT OR Apache-2.0
//! Starts QEMU. The console goes to a file, the channel (second serial port) through QEMU's standard output.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{bail, ensure, Context, Result};

use crate::topology::Topology;

pub const PROGRAM: &str = "qemu-system-x86_64";
/// The first QEMU with volatile CXL memory.
const OLDEST: (u32, u32) = (8, 1);

/// How a guest's CPUs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cpus {
    /// Two, taking turns: with more than one thread, patched code can race with a stale translation (int3 Oops at boot).
    Two,
    /// Two at the same time, for a kernel that patches no code (CONFIG_JUMP_LABEL=n).
    Parallel,
    /// One, whose time is the number of instructions. Nothing random and no time of day: two boots do the same.
    Counting,
}

impl Cpus {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Two => &["-accel", "tcg,thread=single", "-smp", "2", "-cpu", "max"],
            Self::Parallel => &["-accel", "tcg,thread=multi", "-smp", "2", "-cpu", "max"],
            Self::Counting => &[
                "-accel",
                "tcg,thread=single",
                "-smp",
                "1",
                "-icount",
                "shift=0,sleep=off",
                "-cpu",
                "max,rdrand=off,rdseed=off",
                "-rtc",
                "base=2026-01-01,clock=vm",
            ],
        }
    }
}

/// One guest to be started.
#[derive(Debug)]
pub struct Machine<'a> {
    pub topology: &'a Topology,
    pub kernel: &'a Path,
    pub initrd: PathBuf,
    /// `famfs.*` words for the guest's init.
    pub plan: Vec<String>,
    /// Where the kernel's log goes.
    pub console: PathBuf,
    pub cpus: Cpus,
    /// For the debug tier's kernel.
    pub debug: bool,
    /// Files that are this guest's NVDIMMs, and another's, with their sizes.
    pub nvdimms: Vec<(PathBuf, u64)>,
    /// A disk that guests only read.
    pub disk: Option<PathBuf>,
}

impl Machine<'_> {
    /// A guest whose channel is the child's standard output. QEMU listens for QMP at `qmp`.
    pub fn start(&self, qmp: Option<&Path>) -> Result<Child> {
        let mut command = self.command();
        command
            .arg("-serial")
            .arg(format!("file:{}", self.console.display()));
        command.args([
            "-chardev",
            "stdio,id=channel,signal=off",
            "-serial",
            "chardev:channel",
        ]);
        if let Some(qmp) = qmp {
            let socket = format!("unix:{},server=on,wait=off", qmp.display());
            command.args(["-qmp", &socket]);
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().with_context(not_found)
    }

    /// Where QEMU may listen for QMP. A socket's path must be short, and that of the logs need not be.
    pub fn qmp_socket(&self) -> PathBuf {
        let name = self.console.file_stem().unwrap_or_default();
        let name = name.to_string_lossy();
        std::env::temp_dir().join(format!("famfs-{}-{name}.qmp", std::process::id()))
    }

    /// A guest whose first serial port is the user's terminal, until it powers off.
    pub fn run_on_terminal(&self) -> Result<()> {
        let mut command = self.command();
        command.args([
            "-chardev",
            "stdio,id=terminal,mux=on,signal=off",
            "-serial",
            "chardev:terminal",
        ]);
        command
            .arg("-serial")
            .arg(format!("file:{}", self.console.display()));
        let status = command.status().with_context(not_found)?;
        ensure!(status.success(), "QEMU ended with {status}");
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(self.cpus.arguments());
        command.args(["-nodefaults", "-no-reboot", "-display", "none"]);
        command.args(self.topology.qemu);
        for (slot, (path, size)) in self.nvdimms.iter().enumerate() {
            let path = path.display();
            command.arg("-object").arg(format!(
                "memory-backend-file,id=shared{slot},share=on,mem-path={path},size={size}"
            ));
            command
                .arg("-device")
                .arg(format!("nvdimm,memdev=shared{slot},id=nvdimm{slot}"));
        }
        if let Some(path) = &self.disk {
            let path = path.display();
            command.arg("-drive").arg(format!(
                "file={path},if=virtio,format=raw,readonly=on,file.locking=off"
            ));
        }
        if self.debug {
            // It keeps books on all of its memory. This is the last word on the size; what else was said with -m stays.
            command.args(["-m", "3G"]);
            // With five-level page tables KASAN takes an interrupt for a wild access if it comes while the boot CPU is
            // identified: its feature bits, by which KASAN knows the layout, are cleared for a moment.
            command.args(["-cpu", "max,la57=off"]);
        }
        command
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(&self.initrd);
        command.arg("-append").arg(self.kernel_command_line());
        command
    }

    fn kernel_command_line(&self) -> String {
        // On a busy host no tick may come in the time in which the kernel expects some, and it would panic.
        let mut words = vec!["console=ttyS0", "panic=-1", "loglevel=7", "no_timer_check"];
        words.extend(self.topology.kernel);
        let memory = format!("famfs.memory={}", self.topology.memory);
        words.push(&memory);
        words.extend(self.plan.iter().map(String::as_str));
        words.join(" ")
    }
}

fn not_found() -> String {
    format!("cannot run {PROGRAM}: install it (Debian: apt-get install qemu-system-x86)")
}

/// Refuses a QEMU that is too old for CXL memory, before a guest fails in a way that names nothing.
pub fn check_version() -> Result<()> {
    let output = Command::new(PROGRAM)
        .arg("--version")
        .output()
        .with_context(not_found)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match parse_version(&text) {
        Some(version) if version >= OLDEST => Ok(()),
        Some((major, minor)) => bail!(
            "{PROGRAM} is version {major}.{minor}, {}.{} or newer is needed (Debian 12: apt-get install -t bookworm-backports qemu-system-x86)",
            OLDEST.0,
            OLDEST.1
        ),
        None => bail!("cannot read the version of {PROGRAM} from {text:?}"),
    }
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let version = text.split_once("version ")?.1;
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(
            parse_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"),
            Some((10, 0))
        );
        assert_eq!(parse_version("QEMU emulator version 7.2.17"), Some((7, 2)));
        assert_eq!(parse_version("nonsense"), None);
    }
}
