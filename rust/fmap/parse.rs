// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! From bytes to a checked view of them.

use zerocopy::FromBytes;

use super::{
    error::FmapError,
    extent::DevRange,
    wire,
    ALIGN,
    MAX_MESSAGE,
    MAX_STRIPS, //
};

/// What a file is to famfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    /// A user's file.
    Regular,
    /// The superblock.
    Superblock,
    /// The log.
    Log,
}

/// A message that holds all that can be checked without a device.
///
/// # Invariants
///
/// Every range passed [`DevRange::check`]; every strip holds the chunks that fall on it; the
/// extents cover the file; the sum of their lengths fits in 64 bits. `simple` or `iexts` is
/// empty, not both.
#[derive(Clone)]
pub struct Fmap<'a> {
    pub(super) file_size: u64,
    file_type: FileType,
    nextents: u32,
    nranges: usize,
    pub(super) simple: &'a [wire::SimpleExt],
    pub(super) iexts: Iexts<'a>,
}

/// Checks all of a GET_FMAP reply that needs no device. Bytes behind the last extent, and
/// reserved fields, are ignored.
pub fn parse(reply: &[u8]) -> Result<Fmap<'_>, FmapError> {
    let truncated = FmapError::Truncated(reply.len() as u64);
    let (header, body) = wire::Header::ref_from_prefix(reply).map_err(|_| truncated)?;
    if reply.len() > MAX_MESSAGE as usize {
        return Err(FmapError::MessageTooLarge(reply.len() as u64));
    }
    let file_type = check_header(header)?;
    let mut fmap = Fmap {
        file_size: header.file_size.get(),
        file_type,
        nextents: header.nextents.get(),
        nranges: 0,
        simple: &[],
        iexts: Iexts {
            rest: body,
            left: 0,
        },
    };
    let mapped = match header.ext_type.get() {
        wire::EXT_SIMPLE => fmap.parse_simple(body).ok_or(truncated)??,
        wire::EXT_INTERLEAVE => fmap.parse_interleaved(truncated)?,
        other => return Err(FmapError::ExtentType(u64::from(other))),
    };
    if mapped < fmap.file_size {
        return Err(FmapError::MapTooShort(mapped));
    }
    Ok(fmap)
}

fn check_header(header: &wire::Header) -> Result<FileType, FmapError> {
    let version = header.fmap_version.get();
    if version != wire::VERSION {
        return Err(FmapError::Version(u64::from(version)));
    }
    if header.nextents.get() == 0 {
        return Err(FmapError::NoExtents);
    }
    match header.file_size.get() {
        0 => return Err(FmapError::EmptyFile),
        size if size > i64::MAX as u64 => return Err(FmapError::FileTooLarge(size)),
        _ => {}
    }
    match header.file_type {
        0 => Ok(FileType::Regular),
        1 => Ok(FileType::Superblock),
        2 => Ok(FileType::Log),
        other => Err(FmapError::FileType(u64::from(other))),
    }
}

/// The size of the buffer to ask again with, if `reply` is only the start of a message that does
/// not fit in `buffer` bytes (push generation, docs/abi.md). Ask again once: [`parse`] refuses a
/// second reply that is too short.
pub fn wanted_size(reply: &[u8], buffer: usize) -> Result<Option<u32>, FmapError> {
    let Ok((header, _)) = wire::Header::ref_from_prefix(reply) else {
        return Ok(None);
    };
    match header.fmap_size.get() {
        size if size as usize <= buffer => Ok(None),
        size if size > MAX_MESSAGE => Err(FmapError::MessageTooLarge(u64::from(size))),
        size => Ok(Some(size)),
    }
}

impl<'a> Fmap<'a> {
    /// Bytes in the file: 1 to `i64::MAX`.
    pub fn file_size(&self) -> u64 {
        self.file_size
    }

    /// What the file is to famfs.
    pub fn file_type(&self) -> FileType {
        self.file_type
    }

    /// Number of extents, simple or interleaved; at least 1.
    pub fn nextents(&self) -> u32 {
        self.nextents
    }

    /// Number of [`ranges`](Self::ranges).
    pub(super) fn nranges(&self) -> usize {
        self.nranges
    }

