//! Consumers of feeds: how far they are and what they made of it, moved together or not at all.

use super::{Core, Work};
use crate::history::HistoryError;
use crate::log::{Keyspace, WriteBatch};

impl Core {
    /// Takes a consumer's rows if its own row, under `key`, is still the one that they were made from: of two that run
    /// under one name at once, one is turned away.
    pub(super) fn consume(
        &self,
        work: &mut Work,
        key: Vec<u8>,
        expected: Option<Vec<u8>>,
        rows: WriteBatch,
    ) -> Result<bool, HistoryError> {
        if work.consumed.contains(&key) || self.reader.storage().get(Keyspace::State, &key)? != expected {
            return Ok(false);
        }
        work.consumed.insert(key);
        work.group.batch.rows.extend(rows.rows);
        Ok(true)
    }
}
