//! What is written down about who was allowed what: on its way to the log.

use std::sync::Arc;

use super::core::{Admitted, Clash, Incoming, Input};
use super::database::Database;
use super::judge::{Deed, Denial, Ruling};
use crate::document::Change;
use crate::error::Error;
use crate::id::{CollectionName, DocumentId, LogCursor, NodeId, first};
use crate::log::record::{self, LifecycleId, LifecycleKind, WriteKind};

/// What the writer is told beside what is to be logged.
#[derive(Debug, Clone, Default)]
pub(crate) struct Audit {
    /// What is claimed of the sender.
    pub(crate) claims: Option<Arc<Claims>>,
    /// What he may not write.
    pub(crate) refused: Vec<Refusal>,
    /// What allowed the rest: by a change's hash or a statement's id.
    pub(crate) allowed: Vec<([u8; 32], Ruling)>,
}

impl Audit {
    /// How many bytes it brings, for the queue's bound.
    pub(super) fn bytes(&self) -> usize {
        let of = |refusal: &Refusal| match &refusal.what {
            Refused::Change(change) => change.bytes().len(),
            Refused::Statement(..) | Refused::Edit => 0,
        };
        self.refused.iter().map(|refusal| of(refusal) + 128).sum::<usize>() + self.allowed.len() * 128
    }
}

/// What is claimed of somebody who writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claims {
    /// Who that is, as the log records it.
    pub(super) principal: String,
    /// JSON, if it is short enough for the log.
    pub(super) text: Option<String>,
    /// The first bytes of its BLAKE3.
    pub(super) digest: [u8; 16],
}

impl Claims {
    /// What an object claims of somebody. The same claims make the same text: names are in order.
    #[cfg_attr(not(feature = "web"), allow(dead_code, reason = "claims come from tokens"))]
    pub(crate) fn of(principal: &str, claims: &serde_json::Value) -> Self {
        let text = canonical(claims);
        let digest = first(blake3::hash(text.as_bytes()).as_bytes());
        let text = Some(text).filter(|text| text.len() <= record::Claims::BYTES_MAX);
        Self { principal: principal.to_owned(), text, digest }
    }
}

/// JSON without spaces, the names of each object in order.
fn canonical(value: &serde_json::Value) -> String {
    use serde_json::Value;
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(name, _)| *name);
            let members: Vec<String> = members
                .into_iter()
                .map(|(name, value)| format!("{}:{}", Value::from(&**name), canonical(value)))
                .collect();
            format!("{{{}}}", members.join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

/// Something that somebody may not write.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) document: DocumentId,
    pub(crate) collection: Option<CollectionName>,
    /// The document's name, if it has one.
    pub(crate) name: Option<String>,
    pub(crate) what: Refused,
    pub(crate) deed: Deed,
    /// Who sent it, as the log records it.
    pub(crate) principal: String,
    pub(crate) denial: Denial,
    /// The peer that brought it.
    pub(crate) via: Option<NodeId>,
}

/// What was refused.
#[derive(Debug, Clone)]
pub(crate) enum Refused {
    Change(Box<Change>),
    /// A statement about the document's life, and its id, if somebody sent it.
    Statement(LifecycleKind, Option<LifecycleId>),
    /// An edit, of which no change was made.
    Edit,
}

impl Database {
    /// [`Self::admit_with`], with what is to be written down of what its sender may and may not write.
    pub(super) async fn admit_audited(
        &self,
        clash: Clash,
        rows: Vec<Incoming>,
        via: Option<NodeId>,
        cursor: Option<LogCursor>,
        audit: Audit,
    ) -> Result<Admitted, Error> {
        self.ask(Input::Admit { rows, via, cursor, clash, audit }).await
    }
}

impl From<Deed> for WriteKind {
    fn from(deed: Deed) -> Self {
        match deed {
            Deed::Create => Self::Create,
            Deed::Update => Self::Update,
            Deed::Delete => Self::Delete,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_same_claims_are_one_text() {
        let one = Claims::of("ann", &json!({"b": [1, {"d": null, "c": "x"}], "a": true}));
        assert_eq!(one.text.as_deref(), Some(r#"{"a":true,"b":[1,{"c":"x","d":null}]}"#));
        assert_eq!(one, Claims::of("ann", &json!({"a": true, "b": [1, {"c": "x", "d": null}]})));
        let long = Claims::of("ann", &json!({"a": "x".repeat(record::Claims::BYTES_MAX)}));
        assert_eq!(long.text, None);
        assert_ne!(long.digest, one.digest);
    }
}
