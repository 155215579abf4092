// SPDX-License-Identifier: MIT OR Apache-2.0
//! The memory behind a dax device, past every file system: /dev/mem at the device's physical address.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use anyhow::{ensure, Context, Result};

use crate::dax::DaxDev;

pub struct Raw {
    mem: File,
    base: u64,
    size: u64,
}

impl Raw {
    pub fn open(device: &DaxDev) -> Result<Self> {
        let mem = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/mem")
            .context("/dev/mem")?;
        Ok(Self {
            mem,
            base: device.base()?,
            size: device.size()?,
        })
    }

    pub fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.mem
            .read_exact_at(&mut bytes, self.place(offset, len)?)
            .with_context(|| format!("/dev/mem at dax offset {offset:#x}"))?;
        Ok(bytes)
    }

    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.mem
            .write_all_at(bytes, self.place(offset, bytes.len())?)
            .with_context(|| format!("/dev/mem at dax offset {offset:#x}"))
    }

    /// Number of the page at `offset`.
    pub fn pfn(&self, offset: u64) -> u64 {
        (self.base + offset) / 4096
    }

    fn place(&self, offset: u64, len: usize) -> Result<u64> {
        let end = offset.checked_add(len as u64).context("offset overflow")?;
        ensure!(
            end <= self.size,
            "dax offset {offset:#x} + {len:#x} is past the device's {:#x} bytes",
            self.size
        );
        Ok(self.base + offset)
    }
}
