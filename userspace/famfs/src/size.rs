// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sizes as people write and read them: powers of 1024.

use indicatif::HumanBytes;

/// What stands for a size in --help.
pub const UNIT: &str = "BYTES";

/// Bytes from `N`, `Nk`, `Nm`, `Ng` or `Nt`, in either case, `iB` or `B` after it allowed.
pub fn parse(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let bare = lower
        .strip_suffix("ib")
        .or(lower.strip_suffix('b'))
        .unwrap_or(&lower);
    let shifts = [('k', 10), ('m', 20), ('g', 30), ('t', 40)];
    let (digits, shift) = shifts
        .iter()
        .find_map(|&(unit, shift)| Some((bare.strip_suffix(unit)?, shift)))
        .unwrap_or((bare, 0));
    let number: u64 = digits.parse().map_err(|_| {
        "a size is a whole number with k, m, g or t behind it, such as 8m".to_string()
    })?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "more bytes than 64 bits can count".to_string())
}

/// `bytes` for reading: `8.00 MiB` with `human`, else the number.
pub fn show(bytes: u64, human: bool) -> String {
    match (human, bytes) {
        (true, _) => HumanBytes(bytes).to_string(),
        (false, 1) => "1 byte".into(),
        (false, _) => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("8m"), Ok(8 << 20));
        assert_eq!(parse("8M"), Ok(8 << 20));
        assert_eq!(parse("16MiB"), Ok(16 << 20));
        assert_eq!(parse("3kb"), Ok(3072));
        assert_eq!(parse("2g"), Ok(2 << 30));
        assert_eq!(parse("1t"), Ok(1 << 40));
        for bad in ["", "k", "-1", "1.5g", "8 m", "8q", "0x10"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse("99999999999999t").is_err());
    }

    #[test]
    fn shown() {
        assert_eq!(show(8 << 20, true), "8.00 MiB");
        assert_eq!(show(1, false), "1 byte");
        assert_eq!(show(8 << 20, false), "8388608 bytes");
    }
}
