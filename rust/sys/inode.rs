// SPDX-License-Identifier: GPL-2.0-only

//! Inodes that have a map, and how they get it.
//!
//! C headers: `include/linux/fs.h`, `include/linux/fuse_fmap.h` (patches/).

use core::{
    marker::PhantomData,
    ops::Range,
    ptr::{
        self,
        NonNull, //
    },
};

use kernel::{
    alloc::{
        flags::GFP_KERNEL_ACCOUNT,
        KVVec, //
    },
    error::to_result,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::Arc, //
};

use super::{
    bindings,
    dax::Failure,
    fast::Gate,
    fuse::FmapProvider,
    rmap::{
        Link,
        Rmap,
        Visit, //
    },
    tail::{
        Head,
        TailBox, //
    },
};

/// The part of a map that is not in the words behind it.
pub(crate) trait FileHead: Send + Sync {
    /// Number of words behind it. Never changes.
    fn words_len(&self) -> usize;

    /// What its faults ask whether they may be fast. Always the same one.
    fn gate(&self) -> &Gate;
}

/// A file's map: the head, and the words behind it.
pub(crate) struct FileRef<'a, F> {
    pub(crate) head: &'a F,
    pub(crate) words: &'a [u64],
}

impl<F> Clone for FileRef<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for FileRef<'_, F> {}

/// What `i_private` of an inode with a map points to.
#[repr(C)]
pub(crate) struct Slot<P: FmapProvider> {
    file: P::File,
    /// The inode's place in the reverse maps. They are looked at only when it is evicted.
    links: Option<KBox<KVVec<Link<P>>>>,
}

impl<P: FmapProvider> Head for Slot<P> {
    #[inline]
    fn tail_len(&self) -> usize {
        self.file.words_len()
    }
}

impl<P: FmapProvider> Slot<P> {
    /// The map of an inode, if it has one.
    ///
    /// # Safety
    ///
    /// `inode` is valid, and belongs to a connection of `P`.
    #[inline]
    pub(super) unsafe fn of(inode: NonNull<bindings::inode>) -> Option<NonNull<Self>> {
        // SAFETY: By the function's own requirement. `fuse_fmap_install()` publishes the pointer,
        // so it is read as a whole, and what it points to depends on it.
        let fmap = unsafe { ptr::read_volatile(&raw const (*inode.as_ptr()).i_private) };
        NonNull::new(fmap.cast())
    }

    /// # Safety
    ///
    /// `slot` came from [`of`](Self::of), and the inode stays for `'a`.
    #[inline]
    pub(super) unsafe fn file<'a>(slot: NonNull<Self>) -> FileRef<'a, P::File> {
        // SAFETY: `i_private` came from `TailBox::into_raw`, and what it points to stays as long
        // as the inode.
        unsafe {
            let head = &(*slot.as_ptr()).file;
            FileRef {
                head,
                words: TailBox::words(slot, head.words_len()),
            }
        }
    }
}

impl<P: FmapProvider> Slot<P> {
    /// Frees a map, the links first: through them it is found.
    ///
    /// # Safety
    ///
    /// `slot` came from [`TailBox::into_raw`], and what is found through the links apart nobody
    /// uses it.
    pub(super) unsafe fn free(slot: NonNull<Self>) {
        // SAFETY: By the function's own requirement; who finds it looks at the file alone.
        let links = unsafe { ptr::replace(&raw mut (*slot.as_ptr()).links, None) };
        drop(links);
        // SAFETY: By the function's own requirement, and now nobody finds it.
        drop(unsafe { TailBox::from_raw(slot) });
    }
}

/// An inode that is being opened.
pub(crate) struct OpenInode<'a, P> {
    inode: NonNull<bindings::inode>,
    nodeid: u64,
    _provider: PhantomData<&'a P>,
}

