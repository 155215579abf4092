// SPDX-License-Identifier: MIT OR Apache-2.0
//! Checked reading of a request's arguments.

use zerocopy::FromBytes;

/// Takes arguments off the front of a request. Every method gives `None` for a request that is too short, and then
/// leaves the rest where it was.
#[derive(Clone, Copy, Debug)]
pub struct Arguments<'a>(&'a [u8]);

impl<'a> Arguments<'a> {
    /// Arguments in `bytes`, which are what follows the request header.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Takes a structure, by copy: the buffer need not be aligned for it.
    pub fn take<T: FromBytes>(&mut self) -> Option<T> {
        let (value, rest) = T::read_from_prefix(self.0).ok()?;
        self.0 = rest;
        Some(value)
    }

    /// Takes a NUL-terminated name, without its NUL.
    pub fn name(&mut self) -> Option<&'a [u8]> {
        let nul = self.0.iter().position(|&byte| byte == 0)?;
        let (name, rest) = self.0.split_at_checked(nul)?;
        self.0 = rest.get(1..)?;
        Some(name)
    }

    /// Takes `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::GetxattrIn;

    #[test]
    fn short_input_takes_nothing() {
        let mut arguments = Arguments::new(&[1, 0, 0, 0, 2, 0, 0]);
        assert_eq!(arguments.take::<GetxattrIn>(), None);
        assert_eq!(arguments.bytes(8), None);
        assert_eq!(arguments.bytes(7), Some(&[1, 0, 0, 0, 2, 0, 0][..]));
        assert!(arguments.is_empty());
    }

    #[test]
    fn name_ends_at_its_nul() {
        let mut arguments = Arguments::new(b"user.a\0x\0tail");
        assert_eq!(arguments.name(), Some(&b"user.a"[..]));
        assert_eq!(arguments.name(), Some(&b"x"[..]));
        assert_eq!(arguments.name(), None);
        assert_eq!(arguments.bytes(4), Some(&b"tail"[..]));
    }
}
