//! Changes that wait for something they depend on, within bounds.
//!
//! Nothing in here is durable or acknowledged. What is dropped is asked for again by whoever asks for the document.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::document::Change;
use crate::history::Origin;
use crate::id::{ChangeHash, DocumentId, NodeId};
use crate::limits::Limits;

/// How long a change waits.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// A change, and who brought it.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    pub(super) change: Change,
    pub(super) origin: Origin,
    pub(super) via: Option<NodeId>,
    /// An edit of this process's own view.
    pub(super) made_here: bool,
}

/// The waiting changes of all documents.
///
/// Invariant: `bytes` is the sum of all waiting chunks, at most `Limits::pending_bytes`.
#[derive(Debug, Default)]
pub(super) struct Pending {
    documents: HashMap<DocumentId, Waiting>,
    bytes: usize,
    /// Documents of which something was dropped in the step under way.
    dropped: HashSet<DocumentId>,
}

#[derive(Debug, Default)]
struct Waiting {
    changes: HashMap<ChangeHash, Parked>,
    /// Dependency -> those that wait for it. `None` stands for the document's creation.
    by_dependency: HashMap<Option<ChangeHash>, HashSet<ChangeHash>>,
    /// Order of arrival, for dropping the oldest.
    order: BTreeMap<u64, ChangeHash>,
    arrivals: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Parked {
    arrival: Arrival,
    waits_for: Vec<Option<ChangeHash>>,
    number: u64,
    since: Instant,
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

    /// Parks a change until one of `missing` arrives; with none missing, until the document is created.
    pub(super) fn park(
        &mut self,
        document: DocumentId,
        arrival: Arrival,
        missing: &[ChangeHash],
        now: Instant,
        limits: &Limits,
    ) {
        let size = arrival.change.bytes().len();
        if size > limits.pending_bytes_per_document {
            self.dropped.insert(document);
            return;
        }
        let waiting = self.documents.entry(document).or_default();
        let hash = arrival.change.hash();
        if waiting.changes.contains_key(&hash) {
            return;
        }
        while waiting.changes.len() >= limits.pending_changes_per_document
            || waiting.bytes + size > limits.pending_bytes_per_document
        {
            let Some(dropped) = waiting.drop_oldest() else { break };
            self.bytes -= dropped;
            self.dropped.insert(document);
        }
        waiting.insert(hash, arrival, missing, now);
        self.bytes += size;
        self.shrink(limits.pending_bytes, document);
    }

    /// Drops whole documents, never `keep`, until the total is within `bytes_max`.
    fn shrink(&mut self, bytes_max: usize, keep: DocumentId) {
        while self.bytes > bytes_max {
            let other =
                self.documents.iter().filter(|(id, _)| **id != keep).max_by_key(|(id, waiting)| (waiting.bytes, **id));
            let id = other.map_or(keep, |(id, _)| *id);
            let Some(dropped) = self.documents.remove(&id) else { break };
            self.bytes -= dropped.bytes;
            self.dropped.insert(id);
        }
    }

    /// Takes out what waited for `dependency`, or for the document's creation when it is `None`.
    pub(super) fn take_waiting(&mut self, document: DocumentId, dependency: Option<ChangeHash>) -> Vec<Arrival> {
        let Some(waiting) = self.documents.get_mut(&document) else { return Vec::new() };
        if mutant!(WaitingForgotten) && dependency.is_some() {
            return Vec::new();
        }
        let mut hashes: Vec<ChangeHash> =
            waiting.by_dependency.get(&dependency).map(|set| set.iter().copied().collect()).unwrap_or_default();
        // As they came: what is logged follows from the inputs alone.
        hashes.sort_unstable_by_key(|hash| waiting.changes.get(hash).map(|parked| parked.number));
        let mut taken = Vec::with_capacity(hashes.len());
        for hash in hashes {
            if let Some(arrival) = waiting.remove(&hash) {
                self.bytes -= arrival.change.bytes().len();
                taken.push(arrival);
            }
        }
        if waiting.changes.is_empty() {
            self.documents.remove(&document);
        }
        taken
    }

    /// What a document's waiting changes wait for and nobody brought; `None` when nothing waits.
    pub(super) fn missing(&self, document: DocumentId) -> Option<Vec<ChangeHash>> {
        let waiting = self.documents.get(&document)?;
        let wanted = waiting.by_dependency.keys().flatten();
        Some(wanted.filter(|hash| !waiting.changes.contains_key(hash)).copied().collect())
    }

    /// Drops what has waited too long.
    pub(super) fn expire(&mut self, now: Instant) {
        for waiting in self.documents.values_mut() {
            while let Some(parked) = waiting.order.values().next().and_then(|hash| waiting.changes.get(hash))
                && now.saturating_duration_since(parked.since) > WAIT_MAX
            {
                let Some(dropped) = waiting.drop_oldest() else { break };
                self.bytes -= dropped;
            }
        }
        self.documents.retain(|_, waiting| !waiting.changes.is_empty());
    }
}

impl Waiting {
    fn insert(&mut self, hash: ChangeHash, arrival: Arrival, missing: &[ChangeHash], now: Instant) {
        let waits_for: Vec<Option<ChangeHash>> =
            if missing.is_empty() { vec![None] } else { missing.iter().copied().map(Some).collect() };
        for dependency in &waits_for {
            self.by_dependency.entry(*dependency).or_default().insert(hash);
        }
        self.arrivals += 1;
        self.order.insert(self.arrivals, hash);
        self.bytes += arrival.change.bytes().len();
        self.changes.insert(hash, Parked { arrival, waits_for, number: self.arrivals, since: now });
    }

    fn remove(&mut self, hash: &ChangeHash) -> Option<Arrival> {
        let parked = self.changes.remove(hash)?;
        self.order.remove(&parked.number);
        self.bytes -= parked.arrival.change.bytes().len();
        for dependency in &parked.waits_for {
            if let Some(set) = self.by_dependency.get_mut(dependency) {
                set.remove(hash);
                if set.is_empty() {
                    self.by_dependency.remove(dependency);
                }
            }
        }
        Some(parked.arrival)
    }

    /// Drops the oldest change; its size.
    fn drop_oldest(&mut self) -> Option<usize> {
        let hash = *self.order.values().next()?;
        self.remove(&hash).map(|arrival| arrival.change.bytes().len())
    }
}
