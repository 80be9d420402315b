//! The functions that values have, and those that stand alone.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::machine::{Fault, FaultKind, Machine, Outcome};
use super::operators;
use super::program::Id;
use super::time;
use super::value::Value;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Builtin {
    Size,
    Contains,
    StartsWith,
    EndsWith,
    Lower,
    Upper,
    Trim,
    Split,
    Int,
    Uint,
    Double,
    String,
    Bool,
    Bytes,
    Type,
    Timestamp,
    Duration,
    ToMillis,
    HasOnly,
    HasAny,
    HasAll,
    Concat,
    Within,
    Keys,
    GetOr,
    Diff,
    AffectedKeys,
    AddedKeys,
    RemovedKeys,
    ChangedKeys,
    UnchangedKeys,
}

use Builtin as B;

/// Name, whether it stands behind a value and a dot, how many values it takes with that one, and what it is.
const TABLE: [(&str, bool, RangeInclusive<usize>, Builtin); 33] = [
    ("size", false, 1..=1, B::Size),
    ("size", true, 1..=1, B::Size),
    ("contains", true, 2..=2, B::Contains),
    ("startsWith", true, 2..=2, B::StartsWith),
    ("endsWith", true, 2..=2, B::EndsWith),
    ("lower", true, 1..=1, B::Lower),
    ("upper", true, 1..=1, B::Upper),
    ("trim", true, 1..=1, B::Trim),
    ("split", true, 2..=2, B::Split),
    ("int", false, 1..=1, B::Int),
    ("uint", false, 1..=1, B::Uint),
    ("double", false, 1..=1, B::Double),
    ("float", false, 1..=1, B::Double),
    ("string", false, 1..=1, B::String),
    ("bool", false, 1..=1, B::Bool),
    ("bytes", false, 1..=1, B::Bytes),
    ("type", false, 1..=1, B::Type),
    ("timestamp", false, 1..=1, B::Timestamp),
    ("duration", false, 1..=1, B::Duration),
    ("toMillis", true, 1..=1, B::ToMillis),
    ("hasOnly", true, 2..=2, B::HasOnly),
    ("hasAny", true, 2..=2, B::HasAny),
    ("hasAll", true, 2..=2, B::HasAll),
    ("concat", true, 2..=2, B::Concat),
    ("within", true, 2..=2, B::Within),
    ("keys", true, 1..=1, B::Keys),
    ("get", true, 3..=3, B::GetOr),
    ("diff", true, 2..=2, B::Diff),
    ("affectedKeys", true, 1..=1, B::AffectedKeys),
    ("addedKeys", true, 1..=1, B::AddedKeys),
    ("removedKeys", true, 1..=1, B::RemovedKeys),
    ("changedKeys", true, 1..=1, B::ChangedKeys),
    ("unchangedKeys", true, 1..=1, B::UnchangedKeys),
];

impl Builtin {
    pub(super) fn find(name: &str, is_member: bool) -> Option<(Self, RangeInclusive<usize>)> {
        let row = TABLE.iter().find(|(own, member, ..)| *own == name && *member == is_member)?;
        Some((row.3, row.2.clone()))
    }

    pub(super) fn names(is_member: bool) -> Vec<&'static str> {
        let own = TABLE.iter().filter(|(_, member, ..)| *member == is_member).map(|(name, ..)| *name);
        own.chain(is_member.then_some("matches")).collect()
    }

    fn name(self) -> &'static str {
        TABLE.iter().find(|(.., builtin)| *builtin == self).map_or("", |(name, ..)| name)
    }
}

