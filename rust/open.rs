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
    sys::{
        dax::Holder,
        errno::EADDRINUSE,
        inode::{
            Opcode,
            OpenInode, //
        },
        rmap::Rmap, //
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
    let mut cells = KVVec::from_elem(0u64, fmap.cells_len(), GFP_KERNEL)?;
    let layout = fmap
        .build(|index| used.slot_of(index), &mut cells)
        .map_err(refuse)?;
    // No two ranges overlap by now, so this takes no more steps than the devices have units.
    probe(mount, inode, &fmap, &used)?;
    let file = FileMap::new(layout, Devices::new(used.daxdevs()?)?)?;
    let spans = spans(&fmap, &used)?;
    inode
        .install(
            file,
            &cells,
            fmap.file_size(),
            spans.iter().filter_map(|span| span.entry(&used)),
            |file| {
                // A failure after this finds the file in the reverse map.
                if used.0.iter().any(|used| !used.daxdev.state().is_intact()) {
                    file.suspect_unseen();
                }
            },
        )
        .inspect_err(|error| {
            if *error == EADDRINUSE() {
                mount.warn(inode, fmt!("its memory is that of another file"));
            }
        })
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
}

/// Memory that a map has on one device without a break.
struct Span {
    slot: u16,
    range: Range<u64>,
    /// The first one on this device.
    head: bool,
}

impl Span {
    fn entry(&self, used: &UsedDevices) -> Option<(Arc<Rmap<Famfs>>, Range<u64>, bool)> {
        let used = used.0.get(usize::from(self.slot))?;
        let rmap = used.daxdev.state().rmap().clone();
        Some((rmap, self.range.clone(), self.head))
    }
}

/// The memory of a map. Ranges that follow each other, in the file and on the device, are one.
fn spans(fmap: &Fmap<'_>, used: &UsedDevices) -> Result<KVVec<Span>> {
    let mut spans: KVVec<Span> = KVVec::new();
    let mut seen = KVVec::from_elem(false, used.0.len(), GFP_KERNEL)?;
    for range in fmap.ranges() {
        let slot = used.slot_of(range.index).ok_or(ENODEV)?;
        let range = range.offset..range.offset.saturating_add(range.len);
        if let Some(last) = spans.last_mut() {
            if last.slot == slot && last.range.end == range.start {
                last.range.end = range.end;
                continue;
            }
        }
        let seen = seen.get_mut(usize::from(slot)).ok_or(EIO)?;
        let head = !core::mem::replace(seen, true);
        spans.push(Span { slot, range, head }, GFP_KERNEL)?;
    }
    Ok(spans)
}

/// The daxdevs of a map in the order of their indices; the place of one is its slot.
struct UsedDevices(KVec<Used>);

impl UsedDevices {
    fn find(mount: &Mount, inode: &OpenInode<'_, Famfs>, fmap: &Fmap<'_>) -> Result<Self> {
        let mut used = Self(KVec::new());
        for range in fmap.ranges() {
            let index = u16::try_from(range.index.0).map_err(|_| EINVAL)?;
            let place = used.0.binary_search_by_key(&index, |used| used.index);
            let Err(place) = place else { continue };
            let daxdev = mount.require(index, inode)?;
            if daxdev.state().is_removed() {
                mount.warn(inode, fmt!("daxdev {index}: its driver went away"));
                return Err(ENXIO);
            }
            used.0.reserve(1, GFP_KERNEL)?;
            used.0
                .insert_within_capacity(place, Used { index, daxdev })
                .map_err(|_| ENOMEM)?;
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
        // A device of several ranges gives nothing across the border of two.
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
