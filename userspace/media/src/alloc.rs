// SPDX-License-Identifier: MIT OR Apache-2.0
//! Placement of new files (docs/abi.md, section 3). Readers accept any
//! placement that does not overlap; the rules here are a writer's own.
//!
//! Contiguous: one extent, first fit, on the first daxdev that has room.
//!
//! Interleaved: each daxdev is cut into `nbuckets` equal buckets; strips go to
//! the daxdevs in turn, each time into a bucket not tried before, first fit
//! inside it. The order of daxdevs and of buckets is random.

use std::ops::Range;

use thiserror::Error;

use crate::map::{Extent, Map};
use crate::space::Space;
use crate::{round_up_au, ALLOC_UNIT, MAX_EXTENTS};

const MAX_BUCKETS: u64 = 64;

/// Parameters of an interleaved file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interleave {
    /// Buckets per daxdev, 1 to 64.
    pub nbuckets: u64,
    /// Strips, 1 to 16, not more than buckets on all daxdevs.
    pub nstrips: u64,
    /// Bytes on a strip before the next strip; a power of two, 2 MiB or more.
    pub chunk_size: u64,
}

/// Why a file gets no space. Nothing was allocated.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // The messages say it.
pub enum AllocError {
    #[error("a famfs file can not be empty")]
    Empty,
    #[error("a file of {0} bytes is too large")]
    TooLarge(u64),
    #[error("no space: {wanted} bytes in one piece wanted, the longest piece free is {longest}")]
    NoSpace { wanted: u64, longest: u64 },
    #[error("no space: {found} of {wanted} strips of {strip_len} bytes found in separate buckets")]
    NoStrips {
        wanted: u64,
        found: u64,
        strip_len: u64,
    },
    #[error("chunk size {0} is not a power of two of at least 2 MiB")]
    ChunkSize(u64),
    #[error("{0} buckets: 1 to {MAX_BUCKETS} are possible")]
    Buckets(u64),
    #[error("{strips} strips: 1 to {max} are possible with these buckets and daxdevs")]
    Strips { strips: u64, max: u64 },
    #[error("buckets of {bucket} bytes are smaller than a chunk of {chunk}; use fewer buckets")]
    BucketSize { bucket: u64, chunk: u64 },
}

/// A run of units on one daxdev.
type Run = (u32, Range<u64>);

impl Space {
    /// Space for a file of `size` bytes, which is in use from then on. `seed`
    /// sets the order in which buckets are tried.
    ///
    /// # Errors
    /// See [`AllocError`].
    pub fn allocate(
        &mut self,
        size: u64,
        interleave: Option<&Interleave>,
        seed: u64,
    ) -> Result<Map, AllocError> {
        if size == 0 {
            return Err(AllocError::Empty);
        }
        let whole = round_up_au(size).filter(|&whole| i64::try_from(whole).is_ok());
        let whole = whole.ok_or(AllocError::TooLarge(size))?;
        match interleave {
            Some(p) => {
                self.check_interleave(p)?;
                if size < p.chunk_size {
                    return self.allocate_one(whole);
                }
                let buckets = self.bucket_order(p.nbuckets, seed);
                self.allocate_strips(whole, p, &buckets)
            }
            None => self.allocate_one(whole),
        }
    }

    fn allocate_one(&mut self, len: u64) -> Result<Map, AllocError> {
        let units = len / ALLOC_UNIT;
        let fit = self.devices.iter().find_map(|(&index, device)| {
            Some((index, device.used.first_fit(0..device.units(), units)?))
        });
        match fit {
            Some(run) => Ok(Map::Simple(vec![self.commit(run)])),
            None => Err(AllocError::NoSpace {
                wanted: len,
                longest: self.longest_gap(),
            }),
        }
    }

    /// Bytes of the longest piece free on any daxdev.
    fn longest_gap(&self) -> u64 {
        let gaps = self
            .devices
            .values()
            .map(|d| d.used.longest_gap(0..d.units()));
        gaps.max().unwrap_or(0).saturating_mul(ALLOC_UNIT)
    }

