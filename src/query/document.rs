//! Documents as queries return them.

use serde_json::{Value, json};

use crate::engine::Database;
use crate::error::Error;
use crate::id::{ChangeHash, DocumentId, Heads, Lsn};

/// A document in a result: its value at the position of the result.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Which document.
    pub id: DocumentId,
    /// Its name, if it was created by one.
    pub name: Option<String>,
    /// Its heads.
    pub heads: Heads,
    /// The last record that led to it, as far as a view has looked.
    pub position: Lsn,
    /// Its value, as JSON.
    pub value: Value,
    /// Bytes of the value as text.
    pub(super) bytes: usize,
    /// What is kept for comparisons of a value that is too large to be kept whole.
    pub(super) kept: Option<Value>,
    /// The value is not there, only what is kept of it.
    pub(super) is_partial: bool,
}

impl Document {
    /// What conditions and orderings look at.
    pub(super) fn compared(&self) -> &Value {
        self.kept.as_ref().unwrap_or(&self.value)
    }

    /// Whether the value is not there, only what comparisons need of it.
    #[cfg(feature = "web")]
    pub(crate) fn is_in_part(&self) -> bool {
        self.is_partial
    }

    /// Reads what was not kept of the value.
    ///
    /// # Errors
    /// [`Error::View`] when the document cannot be built.
    ///
    /// # Cost
    /// Materialises the document, if its value was too large to be kept.
    pub(super) fn complete(mut self, database: &Database) -> Result<Self, Error> {
        if self.is_partial {
            let value = database.find(self.id)?.value_at(&self.heads)?;
            self.bytes = value.to_string().len();
            self.kept = Some(std::mem::replace(&mut self.value, value));
            self.is_partial = false;
        }
        Ok(self)
    }

    /// The value as a type of the caller's.
    ///
    /// # Errors
    /// [`ViewError::Serde`](crate::document::ViewError::Serde) when it has another shape.
    pub fn read<T: serde::de::DeserializeOwned>(&self) -> Result<T, Error> {
        Ok(T::deserialize(&self.value).map_err(crate::document::ViewError::from)?)
    }

    /// The document as the HTTP port and the command line show it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "id": self.id.to_string(),
            "name": self.name,
            "heads": self.heads.as_slice().iter().map(ChangeHash::to_string).collect::<Vec<_>>(),
            "position": self.position.0,
            "value": self.value,
        })
    }
}
