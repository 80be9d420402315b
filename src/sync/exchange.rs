//! One side of an Automerge per-document sync, answered from the change graph.
//!
//! The other side is a node like this one or any Automerge document: the messages are automerge's own. What
//! [`automerge::sync::State`] decides with a document at hand, [`Exchange`] decides with a [`ChangeGraph`]: which
//! changes the peer lacks by its Bloom filter, what both are known to share, what to ask for by name. The document is
//! never built, so answering costs no more when it is large.
//!
//! Three things differ from automerge, and none shows on the wire:
//! * Receiving has two steps, because changes count only once they are logged: [`Exchange::receive`] hands out the
//!   chunks, [`Exchange::settle`] says that they were logged or wait. Between the two nothing is sent.
//! * A message has a budget. What does not fit follows in the next ones, each answering the peer's reply.
//! * Who has nothing is sent the newest snapshot, if there is one and he reads it, and the changes behind it. Everything
//!   else is sent as changes.
//!
//! ```text
//! loop { receive(message) -> chunks -> (log them) -> settle; generate() -> message }
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use automerge::sync::{BloomFilter, Have, Message, MessageFlags, MessageVersion};

use super::composed::{Chunks, Composed, State};
use super::gate::{BLOOM_ENTRIES_MAX, Chunk, GateError, SyncMessage, guarded, read_message};
use crate::document::{ChangeGraph, Index};
use crate::id::{ChangeHash, Heads, Lsn};
use crate::limits::Limits;

/// Why an exchange cannot go on. Always the peer's doing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExchangeError {
    /// The message is not one we may use.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// A message came before the changes of the one before were logged.
    #[error("a sync message came while the one before was still being taken")]
    Unsettled,
}

/// Why no message could be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError<E> {
    /// The peer's filter made automerge panic.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// A change could not be read.
    #[error("reading a change to send")]
    Read(#[source] E),
}

/// What a message brought.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use]
pub struct Received {
    /// The chunks, not verified; none when this side is read-only. [`Exchange::settle`] must follow when there is one.
    pub chunks: Vec<Chunk>,
}

/// A change that came by an exchange: its hash and what it depends on.
pub type Arrival = (ChangeHash, Vec<ChangeHash>);

/// One side of one document's sync with one peer.
///
/// Methods: [`receive`](Self::receive) and [`settle`](Self::settle) for what happened, [`generate`](Self::generate)
/// for what to send, [`converged`](Self::converged) for when to stop. All take the document's graph, always the same
/// one, grown in between.
///
/// Invariant: `shared` names only changes that both sides are known to have.
#[derive(Debug, Default)]
pub struct Exchange {
    /// Of which generation the graph was that all below is about.
    generation: Lsn,
    /// The newest changes both are known to have.
    shared: Heads,
    /// The heads our last message stated.
    last_sent: Heads,
    /// The peer's last message, without its changes.
    their: Option<Their>,
    /// A message whose chunks are being logged.
    unsettled: Option<Their>,
    /// Changes sent that the peer's heads do not cover yet.
    sent: BTreeSet<ChangeHash>,
    /// The heads of a snapshot that was sent. What they cover counts as sent until the peer says what it has.
    sent_whole: Heads,
    /// Changes the peer is known to lack and that did not fit the messages so far.
    backlog: VecDeque<Index>,
    /// Changes that came and wait for a dependency, with what they depend on.
    waiting: BTreeMap<ChangeHash, Vec<ChangeHash>>,
    /// Changes that the peer has and may not bring, with what they depend on. As far as this exchange is concerned, it
    /// does not have them.
    denied: BTreeMap<ChangeHash, Vec<ChangeHash>>,
    in_flight: bool,
    have_responded: bool,
    /// The answer to the peer's last message was that we do not know what it takes for shared.
    reset_sent: bool,
    /// The peer must send again what it sent before.
    needs_reset: bool,
    peer_has_v2: bool,
    peer_has_reset: bool,
    peer_read_only: bool,
    read_only: bool,
}

