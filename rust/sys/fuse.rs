// SPDX-License-Identifier: GPL-2.0-only

//! Being the provider of file maps for fs/fuse, and the inodes that have one.
//!
//! C header: `include/linux/fuse_fmap.h` (patches/).

use core::{
    marker::{
        PhantomData,
        PhantomPinned, //
    },
    ops::Range,
    ptr::{
        self,
        NonNull, //
    },
};

use kernel::{
    alloc::flags::GFP_KERNEL,
    error::{
        from_result,
        to_result, //
    },
    ffi,
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    prelude::*,
    sync::Arc,
    types::ForeignOwnable,
};

use super::{
    bindings,
    dax::{
        Failure,
        Holder, //
    },
    iomap::{
        IomapTable,
        Mapping, //
    },
    rmap::{
        Link,
        Rmap, //
    },
    tail::{
        Head,
        TailBox, //
    },
    vm::VmTable,
};

/// The device number of a mount.
#[derive(Clone, Copy)]
pub(crate) struct DevT(bindings::dev_t);

impl DevT {
    pub(crate) fn major(self) -> u32 {
        self.0 >> bindings::RUST_CONST_HELPER_MINORBITS
    }

    pub(crate) fn minor(self) -> u32 {
        self.0 & ((1 << bindings::RUST_CONST_HELPER_MINORBITS) - 1)
    }

    /// Prints one rate-limited warning about an inode of this mount.
    pub(crate) fn warn(self, ino: u64, text: &CStr) {
        // SAFETY: `text` is a valid string.
        unsafe { bindings::famfs_warn(self.0, ino, text.as_char_ptr()) };
    }
}

/// The part of a map that is not in the words behind it.
pub(crate) trait FileHead: Send + Sync {
    /// Number of words behind it. Never changes.
    fn words_len(&self) -> usize;
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

/// What a provider of file maps implements. See `struct fuse_fmap_ops` for when each is called.
pub(crate) trait FmapProvider: Sized + Send + Sync + 'static {
    /// What belongs to a connection.
    type Conn: ForeignOwnable + Send + Sync;
    /// The head of a file's map.
    type File: FileHead;
    /// Who holds the devices that maps lead to.
    type Holder: Holder + 'static;

    /// A server accepted `FUSE_DAX_FMAP`.
    fn conn_init(dev: DevT) -> Result<Self::Conn>;

    /// Makes [`OpenInode::install`] happen, or says why not. May sleep and send requests; may run
    /// more than once at a time for one inode.
    fn open(
        conn: <Self::Conn as ForeignOwnable>::Borrowed<'_>,
        inode: &OpenInode<'_, Self>,
    ) -> Result;

    /// The server offers the device of its descriptor `fd` under `index`.
    fn daxdev_open(
        conn: <Self::Conn as ForeignOwnable>::Borrowed<'_>,
        fd: i32,
        flags: u32,
        index: u64,
    ) -> Result;

    /// The memory behind a file from byte `pos` on, for a fault. The hot path.
    fn map(file: FileRef<'_, Self::File>, pos: u64) -> Result<Mapping<'_, Self::Holder>>;

    /// Reads from `pos` on into `iter`, and returns how many bytes.
    fn read(file: FileRef<'_, Self::File>, pos: u64, iter: &mut IovIterDest<'_>) -> Result<usize>;

    /// Writes at most `len` bytes from `iter` from `pos` on, and returns how many.
    fn write(
        file: FileRef<'_, Self::File>,
        pos: u64,
        len: usize,
        iter: &mut IovIterSource<'_>,
    ) -> Result<usize>;
}

/// What `i_private` of an inode with a map points to.
#[repr(C)]
pub(crate) struct Slot<P: FmapProvider> {
    file: P::File,
    /// The inode's place in the reverse maps. They are looked at only when it is evicted.
    links: Option<KBox<KVec<Link<P>>>>,
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
            FileRef {
                head: &(*slot.as_ptr()).file,
                words: TailBox::words(slot),
            }
        }
    }

    /// The head of the map.
    pub(crate) fn head(&self) -> &P::File {
        &self.file
    }
}

