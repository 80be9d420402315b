//! Editing a document: what a closure given to [`View::edit`](super::View::edit) works with.

use std::ops::Range;

use automerge::marks::{ExpandMark, Mark};
use automerge::transaction::{Transactable, Transaction};
use automerge::{ObjId, ObjType, Prop, ROOT, ReadDoc, ScalarValue, Value as DocumentValue};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::json::{self, Node};
use super::reading::{find, json_at, prop_of};
use super::{Path, ViewError};
use crate::id::{ChangeHash, Heads};

/// An edit under way. Everything done through it becomes one change.
///
/// Values are given as anything that serialises to JSON and become what [`json`](super::json) says. Positions in text
/// count Unicode code points.
pub struct Edit<'a> {
    tx: Transaction<'a>,
}

impl<'a> Edit<'a> {
    pub(super) fn new(tx: Transaction<'a>) -> Self {
        Self { tx }
    }

    pub(super) fn into_transaction(self) -> Transaction<'a> {
        self.tx
    }

    /// Automerge's transaction, for what is not offered here.
    pub fn tx(&mut self) -> &mut Transaction<'a> {
        &mut self.tx
    }

    /// The heads of what this edit is made on top of.
    #[must_use]
    pub fn base(&self) -> Heads {
        Heads::new(self.tx.base_heads().iter().map(|hash| ChangeHash(hash.0)).collect())
    }

    /// The value at `path` as JSON, this edit's own work included; `None` when there is nothing.
    ///
    /// # Errors
    /// [`ViewError::Json`] when it is nested too deep.
    pub fn json(&self, path: impl Into<Path>) -> Result<Option<Value>, ViewError> {
        json_at(&self.tx, &path.into(), None)
    }

    /// The whole document as it was before this edit.
    ///
    /// # Errors
    /// As [`Edit::json`].
    ///
    /// # Cost
    /// In proportion to the document's history.
    #[cfg_attr(
        not(feature = "web"),
        allow(dead_code, reason = "who may do what is decided above, where there is an HTTP port")
    )]
    pub(crate) fn json_before(&self) -> Result<Value, ViewError> {
        Ok(json_at(&self.tx, &Path::root(), Some(self.tx.base_heads().as_slice()))?.unwrap_or_default())
    }

    /// The value at `path`, as a type of the caller's; `None` when there is nothing.
    ///
    /// # Errors
    /// As [`Edit::json`]; [`ViewError::Serde`] when the value has another shape than `T`.
    pub fn read<T: DeserializeOwned>(&self, path: impl Into<Path>) -> Result<Option<T>, ViewError> {
        Ok(self.json(path)?.map(serde_json::from_value).transpose()?)
    }

    /// Writes `value` at `path`, changing only what differs from what is there.
    ///
    /// The object around it must exist. In a list the last step may be `-` or the length, which appends. At the root
    /// the value must be an object; keys it lacks are deleted.
    ///
    /// # Errors
    /// [`ViewError::NotFound`] or [`ViewError::WrongKind`] for the object around it, [`ViewError::OutOfRange`],
    /// [`ViewError::RootNotMap`], [`ViewError::Json`], [`ViewError::Serde`].
    pub fn put(&mut self, path: impl Into<Path>, value: impl Serialize) -> Result<(), ViewError> {
        let path = path.into();
        let node = Node::parse(&serde_json::to_value(value)?)?;
        if path.steps().is_empty() {
            if !matches!(node, Node::Map(_)) {
                return Err(ViewError::RootNotMap);
            }
            return Ok(json::reconcile(&mut self.tx, &ROOT, &node)?);
        }
        let (parent, step) = self.parent(&path)?;
        match self.place(&path, &parent, step)? {
            Place::Here(prop) => Ok(json::write(&mut self.tx, &parent, prop, &node)?),
            Place::End(index) => Ok(json::insert(&mut self.tx, &parent, index, &node)?),
        }
    }

    /// Inserts `value` into the list at `path`, before the element at `index`, or behind the last one.
    ///
    /// # Errors
    /// [`ViewError::NotFound`], [`ViewError::WrongKind`], [`ViewError::OutOfRange`], [`ViewError::Json`],
    /// [`ViewError::Serde`].
    pub fn insert(&mut self, path: impl Into<Path>, index: usize, value: impl Serialize) -> Result<(), ViewError> {
        let path = path.into();
        let node = Node::parse(&serde_json::to_value(value)?)?;
        let list = self.object(&path, ObjType::List)?;
        self.within(&path, &list, index)?;
        Ok(json::insert(&mut self.tx, &list, index, &node)?)
    }

    /// Deletes the value at `path`; false when there was none.
    ///
    /// # Errors
    /// [`ViewError::RootNotMap`] at the root, which cannot be deleted.
    pub fn delete(&mut self, path: impl Into<Path>) -> Result<bool, ViewError> {
        let path = path.into();
        let Some((step, front)) = path.steps().split_last() else { return Err(ViewError::RootNotMap) };
        if find(&self.tx, path.steps(), None)?.is_none() {
            return Ok(false);
        }
        let Some((DocumentValue::Object(kind), parent)) = find(&self.tx, front, None)? else { return Ok(false) };
        let Some(prop) = prop_of(kind, step) else { return Ok(false) };
        self.tx.delete(&parent, prop)?;
        Ok(true)
    }

    /// Adds `by` to the counter at `path`. Increments made at the same time elsewhere add up.
    ///
    /// # Errors
    /// [`ViewError::NotFound`], [`ViewError::WrongKind`] when there is no counter.
    pub fn increment(&mut self, path: impl Into<Path>, by: i64) -> Result<(), ViewError> {
        let path = path.into();
        let (parent, step) = self.parent(&path)?;
        let Place::Here(prop) = self.place(&path, &parent, step)? else { return Err(ViewError::NotFound(path)) };
        match self.tx.get(&parent, prop.clone())? {
            None => Err(ViewError::NotFound(path)),
            Some((DocumentValue::Scalar(value), _)) if matches!(*value, ScalarValue::Counter(_)) => {
                Ok(self.tx.increment(&parent, prop, by)?)
            }
            Some((value, _)) => Err(ViewError::WrongKind { path, expected: "a counter", found: kind_name(&value) }),
        }
    }

    /// Replaces `delete` code points of the text at `path` by `insert`, from code point `position` on.
    ///
    /// # Errors
    /// [`ViewError::NotFound`], [`ViewError::WrongKind`] when there is no text, [`ViewError::OutOfRange`].
    pub fn splice(
        &mut self,
        path: impl Into<Path>,
        position: usize,
        delete: usize,
        insert: &str,
    ) -> Result<(), ViewError> {
        let path = path.into();
        let text = self.object(&path, ObjType::Text)?;
        self.within(&path, &text, position.saturating_add(delete))?;
        // No text is longer than an isize can say, and `delete` is not longer than the text.
        Ok(self.tx.splice_text(&text, position, isize::try_from(delete).unwrap_or(isize::MAX), insert)?)
    }

    /// Marks a range of the text at `path`: bold, a link, a comment. `Null` as the value removes the mark.
    ///
    /// `expand` says whether text typed at an edge of the range gets the mark too.
    ///
    /// # Errors
    /// [`ViewError::NotFound`], [`ViewError::WrongKind`] when there is no text or the value is no plain one,
    /// [`ViewError::OutOfRange`], [`ViewError::Json`], [`ViewError::Serde`].
    pub fn mark(
        &mut self,
        path: impl Into<Path>,
        range: Range<usize>,
        name: &str,
        value: impl Serialize,
        expand: ExpandMark,
    ) -> Result<(), ViewError> {
        let path = path.into();
        let value = match Node::parse(&serde_json::to_value(value)?)? {
            Node::Scalar(value) => value,
            Node::Text(text) => ScalarValue::Str(text.into()),
            Node::Map(_) | Node::List(_) => {
                return Err(ViewError::WrongKind {
                    path,
                    expected: "a mark with a plain value",
                    found: "a mark with an object",
                });
            }
        };
        let text = self.object(&path, ObjType::Text)?;
        self.within(&path, &text, range.end)?;
        if range.start > range.end {
            return Err(ViewError::OutOfRange { path, position: range.start, length: range.end });
        }
        Ok(self.tx.mark(&text, Mark::new(name.to_owned(), value, range.start, range.end), expand)?)
    }

    /// How many keys, elements or code points the object at `path` has; `None` when there is no object.
    ///
    /// # Errors
    /// [`ViewError::Automerge`].
    pub fn length(&self, path: impl Into<Path>) -> Result<Option<usize>, ViewError> {
        Ok(match find(&self.tx, path.into().steps(), None)? {
            Some((DocumentValue::Object(_), object)) => Some(self.tx.length(&object)),
            _ => None,
        })
    }

    /// Whether there is a value at `path`.
    pub(super) fn has(&self, path: &Path) -> Result<bool, ViewError> {
        Ok(find(&self.tx, path.steps(), None)?.is_some())
    }

    /// Whether there is an object of the given kind at the end of `steps`.
    pub(super) fn is_object(&self, steps: &[String], kind: ObjType) -> Result<bool, ViewError> {
        let found = find(&self.tx, steps, None)?;
        Ok(found.is_some_and(|(value, _)| value == DocumentValue::Object(kind)))
    }

    /// The object of the given kind at `path`.
    fn object(&self, path: &Path, kind: ObjType) -> Result<ObjId, ViewError> {
        match find(&self.tx, path.steps(), None)? {
            None => Err(ViewError::NotFound(path.clone())),
            Some((DocumentValue::Object(found), id)) if found == kind => Ok(id),
            Some((value, _)) => Err(ViewError::WrongKind {
                path: path.clone(),
                expected: kind_name(&DocumentValue::Object(kind)),
                found: kind_name(&value),
            }),
        }
    }

    /// The object around the value at `path`, and the last step.
    fn parent<'p>(&self, path: &'p Path) -> Result<(ObjId, &'p str), ViewError> {
        let Some((step, front)) = path.steps().split_last() else {
            return Err(ViewError::WrongKind { path: path.clone(), expected: "a value in it", found: "the document" });
        };
        let around = || front.iter().cloned().collect::<Path>();
        match find(&self.tx, front, None)? {
            None => Err(ViewError::NotFound(around())),
            Some((DocumentValue::Object(ObjType::Map | ObjType::List), id)) => Ok((id, step)),
            Some((value, _)) => {
                Err(ViewError::WrongKind { path: around(), expected: "an object or a list", found: kind_name(&value) })
            }
        }
    }

    /// Where in `parent` a step leads.
    fn place(&self, path: &Path, parent: &ObjId, step: &str) -> Result<Place, ViewError> {
        let kind = self.tx.object_type(parent)?;
        let length = self.tx.length(parent);
        match prop_of(kind, step) {
            Some(Prop::Seq(position)) if position > length => {
                Err(ViewError::OutOfRange { path: path.clone(), position, length })
            }
            Some(Prop::Seq(position)) if position == length => Ok(Place::End(length)),
            Some(prop) => Ok(Place::Here(prop)),
            None if step == "-" => Ok(Place::End(length)),
            None => Err(ViewError::NotFound(path.clone())),
        }
    }

    fn within(&self, path: &Path, object: &ObjId, position: usize) -> Result<(), ViewError> {
        let length = self.tx.length(object);
        if position > length {
            return Err(ViewError::OutOfRange { path: path.clone(), position, length });
        }
        Ok(())
    }
}

/// A key or element, or the place behind the last element.
enum Place {
    Here(Prop),
    End(usize),
}

fn kind_name(value: &DocumentValue<'_>) -> &'static str {
    match value {
        DocumentValue::Object(ObjType::Map) => "an object",
        DocumentValue::Object(ObjType::Table) => "a table",
        DocumentValue::Object(ObjType::List) => "a list",
        DocumentValue::Object(ObjType::Text) => "a text",
        DocumentValue::Scalar(scalar) => match &**scalar {
            ScalarValue::Counter(_) => "a counter",
            ScalarValue::Timestamp(_) => "a timestamp",
            ScalarValue::Bytes(_) => "bytes",
            ScalarValue::Str(_) => "a plain string",
            ScalarValue::Int(_) | ScalarValue::Uint(_) | ScalarValue::F64(_) => "a number",
            ScalarValue::Boolean(_) => "a boolean",
            ScalarValue::Null => "null",
            ScalarValue::Unknown { .. } => "a value of an unknown type",
        },
    }
}