impl<P: FmapProvider> OpenInode<'_, P> {
    /// # Safety
    ///
    /// `inode` is valid for `'a`, belongs to a connection of `P`, and is being opened.
    pub(super) unsafe fn new(inode: NonNull<bindings::inode>, nodeid: u64) -> Self {
        Self {
            inode,
            nodeid,
            _provider: PhantomData,
        }
    }

    /// The number by which the server knows it.
    pub(crate) fn nodeid(&self) -> u64 {
        self.nodeid
    }

    pub(crate) fn ino(&self) -> u64 {
        // SAFETY: The inode is valid for the lifetime of `self`.
        unsafe { (*self.inode.as_ptr()).i_ino }
    }

    /// Sends a request to the server and returns the bytes of the reply, at most as many as `out`
    /// has. With `None` for `arg` the request has no argument, not even an empty one.
    pub(crate) fn request(
        &self,
        opcode: Opcode,
        nodeid: u64,
        arg: Option<&[u8]>,
        out: &mut [u8],
    ) -> Result<usize> {
        let arg = arg.unwrap_or(&[]);
        // SAFETY: The inode is valid, and so are both buffers for as many bytes as they have.
        let n = unsafe {
            bindings::fuse_fmap_request(
                self.inode.as_ptr(),
                opcode as u32,
                nodeid,
                arg.as_ptr().cast(),
                arg.len(),
                out.as_mut_ptr().cast(),
                out.len(),
            )
        };
        usize::try_from(n).map_err(|_| Error::from_errno(n as i32))
    }

    /// Gives the inode its map, of which it has none yet or this one is dropped, and its size in
    /// bytes. Before that it is entered into the reverse maps with its ranges of memory, where the
    /// flag marks the first in each map, and `last_look` is called when it can be found there.
    ///
    /// `EADDRINUSE` if another inode has memory in one of the ranges.
    pub(crate) fn install(
        &self,
        file: P::File,
        words: &[u64],
        size: u64,
        ranges: impl Iterator<Item = (Arc<Rmap<P>>, Range<u64>, bool)>,
        last_look: impl FnOnce(&P::File),
    ) -> Result {
        let size = i64::try_from(size).map_err(|_| EFBIG)?;
        let mut links = KVVec::new();
        for (map, range, head) in ranges {
            // SAFETY: The links become part of the map, which `evict` drops, links first, while
            // the inode is valid; or they are dropped here.
            let link = unsafe { Link::new(map, range, head, self.inode) }?;
            links.push(link, GFP_KERNEL_ACCOUNT)?;
        }
        last_look(&file);
        let slot = Slot {
            file,
            links: Some(KBox::new(links, GFP_KERNEL_ACCOUNT)?),
        };
        let slot = TailBox::new(slot, words, GFP_KERNEL_ACCOUNT)?.into_raw();
        // SAFETY: The inode is valid, and `evict` takes the map back.
        let err = to_result(unsafe {
            bindings::fuse_fmap_install(
                self.inode.as_ptr(),
                slot.as_ptr().cast(),
                size,
                const { &Aops::TABLE },
            )
        });
        if let Err(error) = err {
            // SAFETY: It was not installed, so it is still ours.
            unsafe { Slot::free(slot) };
            if error != EEXIST {
                return Err(error);
            }
        }
        Ok(())
    }
}

/// The requests that a provider may send.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Opcode {
    /// Answered with the map of the file `nodeid`.
    GetFmap = bindings::fuse_opcode_FUSE_GET_FMAP,
    /// Answered with the name of the device whose index is `nodeid`.
    GetDaxdev = bindings::fuse_opcode_FUSE_GET_DAXDEV,
}

