//! What a node says to its client of rights: documents that may not be read, changes that may not be made.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Instant;

use super::clash::Cause;
use super::{Admitted, Arrival, Core, Work};
use crate::document::Change;
use crate::engine::core::Clash;
use crate::history::HistoryError;
use crate::history::fold::{fold_withheld, is_withheld};
use crate::id::{ChangeHash, DocumentId, Lsn, NodeId};
use crate::log::Keyspace;
use crate::log::record::{NameKind, Record, WithheldHeader};
use crate::log::rows::IndexRow;

/// Changes of one document that a node will not have.
#[derive(Debug)]
pub(crate) struct TakenBack {
    pub(crate) document: DocumentId,
    /// The node.
    pub(crate) via: NodeId,
    /// The first that it will not have.
    pub(crate) first: Change,
    /// It, the others, and all that stands on them. If the document has come to have more that does, nothing is done.
    pub(crate) falls: BTreeSet<ChangeHash>,
    /// What is made anew of them, in order.
    pub(crate) anew: Vec<Change>,
    /// Rows of `held` that keep what was refused; those without a value go.
    pub(crate) rows: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl TakenBack {
    /// How many bytes the rows have.
    pub(super) fn bytes(&self) -> usize {
        self.rows.iter().map(|(key, row)| key.len() + row.as_ref().map_or(0, Vec::len)).sum()
    }
}

impl Work {
    /// Keeps a row of `held`; without a value it goes.
    pub(super) fn hold(&mut self, key: Vec<u8>, row: Option<Vec<u8>>) {
        match row {
            Some(row) => self.group.batch.put(Keyspace::Held, key, row),
            None => self.group.batch.remove(Keyspace::Held, key),
        }
    }
}

impl Core {
    /// Withdraws changes and puts others in their place, all in one group. `accepted` is 0 when the document is not as
    /// whoever asks has seen it.
    pub(super) fn take_back(
        &mut self,
        work: &mut Work,
        taken: TakenBack,
        now: Instant,
        answer: &mut Admitted,
    ) -> Result<(), HistoryError> {
        let TakenBack { document, via, first, falls, anew, rows } = taken;
        let Some(row) = self.row(work, document)? else { return Ok(()) };
        if Lsn(row.last_lsn) > self.reader.tail().lsn {
            // Only what is committed can be taken back.
            return Ok(());
        }
        let graph = self.graph(work, document)?;
        let (mut withdrawn, mut left) = {
            let graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
            let all: BTreeSet<_> = falls.iter().flat_map(|hash| graph.standing_on(hash)).collect();
            if all.len() != falls.len() || all.iter().any(|index| !falls.contains(&graph.hash_at(*index))) {
                return Ok(());
            }
            let all: Vec<_> = all.into_iter().collect();
            let left = graph.without(&all).map_err(|error| HistoryError::Document {
                document,
                lsn: Lsn(row.last_lsn),
                why: format!("its changes cannot be taken back: {error}"),
            })?;
            (all.iter().map(|index| graph.lsn_at(*index)).collect::<Vec<_>>(), left)
        };
        withdrawn.sort_unstable();
        let own = self.own_origin();
        let row = self.withdraw(work, document, &Cause::of(&first, &own, Some(via)), row.snapshot, &withdrawn)?;
        left.set_generation(Lsn(row.generation));
        *graph.lock().unwrap_or_else(PoisonError::into_inner) = left;
        work.step.changed.push((document, Lsn(row.last_lsn)));
        self.rows.insert(document, row);
        rows.into_iter().for_each(|(key, row)| work.hold(key, row));
        answer.accepted = 1;
        for change in anew {
            // Made here, and by no view that has it.
            let (origin, clash) = (own.clone(), Clash::KeepFirst);
            let arrival = Arrival { change, origin, signature: None, via: None, made_here: false, clash, ruling: None };
            self.take_change(work, document, arrival, now, answer)?;
        }
        Ok(())
    }

    /// Puts a `withheld` record into the group for each document that is here and of which another thing was said before.
    pub(super) fn take_withheld(
        &mut self,
        work: &mut Work,
        documents: &[DocumentId],
        withheld: bool,
        via: NodeId,
    ) -> Result<(), HistoryError> {
        for document in documents.iter().copied() {
            let Some(mut row) = self.row(work, document)?.filter(|row| is_withheld(row) != withheld) else { continue };
            let via = self.reference(work, NameKind::Node, &via.0)?;
            let lsn = self.appender.next();
            let header = WithheldHeader { document: document.0, withheld, via, received_ms: work.now_ms };
            fold_withheld(&mut row, lsn, &header);
            self.index(work, document, lsn, &IndexRow::Withheld(withheld));
            self.appender.push(&mut work.group, &Record::Withheld(header));
            work.step.restated.push(document);
            work.step.changed.push((document, lsn));
            self.rows.insert(document, row);
        }
        Ok(())
    }
}
