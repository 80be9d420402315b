//! Consumers: those who follow a feed under a name, and whose place in it the database keeps.

use super::changes::{ChangeFeed, Changes};
use super::cursor::FeedCursor;
use super::event::{Event, FeedDigest};
use super::filter::Filter;
use super::rows::{Rows, clear_some};
use crate::engine::Database;
use crate::error::Error;
use crate::history::HistoryError;
use crate::id::{Lsn, encode_hex};
use crate::log::rows::{ConsumerRow, decode_row, encode_row};
use crate::log::{Keyspace, WriteBatch};

const PREFIX: u8 = b'c';

impl Database {
    /// The consumer called `name`. It exists once it has taken something in.
    ///
    /// # Errors
    /// [`Error::Application`] when that is no name: 1 to 128 of `A-Z a-z 0-9 _ - .`.
    pub fn consumer(&self, name: &str) -> Result<Consumer, Error> {
        let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        if name.is_empty() || name.len() > Consumer::NAME_BYTES_MAX || !name.bytes().all(is_fit) {
            let max = Consumer::NAME_BYTES_MAX;
            let why = format!("{name:?} is not a consumer's name: use 1 to {max} of A-Z a-z 0-9 _ - .");
            return Err(Error::Application(why));
        }
        Ok(Consumer {
            database: self.clone(),
            name: name.to_owned(),
            filter: Filter::Everything,
            version: 0,
            coalesced: false,
        })
    }

    /// Every consumer, by name, and how far it is.
    ///
    /// # Errors
    /// [`Error::History`] when the store cannot be read.
    pub fn consumers(&self) -> Result<Vec<(String, ConsumerState)>, Error> {
        let mut keys = Vec::new();
        let storage = self.reader().storage();
        storage.scan(Keyspace::State, &[PREFIX], &[PREFIX + 1], false, &mut |key, _| {
            keys.push(key.to_vec());
            std::ops::ControlFlow::Continue(())
        })?;
        let mut consumers = Vec::with_capacity(keys.len());
        for key in keys {
            let name = String::from_utf8_lossy(&key[1..]).into_owned();
            if let (_, Some(row)) = read(self, &key)? {
                consumers.push((name, ConsumerState::of(&row)?));
            }
        }
        Ok(consumers)
    }
}

/// Somebody who follows a feed under a name. Two with one name are one: whoever is second is told so.
#[derive(Clone)]
pub struct Consumer {
    pub(super) database: Database,
    name: String,
    filter: Filter,
    version: u32,
    coalesced: bool,
}

/// How far a consumer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerState {
    /// After the last event it took in; `None` when it is to begin anew.
    pub cursor: Option<FeedCursor>,
    /// How many events it took in since it began anew.
    pub events: u64,
    /// When, ms since 1970.
    pub updated_ms: u64,
}

impl ConsumerState {
    fn of(row: &ConsumerRow) -> Result<Self, Error> {
        let cursor = if row.clearing || row.cursor.is_empty() { None } else { Some(cursor_of(row)?) };
        Ok(Self { cursor, events: row.events, updated_ms: row.updated_ms })
    }

    /// How many records of the log it has not looked at.
    #[must_use]
    pub fn lag(&self, database: &Database) -> u64 {
        let reached = self.cursor.map_or(0, |cursor| cursor.position.0);
        database.reader().tail().lsn.0.saturating_sub(reached)
    }
}

/// Where a consumer's row and rows are, and what its row was when it was read last.
pub(super) struct Place {
    pub(super) key: Vec<u8>,
    pub(super) stored: Option<Vec<u8>>,
    pub(super) row: ConsumerRow,
}

impl Consumer {
    /// The longest name, in bytes.
    pub const NAME_BYTES_MAX: usize = 128;

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Of which documents it hears. Default: all. With another filter than before it begins anew.
    #[must_use]
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// The version of the code that makes its rows. With another one than before it begins anew. Default: 0.
    #[must_use]
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Whether it catches up by hearing where each document stands, in place of every event. Default: no.
    #[must_use]
    pub fn coalesced(mut self) -> Self {
        self.coalesced = true;
        self
    }

    /// How far it is; `None` when it never took anything in.
    ///
    /// # Errors
    /// [`Error::History`] when the store cannot be read.
    pub fn state(&self) -> Result<Option<ConsumerState>, Error> {
        let (_, row) = read(&self.database, &self.key())?;
        row.map(|row| ConsumerState::of(&row)).transpose()
    }

