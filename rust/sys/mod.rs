// SPDX-License-Identifier: GPL-2.0-only

//! Safe wrappers for what `kernel` lacks: DAX devices and their holders, iomap and vm operations,
//! and the provider hooks of fs/fuse.
//!
//! All `unsafe` of the module is here, and only here are bindings used. What is offered to the
//! rest is safe whatever the rest does, but for what two traits ask of who implements them, once
//! each: [`inode::FileHead`], that the number of words never changes; [`dax::Holder`], that nobody
//! faults on a device, fast or not, when it has returned from the notice that the device goes.
//! Pointers that C keeps are taken back by the callback that C promises to call last, and every
//! pair of calls (get and put, lock and unlock, add and delete) is a type with `Drop`.

mod access;
pub(crate) mod atomic;
mod bindings;
pub(crate) mod dax;
pub(crate) mod debugfs;
pub(crate) mod errno;
pub(crate) mod fast;
pub(crate) mod fuse;
pub(crate) mod inode;
pub(crate) mod iomap;
pub(crate) mod rmap;
mod tail;
mod vm;

use kernel::{
    prelude::*,
    sync::atomic::{
        AtomicFlag,
        Full, //
    },
};

/// Makes the locks of this layer usable. Comes before anything else of it; `EBUSY` the second time.
pub(crate) fn init() -> Result {
    static DONE: AtomicFlag = AtomicFlag::new(false);

    if DONE.xchg(true, Full) {
        return Err(EBUSY);
    }
    // SAFETY: The flag lets only the first caller through, and nothing precedes it.
    unsafe {
        dax::init();
        fast::init();
        debugfs::init();
    }
    Ok(())
}
