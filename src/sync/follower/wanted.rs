//! Documents that the peer has to answer for: what is asked, and when there is an end to it.

use super::{Follower, has_all};
use crate::history::{HistoryError, Reader};
use crate::id::{DocumentId, Heads};
use crate::sync::session::{Outbox, SessionError};
use crate::sync::wire::{Frame, Want, Wanted};

pub(super) struct Wanting {
    pub(super) state: Wish,
    /// Rows of it wait for changes we lack.
    pub(super) rows_wait: bool,
    /// Something came meanwhile that the answer need not cover.
    pub(super) again: bool,
    /// The stream that its answer is about to name is logged already.
    pub(super) logged_stream: Option<LoggedStream>,
    /// Whatever may be taken of a chunk is: the peer is not asked again for what it said that the chunk has.
    pub(super) is_read: bool,
    /// The heads the peer had when it answered with an exchange: what the exchange must bring at least.
    pub(super) required: Heads,
    pub(super) attempts: u32,
    /// What a page said of its state.
    pub(super) listed: Option<[u8; 16]>,
}

/// A chunk that came before the answer that names it.
pub(super) struct LoggedStream {
    pub(super) was_denied: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Asked,
    Streaming,
    Exchanging,
    /// An exchange ended before the answer came.
    Exchanged,
}

/// How often a document is asked for before the link is given up.
const ATTEMPTS_MAX: u32 = 8;
/// Heads named when asking. With fewer the peer sends more than it must.
const HEADS_MAX: usize = 1024;
/// A `Want` frame is closed beyond so many bytes.
const WANT_BYTES: usize = 512 << 10;

impl Follower {
    /// The answer for a document is logged. It is whole unless something came meanwhile.
    pub(super) fn conclude(&mut self, document: DocumentId, whole: bool, reader: &Reader) -> Result<(), SessionError> {
        let Some(wanting) = self.wanted.get_mut(&document) else { return Ok(()) };
        if whole && !wanting.again {
            if let Some(listed) = wanting.listed.filter(|_| self.offered.is_limited())
                && reader.document(document)?.is_some_and(|state| state.digest.0 != listed)
            {
                self.differing.push(document);
            }
            self.wanted.remove(&document);
            return Ok(());
        }
        wanting.attempts += u32::from(!whole);
        if wanting.attempts > ATTEMPTS_MAX {
            return Err(SessionError::NotConverging { document });
        }
        self.ask_again(document);
        Ok(())
    }

    pub(super) fn ask_again(&mut self, document: DocumentId) {
        if let Some(wanting) = self.wanted.get_mut(&document) {
            wanting.state = Wish::Asked;
            wanting.again = false;
            self.asks.push_back(document);
        }
    }

    /// Asks for what came after a chunk. What was denied of it does not come, however often it is asked for.
    pub(super) fn conclude_stream(&mut self, document: DocumentId, was_denied: bool) {
        // It may not even be created: its changes wait for that, and are neither taken nor denied.
        let is_refused = self.rights.refuses(document);
        if is_refused {
            self.rights.leave_unsettled();
        }
        if let Some(wanting) = self.wanted.get_mut(&document) {
            if is_refused {
                (wanting.again, wanting.rows_wait) = (false, false);
            }
            wanting.is_read = (was_denied || is_refused) && !wanting.again;
            self.ask_again(document);
        }
    }

    /// How many documents more may be asked for beside what pages list: the peer takes eight pages of them at once.
    pub(super) fn room_for_asks(&self) -> usize {
        let asked = self.wanted.values().filter(|wanting| wanting.state == Wish::Asked).count();
        let unanswered = asked.saturating_sub(self.asks.len());
        (4 * self.limits.inventory_rows).saturating_sub(unanswered)
    }

    /// Names a document with the heads we have, as far as the peer may know them.
    pub(super) fn wish(&self, document: DocumentId, reader: &Reader) -> Result<Wanted, HistoryError> {
        if let Some(wanting) = self.wanted.get(&document).filter(|wanting| wanting.is_read) {
            return Ok(Wanted { document, heads: shortened(wanting.required.clone()) });
        }
        if self.rights.may_read(document) {
            let heads = reader.document(document)?.map_or_else(Heads::default, |state| shortened(state.heads));
            return Ok(Wanted { document, heads });
        }
        // Nothing but what the peer has named itself.
        let named = self.wanted.get(&document).map(|wanting| wanting.required.clone()).unwrap_or_default();
        let has_them = !named.as_slice().is_empty() && has_all(document, &named, reader)?;
        Ok(Wanted { document, heads: if has_them { shortened(named) } else { Heads::default() } })
    }
}

impl Wanting {
    pub(super) fn new(state: Wish) -> Self {
        Self {
            state,
            rows_wait: false,
            again: false,
            logged_stream: None,
            is_read: false,
            required: Heads::default(),
            attempts: 0,
            listed: None,
        }
    }
}

fn shortened(heads: Heads) -> Heads {
    if heads.as_slice().len() <= HEADS_MAX { heads } else { Heads::new(heads.as_slice()[..HEADS_MAX].to_vec()) }
}

/// Sends wants in as many frames as they need; the last one answers the page.
pub(super) fn send_wants(page: u64, wishes: Vec<Wanted>, out: &mut Outbox) -> Result<(), SessionError> {
    let (mut documents, mut bytes) = (Vec::new(), 0);
    for wish in wishes {
        bytes += 20 + 32 * wish.heads.as_slice().len();
        documents.push(wish);
        if bytes > WANT_BYTES {
            bytes = 0;
            out.control(&Frame::Want(Want { page: 0, documents: std::mem::take(&mut documents) }))?;
        }
    }
    if page == 0 && documents.is_empty() { Ok(()) } else { out.control(&Frame::Want(Want { page, documents })) }
}
