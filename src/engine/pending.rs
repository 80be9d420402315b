//! Changes that wait for something they depend on, within bounds.
//!
//! Nothing in here is durable or acknowledged. What is dropped is asked for again by whoever asks for the document.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use super::core::Clash;
use super::judge::Ruling;
use crate::document::Change;
use crate::history::{Origin, Signature};
use crate::id::{ChangeHash, DocumentId, NodeId};
use crate::limits::Limits;

/// How long a change waits.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// A change, and who brought it.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    pub(super) change: Change,
    pub(super) origin: Origin,
    /// Of an author's first change, the signature that is kept with it.
    pub(super) signature: Option<Box<Signature>>,
    pub(super) via: Option<NodeId>,
    /// An edit of this process's own view.
    pub(super) made_here: bool,
    /// What to do when its author's number is taken by another change.
    pub(super) clash: Clash,
    /// What lets it in, where rules were asked here.
    pub(super) ruling: Option<Ruling>,
}

/// The waiting changes of all documents.
///
/// Invariant: `bytes` is the sum of what all waiting changes weigh, at most `Limits::pending_bytes`; `order` names each
/// of them once.
///
/// Every call costs the same however much waits, apart from what it takes out: a flood of changes whose dependencies
/// never come costs its sender as much as us.
#[derive(Debug, Default)]
pub(super) struct Pending {
    documents: HashMap<DocumentId, Waiting>,
    /// Order of arrival, for dropping the oldest.
    order: BTreeMap<u64, (DocumentId, ChangeHash)>,
    arrivals: u64,
    bytes: usize,
    /// Documents of which something was dropped in the step under way.
    dropped: HashSet<DocumentId>,
}

#[derive(Debug, Default)]
struct Waiting {
    changes: HashMap<ChangeHash, Parked>,
    /// Dependency -> those that wait for it. `None` stands for the document's creation.
    by_dependency: HashMap<Option<ChangeHash>, HashSet<ChangeHash>>,
    /// Order of arrival.
    order: BTreeSet<u64>,
    bytes: usize,
}

#[derive(Debug)]
struct Parked {
    arrival: Arrival,
    waits_for: Vec<Option<ChangeHash>>,
    number: u64,
    since: Instant,
}

/// What a waiting change weighs beside its bytes: its places in five tables.
const PARKED_BYTES: usize = 768;
/// And for each dependency it waits for.
const DEPENDENCY_BYTES: usize = 192;

impl Parked {
    fn weight(&self) -> usize {
        let path =
            self.arrival.ruling.as_ref().and_then(|ruling| ruling.allow.as_ref()).map_or(0, |(_, path)| path.len());
        self.arrival.change.bytes().len() + path + PARKED_BYTES + DEPENDENCY_BYTES * self.waits_for.len()
    }
}

impl Pending {
    /// Bytes of all that waits.
    #[cfg(feature = "sim")]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Forgets what earlier steps dropped.
    pub(super) fn begin_step(&mut self) {
        self.dropped.clear();
    }

    /// Notes that something about a document could not be kept.
    pub(super) fn note_dropped(&mut self, document: DocumentId) {
        self.dropped.insert(document);
    }

    /// Whether something about a document was dropped in this step: whoever brought it must be asked again.
    pub(super) fn dropped(&self, document: DocumentId) -> bool {
        self.dropped.contains(&document)
    }

    /// Parks a change until one of `missing` arrives; with none missing, until the document is created. The oldest
    /// ones make room, in the document and over all.
    pub(super) fn park(
        &mut self,
        document: DocumentId,
        arrival: Arrival,
        missing: &[ChangeHash],
        now: Instant,
        limits: &Limits,
    ) {
        let hash = arrival.change.hash();
        if self.documents.get(&document).is_some_and(|waiting| waiting.changes.contains_key(&hash)) {
            return;
        }
        let waits_for = if missing.is_empty() { vec![None] } else { missing.iter().copied().map(Some).collect() };
        self.arrivals += 1;
        let parked = Parked { arrival, waits_for, number: self.arrivals, since: now };
        let weight = parked.weight();
        if weight > limits.pending_bytes_per_document.min(limits.pending_bytes) {
            self.dropped.insert(document);
            return;
        }
        while let Some(waiting) = self.documents.get(&document)
            && (waiting.changes.len() >= limits.pending_changes_per_document
                || waiting.bytes + weight > limits.pending_bytes_per_document)
            && let Some(oldest) = waiting.order.first()
        {
            self.drop_one(*oldest);
        }
        while self.bytes + weight > limits.pending_bytes
            && let Some((oldest, _)) = self.order.first_key_value()
        {
            self.drop_one(*oldest);
        }
        self.order.insert(parked.number, (document, hash));
        self.bytes += weight;
        self.documents.entry(document).or_default().insert(hash, parked, weight);
    }

    /// Takes out what waited for `dependency`, or for the document's creation when it is `None`.
    pub(super) fn take_waiting(&mut self, document: DocumentId, dependency: Option<ChangeHash>) -> Vec<Arrival> {
        let Some(waiting) = self.documents.get(&document) else { return Vec::new() };
        let mut hashes: Vec<ChangeHash> =
            waiting.by_dependency.get(&dependency).map(|set| set.iter().copied().collect()).unwrap_or_default();
        // As they came: what is logged follows from the inputs alone.
        hashes.sort_unstable_by_key(|hash| waiting.changes.get(hash).map(|parked| parked.number));
        hashes.iter().filter_map(|hash| self.remove(document, hash)).collect()
    }

