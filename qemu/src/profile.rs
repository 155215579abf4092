// SPDX-License-Identifier: MIT OR Apache-2.0
//! What functions the instructions of a row of `make bench` are in. The guest has QEMU log each instruction that is
//! executed while it measures the row; a log line is an instruction, and calls of the function that reads the clock
//! divide the log into the single operations.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use rustc_demangle::demangle;

use crate::bench::Row;
use crate::guest::{self, Limits};
use crate::ktap::{parse_symbol, Event};
use crate::qemu::Cpus;
use crate::report::thousands;
use crate::run::Booter;
use crate::topology;
use crate::trace::{Counts, Trace};

const LIMITS: Limits = Limits {
    total: Duration::from_secs(3600),
    silence: Duration::from_secs(900),
};
/// The clock and the log agree if they do not differ by more than one instruction and one part in this many. An access
/// that faults is in the log twice, and is one instruction by the clock.
const AGREEMENT: u64 = 1000;
/// The kernel's half of the addresses.
const KERNEL: u64 = 1 << 63;
/// In the tables, a function that has less than one part in this many of every row is among the others.
const SMALL: i64 = 60;

/// The rows that docs/performance.md has profiles of.
pub const MAIN: [&str; 6] = [
    "famfs, 1 extent: 2 MiB fault, cold read",
    "famfs, 1 extent: 2 MiB fault, warm read",
    "famfs, 1 extent: 4 KiB fault, cold read",
    "famfs, 1 extent, fast_faults=0: 2 MiB fault, warm read",
    "famfs, 1 extent: pread 64 B",
    "famfs, 1 extent: open and close, cached",
];

/// The median operation of a row.
#[derive(Clone, Debug)]
pub struct Profile {
    pub row: Row,
    /// Instructions by function.
    pub functions: BTreeMap<String, i64>,
}

/// A row that the guest has measured while QEMU logged.
struct Traced {
    row: Row,
    samples: usize,
    /// Functions of the module, as it was loaded then.
    symbols: BTreeMap<u64, String>,
}

/// Boots the guest that measures the `rows`, "SUBJECT: OPERATION" each, with QEMU's log.
pub fn run(booter: &Booter, system_map: &Path, rows: &[&str]) -> Result<Vec<Profile>> {
    let kernel = symbols(system_map)?;
    let names: Vec<String> = rows.iter().map(|row| row.replace(' ', "+")).collect();
    let plan = vec![
        "famfs.mode=bench".to_owned(),
        format!("famfs.rows={}", names.join(";")),
    ];
    let large = rows
        .iter()
        .any(|row| row.contains("262144") || row.contains("512 GiB"));
    let topology = if large {
        &topology::BENCH_LARGE
    } else {
        &topology::BENCH
    };
    let mut machine = booter.machine(topology, &booter.kernel, "profile", plan)?;
    machine.cpus = Cpus::Counting;

    let clock = Arc::new(OnceLock::new());
    let trace = Arc::new(Mutex::new(Trace::default()));
    let (log_clock, log_trace) = (Arc::clone(&clock), Arc::clone(&trace));
    let reader = move |log| {
        log_trace
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read(log, &log_clock)
    };
    let (mut traced, mut last, mut symbols) = (Vec::new(), None, BTreeMap::new());
    guest::run_to_success(
        &machine,
        LIMITS,
        Some(Box::new(reader)),
        |event| match event {
            Event::Clock(address) => drop(clock.set(*address)),
            Event::Row(subject, operation, figure) => {
                last = Some(Row::new(subject, operation, *figure))
            }
            Event::Symbol(address, name) => drop(symbols.insert(*address, name.clone())),
            Event::Traced(samples) => traced.extend(last.take().map(|row| Traced {
                row,
                samples: *samples,
                symbols: std::mem::take(&mut symbols),
            })),
            Event::Step(text) => eprintln!("profile: {text}"),
            _ => (),
        },
    )?;
    // The reader has the lock until the log ends, and that is when QEMU has ended.
    let trace = trace.lock().unwrap_or_else(PoisonError::into_inner);
    attribute(&trace.operations, &traced, &kernel)
}

fn symbols(system_map: &Path) -> Result<BTreeMap<u64, String>> {
    let text = fs::read_to_string(system_map).with_context(|| system_map.display().to_string())?;
    Ok(text.lines().filter_map(parse_symbol).collect())
}

fn attribute(
    operations: &[Counts],
    traced: &[Traced],
    kernel: &BTreeMap<u64, String>,
) -> Result<Vec<Profile>> {
    let logged: usize = traced.iter().map(|traced| traced.samples).sum();
    ensure!(
        operations.len() == logged,
        "QEMU logged {} operations, the guest measured {logged}",
        operations.len()
    );
    let (mut rest, mut profiles) = (operations, Vec::new());
    for Traced {
        row,
        samples,
        symbols,
    } in traced
    {
        let (these, others) = rest.split_at(*samples);
        rest = others;
        let mut these: Vec<&Counts> = these.iter().collect();
        these.sort_by_key(|counts| counts.values().sum::<i64>());
        let mut functions = BTreeMap::<String, i64>::new();
        for (address, count) in these.get(samples / 2).copied().into_iter().flatten() {
            *functions
                .entry(function(*address, symbols, kernel))
                .or_default() += count;
        }
        functions.retain(|_, count| *count != 0);
        let profile = Profile {
            row: row.clone(),
            functions,
        };
        profile.check()?;
        profiles.push(profile);
    }
    Ok(profiles)
}

