//! Replaying a remote change as a local edit.
//!
//! Automerge applies a remote change by walking every object it touches, which costs milliseconds in a long text; it
//! makes a local edit by finding the place in a tree, which costs microseconds. When a change was made on top of
//! exactly the state we hold, nothing is concurrent with it: the same edits made here, under the same author, time and
//! message, are the same change, byte for byte. Its hash proves that.
//!
//! A transaction shows its hash only after it is committed, and a committed change cannot be taken back. So everything
//! that can be known is checked before: that the change follows the heads ([`Clock::follows`]), and for every operation
//! that it says of its predecessors and of its place what a local edit would say here. The first operation that does
//! not fit rolls the transaction back, which leaves the document as it was, and the change is applied the other way.
//!
//! What is replayed: text, list and map inserts, puts, deletes and new objects of all types, conflicts overwritten as a
//! whole or resolved to the value that won, counters, marks and empty changes. What is not: increments
//! over a conflict, values of an unknown type, empty strings as text elements (they have no width, so no index names
//! them), tables, and changes with extra bytes other than an author.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use automerge::legacy::{ElementId, Key, MarkData, ObjectId, Op, OpId, OpType};
use automerge::marks::{ExpandMark, Mark};
use automerge::transaction::{CommitOptions, Transactable, Transaction};
use automerge::{Author, Automerge, Cursor, ObjId, ObjType, Prop, ReadDoc, ScalarValue, Value};

use super::Change;
use crate::id::{ActorId, ChangeHash};

/// How far every author has come in one document, and the highest operation counter in it.
#[derive(Debug, Clone, Default)]
pub(super) struct Clock {
    actors: HashMap<ActorId, (u64, ChangeHash)>,
    max_op: u64,
}

impl Clock {
    /// Reads the clock of a document: one walk over its changes.
    pub(super) fn of(document: &Automerge) -> Self {
        let mut clock = Self::default();
        for change in document.get_changes_meta(&[]) {
            if let Some(actor) = ActorId::new(change.actor.to_bytes()) {
                clock.record(&actor, change.seq, ChangeHash(change.hash.0), change.max_op);
            }
        }
        clock
    }

    /// Takes note of a change that was just applied.
    pub(super) fn add(&mut self, change: &Change) {
        let max_op = change.as_automerge().max_op();
        self.record(change.actor(), change.seq(), change.hash(), max_op);
    }

    fn record(&mut self, actor: &ActorId, seq: u64, hash: ChangeHash, max_op: u64) {
        self.max_op = self.max_op.max(max_op);
        match self.actors.get_mut(actor) {
            Some(last) if last.0 < seq => *last = (seq, hash),
            Some(_) => {}
            None => {
                self.actors.insert(actor.clone(), (seq, hash));
            }
        }
    }

    /// The number of an author's last change; 0 when there is none.
    pub(super) fn last_seq(&self, actor: &ActorId) -> u64 {
        self.actors.get(actor).map_or(0, |last| last.0)
    }

    /// Whether `change` is what its author would make next on top of `heads`, the document's own, as far as its
    /// header tells.
    pub(super) fn follows(&self, heads: &[automerge::ChangeHash], change: &Change) -> bool {
        let last = self.actors.get(change.actor());
        if change.seq() != last.map_or(0, |last| last.0) + 1 || change.start_op() != self.max_op + 1 {
            return false;
        }
        // Automerge names an author's own last change as a dependency even when it is no head any more.
        let own = last.map(|last| last.1).filter(|own| heads.iter().all(|head| head.0 != own.0));
        let deps = change.deps();
        deps.len() == heads.len() + usize::from(own.is_some())
            && heads.iter().all(|head| deps.iter().any(|dep| dep.0 == head.0))
            && own.is_none_or(|own| deps.contains(&own))
            && author_of(change).is_ok()
    }
}

/// Whether making `change` as a local edit leaves automerge's index of visible values wrong.
///
/// Automerge 0.12 does that when a counter is incremented over a conflict: the key, or the element, then counts twice
/// until the document is loaded again.
pub(super) fn spoils_index(change: &Change) -> bool {
    let ops = change.as_automerge().decode().operations;
    ops.iter().any(|op| matches!(op.action, OpType::Increment(_)) && op.pred.len() > 1)
}

/// What came of trying to replay a change.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The document now contains it.
    Replayed,
    /// It is not of a kind that can be replayed here; the document is as it was.
    NotCovered,
    /// The edits were committed and are another change, whose hash this is: the document is spoilt.
    Mismatch(ChangeHash),
}

