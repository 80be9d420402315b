//! All views of a database, and the one thread that makes them.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::hidden::Room;
use super::predicates::ListenerId;
use super::rows::viewed;
use super::shared::Shared;
use super::view::{Failure, View};
use super::worker::Worker;
use crate::engine::{Attached, Database, WeakDatabase, block_on};
use crate::error::{Error, QueryError};
use crate::id::{CollectionName, LogCursor};
use crate::limits::queries;
use crate::log::StorageError;

/// The views of a database.
pub(super) struct Views {
    // Protects which views there are.
    views: Mutex<HashMap<CollectionName, Arc<View>>>,
    shared: Arc<Shared>,
    /// Something was asked of the thread.
    wanted: Notify,
    listeners: AtomicUsize,
    /// For what they know of and may not tell.
    pub(super) room: Arc<Room>,
    next_listener: AtomicU64,
    askings: AtomicU64,
    is_in_touch: AtomicBool,
    is_closing: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Room for one listener, given back when it is dropped.
pub(super) struct Seat(Arc<Views>);

impl Seat {
    /// Takes room for a listener.
    ///
    /// # Errors
    /// [`QueryError::TooManyListeners`].
    pub(super) fn take(views: &Arc<Views>) -> Result<Self, QueryError> {
        let max = queries::LISTENERS_MAX;
        let taken = views
            .listeners
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| (count < max).then_some(count + 1));
        taken.map(|_| Self(views.clone())).map_err(|_| QueryError::TooManyListeners(max))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.listeners.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Views {
    /// The views of `database`; from the first call on, those on the disk follow the log.
    ///
    /// # Errors
    /// [`Error::History`] when the store cannot be read; [`Error::Closed`].
    pub(super) fn of(database: &Database) -> Result<Arc<Self>, Error> {
        let views = database.attached(Self::new).ok_or(Error::Closed)?;
        let mut thread = lock(&views.thread);
        if thread.is_none() && !views.is_closing.load(Ordering::Acquire) {
            for name in viewed(&**database.reader().storage())? {
                let view = Arc::new(View::new(name.clone(), database.reader(), views.shared.clone()));
                lock(&views.views).insert(name, view);
            }
            let (of, tail, database) = (views.clone(), database.tail(), database.downgrade());
            let started =
                std::thread::Builder::new().name("tidelog-views".to_owned()).spawn(move || of.run(&database, tail));
            *thread = Some(started.map_err(|error| StorageError::io("start a thread", &error))?);
        }
        drop(thread);
        Ok(views)
    }

    fn new() -> Self {
        Self {
            views: Mutex::default(),
            shared: Arc::default(),
            wanted: Notify::new(),
            listeners: AtomicUsize::new(0),
            room: Arc::default(),
            next_listener: AtomicU64::new(0),
            askings: AtomicU64::new(1),
            is_in_touch: AtomicBool::new(true),
            is_closing: AtomicBool::new(false),
            thread: Mutex::default(),
        }
    }

    /// The view of a collection, which is made from now on if it was not there.
    ///
    /// # Errors
    /// [`QueryError::Index`] when there are too many views.
    pub(super) fn view(&self, database: &Database, collection: &CollectionName) -> Result<Arc<View>, Error> {
        if self.is_closing.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        let now = self.askings.fetch_add(1, Ordering::Relaxed);
        let mut views = lock(&self.views);
        if let Some(view) = views.get(collection) {
            view.used.store(now, Ordering::Relaxed);
            return Ok(view.clone());
        }
        if views.len() >= queries::VIEWS_MAX {
            let idle =
                views.values().filter(|view| view.is_idle()).min_by_key(|view| view.used.load(Ordering::Relaxed));
            let Some(idle) = idle.map(|view| view.collection.clone()) else {
                let why = format!("{} collections are listened to, and no more can be queried", queries::VIEWS_MAX);
                return Err(QueryError::index(why, "let go of some listeners").into());
            };
            if !views.get(&idle).is_some_and(|view| view.put_down()) {
                return Err(Error::Busy);
            }
            views.remove(&idle);
        }
        let view = Arc::new(View::new(collection.clone(), database.reader(), self.shared.clone()));
        view.used.store(now, Ordering::Relaxed);
        views.insert(collection.clone(), view.clone());
        drop(views);
        self.wake();
        Ok(view)
    }

    pub(super) fn new_id(&self) -> ListenerId {
        self.next_listener.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn wake(&self) {
        self.wanted.notify_one();
    }

    pub(super) fn is_in_touch(&self) -> bool {
        self.is_in_touch.load(Ordering::Acquire)
    }

    pub(super) fn set_in_touch(&self, is_in_touch: bool) {
        self.is_in_touch.store(is_in_touch, Ordering::Release);
    }

    /// Makes views until the database closes.
    fn run(&self, database: &WeakDatabase, mut tail: watch::Receiver<LogCursor>) {
        let mut workers: HashMap<CollectionName, Worker> = HashMap::new();
        while let Some(database) = database.upgrade().filter(|_| !self.is_closing.load(Ordering::Acquire)) {
            // Seen before the log is read: what comes later wakes this thread again.
            tail.borrow_and_update();
            let is_busy = self.step(&database, &mut workers);
            drop(database);
            if is_busy {
                continue;
            }
            let is_open = block_on(either(async { tail.changed().await.is_ok() }, async {
                self.wanted.notified().await;
                true
            }));
            if !is_open {
                break;
            }
        }
        for worker in workers.values_mut() {
            worker.end(&Failure::Closed);
        }
        for view in self.all() {
            fail(&view, Failure::Closed);
            view.want(|wanted| wanted.arriving.drain(..).for_each(|listening| listening.end(Failure::Closed.error())));
        }
    }

    /// One step of each view; whether there is more to do.
    fn step(&self, database: &Database, workers: &mut HashMap<CollectionName, Worker>) -> bool {
        let mut is_busy = false;
        let views = self.all();
        // Those that were put down.
        workers.retain(|_, worker| views.iter().any(|view| Arc::ptr_eq(view, &worker.view)));
        for view in views {
            if view.progress.borrow().failure.is_some() {
                continue;
            }
            let worker = match workers.entry(view.collection.clone()) {
                std::collections::hash_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
                std::collections::hash_map::Entry::Vacant(entry) => {
                    Worker::open(database, view.clone()).map(|worker| entry.insert(worker))
                }
            };
            match worker.and_then(|worker| worker.step(database)) {
                Ok(more) => is_busy |= more,
                Err(error @ (Error::StorageFull | Error::Busy)) => {
                    tracing::warn!(collection = %view.collection, %error, "a view waits to be written");
                    std::thread::park_timeout(PAUSE);
                    is_busy = true;
                }
                Err(error) => {
                    tracing::error!(collection = %view.collection, %error, "a view goes no further");
                    let failure = Failure::Stuck(error.to_string());
                    if let Some(mut worker) = workers.remove(&view.collection) {
                        worker.end(&failure);
                    }
                    fail(&view, failure);
                }
            }
        }
        is_busy
    }

    fn all(&self) -> Vec<Arc<View>> {
        lock(&self.views).values().cloned().collect()
    }
}

impl Attached for Views {
    fn close(&self) {
        self.is_closing.store(true, Ordering::Release);
        self.wake();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            // It does not panic on anything that a store may hold; if it did, there is nothing more to end.
            let _ = thread.join();
        }
    }
}

/// How long a step that could not be written waits.
const PAUSE: Duration = Duration::from_millis(200);

fn fail(view: &View, failure: Failure) {
    view.progress.send_modify(|progress| progress.failure = Some(failure));
}

/// What the first of the two to end says.
async fn either<T>(one: impl Future<Output = T>, other: impl Future<Output = T>) -> T {
    let (mut one, mut other) = (pin!(one), pin!(other));
    std::future::poll_fn(|context| match one.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(output),
        Poll::Pending => other.as_mut().poll(context),
    })
    .await
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
