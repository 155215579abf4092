// SPDX-License-Identifier: MIT OR Apache-2.0
//! The transcripts of docs/recipes.md, typed again: each command on its host, in the order of the page, with what it
//! prints compared.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{bail, ensure, Context, Result};

use super::tool::umount;
use super::Test;
use crate::channel::Channel;
use crate::dax;
use crate::module;

const PAGE: &str = include_str!("../../../../docs/recipes.md");
const FOLDER: &str = "/tmp";
const DONE: &str = "done";

/// (test, heading of the recipe), for one host.
macro_rules! recipes {
    ($host:literal, $($test:literal => $heading:literal,)*) => {
        &[
            ("gets_ready", |_, channel| get_ready(channel, $host)),
            $(($test, |_, channel| follow(channel, $host, $heading)),)*
            ("leaves_nothing", |_, _| leave($host)),
        ]
    };
}

macro_rules! on {
    ($host:literal) => {
        recipes!(
            $host,
            "one_file" => "A file from one host to another, without a copy",
            "arrow" => "An Arrow table, written and read in place",
            "sqlite" => "A SQLite database, read in place",
            "program" => "A program that runs from the memory",
            "fio" => "Checksums through mappings, with fio",
            "stress_ng" => "Under pressure, with stress-ng",
            "many_files" => "Many files at once, checked on another host",
            "take_over" => "When the master is gone",
        )
    };
}

pub const HOST_A: &[(&str, Test)] = on!("A");
pub const HOST_B: &[(&str, Test)] = on!("B");

/// What a recipe's blocks of code come to.
#[derive(Debug, PartialEq, Eq)]
enum Step<'a> {
    /// A block `python`, whose first line is a comment with its name.
    Script { name: &'a str, text: String },
    /// A line `HOST# COMMAND` of a block `console`, lines that continue it, and what it prints.
    Command {
        host: &'a str,
        command: String,
        output: Vec<&'a str>,
    },
}

/// The steps below a heading of the second level.
fn steps<'a>(page: &'a str, heading: &str) -> Result<Vec<Step<'a>>> {
    let mut lines = page
        .lines()
        .skip_while(|line| line.strip_prefix("## ") != Some(heading))
        .skip(1)
        .take_while(|line| !line.starts_with("## "));
    let mut steps = Vec::new();
    while let Some(line) = lines.next() {
        let block = lines.by_ref().take_while(|line| *line != "```");
        match line.strip_prefix("```") {
            Some("console") => steps.extend(commands(block)?),
            Some("python") => steps.push(script(block)?),
            Some(_) => block.for_each(drop),
            None => (),
        }
    }
    ensure!(!steps.is_empty(), "docs/recipes.md has no \"{heading}\"");
    Ok(steps)
}

fn script<'a>(block: impl Iterator<Item = &'a str>) -> Result<Step<'a>> {
    let lines: Vec<&str> = block.collect();
    let name = lines
        .first()
        .and_then(|line| line.strip_prefix("# "))
        .and_then(|line| line.split(':').next())
        .context("a script without its name at the top")?;
    let text = lines.join("\n") + "\n";
    Ok(Step::Script { name, text })
}

fn commands<'a>(block: impl Iterator<Item = &'a str>) -> Result<Vec<Step<'a>>> {
    let mut steps = Vec::new();
    for line in block {
        let typed = ["A", "B"]
            .into_iter()
            .find_map(|host| Some((host, line.strip_prefix(host)?.strip_prefix("# ")?)));
        match (typed, steps.last_mut()) {
            (Some((host, command)), _) => steps.push(Step::Command {
                host,
                command: command.to_owned(),
                output: Vec::new(),
            }),
            (None, Some(Step::Command { command, .. })) if command.ends_with('\\') => {
                *command += "\n";
                *command += line;
            }
            (None, Some(Step::Command { output, .. })) => output.push(line),
            (None, _) => bail!("output without a command: {line:?}"),
        }
    }
    Ok(steps)
}

