// SPDX-License-Identifier: MIT OR Apache-2.0
//! Two hosts with one memory: what the master makes, the client sees, whatever becomes of the master. The tests of the
//! two guests go hand in hand; what one waits for, the other tells.

use std::fs::{self, File};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use famfs_media::Extent;
use rustix::process::Signal;
use serde_json::Value;

use super::fixture::{ensure_eq, ready};
use super::tool::{at, umount, Mounted, MOUNTPOINT};
use super::Test;
use crate::channel::Channel;
use crate::dax::DaxDev;
use crate::fmap::AU;
use crate::runner::Guest;
use crate::sys::{Kind, Mapping};
use crate::tool::{append_to_log, famfs, getmap, run, server, signal_server};

pub const MASTER: &[(&str, Test)] = &[
    ("makes_a_thousand_files", makes_a_thousand_files),
    ("makes_later_files", makes_later_files),
    ("loses_its_server", loses_its_server),
    ("is_stopped_while_it_appends", is_stopped_while_it_appends),
    ("is_killed_while_it_appends", is_killed_while_it_appends),
];

pub const CLIENT: &[(&str, Test)] = &[
    ("sees_a_thousand_files", sees_a_thousand_files),
    (
        "knows_the_daxdevs_by_their_uuids",
        knows_the_daxdevs_by_their_uuids,
    ),
    ("sees_each_later_file", sees_each_later_file),
    (
        "goes_on_without_the_masters_server",
        goes_on_without_the_masters_server,
    ),
    (
        "takes_over_from_a_master_that_was_killed",
        takes_over_from_a_master_that_was_killed,
    ),
];

/// Seconds between two looks of the client at the log.
const INTERVAL: f64 = 0.25;
const LATER: usize = 10;
/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(100);
const USAGE: i32 = 2;
const SIMPLE: usize = 940;
const INTERLEAVED: usize = 40;
const MULTI_EXTENT: usize = 20;
const DAXDEVS: usize = 4;
/// Appends during which the harness stops the master ten times each: a directory with so many in it.
const APPENDS: usize = 20;
const DIRECTORIES: usize = 500;
/// Where the files of several extents lie; nothing else gets there.
const MULTI_EXTENT_AT: u64 = 3 << 30;

/// Name, size and seed of the pattern of each of the thousand.
fn thousand() -> Vec<(String, u64, usize)> {
    let simple = (0..SIMPLE).map(|n| (format!("s{n}"), 1000 + n as u64 * 61));
    let striped = (0..INTERLEAVED).map(|n| (format!("i{n}"), AU + 4219 + n as u64));
    let multi = (0..MULTI_EXTENT).map(|n| (format!("m{n}"), 2 * AU + 4219 + n as u64));
    let all = simple.chain(striped).chain(multi).enumerate();
    all.map(|(seed, (name, size))| (name, size, seed)).collect()
}

/// Runs `famfs VERB` with `--multi` and what `value` gives for each file.
fn multi<'a>(
    verb: &[&str],
    files: impl IntoIterator<Item = &'a (String, u64, usize)>,
    value: fn(&(String, u64, usize)) -> String,
) -> Result<()> {
    let values: Vec<String> = files.into_iter().map(value).collect();
    let mut args = verb.to_vec();
    args.extend(values.iter().flat_map(|value| ["--multi", value]));
    famfs(&args).map(drop)
}

fn create(verb: &[&str], files: &[(String, u64, usize)]) -> Result<()> {
    multi(verb, files, |(name, size, seed)| {
        format!("{},{size},{seed}", at(name))
    })
}

/// Through mappings.
fn verify(files: &[(String, u64, usize)]) -> Result<()> {
    multi(&["verify"], files, |(name, _, seed)| {
        format!("{},{seed}", at(name))
    })
}

fn makes_a_thousand_files(guest: &Guest, channel: &mut Channel) -> Result<()> {
    channel.tell("there is a namespace");
    let mounted = Mounted::new(guest, DAXDEVS)?;
    channel.expect("client is up")?;
    channel.tell("there is a file system");
    channel.expect("client has mounted")?;
    let files = thousand();
    let (simple, rest) = files.split_at(SIMPLE);
    let (striped, several) = rest.split_at(INTERLEAVED);
    create(&["creat"], simple)?;
    create(&["creat", "--nstrips", "4"], striped)?;
    append_with_several_extents(several)?;
    famfs(&["logplay", MOUNTPOINT])?;
    create(&["creat"], several).context("filling the files of several extents")?;
    ensure_eq!(daxdevs_of("i0")?, [0, 1, 2, 3], "daxdevs of the strips");
    ensure_eq!(getmap(&at("m0"))?.len(), 3, "extents");
    // The mount is there for the tests that follow.
    std::mem::forget(mounted);
    channel.tell("made");
    channel.expect("seen")
}

