// SPDX-License-Identifier: GPL-2.0-only

//! A daxdev: a dax device in a mount's table, and what became of its memory.

use core::ops::Range;

use kernel::{
    new_mutex,
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex, //
    },
};

use crate::{
    file::FileMap,
    fmap::Policy,
    poison::Poison,
    provider::Famfs,
    sys::{
        dax::{
            DaxDevice,
            Failure,
            HeldDaxDevice,
            Holder, //
        },
        errno::{
            EHWPOISON,
            EOPNOTSUPP, //
        },
        inode::{
            ms_sleep,
            FileRef,
            Pins, //
        },
        rmap::{
            Cursor,
            Rmap,
            Visit, //
        },
    },
};

/// The policy that the module was loaded with. `EINVAL` if there is no such policy.
pub(crate) fn default_policy() -> Result<Policy> {
    match *crate::module_parameters::failure_range.value() {
        0 => Ok(Policy::Device),
        1 => Ok(Policy::Range),
        _ => Err(EINVAL),
    }
}

/// How memory is reached: it makes a difference to the error.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// By a page fault: whether the very page is poisoned decides about the signal.
    Fault,
    /// By read or write.
    ReadWrite,
}

/// A daxdev, exclusively held by its mount.
pub(crate) struct Daxdev {
    held: HeldDaxDevice<DaxState>,
    /// By what the server called it.
    name: CString,
}

impl Daxdev {
    /// Takes the device. `EBUSY`, `EOPNOTSUPP`, `ENODEV`: see [`DaxDevice::hold`].
    pub(crate) fn new(
        dev: DaxDevice,
        index: u16,
        name: CString,
        policy: Policy,
    ) -> Result<Arc<Self>> {
        let state = DaxState::new(index, policy)?;
        let held = dev.hold(state)?;
        Ok(Arc::new(Self { held, name }, GFP_KERNEL)?)
    }

    #[inline]
    pub(crate) fn held(&self) -> &HeldDaxDevice<DaxState> {
        &self.held
    }

    #[inline]
    pub(crate) fn state(&self) -> &DaxState {
        self.held.holder()
    }

    pub(crate) fn name(&self) -> &CStr {
        &self.name
    }

    /// Forgets the poison: whoever asks for this has seen to it that the memory is good again. If
    /// it isn't, the next access finds out. `ENXIO`: the device is gone; `EBUSY`: memory failed
    /// meanwhile, and nothing is forgotten; `EINTR`: nor is it by who is being killed.
    ///
    /// Maps stay suspect, and find nothing when they ask.
    pub(crate) fn forget(&self) -> Result {
        let state = self.state();
        let (ranges, reports) = {
            let poison = state.poison.lock();
            if state.is_removed() {
                return Err(ENXIO);
            }
            (poison.ranges()?, poison.reports().ok_or(EBUSY)?)
        };
        // Not with the notes locked: it takes time, in which failures of all memory would wait.
        for range in ranges {
            self.held.mark_good(range)?;
        }
        let mut poison = state.poison.lock();
        if poison.reports() != Some(reports) {
            return Err(EBUSY);
        }
        poison.clear();
        // It may be removed meanwhile, and stays so.
        if state.health.cmpxchg(FAILED, INTACT, Relaxed).is_ok() {
            pr_info!("daxdev {}: memory failures are forgotten\n", state.index);
        }
        Ok(())
    }
}

/// What became of a daxdev's memory, and the files that care.
#[pin_data]
pub(crate) struct DaxState {
    index: u16,
    policy: Policy,
    /// [`INTACT`], [`FAILED`] or [`REMOVED`]; it only grows, but by [`Daxdev::forget`]. Set before
    /// the files are told.
    health: Atomic<u32>,
    /// Held also to change the health between [`INTACT`] and [`FAILED`].
    #[pin]
    poison: Mutex<Poison>,
    rmap: Arc<Rmap<Famfs>>,
}

const INTACT: u32 = 0;
const FAILED: u32 = 1;
const REMOVED: u32 = 2;

