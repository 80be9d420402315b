//! Saving documents in the background, so that they load fast and travel small.
//!
//! A snapshot is a cache. It is loaded back and compared before it is kept, never taken from a view that has failed,
//! and never the reason to drop a record.

use std::collections::{HashMap, HashSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::building::{is_of_changes, materialize, void};
use super::commit::block_on;
use super::core::Input;
use super::driver::Queue;
use super::working_set::WorkingSet;
use crate::document::View;
use crate::error::Error;
use crate::history::Reader;
use crate::history::fold::heads_of;
use crate::history::voids::{is_degraded, sift};
use crate::id::{DocumentId, Heads, Lsn};
use crate::limits::queues;
use crate::log::rows::DocumentRow;

/// Documents that grew are looked at once more when nobody asks for a snapshot for so long: what had not changed since
/// the last look is at rest. The last snapshot of a document that grew fast may be far behind then, and whoever asks for
/// it is sent the difference.
const REST: Duration = Duration::from_millis(200);
/// How long the snapshot of a document that grows and grows must do.
const GROWING: Duration = Duration::from_secs(4);
/// How many changes may lie behind the snapshot of a document at rest, and which part of all it has if that is more.
const REST_TAIL_MIN: u64 = 1024;
const REST_TAIL_PART: u64 = 16;

enum Request {
    Save(DocumentId),
    Stop,
}

/// Where to ask for a snapshot. Clones ask the same thread.
#[derive(Clone)]
pub(crate) struct Snapshots {
    requests: SyncSender<Request>,
    // Protects which documents are waiting, so that a hot one waits once.
    waiting: Arc<Mutex<HashSet<DocumentId>>>,
}

/// The receiving end, before its thread runs.
pub(crate) struct Idle {
    requests: Receiver<Request>,
    waiting: Arc<Mutex<HashSet<DocumentId>>>,
}

impl Snapshots {
    /// Makes both ends.
    pub(crate) fn new() -> (Self, Idle) {
        let (sender, requests) = sync_channel(queues::SNAPSHOTS);
        let waiting = Arc::default();
        (Self { requests: sender, waiting: Arc::clone(&waiting) }, Idle { requests, waiting })
    }

    /// Asks for a snapshot of `id`; does nothing when too many wait.
    pub(crate) fn request(&self, id: DocumentId) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < queues::SNAPSHOTS && waiting.insert(id) && self.requests.try_send(Request::Save(id)).is_err()
        {
            waiting.remove(&id);
        }
    }

    /// Ends the thread after the snapshot it is at.
    pub(crate) fn stop(&self) {
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
            let Self { requests, waiting } = self;
            let keep = |id| match save(&reader, &working_set, id) {
                Ok(Some(input)) => {
                    if let Ok(answer) = block_on(queue.send_when_free(input)) {
                        // Kept or not: the next change will tell.
                        let _ = block_on(answer);
                    }
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(document = %id, %error, "no snapshot was made"),
            };
            // Documents that grew: how many changes they had when they were last looked at, and when they were saved.
            let mut grown: HashMap<DocumentId, (u64, Instant)> = HashMap::new();
            loop {
                let request = match grown.is_empty() {
                    true => requests.recv().map_err(RecvTimeoutError::from),
                    false => requests.recv_timeout(REST),
                };
                match request {
                    Ok(Request::Save(id)) => {
                        waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                        // One that grows by a quarter again and again in no time is saved now and then only.
                        if grown.get(&id).is_some_and(|(_, saved)| saved.elapsed() < GROWING) {
                            continue;
                        }
                        keep(id);
                        if grown.len() < queues::SNAPSHOTS {
                            grown.insert(id, (0, Instant::now()));
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => {
                        let rested = grown.extract_if(|id, (changes, _)| {
                            let row = reader.row(*id).ok().flatten();
                            row.is_none_or(|row| std::mem::replace(changes, row.change_count) == row.change_count)
                        });
                        for (id, _) in rested.collect::<Vec<_>>() {
                            if reader.row(id).is_ok_and(|row| row.is_some_and(|row| is_due_at_rest(&row))) {
                                keep(id);
                            }
                        }
                    }
                    Ok(Request::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                }
            }
        })
    }
}

/// Whether the snapshot of a document that has come to rest is too far behind.
fn is_due_at_rest(row: &DocumentRow) -> bool {
    let saved = row.snapshot.as_ref().map_or(0, |saved| saved.changes);
    row.change_count.saturating_sub(saved) > REST_TAIL_MIN.max(row.change_count / REST_TAIL_PART)
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
