//! Rows as they go into a batch: documents and origins by their place in lists of their own.

use std::collections::HashMap;
use std::hash::Hash;

use crate::history::Origin;
use crate::id::{DocumentId, truncated};
use crate::log::record::Admission;
use crate::sync::session::{Outbox, SessionError};
use crate::sync::wire::{self, Frame, PART_BYTES_MAX, Part, ROW_IN_PARTS, Row, RowKind};

/// Rows being gathered for a batch.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) rows: Vec<Row>,
    pub(super) documents: Dictionary<DocumentId>,
    pub(super) origins: Dictionary<wire::Origin>,
    /// The bytes of the one row that is too long for a batch.
    long: Vec<u8>,
    pub(super) bytes: usize,
}

impl Rows {
    pub(super) fn add(&mut self, kind: RowKind, document: DocumentId, origin: &Origin, bytes: Vec<u8>) {
        let document = self.documents.place_of(document);
        let origin = self.origins.place_of(origin_to_wire(origin));
        self.bytes += bytes.len() + wire::ROW_BYTES_BESIDE;
        // A slice or a batch holds nothing else once it holds a long row, so there is one at most.
        let (flags, bytes) = if bytes.len() > PART_BYTES_MAX {
            self.long = bytes;
            (ROW_IN_PARTS, Vec::new())
        } else {
            (0, bytes)
        };
        self.rows.push(Row { kind, flags, document, origin, bytes });
    }

    pub(super) fn send_parts(&self, out: &mut Outbox) -> Result<(), SessionError> {
        self.long.chunks(PART_BYTES_MAX).try_for_each(|bytes| out.control(&Frame::Part(Part { bytes: bytes.to_vec() })))
    }
}

/// Items that rows name by their place.
pub(super) struct Dictionary<T> {
    pub(super) items: Vec<T>,
    places: HashMap<T, u32>,
}

impl<T> Default for Dictionary<T> {
    fn default() -> Self {
        Self { items: Vec::new(), places: HashMap::new() }
    }
}

impl<T: Clone + Eq + Hash> Dictionary<T> {
    fn place_of(&mut self, item: T) -> u32 {
        if let Some(place) = self.places.get(&item) {
            return *place;
        }
        let place = self.items.len() as u32;
        self.items.push(item.clone());
        self.places.insert(item, place);
        place
    }
}

fn origin_to_wire(origin: &Origin) -> wire::Origin {
    let principal = truncated(&origin.principal, wire::PRINCIPAL_BYTES_MAX).to_owned();
    let admission = match origin.admission {
        Admission::Local => 0,
        Admission::Structural => 1,
        Admission::Full => 2,
    };
    wire::Origin { node: origin.node, principal, admission, rules_version: origin.rules_version }
}