#[derive(Debug)]
struct Their {
    heads: Heads,
    need: Vec<ChangeHash>,
    have: Vec<Have>,
}

/// Steps spent to keep `shared` short; when they run out it is longer than it must be, which is harmless.
const SHARED_STEPS_MAX: usize = 4096;
/// The longest snapshot that is sent in a message. Clients read 100 MiB, and less where they are told to.
const WHOLE_BYTES_MAX: usize = 48 << 20;

impl Exchange {
    /// Begins an exchange with a peer of which nothing is known.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins an exchange that sends but takes nothing, and tells the peer so.
    #[must_use]
    pub fn read_only() -> Self {
        Self { read_only: true, ..Self::default() }
    }

    /// Takes a message from the peer.
    ///
    /// # Errors
    /// [`ExchangeError`] when the peer broke the protocol; the exchange is over.
    pub fn receive(&mut self, graph: &ChangeGraph, message: &[u8]) -> Result<Received, ExchangeError> {
        if self.unsettled.is_some() {
            return Err(ExchangeError::Unsettled);
        }
        self.follow_generation(graph);
        let SyncMessage { heads, need, have, chunks, flags } = read_message(message)?;
        self.forget_made(graph);
        self.in_flight = false;
        self.reset_sent = false;
        if let Some(flags) = flags {
            // The flags came with the second version of the protocol.
            self.peer_has_v2 = true;
            self.peer_has_reset = flags.contains(MessageFlags::SUPPORTS_SYNC_RESET);
            self.peer_read_only = flags.contains(MessageFlags::READ_ONLY);
            if flags.contains(MessageFlags::SYNC_RESET) {
                self.forget_sent();
            }
        }
        let chunks = if self.read_only { Vec::new() } else { chunks };
        let their = Their { heads: Heads::new(heads), need, have };
        self.unsettled = Some(their);
        if chunks.is_empty() {
            self.settle(graph, Vec::new());
        }
        Ok(Received { chunks })
    }

    /// Says that what the last message brought is in the graph now, or waits for dependencies.
    ///
    /// `arrived` names the changes it brought, as far as they are known by name: those of a document chunk need not be.
    pub fn settle(&mut self, graph: &ChangeGraph, arrived: Vec<Arrival>) {
        // Heads that equal ours are answered all the same, once: Automerge would stay silent here, and the peer could not
        // tell that both agree.
        let Some(their) = self.unsettled.take() else {
            return;
        };
        self.follow_generation(graph);
        let mut shared: Vec<ChangeHash> = self.shared.as_slice().to_vec();
        for (hash, deps) in arrived {
            if graph.contains(&hash) {
                shared.push(hash);
            } else if !self.denied.contains_key(&hash) {
                self.waiting.insert(hash, deps);
            }
        }
        self.forget_made(graph);
        self.deny_waiting();
        let their = Their { heads: self.without_denied(graph, their.heads), ..their };
        self.forget_hopeless(graph);
        self.trim_sent(graph, &their.heads);
        if !their.heads.is_empty() {
            // It has something: what it lacks of the snapshot its filter will say.
            self.sent_whole = Heads::default();
        }
        if graph.contains_all(their.heads.as_slice()) {
            self.shared = their.heads.clone();
            if their.heads.is_empty() {
                // The peer lost everything, or never had any.
                self.last_sent = Heads::default();
                self.forget_sent();
            }
        } else {
            shared.extend_from_slice(their.heads.as_slice());
            self.shared = graph.newest_of(shared, SHARED_STEPS_MAX);
        }
        self.their = Some(their);
    }

