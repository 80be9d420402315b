//! What a consumer keeps in the database: rows of its own, in the order of their keys.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::engine::Database;
use crate::error::Error;
use crate::history::HistoryError;
use crate::limits::feeds;
use crate::log::rows::{decode_row, encode_row};
use crate::log::{Keyspace, WriteBatch};

/// A consumer's rows as they are written. What is written comes with the place in the feed that it was made from.
pub struct Rows<'a> {
    database: &'a Database,
    prefix: Vec<u8>,
}

impl<'a> Rows<'a> {
    pub(super) fn new(database: &'a Database, consumer: &str) -> Self {
        Self { database, prefix: prefix_of(consumer) }
    }

    /// The row under `key`.
    ///
    /// # Errors
    /// [`Error::History`] when the store cannot be read.
    pub fn row(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let key = [&self.prefix, key].concat();
        let bytes = self.database.reader().storage().get(Keyspace::Views, &key)?;
        bytes.map(|bytes| value_of(&key, &bytes)).transpose()
    }

    /// Up to `count` rows with keys above `after`, in the order of keys.
    ///
    /// # Errors
    /// [`Error::History`] when the store cannot be read.
    pub fn after(&self, after: Option<&[u8]>, count: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>, Error> {
        let from = after.map_or_else(|| self.prefix.clone(), |after| [&self.prefix, after, &[0]].concat());
        let mut rows = Vec::new();
        let storage = self.database.reader().storage();
        storage.scan(Keyspace::Views, &from, &end_of(&self.prefix), false, &mut |key, bytes| {
            if rows.len() >= count {
                return ControlFlow::Break(());
            }
            rows.push((key.to_vec(), bytes.to_vec()));
            ControlFlow::Continue(())
        })?;
        let bare = |key: &[u8]| key[self.prefix.len()..].to_vec();
        rows.into_iter().map(|(key, bytes)| Ok((bare(&key), value_of(&key, &bytes)?))).collect()
    }
}

/// A consumer's rows while it takes in events: what it wrote a moment ago is there for it to read, and for nobody else.
pub struct RowsMut<'a> {
    written: Rows<'a>,
    changed: &'a mut Changed,
}

/// Rows that are to be written, by key; `None` is to be removed.
#[derive(Default)]
pub(super) struct Changed {
    rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    pub(super) bytes: usize,
}

impl<'a> RowsMut<'a> {
    pub(super) fn new(database: &'a Database, consumer: &str, changed: &'a mut Changed) -> Self {
        Self { written: Rows::new(database, consumer), changed }
    }

    /// The row under `key`, as this consumer left it.
    ///
    /// # Errors
    /// [`Error::History`] when the store cannot be read.
    pub fn row(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        match self.changed.rows.get(key) {
            Some(changed) => Ok(changed.clone()),
            None => self.written.row(key),
        }
    }

    /// Puts a row under `key`.
    ///
    /// # Errors
    /// [`Error::Application`] when the key is longer than 1 KiB or the row longer than 1 MiB.
    pub fn put(&mut self, key: &[u8], value: Vec<u8>) -> Result<(), Error> {
        if key.len() > feeds::KEY_BYTES_MAX || value.len() > feeds::ROW_BYTES_MAX {
            return Err(Error::Application(format!(
                "a consumer's row has a key of at most {} bytes and {} bytes besides; this one has {} and {}",
                feeds::KEY_BYTES_MAX,
                feeds::ROW_BYTES_MAX,
                key.len(),
                value.len()
            )));
        }
        self.change(key, Some(value));
        Ok(())
    }

    /// Removes what is under `key`.
    pub fn remove(&mut self, key: &[u8]) {
        self.change(key, None);
    }

    fn change(&mut self, key: &[u8], value: Option<Vec<u8>>) {
        self.changed.bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        self.changed.rows.insert(key.to_vec(), value);
    }
}

impl Changed {
    /// The rows as they are to be written.
    pub(super) fn into_batch(self, consumer: &str) -> WriteBatch {
        let prefix = prefix_of(consumer);
        let mut batch = WriteBatch::default();
        for (key, value) in self.rows {
            let key = [&prefix[..], &key].concat();
            match value {
                Some(value) => {
                    let bytes = encode_row(Keyspace::Views, &key, &value);
                    batch.put(Keyspace::Views, key, bytes);
                }
                None => batch.remove(Keyspace::Views, key),
            }
        }
        batch
    }
}

/// Removes some of a consumer's rows; an empty batch when there are none.
pub(super) fn clear_some(database: &Database, consumer: &str) -> Result<WriteBatch, Error> {
    let prefix = prefix_of(consumer);
    let mut batch = WriteBatch::default();
    database.reader().storage().scan(Keyspace::Views, &prefix, &end_of(&prefix), false, &mut |key, _| {
        batch.remove(Keyspace::Views, key);
        if batch.rows.len() < feeds::ROWS_PER_CLEARING { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(batch)
}

/// `c`, the length of the name in one byte, the name. The length keeps one consumer's rows apart from those of another
/// whose name begins with its own.
fn prefix_of(consumer: &str) -> Vec<u8> {
    let length = u8::try_from(consumer.len()).unwrap_or(u8::MAX);
    [&[b'c', length], consumer.as_bytes()].concat()
}

/// The first key behind all that begin with `prefix`, whose last byte is ASCII.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

fn value_of(key: &[u8], bytes: &[u8]) -> Result<Vec<u8>, Error> {
    Ok(decode_row(Keyspace::Views, key, bytes).map_err(|error| {
        let place = format!("a consumer's row ({} bytes of key)", key.len());
        HistoryError::Row { place, error }
    })?)
}
