// SPDX-License-Identifier: GPL-2.0-only

//! A file's map as its inode keeps it: what every fault, read and write goes through.

use core::ops::Range;

use kernel::{
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    prelude::*,
    sync::Arc, //
};

use crate::{
    daxdev::{
        Access,
        DaxState,
        Daxdev, //
    },
    fmap::{
        Layout,
        Run, //
    },
    sys::{
        fast::Gate,
        inode::{
            FileHead,
            FileRef, //
        },
        iomap::Mapping, //
    },
};

/// The devices of a map, by slot. Nearly all maps have one.
pub(crate) struct Devices {
    first: Arc<Daxdev>,
    rest: Option<KBox<KVec<Arc<Daxdev>>>>,
}

impl Devices {
    /// In the order of their slots. `EINVAL` if there are none.
    pub(crate) fn new(mut devices: KVec<Arc<Daxdev>>) -> Result<Self> {
        let first = devices.remove(0).map_err(|_| EINVAL)?;
        let rest = match devices.len() {
            0 => None,
            _ => Some(KBox::new(devices, GFP_KERNEL)?),
        };
        Ok(Self { first, rest })
    }

    #[inline(always)]
    fn get(&self, slot: u16) -> Option<&Daxdev> {
        match usize::from(slot).checked_sub(1) {
            None => Some(&self.first),
            Some(i) => self.rest.as_ref()?.get(i).map(|dev| &**dev),
        }
    }

    /// With their slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u16, &Arc<Daxdev>)> {
        let rest = self.rest.iter().flat_map(|rest| rest.iter());
        (0..=u16::MAX).zip(Iterator::chain(core::iter::once(&self.first), rest))
    }
}

/// The head of a file's map; the cells of the layout are the words behind it. With what surrounds
/// it, it fills a cache line.
#[repr(C)]
pub(crate) struct FileMap {
    layout: Layout,
    gate: Gate,
    words: u32,
    devices: Devices,
}

const _: () = assert!(size_of::<FileMap>() <= 64);

impl FileHead for FileMap {
    #[inline]
    fn words_len(&self) -> usize {
        self.words as usize
    }

    #[inline]
    fn gate(&self) -> &Gate {
        &self.gate
    }
}

/// Whether the module was loaded so that faults may be fast.
fn fast_faults() -> bool {
    *crate::module_parameters::fast_faults.value() != 0
}

