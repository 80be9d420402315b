//! The half of a link that takes the peer's log.
//!
//! The cursor on the peer's log moves only when everything before it is logged here: while a document is *wanted* (its
//! state differs from a page's digest, or rows of it wait for changes we lack) the cursor is held, and moves once the
//! last wanted document is whole. Batches are acknowledged when none of their rows waits.
//!
//! ```text
//! wanted document:  Asked -> (rows) -> gone
//!                         -> Streaming -> Asked ...
//!                         -> Exchanging -> gone        (an exchange may also end before the answer says so: Exchanged)
//! ```

mod access;
mod streams;
mod wanted;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError};

use self::access::{Offered, Rights};
use self::streams::Incoming;
use self::wanted::{LoggedStream, Wanting, Wish, send_wants};
use super::attest::{Attested, Verifier};
use super::exchanges::{Ended, Exchanges};
use super::intake::{Intake, Mark};
use super::origins::origin_from_wire;
use super::session::{IncomingBody, IncomingRow, Opened, Outbox, Output, SessionError, SessionEvent, parse_change};
use super::wire::{
    self, Ack, Attestations, ChangeBatch, DocumentBatch, Frame, Inventory, Judgement, Outcome, Position, ROW_IN_PARTS,
    Row, RowKind,
};
use crate::history::{HistoryError, Origin, Reader};
use crate::id::{ActorId, DocumentId, Heads, LogCursor, LogId, Lsn, NodeId};
use crate::limits::Limits;
use crate::log::record::Admission;

pub(super) struct Follower {
    peer: NodeId,
    limits: Limits,
    log_id: LogId,
    /// Where the peer's log ended when the link was made.
    tail_met: Lsn,
    strict: bool,
    /// Documents are being listed: no batch may come.
    listing: bool,
    /// What is stored.
    cursor: Option<LogCursor>,
    /// What is to be stored once nothing is wanted.
    held: Option<LogCursor>,
    batch: u64,
    logged: u64,
    acknowledged: u64,
    page: u64,
    /// Pages that came and were not compared.
    pages: VecDeque<Inventory>,
    wanted: BTreeMap<DocumentId, Wanting>,
    /// Wanted documents that must be asked for again.
    asks: VecDeque<DocumentId>,
    /// The bytes of the next long row.
    parts: Vec<u8>,
    /// Who answers for authors whose first changes are in the next batch.
    attested: BTreeMap<(DocumentId, ActorId), Attested>,
    /// What a node's word of origins is held against; none for a client, who has no say in that.
    verifier: Option<Arc<Verifier>>,
    streams: BTreeMap<Opened, Incoming>,
    caught_up: bool,
    /// What the peer may do here.
    rights: Rights,
    /// What we may read there.
    offered: Offered,
    /// Documents that the peer listed otherwise than they are here, though all it has of them is here.
    differing: Vec<DocumentId>,
}

/// Authors in one batch of whom it is kept who answers for them: twice as many as a batch of ours has rows.
const ATTESTED_MAX: usize = 4096;

impl Follower {
    pub(super) fn new(
        peer: NodeId,
        verifier: Option<Arc<Verifier>>,
        cursor: Option<LogCursor>,
        limits: &Limits,
    ) -> Self {
        let rights = Rights::of(verifier.is_some());
        Self {
            peer,
            limits: limits.clone(),
            log_id: LogId([0; 16]),
            tail_met: Lsn::ZERO,
            strict: false,
            listing: false,
            cursor,
            held: None,
            batch: 0,
            logged: 0,
            acknowledged: 0,
            page: 0,
            pages: VecDeque::new(),
            wanted: BTreeMap::new(),
            asks: VecDeque::new(),
            parts: Vec::new(),
            attested: BTreeMap::new(),
            verifier,
            streams: BTreeMap::new(),
            caught_up: false,
            rights,
            offered: Offered::default(),
            differing: Vec::new(),
        }
    }

    /// What holds it up, for a simulation that finds it stuck.
    #[cfg(feature = "sim")]
    pub(super) fn describe(&self) -> String {
        let wanted: Vec<_> = self.wanted.iter().map(|(id, wanting)| (id, wanting.state as u8, wanting.again)).collect();
        let (cursor, held, listing, page) = (self.cursor, self.held, self.listing, self.page);
        format!("cursor {cursor:?}, held {held:?}, listing {listing} at page {page}, wanted {wanted:?}")
    }

    /// Takes what the peer's `Hello` said.
    pub(super) fn meet(&mut self, log_id: LogId, tail: Lsn, strict: bool) {
        (self.log_id, self.tail_met, self.strict) = (log_id, tail, strict);
    }

