// SPDX-License-Identifier: MIT OR Apache-2.0
//! Everything in user space that needs `unsafe`, behind safe functions: ioctls on `/dev/fuse`, shared mappings, and
//! the cache-line operations of docs/abi.md section 4.2.
#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _mm_clflush, _mm_mfence, _mm_sfence};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::OnceLock;

use memmap2::{MmapOptions, MmapRaw};
use rustix::ioctl::{ioctl, opcode, Opcode, Setter};

/// `FUSE_DEV_IOC_MAGIC` of the uapi header.
const DEV_IOC_MAGIC: u8 = 229;
/// `FUSE_DEV_IOC_CLONE`: declared as a read although the kernel takes the descriptor from the argument.
const DEV_IOC_CLONE: Opcode = opcode::read::<u32>(DEV_IOC_MAGIC, 0);
/// `FUSE_DEV_IOC_DAXDEV_OPEN`, docs/abi.md section 1.1.
const DEV_IOC_DAXDEV_OPEN: Opcode = opcode::write::<BackingMap>(DEV_IOC_MAGIC, 4);
/// In its flags: no device is added; the memory errors of the one that is there are forgotten.
const DAXDEV_FORGET: u32 = 4;
/// Bytes that one cache instruction covers.
const LINE: usize = 64;

/// Connects `channel`, a fresh `/dev/fuse`, to the connection of `source`.
pub fn clone_connection(channel: BorrowedFd<'_>, source: BorrowedFd<'_>) -> io::Result<()> {
    let source = u32::try_from(source.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: The kernel reads one u32 from the argument and keeps no pointer to it.
    unsafe { ioctl(channel, Setter::<DEV_IOC_CLONE, u32>::new(source)) }?;
    Ok(())
}

/// `struct fuse_backing_map`, as FUSE_DEV_IOC_DAXDEV_OPEN understands it.
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    daxdev_index: u64,
}

/// Has the mount behind `channel` forget the memory errors of its daxdev `index`, which is `device`.
pub fn forget_errors(
    channel: BorrowedFd<'_>,
    device: BorrowedFd<'_>,
    index: u16,
) -> io::Result<()> {
    let map = BackingMap {
        fd: device.as_raw_fd(),
        flags: DAXDEV_FORGET,
        daxdev_index: index.into(),
    };
    // SAFETY: The kernel reads a `struct fuse_backing_map`, which `BackingMap` is laid out as, and keeps no pointer
    // to it.
    unsafe { ioctl(channel, Setter::<DEV_IOC_DAXDEV_OPEN, BackingMap>::new(map)) }?;
    Ok(())
}

/// Maps the first `len` bytes of `file`, shared.
pub fn map_file(file: &File, len: usize, writable: bool) -> io::Result<Region> {
    let mut options = MmapOptions::new();
    options.len(len);
    let map = if writable {
        options.map_raw(file)?
    } else {
        options.map_raw_read_only(file)?
    };
    Ok(Region { map, writable })
}

/// A shared mapping, safe to use while other processes and other hosts write to the same memory: bytes are copied in
/// and out, never borrowed, and every access is volatile. A copy can therefore be torn; what it says must be checked
/// (checksums of docs/abi.md section 2).
///
/// Touching memory that the hardware reports as poisoned, or that is gone, ends the process with SIGBUS; nothing is
/// ever made up in its place. Whoever started the process can tell by the signal, as `famfs mount` does.
#[derive(Debug)]
pub struct Region {
    map: MmapRaw,
    writable: bool,
}

impl Region {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether the mapping has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies bytes out. InvalidInput when the range is not inside the mapping.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> io::Result<()> {
        let start = self.range(offset, out.len())?;
        let (head, body) = split(start, out.len());
        let mut at = start.cast_const();
        let mut out = out.iter_mut();
        for byte in out.by_ref().take(head) {
            // SAFETY: `range` has checked that the whole copy is inside the mapping, and `at` advances within it.
            (*byte, at) = unsafe { (at.read_volatile(), at.add(1)) };
        }
        for _ in 0..body / 8 {
            // SAFETY: As above for the next 8 bytes; `split` has put `at` on a multiple of 8.
            let word = unsafe { at.cast::<u64>().read_volatile() };
            // SAFETY: As above.
            at = unsafe { at.add(8) };
            out.by_ref()
                .zip(word.to_ne_bytes())
                .for_each(|(byte, value)| *byte = value);
        }
        for byte in out {
            // SAFETY: As above.
            (*byte, at) = unsafe { (at.read_volatile(), at.add(1)) };
        }
        Ok(())
    }

