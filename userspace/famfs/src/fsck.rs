// SPDX-License-Identifier: MIT OR Apache-2.0
//! `fsck.famfs`: check superblock and log, and show how the space is used. It changes nothing.

use std::io::{self, Write};
use std::path::PathBuf;

use famfs_media::{Finding, LogHeader, Replay, Role, Severity, Superblock, ALLOC_UNIT};
use serde::Serialize;

use crate::escape::escaped;
use crate::exit::{fail, Exit};
use crate::image::Image;
use crate::json;
use crate::{size, system};

/// Options of fsck.
#[derive(clap::Args)]
pub struct Args {
    /// A path in a mount, a dax device, or a file that holds a device's first bytes.
    path: PathBuf,
    /// Sizes in KiB, MiB and so on.
    #[arg(long)]
    human: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Serialize)]
struct Report {
    fs_uuid: String,
    dev_uuid: String,
    system_uuid: String,
    role: &'static str,
    device: String,
    device_bytes: u64,
    log_bytes: u64,
    log_entries: u64,
    log_capacity: u64,
    daxdevs: Vec<DaxdevReport>,
    files: u64,
    directories: u64,
    file_bytes: u64,
    allocated_bytes: u64,
    units: u64,
    units_used: u64,
    collisions: u64,
    errors: Vec<Issue>,
    warnings: Vec<Issue>,
}

#[derive(Serialize)]
struct DaxdevReport {
    index: u32,
    uuid: Option<String>,
    units: u64,
    units_used: u64,
}

#[derive(Serialize)]
struct Issue {
    entry: u64,
    /// The last of several entries in a row that are broken.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_entry: Option<u64>,
    path: Option<String>,
    problem: String,
}

/// Check a file system.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let image = Image::load(&args.path)?;
    if image.superblock.is_secondary() {
        let sb = &image.superblock;
        let text = format!(
            "{} is a further daxdev (uuid {}) of famfs {}; its log is on the first one",
            args.path.display(),
            sb.dev_uuid,
            sb.fs_uuid
        );
        return Err(fail(Exit::NoFamfs, text));
    }
    let header = image.header()?;
    let mut replay = Replay::new(&image.superblock, image.device_size);
    for piece in image.pieces() {
        let piece = piece?;
        let upto = LogHeader {
            next_index: piece.end,
            ..header
        };
        replay.inspect(&upto, &piece.bytes)?;
    }
    let report = Report::new(&image, &header, &replay);
    let mut out = io::stdout().lock();
    if args.json {
        json::print(&mut out, &report)?;
    } else {
        report.print(&mut out, args.human)?;
    }
    let errors = report.errors.iter();
    match errors.fold(0, |sum: u64, issue| sum.saturating_add(issue.count())) {
        0 => Ok(()),
        1 => Err(fail(Exit::Corrupt, "1 log entry is wrong and was left out")),
        n => Err(fail(
            Exit::Corrupt,
            format!("{n} log entries are wrong and were left out"),
        )),
    }
}

impl Report {
    fn new(image: &Image, header: &LogHeader, replay: &Replay) -> Self {
        let sb = &image.superblock;
        let totals = &replay.totals;
        let (errors, warnings) = replay
            .findings
            .iter()
            .partition::<Vec<_>, _>(|f| is_error(f));
        let mut warnings: Vec<Issue> = warnings.into_iter().map(Issue::from).collect();
        if header.next_seqnum != header.next_index {
            let problem = format!(
                "the next sequence number, {}, is not this index: an append was cut short, or the log header is damaged",
                header.next_seqnum
            );
            warnings.push(Issue {
                entry: header.next_index,
                last_entry: None,
                path: None,
                problem,
            });
        }
        Self {
            fs_uuid: sb.fs_uuid.to_string(),
            dev_uuid: sb.dev_uuid.to_string(),
            system_uuid: sb.system_uuid.to_string(),
            role: role(sb),
            device: String::from_utf8_lossy(&sb.dax.name).into_owned(),
            device_bytes: image.device_size,
            log_bytes: sb.log_len,
            log_entries: header.next_index,
            log_capacity: header.last_index.saturating_add(1),
            daxdevs: daxdevs(sb, replay),
            files: totals.files,
            directories: totals.dirs,
            file_bytes: totals.file_bytes,
            allocated_bytes: totals.allocated_bytes,
            units: replay.space.units(),
            units_used: replay.space.used(),
            collisions: totals.collisions,
            errors: errors.into_iter().map(Issue::from).collect(),
            warnings,
        }
    }

