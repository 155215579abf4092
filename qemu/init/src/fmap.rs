// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fmaps as the tests build them: the message for the kernel, and an own, deliberately simple answer to where each
//! byte of the file lies.

use crate::wire::{self, u32_at, u64_at, Bytes};

/// Extents and strips come in multiples of this.
pub const AU: u64 = 2 << 20;

const VERSION: u16 = 1;
const SIMPLE: u32 = 0;
const INTERLEAVED: u32 = 1;

/// A range of one daxdev.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub dev: u32,
    pub offset: u64,
    pub len: u64,
}

pub const fn extent(dev: u32, offset: u64, len: u64) -> Extent {
    Extent { dev, offset, len }
}

/// Strips used round-robin in chunks; covers `nbytes` of the file.
#[derive(Clone, Debug)]
pub struct Interleaved {
    pub chunk: u32,
    pub nbytes: u64,
    pub strips: Vec<Extent>,
}

#[derive(Clone, Debug)]
pub enum Layout {
    Simple(Vec<Extent>),
    Interleaved(Vec<Interleaved>),
}

/// A file's size and where its bytes lie.
#[derive(Clone, Debug)]
pub struct Fmap {
    pub size: u64,
    pub layout: Layout,
}

impl Fmap {
    pub fn simple(size: u64, extents: &[Extent]) -> Self {
        Self {
            size,
            layout: Layout::Simple(extents.to_vec()),
        }
    }

    /// One interleaved extent over the whole file.
    pub fn interleaved(size: u64, chunk: u32, strips: &[Extent]) -> Self {
        let one = Interleaved {
            chunk,
            nbytes: size,
            strips: strips.to_vec(),
        };
        Self {
            size,
            layout: Layout::Interleaved(vec![one]),
        }
    }

    /// The GET_FMAP reply.
    pub fn message(&self) -> Vec<u8> {
        let mut message = self.unsized_message();
        let size = (message.len() as u32).to_le_bytes();
        message[12..16].copy_from_slice(&size);
        message
    }

    fn unsized_message(&self) -> Vec<u8> {
        match &self.layout {
            Layout::Simple(extents) => {
                let header = header(SIMPLE, extents.len() as u32, self.size);
                extents.iter().fold(header, put_extent).0
            }
            Layout::Interleaved(list) => {
                let header = header(INTERLEAVED, list.len() as u32, self.size);
                list.iter()
                    .fold(header, |out, one| {
                        let out = out
                            .u32(one.strips.len() as u32)
                            .u32(one.chunk)
                            .u64(one.nbytes)
                            .u64(0);
                        one.strips.iter().fold(out, put_extent)
                    })
                    .0
            }
        }
    }

    /// What a message says, whether or not it is allowed; None if it is too short for that.
    pub fn decode(message: &[u8]) -> Option<Self> {
        let mut at = wire::FMAP_HEADER;
        let mut three = || {
            let words = (u64_at(message, at)?, u64_at(message, at + 8)?);
            let last = u64_at(message, at + 16)?;
            at += 24;
            Some((words.0, words.1, last))
        };
        let mut extents = |count: u32| -> Option<Vec<Extent>> {
            let one = |_| three().map(|(dev, offset, len)| extent(dev as u32, offset, len));
            (0..count).map(one).collect()
        };
        let nextents = u32_at(message, 8)?;
        let layout = match u32_at(message, 4)? {
            SIMPLE => Layout::Simple(extents(nextents)?),
            _ => {
                let mut list = Vec::new();
                for _ in 0..nextents {
                    // The same three words: strips and chunk, bytes, reserved.
                    let head = *extents(1)?.first()?;
                    let at = wire::FMAP_HEADER + list_bytes(&list);
                    list.push(Interleaved {
                        chunk: u32_at(message, at + 4)?,
                        nbytes: head.offset,
                        strips: extents(head.dev)?,
                    });
                }
                Layout::Interleaved(list)
            }
        };
        let size = u64_at(message, 16)?;
        Some(Self { size, layout })
    }

    /// Where the byte at file offset `pos` lies: device index, device offset. None past the map.
    pub fn locate(&self, pos: u64) -> Option<(u32, u64)> {
        match &self.layout {
            Layout::Simple(extents) => {
                let mut left = pos;
                for extent in extents {
                    if left < extent.len {
                        return Some((extent.dev, extent.offset.wrapping_add(left)));
                    }
                    left -= extent.len;
                }
                None
            }
            Layout::Interleaved(list) => {
                let mut left = pos;
                for one in list {
                    if left < one.nbytes {
                        if one.chunk == 0 || one.strips.is_empty() {
                            return None;
                        }
                        let chunk = u64::from(one.chunk);
                        let strips = one.strips.len() as u64;
                        let (index, within) = (left / chunk, left % chunk);
                        let strip = one.strips[(index % strips) as usize];
                        return Some((
                            strip.dev,
                            strip.offset.wrapping_add(index / strips * chunk + within),
                        ));
                    }
                    left -= one.nbytes;
                }
                None
            }
        }
    }
}

/// Bytes of interleaved extents and their strips.
fn list_bytes(list: &[Interleaved]) -> usize {
    list.iter().map(|one| 24 + 24 * one.strips.len()).sum()
}

/// file_type 0, version 1, reserved fields and the size of the message zero.
pub fn header(ext_type: u32, nextents: u32, size: u64) -> Bytes {
    Bytes::default()
        .u16(0)
        .u16(VERSION)
        .u32(ext_type)
        .u32(nextents)
        .u32(0)
        .u64(size)
        .u64(0)
}

pub fn put_extent(out: Bytes, extent: &Extent) -> Bytes {
    out.u32(extent.dev)
        .u32(0)
        .u64(extent.offset)
        .u64(extent.len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_sizes_of_the_abi() {
        let simple = Fmap::simple(AU, &[extent(0, AU, AU), extent(1, 0, AU)]);
        assert_eq!(simple.message().len(), 32 + 2 * 24);
        let striped = Fmap::interleaved(
            4 * AU,
            AU as u32,
            &[extent(0, AU, 2 * AU), extent(1, 0, 2 * AU)],
        );
        assert_eq!(striped.message().len(), 32 + 24 + 2 * 24);
    }

    #[test]
    fn bytes_lie_where_the_abi_says() {
        let simple = Fmap::simple(2 * AU, &[extent(0, 3 * AU, AU), extent(1, AU, AU)]);
        assert_eq!(simple.locate(AU - 1), Some((0, 4 * AU - 1)));
        assert_eq!(simple.locate(AU), Some((1, AU)));
        assert_eq!(simple.locate(2 * AU), None);
        let striped = Fmap::interleaved(
            4 * AU,
            AU as u32,
            &[extent(0, AU, 2 * AU), extent(1, 0, 2 * AU)],
        );
        assert_eq!(striped.locate(2 * AU + 5), Some((0, 2 * AU + 5)));
        assert_eq!(striped.locate(3 * AU + 5), Some((1, AU + 5)));
    }
}
