//! Documents that go as one chunk, each on a stream of its own.

use std::sync::PoisonError;

use super::rows::Rows;
use super::{Serving, Source, say_unknown};
use crate::history::{Reader, Snapshot};
use crate::id::DocumentId;
use crate::sync::authors::Naming;
use crate::sync::session::{Channel, Opened, Outbox, SessionError, Side};
use crate::sync::wire::{DocumentBatch, Frame, Outcome, StreamBegin, StreamPart, Wanted};

/// A chunk that is being sent.
pub(super) struct Outgoing {
    pub(super) opened: Opened,
    pub(super) document: DocumentId,
    pub(super) snapshot: Snapshot,
    pub(super) begun: bool,
    /// What says whose its authors are.
    pub(super) authors: Option<Naming>,
    pub(super) gone: usize,
}

impl Source {
    /// Sends the next piece of a chunk; `false` when no stream is free.
    pub(in crate::sync) fn step_streams(&mut self, reader: &Reader, out: &mut Outbox) -> Result<bool, SessionError> {
        let free = |outgoing: &Outgoing| out.is_free(Channel::Stream(outgoing.opened));
        let Some(place) = self.streams.iter().position(free) else { return Ok(false) };
        let outgoing = &mut self.streams[place];
        let (channel, bytes) = (Channel::Stream(outgoing.opened), &outgoing.snapshot.bytes);
        if !outgoing.begun {
            outgoing.begun = true;
            let begin = Frame::StreamBegin(StreamBegin {
                id: outgoing.opened.number,
                document: outgoing.document,
                bytes: bytes.len() as u64,
                covers: outgoing.snapshot.lsn,
                heads: outgoing.snapshot.heads.clone(),
            });
            out.send(channel, begin.encode()?, false);
            return Ok(true);
        }
        if Naming::send(&mut outgoing.authors, channel, reader, out)? {
            return Ok(true);
        }
        let end = bytes.len().min(outgoing.gone + self.limits.part_bytes);
        let part = Frame::StreamPart(StreamPart { bytes: bytes[outgoing.gone..end].to_vec() });
        outgoing.gone = end;
        let last = end == bytes.len();
        out.send(channel, part.encode()?, last);
        if last {
            self.streams.remove(place);
        }
        Ok(true)
    }

    /// Opens a stream for a document's snapshot; without one its changes are sent.
    pub(super) fn begin_stream(&mut self, want: Wanted, reader: &Reader, out: &mut Outbox) -> Result<(), SessionError> {
        let document = want.document;
        if !self.audience.may_read(document) {
            return say_unknown(document, out);
        }
        let fits = |snapshot: &Snapshot| (1..=self.limits.document_bytes_max).contains(&snapshot.bytes.len());
        let Some(snapshot) = reader.snapshot(document)?.filter(fits) else {
            let graph = reader.graph(document)?;
            let graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
            let remaining = graph.following(&[]).into_iter().map(|index| graph.lsn_at(index)).collect();
            self.serving = Some(Serving { document, remaining, heads: graph.heads(), first: true });
            return Ok(());
        };
        self.opened += 1;
        let opened = Opened { by: Side::Us, number: self.opened };
        let mut rows = Rows::default();
        self.add_lifecycle(document, reader, &mut rows)?;
        out.control(&Frame::DocumentBatch(DocumentBatch {
            document,
            origins: rows.origins.items,
            rows: rows.rows,
            streamed: Some(opened.number),
            heads: snapshot.heads.clone(),
            outcome: Outcome::More,
        }))?;
        self.unread.insert(document, snapshot.bytes.len());
        let authors =
            self.tells_authors.then(|| Naming::of_all(document, reader, self.attester.clone())).transpose()?;
        self.streams.push(Outgoing { opened, document, snapshot, begun: false, authors, gone: 0 });
        Ok(())
    }

    /// Whether a stream may be opened, beside those that together hold one document at most and that the peer has not
    /// read to their end.
    pub(super) fn has_free_stream(&self) -> bool {
        let bytes: usize = self.unread.values().sum();
        self.unread.len() < self.limits.bulk_streams_per_peer && bytes < self.limits.document_bytes_max / 4
    }
}