/// Makes the edits of `change` in `document`, whose [`Clock`] it must follow.
///
/// # Panics
/// When automerge does; the document is spoilt then.
pub(super) fn replay(document: &mut Automerge, change: &Change) -> Outcome {
    let Ok(author) = author_of(change) else { return Outcome::NotCovered };
    let before = document.get_actor().clone();
    if author.is_some() {
        document.set_author(author.clone());
    }
    document.set_actor(change.as_automerge().actor_id().clone());
    let made = commit_same_edits(document, change);
    if author.is_some() {
        document.set_author(None);
    }
    document.set_actor(before);
    match made {
        None => Outcome::NotCovered,
        Some(hash) if hash == change.hash() => Outcome::Replayed,
        Some(hash) => Outcome::Mismatch(hash),
    }
}

/// The author to be written into the change's extra bytes, if those bytes can be reproduced.
fn author_of(change: &Change) -> Result<Option<Author<'static>>, ()> {
    let inner = change.as_automerge();
    let extra = inner.extra_bytes();
    if extra.is_empty() {
        return Ok(None);
    }
    // Automerge writes an author into an actor's first change only, as: 1, length, bytes. A length of 128 and more
    // takes two bytes; nobody has such a name.
    match inner.author() {
        Some(author) if inner.seq() == 1 && author.as_bytes().len() < 128 => {
            let bytes = author.as_bytes();
            let same = extra.len() == bytes.len() + 2 && extra[0] == 1 && extra[1] as usize == bytes.len();
            if same { Ok(Some(author.into_owned())) } else { Err(()) }
        }
        _ => Err(()),
    }
}

/// Commits the edits of `change` and returns the hash of what that made; `None` when one of them is not covered.
fn commit_same_edits(document: &mut Automerge, change: &Change) -> Option<ChangeHash> {
    let mut options = CommitOptions::default().with_time(change.time());
    if let Some(message) = change.message() {
        options.set_message(message);
    }
    if change.op_count() == 0 {
        return Some(ChangeHash(document.empty_commit(options).0));
    }
    // Decoding reads only the change, so what it trips over is the change's fault and touches nothing.
    let ops = catch_unwind(AssertUnwindSafe(|| change.as_automerge().decode().operations)).ok()?;
    let actor = change.as_automerge().actor_id();
    let mut replayer =
        Replayer { tx: document.transaction(), ops: &ops, actor, start_op: change.start_op(), caret: None };
    match replayer.run() {
        Some(()) => replayer.tx.commit_with(options).0.map(|hash| ChangeHash(hash.0)),
        None => {
            replayer.tx.rollback();
            None
        }
    }
}

/// Where the last insertion into a sequence ended: the element it made and the index behind it.
struct Caret {
    element: u64,
    after: usize,
}

struct Replayer<'a> {
    tx: Transaction<'a>,
    ops: &'a [Op],
    actor: &'a automerge::ActorId,
    start_op: u64,
    caret: Option<Caret>,
}

