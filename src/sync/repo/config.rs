//! What one socket's session has to know.

use std::sync::Arc;

use super::{RepoCommon, RepoScope};
use crate::id::{DocumentId, NodeId};
use crate::limits::Limits;
use crate::sync::Permits;

/// What a session has to know from the start.
#[derive(Debug, Clone)]
pub struct RepoConfig {
    /// Who we are among nodes.
    pub node: NodeId,
    /// Who we are among automerge-repo's peers.
    pub peer: String,
    /// The name of our store: a UUID that lives as long as the log.
    pub storage: String,
    /// What is served here and where new documents go.
    pub scope: RepoScope,
    /// Who the client is proven to be; empty for nobody in particular.
    pub principal: String,
    /// What it may see; `None` for all that is served here.
    pub permits: Option<Arc<dyn Permits>>,
    /// What the sessions of the server share.
    pub common: Arc<RepoCommon>,
    /// Every bound.
    pub limits: Limits,
}

impl RepoConfig {
    /// Whether anything of a document that is here may be sent to the client now.
    pub(super) fn may_read(&self, document: DocumentId) -> bool {
        self.permits.as_ref().is_none_or(|permits| permits.may_read(document))
    }

    pub(super) fn may_announce(&self, document: DocumentId) -> bool {
        self.permits.as_ref().is_none_or(|permits| permits.may_announce(document))
    }
}
