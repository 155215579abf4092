// SPDX-License-Identifier: MIT OR Apache-2.0
//! FUSE messages as the tests' own server sees and builds them: bytes at the offsets of linux/fuse.h, written down
//! here a second time so that the project's codec is not tested against itself.

pub const LOOKUP: u32 = 1;
pub const FORGET: u32 = 2;
pub const GETATTR: u32 = 3;
pub const SETATTR: u32 = 4;
pub const OPEN: u32 = 14;
pub const READ: u32 = 15;
pub const STATFS: u32 = 17;
pub const RELEASE: u32 = 18;
pub const INIT: u32 = 26;
pub const CREATE: u32 = 35;
pub const INTERRUPT: u32 = 36;
pub const DESTROY: u32 = 38;
pub const BATCH_FORGET: u32 = 42;
pub const FALLOCATE: u32 = 43;
pub const GET_FMAP: u32 = 54;
pub const GET_DAXDEV: u32 = 55;

const FUSE_INIT_EXT: u64 = 1 << 30;
const FUSE_ATOMIC_O_TRUNC: u64 = 1 << 3;
const FUSE_PARALLEL_DIROPS: u64 = 1 << 18;
/// Bit 43 with Linux 7.2 (minor 45), bit 44 from 7.3 (minor 46).
const DAX_FMAP_7_2: u64 = 1 << 43;
const DAX_FMAP_7_3: u64 = 1 << 44;

const IN_HEADER: usize = 40;
/// Attributes and names stay valid for a day: the kernel has no reason to ask twice.
const VALID_SECONDS: u64 = 86_400;

/// One request as the kernel sent it.
pub struct Request<'a> {
    pub opcode: u32,
    pub unique: u64,
    pub nodeid: u64,
    pub body: &'a [u8],
    /// Bytes of the whole message.
    pub len: usize,
}

impl<'a> Request<'a> {
    /// None where the message is shorter than a header.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        Some(Self {
            opcode: u32_at(bytes, 4)?,
            unique: u64_at(bytes, 8)?,
            nodeid: u64_at(bytes, 16)?,
            body: bytes.get(IN_HEADER..)?,
            len: bytes.len(),
        })
    }

    /// A name as LOOKUP carries it, without its NUL.
    pub fn name(&self) -> &'a [u8] {
        self.body
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default()
    }
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Little-endian fields one after another.
#[derive(Clone, Debug, Default)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    pub fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn zeros(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

/// The answer to `unique`: an errno (0 for none) and a body.
pub fn reply(unique: u64, errno: i32, body: &[u8]) -> Vec<u8> {
    let error = errno.wrapping_neg() as u32;
    Bytes::default()
        .u32(16 + body.len() as u32)
        .u32(error)
        .u64(unique)
        .bytes(body)
        .0
}

/// The flags that the kernel offers in INIT.
pub fn init_flags(body: &[u8]) -> u64 {
    let low = u32_at(body, 12).unwrap_or(0);
    let high = u32_at(body, 16).unwrap_or(0);
    u64::from(high) << 32 | u64::from(low)
}

/// The bit that means DAX_FMAP to the kernel of this INIT.
pub fn dax_fmap_bit(body: &[u8]) -> u64 {
    match u32_at(body, 4) {
        Some(minor) if minor >= 46 => DAX_FMAP_7_3,
        _ => DAX_FMAP_7_2,
    }
}

/// Bytes of an fmap's header.
pub const FMAP_HEADER: usize = 32;

/// How large a GET_FMAP reply may be: as large as the request says, or a page where it says nothing.
pub fn fmap_room(body: &[u8]) -> usize {
    u32_at(body, 0).map_or(4096, |size| size as usize)
}

/// Answers INIT: what a small server needs, file maps if `fmap` and offered, O_TRUNC in OPEN if `atomic_trunc`.
pub fn init_out(body: &[u8], fmap: bool, atomic_trunc: bool) -> Vec<u8> {
    let mut wanted = FUSE_INIT_EXT | FUSE_PARALLEL_DIROPS;
    if fmap {
        wanted |= dax_fmap_bit(body);
    }
    if atomic_trunc {
        wanted |= FUSE_ATOMIC_O_TRUNC;
    }
    let flags = wanted & init_flags(body);
    Bytes::default()
        .u32(7)
        .u32(u32_at(body, 4).unwrap_or(45).min(46))
        .u32(0)
        .u32(flags as u32)
        .u16(16)
        .u16(12)
        .u32(1 << 20)
        .u32(1)
        .u16(256)
        .u16(0)
        .u32((flags >> 32) as u32)
        .zeros(28)
        .0
}

pub fn attr(nodeid: u64, mode: u32, size: u64) -> Bytes {
    Bytes::default()
        .u64(nodeid)
        .u64(size)
        .u64(size.div_ceil(512))
        .zeros(36)
        .u32(mode)
        .u32(1)
        .zeros(12)
        .u32(4096)
        .u32(0)
}

pub fn attr_out(nodeid: u64, mode: u32, size: u64) -> Vec<u8> {
    Bytes::default()
        .u64(VALID_SECONDS)
        .zeros(8)
        .bytes(&attr(nodeid, mode, size).0)
        .0
}

pub fn entry_out(nodeid: u64, mode: u32, size: u64) -> Vec<u8> {
    let header = Bytes::default()
        .u64(nodeid)
        .u64(0)
        .u64(VALID_SECONDS)
        .u64(VALID_SECONDS)
        .zeros(8);
    header.bytes(&attr(nodeid, mode, size).0).0
}

pub fn open_out(fh: u64, open_flags: u32) -> Vec<u8> {
    Bytes::default().u64(fh).u32(open_flags).u32(0).0
}

/// GET_DAXDEV's answer: 280 bytes.
pub fn daxdev_out(index: u16, name: &str) -> Vec<u8> {
    let named = Bytes::default().u16(index).zeros(22).bytes(name.as_bytes());
    let missing = 280 - named.0.len();
    named.zeros(missing).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_header() {
        assert_eq!(attr(2, 0o100644, 1).0.len(), 88);
        assert_eq!(attr_out(2, 0, 0).len(), 104);
        assert_eq!(entry_out(2, 0, 0).len(), 128);
        assert_eq!(open_out(0, 0).len(), 16);
        assert_eq!(init_out(&[0; 64], true, false).len(), 64);
        assert_eq!(daxdev_out(0, "/dev/dax0.0").len(), 280);
    }
}
