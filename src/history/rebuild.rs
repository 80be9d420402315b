//! Making the projections again from the log.

use std::ops::ControlFlow;

use super::fold::{fold_record, index_key, index_row, lsn_in, new_row, project_row};
use super::open::{LAYOUT, PROJECTIONS_KEY, Walk, walk_log};
use super::reader::document_row;
use super::rules::project_rules;
use super::snapshot::{read_snapshot, snapshot_key};
use super::voids::{is_past_void, void_index_row};
use super::withdrawal::{project_withdrawal, row_without, withdrawn_records};
use super::{HistoryError, Names};
use crate::id::{DocumentId, Lsn};
use crate::limits::Limits;
use crate::log::record::{Lifecycle, Record};
use crate::log::rows::{DocumentRow, IndexRow, ProjectionRow, SnapshotRef, SnapshotRow, decode_row, encode_row};
use crate::log::{Durability, Keyspace, LogError, Storage, WriteBatch};

/// Rows written or removed at a time.
const PAGE: usize = 4096;

/// Removes the projections and makes them again from the log, which ends at `tail`. An interrupted rebuild begins
/// again at the next open. `progress` is told how many records are done, and the last position.
///
/// # Errors
/// [`HistoryError`] when the log itself is damaged: then the projections stay away, and nothing is served from them.
///
/// # Cost
/// One pass over the log.
pub fn rebuild(storage: &dyn Storage, tail: Lsn, progress: &mut dyn FnMut(u64, Lsn)) -> Result<(), HistoryError> {
    mark(storage, Some(tail))?;
    for (keyspace, from, to) in [
        (Keyspace::DocIx, &[][..], &[0xff; 25][..]),
        (Keyspace::Docs, &[], &[0xff; 17]),
        (Keyspace::BySeq, &[], &[0xff; 17]),
        (Keyspace::State, b"n", b"o"),
        (Keyspace::State, b"N", b"O"),
        (Keyspace::State, b"r", b"s"),
    ] {
        remove_all(storage, keyspace, from, to)?;
    }
    let mut walk = Walk::from_footer(storage, Lsn::ZERO)?;
    let mut page = Page::default();
    walk_log(storage, Lsn(1), &mut walk, &mut |lsn, record| {
        page.take(storage, lsn, record)?;
        if page.records >= PAGE {
            page.write(storage)?;
            progress(page.total, tail);
        }
        Ok(())
    })?;
    page.write(storage)?;
    progress(page.total, tail);
    find_snapshots(storage)?;
    mark(storage, None)
}

fn mark(storage: &dyn Storage, rebuilding: Option<Lsn>) -> Result<(), HistoryError> {
    let row = ProjectionRow { layout: LAYOUT, rebuilding: rebuilding.map(|lsn| lsn.0) };
    let mut batch = WriteBatch::default();
    batch.put(Keyspace::State, PROJECTIONS_KEY, encode_row(Keyspace::State, PROJECTIONS_KEY, &row));
    Ok(storage.commit(batch, Durability::Synced)?)
}

