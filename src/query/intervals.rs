//! Intervals of bytes, and which of them hold a point: how a change finds the listeners whose ranges it meets.

use std::collections::HashSet;
use std::hash::Hash;

/// A set of half-open intervals, each with who it belongs to.
///
/// Levels of doubling size, each sorted by where its intervals begin, with the greatest end of every half, quarter, and
/// so on: a search goes into a part only if an interval of it may hold the point.
#[derive(Debug)]
pub(super) struct Intervals<T> {
    levels: Vec<Level<T>>,
    /// Owners whose intervals are still in the levels and count no more.
    removed: HashSet<T>,
    /// How many intervals of those.
    removed_count: usize,
    count: usize,
}

#[derive(Debug)]
struct Level<T> {
    intervals: Vec<Interval<T>>,
    /// The greatest end in each subtree of the implicit balanced tree over `intervals`: that of the range whose middle is
    /// at the same index.
    ends: Vec<Box<[u8]>>,
}

#[derive(Debug, Clone)]
struct Interval<T> {
    from: Box<[u8]>,
    to: Box<[u8]>,
    owner: T,
}

impl<T> Default for Intervals<T> {
    fn default() -> Self {
        Self { levels: Vec::new(), removed: HashSet::new(), removed_count: 0, count: 0 }
    }
}

impl<T: Copy + Eq + Hash> Intervals<T> {
    /// Puts in the interval from `from` (included) to `to` (excluded). An owner that was removed must not come back.
    ///
    /// # Cost
    /// In the long run the logarithm of how many there are.
    pub(super) fn insert(&mut self, from: Vec<u8>, to: Vec<u8>, owner: T) {
        self.count += 1;
        let mut merged = vec![Interval { from: from.into(), to: to.into(), owner }];
        // A level that is not larger than what comes goes into it.
        while self.levels.last().is_some_and(|level| level.intervals.len() <= merged.len()) {
            merged.extend(self.levels.pop().into_iter().flat_map(|level| level.intervals));
        }
        self.levels.push(Level::new(merged));
    }

    /// Removes every interval of `owner`, of which there are `count`.
    pub(super) fn remove(&mut self, owner: T, count: usize) {
        if count == 0 || !self.removed.insert(owner) {
            return;
        }
        self.removed_count += count;
        if self.removed_count * 2 > self.count {
            let removed = std::mem::take(&mut self.removed);
            let levels = std::mem::take(&mut self.levels);
            let kept: Vec<Interval<T>> = levels
                .into_iter()
                .flat_map(|level| level.intervals)
                .filter(|interval| !removed.contains(&interval.owner))
                .collect();
            (self.count, self.removed_count) = (kept.len(), 0);
            if !kept.is_empty() {
                self.levels.push(Level::new(kept));
            }
        }
    }

    /// Tells `found` whose intervals hold `point`; one that has several may be told more than once.
    ///
    /// # Cost
    /// The square of the logarithm of how many there are, and what is found.
    pub(super) fn at(&self, point: &[u8], found: &mut impl FnMut(T)) {
        for level in &self.levels {
            level.at(point, 0, level.intervals.len(), &mut |owner| {
                if !self.removed.contains(&owner) {
                    found(owner);
                }
            });
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == self.removed_count
    }
}

impl<T: Copy> Level<T> {
    fn new(mut intervals: Vec<Interval<T>>) -> Self {
        intervals.sort_by(|one, other| one.from.cmp(&other.from));
        let mut ends = vec![Box::default(); intervals.len()];
        greatest_ends(&intervals, 0, intervals.len(), &mut ends);
        Self { intervals, ends }
    }

    fn at(&self, point: &[u8], from: usize, to: usize, found: &mut impl FnMut(T)) {
        if from >= to {
            return;
        }
        let middle = from.midpoint(to);
        if *self.ends[middle] <= *point {
            return;
        }
        self.at(point, from, middle, found);
        let interval = &self.intervals[middle];
        if *interval.from > *point {
            return;
        }
        if *interval.to > *point {
            found(interval.owner);
        }
        self.at(point, middle + 1, to, found);
    }
}

fn greatest_ends<T>(intervals: &[Interval<T>], from: usize, to: usize, ends: &mut [Box<[u8]>]) -> Box<[u8]> {
    if from >= to {
        return Box::default();
    }
    let middle = from.midpoint(to);
    let left = greatest_ends(intervals, from, middle, ends);
    let right = greatest_ends(intervals, middle + 1, to, ends);
    let greatest = left.max(right).max(intervals[middle].to.clone());
    ends[middle].clone_from(&greatest);
    greatest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_point_finds_what_a_look_at_all_finds(
            steps in proptest::collection::vec((any::<bool>(), 0u8..40, 0u8..40), 1..120),
        ) {
            let mut set = Intervals::default();
            let mut all: Vec<(u8, u8, usize)> = Vec::new();
            for (owner, (removes, from, to)) in steps.into_iter().enumerate() {
                if removes && !all.is_empty() {
                    let (_, _, owner) = all.remove(usize::from(from) % all.len());
                    set.remove(owner, 1);
                } else {
                    set.insert(vec![from], vec![to], owner);
                    all.push((from, to, owner));
                }
                for point in 0..40 {
                    let mut found = Vec::new();
                    set.at(&[point], &mut |owner| found.push(owner));
                    found.sort_unstable();
                    let mut expected: Vec<usize> =
                        all.iter().filter(|(from, to, _)| *from <= point && point < *to).map(|one| one.2).collect();
                    expected.sort_unstable();
                    prop_assert_eq!(found, expected);
                }
                prop_assert_eq!(set.is_empty(), all.is_empty());
            }
        }
    }
}
