//! What differs between two moments of a document, and where it has more than one value.

use automerge::{ChangeHash, ObjId, ObjType, Prop, ROOT, ReadDoc, Value as DocumentValue};
use serde_json::{Value, json};

use super::json::{DEPTH_MAX, scalar_json};
use super::reading::{Reading, to_json};
use super::{Path, View, ViewError};
use crate::id::Heads;

/// One step from one moment of a document to another, as Automerge tells it. Indexes into texts count Unicode code points.
#[derive(Debug, Clone, PartialEq)]
pub struct Patch {
    /// Where. The last step is the key, or the index in a list or text.
    pub path: Path,
    /// What happens there.
    pub action: PatchAction,
}

/// What a [`Patch`] does.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum PatchAction {
    /// The value is this now. A map, list or text begins empty; patches that fill it follow.
    Put {
        /// The value, as JSON.
        value: Value,
        /// It is one of several.
        conflict: bool,
    },
    /// Values were inserted into a list.
    Insert {
        /// The values, as for [`Self::Put`].
        values: Vec<Value>,
    },
    /// Text was inserted.
    Splice {
        /// The text.
        value: String,
    },
    /// A counter was incremented.
    Increment {
        /// By so much.
        by: i64,
    },
    /// Keys, elements or characters were removed.
    Delete {
        /// How many.
        count: usize,
    },
    /// There is more than one value here now.
    Conflict,
    /// Marks of a text changed.
    Mark {
        /// Beginning, end, name, and value: null where it was removed.
        marks: Vec<(usize, usize, String, Value)>,
    },
}

impl Patch {
    /// The patch as JSON, in the form in which automerge's JavaScript tells it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let path: Vec<Value> = self.path.steps().iter().map(|step| json!(step)).collect();
        match &self.action {
            PatchAction::Put { value, conflict } => {
                json!({ "action": "put", "path": path, "value": value, "conflict": conflict })
            }
            PatchAction::Insert { values } => json!({ "action": "insert", "path": path, "values": values }),
            PatchAction::Splice { value } => json!({ "action": "splice", "path": path, "value": value }),
            PatchAction::Increment { by } => json!({ "action": "inc", "path": path, "value": by }),
            PatchAction::Delete { count } => json!({ "action": "del", "path": path, "length": count }),
            PatchAction::Conflict => json!({ "action": "conflict", "path": path }),
            PatchAction::Mark { marks } => {
                let mark = |(start, end, name, value): &(usize, usize, String, Value)| json!({ "start": start, "end": end, "name": name, "value": value });
                json!({ "action": "mark", "path": path, "marks": marks.iter().map(mark).collect::<Vec<_>>() })
            }
        }
    }
}

impl View {
    /// The patches that lead from the document at `before` to the document at `after`.
    ///
    /// # Errors
    /// [`ViewError::UnknownHead`], [`ViewError::Broken`], [`ViewError::Panicked`].
    ///
    /// # Cost
    /// A pass over the document.
    pub fn patches(&self, before: &Heads, after: &Heads) -> Result<Vec<Patch>, ViewError> {
        let known = |heads: &Heads| -> Result<Vec<ChangeHash>, ViewError> {
            match heads.as_slice().iter().find(|head| !self.contains(**head)) {
                Some(unknown) => Err(ViewError::UnknownHead(*unknown)),
                None => Ok(heads.as_slice().iter().map(|hash| ChangeHash(hash.0)).collect()),
            }
        };
        let (before, after) = (known(before)?, known(after)?);
        self.reading(|document| Ok(document.diff(&before, &after).into_iter().map(patch_of).collect()))
    }
}

impl Reading<'_> {
    /// Where the document has more than one value, and those values, the one that wins last; up to `count` places.
    ///
    /// # Errors
    /// As [`Reading::json`].
    ///
    /// # Cost
    /// A pass over the document.
    pub fn all_conflicts(&self, count: usize) -> Result<Vec<(Path, Vec<Value>)>, ViewError> {
        let heads = self.heads();
        self.view().reading(|document| {
            let mut found = Vec::new();
            walk(document, &ROOT, ObjType::Map, heads, &Path::root(), count, &mut found)?;
            Ok(found)
        })
    }
}

