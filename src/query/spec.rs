//! What a query asks for, and the order that it puts documents in.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::document::Document;
use super::predicate::{Condition, Operator, Predicate};
use super::value::{self, ValueKey};
use crate::document::Path;
use crate::error::QueryError;
use crate::id::DocumentId;
use crate::limits::queries;

/// What a query asks for, as it was put.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Asked {
    pub(super) predicate: Option<Predicate>,
    pub(super) order: Vec<Ordering>,
    pub(super) limit: Option<usize>,
    /// The limit takes the last ones.
    pub(super) from_end: bool,
    pub(super) start: Option<Edge>,
    pub(super) end: Option<Edge>,
}

/// A field to order by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ordering {
    pub(super) field: Path,
    pub(super) descending: bool,
}

/// Where a result begins or ends: values for the first orderings, and perhaps a document behind all of them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Edge {
    pub(super) values: Vec<Value>,
    /// What has just these values is in the result.
    pub(super) included: bool,
}

/// A query that was held against every bound, and puts documents in order.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) predicate: Predicate,
    /// The conditions, as alternatives.
    pub(super) alternatives: Vec<Vec<Condition>>,
    /// Every field that it orders by, given or implied. The document's id comes last, in the direction of the last.
    pub(super) order: Vec<Ordering>,
    /// Places in the result are at or above this one.
    pub(super) lower: Option<Vec<u8>>,
    /// Places in the result are below this one.
    pub(super) upper: Option<Vec<u8>>,
    pub(super) limit: Option<usize>,
    pub(super) from_end: bool,
    /// Who asks may see only what this passes.
    pub(super) sieve: Option<Arc<dyn Sieve>>,
}

/// Says which documents somebody may see in results.
pub(crate) trait Sieve: std::fmt::Debug + Send + Sync {
    /// Whether he may see this one as it is there, now. What it says may change: listeners are told of that
    /// ([`Listener::sift`](super::Listener::sift)), and everybody else asks when he needs to know.
    fn passes(&self, document: &Document) -> bool;
}

impl Asked {
    /// Holds it against every bound, and works out its order.
    ///
    /// # Errors
    /// [`QueryError::Malformed`].
    pub(super) fn shape(&self) -> Result<Shape, QueryError> {
        let predicate = self.predicate.clone().unwrap_or(Predicate::All(Vec::new()));
        predicate.check()?;
        let alternatives = predicate.alternatives()?;
        alternatives.iter().try_for_each(|all| check_ranges(all))?;
        let mut order = self.order.clone();
        if order.len() > queries::ORDERINGS_MAX {
            let why = format!("it orders by {} fields", order.len());
            return Err(QueryError::malformed(why, format!("order by {} at most", queries::ORDERINGS_MAX)));
        }
        for (at, ordering) in order.iter().enumerate() {
            if order[..at].iter().any(|other| other.field == ordering.field) {
                let why = format!("it orders by {} twice", ordering.field);
                return Err(QueryError::malformed(why, "name it once"));
            }
        }
        let descending = order.last().is_some_and(|last| last.descending);
        let mut implied: Vec<Path> = predicate
            .conditions()
            .into_iter()
            .filter(|condition| condition.operator.is_range())
            .map(|condition| condition.field.clone())
            .filter(|field| order.iter().all(|ordering| ordering.field != *field))
            .collect();
        implied.sort_unstable_by_key(Path::to_string);
        implied.dedup();
        order.extend(implied.into_iter().map(|field| Ordering { field, descending }));
        let limit = match self.limit {
            Some(limit) if !(1..=queries::LIMIT_MAX).contains(&limit) => {
                let fix = format!("give a number from 1 to {}", queries::LIMIT_MAX);
                return Err(QueryError::malformed(format!("the limit is {limit}"), fix));
            }
            limit => limit,
        };
        let lower = self.start.as_ref().map(|edge| place_of(edge, &order, edge.included)).transpose()?;
        let upper = self.end.as_ref().map(|edge| place_of(edge, &order, !edge.included)).transpose()?;
        Ok(Shape { predicate, alternatives, order, lower, upper, limit, from_end: self.from_end, sieve: None })
    }
}

