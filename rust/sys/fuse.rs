// SPDX-License-Identifier: GPL-2.0-only

//! Being the provider of file maps for fs/fuse, and the inodes that have one.
//!
//! C header: `include/linux/fuse_fmap.h` (patches/).

use core::{
    marker::{
        PhantomData,
        PhantomPinned, //
    },
    ptr::NonNull, //
};

use kernel::{
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
    types::ForeignOwnable, //
};

use super::{
    bindings,
    dax::Holder,
    inode::{
        FileHead,
        FileRef,
        OpenInode,
        Slot, //
    },
    iomap::{
        IomapTable,
        Mapping, //
    },
    vm::VmTable, //
};

/// The device number of a mount.
#[derive(Clone, Copy)]
pub(crate) struct DevT(bindings::dev_t);

impl DevT {
    pub(super) fn is(self, dev: bindings::dev_t) -> bool {
        self.0 == dev
    }

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

    /// The memory behind a file from byte `pos` on, for a fault, where finding it is quick. The hot
    /// path: inline, and without calls. `None` leaves it to [`map`](Self::map).
    fn map_quickly(file: FileRef<'_, Self::File>, pos: u64) -> Option<Mapping<'_, Self::Holder>>;

    /// The same in all cases, or why it can't be had.
    fn map(file: FileRef<'_, Self::File>, pos: u64) -> Result<Mapping<'_, Self::Holder>>;

    /// The memory behind a file from byte `pos` on, in whatever state it is. Waits for nobody.
    fn place(file: FileRef<'_, Self::File>, pos: u64) -> Option<Mapping<'_, Self::Holder>>;

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
        unsafe { bindings::fuse_fmap_unregister() };
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
            // SAFETY: By the function's own requirement.
            let inode = unsafe { OpenInode::new(NonNull::new(inode).ok_or(EINVAL)?, nodeid) };
            // SAFETY: As above.
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
        if let Some(slot) = NonNull::new(fmap.cast::<Slot<P>>()) {
            // SAFETY: It came from `install`, and the inode is valid until this returns.
            unsafe { Slot::free(slot) };
        }
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
