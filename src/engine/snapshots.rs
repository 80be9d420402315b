//! Saving documents in the background, so that they load fast and travel small.
//!
//! A snapshot is a cache. It is loaded back and compared before it is kept, never taken from a view that has failed,
//! and never the reason to drop a record.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::building::{is_of_changes, materialize, void};
use super::commit::block_on;
use super::core::Input;
use super::driver::Queue;
use super::working_set::WorkingSet;
use crate::document::View;
use crate::error::Error;
use crate::history::fold::heads_of;
use crate::history::voids::{is_degraded, sift};
use crate::history::{Reader, is_saved_far_behind};
use crate::id::{DocumentId, Heads, Lsn};
use crate::limits::queues;

/// Documents that grew are looked at once more when nobody asks for a snapshot for so long: what had not changed since
/// the last look is at rest. The last snapshot of a document that grew fast may be far behind then, and whoever asks for
/// it is sent the difference.
const REST: Duration = Duration::from_millis(200);
/// How long the snapshot of a document that grows and grows must do.
const GROWING: Duration = Duration::from_secs(4);
/// How long it must do for somebody who waits for one: else those who come one after the other, while it grows, would
/// have it saved without an end.
const AWAITED: Duration = Duration::from_secs(1);

enum Request {
    Save(DocumentId),
    Stop,
}

/// Where to ask for a snapshot. Clones ask the same thread.
#[derive(Clone)]
pub(crate) struct Snapshots {
    requests: SyncSender<Request>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    // Protects which documents are waiting, so that a hot one waits once.
    waiting: Mutex<HashMap<DocumentId, Wanted>>,
    is_stopped: AtomicBool,
    /// Snapshots made since the database was opened because somebody waited for them.
    awaited: AtomicU64,
}

/// Who wants a document saved.
struct Wanted {
    /// It grew.
    is_due: bool,
    /// Those who wait for it hear when this goes.
    served: watch::Sender<()>,
}

/// The receiving end, before its thread runs.
pub(crate) struct Idle {
    requests: Receiver<Request>,
    shared: Arc<Shared>,
}

impl Snapshots {
    /// Makes both ends.
    pub(crate) fn new() -> (Self, Idle) {
        let (sender, requests) = sync_channel(queues::SNAPSHOTS);
        let shared = Arc::<Shared>::default();
        (Self { requests: sender, shared: shared.clone() }, Idle { requests, shared })
    }

    /// Asks for a snapshot of `id`; does nothing when too many wait.
    pub(crate) fn request(&self, id: DocumentId) {
        self.want(id, true);
    }

    /// Has `id` saved if its snapshot is far behind, and waits until that was done or found not to be possible. Does
    /// not wait when too many do.
    ///
    /// # Cancel safety
    /// Dropped, it is saved all the same.
    #[cfg(feature = "web")]
    pub(crate) async fn await_save(&self, id: DocumentId) {
        if let Some(mut served) = self.want(id, false) {
            // Nothing is ever sent: it ends when the request does.
            let _ = served.changed().await;
        }
    }

    /// How many snapshots were made because somebody waited for them.
    pub(crate) fn awaited(&self) -> u64 {
        self.shared.awaited.load(Ordering::Relaxed)
    }

    fn want(&self, id: DocumentId, is_due: bool) -> Option<watch::Receiver<()>> {
        let mut waiting = self.shared.lock();
        if let Some(wanted) = waiting.get_mut(&id) {
            wanted.is_due |= is_due;
            return Some(wanted.served.subscribe());
        }
        if waiting.len() >= queues::SNAPSHOTS || self.requests.try_send(Request::Save(id)).is_err() {
            return None;
        }
        let (served, receiver) = watch::channel(());
        waiting.insert(id, Wanted { is_due, served });
        Some(receiver)
    }

    /// Ends the thread after the snapshot it is at.
    pub(crate) fn stop(&self) {
        self.shared.is_stopped.store(true, Ordering::Release);
        // The thread may have ended already.
        let _ = self.requests.send(Request::Stop);
    }
}

impl Idle {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub(crate) fn start(
        self,
        reader: Reader,
        working_set: Arc<WorkingSet>,
        queue: Queue,
    ) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("tidelog-snapshots".into()).spawn(move || {
            let Self { requests, shared } = self;
            let saver = Saver { reader, working_set, queue, grown: HashMap::new() };
            saver.run(&requests, &shared);
            // Whoever waits still waits in vain. After this no request is taken.
            drop(requests);
            shared.lock().clear();
        })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<DocumentId, Wanted>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Acquire)
    }
}

