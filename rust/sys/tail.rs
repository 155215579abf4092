// SPDX-License-Identifier: GPL-2.0-only

//! A value and an array behind it, in one allocation.

use core::{
    alloc::Layout,
    ops::Deref,
    ptr::{
        self,
        NonNull, //
    },
};

use kernel::{
    alloc::{
        allocator::KVmalloc,
        Allocator,
        NumaNode, //
    },
    prelude::*, //
};

/// A head that knows how many words follow it.
pub(crate) trait Head {
    /// Number of words in the tail. Never changes.
    fn tail_len(&self) -> usize;
}

/// Owns an `H` and [`Head::tail_len`] words that follow it in memory, so that whoever has a
/// pointer to the one reaches the other without loading a second.
///
/// # Invariants
///
/// `0` was allocated by [`KVmalloc`] with the layout of [`TailBox::layout`] for
/// `tail_len()` words, and both parts are initialized.
pub(crate) struct TailBox<H: Head>(NonNull<H>);

// SAFETY: A `TailBox` owns the head and plain words.
unsafe impl<H: Head + Send> Send for TailBox<H> {}
// SAFETY: A shared `TailBox` gives shared access to the head and to plain words.
unsafe impl<H: Head + Sync> Sync for TailBox<H> {}

impl<H: Head> TailBox<H> {
    /// Allocates `head` with a copy of the first `tail_len()` of `words` behind it. `EINVAL` if
    /// there are not as many.
    pub(crate) fn new(head: H, words: &[u64], flags: kernel::alloc::Flags) -> Result<Self> {
        let words = words.get(..head.tail_len()).ok_or(EINVAL)?;
        let layout = Self::layout(words.len())?;
        let ptr = KVmalloc::alloc(layout, flags, NumaNode::NO_NODE)?.cast::<H>();
        // SAFETY: The allocation is large and aligned enough for an `H`.
        unsafe { ptr.as_ptr().write(head) };
        // SAFETY: By `layout`, there is space for `words.len()` words behind the head, aligned
        // since the size of the head is a multiple of its alignment, at least that of a word.
        unsafe {
            ptr::copy_nonoverlapping(words.as_ptr(), Self::tail(ptr), words.len());
        }
        // INVARIANT: Just allocated and initialized.
        Ok(Self(ptr))
    }

    /// Gives up ownership; [`from_raw`](Self::from_raw) takes it back.
    pub(crate) fn into_raw(self) -> NonNull<H> {
        let ptr = self.0;
        core::mem::forget(self);
        ptr
    }

    /// Takes ownership back.
    ///
    /// # Safety
    ///
    /// `ptr` came from [`into_raw`](Self::into_raw), and is not used after this call.
    pub(crate) unsafe fn from_raw(ptr: NonNull<H>) -> Self {
        // INVARIANT: They hold for what `into_raw` returns.
        Self(ptr)
    }

    /// The words behind a head that is in a `TailBox`.
    ///
    /// # Safety
    ///
    /// `ptr` came from [`into_raw`](Self::into_raw), stays valid for `'a`, and its `tail_len()` is
    /// `len`.
    #[inline]
    pub(crate) unsafe fn words<'a>(ptr: NonNull<H>, len: usize) -> &'a [u64] {
        // SAFETY: By the invariants as many words as `tail_len()` follow the head, and they are
        // valid as long as the caller promises.
        unsafe { core::slice::from_raw_parts(Self::tail(ptr), len) }
    }

    fn layout(words: usize) -> Result<Layout> {
        const { assert!(align_of::<H>() >= align_of::<u64>()) };
        let tail = Layout::array::<u64>(words).map_err(|_| ENOMEM)?;
        let (layout, _) = Layout::new::<H>().extend(tail).map_err(|_| ENOMEM)?;
        Ok(layout)
    }

    #[inline]
    fn tail(ptr: NonNull<H>) -> *mut u64 {
        // The size of a type is a multiple of its alignment, which is at least that of a word.
        ptr.as_ptr().wrapping_add(1).cast()
    }
}

impl<H: Head> Deref for TailBox<H> {
    type Target = H;

    fn deref(&self) -> &H {
        // SAFETY: By the invariants the head is initialized, and `self` borrows it.
        unsafe { self.0.as_ref() }
    }
}

impl<H: Head> Drop for TailBox<H> {
    fn drop(&mut self) {
        let layout = Self::layout(self.tail_len());
        // SAFETY: By the invariants the head is initialized; nobody uses it after this.
        unsafe { ptr::drop_in_place(self.0.as_ptr()) };
        if let Ok(layout) = layout {
            // SAFETY: By the invariants this is how it was allocated.
            unsafe { KVmalloc::free(self.0.cast(), layout) };
        }
    }
}
