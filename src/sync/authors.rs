//! Whose a document's authors are, said between nodes where changes travel without their origins: in Automerge's sync
//! messages and as document chunks. Without it they would be nobody's where they arrive, and anybody might write in their
//! name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

use super::origins::{Dictionary, origin_from_wire, origin_to_wire};
use super::session::{Channel, Outbox, SessionError};
use super::wire::{self, AUTHORS_MAX, Author, Frame};
use crate::document::{Change, ChangeGraph};
use crate::history::{HistoryError, Origin, Reader};
use crate::id::{ActorId, ChangeHash, DocumentId, Lsn};
use crate::log::record::{Admission, Record};

/// Where the first changes of the authors of one message or chunk entered, as a node says.
#[derive(Debug, Clone, Default)]
pub struct Authors {
    known: BTreeMap<ActorId, Origin>,
    /// There are more than are kept: of none of the others it is known whose they are.
    are_more: bool,
}

/// Authors that are kept for one message or chunk.
const AUTHORS_KEPT_MAX: usize = 1 << 17;

impl Authors {
    /// Where a change entered: where its author's first one did, if that was said, and `otherwise` if not.
    #[must_use]
    pub fn origin(&self, change: &Change, otherwise: &Origin) -> Origin {
        match self.known.get(change.actor()) {
            Some(origin) => origin.clone(),
            // Rather nobody may write as one of them than anybody.
            None if self.are_more => Origin { admission: Admission::Local, ..otherwise.clone() },
            None => otherwise.clone(),
        }
    }

    /// Takes what a node says.
    pub(super) fn take(&mut self, said: wire::Authors) {
        for Author { actor, origin } in said.authors {
            let (Some(actor), Some(origin)) = (ActorId::new(&actor), said.origins.get(origin as usize)) else {
                continue;
            };
            if self.known.len() >= AUTHORS_KEPT_MAX && !self.known.contains_key(&actor) {
                self.are_more = true;
                continue;
            }
            // Of later changes it is not known which rules let them in.
            self.known.insert(actor, Origin { rules_version: 0, ..origin_from_wire(origin) });
        }
    }
}

/// Authors of a document that are to be named to a node, and where the log has their first changes.
#[derive(Debug)]
pub(super) struct Naming {
    document: DocumentId,
    left: Vec<(ActorId, Lsn)>,
}

impl Naming {
    /// All authors of a document.
    ///
    /// # Errors
    /// [`HistoryError`] when the store cannot be read.
    pub(super) fn of_all(document: DocumentId, reader: &Reader) -> Result<Self, HistoryError> {
        Self::of(document, reader, |graph| graph.clocks().map(|(actor, _)| actor.clone()).collect())
    }

    /// The authors of some of its changes.
    ///
    /// # Errors
    /// As [`Self::of_all`].
    pub(super) fn of_changes(
        document: DocumentId,
        changes: &BTreeSet<ChangeHash>,
        reader: &Reader,
    ) -> Result<Self, HistoryError> {
        Self::of(document, reader, |graph| {
            let found = changes.iter().filter_map(|hash| graph.index_of(hash));
            found.map(|index| graph.info_at(index).actor.clone()).collect()
        })
    }

    fn of(
        document: DocumentId,
        reader: &Reader,
        authors: impl FnOnce(&ChangeGraph) -> BTreeSet<ActorId>,
    ) -> Result<Self, HistoryError> {
        let graph = reader.graph(document)?;
        let graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
        let first = |actor: ActorId| Some((graph.lsn_of(&graph.change_of(&actor, 1)?)?, actor));
        let left = authors(&graph).into_iter().filter_map(first).map(|(lsn, actor)| (actor, lsn)).collect();
        Ok(Self { document, left })
    }

    /// Sends what is left of a naming on a channel, a frame at a time; `false` when nothing is.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub(super) fn send(
        naming: &mut Option<Self>,
        channel: Channel,
        reader: &Reader,
        out: &mut Outbox,
    ) -> Result<bool, SessionError> {
        let Some(left) = naming else { return Ok(false) };
        match left.next(reader)? {
            Some(frame) => out.send(channel, frame, false),
            None => *naming = None,
        }
        Ok(naming.is_some())
    }

    /// The next frame; `None` at the end. Nothing is said of authors who are nobody in particular.
    ///
    /// # Errors
    /// [`SessionError::History`] when the store cannot be read.
    ///
    /// # Cost
    /// Up to 1,024 records are read.
    fn next(&mut self, reader: &Reader) -> Result<Option<Vec<u8>>, SessionError> {
        while !self.left.is_empty() {
            let some = self.left.split_off(self.left.len().saturating_sub(AUTHORS_MAX));
            let (mut origins, mut authors) = (Dictionary::default(), Vec::new());
            for (actor, lsn) in some {
                let Some(Record::Change(header, _)) = reader.record(lsn)? else {
                    return Err(HistoryError::Missing(format!("change record {lsn}")).into());
                };
                let mut origin = reader.origin_of(&header)?;
                if origin.admission == Admission::Local {
                    // A node's author writes for whoever asks the node: of one change it does not follow whose another is.
                    origin.principal.clear();
                } else if origin.principal.is_empty() {
                    continue;
                }
                authors.push(Author {
                    actor: actor.as_bytes().to_vec(),
                    origin: origins.place_of(origin_to_wire(&origin)),
                });
            }
            if !authors.is_empty() {
                let (document, origins) = (self.document, origins.items);
                return Ok(Some(Frame::Authors(wire::Authors { document, origins, authors }).encode()?));
            }
        }
        Ok(None)
    }
}
