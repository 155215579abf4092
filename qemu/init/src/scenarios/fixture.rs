// SPDX-License-Identifier: MIT OR Apache-2.0
//! What many tests start from: devices in fsdev mode, files with known bytes behind them.

use anyhow::{Context, Result};

use super::Skip;
use crate::dax::Driver;
use crate::fmap::{extent, Fmap, AU};
use crate::module;
use crate::raw::Raw;
use crate::runner::Guest;
use crate::server::{Serve, ServedFile, TestFs};

/// Fails with what was got and what was expected.
macro_rules! ensure_eq {
    ($got:expr, $want:expr, $($what:tt)+) => {{
        let (got, want) = (&$got, &$want);
        anyhow::ensure!(got == want, "{}: got {got:?}, expected {want:?}", format_args!($($what)+));
    }};
}
pub(crate) use ensure_eq;

/// The module loaded, every device in fsdev mode, its memory within reach.
pub struct Ready {
    pub paths: Vec<String>,
    pub raws: Vec<Raw>,
}

pub fn ready(guest: &Guest) -> Result<Ready> {
    module::ensure_famfs()?;
    let mut ready = Ready {
        paths: Vec::new(),
        raws: Vec::new(),
    };
    for device in &guest.devices {
        device.bind(Driver::Fsdev)?;
        ready.paths.push(device.path());
        ready.raws.push(Raw::open(device)?);
    }
    Ok(ready)
}

impl Ready {
    pub fn serve(&self, files: Vec<ServedFile>) -> Serve {
        Serve::new(&self.paths, files)
    }

    /// Mounts one file, with its pattern in the memory.
    pub fn one_file(&self, name: &str, fmap: &Fmap) -> Result<TestFs> {
        self.fill(fmap)?;
        TestFs::mount(self.serve(vec![ServedFile::new(name, fmap)]))
    }

    /// Writes the pattern of `fmap`'s file to where its bytes lie.
    pub fn fill(&self, fmap: &Fmap) -> Result<()> {
        self.fill_span(fmap, 0, &pattern(0, fmap.size as usize))
    }

    /// Writes the file's bytes from `pos` on to the raw memory.
    pub fn fill_span(&self, fmap: &Fmap, pos: u64, bytes: &[u8]) -> Result<()> {
        for (at, len) in pieces(pos, bytes.len()) {
            let (dev, offset) = locate(fmap, at)?;
            let from = (at - pos) as usize;
            self.raw(dev)?.write(offset, &bytes[from..from + len])?;
        }
        Ok(())
    }

    /// The file's bytes from the raw memory.
    pub fn raw_bytes(&self, fmap: &Fmap, pos: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len);
        for (at, len) in pieces(pos, len) {
            let (dev, offset) = locate(fmap, at)?;
            bytes.extend(self.raw(dev)?.read(offset, len)?);
        }
        Ok(bytes)
    }

    pub fn raw(&self, dev: u32) -> Result<&Raw> {
        self.raws
            .get(dev as usize)
            .with_context(|| Skip(format!("needs {} daxdevs", dev + 1)))
    }
}

/// A file of two allocation units less an odd tail, in one extent at 32 MiB.
pub fn one_extent() -> Fmap {
    Fmap::simple(2 * AU - 4219, &[extent(0, 16 * AU, 2 * AU)])
}

fn locate(fmap: &Fmap, pos: u64) -> Result<(u32, u64)> {
    fmap.locate(pos).context("the fmap does not cover its file")
}

/// A stretch of a file cut at multiples of the allocation unit, where its map may change: (position, length).
fn pieces(pos: u64, len: usize) -> Vec<(u64, usize)> {
    let (mut at, end) = (pos, pos + len as u64);
    let mut pieces = Vec::new();
    while at < end {
        let next = end.min((at / AU + 1) * AU);
        pieces.push((at, (next - at) as usize));
        at = next;
    }
    pieces
}

/// The bytes that a file of a test has at `pos`: different from one position to every other nearby.
pub fn pattern(pos: u64, len: usize) -> Vec<u8> {
    (pos..pos + len as u64)
        .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

/// Where `got` first differs from `want`, in words.
pub fn first_difference(got: &[u8], want: &[u8]) -> Option<String> {
    if got.len() != want.len() {
        return Some(format!("{} bytes, expected {}", got.len(), want.len()));
    }
    let at = got.iter().zip(want).position(|(got, want)| got != want)?;
    Some(format!(
        "byte {at:#x} is {:#04x}, expected {:#04x}",
        got[at], want[at]
    ))
}
