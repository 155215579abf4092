// SPDX-License-Identifier: MIT OR Apache-2.0
//! `famfs clear-error`: let a mount use memory again that was repaired.

use std::path::PathBuf;

use anyhow::Context;

use crate::mounted;
use crate::server::control;

/// Options of clear-error.
#[derive(clap::Args)]
pub struct Args {
    /// Mount point, or dax device of a mount.
    path: PathBuf,
}

/// Have the kernel forget the memory errors of a mount.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mount = mounted::mount_at(&args.path)?;
    let devices = control::clear_error(&mount.source).with_context(|| {
        let point = mount.point.display();
        format!("nothing was cleared; to umount {point} and mount it again clears errors too")
    })?;
    println!(
        "memory errors of {} are forgotten; what is broken still is found by the next access",
        devices.join(" ")
    );
    Ok(())
}
