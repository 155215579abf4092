// SPDX-License-Identifier: GPL-2.0-only

//! Opening: where everything is checked. After it nothing about a map can fail but the memory.

use core::ops::Range;

use kernel::{
    alloc::KVVec,
    prelude::*,
    sync::Arc, //
};

use crate::{
    daxdev::Daxdev,
    file::{
        Devices,
        FileMap, //
    },
    fmap::{
        self,
        DevIndex,
        Fmap,
        FmapError, //
    },
    mount::Mount,
    provider::Famfs,
    sys::fuse::{
        Opcode,
        OpenInode, //
    },
};

/// Fetches, checks and installs the map of a file.
///
/// The errno of a map that is refused is that of its [`FmapError`]; a device that can't be had
/// fails the open too, with the reason as errno: docs/abi.md.
pub(crate) fn open(mount: &Mount, inode: &OpenInode<'_, Famfs>) -> Result {
    let reply = fetch(mount, inode)?;
    let refuse = |error: FmapError| {
        mount.warn(inode, fmt!("{error}"));
        Error::from(error)
    };
    let fmap = fmap::parse(&reply).map_err(refuse)?;
    let used = UsedDevices::find(mount, inode, &fmap)?;
    probe(mount, inode, &fmap, &used)?;
    let mut cells = KVVec::from_elem(0u64, fmap.cells_len(), GFP_KERNEL)?;
    let layout = fmap
        .build(|index| used.slot_of(index), &mut cells)
        .map_err(refuse)?;
    let file = FileMap::new(layout, Devices::new(used.daxdevs()?)?)?;
    let spans = used
        .0
        .iter()
        .map(|used| (used.daxdev.state().rmap().clone(), used.span.clone()));
    inode.install(file, &cells, fmap.file_size(), spans)?;
    // A failure between the two looked for the file's map in vain.
    if let Some(file) = inode.file() {
        if used.0.iter().any(|used| !used.daxdev.state().is_intact()) {
            file.head.suspect();
        }
    }
    Ok(())
}

/// Bytes of the buffer for the first GET_FMAP.
const FIRST_BUFFER: usize = 4096;

/// Asks the server for the map. `Truncated` and `MessageTooLarge` where it says that it has more
/// than it sends the second time, or more than anybody should.
fn fetch(mount: &Mount, inode: &OpenInode<'_, Famfs>) -> Result<KVVec<u8>> {
    // Pull: a request without argument. Push: with the size of the buffer.
    let mut size = mount.is_pushed().then_some(FIRST_BUFFER);
    for last in [false, true] {
        let arg = size.map(|size| (size as u64).to_ne_bytes());
        let arg = arg.as_ref().map(|arg| arg.as_slice());
        let bytes = size.unwrap_or(FIRST_BUFFER);
        let mut reply = KVVec::from_elem(0u8, bytes, GFP_KERNEL)?;
        let n = inode.request(Opcode::GetFmap, inode.nodeid(), arg, &mut reply)?;
        reply.truncate(n);
        match fmap::wanted_size(&reply, bytes) {
            Ok(Some(wanted)) if !last => size = Some(wanted as usize),
            Ok(_) => return Ok(reply),
            Err(error) => {
                mount.warn(inode, fmt!("{error}"));
                return Err(error.into());
            }
        }
    }
    Err(EINVAL)
}

/// A daxdev of a map.
struct Used {
    index: u16,
    daxdev: Arc<Daxdev>,
    /// From the first to the last byte that the map has there.
    span: Range<u64>,
}

/// The daxdevs of a map in the order of their indices; the place of one is its slot.
struct UsedDevices(KVec<Used>);

impl UsedDevices {
    fn find(mount: &Mount, inode: &OpenInode<'_, Famfs>, fmap: &Fmap<'_>) -> Result<Self> {
        let mut used = Self(KVec::new());
        for range in fmap.ranges() {
            let index = u16::try_from(range.index.0).map_err(|_| EINVAL)?;
            let range = range.offset..range.offset.saturating_add(range.len);
            match used.0.binary_search_by_key(&index, |used| used.index) {
                Ok(i) => {
                    let span = &mut used.0.get_mut(i).ok_or(EIO)?.span;
                    *span = span.start.min(range.start)..span.end.max(range.end);
                }
                Err(i) => {
                    let daxdev = mount.require(index, inode)?;
                    used.0.reserve(1, GFP_KERNEL)?;
                    let new = Used {
                        index,
                        daxdev,
                        span: range,
                    };
                    used.0.insert_within_capacity(i, new).map_err(|_| ENOMEM)?;
                }
            }
        }
        Ok(used)
    }

    fn slot_of(&self, index: DevIndex) -> Option<u16> {
        let index = u16::try_from(index.0).ok()?;
        let i = self
            .0
            .binary_search_by_key(&index, |used| used.index)
            .ok()?;
        u16::try_from(i).ok()
    }

    fn get(&self, index: DevIndex) -> Option<&Daxdev> {
        let slot = self.slot_of(index)?;
        self.0.get(usize::from(slot)).map(|used| &*used.daxdev)
    }

    fn daxdevs(&self) -> Result<KVec<Arc<Daxdev>>> {
        let mut daxdevs = KVec::with_capacity(self.0.len(), GFP_KERNEL)?;
        for used in &self.0 {
            daxdevs.push(used.daxdev.clone(), GFP_KERNEL)?;
        }
        Ok(daxdevs)
    }
}

/// Checks that every range of the map lies in its device.
fn probe(
    mount: &Mount,
    inode: &OpenInode<'_, Famfs>,
    fmap: &Fmap<'_>,
    used: &UsedDevices,
) -> Result {
    for range in fmap.ranges() {
        let daxdev = used.get(range.index).ok_or(ENODEV)?;
        let outside = |error: Error| {
            let (index, offset, len) = (range.index.0, range.offset, range.len);
            let errno = error.to_errno();
            mount.warn(
                inode,
                fmt!("se_offset ({offset:#x}) and se_len ({len:#x}) can't be reached in daxdev {index}: {errno}"),
            );
            if errno == ENXIO.to_errno() {
                ENXIO
            } else {
                EINVAL
            }
        };
        // A device of several ranges may give less than asked for: only that much is contiguous.
        let mut done = 0;
        while done < range.len {
            let offset = range.offset.saturating_add(done);
            let step = daxdev
                .held()
                .probe(offset, range.len.wrapping_sub(done))
                .or_else(|_| daxdev.held().probe(offset, fmap::ALIGN))
                .map_err(outside)?;
            done = done.saturating_add(step);
        }
    }
    Ok(())
}
