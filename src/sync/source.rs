//! The half of a link that serves our log to the peer.
//!
//! ```text
//! Waiting -> Listing -> Streaming      strict: Waiting -> Listing -> Resting -> Listing (what changed) -> ...
//!        \-> Streaming                                \-> Resting
//! ```
//! Streaming reads the log in slices; live push is the same reading, woken by the tail. Wants are served before
//! anything else is listed or streamed, so a document's past arrives before its news.
//!
//! Rows that the peer brought are not sent back to it. That needs care: a peer restored from a backup lacks rows it
//! once brought. Only a peer that still knows our cursor on its log is proven to have them; for another one, only rows
//! it brought during this session are left out.

mod audience;
mod offers;
mod rows;
mod streams;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use self::audience::Audience;
use self::rows::Rows;
use self::streams::Outgoing;
use super::attest::{Attested, Attester};
use super::exchanges::Exchanges;
use super::session::{Outbox, SessionError};
use super::wire::{
    ChangeBatch, DocumentBatch, Frame, Inventory, InventoryRow, Judgement, Outcome, Position, RowKind, Want, Wanted,
};
use crate::history::{Entry, EntryKind, HistoryError, Origin, Reader};
use crate::id::{ActorId, ChangeHash, DocumentId, Heads, LogCursor, Lsn, NodeId};
use crate::limits::Limits;
use crate::log::record::{Admission, ChangeHeader, Record, StateDigest};

pub(super) struct Source {
    peer: NodeId,
    limits: Limits,
    strict: bool,
    /// The peer takes chunks on streams.
    snapshots: bool,
    /// Where the peer's cursor stands, if it does.
    from: Option<Lsn>,
    tail_met: Lsn,
    /// Rows above it that the peer brought are left out.
    echo_from: Lsn,
    phase: Phase,
    /// The log may have grown beyond what was read.
    awake: bool,
    number: u64,
    acknowledged: u64,
    /// Records read since the last batch.
    skipped: usize,
    page: u64,
    answered: u64,
    wants: VecDeque<Wanted>,
    serving: Option<Serving>,
    /// Wants that a snapshot answers, until a stream is free.
    stream_wants: VecDeque<Wanted>,
    streams: Vec<Outgoing>,
    /// Documents that went on a stream and that the peer has not asked for again, and the bytes of each: the transport
    /// may hold many small chunks that the peer has not read.
    unread: HashMap<DocumentId, usize>,
    opened: u64,
    paused_until: Option<Instant>,
    audience: Audience,
    /// The peer is a node that takes us for one: it is told whose authors are.
    pub(super) tells_authors: bool,
    /// Signs what it is told of them.
    attester: Option<Arc<dyn Attester>>,
    /// The footer that the peer was told everything up to, where it is one.
    reached: Option<LogCursor>,
    /// Documents in batches that are not acknowledged, by the batch's number.
    unacknowledged: VecDeque<(u64, Vec<DocumentId>)>,
    /// Documents of which changes were withdrawn here, and that was not looked at yet.
    withdrawn: BTreeSet<DocumentId>,
    /// Documents of which the peer is told once more what was said here of their lives.
    offers: VecDeque<DocumentId>,
    /// How many there were on this link.
    offered: usize,
}

enum Phase {
    Waiting,
    Listing(Listing),
    Resting(Lsn),
    Streaming(Lsn),
}

struct Listing {
    /// Only what changed after it; everything when absent.
    since: Option<Lsn>,
    /// What changed, and was not listed yet.
    changed: VecDeque<(DocumentId, StateDigest)>,
    after: Option<DocumentId>,
    at: LogCursor,
    done: bool,
    /// Only what the peer has not heard of.
    only_new: bool,
}

/// A document whose changes are being sent.
struct Serving {
    document: DocumentId,
    remaining: VecDeque<Lsn>,
    heads: Heads,
    first: bool,
}

/// Skipped records after which an empty batch moves the peer's cursor.
const SKIPPED_MAX: usize = 256;
/// Pages of documents that are read for one that is sent.
const PAGES_IN_ONE: usize = 8;
/// Records in one batch.
const BATCH_RECORDS_MAX: usize = 2048;
/// Records looked through for one strict listing.
const CHANGED_RECORDS_MAX: usize = 16 << 10;

