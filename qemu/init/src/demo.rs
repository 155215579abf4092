// SPDX-License-Identifier: MIT OR Apache-2.0
//! The walk-through: famfs at work, one step after the other, each said in plain words and checked.

use std::fs::{self, OpenOptions};

use anyhow::{ensure, Context, Result};
use rustix::mount::{unmount, UnmountFlags};
use rustix::process::Signal;

use crate::channel::Channel;
use crate::cmdline::{Memory, Plan};
use crate::dax::{self, DaxDev};
use crate::module;
use crate::probe::{faults_of_self, Probe, Reply};
use crate::raw::Raw;
use crate::sys::{Kind, Mapping};
use crate::tool;

const MOUNTPOINT: &str = "/mnt/famfs";
const FILE: &str = "/mnt/famfs/hello";
const SOURCE: &str = "/tmp/hello";
/// Bytes of the file: one allocation unit and a bit.
const SIZE: u64 = (2 << 20) + 5000;
const STEPS: usize = 10;

struct Demo<'a> {
    channel: &'a mut Channel,
    step: usize,
}

pub fn run(channel: &mut Channel, plan: &Plan) -> Result<()> {
    let mut demo = Demo { channel, step: 0 };
    let device = demo.memory(plan.memory)?;
    demo.load_module()?;
    demo.mkfs(&device)?;
    demo.mount(&device)?;
    let content = demo.copy_file()?;
    let mapping = demo.share_between_processes()?;
    demo.compare_raw_memory(&device, &content)?;
    demo.count_requests()?;
    demo.kill_server(&mapping)?;
    drop(mapping);
    demo.clean_up()
}

