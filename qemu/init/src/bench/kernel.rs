// SPDX-License-Identifier: MIT OR Apache-2.0
//! iomap_begin alone, as famfs_kunit.ko measures it inside the kernel.

use anyhow::{ensure, Context, Result};

use super::Rows;
use crate::channel::Channel;
use crate::module::{insmod_with, rmmod, KernelLog, FAMFS_KUNIT};

/// Loads the module, which prints a line for each kind of map. The kernel was booted with kunit.enable=0, so that no
/// suite runs.
pub fn iomap_begin(channel: &mut Channel) -> Result<()> {
    let mut kmsg = KernelLog::open()?;
    insmod_with(FAMFS_KUNIT, c"cost=1")?.context("insmod famfs_kunit.ko")?;
    let mut count = 0;
    for line in kmsg.new_lines() {
        let Some((_, fields)) = line.split_once(": cost ") else {
            continue;
        };
        let field = |key: &str| {
            let value = |word: &str| Some(word.strip_prefix(key)?.strip_prefix('=')?.to_owned());
            fields
                .split(' ')
                .find_map(value)
                .with_context(|| format!("no {key} in {line:?}"))
        };
        let (kind, extents, daxdevs) = (field("kind")?, field("extents")?, field("daxdevs")?);
        let subject = match kind.as_str() {
            "single" => "one extent".to_owned(),
            "interleaved" => format!("interleaved, {extents} strips, daxdevs: {daxdevs}"),
            "striped" => format!("{extents} interleaved extents"),
            _ => format!("{extents} {kind}, daxdevs: {daxdevs}"),
        };
        let mut rows = Rows {
            channel,
            subject: &subject,
        };
        rows.add("iomap_begin", field("instructions")?.parse()?);
        count += 1;
    }
    ensure!(count > 0, "famfs_kunit.ko printed no figure");
    rmmod("famfs_kunit").context("rmmod famfs_kunit")
}
