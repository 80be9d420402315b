//! The documents that are materialised now, within a budget of bytes.
//!
//! A document costs nothing until somebody reads or edits it. Then a [`Cell`] holds its view, until the budget needs
//! the memory for others. A view is brought up to date when it is used, from the log: nothing is queued for it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::building::{Built, Tell, build, read_changes};
use crate::document::{Change, View, ViewError};
use crate::error::Error;
use crate::history::{Readable, Reader};
use crate::id::{DocumentId, Lsn};

/// One document in use.
#[derive(Debug)]
pub(crate) struct Cell {
    pub(crate) id: DocumentId,
    // Protects the materialised document. Held while an application's closure runs, and never by the writer.
    view: Mutex<Held>,
    /// The last change from elsewhere.
    newest: AtomicU64,
    /// Edits made here that the writer has not answered yet: a view with some cannot be built from the log.
    in_flight: AtomicUsize,
    /// The view shows an edit that was refused: it is dropped by its next user.
    spoilt: AtomicBool,
    bytes: AtomicUsize,
    /// The view lacks changes that cannot be applied.
    degraded: AtomicBool,
    used: AtomicU64,
    /// How many lifecycle statements about it were committed since the cell was made.
    statements: AtomicU64,
    /// One more than how many of them it was seen to be visible after; 0 when nobody looked.
    visible_after: AtomicU64,
}

#[derive(Default)]
struct Held {
    view: Option<View>,
    /// Every change up to here is in the view.
    applied: Lsn,
    /// Of which generation the view is.
    generation: u64,
    /// What of the document the view is made of.
    readable: Readable,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("applied", &self.applied).finish_non_exhaustive()
    }
}

/// Views that may come in before all are weighed again: those there may have grown.
const WEIGH_EVERY: usize = 64;

/// All cells of a database.
#[derive(Debug)]
pub(crate) struct WorkingSet {
    // Protects which cells exist.
    cells: Mutex<HashMap<DocumentId, Weak<Cell>>>,
    /// Materialised cells are kept alive here, so that a document stays warm between two handles.
    warm: Mutex<HashMap<DocumentId, Arc<Cell>>>,
    uses: AtomicU64,
    budget: usize,
    /// Bytes of the budget that were free when all were last weighed, less what came since. Written under `warm`.
    room: AtomicUsize,
    /// Views built since the database was opened.
    materialized: AtomicU64,
    /// Views of an older generation show edits that may be lost.
    generation: AtomicU64,
}

/// An edit made here that the writer has not answered yet.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Cell>);

