// SPDX-License-Identifier: MIT OR Apache-2.0
//! The second half of docs/messages.md: each heading is a state of this machine, which is made here; then the commands
//! below it are run, and must say what stands there. A test that fails prints what they said, for the page.

use std::any::Any;
use std::fs;

use anyhow::{ensure, Context, Result};
use famfs_media::{path_bytes, Body, Entry, LogHeader, MkdirEntry, LOG_LEN_MIN};
use rustix::process::Signal;

use super::fixture::{one_extent, ready, Ready};
use super::tool::{at, umount, Mounted, MOUNTPOINT};
use super::Test;
use crate::channel::Channel;
use crate::dax::Driver;
use crate::fmap::AU;
use crate::module;
use crate::runner::Guest;
use crate::server::{ServedFile, TestFs};
use crate::tool::{famfs, mkfs, run, server, signal_server};

pub const TESTS: &[(&str, Test)] = &[("the_page_is_what_famfs_says", the_page_is_what_famfs_says)];

const PAGE: &str = include_str!("../../../../docs/messages.md");
const START: &str = "\n## On a machine with memory\n";
/// Where the two counters of the log are on device 0.
const COUNTERS: u64 = AU + LogHeader::COUNTERS_AT;
const UUID_FILE: &str = "/opt/famfs/system_uuid";

/// What keeps a state, and undoes it.
type Guard = Box<dyn Any>;
/// How to get to a state from a file system on the first device that is not mounted.
type Way = fn(&Guest, Ready) -> Result<Guard>;

/// (heading, way)
const STATES: &[(&str, Way)] = &[
    ("Devices and places that are wrong", |_, _| Ok(Box::new(()))),
    ("A device in devdax mode", |guest, _| {
        bound(guest, Driver::Devdax)
    }),
    ("A device that the system uses as memory", |guest, _| {
        bound(guest, Driver::Kmem)
    }),
    ("A device without a driver", |guest, _| {
        guest.devices[0].unbind()?;
        Ok(Box::new(()))
    }),
    ("famfs.ko is not loaded", |_, _| {
        module::rmmod("famfs").context("rmmod famfs")?;
        Ok(Box::new(()))
    }),
    (WITHOUT_RAWIO, |_, _| Ok(Box::new(()))),
    ("A device without famfs", |_, ready| {
        damaged(&ready, 0, &[0; 8])
    }),
    ("A log that is damaged", |_, ready| {
        damaged(&ready, (2 << 20) + 8, &[0xff])
    }),
    ("A device that another file system has", |_, ready| {
        let other = TestFs::mount(ready.serve(vec![ServedFile::new("file", &one_extent())]))?;
        drop(other.open("file")?);
        Ok(Box::new(other))
    }),
    ("Several daxdevs", |_, ready| {
        mkfs(&["--force", &ready.paths[0], &ready.paths[1]])?;
        Ok(Box::new(()))
    }),
    ("A file system that is mounted", |guest, _| {
        let mounted = Mounted::new(guest, 1)?;
        fs::create_dir_all("/tmp/folder")?;
        fs::write("/tmp/empty", "")?;
        Ok(Box::new(mounted))
    }),
    ("A log that is full", |guest, _| {
        let mounted = Mounted::new(guest, 1)?;
        umount()?;
        fill_log(&mounted.ready)?;
        mounted.mount()?;
        Ok(Box::new(mounted))
    }),
    ("A log that another host has set back", |guest, _| {
        let mounted = Mounted::new(guest, 1)?;
        famfs(&["mkdir", &at("dir")])?;
        mounted.ready.raw(0)?.write(COUNTERS, &[0; 16])?;
        Ok(Box::new(mounted))
    }),
    ("A mount that is read-only", |guest, ready| {
        let mounted = Mounted::new(guest, 1)?;
        umount()?;
        famfs(&["mount", "--ro", &ready.paths[0], MOUNTPOINT])?;
        Ok(Box::new(mounted))
    }),
    ("A host that is not the master", |guest, _| {
        let mounted = Mounted::new(guest, 1)?;
        let uuid = OldUuid(fs::read(UUID_FILE)?);
        fs::remove_file(UUID_FILE)?;
        fs::write(UUID_FILE, "00000000-0000-0000-0000-000000000001")?;
        Ok(Box::new((mounted, uuid)))
    }),
    ("A server that is gone", |guest, _| {
        let mounted = Mounted::new(guest, 1)?;
        signal_server(server()?, Signal::KILL, "ZX")?;
        Ok(Box::new(mounted))
    }),
];

