//! The operations of a change, walked in steps of as many as are alike.

use std::cmp::Ordering;

use super::actors::Actors;
use super::error::{Fault, GateError, In, at_most};
use super::input::Input;
use super::runs::{Booleans, Deltas, Runs, Slope};
use super::values::{self, Value};

/// The columns of a change's operations, in the order in which they stand.
pub(super) const COLUMNS: [u32; 14] =
    [0x01, 0x02, 0x11, 0x13, 0x15, 0x34, 0x42, 0x56, 0x57, 0x70, 0x71, 0x73, 0x94, 0xa5];

/// Where the actions stand in [`COLUMNS`].
pub(super) const ACTION: usize = 6;
/// Where the values' bytes stand in [`COLUMNS`].
pub(super) const VALUE: usize = 8;

/// Where the names of marks stand in [`COLUMNS`]; every mark has one.
pub(super) const MARKS: usize = 13;

const SET: u64 = 1;
const DELETE: u64 = 3;
const INCREMENT: u64 = 5;
const MARK: u64 = 7;

/// Predecessors of operations that have several, without a byte for each.
const SHARED_PREDECESSORS_FREE: u64 = 1 << 16;

/// A walk over a change's operations.
struct Walk<'a, 'b> {
    object_actor: Runs<'a, u64>,
    object_counter: Runs<'a, u64>,
    key_actor: Runs<'a, u64>,
    key_counter: Deltas<'a>,
    key_name: Runs<'a, &'a str>,
    insert: Booleans<'a>,
    action: Runs<'a, u64>,
    value_meta: Runs<'a, u64>,
    value: Input<'a>,
    predecessors: Runs<'a, u64>,
    predecessor_actor: Runs<'a, u64>,
    predecessor_counter: Deltas<'a>,
    expand: Booleans<'a>,
    mark_name: Runs<'a, &'a str>,
    actors: &'b mut Actors<'a>,
    /// The counter of the change's first operation.
    start: u64,
    /// The mark that was begun and not ended: its counter, and where it is.
    mark: Option<(u64, Option<(u64, u64)>)>,
    shared: u64,
    shared_max: u64,
    deletions: u64,
}

/// What an operation is about within its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Name,
    Head,
    Element,
}

/// Walks `count` operations that begin at counter `start`; how many of them are deletions.
pub(super) fn walk<'a>(
    columns: &[&'a [u8]; COLUMNS.len()],
    actors: &mut Actors<'a>,
    start: u64,
    count: u64,
) -> Result<u64, GateError> {
    let bytes: usize = columns.iter().map(|column| column.len()).sum();
    let [object_actor, object_counter, key_actor, key_counter, key_name, insert, action, value_meta, value, ..] =
        *columns;
    let [.., predecessors, predecessor_actor, predecessor_counter, expand, mark_name] = *columns;
    let mut walk = Walk {
        object_actor: Runs::new(object_actor).within("column of objects' actors")?,
        object_counter: Runs::new(object_counter).within("column of objects")?,
        key_actor: Runs::new(key_actor).within("column of elements' actors")?,
        key_counter: Deltas::new(key_counter).within("column of elements")?,
        key_name: Runs::new(key_name).within("column of keys")?,
        insert: Booleans::new(insert).within("column of inserts")?,
        action: Runs::new(action).within("column of actions")?,
        value_meta: Runs::new(value_meta).within("column of values' kinds")?,
        value: Input::new(value),
        predecessors: Runs::new(predecessors).within("column of predecessors")?,
        predecessor_actor: Runs::new(predecessor_actor).within("column of predecessors' actors")?,
        predecessor_counter: Deltas::new(predecessor_counter).within("column of predecessors' counters")?,
        expand: Booleans::new(expand).within("column of marks' edges")?,
        mark_name: Runs::new(mark_name).within("column of marks")?,
        actors,
        start,
        mark: None,
        shared: 0,
        shared_max: SHARED_PREDECESSORS_FREE + 4 * bytes as u64,
        deletions: 0,
    };
    let end = start + count;
    let mut id = start;
    while id < end {
        let alike = walk.alike().min(end - id);
        if alike == 0 {
            return Err(GateError::Malformed { part: "operations", why: "a column ends before the others" });
        }
        walk.check(id, alike)?;
        walk.step(alike).within("operations")?;
        id += alike;
    }
    walk.finish(count)?;
    Ok(walk.deletions)
}

