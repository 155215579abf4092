// SPDX-License-Identifier: GPL-2.0-only

//! famfs: files that are maps onto shared memory.
//!
//! A privileged server hands each file's map to the kernel once, when the file is opened first.
//! From then on faults, reads and writes are resolved here, without the server.
//!
//! Layers; the first two use only what is above them:
//!
//! - `fmap`: the format of the maps, pure;
//! - `sys`: safe wrappers around what is C;
//! - the rest: `poison` (what of a device failed), `daxdev` (a device and its failures), `file` (a file's map, the hot path), `mount`
//!   (what belongs to a connection), `open` (the protocol), `stats` (debugfs).
//!
//! Who keeps what, and in which order locks are taken: docs/architecture.md.

mod daxdev;
mod file;
// User space uses the rest of it.
#[allow(dead_code, unreachable_pub, unused_imports)]
mod fmap;
mod mount;
mod open;
mod poison;
mod provider;
mod stats;
mod sys;

use kernel::prelude::*;

use crate::{
    provider::Famfs,
    sys::{
        debugfs,
        fuse::Registration, //
    },
};

module! {
    type: FamfsModule,
    name: "famfs",
    authors: ["famfs-rs developers"],
    description: "famfs: files on fabric-attached memory",
    license: "GPL",
    params: {
        failure_range: u8 {
            default: 0,
            description: "After a memory error fail 0: every file on the device, 1: the poisoned bytes alone; unless the server says which",
        },
        fast_faults: u8 {
            default: 1,
            description: "Map prepared memory 1: at once, 0: through fs/dax.c like new memory",
        },
    },
}

/// Unloading drops the fields in this order: no more callbacks, then what they use.
struct FamfsModule {
    _provider: Pin<KBox<Registration<Famfs>>>,
    _debugfs: debugfs::Root,
}

impl kernel::Module for FamfsModule {
    fn init(module: &'static ThisModule) -> Result<Self> {
        daxdev::default_policy().inspect_err(|_| pr_err!("failure_range must be 0 or 1\n"))?;
        if *module_parameters::fast_faults.value() > 1 {
            pr_err!("fast_faults must be 0 or 1\n");
            return Err(EINVAL);
        }
        sys::init()?;
        let debugfs = debugfs::Root::new(c"famfs");
        let provider = KBox::pin_init(Registration::new(module), GFP_KERNEL)
            .inspect_err(|_| pr_err!("another provider of file maps is registered\n"))?;
        Ok(Self {
            _provider: provider,
            _debugfs: debugfs,
        })
    }
}
