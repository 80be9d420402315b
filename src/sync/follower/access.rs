//! What a follower knows of rights: of the peer's, whose rows it takes, and of its own, where the peer does not list
//! everything.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::streams::Incoming;
use super::{Follower, Wanting, Wish, unexpected};
use crate::history::{HistoryError, Origin, Reader, fold};
use crate::id::{ChangeHash, DocumentId, NodeId, truncated};
use crate::log::rows::IndexRow;
use crate::sync::exchanges::Exchanges;
use crate::sync::guard::Proven;
use crate::sync::intake::{Intake, Mark};
use crate::sync::permits::Permits;
use crate::sync::session::{Denied, IncomingBody, Opened, Outbox, SessionError};
use crate::sync::wire::{self, DENIED_MAX, DeniedRow, Frame, Inventory, Listing, WHY_BYTES_MAX};

/// Changes that one peer may be denied before the link is given up: each may have cost the making of a document.
const DENIALS_MAX: usize = 1000;
/// Documents of which it is remembered what the peer said last.
const SAID_MAX: usize = 1 << 17;
/// Documents looked through in one go for those that are not listed any more.
const LOOK_THROUGH: usize = 1024;

/// What the peer may do here.
#[derive(Debug, Default)]
pub(super) struct Rights {
    /// Who writes; `None` where the peer may say for whom it speaks.
    principal: Option<String>,
    permits: Option<Arc<dyn Permits>>,
    /// What it was denied, by document; nothing at all of a document, where that may not be created.
    denied: HashMap<DocumentId, Refused>,
    denials: usize,
    /// Rows of which it was told that they are denied, and of those the ones that it has taken back.
    told: u64,
    taken: u64,
    /// Whether it has sent all that it may is not known: there was more than it can be told of, or an exchange in which
    /// something was denied.
    is_uncertain: bool,
    /// Rows that stand on denied ones and of which it was not told yet.
    untold: Vec<DeniedRow>,
}

#[derive(Debug, Default)]
struct Refused {
    whole: bool,
    changes: HashSet<ChangeHash>,
}

impl Rights {
    pub(super) fn of(is_node: bool) -> Self {
        // A client brings its own changes, and whose they are it has to prove.
        Self { principal: (!is_node).then(String::new), ..Self::default() }
    }

    /// Whether the peer is believed in where something entered.
    pub(super) fn may_say_origins(&self) -> bool {
        self.principal.is_none()
    }

    /// Where a row entered, as far as the peer may say that.
    pub(super) fn origin(&self, said: Origin) -> Origin {
        match &self.principal {
            Some(principal) => Origin { principal: principal.clone(), rules_version: 0, ..said },
            None => said,
        }
    }

    pub(super) fn may_read(&self, document: DocumentId) -> bool {
        self.permits.as_ref().is_none_or(|permits| permits.may_read(document))
    }

    /// Whether it has taken back whatever it was denied on this link.
    pub(super) fn is_settled(&self) -> bool {
        // It keeps a document without edits that may not be created, and may bring it when rights have changed.
        let is_kept = |refused: &Refused| refused.whole && refused.changes.is_empty();
        self.told == self.taken && self.untold.is_empty() && !self.is_uncertain && !self.denied.values().any(is_kept)
    }

    /// Has what it brings on this link brought once more on the next one.
    pub(super) fn leave_unsettled(&mut self) {
        self.is_uncertain = true;
    }

    /// Whether nothing at all is taken of a document.
    pub(super) fn refuses(&self, document: DocumentId) -> bool {
        self.denied.get(&document).is_some_and(|refused| refused.whole)
    }

    pub(super) fn has_denied(&self, document: DocumentId) -> bool {
        self.denied.contains_key(&document)
    }

    /// Has a document asked for again when rights change, and not before.
    pub(super) fn put_off(&mut self, document: DocumentId) {
        self.denied.entry(document).or_default();
    }

    /// Whether a row need not be tried, because it stands on one that was denied.
    pub(super) fn turns_away(&mut self, document: DocumentId, body: &IncomingBody) -> bool {
        let Some(refused) = self.denied.get_mut(&document) else { return false };
        let IncomingBody::Change(change) = body else { return refused.whole };
        let (hash, deps) = (change.hash(), change.deps());
        let away =
            refused.whole || refused.changes.contains(&hash) || deps.iter().any(|dep| refused.changes.contains(dep));
        self.is_uncertain |= away && refused.changes.len() >= DENIALS_MAX;
        if away && refused.changes.len() < DENIALS_MAX {
            refused.changes.insert(hash);
            // Of a document that may not be created, the first changes stand on nothing else.
            let is_behind = !(refused.whole && deps.is_empty());
            self.untold.push(DeniedRow { document, change: Some(hash), is_behind, why: Denied::BEHIND.to_owned() });
        }
        away
    }
}

