// SPDX-License-Identifier: MIT OR Apache-2.0
//! QMP, QEMU's control socket: what a guest can't do to its own machine, it asks for in QMP's words.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use serde_json::Value;

/// How long QEMU may take for one command.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The socket of one QEMU, connected to when it is used first; its file goes with this value.
pub struct Qmp {
    path: PathBuf,
    stream: Option<BufReader<UnixStream>>,
}

impl Qmp {
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            stream: None,
        }
    }

    /// Has QEMU execute a command, and gives its answer or why there is none, both as one line of JSON.
    pub fn execute(&mut self, command: &str) -> String {
        self.try_execute(command).unwrap_or_else(|error| {
            serde_json::json!({ "error": format!("{error:#}") }).to_string()
        })
    }

    fn try_execute(&mut self, command: &str) -> Result<String> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => connect(&self.path)?,
        };
        let answer = ask(&mut stream, command)?;
        self.stream = Some(stream);
        Ok(answer)
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn connect(path: &Path) -> Result<BufReader<UnixStream>> {
    let stream = UnixStream::connect(path).with_context(|| path.display().to_string())?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut stream = BufReader::new(stream);
    // QEMU greets, and takes nothing else before this command.
    ask(&mut stream, r#"{"execute":"qmp_capabilities"}"#)?;
    Ok(stream)
}

/// Sends a command and waits for its answer. Greetings and events come in between.
fn ask(stream: &mut BufReader<UnixStream>, command: &str) -> Result<String> {
    writeln!(stream.get_mut(), "{command}")?;
    loop {
        let mut line = String::new();
        ensure!(stream.read_line(&mut line)? > 0, "QEMU closed its socket");
        let answer: Value = serde_json::from_str(&line).context("QMP")?;
        if answer.get("return").or(answer.get("error")).is_some() {
            return Ok(answer.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn answers_are_told_from_what_comes_between() {
        let path = std::env::temp_dir().join(format!("famfs-{}-test.qmp", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let qemu = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let say = |text: &str| writeln!(&stream, "{text}").unwrap();
            say(r#"{"QMP": {}}"#);
            assert!(lines.next().unwrap().unwrap().contains("qmp_capabilities"));
            say(r#"{"return": {}}"#);
            assert_eq!(lines.next().unwrap().unwrap(), "one");
            say(r#"{"timestamp": {}, "event": "RESET"}"#);
            say(r#"{"return": 1}"#);
            assert_eq!(lines.next().unwrap().unwrap(), "two");
            say(r#"{"error": {"class": "GenericError"}}"#);
        });
        let mut qmp = Qmp::new(&path);
        assert_eq!(qmp.execute("one"), r#"{"return":1}"#);
        let refused = r#"{"error":{"class":"GenericError"}}"#;
        assert_eq!(qmp.execute("two"), refused);
        qemu.join().unwrap();
        assert!(qmp.execute("three").starts_with(r#"{"error":"#));
        drop(qmp);
        assert!(!path.exists());
    }
}
