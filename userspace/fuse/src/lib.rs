// SPDX-License-Identifier: MIT OR Apache-2.0
//! FUSE protocol on /dev/fuse.
