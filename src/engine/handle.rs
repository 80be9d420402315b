//! One document, to read and to edit.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::building::Tell;
use super::clock::{now_ms, now_seconds};
use super::commit::Commit;
use super::core::By;
use super::database::Database;
use super::judge::{Deed, Denial, Judge, Place};
#[cfg(feature = "web")]
use super::judged::by;
use super::judged::{Edited, refused_at};
use super::refusal::Refused;
use super::working_set::{Cell, WorkingSet};
use crate::document::{Change, Edit, EditOptions, Path, View};
use crate::error::Error;
use crate::history::{Origin, Readable};
use crate::id::{ActorId, ChangeHash, CollectionName, DocumentId, Heads, Lsn};
use crate::log::record::{CreationRank, Lifecycle, LifecycleKind, Record};
use crate::log::rows::IndexRow;

/// A document of a [`Database`]. Cheap to clone and to keep: the document is materialised only while somebody reads or
/// edits it.
#[derive(Debug, Clone)]
pub struct DocHandle {
    database: Database,
    cell: Arc<Cell>,
    collection: CollectionName,
}

/// One change in a document's history.
#[derive(Debug, Clone)]
pub struct HistoryEntry {
    /// Where it is in the log.
    pub lsn: Lsn,
    /// Which change.
    pub hash: ChangeHash,
    /// Who made it.
    pub actor: ActorId,
    /// Its number among its author's changes.
    pub seq: u64,
    /// What it was made on top of.
    pub deps: Vec<ChangeHash>,
    /// How many operations it holds.
    pub op_count: u64,
    /// Its author's clock, seconds since 1970.
    pub time: i64,
    /// Our clock when it was logged, ms since 1970.
    pub received_ms: u64,
    /// What its author said about it.
    pub message: Option<String>,
    /// Where it entered.
    pub origin: Origin,
}

impl DocHandle {
    pub(super) fn new(database: Database, id: DocumentId, collection: CollectionName) -> Self {
        let cell = database.working_set().cell(id);
        Self { database, cell, collection }
    }

