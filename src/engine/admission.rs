//! Full admission: what an untrusted peer sends is tried on the document before it is logged.
//!
//! The gate knows what one change says of itself. Whether the object it writes to exists, and is of the kind it takes
//! it for, only the document knows, and automerge finds out by panicking. So a client's changes are applied under
//! `catch_unwind` first, and only what applied is offered to the log.
//!
//! They are applied to a *trial* view, which nobody reads: a reader never sees what is not logged, and no edit made here
//! is ever on top of it. Trial views have a working set of their own, with a budget of their own; each is brought up to
//! date from the log before it is used, and skips what it tried itself. It may run ahead of the log by what is on its
//! way to the writer, and is dropped when the writer refuses some of that, when an append fails, and when automerge
//! panics over it. Dropped, it is built again from the log: what a caught panic leaves behind is never used.
//!
//! A change is tried only on top of everything it depends on, and only once its document exists. What comes too early
//! is not parked, as the parked would enter the log untried; its sender is asked for the document again.
//!
//! A change that does not apply is put in *quarantine*: a ring of rows in the keyspace `held`. When it comes again it is
//! refused by its name.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::building::Tell;
use super::commit::block_on;
use super::core::{Admitted, Clash, Incoming, IncomingBody, Input};
use super::database::Database;
use super::judge::{Denial, Judge, Ruling};
use super::judged::Creations;
use super::refusal::{Audit, Refusal};
#[cfg(any(feature = "quic", feature = "web"))]
use super::turns::cost_of_trial;
use super::working_set::{Cell, WorkingSet};
use crate::document::{Change, View, ViewError};
use crate::error::Error;
use crate::history::{HistoryError, Names, Origin, Readable, Reader};
use crate::id::{ActorId, ChangeHash, DocumentId, LogCursor, Lsn, NodeId, shortened};
use crate::limits::Limits;
use crate::log::record::{Admission, NameKind};
use crate::log::rows::{QuarantineRow, decode_row, encode_row};
use crate::log::{Keyspace, StorageError};
use crate::sync::{Arrival, Denied};

/// Rows that were tried.
#[derive(Debug, Default)]
pub struct Examined {
    /// What may be offered to the log with [`Database::admit_examined`], in order.
    pub rows: Vec<Incoming>,
    /// Documents of which something came before what it depends on, and what that is (nothing: the creation).
    pub missing: Vec<(DocumentId, Vec<ChangeHash>)>,
    /// What their sender may not write; with the changes that stand on it.
    pub denied: Vec<Denied>,
    /// The same, for the log.
    pub(crate) refused: Vec<Refusal>,
    /// What allowed those of the rows that were judged, for the log: by a change's hash or a statement's id.
    pub(crate) allowed: Vec<([u8; 32], Ruling)>,
    /// Why the rest was not tried: a change that cannot be applied. Its sender is not to be heard any further.
    pub fault: Option<Error>,
}

/// The trial views of a database, and its quarantine.
#[derive(Debug)]
pub(super) struct Trials {
    views: WorkingSet,
    /// Documents as the log has them, for those who decide who may do what.
    consulted: WorkingSet,
    // Protects the names in quarantine. Held for look-ups, never while a change is tried.
    quarantine: Mutex<Quarantine>,
    /// Changes refused since the database was opened because they do not apply or were in quarantine.
    refused: AtomicU64,
    /// Claims of nodes about other nodes that were taken for their own word since then: unsigned ones, and forged ones.
    unproven: [AtomicU64; 2],
}

/// A ring of changes that cannot be applied.
#[derive(Debug, Default)]
struct Quarantine {
    hashes: HashMap<ChangeHash, u64>,
    next: u64,
    rows_max: u64,
}

