//! The reference: blocks walked as they were made, expressions executed by another implementation of CEL.

use std::collections::HashMap;
use std::sync::Arc;

use cel::extractors::This;
use cel::objects::{Key, Map};
use cel::{Context, ExecutionError, Program, Value};
use serde_json::Value as Json;

use super::world::Case;

/// A block of rules as the reference has it.
pub(super) struct Block {
    pub(super) segments: Vec<Segment>,
    pub(super) allows: Vec<Allow>,
    pub(super) blocks: Vec<Block>,
}

#[derive(Clone, PartialEq)]
pub(super) enum Segment {
    Literal(&'static str),
    One(&'static str),
    Rest(&'static str),
}

pub(super) struct Allow {
    pub(super) operations: Vec<&'static str>,
    /// `None`: always.
    pub(super) condition: Option<Program>,
    /// Which operators it is there to try.
    pub(super) tags: Vec<&'static str>,
}

/// Whether a request is allowed; `each` hears of every `allow` that was looked at, and what it came to.
pub(super) fn allowed(
    blocks: &[Block],
    case: &Case,
    context: &Context<'_, '_>,
    each: &mut impl FnMut(&Allow, Option<bool>),
) -> bool {
    let path = [case.collection.as_str(), case.id.as_str()];
    let mut is_allowed = false;
    for block in blocks {
        walk(block, &path, &mut |allow| {
            if !allow.operations.contains(&case.operation.as_str()) {
                return;
            }
            let outcome = match &allow.condition {
                None => Some(true),
                Some(program) => match program.execute(context) {
                    Ok(Value::Bool(value)) => Some(value),
                    _ => None,
                },
            };
            each(allow, outcome);
            is_allowed |= outcome == Some(true);
        });
    }
    is_allowed
}

/// Finds the blocks whose segments, with those around them, are the whole path.
fn walk<'b>(block: &'b Block, path: &[&str], found: &mut impl FnMut(&'b Allow)) {
    for rest in after(&block.segments, path) {
        if rest.is_empty() {
            block.allows.iter().for_each(&mut *found);
        }
        for inner in &block.blocks {
            walk_dyn(inner, rest, found);
        }
    }
}

fn walk_dyn<'b>(block: &'b Block, path: &[&str], found: &mut dyn FnMut(&'b Allow)) {
    walk(block, path, &mut |allow| found(allow));
}

/// What may be left of a path behind some segments.
fn after<'p>(segments: &[Segment], path: &'p [&'p str]) -> Vec<&'p [&'p str]> {
    match (segments.split_first(), path.split_first()) {
        (None, _) => vec![path],
        (Some(_), None) => vec![],
        (Some((Segment::Literal(text), more)), Some((first, rest))) if text == first => after(more, rest),
        (Some((Segment::Literal(_), _)), _) => vec![],
        (Some((Segment::One(_), more)), Some((_, rest))) => after(more, rest),
        (Some((Segment::Rest(_), more)), _) => (1..=path.len()).flat_map(|taken| after(more, &path[taken..])).collect(),
    }
}

/// Everything that expressions may name, there as a whole, and the functions that CEL does not have.
pub(super) fn context(case: &Case, others: &Json) -> Context<'static, 'static> {
    let mut context = Context::default();
    let (request, resource) = case.facts();
    context.add_variable_from_value("request", value(&request));
    context.add_variable_from_value("resource", value(&resource));
    context.add_variable_from_value("collection", case.collection.as_str());
    context.add_variable_from_value("id", case.id.as_str());
    context.add_variable_from_value("rest", format!("{}/{}", case.collection, case.id).as_str());
    let documents: HashMap<String, Value> = others
        .as_object()
        .unwrap()
        .iter()
        .map(|(path, data)| {
            let id = path.rsplit('/').next().unwrap();
            (path.clone(), value(&serde_json::json!({ "data": data, "id": id })))
        })
        .collect();
    let documents = Arc::new(documents);
    context
        .add_function("documentAt", move |path: Arc<String>| -> Result<Value, ExecutionError> {
            let segments: Vec<&str> = path.split('/').collect();
            match segments.as_slice() {
                ["", collection, id] if !collection.is_empty() && !id.is_empty() => {
                    Ok(documents.get(&*path).cloned().unwrap_or(Value::Null))
                }
                _ => Err(ExecutionError::function_error("documentAt", "no path")),
            }
        })
        .unwrap();
    context
        .add_function("hasOnly", |This(own): This<Value>, other: Value| -> Result<Value, ExecutionError> {
            let (own, other) = lists(own, other)?;
            Ok(Value::Bool(own.iter().all(|value| other.contains(value))))
        })
        .unwrap();
    context
        .add_function("hasAll", |This(own): This<Value>, other: Value| -> Result<Value, ExecutionError> {
            let (own, other) = lists(own, other)?;
            Ok(Value::Bool(other.iter().all(|value| own.contains(value))))
        })
        .unwrap();
    context
        .add_function("hasAny", |This(own): This<Value>, other: Value| -> Result<Value, ExecutionError> {
            let (own, other) = lists(own, other)?;
            Ok(Value::Bool(own.iter().any(|value| other.contains(value))))
        })
        .unwrap();
    context
        .add_function("within", |This(own): This<Value>, other: Value| -> Result<Value, ExecutionError> {
            let (own, other) = lists(own, other)?;
            let text = |value: &Value| match value {
                Value::String(text) => Ok(text.to_string()),
                _ => Err(ExecutionError::function_error("within", "no text")),
            };
            for path in own.iter() {
                let path = text(path)?;
                let mut is_under = false;
                for prefix in other.iter() {
                    let prefix = text(prefix)?;
                    is_under |= path == prefix || path.starts_with(&format!("{prefix}/"));
                }
                if !is_under {
                    return Ok(Value::Bool(false));
                }
            }
            Ok(Value::Bool(true))
        })
        .unwrap();
    context
        .add_function("keys", |This(own): This<Value>| -> Result<Value, ExecutionError> {
            let mut keys = names(&own)?;
            keys.sort();
            Ok(Value::List(Arc::new(keys.into_iter().map(|key| Value::String(Arc::new(key))).collect())))
        })
        .unwrap();
    context
        .add_function("valueOr", |own: Value, key: Value, other: Value| -> Result<Value, ExecutionError> {
            match (own, key) {
                (Value::Map(map), Value::String(key)) => Ok(map.map.get(&Key::String(key)).cloned().unwrap_or(other)),
                _ => Err(ExecutionError::function_error("valueOr", "no map")),
            }
        })
        .unwrap();
    context
        .add_function("affected", |own: Value, other: Value| -> Result<Value, ExecutionError> {
            let (before, after) = (names(&other)?, names(&own)?);
            let (Value::Map(own), Value::Map(other)) = (own, other) else {
                return Err(ExecutionError::function_error("affected", "no map"));
            };
            let mut all: Vec<String> = before.into_iter().chain(after).collect();
            all.sort();
            all.dedup();
            let at = |map: &Map, key: &str| map.map.get(&Key::String(Arc::new(key.to_owned()))).cloned();
            all.retain(|key| at(&own, key) != at(&other, key));
            Ok(Value::List(Arc::new(all.into_iter().map(|key| Value::String(Arc::new(key))).collect())))
        })
        .unwrap();
    context
}

fn lists(a: Value, b: Value) -> Result<(Arc<Vec<Value>>, Arc<Vec<Value>>), ExecutionError> {
    match (a, b) {
        (Value::List(a), Value::List(b)) => Ok((a, b)),
        _ => Err(ExecutionError::function_error("lists", "no lists")),
    }
}

fn names(map: &Value) -> Result<Vec<String>, ExecutionError> {
    match map {
        Value::Map(map) => Ok(map
            .map
            .keys()
            .map(|key| match key {
                Key::String(key) => key.to_string(),
                other => format!("{other:?}"),
            })
            .collect()),
        _ => Err(ExecutionError::function_error("keys", "no map")),
    }
}

/// JSON as that implementation has it; whole numbers are integers with a sign.
fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => number.as_i64().map_or_else(|| Value::Float(number.as_f64().unwrap()), Value::Int),
        Json::String(text) => Value::String(Arc::new(text.clone())),
        Json::Array(items) => Value::List(Arc::new(items.iter().map(value).collect())),
        Json::Object(members) => Value::Map(Map {
            map: Arc::new(
                members.iter().map(|(key, inner)| (Key::String(Arc::new(key.clone())), value(inner))).collect(),
            ),
        }),
    }
}
