use proptest::prelude::*;

use super::*;

fn actor(n: u8) -> ActorId {
    ActorId::new(&[n; 16]).unwrap()
}

fn hash(n: u64) -> ChangeHash {
    // As unlike each other as real hashes are.
    ChangeHash(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

fn node<'a>(n: u64, actor: &'a ActorId, seq: u64, start_op: u64, deps: &'a [ChangeHash]) -> Node<'a> {
    Node { hash: hash(n), actor, seq, start_op, op_count: 2, deps, lsn: Lsn(10 + n) }
}

#[test]
fn a_change_is_taken_once_and_becomes_the_head() {
    let mut graph = ChangeGraph::new();
    assert!(graph.is_empty() && graph.heads().is_empty());
    assert_eq!((graph.max_op(), graph.last_lsn()), (0, Lsn::ZERO));
    let a = actor(1);
    assert_eq!(graph.add(node(1, &a, 1, 1, &[])), Ok(true));
    assert_eq!(graph.add(node(1, &a, 1, 1, &[])), Ok(false));
    assert_eq!(graph.add(node(2, &a, 2, 3, &[hash(1)])), Ok(true));
    assert_eq!(graph.heads().as_slice(), [hash(2)]);
    assert_eq!((graph.len(), graph.max_op(), graph.last_lsn()), (2, 4, Lsn(12)));
    assert_eq!((graph.clock(&a), graph.clock(&actor(9))), (2, 0));
    assert_eq!(graph.lsn_of(&hash(1)), Some(Lsn(11)));
    assert_eq!(graph.change_of(&a, 2), Some(hash(2)));
    assert_eq!(graph.change_of(&a, 0), None);
    let info = graph.info_at(graph.index_of(&hash(2)).unwrap());
    assert_eq!((info.actor, info.seq, info.start_op, info.op_count), (&a, 2, 3, 2));
}

#[test]
fn a_change_that_may_not_come_next_is_named_and_leaves_the_graph_as_it_was() {
    let (a, b) = (actor(1), actor(2));
    let mut graph = ChangeGraph::with_window(100);
    graph.add(node(1, &a, 1, 1, &[])).unwrap();
    let missing = graph.add(node(2, &a, 2, 3, &[hash(1), hash(7), hash(8)]));
    assert_eq!(missing, Err(GraphError::MissingDeps(vec![hash(7), hash(8)])));
    let gap = graph.add(node(2, &a, 3, 3, &[hash(1)]));
    assert_eq!(gap, Err(GraphError::SeqGap { actor: a.clone(), expected: 2, found: 3 }));
    assert!(matches!(graph.add(node(2, &b, 2, 3, &[hash(1)])), Err(GraphError::SeqGap { expected: 1, .. })));
    let twice = graph.add(node(2, &a, 1, 1, &[]));
    assert_eq!(twice, Err(GraphError::Equivocation { actor: a.clone(), seq: 1, known: Some(hash(1)) }));
    assert!(matches!(graph.add(node(2, &a, 0, 1, &[])), Err(GraphError::Equivocation { known: None, .. })));
    for start_op in [0, 1, 2, 104, (1 << 31) - 1, 1 << 31, (1 << 32) - 2, (1 << 32) - 1, u64::MAX] {
        let refused = graph.add(node(2, &a, 2, start_op, &[hash(1)]));
        assert_eq!(refused, Err(GraphError::StartOp { found: start_op, min: 3, max: 103 }));
    }
    let deps = [hash(1)];
    let long = Node { op_count: u64::MAX, ..node(2, &a, 2, 3, &deps) };
    assert!(matches!(graph.add(long), Err(GraphError::StartOp { .. })));
    assert_eq!((graph.len(), graph.max_op(), graph.heads().as_slice()), (1, 2, &[hash(1)][..]));
    assert_eq!(graph.add(node(2, &a, 2, 103, &[hash(1)])), Ok(true));
}

#[test]
fn a_change_costs_at_most_a_hundred_bytes() {
    let a = actor(1);
    let mut graph = ChangeGraph::new();
    for n in 0..100_000 {
        let deps: &[ChangeHash] = if n == 0 { &[] } else { &[hash(n - 1)] };
        graph.add(node(n, &a, n + 1, 1 + 2 * n, deps)).unwrap();
        if n > 1000 {
            assert!(graph.bytes() <= 110 * (n as usize + 1), "{} bytes for {n} changes", graph.bytes());
        }
    }
    assert!(graph.bytes() <= 100 * graph.len(), "{}", graph.bytes() / graph.len());
}

#[test]
fn what_follows_recent_heads_is_found_without_going_over_the_whole_graph() {
    let a = actor(1);
    let mut graph = ChangeGraph::new();
    for n in 0..20_000 {
        let deps: &[ChangeHash] = if n == 0 { &[] } else { &[hash(n - 1)] };
        graph.add(node(n, &a, n + 1, 1 + 2 * n, deps)).unwrap();
    }
    let begun = std::time::Instant::now();
    for n in 0..20_000 {
        let heads = [hash(19_990)];
        assert_eq!(graph.following(&heads).len(), 9, "{n}");
    }
    // 400 million steps of a tree if it went over everything, a minute; a tenth of a second as it is.
    assert!(begun.elapsed().as_secs() < 20);
}

/// A graph as sets: who depends on whom.
#[derive(Default)]
struct Model {
    deps: Vec<BTreeSet<usize>>,
}

impl Model {
    fn with_ancestors(&self, of: impl IntoIterator<Item = usize>) -> BTreeSet<usize> {
        let mut seen = BTreeSet::new();
        let mut left: Vec<usize> = of.into_iter().collect();
        while let Some(n) = left.pop() {
            if seen.insert(n) {
                left.extend(&self.deps[n]);
            }
        }
        seen
    }

    fn heads(&self) -> BTreeSet<usize> {
        let followed: BTreeSet<usize> = self.deps.iter().flatten().copied().collect();
        (0..self.deps.len()).filter(|n| !followed.contains(n)).collect()
    }
}

fn hashes(of: impl IntoIterator<Item = usize>) -> Vec<ChangeHash> {
    of.into_iter().map(|n| hash(n as u64)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Every answer of the graph is the one that sets give, for any shape of history and any question.
    #[test]
    fn the_graph_answers_as_sets_do(
        shape in prop::collection::vec((0_u8..4, prop::collection::vec(any::<prop::sample::Index>(), 0..4)), 1..80),
        asked in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        among in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let mut graph = ChangeGraph::new();
        let mut model = Model::default();
        let mut last_of: HashMap<u8, usize> = HashMap::new();
        for (n, (author, picks)) in shape.iter().enumerate() {
            // An actor always builds on its own last change, as automerge does.
            let mut deps: BTreeSet<usize> = last_of.get(author).copied().into_iter().collect();
            deps.extend(picks.iter().filter(|_| n > 0).map(|pick| n - 1 - pick.index(n.min(8))));
            let actor = actor(*author);
            let seq = graph.clock(&actor) + 1;
            let dep_hashes = hashes(deps.iter().copied());
            let added = graph.add(node(n as u64, &actor, seq, graph.max_op() + 1, &dep_hashes));
            prop_assert_eq!(added, Ok(true));
            last_of.insert(*author, n);
            model.deps.push(deps);
        }
        let count = model.deps.len();
        prop_assert_eq!(graph.heads(), Heads::new(hashes(model.heads())));

        let asked: BTreeSet<usize> = asked.iter().map(|pick| pick.index(count)).collect();
        let known = model.with_ancestors(asked.iter().copied());
        let expected: Vec<ChangeHash> = hashes((0..count).filter(|n| !known.contains(n)));
        let mut question = hashes(asked.iter().copied());
        if !question.is_empty() {
            question.push(hash(1_000_000));
        }
        let found: Vec<ChangeHash> = graph.following(&question).into_iter().map(|n| graph.hash_at(n)).collect();
        prop_assert_eq!(found, expected);

        let among: BTreeSet<usize> = among.iter().map(|pick| pick.index(count)).collect();
        let mut set: BTreeSet<Index> = among.iter().map(|n| Index(*n as u32)).collect();
        graph.remove_ancestors(&question, &mut set);
        let expected: BTreeSet<Index> =
            among.iter().filter(|n| !known.contains(n)).map(|n| Index(*n as u32)).collect();
        prop_assert_eq!(set, expected);

        let newest = among.iter().copied().filter(|n| {
            !among.iter().any(|m| m != n && model.with_ancestors([*m]).contains(n))
        });
        prop_assert_eq!(graph.newest_of(hashes(among.iter().copied()), usize::MAX), Heads::new(hashes(newest)));
    }

    /// A change may refer to what sets say is in its past, and to nothing else.
    #[test]
    fn a_past_is_what_sets_say(
        shape in prop::collection::vec((0_u8..4, prop::collection::vec(any::<prop::sample::Index>(), 0..3), any::<bool>()), 2..120),
        reach in 2..120_usize,
    ) {
        let mut graph = ChangeGraph::new();
        let mut model = Model::default();
        let mut made: Vec<(u8, u64)> = Vec::new();
        let mut last_of: HashMap<u8, usize> = HashMap::new();
        for (n, (author, picks, is_checked)) in shape.iter().enumerate() {
            let mut deps: BTreeSet<usize> = last_of.get(author).copied().into_iter().collect();
            deps.extend(picks.iter().filter(|_| n > 0).map(|pick| n - 1 - pick.index(n.min(reach))));
            let (own, start) = (actor(*author), graph.max_op() + 1);
            let past = model.with_ancestors(deps.iter().copied());
            let dep_hashes = hashes(deps.iter().copied());
            let next = node(n as u64, &own, graph.clock(&own) + 1, start, &dep_hashes);
            if *is_checked {
                for (other, (of, first)) in made.iter().enumerate().filter(|(_, (of, _))| of != author) {
                    let allowed = graph.check_past(&next, &[(actor(*of), first + 1)]);
                    prop_assert_eq!(allowed.is_ok(), past.contains(&other), "{} of {}: {:?}", other, n, allowed);
                }
                let nobody = graph.check_past(&next, &[(actor(9), 1)]);
                prop_assert_eq!(nobody, Err(GraphError::Unseen { of: actor(9), counter: 1 }));
                let follows = graph.check_past(&Node { deps: &[], ..next }, &[]);
                prop_assert_eq!(follows.is_ok(), !last_of.contains_key(author));
                prop_assert_eq!(graph.check_past(&next, &[]), Ok(()));
            }
            prop_assert_eq!(graph.add(next), Ok(true));
            last_of.insert(*author, n);
            made.push((*author, start));
            model.deps.push(deps);
        }
    }
}
