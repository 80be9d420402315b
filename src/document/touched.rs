//! Where a change writes, and the values that can be looked up on either side of it.

use std::borrow::Cow;
use std::collections::BTreeSet;

use automerge::legacy::{Key, ObjectId, OpType};
use automerge::{ObjType, Prop, ReadDoc};
use serde_json::Value;

use super::reading::{Reading, json_at};
use super::{Change, Edit, Path, View, ViewError};

/// Values of a document, as it is, or as an edit would leave it.
pub trait Values {
    /// The value at `path` as JSON; `None` when there is nothing.
    ///
    /// # Errors
    /// [`ViewError::Broken`], [`ViewError::Panicked`]; [`ViewError::Json`] when it is nested too deep.
    fn json(&self, path: &Path) -> Result<Option<Value>, ViewError>;
}

impl Values for View {
    fn json(&self, path: &Path) -> Result<Option<Value>, ViewError> {
        self.reading(|document| json_at(document, path, None))
    }
}

impl Values for Reading<'_> {
    fn json(&self, path: &Path) -> Result<Option<Value>, ViewError> {
        Reading::json(self, path.clone())
    }
}

impl Values for Edit<'_> {
    fn json(&self, path: &Path) -> Result<Option<Value>, ViewError> {
        Edit::json(self, path.clone())
    }
}

/// The places that a change writes to: steps from the root joined by `/`, with `*` for any position in a list. A
/// text counts as one place. In keys, `~0` is a `~`, `~1` a `/`, a key that is a mere `*` is `~2` and an empty one
/// `~3`, so that no key looks like another place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched(BTreeSet<String>);

/// More places than this are not told apart: see [`Touched::everything`].
const PLACES_MAX: usize = 1024;
/// What stands for every place.
const ANYWHERE: &str = "**";

impl Touched {
    /// What a change is taken for that writes to more places than are told apart: it touches everything, which is
    /// spelled `**` and lies within no place.
    #[must_use]
    pub fn everything() -> Self {
        Self(BTreeSet::from([ANYWHERE.to_owned()]))
    }

    /// The places, in order.
    pub fn places(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Where two values of a document differ.
    #[must_use]
    pub fn between(before: &Value, after: &Value) -> Self {
        let mut places = BTreeSet::new();
        differ(before, after, &mut String::new(), &mut places);
        Self(places).bounded()
    }

    fn bounded(self) -> Self {
        if self.0.len() <= PLACES_MAX { self } else { Self::everything() }
    }
}

fn differ(before: &Value, after: &Value, at: &mut String, places: &mut BTreeSet<String>) {
    if before == after || places.len() > PLACES_MAX {
        return;
    }
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            for key in keys {
                let length = at.len();
                push_key(at, key);
                match (before.get(key), after.get(key)) {
                    (Some(before), Some(after)) => differ(before, after, at, places),
                    _ => drop(places.insert(at.clone())),
                }
                at.truncate(length);
            }
        }
        (Value::Array(before), Value::Array(after)) => {
            let length = at.len();
            push_step(at, "*");
            if before.len() != after.len() {
                places.insert(at.clone());
            } else {
                before.iter().zip(after).for_each(|(before, after)| differ(before, after, at, places));
            }
            at.truncate(length);
        }
        _ => drop(places.insert(at.clone())),
    }
}

fn push_step(at: &mut String, step: &str) {
    if !at.is_empty() {
        at.push('/');
    }
    at.push_str(step);
}

fn push_key(at: &mut String, key: &str) {
    push_step(at, &escaped(key));
}

fn escaped(key: &str) -> Cow<'_, str> {
    match key {
        "*" => Cow::Borrowed("~2"),
        _ if key.contains(['~', '/']) => Cow::Owned(key.replace('~', "~0").replace('/', "~1")),
        // Else what is under it would seem to be what the whole is.
        "" => Cow::Borrowed("~3"),
        _ => Cow::Borrowed(key),
    }
}

