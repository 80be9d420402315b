//! The first change of a named document with an initial value.

use automerge::transaction::CommitOptions;
use automerge::{Automerge, ROOT};

use super::json::{self, Node};
use super::{Change, ViewError};
use crate::id::{ActorId, CollectionName};

/// Makes the change that gives the document called `name` in `collection` its initial value.
///
/// The change depends on nothing but its arguments: time 0, no message, and an author derived from all three. Two
/// replicas that never met and begin with the same value make the same change; begun with different values, the
/// document has both, and they merge as conflicts do. Author and change are thus made by anybody who knows the value,
/// and prove nothing about who made them.
///
/// # Errors
/// [`ViewError::Json`] when `json` is no value a document can have, [`ViewError::RootNotMap`] when it is not an object.
pub fn genesis(collection: &CollectionName, name: &str, json: &serde_json::Value) -> Result<Change, ViewError> {
    let node = Node::parse(json)?;
    if !matches!(node, Node::Map(_)) {
        return Err(ViewError::RootNotMap);
    }
    let mut hasher = blake3::Hasher::new_derive_key("tidelog 2026-11 genesis author");
    for part in [collection.as_str(), name, &canonical(&node)] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let actor = ActorId::new(&hasher.finalize().as_bytes()[..16]).ok_or(ViewError::RootNotMap)?;
    let mut document = Automerge::new().with_actor(automerge::ActorId::from(actor.as_bytes()));
    let mut tx = document.transaction();
    json::reconcile(&mut tx, &ROOT, &node)?;
    if tx.commit_with(CommitOptions::default().with_time(0)).0.is_none() {
        document.empty_commit(CommitOptions::default().with_time(0));
    }
    let change = document.get_last_local_change().ok_or_else(|| ViewError::Automerge("no change was made".into()))?;
    Ok(Change::from_automerge(change)?)
}

/// The value as JSON text that is the same for equal values: keys ascending by their names, no spaces.
fn canonical(node: &Node) -> String {
    let mut text = String::new();
    write_canonical(node, &mut text);
    text
}

fn write_canonical(node: &Node, text: &mut String) {
    match node {
        Node::Map(map) => {
            text.push('{');
            for (n, (key, value)) in map.iter().enumerate() {
                if n > 0 {
                    text.push(',');
                }
                let dollar = if key.starts_with('$') { "$" } else { "" };
                text.push_str(&serde_json::Value::from(format!("{dollar}{key}")).to_string());
                text.push(':');
                write_canonical(value, text);
            }
            text.push('}');
        }
        Node::List(list) => {
            text.push('[');
            for (n, value) in list.iter().enumerate() {
                if n > 0 {
                    text.push(',');
                }
                write_canonical(value, text);
            }
            text.push(']');
        }
        leaf => text.push_str(&leaf.clone().into_json().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::document::View;

    fn collection() -> CollectionName {
        CollectionName::new("notes").unwrap()
    }

    #[test]
    fn equal_values_make_one_change_on_any_replica_and_version() {
        let one =
            genesis(&collection(), "config", &json!({"b": [1, {"$counter": 2}], "a": "text", "$$x": 1.0})).unwrap();
        let other = serde_json::from_str(r#"{"$$x":1.0,"a":"text","b":[1,{"$counter":2}]}"#).unwrap();
        let two = genesis(&collection(), "config", &other).unwrap();
        assert_eq!(one.bytes(), two.bytes());
        assert_eq!((one.seq(), one.time(), one.message(), one.deps().len()), (1, 0, None, 0));
        // A promise: were it another hash tomorrow, replicas of two versions would begin with conflicting roots.
        assert_eq!(one.hash().to_string(), "ceace036509921f962d7a5e873045e9e120021a0a509b3e5ba9d93fda8e1730a");
    }

    #[test]
    fn another_value_name_or_collection_is_another_author() {
        let base = genesis(&collection(), "config", &json!({"a": 1})).unwrap();
        let others = [
            genesis(&collection(), "config", &json!({"a": 1.0})).unwrap(),
            genesis(&collection(), "confi", &json!({"a": 1})).unwrap(),
            genesis(&CollectionName::new("note").unwrap(), "sconfig", &json!({"a": 1})).unwrap(),
        ];
        for other in others {
            assert_ne!(base.actor(), other.actor());
        }
    }

    #[test]
    fn different_beginnings_merge_and_the_empty_one_is_a_change_too() {
        let changes =
            [json!({"a": 1}), json!({"b": 2}), json!({})].map(|json| genesis(&collection(), "x", &json).unwrap());
        let mut view = View::new();
        view.apply(&changes).unwrap();
        assert_eq!(view.to_json().unwrap(), json!({"a": 1, "b": 2}));
        assert_eq!(view.heads().as_slice().len(), 3);
        assert!(matches!(genesis(&collection(), "x", &json!([1])), Err(ViewError::RootNotMap)));
    }
}
