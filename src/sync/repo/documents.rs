//! The documents that one client speaks of: each a sync of its own, answered from the change graph.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError};

use super::common::{Place, RepoCommon};
use super::fault::RepoFault;
use super::{RepoConfig, StoreHeadsKnown};
use crate::document::ChangeGraph;
use crate::history::voids::is_degraded;
use crate::history::{HistoryError, Origin, Reader, is_saved_far_behind};
use crate::id::{ChangeHash, DocumentId, Heads, Lsn};
use crate::log::record::{Admission, CreationRank, Lifecycle, LifecycleKind};
use crate::sync::exchange::{Arrival, Exchange, GenerateError};
use crate::sync::gate::ChunkKind;
use crate::sync::intake::{Intake, Mark};
use crate::sync::session::{IncomingBody, IncomingRow, SessionError, parse_change};
use crate::sync::{Authors, Chunks, Composed, Denied, ExchangeError, State};

/// Messages in a row that change nothing, after which a document is answered no more until one of the two sides has
/// something new. A Bloom filter that hides a change costs one or two.
const IDLE_MESSAGES_MAX: u32 = 32;
/// Changes of a document below which nobody waits for its snapshot.
const WAITED_FOR_MIN: usize = 1024;
/// Changes of one document that a client has and may not make, beyond which it is not served.
const DENIED_MAX: usize = 10_000;
/// Messages of one client in which something is denied, beyond which its socket is closed: each may cost the making of a
/// document. What stands on something that was denied before costs nothing, and does not count.
const DENIALS_MAX: usize = 1_000;
/// Denials that wait to be told. Beyond, the oldest are not told.
const UNTOLD_MAX: usize = 4_096;
/// Changes that one message says are denied.
const DENIED_IN_MESSAGE_MAX: usize = 64;
/// What a message that waits weighs beside its bytes.
const MESSAGE_BYTES: usize = 100;

/// The documents of one socket.
#[derive(Debug, Default)]
pub(super) struct Documents {
    open: BTreeMap<DocumentId, Open>,
    /// Documents to look at, each once.
    ready: VecDeque<DocumentId>,
    /// Bytes of messages that wait for the one before to be logged.
    waiting_bytes: usize,
    /// Bytes of heads and filters that the exchanges keep.
    kept_bytes: usize,
    /// How often something was denied that had to be tried for it.
    denials: usize,
    /// What was denied and the client was not told of, for a client that wants to hear; the oldest first.
    untold: VecDeque<Denied>,
    /// The client wants to hear.
    tells: bool,
}

#[derive(Debug, Default)]
struct Open {
    exchange: Exchange,
    /// Messages that wait for the one before to be logged.
    waiting: VecDeque<Vec<u8>>,
    is_ready: bool,
    /// Bytes of heads and filters that the exchange keeps.
    kept_bytes: usize,
    /// The client asked for it and was not told yet that it is not here.
    owed: bool,
    /// A statement that creates it went to the writer from here.
    created: bool,
    /// Whether the client, which has nothing, waits for a snapshot.
    whole: Whole,
    /// Messages in a row that changed nothing, and what they left.
    idle: u32,
    seen: (usize, Option<Heads>),
    /// The heads of the client that others were told of.
    passed_on: Option<Heads>,
    /// Something of it was sent, since the client was last told that it is not here.
    is_shown: bool,
}

/// Whether a client that has nothing of a document waits for a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Whole {
    /// It was not asked for.
    #[default]
    Unasked,
    /// It is being made.
    Awaited,
    /// It was made, or could not be.
    Settled,
}

/// Whether a document may be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It is here.
    Here,
    /// Nobody ever brought anything of it.
    Unknown,
    /// It is created and has no change yet.
    Empty,
    /// It is deleted, or belongs to a collection that is not served here.
    Denied,
}

