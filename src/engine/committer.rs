//! One commit group, from the core to the disk to those who read: the order on which "persist, then tell" rests. The
//! writer's thread and the simulations run this same code.

use std::sync::Arc;
use std::time::Instant;

use super::core::{Admitted, Core, Input, Step};
use super::working_set::{InFlight, WorkingSet};
use crate::error::Error;
use crate::history::Reader;
use crate::id::{DocumentId, LogCursor, Lsn};
use crate::log::{Log, LogError};

/// The core, the log that it appends to, and those who read what is committed.
pub(crate) struct Committer {
    pub(crate) core: Core,
    pub(crate) log: Log,
    pub(crate) reader: Reader,
    pub(crate) working_set: Arc<WorkingSet>,
}

/// What is on the disk now, and may be told.
pub(super) struct Committed {
    /// The log's tail.
    pub(super) end: LogCursor,
    /// Records were appended.
    pub(super) appended: bool,
    /// Documents that they are about, some more than once.
    pub(super) documents: Vec<DocumentId>,
    /// One outcome for each input, in order.
    pub(super) outcomes: Vec<Outcome>,
    /// Documents whose snapshot is due.
    pub(super) snapshots_due: Vec<DocumentId>,
}

/// What became of one input, and the footer that covers it.
pub(super) type Outcome = Result<(Admitted, Lsn), Error>;

impl Committer {
    /// Makes one commit group of `inputs`, writes it, and shows it to those who read.
    ///
    /// # Errors
    /// [`LogError`] when it could not be written: the log is poisoned, and what views show may be lost. The caller says
    /// that nothing more is taken, and then discards them.
    pub(super) fn commit(&mut self, now_ms: u64, now: Instant, inputs: Vec<Input>) -> Result<Committed, LogError> {
        let count = inputs.len();
        let Step { group, rows, answers, changed, documents, restated, snapshots_due, storage_id } =
            self.core.step(now_ms, now, inputs);
        let span = tracing::debug_span!("commit", lsn = tracing::field::Empty, inputs = count).entered();
        let end = match group {
            Some(group) => self.log.commit(group)?,
            None if rows.rows.is_empty() => self.reader.tail(),
            None => self.log.commit_rows(rows).map(|()| self.reader.tail())?,
        };
        if let Some(id) = storage_id {
            self.log.sync()?;
            self.reader.note_storage_id(id);
        }
        span.record("lsn", end.lsn.0);
        self.working_set.note_statements(&restated);
        let appended = end.lsn != self.reader.tail().lsn;
        if appended {
            self.reader.advance(end);
            self.working_set.note_changes(&changed);
        }
        let told = |admitted| (admitted, end.lsn);
        let outcomes = answers.into_iter().map(|answer| answer.map(told).map_err(Error::from)).collect();
        Ok(Committed { end, appended, documents, outcomes, snapshots_due })
    }
}

/// Ends an edit's flight. Before its answer, so that whoever hears that finds the document settled.
pub(super) fn land(in_flight: Option<InFlight>, outcome: &Outcome) {
    let is_taken = outcome.as_ref().is_ok_and(|(admitted, _)| admitted.refused.is_empty());
    if let (Some(in_flight), false) = (in_flight, is_taken) {
        in_flight.refused();
    }
}
