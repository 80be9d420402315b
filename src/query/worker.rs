//! Making a view: reading a collection for the first time, following its feed, making and removing indexes. All of it in
//! steps, on one thread.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

use super::document::Document;
use super::index::Index;
use super::listener::Listening;
use super::predicates::{ListenerId, Predicates};
use super::rows::{
    LAYOUT, Overlay, Rows, batch_of, end_of, entries_of, index_key, put_entries, value_key, value_row, values_of,
    view_key,
};
use super::run::documents_after;
use super::view::{Failure, View, Wish, document_at};
use super::window::Turn;
use crate::engine::{Database, block_on, now_ms};
use crate::error::Error;
use crate::feed::{ChangeFeed, FeedCursor, Filter, Item, Opening};
use crate::id::{DocumentId, Lsn};
use crate::limits::queries;
use crate::log::rows::{IndexDefinitionRow, IndexPhase, ViewPhase, ViewRow, decode_row, encode_row};
use crate::log::{Keyspace, WriteBatch};

/// Makes one view.
pub(super) struct Worker {
    pub(super) view: Arc<View>,
    feed: Option<ChangeFeed>,
    row: ViewRow,
    /// The row as it is on the disk.
    stored: Option<Vec<u8>>,
    indexes: Vec<Index>,
    /// Indexes to make once others of the same id are gone.
    later: Vec<Index>,
    /// Up to where the rows of one that goes are removed.
    removed: Vec<u8>,
    predicates: Predicates,
    listeners: HashMap<ListenerId, Arc<Listening>>,
    /// It has reached the log's end since it was opened: positions are exact from then on.
    is_ready: bool,
    /// Up to where documents were read before that, some of them ahead of the feed.
    ahead: Lsn,
    /// What could not be written yet.
    unwritten: Option<WriteBatch>,
}

/// One step's work.
#[derive(Default)]
struct Batch {
    overlay: Overlay,
    /// Rows of `state`, beside the view's own.
    state: WriteBatch,
    /// What became of documents.
    turns: Vec<(Option<Document>, Option<Arc<Document>>)>,
    /// The view's row has changed.
    is_new: bool,
}

impl Worker {
    /// Goes on where the disk says that the view was left.
    ///
    /// # Errors
    /// [`Error::History`] when the store cannot be read.
    pub(super) fn open(database: &Database, view: Arc<View>) -> Result<Self, Error> {
        let collection = view.collection.key();
        let storage = database.reader().storage();
        let key = view_key(collection);
        let stored = storage.get(Keyspace::State, &key)?;
        let found = stored.as_ref().map(|bytes| decode_row::<ViewRow>(Keyspace::State, &key, bytes));
        let row = match found {
            Some(Ok(row)) if row.layout == LAYOUT => row,
            // Nothing is there, or nothing that can be gone on with.
            _ => ViewRow {
                layout: LAYOUT,
                collection: view.collection.to_string(),
                phase: ViewPhase::Clearing,
                cursor: Vec::new(),
            },
        };
        let prefix = index_key(collection, [0; 8])[..9].to_vec();
        let mut found = Vec::new();
        storage.scan(Keyspace::State, &prefix, &end_of(&prefix), false, &mut |key, bytes| {
            found.push((key.to_vec(), bytes.to_vec()));
            ControlFlow::Continue(())
        })?;
        let mut indexes = Vec::new();
        for (key, bytes) in found {
            // A definition that cannot be read is forgotten; whoever needs the index declares it again.
            if let (Ok(row), Some(id)) =
                (decode_row::<IndexDefinitionRow>(Keyspace::State, &key, &bytes), key.last_chunk::<8>())
            {
                indexes.push(Index::from_row(*id, row));
            }
        }
        view.move_on(|gate| gate.indexes = Arc::new(indexes.clone()));
        Ok(Self {
            view,
            feed: None,
            row,
            stored,
            indexes,
            later: Vec::new(),
            removed: Vec::new(),
            predicates: Predicates::default(),
            listeners: HashMap::new(),
            is_ready: false,
            ahead: Lsn::ZERO,
            unwritten: None,
        })
    }

