//! Taking in statements about documents' lives.

use std::time::Instant;

use super::{Admitted, Core, Work};
use crate::engine::judge::Ruling;
use crate::history::fold::{fold_lifecycle, new_row};
use crate::history::{HistoryError, Origin};
use crate::id::{DocumentId, Lsn, NodeId};
use crate::log::record::{Lifecycle, LifecycleHeader, LifecycleKind, NameKind, Record, WriteKind, payload_digest};
use crate::log::rows::IndexRow;

/// A statement, and who brought it.
pub(super) struct Stated<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) origin: &'a Origin,
    pub(super) via: Option<NodeId>,
    /// What lets it in, where rules were asked here.
    pub(super) ruling: Option<Ruling>,
}

impl Core {
    /// Takes in one statement, and what waited for the document's creation.
    pub(super) fn take_statement(
        &mut self,
        work: &mut Work,
        document: DocumentId,
        stated: Stated<'_>,
        now: Instant,
        answer: &mut Admitted,
    ) -> Result<(), HistoryError> {
        let Stated { bytes, origin, via, ruling } = stated;
        let said = match Lifecycle::decode(bytes) {
            Ok(said) if said.document == document => said,
            Ok(_) => {
                answer.refused.push((document, "a lifecycle statement about another document".into()));
                return Ok(());
            }
            Err(error) => {
                answer.refused.push((document, format!("a lifecycle statement: {error}")));
                return Ok(());
            }
        };
        let known = self.row(work, document)?;
        if known.is_none() && said.kind != LifecycleKind::Created {
            self.pending.note_dropped(document);
            answer.missing.push((document, Vec::new()));
            return Ok(());
        }
        let id = Lifecycle::id_of(bytes);
        let mut row = known.unwrap_or_else(|| new_row(self.appender.next()));
        if !fold_lifecycle(&mut row.clone(), Lsn::ZERO, id, &said, 0) {
            answer.known += 1;
            return Ok(());
        }
        let collection = self.reference(work, NameKind::Collection, said.collection.as_str().as_bytes())?;
        let made_by = origin;
        let deed = if said.kind == LifecycleKind::Created { WriteKind::Create } else { WriteKind::Delete };
        self.note_allowed(work, ruling.as_ref(), made_by, collection, deed)?;
        let (origin, via) = self.origin_references(work, origin, via)?;
        let lsn = self.appender.next();
        if row.last_lsn == 0 {
            row.created_lsn = lsn.0;
        }
        fold_lifecycle(&mut row, lsn, id, &said, collection);
        let header = LifecycleHeader {
            document: document.0,
            collection,
            received_ms: work.now_ms,
            origin,
            via,
            payload_digest: payload_digest(bytes),
        };
        self.appender.push(&mut work.group, &Record::Lifecycle(header, bytes.to_vec()));
        self.index(work, document, lsn, &IndexRow::Lifecycle(id.0));
        self.attribute(work, made_by, lsn)?;
        self.rows.insert(document, row);
        work.step.restated.push(document);
        answer.accepted += 1;
        for arrival in self.pending.take_waiting(document, None) {
            self.take_change(work, document, arrival, now, answer)?;
        }
        Ok(())
    }
}
