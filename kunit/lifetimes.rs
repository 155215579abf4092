// SPDX-License-Identifier: GPL-2.0-only

//! Who keeps what: maps, devices, mounts, inodes; and what a map that is kept can do.

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
};

use crate::{
    daxdev::Daxdev,
    fake::{
        through_raw,
        Conn,
        Dax,
        File,
        Server, //
    },
    fixture::DAX_BYTES,
    message::{
        pushed,
        simple,
        MIB, //
    },
    tail::{
        Head,
        TailBox, //
    },
};

/// A head that counts how many of its kind are gone.
#[repr(C, align(8))]
struct Counted {
    gone: Arc<Atomic<u32>>,
    words: usize,
}

impl Head for Counted {
    fn tail_len(&self) -> usize {
        self.words
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.gone.add(1, Relaxed);
    }
}

/// A mount, with a device of index 0, and its server. Fields are dropped in this order.
struct Setup {
    conn: Conn,
    server: Server,
    dax: Dax,
}

impl Setup {
    /// The server's files have 2 MiB at 4 MiB.
    fn new() -> Result<Self> {
        let dax = Dax::new(DAX_BYTES)?;
        let server = Server::new(simple(2 * MIB, &[(0, 4 * MIB, 2 * MIB)])?);
        let conn = Conn::new(31)?;
        conn.push(&dax, 0)?;
        Ok(Self { conn, server, dax })
    }

    fn daxdev(&self) -> Result<Arc<Daxdev>> {
        self.conn.mount().get(0).ok_or(ENOENT)
    }

    /// Number of files that the device's reverse map has.
    fn files(&self) -> Result<usize> {
        let mut n = 0;
        self.daxdev()?.state().rmap().for_each(|_, _| n += 1);
        Ok(n)
    }
}

