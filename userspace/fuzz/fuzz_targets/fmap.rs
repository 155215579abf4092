// SPDX-License-Identifier: MIT OR Apache-2.0

//! Parse, build, resolve and reverse, against the naive model. The input is a message, and what
//! is tried beside its boundaries is taken from its own words.

#![no_main]

#[path = "../../fmap/tests/model/mod.rs"]
mod model;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|message: &[u8]| {
    let words = message.rchunks_exact(8).take(3);
    let extra: Vec<u64> = words
        .filter_map(|word| word.try_into().ok().map(u64::from_ne_bytes))
        .collect();
    model::compare(message, &extra);
});
