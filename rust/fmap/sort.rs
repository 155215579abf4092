// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A heap sort. The one in `core` ends in a function that objtool doesn't know to never return.

/// Sorts in place, in O(n log n) whatever the order was.
pub(super) fn sort<T: Ord>(items: &mut [T]) {
    for root in (0..items.len() / 2).rev() {
        sift_down(items, root);
    }
    for last in (1..items.len()).rev() {
        items.swap(0, last);
        if let Some(heap) = items.get_mut(..last) {
            sift_down(heap, 0);
        }
    }
}

/// Makes a heap of the tree below `root`, whose branches are heaps.
fn sift_down<T: Ord>(heap: &mut [T], mut root: usize) {
    while let Some(child) = larger_child(heap, root) {
        if heap.get(child) <= heap.get(root) {
            return;
        }
        heap.swap(child, root);
        root = child;
    }
}

fn larger_child<T: Ord>(heap: &[T], root: usize) -> Option<usize> {
    let left = root.checked_mul(2)?.checked_add(1)?;
    let right = left.checked_add(1)?;
    heap.get(left)?;
    match heap.get(right) > heap.get(left) {
        true => Some(right),
        false => Some(left),
    }
}

#[cfg(test)]
mod tests {
    use super::sort;
    use std::vec::Vec;

    #[test]
    fn sorts_every_sequence_of_three_values_up_to_length_eight() {
        for len in 0..=8u32 {
            for code in 0..3u32.pow(len) {
                let mut items: Vec<u32> = (0..len).map(|i| code / 3u32.pow(i) % 3).collect();
                let mut expected = items.clone();
                expected.sort();
                sort(&mut items);
                assert_eq!(items, expected);
            }
        }
    }
}
