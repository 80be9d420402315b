//! Values from JSON, in the form in which documents are written as JSON.

use std::collections::BTreeMap;
use std::sync::Arc;

use data_encoding::BASE64;
use serde_json::Value as Json;

use super::value::Value;

/// How deep JSON is read; what lies deeper reads as null. A document's own JSON does not go beyond it.
const JSON_DEPTH_MAX: usize = 130;

impl Value {
    /// A value from JSON, plain or as documents are written: `{"$counter": n}` is an integer, `{"$time": ms}` a timestamp,
    /// `{"$bytes": base64}` bytes, `{"$string": s}` text, `{"$f64": "nan"}` a number, and a key that begins with `$$` has
    /// one `$` less. An object that only looks like one of these is a map with that key.
    #[must_use]
    pub fn from_json(json: &Json) -> Self {
        read(json, 0)
    }
}

fn read(json: &Json, depth: usize) -> Value {
    if depth > JSON_DEPTH_MAX {
        return Value::Null;
    }
    match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(int), _) => Value::Int(int),
            (None, Some(uint)) => Value::Uint(uint),
            (None, None) => Value::Double(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::text(text),
        Json::Array(items) => Value::List(items.iter().map(|item| read(item, depth + 1)).collect()),
        Json::Object(members) => {
            if let (1, Some((form, inner))) = (members.len(), members.iter().next())
                && let Some(value) = read_form(form, inner)
            {
                return value;
            }
            let member = |(key, value): (&String, &Json)| {
                let name = if key.starts_with("$$") { &key[1..] } else { key };
                (Arc::from(name), read(value, depth + 1))
            };
            Value::Map(Arc::new(members.iter().map(member).collect::<BTreeMap<_, _>>()))
        }
    }
}

fn read_form(form: &str, inner: &Json) -> Option<Value> {
    match form {
        "$counter" => inner.as_i64().map(Value::Int),
        "$time" => inner.as_i64().map(Value::Timestamp),
        "$string" => inner.as_str().map(Value::text),
        "$bytes" => Some(Value::Bytes(BASE64.decode(inner.as_str()?.as_bytes()).ok()?.into())),
        "$f64" => match inner.as_str()? {
            "nan" => Some(Value::Double(f64::NAN)),
            "inf" => Some(Value::Double(f64::INFINITY)),
            "-inf" => Some(Value::Double(f64::NEG_INFINITY)),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_forms_of_documents_are_read() {
        let read = |json: Json| Value::from_json(&json);
        assert_eq!(read(json!({ "$counter": 3 })), Value::Int(3));
        assert_eq!(read(json!({ "$time": 7 })), Value::Timestamp(7));
        assert_eq!(read(json!({ "$string": "a" })), Value::text("a"));
        assert_eq!(read(json!({ "$bytes": "AQI=" })), Value::Bytes([1, 2].into()));
        assert!(matches!(read(json!({ "$f64": "nan" })), Value::Double(value) if value.is_nan()));
        assert_eq!(read(json!({ "$$time": 7 })), Value::map([("$time", Value::Int(7))]));
        assert_eq!(read(json!({ "$time": "no" })), Value::map([("$time", Value::text("no"))]));
        assert_eq!(read(json!({ "$time": 1, "a": 2 })), Value::map([("$time", Value::Int(1)), ("a", Value::Int(2))]));
        assert_eq!(read(json!(u64::MAX)), Value::Uint(u64::MAX));
        assert_eq!(read(json!([1.5, null])), Value::list(vec![Value::Double(1.5), Value::Null]));
    }

    #[test]
    fn what_lies_too_deep_is_null_and_does_no_harm() {
        let deep = (0..1000).fold(json!(1), |inner, _| json!([inner]));
        let mut value = &Value::from_json(&deep);
        let mut depth = 0;
        while let Value::List(items) = value {
            value = &items[0];
            depth += 1;
        }
        assert_eq!((value, depth), (&Value::Null, JSON_DEPTH_MAX + 1));
    }
}
