// SPDX-License-Identifier: MIT OR Apache-2.0
//! Making files and directories: everything is planned in memory, then the log gets all entries at once, or none.

use std::collections::HashMap;
use std::fs;

use anyhow::Context;
use famfs_media::{
    check_new, path_bytes, Body, FileEntry, Interleave, Kind, MkdirEntry, Node, RawMap,
};
use uuid::Uuid;

use crate::cli::{Ownership, Striping};
use crate::exit::{fail, Exit};
use crate::mounted::Mounted;
use crate::writer::Writer;

/// Owner and mode of one new file or directory.
#[derive(Clone, Copy)]
pub struct Attributes {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Attributes {
    /// What the options say, `mode` and the caller's ids where they say nothing.
    pub fn new(options: &Ownership, mode: u32) -> Self {
        Self {
            mode: options.mode.unwrap_or(mode),
            uid: options
                .uid
                .unwrap_or_else(|| rustix::process::geteuid().as_raw()),
            gid: options
                .gid
                .unwrap_or_else(|| rustix::process::getegid().as_raw()),
        }
    }
}

/// `mode` without the bits of the caller's umask.
pub fn masked(mode: u32) -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    let umask = umask
        .and_then(|text| u32::from_str_radix(text.trim(), 8).ok())
        .unwrap_or(0o022);
    mode & !umask
}

/// What planning a file came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Planned {
    /// It will be made.
    New,
    /// It is there already, with the same size.
    Same,
}

/// New entries for a locked log.
pub struct Plan {
    writer: Writer,
    interleave: Option<Interleave>,
    bodies: Vec<Body>,
    /// Paths of `bodies`, and of files that are there; whether they are directories.
    paths: HashMap<Vec<u8>, bool>,
}

impl Plan {
    /// Lock the log of `mounted`.
    pub fn new(mounted: Mounted, striping: Option<&Striping>) -> anyhow::Result<Self> {
        Ok(Self::on(Writer::new(mounted)?, striping))
    }

    fn on(writer: Writer, striping: Option<&Striping>) -> Self {
        let daxdevs = writer.replay.space.devindexes().count() as u64;
        let interleave = striping.and_then(|striping| striping.interleave(daxdevs));
        Self {
            writer,
            interleave,
            bodies: Vec::new(),
            paths: HashMap::new(),
        }
    }

    /// The file system.
    pub fn mounted(&self) -> &Mounted {
        &self.writer.mounted
    }

    /// What is at `path`, new entries not counted.
    pub fn existing(&self, path: &[u8]) -> Option<&Node> {
        let tree = &self.writer.replay.tree;
        tree.get(tree.resolve(path)?)
    }

    /// Whether a directory is at `path`, or planned there.
    pub fn is_dir(&self, path: &[u8]) -> bool {
        let existing = self.existing(path).map(|node| &node.kind);
        matches!(existing, Some(Kind::Dir(_))) || self.paths.get(path) == Some(&true)
    }

    /// Plan a directory. Its parent must exist or be planned before it.
    pub fn mkdir(&mut self, path: &[u8], attributes: Attributes) -> anyhow::Result<()> {
        self.claim(path, true)?;
        let Attributes { mode, uid, gid } = attributes;
        self.bodies.push(Body::Mkdir(MkdirEntry {
            uid,
            gid,
            mode,
            path: path_bytes(path),
        }));
        Ok(())
    }

