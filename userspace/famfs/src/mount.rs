// SPDX-License-Identifier: MIT OR Apache-2.0
//! `famfs mount`: all that can go wrong is found out and said before anything is changed; then a server is started.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use famfs_fmap::Policy;
use famfs_media::Role;
use tracing::level_filters::LevelFilter;

use crate::device::{self, DaxDevice};
use crate::exit::{fail, Exit};
use crate::server::{self, service, Options, Summary};
use crate::{daemon, kernel, mounted};

/// Arguments of `famfs mount`, and of the server that it starts.
#[derive(clap::Args)]
pub struct Args {
    /// Dax device with the superblock and the log.
    device: PathBuf,
    /// Directory to mount on.
    mountpoint: PathBuf,
    /// A further dax device of a file system on several [default: those that have its uuid, in fsdev mode].
    #[arg(long, value_name = "DEVICE")]
    daxdev: Vec<PathBuf>,
    /// Switch devices to fsdev mode that are in another. Programs that have them mapped lose them.
    #[arg(short = 'M', long)]
    set_daxmode: bool,
    /// How often a client looks for new files, in seconds; 0 leaves it to `famfs logplay`.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_interval)]
    follow: Duration,
    /// Let programs on a client write to files; only the master adds files.
    #[arg(long)]
    rw: bool,
    /// Let nobody write, not even on the master: no files can be added.
    #[arg(long, conflicts_with = "rw")]
    ro: bool,
    /// Let nobody execute programs from the file system.
    #[arg(long)]
    noexec: bool,
    /// Make this host the master. For when the old one is gone for good: two that add files destroy the log.
    #[arg(long)]
    take_over: bool,
    /// What a memory error takes away: every file on the device, or the poisoned bytes alone [default: as famfs.ko
    /// was loaded].
    #[arg(long, value_enum, value_name = "POLICY")]
    failure: Option<Failure>,
    /// Stay in the foreground and serve the file system from there.
    #[arg(long)]
    foreground: bool,
    /// Append the server's messages to this file; -v and RUST_LOG choose them.
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok();
    let interval = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    interval.ok_or_else(|| "an interval is a number of seconds, such as 0.5".into())
}

/// What a memory error takes away.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Failure {
    /// Every file on the device.
    Device,
    /// The poisoned bytes alone.
    Range,
}

impl Args {
    fn options(&self) -> Options {
        Options {
            follow: Some(self.follow).filter(|interval| !interval.is_zero()),
            rw: self.rw,
            ro: self.ro,
            noexec: self.noexec,
            take_over: self.take_over,
            failure: self.policy(),
        }
    }

    fn policy(&self) -> Option<Policy> {
        self.failure.map(|failure| match failure {
            Failure::Device => Policy::Device,
            Failure::Range => Policy::Range,
        })
    }
}

/// Mounts, and comes back when the files are there (or, in the foreground, when they are gone again).
pub fn run(args: &Args) -> anyhow::Result<()> {
    kernel::check_privileges()?;
    let mut devices = find_devices(args)?;
    if !args.set_daxmode {
        devices.iter().try_for_each(DaxDevice::require_fsdev)?;
    }
    let inherited = if args.foreground {
        server::inherited()?
    } else {
        None
    };
    if let Some(descriptors) = inherited {
        let ready = |summary: &Summary| announce(summary, &devices, &args.mountpoint);
        return server::resume(first(&devices)?, &args.options(), descriptors, ready);
    }
    let mountpoint = check_mountpoint(&args.mountpoint)?;
    for device in &devices {
        if let Some(at) = mounted::mount_point(&device.path)? {
            let (device, at) = (device.path.display(), at.display());
            return Err(fail(
                Exit::Device,
                format!("{device} is mounted already, on {at}: `umount {at}` first"),
            ));
        }
    }
    kernel::check_module()?;
    devices.iter_mut().try_for_each(device::set_fsdev_mode)?;
    if args.foreground {
        let ready = |summary: &Summary| announce(summary, &devices, &mountpoint);
        return server::run(&devices, &mountpoint, &args.options(), ready);
    }
    let mut server = spawn(args, &devices, &mountpoint)?;
    eprintln!("{}", daemon::await_ready(&mut server)?);
    Ok(())
}

