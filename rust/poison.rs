// SPDX-License-Identifier: GPL-2.0-only

//! The poisoned memory of a device.

use core::ops::Range;

use kernel::prelude::*;

/// Poisoned ranges, in bytes of the device.
///
/// # Invariants
///
/// `ranges` are in order, not empty, and none touches another.
pub(crate) struct Poison {
    ranges: KVec<Range<u64>>,
    /// More than can be noted: all of the device.
    all: bool,
    /// Reports that came, and those of them that all files know of.
    reports: u64,
    told: u64,
}

impl Poison {
    /// The most ranges that are kept apart: 64 KiB of them.
    pub(crate) const MAX: usize = 4096;

    pub(crate) const fn new() -> Self {
        Self {
            ranges: KVec::new(),
            all: false,
            reports: 0,
            told: 0,
        }
    }

    /// How many reports came, unless files are just being told of one.
    pub(crate) fn reports(&self) -> Option<u64> {
        (self.reports == self.told).then_some(self.reports)
    }

    /// All files know of a report that was noted.
    pub(crate) fn tell(&mut self) {
        self.told = self.told.wrapping_add(1);
    }

    /// The ranges, apart from `self`. `ENOMEM`
    pub(crate) fn ranges(&self) -> Result<KVec<Range<u64>>> {
        let mut ranges = KVec::new();
        for range in self.iter() {
            ranges.push(range, GFP_KERNEL)?;
        }
        Ok(ranges)
    }

    /// Nothing is poisoned any more.
    pub(crate) fn clear(&mut self) {
        self.ranges = KVec::new();
        self.all = false;
    }

    /// Whether all of the device counts as poisoned.
    pub(crate) fn is_all(&self) -> bool {
        self.all
    }

    /// The ranges, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let all = self.all.then_some(0..u64::MAX);
        Iterator::chain(all.into_iter(), self.ranges.iter().cloned())
    }

    /// The first poisoned byte in `range`.
    pub(crate) fn first_in(&self, range: Range<u64>) -> Option<u64> {
        if self.all {
            return Some(range.start);
        }
        let next = self.ranges.partition_point(|old| old.end <= range.start);
        let next = self.ranges.get(next)?;
        (next.start < range.end).then_some(next.start.max(range.start))
    }

    /// Adds a range, which is not empty. Without memory for it, or beyond [`Self::MAX`] ranges, all
    /// of the device is poisoned: nothing poisoned ever counts as good.
    pub(crate) fn note(&mut self, range: Range<u64>) {
        self.reports = self.reports.wrapping_add(1);
        if self.try_note(range).is_err() {
            self.all = true;
            self.ranges = KVec::new();
        }
    }

    fn try_note(&mut self, mut range: Range<u64>) -> Result {
        if self.all {
            return Ok(());
        }
        // INVARIANT: All ranges that touch the new one become part of it, at their place.
        let place = self.ranges.partition_point(|old| old.end < range.start);
        while let Some(old) = self.ranges.get(place).filter(|old| old.start <= range.end) {
            range = old.start.min(range.start)..old.end.max(range.end);
            self.ranges.remove(place).map_err(|_| EIO)?;
        }
        if self.ranges.len() >= Self::MAX {
            return Err(ENOSPC);
        }
        self.ranges.reserve(1, GFP_KERNEL)?;
        self.ranges
            .insert_within_capacity(place, range)
            .map_err(|_| ENOMEM)
    }
}
