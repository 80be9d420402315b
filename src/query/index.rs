//! Indexes: which there may be, and what is in them.

use serde_json::{Value, json};

use super::rows::entries_of;
use super::spec::put;
use super::value::{self, TOO_MANY, ValueKey};
use crate::document::Path;
use crate::error::QueryError;
use crate::id::{CollectionName, DocumentId, encode_hex, first};
use crate::limits::queries;
use crate::log::rows::{IndexDefinitionRow, IndexPartRow, IndexPhase};

/// An index of a collection: the documents that have certain fields, in the order of these.
#[derive(Debug, Clone)]
pub(super) struct Index {
    pub(super) id: [u8; 8],
    pub(super) parts: Vec<Part>,
    pub(super) declared: bool,
    pub(super) phase: IndexPhase,
    pub(super) used_ms: u64,
}

/// One field of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) field: Path,
    /// Not the value but the elements of the list there.
    pub(super) elements: bool,
    pub(super) descending: bool,
}

/// An index as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexState {
    /// Its name: 16 hexadecimal digits.
    pub id: String,
    /// Its fields, as they are declared.
    pub fields: Vec<String>,
    /// Somebody asked for it; else a query did.
    pub declared: bool,
    /// Queries use it.
    pub ready: bool,
    /// About which part of the documents are in it, in thousandths.
    pub built: u32,
}

impl IndexState {
    /// The index as the HTTP port and the command line show it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "id": self.id,
            "fields": self.fields,
            "declared": self.declared,
            "ready": self.ready,
            "built": f64::from(self.built) / 1000.0,
        })
    }
}

impl Part {
    pub(super) fn ascending(field: Path) -> Self {
        Self { field, elements: false, descending: false }
    }

    pub(super) fn elements(field: Path) -> Self {
        Self { field, elements: true, descending: false }
    }

    /// Reads a part as it is declared: a field, and perhaps `asc`, `desc` or `elements` after a space.
    ///
    /// # Errors
    /// [`QueryError::Index`].
    pub(super) fn parse(text: &str) -> Result<Self, QueryError> {
        let text = text.trim();
        let (field, word) = match text.rsplit_once(' ') {
            Some((field, word @ ("asc" | "desc" | "elements"))) => (field.trim(), word),
            _ => (text, "asc"),
        };
        if field.is_empty() {
            return Err(QueryError::index("an index needs fields", "name a field, as in `at desc`"));
        }
        Ok(Self { field: Path::from(field), elements: word == "elements", descending: word == "desc" })
    }

    /// The part as it is declared.
    pub(super) fn written(&self) -> String {
        let pointer = self.field.to_string();
        // The dotted form where it says the same.
        let dotted = self.field.steps().join(".");
        let field = if Path::from(&dotted) == self.field { dotted } else { pointer };
        match (self.elements, self.descending) {
            (true, _) => format!("{field} elements"),
            (_, true) => format!("{field} desc"),
            _ => field,
        }
    }
}

impl Index {
    /// A new index of `parts`.
    ///
    /// # Errors
    /// [`QueryError::Index`] when there may be none of them.
    pub(super) fn new(collection: &CollectionName, parts: Vec<Part>, declared: bool) -> Result<Self, QueryError> {
        if parts.is_empty() || parts.len() > queries::PARTS_MAX {
            let fix = format!("give 1 to {} fields", queries::PARTS_MAX);
            return Err(QueryError::index(format!("an index cannot have {} fields", parts.len()), fix));
        }
        if parts.iter().filter(|part| part.elements).count() > 1 {
            return Err(QueryError::index("an index can have the elements of one list only", "leave the others out"));
        }
        for (at, part) in parts.iter().enumerate() {
            if parts[..at].contains(part) {
                return Err(QueryError::index(format!("{} is named twice", part.written()), "name it once"));
            }
        }
        let mut hasher = blake3::Hasher::new_derive_key("tidelog 2026-11 index");
        hasher.update(collection.as_str().as_bytes()).update(&[0]);
        for part in &parts {
            let kind = match (part.elements, part.descending) {
                (true, _) => b"e",
                (_, true) => b"d",
                _ => b"a",
            };
            hasher.update(kind).update(part.field.to_string().as_bytes()).update(&[0]);
        }
        let id = first(hasher.finalize().as_bytes());
        Ok(Self { id, parts, declared, phase: IndexPhase::Building { after: None }, used_ms: 0 })
    }

    pub(super) fn from_row(id: [u8; 8], row: IndexDefinitionRow) -> Self {
        let parts = row
            .parts
            .into_iter()
            .map(|part| Part { field: Path::from(part.path), elements: part.elements, descending: part.descending })
            .collect();
        Self { id, parts, declared: row.declared, phase: row.phase, used_ms: row.used_ms }
    }

