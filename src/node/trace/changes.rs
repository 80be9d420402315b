//! Turning a history into changes.
//!
//! Each agent is one author. Its transactions form a *line*: each descends from the one before, so one replica that
//! holds exactly the last one's ancestors can be brought to where the next one starts by adding changes, never by
//! taking any away. An agent whose transactions fork has a further line for each further branch, with an author of its
//! own, because an author's changes must form a chain.
//!
//! A transaction that edits nothing makes no change. Whoever names it as a parent depends on what it depended on.

use super::TraceError;
use super::parse::{Trace, Transaction};
use crate::document::{Change, Scratch, TextEdit};
use crate::id::{ActorId, first};

/// The most lines a history may have. Each keeps a set of transactions.
const LINES_MAX: usize = 1024;
/// How many lines keep their replica. The one unused for longest is dropped and rebuilt when it is needed again.
const REPLICAS_MAX: usize = 16;
/// How many transactions pass between two reports of progress.
const PROGRESS_EVERY: usize = 256;

/// What the changes of a history depend on beside the history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TraceOptions {
    /// Bytes that go into every author's id, as the document's name: one history in two documents has other authors.
    pub salt: Vec<u8>,
}

impl TraceOptions {
    /// Options with this salt.
    #[must_use]
    pub fn with_salt(salt: impl Into<Vec<u8>>) -> Self {
        Self { salt: salt.into() }
    }
}

/// One change of a replayed history.
#[derive(Debug, Clone)]
pub struct TraceChange {
    /// Whose it is; `None` for the root change, which makes the text and belongs to all.
    pub agent: Option<u32>,
    /// The change.
    pub change: Change,
    /// The index of its transaction in [`Trace::transactions`]; 0 for the root change.
    pub transaction: usize,
}

/// Builds the changes of a history.
pub struct TraceChanges<'a> {
    trace: &'a Trace,
    authors: Authors<'a>,
    root: Change,
    /// For each transaction its change, once it was collected from its line's replica.
    changes: Vec<Option<Change>>,
    /// For each transaction its line; `None` for those that edit nothing.
    line_of: Vec<Option<u32>>,
    lines: Vec<Line>,
    /// For each agent its lines, ordered by agent.
    lines_of_agent: std::collections::BTreeMap<u32, Vec<u32>>,
    replicas: usize,
}

/// A chain of one author's transactions.
struct Line {
    actor: ActorId,
    last: usize,
    /// The last transaction and its ancestors: what the replica holds.
    contained: TransactionSet,
    replica: Option<Scratch>,
    /// The transactions whose changes are made and not collected from the replica.
    uncollected: Vec<usize>,
}

impl<'a> TraceChanges<'a> {
    /// Makes the changes of `trace`, the root change first, then in the order of the transactions.
    ///
    /// The same history and options give the same changes everywhere. A change depends on exactly its parents' changes,
    /// those left out that another parent implies; on the root change when it has no parents. Its time is the
    /// transaction's, 0 when there is none, and it has no message. The replayed text is compared with the promised one.
    /// `progress` is told how many transactions are done, and of how many.
    ///
    /// # Errors
    /// [`TraceError::Edit`] when a transaction reaches beyond its text, [`TraceError::Transaction`] when the graph is
    /// none, [`TraceError::TooLarge`] when it has more than 1024 lines of descent, [`TraceError::EndContent`] when the
    /// text in the end is not the promised one.
    ///
    /// # Cost
    /// 26 to 250 us for a transaction on top of its author's last one, by history. For each that merges another's,
    /// automerge walks the text: 4 ms on average in a history that ends at 21,000 characters, nearly all its time.
    /// All changes are held in memory.
    pub fn build(
        trace: &'a Trace,
        options: &'a TraceOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<TraceChange>, TraceError> {
        let total = trace.transactions.len();
        let authors = Authors { digest: trace.digest(), salt: &options.salt };
        let mut builder = Self {
            trace,
            root: Scratch::root(&authors.actor("root", 0, 0))?,
            authors,
            changes: vec![None; total],
            line_of: Vec::with_capacity(total),
            lines: Vec::new(),
            lines_of_agent: std::collections::BTreeMap::new(),
            replicas: 0,
        };
        for (index, transaction) in trace.transactions.iter().enumerate() {
            if index % PROGRESS_EVERY == 0 {
                progress(index, total);
            }
            builder.replay(index, transaction)?;
        }
        builder.check_end()?;
        progress(total, total);
        Ok(builder.finish())
    }

