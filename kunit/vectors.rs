// SPDX-License-Identifier: GPL-2.0-only

//! The messages of testdata/vectors, with what its manifest says of each and what famfs answers
//! (the README there says where the two differ).

use crate::{
    fmap::FmapError,
    message::Range, //
};

/// What a message says.
pub(crate) struct Decoded {
    /// How its map is resolved.
    pub(crate) kind: &'static str,
    pub(crate) file_type: u8,
    pub(crate) file_size: u64,
    pub(crate) nextents: u32,
    /// Number of extents or strips.
    pub(crate) nranges: usize,
    /// The first of them.
    pub(crate) ranges: &'static [Range],
}

/// A message and the answer to it.
pub(crate) struct Vector {
    pub(crate) name: &'static str,
    pub(crate) message: &'static [u8],
    pub(crate) answer: Result<Decoded, FmapError>,
}

/// The name of a message, and what [`Decoded`] has, in its order.
macro_rules! accepted {
    ($name:literal, $kind:literal, $type:literal, $size:literal, $nextents:literal, $n:literal,
     $ranges:expr) => {
        Vector {
            name: $name,
            message: include_bytes!(concat!("../testdata/vectors/", $name)),
            answer: Ok(Decoded {
                kind: $kind,
                file_type: $type,
                file_size: $size,
                nextents: $nextents,
                nranges: $n,
                ranges: &$ranges,
            }),
        }
    };
}

macro_rules! refused {
    ($name:literal, $error:expr) => {
        Vector {
            name: $name,
            message: include_bytes!(concat!("../testdata/vectors/", $name)),
            answer: Err($error),
        }
    };
}

