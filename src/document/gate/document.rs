//! A document chunk.
//!
//! It is checked for its cost, and for what automerge reads from it without looking: numbers of actors and changes,
//! counts of columns, lengths of values. Whether its operations make sense is seen when it is opened, as a scratch.

use std::borrow::Cow;

use super::actors::read_actor;
use super::change::backed;
use super::chunk::{Chunk, Kind, only_chunk, read_columns};
use super::error::{GateError, In, at_most};
use super::inflate::{Stream, inflate};
use super::input::Input;
use super::runs::{Booleans, Deltas, Runs, Slope, count};
use super::values::{self, Value};
use crate::limits::Limits;

/// The columns of a document's changes.
const CHANGES: [u32; 9] = [0x01, 0x03, 0x13, 0x23, 0x35, 0x40, 0x43, 0x56, 0x57];
/// Where the extra bytes stand in [`CHANGES`].
const EXTRA: usize = 8;
/// The columns of a document's operations.
const OPERATIONS: [u32; 16] =
    [0x01, 0x02, 0x11, 0x13, 0x15, 0x21, 0x23, 0x34, 0x42, 0x56, 0x57, 0x80, 0x81, 0x83, 0x94, 0xa5];
/// Where the authors stand in [`OPERATIONS`]: every operation has one.
const AUTHOR: usize = 5;
/// Where the values' bytes stand in [`OPERATIONS`].
const VALUE: usize = 10;

/// What is held inflated weighs this many times what is only read through.
const HELD: u64 = 2;
const COUNTER_MAX: i64 = 1 << 31;
const TIME_MAX: i64 = 1 << 53;
/// Successors or dependencies in lists of several, beside those that have a byte.
const SHARED_FREE: u64 = 1 << 16;

/// Checks one document chunk.
///
/// # Errors
/// [`GateError`], naming the part that is wrong.
///
/// # Cost
/// 5 ns a byte that its columns inflate to. They are held inflated, but for the values, which are read through.
pub fn check_document(bytes: &[u8], limits: &Limits) -> Result<(), GateError> {
    at_most("bytes of a document", bytes.len() as u64, limits.document_bytes_max as u64)?;
    let chunk = only_chunk(bytes)?;
    match chunk.kind {
        Kind::Document => check(&chunk, limits),
        _ => Err(GateError::Malformed { part: "chunk", why: "it is a change where a document belongs" }),
    }
}

pub(super) fn check(chunk: &Chunk<'_>, limits: &Limits) -> Result<(), GateError> {
    let mut input = Input::new(chunk.contents);
    let (actors, heads) = read_prefix(&mut input)?;
    let mut changes = Table::<{ CHANGES.len() }>::read(&mut input, &CHANGES, "list of changes' columns")?;
    let mut operations = Table::<{ OPERATIONS.len() }>::read(&mut input, &OPERATIONS, "list of operations' columns")?;
    changes.take(&mut input)?;
    operations.take(&mut input)?;
    if !input.is_empty() {
        for _ in 0..heads {
            input.unsigned().within("head indices")?;
        }
    }
    if !input.is_empty() {
        return Err(GateError::Malformed { part: "document", why: "bytes follow the head indices" });
    }
    let mut budget = Budget::new(chunk.whole.len(), limits);
    let shared_max = backed(chunk.whole.len(), 0, limits);
    check_changes(&changes.inflate(EXTRA, &mut budget)?, changes.raw(EXTRA), &mut budget, actors, shared_max)?;
    check_operations(&operations.inflate(VALUE, &mut budget)?, operations.raw(VALUE), &mut budget, actors, shared_max)
}

