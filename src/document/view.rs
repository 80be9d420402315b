//! The materialised document: Automerge's own form of it, in memory, for reading and editing.
//!
//! A [`View`] is a cache. The log holds the changes, which are the truth; a view is built from a snapshot and the
//! changes after it, kept while somebody reads or edits, and dropped at will. That is also what makes it safe to work
//! with a library that may panic on hostile input: every call into it is guarded, and after a panic, or a failure that
//! leaves the inside in doubt, the view is *broken*. A broken view answers [`ViewError::Broken`] to everything; its
//! owner drops it and builds another one without what broke it.
//!
//! Remote changes come in two ways. One made on top of exactly this state is replayed as a local edit (see
//! [`replay`](super::replay)), in microseconds. All others are applied together in one pass over the objects they touch.

use std::any::Any;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use automerge::transaction::CommitOptions;
use automerge::{Automerge, AutomergeError, ReadDoc, SaveOptions};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::edit::Edit;
use super::json::JsonError;
use super::reading::Reading;
use super::replay::{Clock, Outcome, replay};
use super::{Change, ChangeError, Path};
use crate::id::{ActorId, ChangeHash, Heads, shortened};

/// Why a view cannot be built, changed or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ViewError {
    /// An earlier failure left the inside in doubt. Drop this view and build it from the log.
    #[error("the materialised document is broken by an earlier failure and must be rebuilt")]
    Broken,
    /// Automerge, or the caller's own closure, panicked. The view is broken now.
    #[error("panic while working on the document: {0}")]
    Panicked(String),
    /// A change passed every check for being replayed and came out as another one. The view is broken now.
    #[error("change {hash} was replayed as {made}")]
    ReplayMismatch {
        /// The change.
        hash: ChangeHash,
        /// What came out.
        made: ChangeHash,
    },
    /// Bytes or changes do not make a document: something they depend on is missing, or their heads do not hold.
    #[error("the document cannot be built: {0}")]
    Unloadable(String),
    /// A change depends on one that neither the view nor the batch has. The view is broken now.
    #[error("change {0} cannot be applied: something it depends on is missing")]
    Incomplete(ChangeHash),
    /// Heads of which the document has no history.
    #[error("change {0} is not in this document")]
    UnknownHead(ChangeHash),
    /// There is no value at a path.
    #[error("there is nothing at {0}")]
    NotFound(Path),
    /// The value at a path is not of the kind the operation needs.
    #[error("the value at {path} is {found}, not {expected}")]
    WrongKind {
        /// Where.
        path: Path,
        /// What the operation works on.
        expected: &'static str,
        /// What is there.
        found: &'static str,
    },
    /// A position lies outside of a list or text.
    #[error("position {position} is outside of {path}, which has {length}")]
    OutOfRange {
        /// The list or text.
        path: Path,
        /// The position.
        position: usize,
        /// Its length: elements, or Unicode code points.
        length: usize,
    },
    /// A document as a whole can only be an object.
    #[error("a document is a JSON object at its root")]
    RootNotMap,
    /// A JSON value has no place in a document, or the reverse.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A value has not the shape of the type it is read as, or the type does not serialise.
    #[error("serialisation: {0}")]
    Serde(#[from] serde_json::Error),
    /// A change that was made here is not one we could log.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// Automerge refuses.
    #[error("automerge: {0}")]
    Automerge(String),
}

impl From<AutomergeError> for ViewError {
    fn from(error: AutomergeError) -> Self {
        Self::Automerge(error.to_string())
    }
}

/// How many changes were applied which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Replayed as local edits.
    pub replayed: usize,
    /// Applied together.
    pub grouped: usize,
}

/// What a change says of itself beside its edits.
#[derive(Debug, Clone)]
pub struct EditOptions {
    /// Under which author. Two views must never edit under one author at a time: draw one with [`ActorId::random`].
    pub actor: ActorId,
    /// When, in seconds since 1970.
    pub time: i64,
    /// Why, in the author's words.
    pub message: Option<String>,
}

