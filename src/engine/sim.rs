//! The writer without its thread: for simulations that run whole clusters in one thread.
//!
//! [`Engine`] owns what a [`Database`](super::Database) owns and does what it and its driver do, but only when it is
//! told to: [`Engine::change`] and its like edit and queue, [`Engine::step`] makes one commit group of what waits,
//! writes it and answers. Time is an argument. Everything it calls is the code that a database runs.

mod beside;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde_json::Value;
use tokio::sync::oneshot;

use super::commit;
use super::committer::{Committed, Committer, land};
use super::core::{Admitted, By, Clash, Core, Incoming, Input};
use super::database::{Stepped, actor_of};
use super::driver::Room;
use super::refusal::Audit;
use super::snapshots;
use super::working_set::{InFlight, WorkingSet};
use crate::document::{Change, Edit, EditOptions, Path, View, genesis};
use crate::error::Error;
use crate::history::fold::{heads_of, is_visible};
use crate::history::{Opened, Reader, open};
use crate::id::{ActorId, ChangeHash, CollectionName, DocumentId, Heads, LogCursor, Lsn, NodeId};
use crate::limits::Limits;
use crate::log::record::{CreationRank, Lifecycle, LifecycleKind};
use crate::log::{Durability, Log, RecoverOptions, Storage};

pub use self::beside::Turn;
pub use crate::mutant::{Mutant, plant, seed_randomness, set_wall_clock, wait_for_writer};

/// How an engine is opened.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Whose it is.
    pub node: NodeId,
    /// What a commit waits for.
    pub durability: Durability,
    /// Every bound.
    pub limits: Limits,
    /// What may be lost.
    pub recover: RecoverOptions,
    /// Makes its actors its own; a new one for every opening.
    pub nonce: [u8; 32],
}

/// Names something that was given to the writer.
pub type Ticket = u64;

/// What became of one thing that was given to the writer.
#[derive(Debug)]
pub struct Answer {
    /// Which.
    pub ticket: Ticket,
    /// What became of it, and the footer that covers it.
    pub outcome: Result<(Admitted, Lsn), Error>,
}

/// What one step did.
#[derive(Debug, Default)]
pub struct Report {
    /// An answer for each input that was taken, in order.
    pub answers: Vec<Answer>,
    /// Records were appended.
    pub appended: bool,
    /// Documents that the step was about.
    pub documents: Vec<DocumentId>,
    /// Documents whose snapshot is due.
    pub snapshots_due: Vec<DocumentId>,
}

impl Report {
    /// Answers whoever asked.
    fn answer(
        &mut self,
        ticket: Ticket,
        asked: Option<(oneshot::Sender<commit::Answer>, Room)>,
        outcome: commit::Answer,
    ) {
        match asked {
            Some((asker, room)) => {
                drop(room);
                // Nobody may be waiting any more.
                let _ = asker.send(outcome);
            }
            None => self.answers.push(Answer { ticket, outcome }),
        }
    }
}

struct Waiting {
    ticket: Ticket,
    input: Input,
    in_flight: Option<InFlight>,
    /// Who asked through the database beside this, and the room that this takes there.
    asked: Option<(oneshot::Sender<commit::Answer>, Room)>,
}

/// A writer that is stepped.
pub struct Engine {
    committer: Committer,
    setup: Setup,
    queue: VecDeque<Waiting>,
    queued_bytes: usize,
    tickets: Ticket,
    failure: Option<String>,
    disk_full: bool,
    // Protects what was found not to apply until the next step: reading finds it.
    found: Mutex<Vec<Input>>,
    /// A database over the same store, for what is done with one.
    beside: Option<Stepped>,
    /// Whoever used it in [`Self::serve`] is done.
    work_is_over: bool,
}

