//! Whose an author is: his of whom the document has its first change.

use std::sync::PoisonError;

use crate::history::{HistoryError, Reader};
use crate::id::{ActorId, DocumentId};
use crate::log::record::{Admission, ChangeHeader, Record};

/// Whose an author is that a document has.
pub(super) enum Owner {
    /// It was written under before anybody had to say who he is.
    Anybody,
    Somebody(String),
    /// This node's own.
    Node,
}

impl Owner {
    /// Whose the author of this change is, his first one.
    pub(super) fn by_first(reader: &Reader, first: &ChangeHeader) -> Result<Self, HistoryError> {
        let origin = reader.origin_of(first)?;
        Ok(match origin.principal {
            _ if origin.admission == Admission::Local => Self::Node,
            principal if principal.is_empty() => Self::Anybody,
            principal => Self::Somebody(principal),
        })
    }

    /// Whose an author of a document is; `None` while the document has nothing of it.
    pub(super) fn of(reader: &Reader, document: DocumentId, actor: &ActorId) -> Result<Option<Self>, HistoryError> {
        let lsn = {
            let graph = reader.graph(document)?;
            let graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
            graph.change_of(actor, 1).and_then(|first| graph.lsn_of(&first))
        };
        let Some(lsn) = lsn else { return Ok(None) };
        let Some(Record::Change(header, _)) = reader.record(lsn)? else { return Ok(None) };
        Self::by_first(reader, &header).map(Some)
    }

    /// Whether somebody may write under it.
    pub(super) fn lets(&self, principal: &str) -> bool {
        match self {
            Self::Anybody => true,
            Self::Somebody(owner) => owner == principal,
            Self::Node => false,
        }
    }
}
