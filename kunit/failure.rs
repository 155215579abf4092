// SPDX-License-Identifier: GPL-2.0-only

//! Memory that fails, and devices that go away.

use kernel::{
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc, //
    }, //
};

use crate::{
    daxdev::Access,
    fake::{
        Conn,
        Dax,
        File,
        Server,
        POISON,
        REMOVAL, //
    },
    fixture::{
        hold,
        DAX_BYTES, //
    },
    fmap::{
        wire::{
            DAXDEV_FORGET,
            POLICY_DEVICE,
            POLICY_RANGE, //
        },
        Policy, //
    },
    jobs::Jobs,
    message::{
        simple,
        MIB, //
    },
    poison::Poison,
    sys::errno::{
        EHWPOISON,
        EOPNOTSUPP, //
    },
};

/// Two files on a mount with two devices. Fields are dropped in this order.
struct Setup {
    /// 2 MiB on device 0, then 1 MiB on device 1.
    both: File,
    /// 2 MiB on device 1.
    second: File,
    conn: Conn,
    server: Server,
    dax: [Dax; 2],
}

impl Setup {
    fn new() -> Result<Self> {
        Self::with_policy(POLICY_DEVICE)
    }

    fn with_policy(policy: u32) -> Result<Self> {
        let dax = [Dax::new(DAX_BYTES)?, Dax::new(DAX_BYTES)?];
        let extents = [(0, 4 * MIB, 2 * MIB), (1, 0, 2 * MIB)];
        let mut server = Server::new(simple(3 * MIB, &extents)?);
        let conn = Conn::new(31)?;
        for (dax, index) in dax.iter().zip(0..) {
            conn.daxdev_open(dax.fd()?.number(), policy, index)?;
        }
        let both = File::opened(&conn)?;
        server.set_fmap(simple(2 * MIB, &[(1, 4 * MIB, 2 * MIB)])?);
        let second = File::opened(&conn)?;
        Ok(Self {
            both,
            second,
            conn,
            server,
            dax,
        })
    }

    /// What the server's wish says to forget the poison of a device, by its descriptor.
    fn forget(&self, dax: &Dax, index: u64) -> Result {
        self.conn
            .daxdev_open(dax.fd()?.number(), DAXDEV_FORGET, index)
    }

    fn health(&self, index: u16) -> &'static str {
        let daxdev = self.conn.mount().get(index);
        daxdev.map_or("none", |daxdev| daxdev.state().health())
    }
}

fn is_suspect(file: &File) -> bool {
    file.map().is_some_and(|map| map.is_suspect())
}

/// What a read of four bytes says.
fn read(file: &File, pos: u64) -> Result<usize> {
    file.read(pos as i64, &mut [0; 4])
}

#[kunit_tests(famfs_failure)]
mod tests {
    use super::*;

    #[test]
    fn policy_device() -> Result {
        let dax = Dax::new(DAX_BYTES)?;
        let daxdev = hold(&dax, 0, Policy::Device)?;
        let state = daxdev.state();
        assert_eq!(state.health(), "ok");
        assert!(state.is_intact());
        assert_eq!(state.check(0, 5, Access::Fault), Ok(5));
        dax.fail(8192, 4096, POISON)?;
        assert_eq!(state.health(), "failed");
        assert!(!state.is_intact());
        let fault = |offset, len| state.check(offset, len, Access::Fault);
        assert_eq!(fault(8192, 1), Err(EHWPOISON()));
        assert_eq!(fault(12287, 1), Err(EHWPOISON()));
        assert_eq!(fault(12288, 1), Err(EIO));
        assert_eq!(fault(8191, 1), Err(EIO));
        assert_eq!(fault(0, DAX_BYTES), Err(EIO));
        let read = |offset, len| state.check(offset, len, Access::ReadWrite);
        assert_eq!(read(8192, 1), Err(EHWPOISON()));
        assert_eq!(read(0, 1), Err(EHWPOISON()));
        assert_eq!(read(DAX_BYTES - 1, 1), Err(EHWPOISON()));
        Ok(())
    }

