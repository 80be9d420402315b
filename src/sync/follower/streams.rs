//! Documents that come as one chunk, each on a stream of its own.

use super::{Follower, unexpected};
use crate::id::DocumentId;
use crate::sync::authors::Authors;
use crate::sync::intake::{Intake, Mark};
use crate::sync::session::{IncomingBody, IncomingRow, Opened, SessionError};
use crate::sync::wire::{self, Attestations, StreamBegin};

/// A chunk that is coming in.
pub(super) struct Incoming {
    pub(super) document: DocumentId,
    pub(super) bytes: Vec<u8>,
    /// Whose its authors are, as the peer says.
    pub(super) authors: Authors,
    pub(super) length: usize,
}

impl Follower {
    /// Takes the begin of a streamed chunk.
    pub(in crate::sync) fn handle_stream(&mut self, opened: Opened, begin: StreamBegin) -> Result<(), SessionError> {
        if self.streams.contains_key(&opened) {
            return Err(unexpected("StreamBegin", "the stream began already"));
        }
        if self.offered.ignores(begin.document, opened) {
            return Ok(());
        }
        if !self.wanted.contains_key(&begin.document) {
            return Err(unexpected("StreamBegin", "the document was not asked for"));
        }
        // Twice as many: the peer may begin the next before we have read the one before.
        let max = 2 * self.limits.bulk_streams_per_peer;
        if self.streams.len() >= max {
            return Err(SessionError::TooMany { what: "streams", max });
        }
        let max = self.limits.document_bytes_max;
        let length = usize::try_from(begin.bytes).ok().filter(|length| (1..=max).contains(length));
        let length = length.ok_or(SessionError::TooMany { what: "bytes in a document", max })?;
        let expected: usize = self.streams.values().map(|incoming| incoming.length).sum();
        if expected + length > 2 * max {
            return Err(SessionError::TooMany { what: "bytes on streams", max: 2 * max });
        }
        let (document, authors) = (begin.document, Authors::verified_by(self.verifier.clone()));
        self.streams.insert(opened, Incoming { document, bytes: Vec::new(), authors, length });
        Ok(())
    }

    /// Takes whose the authors of a streamed chunk are, from a node.
    pub(in crate::sync) fn handle_stream_authors(
        &mut self,
        opened: Opened,
        said: wire::Authors,
    ) -> Result<(), SessionError> {
        if self.offered.is_ignored(opened) || !self.rights.may_say_origins() {
            return Ok(());
        }
        match self.streams.get_mut(&opened).filter(|incoming| incoming.document == said.document) {
            Some(incoming) => {
                incoming.authors.take(said);
                Ok(())
            }
            None => Err(unexpected("Authors", "no such document's stream began")),
        }
    }

    /// Takes who answers for the authors of a streamed chunk, from a node.
    pub(in crate::sync) fn handle_stream_attestations(&mut self, opened: Opened, said: &Attestations) {
        if self.rights.may_say_origins()
            && let Some(incoming) = self.streams.get_mut(&opened)
        {
            incoming.authors.take_attested(said);
        }
    }

    /// Takes a piece of a streamed chunk.
    pub(in crate::sync) fn handle_stream_part(
        &mut self,
        opened: Opened,
        bytes: &[u8],
        intake: &mut Intake,
    ) -> Result<(), SessionError> {
        if self.offered.is_ignored(opened) {
            return Ok(());
        }
        let Some(incoming) = self.streams.get_mut(&opened) else {
            return Err(unexpected("StreamPart", "the stream did not begin or is over"));
        };
        incoming.bytes.extend_from_slice(bytes);
        if incoming.bytes.len() > incoming.length {
            return Err(unexpected("StreamPart", "the chunk is longer than announced"));
        }
        if incoming.bytes.len() == incoming.length
            && let Some(incoming) = self.streams.remove(&opened)
        {
            let Incoming { document, bytes, authors, .. } = incoming;
            let origin = self.origin_here();
            let body = IncomingBody::Document { bytes, authors };
            intake.push(IncomingRow { document, body, origin, signature: None });
            intake.mark(Mark::Stream { document });
        }
        Ok(())
    }

    pub(in crate::sync) fn handle_stream_closed(&mut self, opened: Opened) -> Result<(), SessionError> {
        self.offered.forget_stream(opened);
        match self.streams.remove(&opened) {
            None => Ok(()),
            // The document may not be read any more; the answer to the next want says so.
            Some(incoming) if self.offered.is_limited() => {
                self.ask_again(incoming.document);
                Ok(())
            }
            Some(_) => Err(unexpected("StreamPart", "the stream ended before the chunk")),
        }
    }
}