    /// Plan a file of `size` bytes, with space for it.
    pub fn file(
        &mut self,
        path: &[u8],
        size: u64,
        attributes: Attributes,
    ) -> anyhow::Result<Planned> {
        self.claim(path, false)?;
        let show = || String::from_utf8_lossy(path).into_owned();
        match self.existing(path).map(|node| &node.kind) {
            Some(Kind::File { size: old, .. }) if *old == size => return Ok(Planned::Same),
            Some(Kind::File { size: old, .. }) => {
                let text = format!(
                    "{}: exists with {old} bytes; a famfs file can not change its size",
                    show()
                );
                return Err(fail(Exit::Failed, text));
            }
            Some(Kind::Dir(_)) => {
                return Err(fail(Exit::Failed, format!("{}: is a directory", show())))
            }
            None => {}
        }
        let (_, seed) = Uuid::new_v4().as_u64_pair();
        let map = self
            .writer
            .replay
            .space
            .allocate(size, self.interleave.as_ref(), seed)
            .with_context(show)?;
        let Attributes { mode, uid, gid } = attributes;
        self.bodies.push(Body::File(FileEntry {
            size,
            flags: FileEntry::ALL_HOSTS_RW,
            uid,
            gid,
            mode,
            path: path_bytes(path),
            map: RawMap::from(&map),
        }));
        Ok(Planned::New)
    }

    fn claim(&mut self, path: &[u8], is_dir: bool) -> anyhow::Result<()> {
        let show = || format!("{:?}", String::from_utf8_lossy(path));
        check_new(path).map_err(|error| fail(Exit::Usage, format!("path {}: {error}", show())))?;
        let parent = path.iter().rposition(|&byte| byte == b'/');
        let parent = parent.and_then(|end| path.get(..end));
        if parent.is_some_and(|parent| !self.is_dir(parent)) {
            let text = format!("path {}: its parent is not a directory", show());
            return Err(fail(Exit::Failed, text));
        }
        match self.paths.insert(path.to_vec(), is_dir) {
            None => Ok(()),
            Some(_) => Err(fail(
                Exit::Usage,
                format!("path {} would be made twice", show()),
            )),
        }
    }

