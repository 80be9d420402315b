//! The documents being exchanged with one peer, each on a stream of its own.
//!
//! An exchange ends when both sides finished their direction of the stream. A side finishes once both have said the
//! same heads, or when the other did; then nothing more is said, and what is edited later travels with the log.
//!
//! Both sides may begin to exchange one document at once. The exchange that the smaller node id began stays; each side
//! sees both begin and drops the other by itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, PoisonError};

use super::attest::{Attester, Verifier};
use super::authors::{Authors, Naming};
use super::exchange::{Exchange, GenerateError};
use super::gate::ChunkKind;
use super::guard::Proven;
use super::intake::{Intake, Mark};
use super::permits::Permits;
use super::session::{
    Channel, Denied, IncomingBody, IncomingRow, Opened, Outbox, Output, SessionError, Side, parse_change,
};
use super::wire::{self, Attestations, DocSync, Frame};
use super::{ExchangeError, GateError};
use crate::history::{HistoryError, Origin, Reader};
use crate::id::{DocumentId, Heads, NodeId};
use crate::limits::Limits;
use crate::log::record::Admission;

pub(super) struct Exchanges {
    node: NodeId,
    peer: NodeId,
    limits: Limits,
    running: BTreeMap<Opened, Running>,
    /// Documents whose exchange is ours to begin.
    queue: VecDeque<DocumentId>,
    ended: Vec<Ended>,
    /// Streams of the peer that we dropped and whose end we have not seen.
    dropped: BTreeSet<Opened>,
    opened: u64,
    assembling_bytes: usize,
    /// Who writes, where the peer brings what somebody wrote.
    principal: String,
    permits: Option<Arc<dyn Permits>>,
    /// What the word of a node on whose authors are is held against; none for a client, who has no say in that.
    verifier: Option<Arc<Verifier>>,
    /// The peer is a node that takes us for one: it is told whose authors are.
    pub(super) tells_authors: bool,
    /// Signs what it is told of them.
    attester: Option<Arc<dyn Attester>>,
}

struct Running {
    document: DocumentId,
    exchange: Exchange,
    /// The message that is coming in.
    incoming: Vec<u8>,
    incoming_lifecycle: Vec<Vec<u8>>,
    first_came: bool,
    /// The message that is going out, and how much of it is gone.
    outgoing: Option<(Vec<u8>, usize)>,
    first_went: bool,
    /// What has to go before it.
    ahead: Option<Naming>,
    /// Whose the authors of the message that is coming in are, as the peer says.
    authors: Authors,
    /// There may be something to say.
    ready: bool,
    finished_here: bool,
    finished_there: bool,
    /// Messages in a row that changed nothing.
    idle_messages: u32,
    state_seen: (usize, Option<Heads>),
}

/// An exchange that is over.
pub(super) struct Ended {
    pub(super) document: DocumentId,
    pub(super) converged: bool,
    /// The heads the peer said last, if it said any.
    pub(super) their_heads: Option<Heads>,
}

/// Lifecycle records one side may say: the winning creation and the winner, and room for a later protocol.
const LIFECYCLE_MAX: usize = 8;
/// Messages in a row that change nothing, after which an exchange is given up. A Bloom filter that hides a change
/// costs one or two.
const IDLE_MESSAGES_MAX: u32 = 32;
/// Changes of one document that a peer may bring and may not make: those that stand on others do not count as denials.
const DENIED_MAX: usize = 10_000;
/// How many times as many exchanges may wait for the peer's end of their streams as may be under way.
const ENDING_MAX: usize = 8;
/// What a message holds beside changes, at most: filters and hashes.
const MESSAGE_BYTES_BESIDE: usize = 6 << 20;

impl Exchanges {
    pub(super) fn new(
        node: NodeId,
        peer: NodeId,
        verifier: Option<Arc<Verifier>>,
        attester: Option<Arc<dyn Attester>>,
        limits: &Limits,
    ) -> Self {
        Self {
            node,
            peer,
            limits: limits.clone(),
            running: BTreeMap::new(),
            queue: VecDeque::new(),
            ended: Vec::new(),
            dropped: BTreeSet::new(),
            opened: 0,
            assembling_bytes: 0,
            principal: String::new(),
            permits: None,
            // Until it has said what it takes us for.
            tells_authors: verifier.is_some(),
            verifier,
            attester,
        }
    }

