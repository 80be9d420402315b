//! One conversation with one peer, as a state machine without IO.
//!
//! A link is two one-way followings that share a control stream, and any number of exchanges of single documents on
//! streams of their own. [`Session`] holds all of it: [`Source`] serves our log to the peer, [`Follower`] takes the
//! peer's, [`Exchanges`] are the documents whose histories went apart, [`Intake`] is what came and is not logged yet.
//!
//! The driver owns sockets, the writer and the clock. It feeds in what happened (`handle_*`) and then calls
//! [`Session::poll`] until that has nothing to do:
//!
//! ```text
//! loop {
//!     take input: a frame of a channel that accepts one, a stream's end, the log's tail, an admission's outcome
//!     while let Some(output) = session.poll(now, &reader)? { do it }
//!     wait for input, or for session.next_timeout()
//! }
//! ```
//! Backpressure goes both ways. Out: one frame per channel is under way until [`Session::handle_sent`]. In: frames of
//! a channel are read only while [`Session::accepts`] it, so a full writer slows the peer through QUIC's flow control
//! and nothing is queued here beyond a few batches.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ExchangeError;
use super::attest::{Attester, Verifier};
use super::authors::Authors;
use super::exchanges::Exchanges;
use super::follower::Follower;
use super::guard::{Guard, Proven};
use super::intake::{Intake, Mark};
use super::source::Source;
use super::wire::{
    self, CAPABILITY_SNAPSHOTS, CAPABILITY_STRICT, CAPABILITY_TOKEN, Frame, Hello, HelloAck, Judgement, Listing,
    Position, Role, WireError,
};
use crate::document::Change;
use crate::history::{HistoryError, Location, Origin, Reader, Signature};
use crate::id::{ChangeHash, DocumentId, LogCursor, LogId, Lsn, NodeId, truncated};
use crate::limits::Limits;

/// Why a session cannot go on. The driver closes the link with the code that belongs to it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The peer sent what is not a frame.
    #[error("bad frame: {0}")]
    BadFrame(#[from] WireError),
    /// The peer sent a frame where it may not come.
    #[error("unexpected {frame} frame: {why}")]
    UnexpectedFrame {
        /// Which frame.
        frame: &'static str,
        /// Why it may not come here.
        why: &'static str,
    },
    /// The peer says it is another node than its key proves.
    #[error("the peer says it is {said} and its key is that of {proven}")]
    WrongNode {
        /// Who it says it is.
        said: NodeId,
        /// Whose key it has.
        proven: NodeId,
    },
    /// The peer sent bytes that are no change, or a chunk of a kind that does not travel.
    #[error("malformed change of {document}: {why}")]
    MalformedChange {
        /// Of which document.
        document: DocumentId,
        /// What is wrong.
        why: String,
    },
    /// The peer broke an exchange's protocol.
    #[error("exchange of {document}: {error}")]
    Exchange {
        /// Of which document.
        document: DocumentId,
        /// What is wrong.
        error: ExchangeError,
    },
    /// The peer has more of something under way than is allowed.
    #[error("the peer has too many {what}: {max} are allowed")]
    TooMany {
        /// What it has too many of.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// A document does not become equal whatever is sent.
    #[error("{document} does not converge with the peer")]
    NotConverging {
        /// Which document.
        document: DocumentId,
    },
    /// The peer let a document wait for too long.
    #[error("the peer said nothing of {document}, or of any other document that waits for it, for {seconds} seconds")]
    Silent {
        /// Which document.
        document: DocumentId,
        /// For how long.
        seconds: u64,
    },
    /// The writer refused what the peer sent.
    #[error("refused: {0}")]
    Refused(String),
    /// A change the peer sent cannot be applied to its document.
    #[error("{0}")]
    Unappliable(String),
    /// The peer may not read any more what is on its way to it. The link begins anew.
    #[error("what the peer may read has changed while some of it was on its way")]
    AccessChanged,
    /// Our own store does not answer.
    #[error(transparent)]
    History(#[from] HistoryError),
}

impl SessionError {
    /// Whether the peer is to blame.
    #[must_use]
    pub fn is_the_peers(&self) -> bool {
        !matches!(self, Self::History(_) | Self::AccessChanged)
    }
}

/// What a session has to know from the start.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// Who we are.
    pub node: NodeId,
    /// Who the peer is, as its key proves.
    pub peer: NodeId,
    /// What the peer may be here.
    pub role: Role,
    /// Whether every document is to travel in Automerge sync messages.
    pub strict: bool,
    /// A secret that makes the peer take us.
    pub invite: Option<[u8; 16]>,
    /// What says to the peer who our user is.
    pub token: Option<wire::Token>,
    /// The peer's key does not say who its user is: it is asked for with [`Output::Prove`], and until that is answered the
    /// peer hears nothing and brings nothing.
    pub guarded: bool,
    /// How far we have followed the peer's log.
    pub cursor: Option<LogCursor>,
    /// Signs what we answer for, and checks what others signed. Without it nothing is signed here, and no signature
    /// believed.
    pub attester: Option<Arc<dyn Attester>>,
    /// Our software and version, at most 64 bytes.
    pub agent: String,
    /// Every bound.
    pub limits: Limits,
}

/// Where a frame goes or comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// The control stream, which the dialler opens.
    Control,
    /// A bidirectional stream for the exchange of one document.
    Document(Opened),
    /// A unidirectional stream for one document chunk.
    Stream(Opened),
}