    /// Does a bounded part of what is to be done; whether there is more.
    ///
    /// # Errors
    /// [`Error::StorageFull`]: the same step is to be tried again. [`Error::ReadOnly`], [`Error::Closed`],
    /// [`Error::History`]: the view stays where it is.
    pub(super) fn step(&mut self, database: &Database) -> Result<bool, Error> {
        if let Some(batch) = self.unwritten.take() {
            self.write(database, batch)?;
        }
        let mut batch = Batch::default();
        let has_news = self.take_wanted(&mut batch);
        let is_busy = match self.row.phase {
            ViewPhase::Clearing => self.clear(database, &mut batch)?,
            ViewPhase::Filling { after } => self.fill(database, Lsn(after), &mut batch)?,
            // After an error the same events are read again.
            ViewPhase::Following => self.follow(database, &mut batch).inspect_err(|_| self.feed = None)?,
        };
        self.publish(database, batch)?;
        let is_building = self.row.phase == ViewPhase::Following && self.work_on_index(database)?;
        Ok(is_busy || is_building || has_news)
    }

    /// Tells listeners that nothing more comes.
    pub(super) fn end(&mut self, failure: &Failure) {
        let arriving = self.view.want(|wanted| std::mem::take(&mut wanted.arriving));
        for listening in self.listeners.drain().map(|(_, listening)| listening).chain(arriving) {
            listening.end(failure.error());
        }
    }

    fn cursor(&self) -> Option<FeedCursor> {
        FeedCursor::decode(&self.row.cursor).ok()
    }

    fn rows(&self) -> Rows {
        self.view.standing().rows.clone()
    }

    /// Takes the wishes of those who ask.
    fn take_wanted(&mut self, batch: &mut Batch) -> bool {
        let (leaving, wishes, used) = self.view.want(|wanted| {
            (wanted.take_leaving(), std::mem::take(&mut wanted.wishes), std::mem::take(&mut wanted.used))
        });
        for id in leaving {
            self.predicates.remove(id);
            self.listeners.remove(&id);
        }
        for id in used {
            if let Some(index) = self.indexes.iter_mut().find(|index| index.id == id) {
                index.used_ms = now_ms();
            }
        }
        let has_news = !wishes.is_empty();
        for index in std::mem::take(&mut self.later) {
            self.add_index(index, batch);
        }
        for wish in wishes {
            match wish {
                Wish::Make(index) => self.add_index(index, batch),
                Wish::Drop(id) => {
                    self.later.retain(|index| index.id != id);
                    self.set_phase(id, IndexPhase::Dropping, batch);
                }
            }
        }
        has_news
    }

    fn add_index(&mut self, mut index: Index, batch: &mut Batch) {
        if let Some(known) = self.indexes.iter_mut().find(|known| known.id == index.id) {
            if known.is_dropping() {
                return self.later.push(index);
            }
            let is_declared = known.declared || index.declared;
            if known.declared == is_declared {
                return;
            }
            known.declared = is_declared;
            let known = known.clone();
            return self.store_index(&known, batch);
        }
        let alike = |other: &&Index| other.declared == index.declared && !other.is_dropping();
        let max = if index.declared { queries::DECLARED_MAX } else { queries::LEARNED_MAX };
        if self.indexes.iter().filter(alike).count() >= max {
            // Whoever declares is told before; of those that were learned, the one that was idle longest gives way.
            let idle = self.indexes.iter().filter(alike).min_by_key(|other| other.used_ms).map(|other| other.id);
            match idle.filter(|_| !index.declared) {
                Some(idle) => self.set_phase(idle, IndexPhase::Dropping, batch),
                None => return,
            }
        }
        index.used_ms = now_ms();
        self.store_index(&index, batch);
        self.indexes.push(index);
    }

    fn set_phase(&mut self, id: [u8; 8], phase: IndexPhase, batch: &mut Batch) {
        let Some(index) = self.indexes.iter_mut().find(|index| index.id == id) else { return };
        index.phase = phase;
        let index = index.clone();
        self.store_index(&index, batch);
    }

