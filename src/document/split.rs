//! Taking document chunks apart into their changes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::gate::{self, GateError, Input, Kind, next_chunk};
use super::{Change, ChangeError, View};
use crate::limits::Limits;

/// Takes a document chunk apart, each change after those it depends on.
///
/// Automerge offers no way to do it without building the document, so once the chunk has passed the
/// [gate](super::gate) this builds a scratch document and drops it.
///
/// # Errors
/// [`ChangeError::Refused`] when the bytes are no whole document within `limits`, or automerge panics over them.
///
/// # Cost
/// 0.5 s and 50 MB for a paper of 260,000 keystrokes: call it where blocking is allowed.
pub fn split(chunk: &[u8], limits: &Limits) -> Result<Vec<Change>, ChangeError> {
    split_and_keep(chunk, limits).map(|(changes, _)| changes)
}

/// [`split`], and the document that was built for it. It holds those changes and nothing else, and can give each of them
/// back, since they were taken from it.
///
/// # Errors
/// As [`split`].
///
/// # Cost
/// As [`split`]; the document is kept.
pub fn split_and_keep(chunk: &[u8], limits: &Limits) -> Result<(Vec<Change>, View), ChangeError> {
    let document = gate::open_document(chunk, limits)?;
    let take_apart = AssertUnwindSafe(|| document.get_changes(&[]).into_iter().map(Change::from_automerge).collect());
    let changes: Result<Vec<Change>, ChangeError> =
        catch_unwind(take_apart).unwrap_or_else(|panic| Err(GateError::Panicked(gate::message_of(&*panic)).into()));
    Ok((changes?, View::from_automerge(document)))
}

/// What was found in chunks that stand one behind the other.
#[derive(Debug, Default)]
pub struct Pieces {
    /// The changes of the chunks that passed, in the order of the chunks, those of a document each after what it depends
    /// on. A change that stands there twice is there twice.
    pub changes: Vec<Change>,
    /// How many chunks passed.
    pub chunks: usize,
    /// What did not pass first: the byte where it begins, and why.
    pub fault: Option<(usize, ChangeError)>,
    /// How many pieces did not pass.
    pub faults: usize,
}

/// Takes apart what stands one behind the other in `bytes`, documents and changes, as in a file that somebody else
/// wrote. What is damaged is left out; what comes after it is taken as far as it can be told where it begins.
///
/// # Cost
/// That of [`split`] for each document, of [`Change::parse`] for each change. No more changes than one document may
/// have are taken.
#[must_use]
pub fn split_each(bytes: &[u8], limits: &Limits) -> Pieces {
    let mut pieces = Pieces::default();
    let mut input = Input::new(bytes);
    while !input.is_empty() {
        let at = bytes.len() - input.left.len();
        let (taken, goes_on) = match next_chunk(&mut input) {
            Ok(chunk) => {
                let taken = match chunk.kind {
                    Kind::Document => split(chunk.whole, limits),
                    Kind::Change | Kind::DeflatedChange => {
                        Change::parse_within(chunk.whole.to_vec(), limits).map(|change| vec![change])
                    }
                };
                (taken.and_then(|changes| pieces.bounded(changes, limits)), true)
            }
            // It was cut off whole, and only its kind is not taken.
            Err(error @ GateError::Unsupported(_)) => (Err(error.into()), true),
            Err(error) => (Err(error.into()), false),
        };
        match taken {
            Ok(mut changes) => {
                pieces.chunks += 1;
                pieces.changes.append(&mut changes);
            }
            Err(error) => {
                pieces.faults += 1;
                pieces.fault.get_or_insert((at, error));
            }
        }
        if !goes_on {
            break;
        }
    }
    pieces
}

impl Pieces {
    fn bounded(&self, changes: Vec<Change>, limits: &Limits) -> Result<Vec<Change>, ChangeError> {
        let found = (self.changes.len() + changes.len()) as u64;
        if found <= limits.document_ops_max {
            return Ok(changes);
        }
        Err(GateError::TooMany { what: "changes in one file", found, max: limits.document_ops_max }.into())
    }
}

#[cfg(test)]
mod tests {
    use automerge::transaction::Transactable;
    use automerge::{Automerge, ObjType, ROOT};

    use super::*;

    #[test]
    fn a_document_comes_apart_into_the_changes_it_was_made_of() {
        let mut document = Automerge::new();
        for n in 0..20 {
            let mut tx = document.transaction();
            tx.put_object(ROOT, format!("k{n}"), ObjType::List).unwrap();
            tx.commit();
        }
        let hashes: Vec<_> = document.get_changes(&[]).iter().map(|change| change.hash().0).collect();
        let changes = split(&document.save(), &Limits::DEFAULT).unwrap();
        assert_eq!(changes.iter().map(|change| change.hash().0).collect::<Vec<_>>(), hashes);
        assert!(split(b"no document", &Limits::DEFAULT).is_err());
    }

    #[test]
    fn what_stands_behind_a_damaged_chunk_is_found() {
        let mut document = Automerge::new();
        let chunks: Vec<Vec<u8>> = (0..3)
            .map(|n| {
                let mut tx = document.transaction();
                tx.put(ROOT, "n", n).unwrap();
                tx.commit();
                document.get_last_local_change().unwrap().raw_bytes().to_vec()
            })
            .collect();
        let first = document.fork_at(&[document.get_changes(&[])[0].hash()]).unwrap().save();
        let whole = [&first[..], &chunks[1], &chunks[2]].concat();
        let pieces = split_each(&whole, &Limits::DEFAULT);
        assert_eq!((pieces.changes.len(), pieces.chunks, pieces.faults), (3, 3, 0));

        // A flipped bit spoils one chunk, a cut the last one.
        let mut flipped = whole.clone();
        flipped[first.len() + 20] ^= 1;
        let pieces = split_each(&flipped, &Limits::DEFAULT);
        assert_eq!((pieces.chunks, pieces.faults, pieces.fault.unwrap().0), (2, 1, first.len()));
        for cut in 1..chunks[2].len() {
            let pieces = split_each(&whole[..whole.len() - cut], &Limits::DEFAULT);
            assert_eq!((pieces.changes.len(), pieces.faults), (2, 1), "{cut} bytes less");
        }
        assert_eq!(split_each(b"", &Limits::DEFAULT).chunks, 0);
        let few = Limits { document_ops_max: 2, ..Limits::DEFAULT };
        assert_eq!(split_each(&whole, &few).changes.len(), 2);
    }
}
