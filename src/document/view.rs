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

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use automerge::transaction::CommitOptions;
use automerge::{Automerge, ReadDoc, SaveOptions};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::edit::Edit;
use super::reading::Reading;
use super::replay::{Clock, Outcome, replay, spoils_index};
use super::{Change, ChangeError, Path, ViewError, gate};
use crate::id::{ActorId, ChangeHash, Heads};

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
    pub(super) document: Automerge,
    /// Read when first needed: a view that is only read needs none.
    pub(super) clock: Option<Clock>,
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

    pub(super) fn from_automerge(document: Automerge) -> Self {
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
            gate::check_own_chunks(chunks).map_err(|error| ViewError::Unloadable(error.to_string()))?;
            let document = gate::load_checked(chunks).map_err(|error| ViewError::Unloadable(error.to_string()))?;
            match document.get_missing_deps(&[]).first() {
                None => Ok(Self::from_automerge(document)),
                Some(hash) => Err(ViewError::Unloadable(format!("change {hash} is missing"))),
            }
        };
        catch_unwind(load).unwrap_or_else(|panic| Err(ViewError::Panicked(gate::message_of(&*panic))))
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
    /// Counted from its changes, operations and authors. The weights were fitted to the growth of the resident set when
    /// loading a paper of 260,000 keystrokes as 1, 10 and 100 keystrokes a change (60, 14 and 5 MB), 4,000 small
    /// documents (18 KB each), and one document of 2,000 authors (1.6 MB); on those it is off by less than half. Long
    /// values are not seen by it, so an owner with a budget adds the bytes of the chunks it loaded.
    #[must_use]
    pub fn bytes_estimate(&self) -> usize {
        let stats = self.document.stats();
        let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        BYTES_EMPTY
            .saturating_add(count(stats.num_changes).saturating_mul(BYTES_PER_CHANGE))
            .saturating_add(count(stats.num_ops).saturating_mul(BYTES_PER_OP))
            .saturating_add(count(stats.num_actors).saturating_mul(BYTES_PER_ACTOR))
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
    /// A replay takes little more than a local edit does: 15 to 60 us, at any size. Together: linear in the objects touched (0.1 us an operation of the
    /// document), and 6 us a change.
    pub fn apply(&mut self, changes: &[Change]) -> Result<Applied, ViewError> {
        self.guarded(|view| view.apply_unguarded(changes))
    }

    pub(super) fn apply_unguarded(&mut self, changes: &[Change]) -> Result<Applied, ViewError> {
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

    pub(super) fn apply_together(&mut self, changes: &[&Change]) -> Result<(), ViewError> {
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
            if spoils_index(&change) {
                view.document = gate::load_checked(&view.document.save()).map_err(ChangeError::from)?;
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
            Err(ViewError::Panicked(gate::message_of(&*panic)))
        })
    }

    /// Runs `work`; a panic or an error of `work` breaks the view.
    pub(super) fn guarded<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, ViewError>) -> Result<T, ViewError> {
        if self.is_broken() {
            return Err(ViewError::Broken);
        }
        let done = catch_unwind(AssertUnwindSafe(|| work(self)))
            .unwrap_or_else(|panic| Err(ViewError::Panicked(gate::message_of(&*panic))));
        if done.is_err() {
            *self.broken.get_mut() = true;
        }
        done
    }
}

/// What an empty document takes.
const BYTES_EMPTY: usize = 18 * 1024;
/// What a change takes, its operations aside.
const BYTES_PER_CHANGE: usize = 200;
/// What an author takes.
const BYTES_PER_ACTOR: usize = 600;
/// What an operation takes.
const BYTES_PER_OP: usize = 40;

/// Whether one pass over the document costs less than replaying `ops` operations (and changes) one by one.
///
/// A replay takes about 12 us an operation, the pass 100 us, 0.1 us for each operation of the document and 4 us for
/// each that is new.
fn together_is_cheaper(ops: u64, ops_in_document: u64) -> bool {
    ops > 16 + ops_in_document / 80
}

