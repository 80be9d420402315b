//! Listeners: queries whose result is told again whenever it changed.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::builder::Query;
use super::document::Document;
use super::predicates::ListenerId;
use super::run::Search;
use super::snapshot::{ChangeKind, DocChange, Metadata, Placed, QuerySnapshot, changes_between};
use super::spec::Shape;
#[cfg(feature = "web")]
use super::spec::Sieve;
use super::view::{Standing, View, document_at};
use super::views::{Seat, Views};
use super::window::{Turn, Window, in_order, wanted};
use crate::engine::{Database, block_on};
use crate::error::Error;
use crate::feed::{ChangeFeed, EventKind, FeedCursor, Filter, Item, Opening};
use crate::id::{CollectionName, DocumentId, Lsn};
use crate::limits::queries;

/// How a listener is to tell.
#[derive(Debug, Clone, Copy, Default)]
#[must_use]
pub struct ListenOptions {
    since: Option<FeedCursor>,
    patches: bool,
    conflicts: bool,
}

impl ListenOptions {
    /// Tells first what changed after `position`, a [`Metadata::position`] of an earlier snapshot of the same query.
    pub fn since(mut self, position: FeedCursor) -> Self {
        self.since = Some(position);
        self
    }

    /// Has each modified document come with the patches that lead to it.
    pub fn patches(mut self) -> Self {
        self.patches = true;
        self
    }

    /// Has each document come with its conflicts.
    pub fn conflicts(mut self) -> Self {
        self.conflicts = true;
        self
    }
}

/// A query whose result is told again whenever it changed. See [`Query::on_snapshot`].
pub struct Listener {
    query: Query,
    shape: Arc<Shape>,
    options: ListenOptions,
    stage: Stage,
    /// What was told last.
    shown: Placed,
    /// Where that was exact.
    shown_at: Option<FeedCursor>,
    /// It begins anew, and what it told counts.
    goes_on: bool,
}

enum Stage {
    New,
    Running(Running),
    Ended,
}

struct Running {
    view: Arc<View>,
    listening: Arc<Listening>,
    changed: watch::Receiver<u64>,
    views: Arc<Views>,
    _seat: Seat,
}

/// What the thread that follows the log keeps of a listener.
pub(super) struct Listening {
    pub(super) id: ListenerId,
    pub(super) shape: Arc<Shape>,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

struct State {
    window: Window,
    /// Up to where it took in whatever concerns it, in whole batches.
    at: FeedCursor,
    /// Some of a batch is in the window, and some is not.
    is_between: bool,
    failure: Option<Error>,
}

impl Listening {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what became of one document.
    pub(super) fn change(&self, before: Option<&Document>, after: Option<&Arc<Document>>) -> Turn {
        let mut state = self.state();
        let turn = state.window.change(&self.shape, before, after);
        state.is_between |= turn != Turn::Same;
        turn
    }

    /// Looks for documents behind those that are known, since some of these went.
    pub(super) fn look_further(&self, standing: &Standing<'_>) {
        let mut state = self.state();
        let bound = state.window.bound().map(<[u8]>::to_vec);
        let search = standing.search(&self.shape, wanted(&self.shape));
        let search = Search { after: bound.as_deref(), keeps_hidden: state.window.keeps_hidden(), ..search };
        match search.run() {
            Ok(found) => state.window.extend(found),
            Err(error) => state.failure = Some(error),
        }
    }

    /// Asks about everything anew that it knows; whether that is enough, so that nothing needs to be found anew.
    #[cfg(feature = "web")]
    fn sift(&self) -> bool {
        let mut state = self.state();
        if state.window.sift(&self.shape).is_none() {
            return false;
        }
        if let Err(error) = state.window.check(&self.shape) {
            state.failure.get_or_insert(error.into());
        }
        true
    }

    /// Nothing more will be told.
    pub(super) fn end(&self, error: Error) {
        self.state().failure.get_or_insert(error);
        self.changed.send_modify(|version| *version += 1);
    }

    /// Everything up to `at` was taken in.
    pub(super) fn told(&self, at: FeedCursor) {
        let mut state = self.state();
        (state.at, state.is_between) = (at, false);
        if let Err(error) = state.window.check(&self.shape) {
            state.failure = Some(error.into());
        }
        drop(state);
        self.changed.send_modify(|version| *version += 1);
    }
}

impl Listener {
    pub(super) fn new(query: Query, options: ListenOptions) -> Result<Self, Error> {
        let shape = Arc::new(query.shape()?);
        Ok(Self { query, shape, options, stage: Stage::New, shown: Vec::new(), shown_at: None, goes_on: false })
    }