    /// Every simple extent, or every strip, in the order of the message.
    pub fn ranges(&self) -> impl Iterator<Item = DevRange> + 'a {
        let strips = self.iexts.clone().flat_map(|iext| iext.strips);
        self.simple.iter().chain(strips).map(DevRange::read)
    }

    /// Returns the sum of the extents' lengths, or `None` for a message that is too short.
    fn parse_simple(&mut self, body: &'a [u8]) -> Option<Result<u64, FmapError>> {
        self.nranges = usize::try_from(self.nextents).ok()?;
        let (simple, _) =
            <[wire::SimpleExt]>::ref_from_prefix_with_elems(body, self.nranges).ok()?;
        self.simple = simple;
        let sum = |sum: u64, ext| {
            let len = DevRange::read(ext).check()?.len;
            sum.checked_add(len).ok_or(FmapError::LengthOverflow(len))
        };
        Some(simple.iter().try_fold(0, sum))
    }

    /// Returns the number of bytes of the file that the extents cover.
    fn parse_interleaved(&mut self, truncated: FmapError) -> Result<u64, FmapError> {
        self.iexts.left = self.nextents;
        let mut rest = self.iexts.clone();
        let mut covered: u64 = 0;
        while rest.left > 0 {
            let iext = rest.read().ok_or(truncated)??;
            iext.check()?;
            if rest.left > 0 && iext.nbytes & (ALIGN - 1) != 0 {
                return Err(FmapError::UnalignedStripe(iext.nbytes));
            }
            covered = covered
                .checked_add(iext.nbytes)
                .ok_or(FmapError::LengthOverflow(iext.nbytes))?;
            self.nranges = self.nranges.saturating_add(iext.strips.len());
        }
        Ok(covered)
    }
}

/// An interleaved extent in a message.
#[derive(Clone, Copy)]
pub(super) struct Iext<'a> {
    /// Bytes taken from a strip before the next one's turn.
    pub(super) chunk: u32,
    /// Bytes of the file that it covers.
    pub(super) nbytes: u64,
    /// At most [`MAX_STRIPS`].
    pub(super) strips: &'a [wire::SimpleExt],
}

impl Iext<'_> {
    fn check(&self) -> Result<(), FmapError> {
        if self.chunk == 0 || u64::from(self.chunk) & (ALIGN - 1) != 0 {
            return Err(FmapError::ChunkSize(u64::from(self.chunk)));
        }
        if self.nbytes == 0 {
            return Err(FmapError::EmptyStripe);
        }
        for (i, strip) in self.strips.iter().enumerate() {
            let range = DevRange::read(strip).check()?;
            if self.used(i).is_none_or(|used| range.len < used) {
                return Err(FmapError::StripTooShort(range.len));
            }
        }
        Ok(())
    }

    /// Bytes of the chunks that fall on strip `i`, the last of them taken as whole.
    fn used(&self, i: usize) -> Option<u64> {
        let chunk = u64::from(self.chunk);
        let nstrips = self.strips.len() as u64;
        let chunks = self
            .nbytes
            .checked_next_multiple_of(chunk)?
            .checked_div(chunk)?;
        // Strip i has the chunks i, i + nstrips, i + 2 * nstrips...
        let from_i = chunks.saturating_sub(i as u64);
        let rows = from_i
            .checked_next_multiple_of(nstrips)?
            .checked_div(nstrips)?;
        rows.checked_mul(chunk)
    }
}

/// The interleaved extents of a message, each of which may have any length.
#[derive(Clone)]
pub(super) struct Iexts<'a> {
    rest: &'a [u8],
    left: u32,
}

impl<'a> Iexts<'a> {
    /// Number of extents.
    pub(super) fn len(&self) -> usize {
        self.left as usize
    }

    /// Reads the next one; `None` if the message ends before it does.
    fn read(&mut self) -> Option<Result<Iext<'a>, FmapError>> {
        let left = self.left.checked_sub(1)?;
        let (head, rest) = wire::InterleavedExt::ref_from_prefix(self.rest).ok()?;
        let nstrips = head.ie_nstrips.get();
        if nstrips == 0 || nstrips > MAX_STRIPS {
            return Some(Err(FmapError::StripCount(u64::from(nstrips))));
        }
        let (strips, rest) =
            <[wire::SimpleExt]>::ref_from_prefix_with_elems(rest, nstrips as usize).ok()?;
        self.rest = rest;
        self.left = left;
        Some(Ok(Iext {
            chunk: head.ie_chunk_size.get(),
            nbytes: head.ie_nbytes.get(),
            strips,
        }))
    }
}

impl<'a> Iterator for Iexts<'a> {
    type Item = Iext<'a>;

    fn next(&mut self) -> Option<Iext<'a>> {
        self.read()?.ok()
    }
}