    /// Takes who the peer's user is.
    pub(super) fn prove(&mut self, proven: &Proven) {
        (self.principal, self.permits) = (proven.principal.clone(), proven.permits.clone());
    }

    /// Ends the exchanges of documents that the peer may not read.
    pub(super) fn drop_unreadable(&mut self, reader: &Reader, out: &mut Outbox) -> Result<(), SessionError> {
        let mut unreadable = Vec::new();
        for (opened, running) in &self.running {
            if !may_exchange(self.permits.as_deref(), running.document, reader)? {
                unreadable.push(*opened);
            }
        }
        unreadable.into_iter().for_each(|opened| self.drop_running(opened, out));
        Ok(())
    }

    /// Ends an exchange that is under way, whatever was said in it.
    fn drop_running(&mut self, opened: Opened, out: &mut Outbox) {
        let Some(running) = self.running.remove(&opened) else { return };
        self.assembling_bytes -= running.incoming.len();
        if opened.by == Side::Peer && !running.finished_there {
            self.dropped.insert(opened);
        }
        out.put(Output::Reset(Channel::Document(opened)));
        self.ended.push(Ended { document: running.document, converged: false, their_heads: None });
    }

    /// What is under way, for a simulation that finds it stuck.
    #[cfg(feature = "sim")]
    pub(super) fn describe(&self) -> String {
        let running = self.running.iter().map(|(opened, running)| {
            let ended = (running.finished_here, running.finished_there);
            (opened, running.document, ended, running.exchange.is_unsettled())
        });
        format!("exchanges {:?}, queued {:?}", running.collect::<Vec<_>>(), self.queue)
    }

    /// Whether a frame may be read from the channel: not while the message before is being logged.
    pub(super) fn accepts(&self, opened: Opened) -> bool {
        self.running.get(&opened).is_none_or(|running| !running.exchange.is_unsettled())
    }

    /// Whether the document is being exchanged, and we have not said our last word.
    pub(super) fn is_live(&self, document: DocumentId) -> bool {
        self.running.values().any(|running| running.document == document && !running.finished_here)
    }

    /// Begins to exchange the document, now or when others are done, unless that is under way.
    pub(super) fn request(&mut self, document: DocumentId) {
        if !self.is_live(document) && !self.queue.contains(&document) {
            self.queue.push_back(document);
        }
    }

    /// How many documents wait to be exchanged.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Takes note that the log grew.
    pub(super) fn wake(&mut self) {
        self.running.values_mut().for_each(|running| running.ready = true);
    }

    pub(super) fn take_ended(&mut self) -> Vec<Ended> {
        std::mem::take(&mut self.ended)
    }

    /// A document whose exchange waits for the peer.
    pub(super) fn waits_for_peer(&self) -> Option<DocumentId> {
        let waits = |running: &&Running| !running.finished_there && !running.exchange.is_unsettled();
        self.running.values().find(waits).map(|running| running.document)
    }

    /// Takes whose the authors of a document are that is being exchanged.
    pub(super) fn handle_authors(
        &mut self,
        opened: Opened,
        said: wire::Authors,
        reader: &Reader,
        out: &mut Outbox,
    ) -> Result<(), SessionError> {
        let is_new = !self.running.contains_key(&opened);
        if self.verifier.is_none() || is_new && !self.begin_theirs(opened, said.document, reader, out)? {
            return Ok(());
        }
        match self.running.get_mut(&opened) {
            Some(running) if running.document == said.document => {
                running.authors.take(said);
                Ok(())
            }
            Some(_) => Err(SessionError::UnexpectedFrame { frame: "Authors", why: "the stream is another document's" }),
            None => Ok(()),
        }
    }

    /// Takes who answers for the authors of a document that is being exchanged.
    pub(super) fn handle_attestations(&mut self, opened: Opened, said: &Attestations) {
        if self.verifier.is_some()
            && let Some(running) = self.running.get_mut(&opened)
        {
            running.authors.take_attested(said);
        }
    }

