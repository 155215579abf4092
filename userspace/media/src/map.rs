// SPDX-License-Identifier: MIT OR Apache-2.0
//! A file's map, and the checks that make one out of what a log entry says.

use crate::entry::RawMap;
use crate::error::Problem;
use crate::{ALLOC_UNIT, MAX_EXTENTS};

/// A range of one daxdev, in bytes. Also a strip of an interleaved map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Extent {
    pub devindex: u64,
    pub offset: u64,
    pub len: u64,
}

/// A map with 1 to 16 extents or strips, which are long enough for the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Map {
    /// Extents one after the other.
    Simple(Vec<Extent>),
    /// Strips used in turn, a chunk from each.
    #[allow(missing_docs)]
    Interleaved {
        chunk_size: u64,
        strips: Vec<Extent>,
    },
}

impl Map {
    /// Extents or strips.
    pub fn extents(&self) -> &[Extent] {
        match self {
            Self::Simple(extents) => extents,
            Self::Interleaved { strips, .. } => strips,
        }
    }

    /// Bytes of memory that the map takes.
    pub fn allocated(&self) -> u64 {
        sum_len(self.extents())
    }

    /// The map of a file of `size` bytes, with counts, chunk size and lengths
    /// checked. Where its extents lie is for [`crate::Space`] to judge.
    pub(crate) fn check(raw: &RawMap, size: u64) -> Result<Self, Problem> {
        if i64::try_from(size).is_err() {
            return Err(Problem::Size(size));
        }
        match raw {
            RawMap::Simple { nextents, extents } => check_simple(*nextents, extents, size),
            RawMap::Interleaved {
                niext,
                nstrips,
                chunk_size,
                strips,
            } => {
                if *niext != 1 {
                    return Err(Problem::Niext(*niext));
                }
                if *nstrips == 0 || *nstrips > MAX_EXTENTS as u64 {
                    return Err(Problem::Nstrips(*nstrips));
                }
                check_strips(*chunk_size, strips, size)
            }
            RawMap::Unknown(code) => Err(Problem::ExtType(*code)),
        }
    }
}

fn sum_len(extents: &[Extent]) -> u64 {
    extents.iter().fold(0, |sum, e| sum.saturating_add(e.len))
}

fn check_simple(nextents: u32, extents: &[Extent], size: u64) -> Result<Map, Problem> {
    if nextents == 0 || nextents as usize > MAX_EXTENTS {
        return Err(Problem::Nextents(nextents));
    }
    let mapped = sum_len(extents);
    if mapped < size {
        return Err(Problem::Short { mapped, size });
    }
    Ok(Map::Simple(extents.to_vec()))
}

fn check_strips(chunk_size: u64, strips: &[Extent], size: u64) -> Result<Map, Problem> {
    if chunk_size == 0 || chunk_size % ALLOC_UNIT != 0 {
        return Err(Problem::ChunkSize(chunk_size));
    }
    let mapped = sum_len(strips);
    if mapped < size {
        return Err(Problem::Short { mapped, size });
    }
    for (strip, extent) in strips.iter().enumerate() {
        let needed = strip_bytes(size, chunk_size, strips.len() as u64, strip as u64);
        if extent.len < needed {
            return Err(Problem::ShortStrip {
                strip,
                len: extent.len,
                needed,
            });
        }
    }
    Ok(Map::Interleaved {
        chunk_size,
        strips: strips.to_vec(),
    })
}

/// Bytes that a file of `size` bytes reaches on strip `strip` of `nstrips`.
/// `chunk_size` and `nstrips` are not zero.
fn strip_bytes(size: u64, chunk_size: u64, nstrips: u64, strip: u64) -> u64 {
    let full = size.checked_div(chunk_size).unwrap_or(0);
    let rest = size.checked_rem(chunk_size).unwrap_or(0);
    // Chunks `strip`, `strip + nstrips`, ... below `full` are whole.
    let whole = match full.checked_sub(strip) {
        Some(after) => after.div_ceil(nstrips),
        None => 0,
    };
    let has_rest = full.checked_rem(nstrips) == Some(strip);
    whole
        .saturating_mul(chunk_size)
        .saturating_add(if has_rest { rest } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn bytes_per_strip() {
        let strips = |size, n| {
            (0..n)
                .map(|s| strip_bytes(size, 2 * MIB, n, s))
                .collect::<Vec<_>>()
        };
        assert_eq!(strips(8 * MIB, 4), [2 * MIB, 2 * MIB, 2 * MIB, 2 * MIB]);
        assert_eq!(
            strips(8 * MIB + 1, 4),
            [2 * MIB + 1, 2 * MIB, 2 * MIB, 2 * MIB]
        );
        assert_eq!(strips(11 * MIB, 4), [4 * MIB, 3 * MIB, 2 * MIB, 2 * MIB]);
        assert_eq!(strips(1, 4), [1, 0, 0, 0]);
        assert_eq!(strips(0, 2), [0, 0]);
    }

    fn interleaved(chunk_size: u64, lens: &[u64]) -> RawMap {
        let strip = |(i, &len): (usize, &u64)| Extent {
            devindex: 0,
            offset: i as u64 * 64 * MIB,
            len,
        };
        RawMap::Interleaved {
            niext: 1,
            nstrips: lens.len() as u64,
            chunk_size,
            strips: lens.iter().enumerate().map(strip).collect(),
        }
    }

    #[test]
    fn interleaved_maps() {
        let size = 8 * MIB + 1;
        assert!(Map::check(&interleaved(2 * MIB, &[4 * MIB; 4]), size).is_ok());
        assert_eq!(
            Map::check(
                &interleaved(2 * MIB, &[2 * MIB, 4 * MIB, 4 * MIB, 4 * MIB]),
                size
            ),
            Err(Problem::ShortStrip {
                strip: 0,
                len: 2 * MIB,
                needed: 2 * MIB + 1
            })
        );
        assert_eq!(
            Map::check(&interleaved(0, &[4 * MIB; 4]), size),
            Err(Problem::ChunkSize(0))
        );
        assert_eq!(
            Map::check(&interleaved(MIB, &[4 * MIB; 4]), size),
            Err(Problem::ChunkSize(MIB))
        );
        assert_eq!(
            Map::check(&interleaved(2 * MIB, &[]), size),
            Err(Problem::Nstrips(0))
        );
    }

    #[test]
    fn counts_and_sizes() {
        let extent = Extent {
            devindex: 0,
            offset: 16 * MIB,
            len: 2 * MIB,
        };
        let simple = |nextents| RawMap::Simple {
            nextents,
            extents: vec![extent],
        };
        assert!(Map::check(&simple(1), 2 * MIB).is_ok());
        assert_eq!(Map::check(&simple(0), 1), Err(Problem::Nextents(0)));
        assert_eq!(Map::check(&simple(17), 1), Err(Problem::Nextents(17)));
        assert_eq!(
            Map::check(&simple(1), 2 * MIB + 1),
            Err(Problem::Short {
                mapped: 2 * MIB,
                size: 2 * MIB + 1
            })
        );
        assert_eq!(
            Map::check(&simple(1), u64::MAX),
            Err(Problem::Size(u64::MAX))
        );
        assert_eq!(Map::check(&RawMap::Unknown(2), 1), Err(Problem::ExtType(2)));
    }
}
