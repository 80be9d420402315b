//! Reading a document, as it is or as it was.

use automerge::{ChangeHash, ObjId, ObjType, Prop, ROOT, ReadDoc, Value as DocumentValue};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::json::{Node, scalar_json};
use super::{Path, View, ViewError};

/// A document at one moment: see [`View::now`] and [`View::at`].
pub struct Reading<'a> {
    view: &'a View,
    heads: Option<Vec<ChangeHash>>,
}

impl<'a> Reading<'a> {
    pub(super) fn new(view: &'a View, heads: Option<Vec<ChangeHash>>) -> Self {
        Self { view, heads }
    }

    pub(super) fn view(&self) -> &'a View {
        self.view
    }

    pub(super) fn heads(&self) -> Option<&[ChangeHash]> {
        self.heads.as_deref()
    }

    /// The whole document as JSON.
    ///
    /// # Errors
    /// As [`Reading::json`].
    pub fn whole(&self) -> Result<Value, ViewError> {
        Ok(self.json(Path::root())?.unwrap_or_default())
    }

    /// The value at `path` as JSON; `None` when there is nothing.
    ///
    /// # Errors
    /// [`ViewError::Broken`], [`ViewError::Panicked`]; [`ViewError::Json`] when it is nested too deep.
    ///
    /// # Cost
    /// The present: in proportion to what is read. The past: in proportion to the history of every object on the way.
    pub fn json(&self, path: impl Into<Path>) -> Result<Option<Value>, ViewError> {
        let (path, heads) = (path.into(), self.heads.as_deref());
        self.view.reading(|document| json_at(document, &path, heads))
    }

    /// The value at `path`, as a type of the caller's; `None` when there is nothing.
    ///
    /// # Errors
    /// As [`Reading::json`]; [`ViewError::Serde`] when the value has another shape than `T`.
    pub fn read<T: DeserializeOwned>(&self, path: impl Into<Path>) -> Result<Option<T>, ViewError> {
        Ok(self.json(path)?.map(serde_json::from_value).transpose()?)
    }

    /// All values that conflict at `path`, as JSON, the one that wins last. One when there is no conflict, none when
    /// there is nothing.
    ///
    /// # Errors
    /// As [`Reading::json`].
    pub fn conflicts(&self, path: impl Into<Path>) -> Result<Vec<Value>, ViewError> {
        let (path, heads) = (path.into(), self.heads.as_deref());
        self.view.reading(|document| {
            let Some((last, front)) = path.steps().split_last() else {
                return Ok(json_at(document, &path, heads)?.into_iter().collect());
            };
            let Some((DocumentValue::Object(kind), parent)) = find(document, front, heads)? else { return Ok(vec![]) };
            let Some(prop) = prop_of(kind, last) else { return Ok(vec![]) };
            let all = match heads {
                None => document.get_all(&parent, prop)?,
                Some(heads) => document.get_all_at(&parent, prop, heads)?,
            };
            all.into_iter().map(|(value, id)| to_json(document, value, &id, heads)).collect()
        })
    }
}

/// Reads the value at `path`.
pub(super) fn json_at<D: ReadDoc>(
    document: &D,
    path: &Path,
    heads: Option<&[ChangeHash]>,
) -> Result<Option<Value>, ViewError> {
    match find(document, path.steps(), heads)? {
        Some((value, id)) => to_json(document, value, &id, heads).map(Some),
        None => Ok(None),
    }
}

pub(super) fn to_json<D: ReadDoc>(
    document: &D,
    value: DocumentValue<'_>,
    id: &ObjId,
    heads: Option<&[ChangeHash]>,
) -> Result<Value, ViewError> {
    Ok(match value {
        DocumentValue::Object(_) => Node::read(document, id, heads)?.into_json(),
        DocumentValue::Scalar(scalar) => scalar_json(scalar.into_owned()),
    })
}

/// Follows `steps` from the root; `None` where there is nothing.
pub(super) fn find<D: ReadDoc>(
    document: &D,
    steps: &[String],
    heads: Option<&[ChangeHash]>,
) -> Result<Option<(DocumentValue<'static>, ObjId)>, ViewError> {
    let mut found = (DocumentValue::Object(ObjType::Map), ROOT);
    for step in steps {
        let (DocumentValue::Object(kind), object) = found else { return Ok(None) };
        let Some(prop) = prop_of(kind, step) else { return Ok(None) };
        let next = match heads {
            None => document.get(&object, prop)?,
            Some(heads) => document.get_at(&object, prop, heads)?,
        };
        match next {
            Some((value, id)) => found = (value.into_owned(), id),
            None => return Ok(None),
        }
    }
    Ok(Some(found))
}

/// What `step` means in an object of that kind; `None` when it can mean nothing.
///
/// The characters of a text are no values, so no step leads into it; nor into a table (see [`json`](super::json)).
pub(super) fn prop_of(kind: ObjType, step: &str) -> Option<Prop> {
    match kind {
        ObjType::Map => Some(Prop::Map(step.to_owned())),
        ObjType::List => step.parse().ok().map(Prop::Seq),
        ObjType::Text | ObjType::Table => None,
    }
}