/// What a look at a document found to do.
pub(super) enum Due {
    /// Send it a sync message.
    Sync(DocumentId, Vec<u8>),
    /// Say that it is not here.
    Unavailable(DocumentId),
    /// Have it saved.
    Save(DocumentId),
    /// Tell others what the client's store has.
    Heads(StoreHeadsKnown),
}

impl Documents {
    /// Bytes of messages that wait for the one before to be logged.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    pub(super) fn is_open(&self, document: DocumentId) -> bool {
        self.open.contains_key(&document)
    }

    /// Takes note that the client speaks of a document; `true` when it is the first time.
    pub(super) fn open(&mut self, document: DocumentId, config: &RepoConfig) -> Result<bool, RepoFault> {
        if self.open.contains_key(&document) {
            return Ok(false);
        }
        let max = config.limits.repo_documents;
        if self.open.len() >= max {
            return Err(RepoFault::TooMany { what: "documents", max });
        }
        self.open.insert(document, Open::default());
        Ok(true)
    }

    /// Takes note that the document changed.
    pub(super) fn wake(&mut self, document: DocumentId) {
        if let Some(open) = self.open.get_mut(&document)
            && !open.is_ready
        {
            open.is_ready = true;
            self.ready.push_back(document);
        }
    }

    /// Goes on with a document that was to be saved.
    pub(super) fn handle_saved(&mut self, document: DocumentId) {
        if let Some(open) = self.open.get_mut(&document) {
            open.whole = Whole::Settled;
            self.wake(document);
        }
    }

    /// Takes note that the client may be allowed other things than before: what was denied is asked for again.
    pub(super) fn handle_permits_changed(&mut self) {
        for open in self.open.values_mut() {
            open.exchange.ask_for_denied();
        }
        self.wake_all();
    }

    /// Takes note of what the client may not write. It goes on without.
    pub(super) fn note_denied(&mut self, denied: Vec<Denied>) -> Result<(), RepoFault> {
        self.denials += usize::from(!denied.is_empty());
        if self.denials > DENIALS_MAX {
            return Err(RepoFault::TooMany { what: "messages with changes that may not be made", max: DENIALS_MAX });
        }
        for Denied { document, change, why } in denied {
            let Some(open) = self.open.get_mut(&document) else { continue };
            tracing::info!(%document, change = ?change.as_ref().map(|(hash, _)| hash), why, "a client may not write this");
            if self.tells {
                let change = change.clone().map(|(hash, _)| (hash, Vec::new()));
                self.untold.push_back(Denied { document, change, why });
                if self.untold.len() > UNTOLD_MAX {
                    self.untold.pop_front();
                }
            }
            match change {
                Some(change) => open.exchange.deny(change),
                // It may be allowed to create it later.
                None => open.created = false,
            }
            if open.exchange.denied() > DENIED_MAX {
                return Err(RepoFault::TooMany { what: "changes that may not be made", max: DENIED_MAX });
            }
        }
        Ok(())
    }

    /// Takes note that the client wants to hear what is denied.
    pub(super) fn tell_denials(&mut self) {
        self.tells = true;
    }

    /// What of one document was denied for one reason, and the client was not told of.
    pub(super) fn next_denied(&mut self) -> Option<(DocumentId, Vec<ChangeHash>, String)> {
        let Denied { document, change, why } = self.untold.pop_front()?;
        let mut changes: Vec<ChangeHash> = change.map(|(hash, _)| hash).into_iter().collect();
        while changes.len() < DENIED_IN_MESSAGE_MAX
            && self.untold.front().is_some_and(|next| next.document == document && next.why == why)
            && let Some(next) = self.untold.pop_front()
        {
            changes.extend(next.change.map(|(hash, _)| hash));
        }
        Some((document, changes, why))
    }

    /// Takes note that any document may have changed.
    pub(super) fn wake_all(&mut self) {
        let all: Vec<DocumentId> = self.open.keys().copied().collect();
        all.into_iter().for_each(|document| self.wake(document));
    }

    /// Takes a sync message about a document that is open.
    pub(super) fn handle_sync(
        &mut self,
        document: DocumentId,
        data: &[u8],
        unix_ms: u64,
        config: &RepoConfig,
        reader: &Reader,
        intake: &mut Intake,
    ) -> Result<(), RepoFault> {
        let Some(open) = self.open.get_mut(&document) else { return Ok(()) };
        if open.exchange.is_unsettled() {
            self.waiting_bytes += data.len() + MESSAGE_BYTES;
            open.waiting.push_back(data.to_vec());
            return Ok(());
        }
        let before = open.kept_bytes;
        open.receive(document, data, unix_ms, config, reader, intake)?;
        self.kept_bytes = self.kept_bytes - before + open.kept_bytes;
        self.wake(document);
        self.check_kept(config)
    }

    /// Goes on with a document whose message was logged.
    pub(super) fn settle(
        &mut self,
        document: DocumentId,
        arrived: Vec<Arrival>,
        unix_ms: u64,
        config: &RepoConfig,
        reader: &Reader,
        intake: &mut Intake,
    ) -> Result<(), RepoFault> {
        let Some(open) = self.open.get_mut(&document) else { return Ok(()) };
        {
            let place = config.common.place(document, reader)?;
            let graph = place.graph.lock().unwrap_or_else(PoisonError::into_inner);
            open.exchange.settle(&graph, arrived);
            open.note_progress(graph.len());
        }
        while !open.exchange.is_unsettled()
            && let Some(data) = open.waiting.pop_front()
        {
            self.waiting_bytes -= data.len() + MESSAGE_BYTES;
            let before = open.kept_bytes;
            open.receive(document, &data, unix_ms, config, reader, intake)?;
            self.kept_bytes = self.kept_bytes - before + open.kept_bytes;
        }
        self.wake(document);
        self.check_kept(config)
    }

    fn check_kept(&self, config: &RepoConfig) -> Result<(), RepoFault> {
        let max = config.limits.repo_kept_bytes;
        if self.kept_bytes <= max {
            Ok(())
        } else {
            Err(RepoFault::TooMany { what: "bytes of heads and filters", max })
        }
    }

    /// Takes the client's word that it is about to create a document in a collection of its choice.
    pub(super) fn handle_create(
        &mut self,
        document: DocumentId,
        statement: Lifecycle,
        config: &RepoConfig,
        reader: &Reader,
        intake: &mut Intake,
    ) -> Result<(), RepoFault> {
        let Some(open) = self.open.get_mut(&document) else { return Ok(()) };
        // Only what is new: a client may not move what others made, least of all into a collection it is confined to.
        if !open.created && reader.row(document)?.is_none() {
            open.create(document, statement, config, intake);
        }
        Ok(())
    }

    /// Looks at the next document that is due. `Some(None)`: at one, and nothing is to do.
    pub(super) fn step(
        &mut self,
        unix_ms: u64,
        storage: Option<&str>,
        config: &RepoConfig,
        reader: &Reader,
    ) -> Result<Option<Option<Due>>, RepoFault> {
        let Some(document) = self.ready.pop_front() else { return Ok(None) };
        let Some(open) = self.open.get_mut(&document) else { return Ok(Some(None)) };
        open.is_ready = false;
        if open.exchange.is_unsettled() {
            // It comes again once that is logged.
            return Ok(Some(None));
        }
        let due = open.step(document, unix_ms, storage, config, reader, self.tells)?;
        if matches!(due, Some(Due::Heads(_))) {
            self.wake(document);
        }
        Ok(Some(due))
    }
}