impl Source {
    pub(super) fn new(peer: NodeId, attester: Option<Arc<dyn Attester>>, limits: &Limits) -> Self {
        Self {
            peer,
            limits: limits.clone(),
            strict: false,
            snapshots: false,
            from: None,
            tail_met: Lsn::ZERO,
            echo_from: Lsn::ZERO,
            phase: Phase::Waiting,
            awake: true,
            number: 0,
            acknowledged: 0,
            skipped: 0,
            page: 0,
            answered: 0,
            wants: VecDeque::new(),
            serving: None,
            stream_wants: VecDeque::new(),
            streams: Vec::new(),
            unread: HashMap::new(),
            opened: 0,
            paused_until: None,
            audience: Audience::default(),
            tells_authors: false,
            attester,
            reached: None,
            unacknowledged: VecDeque::new(),
            withdrawn: BTreeSet::new(),
            offers: VecDeque::new(),
            offered: 0,
        }
    }

    /// Takes where the peer's cursor stands, and what the peer can.
    pub(super) fn position(&mut self, from: Option<Lsn>, strict: bool, snapshots: bool, reader: &Reader) {
        (self.from, self.strict, self.snapshots) = (from, strict, snapshots);
        self.tail_met = reader.tail().lsn;
    }

    /// Begins to serve. `ours` is what the peer says about our cursor on its log.
    pub(super) fn begin(&mut self, ours: Judgement, reader: &Reader) {
        self.awake &= !mutant!(WakeupLost);
        self.echo_from = if ours == Judgement::Known { Lsn::ZERO } else { self.tail_met };
        self.phase = match self.from {
            Some(lsn) if self.strict => Phase::Resting(lsn),
            Some(lsn) => Phase::Streaming(lsn),
            None => Phase::Listing(Listing {
                since: None,
                changed: VecDeque::new(),
                after: None,
                at: reader.tail(),
                done: false,
                only_new: false,
            }),
        };
    }

    pub(super) fn wake(&mut self) {
        self.awake = true;
    }

    pub(super) fn pause(&mut self, until: Instant) {
        self.paused_until = Some(until);
    }

    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// Takes what the peer has durably.
    pub(super) fn handle_ack(&mut self, number: u64) -> Result<(), SessionError> {
        if number <= self.acknowledged || number > self.number {
            return Err(SessionError::UnexpectedFrame { frame: "Ack", why: "no such batch is under way" });
        }
        self.acknowledged = number;
        let acknowledged = self.unacknowledged.iter().take_while(|(batch, _)| *batch <= number).count();
        self.unacknowledged.drain(..acknowledged);
        Ok(())
    }

    /// Takes what the peer needs.
    pub(super) fn handle_want(&mut self, want: Want) -> Result<(), SessionError> {
        if want.page != 0 {
            if want.page != self.answered + 1 || want.page > self.page {
                return Err(SessionError::UnexpectedFrame { frame: "Want", why: "it answers no page" });
            }
            self.answered = want.page;
        }
        // Two pages, what waits for changes, and as much again.
        let max = 8 * self.limits.inventory_rows;
        if self.wants.len() + self.stream_wants.len() + want.documents.len() > max {
            return Err(SessionError::TooMany { what: "documents wanted at once", max });
        }
        for wanted in &want.documents {
            // Asked for again: the chunk is logged there, if one was under way.
            self.unread.remove(&wanted.document);
        }
        self.wants.extend(want.documents);
        Ok(())
    }

    /// Does one thing that is due on the control channel; `false` when nothing is.
    pub(super) fn step(
        &mut self,
        now: Instant,
        reader: &Reader,
        out: &mut Outbox,
        exchanges: &mut Exchanges,
        may_answer: bool,
    ) -> Result<bool, SessionError> {
        if self.paused_until.is_some_and(|until| now < until) {
            return Ok(false);
        }
        self.paused_until = None;
        if let Some(serving) = self.serving.take() {
            self.serve(serving, reader, out)?;
            return Ok(true);
        }
        if self.has_free_stream()
            && let Some(want) = self.stream_wants.pop_front()
        {
            self.begin_stream(want, reader, out)?;
            return Ok(true);
        }
        // What the peer brought before it asked comes first: it may have withdrawn it since, and is not sent it else.
        if may_answer
            && exchanges.queued() < self.limits.inventory_rows
            && let Some(want) = self.wants.pop_front()
        {
            self.decide(want, reader, out, exchanges)?;
            return Ok(true);
        }
        if may_answer
            && let Phase::Streaming(after) | Phase::Resting(after) = self.phase
            && self.list_again(after, out)?
        {
            return Ok(true);
        }
        match &self.phase {
            Phase::Waiting => Ok(false),
            Phase::Listing(_) => self.list(reader, out),
            Phase::Resting(after) => self.look_for_changes(*after, reader),
            Phase::Streaming(after) => {
                let after = *after;
                Ok(self.send_offers(reader, out)? || self.stream(after, reader, out)?)
            }
        }
    }