/// Ranges of two types on one field would find nothing: whoever asks for that made a mistake.
fn check_ranges(conditions: &[Condition]) -> Result<(), QueryError> {
    let ranges: Vec<&Condition> = conditions.iter().filter(|condition| condition.operator.is_range()).collect();
    for (at, one) in ranges.iter().enumerate() {
        for other in &ranges[..at] {
            if one.field == other.field
                && let (Some(key), Some(other_key)) = (one.keys.first(), other.keys.first())
                && !key.is_of_type_of(other_key)
            {
                let why = format!("{} is compared with {} and with {}", one.field, other.value, one.value);
                return Err(QueryError::malformed(why, "a range holds values of one type: compare with that"));
            }
        }
    }
    Ok(())
}

/// The first place at an edge (`before`), or the first behind all that have its values.
fn place_of(edge: &Edge, order: &[Ordering], before: bool) -> Result<Vec<u8>, QueryError> {
    if edge.values.is_empty() || edge.values.len() > order.len() + 1 {
        let why = format!("a start or end has {} values", edge.values.len());
        let fix =
            format!("give 1 to {}, one for each field that is ordered by, and a document's id last", order.len() + 1);
        return Err(QueryError::malformed(why, fix));
    }
    let mut place = Vec::new();
    for (ordering, value) in order.iter().zip(&edge.values) {
        put(&mut place, ValueKey::of(value).as_bytes(), ordering.descending);
    }
    if let Some(value) = edge.values.get(order.len()) {
        let id = value.as_str().and_then(|text| text.parse::<DocumentId>().ok()).ok_or_else(|| {
            let why = format!("a start or end has {value} where a document's id belongs");
            QueryError::malformed(why, "leave it out, or give the id as the result shows it")
        })?;
        put(&mut place, &id.0, is_descending(order));
    }
    if !before {
        step_over(&mut place);
    }
    Ok(place)
}

/// The first bytes behind all that begin with these.
pub(super) fn step_over(bytes: &mut Vec<u8>) {
    while let Some(last) = bytes.pop() {
        if last < u8::MAX {
            bytes.push(last + 1);
            return;
        }
    }
    // All of them: nothing is behind.
    bytes.push(u8::MAX);
    bytes.resize(64, u8::MAX);
}

/// Appends bytes that are to count ascending or descending.
pub(super) fn put(out: &mut Vec<u8>, bytes: &[u8], descending: bool) {
    if descending {
        out.extend(bytes.iter().map(|byte| !byte));
    } else {
        out.extend_from_slice(bytes);
    }
}

pub(super) fn is_descending(order: &[Ordering]) -> bool {
    order.last().is_some_and(|last| last.descending)
}

impl Shape {
    /// The place of a document in the result: bytes in the order of the result, from whose end a query takes the last
    /// ones. `None` when it is not in the result.
    pub(super) fn place(&self, id: DocumentId, document: &Value) -> Option<Vec<u8>> {
        if !self.predicate.holds(document) {
            return None;
        }
        let mut place = Vec::with_capacity(48);
        for ordering in &self.order {
            let found = value::at(document, ordering.field.steps())?;
            put(&mut place, ValueKey::of(found).as_bytes(), ordering.descending);
        }
        put(&mut place, &id.0, is_descending(&self.order));
        let is_inside = self.lower.as_ref().is_none_or(|lower| *lower <= place)
            && self.upper.as_ref().is_none_or(|upper| place < *upper);
        is_inside.then(|| self.turned(place))
    }

    /// Whether whoever asks may see a document.
    pub(super) fn may_see(&self, document: &Document) -> bool {
        self.sieve.as_ref().is_none_or(|sieve| sieve.passes(document))
    }

    /// A place as it counts when the limit takes from the end: turned around.
    fn turned(&self, place: Vec<u8>) -> Vec<u8> {
        if self.from_end { place.into_iter().map(|byte| !byte).collect() } else { place }
    }
}

