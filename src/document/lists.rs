//! What must change to turn one list into another: the gaps between what the two have in common.

use std::ops::Range;

/// A stretch of the old list that a stretch of the new one replaces; either may be empty, not both.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gap {
    /// Indexes into the old list.
    pub(super) old: Range<usize>,
    /// Indexes into the new list.
    pub(super) new: Range<usize>,
}

/// How large the table of the comparison may become, in cells of 4 bytes.
///
/// Lists whose differing middles are larger keep only their common beginning and end.
const CELLS_MAX: usize = 1 << 20;

/// Finds the gaps, ascending.
///
/// # Cost
/// Equal lists: one comparison an element. Else a comparison for each pair of elements between the common beginning
/// and the common end, at most [`CELLS_MAX`].
pub(super) fn gaps<T: PartialEq>(old: &[T], new: &[T]) -> Vec<Gap> {
    let prefix = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let both = old.len().min(new.len()) - prefix;
    let suffix = old.iter().rev().zip(new.iter().rev()).take(both).take_while(|(a, b)| a == b).count();
    let (left, right) = (&old[prefix..old.len() - suffix], &new[prefix..new.len() - suffix]);
    let mut gaps = vec![];
    let (mut i, mut j) = (0, 0);
    for (a, b) in common(left, right).into_iter().chain([(left.len(), right.len())]) {
        if i < a || j < b {
            gaps.push(Gap { old: prefix + i..prefix + a, new: prefix + j..prefix + b });
        }
        (i, j) = (a + 1, b + 1);
    }
    gaps
}

/// The pairs of indexes of a longest common subsequence, ascending.
fn common<T: PartialEq>(left: &[T], right: &[T]) -> Vec<(usize, usize)> {
    let width = right.len() + 1;
    if left.is_empty() || right.is_empty() || (left.len() + 1).saturating_mul(width) > CELLS_MAX {
        return vec![];
    }
    // longest[i * width + j]: of left[i..] and right[j..].
    let mut longest = vec![0_u32; (left.len() + 1) * width];
    for i in (0..left.len()).rev() {
        for j in (0..right.len()).rev() {
            longest[i * width + j] = if left[i] == right[j] {
                longest[(i + 1) * width + j + 1] + 1
            } else {
                longest[(i + 1) * width + j].max(longest[i * width + j + 1])
            };
        }
    }
    let mut pairs = vec![];
    let (mut i, mut j) = (0, 0);
    while i < left.len() && j < right.len() {
        if left[i] == right[j] {
            pairs.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if longest[(i + 1) * width + j] >= longest[i * width + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turned(old: &str, new: &str) -> Vec<(Range<usize>, Range<usize>)> {
        let (old, new): (Vec<char>, Vec<char>) = (old.chars().collect(), new.chars().collect());
        let found = gaps(&old, &new);
        let mut made = old;
        for gap in found.iter().rev() {
            made.splice(gap.old.clone(), new[gap.new.clone()].iter().copied());
        }
        assert_eq!(made, new);
        found.into_iter().map(|gap| (gap.old, gap.new)).collect()
    }

    #[test]
    fn only_what_differs_is_a_gap() {
        assert_eq!(turned("abc", "abc"), []);
        assert_eq!(turned("", "ab"), [(0..0, 0..2)]);
        assert_eq!(turned("ab", ""), [(0..2, 0..0)]);
        assert_eq!(turned("aaa", "aa"), [(2..3, 2..2)]);
        assert_eq!(turned("abcdef", "abXdef"), [(2..3, 2..3)]);
        assert_eq!(turned("abcdef", "bcXef0"), [(0..1, 0..0), (3..4, 2..3), (6..6, 5..6)]);
    }

    #[test]
    fn lists_too_long_to_compare_keep_their_ends() {
        let old: Vec<u32> = (0..3000).collect();
        let new: Vec<u32> = (0..10).chain(5000..7000).chain(2990..3000).collect();
        assert_eq!(gaps(&old, &new), [Gap { old: 10..2990, new: 10..2010 }]);
    }
}