    fn replay(&mut self, index: usize, transaction: &Transaction) -> Result<(), TraceError> {
        if let Some(parent) = transaction.parents.iter().find(|&&parent| parent as usize >= index) {
            let reason = format!("its parent {parent} is not an earlier transaction");
            return Err(TraceError::Transaction { index, reason });
        }
        let edits = || {
            transaction.patches.iter().map(|patch| TextEdit {
                position: patch.position,
                deleted: patch.deleted,
                inserted: &patch.inserted,
            })
        };
        if edits().all(|edit| edit.is_empty()) {
            self.line_of.push(None);
            return Ok(());
        }
        let line = match self.line_to_continue(transaction) {
            Some(line) => line,
            None => self.new_line(transaction.agent)?,
        };
        self.bring_to(line, &transaction.parents)?;
        let failed = |source| TraceError::Edit { index, source };
        let Line { replica, uncollected, contained, last, .. } = &mut self.lines[line];
        if let Some(replica) = replica {
            replica.edit(transaction.time.unwrap_or(0), edits()).map_err(failed)?;
        }
        uncollected.push(index);
        contained.insert(index);
        *last = index;
        self.line_of.push(Some(line as u32));
        Ok(())
    }

    /// The line of the transaction's agent whose last transaction is among its ancestors.
    fn line_to_continue(&self, transaction: &Transaction) -> Option<usize> {
        let lines = self.lines_of_agent.get(&transaction.agent)?;
        lines.iter().rev().map(|&line| line as usize).find(|&line| {
            let Line { last, contained, .. } = &self.lines[line];
            self.descends_from(&transaction.parents, *last, contained)
        })
    }

    /// Whether `last` is one of `parents` or of their ancestors, given all of `last`'s own ancestors.
    fn descends_from(&self, parents: &[u32], last: usize, contained: &TransactionSet) -> bool {
        if parents.contains(&(last as u32)) {
            return true;
        }
        let mut waiting = parents.to_vec();
        let mut seen = std::collections::HashSet::new();
        while let Some(next) = waiting.pop() {
            let index = next as usize;
            if index == last {
                return true;
            }
            // Nothing earlier than `last` and none of its ancestors can descend from it.
            if index > last && !contained.contains(index) && seen.insert(next) {
                waiting.extend(&self.trace.transactions[index].parents);
            }
        }
        false
    }

    fn new_line(&mut self, agent: u32) -> Result<usize, TraceError> {
        let line = self.lines.len();
        if line == LINES_MAX {
            return Err(TraceError::TooLarge { max: LINES_MAX, unit: "lines of descent" });
        }
        let lines = self.lines_of_agent.entry(agent).or_default();
        let actor = self.authors.actor("agent", agent, lines.len());
        lines.push(line as u32);
        let contained = TransactionSet::new(self.trace.transactions.len());
        self.lines.push(Line { actor, last: 0, contained, replica: None, uncollected: Vec::new() });
        Ok(line)
    }

    /// Brings a line's replica to the merge of `parents`, all of which descend from what it holds or are held.
    fn bring_to(&mut self, line: usize, parents: &[u32]) -> Result<(), TraceError> {
        let missing = self.add_ancestors(line, parents);
        if self.lines[line].replica.is_none() {
            return self.rebuild(line);
        }
        if missing.is_empty() {
            return Ok(());
        }
        self.collect(line)?;
        for &index in &missing {
            if let (None, Some(owner)) = (&self.changes[index], self.line_of[index]) {
                self.collect(owner as usize)?;
            }
        }
        let changes = missing.iter().filter_map(|&index| self.changes[index].as_ref());
        match &mut self.lines[line].replica {
            Some(replica) => Ok(replica.apply(changes)?),
            None => Ok(()),
        }
    }

    /// Adds `parents` and their ancestors to what a line holds and returns the new ones that have changes, ascending.
    fn add_ancestors(&mut self, line: usize, parents: &[u32]) -> Vec<usize> {
        let contained = &mut self.lines[line].contained;
        let mut waiting = parents.to_vec();
        let mut missing = Vec::new();
        while let Some(next) = waiting.pop() {
            let index = next as usize;
            if contained.insert(index) {
                waiting.extend(&self.trace.transactions[index].parents);
                if self.line_of[index].is_some() {
                    missing.push(index);
                }
            }
        }
        missing.sort_unstable();
        missing
    }

