//! The predicate index: which listeners a document's value may concern, found from the value and not from the listeners.
//!
//! Each alternative of a listener's query is filed under one of its conditions, the one that lets the least through. A
//! value looks up its fields there. Whoever is found is asked whether its whole query matches.

use std::collections::HashMap;

use serde_json::Value;

use super::intervals::Intervals;
use super::predicate::{Condition, Operator, Span};
use super::value::{self, ValueKey};
use crate::document::Path;

/// A listener's number; never used again.
pub(super) type ListenerId = u64;

/// Listeners by what they ask of documents.
#[derive(Debug, Default)]
pub(super) struct Predicates {
    fields: HashMap<Path, ByField>,
    /// Those that may match whatever a document holds.
    others: Vec<ListenerId>,
    /// Where each one is filed.
    filed: HashMap<ListenerId, Vec<Place>>,
}

/// Those that ask something of one field.
#[derive(Debug, Default)]
struct ByField {
    /// By the value that it has.
    values: HashMap<ValueKey, Vec<ListenerId>>,
    /// By an element of the list that it is.
    elements: HashMap<ValueKey, Vec<ListenerId>>,
    /// By the range that it is in.
    ranges: Intervals<ListenerId>,
}

#[derive(Debug, Clone)]
enum Place {
    Value(Path, ValueKey),
    Element(Path, ValueKey),
    Range(Path, Span),
    Other,
}

impl Predicates {
    /// Files a listener under its query's alternatives.
    pub(super) fn insert(&mut self, listener: ListenerId, alternatives: &[Vec<Condition>]) {
        let mut places: Vec<Place> = alternatives.iter().flat_map(|conditions| places_of(conditions)).collect();
        if places.iter().any(|place| matches!(place, Place::Other)) {
            places = vec![Place::Other];
        }
        for place in &places {
            match place {
                Place::Value(field, key) => self.field(field).values.entry(key.clone()).or_default().push(listener),
                Place::Element(field, key) => self.field(field).elements.entry(key.clone()).or_default().push(listener),
                Place::Range(field, span) => {
                    let (from, to) = span.bounds(false);
                    self.field(field).ranges.insert(from, to, listener);
                }
                Place::Other => self.others.push(listener),
            }
        }
        self.filed.insert(listener, places);
    }

    /// Takes a listener out.
    pub(super) fn remove(&mut self, listener: ListenerId) {
        let mut ranges: HashMap<Path, usize> = HashMap::new();
        for place in self.filed.remove(&listener).into_iter().flatten() {
            match place {
                Place::Other => self.others.retain(|other| *other != listener),
                Place::Value(path, key) => self.change(&path, |field| take_out(&mut field.values, &key, listener)),
                Place::Element(path, key) => self.change(&path, |field| take_out(&mut field.elements, &key, listener)),
                Place::Range(path, _) => *ranges.entry(path).or_default() += 1,
            }
        }
        for (path, count) in ranges {
            self.change(&path, |field| field.ranges.remove(listener, count));
        }
    }

    /// Changes what is filed under a field, which goes when nothing is left.
    fn change(&mut self, path: &Path, change: impl FnOnce(&mut ByField)) {
        let Some(field) = self.fields.get_mut(path) else { return };
        change(field);
        if field.is_empty() {
            self.fields.remove(path);
        }
    }

    /// Adds those whom a document with this value may concern; some perhaps twice.
    ///
    /// # Cost
    /// One look-up for each field that listeners ask about, and what is found.
    pub(super) fn concerned(&self, document: &Value, found: &mut Vec<ListenerId>) {
        found.extend(&self.others);
        for (path, field) in &self.fields {
            let Some(value) = value::at(document, path.steps()) else { continue };
            if !field.values.is_empty() || !field.ranges.is_empty() {
                let key = ValueKey::of(value);
                found.extend(field.values.get(&key).into_iter().flatten());
                field.ranges.at(key.as_bytes(), &mut |listener| found.push(listener));
            }
            if !field.elements.is_empty() {
                for element in value::elements(value) {
                    found.extend(field.elements.get(&ValueKey::of(element)).into_iter().flatten());
                }
            }
        }
    }

    fn field(&mut self, path: &Path) -> &mut ByField {
        self.fields.entry(path.clone()).or_default()
    }
}

impl ByField {
    fn is_empty(&self) -> bool {
        self.values.is_empty() && self.elements.is_empty() && self.ranges.is_empty()
    }
}

fn take_out(by: &mut HashMap<ValueKey, Vec<ListenerId>>, key: &ValueKey, listener: ListenerId) {
    if let Some(listeners) = by.get_mut(key) {
        listeners.retain(|other| *other != listener);
        if listeners.is_empty() {
            by.remove(key);
        }
    }
}

/// Where a listener that asks all of `conditions` is filed.
fn places_of(conditions: &[Condition]) -> Vec<Place> {
    let find = |operator: Operator| conditions.iter().find(|condition| condition.operator == operator);
    let each = |condition: &Condition, place: fn(Path, ValueKey) -> Place| {
        condition.keys.iter().map(|key| place(condition.field.clone(), key.clone())).collect()
    };
    if let Some(condition) = find(Operator::Eq).or_else(|| find(Operator::In)) {
        return each(condition, Place::Value);
    }
    if let Some(condition) = find(Operator::ArrayContains).or_else(|| find(Operator::ArrayContainsAny)) {
        return each(condition, Place::Element);
    }
    let Some(first) = conditions.iter().find(|condition| condition.operator.is_range()) else {
        return vec![Place::Other];
    };
    let ranges = conditions.iter().filter(|condition| condition.field == first.field).filter_map(Condition::span);
    ranges.reduce(Span::within).map(|span| Place::Range(first.field.clone(), span)).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::predicate::field;
    use super::*;

    #[test]
    fn values_find_those_they_may_concern_and_few_others() {
        let mut predicates = Predicates::default();
        let queries = [
            field("n").eq(1),
            field("n").is_in([1, 2]),
            field("n").gt(1).and(field("n").le(3)),
            field("tags").array_contains("a"),
            field("n").eq(5).or(field("tags").array_contains_any(["b", "c"])),
            field("n").ne(1),
            field("n").eq(1).or(field("m").ne(1)),
            field("n").lt("text"),
        ];
        for (id, query) in (0..).zip(&queries) {
            predicates.insert(id, &query.alternatives().unwrap());
        }
        let concerned = |predicates: &Predicates, value: Value| {
            let mut found = Vec::new();
            predicates.concerned(&value, &mut found);
            found.sort_unstable();
            found.dedup();
            found
        };
        for value in [json!({"n": 1}), json!({"n": 3, "tags": ["a", "c"]}), json!({"n": "a", "m": 2}), json!({"n": 5})]
        {
            let found = concerned(&predicates, value.clone());
            let matching = (0..).zip(&queries).filter(|(_, query)| query.holds(&value));
            matching.for_each(|(id, query)| assert!(found.contains(&id), "{value} {query:?}"));
        }
        assert_eq!(concerned(&predicates, json!({"n": 1})), [0, 1, 5, 6]);
        assert_eq!(concerned(&predicates, json!({"n": 3, "tags": ["a", "c"]})), [2, 3, 4, 5, 6]);
        assert_eq!(concerned(&predicates, json!({"n": "a"})), [5, 6, 7]);
        for id in 1..8 {
            predicates.remove(id);
        }
        assert_eq!(concerned(&predicates, json!({"n": 9})), [0_u64; 0]);
        predicates.remove(0);
        assert!(predicates.fields.is_empty() && predicates.others.is_empty() && predicates.filed.is_empty());
    }
}
