// SPDX-License-Identifier: GPL-2.0-only

//! The reverse map of a device: from its memory to the files there.
//!
//! C header: `include/linux/interval_tree_generic.h`.
//!
//! One node for each range of memory that a file has without a break. No two files share memory:
//! fs/dax.c keeps one mapping for each page.

use core::{
    marker::PhantomData,
    ops::Range,
    ptr::NonNull, //
};

use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    new_condvar, new_mutex,
    prelude::*,
    sync::{
        Arc,
        CondVar,
        Mutex, //
    },
};

use super::{
    bindings,
    errno::EADDRINUSE,
    fuse::FmapProvider,
    inode::{
        FileRef,
        Slot, //
    },
};

/// The files of one device.
#[pin_data]
pub(crate) struct Rmap<P: FmapProvider> {
    #[pin]
    tree: Mutex<Tree>,
    /// A visit ended.
    #[pin]
    idle: CondVar,
    _provider: PhantomData<fn() -> P>,
}

/// # Invariants
///
/// `root` holds the nodes of the [`Link`]s that name this map, and no others. While a node is in
/// the tree its inode is valid, and so is a map that was installed in it.
struct Tree {
    root: bindings::rb_root_cached,
    /// Number that the next node gets.
    next: u64,
}

// SAFETY: The nodes belong to the tree, and are changed only under its lock.
unsafe impl Send for Tree {}

#[repr(C)]
struct Node {
    range: bindings::famfs_rmap_node,
    /// Orders nodes that start at the same byte, in the order of the tree: it inserts behind.
    number: u64,
    /// Visits under way. Under the lock of the tree.
    visits: u32,
    /// This is the first node of its file in this map.
    head: bool,
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
                idle <- new_condvar!("famfs::Rmap::idle"),
                _provider: PhantomData,
            }),
            GFP_KERNEL,
        )
    }

    /// Visits the next file that has memory in `range`; `cursor` moves on to it.
    pub(crate) fn next(&self, range: Range<u64>, cursor: &mut Cursor) -> Option<Visit<'_, P>> {
        let mut tree = self.tree.lock();
        let from = cursor
            .0
            .map_or(range.start, |(start, _)| start.max(range.start));
        let mut found = None;
        tree.walk(from..range.end, |node| {
            // SAFETY: The node is in the tree, which is locked.
            let place = unsafe { ((*node.as_ptr()).range.start, (*node.as_ptr()).number) };
            if cursor.0.is_some_and(|last| place <= last) {
                return true;
            }
            *cursor = Cursor(Some(place));
            found = Some(node);
            false
        });
        let node = found?;
        // SAFETY: As above. Nobody refers to the counter without the lock.
        let visits = unsafe { &mut (*node.as_ptr()).visits };
        *visits = visits.saturating_add(1);
        // INVARIANT: Just counted.
        Some(Visit { map: self, node })
    }

    /// Calls `f` with the number of the inode and the map of each file. `f` must not sleep for
    /// long: the map is locked.
    pub(crate) fn for_each(&self, mut f: impl FnMut(u64, &P::File)) {
        self.tree.lock().walk(0..u64::MAX, |node| {
            // SAFETY: By the invariants of `Tree` the inode is valid while the lock is held, and
            // so is its map. Only the head of the map is referred to.
            unsafe {
                let node = node.as_ref();
                if node.head {
                    if let Some(slot) = Slot::<P>::of(node.inode) {
                        f((*node.inode.as_ptr()).i_ino, Slot::file(slot).head);
                    }
                }
            }
            true
        });
    }
}

impl Tree {
    /// Visits the nodes that overlap `range` in order, until `f` says false.
    fn walk(&mut self, range: Range<u64>, mut f: impl FnMut(NonNull<Node>) -> bool) {
        let Some(last) = range.end.checked_sub(1).filter(|last| *last >= range.start) else {
            return;
        };
        // SAFETY: By the invariants all nodes are valid, and `self` is borrowed exclusively.
        let mut node = unsafe { bindings::famfs_rmap_first(&mut self.root, range.start, last) };
        // The nodes are the first fields of `Node`s.
        while let Some(entry) = NonNull::new(node.cast::<Node>()) {
            if !f(entry) {
                break;
            }
            // SAFETY: As above.
            node = unsafe { bindings::famfs_rmap_next(node, range.start, last) };
        }
    }
}