#[kunit_tests(famfs_lifetimes)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_does_not_keep_itself() -> Result {
        assert_eq!(Conn::around_its_server().err(), Some(EINVAL));
        Ok(())
    }

    #[test]
    fn a_head_and_its_words_are_one() -> Result {
        let gone = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        let head = |words| Counted {
            gone: gone.clone(),
            words,
        };
        let few = TailBox::new(head(3), &[1, 2], GFP_KERNEL);
        assert_eq!(few.err(), Some(EINVAL));
        assert_eq!(gone.load(Relaxed), 1);

        let boxed = TailBox::new(head(3), &[7, 8, 9, 10], GFP_KERNEL)?;
        assert_eq!(boxed.words, 3);
        let mut seen = [0; 4];
        let boxed = through_raw(boxed, |words| {
            for (seen, word) in seen.iter_mut().zip(words) {
                *seen = *word;
            }
        });
        assert_eq!(seen, [7, 8, 9, 0]);
        assert_eq!(gone.load(Relaxed), 1);
        drop(boxed);
        assert_eq!(gone.load(Relaxed), 2);
        drop(TailBox::new(head(0), &[], GFP_KERNEL)?);
        assert_eq!(gone.load(Relaxed), 3);
        Ok(())
    }

    #[test]
    fn a_map_is_installed_once() -> Result {
        let setup = Setup::new()?;
        let file = File::new()?;
        assert!(file.map().is_none());
        let users = file.users();
        file.open(&setup.conn)?;
        let map = core::ptr::from_ref(file.map().ok_or(ENOENT)?);
        assert_eq!(file.size(), 2 * MIB as i64);
        // An open that came second brings a map of its own.
        file.open(&setup.conn)?;
        assert_eq!(setup.server.requests(), (2, 0));
        assert!(file.map().is_some_and(|now| core::ptr::eq(now, map)));
        assert_eq!(setup.files()?, 1);
        assert_eq!(file.users(), users);
        Ok(())
    }

    #[test]
    fn an_eviction_leaves_nothing() -> Result {
        let mut setup = Setup::new()?;
        let one = File::opened(&setup.conn)?;
        let elsewhere = simple(2 * MIB, &[(0, 8 * MIB, 2 * MIB)])?;
        setup.server.set_fmap(elsewhere);
        let two = File::opened(&setup.conn)?;
        assert_eq!(setup.files()?, 2);
        one.evict();
        assert_eq!(setup.files()?, 1);
        two.evict();
        assert_eq!(setup.files()?, 0);
        assert!(setup.dax.is_held());
        Ok(())
    }

    #[test]
    fn an_open_that_fails_leaves_nothing() -> Result {
        let mut setup = Setup::new()?;
        let file = File::new()?;
        let users = file.users();
        let bad = |ranges: &[_]| simple(2 * MIB, ranges);
        setup.server.set_fmap(bad(&[(0, MIB, 2 * MIB)])?);
        assert_eq!(file.open(&setup.conn), Err(EINVAL));
        setup.server.set_fmap(bad(&[(0, DAX_BYTES, 2 * MIB)])?);
        assert_eq!(file.open(&setup.conn), Err(EINVAL));
        let reaches_out = [(0, DAX_BYTES - 2 * MIB, 4 * MIB)];
        setup.server.set_fmap(bad(&reaches_out)?);
        assert_eq!(file.open(&setup.conn), Err(EINVAL));
        setup.server.set_fmap(bad(&[])?);
        assert_eq!(file.open(&setup.conn), Err(ERANGE));
        setup.server.refuse(EPERM);
        assert_eq!(file.open(&setup.conn), Err(EPERM));
        assert!(file.map().is_none());
        assert_eq!(file.size(), 0);
        assert_eq!(file.users(), users);
        assert_eq!(setup.files()?, 0);
        setup
            .server
            .set_fmap(bad(&[(0, DAX_BYTES - 2 * MIB, 2 * MIB)])?);
        assert_eq!(file.open(&setup.conn), Ok(()));
        drop(file);
        Ok(())
    }

    #[test]
    fn a_large_map_takes_two_requests() -> Result {
        let mut setup = Setup::new()?;
        let mut extents = KVec::new();
        for i in 0..200u64 {
            // One in seven, and not in order; the device has eight places.
            extents.push((0, (i * 3 % 8) * 2 * MIB, 2 * MIB), GFP_KERNEL)?;
        }
        setup.server.set_fmap(pushed(simple(MIB, &extents)?)?);
        let file = File::new()?;
        assert_eq!(file.open(&setup.conn), Err(EINVAL));
        assert_eq!(setup.server.requests(), (2, 0));
        let mut message = pushed(simple(MIB, &extents[..8])?)?;
        message.resize(5000, 0, GFP_KERNEL)?;
        setup.server.set_fmap(pushed(message)?);
        assert_eq!(file.open(&setup.conn), Ok(()));
        assert_eq!(setup.server.requests(), (2, 0));
        assert_eq!(file.extents(0, u64::MAX)?, 1);
        drop(file);
        Ok(())
    }

    #[test]
    fn a_map_keeps_its_device() -> Result {
        let Setup { conn, server, dax } = Setup::new()?;
        let file = File::opened(&conn)?;
        drop((conn, server));
        assert!(dax.is_held());
        assert_eq!(file.write(0, b"famfs"), Ok(5));
        let mut bytes = [0; 5];
        assert_eq!(file.read(0, &mut bytes), Ok(5));
        assert_eq!(&bytes, b"famfs");
        file.evict();
        assert!(!dax.is_held());
        Ok(())
    }

    #[test]
    fn a_device_that_went_away_is_let_go() -> Result {
        let setup = Setup::new()?;
        let file = File::opened(&setup.conn)?;
        setup.dax.kill();
        drop(file);
        assert!(setup.daxdev()?.state().health() == "removed");
        drop(setup);
        Ok(())
    }

    #[test]
    fn reads_and_writes_end_with_the_file() -> Result {
        let mut setup = Setup::new()?;
        let extents = [(0, 8 * MIB, 2 * MIB), (0, 4 * MIB, 2 * MIB)];
        setup.server.set_fmap(simple(3 * MIB - 1, &extents)?);
        let file = File::opened(&setup.conn)?;
        let end = 3 * MIB as i64 - 1;
        assert_eq!(file.write(2 * MIB as i64 - 2, b"across"), Ok(6));
        let mut bytes = [0; 8];
        assert_eq!(file.read(2 * MIB as i64 - 3, &mut bytes), Ok(8));
        assert_eq!(&bytes, b"\0across\0");
        assert_eq!(file.write(end - 2, b"last"), Ok(2));
        let enospc = file.write(end, b"x");
        assert_eq!(enospc, Err(ENOSPC));
        assert_eq!(file.read(end - 2, &mut bytes), Ok(2));
        assert_eq!(&bytes[..2], b"la");
        assert_eq!(file.read(end, &mut bytes), Ok(0));
        assert_eq!(file.read(end + 1, &mut bytes), Ok(0));
        assert_eq!(file.size(), end);
        drop(file);
        Ok(())
    }

    #[test]
    fn a_listing_ends_with_the_file() -> Result {
        let mut setup = Setup::new()?;
        let extents = [(0, 8 * MIB, 2 * MIB), (0, 4 * MIB, 2 * MIB)];
        setup.server.set_fmap(simple(3 * MIB - 1, &extents)?);
        let file = File::opened(&setup.conn)?;
        let end = 3 * MIB - 1;
        assert_eq!(file.extents(0, end), Ok(2));
        assert_eq!(file.extents(0, 2 * MIB), Ok(1));
        assert_eq!(file.extents(2 * MIB - 1, 2), Ok(2));
        // Past the end there is nothing, which is no error.
        assert_eq!(file.extents(0, u64::MAX), Ok(2));
        assert_eq!(file.extents(end - 1, 2), Ok(1));
        assert_eq!(file.extents(end, 1), Ok(0));
        assert_eq!(file.extents(1 << 40, 1), Ok(0));
        drop(file);
        Ok(())
    }
}
