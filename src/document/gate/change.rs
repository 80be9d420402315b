//! A change chunk.

use std::borrow::Cow;

use super::actors::{Actors, read_actor};
use super::chunk::{Kind, MAGIC, only_chunk, read_columns};
use super::error::{Fault, GateError, In, at_most};
use super::inflate::inflate;
use super::input::Input;
use super::operations::{ACTION, COLUMNS, MARKS, VALUE, walk};
use super::runs::count;
use crate::limits::Limits;

/// What a change that passed says it will cost.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Claims {
    /// Its operations.
    pub operations: u64,
    /// How many of them stand for so few bytes that only the document can vouch for them: deletions, of which a
    /// document with fewer operations cannot have so many.
    pub unbacked_deletions: u64,
    /// It sets or ends marks.
    pub marks: bool,
    /// The greatest counter among the operations that it refers to, of each other author in the order in which it names
    /// them.
    pub greatest: Vec<u64>,
}

/// Operation counters stay below this: automerge keeps them in 32 bits, and a later local edit must not overflow them.
const OPERATION_END_MAX: u64 = 1 << 31;
/// Times are kept as differences; this is also what a JavaScript number holds exactly.
const TIME_MAX: u64 = 1 << 53;

/// Checks one change chunk, deflated or not.
///
/// # Errors
/// [`GateError`], naming the part that is wrong.
///
/// # Cost
/// Linear in the bytes: 0.2 us for a keystroke, 2 ns a byte for text. At most `limits.change_inflated_max` of memory.
pub fn check_change(bytes: &[u8], limits: &Limits) -> Result<Claims, GateError> {
    check_plain(&plain_chunk(bytes, limits)?, bytes.len(), limits)
}

/// What a change that automerge made says it will cost, when it goes out in `length` bytes.
pub(in crate::document) fn claims_of(
    change: &automerge::Change,
    length: usize,
    limits: &Limits,
) -> Result<Claims, GateError> {
    check_plain(change.raw_bytes(), length, limits)
}

/// The chunk itself, or inflated if it is deflated.
pub(super) fn plain_chunk<'a>(bytes: &'a [u8], limits: &Limits) -> Result<Cow<'a, [u8]>, GateError> {
    at_most("bytes of a change", bytes.len() as u64, limits.change_bytes_max as u64)?;
    let chunk = only_chunk(bytes)?;
    match chunk.kind {
        Kind::Document => Err(GateError::Malformed { part: "chunk", why: "it is a document where a change belongs" }),
        Kind::Change => Ok(Cow::Borrowed(bytes)),
        Kind::DeflatedChange => {
            let contents = inflate(chunk.contents, limits.change_inflated_max, "inflated bytes of a change")?;
            let mut plain = Vec::with_capacity(contents.len() + 20);
            plain.extend_from_slice(&MAGIC);
            plain.extend_from_slice(&chunk.checksum);
            plain.push(1);
            push_unsigned(&mut plain, contents.len() as u64);
            plain.extend_from_slice(&contents);
            Ok(Cow::Owned(plain))
        }
    }
}

/// Checks a change chunk that is not deflated, and came in `length` bytes.
pub(super) fn check_plain(bytes: &[u8], length: usize, limits: &Limits) -> Result<Claims, GateError> {
    let contents = only_chunk(bytes)?.contents;
    at_most("inflated bytes of a change", contents.len() as u64, limits.change_inflated_max as u64)?;
    let mut input = Input::new(contents);
    let header = read_header(&mut input).within("change header")?;
    let mut actors = Actors::new(header.actor);
    actors.read_others(&mut input, limits.actors_max)?;
    let mut columns = [&[][..]; COLUMNS.len()];
    let mut lengths = [0; COLUMNS.len()];
    let mut deflated = false;
    read_columns(&mut input, &COLUMNS, |column| {
        lengths[column.place] = column.length;
        deflated |= column.deflated;
    })
    .within("list of columns")?;
    if deflated {
        return Err(GateError::Malformed { part: "list of columns", why: "a change's column is deflated" });
    }
    for (column, length) in columns.iter_mut().zip(lengths) {
        *column = input.take(length).within("columns")?;
    }
    // What follows the columns is for later versions; automerge keeps an author's name there, and asserts what follows
    // when it takes the change in.
    if header.seq != 1 && names_author(input.left) {
        return Err(GateError::Malformed { part: "extra bytes", why: "only an actor's first change names an author" });
    }
    let operations = count::<u64>(columns[ACTION], limits.change_ops_max).within("column of actions")?;
    at_most("operations of a change", operations, limits.change_ops_max)?;
    let end = header.start.saturating_add(operations);
    at_most("operation counters", end, OPERATION_END_MAX)?;
    let allowed = backed(length, columns[VALUE].len(), limits);
    let marks = !columns[MARKS].is_empty();
    let deletions = walk(&columns, &mut actors, header.start, operations)?;
    let greatest = actors.finish()?;
    let unbacked = operations.saturating_sub(allowed);
    if unbacked > deletions {
        return Err(GateError::TooMany { what: "operations for so few bytes", found: operations, max: allowed });
    }
    Ok(Claims { operations, unbacked_deletions: unbacked, marks, greatest })
}

/// How many operations `length` bytes on the wire may claim. Text that is literally there vouches for itself.
pub(super) fn backed(length: usize, literal: usize, limits: &Limits) -> u64 {
    (length as u64).saturating_mul(limits.ops_per_byte).saturating_add(limits.ops_free).saturating_add(literal as u64)
}

struct Header<'a> {
    actor: &'a [u8],
    seq: u64,
    start: u64,
}

fn read_header<'a>(input: &mut Input<'a>) -> Result<Header<'a>, Fault> {
    let deps = input.hashes()?;
    if !deps.is_sorted_by(|one, other| one < other) {
        return Err("the dependencies do not ascend");
    }
    let actor = read_actor(input)?;
    let seq = input.unsigned()?;
    if !(1..=u64::from(u32::MAX)).contains(&seq) {
        return Err("its number is 0 or does not fit 32 bits");
    }
    let start = input.unsigned()?;
    if start == 0 {
        return Err("its first operation has the counter 0");
    }
    if input.signed()?.unsigned_abs() > TIME_MAX {
        return Err("its time is out of range");
    }
    std::str::from_utf8(input.prefixed()?).map_err(|_| "its message is not UTF-8")?;
    Ok(Header { actor, seq, start })
}

/// Whether automerge takes these bytes for an author's name: the number 1, a length, and at least that many bytes.
fn names_author(mut extra: &[u8]) -> bool {
    let mut number = || -> Option<u64> {
        // It reads numbers in any form, however long.
        let mut number = 0_u64;
        for shift in (0_u32..).step_by(7) {
            let (byte, left) = extra.split_first()?;
            extra = left;
            if shift < 64 {
                number |= u64::from(byte & 0x7f) << shift;
            }
            if byte & 0x80 == 0 {
                break;
            }
        }
        Some(number)
    };
    number() == Some(1) && number().is_some()
}

fn push_unsigned(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}
