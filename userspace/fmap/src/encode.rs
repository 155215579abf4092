// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! From a file's extents to the replies of a server.

use core::{ffi::CStr, fmt, mem::size_of};

use zerocopy::{FromZeros, IntoBytes};

use crate::{
    wire::{DaxdevOut, Header, InterleavedExt, SimpleExt, EXT_INTERLEAVE, EXT_SIMPLE, VERSION},
    DevRange, FileType, Policy,
};

/// A GET_FMAP reply to be. Nothing is judged: what the kernel would refuse, [`parse`] refuses.
///
/// [`parse`]: crate::parse
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// What the file is to famfs; upstream's server says [`FileType::Regular`] of every file.
    pub file_type: FileType,
    /// Bytes in the file.
    pub file_size: u64,
    /// Where the file lies.
    pub extents: Extents<'a>,
    /// Whether to announce the size of the message, as the push generation wants it; a request of
    /// that generation has an argument. The other generation ignores the field, which upstream's
    /// server leaves 0.
    pub push: bool,
}

/// The extents of a [`Message`].
#[derive(Clone, Copy, Debug)]
pub enum Extents<'a> {
    /// Contiguous ranges, one after the other.
    Simple(&'a [DevRange]),
    /// Ranges used in turns.
    Interleaved(&'a [Interleaved<'a>]),
}

/// An interleaved extent of a [`Message`].
#[derive(Clone, Copy, Debug)]
pub struct Interleaved<'a> {
    /// Bytes taken from a strip before the next one's turn.
    pub chunk: u32,
    /// Bytes of the file that it covers.
    pub nbytes: u64,
    /// At most [`MAX_STRIPS`](crate::MAX_STRIPS).
    pub strips: &'a [DevRange],
}

/// The buffer holds less than this many bytes, which the message has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooSmall(pub usize);

impl fmt::Display for TooSmall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the message needs a buffer of {} bytes", self.0)
    }
}

impl core::error::Error for TooSmall {}

impl Message<'_> {
    /// Bytes in the message; `usize::MAX` if that doesn't fit.
    #[expect(clippy::len_without_is_empty, reason = "a message has a header")]
    pub fn len(&self) -> usize {
        let body = match self.extents {
            Extents::Simple(extents) => size_of::<SimpleExt>().saturating_mul(extents.len()),
            Extents::Interleaved(extents) => extents
                .iter()
                .map(|iext| size_of::<SimpleExt>().saturating_mul(iext.strips.len()))
                .map(|strips| strips.saturating_add(size_of::<InterleavedExt>()))
                .fold(0, usize::saturating_add),
        };
        body.saturating_add(size_of::<Header>())
    }

    /// Writes the message to the start of `out` and returns its length. If that is too small, a
    /// kernel of the push generation wants the [`header`](Self::header) alone.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, TooSmall> {
        let len = self.len();
        let rest = out.get_mut(..len).ok_or(TooSmall(len))?;
        self.write(rest).ok_or(TooSmall(len))?;
        Ok(len)
    }

    /// The start of the message, which announces the size of the whole.
    pub fn header(&self) -> Header {
        let (ext_type, nextents) = match self.extents {
            Extents::Simple(extents) => (EXT_SIMPLE, extents.len()),
            Extents::Interleaved(extents) => (EXT_INTERLEAVE, extents.len()),
        };
        let mut header = Header::new_zeroed();
        header.file_type = match self.file_type {
            FileType::Regular => 0,
            FileType::Superblock => 1,
            FileType::Log => 2,
        };
        header.fmap_version = VERSION.into();
        header.ext_type = ext_type.into();
        header.nextents = saturate(nextents).into();
        header.fmap_size = if self.push { saturate(self.len()) } else { 0 }.into();
        header.file_size = self.file_size.into();
        header
    }

    /// Returns `None` if `out` is shorter than [`len`](Self::len).
    fn write(&self, out: &mut [u8]) -> Option<()> {
        let mut rest = put(out, &self.header())?;
        match self.extents {
            Extents::Simple(extents) => put_ranges(rest, extents).map(drop),
            Extents::Interleaved(extents) => {
                for iext in extents {
                    let mut head = InterleavedExt::new_zeroed();
                    head.ie_nstrips = saturate(iext.strips.len()).into();
                    head.ie_chunk_size = iext.chunk.into();
                    head.ie_nbytes = iext.nbytes.into();
                    rest = put_ranges(put(rest, &head)?, iext.strips)?;
                }
                Some(())
            }
        }
    }
}

/// The GET_DAXDEV reply for the device whose character device is `path`; `None` if that has more
/// than 255 bytes. Without a policy the kernel's default holds.
pub fn daxdev_reply(index: u16, path: &CStr, policy: Option<Policy>) -> Option<DaxdevOut> {
    let mut out = DaxdevOut::new_zeroed();
    out.index = index.into();
    out.failure_policy = u16::try_from(Policy::to_wire(policy)).ok()?.into();
    let path = path.to_bytes_with_nul();
    out.name.get_mut(..path.len())?.copy_from_slice(path);
    Some(out)
}

/// A number that the kernel refuses when it doesn't fit.
fn saturate(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Writes `value` and returns what is left behind it.
fn put<'o>(
    out: &'o mut [u8],
    value: &(impl IntoBytes + zerocopy::Immutable),
) -> Option<&'o mut [u8]> {
    let (to, rest) = out.split_at_mut_checked(value.as_bytes().len())?;
    to.copy_from_slice(value.as_bytes());
    Some(rest)
}

fn put_ranges<'o>(mut out: &'o mut [u8], ranges: &[DevRange]) -> Option<&'o mut [u8]> {
    for range in ranges {
        let mut ext = SimpleExt::new_zeroed();
        ext.se_devindex = range.index.0.into();
        ext.se_offset = range.offset.into();
        ext.se_len = range.len.into();
        out = put(out, &ext)?;
    }
    Some(out)
}