/// One document, materialised.
pub struct View {
    document: Automerge,
    /// Read when first needed: a view that is only read needs none.
    clock: Option<Clock>,
    broken: AtomicBool,
}

impl Default for View {
    fn default() -> Self {
        Self::new()
    }
}

impl View {
    /// The empty document.
    #[must_use]
    pub fn new() -> Self {
        Self::from_automerge(Automerge::new())
    }

    fn from_automerge(document: Automerge) -> Self {
        Self { document, clock: None, broken: AtomicBool::new(false) }
    }

    /// Builds a document from chunks, one behind the other: a snapshot if there is one, then changes in any order.
    ///
    /// # Errors
    /// [`ViewError::Unloadable`] when the chunks are damaged, do not have the heads they say, or lack a dependency;
    /// [`ViewError::Panicked`] when automerge panics over them.
    ///
    /// # Cost
    /// About 1.7 us a change and 0.1 us an operation: 0.45 s for a paper of 260,000 keystrokes.
    pub fn load(chunks: &[u8]) -> Result<Self, ViewError> {
        let load = || {
            let document = Automerge::load(chunks).map_err(|error| ViewError::Unloadable(error.to_string()))?;
            match document.get_missing_deps(&[]).first() {
                None => Ok(Self::from_automerge(document)),
                Some(hash) => Err(ViewError::Unloadable(format!("change {hash} is missing"))),
            }
        };
        catch_unwind(load).unwrap_or_else(|panic| Err(ViewError::Panicked(message_of(&*panic))))
    }

    /// The hashes that nothing in this document follows.
    #[must_use]
    pub fn heads(&self) -> Heads {
        Heads::new(self.document.get_heads().iter().map(|hash| ChangeHash(hash.0)).collect())
    }

    /// How many changes the document has.
    #[must_use]
    pub fn change_count(&self) -> u64 {
        self.document.stats().num_changes
    }

    /// Whether the view must be dropped: see the module.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// The whole document as one compressed chunk, which [`View::load`] reads.
    ///
    /// # Errors
    /// [`ViewError::Broken`], [`ViewError::Panicked`].
    ///
    /// # Cost
    /// About 40 ns a change: 10 ms for a paper of 260,000 keystrokes.
    pub fn save(&self) -> Result<Vec<u8>, ViewError> {
        let options = SaveOptions { deflate: true, retain_orphans: false };
        self.reading(|document| Ok(document.save_with_options(options)))
    }

    /// About how many bytes of memory the view takes.
    ///
    /// What was measured, as growth of the resident set: see the constants below. Long values are not seen by it, so
    /// an owner with a budget adds the bytes of the chunks it loaded.
    #[must_use]
    pub fn bytes_estimate(&self) -> usize {
        let stats = self.document.stats();
        let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        BYTES_EMPTY
            .saturating_add(count(stats.num_changes).saturating_mul(BYTES_PER_CHANGE))
            .saturating_add(count(stats.num_ops).saturating_mul(BYTES_PER_OP))
    }

    /// Automerge's form of the document, for reading.
    ///
    /// Its functions are not guarded: a caller that reads hostile documents through it catches panics itself.
    #[must_use]
    pub fn document(&self) -> &Automerge {
        &self.document
    }

    /// Whether the document contains a change.
    #[must_use]
    pub fn contains(&self, hash: ChangeHash) -> bool {
        self.document.get_change_meta_by_hash(&automerge::ChangeHash(hash.0)).is_some()
    }

