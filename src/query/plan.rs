//! By which index a query finds its documents.

use super::index::{Index, Part};
use super::predicate::{Condition, Operator, Span};
use super::rows::{end_of, entries_of};
use super::spec::{Ordering, Shape, is_descending};
use super::value::TOO_MANY;
use crate::limits::queries;

/// A way to the documents of one alternative: ranges of an index that hold them all, and perhaps others.
#[derive(Debug, Clone)]
pub(super) struct Access {
    /// Which index.
    pub(super) index: Index,
    /// The ranges: from the first key to the first behind.
    pub(super) ranges: Vec<(Vec<u8>, Vec<u8>)>,
    /// They are to be read from the end.
    pub(super) descending: bool,
    /// Read so, each range gives documents in the order of the result.
    pub(super) ordered: bool,
    /// The ranges leave out documents that do not match.
    pub(super) narrows: bool,
    /// How many fields it looks up exactly.
    pub(super) exact: usize,
    /// Whatever is in the ranges matches.
    pub(super) covers: bool,
}

/// The ways that the indexes open to the documents of one alternative, behind the place `after` of the result.
pub(super) fn accesses(
    shape: &Shape,
    conditions: &[Condition],
    indexes: &[Index],
    after: Option<&[u8]>,
) -> Vec<Access> {
    indexes
        .iter()
        .filter(|index| index.is_ready())
        .filter_map(|index| access(shape, conditions, index, after))
        .collect()
}

fn access(shape: &Shape, conditions: &[Condition], index: &Index, after: Option<&[u8]>) -> Option<Access> {
    // A document that lacks a field is not in the index, so it must not be in the result either.
    if !index.parts.iter().all(|part| is_needed(shape, conditions, part)) {
        return None;
    }
    let mut prefixes = vec![entries_of(index.id)];
    let mut answered: Vec<&Condition> = Vec::new();
    let mut exact = 0;
    for part in &index.parts {
        let Some(condition) = conditions.iter().find(|condition| looks_up(condition, part)) else { break };
        let mut keys: Vec<Vec<u8>> = condition.keys.iter().map(|key| turned(key.as_bytes(), part.descending)).collect();
        // Two that are written differently may be one.
        keys.sort_unstable();
        keys.dedup();
        if part.elements {
            keys.push(vec![TOO_MANY]);
        }
        if prefixes.len() * keys.len() > queries::ALTERNATIVES_MAX + 2 {
            break;
        }
        prefixes = prefixes.iter().flat_map(|prefix| keys.iter().map(|key| [&prefix[..], &key[..]].concat())).collect();
        answered.push(condition);
        exact += 1;
    }
    let rest = &index.parts[exact..];
    let span = rest.first().filter(|part| !part.elements).and_then(|part| {
        let ranges = conditions.iter().filter(|condition| condition.field == part.field);
        let ranges: Vec<&Condition> = ranges.filter(|condition| condition.operator.is_range()).collect();
        answered.extend(&ranges);
        Some((ranges.into_iter().filter_map(Condition::span).reduce(Span::within)?, part.descending))
    });
    let ranges = prefixes.into_iter().map(|prefix| match &span {
        Some((span, descending)) => {
            let (from, to) = span.bounds(*descending);
            ([&prefix[..], &from[..]].concat(), [&prefix[..], &to[..]].concat())
        }
        None => (prefix.clone(), end_of(&prefix)),
    });
    // What all documents that match have alike says nothing about their order.
    let is_fixed = |ordering: &Ordering| {
        let is_one = |condition: &Condition| condition.operator == Operator::Eq && condition.field == ordering.field;
        let is_looked_up = |part: &Part| !part.elements && part.field == ordering.field;
        conditions.iter().any(is_one) || index.parts[..exact].iter().any(is_looked_up)
    };
    let order: Vec<&Ordering> = shape.order.iter().filter(|ordering| !is_fixed(ordering)).collect();
    let flipped = index.ends_descending() != is_descending(&shape.order);
    let is_alike = |(part, ordering): (&Part, &&Ordering)| {
        !part.elements && part.field == ordering.field && (part.descending != ordering.descending) == flipped
    };
    let ordered = order.len() == rest.len() && rest.iter().zip(&order).all(is_alike);
    let has_all_of_order = ordered && order.len() == shape.order.len();
    let narrows = exact > 0 || span.is_some();
    if !narrows && !ordered {
        return None;
    }
    let mut ranges: Vec<(Vec<u8>, Vec<u8>)> = ranges.collect();
    if has_all_of_order && span.is_none() {
        // The place in the result follows what was looked up.
        for range in &mut ranges {
            let prefix = range.0.clone();
            narrow(range, &prefix, shape, after, flipped);
        }
    }
    let covers = answered.len() == conditions.len()
        && shape.lower.is_none()
        && shape.upper.is_none()
        && !index.parts.iter().any(|part| part.elements)
        && shape.order.iter().all(|ordering| index.parts.iter().any(|part| part.field == ordering.field));
    Some(Access {
        index: index.clone(),
        ranges,
        descending: flipped != shape.from_end,
        ordered,
        narrows,
        exact,
        covers,
    })
}

