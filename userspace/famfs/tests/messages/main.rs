// SPDX-License-Identifier: MIT OR Apache-2.0
//! docs/messages.md is what famfs says. This makes all of it up to "On a machine with memory"; what follows is made by
//! the test of that name in the guest. `SNAPSHOTS=overwrite cargo test -p famfs --test messages` writes it anew.

// Helpers of tests may panic; clippy.toml knows only the tests themselves.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod image;
mod machine;

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use machine::Machine;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/messages.md");
const GUESTS_PART: &str = "\n## On a machine with memory\n";

const INTRODUCTION: &str = "\
<!-- SPDX-License-Identifier: MIT OR Apache-2.0 -->
# What famfs says

`famfs doctor` on machines that lack something, and the messages of errors with their [exit codes](cli.md). Tests make
this page from what the program prints, and fail when it says something else.

## famfs doctor

It looks at privileges, kernel, modules, dax devices and the memory that they are made of. What is missing for a mount
has a command for root's shell below it (`run:`), or what else is to be done (`do:`); notes are not needed to mount.
The exit code is that of the first thing missing. `--sysroot` has it look at copies of /sys, /proc, /dev and
/lib/modules, as here.
";

/// Shell commands and what they print, as a console block.
fn transcript(dir: &Path, commands: &[&str]) -> String {
    let mut text = "\n```console\n".to_owned();
    for command in commands {
        let program = Path::new(env!("CARGO_BIN_EXE_famfs"));
        let mut words = command.split(' ');
        let name = words.next().unwrap();
        let link = dir.join(".bin").join(name);
        if !link.exists() {
            std::fs::create_dir_all(dir.join(".bin")).unwrap();
            std::os::unix::fs::symlink(program, &link).unwrap();
        }
        let output = Command::new(link)
            .args(words)
            .current_dir(dir)
            .env_remove("RUST_LOG")
            .output()
            .unwrap();
        writeln!(text, "$ {command}").unwrap();
        text.push_str(&String::from_utf8(output.stdout).unwrap());
        text.push_str(&String::from_utf8(output.stderr).unwrap());
        match output.status.code().unwrap() {
            0 => (),
            code => write!(text, "$ echo $?\n{code}\n").unwrap(),
        }
    }
    text + "```\n"
}

