// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mount.famfs`: what mount(8) calls for `mount -t famfs` and for lines of /etc/fstab,
//! `mount.famfs DEVICE DIR [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]`, in the words of `famfs mount`.

use std::path::Path;

/// What stands for mount.famfs on the command line.
pub const VERB: &str = "mount.famfs";

/// Exit codes of mount(8): wrong arguments, and a mount that failed.
pub const USAGE_CODE: u8 = 1;
pub const FAILURE_CODE: u8 = 32;

/// Options that change nothing here: they are mount(8)'s own, or what every famfs is anyway.
const IGNORED: &[&str] = &[
    "_netdev",
    "async",
    "atime",
    "auto",
    "defaults",
    "dev",
    "diratime",
    "exec",
    "group",
    "loud",
    "noatime",
    "noauto",
    "nodev",
    "nodiratime",
    "nofail",
    "nogroup",
    "noowner",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nouser",
    "nousers",
    "owner",
    "relatime",
    "rw",
    "silent",
    "strictatime",
    "suid",
    "user",
    "users",
];
/// The same, with a value behind them.
const IGNORED_PREFIXES: &[&str] = &["comment=", "user=", "x-", "X-"];
/// Options that `famfs mount` has by the same name.
const FLAGS: &[&str] = &["noexec", "ro", "set-daxmode"];
const VALUES: &[&str] = &["daxdev", "failure", "follow", "log-file"];

/// What mount(8) wants.
#[derive(Debug, PartialEq, Eq)]
pub enum Wish {
    /// A mount, with these arguments of `famfs mount`.
    Mount(Vec<String>),
    /// Nothing: a dry run (`mount --fake`), or a device that need not be there (`nofail`) and is not.
    Nothing,
}

/// Translates the arguments of mount.famfs.
pub fn translate(arguments: &[String]) -> Result<Wish, String> {
    let (mut places, mut options) = (Vec::new(), Vec::new());
    let (mut fake, mut sloppy, mut verbose) = (false, false, false);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value = || {
            rest.next()
                .ok_or_else(|| format!("{argument} needs a value"))
        };
        match argument.as_str() {
            "-o" => options.extend(value()?.split(',').filter(|option| !option.is_empty())),
            "-t" => drop(value()?),
            "-N" => return Err("mounting in another namespace (-N) is not supported".into()),
            "-h" | "--help" => return Err(USAGE.into()),
            flags if flags.starts_with('-') => {
                for flag in flags.chars().skip(1) {
                    match flag {
                        'f' => fake = true,
                        's' => sloppy = true,
                        'v' => verbose = true,
                        'n' => (),
                        _ => return Err(format!("unknown flag {flags}\n{USAGE}")),
                    }
                }
            }
            place => places.push(place.to_owned()),
        }
    }
    if places.len() != 2 {
        return Err(USAGE.into());
    }
    let mut words: Vec<String> = verbose
        .then(|| "--verbose".to_owned())
        .into_iter()
        .collect();
    let nofail = options.contains(&"nofail");
    for option in options {
        match word(option) {
            Some(word) => words.extend(word),
            None if sloppy => (),
            None => {
                let text =
                    format!("unknown option {option}; `famfs mount --help` lists those of famfs");
                return Err(text);
            }
        }
    }
    let absent = !places
        .first()
        .is_some_and(|device| Path::new(device).exists());
    if fake || nofail && absent {
        return Ok(Wish::Nothing);
    }
    words.push("--".into());
    words.extend(places);
    Ok(Wish::Mount(words))
}

const USAGE: &str =
    "usage: mount.famfs DEVICE DIR [-sfnv] [-o OPTIONS]; called by `mount -t famfs DEVICE DIR`";

/// The argument for an option; `Some(None)` where it takes none, `None` where there is no such option.
#[allow(clippy::option_option)]
fn word(option: &str) -> Option<Option<String>> {
    if IGNORED.contains(&option)
        || IGNORED_PREFIXES
            .iter()
            .any(|prefix| option.starts_with(prefix))
    {
        return Some(None);
    }
    if option == "client-rw" {
        // rw is what mount(8) passes when nothing was said.
        return Some(Some("--rw".into()));
    }
    let known = match option.split_once('=') {
        Some((name, _)) => VALUES.contains(&name),
        None => FLAGS.contains(&option),
    };
    known.then(|| Some(format!("--{option}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(arguments: &str) -> Result<String, String> {
        let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
        translate(&arguments).map(|wish| match wish {
            Wish::Mount(words) => words.join(" "),
            Wish::Nothing => "nothing".into(),
        })
    }

    #[test]
    fn what_mount_passes_is_understood() {
        for (arguments, words) in [
            ("/dev/dax0.0 /mnt -o rw", "-- /dev/dax0.0 /mnt"),
            (
                "/dev/null /mnt -v -o rw,nofail,x-systemd.requires=a,failure=range,follow=0.5",
                "--verbose --failure=range --follow=0.5 -- /dev/null /mnt",
            ),
            (
                "/dev/dax0.0 /mnt -sn -t famfs -o ro,noexec,client-rw,daxdev=/dev/dax1.0,nonsense",
                "--ro --noexec --rw --daxdev=/dev/dax1.0 -- /dev/dax0.0 /mnt",
            ),
            ("/dev/dax0.0 /mnt -f -o rw", "nothing"),
            ("/nowhere /mnt -o rw,nofail", "nothing"),
        ] {
            assert_eq!(translated(arguments).as_deref(), Ok(words), "{arguments}");
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (arguments, words) in [
            ("/dev/dax0.0 /mnt -o rw,nonsense", "unknown option nonsense"),
            ("/dev/dax0.0 /mnt -o failure", "unknown option failure"),
            ("/dev/dax0.0 /mnt -o remount,ro", "unknown option remount"),
            ("/dev/dax0.0 /mnt -o", "-o needs a value"),
            ("/dev/dax0.0 /mnt -N 7", "namespace"),
            ("/dev/dax0.0 /mnt -x", "unknown flag -x"),
            ("/dev/dax0.0", "usage: mount.famfs"),
        ] {
            let error = translated(arguments).unwrap_err();
            assert!(
                error.starts_with(words) || error.contains(words),
                "{arguments}: {error}"
            );
        }
    }
}
