// SPDX-License-Identifier: GPL-2.0-only

//! Mappings of file ranges, as fs/dax.c and fs/iomap ask for them.
//!
//! C header: `include/linux/iomap.h`.

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use kernel::{
    ffi,
    prelude::*, //
};

use super::{
    bindings,
    dax::{
        HeldDaxDevice,
        Holder, //
    },
    fuse::FmapProvider,
    inode::Slot, //
};

/// Contiguous memory behind a file from some offset on.
pub(crate) struct Mapping<'a, T: Holder + 'static> {
    /// Where it lies.
    pub(crate) dev: &'a HeldDaxDevice<T>,
    /// Bytes from the start of the device.
    pub(crate) offset: u64,
    /// Number of bytes, at least 1.
    pub(crate) len: u64,
}

pub(crate) struct IomapTable<P>(PhantomData<P>);

impl<P: FmapProvider> IomapTable<P> {
    pub(crate) const OPS: bindings::iomap_ops = bindings::iomap_ops {
        iomap_begin: Some(Self::begin),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// Called by `iomap_iter()` for an inode that has a map of `P` and that somebody keeps;
    /// `iomap` is zero but for what this function sets.
    unsafe extern "C" fn begin(
        inode: *mut bindings::inode,
        pos: bindings::loff_t,
        _length: bindings::loff_t,
        _flags: ffi::c_uint,
        iomap: *mut bindings::iomap,
        _srcmap: *mut bindings::iomap,
    ) -> ffi::c_int {
        // SAFETY: By the function's own requirement; the map stays as long as the inode.
        let Some(slot) = NonNull::new(inode).and_then(|inode| unsafe { Slot::<P>::of(inode) })
        else {
            return EIO.to_errno();
        };
        // SAFETY: As above.
        let file = unsafe { Slot::file(slot) };
        match P::map_quickly(file, pos as u64) {
            // SAFETY: By the function's own requirement.
            Some(mapping) => unsafe { Self::fill(iomap, pos, mapping) },
            // SAFETY: As above.
            None => unsafe { Self::begin_slowly(slot, iomap, pos) },
        }
    }

    /// A call in the last place, so that the hot path saves no register for it.
    ///
    /// # Safety
    ///
    /// As for [`begin`](Self::begin), for the inode of `slot`.
    #[cold]
    #[inline(never)]
    unsafe fn begin_slowly(
        slot: NonNull<Slot<P>>,
        iomap: *mut bindings::iomap,
        pos: bindings::loff_t,
    ) -> ffi::c_int {
        // SAFETY: By the function's own requirement.
        match P::map(unsafe { Slot::file(slot) }, pos as u64) {
            // SAFETY: By the function's own requirement.
            Ok(mapping) => unsafe { Self::fill(iomap, pos, mapping) },
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// As for [`begin`](Self::begin).
    #[inline(always)]
    unsafe fn fill(
        iomap: *mut bindings::iomap,
        pos: bindings::loff_t,
        mapping: Mapping<'_, P::Holder>,
    ) -> ffi::c_int {
        // SAFETY: By the function's own requirement. The device outlives the inode: its map keeps
        // it.
        unsafe {
            (*iomap).addr = mapping.offset;
            (*iomap).offset = pos;
            (*iomap).length = mapping.len;
            (*iomap).type_ = bindings::IOMAP_MAPPED as u16;
            (*iomap).dax_dev = mapping.dev.as_raw();
        }
        0
    }
}
