// SPDX-License-Identifier: MIT OR Apache-2.0
//! The figures of `make bench` as a plot.

use std::fmt::Write;

use crate::bench::{find, Row};
use crate::report::{c_series, thousands, PEERS, SUBJECT};

/// Horizontal bars: some operations, for the subject and its peers.
pub fn plot(rows: &[Row]) -> String {
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