    /// What a document's waiting changes wait for and nobody brought; `None` when nothing waits.
    pub(super) fn missing(&self, document: DocumentId) -> Option<Vec<ChangeHash>> {
        let waiting = self.documents.get(&document)?;
        let wanted = waiting.by_dependency.keys().flatten();
        Some(wanted.filter(|hash| !waiting.changes.contains_key(hash)).copied().collect())
    }

    /// Drops what has waited too long.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((_, (document, hash))) = self.order.first_key_value()
            && let Some(parked) = self.documents.get(document).and_then(|waiting| waiting.changes.get(hash))
            && now.saturating_duration_since(parked.since) > WAIT_MAX
        {
            let (document, hash) = (*document, *hash);
            self.remove(document, &hash);
        }
    }

    /// Drops one for want of room.
    fn drop_one(&mut self, number: u64) {
        let Some((document, hash)) = self.order.get(&number).copied() else { return };
        self.remove(document, &hash);
        self.dropped.insert(document);
    }

    fn remove(&mut self, document: DocumentId, hash: &ChangeHash) -> Option<Arrival> {
        let waiting = self.documents.get_mut(&document)?;
        let parked = waiting.remove(hash)?;
        if waiting.changes.is_empty() {
            self.documents.remove(&document);
        }
        self.order.remove(&parked.number);
        self.bytes -= parked.weight();
        Some(parked.arrival)
    }
}

impl Waiting {
    fn insert(&mut self, hash: ChangeHash, parked: Parked, weight: usize) {
        for dependency in &parked.waits_for {
            self.by_dependency.entry(*dependency).or_default().insert(hash);
        }
        self.order.insert(parked.number);
        self.bytes += weight;
        self.changes.insert(hash, parked);
    }

    fn remove(&mut self, hash: &ChangeHash) -> Option<Parked> {
        let parked = self.changes.remove(hash)?;
        self.order.remove(&parked.number);
        self.bytes -= parked.weight();
        for dependency in &parked.waits_for {
            if let Some(set) = self.by_dependency.get_mut(dependency) {
                set.remove(hash);
                if set.is_empty() {
                    self.by_dependency.remove(dependency);
                }
            }
        }
        Some(parked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{EditOptions, View, ViewError};
    use crate::id::ActorId;
    use crate::log::record::Admission;

    /// So many changes that each wait for the one before.
    fn arrivals(count: usize) -> Vec<(Arrival, ChangeHash)> {
        let mut view = View::new();
        let actor = ActorId::new(&[1; 16]).unwrap();
        let edit = |n: usize| {
            let options = EditOptions { actor: actor.clone(), time: 0, message: None };
            let edited = view.edit(options, |edit| -> Result<(), ViewError> { edit.put("n", n) });
            edited.unwrap().1.unwrap()
        };
        let changes: Vec<Change> = (0..=count).map(edit).collect();
        let origin = Origin {
            node: NodeId([1; 32]),
            principal: String::new(),
            admission: Admission::Structural,
            rules_version: 0,
        };
        let arrival = |change: &Change| Arrival {
            change: change.clone(),
            origin: origin.clone(),
            signature: None,
            via: None,
            made_here: false,
            clash: Clash::KeepFirst,
            ruling: None,
        };
        changes.windows(2).map(|pair| (arrival(&pair[1]), pair[0].hash())).collect()
    }

    #[test]
    fn a_flood_for_one_document_or_for_many_stays_within_its_bounds() {
        let now = Instant::now();
        let all = arrivals(3000);
        let limits = Limits { pending_bytes: 2 << 20, ..Limits::default() };
        let mut pending = Pending::default();
        for (arrival, dependency) in &all {
            pending.park(DocumentId([1; 16]), arrival.clone(), &[*dependency], now, &limits);
        }
        assert_eq!(pending.order.len(), limits.pending_changes_per_document);
        assert!(pending.dropped(DocumentId([1; 16])));
        for (n, (arrival, dependency)) in all.iter().enumerate() {
            let document = DocumentId([&[2; 8][..], &(n as u64).to_be_bytes()].concat().try_into().unwrap());
            pending.park(document, arrival.clone(), &[*dependency], now, &limits);
            assert!(pending.bytes <= limits.pending_bytes);
        }
        assert_eq!(pending.documents.len(), pending.order.len(), "what is left is one in each document");
        assert!(pending.missing(DocumentId([1; 16])).is_none(), "the oldest went first");
        let weights: usize = pending.documents.values().map(|waiting| waiting.bytes).sum();
        assert_eq!(weights, pending.bytes);
        pending.expire(now + WAIT_MAX);
        assert!(!pending.order.is_empty());
        pending.expire(now + WAIT_MAX + Duration::from_secs(1));
        assert!(pending.order.is_empty() && pending.documents.is_empty() && pending.bytes == 0);
    }

    #[test]
    fn what_waited_is_taken_out_when_its_dependency_comes() {
        let now = Instant::now();
        let (limits, id) = (Limits::default(), DocumentId([1; 16]));
        let mut pending = Pending::default();
        for (arrival, dependency) in arrivals(3).iter().rev() {
            pending.park(id, arrival.clone(), &[*dependency], now, &limits);
        }
        let all = arrivals(3);
        assert_eq!(pending.missing(id), Some(vec![all[0].1]), "the others are here, waiting");
        for (arrival, dependency) in &all {
            let taken = pending.take_waiting(id, Some(*dependency));
            assert_eq!(taken.len(), 1);
            assert_eq!(taken[0].change.hash(), arrival.change.hash());
        }
        assert!(pending.missing(id).is_none() && pending.bytes == 0);
    }
}
