// SPDX-License-Identifier: GPL-2.0-only

//! Faults on memory that fs/dax.c has prepared: its folios are inserted without asking it again.
//!
//! Why that is right, against each of what could take them away: docs/fault-path.md.
//!
//! C headers: `include/linux/huge_mm.h`, `include/linux/mm.h`, `include/linux/srcu.h`.

use core::{
    marker::PhantomData,
    ops::Range,
    ptr::NonNull, //
};

use kernel::{
    global_lock,
    mm::virt::{
        flags,
        VmaRef, //
    },
    page::PAGE_SHIFT,
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Relaxed,
        Release, //
    },
    types::NotThreadSafe,
};

use super::{
    atomic::read_once,
    bindings,
    fuse::FmapProvider,
    inode::{
        FileHead,
        FileRef,
        Slot, //
    },
};

/// Whether faults on a file may take the fast path; its accesses may have to ask the devices.
/// There is no way back from that.
pub(crate) struct Gate(Atomic<u32>);

/// Fast faults don't begin any more.
const SHUT: u32 = 1;
/// Nor is one under way.
const QUIET: u32 = 2;
const SUSPECT: u32 = 4;

global_lock! {
    // SAFETY: `init` is called before any other use.
    //
    // The state of the SRCU domain when a gate was shut last: when that grace period is over, no
    // fast fault is under way behind any gate that is shut. Gates are shut with it locked.
    unsafe(uninit) static SHUT_LAST: Mutex<usize> = 0;
}

/// Makes this file's lock usable.
///
/// # Safety
///
/// Called once, before anything else of this file.
pub(super) unsafe fn init() {
    // SAFETY: By the function's own requirement.
    unsafe { SHUT_LAST.init() };
}

impl Gate {
    pub(crate) fn new(open: bool) -> Self {
        Self(Atomic::new(if open { 0 } else { SHUT | QUIET }))
    }

    /// Makes every access ask the devices. One that found the file unsuspicious may still be under
    /// way, and whoever calls this waits for it or kills it.
    pub(crate) fn suspect(&self) {
        self.set(SHUT | SUSPECT);
    }

    /// The same, before anybody can fault on the file: nobody has to be waited for.
    pub(crate) fn suspect_unseen(&self) {
        self.0.store(SHUT | QUIET | SUSPECT, Release);
    }

    #[inline(always)]
    pub(crate) fn is_suspect(&self) -> bool {
        read_once(&self.0) & SUSPECT != 0
    }

    /// Lets no fast fault begin any more, and waits for those that have begun.
    pub(super) fn shut(&self) {
        if self.is_quiet() {
            return;
        }
        self.set(SHUT);
        let last = *SHUT_LAST.lock();
        // SAFETY: `last` is a state of the domain. The context may sleep, and is no fast fault.
        unsafe { bindings::famfs_fast_wait(last) };
        self.set(QUIET);
    }

    fn is_quiet(&self) -> bool {
        self.0.load(Acquire) & QUIET != 0
    }

    fn set(&self, bits: u32) {
        let mut last = SHUT_LAST.lock();
        let old = self.0.load(Relaxed);
        self.0.store(old | bits, Release);
        if old & SHUT == 0 {
            // SAFETY: No requirements. It orders the store before the look at the domain.
            *last = unsafe { bindings::famfs_fast_state() };
        }
    }
}

/// A part of a fast fault in which [`Gate::shut`] waits for it. It doesn't wait for an inode to be
/// evicted: that may wait for somebody who shuts a gate.
struct Section {
    id: usize,
    _not_send: NotThreadSafe,
}

impl Section {
    #[inline]
    fn enter() -> Self {
        Self {
            // SAFETY: No requirements.
            id: unsafe { bindings::famfs_fast_enter() },
            _not_send: NotThreadSafe,
        }
    }
}

impl Drop for Section {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: `id` came from `famfs_fast_enter` on this thread.
        unsafe { bindings::famfs_fast_leave(self.id) };
    }
}

/// A scope in which allocations don't reclaim inodes.
struct NoFs {
    flags: u32,
    _not_send: NotThreadSafe,
}

impl NoFs {
    #[inline]
    fn enter() -> Self {
        Self {
            // SAFETY: No requirements.
            flags: unsafe { bindings::famfs_nofs_enter() },
            _not_send: NotThreadSafe,
        }
    }
}

impl Drop for NoFs {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: `flags` came from `famfs_nofs_enter` on this thread, and scopes nest.
        unsafe { bindings::famfs_nofs_leave(self.flags) };
    }
}

/// A folio that fs/dax.c prepared.
///
/// # Invariants
///
/// Owns a reference to it.
struct Folio(NonNull<bindings::folio>);

impl Drop for Folio {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant, and `drop` runs once.
        unsafe { bindings::famfs_folio_put(self.0.as_ptr()) };
    }
}

/// The page frames of pages of a file.
///
/// # Invariants
///
/// Those from `first` on, one for each of `pages`, are memory of a live device as long as the
/// section.
struct Frames<'s> {
    first: usize,
    pages: Range<usize>,
    _section: PhantomData<&'s Section>,
}