    /// Applies changes made elsewhere, in an order in which each comes after what it depends on.
    ///
    /// Changes the document has already are skipped. From the first change on that cannot be replayed, the rest is
    /// applied together: once that pass is paid for, one change more in it is cheaper than a replay.
    ///
    /// # Errors
    /// [`ViewError::Incomplete`] when a dependency is missing, [`ViewError::ReplayMismatch`], [`ViewError::Panicked`],
    /// [`ViewError::Automerge`]. The view is broken after any of them.
    ///
    /// # Cost
    /// A replay takes about 15 us an edit. Together: linear in the objects touched (0.1 us an operation of the
    /// document), and 6 us a change.
    pub fn apply(&mut self, changes: &[Change]) -> Result<Applied, ViewError> {
        self.guarded(|view| view.apply_unguarded(changes))
    }

    fn apply_unguarded(&mut self, changes: &[Change]) -> Result<Applied, ViewError> {
        let mut seen = HashSet::new();
        let mut fresh: Vec<&Change> =
            changes.iter().filter(|change| !self.contains(change.hash()) && seen.insert(change.hash())).collect();
        let mut applied = Applied::default();
        let ops: u64 = fresh.iter().map(|change| change.op_count() + 1).sum();
        if !together_is_cheaper(ops, self.document.stats().num_ops) {
            for change in &fresh {
                if !self.replay(change)? {
                    break;
                }
                applied.replayed += 1;
            }
            fresh.drain(..applied.replayed);
        }
        applied.grouped = fresh.len();
        self.apply_together(&fresh)?;
        Ok(applied)
    }

    /// Tries to make `change` as a local edit; false when it has to be applied the other way.
    fn replay(&mut self, change: &Change) -> Result<bool, ViewError> {
        let clock = self.clock.get_or_insert_with(|| Clock::of(&self.document));
        if !clock.follows(&self.document.get_heads(), change) {
            return Ok(false);
        }
        match replay(&mut self.document, change) {
            Outcome::Replayed => {
                clock.add(change);
                Ok(true)
            }
            Outcome::NotCovered => Ok(false),
            Outcome::Mismatch(made) => Err(ViewError::ReplayMismatch { hash: change.hash(), made }),
        }
    }

    fn apply_together(&mut self, changes: &[&Change]) -> Result<(), ViewError> {
        if changes.is_empty() {
            return Ok(());
        }
        let inner: Vec<automerge::Change> = changes.iter().map(|change| change.as_automerge().clone()).collect();
        self.document.apply_changes(inner)?;
        for change in changes {
            // Automerge keeps a change that lacks a dependency aside, without a word.
            if !self.contains(change.hash()) {
                return Err(ViewError::Incomplete(change.hash()));
            }
            if let Some(clock) = &mut self.clock {
                clock.add(change);
            }
        }
        Ok(())
    }

    /// Edits the document: runs `edits` and makes one change of all they did, or none if they did nothing.
    ///
    /// When `edits` fail, everything is as it was before.
    ///
    /// # Errors
    /// Whatever `edits` return. [`ViewError::Broken`]; [`ViewError::Panicked`] when `edits` or automerge panic, which
    /// breaks the view.
    ///
    /// # Cost
    /// 10 to 20 us for a keystroke, in a document of any size.
    pub fn edit<R, E: From<ViewError>>(
        &mut self,
        options: EditOptions,
        edits: impl FnOnce(&mut Edit<'_>) -> Result<R, E>,
    ) -> Result<(R, Option<Change>), E> {
        let done = self.guarded(|view| {
            view.document.set_actor(automerge::ActorId::from(options.actor.as_bytes()));
            let mut edit = Edit::new(view.document.transaction());
            let answer = match edits(&mut edit) {
                Ok(answer) => answer,
                Err(error) => {
                    edit.into_transaction().rollback();
                    return Ok(Err(error));
                }
            };
            let mut commit = CommitOptions::default().with_time(options.time);
            if let Some(message) = options.message {
                commit.set_message(message);
            }
            let Some(_) = edit.into_transaction().commit_with(commit).0 else { return Ok(Ok((answer, None))) };
            let made = view.document.get_last_local_change();
            let change =
                Change::from_automerge(made.ok_or_else(|| ViewError::Automerge("no change was made".into()))?)?;
            if let Some(clock) = &mut view.clock {
                clock.add(&change);
            }
            Ok(Ok((answer, Some(change))))
        });
        done.unwrap_or_else(|error| Err(error.into()))
    }

    /// The whole document as JSON (see [`json`](super::json)).
    ///
    /// # Errors
    /// [`ViewError::Broken`], [`ViewError::Panicked`]; [`ViewError::Json`] when it is nested too deep.
    pub fn to_json(&self) -> Result<Value, ViewError> {
        self.now().whole()
    }

    /// The whole document as JSON, as it was at `heads`.
    ///
    /// # Errors
    /// As [`View::to_json`]; [`ViewError::UnknownHead`] when the document has no such change.
    pub fn to_json_at(&self, heads: &Heads) -> Result<Value, ViewError> {
        self.at(heads)?.whole()
    }

    /// The document as it is.
    #[must_use]
    pub fn now(&self) -> Reading<'_> {
        Reading::new(self, None)
    }

