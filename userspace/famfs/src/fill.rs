// SPDX-License-Identifier: MIT OR Apache-2.0
//! A pattern that tells where it is: `famfs creat -r` writes it, `famfs verify` checks it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use famfs_fuse::map_file;
use indicatif::{ProgressBar, ProgressStyle};

use crate::exit::{fail, Exit};
use crate::log::Store;

/// Bytes handled at a time.
pub const BLOCK: usize = 1 << 20;

/// Options of verify.
#[derive(clap::Args)]
pub struct Args {
    /// Files that creat -r made.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Seed of the pattern.
    #[arg(short = 'S', long, default_value_t = 0)]
    seed: u64,
}

/// Compare files with the pattern.
pub fn verify(args: &Args) -> anyhow::Result<()> {
    for path in &args.files {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        let len = usize::try_from(file.metadata()?.len())?;
        let region = map_file(&file, len, false).with_context(|| path.display().to_string())?;
        let bar = progress(path, len as u64);
        if let Some(at) = mismatch(&region, len, args.seed, &bar)? {
            let text = format!(
                "{}: byte {at} is not that of the pattern with seed {}",
                path.display(),
                args.seed
            );
            return Err(fail(Exit::Corrupt, text));
        }
        bar.finish_and_clear();
    }
    Ok(())
}

/// Fill a file with the pattern.
pub fn fill(path: &Path, seed: u64) -> anyhow::Result<()> {
    write(path, |at, len| pattern(seed, at, len))
}

/// Fill a file with zeroes: the memory may hold what an earlier file system left.
pub fn zero(path: &Path) -> anyhow::Result<()> {
    write(path, |_, len| vec![0; len])
}

/// Write all of a file, and write it back from the caches. `block` gives the bytes at an offset.
fn write(path: &Path, block: impl Fn(usize, usize) -> Vec<u8>) -> anyhow::Result<()> {
    let context = || path.display().to_string();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .with_context(context)?;
    let len = usize::try_from(file.metadata()?.len())?;
    let region = map_file(&file, len, true).with_context(context)?;
    let bar = progress(path, len as u64);
    for at in (0..len).step_by(BLOCK) {
        let bytes = block(at, len.saturating_sub(at).min(BLOCK));
        file.write_all_at(&bytes, at as u64).with_context(context)?;
        region.flush(at, bytes.len())?;
        bar.inc(bytes.len() as u64);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Offset of the first byte that is not that of the pattern.
fn mismatch(
    store: &impl Store,
    len: usize,
    seed: u64,
    bar: &ProgressBar,
) -> anyhow::Result<Option<usize>> {
    let mut block = vec![0; BLOCK.min(len)];
    for at in (0..len).step_by(BLOCK) {
        block.truncate(len.saturating_sub(at));
        store.invalidate(at, block.len())?;
        store.read(at, &mut block)?;
        let expected = pattern(seed, at, block.len());
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

/// A bar for `len` bytes of `path`; nothing where stderr is not a terminal.
pub fn progress(path: &Path, len: u64) -> ProgressBar {
    let bar = ProgressBar::new(len).with_message(path.display().to_string());
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
        File::create(&path).unwrap().set_len(len).unwrap();
        fill(&path, 42).unwrap();
        let check = |seed| {
            verify(&Args {
                files: vec![path.clone()],
                seed,
            })
        };
        check(42).unwrap();
        zero(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), vec![0; len as usize]);
        fill(&path, 42).unwrap();
        assert!(check(43).unwrap_err().to_string().contains("byte 0 "));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[(2 << 20) + 12344] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let error = check(42).unwrap_err();
        assert_eq!(crate::exit::code(&error), Exit::Corrupt);
        assert!(error.to_string().contains("byte 2109496 "), "{error}");
    }
}