/// An inode that is being opened.
pub(crate) struct OpenInode<'a, P> {
    inode: NonNull<bindings::inode>,
    nodeid: u64,
    _provider: PhantomData<&'a P>,
}

impl<P: FmapProvider> OpenInode<'_, P> {
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
    /// bytes; enters it into the reverse maps in `spans`.
    pub(crate) fn install(
        &self,
        file: P::File,
        words: &[u64],
        size: u64,
        spans: impl Iterator<Item = (Arc<Rmap<P>>, Range<u64>)>,
    ) -> Result {
        let size = i64::try_from(size).map_err(|_| EFBIG)?;
        let mut links = KVec::new();
        for (map, range) in spans {
            // SAFETY: The links become part of the map, which `evict` drops, links first, while
            // the inode is valid; or they are dropped here.
            links.push(unsafe { Link::new(map, range, self.inode) }?, GFP_KERNEL)?;
        }
        let slot = Slot {
            file,
            links: Some(KBox::new(links, GFP_KERNEL)?),
        };
        let slot = TailBox::new(slot, words, GFP_KERNEL)?.into_raw();
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
            drop(unsafe { TailBox::from_raw(slot) });
            if error != EEXIST {
                return Err(error);
            }
        }
        Ok(())
    }

    /// The map that is installed.
    pub(crate) fn file(&self) -> Option<FileRef<'_, P::File>> {
        // SAFETY: The inode is valid for the lifetime of `self`.
        unsafe { Slot::<P>::of(self.inode).map(|slot| Slot::file(slot)) }
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

/// A reference to an inode that is in a reverse map.
///
/// # Invariants
///
/// Owns a reference, which `iput()` drops.
pub(crate) struct InodeRef<P: FmapProvider> {
    inode: NonNull<bindings::inode>,
    _provider: PhantomData<P>,
}

impl<P: FmapProvider> InodeRef<P> {
    /// # Safety
    ///
    /// `inode` is valid, though it may be on its way out, and belongs to a connection of `P`.
    pub(super) unsafe fn grab(inode: NonNull<bindings::inode>) -> Option<Self> {
        // SAFETY: By the function's own requirement.
        let inode = NonNull::new(unsafe { bindings::igrab(inode.as_ptr()) })?;
        // INVARIANT: `igrab` took a reference.
        Some(Self {
            inode,
            _provider: PhantomData,
        })
    }

    /// Its map; it has none before the end of its first open.
    pub(crate) fn file(&self) -> Option<FileRef<'_, P::File>> {
        // SAFETY: By the type invariant.
        unsafe { Slot::<P>::of(self.inode).map(|slot| Slot::file(slot)) }
    }

    /// Kills the processes that have the pages in `range`, in bytes of the file, mapped, as the
    /// failure demands, and unmaps the pages.
    pub(crate) fn kill_procs(&self, range: Range<u64>, failure: Failure) -> Result {
        let first = range.start >> bindings::PAGE_SHIFT;
        let pages = range.end.saturating_sub(range.start) >> bindings::PAGE_SHIFT;
        // SAFETY: By the type invariant the inode and its mapping are valid.
        to_result(unsafe {
            bindings::mf_dax_kill_procs(
                (*self.inode.as_ptr()).i_mapping,
                first as usize,
                pages as usize,
                failure.flags(),
            )
        })
    }

    /// Takes every page of the file out of every address space, and away from fs/dax.c. Waits for
    /// pages that are pinned. Faults must fail by now.
    pub(crate) fn break_layout(&self) {
        // SAFETY: By the type invariant the inode and its mapping are valid.
        unsafe {
            let mapping = (*self.inode.as_ptr()).i_mapping;
            // A fault that began before may still insert its page, with the entry locked: this
            // walk waits for such locks. Only then is it true that no page gets mapped any more,
            // which is what the function below relies on.
            while !bindings::dax_layout_busy_page(mapping).is_null() {
                bindings::msleep(1);
            }
            bindings::dax_break_layout_final(self.inode.as_ptr());
        }
    }
}

impl<P: FmapProvider> Drop for InodeRef<P> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, and `drop` runs once.
        unsafe { bindings::iput(self.inode.as_ptr()) };
    }
}

struct Aops;

