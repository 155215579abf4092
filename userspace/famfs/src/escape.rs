// SPDX-License-Identifier: MIT OR Apache-2.0
//! Text for people. Names are what another host has put into the log, and a terminal obeys control characters.

use std::fmt::Display;

/// Whether a terminal does something else with `char` than to show it: marks of direction change the order of what is
/// around them, and two separators end a line.
pub fn is_obeyed(char: char) -> bool {
    let direction = matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    char.is_control() || direction || matches!(char, '\u{2028}' | '\u{2029}')
}

/// `text` with the characters that a terminal obeys as Rust writes them, `\n` and `\u{1b}`.
pub fn escaped(text: impl Display) -> String {
    let mut out = String::new();
    for char in text.to_string().chars() {
        match is_obeyed(char) {
            true => out.extend(char.escape_default()),
            false => out.push(char),
        }
    }
    out
}

/// The same for text of several lines.
pub fn escaped_lines(text: impl Display) -> String {
    let text = text.to_string();
    let lines: Vec<_> = text.split('\n').map(escaped).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_escaped() {
        let name = "a\u{1b}]0;b\u{7}\tc\n\r\u{7f}\u{9b}2J\0";
        let shown = r"a\u{1b}]0;b\u{7}\tc\n\r\u{7f}\u{9b}2J\u{0}";
        assert_eq!(escaped(name), shown);
        let order = "\u{61c}\u{200e}\u{200f}\u{202a}\u{202e}\u{2066}\u{2069}\u{2028}\u{2029}";
        let shown = r"\u{61c}\u{200e}\u{200f}\u{202a}\u{202e}\u{2066}\u{2069}\u{2028}\u{2029}";
        assert_eq!(escaped(order), shown);
        let harmless = "h\u{e9}llo w\u{f6}rld \\ \"\u{732b}\"";
        assert_eq!(escaped(harmless), harmless);
        assert_eq!(escaped_lines("a\n\u{1b}\n"), "a\n\\u{1b}\n");
    }
}