/// A machine, and what doctor is asked.
type Case = (&'static str, &'static str, fn(&Machine), &'static str);

/// The lines that are not "ok" for those machines, all for the first.
const MACHINES: &[Case] = &[
    (
        "Nothing is missing",
        "ready",
        |machine| {
            machine.cxl(true);
            machine.dax("dax0.0", "fsdev_dax");
            let mounted = "40 21 0:31 / /mnt/famfs rw - fuse.famfs /dev/dax0.0 rw,user_id=0\n";
            machine.write("proc/self/mountinfo", mounted);
        },
        "",
    ),
    (
        "famfs.ko is not loaded, and the device is in the wrong mode and in use",
        "devdax",
        |machine| {
            machine.remove("sys/module/famfs");
            machine.pmem("dax0.1");
            machine.dax("dax0.0", "device_dax");
            machine.process(812, "qemu-system-x86", "/dev/dax0.0");
        },
        "",
    ),
    (
        "The system uses the memory",
        "system-ram",
        |machine| {
            machine.cxl(true);
            machine.dax("dax0.0", "kmem");
            machine.remove("usr/bin/daxctl");
        },
        "/dev/dax0.0",
    ),
    (
        "CXL memory that is no dax device yet",
        "cxl",
        |machine| machine.cxl(false),
        "",
    ),
    (
        "Persistent memory that is no dax device yet",
        "pmem",
        |machine| machine.pmem(""),
        "",
    ),
    (
        "No memory, a kernel without the patches, and no root",
        "bare",
        |machine| {
            machine.remove("sys/module/famfs");
            machine.remove("sys/bus/dax/drivers/fsdev_dax");
            machine.remove("lib/modules/7.2.12/modules.dep");
            machine.write("proc/kallsyms", "0 T fuse_file_open\n");
            let user = "Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000000000\n";
            machine.write("proc/self/status", user);
        },
        "",
    ),
    (
        "A container",
        "container",
        |machine| {
            machine.write("proc/self/uid_map", "0 100000 65536\n");
            machine.remove("dev/fuse");
            machine.dax("dax1.0", "");
        },
        "/dev/dax0.0 /dev/dax1.0",
    ),
];

fn doctors(dir: &Path) -> String {
    let mut text = String::new();
    for (heading, name, change, devices) in MACHINES {
        change(&Machine::new(dir.join(name)));
        let command = format!("famfs doctor --sysroot {name} {devices}");
        write!(text, "\n### {heading}\n").unwrap();
        text.push_str(&transcript(dir, &[command.trim_end()]));
    }
    text.push_str("\n### As JSON\n");
    text + &transcript(
        dir,
        &["famfs doctor --json --sysroot system-ram /dev/dax0.0"],
    )
}

/// A copy of /sys and /proc can be anybody's.
#[test]
fn doctor_believes_no_names() {
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::new(dir.path().to_path_buf());
    machine.dax("dax0.0", "device_dax");
    machine.dax("dax1.0;reboot", "device_dax");
    machine.process(812, "\u{1b}[2J", "/dev/dax0.0");
    let mounted = "40 21 0:31 / /mnt/\u{9b}2J rw - fuse.famfs /dev/dax0.0 rw,user_id=0\n";
    machine.write("proc/self/mountinfo", mounted);
    for name in ["mem0;reboot", "mem1", "decoder0.0;reboot"] {
        let memory = format!("sys/bus/cxl/devices/{name}");
        machine.write(&format!("{memory}/ram/size"), "0x20000000\n");
        machine.write(&format!("{memory}/cap_ram"), "1\n");
    }
    machine.write("sys/bus/nd/devices/region0;reboot/available_size", "1\n");
    let output = Command::new(env!("CARGO_BIN_EXE_famfs"))
        .args(["doctor", "--sysroot"])
        .arg(dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(4), "{text}");
    let users = r"mounted on /mnt/\u{9b}2J, used by \u{1b}[2J (pid 812), which loses it";
    assert!(text.contains(users), "{text}");
    assert!(text.contains("-d decoder0.0 -w 1 mem1\n"), "{text}");
    assert!(!text.contains("reboot"), "{text}");
    let is_raw = |char: char| char.is_control() && char != '\n';
    assert!(!text.contains(is_raw), "{text:?}");
}

/// Errors that need no memory.
const ERRORS: &[(&str, &[&str])] = &[
    (
        "Wrong command lines",
        &[
            "famfs nonsense",
            "famfs creat --size 8q /mnt/famfs/file",
            "famfs creat --size 0 /mnt/famfs/file",
            "famfs creat --multi /mnt/famfs/file",
            "famfs verify --multi file",
            "famfs mkdir --mode rwx /mnt/famfs/dir",
            "famfs mkfs --loglen 9m /dev/dax0.0",
            "famfs mount --follow often /dev/dax0.0 /mnt/famfs",
            "famfs cp image other missing",
        ],
    ),
    (
        "Not a famfs",
        &[
            "famfs creat --size 1m file",
            "famfs status .",
            "famfs fsck missing",
            "famfs fsck zeroes",
            "famfs fsck short",
            "famfs fsck version-47",
            "famfs fsck second-daxdev",
        ],
    ),
    (
        "Not a dax device",
        &[
            "famfs mkfs image",
            "famfs mkfs /dev/null",
            "famfs mkfs /dev/dax99.0",
        ],
    ),
    (
        "A superblock or a log that is damaged",
        &[
            "famfs fsck superblock-crc",
            "famfs fsck superblock-unit",
            "famfs fsck superblock-log-offset",
            "famfs fsck superblock-log-length",
            "famfs fsck log-cut-off",
            "famfs fsck log-magic",
            "famfs fsck log-crc",
            "famfs fsck log-length",
            "famfs fsck log-last-index",
            "famfs fsck log-next-index",
        ],
    ),
    (
        "Log entries that are wrong or strange",
        &[
            "famfs fsck entry-crc",
            "famfs fsck entry-seqnum",
            "famfs fsck entry-over-superblock",
            "famfs fsck entry-absolute-path",
            "famfs fsck entry-unknown-type",
            "famfs fsck entry-delete",
            "famfs fsck entry-duplicate",
            "famfs fsck entry-count",
        ],
    ),
    (
        "Replies of other servers that the kernel would refuse",
        &[
            "famfs fmap decode reply-short",
            "famfs fmap decode reply-unaligned",
            "famfs fmap decode reply-33-strips",
            "famfs fmap decode missing",
        ],
    ),
    (
        "Files that are not what they should be",
        &[
            "famfs verify --seed 7 zeroes",
            "famfs verify missing",
            "famfs chkread missing",
        ],
    ),
    (
        "mount(8)",
        &[
            "mount.famfs /dev/dax0.0",
            "mount.famfs /dev/dax0.0 /mnt/famfs -o nonsense",
            "mount.famfs /dev/dax0.0 /mnt/famfs -o failure=some",
            "mount.famfs /dev/dax0.0 /mnt/famfs -o",
            "mount.famfs /dev/dax0.0 /mnt/famfs -x",
            "mount.famfs /dev/dax0.0 /mnt/famfs -N 7",
        ],
    ),
];

#[test]
fn the_page_is_what_famfs_says() {
    let dir = tempfile::tempdir().unwrap();
    image::all(dir.path());
    let mut page = INTRODUCTION.to_owned();
    page.push_str(&doctors(dir.path()));
    page.push_str("\n## Without memory\n");
    for (heading, commands) in ERRORS {
        write!(page, "\n### {heading}\n").unwrap();
        page.push_str(&transcript(dir.path(), commands));
    }
    let there = std::fs::read_to_string(PAGE).unwrap_or_default();
    if let Some((_, guests)) = there.split_once(GUESTS_PART) {
        page.extend([GUESTS_PART, guests]);
    }
    snapbox::assert_data_eq!(page, snapbox::Data::read_from(Path::new(PAGE), None).raw());
}
