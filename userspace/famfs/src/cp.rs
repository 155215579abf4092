// SPDX-License-Identifier: MIT OR Apache-2.0
//! `famfs cp`: copy files into a famfs.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use famfs_fuse::map_file;
use famfs_media::Kind;
use indicatif::ProgressBar;
use rustix::fs::{open, openat2, Dir, Mode, OFlags, ResolveFlags};

use crate::cli::{Ownership, Striping};
use crate::create::{self, Attributes, Plan};
use crate::exit::{fail, Exit};
use crate::fill::{self, progress, BLOCK};
use crate::mounted::{parent, Mounted, Root};
use crate::work::Threads;

/// Options of cp.
#[derive(clap::Args)]
pub struct Args {
    /// What to copy, and where to: a new file, or a directory that exists.
    #[arg(required = true, num_args = 2.., value_names = ["SOURCE", "DEST"])]
    paths: Vec<PathBuf>,
    /// Copy directories with all that is in them.
    #[arg(short, long)]
    recursive: bool,
    /// Compare each copy with its source afterwards, as memory has it.
    #[arg(short, long)]
    compare: bool,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    ownership: Ownership,
    #[command(flatten)]
    striping: Striping,
}

/// What to copy.
#[derive(Clone)]
struct Source {
    /// As it was named, or in a directory that was.
    path: PathBuf,
    /// That directory, and the path from there. Its owner can put symbolic links into it at any time, so none is
    /// followed.
    within: Option<(Arc<File>, PathBuf)>,
}

impl Source {
    fn named(path: &Path) -> Self {
        let path = path.into();
        Self { path, within: None }
    }

    /// What is called `name` in this directory, which is open.
    fn child(&self, dir: &Arc<File>, name: &OsStr) -> Self {
        let (top, below) = match &self.within {
            Some((top, below)) => (top, below.join(name)),
            None => (dir, name.into()),
        };
        Self {
            path: self.path.join(name),
            within: Some((Arc::clone(top), below)),
        }
    }

    fn metadata(&self) -> anyhow::Result<Metadata> {
        let file = self.open_with(OFlags::PATH)?;
        file.metadata()
            .with_context(|| self.path.display().to_string())
    }

    /// For reading, if it still is what was `seen` here: its owner can have put a link to a file of somebody else into
    /// its place. Does not wait for who writes to a pipe.
    fn open(&self, seen: Identity) -> anyhow::Result<File> {
        let file = self.open_with(OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        let path = self.path.display();
        let found = file.metadata().with_context(|| path.to_string())?;
        if identity(&found) != seen {
            let text = format!(
                "{path} was replaced while it was copied; find out what it is now, and copy again"
            );
            return Err(fail(Exit::Failed, text));
        }
        Ok(file)
    }

    fn open_with(&self, flags: OFlags) -> anyhow::Result<File> {
        let (flags, mode) = (flags | OFlags::CLOEXEC, Mode::empty());
        let file = match &self.within {
            None => open(&self.path, flags, mode),
            Some((top, below)) => {
                let flags = flags | OFlags::NOFOLLOW;
                openat2(top, below, flags, mode, ResolveFlags::NO_SYMLINKS)
            }
        };
        let file = file.map_err(io::Error::from);
        let file = file.with_context(|| self.path.display().to_string())?;
        Ok(file.into())
    }
}

/// Which file or directory it is: st_dev and st_ino.
type Identity = (u64, u64);

fn identity(meta: &Metadata) -> Identity {
    (meta.dev(), meta.ino())
}

/// One file to copy.
struct Job {
    source: Source,
    /// What the source was when its size and mode were looked at.
    seen: Identity,
    dest: PathBuf,
    size: u64,
}

/// Files and directories to make, in order.
#[derive(Default)]
struct Listing {
    dirs: Vec<(PathBuf, u32)>,
    files: Vec<(Job, u32)>,
    /// What can not be copied, and why.
    skipped: Vec<String>,
}

/// Copy.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let (dest, sources) = args.paths.split_last().context("no destination")?;
    let into = dest.is_dir();
    if !into && (sources.len() > 1 || dest.as_os_str().as_bytes().ends_with(b"/")) {
        return Err(fail(
            Exit::Usage,
            format!("{}: not a directory that exists", dest.display()),
        ));
    }
    let mut listing = Listing::default();
    for source in sources {
        let name = source
            .file_name()
            .with_context(|| format!("{} has no name", source.display()))?;
        let dest = if into { dest.join(name) } else { dest.clone() };
        listing.add(Source::named(source), dest, args.recursive)?;
    }
    let base = if into { dest } else { parent(dest) };
    let (root, files) = make(&listing, base, args)?;
    let bar = progress(dest, listing.files.iter().map(|(job, _)| job.size).sum());
    args.threads.each(&files, |(job, path)| {
        let one = || -> anyhow::Result<()> {
            let dest = root.open_new(path, job.size)?;
            copy(job, &dest, &bar)?;
            if args.compare {
                compare(job, &dest)?;
            }
            Ok(())
        };
        one().with_context(|| job.dest.display().to_string())
    })?;
    bar.finish_and_clear();
    match listing.skipped.len() {
        0 => Ok(()),
        _ => Err(fail(
            Exit::Failed,
            format!("not copied: {}", listing.skipped.join(", ")),
        )),
    }
}