/// All of them.
pub(crate) const VECTORS: &[Vector] = &[
    accepted!(
        "msg/bad_fmap_devindex1.bin",
        "single",
        0,
        5000000,
        1,
        1,
        [(1, 0xa00000, 0x600000)]
    ),
    refused!("msg/bad_fmap_exttype2.bin", FmapError::ExtentType(2)),
    refused!(
        "msg/bad_fmap_len_unaligned.bin",
        FmapError::UnalignedLength(0x5f_f000)
    ),
    refused!("msg/bad_fmap_nextents0.bin", FmapError::NoExtents),
    refused!(
        "msg/bad_fmap_nextents33.bin",
        FmapError::UnalignedStripe(19_927_041)
    ),
    refused!(
        "msg/bad_fmap_size_gt_map.bin",
        FmapError::MapTooShort(0x60_0000)
    ),
    refused!("msg/bad_fmap_trunc_hdr31.bin", FmapError::Truncated(31)),
    refused!("msg/bad_fmap_trunc_strips.bin", FmapError::Truncated(100)),
    refused!("msg/bad_fmap_version2.bin", FmapError::Version(2)),
    accepted!(
        "msg/fmap_e02.bin",
        "single",
        0,
        5000000,
        1,
        1,
        [(0, 0xa00000, 0x600000)]
    ),
    accepted!(
        "msg/fmap_e03.bin",
        "single",
        0,
        4194304,
        1,
        1,
        [(0, 0x1000000, 0x400000)]
    ),
    accepted!(
        "msg/fmap_e04.bin",
        "mixed",
        0,
        8384513,
        3,
        3,
        [
            (0, 0x4a000000, 0x200000),
            (0, 0x5a000000, 0x400000),
            (0, 0x6a000000, 0x200000)
        ]
    ),
    accepted!(
        "msg/fmap_e05.bin",
        "interleaved",
        0,
        19927041,
        1,
        4,
        [
            (0, 0x1400000, 0x600000),
            (0, 0x100000000, 0x600000),
            (0, 0x280000000, 0x600000),
            (0, 0x380000000, 0x600000)
        ]
    ),
    accepted!(
        "msg/fmap_e06.bin",
        "single",
        0,
        1,
        1,
        1,
        [(0, 0x1a00000, 0x200000)]
    ),
    accepted!(
        "msg/fmap_meta_log_asreg.bin",
        "single",
        0,
        8388608,
        1,
        1,
        [(0, 0x200000, 0x800000)]
    ),
    accepted!(
        "msg/fmap_meta_log_type2.bin",
        "single",
        2,
        8388608,
        1,
        1,
        [(0, 0x200000, 0x800000)]
    ),
    accepted!(
        "msg/fmap_meta_superblock_asreg.bin",
        "single",
        0,
        2097152,
        1,
        1,
        [(0, 0, 0x200000)]
    ),
    accepted!(
        "msg/fmap_meta_superblock_type1.bin",
        "single",
        1,
        2097152,
        1,
        1,
        [(0, 0, 0x200000)]
    ),
    refused!(
        "msg/quirk_interleave_devindex.bin",
        FmapError::DeviceIndex(0x1_0000)
    ),
    accepted!(
        "msg/quirk_simple_devindex.bin",
        "uniform",
        0,
        8388608,
        2,
        2,
        [(1, 0x40000000, 0x400000), (2, 0x40000000, 0x400000)]
    ),
    refused!("msg_derived/d_empty.bin", FmapError::Truncated(0)),
    accepted!(
        "msg_derived/d_ext_past_device.bin",
        "single",
        0,
        2097152,
        1,
        1,
        [(0, 0x4000000000000, 0x200000)]
    ),
    refused!("msg_derived/d_header_only.bin", FmapError::Truncated(32)),
    refused!("msg_derived/d_iext_33strips.bin", FmapError::StripCount(33)),
    refused!("msg_derived/d_iext_chunk0.bin", FmapError::ChunkSize(0)),
    refused!(
        "msg_derived/d_iext_chunk1m.bin",
        FmapError::ChunkSize(1 << 20)
    ),
    refused!("msg_derived/d_iext_nbytes0.bin", FmapError::EmptyStripe),
    refused!(
        "msg_derived/d_iext_nbytes_lt_size.bin",
        FmapError::MapTooShort(8 << 20)
    ),
    refused!("msg_derived/d_iext_nstrips0.bin", FmapError::StripCount(0)),
    refused!("msg_derived/d_len0_extent.bin", FmapError::EmptyExtent),
    refused!(
        "msg_derived/d_offset_plus_len_wraps.bin",
        FmapError::OffsetOverflow(0xffff_ffff_ffe0_0000)
    ),
    refused!(
        "msg_derived/d_offset_unaligned.bin",
        FmapError::UnalignedOffset(0xa0_1000)
    ),
    accepted!(
        "msg_derived/d_simple32.bin",
        "uniform",
        0,
        67108864,
        32,
        32,
        [(0, 0xa00000, 0x200000), (0, 0xc00000, 0x200000)]
    ),
    accepted!(
        "msg_derived/d_simple33.bin",
        "uniform",
        0,
        69206016,
        33,
        33,
        [(0, 0xa00000, 0x200000), (0, 0xc00000, 0x200000)]
    ),
    refused!("msg_derived/d_size0.bin", FmapError::EmptyFile),
    accepted!(
        "msg_derived/d_size_equals_map.bin",
        "single",
        0,
        2097152,
        1,
        1,
        [(0, 0xa00000, 0x200000)]
    ),
    refused!(
        "msg_derived/d_trunc_simple_list.bin",
        FmapError::Truncated(103)
    ),
    accepted!(
        "msg_derived/push_169ext_fits.bin",
        "uniform",
        0,
        354418688,
        169,
        169,
        [(0, 0x20000000, 0x200000), (0, 0x20600000, 0x200000)]
    ),
    accepted!(
        "msg_derived/push_e02.bin",
        "single",
        0,
        5000000,
        1,
        1,
        [(0, 0xa00000, 0x600000)]
    ),
    accepted!(
        "msg_derived/push_e03.bin",
        "single",
        0,
        4194304,
        1,
        1,
        [(0, 0x1000000, 0x400000)]
    ),
    accepted!(
        "msg_derived/push_e04.bin",
        "mixed",
        0,
        8384513,
        3,
        3,
        [
            (0, 0x4a000000, 0x200000),
            (0, 0x5a000000, 0x400000),
            (0, 0x6a000000, 0x200000)
        ]
    ),
    accepted!(
        "msg_derived/push_e05.bin",
        "uniform",
        0,
        19927041,
        10,
        10,
        [
            (0, 0x1400000, 0x200000),
            (0, 0x100000000, 0x200000),
            (0, 0x280000000, 0x200000),
            (0, 0x380000000, 0x200000),
            (0, 0x1600000, 0x200000),
            (0, 0x100200000, 0x200000),
            (0, 0x280200000, 0x200000),
            (0, 0x380200000, 0x200000),
            (0, 0x1800000, 0x200000),
            (0, 0x100400000, 0x200000)
        ]
    ),
    accepted!(
        "msg_derived/push_e06.bin",
        "single",
        0,
        1,
        1,
        1,
        [(0, 0x1a00000, 0x200000)]
    ),
];
