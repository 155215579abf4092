// SPDX-License-Identifier: MIT OR Apache-2.0
//! The server's replies against those of upstream's server (testdata/vectors/wire).

use std::collections::HashMap;
use std::fs;

use famfs_fuse::abi::{EntryOut, InHeader, OutHeader};
use famfs_fuse::{Errno, Opcode};
use rustix::net::{send, SendFlags};
use zerocopy::{FromBytes, IntoBytes};

use super::tests::{read, vectors, Kernel};

/// How our reply to a captured request relates to upstream's.
enum Expect {
    /// Equal but for these bytes.
    But(&'static [(usize, usize)]),
    /// An error of our own.
    Error(Errno),
    /// Checked by a test of its own.
    Elsewhere,
}

/// Node id, inode number, blocks and times. Upstream's are addresses and values of the shadow file.
const FILE_ENTRY: &[(usize, usize)] = &[(16, 24), (56, 64), (72, 116)];
/// The same and the size, upstream's being that of the shadow directory.
const DIR_ENTRY: &[(usize, usize)] = &[(16, 24), (56, 116)];
/// Inode number, blocks and times.
const ATTR: &[(usize, usize)] = &[(32, 40), (48, 92)];

/// Every difference from upstream's server, with its reason.
fn expect(name: &str) -> Expect {
    match name {
        "lookup_one" | "lookup_stripe4" | "lookup_max16" | "lookup_sb" | "lookup_log" => {
            Expect::But(FILE_ENTRY)
        }
        "lookup_meta" | "lookup_dir1" => Expect::But(DIR_ENTRY),
        "getattr_one" | "setattr_mode" | "setattr_uidgid" | "setattr_atime" | "setattr_mtime" => {
            Expect::But(ATTR)
        }
        // The kernel needs nobody to open a file whose map it has, and after ENOSYS asks no more. It refuses O_TRUNC
        // itself; upstream lets that pass, and the file is unusable from then on.
        "open_one" | "open_one_odirect" | "open_one_otrunc" => Expect::Error(Errno::NOSYS),
        // The file handle, upstream's being an address.
        "opendir" => Expect::But(&[(16, 24)]),
        // Upstream shows the host's file system, and fails with EBADF on a file.
        "statfs_root" | "statfs_file" => Expect::Elsewhere,
        // Upstream's cookies and inode numbers are the shadow directory's.
        "readdir" => Expect::Elsewhere,
        // Answered before the server is there: famfs-fuse, init.rs.
        "init" => Expect::Elsewhere,
        _ => Expect::But(&[]),
    }
}

fn captured() -> Vec<(String, Vec<u8>, Vec<u8>)> {
    let mut captured: Vec<_> = fs::read_dir(vectors().join("wire"))
        .unwrap()
        .filter_map(|entry| {
            let file = entry.unwrap().file_name().into_string().unwrap();
            let name = file
                .strip_prefix("wire_")?
                .strip_suffix("_req.bin")?
                .to_owned();
            let request = read(&format!("wire/{file}"));
            let reply = read(&format!("wire/wire_{name}_rep.bin"));
            Some((name, request, reply))
        })
        .collect();
    captured.sort_by_key(|(_, request, _)| InHeader::read_from_prefix(request).unwrap().0.unique);
    assert_eq!(captured.len(), 60);
    captured
}

#[test]
fn answers_as_upstream_does() {
    let kernel = Kernel::new();
    let mut nodes = HashMap::from([(0, 0), (1, 1)]);
    for (name, mut request, theirs) in captured() {
        let mut header = InHeader::read_from_prefix(&request).unwrap().0;
        // GET_DAXDEV has an index there.
        if header.opcode != Opcode::GetDaxdev as u32 {
            header.nodeid = nodes[&header.nodeid];
        }
        request[..size_of::<InHeader>()].copy_from_slice(header.as_bytes());
        let mut ours = kernel.ask(&request);
        if header.opcode == Opcode::Lookup as u32 {
            let node = |reply: &[u8]| EntryOut::read_from_prefix(&reply[16..]).unwrap().0.nodeid;
            nodes.insert(node(&theirs), node(&ours));
        }
        let mut theirs = theirs;
        match expect(&name) {
            Expect::But(ranges) => {
                for &(start, end) in ranges {
                    ours[start..end].fill(0);
                    theirs[start..end].fill(0);
                }
            }
            Expect::Error(errno) => {
                theirs = OutHeader {
                    len: 16,
                    error: -errno.raw_os_error(),
                    unique: header.unique,
                }
                .as_bytes()
                .to_vec();
            }
            Expect::Elsewhere => continue,
        }
        assert_eq!(ours, theirs, "{name}");
    }
}

#[test]
fn truncated_requests_are_refused_and_do_no_harm() {
    let kernel = Kernel::new();
    for (name, request, _) in captured() {
        for len in size_of::<InHeader>()..request.len() {
            let mut short = request[..len].to_vec();
            // The header contradicts the length: there is nobody to answer to, so the next reply is the probe's.
            send(&kernel.0, &short, SendFlags::empty()).unwrap();
            assert!(kernel.lookup(1, ".meta").is_ok(), "{name} cut to {len}");
            short[..4].copy_from_slice(&(len as u32).to_ne_bytes());
            let reply = kernel.ask(&short);
            let (out, _) = OutHeader::read_from_prefix(&reply).unwrap();
            assert_eq!(out.len as usize, reply.len(), "{name} cut to {len}");
        }
    }
}