impl Listing {
    fn add(&mut self, source: Source, dest: PathBuf, recursive: bool) -> anyhow::Result<()> {
        let meta = source.metadata()?;
        let seen = identity(&meta);
        let why = match meta.len() {
            _ if meta.is_dir() && recursive => return self.add_dir(&source, &dest, &meta),
            _ if meta.is_dir() => "a directory; --recursive copies it",
            _ if meta.is_symlink() => "a symbolic link",
            _ if !meta.is_file() => "not a file",
            0 => "empty",
            size => {
                // A source that can not be read must be known before its copy is made.
                source.open(seen)?;
                let job = Job {
                    source,
                    seen,
                    dest,
                    size,
                };
                self.files.push((job, meta.mode()));
                return Ok(());
            }
        };
        let path = source.path.display();
        self.skipped.push(format!("{path} ({why})"));
        Ok(())
    }

    fn add_dir(&mut self, source: &Source, dest: &Path, meta: &Metadata) -> anyhow::Result<()> {
        let dir = Arc::new(source.open(identity(meta))?);
        let names = names(&dir).with_context(|| source.path.display().to_string())?;
        self.dirs.push((dest.into(), meta.mode()));
        for name in names {
            self.add(source.child(&dir, &name), dest.join(&name), true)?;
        }
        Ok(())
    }
}

/// The names in a directory, in order.
fn names(dir: &File) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        match entry.file_name().to_bytes() {
            b"." | b".." => (),
            name => names.push(OsStr::from_bytes(name).to_owned()),
        }
    }
    names.sort();
    Ok(names)
}

/// The root of a file system, and what to copy there, each with the path of its new file from there.
type Made<'a> = (Root, Vec<(&'a Job, Vec<u8>)>);

/// Make all directories and files of a listing: one plan, so that a lack of space changes nothing.
fn make<'a>(listing: &'a Listing, base: &Path, args: &Args) -> anyhow::Result<Made<'a>> {
    let mut plan = Plan::new(Mounted::of(base)?, Some(&args.striping))?;
    for (dest, mode) in &listing.dirs {
        let path = relative(plan.mounted(), base, dest)?;
        match plan.existing(&path).map(|node| &node.kind) {
            Some(Kind::Dir(_)) => {}
            Some(Kind::File { .. }) => {
                return Err(fail(Exit::Failed, format!("{}: is a file", dest.display())))
            }
            None => plan.mkdir(&path, attributes(args, *mode))?,
        }
    }
    let mut files = Vec::new();
    for (job, mode) in &listing.files {
        let path = relative(plan.mounted(), base, &job.dest)?;
        plan.file(&path, job.size, attributes(args, *mode))?;
        files.push((job, path));
    }
    Ok((plan.publish()?.open_root()?, files))
}

fn attributes(args: &Args, mode: u32) -> Attributes {
    Attributes::new(&args.ownership, create::masked(mode & 0o777))
}

/// Path of `dest` from the root of the file system. `dest` is below `base`, which exists.
fn relative(mounted: &Mounted, base: &Path, dest: &Path) -> anyhow::Result<Vec<u8>> {
    let below = dest.strip_prefix(base).unwrap_or(dest);
    let full = base
        .canonicalize()
        .with_context(|| base.display().to_string())?
        .join(below);
    Ok(mounted.below(&full)?.as_os_str().as_bytes().to_vec())
}

