//! JSON and documents: what a value written as JSON becomes, and how a document reads as JSON.
//!
//! | JSON | in the document |
//! |---|---|
//! | object, array, `true`, `null` | map, list, boolean, null |
//! | string | a text object, which merges character by character |
//! | number without fraction or exponent | `Int`; `Uint` above 2^63 - 1 |
//! | any other number | `F64` |
//! | `{"$counter": n}` | a counter, whose increments add up |
//! | `{"$time": ms}` | a timestamp, milliseconds since 1970 |
//! | `{"$bytes": "..."}` | bytes, base64 with padding |
//! | `{"$string": "..."}` | a string that is replaced as a whole |
//! | `{"$f64": "nan"}`, `"inf"`, `"-inf"` | the numbers JSON has no form for |
//! | `{"$$name": v}` | the key `$name`: a key that begins with `$` has one `$` more in JSON |
//!
//! Reading gives the same forms, so that writing back what was read changes nothing. A value of a type this version does
//! not know reads as `{"$unknown": {"type": n, "bytes": "..."}}`. A table, an old kind of object that Automerge itself
//! cannot open any more once it has loaded the document, reads as an empty object. Of conflicting values the one Automerge lets win is read.
//!
//! # Writing over what is there
//! Writing is reconciling: only what differs is changed, so that edits made elsewhere to the rest survive a merge.
//! Maps are compared key by key, lists by their longest common subsequence, texts character by character; a counter
//! is incremented by the difference. An equal value makes no operation at all. `Int`, `Uint` of one value are equal.

use std::collections::BTreeMap;

use automerge::transaction::Transactable;
use automerge::{AutomergeError, ChangeHash, ObjId, ObjType, Prop, ReadDoc, ScalarValue, Value as DocumentValue};
use data_encoding::BASE64;
use serde_json::Value;

use super::lists::{Gap, gaps};

/// How deep values may be nested, in JSON and in a document that is read: as deep as `serde_json` reads.
pub const DEPTH_MAX: usize = 128;

/// Why a JSON value cannot be written, or a document not be read as JSON.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// Values are nested too deep.
    #[error("values are nested more than {DEPTH_MAX} deep")]
    TooDeep,
    /// A key begins with one `$` and is none of the special forms.
    #[error("{0:?} is not a special form; write a key that begins with $ as ${0}")]
    UnknownForm(String),
    /// A special form has other keys beside it.
    #[error("a special form must be the only key of its object: {0:?} has others beside it")]
    NotAlone(String),
    /// A special form holds the wrong kind of value.
    #[error("{form} needs {expected}")]
    Form {
        /// Its key.
        form: &'static str,
        /// What must stand there.
        expected: &'static str,
    },
    /// The document refuses the write or the read.
    #[error("automerge: {0}")]
    Automerge(#[from] AutomergeError),
}

/// A value of a document, away from the document: what JSON is turned into before anything is written.
#[derive(Debug, Clone)]
pub(super) enum Node {
    Map(BTreeMap<String, Self>),
    List(Vec<Self>),
    Text(String),
    Scalar(ScalarValue),
}

impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Map(a), Self::Map(b)) => a == b,
            (Self::List(a), Self::List(b)) => a == b,
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::Scalar(a), Self::Scalar(b)) => same_scalar(a, b),
            _ => false,
        }
    }
}

/// Whether writing `b` over `a` would change nothing that can be read.
fn same_scalar(a: &ScalarValue, b: &ScalarValue) -> bool {
    match (a, b) {
        (ScalarValue::Int(a), ScalarValue::Uint(b)) | (ScalarValue::Uint(b), ScalarValue::Int(a)) => {
            u64::try_from(*a) == Ok(*b)
        }
        // Any two NaNs are one value in JSON; zero and minus zero are two.
        (ScalarValue::F64(a), ScalarValue::F64(b)) => a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()),
        (a, b) => a == b,
    }
}

impl Node {
    /// Turns JSON into a value of a document.
    pub(super) fn parse(json: &Value) -> Result<Self, JsonError> {
        Self::parse_at(json, 0)
    }

