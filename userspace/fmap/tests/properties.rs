// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Random maps of every kind, and random damage to them, against a naive model.

mod model;

use famfs_fmap::{DevIndex, DevRange, Extents, FileType, Interleaved, Message, ALIGN};
use proptest::{collection::vec, prelude::*};

/// Units of [`ALIGN`]: mostly few, so that extents meet; at times more than 2 TiB, which is
/// above what uniform maps take.
fn units() -> impl Strategy<Value = u64> {
    prop_oneof![
        12 => 1..6u64,
        2 => 1..3000u64,
        1 => (1u64 << 19)..(1 << 22),
    ]
}

/// Devices on which ranges are laid out in a random order, with gaps between some.
#[derive(Default)]
struct Devices([u64; 3]);

impl Devices {
    fn place(&mut self, dev: u32, gap: u64, units: u64) -> DevRange {
        let next = &mut self.0[dev as usize % 3];
        let offset = (*next + gap) * ALIGN;
        *next += gap + units;
        DevRange {
            index: DevIndex(dev % 3 * 32767),
            offset,
            len: units * ALIGN,
        }
    }

    fn lay_out(places: &[(u32, u64, u64, u32)]) -> Vec<DevRange> {
        let mut devices = Self::default();
        let mut order: Vec<usize> = (0..places.len()).collect();
        order.sort_by_key(|i| places[*i].3);
        let mut ranges = vec![devices.place(0, 0, 1); places.len()];
        for i in order {
            let (dev, gap, units, _) = places[i];
            ranges[i] = devices.place(dev, gap, units);
        }
        ranges
    }
}

/// Device, gap before, length, place in the order of layout.
fn place(len: impl Strategy<Value = u64>) -> impl Strategy<Value = (u32, u64, u64, u32)> {
    (0..3u32, 0..3u64, len, any::<u32>())
}

fn message(file_size: u64, extents: Extents<'_>) -> Vec<u8> {
    let message = Message {
        file_type: FileType::Regular,
        file_size,
        extents,
        push: false,
    };
    let mut out = vec![0xaa; message.len()];
    assert_eq!(message.encode(&mut out), Ok(out.len()));
    out
}

/// A size that the map covers: `fraction` of it, in 65536ths, and at least a byte.
fn part_of(total: u64, fraction: u16) -> u64 {
    let part = u128::from(total) * (u128::from(fraction) + 1) / 65536;
    (part as u64).clamp(1, total)
}

fn simple_message(places: &[(u32, u64, u64, u32)], fraction: u16) -> Vec<u8> {
    let ranges = Devices::lay_out(places);
    let total = ranges.iter().map(|range| range.len).sum();
    message(part_of(total, fraction), Extents::Simple(&ranges))
}

fn mixed() -> impl Strategy<Value = Vec<u8>> {
    (vec(place(units()), 1..40), any::<u16>()).prop_map(|(p, f)| simple_message(&p, f))
}

/// All but the last of one length.
fn uniform() -> impl Strategy<Value = Vec<u8>> {
    (vec(place(Just(0)), 2..60), units(), units(), any::<u16>()).prop_map(
        |(mut places, each, last, fraction)| {
            places.iter_mut().for_each(|place| place.2 = each);
            if let Some(place) = places.last_mut() {
                place.2 = last;
            }
            simple_message(&places, fraction)
        },
    )
}

/// Chunk in units, chunks, part of the last chunk's units, strips.
type Shape = (u64, u64, u64, usize);

fn interleaved(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    let chunk = prop_oneof![Just(1u64), Just(2), Just(3), 1..12u64, Just(2047)];
    let shape = (chunk, 1..40u64, any::<u64>(), 1..=32usize);
    (vec(shape, count), vec(place(0..3u64), 32 * 8), any::<u16>())
        .prop_map(|(shapes, places, fraction)| interleaved_message(&shapes, &places, fraction))
}

