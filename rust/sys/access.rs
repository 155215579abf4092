// SPDX-License-Identifier: GPL-2.0-only

//! Reaching the memory of a held DAX device.
//!
//! C header: `include/linux/dax.h`.

use core::{
    ops::Range,
    ptr, //
};

use kernel::{
    ffi,
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    page::{
        PAGE_MASK,
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::rcu,
    types::NotThreadSafe, //
};

use super::{
    bindings,
    dax::{
        HeldDaxDevice,
        Holder, //
    },
};

impl<T: Holder> HeldDaxDevice<T> {
    /// Makes the kernel use the pages in `range`, in bytes, again after they were poisoned; of the
    /// ones that the device has. `EINTR` if the caller is being killed.
    ///
    /// `mf_dax_kill_procs()` marks the first page of a DAX entry, whichever of its pages is
    /// poisoned, so the marks of whole entries are taken away.
    pub(crate) fn mark_good(&self, range: Range<u64>) -> Result {
        const PMD: u64 = 2 << 20;
        let mut offset = range.start & !(PMD - 1);
        let end = range.end.checked_next_multiple_of(PMD).unwrap_or(u64::MAX);
        while offset < end {
            let access = DaxAccess::new();
            let Ok(found) = access.look_up(self, offset, 1) else {
                return Ok(());
            };
            // SAFETY: This is a page of the device, which stays as long as `access`.
            let killed = unsafe { bindings::famfs_mark_good(found.pfn, range.contains(&offset)) };
            drop(access);
            if killed {
                return Err(EINTR);
            }
            offset = offset.saturating_add(PAGE_SIZE as u64);
        }
        Ok(())
    }

    /// Number of bytes that can be reached at `offset`, at most `len`; both in bytes. An error if
    /// they are not contiguous, or not all there.
    pub(crate) fn probe(&self, offset: u64, len: u64) -> Result<u64> {
        let pages = (len >> PAGE_SHIFT).min(isize::MAX as u64) as isize;
        let access = DaxAccess::new();
        let found = access.look_up(self, offset, pages)?;
        Ok(found.pages << PAGE_SHIFT)
    }

    /// The number of the first of that many contiguous pages, at `offset` in bytes. It is right as
    /// long as the device is alive.
    #[inline]
    pub(super) fn pfn(&self, offset: u64, pages: usize) -> Option<usize> {
        let access = DaxAccess::new();
        let found = access.look_up(self, offset, pages as isize).ok()?;
        (found.pages >= pages as u64).then_some(found.pfn)
    }

    /// Copies memory from `offset` on to `iter`, at most `len` bytes, and returns how many.
    ///
    /// Fewer than asked for means that the memory is not contiguous, that it is poisoned, that the
    /// destination can't be written, or that it was more than is copied in one step.
    #[inline]
    pub(crate) fn read(&self, offset: u64, len: u64, iter: &mut IovIterDest<'_>) -> Result<usize> {
        let access = DaxAccess::new();
        let (addr, len) = access.span(self, offset, len)?;
        // SAFETY: `span` returned `len` bytes of memory, which stays as long as `access`. User
        // space may change it meanwhile, and no reference to it is made. What is poisoned is
        // detected by the copy.
        Ok(unsafe { bindings::_copy_mc_to_iter(addr, len, iter.as_raw()) })
    }

    /// Copies at most `len` bytes from `iter` to memory from `offset` on, and returns how many. Past
    /// the CPU's caches, as dax drivers want it: other hosts may not see what is in them.
    ///
    /// Fewer than asked for means that the memory is not contiguous, or that the source can't be
    /// read.
    #[inline]
    pub(crate) fn write(
        &self,
        offset: u64,
        len: u64,
        iter: &mut IovIterSource<'_>,
    ) -> Result<usize> {
        let access = DaxAccess::new();
        let (addr, len) = access.span(self, offset, len)?;
        // SAFETY: `span` returned `len` bytes of memory, which stays as long as `access`. User
        // space may change it meanwhile, and no reference to it is made.
        Ok(unsafe { bindings::_copy_from_iter_flushcache(addr, len, iter.as_raw()) })
    }
}

/// The most that is copied in one step, in bytes; between two of them the device may go.
const STEP: u64 = 128 << 20;

/// Contiguous pages of a device.
struct Found {
    addr: *mut ffi::c_void,
    /// The number of the first one.
    pfn: usize,
    pages: u64,
}

/// A section in which a device that is alive stays so.
pub(super) struct DaxAccess {
    id: i32,
    _not_send: NotThreadSafe,
}

impl DaxAccess {
    #[inline]
    pub(super) fn new() -> Self {
        Self {
            // SAFETY: No requirements.
            id: unsafe { bindings::dax_read_lock() },
            _not_send: NotThreadSafe,
        }
    }

    /// The pages, at most `pages`, at `offset` bytes from the start of the device.
    #[inline]
    fn look_up<T: Holder>(
        &self,
        held: &HeldDaxDevice<T>,
        offset: u64,
        pages: isize,
    ) -> Result<Found> {
        let (mut addr, mut pfn) = (ptr::null_mut(), 0);
        // The device must not die in here: fsdev_dax looks for it a second time, and follows what
        // it finds. `notify_failure` waits for such sections.
        let _rcu = rcu::read_lock();
        if held.holder().is_removed() {
            return Err(ENXIO);
        }
        // SAFETY: The device is held; `self` is the section that is required.
        let n = unsafe {
            bindings::dax_direct_access(
                held.as_raw(),
                (offset >> PAGE_SHIFT) as usize,
                pages,
                bindings::dax_access_mode_DAX_ACCESS,
                &mut addr,
                &mut pfn,
            )
        };
        match u64::try_from(n) {
            Ok(0) => Err(ERANGE),
            Ok(pages) => Ok(Found { addr, pfn, pages }),
            Err(_) => Err(Error::from_errno(n as i32)),
        }
    }

    /// Address and number of the bytes, at most `len`, at `offset`.
    #[inline]
    fn span<T: Holder>(
        &self,
        held: &HeldDaxDevice<T>,
        offset: u64,
        len: u64,
    ) -> Result<(*mut ffi::c_void, usize)> {
        let in_page = offset as usize & !PAGE_MASK;
        let len = len.min(STEP) as usize;
        let pages = in_page.wrapping_add(len).wrapping_add(PAGE_SIZE - 1) >> PAGE_SHIFT;
        let found = self.look_up(held, offset, pages as isize).or_else(|_| {
            // A device of several ranges gives nothing across the border of two. Open saw that
            // they are multiples of 2 MiB.
            let rest = 512 - ((offset >> PAGE_SHIFT) & 511) as isize;
            self.look_up(held, offset, rest.min(pages as isize))
        })?;
        let reach = ((found.pages as usize) << PAGE_SHIFT).wrapping_sub(in_page);
        Ok((found.addr.wrapping_byte_add(in_page), len.min(reach)))
    }
}

impl Drop for DaxAccess {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: `id` came from `dax_read_lock` on this thread.
        unsafe { bindings::dax_read_unlock(self.id) };
    }
}
