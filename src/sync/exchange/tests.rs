use automerge::sync::{State, SyncDoc};
use automerge::transaction::Transactable;
use automerge::{ActorId, AutoCommit, Automerge};
use proptest::prelude::*;

use super::*;
use crate::document::{Change, GraphError, Node};
use crate::sync::gate::ChunkKind;

/// A replica that never builds its document: a graph, the chunks by position, and what waits.
#[derive(Default)]
pub(super) struct Docless {
    pub(super) graph: ChangeGraph,
    chunks: Vec<Vec<u8>>,
    pending: Vec<Change>,
    snapshot: Option<(Heads, Vec<u8>)>,
}

/// Where a replica's chunks are read.
struct Stored<'a>(&'a Docless);

impl Chunks for Stored<'_> {
    type Error = std::convert::Infallible;

    fn change(&mut self, lsn: Lsn) -> Result<Vec<u8>, Self::Error> {
        Ok(self.0.chunks[lsn.0 as usize].clone())
    }

    fn snapshot(&mut self) -> Result<Option<(Heads, Vec<u8>)>, Self::Error> {
        Ok(self.0.snapshot.clone())
    }
}

impl Docless {
    pub(super) fn of(doc: &mut AutoCommit) -> Self {
        let mut replica = Self::default();
        for change in doc.get_changes(&[]) {
            replica.admit(Change::from_automerge(change).unwrap());
        }
        assert!(replica.pending.is_empty());
        replica
    }

    pub(super) fn admit(&mut self, change: Change) {
        self.pending.push(change);
        loop {
            let before = self.pending.len();
            for change in std::mem::take(&mut self.pending) {
                let node = Node {
                    hash: change.hash(),
                    actor: change.actor(),
                    seq: change.seq(),
                    start_op: change.start_op(),
                    op_count: change.op_count(),
                    deps: change.deps(),
                    lsn: Lsn(self.chunks.len() as u64),
                };
                match self.graph.add(node) {
                    Ok(true) => self.chunks.push(change.bytes().to_vec()),
                    Ok(false) => {}
                    Err(GraphError::MissingDeps(_)) => self.pending.push(change),
                    Err(error) => panic!("{error}"),
                }
            }
            if self.pending.len() == before {
                return;
            }
        }
    }

    /// Takes a message's changes, and forgets those that wait if `forgetful`. Gives how many there were.
    fn receive(&mut self, exchange: &mut Exchange, message: &[u8], forgetful: bool) -> usize {
        let received = exchange.receive(&self.graph, message).unwrap();
        let (mut arrived, count) = (Vec::new(), received.chunks.len());
        for chunk in received.chunks {
            match chunk.kind {
                ChunkKind::Change => {
                    let change = Change::parse(chunk.bytes).unwrap();
                    arrived.push((change.hash(), change.deps().to_vec()));
                    self.admit(change);
                }
                ChunkKind::Document => {
                    let doc = Automerge::load(&chunk.bytes).unwrap();
                    for change in doc.get_changes(&[]) {
                        self.admit(Change::from_automerge(change).unwrap());
                    }
                }
                ChunkKind::Bundle => panic!("nobody sends bundles"),
            }
        }
        if forgetful {
            self.pending.clear();
        }
        exchange.settle(&self.graph, arrived);
        count
    }

    pub(super) fn generate(&self, exchange: &mut Exchange, budget: usize) -> Option<Vec<u8>> {
        exchange.generate(&self.graph, budget, &mut Stored(self)).unwrap()
    }
}

/// An author who follows from the script, as all hashes do: what a Bloom filter takes for held shows up again.
fn author(script: &[(u8, u8)], n: usize) -> ActorId {
    let mut hasher = blake3::Hasher::new();
    for (who, what) in script {
        hasher.update(&[*who, *what]);
    }
    ActorId::from(&hasher.update(&n.to_le_bytes()).finalize().as_bytes()[..16])
}

