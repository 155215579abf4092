// SPDX-License-Identifier: MIT OR Apache-2.0
//! A hardware memory error under a mount: it hurts whoever uses that device, and nobody else.

use anyhow::{Context, Result};

use super::faults::expect_value;
use super::fixture::{ensure_eq, one_extent, ready};
use super::Test;
use crate::channel::Channel;
use crate::fmap::{extent, Fmap, AU};
use crate::probe::{Probe, Reply};
use crate::runner::Guest;
use crate::server::{ServedFile, TestFs};
use crate::sys::Kind;

pub const TESTS: &[(&str, Test)] = &[("poison_fails_the_device", poison_fails_the_device)];

const EHWPOISON: i32 = libc::EHWPOISON;

/// Three files: one is poisoned, one shares its device, one is on another device.
fn poison_fails_the_device(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    ready.raw(1)?;
    let beside = Fmap::simple(2 * AU, &[extent(0, 24 * AU, 2 * AU)]);
    let elsewhere = Fmap::simple(AU, &[extent(1, 16 * AU, AU)]);
    let fmaps = [
        ("hit", one_extent()),
        ("beside", beside),
        ("elsewhere", elsewhere),
    ];
    for (_, fmap) in &fmaps {
        ready.fill(fmap)?;
    }
    let mut fs = TestFs::mount(
        ready.serve(
            fmaps
                .iter()
                .map(|(name, fmap)| ServedFile::new(name, fmap))
                .collect(),
        ),
    )?;
    let probe = |name: &str, len: u64| -> Result<(Probe, u64)> {
        let mut probe = Probe::start()?;
        let address = expect_value(probe.map(&fs.path(name), len, Kind::SharedWrite)?)?;
        expect_value(probe.get(0)?)?;
        Ok((probe, address))
    };
    let (mut poisoner, address) = probe("hit", AU)?;
    let (mut other_user, other_address) = probe("hit", AU)?;
    let (mut neighbour, neighbour_address) = probe("beside", 2 * AU)?;
    let (mut stranger, _) = probe("elsewhere", AU)?;
    let mut late = Probe::start()?;

    let at = 3 * 4096;
    let hit = Reply::Sigbus(libc::BUS_MCEERR_AR, (address + at) as usize);
    ensure_eq!(poisoner.poison(at)?, hit, "the process that met the error");
    // It did not ask for an early signal (PR_MCE_KILL), so it learns by touching the page.
    let told = Reply::Sigbus(libc::BUS_MCEERR_AR, (other_address + at) as usize);
    ensure_eq!(
        other_user.get(at)?,
        told,
        "another process with the page mapped"
    );

    ensure_eq!(
        neighbour.pread(0, 64)?,
        Reply::Errno(EHWPOISON),
        "pread of a file beside it"
    );
    ensure_eq!(
        neighbour.pwrite(0, 64)?,
        Reply::Errno(EHWPOISON),
        "pwrite of a file beside it"
    );
    let fault = Reply::Sigbus(libc::BUS_ADRERR, (neighbour_address + AU + 5) as usize);
    ensure_eq!(
        neighbour.get(AU + 5)?,
        fault,
        "a new fault in a file beside it"
    );

    let address = expect_value(late.map(&fs.path("hit"), AU, Kind::SharedRead)?)
        .context("open after the error")?;
    ensure_eq!(
        late.pread(AU - 64, 64)?,
        Reply::Errno(EHWPOISON),
        "pread far from the error"
    );
    ensure_eq!(
        late.get(at)?,
        Reply::Sigbus(libc::BUS_MCEERR_AR, (address + at) as usize),
        "a fault on the page"
    );

    ensure_eq!(
        stranger.pread(0, 64)?,
        Reply::Value(64),
        "pread of a file on the other device"
    );
    ensure_eq!(
        stranger.set(5, 9)?,
        Reply::Value(0),
        "store to a file on the other device"
    );
    drop((poisoner, other_user, neighbour, stranger, late));
    fs.umount().context("umount after the error")
}
