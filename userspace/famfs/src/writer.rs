// SPDX-License-Identifier: MIT OR Apache-2.0
//! Adding to the log of a mounted famfs.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;
use famfs_fuse::Region;
use famfs_media::{Body, LogHeader, Replay, Role};
use rustix::fs::{flock, FlockOperation};
use rustix::io::Errno;
use uuid::Uuid;

use crate::exit::{fail, Exit};
use crate::mounted::{map_open, Mounted};
use crate::server::control::{self, Known};
use crate::{log, system};

/// The right to append, which one process of this host has at a time, and all that the log says.
pub struct Writer {
    /// The file system.
    pub mounted: Mounted,
    /// What the log said when it was locked, and the space taken since.
    pub replay: Replay,
    header: LogHeader,
    region: Region,
    _lock: File,
}

impl Writer {
    /// Waits for those who append already. Fails on a host that is not the master.
    pub fn new(mounted: Mounted) -> anyhow::Result<Self> {
        let nothing = || format!("nothing was added to {}", mounted.root.display());
        // Beside the server's socket: all who reach that server wait for each other. First, for what was read or asked
        // before the wait may be no longer so behind it.
        let lock = lock(&control::path_of(&mounted.device, "lock"), &mounted.root)
            .with_context(nothing)?;
        let known = control::known(&mounted.device).with_context(nothing)?;
        let mounted = mounted.again()?;
        check_master(&mounted, system::uuid())?;
        let path = mounted.root.join(".meta/.log");
        let file = open_log(&path)?;
        let region = map_open(&file, &path, mounted.superblock.log_len, true)?;
        let header = log::header(&region, &mounted.superblock)?;
        let mut replay = Replay::new(&mounted.superblock, mounted.device_size()?);
        log::catch_up(&region, &header, &mut replay)?;
        let header = log::settle(&region, &header, &mut replay)?;
        check_unchanged(&mounted, &known, replay.next_index())?;
        Ok(Self {
            mounted,
            replay,
            header,
            region,
            _lock: lock,
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
            number: (0, 0),
            superblock,
        };
        Self {
            mounted,
            replay,
            header,
            region,
            _lock: log,
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

/// Fails unless memory has the file system that the server knows, with `entries` that are no less than it has seen.
fn check_unchanged(mounted: &Mounted, known: &Known, entries: u64) -> anyhow::Result<()> {
    let (root, found) = (mounted.root.display(), mounted.superblock.fs_uuid);
    let what = match known.fs_uuid.filter(|known| *known != found) {
        Some(known) => format!("{root} is famfs {known}, the superblock says {found}"),
        None if entries < known.entries => {
            let known = known.entries;
            format!("the log of {root} has {entries} entries, it had {known}")
        }
        None => return Ok(()),
    };
    let text = format!("{what}: it was changed under this mount; umount and mount again");
    Err(fail(Exit::Corrupt, text))
}

/// Waits for the lock at `path`. It is none on the log, which everybody can open, and so lock for ever.
fn lock(path: &Path, root: &Path) -> anyhow::Result<File> {
    let context = || format!("locking {}", path.display());
    let opened = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path);
    let file = match opened {
        // No server has made the directory.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(control::gone()),
        opened => opened.with_context(context)?,
    };
    let locked = match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => {
            let root = root.display();
            tracing::warn!("another famfs is adding to {root}; waiting until it is done");
            flock(&file, FlockOperation::LockExclusive)
        }
        locked => locked,
    };
    locked.map_err(io::Error::from).with_context(context)?;
    Ok(file)
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
    use std::os::unix::fs::PermissionsExt;
    use std::sync::mpsc::{channel, RecvTimeoutError};
    use std::thread;
    use std::time::Duration;

    #[test]
    fn one_adds_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dax0.0.lock");
        let first = lock(&path, Path::new("/mnt")).unwrap();
        let mode = first.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let (tell, told) = channel();
        let second = thread::spawn(move || {
            let second = lock(&path, Path::new("/mnt"));
            tell.send(second.is_ok()).unwrap();
        });
        let early = told.recv_timeout(Duration::from_millis(200));
        assert_eq!(early, Err(RecvTimeoutError::Timeout));
        drop(first);
        assert_eq!(told.recv_timeout(Duration::from_secs(60)), Ok(true));
        second.join().unwrap();
        let missing = lock(&dir.path().join("no/lock"), Path::new("/mnt")).unwrap_err();
        assert!(
            missing.to_string().starts_with("its server is gone"),
            "{missing}"
        );
        let wrong = lock(dir.path(), Path::new("/mnt")).unwrap_err();
        assert!(wrong.to_string().starts_with("locking /"), "{wrong}");
    }

    /// Of host 5.
    fn mounted() -> Mounted {
        let dax = famfs_media::PrimaryDax {
            size: 0,
            uuid: Uuid::nil(),
            name: vec![],
        };
        let superblock =
            Superblock::new(8 << 20, Uuid::nil(), Uuid::nil(), Uuid::from_u128(5), dax);
        Mounted {
            root: "/mnt".into(),
            device: "/dev/dax0.0".into(),
            number: (0, 0),
            superblock,
        }
    }

    #[test]
    fn a_log_only_grows() {
        let check = |fs_uuid: Option<u128>, entries| {
            let fs_uuid = fs_uuid.map(Uuid::from_u128);
            check_unchanged(&mounted(), &Known { fs_uuid, entries }, 7)
        };
        for entries in [0, 6, 7] {
            check(Some(0), entries).unwrap();
            check(None, entries).unwrap();
        }
        let text = |fs_uuid, entries| {
            let error = check(fs_uuid, entries).unwrap_err();
            assert_eq!(crate::exit::code(&error), Exit::Corrupt);
            error.to_string()
        };
        assert_eq!(
            text(Some(0), 8),
            "the log of /mnt has 7 entries, it had 8: it was changed under this mount; umount and mount again"
        );
        assert_eq!(
            text(Some(1), 7),
            "/mnt is famfs 00000000-0000-0000-0000-000000000001, the superblock says 00000000-0000-0000-0000-000000000000: it was changed under this mount; umount and mount again"
        );
    }

    #[test]
    fn only_the_master_writes() {
        let mounted = mounted();
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
