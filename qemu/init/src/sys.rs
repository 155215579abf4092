// SPDX-License-Identifier: MIT OR Apache-2.0
//! The only file with `unsafe`: mappings whose memory may vanish, the signal handler that reports it, and the ioctls
//! that no library wraps.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use rustix::mm::{
    madvise, mmap, mmap_anonymous, mprotect, mremap, munmap, Advice, MapFlags, MprotectFlags,
    MremapFlags, ProtFlags,
};

/// A mapping of a file. Every access is volatile, one instruction per byte or word: other processes write to the
/// memory, and a test wants to know which access faulted.
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    SharedRead,
    SharedWrite,
    /// Copy-on-write.
    Private,
}

// SAFETY: Every access may race with those of other processes anyway.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub fn new(file: &File, offset: u64, len: usize, kind: Kind) -> io::Result<Self> {
        let (prot, flags) = match kind {
            Kind::SharedRead => (ProtFlags::READ, MapFlags::SHARED),
            Kind::SharedWrite => (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED),
            Kind::Private => (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE),
        };
        // SAFETY: The kernel chooses the address, so nothing that exists is mapped over.
        let start = unsafe { mmap(std::ptr::null_mut(), len, prot, flags, file, offset)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, len })
    }

    /// Memory of nobody else.
    pub fn anonymous(len: usize) -> io::Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: As in `new`.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), len, prot, MapFlags::PRIVATE)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, len })
    }

    pub fn address(&self) -> usize {
        self.start.as_ptr() as usize
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn byte(&self, at: usize) -> u8 {
        assert!(at < self.len);
        // SAFETY: `at` is inside the mapping (asserted), which lives as long as `self`; where the file's memory is
        // gone the access raises SIGBUS, which is what such a test is after.
        unsafe { self.start.as_ptr().add(at).read_volatile() }
    }

    /// The mapping must be writable.
    pub fn set_byte(&self, at: usize, value: u8) {
        assert!(at < self.len);
        // SAFETY: As in `byte`; a mapping that cannot be written raises SIGSEGV.
        unsafe { self.start.as_ptr().add(at).write_volatile(value) };
    }

    /// Ticks of the TSC that the fault of an access takes: those of the access less those of a second one. Looks at the
    /// clock four times, as `timed` of the bench does.
    pub fn fault(&self, at: usize, write: bool) -> u64 {
        assert!(at < self.len);
        let access = || {
            let start = ticks();
            // SAFETY: As in `byte` and `set_byte`.
            unsafe {
                let byte = self.start.as_ptr().add(at);
                if write {
                    byte.write_volatile(1);
                } else {
                    byte.read_volatile();
                }
            }
            ticks().wrapping_sub(start)
        };
        access().saturating_sub(access())
    }

    /// Maps all of it.
    pub fn populate(&self, write: bool) -> io::Result<()> {
        let advice = if write {
            Advice::LinuxPopulateWrite
        } else {
            Advice::LinuxPopulateRead
        };
        self.advise(0, self.len, advice)
    }

    /// The mapping must be writable.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        for (index, byte) in bytes.iter().enumerate() {
            self.set_byte(at + index, *byte);
        }
    }

    pub fn read(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len));
        let mut bytes = vec![0; len];
        // SAFETY: The range is inside the mapping (asserted) and does not overlap a fresh Vec. That others may write
        // meanwhile can only make the copied bytes older or newer.
        unsafe {
            std::ptr::copy_nonoverlapping(self.start.as_ptr().add(at), bytes.as_mut_ptr(), len)
        };
        bytes
    }

    /// Drops the page table entries, so that the next access faults.
    pub fn drop_entries(&self, at: usize, len: usize) -> io::Result<()> {
        self.advise(at, len, Advice::LinuxDontNeed)
    }

    /// Keeps the kernel from mapping 2 MiB at once.
    pub fn no_huge_pages(&self) -> io::Result<()> {
        self.advise(0, self.len, Advice::LinuxNoHugepage)
    }

    /// Asks the kernel to map 2 MiB at once.
    pub fn huge_pages(&self) -> io::Result<()> {
        self.advise(0, self.len, Advice::LinuxHugepage)
    }

    /// Maps pages as an access would; an error where that raises a signal.
    pub fn populate_part(&self, at: usize, len: usize, write: bool) -> io::Result<()> {
        let advice = match write {
            true => Advice::LinuxPopulateWrite,
            false => Advice::LinuxPopulateRead,
        };
        self.advise(at, len, advice)
    }

    /// Allows loads only, or stores too.
    pub fn protect(&self, write: bool) -> io::Result<()> {
        let mut flags = MprotectFlags::READ;
        flags.set(MprotectFlags::WRITE, write);
        // SAFETY: The range is a mapping of a file that only this type's volatile accesses use.
        unsafe { Ok(mprotect(self.start.as_ptr().cast(), self.len, flags)?) }
    }

    /// Moves the mapping to where it has that length.
    pub fn remap(&mut self, len: usize) -> io::Result<()> {
        // SAFETY: As in `protect`, and nobody else uses the mapping while it is borrowed exclusively.
        let start = unsafe {
            mremap(
                self.start.as_ptr().cast(),
                self.len,
                len,
                MremapFlags::MAYMOVE,
            )?
        };
        self.start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        self.len = len;
        Ok(())
    }

    /// Tells the kernel that the page at `at` has a hardware error.
    pub fn poison(&self, at: usize) -> io::Result<()> {
        self.advise(at, 4096, Advice::LinuxHwPoison)
    }

    /// Puts pages into a pipe, by reference; gives the number of bytes.
    pub fn vmsplice(&self, at: usize, len: usize, pipe: &OwnedFd) -> io::Result<usize> {
        let piece = self.piece(at, len);
        // SAFETY: The vector is one valid entry, and its range is inside the mapping.
        let count = unsafe { libc::vmsplice(pipe.as_raw_fd(), &piece, 1, 0) };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    /// Reads from `file`; the mapping must be writable.
    pub fn read_from(&self, file: &File, at: usize, len: usize) -> io::Result<usize> {
        let piece = self.piece(at, len);
        // SAFETY: The range is inside the mapping, which only volatile accesses use.
        let count = unsafe { libc::pread(file.as_raw_fd(), piece.iov_base, piece.iov_len, 0) };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    /// Registers the range as a fixed buffer of a new io_uring, and gives that.
    pub fn register(&self, at: usize, len: usize) -> io::Result<OwnedFd> {
        const REGISTER_BUFFERS: libc::c_long = 0;
        let piece = self.piece(at, len);
        let mut params = [0u32; 30];
        // SAFETY: `params` has the 120 bytes of struct io_uring_params.
        let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
        let ring = i32::try_from(ring).map_err(|_| io::ErrorKind::InvalidData)?;
        if ring < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: The kernel just made this descriptor, for this call.
        let ring = unsafe { OwnedFd::from_raw_fd(ring) };
        // SAFETY: The vector is one valid entry, and its range is inside the mapping.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                ring.as_raw_fd(),
                REGISTER_BUFFERS,
                &raw const piece,
                1,
            )
        };
        match result {
            0 => Ok(ring),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// What `access` says in a child process, which has its own copy of the mapping; it may do nothing else.
    pub fn in_child(&self, access: impl FnOnce(&Self) -> u8) -> io::Result<u8> {
        // SAFETY: The child only accesses the mapping, and ends without running anything of the parent's.
        let child = unsafe {
            match libc::fork() {
                0 => libc::_exit(access(self).into()),
                child => child,
            }
        };
        let mut status = 0;
        // SAFETY: `status` is where waitpid() puts it.
        if child < 0 || unsafe { libc::waitpid(child, &raw mut status, 0) } != child {
            return Err(io::Error::last_os_error());
        }
        match libc::WIFEXITED(status) {
            true => Ok(libc::WEXITSTATUS(status) as u8),
            false => Err(io::Error::other(format!(
                "the child's status is {status:#x}"
            ))),
        }
    }

    fn piece(&self, at: usize, len: usize) -> libc::iovec {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len));
        libc::iovec {
            iov_base: self.start.as_ptr().wrapping_add(at).cast(),
            iov_len: len,
        }
    }

    pub fn advise(&self, at: usize, len: usize, advice: Advice) -> io::Result<()> {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: The range is inside a mapping of a file that only this type's volatile accesses use.
        unsafe { Ok(madvise(self.start.as_ptr().add(at).cast(), len, advice)?) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start` and `len` are what mmap gave, and no reference into the mapping was ever handed out.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// The TSC; with QEMU's icount it counts instructions. One function at one address: a trace is divided by its calls.
#[inline(never)]
pub fn ticks() -> u64 {
    // SAFETY: Every x86-64 has the instruction, and Linux lets programs use it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// `struct page_region` of linux/fs.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageRegion {
    pub start: u64,
    pub end: u64,
    pub categories: u64,
}

/// `struct pm_scan_arg` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// _IOWR('f', 16, struct pm_scan_arg)
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
pub const PAGE_IS_PRESENT: u64 = 1 << 3;
/// Mapped by one entry for 2 MiB.
pub const PAGE_IS_HUGE: u64 = 1 << 6;

/// What the page cache has of all of a file, in pages: cached, dirty, in writeback, evicted, evicted of late.
pub fn cachestat(file: &File) -> io::Result<[u64; 5]> {
    const CACHESTAT: libc::c_long = 451;
    let (range, mut counts) = ([0u64; 2], [0u64; 5]);
    // SAFETY: The descriptor is open, and the arrays are a struct cachestat_range and a struct cachestat.
    let result = unsafe {
        libc::syscall(
            CACHESTAT,
            file.as_raw_fd(),
            range.as_ptr(),
            counts.as_mut_ptr(),
            0,
        )
    };
    match result {
        0 => Ok(counts),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The present pages of a mapping, neighbours with the same categories joined.
pub fn scan_pages(mapping: &Mapping) -> io::Result<Vec<PageRegion>> {
    scan_pages_of("self", mapping.address() as u64, mapping.len() as u64)
}

/// As [`scan_pages`], for `len` bytes of another process.
pub fn scan_pages_of(pid: &str, start: u64, len: u64) -> io::Result<Vec<PageRegion>> {
    let mut regions = vec![PageRegion::default(); 1024];
    let mut arg = PmScanArg {
        size: std::mem::size_of::<PmScanArg>() as u64,
        start,
        end: start.saturating_add(len),
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        category_mask: PAGE_IS_PRESENT,
        return_mask: PAGE_IS_PRESENT | PAGE_IS_HUGE,
        ..PmScanArg::default()
    };
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    // SAFETY: `arg` has the layout the request expects, and its vec points to `vec_len` regions that live on.
    let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
    regions.truncate(usize::try_from(count).map_err(|_| io::Error::last_os_error())?);
    Ok(regions)
}

/// `struct fuse_backing_map` of linux/fuse.h, as FUSE_DEV_IOC_DAXDEV_OPEN uses it.
#[repr(C)]
struct FuseBackingMap {
    fd: i32,
    flags: u32,
    daxdev_index: u64,
}

/// _IOW(229, 4, struct fuse_backing_map)
const FUSE_DEV_IOC_DAXDEV_OPEN: libc::c_ulong = 0x4010_e504;

/// Hands the daxdev behind `fd` to the connection of `fuse`. Any number will do: the kernel is to judge.
pub fn daxdev_open(fuse: &File, fd: i32, flags: u32, daxdev_index: u64) -> io::Result<()> {
    let map = FuseBackingMap {
        fd,
        flags,
        daxdev_index,
    };
    // SAFETY: The request reads the 16 bytes of `map`, which outlives the call, and no other memory.
    match unsafe { libc::ioctl(fuse.as_raw_fd(), FUSE_DEV_IOC_DAXDEV_OPEN, &raw const map) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes SIGBUS print "sigbus CODE ADDRESS LSB" (decimal, hexadecimal, hexadecimal) on standard output and end the
/// process.
pub fn report_sigbus() -> io::Result<()> {
    // SAFETY: An all-zero sigaction is valid: no flags, empty mask, default handler.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigbus as extern "C" fn(_, _, _) as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: `action` is initialised and its handler has the signature that SA_SIGINFO asks for.
    match unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

const HEX: [u8; 16] = *b"0123456789abcdef";

/// Only async-signal-safe calls: it formats on the stack, writes and exits.
extern "C" fn on_sigbus(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    /// Where si_addr_lsb is, behind si_signo, si_errno, si_code, padding and si_addr; libc leaves it out.
    const ADDR_LSB: usize = 24;
    // SAFETY: The kernel passes a valid siginfo to a SA_SIGINFO handler, and SIGBUS fills si_addr. si_addr_lsb lies
    // inside the siginfo, which the kernel has zeroed where the signal has none.
    let (code, address, lsb) = unsafe {
        let lsb = info.cast::<u8>().add(ADDR_LSB).cast::<u16>().read();
        ((*info).si_code, (*info).si_addr() as usize, lsb)
    };
    let mut text = *b"sigbus 0 0000000000000000 00\n";
    text[7] = b'0' + u8::try_from(code.rem_euclid(10)).unwrap_or(0);
    for (index, digit) in text[9..25].iter_mut().enumerate() {
        *digit = HEX[(address >> (60 - 4 * index)) & 15];
    }
    text[26] = HEX[usize::from(lsb) >> 4 & 15];
    text[27] = HEX[usize::from(lsb) & 15];
    // SAFETY: Descriptor 1 stays open for the life of the process.
    let stdout = unsafe { BorrowedFd::borrow_raw(1) };
    let _ = rustix::io::write(stdout, &text);
    // SAFETY: _exit may be called from a handler.
    unsafe { libc::_exit(0) };
}
