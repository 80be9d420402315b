//! Taking logged changes away again.
//!
//! Two different changes under one author's number can each be logged, at nodes that did not know of the other. One of
//! them has to go everywhere, or the replicas differ for ever. What goes leaves the index, so that graphs, views and
//! exchanges never see it; its record stays in the log, and a `withdrawn` record behind it says so. From there on the
//! document is of another *generation*: whatever was made of it before is made again.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use super::HistoryError;
use super::fold::{fold_record, index_key, lsn_in, new_row};
use crate::id::{DocumentId, Lsn};
use crate::log::record::{Record, WithdrawnHeader};
use crate::log::rows::{DocumentRow, IndexRow, encode_row};
use crate::log::{Keyspace, LogError, Storage, WriteBatch, log_key};

/// The records that the `withdrawn` record at `lsn` takes away.
#[must_use]
pub fn withdrawn_records(lsn: Lsn, header: &WithdrawnHeader) -> BTreeSet<Lsn> {
    header.changes.iter().filter_map(|back| lsn.0.checked_sub(*back)).map(Lsn).collect()
}

/// Puts into `batch` what follows from the `withdrawn` record at `lsn`, apart from the document's own row. `pointless`
/// are the records that say nothing without what it takes away.
pub fn project_withdrawal(batch: &mut WriteBatch, lsn: Lsn, header: &WithdrawnHeader, pointless: &[Lsn]) {
    let document = DocumentId(header.document);
    for record in withdrawn_records(lsn, header).into_iter().chain(pointless.iter().copied()) {
        batch.remove(Keyspace::DocIx, index_key(document, record));
    }
    let key = index_key(document, lsn);
    let row = IndexRow::Withdrawn { winner: header.winner, changes: header.changes.len() as u64 };
    batch.put(Keyspace::DocIx, key, encode_row(Keyspace::DocIx, &key, &row));
}

/// What is left of a document.
pub struct Remainder {
    /// Its row; `None` when nothing is left.
    pub row: Option<DocumentRow>,
    /// The `void` records about what was taken away: they say nothing any more, and go too.
    pub pointless: Vec<Lsn>,
}

/// The document's row as its indexed records make it, without those in `withdrawn`.
///
/// # Errors
/// [`HistoryError`] when the index or a record is damaged.
///
/// # Cost
/// Reads every record about the document.
pub fn row_without(
    storage: &dyn Storage,
    document: DocumentId,
    withdrawn: &BTreeSet<Lsn>,
    clock_entries: usize,
) -> Result<Remainder, HistoryError> {
    let mut records = Vec::new();
    let (from, to) = (index_key(document, Lsn::ZERO), index_key(document, Lsn(u64::MAX)));
    storage.scan(Keyspace::DocIx, &from, &to, false, &mut |key, _| {
        records.extend(lsn_in(key).filter(|lsn| !withdrawn.contains(lsn)));
        ControlFlow::Continue(())
    })?;
    let mut left = Remainder { row: None, pointless: Vec::new() };
    for lsn in records {
        let bytes = storage.get(Keyspace::Log, &log_key(lsn))?;
        let bytes = bytes.ok_or_else(|| HistoryError::Missing(format!("record {lsn}")))?;
        let record = Record::read(lsn, &bytes).map_err(|error| LogError::Record { lsn, error })?;
        if let Record::Void(header) = &record
            && withdrawn.contains(&Lsn(lsn.0.saturating_sub(header.change)))
        {
            left.pointless.push(lsn);
            continue;
        }
        let row = left.row.get_or_insert_with(|| new_row(lsn));
        fold_record(row, lsn, &record, clock_entries).map_err(|error| LogError::Record { lsn, error })?;
    }
    Ok(left)
}
