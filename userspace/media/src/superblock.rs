// SPDX-License-Identifier: MIT OR Apache-2.0
//! The superblock (docs/abi.md, section 2.1) and the role it gives a host.

use uuid::Uuid;

use crate::crc::crc;
use crate::error::SuperError;
use crate::field::{get, get_u32, get_u64, put, put_u32, put_u64};
use crate::{ALLOC_UNIT, LOG_LEN_MIN, LOG_OFFSET, SUPERBLOCK_BYTES};

/// What a host may do with a file system (docs/abi.md, section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Its system uuid is in the superblock: it may append to the log.
    Master,
    /// It only replays the log.
    Client,
}

/// The daxdev a superblock lies on, as its mkfs saw it. Not covered by the CRC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrimaryDax {
    /// Bytes.
    pub size: u64,
    /// Not written by upstream's mkfs.
    pub uuid: Uuid,
    /// Path of the device, up to the first NUL, at most 64 bytes.
    pub name: Vec<u8>,
}

/// A decoded superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Start of the log on device 0.
    pub log_offset: u64,
    /// Length of the log in bytes.
    pub log_len: u64,
    /// 2 MiB; 4096 passes upstream's check and so ours.
    pub alloc_unit: u64,
    /// Format version, major.
    pub omf_major: u32,
    /// Format version, minor.
    pub omf_minor: u32,
    /// Identity of the file system.
    pub fs_uuid: Uuid,
    /// Identity of this daxdev.
    pub dev_uuid: Uuid,
    /// Host that may write.
    pub system_uuid: Uuid,
    /// [`Superblock::SECONDARY`] or zero. Not covered by the CRC.
    pub flags: u32,
    /// Not covered by the CRC.
    pub dax: PrimaryDax,
}

impl Superblock {
    /// First eight bytes.
    pub const MAGIC: u64 = 0x87b2_82ff;
    /// The one version that is understood.
    pub const VERSION: u64 = 48;
    /// Flag of a daxdev that belongs to a file system whose log is on another.
    pub const SECONDARY: u32 = 2;
    const NAME_BYTES: usize = 64;
    const CRC_AT: usize = 96;

    /// A superblock as mkfs writes it.
    pub fn new(log_len: u64, fs: Uuid, dev: Uuid, system: Uuid, dax: PrimaryDax) -> Self {
        Self {
            log_offset: LOG_OFFSET,
            log_len,
            alloc_unit: ALLOC_UNIT,
            omf_major: 2,
            omf_minor: 2,
            fs_uuid: fs,
            dev_uuid: dev,
            system_uuid: system,
            flags: 0,
            dax,
        }
    }

    /// Fields of `buf`, which need not be valid; `None` when it is too short.
    pub fn decode(buf: &[u8]) -> Option<Self> {
        let buf = buf.get(..SUPERBLOCK_BYTES)?;
        let name: [u8; Self::NAME_BYTES] = get(buf, 136);
        Some(Self {
            log_offset: get_u64(buf, 16),
            log_len: get_u64(buf, 24),
            alloc_unit: get_u64(buf, 32),
            omf_major: get_u32(buf, 40),
            omf_minor: get_u32(buf, 44),
            fs_uuid: Uuid::from_bytes(get(buf, 48)),
            dev_uuid: Uuid::from_bytes(get(buf, 64)),
            system_uuid: Uuid::from_bytes(get(buf, 80)),
            flags: get_u32(buf, 104),
            dax: PrimaryDax {
                size: get_u64(buf, 112),
                uuid: Uuid::from_bytes(get(buf, 120)),
                name: name.iter().copied().take_while(|&b| b != 0).collect(),
            },
        })
    }

    /// Magic and version fields of `buf`.
    pub fn magic_version(buf: &[u8]) -> (u64, u64) {
        (get_u64(buf, 0), get_u64(buf, 8))
    }

    /// Stored and computed CRC of `buf`.
    pub fn crcs(buf: &[u8]) -> (u64, u64) {
        (
            get_u64(buf, Self::CRC_AT),
            buf.get(..Self::CRC_AT).map_or(0, crc),
        )
    }

    /// A valid superblock from the first bytes of a device.
    ///
    /// # Errors
    /// The first check that fails: magic, version, CRC and allocation unit in
    /// upstream's order, then place and length of the log.
    pub fn parse(buf: &[u8]) -> Result<Self, SuperError> {
        let sb = Self::decode(buf).ok_or(SuperError::TooShort(buf.len()))?;
        let (magic, version) = Self::magic_version(buf);
        if magic != Self::MAGIC {
            return Err(SuperError::Magic(magic));
        }
        if version != Self::VERSION {
            return Err(SuperError::Version(version));
        }
        let (stored, computed) = Self::crcs(buf);
        if stored != computed {
            return Err(SuperError::Crc { stored, computed });
        }
        if sb.alloc_unit != ALLOC_UNIT && sb.alloc_unit != 4096 {
            return Err(SuperError::AllocUnit(sb.alloc_unit));
        }
        if sb.log_offset != LOG_OFFSET {
            return Err(SuperError::LogOffset(sb.log_offset));
        }
        if !log_len_valid(sb.log_len) {
            return Err(SuperError::LogLen(sb.log_len));
        }
        Ok(sb)
    }

    /// Bytes for the start of the device.
    pub fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        let mut buf = [0; SUPERBLOCK_BYTES];
        put_u64(&mut buf, 0, Self::MAGIC);
        put_u64(&mut buf, 8, Self::VERSION);
        put_u64(&mut buf, 16, self.log_offset);
        put_u64(&mut buf, 24, self.log_len);
        put_u64(&mut buf, 32, self.alloc_unit);
        put_u32(&mut buf, 40, self.omf_major);
        put_u32(&mut buf, 44, self.omf_minor);
        put(&mut buf, 48, self.fs_uuid.as_bytes());
        put(&mut buf, 64, self.dev_uuid.as_bytes());
        put(&mut buf, 80, self.system_uuid.as_bytes());
        let (_, computed) = Self::crcs(&buf);
        put_u64(&mut buf, Self::CRC_AT, computed);
        put_u32(&mut buf, 104, self.flags);
        put_u64(&mut buf, 112, self.dax.size);
        put(&mut buf, 120, self.dax.uuid.as_bytes());
        let name = self
            .dax
            .name
            .get(..Self::NAME_BYTES)
            .unwrap_or(&self.dax.name);
        put(&mut buf, 136, name);
        buf
    }

    /// Role of the host whose system uuid is `local` (`None`: unreadable).
    pub fn role(&self, local: Option<Uuid>) -> Role {
        match local {
            Some(uuid) if uuid == self.system_uuid => Role::Master,
            _ => Role::Client,
        }
    }

    /// Whether the log of this file system lies on another daxdev.
    pub fn is_secondary(&self) -> bool {
        self.flags & Self::SECONDARY != 0
    }

    /// First byte behind the log. Cannot overflow for a parsed superblock.
    pub fn data_start(&self) -> u64 {
        self.log_offset.saturating_add(self.log_len)
    }
}

/// Whether `len` is a power of two of at least 8 MiB.
pub fn log_len_valid(len: u64) -> bool {
    len >= LOG_LEN_MIN && len.is_power_of_two() && len < 1 << 62
}
