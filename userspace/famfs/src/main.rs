// SPDX-License-Identifier: MIT OR Apache-2.0
//! famfs: tools and FUSE server in one multi-call binary.

fn main() {}
