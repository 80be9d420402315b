//! Snapshots of documents: when one is due, and keeping it.

use super::{Core, Work};
use crate::history::HistoryError;
use crate::history::voids::is_degraded;
use crate::id::{DocumentId, Heads, Lsn};
use crate::log::rows::{SnapshotRef, SnapshotRow, encode_row};
use crate::log::{Keyspace, WriteBatch};

impl Core {
    pub(super) fn snapshot_due(&self, id: DocumentId) -> bool {
        let Some(row) = self.rows.get(&id).filter(|row| !is_degraded(row)) else { return false };
        let (saved_changes, saved_bytes) = row.snapshot.map_or((0, 0), |saved| (saved.changes, saved.bytes));
        let tail = row.change_count.saturating_sub(saved_changes);
        // Chunks are far larger than their share of a snapshot, so bytes are compared with chunks' bytes.
        let tail_bytes = (row.change_bytes / row.change_count.max(1)).saturating_mul(tail);
        tail > self.limits.snapshot_tail_min.max(row.change_count / 4)
            || (tail_bytes > self.limits.snapshot_tail_bytes.max(row.change_bytes / 4) && tail_bytes > saved_bytes)
    }

    pub(super) fn keep_snapshot(
        &mut self,
        work: &mut Work,
        document: DocumentId,
        lsn: Lsn,
        heads: &Heads,
        changes: u64,
        bytes: &[u8],
    ) -> Result<(), HistoryError> {
        let Some(mut row) = self.row(work, document)? else { return Ok(()) };
        let older = row.snapshot.map(|saved| Lsn(saved.lsn));
        // What cannot be applied must not be loaded again some day.
        if is_degraded(&row) {
            return Ok(());
        }
        // One from before a withdrawal shows what was withdrawn.
        if older.is_some_and(|older| older >= lsn) || lsn.0 > row.last_lsn || lsn.0 < row.generation {
            return Ok(());
        }
        let parts: Vec<&[u8]> = bytes.chunks(self.limits.part_bytes).collect();
        let described = SnapshotRow {
            heads: heads.as_slice().iter().map(|hash| hash.0).collect(),
            changes,
            bytes: bytes.len() as u64,
            digest: *blake3::hash(bytes).as_bytes(),
            parts: parts.len() as u32,
        };
        let batch = &mut work.group.batch;
        for (part, bytes) in (1u32..).zip(&parts) {
            batch.put(Keyspace::Snap, crate::history::snapshot_key(document, lsn, part), bytes.to_vec());
        }
        let key = crate::history::snapshot_key(document, lsn, 0);
        batch.put(Keyspace::Snap, key, encode_row(Keyspace::Snap, &key, &described));
        if let Some(saved) = row.snapshot {
            remove_snapshot(batch, document, &saved, self.limits.part_bytes);
        }
        row.snapshot = Some(SnapshotRef { lsn: lsn.0, bytes: bytes.len() as u64, changes });
        self.rows.insert(document, row);
        Ok(())
    }
}

pub(super) fn remove_snapshot(batch: &mut WriteBatch, document: DocumentId, saved: &SnapshotRef, part_bytes: usize) {
    let parts = saved.bytes.div_ceil(part_bytes as u64);
    for part in 0..=u32::try_from(parts).unwrap_or(u32::MAX) {
        batch.remove(Keyspace::Snap, crate::history::snapshot_key(document, Lsn(saved.lsn), part));
    }
}
