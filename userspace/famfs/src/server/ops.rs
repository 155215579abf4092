// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the server answers. Data never passes here: reads, writes and faults stay in the kernel.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use famfs_fmap::Policy;
use famfs_fuse::abi::{AttrOut, EntryOut, InHeader, Kstatfs, OpenOut, ReadIn, SetattrIn};
use famfs_fuse::reply::{Directory, Payload};
use famfs_fuse::request::Malformed;
use famfs_fuse::{Errno, Operation, Reply, Request};
use famfs_media::ALLOC_UNIT;

use super::fmap_reply;
use super::namespace::Namespace;
use super::stats::Counters;

/// How long the kernel may keep names and attributes, in seconds: a year, for nothing but the kernel itself changes
/// them. Names that do not exist are not kept, so that new files appear at once.
const TIMEOUT: u64 = 365 * 24 * 60 * 60;
/// Largest file name, from the 79 bytes that a path may have in the log.
const NAME_MAX: u32 = 79;
/// Where a mode has the type that a directory entry shows.
const DT_SHIFT: u32 = 12;
const DT_DIR: u32 = 4;

/// State that all threads of a mount share.
#[derive(Debug)]
pub struct Server {
    /// Path of device 0.
    source: PathBuf,
    /// Paths of the daxdevs by index, once all are known.
    devices: OnceLock<Vec<PathBuf>>,
    /// Indices of daxdevs whose paths lead elsewhere by now.
    lost: OnceLock<BTreeSet<u16>>,
    /// What a memory error takes away; None leaves it to the kernel module.
    failure: Option<Policy>,
    namespace: RwLock<Namespace>,
    /// Requests so far.
    pub counters: Counters,
}

type Answer = Result<Payload, Errno>;

impl Server {
    /// A server of `namespace` on a daxdev. There may be others.
    pub fn new(source: PathBuf, failure: Option<Policy>, namespace: Namespace) -> Self {
        let namespace = RwLock::new(namespace);
        Self {
            source,
            failure,
            devices: OnceLock::new(),
            lost: OnceLock::new(),
            namespace,
            counters: Counters::default(),
        }
    }

    /// Says which the daxdevs are. The first call counts.
    pub fn set_devices(&self, paths: Vec<PathBuf>) {
        let _ = self.devices.set(paths);
    }

    /// Says which daxdevs are not to be had. The first call counts.
    pub fn set_lost(&self, lost: BTreeSet<u16>) {
        let _ = self.lost.set(lost);
    }

    /// Paths of the daxdevs by index, as far as they are known.
    pub fn devices(&self) -> &[PathBuf] {
        match self.devices.get() {
            Some(devices) => devices,
            None => std::slice::from_ref(&self.source),
        }
    }