/// Calls one with the values it takes.
pub(super) fn call(
    machine: &mut Machine<'_, '_>,
    at: Id,
    builtin: Builtin,
    values: &[Value; 3],
    given: usize,
) -> Outcome {
    let [own, other, third] = values;
    let bytes = operators::length(own) + operators::length(other);
    machine.spend_bytes(at, bytes)?;
    let text = |text: String| Ok(Value::String(Arc::from(text)));
    match (builtin, own, other) {
        (B::Type, value, _) => Ok(Value::text(value.kind().name())),
        (B::Size, Value::String(text), _) => size(text.chars().count()),
        (B::Size, Value::Bytes(bytes), _) => size(bytes.len()),
        (B::Size, Value::List(items), _) => size(items.len()),
        (B::Size, Value::Map(map), _) => size(map.len()),
        (B::Contains, Value::String(own), Value::String(part)) => Ok(Value::Bool(own.contains(&**part))),
        (B::StartsWith, Value::String(own), Value::String(part)) => Ok(Value::Bool(own.starts_with(&**part))),
        (B::EndsWith, Value::String(own), Value::String(part)) => Ok(Value::Bool(own.ends_with(&**part))),
        (B::Lower, Value::String(own), _) => text(own.to_lowercase()),
        (B::Upper, Value::String(own), _) => text(own.to_uppercase()),
        (B::Trim, Value::String(own), _) => text(own.trim().to_owned()),
        (B::Split, Value::String(own), Value::String(by)) => {
            let parts = own.split(&**by);
            // Each part is a value of its own; an empty separator makes one of every letter.
            machine.spend(at, own.matches(&**by).count())?;
            Ok(Value::list(parts.filter(|part| !by.is_empty() || !part.is_empty()).map(Value::text).collect()))
        }
        (B::Int | B::Uint | B::Double | B::String | B::Bool | B::Bytes | B::Timestamp | B::Duration, value, _) => {
            convert(at, builtin, value)
        }
        (B::ToMillis, Value::Timestamp(ms) | Value::Duration(ms), _) => Ok(Value::Int(*ms)),
        (B::HasOnly, Value::List(own), Value::List(allowed)) => all_in(machine, at, own, allowed),
        (B::HasAll, Value::List(own), Value::List(wanted)) => all_in(machine, at, wanted, own),
        (B::HasAny, Value::List(own), Value::List(wanted)) => {
            for value in own.iter() {
                if is_in(machine, at, value, wanted)? {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        (B::Concat, Value::List(a), Value::List(b)) => {
            machine.spend(at, a.len() + b.len())?;
            Ok(Value::List([&**a, &**b].concat().into()))
        }
        (B::Within, Value::List(paths), Value::List(prefixes)) => within(machine, at, paths, prefixes),
        (B::Keys, Value::Map(map), _) => {
            machine.spend(at, map.len())?;
            Ok(Value::list(map.keys().map(|key| Value::String(key.clone())).collect()))
        }
        (B::GetOr, Value::Map(map), Value::String(key)) => Ok(map.get(key).unwrap_or(third).clone()),
        (B::GetOr, Value::Map(_), Value::List(keys)) => {
            machine.spend(at, keys.len())?;
            let found = keys.iter().try_fold(own, |value, key| match (value, key) {
                (Value::Map(map), Value::String(key)) => map.get(key),
                _ => None,
            });
            Ok(found.unwrap_or(third).clone())
        }
        (B::Diff, Value::Map(_), Value::Map(_)) => diff(machine, at, own, other),
        (B::AffectedKeys, difference, _) => keys_of(machine, at, builtin, difference, &["added", "changed", "removed"]),
        (B::AddedKeys, difference, _) => keys_of(machine, at, builtin, difference, &["added"]),
        (B::RemovedKeys, difference, _) => keys_of(machine, at, builtin, difference, &["removed"]),
        (B::ChangedKeys, difference, _) => keys_of(machine, at, builtin, difference, &["changed"]),
        (B::UnchangedKeys, difference, _) => keys_of(machine, at, builtin, difference, &["unchanged"]),
        (builtin, a, _) if given == 1 => Err(wrong(at, builtin, a)),
        (builtin, a, b) => Err(Fault { at, kind: FaultKind::Types(builtin.name(), a.kind(), b.kind()) }),
    }
}

fn wrong(at: Id, builtin: Builtin, value: &Value) -> Fault {
    let what = if builtin == B::Size { "has no size" } else { "has no such function" };
    Fault { at, kind: FaultKind::Type(what, value.kind()) }
}

fn size(count: usize) -> Outcome {
    Ok(Value::Int(i64::try_from(count).unwrap_or(i64::MAX)))
}

fn is_in(machine: &mut Machine<'_, '_>, at: Id, value: &Value, list: &[Value]) -> Result<bool, Fault> {
    for other in list {
        if machine.equal(at, value, other)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn all_in(machine: &mut Machine<'_, '_>, at: Id, values: &[Value], list: &[Value]) -> Outcome {
    for value in values {
        machine.spend(at, 1)?;
        if !is_in(machine, at, value, list)? {
            return Ok(Value::Bool(false));
        }
    }
    Ok(Value::Bool(true))
}

/// Whether every path is one of the prefixes, or lies under one.
fn within(machine: &mut Machine<'_, '_>, at: Id, paths: &[Value], prefixes: &[Value]) -> Outcome {
    for path in paths {
        let Value::String(path) = path else {
            return Err(Fault { at, kind: FaultKind::Type("is no path", path.kind()) });
        };
        let mut is_covered = false;
        for prefix in prefixes {
            let Value::String(prefix) = prefix else {
                return Err(Fault { at, kind: FaultKind::Type("is no path", prefix.kind()) });
            };
            machine.spend(at, 1)?;
            machine.spend_bytes(at, path.len().min(prefix.len()))?;
            is_covered |= path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        }
        if !is_covered {
            return Ok(Value::Bool(false));
        }
    }
    Ok(Value::Bool(true))
}

/// `{added, changed, removed, unchanged}`: the keys of two maps, the other one being what was before.
fn diff(machine: &mut Machine<'_, '_>, at: Id, own: &Value, before: &Value) -> Outcome {
    let (Value::Map(after), Value::Map(before)) = (own, before) else { return Err(wrong(at, B::Diff, own)) };
    machine.spend(at, after.len() + before.len())?;
    let (mut added, mut changed, mut unchanged) = (Vec::new(), Vec::new(), Vec::new());
    for (key, value) in after.iter() {
        let list = match before.get(key) {
            None => &mut added,
            Some(old) if machine.equal(at, value, old)? => &mut unchanged,
            Some(_) => &mut changed,
        };
        list.push(Value::String(key.clone()));
    }
    let removed = before.keys().filter(|key| !after.contains_key(*key)).map(|key| Value::String(key.clone())).collect();
    Ok(Value::map([
        ("added", Value::list(added)),
        ("changed", Value::list(changed)),
        ("removed", Value::list(removed)),
        ("unchanged", Value::list(unchanged)),
    ]))
}

/// The keys in some lists of a difference, in ascending order.
fn keys_of(machine: &mut Machine<'_, '_>, at: Id, builtin: Builtin, difference: &Value, lists: &[&str]) -> Outcome {
    let mut keys = BTreeSet::new();
    for list in lists {
        let Some(Value::List(items)) = difference.at(&[*list]) else { return Err(wrong(at, builtin, difference)) };
        machine.spend(at, items.len())?;
        for item in items.iter() {
            let Value::String(key) = item else { return Err(wrong(at, builtin, item)) };
            keys.insert(key.clone());
        }
    }
    Ok(Value::list(keys.into_iter().map(Value::String).collect()))
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "after a check of the range; a double is as near as it can be"
)]
fn convert(at: Id, to: Builtin, value: &Value) -> Outcome {
    let overflow = Fault { at, kind: FaultKind::Overflow };
    let no = |what| Fault { at, kind: FaultKind::Conversion(what) };
    Ok(match (to, value) {
        (B::Int, Value::Int(_))
        | (B::Uint, Value::Uint(_))
        | (B::Double, Value::Double(_))
        | (B::String, Value::String(_))
        | (B::Bool, Value::Bool(_))
        | (B::Bytes, Value::Bytes(_))
        | (B::Timestamp, Value::Timestamp(_))
        | (B::Duration, Value::Duration(_)) => value.clone(),
        (B::Int, Value::Uint(value)) => Value::Int(i64::try_from(*value).map_err(|_| overflow)?),
        // Strictly between -2^63 and 2^63, as CEL has it.
        (B::Int, Value::Double(value)) if value.abs() < 9_223_372_036_854_775_808.0 => Value::Int(value.trunc() as i64),
        (B::Int, Value::Double(_)) => return Err(overflow),
        (B::Int, Value::String(text)) => Value::Int(text.parse().map_err(|_| no("int"))?),
        (B::Int, Value::Timestamp(ms)) => Value::Int(ms.div_euclid(1000)),
        (B::Uint, Value::Int(value)) => Value::Uint(u64::try_from(*value).map_err(|_| overflow)?),
        (B::Uint, Value::Double(value)) if *value > -1.0 && *value < 18_446_744_073_709_551_616.0 => {
            Value::Uint(value.trunc() as u64)
        }
        (B::Uint, Value::Double(_)) => return Err(overflow),
        (B::Uint, Value::String(text)) => Value::Uint(text.parse().map_err(|_| no("uint"))?),
        (B::Double, Value::Int(value)) => Value::Double(*value as f64),
        (B::Double, Value::Uint(value)) => Value::Double(*value as f64),
        (B::Double, Value::String(text)) => Value::Double(text.parse().map_err(|_| no("double"))?),
        (B::String, Value::Int(value)) => Value::text(&value.to_string()),
        (B::String, Value::Uint(value)) => Value::text(&value.to_string()),
        (B::String, Value::Double(value)) => Value::text(&value.to_string()),
        (B::String, Value::Bool(value)) => Value::text(if *value { "true" } else { "false" }),
        (B::String, Value::Bytes(bytes)) => Value::text(std::str::from_utf8(bytes).map_err(|_| no("text"))?),
        (B::String, Value::Timestamp(ms)) => Value::text(&time::format(*ms)),
        (B::String, Value::Duration(ms)) => Value::text(&time::format_duration(*ms)),
        (B::Bool, Value::String(text)) => match &**text {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            _ => return Err(no("bool")),
        },
        (B::Bytes, Value::String(text)) => Value::Bytes(text.as_bytes().into()),
        (B::Timestamp, Value::Int(seconds)) => Value::Timestamp(seconds.checked_mul(1000).ok_or(overflow)?),
        (B::Timestamp, Value::String(text)) => Value::Timestamp(time::parse(text).ok_or(no("timestamp"))?),
        (B::Duration, Value::String(text)) => Value::Duration(time::parse_duration(text).ok_or(no("duration"))?),
        (_, other) => return Err(Fault { at, kind: FaultKind::Type("is not converted so", other.kind()) }),
    })
}