    /// Makes the next message, if there is one to send now.
    ///
    /// It holds changes of about `budget_bytes`, at least one if the peer lacks any. A snapshot comes on top.
    ///
    /// # Errors
    /// [`GenerateError`]; the exchange is over.
    ///
    /// # Cost
    /// A walk over what the two do not share, and a Bloom test for each of those changes.
    pub fn generate<C: Chunks>(
        &mut self,
        graph: &ChangeGraph,
        budget_bytes: usize,
        source: &mut C,
    ) -> Result<Option<Vec<u8>>, GenerateError<C::Error>> {
        if self.unsettled.is_some() {
            return Ok(None);
        }
        self.follow_generation(graph);
        let our_heads = graph.heads();
        let heads_unchanged = self.last_sent == our_heads;
        if heads_unchanged && self.have_responded && self.in_flight {
            return Ok(None);
        }
        if self.their.as_ref().is_some_and(|their| takes_unknown_for_shared(graph, their)) {
            return if self.reset_sent { Ok(None) } else { Ok(Some(self.reset_message(&our_heads)?)) };
        }
        let may_be_quiet = heads_unchanged && self.have_responded;
        let state = if C::REMEMBERS { self.state(&our_heads, may_be_quiet, budget_bytes) } else { None };
        if let Some(composed) = state.as_ref().and_then(|state| source.composed(state)) {
            self.note_sent(our_heads, &composed);
            return Ok(Some(composed.message.clone()));
        }
        let need = if self.read_only { Vec::new() } else { self.need(graph) };
        let whole = self.take_whole(graph, source)?;
        let (hashes, mut chunks) = self.take_changes(graph, budget_bytes, source)?;
        chunks.splice(0..0, whole);
        let heads_equal = self.their.as_ref().is_some_and(|their| their.heads == our_heads);
        let nothing_left = (heads_equal || self.read_only) && chunks.is_empty() && !self.needs_reset;
        if may_be_quiet && nothing_left {
            return Ok(None);
        }
        let have = self.have(graph, &need)?;
        let (heads, flags) = self.heads_and_flags(&our_heads);
        let version = if self.peer_has_v2 { MessageVersion::V2 } else { MessageVersion::V1 };
        let changes = match version {
            MessageVersion::V2 if !chunks.is_empty() => chunks.concat().into(),
            _ => chunks.into(),
        };
        let (heads, need) = (to_automerge(heads.as_slice()), to_automerge(&need));
        let message = Message { heads, need, have, changes, flags: Some(flags), version };
        let message = guarded(|| message.encode())?;
        let composed = Arc::new(Composed { message, hashes, whole: self.sent_whole.clone() });
        self.note_sent(our_heads, &composed);
        if let Some(state) = state.filter(|_| self.backlog.is_empty()) {
            source.keep(state, composed.clone());
        }
        Ok(Some(composed.message.clone()))
    }

    /// Takes note that a message goes out.
    fn note_sent(&mut self, our_heads: Heads, composed: &Composed) {
        self.have_responded = true;
        self.in_flight = true;
        self.last_sent = our_heads;
        self.sent.extend(&composed.hashes);
        self.sent_whole = composed.whole.clone();
    }

    /// What the next message follows from; `None` when it is this exchange's alone.
    fn state(&self, our_heads: &Heads, may_be_quiet: bool, budget_bytes: usize) -> Option<State> {
        let their = self.their.as_ref()?;
        if self.read_only || self.needs_reset || !self.waiting.is_empty() || !self.backlog.is_empty() {
            return None;
        }
        let mut hasher = blake3::Hasher::new();
        let flags = [self.peer_has_v2, self.peer_has_reset, self.peer_read_only, may_be_quiet].map(u8::from);
        hasher.update(&flags);
        hasher.update(&self.generation.0.to_le_bytes());
        hasher.update(&(budget_bytes as u64).to_le_bytes());
        let mut list = |hashes: &mut dyn ExactSizeIterator<Item = &[u8; 32]>| {
            hasher.update(&(hashes.len() as u64).to_le_bytes());
            hashes.for_each(|hash| {
                hasher.update(hash);
            });
        };
        for heads in [our_heads, &their.heads, &self.shared, &self.sent_whole] {
            list(&mut heads.as_slice().iter().map(|hash| &hash.0));
        }
        list(&mut their.need.iter().map(|hash| &hash.0));
        list(&mut self.sent.iter().map(|hash| &hash.0));
        for have in &their.have {
            list(&mut have.last_sync.iter().map(|hash| &hash.0));
        }
        // Beside the heads we have, what is in the graph follows from its generation; of a filter, all is in its bytes.
        hasher.update(&(their.have.len() as u64).to_le_bytes());
        for have in &their.have {
            let bloom = have.bloom.to_bytes();
            hasher.update(&(bloom.len() as u64).to_le_bytes());
            hasher.update(&bloom);
        }
        Some(State(*hasher.finalize().as_bytes()))
    }

