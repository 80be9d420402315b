//! What a query answers, and what a listener tells.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::document::Document;
use crate::document::Patch;
use crate::feed::FeedCursor;
use crate::id::DocumentId;

/// The result of a query at one position, and what changed since the one before.
#[derive(Debug, Clone)]
pub struct QuerySnapshot {
    pub(super) documents: Vec<Arc<Document>>,
    pub(super) changes: Vec<DocChange>,
    pub(super) is_reset: bool,
    pub(super) metadata: Metadata,
}

/// What is known of a snapshot besides its documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metadata {
    /// Where the result is exact, in the feed of the collection. A listener can go on from it.
    pub position: FeedCursor,
    /// The database is not in touch with the node that it follows, so that there may be more to know.
    pub from_cache: bool,
    /// This process has edits of documents in the result on their way to the disk; they are not shown yet.
    pub has_pending_writes: bool,
}

/// One step from a result to the next.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DocChange {
    /// What happened.
    pub kind: ChangeKind,
    /// The document as it is now; one that was removed, as it was told last.
    pub document: Arc<Document>,
    /// Where it was, when all changes before this one are applied; `None` when it was added.
    pub old_index: Option<usize>,
    /// Where it is, when all changes up to this one are applied; `None` when it was removed.
    pub new_index: Option<usize>,
    /// Automerge's patches from the value told before to this one, if they were asked for.
    pub patches: Option<Vec<Patch>>,
    /// Where the document has more than one value, and these values, if they were asked for.
    pub conflicts: Option<Vec<(String, Vec<Value>)>>,
}

/// What happened to a document of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// It came in.
    Added,
    /// It was changed and is still in.
    Modified,
    /// It went out: it was changed, deleted or moved, or another took its place under a limit.
    Removed,
}

impl ChangeKind {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Modified => "modified",
            Self::Removed => "removed",
        }
    }
}

impl QuerySnapshot {
    /// The documents of the result, in order.
    #[must_use]
    pub fn docs(&self) -> &[Arc<Document>] {
        &self.documents
    }

    /// What changed since the snapshot before; everything was added, in the first. Applied one after the other to the
    /// documents before, they make [`Self::docs`].
    #[must_use]
    pub fn doc_changes(&self) -> &[DocChange] {
        &self.changes
    }

    /// Whether everything told before is void, as it is in the first snapshot that does not go on from a position.
    #[must_use]
    pub fn is_reset(&self) -> bool {
        self.is_reset
    }

    /// Position, and how sure the result is.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// What a listener is told over HTTP: the changes.
    #[must_use]
    pub fn changes_to_json(&self) -> Value {
        json!({
            "reset": self.is_reset,
            "size": self.documents.len(),
            "position": self.metadata.position.to_string(),
            "from_cache": self.metadata.from_cache,
            "has_pending_writes": self.metadata.has_pending_writes,
            "changes": self.changes.iter().map(DocChange::to_json).collect::<Vec<_>>(),
        })
    }
}

impl DocChange {
    fn to_json(&self) -> Value {
        let index = |index: Option<usize>| index.map_or_else(|| json!(-1), |index| json!(index));
        let document = match self.kind {
            ChangeKind::Removed => json!({ "id": self.document.id.to_string() }),
            _ => self.document.to_json(),
        };
        let mut change = json!({
            "type": self.kind.as_str(),
            "oldIndex": index(self.old_index),
            "newIndex": index(self.new_index),
            "document": document,
        });
        if let Some(patches) = &self.patches {
            change["patches"] = patches.iter().map(Patch::to_json).collect();
        }
        if let Some(conflicts) = &self.conflicts {
            let conflict = |(path, values): &(String, Vec<Value>)| json!({ "path": path, "values": values });
            change["conflicts"] = conflicts.iter().map(conflict).collect();
        }
        change
    }
}

/// A list of documents by their places in it.
pub(super) type Placed = Vec<(Vec<u8>, Arc<Document>)>;

