//! Patches of JSON as edits: JSON Patch (RFC 6902) and merge patch (RFC 7396). Each touches only what it names, so that
//! what others write elsewhere in the document meanwhile is kept.

use automerge::ObjType;
use serde::Deserialize;
use serde_json::Value;

use super::{Edit, Path, ViewError};

/// Why a patch was not made. Nothing of it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PatchError {
    /// It is not a JSON Patch.
    #[error("not a JSON Patch: {0}")]
    Malformed(serde_json::Error),
    /// A merge patch of a document is an object.
    #[error("a merge patch of a document is an object")]
    NotObject,
    /// More operations than one patch may have.
    #[error("the patch has {0} operations; at most {max} are allowed", max = JsonPatch::OPERATIONS_MAX)]
    TooMany(usize),
    /// One operation cannot be made.
    #[error("operation {number}: {error}")]
    Operation {
        /// Which, from 0.
        number: usize,
        /// What is wrong with it.
        error: Box<ViewError>,
    },
    /// A `test` does not hold.
    #[error("operation {number}: the value at {path} is another one")]
    Test {
        /// Which, from 0.
        number: usize,
        /// Where it looked.
        path: Path,
    },
    /// A merge cannot be made.
    #[error(transparent)]
    View(#[from] ViewError),
}

/// A JSON Patch: operations that are made in order, all or none.
#[derive(Debug, Clone)]
pub struct JsonPatch(Vec<Operation>);

#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Operation {
    Add { path: Pointer, value: Value },
    Remove { path: Pointer },
    Replace { path: Pointer, value: Value },
    Move { from: Pointer, path: Pointer },
    Copy { from: Pointer, path: Pointer },
    Test { path: Pointer, value: Value },
}

/// A JSON Pointer, which is empty or begins with a slash.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
struct Pointer(Path);

impl TryFrom<String> for Pointer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.is_empty() || text.starts_with('/') {
            Ok(Self(Path::from(text.as_str())))
        } else {
            Err(format!("{text:?} is not a JSON Pointer: it begins with a slash, or is empty"))
        }
    }
}

impl JsonPatch {
    /// Operations in one patch.
    pub const OPERATIONS_MAX: usize = 10_000;

    /// Reads a patch.
    ///
    /// # Errors
    /// [`PatchError::Malformed`], [`PatchError::TooMany`].
    pub fn parse(patch: Value) -> Result<Self, PatchError> {
        let operations: Vec<Operation> = serde_json::from_value(patch).map_err(PatchError::Malformed)?;
        if operations.len() > Self::OPERATIONS_MAX {
            return Err(PatchError::TooMany(operations.len()));
        }
        Ok(Self(operations))
    }

    /// Makes its operations, one after the other.
    ///
    /// # Errors
    /// [`PatchError`] names the operation that cannot be made; the edit is then to be given up.
    pub fn apply(&self, edit: &mut Edit<'_>) -> Result<(), PatchError> {
        for (number, operation) in self.0.iter().enumerate() {
            let holds =
                operation.apply(edit).map_err(|error| PatchError::Operation { number, error: Box::new(error) })?;
            if let (false, Operation::Test { path, .. }) = (holds, operation) {
                return Err(PatchError::Test { number, path: path.0.clone() });
            }
        }
        Ok(())
    }
}

impl Operation {
    /// `false` when it is a test that does not hold.
    fn apply(&self, edit: &mut Edit<'_>) -> Result<bool, ViewError> {
        match self {
            Self::Add { path, value } => add(edit, &path.0, value)?,
            Self::Remove { path } => remove(edit, &path.0)?,
            Self::Replace { path, value } => {
                if !edit.has(&path.0)? {
                    return Err(ViewError::NotFound(path.0.clone()));
                }
                edit.put(path.0.clone(), value)?;
            }
            Self::Move { from, path } => {
                let value = value_at(edit, &from.0)?;
                if from.0 != path.0 {
                    remove(edit, &from.0)?;
                    add(edit, &path.0, &value)?;
                }
            }
            Self::Copy { from, path } => {
                let value = value_at(edit, &from.0)?;
                add(edit, &path.0, &value)?;
            }
            Self::Test { path, value } => return Ok(edit.json(path.0.clone())?.as_ref() == Some(value)),
        }
        Ok(true)
    }
}

fn value_at(edit: &Edit<'_>, path: &Path) -> Result<Value, ViewError> {
    edit.json(path.clone())?.ok_or_else(|| ViewError::NotFound(path.clone()))
}

fn remove(edit: &mut Edit<'_>, path: &Path) -> Result<(), ViewError> {
    if edit.delete(path.clone())? { Ok(()) } else { Err(ViewError::NotFound(path.clone())) }
}

/// In a list an element goes before the one that is there; in an object a value takes the other's place.
fn add(edit: &mut Edit<'_>, path: &Path, value: &Value) -> Result<(), ViewError> {
    if let Some((step, front)) = path.steps().split_last()
        && let Ok(index) = step.parse::<usize>()
        && edit.is_object(front, ObjType::List)?
    {
        return edit.insert(front.iter().cloned().collect::<Path>(), index, value);
    }
    edit.put(path.clone(), value)
}

/// Makes a merge patch: keys of `patch` replace those of the document, objects are merged, and `null` removes.
///
/// # Errors
/// [`PatchError::NotObject`]; [`PatchError::View`] when a value cannot be kept.
pub fn merge(edit: &mut Edit<'_>, patch: &Value) -> Result<(), PatchError> {
    let Value::Object(patch) = patch else { return Err(PatchError::NotObject) };
    Ok(merge_at(edit, &Path::root(), patch)?)
}