/// How many actors and heads it lists.
fn read_prefix(input: &mut Input<'_>) -> Result<(u64, usize), GateError> {
    let part = "list of actors";
    let count = input.unsigned().within(part)?;
    let mut before: &[u8] = &[];
    for _ in 0..count {
        let name = read_actor(input).within(part)?;
        if name <= before {
            return Err(GateError::Malformed { part, why: "the actors are not in order" });
        }
        before = name;
    }
    let heads = input.hashes().within("list of heads")?;
    if !heads.is_sorted_by(|one, other| one < other) {
        return Err(GateError::Malformed { part: "list of heads", why: "they do not ascend" });
    }
    Ok((count, heads.len()))
}

/// What is left of the bytes and operations that a document may come to.
struct Budget {
    inflated: u64,
    operations: u64,
    operations_max: u64,
    claims: u64,
}

impl Budget {
    fn new(length: usize, limits: &Limits) -> Self {
        let by_ratio = (length as u64).saturating_mul(limits.inflate_ratio_max).saturating_add(limits.inflate_free);
        Self {
            inflated: by_ratio.min(limits.document_inflated_max),
            operations: 0,
            operations_max: limits.document_ops_max,
            claims: backed(length, 0, limits),
        }
    }

    fn spend(&mut self, bytes: u64) -> Result<(), GateError> {
        at_most("inflated bytes of a document", bytes, self.inflated)?;
        self.inflated -= bytes;
        Ok(())
    }

    /// Takes up rows of a table, `literal` bytes of which are there as they are.
    fn claim(&mut self, what: &'static str, rows: u64, literal: u64) -> Result<(), GateError> {
        self.operations = self.operations.saturating_add(rows);
        at_most(what, self.operations, self.operations_max.saturating_mul(2))?;
        at_most(what, rows, self.operations_max)?;
        at_most(what, rows, self.claims.saturating_add(literal))?;
        Ok(())
    }
}

/// The columns of one table.
struct Table<'a, const N: usize> {
    lengths: [usize; N],
    deflated: [bool; N],
    columns: [&'a [u8]; N],
}

impl<'a, const N: usize> Table<'a, N> {
    fn read(input: &mut Input<'a>, known: &[u32; N], part: &'static str) -> Result<Self, GateError> {
        let mut table = Self { lengths: [0; N], deflated: [false; N], columns: [&[]; N] };
        read_columns(input, known, |column| {
            table.lengths[column.place] = column.length;
            table.deflated[column.place] = column.deflated;
        })
        .within(part)?;
        Ok(table)
    }

    fn take(&mut self, input: &mut Input<'a>) -> Result<(), GateError> {
        for (column, length) in self.columns.iter_mut().zip(self.lengths) {
            *column = input.take(length).within("columns")?;
        }
        Ok(())
    }

    /// All columns but `raw`, inflated.
    fn inflate(&self, raw: usize, budget: &mut Budget) -> Result<[Cow<'a, [u8]>; N], GateError> {
        let mut inflated = self.columns.map(Cow::Borrowed);
        for (place, column) in self.columns.iter().enumerate() {
            if place == raw {
                continue;
            }
            if self.deflated[place] {
                let max = usize::try_from(budget.inflated / HELD).unwrap_or(usize::MAX);
                inflated[place] = Cow::Owned(inflate(column, max, "inflated bytes of a document")?);
            }
            budget.spend((inflated[place].len() as u64).saturating_mul(HELD))?;
        }
        Ok(inflated)
    }

    fn raw(&self, place: usize) -> (&'a [u8], bool) {
        (self.columns[place], self.deflated[place])
    }
}

