//! Why a socket is closed, and what its client is told.

use super::wire::WireError;
use crate::history::HistoryError;
use crate::id::DocumentId;
use crate::sync::ExchangeError;

/// Why a socket is to be closed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RepoFault {
    /// The client says that it goes.
    #[error("the client left")]
    Left,
    /// The client has connected again.
    #[error("the same client has opened a newer connection")]
    Replaced,
    /// The client may not be here.
    #[error("{0}")]
    Denied(String),
    /// The client did not say who it is, or not credibly. Nothing changes that but another token.
    #[error("{0}")]
    Unauthenticated(String),
    /// The client's token has expired, and it did not bring another.
    #[error("the token has expired")]
    Expired,
    /// The client's token was revoked.
    #[error("the token is not accepted any more")]
    Revoked,
    /// Somebody else has the client's name.
    #[error("the peer id belongs to somebody else")]
    NameTaken,
    /// The client speaks no version of the protocol that we do.
    #[error("unsupported protocol version")]
    Version,
    /// The client sent what is no message.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The client's messages do not fit each other.
    #[error("unexpected message: {0}")]
    Unexpected(&'static str),
    /// The client broke Automerge's sync protocol.
    #[error("sync of {document}: {error}")]
    Exchange {
        /// In which document.
        document: DocumentId,
        /// What is wrong.
        error: ExchangeError,
    },
    /// The client sent bytes that are no change.
    #[error("malformed change of {document}: {why}")]
    Malformed {
        /// Of which document.
        document: DocumentId,
        /// What is wrong.
        why: String,
    },
    /// The client has more of something than is allowed.
    #[error("too many {what}: {max} are allowed")]
    TooMany {
        /// What it has too many of.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// The client has had as much as it may have for now.
    #[error("{why}")]
    Busy {
        /// The close code of what there was too much of, from 4500 to 4599.
        code: u16,
        /// What there was too much of, and when it may come again.
        why: String,
    },
    /// The writer did not take what the client sent.
    #[error("refused: {0}")]
    Refused(String),
    /// Our own store does not answer.
    #[error("the server met a fault of its own")]
    History(#[from] HistoryError),
}

impl RepoFault {
    /// The WebSocket close code that belongs to it. Clients treat all alike; people read them.
    #[must_use]
    pub fn code(&self) -> u16 {
        match self {
            Self::Left => 1000,
            Self::Version | Self::Wire(WireError::Cbor(_)) | Self::Unexpected(_) => 1002,
            Self::Wire(WireError::TooLong { .. }) => 1009,
            Self::Wire(_) | Self::Exchange { .. } | Self::Malformed { .. } => 1007,
            Self::Denied(_) | Self::Replaced | Self::NameTaken | Self::TooMany { .. } => 1008,
            Self::Refused(_) | Self::History(_) => 1011,
            Self::Unauthenticated(_) | Self::Expired => 4401,
            Self::Revoked => 4403,
            Self::Busy { code, .. } => *code,
        }
    }

    /// Whether the client is told in words before the socket closes.
    pub(super) fn is_told(&self) -> bool {
        !matches!(self, Self::Left | Self::Replaced)
    }
}
