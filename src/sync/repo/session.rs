//! One socket's conversation, as a state machine without IO.
//!
//! The server owns the socket, the writer, the clock and the [`Hub`](super::Hub). It feeds in what happened
//! (`handle_*`) and then calls [`RepoSession::poll`] until that has nothing to do:
//!
//! ```text
//! loop {
//!     take input: a message while the session accepts one, documents that changed, an admission's outcome, a notice
//!     while let Some(output) = session.poll(now, &reader) { do it }
//! }
//! ```
//! A client's fault never is an error here: the session says `error` to it and asks for the socket to be closed, because
//! clients survive that better than a socket that breaks. Backpressure goes both ways. Out: one message is under way
//! until [`RepoSession::handle_sent`]; what waits for it is a mark on a document, or a bounded queue. In: messages are
//! read only while [`RepoSession::accepts`] says so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use super::config::RepoConfig;
use super::documents::{Documents, Due};
use super::ephemeral;
use super::fault::RepoFault;
use super::hub::{Notice, RepoEvent, StoreHeadsKnown};
use super::wire::{self, Create, Ephemeral, Join, Message, Metadata, Peer, Route, StoreHeads, Sync, Text, WireError};
use crate::history::Reader;
use crate::id::{ChangeHash, DocumentId, Heads};
use crate::log::record::{CreationRank, Lifecycle, LifecycleKind};
use crate::sync::Admitted;
use crate::sync::Permits;
use crate::sync::guard::TOKENS_MAX;
use crate::sync::intake::{Intake, Mark};
use crate::sync::session::{IncomingRow, Output};

/// What time it is: for measuring, and for stating.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// A clock that never goes back.
    pub at: Instant,
    /// Ms since 1970.
    pub unix_ms: u64,
}

/// What the server has to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum RepoOutput {
    /// Send a binary message, and answer with [`RepoSession::handle_sent`].
    Send(Vec<u8>),
    /// Give the rows to the writer, and answer with [`RepoSession::handle_admitted`] or
    /// [`RepoSession::handle_refused`]. Rows whose dependencies are missing wait with the writer.
    Admit {
        /// Names the answer.
        ticket: u64,
        /// What to log, in order.
        rows: Vec<IncomingRow>,
    },
    /// Have a document saved, if its snapshot is far behind, and answer with [`RepoSession::handle_saved`] when that
    /// was done, or could not be, or took too long. Until then the document is not answered.
    Save(DocumentId),
    /// Take this token for the client's from here on: answer with [`RepoSession::handle_permits`], or end the session.
    Prove(String),
    /// Tell the hub.
    Event(RepoEvent),
    /// Close the socket with the fault's code. Nothing follows.
    Close(RepoFault),
}

/// One socket's conversation. See the module for how a server runs it.
pub struct RepoSession {
    config: RepoConfig,
    stage: Stage,
    /// The client, once it has joined.
    client: String,
    /// The name of its store, if it said one.
    client_storage: Option<String>,
    owes_peer: bool,
    /// A token that the client brought and that was not looked at yet.
    token: Option<String>,
    /// How many it has brought.
    tokens: usize,
    is_sending: bool,
    intake: Intake,
    documents: Documents,
    ephemeral: ephemeral::Intake,
    passing: ephemeral::Queue,
    /// Whether what others said was looked at first.
    passing_turn: bool,
    subscriptions: BTreeSet<String>,
    /// Heads of stores to tell the client of: the newest of each.
    heads: BTreeMap<(DocumentId, String), Arc<StoreHeadsKnown>>,
    /// Of one message or notice at most.
    events: Vec<RepoEvent>,
}

#[derive(Debug)]
enum Stage {
    /// The client has not said who it is.
    Waiting,
    /// The hub has not said whether it may be that.
    Joining,
    Open,
    /// The client is to be told, and the socket closed.
    Failed(RepoFault),
    /// The client was told, and the socket is to be closed.
    Closing(RepoFault),
    Closed,
}