/// Walks the table of changes.
fn check_changes(
    columns: &[Cow<'_, [u8]>; CHANGES.len()],
    (extra, extra_deflated): (&[u8], bool),
    budget: &mut Budget,
    actors: u64,
    shared_max: u64,
) -> Result<(), GateError> {
    let rows = count::<u64>(&columns[0], budget.operations_max).within("column of changes' actors")?;
    budget.claim("changes of a document", rows, 0)?;
    let mut actor = Runs::<u64>::new(&columns[0]).within("column of changes' actors")?;
    let mut seq = Deltas::new(&columns[1]).within("column of changes' numbers")?;
    let mut max_op = Deltas::new(&columns[2]).within("column of changes' last operations")?;
    let mut time = Deltas::new(&columns[3]).within("column of times")?;
    let mut message = Runs::<&str>::new(&columns[4]).within("column of messages")?;
    let mut dependencies = List::new(&columns[5], &columns[6], "column of dependencies", shared_max)?;
    let mut extra_meta = Runs::<u64>::new(&columns[7]).within("column of extra bytes' lengths")?;
    let mut extra_bytes = Bytes::new(extra, extra_deflated, budget.inflated);
    let actor_count = usize::try_from(actors).unwrap_or(usize::MAX);
    let mut numbers = vec![0_i64; actor_count];
    let mut row = 0;
    while row < rows {
        let lefts = [actor.left(), seq.left(), max_op.left(), time.left(), message.left(), extra_meta.left()];
        let alike = lefts.into_iter().fold(dependencies.left().min(rows - row), u64::min);
        if alike == 0 {
            return Err(GateError::Malformed { part: "changes", why: "a column ends before the others" });
        }
        let author = actor.value().and_then(|actor| numbers.get_mut(usize::try_from(actor).ok()?));
        let last = author.ok_or(GateError::Reference { part: "change", why: "its actor is not listed" })?;
        match seq.value().within("column of changes' numbers")? {
            Some(Slope { first, step }) if first == *last + 1 && (step == 1 || alike == 1) => *last += alike as i64,
            _ => return Err(GateError::Malformed { part: "change", why: "its author's numbers are not in a row" }),
        }
        in_range(max_op.value(), alike, (0, COUNTER_MAX), true, "column of changes' last operations")?;
        in_range(time.value(), alike, (-TIME_MAX, TIME_MAX), false, "column of times")?;
        dependencies.check(alike, |slope, at, count| earlier(slope, row + at, count))?;
        let meta = extra_meta.value().ok_or("a length is missing").within("column of extra bytes' lengths")?;
        extra_bytes.check(meta, alike)?;
        for step in [actor.step(alike), seq.step(alike), max_op.step(alike), time.step(alike), message.step(alike)] {
            step.within("changes")?;
        }
        extra_meta.step(alike).within("changes")?;
        dependencies.step(alike)?;
        row += alike;
    }
    for end in [actor.finish(), seq.finish(), max_op.finish(), time.finish(), message.finish(), extra_meta.finish()] {
        end.within("changes")?;
    }
    dependencies.finish()?;
    budget.spend(extra_bytes.finish()?)
}

/// Whether `count` changes from `row` on name changes before themselves.
fn earlier(slope: Slope, row: u64, count: u64) -> Result<(), GateError> {
    let wrong = GateError::Reference { part: "dependency", why: "it is not an earlier change" };
    let (least, _) = slope.range(count).within("column of dependencies")?;
    let last = (count as i64 - 1).checked_mul(slope.step).and_then(|more| more.checked_add(slope.first));
    let before = |named: i64, by: u64| u64::try_from(named).is_ok_and(|named| named < by);
    let fits = least >= 0 && before(slope.first, row) && last.is_some_and(|last| before(last, row + count - 1));
    if fits { Ok(()) } else { Err(wrong) }
}

/// Checks numbers that must be there (or may be missing) and within `(least, greatest)`.
fn in_range(
    slope: Result<Option<Slope>, &'static str>,
    count: u64,
    (least, greatest): (i64, i64),
    required: bool,
    part: &'static str,
) -> Result<(), GateError> {
    let Some(slope) = slope.within(part)? else {
        return if required { Err(GateError::Malformed { part, why: "a number is missing" }) } else { Ok(()) };
    };
    let (low, high) = slope.range(count).within(part)?;
    if low >= least && high <= greatest {
        Ok(())
    } else {
        Err(GateError::Malformed { part, why: "a number is out of range" })
    }
}

/// Walks the table of operations.
fn check_operations(
    columns: &[Cow<'_, [u8]>; OPERATIONS.len()],
    (value, value_deflated): (&[u8], bool),
    budget: &mut Budget,
    actors: u64,
    shared_max: u64,
) -> Result<(), GateError> {
    let rows = count::<u64>(&columns[AUTHOR], budget.operations_max).within("column of authors")?;
    // Text that is there as it is vouches for itself; what a deflated column comes to is seen on the way.
    budget.claim(
        "operations of a document",
        rows,
        if value_deflated { budget.inflated } else { value.len() as u64 },
    )?;
    let mut walk = Operations {
        object_actor: Runs::new(&columns[0]).within("column of objects' actors")?,
        object_counter: Runs::new(&columns[1]).within("column of objects")?,
        key_actor: Runs::new(&columns[2]).within("column of elements' actors")?,
        key_counter: Deltas::new(&columns[3]).within("column of elements")?,
        key_name: Runs::new(&columns[4]).within("column of keys")?,
        id_actor: Runs::new(&columns[AUTHOR]).within("column of authors")?,
        id_counter: Deltas::new(&columns[6]).within("column of operations' counters")?,
        insert: Booleans::new(&columns[7]).within("column of inserts")?,
        action: Runs::new(&columns[8]).within("column of actions")?,
        value_meta: Runs::new(&columns[9]).within("column of values' kinds")?,
        values: Bytes::new(value, value_deflated, budget.inflated),
        successors: List::new(&columns[11], &columns[13], "column of successors", shared_max.saturating_add(rows))?,
        successor_actor: Runs::new(&columns[12]).within("column of successors' actors")?,
        expand: Booleans::new(&columns[14]).within("column of marks' edges")?,
        mark_name: Runs::new(&columns[15]).within("column of marks")?,
        actors,
    };
    let mut row = 0;
    while row < rows {
        let alike = walk.alike().min(rows - row);
        if alike == 0 {
            return Err(GateError::Malformed { part: "operations", why: "a column ends before the others" });
        }
        walk.check(alike)?;
        walk.step(alike)?;
        row += alike;
    }
    let literal = walk.finish()?;
    at_most("operations for so few bytes", rows, budget.claims.saturating_add(literal))?;
    budget.spend(literal)
}

struct Operations<'a> {
    object_actor: Runs<'a, u64>,
    object_counter: Runs<'a, u64>,
    key_actor: Runs<'a, u64>,
    key_counter: Deltas<'a>,
    key_name: Runs<'a, &'a str>,
    id_actor: Runs<'a, u64>,
    id_counter: Deltas<'a>,
    insert: Booleans<'a>,
    action: Runs<'a, u64>,
    value_meta: Runs<'a, u64>,
    values: Bytes<'a>,
    successors: List<'a>,
    successor_actor: Runs<'a, u64>,
    expand: Booleans<'a>,
    mark_name: Runs<'a, &'a str>,
    actors: u64,
}

impl Operations<'_> {
    fn alike(&self) -> u64 {
        [
            self.object_actor.left(),
            self.object_counter.left(),
            self.key_actor.left(),
            self.key_counter.left(),
            self.key_name.left(),
            self.id_actor.left(),
            self.id_counter.left(),
            self.insert.left(),
            self.action.left(),
            self.value_meta.left(),
            self.successors.left(),
            self.expand.left(),
            self.mark_name.left(),
        ]
        .into_iter()
        .fold(u64::MAX, u64::min)
    }

    fn check(&mut self, count: u64) -> Result<(), GateError> {
        self.known(self.id_actor.value(), "operation")?;
        in_range(self.id_counter.value(), count, (1, COUNTER_MAX), true, "column of operations' counters")?;
        match (self.object_actor.value(), self.object_counter.value()) {
            (None, None) => {}
            (actor @ Some(_), Some(counter)) if (1..COUNTER_MAX as u64).contains(&counter) => {
                self.known(actor, "object")?;
            }
            _ => return Err(GateError::Malformed { part: "object", why: "it is neither the root nor an operation" }),
        }
        let counter = self.key_counter.value().within("column of elements")?;
        let by_name = match (self.key_actor.value(), counter, self.key_name.value()) {
            (None, None, Some(_)) => true,
            (None, Some(Slope { first: 0, step }), None) if count == 1 || step == 0 => false,
            (actor @ Some(_), Some(slope), None) => {
                self.known(actor, "element")?;
                in_range(Ok(Some(slope)), count, (1, COUNTER_MAX), true, "column of elements")?;
                false
            }
            _ => return Err(GateError::Malformed { part: "key", why: "it is neither a name nor an element" }),
        };
        let meta = self.value_meta.value().ok_or("a value is missing").within("column of values' kinds")?;
        let value = self.values.check(meta, count)?;
        self.check_shape(by_name, value).within("operation")?;
        let actors = self.actors;
        let successor_actor = &mut self.successor_actor;
        self.successors.check(count, |slope, _, mut count| {
            in_range(Ok(Some(slope)), count, (1, COUNTER_MAX), true, "column of successors")?;
            while count > 0 {
                let alike = successor_actor.left().min(count);
                if alike == 0 || successor_actor.value().is_none_or(|actor| actor >= actors) {
                    return Err(GateError::Reference { part: "successor", why: "its actor is not listed" });
                }
                successor_actor.step(alike).within("column of successors' actors")?;
                count -= alike;
            }
            Ok(())
        })
    }

    fn check_shape(&self, by_name: bool, value: Value) -> Result<(), &'static str> {
        let action = self.action.value().ok_or("it has no action")?;
        let is_mark = action == 7;
        if self.insert.value() && by_name {
            return Err("it inserts under a name");
        }
        if !is_mark && (self.expand.value() || self.mark_name.value().is_some()) {
            return Err("it has a mark's name or edge and is none");
        }
        match action {
            0 | 2 | 4 | 6 if value != Value::Null => Err("it makes an object and has a value"),
            5 if value != Value::Integer => Err("it increments by what is no integer"),
            0..=2 | 4..=6 => Ok(()),
            3 => Err("a document keeps no deletions"),
            7 if by_name || !self.insert.value() => Err("a mark is not inserted"),
            7 => Ok(()),
            _ => Err("its action is unknown"),
        }
    }

    fn known(&self, actor: Option<u64>, part: &'static str) -> Result<(), GateError> {
        let known = actor.is_some_and(|actor| actor < self.actors);
        if known { Ok(()) } else { Err(GateError::Reference { part, why: "its actor is not listed" }) }
    }

    fn step(&mut self, count: u64) -> Result<(), GateError> {
        let steps = [
            self.object_actor.step(count),
            self.object_counter.step(count),
            self.key_actor.step(count),
            self.key_counter.step(count),
            self.key_name.step(count),
            self.id_actor.step(count),
            self.id_counter.step(count),
            self.insert.step(count),
            self.action.step(count),
            self.value_meta.step(count),
            self.expand.step(count),
            self.mark_name.step(count),
        ];
        for step in steps {
            step.within("operations")?;
        }
        self.successors.step(count)
    }

    /// How many bytes the values came to.
    fn finish(&mut self) -> Result<u64, GateError> {
        let ends = [
            self.object_actor.finish(),
            self.object_counter.finish(),
            self.key_actor.finish(),
            self.key_counter.finish(),
            self.key_name.finish(),
            self.id_actor.finish(),
            self.id_counter.finish(),
            self.insert.finish(false),
            self.action.finish(),
            self.value_meta.finish(),
            self.expand.finish(true),
            self.mark_name.finish(),
            self.successor_actor.finish(),
        ];
        for end in ends {
            end.within("operations")?;
        }
        self.successors.finish()?;
        self.values.finish()
    }
}

