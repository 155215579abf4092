// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest image: an uncompressed cpio archive (unpacking a compressed one costs seconds under emulation).

use std::collections::BTreeSet;
use std::fs::{self, DirEntry, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cpio::newc::{trailer, Builder};

use crate::tools::Kit;

const S_IFDIR: u32 = 0o040000;
const S_IFREG: u32 = 0o100000;
const S_IFLNK: u32 = 0o120000;
const S_IFCHR: u32 = 0o020000;

const FOLDERS: [&str; 9] = [
    "dev", "proc", "sys", "tmp", "run", "mnt", "root", "usr", "etc",
];
/// Names under which the famfs binary acts as its verbs.
const FAMFS_LINKS: [&str; 3] = ["mkfs.famfs", "mount.famfs", "fsck.famfs"];
const UNIT: &str = "usr/lib/systemd/system/famfs@.service";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// What goes into the image.
#[derive(Debug)]
pub struct Contents {
    pub init: PathBuf,
    /// Unpacked Debian packages.
    pub tools: PathBuf,
    /// What of them is wanted.
    pub kit: &'static Kit,
    pub ko: Option<PathBuf>,
    pub kunit_ko: Option<PathBuf>,
    pub famfs: Option<PathBuf>,
}

impl Contents {
    /// Writes the image to `path`, by way of a temporary file beside it.
    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot write {}", folder.display()))?;
        }
        let part = path.with_extension("part");
        let file =
            File::create(&part).with_context(|| format!("cannot write {}", part.display()))?;
        let mut archive = Archive {
            out: BufWriter::new(file),
            known: BTreeSet::new(),
            ino: 0,
        };
        self.fill(&mut archive)?;
        archive.finish()?;
        fs::rename(&part, path).with_context(|| format!("cannot write {}", path.display()))
    }

    fn fill(&self, archive: &mut Archive) -> Result<()> {
        for folder in FOLDERS {
            archive.folder(folder)?;
        }
        // The kernel opens it before init has mounted devtmpfs.
        archive.console()?;
        archive.file("init", &self.init)?;
        for program in self.kit.programs {
            let name = program.rsplit('/').next().unwrap_or(program);
            archive.file(&format!("usr/bin/{name}"), &self.tools.join(program))?;
        }
        for folder in self.kit.folders {
            archive.tree(folder, &self.tools.join(folder))?;
        }
        archive.link("bin", "usr/bin")?;
        archive.link("sbin", "usr/bin")?;
        archive.link("usr/bin/sh", "busybox")?;
        self.libraries(archive)?;
        if let Some(famfs) = &self.famfs {
            archive.file("usr/bin/famfs", famfs)?;
            for name in FAMFS_LINKS {
                archive.link(&format!("usr/bin/{name}"), "famfs")?;
            }
            let unit = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../userspace/famfs/systemd/famfs@.service");
            archive.file(UNIT, &unit)?;
        }
        for (name, module) in [("famfs.ko", &self.ko), ("famfs_kunit.ko", &self.kunit_ko)] {
            if let Some(module) = module {
                archive.file(&format!("lib/famfs/{name}"), module)?;
            }
        }
        Ok(())
    }

    /// The tools' shared libraries: every one that lies directly in the library folder.
    fn libraries(&self, archive: &mut Archive) -> Result<()> {
        for entry in entries(&self.tools.join(LIBRARIES))? {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.contains(".so") && !entry.file_type()?.is_dir() {
                archive.tree(&format!("{LIBRARIES}/{name}"), &entry.path())?;
            }
        }
        archive.link("lib64", LIBRARIES)
    }
}

/// What is in a folder of the tools, in the order of the names.
fn entries(folder: &Path) -> Result<Vec<DirEntry>> {
    let mut entries: Vec<_> = fs::read_dir(folder)
        .with_context(|| format!("no guest tools in {}", folder.display()))?
        .collect::<Result<_, _>>()?;
    entries.sort_by_key(DirEntry::file_name);
    Ok(entries)
}

struct Archive {
    out: BufWriter<File>,
    known: BTreeSet<String>,
    ino: u32,
}

impl Archive {
    fn entry(&mut self, path: &str, mode: u32) -> Result<Builder> {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent)?;
        }
        self.known.insert(path.to_owned());
        self.ino += 1;
        Ok(Builder::new(path).ino(self.ino).mode(mode).nlink(1))
    }

    fn folder(&mut self, path: &str) -> Result<()> {
        if self.known.contains(path) {
            return Ok(());
        }
        let entry = self.entry(path, S_IFDIR | 0o755)?;
        self.put(entry, &[])
    }

    /// A file, a link, or a folder with all that is in it.
    fn tree(&mut self, path: &str, source: &Path) -> Result<()> {
        let kind = fs::symlink_metadata(source)?.file_type();
        if kind.is_symlink() {
            return self.link(path, &fs::read_link(source)?.to_string_lossy());
        }
        if !kind.is_dir() {
            return self.file(path, source);
        }
        self.folder(path)?;
        for entry in entries(source)? {
            let name = entry.file_name();
            self.tree(&format!("{path}/{}", name.to_string_lossy()), &entry.path())?;
        }
        Ok(())
    }

    fn link(&mut self, path: &str, target: &str) -> Result<()> {
        let entry = self.entry(path, S_IFLNK | 0o777)?;
        self.put(entry, target.as_bytes())
    }

    fn console(&mut self) -> Result<()> {
        let entry = self
            .entry("dev/console", S_IFCHR | 0o600)?
            .rdev_major(5)
            .rdev_minor(1);
        self.put(entry, &[])
    }

    fn file(&mut self, path: &str, source: &Path) -> Result<()> {
        let bytes =
            fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
        let mode = fs::metadata(source)?.permissions().mode() & 0o777;
        let entry = self.entry(path, S_IFREG | mode)?;
        self.put(entry, &bytes)
    }

    fn put(&mut self, entry: Builder, bytes: &[u8]) -> Result<()> {
        let size = u32::try_from(bytes.len())
            .context("a file of 4 GiB does not fit into a cpio archive")?;
        let mut writer = entry.write(&mut self.out, size);
        writer.write_all(bytes)?;
        writer.finish()?;
        Ok(())
    }

    fn finish(self) -> Result<()> {
        trailer(self.out)?.flush()?;
        Ok(())
    }
}
