// SPDX-License-Identifier: GPL-2.0-only

//! What a fault finds: memory of a device, or why there is none.

use kernel::prelude::*;

use crate::{
    fake::POISON,
    fixture::Mapped,
    fmap::Policy,
    message::{
        interleaved,
        simple,
        MIB, //
    },
    sys::errno::EHWPOISON,
};

/// A file of 7 MiB - 1 with 4 MiB on device 1, and then 4 MiB on device 0.
fn two_devices(policy: Policy) -> Result<Mapped> {
    let extents = [(1, 2 * MIB, 4 * MIB), (0, 8 * MIB, 4 * MIB)];
    Mapped::new(&simple(7 * MIB - 1, &extents)?, 2, policy)
}

#[kunit_tests(famfs_iomap_begin)]
mod tests {
    use super::*;

    #[test]
    fn offset_length_and_device_are_exact() -> Result {
        let map = two_devices(Policy::Device)?;
        assert_eq!(map.map(0), Ok((1, 2 * MIB, 4 * MIB)));
        assert_eq!(map.map(4096), Ok((1, 2 * MIB + 4096, 4 * MIB - 4096)));
        assert_eq!(map.map(4 * MIB - 1), Ok((1, 6 * MIB - 1, 1)));
        assert_eq!(map.map(4 * MIB), Ok((0, 8 * MIB, 4 * MIB)));
        assert_eq!(map.map(7 * MIB - 2), Ok((0, 11 * MIB - 2, MIB + 2)));
        Ok(())
    }

    #[test]
    fn an_interleaved_file_gets_a_chunk_at_a_time() -> Result {
        let strips = [
            (0, 0, 4 * MIB),
            (1, 2 * MIB, 4 * MIB),
            (2, 4 * MIB, 4 * MIB),
        ];
        let message = interleaved(12 * MIB, &[(2 << 20, 12 * MIB, &strips)])?;
        let map = Mapped::new(&message, 3, Policy::Device)?;
        assert_eq!(map.map(0), Ok((0, 0, 2 * MIB)));
        assert_eq!(map.map(2 * MIB), Ok((1, 2 * MIB, 2 * MIB)));
        assert_eq!(map.map(6 * MIB - 1), Ok((2, 6 * MIB - 1, 1)));
        assert_eq!(map.map(6 * MIB), Ok((0, 2 * MIB, 2 * MIB)));
        assert_eq!(map.map(12 * MIB), Err(ENOENT));
        Ok(())
    }

    #[test]
    fn there_is_nothing_past_the_end() -> Result {
        let map = two_devices(Policy::Device)?;
        assert_eq!(map.map(7 * MIB - 1), Err(ENOENT));
        assert_eq!(map.map(8 * MIB), Err(ENOENT));
        assert_eq!(map.map(i64::MAX as u64), Err(ENOENT));
        assert_eq!(map.map(u64::MAX), Err(ENOENT));
        Ok(())
    }

    #[test]
    fn suspicion_alone_changes_nothing() -> Result {
        let map = two_devices(Policy::Device)?;
        map.file().suspect();
        assert!(map.file().is_suspect());
        assert_eq!(map.map(1), Ok((1, 2 * MIB + 1, 4 * MIB - 1)));
        assert_eq!(map.map(7 * MIB - 1), Err(ENOENT));
        Ok(())
    }

    #[test]
    fn a_failure_takes_the_device_away() -> Result {
        let map = two_devices(Policy::Device)?;
        map.dax[1].fail(3 * MIB, 4096, POISON)?;
        // Not told yet: an access that has begun goes on.
        assert_eq!(map.map(MIB), Ok((1, 3 * MIB, 3 * MIB)));
        map.file().suspect();
        assert_eq!(map.map(MIB), Err(EHWPOISON()));
        assert_eq!(map.map(MIB + 4095), Err(EHWPOISON()));
        assert_eq!(map.map(MIB + 4096), Err(EIO));
        assert_eq!(map.map(0), Err(EIO));
        assert_eq!(map.map(4 * MIB), Ok((0, 8 * MIB, 4 * MIB)));
        Ok(())
    }

    #[test]
    fn a_failure_takes_a_range_away() -> Result {
        let map = two_devices(Policy::Range)?;
        map.dax[1].fail(3 * MIB, 4096, POISON)?;
        map.dax[1].fail(2 * MIB + 8192, 4096, POISON)?;
        map.file().suspect();
        assert_eq!(map.map(0), Ok((1, 2 * MIB, 8192)));
        assert_eq!(map.map(8191), Ok((1, 2 * MIB + 8191, 1)));
        assert_eq!(map.map(8192), Err(EHWPOISON()));
        let len = MIB - 3 * 4096;
        assert_eq!(map.map(3 * 4096), Ok((1, 2 * MIB + 3 * 4096, len)));
        assert_eq!(map.map(MIB), Err(EHWPOISON()));
        let behind = MIB + 4096;
        assert_eq!(map.map(behind), Ok((1, 2 * MIB + behind, 4 * MIB - behind)));
        assert_eq!(map.map(4 * MIB), Ok((0, 8 * MIB, 4 * MIB)));
        Ok(())
    }

    #[test]
    fn a_removal_takes_the_device_away() -> Result {
        for policy in [Policy::Device, Policy::Range] {
            let map = two_devices(policy)?;
            map.dax[0].kill();
            map.file().suspect();
            assert_eq!(map.map(4 * MIB), Err(ENXIO));
            assert_eq!(map.map(0), Ok((1, 2 * MIB, 4 * MIB)));
        }
        Ok(())
    }

    #[test]
    fn ranges_are_found_on_the_right_device() -> Result {
        let map = two_devices(Policy::Device)?;
        let hits = map.ranges_on(map.daxdevs[0].state(), 9 * MIB..10 * MIB)?;
        assert_eq!(hits.len(), 1);
        assert_eq!(hits[0], 5 * MIB..6 * MIB);
        let none = map.ranges_on(map.daxdevs[1].state(), 9 * MIB..10 * MIB)?;
        assert_eq!(none.len(), 0);
        Ok(())
    }
}
