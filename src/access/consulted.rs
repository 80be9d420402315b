//! Documents that rules look at for the sake of others: which changed when, which decisions for somebody rest on, and their
//! values.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value as Json;

use crate::id::{DocumentId, Lsn};
use crate::rules::Value;

/// Documents whose changes are watched for the sake of decisions about others. Beyond, any change counts as one of those.
const CONSULTED_MAX: usize = 10_000;
/// Such documents of one connection. Beyond, any change of one that is watched is taken for one of its own.
const RESTS_ON_MAX: usize = 256;
/// Bytes of the values of such documents, as they are in memory. Beyond, they are read again.
const VALUES_BYTES_MAX: usize = 16 << 20;
/// What each value in them counts, beside its text.
const VALUE_BYTES: usize = 64;

/// What a server knows of them.
#[derive(Default)]
pub(super) struct Consulted {
    // Held for look-ups.
    changes: Mutex<Changes>,
    // Held for look-ups.
    values: Mutex<Values>,
}

/// When they changed, in the count of whatever may change decisions.
#[derive(Default)]
struct Changes {
    /// Each that a decision looked at; nought where none followed.
    documents: HashMap<DocumentId, u64>,
    /// The last change that any decision may rest on.
    of_all: u64,
}

#[derive(Default)]
struct Values {
    /// Each as of a record of its own.
    documents: HashMap<DocumentId, (Lsn, Value, usize)>,
    bytes: usize,
}

/// Those that the decisions for somebody looked at.
#[derive(Debug, Default)]
pub(super) struct RestsOn {
    documents: HashSet<DocumentId>,
    /// They were too many, and any may be among them.
    are_too_many: bool,
}

impl RestsOn {
    pub(super) fn note(&mut self, document: DocumentId) {
        if self.are_too_many || self.documents.contains(&document) {
            return;
        }
        self.documents.insert(document);
        if self.documents.len() > RESTS_ON_MAX {
            *self = Self { documents: HashSet::new(), are_too_many: true };
        }
    }
}

impl Consulted {
    /// Has the changes of a document watched, from here on.
    pub(super) fn note(&self, document: DocumentId) {
        let mut changes = lock(&self.changes);
        if !changes.are_too_many() {
            changes.documents.entry(document).or_default();
        }
    }

    /// Whether one of these is watched.
    pub(super) fn has_any_of(&self, documents: &[DocumentId]) -> bool {
        let changes = lock(&self.changes);
        changes.are_too_many() || documents.iter().any(|document| changes.documents.contains_key(document))
    }

    /// Takes note that they changed.
    pub(super) fn note_changes(&self, documents: &[DocumentId], count: u64) {
        let mut changes = lock(&self.changes);
        if changes.are_too_many() {
            changes.of_all = count;
        }
        for document in documents {
            if let Some(changed) = changes.documents.get_mut(document) {
                *changed = count;
            }
        }
    }

    /// Takes note of something else that any decision may rest on.
    pub(super) fn note_change_of_all(&self, count: u64) {
        lock(&self.changes).of_all = count;
    }

    /// Whether a decision that rests on these may be another than it was at that count.
    pub(super) fn has_changed(&self, rests_on: &RestsOn, since: u64) -> bool {
        let changes = lock(&self.changes);
        let is_later = |document| changes.documents.get(document).is_some_and(|changed| *changed > since);
        changes.of_all > since || rests_on.are_too_many || rests_on.documents.iter().any(is_later)
    }

    /// The value of a document whose last record is `last`, if it is known.
    pub(super) fn value(&self, document: DocumentId, last: Lsn) -> Option<Value> {
        let values = lock(&self.values);
        values.documents.get(&document).filter(|(known, ..)| *known == last).map(|(_, value, _)| value.clone())
    }