impl Aops {
    /// What is stored to a mapping is where it belongs: there is no writeback.
    const TABLE: bindings::address_space_operations = bindings::address_space_operations {
        dirty_folio: Some(bindings::noop_dirty_folio),
        ..pin_init::zeroed()
    };
}

/// Being the provider; dropping it ends that.
///
/// # Invariants
///
/// `ops` is registered.
#[pin_data(PinnedDrop)]
pub(crate) struct Registration<P: FmapProvider> {
    ops: bindings::fuse_fmap_ops,
    #[pin]
    _pin: PhantomPinned,
    _provider: PhantomData<P>,
}

// SAFETY: A registration has no methods, and may be ended from any thread.
unsafe impl<P: FmapProvider> Send for Registration<P> {}
// SAFETY: A registration has no methods.
unsafe impl<P: FmapProvider> Sync for Registration<P> {}

impl<P: FmapProvider> Registration<P> {
    /// Becomes the provider. `EBUSY` if there is one.
    pub(crate) fn new(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(&this in Self {
            ops: ProviderTable::<P>::build(module),
            _pin: PhantomPinned,
            _provider: PhantomData,
            _: {
                // INVARIANT: The last step; `ops` is in its place and stays there.
                // SAFETY: `ops` is valid until it is unregistered, when `self` is dropped.
                to_result(unsafe {
                    bindings::fuse_fmap_register(&raw const (*this.as_ptr()).ops)
                })?
            },
        })
    }
}

#[pinned_drop]
impl<P: FmapProvider> PinnedDrop for Registration<P> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant.
        unsafe { bindings::fuse_fmap_unregister(&self.ops) };
    }
}

struct ProviderTable<P>(PhantomData<P>);

impl<P: FmapProvider> ProviderTable<P> {
    fn build(module: &'static ThisModule) -> bindings::fuse_fmap_ops {
        bindings::fuse_fmap_ops {
            owner: module.as_ptr(),
            conn_init: Some(Self::conn_init),
            conn_free: Some(Self::conn_free),
            open: Some(Self::open),
            evict: Some(Self::evict),
            daxdev_open: Some(Self::daxdev_open),
            read_iter: Some(Self::read_iter),
            write_iter: Some(Self::write_iter),
            mmap: Some(Self::mmap),
            fiemap: Some(Self::fiemap),
        }
    }

    /// # Safety
    ///
    /// Called by fs/fuse.
    unsafe extern "C" fn conn_init(dev: bindings::dev_t) -> *mut ffi::c_void {
        match P::conn_init(DevT(dev)) {
            Ok(conn) => conn.into_foreign(),
            Err(error) => error.to_ptr(),
        }
    }

    /// # Safety
    ///
    /// Called by fs/fuse, once for what `conn_init` returned and after everything else with it.
    unsafe extern "C" fn conn_free(conn: *mut ffi::c_void) {
        // SAFETY: It came from `into_foreign`, by the function's own requirement.
        drop(unsafe { P::Conn::from_foreign(conn) });
    }

