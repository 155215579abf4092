// SPDX-License-Identifier: MIT OR Apache-2.0
//! What famfs needs of the kernel and of the caller's privileges.

use std::fs;
use std::path::Path;

use rustix::thread::{capabilities, CapabilitySet};

use crate::exit::{fail, Exit};

/// Capabilities that a mount takes, with their numbers.
pub const CAPABILITIES: [(&str, CapabilitySet); 2] = [
    ("CAP_SYS_ADMIN", CapabilitySet::SYS_ADMIN),
    ("CAP_SYS_RAWIO", CapabilitySet::SYS_RAWIO),
];

/// The first thing that the kernel lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// FUSE.
    Fuse,
    /// The patch for FUSE.
    Patch,
    /// famfs.ko is not loaded.
    Module,
}

/// Checks all that can be known before a mount is tried.
pub fn check() -> anyhow::Result<()> {
    check_privileges()?;
    check_module()
}

/// Checks what the caller may do.
pub fn check_privileges() -> anyhow::Result<()> {
    let effective = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    for (name, capability) in CAPABILITIES {
        if !effective.contains(capability) {
            let text = format!(
                "{name} is missing: run this as root (in a container, with that capability added)"
            );
            return Err(fail(Exit::Permission, text));
        }
    }
    Ok(())
}

/// Checks for the module, and without it for what it needs.
pub fn check_module() -> anyhow::Result<()> {
    let text = match lack(Path::new("/")) {
        None => return Ok(()),
        Some(Lack::Fuse) => "this kernel has no FUSE: `modprobe fuse`",
        Some(Lack::Patch) => {
            "this kernel's fuse cannot serve famfs: boot one that is built with the famfs-rs patches"
        }
        Some(Lack::Module) => {
            "the kernel module famfs is not loaded: `modprobe famfs`, or `insmod` with the path of famfs.ko"
        }
    };
    let text = format!("{text}; `famfs doctor` shows what else is missing");
    Err(fail(Exit::Kernel, text))
}

/// What the kernel lacks whose /sys and /proc are below `root`.
pub fn lack(root: &Path) -> Option<Lack> {
    let modules = root.join("sys/module");
    if modules.join("famfs").exists() {
        return None;
    }
    if !modules.join("fuse").exists() {
        return Some(Lack::Fuse);
    }
    // Without CONFIG_KALLSYMS nothing is known: then the module is the likelier thing to be missing.
    match fs::read_to_string(root.join("proc/kallsyms")) {
        Ok(symbols) if !symbols.contains(" fuse_fmap_") => Some(Lack::Patch),
        _ => Some(Lack::Module),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_a_missing_module_from_a_missing_patch() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        fs::create_dir_all(path.join("proc")).unwrap();
        assert_eq!(lack(path), Some(Lack::Fuse));
        fs::create_dir_all(path.join("sys/module/fuse")).unwrap();
        assert_eq!(lack(path), Some(Lack::Module));
        let kallsyms = path.join("proc/kallsyms");
        fs::write(&kallsyms, "0 T fuse_file_open\t[fuse]\n").unwrap();
        assert_eq!(lack(path), Some(Lack::Patch));
        let patched = "0 T fuse_file_open\t[fuse]\n0 T fuse_fmap_open\t[fuse]\n";
        fs::write(&kallsyms, patched).unwrap();
        assert_eq!(lack(path), Some(Lack::Module));
        fs::create_dir_all(path.join("sys/module/famfs")).unwrap();
        assert_eq!(lack(path), None);
    }
}
