// SPDX-License-Identifier: MIT OR Apache-2.0
//! CRC-32/ISO-HDLC, stored as a zero-extended u64.

/// CRC of `bytes` as it is stored on media.
pub(crate) fn crc(bytes: &[u8]) -> u64 {
    u64::from(crc32fast::hash(bytes))
}

#[cfg(test)]
mod tests {
    #[test]
    fn check_value() {
        assert_eq!(super::crc(b"123456789"), 0xcbf4_3926);
    }
}
