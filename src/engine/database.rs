//! The database: a store, its writer, and everything that hangs on them.

mod attached;
#[cfg(feature = "sim")]
mod stepped;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::{broadcast, watch};

pub(crate) use self::attached::{Attached, WeakDatabase};
#[cfg(feature = "sim")]
pub(super) use self::stepped::Stepped;
use super::admission::Trials;
use super::collection::Collection;
use super::commit::{Answer, Commit, block_on};
use super::committer::Committer;
use super::core::{Admitted, By, Clash, Core, Incoming, Input};
use super::driver::{Queue, Room, Writer};
use super::handle::DocHandle;
use super::refusal::Audit;
use super::snapshots::Snapshots;
use super::working_set::{InFlight, WorkingSet};
use crate::document::Change;
use crate::error::Error;
use crate::history::{Reader, Verification, open, verify};
use crate::id::{ActorId, CollectionName, DocumentId, LogCursor, Lsn, NodeId, StorageId, first, random_bytes};
use crate::limits::{Limits, queues};
use crate::log::{Durability, Log, RecoverOptions, Storage};

/// How a database is opened. Every setting has a default.
pub struct DatabaseBuilder {
    place: Place,
    node: Option<NodeId>,
    durability: Durability,
    limits: Limits,
    create: bool,
    recover: RecoverOptions,
    progress: Box<dyn FnMut(u64, Lsn) + Send>,
}

enum Place {
    #[cfg(feature = "fjall")]
    Directory(std::path::PathBuf),
    Storage(Arc<dyn Storage>),
}

impl DatabaseBuilder {
    fn new(place: Place) -> Self {
        Self {
            place,
            node: None,
            durability: Durability::Synced,
            limits: Limits::DEFAULT,
            create: true,
            recover: RecoverOptions::default(),
            progress: Box::new(|_, _| {}),
        }
    }

    /// Who writes here: the node's public key. Default: a random name, for a database that never meets another.
    #[must_use]
    pub fn node(mut self, node: NodeId) -> Self {
        self.node = Some(node);
        self
    }

    /// What a commit waits for. Default: [`Durability::Synced`].
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Bytes of materialised documents kept in memory. Default: 256 MiB. More means fewer loads.
    #[must_use]
    pub fn memory_budget(mut self, bytes: usize) -> Self {
        self.limits.memory_budget = bytes;
        self
    }

    /// All bounds at once. Default: [`Limits::DEFAULT`].
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Whether to make the store when it is absent. Default: yes.
    #[must_use]
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// Goes on, under a new log id, when acknowledged records are missing. Default: no.
    #[must_use]
    pub fn accept_tail_loss(mut self, accept: bool) -> Self {
        self.recover.accept_tail_loss = accept;
        self
    }

    /// Opens a copy of a data directory, under a new log id. Default: no.
    #[must_use]
    pub fn restored(mut self, restored: bool) -> Self {
        self.recover.restored = restored;
        self
    }

    /// Is told how a rebuild of the projections goes: records done, and the last position.
    #[must_use]
    pub fn on_rebuild(mut self, progress: impl FnMut(u64, Lsn) + Send + 'static) -> Self {
        self.progress = Box::new(progress);
        self
    }