/// What the peer lets us read, where that is not everything it has.
#[derive(Debug, Default)]
pub(super) struct Offered {
    is_limited: bool,
    /// Everything that may be read is being listed, and has been up to here.
    whole: Option<Option<DocumentId>>,
    /// What was said of documents on this link, and may not be logged yet: whether they may not be read.
    said: HashMap<DocumentId, bool>,
    /// Documents of which rows came since that was looked at.
    received: BTreeSet<DocumentId>,
    /// The same since the listing of everything began: its pages may be older.
    fresh: HashSet<DocumentId>,
    /// Streams that began before the peer took back what is on them.
    ignored: BTreeSet<Opened>,
}

impl Offered {
    pub(super) fn is_limited(&self) -> bool {
        self.is_limited
    }

    /// Takes note that rows of a document came: it may be read.
    pub(super) fn note_received(&mut self, document: DocumentId) {
        if self.is_limited {
            self.received.insert(document);
            if self.whole.is_some() && self.fresh.len() < SAID_MAX {
                self.fresh.insert(document);
            }
        }
    }

    /// Shows again what rows came of.
    pub(super) fn show_received(&mut self, reader: &Reader, intake: &mut Intake) -> Result<(), HistoryError> {
        let received = std::mem::take(&mut self.received);
        self.show(received, reader, intake)
    }

    fn show(
        &mut self,
        documents: impl IntoIterator<Item = DocumentId>,
        reader: &Reader,
        intake: &mut Intake,
    ) -> Result<(), HistoryError> {
        let mut shown = Vec::new();
        for document in documents {
            if self.may_be(true, document, reader)? {
                shown.push(document);
            }
        }
        self.say(shown, false, intake);
        Ok(())
    }

    /// Whether a document is withheld, or is not, or may come to be so: what was said on this link may not be logged yet, and
    /// another node may have said otherwise since.
    fn may_be(&self, withheld: bool, document: DocumentId, reader: &Reader) -> Result<bool, HistoryError> {
        Ok(self.said.get(&document) == Some(&withheld) || is_withheld(document, reader)? == withheld)
    }

    fn say(&mut self, documents: Vec<DocumentId>, withheld: bool, intake: &mut Intake) {
        if self.said.len() > SAID_MAX {
            // By then what was said first is logged.
            self.said.clear();
        }
        if !documents.is_empty() {
            self.said.extend(documents.iter().map(|document| (*document, withheld)));
            intake.mark(Mark::Withhold { documents, withheld });
        }
    }

    /// Whether a stream that begins is of no use any more.
    pub(super) fn ignores(&mut self, document: DocumentId, opened: Opened) -> bool {
        let ignores = self.said.get(&document) == Some(&true);
        if ignores {
            self.ignored.insert(opened);
        }
        ignores
    }

    pub(super) fn is_ignored(&self, opened: Opened) -> bool {
        self.ignored.contains(&opened)
    }

    pub(super) fn forget_stream(&mut self, opened: Opened) {
        self.ignored.remove(&opened);
    }

    /// Finds out what a page says beside what it lists: what we have from the peer and is left out may not be read.
    pub(super) fn compare(
        &mut self,
        page: &Inventory,
        peer: NodeId,
        reader: &Reader,
        intake: &mut Intake,
    ) -> Result<(), HistoryError> {
        if !self.is_limited {
            return Ok(());
        }
        self.show(page.rows.iter().map(|row| row.document), reader, intake)?;
        let Some(after) = self.whole else { return Ok(()) };
        let end = page.rows.last().map(|row| row.document).filter(|_| !page.done);
        if end.is_none() && !page.done {
            return Ok(());
        }
        let listed: HashSet<DocumentId> = page.rows.iter().map(|row| row.document).collect();
        let (mut at, mut withheld) = (after, Vec::new());
        'all: loop {
            let here = reader.inventory(at, LOOK_THROUGH)?;
            for (document, _) in &here {
                if end.is_some_and(|end| *document > end) {
                    break 'all;
                }
                at = Some(*document);
                let is_listed = listed.contains(document) || self.fresh.contains(document);
                let is_left_out = !is_listed && self.may_be(false, *document, reader)?;
                if is_left_out && came_from(peer, *document, reader)? {
                    withheld.push(*document);
                }
            }
            if here.len() < LOOK_THROUGH {
                break;
            }
        }
        self.say(withheld, true, intake);
        self.whole = (!page.done).then_some(end);
        if page.done {
            self.fresh = HashSet::new();
        }
        Ok(())
    }
}

fn is_withheld(document: DocumentId, reader: &Reader) -> Result<bool, HistoryError> {
    Ok(reader.row(document)?.is_some_and(|row| fold::is_withheld(&row)))
}

