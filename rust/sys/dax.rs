// SPDX-License-Identifier: GPL-2.0-only

//! DAX devices, and being their holder.
//!
//! C header: `include/linux/dax.h`.

use core::ptr::NonNull;

use kernel::{
    alloc::flags::GFP_KERNEL,
    error::to_result,
    ffi,
    fs::file::LocalFile,
    global_lock,
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    },
    types::ScopeGuard, //
};

use super::{
    access::DaxAccess,
    bindings,
    fuse::DevT, //
};

/// Whether the current task has CAP_SYS_RAWIO.
pub(crate) fn may_raw_io() -> bool {
    // SAFETY: No requirements.
    unsafe { bindings::famfs_may_raw_io() }
}

/// A memory failure, or the removal of a device, as its holder learns of it.
#[derive(Clone, Copy)]
pub(crate) struct Failure {
    /// First byte, from the start of the device.
    pub(crate) offset: u64,
    /// Number of bytes; `u64::MAX` for all of the device.
    pub(crate) len: u64,
    flags: i32,
}

impl Failure {
    /// The memory is intact, but its driver is about to let go of it.
    pub(crate) fn is_removal(&self) -> bool {
        self.flags & bindings::mf_flags_MF_MEM_PRE_REMOVE as i32 != 0
    }

    /// Prints one rate-limited line about it.
    pub(crate) fn warn(&self, index: u16) {
        // SAFETY: No requirements.
        unsafe { bindings::famfs_warn_failure(index, self.offset, self.len) };
    }

    /// `enum mf_flags`.
    pub(super) fn flags(&self) -> i32 {
        self.flags
    }
}

/// What a holder of a DAX device implements.
pub(crate) trait Holder: Send + Sync {
    /// Memory of the device failed, or the device goes away.
    ///
    /// May sleep. Called in a read-side section of `dax_srcu`: must not let go of the device. If it
    /// goes away, nobody has its memory mapped when this returns, nor ever again.
    fn notify_failure(&self, failure: Failure) -> Result;

    /// Whether it was told that the device goes away. Must not sleep.
    fn is_removed(&self) -> bool;
}

struct Held {
    dev: usize,
    /// What `fs_dax_get()` is given, and `dax_holder()` returns while it is in force.
    cookie: usize,
    holder: Arc<dyn Holder>,
    /// `kill_dax()` is about to end the holding from its side.
    removed: bool,
}

global_lock! {
    // SAFETY: `init` is called before any other use.
    //
    // All devices that are held or about to be, by the address of their `struct dax_device`. A
    // notification looks its device up here: it may come late, when the holder is gone and another
    // one, of another type, has come. A leaf: drivers are unbound, and so notify, under the lock of
    // their device, which `fs_dax_get()` takes too.
    unsafe(uninit) static HELD: Mutex<KVec<Held>> = KVec::new();
}

/// Makes this file's locks usable.
///
/// # Safety
///
/// Called once, before anything else of this file.
pub(super) unsafe fn init() {
    // SAFETY: By the function's own requirement.
    unsafe { HELD.init() };
}

/// A root directory: what paths start from, and the mounts that they see.
///
/// # Invariants
///
/// Owns a reference, which `path_put()` drops.
pub(crate) struct Root(bindings::path);

// SAFETY: Mounts and dentries may be used and let go of from any thread.
unsafe impl Send for Root {}
// SAFETY: As above.
unsafe impl Sync for Root {}

impl Root {
    /// That of the current task, for the file system `dev` to keep. `EINVAL` if it is in that file
    /// system, which would keep itself for ever.
    pub(crate) fn current_for(dev: DevT) -> Result<Self> {
        let mut root = bindings::path::default();
        // SAFETY: `root` may be written.
        unsafe { bindings::famfs_current_root(&mut root) };
        // INVARIANT: `get_fs_root()` took a reference.
        let root = Self(root);
        // SAFETY: A path holds a mount, that its superblock, whose number never changes.
        let holds = unsafe { (*(*root.0.mnt).mnt_sb).s_dev };
        if dev.is(holds) {
            return Err(EINVAL);
        }
        Ok(root)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, and `drop` runs once.
        unsafe { bindings::path_put(&self.0) };
    }
}

/// A DAX device that has a character device, open.
///
/// # Invariants
///
/// Owns a reference to `dev`, which `put_dax()` drops. `file` is a character device with the
/// number of `dev`, open. Only devices that dax drivers made can be: others have numbers too, and
/// `fs_dax_get()` would take their private data for a `struct dev_dax`. The file also pins that
/// structure.
pub(crate) struct DaxDevice {
    dev: NonNull<bindings::dax_device>,
    _file: ARef<LocalFile>,
}

