// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files that hold a device's first bytes, and replies of servers, each with something wrong.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use famfs_media::{LogHeader, Superblock, LOG_OFFSET};

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/vectors");

fn vector(name: &str) -> Vec<u8> {
    fs::read(Path::new(VECTORS).join(name)).unwrap()
}

fn image(path: &Path, superblock: &[u8], log: &[u8]) {
    let file = File::create(path).unwrap();
    file.write_all_at(superblock, 0).unwrap();
    file.write_all_at(log, LOG_OFFSET).unwrap();
}

/// All files that transcripts name.
pub fn all(dir: &Path) {
    let (superblock, log) = (vector("media/superblock.bin"), vector("media/log.bin"));
    image(&dir.join("image"), &superblock, &log);
    fs::write(dir.join("zeroes"), [0; 4096]).unwrap();
    fs::write(dir.join("short"), &superblock[..100]).unwrap();
    let mut cut_off = superblock.clone();
    cut_off.resize(LOG_OFFSET as usize + 20, 0);
    fs::write(dir.join("log-cut-off"), cut_off).unwrap();
    for (name, file) in [
        ("version-47", "bad_sb_version47"),
        ("superblock-crc", "bad_sb_crc"),
        ("superblock-unit", "bad_sb_alloc_unit"),
    ] {
        image(&dir.join(name), &vector(&format!("media/{file}.bin")), &log);
    }
    for (name, file) in [
        ("log-magic", "bad_log_magic"),
        ("log-crc", "bad_log_hdr_crc"),
        ("entry-crc", "bad_log_entry_crc"),
        ("entry-seqnum", "bad_log_seq_gap"),
        ("entry-over-superblock", "odd_log_ext_offset0"),
        ("entry-absolute-path", "odd_log_abs_path"),
        ("entry-unknown-type", "odd_log_unknown_type7"),
        ("entry-delete", "odd_log_delete_type2"),
        ("entry-duplicate", "odd_log_duplicate_path"),
        ("entry-count", "odd_log_next_seqnum_mismatch"),
    ] {
        image(
            &dir.join(name),
            &superblock,
            &vector(&format!("media/{file}.bin")),
        );
    }
    edited(dir, &superblock, &log);
    for (name, file) in [
        ("reply-short", "msg/bad_fmap_trunc_hdr31.bin"),
        ("reply-unaligned", "msg/bad_fmap_len_unaligned.bin"),
        ("reply-33-strips", "msg_derived/d_iext_33strips.bin"),
    ] {
        fs::write(dir.join(name), vector(file)).unwrap();
    }
}

/// Fields changed, under a CRC that fits.
fn edited(dir: &Path, superblock: &[u8], log: &[u8]) {
    let sb = |name: &str, edit: fn(&mut Superblock)| {
        let mut sb = Superblock::decode(superblock).unwrap();
        edit(&mut sb);
        image(&dir.join(name), &sb.encode(), log);
    };
    sb("superblock-log-offset", |sb| sb.log_offset = 4 << 20);
    sb("superblock-log-length", |sb| sb.log_len = 9 << 20);
    sb("second-daxdev", |sb| sb.flags = Superblock::SECONDARY);
    let header = |name: &str, edit: fn(&mut LogHeader)| {
        let mut header = LogHeader::decode(log).unwrap();
        edit(&mut header);
        image(&dir.join(name), superblock, &header.encode());
    };
    header("log-length", |header| header.log_len *= 2);
    header("log-last-index", |header| header.last_index += 1);
    header("log-next-index", |header| {
        header.next_index = header.last_index + 2;
    });
}