fn merge_at(edit: &mut Edit<'_>, path: &Path, patch: &serde_json::Map<String, Value>) -> Result<(), ViewError> {
    for (key, value) in patch {
        let place = path.clone().join(key);
        match value {
            Value::Null => {
                edit.delete(place)?;
            }
            Value::Object(inner) if is_plain(inner) => {
                if !edit.is_object(place.steps(), ObjType::Map)? {
                    edit.put(place.clone(), serde_json::json!({}))?;
                }
                merge_at(edit, &place, inner)?;
            }
            _ => edit.put(place, value)?,
        }
    }
    Ok(())
}

/// Whether it is an object of the document, not a scalar that JSON has no form for: a counter, say.
fn is_plain(object: &serde_json::Map<String, Value>) -> bool {
    !(object.len() == 1 && object.keys().all(|key| key.starts_with('$') && !key.starts_with("$$")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::document::{EditOptions, View};
    use crate::id::ActorId;

    fn options() -> EditOptions {
        EditOptions { actor: ActorId::new(&[7; 16]).unwrap(), time: 0, message: None }
    }

    fn patched(before: &Value, make: impl FnOnce(&mut Edit<'_>) -> Result<(), PatchError>) -> Result<Value, String> {
        let mut view = View::new();
        view.edit(options(), |edit| edit.put(Path::root(), before)).unwrap();
        let failed = |error: PatchError| ViewError::Automerge(error.to_string());
        view.edit(options(), |edit| make(edit).map_err(failed)).map_err(|error| error.to_string())?;
        Ok(view.to_json().unwrap())
    }

    fn json_patch(before: &Value, patch: Value) -> Result<Value, String> {
        let patch = JsonPatch::parse(patch).map_err(|error| error.to_string())?;
        patched(before, |edit| patch.apply(edit))
    }

    #[test]
    fn each_operation_does_what_the_standard_says() {
        let before = json!({ "list": ["a", "b"], "map": { "x": 1 } });
        let cases = [
            (
                json!([{ "op": "add", "path": "/list/1", "value": "c" }]),
                json!({ "list": ["a", "c", "b"], "map": { "x": 1 } }),
            ),
            (
                json!([{ "op": "add", "path": "/list/-", "value": "c" }]),
                json!({ "list": ["a", "b", "c"], "map": { "x": 1 } }),
            ),
            (json!([{ "op": "remove", "path": "/list/0" }]), json!({ "list": ["b"], "map": { "x": 1 } })),
            (
                json!([{ "op": "replace", "path": "/map/x", "value": 2 }]),
                json!({ "list": ["a", "b"], "map": { "x": 2 } }),
            ),
            (
                json!([{ "op": "move", "from": "/map/x", "path": "/y" }]),
                json!({ "list": ["a", "b"], "map": {}, "y": 1 }),
            ),
            (
                json!([{ "op": "copy", "from": "/list/0", "path": "/list/2" }]),
                json!({ "list": ["a", "b", "a"], "map": { "x": 1 } }),
            ),
            (json!([{ "op": "test", "path": "/list", "value": ["a", "b"] }]), before.clone()),
        ];
        for (patch, after) in cases {
            assert_eq!(json_patch(&before, patch.clone()), Ok(after), "{patch}");
        }
    }

    #[test]
    fn a_patch_that_cannot_be_made_says_which_operation_and_makes_nothing() {
        let before = json!({ "list": ["a"] });
        let cases = [
            (json!([{ "op": "remove", "path": "/nothing" }]), "operation 0: there is nothing at /nothing"),
            (json!([{ "op": "replace", "path": "/nothing", "value": 1 }]), "operation 0: there is nothing at /nothing"),
            (json!([{ "op": "test", "path": "/list", "value": [] }]), "operation 0: the value at /list is another one"),
            (json!([{ "op": "add", "path": "/list/9", "value": 1 }]), "operation 0: position 9 is outside of /list"),
            (json!([{ "op": "jump", "path": "/list" }]), "not a JSON Patch: unknown variant `jump`"),
            (json!([{ "op": "add", "path": "list", "value": 1 }]), "not a JSON Pointer"),
            (json!({ "op": "add" }), "not a JSON Patch"),
        ];
        for (patch, why) in cases {
            let refused = json_patch(&before, patch.clone()).unwrap_err();
            assert!(refused.contains(why), "{patch}: {refused}");
        }
    }

    #[test]
    fn a_merge_touches_what_it_names() {
        let before = json!({ "a": { "b": 1, "c": 2 }, "d": "old", "hits": { "$counter": 3 } });
        let merged = |patch: Value| patched(&before, |edit| merge(edit, &patch));
        assert_eq!(
            merged(json!({ "a": { "b": null, "e": [1] }, "d": "new" })),
            Ok(json!({ "a": { "c": 2, "e": [1] }, "d": "new", "hits": { "$counter": 3 } }))
        );
        assert_eq!(merged(json!({ "d": { "x": 1 } })).unwrap()["d"], json!({ "x": 1 }));
        assert_eq!(merged(json!({ "hits": { "$counter": 5 } })).unwrap()["hits"], json!({ "$counter": 5 }));
        assert!(merged(json!([1])).unwrap_err().contains("is an object"));
    }
}