impl InFlight {
    /// The writer refused the edit.
    pub(crate) fn refused(&self) {
        self.0.spoil();
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

impl WorkingSet {
    pub(crate) fn new(budget: usize) -> Self {
        Self {
            cells: Mutex::default(),
            warm: Mutex::default(),
            uses: AtomicU64::new(0),
            budget,
            room: AtomicUsize::new(0),
            materialized: AtomicU64::new(0),
            generation: AtomicU64::new(0),
        }
    }

    /// The cell of `id`.
    pub(crate) fn cell(&self, id: DocumentId) -> Arc<Cell> {
        let mut cells = lock(&self.cells);
        if let Some(cell) = cells.get(&id).and_then(Weak::upgrade) {
            return cell;
        }
        // Cells that nobody holds any more go when there are many of them.
        if cells.len() >= 1024 && cells.len().is_power_of_two() {
            cells.retain(|_, cell| cell.strong_count() > 0);
        }
        let cell = Arc::new(Cell {
            id,
            view: Mutex::default(),
            newest: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            spoilt: AtomicBool::new(false),
            bytes: AtomicUsize::new(0),
            degraded: AtomicBool::new(false),
            used: AtomicU64::new(0),
            statements: AtomicU64::new(0),
            visible_after: AtomicU64::new(0),
        });
        cells.insert(id, Arc::downgrade(&cell));
        cell
    }

    /// How many views were built since the database was opened.
    pub(crate) fn materialized(&self) -> u64 {
        self.materialized.load(Ordering::Relaxed)
    }

    /// How many documents are materialised now, and about how many bytes they take.
    pub(crate) fn usage(&self) -> (usize, usize) {
        let warm = lock(&self.warm);
        (warm.len(), warm.values().map(|cell| cell.bytes.load(Ordering::Relaxed)).sum())
    }

    /// Whether the document is materialised now.
    #[cfg(any(feature = "quic", feature = "web"))]
    pub(crate) fn is_warm(&self, id: DocumentId) -> bool {
        lock(&self.warm).contains_key(&id)
    }

    /// How many of the documents that are materialised now lack changes.
    pub(crate) fn degraded(&self) -> usize {
        lock(&self.warm).values().filter(|cell| cell.degraded.load(Ordering::Relaxed)).count()
    }

    /// Whether edits of the document are on their way to the log.
    pub(crate) fn has_edits_in_flight(&self, id: DocumentId) -> bool {
        lock(&self.cells).get(&id).and_then(Weak::upgrade).is_some_and(|cell| !cell.settled())
    }

    /// Tells the cells that the log has news for them.
    pub(crate) fn note_changes(&self, changed: &[(DocumentId, Lsn)]) {
        if changed.is_empty() {
            return;
        }
        let cells = lock(&self.cells);
        for (id, lsn) in changed {
            if let Some(cell) = cells.get(id).and_then(Weak::upgrade) {
                cell.newest.fetch_max(lsn.0, Ordering::AcqRel);
            }
        }
    }

    /// Tells the cells that lifecycle statements about them are committed.
    pub(crate) fn note_statements(&self, restated: &[DocumentId]) {
        if restated.is_empty() {
            return;
        }
        let cells = lock(&self.cells);
        for id in restated {
            if let Some(cell) = cells.get(id).and_then(Weak::upgrade) {
                cell.statements.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    /// Drops every view: an append failed, and what they show may be lost.
    pub(crate) fn discard_views(&self) {
        // A view that is in use now is dropped by its next user.
        self.generation.fetch_add(1, Ordering::AcqRel);
        lock(&self.warm).clear();
    }

    /// Runs `use_view` on the document, materialised and up to date, and on what of the document that is. `tell` is asked
    /// to have written down what cannot be applied.
    ///
    /// # Errors
    /// Whatever `use_view` returns; [`Error`] when the document cannot be read from the log or built.
    pub(crate) fn with_view<R>(
        &self,
        cell: &Arc<Cell>,
        reader: &Reader,
        tell: Tell<'_>,
        use_view: impl FnOnce(&mut View, &Readable) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let mut held = lock(&cell.view);
        let spoilt = cell.spoilt.swap(false, Ordering::AcqRel);
        let lost = held.generation != self.generation.load(Ordering::Acquire);
        if spoilt || lost || held.view.as_ref().is_some_and(View::is_broken) {
            held.view = None;
        }
        if held.view.is_some()
            && let Err(error) = catch_up(cell, &mut held, reader)
        {
            tracing::warn!(document = %cell.id, %error, "a materialised document is dropped and built again from the log");
            held.view = None;
        }
        let fresh = held.view.is_none();
        if fresh {
            self.build(cell, &mut held, reader, tell)?;
        }
        let Held { view, readable, .. } = &mut *held;
        let view = view.get_or_insert_default();
        let result = use_view(view, readable);
        if fresh || cell.used.load(Ordering::Relaxed).is_multiple_of(64) {
            cell.bytes.store(view.bytes_estimate(), Ordering::Relaxed);
        }
        drop(held);
        self.keep_warm(cell, fresh);
        result
    }

    /// Gives a new document, which is not in the log yet, its view.
    ///
    /// Two threads may create one named document at a time. The view of the first may hold edits that are on their way,
    /// so it stays, and takes in what the second begins with.
    ///
    /// # Errors
    /// [`Error::View`] when the first's view does not take it.
    pub(crate) fn adopt(&self, cell: &Arc<Cell>, view: View, beginning: Option<&Change>) -> Result<(), Error> {
        let mut held = lock(&cell.view);
        let generation = self.generation.load(Ordering::Acquire);
        if held.generation == generation
            && let Some(first) = held.view.as_mut().filter(|first| !first.is_broken())
        {
            first.apply(beginning.map_or(&[], std::slice::from_ref))?;
            return Ok(());
        }
        held.generation = generation;
        held.readable = Readable::default();
        cell.bytes.store(view.bytes_estimate(), Ordering::Relaxed);
        held.view = Some(view);
        drop(held);
        self.keep_warm(cell, true);
        Ok(())
    }

    /// Counts an edit that was just sent to the writer.
    pub(crate) fn in_flight(cell: &Arc<Cell>) -> InFlight {
        cell.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight(cell.clone())
    }

    fn build(&self, cell: &Cell, held: &mut Held, reader: &Reader, tell: Tell<'_>) -> Result<(), Error> {
        if cell.in_flight.load(Ordering::Acquire) > 0 {
            // Built now, it would lack edits that are on their way, and the next one would take their number.
            return Err(Error::Busy);
        }
        held.generation = self.generation.load(Ordering::Acquire);
        let Built { view, readable, applied } = build(reader, cell.id, tell)?;
        cell.degraded.store(!readable.is_whole(), Ordering::Relaxed);
        (held.view, held.readable, held.applied) = (Some(view), readable, applied);
        self.materialized.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the document's view is there, free, and of no more than `bytes`.
    #[cfg(any(feature = "quic", feature = "web"))]
    pub(crate) fn is_at_hand(&self, id: DocumentId, bytes: usize) -> bool {
        let Some(cell) = lock(&self.cells).get(&id).and_then(Weak::upgrade) else { return false };
        cell.bytes.load(Ordering::Relaxed) <= bytes && cell.view.try_lock().is_ok_and(|held| held.view.is_some())
    }

    /// Notes the use, and makes room when a new view came in.
    fn keep_warm(&self, cell: &Arc<Cell>, fresh: bool) {
        cell.used.store(self.uses.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        if !fresh {
            return;
        }
        let mut warm = lock(&self.warm);
        warm.insert(cell.id, cell.clone());
        // All are weighed only when the new ones may have used up what was free: many small ones come in a row.
        let (new, room) = (cell.bytes.load(Ordering::Relaxed), self.room.load(Ordering::Relaxed));
        if new <= room && !warm.len().is_multiple_of(WEIGH_EVERY) {
            self.room.store(room - new, Ordering::Relaxed);
            return;
        }
        let mut bytes: usize = warm.values().map(|cell| cell.bytes.load(Ordering::Relaxed)).sum();
        self.room.store(self.budget.saturating_sub(bytes), Ordering::Relaxed);
        if bytes <= self.budget {
            return;
        }
        // Some more than must go, so that the next ones find room without looking at all again.
        let enough = self.budget - self.budget / 8;
        let mut oldest_first: Vec<Arc<Cell>> = warm.values().cloned().collect();
        oldest_first.sort_unstable_by_key(|cell| cell.used.load(Ordering::Relaxed));
        for old in oldest_first {
            if bytes <= enough || Arc::ptr_eq(&old, cell) {
                break;
            }
            // A view in use, or with edits on their way to the log, stays.
            let Ok(mut held) = old.view.try_lock() else { continue };
            if old.in_flight.load(Ordering::Acquire) > 0 {
                continue;
            }
            held.view = None;
            bytes -= old.bytes.swap(0, Ordering::Relaxed).min(bytes);
            warm.remove(&old.id);
        }
        self.room.store(self.budget.saturating_sub(bytes), Ordering::Relaxed);
    }
}

/// Applies what came from elsewhere since the view was last used.
fn catch_up(cell: &Cell, held: &mut Held, reader: &Reader) -> Result<(), Error> {
    let newest = Lsn(cell.newest.load(Ordering::Acquire));
    if newest <= held.applied {
        return Ok(());
    }
    // Read before the index: what is committed in between is found twice, and skipped the second time.
    let upto = reader.tail().lsn;
    let Held { view: Some(view), readable, applied, .. } = held else { return Ok(()) };
    // What it has already, since it was made or tried on it, is not read again.
    let has = |hash| view.contains(hash);
    match read_changes(reader, cell.id, *applied, readable, &has)? {
        Some(changes) => {
            view.apply(&changes)?;
        }
        // It shows what was withdrawn since, or what cannot be applied as a whole.
        None => held.view = None,
    }
    held.applied = upto;
    Ok(())
}

impl Cell {
    /// The view shows an edit that will never be in the log.
    pub(crate) fn spoil(&self) {
        self.spoilt.store(true, Ordering::Release);
    }

    /// Whether the document may be seen, as far as is committed; true when nothing is. Its row is read once for each
    /// lifecycle statement, not for each edit.
    ///
    /// # Errors
    /// [`Error::History`] when the store cannot be read.
    pub(crate) fn is_visible(&self, reader: &Reader) -> Result<bool, Error> {
        // Counted before the row is read: a statement committed in between is not taken for seen.
        let seen = self.statements.load(Ordering::Acquire) + 1;
        if self.visible_after.load(Ordering::Acquire) == seen {
            return Ok(true);
        }
        let Some(row) = reader.row(self.id)? else { return Ok(true) };
        let visible = crate::history::fold::is_visible(&row);
        if visible {
            self.visible_after.store(seen, Ordering::Release);
        }
        Ok(visible)
    }

    /// Whether the view is there and nobody's edits are on their way: then it equals the log.
    pub(crate) fn settled(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) == 0
    }

    /// The view's state if it is materialised and free.
    pub(crate) fn try_save(&self) -> Option<Result<(crate::id::Heads, Vec<u8>), ViewError>> {
        let held = self.view.try_lock().ok()?;
        let view = held.view.as_ref()?;
        Some(view.save().map(|bytes| (view.heads(), bytes)))
    }

    /// The heads of the view, if it is materialised and free.
    pub(crate) fn heads(&self) -> Option<crate::id::Heads> {
        let held = self.view.try_lock().ok()?;
        held.view.as_ref().map(View::heads)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> DocumentId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&n.to_le_bytes());
        DocumentId(id)
    }

    fn is_warm(set: &WorkingSet, n: usize) -> bool {
        lock(&set.cell(id(n)).view).view.is_some()
    }

    #[test]
    fn views_stay_within_the_budget_and_the_oldest_go_first() {
        let one = View::new().bytes_estimate();
        for room in [5, 100] {
            let set = WorkingSet::new(room * one);
            for n in 0..1000 {
                let cell = set.cell(id(n));
                set.adopt(&cell, View::new(), None).unwrap();
                let (count, bytes) = set.usage();
                assert!(bytes <= room * one && bytes == count * one, "{count} views of {bytes} bytes");
                assert!(is_warm(&set, n), "the newest stays");
            }
            let (count, _) = set.usage();
            assert!(count >= room * 7 / 8, "{count} of {room}");
            assert!((0..1000 - count).all(|n| !is_warm(&set, n)) && (1000 - count..1000).all(|n| is_warm(&set, n)));
        }
    }

    #[test]
    fn views_that_grew_are_weighed_again_before_long_and_those_with_edits_on_their_way_stay() {
        let one = View::new().bytes_estimate();
        let set = WorkingSet::new(1000 * one);
        let (grown, busy) = (set.cell(id(0)), set.cell(id(1)));
        for cell in [&grown, &busy] {
            set.adopt(cell, View::new(), None).unwrap();
        }
        let in_flight = WorkingSet::in_flight(&busy);
        for cell in [&grown, &busy] {
            cell.bytes.store(900 * one, Ordering::Relaxed);
        }
        for n in 2..2 + WEIGH_EVERY {
            set.adopt(&set.cell(id(n)), View::new(), None).unwrap();
        }
        assert!(!is_warm(&set, 0) && is_warm(&set, 1));
        drop(in_flight);
    }
}
