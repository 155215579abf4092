// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tests' server as a process of its own, so that it can be stopped and killed: it stops by itself at one kind of
//! request.

use std::fmt::Write;
use std::fs::File;
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{ensure, Context, Result};
use rustix::mount::{unmount, MountFlags, UnmountFlags};
use rustix::process::{Pid, Signal};

use crate::server::{self, Answer, Serve, ServedFile};
use crate::tool::{signal_server, wait_for_state, Connection};
use crate::wire;

/// A mounted file system and the process that serves it; dropping it kills the one and unmounts the other.
pub struct StoppingFs {
    dir: String,
    child: Child,
    /// None before INIT: to ask for it takes a request.
    connection: Option<Connection>,
    mounted: bool,
}

impl StoppingFs {
    /// A server that stops when it has a request `stop_at`. With INIT nothing else was asked yet.
    pub fn mount(serve: &Serve, devices: &[String], stop_at: u32) -> Result<Self> {
        let (dir, dev) = server::mount_fuse(0, MountFlags::empty())?;
        let child = Command::new("/init")
            .arg("serve")
            .args([stop_at.to_string(), u8::from(serve.plain).to_string()])
            .args(
                serve
                    .files
                    .iter()
                    .map(argument)
                    .collect::<Result<Vec<_>>>()?,
            )
            .arg("--")
            .args(devices)
            .stdin(Stdio::from(dev))
            .spawn()?;
        let mut fs = Self {
            dir,
            child,
            connection: None,
            mounted: true,
        };
        if stop_at != wire::INIT {
            ensure!(
                std::fs::metadata(fs.path("no-such-file")).is_err(),
                "the test server knows a file it should not"
            );
            fs.connection = Some(Connection::of(&fs.dir)?);
        }
        Ok(fs)
    }

    pub fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.dir)
    }

    pub fn connection(&self) -> Result<&Connection> {
        self.connection.as_ref().context("the server stops at INIT")
    }

    pub fn is_mounted(&self) -> bool {
        self.mounted
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits until the server has stopped by itself.
    pub fn wait_until_stopped(&self) -> Result<()> {
        wait_for_state(self.pid(), "T").context("the server")
    }

    pub fn stop(&self) -> Result<()> {
        signal_server(self.pid(), Signal::STOP, "T")
    }

    /// Lets a stopped server go on.
    pub fn go_on(&self) -> Result<()> {
        signal_server(self.pid(), Signal::CONT, "RSD")
    }

    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    pub fn umount(&mut self, flags: UnmountFlags) -> rustix::io::Result<()> {
        unmount(self.dir.as_str(), flags)?;
        self.mounted = false;
        Ok(())
    }
}

impl Drop for StoppingFs {
    fn drop(&mut self) {
        let _ = self.kill();
        if self.mounted {
            let _ = unmount(self.dir.as_str(), UnmountFlags::DETACH);
        }
    }
}

/// NAME:SIZE:FMAP
fn argument(file: &ServedFile) -> Result<String> {
    let mut text = format!("{}:{}:", file.name, file.size);
    let Answer::Bytes(bytes) = &file.fmap else {
        anyhow::bail!("a server process needs fmaps in bytes");
    };
    for byte in bytes {
        write!(text, "{byte:02x}")?;
    }
    Ok(text)
}

fn file(argument: &str) -> Option<ServedFile> {
    let (name, rest) = argument.split_once(':')?;
    let (size, hex) = rest.split_once(':')?;
    let digits: Option<Vec<u32>> = hex.chars().map(|digit| digit.to_digit(16)).collect();
    let bytes = digits?
        .chunks(2)
        .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | *digit as u8))
        .collect();
    Some(ServedFile::answering(
        name,
        size.parse().ok()?,
        Answer::Bytes(bytes),
    ))
}

/// The server's own side; /dev/fuse is its standard input.
pub fn child_main(mut args: impl Iterator<Item = String>) -> ExitCode {
    let mut number = || args.next().and_then(|text| text.parse().ok());
    let (stop_at, plain) = (number(), number());
    let files = args
        .by_ref()
        .take_while(|text| text != "--")
        .filter_map(|text| file(&text))
        .collect();
    let devices: Vec<String> = args.collect();
    let Ok(dev) = std::io::stdin().as_fd().try_clone_to_owned() else {
        return ExitCode::FAILURE;
    };
    let serve = Serve {
        stop_at,
        plain: plain == Some(1),
        ..Serve::new(&devices, files)
    };
    server::serve(File::from(dev), &serve);
    ExitCode::SUCCESS
}