    /// Whether both have said the same heads, and they are ours now: nothing is left to say.
    #[must_use]
    pub fn converged(&self, graph: &ChangeGraph) -> bool {
        let heads = graph.heads();
        self.unsettled.is_none()
            && self.have_responded
            && self.last_sent == heads
            && self.their.as_ref().is_some_and(|their| their.heads == heads)
    }

    /// The changes that were sent and that the peer has not said to have: those of the last message among them.
    pub(super) fn under_way(&self) -> &BTreeSet<ChangeHash> {
        &self.sent
    }

    /// The peer's heads, as it last said.
    #[must_use]
    pub fn their_heads(&self) -> Option<&Heads> {
        self.their.as_ref().map(|their| &their.heads)
    }

    /// Takes note that changes which the peer sent were dropped: it is told to forget that it sent them.
    pub fn ask_again(&mut self) {
        self.needs_reset = true;
    }

    /// Whether our last message is one that the peer will answer, and has not yet.
    ///
    /// A peer that has said the heads we state has nothing to answer, nor has one that is read-only.
    #[must_use]
    pub fn awaits_answer(&self) -> bool {
        let answers = !self.peer_read_only && self.their.as_ref().is_none_or(|their| their.heads != self.last_sent);
        self.in_flight && answers
    }

    /// Whether chunks were handed out and [`settle`](Self::settle) was not called yet.
    #[must_use]
    pub fn is_unsettled(&self) -> bool {
        self.unsettled.is_some()
    }

    /// Begins anew when changes of the document were withdrawn: what was sent or is shared may be among them, and
    /// numbers of the graph mean something else now. The peer is told to forget what it sent.
    fn follow_generation(&mut self, graph: &ChangeGraph) {
        if self.generation == graph.generation() {
            return;
        }
        // The first look at a graph is no new generation.
        let begun = self.have_responded || self.their.is_some();
        self.generation = graph.generation();
        self.shared = Heads::default();
        self.last_sent = Heads::default();
        self.forget_sent();
        self.waiting.clear();
        self.in_flight = false;
        self.needs_reset |= begun;
    }

    /// What we must have to reach the peer's heads and what nothing that waits here will bring.
    fn need(&self, graph: &ChangeGraph) -> Vec<ChangeHash> {
        let mut need = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut left: Vec<ChangeHash> = self.their.iter().flat_map(|their| their.heads.as_slice()).copied().collect();
        while let Some(hash) = left.pop() {
            if graph.contains(&hash) || !seen.insert(hash) {
                continue;
            }
            match self.waiting.get(&hash) {
                Some(deps) => left.extend(deps),
                None => {
                    need.insert(hash);
                }
            }
        }
        need.into_iter().collect()
    }

