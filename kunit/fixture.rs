// SPDX-License-Identifier: GPL-2.0-only

//! Maps that are built, with and without devices behind them.

use core::ops::Range;

use kernel::{
    prelude::*,
    str::CString,
    sync::Arc, //
};

use crate::{
    daxdev::{
        DaxState,
        Daxdev, //
    },
    fake::Dax,
    file::{
        Devices,
        FileMap, //
    },
    fmap::{
        self,
        DevIndex,
        FmapError,
        Layout,
        Policy,
        Run, //
    },
    message::MIB,
    sys::{
        inode::FileRef,
        iomap::Mapping, //
    },
};

/// Bytes of a device.
pub(crate) const DAX_BYTES: u64 = 16 * MIB;

/// A map without devices. The slot of a device is its index; there is none of index 99.
pub(crate) struct Built {
    pub(crate) layout: Layout,
    pub(crate) cells: KVVec<u64>,
}

impl Built {
    pub(crate) fn new(message: &[u8]) -> Result<Self> {
        let fmap = fmap::parse(message)?;
        let mut cells = KVVec::from_elem(0u64, fmap.cells_len(), GFP_KERNEL)?;
        let slot_of = |DevIndex(index)| u16::try_from(index).ok().filter(|index| *index != 99);
        let layout = fmap.build(slot_of, &mut cells)?;
        Ok(Self { layout, cells })
    }

    pub(crate) fn resolve(&self, pos: u64) -> Option<Run> {
        self.layout.resolve(&self.cells, pos)
    }

    pub(crate) fn file_ranges(
        &self,
        slot: u16,
        dev: Range<u64>,
    ) -> impl Iterator<Item = Range<u64>> + '_ {
        self.layout.file_ranges(&self.cells, slot, dev)
    }
}

/// Why a message is refused, if it is.
pub(crate) fn refusal(message: &[u8]) -> Result<Option<FmapError>> {
    let fmap = match fmap::parse(message) {
        Ok(fmap) => fmap,
        Err(error) => return Ok(Some(error)),
    };
    let mut cells = KVVec::from_elem(0u64, fmap.cells_len(), GFP_KERNEL)?;
    let slot_of = |DevIndex(index)| u16::try_from(index).ok().filter(|index| *index != 99);
    Ok(fmap.build(slot_of, &mut cells).err())
}

/// A map with devices.
pub(crate) struct Mapped {
    // Dropped in this order: a device can't go before its holder.
    file: FileMap,
    cells: KVVec<u64>,
    pub(crate) daxdevs: KVec<Arc<Daxdev>>,
    pub(crate) dax: KVec<Dax>,
}

/// Where a mapping leads: index of the device, offset and length.
pub(crate) type Place = (u16, u64, u64);

impl Mapped {
    /// With the devices of the indices below `n`.
    pub(crate) fn new(message: &[u8], n: u16, policy: Policy) -> Result<Self> {
        let Built { layout, cells } = Built::new(message)?;
        let (mut dax, mut daxdevs, mut held) = (KVec::new(), KVec::new(), KVec::new());
        for index in 0..n {
            let new = Dax::new(DAX_BYTES)?;
            let daxdev = hold(&new, index, policy)?;
            dax.push(new, GFP_KERNEL)?;
            held.push(daxdev.clone(), GFP_KERNEL)?;
            daxdevs.push(daxdev, GFP_KERNEL)?;
        }
        Ok(Self {
            file: FileMap::new(layout, Devices::new(held)?)?,
            cells,
            daxdevs,
            dax,
        })
    }

    pub(crate) fn file(&self) -> &FileMap {
        &self.file
    }

    fn as_ref(&self) -> FileRef<'_, FileMap> {
        FileRef {
            head: &self.file,
            words: &self.cells,
        }
    }

    /// What a fault at `pos` finds.
    pub(crate) fn map(&self, pos: u64) -> Result<Place> {
        let Mapping { dev, offset, len } = FileMap::map(self.as_ref(), pos)?;
        let index = self
            .daxdevs
            .iter()
            .position(|daxdev| core::ptr::eq(daxdev.held(), dev));
        Ok((index.ok_or(ENODEV)? as u16, offset, len))
    }

    /// The file's ranges that lie in a range of a device.
    pub(crate) fn ranges_on(&self, state: &DaxState, dev: Range<u64>) -> Result<KVec<Range<u64>>> {
        let mut ranges = KVec::new();
        for range in self.file.ranges_on(&self.cells, state, dev) {
            ranges.push(range, GFP_KERNEL)?;
        }
        Ok(ranges)
    }
}

/// Takes a device.
pub(crate) fn hold(dax: &Dax, index: u16, policy: Policy) -> Result<Arc<Daxdev>> {
    Daxdev::new(dax.device()?, index, CString::try_from(c"fake")?, policy)
}
