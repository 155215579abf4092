// SPDX-License-Identifier: MIT OR Apache-2.0
//! Two CPUs at the same time, on a kernel that keeps statistics of its locks: what faults, reads and writes have to
//! wait for.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{ensure, Context, Result};

use super::fixture::{ensure_eq, first_difference, pattern, ready, Ready};
use super::storms::weather;
use super::{Skip, Test};
use crate::channel::Channel;
use crate::fmap::{extent, Fmap, AU};
use crate::hostile::Rng;
use crate::module::reload_famfs;
use crate::runner::Guest;
use crate::server::TestFs;
use crate::sys::{Kind, Mapping};

pub const TESTS: &[(&str, Test)] = &[(
    "accesses_take_no_lock_of_ours",
    accesses_take_no_lock_of_ours,
)];

const STATISTICS: &str = "/proc/lock_stat";
const SWITCH: &str = "/proc/sys/kernel/lock_stat";
/// How the names of the module's locks begin. famfs_fast is no lock but an SRCU domain, whose readers wait for nobody.
const OURS: [&str; 4] = ["famfs::", "HELD", "DIR", "SHUT_LAST"];
const THREADS: u64 = 8;
const STEPS: u64 = 1_000;
const SIZE: u64 = 2 * AU;

/// A class of locks that somebody has taken, as the kernel counts.
#[derive(Debug)]
struct Class {
    name: String,
    contentions: u64,
}

impl Class {
    fn is_ours(&self) -> bool {
        OURS.iter().any(|ours| self.name.starts_with(ours))
    }
}

/// Lines "NAME: con-bounces contentions ...", among others.
fn classes() -> Result<Vec<Class>> {
    let text = fs::read_to_string(STATISTICS).context(STATISTICS)?;
    let class = |line: &str| {
        // A name may have colons in it.
        let (name, numbers) = line.rsplit_once(": ")?;
        let contentions = numbers.split_ascii_whitespace().nth(1)?.parse().ok()?;
        let name = name.trim().to_owned();
        Some(Class { name, contentions })
    };
    Ok(text.lines().filter_map(class).collect())
}

/// What is taken, and contended, while `work` is done.
fn classes_during<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Vec<Class>)> {
    fs::write(STATISTICS, "0").context(STATISTICS)?;
    fs::write(SWITCH, "1").context(SWITCH)?;
    let done = work();
    fs::write(SWITCH, "0").context(SWITCH)?;
    Ok((done?, classes()?))
}

fn accesses_take_no_lock_of_ours(guest: &Guest, channel: &mut Channel) -> Result<()> {
    if !Path::new(STATISTICS).exists() {
        return Err(Skip("this kernel keeps no statistics of its locks".into()).into());
    }
    for parameters in [c"fast_faults=1", c"fast_faults=0"] {
        channel.step(&format!("accesses, {parameters:?}"));
        reload_famfs(parameters)?;
        let fmap = Fmap::simple(SIZE, &[extent(0, 16 * AU, SIZE)]);
        let ready = ready(guest)?;
        // The statistics know them when they are taken.
        let (fs, opening) = classes_during(|| opened(&ready, &fmap))?;
        ensure!(
            opening.iter().any(Class::is_ours),
            "an open has taken no lock of ours, by {opening:?}"
        );
        let file = fs.open_rw("file")?;
        let ((), classes) = classes_during(|| access(&file, guest.seed))?;
        let (ours, others): (Vec<Class>, Vec<Class>) =
            classes.into_iter().partition(Class::is_ours);
        ensure!(
            ours.is_empty(),
            "{parameters:?}: our locks were taken: {ours:?}"
        );
        let contended: Vec<String> = others
            .iter()
            .filter(|class| class.contentions > 0)
            .map(|class| format!("{} {}", class.name, class.contentions))
            .collect();
        channel.say(&format!(
            "contended, {parameters:?}: {}",
            contended.join(", ")
        ));
        let raw = ready.raw_bytes(&fmap, 0, SIZE as usize)?;
        ensure_eq!(
            first_difference(&raw, &pattern(0, SIZE as usize)),
            None,
            "the memory"
        );
    }
    Ok(())
}

fn opened(ready: &Ready, fmap: &Fmap) -> Result<TestFs> {
    let fs = ready.one_file("file", fmap)?;
    drop(fs.open("file")?);
    Ok(fs)
}

/// Faults of both sizes, reads and writes by many threads, which look at each byte that they meet.
fn access(file: &File, seed: u64) -> Result<()> {
    let shared = Mapping::new(file, 0, SIZE as usize, Kind::SharedWrite)?;
    std::thread::scope(|scope| {
        let shared = &shared;
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let rng = Rng(seed + thread);
                scope.spawn(move || match thread % 2 {
                    0 => weather(shared, file, rng, STEPS),
                    _ => read_and_write(file, rng),
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or(Err(anyhow::anyhow!("panicked"))))
            .fold(Ok(()), Result::and)
    })
}

fn read_and_write(file: &File, mut rng: Rng) -> Result<()> {
    let mut buffer = vec![0; 3 * 4096];
    for _ in 0..STEPS {
        let len = 1 + rng.below(buffer.len() as u64);
        let at = rng.below(SIZE - len);
        let (bytes, want) = (&mut buffer[..len as usize], pattern(at, len as usize));
        if rng.once_in(2) {
            file.write_all_at(&want, at)?;
        }
        file.read_exact_at(bytes, at)?;
        ensure_eq!(
            first_difference(bytes, &want),
            None,
            "bytes read from {at:#x} on"
        );
    }
    Ok(())
}
