// SPDX-License-Identifier: MIT OR Apache-2.0
//! The module itself: what changes when it is loaded, its KUnit tests, and a kernel that cannot take it.

use std::path::Path;

use anyhow::{ensure, Context, Result};
use rustix::io::Errno;

use super::fixture::ensure_eq;
use super::{Skip, Test};
use crate::channel::Channel;
use crate::module::{self, FAMFS, FAMFS_KUNIT};
use crate::runner::Guest;
use crate::server::{Serve, TestFs};

pub const MODULE: &[(&str, Test)] = &[
    ("offer_follows_the_module", offer_follows_the_module),
    ("bad_parameter_is_refused", bad_parameter_is_refused),
    ("no_tests_in_famfs_ko", no_tests_in_famfs_ko),
];
pub const KUNIT: &[(&str, Test)] = &[("suites", suites)];
pub const STOCK: &[(&str, Test)] = &[("insmod_names_the_missing_symbol", insmod_on_stock)];

/// FUSE_DAX_FMAP is offered while the module is loaded, not before and not after.
fn offer_follows_the_module(_guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let offered = || {
        Ok::<_, anyhow::Error>(
            TestFs::mount(Serve {
                plain: true,
                ..Serve::default()
            })?
            .fmap_offered(),
        )
    };
    ensure!(!offered()?, "FUSE_DAX_FMAP was offered without the module");
    module::insmod(FAMFS)?.context("insmod famfs.ko")?;
    ensure!(offered()?, "FUSE_DAX_FMAP was not offered with the module");
    ensure_eq!(module::insmod(FAMFS)?, Err(Errno::EXIST), "a second insmod");
    module::rmmod("famfs").context("rmmod famfs")?;
    ensure!(!offered()?, "FUSE_DAX_FMAP was offered after rmmod");
    Ok(())
}

fn bad_parameter_is_refused(_guest: &Guest, _channel: &mut Channel) -> Result<()> {
    for parameters in [c"failure_range=2", c"failure_range=x"] {
        ensure_eq!(
            module::insmod_with(FAMFS, parameters)?,
            Err(Errno::INVAL),
            "insmod famfs.ko {parameters:?}"
        );
    }
    ensure!(
        !module::is_loaded("famfs"),
        "the module is loaded all the same"
    );
    Ok(())
}

fn no_tests_in_famfs_ko(_guest: &Guest, _channel: &mut Channel) -> Result<()> {
    module::ensure_famfs()?;
    let suites: Vec<_> = std::fs::read_dir("/sys/kernel/debug/kunit")
        .context("debugfs of KUnit")?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    ensure_eq!(
        suites,
        Vec::<String>::new(),
        "KUnit suites after insmod famfs.ko"
    );
    Ok(())
}

/// Loads the KUnit module, which runs its suites, and passes their results on.
fn suites(_guest: &Guest, channel: &mut Channel) -> Result<()> {
    ensure!(
        Path::new(FAMFS_KUNIT).exists(),
        "famfs_kunit.ko is not in the image: give its path to the harness (KUNIT_KO)"
    );
    let mut kmsg = module::KernelLog::open()?;
    module::insmod(FAMFS_KUNIT)?.context("insmod famfs_kunit.ko")?;
    let (mut results, mut failed) = (0, 0);
    for line in kmsg.new_lines() {
        let body = line.trim_start();
        results += usize::from(body.starts_with("ok ") || body.starts_with("not ok "));
        failed += usize::from(body.starts_with("not ok "));
        if is_ktap(body) {
            channel.line(&format!("    {line}"));
        } else if body.starts_with("# ") && body.contains("FAILED") {
            channel.why(body);
        }
    }
    ensure!(results > 0, "insmod famfs_kunit.ko printed no result");
    ensure_eq!(failed, 0, "failed KUnit tests and suites");
    Ok(())
}

fn is_ktap(body: &str) -> bool {
    ["ok ", "not ok ", "KTAP version", "1..", "# Subtest: "]
        .iter()
        .any(|start| body.starts_with(start))
}

/// A kernel without the patch refuses the module, and its log names what is missing.
fn insmod_on_stock(_guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let mut kmsg = module::KernelLog::open()?;
    if !Path::new(FAMFS).exists() {
        return Err(Skip("famfs.ko is not in the image".to_owned()).into());
    }
    ensure_eq!(
        module::insmod(FAMFS)?,
        Err(Errno::NOENT),
        "insmod on a kernel without the patch"
    );
    let log = kmsg.new_lines();
    ensure!(
        log.iter()
            .any(|line| line.contains("famfs: Unknown symbol fuse_fmap_")),
        "the kernel's log names no fuse_fmap symbol: {log:?}"
    );
    ensure!(
        !module::is_loaded("famfs"),
        "the module is loaded all the same"
    );
    Ok(())
}
