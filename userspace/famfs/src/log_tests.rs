// SPDX-License-Identifier: MIT OR Apache-2.0

use super::*;
use crate::testing::Traced;
use famfs_media::{path_bytes, MkdirEntry, PrimaryDax, LOG_LEN_MIN};
use uuid::Uuid;

fn superblock() -> Superblock {
    let dax = PrimaryDax {
        size: 64 << 20,
        uuid: Uuid::nil(),
        name: b"/dev/dax0.0".to_vec(),
    };
    Superblock::new(
        LOG_LEN_MIN,
        Uuid::from_u128(1),
        Uuid::from_u128(2),
        Uuid::from_u128(3),
        dax,
    )
}

fn log() -> (Traced, LogHeader) {
    let header = LogHeader::new(LOG_LEN_MIN);
    let store = Traced::default();
    store.bytes.borrow_mut().resize(1 << 20, 0);
    store.bytes.borrow_mut()[..HEADER_BYTES].copy_from_slice(&header.encode());
    (store, header)
}

fn dir(name: &str) -> Body {
    Body::Mkdir(MkdirEntry {
        uid: 0,
        gid: 0,
        mode: 0o755,
        path: path_bytes(name.as_bytes()),
    })
}

#[test]
fn entries_are_flushed_before_the_counters() {
    let (store, header) = log();
    let header = append(&store, &header, vec![dir("a")]).unwrap();
    append(&store, &header, vec![dir("b"), dir("c")]).unwrap();
    assert_eq!(
        *store.trace.borrow(),
        [
            ("invalidate", 32, 16),
            ("write", 48, 544),
            ("flush", 48, 544),
            ("write", 32, 16),
            ("flush", 32, 16),
            ("invalidate", 32, 16),
            ("write", 592, 1088),
            ("flush", 592, 1088),
            ("write", 32, 16),
            ("flush", 32, 16),
        ]
    );
}

#[test]
fn what_is_appended_is_replayed() {
    let (store, first) = log();
    let mut replay = Replay::new(&superblock(), 64 << 20);
    let second = append(&store, &first, vec![dir("a"), dir("a/b")]).unwrap();
    assert_eq!(header(&store, &superblock()).unwrap(), second);
    catch_up(&store, &second, &mut replay).unwrap();
    let third = append(&store, &second, vec![dir("a/b/c")]).unwrap();
    catch_up(&store, &third, &mut replay).unwrap();
    assert_eq!(replay.totals.dirs, 3);
    assert!(replay.tree.resolve(b"a/b/c").is_some());
    assert_eq!(replay.findings, []);
}

#[test]
fn readers_invalidate_before_they_read() {
    let (store, first) = log();
    let after = append(&store, &first, vec![dir("a")]).unwrap();
    store.trace.borrow_mut().clear();
    header(&store, &superblock()).unwrap();
    catch_up(&store, &after, &mut Replay::new(&superblock(), 64 << 20)).unwrap();
    assert_eq!(
        *store.trace.borrow(),
        [("invalidate", 0, 48), ("invalidate", 48, 544)]
    );
}

#[test]
fn a_stale_entry_is_read_once_more() {
    let (store, first) = log();
    let after = append(&store, &first, vec![dir("a"), dir("b")]).unwrap();
    store.stale.set(Some(48 + 544 + 100));
    let mut replay = Replay::new(&superblock(), 64 << 20);
    catch_up(&store, &after, &mut replay).unwrap();
    assert_eq!(replay.totals.dirs, 2);
}

#[test]
fn a_broken_entry_with_whole_ones_behind_it_applies_nothing() {
    let (store, first) = log();
    let after = append(&store, &first, vec![dir("a"), dir("b"), dir("c")]).unwrap();
    store.bytes.borrow_mut()[48 + 544 + 100] ^= 1;
    let mut replay = Replay::new(&superblock(), 64 << 20);
    let error = catch_up(&store, &after, &mut replay).unwrap_err();
    assert!(
        matches!(error.downcast_ref(), Some(LogError::Entry { index: 1, .. })),
        "{error}"
    );
    assert_eq!((replay.totals.dirs, replay.next_index()), (0, 0));
}

#[test]
fn a_broken_end_is_left_out_until_it_is_whole() {
    let (store, first) = log();
    let after = append(&store, &first, vec![dir("a"), dir("b")]).unwrap();
    store.bytes.borrow_mut()[48 + 544 + 100] ^= 1;
    let mut replay = Replay::new(&superblock(), 64 << 20);
    catch_up(&store, &after, &mut replay).unwrap();
    assert_eq!((replay.totals.dirs, replay.next_index()), (1, 1));
    store.bytes.borrow_mut()[48 + 544 + 100] ^= 1;
    catch_up(&store, &after, &mut replay).unwrap();
    assert_eq!((replay.totals.dirs, replay.next_index()), (2, 2));
}

#[test]
fn a_full_log_is_not_touched() {
    let (store, _) = log();
    let full = LogHeader {
        next_seqnum: 15420,
        next_index: 15420,
        ..LogHeader::new(LOG_LEN_MIN)
    };
    let error = append(&store, &full, vec![dir("a")]).unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(LogError::Full { .. })));
    assert_eq!(*store.trace.borrow(), []);
}

#[test]
fn a_log_that_has_shrunk_is_an_error() {
    let (store, first) = log();
    let mut replay = Replay::new(&superblock(), 64 << 20);
    let after = append(&store, &first, vec![dir("a")]).unwrap();
    catch_up(&store, &after, &mut replay).unwrap();
    let error = catch_up(&store, &first, &mut replay).unwrap_err();
    let shrunk = LogError::Shrunk { known: 1, found: 0 };
    assert_eq!(error.downcast_ref(), Some(&shrunk));
}