    /// Takes a part of a message.
    pub(super) fn handle_part(
        &mut self,
        opened: Opened,
        part: DocSync,
        reader: &Reader,
        intake: &mut Intake,
        out: &mut Outbox,
    ) -> Result<(), SessionError> {
        let permits = self.permits.as_deref();
        if let Some(running) = self.running.get(&opened)
            && !may_exchange(permits, running.document, reader)?
        {
            self.drop_running(opened, out);
            return Ok(());
        }
        if !self.running.contains_key(&opened) && !self.begin_theirs(opened, part.document, reader, out)? {
            return Ok(());
        }
        let Some(running) = self.running.get_mut(&opened) else { return Ok(()) };
        let document = running.document;
        let unexpected = |why| Err(SessionError::UnexpectedFrame { frame: "DocSync", why });
        if part.document != document {
            return unexpected("the stream is another document's");
        }
        if running.first_came && !part.lifecycle.is_empty() || part.lifecycle.len() > LIFECYCLE_MAX {
            return unexpected("lifecycle records come once, in the first frame");
        }
        running.first_came = true;
        running.incoming_lifecycle.extend(part.lifecycle);
        running.incoming.extend_from_slice(&part.message);
        self.assembling_bytes += part.message.len();
        let max = self.limits.change_bytes_max + self.limits.batch_bytes + MESSAGE_BYTES_BESIDE;
        if running.incoming.len() > max {
            return Err(SessionError::TooMany { what: "bytes in a sync message", max });
        }
        let max = self.limits.pending_bytes;
        if self.assembling_bytes > max {
            return Err(SessionError::TooMany { what: "bytes in unfinished sync messages", max });
        }
        if part.more {
            return Ok(());
        }
        self.assembling_bytes -= running.incoming.len();
        let message = std::mem::take(&mut running.incoming);
        let from = (self.peer, &*self.principal);
        running.receive(opened, &message, from, &self.limits, reader, intake)
    }

    /// Takes note that the peer says nothing more on the channel.
    pub(super) fn handle_closed(&mut self, opened: Opened) {
        self.dropped.remove(&opened);
        if let Some(running) = self.running.get_mut(&opened) {
            running.finished_there = true;
            running.ready = true;
            self.assembling_bytes -= running.incoming.len();
            running.incoming.clear();
        }
    }

    /// Goes on with an exchange whose message was logged.
    pub(super) fn settle(
        &mut self,
        opened: Opened,
        arrived: Vec<super::Arrival>,
        denied: &[Denied],
        reader: &Reader,
    ) -> Result<(), SessionError> {
        if let Some(running) = self.running.get_mut(&opened) {
            let of_this = denied.iter().filter(|denied| denied.document == running.document);
            of_this.filter_map(|denied| denied.change.clone()).for_each(|change| running.exchange.deny(change));
            let graph = reader.graph(running.document)?;
            let graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
            running.exchange.settle(&graph, arrived);
            if running.exchange.denied() > DENIED_MAX {
                return Err(SessionError::TooMany { what: "changes that it may not make", max: DENIED_MAX });
            }
            running.note_progress(graph.len());
            running.ready = true;
        }
        Ok(())
    }

    /// Does one thing that is due; `false` when nothing is.
    pub(super) fn step(&mut self, reader: &Reader, out: &mut Outbox) -> Result<bool, SessionError> {
        let ours = self.running.keys().filter(|opened| opened.by == Side::Us).count();
        if ours < self.limits.exchanges_per_peer
            && let Some(document) = self.queue.pop_front()
        {
            if !self.is_live(document) {
                self.opened += 1;
                let running = Running::new(document, self.verifier.clone());
                self.running.insert(Opened { by: Side::Us, number: self.opened }, running);
            }
            return Ok(true);
        }
        let (limits, tells_authors, attester) = (&self.limits, self.tells_authors, &self.attester);
        let (mut over, mut unreadable) = (None, None);
        for (&opened, running) in &mut self.running {
            if running.finished_here && running.finished_there && !running.exchange.is_unsettled() {
                over = Some(opened);
                break;
            }
            if !out.is_free(Channel::Document(opened)) {
                continue;
            }
            if !may_exchange(self.permits.as_deref(), running.document, reader)? {
                unreadable = Some(opened);
                break;
            }
            if running.step(opened, limits, tells_authors.then_some(attester), reader, out)? {
                return Ok(true);
            }
        }
        if let Some(opened) = unreadable {
            self.drop_running(opened, out);
            return Ok(true);
        }
        let Some(opened) = over else { return Ok(false) };
        if let Some(running) = self.running.remove(&opened) {
            self.ended.push(running.end(reader)?);
        }
        Ok(true)
    }

