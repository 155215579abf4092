// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where messages go: to stderr, and where that is the journal with a priority in front of each line, as sd-daemon(3)
//! has it.

use std::fmt::Display;
use std::io::{self, Write};

use rustix::fs::fstat;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Messages on stderr.
#[derive(Clone, Copy)]
pub struct Messages {
    /// stderr goes to the journal of systemd.
    pub to_journal: bool,
}

impl Messages {
    /// For the stderr of this process. JOURNAL_STREAM has device and inode of what goes to the journal: a child of a
    /// service may have stderr somewhere else.
    pub fn new() -> Self {
        let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
        let is_stderr = |(device, inode): (&str, &str)| {
            let stat = fstat(io::stderr()).ok()?;
            Some(device.parse() == Ok(stat.st_dev) && inode.parse() == Ok(stat.st_ino))
        };
        Self {
            to_journal: stream.split_once(':').and_then(is_stderr).unwrap_or(false),
        }
    }

    /// Why the program ends.
    pub fn error(self, text: impl Display) {
        // There is nowhere else to say it.
        let _ = self
            .lines(&Level::ERROR)
            .write_all(format!("{text}\n").as_bytes());
    }

    fn lines(self, level: &Level) -> Lines {
        let priority = match *level {
            Level::ERROR => "<3>",
            Level::WARN => "<4>",
            Level::INFO => "<6>",
            _ => "<7>",
        };
        Lines(if self.to_journal { priority } else { "" })
    }
}

impl MakeWriter<'_> for Messages {
    type Writer = Lines;

    fn make_writer(&self) -> Self::Writer {
        self.lines(&Level::INFO)
    }

    fn make_writer_for(&self, meta: &Metadata<'_>) -> Self::Writer {
        self.lines(meta.level())
    }
}

/// Writes lines, each behind a priority. What is written at a time is whole lines.
pub struct Lines(&'static str);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut out = Vec::new();
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            out.extend_from_slice(self.0.as_bytes());
            out.extend_from_slice(line);
        }
        io::stderr().lock().write_all(&out)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