    /// # Safety
    ///
    /// Called by fs/fuse with what `conn_init` returned and an inode of that connection.
    unsafe extern "C" fn open(
        conn: *mut ffi::c_void,
        inode: *mut bindings::inode,
        nodeid: u64,
    ) -> ffi::c_int {
        from_result(|| {
            let inode = OpenInode {
                inode: NonNull::new(inode).ok_or(EINVAL)?,
                nodeid,
                _provider: PhantomData,
            };
            // SAFETY: By the function's own requirement.
            P::open(unsafe { P::Conn::borrow(conn) }, &inode)?;
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// Called by fs/fuse with an inode that nobody uses any more and the map that `install` gave
    /// it.
    unsafe extern "C" fn evict(
        _conn: *mut ffi::c_void,
        _inode: *mut bindings::inode,
        fmap: *mut ffi::c_void,
    ) {
        let Some(slot) = NonNull::new(fmap.cast::<Slot<P>>()) else {
            return;
        };
        // The links first: through them the map is found.
        // SAFETY: By the function's own requirement, what is found through the links apart, nobody
        // looks at the map; and those that do never look at its links.
        drop(unsafe { (*slot.as_ptr()).links.take() });
        // SAFETY: It came from `TailBox::into_raw`, and nobody uses it any more.
        drop(unsafe { TailBox::from_raw(slot) });
    }

    /// # Safety
    ///
    /// Called by fs/fuse with what `conn_init` returned and a valid `map`.
    unsafe extern "C" fn daxdev_open(
        conn: *mut ffi::c_void,
        map: *const bindings::fuse_backing_map,
    ) -> ffi::c_int {
        from_result(|| {
            // SAFETY: By the function's own requirement.
            let (conn, map) = unsafe { (P::Conn::borrow(conn), &*map) };
            P::daxdev_open(conn, map.fd, map.flags, map.padding)?;
            Ok(0)
        })
    }

    /// The map of an open file.
    ///
    /// # Safety
    ///
    /// `file` is valid for `'a`.
    #[inline]
    unsafe fn file<'a>(file: *mut bindings::file) -> Result<FileRef<'a, P::File>> {
        // SAFETY: An open file has an inode and keeps it.
        unsafe {
            let inode = NonNull::new((*file).f_inode).ok_or(EIO)?;
            Slot::<P>::of(inode).map(|slot| Slot::file(slot)).ok_or(EIO)
        }
    }

    /// # Safety
    ///
    /// Called by fs/fuse with valid arguments, for a file whose inode has a map.
    unsafe extern "C" fn read_iter(
        iocb: *mut bindings::kiocb,
        iter: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: By the function's own requirement.
        let (file, pos, iter) = unsafe {
            (
                Self::file((*iocb).ki_filp),
                (*iocb).ki_pos,
                IovIterDest::from_raw(iter),
            )
        };
        let read = file.and_then(|file| P::read(file, u64::try_from(pos)?, iter));
        // SAFETY: As above.
        unsafe { Self::finish(iocb, read) }
    }

    /// # Safety
    ///
    /// As for [`read_iter`](Self::read_iter).
    unsafe extern "C" fn write_iter(
        iocb: *mut bindings::kiocb,
        iter: *mut bindings::iov_iter,
    ) -> isize {
        // Appending, the limits of the process and those of files.
        // SAFETY: By the function's own requirement.
        let len = unsafe { bindings::generic_write_checks(iocb, iter) };
        let Some(len) = usize::try_from(len).ok().filter(|len| *len != 0) else {
            return len;
        };
        // SAFETY: By the function's own requirement.
        let (file, pos, iter) = unsafe {
            (
                Self::file((*iocb).ki_filp),
                (*iocb).ki_pos,
                IovIterSource::from_raw(iter),
            )
        };
        let written = file.and_then(|file| P::write(file, u64::try_from(pos)?, len, iter));
        // SAFETY: As above.
        unsafe { Self::finish(iocb, written) }
    }

    /// Moves the position on and turns the result into C's.
    ///
    /// # Safety
    ///
    /// `iocb` is valid.
    #[inline]
    unsafe fn finish(iocb: *mut bindings::kiocb, done: Result<usize>) -> isize {
        match done {
            Ok(n) => {
                // SAFETY: By the function's own requirement.
                unsafe { (*iocb).ki_pos = (*iocb).ki_pos.wrapping_add(n as i64) };
                n as isize
            }
            Err(error) => error.to_errno() as isize,
        }
    }

    /// # Safety
    ///
    /// Called by fs/fuse from `mmap()`, for a file whose inode has a map.
    unsafe extern "C" fn mmap(
        _file: *mut bindings::file,
        vma: *mut bindings::vm_area_struct,
    ) -> ffi::c_int {
        // SAFETY: By the function's own requirement.
        unsafe { VmTable::<P>::mmap(vma) };
        0
    }

    /// # Safety
    ///
    /// Called by fs/fuse with valid arguments, for an inode that has a map.
    unsafe extern "C" fn fiemap(
        inode: *mut bindings::inode,
        info: *mut bindings::fiemap_extent_info,
        start: u64,
        len: u64,
    ) -> ffi::c_int {
        // SAFETY: By the function's own requirement.
        unsafe { bindings::iomap_fiemap(inode, info, start, len, const { &IomapTable::<P>::OPS }) }
    }
}
