//! Values in order: each value of a document as bytes that compare as the values do.
//!
//! Conditions, orderings, cursors and indexes compare these keys and nothing else, so they cannot disagree. The bytes
//! are on the disk: `docs/queries.md`, section 5.

use data_encoding::BASE64;
use serde_json::{Map, Number, Value};

use crate::id::first;

/// A value as bytes that compare as values do. No key is the beginning of another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueKey(Vec<u8>);

/// A key longer than this counts as its beginning and a digest.
const LENGTH_MAX: usize = 1536;
/// How much of such a key its beginning is.
const BEGINNING: usize = 1500;
/// The form under which a value stands whose document is too large to be kept whole: its key, and what is kept of it.
const KEPT_KEY: &str = "$key";
const KEPT_VALUE: &str = "$value";

const NULL: u8 = 0x10;
const FALSE: u8 = 0x20;
const NUMBER: u8 = 0x30;
const TIME: u8 = 0x40;
const TEXT: u8 = 0x50;
const BYTES: u8 = 0x60;
const LIST: u8 = 0x70;
const MAP: u8 = 0x80;
const UNKNOWN: u8 = 0x90;
/// Ends a list or a map.
const END: u8 = 0;
/// Precedes each member of a map.
const MEMBER: u8 = 1;
/// Stands for the elements of a list that has too many of them to be indexed one by one. Above every type.
pub(super) const TOO_MANY: u8 = 0xff;

impl ValueKey {
    /// The key of a value in its JSON form.
    #[must_use]
    pub fn of(value: &Value) -> Self {
        let mut bytes = Vec::with_capacity(24);
        encode(value, &mut bytes);
        Self(shortened(bytes))
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether both are of one type, so that a range may hold them.
    pub(super) fn is_of_type_of(&self, other: &Self) -> bool {
        self.kind() == other.kind()
    }

    pub(super) fn is_null(&self) -> bool {
        self.kind() == NULL
    }

    /// The first bytes of all keys of its type, and the first behind them.
    pub(super) fn bounds_of_type(&self) -> (Vec<u8>, Vec<u8>) {
        let kind = self.kind();
        (vec![kind], vec![kind + 0x10])
    }

    fn kind(&self) -> u8 {
        self.0.first().map_or(NULL, |first| first & 0xf0)
    }
}

/// A key as it counts: short ones as they are.
fn shortened(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.len() > LENGTH_MAX {
        let digest: [u8; 16] = first(blake3::hash(&bytes).as_bytes());
        bytes.truncate(BEGINNING);
        bytes.extend(digest);
    }
    bytes
}

fn encode(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.push(NULL),
        Value::Bool(value) => out.push(FALSE + u8::from(*value)),
        Value::Number(number) => encode_number(number, out),
        Value::String(text) => encode_text(TEXT, text.as_bytes(), out),
        Value::Array(items) => {
            out.push(LIST);
            items.iter().for_each(|item| encode(item, out));
            out.push(END);
        }
        Value::Object(members) => match form(members) {
            Some(form) => encode_form(form, members, out),
            None => encode_map(members, out),
        },
    }
}

fn encode_map(members: &Map<String, Value>, out: &mut Vec<u8>) {
    // By their names in the document: in JSON some have a `$` more.
    let mut members: Vec<_> = members.iter().map(|(name, value)| (unescaped(name), value)).collect();
    members.sort_unstable_by_key(|(name, _)| *name);
    out.push(MAP);
    for (name, value) in members {
        encode_text(MEMBER, name.as_bytes(), out);
        encode(value, out);
    }
    out.push(END);
}

fn encode_form(form: &str, members: &Map<String, Value>, out: &mut Vec<u8>) {
    let value = &members[form];
    match (form, value) {
        ("$counter", Value::Number(number)) => encode_number(number, out),
        ("$time", Value::Number(number)) => {
            out.push(TIME);
            let ms = number.as_i64().unwrap_or_default();
            out.extend((ms ^ i64::MIN).to_be_bytes());
        }
        ("$string", Value::String(text)) => encode_text(TEXT, text.as_bytes(), out),
        ("$bytes", Value::String(text)) => {
            encode_text(BYTES, &BASE64.decode(text.as_bytes()).unwrap_or_default(), out);
        }
        ("$f64", Value::String(text)) => match text.as_str() {
            "inf" => encode_float(f64::INFINITY, out),
            "-inf" => encode_float(f64::NEG_INFINITY, out),
            _ => {
                out.push(NUMBER);
                out.extend([0; 10]);
            }
        },
        (KEPT_KEY, Value::String(text)) => out.extend(BASE64.decode(text.as_bytes()).unwrap_or_default()),
        _ => encode_text(UNKNOWN, value.to_string().as_bytes(), out),
    }
}