    /// A summary of what we have beyond what is shared, unless the peer should first send what we need.
    fn have(&self, graph: &ChangeGraph, need: &[ChangeHash]) -> Result<Vec<Have>, GateError> {
        let announced = |hash: &ChangeHash| {
            self.their.as_ref().is_some_and(|their| their.heads.as_slice().binary_search(hash).is_ok())
        };
        if !need.iter().all(announced) {
            return Ok(Vec::new());
        }
        // Who was sent a snapshot has that for sure once it reads this, and all the rest if none is left to send. A filter of
        // it would cost a walk over everything, and without one, or this, it would send the whole document back.
        let our_heads = graph.heads();
        let known = match (self.sent_whole.is_empty(), self.backlog.is_empty()) {
            (true, _) => &self.shared,
            (false, true) => &our_heads,
            (false, false) => &self.sent_whole,
        };
        let beyond = graph.following(known.as_slice());
        let last_sync = to_automerge(known.as_slice());
        if beyond.len() as u64 > BLOOM_ENTRIES_MAX {
            // An empty filter: the peer sends everything beyond what is shared, and what we have we drop.
            return Ok(vec![Have { last_sync, bloom: BloomFilter::default() }]);
        }
        let hashes = beyond.into_iter().map(|index| automerge::ChangeHash(graph.hash_at(index).0));
        let bloom = guarded(|| BloomFilter::from_hashes(hashes.collect::<Vec<_>>().iter()))?;
        Ok(vec![Have { last_sync, bloom }])
    }

    /// Whether the next message would begin with a snapshot, if there is one: the peer has nothing, and reads it.
    #[must_use]
    pub fn takes_whole(&self, graph: &ChangeGraph) -> bool {
        let has_nothing = self.their.as_ref().is_some_and(|their| their.heads.is_empty() && !their.have.is_empty());
        let is_new = self.sent.is_empty() && self.sent_whole.is_empty() && self.backlog.is_empty();
        has_nothing && is_new && self.peer_has_v2 && !self.peer_read_only && !graph.is_empty()
    }

    /// The document's snapshot, for a peer that has nothing and would be sent much.
    fn take_whole<C: Chunks>(
        &mut self,
        graph: &ChangeGraph,
        source: &mut C,
    ) -> Result<Option<Vec<u8>>, GenerateError<C::Error>> {
        if !self.takes_whole(graph) {
            return Ok(None);
        }
        let Some((heads, bytes)) = source.snapshot().map_err(GenerateError::Read)? else { return Ok(None) };
        // One of changes that were withdrawn since, or that the graph at hand has not heard of, is of no use.
        if heads.is_empty() || bytes.len() > WHOLE_BYTES_MAX || !graph.contains_all(heads.as_slice()) {
            return Ok(None);
        }
        self.sent_whole = heads;
        Ok(Some(bytes))
    }

    fn forget_sent(&mut self) {
        self.sent.clear();
        self.sent_whole = Heads::default();
        self.backlog.clear();
    }

    /// The next changes the peer lacks, up to the budget.
    fn take_changes<C: Chunks>(
        &mut self,
        graph: &ChangeGraph,
        budget_bytes: usize,
        source: &mut C,
    ) -> Result<(BTreeSet<ChangeHash>, Vec<Vec<u8>>), GenerateError<C::Error>> {
        let (mut hashes, mut chunks, mut bytes) = (BTreeSet::new(), Vec::new(), 0);
        let wants_some = |their: &&Their| !self.peer_read_only && their.heads != graph.heads();
        let Some(their) = self.their.as_ref().filter(wants_some) else {
            self.backlog.clear();
            return Ok((hashes, chunks));
        };
        if self.backlog.is_empty() {
            self.backlog = lacking(graph, &their.have, &self.sent_whole)?.into();
        }
        let asked: BTreeSet<Index> = their.need.iter().filter_map(|hash| graph.index_of(hash)).collect();
        let mut asked: VecDeque<Index> = asked.into_iter().collect();
        while bytes < budget_bytes
            && let Some(index) = asked.pop_front().or_else(|| self.backlog.pop_front())
        {
            let hash = graph.hash_at(index);
            if self.sent.contains(&hash) || hashes.contains(&hash) {
                continue;
            }
            let chunk = source.change(graph.lsn_at(index)).map_err(GenerateError::Read)?;
            if !chunks.is_empty() && bytes + chunk.len() > budget_bytes {
                self.backlog.push_front(index);
                break;
            }
            bytes += chunk.len();
            hashes.insert(hash);
            chunks.push(chunk);
        }
        Ok((hashes, chunks))
    }

