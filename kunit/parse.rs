// SPDX-License-Identifier: GPL-2.0-only

//! Messages: those of testdata/vectors, and each reason to refuse one.

use kernel::{
    prelude::*,
    str::CString, //
};

use crate::{
    fixture::{
        refusal,
        Built, //
    },
    fmap::{
        self,
        DevIndex,
        DevRange,
        FmapError,
        Policy, //
    },
    message::{
        daxdev,
        edit,
        interleaved,
        pushed,
        simple,
        Range,
        MIB, //
    },
    vectors::{
        Decoded,
        Vector, //
    },
};

/// Names the vector whose decoding is not what it should be.
fn check_vector(vector: &Vector) -> Result {
    let failed = || {
        pr_err!("{}: not as the manifest says\n", vector.name);
        EINVAL
    };
    match &vector.answer {
        Err(error) if refusal(vector.message)? != Some(*error) => Err(failed()),
        Err(_) => Ok(()),
        Ok(decoded) if is_decoded(vector.message, decoded)? => Ok(()),
        Ok(_) => Err(failed()),
    }
}

fn is_decoded(message: &[u8], expected: &Decoded) -> Result<bool> {
    let fmap = fmap::parse(message)?;
    let kind = Built::new(message)?.layout.kind();
    let ranges = expected.ranges.iter().map(range);
    Ok(kind == expected.kind
        && fmap.file_type() as u8 == expected.file_type
        && fmap.file_size() == expected.file_size
        && fmap.nextents() == expected.nextents
        && fmap.ranges().count() == expected.nranges
        && fmap.ranges().take(expected.ranges.len()).eq(ranges)
        && fmap::wanted_size(message, 4096) == Ok(None))
}

fn range(range: &Range) -> DevRange {
    DevRange {
        index: DevIndex(range.0),
        offset: range.1,
        len: range.2,
    }
}

/// One extent of 4 MiB at 8 MiB, for a file of 3 MiB.
fn one() -> Result<KVVec<u8>> {
    simple(3 * MIB, &[(0, 8 * MIB, 4 * MIB)])
}

/// Whether a map of this one extent or strip is refused, in all places where it may stand.
fn is_refused_everywhere(bad: Range, error: FmapError) -> Result<bool> {
    let second = [(1, 0, 2 * MIB), bad];
    Ok(refusal(&simple(MIB, &[bad])?)? == Some(error)
        && refusal(&simple(MIB, &second)?)? == Some(error)
        && refusal(&interleaved(MIB, &[(2 << 20, MIB, &second)])?)? == Some(error))
}

/// Whether `nbytes` in chunks of `chunk` bytes on these strips are refused.
fn is_stripe_refused(chunk: u32, nbytes: u64, strips: &[Range], error: FmapError) -> Result<bool> {
    Ok(refusal(&interleaved(1, &[(chunk, nbytes, strips)])?)? == Some(error))
}

#[kunit_tests(famfs_parse)]
mod tests {
    use super::*;
    use crate::vectors::VECTORS;

    #[test]
    fn every_vector_is_decoded_or_refused() -> Result {
        assert_eq!(VECTORS.len(), 43);
        for vector in VECTORS {
            check_vector(vector)?;
        }
        Ok(())
    }

    #[test]
    fn headers_are_checked() -> Result {
        let all = one()?;
        assert_eq!(refusal(&all)?, None);
        assert_eq!(refusal(&all[..55])?, Some(FmapError::Truncated(55)));
        assert_eq!(refusal(&all[..31])?, Some(FmapError::Truncated(31)));
        let bad = |at, bytes: &[u8]| refusal(&edit(one()?, at, bytes)?);
        assert_eq!(bad(2, &[2, 0])?, Some(FmapError::Version(2)));
        assert_eq!(bad(2, &[0, 0])?, Some(FmapError::Version(0)));
        assert_eq!(bad(0, &[2])?, None);
        assert_eq!(bad(0, &[3])?, Some(FmapError::FileType(3)));
        assert_eq!(bad(4, &[2])?, Some(FmapError::ExtentType(2)));
        assert_eq!(bad(8, &[0])?, Some(FmapError::NoExtents));
        assert_eq!(bad(8, &[2])?, Some(FmapError::Truncated(56)));
        assert_eq!(bad(8, &[0xff; 4])?, Some(FmapError::Truncated(56)));
        Ok(())
    }