impl DaxState {
    fn new(index: u16, policy: Policy) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                index,
                policy,
                health: Atomic::new(INTACT),
                poison <- new_mutex!(Poison::new(), "famfs::DaxState::poison"),
                rmap: Rmap::new()?,
            }),
            GFP_KERNEL,
        )
    }

    /// By what fmaps call it.
    pub(crate) fn index(&self) -> u16 {
        self.index
    }

    pub(crate) fn policy(&self) -> Policy {
        self.policy
    }

    /// Calls `f` with every poisoned range, in bytes of the device.
    pub(crate) fn for_each_poison(&self, f: impl FnMut(Range<u64>)) {
        self.poison.lock().iter().for_each(f);
    }

    pub(crate) fn rmap(&self) -> &Arc<Rmap<Famfs>> {
        &self.rmap
    }

    /// Its state in a word.
    pub(crate) fn health(&self) -> &'static str {
        match self.health.load(Relaxed) {
            INTACT => "ok",
            FAILED => "failed",
            _ => "removed",
        }
    }

    pub(crate) fn is_intact(&self) -> bool {
        self.health.load(Relaxed) == INTACT
    }

    /// Number of bytes that may be accessed from `offset` on, of `len` that are there; at least 1.
    ///
    /// `EHWPOISON`: poisoned, or on a device with poison (policy `device`), unless that is found
    /// by a fault on another page, which gets `EIO`. `ENXIO`: the device is gone.
    #[cold]
    pub(crate) fn check(&self, offset: u64, len: u64, access: Access) -> Result<u64> {
        if self.is_intact() {
            return Ok(len);
        }
        let end = offset.saturating_add(len);
        let poison = self.poison.lock();
        // Of the same moment as the notes: with these forgotten, a page that was lost would pass
        // for one beside it.
        match self.health.load(Relaxed) {
            INTACT => return Ok(len),
            FAILED => (),
            _ => return Err(ENXIO),
        }
        let hit = poison.first_in(offset..end);
        drop(poison);
        match self.policy {
            _ if hit == Some(offset) => Err(EHWPOISON()),
            Policy::Range => Ok(hit.unwrap_or(end).wrapping_sub(offset)),
            Policy::Device if access == Access::Fault => Err(EIO),
            Policy::Device => Err(EHWPOISON()),
        }
    }

    /// Raises the health to at least `to`. Whoever enters the reverse map later sees this, by the
    /// lock of the map, which is walked next.
    fn worsen(&self, to: u32) {
        let mut old = self.health.load(Relaxed);
        while old < to {
            match self.health.cmpxchg(old, to, Relaxed) {
                Ok(_) => break,
                Err(now) => old = now,
            }
        }
    }

    /// Calls `f` with every range of a file that has memory in `range`. A file that is just getting
    /// its map is waited for: there is no request in between.
    fn for_each_range(
        &self,
        range: Range<u64>,
        mut f: impl FnMut(&Visit<'_, Famfs>, FileRef<'_, FileMap>),
    ) {
        self.for_each_range_until_done(range, |visit, file| {
            f(visit, file);
            None
        });
    }

    /// The same, and calls `f` again with a range after as many milliseconds as it says. Who opens
    /// the file, or evicts it, does not wait for that.
    fn for_each_range_until_done(
        &self,
        range: Range<u64>,
        mut f: impl FnMut(&Visit<'_, Famfs>, FileRef<'_, FileMap>) -> Option<u32>,
    ) {
        let mut cursor = Cursor::default();
        loop {
            let before = cursor;
            let Some(visit) = self.rmap.next(range.clone(), &mut cursor) else {
                break;
            };
            let again = match visit.file() {
                Some(file) => f(&visit, file),
                None => Some(1),
            };
            drop(visit);
            if let Some(ms) = again {
                cursor = before;
                ms_sleep(ms);
            }
        }
    }

    fn removal(&self) {
        self.worsen(REMOVED);
        pr_warn!(
            "daxdev {}: its driver goes away under a mount\n",
            self.index
        );
        // First all files, so that their fast faults are waited for together, and none goes on
        // while another one's pages are waited for.
        const ALL: Range<u64> = 0..u64::MAX;
        self.for_each_range(ALL, |_, file| file.head.suspect());
        // From here on all ranges of a file at once: to find one is to look at all of its map.
        self.for_each_range(ALL, |visit, file| {
            if visit.is_head() {
                for range in file.head.ranges_on(file.words, self, ALL) {
                    visit.unmap(&range);
                }
            }
        });
        let mut pins = Pins::new();
        self.for_each_range_until_done(ALL, |visit, file| {
            if !visit.is_head() {
                return None;
            }
            let ranges = file.head.ranges_on(file.words, self, ALL);
            visit.break_layout(ranges, &mut pins)
        });
    }

    fn poison(&self, range: Range<u64>, failure: Failure) -> Result {
        let all = {
            let mut poison = self.poison.lock();
            poison.note(range.clone());
            self.worsen(FAILED);
            poison.is_all()
        };
        failure.warn(self.index);
        let affected = match self.policy {
            Policy::Range if !all => range.clone(),
            _ => 0..u64::MAX,
        };
        // First all files, so that their fast faults are waited for together. Whoever enters the
        // reverse map later knows.
        self.for_each_range(affected, |_, file| file.head.suspect());
        let mut result = Ok(());
        self.for_each_range(range.clone(), |visit, file| {
            let at = visit.range();
            let hit = at.start.max(range.start)..at.end.min(range.end);
            for hit in file.head.ranges_on(file.words, self, hit) {
                result = result.and(visit.kill_procs(hit, failure));
            }
        });
        self.poison.lock().tell();
        result
    }
}

impl Holder for DaxState {
    fn notify_failure(&self, failure: Failure) -> Result {
        if failure.is_removal() {
            self.removal();
            return Ok(());
        }
        let end = failure.offset.saturating_add(failure.len);
        if end <= failure.offset {
            return Err(EOPNOTSUPP());
        }
        self.poison(failure.offset..end, failure)
    }

    #[inline]
    fn is_removed(&self) -> bool {
        self.health.load(Relaxed) == REMOVED
    }
}
