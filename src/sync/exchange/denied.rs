//! Changes that a peer has and may not make: it is taken for not having them, so that both come to rest without.

use std::collections::{BTreeMap, BTreeSet};

use super::{Arrival, Exchange, SHARED_STEPS_MAX};
use crate::document::ChangeGraph;
use crate::id::{ChangeHash, Heads};

impl Exchange {
    /// Takes note of a change that the peer brought and may not make. From the next [`Self::settle`] on, it counts as one
    /// that the peer does not have, and is not asked for.
    pub fn deny(&mut self, (hash, deps): Arrival) {
        self.denied.insert(hash, deps);
    }

    /// Whether the peer may not bring a change, or one that it stands on.
    #[must_use]
    pub fn is_denied(&self, hash: &ChangeHash, deps: &[ChangeHash]) -> bool {
        !self.denied.is_empty()
            && (self.denied.contains_key(hash) || deps.iter().any(|dep| self.denied.contains_key(dep)))
    }

    /// How many changes the peer may not bring.
    #[must_use]
    pub fn denied(&self) -> usize {
        self.denied.len()
    }

    /// Forgets what the peer may not bring, and asks for it: it may be allowed now. `false` when there is nothing.
    pub fn ask_for_denied(&mut self) -> bool {
        let some = !std::mem::take(&mut self.denied).is_empty();
        self.needs_reset |= some;
        if some {
            self.have_responded = false;
        }
        some
    }

    /// What the peer might not bring may have come from somebody who may. Then what stood on it is asked for again.
    pub(super) fn forget_made(&mut self, graph: &ChangeGraph) {
        if self.denied.keys().any(|hash| graph.contains(hash)) {
            self.ask_for_denied();
        }
    }

    /// Counts what waits for a change that the peer may not bring as such a change too: it would wait for ever, and what
    /// it waits for would be asked for with every message.
    pub(super) fn deny_waiting(&mut self) {
        if self.denied.is_empty() || self.waiting.is_empty() {
            return;
        }
        let mut waiting_for: BTreeMap<ChangeHash, Vec<ChangeHash>> = BTreeMap::new();
        for (hash, deps) in &self.waiting {
            for dep in deps {
                waiting_for.entry(*dep).or_default().push(*hash);
            }
        }
        let mut left: Vec<ChangeHash> =
            waiting_for.keys().filter(|dep| self.denied.contains_key(dep)).copied().collect();
        while let Some(dep) = left.pop() {
            for hash in waiting_for.remove(&dep).unwrap_or_default() {
                if let Some(deps) = self.waiting.remove(&hash) {
                    self.denied.insert(hash, deps);
                    left.push(hash);
                }
            }
        }
    }

