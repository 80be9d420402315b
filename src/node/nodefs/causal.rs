//! Putting a document's changes in an order in which each comes after what it depends on.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use crate::document::{Change, ChangeGraph};
use crate::id::ChangeHash;

/// Takes changes in any order and gives them back in one that the log takes.
pub(super) struct Order {
    /// What the log has of the document already.
    graph: Option<Arc<Mutex<ChangeGraph>>>,
    /// Changes that were given back, or that the log has.
    placed: HashSet<ChangeHash>,
    /// Changes that wait, under one of those that they wait for.
    waiting: HashMap<ChangeHash, Vec<Change>>,
    waiting_hashes: HashSet<ChangeHash>,
    waiting_bytes: usize,
    waiting_bytes_max: usize,
}

/// What became of a change.
#[derive(Debug)]
pub(super) enum Place {
    /// The log has it; these waited for it and may come now.
    Known(Vec<Change>),
    /// It was there before.
    Repeated,
    /// These may come now, in this order.
    Ready(Vec<Change>),
    /// It waits for another.
    Waits,
    /// Too much waits already: it is dropped.
    NoRoom,
}

impl Order {
    /// Begins with what the log has. At most so many bytes of changes wait.
    pub(super) fn new(graph: Option<Arc<Mutex<ChangeGraph>>>, waiting_bytes_max: usize) -> Self {
        Self {
            graph,
            placed: HashSet::new(),
            waiting: HashMap::new(),
            waiting_hashes: HashSet::new(),
            waiting_bytes: 0,
            waiting_bytes_max,
        }
    }

    /// Takes a change.
    pub(super) fn add(&mut self, change: Change) -> Place {
        let hash = change.hash();
        if self.placed.contains(&hash) || self.waiting_hashes.contains(&hash) {
            return Place::Repeated;
        }
        if self.is_logged(&hash) {
            return Place::Known(self.place(hash));
        }
        if let Some(missing) = self.missing(&change) {
            let bytes = change.bytes().len();
            if self.waiting_bytes + bytes > self.waiting_bytes_max {
                return Place::NoRoom;
            }
            self.waiting_bytes += bytes;
            self.waiting_hashes.insert(hash);
            self.waiting.entry(missing).or_default().push(change);
            return Place::Waits;
        }
        let mut ready = vec![change];
        ready.append(&mut self.place(hash));
        Place::Ready(ready)
    }

    /// The changes that still wait, and what each waits for.
    pub(super) fn into_waiting(self) -> impl Iterator<Item = (ChangeHash, ChangeHash)> {
        let pairs = |(missing, changes): (ChangeHash, Vec<Change>)| {
            changes.into_iter().map(move |change| (change.hash(), missing)).collect::<Vec<_>>()
        };
        self.waiting.into_iter().flat_map(pairs)
    }

    /// Notes that a change is there, and returns those that waited for nothing else, in order.
    fn place(&mut self, hash: ChangeHash) -> Vec<Change> {
        let mut ready: Vec<Change> = Vec::new();
        let mut next = Some(hash);
        // Whoever is released is placed in turn.
        for at in 0.. {
            let Some(hash) = next else { break };
            self.placed.insert(hash);
            for waiter in self.waiting.remove(&hash).into_iter().flatten() {
                match self.missing(&waiter) {
                    Some(missing) => self.waiting.entry(missing).or_default().push(waiter),
                    None => {
                        self.waiting_bytes -= waiter.bytes().len();
                        self.waiting_hashes.remove(&waiter.hash());
                        ready.push(waiter);
                    }
                }
            }
            next = ready.get(at).map(Change::hash);
        }
        ready
    }

    /// A change that this one depends on and that was not placed.
    fn missing(&self, change: &Change) -> Option<ChangeHash> {
        change.deps().iter().find(|dep| !self.placed.contains(dep) && !self.is_logged(dep)).copied()
    }

    fn is_logged(&self, hash: &ChangeHash) -> bool {
        let graph = self.graph.as_ref().map(|graph| graph.lock().unwrap_or_else(PoisonError::into_inner));
        graph.is_some_and(|graph| graph.contains(hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{EditOptions, View, ViewError};
    use crate::id::ActorId;

    fn changes(count: i64) -> Vec<Change> {
        let mut view = View::new();
        let actor = ActorId::new(&[7; 16]).unwrap();
        let made = (0..count).map(|n| {
            let options = EditOptions { actor: actor.clone(), time: 0, message: None };
            view.edit::<_, ViewError>(options, |edit| edit.put("n", n)).unwrap().1
        });
        made.map(Option::unwrap).collect()
    }

    #[test]
    fn changes_in_any_order_come_out_after_what_they_depend_on() {
        let made = changes(6);
        let hashes: Vec<ChangeHash> = made.iter().map(Change::hash).collect();
        for rotation in 0..6 {
            let mut order = Order::new(None, usize::MAX);
            let mut out = Vec::new();
            for n in (0..6).rev() {
                let change = made[(n + rotation) % 6].clone();
                if let Place::Ready(ready) = order.add(change.clone()) {
                    out.extend(ready.iter().map(Change::hash));
                }
                assert!(matches!(order.add(change), Place::Repeated));
            }
            assert_eq!(out, hashes, "turned by {rotation}");
            assert_eq!((order.waiting_bytes, order.waiting_hashes.len()), (0, 0));
        }
    }

    #[test]
    fn what_waits_is_bounded_and_named() {
        let made = changes(3);
        let mut order = Order::new(None, made[2].bytes().len());
        assert!(matches!(order.add(made[2].clone()), Place::Waits));
        assert!(matches!(order.add(made[1].clone()), Place::NoRoom));
        assert_eq!(order.into_waiting().collect::<Vec<_>>(), [(made[2].hash(), made[1].hash())]);
    }
}