impl Engine {
    /// Opens the store in `storage`.
    ///
    /// # Errors
    /// As [`DatabaseBuilder::open`](super::DatabaseBuilder::open).
    pub fn open(storage: Arc<dyn Storage>, setup: Setup) -> Result<(Self, Opened), Error> {
        let opened = open(&*storage, setup.recover, &mut |_, _| {})?;
        let reader = Reader::new(storage.clone(), setup.node, &opened, &setup.limits);
        let committer = Committer {
            core: Core::new(reader.clone(), setup.limits.clone(), &opened.recovered)?,
            log: Log::new(storage, setup.durability, &opened.recovered),
            reader,
            working_set: Arc::new(WorkingSet::new(setup.limits.memory_budget)),
        };
        let engine = Self {
            committer,
            setup,
            queue: VecDeque::new(),
            queued_bytes: 0,
            tickets: 0,
            failure: None,
            disk_full: false,
            found: Mutex::default(),
            beside: None,
            work_is_over: false,
        };
        Ok((engine, opened))
    }

    /// What is committed.
    #[must_use]
    pub fn reader(&self) -> &Reader {
        &self.committer.reader
    }

    /// Inputs that wait for the writer, and their bytes.
    #[must_use]
    pub fn queued(&self) -> (usize, usize) {
        (self.queue.len(), self.queued_bytes)
    }

