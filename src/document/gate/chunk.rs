//! The frame of a chunk: its first bytes, its type, and the list of columns inside.

use super::error::{Fault, GateError, In};
use super::input::Input;

/// What every chunk begins with.
pub(super) const MAGIC: [u8; 4] = [0x85, 0x6f, 0x4a, 0x83];

/// What a chunk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::document) enum Kind {
    Document,
    Change,
    DeflatedChange,
}

/// One chunk, cut out but not opened.
#[derive(Debug, Clone, Copy)]
pub(in crate::document) struct Chunk<'a> {
    pub(in crate::document) kind: Kind,
    pub(super) checksum: [u8; 4],
    pub(super) contents: &'a [u8],
    /// All of it, header included.
    pub(in crate::document) whole: &'a [u8],
}

/// Cuts the first chunk off.
pub(in crate::document) fn next_chunk<'a>(input: &mut Input<'a>) -> Result<Chunk<'a>, GateError> {
    let before = input.left;
    let (kind, checksum, contents) = read_header(input).within("chunk header")?;
    let kind = match kind {
        0 => Kind::Document,
        1 => Kind::Change,
        2 => Kind::DeflatedChange,
        3 => return Err(GateError::Unsupported("bundles")),
        _ => return Err(GateError::Malformed { part: "chunk header", why: "its type is unknown" }),
    };
    Ok(Chunk { kind, checksum, contents, whole: &before[..before.len() - input.left.len()] })
}

/// Cuts off a chunk that is all there is.
pub(super) fn only_chunk(bytes: &[u8]) -> Result<Chunk<'_>, GateError> {
    let mut input = Input::new(bytes);
    let chunk = next_chunk(&mut input)?;
    if input.is_empty() { Ok(chunk) } else { Err(GateError::Malformed { part: "chunk", why: "bytes follow it" }) }
}

fn read_header<'a>(input: &mut Input<'a>) -> Result<(u8, [u8; 4], &'a [u8]), Fault> {
    if input.take(4)? != MAGIC {
        return Err("it does not begin as one");
    }
    let mut checksum = [0; 4];
    checksum.copy_from_slice(input.take(4)?);
    Ok((input.byte()?, checksum, input.prefixed()?))
}

/// A column's number and type, as automerge packs them: `number << 4 | deflated << 3 | type`.
pub(super) const DEFLATED: u32 = 0b1000;

/// One column of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Column {
    /// Its place among the known ones.
    pub(super) place: usize,
    pub(super) deflated: bool,
    pub(super) length: usize,
}

/// Reads a list of columns, all of which must be among `known`, in that order and each once.
pub(super) fn read_columns(input: &mut Input<'_>, known: &[u32], mut each: impl FnMut(Column)) -> Result<(), Fault> {
    let count = input.unsigned()?;
    if count > known.len() as u64 {
        return Err("there are more columns than are known");
    }
    let mut next = 0;
    for _ in 0..count {
        let specification = u32::try_from(input.unsigned()?).map_err(|_| "a column is unknown")?;
        let length = usize::try_from(input.unsigned()?).map_err(|_| "it ends too early")?;
        if length == 0 {
            return Err("an empty column is listed");
        }
        let plain = specification & !DEFLATED;
        let Some(place) = known[next..].iter().position(|spec| *spec == plain).map(|at| next + at) else {
            let elsewhere = known.contains(&plain);
            return Err(if elsewhere { "columns are out of order or there twice" } else { "a column is unknown" });
        };
        next = place + 1;
        each(Column { place, deflated: specification != plain, length });
    }
    Ok(())
}
