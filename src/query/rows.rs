//! The rows of views and indexes, and reading them as they will be when what is on its way to the disk is there.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use serde_json::Value;

use super::document::Document;
use super::index::Index;
use super::value::kept;
use crate::error::Error;
use crate::history::HistoryError;
use crate::id::{ChangeHash, CollectionKey, CollectionName, DocumentId, Heads, Lsn};
use crate::limits::queries;
use crate::log::rows::{ValueRow, decode_row, encode_row};
use crate::log::{Keyspace, Storage, Visit, WriteBatch};

/// The layout of these rows. Another number has every view made again.
pub(super) const LAYOUT: u32 = 1;

/// Rows that are being written: key, and the value to put or `None` to remove.
pub(super) type Overlay = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// The rows of `views`, with what is on its way to the disk.
#[derive(Clone)]
pub(super) struct Rows {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) overlay: Arc<Overlay>,
}

impl Rows {
    /// The row under `key`.
    ///
    /// # Errors
    /// [`Error::History`] when the store cannot be read.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        match self.overlay.get(key) {
            Some(row) => Ok(row.clone()),
            None => Ok(self.storage.get(Keyspace::Views, key)?),
        }
    }

    /// Visits the rows from `from` (included) to `to` (excluded), ascending or descending, until `visit` breaks.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(super) fn scan(&self, from: &[u8], to: &[u8], descending: bool, visit: Visit<'_>) -> Result<(), Error> {
        if from >= to {
            return Ok(());
        }
        let mut over = self.overlay.range(from.to_vec()..to.to_vec());
        let mut next = move || if descending { over.next_back() } else { over.next() };
        let mut pending = next();
        let mut flow = ControlFlow::Continue(());
        self.storage.scan(Keyspace::Views, from, to, descending, &mut |key, bytes| {
            // What is on its way comes before this row, in its place, or later.
            while let Some((over_key, row)) = pending {
                let is_before = if descending { over_key.as_slice() > key } else { over_key.as_slice() < key };
                if over_key.as_slice() != key && !is_before {
                    break;
                }
                pending = next();
                if let Some(row) = row {
                    flow = visit(over_key, row);
                }
                if flow.is_break() || !is_before {
                    return flow;
                }
            }
            flow = visit(key, bytes);
            flow
        })?;
        while let (Some((key, row)), true) = (pending, flow.is_continue()) {
            pending = next();
            if let Some(row) = row {
                flow = visit(key, row);
            }
        }
        Ok(())
    }

    /// The present value of a document of the collection `key`; `None` when it is not there.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(super) fn document(&self, collection: CollectionKey, id: DocumentId) -> Result<Option<Document>, Error> {
        let key = value_key(collection, id);
        self.get(&key)?.map(|bytes| document_of(&key, &bytes)).transpose()
    }
}

/// Reads a row of values.
///
/// # Errors
/// [`Error::History`] when it is not as it was written.
pub(super) fn document_of(key: &[u8], bytes: &[u8]) -> Result<Document, Error> {
    let place = || "a value that is kept for queries".to_owned();
    let row: ValueRow =
        decode_row(Keyspace::Views, key, bytes).map_err(|error| HistoryError::Row { place: place(), error })?;
    let id = id_at_end(key).ok_or_else(|| HistoryError::Missing(place()))?;
    let value: Value =
        serde_json::from_slice(&row.value).map_err(|error| HistoryError::Missing(format!("{} ({error})", place())))?;
    Ok(Document {
        id,
        name: row.name,
        heads: Heads::new(row.heads.into_iter().map(ChangeHash).collect()),
        position: Lsn(row.lsn),
        bytes: row.value.len(),
        kept: None,
        is_partial: !row.whole,
        value,
    })
}

/// The row of a document's value. What is kept of one that is too large becomes what it is compared by.
pub(super) fn value_row(key: &[u8], document: &mut Document) -> Vec<u8> {
    let mut value = document.value.to_string().into_bytes();
    document.bytes = value.len();
    if value.len() > queries::VALUE_KEPT_BYTES {
        let kept = kept(&document.value, queries::VALUE_KEPT_BYTES);
        value = kept.to_string().into_bytes();
        document.kept = Some(kept);
    }
    let row = ValueRow {
        lsn: document.position.0,
        heads: document.heads.as_slice().iter().map(|hash| hash.0).collect(),
        name: document.name.clone(),
        whole: document.kept.is_none(),
        value,
    };
    encode_row(Keyspace::Views, key, &row)
}

/// The key of a document's value.
pub(super) fn value_key(collection: CollectionKey, id: DocumentId) -> Vec<u8> {
    [&values_of(collection)[..], &id.0].concat()
}

/// What the keys of a collection's values begin with.
pub(super) fn values_of(collection: CollectionKey) -> Vec<u8> {
    [&b"v"[..], &collection.0].concat()
}

/// What the keys of an index begin with.
pub(super) fn entries_of(index: [u8; 8]) -> Vec<u8> {
    [&b"x"[..], &index].concat()
}

/// The key in `state` of a collection's view.
pub(super) fn view_key(collection: CollectionKey) -> Vec<u8> {
    [&b"v"[..], &collection.0].concat()
}

/// The key in `state` of an index.
pub(super) fn index_key(collection: CollectionKey, index: [u8; 8]) -> Vec<u8> {
    [&b"x"[..], &collection.0, &index].concat()
}

/// The document at the end of a key of a value.
pub(super) fn id_at_end(key: &[u8]) -> Option<DocumentId> {
    key.last_chunk().map(|id| DocumentId(*id))
}

/// The first key behind all that begin with `prefix`.
pub(super) fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    super::spec::step_over(&mut end);
    end
}

/// The rows that change an index from what one value brings to what another does.
pub(super) fn put_entries(
    overlay: &mut Overlay,
    index: &Index,
    id: DocumentId,
    before: Option<&Value>,
    after: Option<&Value>,
) {
    let entries = |value: Option<&Value>| -> BTreeSet<Vec<u8>> {
        value.map(|value| index.entries(id, value)).into_iter().flatten().collect()
    };
    let (before, after) = (entries(before), entries(after));
    for key in before.difference(&after) {
        overlay.insert(key.clone(), None);
    }
    for key in after {
        if !before.contains(&key) || index.is_building() {
            let row = encode_row(Keyspace::Views, &key, &());
            overlay.insert(key, Some(row));
        }
    }
}

/// An overlay as it is written.
pub(super) fn batch_of(overlay: &Overlay) -> WriteBatch {
    let mut batch = WriteBatch::default();
    for (key, row) in overlay {
        match row {
            Some(row) => batch.put(Keyspace::Views, key.clone(), row.clone()),
            None => batch.remove(Keyspace::Views, key.clone()),
        }
    }
    batch
}

/// The names of the collections that have a view on the disk.
///
/// # Errors
/// [`Error::History`] when the store cannot be read.
pub(super) fn viewed(storage: &dyn Storage) -> Result<Vec<CollectionName>, Error> {
    let mut rows = Vec::new();
    storage.scan(Keyspace::State, b"v", b"w", false, &mut |key, bytes| {
        rows.push((key.to_vec(), bytes.to_vec()));
        ControlFlow::Continue(())
    })?;
    let mut names = Vec::new();
    for (key, bytes) in rows {
        // A row that cannot be read is of a view that is made again when somebody asks for it.
        if let Ok(row) = decode_row::<crate::log::rows::ViewRow>(Keyspace::State, &key, &bytes) {
            names.extend(CollectionName::new(&row.collection));
        }
    }
    Ok(names)
}