fn remove_all(storage: &dyn Storage, keyspace: Keyspace, from: &[u8], to: &[u8]) -> Result<(), HistoryError> {
    let mut from = from.to_vec();
    loop {
        let mut batch = WriteBatch::default();
        let mut last = None;
        storage.scan(keyspace, &from, to, false, &mut |key, _| {
            batch.remove(keyspace, key);
            last = Some(key.to_vec());
            if batch.rows.len() >= PAGE { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        // Behind the last one: from the beginning each page would step over the tombstones of all before it.
        let Some(last) = last else { return Ok(()) };
        from = [&last[..], &[0]].concat();
        storage.commit(batch, Durability::Buffered)?;
    }
}

/// The rows that follow from a stretch of the log.
#[derive(Default)]
struct Page {
    batch: WriteBatch,
    documents: std::collections::BTreeMap<DocumentId, (Option<DocumentRow>, DocumentRow)>,
    records: usize,
    total: u64,
}

impl Page {
    fn take(&mut self, storage: &dyn Storage, lsn: Lsn, record: Record) -> Result<(), HistoryError> {
        self.records += 1;
        self.total += 1;
        match record {
            Record::Change(ref header, _) => {
                let id = DocumentId(header.document);
                self.fold(storage, id, lsn, &record)?;
                self.index(id, lsn, &index_row(header));
            }
            Record::Lifecycle(ref header, ref bytes) => {
                let id = DocumentId(header.document);
                self.fold(storage, id, lsn, &record)?;
                self.index(id, lsn, &IndexRow::Lifecycle(Lifecycle::id_of(bytes).0));
            }
            Record::Withdrawn(ref header) => {
                // What is taken away has to be in the tables.
                self.write(storage)?;
                let (id, withdrawn) = (DocumentId(header.document), withdrawn_records(lsn, header));
                let left = row_without(storage, id, &withdrawn, Limits::DEFAULT.clock_entries_in_row)?;
                *self.row(storage, id, lsn)? = left.row.unwrap_or_else(|| new_row(lsn));
                self.fold(storage, id, lsn, &record)?;
                project_withdrawal(&mut self.batch, lsn, header, &left.pointless);
            }
            Record::Void(ref header) => {
                let id = DocumentId(header.document);
                self.fold(storage, id, lsn, &record)?;
                self.index(id, lsn, &void_index_row(header));
            }
            Record::Withheld(ref header) => {
                let id = DocumentId(header.document);
                self.fold(storage, id, lsn, &record)?;
                self.index(id, lsn, &IndexRow::Withheld(header.withheld));
            }
            Record::Name(header) => Names::project(&mut self.batch, &header),
            Record::Rules(header) => project_rules(&mut self.batch, lsn, &header),
            Record::Footer(_) | Record::Gap(_) | Record::Checkpoint => {}
            // No row follows from them.
            Record::Refused(_) | Record::Subject(_) | Record::Attributed(_) | Record::Allowed(_) => {}
        }
        Ok(())
    }

    fn fold(&mut self, storage: &dyn Storage, id: DocumentId, lsn: Lsn, record: &Record) -> Result<(), HistoryError> {
        let row = self.row(storage, id, lsn)?;
        let folded = fold_record(row, lsn, record, Limits::DEFAULT.clock_entries_in_row);
        Ok(folded.map_err(|error| LogError::Record { lsn, error })?)
    }

    fn index(&mut self, id: DocumentId, lsn: Lsn, row: &IndexRow) {
        let key = index_key(id, lsn);
        self.batch.put(Keyspace::DocIx, key, encode_row(Keyspace::DocIx, &key, row));
    }

    fn row(&mut self, storage: &dyn Storage, id: DocumentId, lsn: Lsn) -> Result<&mut DocumentRow, HistoryError> {
        use std::collections::btree_map::Entry;
        match self.documents.entry(id) {
            Entry::Occupied(entry) => Ok(&mut entry.into_mut().1),
            Entry::Vacant(entry) => {
                let bytes = storage.get(Keyspace::Docs, &id.0)?;
                let before = bytes.map(|bytes| document_row(&id.0, &bytes)).transpose()?.map(|(_, row)| row);
                let row = before.clone().unwrap_or_else(|| new_row(lsn));
                Ok(&mut entry.insert((before, row)).1)
            }
        }
    }

    fn write(&mut self, storage: &dyn Storage) -> Result<(), HistoryError> {
        let mut batch = std::mem::take(&mut self.batch);
        for (id, (before, row)) in std::mem::take(&mut self.documents) {
            project_row(&mut batch, id, before.as_ref(), &row);
        }
        self.records = 0;
        Ok(storage.commit(batch, Durability::Buffered)?)
    }
}

/// Notes the newest intact snapshot of each document in its row again.
fn find_snapshots(storage: &dyn Storage) -> Result<(), HistoryError> {
    let mut found: std::collections::BTreeMap<DocumentId, Lsn> = std::collections::BTreeMap::new();
    storage.scan(Keyspace::Snap, &[], &[0xff; 29], false, &mut |key, _| {
        if let (Some(id), Some(lsn), true) = (key.get(..16), key.get(..24).and_then(lsn_in), key.ends_with(&[0; 4]))
            && let Ok(id) = id.try_into()
        {
            found.insert(DocumentId(id), lsn);
        }
        ControlFlow::Continue(())
    })?;
    for (id, lsn) in found {
        let Some(bytes) = storage.get(Keyspace::Docs, &id.0)? else { continue };
        let (_, mut row) = document_row(&id.0, &bytes)?;
        let key = snapshot_key(id, lsn, 0);
        let described = storage.get(Keyspace::Snap, &key)?;
        let described = described.and_then(|bytes| decode_row::<SnapshotRow>(Keyspace::Snap, &key, &bytes).ok());
        if let Some(described) = described
            // One that was taken at a record that is lost holds lost changes.
            && storage.get(Keyspace::DocIx, &index_key(id, lsn))?.is_some()
            // And one from before a withdrawal what was withdrawn.
            && lsn.0 >= row.generation
            && !is_past_void(&row, lsn)
            && read_snapshot(storage, id, lsn)?.is_some()
        {
            row.snapshot = Some(SnapshotRef { lsn: lsn.0, bytes: described.bytes, changes: described.changes });
            let mut batch = WriteBatch::default();
            batch.put(Keyspace::Docs, id.0, encode_row(Keyspace::Docs, &id.0, &row));
            storage.commit(batch, Durability::Buffered)?;
        }
    }
    Ok(())
}
