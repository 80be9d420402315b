//! The change graph: which changes a document has and what each was made on top of, without their contents.
//!
//! A node that only relays, compares or serves a document never builds the document itself. All it asks is: *do I
//! have this change, what follows these heads, may this change come next?* The graph answers that from about 80
//! bytes a change.
//!
//! Changes are numbered in the order they came, and a change is only taken once everything it depends on is there.
//! So numbers grow along every path of the graph: a walk that always takes the largest number left has seen all
//! descendants of a change before the change itself. Every question below is such a walk from the newest changes
//! backwards, which ends as soon as the answer is certain; none goes over the whole graph unless the answer does.
//!
//! ```text
//! number   0     1     2     3     4
//!          a <-- b <--------- d <-- e      heads: e
//!            \-------- c <---/             following [c]: b, d, e
//! ```

mod past;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use self::past::Pasts;
use super::slots::Slots;
use crate::id::{ActorId, ChangeHash, Heads, Lsn};
use crate::limits::Limits;

/// Why a change may not come next in a graph. Nothing was added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// The change depends on others that are not here yet. It may come again once they are.
    #[error("{} of the change's dependencies are missing", .0.len())]
    MissingDeps(Vec<ChangeHash>),
    /// The actor's earlier changes are missing although everything the change depends on is here.
    #[error("change {found} of actor {actor} came where {expected} was next")]
    SeqGap {
        /// Who made it.
        actor: ActorId,
        /// The number that would be next.
        expected: u64,
        /// The number it has.
        found: u64,
    },
    /// The actor made two different changes with one number.
    #[error("actor {actor} made two changes with number {seq}; {known:?} was here first")]
    Equivocation {
        /// Who made it.
        actor: ActorId,
        /// The number both have.
        seq: u64,
        /// The change that is already here, if the number is one an actor can have.
        known: Option<ChangeHash>,
    },
    /// The change's operation counters do not follow what it depends on, or leap out of reach.
    #[error("the change's operations begin at {found}; {min} to {max} are allowed")]
    StartOp {
        /// Where its operations begin.
        found: u64,
        /// The smallest counter that follows everything it depends on.
        min: u64,
        /// The largest counter allowed now.
        max: u64,
    },
    /// The change does not follow the one its actor made before. Automerge tells an actor's changes apart by what each
    /// follows: a saved document with such a change would not load.
    #[error("change {seq} of actor {actor} does not follow the actor's change before it")]
    Astray {
        /// Who made it.
        actor: ActorId,
        /// Its number.
        seq: u64,
    },
    /// The change refers to an operation that its author had not seen: of a change that is not among its ancestors, or of
    /// none.
    #[error("the change refers to operation {counter} of actor {of}, which is not in its past")]
    Unseen {
        /// Whose operation.
        of: ActorId,
        /// Its counter.
        counter: u64,
    },
    /// The graph numbers changes with 32 bits and has no number left.
    #[error("a document has at most 4294967294 changes")]
    Full,
}

/// One change as the graph takes it.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    /// Its name.
    pub hash: ChangeHash,
    /// Who made it.
    pub actor: &'a ActorId,
    /// Its number among its actor's changes, from 1.
    pub seq: u64,
    /// The counter of its first operation.
    pub start_op: u64,
    /// How many operations it holds.
    pub op_count: u64,
    /// What it was made on top of.
    pub deps: &'a [ChangeHash],
    /// Where its bytes are. The graph only keeps it.
    pub lsn: Lsn,
}

/// A change's number in one graph, in order of arrival. It means nothing in another graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Index(u32);

/// The graph of one document's changes.
///
/// Invariant: every dependency of entry `n` is an entry below `n`; an actor's entries have the numbers 1, 2, 3 ... in
/// order, each of which depends on what ends at or above the one before (and, where [`Self::check_past`] was asked, on the
/// one before); a change's operations end at or above where those of everything it depends on end.
#[derive(Debug, Clone)]
pub struct ChangeGraph {
    entries: Vec<Entry>,
    /// The dependencies of all entries, end to end.
    deps: Vec<u32>,
    slots: Slots,
    actors: Vec<Author>,
    actor_numbers: HashMap<ActorId, u32>,
    heads: BTreeSet<u32>,
    max_op: u64,
    start_op_window: u64,
    /// The record by which changes were withdrawn last; zero when none ever were.
    generation: Lsn,
    pasts: Pasts,
}

