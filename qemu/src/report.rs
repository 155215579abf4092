// SPDX-License-Identifier: MIT OR Apache-2.0
//! The figures of `make bench` as tables, as JSON and as a plot.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use crate::bench::{find, Row};

/// What stands in docs/performance.md between these lines is made here.
const BEGIN: &str = "<!-- figures: written by make bench -->\n";
const END: &str = "<!-- end of the figures -->\n";

/// What the C series (V9/V10) cost on Linux 7.2.13, measured in the same way on a kernel of the same configuration.
const C_SERIES: [(&str, &[(&str, u64)]); 3] = [
    (
        "C series, 1 extent",
        &[
            ("2 MiB fault, cold read", 7782),
            ("2 MiB fault, warm read", 4399),
            ("2 MiB fault, cold write", 7960),
            ("2 MiB fault, warm write", 4577),
            ("2 MiB fault, upgrade", 4297),
            ("4 KiB fault, cold read", 4452),
            ("4 KiB fault, warm read", 4373),
            ("4 KiB fault, cold write", 3965),
            ("4 KiB fault, warm write", 3696),
            ("pread 64 B", 1372),
            ("pread 4 KiB", 5404),
            ("pwrite 64 B", 1367),
            ("pwrite 4 KiB", 2690),
            ("open, first of the mount", 78383),
            ("open, first of the file", 42138),
            ("open and close, cached", 19539),
        ],
    ),
    (
        "C series, 32 extents",
        &[
            ("2 MiB fault, cold read", 7917),
            ("2 MiB fault, warm read", 4543),
            ("2 MiB fault, cold write", 8104),
            ("2 MiB fault, warm write", 4721),
            ("2 MiB fault, upgrade", 4454),
            ("pread 64 B", 1516),
            ("pread 4 KiB", 5548),
            ("pwrite 64 B", 1511),
            ("pwrite 4 KiB", 2834),
        ],
    ),
    (
        "C series, 4 strips",
        &[
            ("2 MiB fault, cold read", 7828),
            ("2 MiB fault, warm read", 4445),
            ("2 MiB fault, cold write", 8006),
            ("2 MiB fault, warm write", 4623),
            ("2 MiB fault, upgrade", 4343),
            ("4 KiB fault, cold read", 4498),
            ("4 KiB fault, warm read", 4419),
            ("4 KiB fault, cold write", 4011),
            ("4 KiB fault, warm write", 3742),
            ("pread 64 B", 1418),
            ("pread 4 KiB", 5450),
            ("pwrite 64 B", 1413),
            ("pwrite 4 KiB", 2736),
        ],
    ),
];

/// iomap_begin of the C series, by what the rows here call it.
const C_BEGIN: [(&str, u64); 2] = [
    ("one extent", 85),
    ("interleaved, 4 strips, daxdevs: 1", 131),
];

/// Whom the first subject is compared with.
const SUBJECT: &str = "famfs, 1 extent";
const PEERS: [&str; 4] = [
    "device-dax",
    "ext4 -o dax",
    "xfs -o dax",
    "C series, 1 extent",
];

/// Title, and how the names of its operations begin.
const GROUPS: [(&str, &[&str]); 5] = [
    ("Faults at a stride of 2 MiB", &["2 MiB fault"]),
    ("Faults at a stride of 4 KiB", &["4 KiB"]),
    ("Reads and writes", &["pread", "pwrite"]),
    ("Opens", &["open", "stat"]),
    ("Whole mappings", &["mmap", "MADV"]),
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
    text
}

fn c_series() -> impl Iterator<Item = Row> {
    C_SERIES.iter().flat_map(|(subject, figures)| {
        figures.iter().map(|(operation, instructions)| Row {
            subject: (*subject).to_owned(),
            operation: (*operation).to_owned(),
            instructions: *instructions,
        })
    })
}