#[cfg(test)]
mod tests {
    use automerge::marks::ExpandMark;
    use automerge::transaction::Transactable;
    use automerge::{ObjType, ScalarValue};
    use serde_json::json;

    use super::*;

    fn options() -> EditOptions {
        EditOptions { actor: ActorId::random(), time: 7, message: Some("why".into()) }
    }

    fn edit(view: &mut View, edits: impl FnOnce(&mut Edit<'_>) -> Result<(), ViewError>) -> Change {
        view.edit(options(), edits).unwrap().1.unwrap()
    }

    #[test]
    fn an_edit_is_one_change_that_another_view_replays() {
        let mut view = View::new();
        let change = edit(&mut view, |edit| {
            edit.put("", json!({"title": "Hällo", "n": {"$counter": 1}, "items": [1, 2]}))?;
            edit.splice("title", 1, 1, "a")?;
            edit.mark("title", 0..3, "bold", true, ExpandMark::After)?;
            edit.increment("n", 4)?;
            edit.insert("items", 1, json!({"x": null}))?;
            edit.put("items.-", 3)?;
            edit.put("items.0", 0)?;
            assert!(edit.delete("items.2")?);
            assert!(!edit.delete("items.9")?);
            assert_eq!(edit.length("items")?, Some(3));
            assert_eq!(edit.read::<String>("title")?.as_deref(), Some("Hallo"));
            Ok(())
        });
        assert_eq!((change.time(), change.message()), (7, Some("why")));
        let expected = json!({"title": "Hallo", "n": {"$counter": 5}, "items": [0, {"x": null}, 3]});
        assert_eq!(view.to_json().unwrap(), expected);
        let mut other = View::new();
        other.edit(options(), |edit| edit.put("mine", 1)).unwrap();
        assert_eq!(other.apply(&[change.clone(), change.clone()]).unwrap(), Applied { replayed: 0, grouped: 1 });
        assert_eq!(other.now().json("items").unwrap(), Some(json!([0, {"x": null}, 3])));
        let mut small = View::new();
        let keystroke = edit(&mut small, |edit| edit.put("text", "a"));
        let next = edit(&mut small, |edit| edit.splice("text", 1, 0, "b"));
        let mut third = View::new();
        assert_eq!(third.apply(&[keystroke, next]).unwrap(), Applied { replayed: 2, grouped: 0 });
        assert_eq!(third.heads(), small.heads());
    }

    #[test]
    fn a_failing_edit_and_an_empty_one_change_nothing() {
        let mut view = View::new();
        edit(&mut view, |edit| edit.put("", json!({"a": "text", "list": [1, 2]})));
        let (before, heads) = (view.save().unwrap(), view.heads());
        let failed = view.edit(options(), |edit| {
            edit.put("", json!({"list": [2, {"deep": [true]}], "b": {"$counter": 1}}))?;
            edit.splice("nowhere", 0, 0, "x")
        });
        assert!(matches!(failed, Err(ViewError::NotFound(path)) if path == Path::from("nowhere")));
        let (answer, change) = view.edit(options(), |edit| edit.put("a", "text").map(|()| 5)).unwrap();
        assert!(answer == 5 && change.is_none());
        assert_eq!((view.save().unwrap(), view.heads()), (before, heads));
        assert_eq!(view.document().stats().num_actors, 1, "no author of nothing is left behind");
        edit(&mut view, |edit| edit.put("a", "more text"));
    }

    #[test]
    fn errors_say_where_and_why() {
        let mut view = View::new();
        edit(&mut view, |edit| edit.put("", json!({"text": "äb", "list": [1], "n": 1, "map": {}})));
        let error = |edits: &dyn Fn(&mut Edit<'_>) -> Result<(), ViewError>| {
            let mut copy = View::load(&view.save().unwrap()).unwrap();
            copy.edit(options(), |edit| edits(edit)).unwrap_err().to_string()
        };
        assert_eq!(error(&|e| e.put("list.2", 1)), "position 2 is outside of /list/2, which has 1");
        assert_eq!(error(&|e| e.put("list.x", 1)), "there is nothing at /list/x");
        assert_eq!(error(&|e| e.put("a.b", 1)), "there is nothing at /a");
        assert_eq!(error(&|e| e.put("n.b", 1)), "the value at /n is a number, not an object or a list");
        assert_eq!(error(&|e| e.put("text.0", 1)), "the value at /text is a text, not an object or a list");
        assert_eq!(error(&|e| e.put("", 1)), "a document is a JSON object at its root");
        assert_eq!(error(&|e| e.splice("text", 1, 2, "")), "position 3 is outside of /text, which has 2");
        assert_eq!(error(&|e| e.splice("map", 0, 0, "")), "the value at /map is an object, not a text");
        assert_eq!(error(&|e| e.increment("n", 1)), "the value at /n is a number, not a counter");
        assert_eq!(error(&|e| e.increment("m", 1)), "there is nothing at /m");
        assert_eq!(error(&|e| e.insert("list", 2, 1)), "position 2 is outside of /list, which has 1");
    }

    #[test]
    fn a_panic_breaks_the_view_for_good() {
        let mut view = View::new();
        edit(&mut view, |edit| edit.put("a", 1));
        let done = view.edit::<(), ViewError>(options(), |_| panic!("of the caller"));
        assert!(matches!(done, Err(ViewError::Panicked(text)) if text == "of the caller"));
        assert!(view.is_broken());
        assert!(matches!(view.to_json(), Err(ViewError::Broken)));
        assert!(matches!(view.save(), Err(ViewError::Broken)));
        assert!(matches!(view.apply(&[]), Err(ViewError::Broken)));
        assert!(matches!(view.edit(options(), |edit| edit.put("a", 2)), Err(ViewError::Broken)));
    }

    #[test]
    fn changes_without_what_they_depend_on_are_refused() {
        let mut view = View::new();
        let first = edit(&mut view, |edit| edit.put("a", 1));
        let second = edit(&mut view, |edit| edit.put("a", 2));
        let mut other = View::new();
        let refused = other.apply(std::slice::from_ref(&second));
        assert!(matches!(refused, Err(ViewError::Incomplete(hash)) if hash == second.hash()));
        assert!(other.is_broken());
        assert!(matches!(View::load(second.bytes()), Err(ViewError::Unloadable(_))));
        let mut snapshot = View::new();
        snapshot.edit(options(), |edit| edit.put("b", 1)).unwrap();
        let snapshot = snapshot.save().unwrap();
        assert!(matches!(View::load(&[&snapshot, second.bytes()].concat()), Err(ViewError::Unloadable(_))));
        let whole = View::load(&[&snapshot, second.bytes(), first.bytes()].concat()).unwrap();
        assert_eq!(whole.to_json().unwrap(), json!({"a": 2, "b": 1}));
    }

    #[test]
    fn damaged_chunks_are_refused() {
        let mut view = View::new();
        edit(&mut view, |edit| edit.put("", json!({"a": "some text", "b": [1, 2, 3]})));
        let whole = view.save().unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x55;
            assert!(View::load(&damaged).is_err(), "byte {at}");
            assert!(at == 0 || View::load(&whole[..at]).is_err(), "cut at {at}");
        }
        assert!(View::load(&[]).unwrap().heads().is_empty());
    }

