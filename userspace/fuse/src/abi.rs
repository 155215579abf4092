// SPDX-License-Identifier: MIT OR Apache-2.0
//! Structures and constants of the kernel's `include/uapi/linux/fuse.h`, protocol 7.45, native-endian.
//!
//! Names are the kernel's without the `fuse_` prefix. `tests/uapi.rs` has the C compiler compare sizes, offsets
//! and values with the header.

use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Major protocol version.
pub const KERNEL_VERSION: u32 = 7;
/// Highest minor protocol version this crate knows.
pub const KERNEL_MINOR_VERSION: u32 = 45;
/// Node id of the root directory.
pub const ROOT_ID: u64 = 1;
/// Smallest buffer the kernel accepts in a read of `/dev/fuse`.
pub const MIN_READ_BUFFER: usize = 8192;

/// The kernel may have several reads in flight.
pub const ASYNC_READ: u64 = 1 << 0;
/// Writes may be larger than 4 KiB.
pub const BIG_WRITES: u64 = 1 << 5;
/// READDIRPLUS is served.
pub const DO_READDIRPLUS: u64 = 1 << 13;
/// The kernel chooses between READDIR and READDIRPLUS.
pub const READDIRPLUS_AUTO: u64 = 1 << 14;
/// Direct I/O may be asynchronous.
pub const ASYNC_DIO: u64 = 1 << 15;
/// Lookups and reads of one directory may run in parallel.
pub const PARALLEL_DIROPS: u64 = 1 << 18;
/// `flags2` of the INIT messages is valid.
pub const INIT_EXT: u64 = 1 << 30;
/// Famfs mode on a 7.45 kernel (docs/abi.md section 1.1).
pub const DAX_FMAP_MINOR_45: u64 = 1 << 43;
/// Famfs mode from 7.46 on, where mainline uses bit 43 for io-uring buffer pools.
pub const DAX_FMAP_MINOR_46: u64 = 1 << 44;

/// SETATTR `valid` bits.
pub mod fattr {
    #![allow(missing_docs)]
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const CTIME: u32 = 1 << 10;
}

/// OPENDIR reply: the kernel may cache the directory.
pub const FOPEN_CACHE_DIR: u32 = 1 << 3;

/// Notification (a reply to no request, its code in place of the error): something of an inode has changed.
pub const NOTIFY_INVAL_INODE: i32 = 2;
/// Notification: requests that were read and not answered are to be queued again.
pub const NOTIFY_RESEND: i32 = 7;

macro_rules! wire {
    ($($(#[$meta:meta])* $name:ident { $($field:ident: $ty:ty),* $(,)? })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        #[allow(missing_docs)]
        pub struct $name { $(pub $field: $ty),* }
    )*};
}

wire! {
    /// Starts every request. `len` counts this header too.
    InHeader { len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16 }
    /// Starts every reply. `error` is 0 or a negative errno.
    OutHeader { len: u32, error: i32, unique: u64 }
    /// INIT request.
    InitIn { major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11] }
    /// INIT reply.
    InitOut {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32,
        request_timeout: u16, unused: [u16; 11],
    }
    /// Attributes of an inode. `blocks` counts 512 bytes each.
    Attr {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32,
        ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    /// LOOKUP reply. Timeouts in seconds.
    EntryOut {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32,
        attr_valid_nsec: u32, attr: Attr,
    }
    /// GETATTR and SETATTR reply.
    AttrOut { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }
    /// SETATTR request.
    SetattrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    /// OPENDIR reply.
    OpenOut { fh: u64, open_flags: u32, backing_id: i32 }
    /// READ, READDIR and READDIRPLUS request.
    ReadIn { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    /// STATFS reply.
    Kstatfs {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
        padding: u32, spare: [u32; 6],
    }
    /// GETXATTR and LISTXATTR request; also what a push-generation kernel sends with GET_FMAP.
    GetxattrIn { size: u32, padding: u32 }
    /// Notification about an inode; a negative offset means its attributes alone.
    NotifyInvalInodeOut { ino: u64, off: i64, len: i64 }
    /// Starts a directory entry, before the name.
    Dirent { ino: u64, off: u64, namelen: u32, kind: u32 }
}
