// SPDX-License-Identifier: MIT OR Apache-2.0
//! What comparing files came to, for --json of verify and chkread.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::json;

/// A file that was compared, the last one of each thread perhaps with a difference.
#[derive(Serialize)]
struct Row {
    #[serde(serialize_with = "json::path")]
    file: PathBuf,
    size: u64,
    /// Offset of the first byte that is not what it should be.
    differs_at: Option<usize>,
}

/// Files that were compared, by several threads.
#[derive(Default)]
pub struct Compared(Mutex<Vec<Row>>);

impl Compared {
    /// Notes a file.
    pub fn note(&self, file: &Path, size: usize, differs_at: Option<usize>) {
        let mut rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rows.push(Row {
            file: file.into(),
            size: size as u64,
            differs_at,
        });
    }

    /// Prints them by name.
    pub fn print(self) -> anyhow::Result<()> {
        let mut rows = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        rows.sort_by(|a, b| a.file.cmp(&b.file));
        Ok(json::print(io::stdout().lock(), &rows)?)
    }
}
