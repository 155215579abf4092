// SPDX-License-Identifier: MIT OR Apache-2.0
//! `famfs status`: what servers tell about themselves, and the kernel about what it has cached. Asking sends no FUSE
//! request.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use famfs_media::ALLOC_UNIT;
use serde_json::{json, Value};

use crate::escape::escaped;
use crate::mounted;
use crate::mountinfo::Mount;
use crate::server::control;
use crate::size;

/// Where famfs.ko tells what it has, a file for each mount.
pub const DEBUGFS: &str = "/sys/kernel/debug/famfs";

/// Options of status.
#[derive(clap::Args)]
pub struct Args {
    /// Mount point, or dax device of a mount [default: all mounts of this host].
    path: Option<PathBuf>,
    /// Print JSON: an object, or without PATH an array of them.
    #[arg(long)]
    json: bool,
}

/// Print the status.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if let Some(path) = &args.path {
        let status = of_mount(&mounted::mount_at(path)?)?;
        if args.json {
            crate::json::print(&mut out, &status)?;
        } else {
            print(&mut out, &status)?;
        }
        return Ok(());
    }
    let statuses: Vec<Value> = mounted::all()?
        .iter()
        .map(|mount| {
            of_mount(mount).unwrap_or_else(
                |error| json!({ "mountpoint": mount.point.to_string_lossy(), "error": format!("{error:#}") }),
            )
        })
        .collect();
    if args.json {
        crate::json::print(&mut out, &statuses)?;
        return Ok(());
    }
    for (index, status) in statuses.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        print(&mut out, status)?;
    }
    Ok(())
}

fn of_mount(mount: &Mount) -> anyhow::Result<Value> {
    let mut status = control::status(&mount.source).with_context(|| {
        let device = mount.source.display();
        format!("{device} is mounted but its server does not answer")
    })?;
    let (major, minor) = mount.device;
    let file = Path::new(DEBUGFS).join(format!("{major}:{minor}"));
    if let (Ok(text), Some(status)) = (fs::read_to_string(file), status.as_object_mut()) {
        status.insert("kernel".into(), kernel(&text));
    }
    Ok(status)
}

/// What the module's file says: maps that are cached, their memory, and what has failed.
fn kernel(text: &str) -> Value {
    let (mut fmaps, mut bytes, mut suspect) = (0u64, 0u64, 0u64);
    let (mut policies, mut failures) = (Vec::new(), Vec::new());
    let mut device = "";
    for line in text.lines() {
        let mut words = line.split(' ');
        let kind = words.next().unwrap_or_default();
        let fields: BTreeMap<_, _> = words.filter_map(|word| word.split_once('=')).collect();
        let field = |key| fields.get(key).copied().unwrap_or_default();
        match kind {
            "daxdev" => {
                device = field("name").trim_matches('"');
                policies.push(field("policy"));
                if field("state") != "ok" {
                    failures.push(json!({ "device": device, "state": field("state") }));
                }
            }
            "poison" => {
                let [offset, len] = ["offset", "len"].map(|key| hex(field(key)));
                failures.push(json!({ "device": device, "offset": offset, "len": len }));
            }
            "fmap" => {
                fmaps = fmaps.saturating_add(1);
                bytes = bytes.saturating_add(field("bytes").parse().unwrap_or(0));
                suspect = suspect.saturating_add(field("suspect").parse().unwrap_or(0));
            }
            _ => {}
        }
    }
    json!({
        "fmaps": fmaps, "fmap_bytes": bytes, "suspect_files": suspect,
        "policies": policies, "failures": failures,
    })
}

/// A number as the kernel writes it, `0x1000`.
fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// A line for each field; those of objects are indented.
fn print(out: &mut impl Write, status: &Value) -> io::Result<()> {
    for (key, value) in status.as_object().into_iter().flatten() {
        match value {
            Value::Object(fields) => {
                writeln!(out, "{key}")?;
                for (name, value) in fields {
                    writeln!(out, "  {name:14}{}", shown(name, value))?;
                }
            }
            Value::Array(values) if values.iter().any(Value::is_object) => {
                writeln!(out, "{key}")?;
                for value in values {
                    writeln!(out, "  {}", shown(key, value))?;
                }
            }
            _ => writeln!(out, "{key:16}{}", shown(key, value))?,
        }
    }
    Ok(())
}

/// A value for people; what a number counts is in its name.
fn shown(key: &str, value: &Value) -> String {
    match value {
        Value::String(text) => escaped(text),
        Value::Array(values) if values.is_empty() => "none".into(),
        Value::Array(values) => {
            let values: Vec<_> = values.iter().map(|value| shown(key, value)).collect();
            values.join(" ")
        }
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(key, value)| format!("{key} {}", shown(key, value)));
            fields.collect::<Vec<_>>().join(", ")
        }
        Value::Number(number) => match number.as_u64() {
            Some(units) if key.starts_with("units") => {
                let bytes = size::show(units.saturating_mul(ALLOC_UNIT), true);
                format!("{units} ({bytes})")
            }
            Some(bytes) if key.ends_with("_bytes") => size::show(bytes, true),
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modules_file_is_summed_up() {
        let text = "daxdev index=0 name=\"/dev/dax0.0\" state=ok policy=device\n\
            fmap ino=3 size=2097152 kind=simple extents=1 daxdevs=1 bytes=88 suspect=0\n\
            fmap ino=16 size=9 kind=simple extents=1 daxdevs=1 bytes=88 suspect=1\n\
            daxdev index=1 name=\"/dev/dax1.0\" state=failed policy=range\n\
            poison offset=0x200000 len=0x1000\n";
        let expected = json!({
            "fmaps": 2, "fmap_bytes": 176, "suspect_files": 1,
            "policies": ["device", "range"],
            "failures": [
                { "device": "/dev/dax1.0", "state": "failed" },
                { "device": "/dev/dax1.0", "offset": 0x20_0000, "len": 0x1000 },
            ],
        });
        assert_eq!(kernel(text), expected);
    }

    #[test]
    fn text_is_for_people() {
        let status = json!({
            "daxdevs": [{ "device": "/dev/dax0.0", "units": 8192 }],
            "devices": ["/dev/dax0.0\u{1b}[2J"], "files": 3, "units": 8192,
            "kernel": { "failures": [], "fmap_bytes": 2048 },
        });
        let mut out = Vec::new();
        print(&mut out, &status).unwrap();
        let expected = "\
daxdevs
  device /dev/dax0.0, units 8192 (16.00 GiB)
devices         /dev/dax0.0\\u{1b}[2J
files           3
kernel
  failures      none
  fmap_bytes    2.00 KiB
units           8192 (16.00 GiB)
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
