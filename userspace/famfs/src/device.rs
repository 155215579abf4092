// SPDX-License-Identifier: MIT OR Apache-2.0
//! Dax devices: found by sysfs, and moved to fsdev mode.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// What a dax device is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `device_dax`: programs map it directly.
    Devdax,
    /// `fsdev_dax`: file systems use it. What famfs needs.
    Fsdev,
    /// `kmem`: the system uses it as ordinary memory.
    SystemRam,
    /// No driver.
    Unbound,
}

impl Mode {
    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Devdax => "devdax mode",
            Self::Fsdev => "fsdev mode",
            Self::SystemRam => "system-ram mode",
            Self::Unbound => "without a driver",
        }
    }
}

/// A dax device of this machine.
#[derive(Clone, Debug)]
pub struct DaxDevice {
    /// Its node, `/dev/daxX.Y`.
    pub path: PathBuf,
    /// Its name in sysfs, `daxX.Y`.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// What it is bound to.
    pub mode: Mode,
    sys: PathBuf,
}

/// Why a dax device cannot be used.
#[derive(Debug, Error)]
#[allow(missing_docs)] // The messages say it.
pub enum DeviceError {
    #[error(
        "{0}: no such device; `ls /sys/bus/dax/devices` shows the dax devices of this machine"
    )]
    Missing(PathBuf),
    #[error("{0} is not a dax device; famfs needs a /dev/daxX.Y")]
    NotDax(PathBuf),
    #[error(
        "{0} is in devdax mode, famfs needs fsdev mode; --set-daxmode of mount and mkfs switches it (programs that have it mapped lose it)"
    )]
    Devdax(PathBuf),
    #[error(
        "{0} is in system-ram mode, famfs needs fsdev mode; take its memory offline first \
         (`daxctl offline-memory {1}`), then --set-daxmode of mount and mkfs switches it"
    )]
    SystemRam(PathBuf, String),
    #[error("{0} is bound to no driver, famfs needs fsdev mode; --set-daxmode of mount and mkfs switches it")]
    Unbound(PathBuf),
    #[error("{0} is bound to an unknown driver, {1}; famfs needs fsdev_dax")]
    UnknownDriver(PathBuf, String),
    #[error(
        "this kernel has no fsdev_dax driver, which {0} needs: `modprobe fsdev_dax`, or a kernel with \
         CONFIG_DEV_DAX_FSDEV"
    )]
    NoFsdevDriver(PathBuf),
    #[error("{0} did not go to fsdev mode: it is {1:?} now; `dmesg` says why")]
    NotSwitched(PathBuf, Mode),
    #[error("{0} is in use by another mount or file system; `findmnt -S {0}`")]
    Busy(PathBuf),
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
}

/// The dax device at `path`, which may be a link to its node.
pub fn open(path: &Path) -> Result<DaxDevice, DeviceError> {
    open_in(Path::new("/sys"), path)
}

fn open_in(sys: &Path, path: &Path) -> Result<DaxDevice, DeviceError> {
    let node = match fs::canonicalize(path) {
        Ok(node) => node,
        // Without a driver that has one, a dax device has no node, but sysfs still knows it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return by_name(sys, path),
        Err(error) => return Err(DeviceError::Io(path.into(), error)),
    };
    let metadata = fs::metadata(&node).map_err(|error| DeviceError::Io(path.into(), error))?;
    if !metadata.file_type().is_char_device() {
        return Err(DeviceError::NotDax(path.into()));
    }
    let (major, minor) = (
        rustix::fs::major(metadata.rdev()),
        rustix::fs::minor(metadata.rdev()),
    );
    let entry = sys.join(format!("dev/char/{major}:{minor}"));
    if link_name(&entry.join("subsystem")).as_deref() != Some("dax") {
        return Err(DeviceError::NotDax(path.into()));
    }
    let name = link_name(&entry).ok_or_else(|| DeviceError::NotDax(path.into()))?;
    describe(sys, node, name)
}