    fn parse_at(json: &Value, depth: usize) -> Result<Self, JsonError> {
        if depth > DEPTH_MAX {
            return Err(JsonError::TooDeep);
        }
        Ok(match json {
            Value::Null => Self::Scalar(ScalarValue::Null),
            Value::Bool(value) => Self::Scalar(ScalarValue::Boolean(*value)),
            Value::Number(number) => Self::Scalar(match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(int), _, _) => ScalarValue::Int(int),
                (_, Some(uint), _) => ScalarValue::Uint(uint),
                (_, _, float) => ScalarValue::F64(float.unwrap_or(f64::NAN)),
            }),
            Value::String(text) => Self::Text(text.clone()),
            Value::Array(items) => {
                Self::List(items.iter().map(|item| Self::parse_at(item, depth + 1)).collect::<Result<_, _>>()?)
            }
            Value::Object(members) => match members.keys().find(|key| is_form(key)) {
                Some(form) if members.len() > 1 => return Err(JsonError::NotAlone(form.clone())),
                Some(form) => Self::Scalar(parse_form(form, &members[form])?),
                None => {
                    let mut map = BTreeMap::new();
                    for (key, value) in members {
                        map.insert(unescaped(key).to_owned(), Self::parse_at(value, depth + 1)?);
                    }
                    Self::Map(map)
                }
            },
        })
    }

    /// Reads an object of a document, as it is now or was at `heads`.
    pub(super) fn read<D: ReadDoc>(
        document: &D,
        object: &ObjId,
        heads: Option<&[ChangeHash]>,
    ) -> Result<Self, JsonError> {
        Self::read_at(document, object, document.object_type(object)?, heads, 0)
    }

    fn read_at<D: ReadDoc>(
        document: &D,
        object: &ObjId,
        kind: ObjType,
        heads: Option<&[ChangeHash]>,
        depth: usize,
    ) -> Result<Self, JsonError> {
        if depth > DEPTH_MAX {
            return Err(JsonError::TooDeep);
        }
        let value = |value: DocumentValue<'_>, id: &ObjId| match value {
            DocumentValue::Object(kind) => Self::read_at(document, id, kind, heads, depth + 1),
            DocumentValue::Scalar(scalar) => Ok(Self::Scalar(scalar.into_owned())),
        };
        Ok(match kind {
            ObjType::Table => Self::Map(BTreeMap::new()),
            ObjType::Map => {
                let range = match heads {
                    None => document.map_range(object, ..),
                    Some(heads) => document.map_range_at(object, .., heads),
                };
                let mut map = BTreeMap::new();
                for item in range {
                    let id = item.id();
                    map.insert(item.key.into_owned(), value(item.value.into_value(), &id)?);
                }
                Self::Map(map)
            }
            ObjType::List => {
                let range = match heads {
                    None => document.list_range(object, ..),
                    Some(heads) => document.list_range_at(object, .., heads),
                };
                let mut list = vec![];
                for item in range {
                    let id = item.id();
                    list.push(value(item.value.into_value(), &id)?);
                }
                Self::List(list)
            }
            ObjType::Text => Self::Text(match heads {
                None => document.text(object)?,
                Some(heads) => document.text_at(object, heads)?,
            }),
        })
    }

    /// The JSON form of the value. The keys of objects are in ascending order of their names in the document, so equal
    /// values give equal text.
    pub(super) fn into_json(self) -> Value {
        match self {
            Self::Map(map) => {
                Value::Object(map.into_iter().map(|(key, value)| (escaped(key), value.into_json())).collect())
            }
            Self::List(list) => Value::Array(list.into_iter().map(Self::into_json).collect()),
            Self::Text(text) => Value::String(text),
            Self::Scalar(scalar) => scalar_json(scalar),
        }
    }
}

