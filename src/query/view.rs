//! One collection's view, as those who ask see it: its rows, its indexes and the position where they stand.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::watch;

use super::document::Document;
use super::index::Index;
use super::listener::Listening;
use super::predicates::ListenerId;
use super::rows::{Overlay, Rows};
use super::run::Search;
use super::shared::Shared;
use super::spec::Shape;
use crate::engine::Database;
use crate::error::{Error, QueryError};
use crate::feed::{FeedCursor, Filter};
use crate::history::Reader;
use crate::history::fold::is_visible;
use crate::id::{CollectionName, DocumentId, Lsn};
use crate::log::Storage;

/// A collection's view.
pub(super) struct View {
    pub(super) collection: CollectionName,
    storage: Arc<dyn Storage>,
    // Held shared while somebody reads, so that all of what they read is of one position. The thread that makes the view
    // holds it alone for the moment in which the position moves.
    gate: RwLock<Gate>,
    pub(super) progress: watch::Sender<Progress>,
    /// Results that listeners share.
    shared: Arc<Shared>,
    /// When it was asked for last, in the order of askings.
    pub(super) used: AtomicU64,
    // Protects what is asked of that thread. Locked under `gate`, never the other way round.
    wanted: Mutex<Wanted>,
}

/// Where a view stands.
pub(super) struct Gate {
    /// Rows that may not be on the disk yet.
    pub(super) overlay: Arc<Overlay>,
    pub(super) indexes: Arc<Vec<Index>>,
    pub(super) at: FeedCursor,
}

/// How far a view is.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    /// It answers.
    pub(super) is_ready: bool,
    /// Up to where listeners have heard of everything.
    pub(super) cursor: Option<FeedCursor>,
    /// While it is made: up to where it has read.
    pub(super) read: Lsn,
    /// It was idle, and goes on under another.
    pub(super) is_down: bool,
    /// Why it goes no further.
    pub(super) failure: Option<Failure>,
}

/// What is asked of the thread that makes the view.
#[derive(Default)]
pub(super) struct Wanted {
    /// Listeners that begin where the view stands.
    pub(super) arriving: Vec<Arc<Listening>>,
    leaving: Vec<ListenerId>,
    /// How many listeners there are, arriving or not.
    listeners: usize,
    /// The view is given up, and takes nobody any more.
    is_down: bool,
    /// Indexes to make and to remove, in the order of asking.
    pub(super) wishes: Vec<Wish>,
    /// Indexes that a query used.
    pub(super) used: Vec<[u8; 8]>,
}

impl Wanted {
    /// Those who went since this was asked last.
    pub(super) fn take_leaving(&mut self) -> Vec<ListenerId> {
        std::mem::take(&mut self.leaving)
    }
}

/// What somebody wants of an index.
pub(super) enum Wish {
    Make(Index),
    Drop([u8; 8]),
}

/// A view at one position, for as long as this is held.
pub(super) struct Standing<'a> {
    gate: RwLockReadGuard<'a, Gate>,
    view: &'a View,
    pub(super) rows: Rows,
}

impl Standing<'_> {
    pub(super) fn indexes(&self) -> &[Index] {
        &self.gate.indexes
    }

    /// A search here, for as many documents as `want`.
    pub(super) fn search<'a>(&'a self, shape: &'a Shape, want: usize) -> Search<'a> {
        Search {
            rows: &self.rows,
            collection: &self.view.collection,
            indexes: self.indexes(),
            shape,
            after: None,
            want,
            without: None,
            keeps_hidden: false,
            missed: &|_| {},
        }
    }

    /// Results that others found here.
    pub(super) fn shared(&self) -> &Shared {
        &self.view.shared
    }

    /// Where it stands.
    pub(super) fn at(&self) -> FeedCursor {
        self.gate.at
    }

    /// Has a listener begin here: it is told of everything that comes after. `false` when the view was put down.
    pub(super) fn admit(&self, listening: Arc<Listening>) -> bool {
        self.view.want(|wanted| {
            if !wanted.is_down {
                wanted.listeners += 1;
                wanted.arriving.push(listening);
            }
            !wanted.is_down
        })
    }
}

/// Why a view goes no further.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// The database is closed.
    Closed,
    /// It cannot be read or written.
    Stuck(String),
}

impl Failure {
    /// What whoever waits for it is told.
    pub(super) fn error(&self) -> Error {
        match self {
            Self::Closed => Error::Closed,
            Self::Stuck(why) => Error::ReadOnly(why.clone()),
        }
    }
}

impl Progress {
    fn has_reached(&self, position: Lsn) -> bool {
        self.is_ready && self.cursor.is_some_and(|cursor| cursor.position >= position)
    }
}

