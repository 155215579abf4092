// SPDX-License-Identifier: GPL-2.0-only

//! Maps of as many extents as a message holds.

use kernel::{
    fmt,
    prelude::*,
    str::CString, //
};

use crate::{
    fake::{
        Conn,
        Dax,
        File,
        Server,
        POISON, //
    },
    fmap::MAX_MESSAGE,
    message::{
        pushed,
        simple_from,
        Range,
        MIB, //
    },
    mount::Mount,
    stats,
    sys::errno::EHWPOISON, //
};

/// Extents in a message of 16 MiB: 32 bytes, and 24 for each.
const MOST: u64 = 699_049;

const _: () = assert!(32 + 24 * MOST <= MAX_MESSAGE as u64);
const _: () = assert!(32 + 24 * (MOST + 1) > MAX_MESSAGE as u64);

/// Extents of the files that are opened. A kernel that looks at every lock and every access needs
/// minutes for all of them, more than a test may take.
const OPENED: u64 = if cfg!(CONFIG_KASAN) { MOST / 16 } else { MOST };

const UNIT: u64 = 2 * MIB;

/// How long a file's extents are.
#[derive(Clone, Copy)]
pub(crate) enum Shape {
    /// 2 MiB.
    Uniform,
    /// 2 and 4 MiB in turn.
    Mixed,
}

/// A file of `n` extents, of which the last is the first one on the device.
#[derive(Clone, Copy)]
pub(crate) struct Large {
    pub(crate) shape: Shape,
    pub(crate) n: u64,
}

impl Large {
    /// Where extent `i` begins in the file.
    pub(crate) fn start(self, i: u64) -> u64 {
        match self.shape {
            Shape::Uniform => i * UNIT,
            Shape::Mixed => (i / 2 * 3 + i % 2) * UNIT,
        }
    }

    pub(crate) fn size(self) -> u64 {
        self.start(self.n)
    }

    fn extent(self, i: u64) -> Range {
        let (start, end) = (self.start(i), self.start(i + 1));
        (0, self.size() - end, end - start)
    }

    /// The extent of byte `pos`.
    fn index(self, pos: u64) -> u64 {
        let unit = pos / UNIT;
        match self.shape {
            Shape::Uniform => unit,
            Shape::Mixed => unit / 3 * 2 + u64::from(unit % 3 > 0),
        }
    }

    pub(crate) fn message(self) -> Result<KVVec<u8>> {
        let extents = (0..self.n as usize).map(|i| self.extent(i as u64));
        pushed(simple_from(self.size(), extents)?)
    }

    /// Offset and length from byte `pos` on.
    fn place(self, pos: u64) -> (u64, u64) {
        let i = self.index(pos);
        let (_, offset, len) = self.extent(i);
        let into = pos - self.start(i);
        (offset + into, len - into)
    }
}

struct Shown<'a>(&'a Mount);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        stats::write(self.0, f)
    }
}

/// Opens the largest file of this shape and looks at it all over: whether each byte is where
/// arithmetic has it, and whether debugfs shows a map of this kind with that many bytes.
fn is_resolved(shape: Shape, kind: &str, bytes: u64) -> Result<bool> {
    let large = Large { shape, n: OPENED };
    let dax = Dax::new(large.size())?;
    let server = Server::new(large.message()?);
    let conn = Conn::new(33)?;
    conn.push(&dax, 0)?;
    let file = File::opened(&conn)?;
    let asked = server.requests() == (2, 0);
    drop(server);

    let size = large.size();
    let is_right = |pos: u64| file.begin(pos as i64) == Ok(large.place(pos));
    let mut seed = 1u64;
    let anywhere = (0..20_000).all(|_| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        is_right(((u128::from(seed) * u128::from(size)) >> 64) as u64)
    });
    let ends = is_right(0) && is_right(size - 1) && file.begin(size as i64) == Err(ENOENT);
    let borders = (1..100).all(|i| {
        let start = large.start(i * (OPENED / 100));
        is_right(start - 1) && is_right(start)
    });

    let shown = CString::try_from_fmt(fmt!("{}", Shown(conn.mount())))?;
    let wanted = CString::try_from_fmt(fmt!(
        " size={size} kind={kind} extents={OPENED} daxdevs=1 bytes={bytes} "
    ))?;
    let is_shown = shown.to_str()?.contains(wanted.to_str()?);
    drop(file);
    Ok(asked && anywhere && ends && borders && is_shown)
}

#[kunit_tests(famfs_large)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_map_of_one_size() -> Result {
        assert!(is_resolved(Shape::Uniform, "uniform", 64 + 8 * OPENED)?);
        Ok(())
    }

    #[test]
    fn the_largest_map_of_mixed_sizes() -> Result {
        assert!(is_resolved(Shape::Mixed, "mixed", 64 + 16 * OPENED)?);
        Ok(())
    }

    /// A notice takes as long as the file has ranges, not as their square: that would be hours.
    #[test]
    fn a_failure_and_a_removal_under_it() -> Result {
        let large = Large {
            shape: Shape::Uniform,
            n: OPENED,
        };
        let dax = Dax::new(large.size())?;
        let server = Server::new(large.message()?);
        let conn = Conn::new(33)?;
        conn.push(&dax, 0)?;
        let file = File::opened(&conn)?;
        drop(server);
        let (_, offset, _) = large.extent(1);
        dax.fail(offset, 4096, POISON)?;
        assert_eq!(file.begin(UNIT as i64), Err(EHWPOISON()));
        assert_eq!(file.begin(0), Err(EIO));
        dax.kill();
        assert_eq!(file.begin(UNIT as i64), Err(ENXIO));
        drop(file);
        Ok(())
    }

    #[test]
    fn one_extent_more_is_too_many() -> Result {
        let large = Large {
            shape: Shape::Mixed,
            n: MOST + 1,
        };
        let dax = Dax::new(large.size())?;
        let server = Server::new(large.message()?);
        let conn = Conn::new(33)?;
        conn.push(&dax, 0)?;
        let file = File::new()?;
        assert_eq!(file.open(&conn), Err(EFBIG));
        // It is the size that is refused, before a second request.
        assert_eq!(server.requests(), (1, 0));
        drop(file);
        Ok(())
    }
}