/// What the thread has.
struct Saver {
    reader: Reader,
    working_set: Arc<WorkingSet>,
    queue: Queue,
    /// Documents that grew: how many changes they had when they were last looked at, and when they were saved.
    grown: HashMap<DocumentId, (u64, Instant)>,
}

impl Saver {
    fn run(mut self, requests: &Receiver<Request>, shared: &Shared) {
        while !shared.is_stopped() {
            let request = match self.grown.is_empty() {
                true => requests.recv().map_err(RecvTimeoutError::from),
                false => requests.recv_timeout(REST),
            };
            match request {
                Ok(Request::Save(id)) => {
                    let Some(wanted) = shared.lock().remove(&id) else { continue };
                    self.serve(id, wanted.is_due, shared);
                    drop(wanted);
                }
                Err(RecvTimeoutError::Timeout) => self.look_for_rest(shared),
                Ok(Request::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    }

    fn serve(&mut self, id: DocumentId, is_due: bool, shared: &Shared) {
        let saved_for = self.grown.get(&id).map_or(Duration::MAX, |(_, saved)| saved.elapsed());
        // One that grows by a quarter again and again in no time is saved now and then only.
        let is_due = is_due && saved_for >= GROWING;
        let is_awaited = !is_due && saved_for >= AWAITED && self.is_far_behind(id);
        if !is_due && !is_awaited {
            return;
        }
        self.keep(id);
        if is_awaited {
            shared.awaited.fetch_add(1, Ordering::Relaxed);
        }
        if self.grown.len() < queues::SNAPSHOTS {
            self.grown.insert(id, (0, Instant::now()));
        }
    }

    /// Saves once more what grew and does not grow any more.
    fn look_for_rest(&mut self, shared: &Shared) {
        let reader = &self.reader;
        let rested = self.grown.extract_if(|id, (changes, _)| {
            let row = reader.row(*id).ok().flatten();
            row.is_none_or(|row| std::mem::replace(changes, row.change_count) == row.change_count)
        });
        for (id, _) in rested.collect::<Vec<_>>() {
            if shared.is_stopped() {
                return;
            }
            if self.is_far_behind(id) {
                self.keep(id);
            }
        }
    }

    fn is_far_behind(&self, id: DocumentId) -> bool {
        self.reader.row(id).is_ok_and(|row| row.is_some_and(|row| is_saved_far_behind(&row)))
    }

    fn keep(&self, id: DocumentId) {
        match save(&self.reader, &self.working_set, id) {
            Ok(Some(input)) => {
                if let Ok(answer) = block_on(self.queue.send_when_free(input)) {
                    // Kept or not: the next change will tell.
                    let _ = block_on(answer);
                }
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(document = %id, %error, "no snapshot was made"),
        }
    }
}

/// Saves one document and loads the bytes back; or says what of it cannot be applied. `None` when the document moved on
/// meanwhile, and will be due again, or can be read in part only.
pub(super) fn save(reader: &Reader, working_set: &WorkingSet, id: DocumentId) -> Result<Option<Input>, Error> {
    let Some(row) = reader.row(id)?.filter(|row| !is_degraded(row)) else { return Ok(None) };
    let (heads, bytes) = match saved_view(working_set, id, &heads_of(&row)) {
        Some(saved) => saved?,
        None => {
            let view = match materialize(reader, id) {
                Ok((view, _)) => view,
                Err(error) if is_of_changes(&error) => {
                    let misfits = sift(reader, id, Lsn(row.last_lsn))?.misfits;
                    return if misfits.is_empty() { Err(error) } else { Ok(Some(void(id, misfits))) };
                }
                Err(error) => return Err(error),
            };
            (view.heads(), view.save()?)
        }
    };
    if heads != heads_of(&row) {
        return Ok(None);
    }
    let again = View::load(&bytes)?;
    if again.heads() != heads || again.change_count() != row.change_count {
        tracing::error!(document = %id, "a snapshot does not load back as what was saved; it is not kept");
        return Ok(None);
    }
    let changes = row.change_count;
    Ok(Some(Input::Snapshot { document: id, lsn: Lsn(row.last_lsn), heads, changes, bytes }))
}

/// The view's own bytes, if it is materialised, free, and in the state `heads`.
fn saved_view(working_set: &WorkingSet, id: DocumentId, heads: &Heads) -> Option<Result<(Heads, Vec<u8>), Error>> {
    let cell = working_set.cell(id);
    if cell.heads().as_ref() != Some(heads) {
        return None;
    }
    let saved = cell.try_save()?;
    Some(saved.map_err(Error::from))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::engine::{Database, DocHandle};
    use crate::limits::Limits;
    use crate::log::MemoryStorage;

    /// A database that finds no snapshot due by itself, and a document in it.
    fn open() -> (Database, DocHandle) {
        let limits = Limits { snapshot_tail_min: u64::MAX, snapshot_tail_bytes: u64::MAX, ..Limits::default() };
        let database = Database::on(MemoryStorage::new()).limits(limits).open().unwrap();
        let (handle, commit) = database.collection("notes").unwrap().create(json!({ "n": 0 })).unwrap();
        commit.wait().unwrap();
        (database, handle)
    }

    fn grow(handle: &DocHandle, changes: u64) {
        let mut last = None;
        for n in 1..=changes {
            last = Some(loop {
                match handle.change(|edit| Ok(edit.put("n", n)?)) {
                    Err(Error::Busy) => std::thread::yield_now(),
                    other => break other.unwrap(),
                }
            });
        }
        last.unwrap().wait().unwrap();
    }

    fn saver(database: &Database) -> Saver {
        let (reader, working_set) = (database.reader().clone(), database.working_set().clone());
        Saver { reader, working_set, queue: database.queue().unwrap(), grown: HashMap::new() }
    }

    fn saved(handle: &DocHandle, database: &Database) -> u64 {
        database.reader().row(handle.id()).unwrap().unwrap().snapshot.map_or(0, |saved| saved.changes)
    }

    #[test]
    fn what_grew_fast_is_saved_once_more_when_it_rests_and_not_while_the_saver_is_to_stop() {
        let (database, handle) = open();
        let (mut saver, shared) = (saver(&database), Shared::default());
        grow(&handle, 1500);
        saver.serve(handle.id(), true, &shared);
        assert_eq!(saved(&handle, &database), 1501);
        // Again in no time: not now, and not at the first look, since it may be growing.
        grow(&handle, 1500);
        // However long that took.
        saver.grown.insert(handle.id(), (0, Instant::now()));
        saver.serve(handle.id(), true, &shared);
        saver.look_for_rest(&shared);
        assert_eq!(saved(&handle, &database), 1501);
        grow(&handle, 1);
        saver.look_for_rest(&shared);
        assert_eq!(saved(&handle, &database), 1501, "it grew since the last look");
        shared.is_stopped.store(true, Ordering::Release);
        let kept = saver.grown.clone();
        saver.look_for_rest(&shared);
        assert_eq!(saved(&handle, &database), 1501, "the saver is to stop");
        saver.grown = kept;
        shared.is_stopped.store(false, Ordering::Release);
        saver.look_for_rest(&shared);
        assert_eq!(saved(&handle, &database), 3002);
        assert!(saver.grown.is_empty());
        // What is not far behind is let rest.
        grow(&handle, 100);
        saver.grown.insert(handle.id(), (3102, Instant::now()));
        saver.look_for_rest(&shared);
        assert_eq!(saved(&handle, &database), 3002);
    }

    #[cfg(feature = "web")]
    #[test]
    fn whoever_waits_for_a_snapshot_has_it_made_when_it_is_far_behind_and_only_then() {
        let (database, handle) = open();
        block_on(database.await_snapshot(handle.id()));
        assert_eq!((saved(&handle, &database), database.status().awaited_snapshots), (0, 0));
        grow(&handle, 2000);
        // Two at once are served by one.
        block_on(async { tokio::join!(database.await_snapshot(handle.id()), database.await_snapshot(handle.id())) });
        assert_eq!((saved(&handle, &database), database.status().awaited_snapshots), (2001, 1));
        block_on(database.await_snapshot(handle.id()));
        assert_eq!(database.status().awaited_snapshots, 1);
        database.close();
        // Nobody waits for a thread that has ended.
        block_on(database.await_snapshot(handle.id()));
    }
}