pub(super) fn scalar_json(scalar: ScalarValue) -> Value {
    let form = |name: &str, value: Value| Value::Object([(name.to_owned(), value)].into_iter().collect());
    match scalar {
        ScalarValue::Null => Value::Null,
        ScalarValue::Boolean(value) => value.into(),
        ScalarValue::Int(value) => value.into(),
        ScalarValue::Uint(value) => value.into(),
        ScalarValue::F64(value) => match serde_json::Number::from_f64(value) {
            Some(number) => Value::Number(number),
            None if value.is_nan() => form("$f64", "nan".into()),
            None => form("$f64", if value > 0.0 { "inf" } else { "-inf" }.into()),
        },
        ScalarValue::Counter(counter) => form("$counter", i64::from(counter).into()),
        ScalarValue::Timestamp(milliseconds) => form("$time", milliseconds.into()),
        ScalarValue::Bytes(bytes) => form("$bytes", BASE64.encode(&bytes).into()),
        ScalarValue::Str(string) => form("$string", string.as_str().into()),
        ScalarValue::Unknown { type_code, bytes } => {
            form("$unknown", serde_json::json!({ "type": type_code, "bytes": BASE64.encode(&bytes) }))
        }
    }
}

/// Whether a key is, or claims to be, a special form.
fn is_form(key: &str) -> bool {
    key.starts_with('$') && !key.starts_with("$$")
}

fn unescaped(key: &str) -> &str {
    if key.starts_with("$$") { &key[1..] } else { key }
}

fn escaped(key: String) -> String {
    if key.starts_with('$') { format!("${key}") } else { key }
}

fn parse_form(form: &str, value: &Value) -> Result<ScalarValue, JsonError> {
    let wrong = |form, expected| JsonError::Form { form, expected };
    match form {
        "$counter" => value
            .as_i64()
            .map(ScalarValue::counter)
            .ok_or_else(|| wrong("$counter", "an integer between -2^63 and 2^63 - 1")),
        "$time" => value
            .as_i64()
            .map(ScalarValue::Timestamp)
            .ok_or_else(|| wrong("$time", "an integer, the milliseconds since 1970")),
        "$bytes" => value
            .as_str()
            .and_then(|text| BASE64.decode(text.as_bytes()).ok())
            .map(ScalarValue::Bytes)
            .ok_or_else(|| wrong("$bytes", "a string of base64 with padding")),
        "$string" => {
            value.as_str().map(|text| ScalarValue::Str(text.into())).ok_or_else(|| wrong("$string", "a string"))
        }
        "$f64" => match value.as_str() {
            Some("nan") => Ok(ScalarValue::F64(f64::NAN)),
            Some("inf") => Ok(ScalarValue::F64(f64::INFINITY)),
            Some("-inf") => Ok(ScalarValue::F64(f64::NEG_INFINITY)),
            _ => Err(wrong("$f64", "\"nan\", \"inf\" or \"-inf\"")),
        },
        // Only so that a document which holds such a value can be written back unchanged.
        "$unknown" => parse_unknown(value).ok_or_else(|| wrong("$unknown", "what was read, unchanged")),
        _ => Err(JsonError::UnknownForm(form.to_owned())),
    }
}

fn parse_unknown(value: &Value) -> Option<ScalarValue> {
    let members = value.as_object().filter(|members| members.len() == 2)?;
    let type_code = u8::try_from(members.get("type")?.as_u64()?).ok()?;
    // Types 0 to 9 are known; under those numbers the bytes would become another value. Above 15 there are none.
    let bytes = BASE64.decode(members.get("bytes")?.as_str()?.as_bytes()).ok()?;
    (10..16).contains(&type_code).then_some(ScalarValue::Unknown { type_code, bytes })
}