    /// Copies bytes in. InvalidInput when the range is not inside the mapping, PermissionDenied when the mapping is
    /// read-only.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let start = self.range(offset, bytes.len())?;
        let (head, body) = split(start, bytes.len());
        let (bytes, tail) = bytes.split_at(head.saturating_add(body));
        let (bytes, words) = bytes.split_at(head);
        let mut at = start;
        for &byte in bytes {
            // SAFETY: `range` has checked that the whole copy is inside the mapping, which is writable, and `at`
            // advances within it.
            at = unsafe {
                at.write_volatile(byte);
                at.add(1)
            };
        }
        for word in words.chunks_exact(8) {
            let word = word
                .iter()
                .rev()
                .fold(0, |word: u64, &byte| word << 8 | u64::from(byte));
            // SAFETY: As above for the next 8 bytes; `split` has put `at` on a multiple of 8.
            at = unsafe {
                at.cast::<u64>().write_volatile(word.to_le());
                at.add(8)
            };
        }
        for &byte in tail {
            // SAFETY: As above.
            at = unsafe {
                at.write_volatile(byte);
                at.add(1)
            };
        }
        Ok(())
    }

    /// Writes the lines of a range back to memory; they may stay cached. Ordered before every later store.
    pub fn flush(&self, offset: usize, len: usize) -> io::Result<()> {
        let line = match CacheOps::get() {
            CacheOps { clwb: true, .. } => clwb,
            CacheOps {
                clflushopt: true, ..
            } => clflushopt,
            _ => clflush,
        };
        self.for_each_line(offset, len, line)?;
        store_fence();
        Ok(())
    }

    /// Drops the lines of a range from the caches, so that the next read sees what another host has written. The
    /// full fence keeps later loads behind it; upstream has a store fence there, which does not.
    pub fn invalidate(&self, offset: usize, len: usize) -> io::Result<()> {
        self.for_each_line(
            offset,
            len,
            if CacheOps::get().clflushopt {
                clflushopt
            } else {
                clflush
            },
        )?;
        // SAFETY: mfence is part of x86-64.
        unsafe { _mm_mfence() };
        Ok(())
    }

    /// Writes back and drops the lines of a range with the strongest of the instructions.
    pub fn hard_flush(&self, offset: usize, len: usize) -> io::Result<()> {
        store_fence();
        self.for_each_line(offset, len, clflush)?;
        store_fence();
        Ok(())
    }

    /// Start of a range that lies in the mapping as a whole.
    fn range(&self, offset: usize, len: usize) -> io::Result<*mut u8> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len() => Ok(self.map.as_mut_ptr().wrapping_add(offset)),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{len} bytes at {offset} are not inside a mapping of {} bytes",
                    self.len()
                ),
            )),
        }
    }

    fn for_each_line(&self, offset: usize, len: usize, op: fn(*const u8)) -> io::Result<()> {
        let start = self.range(offset, len)?.cast_const();
        let before = start.addr() % LINE;
        let first = start.wrapping_sub(before);
        let span = if len == 0 {
            0
        } else {
            len.saturating_add(before)
        };
        (0..span)
            .step_by(LINE)
            .for_each(|at| op(first.wrapping_add(at)));
        Ok(())
    }
}

/// Lengths of the parts of a copy at `start`: bytes up to a multiple of 8, then whole words. The rest is bytes again.
fn split(start: *const u8, len: usize) -> (usize, usize) {
    let head = start.align_offset(8).min(len);
    (head, len.saturating_sub(head) & !7)
}

/// Cache instructions beyond the base set of x86-64.
#[derive(Clone, Copy)]
struct CacheOps {
    clflushopt: bool,
    clwb: bool,
}

impl CacheOps {
    fn get() -> Self {
        static OPS: OnceLock<CacheOps> = OnceLock::new();
        *OPS.get_or_init(|| {
            // SAFETY: Every x86-64 has cpuid. (Newer compilers know that and need no `unsafe` here.)
            #[allow(unused_unsafe)]
            let ebx = unsafe {
                if __cpuid(0).eax >= 7 {
                    __cpuid_count(7, 0).ebx
                } else {
                    0
                }
            };
            CacheOps {
                clflushopt: ebx & 1 << 23 != 0,
                clwb: ebx & 1 << 24 != 0,
            }
        })
    }
}