/// Pages in a huge one.
const HUGE: usize = 1 << bindings::RUST_CONST_HELPER_PMD_ORDER;
/// Pages that one fault of a small one maps at most, as mm's own `fault_around_bytes` has it.
const AROUND: usize = 16;

/// A fault on a file that has a map. Offsets are in pages of the file.
struct Fault<'a, P: FmapProvider> {
    vma: &'a VmaRef,
    inode: NonNull<bindings::inode>,
    file: FileRef<'a, P::File>,
    pgoff: usize,
    address: usize,
}

impl<'a, P: FmapProvider> Fault<'a, P> {
    /// # Safety
    ///
    /// `vmf` is a fault, valid for `'a`, on a vma of a file whose inode has a map of `P`.
    #[inline]
    unsafe fn new(vmf: *mut bindings::vm_fault) -> Option<Self> {
        // SAFETY: By the function's own requirement. mm has the vma locked during the fault, the
        // vma keeps the file, the file the inode, and that its map.
        unsafe {
            let place = (*vmf).__bindgen_anon_1;
            let inode = NonNull::new((*(*place.vma).vm_file).f_inode)?;
            Some(Self {
                vma: VmaRef::from_raw(place.vma),
                inode,
                file: Slot::file(Slot::<P>::of(inode)?),
                pgoff: place.pgoff,
                address: place.address,
            })
        }
    }

    fn mapping(&self) -> *mut bindings::address_space {
        // SAFETY: The inode is valid, and its mapping never changes.
        unsafe { (*self.inode.as_ptr()).i_mapping }
    }

    /// The place allows a huge entry, and no copy ever breaks it up.
    #[inline]
    fn may_be_huge(&self) -> bool {
        const BYTES: usize = HUGE << PAGE_SHIFT;

        let start = self.address & !(BYTES - 1);
        (self.pgoff ^ (self.address >> PAGE_SHIFT)) & (HUGE - 1) == 0
            && start >= self.vma.start()
            && start.wrapping_add(BYTES) <= self.vma.end()
            && self.vma.flags() & bindings::RUST_CONST_HELPER_VM_MAYSHARE != 0
    }

    /// Entries may be marked before there is a page, to be told of stores. A marker would be taken
    /// for a page that is there, and its fault be had over and over.
    #[inline]
    fn is_marked(&self) -> bool {
        self.vma.flags() & bindings::RUST_CONST_HELPER_VM_UFFD_WP != 0
    }

    /// The memory behind the pages, as far as it is contiguous, if the file is beyond suspicion.
    #[inline(always)]
    fn memory<'s>(&self, _section: &'s Section, pages: Range<usize>) -> Option<Frames<'s>> {
        if !self.file.head.gate().is_open() {
            return None;
        }
        // The device is not asked for its state: it would be locked, and an open gate says it.
        let mapping = P::place(self.file, (pages.start as u64) << PAGE_SHIFT)?;
        let wanted = pages.end.wrapping_sub(pages.start);
        let count = (mapping.len >> PAGE_SHIFT).min(wanted as u64) as usize;
        // INVARIANT: The device stays alive as long as the section: what is called before it goes
        // shuts the gate, which was open in the section, and waits.
        Some(Frames {
            first: mapping.dev.pfn(mapping.offset, count)?,
            pages: pages.start..pages.start.wrapping_add(count),
            _section: PhantomData,
        })
    }

    /// The folio of that order at the file's page `index`, if it is all in `frames`, and fs/dax.c
    /// prepared it.
    #[inline]
    fn folio(&self, frames: &Frames<'_>, index: usize, order: u32) -> Option<Folio> {
        let Range { start, end } = frames.pages;
        if index < start || end.checked_sub(index)? < 1 << order {
            return None;
        }
        let pfn = frames.first.wrapping_add(index.wrapping_sub(start));
        // SAFETY: By the invariant of `frames`, there is memory, with its struct page.
        let folio = unsafe { bindings::famfs_dax_folio_get(pfn, self.mapping(), index, order) };
        // INVARIANT: A reference was taken.
        NonNull::new(folio).map(Folio)
    }

    /// The pages to look at around the fault; that of the fault alone where `madvise()` was told that
    /// accesses are random.
    #[inline]
    fn window(&self) -> Range<usize> {
        if self.vma.flags() & bindings::RUST_CONST_HELPER_VM_RAND_READ != 0 {
            return self.pgoff..self.pgoff.wrapping_add(1);
        }
        let to_start = self.address.wrapping_sub(self.vma.start()) >> PAGE_SHIFT;
        let to_end = self.vma.end().wrapping_sub(self.address) >> PAGE_SHIFT;
        let start = self.pgoff & !(AROUND - 1);
        let end = start.wrapping_add(AROUND);
        start.max(self.pgoff.wrapping_sub(to_start))..end.min(self.pgoff.wrapping_add(to_end))
    }
}

impl Gate {
    #[inline(always)]
    fn is_open(&self) -> bool {
        read_once(&self.0) == 0
    }
}

