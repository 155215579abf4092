// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel itself says: iomap_begin alone, as famfs_kunit.ko measures it, and the names in famfs.ko.

use std::fs;

use anyhow::{ensure, Context, Result};

use super::Report;
use crate::module::{insmod_with, rmmod, KernelLog, FAMFS_KUNIT};

/// Loads the module, which prints a line for each kind of map. The kernel was booted with kunit.enable=0, so that no
/// suite runs. Nothing of it can be traced.
pub fn iomap_begin(report: &mut Report) -> Result<()> {
    if !report.traced.is_empty() {
        return Ok(());
    }
    report.channel.step("iomap_begin alone");
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
        let instructions = field("instructions")?.parse()?;
        report.channel.row(&subject, "iomap_begin", instructions);
        count += 1;
    }
    ensure!(count > 0, "famfs_kunit.ko printed no figure");
    rmmod("famfs_kunit").context("rmmod famfs_kunit")
}

/// Lines of /proc/kallsyms, "ADDRESS TYPE NAME", for what lies in famfs.ko.
pub fn module_symbols() -> Result<Vec<String>> {
    let text = fs::read_to_string("/proc/kallsyms").context("/proc/kallsyms")?;
    let of_module = |line: &str| line.strip_suffix("\t[famfs]").map(str::to_owned);
    Ok(text.lines().filter_map(of_module).collect())
}
