// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table of opcodes.

macro_rules! opcodes {
    ($($name:ident $variant:ident = $number:literal,)*) => {
        /// Opcode of a request, by the name the kernel's uapi header has for it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        #[allow(missing_docs)]
        pub enum Opcode { $($variant = $number),* }

        impl Opcode {
            /// All opcodes, in ascending order.
            pub const ALL: &'static [Opcode] = &[$(Opcode::$variant),*];

            /// The opcode with this number, if it is one this table knows.
            pub fn from_number(number: u32) -> Option<Opcode> {
                match number {
                    $($number => Some(Opcode::$variant),)*
                    _ => None,
                }
            }

            /// Its name in the uapi header, without `FUSE_`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Opcode::$variant => stringify!($name),)*
                }
            }
        }
    };
}

opcodes! {
    LOOKUP Lookup = 1,
    FORGET Forget = 2,
    GETATTR GetAttr = 3,
    SETATTR SetAttr = 4,
    READLINK ReadLink = 5,
    SYMLINK SymLink = 6,
    MKNOD MkNod = 8,
    MKDIR MkDir = 9,
    UNLINK Unlink = 10,
    RMDIR RmDir = 11,
    RENAME Rename = 12,
    LINK Link = 13,
    OPEN Open = 14,
    READ Read = 15,
    WRITE Write = 16,
    STATFS StatFs = 17,
    RELEASE Release = 18,
    FSYNC Fsync = 20,
    SETXATTR SetXattr = 21,
    GETXATTR GetXattr = 22,
    LISTXATTR ListXattr = 23,
    REMOVEXATTR RemoveXattr = 24,
    FLUSH Flush = 25,
    INIT Init = 26,
    OPENDIR OpenDir = 27,
    READDIR ReadDir = 28,
    RELEASEDIR ReleaseDir = 29,
    FSYNCDIR FsyncDir = 30,
    GETLK GetLk = 31,
    SETLK SetLk = 32,
    SETLKW SetLkw = 33,
    ACCESS Access = 34,
    CREATE Create = 35,
    INTERRUPT Interrupt = 36,
    BMAP Bmap = 37,
    DESTROY Destroy = 38,
    IOCTL Ioctl = 39,
    POLL Poll = 40,
    NOTIFY_REPLY NotifyReply = 41,
    BATCH_FORGET BatchForget = 42,
    FALLOCATE Fallocate = 43,
    READDIRPLUS ReadDirPlus = 44,
    RENAME2 Rename2 = 45,
    LSEEK Lseek = 46,
    COPY_FILE_RANGE CopyFileRange = 47,
    SETUPMAPPING SetupMapping = 48,
    REMOVEMAPPING RemoveMapping = 49,
    SYNCFS SyncFs = 50,
    TMPFILE TmpFile = 51,
    STATX Statx = 52,
    COPY_FILE_RANGE_64 CopyFileRange64 = 53,
    GET_FMAP GetFmap = 54,
    GET_DAXDEV GetDaxdev = 55,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_both_ways() {
        for &opcode in Opcode::ALL {
            assert_eq!(Opcode::from_number(opcode as u32), Some(opcode));
        }
        for unused in [0, 7, 19, 56, 4096, u32::MAX] {
            assert_eq!(Opcode::from_number(unused), None);
        }
        assert_eq!(Opcode::GetFmap as u32, 54);
        assert_eq!(Opcode::GetDaxdev.name(), "GET_DAXDEV");
    }
}