/// Writes `node` at `prop` of the object `parent`, changing only what differs.
///
/// In a list, `prop` must be an index within it.
pub(super) fn write<T: Transactable>(tx: &mut T, parent: &ObjId, prop: Prop, node: &Node) -> Result<(), JsonError> {
    let old = tx.get(parent, prop.clone())?.map(|(value, id)| (value.into_owned(), id));
    match (old, node) {
        (Some((DocumentValue::Object(ObjType::Table), _)), Node::Map(map)) if map.is_empty() => Ok(()),
        (Some((DocumentValue::Object(kind), id)), node) if fits(kind, node) => reconcile(tx, &id, node),
        (Some((DocumentValue::Scalar(old), _)), Node::Scalar(new)) => {
            if let (ScalarValue::Counter(old), ScalarValue::Counter(new)) = (&*old, new) {
                let (old, new) = (i64::from(old), i64::from(new));
                match new.checked_sub(old) {
                    Some(0) => {}
                    Some(by) => tx.increment(parent, prop, by)?,
                    None => tx.put(parent, prop, ScalarValue::counter(new))?,
                }
            } else if !same_scalar(&old, new) {
                tx.put(parent, prop, new.clone())?;
            }
            Ok(())
        }
        (_, Node::Scalar(new)) => Ok(tx.put(parent, prop, new.clone())?),
        (_, node) => {
            let object = tx.put_object(parent, prop, kind_of(node))?;
            fill(tx, &object, node)
        }
    }
}

/// Inserts `node` as a new element of a list.
pub(super) fn insert<T: Transactable>(tx: &mut T, list: &ObjId, index: usize, node: &Node) -> Result<(), JsonError> {
    match node {
        Node::Scalar(value) => Ok(tx.insert(list, index, value.clone())?),
        node => {
            let object = tx.insert_object(list, index, kind_of(node))?;
            fill(tx, &object, node)
        }
    }
}

/// Fills a new, empty object. Depth first and keys ascending: this order decides the hash of a genesis change.
fn fill<T: Transactable>(tx: &mut T, object: &ObjId, node: &Node) -> Result<(), JsonError> {
    match node {
        Node::Map(map) => {
            for (key, value) in map {
                match value {
                    Node::Scalar(value) => tx.put(object, key.as_str(), value.clone())?,
                    node => {
                        let child = tx.put_object(object, key.as_str(), kind_of(node))?;
                        fill(tx, &child, node)?;
                    }
                }
            }
            Ok(())
        }
        Node::List(list) => list.iter().enumerate().try_for_each(|(index, node)| insert(tx, object, index, node)),
        Node::Text(text) => Ok(tx.splice_text(object, 0, 0, text)?),
        Node::Scalar(_) => Ok(()),
    }
}

/// Makes an object equal to `node`, which must be of its kind; other kinds leave it as it is.
pub(super) fn reconcile<T: Transactable>(tx: &mut T, object: &ObjId, node: &Node) -> Result<(), JsonError> {
    match node {
        Node::Map(map) => {
            let gone: Vec<String> = tx.keys(object).filter(|key| !map.contains_key(key)).collect();
            for key in gone {
                tx.delete(object, key)?;
            }
            map.iter().try_for_each(|(key, node)| write(tx, object, Prop::Map(key.clone()), node))
        }
        Node::List(list) => reconcile_list(tx, object, list),
        Node::Text(text) => reconcile_text(tx, object, text),
        Node::Scalar(_) => Ok(()),
    }
}

/// From the back, so that the indexes in front stay what they were.
fn reconcile_list<T: Transactable>(tx: &mut T, object: &ObjId, new: &[Node]) -> Result<(), JsonError> {
    let Node::List(old) = Node::read(tx, object, None)? else { return Ok(()) };
    for Gap { old: before, new: after } in gaps(&old, new).into_iter().rev() {
        let paired = before.len().min(after.len());
        for index in (before.start + paired..before.end).rev() {
            tx.delete(object, index)?;
        }
        for (offset, node) in new[after.start + paired..after.end].iter().enumerate() {
            insert(tx, object, before.start + paired + offset, node)?;
        }
        for offset in (0..paired).rev() {
            write(tx, object, Prop::Seq(before.start + offset), &new[after.start + offset])?;
        }
    }
    Ok(())
}

/// How much the differing parts of two texts, multiplied, may measure to be compared character by character.
///
/// The comparison may take time in proportion to that product. Beyond it the differing part is replaced as a whole.
const TEXT_DIFF_MAX: usize = 4_000_000;