/// Arguments of the server's process.
#[derive(clap::Args)]
pub struct ServeArgs {
    #[command(flatten)]
    mount: Args,
    /// Take over from the server at the other end of the standard input.
    #[arg(long)]
    successor: bool,
}

/// The server's process, for which [`run`] has done the checks. Its standard output goes to [`daemon::await_ready`].
pub fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    let (mountpoint, options) = (&args.mount.mountpoint, args.mount.options());
    let served = find_devices(&args.mount).and_then(|devices| {
        // Fails where this process leads a session already: then there is nothing to leave.
        let _ = rustix::process::setsid();
        rustix::process::chdir("/")?;
        let ready = |summary: &Summary| {
            Ok(daemon::tell_ready(&describe(
                summary, &devices, mountpoint,
            ))?)
        };
        if args.successor {
            server::succeed(first(&devices)?, &options, ready)
        } else {
            server::run(&devices, mountpoint, &options, ready)
        }
    });
    if let Err(error) = &served {
        daemon::tell(&format!("{error:#}"))?;
    }
    served
}

/// Tells the user and the service manager, if there is one, that the mount is there.
fn announce(summary: &Summary, devices: &[DaxDevice], mountpoint: &Path) -> anyhow::Result<()> {
    eprintln!("{}", describe(summary, devices, mountpoint));
    Ok(service::ready()?)
}

fn first(devices: &[DaxDevice]) -> anyhow::Result<&DaxDevice> {
    devices.first().context("no device was given")
}

fn find_devices(args: &Args) -> anyhow::Result<Vec<DaxDevice>> {
    let paths = std::iter::once(&args.device).chain(&args.daxdev);
    let devices = paths
        .map(|path| device::open(path))
        .collect::<Result<Vec<_>, _>>()?;
    for (index, device) in devices.iter().enumerate() {
        if devices
            .iter()
            .take(index)
            .any(|other| other.name == device.name)
        {
            return Err(fail(
                Exit::Usage,
                format!("{} was given twice", device.path.display()),
            ));
        }
    }
    Ok(devices)
}

/// The mount point as a path without links.
fn check_mountpoint(path: &Path) -> anyhow::Result<PathBuf> {
    let context = || format!("mount point {}", path.display());
    let path = fs::canonicalize(path).with_context(context)?;
    if !fs::metadata(&path).with_context(context)?.is_dir() {
        return Err(fail(
            Exit::Usage,
            format!("mount point {} is not a directory", path.display()),
        ));
    }
    Ok(path)
}

fn spawn(args: &Args, devices: &[DaxDevice], mountpoint: &Path) -> anyhow::Result<Child> {
    let messages = match &args.log_file {
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path);
            file.with_context(|| path.display().to_string())?.into()
        }
        None => Stdio::null(),
    };
    let paths: Vec<_> = devices.iter().map(|device| device.path.clone()).collect();
    let mut command = Command::new(std::env::current_exe()?);
    // The name chooses among the programs that the binary is.
    command
        .arg0("famfs")
        .arg("serve")
        .args(daemon::arguments(&paths, mountpoint, &args.options()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(messages);
    if std::env::var_os("RUST_LOG").is_none() {
        command.env("RUST_LOG", LevelFilter::current().to_string());
    }
    command.spawn().context("starting the server")
}

fn describe(summary: &Summary, devices: &[DaxDevice], mountpoint: &Path) -> String {
    let device = devices.first().map_or(Path::new(""), |device| &device.path);
    let role = match (summary.role, summary.writable) {
        (Role::Master, true) => "master",
        (Role::Master, false) => "master, read-only",
        (Role::Client, true) => "client",
        (Role::Client, false) => "client, read-only",
    };
    let (device, mountpoint) = (device.display(), mountpoint.display());
    let mut text = format!(
        "{device} mounted on {mountpoint} ({role}): {} files, {} directories",
        summary.files, summary.dirs
    );
    if summary.left_out > 0 {
        text.push_str(&format!(
            "; {} log entries left out, `famfs fsck {mountpoint}` lists them",
            summary.left_out
        ));
    }
    text
}
