// SPDX-License-Identifier: GPL-2.0-only

//! Faults on mappings of files that have a map.
//!
//! C headers: `include/linux/mm.h`, `include/linux/dax.h`.

use core::{
    marker::PhantomData,
    ptr, //
};

use kernel::ffi;

use super::{
    bindings,
    fast,
    fuse::FmapProvider,
    iomap::IomapTable, //
};

pub(super) struct VmTable<P>(PhantomData<P>);

impl<P: FmapProvider> VmTable<P> {
    /// No `page_mkwrite`: nobody needs to know what is dirty, so entries of shared mappings are
    /// writable from the start.
    const OPS: bindings::vm_operations_struct = bindings::vm_operations_struct {
        fault: Some(Self::fault),
        huge_fault: Some(Self::huge_fault),
        map_pages: Some(Self::map_pages),
        ..pin_init::zeroed()
    };

    /// Makes the vma one of this table, with huge entries where its alignment allows them.
    ///
    /// # Safety
    ///
    /// `vma` is being set up by `mmap()`, for a file whose inode has a map of `P`.
    pub(super) unsafe fn mmap(vma: *mut bindings::vm_area_struct) {
        // SAFETY: Nobody else uses the vma yet, by the function's own requirement.
        unsafe {
            (*vma).vm_ops = const { &Self::OPS };
            bindings::famfs_vma_set_hugepage(vma);
        }
    }

    /// # Safety
    ///
    /// Called by mm with a fault on a vma that [`mmap`](Self::mmap) set up.
    unsafe extern "C" fn fault(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: By the function's own requirement; the inode has a map.
        unsafe { fast::small::<P>(vmf).unwrap_or_else(|| Self::dax_fault(vmf, 0)) }
    }

    /// Maps nothing around a fault; the function for page caches would look for folios there are
    /// none of. But that there is one tells mm that `fault` does with the lock of the vma, and
    /// needs no `mmap_lock`.
    ///
    /// # Safety
    ///
    /// As for [`fault`](Self::fault).
    unsafe extern "C" fn map_pages(
        _vmf: *mut bindings::vm_fault,
        _start: ffi::c_ulong,
        _end: ffi::c_ulong,
    ) -> bindings::vm_fault_t {
        0
    }

    /// # Safety
    ///
    /// As for [`fault`](Self::fault).
    unsafe extern "C" fn huge_fault(
        vmf: *mut bindings::vm_fault,
        order: ffi::c_uint,
    ) -> bindings::vm_fault_t {
        let mut done = None;
        if order == bindings::RUST_CONST_HELPER_PMD_ORDER {
            // SAFETY: As for `fault`.
            done = unsafe { fast::huge::<P>(vmf) };
        }
        // SAFETY: As above.
        done.unwrap_or_else(|| unsafe { Self::dax_fault(vmf, order) })
    }

    /// The ordinary path, which is the only one for memory that is new, and for copies.
    ///
    /// # Safety
    ///
    /// As for [`fault`](Self::fault).
    unsafe fn dax_fault(vmf: *mut bindings::vm_fault, order: ffi::c_uint) -> bindings::vm_fault_t {
        // No lock against truncation is needed, since there is none. The pfn is for `MAP_SYNC`,
        // which fuse doesn't support.
        // SAFETY: By the function's own requirement the fault is valid and its inode has a map.
        unsafe {
            bindings::dax_iomap_fault(
                vmf,
                order,
                ptr::null_mut(),
                ptr::null_mut(),
                const { &IomapTable::<P>::OPS },
            )
        }
    }
}