/// Lists of numbers: how many each row has, and all of them end to end.
struct List<'a> {
    counts: Runs<'a, u64>,
    numbers: Deltas<'a>,
    part: &'static str,
    shared: u64,
    shared_max: u64,
}

impl<'a> List<'a> {
    fn new(counts: &'a [u8], numbers: &'a [u8], part: &'static str, max: u64) -> Result<Self, GateError> {
        let (counts, deltas) = (Runs::new(counts).within(part)?, Deltas::new(numbers).within(part)?);
        let shared_max = (numbers.len() as u64).saturating_mul(4).saturating_add(SHARED_FREE).min(max);
        Ok(Self { counts, numbers: deltas, part, shared: 0, shared_max })
    }

    fn left(&self) -> u64 {
        self.counts.left()
    }

    /// Gives the numbers of the next `rows` rows to `each`: a slope, from which of the rows on, and how many.
    fn check(
        &mut self,
        rows: u64,
        mut each: impl FnMut(Slope, u64, u64) -> Result<(), GateError>,
    ) -> Result<(), GateError> {
        let a_row = self.counts.value().ok_or("a count is missing").within(self.part)?;
        match a_row {
            0 => Ok(()),
            1 => {
                let mut done = 0;
                while done < rows {
                    let alike = self.numbers.left().min(rows - done);
                    each(self.slope(alike)?, done, alike)?;
                    self.numbers.step(alike).within(self.part)?;
                    done += alike;
                }
                Ok(())
            }
            _ => {
                self.shared = self.shared.saturating_add(rows.saturating_mul(a_row));
                at_most(self.part, self.shared, self.shared_max)?;
                for row in 0..rows {
                    for _ in 0..a_row {
                        each(self.slope(1)?, row, 1)?;
                        self.numbers.step(1).within(self.part)?;
                    }
                }
                Ok(())
            }
        }
    }

