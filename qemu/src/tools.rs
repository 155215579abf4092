// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the image is made of beyond the project's own products: Debian's cxl, ndctl, daxctl and busybox, unpacked in
//! the cache, and the guest's init, built by cargo.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

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
    let root = cache()?
        .join("guest-tools")
        .join(format!("{SUITE}-{}", kit.packages.join("+")));
    if root.exists() {
        return Ok(root);
    }
    let part = root.with_extension("part");
    let debs = part.join("debs");
    if part.exists() {
        fs::remove_dir_all(&part)?;
    }
    fs::create_dir_all(&debs).with_context(|| format!("cannot write {}", debs.display()))?;
    let script = manifest_dir().join("../scripts/apt-private.sh");
    run(Command::new(script)
        .args([SUITE, "--", "closure"])
        .args(kit.packages)
        .current_dir(&debs))?;
    for deb in fs::read_dir(&debs)? {
        run(Command::new("dpkg-deb")
            .arg("-x")
            .arg(deb?.path())
            .arg(&part))?;
    }
    fs::remove_dir_all(&debs)?;
    fs::rename(&part, &root)?;
    Ok(root)
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