/// Whether a line is as the page has it, where "..." stands for what differs from run to run.
fn is_like(line: &str, wanted: &str) -> bool {
    let mut parts = wanted.split("...");
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

fn are_like(text: &str, wanted: &[&str]) -> bool {
    text.lines().count() == wanted.len()
        && text
            .lines()
            .zip(wanted)
            .all(|(line, wanted)| is_like(line, wanted))
}

/// Both hosts have the module, and the disk of applications under /usr.
fn get_ready(channel: &mut Channel, host: &str) -> Result<()> {
    if host == "A" {
        channel.tell("there is a namespace");
        prepare()?;
        return channel.expect("up");
    }
    prepare()?;
    channel.tell("up");
    Ok(())
}

/// The master that is gone by the page has not unmounted anything.
fn leave(host: &str) -> Result<()> {
    if host == "A" {
        umount()?;
    }
    module::rmmod("famfs").context("rmmod famfs")
}

fn prepare() -> Result<()> {
    module::ensure_famfs()?;
    // It complains about those that are there.
    Command::new("busybox")
        .args(["--install", "-s", "/usr/bin"])
        .stderr(Stdio::null())
        .status()
        .context("busybox")?;
    fs::create_dir_all("/applications")?;
    dax::run("mount", &["-o", "ro", "/dev/vda", "/applications"])?;
    let layers = "lowerdir=/applications/usr:/usr";
    dax::run("mount", &["-t", "overlay", "-o", layers, "none", "/usr"])
}

/// Goes through a recipe hand in hand with the other host. What is printed otherwise is told at the end, all of it.
fn follow(channel: &mut Channel, host: &str, heading: &str) -> Result<()> {
    let mut differences = Vec::new();
    for step in steps(PAGE, heading)? {
        match step {
            Step::Script { name, text } => fs::write(format!("{FOLDER}/{name}"), text)?,
            Step::Command {
                host: whose,
                command,
                output,
            } if whose == host => {
                channel.step(&command);
                let printed = execute(&command);
                channel.tell(if printed.is_ok() { DONE } else { "failed" });
                let printed = printed?;
                if !are_like(&printed, &output) {
                    let wanted = output.join("\n");
                    differences.push(format!("{command}\n{printed}the page has:\n{wanted}"));
                }
            }
            Step::Command {
                host: whose,
                command,
                ..
            } => channel
                .expect(DONE)
                .with_context(|| format!("{whose}# {command}"))?,
        }
    }
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

/// What a command prints, if it ends with 0.
fn execute(command: &str) -> Result<String> {
    let done = Command::new("sh")
        .args(["-c", &format!("exec 2>&1\n{command}")])
        .current_dir(FOLDER)
        .stdin(Stdio::null())
        .output()
        .context("sh")?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure!(done.status.success(), "{command}: {}\n{text}", done.status);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "## One\n\n```text\nA# no\n```\n\n```python\n# x.py: does it\npass\n```\n\n\
        ```console\nA# echo a \\\n    b\na b\nB# true\n```\n\n## Two\n\n```console\nB# false\n```\n";

    #[test]
    fn a_recipe_is_its_scripts_and_commands() {
        let steps = steps(SAMPLE, "One").unwrap();
        let command = |host, command: &str, output| Step::Command {
            host,
            command: command.to_owned(),
            output,
        };
        let script = Step::Script {
            name: "x.py",
            text: "# x.py: does it\npass\n".to_owned(),
        };
        let echo = command("A", "echo a \\\n    b", vec!["a b"]);
        assert_eq!(steps, [script, echo, command("B", "true", vec![])]);
    }

    #[test]
    fn every_recipe_of_the_page_is_a_test() {
        let headings = PAGE.lines().filter_map(|line| line.strip_prefix("## "));
        for heading in headings.clone() {
            steps(PAGE, heading).unwrap();
        }
        // And what comes before and after.
        assert_eq!(headings.count() + 2, HOST_A.len());
    }

    #[test]
    fn dots_stand_for_anything() {
        assert!(is_like("a b c", "a b c"));
        assert!(is_like("a b c", "a ... c"));
        assert!(is_like("a b c", "...b..."));
        assert!(is_like("7f-8f r-xp x", "... r-xp ..."));
        assert!(!is_like("a b c", "a b"));
        assert!(!is_like("a b c", "a ... d"));
        assert!(!is_like("a b", "a ... ..."));
    }
}