    /// Bytes of changes that wait for a dependency.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.committer.core.pending_bytes()
    }

    /// Why nothing more is written, if so.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Whether an input is taken now.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::ReadOnly`], [`Error::StorageFull`]: why none is.
    pub fn check_room(&self) -> Result<(), Error> {
        if let Some(why) = &self.failure {
            return Err(Error::ReadOnly(why.clone()));
        }
        if self.disk_full {
            return Err(Error::StorageFull);
        }
        let limits = &self.setup.limits;
        if self.queue.len() >= limits.write_queue_items || self.queued_bytes >= limits.write_queue_bytes {
            return Err(Error::Busy);
        }
        Ok(())
    }

    fn push(&mut self, input: Input, in_flight: Option<InFlight>) -> Ticket {
        self.tickets += 1;
        self.queued_bytes += input.bytes();
        self.queue.push_back(Waiting { ticket: self.tickets, input, in_flight, asked: None });
        self.tickets
    }

    fn actor(&self, document: DocumentId, voided: Lsn) -> Result<ActorId, Error> {
        actor_of(&self.setup.nonce, document, voided)
    }

    /// Keeps what cannot be applied for the next step. Until then the document is not shown.
    fn tell_void(&self, input: Input) -> Result<(), Error> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).push(input);
        Err(Error::Busy)
    }

    /// Creates the document `id`, or the one called `name`, that holds `value`. `time_ms` is the wall clock.
    ///
    /// # Errors
    /// As [`Collection::create`](super::Collection::create).
    pub fn create(
        &mut self,
        collection: &CollectionName,
        id: DocumentId,
        name: Option<&str>,
        value: &Value,
        time_ms: u64,
    ) -> Result<(Ticket, Option<ChangeHash>), Error> {
        self.check_room()?;
        let mut view = View::new();
        let change = match name {
            Some(name) => {
                let change = genesis(collection, name, value)?;
                view.apply(std::slice::from_ref(&change))?;
                Some(change)
            }
            None => {
                let options = EditOptions {
                    actor: self.actor(id, Lsn::ZERO)?,
                    time: (time_ms / 1000).cast_signed(),
                    message: None,
                };
                view.edit(options, |edit| edit.put(Path::root(), value).map_err(Error::from))?.1
            }
        };
        let statement = Lifecycle {
            document: id,
            collection: collection.clone(),
            kind: LifecycleKind::Created,
            rank: CreationRank::Asked,
            lamport: 1,
            author: self.setup.node,
            actor: None,
            time_ms,
            heads: Heads::default(),
            name: name.map(str::to_owned),
        };
        let cell = self.committer.working_set.cell(id);
        let in_flight = WorkingSet::in_flight(&cell);
        self.committer.working_set.adopt(&cell, view, change.as_ref())?;
        let hash = change.as_ref().map(Change::hash);
        let (statements, changes) = (vec![statement.encode()], change.into_iter().collect());
        let ticket = self.push(Input::Local { document: id, statements, changes, by: By::default() }, Some(in_flight));
        Ok((ticket, hash))
    }

    /// Edits a document; `None` when the edits did nothing.
    ///
    /// # Errors
    /// As [`DocHandle::change`](super::DocHandle::change).
    pub fn change(
        &mut self,
        document: DocumentId,
        time_ms: u64,
        edits: impl FnOnce(&mut Edit<'_>) -> Result<(), Error>,
    ) -> Result<Option<(Ticket, ChangeHash)>, Error> {
        self.check_room()?;
        let cell = self.committer.working_set.cell(document);
        if !cell.is_visible(&self.committer.reader)? {
            return Err(Error::Deleted(document));
        }
        let tell = |void| self.tell_void(void);
        let made = self.committer.working_set.with_view(&cell, &self.committer.reader, &tell, |view, readable| {
            let actor = self.actor(document, readable.newest())?;
            let options = EditOptions { actor, time: (time_ms / 1000).cast_signed(), message: None };
            let ((), change) = view.edit(options, edits)?;
            Ok(change.map(|change| (change, WorkingSet::in_flight(&cell))))
        })?;
        let Some((change, in_flight)) = made else { return Ok(None) };
        let hash = change.hash();
        let input = Input::Local { document, statements: Vec::new(), changes: vec![change], by: By::default() };
        Ok(Some((self.push(input, Some(in_flight)), hash)))
    }

    /// Deletes or restores a document.
    ///
    /// # Errors
    /// As [`DocHandle::delete`](super::DocHandle::delete) and its opposite.
    pub fn state_that(&mut self, document: DocumentId, kind: LifecycleKind, time_ms: u64) -> Result<Ticket, Error> {
        self.check_room()?;
        let row = self.committer.reader.row(document)?.ok_or(Error::NotFound(document))?;
        if is_visible(&row) != (kind == LifecycleKind::Deleted) {
            return Err(Error::Deleted(document));
        }
        let collection = self.committer.reader.names().collection(row.collection)?;
        let known = row.creation.iter().chain(row.winner.iter()).map(|statement| statement.lamport).max();
        let heads = heads_of(&row);
        let seen = heads.as_slice().len().min(64);
        let statement = Lifecycle {
            document,
            collection,
            kind,
            rank: CreationRank::Asked,
            lamport: known.unwrap_or(0).saturating_add(1),
            author: self.setup.node,
            actor: Some(self.actor(document, Lsn::ZERO)?),
            time_ms,
            heads: Heads::new(heads.as_slice()[..seen].to_vec()),
            name: None,
        };
        let input =
            Input::Local { document, statements: vec![statement.encode()], changes: Vec::new(), by: By::default() };
        Ok(self.push(input, None))
    }

    /// Runs `use_view` on the materialised document.
    ///
    /// # Errors
    /// As [`DocHandle::with_view`](super::DocHandle::with_view).
    pub fn with_view<R>(
        &self,
        document: DocumentId,
        use_view: impl FnOnce(&mut View) -> Result<R, Error>,
    ) -> Result<R, Error> {
        self.committer.working_set.with_view(
            &self.committer.working_set.cell(document),
            &self.committer.reader,
            &|void| self.tell_void(void),
            |view, _| use_view(view),
        )
    }

    /// Offers rows from a peer or an import.
    ///
    /// # Errors
    /// [`Error::Busy`] where a database would wait; [`Error::ReadOnly`], [`Error::StorageFull`].
    pub fn admit(
        &mut self,
        clash: Clash,
        rows: Vec<Incoming>,
        via: Option<NodeId>,
        cursor: Option<LogCursor>,
    ) -> Result<Ticket, Error> {
        self.check_room()?;
        Ok(self.push(Input::Admit { rows, via, cursor, clash, audit: Audit::default() }, None))
    }

    /// Stores how far a peer's log was followed.
    ///
    /// # Errors
    /// As [`Self::admit`].
    pub fn store_cursor(&mut self, peer: NodeId, cursor: LogCursor) -> Result<Ticket, Error> {
        self.check_room()?;
        Ok(self.push(Input::StoreCursor { peer, cursor }, None))
    }

    /// Saves a document's snapshot, if it can be saved now.
    ///
    /// # Errors
    /// [`Error`] when the document cannot be read or built.
    pub fn save_snapshot(&mut self, document: DocumentId) -> Result<bool, Error> {
        self.check_room()?;
        let input = snapshots::save(&self.committer.reader, &self.committer.working_set, document)?;
        let saved = input.is_some();
        if let Some(input) = input {
            self.push(input, None);
        }
        Ok(saved)
    }

    /// Once a second: what need not be done for every group.
    pub fn tick(&mut self) {
        if let Err(error) = self.committer.log.sync_mark() {
            self.failure.get_or_insert(error.to_string());
        }
        if let Ok(Some(free)) = self.committer.reader.storage().free_bytes() {
            self.disk_full = free < self.setup.limits.disk_free_min;
        }
    }

    /// Closes the log in order.
    ///
    /// # Errors
    /// [`Error`] when the disk fails.
    pub fn close(mut self) -> Result<(), Error> {
        Ok(self.committer.log.close().map_err(crate::history::HistoryError::from)?)
    }

    /// Makes one commit group of what waits, writes it, and answers.
    pub fn step(&mut self, now_ms: u64, now: Instant) -> Report {
        let found = std::mem::take(self.found.get_mut().unwrap_or_else(PoisonError::into_inner));
        for void in found {
            self.push(void, None);
        }
        self.take_asked();
        self.commit_queued(now_ms, now)
    }

    fn commit_queued(&mut self, now_ms: u64, now: Instant) -> Report {
        let batch = self.drain();
        let mut report = Report::default();
        if let Some(why) = &self.failure {
            for waiting in batch {
                drop(waiting.in_flight);
                report.answer(waiting.ticket, waiting.asked, Err(Error::ReadOnly(why.clone())));
            }
            return report;
        }
        let mut documents: Vec<DocumentId> = batch.iter().flat_map(|waiting| documents_in(&waiting.input)).collect();
        documents.sort_unstable();
        documents.dedup();
        let (inputs, waiting): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .map(|waiting| (waiting.input, (waiting.ticket, waiting.in_flight, waiting.asked)))
            .unzip();
        report.documents = documents;
        match self.committer.commit(now_ms, now, inputs) {
            Ok(Committed { end, appended, documents, outcomes, snapshots_due }) => {
                (report.appended, report.snapshots_due) = (appended, snapshots_due);
                if let Some(beside) = self.beside.as_ref().filter(|_| appended) {
                    beside.tell(end, documents);
                }
                for ((ticket, in_flight, asked), outcome) in waiting.into_iter().zip(outcomes) {
                    land(in_flight, &outcome);
                    report.answer(ticket, asked, outcome);
                }
            }
            Err(error) => {
                self.failure = Some(error.to_string());
                self.committer.working_set.discard_views();
                for (ticket, in_flight, asked) in waiting {
                    drop(in_flight);
                    report.answer(ticket, asked, Err(Error::from(error.clone())));
                }
            }
        }
        report
    }

    fn drain(&mut self) -> Vec<Waiting> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < self.setup.limits.group_records_max
            && bytes < self.setup.limits.group_bytes_max
            && let Some(waiting) = self.queue.pop_front()
        {
            bytes += waiting.input.bytes();
            batch.push(waiting);
        }
        self.queued_bytes -= bytes;
        batch
    }
}

fn documents_in(input: &Input) -> Vec<DocumentId> {
    match input {
        Input::Local { document, .. } | Input::Snapshot { document, .. } | Input::Void { document, .. } => {
            vec![*document]
        }
        Input::TakeBack(taken) => vec![taken.document],
        Input::Withhold { documents, .. } => documents.clone(),
        Input::Admit { rows, .. } => rows.iter().map(|row| row.document).collect(),
        Input::StoreCursor { .. } | Input::Consume { .. } | Input::Hold { .. } | Input::AdoptStorageId(_) => Vec::new(),
    }
}
