//! One Automerge change: its bytes, and what the change graph needs to know of it.

use super::gate::{self, Claims, GateError};
use crate::id::{ActorId, ChangeHash};
use crate::limits::Limits;

/// Why bytes are not a change we can take.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// The bytes do not pass the gate: they are malformed, claim too much, or their checksum does not hold.
    #[error("not a change that is taken: {0}")]
    Refused(#[from] GateError),
    /// The actor id is empty or longer than 64 bytes.
    #[error("the change's actor id has {0} bytes; 1 to 64 are allowed")]
    Actor(usize),
    /// The chunk is longer than a change may be.
    #[error("the change has {bytes} bytes, more than the {max} allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
}

/// One verified change: a hash-linked group of operations by one actor.
///
/// Invariant: [`Self::bytes`] is exactly one change chunk (plain or deflated), and `hash` is the SHA-256 automerge computed
/// from it, never one that somebody told us.
#[derive(Debug, Clone)]
pub struct Change {
    inner: automerge::Change,
    /// The chunk where it is deflated; empty where it is the plain one, which `inner` has.
    deflated: Vec<u8>,
    hash: ChangeHash,
    actor: ActorId,
    deps: Vec<ChangeHash>,
    claims: Claims,
}

impl Change {
    /// Parses and verifies one change chunk, within the default limits.
    ///
    /// # Errors
    /// [`ChangeError`] when the bytes do not pass the [gate](super::gate) as one whole change with a true checksum.
    ///
    /// # Cost
    /// About 1.3 us for a keystroke: the gate's walk over the columns, one SHA-256, and automerge's own walk.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, ChangeError> {
        Self::parse_within(bytes, &Limits::DEFAULT)
    }

    /// Parses and verifies one change chunk, within `limits`.
    ///
    /// # Errors
    /// As [`Self::parse`].
    ///
    /// # Cost
    /// As [`Self::parse`].
    pub fn parse_within(bytes: Vec<u8>, limits: &Limits) -> Result<Self, ChangeError> {
        let (inner, claims) = gate::open_change(&bytes, limits)?;
        Self::with_bytes(inner, bytes, claims)
    }

    /// Parses a change of our own log, which was held to the bounds when it came in.
    ///
    /// # Errors
    /// [`ChangeError`] when its form is not one that passes today.
    pub(crate) fn parse_logged(bytes: Vec<u8>) -> Result<Self, ChangeError> {
        Self::parse_within(bytes, &gate::OWN)
    }

    /// Takes a change that automerge itself made. It is kept deflated where automerge would deflate it.
    ///
    /// # Errors
    /// [`ChangeError::Refused`] when it is one that other nodes would refuse: too long, say.
    pub fn from_automerge(mut inner: automerge::Change) -> Result<Self, ChangeError> {
        let bytes = inner.bytes().into_owned();
        let claims = gate::claims_of(&inner, bytes.len(), &Limits::DEFAULT)?;
        Self::with_bytes(inner, bytes, claims)
    }

    fn with_bytes(inner: automerge::Change, bytes: Vec<u8>, claims: Claims) -> Result<Self, ChangeError> {
        let raw = inner.actor_id().to_bytes();
        let actor = ActorId::new(raw).ok_or(ChangeError::Actor(raw.len()))?;
        let deps = inner.deps().iter().map(|hash| ChangeHash(hash.0)).collect();
        let hash = ChangeHash(inner.hash().0);
        let deflated = if bytes == inner.raw_bytes() { Vec::new() } else { bytes };
        Ok(Self { inner, deflated, hash, actor, deps, claims })
    }

    /// How many of its deletions only a document with as many operations can vouch for; 0 but for a change that
    /// deletes tens of thousands of elements at once.
    #[must_use]
    pub fn unbacked_deletions(&self) -> u64 {
        self.claims.unbacked_deletions
    }

    /// The operations of others that it refers to: each such author, and the greatest counter. They must lie in the
    /// change's past, which only the [graph](super::ChangeGraph::check_past) knows.
    #[must_use]
    pub fn references(&self) -> Vec<(ActorId, u64)> {
        let others = self.inner.other_actor_ids().iter().filter_map(|actor| ActorId::new(actor.to_bytes()));
        others.zip(self.claims.greatest.iter().copied()).collect()
    }

    /// Whether it refers to operations of other authors.
    #[must_use]
    pub fn refers_to_others(&self) -> bool {
        !self.claims.greatest.is_empty()
    }

    /// Whether it sets or ends marks.
    pub(crate) fn has_marks(&self) -> bool {
        self.claims.marks
    }

    /// Its name: the SHA-256 of its content.
    #[must_use]
    pub fn hash(&self) -> ChangeHash {
        self.hash
    }

    /// Who made it.
    #[must_use]
    pub fn actor(&self) -> &ActorId {
        &self.actor
    }

    /// Its number among its actor's changes, from 1.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.inner.seq()
    }

    /// The counter of its first operation.
    #[must_use]
    pub fn start_op(&self) -> u64 {
        self.inner.start_op().get()
    }

    /// How many operations it holds.
    #[must_use]
    pub fn op_count(&self) -> u64 {
        self.inner.len() as u64
    }

    /// The changes it was made on top of.
    #[must_use]
    pub fn deps(&self) -> &[ChangeHash] {
        &self.deps
    }

    /// The author's clock when it was made, in seconds since 1970; not to be trusted.
    #[must_use]
    pub fn time(&self) -> i64 {
        self.inner.timestamp()
    }

    /// What the author said about it.
    #[must_use]
    pub fn message(&self) -> Option<&str> {
        self.inner.message()
    }

    /// The chunk, as it is logged and sent.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        if self.deflated.is_empty() { self.inner.raw_bytes() } else { &self.deflated }
    }

    /// Automerge's form of it.
    #[must_use]
    pub fn as_automerge(&self) -> &automerge::Change {
        &self.inner
    }
}