impl DaxDevice {
    /// Finds the device of the character device at `path`, from `root` on.
    ///
    /// Looks at cached directories only: the caller may have one locked, and a path may lead there.
    /// Those of devtmpfs always are. `ENOENT`: not there, or not cached; `EINVAL`: not a character
    /// device; `EACCES`: on a mount or a file system with `nodev`; `ENODEV`: not a DAX device; or
    /// why the path can't be followed.
    pub(crate) fn by_path(root: &Root, path: &CStr) -> Result<Self> {
        const FLAGS: u32 =
            bindings::RUST_CONST_HELPER_LOOKUP_FOLLOW | bindings::RUST_CONST_HELPER_LOOKUP_CACHED;
        let mut raw = bindings::path::default();
        // SAFETY: `root` is valid, `path` is a valid string, and `raw` may be written.
        to_result(unsafe {
            bindings::vfs_path_lookup(
                root.0.dentry,
                root.0.mnt,
                path.as_char_ptr(),
                FLAGS,
                &mut raw,
            )
        })
        .map_err(|error| if error == EAGAIN { ENOENT } else { error })?;
        let raw = ScopeGuard::new_with_data(raw, |raw| {
            // SAFETY: The look-up succeeded, and this is the one time that its reference is put.
            unsafe { bindings::path_put(&raw) }
        });
        // SAFETY: A path holds a mount and a positive dentry, and the reference keeps both, the
        // superblock and the inode, whose type and device number never change.
        let (inode, mnt_flags, sb_flags) = unsafe {
            let mnt = &*raw.mnt;
            ((*raw.dentry).d_inode, mnt.mnt_flags, (*mnt.mnt_sb).s_iflags)
        };
        let nodev = mnt_flags & bindings::mount_flags_MNT_NODEV as i32 != 0
            || sb_flags & bindings::RUST_CONST_HELPER_SB_I_NODEV != 0;
        // SAFETY: As above.
        let dev = unsafe { FoundDevice::of(inode) }?;
        if nodev {
            return Err(EACCES);
        }
        // SAFETY: `raw` is a valid path, and the current credentials are valid.
        let file = kernel::error::from_err_ptr(unsafe {
            bindings::dentry_open(
                &*raw,
                bindings::O_RDONLY as i32,
                bindings::famfs_current_cred(),
            )
        })?;
        let file = NonNull::new(file.cast::<LocalFile>()).ok_or(EIO)?;
        // SAFETY: `dentry_open` returned a reference to an open file, which is ours alone.
        Ok(dev.opened(unsafe { ARef::from_raw(file) }))
    }

    /// Finds the device of a character device that the current task has open.
    ///
    /// `EBADF`: no such descriptor; `EINVAL`: not a character device; `ENODEV`: not a DAX device.
    pub(crate) fn by_fd(fd: u32) -> Result<Self> {
        let file = LocalFile::fget(fd).map_err(|_| EBADF)?;
        // SAFETY: An open file has an inode, whose type and device number never change.
        let dev = unsafe { FoundDevice::of((*file.as_ptr()).f_inode) }?;
        Ok(dev.opened(file))
    }

    /// Becomes the one holder of the device.
    ///
    /// `EBUSY`: it has one; `EOPNOTSUPP`: it is not in fsdev mode; `ENODEV`: it is gone.
    pub(crate) fn hold<T: Holder + 'static>(self, holder: Arc<T>) -> Result<HeldDaxDevice<T>> {
        let cookie = Arc::as_ptr(&holder).cast_mut().cast::<ffi::c_void>();
        {
            let mut held = HELD.lock();
            let entry = Held {
                dev: self.dev.as_ptr().addr(),
                cookie: cookie.addr(),
                holder: holder.clone(),
                removed: false,
            };
            held.push(entry, GFP_KERNEL)?;
        }
        // SAFETY: `self` is a reference to the device. The cookie is that of no other holder, since
        // what is returned owns `holder`, and nobody follows it.
        let err =
            to_result(unsafe { bindings::fs_dax_get(self.dev.as_ptr(), cookie, &HOLDER_OPS) });
        if let Err(error) = err {
            forget(self.dev, cookie);
            return Err(error);
        }
        // INVARIANT: `fs_dax_get` took a reference of its own, and made `holder` the holder.
        let held = HeldDaxDevice {
            dev: self.dev,
            holder,
        };
        // It looks at the driver first, and `kill_dax()` may have come in between, with nobody to
        // notify.
        if !held.is_alive() {
            return Err(ENODEV);
        }
        Ok(held)
    }
}

impl Drop for DaxDevice {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, and `drop` runs once.
        unsafe { bindings::put_dax(self.dev.as_ptr()) };
    }
}

/// A device of which it isn't known yet whether it can be opened.
///
/// # Invariants
///
/// Owns a reference, which `put_dax()` drops.
struct FoundDevice(NonNull<bindings::dax_device>);

impl FoundDevice {
    /// # Safety
    ///
    /// `inode` is valid.
    unsafe fn of(inode: *const bindings::inode) -> Result<Self> {
        // SAFETY: By the function's own requirement.
        let (mode, devt) = unsafe { ((*inode).i_mode, (*inode).i_rdev) };
        if u32::from(mode) & bindings::S_IFMT != bindings::S_IFCHR {
            return Err(EINVAL);
        }
        // SAFETY: Any number may be asked for.
        let dev = unsafe { bindings::dax_dev_get(devt) };
        // INVARIANT: `dax_dev_get` returned a reference.
        NonNull::new(dev).map(Self).ok_or(ENODEV)
    }