fn encode_number(number: &Number, out: &mut Vec<u8>) {
    match (number.as_i64(), number.as_u64(), number.as_f64()) {
        (Some(int), _, _) => encode_integer(int.into(), out),
        (_, Some(uint), _) => encode_integer(uint.into(), out),
        (_, _, float) => encode_float(float.unwrap_or_default(), out),
    }
}

/// The nearest `f64`, and how far the number is from it: rounding never turns an order around.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "what is lost is the rest that follows"
)]
fn encode_integer(number: i128, out: &mut Vec<u8>) {
    let nearest = number as f64;
    let rest = number - nearest as i128;
    put_number(nearest, i16::try_from(rest).unwrap_or_default(), out);
}

fn encode_float(number: f64, out: &mut Vec<u8>) {
    put_number(number, 0, out);
}

fn put_number(nearest: f64, rest: i16, out: &mut Vec<u8>) {
    // Zero has two signs and one place.
    let bits = if nearest == 0.0 { 0 } else { nearest.to_bits() };
    let ordered = if bits >> 63 == 1 { !bits } else { bits | 1 << 63 };
    out.push(NUMBER);
    out.extend(ordered.to_be_bytes());
    out.extend((rest ^ i16::MIN).to_be_bytes());
}

fn encode_text(kind: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(kind);
    for byte in bytes {
        out.push(*byte);
        if *byte == 0 {
            out.push(0xff);
        }
    }
    out.extend([0, 1]);
}

/// The special form that an object is, if it is one.
fn form(members: &Map<String, Value>) -> Option<&str> {
    if members.contains_key(KEPT_KEY) {
        return Some(KEPT_KEY);
    }
    let name = members.keys().next().filter(|_| members.len() == 1)?;
    (name.starts_with('$') && !name.starts_with("$$")).then_some(name)
}

fn unescaped(name: &str) -> &str {
    if name.starts_with("$$") { &name[1..] } else { name }
}

