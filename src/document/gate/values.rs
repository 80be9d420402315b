//! The values of operations: what kind each is, and its bytes.

use super::error::Fault;
use super::input::Input;

/// What kind of value an operation has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value {
    Null,
    /// A signed or unsigned integer.
    Integer,
    Other,
}

const NULL: u64 = 0;
const FALSE: u64 = 1;
const TRUE: u64 = 2;
const UNSIGNED: u64 = 3;
const SIGNED: u64 = 4;
const FLOAT: u64 = 5;
const STRING: u64 = 6;
const BYTES: u64 = 7;
const COUNTER: u64 = 8;
const TIMESTAMP: u64 = 9;

/// What a value's word says: its kind, and how many bytes it has.
pub(super) fn kind_of(meta: u64) -> Result<(Value, usize), Fault> {
    let length = usize::try_from(meta >> 4).map_err(|_| "it ends too early")?;
    let (kind, fits) = match meta & 0xf {
        NULL => (Value::Null, length == 0),
        FALSE | TRUE => (Value::Other, length == 0),
        UNSIGNED | SIGNED => (Value::Integer, (1..=10).contains(&length)),
        COUNTER | TIMESTAMP => (Value::Other, (1..=10).contains(&length)),
        FLOAT => (Value::Other, length == 8),
        STRING | BYTES => (Value::Other, true),
        // Kinds of later versions: automerge keeps them as they are.
        _ => (Value::Other, true),
    };
    if fits { Ok((kind, length)) } else { Err("a value's length is not its kind's") }
}

/// Checks `count` values of one kind and length, which stand one behind the other.
///
/// # Cost
/// Linear in their bytes; nothing when they have none.
pub(super) fn check(meta: u64, count: u64, raw: &mut Input<'_>) -> Result<Value, Fault> {
    let (kind, length) = kind_of(meta)?;
    if length == 0 {
        return Ok(kind);
    }
    let all = usize::try_from(count).ok().and_then(|count| count.checked_mul(length)).ok_or("it ends too early")?;
    let bytes = raw.take(all)?;
    // Most text: each character an operation, each one byte.
    if meta & 0xf == STRING && bytes.is_ascii() || matches!(meta & 0xf, BYTES | FLOAT) {
        return Ok(kind);
    }
    for value in bytes.chunks_exact(length) {
        check_one(meta, value)?;
    }
    Ok(kind)
}

/// Checks the bytes of one value.
pub(super) fn check_one(meta: u64, value: &[u8]) -> Result<(), Fault> {
    let mut input = Input::new(value);
    match meta & 0xf {
        UNSIGNED => {
            input.unsigned()?;
        }
        SIGNED | COUNTER | TIMESTAMP => {
            input.signed()?;
        }
        STRING => {
            std::str::from_utf8(value).map_err(|_| "a string is not UTF-8")?;
            return Ok(());
        }
        _ => return Ok(()),
    }
    if input.is_empty() { Ok(()) } else { Err("a value is longer than it needs to be") }
}