impl View {
    /// Where a change writes that this document has. What it writes under a value that is overwritten or deleted counts
    /// as well: it may come to light again.
    ///
    /// # Errors
    /// [`ViewError::Broken`], [`ViewError::Panicked`]; [`ViewError::Automerge`] when an object is not here.
    ///
    /// # Cost
    /// About a microsecond an operation.
    pub fn touched(&self, change: &Change) -> Result<Touched, ViewError> {
        self.reading(|document| {
            let expanded = change.as_automerge().decode();
            let mut places = BTreeSet::new();
            let mut last: Option<(ObjectId, Option<(String, ObjType)>)> = None;
            for operation in &expanded.operations {
                if places.len() > PLACES_MAX {
                    return Ok(Touched::everything());
                }
                if last.as_ref().is_none_or(|(object, _)| *object != operation.obj) {
                    last = Some((operation.obj.clone(), place_of(document, &operation.obj)?));
                }
                let Some((_, Some((at, kind)))) = &last else { return Ok(Touched::everything()) };
                let mut place = at.clone();
                match (&operation.key, kind) {
                    (_, ObjType::Text) => {}
                    (Key::Map(key), _) => push_key(&mut place, key),
                    (Key::Seq(_), _) => push_step(&mut place, "*"),
                }
                // Marks are on a text, whatever they name.
                if !matches!(operation.action, OpType::MarkEnd(_)) {
                    places.insert(place);
                }
            }
            Ok(Touched(places))
        })
    }
}

/// Where an object is, and what it is; `None` when nobody can say.
fn place_of(document: &automerge::Automerge, object: &ObjectId) -> Result<Option<(String, ObjType)>, ViewError> {
    let ObjectId::Id(id) = object else { return Ok(Some((String::new(), ObjType::Map))) };
    let found = document.import_obj(&id.to_string())?;
    let kind = document.object_type(&found)?;
    let mut steps: Vec<String> = Vec::new();
    for parent in document.parents(&found)? {
        steps.push(match parent.prop {
            Prop::Map(key) => escaped(&key).into_owned(),
            Prop::Seq(_) => "*".to_owned(),
        });
    }
    steps.reverse();
    Ok(Some((steps.join("/"), kind)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::document::EditOptions;
    use crate::id::ActorId;

    fn edited(view: &mut View, edits: impl FnOnce(&mut Edit<'_>) -> Result<(), ViewError>) -> Change {
        let options = EditOptions { actor: ActorId::random(), time: 0, message: None };
        view.edit(options, edits).unwrap().1.unwrap()
    }

    fn places(touched: &Touched) -> Vec<&str> {
        touched.places().collect()
    }

    #[test]
    fn what_a_change_writes_is_told_by_its_operations_and_by_what_differs() {
        let mut view = View::new();
        let start = json!({"title": "a", "list": [{"done": false, "deep": {"n": 1}}, 2], "gone": 1, "count": 1});
        let first = edited(&mut view, |edit| edit.put(Path::root(), &start));
        let touched = view.touched(&first).unwrap();
        for place in ["title", "list", "list/*", "list/*/done", "list/*/deep/n", "gone"] {
            assert!(places(&touched).contains(&place), "{place} in {touched:?}");
        }
        let second = edited(&mut view, |edit| {
            edit.splice("title", 1, 0, "bc")?;
            edit.put("list.0.deep.n", 2)?;
            edit.put("count", 7)?;
            edit.delete("gone").map(drop)
        });
        assert_eq!(places(&view.touched(&second).unwrap()), ["count", "gone", "list/*/deep/n", "title"]);
        let between = Touched::between(&start, &view.to_json().unwrap());
        assert_eq!(between, view.touched(&second).unwrap());
    }

    #[test]
    fn what_is_written_under_a_deleted_value_is_seen() {
        let mut view = View::new();
        edited(&mut view, |edit| edit.put(Path::root(), json!({"secret": {"key": "a"}, "open": "x"})));
        let mut other = View::load(&view.save().unwrap()).unwrap();
        let hidden = edited(&mut other, |edit| edit.put("secret.key", "b"));
        edited(&mut view, |edit| edit.delete("secret").map(drop));
        view.apply(std::slice::from_ref(&hidden)).unwrap();
        assert!(places(&view.touched(&hidden).unwrap()).contains(&"secret/key"));
    }

    #[test]
    fn no_key_looks_like_another_place() {
        let mut view = View::new();
        let sly = json!({"text/evil": 1, "a~b": 2, "*": 3, "": {"x": 4}, "list": ["y"]});
        let change = edited(&mut view, |edit| edit.put(Path::root(), &sly));
        let touched = view.touched(&change).unwrap();
        assert_eq!(places(&touched), ["a~0b", "list", "list/*", "text~1evil", "~2", "~3", "~3/x"]);
    }

    #[test]
    fn more_places_than_are_told_apart_are_everything() {
        let mut view = View::new();
        let many: serde_json::Map<String, Value> = (0..2000).map(|n| (format!("k{n}"), json!(n))).collect();
        let change = edited(&mut view, |edit| edit.put(Path::root(), Value::Object(many.clone())));
        assert_eq!(view.touched(&change).unwrap(), Touched::everything());
        assert_eq!(Touched::between(&json!({}), &Value::Object(many)), Touched::everything());
    }
}
