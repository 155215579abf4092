// SPDX-License-Identifier: MIT OR Apache-2.0
//! `famfs dump`: superblock and log as they are stored, judged by nothing but their CRCs.

use std::io::{self, Write};
use std::path::PathBuf;

use famfs_media::{Body, Entry, Extent, LogHeader, RawMap, Superblock, ENTRY_BYTES};
use serde::ser::{Error, SerializeSeq};
use serde::{Serialize, Serializer};
use serde_json::{json, Map, Value};

use crate::escape::escaped;
use crate::image::Image;

/// Options of dump.
#[derive(clap::Args)]
pub struct Args {
    /// A path in a mount, a dax device, or a file that holds a device's first bytes.
    path: PathBuf,
    /// Print JSON instead of one line per item.
    #[arg(long)]
    json: bool,
}

/// Print everything.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let image = Image::load(&args.path)?;
    let mut out = io::stdout().lock();
    if args.json {
        crate::json::print(&mut out, &Dump::new(&image))?;
        return Ok(());
    }
    let Dump { superblock, log } = Dump::new(&image);
    // JSON leaves some control characters as they are.
    writeln!(out, "superblock {}", escaped(superblock))?;
    writeln!(
        out,
        "log header {}",
        log.map_or(Value::Null, |log| log.header)
    )?;
    for piece in image.pieces() {
        for bytes in piece?.bytes.chunks_exact(ENTRY_BYTES) {
            writeln!(out, "entry {}", escaped(entry(bytes)))?;
        }
    }
    Ok(())
}

#[derive(Serialize)]
struct Dump<'a> {
    superblock: Value,
    log: Option<Log<'a>>,
}

#[derive(Serialize)]
struct Log<'a> {
    header: Value,
    entries: Entries<'a>,
}

/// All entries, read while they are written.
struct Entries<'a>(&'a Image);

impl<'a> Dump<'a> {
    fn new(image: &'a Image) -> Self {
        Self {
            superblock: superblock(&image.superblock_bytes),
            log: header(&image.header_bytes).map(|header| Log {
                header,
                entries: Entries(image),
            }),
        }
    }
}

impl Serialize for Entries<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        for piece in self.0.pieces() {
            let piece = piece.map_err(S::Error::custom)?;
            for bytes in piece.bytes.chunks_exact(ENTRY_BYTES) {
                list.serialize_element(&entry(bytes))?;
            }
        }
        list.end()
    }
}

fn crcs((stored, computed): (u64, u64)) -> [(&'static str, Value); 3] {
    [
        ("crc_stored", json!(format!("{stored:08x}"))),
        ("crc_computed", json!(format!("{computed:08x}"))),
        ("crc_ok", json!(stored == computed)),
    ]
}

/// `fields` and the CRCs of one structure as an object.
fn object(fields: Value, crc: (u64, u64)) -> Value {
    let mut object = match fields {
        Value::Object(object) => object,
        _ => Map::new(),
    };
    object.extend(crcs(crc).map(|(key, value)| (key.to_string(), value)));
    Value::Object(object)
}

fn superblock(bytes: &[u8]) -> Value {
    let Some(sb) = Superblock::decode(bytes) else {
        return Value::Null;
    };
    let (magic, version) = Superblock::magic_version(bytes);
    let fields = json!({
        "magic": format!("{magic:#x}"),
        "version": version,
        "log_offset": sb.log_offset,
        "log_len": sb.log_len,
        "alloc_unit": sb.alloc_unit,
        "omf_major": sb.omf_major,
        "omf_minor": sb.omf_minor,
        "fs_uuid": sb.fs_uuid,
        "dev_uuid": sb.dev_uuid,
        "system_uuid": sb.system_uuid,
        "sb_flags": sb.flags,
        "daxdev_size": sb.dax.size,
        "daxdev_uuid": sb.dax.uuid,
        "daxdev_name": String::from_utf8_lossy(&sb.dax.name),
    });
    object(fields, Superblock::crcs(bytes))
}

fn header(bytes: &[u8]) -> Option<Value> {
    let header = LogHeader::decode(bytes)?;
    let fields = json!({
        "magic": format!("{:#x}", LogHeader::magic(bytes)),
        "log_len": header.log_len,
        "last_index": header.last_index,
        "next_seqnum": header.next_seqnum,
        "next_index": header.next_index,
    });
    Some(object(fields, LogHeader::crcs(bytes)))
}

fn entry(bytes: &[u8]) -> Value {
    let Some(entry) = Entry::decode(bytes) else {
        return Value::Null;
    };
    let name = match &entry.body {
        Body::File(_) => "FILE",
        Body::Mkdir(_) => "MKDIR",
        Body::Delete => "DELETE",
        Body::AddDaxdev(_) => "ADD_DAXDEV",
        Body::Unknown(_) => "?",
    };
    let mut fields =
        json!({ "seqnum": entry.seqnum, "type": entry.type_code(), "type_name": name });
    if let (Value::Object(fields), Value::Object(more)) = (&mut fields, body(&entry.body)) {
        fields.extend(more);
    }
    object(fields, Entry::crcs(bytes))
}

fn body(body: &Body) -> Value {
    match body {
        Body::File(file) => {
            let mut fields = json!({
                "size": file.size,
                "flags": file.flags,
                "uid": file.uid,
                "gid": file.gid,
                "mode": format!("{:04o}", file.mode),
                "relpath": path(&file.path),
            });
            if let (Value::Object(fields), Value::Object(more)) = (&mut fields, map(&file.map)) {
                fields.extend(more);
            }
            fields
        }
        Body::Mkdir(dir) => json!({
            "uid": dir.uid,
            "gid": dir.gid,
            "mode": format!("{:04o}", dir.mode),
            "relpath": path(&dir.path),
        }),
        Body::AddDaxdev(dev) => json!({ "size": dev.size, "uuid": dev.uuid, "index": dev.index }),
        Body::Delete | Body::Unknown(_) => json!({}),
    }
}

fn map(map: &RawMap) -> Value {
    match map {
        RawMap::Simple { nextents, extents } => json!({
            "ext_type": 0,
            "nextents": nextents,
            "extents": extents.iter().map(extent).collect::<Vec<_>>(),
        }),
        RawMap::Interleaved {
            niext,
            nstrips,
            chunk_size,
            strips,
        } => json!({
            "ext_type": 1,
            "niext": niext,
            "nstrips": nstrips,
            "chunk_size": chunk_size,
            "strips": strips.iter().map(extent).collect::<Vec<_>>(),
        }),
        RawMap::Unknown(code) => json!({ "ext_type": code }),
    }
}

fn extent(extent: &Extent) -> Value {
    json!({ "devindex": extent.devindex, "offset": extent.offset, "len": extent.len })
}

/// The path field up to its first NUL, or all of it.
fn path(field: &[u8]) -> String {
    let text: Vec<u8> = field.iter().copied().take_while(|&b| b != 0).collect();
    String::from_utf8_lossy(&text).into_owned()
}
