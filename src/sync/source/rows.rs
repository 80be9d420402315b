//! Rows as they go into a batch: documents and origins by their place in lists of their own.

use crate::history::Origin;
use crate::id::DocumentId;
use crate::sync::attest::Attested;
use crate::sync::origins::{Dictionary, origin_to_wire};
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
    /// Whose the authors are whose first changes are among the rows.
    pub(super) attested: Vec<Attested>,
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

    /// Sends what has to come before the rows.
    pub(super) fn send_ahead(&self, out: &mut Outbox) -> Result<(), SessionError> {
        Attested::frames(&self.attested).try_for_each(|frame| out.control(&frame))?;
        self.long.chunks(PART_BYTES_MAX).try_for_each(|bytes| out.control(&Frame::Part(Part { bytes: bytes.to_vec() })))
    }
}
