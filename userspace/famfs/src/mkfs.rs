// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mkfs.famfs`: write superblock and log.

use std::path::{Path, PathBuf};

use anyhow::Context;
use famfs_media::{
    AddDaxdev, Body, Entry, LogHeader, PrimaryDax, Superblock, ALLOC_UNIT, DEVICE_SIZE_MIN,
    ENTRY_BYTES, LOG_LEN_MIN, LOG_OFFSET, SUPERBLOCK_BYTES,
};
use indicatif::ProgressBar;
use uuid::Uuid;

use crate::device::{self, DaxDevice};
use crate::exit::{fail, Exit};
use crate::fill::progress;
use crate::log::{self, Store};
use crate::mounted::Mounted;
use crate::server::meta::MetaAccess;
use crate::{size, system};

/// Options of mkfs.
#[derive(clap::Args)]
pub struct Args {
    /// Dax devices, such as /dev/dax0.0. Superblock and log go to the first one.
    #[arg(required = true, value_name = "DEVICE")]
    devices: Vec<PathBuf>,
    /// Overwrite a famfs.
    #[arg(short, long)]
    force: bool,
    /// Only wipe the superblock's magic: afterwards there is no famfs.
    #[arg(short, long, requires = "force")]
    kill: bool,
    /// Bytes of the log: a power of two from 8m, with k, m or g behind the number. 544 for each file or directory.
    #[arg(short, long, value_name = size::UNIT, default_value = "8m", value_parser = parse_log_len)]
    loglen: u64,
    /// Switch the devices to fsdev mode.
    #[arg(short = 'M', long)]
    set_daxmode: bool,
}

fn parse_log_len(text: &str) -> Result<u64, String> {
    let len = size::parse(text)?;
    if len < LOG_LEN_MIN || !len.is_power_of_two() {
        return Err("a log length is a power of two, 8m or more".into());
    }
    Ok(len)
}

/// Make a file system.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let devices = args
        .devices
        .iter()
        .map(|path| prepare(path, args.set_daxmode))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let sizes: Vec<_> = devices
        .iter()
        .map(|dev| (dev.path.as_path(), dev.size))
        .collect();
    check_sizes(&sizes, args.loglen)?;
    let mut accesses = Vec::new();
    for dev in &devices {
        let log_len = if accesses.is_empty() && !args.kill {
            args.loglen
        } else {
            LOG_LEN_MIN
        };
        accesses
            .push(MetaAccess::open(dev, log_len).with_context(|| dev.path.display().to_string())?);
    }
    for (dev, access) in devices.iter().zip(&accesses) {
        check_empty(&dev.path, access.superblock(), args.force)?;
    }
    let regions: Vec<_> = accesses
        .iter()
        .map(|access| (access.superblock(), access.log()))
        .collect();
    if args.kill {
        return regions
            .iter()
            .try_for_each(|(superblock, _)| wipe_magic(*superblock));
    }
    let plan = Plan::new(&devices, args.loglen, system::uuid_or_new()?);
    plan.write(&regions)?;
    plan.report();
    Ok(())
}

fn prepare(path: &Path, set_daxmode: bool) -> anyhow::Result<DaxDevice> {
    let mut dev = device::open(path)?;
    if Mounted::on_device(&dev.path)?.is_some() {
        return Err(fail(
            Exit::Device,
            format!("{} is mounted; unmount it first", dev.path.display()),
        ));
    }
    if set_daxmode {
        device::set_fsdev_mode(&mut dev)?;
    }
    dev.require_fsdev()?;
    Ok(dev)
}

fn check_sizes(devices: &[(&Path, u64)], log_len: u64) -> anyhow::Result<()> {
    let first = log_len
        .saturating_add(LOG_OFFSET)
        .saturating_add(ALLOC_UNIT)
        .max(DEVICE_SIZE_MIN);
    for (index, &(path, size)) in devices.iter().enumerate() {
        let needed = if index == 0 { first } else { DEVICE_SIZE_MIN };
        if size < needed {
            let text = format!(
                "{} has {size} bytes, at least {needed} are needed",
                path.display()
            );
            return Err(fail(Exit::Device, text));
        }
        if devices.iter().take(index).any(|&(other, _)| other == path) {
            return Err(fail(
                Exit::Usage,
                format!("{} is named twice", path.display()),
            ));
        }
    }
    Ok(())
}

/// Refuse to overwrite what this or another version could mount.
fn check_empty(path: &Path, superblock: &impl Store, force: bool) -> anyhow::Result<()> {
    let bytes = log::read_fresh(superblock, 0, SUPERBLOCK_BYTES)?;
    if force || Superblock::magic_version(&bytes).0 != Superblock::MAGIC {
        return Ok(());
    }
    let what = match Superblock::parse(&bytes) {
        Ok(sb) if Some(sb.system_uuid) == system::uuid() => {
            format!("a famfs (uuid {}) of this host", sb.fs_uuid)
        }
        Ok(sb) => format!(
            "a famfs (uuid {}) of another host (system uuid {})",
            sb.fs_uuid, sb.system_uuid
        ),
        // Only a valid superblock or one of another version is worth protecting.
        Err(famfs_media::SuperError::Version(version)) => format!("a famfs of version {version}"),
        Err(_) => return Ok(()),
    };
    Err(fail(
        Exit::Device,
        format!(
            "{} holds {what}; --force overwrites it, and all its files are lost",
            path.display()
        ),
    ))
}