impl Replayer<'_> {
    /// Makes every edit; `None` at the first that is not covered.
    fn run(&mut self) -> Option<()> {
        let mut done = 0;
        while done < self.ops.len() {
            done += self.step(done)?;
            // An edit that automerge thinks needless makes no operation, and all that follow would be numbered wrong.
            if self.tx.pending_ops() != done {
                return None;
            }
        }
        Some(())
    }

    /// Makes the edit that begins at operation `n` and returns how many operations it covers.
    fn step(&mut self, n: usize) -> Option<usize> {
        let ops = self.ops;
        let op = &ops[n];
        let object = object_id(&op.obj);
        match &op.key {
            Key::Map(key) => {
                self.caret = None;
                self.update(&object, Prop::Map(key.to_string()), None, op)?;
                Some(1)
            }
            Key::Seq(_) if op.insert => self.insert(n, &object),
            Key::Seq(ElementId::Id(element)) => {
                self.caret = None;
                let index = self.position(&object, element)?;
                self.update(&object, Prop::Seq(index), Some(element), op)?;
                Some(1)
            }
            Key::Seq(ElementId::Head) => None,
        }
    }

    /// Overwrites, deletes or increments what is at `prop`.
    fn update(&mut self, object: &ObjId, prop: Prop, element: Option<&OpId>, op: &Op) -> Option<()> {
        let visible = self.tx.get_all(object, prop.clone()).ok()?;
        let ids = |count: usize| {
            op.pred.len() == count && op.pred.iter().zip(&visible[..count]).all(|(pred, (_, id))| same_id(id, pred))
        };
        let count = visible.len();
        let winner = visible.last().map(|(value, _)| value.clone().into_owned());
        let counters = visible.iter().any(|(value, _)| is_counter(value));
        let all = ids(count);
        // A local edit names every visible value as its predecessor, with one exception: putting the value that has
        // won a conflict already deletes the others.
        let resolves = !all && count > 1 && op.action == OpType::Delete && ids(count - 1);
        if !all && !resolves {
            return None;
        }
        if let Some(element) = element {
            self.belongs_to(element, visible.first().map(|(_, id)| id.clone())?)?;
        }
        match &op.action {
            OpType::Delete if resolves => match winner? {
                Value::Scalar(value) if is_plain(&value) => self.tx.put(object, prop, value.into_owned()),
                _ => return None,
            },
            OpType::Delete if count == 0 => return None,
            OpType::Delete => self.tx.delete(object, prop),
            OpType::Put(value) => {
                // Writing what has won a conflict is not the edit that was made: see above. A counter is compared by
                // its first value, which nothing tells us.
                let written = matches!(&winner, Some(Value::Scalar(old)) if **old == *value);
                let unclear = count > 1 && (written || (matches!(value, ScalarValue::Counter(_)) && counters));
                if unclear || matches!(value, ScalarValue::Unknown { .. }) {
                    return None;
                }
                self.tx.put(object, prop, value.clone())
            }
            OpType::Make(ObjType::Table) => return None,
            OpType::Make(kind) => self.tx.put_object(object, prop, *kind).map(drop),
            // Over a conflict, automerge's own increment leaves its index wrong: see `spoils_index`.
            OpType::Increment(by) if counters && count == 1 => self.tx.increment(object, prop, *by),
            _ => return None,
        }
        .ok()
    }

    /// Makes the insertion that begins at operation `n`: a run of characters, one element, or a mark.
    fn insert(&mut self, n: usize, object: &ObjId) -> Option<usize> {
        let ops = self.ops;
        let op = &ops[n];
        if !op.pred.is_empty() {
            return None;
        }
        let text = self.tx.object_type(object).ok()? == ObjType::Text;
        let index = self.index_after(object, text, &op.key)?;
        let (count, width) = match &op.action {
            OpType::Put(_) if text && one_character(op).is_some() => {
                let run: String = self.run_of_characters(n);
                let count = run.chars().count();
                self.tx.splice_text(object, index, 0, &run).ok()?;
                (count, count)
            }
            OpType::Put(ScalarValue::Unknown { .. }) => return None,
            OpType::Put(ScalarValue::Str(string)) if text && string.is_empty() => return None,
            OpType::Put(value) => {
                self.tx.insert(object, index, value.clone()).ok()?;
                (1, if text { width(&Value::Scalar(std::borrow::Cow::Borrowed(value))) } else { 1 })
            }
            OpType::Make(ObjType::Table) => return None,
            OpType::Make(kind) => {
                self.tx.insert_object(object, index, *kind).ok()?;
                (1, 1)
            }
            OpType::MarkBegin(data) if text => {
                self.caret = None;
                return self.mark(n, object, index, data);
            }
            _ => return None,
        };
        self.caret = Some(Caret { element: self.start_op + (n + count - 1) as u64, after: index + width });
        Some(count)
    }

    /// Collects the characters inserted one behind the other from operation `n` on.
    fn run_of_characters(&self, n: usize) -> String {
        let mut run = String::new();
        for (offset, op) in self.ops[n..].iter().enumerate() {
            let follows = offset == 0 || {
                let previous = self.start_op + (n + offset - 1) as u64;
                op.obj == self.ops[n].obj
                    && op.pred.is_empty()
                    && matches!(&op.key, Key::Seq(ElementId::Id(id)) if id.0 == previous && &id.1 == self.actor)
            };
            match one_character(op) {
                Some(character) if follows => run.push(character),
                _ => break,
            }
        }
        run
    }

    /// Makes a mark of the two operations at `n`, which begins before `start`.
    fn mark(&mut self, n: usize, object: &ObjId, start: usize, data: &MarkData) -> Option<usize> {
        let ops = self.ops;
        let end_op = ops.get(n + 1)?;
        let OpType::MarkEnd(expand_after) = end_op.action else { return None };
        if end_op.obj != ops[n].obj || !end_op.insert || !end_op.pred.is_empty() {
            return None;
        }
        let begin = self.start_op + n as u64;
        let empty = matches!(&end_op.key, Key::Seq(ElementId::Id(id)) if id.0 == begin && &id.1 == self.actor);
        let end = if empty { start } else { self.index_after(object, true, &end_op.key)? };
        let expand = ExpandMark::from(data.expand, expand_after);
        if end < start || (end == start && (!empty || expand == ExpandMark::None)) {
            return None;
        }
        if matches!(data.value, ScalarValue::Unknown { .. }) {
            return None;
        }
        let mark = Mark::new(data.name.to_string(), data.value.clone(), start, end);
        self.tx.mark(object, mark, expand).ok()?;
        Some(2)
    }

    /// The index at which a local insertion comes to stand right behind `key`.
    fn index_after(&self, object: &ObjId, text: bool, key: &Key) -> Option<usize> {
        let element = match key {
            Key::Seq(ElementId::Head) => return Some(0),
            Key::Seq(ElementId::Id(element)) => element,
            Key::Map(_) => return None,
        };
        if let Some(caret) = self.caret.as_ref().filter(|caret| caret.element == element.0 && &element.1 == self.actor)
        {
            return Some(caret.after);
        }
        let index = self.position(object, element)?;
        let here = self.tx.get_all(object, index).ok()?;
        if let Some((value, id)) = here.last()
            && (here.iter().any(|(_, id)| same_id(id, element)) || self.element_of(id)? == *element)
        {
            return Some(index + if text { width(value) } else { 1 });
        }
        // The element is not visible. Behind an edge of a mark insertions are made, behind a deleted one never.
        let is_mark = matches!(self.operation(element)?.action, OpType::MarkBegin(_) | OpType::MarkEnd(_));
        is_mark.then_some(index)
    }

    /// The index of an element, or where it would be if it were visible.
    fn position(&self, object: &ObjId, element: &OpId) -> Option<usize> {
        let cursor = Cursor::try_from(format!("{}@{}", element.0, element.1).as_str()).ok()?;
        // Automerge panics when the element is of another object. Nothing is written here, so that spoils nothing.
        catch_unwind(AssertUnwindSafe(|| self.tx.get_cursor_position(object, &cursor, None).ok())).ok()?
    }

    /// Checks that the visible operation `id` stands at `element`.
    fn belongs_to(&self, element: &OpId, id: ObjId) -> Option<()> {
        (same_id(&id, element) || self.element_of(&id)? == *element).then_some(())
    }

    /// The element at which the operation `id` stands: itself, or the one it overwrote.
    fn element_of(&self, id: &ObjId) -> Option<OpId> {
        let ObjId::Id(counter, actor, _) = id else { return None };
        let id = OpId(*counter, actor.clone());
        let op = self.operation(&id)?;
        if op.insert { Some(id) } else { op.key.to_opid() }
    }

    /// Looks an operation up in the change that made it. Rare: only for overwritten elements and edges of marks.
    fn operation(&self, id: &OpId) -> Option<Op> {
        if &id.1 == self.actor && id.0 >= self.start_op {
            return self.ops.get(usize::try_from(id.0 - self.start_op).ok()?).cloned();
        }
        let hash = self.tx.hash_for_opid(&ObjId::Id(id.0, id.1.clone(), 0))?;
        let change = self.tx.get_change_by_hash(&hash)?;
        let offset = usize::try_from(id.0.checked_sub(change.start_op().get())?).ok()?;
        let mut ops = change.decode().operations;
        (offset < ops.len()).then(|| ops.swap_remove(offset))
    }
}