    /// Opens the database: recovers the log, checks its tail, and starts the writer.
    ///
    /// # Errors
    /// [`Error::Directory`] when the directory cannot be used, [`Error::History`] when acknowledged data is missing or
    /// damaged. Nothing was changed then.
    ///
    /// # Cost
    /// Blocks; reads at most `Limits::checkpoint_records` records.
    pub fn open(mut self) -> Result<Database, Error> {
        let span = tracing::info_span!("recovery").entered();
        let node = self.node.unwrap_or_else(|| NodeId(random_bytes()));
        let (storage, hold): (Arc<dyn Storage>, Hold) = match self.place {
            #[cfg(feature = "fjall")]
            Place::Directory(path) => {
                let options = crate::log::OpenDirectory { create: self.create, restored: self.recover.restored };
                let directory = crate::log::Directory::open(&path, options)?;
                let storage =
                    crate::log::FjallStorage::open_accepting(directory.path(), self.recover.accept_tail_loss)?;
                (Arc::new(storage), Some(directory))
            }
            Place::Storage(storage) => (storage, Hold::default()),
        };
        let opened = open(&*storage, self.recover, &mut self.progress)?;
        #[cfg(feature = "fjall")]
        if let Some(directory) = hold.as_ref().filter(|directory| directory.restored()) {
            directory.accept()?;
        }
        drop(span);
        let tail = opened.recovered.tail;
        tracing::info!(log = %tail.log_id, tail = %tail.lsn, checked = opened.checked, rebuilt = opened.rebuilt, "store open");
        let reader = Reader::new(storage.clone(), node, &opened, &self.limits);
        let working_set = Arc::new(WorkingSet::new(self.limits.memory_budget));
        let trials = Trials::open(&reader, &self.limits)?;
        let (tail_sender, tail_receiver) = watch::channel(tail);
        let (snapshots, idle) = Snapshots::new();
        let committer = Committer {
            core: Core::new(reader.clone(), self.limits.clone(), &opened.recovered)?,
            log: Log::new(storage, self.durability, &opened.recovered),
            reader: reader.clone(),
            working_set: working_set.clone(),
        };
        let (changed, _) = broadcast::channel(queues::CHANGED_GROUPS);
        let writer = Writer {
            committer,
            snapshots: snapshots.clone(),
            tail: tail_sender,
            changed: changed.clone(),
            limits: self.limits.clone(),
        };
        let thread_failed = |error: std::io::Error| crate::log::StorageError::io("start a thread", &error);
        let (queue, writer) = writer.start().map_err(thread_failed)?;
        let saver = idle.start(reader.clone(), working_set.clone(), queue.clone()).map_err(thread_failed)?;
        let inner = Arc::new(Inner {
            reader,
            queue: Mutex::new(Some(queue)),
            working_set,
            trials,
            #[cfg(any(feature = "quic", feature = "web"))]
            turns: super::turns::Turns::new(&self.limits),
            snapshots,
            tail: tail_receiver,
            changed,
            limits: self.limits,
            durability: self.durability,
            nonce: random_bytes(),
            threads: Mutex::new(Some((saver, writer))),
            renewed: opened.recovered.renewed,
            attached: OnceLock::new(),
            _hold: hold,
        });
        Ok(Database { _owner: Some(Arc::new(Owner(inner.clone()))), inner })
    }
}

#[cfg(feature = "fjall")]
type Hold = Option<crate::log::Directory>;
#[cfg(not(feature = "fjall"))]
type Hold = ();

/// An open database. Cheap to clone; the last clone closes it.
#[derive(Clone)]
pub struct Database {
    inner: Arc<Inner>,
    _owner: Option<Arc<Owner>>,
}

/// Those who keep the database open: when the last is gone, it closes.
struct Owner(Arc<Inner>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.close();
    }
}

struct Inner {
    reader: Reader,
    // Protects the one way to end the writer: when no queue is left, it ends.
    queue: Mutex<Option<Queue>>,
    working_set: Arc<WorkingSet>,
    trials: Trials,
    #[cfg(any(feature = "quic", feature = "web"))]
    turns: Arc<super::turns::Turns>,
    snapshots: Snapshots,
    tail: watch::Receiver<LogCursor>,
    changed: broadcast::Sender<Arc<[DocumentId]>>,
    limits: Limits,
    durability: Durability,
    /// Makes this process's actors its own.
    nonce: [u8; 32],
    threads: Mutex<Option<(JoinHandle<()>, JoinHandle<()>)>>,
    renewed: bool,
    attached: OnceLock<Arc<dyn Attached>>,
    _hold: Hold,
}

impl Inner {
    fn close(&self) {
        if let Some(attached) = self.attached.get() {
            attached.close();
        }
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((saver, writer)) = threads else { return };
        self.snapshots.stop();
        // Neither thread panics on anything that a store may hold; if one did, there is nothing more to end.
        let _ = saver.join();
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        let _ = writer.join();
    }
}

