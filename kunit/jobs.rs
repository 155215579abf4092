// SPDX-License-Identifier: GPL-2.0-only

//! What goes on meanwhile.

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full, //
        },
        Arc, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    workqueue, //
};

/// Jobs that run at the same time.
pub(crate) struct Jobs {
    started: Atomic<u32>,
    pub(crate) failed: Atomic<u32>,
    pub(crate) done: Atomic<u32>,
}

impl Jobs {
    pub(crate) fn new() -> Result<Arc<Self>> {
        let jobs = Self {
            started: Atomic::new(0),
            failed: Atomic::new(0),
            done: Atomic::new(0),
        };
        Ok(Arc::new(jobs, GFP_KERNEL)?)
    }

    pub(crate) fn spawn(self: &Arc<Self>, job: impl FnOnce() -> Result + Send + 'static) -> Result {
        let jobs = self.clone();
        let job = move || {
            jobs.started.fetch_add(1, Full);
            if job().is_err() {
                jobs.failed.fetch_add(1, Full);
            }
            jobs.done.fetch_add(1, Full);
        };
        workqueue::system_long().try_spawn(GFP_KERNEL, job)?;
        Ok(())
    }

    /// Whether `n` jobs have got so far within five seconds.
    pub(crate) fn reach(count: &Atomic<u32>, n: u32) -> bool {
        for _ in 0..500 {
            if count.load(Acquire) == n {
                return true;
            }
            fsleep(Delta::from_millis(10));
        }
        false
    }

    /// Waits until they have all begun, and have had the time to get stuck.
    pub(crate) fn settle(&self, n: u32) -> bool {
        let started = Self::reach(&self.started, n);
        fsleep(Delta::from_millis(50));
        started
    }
}
