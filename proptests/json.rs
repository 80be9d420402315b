//! JSON written into a document reads back, over whatever was there, and merges with what others write.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use serde_json::{Value, json};
use tidelog::document::{Change, EditOptions, View, ViewError};
use tidelog::id::ActorId;

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0..5_i64).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter("JSON has no such number", |n| n.is_finite()).prop_map(Value::from),
        "[a-cß日👍$\u{301}]{0,12}".prop_map(Value::from),
        (-5..5_i64).prop_map(|n| json!({ "$counter": n })),
        any::<i64>().prop_map(|n| json!({ "$time": n })),
        any::<Vec<u8>>().prop_map(|bytes| json!({ "$bytes": data_encoding::BASE64.encode(&bytes) })),
        "[a-c]{0,3}".prop_map(|text| json!({ "$string": text })),
        prop::sample::select(vec!["nan", "inf", "-inf"]).prop_map(|name| json!({ "$f64": name })),
    ]
}

fn any_value() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(4, 40, 6, |inner| {
        prop_oneof![prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from), object(inner),]
    })
}

/// Few keys, so that one value meets another.
fn object(inner: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    let key = prop::sample::select(vec!["a", "b", "c", "", "a.b", "$$", "$$counter", "ß/~"]);
    prop::collection::btree_map(key, inner, 0..5)
        .prop_map(|map| Value::Object(map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()))
}

fn put(view: &mut View, value: &Value) -> Option<Change> {
    let options = EditOptions { actor: ActorId::random(), time: 0, message: None };
    view.edit::<_, ViewError>(options, |edit| edit.put("", value)).unwrap().1
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_over_anything_is_what_is_read(values in prop::collection::vec(object(any_value()), 1..5)) {
        let mut view = View::new();
        let mut moments = vec![];
        let mut changes = vec![];
        for value in &values {
            changes.extend(put(&mut view, value));
            prop_assert_eq!(&view.to_json().unwrap(), value);
            prop_assert!(put(&mut view, value).is_none(), "the same again is no change");
            moments.push(view.heads());
        }
        for (heads, value) in moments.iter().zip(&values) {
            prop_assert_eq!(&view.to_json_at(heads).unwrap(), value);
        }
        let loaded = View::load(&view.save().unwrap()).unwrap();
        prop_assert_eq!(loaded.to_json().unwrap(), view.to_json().unwrap());
        let mut other = View::new();
        other.apply(&changes).unwrap();
        prop_assert_eq!(other.to_json().unwrap(), view.to_json().unwrap());
    }

    #[test]
    fn two_who_write_at_one_time_converge(base in object(any_value()), one in object(any_value()), two in object(any_value())) {
        let mut left = View::new();
        put(&mut left, &base);
        let mut right = View::load(&left.save().unwrap()).unwrap();
        let (mine, theirs) = (put(&mut left, &one), put(&mut right, &two));
        left.apply(theirs.as_slice()).unwrap();
        right.apply(mine.as_slice()).unwrap();
        prop_assert_eq!(left.heads(), right.heads());
        prop_assert_eq!(left.to_json().unwrap(), right.to_json().unwrap());
        // What only one of them changed is as that one left it.
        let merged = left.to_json().unwrap();
        for key in ["a", "b", "c", "", "a.b", "$$", "$$counter", "ß/~"] {
            if base.get(key) == two.get(key) {
                prop_assert_eq!(merged.get(key), one.get(key));
            }
        }
    }
}
