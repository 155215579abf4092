// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A sorted array laid out as a binary search tree: node 1 is the root, the children of node k
//! are 2k and 2k + 1. A search takes half the instructions of one in a sorted array, and the
//! first steps of all searches share cache lines.

/// The node whose value is the least above `value`, or 0. `tree` has a word before the root,
/// which isn't looked at.
#[inline]
pub(super) fn above(tree: &[u64], value: u64) -> usize {
    let mut node = 1usize;
    while let Some(here) = tree.get(node) {
        // At most twice the length of a slice.
        node = node
            .wrapping_mul(2)
            .wrapping_add(usize::from(*here <= value));
    }
    up_from_left(node)
}

/// The node of the least value in a tree of `len` nodes.
pub(super) fn first(len: usize) -> usize {
    leftmost(1, len)
}

/// The node of the value that follows that of `node`, or 0.
pub(super) fn next(node: usize, len: usize) -> usize {
    match node.saturating_mul(2).saturating_add(1) {
        right if right <= len => leftmost(right, len),
        right => up_from_left(right),
    }
}

fn leftmost(mut node: usize, len: usize) -> usize {
    while node.saturating_mul(2) <= len {
        node = node.saturating_mul(2);
    }
    node
}

/// The nearest node that has `node` on its left side, or 0.
///
/// The bits of a node's number, after the first, spell the way to it: 0 for left, 1 for right.
#[inline]
fn up_from_left(node: usize) -> usize {
    node.wrapping_shr(node.trailing_ones().wrapping_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn order_and_search_agree_with_a_sorted_array() {
        for len in 1..70usize {
            let mut tree = vec![u64::MAX; len + 1];
            let mut node = first(len);
            for value in 1..=len as u64 {
                assert_eq!(tree[node], u64::MAX);
                tree[node] = 10 * value;
                node = next(node, len);
            }
            assert_eq!(node, 0);
            for value in 0..10 * len as u64 {
                assert_eq!(tree[above(&tree, value)], (value / 10 + 1) * 10);
            }
            assert_eq!(above(&tree, 10 * len as u64), 0);
        }
    }
}
