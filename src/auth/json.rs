//! JSON of strangers: bounded in depth and number while it is read, each name once.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// How much is read.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    /// How deeply it may be nested; the object itself is 1.
    pub(super) depth: usize,
    /// Values in it, over all depths.
    pub(super) values: usize,
}

/// Reads an object. Whoever names something twice is refused: readers differ in which one they take.
///
/// # Errors
/// What is wrong, in words that hold nothing of the input.
pub(super) fn object(bytes: &[u8], bounds: Bounds) -> Result<Map<String, Value>, &'static str> {
    match value(bytes, bounds)? {
        Value::Object(map) => Ok(map),
        _ => Err("it is not a JSON object"),
    }
}

/// Reads a value; as [`object`].
pub(super) fn value(bytes: &[u8], bounds: Bounds) -> Result<Value, &'static str> {
    let state = State { left: Cell::new(bounds.values + 1), fault: Cell::new("it is not JSON") };
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let seed = Seed { state: &state, depth: bounds.depth };
    let value = seed.deserialize(&mut reader).map_err(|_| state.fault.get())?;
    reader.end().map_err(|_| "there is more after its end")?;
    Ok(value)
}

struct State {
    left: Cell<usize>,
    fault: Cell<&'static str>,
}

impl State {
    fn fail<E: Error>(&self, fault: &'static str) -> E {
        self.fault.set(fault);
        E::custom(fault)
    }
}

#[derive(Clone, Copy)]
struct Seed<'a> {
    state: &'a State,
    /// Levels that may still be opened.
    depth: usize,
}

impl Seed<'_> {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        match self.depth.checked_sub(1) {
            Some(depth) => Ok(Self { depth, ..self }),
            None => Err(self.state.fail("it is nested too deeply")),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self.state.left.get().checked_sub(1) {
            Some(left) => self.state.left.set(left),
            None => return Err(self.state.fail("it has too many values")),
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| self.state.fail("a number in it is too large"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut map = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(inner)?;
            if map.insert(name, value).is_some() {
                return Err(self.state.fail("it names something twice"));
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const BOUNDS: Bounds = Bounds { depth: 3, values: 8 };

    #[test]
    fn what_is_within_the_bounds_reads_as_it_is() {
        let value = json!({ "a": [1, -2, 1.5, null, true], "b": { "c": "ü" } });
        assert_eq!(Value::Object(object(value.to_string().as_bytes(), BOUNDS).unwrap()), value);
    }

    #[test]
    fn what_is_not_is_refused_with_its_reason() {
        for (text, why) in [
            ("", "it is not JSON"),
            ("{\"a\":1", "it is not JSON"),
            ("[1]", "it is not a JSON object"),
            ("{} {}", "there is more after its end"),
            (r#"{"a":1,"a":2}"#, "it names something twice"),
            (r#"{"a":{"a":1,"b":2,"a":3}}"#, "it names something twice"),
            (r#"{"a":[[[1]]]}"#, "it is nested too deeply"),
            (r#"{"a":[1,2,3,4,5,6,7,8]}"#, "it has too many values"),
        ] {
            assert_eq!(object(text.as_bytes(), BOUNDS).unwrap_err(), why, "{text}");
        }
        let deep = "[".repeat(100_000);
        assert!(value(deep.as_bytes(), BOUNDS).is_err());
    }
}
