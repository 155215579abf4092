// SPDX-License-Identifier: MIT OR Apache-2.0
//! The figures of the C series, which those of `make bench` are compared with.

/// What the C series (V9/V10) cost on Linux 7.2.13, measured in the same way on a kernel of the same configuration.
pub const C_SERIES: [(&str, &[(&str, u64)]); 3] = [
    (
        "C series, 1 extent",
        &[
            ("2 MiB fault, cold read", 7782),
            ("2 MiB fault, warm read", 4399),
            ("2 MiB fault, cold write", 7960),
            ("2 MiB fault, warm write", 4577),
            ("2 MiB fault, upgrade", 4297),
            ("4 KiB fault, cold read", 4452),
            ("4 KiB fault, warm read", 4373),
            ("4 KiB fault, cold write", 3965),
            ("4 KiB fault, warm write", 3696),
            ("pread 64 B", 1372),
            ("pread 4 KiB", 5404),
            ("pwrite 64 B", 1367),
            ("pwrite 4 KiB", 2690),
            ("open, first of the mount", 78383),
            ("open, first of the file", 42138),
            ("open and close, cached", 19539),
        ],
    ),
    (
        "C series, 32 extents",
        &[
            ("2 MiB fault, cold read", 7917),
            ("2 MiB fault, warm read", 4543),
            ("2 MiB fault, cold write", 8104),
            ("2 MiB fault, warm write", 4721),
            ("2 MiB fault, upgrade", 4454),
            ("pread 64 B", 1516),
            ("pread 4 KiB", 5548),
            ("pwrite 64 B", 1511),
            ("pwrite 4 KiB", 2834),
        ],
    ),
    (
        "C series, 4 strips",
        &[
            ("2 MiB fault, cold read", 7828),
            ("2 MiB fault, warm read", 4445),
            ("2 MiB fault, cold write", 8006),
            ("2 MiB fault, warm write", 4623),
            ("2 MiB fault, upgrade", 4343),
            ("4 KiB fault, cold read", 4498),
            ("4 KiB fault, warm read", 4419),
            ("4 KiB fault, cold write", 4011),
            ("4 KiB fault, warm write", 3742),
            ("pread 64 B", 1418),
            ("pread 4 KiB", 5450),
            ("pwrite 64 B", 1413),
            ("pwrite 4 KiB", 2736),
        ],
    ),
];

/// iomap_begin of the C series, by what the rows here call it.
pub const C_BEGIN: [(&str, u64); 2] = [
    ("one extent", 85),
    ("interleaved, 4 strips, daxdevs: 1", 131),
];
