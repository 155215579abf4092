// SPDX-License-Identifier: GPL-2.0-only

//! The KUnit suites of famfs, which run when this module is loaded.
//!
//! The module under test is compiled in, from the same files as famfs.ko. It is driven through
//! the operations that it registers with fs/fuse, of which this module has an imitation with a
//! server behind it, and works on devices that the dax core takes for bound to a driver in fsdev
//! mode; both are in fake.c.

#[path = "../rust/daxdev.rs"]
mod daxdev;
#[path = "../rust/file.rs"]
mod file;
#[allow(dead_code, unreachable_pub, unused_imports)]
#[path = "../rust/fmap/mod.rs"]
mod fmap;
#[path = "../rust/mount.rs"]
mod mount;
#[path = "../rust/open.rs"]
mod open;
#[path = "../rust/poison.rs"]
mod poison;
#[path = "../rust/provider.rs"]
mod provider;
#[path = "../rust/stats.rs"]
mod stats;
#[path = "../rust/sys/mod.rs"]
mod sys;
// Once more, because it is private to `sys`.
#[expect(clippy::duplicate_mod)]
#[path = "../rust/sys/tail.rs"]
mod tail;

mod cost;
mod failure;
mod fake;
mod fixture;
mod iomap_begin;
mod jobs;
mod large;
mod lifetimes;
mod message;
mod parse;
mod resolve;
mod rmap;
mod table;
mod vectors;

use kernel::prelude::*;

use crate::{
    provider::Famfs,
    sys::{
        debugfs,
        fuse::Registration, //
    },
};

module! {
    type: FamfsKunit,
    name: "famfs_kunit",
    authors: ["famfs-rs developers"],
    description: "famfs: its tests",
    license: "GPL",
    params: {
        failure_range: u8 {
            default: 0,
            description: "As of famfs.ko, for the tests that mount",
        },
        cost: u8 {
            default: 0,
            description: "1: say what iomap_begin costs, in ticks of the TSC",
        },
        fast_faults: u8 {
            default: 1,
            description: "As of famfs.ko",
        },
    },
}

struct FamfsKunit {
    _provider: Pin<KBox<Registration<Famfs>>>,
    _debugfs: debugfs::Root,
}

impl kernel::Module for FamfsKunit {
    fn init(module: &'static ThisModule) -> Result<Self> {
        sys::init()?;
        let this = Self {
            _debugfs: debugfs::Root::new(c"famfs_kunit"),
            _provider: KBox::pin_init(Registration::new(module), GFP_KERNEL)?,
        };
        if *module_parameters::cost.value() != 0 {
            cost::measure()?;
        }
        Ok(this)
    }
}
