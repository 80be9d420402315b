//! Two different changes of one author under one number: one of them has to go, everywhere the same one.

use std::collections::{BTreeSet, HashSet};
use std::sync::PoisonError;

use super::{Arrival, Core, Verdict, Work, node_of, remove_snapshot};
use crate::document::Change;
use crate::engine::rejected::{beneath, with_room_for};
use crate::history::fold::fold_withdrawal;
use crate::history::withdrawal::{project_withdrawal, row_without};
use crate::history::{HistoryError, Origin};
use crate::id::{ActorId, ChangeHash, DocumentId, Lsn, NodeId};
use crate::log::record::{NameKind, Record, WithdrawnHeader};
use crate::log::rows::{DocumentRow, RejectedRow, SnapshotRef};

/// Which of two different changes of one author under one number stays.
///
/// An honest author never makes two: it takes a restored backup, a copied data directory, or malice. Every rule here
/// leads all replicas of a cluster to the same one, whatever the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Clash {
    /// The one that is logged: for what clients and imports bring, who must not unsay what others have built on.
    #[default]
    KeepFirst,
    /// The one with the smaller hash: between nodes, each of which has logged a first.
    SmallerHash,
    /// The one that comes: for a client, whose node has decided.
    TakeTheirs,
}

/// How often a document of a client follows its node's choice before the smaller hash decides there too.
const TAKEN_BACK_MAX: u32 = 16;

/// Changes that gave way lately. It only saves asking for what would be turned away again: the rule decides the same
/// without it.
#[derive(Debug, Default)]
pub(super) struct Outranked(HashSet<ChangeHash>);

impl Outranked {
    const MAX: usize = 1 << 14;

    pub(super) fn contains(&self, hash: &ChangeHash) -> bool {
        self.0.contains(hash)
    }

    /// Forgets all of them when `hash` is one: it is here after all, and what stands on it may come again.
    fn take_back(&mut self, hash: &ChangeHash) {
        if self.0.contains(hash) {
            self.0.clear();
        }
    }

    fn note(&mut self, hash: ChangeHash) {
        if self.0.len() >= Self::MAX {
            self.0.clear();
        }
        self.0.insert(hash);
    }
}

/// For which change others are withdrawn: the one that takes the place of the first of them, or, where none does, that
/// one itself.
pub(super) struct Cause<'a> {
    change: ChangeHash,
    actor: &'a ActorId,
    seq: u64,
    origin: &'a Origin,
    via: Option<NodeId>,
}

impl<'a> Cause<'a> {
    pub(super) fn of(change: &'a Change, origin: &'a Origin, via: Option<NodeId>) -> Self {
        Self { change: change.hash(), actor: change.actor(), seq: change.seq(), origin, via }
    }
}

/// Edits that are listed for one clash, the newest: others that were refused are to stay on the list beside them.
const GAVE_WAY_MAX: usize = 256;
/// Why an edit is on the list of rejected ones that no node refused.
const GAVE_WAY: &str = "it, or a change that it stood on, gave way to another one of the same author and number";

impl Core {
    /// Drops what waits, however indirectly, for a change that will not come, and what comes later on top of it.
    pub(super) fn drop_waiting(&mut self, document: DocumentId, hash: ChangeHash) {
        let mut gone = vec![hash];
        while let Some(hash) = gone.pop() {
            self.outranked.note(hash);
            gone.extend(self.pending.take_waiting(document, Some(hash)).iter().map(|arrival| arrival.change.hash()));
        }
    }

