// SPDX-License-Identifier: MIT OR Apache-2.0
//! `famfs doctor`: what is missing on this machine to mount, each with what mends it. It needs no privileges and
//! changes nothing.

mod kernel_side;
mod material;
mod memory;

use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::escape::escaped;
use crate::exit::{fail, Exit};
use crate::json;

/// Options of doctor.
#[derive(clap::Args)]
pub struct Args {
    /// Dax devices to look at, such as /dev/dax0.0 [default: all of this machine].
    devices: Vec<PathBuf>,
    /// Look at another machine: at copies of its /sys, /proc, /dev and /lib/modules in this directory.
    #[arg(long, value_name = "DIR", default_value = "/")]
    sysroot: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As famfs needs it.
    Ok,
    /// A mount fails without it.
    Missing,
    /// Of use, and no mount needs it.
    Note,
}

/// What puts something right.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mend {
    /// A command for root's shell.
    Run(String),
    /// What no command does.
    Do(String),
}

/// Something that was looked at.
#[derive(Debug, Serialize)]
struct Item {
    name: String,
    state: State,
    /// How it is.
    found: String,
    #[serde(flatten)]
    mend: Option<Mend>,
    /// What a mount would end with.
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<u8>,
}

impl Item {
    fn ok(name: impl Display, found: impl Display) -> Self {
        Self {
            name: name.to_string(),
            state: State::Ok,
            found: found.to_string(),
            mend: None,
            exit_code: None,
        }
    }

    fn note(name: impl Display, found: impl Display, mend: Mend) -> Self {
        Self {
            state: State::Note,
            mend: Some(mend),
            ..Self::ok(name, found)
        }
    }

    fn missing(exit: Exit, name: impl Display, found: impl Display, mend: Mend) -> Self {
        Self {
            state: State::Missing,
            exit_code: Some(exit as u8),
            ..Self::note(name, found, mend)
        }
    }
}

impl Mend {
    fn run(command: impl Into<String>) -> Self {
        Self::Run(command.into())
    }

    fn by(advice: impl Into<String>) -> Self {
        Self::Do(advice.into())
    }
}

#[derive(Serialize)]
struct Report {
    items: Vec<Item>,
    missing: usize,
}

/// Look at everything.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let report = Report::of(&args.sysroot, &args.devices);
    let mut out = io::stdout().lock();
    if args.json {
        json::print(&mut out, &report)?;
    } else {
        report.print(&mut out)?;
    }
    let first = report.items.iter().find_map(|item| item.exit_code);
    let Some(code) = first else {
        return Ok(());
    };
    let text = match report.missing {
        1 => "1 thing is missing to mount".to_owned(),
        n => format!("{n} things are missing to mount"),
    };
    Err(fail(crate::exit::of_code(code.into()), text))
}

impl Report {
    fn of(root: &Path, devices: &[PathBuf]) -> Self {
        let mut items = kernel_side::items(root);
        items.extend(memory::items(root, devices));
        items.extend(kernel_side::programs(root));
        let missing = items
            .iter()
            .filter(|item| item.state == State::Missing)
            .count();
        Self { items, missing }
    }

    /// A line for each item, and one below it with what mends it.
    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let names: Vec<_> = self.items.iter().map(|item| escaped(&item.name)).collect();
        let width = names.iter().map(String::len).max().unwrap_or_default();
        for (item, name) in self.items.iter().zip(names) {
            let state = match item.state {
                State::Ok => "ok",
                State::Missing => "missing",
                State::Note => "note",
            };
            writeln!(out, "{state:<8} {name:<width$}  {}", escaped(&item.found))?;
            match &item.mend {
                // Of words of ours and names that device::is_name lets pass.
                Some(Mend::Run(command)) => writeln!(out, "    run: {command}")?,
                Some(Mend::Do(text)) => writeln!(out, "     do: {text}")?,
                None => (),
            }
        }
        Ok(())
    }
}
