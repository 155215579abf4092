// SPDX-License-Identifier: MIT OR Apache-2.0
//! The mounts of this process, from /proc/self/mountinfo.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// A mount as /proc/self/mountinfo has it.
pub struct Mount {
    /// As statx(2) gives it for a path.
    pub id: u64,
    /// Device number of the file system, (major, minor).
    pub device: (u32, u32),
    /// Which part of the file system is mounted.
    pub root: Vec<u8>,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Type of the file system.
    pub fstype: Vec<u8>,
    /// What is mounted.
    pub source: PathBuf,
    /// Who has mounted it; of FUSE file systems only.
    pub user_id: Option<u32>,
}

impl Mount {
    /// Whether it can be a famfs: by its type, which is plain `fuse` where upstream's server serves, and since root has
    /// mounted it. Every user can mount a FUSE file system that calls itself `fuse.famfs` on /dev/dax0.0.
    pub fn may_be_famfs(&self) -> bool {
        matches!(&self.fstype[..], b"fuse.famfs" | b"fuse") && self.user_id == Some(0)
    }
}

/// All mounts, earlier ones first.
pub fn mounts() -> anyhow::Result<Vec<Mount>> {
    mounts_in(Path::new("/proc"))
}

/// The mounts that `proc` knows.
pub fn mounts_in(proc: &Path) -> anyhow::Result<Vec<Mount>> {
    let file = proc.join("self/mountinfo");
    let text = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
    Ok(text
        .split(|&b| b == b'\n')
        .filter_map(parse_mount)
        .collect())
}

/// One line of mountinfo: `ID PARENT DEV ROOT POINT OPTIONS [TAG...] - TYPE SOURCE OPTIONS`.
fn parse_mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&b| b == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let (major, minor) = std::str::from_utf8(fields.nth(1)?).ok()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let root = unescape(fields.next()?);
    let point = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let fstype = rest.next()?.to_vec();
    let source = PathBuf::from(OsString::from_vec(unescape(rest.next()?)));
    // The kernel's comes before anything that was chosen by who mounted.
    let mut options = rest.next()?.split(|&b| b == b',');
    let user_id = options.find_map(|option| option.strip_prefix(b"user_id="));
    let user_id = user_id.and_then(|id| std::str::from_utf8(id).ok()?.parse().ok());
    Some(Mount {
        id,
        device,
        root,
        point,
        fstype,
        source,
        user_id,
    })
}

/// Undo the kernel's `\ooo` for blanks, newlines and backslashes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut parts = field.split(|&b| b == b'\\');
    let mut out = parts.next().unwrap_or_default().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at(part.len().min(3));
        let code = std::str::from_utf8(digits)
            .ok()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.extend(code);
        out.extend_from_slice(rest);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines() {
        let line = b"36 25 0:31 / /mnt/my\\040mem rw,nosuid shared:1 master:2 - fuse.famfs /dev/dax0.0 rw,user_id=0";
        let mount = parse_mount(line).unwrap();
        assert_eq!(
            (
                mount.id,
                mount.device,
                &mount.root[..],
                mount.point.as_path()
            ),
            (36, (0, 31), &b"/"[..], Path::new("/mnt/my mem"))
        );
        assert_eq!(
            (&mount.fstype[..], mount.source.as_path()),
            (&b"fuse.famfs"[..], Path::new("/dev/dax0.0"))
        );
        assert_eq!(mount.user_id, Some(0));
        assert!(parse_mount(b"36 25 0:31 / /mnt rw").is_none());
        assert!(parse_mount(b"").is_none());
    }
    #[test]
    fn what_a_user_has_mounted_is_no_famfs() {
        for (kind, options, is) in [
            ("fuse.famfs", "rw,user_id=0,group_id=0", true),
            ("fuse", "rw,user_id=0,group_id=0,default_permissions", true),
            ("fuse.famfs", "rw,user_id=1000,group_id=1000", false),
            ("fuse", "rw,user_id=1000,group_id=0,user_id=0", false),
            ("fuse.famfs", "rw", false),
            ("fuse.famfs2", "rw,user_id=0", false),
            ("fuseblk", "rw,user_id=0", false),
        ] {
            let line = format!("36 25 0:31 / /mnt rw - {kind} /dev/dax0.0 {options}");
            let mount = parse_mount(line.as_bytes()).unwrap();
            assert_eq!(mount.may_be_famfs(), is, "{line}");
        }
    }
}
