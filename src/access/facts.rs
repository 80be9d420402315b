//! What rules are shown of documents: the fields they look at, taken out while the document is at hand.

use serde_json::Value as Json;

use super::subject::Subject;
use crate::document::{Path, Values, ViewError};
use crate::error::Error;
use crate::id::{DocumentId, Lsn};
use crate::rules::{Data, Documents, Fields, Value};

/// Fields of a document, by their paths.
#[derive(Debug, Default)]
pub(super) struct Extract(Vec<(Vec<String>, Option<Json>)>);

impl Extract {
    /// Takes out what `fields` names.
    ///
    /// # Errors
    /// As [`Values::json`].
    pub(super) fn of(values: &dyn Values, fields: &Fields) -> Result<Self, ViewError> {
        let take = |path: &[String]| {
            let found = values.json(&path.iter().cloned().collect::<Path>())?;
            Ok((path.to_vec(), found))
        };
        Ok(Self(match fields {
            Fields::None => Vec::new(),
            Fields::All => vec![take(&[])?],
            Fields::Some(paths) => paths.iter().map(|path| take(path)).collect::<Result<_, ViewError>>()?,
        }))
    }
}

impl Data for Extract {
    fn get(&self, path: &[&str]) -> Option<Value> {
        let leads = |at: &[String]| at.len() <= path.len() && at.iter().zip(path).all(|(one, other)| one == other);
        let (at, found) = self.0.iter().find(|(at, _)| leads(at))?;
        lookup(found.as_ref()?, &path[at.len()..])
    }
}

/// A document's value at hand as JSON.
pub(super) struct Whole<'a>(pub(super) &'a Json);

impl Data for Whole<'_> {
    fn get(&self, path: &[&str]) -> Option<Value> {
        lookup(self.0, path)
    }
}

fn lookup(value: &Json, path: &[&str]) -> Option<Value> {
    let mut value = value;
    for step in path {
        value = match value {
            Json::Object(members) => members.get(&escaped(step))?,
            _ => return None,
        };
    }
    Some(Value::from_json(value))
}

/// A key as the JSON form of documents writes it.
fn escaped(key: &str) -> String {
    if key.starts_with('$') { format!("${key}") } else { key.to_owned() }
}

/// Other documents that a decision looks at, and which they were.
pub(super) struct Others<'a> {
    subject: &'a Subject,
    /// Each with the position of its last record: when that moves, the decision is void.
    pub(super) seen: std::cell::RefCell<Vec<(DocumentId, Lsn)>>,
}

impl<'a> Others<'a> {
    /// Those that rules see on a server, when they decide for somebody.
    pub(super) fn of(subject: &'a Subject) -> Self {
        Self { subject, seen: std::cell::RefCell::default() }
    }

    fn read(&self, collection: &str, id: &str) -> Result<Option<Value>, Error> {
        let name = crate::id::CollectionName::new(collection)?;
        let document = id.parse().unwrap_or_else(|_| DocumentId::named(&name, id));
        // Before it is read: a change that comes in between must not go by unseen.
        self.subject.note_consulted(document);
        let (database, consulted) = (self.subject.database(), &self.subject.0.access.0.consulted);
        let state = database.reader().document(document)?;
        let last = state.as_ref().map_or(Lsn::ZERO, |state| state.last_lsn);
        self.seen.borrow_mut().push((document, last));
        match state {
            Some(state) if state.visible && state.collection == name && state.change_count > 0 => {
                if let Some(value) = consulted.value(document, last) {
                    return Ok(Some(value));
                }
                let json = database.consult(document, |view| Ok(view.to_json()?))?;
                let value = Value::from_json(&json);
                consulted.keep(document, last, &value, &json);
                Ok(Some(value))
            }
            _ => Ok(None),
        }
    }
}

impl Documents for Others<'_> {
    fn get(&self, collection: &str, id: &str) -> Option<Value> {
        self.read(collection, id).unwrap_or_else(|error| {
            // As good as not there: nothing is allowed by what cannot be read.
            tracing::warn!(collection, %error, "a document that rules look at cannot be read");
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::access::{Access, AccessOptions, Admittance};
    use crate::document::{EditOptions, View};
    use crate::engine::Database;
    use crate::id::ActorId;
    use crate::log::MemoryStorage;
    use crate::rules::{Operation, Rules};

    #[test]
    fn what_another_document_was_is_forgotten_with_its_next_record() {
        let database = Database::on(MemoryStorage::new()).open().unwrap();
        let room = database.collection("rooms").unwrap().doc_with("a", json!({ "open": true })).unwrap();
        let (thing, commit) = database.collection("things").unwrap().create(json!({})).unwrap();
        commit.wait().unwrap();
        let rules = "service tidelog { match /things/{id} { allow read: if get(/rooms/a).data.open; } }";
        let rules = Some(Rules::parse("rules", rules).unwrap());
        let access = Access::new(database, AccessOptions { admittance: Admittance::Anybody, authority: None, rules });
        let (one, other) = (access.admit(None).unwrap(), access.admit(None).unwrap());
        let may_see = || {
            let may = |subject: &Subject| subject.may(Operation::List, thing.id()).unwrap();
            assert_eq!(may(&one), may(&other));
            may(&one)
        };
        for is_open in [false, true] {
            assert_eq!(may_see(), !is_open);
            let consulted = &access.0.consulted;
            assert!(consulted.value(room.id(), room.state().unwrap().last_lsn).is_some());
            // Nobody is told, and no answer of before counts all the same.
            room.change(|edit| Ok(edit.put("open", is_open)?)).unwrap().wait().unwrap();
            assert_eq!(may_see(), is_open);
        }
        room.delete().unwrap().wait().unwrap();
        assert!(!may_see());
    }

    #[test]
    fn only_the_fields_that_rules_look_at_are_taken_out() {
        let mut view = View::new();
        let options = EditOptions { actor: ActorId::random(), time: 0, message: None };
        let value = json!({"owner": "ann", "acl": {"editors": ["ben"], "n": 1}, "body": "long"});
        view.edit(options, |edit| edit.put(Path::root(), &value)).unwrap();
        let path = |path: &[&str]| path.iter().map(|step| (*step).to_owned()).collect::<Vec<_>>();
        let fields = Fields::Some(vec![path(&["owner"]), path(&["acl", "editors"]), path(&["absent"])]);
        let extract = Extract::of(&view, &fields).unwrap();
        assert_eq!(extract.get(&["owner"]), Some(Value::from_json(&json!("ann"))));
        assert_eq!(extract.get(&["acl", "editors"]), Some(Value::from_json(&json!(["ben"]))));
        assert_eq!(extract.get(&["absent"]), None);
        assert_eq!(extract.get(&["body"]), None);
        let whole = Extract::of(&view, &Fields::All).unwrap();
        assert_eq!(whole.get(&["acl", "n"]), Some(Value::from_json(&json!(1))));
        assert_eq!(whole.get(&[]), Some(Value::from_json(&value)));
    }
}