impl View {
    pub(super) fn new(collection: CollectionName, reader: &Reader, shared: Arc<Shared>) -> Self {
        let key = Filter::Collection(collection.clone()).key();
        let at = FeedCursor::beginning(reader.log_id(), key);
        Self {
            collection,
            storage: reader.storage().clone(),
            gate: RwLock::new(Gate { overlay: Arc::default(), indexes: Arc::default(), at }),
            progress: watch::channel(Progress::default()).0,
            shared,
            used: AtomicU64::new(0),
            wanted: Mutex::default(),
        }
    }

    /// The view as it stands, for an answer.
    ///
    /// # Errors
    /// [`QueryError::NotReady`] when it has not been waited for.
    pub(super) fn answering(&self, tail: Lsn) -> Result<Standing<'_>, Error> {
        if self.progress.borrow().is_ready { Ok(self.standing()) } else { Err(self.not_ready(tail).into()) }
    }

    /// The view as it stands, made or not.
    pub(super) fn standing(&self) -> Standing<'_> {
        let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let rows = Rows { storage: self.storage.clone(), overlay: gate.overlay.clone() };
        Standing { gate, view: self, rows }
    }

    /// Moves the view to another position; nobody reads meanwhile.
    pub(super) fn move_on<T>(&self, change: impl FnOnce(&mut Gate) -> T) -> T {
        change(&mut self.gate.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes something that the thread is to do, or takes it.
    pub(super) fn want<T>(&self, want: impl FnOnce(&mut Wanted) -> T) -> T {
        want(&mut self.wanted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes that a query used indexes.
    pub(super) fn note_use(&self, used: &[[u8; 8]]) {
        self.want(|wanted| {
            for id in used {
                if !wanted.used.contains(id) {
                    wanted.used.push(*id);
                }
            }
        });
    }

    /// Waits until it has taken in everything up to `position`; `false` when it was put down, and another is to be asked.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] when it goes no further; [`Error::Closed`] when the database was closed.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub(super) async fn reached(&self, position: Lsn) -> Result<bool, Error> {
        let mut progress = self.progress.subscribe();
        let is_over =
            |progress: &Progress| progress.failure.is_some() || progress.is_down || progress.has_reached(position);
        let found = progress.wait_for(is_over).await.map_err(|_| Error::Closed)?;
        match &found.failure {
            _ if found.has_reached(position) => Ok(true),
            Some(failure) => Err(failure.error()),
            None => Ok(false),
        }
    }

    /// Lets a listener go.
    pub(super) fn dismiss(&self, id: ListenerId) {
        self.want(|wanted| {
            wanted.listeners = wanted.listeners.saturating_sub(1);
            match wanted.arriving.iter().position(|listening| listening.id == id) {
                Some(at) => drop(wanted.arriving.swap_remove(at)),
                None => wanted.leaving.push(id),
            }
        });
    }

    /// Whether nobody listens to it or waits for it.
    pub(super) fn is_idle(&self) -> bool {
        self.want(|wanted| wanted.listeners == 0) && self.progress.receiver_count() == 0
    }

    /// Gives it up, if it is idle still: it takes no listeners any more, and who waits for it asks for another.
    pub(super) fn put_down(&self) -> bool {
        let is_down = self.want(|wanted| {
            wanted.is_down = wanted.listeners == 0;
            wanted.is_down
        });
        if is_down {
            self.progress.send_modify(|progress| progress.is_down = true);
        }
        is_down
    }

    /// Says how far it is, when it is still being made.
    pub(super) fn not_ready(&self, tail: Lsn) -> QueryError {
        let read = self.progress.borrow().read.0;
        QueryError::NotReady { collection: self.collection.to_string(), read, of: tail.0 }
    }
}

/// A document of a collection as it was when the log ended at `at`, or as it is; `None` when it was not there. And whether
/// that is known for certain: what was withdrawn or purged since cannot be read any more.
///
/// # Errors
/// [`Error::View`] when the document cannot be built; [`Error::History`] when the store cannot be read.
///
/// # Cost
/// Materialises the document.
pub(super) fn document_at(
    database: &Database,
    collection: &CollectionName,
    id: DocumentId,
    at: Option<Lsn>,
) -> Result<(Option<Document>, bool), Error> {
    let reader = database.reader();
    let Some(row) = reader.row(id)? else { return Ok((None, true)) };
    let at = at.filter(|at| row.last_lsn > at.0);
    let (life, heads) = match at {
        Some(at) => (reader.life_before(id, at.next())?, reader.heads_at(id, at)?),
        None => (row.clone(), crate::history::fold::heads_of(&row)),
    };
    let is_certain = at.is_none_or(|at| row.generation <= at.0);
    // One that is created and not written yet would be told twice: empty, and a moment later as it was meant.
    if !is_visible(&life) || life.collection_key != collection.key().0 || heads.as_slice().is_empty() {
        return Ok((None, is_certain));
    }
    let value = database.value_at(collection, id, &heads)?;
    let position = at.map_or(Lsn(row.last_lsn), |at| at);
    let document = Document { id, name: life.name, heads, position, value, bytes: 0, kept: None, is_partial: false };
    Ok((Some(document), is_certain))
}