    /// Takes what the peer says about our cursor.
    pub(super) fn begin(&mut self, judgement: Judgement) -> Result<(), SessionError> {
        self.listing = judgement != Judgement::Known;
        if self.listing {
            self.cursor = None;
        } else if self.cursor.is_none_or(|cursor| cursor.log_id != self.log_id) {
            return Err(unexpected("HelloAck", "it knows a cursor we do not have"));
        }
        Ok(())
    }

    /// A document that the peer has to answer for.
    pub(super) fn waits_for_peer(&self) -> Option<DocumentId> {
        self.wanted.keys().next().copied()
    }

    /// Whether the cursor may move with what is logged next. Not beyond what was denied, before the peer says that it has
    /// taken that back: on the next link it is either withdrawn or brought and denied again.
    pub(super) fn may_move_cursor(&self) -> bool {
        self.is_answered() && self.rights.is_settled()
    }

    /// Whether nothing is left to ask for.
    fn is_answered(&self) -> bool {
        (self.wanted.is_empty() || mutant!(CursorBeforeRows)) && self.pages.is_empty() && !self.listing
    }

    /// Takes a slice of the peer's log.
    pub(super) fn handle_batch(
        &mut self,
        batch: ChangeBatch,
        reader: &Reader,
        intake: &mut Intake,
    ) -> Result<(), SessionError> {
        if self.strict || self.listing {
            return Err(unexpected("ChangeBatch", "documents are listed"));
        }
        if batch.number != self.batch + 1 {
            return Err(unexpected("ChangeBatch", "its number does not follow"));
        }
        if batch.number - self.acknowledged > self.limits.batches_in_flight as u64 {
            let max = self.limits.batches_in_flight;
            return Err(SessionError::TooMany { what: "batches under way", max });
        }
        self.batch = batch.number;
        for row in batch.rows {
            let document = batch.documents[row.document as usize];
            self.take_row(document, row, &batch.origins, reader, intake)?;
        }
        self.attested.clear();
        self.require_no_parts("ChangeBatch")?;
        let end = batch.end.map(|end| self.cursor_at(end));
        if mutant!(AckBeforeLogged) {
            self.logged = batch.number;
        }
        intake.mark(Mark::Batch { number: batch.number, end });
        Ok(())
    }

    /// Takes who answers for authors in the batch that follows.
    pub(super) fn handle_attestations(&mut self, said: &Attestations) {
        if self.verifier.is_none() {
            return;
        }
        for attested in Attested::from_wire(said) {
            if self.attested.len() < ATTESTED_MAX {
                self.attested.insert((attested.document, attested.actor.clone()), attested);
            }
        }
    }

    /// Takes a page of the peer's documents.
    pub(super) fn handle_inventory(&mut self, page: Inventory) -> Result<(), SessionError> {
        if !self.strict && !self.listing {
            return Err(unexpected("Inventory", "the listing is over"));
        }
        if page.page != self.page + 1 {
            return Err(unexpected("Inventory", "its number does not follow"));
        }
        if page.rows.len() > self.limits.inventory_rows || self.pages.len() >= 2 {
            return Err(SessionError::TooMany {
                what: "documents listed at once",
                max: 2 * self.limits.inventory_rows,
            });
        }
        self.page = page.page;
        self.pages.push_back(page);
        Ok(())
    }

    /// Takes an answer to a want.
    pub(super) fn handle_document(
        &mut self,
        batch: DocumentBatch,
        reader: &Reader,
        intake: &mut Intake,
    ) -> Result<(), SessionError> {
        let document = batch.document;
        let asked = |wanting: &Wanting| matches!(wanting.state, Wish::Asked | Wish::Exchanged);
        let is_asked = self.wanted.get(&document).is_some_and(asked);
        // What was denied meanwhile is waited for no more, whatever was asked before.
        if !is_asked && !self.rights.has_denied(document) {
            return Err(unexpected("DocumentBatch", "the document was not asked for"));
        }
        if batch.outcome != Outcome::UnknownDocument {
            // Even if we have all of it.
            self.offered.note_received(document);
        }
        for row in batch.rows {
            self.take_row(document, row, &batch.origins, reader, intake)?;
        }
        self.attested.clear();
        self.require_no_parts("DocumentBatch")?;
        match (batch.outcome, batch.streamed) {
            (Outcome::More, None) => {}
            (Outcome::More, Some(_)) => {
                if let Some(wanting) = self.wanted.get_mut(&document) {
                    wanting.state = Wish::Streaming;
                    wanting.required = batch.heads;
                    if let Some(LoggedStream { was_denied }) = wanting.logged_stream.take() {
                        self.conclude_stream(document, was_denied);
                    }
                }
            }
            (outcome, _) => intake.mark(Mark::Document { document, heads: batch.heads, outcome }),
        }
        Ok(())
    }

