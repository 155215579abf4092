// SPDX-License-Identifier: MIT OR Apache-2.0
//! famfs doctor on machines that lack something: its commands, run one after the other, mend them.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{bail, ensure, Context, Result};
use serde_json::Value;

use super::fixture::{ensure_eq, one_extent, ready};
use super::tool::{umount, Mounted, MOUNTPOINT};
use super::Test;
use crate::channel::Channel;
use crate::dax::{self, Driver};
use crate::module::{self, FAMFS};
use crate::runner::Guest;
use crate::server::{ServedFile, TestFs};
use crate::tool::{famfs, mkfs, run};

pub const TESTS: &[(&str, Test)] = &[
    ("nothing_is_missing", nothing_is_missing),
    ("module_and_mode_are_mended", module_and_mode_are_mended),
    ("system_ram_is_taken_back", system_ram_is_taken_back),
    ("users_are_told_too", users_are_told_too),
];

/// For guests with CXL memory.
pub const CXL: &[(&str, Test)] = &[("a_region_is_made", a_region_is_made)];

const DEVICE: i32 = 4;
const PERMISSION: i32 = 5;
const KERNEL: i32 = 6;

/// What doctor reports, and its exit code.
fn doctor(args: &[&str]) -> Result<(Option<i32>, Value)> {
    let outcome = run("famfs", &[&["doctor", "--json"], args].concat())?;
    let report = serde_json::from_str(&outcome.stdout)
        .with_context(|| format!("famfs doctor --json: {outcome:?}"))?;
    Ok((outcome.code, report))
}

fn items(report: &Value) -> impl Iterator<Item = &Value> {
    report["items"].as_array().into_iter().flatten()
}

/// What is said of one thing.
fn found(report: &Value, name: &str) -> Result<String> {
    let item = items(report).find(|item| item["name"] == name);
    let found = item.and_then(|item| item["found"].as_str());
    Ok(found
        .with_context(|| format!("nothing on {name} in {report}"))?
        .to_owned())
}

/// Runs what doctor says, first things first, until it is content. Gives the commands.
fn mend() -> Result<Vec<String>> {
    let mut commands = Vec::new();
    while commands.len() < 8 {
        let (code, report) = doctor(&[])?;
        let Some(item) = items(&report).find(|item| item["state"] == "missing") else {
            ensure_eq!(code, Some(0), "exit code when nothing is missing");
            return Ok(commands);
        };
        ensure_eq!(
            code.map(i64::from),
            item["exit_code"].as_i64(),
            "exit code, that of the first thing missing"
        );
        let command = item["run"].as_str();
        let command = command.with_context(|| format!("no command in {item}"))?;
        dax::run("sh", &["-c", command])?;
        commands.push(command.to_owned());
    }
    bail!("still not content after {commands:?}")
}

fn nothing_is_missing(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mounted = Mounted::new(guest, 1)?;
    let (path, name) = (&mounted.ready.paths[0], &guest.devices[0].name);
    let (code, report) = doctor(&[])?;
    ensure_eq!((code, &report["missing"]), (Some(0), &0.into()), "{report}");
    let said = found(&report, name)?;
    let mode = format!("fsdev mode, mounted on {MOUNTPOINT}");
    ensure!(said.ends_with(&mode), "on {name}: {said}");
    umount()?;
    let said = found(&doctor(&[path])?.1, name)?;
    ensure!(
        said.ends_with("fsdev mode, not in use"),
        "on {name}: {said}"
    );

    // A mount whose source is another name.
    let other = TestFs::mount(
        mounted
            .ready
            .serve(vec![ServedFile::new("file", &one_extent())]),
    )?;
    drop(other.open("file")?);
    let said = found(&doctor(&[path])?.1, name)?;
    ensure!(said.contains("mounted on /"), "on {name}: {said}");
    drop(other);

    let (code, report) = doctor(&[path, "/dev/dax99.0"])?;
    ensure_eq!(
        code,
        Some(DEVICE),
        "exit code for a device that is not there"
    );
    ensure!(
        found(&report, "dax99.0")?.contains("no such device"),
        "{report}"
    );
    Ok(())
}

