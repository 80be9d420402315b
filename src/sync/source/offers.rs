//! What a client says once more of documents: a statement of its own that the node denied stays here, and may be allowed
//! now.

use super::{Rows, Source};
use crate::history::{HistoryError, Reader};
use crate::id::{DocumentId, Lsn};
use crate::log::record::LifecycleKind;
use crate::sync::session::{Outbox, SessionError};

/// Documents of which so much is said on one link: each may be denied, and of denials a link bears a thousand.
const OFFERS_MAX: usize = 256;

impl Source {
    /// Takes note of a document that the node listed otherwise than it is here, though all the node has of it is here.
    pub(in crate::sync) fn offer(&mut self, document: DocumentId) {
        // Of more the next link tells.
        if self.offered < OFFERS_MAX {
            self.offered += 1;
            self.offers.push_back(document);
        }
    }

    /// Sends what was said here of the lives of some of those documents; `false` when there is none.
    pub(super) fn send_offers(&mut self, reader: &Reader, out: &mut Outbox) -> Result<bool, SessionError> {
        if self.offers.is_empty() || !self.has_room_for_batch() {
            return Ok(false);
        }
        let mut rows = Rows::default();
        while rows.bytes < self.limits.batch_bytes
            && let Some(document) = self.offers.pop_front()
        {
            if is_said_here(document, reader)? {
                self.add_lifecycle(document, reader, &mut rows)?;
            }
        }
        if !rows.rows.is_empty() {
            self.send_batch(rows, None, out)?;
        }
        Ok(true)
    }
}

/// Whether it was said here that a document is deleted, or restored.
fn is_said_here(document: DocumentId, reader: &Reader) -> Result<bool, HistoryError> {
    let winner = reader.row(document)?.and_then(|row| row.winner);
    let said = winner.filter(|winner| winner.kind != LifecycleKind::Created as u8);
    said.map_or(Ok(false), |winner| Ok(reader.via(Lsn(winner.lsn))?.is_none()))
}
