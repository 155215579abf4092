// SPDX-License-Identifier: MIT OR Apache-2.0
//! Requests: from the bytes that `/dev/fuse` gives to typed operations.

use crate::abi::{GetxattrIn, InHeader, InitIn, ReadIn, SetattrIn};
use crate::argument::Arguments;
use crate::opcode::Opcode;

/// A request. Names and values borrow from the buffer it was read into.
#[derive(Debug)]
pub struct Request<'a> {
    /// The header as it came.
    pub header: InHeader,
    /// The opcode, `None` for a number that the table does not have.
    pub opcode: Option<Opcode>,
    /// What is asked.
    pub operation: Operation<'a>,
}

/// What a request asks, with the arguments that famfs uses.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Operation<'a> {
    Init(InitIn),
    Destroy,
    Lookup {
        name: &'a [u8],
    },
    /// FORGET and BATCH_FORGET: no reply is wanted.
    Forget,
    /// INTERRUPT: no reply is wanted.
    Interrupt,
    GetAttr,
    SetAttr(SetattrIn),
    Open,
    Release,
    OpenDir,
    ReadDir(ReadIn),
    ReadDirPlus(ReadIn),
    ReleaseDir,
    StatFs,
    GetXattr {
        name: &'a [u8],
        size: u32,
    },
    Create,
    /// The header's nodeid is the inode. `buffer` is the size of the kernel's reply buffer where the request says it
    /// (push generation, docs/abi.md section 1.4).
    GetFmap {
        buffer: Option<u32>,
    },
    /// The header's nodeid is the index of the device.
    GetDaxdev,
    /// Everything that famfs does not implement.
    Unsupported,
}

/// A request that cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Not even a header, or one that contradicts the length: there is nobody to answer to.
    Header,
    /// The header is good, the arguments are not: answer EINVAL to this `unique`.
    Arguments {
        /// Identifies the request.
        unique: u64,
    },
}

impl<'a> Request<'a> {
    /// Decodes one whole request.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut arguments = Arguments::new(bytes);
        let header: InHeader = arguments.take().ok_or(Malformed::Header)?;
        if usize::try_from(header.len) != Ok(bytes.len()) {
            return Err(Malformed::Header);
        }
        let opcode = Opcode::from_number(header.opcode);
        let operation = Operation::decode(opcode, arguments).ok_or(Malformed::Arguments {
            unique: header.unique,
        })?;
        Ok(Self {
            header,
            opcode,
            operation,
        })
    }
}

impl<'a> Operation<'a> {
    fn decode(opcode: Option<Opcode>, mut arguments: Arguments<'a>) -> Option<Self> {
        let Some(opcode) = opcode else {
            return Some(Self::Unsupported);
        };
        Some(match opcode {
            Opcode::Init => Self::Init(arguments.take()?),
            Opcode::Destroy => Self::Destroy,
            Opcode::Lookup => Self::Lookup {
                name: arguments.name()?,
            },
            Opcode::Forget | Opcode::BatchForget => Self::Forget,
            Opcode::Interrupt => Self::Interrupt,
            Opcode::GetAttr => Self::GetAttr,
            Opcode::SetAttr => Self::SetAttr(arguments.take()?),
            Opcode::Open => Self::Open,
            Opcode::Release => Self::Release,
            Opcode::OpenDir => Self::OpenDir,
            Opcode::ReadDir => Self::ReadDir(arguments.take()?),
            Opcode::ReadDirPlus => Self::ReadDirPlus(arguments.take()?),
            Opcode::ReleaseDir => Self::ReleaseDir,
            Opcode::StatFs => Self::StatFs,
            Opcode::GetXattr => {
                let GetxattrIn { size, .. } = arguments.take()?;
                Self::GetXattr {
                    name: arguments.name()?,
                    size,
                }
            }
            Opcode::Create => Self::Create,
            Opcode::GetFmap if arguments.is_empty() => Self::GetFmap { buffer: None },
            Opcode::GetFmap => {
                let GetxattrIn { size, .. } = arguments.take()?;
                Self::GetFmap { buffer: Some(size) }
            }
            Opcode::GetDaxdev => Self::GetDaxdev,
            _ => Self::Unsupported,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    fn request(opcode: u32, arguments: &[u8]) -> Vec<u8> {
        let len = u32::try_from(40 + arguments.len()).unwrap();
        let header = InHeader {
            len,
            opcode,
            unique: 77,
            nodeid: 5,
            ..InHeader::default()
        };
        [header.as_bytes(), arguments].concat()
    }

    #[test]
    fn get_fmap_tells_the_generations_apart() {
        let pull = request(54, &[]);
        let push = request(54, &[0, 16, 0, 0, 0, 0, 0, 0]);
        assert!(matches!(
            Request::decode(&pull).unwrap().operation,
            Operation::GetFmap { buffer: None }
        ));
        assert!(matches!(
            Request::decode(&push).unwrap().operation,
            Operation::GetFmap { buffer: Some(4096) }
        ));
        assert_eq!(
            Request::decode(&request(54, &[0; 7])).unwrap_err(),
            Malformed::Arguments { unique: 77 }
        );
    }

    #[test]
    fn header_must_agree_with_the_length() {
        let mut bytes = request(3, &[0; 16]);
        bytes.pop();
        assert_eq!(Request::decode(&bytes).unwrap_err(), Malformed::Header);
        assert_eq!(
            Request::decode(&bytes[..39]).unwrap_err(),
            Malformed::Header
        );
        assert_eq!(Request::decode(&[]).unwrap_err(), Malformed::Header);
    }

    proptest! {
        #[test]
        fn any_arguments_decode_or_are_malformed(opcode in 0u32..60, arguments in prop::collection::vec(any::<u8>(), 0..200)) {
            let bytes = request(opcode, &arguments);
            match Request::decode(&bytes) {
                Ok(request) => prop_assert_eq!(request.header.opcode, opcode),
                Err(error) => prop_assert_eq!(error, Malformed::Arguments { unique: 77 }),
            }
        }

        #[test]
        fn any_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            let _ = Request::decode(&bytes);
        }
    }
}
