//! The only place that hands bytes to automerge's parsers.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use automerge::Automerge;

use super::change::{Claims, check_plain, plain_chunk};
use super::chunk::{Kind, next_chunk};
use super::document::{check, check_document};
use super::error::{GateError, at_most};
use super::input::Input;
use crate::id::shortened;
use crate::limits::Limits;

/// Checks a change chunk and parses it.
///
/// # Errors
/// [`GateError`].
///
/// # Cost
/// As `check_change`, and 1.1 us for automerge's own parsing of a keystroke.
pub fn open_change(bytes: &[u8], limits: &Limits) -> Result<(automerge::Change, Claims), GateError> {
    let plain = plain_chunk(bytes, limits)?;
    let claims = check_plain(&plain, bytes.len(), limits)?;
    let change = guarded(|| automerge::Change::try_from(&plain[..]))?.map_err(refused)?;
    // automerge computes the hash and does not compare it here; when it loads the change from a log, it does.
    if plain.get(4..8) != Some(&change.hash().0[..4]) {
        return Err(GateError::Malformed { part: "chunk header", why: "its checksum does not hold" });
    }
    Ok((change, claims))
}

/// Checks a document chunk and opens it as a scratch document.
///
/// # Errors
/// [`GateError`]; [`GateError::Panicked`] when it passed and automerge panicked over it.
///
/// # Cost
/// As `check_document`, and what automerge takes: 10 us and 512 bytes an operation at most.
pub fn open_document(bytes: &[u8], limits: &Limits) -> Result<Automerge, GateError> {
    check_document(bytes, limits)?;
    guarded(|| Automerge::load(bytes))?.map_err(refused)
}

/// Checks chunks that stand one behind the other: documents and changes.
///
/// # Errors
/// [`GateError`], of the first chunk that does not pass.
pub fn check_chunks(bytes: &[u8], limits: &Limits) -> Result<(), GateError> {
    let mut input = Input::new(bytes);
    while !input.is_empty() {
        let chunk = next_chunk(&mut input)?;
        if chunk.kind == Kind::Document {
            at_most("bytes of a document", chunk.whole.len() as u64, limits.document_bytes_max as u64)?;
            check(&chunk, limits)?;
        } else {
            check_plain(&plain_chunk(chunk.whole, limits)?, chunk.whole.len(), limits)?;
        }
    }
    Ok(())
}

/// Checks the form of chunks that are ours: from the log, where they were held to the bounds when they came in, or
/// from a snapshot of it.
///
/// # Errors
/// [`GateError`], of the first chunk that does not pass.
pub(in crate::document) fn check_own_chunks(bytes: &[u8]) -> Result<(), GateError> {
    check_chunks(bytes, &OWN)
}

/// Builds a document from chunks that passed. It may panic: the caller guards it.
///
/// # Errors
/// [`GateError::Automerge`].
pub(in crate::document) fn load_checked(bytes: &[u8]) -> Result<Automerge, GateError> {
    Automerge::load(bytes).map_err(refused)
}

/// No bounds but those of the form.
pub(in crate::document) const OWN: Limits = Limits {
    change_bytes_max: usize::MAX,
    change_ops_max: u64::MAX,
    change_inflated_max: usize::MAX - 1,
    actors_max: u64::MAX,
    ops_per_byte: u64::MAX,
    document_bytes_max: usize::MAX,
    document_inflated_max: u64::MAX,
    document_ops_max: u64::MAX,
    inflate_ratio_max: u64::MAX,
    ..Limits::DEFAULT
};

fn refused(error: impl std::fmt::Display) -> GateError {
    GateError::Automerge(shortened(&error.to_string()))
}

fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, GateError> {
    // What the call could leave half made is dropped with it.
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| GateError::Panicked(message_of(&*panic)))
}

/// What a panic says.
pub(in crate::document) fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    shortened(text.unwrap_or("of an unknown kind"))
}
