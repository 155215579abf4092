// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mount.famfs`: what mount(8) calls for `mount -t famfs` and for lines of /etc/fstab,
//! `mount.famfs DEVICE DIR [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]`, in the words of `famfs mount`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
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
    Mount(Vec<OsString>),
    /// Nothing: a dry run (`mount --fake`), or a device that need not be there (`nofail`) and is not.
    Nothing,
}

/// The flags of mount.famfs.
#[derive(Default)]
struct Flags {
    fake: bool,
    sloppy: bool,
    verbose: bool,
}

impl Flags {
    fn add(&mut self, flags: &OsStr) -> Result<(), String> {
        for flag in flags.as_bytes().iter().skip(1) {
            match flag {
                b'f' => self.fake = true,
                b's' => self.sloppy = true,
                b'v' => self.verbose = true,
                b'n' => (),
                _ => return Err(format!("unknown flag {}\n{USAGE}", flags.to_string_lossy())),
            }
        }
        Ok(())
    }
}

/// Translates the arguments of mount.famfs. Paths need not be UTF-8.
pub fn translate(arguments: &[OsString]) -> Result<Wish, String> {
    let (mut places, mut options) = (Vec::new(), Vec::new());
    let mut flags = Flags::default();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value = || {
            let missing = || format!("{} needs a value", argument.to_string_lossy());
            rest.next().ok_or_else(missing)
        };
        match argument.as_bytes() {
            b"-o" => options.extend(value()?.as_bytes().split(|&byte| byte == b',')),
            b"-t" => drop(value()?),
            b"-N" => return Err("mounting in another namespace (-N) is not supported".into()),
            b"-h" | b"--help" => return Err(USAGE.into()),
            [b'-', ..] => flags.add(argument)?,
            _ => places.push(argument.clone()),
        }
    }
    let [device, _] = &places[..] else {
        return Err(USAGE.into());
    };
    let absent = options.contains(&&b"nofail"[..]) && !Path::new(device).exists();
    let mut words = Vec::new();
    if flags.verbose {
        words.push("--verbose".into());
    }
    for option in options.into_iter().filter(|option| !option.is_empty()) {
        match word(option) {
            Some(word) => words.extend(word),
            None if flags.sloppy => (),
            None => {
                let option = String::from_utf8_lossy(option);
                let text =
                    format!("unknown option {option}; `famfs mount --help` lists those of famfs");
                return Err(text);
            }
        }
    }
    if flags.fake || absent {
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
fn word(option: &[u8]) -> Option<Option<OsString>> {
    let name = option.split_inclusive(|&byte| byte == b'=').next();
    let name = std::str::from_utf8(name?).ok()?;
    if IGNORED.contains(&name)
        || IGNORED_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix))
    {
        return Some(None);
    }
    if name == "client-rw" {
        // rw is what mount(8) passes when nothing was said.
        return Some(Some("--rw".into()));
    }
    let known = match name.strip_suffix('=') {
        Some(name) => VALUES.contains(&name),
        None => FLAGS.contains(&name),
    };
    let argument = [b"--", option].concat();
    known.then(|| Some(OsString::from_vec(argument)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(arguments: &str) -> Result<String, String> {
        let arguments: Vec<_> = arguments.split(' ').map(OsString::from).collect();
        translate(&arguments).map(|wish| match wish {
            Wish::Mount(words) => words.join(OsStr::new(" ")).into_string().unwrap(),
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
    fn paths_need_not_be_utf_8() {
        let bytes = |bytes: &[u8]| OsString::from_vec(bytes.into());
        let arguments = [
            bytes(b"/dev/\xff"),
            bytes(b"/mnt/\xe9"),
            "-o".into(),
            bytes(b"rw,log-file=/tmp/\xe9=1"),
        ];
        let words = [
            bytes(b"--log-file=/tmp/\xe9=1"),
            "--".into(),
            bytes(b"/dev/\xff"),
            bytes(b"/mnt/\xe9"),
        ];
        assert_eq!(translate(&arguments), Ok(Wish::Mount(words.into())));
        let unknown = translate(&[bytes(b"a"), bytes(b"b"), "-o".into(), bytes(b"\xe9")]);
        assert!(unknown.unwrap_err().starts_with("unknown option \u{fffd};"));
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
