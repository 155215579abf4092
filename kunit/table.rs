// SPDX-License-Identifier: GPL-2.0-only

//! The daxdevs of a mount.

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
        Fd,
        File,
        Server,
        POISON, //
    },
    fixture::DAX_BYTES,
    jobs::Jobs,
    message::{
        daxdev,
        edit,
        simple,
        MIB, //
    },
};

/// A mount and a device, which the mount lets go of first.
struct Bench {
    conn: Conn,
    dax: Dax,
}

fn bench() -> Result<Arc<Bench>> {
    let bench = Bench {
        conn: Conn::new(31)?,
        dax: Dax::new(DAX_BYTES)?,
    };
    Ok(Arc::new(bench, GFP_KERNEL)?)
}

/// What an open says if the server answers GET_DAXDEV so.
fn open_with(reply: KVVec<u8>) -> Result<Option<Error>> {
    let mut server = Server::new(simple(MIB, &[(5, 0, 2 * MIB)])?);
    server.set_daxdev(reply);
    let conn = Conn::new(32)?;
    Ok(File::new()?.open(&conn).err())
}

#[kunit_tests(famfs_table)]
mod tests {
    use super::*;

    #[test]
    fn indices_may_be_sparse() -> Result {
        let dax = [Dax::new(MIB)?, Dax::new(MIB)?, Dax::new(MIB)?];
        let conn = Conn::new(31)?;
        let indices = [65535, 7, 0];
        for (dax, index) in dax.iter().zip(indices) {
            conn.push(dax, index)?;
            assert!(dax.is_held());
        }
        let mount = conn.mount();
        for index in [0, 7, 65535] {
            let daxdev = mount.get(index).ok_or(ENOENT)?;
            assert_eq!(daxdev.state().index(), index);
        }
        assert!(mount.get(1).is_none());
        assert!(mount.get(65534).is_none());
        let mut seen = KVec::new();
        let mut pushed = Ok(());
        mount.for_each(|daxdev| {
            if let Err(error) = seen.push(daxdev.state().index(), GFP_KERNEL) {
                pushed = Err(error);
            }
        });
        pushed?;
        assert_eq!(&seen[..], &[0, 7, 65535]);
        Ok(())
    }

    #[test]
    fn what_is_no_device_is_refused() -> Result {
        let dax = Dax::new(MIB)?;
        let devdax = Dax::devdax(MIB)?;
        let gone = Dax::new(MIB)?;
        gone.kill();
        let conn = Conn::new(31)?;
        let fd = dax.fd()?;
        assert_eq!(conn.daxdev_open(fd.number(), 3, 0), Err(EINVAL));
        assert_eq!(conn.daxdev_open(fd.number(), 0, 65536), Err(EINVAL));
        assert_eq!(conn.daxdev_open(fd.number(), 0, u64::MAX), Err(EINVAL));
        assert_eq!(conn.daxdev_open(-1, 0, 0), Err(EBADF));
        assert_eq!(conn.daxdev_open(1 << 20, 0, 0), Err(EBADF));
        assert_eq!(conn.daxdev_open(Fd::null()?.number(), 0, 0), Err(ENODEV));
        let in_devdax_mode = conn.push(&devdax, 0).map_err(|error| error.to_errno());
        assert_eq!(in_devdax_mode, Err(-95));
        assert!(!devdax.is_held());
        assert_eq!(conn.push(&gone, 0), Err(ENODEV));
        assert!(conn.mount().get(0).is_none());
        assert!(!conn.mount().is_pushed());
        assert_eq!(conn.daxdev_open(fd.number(), 0, 0), Ok(()));
        assert!(conn.mount().is_pushed());
        Ok(())
    }

    #[test]
    fn a_device_has_one_holder() -> Result {
        let dax = Dax::new(MIB)?;
        let other = Conn::new(32)?;
        {
            let conn = Conn::new(31)?;
            conn.push(&dax, 0)?;
            assert_eq!(conn.push(&dax, 1), Err(EBUSY));
            assert_eq!(other.push(&dax, 0), Err(EBUSY));
            assert!(conn.mount().get(1).is_none());
        }
        assert!(!dax.is_held());
        assert_eq!(other.push(&dax, 0), Ok(()));
        Ok(())
    }

    #[test]
    fn the_first_device_of_an_index_stays() -> Result {
        let (first, second) = (Dax::new(MIB)?, Dax::new(MIB)?);
        let conn = Conn::new(31)?;
        conn.push(&first, 3)?;
        let daxdev = conn.mount().get(3).ok_or(ENOENT)?;
        assert_eq!(conn.push(&first, 3), Ok(()));
        assert_eq!(conn.push(&second, 3), Ok(()));
        assert!(!second.is_held());
        assert!(Arc::ptr_eq(&daxdev, &conn.mount().get(3).ok_or(ENOENT)?));
        Ok(())
    }