    #[test]
    fn the_past_and_conflicts_can_be_read() {
        let mut view = View::new();
        edit(&mut view, |edit| edit.put("", json!({"a": "one", "list": [1]})));
        let then = view.heads();
        let mut other = View::load(&view.save().unwrap()).unwrap();
        let theirs = edit(&mut other, |edit| edit.put("b", 2));
        edit(&mut view, |edit| edit.put("", json!({"a": "one more", "b": {"x": 1}, "list": []})));
        view.apply(&[theirs]).unwrap();
        assert_eq!(view.to_json_at(&then).unwrap(), json!({"a": "one", "list": [1]}));
        assert_eq!(view.at(&then).unwrap().json("list.0").unwrap(), Some(json!(1)));
        assert_eq!(view.at(&then).unwrap().json("b").unwrap(), None);
        let mut conflicts = view.conflicts("b").unwrap();
        assert_eq!(conflicts.pop(), view.now().json("b").unwrap());
        assert_eq!(conflicts.len(), 1);
        assert_eq!(view.conflicts("a").unwrap(), [json!("one more")]);
        assert!(view.conflicts("nowhere.x").unwrap().is_empty());
        assert!(view.at(&then).unwrap().conflicts("b").unwrap().is_empty());
        let unknown = Heads::new(vec![ChangeHash([1; 32])]);
        assert!(matches!(view.to_json_at(&unknown), Err(ViewError::UnknownHead(_))));
        assert_eq!(view.to_json_at(&Heads::default()).unwrap(), json!({}));
    }

