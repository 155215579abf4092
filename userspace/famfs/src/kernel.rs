// SPDX-License-Identifier: MIT OR Apache-2.0
//! What famfs needs of the kernel and of the caller's privileges.

use std::fs;
use std::path::Path;

use rustix::thread::{capabilities, CapabilitySet};

use crate::exit::{fail, Exit};

/// Checks all that can be known before a mount is tried.
pub fn check() -> anyhow::Result<()> {
    check_privileges()?;
    check_module()
}

/// Checks what the caller may do.
pub fn check_privileges() -> anyhow::Result<()> {
    let effective = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    for (capability, name) in [
        (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
        (CapabilitySet::SYS_RAWIO, "CAP_SYS_RAWIO"),
    ] {
        if !effective.contains(capability) {
            let text = format!(
                "{name} is missing: run this as root (in a container, with that capability added)"
            );
            return Err(fail(Exit::Permission, text));
        }
    }
    Ok(())
}

/// Checks for the module, and without it for the patch that it needs.
pub fn check_module() -> anyhow::Result<()> {
    check_in(Path::new("/sys"), Path::new("/proc"))
}

fn check_in(sys: &Path, proc: &Path) -> anyhow::Result<()> {
    if sys.join("module/famfs").exists() {
        return Ok(());
    }
    // Without CONFIG_KALLSYMS nothing is known: then the module is the likelier thing to be missing.
    match fs::read_to_string(proc.join("kallsyms")) {
        Ok(symbols) if !symbols.contains(" fuse_fmap_") => {
            Err(fail(Exit::Kernel, "this kernel's fuse cannot serve famfs: boot one that is built with the famfs-rs patches"))
        }
        _ => {
            let text = "the kernel module famfs is not loaded: `modprobe famfs`, or `insmod` with the path of famfs.ko";
            Err(fail(Exit::Kernel, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_a_missing_module_from_a_missing_patch() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let error = || check_in(path, path).unwrap_err();
        assert_eq!(crate::exit::code(&error()), Exit::Kernel);
        assert!(error().to_string().contains("module famfs is not loaded"));
        fs::write(path.join("kallsyms"), "0 T fuse_file_open\t[fuse]\n").unwrap();
        assert_eq!(crate::exit::code(&error()), Exit::Kernel);
        assert!(error().to_string().contains("this kernel's fuse"));
        fs::write(
            path.join("kallsyms"),
            "0 T fuse_file_open\t[fuse]\n0 T fuse_fmap_open\t[fuse]\n",
        )
        .unwrap();
        assert!(error().to_string().contains("module famfs is not loaded"));
        fs::create_dir_all(path.join("module/famfs")).unwrap();
        check_in(path, path).unwrap();
    }
}
