//! What an exchange sends: where it takes the bytes from, and messages that others in the same state can use as well.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::id::{ChangeHash, Heads, Lsn};

/// Where an exchange takes the bytes from that it sends. A closure over the position is one that has no snapshots.
pub trait Chunks {
    /// Why nothing can be read.
    type Error;

    /// Whether messages are remembered. Else nothing is spent on finding out what they follow from.
    const REMEMBERS: bool = false;

    /// The chunk of the change at `lsn`.
    ///
    /// # Errors
    /// Whatever the store says.
    fn change(&mut self, lsn: Lsn) -> Result<Vec<u8>, Self::Error>;

    /// The document's newest snapshot: its heads, and one document chunk. By default there is none.
    ///
    /// # Errors
    /// Whatever the store says.
    fn snapshot(&mut self) -> Result<Option<(Heads, Vec<u8>)>, Self::Error> {
        Ok(None)
    }

    /// The message that another exchange of this document made from such a state, if it is remembered.
    fn composed(&mut self, _state: &State) -> Option<Arc<Composed>> {
        None
    }

    /// Takes a message to remember.
    fn keep(&mut self, _state: State, _composed: Arc<Composed>) {}
}

impl<E, F: FnMut(Lsn) -> Result<Vec<u8>, E>> Chunks for F {
    type Error = E;

    fn change(&mut self, lsn: Lsn) -> Result<Vec<u8>, E> {
        self(lsn)
    }
}

/// All that a message follows from, as a hash that nobody can meet by design: what one peer says of itself must not
/// choose what another is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State(pub(super) [u8; 32]);

/// A message, and what an exchange notes when it sends it.
#[derive(Debug)]
pub struct Composed {
    pub(super) message: Vec<u8>,
    /// The changes in it.
    pub(super) hashes: BTreeSet<ChangeHash>,
    /// The heads of the snapshot in it.
    pub(super) whole: Heads,
}

impl Composed {
    /// About what it takes in memory, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.message.len() + 48 * self.hashes.len() + 256
    }
}

#[cfg(test)]
impl Composed {
    pub(super) fn of(message: Vec<u8>) -> Self {
        Self { message, hashes: BTreeSet::new(), whole: Heads::default() }
    }
}

#[cfg(test)]
impl State {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}