impl Trials {
    /// Reads the quarantine of a store.
    ///
    /// # Errors
    /// [`StorageError`] when the disk does not give it.
    pub(super) fn open(reader: &Reader, limits: &Limits) -> Result<Self, StorageError> {
        let mut quarantine = Quarantine { rows_max: limits.quarantine_rows.max(1), ..Quarantine::default() };
        let until = [QUARANTINE_PREFIX[0] + 1];
        reader.storage().scan(Keyspace::Held, QUARANTINE_PREFIX, &until, false, &mut |key, bytes| {
            // What cannot be read is as good as not there: its change is tried again, and refused again.
            if let Ok(row) = decode_row::<QuarantineRow>(Keyspace::Held, key, bytes) {
                quarantine.next = quarantine.next.max(row.number + 1);
                quarantine.hashes.insert(ChangeHash(row.hash), row.number);
            }
            ControlFlow::Continue(())
        })?;
        let (views, consulted) = (WorkingSet::new(limits.trial_budget), WorkingSet::new(limits.consulted_budget));
        let (quarantine, refused, unproven) = (Mutex::new(quarantine), AtomicU64::new(0), Default::default());
        Ok(Self { views, consulted, quarantine, refused, unproven })
    }

    pub(super) fn consulted(&self) -> &WorkingSet {
        &self.consulted
    }

