// SPDX-License-Identifier: MIT OR Apache-2.0
//! A FUSE server that answers GET_FMAP and GET_DAXDEV with whatever bytes a test wants, and counts every request by
//! its opcode. It knows one flat folder of files and runs as a thread of the test.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use rustix::mount::{mount, unmount, MountFlags, UnmountFlags};
use rustix::process::{getpid, kill_process, Signal};

use crate::fmap::{self, Fmap};
use crate::sys::daxdev_open;
use crate::wire::{self, Request};

const ROOT: u64 = 1;
const FIRST_FILE: u64 = 2;
const S_IFDIR: u32 = 0o040000;
const S_IFREG: u32 = 0o100000;
/// FOPEN_PARALLEL_DIRECT_WRITES, as upstream's server answers, and FOPEN_NOFLUSH, as ours: who closes a file of a server
/// that hangs would wait for it.
const OPEN_FLAGS: u32 = 1 << 6 | 1 << 5;

/// What a file is full of whose server stops at READ.
pub const PLAIN_BYTE: u8 = 0xa5;

/// A reply's body, or an errno.
#[derive(Clone, Debug)]
pub enum Answer {
    Bytes(Vec<u8>),
    Errno(i32),
    /// The header of an fmap that is one byte larger than whatever the kernel has room for.
    AlwaysMore,
}

#[derive(Clone, Debug)]
pub struct ServedFile {
    pub name: String,
    /// What LOOKUP and GETATTR say.
    pub size: u64,
    pub fmap: Answer,
}

impl ServedFile {
    pub fn new(name: &str, fmap: &Fmap) -> Self {
        Self {
            name: name.to_owned(),
            size: fmap.size,
            fmap: Answer::Bytes(fmap.message()),
        }
    }

    pub fn answering(name: &str, size: u64, fmap: Answer) -> Self {
        Self {
            name: name.to_owned(),
            size,
            fmap,
        }
    }
}

/// What a server serves.
#[derive(Clone, Debug, Default)]
pub struct Serve {
    pub files: Vec<ServedFile>,
    /// By device index; an index that is not there gets ENODEV.
    pub devices: BTreeMap<u64, Answer>,
    /// Does not accept FUSE_DAX_FMAP: a plain FUSE file system.
    pub plain: bool,
    /// Accepts FUSE_ATOMIC_O_TRUNC, as upstream's server does.
    pub atomic_trunc: bool,
    /// Its process stops when it has the first such request, before it answers; of LOOKUP the first for a file.
    pub stop_at: Option<u32>,
}

impl Serve {
    pub fn new(devices: &[String], files: Vec<ServedFile>) -> Self {
        let answer = |(index, path): (usize, &String)| {
            (
                index as u64,
                Answer::Bytes(wire::daxdev_out(index as u16, path)),
            )
        };
        Self {
            files,
            devices: devices.iter().enumerate().map(answer).collect(),
            ..Self::default()
        }
    }

    /// The same, with this failure_policy in every answer to GET_DAXDEV.
    pub fn with_policy(mut self, policy: u16) -> Self {
        for answer in self.devices.values_mut() {
            if let Answer::Bytes(bytes) = answer {
                bytes.splice(2..4, policy.to_le_bytes());
            }
        }
        self
    }
}

/// What the server has seen.
#[derive(Debug, Default)]
struct Seen {
    counts: BTreeMap<u32, u64>,
    /// Length of each GET_FMAP request.
    fmap_request_lens: Vec<usize>,
    /// What each GET_FMAP request says of the kernel's buffer.
    fmap_rooms: Vec<Option<u32>>,
    /// Flags that the kernel offered in INIT.
    offered: u64,
    fmap_offered: bool,
}

/// What a FUSE file system is mounted with: a new folder, and the server's descriptor.
pub struct MountPoint {
    pub dir: String,
    pub dev: File,
    options: CString,
}

impl MountPoint {
    pub fn new(user_id: u32) -> Result<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let dir = format!("/mnt/test{}", NEXT.fetch_add(1, Ordering::Relaxed));
        std::fs::create_dir_all(&dir)?;
        let dev = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .context("/dev/fuse")?;
        let options = format!(
            "fd={},rootmode=40000,user_id={user_id},group_id=0,allow_other",
            dev.as_raw_fd()
        );
        Ok(Self {
            dir,
            dev,
            options: CString::new(options)?,
        })
    }

    pub fn mount(&self, flags: MountFlags) -> rustix::io::Result<()> {
        let options = self.options.as_c_str();
        mount("famfs-test", &self.dir, "fuse", flags, options)
    }
}

