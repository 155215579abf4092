// SPDX-License-Identifier: MIT OR Apache-2.0
//! Paths in JSON, which has text alone: what is not UTF-8 becomes U+FFFD there.

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

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
