// SPDX-License-Identifier: MIT OR Apache-2.0
//! Dax devices: made from pmem or CXL memory with Debian's tools, and moved between the drivers of the dax bus.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};

use crate::cmdline::Memory;

const BUS: &str = "/sys/bus/dax";

/// A driver of the dax bus, and so what the device is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Devdax,
    Fsdev,
    Kmem,
}

impl Driver {
    const ALL: [Self; 3] = [Self::Devdax, Self::Fsdev, Self::Kmem];

    fn name(self) -> &'static str {
        match self {
            Self::Devdax => "device_dax",
            Self::Fsdev => "fsdev_dax",
            Self::Kmem => "kmem",
        }
    }
}

/// One dax device, by its name on the bus ("dax0.0").
#[derive(Clone, Debug)]
pub struct DaxDev {
    pub name: String,
}

impl DaxDev {
    pub fn path(&self) -> String {
        format!("/dev/{}", self.name)
    }

    fn attribute(&self, name: &str) -> Result<String> {
        let path = format!("{BUS}/devices/{}/{name}", self.name);
        Ok(fs::read_to_string(&path)
            .with_context(|| path)?
            .trim()
            .to_owned())
    }

    /// Bytes.
    pub fn size(&self) -> Result<u64> {
        self.attribute("size")?
            .parse()
            .context("size of the dax device")
    }

    /// Physical address of its first byte.
    pub fn base(&self) -> Result<u64> {
        let text = self.attribute("resource")?;
        u64::from_str_radix(text.trim_start_matches("0x"), 16)
            .with_context(|| format!("resource {text:?}"))
    }

    pub fn driver(&self) -> Option<Driver> {
        let link = fs::read_link(format!("{BUS}/devices/{}/driver", self.name)).ok()?;
        let name = link.file_name()?.to_str()?.to_owned();
        Driver::ALL.into_iter().find(|driver| driver.name() == name)
    }

    /// The device that it is part of, and so on up to the root, by their names.
    pub fn parents(&self) -> Result<Vec<String>> {
        let path = fs::canonicalize(format!("{BUS}/devices/{}", self.name))
            .with_context(|| self.name.clone())?;
        let names = path.ancestors().skip(1).filter_map(|path| path.file_name());
        Ok(names
            .map(|name| name.to_string_lossy().into_owned())
            .collect())
    }

    /// Unbinds the device from its driver, if it has one.
    pub fn unbind(&self) -> Result<()> {
        let Some(old) = self.driver() else {
            return Ok(());
        };
        let folder = PathBuf::from(BUS).join("drivers").join(old.name());
        fs::write(folder.join("unbind"), &self.name)
            .with_context(|| format!("unbind {} from {old:?}", self.name))?;
        fs::write(folder.join("remove_id"), &self.name).ok();
        Ok(())
    }

    /// Unbinds the device from its driver and binds it to `driver`.
    pub fn bind(&self, driver: Driver) -> Result<()> {
        if self.driver() == Some(driver) {
            return Ok(());
        }
        self.unbind()?;
        let folder = PathBuf::from(BUS).join("drivers").join(driver.name());
        fs::write(folder.join("new_id"), &self.name)
            .with_context(|| format!("bind {} to {driver:?}", self.name))?;
        ensure!(
            self.driver() == Some(driver),
            "{} is bound to {:?}, wanted {driver:?}",
            self.name,
            self.driver()
        );
        Ok(())
    }
}

/// Makes the dax devices of the plan; they come out in devdax mode, in the order of their names.
pub fn set_up(memory: Memory) -> Result<Vec<DaxDev>> {
    let expected = match memory {
        Memory::None => return Ok(Vec::new()),
        Memory::Pmem(count) => {
            for region in 0..count {
                let namespace = format!("namespace{region}.0");
                run(
                    "ndctl",
                    &[
                        "create-namespace",
                        "-f",
                        "-e",
                        &namespace,
                        "-m",
                        "devdax",
                        "--align=2M",
                        "-M",
                        "mem",
                    ],
                )?;
            }
            count
        }
        Memory::Found(count) => count,
        Memory::Cxl => {
            create_cxl_region()?;
            1
        }
    };
    let devices = wait_for(expected)?;
    for device in &devices {
        device.bind(Driver::Devdax)?;
    }
    Ok(devices)
}

/// One region over one CXL memory device.
pub fn create_cxl_region() -> Result<()> {
    let args = "create-region -m -t ram -d decoder0.0 -w 1 mem0";
    run("cxl", &args.split(' ').collect::<Vec<_>>())
}

/// Turns the pmem region of that number into a disk that file systems can map, and gives the disk's path.
pub fn make_pmem(region: usize) -> Result<String> {
    let namespace = format!("namespace{region}.0");
    let args = [
        "create-namespace",
        "-f",
        "-e",
        &namespace,
        "-m",
        "fsdax",
        "-M",
        "mem",
    ];
    run("ndctl", &args)?;
    Ok(format!("/dev/pmem{region}"))
}

/// The CXL region's name, size and target, for the demo.
pub fn describe_cxl_region() -> Result<String> {
    let region = "/sys/bus/cxl/devices/region0";
    let read = |name: &str| {
        fs::read_to_string(format!("{region}/{name}")).map(|text| text.trim().to_owned())
    };
    Ok(format!(
        "region0, {} bytes at {}, over {}",
        read("size")?,
        read("resource")?,
        read("target0")?
    ))
}

pub fn list() -> Result<Vec<DaxDev>> {
    let mut names: Vec<String> = fs::read_dir(format!("{BUS}/devices"))
        .context("the dax bus")?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names.into_iter().map(|name| DaxDev { name }).collect())
}

/// Waits until there are so many dax devices, each with a driver.
pub fn wait_for(expected: usize) -> Result<Vec<DaxDev>> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let devices = list()?;
        if devices.len() == expected && devices.iter().all(|device| device.driver().is_some()) {
            return Ok(devices);
        }
        if Instant::now() > end {
            bail!("expected {expected} dax devices with a driver, found {devices:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn run(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| program.to_owned())?;
    ensure!(
        output.status.success(),
        "{program} {}: {}: {}",
        args.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