fn interleaved_message(
    shapes: &[Shape],
    places: &[(u32, u64, u64, u32)],
    fraction: u16,
) -> Vec<u8> {
    let mut all = Vec::new();
    let mut spare = places.iter();
    for (chunk, chunks, _, nstrips) in shapes {
        for (i, place) in spare.by_ref().take(*nstrips).enumerate() {
            let rows = chunks.saturating_sub(i as u64).div_ceil(*nstrips as u64);
            all.push((place.0, place.1, (rows * chunk + place.2).max(1), place.3));
        }
    }
    let ranges = Devices::lay_out(&all);
    let mut rest = ranges.as_slice();
    let mut iexts = Vec::new();
    for (chunk, chunks, part, nstrips) in shapes {
        let (strips, others) = rest.split_at(*nstrips);
        rest = others;
        iexts.push(Interleaved {
            chunk: (chunk * ALIGN) as u32,
            nbytes: (chunks * chunk - part % chunk) * ALIGN,
            strips,
        });
    }
    let mut total = iexts.iter().map(|iext| iext.nbytes).sum();
    // Files end anywhere, and so may the last extent.
    if let Some(last) = iexts.last_mut().filter(|_| fraction % 2 == 0) {
        let cut = u64::from(fraction) % last.nbytes;
        last.nbytes -= cut;
        total -= cut;
    }
    message(part_of(total, fraction), Extents::Interleaved(&iexts))
}

fn any_message() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![mixed(), uniform(), interleaved(1..2), interleaved(2..9)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mixed_maps_agree_with_the_model(m in mixed(), extra in vec(any::<u64>(), 0..4)) {
        prop_assert!(model::compare(&m, &extra));
    }

    #[test]
    fn uniform_maps_agree_with_the_model(m in uniform(), extra in vec(any::<u64>(), 0..4)) {
        prop_assert!(model::compare(&m, &extra));
    }

    #[test]
    fn one_interleaved_extent_agrees_with_the_model(m in interleaved(1..2), extra in vec(any::<u64>(), 0..4)) {
        prop_assert!(model::compare(&m, &extra));
    }

    #[test]
    fn several_interleaved_extents_agree_with_the_model(m in interleaved(2..9), extra in vec(any::<u64>(), 0..4)) {
        prop_assert!(model::compare(&m, &extra));
    }

    #[test]
    fn positions_within_the_file_agree_with_the_model(m in any_message(), seeds in vec(any::<u64>(), 200)) {
        let size = model::decode(&m).map(|model| model.file_size as u64).unwrap_or(1);
        let extra: Vec<u64> = seeds.iter().map(|seed| seed % size).collect();
        prop_assert!(model::compare(&m, &extra[..2]));
        let (model, built) = (model::decode(&m).unwrap(), model::build(&m).unwrap());
        for pos in extra {
            let (dev, offset, len) = model.resolve(u128::from(pos));
            prop_assert_eq!(built.resolve(u128::from(pos)), Some((model::slot(dev), offset, len)));
            let back = built.file_ranges(dev, offset..offset + 1);
            prop_assert_eq!(back, vec![u128::from(pos)..u128::from(pos) + 1]);
        }
    }

    /// Damage of the kinds that find mistakes: bits, small and huge numbers, units, cuts.
    #[test]
    fn damaged_messages_get_the_verdict_of_the_model(
        m in any_message(),
        damage in vec((any::<prop::sample::Index>(), 0..6u8, any::<u64>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut m = m;
        for (at, kind, value) in damage {
            let value = match kind {
                0 => value,
                1 => value % 4,
                2 => value.wrapping_mul(ALIGN),
                3 => u64::MAX - value % 4,
                4 => (value % 64) * ALIGN,
                _ => {
                    let byte = at.index(m.len());
                    m[byte] ^= 1 << (value % 8);
                    continue;
                }
            };
            let at = at.index(m.len() / 8) * 8;
            m[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        }
        if cut.index(4) == 0 {
            m.truncate(cut.index(m.len()));
        }
        model::compare(&m, &[1, 2, 3]);
    }

    #[test]
    fn arbitrary_bytes_get_the_verdict_of_the_model(m in vec(any::<u8>(), 0..200)) {
        model::compare(&m, &[]);
    }
}