/// What is kept of one change. 64 bytes.
#[derive(Debug, Clone, Copy)]
struct Entry {
    hash: ChangeHash,
    lsn: Lsn,
    actor: u32,
    seq: u32,
    start_op: u32,
    op_count: u32,
    /// Where its dependencies end in `deps`; they begin where the entry before has its end.
    deps_end: u32,
}

#[derive(Debug, Clone)]
struct Author {
    actor: ActorId,
    /// The actor's changes; the one with number `seq` is at `seq - 1`.
    changes: Vec<u32>,
}

/// Operation counters stay below this, or a later local edit would overflow automerge's 32 bits.
const OP_END_MAX: u64 = 1 << 31;

impl Default for ChangeGraph {
    fn default() -> Self {
        Self::new()
    }
}

impl ChangeGraph {
    /// Makes an empty graph that allows the default leap of operation counters.
    #[must_use]
    pub fn new() -> Self {
        Self::with_window(Limits::DEFAULT.start_op_window)
    }

    /// Makes an empty graph. A change's operations may begin at most `start_op_window` above the next free counter.
    #[must_use]
    pub fn with_window(start_op_window: u64) -> Self {
        Self {
            entries: Vec::new(),
            deps: Vec::new(),
            slots: Slots::default(),
            actors: Vec::new(),
            actor_numbers: HashMap::new(),
            heads: BTreeSet::new(),
            max_op: 0,
            start_op_window,
            generation: Lsn::ZERO,
            pasts: Pasts::default(),
        }
    }

    /// Adds a change; `false` when it is known already.
    ///
    /// # Errors
    /// [`GraphError`] when it may not come next; the graph is as before.
    ///
    /// # Cost
    /// One hash look-up for the change and for each dependency.
    pub fn add(&mut self, node: Node<'_>) -> Result<bool, GraphError> {
        if self.contains(&node.hash) {
            return Ok(false);
        }
        let entry = self.check(&node)?;
        let number = self.entries.len() as u32;
        let deps_begin = self.deps.len();
        for hash in node.deps {
            if let Some(dep) = self.number_of(hash)
                && !self.deps[deps_begin..].contains(&dep)
            {
                push(&mut self.deps, dep);
                self.heads.remove(&dep);
            }
        }
        let actor = self.intern(node.actor);
        push(&mut self.actors[actor as usize].changes, number);
        self.max_op = self.max_op.max(entry.op_end());
        push(&mut self.entries, Entry { actor, deps_end: self.deps.len() as u32, ..entry });
        let entries = &self.entries;
        self.slots.insert(number, |number| &entries[number as usize].hash);
        self.heads.insert(number);
        self.pasts.note(number, &node.hash, actor, self.heads.len() == 1);
        Ok(true)
    }

