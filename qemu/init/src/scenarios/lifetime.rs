// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who outlives whom: mounts, mappings, the server, the module.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::{anyhow, ensure, Context, Result};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::failure::expect_state;
use super::faults::expect_value;
use super::fixture::{ensure_eq, one_extent, pattern, ready};
use super::losses::{expect_unharmed, hammer};
use super::poison::{read_errno, report_error, EHWPOISON};
use super::Test;
use crate::channel::Channel;
use crate::dax::Driver;
use crate::fmap::{extent, Fmap, AU};
use crate::module;
use crate::probe::{Probe, Reply};
use crate::runner::Guest;
use crate::server::{ServedFile, TestFs};
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
    ("umounts_of_a_mapped_file", umounts_of_a_mapped_file),
    ("umounts_under_load", umounts_under_load),
    ("errors_to_the_end", errors_to_the_end),
    ("device_of_another_mount", device_of_another_mount),
    ("namespace_outlives_the_mount", namespace_outlives_the_mount),
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

/// `umount -f` ends the connection and then finds the mount busy; the mapping is worth what it was. `umount -l` lets
/// everything go on until the last user.
fn umounts_of_a_mapped_file(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    for forced in [UnmountFlags::empty(), UnmountFlags::FORCE] {
        let fmap = one_extent();
        let mut fs = ready(guest)?.one_file("file", &fmap)?;
        let mapping = Mapping::new(&fs.open("file")?, 0, fmap.size as usize, Kind::SharedRead)?;
        mapping.byte(0);
        let expect_whole = |after: &str| {
            mapping.drop_entries(0, mapping.len())?;
            ensure!(
                mapping.read(0, mapping.len()) == pattern(0, fmap.size as usize),
                "the mapping shows other bytes after {after}"
            );
            Ok(())
        };
        ensure_eq!(fs.umount_with(forced), Err(Errno::BUSY), "umount");
        let open = [libc::ENOTCONN, 0][usize::from(forced.is_empty())];
        ensure_eq!(fs.open_errno("file"), open, "errno of an open after that");
        expect_whole("umount")?;
        let lazily = fs.umount_with(forced | UnmountFlags::DETACH);
        ensure_eq!(lazily, Ok(()), "umount -l");
        expect_whole("umount -l")?;
        let busy = Err(Errno::WOULDBLOCK);
        ensure_eq!(module::rmmod("famfs"), busy, "rmmod with a mapping left");
        drop(mapping);
        // The last reference went with munmap, so the file system is gone by now.
        module::rmmod("famfs").context("rmmod after the last mapping")?;
    }
    Ok(())
}

/// Reads, writes and faults go on through all of it, and keep the mount and the module.
fn umounts_under_load(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mut fs = ready(guest)?.one_file("file", &one_extent())?;
    let mut users = hammer(&fs.path("file"))?;
    for flags in [UnmountFlags::empty(), UnmountFlags::FORCE] {
        ensure_eq!(fs.umount_with(flags), Err(Errno::BUSY), "umount, {flags:?}");
        expect_unharmed(&mut users)?;
    }
    let busy = Err(Errno::WOULDBLOCK);
    ensure_eq!(module::rmmod("famfs"), busy, "rmmod under load");
    fs.umount_lazily().context("umount -l under load")?;
    for _ in 0..20 {
        ensure_eq!(module::rmmod("famfs"), busy, "rmmod after umount -l");
    }
    expect_unharmed(&mut users)?;
    drop(users);
    module::rmmod("famfs").context("rmmod after the last user")
}

/// Memory errors are reported all the time, while mounts come and go, and the module with them: a report finds the
/// mount or nobody, and the end of a mount waits for one that is under way.
fn errors_to_the_end(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    const ROUNDS: u64 = 20;
    let fmap = one_extent();
    let pfn = ready(guest)?.raw(0)?.pfn(16 * AU);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reports = scope.spawn(|| {
            let mut reports = 0u64;
            while !stop.load(Relaxed) {
                // Refused where nobody has the device.
                let _ = report_error(pfn);
                reports += 1;
            }
            reports
        });
        let cycles = || -> Result<u64> {
            let mut met = 0;
            for _ in 0..ROUNDS {
                let mut fs = ready(guest)?.one_file("file", &fmap)?;
                let file = fs.open("file")?;
                while read_errno(&file, 0) != EHWPOISON {}
                ensure_eq!(read_errno(&file, AU), EHWPOISON, "pread of the other 2 MiB");
                drop(file);
                met += 1;
                fs.umount().context("umount")?;
                module::rmmod("famfs").context("rmmod")?;
            }
            Ok(met)
        };
        let done = cycles();
        stop.store(true, Relaxed);
        let reports = reports.join().map_err(|_| anyhow!("the thread panicked"))?;
        ensure_eq!(done?, ROUNDS, "mounts that met an error");
        ensure!(reports > ROUNDS, "only {reports} reports");
        Ok(())
    })
}

/// What another mount holds is refused, and the kernel's log says what, and what to do; afterwards it can be had.
fn device_of_another_mount(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let fmap = one_extent();
    let ready = ready(guest)?;
    let mut first = ready.one_file("file", &fmap)?;
    drop(first.open("file")?);
    let mut log = module::KernelLog::open()?;
    let second = TestFs::mount(ready.serve(vec![ServedFile::new("file", &fmap)]))?;
    ensure_eq!(
        second.open_errno("file"),
        libc::EBUSY,
        "errno of an open that needs the device"
    );
    let lines = log.new_lines();
    let words = format!(
        "daxdev 0, name {:?}: in use by another mount or file system, unmount that first",
        ready.paths[0]
    );
    ensure!(
        lines.iter().any(|line| line.contains(&words)),
        "no line with {words:?} in the log: {lines:?}"
    );
    drop(first.open("file").context("the holder's file")?);
    first.umount()?;
    drop(second.open("file").context("after the holder's umount")?);
    expect_state(&second, 0, "ok")
}

/// A mount that was copied into another namespace lives on there, with its device and its module.
fn namespace_outlives_the_mount(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let fmap = Fmap::simple(AU, &[extent(0, 16 * AU, AU)]);
    let ready = ready(guest)?;
    let mut fs = ready.one_file("file", &fmap)?;
    drop(fs.open("file")?);
    let mut apart = Probe::start_apart()?;
    // It has left this namespace when it answers.
    let missing = apart.map("/no-such-file", 1, Kind::SharedRead)?;
    ensure_eq!(missing, Reply::Errno(libc::ENOENT), "the probe");
    let path = fs.path("file");
    fs.umount().context("umount in this namespace")?;
    let busy = Err(Errno::WOULDBLOCK);
    ensure_eq!(module::rmmod("famfs"), busy, "rmmod after the umount");
    let second = TestFs::mount(ready.serve(vec![ServedFile::new("file", &fmap)]))?;
    ensure_eq!(second.open_errno("file"), libc::EBUSY, "the device");
    expect_value(apart.map(&path, AU, Kind::SharedRead)?).context("an open over there")?;
    let first = u64::from(pattern(0, 1)[0]);
    ensure_eq!(apart.get(0)?, Reply::Value(first), "first byte over there");
    drop(apart);
    // The last namespace is taken apart behind the back of who leaves it.
    while second.open_errno("file") == libc::EBUSY {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    drop(second.open("file").context("after the namespace's end")?);
    Ok(())
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
