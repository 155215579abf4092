// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line: verbs, and the link names that stand for some of them.

use std::ffi::OsString;
use std::path::Path;

use clap::{ArgAction, Args, Parser, Subcommand};
use famfs_media::Interleave;

use crate::mount_helper::{self, Wish};
use crate::server::opener;
use crate::{
    check, chkread, clear_error, cp, creat, df, docs, doctor, dump, exit, flush, fmap, fsck,
    getmap, handover, logplay, ls, mkdir, mkfs, mount, size, status, verify,
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
    Doctor(doctor::Args),
    /// Make a file system on dax devices.
    Mkfs(mkfs::Args),
    /// Mount a file system.
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
    Server(handover::Args),
    /// Check superblock and log, and show how the space is used.
    Fsck(fsck::Args),
    /// Show superblock and log as they are stored.
    Dump(dump::Args),
    /// Make directories.
    Mkdir(mkdir::Args),
    /// Make files of given sizes.
    Creat(creat::Args),
    /// Copy files into a mounted famfs.
    #[command(override_usage = "famfs cp [OPTIONS] <SOURCE>... <DEST>")]
    Cp(cp::Args),
    /// Compare files with the pattern that creat -r writes.
    Verify(verify::Args),
    /// Compare what read(2) and a mapping give.
    Chkread(chkread::Args),
    /// Write files back from the CPU caches to memory.
    Flush(flush::Args),
    /// Show where the bytes of a file are.
    Getmap(getmap::Args),
    /// List files as the log has them, with their maps if asked.
    Ls(ls::Args),
    /// Show how the space of each daxdev is used.
    Df(df::Args),
    /// Check that a mount shows what its log says.
    Check(check::Args),
    /// Judge replies of servers.
    Fmap(fmap::Args),
    /// Show what servers and the kernel have and have done.
    Status(status::Args),
    /// Let the server of a mount read new log entries.
    Logplay(logplay::Args),
    /// Let a mount use memory again that had errors and was repaired.
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
    /// Bytes on a strip before the next one: a power of two from 2m [default: 2m].
    #[arg(short = 'C', long, requires = "nstrips", value_parser = size::parse)]
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
    let mut args = with_verb(args.collect());
    let from_mount = matches!(args.get(..2), Some([_, verb]) if verb == mount_helper::VERB);
    if from_mount {
        let words: Vec<String> = args
            .iter()
            .skip(2)
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let Wish::Mount(words) = mount_helper::translate(&words)? else {
            return Ok(None);
        };
        args = ["famfs".into(), "mount".into()]
            .into_iter()
            .chain(words.into_iter().map(OsString::from))
            .collect();
    }
    let Cli { verb, verbose } = Cli::parse_from(args);
    Ok(Some(Call {
        verb,
        verbose,
        from_mount,
    }))
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
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn link_names_are_verbs() {
        let with = |args: &[&str]| with_verb(args.iter().map(OsString::from).collect());
        assert_eq!(
            with(&["/sbin/mkfs.famfs", "-f", "D"]),
            ["famfs", "mkfs", "-f", "D"]
        );
        assert_eq!(with(&["famfs", "mkfs", "D"]), ["famfs", "mkfs", "D"]);
        let call = |args: &[&str]| parse(args.iter().map(OsString::from)).map(Option::unwrap);
        assert!(matches!(
            call(&["fsck.famfs", "x"]).unwrap().verb,
            Verb::Fsck(_)
        ));
        let call = call(&["/sbin/mount.famfs", "D", "M", "-o", "rw,failure=range"]).unwrap();
        assert!(call.from_mount && matches!(call.verb, Verb::Mount(_)));
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(parse_mode("0644"), Ok(0o644));
        assert_eq!(parse_mode("1777"), Ok(0o1777));
        assert!(parse_mode("8").is_err());
        assert!(parse_mode("17777").is_err());
    }

    #[test]
    fn buckets_follow_strips_and_daxdevs() {
        let striping = Striping {
            nstrips: Some(3),
            nbuckets: None,
            chunk: None,
        };
        let p = |daxdevs| {
            striping
                .interleave(daxdevs)
                .map(|p| (p.nbuckets, p.nstrips, p.chunk_size))
        };
        assert_eq!(p(1), Some((3, 3, 2 << 20)));
        assert_eq!(p(2), Some((2, 3, 2 << 20)));
        assert_eq!(p(4), Some((1, 3, 2 << 20)));
        assert_eq!(
            Striping {
                nstrips: None,
                nbuckets: None,
                chunk: None
            }
            .interleave(1),
            None
        );
    }
}