fn function(
    address: u64,
    module: &BTreeMap<u64, String>,
    kernel: &BTreeMap<u64, String>,
) -> String {
    if address < KERNEL {
        return "(user space)".to_owned();
    }
    let at_or_below = |symbols: &BTreeMap<u64, String>| {
        symbols
            .range(..=address)
            .next_back()
            .map(|(at, name)| (*at, name.clone()))
    };
    let name = at_or_below(module).max(at_or_below(kernel));
    name.map_or("(unknown)".to_owned(), |(_, name)| {
        format!("{:#}", demangle(&name))
    })
}

impl Profile {
    fn sum(&self) -> i64 {
        self.functions.values().sum()
    }

    /// The functions must make up the row.
    fn check(&self) -> Result<()> {
        let Row {
            subject,
            operation,
            figure,
        } = &self.row;
        ensure!(
            u64::try_from(self.sum())
                .is_ok_and(|sum| sum.abs_diff(*figure) <= 1 + figure / AGREEMENT),
            "{subject}: {operation}: the functions have {} instructions, the clock says {figure}",
            self.sum()
        );
        Ok(())
    }
}

/// A line for each function, a column for each row, in Markdown. With `all` small functions have a line, too.
pub fn table(profiles: &[Profile], all: bool) -> String {
    let count = |profile: &Profile, name: &str| profile.functions.get(name).copied().unwrap_or(0);
    let is_shown = |name: &str| {
        all || profiles
            .iter()
            .any(|profile| count(profile, name).saturating_mul(SMALL) > profile.sum())
    };
    let mut shown: BTreeMap<&str, i64> = BTreeMap::new();
    for (name, count) in profiles.iter().flat_map(|profile| &profile.functions) {
        if is_shown(name) {
            let most = shown.entry(name).or_default();
            *most = (*most).max(*count);
        }
    }
    let mut shown: Vec<(&str, i64)> = shown.into_iter().collect();
    shown.sort_by_key(|(_, most)| -most);

    let mut text = "| |".to_owned();
    for Profile { row, .. } in profiles {
        let _ = write!(text, " {}: {} |", row.subject, row.operation);
    }
    let _ = writeln!(text, "\n| --- |{}", " ---: |".repeat(profiles.len()));
    let mut line = |name: &str, figure: &dyn Fn(&Profile) -> i64| {
        let _ = write!(text, "| {name} |");
        for profile in profiles {
            let _ = match figure(profile) {
                0 => write!(text, " - |"),
                figure => write!(text, " {} |", thousands(figure.unsigned_abs())),
            };
        }
        text.push('\n');
    };
    for (name, _) in &shown {
        line(name, &|profile| count(profile, name));
    }
    line("others", &|profile| {
        profile.sum()
            - shown
                .iter()
                .map(|(name, _)| count(profile, name))
                .sum::<i64>()
    });
    line("sum", &Profile::sum);
    line("the row, by the clock", &|profile| {
        profile.row.figure as i64
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: u64 = 0x40_1000;

    fn traced(figure: u64) -> Traced {
        Traced {
            row: Row::new("famfs", "pread", figure),
            samples: 1,
            symbols: BTreeMap::from([(
                0xffff_ffff_c000_0000,
                "_RNvNtCs1234_5famfs4file5begin".to_owned(),
            )]),
        }
    }

    fn read(log: &str) -> Vec<Counts> {
        let clock = OnceLock::new();
        clock.set(CLOCK).unwrap();
        let mut trace = Trace::default();
        trace.read(log.as_bytes(), &clock);
        trace.operations
    }

    fn log(addresses: &[u64]) -> String {
        let line =
            |address| format!("Trace 0: 0x7f80 [00000000/{address:016x}/00403b00/ff020201] f\n");
        addresses.iter().map(line).collect()
    }

    /// Two instructions of the module, one of the kernel and three of the program, one of which isn't the operation's.
    fn operation() -> String {
        let kernel = [
            0xffff_ffff_8100_0004,
            0xffff_ffff_c000_0010,
            0xffff_ffff_c000_0020,
        ];
        let first = [
            &[7, CLOCK, CLOCK + 4, 0x40_2000],
            &kernel[..],
            &[0x40_2004, CLOCK, 7],
        ]
        .concat();
        log(&first) + &log(&[CLOCK, CLOCK + 4, CLOCK, 7])
    }

    #[test]
    fn instructions_are_found_in_their_functions() {
        let kernel = BTreeMap::from([(0xffff_ffff_8100_0000, "vfs_read".to_owned())]);
        let found = attribute(&read(&operation()), &[traced(5)], &kernel).unwrap();
        let expected = [
            ("(user space)", 2),
            ("famfs::file::begin", 2),
            ("vfs_read", 1),
        ];
        let expected = expected.map(|(name, count)| (name.to_owned(), count));
        assert_eq!(found[0].functions, BTreeMap::from(expected));
        let text = table(&found, true);
        assert!(
            text.contains("| sum | 5 |\n| the row, by the clock | 5 |\n"),
            "{text}"
        );
    }

    #[test]
    fn what_was_stopped_was_not_executed() {
        let stopped = "Stopped execution of TB chain before 0x7f80 [ffffffff81000008] f\n";
        let log = operation().replacen(
            "Trace 0: 0x7f80 [00000000/ffffffffc0000010",
            &format!(
                "{}{stopped}Trace 0: 0x7f80 [00000000/ffffffffc0000010",
                log(&[0xffff_ffff_8100_0008])
            ),
            1,
        );
        assert_eq!(read(&log), read(&operation()));
    }

    #[test]
    fn a_sum_that_is_not_the_rows_is_refused() {
        let operations = read(&operation());
        assert!(attribute(&operations, &[traced(7)], &BTreeMap::new()).is_err());
        assert!(attribute(&operations, &[traced(5), traced(5)], &BTreeMap::new()).is_err());
    }
}
