//! The writer: the one thread that appends. It takes what waits, makes a group of it, waits for the disk, and answers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, oneshot, watch};

use super::clock::now_ms;
use super::commit::Answer;
use super::committer::{Committed, Committer, land};
use super::core::Input;
use super::snapshots::Snapshots;
use super::working_set::InFlight;
use crate::error::Error;
use crate::id::{DocumentId, LogCursor};
use crate::limits::Limits;
use crate::log::LogError;

/// How often the high-water mark is synced and free space is looked at.
const TICK: Duration = Duration::from_secs(1);
/// Queue bytes are counted in units of this many, since permits are 32-bit.
const UNIT: usize = 1024;

/// One input, the room it takes in the queue, and who waits for it.
pub(super) struct Job {
    pub(super) input: Input,
    pub(super) answer: oneshot::Sender<Answer>,
    /// Held until the answer: what must end with it.
    pub(super) held: (Room, Option<InFlight>),
}

/// Room in the queue. It is given back when the input was answered.
#[derive(Debug)]
pub(crate) struct Room {
    _item: OwnedSemaphorePermit,
    bytes: Option<OwnedSemaphorePermit>,
}

/// The sending end of the writer's queue, bounded in items and bytes.
#[derive(Clone)]
pub(crate) struct Queue {
    jobs: SyncSender<Job>,
    items: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    units: usize,
    state: Arc<WriterState>,
}

/// What others may see of the writer.
#[derive(Debug, Default)]
pub(crate) struct WriterState {
    disk_full: AtomicBool,
    failure: OnceLock<String>,
}

impl WriterState {
    /// Whether writes are taken now.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if let Some(why) = self.failure.get() {
            return Err(Error::ReadOnly(why.clone()));
        }
        if self.disk_full.load(Ordering::Relaxed) {
            return Err(Error::StorageFull);
        }
        Ok(())
    }

    /// Why no more writes are taken, if none are.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    pub(crate) fn disk_full(&self) -> bool {
        self.disk_full.load(Ordering::Relaxed)
    }
}

impl Queue {
    /// A queue of so many items and bytes, and its other end.
    pub(super) fn new(items: usize, bytes: usize) -> (Self, Receiver<Job>) {
        let units = (bytes / UNIT).max(1);
        // Permits bound the queue; the channel is as large, so that it never turns a permit's holder away.
        let (jobs, receiver) = sync_channel(items);
        let queue = Self {
            jobs,
            items: Arc::new(Semaphore::new(items)),
            bytes: Arc::new(Semaphore::new(units)),
            units,
            state: Arc::default(),
        };
        (queue, receiver)
    }

    /// Takes room for one input, before its bytes are known.
    ///
    /// # Errors
    /// [`Error::Busy`] when the queue is full, [`Error::ReadOnly`], [`Error::StorageFull`].
    pub(crate) fn reserve(&self) -> Result<Room, Error> {
        self.state.check()?;
        if self.bytes.available_permits() == 0 {
            return Err(Error::Busy);
        }
        let item = self.items.clone().try_acquire_owned().map_err(|_| Error::Busy)?;
        Ok(Room { _item: item, bytes: None })
    }

    /// Sends an input for which there is room.
    pub(crate) fn send(
        &self,
        mut room: Room,
        input: Input,
        in_flight: Option<InFlight>,
    ) -> Result<oneshot::Receiver<Answer>, Error> {
        // An edit is made already, so it is never turned away here; what it takes beyond the bound delays the next.
        let units = input.bytes().div_ceil(UNIT).min(self.bytes.available_permits());
        room.bytes = self.bytes.clone().try_acquire_many_owned(u32::try_from(units).unwrap_or(u32::MAX)).ok();
        let (answer, answered) = oneshot::channel();
        match self.jobs.try_send(Job { input, answer, held: (room, in_flight) }) {
            Ok(()) => Ok(answered),
            Err(TrySendError::Full(_)) => Err(Error::Busy),
            Err(TrySendError::Disconnected(_)) => Err(Error::Closed),
        }
    }

    /// Waits for room, then sends.
    ///
    /// # Cancel safety
    /// Dropping it before it resolves sends nothing.
    pub(crate) async fn send_when_free(&self, input: Input) -> Result<oneshot::Receiver<Answer>, Error> {
        self.state.check()?;
        let units = input.bytes().div_ceil(UNIT).min(self.units);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let closed = |_| Error::Closed;
        let bytes = self.bytes.clone().acquire_many_owned(units).await.map_err(closed)?;
        let item = self.items.clone().acquire_owned().await.map_err(closed)?;
        let (answer, answered) = oneshot::channel();
        let job = Job { input, answer, held: (Room { _item: item, bytes: Some(bytes) }, None) };
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => Error::Busy,
            TrySendError::Disconnected(_) => Error::Closed,
        })?;
        Ok(answered)
    }

    pub(crate) fn state(&self) -> &WriterState {
        &self.state
    }
}