/// Indices of the daxdevs that a file has memory on.
fn daxdevs_of(name: &str) -> Result<Vec<u64>> {
    let mut indices: Vec<u64> = getmap(&at(name))?.iter().map(|extent| extent.0).collect();
    indices.sort_unstable();
    Ok(indices)
}

/// Files of three extents each.
fn append_with_several_extents(files: &[(String, u64, usize)]) -> Result<()> {
    let mut end = MULTI_EXTENT_AT;
    let mut extent = || {
        // With a gap in front of each.
        end += 2 * AU;
        let (devindex, offset, len) = (0, end, AU);
        Extent {
            devindex,
            offset,
            len,
        }
    };
    let entry = |(name, size, _): &(String, u64, usize)| {
        (name.clone(), *size, vec![extent(), extent(), extent()])
    };
    append_to_log(MOUNTPOINT, files.iter().map(entry))
}

fn sees_a_thousand_files(guest: &Guest, channel: &mut Channel) -> Result<()> {
    let ready = ready(guest)?;
    channel.tell("client is up");
    channel.expect("there is a file system")?;
    fs::create_dir_all(MOUNTPOINT)?;
    mount(&ready.paths, &["--follow", &INTERVAL.to_string()])?;
    ensure_eq!(entries()?, 0, "files before the master made any");
    channel.tell("client has mounted");
    channel.expect("made")?;
    let files = thousand();
    wait_until(&at("m19"))?;
    ensure_eq!(entries()?, 1000, "files");
    verify(&files)?;
    famfs(&["check", MOUNTPOINT])?;
    channel.tell("seen");
    Ok(())
}

/// Mounts the one of the devices that has the log, as somebody would who does not know which it is.
fn mount(devices: &[String], options: &[&str]) -> Result<()> {
    for device in devices {
        let args = [&["mount"], options, &[device, MOUNTPOINT]].concat();
        let outcome = run("famfs", &args)?;
        if outcome.code == Some(0) {
            return Ok(());
        }
        outcome.expect_failure(USAGE, "holds no log")?;
    }
    bail!("no device holds a log")
}

/// The files on all of them were verified.
fn knows_the_daxdevs_by_their_uuids(_guest: &Guest, _channel: &mut Channel) -> Result<()> {
    let df: Value = serde_json::from_str(&famfs(&["df", "--json", MOUNTPOINT])?)?;
    let daxdevs = df["daxdevs"].as_array().context("no daxdevs")?;
    let found: Vec<_> = daxdevs
        .iter()
        .filter_map(|dev| dev["device"].as_str())
        .collect();
    let names = ["/dev/dax0.0", "/dev/dax1.0", "/dev/dax2.0", "/dev/dax3.0"];
    // The master has them in this order; qemu/src/topology.rs sees to it that this host has not.
    ensure!(found != names, "the daxdevs have the same names here");
    let mut sorted = found.clone();
    sorted.sort_unstable();
    ensure_eq!(sorted, names, "paths of the daxdevs, of {found:?} by index");
    for striped in 0..INTERLEAVED {
        let name = format!("i{striped}");
        ensure_eq!(daxdevs_of(&name)?, [0, 1, 2, 3], "daxdevs of {name}");
    }
    Ok(())
}

/// Entries of the root, `.meta` not counted.
fn entries() -> Result<usize> {
    Ok(fs::read_dir(MOUNTPOINT)?.count() - 1)
}

