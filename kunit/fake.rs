// SPDX-License-Identifier: GPL-2.0-only

//! Safe wrappers for fake.c: dax devices, and fs/fuse with a server behind it.

use core::ptr::NonNull;

use kernel::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    ffi::{
        c_int,
        c_void, //
    },
    prelude::*,
    types::{
        ForeignOwnable,
        NotThreadSafe, //
    },
};

use crate::{
    file::FileMap,
    mount,
    provider::Famfs,
    sys::{
        dax::DaxDevice,
        iomap::IomapTable, //
    },
    tail::{
        Head,
        TailBox, //
    },
};

/// `MF_ACTION_REQUIRED`, which a CPU that has hit poison asks for.
pub(crate) const POISON: i32 = bindings::mf_flags_MF_ACTION_REQUIRED as i32;
/// `MF_MEM_PRE_REMOVE`.
pub(crate) const REMOVAL: i32 = bindings::mf_flags_MF_MEM_PRE_REMOVE as i32;

unsafe extern "C" {
    fn famfs_fake_dax_new(bytes: u64, fsdev: bool) -> *mut c_void;
    fn famfs_fake_dax_free(dax: *mut c_void);
    fn famfs_fake_dax_kill(dax: *mut c_void);
    fn famfs_fake_dax_mark(dax: *mut c_void, offset: u64);
    fn famfs_fake_dax_is_marked(dax: *mut c_void, offset: u64) -> bool;
    fn famfs_fake_dax_is_held(dax: *mut c_void) -> bool;
    fn famfs_fake_dax_fail(dax: *mut c_void, offset: u64, len: u64, flags: c_int) -> c_int;
    fn famfs_fake_dax_fail_on_access(dax: *mut c_void, offset: u64, len: u64, flags: c_int);
    fn famfs_fake_dax_lock(dax: *mut c_void);
    fn famfs_fake_dax_unlock(dax: *mut c_void);
    fn famfs_fake_fd(dax: *mut c_void) -> c_int;
    fn famfs_fake_close(fd: c_int);
    safe fn famfs_fake_root_dev() -> u32;
    fn famfs_fake_conn_new(dev: u32) -> *mut c_void;
    fn famfs_fake_conn_free(conn: *mut c_void);
    fn famfs_fake_daxdev_open(conn: *mut c_void, fd: c_int, flags: u32, index: u64) -> c_int;
    fn famfs_fake_file_new() -> *mut c_void;
    fn famfs_fake_file_free(file: *mut c_void);
    fn famfs_fake_open(conn: *mut c_void, file: *mut c_void, nodeid: u64) -> c_int;
    fn famfs_fake_evict(file: *mut c_void);
    fn famfs_fake_inode(file: *mut c_void) -> *mut c_void;
    fn famfs_fake_fmap(file: *mut c_void) -> *mut c_void;
    fn famfs_fake_size(file: *mut c_void) -> i64;
    fn famfs_fake_users(file: *mut c_void) -> c_int;
    fn famfs_fake_rw(file: *mut c_void, pos: i64, buf: *mut u8, len: usize, write: bool) -> isize;
    fn famfs_fake_cost(begin: *mut c_void, file: *mut c_void, pos: i64) -> u32;
    fn famfs_fake_fiemap(file: *mut c_void, start: u64, len: u64) -> c_int;
    safe fn famfs_fake_install_lock();
    fn famfs_fake_install_unlock(error: c_int);
    fn famfs_fake_serve(
        fmap: *const u8,
        fmap_len: usize,
        daxdev: *const u8,
        daxdev_len: usize,
        error: c_int,
    );
    safe fn famfs_fake_fmaps_asked() -> u32;
    safe fn famfs_fake_daxdevs_asked() -> u32;
    safe fn famfs_fake_last_daxdev() -> u64;
}

/// A dax device, and the one reference that its driver has.
pub(crate) struct Dax(NonNull<c_void>);

// SAFETY: What is done to it locks what it changes.
unsafe impl Send for Dax {}
// SAFETY: As above.
unsafe impl Sync for Dax {}

impl Dax {
    /// In fsdev mode, with zeroed memory.
    pub(crate) fn new(bytes: u64) -> Result<Self> {
        Self::bound(bytes, true)
    }

    /// In devdax mode.
    pub(crate) fn devdax(bytes: u64) -> Result<Self> {
        Self::bound(bytes, false)
    }

