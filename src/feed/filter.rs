//! Which documents a feed is about.

use crate::id::{CollectionName, DocumentId, first};

/// Which documents a feed is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// All.
    Everything,
    /// Those of one collection, which need not exist yet.
    Collection(CollectionName),
    /// One, which need not exist yet.
    Document(DocumentId),
}

impl Filter {
    /// Names the filter in cursors: a digest goes on only in a feed of the same documents.
    #[must_use]
    pub fn key(&self) -> [u8; 8] {
        let mut hasher = blake3::Hasher::new_derive_key("tidelog 2026-11 feed filter");
        match self {
            Self::Everything => {}
            Self::Collection(name) => drop(hasher.update(b"c").update(name.as_str().as_bytes())),
            Self::Document(id) => drop(hasher.update(b"d").update(&id.0)),
        }
        first(hasher.finalize().as_bytes())
    }

    /// Whether it lets through a document that is in `collection`.
    #[must_use]
    pub fn admits(&self, document: DocumentId, collection: &CollectionName) -> bool {
        match self {
            Self::Everything => true,
            Self::Collection(name) => name == collection,
            Self::Document(id) => *id == document,
        }
    }
}
