// SPDX-License-Identifier: MIT OR Apache-2.0
//! Adding to the log of a mounted famfs.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use anyhow::Context;
use famfs_fuse::Region;
use famfs_media::{Body, LogHeader, Replay, Role};
use rustix::fs::{flock, FlockOperation};
use uuid::Uuid;

use crate::exit::{fail, Exit};
use crate::mounted::{map_open, Mounted};
use crate::{log, system};

/// The right to append: the log, locked against the other processes of this host, and all it says.
pub struct Writer {
    /// The file system.
    pub mounted: Mounted,
    /// What the log said when it was locked, and the space taken since.
    pub replay: Replay,
    header: LogHeader,
    region: Region,
    /// Holds the lock.
    _log: File,
}

impl Writer {
    /// Lock the log. Fails on a host that is not the master.
    pub fn new(mounted: Mounted) -> anyhow::Result<Self> {
        check_master(&mounted, system::uuid())?;
        let path = mounted.root.join(".meta/.log");
        let file = open_log(&path)?;
        flock(&file, FlockOperation::LockExclusive)
            .map_err(io::Error::from)
            .with_context(|| format!("locking {}", path.display()))?;
        let region = map_open(&file, &path, mounted.superblock.log_len, true)?;
        let header = log::header(&region, &mounted.superblock)?;
        let mut replay = Replay::new(&mounted.superblock, mounted.device_size()?);
        log::catch_up(&region, &header, &mut replay)?;
        let header = log::settle(&region, &header, &mut replay)?;
        Ok(Self {
            mounted,
            replay,
            header,
            region,
            _log: file,
        })
    }

    /// A writer on `log`, a file with the log of `superblock`, for tests.
    #[cfg(test)]
    pub fn on_file(log: File, superblock: famfs_media::Superblock, device_size: u64) -> Self {
        let region = map_open(&log, Path::new("log"), superblock.log_len, true).unwrap();
        let header = log::header(&region, &superblock).unwrap();
        let mut replay = Replay::new(&superblock, device_size);
        log::catch_up(&region, &header, &mut replay).unwrap();
        let header = log::settle(&region, &header, &mut replay).unwrap();
        let mounted = Mounted {
            root: "/nowhere".into(),
            device: "/dev/dax0.0".into(),
            superblock,
        };
        Self {
            mounted,
            replay,
            header,
            region,
            _log: log,
        }
    }

    /// Append `bodies`, unlock, and return when the server knows them.
    pub fn publish(self, bodies: Vec<Body>) -> anyhow::Result<Mounted> {
        if bodies.is_empty() {
            return Ok(self.mounted);
        }
        let after = log::append(&self.region, &self.header, bodies)?;
        tracing::info!("the log has {} entries now", after.next_index);
        self.mounted.logplay(after.next_index)?;
        Ok(self.mounted)
    }
}

fn check_master(mounted: &Mounted, local: Option<Uuid>) -> anyhow::Result<()> {
    if mounted.superblock.role(local) == Role::Master {
        return Ok(());
    }
    let (root, owner) = (mounted.root.display(), mounted.superblock.system_uuid);
    let text = format!(
        "{root} belongs to the host with system uuid {owner}; only that host can add to it"
    );
    Err(fail(Exit::Permission, text))
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    if matches!(&opened, Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem) {
        let text = "the mount is read-only: to add files, mount it without --ro and `-o ro`";
        return Err(fail(Exit::Permission, text));
    }
    opened.with_context(|| format!("opening {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use famfs_media::Superblock;

    #[test]
    fn only_the_master_writes() {
        let dax = famfs_media::PrimaryDax {
            size: 0,
            uuid: Uuid::nil(),
            name: vec![],
        };
        let superblock =
            Superblock::new(8 << 20, Uuid::nil(), Uuid::nil(), Uuid::from_u128(5), dax);
        let mounted = Mounted {
            root: "/mnt".into(),
            device: "/dev/dax0.0".into(),
            superblock,
        };
        check_master(&mounted, Some(Uuid::from_u128(5))).unwrap();
        for local in [None, Some(Uuid::from_u128(6))] {
            let error = check_master(&mounted, local).unwrap_err();
            assert_eq!(crate::exit::code(&error), Exit::Permission);
            assert!(
                error
                    .to_string()
                    .contains("system uuid 00000000-0000-0000-0000-000000000005"),
                "{error}"
            );
        }
    }
}
