// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machines that guests are booted on, as data.

use crate::tools::{Kit, BENCH_KIT, KIT, SYSTEMD_KIT};

/// One machine: what QEMU is told, what the kernel is told, what the guest makes of it.
#[derive(Debug)]
pub struct Topology {
    pub name: &'static str,
    /// QEMU arguments for machine and memory.
    pub qemu: &'static [&'static str],
    /// Additions to the kernel command line.
    pub kernel: &'static [&'static str],
    /// `famfs.memory=` for the guest's init: how its dax devices are made.
    pub memory: &'static str,
    /// What the guest's image is made of.
    pub kit: &'static Kit,
}

/// No dax device at all.
pub const BARE: Topology = Topology {
    name: "bare",
    qemu: &["-machine", "q35", "-m", "512M"],
    kernel: &[],
    memory: "none",
    kit: &KIT,
};

/// One daxdev on plain memory: the fast one.
pub const PMEM: Topology = Topology {
    name: "pmem",
    qemu: &["-machine", "q35", "-m", "2G"],
    kernel: &["memmap=384M!1G"],
    memory: "pmem1",
    kit: &KIT,
};

/// The same with systemd as PID 1.
pub const SYSTEMD: Topology = Topology {
    name: "systemd",
    kit: &SYSTEMD_KIT,
    ..PMEM
};

/// Two daxdevs of different size. The gap keeps the kernel from merging the two ranges.
pub const PMEM2: Topology = Topology {
    name: "pmem2",
    qemu: &["-machine", "q35", "-m", "2G"],
    kernel: &["memmap=384M!1G", "memmap=256M!1536M"],
    memory: "pmem2",
    kit: &KIT,
};

/// One CXL type-3 device with volatile memory behind a root port; QEMU emulates every access to it.
pub const CXL: Topology = Topology {
    name: "cxl",
    qemu: &[
        "-machine",
        "q35,cxl=on",
        "-m",
        "1G,maxmem=8G,slots=4",
        "-object",
        "memory-backend-ram,id=vmem0,share=on,size=512M",
        "-device",
        "pxb-cxl,bus_nr=12,bus=pcie.0,id=cxl.1",
        "-device",
        "cxl-rp,port=0,bus=cxl.1,id=rp0,chassis=0,slot=2",
        "-device",
        "cxl-type3,bus=rp0,volatile-memdev=vmem0,id=cxl-vmem0,sn=0x1",
        "-M",
        "cxl-fmw.0.targets.0=cxl.1,cxl-fmw.0.size=4G",
    ],
    kernel: &[],
    memory: "cxl",
    kit: &KIT,
};

/// Bytes of the NVDIMMs that two hosts share. The first has room for 1,000 files of an allocation unit and more.
pub const SHARED_BYTES: [u64; 4] = [4 << 30, 256 << 20, 384 << 20, 512 << 20];
/// Which of them is in the first, second, ... slot of each host. On the second, each so has another name.
pub const MASTER_SLOTS: [usize; 4] = [0, 1, 2, 3];
pub const CLIENT_SLOTS: [usize; 4] = [2, 0, 3, 1];

const NVDIMM: &[&str] = &["-machine", "q35,nvdimm=on", "-m", "1G,slots=4,maxmem=16G"];

/// The first of two hosts with one memory, four NVDIMMs.
pub const MASTER: Topology = Topology {
    name: "master",
    qemu: NVDIMM,
    kernel: &[],
    memory: "pmem4",
    kit: &KIT,
};

/// The second one, which finds the namespaces that the first has made.
pub const CLIENT: Topology = Topology {
    name: "client",
    qemu: NVDIMM,
    kernel: &[],
    memory: "found4",
    kit: &KIT,
};

/// Two hosts with the first NVDIMM alone.
pub const HOST_A: Topology = Topology {
    name: "host-a",
    memory: "pmem1",
    ..MASTER
};
pub const HOST_B: Topology = Topology {
    name: "host-b",
    memory: "found1",
    ..CLIENT
};

/// For `make bench`: four daxdevs on plain memory, one of them large enough for 10,000 files. Memory that nobody touches
/// costs the host nothing.
pub const BENCH: Topology = Topology {
    name: "bench",
    qemu: &[
        "-object",
        "memory-backend-ram,id=ram,size=32G,reserve=off",
        "-machine",
        "q35,memory-backend=ram",
        "-m",
        "32G",
    ],
    kernel: &[
        "memmap=21504M!4G",
        "memmap=1G!26112M",
        "memmap=1G!27648M",
        "memmap=1536M!29184M",
        "kunit.enable=0",
        "nokaslr",
        "norandmaps",
    ],
    memory: "pmem4",
    kit: &BENCH_KIT,
};

/// For `make bench` too: one daxdev with room for 262,144 extents. The kernel's descriptors of its pages take 8 GiB.
pub const BENCH_LARGE: Topology = Topology {
    name: "bench-large",
    qemu: &[
        "-object",
        "memory-backend-ram,id=ram,size=528G,reserve=off",
        "-machine",
        "q35,memory-backend=ram",
        "-m",
        "528G",
    ],
    kernel: &["memmap=513G!14G", "kunit.enable=0", "nokaslr", "norandmaps"],
    memory: "pmem1",
    kit: &BENCH_KIT,
};

const ALL: [&Topology; 4] = [&BARE, &PMEM, &PMEM2, &CXL];

/// For clap: the topology of that name.
pub fn by_name(name: &str) -> Result<&'static Topology, String> {
    ALL.into_iter()
        .find(|topology| topology.name == name)
        .ok_or_else(|| {
            let names: Vec<_> = ALL.iter().map(|topology| topology.name).collect();
            format!("no such topology; there are {}", names.join(", "))
        })
}