    fn store_index(&self, index: &Index, batch: &mut Batch) {
        let key = index_key(self.view.collection.key(), index.id);
        let row = encode_row(Keyspace::State, &key, &index.row(&self.view.collection));
        batch.state.put(Keyspace::State, key, row);
    }

    /// Removes what an older layout, or a log that is lost, has left behind.
    fn clear(&mut self, database: &Database, batch: &mut Batch) -> Result<bool, Error> {
        let rows = self.rows();
        let mut prefixes = vec![values_of(self.view.collection.key())];
        prefixes.extend(self.indexes.iter().map(|index| entries_of(index.id)));
        for prefix in prefixes {
            remove_some(&rows, &prefix, &mut Vec::new(), &mut batch.overlay)?;
        }
        batch.is_new = true;
        if batch.overlay.is_empty() {
            let now = database.changes().filter(self.filter()).since_now().open()?.cursor();
            self.row.cursor = now.encode().to_vec();
            self.row.phase = ViewPhase::Filling { after: 0 };
            for at in 0..self.indexes.len() {
                if !self.indexes[at].is_dropping() {
                    // What will be filled is in every index from the first document on.
                    self.set_phase(self.indexes[at].id, IndexPhase::Ready, batch);
                }
            }
        }
        Ok(true)
    }

    fn filter(&self) -> Filter {
        Filter::Collection(self.view.collection.clone())
    }

    /// Reads documents for the first time, in the order in which they changed last. Those that change meanwhile are told
    /// by the feed, which goes on from where the log ended when this began.
    fn fill(&mut self, database: &Database, after: Lsn, batch: &mut Batch) -> Result<bool, Error> {
        let Some(upto) = self.cursor().map(|cursor| cursor.position) else {
            self.row.phase = ViewPhase::Clearing;
            return Ok(true);
        };
        let reader = database.reader();
        let page = reader.collection(self.view.collection.key(), after, queries::DOCUMENTS_PER_STEP)?;
        let rows = self.rows();
        let (mut last, mut filled) = (None, 0);
        for (lsn, id) in page.into_iter().take_while(|(lsn, _)| *lsn <= upto) {
            self.take(database, &rows, id, None, batch)?;
            last = Some(lsn);
            filled += batch.turns.last().and_then(|(_, after)| after.as_ref()).map_or(0, |after| after.bytes);
            if filled > queries::BYTES_PER_STEP {
                break;
            }
        }
        self.row.phase = match last {
            Some(last) => ViewPhase::Filling { after: last.0 },
            None => ViewPhase::Following,
        };
        batch.is_new = true;
        let read = last.unwrap_or(upto);
        self.view.progress.send_modify(|progress| progress.read = read);
        Ok(true)
    }

    /// Takes in what the feed tells.
    fn follow(&mut self, database: &Database, batch: &mut Batch) -> Result<bool, Error> {
        if self.feed.is_none() {
            let Some(cursor) = self.cursor() else {
                self.row.phase = ViewPhase::Clearing;
                return Ok(true);
            };
            let changes = database.changes().filter(self.filter()).since(cursor);
            let behind = database.reader().tail().lsn.0.saturating_sub(cursor.position.0);
            let is_far = behind > queries::RESUME_MAX as u64;
            self.feed = Some(if is_far { changes.coalesced() } else { changes }.open()?);
        }
        let Some(feed) = &mut self.feed else { return Ok(false) };
        // In the order of their ids, and each document once however often it changed.
        let mut touched: BTreeMap<DocumentId, Lsn> = BTreeMap::new();
        let mut is_at_end = false;
        for _ in 0..queries::EVENTS_PER_STEP {
            match feed.next_now()? {
                Some(Item::Event(event)) => drop(touched.insert(event.document, event.position)),
                Some(Item::Opened(Opening::Reset { reason, .. })) => {
                    let collection = &self.view.collection;
                    tracing::info!(%collection, reason = reason.as_str(), "a view is made again");
                    (self.feed, self.row.phase, self.is_ready) = (None, ViewPhase::Clearing, false);
                    return Ok(true);
                }
                Some(_) => {}
                None => {
                    is_at_end = true;
                    break;
                }
            }
        }
        let cursor = feed.cursor();
        let at = self.is_ready.then_some(cursor.position);
        let rows = self.rows();
        for id in touched.into_keys() {
            self.take(database, &rows, id, at, batch)?;
        }
        self.is_ready |= is_at_end && cursor.position >= self.ahead;
        let stored = self.cursor().map_or(0, |cursor| cursor.position.0);
        // A place alone is worth a row now and then.
        batch.is_new |= !batch.overlay.is_empty() || cursor.position.0.saturating_sub(stored) > RECORDS_PER_ROW;
        self.row.cursor = cursor.encode().to_vec();
        Ok(!is_at_end || !self.is_ready)
    }