    /// Says whether [`Self::add`] would take a change that is not known yet.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn check_next(&self, node: &Node<'_>) -> Result<(), GraphError> {
        self.check(node).map(|_| ())
    }

    /// The change whose bytes are at `lsn`, if one's are.
    #[must_use]
    pub fn hash_of(&self, lsn: Lsn) -> Option<ChangeHash> {
        let at = self.entries.binary_search_by_key(&lsn, |entry| entry.lsn).ok()?;
        Some(self.entries[at].hash)
    }

    /// Whether the change is here.
    #[must_use]
    pub fn contains(&self, hash: &ChangeHash) -> bool {
        self.number_of(hash).is_some()
    }

    /// Whether all of them are here.
    #[must_use]
    pub fn contains_all(&self, hashes: &[ChangeHash]) -> bool {
        hashes.iter().all(|hash| self.contains(hash))
    }

    /// Those of `hashes` that are not here, in the order given.
    #[must_use]
    pub fn missing(&self, hashes: &[ChangeHash]) -> Vec<ChangeHash> {
        hashes.iter().copied().filter(|hash| !self.contains(hash)).collect()
    }

    /// The changes nothing follows.
    #[must_use]
    pub fn heads(&self) -> Heads {
        Heads::new(self.heads.iter().map(|&number| self.entries[number as usize].hash).collect())
    }

    /// The number of the actor's last change; 0 when there is none.
    #[must_use]
    pub fn clock(&self, actor: &ActorId) -> u64 {
        self.actor_numbers.get(actor).map_or(0, |&number| self.actors[number as usize].changes.len() as u64)
    }

    /// Every actor with the number of its last change, in order of their first change here.
    pub fn clocks(&self) -> impl ExactSizeIterator<Item = (&ActorId, u64)> {
        self.actors.iter().map(|author| (&author.actor, author.changes.len() as u64))
    }

    /// How many changes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Where the bytes of the change added last are; [`Lsn::ZERO`] when there is none.
    #[must_use]
    pub fn last_lsn(&self) -> Lsn {
        self.entries.last().map_or(Lsn::ZERO, |entry| entry.lsn)
    }

    /// The largest operation counter in use; 0 when there is none.
    #[must_use]
    pub fn max_op(&self) -> u64 {
        self.max_op
    }

    /// Where the change's bytes are.
    #[must_use]
    pub fn lsn_of(&self, hash: &ChangeHash) -> Option<Lsn> {
        self.number_of(hash).map(|number| self.entries[number as usize].lsn)
    }

    /// The change's number.
    #[must_use]
    pub fn index_of(&self, hash: &ChangeHash) -> Option<Index> {
        self.number_of(hash).map(Index)
    }

    /// The change with this number.
    ///
    /// # Panics
    /// When `index` is from another graph and beyond this one's end.
    #[must_use]
    pub fn hash_at(&self, index: Index) -> ChangeHash {
        self.entries[index.0 as usize].hash
    }

    /// Where the bytes of the change with this number are.
    ///
    /// # Panics
    /// When `index` is from another graph and beyond this one's end.
    #[must_use]
    pub fn lsn_at(&self, index: Index) -> Lsn {
        self.entries[index.0 as usize].lsn
    }

    /// What the change with this number was made on top of.
    ///
    /// # Panics
    /// When `index` is from another graph and beyond this one's end.
    pub fn deps_at(&self, index: Index) -> impl Iterator<Item = Index> {
        self.deps_of(index.0).iter().copied().map(Index)
    }

    /// The change that `actor` numbered `seq`.
    #[must_use]
    pub fn change_of(&self, actor: &ActorId, seq: u64) -> Option<ChangeHash> {
        let author = &self.actors[*self.actor_numbers.get(actor)? as usize];
        let number = author.changes.get(usize::try_from(seq.checked_sub(1)?).ok()?)?;
        Some(self.entries[*number as usize].hash)
    }

    /// Which generation of the document it is: the record by which changes were withdrawn last, zero when none ever
    /// were. Within a generation a graph only grows; an [`Index`] means nothing in another.
    #[must_use]
    pub fn generation(&self) -> Lsn {
        self.generation
    }

    /// Says of which generation it is.
    pub fn set_generation(&mut self, generation: Lsn) {
        self.generation = generation;
    }

    /// The change and everything that cannot stay without it: what follows it, and its author's later changes, which
    /// would leave a gap in the author's numbers. In topological order; empty when the change is not here.
    ///
    /// # Cost
    /// One pass over the changes after it.
    #[must_use]
    pub fn standing_on(&self, change: &ChangeHash) -> Vec<Index> {
        let Some(root) = self.number_of(change) else { return Vec::new() };
        let mut falls: BTreeSet<u32> = BTreeSet::from([root]);
        // The first number that falls, by author.
        let mut from_seq: HashMap<u32, u32> = HashMap::new();
        for number in root..self.entries.len() as u32 {
            let entry = &self.entries[number as usize];
            let number_falls = from_seq.get(&entry.actor).is_some_and(|seq| entry.seq >= *seq);
            if number == root || number_falls || self.deps_of(number).iter().any(|dep| falls.contains(dep)) {
                falls.insert(number);
                from_seq.entry(entry.actor).or_insert(entry.seq);
            }
        }
        falls.into_iter().map(Index).collect()
    }

    /// The graph without these changes. Whatever stands on them has to be among them.
    ///
    /// # Errors
    /// [`GraphError::MissingDeps`] or [`GraphError::SeqGap`] when something left stands on one of them.
    pub fn without(&self, withdrawn: &[Index]) -> Result<Self, GraphError> {
        let withdrawn: BTreeSet<Index> = withdrawn.iter().copied().collect();
        let mut left = Self::with_window(u64::MAX >> 1);
        for number in (0..self.entries.len() as u32).filter(|number| !withdrawn.contains(&Index(*number))) {
            let entry = &self.entries[number as usize];
            let deps: Vec<ChangeHash> =
                self.deps_of(number).iter().map(|dep| self.entries[*dep as usize].hash).collect();
            left.add(Node {
                hash: entry.hash,
                actor: &self.actors[entry.actor as usize].actor,
                seq: entry.seq.into(),
                start_op: entry.start_op.into(),
                op_count: entry.op_count.into(),
                deps: &deps,
                lsn: entry.lsn,
            })?;
        }
        left.start_op_window = self.start_op_window;
        left.generation = self.generation;
        Ok(left)
    }

    /// Everything that is neither one of `heads` nor an ancestor of one, in topological order. Unknown heads count
    /// for nothing.
    ///
    /// # Cost
    /// A walk back from our heads to the oldest change of the answer: short when `heads` are recent.
    #[must_use]
    pub fn following(&self, heads: &[ChangeHash]) -> Vec<Index> {
        if heads.is_empty() {
            return (0..self.entries.len() as u32).map(Index).collect();
        }
        // What is left to visit, and whether a given head was seen to reach it.
        let mut left: BTreeMap<u32, bool> = self.heads.iter().map(|&number| (number, false)).collect();
        left.extend(heads.iter().filter_map(|hash| self.number_of(hash)).map(|number| (number, true)));
        let mut unreached = left.values().filter(|&&reached| !reached).count();
        let mut following = Vec::new();
        while unreached > 0
            && let Some((number, reached)) = left.pop_last()
        {
            if !reached {
                unreached -= 1;
                following.push(Index(number));
            }
            for &dep in self.deps_of(number) {
                match left.insert(dep, reached) {
                    None if !reached => unreached += 1,
                    Some(false) if reached => unreached -= 1,
                    // Once reached, always reached.
                    Some(true) if !reached => {
                        left.insert(dep, true);
                    }
                    _ => {}
                }
            }
        }
        following.reverse();
        following
    }

    /// Takes out of `set` every change that is one of `heads` or an ancestor of one.
    ///
    /// # Cost
    /// A walk back from `heads` to the oldest change of `set`.
    pub fn remove_ancestors(&self, heads: &[ChangeHash], set: &mut BTreeSet<Index>) {
        let mut left: BTreeSet<u32> = heads.iter().filter_map(|hash| self.number_of(hash)).collect();
        while let Some(number) = left.pop_last() {
            match set.first() {
                Some(oldest) if oldest.0 <= number => {}
                _ => return,
            }
            set.remove(&Index(number));
            left.extend(self.deps_of(number));
        }
    }

    /// Those of `hashes` that no other of them follows, ascending. Unknown hashes are left out.
    ///
    /// After `steps_max` steps of the walk the rest is kept as it is: the answer then names the same changes with some
    /// of their ancestors beside them.
    #[must_use]
    pub fn newest_of(&self, hashes: impl IntoIterator<Item = ChangeHash>, steps_max: usize) -> Heads {
        let mut kept: BTreeSet<u32> = hashes.into_iter().filter_map(|hash| self.number_of(&hash)).collect();
        let mut left: BTreeSet<u32> = kept.iter().flat_map(|&number| self.deps_of(number)).copied().collect();
        for _ in 0..steps_max {
            let Some(number) = left.pop_last() else { break };
            if kept.first().is_none_or(|&oldest| number < oldest) {
                break;
            }
            kept.remove(&number);
            left.extend(self.deps_of(number));
        }
        Heads::new(kept.into_iter().map(|number| self.entries[number as usize].hash).collect())
    }

    /// The memory it takes, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let authors: usize = self.actors.iter().map(|author| 4 * author.changes.capacity() + 160).sum();
        self.entries.capacity() * size_of::<Entry>()
            + 4 * (self.deps.capacity() + self.slots.capacity())
            + authors
            + 24 * self.heads.len()
            + self.pasts.bytes()
            + size_of::<Self>()
    }

    /// Whether `node` may come next; its entry but for the links to others.
    fn check(&self, node: &Node<'_>) -> Result<Entry, GraphError> {
        let missing = self.missing(node.deps);
        if !missing.is_empty() {
            return Err(GraphError::MissingDeps(missing));
        }
        let clock = self.clock(node.actor);
        if node.seq <= clock {
            let known = self.change_of(node.actor, node.seq);
            return Err(GraphError::Equivocation { actor: node.actor.clone(), seq: node.seq, known });
        }
        if node.seq != clock + 1 {
            return Err(GraphError::SeqGap { actor: node.actor.clone(), expected: clock + 1, found: node.seq });
        }
        let ends = node.deps.iter().filter_map(|hash| self.number_of(hash));
        let min = 1 + ends.map(|number| self.entries[number as usize].op_end()).max().unwrap_or(0);
        if self.last_op_of(node.actor) >= min {
            return Err(GraphError::Astray { actor: node.actor.clone(), seq: node.seq });
        }
        let max = (self.max_op + 1).saturating_add(self.start_op_window).min(OP_END_MAX - 1);
        let fits = (min..=max).contains(&node.start_op) && node.op_count <= OP_END_MAX - node.start_op;
        if !fits {
            return Err(GraphError::StartOp { found: node.start_op, min, max });
        }
        let room = u32::MAX as usize - 1;
        if self.entries.len() >= room || node.deps.len() > room - self.deps.len() {
            return Err(GraphError::Full);
        }
        Ok(Entry {
            hash: node.hash,
            lsn: node.lsn,
            actor: 0,
            // Both fit: a number is at most the count of entries, and an operation's counter below `OP_END_MAX`.
            seq: node.seq as u32,
            start_op: node.start_op as u32,
            op_count: node.op_count as u32,
            deps_end: 0,
        })
    }

    /// The counter of the actor's last operation; 0 when there is none.
    fn last_op_of(&self, actor: &ActorId) -> u64 {
        let author = self.actor_numbers.get(actor).and_then(|&number| self.actors[number as usize].changes.last());
        author.map_or(0, |&number| self.entries[number as usize].op_end())
    }

    fn intern(&mut self, actor: &ActorId) -> u32 {
        if let Some(&number) = self.actor_numbers.get(actor) {
            return number;
        }
        let number = self.actors.len() as u32;
        self.actors.push(Author { actor: actor.clone(), changes: Vec::new() });
        self.actor_numbers.insert(actor.clone(), number);
        number
    }

    fn number_of(&self, hash: &ChangeHash) -> Option<u32> {
        self.slots.find(hash, |number| &self.entries[number as usize].hash)
    }

    fn deps_of(&self, number: u32) -> &[u32] {
        let begin = if number == 0 { 0 } else { self.entries[number as usize - 1].deps_end };
        &self.deps[begin as usize..self.entries[number as usize].deps_end as usize]
    }
}