/// A query as JSON: `docs/queries.md`, section 1.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Written {
    r#where: Option<Value>,
    #[serde(default)]
    order_by: Vec<WrittenOrdering>,
    limit: Option<u64>,
    limit_to_last: Option<u64>,
    start_at: Option<Vec<Value>>,
    start_after: Option<Vec<Value>>,
    end_at: Option<Vec<Value>>,
    end_before: Option<Vec<Value>>,
    #[serde(default)]
    count: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenOrdering {
    field: String,
    #[serde(default)]
    direction: Direction,
}

#[derive(Deserialize, Default, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Direction {
    #[default]
    Asc,
    Desc,
}

/// Reads a query from its JSON form; and whether only the number of documents is asked for.
///
/// # Errors
/// [`QueryError::Malformed`].
pub(super) fn from_json(json: &Value) -> Result<(Asked, bool), QueryError> {
    let written: Written = Written::deserialize(json).map_err(|error| {
        QueryError::malformed(format!("the query is not understood: {error}"), "docs/queries.md lists what it may have")
    })?;
    let both = |one: &str, other: &str| {
        QueryError::malformed(format!("it has both {one} and {other}"), "leave one of the two out")
    };
    let limit = match (written.limit, written.limit_to_last) {
        (Some(_), Some(_)) => return Err(both("limit", "limitToLast")),
        (one, other) => one.or(other),
    };
    let edge =
        |included: Option<Vec<Value>>, excluded: Option<Vec<Value>>, names: (&str, &str)| match (included, excluded) {
            (Some(_), Some(_)) => Err(both(names.0, names.1)),
            (Some(values), None) => Ok(Some(Edge { values, included: true })),
            (None, Some(values)) => Ok(Some(Edge { values, included: false })),
            (None, None) => Ok(None),
        };
    let asked = Asked {
        predicate: written.r#where.as_ref().map(|json| predicate_of(json, 0)).transpose()?,
        order: written
            .order_by
            .into_iter()
            .map(|one| Ordering { field: Path::from(one.field), descending: one.direction == Direction::Desc })
            .collect(),
        limit: limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX)),
        from_end: written.limit_to_last.is_some(),
        start: edge(written.start_at, written.start_after, ("startAt", "startAfter"))?,
        end: edge(written.end_at, written.end_before, ("endAt", "endBefore"))?,
    };
    Ok((asked, written.count))
}

