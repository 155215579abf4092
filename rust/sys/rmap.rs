// SPDX-License-Identifier: GPL-2.0-only

//! The reverse map of a device: from its memory to the files there.
//!
//! C header: `include/linux/interval_tree_generic.h`.
//!
//! One node for each file and device, with the range of the device in which the memory of the file
//! lies. A file that has other files in between is found with them; its own map then says exactly.

use core::{
    marker::PhantomData,
    ops::Range,
    ptr::{
        self,
        NonNull, //
    },
};

use kernel::{
    alloc::flags::GFP_KERNEL,
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
};

use super::{
    bindings,
    fuse::{
        FmapProvider,
        InodeRef,
        Slot, //
    },
};

/// The files of one device.
#[pin_data]
pub(crate) struct Rmap<P: FmapProvider> {
    #[pin]
    tree: Mutex<Tree>,
    _provider: PhantomData<fn() -> P>,
}

/// # Invariants
///
/// `root` holds the nodes of the [`Link`]s that name this map, and no others. The inode of each
/// is valid: an inode's links are dropped before it is.
struct Tree {
    root: bindings::rb_root_cached,
    /// Number that the next node gets.
    next: u64,
}

// SAFETY: The nodes belong to the tree, and are used only under its lock.
unsafe impl Send for Tree {}

#[repr(C)]
struct Node {
    range: bindings::famfs_rmap_node,
    /// Orders nodes that start at the same byte, in the order of the tree: it inserts behind.
    number: u64,
    inode: NonNull<bindings::inode>,
}

/// Where a walk goes on: behind the node that starts there and has that number.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cursor(Option<(u64, u64)>);

impl<P: FmapProvider> Rmap<P> {
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                // INVARIANT: An empty tree.
                tree <- new_mutex!(
                    Tree {
                        root: pin_init::zeroed(),
                        next: 0,
                    },
                    "famfs::Rmap::tree"
                ),
                _provider: PhantomData,
            }),
            GFP_KERNEL,
        )
    }

    /// The next file that may have memory in `range`, held; `cursor` moves on to it. A file that is
    /// being evicted is passed over: nobody uses it.
    pub(crate) fn next(&self, range: Range<u64>, cursor: &mut Cursor) -> Option<InodeRef<P>> {
        let mut tree = self.tree.lock();
        let mut found = None;
        tree.walk(range, |node| {
            let place = (node.range.start, node.number);
            if cursor.0.is_some_and(|last| place <= last) {
                return true;
            }
            *cursor = Cursor(Some(place));
            // SAFETY: By the invariants of `Tree` the inode is valid while the lock is held.
            found = unsafe { InodeRef::grab(node.inode) };
            found.is_none()
        });
        found
    }

    /// Calls `f` with the number of the inode and the map of each file that may have memory in
    /// `range`. `f` must not sleep for long: the map is locked.
    pub(crate) fn for_each(&self, range: Range<u64>, mut f: impl FnMut(u64, &Slot<P>)) {
        self.tree.lock().walk(range, |node| {
            // SAFETY: By the invariants of `Tree` the inode is valid while the lock is held, and
            // so is its map, which is freed after the links are dropped.
            unsafe {
                let ino = (*node.inode.as_ptr()).i_ino;
                if let Some(slot) = Slot::<P>::of(node.inode) {
                    f(ino, slot.as_ref());
                }
            }
            true
        });
    }
}

impl Tree {
    /// Visits the nodes that overlap `range` in order, until `f` says false.
    fn walk(&mut self, range: Range<u64>, mut f: impl FnMut(&Node) -> bool) {
        let Some(last) = range.end.checked_sub(1).filter(|last| *last >= range.start) else {
            return;
        };
        // SAFETY: By the invariants all nodes are valid, and `self` is borrowed exclusively.
        let mut node = unsafe { bindings::famfs_rmap_first(&mut self.root, range.start, last) };
        // SAFETY: As above; the nodes are the first fields of `Node`s.
        while let Some(entry) = unsafe { node.cast::<Node>().as_ref() } {
            if !f(entry) {
                break;
            }
            // SAFETY: As above.
            node = unsafe { bindings::famfs_rmap_next(node, range.start, last) };
        }
    }
}

/// The entry of one file in one device's map; dropping it takes it out.
///
/// # Invariants
///
/// `node` is in the tree of `map`.
pub(super) struct Link<P: FmapProvider> {
    map: Arc<Rmap<P>>,
    node: KBox<Node>,
}

// SAFETY: The node is used only under the lock of the tree.
unsafe impl<P: FmapProvider> Send for Link<P> {}
// SAFETY: A shared `Link` offers nothing.
unsafe impl<P: FmapProvider> Sync for Link<P> {}

impl<P: FmapProvider> Link<P> {
    /// Enters the inode with `range`, which is not empty, into `map`.
    ///
    /// # Safety
    ///
    /// The link is dropped before the inode is freed, and before a map that was installed in it is.
    pub(super) unsafe fn new(
        map: Arc<Rmap<P>>,
        range: Range<u64>,
        inode: NonNull<bindings::inode>,
    ) -> Result<Self> {
        let last = range.end.checked_sub(1).ok_or(EINVAL)?;
        let mut node = KBox::new(
            Node {
                range: bindings::famfs_rmap_node {
                    start: range.start,
                    last,
                    ..pin_init::zeroed()
                },
                number: 0,
                inode,
            },
            GFP_KERNEL,
        )?;
        {
            let mut tree = map.tree.lock();
            node.number = tree.next;
            tree.next = tree.next.wrapping_add(1);
            // SAFETY: The node stays where it is until `drop` takes it out.
            unsafe { bindings::famfs_rmap_add(&mut node.range, &mut tree.root) };
        }
        // INVARIANT: Just added.
        Ok(Self { map, node })
    }
}

impl<P: FmapProvider> Drop for Link<P> {
    fn drop(&mut self) {
        let mut tree = self.map.tree.lock();
        // SAFETY: By the type invariant the node is in this tree.
        unsafe { bindings::famfs_rmap_del(ptr::from_mut(&mut self.node.range), &mut tree.root) };
    }
}
