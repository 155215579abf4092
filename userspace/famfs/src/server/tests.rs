// SPDX-License-Identifier: MIT OR Apache-2.0
//! The server on a socket in place of /dev/fuse, with the file system of testdata/vectors/media.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::{fs, thread};

use famfs_fmap::Policy;
use famfs_fuse::abi::{AttrOut, EntryOut, GetxattrIn, InHeader, OutHeader, ReadIn, SetattrIn};
use famfs_fuse::{DevFuse, Errno, Opcode};
use famfs_media::{Replay, Superblock};
use rustix::net::{
    recv, send, socketpair, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
};
use zerocopy::{FromBytes, IntoBytes};

use super::namespace::{Namespace, FIRST_ENTRY, LOG, META, SUPERBLOCK};
use super::ops::Server;
use super::session::serve;
use crate::device::DaxDevice;

pub(super) const DEVICE_SIZE: u64 = 16 << 30;

pub(super) fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/vectors")
}

pub(super) fn read(name: &str) -> Vec<u8> {
    fs::read(vectors().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The file system of media/superblock.bin and media/log.bin.
pub(super) fn namespace() -> Namespace {
    let superblock = Superblock::parse(&read("media/superblock.bin")).unwrap();
    let replay = Replay::of_log(&superblock, DEVICE_SIZE, &read("media/log.bin")).unwrap();
    assert_eq!(replay.findings, []);
    let mut namespace = Namespace::meta_only(superblock.log_len);
    namespace.set_replay(replay);
    namespace
}

/// The kernel's end of a connection, and a server thread at the other.
pub(super) struct Kernel(pub(super) OwnedFd);

impl Kernel {
    pub(super) fn new() -> Self {
        Self::with(1, None, namespace())
    }

    pub(super) fn with(devices: u32, failure: Option<Policy>, namespace: Namespace) -> Self {
        let (kernel, device) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let server = Server::new("/dev/dax0.0".into(), failure, namespace);
        let devices = (0..devices).map(|number| DaxDevice::for_tests(number, DEVICE_SIZE).path);
        server.set_devices(devices.collect());
        thread::spawn(move || serve(&DevFuse::from(device), &server));
        Self(kernel)
    }

    pub(super) fn ask(&self, request: &[u8]) -> Vec<u8> {
        send(&self.0, request, SendFlags::empty()).unwrap();
        let mut reply = vec![0; 1 << 16];
        let (len, _) = recv(&self.0, &mut reply, RecvFlags::empty()).unwrap();
        reply.truncate(len);
        reply
    }

    /// Sends one request and gives the payload or the error of its reply.
    pub(super) fn call(
        &self,
        opcode: Opcode,
        nodeid: u64,
        uid: u32,
        arguments: &[u8],
    ) -> Result<Vec<u8>, Errno> {
        let len = (size_of::<InHeader>() + arguments.len()) as u32;
        let header = InHeader {
            len,
            opcode: opcode as u32,
            unique: 9,
            nodeid,
            uid,
            ..InHeader::default()
        };
        let reply = self.ask(&[header.as_bytes(), arguments].concat());
        let (out, payload) = OutHeader::read_from_prefix(&reply).unwrap();
        assert_eq!((out.len as usize, out.unique), (reply.len(), 9));
        if out.error == 0 {
            Ok(payload.to_vec())
        } else {
            assert!(payload.is_empty());
            Err(Errno::from_raw_os_error(-out.error))
        }
    }

    pub(super) fn lookup(&self, parent: u64, name: &str) -> Result<EntryOut, Errno> {
        let reply = self.call(Opcode::Lookup, parent, 0, format!("{name}\0").as_bytes())?;
        Ok(EntryOut::read_from_bytes(&reply).unwrap())
    }
}

#[test]
fn node_ids_follow_the_log() {
    let kernel = Kernel::new();
    let id = |parent, name| {
        kernel
            .lookup(parent, name)
            .map(|entry| (entry.nodeid, entry.attr.ino, entry.generation))
    };
    assert_eq!(id(1, ".meta"), Ok((META, META, 0)));
    assert_eq!(id(META, ".superblock"), Ok((SUPERBLOCK, SUPERBLOCK, 0)));
    assert_eq!(id(META, ".log"), Ok((LOG, LOG, 0)));
    assert_eq!(id(1, "dir1"), Ok((FIRST_ENTRY, 16, 0)));
    assert_eq!(id(1, "one_extent.bin"), Ok((FIRST_ENTRY + 2, 18, 0)));
    assert_eq!(id(FIRST_ENTRY, "sub"), Ok((FIRST_ENTRY + 1, 17, 0)));
    assert_eq!(
        id(FIRST_ENTRY + 1, "multi3.bin"),
        Ok((FIRST_ENTRY + 4, 20, 0))
    );
    for (parent, name) in [
        (1, "nothing"),
        (META, "nothing"),
        (1, ""),
        (18, "x"),
        (99, "dir1"),
        (0, "dir1"),
    ] {
        assert_eq!(id(parent, name), Err(Errno::NOENT), "{parent} {name}");
    }
}

#[test]
fn attributes_change_in_memory_and_sizes_never() {
    let kernel = Kernel::new();
    let file = FIRST_ENTRY + 2;
    let set = |request: SetattrIn| kernel.call(Opcode::SetAttr, file, 0, request.as_bytes());
    let attr = || {
        AttrOut::read_from_bytes(&kernel.call(Opcode::GetAttr, file, 0, &[0; 16]).unwrap())
            .unwrap()
            .attr
    };
    set(SetattrIn {
        valid: 1 << 0 | 1 << 1 | 1 << 2,
        mode: 0o104755,
        uid: 7,
        gid: 8,
        ..SetattrIn::default()
    })
    .unwrap();
    assert_eq!(
        (attr().mode, attr().uid, attr().gid, attr().size),
        (0o104755, 7, 8, 5_000_000)
    );
    set(SetattrIn {
        valid: 1 << 5,
        mtime: 99,
        mtimensec: 5,
        ..SetattrIn::default()
    })
    .unwrap();
    assert_eq!(
        (attr().mtime, attr().mtimensec, attr().mode),
        (99, 5, 0o104755)
    );
    set(SetattrIn {
        valid: 1 << 5 | 1 << 8,
        mtime: 99,
        ..SetattrIn::default()
    })
    .unwrap();
    assert!(attr().mtime > 1_000_000_000);
    assert_eq!(
        set(SetattrIn {
            valid: 1 << 3 | 1 << 0,
            size: 5_000_000,
            ..SetattrIn::default()
        }),
        Err(Errno::INVAL)
    );
    assert_eq!((attr().mode, attr().blocks), (0o104755, 3 * 4096));
}

#[test]
fn opens_are_left_to_the_kernel() {
    let reply = Kernel::new().call(Opcode::Open, FIRST_ENTRY + 2, 0, &[0; 8]);
    assert_eq!(reply, Err(Errno::NOSYS));
}

/// Names and node ids of a directory, read in pieces of `size` bytes.
pub(super) fn list(
    kernel: &Kernel,
    dir: u64,
    opcode: Opcode,
    size: u32,
) -> Vec<(String, u64, u32)> {
    let entry_len = if opcode == Opcode::ReadDirPlus {
        size_of::<EntryOut>()
    } else {
        0
    };
    let (mut listed, mut offset) = (Vec::new(), 0);
    loop {
        assert!(listed.len() < 100_000, "no end of the directory");
        let request = ReadIn {
            offset,
            size,
            ..ReadIn::default()
        };
        let reply = kernel.call(opcode, dir, 0, request.as_bytes()).unwrap();
        assert!(reply.len() <= size as usize);
        if reply.is_empty() {
            return listed;
        }
        let mut rest = &reply[..];
        while !rest.is_empty() {
            let word = |at: usize| u64::from_ne_bytes(rest[at..at + 8].try_into().unwrap());
            let (ino, lens) = (word(entry_len), word(entry_len + 16));
            let (len, kind) = (lens as u32 as usize, (lens >> 32) as u32);
            offset = word(entry_len + 8);
            let name = &rest[entry_len + 24..entry_len + 24 + len];
            let name = String::from_utf8(name.to_vec()).unwrap();
            if entry_len > 0 {
                // The kernel counts a lookup for every node id that is not 0.
                assert_eq!(word(0), if name == "." || name == ".." { 0 } else { ino });
            }
            listed.push((name, ino, kind));
            rest = &rest[(entry_len + 24 + len).next_multiple_of(8)..];
        }
    }
}

#[test]
fn directories_list_everything_once() {
    let kernel = Kernel::new();
    let all = list(&kernel, 1, Opcode::ReadDir, 4096);
    let names: Vec<_> = all.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names[..4], [".", "..", ".meta", "dir1"]);
    assert_eq!(names.len(), 10, "{names:?}");
    assert_eq!(all[3], ("dir1".into(), FIRST_ENTRY, 4));
    assert_eq!(all[4], ("one_extent.bin".into(), FIRST_ENTRY + 2, 8));
    // One or two entries fit into this.
    assert_eq!(list(&kernel, 1, Opcode::ReadDir, 128), all);
    let dir1 = [
        (".", FIRST_ENTRY, 4),
        ("..", 1, 4),
        ("sub", FIRST_ENTRY + 1, 4),
        ("aligned_4m.bin", FIRST_ENTRY + 3, 8),
    ];
    assert_eq!(
        list(&kernel, FIRST_ENTRY, Opcode::ReadDir, 40),
        dir1.map(|(name, ino, kind)| (name.to_owned(), ino, kind))
    );
    // Nothing fits: this must not look like the end.
    let request = ReadIn {
        offset: FIRST_ENTRY + 1 + 2,
        size: 39,
        ..ReadIn::default()
    };
    assert_eq!(
        kernel.call(Opcode::ReadDir, FIRST_ENTRY, 0, request.as_bytes()),
        Err(Errno::INVAL)
    );
    let plus = [".", "..", ".superblock", ".log"];
    let listed = list(&kernel, META, Opcode::ReadDirPlus, 4096);
    assert_eq!(
        listed
            .iter()
            .map(|(name, ..)| name.as_str())
            .collect::<Vec<_>>(),
        plus
    );
    let request = ReadIn {
        size: 4096,
        ..ReadIn::default()
    };
    assert_eq!(
        kernel.call(Opcode::ReadDir, FIRST_ENTRY + 2, 0, request.as_bytes()),
        Err(Errno::NOTDIR)
    );
    assert_eq!(
        kernel.call(Opcode::ReadDir, 99, 0, request.as_bytes()),
        Err(Errno::NOENT)
    );
}

#[test]
fn statfs_tells_of_the_memory() {
    let reply = Kernel::new().call(Opcode::StatFs, 1, 0, &[]).unwrap();
    let stat = famfs_fuse::abi::Kstatfs::read_from_bytes(&reply).unwrap();
    assert_eq!(
        (stat.bsize, stat.frsize, stat.blocks),
        (2 << 20, 2 << 20, 8192)
    );
    let superblock = Superblock::parse(&read("media/superblock.bin")).unwrap();
    let replay = Replay::of_log(&superblock, DEVICE_SIZE, &read("media/log.bin")).unwrap();
    assert_eq!(
        (stat.bfree, stat.bavail),
        (8192 - replay.space.used(), 8192 - replay.space.used())
    );
    assert_eq!((stat.files, stat.ffree, stat.namelen), (14, 15420 - 10, 79));
}

#[test]
fn a_long_fmap_is_announced_by_its_header() {
    let kernel = Kernel::new();
    let max16 = kernel.lookup(1, "max16.bin").unwrap().nodeid;
    let fmap = |size| {
        let request = GetxattrIn { size, padding: 0 };
        kernel
            .call(Opcode::GetFmap, max16, 0, request.as_bytes())
            .unwrap()
    };
    let whole = fmap(4096);
    assert_eq!(
        (
            whole.len(),
            u32::from_ne_bytes(whole[12..16].try_into().unwrap())
        ),
        (416, 416)
    );
    assert_eq!(fmap(416), whole);
    assert_eq!(fmap(415), whole[..32]);
    assert_eq!(
        kernel.call(Opcode::GetFmap, FIRST_ENTRY, 0, &[]),
        Err(Errno::NOENT)
    );
    assert_eq!(kernel.call(Opcode::GetFmap, 99, 0, &[]), Err(Errno::NOENT));
}

#[test]
fn daxdevs_have_the_policy_of_the_mount() {
    for (failure, field) in [
        (None, 0),
        (Some(Policy::Device), 1),
        (Some(Policy::Range), 2),
    ] {
        let kernel = Kernel::with(1, failure, namespace());
        let reply = kernel.call(Opcode::GetDaxdev, 0, 0, &[]).unwrap();
        assert_eq!(u16::from_ne_bytes([reply[2], reply[3]]), field);
    }
}

#[test]
fn daxdevs_have_their_index() {
    let kernel = Kernel::with(2, None, namespace());
    let name = |index| {
        let reply = kernel.call(Opcode::GetDaxdev, index, 0, &[])?;
        assert_eq!(
            (
                reply.len(),
                u64::from(u16::from_ne_bytes([reply[0], reply[1]]))
            ),
            (280, index)
        );
        Ok(String::from_utf8(
            reply[24..]
                .iter()
                .copied()
                .take_while(|&byte| byte != 0)
                .collect(),
        )
        .unwrap())
    };
    assert_eq!(name(0), Ok("/dev/dax0.0".into()));
    assert_eq!(name(1), Ok("/dev/dax1.0".into()));
    assert_eq!(name(2), Err(Errno::INVAL));
    assert_eq!(name(1 << 16), Err(Errno::INVAL));
}
