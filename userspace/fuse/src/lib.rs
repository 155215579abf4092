// SPDX-License-Identifier: MIT OR Apache-2.0
//! The FUSE protocol on `/dev/fuse`, as far as famfs needs it, with the two opcodes that famfs adds.
//!
//! A request comes in through [`dev`], is decoded by [`request`] (which knows the kernel's structures of
//! [`abi`] and the one table of [`opcode`]), and goes back as a [`reply`]. [`init`] settles what the kernel
//! and the server can do. [`ioctl`] holds everything that needs `unsafe`; nothing else does.

pub mod abi;
pub mod argument;
pub mod dev;
pub mod init;
pub mod ioctl;
pub mod opcode;
pub mod reply;
pub mod request;

pub use dev::DevFuse;
pub use ioctl::{map_file, Region};
pub use opcode::Opcode;
pub use reply::Reply;
pub use request::{Operation, Request};
pub use rustix::io::Errno;