/// The dax device that `sys` has by the name that `path` ends with.
pub fn by_name(sys: &Path, path: &Path) -> Result<DaxDevice, DeviceError> {
    let missing = || DeviceError::Missing(path.into());
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .filter(|name| is_name(name, "dax"))
        .ok_or_else(missing)?;
    if !sys.join("bus/dax/devices").join(name).exists() {
        return Err(missing());
    }
    describe(sys, Path::new("/dev").join(name), name.into())
}

fn describe(sys: &Path, path: PathBuf, name: String) -> Result<DaxDevice, DeviceError> {
    let entry = sys.join("bus/dax/devices").join(&name);
    let size = read_number(&entry.join("size"), 10)
        .map_err(|error| DeviceError::Io(path.clone(), error))?;
    let mode = match link_name(&entry.join("driver")).as_deref() {
        None => Mode::Unbound,
        Some("device_dax") => Mode::Devdax,
        Some("fsdev_dax") => Mode::Fsdev,
        Some("kmem") => Mode::SystemRam,
        Some(other) => return Err(DeviceError::UnknownDriver(path, other.into())),
    };
    tracing::debug!("{}: {size} bytes, {}", path.display(), mode.describe());
    Ok(DaxDevice {
        path,
        name,
        size,
        mode,
        sys: sys.into(),
    })
}

/// All dax devices of this machine that can be described, by name.
pub fn all() -> io::Result<Vec<DaxDevice>> {
    let sys = Path::new("/sys");
    let described = names(sys)?
        .into_iter()
        .filter_map(|name| by_name(sys, Path::new(&name)).ok());
    Ok(described.collect())
}

