//! Taking a document chunk apart into its changes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::gate::{self, GateError};
use super::{Change, ChangeError};
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
    let document = gate::open_document(chunk, limits)?;
    let take_apart = AssertUnwindSafe(|| document.get_changes(&[]).into_iter().map(Change::from_automerge).collect());
    catch_unwind(take_apart).unwrap_or_else(|panic| Err(GateError::Panicked(gate::message_of(&*panic)).into()))
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
}
