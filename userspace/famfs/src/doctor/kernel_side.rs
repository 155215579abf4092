// SPDX-License-Identifier: MIT OR Apache-2.0
//! What doctor says of privileges, the kernel, its modules, and the programs that set memory up.

use std::fs;
use std::path::Path;

use super::{Item, Mend};
use crate::exit::Exit;
use crate::kernel::{self, Lack, CAPABILITIES};

const README: &str = "README.md of famfs-rs, \"On real hardware\"";

/// Programs, and what for.
const PROGRAMS: [(&str, &str); 3] = [
    ("daxctl", "to take memory back from system-ram mode"),
    ("cxl", "to make dax devices of CXL memory"),
    ("ndctl", "to make dax devices of persistent memory"),
];

/// All that does not depend on memory.
pub fn items(root: &Path) -> Vec<Item> {
    let lack = kernel::lack(root);
    let dev_fuse = root.join("dev/fuse");
    let mut items = vec![privileges(root)];
    items.push(match (dev_fuse.exists(), lack) {
        (true, _) => Item::ok("fuse", "/dev/fuse is there"),
        (false, Some(Lack::Fuse)) => {
            let found = "there is no /dev/fuse: FUSE is not loaded";
            Item::missing(Exit::Kernel, "fuse", found, Mend::run("modprobe fuse"))
        }
        (false, _) => Item::missing(
            Exit::Kernel,
            "fuse",
            "there is no /dev/fuse",
            Mend::run("mknod /dev/fuse c 10 229 # a container wants --device /dev/fuse"),
        ),
    });
    let release = release(root);
    items.push(match lack {
        Some(Lack::Fuse) => Item::missing(
            Exit::Kernel,
            "kernel",
            format!("{release}; whether its fuse has the patch shows when it is loaded"),
            Mend::run("modprobe fuse"),
        ),
        Some(Lack::Patch) => Item::missing(
            Exit::Kernel,
            "kernel",
            format!("{release}; its fuse lacks the patch for file maps"),
            Mend::by(format!(
                "build and boot Linux 7.2 with patches/linux-7.2/*.patch: {README}, step 1"
            )),
        ),
        _ => Item::ok("kernel", format!("{release}; its fuse takes file maps")),
    });
    items.push(module(root, &release, lack));
    items.push(fsdev_driver(root, &release));
    items
}

fn privileges(root: &Path) -> Item {
    let status = fs::read_to_string(root.join("proc/self/status")).unwrap_or_default();
    let field = |name: &str| {
        let mut lines = status.lines();
        lines.find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
    };
    let effective = field("CapEff:").and_then(|hex| u64::from_str_radix(&hex, 16).ok());
    let effective = effective.unwrap_or_default();
    let lacking: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(_, capability)| effective & capability.bits() == 0)
        .map(|(name, _)| *name)
        .collect();
    let is_root = field("Uid:").is_some_and(|ids| ids.split_whitespace().nth(1) == Some("0"));
    if !lacking.is_empty() {
        let found = format!("without {}", lacking.join(" and "));
        let mend = if is_root {
            Mend::by(
                "give the container or service these capabilities, such as --cap-add SYS_RAWIO",
            )
        } else {
            Mend::run("sudo famfs mount DEVICE DIR")
        };
        return Item::missing(Exit::Permission, "privileges", found, mend);
    }
    // The first user namespace maps all ids to themselves.
    let map = fs::read_to_string(root.join("proc/self/uid_map")).unwrap_or_default();
    let map: Vec<_> = map.split_whitespace().collect();
    if !matches!(map[..], [] | ["0", "0", "4294967295"]) {
        return Item::missing(
            Exit::Permission,
            "privileges",
            "in a user namespace, where capabilities do not reach memory",
            Mend::by("mount from outside of the container"),
        );
    }
    let names = CAPABILITIES.map(|(name, _)| name).join(" and ");
    Item::ok("privileges", names)
}

fn release(root: &Path) -> String {
    let text = fs::read_to_string(root.join("proc/sys/kernel/osrelease")).unwrap_or_default();
    text.trim().to_owned()
}

fn module(root: &Path, release: &str, lack: Option<Lack>) -> Item {
    if lack.is_none() {
        return Item::ok("module", "famfs is loaded");
    }
    if is_installed(root, release, "famfs") {
        let found = "famfs is installed and not loaded";
        return Item::missing(Exit::Kernel, "module", found, Mend::run("modprobe famfs"));
    }
    Item::missing(
        Exit::Kernel,
        "module",
        format!("famfs is neither loaded nor installed for {release}"),
        Mend::run("make modules install-module KDIR=/lib/modules/$(uname -r)/build && modprobe famfs # in the tree of famfs-rs"),
    )
}

fn fsdev_driver(root: &Path, release: &str) -> Item {
    if root.join("sys/bus/dax/drivers/fsdev_dax").exists() {
        return Item::ok("dax driver", "fsdev_dax is there");
    }
    if is_installed(root, release, "fsdev_dax") {
        let found = "fsdev_dax is installed and not loaded";
        return Item::missing(
            Exit::Kernel,
            "dax driver",
            found,
            Mend::run("modprobe fsdev_dax"),
        );
    }
    Item::missing(
        Exit::Kernel,
        "dax driver",
        format!("{release} has no fsdev_dax"),
        Mend::by(format!(
            "build the kernel with CONFIG_FS_DAX and CONFIG_DEV_DAX: {README}, step 1"
        )),
    )
}

/// Whether modprobe(8) would find a module.
fn is_installed(root: &Path, release: &str, name: &str) -> bool {
    let index = root.join("lib/modules").join(release).join("modules.dep");
    let index = fs::read_to_string(index).unwrap_or_default();
    index.lines().any(|line| {
        let path = line.split(':').next().unwrap_or_default();
        let file = path.rsplit('/').next().unwrap_or_default();
        let stem = file.split(".ko").next().unwrap_or_default();
        stem.replace('-', "_") == name
    })
}

/// Tools that a mount does not need.
pub fn programs(root: &Path) -> Vec<Item> {
    let is_there = |name: &str| {
        let folders = ["usr/bin", "usr/sbin", "bin", "sbin", "usr/local/bin"];
        folders
            .map(|folder| root.join(folder).join(name).exists())
            .contains(&true)
    };
    let installer = ["apt-get", "dnf", "zypper"]
        .into_iter()
        .find(|name| is_there(name));
    let item = |(name, purpose): &(&str, &str)| match is_there(name) {
        true => Item::ok(name, "is there"),
        false => {
            let found = format!("not there; {purpose}");
            let mend = format!("{} install {name}", installer.unwrap_or("apt-get"));
            Item::note(name, found, Mend::Run(mend))
        }
    };
    PROGRAMS.iter().map(item).collect()
}