    #[test]
    fn an_increment_over_a_conflict_leaves_one_value() {
        let mut base = View::new();
        edit(&mut base, |edit| edit.put("list", json!([0, 1])));
        let bytes = base.save().unwrap();
        let theirs = [json!({"$counter": 1}), json!(3), json!({"$counter": 5})].map(|value| {
            edit(&mut View::load(&bytes).unwrap(), |edit| {
                edit.put("k", &value)?;
                edit.put("list.0", value)
            })
        });
        base.apply(&theirs).unwrap();
        edit(&mut base, |edit| {
            let list = edit.tx().get(automerge::ROOT, "list")?.unwrap().1;
            edit.tx().increment(&list, 0, 10)?;
            Ok(edit.tx().increment(automerge::ROOT, "k", 10)?)
        });
        assert_eq!(base.document().keys(automerge::ROOT).count(), 2);
        assert_eq!(base.now().json("list").unwrap().unwrap().as_array().unwrap().len(), 2);
        let loaded = View::load(&base.save().unwrap()).unwrap();
        assert_eq!(loaded.to_json().unwrap(), base.to_json().unwrap());
    }

    #[test]
    fn a_change_that_only_looks_like_a_local_edit_is_applied_all_the_same() {
        let mut writer = View::new();
        let base = edit(&mut writer, |edit| {
            edit.tx().put_object(automerge::ROOT, "table", ObjType::Table)?;
            Ok(edit.tx().put(automerge::ROOT, "a", ScalarValue::Unknown { type_code: 12, bytes: vec![1, 2] })?)
        });
        // An edit that automerge would not make: the value is there already.
        let mut expanded = edit(&mut writer, |edit| edit.put("b", 1)).as_automerge().decode();
        expanded.actor_id = automerge::ActorId::from(&[3; 16][..]);
        expanded.deps = writer.document().get_heads();
        expanded.start_op = std::num::NonZeroU64::new(4).unwrap();
        expanded.operations[0].pred = vec![automerge::legacy::OpId(3, writer.document().get_actor().clone())].into();
        let odd = Change::from_automerge(expanded.into()).unwrap();
        let mut view = View::load(&writer.save().unwrap()).unwrap();
        assert_eq!(view.apply(&[base, odd.clone()]).unwrap(), Applied { replayed: 0, grouped: 1 });
        assert_eq!(view.heads(), Heads::new(vec![odd.hash()]));
        assert_eq!(view.to_json().unwrap()["b"], 1);
        assert!(view.document().get_change_by_hash(&automerge::ChangeHash(odd.hash().0)).is_some());
        View::load(&view.save().unwrap()).unwrap();
    }
}