    fn bound(bytes: u64, fsdev: bool) -> Result<Self> {
        // SAFETY: No requirements.
        let dax = unsafe { famfs_fake_dax_new(bytes, fsdev) };
        NonNull::new(dax).map(Self).ok_or(ENOMEM)
    }

    /// A descriptor of its character device.
    pub(crate) fn fd(&self) -> Result<Fd> {
        Fd::new(self.0.as_ptr())
    }

    pub(crate) fn device(&self) -> Result<DaxDevice> {
        DaxDevice::by_fd(self.fd()?.number() as u32)
    }

    pub(crate) fn is_held(&self) -> bool {
        // SAFETY: `self` keeps the device.
        unsafe { famfs_fake_dax_is_held(self.0.as_ptr()) }
    }

    /// Marks the page at `offset`, which the device has, as poisoned.
    pub(crate) fn mark(&self, offset: u64) {
        // SAFETY: `self` keeps the device and its pages.
        unsafe { famfs_fake_dax_mark(self.0.as_ptr(), offset) };
    }

    /// Whether the page at `offset`, which the device has, is marked as poisoned.
    pub(crate) fn is_marked(&self, offset: u64) -> bool {
        // SAFETY: `self` keeps the device and its pages.
        unsafe { famfs_fake_dax_is_marked(self.0.as_ptr(), offset) }
    }

    /// Notifies the holder, and returns what it says. `flags`: `enum mf_flags`.
    pub(crate) fn fail(&self, offset: u64, len: u64, flags: i32) -> Result {
        // SAFETY: `self` keeps the device.
        to_result(unsafe { famfs_fake_dax_fail(self.0.as_ptr(), offset, len, flags) })
    }

    /// Notifies the holder when it looks up memory next, before it gets an answer.
    pub(crate) fn fail_on_access(&self, offset: u64, len: u64, flags: i32) {
        // SAFETY: `self` keeps the device.
        unsafe { famfs_fake_dax_fail_on_access(self.0.as_ptr(), offset, len, flags) };
    }

    /// The driver goes away.
    pub(crate) fn kill(&self) {
        // SAFETY: `self` keeps the device.
        unsafe { famfs_fake_dax_kill(self.0.as_ptr()) };
    }

    /// Takes the lock that the driver core holds while it binds and unbinds.
    pub(crate) fn lock(&self) -> DaxLock<'_> {
        // SAFETY: `self` keeps the device.
        unsafe { famfs_fake_dax_lock(self.0.as_ptr()) };
        DaxLock(self)
    }
}

impl Drop for Dax {
    fn drop(&mut self) {
        // SAFETY: It came from `famfs_fake_dax_new`, and `drop` runs once.
        unsafe { famfs_fake_dax_free(self.0.as_ptr()) };
    }
}

/// A locked device.
pub(crate) struct DaxLock<'a>(&'a Dax);

impl Drop for DaxLock<'_> {
    fn drop(&mut self) {
        // SAFETY: The lock was taken with this value, by the same thread.
        unsafe { famfs_fake_dax_unlock(self.0 .0.as_ptr()) };
    }
}

/// An open descriptor of a character device.
pub(crate) struct Fd(c_int);

impl Fd {
    /// Of a device that is not a dax device.
    pub(crate) fn null() -> Result<Self> {
        Self::new(core::ptr::null_mut())
    }

    fn new(dax: *mut c_void) -> Result<Self> {
        // SAFETY: `dax` is null or a device that the caller keeps.
        let fd = unsafe { famfs_fake_fd(dax) };
        to_result(fd.min(0))?;
        Ok(Self(fd))
    }

    pub(crate) fn number(&self) -> i32 {
        self.0
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: The descriptor is open, and ours.
        unsafe { famfs_fake_close(self.0) };
    }
}

/// Shows the words of a box to `f`, by its raw pointer.
pub(crate) fn through_raw<H: Head>(boxed: TailBox<H>, f: impl FnOnce(&[u64])) -> TailBox<H> {
    let len = boxed.tail_len();
    let raw = boxed.into_raw();
    // SAFETY: It came from `into_raw`, has this length, and is valid until `from_raw` has taken it.
    f(unsafe { TailBox::words(raw, len) });
    // SAFETY: It came from `into_raw`, and is not used any more.
    unsafe { TailBox::from_raw(raw) }
}