    #[test]
    fn sizes_are_checked() -> Result {
        let whole = [(0, 0, !(2 * MIB - 1))];
        let largest = i64::MAX as u64;
        assert_eq!(refusal(&simple(largest, &whole)?)?, None);
        let error = FmapError::FileTooLarge(largest + 1);
        assert_eq!(refusal(&simple(largest + 1, &whole)?)?, Some(error));
        assert_eq!(refusal(&simple(0, &whole)?)?, Some(FmapError::EmptyFile));
        let map = [(0, 8 * MIB, 4 * MIB), (0, 16 * MIB, 2 * MIB)];
        let error = FmapError::MapTooShort(6 * MIB);
        assert_eq!(refusal(&simple(6 * MIB + 1, &map)?)?, Some(error));
        assert_eq!(refusal(&simple(6 * MIB, &map)?)?, None);

        let half = 1 << 63;
        let wraps = simple(1, &[(0, 0, half), (1, 0, half)])?;
        assert_eq!(refusal(&wraps)?, Some(FmapError::LengthOverflow(half)));
        let fits = simple(1, &[(0, 0, half), (1, 0, half - 2 * MIB)])?;
        assert_eq!(refusal(&fits)?, None);
        Ok(())
    }

    #[test]
    fn extents_and_strips_are_checked() -> Result {
        let device = (0x1_0000, 8 * MIB, 2 * MIB);
        assert!(is_refused_everywhere(
            device,
            FmapError::DeviceIndex(0x1_0000)
        )?);
        let start = (0, 9 * MIB, 2 * MIB);
        assert!(is_refused_everywhere(
            start,
            FmapError::UnalignedOffset(9 * MIB)
        )?);
        let empty = (0, 8 * MIB, 0);
        assert!(is_refused_everywhere(empty, FmapError::EmptyExtent)?);
        let end = (0, 8 * MIB, 3 * MIB);
        assert!(is_refused_everywhere(
            end,
            FmapError::UnalignedLength(3 * MIB)
        )?);
        let last = !(2 * MIB - 1);
        let beyond = (0, last, 2 * MIB);
        assert!(is_refused_everywhere(
            beyond,
            FmapError::OffsetOverflow(last)
        )?);
        let unknown = (99, 8 * MIB, 2 * MIB);
        assert!(is_refused_everywhere(
            unknown,
            FmapError::UnknownDevice(99)
        )?);
        let good = simple(MIB, &[(0xffff, last - 2 * MIB, 2 * MIB)])?;
        assert_eq!(refusal(&good)?, None);
        Ok(())
    }

    #[test]
    fn interleaved_extents_are_checked() -> Result {
        let two = [(0, 0, 4 * MIB), (1, 0, 4 * MIB)];
        let (chunk, unit) = (4 << 20, 4 * MIB);
        let good = interleaved(8 * MIB, &[(chunk, 8 * MIB, &two)])?;
        assert_eq!(refusal(&good)?, None);
        assert_eq!(refusal(&good[..103])?, Some(FmapError::Truncated(103)));
        assert!(is_stripe_refused(0, unit, &two, FmapError::ChunkSize(0))?);
        let error = FmapError::ChunkSize(1 << 20);
        assert!(is_stripe_refused(1 << 20, unit, &two, error)?);
        assert!(is_stripe_refused(chunk, 0, &two, FmapError::EmptyStripe)?);
        assert!(is_stripe_refused(
            chunk,
            unit,
            &[],
            FmapError::StripCount(0)
        )?);
        let many = [(0, 0, 4 * MIB); 33];
        assert!(is_stripe_refused(
            chunk,
            unit,
            &many,
            FmapError::StripCount(33)
        )?);
        let error = FmapError::StripTooShort(4 * MIB);
        assert!(is_stripe_refused(chunk, 8 * MIB + 1, &two, error)?);

        let iexts = |first| [(chunk, first, &two[..1]), (chunk, 2 * MIB, &two[1..])];
        assert_eq!(refusal(&interleaved(1, &iexts(2 * MIB))?)?, None);
        let error = FmapError::UnalignedStripe(2 * MIB + 1);
        assert_eq!(refusal(&interleaved(1, &iexts(2 * MIB + 1))?)?, Some(error));
        Ok(())
    }

