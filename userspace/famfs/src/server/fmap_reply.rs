// SPDX-License-Identifier: MIT OR Apache-2.0
//! The GET_FMAP reply, in both generations of the protocol (docs/abi.md sections 1.3 and 1.4).

use famfs_fmap::{DevIndex, DevRange, Extents, FileType, Interleaved, Message};
use famfs_fuse::reply::Payload;
use famfs_fuse::Errno;
use famfs_media::{Extent, Map};

use super::namespace::Namespace;

/// The map of a file. `buffer` is the room for the reply where the kernel says how much there is; a longer message is
/// cut to its header then, which says how long the whole is, and the kernel asks again.
pub fn get_fmap(namespace: &Namespace, nodeid: u64, buffer: Option<u32>) -> Result<Payload, Errno> {
    let (file_size, map) = namespace.map(nodeid)?;
    let ranges = map
        .extents()
        .iter()
        .map(dev_range)
        .collect::<Result<Vec<_>, _>>()?;
    let interleaved;
    let extents = match &map {
        Map::Simple(_) => Extents::Simple(&ranges),
        Map::Interleaved { chunk_size, .. } => {
            let chunk = u32::try_from(*chunk_size).map_err(|_| Errno::INVAL)?;
            interleaved = [Interleaved {
                chunk,
                nbytes: file_size,
                strips: &ranges,
            }];
            Extents::Interleaved(&interleaved)
        }
    };
    // Upstream's server calls every file regular, and its kernel looks at nothing else.
    let message = Message {
        file_type: FileType::Regular,
        file_size,
        extents,
        push: buffer.is_some(),
    };
    if buffer
        .is_some_and(|buffer| usize::try_from(buffer).is_ok_and(|buffer| buffer < message.len()))
    {
        return Ok((&message.header()).into());
    }
    let mut bytes = vec![0; message.len()];
    message.encode(&mut bytes).map_err(|_| Errno::IO)?;
    Ok(bytes.into())
}

fn dev_range(extent: &Extent) -> Result<DevRange, Errno> {
    let index = u32::try_from(extent.devindex).map_err(|_| Errno::INVAL)?;
    Ok(DevRange {
        index: DevIndex(index),
        offset: extent.offset,
        len: extent.len,
    })
}