/// Copy the bytes of a file to `dest`, and write them back from the caches.
fn copy(job: &Job, dest: &File, bar: &ProgressBar) -> anyhow::Result<()> {
    let mut source = job.source.open(job.seen)?;
    let region = map_file(dest, usize::try_from(job.size)?, true)?;
    tracing::info!("copying {} bytes to {}", job.size, job.dest.display());
    let mut block = vec![0; BLOCK];
    let mut at = 0u64;
    while at < job.size {
        let want = usize::try_from(job.size.saturating_sub(at))
            .unwrap_or(BLOCK)
            .min(BLOCK);
        let read = source.read(block.get_mut(..want).unwrap_or_default())?;
        if read == 0 {
            return Err(fail(
                Exit::Failed,
                format!("{} became shorter: {at} bytes", job.source.path.display()),
            ));
        }
        dest.write_all_at(block.get(..read).unwrap_or_default(), at)?;
        region.flush(usize::try_from(at)?, read)?;
        at = at.saturating_add(read as u64);
        bar.inc(read as u64);
    }
    Ok(())
}

fn compare(job: &Job, dest: &File) -> anyhow::Result<()> {
    let source = job.source.open(job.seen)?;
    let len = usize::try_from(job.size)?;
    let expected = |at: usize, len| {
        let mut bytes = vec![0; len];
        source.read_exact_at(&mut bytes, at as u64)?;
        Ok(bytes)
    };
    let region = map_file(dest, len, false)?;
    match fill::mismatch(&region, len, expected, &ProgressBar::hidden())? {
        None => Ok(()),
        Some(at) => {
            let source = job.source.path.display();
            Err(fail(
                Exit::Corrupt,
                format!("byte {at} is not that of {source}"),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn open(path: &Path) -> File {
        let mut options = File::options();
        options.read(true).write(true).open(path).unwrap()
    }

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("src/sub")).unwrap();
        fs::write(at("src/sub/b"), [1; 5]).unwrap();
        fs::write(at("src/a"), [2; 7]).unwrap();
        fs::write(at("src/empty"), []).unwrap();
        symlink("..", at("src/sub/up")).unwrap();
        dir
    }

    #[test]
    fn directories_come_before_what_is_in_them() {
        let dir = tree();
        let mut listing = Listing::default();
        listing
            .add(
                Source::named(&dir.path().join("src")),
                "/mnt/src".into(),
                true,
            )
            .unwrap();
        let dirs: Vec<_> = listing
            .dirs
            .iter()
            .map(|(path, _)| path.to_str().unwrap())
            .collect();
        assert_eq!(dirs, ["/mnt/src", "/mnt/src/sub"]);
        let files: Vec<_> = listing
            .files
            .iter()
            .map(|(job, _)| (job.dest.to_str().unwrap(), job.size))
            .collect();
        assert_eq!(files, [("/mnt/src/a", 7), ("/mnt/src/sub/b", 5)]);
        let skipped = [("src/empty", "empty"), ("src/sub/up", "a symbolic link")];
        assert_eq!(
            listing.skipped,
            skipped.map(|(p, why)| format!("{} ({why})", dir.path().join(p).display()))
        );
    }

    #[test]
    fn a_directory_wants_the_option() {
        let dir = tree();
        let mut listing = Listing::default();
        listing
            .add(
                Source::named(&dir.path().join("src")),
                "/mnt/src".into(),
                false,
            )
            .unwrap();
        assert!(listing.dirs.is_empty() && listing.files.is_empty());
        assert!(
            listing.skipped[0].ends_with("/src (a directory; --recursive copies it)"),
            "{:?}",
            listing.skipped
        );
        assert!(listing
            .add(
                Source::named(&dir.path().join("missing")),
                "/mnt/m".into(),
                false
            )
            .is_err());
    }

    /// Its owner puts a link in the place of what was looked at.
    #[test]
    fn nothing_leads_out_of_a_directory() {
        let dir = tree();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("secret")).unwrap();
        fs::write(at("secret/a"), [3; 7]).unwrap();
        fs::write(at("secret/b"), [3; 5]).unwrap();
        let mut listing = Listing::default();
        let dest = |name: &str| at(&format!("dest-{name}"));
        let src = Source::named(&at("src"));
        listing.add(src.clone(), at("dest"), true).unwrap();
        let [(a, _), (b, _)] = &mut listing.files[..] else {
            panic!("two files")
        };
        (a.dest, b.dest) = (dest("a"), dest("b"));
        fs::write(&a.dest, [0; 7]).unwrap();
        fs::write(&b.dest, [0; 5]).unwrap();
        fs::remove_file(at("src/a")).unwrap();
        symlink(at("secret/a"), at("src/a")).unwrap();
        fs::rename(at("src/sub"), at("src/old")).unwrap();
        symlink(at("secret"), at("src/sub")).unwrap();
        for (job, len) in [(&*a, 7), (&*b, 5)] {
            let error = copy(job, &open(&job.dest), &ProgressBar::hidden()).unwrap_err();
            let path = job.source.path.display();
            let text = format!("{path}: Too many levels of symbolic links (os error 40)");
            assert_eq!(format!("{error:#}"), text);
            assert_eq!(fs::read(&job.dest).unwrap(), vec![0; len]);
        }
        let seen = identity(&src.metadata().unwrap());
        let dir = Arc::new(src.open(seen).unwrap());
        let sub = src.child(&dir, OsStr::new("sub"));
        assert!(sub.metadata().unwrap().is_symlink());
        let below = sub.child(&dir, OsStr::new("b"));
        let seen = identity(&fs::metadata(at("secret/b")).unwrap());
        assert!(below.metadata().is_err() && below.open(seen).is_err());
    }

    /// The same with what was named, where links are followed.
    #[test]
    fn what_was_looked_at_is_what_is_copied() {
        let dir = tree();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("secret")).unwrap();
        fs::write(at("secret/a"), [3; 7]).unwrap();
        fs::write(at("dest"), [0; 7]).unwrap();
        let mut listing = Listing::default();
        let (file, src) = (Source::named(&at("src/a")), Source::named(&at("src")));
        let meta = src.metadata().unwrap();
        listing.add(file, at("dest"), false).unwrap();
        fs::rename(at("src"), at("old")).unwrap();
        symlink(at("secret"), at("src")).unwrap();
        let text = |path: &str| {
            let path = at(path);
            let path = path.display();
            format!(
                "{path} was replaced while it was copied; find out what it is now, and copy again"
            )
        };
        let job = &listing.files[0].0;
        let dest = open(&job.dest);
        for replaced in [
            copy(job, &dest, &ProgressBar::hidden()),
            compare(job, &dest),
        ] {
            let error = replaced.unwrap_err();
            assert_eq!(crate::exit::code(&error), Exit::Failed);
            assert_eq!(format!("{error:#}"), text("src/a"));
        }
        assert_eq!(fs::read(at("dest")).unwrap(), [0; 7]);
        let replaced = listing.add_dir(&src, Path::new("/mnt/src"), &meta);
        assert_eq!(replaced.unwrap_err().to_string(), text("src"));
        assert!(listing.dirs.is_empty() && listing.files.len() == 1);
        // Written to, it is the same file.
        fs::remove_file(at("src")).unwrap();
        fs::rename(at("old"), at("src")).unwrap();
        fs::write(at("src/a"), [4; 7]).unwrap();
        copy(&listing.files[0].0, &dest, &ProgressBar::hidden()).unwrap();
        assert_eq!(fs::read(at("dest")).unwrap(), [4; 7]);
    }

    /// What was named is what is meant.
    #[test]
    fn a_link_that_was_named_is_followed() {
        let dir = tree();
        let link = dir.path().join("link");
        symlink("src", &link).unwrap();
        let mut listing = Listing::default();
        listing
            .add(Source::named(&link), "/mnt/link".into(), true)
            .unwrap();
        assert_eq!(listing.files.len(), 2);
    }

    #[test]
    fn bytes_are_copied() {
        let dir = tree();
        let (source, dest) = (dir.path().join("source"), dir.path().join("dest"));
        let bytes: Vec<u8> = (0..BLOCK + 4219).map(|i| (i % 251) as u8).collect();
        fs::write(&source, &bytes).unwrap();
        fs::write(&dest, vec![0xee; bytes.len()]).unwrap();
        let job = |size| Job {
            source: Source::named(&source),
            seen: identity(&fs::metadata(&source).unwrap()),
            dest: dest.clone(),
            size,
        };
        let file = open(&dest);
        let copy = |job| super::copy(&job, &file, &ProgressBar::hidden());
        let compare = |job| super::compare(&job, &file);
        copy(job(bytes.len() as u64)).unwrap();
        assert_eq!(fs::read(&dest).unwrap(), bytes);
        compare(job(bytes.len() as u64)).unwrap();
        let mut wrong = bytes.clone();
        wrong[BLOCK + 4218] ^= 1;
        fs::write(&source, wrong).unwrap();
        let error = compare(job(bytes.len() as u64)).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("byte {} is not that of {}", BLOCK + 4218, source.display())
        );
        File::options()
            .write(true)
            .open(&source)
            .unwrap()
            .set_len(9)
            .unwrap();
        let error = copy(job(bytes.len() as u64)).unwrap_err();
        assert!(
            error.to_string().ends_with("became shorter: 9 bytes"),
            "{error}"
        );
    }
}