    fn slope(&self, alike: u64) -> Result<Slope, GateError> {
        let slope = self.numbers.value().within(self.part)?.filter(|_| alike > 0);
        slope.ok_or(GateError::Malformed { part: self.part, why: "there are fewer than are counted" })
    }

    fn step(&mut self, rows: u64) -> Result<(), GateError> {
        self.counts.step(rows).within(self.part)
    }

    fn finish(&self) -> Result<(), GateError> {
        self.counts.finish().within(self.part)?;
        self.numbers.finish().within(self.part)
    }
}

/// Values, read through one after the other.
struct Bytes<'a> {
    stream: Stream<'a>,
    absent: bool,
    read: u64,
    buffer: Vec<u8>,
}

/// How much of the values is looked at at a time, unless one alone is longer.
const WINDOW: u64 = 1 << 15;
/// The longest value: no change could have brought a longer one.
const VALUE_MAX: usize = 8 << 20;

impl<'a> Bytes<'a> {
    fn new(bytes: &'a [u8], deflated: bool, max: u64) -> Self {
        Self { stream: Stream::new(bytes, deflated, max), absent: bytes.is_empty(), read: 0, buffer: Vec::new() }
    }

    /// Checks `count` values of one kind and length.
    fn check(&mut self, meta: u64, count: u64) -> Result<Value, GateError> {
        let part = "column of values";
        let (kind, length) = values::kind_of(meta).within(part)?;
        if length == 0 {
            return Ok(kind);
        }
        at_most("bytes of a value", length as u64, VALUE_MAX as u64)?;
        let mut left = count;
        while left > 0 {
            let some = (WINDOW / length as u64).clamp(1, left);
            self.buffer.resize(length * some as usize, 0);
            self.stream.fill(&mut self.buffer)?;
            self.read += self.buffer.len() as u64;
            values::check(meta, some, &mut Input::new(&self.buffer)).within(part)?;
            left -= some;
        }
        Ok(kind)
    }

    /// How many bytes there were.
    fn finish(&mut self) -> Result<u64, GateError> {
        if !self.absent {
            self.stream.finish()?;
        }
        Ok(self.read)
    }
}