impl FileMap {
    /// `EFBIG` if the layout has more cells than a message can ask for.
    pub(crate) fn new(layout: Layout, devices: Devices) -> Result<Self> {
        Ok(Self {
            layout,
            gate: Gate::new(fast_faults()),
            words: layout.cells_len().try_into().map_err(|_| EFBIG)?,
            devices,
        })
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn devices(&self) -> &Devices {
        &self.devices
    }

    /// See [`Gate::suspect`].
    pub(crate) fn suspect(&self) {
        self.gate.suspect();
    }

    /// See [`Gate::suspect_unseen`].
    pub(crate) fn suspect_unseen(&self) {
        self.gate.suspect_unseen();
    }

    #[inline(always)]
    pub(crate) fn is_suspect(&self) -> bool {
        self.gate.is_suspect()
    }

    /// The ranges of the file, in bytes, in the range `dev` of the device `state`.
    pub(crate) fn ranges_on<'a>(
        &'a self,
        words: &'a [u64],
        state: &'a DaxState,
        dev: Range<u64>,
    ) -> impl Iterator<Item = Range<u64>> + 'a {
        self.devices
            .iter()
            .filter(|(_, daxdev)| core::ptr::eq(daxdev.state(), state))
            .flat_map(move |(slot, _)| self.layout.file_ranges(words, slot, dev.clone()))
    }

    /// The memory behind byte `pos`, for a fault. `ENOENT` past the end of the file, which ends
    /// a FIEMAP listing; fs/dax.c doesn't ask there.
    pub(crate) fn map(file: FileRef<'_, Self>, pos: u64) -> Result<Mapping<'_, DaxState>> {
        Self::locate(file, pos, Access::Fault)
    }

    #[inline(always)]
    fn locate(file: FileRef<'_, Self>, pos: u64, access: Access) -> Result<Mapping<'_, DaxState>> {
        match Self::map_quickly(file, pos) {
            Some(mapping) => Ok(mapping),
            None => file.head.locate_slowly(file.words, pos, access),
        }
    }

    /// What [`map`](Self::map) says in the usual case, which leaves out that the file is suspect;
    /// otherwise `None`. All of it is inline, and calls nothing.
    #[inline(always)]
    pub(crate) fn map_quickly(file: FileRef<'_, Self>, pos: u64) -> Option<Mapping<'_, DaxState>> {
        let FileRef { head, words } = file;
        if head.is_suspect() {
            return None;
        }
        let run = head.layout.resolve_one(words, pos)?;
        let (_, mapping) = head.mapping(run)?;
        Some(mapping)
    }

    /// The memory behind byte `pos`, in whatever state it is.
    #[inline(always)]
    pub(crate) fn place(file: FileRef<'_, Self>, pos: u64) -> Option<Mapping<'_, DaxState>> {
        let FileRef { head, words } = file;
        let run = match head.layout.resolve_one(words, pos) {
            Some(run) => run,
            None => head.layout.resolve(words, pos)?,
        };
        let (_, mapping) = head.mapping(run)?;
        Some(mapping)
    }

    #[cold]
    #[inline(never)]
    fn locate_slowly(
        &self,
        words: &[u64],
        pos: u64,
        access: Access,
    ) -> Result<Mapping<'_, DaxState>> {
        let run = self.layout.resolve(words, pos).ok_or(ENOENT)?;
        let (dev, mapping) = self.mapping(run).ok_or(EIO)?;
        match self.is_suspect() {
            false => Ok(mapping),
            true => Ok(Mapping {
                len: dev.state().check(mapping.offset, mapping.len, access)?,
                ..mapping
            }),
        }
    }

    #[inline(always)]
    fn mapping(&self, run: Run) -> Option<(&Daxdev, Mapping<'_, DaxState>)> {
        let Run { slot, offset, len } = run;
        let dev = self.devices.get(slot)?;
        let mapping = Mapping {
            dev: dev.held(),
            offset,
            len,
        };
        Some((dev, mapping))
    }

    /// Reads from byte `pos` on; 0 at the end of the file. Short up to what can't be read; an
    /// error if nothing can: `EHWPOISON`, `ENXIO`, or `EFAULT` if the destination is at fault.
    pub(crate) fn read(
        file: FileRef<'_, Self>,
        pos: u64,
        iter: &mut IovIterDest<'_>,
    ) -> Result<usize> {
        let left = file.head.layout.file_size().saturating_sub(pos);
        let len = left.min(iter.len() as u64);
        Self::transfer(file, pos, len, |mapping, len| {
            mapping.dev.read(mapping.offset, len, iter)
        })
    }

    /// Writes at most `len` bytes from byte `pos` on. `ENOSPC` at the end of the file, as at that
    /// of a block device; otherwise as [`read`](Self::read).
    pub(crate) fn write(
        file: FileRef<'_, Self>,
        pos: u64,
        len: usize,
        iter: &mut IovIterSource<'_>,
    ) -> Result<usize> {
        let left = file.head.layout.file_size().saturating_sub(pos);
        if left == 0 {
            return Err(ENOSPC);
        }
        Self::transfer(file, pos, left.min(len as u64), |mapping, len| {
            mapping.dev.write(mapping.offset, len, iter)
        })
    }

    #[inline]
    fn transfer(
        file: FileRef<'_, Self>,
        pos: u64,
        len: u64,
        mut copy: impl FnMut(&Mapping<'_, DaxState>, u64) -> Result<usize>,
    ) -> Result<usize> {
        let mut done = 0u64;
        while done < len {
            // Neither wraps: pos + len is at most the size of the file.
            let at = pos.wrapping_add(done);
            let rest = len.wrapping_sub(done);
            let step = Self::locate(file, at, Access::ReadWrite)
                .and_then(|mapping| copy(&mapping, mapping.len.min(rest)));
            match step {
                Ok(0) if done == 0 => return Err(EFAULT),
                Err(error) if done == 0 => return Err(error),
                Ok(0) | Err(_) => break,
                Ok(n) => done = done.wrapping_add(n as u64),
            }
        }
        Ok(done as usize)
    }
}
