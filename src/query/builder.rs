//! Queries, as they are put and answered.

use std::sync::Arc;

use serde_json::Value;

use super::index::{Index, IndexState, Part};
use super::listener::{ListenOptions, Listener};
use super::predicate::Predicate;
use super::run::Search;
use super::snapshot::{Metadata, QuerySnapshot, changes_between};
use super::spec::{Asked, Edge, Ordering, Shape, Sieve, from_json};
use super::view::{View, Wish};
use super::views::Views;
use super::window::in_order;
use crate::document::Path;
use crate::engine::{Collection, Database, block_on};
use crate::error::{Error, QueryError};
use crate::limits::queries;

impl Database {
    /// Says whether the database is in touch with the node that it follows, if it follows one. Snapshots show it as
    /// [`Metadata::from_cache`].
    ///
    /// # Errors
    /// [`Error::Closed`]; [`Error::History`] when the store cannot be read.
    pub fn set_in_touch(&self, is_in_touch: bool) -> Result<(), Error> {
        Views::of(self)?.set_in_touch(is_in_touch);
        Ok(())
    }

    /// Has the collections that were queried before follow the log from now on, and not from the next query on.
    ///
    /// # Errors
    /// As [`Self::set_in_touch`].
    pub fn keep_views(&self) -> Result<(), Error> {
        Views::of(self).map(drop)
    }
}

impl Collection {
    /// A query of the documents of this collection: all of them, unless it is narrowed.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let database = tidelog::Database::on(tidelog::log::MemoryStorage::default()).open()?;
    /// use tidelog::query::field;
    /// let messages = database.collection("messages")?;
    /// messages.create(serde_json::json!({"room": "lobby", "at": 7}))?.1.wait()?;
    /// let lobby = messages.query().filter(field("room").eq("lobby")).order_by("at").limit(50);
    /// assert_eq!(lobby.get_now()?.docs()[0].value["at"], 7);
    /// # Ok(())
    /// # }
    /// ```
    pub fn query(&self) -> Query {
        Query { collection: self.clone(), asked: Asked::default(), sieve: None }
    }

    /// A query from its JSON form (`docs/queries.md`, section 1), and whether only the number of documents is asked for.
    ///
    /// # Errors
    /// [`Error::Query`] when it is malformed.
    pub fn query_of_json(&self, json: &Value) -> Result<(Query, bool), Error> {
        let (asked, counts) = from_json(json)?;
        asked.shape()?;
        Ok((Query { collection: self.clone(), asked, sieve: None }, counts))
    }

    /// Declares an index on fields, each as in `at`, `at desc` or `tags elements`. It is made in the background, and used
    /// once it is there; what is declared already stays. Answers with how it stands.
    ///
    /// # Errors
    /// [`Error::Query`] when there can be no such index, or there are too many.
    ///
    /// # Cost
    /// In the background, a few microseconds a document.
    pub fn declare_index<T: AsRef<str>>(&self, fields: impl IntoIterator<Item = T>) -> Result<IndexState, Error> {
        let parts: Result<Vec<Part>, QueryError> =
            fields.into_iter().map(|field| Part::parse(field.as_ref())).collect();
        let index = Index::new(self.name(), parts?, true)?;
        let (views, view) = view_of(self)?;
        let standing = view.standing();
        let known = standing.indexes();
        if let Some(known) = known.iter().find(|known| known.id == index.id && known.declared && !known.is_dropping()) {
            return Ok(known.state());
        }
        if known.iter().filter(|known| known.declared).count() >= queries::DECLARED_MAX {
            let why = format!("{} indexes are declared on {} already", queries::DECLARED_MAX, self.name());
            return Err(QueryError::index(why, "drop one that is not needed").into());
        }
        drop(standing);
        let state = index.state();
        view.want(|wanted| wanted.wishes.push(Wish::Make(index)));
        views.wake();
        Ok(state)
    }

    /// Drops the index of that id. It is used no more, and removed in the background. One that queries brought about may
    /// come again with the next of them.
    ///
    /// # Errors
    /// [`Error::Query`] when there is none.
    pub fn drop_index(&self, id: &str) -> Result<(), Error> {
        let (views, view) = view_of(self)?;
        // One that was declared a moment ago may not be begun yet.
        let is_asked = |index: &Index| index.state().id == id;
        let begun = view.standing().indexes().iter().find(|index| is_asked(index)).map(|index| index.id);
        let found = begun.or_else(|| {
            view.want(|wanted| {
                wanted.wishes.iter().find_map(|wish| match wish {
                    Wish::Make(index) if is_asked(index) => Some(index.id),
                    _ => None,
                })
            })
        });
        let Some(id) = found else {
            let why = format!("collection {} has no index {:?}", self.name(), crate::id::shortened(id));
            return Err(QueryError::index(why, "take an id from the list of its indexes").into());
        };
        view.want(|wanted| wanted.wishes.push(Wish::Drop(id)));
        views.wake();
        Ok(())
    }

