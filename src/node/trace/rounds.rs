//! Playing one history at several nodes, in rounds.
//!
//! Where authors' changes are interwoven, a node cannot take all of one author's: most need a change of another. It
//! takes them up to the first that needs one it has not seen, and the rest after it has met the others. Somebody can
//! always go on: of all changes that are nowhere yet, the first in the history's order needs only what is somewhere,
//! and comes first in its own author's feed.

use std::collections::HashSet;

use super::TraceChange;
use crate::id::ChangeHash;

/// Some agents' changes, and how far they were handed out.
pub struct AgentFeed {
    changes: Vec<TraceChange>,
    next: usize,
}

impl AgentFeed {
    /// A feed of the changes of `agents`, and of the root change, which belongs to all.
    #[must_use]
    pub fn new(changes: &[TraceChange], agents: &[u32]) -> Self {
        let ours = |change: &&TraceChange| change.agent.is_none_or(|agent| agents.contains(&agent));
        Self { changes: changes.iter().filter(ours).cloned().collect(), next: 0 }
    }

    /// Hands out the next changes up to the first that needs one which `contains` does not know and which is not
    /// handed out with it. Changes that are known already are passed over first, so that a feed made anew goes on where
    /// another ended. Empty when the next change has to wait, or none is left.
    ///
    /// The caller admits what it gets before it asks again.
    pub fn next_ready(&mut self, contains: impl Fn(&ChangeHash) -> bool) -> &[TraceChange] {
        while self.changes.get(self.next).is_some_and(|next| contains(&next.change.hash())) {
            self.next += 1;
        }
        let start = self.next;
        let mut handed_out = HashSet::new();
        while let Some(TraceChange { change, .. }) = self.changes.get(self.next) {
            if !change.deps().iter().all(|hash| handed_out.contains(hash) || contains(hash)) {
                break;
            }
            handed_out.insert(change.hash());
            self.next += 1;
        }
        &self.changes[start..self.next]
    }

    /// How many changes were neither handed out nor passed over.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.changes.len() - self.next
    }

    /// How many changes the feed has in all.
    #[must_use]
    pub fn total(&self) -> usize {
        self.changes.len()
    }
}
