// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line: verbs, and the link names that stand for some of them.

use std::ffi::OsString;
use std::path::Path;

use clap::{ArgAction, Args, Parser, Subcommand};
use famfs_media::Interleave;

use crate::escape::escaped_lines;
use crate::mount_helper::{self, Wish};
use crate::server::opener;
use crate::{
    check, chkread, clear_error, cp, creat, df, docs, doctor, dump, examples, exit, flush, fmap,
    fsck, getmap, handover, logplay, ls, mkdir, mkfs, mount, size, status, verify,
};

/// Files on fabric-attached memory: tools and server.
#[derive(Parser)]
#[command(name = "famfs", version, after_long_help = exit::TABLE, arg_required_else_help = true)]
pub struct Cli {
    /// Say more on stderr; twice for still more. RUST_LOG overrides it.
    #[arg(short, long, global = true, action = ArgAction::Count, display_order = 100)]
    verbose: u8,
    #[command(subcommand)]
    verb: Verb,
}

/// What to do.
#[derive(Subcommand)]
pub enum Verb {
    /// Say what is missing on this machine to mount, and what mends it.
    #[command(after_help = examples::DOCTOR)]
    Doctor(doctor::Args),
    /// Make a file system on dax devices.
    #[command(after_help = examples::MKFS)]
    Mkfs(mkfs::Args),
    /// Mount a file system.
    #[command(after_help = examples::MOUNT)]
    Mount(mount::Args),
    /// The server's process, started by mount.
    #[command(hide = true)]
    Serve(mount::ServeArgs),
    /// Write man pages and shell completions.
    #[command(hide = true)]
    Docs(docs::Args),
    /// A process of the server, which opens files for it.
    #[command(hide = true)]
    OpenMeta,
    /// Act on the server of a mount.
    #[command(after_help = examples::SERVER)]
    Server(handover::Args),
    /// Check superblock and log, and show how the space is used.
    #[command(after_help = examples::FSCK)]
    Fsck(fsck::Args),
    /// Show superblock and log as they are stored.
    #[command(after_help = examples::DUMP)]
    Dump(dump::Args),
    /// Make directories.
    #[command(after_help = examples::MKDIR)]
    Mkdir(mkdir::Args),
    /// Make files of given sizes.
    #[command(after_help = examples::CREAT)]
    Creat(creat::Args),
    /// Copy files into a mounted famfs.
    #[command(override_usage = "famfs cp [OPTIONS] <SOURCE>... <DEST>", after_help = examples::CP)]
    Cp(cp::Args),
    /// Compare files with the pattern that creat -r writes.
    #[command(after_help = examples::VERIFY)]
    Verify(verify::Args),
    /// Compare what read(2) and a mapping give.
    #[command(after_help = examples::CHKREAD)]
    Chkread(chkread::Args),
    /// Write files back from the CPU caches to memory.
    #[command(after_help = examples::FLUSH)]
    Flush(flush::Args),
    /// Show where the bytes of a file are.
    #[command(after_help = examples::GETMAP)]
    Getmap(getmap::Args),
    /// List files as the log has them, with their maps if asked.
    #[command(after_help = examples::LS)]
    Ls(ls::Args),
    /// Show how the space of each daxdev is used.
    #[command(after_help = examples::DF)]
    Df(df::Args),
    /// Check that a mount shows what its log says.
    #[command(after_help = examples::CHECK)]
    Check(check::Args),
    /// Judge replies of servers.
    #[command(after_help = examples::FMAP)]
    Fmap(fmap::Args),
    /// Show what servers and the kernel have and have done.
    #[command(after_help = examples::STATUS)]
    Status(status::Args),
    /// Let the server of a mount read new log entries.
    #[command(after_help = examples::LOGPLAY)]
    Logplay(logplay::Args),
    /// Let a mount use memory again that had errors and was repaired.
    #[command(after_help = examples::CLEAR_ERROR)]
    ClearError(clear_error::Args),
}

/// Owner and mode of what is created.
#[derive(Args, Clone)]
pub struct Ownership {
    /// Mode in octal [default: mkdir 0755, creat 0644, cp that of the source; the latter two less the umask].
    #[arg(short, long, value_parser = parse_mode)]
    pub mode: Option<u32>,
    /// Owner [default: the caller].
    #[arg(short, long)]
    pub uid: Option<u32>,
    /// Group [default: the caller's].
    #[arg(short, long)]
    pub gid: Option<u32>,
}