    /// Its rows, as far as they are written.
    #[must_use]
    pub fn rows(&self) -> Rows<'_> {
        Rows::new(&self.database, &self.name)
    }

    /// Its feed, from where it is. For effects outside of the database: do what an event asks for, under
    /// [`Self::idempotency_key`], and [acknowledge](Self::acknowledge) it. An event may come again after a crash; its key
    /// is then the same.
    ///
    /// # Errors
    /// [`Error::History`] when the store cannot be read.
    ///
    /// # Cancel safety
    /// A consumer that was to begin anew may have begun.
    pub async fn feed(&self) -> Result<ChangeFeed, Error> {
        let place = self.begin().await?;
        self.open(&place)
    }

    /// Everything up to `cursor` was taken in. Resolves when that is written.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::StorageFull`], [`Error::Closed`]; [`Error::ConsumerMoved`] when another moved it
    /// meanwhile.
    ///
    /// # Cancel safety
    /// Dropped, it may be written or not.
    pub async fn acknowledge(&self, cursor: FeedCursor) -> Result<(), Error> {
        let mut place = self.find()?;
        let events = place.row.events + 1;
        self.store(&mut place, cursor, events, WriteBatch::default()).await
    }

    /// A name for the effect of one event, the same whenever this consumer hears of that event: 32 hexadecimal digits.
    #[must_use]
    pub fn idempotency_key(&self, event: &Event) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("tidelog 2026-11 idempotency key");
        hasher.update(&event.cursor.log_id.0);
        hasher.update(&event.position.0.to_be_bytes());
        hasher.update(&event.document.0);
        hasher.update(self.name.as_bytes());
        encode_hex(&hasher.finalize().as_bytes()[..16])
    }

    /// Forgets how far it is, and its rows: it begins anew.
    ///
    /// # Errors
    /// As [`Self::acknowledge`].
    ///
    /// # Cancel safety
    /// Dropped, it goes on with that when it is used the next time.
    pub async fn reset(&self) -> Result<(), Error> {
        let mut place = self.find()?;
        self.clear(&mut place).await
    }

    pub(super) fn open(&self, place: &Place) -> Result<ChangeFeed, Error> {
        let changes: Changes = self.database.changes().filter(self.filter.clone());
        let changes = if self.coalesced { changes.coalesced() } else { changes };
        if place.row.cursor.is_empty() {
            return changes.open();
        }
        changes.since(cursor_of(&place.row)?).open()
    }

    /// Where it is, after it was made to begin anew if it has to.
    pub(super) async fn begin(&self) -> Result<Place, Error> {
        let mut place = self.find()?;
        let is_void = match ConsumerState::of(&place.row)?.cursor {
            // It stopped while it was told where documents stand, with nothing before that it could go on from.
            Some(cursor) if cursor.position == Lsn::ZERO => cursor.digest != FeedDigest::default(),
            Some(cursor) => cursor.filter != self.filter.key() || place.row.version != self.version,
            None => false,
        };
        if place.row.clearing || is_void {
            self.clear(&mut place).await?;
        }
        Ok(place)
    }

    fn find(&self) -> Result<Place, Error> {
        let key = self.key();
        let (stored, row) = read(&self.database, &key)?;
        let new = ConsumerRow { cursor: Vec::new(), version: self.version, events: 0, updated_ms: 0, clearing: false };
        Ok(Place { key, stored, row: row.unwrap_or(new) })
    }

    /// Removes its rows, however many, and then its place. Stopped in between, it goes on with it.
    pub(super) async fn clear(&self, place: &mut Place) -> Result<(), Error> {
        place.row =
            ConsumerRow { cursor: Vec::new(), version: self.version, events: 0, clearing: true, ..place.row.clone() };
        loop {
            let batch = clear_some(&self.database, &self.name)?;
            place.row.clearing = !batch.rows.is_empty();
            let is_done = !place.row.clearing;
            self.write(place, batch).await?;
            if is_done {
                return Ok(());
            }
        }
    }

    /// Writes what was made of the events up to `cursor`.
    pub(super) async fn store(
        &self,
        place: &mut Place,
        cursor: FeedCursor,
        events: u64,
        batch: WriteBatch,
    ) -> Result<(), Error> {
        place.row.cursor = cursor.encode().to_vec();
        place.row.events = events;
        place.row.version = self.version;
        self.write(place, batch).await
    }

    async fn write(&self, place: &mut Place, mut batch: WriteBatch) -> Result<(), Error> {
        place.row.updated_ms = crate::engine::now_ms();
        let bytes = encode_row(Keyspace::State, &place.key, &place.row);
        batch.put(Keyspace::State, place.key.clone(), bytes.clone());
        if !self.database.consume(place.key.clone(), place.stored.take(), batch).await? {
            return Err(Error::ConsumerMoved(self.name.clone()));
        }
        place.stored = Some(bytes);
        Ok(())
    }

    fn key(&self) -> Vec<u8> {
        [&[PREFIX], self.name.as_bytes()].concat()
    }
}

fn read(database: &Database, key: &[u8]) -> Result<(Option<Vec<u8>>, Option<ConsumerRow>), Error> {
    let Some(bytes) = database.reader().storage().get(Keyspace::State, key)? else { return Ok((None, None)) };
    let row = decode_row(Keyspace::State, key, &bytes).map_err(|error| {
        let place = format!("consumer {:?}", String::from_utf8_lossy(&key[1..]));
        HistoryError::Row { place, error }
    })?;
    Ok((Some(bytes), Some(row)))
}

fn cursor_of(row: &ConsumerRow) -> Result<FeedCursor, Error> {
    Ok(FeedCursor::decode(&row.cursor)
        .map_err(|error| HistoryError::Missing(format!("a consumer's cursor ({error})")))?)
}