/// Two documents with a common past that went on apart, and talked now and then.
pub(super) fn histories(script: &[(u8, u8)]) -> [AutoCommit; 2] {
    let of = |doc: AutoCommit, n: usize| doc.with_actor(author(script, n));
    let mut docs = [of(AutoCommit::new(), script.len()), of(AutoCommit::new(), script.len() + 1)];
    for (n, (who, what)) in script.iter().enumerate() {
        let who = usize::from(who % 2);
        match what % 8 {
            0 => {
                let [a, b] = &mut docs;
                let (from, to) = if who == 0 { (a, b) } else { (b, a) };
                to.merge(from).unwrap();
            }
            1 => {
                // A third author whose change lands here alone.
                let mut other = of(docs[who].fork(), n);
                other.put(automerge::ROOT, "other", n as i64).unwrap();
                docs[who].merge(&mut other).unwrap();
            }
            _ => {
                // Some long enough to be deflated.
                let text = "x".repeat(if what % 8 == 2 { 400 } else { 3 });
                docs[who].put(automerge::ROOT, format!("k{}", what % 5), text).unwrap();
                docs[who].commit();
            }
        }
    }
    docs
}

pub(super) fn heads_of(doc: &AutoCommit) -> Heads {
    let mut doc = doc.clone();
    Heads::new(doc.get_heads().into_iter().map(|hash| ChangeHash(hash.0)).collect())
}

pub(super) const ROUNDS_MAX: usize = 400;

fn sync_docless(a: &mut Docless, b: &mut Docless, budget: usize, forgetful: bool) -> (Exchange, Exchange) {
    let (mut at_a, mut at_b) = (Exchange::new(), Exchange::new());
    for _ in 0..ROUNDS_MAX {
        let to_b = a.generate(&mut at_a, budget);
        if let Some(message) = &to_b {
            b.receive(&mut at_b, message, forgetful);
        }
        let to_a = b.generate(&mut at_b, budget);
        if let Some(message) = &to_a {
            a.receive(&mut at_a, message, forgetful);
        }
        if to_a.is_none() && to_b.is_none() {
            return (at_a, at_b);
        }
    }
    panic!("no end after {ROUNDS_MAX} rounds");
}

fn sync_with_automerge(a: &mut Docless, b: &mut AutoCommit, budget: usize, docless_begins: bool) {
    let (mut exchange, mut state) = (Exchange::new(), State::new());
    for round in 0..ROUNDS_MAX {
        let mut quiet = true;
        if (round > 0 || docless_begins)
            && let Some(message) = a.generate(&mut exchange, budget)
        {
            quiet = false;
            let message = Message::decode(&message).unwrap();
            b.sync().receive_sync_message(&mut state, message).unwrap();
        }
        if let Some(message) = b.sync().generate_sync_message(&mut state) {
            quiet = false;
            a.receive(&mut exchange, &message.encode(), false);
        }
        if quiet && round > 0 {
            assert!(exchange.converged(&a.graph));
            return;
        }
    }
    panic!("no end after {ROUNDS_MAX} rounds");
}

