// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory for tests.

use std::cell::{Cell, RefCell};
use std::io;

use famfs_media::ENTRY_BYTES;

use crate::log::Store;

/// Memory and the operations on it, in order.
#[derive(Default)]
pub struct Traced {
    /// The memory.
    pub bytes: RefCell<Vec<u8>>,
    /// Name, offset and length of each operation.
    pub trace: RefCell<Vec<(&'static str, usize, usize)>>,
    /// A byte that reads as broken until it is invalidated by itself.
    pub stale: Cell<Option<usize>>,
}

impl Traced {
    fn note(&self, op: &'static str, at: usize, len: usize) {
        self.trace.borrow_mut().push((op, at, len));
    }
}

impl Store for Traced {
    fn read(&self, at: usize, out: &mut [u8]) -> io::Result<()> {
        out.copy_from_slice(&self.bytes.borrow()[at..at + out.len()]);
        if let Some(byte) = self
            .stale
            .get()
            .and_then(|stale| out.get_mut(stale.checked_sub(at)?))
        {
            *byte ^= 0xff;
        }
        Ok(())
    }
    fn write(&self, at: usize, bytes: &[u8]) -> io::Result<()> {
        self.note("write", at, bytes.len());
        self.bytes.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn flush(&self, at: usize, len: usize) -> io::Result<()> {
        self.note("flush", at, len);
        Ok(())
    }
    fn invalidate(&self, at: usize, len: usize) -> io::Result<()> {
        self.note("invalidate", at, len);
        if len == ENTRY_BYTES
            && self
                .stale
                .get()
                .is_some_and(|stale| (at..at + len).contains(&stale))
        {
            self.stale.set(None);
        }
        Ok(())
    }
}