/// A look at a file, which keeps its node in the tree, and so its inode and its map: eviction waits.
///
/// # Invariants
///
/// Counted in the `visits` of `node`, which is in the tree of `map`.
pub(crate) struct Visit<'a, P: FmapProvider> {
    map: &'a Rmap<P>,
    node: NonNull<Node>,
}

impl<P: FmapProvider> Visit<'_, P> {
    /// The range of the device, in bytes, in which the file has memory without a break.
    pub(crate) fn range(&self) -> Range<u64> {
        // SAFETY: By the type invariant the node is valid; this part of it never changes.
        unsafe {
            let range = &raw const (*self.node.as_ptr()).range;
            (*range).start..(*range).last.saturating_add(1)
        }
    }

    /// Whether this is the first range of its file on the device. There is one for each file.
    pub(crate) fn is_head(&self) -> bool {
        // SAFETY: As in `range`.
        unsafe { (*self.node.as_ptr()).head }
    }

    /// The map of the file; none while it is being opened for the first time.
    pub(crate) fn file(&self) -> Option<FileRef<'_, P::File>> {
        // SAFETY: By the type invariant and those of `Tree` inode and map are valid.
        unsafe { Slot::<P>::of(self.inode()).map(|slot| Slot::file(slot)) }
    }

    /// Valid as long as `self`.
    pub(super) fn inode(&self) -> NonNull<bindings::inode> {
        // SAFETY: As in `range`.
        unsafe { (*self.node.as_ptr()).inode }
    }
}

impl<P: FmapProvider> Drop for Visit<'_, P> {
    fn drop(&mut self) {
        let _tree = self.map.tree.lock();
        // SAFETY: By the type invariant the node is valid, and the lock is held.
        let visits = unsafe { &mut (*self.node.as_ptr()).visits };
        *visits = visits.saturating_sub(1);
        self.map.idle.notify_all();
    }
}

/// A range of memory of one file in one device's map; dropping it takes it out.
///
/// # Invariants
///
/// `node` came from a `KBox`, and is in the tree of `map`.
pub(super) struct Link<P: FmapProvider> {
    map: Arc<Rmap<P>>,
    node: NonNull<Node>,
}

// SAFETY: The node is used only under the lock of the tree.
unsafe impl<P: FmapProvider> Send for Link<P> {}
// SAFETY: A shared `Link` offers nothing.
unsafe impl<P: FmapProvider> Sync for Link<P> {}

impl<P: FmapProvider> Link<P> {
    /// Enters the inode with `range`, which is not empty, into `map`; `head` for the first of its
    /// ranges there. `EADDRINUSE` if another inode has memory in it.
    ///
    /// # Safety
    ///
    /// The link is dropped before the inode is freed, and before a map that was installed in it is.
    pub(super) unsafe fn new(
        map: Arc<Rmap<P>>,
        range: Range<u64>,
        head: bool,
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
                visits: 0,
                head,
                inode,
            },
            GFP_KERNEL_ACCOUNT,
        )?;
        let mut tree = map.tree.lock();
        let mut taken = false;
        tree.walk(range, |node| {
            // The inode may be there twice while it is opened twice; one of the two gives way.
            // SAFETY: The node is in the tree, which is locked.
            taken = unsafe { (*node.as_ptr()).inode } != inode;
            !taken
        });
        if taken {
            return Err(EADDRINUSE());
        }
        node.number = tree.next;
        tree.next = tree.next.wrapping_add(1);
        let node = KBox::into_raw(node);
        // SAFETY: The node is the first field, and stays where it is until `drop` takes it out.
        unsafe { bindings::famfs_rmap_add(node.cast(), &mut tree.root) };
        drop(tree);
        // SAFETY: A box is not null.
        // INVARIANT: Just added.
        let node = unsafe { NonNull::new_unchecked(node) };
        Ok(Self { map, node })
    }
}

impl<P: FmapProvider> Drop for Link<P> {
    fn drop(&mut self) {
        let mut tree = self.map.tree.lock();
        // SAFETY: By the type invariant the node is valid, and the lock is held at each look.
        while unsafe { (*self.node.as_ptr()).visits } != 0 {
            self.map.idle.wait(&mut tree);
        }
        // SAFETY: By the type invariant the node is in this tree.
        unsafe { bindings::famfs_rmap_del(self.node.as_ptr().cast(), &mut tree.root) };
        drop(tree);
        // SAFETY: By the type invariant it came from a `KBox`; nobody can find it any more.
        drop(unsafe { KBox::from_raw(self.node.as_ptr()) });
    }
}
