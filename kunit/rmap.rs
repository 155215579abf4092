// SPDX-License-Identifier: GPL-2.0-only

//! From a device to the files that have memory there.

use core::ops::Range;

use kernel::{
    prelude::*,
    sync::{
        atomic::Acquire,
        Arc, //
    },
};

use crate::{
    fake::{
        Conn,
        Dax,
        File,
        HeldUp,
        Server,
        POISON,
        REMOVAL, //
    },
    file::FileMap,
    fixture::DAX_BYTES,
    jobs::Jobs,
    message::{
        self,
        interleaved,
        simple,
        MIB, //
    },
    provider::Famfs,
    sys::{
        errno::{
            EADDRINUSE,
            EHWPOISON, //
        },
        rmap::{
            Cursor,
            Rmap, //
        },
    },
};

/// A mount, with devices of the indices 0 and 1, and its server. Fields are dropped in this order.
struct Setup {
    conn: Conn,
    server: Server,
    dax: [Dax; 2],
}

impl Setup {
    fn new() -> Result<Self> {
        let dax = [Dax::new(DAX_BYTES)?, Dax::new(DAX_BYTES)?];
        let server = Server::new(simple(2 * MIB, &[(0, 4 * MIB, 2 * MIB)])?);
        let conn = Conn::new(31)?;
        conn.push(&dax[0], 0)?;
        conn.push(&dax[1], 1)?;
        Ok(Self { conn, server, dax })
    }

    /// The server's files have this memory from now on.
    fn serve(&mut self, extents: &[message::Range]) -> Result {
        self.server.set_fmap(simple(2 * MIB, extents)?);
        Ok(())
    }

    fn opened(&mut self, extents: &[message::Range]) -> Result<File> {
        self.serve(extents)?;
        File::opened(&self.conn)
    }

    fn rmap(&self, index: u16) -> Result<Arc<Rmap<Famfs>>> {
        let daxdev = self.conn.mount().get(index).ok_or(ENOENT)?;
        Ok(daxdev.state().rmap().clone())
    }

    /// The ranges of device `index` that a walk of the part `within` visits.
    fn visited(&self, index: u16, within: Range<u64>) -> Result<KVec<Range<u64>>> {
        let rmap = self.rmap(index)?;
        let (mut ranges, mut cursor) = (KVec::new(), Cursor::default());
        while let Some(visit) = rmap.next(within.clone(), &mut cursor) {
            ranges.push(visit.range(), GFP_KERNEL)?;
        }
        Ok(ranges)
    }

    /// Number of ranges that files have on each device.
    fn links(&self) -> Result<[usize; 2]> {
        let all = |index| Ok::<_, Error>(self.visited(index, 0..u64::MAX)?.len());
        Ok([all(0)?, all(1)?])
    }

    /// How often each device lists a file.
    fn listed(&self) -> Result<[usize; 2]> {
        let count = |index| {
            let mut n = 0;
            self.rmap(index)?.for_each(|_, _| n += 1);
            Ok::<_, Error>(n)
        };
        Ok([count(0)?, count(1)?])
    }
}

fn is(found: Option<&FileMap>, file: &File) -> bool {
    let map = file.map();
    map.is_some() && found.map(core::ptr::from_ref) == map.map(core::ptr::from_ref)
}

fn is_suspect(file: &File) -> bool {
    file.map().is_some_and(|map| map.is_suspect())
}

/// An open that is held up with its map ready, and a memory failure that has found it; and whether
/// it got so far.
fn failure_meets_open(setup: &Arc<Setup>, file: &Arc<File>, jobs: &Arc<Jobs>) -> Result<bool> {
    let (bench, opening) = (setup.clone(), file.clone());
    jobs.spawn(move || opening.open(&bench.conn))?;
    let linked = jobs.settle(1) && setup.links()? == [1, 0];
    let bench = setup.clone();
    jobs.spawn(move || bench.dax[0].fail(0, 4096, POISON))?;
    Ok(jobs.settle(2) && linked && jobs.done.load(Acquire) == 0)
}

#[kunit_tests(famfs_rmap)]
mod tests {
    use super::*;