/// What the graph keeps of a change, apart from its dependencies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo<'a> {
    /// Its name.
    pub hash: ChangeHash,
    /// Who made it.
    pub actor: &'a ActorId,
    /// Its number among its actor's changes, from 1.
    pub seq: u64,
    /// The counter of its first operation.
    pub start_op: u64,
    /// How many operations it holds.
    pub op_count: u64,
    /// Where its bytes are.
    pub lsn: Lsn,
}

impl ChangeGraph {
    /// What is known of the change with this number.
    ///
    /// # Panics
    /// When `index` is from another graph and beyond this one's end.
    #[must_use]
    pub fn info_at(&self, index: Index) -> NodeInfo<'_> {
        let entry = &self.entries[index.0 as usize];
        NodeInfo {
            hash: entry.hash,
            actor: &self.actors[entry.actor as usize].actor,
            seq: entry.seq.into(),
            start_op: entry.start_op.into(),
            op_count: entry.op_count.into(),
            lsn: entry.lsn,
        }
    }
}

impl Entry {
    /// The counter of its last operation; the one before its first when it has none.
    fn op_end(&self) -> u64 {
        u64::from(self.start_op) + u64::from(self.op_count) - 1
    }
}

/// Appends, growing by a quarter: the doubling of `Vec` would cost half the memory budget.
fn push<T>(to: &mut Vec<T>, item: T) {
    if to.len() == to.capacity() {
        to.reserve_exact((to.len() / 4).max(4));
    }
    to.push(item);
}

#[cfg(test)]
mod tests;