    /// The indexes there are, ready or not.
    ///
    /// # Errors
    /// [`Error::Closed`]; [`Error::History`] when the store cannot be read.
    pub fn indexes(&self) -> Result<Vec<IndexState>, Error> {
        let (_, view) = view_of(self)?;
        let standing = view.standing();
        Ok(standing.indexes().iter().filter(|index| !index.is_dropping()).map(Index::state).collect())
    }
}

fn view_of(collection: &Collection) -> Result<(Arc<Views>, Arc<View>), Error> {
    let views = Views::of(collection.database())?;
    let view = views.view(collection.database(), collection.name())?;
    Ok((views, view))
}

/// A question about the documents of a collection. See [`Collection::query`].
#[derive(Debug, Clone)]
#[must_use = "a query asks nothing until it is sent"]
pub struct Query {
    pub(super) collection: Collection,
    pub(super) asked: Asked,
    /// What whoever asks may see; `None` for everything.
    sieve: Option<Arc<dyn Sieve>>,
}

impl Query {
    /// On behalf of somebody who may not see every document: what `sieve` does not pass is as good as not there.
    #[cfg(feature = "web")]
    pub(crate) fn seen_through(mut self, sieve: Option<Arc<dyn Sieve>>) -> Self {
        self.sieve = sieve;
        self
    }

    /// Keeps the view where it stands until what this gives is dropped.
    #[cfg(all(test, feature = "web"))]
    #[expect(clippy::expect_used, reason = "a test's")]
    pub(crate) fn held_up(&self) -> std::sync::mpsc::SyncSender<()> {
        use std::sync::mpsc::sync_channel;
        let (_, view) = view_of(&self.collection).expect("a view of the collection");
        let ((stands, stood), (sender, receiver)) = (sync_channel::<()>(1), sync_channel::<()>(1));
        std::thread::spawn(move || {
            let standing = view.standing();
            stands.send(()).expect("it is waited for");
            // Nothing is ever sent.
            let _ = receiver.recv();
            drop(standing);
        });
        stood.recv().expect("the view stands");
        sender
    }

    /// What is asked, held against every bound.
    pub(super) fn shape(&self) -> Result<Shape, QueryError> {
        Ok(Shape { sieve: self.sieve.clone(), ..self.asked.shape()? })
    }

    pub(super) fn is_sieved(&self) -> bool {
        self.sieve.is_some()
    }

    /// Only documents of which `predicate` holds, beside what was asked before.
    pub fn filter(mut self, predicate: Predicate) -> Self {
        self.asked.predicate = Some(match self.asked.predicate.take() {
            Some(before) => before.and(predicate),
            None => predicate,
        });
        self
    }

    /// In the order of a field, from the least; after fields that were named before. Documents without it are left out.
    pub fn order_by(self, field: impl Into<Path>) -> Self {
        self.ordered(field.into(), false)
    }

    /// In the order of a field, from the greatest; as [`Self::order_by`].
    pub fn order_by_desc(self, field: impl Into<Path>) -> Self {
        self.ordered(field.into(), true)
    }

    fn ordered(mut self, field: Path, descending: bool) -> Self {
        self.asked.order.push(Ordering { field, descending });
        self
    }

    /// The first `count` documents: 1 to 10,000.
    pub fn limit(mut self, count: usize) -> Self {
        (self.asked.limit, self.asked.from_end) = (Some(count), false);
        self
    }

    /// The last `count` documents: 1 to 10,000.
    pub fn limit_to_last(mut self, count: usize) -> Self {
        (self.asked.limit, self.asked.from_end) = (Some(count), true);
        self
    }

    /// From the documents on that have these values in the fields that are ordered by. Behind a value for each, a
    /// document's id may stand.
    pub fn start_at<V: Into<Value>>(self, values: impl IntoIterator<Item = V>) -> Self {
        self.started(values, true)
    }

    /// As [`Self::start_at`], without those documents.
    pub fn start_after<V: Into<Value>>(self, values: impl IntoIterator<Item = V>) -> Self {
        self.started(values, false)
    }

    fn started<V: Into<Value>>(mut self, values: impl IntoIterator<Item = V>, included: bool) -> Self {
        self.asked.start = Some(Edge { values: values.into_iter().map(Into::into).collect(), included });
        self
    }

    /// Up to the documents that have these values in the fields that are ordered by; see [`Self::start_at`].
    pub fn end_at<V: Into<Value>>(self, values: impl IntoIterator<Item = V>) -> Self {
        self.ended(values, true)
    }

    /// As [`Self::end_at`], without those documents.
    pub fn end_before<V: Into<Value>>(self, values: impl IntoIterator<Item = V>) -> Self {
        self.ended(values, false)
    }

    fn ended<V: Into<Value>>(mut self, values: impl IntoIterator<Item = V>, included: bool) -> Self {
        self.asked.end = Some(Edge { values: values.into_iter().map(Into::into).collect(), included });
        self
    }

