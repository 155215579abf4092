// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads a guest's channel: KTAP, and the comments `# step:`, `# say:`, `# why:`, `# qmp:`, `# tell:`,
//! `# appends:`, `# kill the other` and `# done` of the guest's init.

/// What one line of the channel means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// How many results follow at the top level.
    Plan(usize),
    Result(TestResult),
    /// The nested results that follow are those of this suite.
    Suite(String),
    Step(String),
    Say(String),
    Why(String),
    /// For the other guest, where there are two.
    Tell(String),
    /// The other guest is to be killed.
    KillPeer,
    /// This guest is about to add so many entries to the log at once, and waits for a word before.
    Appends(u64),
    /// A command for QEMU, which the guest waits for.
    Qmp(String),
    /// A figure: subject, operation, number.
    Row(String, String, u64),
    /// Address of the function that reads the clock.
    Clock(u64),
    /// Address and name of a function of the kernel.
    Symbol(u64, String),
    /// The row before was measured this often while QEMU logged what was executed.
    Traced(usize),
    Done,
    /// Versions, blank lines, other comments.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed,
    Skipped,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestResult {
    /// 0 for a result of the guest's own plan, more for one of a nested suite.
    pub depth: usize,
    pub name: String,
    pub outcome: Outcome,
    /// What stands behind `# SKIP`.
    pub reason: String,
}

pub fn parse(line: &str) -> Event {
    let text = line.trim_end();
    let body = text.trim_start_matches(' ');
    let depth = (text.len() - body.len()) / 4;
    if let Some(comment) = body.strip_prefix("# ") {
        return parse_comment(comment);
    }
    if let Some(result) = parse_result(body, depth) {
        return Event::Result(result);
    }
    match body
        .strip_prefix("1..")
        .and_then(|count| count.parse().ok())
    {
        Some(count) if depth == 0 => Event::Plan(count),
        _ => Event::Other,
    }
}

fn parse_comment(comment: &str) -> Event {
    let text = |rest: &str| rest.to_owned();
    if comment == "done" {
        Event::Done
    } else if let Some(rest) = comment.strip_prefix("step: ") {
        Event::Step(text(rest))
    } else if let Some(rest) = comment.strip_prefix("say: ") {
        Event::Say(text(rest))
    } else if let Some(rest) = comment.strip_prefix("why: ") {
        Event::Why(text(rest))
    } else if let Some(rest) = comment.strip_prefix("tell: ") {
        Event::Tell(text(rest))
    } else if comment == "kill the other" {
        Event::KillPeer
    } else if let Some(count) = comment
        .strip_prefix("appends: ")
        .and_then(|n| n.parse().ok())
    {
        Event::Appends(count)
    } else if let Some(rest) = comment.strip_prefix("qmp: ") {
        Event::Qmp(text(rest))
    } else if let Some(row) = comment.strip_prefix("row: ").and_then(parse_row) {
        row
    } else if let Some(address) = comment.strip_prefix("clock: ").and_then(parse_hex) {
        Event::Clock(address)
    } else if let Some(symbol) = comment.strip_prefix("symbol: ").and_then(parse_symbol) {
        Event::Symbol(symbol.0, symbol.1)
    } else if let Some(count) = comment.strip_prefix("traced: ") {
        count.parse().map_or(Event::Other, Event::Traced)
    } else if let Some(rest) = comment.strip_prefix("Subtest: ") {
        Event::Suite(text(rest))
    } else {
        Event::Other
    }
}

fn parse_row(text: &str) -> Option<Event> {
    let mut fields = text.split('\t');
    let (subject, operation) = (fields.next()?, fields.next()?);
    let number = fields.next()?.parse().ok()?;
    Some(Event::Row(subject.to_owned(), operation.to_owned(), number))
}

fn parse_hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

/// A function's address and name, from a line of System.map or /proc/kallsyms; None for data.
pub fn parse_symbol(line: &str) -> Option<(u64, String)> {
    let mut words = line.split_ascii_whitespace();
    let address = parse_hex(words.next()?)?;
    let is_code = matches!(words.next()?, "t" | "T" | "w" | "W");
    is_code.then_some((address, words.next()?.to_owned()))
}

fn parse_result(body: &str, depth: usize) -> Option<TestResult> {
    let (passed, rest) = match body.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, body.strip_prefix("ok ")?),
    };
    let (number, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    number.parse::<usize>().ok()?;
    let (name, directive) = rest.split_once('#').unwrap_or((rest, ""));
    let skip = directive.trim_start().strip_prefix("SKIP");
    Some(TestResult {
        depth,
        name: name.trim().trim_start_matches("- ").to_owned(),
        outcome: match (skip, passed) {
            (Some(_), _) => Outcome::Skipped,
            (None, true) => Outcome::Passed,
            (None, false) => Outcome::Failed,
        },
        reason: skip.unwrap_or("").trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(depth: usize, name: &str, outcome: Outcome, reason: &str) -> Event {
        Event::Result(TestResult {
            depth,
            name: name.into(),
            outcome,
            reason: reason.into(),
        })
    }

    #[test]
    fn lines_mean_what_ktap_says() {
        let table = [
            ("KTAP version 1", Event::Other),
            ("1..7", Event::Plan(7)),
            ("    1..3", Event::Other),
            (
                "ok 1 contents.read",
                result(0, "contents.read", Outcome::Passed, ""),
            ),
            (
                "ok 2 - contents.read",
                result(0, "contents.read", Outcome::Passed, ""),
            ),
            (
                "not ok 12 faults.sigbus\r",
                result(0, "faults.sigbus", Outcome::Failed, ""),
            ),
            (
                "        not ok 3 parse_short",
                result(2, "parse_short", Outcome::Failed, ""),
            ),
            (
                "ok 4 stock.insmod # SKIP no kernel",
                result(0, "stock.insmod", Outcome::Skipped, "no kernel"),
            ),
            ("not ok 5 x # SKIP", result(0, "x", Outcome::Skipped, "")),
            ("ok computer", Event::Other),
            ("# step: boot", Event::Step("boot".into())),
            ("# why: EIO", Event::Why("EIO".into())),
            ("# say: hello", Event::Say("hello".into())),
            ("# done", Event::Done),
            (
                "# row: famfs, 1 extent\tpread 64 B\t1320",
                Event::Row("famfs, 1 extent".into(), "pread 64 B".into(), 1320),
            ),
            ("# row: famfs\tpread", Event::Other),
            ("# clock: 401f00", Event::Clock(0x401f00)),
            (
                "# symbol: ffffffffc0000010 t begin",
                Event::Symbol(0xffff_ffff_c000_0010, "begin".into()),
            ),
            ("# symbol: ffffffffc0000010 d data", Event::Other),
            ("# traced: 31", Event::Traced(31)),
            ("    # Subtest: x", Event::Suite("x".into())),
            ("# x: pass:1 fail:0", Event::Other),
            ("", Event::Other),
        ];
        for (line, event) in table {
            assert_eq!(parse(line), event, "{line:?}");
        }
    }
}