    /// The document as it was at `heads`.
    ///
    /// # Errors
    /// [`ViewError::UnknownHead`] when the document has no such change.
    pub fn at(&self, heads: &Heads) -> Result<Reading<'_>, ViewError> {
        if let Some(unknown) = heads.as_slice().iter().find(|head| !self.contains(**head)) {
            return Err(ViewError::UnknownHead(*unknown));
        }
        let heads = heads.as_slice().iter().map(|hash| automerge::ChangeHash(hash.0)).collect();
        Ok(Reading::new(self, Some(heads)))
    }

    /// The value at `path`, as a type of the caller's; `None` when there is nothing.
    ///
    /// # Errors
    /// As [`Reading::read`].
    pub fn read<T: DeserializeOwned>(&self, path: impl Into<Path>) -> Result<Option<T>, ViewError> {
        self.now().read(path)
    }

    /// All values that conflict at `path`, as JSON, the one that wins last. One when there is no conflict.
    ///
    /// # Errors
    /// As [`Reading::json`].
    pub fn conflicts(&self, path: impl Into<Path>) -> Result<Vec<Value>, ViewError> {
        self.now().conflicts(path)
    }

    /// Runs `read`, guarded: a panic breaks the view.
    pub(super) fn reading<T>(&self, read: impl FnOnce(&Automerge) -> Result<T, ViewError>) -> Result<T, ViewError> {
        if self.is_broken() {
            return Err(ViewError::Broken);
        }
        catch_unwind(AssertUnwindSafe(|| read(&self.document))).unwrap_or_else(|panic| {
            self.broken.store(true, Ordering::Relaxed);
            Err(ViewError::Panicked(message_of(&*panic)))
        })
    }

    /// Runs `work`; a panic or an error of `work` breaks the view.
    fn guarded<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, ViewError>) -> Result<T, ViewError> {
        if self.is_broken() {
            return Err(ViewError::Broken);
        }
        let done = catch_unwind(AssertUnwindSafe(|| work(self)))
            .unwrap_or_else(|panic| Err(ViewError::Panicked(message_of(&*panic))));
        if done.is_err() {
            *self.broken.get_mut() = true;
        }
        done
    }
}

/// What an empty document takes.
const BYTES_EMPTY: usize = 18 * 1024;
/// What a change takes, its operations aside.
const BYTES_PER_CHANGE: usize = 150;
/// What an operation takes.
const BYTES_PER_OP: usize = 40;

/// Whether one pass over the document costs less than replaying `ops` operations (and changes) one by one.
///
/// A replay takes about 12 us an operation, the pass 100 us, 0.1 us for each operation of the document and 4 us for
/// each that is new.
fn together_is_cheaper(ops: u64, ops_in_document: u64) -> bool {
    ops > 16 + ops_in_document / 80
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    shortened(text.unwrap_or("of an unknown kind"))
}
