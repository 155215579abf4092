// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which dax devices of this host are the daxdevs of a file system. Their paths differ from host to host; the uuids in
//! their superblocks do not.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Context;
use famfs_media::{Daxdev, Replay, Superblock, LOG_LEN_MIN, SUPERBLOCK_BYTES};

use super::meta::MetaAccess;
use crate::device::{self, DaxDevice, DeviceError, Mode};
use crate::exit::{fail, Exit};
use crate::log;

/// The daxdevs of the file system by index. `given` has the first one, and may have others, in any order; else all of
/// the host are looked at that are in fsdev mode.
pub fn find(
    superblock: &Superblock,
    replay: &Replay,
    given: &[DaxDevice],
) -> anyhow::Result<Vec<DaxDevice>> {
    let (first, others) = given.split_first().context("no device was given")?;
    let (wanted, total) = (replay.daxdevs.len(), given.len());
    if !others.is_empty() && others.len() != wanted {
        let on = wanted.saturating_add(1);
        let text = format!("{total} devices were given, the file system is on {on}");
        return Err(fail(Exit::Usage, text));
    }
    let mut found = vec![first.clone()];
    if wanted == 0 {
        return Ok(found);
    }
    let candidates = match others {
        [] => of_host(superblock, first)?,
        _ => others
            .iter()
            .map(|device| Ok((device.clone(), identity(device)?)))
            .collect::<anyhow::Result<_>>()?,
    };
    for index in (1..).take(wanted) {
        let daxdev = replay.daxdevs.iter().find(|daxdev| daxdev.index == index);
        let daxdev = daxdev.with_context(|| format!("the log has no daxdev {index}"))?;
        found.push(pick(superblock, daxdev, &candidates)?);
    }
    Ok(found)
}

/// Which daxdevs are no longer what is at these paths, by index, where the mount has gone on without a server. One in
/// use is held by this mount, which asks for it no more, or by another, which keeps it from this one.
pub fn lost(superblock: &Superblock, daxdevs: &[Daxdev], paths: &[PathBuf]) -> BTreeSet<u16> {
    let mut lost = BTreeSet::new();
    for (index, path) in (0u16..).zip(paths).skip(1) {
        let daxdev = daxdevs
            .iter()
            .find(|daxdev| daxdev.index == u32::from(index));
        if let Err(error) = still_is(superblock, daxdev, || identity(&device::open(path)?)) {
            let path = path.display();
            tracing::error!(
                "files on daxdev {index} can't be opened until the next mount: {path}: {error:#}"
            );
            lost.insert(index);
        }
    }
    lost
}

/// Whether the device that `look` gives the superblock of is `daxdev`, or is in use.
fn still_is(
    superblock: &Superblock,
    daxdev: Option<&Daxdev>,
    look: impl FnOnce() -> anyhow::Result<Superblock>,
) -> anyhow::Result<()> {
    let found = match look() {
        Err(error) if is_busy(&error) => return Ok(()),
        found => found?,
    };
    let uuids = (found.fs_uuid, found.dev_uuid);
    match daxdev {
        Some(daxdev) if uuids == (superblock.fs_uuid, daxdev.uuid) => Ok(()),
        _ => anyhow::bail!("it has another uuid by now, {}", found.dev_uuid),
    }
}

fn is_busy(error: &anyhow::Error) -> bool {
    let mut causes = error.chain();
    causes.any(|cause| matches!(cause.downcast_ref(), Some(DeviceError::Busy(_))))
}

/// The dax devices of this host that could be further daxdevs, with their superblocks. One that can't be looked at is
/// none: another mount has it.
fn of_host(
    superblock: &Superblock,
    first: &DaxDevice,
) -> anyhow::Result<Vec<(DaxDevice, Superblock)>> {
    let all = device::all().context("looking for the other dax devices")?;
    let usable = all
        .into_iter()
        .filter(|device| device.mode == Mode::Fsdev && device.name != first.name);
    let looked_at = usable.filter_map(|device| match identity(&device) {
        Ok(found) => Some((device, found)),
        Err(error) => {
            tracing::info!("{} is passed over: {error:#}", device.path.display());
            None
        }
    });
    Ok(looked_at
        .filter(|(_, found)| found.fs_uuid == superblock.fs_uuid)
        .collect())
}