/// Which stream: who opened it, and its number among theirs of its kind.
///
/// The session numbers its own; the driver numbers the peer's, in any way that gives each its own number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Opened {
    /// Who opened it.
    pub by: Side,
    /// Its number.
    pub number: u64,
}

/// One end of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// This one.
    Us,
    /// The other.
    Peer,
}

/// What the driver has to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum Output {
    /// Send a frame (type, version and body; the driver writes its length) and answer with
    /// [`Session::handle_sent`]. The first frame on a channel of ours opens it.
    Send {
        /// Where.
        channel: Channel,
        /// The frame; empty when only the end of the stream is to be sent.
        frame: Vec<u8>,
        /// Nothing follows on this channel: finish our side of it.
        finish: bool,
    },
    /// Drop a channel: neither side needs what is on it.
    Reset(Channel),
    /// Give the rows to the writer, and answer with [`Session::handle_admitted`] or [`Session::handle_refused`].
    ///
    /// Rows whose dependencies are missing wait with the writer. `cursor` is stored in the same batch, and only if no
    /// row waits.
    Admit {
        /// Names the answer.
        ticket: u64,
        /// What to log, in order.
        rows: Vec<IncomingRow>,
        /// How far the peer's log is followed with these rows.
        cursor: Option<LogCursor>,
    },
    /// Store the cursor alone, and answer with [`Session::handle_admitted`].
    StoreCursor {
        /// Names the answer.
        ticket: u64,
        /// How far the peer's log is followed.
        cursor: LogCursor,
    },
    /// Find out who the peer's user is, and answer with [`Session::handle_proven`], or close the link. It comes again
    /// whenever the peer shows another token.
    Prove {
        /// What the peer shows, if it shows anything.
        token: Option<wire::Token>,
    },
    /// Take back what the peer will not have of us, and everything that stands on it.
    TakeBack(Vec<wire::DeniedRow>),
    /// Show documents no more, or again: the peer says what of its documents we may read.
    Withhold {
        /// Which.
        documents: Vec<DocumentId>,
        /// Whether they may not be read any more.
        withheld: bool,
    },
    /// Something the node may want to know.
    Event(SessionEvent),
}

/// One thing to log.
#[derive(Debug, Clone)]
pub struct IncomingRow {
    /// Of which document.
    pub document: DocumentId,
    /// What.
    pub body: IncomingBody,
    /// Where it entered the network.
    pub origin: Origin,
    /// Of an author's first change, the signature of that, which is kept with it.
    pub signature: Option<Box<Signature>>,
}

/// What an incoming row is.
#[derive(Debug, Clone)]
pub enum IncomingBody {
    /// A verified change.
    Change(Box<Change>),
    /// A lifecycle record, not opened.
    Lifecycle(Vec<u8>),
    /// A whole document chunk, not verified: the driver splits it into changes.
    Document {
        /// The chunk.
        bytes: Vec<u8>,
        /// Whose its changes are, where the peer may say that: [`Authors::origin`] of each, and the row's otherwise.
        authors: Authors,
    },
}

