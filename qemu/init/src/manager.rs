// SPDX-License-Identifier: MIT OR Apache-2.0
//! What systemd does for a service with a store of descriptors, by its protocol: sd_notify(3), sd_listen_fds(3).
//! systemd itself does not start on the guest's kernel, which lacks inotify among others.

use std::fs;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use rustix::io::{fcntl_setfd, FdFlags};
use rustix::net::{recvmsg, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

const SOCKET: &str = "/run/manager.sock";
const TIMEOUT: Duration = Duration::from_secs(60);
/// Has the descriptors $1 as 3, 4, ... of the program in the further arguments, as LISTEN_FDS counts them.
const PASS: &str =
    "n=3; for fd in $1; do eval \"exec $n<&$fd $fd<&-\"; n=$((n + 1)); done; shift; \
                    export LISTEN_PID=$$; exec \"$@\"";

pub struct Manager {
    socket: UnixDatagram,
    arguments: Vec<String>,
    store: Vec<(String, OwnedFd)>,
    child: Option<Child>,
    /// The main process, as the service itself may have changed it.
    pub pid: u32,
}

impl Manager {
    /// Starts the service `famfs ARGUMENTS`, and waits until it is ready.
    pub fn start(arguments: &[&str]) -> Result<Self> {
        let _ = fs::remove_file(SOCKET);
        let socket = UnixDatagram::bind(SOCKET).context(SOCKET)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        let arguments = arguments.iter().map(|text| (*text).to_owned()).collect();
        let mut manager = Self {
            socket,
            arguments,
            store: Vec::new(),
            child: None,
            pid: 0,
        };
        manager.spawn()?;
        Ok(manager)
    }

    fn spawn(&mut self) -> Result<()> {
        let mut numbers = Vec::new();
        for (_, fd) in &self.store {
            // Lost at exec otherwise; nothing else is started meanwhile.
            fcntl_setfd(fd, FdFlags::empty())?;
            numbers.push(fd.as_raw_fd().to_string());
        }
        ensure!(
            self.store.iter().all(|(_, fd)| fd.as_raw_fd() > 9),
            "a stored descriptor has the number of one that is passed"
        );
        let names: Vec<&str> = self.store.iter().map(|(name, _)| name.as_str()).collect();
        let mut command = Command::new("sh");
        command
            .args(["-c", PASS, "sh", &numbers.join(" "), "famfs"])
            .args(&self.arguments)
            .env("NOTIFY_SOCKET", SOCKET)
            .stdin(Stdio::null());
        if !names.is_empty() {
            command
                .env("LISTEN_FDS", names.len().to_string())
                .env("LISTEN_FDNAMES", names.join(":"));
        }
        let child = command.spawn().context("start the service")?;
        for (_, fd) in &self.store {
            fcntl_setfd(fd, FdFlags::CLOEXEC)?;
        }
        self.pid = child.id();
        self.child = Some(child);
        while !self.hear()?.iter().any(|line| line == "READY=1") {}
        Ok(())
    }

    /// Takes one message of the service; gives its lines.
    fn hear(&mut self) -> Result<Vec<String>> {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let message = recvmsg(
            &self.socket,
            &mut slices,
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
        .context("the service does not say that it is ready")?;
        let text = String::from_utf8_lossy(bytes.get(..message.bytes).unwrap_or_default());
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let value = |key: &str| lines.iter().find_map(|line| line.strip_prefix(key));
        let mut fds = ancillary.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
            _ => Vec::new(),
        });
        if value("FDSTORE=") == Some("1") {
            let name = value("FDNAME=").unwrap_or("stored");
            for fd in fds.by_ref() {
                let fd = rustix::io::fcntl_dupfd_cloexec(&fd, 10)?;
                self.store.push((name.to_owned(), fd));
            }
        }
        if value("FDSTOREREMOVE=") == Some("1") {
            let name = value("FDNAME=").unwrap_or_default();
            self.store.retain(|(known, _)| known != name);
        }
        if let Some(pid) = value("MAINPID=") {
            self.pid = pid.parse()?;
        }
        Ok(lines)
    }

    /// Names of what is stored.
    pub fn stored(&self) -> Vec<&str> {
        self.store.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// Waits until the service has said that another process is the main one.
    pub fn await_main_pid(&mut self) -> Result<()> {
        while !self.hear()?.iter().any(|line| line.starts_with("MAINPID=")) {}
        Ok(())
    }

    /// Restart=on-failure: the main process is killed and started again.
    pub fn kill_and_restart(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else {
            bail!("the service does not run");
        };
        child.kill()?;
        child.wait()?;
        self.spawn()
    }

    /// Waits for the end of the service. Gives its exit code.
    pub fn wait(mut self) -> Result<Option<i32>> {
        let mut child = self.child.take().context("the service does not run")?;
        Ok(child.wait()?.code())
    }
}
