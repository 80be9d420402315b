//! Writing down what automerge cannot apply.

use std::sync::PoisonError;

use super::{Core, Work, remove_snapshot};
use crate::history::voids::{fold_void, void_index_row};
use crate::history::{HistoryError, Misfit, Readable};
use crate::id::{DocumentId, Lsn, truncated};
use crate::log::record::{Record, VoidHeader};

impl Core {
    /// Puts a `void` record into the group for each change that is still there and has none that counts. A snapshot that
    /// holds one of them goes.
    pub(super) fn take_void(
        &mut self,
        work: &mut Work,
        document: DocumentId,
        misfits: Vec<Misfit>,
        automerge: &str,
    ) -> Result<(), HistoryError> {
        let Some(mut row) = self.row(work, document)? else { return Ok(()) };
        let graph = self.graph(work, document)?;
        let known = match &row.voids {
            Some(voids) if voids.automerge == automerge => Readable::of(&self.reader.index(document, Lsn::ZERO)?),
            _ => Readable::default(),
        };
        for Misfit { lsn: change, hash, why } in misfits {
            let is_there = graph.lock().unwrap_or_else(PoisonError::into_inner).lsn_of(&hash) == Some(change);
            // Two views of the document may have failed over it at a time.
            if !is_there || known.is_void(change) || !work.voided.insert(change) {
                continue;
            }
            let lsn = self.appender.next();
            let header = VoidHeader {
                document: document.0,
                change: lsn.0 - change.0,
                automerge: truncated(automerge, VoidHeader::AUTOMERGE_BYTES_MAX).to_owned(),
                why: truncated(&why, VoidHeader::WHY_BYTES_MAX).to_owned(),
                received_ms: work.now_ms,
            };
            let saved = row.snapshot;
            fold_void(&mut row, lsn, &header);
            self.index(work, document, lsn, &void_index_row(&header));
            self.appender.push(&mut work.group, &Record::Void(header));
            if let (Some(saved), None) = (saved, row.snapshot) {
                remove_snapshot(&mut work.group.batch, document, &saved, self.limits.part_bytes);
            }
            work.step.changed.push((document, lsn));
        }
        self.rows.insert(document, row);
        Ok(())
    }
}
