//! Authors that turned out to be somebody else's while what a user brought under their names was being judged.

use std::sync::PoisonError;

use super::{Arrival, Clash, Core, Work};
use crate::engine::owner::Owner;
use crate::history::HistoryError;
use crate::id::DocumentId;
use crate::log::record::{Admission, Record};

impl Core {
    /// Takes note of a change that is here already, as a user brings it. If it is an author's first, and the document has
    /// it from somebody else, then what comes with it under that author was judged as if the author were his: the other's
    /// came when that had been asked.
    pub(super) fn note_known(
        &mut self,
        work: &mut Work,
        document: DocumentId,
        arrival: &Arrival,
    ) -> Result<(), HistoryError> {
        if arrival.change.seq() != 1 || !is_judged(arrival) {
            return Ok(());
        }
        let graph = self.graph(work, document)?;
        let lsn = graph.lock().unwrap_or_else(PoisonError::into_inner).lsn_of(&arrival.change.hash());
        let Some(lsn) = lsn else { return Ok(()) };
        let is_his = match self.reader.record(lsn)? {
            Some(Record::Change(header, _)) => Owner::by_first(&self.reader, &header)?.lets(&arrival.origin.principal),
            // It is in the very group that is being made: whose it is can be asked when that is written.
            _ => false,
        };
        if !is_his {
            work.anothers.insert((document, arrival.change.actor().clone()));
        }
        Ok(())
    }

    /// Whether a change that is new here is to be judged again, for that reason.
    pub(super) fn is_anothers(
        &mut self,
        work: &mut Work,
        document: DocumentId,
        arrival: &Arrival,
    ) -> Result<bool, HistoryError> {
        let is_anothers = !work.anothers.is_empty()
            && is_judged(arrival)
            && work.anothers.contains(&(document, arrival.change.actor().clone()));
        Ok(is_anothers && !self.holds(work, document, arrival.change.hash())?)
    }
}

/// Whether somebody's rights were asked about a change here. Nodes are believed.
fn is_judged(arrival: &Arrival) -> bool {
    let Arrival { origin, clash, .. } = arrival;
    origin.admission == Admission::Full && !origin.principal.is_empty() && *clash == Clash::KeepFirst
}
