// SPDX-License-Identifier: MIT OR Apache-2.0
//! The change of the master: a new system uuid in the superblock, and the CRC that goes with it.
//!
//! They are three words, and a host may die after each. So the CRC is stored first: until the uuid is there as well, the
//! superblock is invalid, but with that host's uuid put into it, it is valid. By this the host knows what it was about
//! to do, and tries again. No other host can tell it from damage.

use std::io;

use famfs_media::{SuperError, Superblock, SUPERBLOCK_BYTES};
use uuid::Uuid;

use crate::exit::{fail, Exit};
use crate::log::{self, Store};
use crate::system;

const UUID_AT: usize = 80;
const CRC_AT: usize = 96;
const CRC_END: usize = 104;

/// The superblock in `bytes`.
///
/// # Errors
/// It is not valid, with a hint if this host has left it so.
pub fn parse(bytes: &[u8]) -> anyhow::Result<Superblock> {
    parse_on(bytes, system::uuid())
}

fn parse_on(bytes: &[u8], local: Option<Uuid>) -> anyhow::Result<Superblock> {
    let error = match Superblock::parse(bytes) {
        Ok(superblock) => return Ok(superblock),
        Err(error) => error,
    };
    match local.and_then(|system| interrupted(bytes, system)) {
        Some(_) => Err(fail(
            Exit::Corrupt,
            "superblock: this host was interrupted when it became the master; `famfs mount --take-over` does it again",
        )),
        None => Err(error.into()),
    }
}

/// What the superblock in `bytes` was about to become when host `system` was interrupted; None if it was not.
pub fn interrupted(bytes: &[u8], system: Uuid) -> Option<Superblock> {
    if !matches!(Superblock::parse(bytes), Err(SuperError::Crc { .. })) {
        return None;
    }
    let mut done = bytes.to_vec();
    done.get_mut(UUID_AT..CRC_AT)?
        .copy_from_slice(system.as_bytes());
    Superblock::parse(&done).ok()
}

/// Makes the host of `superblock` the master, unless it could not go on with `log`, of which `known` whole entries were
/// read, or the superblock in `store` is another by now: nothing is stored then.
pub fn take_over(
    store: &impl Store,
    superblock: &Superblock,
    log: &impl Store,
    known: u64,
) -> anyhow::Result<()> {
    let header = log::header(log, superblock)?;
    log::settled(log, &header, known)?;
    // A large log takes minutes to read, and the CRC that is stored is that of this superblock.
    let bytes = log::read_fresh(store, 0, SUPERBLOCK_BYTES)?;
    let system_uuid = superblock.system_uuid;
    let same = |found| {
        *superblock
            == Superblock {
                system_uuid,
                ..found
            }
    };
    if !Superblock::parse(&bytes).is_ok_and(same) {
        let text = "superblock: it was changed while the log was read; nothing was taken over";
        return Err(fail(Exit::Corrupt, text));
    }
    Ok(become_master(store, superblock)?)
}