impl IncomingBody {
    /// How many bytes it was on the wire.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Change(change) => change.bytes().len(),
            Self::Lifecycle(bytes) | Self::Document { bytes, .. } => bytes.len(),
        }
    }
}

/// What became of an [`Output::Admit`] or [`Output::StoreCursor`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Admitted {
    /// The documents with rows that wait, and what they wait for.
    pub missing: Vec<(DocumentId, Vec<ChangeHash>)>,
    /// What its sender may not write.
    pub denied: Vec<Denied>,
    /// Whether the cursor was stored.
    pub cursor_stored: bool,
}

/// What its sender may not write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// Of which document.
    pub document: DocumentId,
    /// The change and what it was made on top of; `None` for a statement about the document's life.
    pub change: Option<super::Arrival>,
    /// Why, as its sender may be told.
    pub why: String,
}

impl Denied {
    /// Why a change is denied that may not even be looked at.
    pub(crate) const BEHIND: &'static str = "it stands on a change that was denied";
}

/// Something the node may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionEvent {
    /// The peer said who it is.
    PeerHello {
        /// The name of its log.
        log_id: LogId,
        /// Where its log ended.
        tail: Lsn,
        /// Its software.
        agent: String,
        /// The secret it shows.
        invite: Option<[u8; 16]>,
        /// Whether documents travel in Automerge sync messages only, for either side's sake.
        strict: bool,
    },
    /// Where the peer's cursor stands in our log.
    PeerPosition(Judgement),
    /// The peer said where our cursor stands in its log, and what we may be there.
    OurPosition(Judgement, Role),
    /// We have everything the peer had when the link was made.
    CaughtUp,
    /// The exchange of a document ended; whether both had the same heads then.
    Exchanged {
        /// Which document.
        document: DocumentId,
        /// Whether both had the same heads.
        converged: bool,
    },
}

/// One conversation with one peer. See the module for how a driver runs it.
pub struct Session {
    config: SessionConfig,
    opening: Opening,
    intake: Intake,
    source: Source,
    follower: Follower,
    exchanges: Exchanges,
    guard: Guard,
    /// Rows that the peer denied and that are taken back.
    taken_back: u64,
    out: Outbox,
    strict: bool,
    /// When we last did something, or heard of a document.
    moved: Option<Instant>,
}

/// How long a peer may be silent about every document that waits for it. Until they are whole the cursor on its log is
/// held, so a peer that never answers costs the link, which begins anew.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// What was said of the first frames.
#[derive(Debug, Default)]
struct Opening {
    hello_sent: bool,
    peer: Option<Hello>,
    judged: bool,
    acknowledged: bool,
    /// What the peer says about our cursor, until its half begins.
    ours: Option<Judgement>,
}

/// What waits to be done by the driver. Only the answer to one input or one step is ever in it.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Frames for the control channel.
    control: VecDeque<Vec<u8>>,
    outputs: VecDeque<Output>,
    /// Channels with a frame under way.
    sending: BTreeSet<Channel>,
}

impl Outbox {
    /// Puts a frame on the control channel.
    pub(super) fn control(&mut self, frame: &Frame) -> Result<(), SessionError> {
        self.control.push_back(frame.encode()?);
        Ok(())
    }

    /// Sends on another channel, which must be free.
    pub(super) fn send(&mut self, channel: Channel, frame: Vec<u8>, finish: bool) {
        self.sending.insert(channel);
        self.outputs.push_back(Output::Send { channel, frame, finish });
    }

    /// Puts out what is no frame.
    pub(super) fn put(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    /// Whether anything on the control channel was not given to the transport yet.
    pub(super) fn has_control(&self) -> bool {
        !self.control.is_empty() || self.sending.contains(&Channel::Control)
    }

    /// Whether nothing is under way on the channel.
    pub(super) fn is_free(&self, channel: Channel) -> bool {
        !self.sending.contains(&channel)
    }
}

impl Session {
    /// Begins a session. The first thing it puts out is its `Hello`.
    #[must_use]
    pub fn new(config: SessionConfig) -> Self {
        let (attester, is_node) = (config.attester.clone(), config.role == Role::Node);
        let verifier = is_node.then(|| Verifier::new(config.peer, attester.clone()));
        Self {
            opening: Opening::default(),
            intake: Intake::new(),
            source: Source::new(config.peer, attester.clone(), &config.limits),
            follower: Follower::new(config.peer, verifier.clone(), config.cursor, &config.limits),
            exchanges: Exchanges::new(config.node, config.peer, verifier, attester, &config.limits),
            guard: Guard::default(),
            taken_back: 0,
            out: Outbox::default(),
            strict: config.strict,
            moved: None,
            config,
        }
    }

