// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The fmap: a file's map onto dax devices.
//!
//! ```text
//!  GET_FMAP reply                Fmap<'_>                    Layout + cells
//!  (bytes of the server) --parse--> (checked view) --build--> (what an inode keeps)
//!                                                               |
//!                        file offset  --------- resolve ------->+--> device slot, offset, length
//!                        device range --------- file_ranges --->+--> file ranges
//! ```
//!
//! Pure: `core` and zerocopy only, no allocation, no kernel names. The kernel module and the
//! user-space server compile the same files. Every byte of a message is untrusted: after
//! [`parse`] and [`Fmap::build`] succeeded, [`Layout::resolve`] can't leave the extents that the
//! message listed. What needs a device (its existence, its size) is the caller's to check, with
//! [`Fmap::ranges`].
//!
//! The wire format is described in docs/abi.md.

mod build;
mod daxdev;
mod error;
mod extent;
mod layout;
mod parse;
mod resolve;
mod reverse;
mod sort;
mod tree;
pub mod wire;

pub use self::{
    daxdev::{
        parse_daxdev,
        DaxdevReply,
        Policy, //
    },
    error::FmapError,
    extent::{
        DevIndex,
        DevRange,
        Extent,
        Strips, //
    },
    layout::Layout,
    parse::{
        parse,
        wanted_size,
        FileType,
        Fmap, //
    },
    resolve::Run, //
};

/// Extents and strips start and end on multiples of this, in bytes: a PMD entry maps as much.
pub const ALIGN: u64 = 2 << 20;

/// The largest message that is fetched, in bytes.
pub const MAX_MESSAGE: u32 = 16 << 20;

/// The largest number of strips in an interleaved extent, in every generation of the protocol.
pub const MAX_STRIPS: u32 = 32;