/// Stores the system uuid of `superblock`, which else is as in `store`. Nobody may append to the log meanwhile.
pub fn become_master(store: &impl Store, superblock: &Superblock) -> io::Result<()> {
    let bytes = superblock.encode();
    let put = |from: usize, to: usize| {
        store.write(from, bytes.get(from..to).unwrap_or_default())?;
        store.flush(from, to.saturating_sub(from))
    };
    put(CRC_AT, CRC_END)?;
    put(UUID_AT, CRC_AT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    use famfs_media::{LogError, LogHeader, PrimaryDax, LOG_LEN_MIN};

    use crate::testing::Traced;

    const OLD: Uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_0011_2233_4455_6677);
    const NEW: Uuid = Uuid::from_u128(0x1111_2222_3333_4444_5555_6666_7777_8888);
    const OTHER: Uuid = Uuid::from_u128(0x9999_aaaa_bbbb_cccc_dddd_eeee_ffff_0000);

    /// Memory of a host that dies after so many words.
    struct Dying {
        bytes: RefCell<Vec<u8>>,
        words: Cell<usize>,
    }

    impl Dying {
        fn new(bytes: &[u8], words: usize) -> Self {
            Self {
                bytes: RefCell::new(bytes.to_vec()),
                words: Cell::new(words),
            }
        }
    }

    impl Store for Dying {
        fn read(&self, at: usize, out: &mut [u8]) -> io::Result<()> {
            out.copy_from_slice(&self.bytes.borrow()[at..at + out.len()]);
            Ok(())
        }
        fn write(&self, at: usize, bytes: &[u8]) -> io::Result<()> {
            for (at, word) in (at..).step_by(8).zip(bytes.chunks(8)) {
                let left = self.words.get().checked_sub(1);
                self.words.set(left.ok_or(io::ErrorKind::BrokenPipe)?);
                self.bytes.borrow_mut()[at..at + 8].copy_from_slice(word);
            }
            Ok(())
        }
        fn flush(&self, _: usize, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn invalidate(&self, _: usize, _: usize) -> io::Result<()> {
            Ok(())
        }
    }

    fn superblock(system: Uuid) -> Superblock {
        let dax = PrimaryDax {
            size: 64 << 20,
            uuid: Uuid::nil(),
            name: b"/dev/dax0.0".to_vec(),
        };
        let [fs, dev] = [1, 2].map(Uuid::from_u128);
        Superblock::new(LOG_LEN_MIN, fs, dev, system, dax)
    }

    /// What memory has when host NEW dies after so many words of becoming the master, and whether it does.
    fn taken_over(words: usize) -> (Vec<u8>, bool) {
        let host = Dying::new(&superblock(OLD).encode(), words);
        let dies = become_master(&host, &superblock(NEW)).is_err();
        (host.bytes.into_inner(), dies)
    }

    #[test]
    fn interrupted_at_every_word() {
        for words in 0..=3 {
            let (bytes, dies) = taken_over(words);
            assert_eq!(dies, words < 3, "{words} words");
            let before = match words {
                0 => superblock(OLD),
                // The one host that knows what to do; nothing of the superblock is lost.
                1 | 2 => interrupted(&bytes, NEW).unwrap(),
                _ => superblock(NEW),
            };
            // As the mount that finishes it does, and then take_over().
            let mut again = interrupted(&bytes, NEW)
                .or_else(|| Superblock::parse(&bytes).ok())
                .unwrap();
            assert_eq!(again, before);
            again.system_uuid = NEW;
            let host = Dying::new(&bytes, 3);
            become_master(&host, &again).unwrap();
            assert_eq!(
                *host.bytes.borrow(),
                superblock(NEW).encode(),
                "{words} words"
            );
        }
    }

    #[test]
    fn a_log_that_cannot_be_continued_is_not_taken_over() {
        let header = LogHeader::new(LOG_LEN_MIN);
        let damaged = LogHeader {
            next_seqnum: 42,
            ..header
        };
        let take_over = |header: LogHeader| {
            let (host, log) = (Dying::new(&superblock(OLD).encode(), 3), Traced::default());
            log.bytes.borrow_mut().extend(header.encode());
            log.bytes.borrow_mut().resize(1 << 20, 0);
            let result = super::take_over(&host, &superblock(NEW), &log, 0);
            (result, host.bytes.into_inner())
        };
        let (result, bytes) = take_over(damaged);
        let counters = LogError::Counters {
            seqnum: 42,
            index: 0,
        };
        assert_eq!(result.unwrap_err().downcast_ref(), Some(&counters));
        assert_eq!(bytes, superblock(OLD).encode());
        let (result, bytes) = take_over(header);
        result.unwrap();
        assert_eq!(bytes, superblock(NEW).encode());
    }

    #[test]
    fn a_superblock_that_has_changed_is_not_taken_over() {
        let log = Traced::default();
        log.bytes
            .borrow_mut()
            .extend(LogHeader::new(LOG_LEN_MIN).encode());
        let take_over = |bytes: &[u8]| {
            let host = Dying::new(bytes, 3);
            let result = super::take_over(&host, &superblock(NEW), &log, 0);
            (result, host.bytes.into_inner())
        };
        let anew = Superblock {
            fs_uuid: OTHER,
            ..superblock(OLD)
        };
        for found in [anew.encode(), [0; SUPERBLOCK_BYTES]] {
            let (result, bytes) = take_over(&found);
            assert_eq!(crate::exit::code(&result.unwrap_err()), Exit::Corrupt);
            assert_eq!(bytes, found);
        }
        // Another host was as fast.
        let (result, bytes) = take_over(&superblock(OTHER).encode());
        result.unwrap();
        assert_eq!(bytes, superblock(NEW).encode());
    }

    #[test]
    fn who_reads_what_an_interrupted_host_left() {
        for words in 1..=2 {
            let (bytes, _) = taken_over(words);
            let error = |local| parse_on(&bytes, local).unwrap_err();
            let hint = error(Some(NEW));
            assert_eq!(crate::exit::code(&hint), Exit::Corrupt);
            assert!(hint.to_string().contains("--take-over"), "{hint}");
            for local in [None, Some(OTHER), Some(OLD)] {
                assert!(matches!(
                    error(local).downcast_ref(),
                    Some(SuperError::Crc { .. })
                ));
            }
        }
    }

    #[test]
    fn damage_is_no_interruption() {
        for words in 0..=3 {
            for at in (0..UUID_AT).chain(CRC_AT..CRC_END) {
                let (mut bytes, _) = taken_over(words);
                bytes[at] ^= 1;
                assert_eq!(interrupted(&bytes, NEW), None, "byte {at}, {words} words");
            }
        }
        let whole = superblock(OLD).encode();
        assert_eq!(interrupted(&whole, OLD), None);
        assert_eq!(interrupted(&whole[..SUPERBLOCK_BYTES - 1], OLD), None);
        assert_eq!(parse_on(&whole, Some(OTHER)).unwrap(), superblock(OLD));
    }
}
