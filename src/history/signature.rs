//! Whose an author is, as a node signs it, and the signatures that are kept.
//!
//! A signature is about an author's *first* change in a document: that names exactly one change, and whose an author is
//! follows from it. It is kept under what was signed, so a row belongs to whatever record says just that, and none has
//! to be removed when a record goes.

use super::{HistoryError, Origin, Reader};
use crate::id::{ActorId, ChangeHash, DocumentId};
use crate::log::Keyspace;
use crate::log::record::Admission;
use crate::log::rows::{SignatureRow, decode_row, encode_row};

/// What every statement begins with. The number changes with the layout.
const CONTEXT: &[u8; 16] = b"tidelog author 1";
/// What the keys of signatures begin with.
const PREFIX: &[u8] = b"s";

/// What the node in `origin` signs: that `first`, the first change of `actor` in `document`, came in there as the origin
/// says. The version of the rules is not part of it. Parts of no fixed length have their length before them, so that two
/// statements never have the same bytes; `docs/protocol.md`, section 4, has the layout.
#[must_use]
pub fn author_statement(document: DocumentId, actor: &ActorId, first: ChangeHash, origin: &Origin) -> Vec<u8> {
    let admission = match origin.admission {
        Admission::Local => 0,
        Admission::Structural => 1,
        Admission::Full => 2,
    };
    let mut bytes = Vec::with_capacity(256);
    bytes.extend_from_slice(CONTEXT);
    bytes.extend_from_slice(&origin.node.0);
    bytes.extend_from_slice(&document.0);
    bytes.extend_from_slice(&first.0);
    bytes.push(admission);
    for part in [actor.as_bytes(), origin.principal.as_bytes()] {
        bytes.extend_from_slice(&(part.len() as u32).to_le_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

/// A node's signature of such a statement that was checked, on its way to the log with the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    digest: [u8; 16],
    bytes: [u8; 64],
}

impl Signature {
    /// The signature of `statement`, which the caller has checked.
    #[must_use]
    pub fn of(statement: &[u8], bytes: [u8; 64]) -> Self {
        Self { digest: digest_of(statement), bytes }
    }

    /// The row that keeps it, in `held`, and its key.
    pub(crate) fn row(&self, document: DocumentId) -> (Vec<u8>, Vec<u8>) {
        let key = key_of(document, &self.digest);
        let row = encode_row(Keyspace::Held, &key, &SignatureRow { signature: self.bytes });
        (key, row)
    }
}

impl Reader {
    /// The signature of a statement about an author of the document, if one is kept. A row that cannot be read counts as
    /// absent.
    ///
    /// # Errors
    /// [`HistoryError::Storage`] when the disk does not answer.
    pub fn signature(&self, document: DocumentId, statement: &[u8]) -> Result<Option<[u8; 64]>, HistoryError> {
        let key = key_of(document, &digest_of(statement));
        let bytes = self.storage().get(Keyspace::Held, &key)?;
        let row = bytes.and_then(|bytes| decode_row::<SignatureRow>(Keyspace::Held, &key, &bytes).ok());
        Ok(row.map(|row| row.signature))
    }
}

fn digest_of(statement: &[u8]) -> [u8; 16] {
    let mut digest = [0; 16];
    digest.copy_from_slice(&blake3::hash(statement).as_bytes()[..16]);
    digest
}

fn key_of(document: DocumentId, digest: &[u8; 16]) -> Vec<u8> {
    [PREFIX, &document.0, digest].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeId;

    fn origin(node: u8, principal: &str, admission: Admission) -> Origin {
        Origin { node: NodeId([node; 32]), principal: principal.to_owned(), admission, rules_version: 7 }
    }

    #[test]
    fn a_statement_has_the_bytes_that_the_protocol_s_page_says() {
        let actor = ActorId::new(&[0xaa, 0xbb]).unwrap();
        let of_ada = origin(2, "ada", Admission::Full);
        let bytes = author_statement(DocumentId([3; 16]), &actor, ChangeHash([4; 32]), &of_ada);
        let expected = [
            &b"tidelog author 1"[..],
            &[2; 32],
            &[3; 16],
            &[4; 32],
            &[2],
            &[2, 0, 0, 0, 0xaa, 0xbb],
            &[3, 0, 0, 0, b'a', b'd', b'a'],
        ];
        assert_eq!(bytes, expected.concat());
        let other_rules = Origin { rules_version: 9, ..of_ada };
        assert_eq!(author_statement(DocumentId([3; 16]), &actor, ChangeHash([4; 32]), &other_rules), bytes);
    }

    #[test]
    fn no_two_statements_have_the_same_bytes() {
        let actors: Vec<ActorId> =
            [&b"a"[..], b"ab", b"a\x01\0\0\0b"].iter().map(|bytes| ActorId::new(bytes).unwrap()).collect();
        let mut all = std::collections::BTreeSet::new();
        let mut count = 0;
        for actor in &actors {
            for principal in ["", "a", "b", "ab", "\u{1}\0\0\0b"] {
                for node in [1, 2] {
                    for admission in [Admission::Local, Admission::Structural, Admission::Full] {
                        for document in [5, 6] {
                            let origin = origin(node, principal, admission);
                            let first = ChangeHash([document + node; 32]);
                            all.insert(author_statement(DocumentId([document; 16]), actor, first, &origin));
                            count += 1;
                        }
                    }
                }
            }
        }
        assert_eq!(all.len(), count);
    }

    #[test]
    fn a_signature_is_found_under_what_was_signed_and_nothing_else() {
        let signature = Signature::of(b"one", [9; 64]);
        let (key, row) = signature.row(DocumentId([1; 16]));
        assert_ne!(key, Signature::of(b"two", [9; 64]).row(DocumentId([1; 16])).0);
        assert_ne!(key, signature.row(DocumentId([2; 16])).0);
        let read = decode_row::<SignatureRow>(Keyspace::Held, &key, &row).unwrap();
        assert_eq!(read.signature, [9; 64]);
    }
}