    #[test]
    fn racing_adds_take_the_device_once() -> Result {
        let bench = bench()?;
        let jobs = Jobs::new()?;
        let lock = bench.dax.lock();
        for _ in 0..4 {
            let bench = bench.clone();
            jobs.spawn(move || bench.conn.push(&bench.dax, 7))?;
        }
        // Whoever gets as far as to take the device waits for its lock.
        assert!(jobs.settle(4));
        assert!(bench.conn.mount().get(7).is_none());
        drop(lock);
        assert!(Jobs::reach(&jobs.done, 4));
        assert_eq!(jobs.failed.load(Acquire), 0);
        assert!(bench.conn.mount().get(7).is_some());
        Ok(())
    }

    #[test]
    fn a_device_that_dies_while_it_is_taken_is_refused() -> Result {
        let bench = bench()?;
        let jobs = Jobs::new()?;
        let lock = bench.dax.lock();
        let taking = bench.clone();
        jobs.spawn(move || match taking.conn.push(&taking.dax, 7) {
            Err(error) if error == ENODEV => Ok(()),
            _ => Err(EIO),
        })?;
        // It has seen a device that is alive, and there is no holder yet to be told.
        assert!(jobs.settle(1));
        bench.dax.kill();
        drop(lock);
        assert!(Jobs::reach(&jobs.done, 1));
        assert_eq!(jobs.failed.load(Acquire), 0);
        assert!(!bench.dax.is_held());
        assert!(bench.conn.mount().get(7).is_none());
        Ok(())
    }

    #[test]
    fn a_failure_does_not_wait_for_a_mount() -> Result {
        let bench = bench()?;
        bench.conn.push(&bench.dax, 0)?;
        let second = Conn::new(32)?;
        let jobs = Jobs::new()?;
        // The driver core unbinds with this lock held.
        let lock = bench.dax.lock();
        let holding = bench.clone();
        jobs.spawn(move || second.push(&holding.dax, 0))?;
        assert!(jobs.settle(1));
        let failing = bench.clone();
        jobs.spawn(move || failing.dax.fail(0, 4096, POISON))?;
        let told = Jobs::reach(&jobs.done, 1);
        drop(lock);
        assert!(Jobs::reach(&jobs.done, 2));
        assert!(told);
        // It was held already.
        assert_eq!(jobs.failed.load(Acquire), 1);
        Ok(())
    }

    #[test]
    fn the_server_is_asked_for_a_device_that_is_not_there() -> Result {
        let server = Server::new(simple(MIB, &[(5, 0, 2 * MIB)])?);
        let conn = Conn::new(31)?;
        let file = File::new()?;
        assert_eq!(file.open(&conn), Err(EINVAL));
        assert_eq!(server.requests(), (1, 1));
        assert_eq!(server.last_daxdev(), 5);

        assert_eq!(open_with(daxdev(b"/famfs kunit")?)?, Some(ENOENT));
        assert_eq!(open_with(daxdev(b"/")?)?, Some(EINVAL));
        assert_eq!(open_with(daxdev(b"")?)?, Some(EINVAL));
        // Policy 2 gets as far as the name, 3 doesn't.
        let asking = |policy| edit(daxdev(b"/famfs kunit")?, 2, &[policy]);
        assert_eq!(open_with(asking(2)?)?, Some(ENOENT));
        assert_eq!(open_with(asking(3)?)?, Some(EINVAL));
        let mut short = daxdev(b"/")?;
        short.truncate(279);
        assert_eq!(open_with(short)?, Some(EINVAL));
        let mut long = daxdev(b"/famfs kunit")?;
        long.push(0, GFP_KERNEL)?;
        assert_eq!(open_with(long)?, Some(EINVAL));
        Ok(())
    }

    #[test]
    fn a_server_that_pushes_is_not_asked() -> Result {
        let server = Server::new(simple(MIB, &[(5, 0, 2 * MIB)])?);
        let dax = Dax::new(DAX_BYTES)?;
        let conn = Conn::new(31)?;
        conn.push(&dax, 4)?;
        let file = File::new()?;
        assert_eq!(file.open(&conn), Err(ENODEV));
        assert_eq!(server.requests(), (1, 0));
        let second = Dax::new(DAX_BYTES)?;
        conn.push(&second, 5)?;
        assert_eq!(file.open(&conn), Ok(()));
        // They hold the devices, and go before them.
        drop((file, conn));
        Ok(())
    }
}