pub(super) fn script() -> impl Strategy<Value = Vec<(u8, u8)>> {
    prop::collection::vec((any::<u8>(), any::<u8>()), 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Two graphs converge however far they went apart, with messages of a few changes each.
    #[test]
    fn two_docless_sides_converge(script in script(), budget in prop_oneof![Just(1_usize), Just(300), Just(1 << 20)]) {
        let [mut a, mut b] = histories(&script);
        let (mut at_a, mut at_b) = (Docless::of(&mut a), Docless::of(&mut b));
        let (exchange_a, exchange_b) = sync_docless(&mut at_a, &mut at_b, budget, false);
        a.merge(&mut b).unwrap();
        prop_assert_eq!(at_a.graph.heads(), heads_of(&a));
        prop_assert_eq!(at_b.graph.heads(), heads_of(&a));
        prop_assert!(exchange_a.converged(&at_a.graph) && exchange_b.converged(&at_b.graph));
        prop_assert!(exchange_a.sent.is_empty() && exchange_a.backlog.is_empty());
    }

    /// A graph converges with a real Automerge document, whoever begins.
    #[test]
    fn a_docless_side_converges_with_automerge(
        script in script(),
        budget in prop_oneof![Just(1_usize), Just(300), Just(1 << 20)],
        docless_begins in any::<bool>(),
    ) {
        let [mut a, mut b] = histories(&script);
        let mut docless = Docless::of(&mut a);
        sync_with_automerge(&mut docless, &mut b, budget, docless_begins);
        prop_assert_eq!(docless.graph.heads(), heads_of(&b));
        a.merge(&mut b).unwrap();
        prop_assert_eq!(docless.graph.heads(), heads_of(&a));
    }

    /// Edits go on while messages are on their way; once they stop, both sides agree.
    #[test]
    fn sides_that_edit_meanwhile_converge(
        script in script(),
        turns in prop::collection::vec(0_u8..5, 1..60),
        budget in prop_oneof![Just(1_usize), Just(300)],
    ) {
        let [mut a, mut b] = histories(&script);
        let mut sides = [Docless::of(&mut a), Docless::of(&mut b)];
        let mut docs = [a, b];
        let mut exchanges = [Exchange::new(), Exchange::new()];
        let mut wires: [VecDeque<Vec<u8>>; 2] = Default::default();
        for (n, turn) in turns.iter().copied().chain([0, 1, 2, 3].into_iter().cycle().take(4 * ROUNDS_MAX)).enumerate() {
            let who = usize::from(turn % 2);
            if turn == 4 {
                let editor = n % 2;
                docs[editor].put(automerge::ROOT, "edit", n as i64).unwrap();
                let change = docs[editor].get_last_local_change().unwrap().clone();
                sides[editor].admit(Change::from_automerge(change).unwrap());
            } else if turn < 2 {
                wires[1 - who].extend(sides[who].generate(&mut exchanges[who], budget));
            } else if let Some(message) = wires[who].pop_front() {
                sides[who].receive(&mut exchanges[who], &message, false);
            }
        }
        prop_assert!(wires.iter().all(VecDeque::is_empty));
        prop_assert_eq!(sides[0].graph.heads(), sides[1].graph.heads());
        prop_assert!(exchanges[0].converged(&sides[0].graph) && exchanges[1].converged(&sides[1].graph));
    }
}

/// A linear history of `count` changes, and the same without its last `lacking`.
fn long_histories(count: usize, lacking: usize) -> [AutoCommit; 2] {
    let mut doc = AutoCommit::new();
    let mut early = doc.fork();
    for n in 0..count {
        if n + lacking == count {
            early = doc.fork();
        }
        doc.put(automerge::ROOT, "n", n as i64).unwrap();
        doc.commit();
    }
    [doc, early]
}

/// With thousands of changes beyond what is shared some are falsely held by the filter, and must be asked for by name.
#[test]
fn changes_that_a_filter_hides_are_asked_for_by_name() {
    for seed in 0..6 {
        let [mut a, mut b] = long_histories(20, 0);
        // Many heads: each falsely held change is a hole of its own.
        for n in 0..600 {
            let mut other = a.fork();
            other.put(automerge::ROOT, format!("a{seed}"), n).unwrap();
            other.put(automerge::ROOT, "more", n).unwrap();
            other.commit();
            if n % 2 == 0 {
                a.merge(&mut other).unwrap()
            } else {
                b.merge(&mut other).unwrap()
            };
            a.put(automerge::ROOT, "on top", n).unwrap();
            a.commit();
        }
        let (mut at_a, mut at_b) = (Docless::of(&mut a), Docless::of(&mut b));
        sync_docless(&mut at_a, &mut at_b, 2000, false);
        assert_eq!(at_a.graph.heads(), at_b.graph.heads());
        // The same with a side that lets go of what waits: it has to be sent again.
        let (mut at_a, mut at_b) = (Docless::of(&mut a), Docless::of(&mut b));
        sync_docless(&mut at_a, &mut at_b, 2000, true);
        assert_eq!(at_a.graph.heads(), at_b.graph.heads());
        let mut at_a = Docless::of(&mut a);
        sync_with_automerge(&mut at_a, &mut b, 2000, true);
        assert_eq!(at_a.graph.heads(), heads_of(&b));
    }
}

/// What a message of an exchange holds: document chunks and changes.
fn chunks_in(message: &[u8]) -> (usize, usize) {
    let chunks = read_message(message).unwrap().chunks;
    let whole = chunks.iter().filter(|chunk| chunk.kind == ChunkKind::Document).count();
    (whole, chunks.len() - whole)
}

#[test]
fn whoever_has_nothing_is_sent_the_snapshot_and_what_came_after_it() {
    let mut doc = AutoCommit::new();
    let edit = |doc: &mut AutoCommit, n: i64| {
        doc.put(automerge::ROOT, format!("k{}", n % 7), n).unwrap();
        doc.commit();
    };
    (0..40).for_each(|n| edit(&mut doc, n));
    let snapshot = (heads_of(&doc), doc.save());
    (40..50).for_each(|n| edit(&mut doc, n));
    let mut server = Docless { snapshot: Some(snapshot), ..Docless::of(&mut doc) };

    let mut client = AutoCommit::new();
    let (mut state, mut exchange) = (State::new(), Exchange::new());
    let hello = client.sync().generate_sync_message(&mut state).unwrap().encode();
    server.receive(&mut exchange, &hello, false);
    let first = server.generate(&mut exchange, 1 << 20).unwrap();
    assert_eq!(chunks_in(&first), (1, 10));
    // What is new before the client answers comes alone.
    edit(&mut doc, 50);
    doc.get_changes(&[]).into_iter().for_each(|change| server.admit(Change::from_automerge(change).unwrap()));
    let second = server.generate(&mut exchange, 1 << 20).unwrap();
    assert_eq!(chunks_in(&second), (0, 1));
    for message in [first, second] {
        client.sync().receive_sync_message(&mut state, Message::decode(&message).unwrap()).unwrap();
    }
    assert_eq!(client.get_heads(), doc.get_heads());

    // From here on both sides send what the other lacks, and no snapshot.
    edit(&mut client, 51);
    edit(&mut doc, 52);
    doc.get_changes(&[]).into_iter().for_each(|change| server.admit(Change::from_automerge(change).unwrap()));
    for _ in 0..4 {
        if let Some(message) = client.sync().generate_sync_message(&mut state) {
            server.receive(&mut exchange, &message.encode(), false);
        }
        if let Some(message) = server.generate(&mut exchange, 1 << 20) {
            assert_eq!(chunks_in(&message).0, 0);
            client.sync().receive_sync_message(&mut state, Message::decode(&message).unwrap()).unwrap();
        }
    }
    assert_eq!(server.graph.heads(), heads_of(&client));

    // Once it has lost everything, it is sent the snapshot again; one with an older Automerge gets changes.
    for (old, expected) in [(false, (1, 13)), (true, (0, 53))] {
        let (mut lost, mut state) = (AutoCommit::new(), State::new());
        let mut exchange = if old { Exchange::new() } else { std::mem::take(&mut exchange) };
        let mut hello = lost.sync().generate_sync_message(&mut state).unwrap();
        if old {
            hello.flags = None;
        }
        server.receive(&mut exchange, &hello.encode(), false);
        let message = server.generate(&mut exchange, 1 << 20).unwrap();
        assert_eq!(chunks_in(&message), expected);
        lost.sync().receive_sync_message(&mut state, Message::decode(&message).unwrap()).unwrap();
        assert_eq!(heads_of(&lost), server.graph.heads());
    }
}

/// A client that was sent a snapshot is taken to have it: else it would send the whole document back.
#[test]
fn a_client_that_is_sent_a_snapshot_sends_nothing_of_it_back() {
    let [mut doc, mut early] = long_histories(400, 360);
    let snapshot = (heads_of(&early), early.save());
    for (budget, is_whole) in [(1 << 20, true), (1000, false)] {
        let mut server = Docless { snapshot: Some(snapshot.clone()), ..Docless::of(&mut doc) };
        let mut client = AutoCommit::new();
        let (mut state, mut exchange) = (State::new(), Exchange::new());
        let mut messages = 0;
        loop {
            let said = client.sync().generate_sync_message(&mut state);
            let Some(message) = said else { break };
            assert_eq!(server.receive(&mut exchange, &message.encode(), false), 0, "changes that came back");
            let Some(message) = server.generate(&mut exchange, budget) else { break };
            let message = Message::decode(&message).unwrap();
            let have = message.have.first().unwrap();
            if messages == 0 {
                let known = if is_whole { doc.get_heads() } else { early.get_heads() };
                assert_eq!(have.last_sync, known);
                assert_eq!(have.bloom.to_bytes().is_empty(), is_whole, "a filter of what is to come only");
            }
            messages += 1;
            client.sync().receive_sync_message(&mut state, message).unwrap();
        }
        assert_eq!(client.get_heads(), doc.get_heads());
        assert_eq!(messages > 4, !is_whole, "{messages} messages");
    }
}

#[test]
fn a_read_only_side_sends_and_takes_nothing() {
    let [mut a, mut b] = long_histories(10, 4);
    b.put(automerge::ROOT, "mine", 1).unwrap();
    let (mut at_a, mut at_b) = (Docless::of(&mut a), Docless::of(&mut b));
    let before = at_a.graph.heads();
    let (mut publisher, mut reader) = (Exchange::read_only(), Exchange::new());
    for _ in 0..20 {
        if let Some(message) = at_a.generate(&mut publisher, 1 << 20) {
            at_b.receive(&mut reader, &message, false);
        }
        if let Some(message) = at_b.generate(&mut reader, 1 << 20) {
            assert_eq!(at_a.receive(&mut publisher, &message, false), 0);
        }
    }
    assert_eq!(at_a.graph.heads(), before);
    assert!(at_b.graph.contains_all(before.as_slice()));
}

#[test]
fn a_peer_that_lost_everything_is_sent_everything_again() {
    let [mut a, mut b] = long_histories(30, 10);
    let (mut at_a, mut at_b) = (Docless::of(&mut a), Docless::of(&mut b));
    let (mut exchange, _) = sync_docless(&mut at_a, &mut at_b, 1 << 20, false);
    let mut empty = Docless::default();
    let mut theirs = Exchange::new();
    for _ in 0..20 {
        if let Some(message) = empty.generate(&mut theirs, 1 << 20) {
            at_a.receive(&mut exchange, &message, false);
        }
        if let Some(message) = at_a.generate(&mut exchange, 500) {
            empty.receive(&mut theirs, &message, false);
        }
    }
    assert_eq!(empty.graph.heads(), at_a.graph.heads());
}

#[test]
fn what_the_peer_takes_for_shared_and_we_do_not_have_begins_anew() {
    let [mut a, mut b] = long_histories(30, 10);
    let (mut at_a, mut at_b) = (Docless::of(&mut a), Docless::of(&mut b));
    let (_, mut theirs) = sync_docless(&mut at_a, &mut at_b, 1 << 20, false);
    // We are back at an old state; the peer still thinks that all is shared.
    let mut restored = Docless::default();
    for change in a.get_changes(&[]).into_iter().take(6) {
        restored.admit(Change::from_automerge(change).unwrap());
    }
    let mut ours = Exchange::new();
    b.put(automerge::ROOT, "later", 1).unwrap();
    b.commit();
    for change in b.get_changes(&[]) {
        at_b.admit(Change::from_automerge(change).unwrap());
    }
    for _ in 0..20 {
        if let Some(message) = at_b.generate(&mut theirs, 1 << 20) {
            restored.receive(&mut ours, &message, false);
        }
        if let Some(message) = restored.generate(&mut ours, 1 << 20) {
            at_b.receive(&mut theirs, &message, false);
        }
    }
    assert_eq!(restored.graph.heads(), at_b.graph.heads());
}

#[test]
fn nothing_is_sent_while_a_message_is_being_taken() {
    let [mut a, _] = long_histories(5, 2);
    let at_a = Docless::of(&mut a);
    let (mut ours, mut theirs) = (Exchange::new(), Exchange::new());
    let empty = Docless::default();
    let hello = empty.generate(&mut theirs, 1 << 20).unwrap();
    assert!(ours.receive(&at_a.graph, &hello).unwrap().chunks.is_empty());
    let changes = at_a.generate(&mut ours, 1 << 20).unwrap();
    assert_eq!(theirs.receive(&empty.graph, &changes).unwrap().chunks.len(), 5);
    assert!(theirs.is_unsettled());
    assert_eq!(empty.generate(&mut theirs, 1 << 20), None);
    assert_eq!(theirs.receive(&empty.graph, &changes), Err(ExchangeError::Unsettled));
    theirs.settle(&empty.graph, Vec::new());
    assert!(empty.generate(&mut theirs, 1 << 20).is_some());
}
