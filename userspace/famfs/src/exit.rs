// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exit codes, one table for all verbs (docs/cli.md).

use std::fmt::Display;
use std::io;

use famfs_media::{AllocError, LogError, SuperError};
use thiserror::Error;

use crate::device::DeviceError;

/// Why a verb failed, as scripts see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Nothing more special applies.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// There is no famfs at that place.
    NoFamfs = 3,
    /// The device is missing, too small, in the wrong mode, in use, or holds something.
    Device = 4,
    /// A privilege is missing, or this host is not the master.
    Permission = 5,
    /// The kernel lacks the patch or the module.
    Kernel = 6,
    /// No space on the memory or in the log.
    NoSpace = 7,
    /// Superblock, log or data are not what they should be.
    Corrupt = 8,
}

/// What an exit code of another process of ours means.
pub fn of_code(code: i32) -> Exit {
    use Exit::{Corrupt, Device, Kernel, NoFamfs, NoSpace, Permission, Usage};
    let exits = [Usage, NoFamfs, Device, Permission, Kernel, NoSpace, Corrupt];
    exits
        .into_iter()
        .find(|&exit| code == exit as i32)
        .unwrap_or(Exit::Failed)
}

/// The table, for --help.
pub const TABLE: &str = "\
Exit codes:
  0  done
  1  failed: none of the below
  2  usage: the command line is wrong
  3  no famfs: there is no famfs at that place
  4  device: missing, too small, in the wrong mode, in use, or holds something
  5  permission: a privilege is missing, or this host is not the master
  6  kernel: it lacks the fuse patch, the famfs module or a driver
  7  no space: on the memory or in the log; nothing was changed
  8  corrupt: superblock, log or data are not what they should be";

/// An error that knows its exit code.
#[derive(Debug, Error)]
#[error("{message}")]
pub struct Failure {
    exit: Exit,
    message: String,
}

/// An error with an exit code.
pub fn fail(exit: Exit, message: impl Display) -> anyhow::Error {
    Failure {
        exit,
        message: message.to_string(),
    }
    .into()
}

/// The exit code of an error: that of the outermost cause that has one.
pub fn code(error: &anyhow::Error) -> Exit {
    error.chain().find_map(known).unwrap_or(Exit::Failed)
}

fn known(cause: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    if let Some(failure) = cause.downcast_ref::<Failure>() {
        return Some(failure.exit);
    }
    if let Some(error) = cause.downcast_ref::<DeviceError>() {
        return Some(match error {
            DeviceError::Io(_, error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Exit::Permission
            }
            DeviceError::NoFsdevDriver(_) => Exit::Kernel,
            _ => Exit::Device,
        });
    }
    if let Some(error) = cause.downcast_ref::<SuperError>() {
        return Some(match error {
            SuperError::Magic(_) | SuperError::TooShort(_) | SuperError::Version(_) => {
                Exit::NoFamfs
            }
            _ => Exit::Corrupt,
        });
    }
    if let Some(error) = cause.downcast_ref::<LogError>() {
        return Some(match error {
            LogError::Full { .. } => Exit::NoSpace,
            _ => Exit::Corrupt,
        });
    }
    if let Some(error) = cause.downcast_ref::<AllocError>() {
        return Some(match error {
            AllocError::NoSpace { .. } | AllocError::NoStrips { .. } => Exit::NoSpace,
            _ => Exit::Usage,
        });
    }
    let error = cause.downcast_ref::<io::Error>()?;
    (error.kind() == io::ErrorKind::PermissionDenied).then_some(Exit::Permission)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn outermost_cause_decides() {
        let inner = Err::<(), _>(SuperError::Magic(0));
        assert_eq!(code(&inner.context("reading").unwrap_err()), Exit::NoFamfs);
        let crc = SuperError::Crc {
            stored: 1,
            computed: 2,
        };
        assert_eq!(code(&crc.into()), Exit::Corrupt);
        assert_eq!(
            code(&fail(Exit::Kernel, "x").context("mount")),
            Exit::Kernel
        );
        assert_eq!(code(&anyhow::anyhow!("x")), Exit::Failed);
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        assert_eq!(code(&denied.into()), Exit::Permission);
        let full = LogError::Full {
            used: 1,
            capacity: 1,
            wanted: 1,
        };
        assert_eq!(code(&full.into()), Exit::NoSpace);
        let space = AllocError::NoSpace {
            wanted: 1,
            longest: 0,
        };
        assert_eq!(code(&space.into()), Exit::NoSpace);
        assert_eq!(code(&AllocError::Empty.into()), Exit::Usage);
    }

    #[test]
    fn table_names_every_code() {
        for exit in [
            Exit::Failed,
            Exit::Usage,
            Exit::NoFamfs,
            Exit::Device,
            Exit::Permission,
        ] {
            assert!(TABLE.contains(&format!("\n  {}  ", exit as u8)));
        }
    }
}