    /// How many changes were refused since the database was opened.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// How many claims of nodes about other nodes were taken for their own word: unsigned ones, and forged ones.
    pub(super) fn unproven(&self) -> [u64; 2] {
        self.unproven.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    /// Counts one.
    #[cfg(feature = "quic")]
    pub(super) fn count_unproven(&self, is_forged: bool) {
        self.unproven[usize::from(is_forged)].fetch_add(1, Ordering::Relaxed);
    }

    /// How many trial views were built since the database was opened.
    pub(super) fn materialized(&self) -> u64 {
        self.views.materialized()
    }

    /// How many documents have a trial view, and about how many bytes those take.
    pub(super) fn usage(&self) -> (usize, usize) {
        self.views.usage()
    }

    fn quarantined(&self, hash: ChangeHash) -> bool {
        self.lock().hashes.contains_key(&hash)
    }

    /// Takes a name into the ring; its row's key and number.
    fn hold(&self, hash: ChangeHash) -> (Vec<u8>, u64) {
        let mut quarantine = self.lock();
        let number = quarantine.next;
        quarantine.next += 1;
        let oldest = number.checked_sub(quarantine.rows_max);
        quarantine.hashes.retain(|_, held| Some(*held) != oldest);
        quarantine.hashes.insert(hash, number);
        let slot = (number % quarantine.rows_max) as u32;
        ([QUARANTINE_PREFIX, &slot.to_be_bytes()].concat(), number)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Quarantine> {
        self.quarantine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is tried without another thread: so many rows, bytes and operations, on trial views of so many bytes. That takes
/// some hundreds of microseconds, and at worst, where a change cannot be made as a local edit, a few milliseconds.
#[cfg(any(feature = "quic", feature = "web"))]
const QUICK_ROWS: usize = 16;
#[cfg(any(feature = "quic", feature = "web"))]
const QUICK_BYTES: usize = 16 << 10;
#[cfg(any(feature = "quic", feature = "web"))]
const QUICK_OPS: u64 = 256;
#[cfg(any(feature = "quic", feature = "web"))]
const QUICK_VIEW_BYTES: usize = 4 << 20;

const QUARANTINE_PREFIX: &[u8] = b"q";

/// What trying some changes of one document came to.
#[derive(Default)]
pub(super) struct Outcome {
    /// Those that applied, or need not be tried.
    pub(super) passed: Vec<Change>,
    pub(super) missing: Option<Vec<ChangeHash>>,
    /// Those that may not be made, and why.
    pub(super) denied: Vec<(Arrival, String)>,
    /// The same, for the log.
    pub(super) refused: Vec<Refusal>,
    /// Under which rules those were allowed that were judged.
    pub(super) rules_version: u32,
    /// What allowed each of them.
    pub(super) allowed: Vec<([u8; 32], Ruling)>,
    fault: Option<(ChangeHash, String)>,
    /// It stands on what this node cannot apply, so that nobody can say whether it fits.
    undecided: Option<String>,
}

impl Outcome {
    /// Takes note that a change could not be applied to be judged.
    pub(super) fn could_not_apply(&mut self, hash: ChangeHash, error: &ViewError) {
        match error {
            // It was on top of what was on its way to the log.
            ViewError::Incomplete(_) => _ = self.missing.get_or_insert_default(),
            error => self.fault = Some((hash, error.to_string())),
        }
    }
}

impl Database {
    /// Tries rows from an untrusted peer, before they are offered to the log.
    ///
    /// Stops at the first change that cannot be applied. What does not have to be tried (statements, changes we have)
    /// is passed on as it is. The rows are marked as fully admitted, and as having entered through `peer`.
    ///
    /// # Errors
    /// [`Error`] when the log cannot be read, or a document cannot be built from it.
    ///
    /// # Cost
    /// Blocks: 30 to 80 us for a keystroke on a document that was tried before, its loading otherwise. Accepted changes
    /// cost as many microseconds an operation as automerge takes, at most 10.
    pub fn examine(&self, peer: NodeId, rows: Vec<Incoming>) -> Result<Examined, Error> {
        self.examine_for(peer, rows, None)
    }

    /// [`Self::examine`], where `judge` says what the sender may do.
    ///
    /// # Errors
    /// As [`Self::examine`].
    pub(crate) fn examine_for(
        &self,
        peer: NodeId,
        rows: Vec<Incoming>,
        judge: Option<&dyn Judge>,
    ) -> Result<Examined, Error> {
        let mut examined = Examined::default();
        let mut created = Creations::default();
        let mut rows = rows.into_iter().peekable();
        while let Some(mut row) = rows.next() {
            row.origin.node = peer;
            row.origin.admission = Admission::Full;
            let change = match row.body {
                IncomingBody::Lifecycle(_) => {
                    self.take_statement(row, judge, &mut created, &mut examined)?;
                    continue;
                }
                IncomingBody::Change(change) => *change,
            };
            let (document, origin) = (row.document, row.origin);
            let mut changes = vec![change];
            while changes.len() < self.limits().group_records_max
                && let Some(next) =
                    rows.next_if(|next| next.document == document && matches!(next.body, IncomingBody::Change(_)))
                && let IncomingBody::Change(change) = next.body
            {
                changes.push(*change);
            }
            if created.is_denied(document) {
                let denied = |change: Change| Denied {
                    document,
                    change: Some((change.hash(), change.deps().to_vec())),
                    why: Denial::default().told,
                };
                examined.denied.extend(changes.into_iter().map(denied));
                continue;
            }
            let outcome = self.try_changes(document, changes, &created, judge)?;
            if !outcome.passed.is_empty() {
                // A creation is allowed with the first change.
                let ruling = outcome.allowed.first().map(|(_, ruling)| ruling);
                examined.rows.extend(created.take_held(document, ruling, &mut examined.allowed));
            }
            let origin = Origin { rules_version: outcome.rules_version, ..origin };
            let body = |change| IncomingBody::Change(Box::new(change));
            let passed = outcome.passed.into_iter().map(body);
            let row = |body| Incoming { document, body, origin: origin.clone(), signature: None };
            examined.rows.extend(passed.map(row));
            let denied = |(change, why)| Denied { document, change: Some(change), why };
            examined.denied.extend(outcome.denied.into_iter().map(denied));
            examined.refused.extend(outcome.refused);
            examined.allowed.extend(outcome.allowed);
            if let Some(missing) = outcome.missing {
                examined.missing.push((document, missing));
            }
            if let Some((hash, why)) = outcome.fault {
                examined.fault = Some(self.refuse(peer, document, hash, why)?);
                break;
            }
            if let Some(why) = outcome.undecided {
                examined.fault = Some(Error::Refused { document, why });
                break;
            }
        }
        // Nothing else of them came along.
        let denied: HashSet<DocumentId> = examined.denied.iter().map(|denied| denied.document).collect();
        examined.rows.extend(created.into_held().filter(|row| !denied.contains(&row.document)));
        let via = (peer != self.node()).then_some(peer);
        examined.refused.iter_mut().for_each(|refusal| refusal.via = via);
        Ok(examined)
    }

    /// Offers rows to the log that [`Database::examine`] passed, as [`Database::admit_with`] does.
    ///
    /// # Errors
    /// As [`Database::admit`].
    ///
    /// # Cancel safety
    /// As [`Database::admit`].
    pub async fn admit_examined(
        &self,
        clash: Clash,
        rows: Vec<Incoming>,
        via: Option<NodeId>,
        cursor: Option<LogCursor>,
    ) -> Result<Admitted, Error> {
        self.admit_judged(clash, rows, via, cursor, Audit::default()).await
    }

    /// [`Self::admit_examined`], with what is to be written down of what their sender may and may not write: it is on the
    /// disk when this resolves, and may be told.
    pub(super) async fn admit_judged(
        &self,
        clash: Clash,
        rows: Vec<Incoming>,
        via: Option<NodeId>,
        cursor: Option<LogCursor>,
        audit: Audit,
    ) -> Result<Admitted, Error> {
        let admitted = self.admit_audited(clash, rows, via, cursor, audit).await;
        // A trial view must not hold what the log will never have.
        match &admitted {
            Ok(admitted) => {
                let refused = admitted.refused.iter().map(|(document, _)| document);
                let outranked = admitted.outranked.iter().map(|(document, _)| document);
                for document in refused.chain(outranked).chain(admitted.missing.iter().map(|(document, _)| document)) {
                    self.trials().views.cell(*document).spoil();
                }
            }
            Err(_) => self.trials().views.discard_views(),
        }
        admitted
    }

    /// What trying rows costs at most, in microseconds: as claimed, and the documents that have to be made for it.
    ///
    /// # Errors
    /// [`Error`] when a document's row cannot be read.
    #[cfg(any(feature = "quic", feature = "web"))]
    pub(super) fn cost_of_trying(&self, rows: &[Incoming]) -> Result<u64, Error> {
        let (mut changes, mut operations, mut to_materialize) = (0_u64, 0_u64, 0_u64);
        let mut cold = HashSet::new();
        for row in rows {
            let IncomingBody::Change(change) = &row.body else { continue };
            (changes, operations) = (changes + 1, operations.saturating_add(change.op_count()));
            if cold.insert(row.document) && !self.trials().views.is_warm(row.document) {
                to_materialize += self.reader().row(row.document)?.map_or(0, |row| row.change_count);
            }
        }
        Ok(cost_of_trial(changes, operations, to_materialize))
    }

    /// Tries the changes of a document chunk in one go, so that [`Database::examine`] then finds them tried: 260,000 at
    /// once cost a tenth of what they cost in groups of 1,024. When one of them does not apply, nothing is gained.
    ///
    /// `built` is the document that they were taken from. Of a document that has no change here yet it becomes the trial
    /// view: to make it again would prove nothing more.
    ///
    /// # Errors
    /// As [`Database::examine`].
    #[cfg(any(feature = "quic", feature = "web"))]
    pub(super) fn try_ahead(&self, rows: &[Incoming], built: View) -> Result<(), Error> {
        let trials = self.trials();
        let Some(document) = rows.first().map(|row| row.document) else { return Ok(()) };
        let changes = || {
            rows.iter().filter_map(|row| match &row.body {
                IncomingBody::Change(change) => Some(&**change),
                IncomingBody::Lifecycle(_) => None,
            })
        };
        if changes().any(|change| trials.quarantined(change.hash())) {
            return Ok(());
        }
        let row = self.reader().row(document)?;
        if let Some(row) = &row {
            trials.views.note_changes(&[(document, Lsn(row.last_lsn))]);
        }
        let cell = trials.views.cell(document);
        let tell = |void| self.tell_void(void);
        trials.views.with_view(&cell, self.reader(), &tell, |view, readable| {
            // What was withdrawn or is hidden is neither here nor in the view.
            if view.change_count() == 0 && row.is_none_or(|row| row.change_count == 0 && row.generation == 0) {
                *view = built;
                return Ok(());
            }
            drop(built);
            let changes = changes().cloned().collect();
            let (_, fresh) = sort_out(self.reader(), document, view, readable, changes)?;
            // Which of them does not apply shows when they are tried in groups.
            let _ = view.apply_proven(&fresh, true);
            Ok(())
        })
    }

    /// Whether trying `rows` takes no longer than giving them to another thread: a few short changes, on small documents
    /// that were tried before or are new.
    #[cfg(any(feature = "quic", feature = "web"))]
    pub(super) fn is_quick_to_examine(&self, rows: &[Incoming]) -> bool {
        let (mut bytes, mut ops) = (0, 0);
        for row in rows {
            match &row.body {
                IncomingBody::Change(change) => {
                    bytes += change.bytes().len();
                    ops += change.op_count();
                }
                IncomingBody::Lifecycle(statement) => bytes += statement.len(),
            }
        }
        let is_short = rows.len() <= QUICK_ROWS && bytes <= QUICK_BYTES && ops <= QUICK_OPS;
        let is_at_hand = |row: &Incoming| {
            self.trials().views.is_at_hand(row.document, QUICK_VIEW_BYTES)
                || self.reader().row(row.document).is_ok_and(|row| row.is_none())
        };
        is_short && rows.iter().all(is_at_hand)
    }

    fn try_changes(
        &self,
        document: DocumentId,
        changes: Vec<Change>,
        created: &Creations,
        judge: Option<&dyn Judge>,
    ) -> Result<Outcome, Error> {
        let trials = self.trials();
        if let Some(known) = changes.iter().find(|change| trials.quarantined(change.hash())) {
            let fault = Some((known.hash(), "it is in quarantine since it could not be applied before".to_owned()));
            return Ok(Outcome { fault, ..Outcome::default() });
        }
        match self.reader().row(document)? {
            Some(row) => trials.views.note_changes(&[(document, Lsn(row.last_lsn))]),
            None if created.contains(document) => {}
            None => return Ok(Outcome { missing: Some(Vec::new()), ..Outcome::default() }),
        }
        let judging = judge.map(|judge| self.judging(judge, document, created)).transpose()?.flatten();
        let cell = trials.views.cell(document);
        let mut together = Err(ViewError::Broken);
        let tell = |void| self.tell_void(void);
        let mut outcome = trials.views.with_view(&cell, self.reader(), &tell, |view, readable| {
            let (mut outcome, mut fresh) = sort_out(self.reader(), document, view, readable, changes)?;
            if let Some(judging) = &judging {
                judging.set_aside_unlogged(&mut outcome)?;
                let judged = judging.judge(view, fresh, &mut outcome);
                if judged.is_err() || !outcome.denied.is_empty() || view.is_broken() {
                    // It may hold what was applied to be judged, and nobody may find that in it.
                    cell.spoil();
                }
                fresh = judged?;
            }
            together = view.apply_proven(&fresh, true);
            Ok((outcome, fresh))
        });
        if let (Ok((outcome, fresh)), Ok(_)) = (&mut outcome, &together) {
            outcome.passed.append(fresh);
        }
        let (mut outcome, fresh) = outcome?;
        if together.is_ok() {
            return Ok(outcome);
        }
        // One of them did it. The view is built again, and they are tried one by one.
        for (number, change) in fresh.iter().enumerate() {
            let mut tried = Ok(());
            trials.views.with_view(&cell, self.reader(), &tell, |view, _| {
                if !view.contains(change.hash()) {
                    tried = view.apply_proven(std::slice::from_ref(change), false);
                }
                Ok(())
            })?;
            match tried {
                Ok(()) => outcome.passed.push(change.clone()),
                // It was on top of what was on its way to the log, which the new view lacks.
                Err(ViewError::Incomplete(_)) => {
                    outcome.missing.get_or_insert_default();
                    break;
                }
                Err(_) if change.has_marks() && self.is_beyond_proof(&cell, &fresh[..=number], &tell)? => {
                    outcome.passed.push(change.clone());
                }
                Err(error) => {
                    outcome.fault = Some((change.hash(), error.to_string()));
                    break;
                }
            }
        }
        Ok(outcome)
    }

    /// Whether marks could not be proved since the document cannot be, because of what a trusted node brought. Then they
    /// are applied as that was, after what was tried before them and is not in the log yet.
    fn is_beyond_proof(&self, cell: &Arc<Cell>, changes: &[Change], tell: Tell<'_>) -> Result<bool, Error> {
        self.trials().views.with_view(cell, self.reader(), tell, |view, _| {
            Ok(!view.gives_itself_back() && view.apply(changes).is_ok())
        })
    }

    /// Puts a change in quarantine, and makes the error that its sender is told.
    fn refuse(&self, peer: NodeId, document: DocumentId, hash: ChangeHash, why: String) -> Result<Error, Error> {
        let trials = self.trials();
        trials.refused.fetch_add(1, Ordering::Relaxed);
        tracing::error!(%document, %hash, peer = %peer.short(), %why, "a change that cannot be applied is refused");
        if !trials.quarantined(hash) {
            let (key, number) = trials.hold(hash);
            let row = QuarantineRow { number, document: document.0, hash: hash.0, peer: peer.0, why: shortened(&why) };
            let row = encode_row(Keyspace::Held, &key, &row);
            block_on(self.hold(key, row))?;
        }
        Ok(Error::Unappliable { document, hash, why })
    }

    async fn hold(&self, key: Vec<u8>, row: Vec<u8>) -> Result<(), Error> {
        self.ask(Input::Hold { key, row: Some(row) }).await.map(|_| ())
    }
}

/// Whether the log has a change of this author under this number.
fn is_number_logged(reader: &Reader, document: DocumentId, change: &Change) -> Result<bool, Error> {
    let graph = reader.graph(document)?;
    let graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(graph.change_of(change.actor(), change.seq()).is_some())
}

/// Sets aside what need not be tried and what cannot be yet; the rest is to be applied.
fn sort_out(
    reader: &Reader,
    document: DocumentId,
    view: &mut View,
    readable: &Readable,
    changes: Vec<Change>,
) -> Result<(Outcome, Vec<Change>), Error> {
    let mut outcome = Outcome::default();
    let mut fresh: Vec<Change> = Vec::with_capacity(changes.len());
    let mut seen = HashSet::new();
    let mut numbers: HashMap<ActorId, u64> = HashMap::new();
    for change in changes {
        if view.contains(change.hash()) || readable.hides_change(&change.hash()) {
            // The log has it, or it is on its way there: the writer says which.
            outcome.passed.push(change);
            continue;
        }
        if seen.contains(&change.hash()) {
            // It is there twice, and tried once.
            continue;
        }
        if !readable.is_whole()
            && let Some(why) = stands_on_hidden(reader.names(), readable, &change)?
        {
            outcome.undecided = Some(why);
            break;
        }
        let missing: Vec<ChangeHash> =
            change.deps().iter().copied().filter(|dep| !view.contains(*dep) && !seen.contains(dep)).collect();
        if !missing.is_empty() {
            outcome.missing.get_or_insert_default().extend(missing);
            continue;
        }
        let last = match numbers.get(change.actor()) {
            Some(last) => *last,
            None => view.last_seq(change.actor())?,
        };
        if change.seq() <= last {
            // Another change has its number already. If that one is logged, the writer knows what is to become of this
            // one, which is not applied. If it is only tried, it may yet be refused, and this one would be logged in its
            // place, untried: it is asked for again.
            if is_number_logged(reader, document, &change)? {
                outcome.passed.push(change);
            } else {
                outcome.missing.get_or_insert_default();
            }
            continue;
        }
        numbers.insert(change.actor().clone(), change.seq());
        seen.insert(change.hash());
        fresh.push(change);
    }
    Ok((outcome, fresh))
}

/// Why a change cannot be tried, if it stands on what is hidden here.
fn stands_on_hidden(names: &Names, readable: &Readable, change: &Change) -> Result<Option<String>, HistoryError> {
    let hash = change.hash();
    if let Some(dep) = change.deps().iter().find(|dep| readable.hides_change(dep)) {
        return Ok(Some(format!("change {hash} stands on change {dep}, which cannot be applied here")));
    }
    let actor = names.find(NameKind::Actor, change.actor().as_bytes())?;
    let is_hidden = actor.is_some_and(|actor| readable.hides_author(actor));
    Ok(is_hidden.then(|| format!("change {hash} comes after one of its author's that cannot be applied here")))
}
