//! What rooms above keep with a database for as long as it is open.

use std::any::Any;
use std::sync::{Arc, Weak};

use serde_json::Value;

use super::{Database, Inner};
use crate::engine::DocHandle;
use crate::engine::core::Input;
use crate::error::Error;
use crate::id::{CollectionName, DocumentId, Heads};
use crate::log::WriteBatch;

/// What a room above keeps with a database.
pub(crate) trait Attached: Any + Send + Sync {
    /// The database closes: whatever uses it ends before this returns.
    fn close(&self);
}

/// A database, for somebody who must not keep it open: a thread that is [attached](Attached) to it.
#[derive(Clone)]
pub(crate) struct WeakDatabase(Weak<Inner>);

impl WeakDatabase {
    /// The database, if it is still there. It closes under whoever holds this.
    pub(crate) fn upgrade(&self) -> Option<Database> {
        Some(Database { inner: self.0.upgrade()?, _owner: None })
    }
}

impl Database {
    pub(crate) fn downgrade(&self) -> WeakDatabase {
        WeakDatabase(Arc::downgrade(&self.inner))
    }

    /// What the one room that keeps something with the database has there, made when it is first asked for.
    pub(crate) fn attached<T: Attached>(&self, make: impl FnOnce() -> T) -> Option<Arc<T>> {
        let attached = self.inner.attached.get_or_init(|| Arc::new(make())).clone();
        (attached as Arc<dyn Any + Send + Sync>).downcast().ok()
    }

    /// Writes what a consumer of a feed made of it, and how far it is now, under `key` in `state`: both or neither, and
    /// only if its row is still the one it began from. `false` when it is not.
    ///
    /// # Errors
    /// As [`Self::admit`].
    ///
    /// # Cancel safety
    /// As [`Self::admit`].
    pub(crate) async fn consume(
        &self,
        key: Vec<u8>,
        expected: Option<Vec<u8>>,
        rows: WriteBatch,
    ) -> Result<bool, Error> {
        Ok(self.ask(Input::Consume { key, expected, rows }).await?.cursor_stored)
    }

    /// A document, which is in `collection`, as it is at `heads`; see [`DocHandle::value_at`].
    ///
    /// # Errors
    /// As [`DocHandle::to_json`].
    pub(crate) fn value_at(&self, collection: &CollectionName, id: DocumentId, heads: &Heads) -> Result<Value, Error> {
        DocHandle::new(self.clone(), id, collection.clone()).value_at(heads)
    }

    /// Whether edits of the document are on their way to the disk.
    pub(crate) fn has_edits_in_flight(&self, id: DocumentId) -> bool {
        self.working_set().has_edits_in_flight(id)
    }
}