    /// A peer's heads as they are without what it may not bring.
    pub(super) fn without_denied(&self, graph: &ChangeGraph, heads: Heads) -> Heads {
        let is_denied = |hash: &ChangeHash| self.denied.contains_key(hash) && !graph.contains(hash);
        if !heads.as_slice().iter().any(is_denied) {
            return heads;
        }
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        let (mut seen, mut left) = (BTreeSet::new(), heads.as_slice().to_vec());
        while let Some(hash) = left.pop() {
            if !seen.insert(hash) {
                continue;
            }
            match self.denied.get(&hash) {
                _ if graph.contains(&hash) => known.push(hash),
                Some(deps) => left.extend(deps),
                None => unknown.push(hash),
            }
        }
        let newest = graph.newest_of(known, SHARED_STEPS_MAX);
        Heads::new(newest.as_slice().iter().copied().chain(unknown).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use automerge::sync::{Message, MessageVersion, State, SyncDoc as _};
    use automerge::transaction::Transactable as _;
    use automerge::{ActorId, AutoCommit, Automerge};
    use proptest::prelude::*;

    use super::*;
    use crate::document::Change;
    use crate::sync::exchange::tests::{Docless, ROUNDS_MAX, heads_of, histories, script};
    use crate::sync::gate::ChunkKind;

    /// A side that takes no change of some authors, nor what stands on one.
    struct Strict {
        docless: Docless,
        exchange: Exchange,
        denies: HashSet<usize>,
    }

    impl Strict {
        fn receive(&mut self, message: &[u8]) {
            let received = self.exchange.receive(&self.docless.graph, message).unwrap();
            let mut arrived = Vec::new();
            let whole = |bytes: &[u8]| Automerge::load(bytes).unwrap().get_changes(&[]);
            let changes = received.chunks.into_iter().flat_map(|chunk| match chunk.kind {
                ChunkKind::Document => whole(&chunk.bytes).into_iter().map(Change::from_automerge).collect(),
                _ => vec![Change::parse(chunk.bytes)],
            });
            for change in changes.map(Result::unwrap) {
                let arrival = (change.hash(), change.deps().to_vec());
                let is_denied = self.denies.contains(&usize::from(change.actor().as_bytes()[0] % 2))
                    || self.exchange.is_denied(&change.hash(), change.deps());
                if is_denied && !self.docless.graph.contains(&change.hash()) {
                    self.exchange.deny(arrival.clone());
                } else {
                    self.docless.admit(change);
                }
                arrived.push(arrival);
            }
            self.exchange.settle(&self.docless.graph, arrived);
        }

        /// Talks until neither has anything to say; how many messages that took.
        fn talk(&mut self, peer: &mut AutoCommit, state: &mut State) -> usize {
            for round in 0..ROUNDS_MAX {
                let mut quiet = true;
                if let Some(message) = peer.sync().generate_sync_message(state) {
                    quiet = false;
                    self.receive(&message.encode());
                }
                if let Some(message) = self.docless.generate(&mut self.exchange, 300) {
                    quiet = false;
                    peer.sync().receive_sync_message(state, Message::decode(&message).unwrap()).unwrap();
                }
                if quiet {
                    return round;
                }
            }
            panic!("no end after {ROUNDS_MAX} rounds");
        }
    }

    /// As it is when a Bloom filter took the first of two changes for one that we have: the second comes before it.
    #[test]
    fn what_waits_for_a_change_that_is_denied_is_not_asked_for_again() {
        let mut theirs = AutoCommit::new().with_actor(ActorId::from([1_u8]));
        theirs.put(automerge::ROOT, "first", 1).unwrap();
        theirs.commit();
        theirs.set_actor(ActorId::from([2_u8]));
        theirs.put(automerge::ROOT, "second", 2).unwrap();
        theirs.commit();
        let [first, second]: [automerge::Change; 2] = theirs.get_changes(&[]).try_into().unwrap();
        let heads = theirs.get_heads();
        let says = |changes: Vec<Vec<u8>>| Message {
            heads: heads.clone(),
            need: Vec::new(),
            have: Vec::new(),
            changes: changes.into(),
            flags: None,
            version: MessageVersion::V1,
        };
        let mut strict = Strict { docless: Docless::default(), exchange: Exchange::new(), denies: HashSet::from([1]) };
        let mut asks_for = |changes: &[&automerge::Change]| {
            let chunks = changes.iter().map(|change| change.raw_bytes().to_vec()).collect();
            strict.receive(&says(chunks).encode());
            let message = strict.docless.generate(&mut strict.exchange, 300);
            message.map(|message| Message::decode(&message).unwrap().need)
        };
        assert_eq!(asks_for(&[&second]), Some(vec![first.hash()]));
        asks_for(&[&first]);
        assert_eq!(asks_for(&[]).unwrap_or_default(), []);
        assert_eq!(asks_for(&[]), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]

        /// A peer whose changes are denied in part reads everything, and its denied ones come once they are allowed.
        #[test]
        fn what_is_denied_comes_to_rest_and_arrives_once_it_is_allowed(script in script(), denies in 0_usize..2) {
            let [mut ours, mut theirs] = histories(&script);
            let docless = Docless::of(&mut ours);
            let mut strict = Strict { docless, exchange: Exchange::new(), denies: HashSet::from([denies]) };
            let mut state = State::new();
            strict.talk(&mut theirs, &mut state);
            let has = |peer: &mut AutoCommit, hash: &ChangeHash| peer.get_change_by_hash(&automerge::ChangeHash(hash.0)).is_some();
            prop_assert!(strict.docless.graph.heads().as_slice().iter().all(|head| has(&mut theirs, head)));
            for hash in strict.exchange.denied.keys() {
                prop_assert!(!strict.docless.graph.contains(hash));
            }
            // What comes to be meanwhile arrives, either way.
            ours.put(automerge::ROOT, "later", "ours").unwrap();
            ours.commit();
            let change = ours.get_last_local_change().unwrap().clone();
            let change = Change::from_automerge(change).unwrap();
            let hash = change.hash();
            strict.docless.admit(change);
            strict.talk(&mut theirs, &mut state);
            prop_assert!(has(&mut theirs, &hash));
            // And then it is allowed.
            strict.denies.clear();
            strict.exchange.ask_for_denied();
            strict.talk(&mut theirs, &mut state);
            prop_assert_eq!(strict.docless.graph.heads(), heads_of(&theirs));
        }
    }
}
