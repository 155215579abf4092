// SPDX-License-Identifier: MIT OR Apache-2.0
//! Man pages and shell completions, made from the command line's own description. `make install` calls it.

use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;

/// Arguments of docs.
#[derive(clap::Args)]
pub struct Args {
    /// Directory for man1/, bash/, zsh/ and fish/.
    dir: PathBuf,
}

/// Write them.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let dir = |name: &str| {
        let dir = args.dir.join(name);
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        anyhow::Ok(dir)
    };
    let man = dir("man1")?;
    clap_mangen::generate_to(Cli::command(), &man)?;
    name_sections(&man).with_context(|| man.display().to_string())?;
    for (shell, name) in [
        (Shell::Bash, "bash"),
        (Shell::Zsh, "zsh"),
        (Shell::Fish, "fish"),
    ] {
        clap_complete::generate_to(shell, &mut Cli::command(), "famfs", dir(name)?)?;
    }
    Ok(())
}

/// The generator has one name for all that stands at the end of --help, and fills its lines.
fn name_sections(man: &Path) -> io::Result<()> {
    for page in fs::read_dir(man)? {
        let page = page?.path();
        let text = fs::read_to_string(&page)?
            .replace(".SH EXTRA\nExamples:\n", ".SH EXAMPLES\n.nf\n")
            .replace(".SH EXTRA\nExit codes:\n", ".SH EXIT STATUS\n.nf\n");
        fs::write(page, text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        run(&Args { dir: path.into() }).unwrap();
        let verbs = Cli::command();
        for verb in verbs.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let page = path.join(format!("man1/famfs-{}.1", verb.get_name()));
            let text = fs::read_to_string(&page).unwrap();
            assert!(
                text.contains(".TH") && text.contains("\n.SH EXAMPLES\n.nf\n  "),
                "{page:?}"
            );
        }
        assert!(!path.join("man1/famfs-open-meta.1").exists());
        let text = fs::read_to_string(path.join("man1/famfs.1")).unwrap();
        assert!(
            text.contains("\n.SH EXIT STATUS\n.nf\n  0  done\n"),
            "{text}"
        );
        for name in ["bash/famfs.bash", "zsh/_famfs", "fish/famfs.fish"] {
            let text = fs::read_to_string(path.join(name)).unwrap();
            assert!(text.contains("set-daxmode"), "{name}");
        }
    }
}