    /// The next snapshot, once the result has changed; `None` after an error.
    ///
    /// # Errors
    /// [`Error::Query`] when the result is too large, there are too many listeners, or an index is needed;
    /// [`Error::Closed`]; [`Error::History`] when the store cannot be read.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    ///
    /// # Cost
    /// The first one runs the query, on the thread that polls it. Later ones compare what was told with what is.
    pub async fn next(&mut self) -> Option<Result<QuerySnapshot, Error>> {
        if matches!(self.stage, Stage::New)
            && let Err(error) = self.ready().await
        {
            return Some(self.end(error));
        }
        loop {
            match self.try_next() {
                Ok(Some(snapshot)) => return Some(Ok(snapshot)),
                Ok(None) => {}
                Err(error) => return Some(Err(error)),
            }
            let Stage::Running(running) = &mut self.stage else { return None };
            if running.changed.changed().await.is_err() {
                self.stage = Stage::Ended;
                return None;
            }
        }
    }

    /// [`Self::next`], for a thread that may block.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn next_now(&mut self) -> Option<Result<QuerySnapshot, Error>> {
        block_on(self.next())
    }

    /// Waits until the first snapshot can be made.
    ///
    /// # Errors
    /// As [`Self::next`].
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn ready(&self) -> Result<(), Error> {
        self.query.ready().await
    }

    /// The next snapshot if there is one now. Of a new listener the first, once it is [ready](Self::ready).
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn try_next(&mut self) -> Result<Option<QuerySnapshot>, Error> {
        let made = match &self.stage {
            Stage::New => self.begin().map(Some),
            Stage::Running(_) => self.take(false),
            Stage::Ended => Ok(None),
        };
        made.or_else(|error| self.end(error).map(Some))
    }

