//! What the writer is given to do, and what it answers.

use std::sync::Arc;

use super::{Clash, TakenBack};
use crate::document::Change;
use crate::engine::judge::Ruling;
use crate::engine::refusal::{Audit, Claims};
use crate::history::{Misfit, Origin, Signature};
use crate::id::{ChangeHash, DocumentId, Heads, LogCursor, Lsn, NodeId, StorageId};
use crate::log::WriteBatch;

/// A row that came from a peer or an import.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// About which document.
    pub document: DocumentId,
    /// What it says.
    pub body: IncomingBody,
    /// Where it entered.
    pub origin: Origin,
    /// Of an author's first change, the node's signature of that, which is kept with it.
    pub signature: Option<Box<Signature>>,
}

/// What an [`Incoming`] row says.
#[derive(Debug, Clone)]
pub enum IncomingBody {
    /// A verified change.
    Change(Box<Change>),
    /// The bytes of a lifecycle statement.
    Lifecycle(Vec<u8>),
}

/// Something for the writer to do.
#[derive(Debug)]
pub(crate) enum Input {
    /// An edit made here: statements first, then changes. All of it is accepted, or it is a bug.
    Local { document: DocumentId, statements: Vec<Vec<u8>>, changes: Vec<Change>, by: By },
    /// Rows from elsewhere; the cursor moves if nothing of them has to wait. What their sender may not write is written
    /// down after them.
    Admit { rows: Vec<Incoming>, via: Option<NodeId>, cursor: Option<LogCursor>, clash: Clash, audit: Audit },
    /// A cursor alone.
    StoreCursor { peer: NodeId, cursor: LogCursor },
    /// What a consumer made of events, and how far it is now: if it still is where `expected` says.
    Consume { key: Vec<u8>, expected: Option<Vec<u8>>, rows: WriteBatch },
    /// A row of the keyspace `held`; without one, what is there goes.
    Hold { key: Vec<u8>, row: Option<Vec<u8>> },
    /// Changes that this version of automerge cannot apply.
    Void { document: DocumentId, misfits: Vec<Misfit>, automerge: String },
    /// Changes that `via` will not have, `falls` with all that stands on them, and what takes their place.
    #[cfg_attr(not(feature = "quic"), allow(dead_code, reason = "only links say what a client may do"))]
    TakeBack(Box<TakenBack>),
    /// Whether documents may be read here, as `via` says.
    #[cfg_attr(not(feature = "quic"), allow(dead_code, reason = "only links say what a client may do"))]
    Withhold { documents: Vec<DocumentId>, withheld: bool, via: NodeId },
    /// Another name for the store, if nothing was ever logged in it.
    AdoptStorageId(StorageId),
    /// A verified snapshot, to be kept as a cache.
    Snapshot { document: DocumentId, lsn: Lsn, heads: Heads, changes: u64, bytes: Vec<u8> },
}

/// On whose behalf something is written here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct By {
    /// Who that is, as the log records it; empty for nobody in particular.
    pub(crate) principal: String,
    /// What allowed it.
    pub(crate) ruling: Ruling,
    /// What is claimed of him.
    pub(crate) claims: Option<Arc<Claims>>,
}

impl Input {
    /// How many bytes it brings, for the queue's bound.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Local { changes, .. } => changes.iter().map(|change| change.bytes().len()).sum(),
            Self::Admit { rows, audit, .. } => {
                let of = |row: &Incoming| match &row.body {
                    IncomingBody::Change(change) => change.bytes().len(),
                    IncomingBody::Lifecycle(bytes) => bytes.len(),
                };
                rows.iter().map(of).sum::<usize>() + audit.bytes()
            }
            Self::StoreCursor { .. } | Self::AdoptStorageId(_) | Self::Withhold { .. } => 0,
            Self::Consume { rows, .. } => {
                rows.rows.iter().map(|(_, key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum()
            }
            Self::TakeBack(taken) => {
                taken.anew.iter().map(|change| change.bytes().len()).sum::<usize>() + taken.bytes()
            }
            Self::Hold { row, .. } => row.as_ref().map_or(0, Vec::len),
            Self::Void { misfits, .. } => misfits.iter().map(|misfit| misfit.why.len() + 64).sum(),
            Self::Snapshot { bytes, .. } => bytes.len(),
        }
    }
}

/// What became of something that was given to the writer.
#[derive(Debug, Clone, Default)]
pub struct Admitted {
    /// Changes and statements that were new.
    pub accepted: usize,
    /// Those we had.
    pub known: usize,
    /// Documents of which something has to wait, and what is missing (nothing: the creation).
    pub missing: Vec<(DocumentId, Vec<ChangeHash>)>,
    /// What was refused, and why.
    pub refused: Vec<(DocumentId, String)>,
    /// Changes that gave way to another of the same author and number. They are not asked for again.
    pub outranked: Vec<(DocumentId, ChangeHash)>,
    /// The cursor was stored: a peer's, or a consumer's.
    pub cursor_stored: bool,
}
