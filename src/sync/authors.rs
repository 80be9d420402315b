//! Whose a document's authors are, said between nodes where changes travel without their origins: in Automerge's sync
//! messages and as document chunks. Without it they would be nobody's where they arrive, and anybody might write in their
//! name.

use std::collections::{BTreeMap, HashSet};
use std::sync::PoisonError;

use super::origins::{Dictionary, origin_from_wire, origin_to_wire};
use super::session::SessionError;
use super::wire::{self, AUTHORS_MAX, Author, Frame};
use crate::document::Change;
use crate::history::{HistoryError, Origin, Reader};
use crate::id::{ActorId, DocumentId, Lsn};
use crate::log::record::{Admission, Record};

/// Where the first change of each of a document's authors entered, as a node says.
#[derive(Debug, Clone, Default)]
pub struct Authors(BTreeMap<ActorId, Origin>);

/// Authors of one document that are remembered for what is under way. A peer that names more is no node.
const AUTHORS_HEARD_MAX: usize = 1 << 17;

impl Authors {
    /// Where a change entered: where its author's first one did, if that was said, and `otherwise` if not.
    #[must_use]
    pub fn origin(&self, change: &Change, otherwise: &Origin) -> Origin {
        self.0.get(change.actor()).unwrap_or(otherwise).clone()
    }

    /// Takes what a node says.
    ///
    /// # Errors
    /// [`SessionError::TooMany`].
    pub(super) fn take(&mut self, said: wire::Authors) -> Result<(), SessionError> {
        for Author { actor, origin } in said.authors {
            let (Some(actor), Some(origin)) = (ActorId::new(&actor), said.origins.get(origin as usize)) else {
                continue;
            };
            // Of later changes it is not known which rules let them in.
            let origin = Origin { rules_version: 0, ..origin_from_wire(origin) };
            self.0.insert(actor, origin);
        }
        match self.0.len() {
            0..=AUTHORS_HEARD_MAX => Ok(()),
            _ => Err(SessionError::TooMany { what: "authors of a document", max: AUTHORS_HEARD_MAX }),
        }
    }
}

/// Which authors of a document a peer has been told of.
#[derive(Debug, Default)]
pub(super) struct Told {
    authors: HashSet<ActorId>,
    /// How many changes the document had then.
    changes: usize,
}

impl Told {
    /// The frames that say what the peer has not been told of a document as it is now. Nothing is said of authors who are
    /// nobody in particular.
    ///
    /// # Errors
    /// [`SessionError::History`] when the store cannot be read.
    ///
    /// # Cost
    /// A record is read for each author that is new.
    pub(super) fn news(&mut self, document: DocumentId, reader: &Reader) -> Result<Vec<Vec<u8>>, SessionError> {
        let mut origins = Dictionary::default();
        let mut frames = Vec::new();
        let mut authors = Vec::new();
        let firsts = self.firsts(document, reader)?;
        let last = firsts.len();
        for (at, (actor, lsn)) in firsts.into_iter().enumerate() {
            let Some(Record::Change(header, _)) = reader.record(lsn)? else {
                return Err(HistoryError::Missing(format!("change record {lsn}")).into());
            };
            let origin = reader.origin_of(&header)?;
            if !origin.principal.is_empty() || origin.admission == Admission::Local {
                authors.push(Author {
                    actor: actor.as_bytes().to_vec(),
                    origin: origins.place_of(origin_to_wire(&origin)),
                });
            }
            self.authors.insert(actor);
            if authors.len() == AUTHORS_MAX || at + 1 == last && !authors.is_empty() {
                let (origins, authors) = (std::mem::take(&mut origins).items, std::mem::take(&mut authors));
                frames.push(Frame::Authors(wire::Authors { document, origins, authors }).encode()?);
            }
        }
        Ok(frames)
    }

    /// The authors that are new, and where the log has their first changes.
    fn firsts(&mut self, document: DocumentId, reader: &Reader) -> Result<Vec<(ActorId, Lsn)>, HistoryError> {
        let graph = reader.graph(document)?;
        let graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
        if graph.len() == std::mem::replace(&mut self.changes, graph.len()) {
            return Ok(Vec::new());
        }
        let new = graph.clocks().map(|(actor, _)| actor).filter(|actor| !self.authors.contains(actor));
        let first = |actor: &ActorId| Some((actor.clone(), graph.lsn_of(&graph.change_of(actor, 1)?)?));
        Ok(new.filter_map(first).collect())
    }
}
