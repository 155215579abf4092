// SPDX-License-Identifier: MIT OR Apache-2.0
//! Replay: from log entries to a namespace, daxdevs and space in use
//! (docs/abi.md, section 2.5, its unchecked cases included).
//!
//! Entries at the end of the log that were not written whole are what a host
//! leaves that dies while it appends: the replay stops before them. With whole
//! entries behind it such an entry is damage, and nothing is applied. An entry
//! that was written whole and says something impossible is left out and becomes
//! a [`Finding`].

use std::ops::Range;

use uuid::Uuid;

use crate::entry::{AddDaxdev, Body, Entry, FileEntry, MkdirEntry};
use crate::error::{EntryError, Finding, LogError, Problem};
use crate::header::LogHeader;
use crate::map::Map;
use crate::path;
use crate::space::Space;
use crate::superblock::Superblock;
use crate::tree::{Kind, Node, Tree};
use crate::{ENTRY_BYTES, HEADER_BYTES, MAX_DEVINDEX};

/// A daxdev of the file system beside device 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Daxdev {
    /// Index that extents use.
    pub index: u32,
    /// Bytes.
    pub size: u64,
    /// `dev_uuid` of its superblock.
    pub uuid: Uuid,
}

/// Sums over a replayed log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Files in the namespace.
    pub files: u64,
    /// Directories in the namespace, the root not counted.
    pub dirs: u64,
    /// Bytes of all files.
    pub file_bytes: u64,
    /// Bytes of memory that the files take.
    pub allocated_bytes: u64,
    /// Units named more than once.
    pub collisions: u64,
}

/// A log as far as it was replayed.
#[derive(Clone, Debug)]
pub struct Replay {
    /// The namespace.
    pub tree: Tree,
    /// Space in use.
    pub space: Space,
    /// Daxdevs beside device 0, in the order of the log.
    pub daxdevs: Vec<Daxdev>,
    /// What is wrong with single entries, in the order of the log.
    pub findings: Vec<Finding>,
    /// Sums.
    pub totals: Totals,
    next: u64,
}

impl Replay {
    /// State before the first entry. `device_size` is that of device 0 itself;
    /// the size in the superblock is not covered by its CRC.
    pub fn new(sb: &Superblock, device_size: u64) -> Self {
        Self {
            tree: Tree::default(),
            space: Space::new(device_size, sb.data_start()),
            daxdevs: Vec::new(),
            findings: Vec::new(),
            totals: Totals::default(),
            next: 0,
        }
    }

    /// Replay of a whole log, given its first bytes with all its entries.
    ///
    /// # Errors
    /// The header is invalid or an entry is not whole.
    pub fn of_log(sb: &Superblock, device_size: u64, log: &[u8]) -> Result<Self, LogError> {
        let header = LogHeader::parse(log, sb.log_len)?;
        let mut replay = Self::new(sb, device_size);
        replay.advance(&header, log.get(HEADER_BYTES..).unwrap_or_default())?;
        Ok(replay)
    }

    /// Index of the first entry that was not replayed yet.
    pub fn next_index(&self) -> u64 {
        self.next
    }

    /// Replay entries `next_index()..header.next_index`, whose bytes `entries`
    /// begins with. Returns the indices of those that were applied: fewer than
    /// the header announces where the last ones are not whole.
    ///
    /// # Errors
    /// The first entry that is not whole, though one behind it is, or that
    /// `entries` does not have. Nothing was applied then. In this case, and
    /// when fewer were applied, the caller may invalidate the cache lines of
    /// the first that was not, and try again.
    pub fn advance(&mut self, header: &LogHeader, entries: &[u8]) -> Result<Range<u64>, LogError> {
        let mut whole = Vec::new();
        let mut torn = None;
        for (index, buf) in self.numbered(header, entries)? {
            match (Entry::parse(buf, index), torn) {
                (Ok(entry), None) => whole.push((index, entry)),
                (Err(error), None) => torn = Some(LogError::Entry { index, error }),
                (Ok(_), Some(error)) => return Err(error),
                (Err(_), Some(_)) => {}
            }
            if buf.is_empty() {
                let error = EntryError::Missing;
                return Err(torn.unwrap_or(LogError::Entry { index, error }));
            }
        }
        let first = self.next;
        for (index, entry) in &whole {
            self.apply(*index, entry);
            self.next = index.saturating_add(1);
        }
        Ok(first..self.next)
    }

