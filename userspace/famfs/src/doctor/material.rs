// SPDX-License-Identifier: MIT OR Apache-2.0
//! What doctor says of the memory that dax devices are made of: CXL memory devices and regions of persistent memory.

use std::fs;
use std::path::Path;

use super::{Item, Mend};
use crate::device::{is_name, link_name, read_number};
use crate::size;

/// What to do where there is neither.
pub const NOTHING: &str =
    "add CXL or persistent memory; to try famfs, boot with memmap=4G!12G, which makes 4 GiB of RAM such";

/// A line for each CXL memory device and each region of persistent memory.
pub fn items(sys: &Path) -> Vec<Item> {
    let mut items = cxl(&sys.join("bus/cxl/devices"));
    items.extend(pmem(&sys.join("bus/nd/devices")));
    items
}

/// Names in a directory that are `prefix` and a number, in order.
fn names(dir: &Path, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| is_name(name, prefix))
        .collect();
    names.sort_unstable();
    names
}

fn text(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.trim().to_owned()
}

fn cxl(dir: &Path) -> Vec<Item> {
    let item = |name: String| {
        let bytes = |kind: &str| {
            let bytes = read_number(&dir.join(&name).join(kind).join("size"), 16);
            size::show(bytes.unwrap_or_default(), true)
        };
        let memory = format!("{} volatile, {} persistent", bytes("ram"), bytes("pmem"));
        if let Some(region) = region_of(dir, &name) {
            return Item::ok(&name, format!("CXL, {memory}, in {region}"));
        }
        let window = names(dir, "decoder0.")
            .into_iter()
            .find(|decoder| text(&dir.join(decoder).join("cap_ram")) == "1");
        let window = window.unwrap_or_else(|| "decoder0.0".into());
        let mend = format!("cxl create-region -m -t ram -d {window} -w 1 {name}");
        Item::note(
            &name,
            format!("CXL, {memory}, in no region"),
            Mend::Run(mend),
        )
    };
    names(dir, "mem").into_iter().map(item).collect()
}

/// The region that a CXL memory device is a target of. Its decoders are named after its endpoint.
fn region_of(dir: &Path, memdev: &str) -> Option<String> {
    let is_its =
        |name: &String| link_name(&dir.join(name).join("uport")).as_deref() == Some(memdev);
    let endpoint = names(dir, "endpoint").into_iter().find(is_its)?;
    let decoders = format!("decoder{}.", endpoint.strip_prefix("endpoint")?);
    let has = |region: &String| {
        let region = dir.join(region);
        let mut targets = names(&region, "target").into_iter();
        targets.any(|target| text(&region.join(target)).starts_with(&decoders))
    };
    names(dir, "region").into_iter().find(has)
}

fn pmem(dir: &Path) -> Vec<Item> {
    let item = |name: String| {
        let region = dir.join(&name);
        let bytes = |attribute: &str| read_number(&region.join(attribute), 10).unwrap_or_default();
        let (all, free) = (bytes("size"), bytes("available_size"));
        let number = name.trim_start_matches("region");
        let spaces = names(dir, &format!("namespace{number}."));
        let unused = |space: &&String| {
            let space = dir.join(space);
            text(&space.join("holder")).is_empty()
                && read_number(&space.join("size"), 10).is_ok_and(|size| size > 0)
        };
        let found = format!("persistent memory, {}", size::show(all, true));
        let options = "-m devdax --align=2M -M mem";
        if let Some(space) = spaces.iter().find(unused) {
            let found = format!("{found}, {space} is no dax device");
            let mend =
                format!("ndctl create-namespace -f -e {space} {options} # what is on it is lost");
            return Item::note(&name, found, Mend::Run(mend));
        }
        if free > 0 {
            let found = format!("{found}, {} free", size::show(free, true));
            let mend = format!("ndctl create-namespace -r {name} {options}");
            return Item::note(&name, found, Mend::Run(mend));
        }
        Item::ok(&name, format!("{found}, all in use"))
    };
    names(dir, "region").into_iter().map(item).collect()
}