/// Its commands are run without that capability.
const WITHOUT_RAWIO: &str = "CAP_SYS_RAWIO is missing";

/// The uuid of this host; dropping it puts it back.
struct OldUuid(Vec<u8>);

impl Drop for OldUuid {
    fn drop(&mut self) {
        let _ = fs::write(UUID_FILE, &self.0);
    }
}

fn bound(guest: &Guest, driver: Driver) -> Result<Guard> {
    guest.devices[0].bind(driver)?;
    Ok(Box::new(()))
}

fn damaged(ready: &Ready, offset: u64, bytes: &[u8]) -> Result<Guard> {
    ready.raw(0)?.write(offset, bytes)?;
    Ok(Box::new(()))
}

/// As many entries as there is room for.
fn fill_log(ready: &Ready) -> Result<()> {
    let empty = LogHeader::new(LOG_LEN_MIN);
    let count = empty.last_index + 1;
    let entry = |seqnum: u64| {
        let body = Body::Mkdir(MkdirEntry {
            uid: 0,
            gid: 0,
            mode: 0o755,
            path: path_bytes(format!("d{seqnum}").as_bytes()),
        });
        Entry { seqnum, body }.encode()
    };
    let entries: Vec<u8> = (0..count).flat_map(entry).collect();
    let header = LogHeader {
        next_seqnum: count,
        next_index: count,
        ..empty
    };
    let log = [&header.encode()[..], &entries].concat();
    ready.raw(0)?.write(AU, &log)
}

fn the_page_is_what_famfs_says(guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let (_, part) = PAGE
        .split_once(START)
        .context("the page has no such part")?;
    let mut sections = part.split("\n### ").skip(1);
    let mut wrong = String::new();
    for (heading, state) in STATES {
        let section = sections.next().unwrap_or_default();
        let (title, block) = section.split_once("\n\n```console\n").unwrap_or_default();
        ensure!(title == *heading, "heading {title:?}, expected {heading:?}");
        let block = block.trim_end().strip_suffix("```").unwrap_or_default();
        let got = in_state(guest, heading, state, block).with_context(|| heading.to_owned())?;
        if got != block {
            wrong.push_str(&format!("\n### {heading}\n\n```console\n{got}```\n"));
        }
    }
    ensure!(sections.next().is_none(), "more headings than states");
    ensure!(wrong.is_empty(), "the page should have:\n{wrong}");
    Ok(())
}

/// What the commands of `block` print in a state.
fn in_state(guest: &Guest, heading: &str, state: &Way, block: &str) -> Result<String> {
    drop(Mounted::new(guest, 1)?);
    let guard = state(guest, ready(guest)?)?;
    let commands = block.lines().filter_map(|line| line.strip_prefix("$ "));
    let mut text = String::new();
    for command in commands.filter(|command| *command != "echo $?") {
        let words: Vec<&str> = match heading {
            WITHOUT_RAWIO => ["/init", "without-rawio"]
                .into_iter()
                .chain(command.split(' '))
                .collect(),
            _ => command.split(' ').collect(),
        };
        let (program, args) = words.split_first().context("no command")?;
        let outcome = run(program, args)?;
        text.push_str(&format!(
            "$ {command}\n{}{}",
            outcome.stdout, outcome.stderr
        ));
        match outcome.code {
            Some(0) => (),
            code => text.push_str(&format!("$ echo $?\n{}\n", code.unwrap_or(-1))),
        }
    }
    drop(guard);
    Ok(without_uuids(&text))
}

/// UUIDs are different each time.
fn without_uuids(text: &str) -> String {
    let is_uuid = |word: &str| {
        let lens = word.split('-').map(str::len);
        lens.eq([8, 4, 4, 4, 12])
            && word
                .bytes()
                .all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
    };
    let is_part = |c: char| c == '-' || c.is_ascii_hexdigit();
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(is_part) {
        let (before, from) = rest.split_at(at);
        let (word, after) = from.split_at(from.find(|c| !is_part(c)).unwrap_or(from.len()));
        out.push_str(before);
        out.push_str(if is_uuid(word) { "UUID" } else { word });
        rest = after;
    }
    out + rest
}
