// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line: link names, --help, values.

use super::*;
use clap::CommandFactory;

#[test]
fn command_is_consistent() {
    Cli::command().debug_assert();
}

/// Verbs that users see, nested ones too.
fn verbs(command: &clap::Command) -> Vec<clap::Command> {
    let mut all = Vec::new();
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        all.push(verb.clone());
        all.extend(verbs(verb));
    }
    all
}

#[test]
fn every_verb_has_examples_that_can_be_run() {
    let all = verbs(&Cli::command());
    assert!(all.len() > 20);
    for mut verb in all {
        let help = verb.render_long_help().to_string();
        let (_, examples) = help.split_once("\nExamples:\n").unwrap_or_default();
        let name = verb.get_name();
        assert!(examples.contains(name), "{name}: {help}");
        for line in examples.lines().filter(|line| line.contains("famfs ")) {
            let command = line.split(" | ").next().unwrap().trim();
            // Two blanks stand before what is said about an example.
            let command = command.split("  ").next().unwrap();
            let command = command.strip_prefix("mount -t famfs").map_or_else(
                || command.to_owned(),
                |rest| {
                    format!(
                        "mount.famfs /dev/dax0.0 /mnt{}",
                        rest.split(" /").next().unwrap()
                    )
                },
            );
            let args = command.split(' ').map(OsString::from);
            let (args, _) = words(args).unwrap().unwrap();
            assert!(Cli::try_parse_from(args).is_ok(), "{command}");
        }
    }
}

#[test]
fn units_are_named() {
    let mut sizes = 0;
    for verb in verbs(&Cli::command()) {
        for option in verb.get_arguments() {
            let help = option
                .get_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            let value = option.get_value_names().and_then(|names| names.first());
            let unit = match value.map(|name| name.as_str()) {
                Some(size::UNIT) => "k, m",
                Some("SECONDS") => "seconds",
                _ => continue,
            };
            sizes += 1;
            assert!(
                help.contains(unit),
                "{} --{option}: {help}",
                verb.get_name()
            );
        }
    }
    assert_eq!(sizes, 6);
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