/// The superblock of a device that nobody has mounted.
fn identity(device: &DaxDevice) -> anyhow::Result<Superblock> {
    let context = || device.path.display().to_string();
    let access = MetaAccess::open(device, LOG_LEN_MIN).with_context(context)?;
    let bytes = log::read_fresh(access.superblock(), 0, SUPERBLOCK_BYTES)?;
    Superblock::parse(&bytes).with_context(context)
}

/// The one device that is `daxdev`.
fn pick(
    superblock: &Superblock,
    daxdev: &Daxdev,
    candidates: &[(DaxDevice, Superblock)],
) -> anyhow::Result<DaxDevice> {
    let Daxdev { index, size, uuid } = daxdev;
    let is_it = |found: &Superblock| (found.fs_uuid, found.dev_uuid) == (superblock.fs_uuid, *uuid);
    let mut fitting = candidates.iter().filter(|(_, found)| is_it(found));
    let (device, other) = (fitting.next(), fitting.next());
    let path = |(device, _): &(DaxDevice, Superblock)| device.path.display().to_string();
    let text = match (device, other) {
        (Some(device), Some(other)) => {
            let (one, two) = (path(device), path(other));
            format!("{one} and {two} are both daxdev {index} (uuid {uuid}): one is a copy; name the right one with --daxdev")
        }
        (Some(device), None) if device.0.size != *size => {
            let (name, found) = (path(device), device.0.size);
            format!("{name} is daxdev {index}, but has {found} bytes, the log says {size}")
        }
        (Some((device, _)), None) => return Ok(device.clone()),
        (None, _) => format!(
            "daxdev {index} (uuid {uuid}, {size} bytes) is not there: of the devices looked at none is it. \
             --daxdev names it, and with --set-daxmode switches it to fsdev mode"
        ),
    };
    Err(fail(Exit::Device, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use famfs_media::PrimaryDax;
    use uuid::Uuid;

    fn superblock(fs: u128, dev: u128) -> Superblock {
        let dax = PrimaryDax {
            size: 0,
            uuid: Uuid::nil(),
            name: vec![],
        };
        let [fs, dev] = [fs, dev].map(Uuid::from_u128);
        Superblock::new(LOG_LEN_MIN, fs, dev, Uuid::nil(), dax)
    }

    #[test]
    fn a_path_may_lead_to_another_device_by_now() {
        let daxdev = Daxdev {
            index: 1,
            size: 64 << 20,
            uuid: Uuid::from_u128(11),
        };
        let found = |look: anyhow::Result<Superblock>| {
            still_is(&superblock(1, 10), Some(&daxdev), || look).is_ok()
        };
        assert!(found(Ok(superblock(1, 11))));
        assert!(!found(Ok(superblock(1, 12))));
        assert!(!found(Ok(superblock(2, 11))));
        let error = |error: DeviceError| Err(anyhow::Error::from(error).context("/dev/dax1.0"));
        assert!(found(error(DeviceError::Busy("/dev/dax1.0".into()))));
        assert!(!found(error(DeviceError::Missing("/dev/dax1.0".into()))));
        assert!(still_is(&superblock(1, 10), None, || Ok(superblock(1, 11))).is_err());
    }

    #[test]
    fn a_device_is_known_by_its_uuids() {
        let candidates = [(1, 11), (2, 12), (1, 12), (1, 13), (1, 13)];
        let candidates: Vec<_> = (0..)
            .zip(candidates)
            .map(|(n, (fs, dev))| (DaxDevice::for_tests(n, 64 << 20), superblock(fs, dev)))
            .collect();
        let pick = |uuid, size| {
            let uuid = Uuid::from_u128(uuid);
            let daxdev = Daxdev {
                index: 1,
                size,
                uuid,
            };
            pick(&superblock(1, 10), &daxdev, &candidates)
        };
        assert_eq!(pick(12, 64 << 20).unwrap().name, "dax2.0");
        let error = |uuid, size| {
            let error = pick(uuid, size).unwrap_err();
            assert_eq!(crate::exit::code(&error), Exit::Device);
            error.to_string()
        };
        assert!(error(14, 64 << 20).contains("is not there"));
        assert_eq!(
            error(13, 64 << 20),
            "/dev/dax3.0 and /dev/dax4.0 are both daxdev 1 (uuid 00000000-0000-0000-0000-00000000000d): one is a copy; name the right one with --daxdev"
        );
        assert!(error(12, 32 << 20).contains("but has 67108864 bytes, the log says 33554432"));
    }
}
