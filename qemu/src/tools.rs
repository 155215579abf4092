// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the image is made of beyond the project's own products: Debian's cxl, ndctl, daxctl and busybox, unpacked in
//! the cache, and the guest's init, built by cargo. Some guests get a disk with applications besides.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{ensure, Context, Result};

/// The first Debian with the `cxl` tool.
const SUITE: &str = "trixie";

/// Debian packages, and the programs that guests want of them.
#[derive(Debug)]
pub struct Kit {
    /// What sets its image's name apart from that of [`KIT`].
    pub name: &'static str,
    packages: &'static [&'static str],
    pub programs: &'static [&'static str],
    /// Folders that are wanted whole.
    pub folders: &'static [&'static str],
}

pub const KIT: Kit = Kit {
    name: "",
    packages: &["cxl", "ndctl", "daxctl", "busybox-static", "mount"],
    programs: &[
        "usr/bin/busybox",
        "usr/bin/cxl",
        "usr/bin/ndctl",
        "usr/bin/daxctl",
        "usr/bin/mount",
    ],
    folders: &[],
};

/// For guests whose PID 1 is systemd.
pub const SYSTEMD_KIT: Kit = Kit {
    name: "systemd",
    packages: &["systemd", "ndctl", "busybox-static", "mount"],
    programs: &[
        "usr/bin/busybox",
        "usr/bin/ndctl",
        "usr/bin/mount",
        "usr/bin/umount",
        "usr/bin/systemctl",
        "usr/bin/journalctl",
    ],
    folders: &["usr/lib/systemd", "usr/lib/x86_64-linux-gnu/systemd"],
};

/// With other file systems to compare with.
pub const BENCH_KIT: Kit = Kit {
    name: "bench",
    packages: &["ndctl", "busybox-static", "e2fsprogs", "xfsprogs"],
    programs: &[
        "usr/bin/busybox",
        "usr/bin/ndctl",
        "usr/sbin/mkfs.ext4",
        "usr/sbin/mkfs.xfs",
    ],
    folders: &[],
};

/// The packages of docs/recipes.md.
const APPLICATIONS: &[&str] = &[
    "python3-minimal",
    "libpython3.13-stdlib",
    "sqlite3",
    "strace",
    "fio",
    "stress-ng",
];
const REQUIREMENTS: &str = "requirements.txt";
/// That of the suite, and the oldest C library that wheels may be made for.
const PYTHON: &str = "3.13";
const WHEEL_PLATFORM: &str = "manylinux_2_28_x86_64";
/// Of the file system for all of it. The file is sparse.
const DISK_SIZE: &str = "1G";

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn manifest_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The project's part of the user's cache.
pub fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(path) if !path.is_empty() => PathBuf::from(path),
        _ => PathBuf::from(
            std::env::var_os("HOME").context("neither HOME nor XDG_CACHE_HOME is set")?,
        )
        .join(".cache"),
    };
    Ok(base.join("famfs-rs"))
}

/// Downloads and unpacks a kit unless the cache has it.
pub fn guest_tools(kit: &Kit) -> Result<PathBuf> {
    let root = folder()?.join(format!("{SUITE}-{}", kit.packages.join("+")));
    if root.exists() {
        return Ok(root);
    }
    let part = root.with_extension("part");
    unpack(kit.packages, &part)?;
    fs::rename(&part, &root)?;
    Ok(root)
}

/// What real programs need, for the guests that run docs/recipes.md: a disk, since all of it would make a large initrd.
pub fn applications() -> Result<PathBuf> {
    let requirements = fs::read_to_string(manifest_dir().join(REQUIREMENTS))?;
    let mut state = DefaultHasher::new();
    (APPLICATIONS, requirements).hash(&mut state);
    let image = folder()?.join(format!("{SUITE}-applications-{:016x}.ext4", state.finish()));
    if image.exists() {
        return Ok(image);
    }
    let root = image.with_extension("tree");
    unpack(APPLICATIONS, &root)?;
    add_wheels(&root)?;
    let part = image.with_extension("part");
    make_disk(&root, &part)?;
    fs::remove_dir_all(&root)?;
    fs::rename(&part, &image)?;
    Ok(image)
}

fn folder() -> Result<PathBuf> {
    Ok(cache()?.join("guest-tools"))
}

/// Downloads packages with all that they depend on, and unpacks them into a new folder.
fn unpack(packages: &[&str], root: &Path) -> Result<()> {
    let debs = root.join("debs");
    if root.exists() {
        fs::remove_dir_all(root)?;
    }
    fs::create_dir_all(&debs).with_context(|| format!("cannot write {}", debs.display()))?;
    let script = manifest_dir().join("../scripts/apt-private.sh");
    run(Command::new(script)
        .args([SUITE, "--", "closure"])
        .args(packages)
        .current_dir(&debs))?;
    for deb in fs::read_dir(&debs)? {
        run(Command::new("dpkg-deb")
            .arg("-x")
            .arg(deb?.path())
            .arg(root))?;
    }
    Ok(fs::remove_dir_all(&debs)?)
}

/// Adds Python packages that Debian does not have, known by their checksums.
fn add_wheels(root: &Path) -> Result<()> {
    let mut pip = Command::new("pip3");
    pip.args(["--quiet", "--disable-pip-version-check"]);
    pip.args(["--retries", "2", "--timeout", "30"]);
    pip.args(["install", "--no-deps", "--no-compile", "--require-hashes"]);
    pip.args(["--only-binary", ":all:", "--python-version", PYTHON]);
    pip.args(["--implementation", "cp", "--platform", WHEEL_PLATFORM]);
    pip.arg("--target")
        .arg(root.join("usr/lib/python3/dist-packages"));
    pip.arg("--requirement")
        .arg(manifest_dir().join(REQUIREMENTS));
    pip.env("PIP_ROOT_USER_ACTION", "ignore");
    run(&mut pip).with_context(|| {
        format!("cannot fetch what qemu/{REQUIREMENTS} names: check the network and pip's index")
    })
}

/// Makes a file system with the tree in it.
fn make_disk(root: &Path, disk: &Path) -> Result<()> {
    if disk.exists() {
        fs::remove_file(disk)?;
    }
    // Users have no /usr/sbin in their path.
    let path = std::env::var("PATH").unwrap_or_default();
    run(Command::new("mke2fs")
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .args(["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d"])
        .arg(root)
        .arg(disk)
        .arg(DISK_SIZE)
        .stdout(Stdio::null()))
}

/// Builds the guest's init as a static binary.
pub fn guest_init() -> Result<PathBuf> {
    let target_dir = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(path) => PathBuf::from(path),
        None => manifest_dir().join("target"),
    };
    let mut cargo = Command::new("cargo");
    cargo.args([
        "build",
        "--quiet",
        "--locked",
        "--release",
        "--package",
        "guest-init",
        "--target",
        TARGET,
    ]);
    cargo
        .arg("--manifest-path")
        .arg(manifest_dir().join("Cargo.toml"));
    cargo.arg("--target-dir").arg(&target_dir);
    // With --target given, these flags do not reach build scripts and procedural macros, which cannot be static.
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    run(&mut cargo)?;
    Ok(target_dir.join(TARGET).join("release/guest-init"))
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(status.success(), "{program} failed ({status})");
    Ok(())
}