/// How files are spread. Without any of these: in one piece.
#[derive(Args, Clone)]
pub struct Striping {
    /// Strips per file; files smaller than a chunk stay in one piece.
    #[arg(short = 'N', long)]
    pub nstrips: Option<u64>,
    /// Buckets per daxdev, at most one strip of a file in each [default: as many as it takes].
    #[arg(short = 'B', long, requires = "nstrips")]
    pub nbuckets: Option<u64>,
    /// Bytes on a strip before the next one: a power of two from 2m, with k, m or g behind the number [default: 2m].
    #[arg(short = 'C', long, value_name = size::UNIT, requires = "nstrips", value_parser = size::parse)]
    pub chunk: Option<u64>,
}

impl Striping {
    /// Parameters for a file system with `daxdevs` daxdevs.
    pub fn interleave(&self, daxdevs: u64) -> Option<Interleave> {
        let nstrips = self.nstrips?;
        Some(Interleave {
            nstrips,
            nbuckets: self.nbuckets.unwrap_or(nstrips.div_ceil(daxdevs.max(1))),
            chunk_size: self.chunk.unwrap_or(famfs_media::ALLOC_UNIT),
        })
    }
}

fn parse_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err("a mode is octal, such as 0644".into()),
    }
}

/// What the command line asks for.
pub struct Call {
    /// What to do.
    pub verb: Verb,
    /// How much to say.
    pub verbose: u8,
    /// Whether mount(8) has called, which has exit codes of its own.
    pub from_mount: bool,
}

/// What to do, or `None` for nothing. A program name such as `mkfs.famfs` stands for the verb before the dot;
/// `mount.famfs` takes what mount(8) passes. The error is mount.famfs's alone: others end the program.
pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Option<Call>, String> {
    let args = words(args)?;
    let Some((args, from_mount)) = args else {
        return Ok(None);
    };
    let Cli { verb, verbose } = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        // Whose exit codes are not those of famfs.
        Err(error) if from_mount => {
            let text = error.to_string();
            return Err(text.trim_start_matches("error: ").trim_end().to_owned());
        }
        Err(error) if error.use_stderr() => {
            eprint!("{}", escaped_lines(&error));
            std::process::exit(error.exit_code())
        }
        Err(error) => error.exit(),
    };
    Ok(Some(Call {
        verb,
        verbose,
        from_mount,
    }))
}

/// Arguments of famfs, and whether mount(8) has called.
fn words(args: impl Iterator<Item = OsString>) -> Result<Option<(Vec<OsString>, bool)>, String> {
    let mut args = with_verb(args.collect());
    let from_mount = matches!(args.get(..2), Some([_, verb]) if verb == mount_helper::VERB);
    if from_mount {
        let words = args.get(2..).unwrap_or_default();
        let Wish::Mount(words) = mount_helper::translate(words)? else {
            return Ok(None);
        };
        args = ["famfs".into(), "mount".into()]
            .into_iter()
            .chain(words)
            .collect();
    }
    Ok(Some((args, from_mount)))
}

fn with_verb(mut args: Vec<OsString>) -> Vec<OsString> {
    let name = args
        .first()
        .and_then(|arg0| Path::new(arg0).file_name()?.to_str());
    let verb = name
        .and_then(|name| match name {
            "mount.famfs" => Some(mount_helper::VERB),
            _ => name.strip_suffix(".famfs"),
        })
        .map(OsString::from);
    if let (Some(verb), true) = (verb, !args.is_empty()) {
        args.splice(..1, [OsString::from("famfs"), verb]);
    }
    args
}

/// Run a verb.
pub fn run(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Doctor(args) => doctor::run(&args),
        Verb::Mkfs(args) => mkfs::run(&args),
        Verb::Mount(args) => mount::run(&args),
        Verb::Serve(args) => mount::serve(&args),
        Verb::Docs(args) => docs::run(&args),
        Verb::OpenMeta => opener::run(),
        Verb::Server(args) => handover::run(&args),
        Verb::Fsck(args) => fsck::run(&args),
        Verb::Dump(args) => dump::run(&args),
        Verb::Mkdir(args) => mkdir::run(&args),
        Verb::Creat(args) => creat::run(&args),
        Verb::Cp(args) => cp::run(&args),
        Verb::Verify(args) => verify::run(&args),
        Verb::Chkread(args) => chkread::run(&args),
        Verb::Flush(args) => flush::run(&args),
        Verb::Getmap(args) => getmap::run(&args),
        Verb::Ls(args) => ls::run(&args),
        Verb::Df(args) => df::run(&args),
        Verb::Check(args) => check::run(&args),
        Verb::Fmap(args) => fmap::run(&args),
        Verb::Status(args) => status::run(&args),
        Verb::Logplay(args) => logplay::run(&args),
        Verb::ClearError(args) => clear_error::run(&args),
    }
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