    /// Sends the next page, or ends the listing once its last page is answered.
    fn list(&mut self, reader: &Reader, out: &mut Outbox) -> Result<bool, SessionError> {
        let Phase::Listing(listing) = &mut self.phase else { return Ok(false) };
        if listing.done {
            if self.answered == self.page && self.wants.is_empty() {
                self.reached = Some(listing.at);
                let at = listing.at.lsn;
                self.phase = if self.strict { Phase::Resting(at) } else { Phase::Streaming(at) };
                return Ok(true);
            }
            return Ok(false);
        }
        // One page ahead of the answer to the one before.
        if self.page >= self.answered + 2 {
            return Ok(false);
        }
        let max = self.limits.inventory_rows;
        let (mut rows, mut withheld) = (Vec::new(), Vec::new());
        // Where the peer may read little of what is here, a page is read from several.
        for _ in 0..PAGES_IN_ONE {
            let mut found: Vec<_> = if listing.since.is_some() {
                let found = listing.changed.drain(..listing.changed.len().min(max - rows.len())).collect();
                listing.done = listing.changed.is_empty();
                found
            } else {
                let found = reader.inventory(listing.after, max - rows.len())?;
                listing.after = found.last().map(|(document, _)| *document);
                listing.done = found.len() < max - rows.len();
                found
            };
            found.retain(|(document, _)| {
                let may_read = self.audience.may_read(*document);
                if !may_read {
                    withheld.extend(self.audience.forget(*document));
                }
                may_read && !(listing.only_new && self.audience.has_heard_of(*document))
            });
            rows.append(&mut found);
            if listing.done || rows.len() >= max {
                break;
            }
        }
        rows.iter().for_each(|(document, _)| self.audience.note(*document));
        let has_withheld = !withheld.is_empty();
        audience::say_withheld(withheld, out)?;
        self.page += 1;
        let row = |(document, digest): (DocumentId, StateDigest)| InventoryRow { document, digest: digest.0 };
        out.control(&Frame::Inventory(Inventory {
            page: self.page,
            since: listing.since,
            rows: rows.into_iter().map(row).collect(),
            done: listing.done,
            at: Position { lsn: listing.at.lsn, chain: listing.at.chain },
        }))?;
        if has_withheld {
            self.drop_streams(out);
        }
        Ok(true)
    }

    /// Begins to list what changed, when something did.
    fn look_for_changes(&mut self, after: Lsn, reader: &Reader) -> Result<bool, SessionError> {
        if !std::mem::take(&mut self.awake) {
            return Ok(false);
        }
        let Some((changed, at)) = reader.changed_since(after, CHANGED_RECORDS_MAX)? else { return Ok(false) };
        self.awake = true;
        self.phase = Phase::Listing(Listing {
            since: Some(after),
            changed: changed.into(),
            after: None,
            at,
            done: false,
            only_new: false,
        });
        Ok(true)
    }

    fn has_room_for_batch(&self) -> bool {
        self.number - self.acknowledged < self.limits.batches_in_flight as u64
    }

