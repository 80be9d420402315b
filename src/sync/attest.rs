//! Who answers for whose an author is: said to nodes with a signature, and held against it.
//!
//! A node signs when it sends an author's first change to another node. It passes on the signature that came with the
//! change, if it keeps one that fits the record, and else signs in its own name: for what entered here, and for what was
//! taken from somebody who did not prove it. Whoever is told of a third node without that node's signature takes it for
//! the word of the one who tells it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::origins::{Dictionary, origin_from_wire, origin_to_wire};
use super::wire::{self, ATTESTATIONS_MAX, Attestations, Frame};
use crate::document::Change;
use crate::history::{HistoryError, Origin, Reader, Signature, author_statement};
use crate::id::{ActorId, ChangeHash, DocumentId, NodeId};
use crate::log::record::Admission;

/// Signs what this node answers for, and checks what others signed. It may be asked on any thread, and answers at once.
pub trait Attester: fmt::Debug + Send + Sync {
    /// This node's Ed25519 signature; `None` when there is none to be had.
    fn sign(&self, statement: &[u8]) -> Option<[u8; 64]>;

    /// Whether a node, whose id is its public key, signed this.
    fn verify(&self, node: NodeId, statement: &[u8], signature: &[u8; 64]) -> bool;

    /// Hears of a claim about a third node that counts as the word of the peer who made it.
    fn note_unproven(&self, _unproven: Unproven) {}
}

/// Why a claim about a third node is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unproven {
    /// No signature that is about it came with it.
    Unsigned,
    /// The signature is not that node's, or of something else.
    Forged,
}

/// Whose an author is, and who says so.
#[derive(Debug, Clone)]
pub(super) struct Attested {
    pub(super) document: DocumentId,
    pub(super) actor: ActorId,
    pub(super) first: ChangeHash,
    /// Where the first change entered, as its node signed it.
    pub(super) origin: Origin,
    pub(super) signature: [u8; 64],
}

impl Attested {
    /// What a node is told of an author whose first change entered at `entered`, as the log has it.
    ///
    /// # Errors
    /// [`HistoryError`] when the store cannot be read.
    ///
    /// # Cost
    /// A read, or a signature: some 20 us where it was not made lately.
    pub(super) fn of(
        attester: &dyn Attester,
        (document, actor, first): (DocumentId, ActorId, ChangeHash),
        entered: &Origin,
        reader: &Reader,
    ) -> Result<Option<Self>, HistoryError> {
        // As it is told: a name that is too long for the wire is cut.
        let mut origin = Origin { rules_version: 0, ..origin_from_wire(&origin_to_wire(entered)) };
        let mut signature = None;
        if origin.node != reader.node() {
            signature = reader.signature(document, &author_statement(document, &actor, first, &origin))?;
        }
        if signature.is_none() {
            origin.node = reader.node();
            signature = attester.sign(&author_statement(document, &actor, first, &origin));
        }
        Ok(signature.map(|signature| Self { document, actor, first, origin, signature }))
    }

    /// Those that a frame names.
    pub(super) fn from_wire(said: &Attestations) -> impl Iterator<Item = Self> + '_ {
        said.authors.iter().filter_map(|author| {
            let document = *said.documents.get(author.document as usize)?;
            let origin = origin_from_wire(said.origins.get(author.origin as usize)?);
            let (actor, signature) = (ActorId::new(&author.actor)?, author.signature);
            let origin = Origin { rules_version: 0, ..origin };
            Some(Self { document, actor, first: author.first, origin, signature })
        })
    }

    /// The frames that say this, in order.
    pub(super) fn frames(attested: &[Self]) -> impl Iterator<Item = Frame> + '_ {
        attested.chunks(ATTESTATIONS_MAX).map(|some| {
            let (mut documents, mut origins) = (Dictionary::default(), Dictionary::default());
            let author = |attested: &Self| wire::Attested {
                document: documents.place_of(attested.document),
                origin: origins.place_of(origin_to_wire(&attested.origin)),
                actor: attested.actor.as_bytes().to_vec(),
                first: attested.first,
                signature: attested.signature,
            };
            let authors = some.iter().map(author).collect();
            let (documents, origins) = (documents.items, origins.items);
            Frame::Attestations(Attestations { documents, origins, authors })
        })
    }

    /// Whether it says what was told of a change, but for the node.
    fn fits(&self, change: &Change, told: &Origin) -> bool {
        // Of a node's own authors it is not always told for whom they wrote.
        let is_unnamed = told.admission == Admission::Local && told.principal.is_empty();
        self.first == change.hash()
            && self.origin.admission == told.admission
            && (is_unnamed || self.origin.principal == told.principal)
    }
}

/// Holds what one node says of origins against signatures.
#[derive(Debug)]
pub(super) struct Verifier {
    peer: NodeId,
    attester: Option<Arc<dyn Attester>>,
    /// That it sends signatures that do not hold is in the log already.
    has_warned: AtomicBool,
}

impl Verifier {
    pub(super) fn new(peer: NodeId, attester: Option<Arc<dyn Attester>>) -> Arc<Self> {
        Arc::new(Self { peer, attester, has_warned: AtomicBool::new(false) })
    }

    /// Where an author's first change entered, as far as that is proven, and the signature to keep: at the node that
    /// signed it, or at the peer, who told it.
    ///
    /// # Cost
    /// Some 50 us where there is a signature, unless that very one is kept here.
    pub(super) fn entered(
        &self,
        document: DocumentId,
        change: &Change,
        told: Origin,
        attested: Option<&Attested>,
        reader: &Reader,
    ) -> (Origin, Option<Box<Signature>>) {
        let attester = self.attester.as_deref();
        let mut why = Unproven::Unsigned;
        if let Some(attester) = attester
            && let Some(attested) = attested.filter(|attested| attested.fits(change, &told))
        {
            let statement = author_statement(document, change.actor(), attested.first, &attested.origin);
            let signed = &attested.signature;
            // What is here was checked when it came.
            let is_kept = reader.signature(document, &statement).is_ok_and(|kept| kept.as_ref() == Some(signed));
            if is_kept || attester.verify(attested.origin.node, &statement, signed) {
                let origin = Origin { rules_version: told.rules_version, ..attested.origin.clone() };
                return (origin, Some(Box::new(Signature::of(&statement, *signed))));
            }
            why = Unproven::Forged;
            if !self.has_warned.swap(true, Ordering::Relaxed) {
                let (peer, node) = (self.peer.short(), attested.origin.node.short());
                tracing::warn!(%document, actor = %change.actor(), %node, %peer, "a node sends a signature of whose an author is that does not hold; this is taken for its own word, and further ones are not listed");
            }
        }
        if let Some(attester) = attester
            && (told.node != self.peer || why == Unproven::Forged)
        {
            attester.note_unproven(why);
        }
        (Origin { node: self.peer, ..told }, None)
    }
}