    pub(super) fn cell(&self) -> &Arc<Cell> {
        &self.cell
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> DocumentId {
        self.cell.id
    }

    /// The database it is in.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// The collection it was found in.
    #[must_use]
    pub fn collection(&self) -> &CollectionName {
        &self.collection
    }

    /// Edits the document: all that `edits` do becomes one change. This process sees it at once, everybody else once
    /// the [`Commit`] has resolved. When `edits` fail, nothing happened.
    ///
    /// # Errors
    /// Whatever `edits` return. [`Error::Deleted`]; [`Error::Busy`], [`Error::ReadOnly`], [`Error::StorageFull`],
    /// [`Error::Closed`] before anything was edited; [`Error::Refused`] when they make too large a change, which is
    /// then undone.
    ///
    /// # Cost
    /// 10 to 30 us for a keystroke in a materialised document; the first use of a document loads it.
    pub fn change(&self, edits: impl FnOnce(&mut Edit<'_>) -> Result<(), Error>) -> Result<Commit, Error> {
        self.change_with(None, edits)
    }

    /// [`Self::change`], with a message that stays with the change.
    ///
    /// # Errors
    /// As [`Self::change`].
    pub fn change_with(
        &self,
        message: Option<String>,
        edits: impl FnOnce(&mut Edit<'_>) -> Result<(), Error>,
    ) -> Result<Commit, Error> {
        self.change_as(None, message, edits)
    }

    /// [`Self::change_with`], on behalf of somebody who may not do everything. What he may not do is undone.
    ///
    /// # Errors
    /// As [`Self::change`]; [`Error::Denied`].
    pub(crate) fn change_as(
        &self,
        judge: Option<&dyn Judge>,
        message: Option<String>,
        edits: impl FnOnce(&mut Edit<'_>) -> Result<(), Error>,
    ) -> Result<Commit, Error> {
        let mut denied = None;
        let name = if judge.is_some() { self.state()?.name } else { None };
        let changed = self.change_unless(judge, &mut denied, name.as_deref(), message, edits);
        if let (Some(judge), Some((deed, denial))) = (judge, denied) {
            let place = Place { document: self.id(), collection: &self.collection, name: name.as_deref() };
            self.database.note_refusal(judge, refused_at(judge, place, deed, Refused::Edit, denial))?;
        }
        changed
    }

    /// Makes a change, unless it is `denied`.
    fn change_unless(
        &self,
        judge: Option<&dyn Judge>,
        denied: &mut Option<(Deed, Denial)>,
        name: Option<&str>,
        message: Option<String>,
        edits: impl FnOnce(&mut Edit<'_>) -> Result<(), Error>,
    ) -> Result<Commit, Error> {
        let room = self.database.reserve()?;
        self.require_visible()?;
        // Sent while the view is locked, so that the writer gets a document's changes in the order they were made.
        let tell = |void| self.database.tell_void_now(void);
        self.with_readable(&tell, |view, readable| {
            let actor = self.database.actor(self.id(), readable.newest())?;
            let options = EditOptions { actor, time: now_seconds(), message };
            let deed = if view.change_count() == 0 { Deed::Create } else { Deed::Update };
            let place = Place { document: self.id(), collection: &self.collection, name };
            let judging = judge.map(|judge| Edited::before(judge, deed, place, Some(view))).transpose()?;
            let mut why = None;
            let edited = view.edit(options, |edit| {
                edits(edit)?;
                judging.map_or_else(|| Ok(By::default()), |judging| judging.judge(edit, &mut why))
            });
            *denied = why.map(|denial| (deed, denial));
            let (by, change) = edited?;
            let Some(change) = change else { return Ok(Commit::nothing()) };
            let in_flight = WorkingSet::in_flight(&self.cell);
            let sent = self
                .database
                .check_size(self.id(), &change)
                .and_then(|()| Database::send(room, self.id(), Vec::new(), vec![change], Some(in_flight), by));
            // Made and not sent: the view shows what will never be.
            sent.inspect_err(|_| self.cell.spoil())
        })
    }

    fn require_visible(&self) -> Result<(), Error> {
        if self.cell.is_visible(self.database.reader())? {
            return Ok(());
        }
        let withheld = self.state()?.withheld;
        Err(if withheld { Error::Withheld(self.id()) } else { Error::Deleted(self.id()) })
    }

    /// Logs changes that were made otherwise than by an edit, and which the view then takes in; nothing when there are none.
    #[cfg(feature = "quic")]
    pub(super) fn change_raw(
        &self,
        make: impl FnOnce(&View) -> Result<(Vec<Change>, u64), Error>,
    ) -> Result<(Option<Commit>, u64), Error> {
        self.require_visible()?;
        self.with_view(|view| {
            let (changes, left_out) = make(view)?;
            if changes.is_empty() {
                return Ok((None, left_out));
            }
            // Last: whoever makes them may have to wait for the writer.
            let room = self.database.reserve()?;
            view.apply(&changes)?;
            let in_flight = WorkingSet::in_flight(&self.cell);
            let sent = Database::send(room, self.id(), Vec::new(), changes, Some(in_flight), By::default());
            Ok((Some(sent.inspect_err(|_| self.cell.spoil())?), left_out))
        })
    }

    /// The value at `path`; `None` when there is none.
    ///
    /// # Errors
    /// [`Error::View`] when the value is not a `T` or the document cannot be built.
    pub fn read<T: DeserializeOwned>(&self, path: impl Into<Path>) -> Result<Option<T>, Error> {
        self.with_view(|view| Ok(view.read(path)?))
    }

    /// The whole document as JSON.
    ///
    /// # Errors
    /// [`Error::View`] when the document cannot be built.
    pub fn to_json(&self) -> Result<Value, Error> {
        self.with_view(|view| Ok(view.to_json()?))
    }

    /// The document as it was at `heads`.
    ///
    /// # Errors
    /// [`Error::View`] when it never was there.
    pub fn at(&self, heads: &Heads) -> Result<Value, Error> {
        self.with_view(|view| Ok(view.to_json_at(heads)?))
    }

    /// The document as it is at `heads`, which are on the disk: without edits that are on their way. Of a document of
    /// which some changes cannot be applied, what can be shown.
    ///
    /// # Errors
    /// As [`Self::to_json`].
    pub(crate) fn value_at(&self, heads: &Heads) -> Result<Value, Error> {
        self.with_view(|view| {
            let is_shown = view.heads() == *heads || !heads.as_slice().iter().all(|head| view.contains(*head));
            Ok(if is_shown { view.to_json()? } else { view.to_json_at(heads)? })
        })
    }

    /// Runs `use_view` on the materialised document: everything Automerge can tell.
    ///
    /// # Errors
    /// Whatever `use_view` returns; [`Error::View`] when the document cannot be built.
    pub fn with_view<R>(&self, use_view: impl FnOnce(&mut View) -> Result<R, Error>) -> Result<R, Error> {
        self.with_readable(&|void| self.database.tell_void(void), |view, _| use_view(view))
    }

    fn with_readable<R>(
        &self,
        tell: Tell<'_>,
        use_view: impl FnOnce(&mut View, &Readable) -> Result<R, Error>,
    ) -> Result<R, Error> {
        self.database.working_set().with_view(&self.cell, self.database.reader(), tell, use_view)
    }

    /// The document's heads: with this process's own edits if some are on their way, else what is on the disk. Of a
    /// degraded document the former are the heads of what is shown, the latter of all.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::History`] when the store cannot be read.
    pub fn heads(&self) -> Result<Heads, Error> {
        match self.cell.heads() {
            Some(heads) if !self.cell.settled() => Ok(heads),
            _ => Ok(self.state()?.heads),
        }
    }

    /// Where the document stands on the disk. Nothing is materialised.
    ///
    /// # Errors
    /// As [`Self::heads`].
    pub fn state(&self) -> Result<crate::history::DocumentState, Error> {
        self.database.reader().document(self.id())?.ok_or(Error::NotFound(self.id()))
    }

    /// Up to `count` of its changes after the position `after`, in the order in which they were logged here. Nothing
    /// is materialised.
    ///
    /// # Errors
    /// [`Error::History`] when the store cannot be read.
    pub fn history(&self, after: Lsn, count: usize) -> Result<Vec<HistoryEntry>, Error> {
        let reader = self.database.reader();
        let mut entries = Vec::new();
        for (lsn, row) in reader.index(self.id(), after)? {
            if entries.len() >= count {
                break;
            }
            let IndexRow::Change { .. } = row else { continue };
            let Some(Record::Change(header, bytes)) = reader.record(lsn)? else { continue };
            let change = Change::parse(bytes)?;
            entries.push(HistoryEntry {
                lsn,
                hash: change.hash(),
                actor: change.actor().clone(),
                seq: change.seq(),
                deps: change.deps().to_vec(),
                op_count: change.op_count(),
                time: change.time(),
                received_ms: header.received_ms,
                message: change.message().map(str::to_owned),
                origin: reader.origin_of(&header)?,
            });
        }
        Ok(entries)
    }

    /// Hides the document, here and on every replica. Its history is kept, and so are edits made elsewhere meanwhile.
    ///
    /// # Errors
    /// As [`Self::change`]; [`Error::Deleted`] when it is deleted already.
    pub fn delete(&self) -> Result<Commit, Error> {
        self.state_that(LifecycleKind::Deleted, By::default())
    }

    /// [`Self::delete`], on behalf of somebody who may not delete everything.
    ///
    /// # Errors
    /// As [`Self::delete`]; [`Error::Denied`].
    #[cfg(feature = "web")]
    pub(crate) fn delete_as(&self, judge: Option<&dyn Judge>) -> Result<Commit, Error> {
        let Some(judge) = judge else { return self.delete() };
        let name = self.state()?.name;
        let place = Place { document: self.id(), collection: &self.collection, name: name.as_deref() };
        match self.database.judge_deletion(judge, place)? {
            Ok(ruling) => self.state_that(LifecycleKind::Deleted, by(judge, ruling)),
            Err(denial) => {
                let told = denial.told.clone();
                let what = Refused::Statement(LifecycleKind::Deleted, None);
                self.database.note_refusal(judge, refused_at(judge, place, Deed::Delete, what, denial))?;
                Err(Error::Denied(told))
            }
        }
    }

    /// Makes a deleted document visible again.
    ///
    /// # Errors
    /// As [`Self::change`]; [`Error::Application`] when it is not deleted.
    pub fn restore(&self) -> Result<Commit, Error> {
        self.state_that(LifecycleKind::Restored, By::default())
    }

    fn state_that(&self, kind: LifecycleKind, by: By) -> Result<Commit, Error> {
        let room = self.database.reserve()?;
        let reader = self.database.reader();
        let row = reader.row(self.id())?.ok_or(Error::NotFound(self.id()))?;
        let visible = crate::history::fold::is_visible(&row);
        match kind {
            _ if crate::history::fold::is_withheld(&row) => return Err(Error::Withheld(self.id())),
            LifecycleKind::Deleted if !visible => return Err(Error::Deleted(self.id())),
            LifecycleKind::Restored if visible => {
                return Err(Error::Application(format!("document {} is not deleted", self.id())));
            }
            _ => {}
        }
        let known = row.creation.iter().chain(row.winner.iter()).map(|statement| statement.lamport).max();
        let statement = Lifecycle {
            document: self.id(),
            collection: self.collection.clone(),
            kind,
            rank: CreationRank::Asked,
            lamport: known.unwrap_or(0).saturating_add(1),
            author: self.database.node(),
            actor: Some(self.database.actor(self.id(), Lsn::ZERO)?),
            time_ms: now_ms(),
            heads: heads_within_bound(crate::history::fold::heads_of(&row)),
            name: None,
        };
        Database::send(room, self.id(), vec![statement.encode()], Vec::new(), None, by)
    }
}

/// The heads a statement names: what was seen, as far as there is room for it.
fn heads_within_bound(heads: Heads) -> Heads {
    const SEEN_MAX: usize = 64;
    if heads.as_slice().len() <= SEEN_MAX { heads } else { Heads::new(heads.as_slice()[..SEEN_MAX].to_vec()) }
}