    #[test]
    fn each_range_is_visited() -> Result {
        let mut setup = Setup::new()?;
        // The first two follow each other on the device, but not in the file.
        let extents = [
            (0, 4 * MIB, 2 * MIB),
            (0, 2 * MIB, 2 * MIB),
            (0, 10 * MIB, 4 * MIB),
        ];
        let file = setup.opened(&extents)?;
        let (low, mid, high) = (2 * MIB..4 * MIB, 4 * MIB..6 * MIB, 10 * MIB..14 * MIB);
        let all = setup.visited(0, 0..u64::MAX)?;
        assert_eq!(&all[..], &[low.clone(), mid.clone(), high.clone()]);
        let inner = setup.visited(0, 4 * MIB..10 * MIB)?;
        assert_eq!((inner.len(), &inner[0]), (1, &mid));
        let edges = setup.visited(0, 6 * MIB - 1..10 * MIB + 1)?;
        assert_eq!(&edges[..], &[mid, high.clone()]);
        let last = setup.visited(0, 14 * MIB - 1..14 * MIB)?;
        assert_eq!((last.len(), &last[0]), (1, &high));
        assert_eq!(setup.visited(0, 6 * MIB..10 * MIB)?.len(), 0);
        assert_eq!(setup.visited(0, 14 * MIB..u64::MAX)?.len(), 0);
        assert_eq!(setup.visited(0, 4 * MIB..4 * MIB)?.len(), 0);
        assert_eq!(setup.links()?, [3, 0]);
        assert_eq!(setup.listed()?, [1, 0]);
        let rmap = setup.rmap(0)?;
        let (mut cursor, mut right) = (Cursor::default(), 0);
        while let Some(visit) = rmap.next(0..u64::MAX, &mut cursor) {
            right += u32::from(is(visit.file().map(|found| found.head), &file));
        }
        assert_eq!(right, 3);
        Ok(())
    }

    #[test]
    fn ranges_that_follow_each_other_are_one() -> Result {
        let mut setup = Setup::new()?;
        let extents = [
            (0, 2 * MIB, 2 * MIB),
            (0, 4 * MIB, 4 * MIB),
            (1, 8 * MIB, 2 * MIB),
            (0, 8 * MIB, 2 * MIB),
            (0, 10 * MIB, 2 * MIB),
            (1, 12 * MIB, 2 * MIB),
        ];
        let file = setup.opened(&extents)?;
        let first = setup.visited(0, 0..u64::MAX)?;
        assert_eq!(&first[..], &[2 * MIB..8 * MIB, 8 * MIB..12 * MIB]);
        let second = setup.visited(1, 0..u64::MAX)?;
        assert_eq!(&second[..], &[8 * MIB..10 * MIB, 12 * MIB..14 * MIB]);
        assert_eq!(setup.listed()?, [1, 1]);
        file.evict();
        assert_eq!(setup.links()?, [0, 0]);

        let strips = [(1, 0, 4 * MIB), (0, 0, 4 * MIB), (0, 4 * MIB, 4 * MIB)];
        let message = interleaved(12 * MIB, &[(2 << 20, 12 * MIB, &strips)])?;
        setup.server.set_fmap(message);
        file.open(&setup.conn)?;
        assert_eq!(setup.links()?, [1, 1]);
        assert_eq!(setup.visited(0, 0..u64::MAX)?[0], 0..8 * MIB);
        assert_eq!(setup.visited(1, 0..u64::MAX)?[0], 0..4 * MIB);
        drop(file);
        Ok(())
    }

    #[test]
    fn a_walk_goes_on_without_those_that_went() -> Result {
        let mut setup = Setup::new()?;
        let mut files = KVec::new();
        for mib in [4, 6, 8, 2] {
            let file = setup.opened(&[(0, mib * MIB, 2 * MIB)])?;
            files.push(file, GFP_KERNEL)?;
        }
        let rmap = setup.rmap(0)?;
        let mut cursor = Cursor::default();
        let mut next = || {
            let visit = rmap.next(0..u64::MAX, &mut cursor);
            visit.map(|visit| visit.range().start / MIB)
        };
        assert_eq!(next(), Some(2));
        files[3].evict();
        files[0].evict();
        assert_eq!(next(), Some(6));
        assert_eq!(next(), Some(8));
        assert_eq!(next(), None);
        Ok(())
    }

    #[test]
    fn memory_of_another_file_is_refused() -> Result {
        let mut setup = Setup::new()?;
        let first = setup.opened(&[(1, 4 * MIB, 4 * MIB)])?;
        let second = File::new()?;
        let overlaps = [
            // Two links of one device, then the refusal by the other.
            &[
                (0, 0, 2 * MIB),
                (0, 4 * MIB, 2 * MIB),
                (1, 6 * MIB, 2 * MIB),
            ][..],
            &[(0, 0, 2 * MIB), (1, 2 * MIB, 4 * MIB)][..],
            &[(1, 0, 2 * MIB), (1, 4 * MIB, 4 * MIB)][..],
            &[(1, 2 * MIB, 8 * MIB)][..],
        ];
        for extents in overlaps {
            setup.serve(extents)?;
            assert_eq!(second.open(&setup.conn), Err(EADDRINUSE()));
            assert!(second.map().is_none());
            assert_eq!(second.size(), 0);
            assert_eq!(setup.links()?, [0, 1]);
        }
        assert_eq!(first.write(0, b"famfs"), Ok(5));
        // Next to it on both sides, and at the same place of another device.
        setup.serve(&[
            (1, 2 * MIB, 2 * MIB),
            (0, 4 * MIB, 4 * MIB),
            (1, 8 * MIB, 2 * MIB),
        ])?;
        assert_eq!(second.open(&setup.conn), Ok(()));
        assert_eq!(setup.links()?, [1, 3]);
        drop((first, second));
        Ok(())
    }