/// The value that `steps` lead to from `value`; `None` where there is none.
pub(super) fn at<'a>(value: &'a Value, steps: &[String]) -> Option<&'a Value> {
    let mut found = value;
    for step in steps {
        found = match inside(found) {
            Value::Object(members) if form(members).is_none() => match step.starts_with('$') {
                true => members.get(&format!("${step}"))?,
                false => members.get(step)?,
            },
            Value::Array(items) => items.get(step.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    Some(found)
}

/// The elements of a list; none of anything else.
pub(super) fn elements(value: &Value) -> &[Value] {
    match inside(value) {
        Value::Array(items) => items,
        _ => &[],
    }
}

/// What is kept of a value that is not whole.
fn inside(value: &Value) -> &Value {
    match value {
        Value::Object(members) => members.get(KEPT_VALUE).filter(|_| members.contains_key(KEPT_KEY)).unwrap_or(value),
        other => other,
    }
}

/// What is kept of a document whose JSON takes more than `bytes`: what comparisons need, within as many.
pub(super) fn kept(value: &Value, bytes: usize) -> Value {
    let Value::Object(members) = value else { return Value::Object(Map::new()) };
    let mut members: Vec<(String, Value, usize)> = members
        .iter()
        .map(|(name, value)| {
            let kept = reduced(value);
            let length = name.len() + kept.to_string().len() + 8;
            (name.clone(), kept, length)
        })
        .collect();
    members.sort_unstable_by_key(|(_, _, length)| *length);
    // The largest members are kept as one value each, and where there is not even room for that, not at all.
    let mut total: usize = members.iter().map(|(_, _, length)| length).sum();
    for (name, kept, length) in members.iter_mut().rev() {
        if total <= bytes {
            break;
        }
        let alone = key_alone(&ValueKey::of(kept));
        let alone_length = name.len() + alone.to_string().len() + 8;
        if alone_length < *length {
            total -= *length - alone_length;
            (*kept, *length) = (alone, alone_length);
        }
    }
    members.sort_unstable_by_key(|(_, _, length)| *length);
    let mut left = bytes;
    let mut object = Map::new();
    for (name, kept, length) in members {
        let Some(rest) = left.checked_sub(length) else { break };
        left = rest;
        object.insert(name, kept);
    }
    Value::Object(object)
}

/// A value in which long texts stand as their keys.
fn reduced(value: &Value) -> Value {
    let key = ValueKey::of(value);
    if key.0.len() <= BEGINNING {
        return value.clone();
    }
    let inner = match value {
        Value::Array(items) => Value::Array(items.iter().map(reduced).collect()),
        Value::Object(members) if form(members).is_none() => {
            Value::Object(members.iter().map(|(name, value)| (name.clone(), reduced(value))).collect())
        }
        _ => return key_alone(&key),
    };
    let mut kept = Map::new();
    kept.insert(KEPT_KEY.to_owned(), BASE64.encode(&key.0).into());
    kept.insert(KEPT_VALUE.to_owned(), inner);
    Value::Object(kept)
}

fn key_alone(key: &ValueKey) -> Value {
    let mut kept = Map::new();
    kept.insert(KEPT_KEY.to_owned(), BASE64.encode(&key.0).into());
    Value::Object(kept)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_of_all_types_are_in_order() {
        let ascending = [
            json!(null),
            json!(false),
            json!(true),
            json!({"$f64": "nan"}),
            json!({"$f64": "-inf"}),
            json!(-1e300),
            json!(i64::MIN),
            json!(i64::MIN + 1),
            json!(-1.5),
            json!(-1),
            json!(0),
            json!(5e-324),
            json!(0.5),
            json!({"$counter": 1}),
            json!(1.000_000_000_1),
            json!(9_007_199_254_740_992_u64),
            json!(9_007_199_254_740_993_u64),
            json!(9_007_199_254_740_994_u64),
            json!(i64::MAX),
            json!(u64::MAX - 1),
            json!(u64::MAX),
            json!({"$f64": "inf"}),
            json!({"$time": -5}),
            json!({"$time": 5}),
            json!(""),
            json!("\0"),
            json!("\0a"),
            json!("a"),
            json!("a\0"),
            json!({"$string": "a\0b"}),
            json!("ab"),
            json!("é"),
            json!({"$bytes": ""}),
            json!({"$bytes": "AA=="}),
            json!([]),
            json!([null]),
            json!([1]),
            json!([1, 1]),
            json!([2]),
            json!([[]]),
            json!({}),
            json!({"$$a": 1}),
            json!({"a": 1}),
            json!({"a": 1, "b": 0}),
            json!({"a": 2}),
            json!({"b": 0}),
            json!({"$unknown": {"type": 12, "bytes": ""}}),
        ];
        for pair in ascending.windows(2) {
            assert!(ValueKey::of(&pair[0]) < ValueKey::of(&pair[1]), "{} {}", pair[0], pair[1]);
        }
        let equal = [(json!(1), json!(1.0)), (json!(0), json!(-0.0)), (json!("x"), json!({"$string": "x"}))];
        for (one, other) in equal {
            assert_eq!(ValueKey::of(&one), ValueKey::of(&other));
        }
        for one in &ascending {
            for other in &ascending {
                let (one, other) = (ValueKey::of(one), ValueKey::of(other));
                assert!(one == other || !other.as_bytes().starts_with(one.as_bytes()));
            }
        }
    }

    #[test]
    fn long_values_count_as_their_beginning_and_a_digest() {
        let text = |end: &str| json!(format!("{}{end}", "a".repeat(1600)));
        let (one, other) = (ValueKey::of(&text("1")), ValueKey::of(&text("2")));
        assert!(one != other && one.as_bytes().len() == 1516);
        assert!(ValueKey::of(&json!("b")) > one && ValueKey::of(&json!("a".repeat(1490))) < one);
    }

    #[test]
    fn what_is_kept_of_a_large_document_compares_as_all_of_it() {
        let long = "x".repeat(4000);
        let whole = json!({
            "title": "t",
            "text": long,
            "tags": ["a", long, {"deep": [long, 7]}],
            "many": (0..30_000).collect::<Vec<u32>>(),
        });
        let small = kept(&whole, 64 << 10);
        assert!(small.to_string().len() <= 64 << 10);
        for path in ["title", "text", "tags", "tags.0", "tags.1", "tags.2", "tags.2.deep.1", "many"] {
            let steps = crate::document::Path::from(path);
            let [left, right] = [&whole, &small].map(|value| at(value, steps.steps()).map(ValueKey::of));
            assert!(left.is_some() && left == right, "{path}");
        }
        let keys = |value: &Value| elements(&value["tags"]).iter().map(ValueKey::of).collect::<Vec<_>>();
        assert_eq!((keys(&whole), elements(&small["many"]).len()), (keys(&small), 0));
        assert_eq!(kept(&whole, 700), json!({"title": "t"}));
    }

    #[test]
    fn paths_lead_through_maps_and_lists_and_not_into_special_forms() {
        let value = json!({"a": [{"b": 1}], "t": {"$time": 5}, "$$x": 2});
        let find = |path: &str| at(&value, crate::document::Path::from(path).steps()).cloned();
        assert_eq!(find("a.0.b"), Some(json!(1)));
        assert_eq!(find("$x"), Some(json!(2)));
        assert_eq!((find("t.$time"), find("a.b"), find("a.1"), find("a.0.b.c")), (None, None, None, None));
        assert_eq!(find(""), Some(value.clone()));
    }
}
