//! The model: queries as the page tells them, by a look at every document.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tidelog::DocumentId;

/// Small values, of every type that has an order, so that equal ones and ties are common.
fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        (0..4).prop_map(Value::from),
        Just(json!(1.5)),
        (0..2).prop_map(|n| json!({ "$counter": n })),
        (0..2).prop_map(|n| json!({ "$time": n })),
        prop_oneof![Just("a"), Just("b"), Just("ab"), Just("")].prop_map(Value::from),
        Just(json!({ "$string": "b" })),
        Just(json!({ "$bytes": "AQ==" })),
    ]
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        6 => scalar(),
        1 => vec(scalar(), 0..3).prop_map(Value::from),
        1 => scalar().prop_map(|x| json!({ "x": x })),
    ]
}

/// A document's value. Some fields are missing, and now and then one is too long to be kept.
pub(super) fn value() -> impl Strategy<Value = Value> {
    let long = proptest::option::weighted(0.02, Just("x".repeat(70_000)));
    let field = || proptest::option::weighted(0.85, any_value());
    let tags = proptest::option::weighted(0.7, vec(scalar(), 0..4));
    (field(), field(), tags, field(), long).prop_map(|(a, b, tags, deep, long)| {
        let mut document = Map::new();
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                document.insert(name.to_owned(), value);
            }
        };
        put("a", a);
        put("b", b);
        put("tags", tags.map(Value::from));
        put("deep", deep.map(|x| json!({ "x": x })));
        put("text", long.map(Value::from));
        Value::Object(document)
    })
}

fn field() -> impl Strategy<Value = &'static str> {
    prop_oneof![4 => Just("a"), 3 => Just("b"), 1 => Just("deep.x"), 1 => Just("tags"), 1 => Just("absent")]
}

fn condition() -> impl Strategy<Value = Value> {
    let plain = (field(), prop_oneof![3 => Just("=="), 1 => Just("!=")], any_value());
    let range = (
        field(),
        prop_oneof![Just("<"), Just("<="), Just(">"), Just(">=")],
        prop_oneof![(0..4).prop_map(Value::from), Just(json!(1.5))],
    );
    let listed =
        (field(), prop_oneof![2 => Just("in"), 1 => Just("not-in")], vec(any_value(), 1..4).prop_map(Value::from));
    let contains = (Just("tags"), Just("array-contains"), scalar());
    let contains_any = (Just("tags"), Just("array-contains-any"), vec(scalar(), 1..3).prop_map(Value::from));
    let exists = (field(), Just("exists"), any::<bool>().prop_map(Value::from));
    let written = |(field, op, value): (&str, &str, Value)| json!({ "field": field, "op": op, "value": value });
    prop_oneof![
        4 => plain.prop_map(written),
        3 => range.prop_map(written),
        2 => listed.prop_map(written),
        1 => contains.prop_map(written),
        1 => contains_any.prop_map(written),
        1 => exists.prop_map(written),
    ]
}

fn predicate() -> impl Strategy<Value = Value> {
    condition().prop_recursive(2, 6, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(|parts| json!({ "and": parts })),
            vec(inner, 0..3).prop_map(|parts| json!({ "or": parts })),
        ]
    })
}

/// A query, in its JSON form.
pub(super) fn query() -> impl Strategy<Value = Value> {
    let order = proptest::sample::subsequence(vec!["a", "b", "deep.x"], 0..3);
    let edge = || {
        let kinds = prop_oneof![Just("startAt"), Just("startAfter"), Just("endAt"), Just("endBefore")];
        proptest::option::weighted(0.3, (kinds, vec(scalar(), 1..3)))
    };
    (
        proptest::option::weighted(0.8, predicate()),
        (order, any::<bool>(), any::<bool>()),
        proptest::option::weighted(0.6, (1..4usize, any::<bool>())),
        edge(),
    )
        .prop_map(|(predicate, (order, first, later), limit, edge)| {
            let mut query = Map::new();
            if let Some(predicate) = predicate {
                query.insert("where".to_owned(), predicate);
            }
            let direction = |descending: bool| if descending { "desc" } else { "asc" };
            let order: Vec<Value> = (0..)
                .zip(order)
                .map(|(at, field)| json!({ "field": field, "direction": direction(if at == 0 { first } else { later }) }))
                .collect();
            if let Some((kind, mut values)) = edge.filter(|_| !order.is_empty()) {
                values.truncate(order.len());
                query.insert(kind.to_owned(), values.into());
            }
            query.insert("orderBy".to_owned(), order.into());
            if let Some((limit, is_last)) = limit {
                query.insert(if is_last { "limitToLast" } else { "limit" }.to_owned(), limit.into());
            }
            Value::Object(query)
        })
}

/// The answer to a query, by a look at every document.
pub(super) fn answer(query: &Value, documents: &BTreeMap<DocumentId, Value>) -> Vec<(DocumentId, Value)> {
    let mut order: Vec<(String, bool)> = query["orderBy"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| (text(&one["field"]), one["direction"] == "desc"))
        .collect();
    let given = order.clone();
    let last_descends = order.last().is_some_and(|(_, descending)| *descending);
    let mut ranges = Vec::new();
    range_fields(&query["where"], &mut ranges);
    ranges.sort();
    ranges.dedup();
    order.extend(
        ranges
            .into_iter()
            .filter(|field| given.iter().all(|(other, _)| other != field))
            .map(|field| (field, last_descends)),
    );
    let mut found: Vec<(DocumentId, Value)> = documents
        .iter()
        .filter(|(_, value)| query.get("where").is_none_or(|predicate| holds(predicate, value)))
        .filter(|(_, value)| order.iter().all(|(field, _)| at(value, field).is_some()))
        .filter(|(_, value)| is_inside(query, &order, value))
        .map(|(id, value)| (*id, value.clone()))
        .collect();
    found.sort_by(|(id, one), (other_id, other)| {
        for (field, descending) in &order {
            let found = compare(at(one, field).unwrap(), at(other, field).unwrap());
            let found = if *descending { found.reverse() } else { found };
            if found != Ordering::Equal {
                return found;
            }
        }
        let found = id.cmp(other_id);
        if last_descends { found.reverse() } else { found }
    });
    if let Some(limit) = query["limit"].as_u64() {
        found.truncate(limit as usize);
    }
    if let Some(limit) = query["limitToLast"].as_u64() {
        found = found.split_off(found.len().saturating_sub(limit as usize));
    }
    found
}