/// Mounts a FUSE file system on a new folder; gives its path and the server's descriptor.
pub fn mount_fuse(user_id: u32, flags: MountFlags) -> Result<(String, File)> {
    let point = MountPoint::new(user_id)?;
    point.mount(flags).context("mount the test file system")?;
    Ok((point.dir, point.dev))
}

/// A mounted test file system; dropping it unmounts.
pub struct TestFs {
    dir: String,
    /// The server's, for its ioctl.
    dev: File,
    seen: Arc<Mutex<Seen>>,
    mounted: bool,
}

impl TestFs {
    pub fn mount(serve: Serve) -> Result<Self> {
        Self::mount_for(0, serve)
    }

    /// Mounts on behalf of another user, as fusermount does.
    pub fn mount_for(user_id: u32, serve: Serve) -> Result<Self> {
        let (dir, dev) = mount_fuse(user_id, MountFlags::empty())?;
        let fs = Self::start(dir, dev, serve)?;
        // INIT is answered before this lookup is.
        ensure!(
            std::fs::metadata(fs.path("no-such-file")).is_err(),
            "the test server knows a file it should not"
        );
        Ok(fs)
    }

    /// Serves what is mounted on `dir` already.
    pub fn start(dir: String, dev: File, serve: Serve) -> Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (thread_dev, thread_seen) = (dev.try_clone()?, Arc::clone(&seen));
        std::thread::spawn(move || serve_until_unmounted(thread_dev, &serve, &thread_seen));
        Ok(Self {
            dir,
            dev,
            seen,
            mounted: true,
        })
    }

    pub fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.dir)
    }

    pub fn open(&self, name: &str) -> std::io::Result<File> {
        File::open(self.path(name))
    }

    pub fn open_rw(&self, name: &str) -> std::io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path(name))
    }

    /// The errno of an open that must fail; 0 if it did not.
    pub fn open_errno(&self, name: &str) -> i32 {
        self.open(name)
            .err()
            .and_then(|error| error.raw_os_error())
            .unwrap_or(0)
    }

    pub fn count(&self, opcode: u32) -> u64 {
        self.seen().counts.get(&opcode).copied().unwrap_or(0)
    }

    /// All requests so far.
    pub fn total(&self) -> u64 {
        self.seen().counts.values().sum()
    }

    /// Requests so far by opcode, for messages.
    pub fn counts(&self) -> BTreeMap<u32, u64> {
        self.seen().counts.clone()
    }

    pub fn fmap_request_lens(&self) -> Vec<usize> {
        self.seen().fmap_request_lens.clone()
    }

    pub fn fmap_rooms(&self) -> Vec<Option<u32>> {
        self.seen().fmap_rooms.clone()
    }

    /// Hands a daxdev over by its descriptor, as the push generation does.
    pub fn push(&self, device: &File, index: u64) -> std::io::Result<()> {
        self.push_raw(device.as_raw_fd(), 0, index)
    }

    pub fn push_raw(&self, fd: i32, flags: u32, index: u64) -> std::io::Result<()> {
        daxdev_open(&self.dev, fd, flags, index)
    }

    pub fn fmap_offered(&self) -> bool {
        self.seen().fmap_offered
    }

    /// Waits until the server has seen `count` requests of that kind: some are sent without waiting for an answer.
    pub fn wait_for(&self, opcode: u32, count: u64) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(5);
        while self.count(opcode) < count {
            ensure!(
                Instant::now() < end,
                "the server saw {} requests with opcode {opcode}, expected {count}",
                self.count(opcode)
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The result of a plain umount.
    pub fn umount(&mut self) -> rustix::io::Result<()> {
        self.umount_with(UnmountFlags::empty())
    }

    /// A plain umount, for another thread to do.
    pub fn umount_elsewhere(&mut self) -> impl FnOnce() -> Result<()> + Send + 'static {
        self.mounted = false;
        let dir = self.dir.clone();
        move || Ok(unmount(dir.as_str(), UnmountFlags::empty())?)
    }

    /// `umount -l`
    pub fn umount_lazily(&mut self) -> rustix::io::Result<()> {
        self.umount_with(UnmountFlags::DETACH)
    }

    pub fn umount_with(&mut self, flags: UnmountFlags) -> rustix::io::Result<()> {
        unmount(self.dir.as_str(), flags)?;
        self.mounted = false;
        Ok(())
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for TestFs {
    fn drop(&mut self) {
        if self.mounted {
            let _ = unmount(self.dir.as_str(), UnmountFlags::DETACH);
        }
    }
}

/// Serves on this thread, without anybody counting.
pub fn serve(dev: File, serve: &Serve) {
    serve_until_unmounted(dev, serve, &Mutex::default());
}

fn serve_until_unmounted(mut dev: File, serve: &Serve, seen: &Mutex<Seen>) {
    let mut buffer = vec![0; (1 << 20) + 4096];
    let mut stop_at = serve.stop_at;
    loop {
        let len = match dev.read(&mut buffer) {
            Ok(len) => len,
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EINTR | libc::ENOENT | libc::EAGAIN)
                ) =>
            {
                continue
            }
            // ENODEV: unmounted.
            Err(_) => return,
        };
        let Some(request) = buffer.get(..len).and_then(Request::parse) else {
            continue;
        };
        note(&request, seen);
        let known = |file: &ServedFile| file.name.as_bytes() == request.name();
        if stop_at == Some(request.opcode)
            && (request.opcode != wire::LOOKUP || serve.files.iter().any(known))
        {
            stop_at = None;
            let _ = kill_process(getpid(), Signal::STOP);
        }
        if let Some((errno, body)) = answer(serve, &request) {
            // ENOENT: the request was interrupted meanwhile.
            let _ = dev.write(&wire::reply(request.unique, errno, &body));
        }
    }
}