/// Puts famfs.ko to where modprobe finds it.
fn install_module() -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let folder = format!("/lib/modules/{}", release.trim());
    fs::create_dir_all(format!("{folder}/updates"))?;
    fs::write(format!("{folder}/modules.dep"), "updates/famfs.ko:\n")?;
    fs::copy(FAMFS, format!("{folder}/updates/famfs.ko"))?;
    if !fs::exists("/usr/bin/modprobe")? {
        symlink("busybox", "/usr/bin/modprobe")?;
    }
    Ok(())
}

fn module_and_mode_are_mended(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let device = &guest.devices[0];
    let path = ready(guest)?.paths[0].clone();
    mkfs(&["--force", &path])?;
    device.bind(Driver::Devdax)?;
    module::rmmod("famfs").context("rmmod famfs")?;
    let (code, report) = doctor(&[])?;
    ensure_eq!(
        (code, &report["missing"]),
        (Some(KERNEL), &2.into()),
        "{report}"
    );
    let said = found(&report, "module")?;
    ensure!(
        said.contains("neither loaded nor installed"),
        "module: {said}"
    );
    let held = File::open(&path)?;
    let said = found(&doctor(&[])?.1, &device.name)?;
    let user = format!("used by init (pid {})", std::process::id());
    ensure!(
        said.contains("devdax mode") && said.contains(&user),
        "device: {said}"
    );
    drop(held);

    install_module()?;
    let drivers = "/sys/bus/dax/drivers";
    let name = &device.name;
    let expected = [
        "modprobe famfs".to_owned(),
        format!(
            "echo {name} >{drivers}/device_dax/unbind && echo {name} >{drivers}/fsdev_dax/new_id"
        ),
    ];
    ensure_eq!(mend()?, expected, "commands");
    fs::create_dir_all(MOUNTPOINT)?;
    famfs(&["mount", &path, MOUNTPOINT])?;
    umount()
}

fn system_ram_is_taken_back(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    ready(guest)?;
    let device = &guest.devices[0];
    device.bind(Driver::Kmem)?;
    let (code, report) = doctor(&[])?;
    ensure_eq!(code, Some(DEVICE), "exit code");
    let said = found(&report, &device.name)?;
    ensure!(said.contains("system-ram mode"), "device: {said}");
    ensure_eq!(mend()?.len(), 1, "commands");
    ensure_eq!(device.driver(), Some(Driver::Fsdev), "driver");
    Ok(())
}

fn users_are_told_too(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    ready(guest)?;
    let output = Command::new("famfs")
        .args(["doctor", "--json"])
        .uid(1000)
        .gid(1000)
        .output()?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    ensure_eq!(output.status.code(), Some(PERMISSION), "exit code");
    ensure_eq!(report["missing"], 1, "things missing in {report}");
    let said = found(&report, "privileges")?;
    ensure_eq!(
        said,
        "without CAP_SYS_ADMIN and CAP_SYS_RAWIO",
        "privileges"
    );
    Ok(())
}

fn a_region_is_made(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    ready(guest)?;
    ensure!(
        found(&doctor(&[])?.1, "mem0")?.ends_with("in region0"),
        "CXL memory in a region"
    );
    dax::run("cxl", &["destroy-region", "-f", "region0"])?;
    let (code, report) = doctor(&[])?;
    ensure_eq!(
        (code, &report["missing"]),
        (Some(DEVICE), &1.into()),
        "{report}"
    );
    ensure!(
        found(&report, "mem0")?.ends_with("in no region"),
        "{report}"
    );
    let commands = mend()?;
    ensure_eq!(
        commands[0],
        "cxl create-region -m -t ram -d decoder0.0 -w 1 mem0",
        "command"
    );
    ensure_eq!(
        guest.devices[0].driver(),
        Some(Driver::Fsdev),
        "driver after {commands:?}"
    );
    Ok(())
}