    /// Like [`Self::advance`], for fsck: an entry that is not whole is left out
    /// and becomes a finding, together with those behind it that are not whole
    /// either; those are, too, that `entries` does not have. So there are at
    /// most two findings for each whole entry, and one, whatever number of
    /// entries the header announces.
    ///
    /// # Errors
    /// The log has fewer entries than before.
    pub fn inspect(&mut self, header: &LogHeader, entries: &[u8]) -> Result<Range<u64>, LogError> {
        for (index, buf) in self.numbered(header, entries)? {
            match Entry::parse(buf, index) {
                Ok(entry) => self.apply(index, &entry),
                Err(error) if buf.is_empty() => {
                    self.find_broken(index, header.next_index.saturating_sub(1), error);
                    break;
                }
                Err(error) => self.find_broken(index, index, error),
            }
        }
        let first = std::mem::replace(&mut self.next, header.next_index);
        Ok(first..header.next_index)
    }

    /// New entries with their indices; a missing one has no bytes.
    fn numbered<'a>(
        &self,
        header: &LogHeader,
        entries: &'a [u8],
    ) -> Result<impl Iterator<Item = (u64, &'a [u8])>, LogError> {
        if header.next_index < self.next {
            return Err(LogError::Shrunk {
                known: self.next,
                found: header.next_index,
            });
        }
        let missing = std::iter::repeat(&[][..]);
        Ok((self.next..header.next_index).zip(entries.chunks_exact(ENTRY_BYTES).chain(missing)))
    }

    fn apply(&mut self, index: u64, entry: &Entry) {
        let (path, result) = match &entry.body {
            Body::File(file) => (Some(&file.path), self.apply_file(index, file)),
            Body::Mkdir(dir) => (Some(&dir.path), self.apply_mkdir(index, dir)),
            Body::AddDaxdev(dev) => (None, self.apply_daxdev(dev)),
            Body::Delete => (None, Err(Problem::Delete)),
            Body::Unknown(code) => (None, Err(Problem::UnknownType(*code))),
        };
        match (result, path) {
            (Err(problem), path) => self.find(index, path.map(|p| &p[..]), problem),
            (Ok(()), Some(path)) if !path::tail_is_zero(path) => {
                self.find(index, Some(path), Problem::PathTail);
            }
            _ => {}
        }
    }

    fn find(&mut self, index: u64, path: Option<&[u8]>, problem: Problem) {
        let path = path.map(|field| {
            let text = path::field_path(field).unwrap_or(field);
            String::from_utf8_lossy(text).into_owned()
        });
        self.findings.push(Finding {
            index,
            last: index,
            path,
            problem,
        });
    }

    /// Entries `index` to `last` are broken.
    fn find_broken(&mut self, index: u64, last: u64, error: EntryError) {
        if let Some(Finding {
            last: before,
            problem: Problem::Broken(_),
            ..
        }) = self.findings.last_mut()
        {
            if before.checked_add(1) == Some(index) {
                *before = last;
                return;
            }
        }
        self.findings.push(Finding {
            index,
            last,
            path: None,
            problem: Problem::Broken(error),
        });
    }

    fn apply_file(&mut self, index: u64, file: &FileEntry) -> Result<(), Problem> {
        let (collisions, overlap) = self.space.take(file.map.extents());
        self.totals.collisions = self.totals.collisions.saturating_add(collisions);
        let map = Map::check(&file.map, file.size)?;
        self.space.check(&map)?;
        overlap?;
        let path = path::field_path(&file.path)?;
        path::check(path)?;
        let allocated = map.allocated();
        let node = Node {
            index: Some(index),
            parent: Tree::ROOT,
            name: [].into(),
            mode: file.mode & 0o7777,
            uid: file.uid,
            gid: file.gid,
            kind: Kind::File {
                size: file.size,
                map,
            },
        };
        self.tree.insert(path, node)?;
        let totals = &mut self.totals;
        totals.files = totals.files.saturating_add(1);
        totals.file_bytes = totals.file_bytes.saturating_add(file.size);
        totals.allocated_bytes = totals.allocated_bytes.saturating_add(allocated);
        Ok(())
    }

    fn apply_mkdir(&mut self, index: u64, dir: &MkdirEntry) -> Result<(), Problem> {
        let path = path::field_path(&dir.path)?;
        path::check(path)?;
        let node = Node {
            index: Some(index),
            parent: Tree::ROOT,
            name: [].into(),
            mode: dir.mode & 0o7777,
            uid: dir.uid,
            gid: dir.gid,
            kind: Kind::Dir(Default::default()),
        };
        if self.tree.insert(path, node)? {
            self.totals.dirs = self.totals.dirs.saturating_add(1);
        }
        Ok(())
    }

    fn apply_daxdev(&mut self, dev: &AddDaxdev) -> Result<(), Problem> {
        let known = self.space.device(dev.index).is_some();
        if dev.index == 0 || dev.index > MAX_DEVINDEX || known {
            return Err(Problem::DevIndex(dev.index));
        }
        self.daxdevs.push(Daxdev {
            index: dev.index,
            size: dev.size,
            uuid: dev.uuid,
        });
        self.space.add(dev.index, dev.size);
        Ok(())
    }
}
