//! Whose a document's authors are, said between nodes where changes travel without their origins: in Automerge's sync
//! messages and as document chunks. Without it they would be nobody's where they arrive, and anybody might write in their
//! name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use super::attest::{Attested, Attester, Verifier};
use super::origins::{Dictionary, origin_from_wire, origin_to_wire};
use super::session::{Channel, Outbox, SessionError};
use super::wire::{self, Attestations, Author, Frame};
use crate::document::{Change, ChangeGraph};
use crate::history::{HistoryError, Origin, Reader, Signature};
use crate::id::{ActorId, ChangeHash, DocumentId, Lsn};
use crate::log::record::{Admission, Record};

/// Where the first changes of the authors of one message or chunk entered, as a node says.
#[derive(Debug, Clone, Default)]
pub struct Authors {
    known: BTreeMap<ActorId, Origin>,
    /// There are more than are kept: of none of the others it is known whose they are.
    are_more: bool,
    /// Who answers for that, as far as it was said.
    attested: BTreeMap<ActorId, Attested>,
    /// What that is held against; none where nobody is believed in what he says of others.
    verifier: Option<Arc<Verifier>>,
}

/// Authors that are kept for one message or chunk.
const AUTHORS_KEPT_MAX: usize = 1 << 17;
/// Authors in one frame of ours, a quarter of what it may name: a signature may have to be made for each.
const AUTHORS_AT_ONCE: usize = 256;

impl Authors {
    /// What a node says, to be held against signatures.
    pub(super) fn verified_by(verifier: Option<Arc<Verifier>>) -> Self {
        Self { verifier, ..Self::default() }
    }

    /// Where a change of the document entered: where its author's first one did, if that was said, and `otherwise` if
    /// not. With an author's first change comes the signature that is to be kept of that, if there is one. First changes
    /// are to be asked about before others of their authors.
    ///
    /// # Cost
    /// Some 50 us for an author's first change, nothing for others.
    #[must_use]
    pub fn origin(
        &mut self,
        document: DocumentId,
        change: &Change,
        otherwise: &Origin,
        reader: &Reader,
    ) -> (Origin, Option<Box<Signature>>) {
        let told = match self.known.get(change.actor()) {
            Some(origin) => origin.clone(),
            // Rather nobody may write as one of them than anybody.
            None if self.are_more => Origin { admission: Admission::Local, ..otherwise.clone() },
            None => otherwise.clone(),
        };
        let Some(verifier) = self.verifier.as_deref().filter(|_| change.seq() == 1) else { return (told, None) };
        let attested = self.attested.get(change.actor()).filter(|attested| attested.document == document);
        let (origin, signature) = verifier.entered(document, change, told, attested, reader);
        if let Some(known) = self.known.get_mut(change.actor()) {
            // Of the author's later changes nothing else is known.
            known.node = origin.node;
        }
        (origin, signature)
    }

    /// The same, with nothing said yet.
    pub(super) fn emptied(&self) -> Self {
        Self::verified_by(self.verifier.clone())
    }

    /// How many signatures there are to check, at most.
    #[must_use]
    pub fn signatures(&self) -> usize {
        self.attested.len()
    }

    /// Takes who answers for what a node says.
    pub(super) fn take_attested(&mut self, said: &Attestations) {
        for attested in Attested::from_wire(said) {
            if self.attested.len() >= AUTHORS_KEPT_MAX && !self.attested.contains_key(&attested.actor) {
                continue;
            }
            self.attested.insert(attested.actor.clone(), attested);
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

/// Authors of a document that are to be named to a node.
#[derive(Debug)]
pub(super) struct Naming {
    document: DocumentId,
    left: Vec<Named>,
    attester: Option<Arc<dyn Attester>>,
    /// What is to be said of the authors of the last frame.
    attestations: Option<Vec<u8>>,
}

/// An author, and where the log has his first change.
#[derive(Debug)]
struct Named {
    actor: ActorId,
    lsn: Lsn,
    first: ChangeHash,
    /// It is among the changes that are sent.
    is_sent: bool,
}

impl Naming {
    /// All authors of a document.
    ///
    /// # Errors
    /// [`HistoryError`] when the store cannot be read.
    pub(super) fn of_all(
        document: DocumentId,
        reader: &Reader,
        attester: Option<Arc<dyn Attester>>,
    ) -> Result<Self, HistoryError> {
        let all = |graph: &ChangeGraph| graph.clocks().map(|(actor, _)| actor.clone()).collect();
        Self::of(document, reader, attester, all, |_| true)
    }

    /// The authors of some of its changes.
    ///
    /// # Errors
    /// As [`Self::of_all`].
    pub(super) fn of_changes(
        document: DocumentId,
        changes: &BTreeSet<ChangeHash>,
        reader: &Reader,
        attester: Option<Arc<dyn Attester>>,
    ) -> Result<Self, HistoryError> {
        let of_changes = |graph: &ChangeGraph| {
            let found = changes.iter().filter_map(|hash| graph.index_of(hash));
            found.map(|index| graph.info_at(index).actor.clone()).collect()
        };
        Self::of(document, reader, attester, of_changes, |first| changes.contains(first))
    }

    fn of(
        document: DocumentId,
        reader: &Reader,
        attester: Option<Arc<dyn Attester>>,
        authors: impl FnOnce(&ChangeGraph) -> BTreeSet<ActorId>,
        is_sent: impl Fn(&ChangeHash) -> bool,
    ) -> Result<Self, HistoryError> {
        let graph = reader.graph(document)?;
        let graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
        let named = |actor: ActorId| {
            let first = graph.change_of(&actor, 1)?;
            Some(Named { lsn: graph.lsn_of(&first)?, actor, first, is_sent: is_sent(&first) })
        };
        let left = authors(&graph).into_iter().filter_map(named).collect();
        Ok(Self { document, left, attester, attestations: None })
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
    /// Up to 256 records are read, and as many signatures read or made.
    fn next(&mut self, reader: &Reader) -> Result<Option<Vec<u8>>, SessionError> {
        if let Some(attestations) = self.attestations.take() {
            return Ok(Some(attestations));
        }
        while !self.left.is_empty() {
            let some = self.left.split_off(self.left.len().saturating_sub(AUTHORS_AT_ONCE));
            let (mut origins, mut authors, mut attested) = (Dictionary::default(), Vec::new(), Vec::new());
            for Named { actor, lsn, first, is_sent } in some {
                let Some(Record::Change(header, _)) = reader.record(lsn)? else {
                    return Err(HistoryError::Missing(format!("change record {lsn}")).into());
                };
                let mut origin = reader.origin_of(&header)?;
                let entered = origin.clone();
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
                if let Some(attester) = self.attester.as_deref().filter(|_| is_sent) {
                    attested.extend(Attested::of(attester, (self.document, actor, first), &entered, reader)?);
                }
            }
            self.attestations = Attested::frames(&attested).next().map(|frame| frame.encode()).transpose()?;
            if !authors.is_empty() {
                let (document, origins) = (self.document, origins.items);
                return Ok(Some(Frame::Authors(wire::Authors { document, origins, authors }).encode()?));
            }
        }
        Ok(None)
    }
}
