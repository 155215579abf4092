// SPDX-License-Identifier: MIT OR Apache-2.0
//! What new files are filled with: zeroes, or a pattern that tells where it is, which `famfs creat -r` writes and
//! `famfs verify` checks.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use famfs_fuse::map_file;
use indicatif::{ProgressBar, ProgressStyle};

use crate::compared::Compared;
use crate::escape::escaped;
use crate::exit::{fail, Exit};
use crate::log::Store;

/// Bytes handled at a time.
pub const BLOCK: usize = 1 << 20;

/// A file, and the seed of the pattern in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seeded {
    /// Where it is.
    pub path: PathBuf,
    /// `None` for zeroes: the memory may hold what an earlier file system left.
    pub seed: Option<u64>,
}

impl Seeded {
    /// Writes all of `file`, which is the one at the path, and writes it back from the caches.
    pub fn write(&self, file: &File, bar: &ProgressBar) -> anyhow::Result<()> {
        let context = || self.path.display().to_string();
        let len = usize::try_from(file.metadata()?.len())?;
        let region = map_file(file, len, true).with_context(context)?;
        tracing::info!("filling {len} bytes of {}", self.path.display());
        for at in (0..len).step_by(BLOCK) {
            let bytes = self.bytes(at, len.saturating_sub(at).min(BLOCK));
            file.write_all_at(&bytes, at as u64).with_context(context)?;
            region.flush(at, bytes.len())?;
            bar.inc(bytes.len() as u64);
        }
        Ok(())
    }

    /// Compares the file with what [`Self::write`] writes, as memory has it.
    pub fn verify(&self, bar: &ProgressBar, compared: &Compared) -> anyhow::Result<()> {
        let context = || self.path.display().to_string();
        let file = File::open(&self.path).with_context(context)?;
        let len = usize::try_from(file.metadata()?.len())?;
        let region = map_file(&file, len, false).with_context(context)?;
        tracing::info!("comparing {len} bytes of {}", self.path.display());
        let differs = mismatch(&region, len, |at, len| Ok(self.bytes(at, len)), bar)?;
        compared.note(&self.path, len, differs);
        let Some(at) = differs else {
            return Ok(());
        };
        let (path, seed) = (self.path.display(), self.seed.unwrap_or_default());
        let text = format!("{path}: byte {at} is not that of the pattern with seed {seed}");
        Err(fail(Exit::Corrupt, text))
    }

    fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        self.seed
            .map_or_else(|| vec![0; len], |seed| pattern(seed, at, len))
    }
}

/// Offset of the first byte of `store`, as memory has it, that is not what `expected` gives for an offset and a length.
pub fn mismatch(
    store: &impl Store,
    len: usize,
    expected: impl Fn(usize, usize) -> anyhow::Result<Vec<u8>>,
    bar: &ProgressBar,
) -> anyhow::Result<Option<usize>> {
    let mut block = vec![0; BLOCK.min(len)];
    for at in (0..len).step_by(BLOCK) {
        block.truncate(len.saturating_sub(at));
        store.invalidate(at, block.len())?;
        store.read(at, &mut block)?;
        let expected = expected(at, block.len())?;
        if let Some(bad) = block.iter().zip(&expected).position(|(a, b)| a != b) {
            return Ok(Some(at.saturating_add(bad)));
        }
        bar.inc(block.len() as u64);
    }
    Ok(None)
}

/// `len` bytes of the pattern from `at`, a multiple of 8: word `w` is SplitMix64's output `w` for `seed`, stored
/// little-endian.
fn pattern(seed: u64, at: usize, len: usize) -> Vec<u8> {
    let words = (at as u64 / 8..).take(len.div_ceil(8));
    let mut bytes: Vec<u8> = words
        .flat_map(|word| splitmix(seed, word).to_le_bytes())
        .collect();
    bytes.truncate(len);
    bytes
}

fn splitmix(seed: u64, index: u64) -> u64 {
    let z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A bar for `len` bytes of `what`; nothing where stderr is not a terminal.
pub fn progress(what: &Path, len: u64) -> ProgressBar {
    let bar = ProgressBar::new(len).with_message(escaped(what.display()));
    match ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {eta}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix_reference_values() {
        // First outputs of SplitMix64 for seed 1234567, as its author publishes them.
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        assert_eq!([0, 1, 2].map(|index| splitmix(1_234_567, index)), expected);
    }

    #[test]
    fn pattern_does_not_depend_on_where_it_is_cut() {
        let whole = pattern(7, 0, 4099);
        assert_eq!(pattern(7, 64, 4035), whole[64..]);
        assert_ne!(pattern(8, 0, 4099), whole);
    }

    #[test]
    fn filled_files_verify_and_changed_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let len = (2 << 20) + 12345;
        let mut options = File::options();
        options.read(true).write(true).create_new(true);
        let file = options.open(&path).unwrap();
        file.set_len(len).unwrap();
        let (zeroes, bar) = (
            Seeded {
                path: path.clone(),
                seed: None,
            },
            ProgressBar::hidden(),
        );
        let seeded = |seed| Seeded {
            seed: Some(seed),
            ..zeroes.clone()
        };
        seeded(42).write(&file, &bar).unwrap();
        let verify = |seed| seeded(seed).verify(&bar, &Compared::default());
        verify(42).unwrap();
        zeroes.write(&file, &bar).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), vec![0; len as usize]);
        seeded(42).write(&file, &bar).unwrap();
        let text = |seed| verify(seed).unwrap_err().to_string();
        assert!(text(43).contains("byte 0 "));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[(2 << 20) + 12344] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let error = verify(42).unwrap_err();
        assert_eq!(crate::exit::code(&error), Exit::Corrupt);
        assert!(error.to_string().contains("byte 2109496 "), "{error}");
    }
}