    fn check_interleave(&self, p: &Interleave) -> Result<(), AllocError> {
        if !p.chunk_size.is_power_of_two() || p.chunk_size < ALLOC_UNIT {
            return Err(AllocError::ChunkSize(p.chunk_size));
        }
        if p.nbuckets == 0 || p.nbuckets > MAX_BUCKETS {
            return Err(AllocError::Buckets(p.nbuckets));
        }
        let buckets = p.nbuckets.saturating_mul(self.devices.len() as u64);
        let max = buckets.min(MAX_EXTENTS as u64);
        if p.nstrips == 0 || p.nstrips > max {
            return Err(AllocError::Strips {
                strips: p.nstrips,
                max,
            });
        }
        let smallest = self
            .devices
            .values()
            .map(|d| bucket_units(d.units(), p.nbuckets))
            .min();
        let bucket = smallest.unwrap_or(0).saturating_mul(ALLOC_UNIT);
        if bucket < p.chunk_size {
            return Err(AllocError::BucketSize {
                bucket,
                chunk: p.chunk_size,
            });
        }
        Ok(())
    }

    /// Place `nstrips` strips into the first of `buckets` that have room.
    fn allocate_strips(
        &mut self,
        whole: u64,
        p: &Interleave,
        buckets: &[Run],
    ) -> Result<Map, AllocError> {
        let stripe = p.nstrips.saturating_mul(p.chunk_size);
        let strip_len = whole.div_ceil(stripe).saturating_mul(p.chunk_size);
        let fits = buckets.iter().filter_map(|(index, bounds)| {
            let used = &self.devices.get(index)?.used;
            Some((
                *index,
                used.first_fit(bounds.clone(), strip_len / ALLOC_UNIT)?,
            ))
        });
        let runs: Vec<Run> = fits
            .take(usize::try_from(p.nstrips).unwrap_or(MAX_EXTENTS))
            .collect();
        let found = runs.len() as u64;
        if found < p.nstrips {
            return Err(AllocError::NoStrips {
                wanted: p.nstrips,
                found,
                strip_len,
            });
        }
        let strips = runs.into_iter().map(|run| self.commit(run)).collect();
        Ok(Map::Interleaved {
            chunk_size: p.chunk_size,
            strips,
        })
    }

    /// All buckets: daxdevs in turn, daxdevs and buckets in random order.
    fn bucket_order(&self, nbuckets: u64, seed: u64) -> Vec<Run> {
        let mut random = Random(seed);
        let mut devices: Vec<(u32, Vec<Range<u64>>)> = self
            .devices
            .iter()
            .map(|(&index, device)| {
                let units = bucket_units(device.units(), nbuckets);
                let mut buckets: Vec<_> = (0..nbuckets)
                    .map(|k| k.saturating_mul(units)..k.saturating_add(1).saturating_mul(units))
                    .collect();
                random.shuffle(&mut buckets);
                (index, buckets)
            })
            .collect();
        random.shuffle(&mut devices);
        let rounds = usize::try_from(nbuckets).unwrap_or(0);
        (0..rounds)
            .flat_map(|k| {
                devices
                    .iter()
                    .filter_map(move |(index, b)| Some((*index, b.get(k)?.clone())))
            })
            .collect()
    }

    fn commit(&mut self, (index, run): Run) -> Extent {
        let extent = Extent {
            devindex: u64::from(index),
            offset: run.start.saturating_mul(ALLOC_UNIT),
            len: run.end.saturating_sub(run.start).saturating_mul(ALLOC_UNIT),
        };
        if let Some(device) = self.devices.get_mut(&index) {
            device.used.insert(run);
        }
        extent
    }
}

fn bucket_units(units: u64, nbuckets: u64) -> u64 {
    units.checked_div(nbuckets).unwrap_or(0)
}

/// SplitMix64: spreads placement, secures nothing.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let bound = (last as u64).saturating_add(1);
            let pick = self.next().checked_rem(bound).unwrap_or(0);
            items.swap(last, usize::try_from(pick).unwrap_or(0));
        }
    }
}

#[cfg(test)]
#[path = "alloc_tests.rs"]
mod tests;
