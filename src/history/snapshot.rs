//! Documents' saved bytes, in parts: a cache.

use super::fold::index_key;
use super::voids::is_past_void;
use super::{HistoryError, Reader};
use crate::id::{ChangeHash, DocumentId, Heads, Lsn};
use crate::limits::Limits;
use crate::log::rows::{DocumentRow, SnapshotRow, decode_row};
use crate::log::{Keyspace, Storage};

/// A document's saved bytes.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The last record they hold.
    pub lsn: Lsn,
    /// The heads they were saved at.
    pub heads: Heads,
    /// An Automerge document chunk.
    pub bytes: Vec<u8>,
}

impl Reader {
    /// The newest snapshot of a document. A damaged one is reported and passed over: it is a cache. One that holds what
    /// this node's automerge cannot apply is passed over too.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk fails.
    pub fn snapshot(&self, id: DocumentId) -> Result<Option<Snapshot>, HistoryError> {
        let Some(row) = self.row(id)? else { return Ok(None) };
        let Some(lsn) = row.snapshot.map(|saved| Lsn(saved.lsn)).filter(|lsn| !is_past_void(&row, *lsn)) else {
            return Ok(None);
        };
        let read = read_snapshot(&**self.storage(), id, lsn)?;
        if read.is_none() {
            tracing::warn!(document = %id, %lsn, "a snapshot is damaged; the log is read instead");
        }
        Ok(read)
    }
}

/// How many changes may lie behind the snapshot of a document at rest, or of one that somebody is to be sent whole; and
/// which part of all it has if that is more.
const TAIL_MIN: u64 = 1024;
const TAIL_PART: u64 = 16;

/// Whether more lies behind a document's snapshot than somebody who has nothing should be sent one by one.
pub(crate) fn is_saved_far_behind(row: &DocumentRow) -> bool {
    let saved = row.snapshot.as_ref().map_or(0, |saved| saved.changes);
    row.change_count.saturating_sub(saved) > TAIL_MIN.max(row.change_count / TAIL_PART)
}

/// The key of a snapshot's part; part 0 describes it.
#[must_use]
pub(crate) fn snapshot_key(id: DocumentId, lsn: Lsn, part: u32) -> [u8; 28] {
    let mut key = [0; 28];
    key[..24].copy_from_slice(&index_key(id, lsn));
    key[24..].copy_from_slice(&part.to_be_bytes());
    key
}

/// Reads the snapshot of `id` at `lsn`; `None` when any byte of it is missing or wrong.
pub(super) fn read_snapshot(storage: &dyn Storage, id: DocumentId, lsn: Lsn) -> Result<Option<Snapshot>, HistoryError> {
    let key = snapshot_key(id, lsn, 0);
    let Some(bytes) = storage.get(Keyspace::Snap, &key)? else { return Ok(None) };
    let Ok(row) = decode_row::<SnapshotRow>(Keyspace::Snap, &key, &bytes) else { return Ok(None) };
    let mut bytes = Vec::with_capacity(usize::try_from(row.bytes).unwrap_or(0).min(Limits::DEFAULT.document_bytes_max));
    for part in 1..=row.parts {
        match storage.get(Keyspace::Snap, &snapshot_key(id, lsn, part))? {
            Some(part) => bytes.extend(part),
            None => return Ok(None),
        }
    }
    if *blake3::hash(&bytes).as_bytes() != row.digest {
        return Ok(None);
    }
    let heads = Heads::new(row.heads.into_iter().map(ChangeHash).collect());
    Ok(Some(Snapshot { lsn, heads, bytes }))
}
