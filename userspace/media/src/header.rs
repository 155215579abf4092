// SPDX-License-Identifier: MIT OR Apache-2.0
//! The log header (docs/abi.md, section 2.2).

use crate::crc::crc;
use crate::error::{HeaderError, LogError};
use crate::field::{get_u64, put_u64};
use crate::{ENTRY_BYTES, HEADER_BYTES};

/// A decoded log header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogHeader {
    /// Length of the log in bytes, this header included.
    pub log_len: u64,
    /// Index of the last entry that fits.
    pub last_index: u64,
    /// Sequence number of the next entry. Not covered by the CRC.
    pub next_seqnum: u64,
    /// Index of the next entry, so the number of entries. Not covered by the CRC.
    pub next_index: u64,
}

impl LogHeader {
    /// First eight bytes.
    pub const MAGIC: u64 = 0xbad_cafe_f00d;
    /// Where `next_seqnum` and `next_index` are, 16 bytes.
    pub const COUNTERS_AT: u64 = 32;
    const CRC_AT: usize = 24;

    /// Header of an empty log.
    pub fn new(log_len: u64) -> Self {
        Self {
            log_len,
            last_index: last_index(log_len),
            next_seqnum: 0,
            next_index: 0,
        }
    }

    /// Fields of `buf`, which need not be valid; `None` when it is too short.
    pub fn decode(buf: &[u8]) -> Option<Self> {
        let buf = buf.get(..HEADER_BYTES)?;
        Some(Self {
            log_len: get_u64(buf, 8),
            last_index: get_u64(buf, 16),
            next_seqnum: get_u64(buf, 32),
            next_index: get_u64(buf, 40),
        })
    }

    /// Magic field of `buf`.
    pub fn magic(buf: &[u8]) -> u64 {
        get_u64(buf, 0)
    }

    /// Stored and computed CRC of `buf`.
    pub fn crcs(buf: &[u8]) -> (u64, u64) {
        (
            get_u64(buf, Self::CRC_AT),
            buf.get(..Self::CRC_AT).map_or(0, crc),
        )
    }

    /// A valid header from the first bytes of a log of `log_len` bytes.
    ///
    /// # Errors
    /// The first check that fails: magic, CRC, length against the superblock's,
    /// last index against the length, next index against the last.
    pub fn parse(buf: &[u8], log_len: u64) -> Result<Self, HeaderError> {
        let header = Self::decode(buf).ok_or(HeaderError::TooShort(buf.len()))?;
        let magic = Self::magic(buf);
        if magic != Self::MAGIC {
            return Err(HeaderError::Magic(magic));
        }
        let (stored, computed) = Self::crcs(buf);
        if stored != computed {
            return Err(HeaderError::Crc { stored, computed });
        }
        if header.log_len != log_len {
            return Err(HeaderError::LogLen {
                header: header.log_len,
                superblock: log_len,
            });
        }
        let expected = last_index(log_len);
        if header.last_index != expected {
            return Err(HeaderError::LastIndex {
                stored: header.last_index,
                expected,
            });
        }
        if header.next_index > expected.saturating_add(1) {
            return Err(HeaderError::NextIndex {
                next: header.next_index,
                last: expected,
            });
        }
        Ok(header)
    }

    /// Bytes for the start of the log.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut buf = [0; HEADER_BYTES];
        put_u64(&mut buf, 0, Self::MAGIC);
        put_u64(&mut buf, 8, self.log_len);
        put_u64(&mut buf, 16, self.last_index);
        let (_, computed) = Self::crcs(&buf);
        put_u64(&mut buf, Self::CRC_AT, computed);
        put_u64(&mut buf, 32, self.next_seqnum);
        put_u64(&mut buf, 40, self.next_index);
        buf
    }

    /// The two counters as they are stored at [`Self::COUNTERS_AT`].
    pub fn encode_counters(&self) -> [u8; 16] {
        let mut buf = [0; 16];
        put_u64(&mut buf, 0, self.next_seqnum);
        put_u64(&mut buf, 8, self.next_index);
        buf
    }

    /// Header after `count` more entries.
    ///
    /// # Errors
    /// The counters disagree (readers expect `seqnum == index`), or the log
    /// has no room for `count` entries.
    pub fn after_append(&self, count: u64) -> Result<Self, LogError> {
        if self.next_seqnum != self.next_index {
            return Err(LogError::Counters {
                seqnum: self.next_seqnum,
                index: self.next_index,
            });
        }
        let capacity = self.last_index.saturating_add(1);
        match self.next_index.checked_add(count) {
            Some(next) if next <= capacity => Ok(Self {
                next_seqnum: next,
                next_index: next,
                ..*self
            }),
            _ => Err(LogError::Full {
                used: self.next_index,
                capacity,
                wanted: count,
            }),
        }
    }
}

/// Index of the last entry that fits into a log of `log_len` bytes.
fn last_index(log_len: u64) -> u64 {
    let entries = log_len.saturating_sub(HEADER_BYTES as u64) / ENTRY_BYTES as u64;
    entries.saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_index_and_crc_by_length() {
        // docs/abi.md, section 2.2.
        let table: [(u64, u64, u64); 6] = [
            (8, 15419, 0xa587_5078),
            (16, 30839, 0x3514_e0d7),
            (32, 61679, 0xcf42_87c8),
            (64, 123_360, 0xbc72_0e66),
            (128, 246_722, 0x8871_5b08),
            (256, 493_446, 0xe077_f1d4),
        ];
        for (mib, last, crc) in table {
            let header = LogHeader::new(mib << 20);
            assert_eq!(header.last_index, last);
            assert_eq!(LogHeader::crcs(&header.encode()), (crc, crc));
        }
        assert_eq!(LogHeader::new(512 << 20).last_index, 986_893);
        assert_eq!(LogHeader::new(1 << 30).last_index, 1_973_789);
    }

    #[test]
    fn append_stops_at_the_last_entry() {
        let mut header = LogHeader::new(8 << 20);
        header.next_index = 15419;
        header.next_seqnum = 15419;
        let full = header.after_append(1).unwrap();
        assert_eq!((full.next_index, full.next_seqnum), (15420, 15420));
        let error = full.after_append(1).unwrap_err();
        assert_eq!(
            error,
            LogError::Full {
                used: 15420,
                capacity: 15420,
                wanted: 1
            }
        );
        assert!(header.after_append(2).is_err());
    }

    #[test]
    fn no_append_when_counters_disagree() {
        let header = LogHeader {
            next_seqnum: 42,
            ..LogHeader::new(8 << 20)
        };
        assert_eq!(
            header.after_append(1),
            Err(LogError::Counters {
                seqnum: 42,
                index: 0
            })
        );
    }

    #[test]
    fn parse_refuses_counters_past_the_end() {
        let mut header = LogHeader::new(8 << 20);
        header.next_index = 15421;
        assert_eq!(
            LogHeader::parse(&header.encode(), 8 << 20),
            Err(HeaderError::NextIndex {
                next: 15421,
                last: 15419
            })
        );
    }
}