    #[test]
    fn memory_is_free_again_after_the_eviction() -> Result {
        let setup = Setup::new()?;
        let (first, second) = (File::opened(&setup.conn)?, File::new()?);
        assert_eq!(second.open(&setup.conn), Err(EADDRINUSE()));
        first.evict();
        assert_eq!(second.open(&setup.conn), Ok(()));
        assert_eq!(first.open(&setup.conn), Err(EADDRINUSE()));
        drop((first, second));
        Ok(())
    }

    #[test]
    fn an_inode_does_not_stand_in_its_own_way() -> Result {
        let setup = Arc::new(Setup::new()?, GFP_KERNEL)?;
        let file = Arc::new(File::opened(&setup.conn)?, GFP_KERNEL)?;
        let jobs = Jobs::new()?;
        let held_up = HeldUp::new();
        let (bench, opening) = (setup.clone(), file.clone());
        jobs.spawn(move || opening.open(&bench.conn))?;
        let began = jobs.settle(1);
        // Both start at the same byte.
        let meanwhile = setup.links()?;
        drop(held_up);
        assert!(Jobs::reach(&jobs.done, 1));
        assert!(began);
        assert_eq!(jobs.failed.load(Acquire), 0);
        assert_eq!(meanwhile, [2, 0]);
        assert_eq!(setup.links()?, [1, 0]);
        assert_eq!(file.read(0, &mut [0; 4]), Ok(4));
        drop(file);
        Ok(())
    }

    #[test]
    fn an_eviction_waits_for_a_visit() -> Result {
        let setup = Setup::new()?;
        let file = File::opened(&setup.conn)?;
        let rmap = setup.rmap(0)?;
        let jobs = Jobs::new()?;
        let visit = rmap.next(0..u64::MAX, &mut Cursor::default());
        let visit = visit.ok_or(ENOENT)?;
        let found = is(visit.file().map(|found| found.head), &file);
        jobs.spawn(move || {
            file.evict();
            Ok(())
        })?;
        let waits = jobs.settle(1) && jobs.done.load(Acquire) == 0;
        drop(visit);
        assert!(Jobs::reach(&jobs.done, 1));
        assert!(found);
        assert!(waits);
        assert_eq!(setup.links()?, [0, 0]);
        Ok(())
    }

    #[test]
    fn a_failure_before_the_map_is_entered_is_seen() -> Result {
        for (flags, health, error) in [
            (POISON, "failed", EHWPOISON()),
            (REMOVAL, "removed", ENXIO), //
        ] {
            let setup = Setup::new()?;
            // The devices have been found by then.
            setup.dax[0].fail_on_access(4 * MIB, 4096, flags);
            let file = File::opened(&setup.conn)?;
            let daxdev = setup.conn.mount().get(0).ok_or(ENOENT)?;
            assert_eq!(daxdev.state().health(), health);
            assert!(is_suspect(&file));
            assert_eq!(file.read(0, &mut [0; 4]), Err(error));
            // A removal ends with this, and its holder waits for it.
            setup.dax[0].kill();
            drop((file, daxdev));
        }
        Ok(())
    }

    #[test]
    fn a_failure_waits_for_a_map_that_is_being_installed() -> Result {
        let setup = Arc::new(Setup::new()?, GFP_KERNEL)?;
        let file = Arc::new(File::new()?, GFP_KERNEL)?;
        let jobs = Jobs::new()?;
        let held_up = HeldUp::new();
        let met = failure_meets_open(&setup, &file, &jobs);
        drop(held_up);
        assert!(Jobs::reach(&jobs.done, 2));
        assert_eq!(met, Ok(true));
        assert_eq!(jobs.failed.load(Acquire), 0);
        assert!(is_suspect(&file));
        assert_eq!(file.read(0, &mut [0; 4]), Err(EHWPOISON()));
        drop(file);
        Ok(())
    }

    #[test]
    fn a_failure_does_not_wait_for_a_map_that_never_comes() -> Result {
        let setup = Arc::new(Setup::new()?, GFP_KERNEL)?;
        let file = Arc::new(File::new()?, GFP_KERNEL)?;
        let jobs = Jobs::new()?;
        let held_up = HeldUp::new();
        let met = failure_meets_open(&setup, &file, &jobs);
        held_up.fail(ENOMEM);
        assert!(Jobs::reach(&jobs.done, 2));
        assert_eq!(met, Ok(true));
        // The open.
        assert_eq!(jobs.failed.load(Acquire), 1);
        assert!(file.map().is_none());
        assert_eq!(setup.links()?, [0, 0]);
        Ok(())
    }
}