    /// Takes a piece of a long row.
    pub(super) fn handle_part(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        let max = self.limits.change_bytes_max;
        if self.parts.len() + bytes.len() > max {
            return Err(SessionError::TooMany { what: "bytes in one row", max });
        }
        self.parts.extend_from_slice(bytes);
        Ok(())
    }

    /// Takes note that rows of the document wait for changes we lack.
    pub(super) fn handle_missing(&mut self, document: DocumentId, exchanges: &Exchanges) {
        self.ask_for(document, exchanges);
        if let Some(wanting) = self.wanted.get_mut(&document) {
            wanting.rows_wait = true;
        }
    }

    pub(super) fn handle_logged_batch(&mut self, number: u64, end: Option<LogCursor>, stored: bool) {
        self.logged = number;
        match end {
            Some(end) if stored => (self.cursor, self.held) = (Some(end), None),
            Some(end) => self.held = Some(end),
            None => {}
        }
    }

    pub(super) fn handle_logged_document(
        &mut self,
        document: DocumentId,
        heads: &Heads,
        outcome: Outcome,
        reader: &Reader,
    ) -> Result<(), SessionError> {
        let Some(wanting) = self.wanted.get_mut(&document) else { return Ok(()) };
        let whole = match (outcome, wanting.state) {
            (Outcome::UnknownDocument, _) => {
                self.wanted.remove(&document);
                return Ok(());
            }
            (Outcome::Exchange, Wish::Asked) => {
                wanting.state = Wish::Exchanging;
                wanting.required = heads.clone();
                return Ok(());
            }
            // What was denied does not come, however often it is asked for.
            (outcome, _) if self.rights.has_denied(document) => {
                if outcome == Outcome::Exchange {
                    self.rights.leave_unsettled();
                }
                true
            }
            // An exchange that ended already may have been about older heads than the answer's.
            (Outcome::Exchange | Outcome::Complete | Outcome::More, _) => has_all(document, heads, reader)?,
        };
        self.conclude(document, whole, reader)
    }

    /// Takes note that a chunk is logged, or that something of it was denied.
    pub(super) fn handle_logged_stream(&mut self, document: DocumentId, was_denied: bool) {
        match self.wanted.get_mut(&document) {
            Some(wanting) if wanting.state == Wish::Streaming => self.conclude_stream(document, was_denied),
            // The answer that names the stream is yet to come.
            Some(wanting) => wanting.logged_stream = Some(LoggedStream { was_denied }),
            None => {}
        }
    }

    /// Takes note that an exchange is over, whoever began it.
    pub(super) fn handle_exchanged(&mut self, ended: Ended, reader: &Reader) -> Result<(), SessionError> {
        let Some(wanting) = self.wanted.get_mut(&ended.document) else { return Ok(()) };
        // Nothing else brings it then, so it is asked for again when the peer may read it.
        if self.strict && ended.their_heads.is_none() && !self.rights.may_read(ended.document) {
            self.rights.put_off(ended.document);
        }
        match wanting.state {
            Wish::Exchanging => {
                let said = ended.their_heads.is_some();
                let has_denied = self.rights.has_denied(ended.document);
                if has_denied {
                    self.rights.leave_unsettled();
                }
                let whole = has_denied || said && has_all(ended.document, &wanting.required, reader)?;
                self.conclude(ended.document, whole, reader)
            }
            Wish::Asked | Wish::Exchanged => {
                wanting.state = Wish::Exchanged;
                Ok(())
            }
            Wish::Streaming => Ok(()),
        }
    }

    /// Documents of which a node that does not take everything from us may lack something, though we have all it has.
    pub(super) fn take_differing(&mut self) -> impl Iterator<Item = DocumentId> + use<> {
        std::mem::take(&mut self.differing).into_iter()
    }

    pub(super) fn handle_stored(&mut self, cursor: LogCursor) {
        self.cursor = Some(cursor);
        self.held.take_if(|held| held.lsn <= cursor.lsn);
    }

