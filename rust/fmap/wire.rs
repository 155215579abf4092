// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The structures on the wire, docs/abi.md "Structures". Integers are in native byte order and
//! nothing is aligned: a message lies anywhere in a buffer.

use zerocopy::native_endian::{
    U16,
    U32,
    U64, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

/// The only version of the format.
pub const VERSION: u16 = 1;
/// `ext_type`: a list of simple extents.
pub const EXT_SIMPLE: u32 = 0;
/// `ext_type`: a list of interleaved extents, each followed by its strips.
pub const EXT_INTERLEAVE: u32 = 1;

/// `failure_policy`, and flags of FUSE_DEV_IOC_DAXDEV_OPEN: every file on the device fails.
pub const POLICY_DEVICE: u32 = 1;
/// `failure_policy`, and flags of FUSE_DEV_IOC_DAXDEV_OPEN: the poisoned bytes alone fail.
pub const POLICY_RANGE: u32 = 2;
/// Flags of FUSE_DEV_IOC_DAXDEV_OPEN: no device is added; the memory errors of the one that has
/// the index are forgotten.
pub const DAXDEV_FORGET: u32 = 4;

/// `struct fuse_famfs_fmap_header`: the start of a GET_FMAP reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// 0 regular, 1 superblock, 2 log.
    pub file_type: u8,
    /// Ignored.
    pub reserved: u8,
    /// [`VERSION`].
    pub fmap_version: U16,
    /// [`EXT_SIMPLE`] or [`EXT_INTERLEAVE`].
    pub ext_type: U32,
    /// Number of simple or of interleaved extents that follow.
    pub nextents: U32,
    /// Bytes of the whole message; 0 from servers of the pull generation.
    pub fmap_size: U32,
    /// Bytes in the file.
    pub file_size: U64,
    /// Ignored.
    pub reserved1: U64,
}

/// `struct fuse_famfs_simple_ext`: a contiguous range of one device; also a strip.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SimpleExt {
    /// Index of the device in the mount's table.
    pub se_devindex: U32,
    /// Ignored.
    pub reserved: U32,
    /// Bytes from the start of the device.
    pub se_offset: U64,
    /// Bytes.
    pub se_len: U64,
}

/// `struct fuse_famfs_iext`: an interleaved extent; `ie_nstrips` [`SimpleExt`] follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct InterleavedExt {
    /// Number of strips.
    pub ie_nstrips: U32,
    /// Bytes taken from a strip before the next one's turn.
    pub ie_chunk_size: U32,
    /// Bytes of the file that this extent covers.
    pub ie_nbytes: U64,
    /// Ignored.
    pub reserved: U64,
}

/// `struct fuse_daxdev_out`: the GET_DAXDEV reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DaxdevOut {
    /// Index of the device; servers leave it 0.
    pub index: U16,
    /// What a memory error takes away: 0 nothing said, [`POLICY_DEVICE`] or [`POLICY_RANGE`].
    pub failure_policy: U16,
    /// Ignored.
    pub reserved2: U32,
    /// Ignored.
    pub reserved3: U64,
    /// Ignored.
    pub reserved4: U64,
    /// Path of the character device, ended by a zero byte.
    pub name: [u8; 256],
}

const _: () = {
    assert!(size_of::<Header>() == 32);
    assert!(size_of::<SimpleExt>() == 24);
    assert!(size_of::<InterleavedExt>() == 24);
    assert!(size_of::<DaxdevOut>() == 280);
};