    #[test]
    fn policy_range() -> Result {
        let dax = Dax::new(DAX_BYTES)?;
        let daxdev = hold(&dax, 0, Policy::Range)?;
        let state = daxdev.state();
        dax.fail(8192, 4096, POISON)?;
        dax.fail(4096, 4096, POISON)?;
        dax.fail(1 << 20, 4096, POISON)?;
        assert_eq!(state.health(), "failed");
        for access in [Access::Fault, Access::ReadWrite] {
            let check = |offset, len| state.check(offset, len, access);
            assert_eq!(check(0, 4096), Ok(4096));
            assert_eq!(check(0, 4097), Ok(4096));
            assert_eq!(check(100, 1 << 20), Ok(3996));
            assert_eq!(check(4096, 1), Err(EHWPOISON()));
            assert_eq!(check(12287, 2), Err(EHWPOISON()));
            assert_eq!(check(12288, u64::MAX), Ok((1 << 20) - 12288));
            let behind = (1 << 20) + 4096;
            assert_eq!(check(behind, 1 << 20), Ok(1 << 20));
        }
        Ok(())
    }

    #[test]
    fn poison_adds_up() -> Result {
        let dax = Dax::new(DAX_BYTES)?;
        let daxdev = hold(&dax, 0, Policy::Range)?;
        let state = daxdev.state();
        const PAGE: u64 = 4096;
        let fail = |first, pages| dax.fail(first * PAGE, pages * PAGE, POISON);
        let is_bad = |page| state.check(page * PAGE, PAGE, Access::Fault) == Err(EHWPOISON());
        // The same again, a part of it, what follows it, what precedes it, what contains it; and
        // what joins it with the one apart.
        let failures = [
            (10, 4),
            (20, 2),
            (10, 4),
            (11, 1),
            (14, 1),
            (9, 1),
            (8, 8),
            (15, 6),
        ];
        let mut bad = [false; 32];
        for (first, pages) in failures {
            fail(first, pages)?;
            for page in first..first + pages {
                bad[page as usize] = true;
            }
            for (page, bad) in (0..).zip(bad) {
                assert_eq!(is_bad(page), bad);
            }
        }
        assert_eq!(state.check(0, DAX_BYTES, Access::ReadWrite), Ok(8 * PAGE));
        assert_eq!(state.check(22 * PAGE, PAGE, Access::ReadWrite), Ok(PAGE));
        Ok(())
    }

    #[test]
    fn too_much_poison_is_all() -> Result {
        let setup = Setup::with_policy(POLICY_RANGE)?;
        const PAGE: u64 = 4096;
        // Behind all that the files have, on a device that pretends to be larger than it is.
        let fail = |n: usize| setup.dax[1].fail((1 << 30) + n as u64 * 2 * PAGE, PAGE, POISON);
        let daxdev = setup.conn.mount().get(1).ok_or(ENODEV)?;
        let check = |offset| daxdev.state().check(offset, 2 * PAGE, Access::ReadWrite);
        for n in 0..Poison::MAX {
            fail(n)?;
        }
        assert_eq!(check((1 << 30) + PAGE), Ok(PAGE));
        assert_eq!(check((1 << 30) + 2 * PAGE), Err(EHWPOISON()));
        // One that there is room for: it joins two.
        setup.dax[1].fail((1 << 30) + PAGE, PAGE, POISON)?;
        fail(Poison::MAX)?;
        assert!(!is_suspect(&setup.second));
        assert_eq!(read(&setup.second, 0), Ok(4));
        fail(Poison::MAX + 1)?;
        assert!(is_suspect(&setup.second));
        assert_eq!(read(&setup.second, 0), Err(EHWPOISON()));
        assert_eq!(check(0), Err(EHWPOISON()));
        fail(Poison::MAX + 2)?;
        assert_eq!(check(DAX_BYTES), Err(EHWPOISON()));
        let mut noted = 0;
        daxdev.state().for_each_poison(|range| {
            assert_eq!(range, 0..u64::MAX);
            noted += 1;
        });
        assert_eq!(noted, 1);
        assert_eq!(setup.forget(&setup.dax[1], 1), Ok(()));
        assert_eq!(read(&setup.second, 0), Ok(4));
        Ok(())
    }