    /// Does one thing that is due; `false` when nothing is.
    pub(super) fn step(
        &mut self,
        reader: &Reader,
        intake: &mut Intake,
        out: &mut Outbox,
        exchanges: &Exchanges,
    ) -> Result<bool, SessionError> {
        self.offered.show_received(reader, intake)?;
        if let Some(cursor) = self.held
            && self.may_move_cursor()
            && intake.is_empty()
        {
            intake.store(cursor).into_iter().for_each(|output| out.put(output));
            return Ok(true);
        }
        let rows_wait = self.wanted.values().any(|wanting| wanting.rows_wait);
        if self.logged > self.acknowledged && !rows_wait {
            self.acknowledged = self.logged;
            out.control(&Frame::Ack(Ack { number: self.logged }))?;
            return Ok(true);
        }
        if self.wanted.len() < self.limits.inventory_rows
            && let Some(page) = self.pages.pop_front()
        {
            self.compare(page, reader, intake, out, exchanges)?;
            return Ok(true);
        }
        let asks = if self.asks.is_empty() { 0 } else { self.asks.len().min(256).min(self.room_for_asks()) };
        if asks > 0 {
            let documents = self.asks.drain(..asks).collect::<Vec<_>>();
            let documents = documents.into_iter().map(|id| self.wish(id, reader)).collect::<Result<_, _>>()?;
            send_wants(0, documents, out)?;
            return Ok(true);
        }
        let followed = self.cursor.into_iter().chain(self.held.filter(|_| !self.rights.is_settled()));
        let reached = followed.max_by_key(|cursor| cursor.lsn).is_some_and(|cursor| cursor.lsn >= self.tail_met);
        if reached && !self.caught_up && self.is_answered() {
            self.caught_up = true;
            out.put(Output::Event(SessionEvent::CaughtUp));
            return Ok(true);
        }
        Ok(false)
    }

    /// Asks for every document of the page that we lack or that differs.
    fn compare(
        &mut self,
        page: Inventory,
        reader: &Reader,
        intake: &mut Intake,
        out: &mut Outbox,
        exchanges: &Exchanges,
    ) -> Result<(), SessionError> {
        let mut wishes = Vec::new();
        self.offered.compare(&page, self.peer, reader, intake)?;
        for row in page.rows {
            if let Some(wanting) = self.wanted.get_mut(&row.document) {
                (wanting.again, wanting.is_read, wanting.listed) = (true, false, Some(row.digest));
                continue;
            }
            let state = reader.document(row.document)?;
            if state.as_ref().is_some_and(|state| state.digest.0 == row.digest) {
                continue;
            }
            let live = exchanges.is_live(row.document);
            let wish = if live { Wish::Exchanging } else { Wish::Asked };
            // What is being exchanged may have been said before it became what the page lists: ask afterwards.
            self.wanted.insert(row.document, Wanting { again: live, listed: Some(row.digest), ..Wanting::new(wish) });
            if !live {
                wishes.push(self.wish(row.document, reader)?);
            }
        }
        if mutant!(WantForgotten) {
            wishes.pop();
        }
        if page.done {
            self.listing = false;
            self.held = Some(self.cursor_at(page.at));
        }
        send_wants(page.page, wishes, out)
    }

    fn take_row(
        &mut self,
        document: DocumentId,
        row: Row,
        origins: &[wire::Origin],
        reader: &Reader,
        intake: &mut Intake,
    ) -> Result<(), SessionError> {
        let bytes = if row.flags == ROW_IN_PARTS { std::mem::take(&mut self.parts) } else { row.bytes };
        let body = match row.kind {
            RowKind::Change => IncomingBody::Change(Box::new(parse_change(document, bytes, &self.limits)?)),
            RowKind::Lifecycle => IncomingBody::Lifecycle(bytes),
        };
        if self.rights.turns_away(document, &body) {
            return Ok(());
        }
        let told = self.rights.origin(origin_from_wire(&origins[row.origin as usize]));
        let (origin, signature) = match (&self.verifier, &body) {
            (Some(verifier), IncomingBody::Change(change)) if change.seq() == 1 => {
                let attested = self.attested.get(&(document, change.actor().clone()));
                verifier.entered(document, change, told, attested, reader)
            }
            _ => (told, None),
        };
        self.offered.note_received(document);
        intake.push(IncomingRow { document, body, origin, signature });
        Ok(())
    }

    fn require_no_parts(&self, frame: &'static str) -> Result<(), SessionError> {
        if self.parts.is_empty() { Ok(()) } else { Err(unexpected(frame, "parts came before it that no row uses")) }
    }

    fn cursor_at(&self, at: Position) -> LogCursor {
        LogCursor { log_id: self.log_id, lsn: at.lsn, chain: at.chain }
    }

    /// The peer itself, when nobody said where something entered.
    fn origin_here(&self) -> Origin {
        let origin =
            Origin { node: self.peer, principal: String::new(), admission: Admission::Structural, rules_version: 0 };
        self.rights.origin(origin)
    }
}

fn has_all(document: DocumentId, heads: &Heads, reader: &Reader) -> Result<bool, HistoryError> {
    let graph = reader.graph(document)?;
    let graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(graph.contains_all(heads.as_slice()))
}

fn unexpected(frame: &'static str, why: &'static str) -> SessionError {
    SessionError::UnexpectedFrame { frame, why }
}