/// Whether only documents that have an entry for this part can be in the result.
fn is_needed(shape: &Shape, conditions: &[Condition], part: &Part) -> bool {
    let is_asked = |condition: &Condition| {
        let contains = matches!(condition.operator, Operator::ArrayContains | Operator::ArrayContainsAny);
        let may_lack = condition.operator == Operator::Exists && condition.value != serde_json::Value::Bool(true);
        condition.field == part.field && if part.elements { contains } else { !may_lack }
    };
    let is_ordered = || !part.elements && shape.order.iter().any(|ordering| ordering.field == part.field);
    conditions.iter().any(is_asked) || is_ordered()
}

fn looks_up(condition: &Condition, part: &Part) -> bool {
    let operator = match part.elements {
        true => matches!(condition.operator, Operator::ArrayContains | Operator::ArrayContainsAny),
        false => matches!(condition.operator, Operator::Eq | Operator::In),
    };
    operator && condition.field == part.field
}

fn turned(bytes: &[u8], descending: bool) -> Vec<u8> {
    if descending { bytes.iter().map(|byte| !byte).collect() } else { bytes.to_vec() }
}

/// Leaves out of a range what is outside of the result's start and end, or not behind `after`.
fn narrow(range: &mut (Vec<u8>, Vec<u8>), prefix: &[u8], shape: &Shape, after: Option<&[u8]>, flipped: bool) {
    // `after` counts from the end of the result when that is what the limit takes.
    let after = after.map(|place| turned(place, shape.from_end));
    let (mut lower, mut upper) = (shape.lower.clone(), shape.upper.clone());
    match after {
        Some(place) if shape.from_end => upper = Some(upper.map_or(place.clone(), |upper| upper.min(place))),
        Some(place) => lower = Some(lower.map_or(place.clone(), |lower| lower.max(place))),
        None => {}
    }
    let (from, to) = if flipped {
        (upper.map(|upper| turned(&upper, true)), lower.map(|lower| end_of(&turned(&lower, true))))
    } else {
        (lower, upper)
    };
    if let Some(from) = from {
        range.0 = [prefix, &from].concat();
    }
    if let Some(to) = to {
        range.1 = [prefix, &to].concat();
    }
}

/// The index that would serve an alternative best.
pub(super) fn best_index(shape: &Shape, conditions: &[Condition]) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let mut add = |part: Part| {
        if parts.len() < queries::PARTS_MAX && parts.iter().all(|other| other.field != part.field) {
            parts.push(part);
        }
    };
    let by = |operators: &'static [Operator]| conditions.iter().filter(|one| operators.contains(&one.operator));
    by(&[Operator::Eq, Operator::In]).for_each(|one| add(Part::ascending(one.field.clone())));
    by(&[Operator::ArrayContains, Operator::ArrayContainsAny])
        .take(1)
        .for_each(|one| add(Part::elements(one.field.clone())));
    for ordering in &shape.order {
        add(Part { field: ordering.field.clone(), elements: false, descending: ordering.descending });
    }
    conditions.iter().for_each(|one| {
        if one.operator != Operator::Exists || one.value == serde_json::Value::Bool(true) {
            add(Part::ascending(one.field.clone()));
        }
    });
    parts
}

/// The indexes on one field that would help an alternative: those that are kept by themselves.
pub(super) fn single_indexes(shape: &Shape, conditions: &[Condition]) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let fields = conditions.iter().filter_map(|one| match one.operator {
        Operator::ArrayContains | Operator::ArrayContainsAny => Some(Part::elements(one.field.clone())),
        Operator::Eq | Operator::In | Operator::Lt | Operator::Le | Operator::Gt | Operator::Ge => {
            Some(Part::ascending(one.field.clone()))
        }
        _ => None,
    });
    let first = shape.order.first().filter(|_| shape.limit.is_some());
    for part in fields.chain(first.map(|ordering| Part::ascending(ordering.field.clone()))) {
        if !parts.contains(&part) {
            parts.push(part);
        }
    }
    parts
}
