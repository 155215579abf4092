// SPDX-License-Identifier: GPL-2.0-only

//! What fs/fuse calls: each hook is passed on to the file that knows.

use kernel::{
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    prelude::*, //
};

use crate::{
    daxdev::DaxState,
    file::FileMap,
    mount::Conn,
    open,
    sys::{
        fuse::{
            DevT,
            FmapProvider, //
        },
        inode::{
            FileRef,
            OpenInode, //
        },
        iomap::Mapping, //
    },
};

/// famfs, to fs/fuse.
pub(crate) struct Famfs;

impl FmapProvider for Famfs {
    type Conn = KBox<Conn>;
    type File = FileMap;
    type Holder = DaxState;

    fn conn_init(dev: DevT) -> Result<KBox<Conn>> {
        Conn::new(dev)
    }

    fn open(conn: &Conn, inode: &OpenInode<'_, Self>) -> Result {
        open::open(conn.mount(), inode)
    }

    fn daxdev_open(conn: &Conn, fd: i32, flags: u32, index: u64) -> Result {
        conn.mount().push(fd, flags, index)
    }

    #[inline(always)]
    fn map_quickly(file: FileRef<'_, FileMap>, pos: u64) -> Option<Mapping<'_, DaxState>> {
        FileMap::map_quickly(file, pos)
    }

    fn map(file: FileRef<'_, FileMap>, pos: u64) -> Result<Mapping<'_, DaxState>> {
        FileMap::map(file, pos)
    }

    #[inline(always)]
    fn place(file: FileRef<'_, FileMap>, pos: u64) -> Option<Mapping<'_, DaxState>> {
        FileMap::place(file, pos)
    }

    fn read(file: FileRef<'_, FileMap>, pos: u64, iter: &mut IovIterDest<'_>) -> Result<usize> {
        FileMap::read(file, pos, iter)
    }

    fn write(
        file: FileRef<'_, FileMap>,
        pos: u64,
        len: usize,
        iter: &mut IovIterSource<'_>,
    ) -> Result<usize> {
        FileMap::write(file, pos, len, iter)
    }
}