    #[test]
    fn poison_is_forgotten() -> Result {
        let setup = Setup::with_policy(POLICY_RANGE)?;
        let [first, second] = &setup.dax;
        first.fail(4 * MIB, 4096, POISON)?;
        second.fail(4 * MIB, 4096, POISON)?;
        assert_eq!(read(&setup.second, 0), Err(EHWPOISON()));
        assert_eq!(setup.forget(second, 1), Ok(()));
        assert_eq!((setup.health(0), setup.health(1)), ("failed", "ok"));
        assert_eq!(read(&setup.second, 0), Ok(4));
        assert_eq!(read(&setup.both, 0), Err(EHWPOISON()));
        // It is noted anew, and nothing of what was forgotten with it.
        second.fail(4 * MIB + 8192, 4096, POISON)?;
        assert_eq!(setup.health(1), "failed");
        assert_eq!(read(&setup.second, 0), Ok(4));
        assert_eq!(read(&setup.second, 8192), Err(EHWPOISON()));
        assert_eq!(setup.forget(second, 1), Ok(()));
        assert_eq!(setup.forget(second, 1), Ok(()));
        assert_eq!(setup.forget(second, 2), Err(ENOENT));
        assert_eq!(setup.forget(second, 65536), Err(EINVAL));
        assert_eq!(setup.forget(first, 1), Err(EINVAL));
        assert_eq!(setup.health(0), "failed");
        second.kill();
        assert_eq!(setup.forget(second, 1), Err(ENXIO));
        assert_eq!(setup.health(1), "removed");
        assert_eq!(read(&setup.second, 0), Err(ENXIO));
        Ok(())
    }

    /// What fails while the pages are made good is not forgotten, nor anything else.
    #[test]
    fn a_failure_meanwhile_is_not_forgotten() -> Result {
        let setup = Setup::with_policy(POLICY_RANGE)?;
        let dax = &setup.dax[1];
        dax.fail(4 * MIB, 4096, POISON)?;
        dax.fail_on_access(4 * MIB + 8192, 4096, POISON);
        assert_eq!(setup.forget(dax, 1), Err(EBUSY));
        assert_eq!(setup.health(1), "failed");
        assert_eq!(read(&setup.second, 0), Err(EHWPOISON()));
        assert_eq!(read(&setup.second, 8192), Err(EHWPOISON()));
        assert_eq!(setup.forget(dax, 1), Ok(()));
        assert_eq!(read(&setup.second, 8192), Ok(4));
        Ok(())
    }

    /// Each failure counts when its report has returned, whatever is reported meanwhile.
    #[test]
    fn failures_at_once() -> Result {
        const PAGE: u64 = 4096;
        let setup = Arc::new(Setup::with_policy(POLICY_RANGE)?, GFP_KERNEL)?;
        let jobs = Jobs::new()?;
        for job in 0..4 {
            let setup = setup.clone();
            jobs.spawn(move || {
                for pos in (0..32).map(|round| (round * 8 + job * 2) * PAGE) {
                    setup.dax[1].fail(4 * MIB + pos, PAGE, POISON)?;
                    let lost = read(&setup.second, pos) == Err(EHWPOISON());
                    let rest = read(&setup.second, pos + PAGE) == Ok(4);
                    if !lost || !rest {
                        return Err(EIO);
                    }
                }
                Ok(())
            })?;
        }
        assert!(Jobs::reach(&jobs.done, 4));
        assert_eq!(jobs.failed.load(Relaxed), 0);
        let daxdev = setup.conn.mount().get(1).ok_or(ENODEV)?;
        let mut next = 4 * MIB;
        daxdev.state().for_each_poison(|range| {
            assert_eq!(range, next..next + PAGE);
            next += 2 * PAGE;
        });
        assert_eq!(next, 5 * MIB);
        assert_eq!(setup.forget(&setup.dax[1], 1), Ok(()));
        assert_eq!(read(&setup.second, 0), Ok(4));
        Ok(())
    }

