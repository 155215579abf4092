// SPDX-License-Identifier: MIT OR Apache-2.0
//! Wrong use of the famfs binary: each gets a message that names the thing and an exit code of its kind, and leaves
//! superblock and log as they were.

use std::fs;

use anyhow::{ensure, Context, Result};

use super::fixture::{ensure_eq, one_extent, ready, Ready};
use super::tool::{at, umount, Mounted, MOUNTPOINT};
use super::Test;
use crate::channel::Channel;
use crate::dax::Driver;
use crate::fmap::AU;
use crate::module;
use crate::runner::Guest;
use crate::server::{ServedFile, TestFs};
use crate::tool::{famfs, run};

pub const TESTS: &[(&str, Test)] = &[
    ("mount_without_the_module", mount_without_the_module),
    ("mount_without_rawio", mount_without_rawio),
    ("mount_in_devdax_mode", mount_in_devdax_mode),
    ("mount_in_system_ram_mode", mount_in_system_ram_mode),
    ("mount_held_by_another_mount", mount_held_by_another_mount),
    ("mount_twice", mount_twice),
    ("mount_without_famfs", mount_without_famfs),
    ("mkfs_over_famfs", mkfs_over_famfs),
    ("mkfs_in_devdax_mode", mkfs_in_devdax_mode),
    ("creat_on_full_device", creat_on_full_device),
];

// Exit codes of the famfs binary.
const NO_FAMFS: i32 = 3;
const DEVICE: i32 = 4;
const PERMISSION: i32 = 5;
const KERNEL: i32 = 6;
const NO_SPACE: i32 = 7;

/// Superblock and a log of 8 MiB.
const META: usize = 5 * AU as usize;

/// A file system that is not mounted, and its metadata.
fn unmounted(guest: &Guest) -> Result<(Ready, Vec<u8>)> {
    let mounted = Mounted::new(guest, 1)?;
    umount()?;
    drop(mounted);
    let ready = ready(guest)?;
    let meta = ready.raw(0)?.read(0, META)?;
    ensure!(
        meta[..8] == 0x87b2_82ff_u64.to_le_bytes(),
        "mkfs left no superblock"
    );
    Ok((ready, meta))
}

/// Runs a mount that must fail; nothing may be mounted or changed after it.
fn failing_mount(
    guest: &Guest,
    prepare: impl Fn(&Ready) -> Result<()>,
    command: &[&str],
    code: i32,
    words: &str,
) -> Result<()> {
    let (state, meta) = unmounted(guest)?;
    prepare(&state)?;
    let (program, args) = command.split_first().context("no command")?;
    let outcome = run(
        program,
        &[args, &["mount", &state.paths[0], MOUNTPOINT]].concat(),
    )?;
    ensure!(
        !fs::read_to_string("/proc/mounts")?.contains(MOUNTPOINT),
        "something is mounted on {MOUNTPOINT}"
    );
    ensure!(
        state.raw(0)?.read(0, META)? == meta,
        "superblock or log changed"
    );
    ready(guest)?;
    outcome.expect_failure(code, words)
}

fn mount_without_the_module(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let unload = |_: &Ready| module::rmmod("famfs").context("rmmod famfs");
    failing_mount(
        guest,
        unload,
        &["famfs"],
        KERNEL,
        "module famfs is not loaded",
    )
}

fn mount_without_rawio(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    failing_mount(
        guest,
        |_| Ok(()),
        &["/init", "without-rawio", "famfs"],
        PERMISSION,
        "CAP_SYS_RAWIO",
    )
}

fn mount_in_devdax_mode(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let rebind = |_: &Ready| guest.devices[0].bind(Driver::Devdax);
    failing_mount(guest, rebind, &["famfs"], DEVICE, "devdax mode")
}

fn mount_in_system_ram_mode(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let rebind = |_: &Ready| guest.devices[0].bind(Driver::Kmem);
    failing_mount(guest, rebind, &["famfs"], DEVICE, "system-ram mode")
}

/// Another FUSE mount, under another name, has the device.
fn mount_held_by_another_mount(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let (ready, meta) = unmounted(guest)?;
    let other = TestFs::mount(ready.serve(vec![ServedFile::new("file", &one_extent())]))?;
    drop(other.open("file")?);
    let outcome = run("famfs", &["mount", &ready.paths[0], MOUNTPOINT])?;
    ensure!(
        ready.raw(0)?.read(0, META)? == meta,
        "superblock or log changed"
    );
    outcome.expect_failure(DEVICE, &ready.paths[0])?;
    ensure!(
        outcome.stderr.contains("in use"),
        "the message does not say that the device is in use: {}",
        outcome.stderr
    );
    Ok(())
}

fn mount_twice(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mounted = Mounted::new(guest, 1)?;
    let device = &mounted.ready.paths[0];
    fs::create_dir_all("/mnt/second")?;
    let outcome = run("famfs", &["mount", device, "/mnt/second"])?;
    outcome.expect_failure(DEVICE, &format!("mounted already, on {MOUNTPOINT}"))
}

fn mount_without_famfs(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let (ready, _) = unmounted(guest)?;
    ready.raw(0)?.write(0, &[0; 4096])?;
    let outcome = run("famfs", &["mount", &ready.paths[0], MOUNTPOINT])?;
    outcome.expect_failure(NO_FAMFS, &ready.paths[0])
}

fn mkfs_over_famfs(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let (ready, meta) = unmounted(guest)?;
    let outcome = run("mkfs.famfs", &[&ready.paths[0]])?;
    ensure!(
        ready.raw(0)?.read(0, META)? == meta,
        "superblock or log changed"
    );
    outcome.expect_failure(DEVICE, "--force")
}

fn mkfs_in_devdax_mode(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let (state, meta) = unmounted(guest)?;
    guest.devices[0].bind(Driver::Devdax)?;
    let outcome = run("mkfs.famfs", &["--force", &state.paths[0]])?;
    ensure_eq!(
        guest.devices[0].driver(),
        Some(Driver::Devdax),
        "driver of the device"
    );
    ensure!(
        state.raw(0)?.read(0, META)? == meta,
        "superblock or log changed"
    );
    ready(guest)?;
    outcome.expect_failure(DEVICE, "devdax mode")
}

fn creat_on_full_device(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mounted = Mounted::new(guest, 1)?;
    let all = guest.devices[0].size()? - META as u64;
    famfs(&["creat", "--size", &all.to_string(), &at("all")])
        .context("a file as large as the free space")?;
    let before = mounted.ready.raw(0)?.read(0, META)?;
    let outcome = run("famfs", &["creat", "--size", "1", &at("one more")])?;
    outcome.expect_failure(NO_SPACE, "space")?;
    ensure!(
        !fs::exists(at("one more"))?,
        "the file is there all the same"
    );
    ensure!(
        mounted.ready.raw(0)?.read(0, META)? == before,
        "superblock or log changed"
    );
    Ok(())
}