/// What the server answers, and what it was asked. There is one server, and tests run one after
/// the other.
pub(crate) struct Server {
    fmap: KVVec<u8>,
    daxdev: KVVec<u8>,
}

impl Server {
    /// Answers GET_FMAP with `fmap`, and has an empty answer to GET_DAXDEV.
    pub(crate) fn new(fmap: KVVec<u8>) -> Self {
        let server = Self {
            fmap,
            daxdev: KVVec::new(),
        };
        server.serve(0);
        server
    }

    /// Answers GET_FMAP with `fmap` from now on.
    pub(crate) fn set_fmap(&mut self, fmap: KVVec<u8>) {
        let old = core::mem::replace(&mut self.fmap, fmap);
        self.serve(0);
        drop(old);
    }

    /// Answers GET_DAXDEV with `daxdev` from now on.
    pub(crate) fn set_daxdev(&mut self, daxdev: KVVec<u8>) {
        let old = core::mem::replace(&mut self.daxdev, daxdev);
        self.serve(0);
        drop(old);
    }

    /// Refuses everything from now on.
    pub(crate) fn refuse(&self, error: Error) {
        self.serve(error.to_errno());
    }

    fn serve(&self, error: i32) {
        // SAFETY: The bytes stay until others are served, at last by `drop`, and one test runs at
        // a time, which sends its requests itself.
        unsafe {
            famfs_fake_serve(
                self.fmap.as_ptr(),
                self.fmap.len(),
                self.daxdev.as_ptr(),
                self.daxdev.len(),
                error,
            )
        };
    }

    /// Number of GET_FMAP and of GET_DAXDEV requests since the answers changed.
    pub(crate) fn requests(&self) -> (u32, u32) {
        (famfs_fake_fmaps_asked(), famfs_fake_daxdevs_asked())
    }

    /// The index that the last GET_DAXDEV asked for.
    pub(crate) fn last_daxdev(&self) -> u64 {
        famfs_fake_last_daxdev()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SAFETY: There are no bytes.
        unsafe { famfs_fake_serve(core::ptr::null(), 0, core::ptr::null(), 0, 0) };
    }
}

/// A connection of fs/fuse, initialized by the provider.
pub(crate) struct Conn(NonNull<c_void>);

// SAFETY: The provider's part of a connection is used by any thread.
unsafe impl Send for Conn {}
// SAFETY: As above.
unsafe impl Sync for Conn {}

impl Conn {
    /// As the file system of device `0:minor`.
    pub(crate) fn new(minor: u32) -> Result<Self> {
        // SAFETY: The provider is registered as long as this module is loaded.
        let conn = from_err_ptr(unsafe { famfs_fake_conn_new(minor) })?;
        NonNull::new(conn).map(Self).ok_or(EINVAL)
    }

    /// As the file system that has the root directory of the server.
    pub(crate) fn around_its_server() -> Result<Self> {
        Self::new(famfs_fake_root_dev())
    }

    pub(crate) fn mount(&self) -> &mount::Mount {
        // SAFETY: The provider's `conn_init` returned it, and `self` keeps it.
        unsafe { KBox::<mount::Conn>::borrow(self.0.as_ptr()) }.mount()
    }

    /// The ioctl, as the server has it.
    pub(crate) fn daxdev_open(&self, fd: i32, flags: u32, index: u64) -> Result {
        // SAFETY: `self` keeps the connection.
        to_result(unsafe { famfs_fake_daxdev_open(self.0.as_ptr(), fd, flags, index) })
    }

    /// Registers a device.
    pub(crate) fn push(&self, dax: &Dax, index: u64) -> Result {
        self.daxdev_open(dax.fd()?.number(), 0, index)
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        // SAFETY: It came from `famfs_fake_conn_new`, and `drop` runs once.
        unsafe { famfs_fake_conn_free(self.0.as_ptr()) };
    }
}

/// Installing, held up: the provider waits with a map that is ready.
pub(crate) struct HeldUp(NotThreadSafe);

impl HeldUp {
    pub(crate) fn new() -> Self {
        famfs_fake_install_lock();
        Self(NotThreadSafe)
    }

    /// Lets the next one fail.
    pub(crate) fn fail(self, error: Error) {
        core::mem::forget(self);
        // SAFETY: The lock was taken with this value, by the same thread.
        unsafe { famfs_fake_install_unlock(error.to_errno()) };
    }
}

