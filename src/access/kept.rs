//! Other documents that rules looked at, as they were at one moment: kept while a step of a feed is made, within what a
//! feed, and all of them together, may keep. Whatever does not fit is read again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::id::{DocumentId, Lsn};
use crate::limits::sifted as bounds;
use crate::rules::Value;

/// Another document, as rules are shown it.
#[derive(Clone)]
pub(super) struct Other {
    pub(super) document: DocumentId,
    pub(super) newest: Lsn,
    pub(super) value: Option<Value>,
    pub(super) is_unclear: bool,
}

/// How much is kept by all feeds of a server.
#[derive(Debug, Default)]
pub(super) struct Budget {
    bytes: AtomicUsize,
    /// How many keep something.
    feeds: AtomicUsize,
}

impl Budget {
    /// What one of them may keep: the more there are, the less.
    fn share(&self) -> usize {
        let feeds = self.feeds.load(Ordering::Relaxed).max(1);
        (bounds::OTHERS_BYTES_ALL / feeds).min(bounds::OTHERS_BYTES)
    }

    fn take(&self, bytes: usize) -> bool {
        let more = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= bounds::OTHERS_BYTES_ALL);
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// What one feed keeps, of one moment.
pub(super) struct Kept {
    budget: Arc<Budget>,
    bytes: usize,
    /// By collection and id.
    others: HashMap<(String, String), Other>,
}

impl Kept {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self { budget, bytes: 0, others: HashMap::new() }
    }

    /// Nothing, within the same budget.
    pub(super) fn another(&self) -> Self {
        Self::new(self.budget.clone())
    }

    pub(super) fn get(&self, key: &(String, String)) -> Option<&Other> {
        self.others.get(key)
    }

    /// Keeps one, if there is room for it; what was kept makes room.
    pub(super) fn put(&mut self, key: (String, String), other: Other) {
        let size = size_of::<((String, String), Other)>() + key.0.len() + key.1.len();
        let bytes = other.value.as_ref().map_or(size, |value| size.saturating_add(weight(value)));
        let share = self.budget.share();
        if self.others.len() >= bounds::OTHERS_MAX || self.bytes.saturating_add(bytes) > share {
            self.clear();
        }
        if bytes > bounds::OTHERS_BYTES || self.others.contains_key(&key) || !self.budget.take(bytes) {
            return;
        }
        if self.others.is_empty() {
            self.budget.feeds.fetch_add(1, Ordering::Relaxed);
        }
        self.bytes += bytes;
        self.others.insert(key, other);
    }

    /// Forgets everything, and the room it took.
    pub(super) fn clear(&mut self) {
        if !self.others.is_empty() {
            self.budget.feeds.fetch_sub(1, Ordering::Relaxed);
        }
        self.budget.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = 0;
        self.others = HashMap::new();
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.clear();
    }
}

/// About how many bytes a value takes.
fn weight(value: &Value) -> usize {
    /// What an entry of a map takes besides its key and value.
    const ENTRY: usize = 32;
    let inside = match value {
        Value::String(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        Value::List(items) => items.iter().map(weight).sum(),
        Value::Map(entries) => entries.iter().map(|(key, value)| ENTRY + key.len() + weight(value)).sum(),
        _ => 0,
    };
    size_of::<Value>() + inside
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn other(bytes: usize) -> Other {
        let value = Value::from_json(&json!({ "members": ["ben"], "text": "x".repeat(bytes) }));
        Other { document: DocumentId([1; 16]), newest: Lsn(1), value: Some(value), is_unclear: false }
    }

    fn key(n: usize) -> (String, String) {
        ("rooms".to_owned(), n.to_string())
    }

    #[test]
    fn what_is_kept_is_bounded_in_bytes_for_one_and_for_all_and_shared_among_them() {
        const KIB: usize = 1 << 10;
        let budget = Arc::new(Budget::default());
        let mut one = Kept::new(budget.clone());
        for n in 0..100 {
            one.put(key(n), other(256 * KIB));
            assert!(one.get(&key(n)).is_some(), "the latest is kept");
            assert!(budget.bytes() <= bounds::OTHERS_BYTES);
        }
        assert!(budget.bytes() > bounds::OTHERS_BYTES / 8 && one.get(&key(0)).is_none());
        // One that is longer than all may be is not kept; small ones are as many as there may be.
        one.put(key(0), other(bounds::OTHERS_BYTES));
        assert!(one.get(&key(0)).is_none());
        for n in 0..2 * bounds::OTHERS_MAX {
            one.put(key(n), other(10));
        }
        assert!(one.others.len() <= bounds::OTHERS_MAX);

        // With many, each has less, also those that had more before.
        let mut all: Vec<Kept> = (0..64).map(|_| one.another()).collect();
        for round in 0..4 {
            for kept in &mut all {
                for n in 0..40 {
                    kept.put(key(round * 100 + n), other(256 * KIB));
                    assert!(budget.bytes() <= bounds::OTHERS_BYTES_ALL);
                }
            }
        }
        assert!(all.iter().all(|kept| kept.bytes <= bounds::OTHERS_BYTES_ALL / 32), "none has all");
        assert!(all.iter().all(|kept| !kept.others.is_empty()), "none has nothing");
        drop((one, all));
        assert_eq!((budget.bytes(), budget.feeds.load(Ordering::Relaxed)), (0, 0));
    }
}