    pub(super) fn row(&self, collection: &CollectionName) -> IndexDefinitionRow {
        let part = |part: &Part| IndexPartRow {
            path: part.field.to_string(),
            elements: part.elements,
            descending: part.descending,
        };
        IndexDefinitionRow {
            collection: collection.as_str().to_owned(),
            parts: self.parts.iter().map(part).collect(),
            declared: self.declared,
            phase: self.phase,
            used_ms: self.used_ms,
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.phase == IndexPhase::Ready
    }

    pub(super) fn is_building(&self) -> bool {
        matches!(self.phase, IndexPhase::Building { .. })
    }

    pub(super) fn is_dropping(&self) -> bool {
        self.phase == IndexPhase::Dropping
    }

    /// Whether documents stand under it from the greatest to the least.
    pub(super) fn ends_descending(&self) -> bool {
        self.parts.last().is_some_and(|part| part.descending)
    }

    pub(super) fn state(&self) -> IndexState {
        let built = match self.phase {
            IndexPhase::Building { after } => {
                // Ids are random, so their beginning says how far it is.
                after.map_or(0, |after| u32::from(u16::from_be_bytes([after[0], after[1]])) * 1000 / 65_536)
            }
            IndexPhase::Ready => 1000,
            IndexPhase::Dropping => 0,
        };
        IndexState {
            id: encode_hex(&self.id),
            fields: self.parts.iter().map(Part::written).collect(),
            declared: self.declared,
            ready: self.is_ready(),
            built,
        }
    }

    /// The keys under which a document with that value stands; none when it lacks a field.
    pub(super) fn entries(&self, id: DocumentId, document: &Value) -> Vec<Vec<u8>> {
        let mut keys = vec![entries_of(self.id)];
        for part in &self.parts {
            let Some(found) = value::at(document, part.field.steps()) else { return Vec::new() };
            if part.elements {
                let elements = elements_of(found);
                keys = keys
                    .iter()
                    .flat_map(|key| elements.iter().map(|element| [&key[..], &element[..]].concat()))
                    .collect();
            } else {
                let found = ValueKey::of(found);
                keys.iter_mut().for_each(|key| put(key, found.as_bytes(), part.descending));
            }
        }
        keys.iter_mut().for_each(|key| put(key, &id.0, self.ends_descending()));
        keys
    }

    /// The document that an entry is about.
    pub(super) fn document_in(&self, key: &[u8]) -> Option<DocumentId> {
        let id = super::rows::id_at_end(key)?;
        Some(if self.ends_descending() { DocumentId(id.0.map(|byte| !byte)) } else { id })
    }
}

/// The keys of a list's elements, each once. Of a list with too many there is one, which every search among elements
/// comes by.
fn elements_of(found: &Value) -> Vec<Vec<u8>> {
    let elements = value::elements(found);
    if elements.len() > queries::ELEMENTS_MAX {
        return vec![vec![TOO_MANY]];
    }
    let mut keys: Vec<Vec<u8>> = elements.iter().map(|element| ValueKey::of(element).as_bytes().to_vec()).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(parts: &[&str]) -> Index {
        let parts = parts.iter().map(|part| Part::parse(part).unwrap()).collect();
        Index::new(&CollectionName::new("notes").unwrap(), parts, true).unwrap()
    }

    #[test]
    fn parts_read_as_they_are_written() {
        for text in ["a", "a.b desc", "tags elements", "/a.b", "a b desc"] {
            assert_eq!(Part::parse(text).unwrap().written(), text);
        }
        assert_eq!(Part::parse(" at  asc ").unwrap(), Part::ascending(Path::from("at")));
        assert!(Part::parse("").is_err() && Part::parse(" desc").is_ok());
    }

    #[test]
    fn entries_are_in_the_order_of_the_fields() {
        let index = index(&["room", "at desc"]);
        let (low, high) = (DocumentId([1; 16]), DocumentId([2; 16]));
        let entry = |id, room: &str, at: i32| index.entries(id, &json!({"room": room, "at": at})).remove(0);
        let ascending =
            [entry(low, "a", 9), entry(high, "a", 5), entry(low, "a", 5), entry(low, "a", -1), entry(low, "b", 99)];
        assert!(ascending.is_sorted());
        assert_eq!(index.document_in(&ascending[1]), Some(high));
        assert_eq!(index.entries(low, &json!({"room": "a"})), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn elements_are_indexed_once_each() {
        let index = index(&["tags elements"]);
        let count = |value: Value| index.entries(DocumentId([1; 16]), &json!({"tags": value})).len();
        assert_eq!((count(json!(["a", "b", "a"])), count(json!([])), count(json!("a"))), (2, 0, 0));
        assert_eq!(count(json!((0..2000).collect::<Vec<u32>>())), 1);
    }

    #[test]
    fn what_no_index_can_be_is_refused() {
        let name = CollectionName::new("notes").unwrap();
        let parts = |texts: &[&str]| texts.iter().map(|text| Part::parse(text).unwrap()).collect::<Vec<_>>();
        for texts in [&[][..], &["a", "a"], &["a elements", "b elements"], &["a"; 9]] {
            assert!(Index::new(&name, parts(texts), true).is_err(), "{texts:?}");
        }
        assert_ne!(index(&["a"]).id, index(&["a desc"]).id);
    }
}
