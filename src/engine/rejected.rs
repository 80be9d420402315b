//! The rows of edits that were made here and taken back: what refused them, or took the place of what they stood on, and
//! what they stood on.

use std::ops::ControlFlow;

use crate::history::{HistoryError, Reader};
use crate::id::{ChangeHash, DocumentId, Lsn};
use crate::limits::Limits;
use crate::log::Keyspace;
use crate::log::rows::{RejectedRow, decode_row, encode_row};

/// Positions that a rejected edit remembers of what it stood on.
const BENEATH_MAX: usize = 1024;
const PREFIX: &[u8] = b"t";

/// All of them, in no order.
///
/// # Errors
/// [`HistoryError`] when the store cannot be read.
pub(super) fn rejected_rows(reader: &Reader) -> Result<Vec<RejectedRow>, HistoryError> {
    let mut rows = Vec::new();
    let until = [PREFIX[0] + 1];
    reader.storage().scan(Keyspace::Held, PREFIX, &until, false, &mut |key, bytes| {
        // A row that cannot be read names no edit any more.
        rows.extend(decode_row::<RejectedRow>(Keyspace::Held, key, bytes));
        ControlFlow::Continue(())
    })?;
    Ok(rows)
}

/// What is to be written to keep more rejected edits: those, and the removal of the oldest beyond the limit.
///
/// # Errors
/// As [`rejected_rows`].
pub(super) fn with_room_for(
    more: Vec<RejectedRow>,
    reader: &Reader,
    limits: &Limits,
) -> Result<Vec<(Vec<u8>, Option<Vec<u8>>)>, HistoryError> {
    let mut there = rejected_rows(reader)?;
    there.sort_by_key(|row| (row.at_ms, row.lsn));
    let surplus = (there.len() + more.len()).saturating_sub(limits.rejected_rows).min(there.len());
    let old = there.drain(..surplus).map(|row| (row_key(&row), None));
    let new = more.into_iter().map(|row| {
        let key = row_key(&row);
        let bytes = encode_row(Keyspace::Held, &key, &row);
        (key, Some(bytes))
    });
    Ok(old.chain(new).collect())
}

/// Where what fell before `lsn` is, the nearest of it.
pub(super) fn beneath(falls: &[(Lsn, ChangeHash)], lsn: Lsn) -> Vec<u64> {
    let before = falls.partition_point(|(other, _)| *other < lsn);
    falls[before.saturating_sub(BENEATH_MAX)..before].iter().map(|(lsn, _)| lsn.0).collect()
}

/// The key of such a row.
pub(super) fn key_of(document: DocumentId, change: Option<ChangeHash>) -> Vec<u8> {
    [PREFIX, &document.0, &change.map_or([0; 32], |hash| hash.0)].concat()
}

fn row_key(row: &RejectedRow) -> Vec<u8> {
    key_of(DocumentId(row.document), row.change.map(ChangeHash))
}