    /// Decides between a change and the logged one, `first`, that has its author and number.
    pub(super) fn settle_clash(
        &mut self,
        work: &mut Work,
        document: DocumentId,
        arrival: &Arrival,
        row: &DocumentRow,
        first: ChangeHash,
    ) -> Result<Verdict, HistoryError> {
        let change = &arrival.change;
        let theirs = match arrival.clash {
            Clash::KeepFirst => false,
            // Between two nodes that disagree a client would go to and fro for ever.
            Clash::TakeTheirs if row.withdrawals < TAKEN_BACK_MAX => true,
            Clash::TakeTheirs | Clash::SmallerHash => change.hash() < first,
        };
        if !theirs || arrival.made_here {
            return Ok(Verdict::Outranked(first));
        }
        if Lsn(row.last_lsn) > self.reader.tail().lsn {
            // Only what is committed can be taken back.
            return Ok(Verdict::Again);
        }
        let graph = self.graph(work, document)?;
        let ((withdrawn, gone), mut left): ((Vec<Lsn>, Vec<ChangeHash>), _) = {
            let graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
            let falls = graph.standing_on(&first);
            let left = graph.without(&falls).map_err(|error| HistoryError::Document {
                document,
                lsn: Lsn(row.last_lsn),
                why: format!("its changes cannot be withdrawn: {error}"),
            })?;
            (falls.iter().map(|index| (graph.lsn_at(*index), graph.hash_at(*index))).unzip(), left)
        };
        if !left.missing(change.deps()).is_empty() {
            return Ok(Verdict::Refused("it was made on top of the change whose number it has".into()));
        }
        let node = node_of(change, self.appender.next());
        if let Err(error) = left.check_next(&node).and_then(|()| left.check_past(&node, &change.references())) {
            return Ok(Verdict::Refused(error.to_string()));
        }
        tracing::warn!(%document, winner = %change.hash(), %first, actor = %change.actor(), seq = change.seq(), withdrawn = withdrawn.len(), "two changes have one author and number; the logged one and all that stands on it are withdrawn");
        self.keep_own(work, document, arrival, withdrawn.iter().copied().zip(gone.iter().copied()))?;
        let cause = Cause::of(change, &arrival.origin, arrival.via);
        let row = self.withdraw(work, document, &cause, row.snapshot, &withdrawn)?;
        self.outranked.take_back(&change.hash());
        gone.into_iter().for_each(|hash| self.outranked.note(hash));
        left.set_generation(Lsn(row.generation));
        let deps: Vec<Lsn> = change.deps().iter().filter_map(|hash| left.lsn_of(hash)).collect();
        *graph.lock().unwrap_or_else(PoisonError::into_inner) = left;
        Ok(match self.append(work, document, arrival, row, &deps)? {
            Verdict::Accepted => Verdict::Displaces,
            other => other,
        })
    }

    /// Puts what was made here of changes that give way on the list of rejected edits: it can be handed in again.
    fn keep_own(
        &self,
        work: &mut Work,
        document: DocumentId,
        arrival: &Arrival,
        falls: impl Iterator<Item = (Lsn, ChangeHash)>,
    ) -> Result<(), HistoryError> {
        let mut falls: Vec<_> = falls.collect();
        falls.sort_unstable();
        let mut rejected = Vec::new();
        for (lsn, hash) in falls.iter().rev() {
            if rejected.len() < GAVE_WAY_MAX.min(self.limits.rejected_rows) && self.reader.via(*lsn)?.is_none() {
                rejected.push(RejectedRow {
                    document: document.0,
                    change: Some(hash.0),
                    lsn: lsn.0,
                    beneath: beneath(&falls, *lsn),
                    by: arrival.via.unwrap_or(self.reader.node()).0,
                    why: GAVE_WAY.to_owned(),
                    at_ms: work.now_ms,
                });
            }
        }
        if rejected.is_empty() {
            return Ok(());
        }
        let rows = with_room_for(rejected, &self.reader, &self.limits)?;
        rows.into_iter().for_each(|(key, row)| work.hold(key, row));
        Ok(())
    }

    /// Puts the records and rows into the group that take `withdrawn`, positions of changes in order, out of the
    /// document. What is left of the document's row is for the caller to keep.
    pub(super) fn withdraw(
        &mut self,
        work: &mut Work,
        document: DocumentId,
        cause: &Cause<'_>,
        snapshot: Option<SnapshotRef>,
        withdrawn: &[Lsn],
    ) -> Result<DocumentRow, HistoryError> {
        let storage = self.reader.storage().clone();
        let all: BTreeSet<Lsn> = withdrawn.iter().copied().collect();
        let left = row_without(&*storage, document, &all, self.limits.clock_entries_in_row)?;
        // A document has its creation at least.
        let mut row = left.row.ok_or_else(|| HistoryError::Missing(format!("the creation of {document}")))?;
        if let Some(saved) = snapshot {
            remove_snapshot(&mut work.group.batch, document, &saved, self.limits.part_bytes);
        }
        let actor = self.reference(work, NameKind::Actor, cause.actor.as_bytes())?;
        let (_, via) = self.origin_references(work, cause.origin, cause.via)?;
        for part in withdrawn.chunks(WithdrawnHeader::CHANGES_MAX) {
            let lsn = self.appender.next();
            let header = WithdrawnHeader {
                document: document.0,
                winner: cause.change.0,
                actor,
                seq: cause.seq,
                via,
                received_ms: work.now_ms,
                changes: part.iter().map(|withdrawn| lsn.0 - withdrawn.0).collect(),
            };
            project_withdrawal(&mut work.group.batch, lsn, &header, &left.pointless);
            self.appender.push(&mut work.group, &Record::Withdrawn(header));
            fold_withdrawal(&mut row, lsn);
        }
        Ok(row)
    }
}
