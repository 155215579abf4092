// SPDX-License-Identifier: MIT OR Apache-2.0
//! The figures of `make bench` as tables and as JSON.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use crate::bench::{find, Row};
use crate::budget;
use crate::c_series::{C_BEGIN, C_SERIES};
use crate::plot::plot;

/// What stands in docs/performance.md between these lines is made here.
const BEGIN: &str = "<!-- figures: written by make bench -->\n";
const END: &str = "<!-- end of the figures -->\n";

/// Whom the first subject is compared with.
pub const SUBJECT: &str = "famfs, 1 extent";
pub const PEERS: [&str; 4] = [
    "device-dax",
    "ext4 -o dax",
    "xfs -o dax",
    "C series, 1 extent",
];

/// Title, and how the names of its operations begin.
const GROUPS: [(&str, &[&str]); 6] = [
    ("Faults at a stride of 2 MiB", &["2 MiB fault"]),
    ("Faults at a stride of 4 KiB", &["4 KiB"]),
    ("Reads and writes", &["pread", "pwrite"]),
    ("Opens, attributes, listings", &["open", "stat", "getdents"]),
    ("Whole mappings", &["mmap", "MADV"]),
    ("Requests and memory", &["FUSE", "bytes"]),
];

/// All figures, and the ratios to the peers, in Markdown.
pub fn tables(rows: &[Row]) -> String {
    let mut text = String::new();
    begin_table(&mut text, rows);
    let all: Vec<Row> = rows.iter().cloned().chain(c_series()).collect();
    for (title, prefixes) in GROUPS {
        let group: Vec<&Row> = all
            .iter()
            .filter(|row| {
                prefixes
                    .iter()
                    .any(|prefix| row.operation.starts_with(prefix))
            })
            .collect();
        group_table(&mut text, title, &group);
    }
    ratio_table(&mut text, &all);
    budget::table(&mut text, &all);
    text
}

pub fn c_series() -> impl Iterator<Item = Row> {
    C_SERIES.iter().flat_map(|(subject, figures)| {
        figures
            .iter()
            .map(|(operation, figure)| Row::new(subject, operation, *figure))
    })
}

fn begin_table(text: &mut String, rows: &[Row]) {
    text.push_str(
        "### iomap_begin alone\n\n| map | instructions | C series |\n| --- | ---: | ---: |\n",
    );
    for row in rows.iter().filter(|row| row.operation == "iomap_begin") {
        let before = C_BEGIN.iter().find(|(subject, _)| *subject == row.subject);
        let before = before.map_or("-".to_owned(), |(_, figure)| thousands(*figure));
        let figure = thousands(row.figure);
        let _ = writeln!(text, "| {} | {figure} | {before} |", row.subject);
    }
}

/// A line for each subject, a column for each operation; both in the order of their first appearance.
fn group_table(text: &mut String, title: &str, rows: &[&Row]) {
    let (mut subjects, mut operations) = (Vec::new(), Vec::new());
    for row in rows {
        if !subjects.contains(&&row.subject) {
            subjects.push(&row.subject);
        }
        if !operations.contains(&&row.operation) {
            operations.push(&row.operation);
        }
    }
    let _ = write!(text, "\n### {title}\n\n| |");
    for operation in &operations {
        let _ = write!(text, " {operation} |");
    }
    let _ = writeln!(text, "\n| --- |{}", " ---: |".repeat(operations.len()));
    for subject in subjects {
        let _ = write!(text, "| {subject} |");
        for operation in &operations {
            let figure = rows
                .iter()
                .find(|row| row.subject == *subject && row.operation == **operation);
            let figure = figure.map_or("-".to_owned(), |row| thousands(row.figure));
            let _ = write!(text, " {figure} |");
        }
        text.push('\n');
    }
}

fn ratio_table(text: &mut String, all: &[Row]) {
    let _ = write!(
        text,
        "\n### {SUBJECT}: cost as a multiple of that of others\n\n| |"
    );
    for peer in PEERS {
        let _ = write!(text, " {peer} |");
    }
    let _ = writeln!(text, "\n| --- |{}", " ---: |".repeat(PEERS.len()));
    for row in all.iter().filter(|row| row.subject == SUBJECT) {
        let ratios = PEERS.map(|peer| {
            let peer = find(all, peer, &row.operation).filter(|figure| *figure > 0);
            peer.map(|figure| row.figure as f64 / figure as f64)
        });
        if ratios.iter().all(Option::is_none) {
            continue;
        }
        let _ = write!(text, "| {} |", row.operation);
        for ratio in ratios {
            let ratio = ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
            let _ = write!(text, " {ratio} |");
        }
        text.push('\n');
    }
}

pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Writes performance.json and performance.svg to the folder, and the tables and `profiles` into performance.md there.
pub fn write(
    folder: &Path,
    commit: &str,
    rows: &[Row],
    tables: &str,
    profiles: &str,
) -> Result<()> {
    let figures: Vec<_> = rows
        .iter()
        .map(
            |row| json!({"subject": row.subject, "operation": row.operation, "figure": row.figure}),
        )
        .collect();
    let all = json!({"commit": commit, "figures": figures});
    put(folder, "performance.json", &format!("{all:#}\n"))?;
    put(folder, "performance.svg", &plot(rows))?;
    let path = folder.join("performance.md");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let (before, rest) = text
        .split_once(BEGIN)
        .with_context(|| format!("{}: no line {BEGIN:?}", path.display()))?;
    let (_, after) = rest
        .split_once(END)
        .with_context(|| format!("{}: no line {END:?}", path.display()))?;
    let text = format!("{before}{BEGIN}\nMeasured commit: {commit}\n\n{tables}\n### Where the instructions are\n\n{profiles}\n{END}{after}");
    put(folder, "performance.md", &text)
}

fn put(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_hold_every_figure_and_the_ratios() {
        let rows = [
            Row::new("one extent", "iomap_begin", 48),
            Row::new(SUBJECT, "pread 64 B", 1029),
            Row::new("device-dax", "mmap and munmap of 1 GiB", 1234567),
        ];
        let text = tables(&rows);
        assert!(text.contains("| one extent | 48 | 85 |"));
        assert!(text.contains("| famfs, 1 extent | 1,029 | - |"));
        assert!(text.contains("| device-dax | 1,234,567 |"));
        assert!(text.contains("| pread 64 B | - | - | - | 0.75 |"));
    }
}