    /// Keeps the value of a document, `json`, whose last record is `last`, or was a moment ago. When all are too much, this
    /// begins anew.
    pub(super) fn keep(&self, document: DocumentId, last: Lsn, value: &Value, json: &Json) {
        let bytes = bytes_of(json);
        if bytes > VALUES_BYTES_MAX / 2 {
            return;
        }
        let mut values = lock(&self.values);
        if values.bytes + bytes > VALUES_BYTES_MAX {
            *values = Values::default();
        }
        values.bytes += bytes;
        if let Some((.., old)) = values.documents.insert(document, (last, value.clone(), bytes)) {
            values.bytes -= old;
        }
    }
}

impl Changes {
    fn are_too_many(&self) -> bool {
        self.documents.len() > CONSULTED_MAX
    }
}

/// About what a value takes in memory.
fn bytes_of(json: &Json) -> usize {
    let inner = match json {
        Json::String(text) => text.len(),
        Json::Array(items) => items.iter().map(bytes_of).sum(),
        Json::Object(members) => members.iter().map(|(name, value)| name.len() + bytes_of(value)).sum(),
        _ => 0,
    };
    VALUE_BYTES + inner
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn document(n: usize) -> DocumentId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&n.to_le_bytes());
        DocumentId(id)
    }

    #[test]
    fn beyond_what_is_watched_any_change_counts() {
        let consulted = Consulted::default();
        let mut rests_on = RestsOn::default();
        rests_on.note(document(1));
        consulted.note(document(1));
        assert!(!consulted.has_any_of(&[document(2)]) && consulted.has_any_of(&[document(2), document(1)]));
        consulted.note_changes(&[document(2)], 1);
        assert!(!consulted.has_changed(&rests_on, 0));
        consulted.note_changes(&[document(1)], 2);
        assert!(consulted.has_changed(&rests_on, 1) && !consulted.has_changed(&rests_on, 2));
        // One rests on too many.
        let mut many = RestsOn::default();
        (0..=RESTS_ON_MAX).for_each(|n| many.note(document(n)));
        assert!(many.are_too_many && many.documents.is_empty() && consulted.has_changed(&many, 9));
        // All together do.
        for n in 0..=2 * CONSULTED_MAX {
            consulted.note(document(n));
        }
        assert_eq!(lock(&consulted.changes).documents.len(), CONSULTED_MAX + 1);
        let unknown = [document(usize::MAX)];
        assert!(consulted.has_any_of(&unknown));
        consulted.note_changes(&unknown, 3);
        assert!(consulted.has_changed(&RestsOn::default(), 2) && !consulted.has_changed(&RestsOn::default(), 3));
    }

    #[test]
    fn values_are_those_of_a_record_and_within_their_bound() {
        let consulted = Consulted::default();
        let keep = |n: usize, last: u64, json: Json| {
            consulted.keep(document(n), Lsn(last), &Value::from_json(&json), &json);
        };
        keep(1, 7, json!({ "open": true }));
        assert_eq!(consulted.value(document(1), Lsn(7)), Some(Value::from_json(&json!({ "open": true }))));
        assert_eq!(consulted.value(document(1), Lsn(8)), None);
        keep(1, 8, json!({ "open": false }));
        assert_eq!(consulted.value(document(1), Lsn(7)), None);
        assert_eq!(lock(&consulted.values).bytes, bytes_of(&json!({ "open": false })));
        // One that would take most of the room is not kept, and the others are.
        keep(2, 7, json!("x".repeat(VALUES_BYTES_MAX)));
        assert!(consulted.value(document(2), Lsn(7)).is_none() && consulted.value(document(1), Lsn(8)).is_some());
        for n in 0..100 {
            keep(n, 9, json!("x".repeat(VALUES_BYTES_MAX / 10)));
            assert!(consulted.value(document(n), Lsn(9)).is_some());
            let values = lock(&consulted.values);
            assert!(values.bytes <= VALUES_BYTES_MAX);
            assert_eq!(values.bytes, values.documents.values().map(|(.., bytes)| bytes).sum::<usize>());
        }
    }
}