    /// What a memory error takes away, in a word.
    pub fn failure(&self) -> &'static str {
        self.failure.map_or("default", Policy::name)
    }

    /// What the mount table shows as the source: the path of device 0.
    pub fn source(&self) -> String {
        self.source.to_string_lossy().into_owned()
    }

    /// The namespace, to look at.
    pub fn namespace(&self) -> RwLockReadGuard<'_, Namespace> {
        self.namespace
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The namespace, to change.
    pub fn namespace_mut(&self) -> RwLockWriteGuard<'_, Namespace> {
        self.namespace
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The reply to a request. None where none is wanted.
    pub fn answer(&self, bytes: &[u8]) -> Option<Reply> {
        let request = match Request::decode(bytes) {
            Ok(request) => request,
            Err(Malformed::Arguments { unique }) => {
                return Some(Reply::new(unique, Err(Errno::INVAL)))
            }
            Err(Malformed::Header) => {
                tracing::error!(len = bytes.len(), "malformed request");
                return None;
            }
        };
        self.counters.count(request.opcode);
        tracing::trace!(opcode = ?request.opcode, nodeid = request.header.nodeid, "request");
        let header = &request.header;
        let answer = match request.operation {
            Operation::Forget | Operation::Interrupt => return None,
            operation => self.perform(header, operation),
        };
        Some(Reply::new(header.unique, answer))
    }

    fn perform(&self, header: &InHeader, operation: Operation<'_>) -> Answer {
        let nodeid = header.nodeid;
        match operation {
            Operation::Lookup { name } => self.lookup(nodeid, name),
            Operation::GetAttr => self.attr_out(nodeid),
            Operation::SetAttr(request) => self.set_attr(nodeid, &request),
            // There is nothing to say. After ENOSYS the kernel opens files on its own, once it has their maps; and closes
            // them, after ENOSYS to the first FLUSH, so that nobody waits in close() for a server that hangs.
            Operation::Open => Err(Errno::NOSYS),
            Operation::OpenDir => Ok((&OpenOut::default()).into()),
            Operation::ReadDir(request) => self.read_dir(nodeid, &request, false),
            Operation::ReadDirPlus(request) => self.read_dir(nodeid, &request, true),
            Operation::Release | Operation::ReleaseDir | Operation::Destroy => Ok(Payload::empty()),
            Operation::StatFs => self.stat_fs(),
            Operation::GetFmap { buffer } => {
                fmap_reply::get_fmap(&self.namespace(), nodeid, buffer)
            }
            Operation::GetDaxdev => self.get_daxdev(nodeid),
            // There are no extended attributes. After ENOSYS the kernel stops asking, as it else does before each
            // write and exec (security.capability); a user's name gets the answer that says no more than it must.
            Operation::GetXattr { name, .. } if name.starts_with(b"user.") => Err(Errno::NODATA),
            Operation::Create => Err(Errno::OPNOTSUPP),
            // INIT was answered before the first thread started.
            Operation::Init(_) => Err(Errno::IO),
            Operation::GetXattr { .. } | Operation::Unsupported => Err(Errno::NOSYS),
            Operation::Forget | Operation::Interrupt => Ok(Payload::empty()),
        }
    }

    fn lookup(&self, parent: u64, name: &[u8]) -> Answer {
        let namespace = self.namespace();
        let entry = entry_out(&namespace, namespace.lookup(parent, name)?)?;
        Ok((&entry).into())
    }

    fn attr_out(&self, nodeid: u64) -> Answer {
        let attr = self.namespace().attr(nodeid)?;
        Ok((&AttrOut {
            attr_valid: TIMEOUT,
            attr,
            ..AttrOut::default()
        })
            .into())
    }

    fn set_attr(&self, nodeid: u64, request: &SetattrIn) -> Answer {
        self.namespace_mut().set_attr(nodeid, request)?;
        self.attr_out(nodeid)
    }

    fn read_dir(&self, nodeid: u64, request: &ReadIn, plus: bool) -> Answer {
        let namespace = self.namespace();
        let mut directory = Directory::new(request.size);
        // Cookies: 1 and 2 for "." and "..", then node id + 2. They stay good while entries are added.
        let dots = [(nodeid, &b"."[..]), (namespace.parent(nodeid), b"..")];
        for ((ino, name), cookie) in dots.into_iter().zip(1..) {
            // A node id of 0 tells the kernel that this is no lookup, which "." and ".." must not be.
            let entry = plus.then(EntryOut::default);
            if cookie > request.offset && !directory.push(entry.as_ref(), ino, cookie, DT_DIR, name)
            {
                return Ok(directory.into());
            }
        }
        for entry in namespace.entries(nodeid, request.offset.saturating_sub(2))? {
            let out = entry_out(&namespace, entry.nodeid)?;
            let kind = out.attr.mode >> DT_SHIFT;
            let cookie = entry.nodeid.saturating_add(2);
            if !directory.push(plus.then_some(&out), entry.nodeid, cookie, kind, entry.name) {
                // An empty reply would be the end of the directory.
                return if directory.is_empty() {
                    Err(Errno::INVAL)
                } else {
                    Ok(directory.into())
                };
            }
        }
        Ok(directory.into())
    }

    fn stat_fs(&self) -> Answer {
        let namespace = self.namespace();
        let (blocks, free) = namespace.units();
        let unit = u32::try_from(ALLOC_UNIT).unwrap_or(u32::MAX);
        let (files, ffree) = (namespace.len(), namespace.free_entries());
        let stat = Kstatfs {
            blocks,
            bfree: free,
            bavail: free,
            files,
            ffree,
            ..Kstatfs::default()
        };
        Ok((&Kstatfs {
            bsize: unit,
            frsize: unit,
            namelen: NAME_MAX,
            ..stat
        })
            .into())
    }

    fn get_daxdev(&self, index: u64) -> Answer {
        let index = u16::try_from(index).map_err(|_| Errno::INVAL)?;
        let path = self.devices().get(usize::from(index)).ok_or(Errno::INVAL)?;
        if self.lost.get().is_some_and(|lost| lost.contains(&index)) {
            return Err(Errno::NODEV);
        }
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
        let reply =
            famfs_fmap::daxdev_reply(index, &path, self.failure).ok_or(Errno::NAMETOOLONG)?;
        Ok((&reply).into())
    }
}

fn entry_out(namespace: &Namespace, nodeid: u64) -> Result<EntryOut, Errno> {
    let attr = namespace.attr(nodeid)?;
    Ok(EntryOut {
        nodeid,
        entry_valid: TIMEOUT,
        attr_valid: TIMEOUT,
        attr,
        ..EntryOut::default()
    })
}