impl<'a> Walk<'a, '_> {
    /// How many operations from here on are alike in all columns.
    fn alike(&self) -> u64 {
        [
            self.object_actor.left(),
            self.object_counter.left(),
            self.key_actor.left(),
            self.key_counter.left(),
            self.key_name.left(),
            self.insert.left(),
            self.action.left(),
            self.value_meta.left(),
            self.predecessors.left(),
            self.expand.left(),
            self.mark_name.left(),
        ]
        .into_iter()
        .fold(u64::MAX, u64::min)
    }

    fn check(&mut self, id: u64, count: u64) -> Result<(), GateError> {
        self.check_object(id)?;
        let key = self.check_key(id, count)?;
        let action = self.action.value().ok_or("an operation has no action").within("column of actions")?;
        let meta = self.value_meta.value().ok_or("an operation has no value").within("column of values' kinds")?;
        let value = values::check(meta, count, &mut self.value).within("column of values")?;
        let predecessors =
            self.predecessors.value().ok_or("an operation has no count").within("column of predecessors")?;
        self.check_shape(action, key, value, predecessors).within("operation")?;
        self.check_mark(id, count, action).within("mark")?;
        if action == DELETE {
            self.deletions += count;
        }
        match predecessors {
            0 => Ok(()),
            1 => self.check_single_predecessors(id, count, action),
            _ => self.check_predecessors(id, count, predecessors),
        }
    }

    fn check_object(&mut self, id: u64) -> Result<(), GateError> {
        match (self.object_actor.value(), self.object_counter.value()) {
            (None, None) => Ok(()),
            (Some(actor), Some(counter)) => {
                let counter = i64::try_from(counter).map_err(|_| GateError::Reference {
                    part: "object",
                    why: "a counter is beyond all that are used",
                })?;
                self.refer("object", actor, Slope { first: counter, step: 0 }, id, 1)
            }
            _ => Err(GateError::Malformed { part: "object", why: "it has an actor without a counter, or the reverse" }),
        }
    }

    fn check_key(&mut self, id: u64, count: u64) -> Result<Key, GateError> {
        let counter = self.key_counter.value().within("column of elements")?;
        match (self.key_actor.value(), counter, self.key_name.value()) {
            (None, None, Some(_)) => Ok(Key::Name),
            (None, Some(Slope { first: 0, step }), None) if count == 1 || step == 0 => Ok(Key::Head),
            (Some(actor), Some(slope), None) => self.refer("element", actor, slope, id, count).map(|()| Key::Element),
            _ => Err(GateError::Malformed { part: "key", why: "it is neither a name nor an element" }),
        }
    }

    /// Checks what depends on the action alone.
    fn check_shape(&self, action: u64, key: Key, value: Value, predecessors: u64) -> Result<(), Fault> {
        let insert = self.insert.value();
        match (insert, key) {
            (true, Key::Name) => return Err("it inserts under a name"),
            (false, Key::Head) => return Err("it changes what is before the first element"),
            _ => {}
        }
        if insert && predecessors > 0 {
            return Err("it inserts and replaces");
        }
        if action != MARK && (self.expand.value() || self.mark_name.value().is_some()) {
            return Err("it has a mark's name or edge and is none");
        }
        match action {
            SET => Ok(()),
            0 | 2 | 4 | 6 if value != Value::Null => Err("it makes an object and has a value"),
            0 | 2 | 4 | 6 => Ok(()),
            DELETE | INCREMENT if insert => Err("it inserts nothing"),
            DELETE | INCREMENT if predecessors == 0 => Err("it deletes or increments nothing"),
            DELETE if value != Value::Null => Err("it deletes and has a value"),
            DELETE => Ok(()),
            INCREMENT if value != Value::Integer => Err("it increments by what is no integer"),
            INCREMENT => Ok(()),
            MARK if !insert => Err("a mark is not inserted"),
            MARK if self.mark_name.value().is_none() && value != Value::Null => Err("a mark's end has a value"),
            MARK => Ok(()),
            _ => Err("its action is unknown"),
        }
    }

    /// A mark's end comes right after its beginning, in the same text.
    fn check_mark(&mut self, id: u64, count: u64, action: u64) -> Result<(), Fault> {
        let is_begin = action == MARK && self.mark_name.value().is_some();
        let is_end = action == MARK && !is_begin;
        if self.mark.is_none() && !is_begin {
            return if is_end { Err("its end has no beginning") } else { Ok(()) };
        }
        let object = self.object_actor.value().zip(self.object_counter.value());
        match self.mark.take() {
            None if count == 1 => self.mark = Some((id, object)),
            Some(begun) if is_end && count == 1 && begun == (id - 1, object) => {}
            _ => return Err("its end does not follow its beginning"),
        }
        Ok(())
    }

    /// Checks one predecessor for each of `count` operations.
    fn check_single_predecessors(&mut self, id: u64, count: u64, action: u64) -> Result<(), GateError> {
        let mut done = 0;
        while done < count {
            let alike = self.predecessor_actor.left().min(self.predecessor_counter.left()).min(count - done);
            let (actor, slope) = self.predecessor(alike)?;
            if action == DELETE && alike > 1 && slope.step == 0 {
                return Err(GateError::Malformed { part: "predecessor", why: "it is deleted again and again" });
            }
            self.refer("predecessor", actor, slope, id + done, alike)?;
            self.step_predecessors(alike)?;
            done += alike;
        }
        Ok(())
    }

    /// Checks `each` predecessors, which must ascend, for each of `count` operations.
    fn check_predecessors(&mut self, id: u64, count: u64, each: u64) -> Result<(), GateError> {
        self.shared = self.shared.saturating_add(count.saturating_mul(each));
        at_most("predecessors that share an operation", self.shared, self.shared_max)?;
        for id in id..id + count {
            let mut before: Option<(i64, u64)> = None;
            for _ in 0..each {
                let (actor, slope) = self.predecessor(1)?;
                self.refer("predecessor", actor, slope, id, 1)?;
                let ascends = before.is_none_or(|(counter, before)| {
                    let order = counter.cmp(&slope.first).then_with(|| self.actors.compare(before, actor));
                    order == Ordering::Less
                });
                if !ascends {
                    return Err(GateError::Malformed { part: "predecessors", why: "they do not ascend" });
                }
                before = Some((slope.first, actor));
                self.step_predecessors(1)?;
            }
        }
        Ok(())
    }

    fn predecessor(&self, alike: u64) -> Result<(u64, Slope), GateError> {
        let slope = self.predecessor_counter.value().within("column of predecessors' counters")?;
        match (self.predecessor_actor.value(), slope) {
            (Some(actor), Some(slope)) if alike > 0 => Ok((actor, slope)),
            _ => Err(GateError::Malformed { part: "predecessors", why: "there are fewer than are counted" }),
        }
    }

    fn step_predecessors(&mut self, count: u64) -> Result<(), GateError> {
        self.predecessor_actor.step(count).within("column of predecessors' actors")?;
        self.predecessor_counter.step(count).within("column of predecessors' counters")
    }

    /// Checks that the operations named by `count` operations from `id` on come before those.
    ///
    /// Both go up in even steps, so the first and the last stand for all.
    fn refer(&mut self, part: &'static str, actor: u64, slope: Slope, id: u64, count: u64) -> Result<(), GateError> {
        let wrong = |why| GateError::Reference { part, why };
        let (least, greatest) = slope.range(count).map_err(wrong)?;
        self.actors.note(actor, greatest.unsigned_abs()).map_err(wrong)?;
        if least < 1 {
            return Err(wrong("a counter is below 1"));
        }
        let last = slope.step.checked_mul((count - 1) as i64).and_then(|more| more.checked_add(slope.first));
        let before = |named: i64, by: u64| u64::try_from(named).is_ok_and(|named| named < by);
        if !before(slope.first, id) || !last.is_some_and(|last| before(last, id + count - 1)) {
            return Err(wrong("it comes after what names it"));
        }
        if actor != 0 && !before(greatest, self.start) {
            return Err(wrong("another actor's operation is later than the change"));
        }
        Ok(())
    }

    fn step(&mut self, count: u64) -> Result<(), Fault> {
        self.object_actor.step(count)?;
        self.object_counter.step(count)?;
        self.key_actor.step(count)?;
        self.key_counter.step(count)?;
        self.key_name.step(count)?;
        self.insert.step(count)?;
        self.action.step(count)?;
        self.value_meta.step(count)?;
        self.predecessors.step(count)?;
        self.expand.step(count)?;
        self.mark_name.step(count)
    }

    fn finish(&self, count: u64) -> Result<(), GateError> {
        self.object_actor.finish().within("column of objects' actors")?;
        self.object_counter.finish().within("column of objects")?;
        self.key_actor.finish().within("column of elements' actors")?;
        self.key_counter.finish().within("column of elements")?;
        self.key_name.finish().within("column of keys")?;
        if count > 0 && self.insert.is_absent() {
            return Err(GateError::Malformed { part: "column of inserts", why: "it is not there" });
        }
        self.insert.finish(false).within("column of inserts")?;
        self.action.finish().within("column of actions")?;
        self.value_meta.finish().within("column of values' kinds")?;
        self.predecessors.finish().within("column of predecessors")?;
        self.predecessor_actor.finish().within("column of predecessors' actors")?;
        self.predecessor_counter.finish().within("column of predecessors' counters")?;
        self.expand.finish(true).within("column of marks' edges")?;
        self.mark_name.finish().within("column of marks")?;
        if self.mark.is_some() {
            return Err(GateError::Malformed { part: "mark", why: "it has no end" });
        }
        if !self.value.is_empty() {
            return Err(GateError::Malformed { part: "column of values", why: "it is longer than the values" });
        }
        Ok(())
    }
}