fn wipe_magic(superblock: &impl Store) -> anyhow::Result<()> {
    superblock.write(0, &[0; 8])?;
    superblock.flush(0, 8)?;
    Ok(())
}

/// Everything that will be written.
struct Plan {
    /// One per device, the first one with the log.
    superblocks: Vec<Superblock>,
    header: LogHeader,
    entries: Vec<u8>,
}

impl Plan {
    fn new(devices: &[DaxDevice], log_len: u64, system: Uuid) -> Self {
        let fs = Uuid::new_v4();
        let superblocks = devices.iter().enumerate().map(|(index, dev)| {
            let name = dev.path.as_os_str().as_encoded_bytes().to_vec();
            let dax = PrimaryDax {
                size: dev.size,
                uuid: Uuid::nil(),
                name,
            };
            let sb = Superblock::new(log_len, fs, Uuid::new_v4(), system, dax);
            let flags = if index == 0 { 0 } else { Superblock::SECONDARY };
            Superblock { flags, ..sb }
        });
        Self::of(superblocks.collect())
    }

    fn of(superblocks: Vec<Superblock>) -> Self {
        let others = superblocks.iter().skip(1);
        let bodies = (1..).zip(others).map(|(index, sb): (u32, _)| {
            Body::AddDaxdev(AddDaxdev {
                size: sb.dax.size,
                uuid: sb.dev_uuid,
                index,
            })
        });
        let entries: Vec<u8> = (0..)
            .zip(bodies)
            .flat_map(|(seqnum, body)| Entry { seqnum, body }.encode())
            .collect();
        let count = (entries.len() / ENTRY_BYTES) as u64;
        let log_len = superblocks.first().map_or(LOG_LEN_MIN, |sb| sb.log_len);
        let header = LogHeader {
            next_seqnum: count,
            next_index: count,
            ..LogHeader::new(log_len)
        };
        Self {
            superblocks,
            header,
            entries,
        }
    }

    /// Write to the superblocks and logs of the devices. A file system is there once the first device's superblock
    /// is, so that comes last.
    fn write<S: Store>(&self, devices: &[(&S, &S)]) -> anyhow::Result<()> {
        for (superblock, _) in devices {
            wipe_magic(*superblock)?;
        }
        let all = self.superblocks.iter().zip(devices);
        for (sb, (superblock, log)) in all.rev() {
            if sb.is_secondary() {
                // A log of an earlier file system must not be taken for one of this.
                zero(*log, famfs_media::HEADER_BYTES, &ProgressBar::hidden())?;
            } else {
                self.write_log(*log)?;
            }
            let bytes = sb.encode();
            superblock.write(8, bytes.get(8..).unwrap_or_default())?;
            superblock.flush(0, bytes.len())?;
            superblock.write(0, bytes.get(..8).unwrap_or_default())?;
            superblock.flush(0, bytes.len())?;
        }
        Ok(())
    }

    fn write_log(&self, log: &impl Store) -> anyhow::Result<()> {
        let bar = progress(Path::new("log"), self.header.log_len);
        zero(log, usize::try_from(self.header.log_len)?, &bar)?;
        bar.finish_and_clear();
        let bytes = [&self.header.encode()[..], &self.entries].concat();
        log.write(0, &bytes)?;
        log.flush(0, bytes.len())?;
        Ok(())
    }

    fn report(&self) {
        let Some(sb) = self.superblocks.first() else {
            return;
        };
        println!("famfs {} made", sb.fs_uuid);
        for (index, sb) in self.superblocks.iter().enumerate() {
            let name = String::from_utf8_lossy(&sb.dax.name);
            println!(
                "  daxdev {index}  {name}, {}",
                size::show(sb.dax.size, true)
            );
        }
        let capacity = self.header.last_index.saturating_add(1);
        println!(
            "  log       {}, {capacity} entries",
            size::show(sb.log_len, true)
        );
    }
}

/// Zero and flush the first `len` bytes.
fn zero(store: &impl Store, len: usize, bar: &ProgressBar) -> anyhow::Result<()> {
    let block = vec![0; len.min(1 << 20)];
    let mut at = 0usize;
    while at < len {
        let part = block
            .get(..len.saturating_sub(at).min(block.len()))
            .unwrap_or_default();
        store.write(at, part)?;
        store.flush(at, part.len())?;
        at = at.saturating_add(part.len());
        bar.inc(part.len() as u64);
    }
    Ok(())
}

#[cfg(test)]
#[path = "mkfs_tests.rs"]
pub mod tests;
