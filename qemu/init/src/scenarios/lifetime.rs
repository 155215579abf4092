// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who outlives whom: mounts, mappings, the server, the module.

use std::os::unix::fs::FileExt;

use anyhow::{ensure, Context, Result};
use rustix::io::Errno;

use super::fixture::{ensure_eq, one_extent, pattern, ready};
use super::Test;
use crate::channel::Channel;
use crate::dax::Driver;
use crate::fmap::AU;
use crate::module;
use crate::runner::Guest;
use crate::sys::{Kind, Mapping};
use crate::tool::Connection;

pub const TESTS: &[(&str, Test)] = &[
    ("umount_while_open_is_busy", umount_while_open_is_busy),
    (
        "rmmod_while_mounted_is_refused",
        rmmod_while_mounted_is_refused,
    ),
    ("rmmod_and_insmod_again", rmmod_and_insmod_again),
    (
        "aborted_connection_keeps_data",
        aborted_connection_keeps_data,
    ),
    ("lazy_umount_keeps_mappings", lazy_umount_keeps_mappings),
    ("umount_gives_the_device_back", umount_gives_the_device_back),
    ("evicted_inodes_come_back", evicted_inodes_come_back),
];

fn umount_while_open_is_busy(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mut fs = ready(guest)?.one_file("file", &one_extent())?;
    let file = fs.open("file")?;
    let mapping = Mapping::new(&file, 0, AU as usize, Kind::SharedRead)?;
    mapping.byte(0);
    ensure_eq!(fs.umount(), Err(Errno::BUSY), "umount with an open file");
    drop(file);
    ensure_eq!(fs.umount(), Err(Errno::BUSY), "umount with a mapping");
    drop(mapping);
    ensure_eq!(fs.umount(), Ok(()), "umount with neither");
    Ok(())
}

/// delete_module's errno for a module in use is EWOULDBLOCK.
fn rmmod_while_mounted_is_refused(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mut fs = ready(guest)?.one_file("file", &one_extent())?;
    ensure_eq!(
        module::rmmod("famfs"),
        Err(Errno::WOULDBLOCK),
        "rmmod while mounted, nothing opened yet"
    );
    drop(fs.open("file")?);
    ensure_eq!(
        module::rmmod("famfs"),
        Err(Errno::WOULDBLOCK),
        "rmmod while mounted"
    );
    fs.umount()?;
    Ok(())
}

fn rmmod_and_insmod_again(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    for _ in 0..3 {
        let fmap = one_extent();
        let mut fs = ready(guest)?.one_file("file", &fmap)?;
        let mapping = Mapping::new(&fs.open_rw("file")?, 0, AU as usize, Kind::SharedWrite)?;
        mapping.set_byte(0, 1);
        drop(mapping);
        fs.umount().context("umount")?;
        module::rmmod("famfs").context("rmmod")?;
        ensure!(
            !module::is_loaded("famfs"),
            "the module is still there after rmmod"
        );
    }
    Ok(())
}

/// Without a server, open files and mappings go on; only what needs the server fails.
fn aborted_connection_keeps_data(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let fmap = one_extent();
    let ready = ready(guest)?;
    let fs = ready.one_file("file", &fmap)?;
    let file = fs.open_rw("file")?;
    let mapping = Mapping::new(&file, 0, fmap.size as usize, Kind::SharedWrite)?;
    mapping.byte(0);
    Connection::of(&fs.path("."))?.abort()?;
    ensure_eq!(
        mapping.read(0, fmap.size as usize),
        pattern(0, fmap.size as usize),
        "mapping, with pages never touched before"
    );
    mapping.set_byte(AU as usize, 0x33);
    ensure_eq!(
        ready.raw_bytes(&fmap, AU, 1)?,
        [0x33],
        "raw byte after a store to the mapping"
    );
    let mut bytes = [0; 64];
    ensure_eq!(file.read_at(&mut bytes, 0)?, 64, "pread of the open file");
    ensure_eq!(file.write_at(&bytes, 64)?, 64, "pwrite of the open file");
    ensure_eq!(fs.open_errno("file"), libc::ENOTCONN, "errno of a new open");
    Ok(())
}

fn lazy_umount_keeps_mappings(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let fmap = one_extent();
    let mut fs = ready(guest)?.one_file("file", &fmap)?;
    let mapping = Mapping::new(&fs.open("file")?, 0, fmap.size as usize, Kind::SharedRead)?;
    fs.umount_lazily()?;
    ensure_eq!(
        mapping.read(0, fmap.size as usize),
        pattern(0, fmap.size as usize),
        "mapping after umount -l"
    );
    ensure_eq!(
        module::rmmod("famfs"),
        Err(Errno::WOULDBLOCK),
        "rmmod with a mapping left"
    );
    drop(mapping);
    // The last reference went with munmap, so the file system is gone by now.
    module::rmmod("famfs").context("rmmod after the last mapping")
}

fn umount_gives_the_device_back(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mut fs = ready(guest)?.one_file("file", &one_extent())?;
    drop(fs.open("file")?);
    fs.umount()?;
    let device = guest.devices.first().context("no daxdev")?;
    device.bind(Driver::Devdax)?;
    device.bind(Driver::Fsdev)
}

/// Dropping the caches frees the fmap; the next open fetches it again.
fn evicted_inodes_come_back(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let fmap = one_extent();
    let fs = ready(guest)?.one_file("file", &fmap)?;
    for expected in 1..4 {
        let file = fs.open("file")?;
        let mapping = Mapping::new(&file, 0, fmap.size as usize, Kind::SharedRead)?;
        ensure_eq!(
            mapping.read(0, fmap.size as usize),
            pattern(0, fmap.size as usize),
            "contents"
        );
        ensure_eq!(
            fs.count(crate::wire::GET_FMAP),
            expected,
            "GET_FMAP requests"
        );
        drop((mapping, file));
        std::fs::write("/proc/sys/vm/drop_caches", "2")?;
        fs.wait_for(crate::wire::FORGET, expected)?;
    }
    Ok(())
}