    /// Whether a frame may be read from the channel now.
    #[must_use]
    pub fn accepts(&self, channel: Channel) -> bool {
        if self.intake.bytes() >= 4 * self.config.limits.batch_bytes {
            return false;
        }
        match channel {
            Channel::Control | Channel::Stream(_) => true,
            Channel::Document(opened) => self.exchanges.accepts(opened),
        }
    }

    /// Takes a frame: type, version and body.
    ///
    /// # Errors
    /// [`SessionError`] when the peer broke the protocol or our store failed; the session is over.
    pub fn handle_frame(
        &mut self,
        now: Instant,
        channel: Channel,
        frame: &[u8],
        reader: &Reader,
    ) -> Result<(), SessionError> {
        if self.opening.peer.is_none() && frame.len() > self.config.limits.hello_bytes_max {
            return Err(WireError::TooLong { bytes: frame.len(), max: self.config.limits.hello_bytes_max }.into());
        }
        let flood = self.config.limits.pending_bytes + self.config.limits.document_bytes_max;
        if self.intake.bytes() > flood {
            return Err(SessionError::TooMany { what: "bytes that are not logged yet", max: flood });
        }
        if channel != Channel::Control {
            self.moved = Some(now);
        }
        match (channel, Frame::decode(frame)?) {
            (_, Frame::Skipped(_)) => Ok(()),
            (Channel::Control, frame) => self.handle_control(now, frame, reader),
            (_, frame) if !self.opening.judged => Err(unexpected(&frame, "no hello came before")),
            (Channel::Document(opened), Frame::DocSync(part)) => {
                self.exchanges.handle_part(opened, part, reader, &mut self.intake, &mut self.out)
            }
            (Channel::Document(opened), Frame::Authors(said)) => {
                self.exchanges.handle_authors(opened, said, reader, &mut self.out)
            }
            (Channel::Document(opened), Frame::Attestations(said)) => {
                self.exchanges.handle_attestations(opened, &said);
                Ok(())
            }
            (Channel::Stream(opened), Frame::Authors(said)) => self.follower.handle_stream_authors(opened, said),
            (Channel::Stream(opened), Frame::Attestations(said)) => {
                self.follower.handle_stream_attestations(opened, &said);
                Ok(())
            }
            (Channel::Stream(opened), Frame::StreamBegin(begin)) => self.follower.handle_stream(opened, begin),
            (Channel::Stream(opened), Frame::StreamPart(part)) => {
                self.follower.handle_stream_part(opened, &part.bytes, &mut self.intake)
            }
            (_, frame) => Err(unexpected(&frame, "it does not belong on this stream")),
        }
    }

    /// Takes note that the peer finished or dropped its side of a channel.
    ///
    /// # Errors
    /// [`SessionError::UnexpectedFrame`] when a chunk's stream ended before the chunk.
    pub fn handle_channel_closed(&mut self, channel: Channel) -> Result<(), SessionError> {
        match channel {
            Channel::Control => Ok(()),
            Channel::Document(opened) => {
                self.exchanges.handle_closed(opened);
                Ok(())
            }
            Channel::Stream(opened) => self.follower.handle_stream_closed(opened),
        }
    }

    /// Takes note that the frame under way on the channel was given to the transport.
    pub fn handle_sent(&mut self, channel: Channel) {
        self.out.sending.remove(&channel);
    }

    /// Takes note that our log grew.
    pub fn handle_tail(&mut self) {
        self.source.wake();
        self.exchanges.wake();
    }

    /// Takes what became of an [`Output::Admit`] or [`Output::StoreCursor`].
    pub fn handle_admitted(&mut self, ticket: u64, outcome: Admitted) {
        self.intake.handle_admitted(ticket, outcome);
        // What was admitted is in our log now.
        self.handle_tail();
    }

