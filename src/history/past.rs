//! Documents as they were at a position of the log.

use std::collections::HashMap;

use super::fold::{fold_record, is_visible, new_row};
use super::{HistoryError, Readable, Reader};
use crate::document::{Change, View};
use crate::id::{DocumentId, Lsn};
use crate::limits::{Limits, audit as bounds};
use crate::log::LogError;
use crate::log::record::Record;
use crate::log::rows::{DocumentRow, IndexRow};

/// Documents as they were, kept while positions rise: then each record is read once. The least recently used make room.
pub struct Past {
    reader: Reader,
    documents: HashMap<DocumentId, Then>,
    uses: u64,
    bytes: usize,
}

/// A document as it was.
pub struct Then {
    /// Its row, without what is only kept for speed.
    pub row: DocumentRow,
    /// Its values.
    pub view: View,
    upto: Lsn,
    readable: Readable,
    bytes: usize,
    used: u64,
}

impl Then {
    /// Whether anybody had named it.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.row.last_lsn > 0
    }

    /// Whether it had a change and was not deleted.
    #[must_use]
    pub fn is_shown(&self) -> bool {
        self.is_there() && self.row.change_count > 0 && is_visible(&self.row)
    }
}

impl Past {
    /// Reads from `reader`.
    #[must_use]
    pub fn new(reader: Reader) -> Self {
        Self { reader, documents: HashMap::new(), uses: 0, bytes: 0 }
    }

    /// A document as it was after the record at `upto`, or why that cannot be told: some of its changes were withdrawn
    /// later, or it cannot be made.
    ///
    /// # Errors
    /// [`HistoryError`] when the log cannot be read.
    ///
    /// # Cost
    /// Reads and applies what came since the position that was asked for before; all, if that was a later one.
    pub fn at(&mut self, id: DocumentId, upto: Lsn) -> Result<Result<&Then, String>, HistoryError> {
        let now = self.reader.row(id)?;
        if let Some(now) = now.as_ref().filter(|now| now.generation > upto.0) {
            return Ok(Err(format!("changes of {id} were withdrawn later, at record {}", now.generation)));
        }
        let kept = self.documents.remove(&id);
        self.bytes -= kept.as_ref().map_or(0, |kept| kept.bytes);
        let generation = now.as_ref().map_or(0, |now| now.generation);
        let kept = kept.filter(|kept| kept.upto <= upto && kept.upto.0 >= generation && !kept.view.is_broken());
        let mut then = match kept {
            Some(then) => then,
            None => Then {
                row: new_row(Lsn::ZERO),
                view: View::new(),
                upto: Lsn::ZERO,
                readable: match &now {
                    Some(now) => self.reader.readable(id, now, Lsn(now.last_lsn))?,
                    None => Readable::default(),
                },
                bytes: 0,
                used: 0,
            },
        };
        if let Err(why) = self.advance(id, &mut then, upto)? {
            return Ok(Err(why));
        }
        self.uses += 1;
        then.used = self.uses;
        self.bytes += then.bytes;
        self.make_room();
        Ok(Ok(self.documents.entry(id).or_insert(then)))
    }

    fn advance(&self, id: DocumentId, then: &mut Then, upto: Lsn) -> Result<Result<(), String>, HistoryError> {
        let mut changes = Vec::new();
        for (lsn, index) in self.reader.index_between(id, then.upto, upto)? {
            let Some(record) = self.reader.record(lsn)? else { continue };
            let folded = fold_record(&mut then.row, lsn, &record, Limits::DEFAULT.clock_entries_in_row);
            folded.map_err(|error| LogError::Record { lsn, error })?;
            if let (IndexRow::Change { .. }, Record::Change(_, chunk)) = (index, record)
                && !then.readable.hides(lsn)
            {
                then.bytes += chunk.len();
                match Change::parse_logged(chunk) {
                    Ok(change) => changes.push(change),
                    Err(error) => return Ok(Err(format!("record {lsn}: {error}"))),
                }
            }
        }
        if !changes.is_empty()
            && let Err(error) = then.view.apply(&changes)
        {
            return Ok(Err(format!("document {id} cannot be made as it was at record {upto}: {error}")));
        }
        then.bytes = then.bytes.max(then.view.bytes_estimate());
        then.upto = upto;
        Ok(Ok(()))
    }

    fn make_room(&mut self) {
        while self.documents.len() >= bounds::PAST_DOCUMENTS
            || (self.bytes > bounds::PAST_BYTES && !self.documents.is_empty())
        {
            let oldest = self.documents.iter().min_by_key(|(_, then)| then.used).map(|(id, _)| *id);
            let Some(gone) = oldest.and_then(|oldest| self.documents.remove(&oldest)) else { break };
            self.bytes -= gone.bytes;
        }
    }
}