    /// Makes a line's replica anew from everything the line holds.
    fn rebuild(&mut self, line: usize) -> Result<(), TraceError> {
        for other in 0..self.lines.len() {
            self.collect(other)?;
        }
        if self.replicas == REPLICAS_MAX {
            let kept = self.lines.iter_mut().filter(|line| line.replica.is_some());
            if let Some(oldest) = kept.min_by_key(|line| line.last) {
                oldest.replica = None;
                self.replicas -= 1;
            }
        }
        let Line { actor, contained, replica, .. } = &mut self.lines[line];
        let held = self.changes.iter().enumerate().filter(|(index, _)| contained.contains(*index));
        let changes = std::iter::once(&self.root).chain(held.filter_map(|(_, change)| change.as_ref()));
        *replica = Some(Scratch::new(actor, changes)?);
        self.replicas += 1;
        Ok(())
    }

    /// Takes the changes that a line's replica made and did not hand out yet.
    fn collect(&mut self, line: usize) -> Result<(), TraceError> {
        let Line { replica: Some(replica), uncollected, .. } = &mut self.lines[line] else { return Ok(()) };
        let changes = replica.collect()?;
        for (index, change) in uncollected.drain(..).zip(changes) {
            self.changes[index] = Some(change);
        }
        Ok(())
    }

    /// Merges everything into the replica of the last line written to, and compares the text.
    fn check_end(&mut self) -> Result<(), TraceError> {
        let newest = self.line_of.iter().rev().find_map(|line| *line);
        let text = match newest {
            None => String::new(),
            Some(line) => {
                let line = line as usize;
                for other in 0..self.lines.len() {
                    self.collect(other)?;
                }
                let all: Vec<u32> = (0..self.trace.transactions.len() as u32).collect();
                self.bring_to(line, &all)?;
                self.lines[line].replica.as_ref().map_or(Ok(String::new()), Scratch::text)?
            }
        };
        let expected = &self.trace.end_content;
        if text == *expected {
            return Ok(());
        }
        Err(TraceError::EndContent {
            found: text.chars().count(),
            expected: expected.chars().count(),
            at: text.chars().zip(expected.chars()).take_while(|(a, b)| a == b).count(),
        })
    }

    fn finish(self) -> Vec<TraceChange> {
        let root = TraceChange { agent: None, change: self.root, transaction: 0 };
        let transactions = self.trace.transactions.iter();
        let made = self.changes.into_iter().zip(transactions).enumerate();
        let made = made.filter_map(|(transaction, (change, of))| {
            Some(TraceChange { agent: Some(of.agent), change: change?, transaction })
        });
        std::iter::once(root).chain(made).collect()
    }
}

/// Where the authors' ids come from.
struct Authors<'a> {
    digest: [u8; 32],
    salt: &'a [u8],
}

impl Authors<'_> {
    fn actor(&self, role: &str, agent: u32, branch: usize) -> ActorId {
        let mut hasher = blake3::Hasher::new_derive_key("tidelog 2026-11 trace author");
        hasher.update(&self.digest);
        hasher.update(&(self.salt.len() as u64).to_le_bytes());
        hasher.update(self.salt);
        hasher.update(role.as_bytes());
        hasher.update(&agent.to_le_bytes());
        hasher.update(&(branch as u64).to_le_bytes());
        #[expect(clippy::expect_used, reason = "16 bytes are an actor id")]
        ActorId::new(&first::<16>(hasher.finalize().as_bytes())).expect("16 bytes are an actor id")
    }
}

/// A set of transactions, one bit for each.
struct TransactionSet(Vec<u64>);

impl TransactionSet {
    fn new(transactions: usize) -> Self {
        Self(vec![0; transactions.div_ceil(64)])
    }

    fn contains(&self, index: usize) -> bool {
        self.0[index / 64] & (1 << (index % 64)) != 0
    }