    /// Decides about a stream that the peer opened; `false` when it is dropped.
    fn begin_theirs(
        &mut self,
        opened: Opened,
        document: DocumentId,
        reader: &Reader,
        out: &mut Outbox,
    ) -> Result<bool, SessionError> {
        // What comes late on a stream that is over or dropped belongs to nobody.
        if opened.by == Side::Us || self.dropped.contains(&opened) {
            return Ok(false);
        }
        if !may_exchange(self.permits.as_deref(), document, reader)? {
            self.dropped.insert(opened);
            out.put(Output::Reset(Channel::Document(opened)));
            // The peer may have begun it for an answer that we wait for: we ask otherwise then.
            self.ended.push(Ended { document, converged: false, their_heads: None });
            return Ok(false);
        }
        // The peer ends one only once it has our last word, so all that lack it are under way there too. Of the others the
        // end may be late, each on a stream of its own; how many streams there are, the transport bounds.
        let max = 2 * self.limits.exchanges_per_peer;
        let theirs = |finished| {
            let of_peer = self.running.iter().filter(|(opened, _)| opened.by == Side::Peer);
            of_peer.filter(|(_, running)| running.finished_here == finished).count()
        };
        if theirs(false) >= max || theirs(true) + self.dropped.len() >= ENDING_MAX * max {
            return Err(SessionError::TooMany { what: "exchanges", max });
        }
        let mut both = self
            .running
            .iter()
            .filter(|(ours, running)| ours.by == Side::Us && running.document == document && !running.finished_here);
        if let Some(ours) = both.next().map(|(&ours, _)| ours) {
            if self.node < self.peer {
                self.dropped.insert(opened);
                out.put(Output::Reset(Channel::Document(opened)));
                return Ok(false);
            }
            if let Some(running) = self.running.remove(&ours) {
                self.assembling_bytes -= running.incoming.len();
            }
            out.put(Output::Reset(Channel::Document(ours)));
        }
        self.queue.retain(|queued| *queued != document);
        self.running.insert(opened, Running::new(document, self.verifier.clone()));
        Ok(true)
    }
}

/// Whether a document may be exchanged with one who may not read everything. One that is not here has nothing to be read.
fn may_exchange(permits: Option<&dyn Permits>, document: DocumentId, reader: &Reader) -> Result<bool, HistoryError> {
    let Some(permits) = permits else { return Ok(true) };
    Ok(permits.may_read(document) || reader.row(document)?.is_none())
}

impl Running {
    fn new(document: DocumentId, verifier: Option<Arc<Verifier>>) -> Self {
        Self {
            document,
            exchange: Exchange::new(),
            incoming: Vec::new(),
            incoming_lifecycle: Vec::new(),
            first_came: false,
            outgoing: None,
            first_went: false,
            ahead: None,
            authors: Authors::verified_by(verifier),
            ready: true,
            finished_here: false,
            finished_there: false,
            idle_messages: 0,
            state_seen: (0, None),
        }
    }