/// How the database is doing.
#[derive(Debug, Clone)]
pub struct Status {
    /// Whose it is.
    pub node: NodeId,
    /// The last durable footer.
    pub tail: LogCursor,
    /// Under which name automerge-repo's clients know the store.
    pub storage_id: StorageId,
    /// What a commit waits for.
    pub durability: Durability,
    /// Documents materialised now.
    pub materialized: usize,
    /// About how many bytes they take.
    pub materialized_bytes: usize,
    /// Views built since the database was opened.
    pub materializations: u64,
    /// Documents on which the changes of untrusted peers are tried now.
    pub trials: usize,
    /// Trial views built since the database was opened.
    pub trial_materializations: u64,
    /// About how many bytes they take.
    pub trials_bytes: usize,
    /// Changes of untrusted peers that were refused since the database was opened, because they cannot be applied.
    pub quarantined: u64,
    /// Authors that nodes said were another node's, without its signature and with a false one, since it was opened.
    pub unproven_origins: [u64; 2],
    /// Snapshots made since the database was opened because a client waited for them.
    pub awaited_snapshots: u64,
    /// Of the documents that are materialised now, those of which some changes cannot be applied and are not shown.
    pub degraded: usize,
    /// Why nothing more is written, if so.
    pub failure: Option<String>,
    /// The disk is almost full.
    pub disk_full: bool,
}

impl Database {
    /// Opens, or makes, the database in the directory `path`.
    #[cfg(feature = "fjall")]
    #[must_use]
    pub fn builder(path: impl Into<std::path::PathBuf>) -> DatabaseBuilder {
        DatabaseBuilder::new(Place::Directory(path.into()))
    }

    /// Opens the database in the directory `path` with every setting at its default.
    ///
    /// # Errors
    /// As [`DatabaseBuilder::open`].
    #[cfg(feature = "fjall")]
    pub fn open(path: impl Into<std::path::PathBuf>) -> Result<Self, Error> {
        Self::builder(path).open()
    }

    /// Opens a database on another disk: one in memory, say.
    #[must_use]
    pub fn on(storage: impl Storage + 'static) -> DatabaseBuilder {
        DatabaseBuilder::new(Place::Storage(Arc::new(storage)))
    }

    /// The collection called `name`. It exists once a document is in it.
    ///
    /// # Errors
    /// [`Error::Id`] when that is no name for a collection.
    pub fn collection(&self, name: &str) -> Result<Collection, Error> {
        Ok(Collection::new(self.clone(), CollectionName::new(name)?))
    }

    /// The collections that hold, or held, a document, by name.
    ///
    /// # Errors
    /// [`Error::History`] when the store cannot be read.
    pub fn collections(&self) -> Result<Vec<CollectionName>, Error> {
        Ok(self.reader().collections()?.into_iter().map(|(_, name)| name).collect())
    }

    /// The document `id`, wherever it is.
    ///
    /// # Errors
    /// [`Error::NotFound`] when nobody created it here; [`Error::History`] when the store cannot be read.
    pub fn find(&self, id: DocumentId) -> Result<DocHandle, Error> {
        let state = self.reader().document(id)?.ok_or(Error::NotFound(id))?;
        Ok(DocHandle::new(self.clone(), id, state.collection))
    }

    /// What is committed, for those who follow the log.
    #[must_use]
    pub fn reader(&self) -> &Reader {
        &self.inner.reader
    }

    /// The log's tail as it moves. A receiver that falls behind sees the newest position only.
    #[must_use]
    pub fn tail(&self) -> watch::Receiver<LogCursor> {
        self.inner.tail.clone()
    }

    /// The documents that each commit group from now on is about, once it is durable. A receiver that falls far behind
    /// is told that it missed some, and may look at all it cares for.
    #[must_use]
    pub fn changed_documents(&self) -> broadcast::Receiver<Arc<[DocumentId]>> {
        self.inner.changed.subscribe()
    }