impl Open {
    fn receive(
        &mut self,
        document: DocumentId,
        data: &[u8],
        unix_ms: u64,
        config: &RepoConfig,
        reader: &Reader,
        intake: &mut Intake,
    ) -> Result<(), RepoFault> {
        let refused = |error| RepoFault::Exchange { document, error };
        let place = config.common.place(document, reader)?;
        let standing = standing(&place, config);
        let graph = place.graph.lock().unwrap_or_else(PoisonError::into_inner);
        let received = self.exchange.receive(&graph, data).map_err(refused)?;
        self.kept_bytes = data.len() - received.chunks.iter().map(|chunk| chunk.bytes.len()).sum::<usize>();
        self.owed = true;
        if received.chunks.is_empty() || standing == Standing::Denied {
            if !received.chunks.is_empty() {
                // Should it be served later, the client must not take these for sent.
                self.exchange.ask_again();
            }
            self.exchange.settle(&graph, Vec::new());
            self.note_progress(graph.len());
            return Ok(());
        }
        if standing == Standing::Unknown && !self.created {
            let statement = creation(document, config, unix_ms);
            self.create(document, statement, config, intake);
        }
        let mut arrived = Vec::new();
        for chunk in received.chunks {
            let body = match chunk.kind {
                ChunkKind::Change => {
                    let change = parse_change(document, chunk.bytes, &config.limits).map_err(malformed)?;
                    if self.exchange.is_denied(&change.hash(), change.deps()) && !graph.contains(&change.hash()) {
                        self.exchange.deny((change.hash(), change.deps().to_vec()));
                        continue;
                    }
                    arrived.push((change.hash(), change.deps().to_vec()));
                    IncomingBody::Change(Box::new(change))
                }
                ChunkKind::Document => IncomingBody::Document { bytes: chunk.bytes, authors: Authors::default() },
                ChunkKind::Bundle => {
                    return Err(RepoFault::Malformed { document, why: "bundles do not travel".into() });
                }
            };
            intake.push(IncomingRow { document, body, origin: origin(config), signature: None });
        }
        if self.exchange.denied() > DENIED_MAX {
            return Err(RepoFault::TooMany { what: "changes that may not be made", max: DENIED_MAX });
        }
        intake.mark(Mark::Message { document, arrived });
        Ok(())
    }