    #[test]
    fn memory_has_one_place_in_a_file() -> Result {
        let pair = |a, b| simple(1, &[(0, a, 4 * MIB), (0, b, 4 * MIB)]);
        assert_eq!(refusal(&pair(8 * MIB, 12 * MIB)?)?, None);
        let error = Some(FmapError::Overlap(10 * MIB));
        assert_eq!(refusal(&pair(8 * MIB, 10 * MIB)?)?, error);
        assert_eq!(refusal(&pair(10 * MIB, 8 * MIB)?)?, error);
        let other = simple(1, &[(0, 8 * MIB, 4 * MIB), (1, 8 * MIB, 4 * MIB)])?;
        assert_eq!(refusal(&other)?, None);
        Ok(())
    }

    #[test]
    fn large_messages_are_asked_for_once_more() -> Result {
        let message = pushed(one()?)?;
        assert_eq!(fmap::wanted_size(&message, 55), Ok(Some(56)));
        assert_eq!(fmap::wanted_size(&message, 56), Ok(None));
        assert_eq!(fmap::wanted_size(&message[..31], 0), Ok(None));
        let announcing = |size: u32| {
            Ok::<_, Error>(fmap::wanted_size(
                &edit(one()?, 12, &size.to_ne_bytes())?,
                56,
            ))
        };
        assert_eq!(announcing(16 << 20)?, Ok(Some(16 << 20)));
        let above = (16 << 20) + 1;
        let error = FmapError::MessageTooLarge(above.into());
        assert_eq!(announcing(above)?, Err(error));
        Ok(())
    }

    #[test]
    fn answers_about_devices_are_checked() -> Result {
        let reply = daxdev(b"/dev/dax0.0")?;
        let parsed = fmap::parse_daxdev(&reply)?;
        assert_eq!((parsed.name, parsed.policy), (c"/dev/dax0.0", None));
        let error = FmapError::DaxdevSize(279);
        assert_eq!(fmap::parse_daxdev(&reply[..279]), Err(error));
        let nameless = fmap::parse_daxdev(&daxdev(b"")?).err();
        assert_eq!(nameless, Some(FmapError::DaxdevName));
        let endless = fmap::parse_daxdev(&daxdev(&[b'x'; 256])?).err();
        assert_eq!(endless, Some(FmapError::DaxdevName));
        assert!(fmap::parse_daxdev(&daxdev(&[b'x'; 255])?).is_ok());
        let policy = |n: u16| {
            let reply = edit(daxdev(b"/dev/dax0.0")?, 2, &n.to_ne_bytes())?;
            Ok::<_, Error>(fmap::parse_daxdev(&reply).map(|reply| reply.policy))
        };
        assert_eq!(policy(1)?, Ok(Some(Policy::Device)));
        assert_eq!(policy(2)?, Ok(Some(Policy::Range)));
        for n in [3, 4, 256, u16::MAX] {
            assert_eq!(policy(n)?, Err(FmapError::DaxdevPolicy(n.into())));
        }
        Ok(())
    }

    #[test]
    fn errors_have_their_numbers_and_words() -> Result {
        assert_eq!(Error::from(FmapError::NoExtents), ERANGE);
        assert_eq!(Error::from(FmapError::MessageTooLarge(1 << 25)), EFBIG);
        assert_eq!(Error::from(FmapError::UnknownDevice(7)), ENODEV);
        assert_eq!(Error::from(FmapError::Truncated(31)), EINVAL);
        let error = FmapError::UnalignedOffset(9 * MIB);
        let text = CString::try_from_fmt(fmt!("{error}"))?;
        let expected = b"se_offset (0x900000) is not a multiple of 2 MiB";
        assert_eq!(text.to_bytes(), expected);
        Ok(())
    }
}