impl Drop for HeldUp {
    fn drop(&mut self) {
        // SAFETY: The lock was taken with this value, by the same thread.
        unsafe { famfs_fake_install_unlock(0) };
    }
}

/// An inode of fs/fuse, open, though the provider has not been told.
pub(crate) struct File(NonNull<c_void>);

// SAFETY: Files are used by any thread.
unsafe impl Send for File {}
// SAFETY: As above.
unsafe impl Sync for File {}

impl File {
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: No requirements.
        let file = unsafe { famfs_fake_file_new() };
        NonNull::new(file).map(Self).ok_or(ENOMEM)
    }

    /// A file that the provider has opened.
    pub(crate) fn opened(conn: &Conn) -> Result<Self> {
        let file = Self::new()?;
        file.open(conn)?;
        Ok(file)
    }

    /// Tells the provider.
    pub(crate) fn open(&self, conn: &Conn) -> Result {
        // SAFETY: Both are kept by their values.
        to_result(unsafe { famfs_fake_open(conn.0.as_ptr(), self.0.as_ptr(), 1) })
    }

    /// The last user is gone, as far as the provider knows.
    pub(crate) fn evict(&self) {
        // SAFETY: Nobody uses the map: reads and writes are over when they return.
        unsafe { famfs_fake_evict(self.0.as_ptr()) };
    }

    /// The head of its map.
    pub(crate) fn map(&self) -> Option<&FileMap> {
        // SAFETY: The provider installed what starts with it, a `Slot`, and `evict` is not called
        // while it is looked at.
        unsafe { famfs_fake_fmap(self.0.as_ptr()).cast::<FileMap>().as_ref() }
    }

    /// What a fault at byte `pos` is told: offset on the device and length, both in bytes.
    pub(crate) fn begin(&self, pos: i64) -> Result<(u64, u64)> {
        let begin = IomapTable::<Famfs>::OPS.iomap_begin.ok_or(EINVAL)?;
        let (mut iomap, mut srcmap) = (pin_init::zeroed(), pin_init::zeroed());
        // SAFETY: `self` keeps the file, whose inode `evict` is not called for meanwhile.
        to_result(unsafe {
            let inode = famfs_fake_inode(self.0.as_ptr());
            begin(inode.cast(), pos, 1, 0, &mut iomap, &mut srcmap)
        })?;
        Ok((iomap.addr, iomap.length))
    }

    /// What it costs to be told, in ticks of the TSC.
    pub(crate) fn cost(&self, pos: i64) -> Result<u32> {
        let begin = IomapTable::<Famfs>::OPS.iomap_begin.ok_or(EINVAL)?;
        // SAFETY: As in `begin`.
        Ok(unsafe { famfs_fake_cost(begin as *mut c_void, self.0.as_ptr(), pos) })
    }

    /// Bytes, as the inode says.
    pub(crate) fn size(&self) -> i64 {
        // SAFETY: `self` keeps the file.
        unsafe { famfs_fake_size(self.0.as_ptr()) }
    }

    /// Number of references to the inode.
    pub(crate) fn users(&self) -> i32 {
        // SAFETY: `self` keeps the file.
        unsafe { famfs_fake_users(self.0.as_ptr()) }
    }

    pub(crate) fn read(&self, pos: i64, buf: &mut [u8]) -> Result<usize> {
        // SAFETY: The buffer is valid for as many bytes as it has.
        done(unsafe { famfs_fake_rw(self.0.as_ptr(), pos, buf.as_mut_ptr(), buf.len(), false) })
    }

    pub(crate) fn write(&self, pos: i64, buf: &[u8]) -> Result<usize> {
        let ptr = buf.as_ptr().cast_mut();
        // SAFETY: The buffer is valid for as many bytes as it has, and is only read.
        done(unsafe { famfs_fake_rw(self.0.as_ptr(), pos, ptr, buf.len(), true) })
    }

    /// Number of extents that FIEMAP shows in `len` bytes from `start` on.
    pub(crate) fn extents(&self, start: u64, len: u64) -> Result<usize> {
        // SAFETY: `self` keeps the file.
        done(unsafe { famfs_fake_fiemap(self.0.as_ptr(), start, len) } as isize)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: It came from `famfs_fake_file_new`, and `drop` runs once.
        unsafe { famfs_fake_file_free(self.0.as_ptr()) };
    }
}

fn done(n: isize) -> Result<usize> {
    usize::try_from(n).map_err(|_| Error::from_errno(n as i32))
}
