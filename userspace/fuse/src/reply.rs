// SPDX-License-Identifier: MIT OR Apache-2.0
//! Replies: header and payload, ready to be written to `/dev/fuse`.

use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

use crate::abi::{Dirent, EntryOut, OutHeader};

/// One whole reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply(Vec<u8>);

impl Reply {
    /// Answers request `unique` with a payload or an error.
    pub fn new(unique: u64, result: Result<Payload, Errno>) -> Self {
        match result {
            Ok(payload) => Self::of(unique, 0, &payload.0),
            Err(errno) => Self::of(unique, -errno.raw_os_error(), &[]),
        }
    }

    /// Tells the kernel what it has not asked for.
    pub fn notification(code: i32, what: &(impl IntoBytes + Immutable)) -> Self {
        Self::of(0, code, what.as_bytes())
    }

    fn of(unique: u64, error: i32, payload: &[u8]) -> Self {
        // A payload is bounded by the buffer the kernel offers, far below 4 GiB; the kernel refuses a wrong length.
        let len =
            u32::try_from(size_of::<OutHeader>().saturating_add(payload.len())).unwrap_or(u32::MAX);
        let mut bytes = OutHeader { len, error, unique }.as_bytes().to_vec();
        bytes.extend_from_slice(payload);
        Self(bytes)
    }

    /// The bytes to write.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What follows the reply's header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payload(Vec<u8>);

impl Payload {
    /// Nothing: the operation has succeeded and gives no value.
    pub fn empty() -> Self {
        Self::default()
    }
}

/// One structure.
impl<T: IntoBytes + Immutable> From<&T> for Payload {
    fn from(value: &T) -> Self {
        Self(value.as_bytes().to_vec())
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

/// READDIR and READDIRPLUS payload, filled up to the size the kernel asked for.
#[derive(Debug)]
pub struct Directory {
    bytes: Vec<u8>,
    limit: usize,
}

impl Directory {
    /// An empty directory buffer of at most `limit` bytes.
    pub fn new(limit: u32) -> Self {
        Self {
            bytes: Vec::new(),
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
        }
    }

    /// Whether it has no entry yet.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds an entry, for READDIRPLUS after its `plus`. Gives false, and adds nothing, when it does not fit.
    pub fn push(
        &mut self,
        plus: Option<&EntryOut>,
        ino: u64,
        off: u64,
        kind: u32,
        name: &[u8],
    ) -> bool {
        let Ok(namelen) = u32::try_from(name.len()) else {
            return false;
        };
        let dirent = Dirent {
            ino,
            off,
            namelen,
            kind,
        };
        let plus = plus.map_or(&[][..], IntoBytes::as_bytes);
        let size = plus
            .len()
            .saturating_add(size_of::<Dirent>())
            .saturating_add(name.len())
            .next_multiple_of(8);
        let end = self.bytes.len().saturating_add(size);
        if end > self.limit {
            return false;
        }
        self.bytes.extend_from_slice(plus);
        self.bytes.extend_from_slice(dirent.as_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.resize(end, 0);
        true
    }
}

impl From<Directory> for Payload {
    fn from(directory: Directory) -> Self {
        Self(directory.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_reply_is_a_bare_header_with_the_negative_errno() {
        let reply = Reply::new(0x60, Err(Errno::NOSYS));
        assert_eq!(
            reply.as_bytes(),
            [16, 0, 0, 0, 0xda, 0xff, 0xff, 0xff, 0x60, 0, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn directory_entries_are_padded_and_bounded() {
        let mut directory = Directory::new(63);
        assert!(directory.push(None, 2, 1, 4, b"a"));
        assert!(!directory.push(None, 3, 2, 8, b"123456789"));
        assert!(directory.push(None, 3, 2, 8, b""));
        let Payload(bytes) = directory.into();
        assert_eq!(bytes.len(), 32 + 24);
        assert_eq!(bytes[24..32], [b'a', 0, 0, 0, 0, 0, 0, 0]);
    }
}