    fn receive(
        &mut self,
        opened: Opened,
        message: &[u8],
        (node, principal): (NodeId, &str),
        limits: &Limits,
        reader: &Reader,
        intake: &mut Intake,
    ) -> Result<(), SessionError> {
        let document = self.document;
        let principal = principal.to_owned();
        let origin = Origin { node, principal, admission: Admission::Structural, rules_version: 0 };
        let mut push = |body, origin, signature| intake.push(IncomingRow { document, body, origin, signature });
        self.incoming_lifecycle.drain(..).for_each(|bytes| push(IncomingBody::Lifecycle(bytes), origin.clone(), None));
        let graph = reader.graph(document)?;
        let graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
        let received =
            self.exchange.receive(&graph, message).map_err(|error| SessionError::Exchange { document, error })?;
        self.ready = true;
        if received.chunks.is_empty() {
            self.note_progress(graph.len());
            return Ok(());
        }
        let nothing = self.authors.emptied();
        let (mut arrived, mut authors) = (Vec::new(), std::mem::replace(&mut self.authors, nothing));
        let mut bodies = Vec::with_capacity(received.chunks.len());
        for chunk in received.chunks {
            bodies.push(match chunk.kind {
                ChunkKind::Change => IncomingBody::Change(Box::new(parse_change(document, chunk.bytes, limits)?)),
                ChunkKind::Document => IncomingBody::Document { bytes: chunk.bytes, authors: authors.clone() },
                ChunkKind::Bundle => {
                    return Err(SessionError::MalformedChange { document, why: "bundles do not travel".into() });
                }
            });
        }
        // What was asked for by name comes first, so an author's first change may come after others of his.
        let mut entered = BTreeMap::new();
        for body in &bodies {
            if let IncomingBody::Change(change) = body
                && change.seq() == 1
            {
                entered.insert(change.hash(), authors.origin(document, change, &origin, reader));
            }
        }
        for body in bodies {
            let (origin, signature) = match &body {
                IncomingBody::Change(change) => {
                    arrived.push((change.hash(), change.deps().to_vec()));
                    let entered = entered.remove(&change.hash());
                    entered.unwrap_or_else(|| authors.origin(document, change, &origin, reader))
                }
                IncomingBody::Document { .. } | IncomingBody::Lifecycle(_) => (origin.clone(), None),
            };
            push(body, origin, signature);
        }
        intake.mark(Mark::Exchange { channel: opened, arrived });
        Ok(())
    }

    /// Counts the messages that brought neither side forward.
    fn note_progress(&mut self, changes: usize) {
        let state = (changes, self.exchange.their_heads().cloned());
        self.idle_messages = if state == self.state_seen { self.idle_messages + 1 } else { 0 };
        self.state_seen = state;
    }

    fn step(
        &mut self,
        opened: Opened,
        limits: &Limits,
        tells_authors: Option<&Option<Arc<dyn Attester>>>,
        reader: &Reader,
        out: &mut Outbox,
    ) -> Result<bool, SessionError> {
        let channel = Channel::Document(opened);
        if Naming::send(&mut self.ahead, channel, reader, out)? {
            return Ok(true);
        }
        if let Some((message, gone)) = self.outgoing.take() {
            let end = message.len().min(gone + limits.part_bytes);
            let lifecycle = if self.first_went { Vec::new() } else { reader.lifecycle_records(self.document)? };
            self.first_went = true;
            let more = end < message.len();
            let part = DocSync { document: self.document, lifecycle, message: message[gone..end].to_vec(), more };
            out.send(channel, Frame::DocSync(part).encode()?, false);
            self.outgoing = more.then_some((message, end));
            // With the message gone there may be nothing left to say, ever.
            self.ready |= !more;
            return Ok(true);
        }
        if !self.ready || self.finished_here || self.exchange.is_unsettled() {
            return Ok(false);
        }
        self.ready = false;
        let graph = reader.graph(self.document)?;
        let graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
        let over = self.exchange.converged(&graph) || self.finished_there || self.idle_messages > IDLE_MESSAGES_MAX;
        if !over {
            let mut read = |lsn| reader.change_bytes(lsn);
            self.outgoing = match self.exchange.generate(&graph, limits.batch_bytes, &mut read) {
                Ok(message) => message.map(|message| (message, 0)),
                Err(GenerateError::Read(error)) => return Err(SessionError::History(error)),
                Err(GenerateError::Gate(error)) => return Err(self.refused(error)),
            };
            drop(graph);
            if let Some(attester) = tells_authors
                && self.outgoing.is_some()
                && !self.exchange.under_way().is_empty()
            {
                let sent = self.exchange.under_way();
                self.ahead = Some(Naming::of_changes(self.document, sent, reader, attester.clone())?);
            }
            return Ok(self.outgoing.is_some());
        }
        self.finished_here = true;
        out.send(channel, Vec::new(), true);
        Ok(true)
    }

    fn refused(&self, error: GateError) -> SessionError {
        SessionError::Exchange { document: self.document, error: ExchangeError::Gate(error) }
    }

    fn end(self, reader: &Reader) -> Result<Ended, HistoryError> {
        let graph = reader.graph(self.document)?;
        let graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
        let their_heads = self.exchange.their_heads().cloned();
        let converged = their_heads.as_ref() == Some(&graph.heads());
        Ok(Ended { document: self.document, converged, their_heads })
    }
}
