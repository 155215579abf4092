// SPDX-License-Identifier: MIT OR Apache-2.0
//! What waits for one pin when several things are asked for, in this order and in that. They are tests of `pins`.

use anyhow::{Context, Result};
use rustix::io::Errno;

use super::faults::expect_value;
use super::fixture::{ensure_eq, ready};
use super::pins::{
    first_page, inode_of, pinned_for_long, wait_until_unmapped, Background, Setup, GONE,
};
use super::poison::expect_bytes;
use crate::channel::Channel;
use crate::dax::Driver;
use crate::fmap::{extent, Fmap, AU};
use crate::module::{self, KernelLog};
use crate::probe::{Probe, Reply};
use crate::runner::Guest;
use crate::server::{ServedFile, TestFs};
use crate::sys::{Kind, Mapping};

/// The file has all of its bytes, however one looks at them.
fn expect_data(fs: &TestFs, name: &str, size: u64) -> Result<()> {
    let file = fs.open(name)?;
    let mapping = Mapping::new(&file, 0, size as usize, Kind::SharedRead)?;
    expect_bytes(&file, &mapping, 0, size as usize)
}

/// Eviction waits for a page of a file on two devices, and then one of them is to go: the one with the page, or the
/// other one, whose removal waits for the eviction, and says so. All end with the pin.
pub fn removal_during_an_eviction(guest: &Guest, channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    ready.raw(1)?;
    for (gone, name) in [(0, "with the page"), (1, "without the page")] {
        channel.step(&format!("the device {name} goes"));
        let fmap = Fmap::simple(2 * AU, &[extent(0, 24 * AU, AU), extent(1, 24 * AU, AU)]);
        let mut fs = ready.one_file("file", &fmap)?;
        let mut pinner = Probe::start()?;
        expect_value(pinner.map(&fs.path("file"), 2 * AU, Kind::SharedRead)?)?;
        ensure_eq!(pinner.splice(0)?, Reply::Value(4096), "bytes spliced");
        let inode = inode_of(&fs, "file")?;
        ensure_eq!(pinner.close()?, Reply::Value(0), "munmap and close");
        let umount = Background::umount(&mut fs)?;
        umount.expect_waiting()?;

        let mut log = KernelLog::open()?;
        let removal = Background::removal(&guest.devices[gone])?;
        removal.expect_waiting()?;
        if gone == 1 {
            let said = format!(
                "famfs: inode {inode}: it is being evicted, which may wait for a pinned page; \
                 till then its devices can't go"
            );
            log.wait_for(|line| (line == said).then_some(()))?;
            removal.expect_waiting()?;
        }
        umount.expect_waiting()?;
        ensure_eq!(pinner.drain()?, first_page(), "what was pinned");
        removal.join().context("the removal after the pin")?;
        umount.join().context("umount after the pin")?;
        drop(pinner);

        guest.devices[gone].bind(Driver::Fsdev)?;
        let again = ready.serve(vec![ServedFile::new("file", &fmap)]);
        let mut fs = TestFs::mount(again).context("the next mount")?;
        expect_data(&fs, "file", 2 * AU)?;
        fs.umount().context("umount of the next mount")?;
    }
    Ok(())
}

/// A removal waits, and the module is asked to go, which it does not, and the file system: not while somebody has a file
/// mapped, though there is no memory any more; then eviction waits for the same pin. Both end with it.
pub fn umount_during_a_removal(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mut setup = Setup::new(guest)?;
    let mut pinner = setup.pinner("file")?;
    ensure_eq!(pinner.close()?, Reply::Value(0), "munmap and close");
    let (keeper, address) = setup.user("other")?;
    let removal = Background::removal(setup.device)?;
    wait_until_unmapped(&keeper, address)?;
    removal.expect_waiting()?;
    let busy = Err(Errno::WOULDBLOCK);
    ensure_eq!(module::rmmod("famfs"), busy, "rmmod during the removal");
    let umount = setup.fs.umount();
    ensure_eq!(umount, Err(Errno::BUSY), "umount with a file mapped");
    drop(keeper);
    let umount = Background::umount(&mut setup.fs)?;
    umount.expect_waiting()?;
    ensure_eq!(module::rmmod("famfs"), busy, "rmmod during both");
    umount.expect_waiting()?;
    removal.expect_waiting()?;
    ensure_eq!(pinner.drain()?, first_page(), "what was pinned");
    umount.join().context("umount after the pin")?;
    removal.join().context("the removal after the pin")?;
    drop(pinner);
    module::rmmod("famfs").context("rmmod after both")?;

    module::ensure_famfs()?;
    setup.device.bind(Driver::Fsdev)?;
    let mut fs = setup.mount().context("the next mount")?;
    expect_data(&fs, "file", AU)?;
    fs.umount().context("umount of the next mount")
}

/// Two processes have let go of their mappings, and keep a page each in a pipe: the removal does not find them, says of
/// each file that it has killed nobody, and waits on.
pub fn pinners_without_a_mapping_live(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let setup = Setup::new(guest)?;
    let mut log = KernelLog::open()?;
    // In the order in which the removal looks at them.
    let mut pinners = Vec::new();
    for name in ["file", "other"] {
        let mut pinner = setup.pinner(name)?;
        ensure_eq!(pinner.unmap()?, Reply::Value(0), "munmap");
        pinners.push((pinner, inode_of(&setup.fs, name)?));
    }
    let removal = Background::removal(setup.device)?;
    for (pinner, inode) in &mut pinners {
        let (named, _, killed) = log.wait_for(pinned_for_long)?;
        ensure_eq!((named, killed), (*inode, 0), "what the log says");
        removal.expect_waiting()?;
        ensure_eq!(pinner.pread(0, 64)?, GONE, "pread while the removal waits");
        ensure_eq!(pinner.drain()?, first_page(), "what was pinned");
    }
    removal.join().context("the removal after the pins")?;
    drop(pinners);
    setup.finish()
}
