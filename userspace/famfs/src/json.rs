// SPDX-License-Identifier: MIT OR Apache-2.0
//! JSON as it is printed. It has text alone: what is not UTF-8 in a path becomes U+FFFD.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str;

use serde::{Serialize, Serializer};

use crate::escape::is_obeyed;

/// For `serialize_with`.
pub fn path<S: Serializer>(path: &Path, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(&path.to_string_lossy())
}

/// The same for what need not be there.
#[allow(clippy::ref_option)] // serde calls it.
pub fn some_path<S: Serializer>(path: &Option<PathBuf>, out: S) -> Result<S::Ok, S::Error> {
    let text = path.as_ref().map(|path| path.to_string_lossy());
    text.serialize(out)
}

/// Prints `value`, with all that a terminal obeys as `\u009b`: JSON itself allows more than that in strings, and has none
/// of it elsewhere.
pub fn print(mut out: impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(Escaping(&mut out), value)?;
    writeln!(out)
}

/// For serde_json, which writes no parts of characters.
struct Escaping<W>(W);

impl<W: Write> Write for Escaping<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = str::from_utf8(bytes).map_err(io::Error::other)?;
        let obeyed = |char: char| is_obeyed(char) && char != '\n';
        for part in text.split_inclusive(obeyed) {
            let last = part.chars().next_back().filter(|&char| obeyed(char));
            let plain = last.and_then(|char| part.strip_suffix(char));
            self.0.write_all(plain.unwrap_or(part).as_bytes())?;
            if let Some(char) = last {
                write!(self.0, "\\u{:04x}", u32::from(char))?;
            }
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_escaped() {
        let names = ["a\u{9b}2J\u{7f}b", "\u{202e}\n\u{1b}", "h\u{e9}llo"];
        let mut out = Vec::new();
        print(&mut out, &names).unwrap();
        let text = String::from_utf8(out).unwrap();
        let shown = r#"[
  "a\u009b2J\u007fb",
  "\u202e\n\u001b",
  "héllo"
]
"#;
        assert_eq!(text, shown);
        let back: Vec<String> = serde_json::from_str(&text).unwrap();
        assert_eq!(back, names);
    }
}