    /// Sends the next slice of the log.
    fn stream(&mut self, after: Lsn, reader: &Reader, out: &mut Outbox) -> Result<bool, SessionError> {
        if !self.awake || !self.has_room_for_batch() {
            return Ok(false);
        }
        let mut entries = reader.read_log(after, self.limits.batch_bytes, BATCH_RECORDS_MAX)?;
        let footer = |entry: &Entry| matches!(entry.kind, EntryKind::Footer { .. });
        // A batch ends at a footer if the slice has one: a cursor may stand there.
        if let Some(last) = entries.iter().rposition(footer) {
            entries.truncate(last + 1);
        }
        let Some(last) = entries.last() else {
            self.awake = false;
            return Ok(false);
        };
        let end = match last.kind {
            EntryKind::Footer { chain } => Some(Position { lsn: last.lsn, chain }),
            _ => None,
        };
        let last_lsn = last.lsn;
        let log_id = reader.log_id();
        self.reached = end.map(|Position { lsn, chain }| LogCursor { log_id, lsn, chain });
        self.phase = Phase::Streaming(last_lsn);
        self.skipped += entries.len();
        let (mut rows, mut withheld) = (Rows::default(), Vec::new());
        for entry in entries {
            self.add_entry(entry, reader, &mut rows, &mut withheld)?;
        }
        if !withheld.is_empty() {
            self.drop_streams(out);
        }
        audience::say_withheld(withheld, out)?;
        // Where the log ended when the link was made, the peer learns that it has caught up.
        let catches_up = after < self.tail_met && last_lsn >= self.tail_met;
        if rows.rows.is_empty() && (end.is_none() || self.skipped < SKIPPED_MAX && !catches_up) {
            return Ok(true);
        }
        self.skipped = 0;
        if mutant!(LastRowDropped) {
            rows.rows.pop();
        }
        self.send_batch(rows, end, out)?;
        Ok(true)
    }

    fn send_batch(&mut self, rows: Rows, end: Option<Position>, out: &mut Outbox) -> Result<(), SessionError> {
        self.number += 1;
        rows.send_ahead(out)?;
        let (number, documents, origins, rows) = (self.number, rows.documents.items, rows.origins.items, rows.rows);
        if self.audience.is_limited() {
            self.unacknowledged.push_back((number, documents.clone()));
        }
        out.control(&Frame::ChangeBatch(ChangeBatch { number, documents, origins, attestation: Vec::new(), rows, end }))
    }

    /// Begins to list what the peer may read now, if that is due and a footer was reached: from there the log goes on.
    fn list_again(&mut self, after: Lsn, out: &mut Outbox) -> Result<bool, SessionError> {
        let reached = self.reached.filter(|reached| reached.lsn == after);
        let Some(at) = reached.filter(|_| self.audience.is_listing_due()) else { return Ok(false) };
        let only_new = self.audience.begin_listing(out)?;
        self.awake = true;
        let changed = VecDeque::new();
        self.phase = Phase::Listing(Listing { since: None, changed, after: None, at, done: false, only_new });
        Ok(true)
    }

    fn add_entry(
        &mut self,
        entry: Entry,
        reader: &Reader,
        rows: &mut Rows,
        withheld: &mut Vec<DocumentId>,
    ) -> Result<(), SessionError> {
        let (header, document, via, origin, bytes) = match entry.kind {
            EntryKind::Change { document, via, origin, bytes, header, .. } => {
                (Some(header), document, via, origin, bytes)
            }
            EntryKind::Lifecycle { document, via, origin, bytes } => (None, document, via, origin, bytes),
            // Whoever gets the winner withdraws by the same rule. What was taken back as denied the peer may have all the same.
            EntryKind::Withdrawn { document, .. } => {
                self.withdrawn.insert(document);
                return Ok(());
            }
            // What we cannot apply, others may.
            EntryKind::Void { .. } | EntryKind::Withheld { .. } | EntryKind::Footer { .. } | EntryKind::Other => {
                return Ok(());
            }
        };
        let brought = if mutant!(EchoWrong) { via.is_some() } else { via == Some(self.peer) };
        if brought && entry.lsn > self.echo_from {
            return Ok(());
        }
        if !self.audience.may_read(document) {
            withheld.extend(self.audience.forget(document));
            return Ok(());
        }
        let kind = if header.is_some() { RowKind::Change } else { RowKind::Lifecycle };
        self.audience.note_row(document, kind, &bytes);
        if let Some(header) = header {
            self.attest(&header, &origin, reader, rows)?;
        }
        rows.add(kind, document, &origin, bytes);
        Ok(())
    }

    /// Says who answers for an author's first change, where the peer is told that.
    fn attest(
        &self,
        header: &ChangeHeader,
        origin: &Origin,
        reader: &Reader,
        rows: &mut Rows,
    ) -> Result<(), SessionError> {
        let Some(attester) = self.attester.as_deref().filter(|_| self.tells_authors && header.seq == 1) else {
            return Ok(());
        };
        let Some(actor) = ActorId::new(&reader.names().name(header.actor)?.bytes) else { return Ok(()) };
        let author = (DocumentId(header.document), actor, ChangeHash(header.hash));
        rows.attested.extend(Attested::of(attester, author, origin, reader)?);
        Ok(())
    }

