//! What a peer may see of documents and say about them: decided by rooms above, asked here.

use crate::id::DocumentId;

/// Speaks for one peer. Asked before each message, so an answer must cost next to nothing while nothing changed that
/// it depends on.
pub trait Permits: std::fmt::Debug + Send + Sync {
    /// Whether anything of a document that is here may be sent to it now, its heads included.
    fn may_read(&self, document: DocumentId) -> bool;

    /// Whether it may say something, that is not kept, to those who have a document open.
    fn may_announce(&self, document: DocumentId) -> bool;
}

/// Why somebody who came in has to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// His token has expired.
    Expired,
    /// His token was revoked.
    Revoked,
}
