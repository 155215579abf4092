// SPDX-License-Identifier: GPL-2.0-only

//! What iomap_begin costs, for `make bench`: with QEMU's icount a tick of the TSC is an
//! instruction.

use kernel::prelude::*;

use crate::{
    fake::{
        Conn,
        Dax,
        File,
        Server, //
    },
    large::{
        Large,
        Shape, //
    },
    message::{
        interleaved,
        pushed,
        simple,
        Iext,
        Range,
        MIB, //
    },
};

const UNIT: u64 = 2 * MIB;

/// A map to be measured.
struct Row {
    kind: &'static str,
    /// Extents, or strips if there is one interleaved extent.
    n: u64,
    /// Number of devices that it uses in turn.
    daxdevs: u32,
    /// Bytes in the file.
    size: u64,
    message: KVVec<u8>,
}

/// Prints a line for each kind of map and number of extents.
pub(crate) fn measure() -> Result {
    row("single", 1, 1, UNIT, simple(UNIT, &[(0, 0, UNIT)])?)?;
    for n in [32, 4096, 262_144] {
        for (kind, shape) in [("uniform", Shape::Uniform), ("mixed", Shape::Mixed)] {
            let large = Large { shape, n };
            row(kind, n, 1, large.size(), large.message()?)?;
        }
        row("striped", n, 1, n * UNIT, striped(n)?)?;
    }
    for (n, daxdevs) in [(4, 1), (4, 4), (32, 1)] {
        row(
            "interleaved",
            n,
            daxdevs,
            8 * n * UNIT,
            one_striped(n, daxdevs)?,
        )?;
    }
    let four = [(0, 0, UNIT), (1, 0, UNIT), (2, 0, UNIT), (3, 0, UNIT)];
    row("uniform", 4, 4, 4 * UNIT, simple(4 * UNIT, &four)?)
}

/// One interleaved extent of `n` strips with eight chunks each.
fn one_striped(n: u64, daxdevs: u32) -> Result<KVVec<u8>> {
    let mut strips = KVec::new();
    for i in 0..n {
        let offset = i * 8 * UNIT;
        strips.push((i as u32 & (daxdevs - 1), offset, 8 * UNIT), GFP_KERNEL)?;
    }
    let size = 8 * n * UNIT;
    interleaved(size, &[(UNIT as u32, size, &strips)])
}

/// `n` interleaved extents of one strip.
fn striped(n: u64) -> Result<KVVec<u8>> {
    let mut strips: KVVec<Range> = KVVec::new();
    for i in 0..n {
        strips.push((0, i * UNIT, UNIT), GFP_KERNEL)?;
    }
    let mut iexts: KVVec<Iext<'_>> = KVVec::new();
    for strip in strips.chunks(1) {
        iexts.push((UNIT as u32, UNIT, strip), GFP_KERNEL)?;
    }
    pushed(interleaved(n * UNIT, &iexts)?)
}

fn row(kind: &'static str, n: u64, daxdevs: u32, size: u64, message: KVVec<u8>) -> Result {
    let row = Row {
        kind,
        n,
        daxdevs,
        size,
        message,
    };
    row.print()
}

impl Row {
    fn print(self) -> Result {
        let Self {
            kind, n, daxdevs, ..
        } = self;
        let size = self.size;
        let mut dax = KVec::new();
        let conn = Conn::new(34)?;
        for index in 0..daxdevs {
            let new = Dax::new(size)?;
            conn.push(&new, index.into())?;
            dax.push(new, GFP_KERNEL)?;
        }
        let server = Server::new(self.message);
        let file = File::opened(&conn)?;
        drop(server);
        let median = median(&file, size)?;
        drop(file);
        pr_info!("cost kind={kind} extents={n} daxdevs={daxdevs} instructions={median}\n");
        Ok(())
    }
}

/// The median of 1001 positions all over a file of `size` bytes.
fn median(file: &File, size: u64) -> Result<usize> {
    const POSITIONS: u32 = 1001;

    // Number of positions by what they cost.
    let mut counts = KVec::from_elem(0u32, 4096, GFP_KERNEL)?;
    let mut seed = 1u64;
    for _ in 0..POSITIONS {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let pos = (u128::from(seed) * u128::from(size)) >> 64;
        let cost = file.cost(pos as i64)? as usize;
        *counts.get_mut(cost).ok_or(ERANGE)? += 1;
    }
    let mut below = 0;
    let is_median = |count: &u32| {
        below += count;
        below > POSITIONS / 2
    };
    counts.iter().position(is_median).ok_or(ERANGE)
}
