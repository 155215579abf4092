// SPDX-License-Identifier: MIT OR Apache-2.0
//! What doctor says of dax devices: their drivers, and who has them.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use famfs_media::DEVICE_SIZE_MIN;

use super::{material, Item, Mend};
use crate::device::{self, DaxDevice, DeviceError, Mode};
use crate::exit::{code, Exit};
use crate::mountinfo::{mounts_in, Mount};
use crate::size;
use crate::status::DEBUGFS;

/// The `devices`, or all there are, and the memory that they are made of.
pub fn items(root: &Path, devices: &[PathBuf]) -> Vec<Item> {
    let sys = root.join("sys");
    let mut material = material::items(&sys);
    let names = match devices {
        [] => device::names(&sys).unwrap_or_default(),
        _ => Vec::new(),
    };
    if devices.is_empty() && names.is_empty() {
        let found = "no dax device on this machine";
        let mend = material.iter().find_map(|item| item.mend.clone());
        let mend = mend.unwrap_or_else(|| Mend::by(material::NOTHING));
        material.push(Item::missing(Exit::Device, "memory", found, mend));
        return material;
    }
    let all = names
        .iter()
        .map(|name| device::by_name(&sys, Path::new(name)));
    let given = devices.iter().map(|path| match root == Path::new("/") {
        true => device::open(path),
        false => device::by_name(&sys, path),
    });
    let paths = names.iter().map(PathBuf::from).chain(devices.to_vec());
    let found = all.chain(given).collect::<Vec<_>>().into_iter();
    material.extend(paths.zip(found).map(|(path, device)| match device {
        Ok(device) => item(root, &device),
        Err(error) => unusable(&path, error),
    }));
    material
}

fn unusable(path: &Path, error: DeviceError) -> Item {
    let name = path.file_name().unwrap_or(path.as_os_str());
    let found = error.to_string();
    let exit = code(&error.into());
    let mend = Mend::run("famfs doctor # without a device: shows all there are");
    Item::missing(exit, Path::new(name).display(), found, mend)
}

fn item(root: &Path, device: &DaxDevice) -> Item {
    let DaxDevice {
        name, size, mode, ..
    } = device;
    let shown = size::show(*size, true);
    if *size < DEVICE_SIZE_MIN {
        let found = format!("{shown}; famfs needs {}", size::show(DEVICE_SIZE_MIN, true));
        return Item::missing(Exit::Device, name, found, Mend::by("use a larger device"));
    }
    let users = users(root, device);
    let driver = match mode {
        Mode::Fsdev => {
            let users = match &users[..] {
                [] => "not in use".to_owned(),
                _ => users.join(", "),
            };
            return Item::ok(name, format!("{shown}, fsdev mode, {users}"));
        }
        Mode::Devdax => Some("device_dax"),
        Mode::SystemRam => Some("kmem"),
        Mode::Unbound => None,
    };
    let mut found = format!("{shown}, {}; famfs needs fsdev mode", mode.describe());
    if !users.is_empty() {
        found.push_str(&format!("; {}, which loses it", users.join(", ")));
    }
    let bus = "/sys/bus/dax/drivers";
    let mut steps = Vec::new();
    if device.is_online().unwrap_or(false) && *mode == Mode::SystemRam {
        steps.push(format!("daxctl offline-memory {name}"));
    }
    if let Some(driver) = driver {
        steps.push(format!("echo {name} >{bus}/{driver}/unbind"));
    }
    steps.push(format!("echo {name} >{bus}/fsdev_dax/new_id"));
    Item::missing(Exit::Device, name, found, Mend::Run(steps.join(" && ")))
}

/// Mounts and processes that have a device, as far as the caller may see them.
fn users(root: &Path, device: &DaxDevice) -> Vec<String> {
    let mounts = mounts_in(&root.join("proc")).unwrap_or_default();
    let has = |mount: &&Mount| {
        let (major, minor) = mount.device;
        let file = root.join(DEBUGFS.trim_start_matches('/'));
        let state = fs::read_to_string(file.join(format!("{major}:{minor}")));
        let named = format!(" name={:?} ", device.path.display().to_string());
        mount.may_be_famfs()
            && (mount.source == device.path || state.is_ok_and(|text| text.contains(&named)))
    };
    let mounted = mounts.iter().filter(has);
    let mounted = mounted.map(|mount| format!("mounted on {}", mount.point.display()));
    mounted.chain(processes(root, &device.path)).collect()
}

/// Processes that have opened or mapped a device. A server of famfs is not among them.
fn processes(root: &Path, device: &Path) -> Vec<String> {
    let entries = fs::read_dir(root.join("proc")).into_iter().flatten();
    let mut pids: Vec<u32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    let has = |pid: &u32| {
        let process = root.join(format!("proc/{pid}"));
        let fds = fs::read_dir(process.join("fd")).into_iter().flatten();
        fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
            .any(|path| path == device)
            || fs::read(process.join("maps")).is_ok_and(|maps| maps_name(&maps, device))
    };
    let show = |pid: u32| {
        let comm = fs::read_to_string(root.join(format!("proc/{pid}/comm"))).unwrap_or_default();
        format!("used by {} (pid {pid})", comm.trim())
    };
    pids.into_iter().filter(has).map(show).collect()
}

/// Whether a line of /proc/PID/maps, `ADDRESSES MODE OFFSET DEVICE INODE    PATH`, has this path.
fn maps_name(maps: &[u8], path: &Path) -> bool {
    let mut lines = maps.split(|&byte| byte == b'\n');
    lines.any(|line| {
        let rest = line.splitn(6, |&byte| byte == b' ').nth(5);
        rest.is_some_and(|rest| rest.trim_ascii_start() == path.as_os_str().as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_has_the_whole_path() {
        let maps = |path: &str| {
            let first = "5600000000-5600001000 r-xp 00000000 fe:00 1234          /bin/sh\n";
            format!("{first}7f0000000000-7f0000200000 rw-s 00000000 00:06 92    {path}\n")
        };
        let has = |path| maps_name(maps(path).as_bytes(), Path::new("/dev/dax0.0"));
        assert!(has("/dev/dax0.0"));
        for other in [
            "/tmp/a /dev/dax0.0",
            "/dev/dax0.0 (deleted)",
            "/dev/dax0.01",
            "",
        ] {
            assert!(!has(other), "{other}");
        }
    }
}
