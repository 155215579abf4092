// SPDX-License-Identifier: MIT OR Apache-2.0
//! Log entries as they are stored (docs/abi.md, section 2.3). Decoding judges
//! nothing but sequence number and CRC; what an entry says is judged by replay.

use uuid::Uuid;

use crate::crc::crc;
use crate::error::EntryError;
use crate::field::{get, get_u32, get_u64, put, put_u32, put_u64};
use crate::map::{Extent, Map};
use crate::{ENTRY_BYTES, MAX_EXTENTS, PATH_BYTES};

const TYPE_FILE: u32 = 0;
const TYPE_MKDIR: u32 = 1;
const TYPE_DELETE: u32 = 2;
const TYPE_ADD_DAXDEV: u32 = 3;
const EXT_SIMPLE: u32 = 0;
const EXT_INTERLEAVE: u32 = 1;
const CRC_AT: usize = 536;
const EXTENT_BYTES: usize = 24;
const SIMPLE_AT: usize = 136;
const STRIPS_AT: usize = 152;

/// One log entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Equal to the index of the entry.
    pub seqnum: u64,
    /// What it says.
    pub body: Body,
}

/// The parts of an entry that depend on its type.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Body {
    File(FileEntry),
    Mkdir(MkdirEntry),
    Delete,
    AddDaxdev(AddDaxdev),
    /// Any other type.
    Unknown(u32),
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct FileEntry {
    pub size: u64,
    pub flags: u32,
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub path: [u8; PATH_BYTES],
    pub map: RawMap,
}

/// A directory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct MkdirEntry {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub path: [u8; PATH_BYTES],
}

/// A daxdev beside device 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct AddDaxdev {
    pub size: u64,
    pub uuid: Uuid,
    pub index: u32,
}

/// A file's map as stored: counts are what the entry says, lists hold as many
/// of them as an entry has room for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum RawMap {
    Simple {
        nextents: u32,
        extents: Vec<Extent>,
    },
    Interleaved {
        niext: u32,
        nstrips: u64,
        chunk_size: u64,
        strips: Vec<Extent>,
    },
    Unknown(u32),
}

impl FileEntry {
    /// `flags` of every file: all hosts may read and write.
    pub const ALL_HOSTS_RW: u32 = 2;
}

impl RawMap {
    /// Extents or strips, as far as they are known.
    pub fn extents(&self) -> &[Extent] {
        match self {
            Self::Simple { extents, .. } => extents,
            Self::Interleaved { strips, .. } => strips,
            Self::Unknown(_) => &[],
        }
    }
}

impl Entry {
    /// Entry `index` of the log, whose bytes are `buf`.
    ///
    /// # Errors
    /// It is not there, its sequence number is not `index`, or its CRC is wrong.
    pub fn parse(buf: &[u8], index: u64) -> Result<Self, EntryError> {
        let entry = Self::decode(buf).ok_or(EntryError::Missing)?;
        if entry.seqnum != index {
            return Err(EntryError::Seqnum {
                found: entry.seqnum,
            });
        }
        let (stored, computed) = Self::crcs(buf);
        if stored != computed {
            return Err(EntryError::Crc { stored, computed });
        }
        Ok(entry)
    }

    /// Fields of `buf`, which need not be valid; `None` when it is too short.
    pub fn decode(buf: &[u8]) -> Option<Self> {
        let buf = buf.get(..ENTRY_BYTES)?;
        let body = match get_u32(buf, 8) {
            TYPE_FILE => Body::File(decode_file(buf)),
            TYPE_MKDIR => Body::Mkdir(MkdirEntry {
                uid: get_u32(buf, 16),
                gid: get_u32(buf, 20),
                mode: get_u32(buf, 24),
                path: get(buf, 28),
            }),
            TYPE_DELETE => Body::Delete,
            TYPE_ADD_DAXDEV => Body::AddDaxdev(AddDaxdev {
                size: get_u64(buf, 16),
                uuid: Uuid::from_bytes(get(buf, 24)),
                index: get_u32(buf, 40),
            }),
            other => Body::Unknown(other),
        };
        Some(Self {
            seqnum: get_u64(buf, 0),
            body,
        })
    }

    /// Stored and computed CRC of `buf`.
    pub fn crcs(buf: &[u8]) -> (u64, u64) {
        (get_u64(buf, CRC_AT), buf.get(..CRC_AT).map_or(0, crc))
    }

