// SPDX-License-Identifier: MIT OR Apache-2.0
//! The structures and constants of `abi` and `opcode` against the kernel's uapi header, as the C compiler reads it.
//! `KERNEL_FUSE_H` names the header; without it, the one that the system's C library came with is taken, and what
//! that is too old for is left out.

use std::io::Write;
use std::mem::offset_of;
use std::process::{Command, Stdio};

use famfs_fuse::abi::*;
use famfs_fuse::Opcode;

/// One `_Static_assert` for the size of a structure and one for the offset of each field.
macro_rules! structure {
    ($c:ident $rust:ident { $($field:ident),* }) => {
        concat_lines(&[
            format!("_Static_assert(sizeof(struct {0}) == {1}, \"{0}\");", stringify!($c), size_of::<$rust>()),
            $(format!(
                "_Static_assert(__builtin_offsetof(struct {0}, {1}) == {2}, \"{0}.{1}\");",
                stringify!($c), stringify!($field), offset_of!($rust, $field)
            )),*
        ])
    };
}

fn concat_lines(lines: &[String]) -> String {
    lines.join("\n") + "\n"
}

/// Lines that need a header of at least this minor version.
fn since(minor: u32, lines: &str) -> String {
    format!("#if FUSE_KERNEL_MINOR_VERSION >= {minor}\n{lines}#endif\n")
}

fn structures() -> String {
    [
        structure!(fuse_in_header InHeader { len, opcode, unique, nodeid, uid, gid, pid, total_extlen }),
        structure!(fuse_out_header OutHeader { len, error, unique }),
        structure!(fuse_init_in InitIn { major, minor, max_readahead, flags, flags2, unused }),
        structure!(fuse_init_out InitOut {
            major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages,
            map_alignment, flags2
        }),
        since(43, &structure!(fuse_init_out InitOut { max_stack_depth, request_timeout, unused })),
        structure!(fuse_attr Attr {
            ino, size, blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, nlink, uid, gid, rdev,
            blksize, flags
        }),
        structure!(fuse_entry_out EntryOut {
            nodeid, generation, entry_valid, attr_valid, entry_valid_nsec, attr_valid_nsec, attr
        }),
        structure!(fuse_attr_out AttrOut { attr_valid, attr_valid_nsec, dummy, attr }),
        structure!(fuse_setattr_in SetattrIn {
            valid, fh, size, lock_owner, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, uid, gid
        }),
        structure!(fuse_open_out OpenOut { fh, open_flags }),
        since(40, &structure!(fuse_open_out OpenOut { backing_id })),
        structure!(fuse_read_in ReadIn { fh, offset, size, read_flags, lock_owner, flags }),
        structure!(fuse_kstatfs Kstatfs { blocks, bfree, bavail, files, ffree, bsize, namelen, frsize, spare }),
        structure!(fuse_getxattr_in GetxattrIn { size, padding }),
        structure!(fuse_notify_inval_inode_out NotifyInvalInodeOut { ino, off, len }),
        format!("_Static_assert(sizeof(struct fuse_dirent) == {}, \"dirent\");\n", size_of::<Dirent>()),
        format!(
            "_Static_assert(__builtin_offsetof(struct fuse_direntplus, dirent) == {}, \"direntplus\");\n",
            size_of::<EntryOut>()
        ),
    ]
    .concat()
}

fn constants() -> String {
    let flags = [
        ("FUSE_KERNEL_VERSION", u64::from(KERNEL_VERSION)),
        ("FUSE_ROOT_ID", ROOT_ID),
        ("FUSE_MIN_READ_BUFFER", MIN_READ_BUFFER as u64),
        ("FUSE_ASYNC_READ", ASYNC_READ),
        ("FUSE_BIG_WRITES", BIG_WRITES),
        ("FUSE_DO_READDIRPLUS", DO_READDIRPLUS),
        ("FUSE_READDIRPLUS_AUTO", READDIRPLUS_AUTO),
        ("FUSE_ASYNC_DIO", ASYNC_DIO),
        ("FUSE_PARALLEL_DIROPS", PARALLEL_DIROPS),
        ("FUSE_INIT_EXT", INIT_EXT),
        ("FATTR_MODE", u64::from(fattr::MODE)),
        ("FATTR_UID", u64::from(fattr::UID)),
        ("FATTR_GID", u64::from(fattr::GID)),
        ("FATTR_SIZE", u64::from(fattr::SIZE)),
        ("FATTR_ATIME", u64::from(fattr::ATIME)),
        ("FATTR_MTIME", u64::from(fattr::MTIME)),
        ("FATTR_ATIME_NOW", u64::from(fattr::ATIME_NOW)),
        ("FATTR_MTIME_NOW", u64::from(fattr::MTIME_NOW)),
        ("FATTR_CTIME", u64::from(fattr::CTIME)),
        ("FOPEN_CACHE_DIR", u64::from(FOPEN_CACHE_DIR)),
        ("FUSE_NOTIFY_INVAL_INODE", NOTIFY_INVAL_INODE as u64),
    ];
    let assert = |name: &str, value: u64| {
        format!("_Static_assert((uint64_t){name} == {value}ULL, \"{name}\");\n")
    };
    let lines: String = flags.map(|(name, value)| assert(name, value)).concat();
    let lines = lines + &since(40, &assert("FUSE_NOTIFY_RESEND", NOTIFY_RESEND as u64));
    // The header of a patched kernel has the bit as a macro; a mainline header has not.
    let newer = assert("FUSE_DAX_FMAP", DAX_FMAP_MINOR_46);
    let older = assert("FUSE_DAX_FMAP", DAX_FMAP_MINOR_45);
    format!(
        "{lines}#ifdef FUSE_DAX_FMAP\n#if FUSE_KERNEL_MINOR_VERSION > {KERNEL_MINOR_VERSION}\n{newer}#else\n{older}#endif\n#endif\n"
    )
}

/// The first minor version whose header has this opcode.
fn introduced(opcode: Opcode) -> Option<u32> {
    match opcode {
        // Famfs's own: enumerators of a patched header only, so the preprocessor cannot ask for them.
        Opcode::GetFmap | Opcode::GetDaxdev => None,
        Opcode::Statx => Some(39),
        Opcode::CopyFileRange64 => Some(45),
        _ => Some(38),
    }
}

fn opcodes() -> String {
    let assert = |opcode: Opcode| {
        let (name, number) = (opcode.name(), opcode as u32);
        format!("_Static_assert(FUSE_{name} == {number}, \"{name}\");\n")
    };
    let known = |&opcode: &Opcode| Some(since(introduced(opcode)?, &assert(opcode)));
    let patched = [Opcode::GetFmap, Opcode::GetDaxdev].map(assert).concat();
    let common: String = Opcode::ALL.iter().filter_map(known).collect();
    format!("{common}#ifdef FUSE_DAX_FMAP\n{patched}#endif\n")
}

#[test]
fn abi_equals_the_uapi_header() {
    let header =
        std::env::var("KERNEL_FUSE_H").unwrap_or_else(|_| "/usr/include/linux/fuse.h".into());
    let source = format!(
        "#include <stdint.h>\n#include \"{header}\"\n{}{}{}",
        structures(),
        constants(),
        opcodes()
    );
    let mut compiler = Command::new("cc")
        .args(["-fsyntax-only", "-Wall", "-x", "c", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("the C compiler `cc`");
    compiler
        .stdin
        .take()
        .unwrap()
        .write_all(source.as_bytes())
        .unwrap();
    assert!(
        compiler.wait().unwrap().success(),
        "{header} disagrees, see the compiler's messages"
    );
}