    fn create(&mut self, document: DocumentId, statement: Lifecycle, config: &RepoConfig, intake: &mut Intake) {
        self.created = true;
        let body = IncomingBody::Lifecycle(statement.encode());
        intake.push(IncomingRow { document, body, origin: origin(config), signature: None });
    }

    /// Counts the messages that brought neither side forward.
    fn note_progress(&mut self, changes: usize) {
        let state = (changes, self.exchange.their_heads().cloned());
        self.idle = if state == self.seen { self.idle.saturating_add(1) } else { 0 };
        self.seen = state;
    }

    fn step(
        &mut self,
        document: DocumentId,
        unix_ms: u64,
        storage: Option<&str>,
        config: &RepoConfig,
        reader: &Reader,
        tells: bool,
    ) -> Result<Option<Due>, RepoFault> {
        let place = config.common.place(document, reader)?;
        let standing = standing(&place, config);
        let they_have_some = self.exchange.their_heads().is_some_and(|heads| !heads.is_empty());
        // Who may not read it is told what he would be told if it were not here.
        let is_hidden = standing == Standing::Here && !config.may_read(document);
        if is_hidden || standing == Standing::Denied || standing != Standing::Here && !they_have_some {
            // Who loses the right to read hears of it though he did not ask; of a deletion, who wants to hear.
            let is_lost = (is_hidden || tells) && std::mem::take(&mut self.is_shown);
            let is_told = std::mem::take(&mut self.owed) || is_lost;
            return Ok(is_told.then_some(Due::Unavailable(document)));
        }
        let graph = place.graph.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(storage) = storage
            && let Some(heads) = self.exchange.their_heads()
            && self.passed_on.as_ref() != Some(heads)
            // What is not durable here nobody is told of.
            && graph.contains_all(heads.as_slice())
        {
            self.passed_on = Some(heads.clone());
            let (storage, heads) = (storage.to_owned(), heads.clone());
            return Ok(Some(Due::Heads(StoreHeadsKnown { storage, document, heads, unix_ms })));
        }
        if self.exchange.their_heads().is_none() || self.exchange.awaits_answer() {
            return Ok(None);
        }
        if graph.len() != self.seen.0 {
            self.idle = 0;
        }
        if self.idle > IDLE_MESSAGES_MAX {
            return Ok(None);
        }
        if self.whole == Whole::Unasked
            && self.exchange.takes_whole(&graph)
            && is_worth_waiting(document, &graph, reader)?
        {
            self.whole = Whole::Awaited;
            return Ok(Some(Due::Save(document)));
        }
        if self.whole == Whole::Awaited {
            return Ok(None);
        }
        let mut source = Stored { document, reader, common: &config.common };
        let message = match self.exchange.generate(&graph, config.limits.repo_batch_bytes, &mut source) {
            Ok(message) => message,
            Err(GenerateError::Read(error)) => return Err(RepoFault::History(error)),
            Err(GenerateError::Gate(error)) => {
                return Err(RepoFault::Exchange { document, error: ExchangeError::Gate(error) });
            }
        };
        self.owed = false;
        self.is_shown |= message.is_some();
        Ok(message.map(|message| Due::Sync(document, message)))
    }
}