fn reconcile_text<T: Transactable>(tx: &mut T, object: &ObjId, new: &str) -> Result<(), JsonError> {
    let old = tx.text(object)?;
    if old == new {
        return Ok(());
    }
    let prefix = old.chars().zip(new.chars()).take_while(|(a, b)| a == b).count();
    let (old_count, new_count) = (old.chars().count(), new.chars().count());
    let both = old_count.min(new_count) - prefix;
    let suffix = old.chars().rev().zip(new.chars().rev()).take(both).take_while(|(a, b)| a == b).count();
    let (removed, added) = (old_count - prefix - suffix, new_count - prefix - suffix);
    if removed == 0 || added == 0 || removed.saturating_mul(added) > TEXT_DIFF_MAX {
        let text: String = new.chars().skip(prefix).take(added).collect();
        // The indexes count code points, as this document was made to; a length fits an isize.
        return Ok(tx.splice_text(object, prefix, isize::try_from(removed).unwrap_or(isize::MAX), &text)?);
    }
    Ok(tx.update_text(object, new)?)
}

fn kind_of(node: &Node) -> ObjType {
    match node {
        Node::List(_) => ObjType::List,
        Node::Text(_) => ObjType::Text,
        Node::Map(_) | Node::Scalar(_) => ObjType::Map,
    }
}

fn fits(kind: ObjType, node: &Node) -> bool {
    !matches!(node, Node::Scalar(_)) && kind == kind_of(node)
}

#[cfg(test)]
mod tests {
    use automerge::{Automerge, ROOT};
    use serde_json::json;

    use super::*;

    /// Writes one value after the other over the same document and returns how many operations each write made.
    fn written(values: &[Value]) -> (Automerge, Vec<usize>) {
        let mut document = Automerge::new();
        let counts = values
            .iter()
            .map(|value| {
                let mut tx = document.transaction();
                reconcile(&mut tx, &ROOT, &Node::parse(value).unwrap()).unwrap();
                let count = tx.pending_ops();
                tx.commit();
                assert_eq!(&Node::read(&document, &ROOT, None).unwrap().into_json(), value);
                count
            })
            .collect();
        (document, counts)
    }

    #[test]
    fn every_form_is_read_as_it_was_written_and_written_again_without_an_operation() {
        let value = json!({
            "null": null, "bool": true, "int": -5, "max": i64::MAX, "uint": u64::MAX, "float": 1.0, "small": 1e-300,
            "minus zero": -0.0, "text": "日本", "empty": "", "list": [[], {}, [1, [2]]],
            "counter": {"$counter": -3}, "time": {"$time": 1_700_000_000_123_i64}, "bytes": {"$bytes": "AAEC/w=="},
            "string": {"$string": "whole"}, "nan": {"$f64": "nan"}, "inf": {"$f64": "inf"}, "-inf": {"$f64": "-inf"},
            "$$counter": 1, "$$$x": {"$$": 2}, "unknown": {"$unknown": {"type": 12, "bytes": "AQI="}}, "": 0
        });
        assert_eq!(written(&[value.clone(), value.clone()]).1[1], 0);
        let (document, _) = written(&[value]);
        let kind = |key: &str| document.get(ROOT, key).unwrap().unwrap().0.into_owned();
        assert_eq!(kind("text"), DocumentValue::Object(ObjType::Text));
        assert_eq!(kind("int"), ScalarValue::Int(-5).into());
        assert_eq!(kind("max"), ScalarValue::Int(i64::MAX).into());
        assert_eq!(kind("uint"), ScalarValue::Uint(u64::MAX).into());
        assert_eq!(kind("float"), ScalarValue::F64(1.0).into());
        assert_eq!(kind("string"), ScalarValue::Str("whole".into()).into());
        assert_eq!(kind("bytes"), ScalarValue::Bytes(vec![0, 1, 2, 255]).into());
        assert_eq!(kind("$counter"), ScalarValue::Int(1).into());
        assert_eq!(kind("$$x"), DocumentValue::Object(ObjType::Map));
    }