    /// Bytes for the log; unused ones are zero.
    pub fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut buf = [0; ENTRY_BYTES];
        put_u64(&mut buf, 0, self.seqnum);
        put_u32(&mut buf, 8, self.type_code());
        match &self.body {
            Body::File(file) => encode_file(&mut buf, file),
            Body::Mkdir(dir) => {
                put_u32(&mut buf, 16, dir.uid);
                put_u32(&mut buf, 20, dir.gid);
                put_u32(&mut buf, 24, dir.mode);
                put(&mut buf, 28, &dir.path);
            }
            Body::AddDaxdev(dev) => {
                put_u64(&mut buf, 16, dev.size);
                put(&mut buf, 24, dev.uuid.as_bytes());
                put_u32(&mut buf, 40, dev.index);
            }
            Body::Delete | Body::Unknown(_) => {}
        }
        let (_, computed) = Self::crcs(&buf);
        put_u64(&mut buf, CRC_AT, computed);
        buf
    }

    /// The type field.
    pub fn type_code(&self) -> u32 {
        match self.body {
            Body::File(_) => TYPE_FILE,
            Body::Mkdir(_) => TYPE_MKDIR,
            Body::Delete => TYPE_DELETE,
            Body::AddDaxdev(_) => TYPE_ADD_DAXDEV,
            Body::Unknown(code) => code,
        }
    }
}

fn decode_file(buf: &[u8]) -> FileEntry {
    let count = get_u32(buf, 128);
    let map = match get_u32(buf, 120) {
        EXT_SIMPLE => RawMap::Simple {
            nextents: count,
            extents: decode_extents(buf, SIMPLE_AT, u64::from(count)),
        },
        EXT_INTERLEAVE => RawMap::Interleaved {
            niext: count,
            nstrips: get_u64(buf, 136),
            chunk_size: get_u64(buf, 144),
            strips: decode_extents(buf, STRIPS_AT, get_u64(buf, 136)),
        },
        other => RawMap::Unknown(other),
    };
    FileEntry {
        size: get_u64(buf, 16),
        flags: get_u32(buf, 24),
        uid: get_u32(buf, 28),
        gid: get_u32(buf, 32),
        mode: get_u32(buf, 36),
        path: get(buf, 40),
        map,
    }
}

/// Up to `count` extents from `at`, not more than an entry has room for.
fn decode_extents(buf: &[u8], at: usize, count: u64) -> Vec<Extent> {
    let count = usize::try_from(count)
        .unwrap_or(MAX_EXTENTS)
        .min(MAX_EXTENTS);
    let list = buf.get(at..).unwrap_or_default();
    list.chunks_exact(EXTENT_BYTES)
        .take(count)
        .map(|e| Extent {
            devindex: get_u64(e, 0),
            offset: get_u64(e, 8),
            len: get_u64(e, 16),
        })
        .collect()
}

fn encode_file(buf: &mut [u8], file: &FileEntry) {
    put_u64(buf, 16, file.size);
    put_u32(buf, 24, file.flags);
    put_u32(buf, 28, file.uid);
    put_u32(buf, 32, file.gid);
    put_u32(buf, 36, file.mode);
    put(buf, 40, &file.path);
    match &file.map {
        RawMap::Simple { nextents, extents } => {
            put_u32(buf, 120, EXT_SIMPLE);
            put_u32(buf, 128, *nextents);
            encode_extents(buf, SIMPLE_AT, extents);
        }
        RawMap::Interleaved {
            niext,
            nstrips,
            chunk_size,
            strips,
        } => {
            put_u32(buf, 120, EXT_INTERLEAVE);
            put_u32(buf, 128, *niext);
            put_u64(buf, 136, *nstrips);
            put_u64(buf, 144, *chunk_size);
            encode_extents(buf, STRIPS_AT, strips);
        }
        RawMap::Unknown(code) => put_u32(buf, 120, *code),
    }
}

fn encode_extents(buf: &mut [u8], at: usize, extents: &[Extent]) {
    let list = buf.get_mut(at..CRC_AT).unwrap_or_default();
    for (dst, extent) in list
        .chunks_exact_mut(EXTENT_BYTES)
        .zip(extents.iter().take(MAX_EXTENTS))
    {
        put_u64(dst, 0, extent.devindex);
        put_u64(dst, 8, extent.offset);
        put_u64(dst, 16, extent.len);
    }
}

impl From<&Map> for RawMap {
    fn from(map: &Map) -> Self {
        match map {
            Map::Simple(extents) => Self::Simple {
                nextents: u32::try_from(extents.len()).unwrap_or(u32::MAX),
                extents: extents.clone(),
            },
            Map::Interleaved { chunk_size, strips } => Self::Interleaved {
                niext: 1,
                nstrips: strips.len() as u64,
                chunk_size: *chunk_size,
                strips: strips.clone(),
            },
        }
    }
}
