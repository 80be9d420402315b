//! Collections: documents under a name.

use serde::Serialize;
use serde_json::Value;

use super::clock::{now_ms, now_seconds};
use super::commit::Commit;
use super::core::{By, Incoming, IncomingBody};
use super::database::Database;
use super::handle::DocHandle;
use super::judge::{Deed, Judge, Place};
use super::judged::{Edited, refused_at};
use super::refusal::Refused;
use super::working_set::WorkingSet;
use crate::document::{Change, EditOptions, Path, View, ViewError, genesis};
use crate::error::Error;
use crate::history::{DocumentState, Origin};
use crate::id::{CollectionName, DocumentId, Heads, Lsn};
use crate::log::record::{Admission, CreationRank, Lifecycle, LifecycleKind};

/// A set of documents. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Collection {
    database: Database,
    name: CollectionName,
}

/// How many documents are read from the store at a time.
const PAGE: usize = 512;

impl Collection {
    pub(super) fn new(database: Database, name: CollectionName) -> Self {
        Self { database, name }
    }

    /// The database it is in.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &CollectionName {
        &self.name
    }

    /// Creates a document that holds `value`, a map.
    ///
    /// The handle works at once; the [`Commit`] resolves when the document is on the disk.
    ///
    /// # Errors
    /// [`Error::View`] when `value` is no map or cannot be kept; [`Error::Busy`], [`Error::ReadOnly`],
    /// [`Error::StorageFull`], [`Error::Closed`] when nothing is written now.
    pub fn create(&self, value: impl Serialize) -> Result<(DocHandle, Commit), Error> {
        self.create_as(None, value)
    }

    /// [`Self::create`], on behalf of somebody who may not create everything.
    ///
    /// # Errors
    /// As [`Self::create`]; [`Error::Denied`].
    pub(crate) fn create_as(
        &self,
        judge: Option<&dyn Judge>,
        value: impl Serialize,
    ) -> Result<(DocHandle, Commit), Error> {
        let value = to_value(value)?;
        let room = self.database.reserve()?;
        let id = DocumentId::random();
        let mut view = View::new();
        let options = EditOptions { actor: self.database.actor(id, Lsn::ZERO)?, time: now_seconds(), message: None };
        let place = Place { document: id, collection: &self.name, name: None };
        let judging = judge.map(|judge| Edited::before(judge, Deed::Create, place, None)).transpose()?;
        let mut denied = None;
        let edited = view.edit(options, |edit| {
            edit.put(Path::root(), &value)?;
            judging.map_or_else(|| Ok(By::default()), |judging| judging.judge(edit, &mut denied))
        });
        if let (Some(judge), Some(denial)) = (judge, denied) {
            // The room is not to be waited for by whoever has it.
            drop(room);
            let told = denial.told.clone();
            self.database.note_refusal(judge, refused_at(judge, place, Deed::Create, Refused::Edit, denial))?;
            return Err(Error::Denied(told));
        }
        let (by, change) = edited?;
        let statement = self.creation(id, None, CreationRank::Asked);
        self.send(room, id, view, statement, change, by)
    }

    /// The document called `name`: the same on every replica, created empty when it is not here yet.
    ///
    /// # Errors
    /// As [`Self::create`]; [`Error::Application`] when the name is too long.
    pub fn doc(&self, name: &str) -> Result<DocHandle, Error> {
        self.named(name, None)
    }

    /// The document called `name`, which holds `value` where it is first created. Two replicas that create it with the
    /// same value make the same change; with different values they conflict like any two edits, and both are kept.
    ///
    /// # Errors
    /// As [`Self::doc`].
    pub fn doc_with(&self, name: &str, value: impl Serialize) -> Result<DocHandle, Error> {
        self.named(name, Some(to_value(value)?))
    }

    fn named(&self, name: &str, value: Option<Value>) -> Result<DocHandle, Error> {
        if name.is_empty() || name.len() > Lifecycle::NAME_BYTES_MAX {
            return Err(Error::Application(format!(
                "a document's name has 1 to {} bytes, this one has {}",
                Lifecycle::NAME_BYTES_MAX,
                name.len()
            )));
        }
        let id = DocumentId::named(&self.name, name);
        if self.database.reader().row(id)?.is_some() {
            return self.find(id);
        }
        let room = self.database.reserve()?;
        let mut view = View::new();
        let change = value.map(|value| genesis(&self.name, name, &value)).transpose()?;
        if let Some(change) = &change {
            view.apply(std::slice::from_ref(change))?;
        }
        let statement = self.creation(id, Some(name.to_owned()), CreationRank::Asked);
        let (handle, commit) = self.send(room, id, view, statement, change, By::default())?;
        // A name is a promise to others who look for it, so it is on the disk before it is given away.
        commit.wait()?;
        Ok(handle)
    }

    /// Creates a document under an id that is known already, such as an imported one; nothing happens when it exists.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn create_with_id(&self, id: DocumentId) -> Result<DocHandle, Error> {
        if self.database.reader().row(id)?.is_none() {
            let room = self.database.reserve()?;
            let statement = self.creation(id, None, CreationRank::Imported);
            Database::send(room, id, vec![statement], Vec::new(), None, By::default())?.wait()?;
        }
        self.find(id)
    }

    /// The statement that creates the document `id` in this collection, to be offered to the log together with changes
    /// that were made elsewhere. Of the lowest rank: whoever asked for the document elsewhere decides about it.
    #[must_use]
    pub fn imported(&self, id: DocumentId) -> Incoming {
        let origin = Origin {
            node: self.database.node(),
            principal: String::new(),
            admission: Admission::Full,
            rules_version: 0,
        };
        Incoming {
            document: id,
            body: IncomingBody::Lifecycle(self.creation(id, None, CreationRank::Imported)),
            origin,
            signature: None,
        }
    }

    fn send(
        &self,
        room: (super::driver::Queue, super::driver::Room),
        id: DocumentId,
        view: View,
        statement: Vec<u8>,
        change: Option<Change>,
        by: By,
    ) -> Result<(DocHandle, Commit), Error> {
        if let Some(change) = &change {
            self.database.check_size(id, change)?;
        }
        let handle = DocHandle::new(self.database.clone(), id, self.name.clone());
        // Counted first: a view with nothing on its way could be dropped again at once, and built without its change.
        let in_flight = WorkingSet::in_flight(handle.cell());
        self.database.working_set().adopt(handle.cell(), view, change.as_ref())?;
        let commit = Database::send(room, id, vec![statement], change.into_iter().collect(), Some(in_flight), by)?;
        Ok((handle, commit))
    }

    fn creation(&self, document: DocumentId, name: Option<String>, rank: CreationRank) -> Vec<u8> {
        Lifecycle {
            document,
            collection: self.name.clone(),
            kind: LifecycleKind::Created,
            rank,
            lamport: 1,
            author: self.database.node(),
            actor: None,
            time_ms: now_ms(),
            heads: Heads::default(),
            name,
        }
        .encode()
    }

    /// The document `id` of this collection.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::OtherCollection`]; [`Error::History`] when the store cannot be read. A deleted
    /// document is found: its handle can restore it.
    pub fn find(&self, id: DocumentId) -> Result<DocHandle, Error> {
        let handle = self.database.find(id)?;
        if handle.collection() != &self.name {
            return Err(Error::OtherCollection {
                document: id,
                found: handle.collection().clone(),
                expected: self.name.clone(),
            });
        }
        Ok(handle)
    }

    /// Up to `count` visible documents that changed after `after`, oldest change first, each with the position to go
    /// on from. Nothing is materialised.
    ///
    /// # Errors
    /// [`Error::History`] when the store cannot be read.
    ///
    /// # Cost
    /// Two or three reads a document.
    pub fn list(&self, after: Lsn, count: usize) -> Result<Vec<(DocumentId, DocumentState)>, Error> {
        let reader = self.database.reader();
        let mut found = Vec::new();
        let mut at = after;
        while found.len() < count {
            let page = reader.collection(self.name.key(), at, PAGE)?;
            let Some((last, _)) = page.last() else { break };
            at = *last;
            for (_, id) in page {
                if let Some(state) = reader.document(id)?
                    && state.visible
                    && found.len() < count
                {
                    found.push((id, state));
                }
            }
        }
        Ok(found)
    }
}

fn to_value(value: impl Serialize) -> Result<Value, Error> {
    let value = serde_json::to_value(value).map_err(|error| Error::Application(error.to_string()))?;
    if value.is_object() { Ok(value) } else { Err(ViewError::RootNotMap.into()) }
}
