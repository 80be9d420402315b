//! What the log holds of each document: its row, its change graph, its chunks and its snapshot.
//!
//! The log knows no documents and a document knows no log; this room is where the two meet, for reading. Everything it
//! answers is committed. [`Reader`] is a cheap clone over the store, for sessions, feeds and handles; [`fold`] says how
//! a document's row follows from its records; [`open`] holds the projections against the log's tail and [`rebuild`]s
//! them when they are missing or wrong; [`verify`] checks everything against everything. [`withdrawal`] and [`voids`] are
//! about changes that were logged and are no part of what is shown, [`Past`] about documents as they were.

pub mod fold;
mod graphs;
mod names;
mod open;
mod past;
mod positions;
mod reader;
mod rebuild;
mod rules;
mod signature;
mod snapshot;
mod storage_id;
mod verify;
pub mod voids;
pub mod withdrawal;

pub use graphs::Graphs;
pub use names::Names;
pub(crate) use open::CHECKPOINT_KEY;
pub use open::{Opened, open};
pub use past::{Past, Then};
pub(crate) use reader::peer_key;
pub use reader::{DocumentState, Entry, EntryKind, Location, Origin, Reader};
pub use rebuild::rebuild;
pub(crate) use rules::project_rules;
pub use signature::{Signature, author_statement};
pub use snapshot::Snapshot;
pub(crate) use snapshot::{is_saved_far_behind, snapshot_key};
pub(crate) use storage_id::put_storage_id;
pub use verify::{Fault, Unapplied, Verification, verify};
pub use voids::{Degraded, Misfit, Readable};

use crate::id::{DocumentId, Lsn};
use crate::log::record::RecordError;
use crate::log::{LogError, StorageError};

/// Why the store does not answer.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum HistoryError {
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The disk failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A row is not what was written.
    #[error("{place}: {error}")]
    Row {
        /// Which row.
        place: String,
        /// What is wrong with it.
        error: RecordError,
    },
    /// Something another row speaks of is not there.
    #[error("{0} is missing")]
    Missing(String),
    /// A document's rows contradict each other or the log.
    #[error("document {document} at record {lsn}: {why}")]
    Document {
        /// Which document.
        document: DocumentId,
        /// Where.
        lsn: Lsn,
        /// What is wrong.
        why: String,
    },
}
