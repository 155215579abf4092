// SPDX-License-Identifier: GPL-2.0-only

//! Error numbers that `kernel::error::code` lacks, and those of messages that are refused.

use kernel::{
    fmt,
    prelude::*, //
};

use super::bindings;
use crate::fmap::FmapError;

macro_rules! errno {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $(
            $(#[$doc])*
            pub(crate) fn $name() -> Error {
                Error::from_errno(-(bindings::$name as i32))
            }
        )*
    };
}

#[expect(non_snake_case)]
mod numbers {
    use super::*;

    errno! {
        /// Address already in use.
        EADDRINUSE;
        /// Memory page has hardware error.
        EHWPOISON;
        /// Operation not supported on transport endpoint.
        EOPNOTSUPP;
    }
}

pub(crate) use numbers::*;

impl From<FmapError> for Error {
    fn from(error: FmapError) -> Self {
        Error::from_errno(-error.errno())
    }
}

impl fmt::Display for FmapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}
