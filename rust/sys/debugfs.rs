// SPDX-License-Identifier: GPL-2.0-only

//! The module's directory in debugfs, for callbacks that are given nothing to find it by.

use kernel::{
    debugfs::Dir,
    global_lock,
    prelude::*, //
};

global_lock! {
    // SAFETY: `init` is called before any other use.
    unsafe(uninit) static DIR: Mutex<Option<Dir>> = None;
}

/// Makes this file's lock usable.
///
/// # Safety
///
/// Called once, before anything else of this file.
pub(super) unsafe fn init() {
    // SAFETY: By the function's own requirement.
    unsafe { DIR.init() };
}

/// The directory, which is there as long as this value.
pub(crate) struct Root(());

impl Root {
    pub(crate) fn new(name: &CStr) -> Self {
        *DIR.lock() = Some(Dir::new(name));
        Self(())
    }

    /// The directory, while there is a [`Root`].
    pub(crate) fn get() -> Option<Dir> {
        DIR.lock().clone()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let dir = DIR.lock().take();
        drop(dir);
    }
}