    /// Every bound in force.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// Whose database it is.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.reader().node()
    }

    /// Whether this opening gave the log a new id, since its tail was lost or it is a restored copy.
    #[must_use]
    pub fn log_renewed(&self) -> bool {
        self.inner.renewed
    }

    /// The name under which automerge-repo's clients know this store. It is on the disk, and changes with the log id.
    #[must_use]
    pub fn storage_id(&self) -> StorageId {
        self.reader().storage_id()
    }

    /// Takes over the name of another automerge-repo store, whose documents are to be imported: clients then go on
    /// where they left off with it. Only a store in which nothing was ever logged can; any other keeps its own. Answers
    /// with the name it has now, which is durable.
    ///
    /// # Errors
    /// As [`Self::admit`].
    ///
    /// # Cancel safety
    /// As [`Self::admit`].
    pub async fn adopt_storage_id(&self, id: StorageId) -> Result<StorageId, Error> {
        if self.storage_id() != id {
            self.ask(Input::AdoptStorageId(id)).await?;
        }
        Ok(self.storage_id())
    }

    /// How it is doing.
    #[must_use]
    pub fn status(&self) -> Status {
        let (materialized, materialized_bytes) = self.inner.working_set.usage();
        let (trials, trials_bytes) = self.inner.trials.usage();
        let queue = self.queue().ok();
        Status {
            node: self.node(),
            tail: self.reader().tail(),
            storage_id: self.storage_id(),
            durability: self.inner.durability,
            materialized,
            materialized_bytes,
            materializations: self.inner.working_set.materialized(),
            trials,
            trial_materializations: self.inner.trials.materialized(),
            trials_bytes,
            awaited_snapshots: self.inner.snapshots.awaited(),
            degraded: self.inner.working_set.degraded(),
            quarantined: self.inner.trials.refused(),
            unproven_origins: self.inner.trials.unproven(),
            failure: queue.as_ref().and_then(|queue| queue.state().failure().map(str::to_owned)),
            disk_full: queue.is_some_and(|queue| queue.state().disk_full()),
        }
    }

    /// Offers rows from a peer or an import to the log. Resolves once what was taken is durable; `cursor` is stored
    /// with it if nothing had to wait.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::StorageFull`], [`Error::Closed`]. What is wrong with single rows is in the answer.
    ///
    /// # Cancel safety
    /// Dropped while it waits for room, nothing happens; dropped later, the rows may be taken unheard.
    pub async fn admit(
        &self,
        rows: Vec<Incoming>,
        via: Option<NodeId>,
        cursor: Option<LogCursor>,
    ) -> Result<Admitted, Error> {
        self.admit_with(Clash::KeepFirst, rows, via, cursor).await
    }

    /// [`Self::admit`], with a rule for changes whose author's number is taken by another.
    ///
    /// # Errors
    /// As [`Self::admit`].
    ///
    /// # Cancel safety
    /// As [`Self::admit`].
    pub async fn admit_with(
        &self,
        clash: Clash,
        rows: Vec<Incoming>,
        via: Option<NodeId>,
        cursor: Option<LogCursor>,
    ) -> Result<Admitted, Error> {
        self.admit_audited(clash, rows, via, cursor, Audit::default()).await
    }

    /// [`Self::admit`], for a thread that may block.
    ///
    /// # Errors
    /// As [`Self::admit`].
    pub fn admit_blocking(&self, rows: Vec<Incoming>) -> Result<Admitted, Error> {
        block_on(self.admit(rows, None, None))
    }

    /// Stores how far a peer's log was followed, when no row comes with it.
    ///
    /// # Errors
    /// As [`Self::admit`].
    ///
    /// # Cancel safety
    /// As [`Self::admit`].
    pub async fn store_cursor(&self, peer: NodeId, cursor: LogCursor) -> Result<(), Error> {
        self.ask(Input::StoreCursor { peer, cursor }).await.map(|_| ())
    }

    pub(super) async fn ask(&self, input: Input) -> Result<Admitted, Error> {
        let queue = self.queue()?;
        let answer = queue.send_when_free(input).await?;
        drop(queue);
        #[cfg(feature = "sim")]
        if crate::mutant::waits_for_writer() {
            return block_on(answer).map_err(|_| Error::Closed)?.map(|(admitted, _)| admitted);
        }
        answer.await.map_err(|_| Error::Closed)?.map(|(admitted, _)| admitted)
    }

    /// Has it written down which changes of a document cannot be applied, and waits for the disk.
    pub(super) fn tell_void(&self, input: Input) -> Result<(), Error> {
        block_on(self.ask(input)).map(|_| ())
    }

    /// [`Self::tell_void`] that does not wait for room in the queue, for somebody who holds some: else he might wait for
    /// himself.
    pub(super) fn tell_void_now(&self, input: Input) -> Result<(), Error> {
        let queue = self.queue()?;
        let answer = queue.send(queue.reserve()?, input, None)?;
        drop(queue);
        let answer: Answer = block_on(answer).map_err(|_| Error::Closed)?;
        answer.map(|_| ())
    }

    /// Checks the whole store against itself; see [`verify`]. Reading and writing go on meanwhile.
    ///
    /// # Errors
    /// [`Error::History`] when the disk fails.
    pub fn verify(&self, deep: bool, progress: &mut dyn FnMut(&'static str, u64)) -> Result<Verification, Error> {
        Ok(verify(self.reader(), deep, progress)?)
    }

    /// Closes the database: everything sent to the writer is answered, then its thread ends. Later writes fail with
    /// [`Error::Closed`].
    pub fn close(&self) {
        self.inner.close();
    }

    /// Waits until a document is saved whose snapshot is far behind; at once, when it is not, or too many wait.
    ///
    /// # Cancel safety
    /// Dropped, it is saved all the same.
    #[cfg(feature = "web")]
    pub(crate) async fn await_snapshot(&self, document: DocumentId) {
        self.inner.snapshots.await_save(document).await;
    }

    pub(super) fn trials(&self) -> &Trials {
        &self.inner.trials
    }

    #[cfg(any(feature = "quic", feature = "web"))]
    pub(super) fn turns(&self) -> &Arc<super::turns::Turns> {
        &self.inner.turns
    }

    pub(super) fn working_set(&self) -> &Arc<WorkingSet> {
        &self.inner.working_set
    }

    /// The author under which this process edits a document: its own in each document and each process, since an
    /// author's changes must be numbered without a gap and no number may be used twice.
    ///
    /// `since` is the newest record by which changes of the document became void or were withdrawn, zero for none: it may
    /// have taken changes of the author before with it, whose numbers stay taken.
    pub(super) fn actor(&self, document: DocumentId, since: Lsn) -> Result<ActorId, Error> {
        actor_of(&self.inner.nonce, document, since)
    }

    /// Refuses a change that the log would refuse, before anybody depends on it.
    pub(super) fn check_size(&self, document: DocumentId, change: &Change) -> Result<(), Error> {
        let (bytes, ops) = (change.bytes().len(), change.op_count());
        let limits = self.limits();
        if bytes <= limits.change_bytes_max && ops <= limits.change_ops_max {
            return Ok(());
        }
        let (bytes_max, ops_max) = (limits.change_bytes_max, limits.change_ops_max);
        let why = format!(
            "a change of {bytes} bytes and {ops} operations is above the bounds of {bytes_max} and {ops_max}; make it in parts"
        );
        Err(Error::Refused { document, why })
    }

    /// Takes room for one edit, or says why there is none.
    pub(super) fn reserve(&self) -> Result<(Queue, Room), Error> {
        let queue = self.queue()?;
        let room = queue.reserve()?;
        Ok((queue, room))
    }

    /// Sends an edit for which there is room.
    pub(super) fn send(
        (queue, room): (Queue, Room),
        document: DocumentId,
        statements: Vec<Vec<u8>>,
        changes: Vec<Change>,
        in_flight: Option<InFlight>,
        by: By,
    ) -> Result<Commit, Error> {
        let change = changes.last().map(Change::hash);
        let answer = queue.send(room, Input::Local { document, statements, changes, by }, in_flight)?;
        Ok(Commit::waiting(answer, change))
    }

    pub(super) fn queue(&self) -> Result<Queue, Error> {
        self.inner.queue.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(Error::Closed)
    }
}

/// The author in `document` of whoever drew `nonce`, since the record that last took changes out of view.
pub(super) fn actor_of(nonce: &[u8; 32], document: DocumentId, since: Lsn) -> Result<ActorId, Error> {
    let digest = match since {
        Lsn::ZERO => blake3::keyed_hash(nonce, &document.0),
        since => blake3::keyed_hash(nonce, &[&document.0[..], &since.0.to_le_bytes()].concat()),
    };
    ActorId::new(&first::<16>(digest.as_bytes())).ok_or(Error::Closed)
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database")
            .field("node", &self.node())
            .field("tail", &self.reader().tail())
            .finish_non_exhaustive()
    }
}
