// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the project allows its operations to cost, and whether they keep to it.

use std::fmt::Write;

use crate::bench::{find, Row};
use crate::report::{thousands, SUBJECT};

/// What a figure may be.
enum Limit {
    /// At most.
    Figure(u64),
    /// At most so many hundredths of this subject's figure.
    Times(u64, &'static str),
    /// Not more than so many hundredths away from this subject's figure.
    Near(u64, &'static str),
}

/// Subject, operation, limit.
const BUDGETS: &[(&str, &str, Limit)] = &[
    ("one extent", "iomap_begin", Limit::Figure(60)),
    ("32 uniform, daxdevs: 1", "iomap_begin", Limit::Figure(60)),
    ("4096 uniform, daxdevs: 1", "iomap_begin", Limit::Figure(60)),
    (
        "262144 uniform, daxdevs: 1",
        "iomap_begin",
        Limit::Figure(60),
    ),
    ("4096 mixed, daxdevs: 1", "iomap_begin", Limit::Figure(150)),
    (
        "interleaved, 4 strips, daxdevs: 1",
        "iomap_begin",
        Limit::Figure(90),
    ),
    (
        "interleaved, 4 strips, daxdevs: 4",
        "iomap_begin",
        Limit::Figure(90),
    ),
    (
        "interleaved, 32 strips, daxdevs: 1",
        "iomap_begin",
        Limit::Figure(90),
    ),
    (
        SUBJECT,
        "2 MiB fault, warm read",
        Limit::Times(115, "device-dax"),
    ),
    (
        SUBJECT,
        "2 MiB fault, cold read",
        Limit::Times(100, "C series, 1 extent"),
    ),
    (
        SUBJECT,
        "4 KiB page in a range, warm read",
        Limit::Figure(1000),
    ),
    (
        "famfs, 262144 uniform",
        "2 MiB fault, cold read",
        Limit::Near(2, "famfs, 1 extent of 512 GiB"),
    ),
    (
        "famfs, 262144 uniform",
        "2 MiB fault, warm read",
        Limit::Near(2, "famfs, 1 extent of 512 GiB"),
    ),
    (SUBJECT, "pread 64 B", Limit::Figure(1320)),
    (SUBJECT, "open and close, cached", Limit::Figure(5855)),
    (
        SUBJECT,
        "open and close, cached: FUSE requests",
        Limit::Figure(0),
    ),
    (SUBJECT, "FUSE requests during all these", Limit::Figure(0)),
    (
        SUBJECT,
        "bytes of the cached map",
        Limit::Figure(bytes_allowed(1)),
    ),
    (
        "famfs, 32 mixed",
        "bytes of the cached map",
        Limit::Figure(bytes_allowed(32)),
    ),
    (
        "famfs, 4096 mixed",
        "bytes of the cached map",
        Limit::Figure(bytes_allowed(4096)),
    ),
    (
        "famfs, 262144 uniform",
        "bytes of the cached map",
        Limit::Figure(bytes_allowed(262_144)),
    ),
    (
        "famfs, 262144 mixed",
        "bytes of the cached map",
        Limit::Figure(bytes_allowed(262_144)),
    ),
];

const fn bytes_allowed(extents: u64) -> u64 {
    64 + 16 * extents
}

/// A line for each budget, in Markdown.
pub fn table(text: &mut String, rows: &[Row]) {
    text.push_str("\n### Budgets\n\n| what | allowed | it is | |\n| --- | ---: | ---: | --- |\n");
    for (subject, operation, limit) in BUDGETS {
        let _ = write!(text, "| {subject}: {operation} | ");
        let Some((allowed, least, most)) = limit.bounds(rows, operation) else {
            let _ = writeln!(text, "- | - | not measured |");
            continue;
        };
        let Some(figure) = find(rows, subject, operation) else {
            let _ = writeln!(text, "{allowed} | - | not measured |");
            continue;
        };
        let verdict = match (least.checked_sub(figure), figure.checked_sub(most)) {
            (Some(by @ 1..), _) | (_, Some(by @ 1..)) => format!("missed by {}", thousands(by)),
            _ => "met".to_owned(),
        };
        let _ = writeln!(text, "{allowed} | {} | {verdict} |", thousands(figure));
    }
}

impl Limit {
    /// In words, and the least and the most that is allowed; `None` if the other subject was not measured.
    fn bounds(&self, rows: &[Row], operation: &str) -> Option<(String, u64, u64)> {
        Some(match self {
            Self::Figure(most) => (thousands(*most), 0, *most),
            Self::Times(hundredths, other) => {
                let most = find(rows, other, operation)? * hundredths / 100;
                let times = *hundredths as f64 / 100.0;
                (format!("{times} x {other} = {}", thousands(most)), 0, most)
            }
            Self::Near(hundredths, other) => {
                let base = find(rows, other, operation)?;
                let by = base * hundredths / 100;
                let allowed = format!("{other}, {} ± {hundredths} %", thousands(base));
                (allowed, base - by, base + by)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_met_missed_or_unknown() {
        let warm = "2 MiB fault, warm read";
        let large = "famfs, 262144 uniform";
        let rows = [
            Row::new("one extent", "iomap_begin", 61),
            Row::new(SUBJECT, "pread 64 B", 1320),
            Row::new(SUBJECT, warm, 2300),
            Row::new("device-dax", warm, 2000),
            Row::new(large, warm, 979),
            Row::new("famfs, 1 extent of 512 GiB", warm, 1000),
        ];
        let mut text = String::new();
        table(&mut text, &rows);
        for line in [
            "| one extent: iomap_begin | 60 | 61 | missed by 1 |",
            "| famfs, 1 extent: pread 64 B | 1,320 | 1,320 | met |",
            "| famfs, 1 extent: 2 MiB fault, warm read | 1.15 x device-dax = 2,300 | 2,300 | met |",
            "| famfs, 262144 uniform: 2 MiB fault, warm read | famfs, 1 extent of 512 GiB, 1,000 ± 2 % | 979 | missed by 1 |",
            "| famfs, 1 extent: open and close, cached | 5,855 | - | not measured |",
            "| famfs, 1 extent: 2 MiB fault, cold read | - | - | not measured |",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
