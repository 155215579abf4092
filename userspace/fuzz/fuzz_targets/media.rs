// SPDX-License-Identifier: MIT OR Apache-2.0

//! Superblock, log header and entries, as a mount reads them and as fsck does. The input is a byte of switches, a
//! superblock, a header and entries. Each switch puts checksums right, which the fuzzer would not guess.

#![no_main]

#[path = "../../media/tests/sound/mod.rs"]
mod sound;

use famfs_media::{
    Entry, LogHeader, Replay, Superblock, ENTRY_BYTES, HEADER_BYTES, SUPERBLOCK_BYTES,
};
use libfuzzer_sys::fuzz_target;

const SUPERBLOCK_CRC: u8 = 1;
const HEADER: u8 = 2;
const ENTRIES: u8 = 4;

fuzz_target!(|input: &[u8]| {
    let Some((switches, image)) = input.split_first() else {
        return;
    };
    let mut image = image.to_vec();
    image.resize(image.len().max(SUPERBLOCK_BYTES + HEADER_BYTES), 0);
    let (superblock, log) = image.split_at_mut(SUPERBLOCK_BYTES);
    if switches & SUPERBLOCK_CRC != 0 {
        let (_, crc) = Superblock::crcs(superblock);
        superblock[96..104].copy_from_slice(&crc.to_le_bytes());
    }
    let Ok(superblock) = Superblock::parse(superblock) else {
        return;
    };
    assert_eq!(
        Superblock::parse(&superblock.encode()).as_ref(),
        Ok(&superblock)
    );
    if switches & HEADER != 0 {
        let entries = (log.len() - HEADER_BYTES) / ENTRY_BYTES;
        let header = LogHeader {
            // Up to 255 more than there are.
            next_index: entries as u64 + u64::from(log[40]),
            ..LogHeader::new(superblock.log_len)
        };
        log[..HEADER_BYTES].copy_from_slice(&header.encode());
    }
    if switches & ENTRIES != 0 {
        for (index, entry) in (0u64..).zip(log[HEADER_BYTES..].chunks_exact_mut(ENTRY_BYTES)) {
            entry[..8].copy_from_slice(&index.to_le_bytes());
            let (_, crc) = Entry::crcs(entry);
            entry[536..].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let device = superblock.dax.size;
    if let Ok(replay) = Replay::of_log(&superblock, device, log) {
        sound::check(&superblock, device, &replay);
    }
    let Ok(header) = LogHeader::parse(log, superblock.log_len) else {
        return;
    };
    let mut replay = Replay::new(&superblock, device);
    replay.inspect(&header, &log[HEADER_BYTES..]).unwrap();
    sound::check(&superblock, device, &replay);
    for bytes in log[HEADER_BYTES..].chunks_exact(ENTRY_BYTES) {
        if let Some(entry) = Entry::decode(bytes) {
            assert_eq!(Entry::decode(&entry.encode()).as_ref(), Some(&entry));
        }
    }
});