fn note(request: &Request, seen: &Mutex<Seen>) {
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    *seen.counts.entry(request.opcode).or_default() += 1;
    match request.opcode {
        wire::GET_FMAP => {
            seen.fmap_request_lens.push(request.len);
            seen.fmap_rooms.push(wire::u32_at(request.body, 0));
        }
        wire::INIT => {
            seen.offered = wire::init_flags(request.body);
            seen.fmap_offered = seen.offered & wire::dax_fmap_bit(request.body) != 0;
        }
        _ => (),
    }
}

/// None for requests that have no answer.
fn answer(serve: &Serve, request: &Request) -> Option<(i32, Vec<u8>)> {
    let file = request
        .nodeid
        .checked_sub(FIRST_FILE)
        .and_then(|index| serve.files.get(index as usize));
    let found = |body| Some((0, body));
    let failed = |errno| Some((errno, Vec::new()));
    match request.opcode {
        wire::FORGET | wire::BATCH_FORGET | wire::INTERRUPT => None,
        wire::INIT => found(wire::init_out(
            request.body,
            !serve.plain,
            serve.atomic_trunc,
        )),
        wire::LOOKUP => match serve
            .files
            .iter()
            .position(|file| file.name.as_bytes() == request.name())
        {
            Some(index) => found(wire::entry_out(
                FIRST_FILE + index as u64,
                S_IFREG | 0o644,
                serve.files[index].size,
            )),
            None => failed(libc::ENOENT),
        },
        wire::GETATTR | wire::SETATTR if request.nodeid == ROOT => {
            found(wire::attr_out(ROOT, S_IFDIR | 0o755, 4096))
        }
        wire::GETATTR | wire::SETATTR => match file {
            Some(file) => found(wire::attr_out(request.nodeid, S_IFREG | 0o644, file.size)),
            None => failed(libc::ENOENT),
        },
        wire::OPEN => found(wire::open_out(request.nodeid, OPEN_FLAGS)),
        // Nobody else has an answer to it.
        wire::READ if serve.stop_at == Some(wire::READ) => {
            let size = wire::u32_at(request.body, 16)?;
            found(vec![PLAIN_BYTE; size as usize])
        }
        wire::RELEASE | wire::DESTROY => found(Vec::new()),
        wire::STATFS => found(vec![0; 80]),
        wire::CREATE => failed(libc::ENOTSUP),
        wire::GET_FMAP => {
            let room = wire::fmap_room(request.body);
            let fmap = file.map(|file| &file.fmap);
            if matches!(fmap, Some(Answer::AlwaysMore)) {
                return found(more_than(room));
            }
            let (errno, mut body) = deliver(fmap, libc::ENOENT)?;
            // What does not fit is announced by the header alone, which holds the size of it all.
            if body.len() > room {
                body.truncate(wire::FMAP_HEADER);
            }
            Some((errno, body))
        }
        wire::GET_DAXDEV => deliver(serve.devices.get(&request.nodeid), libc::ENODEV),
        _ => failed(libc::ENOSYS),
    }
}

/// The header of an fmap that does not fit.
fn more_than(room: usize) -> Vec<u8> {
    let mut header = fmap::header(0, 1, fmap::AU).0;
    header.splice(12..16, (room as u32 + 1).to_le_bytes());
    header
}

fn deliver(answer: Option<&Answer>, otherwise: i32) -> Option<(i32, Vec<u8>)> {
    Some(match answer {
        Some(Answer::Bytes(bytes)) => (0, bytes.clone()),
        Some(Answer::Errno(errno)) => (*errno, Vec::new()),
        Some(Answer::AlwaysMore) | None => (otherwise, Vec::new()),
    })
}
