// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fmaps of every kind.

use crate::fmap::{extent, Fmap, Interleaved, Layout, AU};

/// What the files are short of whole allocation units.
const ODD: u64 = 4219;

/// One fmap of each kind, and what to call it. Offsets are out of order on purpose.
pub fn kinds(devices: usize) -> Vec<(&'static str, Fmap)> {
    let chunk = AU as u32;
    let mut kinds = vec![
        (
            "one extent",
            Fmap::simple(2 * AU - ODD, &[extent(0, 16 * AU, 2 * AU)]),
        ),
        (
            "extents of mixed length",
            Fmap::simple(
                5 * AU - ODD,
                &[
                    extent(0, 24 * AU, AU),
                    extent(0, 18 * AU, 3 * AU),
                    extent(0, 16 * AU, AU),
                ],
            ),
        ),
        (
            "extents of one length",
            Fmap::simple(
                4 * AU,
                &[
                    extent(0, 22 * AU, AU),
                    extent(0, 16 * AU, AU),
                    extent(0, 20 * AU, AU),
                    extent(0, 18 * AU, AU),
                ],
            ),
        ),
        (
            "interleaved",
            Fmap::interleaved(
                5 * AU - ODD,
                chunk,
                &[
                    extent(0, 24 * AU, 2 * AU),
                    extent(0, 16 * AU, 2 * AU),
                    extent(0, 20 * AU, AU),
                ],
            ),
        ),
        (
            "interleaved, chunks of 4 MiB",
            Fmap::interleaved(
                6 * AU - ODD,
                2 * chunk,
                &[extent(0, 24 * AU, 4 * AU), extent(0, 16 * AU, 2 * AU)],
            ),
        ),
        ("two interleaved extents", two_interleaved()),
    ];
    if devices > 1 {
        kinds.push((
            "extents on two daxdevs",
            Fmap::simple(
                3 * AU - ODD,
                &[
                    extent(1, 16 * AU, AU),
                    extent(0, 20 * AU, AU),
                    extent(1, 18 * AU, AU),
                ],
            ),
        ));
        kinds.push((
            "interleaved over two daxdevs",
            Fmap::interleaved(
                5 * AU - ODD,
                chunk,
                &[extent(1, 20 * AU, 3 * AU), extent(0, 16 * AU, 2 * AU)],
            ),
        ));
    }
    kinds
}

fn two_interleaved() -> Fmap {
    let first = Interleaved {
        chunk: AU as u32,
        nbytes: 2 * AU,
        strips: vec![extent(0, 24 * AU, AU), extent(0, 16 * AU, AU)],
    };
    let second = Interleaved {
        chunk: AU as u32,
        nbytes: 2 * AU - ODD,
        strips: vec![extent(0, 20 * AU, AU), extent(0, 18 * AU, AU)],
    };
    Fmap {
        size: 4 * AU - ODD,
        layout: Layout::Interleaved(vec![first, second]),
    }
}