impl Demo<'_> {
    fn begin(&mut self, what: &str) {
        self.step += 1;
        self.channel.step(what);
        self.channel
            .say(&format!("[{:2}/{STEPS}] {what}", self.step));
    }

    fn found(&mut self, what: &str) {
        self.channel.say(&format!("        {what}"));
    }

    fn memory(&mut self, memory: Memory) -> Result<DaxDev> {
        self.begin(match memory {
            Memory::Cxl => "Create a region over the CXL memory device: a dax device appears",
            _ => "Create a dax device over plain memory",
        });
        let devices = dax::set_up(memory)?;
        let device = devices
            .into_iter()
            .next()
            .context("this topology has no dax device")?;
        if memory == Memory::Cxl {
            self.found(&dax::describe_cxl_region()?);
        }
        self.found(&format!(
            "{}: {} MiB at physical address {:#x}",
            device.path(),
            device.size()? >> 20,
            device.base()?
        ));
        Ok(device)
    }

    fn load_module(&mut self) -> Result<()> {
        self.begin("Load the kernel module: insmod famfs.ko");
        module::insmod(module::FAMFS)?.context("insmod famfs.ko")
    }

    fn mkfs(&mut self, device: &DaxDev) -> Result<()> {
        self.begin(&format!(
            "Make a file system: mkfs.famfs --set-daxmode {}",
            device.path()
        ));
        tool::mkfs(&["--set-daxmode", &device.path()])
    }

    fn mount(&mut self, device: &DaxDev) -> Result<()> {
        self.begin(&format!(
            "Mount it: famfs mount {} {MOUNTPOINT}",
            device.path()
        ));
        fs::create_dir_all(MOUNTPOINT)?;
        tool::famfs(&["mount", &device.path(), MOUNTPOINT]).map(drop)
    }

    fn copy_file(&mut self) -> Result<Vec<u8>> {
        self.begin(&format!(
            "Create a file and fill it: famfs cp {SOURCE} {FILE}"
        ));
        let content: Vec<u8> = (0..SIZE)
            .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
            .collect();
        fs::write(SOURCE, &content)?;
        tool::famfs(&["cp", SOURCE, FILE])?;
        ensure!(
            fs::read(FILE)? == content,
            "{FILE} has other bytes than {SOURCE}"
        );
        self.found(&format!("{SIZE} bytes, read back and compared"));
        Ok(content)
    }

    /// Leaves the mapping, which reads the words that the other process wrote.
    fn share_between_processes(&mut self) -> Result<Mapping> {
        self.begin("Map the file in one process while another process writes to it");
        let file = OpenOptions::new().read(true).open(FILE)?;
        let mapping = Mapping::new(&file, 0, SIZE as usize, Kind::SharedRead)?;
        let before = mapping.byte(100);
        let mut writer = Probe::start()?;
        writer.map(FILE, SIZE, Kind::SharedWrite)?;
        ensure!(
            writer.set(100, !before)? == Reply::Value(0),
            "the other process could not write"
        );
        ensure!(
            mapping.byte(100) == !before,
            "the write of the other process is not seen"
        );
        let pid = writer.pid();
        self.found(&format!(
            "byte 100 was {before:#04x}; process {pid} stored {:#04x}; the mapping shows it",
            !before
        ));
        Ok(mapping)
    }

    fn compare_raw_memory(&mut self, device: &DaxDev, content: &[u8]) -> Result<()> {
        self.begin("Look for the bytes in the raw memory, past every file system");
        let (index, offset, len) = *tool::getmap(FILE)?
            .first()
            .context("the file has no extent")?;
        ensure!(
            index == 0 && len >= SIZE,
            "unexpected map of {FILE}: device {index}, length {len}"
        );
        let raw = Raw::open(device)?.read(offset, content.len())?;
        let expected: Vec<u8> = content
            .iter()
            .enumerate()
            .map(|(at, byte)| if at == 100 { !byte } else { *byte })
            .collect();
        ensure!(
            raw == expected,
            "the raw memory at offset {offset:#x} has other bytes than the file"
        );
        self.found(&format!(
            "{SIZE} bytes found at offset {offset:#x} of {}, byte 100 as it was stored",
            device.path()
        ));
        Ok(())
    }

    fn count_requests(&mut self) -> Result<()> {
        self.begin(
            "Stop the server (SIGSTOP), take page faults, count the requests that wait for it",
        );
        let file = OpenOptions::new().read(true).write(true).open(FILE)?;
        let (server, connection) = (tool::server()?, tool::Connection::of(MOUNTPOINT)?);
        tool::signal_server(server, Signal::STOP, "T")?;
        let faults = faults_of_self()?;
        let mapping = Mapping::new(&file, 0, SIZE as usize, Kind::SharedWrite)?;
        mapping.no_huge_pages()?;
        for at in (0..mapping.len()).step_by(4096) {
            mapping.set_byte(at, mapping.byte(at));
        }
        let (taken, waiting) = (faults_of_self()? - faults, connection.waiting()?);
        tool::signal_server(server, Signal::CONT, "RSD")?;
        let pages = SIZE.div_ceil(4096);
        ensure!(taken >= pages, "only {taken} faults for {pages} pages");
        ensure!(waiting == 0, "{waiting} FUSE requests were sent");
        self.found(&format!(
            "{taken} faults taken, {waiting} FUSE requests sent"
        ));
        Ok(())
    }

    fn kill_server(&mut self, mapping: &Mapping) -> Result<()> {
        self.begin("Kill the server (SIGKILL) and go on reading through the mapping");
        let content = mapping.read(0, SIZE as usize);
        tool::signal_server(tool::server()?, Signal::KILL, "ZX")?;
        mapping.drop_entries(0, mapping.len())?;
        ensure!(
            mapping.read(0, SIZE as usize) == content,
            "the mapping has other bytes than before"
        );
        self.found("every page faulted in anew, same bytes");
        Ok(())
    }

    fn clean_up(&mut self) -> Result<()> {
        self.begin("Unmount and unload: umount, rmmod famfs");
        unmount(MOUNTPOINT, UnmountFlags::empty()).context("umount")?;
        module::rmmod("famfs").context("rmmod famfs")
    }
}
