// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What a server says of a daxdev.

use core::ffi::CStr;

use zerocopy::FromBytes;

use super::{
    error::FmapError,
    wire, //
};

/// What a memory error takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Every file that has memory on the device.
    Device,
    /// The poisoned bytes.
    Range,
}

impl Policy {
    /// What a server says; `None` if it says nothing.
    pub fn from_wire(policy: u32) -> Result<Option<Self>, FmapError> {
        match policy {
            0 => Ok(None),
            wire::POLICY_DEVICE => Ok(Some(Self::Device)),
            wire::POLICY_RANGE => Ok(Some(Self::Range)),
            other => Err(FmapError::DaxdevPolicy(other.into())),
        }
    }

    /// As [`from_wire`](Self::from_wire) understands it.
    pub fn to_wire(policy: Option<Self>) -> u32 {
        match policy {
            None => 0,
            Some(Self::Device) => wire::POLICY_DEVICE,
            Some(Self::Range) => wire::POLICY_RANGE,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Range => "range",
        }
    }
}

/// A GET_DAXDEV reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DaxdevReply<'a> {
    /// Path of the character device.
    pub name: &'a CStr,
    /// The policy that the server asks for, if any.
    pub policy: Option<Policy>,
}

/// Reads a GET_DAXDEV reply.
pub fn parse_daxdev(reply: &[u8]) -> Result<DaxdevReply<'_>, FmapError> {
    let out = wire::DaxdevOut::ref_from_bytes(reply)
        .map_err(|_| FmapError::DaxdevSize(reply.len() as u64))?;
    let name = CStr::from_bytes_until_nul(&out.name)
        .ok()
        .filter(|name| !name.is_empty())
        .ok_or(FmapError::DaxdevName)?;
    let policy = Policy::from_wire(out.failure_policy.get().into())?;
    Ok(DaxdevReply { name, policy })
}
