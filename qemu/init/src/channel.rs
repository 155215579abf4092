// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's clean line to the harness: the second serial port, where no kernel message can fall between. It
//! carries KTAP; what is not a result is a KTAP comment that the harness knows. The way back carries lines of the other
//! guest, and answers of QEMU.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};

use anyhow::{bail, ensure, Context, Result};
use rustix::termios::{tcgetattr, tcsetattr, OptionalActions};
use serde_json::Value;

const PORT: &str = "/dev/ttyS1";

pub struct Channel {
    port: File,
}

impl Channel {
    pub fn open() -> Result<Self> {
        let port = OpenOptions::new()
            .read(true)
            .write(true)
            .open(PORT)
            .context(PORT)?;
        let mut termios = tcgetattr(&port).context(PORT)?;
        termios.make_raw();
        tcsetattr(&port, OptionalActions::Now, &termios).context(PORT)?;
        Ok(Self { port })
    }

    /// One line of KTAP. A failing port can be told to nobody, and the harness sees the silence.
    pub fn line(&mut self, text: &str) {
        let _ = self.port.write_all(format!("{text}\n").as_bytes());
    }

    /// What is done next, so that a hang can be named.
    pub fn step(&mut self, text: &str) {
        self.comment("step", text);
    }

    /// A line for the user's screen.
    pub fn say(&mut self, text: &str) {
        self.comment("say", text);
    }

    /// Why the test before it failed, or why the guest gives up.
    pub fn why(&mut self, text: &str) {
        self.comment("why", text);
    }

    /// A line for the other guest.
    pub fn tell(&mut self, text: &str) {
        self.comment("tell", text);
    }

    /// Waits for a line from the other guest.
    pub fn hear(&mut self) -> Result<String> {
        let mut line = Vec::new();
        let mut byte = [0];
        loop {
            self.port.read_exact(&mut byte).context(PORT)?;
            if byte == *b"\n" {
                return String::from_utf8(line).context("a line from the other guest");
            }
            line.extend(byte);
        }
    }

    /// Waits for this line from the other guest.
    pub fn expect(&mut self, text: &str) -> Result<()> {
        let heard = self.hear()?;
        ensure!(
            heard == text,
            "heard {heard:?} from the other guest, not {text:?}"
        );
        Ok(())
    }

    /// Says that so many entries will be appended at once, has the harness judge what it has seen of those before, and
    /// gives its verdict.
    pub fn appends(&mut self, count: usize) -> Result<String> {
        self.comment("appends", &count.to_string());
        self.hear()
    }

    /// Has the other guest killed, as by a loss of power.
    pub fn kill_the_other(&mut self) {
        self.line("# kill the other");
    }

    /// Has QEMU execute a command, {"execute": ..., "arguments": ...}; gives what it returns. Not for
    /// guests with another one beside them, whose lines come the same way.
    pub fn qmp(&mut self, command: &Value) -> Result<Value> {
        self.comment("qmp", &command.to_string());
        let mut answer: Value = serde_json::from_str(&self.hear()?).context("QMP")?;
        match answer.get_mut("return") {
            Some(value) => Ok(value.take()),
            None => bail!("QEMU refused {command}: {answer}"),
        }
    }

    /// A figure of `make bench`.
    pub fn row(&mut self, subject: &str, operation: &str, figure: u64) {
        self.comment("row", &format!("{subject}\t{operation}\t{figure}"));
    }

    /// Where the function is that reads the clock.
    pub fn clock(&mut self, address: usize) {
        self.comment("clock", &format!("{address:x}"));
    }

    /// A function of the kernel, as in /proc/kallsyms.
    pub fn symbol(&mut self, line: &str) {
        self.comment("symbol", line);
    }

    /// The row before was measured, and logged, this often, and the functions of the module were those just told.
    pub fn traced(&mut self, samples: usize) {
        self.comment("traced", &samples.to_string());
    }

    /// The last line of a guest that went through its whole plan.
    pub fn done(&mut self) {
        self.line("# done");
    }

    fn comment(&mut self, kind: &str, text: &str) {
        for line in text.lines() {
            self.line(&format!("# {kind}: {line}"));
        }
    }
}