    /// Takes note that the writer will not have what the peer sent.
    ///
    /// # Errors
    /// [`SessionError::Refused`], always: the session is over.
    pub fn handle_refused(&mut self, ticket: u64, reason: &str) -> Result<(), SessionError> {
        let _ = ticket;
        Err(SessionError::Refused(reason.to_owned()))
    }

    /// What it is at, for a simulation that finds it stuck.
    #[cfg(feature = "sim")]
    #[must_use]
    pub fn describe(&self) -> String {
        let (follower, exchanges) = (self.follower.describe(), self.exchanges.describe());
        format!("{follower}; {exchanges}; {:?}; sending {:?}", self.intake, self.out.sending)
    }

    /// When [`poll`](Self::poll) has something to do although nothing happened.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        let impatient_at = self.impatient_at().map(|(_, at)| at);
        self.source.paused_until().into_iter().chain(impatient_at).min()
    }

    /// Gives the next thing to do; `None` when nothing is to do until something happens.
    ///
    /// # Errors
    /// [`SessionError`] when the peer broke the protocol or our store failed; the session is over.
    ///
    /// # Cost
    /// At most one page of an inventory, one slice of the log or one message of an exchange.
    pub fn poll(&mut self, now: Instant, reader: &Reader) -> Result<Option<Output>, SessionError> {
        loop {
            if let Some(output) = self.out.outputs.pop_front() {
                return Ok(Some(output));
            }
            if self.out.is_free(Channel::Control)
                && let Some(frame) = self.out.control.pop_front()
            {
                self.out.sending.insert(Channel::Control);
                return Ok(Some(Output::Send { channel: Channel::Control, frame, finish: false }));
            }
            if !self.step(now, reader)? {
                return match self.impatient_at() {
                    Some((document, at)) if now >= at => {
                        Err(SessionError::Silent { document, seconds: SILENCE_MAX.as_secs() })
                    }
                    _ => Ok(None),
                };
            }
            self.moved = Some(now);
        }
    }

    /// A document that waits for the peer, and when it will have waited for too long. None while our own writer is at
    /// something: then it is not the peer that is slow.
    fn impatient_at(&self) -> Option<(DocumentId, Instant)> {
        let document = self.exchanges.waits_for_peer().or_else(|| self.follower.waits_for_peer())?;
        let moved = self.moved.filter(|_| self.intake.is_empty())?;
        Some((document, moved + SILENCE_MAX))
    }

    /// Does one thing that is due; `false` when nothing is.
    fn step(&mut self, now: Instant, reader: &Reader) -> Result<bool, SessionError> {
        if !self.opening.hello_sent {
            self.say_hello(reader)?;
            return Ok(true);
        }
        if !self.opening.judged {
            return Ok(false);
        }
        if let Some((marks, outcome)) = self.intake.take_settled() {
            self.settle(marks, &outcome, reader)?;
            return Ok(true);
        }
        let may_move = self.follower.may_move_cursor();
        if let Some(output) = self.intake.next_admission(may_move) {
            if let Output::Admit { rows, .. } = &output {
                rows.iter().for_each(|row| self.source.note_brought(row.document));
            }
            self.out.put(output);
            return Ok(true);
        }
        if self.intake.has_settled() {
            return Ok(true);
        }
        if self.exchanges.step(reader, &mut self.out)? {
            self.report_ended_exchanges(reader)?;
            return Ok(true);
        }
        if self.source.step_streams(reader, &mut self.out)? {
            return Ok(true);
        }
        // The rest speaks on the control channel, one thing at a time.
        if !self.out.is_free(Channel::Control) || !self.out.control.is_empty() {
            return Ok(false);
        }
        if self.follower.step(reader, &mut self.intake, &mut self.out, &self.exchanges)? {
            return Ok(true);
        }
        if !self.opening.acknowledged {
            return Ok(false);
        }
        self.follower.take_differing().for_each(|document| self.source.offer(document));
        let may_answer = !self.guard.filters() || self.intake.is_empty();
        let worked = self.source.step(now, reader, &mut self.out, &mut self.exchanges, may_answer)?;
        let withdrawn = self.source.take_withdrawn();
        if self.config.role == Role::Node {
            withdrawn.into_iter().for_each(|document| self.follower.ask_for(document, &self.exchanges));
        }
        Ok(worked)
    }