fn begin_table(text: &mut String, rows: &[Row]) {
    text.push_str(
        "### iomap_begin alone\n\n| map | instructions | C series |\n| --- | ---: | ---: |\n",
    );
    for row in rows.iter().filter(|row| row.operation == "iomap_begin") {
        let before = C_BEGIN.iter().find(|(subject, _)| *subject == row.subject);
        let before = before.map_or("-".to_owned(), |(_, figure)| thousands(*figure));
        let figure = thousands(row.instructions);
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
            let figure = figure.map_or("-".to_owned(), |row| thousands(row.instructions));
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
            peer.map(|figure| row.instructions as f64 / figure as f64)
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

fn thousands(number: u64) -> String {
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

/// Writes performance.json and performance.svg to the folder, and the tables into performance.md there.
pub fn write(folder: &Path, commit: &str, rows: &[Row], tables: &str) -> Result<()> {
    let figures: Vec<_> = rows
        .iter()
        .map(|row| json!({"subject": row.subject, "operation": row.operation, "instructions": row.instructions}))
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
    let text = format!("{before}{BEGIN}\nMeasured commit: {commit}\n\n{tables}\n{END}{after}");
    put(folder, "performance.md", &text)
}

fn put(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Horizontal bars: some operations, for the subject and its peers.
fn plot(rows: &[Row]) -> String {
    const OPERATIONS: [&str; 6] = [
        "2 MiB fault, cold read",
        "2 MiB fault, warm read",
        "4 KiB fault, warm read",
        "pread 64 B",
        "pwrite 4 KiB",
        "open and close, cached",
    ];
    const COLORS: [&str; 5] = ["#b7410e", "#4878a8", "#6a9f58", "#967bb6", "#888888"];
    const BAR: usize = 14;

    let all: Vec<Row> = rows.iter().cloned().chain(c_series()).collect();
    let subjects: Vec<&str> = [SUBJECT].into_iter().chain(PEERS).collect();
    let shown = |operation: &&str| {
        subjects
            .iter()
            .filter_map(|subject| find(&all, subject, operation))
            .max()
    };
    let scale = OPERATIONS.iter().filter_map(shown).max().unwrap_or(1) as f64 / 560.0;
    let (mut body, mut y) = (String::new(), 30);
    for operation in OPERATIONS {
        let _ = writeln!(
            body,
            "<text x=\"10\" y=\"{y}\" font-weight=\"bold\">{operation}</text>"
        );
        y += 6;
        for (subject, color) in subjects.iter().zip(COLORS) {
            let Some(figure) = find(&all, subject, operation) else {
                continue;
            };
            let width = figure as f64 / scale;
            let (middle, end) = (y + BAR - 3, width + 156.0);
            let _ = writeln!(
                body,
                "<text x=\"140\" y=\"{middle}\" text-anchor=\"end\">{subject}</text>\
                 <rect x=\"150\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\" fill=\"{color}\"/>\
                 <text x=\"{end:.1}\" y=\"{middle}\">{}</text>",
                BAR - 2,
                thousands(figure)
            );
            y += BAR;
        }
        y += 24;
    }
    format!(
        "<!-- SPDX-License-Identifier: MIT OR Apache-2.0 -->\n\
         <svg xmlns=\"http://www.w3.org/2000/svg\" width=\"800\" height=\"{y}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"14\">Instructions of one operation, user to user</text>\n{body}</svg>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(subject: &str, operation: &str, instructions: u64) -> Row {
        Row {
            subject: subject.into(),
            operation: operation.into(),
            instructions,
        }
    }

    #[test]
    fn tables_hold_every_figure_and_the_ratios() {
        let rows = [
            row("one extent", "iomap_begin", 48),
            row(SUBJECT, "pread 64 B", 1029),
            row("device-dax", "mmap and munmap of 192 MiB", 1234567),
        ];
        let text = tables(&rows);
        assert!(text.contains("| one extent | 48 | 85 |"));
        assert!(text.contains("| famfs, 1 extent | 1,029 | - |"));
        assert!(text.contains("| device-dax | 1,234,567 |"));
        assert!(text.contains("| pread 64 B | - | - | - | 0.75 |"));
    }
}
