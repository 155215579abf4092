// SPDX-License-Identifier: MIT OR Apache-2.0
//! INIT: what the kernel offers, what the server takes.

use rustix::io::Errno;

use crate::abi::{self, InitIn, InitOut};

/// The part of the offer that is taken whenever it is there. Not in it, because famfs files keep no pages and never
/// change size: WRITEBACK_CACHE, AUTO_INVAL_DATA and above all ATOMIC_O_TRUNC, which would let an open set i_size to 0.
const WANTED: u64 = abi::ASYNC_READ
    | abi::BIG_WRITES
    | abi::DO_READDIRPLUS
    | abi::READDIRPLUS_AUTO
    | abi::ASYNC_DIO
    | abi::PARALLEL_DIROPS
    | abi::INIT_EXT;

/// Data never travels in messages, so the smallest size that the kernel knows will do.
const MAX_WRITE: u32 = 4096;

/// Outcome of a negotiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The reply to send.
    pub reply: InitOut,
    /// Minor version of the protocol that is spoken from now on.
    pub minor: u32,
    /// Whether the kernel offered famfs mode (and the reply accepts it).
    pub dax_fmap: bool,
}

/// Answers an INIT request. EPROTO for a kernel that does not speak major version 7 or is older than 7.12, whose
/// structures are smaller than ours.
pub fn negotiate(offer: &InitIn) -> Result<Negotiated, Errno> {
    if offer.major != abi::KERNEL_VERSION || offer.minor < 12 {
        return Err(Errno::PROTO);
    }
    let fmap_bit = if offer.minor > abi::KERNEL_MINOR_VERSION {
        abi::DAX_FMAP_MINOR_46
    } else {
        abi::DAX_FMAP_MINOR_45
    };
    let flags2 = if u64::from(offer.flags) & abi::INIT_EXT != 0 {
        offer.flags2
    } else {
        0
    };
    let offered = u64::from(offer.flags) | u64::from(flags2) << 32;
    let taken = offered & (WANTED | fmap_bit);
    let minor = offer.minor.min(abi::KERNEL_MINOR_VERSION);
    let [flags, flags2] = [taken, taken >> 32].map(|half| (half & u64::from(u32::MAX)) as u32);
    let reply = InitOut {
        major: abi::KERNEL_VERSION,
        minor,
        max_readahead: offer.max_readahead,
        flags,
        flags2,
        max_write: MAX_WRITE,
        time_gran: 1,
        ..InitOut::default()
    };
    Ok(Negotiated {
        reply,
        minor,
        dax_fmap: taken & fmap_bit != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromBytes;

    fn offer(minor: u32, flags: u64) -> InitIn {
        InitIn {
            major: 7,
            minor,
            flags: flags as u32,
            flags2: (flags >> 32) as u32,
            ..InitIn::default()
        }
    }

    fn taken(negotiated: &Negotiated) -> u64 {
        u64::from(negotiated.reply.flags) | u64::from(negotiated.reply.flags2) << 32
    }

    #[test]
    fn only_wanted_flags_are_taken() {
        let all = negotiate(&offer(45, u64::MAX)).unwrap();
        assert_eq!(
            taken(&all),
            1 << 0 | 1 << 5 | 1 << 13 | 1 << 14 | 1 << 15 | 1 << 18 | 1 << 30 | 1 << 43
        );
        assert!(all.dax_fmap);
        let none = negotiate(&offer(45, 0)).unwrap();
        assert_eq!((taken(&none), none.dax_fmap), (0, false));
    }

    /// What the kernel of upstream's capture offered, and what upstream's server took of it.
    #[test]
    fn takes_less_than_upstream() {
        let vector = |name: &str| {
            let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/vectors/wire");
            std::fs::read(format!("{dir}/{name}")).unwrap()
        };
        let (request, reply) = (vector("wire_init_req.bin"), vector("wire_init_rep.bin"));
        let offer = InitIn::read_from_bytes(&request[40..]).unwrap();
        let theirs = InitOut::read_from_bytes(&reply[16..]).unwrap();
        let ours = negotiate(&offer).unwrap();
        assert!(ours.dax_fmap);
        assert_eq!(
            (ours.reply.major, ours.reply.minor),
            (theirs.major, theirs.minor)
        );
        assert_eq!(
            (ours.reply.time_gran, ours.reply.flags2),
            (theirs.time_gran, theirs.flags2)
        );
        // ATOMIC_O_TRUNC, FLOCK_LOCKS, AUTO_INVAL_DATA and MAX_PAGES.
        assert_eq!(
            theirs.flags & !ours.reply.flags,
            1 << 3 | 1 << 10 | 1 << 12 | 1 << 22
        );
        // PARALLEL_DIROPS.
        assert_eq!(ours.reply.flags & !theirs.flags, 1 << 18);
    }

    #[test]
    fn the_fmap_bit_follows_the_minor_version() {
        let bits = abi::INIT_EXT | abi::DAX_FMAP_MINOR_45;
        assert!(negotiate(&offer(45, bits)).unwrap().dax_fmap);
        assert!(!negotiate(&offer(46, bits)).unwrap().dax_fmap);
        let newer = negotiate(&offer(46, abi::INIT_EXT | abi::DAX_FMAP_MINOR_46)).unwrap();
        assert_eq!(
            (newer.dax_fmap, newer.minor, taken(&newer)),
            (true, 45, 1 << 30 | 1 << 44)
        );
        assert!(
            !negotiate(&offer(45, abi::INIT_EXT | abi::DAX_FMAP_MINOR_46))
                .unwrap()
                .dax_fmap
        );
    }

    #[test]
    fn flags2_counts_only_with_init_ext() {
        assert!(
            !negotiate(&offer(45, abi::DAX_FMAP_MINOR_45))
                .unwrap()
                .dax_fmap
        );
    }

    #[test]
    fn other_versions_are_refused() {
        assert_eq!(
            negotiate(&InitIn {
                major: 8,
                minor: 45,
                ..InitIn::default()
            }),
            Err(Errno::PROTO)
        );
        assert_eq!(negotiate(&offer(11, 0)), Err(Errno::PROTO));
    }
}
