// SPDX-License-Identifier: MIT OR Apache-2.0
//! A player without a mount, with sockets in place of /dev/fuse.

use std::os::fd::OwnedFd;
use std::sync::{mpsc, Arc, Mutex};
use std::time::Duration;
use std::{io, thread};

use famfs_fuse::abi::ROOT_ID;
use famfs_fuse::{DevFuse, Errno};
use famfs_media::{path_bytes, Body, LogHeader, MkdirEntry, Replay, Superblock};
use rustix::net::{socketpair, AddressFamily, SocketFlags, SocketType};

use super::control;
use super::kept::LogCopy;
use super::logplay::{Player, Reader};
use super::namespace::{Namespace, META};
use super::opener::Opener;
use super::ops::Server;
use super::tests::{namespace, read, DEVICE_SIZE};
use crate::exit::Exit;
use crate::log::{self, Store};
use crate::testing::Traced;

fn superblock() -> Superblock {
    Superblock::parse(&read("media/superblock.bin")).unwrap()
}

/// A file system whose log was not read yet.
fn empty() -> Namespace {
    let superblock = superblock();
    let mut namespace = Namespace::meta_only(superblock.log_len);
    namespace.set_replay(Replay::new(&superblock, DEVICE_SIZE));
    namespace
}

/// And the kernel's end of its channel.
fn player(namespace: Namespace) -> (Player, OwnedFd) {
    let (kernel, device) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let superblock = superblock();
    let player = Player {
        server: Arc::new(Server::new("/nowhere/dax0.0".into(), None, namespace)),
        tools: Mutex::new((
            Opener::default(),
            Reader::new(LogCopy::new(&superblock).unwrap()),
        )),
        superblock,
        mountpoint: "/nowhere".into(),
        device: 0,
        channel: DevFuse::from(device),
    };
    (player, kernel)
}

/// The log of another host, read while somebody changes attributes, which waits for whoever looks at the namespace.
struct Elsewhere(Arc<Server>, Vec<u8>);

impl Store for Elsewhere {
    fn read(&self, at: usize, out: &mut [u8]) -> io::Result<()> {
        let (server, (done, wait)) = (Arc::clone(&self.0), mpsc::channel());
        thread::spawn(move || {
            drop(server.namespace_mut());
            done.send(())
        });
        wait.recv_timeout(Duration::from_secs(20))
            .expect("the namespace is locked");
        out.copy_from_slice(&self.1[at..at + out.len()]);
        Ok(())
    }
    fn write(&self, _: usize, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
    fn flush(&self, _: usize, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn invalidate(&self, _: usize, _: usize) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn nobody_waits_while_another_hosts_memory_is_read() {
    let (player, _kernel) = player(empty());
    let log = |entries: u64| {
        let mut bytes = read("media/log.bin");
        bytes[40..48].copy_from_slice(&entries.to_le_bytes());
        Elsewhere(Arc::clone(&player.server), bytes)
    };
    let mut tools = player.tools.lock().unwrap();
    let mut take_in = |entries, target| player.take_in(&mut tools.1, &log(entries), target);
    assert_eq!(take_in(4, 0).unwrap(), 4);
    let last = namespace()
        .entries(ROOT_ID, META)
        .unwrap()
        .last()
        .map(|entry| entry.name.to_vec())
        .unwrap();
    let lookup = || player.server.namespace().lookup(ROOT_ID, &last);
    assert_eq!(lookup(), Err(Errno::NOENT));
    assert_eq!(take_in(10, 10).unwrap(), 10);
    assert_eq!(lookup(), namespace().lookup(ROOT_ID, &last));
    assert_eq!(player.server.namespace().len(), namespace().len());
    let error = take_in(10, 11).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the log has 10 entries, 11 were announced"
    );
    let error = take_in(4, 0).unwrap_err();
    assert_eq!(
        format!("{error:#}"),
        "it was changed under this mount; umount and mount again: log: next index went from 10 back to 4"
    );
    assert_eq!(crate::exit::code(&error), Exit::Corrupt);
}

#[test]
fn the_control_socket_answers_what_it_knows() {
    let (player, _kernel) = player(namespace());
    let status = control::answer("status\n", &player);
    assert_eq!(
        (&status["files"], &status["next_index"]),
        (&7.into(), &10.into())
    );
    assert_eq!(status["fs_uuid"], "10111213-1415-1617-1819-1a1b1c1d1e1f");
    let error = |line| control::answer(line, &player)["error"].to_string();
    let missing = error("clear-error\n");
    assert!(
        missing.contains("memory errors of /nowhere/dax0.0: No such file"),
        "{missing}"
    );
    assert_eq!(error("logplay x\n"), r#""\"x\" is not a number""#);
    assert_eq!(
        error("status now\n"),
        r#""no such request: \"status now\"""#
    );
    assert_eq!(error(""), r#""no such request: \"\"""#);
    assert!(
        error("logplay 0\n").contains("No such file"),
        "{}",
        error("logplay 0\n")
    );
}

#[test]
fn an_append_is_shown_in_one_step() {
    const ENTRIES: u64 = 5 * log::PIECE;
    let (player, _kernel) = player(empty());
    let header = LogHeader::new(player.superblock.log_len);
    let dir = |number: u64| {
        Body::Mkdir(MkdirEntry {
            uid: 0,
            gid: 0,
            mode: 0o755,
            path: path_bytes(format!("dir-{number}").as_bytes()),
        })
    };
    let memory = Traced::default();
    memory.bytes.borrow_mut().extend(header.encode());
    memory.bytes.borrow_mut().resize(4 << 20, 0);
    log::append(&memory, &header, (0..ENTRIES).map(dir).collect()).unwrap();
    let server = Arc::clone(&player.server);
    let known = move || server.namespace().replay().unwrap().next_index();
    let watcher = thread::spawn(move || {
        let mut seen = vec![0];
        while seen.last() != Some(&ENTRIES) {
            seen.push(known());
            seen.dedup();
        }
        seen
    });
    let mut tools = player.tools.lock().unwrap();
    assert_eq!(
        player.take_in(&mut tools.1, &memory, ENTRIES).unwrap(),
        ENTRIES
    );
    assert_eq!(watcher.join().unwrap(), [0, ENTRIES]);
}