impl RepoSession {
    /// Begins a session. It puts out nothing before the client has joined.
    #[must_use]
    pub fn new(config: RepoConfig) -> Self {
        Self {
            config,
            stage: Stage::Waiting,
            client: String::new(),
            client_storage: None,
            owes_peer: false,
            token: None,
            tokens: 0,
            is_sending: false,
            intake: Intake::new(),
            documents: Documents::default(),
            ephemeral: ephemeral::Intake::new(),
            passing: ephemeral::Queue::default(),
            passing_turn: false,
            subscriptions: BTreeSet::new(),
            heads: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    /// Whether a message may be read from the socket now.
    #[must_use]
    pub fn accepts(&self) -> bool {
        let unlogged = self.intake.bytes() + self.documents.waiting_bytes();
        matches!(self.stage, Stage::Waiting | Stage::Open)
            && self.events.is_empty()
            && unlogged < 4 * self.config.limits.batch_bytes
    }

    /// The longest message that may be read from the socket now.
    #[must_use]
    pub fn message_bytes_max(&self) -> usize {
        let limits = &self.config.limits;
        if matches!(self.stage, Stage::Waiting) { limits.repo_join_bytes } else { limits.repo_message_bytes }
    }

    /// The client's peer id, once it has joined.
    #[must_use]
    pub fn client(&self) -> Option<&str> {
        (!matches!(self.stage, Stage::Waiting)).then_some(&*self.client)
    }

    /// Takes a binary message.
    pub fn handle_message(&mut self, now: Moment, bytes: &[u8], reader: &Reader) {
        if matches!(self.stage, Stage::Failed(_) | Stage::Closing(_) | Stage::Closed) {
            return;
        }
        let max = self.message_bytes_max();
        let taken = if bytes.len() > max {
            Err(WireError::TooLong { bytes: bytes.len(), max }.into())
        } else {
            self.take(now, bytes, reader)
        };
        self.fail_if(taken);
    }

    /// Takes note of a text message, which the protocol does not have, or of what is no message at all.
    pub fn handle_text(&mut self) {
        self.fail(RepoFault::Unexpected("what is no binary message"));
    }

    /// Takes note of a message that is longer than [`Self::message_bytes_max`] and was not read to its end.
    pub fn handle_too_long(&mut self) {
        let max = self.message_bytes_max();
        self.fail(WireError::TooLong { bytes: max + 1, max }.into());
    }

    /// Turns the client away: it is told why, the socket is closed, and nothing that it says is heard.
    pub fn end(&mut self, fault: RepoFault) {
        self.fail(fault);
    }

    /// Whether what the client says is heard, and nothing ends yet.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        matches!(self.stage, Stage::Waiting | Stage::Joining | Stage::Open)
    }

    /// Takes note that the message under way was given to the socket.
    pub fn handle_sent(&mut self) {
        self.is_sending = false;
    }

    /// Takes note that a [`RepoOutput::Save`] is done with.
    pub fn handle_saved(&mut self, document: DocumentId) {
        self.documents.handle_saved(document);
    }

    /// Takes note that a document changed in the log.
    pub fn handle_changed(&mut self, document: DocumentId) {
        self.documents.wake(document);
    }

    /// Takes what the client may see from here on, after it brought another token.
    pub fn handle_permits(&mut self, permits: Option<Arc<dyn Permits>>) {
        self.config.permits = permits;
        self.handle_permits_changed();
    }

    /// Takes note that the client may be allowed other things than before.
    pub fn handle_permits_changed(&mut self) {
        self.documents.handle_permits_changed();
    }

    /// Takes note that the log grew and nobody can say by what, or that something may be read by now that could not be.
    pub fn handle_lagged(&mut self) {
        self.documents.wake_all();
    }

    /// Takes what became of an [`RepoOutput::Admit`].
    pub fn handle_admitted(&mut self, ticket: u64, outcome: Admitted) {
        self.intake.handle_admitted(ticket, outcome);
    }

    /// Takes note that the writer did not take what the client sent: the client is told and comes again later.
    pub fn handle_refused(&mut self, reason: &str) {
        self.fail(RepoFault::Refused(reason.to_owned()));
    }

    /// Takes what the hub says.
    pub fn handle_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Welcome => {
                if matches!(self.stage, Stage::Joining) {
                    self.stage = Stage::Open;
                    self.owes_peer = true;
                }
            }
            Notice::Unwelcome => self.fail(RepoFault::NameTaken),
            Notice::Replaced => self.fail(RepoFault::Replaced),
            Notice::Ephemeral(passing) => {
                let document = passing.document;
                if self.documents.is_open(document) && passing.author != self.client && self.config.may_read(document) {
                    self.passing.push(passing, &self.config.limits);
                }
            }
            Notice::Heads(heads) => {
                if self.subscriptions.contains(&heads.storage) && self.documents.is_open(heads.document) {
                    self.heads.insert((heads.document, heads.storage.clone()), heads);
                }
                if self.heads.len() > self.config.limits.repo_ephemeral_queue {
                    self.heads.pop_first();
                }
            }
        }
    }

    /// Gives the next thing to do; `None` when nothing is to do until something happens.
    ///
    /// # Cost
    /// At most one message of one document.
    pub fn poll(&mut self, now: Moment, reader: &Reader) -> Option<RepoOutput> {
        if !self.events.is_empty() {
            return Some(RepoOutput::Event(self.events.remove(0)));
        }
        if let Some(token) = self.token.take() {
            return Some(RepoOutput::Prove(token));
        }
        if matches!(self.stage, Stage::Open) {
            match self.step(now, reader) {
                Ok(Some(output)) => return Some(output),
                Ok(None) => {}
                Err(fault) => self.fail(fault),
            }
        }
        if self.is_sending {
            return None;
        }
        match std::mem::replace(&mut self.stage, Stage::Closed) {
            Stage::Failed(fault) if fault.is_told() => {
                let message = Message::Error {
                    sender: Some((&*self.config.peer).into()),
                    target: Some((&*self.client).into()).filter(|client: &Text<'_>| !client.is_empty()),
                    message: fault.to_string().into(),
                };
                let bytes = message.encode();
                self.stage = Stage::Closing(fault);
                self.send(bytes)
            }
            Stage::Failed(fault) | Stage::Closing(fault) => Some(RepoOutput::Close(fault)),
            stage => {
                self.stage = stage;
                None
            }
        }
    }

    fn step(&mut self, now: Moment, reader: &Reader) -> Result<Option<RepoOutput>, RepoFault> {
        loop {
            if let Some((marks, admitted)) = self.intake.take_settled() {
                self.documents.note_denied(admitted.denied)?;
                for mark in marks {
                    if let Mark::Message { document, arrived } = mark {
                        let Self { documents, config, intake, .. } = self;
                        documents.settle(document, arrived, now.unix_ms, config, reader, intake)?;
                    }
                }
                continue;
            }
            if let Some(Output::Admit { ticket, rows, .. }) = self.intake.next_admission(false) {
                return Ok(Some(RepoOutput::Admit { ticket, rows }));
            }
            if self.intake.has_settled() {
                continue;
            }
            if self.is_sending {
                return Ok(None);
            }
            if std::mem::take(&mut self.owes_peer) {
                let bytes = self.peer_message();
                return Ok(self.send(bytes));
            }
            if let Some((document, changes, why)) = self.documents.next_denied() {
                let changes = changes.iter().map(|hash| hash.to_string().into()).collect();
                let denied = wire::Denied { route: self.route(), document, changes, message: why.into() };
                let bytes = Message::Denied(denied).encode();
                return Ok(self.send(bytes));
            }
            // In turns: a long catching up must not hold up who is there, nor the other way round.
            self.passing_turn = !self.passing_turn;
            if self.passing_turn
                && let Some(output) = self.next_passing()
            {
                return Ok(Some(output));
            }
            let storage = self.client_storage.as_deref();
            let output = match self.documents.step(now.unix_ms, storage, &self.config, reader)? {
                Some(None) => continue,
                Some(Some(Due::Sync(document, data))) => {
                    let message = Message::Sync(Sync { route: self.route(), document, data: data.into() }).encode();
                    self.send(message)
                }
                Some(Some(Due::Unavailable(document))) => {
                    let message = Message::DocUnavailable { route: self.route(), document }.encode();
                    self.send(message)
                }
                Some(Some(Due::Save(document))) => Some(RepoOutput::Save(document)),
                Some(Some(Due::Heads(heads))) => Some(RepoOutput::Event(RepoEvent::Heads(Arc::new(heads)))),
                None => self.next_passing(),
            };
            return Ok(output);
        }
    }

    /// What others said.
    fn next_passing(&mut self) -> Option<RepoOutput> {
        while let Some(passing) = self.passing.pop() {
            // Asked once more: it may have waited.
            if self.config.may_read(passing.document) {
                let bytes = passing.encode(&self.client);
                return self.send(bytes);
            }
        }
        let known = loop {
            let (_, known) = self.heads.pop_first()?;
            if self.config.may_read(known.document) {
                break known;
            }
        };
        let heads = StoreHeads {
            storage: (&*known.storage).into(),
            heads: known.heads.as_slice().iter().map(|head| url_head(head).into()).collect(),
            timestamp: known.unix_ms as f64,
        };
        let message = Message::RemoteHeadsChanged { route: self.route(), document: known.document, heads: vec![heads] };
        let bytes = message.encode();
        self.send(bytes)
    }

    fn send(&mut self, bytes: Vec<u8>) -> Option<RepoOutput> {
        self.is_sending = true;
        Some(RepoOutput::Send(bytes))
    }

    fn route(&self) -> Route<'_> {
        Route { sender: (&*self.config.peer).into(), target: (&*self.client).into() }
    }

    fn peer_message(&self) -> Vec<u8> {
        let metadata = Metadata { storage: Some((&*self.config.storage).into()), ephemeral: Some(false) };
        Message::Peer(Peer { route: self.route(), metadata, version: wire::VERSION.into() }).encode()
    }

    fn take(&mut self, now: Moment, bytes: &[u8], reader: &Reader) -> Result<(), RepoFault> {
        match Message::read(bytes, &self.config.limits)? {
            Message::Join(join) => self.take_join(&join),
            // Who has not joined is not heard.
            _ if !matches!(self.stage, Stage::Open) => Ok(()),
            Message::Leave { sender } if sender == *self.client => Err(RepoFault::Left),
            // Stock clients send every ephemeral message that they get back to where they have it from, and with its
            // author's name. To take what comes under another name than the socket's would let clients forge authors.
            Message::Request(sync) | Message::Sync(sync) if sync.route.sender == *self.client => {
                self.take_sync(now, &sync, reader)
            }
            Message::Ephemeral(ephemeral) if ephemeral.route.sender == *self.client => {
                self.take_ephemeral(now, &ephemeral);
                Ok(())
            }
            Message::RemoteSubscriptionChange { route, add, remove } if route.sender == *self.client => {
                self.take_subscription(add, remove);
                Ok(())
            }
            Message::RemoteHeadsChanged { route, document, heads } if route.sender == *self.client => {
                self.take_heads(now, document, &heads, reader)
            }
            Message::Denials { sender } if sender.as_ref().is_none_or(|sender| *sender == *self.client) => {
                self.documents.tell_denials();
                Ok(())
            }
            Message::Auth { sender, token } if sender.as_ref().is_none_or(|sender| *sender == *self.client) => {
                self.tokens += 1;
                if self.tokens > TOKENS_MAX {
                    return Err(RepoFault::TooMany { what: "tokens", max: TOKENS_MAX });
                }
                self.token = Some(token.into_owned());
                Ok(())
            }
            Message::Create(create) if create.sender.as_ref().is_none_or(|sender| *sender == *self.client) => {
                self.take_create(now, &create, reader)
            }
            _ => Ok(()),
        }
    }

    fn take_join(&mut self, join: &Join<'_>) -> Result<(), RepoFault> {
        if matches!(self.stage, Stage::Open) && join.sender == *self.client {
            // It did not hear the answer, or asks twice.
            self.owes_peer = true;
            return Ok(());
        }
        if !matches!(self.stage, Stage::Waiting) {
            return Err(RepoFault::Unexpected("a second join under another name"));
        }
        self.client = join.sender.to_string();
        if join.versions.as_ref().is_some_and(|versions| !versions.iter().any(|version| version == wire::VERSION)) {
            return Err(RepoFault::Version);
        }
        self.client_storage = join.metadata.storage.as_ref().map(ToString::to_string);
        self.stage = Stage::Joining;
        let (peer, principal) = (self.client.clone(), self.config.principal.clone());
        self.events.push(RepoEvent::Joined { peer, principal });
        Ok(())
    }

    fn take_sync(&mut self, now: Moment, sync: &Sync<'_>, reader: &Reader) -> Result<(), RepoFault> {
        self.open(sync.document)?;
        let Self { documents, config, intake, .. } = self;
        documents.handle_sync(sync.document, &sync.data, now.unix_ms, config, reader, intake)
    }

    fn open(&mut self, document: DocumentId) -> Result<(), RepoFault> {
        if self.documents.open(document, &self.config)? {
            self.events.push(RepoEvent::Opened(document));
        }
        Ok(())
    }

    fn take_ephemeral(&mut self, now: Moment, ephemeral: &Ephemeral<'_>) {
        // Who does not have the document open has nothing to say to those who do.
        if !self.documents.is_open(ephemeral.document) || !self.config.may_announce(ephemeral.document) {
            return;
        }
        if let Some(passing) = self.ephemeral.take(ephemeral, now.at, &self.config.limits) {
            self.events.push(RepoEvent::Ephemeral(Arc::new(passing)));
        }
    }

    fn take_subscription(&mut self, add: Vec<Text<'_>>, remove: Vec<Text<'_>>) {
        let remove: Vec<String> =
            remove.into_iter().filter(|storage| self.subscriptions.remove(&**storage)).map(Text::into_owned).collect();
        let max = self.config.limits.repo_subscriptions;
        let mut added = Vec::new();
        for storage in add {
            if self.subscriptions.len() < max && self.subscriptions.insert(storage.to_string()) {
                added.push(storage.into_owned());
            }
        }
        self.events.push(RepoEvent::Subscribed { add: added, remove });
    }

    /// Takes the client's word for what stores behind it have, as far as that is durable here.
    fn take_heads(
        &mut self,
        now: Moment,
        document: DocumentId,
        stores: &[StoreHeads<'_>],
        reader: &Reader,
    ) -> Result<(), RepoFault> {
        // Who may not read it has no say in what others have of it, and must not learn whether it guessed right.
        if !self.documents.is_open(document) || !self.config.may_read(document) {
            return Ok(());
        }
        let place = self.config.common.place(document, reader)?;
        let graph = place.graph.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for store in stores {
            let heads: Option<Vec<ChangeHash>> = store.heads.iter().map(|head| parse_head(head)).collect();
            let Some(heads) = heads.filter(|heads| !heads.is_empty() && graph.contains_all(heads)) else { continue };
            // A time to come would keep the true heads from being told until then.
            let unix_ms = (store.timestamp.max(0.0) as u64).min(now.unix_ms);
            let (storage, heads) = (store.storage.to_string(), Heads::new(heads));
            self.events.push(RepoEvent::Heads(Arc::new(StoreHeadsKnown { storage, document, heads, unix_ms })));
        }
        Ok(())
    }

    fn take_create(&mut self, now: Moment, create: &Create<'_>, reader: &Reader) -> Result<(), RepoFault> {
        let name = create.name.as_ref().map(ToString::to_string);
        if !self.config.scope.serves(&create.collection) {
            return Err(RepoFault::Unexpected("a document is created in a collection that is not served here"));
        }
        if name.as_ref().is_some_and(|name| {
            name.is_empty()
                || name.len() > Lifecycle::NAME_BYTES_MAX
                || DocumentId::named(&create.collection, name) != create.document
        }) {
            return Err(RepoFault::Unexpected("a document's name does not lead to its id"));
        }
        self.open(create.document)?;
        let statement = Lifecycle {
            document: create.document,
            collection: create.collection.clone(),
            kind: LifecycleKind::Created,
            rank: CreationRank::Asked,
            lamport: 1,
            author: self.config.node,
            actor: None,
            time_ms: now.unix_ms,
            heads: Heads::default(),
            name,
        };
        let Self { documents, config, intake, .. } = self;
        documents.handle_create(create.document, statement, config, reader, intake)
    }

    fn fail_if(&mut self, taken: Result<(), RepoFault>) {
        if let Err(fault) = taken {
            self.fail(fault);
        }
    }

    fn fail(&mut self, fault: RepoFault) {
        if !matches!(self.stage, Stage::Failed(_) | Stage::Closing(_) | Stage::Closed) {
            self.events.clear();
            self.stage = Stage::Failed(fault);
        }
    }
}

/// A head as it stands in the URLs of automerge-repo.
fn url_head(head: &ChangeHash) -> String {
    bs58::encode(head.0).with_check().into_string()
}

/// The longest text of a head: 36 bytes in base58, or 32 in hexadecimal.
const HEAD_TEXT_MAX: usize = 64;

/// A head as clients of any generation write it.
fn parse_head(text: &str) -> Option<ChangeHash> {
    if text.len() == HEAD_TEXT_MAX {
        return text.parse().ok();
    }
    if text.len() > HEAD_TEXT_MAX {
        return None;
    }
    let bytes = bs58::decode(text).with_check(None).into_vec().ok()?;
    bytes.try_into().ok().map(ChangeHash)
}