    fn hello(&self, reader: &Reader) -> Hello {
        let tail = reader.tail();
        let strict = if self.config.strict { CAPABILITY_STRICT } else { 0 };
        let token = if self.config.token.is_some() { CAPABILITY_TOKEN } else { 0 };
        let agent = truncated(&self.config.agent, wire::AGENT_BYTES_MAX).to_owned();
        Hello {
            node: self.config.node,
            log_id: tail.log_id,
            tail: Position { lsn: tail.lsn, chain: tail.chain },
            capabilities: CAPABILITY_SNAPSHOTS | strict | token,
            agent,
            invite: self.config.invite,
            cursor: self.config.cursor,
        }
    }

    fn handle_control(&mut self, now: Instant, frame: Frame, reader: &Reader) -> Result<(), SessionError> {
        match frame {
            Frame::Hello(hello) if self.opening.peer.is_none() => return self.handle_hello(hello, reader),
            frame if self.opening.peer.is_none() => return Err(unexpected(&frame, "no hello came before")),
            Frame::HelloAck(ack) if !self.opening.acknowledged => {
                self.opening.acknowledged = true;
                self.opening.ours = Some(ack.judgement);
                self.tell_authors(ack.role);
                self.out.put(Output::Event(SessionEvent::OurPosition(ack.judgement, ack.role)));
                self.follower.begin(ack.judgement)?;
                self.begin_source(reader);
                return Ok(());
            }
            Frame::Auth(auth) => return self.handle_auth(auth),
            Frame::Access(_) | Frame::Denied(_) if self.config.role != Role::Node => {
                return Err(unexpected(&frame, "a client says nothing of our rights"));
            }
            Frame::TakenBack(_) if self.config.role != Role::Client => {
                return Err(unexpected(&frame, "a node is denied nothing"));
            }
            // A node says it before it acknowledges us.
            Frame::Access(access) if self.opening.judged => {
                self.follower.handle_access(access, &mut self.intake);
                return Ok(());
            }
            frame if !self.opening.acknowledged => return Err(unexpected(&frame, "no acknowledged hello came before")),
            frame if !self.opening.judged => return Err(unexpected(&frame, "it has not been said who the sender is")),
            _ => {}
        }
        match frame {
            Frame::ChangeBatch(batch) => self.follower.handle_batch(batch, reader, &mut self.intake),
            Frame::Attestations(said) => {
                self.follower.handle_attestations(&said);
                Ok(())
            }
            Frame::Inventory(page) => self.follower.handle_inventory(page),
            Frame::DocumentBatch(batch) => {
                self.moved = Some(now);
                self.follower.handle_document(batch, reader, &mut self.intake)
            }
            Frame::Part(part) => self.follower.handle_part(&part.bytes),
            Frame::Ack(ack) => self.source.handle_ack(ack.number),
            Frame::Want(want) => self.source.handle_want(want),
            Frame::Denied(denied) => {
                self.out.put(Output::TakeBack(denied.rows));
                Ok(())
            }
            Frame::TakenBack(taken) => self.follower.handle_taken_back(taken.rows),
            Frame::Busy(busy) => {
                self.source.pause(now + Duration::from_millis(busy.retry_after_ms.into()));
                Ok(())
            }
            frame => Err(unexpected(&frame, "it may not come here or not again")),
        }
    }

    fn handle_auth(&mut self, auth: wire::Auth) -> Result<(), SessionError> {
        // Where a key says enough, a token says nothing more.
        if self.config.guarded {
            self.guard.count_token()?;
            self.out.put(Output::Prove { token: Some(auth.token) });
        }
        Ok(())
    }

    fn handle_hello(&mut self, hello: Hello, reader: &Reader) -> Result<(), SessionError> {
        if hello.node != self.config.peer {
            return Err(SessionError::WrongNode { said: hello.node, proven: self.config.peer });
        }
        self.strict |= hello.capabilities & CAPABILITY_STRICT != 0;
        self.out.put(Output::Event(SessionEvent::PeerHello {
            log_id: hello.log_id,
            tail: hello.tail.lsn,
            agent: hello.agent.clone(),
            invite: hello.invite,
            strict: self.strict,
        }));
        if !self.opening.hello_sent {
            self.say_hello(reader)?;
        }
        // Before it is known who the peer's user is: what it makes of us may come first.
        self.follower.meet(hello.log_id, hello.tail.lsn, self.strict);
        let brings_token = hello.capabilities & CAPABILITY_TOKEN != 0;
        self.opening.peer = Some(hello);
        match (self.config.guarded, brings_token) {
            (false, _) => self.acknowledge(reader),
            (true, false) => {
                self.out.put(Output::Prove { token: None });
                Ok(())
            }
            (true, true) => Ok(()),
        }
    }