/// Names of all dax devices that `sys` knows.
pub fn names(sys: &Path) -> io::Result<Vec<String>> {
    let mut names = fs::read_dir(sys.join("bus/dax/devices"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<_>>>()?;
    names.retain(|name| is_name(name, "dax"));
    names.sort_unstable();
    Ok(names)
}

/// Whether `name` is `prefix` and a number, `1` or `1.0`, as those are that the kernel gives. Others have no place in a
/// command that somebody is told to run.
pub fn is_name(name: &str, prefix: &str) -> bool {
    let number = name.strip_prefix(prefix).unwrap_or_default();
    number.starts_with(|first: char| first.is_ascii_digit())
        && number.chars().all(|c| c.is_ascii_digit() || c == '.')
}

impl DaxDevice {
    /// A device in fsdev mode that is not there.
    #[cfg(test)]
    pub fn for_tests(number: u32, size: u64) -> Self {
        Self {
            path: format!("/dev/dax{number}.0").into(),
            name: format!("dax{number}.0"),
            size,
            mode: Mode::Fsdev,
            sys: "/nowhere".into(),
        }
    }

    /// Fails unless the device is in fsdev mode.
    pub fn require_fsdev(&self) -> Result<(), DeviceError> {
        match self.mode {
            Mode::Fsdev => Ok(()),
            Mode::Devdax => Err(DeviceError::Devdax(self.path.clone())),
            Mode::SystemRam => Err(DeviceError::SystemRam(self.path.clone(), self.name.clone())),
            Mode::Unbound => Err(DeviceError::Unbound(self.path.clone())),
        }
    }

    /// Whether the system uses any of the device's memory. Only in system-ram mode can it.
    pub fn is_online(&self) -> io::Result<bool> {
        let start = read_number(
            &self
                .sys
                .join("bus/dax/devices")
                .join(&self.name)
                .join("resource"),
            16,
        )?;
        let memory = self.sys.join("devices/system/memory");
        let block = read_number(&memory.join("block_size_bytes"), 16)?.max(1);
        let end = start.saturating_add(self.size);
        let blocks = start / block..end.div_ceil(block);
        // Those that there are: a device of a copy of /sys can be of any size.
        Ok(fs::read_dir(&memory)?.any(|entry| {
            let online = || {
                let entry = entry.ok()?;
                let index = entry
                    .file_name()
                    .to_str()?
                    .strip_prefix("memory")?
                    .parse()
                    .ok()?;
                let state = fs::read_to_string(entry.path().join("state")).ok()?;
                Some(blocks.contains(&index) && state.trim() != "offline")
            };
            online().unwrap_or(false)
        }))
    }
}

/// Binds the device to `fsdev_dax`. In system-ram mode only when none of its memory is online.
pub fn set_fsdev_mode(device: &mut DaxDevice) -> Result<(), DeviceError> {
    let io = |error| DeviceError::Io(device.path.clone(), error);
    let drivers = device.sys.join("bus/dax/drivers");
    if device.mode == Mode::Fsdev {
        return Ok(());
    }
    if !drivers.join("fsdev_dax").exists() {
        return Err(DeviceError::NoFsdevDriver(device.path.clone()));
    }
    if device.mode == Mode::SystemRam && device.is_online().map_err(io)? {
        return device.require_fsdev();
    }
    let driver = device
        .sys
        .join("bus/dax/devices")
        .join(&device.name)
        .join("driver");
    if driver.exists() {
        fs::write(driver.join("unbind"), &device.name).map_err(io)?;
    }
    // `new_id` binds at once, unless the driver knows the name from an earlier time and the device is bound to it.
    fs::write(drivers.join("fsdev_dax/new_id"), &device.name).map_err(io)?;
    let now = describe(&device.sys, device.path.clone(), device.name.clone())?;
    if now.mode != Mode::Fsdev {
        return Err(DeviceError::NotSwitched(now.path, now.mode));
    }
    *device = now;
    Ok(())
}

/// Name of what a symbolic link of sysfs points to.
pub fn link_name(link: &Path) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

/// A number in a file of sysfs, with or without `0x` where the radix is 16.
pub fn read_number(file: &Path, radix: u32) -> io::Result<u64> {
    let text = fs::read_to_string(file)?;
    let digits = text.trim().trim_start_matches("0x");
    u64::from_str_radix(digits, radix)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A sysfs that takes /dev/null (1:3) for dax device `dax0.0`, bound to `driver`.
    fn sysfs(driver: Option<&str>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let sys = dir.path();
        let device = sys.join("devices/dax0.0");
        for path in [
            "bus/dax/devices",
            "dev/char",
            "bus/dax/drivers/fsdev_dax",
            "devices/system/memory/memory34",
        ] {
            fs::create_dir_all(sys.join(path)).unwrap();
        }
        fs::create_dir_all(&device).unwrap();
        symlink(sys.join("bus/dax"), device.join("subsystem")).unwrap();
        symlink(&device, sys.join("dev/char/1:3")).unwrap();
        symlink(&device, sys.join("bus/dax/devices/dax0.0")).unwrap();
        fs::write(device.join("size"), "536870912\n").unwrap();
        fs::write(device.join("resource"), "0x110000000\n").unwrap();
        fs::write(
            sys.join("devices/system/memory/block_size_bytes"),
            "8000000\n",
        )
        .unwrap();
        fs::write(sys.join("devices/system/memory/memory34/state"), "online\n").unwrap();
        if let Some(driver) = driver {
            fs::create_dir_all(sys.join("bus/dax/drivers").join(driver)).unwrap();
            symlink(
                sys.join("bus/dax/drivers").join(driver),
                device.join("driver"),
            )
            .unwrap();
        }
        dir
    }

    #[test]
    fn finds_a_device_by_its_node_and_by_its_name() {
        let sys = sysfs(Some("fsdev_dax"));
        let device = open_in(sys.path(), Path::new("/dev/null")).unwrap();
        assert_eq!(
            (device.name.as_str(), device.size, device.mode),
            ("dax0.0", 536870912, Mode::Fsdev)
        );
        device.require_fsdev().unwrap();
        let device = open_in(sys.path(), Path::new("/nowhere/dax0.0")).unwrap();
        assert_eq!(
            (device.path.as_path(), device.size),
            (Path::new("/dev/dax0.0"), 536870912)
        );
    }

    #[test]
    fn each_wrong_device_has_its_own_error() {
        let open = |driver, path: &str| open_in(sysfs(driver).path(), Path::new(path));
        let refused = |driver| {
            open(driver, "/dev/null")
                .unwrap()
                .require_fsdev()
                .unwrap_err()
        };
        assert!(matches!(
            open(None, "/nowhere/dax9.9").unwrap_err(),
            DeviceError::Missing(_)
        ));
        assert!(matches!(
            open(None, "/proc/self/exe").unwrap_err(),
            DeviceError::NotDax(_)
        ));
        assert!(matches!(
            open(None, "/dev/zero").unwrap_err(),
            DeviceError::NotDax(_)
        ));
        assert!(matches!(
            refused(Some("device_dax")),
            DeviceError::Devdax(_)
        ));
        assert!(matches!(refused(Some("kmem")), DeviceError::SystemRam(..)));
        assert!(matches!(refused(None), DeviceError::Unbound(_)));
        assert!(matches!(
            open(Some("other"), "/dev/null").unwrap_err(),
            DeviceError::UnknownDriver(..)
        ));
    }

    #[test]
    fn online_memory_is_not_switched() {
        let sys = sysfs(Some("kmem"));
        let mut device = open_in(sys.path(), Path::new("/dev/null")).unwrap();
        assert!(matches!(
            set_fsdev_mode(&mut device).unwrap_err(),
            DeviceError::SystemRam(..)
        ));
        assert!(!sys.path().join("bus/dax/drivers/kmem/unbind").exists());
        fs::write(
            sys.path().join("devices/system/memory/memory34/state"),
            "offline\n",
        )
        .unwrap();
        assert!(matches!(
            set_fsdev_mode(&mut device).unwrap_err(),
            DeviceError::NotSwitched(_, Mode::SystemRam)
        ));
        assert_eq!(
            fs::read_to_string(sys.path().join("bus/dax/drivers/kmem/unbind")).unwrap(),
            "dax0.0"
        );
    }

    /// Looking at one block after the other would take for ever.
    #[test]
    fn a_device_may_claim_any_size() {
        let sys = sysfs(Some("kmem"));
        let write = |file: &str, text: &str| fs::write(sys.path().join(file), text).unwrap();
        write("devices/dax0.0/size", "18446744073709551615\n");
        write("devices/dax0.0/resource", "0x0\n");
        write("devices/system/memory/block_size_bytes", "1\n");
        let device = open_in(sys.path(), Path::new("/dev/null")).unwrap();
        assert!(device.is_online().unwrap());
        write("devices/system/memory/memory34/state", "offline\n");
        assert!(!device.is_online().unwrap());
        write("devices/system/memory/memory34/state", "online\n");
        write("devices/dax0.0/resource", "0x23\n");
        assert!(!device.is_online().unwrap(), "block 34 is before it");
    }

    #[test]
    fn names_are_those_of_the_kernel() {
        for (name, is) in [
            ("dax0.0", true),
            ("dax12.34", true),
            ("dax", false),
            ("dax.0", false),
            ("dax0.0 ", false),
            ("dax0.0;reboot", false),
            ("dax0/0", false),
            ("mem0", false),
        ] {
            assert_eq!(is_name(name, "dax"), is, "{name}");
        }
    }

    #[test]
    fn switching_unbinds_then_binds() {
        let sys = sysfs(Some("device_dax"));
        let drivers = sys.path().join("bus/dax/drivers");
        let mut device = open_in(sys.path(), Path::new("/dev/null")).unwrap();
        assert!(matches!(
            set_fsdev_mode(&mut device).unwrap_err(),
            DeviceError::NotSwitched(_, Mode::Devdax)
        ));
        assert_eq!(
            fs::read_to_string(drivers.join("device_dax/unbind")).unwrap(),
            "dax0.0"
        );
        assert_eq!(
            fs::read_to_string(drivers.join("fsdev_dax/new_id")).unwrap(),
            "dax0.0"
        );
        fs::remove_dir(drivers.join("fsdev_dax")).unwrap_err();
        fs::remove_dir_all(drivers.join("fsdev_dax")).unwrap();
        assert!(matches!(
            set_fsdev_mode(&mut device).unwrap_err(),
            DeviceError::NoFsdevDriver(_)
        ));
    }
}