// The three line operations change no memory content and take any address in a mapping; `for_each_line` gives them
// nothing else, and chooses by what the processor has.

fn clwb(line: *const u8) {
    // SAFETY: See above.
    unsafe { asm!("clwb [{}]", in(reg) line, options(nostack, preserves_flags)) };
}

fn clflushopt(line: *const u8) {
    // SAFETY: See above.
    unsafe { asm!("clflushopt [{}]", in(reg) line, options(nostack, preserves_flags)) };
}

fn clflush(line: *const u8) {
    // SAFETY: See above.
    unsafe { _mm_clflush(line) };
}

fn store_fence() {
    // SAFETY: sfence is part of x86-64.
    unsafe { _mm_sfence() };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom, Write};

    fn file(len: usize) -> File {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..len).map(|i| (i * 7 + i / 251) as u8).collect();
        file.write_all(&bytes).unwrap();
        file
    }

    #[test]
    fn copies_at_every_alignment() {
        let region = map_file(&file(8192), 8192, true).unwrap();
        let mut whole = [0; 8192];
        region.read(0, &mut whole).unwrap();
        for offset in 0..17 {
            for len in 0..40 {
                let mut out = vec![0; len];
                region.read(offset, &mut out).unwrap();
                assert_eq!(out, whole[offset..offset + len]);
                let new: Vec<u8> = out.iter().map(|byte| byte ^ 0xa5).collect();
                region.write(offset, &new).unwrap();
                whole[offset..offset + len].copy_from_slice(&new);
            }
        }
        let mut after = [0; 8192];
        region.read(0, &mut after).unwrap();
        assert!(after == whole);
    }

    #[test]
    fn writes_reach_the_file() {
        let mut backing = file(4096);
        let region = map_file(&backing, 4096, true).unwrap();
        region.write(4090, b"famfs!").unwrap();
        for op in [Region::flush, Region::invalidate, Region::hard_flush] {
            op(&region, 4000, 96).unwrap();
        }
        backing.seek(SeekFrom::Start(4090)).unwrap();
        assert_eq!(std::io::read_to_string(backing).unwrap(), "famfs!");
    }

    #[test]
    fn nothing_outside_the_mapping() {
        let region = map_file(&file(4096), 4096, true).unwrap();
        for (offset, len) in [(4096, 1), (4095, 2), (usize::MAX, 2), (0, 4097)] {
            assert_eq!(
                region.read(offset, &mut vec![0; len]).unwrap_err().kind(),
                io::ErrorKind::InvalidInput
            );
            assert_eq!(
                region.write(offset, &vec![0; len]).unwrap_err().kind(),
                io::ErrorKind::InvalidInput
            );
            assert_eq!(
                region.flush(offset, len).unwrap_err().kind(),
                io::ErrorKind::InvalidInput
            );
        }
        assert!(region.read(4096, &mut []).is_ok());
    }

    #[test]
    fn read_only_mapping_refuses_writes() {
        let region = map_file(&file(4096), 4096, false).unwrap();
        assert_eq!(
            region.write(0, b"x").unwrap_err().kind(),
            io::ErrorKind::PermissionDenied
        );
    }

    #[test]
    fn lines_cover_the_range_and_no_more() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static LINES: AtomicUsize = AtomicUsize::new(0);
        let region = map_file(&file(4096), 4096, true).unwrap();
        for (offset, len, lines) in [
            (0, 0, 0),
            (0, 1, 1),
            (63, 1, 1),
            (63, 2, 2),
            (64, 64, 1),
            (1, 128, 3),
            (0, 4096, 64),
        ] {
            LINES.store(0, Ordering::Relaxed);
            region
                .for_each_line(offset, len, |line| {
                    assert_eq!(line.addr() % LINE, 0);
                    LINES.fetch_add(1, Ordering::Relaxed);
                })
                .unwrap();
            assert_eq!(
                LINES.load(Ordering::Relaxed),
                lines,
                "{len} bytes at {offset}"
            );
        }
    }
}