    /// Says what we make of the peer's `Hello`. From here on each side has its half.
    fn acknowledge(&mut self, reader: &Reader) -> Result<(), SessionError> {
        let Some(hello) = &self.opening.peer else { return Ok(()) };
        // How far it has followed says nothing where it was not told everything.
        let judgement = if self.guard.filters() { Judgement::Unknown } else { judge(hello.cursor.as_ref(), reader)? };
        self.out.put(Output::Event(SessionEvent::PeerPosition(judgement)));
        if self.guard.filters() {
            self.out.control(&Frame::Access(wire::Access { listing: Listing::Whole, withheld: Vec::new() }))?;
        }
        self.out.control(&Frame::HelloAck(HelloAck { judgement, role: self.config.role }))?;
        self.opening.judged = true;
        let snapshots = hello.capabilities & CAPABILITY_SNAPSHOTS != 0;
        let from = hello.cursor.filter(|_| judgement == Judgement::Known).map(|cursor| cursor.lsn);
        self.source.position(from, self.strict, snapshots, reader);
        self.begin_source(reader);
        Ok(())
    }

    /// Nodes tell each other whose the authors are of what they exchange; nobody believes a client.
    fn tell_authors(&mut self, our_role: Role) {
        let tells = self.config.role == Role::Node && our_role == Role::Node;
        self.exchanges.tells_authors = tells;
        self.source.tells_authors = tells;
    }

    /// Begins to serve, once each side has said what it makes of the other.
    fn begin_source(&mut self, reader: &Reader) {
        if self.opening.judged
            && let Some(ours) = self.opening.ours.take()
        {
            self.source.begin(ours, reader);
        }
    }

    fn say_hello(&mut self, reader: &Reader) -> Result<(), SessionError> {
        self.opening.hello_sent = true;
        self.out.control(&Frame::Hello(self.hello(reader)))?;
        match self.config.token.clone() {
            Some(token) => self.out.control(&Frame::Auth(wire::Auth { token })),
            None => Ok(()),
        }
    }

    /// Shows the peer another token, from now on.
    ///
    /// # Errors
    /// [`SessionError::BadFrame`] when it is longer than a token may be.
    pub fn show_token(&mut self, token: wire::Token) -> Result<(), SessionError> {
        if self.opening.hello_sent {
            self.out.control(&Frame::Auth(wire::Auth { token: token.clone() }))?;
        }
        self.config.token = Some(token);
        Ok(())
    }

    /// Takes who the peer's user is: the answer to [`Output::Prove`].
    ///
    /// # Errors
    /// As [`Self::handle_frame`].
    pub fn handle_proven(&mut self, proven: Proven, reader: &Reader) -> Result<(), SessionError> {
        self.follower.prove(&proven);
        self.source.permit(proven.permits.clone());
        self.exchanges.prove(&proven);
        self.guard.prove(proven);
        if self.opening.judged { self.handle_access_changed(reader) } else { self.acknowledge(reader) }
    }

    /// Takes note that so many rows that the peer denied are taken back, durably: all that an [`Output::TakeBack`] had, or
    /// none of them where some are left.
    ///
    /// # Errors
    /// As [`Self::handle_frame`].
    pub fn handle_taken_back(&mut self, rows: usize) -> Result<(), SessionError> {
        if rows == 0 {
            return Ok(());
        }
        self.taken_back += rows as u64;
        self.out.control(&Frame::TakenBack(wire::TakenBack { rows: self.taken_back }))
    }

    /// Takes note that the peer's user may do other things than before.
    ///
    /// # Errors
    /// As [`Self::handle_frame`].
    pub fn handle_access_changed(&mut self, reader: &Reader) -> Result<(), SessionError> {
        if mutant!(RevocationUnheard) {
            return Ok(());
        }
        self.look_again(reader, true)
    }