fn is_inside(query: &Value, order: &[(String, bool)], value: &Value) -> bool {
    let against = |values: &Value| {
        for ((field, descending), edge) in order.iter().zip(values.as_array().unwrap()) {
            let found = compare(at(value, field).unwrap(), edge);
            let found = if *descending { found.reverse() } else { found };
            if found != Ordering::Equal {
                return found;
            }
        }
        Ordering::Equal
    };
    query.get("startAt").is_none_or(|edge| against(edge) != Ordering::Less)
        && query.get("startAfter").is_none_or(|edge| against(edge) == Ordering::Greater)
        && query.get("endAt").is_none_or(|edge| against(edge) != Ordering::Greater)
        && query.get("endBefore").is_none_or(|edge| against(edge) == Ordering::Less)
}

/// Paths sort by their pointers.
fn range_fields(predicate: &Value, found: &mut Vec<String>) {
    for kind in ["and", "or"] {
        predicate[kind].as_array().into_iter().flatten().for_each(|part| range_fields(part, found));
    }
    if ["<", "<=", ">", ">="].iter().any(|op| predicate["op"] == *op) {
        found.push(text(&predicate["field"]));
    }
}

fn holds(predicate: &Value, document: &Value) -> bool {
    if let Some(parts) = predicate["and"].as_array() {
        return parts.iter().all(|part| holds(part, document));
    }
    if let Some(parts) = predicate["or"].as_array() {
        return parts.iter().any(|part| holds(part, document));
    }
    let (operator, value) = (text(&predicate["op"]), &predicate["value"]);
    let Some(found) = at(document, &text(&predicate["field"])) else {
        return operator == "exists" && *value == json!(false);
    };
    let is = |other: &Value| compare(found, other) == Ordering::Equal;
    let listed = || value.as_array().unwrap().iter().any(is);
    let has = |wanted: &Value| match found {
        Value::Array(elements) => elements.iter().any(|element| compare(element, wanted) == Ordering::Equal),
        _ => false,
    };
    let ordered = compare(found, value);
    let in_type = rank(found) == rank(value);
    match operator.as_str() {
        "==" => is(value),
        "!=" => !is(value) && !found.is_null(),
        "<" => in_type && ordered == Ordering::Less,
        "<=" => in_type && ordered != Ordering::Greater,
        ">" => in_type && ordered == Ordering::Greater,
        ">=" => in_type && ordered != Ordering::Less,
        "in" => listed(),
        "not-in" => !listed() && !found.is_null(),
        "array-contains" => has(value),
        "array-contains-any" => value.as_array().unwrap().iter().any(has),
        "exists" => *value == json!(true),
        other => panic!("{other}"),
    }
}

fn at<'a>(document: &'a Value, field: &str) -> Option<&'a Value> {
    field.split('.').try_fold(document, |found, step| match found {
        Value::Object(_) if form(found).is_none() => found.get(step),
        _ => None,
    })
}

fn form(value: &Value) -> Option<(&str, &Value)> {
    let (name, value) = value.as_object()?.iter().next()?;
    name.starts_with('$').then_some((name, value))
}

fn rank(value: &Value) -> u8 {
    match (value, form(value)) {
        (Value::Null, _) => 0,
        (Value::Bool(_), _) => 1,
        (Value::Number(_), _) | (_, Some(("$counter", _))) => 2,
        (_, Some(("$time", _))) => 3,
        (Value::String(_), _) | (_, Some(("$string", _))) => 4,
        (_, Some(("$bytes", _))) => 5,
        (Value::Array(_), _) => 6,
        _ => 7,
    }
}

fn compare(one: &Value, other: &Value) -> Ordering {
    rank(one).cmp(&rank(other)).then_with(|| match (bare(one), bare(other)) {
        (Value::Bool(one), Value::Bool(other)) => one.cmp(&other),
        (Value::Number(one), Value::Number(other)) => {
            one.as_f64().unwrap().partial_cmp(&other.as_f64().unwrap()).unwrap()
        }
        (Value::String(one), Value::String(other)) => one.as_bytes().cmp(other.as_bytes()),
        (Value::Array(one), Value::Array(other)) => {
            let first = one.iter().zip(&other).map(|(one, other)| compare(one, other));
            first.into_iter().find(|found| found.is_ne()).unwrap_or(one.len().cmp(&other.len()))
        }
        (Value::Object(one), Value::Object(other)) => {
            let pairs = |map: &Map<String, Value>| map.iter().map(|(k, v)| (k.clone(), v.clone())).collect::<Vec<_>>();
            let (one, other) = (pairs(&one), pairs(&other));
            let first = one.iter().zip(&other).map(|((k, v), (l, w))| k.cmp(l).then_with(|| compare(v, w)));
            first.into_iter().find(|found| found.is_ne()).unwrap_or(one.len().cmp(&other.len()))
        }
        _ => Ordering::Equal,
    })
}

/// What a special form holds.
fn bare(value: &Value) -> Value {
    form(value).map_or_else(|| value.clone(), |(_, inner)| inner.clone())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}