    /// Says that we do not know what the peer takes for shared, and that it should begin anew.
    fn reset_message(&mut self, our_heads: &Heads) -> Result<Vec<u8>, GateError> {
        self.reset_sent = true;
        let mut flags = MessageFlags::new();
        flags.set(MessageFlags::SUPPORTS_SYNC_RESET);
        let message = Message {
            heads: to_automerge(our_heads.as_slice()),
            need: Vec::new(),
            have: vec![Have::default()],
            changes: Vec::<Vec<u8>>::new().into(),
            flags: Some(flags),
            version: MessageVersion::V1,
        };
        guarded(|| message.encode())
    }

    /// The heads to state, and the flags beside them.
    fn heads_and_flags(&mut self, our_heads: &Heads) -> (Heads, MessageFlags) {
        let mut flags = MessageFlags::new();
        flags.set(MessageFlags::SUPPORTS_SYNC_RESET);
        if self.read_only {
            flags.set(MessageFlags::READ_ONLY);
        }
        if !std::mem::take(&mut self.needs_reset) {
            return (our_heads.clone(), flags);
        }
        if self.peer_has_reset {
            flags.set(MessageFlags::SYNC_RESET);
            return (our_heads.clone(), flags);
        }
        // A peer that does not know the flag forgets what it sent when we seem to have nothing.
        (Heads::default(), flags)
    }

    /// Drops what waits in vain: its dependencies are there and it is not, so whoever kept it for us let it go.
    ///
    /// The peer takes it for sent and must be told to forget that.
    fn forget_hopeless(&mut self, graph: &ChangeGraph) {
        self.waiting.retain(|hash, _| !graph.contains(hash));
        let before = self.waiting.len();
        self.waiting.retain(|_, deps| !graph.contains_all(deps));
        if self.waiting.len() > Limits::DEFAULT.pending_changes_per_document {
            self.waiting.clear();
        }
        self.needs_reset |= self.waiting.len() < before;
    }

    fn trim_sent(&mut self, graph: &ChangeGraph, their_heads: &Heads) {
        let mut indices: BTreeSet<Index> = self.sent.iter().filter_map(|hash| graph.index_of(hash)).collect();
        graph.remove_ancestors(their_heads.as_slice(), &mut indices);
        self.sent = indices.into_iter().map(|index| graph.hash_at(index)).collect();
    }
}

/// Whether the peer's message builds on changes we do not have.
fn takes_unknown_for_shared(graph: &ChangeGraph, their: &Their) -> bool {
    let last_sync = their.have.first().map_or(&[][..], |have| &have.last_sync);
    last_sync.iter().any(|hash| !graph.contains(&ChangeHash(hash.0)))
}

/// What the peer lacks by its filters beside what was sent: what they do not hold, and all that follows it.
fn lacking(graph: &ChangeGraph, have: &[Have], sent: &Heads) -> Result<Vec<Index>, GateError> {
    if have.is_empty() {
        return Ok(Vec::new());
    }
    let last_sync = have.iter().flat_map(|have| &have.last_sync).map(|hash| ChangeHash(hash.0));
    let known: Vec<ChangeHash> = last_sync.chain(sent.as_slice().iter().copied()).collect();
    let beyond = graph.following(&known);
    guarded(|| {
        let mut lacking = BTreeSet::new();
        for index in beyond {
            let hash = automerge::ChangeHash(graph.hash_at(index).0);
            let held = have.iter().any(|have| have.bloom.contains_hash(&hash));
            if !held || graph.deps_at(index).any(|dep| lacking.contains(&dep)) {
                lacking.insert(index);
            }
        }
        lacking.into_iter().collect()
    })
}

fn to_automerge(hashes: &[ChangeHash]) -> Vec<automerge::ChangeHash> {
    hashes.iter().map(|hash| automerge::ChangeHash(hash.0)).collect()
}

mod denied;
#[cfg(test)]
mod tests;
