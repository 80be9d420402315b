//! What a peer may read of a log that is not all for it, and what it has heard of.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use super::{Phase, Source};
use crate::id::DocumentId;
use crate::log::record::{Lifecycle, LifecycleKind};
use crate::sync::permits::Permits;
use crate::sync::session::{Channel, Outbox, Output, SessionError};
use crate::sync::wire::{self, DENIED_MAX, Frame, Listing, RowKind};

/// The peer as one who may not read everything. By default it may.
#[derive(Debug, Default)]
pub(super) struct Audience {
    permits: Option<Arc<dyn Permits>>,
    /// Documents of which the peer has something, or was told.
    heard: HashSet<DocumentId>,
    /// Documents of which it brought something, or was sent a part. What may be read of them is yet to be listed.
    brought: HashSet<DocumentId>,
    /// There are more than those hold.
    more_heard: bool,
    /// What it may read is to be listed again.
    listing_due: bool,
}

/// Documents that are remembered for one peer. Of more, what it may read is listed as a whole whenever that changes.
const HEARD_MAX: usize = 1 << 16;

impl Audience {
    pub(super) fn set(&mut self, permits: Option<Arc<dyn Permits>>) {
        self.permits = permits;
    }

    /// Whether there is anything that it may not read.
    pub(super) fn is_limited(&self) -> bool {
        self.permits.is_some()
    }

    /// Whether anything of a document may be sent now.
    pub(super) fn may_read(&self, document: DocumentId) -> bool {
        mutant!(RightsUnasked) || self.permits.as_ref().is_none_or(|permits| permits.may_read(document))
    }

    /// Whether it is remembered that it has something of a document.
    pub(super) fn has_heard_of(&self, document: DocumentId) -> bool {
        self.heard.contains(&document)
    }

    /// Takes note that it has something of a document.
    pub(super) fn note(&mut self, document: DocumentId) {
        if self.permits.is_none() {
            return;
        }
        if self.heard.len() < HEARD_MAX {
            self.heard.insert(document);
        } else if !self.heard.contains(&document) {
            self.more_heard = true;
        }
    }

    /// Takes note that it is sent a row of a document. Of one that it has not heard of, and that this row does not begin, it
    /// lacks what was left out while it could not read it: that is listed.
    pub(super) fn note_row(&mut self, document: DocumentId, kind: RowKind, bytes: &[u8]) {
        if self.permits.is_none() || self.heard.contains(&document) {
            return;
        }
        let is_creation = |kind| kind == LifecycleKind::Created;
        if kind == RowKind::Lifecycle && Lifecycle::decode(bytes).is_ok_and(|statement| is_creation(statement.kind)) {
            self.note(document);
            return;
        }
        self.note_brought(document);
        self.listing_due = true;
    }

    /// Takes note that it brought something of a document; whether that is new.
    fn note_brought(&mut self, document: DocumentId) -> bool {
        if self.permits.is_none() || self.heard.contains(&document) || self.brought.contains(&document) {
            return false;
        }
        if self.brought.len() < HEARD_MAX {
            self.brought.insert(document);
        } else {
            self.more_heard = true;
        }
        true
    }

    /// Takes note that a document it may not read has changed; whether it must be told so, because it has heard of it.
    pub(super) fn forget(&mut self, document: DocumentId) -> Option<DocumentId> {
        let heard = self.heard.remove(&document) | self.brought.remove(&document);
        // It may be one of those that are not remembered.
        self.listing_due |= !heard && self.more_heard;
        heard.then_some(document)
    }

    /// The documents it has heard of and may not read any more, which are forgotten.
    pub(super) fn withhold(&mut self) -> Vec<DocumentId> {
        let Self { permits: Some(permits), heard, brought, .. } = self else { return Vec::new() };
        let mut withheld: Vec<_> = heard.extract_if(|document| !permits.may_read(*document)).collect();
        withheld.extend(brought.extract_if(|document| !permits.may_read(*document)));
        withheld.sort_unstable();
        withheld.dedup();
        withheld
    }

    /// What it may read is to be listed again, when everything before was sent.
    pub(super) fn list_again(&mut self) {
        self.listing_due = true;
    }

    pub(super) fn is_listing_due(&self) -> bool {
        self.listing_due
    }

    /// Says what is listed from here on; whether that is only what it has not heard of.
    pub(super) fn begin_listing(&mut self, out: &mut Outbox) -> Result<bool, SessionError> {
        self.listing_due = false;
        let only_new = !self.more_heard;
        let listing = if only_new { Listing::More } else { Listing::Whole };
        if !only_new {
            self.heard.clear();
            self.brought.clear();
            self.more_heard = false;
        }
        out.control(&Frame::Access(wire::Access { listing, withheld: Vec::new() }))?;
        Ok(only_new)
    }
}

impl Source {
    /// Takes who says what the peer may read.
    pub(in crate::sync) fn permit(&mut self, permits: Option<Arc<dyn Permits>>) {
        self.audience.set(permits);
    }

    /// Takes note that the peer has something of a document.
    pub(in crate::sync) fn note_brought(&mut self, document: DocumentId) {
        // What it brought without reading what others did to it is listed once it may.
        if self.audience.may_read(document) && self.audience.note_brought(document) {
            // A listing may have gone by its place, and the peer takes it for withheld then.
            let is_listing = matches!(self.phase, Phase::Waiting | Phase::Listing(_));
            self.audience.listing_due |= is_listing;
        }
    }

    /// Documents of which the log, as far as it was told, had changes withdrawn since this was asked last.
    pub(in crate::sync) fn take_withdrawn(&mut self) -> BTreeSet<DocumentId> {
        std::mem::take(&mut self.withdrawn)
    }

    /// Finds anew what the peer may read: what it may not any more is said at once, and what it may is listed when
    /// everything before was sent.
    ///
    /// # Errors
    /// [`SessionError::AccessChanged`] when something of what it may not read is on its way to it.
    pub(in crate::sync) fn handle_access_changed(&mut self, out: &mut Outbox) -> Result<(), SessionError> {
        if !self.audience.is_limited() {
            return Ok(());
        }
        let withheld = self.audience.withhold();
        let mut on_its_way = self.unacknowledged.iter().flat_map(|(_, documents)| documents);
        // So may an answer be that the transport has not taken yet.
        let waits = !withheld.is_empty() && out.has_control();
        if waits || on_its_way.any(|document| !self.audience.may_read(*document)) {
            return Err(SessionError::AccessChanged);
        }
        self.drop_streams(out);
        withheld.iter().for_each(|document| _ = self.unread.remove(document));
        say_withheld(withheld, out)?;
        self.audience.list_again();
        self.awake = true;
        Ok(())
    }

    /// Ends the streams of documents that the peer may not read.
    pub(super) fn drop_streams(&mut self, out: &mut Outbox) {
        let (unread, streams, audience) = (&mut self.unread, &mut self.streams, &self.audience);
        streams.retain(|outgoing| {
            let stays = audience.may_read(outgoing.document);
            if !stays {
                unread.remove(&outgoing.document);
                out.put(Output::Reset(Channel::Stream(outgoing.opened)));
            }
            stays
        });
    }
}

/// Tells the peer which documents it may not read any more.
pub(super) fn say_withheld(withheld: Vec<DocumentId>, out: &mut Outbox) -> Result<(), SessionError> {
    withheld.chunks(DENIED_MAX).try_for_each(|documents| {
        out.control(&Frame::Access(wire::Access { listing: Listing::Nothing, withheld: documents.to_vec() }))
    })
}
