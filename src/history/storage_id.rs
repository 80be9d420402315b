//! The store's name for automerge-repo's clients, and the log that it is good for.
//!
//! A client keeps, under this name, what it last knew us to have. A log that got a new id may have less than that, so
//! the name goes with the log id: the row holds both, and one that names another log counts for nothing.

use super::HistoryError;
use crate::id::{LogId, StorageId};
use crate::log::rows::{decode_row, encode_row};
use crate::log::{Durability, Keyspace, Storage, WriteBatch};

const STORAGE_ID_KEY: &[u8] = b"s:storage";

/// What the row holds: the storage id, and the log id it was drawn or adopted for.
type StorageRow = ([u8; 16], [u8; 16]);

/// Reads the name that goes with the log `log_id`, or draws one. It is on the disk when this returns.
pub(super) fn settle_storage_id(storage: &dyn Storage, log_id: LogId) -> Result<StorageId, HistoryError> {
    if let Some(id) = read(storage, log_id)? {
        return Ok(id);
    }
    let id = StorageId::random();
    let mut batch = WriteBatch::default();
    put_storage_id(&mut batch, id, log_id);
    storage.commit(batch, Durability::Synced)?;
    tracing::info!(storage = %id, log = %log_id, "the store has a new name for automerge-repo's clients");
    Ok(id)
}

/// The row's name. A damaged row, or one for another log, counts as none: clients then begin anew with us.
fn read(storage: &dyn Storage, log_id: LogId) -> Result<Option<StorageId>, HistoryError> {
    let Some(bytes) = storage.get(Keyspace::State, STORAGE_ID_KEY)? else { return Ok(None) };
    let row: Option<StorageRow> = decode_row(Keyspace::State, STORAGE_ID_KEY, &bytes).ok();
    Ok(row.filter(|(_, log)| *log == log_id.0).and_then(|(id, _)| StorageId::new(id)))
}

/// Notes `id` as the name that goes with the log `log_id`.
pub(crate) fn put_storage_id(batch: &mut WriteBatch, id: StorageId, log_id: LogId) {
    let row: StorageRow = (*id.as_bytes(), log_id.0);
    batch.put(Keyspace::State, STORAGE_ID_KEY, encode_row(Keyspace::State, STORAGE_ID_KEY, &row));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::MemoryStorage;

    #[test]
    fn a_name_goes_with_one_log_and_is_durable_before_it_is_told() {
        let storage = MemoryStorage::new();
        let (log, other) = (LogId([1; 16]), LogId([2; 16]));
        let first = settle_storage_id(&storage, log).unwrap();
        assert_eq!(settle_storage_id(&storage.crashed(0), log).unwrap(), first, "a power cut right after");
        assert_eq!(settle_storage_id(&storage, log).unwrap(), first);
        let second = settle_storage_id(&storage, other).unwrap();
        assert_ne!(second, first);
        assert_ne!(settle_storage_id(&storage, log).unwrap(), first, "a name that was given up does not come back");
    }

    #[test]
    fn a_damaged_row_counts_as_none() {
        let storage = MemoryStorage::new();
        let log = LogId([1; 16]);
        let first = settle_storage_id(&storage, log).unwrap();
        storage.tamper(Keyspace::State, STORAGE_ID_KEY, Some(vec![1, 2, 3]));
        let second = settle_storage_id(&storage, log).unwrap();
        assert_ne!(second, first);
        storage.fail_after(0);
        storage.tamper(Keyspace::State, STORAGE_ID_KEY, None);
        assert!(settle_storage_id(&storage, log).is_err(), "nobody is told of a name that is not on the disk");
    }
}