fn wait_until(path: &str) -> Result<()> {
    let start = Instant::now();
    while !Path::new(path).exists() {
        if start.elapsed() > Duration::from_secs(60) {
            bail!("{path} did not appear");
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn later() -> Vec<(String, u64, usize)> {
    (0..LATER).map(|n| (format!("later{n}"), 5000, n)).collect()
}

fn makes_later_files(_guest: &Guest, channel: &mut Channel) -> Result<()> {
    for file in later() {
        create(&["creat"], std::slice::from_ref(&file))?;
        channel.tell(&file.0);
        channel.expect("seen")?;
    }
    Ok(())
}

/// How often the server has looked at the log.
fn looks() -> Result<u64> {
    let status: Value = serde_json::from_str(&famfs(&["status", "--json", MOUNTPOINT])?)?;
    status["replays"].as_u64().context("no replays")
}

/// Nobody tells the server. The look that began before the file was there may miss it, the next one must not; between
/// two looks is an interval, no less. (How long a look takes to begin after that is the scheduler's.)
fn sees_each_later_file(_guest: &Guest, channel: &mut Channel) -> Result<()> {
    let (start, before) = (Instant::now(), looks()?);
    for file in later() {
        channel.expect(&file.0)?;
        let told = looks()?;
        while looks()? < told + 2 {
            ensure!(start.elapsed() < PATIENCE, "the server does not look");
            thread::sleep(Duration::from_secs_f64(INTERVAL / 5.0));
        }
        ensure!(Path::new(&at(&file.0)).exists(), "{} is not there", file.0);
        verify(std::slice::from_ref(&file))?;
        channel.tell("seen");
    }
    let (looks, time) = (looks()? - before, start.elapsed().as_secs_f64());
    let most = (time / INTERVAL) as u64 + 1;
    ensure!(looks <= most, "{looks} looks in {time} s");
    Ok(())
}

fn loses_its_server(guest: &Guest, channel: &mut Channel) -> Result<()> {
    signal_server(server()?, Signal::KILL, "ZX")?;
    channel.tell("killed");
    channel.expect("alive")?;
    umount()?;
    famfs(&["mount", &guest.devices[0].path(), MOUNTPOINT])?;
    verify(&thousand())?;
    create(&["creat"], &[("after".to_owned(), 5000, 1)])?;
    channel.tell("back");
    channel.expect("seen")
}

fn goes_on_without_the_masters_server(_guest: &Guest, channel: &mut Channel) -> Result<()> {
    let file = File::open(at("s0"))?;
    let mapping = Mapping::new(&file, 0, 1000, Kind::SharedRead)?;
    let before = mapping.read(0, 1000);
    channel.expect("killed")?;
    ensure!(
        mapping.read(0, 1000) == before,
        "the mapping has other bytes"
    );
    verify(&later())?;
    channel.tell("alive");
    channel.expect("back")?;
    wait_until(&at("after"))?;
    verify(&[("after".to_owned(), 5000, 1)])?;
    channel.tell("seen");
    Ok(())
}

/// The harness keeps what is in memory whenever it stops this machine, and judges it.
fn is_stopped_while_it_appends(_guest: &Guest, channel: &mut Channel) -> Result<()> {
    famfs(&["mkdir", &at("p")])?;
    for number in 0..DIRECTORIES {
        fs::create_dir_all(format!("/tmp/tree/{number}"))?;
    }
    for append in 0..APPENDS {
        let verdict = channel.appends(DIRECTORIES + 1)?;
        ensure!(verdict.starts_with("whole "), "{verdict}");
        famfs(&["cp", "-r", "/tmp/tree", &at(&format!("p/{append}"))])?;
    }
    let verdict = channel.appends(0)?;
    channel.step(&verdict);
    let midway = verdict
        .strip_prefix("whole 200 of which ")
        .and_then(|rest| rest.split(' ').next()?.parse().ok());
    // A busy host looks seldom enough to find most appends done.
    ensure!(midway >= Some(1), "{verdict}");
    Ok(())
}

/// Does not end by itself.
fn is_killed_while_it_appends(_guest: &Guest, channel: &mut Channel) -> Result<()> {
    for number in 0.. {
        famfs(&["mkdir", &at(&format!("d{number}"))])?;
        channel.tell(&number.to_string());
    }
    Ok(())
}

/// All that the master said to have made is there, in order; and the client goes on where it stopped.
fn takes_over_from_a_master_that_was_killed(guest: &Guest, channel: &mut Channel) -> Result<()> {
    let last = (10 + guest.seed % 10) as usize;
    for number in 0..last {
        channel.expect(&number.to_string())?;
    }
    thread::sleep(Duration::from_millis(guest.seed % 97));
    channel.kill_the_other();
    // Longer than it takes; a master that lived on would go on.
    thread::sleep(Duration::from_secs(2));
    umount()?;
    let devices: Vec<String> = guest.devices.iter().map(DaxDev::path).collect();
    mount(&devices, &["--take-over"])?;
    let there = (0..)
        .take_while(|number| Path::new(&at(&format!("d{number}"))).exists())
        .count();
    ensure!(
        there >= last,
        "{there} directories, the master has made {last}"
    );
    ensure_eq!(entries()?, 1000 + LATER + 2 + there, "entries");
    famfs(&["mkdir", &at("mine")])?;
    verify(&thousand())?;
    famfs(&["fsck", MOUNTPOINT])?;
    for append in 0..APPENDS {
        let there = fs::read_dir(at(&format!("p/{append}")))?.count();
        ensure_eq!(there, DIRECTORIES, "directories of append {append}");
    }
    ensure_eq!(
        entries()?,
        1000 + LATER + 2 + there + 1,
        "entries with a new one"
    );
    umount()
}