fn object_id(id: &ObjectId) -> ObjId {
    match id {
        ObjectId::Root => ObjId::Root,
        ObjectId::Id(id) => ObjId::Id(id.0, id.1.clone(), 0),
    }
}

fn same_id(id: &ObjId, op: &OpId) -> bool {
    matches!(id, ObjId::Id(counter, actor, _) if *counter == op.0 && actor == &op.1)
}

fn is_counter(value: &Value<'_>) -> bool {
    matches!(value, Value::Scalar(scalar) if matches!(**scalar, ScalarValue::Counter(_)))
}

/// Whether a value is read as it was written and is equal to itself.
fn is_plain(value: &ScalarValue) -> bool {
    !matches!(value, ScalarValue::Counter(_) | ScalarValue::Unknown { .. })
        && !matches!(value, ScalarValue::F64(number) if number.is_nan())
}

/// The character that an operation inserts, if it inserts exactly one.
fn one_character(op: &Op) -> Option<char> {
    let OpType::Put(ScalarValue::Str(string)) = &op.action else { return None };
    let mut characters = string.chars();
    let first = characters.next()?;
    (op.insert && characters.next().is_none()).then_some(first)
}

/// How many code points of a text a value takes.
fn width(value: &Value<'_>) -> usize {
    match value {
        Value::Scalar(scalar) => match &**scalar {
            ScalarValue::Str(string) => string.chars().count(),
            _ => 1,
        },
        Value::Object(_) => 1,
    }
}
