// SPDX-License-Identifier: MIT OR Apache-2.0
//! Machines for `famfs doctor --sysroot`: what it reads of /sys, /proc, /dev and /lib/modules.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

pub struct Machine(PathBuf);

impl Machine {
    /// One with a patched kernel, famfs.ko and all tools, for root; without memory.
    pub fn new(root: PathBuf) -> Self {
        let machine = Self(root);
        for (path, text) in [
            (
                "proc/self/status",
                "Name:\tfamfs\nUid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n",
            ),
            ("proc/self/uid_map", "         0          0 4294967295\n"),
            ("proc/self/mountinfo", "21 1 0:20 / / rw - tmpfs tmpfs rw\n"),
            ("proc/sys/kernel/osrelease", "7.2.12\n"),
            ("proc/kallsyms", "0 T fuse_fmap_register\n"),
            ("dev/fuse", ""),
            ("sys/module/fuse/parameters/max_user_bgreq", ""),
            ("sys/module/famfs/parameters/failure_range", ""),
            ("sys/bus/dax/drivers/fsdev_dax/new_id", ""),
            ("lib/modules/7.2.12/modules.dep", "updates/famfs.ko.zst:\n"),
            ("usr/bin/apt-get", ""),
            ("usr/bin/daxctl", ""),
            ("usr/bin/cxl", ""),
            ("usr/bin/ndctl", ""),
        ] {
            machine.write(path, text);
        }
        machine
    }

    pub fn write(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn remove(&self, path: &str) {
        let path = self.0.join(path);
        match path.is_dir() {
            true => fs::remove_dir_all(path).unwrap(),
            false => fs::remove_file(path).unwrap(),
        }
    }

    /// A link to a name, as sysfs has them.
    pub fn link(&self, path: &str, target: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(Path::new("..").join(target), path).unwrap();
    }

    /// A dax device of 512 MiB, the memory of block 34, bound to `driver`.
    pub fn dax(&self, name: &str, driver: &str) {
        let device = format!("sys/bus/dax/devices/{name}");
        self.write(&format!("{device}/size"), "536870912\n");
        self.write(&format!("{device}/resource"), "0x110000000\n");
        self.write("sys/devices/system/memory/block_size_bytes", "8000000\n");
        self.write("sys/devices/system/memory/memory34/state", "online\n");
        if !driver.is_empty() {
            self.link(&format!("{device}/driver"), driver);
        }
    }

    /// CXL memory of 512 MiB, in a region or in none.
    pub fn cxl(&self, region: bool) {
        let dir = "sys/bus/cxl/devices";
        self.write(&format!("{dir}/mem0/ram/size"), "0x20000000\n");
        self.write(&format!("{dir}/mem0/pmem/size"), "0x0\n");
        self.write(&format!("{dir}/decoder0.0/cap_ram"), "1\n");
        self.link(&format!("{dir}/endpoint2/uport"), "mem0");
        if region {
            self.write(&format!("{dir}/region0/target0"), "decoder2.0\n");
        }
    }

    /// A region of persistent memory of 4 GiB and its namespace, which `holder` has.
    pub fn pmem(&self, holder: &str) {
        let dir = "sys/bus/nd/devices";
        self.write(&format!("{dir}/region0/size"), "4294967296\n");
        self.write(&format!("{dir}/region0/available_size"), "0\n");
        self.write(&format!("{dir}/namespace0.0/size"), "4294967296\n");
        self.write(
            &format!("{dir}/namespace0.0/holder"),
            &format!("{holder}\n"),
        );
    }

    /// A process that has opened `path`.
    pub fn process(&self, pid: u32, name: &str, path: &str) {
        self.write(&format!("proc/{pid}/comm"), &format!("{name}\n"));
        self.write(&format!("proc/{pid}/maps"), "");
        fs::create_dir_all(self.0.join(format!("proc/{pid}/fd"))).unwrap();
        symlink(path, self.0.join(format!("proc/{pid}/fd/3"))).unwrap();
    }
}