/// What a holder of a device does to a file that is found through its reverse map.
impl<P: FmapProvider> Visit<'_, P> {
    /// The file's mapping; valid as long as `self`.
    fn mapping(&self) -> *mut bindings::address_space {
        // SAFETY: The inode is valid, and its mapping never changes.
        unsafe { (*self.inode().as_ptr()).i_mapping }
    }

    /// Waits for fast faults on the file, and ends them for good.
    fn end_fast_faults(&self) {
        // Without a map it can't be mapped.
        if let Some(file) = self.file() {
            file.head.gate().shut();
        }
    }

    /// Kills the processes that have the pages in `range`, in bytes of the file and not empty,
    /// mapped, as the failure demands, and unmaps the pages. Copies that a private mapping made of
    /// them stay.
    pub(crate) fn kill_procs(&self, range: Range<u64>, failure: Failure) -> Result {
        self.end_fast_faults();
        let first = range.start >> PAGE_SHIFT;
        let end = range.end.saturating_add(PAGE_SIZE as u64 - 1) >> PAGE_SHIFT;
        let pages = end.saturating_sub(first);
        // SAFETY: The inode and its mapping are valid.
        let result = to_result(unsafe {
            bindings::mf_dax_kill_procs(
                self.mapping(),
                first as usize,
                pages as usize,
                failure.flags(),
            )
        });
        // That unmaps what it found a process for that is to be told now. All others learn by a
        // fault.
        // SAFETY: As above.
        unsafe {
            bindings::unmap_mapping_range(
                self.mapping(),
                (first << PAGE_SHIFT) as i64,
                (pages << PAGE_SHIFT) as i64,
                0,
            )
        };
        result
    }

    /// Takes the pages in `range`, in bytes of the file and not empty, out of every address space.
    ///
    /// Faults in the range must fail by now; those that began before, in fs/dax.c, may still map
    /// their page.
    pub(crate) fn unmap(&self, range: &Range<u64>) {
        self.end_fast_faults();
        self.find_busy(range);
    }

    /// As [`unmap`](Self::unmap), and says whether a page there is in use.
    fn find_busy(&self, range: &Range<u64>) -> bool {
        let (first, last) = bounds(range);
        // SAFETY: The inode and its mapping are valid.
        !unsafe { bindings::dax_layout_busy_page_range(self.mapping(), first, last) }.is_null()
    }

    /// Takes the pages in `ranges`, in bytes of the file and none of them empty, out of every
    /// address space, and away from fs/dax.c; for all that a file has on a device, in one call.
    ///
    /// Not yet, while pages are pinned: their memory must not go. Then, and while the inode is being
    /// evicted, it returns after how many milliseconds to call it again, by another visit: this one
    /// must end, since others wait for it. When `pins` has lost its patience, whoever maps such
    /// pages is killed.
    ///
    /// Faults in the ranges must fail by now. If they don't, fs/dax.c warns, and the memory stays
    /// in use.
    pub(crate) fn break_layout(
        &self,
        ranges: impl Iterator<Item = Range<u64>>,
        pins: &mut Pins,
    ) -> Option<u32> {
        self.end_fast_faults();
        let kill = pins.waited >= pins.patience;
        let (mut busy, mut killed) = (false, 0u32);
        for range in ranges {
            if !self.try_break_layout(&range) {
                busy = true;
                if kill {
                    killed = killed.saturating_add(self.kill_mappers(&range));
                }
            }
        }
        // SAFETY: The inode is valid.
        let ino = unsafe { (*self.inode().as_ptr()).i_ino };
        if busy {
            if kill {
                let seconds = pins.waited / 1000;
                pr_warn!("inode {ino}: pages are pinned for {seconds} s, so their device can't go; processes killed: {killed}\n");
                pins.patience = pins.waited.saturating_mul(2);
            }
            return Some(pins.pause());
        }
        // Patience is lost once for all files; who can't be killed here is no reason to spare who
        // pins the next one.
        pins.patience = Pins::PATIENCE;
        // Who evicts the inode may have found a pinned page before, here or on another device, and
        // looks at it once more before he gives up the inode's place in the reverse map.
        // SAFETY: The inode is valid.
        if unsafe { bindings::famfs_inode_is_freeing(self.inode().as_ptr()) } {
            pins.evicting = pins.evicting.saturating_add(Pins::EVICTION_PAUSE);
            if pins.evicting == Pins::PATIENCE {
                pr_warn!("inode {ino}: it is being evicted, which may wait for a pinned page; till then its devices can't go\n");
            }
            return Some(Pins::EVICTION_PAUSE);
        }
        None
    }

    /// Whether that was done, and no page was in use.
    fn try_break_layout(&self, range: &Range<u64>) -> bool {
        let (first, last) = bounds(range);
        // A fault that began before may still insert its page, with the entry locked: the walk of
        // `find_busy` waits for such locks. Only then is it true that no page gets mapped any more,
        // which is what the next step relies on.
        // SAFETY: The inode is valid; without a callback this doesn't wait.
        !self.find_busy(range)
            && unsafe { bindings::dax_break_layout(self.inode().as_ptr(), first, last, None) } == 0
    }

    /// Kills the processes that have a byte of `range` mapped, and says how many: most pins end
    /// with who made them.
    fn kill_mappers(&self, range: &Range<u64>) -> u32 {
        let (first, last) = bounds(range);
        let first = (first >> PAGE_SHIFT) as usize;
        let last = (last >> PAGE_SHIFT) as usize;
        // SAFETY: The inode and its mapping are valid.
        unsafe { bindings::famfs_kill_mappers(self.mapping(), first, last) }
    }
}

/// First and last byte of a range that is not empty.
fn bounds(range: &Range<u64>) -> (i64, i64) {
    (range.start as i64, range.end.saturating_sub(1) as i64)
}

/// Waiting for pages that somebody pinned, by O_DIRECT, io_uring or a pipe. In milliseconds.
pub(crate) struct Pins {
    waited: u32,
    /// When somebody is killed next.
    patience: u32,
    /// Waited for who evicts inodes.
    evicting: u32,
}

impl Pins {
    const PATIENCE: u32 = 10_000;
    /// Divides it.
    const EVICTION_PAUSE: u32 = 100;

    pub(crate) fn new() -> Self {
        Self {
            waited: 0,
            patience: Self::PATIENCE,
            evicting: 0,
        }
    }

    /// How long to wait next.
    fn pause(&mut self) -> u32 {
        let pause = self.waited.clamp(1, 100);
        self.waited = self.waited.saturating_add(pause);
        pause
    }
}

/// Sleeps for some milliseconds.
pub(crate) fn ms_sleep(ms: u32) {
    // SAFETY: No requirements; callers of anything here may sleep.
    unsafe { bindings::msleep(ms) };
}

/// The operations of a mapping with DAX entries.
struct Aops;

impl Aops {
    /// What is stored to a mapping is where it belongs: there is no writeback.
    const TABLE: bindings::address_space_operations = bindings::address_space_operations {
        dirty_folio: Some(bindings::noop_dirty_folio),
        ..pin_init::zeroed()
    };
}
