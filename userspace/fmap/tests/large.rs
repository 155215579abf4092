// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Maps of as many extents as a message holds, against arithmetic.

use famfs_fmap::{
    parse, wanted_size, DevIndex, DevRange, Extents, FileType, FmapError, Message, Run, ALIGN,
    MAX_MESSAGE,
};

/// Extents in a message of 16 MiB: 32 bytes, and 24 for each.
const MOST: u64 = 699_049;

/// A file of `n` extents, each of 2 MiB, or of 2 and 4 MiB in turn. The last is the first one on the device.
#[derive(Clone, Copy)]
struct Large {
    n: u64,
    mixed: bool,
}

impl Large {
    /// Where extent `i` begins in the file.
    fn start(self, i: u64) -> u64 {
        match self.mixed {
            false => i * ALIGN,
            true => (i / 2 * 3 + i % 2) * ALIGN,
        }
    }

    fn size(self) -> u64 {
        self.start(self.n)
    }

    fn extent(self, i: u64) -> DevRange {
        let (start, end) = (self.start(i), self.start(i + 1));
        DevRange {
            index: DevIndex(0),
            offset: self.size() - end,
            len: end - start,
        }
    }

    fn message(self) -> Vec<u8> {
        let extents: Vec<_> = (0..self.n).map(|i| self.extent(i)).collect();
        let message = Message {
            file_type: FileType::Regular,
            file_size: self.size(),
            extents: Extents::Simple(&extents),
            push: true,
        };
        let mut out = vec![0; message.len()];
        assert_eq!(message.encode(&mut out), Ok(out.len()));
        out
    }

    fn place(self, pos: u64) -> Run {
        let unit = pos / ALIGN;
        let i = match self.mixed {
            false => unit,
            true => unit / 3 * 2 + u64::from(unit % 3 > 0),
        };
        let (extent, into) = (self.extent(i), pos - self.start(i));
        Run {
            slot: 0,
            offset: extent.offset + into,
            len: extent.len - into,
        }
    }
}

fn check(large: Large, kind: &str, words: u64) {
    let message = large.message();
    assert_eq!(
        wanted_size(&message[..32], 4096),
        Ok(Some(message.len() as u32))
    );
    let fmap = parse(&message).unwrap();
    let mut cells = vec![0; fmap.cells_len()];
    let layout = fmap.build(|_| Some(0), &mut cells).unwrap();
    let cells = &cells[..layout.cells_len()];
    assert_eq!((layout.kind(), cells.len() as u64), (kind, words));
    for i in 0..large.n {
        let (start, end) = (large.start(i), large.start(i + 1));
        for pos in [start, start + 4097 * (i % 511), end - 1] {
            assert_eq!(layout.resolve(cells, pos), Some(large.place(pos)), "{pos}");
        }
    }
    assert_eq!(layout.resolve(cells, large.size()), None);
}

#[test]
fn the_largest_map_of_one_size() {
    let large = Large {
        n: MOST,
        mixed: false,
    };
    check(large, "uniform", MOST);
}

#[test]
fn the_largest_map_of_mixed_sizes() {
    let large = Large {
        n: MOST,
        mixed: true,
    };
    check(large, "mixed", 2 * MOST);
}

#[test]
fn one_extent_more_is_too_many() {
    let message = Large {
        n: MOST + 1,
        mixed: false,
    }
    .message();
    let error = FmapError::MessageTooLarge(message.len() as u64);
    assert_eq!(message.len() as u64, 32 + 24 * (MOST + 1));
    assert!(message.len() > MAX_MESSAGE as usize);
    assert_eq!(parse(&message).err(), Some(error));
    assert_eq!(wanted_size(&message[..32], 4096), Err(error));
}