    /// Brings the rows of one document to where the log was at `at`, or is.
    fn take(
        &mut self,
        database: &Database,
        rows: &Rows,
        id: DocumentId,
        at: Option<Lsn>,
        batch: &mut Batch,
    ) -> Result<(), Error> {
        let collection = self.view.collection.key();
        let before = rows.document(collection, id)?;
        let mut after = match when_settled(|| document_at(database, &self.view.collection, id, at)) {
            Ok((after, _)) => after,
            Err(error @ (Error::View(_) | Error::Refused { .. })) => {
                tracing::warn!(document = %id, %error, "a document that cannot be built is left out of queries");
                None
            }
            Err(error) => return Err(error),
        };
        let key = value_key(collection, id);
        match &mut after {
            Some(document) => {
                self.ahead = self.ahead.max(document.position);
                let row = value_row(&key, document);
                batch.overlay.insert(key, Some(row));
            }
            None if before.is_none() => return Ok(()),
            None => drop(batch.overlay.insert(key, None)),
        }
        for index in self.indexes.iter().filter(|index| !index.is_dropping()) {
            let [old, new] = [&before, &after].map(|document| document.as_ref().map(Document::compared));
            put_entries(&mut batch.overlay, index, id, old, new);
        }
        batch.turns.push((before, after.map(Arc::new)));
        Ok(())
    }

    /// Moves the view on, tells listeners, and has it written.
    fn publish(&mut self, database: &Database, batch: Batch) -> Result<(), Error> {
        let Batch { overlay, state, turns, is_new } = batch;
        let mut write = batch_of(&overlay);
        write.rows.extend(state.rows);
        let cursor = self.cursor();
        let arrived = self.view.move_on(|gate| {
            gate.overlay = Arc::new(overlay);
            gate.indexes = Arc::new(self.indexes.clone());
            if let Some(cursor) = cursor {
                gate.at = cursor;
            }
            self.view.want(|wanted| std::mem::take(&mut wanted.arriving))
        });
        for listening in arrived {
            self.predicates.insert(listening.id, &listening.shape.alternatives);
            self.listeners.insert(listening.id, listening);
        }
        if let Some(cursor) = cursor {
            self.tell(&turns, cursor);
            let is_ready = self.is_ready;
            self.view.progress.send_modify(|progress| {
                (progress.is_ready, progress.cursor) = (is_ready, Some(cursor));
            });
        }
        if !is_new && write.rows.is_empty() {
            return Ok(());
        }
        self.write(database, write)
    }

    /// Tells listeners what became of documents.
    fn tell(&mut self, turns: &[(Option<Document>, Option<Arc<Document>>)], cursor: FeedCursor) {
        if self.listeners.is_empty() {
            return;
        }
        let mut low: Vec<ListenerId> = Vec::new();
        let mut changed: Vec<ListenerId> = Vec::new();
        let mut concerned = Vec::new();
        for (before, after) in turns {
            concerned.clear();
            for document in before.iter().chain(after.as_deref()) {
                self.predicates.concerned(document.compared(), &mut concerned);
            }
            concerned.sort_unstable();
            concerned.dedup();
            for id in &concerned {
                let Some(listening) = self.listeners.get(id) else { continue };
                match listening.change(before.as_ref(), after.as_ref()) {
                    Turn::Same => continue,
                    Turn::Changed => {}
                    Turn::RunsLow => low.push(*id),
                }
                changed.push(*id);
            }
        }
        changed.sort_unstable();
        changed.dedup();
        low.sort_unstable();
        low.dedup();
        if !low.is_empty() {
            let standing = self.view.standing();
            for id in low {
                if let Some(listening) = self.listeners.get(&id) {
                    listening.look_further(&standing);
                }
            }
        }
        for id in changed {
            if let Some(listening) = self.listeners.get(&id) {
                listening.told(cursor);
            }
        }
    }

