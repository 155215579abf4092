// SPDX-License-Identifier: GPL-2.0-only

//! Atomics where a call would count.

use kernel::sync::atomic::Atomic;

/// `READ_ONCE()`: a relaxed load of `word`, which [`Atomic::load`] calls a C helper for.
#[inline(always)]
pub(crate) fn read_once(word: &Atomic<u32>) -> u32 {
    // SAFETY: `word` is valid. An aligned word is read in one piece, as `atomic_read()` does it.
    unsafe { word.as_ptr().read_volatile() }
}