    fn print(&self, out: &mut impl Write, human: bool) -> io::Result<()> {
        let bytes = |n| size::show(n, human);
        let units = |n: u64| size::show(n.saturating_mul(ALLOC_UNIT), human);
        writeln!(out, "famfs {}", self.fs_uuid)?;
        writeln!(
            out,
            "  device       {}, {}",
            escaped(&self.device),
            bytes(self.device_bytes)
        )?;
        writeln!(
            out,
            "  role         {} (system uuid {})",
            self.role, self.system_uuid
        )?;
        writeln!(
            out,
            "  log          {} of {} entries used",
            self.log_entries, self.log_capacity
        )?;
        writeln!(
            out,
            "  files        {}, {}",
            self.files,
            bytes(self.file_bytes)
        )?;
        writeln!(out, "  directories  {}", self.directories)?;
        writeln!(out, "  allocated    {}", bytes(self.allocated_bytes))?;
        writeln!(
            out,
            "  space        {} of {} units used, {} free",
            self.units_used,
            self.units,
            { units(self.units.saturating_sub(self.units_used)) }
        )?;
        for dev in self.daxdevs.iter().filter(|_| self.daxdevs.len() > 1) {
            writeln!(
                out,
                "    daxdev {:<2}  {} of {} units used",
                dev.index, dev.units_used, dev.units
            )?;
        }
        for (kind, issues) in [("error", &self.errors), ("warning", &self.warnings)] {
            for issue in issues {
                let path = issue
                    .path
                    .as_ref()
                    .map_or_else(String::new, |path| format!(" {path:?}"));
                let (place, problem) = (issue.place(), &issue.problem);
                writeln!(out, "{kind}: {place}{path}: {problem}")?;
            }
        }
        Ok(())
    }
}

impl Issue {
    /// How many entries it is about.
    fn count(&self) -> u64 {
        let last = self.last_entry.unwrap_or(self.entry);
        last.saturating_sub(self.entry).saturating_add(1)
    }

    fn place(&self) -> String {
        match self.last_entry {
            Some(last) => format!("entries {} to {last}", self.entry),
            None => format!("entry {}", self.entry),
        }
    }
}

impl From<&Finding> for Issue {
    fn from(finding: &Finding) -> Self {
        Self {
            entry: finding.index,
            last_entry: Some(finding.last).filter(|&last| last != finding.index),
            path: finding.path.clone(),
            problem: finding.problem.to_string(),
        }
    }
}

fn is_error(finding: &Finding) -> bool {
    finding.problem.severity() == Severity::Refused
}

fn role(sb: &Superblock) -> &'static str {
    match sb.role(system::uuid()) {
        Role::Master => "master",
        Role::Client => "client",
    }
}

fn daxdevs(sb: &Superblock, replay: &Replay) -> Vec<DaxdevReport> {
    let uuid = |index| match index {
        0 => Some(sb.dev_uuid.to_string()),
        _ => replay
            .daxdevs
            .iter()
            .find(|d| d.index == index)
            .map(|d| d.uuid.to_string()),
    };
    let device = |index| {
        let (units, units_used) = replay.space.device(index)?;
        Some(DaxdevReport {
            index,
            uuid: uuid(index),
            units,
            units_used,
        })
    };
    replay.space.devindexes().filter_map(device).collect()
}