    /// `file` is open, and has the number of this device.
    fn opened(self, file: ARef<LocalFile>) -> DaxDevice {
        // INVARIANT: The reference moves there.
        let dev = self.0;
        core::mem::forget(self);
        DaxDevice { dev, _file: file }
    }
}

impl Drop for FoundDevice {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, and `drop` runs once.
        unsafe { bindings::put_dax(self.0.as_ptr()) };
    }
}

/// Takes a device off the list of those that are held, and returns whether it was being removed.
fn forget(dev: NonNull<bindings::dax_device>, cookie: *mut ffi::c_void) -> bool {
    let mut removed = false;
    let mut held = HELD.lock();
    held.retain(|held| {
        let this = held.dev == dev.as_ptr().addr() && held.cookie == cookie.addr();
        removed |= this && held.removed;
        !this
    });
    if held.is_empty() {
        // Nobody does when the module is unloaded.
        *held = KVec::new();
    }
    removed
}

/// A DAX device that nobody else uses.
///
/// # Invariants
///
/// Owns a reference to `dev`, as `fs_dax_get(dev, holder)` took it, and has not put it.
pub(crate) struct HeldDaxDevice<T: Holder + 'static> {
    dev: NonNull<bindings::dax_device>,
    holder: Arc<T>,
}

// SAFETY: All that is done with the device is safe from any thread, as is what `T` does.
unsafe impl<T: Holder> Send for HeldDaxDevice<T> {}
// SAFETY: As above.
unsafe impl<T: Holder> Sync for HeldDaxDevice<T> {}

impl<T: Holder> HeldDaxDevice<T> {
    /// Who holds it.
    #[inline]
    pub(crate) fn holder(&self) -> &Arc<T> {
        &self.holder
    }

    /// Whether the device is alive, and its holder is still this one.
    fn is_alive(&self) -> bool {
        let _access = DaxAccess::new();
        // SAFETY: `self.dev` is a reference to the device, in the section that is required.
        unsafe { bindings::dax_alive(self.as_raw()) && self.is_holder() }
    }

    fn is_holder(&self) -> bool {
        // SAFETY: `self.dev` is a reference to the device.
        let holder = unsafe { bindings::dax_holder(self.as_raw()) };
        holder.addr() == Arc::as_ptr(&self.holder).addr()
    }

    /// The C device, valid as long as `self`.
    #[inline]
    pub(super) fn as_raw(&self) -> *mut bindings::dax_device {
        self.dev.as_ptr()
    }

    /// Whether `dev` is the same device.
    pub(crate) fn is(&self, dev: &DaxDevice) -> bool {
        self.dev == dev.dev
    }
}

impl<T: Holder> Drop for HeldDaxDevice<T> {
    fn drop(&mut self) {
        let cookie: *mut ffi::c_void = Arc::as_ptr(&self.holder).cast_mut().cast();
        let removed = forget(self.dev, cookie);
        if !removed && self.is_holder() {
            // SAFETY: By the type invariant, and `drop` runs once.
            unsafe { bindings::fs_put_dax(self.dev.as_ptr(), cookie) };
            return;
        }
        // `kill_dax()` clears the holder after every reader of it is gone. To let it, instead of
        // clearing it here, leaves alone whoever becomes the next holder.
        while self.is_holder() {
            // SAFETY: No requirements; this context may sleep.
            unsafe { bindings::msleep(1) };
        }
        // SAFETY: By the type invariant there is a reference, and `drop` runs once.
        unsafe { bindings::put_dax(self.dev.as_ptr()) };
    }
}

static HOLDER_OPS: bindings::dax_holder_operations = bindings::dax_holder_operations {
    notify_failure: Some(notify_failure),
};

/// # Safety
///
/// Called by `dax_holder_notify_failure()`: `dev` is valid, and `dax_srcu` is held for reading.
unsafe extern "C" fn notify_failure(
    dev: *mut bindings::dax_device,
    offset: u64,
    len: u64,
    flags: ffi::c_int,
) -> ffi::c_int {
    let failure = Failure { offset, len, flags };
    let holder = {
        let mut held = HELD.lock();
        // SAFETY: By the function's own requirement.
        let cookie = unsafe { bindings::dax_holder(dev) }.addr();
        let Some(held) = held
            .iter_mut()
            .find(|held| held.dev == dev.addr() && held.cookie == cookie)
        else {
            return super::errno::EOPNOTSUPP().to_errno();
        };
        held.removed |= failure.is_removal();
        held.holder.clone()
    };
    let result = holder.notify_failure(failure);
    if failure.is_removal() {
        // The caller lets the device die next.
        // SAFETY: No requirements; this context may sleep.
        unsafe { bindings::synchronize_rcu() };
    }
    match result {
        Ok(()) => 0,
        Err(error) => error.to_errno(),
    }
}
