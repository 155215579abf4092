// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kernel modules: load, unload, is it there.

use std::ffi::{CStr, CString};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use rustix::io::Errno;
use rustix::system::{delete_module, finit_module};

pub const FAMFS: &str = "/lib/famfs/famfs.ko";
pub const FAMFS_KUNIT: &str = "/lib/famfs/famfs_kunit.ko";

/// The inner result is finit_module's own answer.
pub fn insmod(path: &str) -> Result<Result<(), Errno>> {
    insmod_with(path, c"")
}

/// With parameters as on insmod's command line.
pub fn insmod_with(path: &str, parameters: &CStr) -> Result<Result<(), Errno>> {
    let file = File::open(path)
        .with_context(|| format!("{path} (not in the image: give its path to the harness)"))?;
    let mut all = match path {
        FAMFS => default().to_bytes().to_vec(),
        _ => Vec::new(),
    };
    all.push(b' ');
    all.extend(parameters.to_bytes());
    Ok(finit_module(&file, &CString::new(all)?, 0))
}

static DEFAULT: Mutex<&CStr> = Mutex::new(c"");

/// The parameters of famfs.ko that stand before those it is loaded with, from now on.
pub fn set_default(parameters: &'static CStr) {
    *DEFAULT.lock().unwrap_or_else(PoisonError::into_inner) = parameters;
}

fn default() -> &'static CStr {
    *DEFAULT.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn rmmod(name: &str) -> Result<(), Errno> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    delete_module(&name, libc::O_NONBLOCK)
}

pub fn is_loaded(name: &str) -> bool {
    Path::new("/sys/module").join(name).exists()
}

/// Loads famfs.ko unless an earlier test left it loaded.
pub fn ensure_famfs() -> Result<()> {
    if is_loaded("famfs") {
        return Ok(());
    }
    insmod(FAMFS)?.context("insmod famfs.ko")
}

/// Loads famfs.ko afresh, with these parameters.
pub fn reload_famfs(parameters: &CStr) -> Result<()> {
    if is_loaded("famfs") {
        rmmod("famfs").context("rmmod famfs")?;
    }
    insmod_with(FAMFS, parameters)?.context("insmod famfs.ko")
}

/// The kernel's messages from now on.
pub struct KernelLog(File);

impl KernelLog {
    pub fn open() -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .context("/dev/kmsg")?;
        let mut log = Self(file);
        log.new_lines();
        Ok(log)
    }

    /// Those since the last call, without their prefixes.
    pub fn new_lines(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.next_line()).collect()
    }

    /// Waits for a message that `find` makes something of, and gives that; those behind it are left.
    pub fn wait_for<T>(&mut self, find: impl Fn(&str) -> Option<T>) -> Result<T> {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            match self.next_line() {
                Some(line) => {
                    if let Some(found) = find(&line) {
                        return Ok(found);
                    }
                }
                None => {
                    ensure!(Instant::now() < end, "the kernel does not say it");
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }

    fn next_line(&mut self) -> Option<String> {
        let mut buffer = [0; 8192];
        loop {
            match self.0.read(&mut buffer) {
                Ok(len) => {
                    let text = String::from_utf8_lossy(&buffer[..len]);
                    let message = text.split_once(';').map_or("", |(_, message)| message);
                    return Some(message.lines().next().unwrap_or("").to_owned());
                }
                // EPIPE: old records were overwritten, go on with the next.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => (),
                Err(_) => return None,
            }
        }
    }
}
