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
//!
//! How it begins is in `opening.rs`, what changes with its user's rights in `rights.rs`; what it takes and gives in
//! `io.rs`, why it ends in `error.rs`.

mod error;
mod io;
mod opening;
mod rights;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::error::SessionError;
pub(super) use self::error::{parse_change, unexpected};
pub(super) use self::io::Outbox;
pub use self::io::{Admitted, Channel, Denied, IncomingBody, IncomingRow, Opened, Output, SessionEvent, Side};
use self::opening::Opening;
use super::attest::{Attester, Verifier};
use super::exchanges::Exchanges;
use super::follower::Follower;
use super::guard::Guard;
use super::intake::{Intake, Mark};
use super::source::Source;
use super::wire::{self, Frame, Role, WireError};
use crate::history::Reader;
use crate::id::{DocumentId, LogCursor, NodeId};
use crate::limits::Limits;

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
