//! What can go wrong with a materialised document.

use automerge::AutomergeError;

use super::json::JsonError;
use super::{ChangeError, Path};
use crate::id::ChangeHash;

/// Why a view cannot be built, changed or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ViewError {
    /// An earlier failure left the inside in doubt. Drop this view and build it from the log.
    #[error("the materialised document is broken by an earlier failure and must be rebuilt")]
    Broken,
    /// Automerge, or the caller's own closure, panicked. The view is broken now.
    #[error("panic while working on the document: {0}")]
    Panicked(String),
    /// A change passed every check for being replayed and came out as another one. The view is broken now.
    #[error("change {hash} was replayed as {made}")]
    ReplayMismatch {
        /// The change.
        hash: ChangeHash,
        /// What came out.
        made: ChangeHash,
    },
    /// Bytes or changes do not make a document: something they depend on is missing, or their heads do not hold.
    #[error("the document cannot be built: {0}")]
    Unloadable(String),
    /// A change depends on one that neither the view nor the batch has. The view is broken now.
    #[error("change {0} cannot be applied: something it depends on is missing")]
    Incomplete(ChangeHash),
    /// A change applies, and the document does not give it back as it was. The view is broken now.
    #[error("change {0} refers to what is not there: the document cannot hold it as it is")]
    Unreproducible(ChangeHash),
    /// Heads of which the document has no history.
    #[error("change {0} is not in this document")]
    UnknownHead(ChangeHash),
    /// There is no value at a path.
    #[error("there is nothing at {0}")]
    NotFound(Path),
    /// The value at a path is not of the kind the operation needs.
    #[error("the value at {path} is {found}, not {expected}")]
    WrongKind {
        /// Where.
        path: Path,
        /// What the operation works on.
        expected: &'static str,
        /// What is there.
        found: &'static str,
    },
    /// A position lies outside of a list or text.
    #[error("position {position} is outside of {path}, which has {length}")]
    OutOfRange {
        /// The list or text.
        path: Path,
        /// The position.
        position: usize,
        /// Its length: elements, or Unicode code points.
        length: usize,
    },
    /// A document as a whole can only be an object.
    #[error("a document is a JSON object at its root")]
    RootNotMap,
    /// A JSON value has no place in a document, or the reverse.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A value has not the shape of the type it is read as, or the type does not serialise.
    #[error("serialisation: {0}")]
    Serde(#[from] serde_json::Error),
    /// A change that was made here is not one we could log.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// Automerge refuses.
    #[error("automerge: {0}")]
    Automerge(String),
}

impl From<AutomergeError> for ViewError {
    fn from(error: AutomergeError) -> Self {
        Self::Automerge(error.to_string())
    }
}