    /// Takes note that the peer's user may read other documents than before, for nothing but the time. What was denied is
    /// not asked for every few seconds.
    ///
    /// # Errors
    /// As [`Self::handle_frame`].
    pub fn handle_time_passed(&mut self, reader: &Reader) -> Result<(), SessionError> {
        self.look_again(reader, false)
    }

    fn look_again(&mut self, reader: &Reader, asks_for_denied: bool) -> Result<(), SessionError> {
        self.exchanges.drop_unreadable(reader, &mut self.out)?;
        self.report_ended_exchanges(reader)?;
        if asks_for_denied {
            self.follower.handle_access_changed(&self.exchanges);
        }
        self.source.handle_access_changed(&mut self.out)
    }

    /// Does what was to be done once these rows were logged.
    fn settle(&mut self, marks: Vec<Mark>, outcome: &Admitted, reader: &Reader) -> Result<(), SessionError> {
        self.follower.tell_denied(&outcome.denied, reader, &mut self.out)?;
        for (document, _) in &outcome.missing {
            self.follower.handle_missing(*document, &self.exchanges);
        }
        for mark in marks {
            match mark {
                Mark::Batch { number, end } => self.follower.handle_logged_batch(number, end, outcome.cursor_stored),
                Mark::Document { document, heads, outcome } => {
                    self.follower.handle_logged_document(document, &heads, outcome, reader)?;
                }
                Mark::Stream { document } => {
                    let was_denied = outcome.denied.iter().any(|denied| denied.document == document);
                    self.follower.handle_logged_stream(document, was_denied);
                }
                Mark::Exchange { channel, arrived } => {
                    self.exchanges.settle(channel, arrived, &outcome.denied, reader)?;
                }
                Mark::Cursor(cursor) => self.follower.handle_stored(cursor),
                // What came before it is logged: it is about that as well.
                Mark::Withhold { documents, withheld } => self.out.put(Output::Withhold { documents, withheld }),
                // A node's session puts in none.
                Mark::Message { .. } => {}
            }
        }
        self.report_ended_exchanges(reader)
    }

    fn report_ended_exchanges(&mut self, reader: &Reader) -> Result<(), SessionError> {
        for ended in self.exchanges.take_ended() {
            let event = SessionEvent::Exchanged { document: ended.document, converged: ended.converged };
            self.out.put(Output::Event(event));
            self.follower.handle_exchanged(ended, reader)?;
        }
        Ok(())
    }
}

/// Says where the peer's cursor stands in our log.
fn judge(cursor: Option<&LogCursor>, reader: &Reader) -> Result<Judgement, SessionError> {
    let Some(cursor) = cursor else { return Ok(Judgement::Unknown) };
    Ok(match reader.locate(cursor)? {
        Location::Known => Judgement::Known,
        Location::Unknown => Judgement::Unknown,
        Location::Diverged => Judgement::Diverged { lsn: reader.tail().lsn },
    })
}

/// Verifies a change that came from the peer.
pub(super) fn parse_change(document: DocumentId, bytes: Vec<u8>, limits: &Limits) -> Result<Change, SessionError> {
    Change::parse_within(bytes, limits)
        .map_err(|error| SessionError::MalformedChange { document, why: error.to_string() })
}

/// Names a frame that may not come.
pub(super) fn unexpected(frame: &Frame, why: &'static str) -> SessionError {
    let frame = match frame {
        Frame::Hello(_) => "Hello",
        Frame::HelloAck(_) => "HelloAck",
        Frame::ChangeBatch(_) => "ChangeBatch",
        Frame::Ack(_) => "Ack",
        Frame::Inventory(_) => "Inventory",
        Frame::Want(_) => "Want",
        Frame::DocumentBatch(_) => "DocumentBatch",
        Frame::DocSync(_) => "DocSync",
        Frame::Part(_) => "Part",
        Frame::Busy(_) => "Busy",
        Frame::StreamBegin(_) => "StreamBegin",
        Frame::StreamPart(_) => "StreamPart",
        Frame::Auth(_) => "Auth",
        Frame::Access(_) => "Access",
        Frame::Denied(_) => "Denied",
        Frame::Authors(_) => "Authors",
        Frame::Attestations(_) => "Attestations",
        Frame::TakenBack(_) => "TakenBack",
        Frame::Skipped(_) => "unknown",
    };
    SessionError::UnexpectedFrame { frame, why }
}