    #[test]
    fn a_removal_among_failures() -> Result {
        let setup = Arc::new(Setup::with_policy(POLICY_RANGE)?, GFP_KERNEL)?;
        let jobs = Jobs::new()?;
        for job in 0..2 {
            let setup = setup.clone();
            jobs.spawn(move || {
                let mut pages = (0..512).map(|page| 4 * MIB + page * 4096).cycle();
                let mut fail = || setup.dax[job].fail(pages.next().unwrap_or(0), 4096, POISON);
                while fail() == Ok(()) {}
                (fail() == Err(ENXIO)).then_some(()).ok_or(EIO)
            })?;
        }
        assert!(jobs.settle(2));
        setup.dax[0].kill();
        setup.dax[1].kill();
        assert!(Jobs::reach(&jobs.done, 2));
        assert_eq!(jobs.failed.load(Relaxed), 0);
        assert_eq!((setup.health(0), setup.health(1)), ("removed", "removed"));
        assert_eq!(read(&setup.both, 0), Err(ENXIO));
        assert_eq!(read(&setup.second, 0), Err(ENXIO));
        Ok(())
    }

    /// The kernel marks the first page of the 2 MiB that one DAX entry has, and all of it is made
    /// good; what isn't noted isn't.
    #[test]
    fn pages_are_used_again() -> Result {
        let setup = Setup::with_policy(POLICY_RANGE)?;
        let dax = &setup.dax[1];
        dax.fail(6 * MIB - 4096, 4096, POISON)?;
        dax.fail(DAX_BYTES - 4096, u64::MAX - DAX_BYTES, POISON)?;
        let good = [
            4 * MIB,
            6 * MIB - 4096,
            DAX_BYTES - 2 * MIB,
            DAX_BYTES - 4096,
        ];
        let others = [4 * MIB - 4096, 6 * MIB];
        for offset in Iterator::chain(good.iter(), &others) {
            dax.mark(*offset);
        }
        assert_eq!(setup.forget(dax, 1), Ok(()));
        for offset in good {
            assert!(!dax.is_marked(offset));
        }
        for offset in others {
            assert!(dax.is_marked(offset));
        }
        // So that the pages can be freed.
        dax.fail(0, u64::MAX, POISON)?;
        setup.forget(dax, 1)
    }

    #[test]
    fn to_forget_is_not_to_push() -> Result {
        let dax = Dax::new(DAX_BYTES)?;
        let conn = Conn::new(31)?;
        let forget = || conn.daxdev_open(dax.fd()?.number(), DAXDEV_FORGET, 0);
        assert_eq!(forget(), Err(ENOENT));
        assert!(!conn.mount().is_pushed());
        assert!(!dax.is_held());
        let fd = dax.fd()?;
        for flags in [3, DAXDEV_FORGET | POLICY_RANGE, 8, 1 << 31] {
            assert_eq!(conn.daxdev_open(fd.number(), flags, 0), Err(EINVAL));
        }
        assert!(!dax.is_held());
        drop(conn);
        Ok(())
    }

    #[test]
    fn the_server_chooses_the_policy() -> Result {
        for (flags, other) in [(POLICY_DEVICE, Err(EHWPOISON())), (POLICY_RANGE, Ok(4))] {
            let setup = Setup::with_policy(flags)?;
            setup.dax[1].fail(4 * MIB, 4096, POISON)?;
            assert_eq!(read(&setup.second, 0), Err(EHWPOISON()));
            assert_eq!(read(&setup.second, 4096), other);
            assert_eq!(read(&setup.both, 2 * MIB), other);
            assert_eq!(is_suspect(&setup.both), flags == POLICY_DEVICE);
        }
        // Without a word from the server it is the module's, of which the suites know the default.
        let setup = Setup::with_policy(0)?;
        setup.dax[1].fail(4 * MIB, 4096, POISON)?;
        assert_eq!(read(&setup.second, 4096), Err(EHWPOISON()));
        Ok(())
    }