    fn write(&mut self, database: &Database, rows: WriteBatch) -> Result<(), Error> {
        // Of a collection that is only asked for, nothing is kept.
        let is_empty = || database.reader().collection(self.view.collection.key(), Lsn::ZERO, 1);
        if self.stored.is_none() && rows.rows.is_empty() && is_empty()?.is_empty() {
            return Ok(());
        }
        let key = view_key(self.view.collection.key());
        let bytes = encode_row(Keyspace::State, &key, &self.row);
        let mut batch = rows.clone();
        batch.put(Keyspace::State, key.clone(), bytes.clone());
        match block_on(database.consume(key, self.stored.clone(), batch)) {
            Ok(true) => {
                self.stored = Some(bytes);
                Ok(())
            }
            Ok(false) => Err(Error::ConsumerMoved(format!("view of {}", self.view.collection))),
            Err(error) => {
                self.unwritten = Some(rows);
                Err(error)
            }
        }
    }

    /// Takes some documents more into an index that is being made, or removes some rows of one that is not wanted.
    fn work_on_index(&mut self, database: &Database) -> Result<bool, Error> {
        let Some(at) = self.indexes.iter().position(|index| !index.is_ready()) else { return Ok(false) };
        let mut batch = Batch::default();
        let rows = self.rows();
        match self.indexes[at].phase {
            IndexPhase::Building { after } => {
                let count = queries::DOCUMENTS_PER_STEP;
                let documents = documents_after(&rows, &self.view.collection, after, count)?;
                for document in &documents {
                    put_entries(&mut batch.overlay, &self.indexes[at], document.id, None, Some(document.compared()));
                }
                self.indexes[at].phase = match documents.last() {
                    Some(last) if documents.len() == count => IndexPhase::Building { after: Some(last.id.0) },
                    _ => IndexPhase::Ready,
                };
                self.store_index(&self.indexes[at].clone(), &mut batch);
            }
            IndexPhase::Dropping => {
                remove_some(&rows, &entries_of(self.indexes[at].id), &mut self.removed, &mut batch.overlay)?;
                if batch.overlay.is_empty() {
                    let index = self.indexes.remove(at);
                    self.removed.clear();
                    batch.state.remove(Keyspace::State, index_key(self.view.collection.key(), index.id));
                }
            }
            IndexPhase::Ready => {}
        }
        self.publish(database, batch)?;
        Ok(true)
    }
}

/// Removes some of the rows whose keys begin with `prefix`, if there is room for more. Those up to `removed` are gone, and
/// are not walked over again: a store remembers for a while what was removed.
fn remove_some(rows: &Rows, prefix: &[u8], removed: &mut Vec<u8>, overlay: &mut Overlay) -> Result<(), Error> {
    let from = if removed.starts_with(prefix) { removed.clone() } else { prefix.to_vec() };
    rows.scan(&from, &end_of(prefix), false, &mut |key, _| {
        if overlay.len() >= queries::ROWS_PER_CLEARING {
            return ControlFlow::Break(());
        }
        overlay.insert(key.to_vec(), None);
        *removed = key.to_vec();
        ControlFlow::Continue(())
    })
}

/// Records after which a place in the feed is written although nothing else is.
const RECORDS_PER_ROW: u64 = 1 << 16;

/// Tries again while an edit is on its way to the log that the document cannot be built without.
fn when_settled<T>(mut read: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    const TRIES: usize = 1000;
    for _ in 0..TRIES {
        match read() {
            Err(Error::Busy) => std::thread::sleep(std::time::Duration::from_millis(1)),
            other => return other,
        }
    }
    read()
}
