//! The texts of rules that the log keeps, found by their version.
//!
//! A `rules` record comes before the first record under its version; the row here says where it is. Two texts whose
//! versions are the same are two records, and the row has the last.

use std::ops::ControlFlow;

use super::{HistoryError, Reader};
use crate::id::Lsn;
use crate::log::record::{Record, RulesHeader};
use crate::log::rows::{RulesRow, decode_row, encode_row};
use crate::log::{Keyspace, WriteBatch};

const PREFIX: u8 = b'r';

fn key_of(version: u32) -> [u8; 5] {
    let [a, b, c, d] = version.to_be_bytes();
    [PREFIX, a, b, c, d]
}

/// The version in a row's key.
pub(super) fn version_in(key: &[u8]) -> Option<u32> {
    key.get(1..).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes)
}

/// What a version is called in messages.
pub(super) fn rules_named(version: u32) -> String {
    format!("rules {}", RulesHeader::version_text(version))
}

/// Puts the row that follows from the `rules` record at `lsn`.
pub(crate) fn project_rules(batch: &mut WriteBatch, lsn: Lsn, header: &RulesHeader) {
    let (key, row) = (key_of(header.version), RulesRow { lsn: lsn.0, digest: header.digest });
    batch.put(Keyspace::State, key.as_slice(), encode_row(Keyspace::State, &key, &row));
}

impl Reader {
    /// Where the rules of a version are, as its row says; a row that cannot be read is an error.
    pub(super) fn rules_row(&self, version: u32) -> Result<Option<RulesRow>, HistoryError> {
        let key = key_of(version);
        let Some(bytes) = self.storage().get(Keyspace::State, &key)? else { return Ok(None) };
        let row = decode_row(Keyspace::State, &key, &bytes);
        row.map(Some).map_err(|error| HistoryError::Row { place: rules_named(version), error })
    }

    /// The `rules` record of a version, and where it is; `None` when the log has none.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk, the row or the record fails.
    pub fn rules(&self, version: u32) -> Result<Option<(Lsn, RulesHeader)>, HistoryError> {
        let Some(row) = self.rules_row(version)? else { return Ok(None) };
        Ok(match self.record(Lsn(row.lsn))? {
            Some(Record::Rules(header)) if header.version == version && header.digest == row.digest => {
                Some((Lsn(row.lsn), header))
            }
            _ => None,
        })
    }

    /// The versions of rules whose texts the log has, in the order of their records.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk fails. A row that cannot be read is left out; `verify` tells of it.
    pub fn rules_versions(&self) -> Result<Vec<u32>, HistoryError> {
        let mut found = Vec::new();
        self.storage().scan(Keyspace::State, &[PREFIX], &[PREFIX + 1], false, &mut |key, bytes| {
            if let (Some(version), Ok(row)) = (version_in(key), decode_row::<RulesRow>(Keyspace::State, key, bytes)) {
                found.push((row.lsn, version));
            }
            ControlFlow::Continue(())
        })?;
        found.sort_unstable();
        Ok(found.into_iter().map(|(_, version)| version).collect())
    }
}