/// What is sent of a document, from the log.
struct Stored<'a> {
    document: DocumentId,
    reader: &'a Reader,
    common: &'a RepoCommon,
}

impl Chunks for Stored<'_> {
    type Error = HistoryError;

    const REMEMBERS: bool = true;

    fn change(&mut self, lsn: Lsn) -> Result<Vec<u8>, HistoryError> {
        self.reader.change_bytes(lsn)
    }

    fn snapshot(&mut self) -> Result<Option<(Heads, Vec<u8>)>, HistoryError> {
        Ok(self.reader.snapshot(self.document)?.map(|snapshot| (snapshot.heads, snapshot.bytes)))
    }

    fn composed(&mut self, state: &State) -> Option<Arc<Composed>> {
        self.common.composed(self.document, state)
    }

    fn keep(&mut self, state: State, composed: Arc<Composed>) {
        self.common.keep(self.document, state, composed);
    }
}

/// Whether a client that has nothing of a document should wait until that is saved: with a long tail it would be sent
/// many messages, and applications take the first for the whole.
fn is_worth_waiting(document: DocumentId, graph: &ChangeGraph, reader: &Reader) -> Result<bool, RepoFault> {
    if graph.len() < WAITED_FOR_MIN {
        return Ok(false);
    }
    let row = reader.row(document)?;
    Ok(row.is_some_and(|row| !is_degraded(&row) && is_saved_far_behind(&row)))
}

/// Where a document stands for this client.
fn standing(place: &Place, config: &RepoConfig) -> Standing {
    match &place.state {
        None => Standing::Unknown,
        Some(state) if !state.is_visible || !config.scope.serves(&state.collection) => Standing::Denied,
        Some(state) if state.is_empty => Standing::Empty,
        Some(_) => Standing::Here,
    }
}

/// The statement by which a document comes to be where the client's path says.
fn creation(document: DocumentId, config: &RepoConfig, unix_ms: u64) -> Lifecycle {
    Lifecycle {
        document,
        collection: config.scope.collection().clone(),
        kind: LifecycleKind::Created,
        rank: CreationRank::Path,
        lamport: 1,
        author: config.node,
        actor: None,
        time_ms: unix_ms,
        heads: Heads::default(),
        name: None,
    }
}

fn origin(config: &RepoConfig) -> Origin {
    let principal = config.principal.clone();
    Origin { node: config.node, principal, admission: Admission::Structural, rules_version: 0 }
}

fn malformed(error: SessionError) -> RepoFault {
    match error {
        SessionError::MalformedChange { document, why } => RepoFault::Malformed { document, why },
        other => RepoFault::Refused(other.to_string()),
    }
}