    /// Write the plan to the log. Afterwards the files can be opened.
    pub fn publish(self) -> anyhow::Result<Mounted> {
        self.writer.publish(self.bodies)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use famfs_media::{AllocError, LogHeader, PathError, PrimaryDax, Superblock, LOG_LEN_MIN};
    use std::os::unix::fs::FileExt;

    const MIB: u64 = 1 << 20;
    pub const ATTRIBUTES: Attributes = Attributes {
        mode: 0o640,
        uid: 7,
        gid: 8,
    };

    fn superblock() -> Superblock {
        let dax = PrimaryDax {
            size: 32 * MIB,
            uuid: Uuid::nil(),
            name: vec![],
        };
        Superblock::new(LOG_LEN_MIN, Uuid::nil(), Uuid::nil(), Uuid::nil(), dax)
    }

    /// A plan for an empty file system on a device of 32 MiB, and its log.
    pub fn plan(striping: Option<&Striping>) -> (Plan, fs::File) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LOG_LEN_MIN).unwrap();
        file.write_all_at(&LogHeader::new(LOG_LEN_MIN).encode(), 0)
            .unwrap();
        let writer = Writer::on_file(file.try_clone().unwrap(), superblock(), 32 * MIB);
        (Plan::on(writer, striping), file)
    }

    pub fn entries(file: &fs::File) -> u64 {
        let mut header = [0; 48];
        file.read_exact_at(&mut header, 0).unwrap();
        LogHeader::parse(&header, LOG_LEN_MIN).unwrap().next_index
    }

    #[test]
    fn a_full_device_changes_nothing() {
        let (mut plan, log) = plan(None);
        assert_eq!(plan.file(b"a", 20 * MIB, ATTRIBUTES).unwrap(), Planned::New);
        let error = plan.file(b"b", 3 * MIB, ATTRIBUTES).unwrap_err();
        assert_eq!(
            error.downcast_ref(),
            Some(&AllocError::NoSpace {
                wanted: 4 * MIB,
                longest: 2 * MIB
            })
        );
        assert_eq!(crate::exit::code(&error), Exit::NoSpace);
        drop(plan);
        assert_eq!(entries(&log), 0);
    }

    #[test]
    fn a_plan_becomes_entries() {
        let (mut plan, log) = plan(None);
        plan.mkdir(b"d", ATTRIBUTES).unwrap();
        plan.file(b"d/f", 5, ATTRIBUTES).unwrap();
        // There is no server that could be told; the log is written before that.
        assert!(plan.publish().is_err());
        assert_eq!(entries(&log), 2);
        let mut plan = Plan::on(Writer::on_file(log, superblock(), 32 * MIB), None);
        let node = plan.existing(b"d/f").unwrap();
        assert_eq!((node.mode, node.uid, node.gid), (0o640, 7, 8));
        assert_eq!(plan.file(b"d/f", 5, ATTRIBUTES).unwrap(), Planned::Same);
        assert!(plan.bodies.is_empty());
    }

    #[test]
    fn what_is_there_keeps_its_size_and_kind() {
        let (mut plan, log) = plan(None);
        plan.mkdir(b"d", ATTRIBUTES).unwrap();
        plan.file(b"f", 5, ATTRIBUTES).unwrap();
        let again = plan.file(b"f", 5, ATTRIBUTES).unwrap_err();
        assert_eq!(again.to_string(), "path \"f\" would be made twice");
        let _ = plan.publish();
        let mut plan = Plan::on(Writer::on_file(log, superblock(), 32 * MIB), None);
        let error = |plan: &mut Plan, path| plan.file(path, 6, ATTRIBUTES).unwrap_err().to_string();
        assert_eq!(
            error(&mut plan, b"f"),
            "f: exists with 5 bytes; a famfs file can not change its size"
        );
        assert_eq!(error(&mut plan, b"d"), "d: is a directory");
        let below = plan.mkdir(b"f/d", ATTRIBUTES).unwrap_err();
        assert_eq!(
            below.to_string(),
            "path \"f/d\": its parent is not a directory"
        );
        assert!(plan.file(b"none/f", 5, ATTRIBUTES).is_err());
        let long = [b'p'; 80];
        let text = plan.mkdir(&long, ATTRIBUTES).unwrap_err().to_string();
        assert!(
            text.ends_with(&format!(": {}", PathError::TooLong(80))),
            "{text}"
        );
    }

    /// The first entries of testdata/vectors/media/log.bin, whose placement follows from their order.
    #[test]
    fn entries_are_those_of_upstream_to_the_byte() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../testdata/vectors/media/log.bin"
        );
        let expected = fs::read(path).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(LOG_LEN_MIN).unwrap();
        let empty = LogHeader::new(LOG_LEN_MIN).encode();
        file.write_all_at(&empty, 0).unwrap();
        let writer = Writer::on_file(file.try_clone().unwrap(), superblock(), 16 << 30);
        let mut plan = Plan::on(writer, None);
        let by = |mode, id| Attributes {
            mode,
            uid: id,
            gid: id,
        };
        plan.mkdir(b"dir1", by(0o755, 0)).unwrap();
        plan.mkdir(b"dir1/sub", by(0o750, 1000)).unwrap();
        let user = by(0o644, 1000);
        plan.file(b"one_extent.bin", 5_000_000, user).unwrap();
        let root = by(0o640, 0);
        plan.file(b"dir1/aligned_4m.bin", 4 << 20, root).unwrap();
        let _ = plan.publish();
        let mut found = vec![0; 48 + 4 * 544];
        file.read_exact_at(&mut found, 0).unwrap();
        // Up to the counters, which say how many entries there are.
        assert_eq!(found[..32], expected[..32]);
        assert_eq!(found[48..], expected[48..48 + 4 * 544]);
    }

    #[test]
    fn striping_reaches_the_map() {
        let striping = Striping {
            nstrips: Some(2),
            nbuckets: None,
            chunk: None,
        };
        let (mut plan, _) = plan(Some(&striping));
        plan.file(b"f", 4 * MIB, ATTRIBUTES).unwrap();
        let Some(Body::File(file)) = plan.bodies.first() else {
            panic!("no file")
        };
        assert!(matches!(
            file.map,
            RawMap::Interleaved {
                nstrips: 2,
                chunk_size: 0x20_0000,
                ..
            }
        ));
    }
}