    #[test]
    fn only_what_differs_is_written() {
        let list = |items: Value| json!({ "list": items });
        for (before, after, ops) in [
            (json!({"a": 1, "b": 2}), json!({"a": 1, "b": 3}), 1),
            (json!({"a": 1, "b": 2}), json!({"b": 2}), 1),
            (json!({"t": "hello world"}), json!({"t": "hello, world"}), 1),
            (json!({"t": "abc def"}), json!({"t": "aXc dYf"}), 4),
            (json!({"c": {"$counter": 1}}), json!({"c": {"$counter": 5}}), 1),
            (json!({"c": {"$counter": 1}}), json!({"c": 1}), 1),
            (json!({"f": 1.0}), json!({"f": 1}), 1),
            (json!({"m": {"x": {"y": 1, "z": 2}}}), json!({"m": {"x": {"y": 1, "z": 3}}}), 1),
            (json!({"m": {"x": 1}}), json!({"m": [1]}), 2),
            (list(json!([1, 2, 3, 4])), list(json!([1, 3, 4])), 1),
            (list(json!([1, 2, 3])), list(json!([0, 1, 2, 3])), 1),
            (list(json!([1, 2, 3, 4, 5])), list(json!([1, 9, 3, 5, 6])), 3),
            (
                list(json!([{"id": 1, "n": 1}, {"id": 2, "n": 1}])),
                list(json!([{"id": 1, "n": 1}, {"id": 2, "n": 2}])),
                1,
            ),
            (list(json!(["a", "b"])), list(json!(["a", "bc"])), 1),
        ] {
            assert_eq!(written(&[before.clone(), after.clone()]).1[1], ops, "{before} -> {after}");
        }
    }

    #[test]
    fn numbers_equal_in_json_are_not_written_again() {
        let mut document = Automerge::new();
        let mut tx = document.transaction();
        tx.put(ROOT, "n", ScalarValue::Uint(5)).unwrap();
        let before = tx.pending_ops();
        write(&mut tx, &ROOT, "n".into(), &Node::parse(&json!(5)).unwrap()).unwrap();
        assert_eq!(tx.pending_ops(), before);
    }

    #[test]
    fn long_texts_that_share_nothing_are_replaced_without_comparing() {
        let (a, b) = ("ab".repeat(2000), "cd".repeat(2000));
        written(&[json!({"t": format!("head {a} tail")}), json!({"t": format!("head {b} tail")})]);
    }

    #[test]
    fn wrong_forms_are_refused_with_their_name() {
        for (value, reason) in [
            (json!({"$what": 1}), "\"$what\" is not a special form; write a key that begins with $ as $$what"),
            (json!({"$counter": 1, "x": 2}), "must be the only key"),
            (json!({"$counter": 1.5}), "$counter needs an integer"),
            (json!({"$counter": u64::MAX}), "$counter needs an integer"),
            (json!({"$time": "now"}), "$time needs"),
            (json!({"$bytes": "A"}), "$bytes needs"),
            (json!({"$string": 1}), "$string needs"),
            (json!({"$f64": 1.0}), "$f64 needs"),
            (json!({"$unknown": {"type": 1, "bytes": ""}}), "$unknown needs"),
        ] {
            let error = Node::parse(&json!([value])).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn nesting_is_limited_both_ways() {
        let nested = |depth| (0..depth).fold(json!(1), |inner, _| json!([inner]));
        assert!(Node::parse(&nested(DEPTH_MAX)).is_ok());
        assert!(matches!(Node::parse(&nested(DEPTH_MAX + 1)), Err(JsonError::TooDeep)));
        let mut document = Automerge::new();
        let mut tx = document.transaction();
        let mut object = ROOT;
        for _ in 0..=DEPTH_MAX {
            object = tx.put_object(&object, "x", ObjType::Map).unwrap();
        }
        tx.commit();
        assert!(matches!(Node::read(&document, &ROOT, None), Err(JsonError::TooDeep)));
    }
}
