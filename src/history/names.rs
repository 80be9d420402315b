//! The log's dictionary: actors, nodes, principals and collections under small numbers.
//!
//! An entry is a `name` record of the log; the rows here are its projection, found both ways. Nothing of it needs to be
//! in memory: a bounded cache keeps what is used.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::id::{CollectionName, NodeId, first};
use crate::log::record::{NameHeader, NameKind, NameRef};
use crate::log::rows::{NameRow, decode_row, encode_row};
use crate::log::{Keyspace, Storage, WriteBatch};

use super::HistoryError;

/// Entries kept in memory; all are dropped when there are more, and read again.
const CACHED_MAX: usize = 1 << 16;

/// The dictionary of a store, for looking up. Clones share the cache.
#[derive(Clone)]
pub struct Names {
    storage: Arc<dyn Storage>,
    // Protects both directions, so that they never disagree.
    cache: Arc<Mutex<Cache>>,
}

#[derive(Default)]
struct Cache {
    by_reference: HashMap<NameRef, Arc<NameRow>>,
    by_name: HashMap<(NameKind, Vec<u8>), NameRef>,
}

impl Names {
    /// The dictionary in `storage`.
    #[must_use]
    pub fn new(storage: Arc<dyn Storage>) -> Self {
        Self { storage, cache: Arc::default() }
    }

    /// The name that has a number.
    ///
    /// # Errors
    /// [`HistoryError::Missing`] when none has.
    pub fn name(&self, reference: NameRef) -> Result<Arc<NameRow>, HistoryError> {
        if let Some(row) = self.lock().by_reference.get(&reference) {
            return Ok(row.clone());
        }
        let key = reference_key(reference);
        let bytes = self.storage.get(Keyspace::State, &key)?;
        let bytes = bytes.ok_or_else(|| HistoryError::Missing(format!("name {reference}")))?;
        let row: NameRow = decode_row(Keyspace::State, &key, &bytes)
            .map_err(|error| HistoryError::Row { place: format!("name {reference}"), error })?;
        let row = Arc::new(row);
        self.remember(reference, row.clone());
        Ok(row)
    }

    /// The number a name has, if it has one.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk or a row fails.
    pub fn find(&self, kind: NameKind, name: &[u8]) -> Result<Option<NameRef>, HistoryError> {
        if let Some(reference) = self.lock().by_name.get(&(kind, name.to_vec())) {
            return Ok(Some(*reference));
        }
        let key = name_key(kind, name);
        let Some(bytes) = self.storage.get(Keyspace::State, &key)? else {
            return Ok(None);
        };
        let reference: NameRef = decode_row(Keyspace::State, &key, &bytes)
            .map_err(|error| HistoryError::Row { place: format!("number of a {kind:?}"), error })?;
        self.remember(reference, Arc::new(NameRow { kind, bytes: name.to_vec() }));
        Ok(Some(reference))
    }

    /// The highest number given so far; 0 for none.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk fails.
    pub fn last(&self) -> Result<NameRef, HistoryError> {
        let mut last = 0;
        self.storage.scan(Keyspace::State, b"n", b"o", true, &mut |key, _| {
            last = key.get(1..5).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes);
            ControlFlow::Break(())
        })?;
        Ok(last)
    }

    /// The node that has a number; `None` for 0, this node itself or nobody.
    ///
    /// # Errors
    /// As [`Self::name`].
    pub fn node(&self, reference: NameRef) -> Result<Option<NodeId>, HistoryError> {
        if reference == 0 {
            return Ok(None);
        }
        let row = self.name(reference)?;
        let bytes = row.bytes.as_slice().try_into();
        bytes.map(|bytes| Some(NodeId(bytes))).map_err(|_| HistoryError::Missing(format!("node {reference}")))
    }

    /// The text that has a number, empty for 0.
    ///
    /// # Errors
    /// As [`Self::name`].
    pub fn text(&self, reference: NameRef) -> Result<String, HistoryError> {
        if reference == 0 {
            return Ok(String::new());
        }
        Ok(String::from_utf8_lossy(&self.name(reference)?.bytes).into_owned())
    }

    /// The collection that has a number.
    ///
    /// # Errors
    /// As [`Self::name`].
    pub fn collection(&self, reference: NameRef) -> Result<CollectionName, HistoryError> {
        CollectionName::new(self.text(reference)?)
            .map_err(|error| HistoryError::Missing(format!("collection {reference}: {error}")))
    }

    /// Every name of one kind, in the order they were given numbers. For small dictionaries: collections.
    ///
    /// # Errors
    /// [`HistoryError`] when the disk or a row fails.
    pub fn all(&self, kind: NameKind) -> Result<Vec<(NameRef, Vec<u8>)>, HistoryError> {
        let mut references = Vec::new();
        let prefix = [b'N', kind as u8];
        self.storage.scan(Keyspace::State, &prefix, &[b'N', kind as u8 + 1], false, &mut |key, bytes| {
            references.push(decode_row::<NameRef>(Keyspace::State, key, bytes));
            ControlFlow::Continue(())
        })?;
        let mut all = Vec::with_capacity(references.len());
        for reference in references {
            let reference =
                reference.map_err(|error| HistoryError::Row { place: format!("number of a {kind:?}"), error })?;
            all.push((reference, self.name(reference)?.bytes.clone()));
        }
        all.sort_unstable();
        Ok(all)
    }

    /// Puts the rows of a `name` record into `batch`.
    pub fn project(batch: &mut WriteBatch, header: &NameHeader) {
        let key = reference_key(header.reference);
        let row = NameRow { kind: header.kind, bytes: header.bytes.clone() };
        batch.put(Keyspace::State, key, encode_row(Keyspace::State, &key, &row));
        let key = name_key(header.kind, &header.bytes);
        batch.put(Keyspace::State, key.as_slice(), encode_row(Keyspace::State, &key, &header.reference));
    }

    fn remember(&self, reference: NameRef, row: Arc<NameRow>) {
        let mut cache = self.lock();
        if cache.by_reference.len() >= CACHED_MAX {
            *cache = Cache::default();
        }
        cache.by_name.insert((row.kind, row.bytes.clone()), reference);
        cache.by_reference.insert(reference, row);
    }

    fn lock(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn reference_key(reference: NameRef) -> [u8; 5] {
    let [a, b, c, d] = reference.to_be_bytes();
    [b'n', a, b, c, d]
}

fn name_key(kind: NameKind, name: &[u8]) -> Vec<u8> {
    let mut key = vec![b'N', kind as u8];
    key.extend(first::<16>(blake3::hash(name).as_bytes()));
    key
}