/// The changes that lead from one list to the other, both in order of their places. A document that is the same in both
/// is passed over: one is the same when its heads are.
pub(super) fn changes_between(before: &Placed, now: &Placed) -> Vec<DocChange> {
    // Mostly little is another, and only of that it needs to be known where it was and where it is.
    let (mut old, mut new) = (Vec::new(), Vec::new());
    let (mut was, mut is) = (before.iter().peekable(), now.iter().peekable());
    loop {
        let order = match (was.peek(), is.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((place, _)), Some((other, _))) => place.cmp(other),
        };
        let one = was.next_if(|_| order.is_le());
        let other = is.next_if(|_| order.is_ge());
        if let (Some((_, one)), Some((_, other))) = (one, other)
            && (Arc::ptr_eq(one, other) || (one.id == other.id && one.heads == other.heads))
        {
            continue;
        }
        old.extend(one);
        new.extend(other);
    }
    if old.is_empty() && new.is_empty() {
        return Vec::new();
    }
    let known: HashMap<DocumentId, &[u8]> =
        old.iter().map(|(place, document)| (document.id, place.as_slice())).collect();
    let stays: HashSet<DocumentId> = new.iter().map(|(_, document)| document.id).collect();
    let mut list: Vec<&[u8]> = before.iter().map(|(place, _)| place.as_slice()).collect();
    let mut changes = Vec::new();
    let mut change = |kind, document: &Arc<Document>, old_index, new_index| {
        let document = document.clone();
        changes.push(DocChange { kind, document, old_index, new_index, patches: None, conflicts: None });
    };
    let index = |list: &[&[u8]], place: &[u8]| list.partition_point(|other| *other < place);
    for (place, document) in old.iter().filter(|(_, document)| !stays.contains(&document.id)) {
        let at = index(&list, place);
        list.remove(at);
        change(ChangeKind::Removed, document, Some(at), None);
    }
    for (place, document) in new {
        let old_index = known.get(&document.id).map(|place| index(&list, place));
        if let Some(at) = old_index {
            list.remove(at);
        }
        let at = index(&list, place);
        list.insert(at, place);
        let kind = if old_index.is_some() { ChangeKind::Modified } else { ChangeKind::Added };
        change(kind, document, old_index, Some(at));
    }
    changes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::{ChangeHash, DocumentId, Heads, Lsn};

    fn list(documents: &std::collections::BTreeMap<u8, (u8, u8)>) -> Placed {
        let mut list: Placed = documents
            .iter()
            .map(|(id, (place, version))| {
                let document = Document {
                    id: DocumentId([*id; 16]),
                    name: None,
                    heads: Heads::new(vec![ChangeHash([*version; 32])]),
                    position: Lsn(0),
                    value: Value::Null,
                    bytes: 0,
                    kept: None,
                    is_partial: false,
                };
                (vec![*place, *id], Arc::new(document))
            })
            .collect();
        list.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        list
    }

    proptest! {
        #[test]
        fn changes_applied_to_the_list_before_make_the_list_now(
            before in proptest::collection::btree_map(0u8..12, (0u8..4, 0u8..3), 0..12),
            now in proptest::collection::btree_map(0u8..12, (0u8..4, 0u8..3), 0..12),
        ) {
            let (before, now) = (list(&before), list(&now));
            let mut documents: Vec<Arc<Document>> = before.iter().map(|(_, document)| document.clone()).collect();
            for change in changes_between(&before, &now) {
                if let Some(at) = change.old_index {
                    prop_assert_eq!(documents.remove(at).id, change.document.id);
                }
                if let Some(at) = change.new_index {
                    documents.insert(at, change.document.clone());
                }
                prop_assert_eq!(change.old_index.is_some(), change.kind != ChangeKind::Added);
                prop_assert_eq!(change.new_index.is_some(), change.kind != ChangeKind::Removed);
            }
            let ids = |documents: &[Arc<Document>]| documents.iter().map(|one| (one.id, one.heads.clone())).collect::<Vec<_>>();
            let now: Vec<Arc<Document>> = now.into_iter().map(|(_, document)| document).collect();
            prop_assert_eq!(ids(&documents), ids(&now));
        }
    }
}
