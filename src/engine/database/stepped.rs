//! A database whose writer is stepped by a simulation.

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, OnceLock};

use tokio::sync::{broadcast, watch};

use super::{Database, Hold, Inner, Trials};
use crate::engine::driver::{Job, Queue};
use crate::engine::snapshots::Snapshots;
use crate::engine::working_set::WorkingSet;
use crate::error::Error;
use crate::history::Reader;
use crate::id::{DocumentId, LogCursor};
use crate::limits::{Limits, queues};
use crate::log::Durability;

/// Items that may wait for a writer that is stepped. More than ever do: who waits for room here is polled by nobody.
const ITEMS: usize = 1 << 16;

/// The writer's end of such a database.
pub(in crate::engine) struct Stepped {
    pub(in crate::engine) database: Database,
    pub(in crate::engine) jobs: Receiver<Job>,
    tail: watch::Sender<LogCursor>,
    changed: broadcast::Sender<Arc<[DocumentId]>>,
}

impl Stepped {
    /// A database over what a writer without a thread has.
    ///
    /// # Errors
    /// [`Error`] when the store cannot be read.
    pub(in crate::engine) fn new(
        reader: &Reader,
        working_set: &Arc<WorkingSet>,
        limits: &Limits,
        durability: Durability,
        nonce: [u8; 32],
    ) -> Result<Self, Error> {
        let (queue, jobs) = Queue::new(ITEMS, limits.write_queue_bytes.max(1 << 30));
        let (tail, tail_receiver) = watch::channel(reader.tail());
        let (changed, _) = broadcast::channel(queues::CHANGED_GROUPS);
        let inner = Arc::new(Inner {
            reader: reader.clone(),
            queue: Mutex::new(Some(queue)),
            working_set: working_set.clone(),
            trials: Trials::open(reader, limits)?,
            #[cfg(any(feature = "quic", feature = "web"))]
            turns: crate::engine::turns::Turns::new(limits),
            snapshots: Snapshots::new().0,
            tail: tail_receiver,
            changed: changed.clone(),
            limits: limits.clone(),
            durability,
            nonce,
            threads: Mutex::new(None),
            renewed: false,
            attached: OnceLock::new(),
            _hold: Hold::default(),
        });
        Ok(Self { database: Database { inner, _owner: None }, jobs, tail, changed })
    }

    /// Tells those who use it that something was committed.
    pub(in crate::engine) fn tell(&self, end: LogCursor, mut documents: Vec<DocumentId>) {
        self.tail.send_replace(end);
        documents.sort_unstable();
        documents.dedup();
        // Nobody may listen.
        let _ = self.changed.send(documents.into());
    }
}
