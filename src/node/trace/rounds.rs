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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Scratch;
    use crate::id::ActorId;
    use crate::node::trace::{Trace, TraceChanges, TraceOptions, traces_folder};

    fn build(trace: &Trace) -> Vec<TraceChange> {
        TraceChanges::build(trace, &TraceOptions::default(), &mut |_, _| ()).unwrap()
    }

    /// Plays `changes` at two nodes that are sets of hashes; returns the rounds it took and one order of admission.
    fn play(changes: &[TraceChange]) -> (usize, Vec<TraceChange>) {
        let mut nodes = [HashSet::new(), HashSet::new()];
        let mut admitted: Vec<TraceChange> = Vec::new();
        let mut rounds = 0;
        let mut feeds = [0, 1].map(|agent| AgentFeed::new(changes, &[agent]));
        while feeds.iter().any(|feed| feed.remaining() > 0) {
            let before = nodes[0].len();
            for (feed, node) in feeds.iter_mut().zip(&mut nodes) {
                let ready = feed.next_ready(|hash| node.contains(hash));
                for TraceChange { change, .. } in ready {
                    assert!(change.deps().iter().all(|hash| node.contains(hash)), "causally complete");
                    node.insert(change.hash());
                }
                admitted.extend_from_slice(ready);
            }
            let union: HashSet<_> = nodes[0].union(&nodes[1]).copied().collect();
            assert!(union.len() > before || feeds.iter().all(|feed| feed.remaining() == 0), "a round without progress");
            nodes = [union.clone(), union];
            rounds += 1;
        }
        assert_eq!(nodes[0].len(), changes.len());
        (rounds, admitted)
    }

    const WOVEN: &str = r#"{"kind":"concurrent","numAgents":2,"endContent":"abcd","txns":[
        {"parents":[],"agent":0,"patches":[[0,0,"a"]]},{"parents":[0],"agent":0,"patches":[[1,0,"b"]]},
        {"parents":[1],"agent":1,"patches":[[2,0,"c"]]},{"parents":[2],"agent":0,"patches":[[3,0,"d"]]}]}"#;

    #[test]
    fn a_feed_waits_for_the_first_change_that_is_unseen_and_passes_over_what_is_known() {
        let changes = build(&Trace::parse(WOVEN.as_bytes()).unwrap());
        let mut mine = AgentFeed::new(&changes, &[0]);
        let mut theirs = AgentFeed::new(&changes, &[1]);
        assert_eq!((mine.total(), mine.remaining(), theirs.remaining()), (4, 4, 2));
        let ready = mine.next_ready(|_| false);
        assert_eq!(ready.iter().map(|c| c.agent).collect::<Vec<_>>(), [None, Some(0), Some(0)]);
        assert_eq!(theirs.next_ready(|_| false).len(), 1, "the root change");
        assert_eq!((mine.remaining(), theirs.remaining()), (1, 1));
        assert!(mine.next_ready(|_| false).is_empty());
        let mut known: HashSet<_> = changes[..3].iter().map(|c| c.change.hash()).collect();
        assert_eq!(theirs.next_ready(|hash| known.contains(hash))[0].transaction, 2);
        known.insert(changes[3].change.hash());
        // A feed made anew goes on where the first one stands.
        let mut anew = AgentFeed::new(&changes, &[0]);
        assert_eq!(anew.next_ready(|hash| known.contains(hash))[0].transaction, 3);
        assert_eq!(anew.remaining(), 0);
        assert_eq!(AgentFeed::new(&changes, &[0, 1]).next_ready(|_| false).len(), 5);
        assert_eq!(play(&changes).0, 3);
    }

    #[test]
    fn two_nodes_play_an_interwoven_history_in_rounds_to_its_end() {
        let Some(folder) = traces_folder().unwrap() else {
            println!("skipped: traces absent");
            return;
        };
        let trace = Trace::read(&folder.join("concurrent/friendsforever.json.gz")).unwrap();
        let start = std::time::Instant::now();
        let changes = build(&trace);
        println!("built in {:?}", start.elapsed());
        assert_eq!(changes.len(), trace.transactions.len() + 1, "no transaction is empty");
        let authors: HashSet<_> = changes.iter().map(|c| c.change.actor().clone()).collect();
        assert_eq!(authors.len(), 3, "the root's and one for each agent");
        let (rounds, admitted) = play(&changes);
        println!("{rounds} rounds");
        assert!(rounds > 100, "interwoven: {rounds} rounds");
        // Admitted twice is the root change alone.
        assert_eq!(admitted.len(), changes.len() + 1);
        let reader = ActorId::new(&[1]).unwrap();
        let replica = Scratch::new(&reader, admitted.iter().map(|c| &c.change)).unwrap();
        assert_eq!(replica.text().unwrap(), trace.end_content);
    }
}
