// SPDX-License-Identifier: MIT OR Apache-2.0
//! A set of allocation units, kept as ranges: its memory grows with the number
//! of extents, not with the size that a device claims to have.

use std::collections::BTreeMap;
use std::ops::Range;

/// Units in use on one daxdev.
#[derive(Clone, Debug, Default)]
pub struct AuSet {
    /// Start to end; never empty, never touching each other.
    ranges: BTreeMap<u64, u64>,
}

impl AuSet {
    /// Add `range`; returns how many of its units were in the set already.
    pub fn insert(&mut self, range: Range<u64>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let touching: Vec<(u64, u64)> = self
            .ranges
            .range(..=range.end)
            .rev()
            .take_while(|(_, &end)| end >= range.start)
            .map(|(&start, &end)| (start, end))
            .collect();
        let mut merged = range.clone();
        let mut common = 0u64;
        for (start, end) in touching {
            self.ranges.remove(&start);
            let shared = end.min(range.end).saturating_sub(start.max(range.start));
            common = common.saturating_add(shared);
            merged = merged.start.min(start)..merged.end.max(end);
        }
        self.ranges.insert(merged.start, merged.end);
        common
    }

    /// Number of units in the set.
    pub fn len(&self) -> u64 {
        self.ranges.iter().fold(0, |sum, (start, end)| {
            sum.saturating_add(end.saturating_sub(*start))
        })
    }

    /// Whether the set has no unit.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// First run of `len` units within `bounds` that are not in the set.
    pub fn first_fit(&self, bounds: Range<u64>, len: u64) -> Option<Range<u64>> {
        self.gaps(bounds).find_map(|gap| {
            let end = gap.start.checked_add(len)?;
            (end <= gap.end).then_some(gap.start..end)
        })
    }

    /// Length of the longest run within `bounds` that is not in the set.
    pub fn longest_gap(&self, bounds: Range<u64>) -> u64 {
        self.gaps(bounds)
            .map(|gap| gap.end.saturating_sub(gap.start))
            .max()
            .unwrap_or(0)
    }

    /// Runs within `bounds` that are not in the set, in order.
    fn gaps(&self, bounds: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let covering = self
            .ranges
            .range(..=bounds.start)
            .next_back()
            .map(|(_, &end)| end);
        let mut at = bounds.start.max(covering.unwrap_or(0));
        let mut later = self.ranges.range(bounds.start.saturating_add(1)..);
        let mut done = false;
        std::iter::from_fn(move || {
            while !done && at < bounds.end {
                let (start, end) = later.next().map_or((u64::MAX, u64::MAX), |(&s, &e)| (s, e));
                let gap = at..start.min(bounds.end);
                done = start >= bounds.end;
                at = end;
                if !gap.is_empty() {
                    return Some(gap);
                }
            }
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Against a set that holds each unit by itself.
        #[test]
        fn like_a_plain_set(
            inserts in prop::collection::vec((0u64..80, 0u64..20), 0..20),
            lo in 0u64..100, size in 0u64..100, want in 1u64..12,
        ) {
            let mut set = AuSet::default();
            let mut plain = BTreeSet::new();
            for (start, len) in inserts {
                let range = start..start + len;
                let common = range.clone().filter(|u| !plain.insert(*u)).count() as u64;
                prop_assert_eq!(set.insert(range), common);
            }
            prop_assert_eq!(set.len(), plain.len() as u64);
            let hi = lo + size;
            let free = |s: u64| (s..s + want).all(|u| u < hi && !plain.contains(&u));
            let expected = (lo..hi).find(|&s| free(s)).map(|s| s..s + want);
            prop_assert_eq!(set.first_fit(lo..hi, want), expected);
            let longest = (lo..hi).map(|s| (s..hi).take_while(|u| !plain.contains(u)).count()).max();
            prop_assert_eq!(set.longest_gap(lo..hi), longest.unwrap_or(0) as u64);
        }
    }

    #[test]
    fn huge_ranges_cost_nothing() {
        let mut set = AuSet::default();
        assert_eq!(set.insert(5..u64::MAX), 0);
        assert_eq!(set.insert(0..u64::MAX), u64::MAX - 5);
        assert_eq!(set.len(), u64::MAX);
        assert_eq!(set.first_fit(0..u64::MAX, 1), None);
    }
}