fn walk<D: ReadDoc>(
    document: &D,
    object: &ObjId,
    kind: ObjType,
    heads: Option<&[ChangeHash]>,
    path: &Path,
    count: usize,
    found: &mut Vec<(Path, Vec<Value>)>,
) -> Result<(), ViewError> {
    if path.steps().len() > DEPTH_MAX {
        return Ok(());
    }
    let mut members: Vec<(Prop, bool, DocumentValue<'static>, ObjId)> = Vec::new();
    match kind {
        ObjType::Map => {
            let range = match heads {
                None => document.map_range(object, ..),
                Some(heads) => document.map_range_at(object, .., heads),
            };
            for item in range {
                let (id, conflict) = (item.id(), item.conflict);
                members.push((Prop::Map(item.key.into_owned()), conflict, item.value.into_value().into_owned(), id));
            }
        }
        ObjType::List => {
            let range = match heads {
                None => document.list_range(object, ..),
                Some(heads) => document.list_range_at(object, .., heads),
            };
            for item in range {
                let (id, conflict) = (item.id(), item.conflict);
                members.push((Prop::Seq(item.index), conflict, item.value.into_value().into_owned(), id));
            }
        }
        ObjType::Text | ObjType::Table => {}
    }
    for (prop, conflict, value, id) in members {
        if found.len() >= count {
            return Ok(());
        }
        let here = path.clone().join(&prop);
        if conflict {
            let all = match heads {
                None => document.get_all(object, prop)?,
                Some(heads) => document.get_all_at(object, prop, heads)?,
            };
            let all: Result<Vec<Value>, ViewError> =
                all.into_iter().map(|(value, id)| to_json(document, value, &id, heads)).collect();
            found.push((here.clone(), all?));
        }
        if let DocumentValue::Object(kind) = value {
            walk(document, &id, kind, heads, &here, count, found)?;
        }
    }
    Ok(())
}

fn patch_of(patch: automerge::Patch) -> Patch {
    use automerge::PatchAction as Action;
    let base: Path = patch.path.iter().map(|(_, prop)| prop.to_string()).collect();
    let (path, action) = match patch.action {
        Action::PutMap { key, value: (value, _), conflict } => {
            (base.join(key), PatchAction::Put { value: beginning(value), conflict })
        }
        Action::PutSeq { index, value: (value, _), conflict } => {
            (base.join(index), PatchAction::Put { value: beginning(value), conflict })
        }
        Action::Insert { index, values } => {
            let values = values.iter().map(|(value, _, _)| beginning(value.clone())).collect();
            (base.join(index), PatchAction::Insert { values })
        }
        Action::SpliceText { index, value, .. } => {
            (base.join(index), PatchAction::Splice { value: value.make_string() })
        }
        Action::Increment { prop, value } => (base.join(prop), PatchAction::Increment { by: value }),
        Action::Conflict { prop } => (base.join(prop), PatchAction::Conflict),
        Action::DeleteMap { key } => (base.join(key), PatchAction::Delete { count: 1 }),
        Action::DeleteSeq { index, length } => (base.join(index), PatchAction::Delete { count: length }),
        Action::Mark { marks } => {
            let mark =
                |mark: automerge::marks::Mark| (mark.start, mark.end, mark.name.to_string(), scalar_json(mark.value));
            (base, PatchAction::Mark { marks: marks.into_iter().map(mark).collect() })
        }
    };
    Patch { path, action }
}

/// A value as it stands before what is in it is told.
fn beginning(value: DocumentValue<'static>) -> Value {
    match value {
        DocumentValue::Object(ObjType::Map | ObjType::Table) => json!({}),
        DocumentValue::Object(ObjType::List) => json!([]),
        DocumentValue::Object(ObjType::Text) => json!(""),
        DocumentValue::Scalar(scalar) => scalar_json(scalar.into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::EditOptions;
    use super::*;
    use crate::id::ActorId;

    fn edited(view: &mut View, value: Value) -> Heads {
        let options = EditOptions { actor: ActorId::random(), time: 1, message: None };
        view.edit(options, |edit| edit.put(Path::root(), &value)).unwrap();
        view.heads()
    }

    #[test]
    fn patches_lead_from_one_moment_to_another() {
        let mut view = View::new();
        let before = edited(&mut view, json!({"text": "ab", "list": [1, 2], "n": {"$counter": 1}, "gone": true}));
        let after =
            edited(&mut view, json!({"text": "aéb", "list": [1, 3, 2], "n": {"$counter": 3}, "new": {"x": []}}));
        let found: Vec<Value> = view.patches(&before, &after).unwrap().iter().map(Patch::to_json).collect();
        for expected in [
            json!({"action": "splice", "path": ["text", "1"], "value": "é"}),
            json!({"action": "insert", "path": ["list", "1"], "values": [3]}),
            json!({"action": "inc", "path": ["n"], "value": 2}),
            json!({"action": "del", "path": ["gone"], "length": 1}),
            json!({"action": "put", "path": ["new"], "value": {}, "conflict": false}),
            json!({"action": "put", "path": ["new", "x"], "value": [], "conflict": false}),
        ] {
            assert!(found.contains(&expected), "{expected} {found:?}");
        }
        assert_eq!(view.patches(&after, &after).unwrap(), []);
        let unknown = Heads::new(vec![crate::id::ChangeHash([1; 32])]);
        assert!(matches!(view.patches(&unknown, &after), Err(ViewError::UnknownHead(_))));
    }

    #[test]
    fn conflicts_are_found_wherever_they_are() {
        let mut one = View::new();
        edited(&mut one, json!({"deep": {"list": [{"x": 0}]}, "plain": 1}));
        let mut other = View::load(&one.save().unwrap()).unwrap();
        let put = |view: &mut View, value: i32| {
            let options = EditOptions { actor: ActorId::random(), time: 1, message: None };
            view.edit(options, |edit| edit.put("deep.list.0.x", value)).unwrap().1.unwrap()
        };
        let (_, theirs) = (put(&mut one, 1), put(&mut other, 2));
        one.apply(&[theirs]).unwrap();
        let conflicts = one.now().all_conflicts(10).unwrap();
        let [(path, values)] = &conflicts[..] else { panic!("{conflicts:?}") };
        assert_eq!(path, &Path::from("deep.list.0.x"));
        assert_eq!(values.len(), 2);
        assert_eq!(values.last(), one.now().json("deep.list.0.x").unwrap().as_ref());
        assert_eq!(one.now().all_conflicts(0).unwrap(), []);
    }
}
