// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which dax devices of this host are the daxdevs of a file system. Their paths differ from host to host; the uuids in
//! their superblocks do not.
//!
//! Other hosts can write the superblock and the log that say which uuids those are, so that they may name a device of
//! any file system here. The first one of a file system, which has its log, is never a further one of another.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Context;
use famfs_media::{
    Daxdev, LogHeader, Replay, Superblock, HEADER_BYTES, LOG_LEN_MIN, SUPERBLOCK_BYTES,
};

use super::meta::MetaAccess;
use crate::device::{self, DaxDevice, DeviceError, Mode};
use crate::exit::{fail, Exit};
use crate::log;

/// What a device says that it is.
struct Identity {
    superblock: Superblock,
    /// It has a log, and so is the first daxdev of a file system.
    has_log: bool,
}

impl Identity {
    /// Of a device that begins with `superblock`, with `log_header` where the log would be.
    fn of(superblock: Superblock, log_header: &[u8]) -> Self {
        // Upstream's tools give no device the flag. Without it, a log tells the first one from the others.
        let has_log =
            !superblock.is_secondary() && LogHeader::parse(log_header, superblock.log_len).is_ok();
        Self {
            superblock,
            has_log,
        }
    }

    fn is(&self, superblock: &Superblock, daxdev: &Daxdev) -> bool {
        let Superblock {
            fs_uuid, dev_uuid, ..
        } = self.superblock;
        (fs_uuid, dev_uuid) == (superblock.fs_uuid, daxdev.uuid)
    }
}

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

/// Whether the device that `look` gives the identity of is `daxdev`, or is in use.
fn still_is(
    superblock: &Superblock,
    daxdev: Option<&Daxdev>,
    look: impl FnOnce() -> anyhow::Result<Identity>,
) -> anyhow::Result<()> {
    let found = match look() {
        Err(error) if is_busy(&error) => return Ok(()),
        found => found?,
    };
    match daxdev {
        Some(daxdev) if found.is(superblock, daxdev) => match found.has_log {
            true => anyhow::bail!("it has a log of its own by now"),
            false => Ok(()),
        },
        _ => {
            let uuid = found.superblock.dev_uuid;
            anyhow::bail!("it has another uuid by now, {uuid}")
        }
    }
}

fn is_busy(error: &anyhow::Error) -> bool {
    let mut causes = error.chain();
    causes.any(|cause| matches!(cause.downcast_ref(), Some(DeviceError::Busy(_))))
}

/// The dax devices of this host that could be further daxdevs. One that can't be looked at is none: another mount has
/// it.
fn of_host(
    superblock: &Superblock,
    first: &DaxDevice,
) -> anyhow::Result<Vec<(DaxDevice, Identity)>> {
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
        .filter(|(_, found)| found.superblock.fs_uuid == superblock.fs_uuid)
        .collect())
}

/// Looks at a device that nobody has mounted.
fn identity(device: &DaxDevice) -> anyhow::Result<Identity> {
    let context = || device.path.display().to_string();
    let access = MetaAccess::open(device, LOG_LEN_MIN).with_context(context)?;
    let bytes = log::read_fresh(access.superblock(), 0, SUPERBLOCK_BYTES)?;
    let superblock = Superblock::parse(&bytes).with_context(context)?;
    let log_header = log::read_fresh(access.log(), 0, HEADER_BYTES)?;
    Ok(Identity::of(superblock, &log_header))
}

