//! What is the same for every socket of a server: where documents stand at the end of the log, and messages that were
//! made already.
//!
//! When somebody types, a hundred readers of the document are in the same state, and each of their sessions would read
//! the same rows, walk the same graph and encode the same message. The first does, and leaves it here. Nothing here can
//! be out of date: places count for one end of the log, and a message is found by all that it was made from.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::document::ChangeGraph;
use crate::history::{HistoryError, Reader};
use crate::id::{CollectionName, DocumentId, Lsn};
use crate::sync::{Composed, State};

/// What the sessions of one server share. Cheap when nobody else asks.
#[derive(Debug, Default)]
pub struct RepoCommon {
    // Both protect look-ups only: what is not here is read and made without them.
    places: Mutex<Places>,
    messages: Mutex<Messages>,
}

/// Documents that were looked at since the log last grew. Beyond so many it begins anew.
const PLACES_MAX: usize = 4096;
/// Messages kept, and their bytes. Beyond, the oldest go.
const MESSAGES_MAX: usize = 256;
const MESSAGES_BYTES: usize = 16 << 20;

#[derive(Debug, Default)]
struct Places {
    tail: Lsn,
    documents: HashMap<DocumentId, Arc<Place>>,
}

/// Where a document stands.
#[derive(Debug)]
pub(super) struct Place {
    /// What its row says; `None` when nobody ever brought anything of it.
    pub(super) state: Option<PlaceState>,
    /// Its changes. Of what is not there, an empty graph that is kept for nobody: else asking for what is not there would
    /// fill the memory that is for what is.
    pub(super) graph: Arc<Mutex<ChangeGraph>>,
}

#[derive(Debug)]
pub(super) struct PlaceState {
    pub(super) collection: CollectionName,
    pub(super) is_visible: bool,
    pub(super) is_empty: bool,
}

#[derive(Debug, Default)]
struct Messages {
    by_state: HashMap<(DocumentId, State), Arc<Composed>>,
    /// The oldest first.
    order: VecDeque<(DocumentId, State)>,
    bytes: usize,
}

impl RepoCommon {
    /// Where a document stands, at the end of the log or a little further.
    pub(super) fn place(&self, document: DocumentId, reader: &Reader) -> Result<Arc<Place>, HistoryError> {
        // Read before the rows: they are of this end or of a later one.
        let tail = reader.tail().lsn;
        {
            let mut places = lock(&self.places);
            if places.tail < tail || places.documents.len() >= PLACES_MAX {
                *places = Places { tail, ..Places::default() };
            }
            if let Some(place) = places.documents.get(&document) {
                return Ok(place.clone());
            }
        }
        let place = Arc::new(match reader.document(document)? {
            None => Place { state: None, graph: Arc::default() },
            Some(state) => Place {
                state: Some(PlaceState {
                    collection: state.collection,
                    is_visible: state.visible,
                    is_empty: state.change_count == 0,
                }),
                graph: reader.graph(document)?,
            },
        });
        let mut places = lock(&self.places);
        if places.tail == tail {
            places.documents.insert(document, place.clone());
        }
        Ok(place)
    }

    /// The message made from such a state, if one was.
    pub(super) fn composed(&self, document: DocumentId, state: &State) -> Option<Arc<Composed>> {
        lock(&self.messages).by_state.get(&(document, *state)).cloned()
    }

    /// Keeps a message for whoever is in the same state.
    pub(super) fn keep(&self, document: DocumentId, state: State, composed: Arc<Composed>) {
        let bytes = composed.bytes();
        if bytes > MESSAGES_BYTES / 4 {
            return;
        }
        let mut messages = lock(&self.messages);
        if messages.by_state.insert((document, state), composed).is_some() {
            // Two made it at once.
            return;
        }
        messages.order.push_back((document, state));
        messages.bytes += bytes;
        while messages.order.len() > MESSAGES_MAX || messages.bytes > MESSAGES_BYTES {
            let Some(oldest) = messages.order.pop_front() else { break };
            if let Some(gone) = messages.by_state.remove(&oldest) {
                messages.bytes -= gone.bytes();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_messages_make_room_and_long_ones_are_not_kept() {
        let common = RepoCommon::default();
        let document = DocumentId([1; 16]);
        let message = |bytes: usize| Arc::new(Composed::of(vec![0; bytes]));
        let state = |n: usize| State::of(&n.to_le_bytes());
        for n in 0..2 * MESSAGES_MAX {
            common.keep(document, state(n), message(10));
        }
        assert!(common.composed(document, &state(0)).is_none());
        assert!(common.composed(document, &state(2 * MESSAGES_MAX - 1)).is_some());
        assert!(common.composed(DocumentId([2; 16]), &state(2 * MESSAGES_MAX - 1)).is_none());
        common.keep(document, state(1), message(MESSAGES_BYTES / 2));
        assert!(common.composed(document, &state(1)).is_none());
        for n in 0..20 {
            common.keep(document, state(n), message(MESSAGES_BYTES / 5));
        }
        let messages = lock(&common.messages);
        assert!(messages.bytes <= MESSAGES_BYTES && messages.by_state.len() == messages.order.len());
        assert_eq!(messages.bytes, messages.by_state.values().map(|composed| composed.bytes()).sum::<usize>());
    }
}