    /// Decides how a want is answered.
    fn decide(
        &mut self,
        want: Wanted,
        reader: &Reader,
        out: &mut Outbox,
        exchanges: &mut Exchanges,
    ) -> Result<(), SessionError> {
        let document = want.document;
        let Some(state) = reader.document(document)?.filter(|_| self.audience.may_read(document)) else {
            return say_unknown(document, out);
        };
        self.audience.note(document);
        let graph = reader.graph(document)?;
        let (known, remaining, heads) = {
            let graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
            let known = graph.contains_all(want.heads.as_slice());
            let stream = self.snapshots
                && want.heads.is_empty()
                && state.snapshot.is_some()
                && state.change_count >= self.limits.snapshot_instead_of_changes;
            if !self.strict && stream {
                self.stream_wants.push_back(want);
                return Ok(());
            }
            let following = if known { graph.following(want.heads.as_slice()) } else { Vec::new() };
            let remaining: VecDeque<Lsn> = following.into_iter().map(|index| graph.lsn_at(index)).collect();
            (known, remaining, graph.heads())
        };
        // Asked again now that its heads are read.
        if !self.audience.may_read(document) {
            return say_unknown(document, out);
        }
        if !known || self.strict && !remaining.is_empty() {
            exchanges.request(document);
            // An exchange under way said its lifecycle records when it began; these are today's.
            let mut rows = Rows::default();
            self.add_lifecycle(document, reader, &mut rows)?;
            let (origins, rows) = (rows.origins.items, rows.rows);
            let outcome = Outcome::Exchange;
            let answer = DocumentBatch { document, origins, rows, streamed: None, heads, outcome };
            return out.control(&Frame::DocumentBatch(answer));
        }
        self.serving = Some(Serving { document, remaining, heads, first: true });
        Ok(())
    }

    /// Sends the next rows of a document.
    fn serve(&mut self, mut serving: Serving, reader: &Reader, out: &mut Outbox) -> Result<(), SessionError> {
        let document = serving.document;
        let mut rows = Rows::default();
        if std::mem::take(&mut serving.first) {
            self.add_lifecycle(document, reader, &mut rows)?;
        }
        while rows.bytes < self.limits.batch_bytes
            && rows.rows.len() < BATCH_RECORDS_MAX
            && let Some(lsn) = serving.remaining.front().copied()
        {
            let Some(Record::Change(header, bytes)) = reader.record(lsn)? else {
                return Err(HistoryError::Missing(format!("change record {lsn}")).into());
            };
            if rows.bytes > 0 && rows.bytes + bytes.len() > self.limits.batch_bytes {
                break;
            }
            let origin = reader.origin_of(&header)?;
            self.attest(&header, &origin, reader, &mut rows)?;
            rows.add(RowKind::Change, document, &origin, bytes);
            serving.remaining.pop_front();
        }
        // Asked when everything is read: it is about that.
        if !self.audience.may_read(document) {
            return say_unknown(document, out);
        }
        let outcome = if serving.remaining.is_empty() { Outcome::Complete } else { Outcome::More };
        rows.send_ahead(out)?;
        out.control(&Frame::DocumentBatch(DocumentBatch {
            document,
            origins: rows.origins.items,
            rows: rows.rows,
            streamed: None,
            heads: serving.heads.clone(),
            outcome,
        }))?;
        self.serving = (outcome == Outcome::More).then_some(serving);
        Ok(())
    }

    fn add_lifecycle(&self, document: DocumentId, reader: &Reader, rows: &mut Rows) -> Result<(), SessionError> {
        let origin = Origin {
            node: reader.node(),
            principal: String::new(),
            admission: Admission::Structural,
            rules_version: 0,
        };
        for bytes in reader.lifecycle_records(document)?.into_iter().take(if mutant!(WinnerLeftOut) { 1 } else { 2 }) {
            rows.add(RowKind::Lifecycle, document, &origin, bytes);
        }
        Ok(())
    }
}

/// There is no such document, or none that the peer may see.
fn say_unknown(document: DocumentId, out: &mut Outbox) -> Result<(), SessionError> {
    let (origins, rows, heads, outcome) = (Vec::new(), Vec::new(), Heads::default(), Outcome::UnknownDocument);
    out.control(&Frame::DocumentBatch(DocumentBatch { document, origins, rows, streamed: None, heads, outcome }))
}