/// Maps 2 MiB around the fault, if that takes no more than filling an empty entry.
///
/// The entry is inserted as for a read: it allows what the vma does, and if another one is there
/// in spite of all, nothing happens.
///
/// # Safety
///
/// As for [`Fault::new`]; called by mm for a huge fault.
#[inline]
pub(super) unsafe fn huge<P: FmapProvider>(
    vmf: *mut bindings::vm_fault,
) -> Option<bindings::vm_fault_t> {
    // SAFETY: By the function's own requirement.
    let fault = unsafe { Fault::<P>::new(vmf) }?;
    // Looked at again in the section; a shut gate should cost nothing.
    if !fault.file.head.gate().is_open() || !fault.may_be_huge() {
        return None;
    }
    let section = Section::enter();
    let first = fault.pgoff & !(HUGE - 1);
    let frames = fault.memory(&section, first..first.wrapping_add(HUGE))?;
    let order = bindings::RUST_CONST_HELPER_PMD_ORDER;
    let folio = fault.folio(&frames, first, order)?;
    // SAFETY: As above.
    if !unsafe { bindings::famfs_pmd_is_none(vmf) } {
        return None;
    }
    // SAFETY: The fault is valid, and so is the folio.
    Some(unsafe { bindings::vmf_insert_folio_pmd(vmf, folio.0.as_ptr(), false) })
}

/// Maps the page of the fault, if it is one by itself, and those around it. If it says `None`,
/// fs/dax.c may insert a small page.
///
/// # Safety
///
/// As for [`Fault::new`]; called by mm for a fault.
#[inline]
pub(super) unsafe fn small<P: FmapProvider>(
    vmf: *mut bindings::vm_fault,
) -> Option<bindings::vm_fault_t> {
    // SAFETY: By the function's own requirement.
    let (fault, cow) = unsafe { (Fault::<P>::new(vmf)?, !(*vmf).cow_page.is_null()) };
    if !cow && !fault.is_marked() && fault.file.head.gate().is_open() {
        let section = Section::enter();
        let next = fault.pgoff.wrapping_add(1);
        if let Some(frames) = fault.memory(&section, fault.pgoff..next) {
            if let Some(folio) = fault.folio(&frames, fault.pgoff, 0) {
                // SAFETY: By the function's own requirement; the folio is that of `pgoff`.
                return Some(unsafe { fault.insert_around(vmf, &section, folio) });
            }
        }
    }
    fault.before_small();
    None
}

impl<P: FmapProvider> Fault<'_, P> {
    /// Maps the page of the fault, and those around it that are prepared. No huge entry can be
    /// there: the whole of it would be one folio.
    ///
    /// # Safety
    ///
    /// `vmf` is that of [`new`](Self::new), and `folio` that of its page.
    #[inline(never)]
    unsafe fn insert_around(
        &self,
        vmf: *mut bindings::vm_fault,
        section: &Section,
        folio: Folio,
    ) -> bindings::vm_fault_t {
        let _nofs = NoFs::enter();
        // SAFETY: By the function's own requirement. The folio is its own only page.
        let done =
            unsafe { bindings::vmf_insert_page_mkwrite(vmf, folio.0.as_ptr().cast(), false) };
        if done != bindings::vm_fault_reason_VM_FAULT_NOPAGE {
            return done;
        }
        let window = self.window();
        if window.len() <= 1 {
            return done;
        }
        let Some(frames) = self.memory(section, window) else {
            return done;
        };
        // SAFETY: By the function's own requirement.
        let mut near = unsafe { *vmf };
        for index in frames.pages.clone().filter(|index| *index != self.pgoff) {
            let distance = index.wrapping_sub(self.pgoff);
            if let Some(folio) = self.folio(&frames, index, 0) {
                near.__bindgen_anon_1.address = self.address.wrapping_add(distance << PAGE_SHIFT);
                // SAFETY: As above, for another address of the vma. What can't be mapped is left to
                // a fault of its own.
                unsafe {
                    bindings::vmf_insert_page_mkwrite(&mut near, folio.0.as_ptr().cast(), false)
                };
            }
        }
        done
    }

    /// Comes before fs/dax.c inserts a small page where a fast fault may be inserting a huge one,
    /// which would not wait for it: ends fast faults on the file.
    ///
    /// That happens where mm doesn't ask for huge pages, or the file is suspect. Where a part has
    /// been mapped by small pages already, there is no huge one.
    #[inline]
    fn before_small(&self) {
        let gate = self.file.head.gate();
        if self.may_be_huge()
            && self.vma.flags() & flags::NOHUGEPAGE == 0
            && !gate.is_quiet()
            && !self.has_small_entry()
        {
            gate.shut();
        }
    }

    /// fs/dax.c never makes a huge folio around the fault.
    #[cold]
    fn has_small_entry(&self) -> bool {
        let (first, last) = (self.pgoff & !(HUGE - 1), self.pgoff | (HUGE - 1));
        // SAFETY: The inode is valid; its size doesn't change any more.
        let size = unsafe { (*self.inode.as_ptr()).i_size } as u64;
        // SAFETY: The mapping is valid as long as the inode.
        (last as u64) << PAGE_SHIFT >= size
            || unsafe { bindings::famfs_has_small_entry(self.mapping(), first, last) }
    }
}