fn predicate_of(json: &Value, depth: usize) -> Result<Predicate, QueryError> {
    let wrong = |why: String| {
        QueryError::malformed(why, r#"write {"field": …, "op": …, "value": …}, {"and": […]} or {"or": […]}"#)
    };
    if depth > queries::DEPTH_MAX {
        return Err(wrong(format!("conditions are nested more than {} deep", queries::DEPTH_MAX)));
    }
    let members = json.as_object().ok_or_else(|| wrong(format!("{} is no condition", brief(json))))?;
    let parts = |parts: &Value| match parts {
        Value::Array(parts) => parts.iter().map(|part| predicate_of(part, depth + 1)).collect::<Result<Vec<_>, _>>(),
        other => Err(wrong(format!("{} is no list of conditions", brief(other)))),
    };
    match (members.len(), members.get("and"), members.get("or")) {
        (1, Some(all), None) => return Ok(Predicate::All(parts(all)?)),
        (1, None, Some(any)) => return Ok(Predicate::Any(parts(any)?)),
        _ => {}
    }
    match (members.len(), members.get("field"), members.get("op"), members.get("value")) {
        (3, Some(Value::String(field)), Some(Value::String(operator)), Some(value)) => {
            let operator = Operator::parse(operator)?;
            Ok(Predicate::Condition(Condition::new(Path::from(field), operator, value.clone())))
        }
        _ => Err(wrong(format!("{} is no condition", brief(json)))),
    }
}

fn brief(json: &Value) -> String {
    crate::id::shortened(&json.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shape(json: Value) -> Result<Shape, QueryError> {
        from_json(&json)?.0.shape()
    }

    fn order(shape: &Shape) -> Vec<(String, bool)> {
        shape.order.iter().map(|one| (one.field.to_string(), one.descending)).collect()
    }

    #[test]
    fn fields_of_ranges_are_ordered_by_after_those_that_were_given() {
        let range = |field: &str| json!({"field": field, "op": ">", "value": 1});
        let asked = json!({
            "where": {"and": [range("b"), range("a"), range("c"), {"field": "d", "op": "==", "value": 1}]},
            "orderBy": [{"field": "c", "direction": "desc"}],
        });
        let found = order(&shape(asked).unwrap());
        assert_eq!(found, [("/c".to_owned(), true), ("/a".to_owned(), true), ("/b".to_owned(), true)]);
    }

    #[test]
    fn starts_and_ends_cut_at_values_and_documents() {
        let id = |n: u8| DocumentId([n; 16]);
        let inside = |asked: Value, n: u8, value: Value| shape(asked).unwrap().place(id(n), &value).is_some();
        for descending in ["asc", "desc"] {
            let ordered =
                |key: &str, values: Value| json!({"orderBy": [{"field": "x", "direction": descending}], key: values});
            let (before, after) = if descending == "asc" { (1, 3) } else { (3, 1) };
            for (key, holds) in [
                ("startAt", [false, true, true]),
                ("startAfter", [false, false, true]),
                ("endAt", [true, true, false]),
                ("endBefore", [true, false, false]),
            ] {
                let found = [before, 2, after].map(|x| inside(ordered(key, json!([2])), 5, json!({"x": x})));
                assert_eq!(found, holds, "{key} {descending}");
            }
            let exact = json!([2, id(5).to_string()]);
            let (low, high) = if descending == "asc" { (4, 6) } else { (6, 4) };
            let found = [low, 5, high].map(|n| inside(ordered("startAfter", exact.clone()), n, json!({"x": 2})));
            assert_eq!(found, [false, false, true]);
        }
    }

    #[test]
    fn what_is_malformed_is_refused_by_name() {
        for (asked, why) in [
            (json!([]), "not understood"),
            (json!({"wher": 1}), "unknown field `wher`"),
            (json!({"where": {"field": "a", "op": "like", "value": 1}}), "\"like\" is no operator"),
            (json!({"where": {"field": "a", "op": "=="}}), "no condition"),
            (json!({"where": {"and": 5}}), "no list of conditions"),
            (json!({"limit": 0}), "the limit is 0"),
            (json!({"limit": 10_001}), "the limit is 10001"),
            (json!({"limit": -1}), "not understood"),
            (json!({"limit": 1, "limitToLast": 1}), "both limit and limitToLast"),
            (json!({"startAt": [1], "startAfter": [1]}), "both startAt and startAfter"),
            (json!({"startAt": [1]}), "where a document's id belongs"),
            (json!({"startAt": []}), "0 values"),
            (json!({"orderBy": [{"field": "a"}, {"field": "a"}]}), "twice"),
            (json!({"orderBy": [{"field": "a", "direction": "up"}]}), "not understood"),
            (
                json!({"where": {"and": [{"field": "a", "op": ">", "value": 1}, {"field": "a", "op": "<", "value": "b"}]}}),
                "is compared with 1 and with \"b\"",
            ),
        ] {
            let error = shape(asked.clone()).unwrap_err();
            assert!(error.to_string().contains(why) && !error.fix().is_empty(), "{asked}: {error}");
        }
    }

    #[test]
    fn stepping_over_bytes_passes_all_that_begin_with_them() {
        for (bytes, expected) in [(vec![1, 2], vec![1, 3]), (vec![1, 255], vec![2])] {
            let mut bytes = bytes;
            step_over(&mut bytes);
            assert_eq!(bytes, expected);
        }
        let mut last = vec![255, 255];
        step_over(&mut last);
        assert!(last > vec![255, 255, 254]);
    }
}