    /// The result, with everything that is logged now. The first query of a collection waits until it was read once.
    ///
    /// # Errors
    /// [`Error::Query`] when it is malformed, needs an index or finds too much; [`Error::History`] when the store cannot be
    /// read; [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    ///
    /// # Cost
    /// By an index that gives the order, some microseconds for each document of the result. Without one, about as much for
    /// each document of the collection. It runs on the thread that polls it.
    pub async fn get(&self) -> Result<QuerySnapshot, Error> {
        self.ready().await?;
        self.run()
    }

    /// [`Self::get`], for a thread that may block.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn get_now(&self) -> Result<QuerySnapshot, Error> {
        block_on(self.get())
    }

    /// How many documents are in the result.
    ///
    /// # Errors
    /// As [`Self::get`].
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    ///
    /// # Cost
    /// When an index answers it alone, a microsecond a document; otherwise as [`Self::get`].
    pub async fn count(&self) -> Result<usize, Error> {
        self.ready().await?;
        self.run_count().map(|(count, _)| count)
    }

    /// [`Self::count`], for a thread that may block.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn count_now(&self) -> Result<usize, Error> {
        block_on(self.count())
    }

    /// Tells the result whenever it changed.
    ///
    /// # Errors
    /// [`Error::Query`] when the query is malformed. What else there is, the listener tells.
    pub fn on_snapshot(&self, options: ListenOptions) -> Result<Listener, Error> {
        Listener::new(self.clone(), options)
    }

    /// Waits until the answer has everything that is logged now.
    ///
    /// # Errors
    /// As [`Self::get`].
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn ready(&self) -> Result<(), Error> {
        let tail = self.tail();
        loop {
            let (_, view) = view_of(&self.collection)?;
            if view.reached(tail).await? {
                return Ok(());
            }
        }
    }

    /// The log's end.
    pub(super) fn tail(&self) -> crate::id::Lsn {
        self.collection.database().reader().tail().lsn
    }

    /// How far the collection is read, as an error for who cannot wait.
    #[cfg(feature = "web")]
    pub(crate) fn not_ready(&self) -> Error {
        match view_of(&self.collection) {
            Ok((_, view)) => view.not_ready(self.tail()).into(),
            Err(error) => error,
        }
    }

    /// [`Self::get`], once it is [ready](Self::ready).
    pub(crate) fn run(&self) -> Result<QuerySnapshot, Error> {
        let shape = self.shape()?;
        let (views, view) = view_of(&self.collection)?;
        let standing = view.answering(self.tail())?;
        let want = shape.limit.unwrap_or(queries::LIMIT_MAX + 1);
        let missed = |parts| self.learn(&view, &views, parts);
        let found = Search { missed: &missed, ..standing.search(&shape, want) }.run()?;
        let position = standing.at();
        drop(standing);
        view.note_use(&found.used);
        if shape.limit.is_none() && found.documents.len() > queries::LIMIT_MAX {
            return Err(QueryError::TooLarge { what: format!("{} documents", queries::LIMIT_MAX) }.into());
        }
        let database = self.collection.database();
        let found = found.complete(database)?;
        let placed = in_order(found.documents.into_iter().collect(), &shape);
        let has_pending_writes = placed.iter().any(|(_, document)| database.has_edits_in_flight(document.id));
        let metadata = Metadata { position, from_cache: !views.is_in_touch(), has_pending_writes };
        let changes = changes_between(&Vec::new(), &placed);
        let documents = placed.into_iter().map(|(_, document)| document).collect();
        Ok(QuerySnapshot { documents, changes, is_reset: true, metadata })
    }

    /// [`Self::count`], once it is [ready](Self::ready); and where the result is exact.
    pub(crate) fn run_count(&self) -> Result<(usize, crate::feed::FeedCursor), Error> {
        let shape = self.shape()?;
        let (views, view) = view_of(&self.collection)?;
        let standing = view.answering(self.tail())?;
        let missed = |parts| self.learn(&view, &views, parts);
        let search = standing.search(&shape, queries::EXAMINED_MAX + 1);
        let (count, found) = Search { missed: &missed, ..search }.count()?;
        let position = standing.at();
        drop(standing);
        view.note_use(&found.used);
        Ok((count, position))
    }

    /// Has indexes kept that would have helped.
    pub(super) fn learn(&self, view: &View, views: &Views, missed: Vec<Part>) {
        let index = |part| Index::new(self.collection.name(), vec![part], false).ok();
        view.want(|wanted| {
            for index in missed.into_iter().filter_map(index) {
                let is_alike = |wish: &Wish| matches!(wish, Wish::Make(other) if other.id == index.id);
                if !wanted.wishes.iter().any(is_alike) {
                    wanted.wishes.push(Wish::Make(index));
                }
            }
        });
        views.wake();
    }
}