/// Whether a document holds anything that a peer brought. What was made here and never came back stays whoever else may
/// read it.
fn came_from(peer: NodeId, document: DocumentId, reader: &Reader) -> Result<bool, HistoryError> {
    for (lsn, row) in reader.index(document, crate::id::Lsn::ZERO)? {
        // What it said of our own is none of it.
        let is_content = matches!(row, IndexRow::Change { .. } | IndexRow::Lifecycle(_));
        if is_content && reader.via(lsn)? == Some(peer) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Follower {
    /// Takes who the peer's user is.
    pub(in crate::sync) fn prove(&mut self, proven: &Proven) {
        let principal = truncated(&proven.principal, wire::PRINCIPAL_BYTES_MAX).to_owned();
        (self.rights.principal, self.rights.permits) = (Some(principal), proven.permits.clone());
    }

    /// Takes what the peer says of what we may read.
    pub(in crate::sync) fn handle_access(&mut self, access: wire::Access, intake: &mut Intake) {
        self.offered.is_limited = true;
        // Pages that came before and wait are older than this.
        let withheld: HashSet<_> = access.withheld.iter().collect();
        self.pages.iter_mut().for_each(|page| page.rows.retain(|row| !withheld.contains(&row.document)));
        for document in &access.withheld {
            self.offered.received.remove(document);
            self.offered.fresh.remove(document);
            // Its stream is reset, or the exchange does not come, and nothing else answers the wish.
            let is_answered = |wanting: &Wanting| matches!(wanting.state, Wish::Streaming | Wish::Exchanging);
            if self.wanted.get(document).is_some_and(is_answered) {
                self.wanted.remove(document);
                let of_it =
                    |(opened, incoming): (&Opened, &Incoming)| (incoming.document == *document).then_some(*opened);
                self.offered.ignored.extend(self.streams.iter().filter_map(of_it));
                self.streams.retain(|_, incoming| incoming.document != *document);
            }
        }
        self.offered.say(access.withheld, true, intake);
        match access.listing {
            Listing::Nothing => {}
            Listing::Whole => (self.listing, self.offered.whole) = (true, Some(None)),
            Listing::More => self.listing = true,
        }
    }

    /// Tells the peer what is denied, and what it has that stands on it.
    pub(in crate::sync) fn tell_denied(
        &mut self,
        denied: &[Denied],
        reader: &Reader,
        out: &mut Outbox,
    ) -> Result<(), SessionError> {
        // What the frame before brought is told first.
        if self.rights.denials > DENIALS_MAX {
            return Err(SessionError::TooMany { what: "changes that it may not make", max: DENIALS_MAX });
        }
        let mut rows = std::mem::take(&mut self.rights.untold);
        for Denied { document, change, why } in denied {
            let refused = self.rights.denied.entry(*document).or_default();
            let mut is_behind = false;
            match change {
                Some((hash, deps)) => {
                    is_behind = deps.iter().any(|dep| refused.changes.contains(dep));
                    refused.changes.insert(*hash);
                }
                // Denied to be created, and not to be deleted.
                None => refused.whole = reader.row(*document)?.is_none(),
            }
            let (document, change) = (*document, change.as_ref().map(|(hash, _)| *hash));
            let why = truncated(why, WHY_BYTES_MAX).to_owned();
            rows.push(DeniedRow { document, change, is_behind, why });
            self.rights.denials += usize::from(!is_behind);
        }
        self.rights.told += rows.len() as u64;
        rows.chunks(DENIED_MAX).try_for_each(|rows| out.control(&Frame::Denied(wire::Denied { rows: rows.to_vec() })))
    }

    /// Takes note of how many of the rows that it was denied the peer has taken back.
    pub(in crate::sync) fn handle_taken_back(&mut self, rows: u64) -> Result<(), SessionError> {
        if rows < self.rights.taken || rows > self.rights.told {
            return Err(unexpected("TakenBack", "so many rows were not denied, or fewer than it has said"));
        }
        self.rights.taken = rows;
        Ok(())
    }

    /// Asks for a document, or once more if that is under way. So for one of which something was withdrawn here: the peer may
    /// have that, and not send it by itself, since we brought it.
    pub(in crate::sync) fn ask_for(&mut self, document: DocumentId, exchanges: &Exchanges) {
        if let Some(wanting) = self.wanted.get_mut(&document) {
            (wanting.again, wanting.is_read) = (true, false);
            return;
        }
        let live = exchanges.is_live(document);
        let state = if live { Wish::Exchanging } else { Wish::Asked };
        self.wanted.insert(document, Wanting { again: live, ..Wanting::new(state) });
        if !live {
            self.asks.push_back(document);
        }
    }

    /// Asks again for what the peer was denied: it may be allowed now.
    pub(in crate::sync) fn handle_access_changed(&mut self, exchanges: &Exchanges) {
        let mut denied: Vec<DocumentId> = self.rights.denied.drain().map(|(document, _)| document).collect();
        denied.sort_unstable();
        self.wanted.values_mut().for_each(|wanting| wanting.is_read = false);
        denied.into_iter().for_each(|document| self.handle_missing(document, exchanges));
    }
}