/// The one device that is `daxdev`.
fn pick(
    superblock: &Superblock,
    daxdev: &Daxdev,
    candidates: &[(DaxDevice, Identity)],
) -> anyhow::Result<DaxDevice> {
    let Daxdev { index, size, uuid } = daxdev;
    let named = candidates.iter();
    let named = named.filter(|(_, found)| found.is(superblock, daxdev));
    let (firsts, fitting): (Vec<_>, Vec<_>) = named.partition(|(_, found)| found.has_log);
    let mut fitting = fitting.into_iter();
    let (device, other) = (fitting.next(), fitting.next());
    let path = |(device, _): &(DaxDevice, Identity)| device.path.display().to_string();
    let text = match (device, other, firsts.first()) {
        (Some(device), Some(other), _) => {
            let (one, two) = (path(device), path(other));
            format!("{one} and {two} are both daxdev {index} (uuid {uuid}): one is a copy; name the right one with --daxdev")
        }
        (Some(device), None, _) if device.0.size != *size => {
            let (name, found) = (path(device), device.0.size);
            format!("{name} is daxdev {index}, but has {found} bytes, the log says {size}")
        }
        (Some((device, _)), None, _) => return Ok(device.clone()),
        (None, _, Some(first)) => {
            let name = path(first);
            format!(
                "{name} has the uuid of daxdev {index}, but also a log of its own, which only the first daxdev of a \
                 file system has: it is not taken. `famfs fsck {name}` shows what is on it; whoever wrote the log of \
                 this file system may be after that"
            )
        }
        (None, _, None) => format!(
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

    /// What a further daxdev is: its data begins where another has its log.
    fn member(fs: u128, dev: u128) -> Identity {
        Identity::of(superblock(fs, dev), &[0; HEADER_BYTES])
    }

    /// A device with a log.
    fn first(fs: u128, dev: u128) -> Identity {
        Identity::of(superblock(fs, dev), &LogHeader::new(LOG_LEN_MIN).encode())
    }

    #[test]
    fn a_path_may_lead_to_another_device_by_now() {
        let daxdev = Daxdev {
            index: 1,
            size: 64 << 20,
            uuid: Uuid::from_u128(11),
        };
        let found = |look: anyhow::Result<Identity>| {
            still_is(&superblock(1, 10), Some(&daxdev), || look).is_ok()
        };
        assert!(found(Ok(member(1, 11))));
        assert!(!found(Ok(member(1, 12))));
        assert!(!found(Ok(member(2, 11))));
        assert!(!found(Ok(first(1, 11))));
        let error = |error: DeviceError| Err(anyhow::Error::from(error).context("/dev/dax1.0"));
        assert!(found(error(DeviceError::Busy("/dev/dax1.0".into()))));
        assert!(!found(error(DeviceError::Missing("/dev/dax1.0".into()))));
        assert!(still_is(&superblock(1, 10), None, || Ok(member(1, 11))).is_err());
    }

    #[test]
    fn a_device_is_known_by_its_uuids() {
        let candidates = [(1, 11), (2, 12), (1, 12), (1, 13), (1, 13)];
        let candidates: Vec<_> = (0..)
            .zip(candidates)
            .map(|(n, (fs, dev))| (DaxDevice::for_tests(n, 64 << 20), member(fs, dev)))
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

    /// The superblock and the log that name it can be forged by another host.
    #[test]
    fn the_first_device_of_a_file_system_is_no_further_one() {
        let daxdev = Daxdev {
            index: 1,
            size: 64 << 20,
            uuid: Uuid::from_u128(11),
        };
        let pick = |identities: Vec<Identity>| {
            let devices = (0..).map(|n| DaxDevice::for_tests(n, 64 << 20));
            let candidates: Vec<_> = devices.zip(identities).collect();
            pick(&superblock(1, 10), &daxdev, &candidates)
        };
        let error = pick(vec![first(1, 11)]).unwrap_err();
        assert_eq!(crate::exit::code(&error), Exit::Device);
        assert_eq!(
            error.to_string(),
            "/dev/dax0.0 has the uuid of daxdev 1, but also a log of its own, which only the first daxdev of a file \
             system has: it is not taken. `famfs fsck /dev/dax0.0` shows what is on it; whoever wrote the log of this \
             file system may be after that"
        );
        let both = pick(vec![first(1, 11), member(1, 11)]).unwrap();
        assert_eq!(both.name, "dax1.0");
        // By the flag it is known what lies behind the superblock of a further one: data.
        let flagged = Superblock {
            flags: Superblock::SECONDARY,
            ..superblock(1, 11)
        };
        let data = LogHeader::new(LOG_LEN_MIN).encode();
        assert!(pick(vec![Identity::of(flagged, &data)]).is_ok());
    }
}