    #[test]
    fn health_only_worsens() -> Result {
        let dax = Dax::new(DAX_BYTES)?;
        let daxdev = hold(&dax, 0, Policy::Range)?;
        let state = daxdev.state();
        dax.fail(0, 4096, POISON)?;
        assert_eq!(state.health(), "failed");
        dax.fail(0, u64::MAX, REMOVAL)?;
        assert_eq!(state.health(), "removed");
        dax.fail(8192, 4096, POISON)?;
        assert_eq!(state.health(), "removed");
        assert_eq!(state.check(1 << 20, 1, Access::Fault), Err(ENXIO));
        dax.kill();
        assert_eq!(dax.fail(0, 4096, POISON), Err(ENXIO));
        assert_eq!(state.health(), "removed");
        Ok(())
    }

    #[test]
    fn notifications_without_sense_are_refused() -> Result {
        let dax = Dax::new(DAX_BYTES)?;
        let free = dax.fail(0, 4096, POISON);
        assert_eq!(free, Err(EOPNOTSUPP()));
        let daxdev = hold(&dax, 0, Policy::Range)?;
        assert_eq!(dax.fail(4096, 0, POISON), Err(EOPNOTSUPP()));
        assert_eq!(dax.fail(u64::MAX, 1, POISON), Err(EOPNOTSUPP()));
        assert_eq!(daxdev.state().health(), "ok");
        assert_eq!(dax.fail(0, u64::MAX, POISON), Ok(()));
        let all = daxdev.state().check(DAX_BYTES - 1, 1, Access::Fault);
        assert_eq!(all, Err(EHWPOISON()));
        drop(daxdev);
        assert_eq!(dax.fail(0, 4096, POISON), Err(EOPNOTSUPP()));
        Ok(())
    }

    #[test]
    fn files_on_the_device_fail_and_no_others() -> Result {
        let setup = Setup::new()?;
        assert_eq!(read(&setup.both, 0), Ok(4));
        setup.dax[0].fail(8 * MIB, 4096, POISON)?;
        assert_eq!((setup.health(0), setup.health(1)), ("failed", "ok"));
        assert!(is_suspect(&setup.both));
        assert!(!is_suspect(&setup.second));
        assert_eq!(read(&setup.both, 0), Err(EHWPOISON()));
        assert_eq!(setup.both.write(0, &[1]), Err(EHWPOISON()));
        assert_eq!(read(&setup.both, 2 * MIB), Ok(4));
        assert_eq!(read(&setup.second, 0), Ok(4));
        Ok(())
    }

    #[test]
    fn a_read_is_short_where_the_device_failed() -> Result {
        let setup = Setup::new()?;
        setup.dax[1].fail(0, 4096, POISON)?;
        assert_eq!(read(&setup.both, 2 * MIB - 3), Ok(3));
        assert_eq!(read(&setup.both, 2 * MIB), Err(EHWPOISON()));
        assert_eq!(setup.both.write(2 * MIB as i64 - 1, &[1; 8]), Ok(1));
        Ok(())
    }

    #[test]
    fn a_file_opened_later_knows() -> Result {
        let mut setup = Setup::new()?;
        setup.dax[1].fail(0, 4096, POISON)?;
        let elsewhere = simple(2 * MIB, &[(1, 8 * MIB, 2 * MIB)])?;
        setup.server.set_fmap(elsewhere);
        let later = File::opened(&setup.conn)?;
        assert!(is_suspect(&later));
        assert_eq!(read(&later, 0), Err(EHWPOISON()));
        drop(later);
        Ok(())
    }

    #[test]
    fn a_removal_fails_what_it_takes_away() -> Result {
        let setup = Setup::new()?;
        setup.dax[1].kill();
        assert_eq!((setup.health(0), setup.health(1)), ("ok", "removed"));
        assert!(!setup.dax[1].is_held());
        assert!(is_suspect(&setup.both) && is_suspect(&setup.second));
        assert_eq!(read(&setup.second, 0), Err(ENXIO));
        assert_eq!(setup.second.write(0, &[1]), Err(ENXIO));
        // No empty listing, as past the end.
        assert_eq!(setup.second.extents(0, MIB), Err(ENXIO));
        assert_eq!(read(&setup.both, 2 * MIB), Err(ENXIO));
        assert_eq!(read(&setup.both, 0), Ok(4));
        let file = File::new()?;
        assert_eq!(file.open(&setup.conn), Err(ENXIO));
        Ok(())
    }
}
