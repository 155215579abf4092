// SPDX-License-Identifier: MIT OR Apache-2.0
//! Man pages and shell completions, made from the command line's own description. `make install` calls it.

use std::fs;
use std::path::PathBuf;

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
    clap_mangen::generate_to(Cli::command(), dir("man1")?)?;
    for (shell, name) in [
        (Shell::Bash, "bash"),
        (Shell::Zsh, "zsh"),
        (Shell::Fish, "fish"),
    ] {
        clap_complete::generate_to(shell, &mut Cli::command(), "famfs", dir(name)?)?;
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
            assert!(
                fs::read_to_string(&page).unwrap().contains(".TH"),
                "{page:?}"
            );
        }
        assert!(!path.join("man1/famfs-open-meta.1").exists());
        for name in ["bash/famfs.bash", "zsh/_famfs", "fish/famfs.fish"] {
            let text = fs::read_to_string(path.join(name)).unwrap();
            assert!(text.contains("set-daxmode"), "{name}");
        }
    }
}