    /// Waits until there may be another snapshot; `false` when there will be none.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn wait(&mut self) -> bool {
        match &mut self.stage {
            Stage::New => true,
            Stage::Running(running) => running.changed.changed().await.is_ok(),
            Stage::Ended => false,
        }
    }

    /// The collection whose documents it tells of.
    #[cfg(feature = "web")]
    pub(crate) fn collection(&self) -> &CollectionName {
        self.query.collection.name()
    }

    /// Has the next snapshot tell what came and what went because whoever listens may see other documents now. `sieve`
    /// says which; so does the one before it, which is asked where there was one. It says so of documents as they are in
    /// the view, by the rights of now: only once it was [ready](Self::ready) since these changed were both there at once.
    ///
    /// # Errors
    /// As [`Query::on_snapshot`].
    ///
    /// # Cost
    /// A question to the sieve for each document in the result, and for each that would be there if it might be seen. When
    /// these are too many, or others than are known may come in, the query is run again.
    #[cfg(feature = "web")]
    pub(crate) fn sift(&mut self, sieve: Option<Arc<dyn Sieve>>) -> Result<(), Error> {
        let is_told = match (&self.stage, &self.shape.sieve, &sieve) {
            (Stage::Running(running), Some(_), Some(_)) => running.listening.sift(),
            (Stage::Running(_), None, None) | (Stage::Ended, _, _) => true,
            _ => false,
        };
        if !is_told {
            let mut again = Self::new(self.query.clone().seen_through(sieve), self.options)?;
            again.goes_on = self.goes_on || !matches!(self.stage, Stage::New);
            again.shown = std::mem::take(&mut self.shown);
            again.shown_at = self.shown_at;
            *self = again;
        }
        Ok(())
    }

    /// What was told before without what `sieve` does not pass now; nothing when it passes all of that. This adds nothing
    /// and tells no value, so it needs no view: it is for when that is held up, and [`Self::sift`] has to wait.
    ///
    /// # Errors
    /// As [`Query::on_snapshot`].
    ///
    /// # Cost
    /// A question to the sieve for each document that was told.
    #[cfg(feature = "web")]
    pub(crate) fn take_away(&mut self, sieve: Option<&dyn Sieve>) -> Result<Option<QuerySnapshot>, Error> {
        let (Some(sieve), Some(position)) = (sieve, self.shown_at) else { return Ok(None) };
        let left: Placed = self.shown.iter().filter(|(_, document)| sieve.passes(document)).cloned().collect();
        if left.len() == self.shown.len() {
            return Ok(None);
        }
        let changes = changes_between(&self.shown, &left);
        self.shown = left;
        self.snapshot(position, changes).map(Some)
    }

    /// Whether it has yet to begin, or to begin anew, and to be [ready](Self::ready) for that.
    #[cfg(test)]
    pub(crate) fn is_new(&self) -> bool {
        matches!(self.stage, Stage::New)
    }

    /// Which one it is, of those that have begun.
    #[cfg(test)]
    pub(super) fn number(&self) -> Option<ListenerId> {
        match &self.stage {
            Stage::Running(running) => Some(running.listening.id),
            _ => None,
        }
    }

    fn end(&mut self, error: Error) -> Result<QuerySnapshot, Error> {
        self.stage = Stage::Ended;
        Err(error)
    }

    fn database(&self) -> &Database {
        self.query.collection.database()
    }

    fn begin(&mut self) -> Result<QuerySnapshot, Error> {
        let views = Views::of(self.database())?;
        let seat = Seat::take(&views)?;
        let view = views.view(self.database(), self.query.collection.name())?;
        // Of what he may see now, nobody knows what he was told: whoever asks on somebody's behalf begins anew.
        let since = self.options.since.filter(|_| !self.query.is_sieved());
        let mut past = since.map(|since| self.past(since)).transpose()?;
        if let Some(past) = &mut past {
            // Most of it before the view is held.
            past.read_to(self.database(), view.standing().at().position)?;
        }
        let (changed, receiver) = watch::channel(0);
        let standing = view.answering(self.query.tail())?;
        let missed = |parts| self.query.learn(&view, &views, parts);
        let found = standing.beginning(&self.query.asked, &self.shape, &missed)?;
        view.note_use(&found.used);
        let at = standing.at();
        let before = match past {
            _ if std::mem::take(&mut self.goes_on) => Some(std::mem::take(&mut self.shown)),
            Some(past) => self.result_at(past, &standing)?,
            None => None,
        };
        let listening = Arc::new(Listening {
            id: views.new_id(),
            shape: self.shape.clone(),
            state: Mutex::new(State {
                window: Window::new(found, &self.shape, views.room.clone())?,
                at,
                is_between: false,
                failure: None,
            }),
            changed,
        });
        if !standing.admit(listening.clone()) {
            return Err(view.not_ready(self.query.tail()).into());
        }
        drop(standing);
        views.wake();
        let is_reset = before.is_none();
        self.shown = before.unwrap_or_default();
        self.stage = Stage::Running(Running { view, listening, changed: receiver, views, _seat: seat });
        let mut first = match self.take(true)? {
            Some(first) => first,
            // Its first batch is under way, and what it says is not whole yet.
            None => block_on(self.first_whole())?,
        };
        first.is_reset = is_reset;
        Ok(first)
    }

    async fn first_whole(&mut self) -> Result<QuerySnapshot, Error> {
        loop {
            if !self.wait().await {
                return Err(Error::Closed);
            }
            if let Some(snapshot) = self.take(true)? {
                return Ok(snapshot);
            }
        }
    }

    /// What changed since the last snapshot; nothing when nothing did, unless `always`.
    fn take(&mut self, always: bool) -> Result<Option<QuerySnapshot>, Error> {
        let Stage::Running(running) = &mut self.stage else { return Ok(None) };
        running.changed.borrow_and_update();
        // Read before: whatever listeners had heard of by then is in the window.
        let published = running.view.progress.borrow().cursor;
        let state = running.listening.state();
        if let Some(error) = &state.failure {
            return Err(match error {
                Error::Query(error) => Error::Query(error.clone()),
                Error::ReadOnly(why) => Error::ReadOnly(why.clone()),
                Error::Closed => Error::Closed,
                other => Error::Application(other.to_string()),
            });
        }
        if state.is_between {
            return Ok(None);
        }
        let position = published.filter(|other| other.position > state.at.position).unwrap_or(state.at);
        let now = state.window.result(&self.shape);
        drop(state);
        let now = self.completed(now)?;
        let mut changes = changes_between(&self.shown, &now);
        if changes.is_empty() && !always {
            return Ok(None);
        }
        let before = std::mem::replace(&mut self.shown, now);
        self.annotate(&before, &mut changes)?;
        self.snapshot(position, changes).map(Some)
    }

    /// What is shown now, as of a position.
    fn snapshot(&mut self, position: FeedCursor, changes: Vec<DocChange>) -> Result<QuerySnapshot, Error> {
        self.shown_at = Some(position);
        let views = Views::of(self.database())?;
        let documents: Vec<Arc<Document>> = self.shown.iter().map(|(_, document)| document.clone()).collect();
        let has_pending_writes = documents.iter().any(|document| self.database().has_edits_in_flight(document.id));
        let metadata = Metadata { position, from_cache: !views.is_in_touch(), has_pending_writes };
        Ok(QuerySnapshot { documents, changes, is_reset: false, metadata })
    }

    /// Adds the patches and conflicts that were asked for.
    fn annotate(&self, before: &Placed, changes: &mut [DocChange]) -> Result<(), Error> {
        const CONFLICTS_MAX: usize = 1_000;
        if !self.options.patches && !self.options.conflicts {
            return Ok(());
        }
        for change in changes.iter_mut().filter(|change| change.kind != ChangeKind::Removed) {
            let was = before.iter().find(|(_, document)| document.id == change.document.id);
            let heads = &change.document.heads;
            self.database().find(change.document.id)?.with_view(|view| {
                if let (true, Some((_, was))) = (self.options.patches, was) {
                    // What was told may have been withdrawn since; then there is no way from it to what is.
                    change.patches = view.patches(&was.heads, heads).ok();
                }
                if self.options.conflicts {
                    let at = if view.heads() == *heads { view.now() } else { view.at(heads)? };
                    let found = at.all_conflicts(CONFLICTS_MAX)?;
                    change.conflicts = Some(found.into_iter().map(|(path, all)| (path.to_string(), all)).collect());
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// A result with whole documents. Those that were whole when they were told are not read again.
    fn completed(&self, mut now: Placed) -> Result<Placed, Error> {
        for (_, document) in now.iter_mut().filter(|(_, document)| document.is_partial) {
            let is_same =
                |told: &&Arc<Document>| !told.is_partial && told.id == document.id && told.heads == document.heads;
            let known = self.shown.iter().map(|(_, told)| told).find(is_same);
            *document = match known {
                Some(known) => known.clone(),
                None => Arc::new(Document::clone(document).complete(self.database())?),
            };
        }
        Ok(now)
    }

    fn past(&self, since: FeedCursor) -> Result<Past, Error> {
        let collection = self.query.collection.name().clone();
        let changes = self.database().changes().filter(Filter::Collection(collection.clone()));
        let feed = changes.since(since).coalesced().open()?;
        Ok(Past { collection, since: since.position, feed, documents: HashMap::new(), is_certain: true })
    }

    /// The result as it was; `None` when that cannot be told for certain.
    fn result_at(&self, mut past: Past, standing: &Standing<'_>) -> Result<Option<Placed>, Error> {
        past.read_to(self.database(), standing.at().position)?;
        if !past.is_certain {
            return Ok(None);
        }
        let changed: HashSet<DocumentId> = past.documents.keys().copied().collect();
        let found = Search { without: Some(&changed), ..standing.search(&self.shape, wanted(&self.shape)) }.run()?;
        let mut placed = found.documents;
        for document in past.documents.into_values().flatten() {
            if let Some(place) = self.shape.place(document.id, document.compared()) {
                placed.insert(place, Arc::new(document));
            }
        }
        let limit = self.shape.limit.unwrap_or(usize::MAX);
        Ok(Some(in_order(placed.into_iter().take(limit).collect(), &self.shape)))
    }
}

/// The documents of a collection that changed after a position, as they were there.
struct Past {
    collection: CollectionName,
    since: Lsn,
    feed: ChangeFeed,
    documents: HashMap<DocumentId, Option<Document>>,
    /// All of that can be told.
    is_certain: bool,
}

impl Past {
    /// Finds what changed up to `end`.
    fn read_to(&mut self, database: &Database, end: Lsn) -> Result<(), Error> {
        while self.is_certain && self.feed.cursor().position < end {
            match self.feed.next_now()? {
                Some(Item::Opened(Opening::Reset { .. })) => self.is_certain = false,
                Some(Item::Event(event)) => {
                    let is_gone = matches!(event.kind, EventKind::Withdrawn { .. } | EventKind::Purged(_));
                    if is_gone || self.documents.len() >= queries::RESUME_MAX {
                        self.is_certain = false;
                    } else if !self.documents.contains_key(&event.document) {
                        let id = event.document;
                        let (document, is_certain) = document_at(database, &self.collection, id, Some(self.since))?;
                        self.is_certain &= is_certain;
                        self.documents.insert(id, document);
                    }
                }
                Some(_) => {}
                None => break,
            }
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let id = self.listening.id;
        self.view.dismiss(id);
        self.views.wake();
    }
}