/// Everything the writer's thread owns or tells.
pub(crate) struct Writer {
    pub(crate) committer: Committer,
    pub(crate) snapshots: Snapshots,
    pub(crate) tail: watch::Sender<LogCursor>,
    /// Hears of each commit group which documents it is about.
    pub(crate) changed: broadcast::Sender<Arc<[DocumentId]>>,
    pub(crate) limits: Limits,
}

impl Writer {
    /// Starts the thread. It ends when every [`Queue`] is gone, after the last input was answered.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub(crate) fn start(self) -> std::io::Result<(Queue, JoinHandle<()>)> {
        let (queue, receiver) = Queue::new(self.limits.write_queue_items, self.limits.write_queue_bytes);
        let state = queue.state.clone();
        let thread =
            std::thread::Builder::new().name("tidelog-writer".into()).spawn(move || self.run(&receiver, &state))?;
        Ok((queue, thread))
    }

    fn run(mut self, jobs: &Receiver<Job>, state: &WriterState) {
        let mut next_tick = Instant::now();
        loop {
            if Instant::now() >= next_tick {
                self.tick(state);
                next_tick = Instant::now() + TICK;
            }
            match jobs.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
                Ok(first) => {
                    let batch = self.drain(first, jobs);
                    self.commit(batch, state);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if let Err(error) = self.committer.log.close() {
            tracing::warn!(%error, "the log was not closed in order; the next open finds its end by itself");
        }
    }

    /// Once a second: what need not be done for every group.
    fn tick(&mut self, state: &WriterState) {
        if let Err(error) = self.committer.log.sync_mark() {
            fail(state, &error);
        }
        match self.committer.reader.storage().free_bytes() {
            Ok(Some(free)) => {
                let full = free < self.limits.disk_free_min;
                if full != state.disk_full.swap(full, Ordering::Relaxed) {
                    tracing::warn!(
                        free,
                        full,
                        "writes are {} for want of room",
                        if full { "refused" } else { "taken again" }
                    );
                }
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "free space is unknown"),
        }
    }

    /// Takes what waits now, up to a group's bounds. It never waits for more: the sync before was the wait.
    fn drain(&self, first: Job, jobs: &Receiver<Job>) -> Vec<Job> {
        let mut bytes = first.input.bytes();
        let mut batch = vec![first];
        while batch.len() < self.limits.group_records_max && bytes < self.limits.group_bytes_max {
            let Ok(job) = jobs.try_recv() else { break };
            bytes += job.input.bytes();
            batch.push(job);
        }
        batch
    }

    fn commit(&mut self, batch: Vec<Job>, state: &WriterState) {
        if let Some(why) = state.failure() {
            // What the core believes to be logged may not be: it must answer nothing more, not even "known".
            for Job { answer, held, .. } in batch {
                drop(held);
                let _ = answer.send(Err(Error::ReadOnly(why.to_owned())));
            }
            return;
        }
        let (inputs, waiting): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|job| (job.input, (job.answer, job.held))).unzip();
        match self.committer.commit(now_ms(), Instant::now(), inputs) {
            Ok(Committed { end, appended, mut documents, outcomes, snapshots_due }) => {
                if appended {
                    self.tail.send_replace(end);
                    if self.changed.receiver_count() > 0 {
                        documents.sort_unstable();
                        documents.dedup();
                        // Whoever listened may be gone.
                        let _ = self.changed.send(documents.into());
                    }
                }
                for id in snapshots_due {
                    self.snapshots.request(id);
                }
                for ((answer, (room, in_flight)), outcome) in waiting.into_iter().zip(outcomes) {
                    drop(room);
                    land(in_flight, &outcome);
                    // Nobody may be waiting any more; the edit stays.
                    let _ = answer.send(outcome);
                }
            }
            Err(error) => {
                fail(state, &error);
                self.committer.working_set.discard_views();
                for (answer, held) in waiting {
                    drop(held);
                    let _ = answer.send(Err(Error::from(error.clone())));
                }
            }
        }
    }
}

fn fail(state: &WriterState, error: &LogError) {
    // The first failure is the cause; later ones follow from it.
    let _ = state.failure.set(error.to_string());
}