    /// Adds one and says whether it is new.
    fn insert(&mut self, index: usize) -> bool {
        let new = !self.contains(index);
        self.0[index / 64] |= 1 << (index % 64);
        new
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use super::*;
    use crate::id::ChangeHash;
    use crate::node::trace::{Patch, TraceKind, traces_folder};

    fn transaction(parents: &[u32], agent: u32, patches: &[(usize, usize, &str)]) -> Transaction {
        let patch = |&(position, deleted, inserted): &(usize, usize, &str)| Patch {
            position,
            deleted,
            inserted: inserted.to_owned(),
        };
        Transaction { parents: parents.to_vec(), agent, time: Some(9), patches: patches.iter().map(patch).collect() }
    }

    fn concurrent(end_content: &str, transactions: Vec<Transaction>) -> Trace {
        let agents = transactions.iter().map(|transaction| transaction.agent as usize + 1).max().unwrap_or(0);
        let (start_content, end_content) = (String::new(), end_content.to_owned());
        Trace { kind: TraceKind::Concurrent, start_content, end_content, agents, transactions }
    }

    fn build(trace: &Trace) -> Result<Vec<TraceChange>, TraceError> {
        TraceChanges::build(trace, &TraceOptions::with_salt(*b"document"), &mut |_, _| ())
    }

    /// Checks that the changes' dependencies are the graph's edges, worked out anew from the transactions.
    fn assert_graph_is_the_traces(trace: &Trace, changes: &[TraceChange]) {
        let by_transaction: HashMap<usize, &Change> =
            changes.iter().filter(|c| c.agent.is_some()).map(|c| (c.transaction, &c.change)).collect();
        let root = changes[0].change.hash();
        let mut ancestors: Vec<BTreeSet<usize>> = Vec::new();
        let mut seqs: HashMap<&ActorId, u64> = HashMap::new();
        for (index, transaction) in trace.transactions.iter().enumerate() {
            let mut above = BTreeSet::new();
            for &parent in &transaction.parents {
                above.extend(&ancestors[parent as usize]);
                above.insert(parent as usize);
            }
            if let Some(change) = by_transaction.get(&index) {
                let made = || above.iter().copied().filter(|index| by_transaction.contains_key(index));
                let implied: BTreeSet<usize> = made().flat_map(|index| ancestors[index].clone()).collect();
                let tips = made().filter(|index| !implied.contains(index));
                let mut deps: Vec<ChangeHash> = tips.map(|index| by_transaction[&index].hash()).collect();
                if deps.is_empty() {
                    deps.push(root);
                }
                deps.sort_unstable();
                assert_eq!(change.deps(), deps, "transaction {index}");
                let seq = seqs.entry(change.actor()).or_default();
                *seq += 1;
                assert_eq!((change.seq(), change.message()), (*seq, None));
                assert_eq!(change.time(), transaction.time.unwrap_or(0));
            }
            ancestors.push(above);
        }
    }

    fn text_of(changes: &[TraceChange]) -> String {
        let reader = ActorId::new(&[7]).unwrap();
        Scratch::new(&reader, changes.iter().map(|c| &c.change)).unwrap().text().unwrap()
    }

    #[test]
    fn forks_merges_and_empty_transactions_keep_graph_and_text() {
        let trace = concurrent(
            "ñBcD!",
            vec![
                transaction(&[], 0, &[(0, 0, "ab"), (2, 0, "cd")]),
                transaction(&[0], 1, &[(3, 1, "D")]),
                transaction(&[0], 0, &[(0, 1, "ñ")]),
                // Nothing happens here, twice, and others follow it.
                transaction(&[1, 2], 2, &[]),
                transaction(&[3], 1, &[(1, 0, "")]),
                transaction(&[4], 0, &[(1, 1, "B")]),
                // A parent that the other implies.
                transaction(&[0, 5], 1, &[(4, 0, "!")]),
            ],
        );
        let changes = build(&trace).unwrap();
        assert_eq!(changes.iter().map(|c| c.transaction).collect::<Vec<_>>(), [0, 0, 1, 2, 5, 6]);
        assert_eq!(changes[0].agent, None);
        assert_graph_is_the_traces(&trace, &changes);
        assert_eq!(text_of(&changes), "ñBcD!");
    }

    #[test]
    fn an_agent_that_forks_has_an_author_for_each_branch() {
        let mut transactions = vec![transaction(&[], 0, &[(0, 0, "--------------------------------------------")])];
        // More branches than replicas are kept, each going on twice, so that replicas are dropped and rebuilt.
        let branches = REPLICAS_MAX as u32 + 4;
        for round in 0..2 {
            for branch in 0..branches {
                let parent = if round == 0 { 0 } else { 1 + branch };
                transactions.push(transaction(&[parent], 0, &[(2 * branch as usize, 1, "x")]));
            }
        }
        let tips: Vec<u32> = (1 + branches..1 + 2 * branches).collect();
        transactions.push(transaction(&tips, 0, &[(0, 0, "m")]));
        let trace = concurrent(&format!("m{}----", "x-".repeat(branches as usize)), transactions);
        let changes = build(&trace).unwrap();
        assert_graph_is_the_traces(&trace, &changes);
        let authors: BTreeSet<_> = changes[1..].iter().map(|c| c.change.actor().clone()).collect();
        assert_eq!(authors.len(), branches as usize);
        assert!(changes[1..].iter().all(|c| c.agent == Some(0)));
    }

    #[test]
    fn several_beginnings_all_start_from_the_root_change() {
        let first = transaction(&[], 0, &[(0, 0, "a")]);
        let trace = concurrent("a", vec![first, transaction(&[], 1, &[]), transaction(&[], 1, &[])]);
        assert_eq!(build(&trace).unwrap().len(), 2);
        let two = concurrent("?", vec![transaction(&[], 0, &[(0, 0, "a")]), transaction(&[], 0, &[(0, 0, "b")])]);
        assert!(matches!(build(&two), Err(TraceError::EndContent { found: 2, expected: 1, at: 0 })));
        let nothing = concurrent("", Vec::new());
        assert_eq!(build(&nothing).unwrap().len(), 1);
    }

    #[test]
    fn the_same_history_makes_the_same_changes_and_another_salt_others() {
        let trace = concurrent("hi", vec![transaction(&[], 0, &[(0, 0, "hi")])]);
        let hashes = |changes: Vec<TraceChange>| changes.iter().map(|c| c.change.hash()).collect::<Vec<_>>();
        let one = hashes(build(&trace).unwrap());
        assert_eq!(one, hashes(build(&trace).unwrap()));
        // A promise: two nodes of two versions that import one history must make the same changes.
        assert_eq!(one[1].to_string(), "0e15d4c1ff607c7e14c4669259685c3e5643bed89b07c1442e3425b3ba6b90fd");
        let other = TraceChanges::build(&trace, &TraceOptions::default(), &mut |_, _| ()).unwrap();
        assert!(hashes(other).iter().all(|hash| !one.contains(hash)));
    }

    #[test]
    fn histories_that_cannot_be_replayed_are_refused() {
        let beyond = concurrent("", vec![transaction(&[], 0, &[(0, 0, "ab")]), transaction(&[0], 0, &[(1, 2, "")])]);
        assert!(matches!(build(&beyond), Err(TraceError::Edit { index: 1, .. })));
        let circular = concurrent("", vec![transaction(&[0], 0, &[(0, 0, "a")])]);
        assert!(matches!(build(&circular), Err(TraceError::Transaction { index: 0, .. })));
        let fork = |_| transaction(&[], 0, &[(0, 0, "a")]);
        let many = concurrent("", (0..=LINES_MAX).map(fork).collect());
        assert!(matches!(build(&many), Err(TraceError::TooLarge { .. })));
    }

    #[test]
    fn a_sequential_history_is_replayed_with_progress() {
        let json = r#"{"startContent":"añb","endContent":"ab","txns":[{"patches":[[1,1,""]]}]}"#;
        let trace = Trace::parse(json.as_bytes()).unwrap();
        let mut seen = Vec::new();
        let options = TraceOptions::default();
        let changes = TraceChanges::build(&trace, &options, &mut |done, total| seen.push((done, total))).unwrap();
        assert_eq!(seen, [(0, 2), (2, 2)]);
        assert_graph_is_the_traces(&trace, &changes);
        assert_eq!(text_of(&changes), "ab");
    }

    #[test]
    fn a_real_sequential_history_is_replayed_to_its_end() {
        let Some(folder) = traces_folder().unwrap() else {
            println!("skipped: traces absent");
            return;
        };
        let trace = Trace::read(&folder.join("sequential/friendsforever_flat.json.gz")).unwrap();
        let changes = build(&trace).unwrap();
        assert_eq!(changes.len(), trace.transactions.len() + 1);
        assert_eq!(text_of(&changes), trace.end_content);
    }
}
