// SPDX-License-Identifier: MIT OR Apache-2.0
//! The uuid of this host, which decides who is master (docs/abi.md, section 4.1).

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::Context;
use uuid::Uuid;

const FILE: &str = "/opt/famfs/system_uuid";

/// The uuid of this host; `None` when it has none that can be read, which makes it a client.
pub fn uuid() -> Option<Uuid> {
    read(Path::new(FILE)).ok()
}

/// The uuid of this host, made up if it has none yet.
pub fn uuid_or_new() -> anyhow::Result<Uuid> {
    read_or_new(Path::new(FILE))
}

fn read(file: &Path) -> io::Result<Uuid> {
    let text = fs::read_to_string(file)?;
    let text = text.trim_end_matches(['\0', '\n']);
    Uuid::try_parse(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn read_or_new(file: &Path) -> anyhow::Result<Uuid> {
    match read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let uuid = Uuid::new_v4();
            write(file, uuid).with_context(|| format!("creating {}", file.display()))?;
            Ok(uuid)
        }
        other => {
            other.with_context(|| format!("{} does not hold the uuid of this host", file.display()))
        }
    }
}

/// As upstream's tools write it: text and a NUL.
fn write(file: &Path, uuid: Uuid) -> io::Result<()> {
    if let Some(dir) = file.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(dir)?;
    }
    let mut out = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(file)?;
    out.write_all(format!("{uuid}\0").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("famfs/system_uuid");
        assert!(read(&file).is_err());
        let uuid = read_or_new(&file).unwrap();
        assert_eq!(read_or_new(&file).unwrap(), uuid);
        let bytes = fs::read(&file).unwrap();
        assert_eq!((bytes.len(), bytes[36]), (37, 0));
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o7777,
            0o444
        );
    }

    #[test]
    fn nonsense_is_neither_read_nor_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("system_uuid");
        fs::write(&file, "none").unwrap();
        assert!(read_or_new(&file).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "none");
    }
}
