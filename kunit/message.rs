// SPDX-License-Identifier: GPL-2.0-only

//! Messages of a server, to order.

use kernel::prelude::*;
use zerocopy::IntoBytes;

use crate::fmap::wire::{
    DaxdevOut,
    Header,
    InterleavedExt,
    SimpleExt,
    EXT_INTERLEAVE,
    EXT_SIMPLE,
    VERSION, //
};

/// Bytes.
pub(crate) const MIB: u64 = 1 << 20;

/// Device index, offset and length, both in bytes.
pub(crate) type Range = (u32, u64, u64);

/// Chunk size and number of bytes of an interleaved extent, and its strips.
pub(crate) type Iext<'a> = (u32, u64, &'a [Range]);

/// A map of simple extents.
pub(crate) fn simple(file_size: u64, ranges: &[Range]) -> Result<KVVec<u8>> {
    simple_from(file_size, ranges.iter().copied())
}

/// As [`simple`], for more ranges than there is room for.
pub(crate) fn simple_from(
    file_size: u64,
    ranges: impl ExactSizeIterator<Item = Range>,
) -> Result<KVVec<u8>> {
    let mut message = header(file_size, EXT_SIMPLE, ranges.len())?;
    message.reserve(ranges.len() * size_of::<SimpleExt>(), GFP_KERNEL)?;
    put(&mut message, ranges)?;
    Ok(message)
}

/// A map of interleaved extents.
pub(crate) fn interleaved(file_size: u64, iexts: &[Iext<'_>]) -> Result<KVVec<u8>> {
    let mut message = header(file_size, EXT_INTERLEAVE, iexts.len())?;
    for (chunk, nbytes, strips) in iexts {
        let iext = InterleavedExt {
            ie_nstrips: (strips.len() as u32).into(),
            ie_chunk_size: (*chunk).into(),
            ie_nbytes: (*nbytes).into(),
            reserved: 0.into(),
        };
        message.extend_from_slice(iext.as_bytes(), GFP_KERNEL)?;
        put(&mut message, strips.iter().copied())?;
    }
    Ok(message)
}

/// The message with the bytes from `at` on replaced.
pub(crate) fn edit(mut message: KVVec<u8>, at: usize, bytes: &[u8]) -> Result<KVVec<u8>> {
    for (old, new) in message.iter_mut().skip(at).zip(bytes) {
        *old = *new;
    }
    Ok(message)
}

/// The message as a server of the push generation sends it: with its size.
pub(crate) fn pushed(message: KVVec<u8>) -> Result<KVVec<u8>> {
    let len = message.len() as u32;
    edit(message, 12, &len.to_ne_bytes())
}

/// The answer to GET_DAXDEV.
pub(crate) fn daxdev(path: &[u8]) -> Result<KVVec<u8>> {
    let mut out = DaxdevOut {
        index: 0.into(),
        failure_policy: 0.into(),
        reserved2: 0.into(),
        reserved3: 0.into(),
        reserved4: 0.into(),
        name: [0; 256],
    };
    for (byte, new) in out.name.iter_mut().zip(path) {
        *byte = *new;
    }
    let mut reply = KVVec::new();
    reply.extend_from_slice(out.as_bytes(), GFP_KERNEL)?;
    Ok(reply)
}

fn header(file_size: u64, ext_type: u32, nextents: usize) -> Result<KVVec<u8>> {
    let header = Header {
        file_type: 0,
        reserved: 0,
        fmap_version: VERSION.into(),
        ext_type: ext_type.into(),
        nextents: (nextents as u32).into(),
        fmap_size: 0.into(),
        file_size: file_size.into(),
        reserved1: 0.into(),
    };
    let mut message = KVVec::new();
    message.extend_from_slice(header.as_bytes(), GFP_KERNEL)?;
    Ok(message)
}

fn put(message: &mut KVVec<u8>, ranges: impl Iterator<Item = Range>) -> Result {
    for (index, offset, len) in ranges {
        let range = SimpleExt {
            se_devindex: index.into(),
            reserved: 0.into(),
            se_offset: offset.into(),
            se_len: len.into(),
        };
        message.extend_from_slice(range.as_bytes(), GFP_KERNEL)?;
    }
    Ok(())
}
