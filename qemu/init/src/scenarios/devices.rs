// SPDX-License-Identifier: MIT OR Apache-2.0
use anyhow::{ensure, Result};

use super::Test;
use crate::channel::Channel;
use crate::dax::Driver;
use crate::raw::Raw;
use crate::runner::Guest;

pub const TESTS: &[(&str, Test)] = &[("modes", modes)];

/// Every device goes to each mode and back, and its memory can be reached raw.
fn modes(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    for device in &guest.devices {
        for driver in [Driver::Fsdev, Driver::Kmem, Driver::Devdax, Driver::Fsdev] {
            device.bind(driver)?;
        }
        let raw = Raw::open(device)?;
        let end = device.size()? - 8;
        raw.write(end, b"famfs-rs")?;
        ensure!(raw.read(end, 8)? == b"famfs-rs", "the raw memory does not keep what is written");
    }
    Ok(())
}
