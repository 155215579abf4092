// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What it takes on this machine to resolve a position, anywhere in the file, by kind and size of the map; and the
//! bytes that the kernel keeps for it, besides those of the inode.

use std::hint::black_box;

use criterion::{criterion_group, criterion_main, Criterion};
use famfs_fmap::{parse, DevIndex, DevRange, Extents, FileType, Interleaved, Message, ALIGN};

/// Positions that are resolved in turn.
const POSITIONS: usize = 1 << 16;
/// In front of the cells, in the kernel: rust/file.rs, `FileMap`.
const HEAD: usize = 64;

struct Map {
    name: String,
    size: u64,
    message: Vec<u8>,
}

impl Map {
    fn new(name: String, size: u64, extents: Extents<'_>) -> Self {
        let message = Message {
            file_type: FileType::Regular,
            file_size: size,
            extents,
            push: true,
        };
        let mut out = vec![0; message.len()];
        assert_eq!(message.encode(&mut out), Ok(out.len()));
        Self {
            name,
            size,
            message: out,
        }
    }

    /// Simple extents, the last of which is the first one on the device.
    fn simple(name: &str, lens: &[u64]) -> Self {
        let size = lens.iter().sum();
        let mut end = size;
        let extents: Vec<DevRange> = lens
            .iter()
            .map(|len| {
                end -= len;
                range(end, *len)
            })
            .collect();
        Self::new(
            format!("{} {name}", lens.len()),
            size,
            Extents::Simple(&extents),
        )
    }

    /// One interleaved extent of `n` strips with 64 chunks each.
    fn interleaved(n: u64) -> Self {
        let len = 64 * ALIGN;
        let strips: Vec<DevRange> = (0..n).map(|i| range(i * len, len)).collect();
        let one = Interleaved {
            chunk: ALIGN as u32,
            nbytes: n * len,
            strips: &strips,
        };
        Self::new(
            format!("interleaved, {n} strips"),
            n * len,
            Extents::Interleaved(&[one]),
        )
    }

    /// `n` interleaved extents of one strip.
    fn striped(n: u64) -> Self {
        let strips: Vec<[DevRange; 1]> = (0..n).map(|i| [range(i * ALIGN, ALIGN)]).collect();
        let extents: Vec<Interleaved<'_>> = strips
            .iter()
            .map(|strips| Interleaved {
                chunk: ALIGN as u32,
                nbytes: ALIGN,
                strips,
            })
            .collect();
        Self::new(
            format!("{n} interleaved"),
            n * ALIGN,
            Extents::Interleaved(&extents),
        )
    }

    fn measure(&self, criterion: &mut Criterion) {
        let fmap = parse(&self.message).expect("a good message");
        let mut cells = vec![0; fmap.cells_len()];
        let layout = fmap.build(|_| Some(0), &mut cells).expect("a good map");
        let cells = &cells[..layout.cells_len()];
        println!("{}: {} bytes", self.name, HEAD + 8 * cells.len());

        let mut seed = 1u64;
        let positions: Vec<u64> = (0..POSITIONS)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                ((u128::from(seed) * u128::from(self.size)) >> 64) as u64
            })
            .collect();
        let mut group = criterion.benchmark_group("resolve");
        let mut i = 0;
        group.bench_function(&self.name, |bencher| {
            bencher.iter(|| {
                i = (i + 1) % POSITIONS;
                layout.resolve(black_box(cells), black_box(positions[i]))
            });
        });
        group.finish();
    }
}

fn range(offset: u64, len: u64) -> DevRange {
    DevRange {
        index: DevIndex(0),
        offset,
        len,
    }
}

fn resolve(criterion: &mut Criterion) {
    Map::simple("extent", &[1 << 30]).measure(criterion);
    for n in [32, 4096, 262_144] {
        Map::simple("uniform", &vec![ALIGN; n]).measure(criterion);
        let mixed: Vec<u64> = (0..n as u64).map(|i| ALIGN * (1 + i % 2)).collect();
        Map::simple("mixed", &mixed).measure(criterion);
        Map::striped(n as u64).measure(criterion);
    }
    for n in [4, 32] {
        Map::interleaved(n).measure(criterion);
    }
}

criterion_group!(benches, resolve);
criterion_main!(benches);
