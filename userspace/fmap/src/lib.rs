// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The fmap layer of the kernel module as a crate, and the encoder that only a server needs.

#![no_std]
#![deny(
    unsafe_code,
    missing_docs,
    unreachable_pub,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

#[cfg(test)]
extern crate std;

mod encode;

// The kernel module is built from these files too, without cargo.
#[path = "../../../rust/fmap/mod.rs"]
mod fmap;

pub use encode::{daxdev_reply, Extents, Interleaved, Message, TooSmall};
pub use fmap::*;
