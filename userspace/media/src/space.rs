// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which units of which daxdev are in use. Never stored: rebuilt from the log.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::auset::AuSet;
use crate::error::Problem;
use crate::map::{Extent, Map};
use crate::{ALLOC_UNIT, SUPERBLOCK_LEN};

/// Units of all daxdevs of a file system.
#[derive(Clone, Debug)]
pub struct Space {
    pub(crate) devices: BTreeMap<u32, DeviceSpace>,
}

/// Units of one daxdev.
#[derive(Clone, Debug)]
pub(crate) struct DeviceSpace {
    /// Bytes of the device.
    size: u64,
    /// Bytes at its start that hold superblock and log.
    reserved: u64,
    pub(crate) used: AuSet,
}

impl DeviceSpace {
    fn new(size: u64, reserved: u64) -> Self {
        let mut used = AuSet::default();
        let device = Self {
            size,
            reserved,
            used: AuSet::default(),
        };
        used.insert(0..reserved.div_ceil(ALLOC_UNIT).min(device.units()));
        Self { used, ..device }
    }

    /// Whole units of the device.
    pub(crate) fn units(&self) -> u64 {
        self.size / ALLOC_UNIT
    }

    fn check(&self, extent: usize, e: &Extent) -> Result<(), Problem> {
        let (offset, len) = (e.offset, e.len);
        if offset % ALLOC_UNIT != 0 {
            return Err(Problem::Offset { extent, offset });
        }
        if len == 0 || len % ALLOC_UNIT != 0 {
            return Err(Problem::Len { extent, len });
        }
        if offset < self.reserved {
            return Err(Problem::Reserved { extent, offset });
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(Problem::PastDevice {
                extent,
                offset,
                len,
                size: self.size,
            }),
        }
    }

    /// Units that `e` touches, as far as the device has them.
    fn touched(&self, e: &Extent) -> Range<u64> {
        let end = e
            .offset
            .saturating_add(e.len)
            .div_ceil(ALLOC_UNIT)
            .min(self.units());
        e.offset / ALLOC_UNIT..end
    }
}

impl Space {
    /// Space of a file system on one daxdev of `size` bytes, whose data begins
    /// at `data_start`.
    pub fn new(size: u64, data_start: u64) -> Self {
        Self {
            devices: BTreeMap::from([(0, DeviceSpace::new(size, data_start))]),
        }
    }

    /// Add a daxdev that has a superblock and no log.
    pub fn add(&mut self, index: u32, size: u64) {
        self.devices
            .insert(index, DeviceSpace::new(size, SUPERBLOCK_LEN));
    }

    /// Indices of the daxdevs, in order.
    pub fn devindexes(&self) -> impl Iterator<Item = u32> + '_ {
        self.devices.keys().copied()
    }

    /// Whole units of all daxdevs.
    pub fn units(&self) -> u64 {
        self.devices
            .values()
            .fold(0, |sum, d| sum.saturating_add(d.units()))
    }

    /// Units in use, superblocks and log included.
    pub fn used(&self) -> u64 {
        self.devices
            .values()
            .fold(0, |sum, d| sum.saturating_add(d.used.len()))
    }

    /// Units and units in use of daxdev `index`.
    pub fn device(&self, index: u32) -> Option<(u64, u64)> {
        self.devices.get(&index).map(|d| (d.units(), d.used.len()))
    }

    /// Whether each extent of `map` lies on a known daxdev, is aligned, and is
    /// clear of superblock, log and end of device.
    pub(crate) fn check(&self, map: &Map) -> Result<(), Problem> {
        for (extent, e) in map.extents().iter().enumerate() {
            let device = self.find(e.devindex);
            let missing = Problem::Device {
                extent,
                devindex: e.devindex,
            };
            device.ok_or(missing)?.check(extent, e)?;
        }
        Ok(())
    }

    /// Put `extents` in use, all of them even where some overlap: what a log
    /// entry names must not be handed out again, whatever else is wrong with it.
    /// Returns how many units were in use before, and names the first extent
    /// that has such units.
    pub(crate) fn take(&mut self, extents: &[Extent]) -> (u64, Result<(), Problem>) {
        let mut collisions = 0u64;
        let mut result = Ok(());
        for (extent, e) in extents.iter().enumerate() {
            let index = u32::try_from(e.devindex).ok();
            let Some(device) = index.and_then(|i| self.devices.get_mut(&i)) else {
                continue;
            };
            let units = device.used.insert(device.touched(e));
            collisions = collisions.saturating_add(units);
            if units > 0 && result.is_ok() {
                result = Err(Problem::Overlap {
                    extent,
                    offset: e.offset,
                    units,
                });
            }
        }
        (collisions, result)
    }

    fn find(&self, devindex: u64) -> Option<&DeviceSpace> {
        self.devices.get(&u32::try_from(devindex).ok()?)
    }
}
