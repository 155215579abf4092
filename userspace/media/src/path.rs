// SPDX-License-Identifier: MIT OR Apache-2.0
//! Paths in log entries: relative, at most 79 bytes and a NUL.

use thiserror::Error;

use crate::PATH_BYTES;

/// Why a path can not be in a log.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // The messages say it.
pub enum PathError {
    #[error("empty")]
    Empty,
    #[error("absolute")]
    Absolute,
    #[error("no NUL within {PATH_BYTES} bytes")]
    Unterminated,
    #[error("{0} bytes, {max} at most", max = PATH_BYTES - 1)]
    TooLong(usize),
    #[error("contains a NUL")]
    Nul,
    #[error("has an empty, \".\" or \"..\" component")]
    Component,
    #[error(".meta is reserved")]
    Reserved,
}

/// The path in an entry's path field, up to its NUL.
///
/// # Errors
/// There is no NUL.
pub(crate) fn field_path(field: &[u8]) -> Result<&[u8], PathError> {
    let mut parts = field.splitn(2, |&b| b == 0);
    match (parts.next(), parts.next()) {
        (Some(path), Some(_)) => Ok(path),
        _ => Err(PathError::Unterminated),
    }
}

/// Whether only zeroes follow the first NUL.
pub(crate) fn tail_is_zero(field: &[u8]) -> bool {
    field.iter().skip_while(|&&b| b != 0).all(|&b| b == 0)
}

/// Check a path found in a log, before it names anything.
pub(crate) fn check(path: &[u8]) -> Result<(), PathError> {
    if path.is_empty() {
        return Err(PathError::Empty);
    }
    if path.starts_with(b"/") {
        return Err(PathError::Absolute);
    }
    if path
        .split(|&b| b == b'/')
        .any(|c| c.is_empty() || c == b"." || c == b"..")
    {
        return Err(PathError::Component);
    }
    if path.split(|&b| b == b'/').next() == Some(b".meta") {
        return Err(PathError::Reserved);
    }
    Ok(())
}

/// Check a path that is about to be logged.
///
/// # Errors
/// It does not fit, or a reader would refuse it.
pub fn check_new(path: &[u8]) -> Result<(), PathError> {
    if path.contains(&0) {
        return Err(PathError::Nul);
    }
    if path.len() >= PATH_BYTES {
        return Err(PathError::TooLong(path.len()));
    }
    check(path)
}

/// Path field for a path that passed [`check_new`]; anything longer is cut.
pub fn path_bytes(path: &[u8]) -> [u8; PATH_BYTES] {
    let mut field = [0; PATH_BYTES];
    for (dst, src) in field.iter_mut().take(PATH_BYTES - 1).zip(path) {
        *dst = *src;
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_paths() {
        assert_eq!(check_new(b"a/b.c/..d"), Ok(()));
        assert_eq!(check_new(&[b'p'; 79]), Ok(()));
        assert_eq!(check_new(&[b'p'; 80]), Err(PathError::TooLong(80)));
        assert_eq!(check_new(b""), Err(PathError::Empty));
        assert_eq!(check_new(b"/a"), Err(PathError::Absolute));
        assert_eq!(check_new(b"a\0b"), Err(PathError::Nul));
        for bad in [
            &b".."[..],
            b"../a",
            b"a/..",
            b"a/../b",
            b"a//b",
            b"a/",
            b"./a",
            b".",
        ] {
            assert_eq!(check_new(bad), Err(PathError::Component), "{bad:?}");
        }
        assert_eq!(check_new(b".meta/.log"), Err(PathError::Reserved));
        assert_eq!(check_new(b".metadata"), Ok(()));
    }

    #[test]
    fn field_needs_a_nul() {
        assert_eq!(field_path(&path_bytes(b"abc")), Ok(&b"abc"[..]));
        assert_eq!(field_path(&[b'x'; 80]), Err(PathError::Unterminated));
        assert_eq!(
            field_path(&path_bytes(&[b'x'; 90])).map(<[u8]>::len),
            Ok(79)
        );
        assert!(tail_is_zero(&path_bytes(b"abc")));
        assert!(!tail_is_zero(b"abc\0x"));
    }
}
