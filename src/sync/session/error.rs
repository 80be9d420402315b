//! Why a session ends.

use crate::document::Change;
use crate::history::HistoryError;
use crate::id::{DocumentId, NodeId};
use crate::limits::Limits;
use crate::sync::ExchangeError;
use crate::sync::wire::{Frame, WireError};

/// Why a session cannot go on. The driver closes the link with the code that belongs to it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The peer sent what is not a frame.
    #[error("bad frame: {0}")]
    BadFrame(#[from] WireError),
    /// The peer sent a frame where it may not come.
    #[error("unexpected {frame} frame: {why}")]
    UnexpectedFrame {
        /// Which frame.
        frame: &'static str,
        /// Why it may not come here.
        why: &'static str,
    },
    /// The peer says it is another node than its key proves.
    #[error("the peer says it is {said} and its key is that of {proven}")]
    WrongNode {
        /// Who it says it is.
        said: NodeId,
        /// Whose key it has.
        proven: NodeId,
    },
    /// The peer sent bytes that are no change, or a chunk of a kind that does not travel.
    #[error("malformed change of {document}: {why}")]
    MalformedChange {
        /// Of which document.
        document: DocumentId,
        /// What is wrong.
        why: String,
    },
    /// The peer broke an exchange's protocol.
    #[error("exchange of {document}: {error}")]
    Exchange {
        /// Of which document.
        document: DocumentId,
        /// What is wrong.
        error: ExchangeError,
    },
    /// The peer has more of something under way than is allowed.
    #[error("the peer has too many {what}: {max} are allowed")]
    TooMany {
        /// What it has too many of.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// A document does not become equal whatever is sent.
    #[error("{document} does not converge with the peer")]
    NotConverging {
        /// Which document.
        document: DocumentId,
    },
    /// The peer let a document wait for too long.
    #[error("the peer said nothing of {document}, or of any other document that waits for it, for {seconds} seconds")]
    Silent {
        /// Which document.
        document: DocumentId,
        /// For how long.
        seconds: u64,
    },
    /// The writer refused what the peer sent.
    #[error("refused: {0}")]
    Refused(String),
    /// A change the peer sent cannot be applied to its document.
    #[error("{0}")]
    Unappliable(String),
    /// The peer may not read any more what is on its way to it. The link begins anew.
    #[error("what the peer may read has changed while some of it was on its way")]
    AccessChanged,
    /// Our own store does not answer.
    #[error(transparent)]
    History(#[from] HistoryError),
}

impl SessionError {
    /// Whether the peer is to blame.
    #[must_use]
    pub fn is_the_peers(&self) -> bool {
        !matches!(self, Self::History(_) | Self::AccessChanged)
    }
}

/// Verifies a change that came from the peer.
pub(in crate::sync) fn parse_change(
    document: DocumentId,
    bytes: Vec<u8>,
    limits: &Limits,
) -> Result<Change, SessionError> {
    Change::parse_within(bytes, limits)
        .map_err(|error| SessionError::MalformedChange { document, why: error.to_string() })
}

/// Names a frame that may not come.
pub(in crate::sync) fn unexpected(frame: &Frame, why: &'static str) -> SessionError {
    let frame = match frame {
        Frame::Hello(_) => "Hello",
        Frame::HelloAck(_) => "HelloAck",
        Frame::ChangeBatch(_) => "ChangeBatch",
        Frame::Ack(_) => "Ack",
        Frame::Inventory(_) => "Inventory",
        Frame::Want(_) => "Want",
        Frame::DocumentBatch(_) => "DocumentBatch",
        Frame::DocSync(_) => "DocSync",
        Frame::Part(_) => "Part",
        Frame::Busy(_) => "Busy",
        Frame::StreamBegin(_) => "StreamBegin",
        Frame::StreamPart(_) => "StreamPart",
        Frame::Auth(_) => "Auth",
        Frame::Access(_) => "Access",
        Frame::Denied(_) => "Denied",
        Frame::Authors(_) => "Authors",
        Frame::Attestations(_) => "Attestations",
        Frame::TakenBack(_) => "TakenBack",
        Frame::Skipped(_) => "unknown",
    };
    SessionError::UnexpectedFrame { frame, why }
}
