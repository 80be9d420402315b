//! What a change refers to lies in its own past, whatever else a replica has: so replicas judge it alike, in whichever
//! order they hear of things.

use std::collections::BTreeSet;

use automerge::transaction::{CommitOptions, Transactable};
use automerge::{ActorId as RawActor, AutoCommit, Automerge, ObjType, ROOT, ReadDoc};
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};
use tidelog::engine::{Admitted, Clash, Incoming, IncomingBody};
use tidelog::log::MemoryStorage;
use tidelog::{Change, ChangeHash, Database, DocumentId, Error, Lsn};

use super::forge::{
    ACTION, ChangeParts, KEY_ACTOR, KEY_COUNTER, KEY_NAME, META, OBJECT_ACTOR, OBJECT_COUNTER, PREDECESSOR_ACTOR,
    PREDECESSOR_COUNTER, PREDECESSORS, VALUE, forged, run, slope,
};
use crate::support::{assert_whole, cases, logged_changes, narrow, node, origin, rows_after};

/// A database with one document, and the change it begins with.
fn begun() -> (Database, DocumentId, Change) {
    let database = Database::on(MemoryStorage::new()).node(node(1)).limits(narrow()).open().unwrap();
    let (handle, commit) = database.collection("notes").unwrap().create(json!({ "text": "tide" })).unwrap();
    commit.wait().unwrap();
    let first = logged_changes(database.reader(), handle.id()).into_values().next().unwrap();
    (database, handle.id(), first)
}

/// Another one with the same document.
fn copy(of: &Database) -> Database {
    let database = Database::on(MemoryStorage::new()).node(node(2)).limits(narrow()).open().unwrap();
    database.admit_blocking(rows_after(of.reader(), Lsn::ZERO)).unwrap();
    database
}

/// Offers a change as a node does.
fn offer(database: &Database, document: DocumentId, change: &Change) -> Admitted {
    let row =
        Incoming { document, body: IncomingBody::Change(Box::new(change.clone())), origin: origin(9), signature: None };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(database.admit_with(Clash::SmallerHash, vec![row], None, None)).unwrap()
}

/// What the replica shows, what it was offered one after the other and what became of it.
fn shown_after(database: &Database, document: DocumentId, changes: [&Change; 2]) -> (Value, bool) {
    let handle = database.find(document).unwrap();
    for change in changes {
        offer(database, document, change);
        handle.to_json().unwrap();
    }
    assert_whole(database);
    (handle.to_json().unwrap(), handle.state().unwrap().degraded)
}

#[test]
fn what_a_change_had_not_seen_is_nothing_to_it_whatever_came_first() {
    let (first, document, base) = begun();
    let (on, next) = ([base.hash()], base.start_op() + base.op_count());
    // An object, and an element of the text, of somebody else's.
    let object = forged(&on, next, (0x10, 1), |parts| {
        parts.columns.set(ACTION, run(1, 0));
    });
    let text = base.start_op();
    let element = |parts: &mut ChangeParts| {
        parts.others = vec![base.actor().as_bytes().to_vec()];
        parts.columns.set(OBJECT_ACTOR, run(1, 1)).set(OBJECT_COUNTER, run(1, text)).set(KEY_NAME, Vec::new());
        parts.columns.set(KEY_COUNTER, slope(1, 0)).set(super::forge::INSERT, vec![0, 1]);
        parts.columns.set(META, run(1, 0x16)).set(VALUE, b"x".to_vec());
    };
    let character = forged(&on, next, (0x20, 1), element);
    let other = |author: u8| vec![vec![author; 16]];
    let cases = [
        (
            "object",
            &object,
            forged(&on, next + 1, (0x66, 1), |parts| {
                parts.others = other(0x10);
                parts.columns.set(OBJECT_ACTOR, run(1, 1)).set(OBJECT_COUNTER, run(1, next));
            }),
        ),
        (
            "element",
            &character,
            forged(&on, next + 1, (0x66, 1), |parts| {
                element(parts);
                parts.others.insert(0, vec![0x20; 16]);
                parts.others.sort();
                let at = |name: &[u8]| 1 + parts.others.iter().position(|other| other == name).unwrap() as u64;
                let (own, theirs) = (at(base.actor().as_bytes()), at(&[0x20; 16]));
                parts.columns.set(OBJECT_ACTOR, run(1, own));
                parts.columns.set(KEY_ACTOR, run(1, theirs)).set(KEY_COUNTER, slope(1, next as i64));
            }),
        ),
        (
            "predecessor",
            &object,
            forged(&on, next + 1, (0x66, 1), |parts| {
                parts.others = other(0x10);
                parts.columns.set(PREDECESSORS, run(1, 1)).set(PREDECESSOR_ACTOR, run(1, 1));
                parts.columns.set(PREDECESSOR_COUNTER, slope(1, next as i64));
            }),
        ),
        // Its author's change before it: those who lack that take the number for a gap.
        ("number", &object, {
            let beside = forged(&on, next + 8, (0x11, 1), |_| {});
            offer(&first, document, &beside);
            forged(&[beside.hash()], next + 9, (0x10, 2), |_| {})
        }),
    ];
    for (what, seen, blind) in &cases {
        let (one, other) = (copy(&first), copy(&first));
        let in_order = shown_after(&one, document, [seen, blind]);
        let turned = shown_after(&other, document, [blind, seen]);
        assert_eq!(in_order, turned, "{what}");
        assert!(!in_order.1, "{what}: it was never taken");
        let digest = |database: &Database| database.find(document).unwrap().state().unwrap().digest;
        assert_eq!(digest(&one), digest(&other), "{what}");

        // A client is told, whatever its trial came to.
        let client = copy(&first);
        offer(&client, document, seen);
        let body = IncomingBody::Change(Box::new(blind.clone()));
        let examined =
            client.examine(node(9), vec![Incoming { document, body, origin: origin(9), signature: None }]).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let admitted = client.admit_examined(Clash::KeepFirst, examined.rows, Some(node(9)), None);
        let refused = runtime.block_on(admitted).unwrap().refused;
        let is_fault = matches!(examined.fault, Some(Error::Unappliable { .. }));
        assert!(is_fault || refused.len() == 1, "{what}: {refused:?}");
        assert!(!logged_changes(client.reader(), document).contains_key(&blind.hash()), "{what}");
        // With what it refers to in its past it is taken.
        let mut parts = ChangeParts::of(blind.bytes()).unwrap();
        parts.deps.push(seen.hash().0);
        parts.deps.sort_unstable();
        let sighted = Change::parse(parts.chunk()).unwrap();
        for database in [&one, &client] {
            let admitted = offer(database, document, &sighted);
            assert_eq!(admitted.accepted, 1, "{what}: {admitted:?}");
            assert!(database.find(document).unwrap().to_json().is_ok());
            assert_whole(database);
        }
    }
}

/// One step of an honest history.
#[derive(Debug, Clone)]
enum Step {
    Edit(usize, u8, Index),
    Merge(usize, usize),
    /// An edit on top of some older state.
    Isolated(usize, Index, u8, Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..3_usize, 0..5_u8, any::<Index>()).prop_map(|(who, kind, at)| Step::Edit(who, kind, at)),
        2 => (0..3_usize, 0..3_usize).prop_map(|(who, from)| Step::Merge(who, from)),
        1 => (0..3_usize, any::<Index>(), 0..5_u8, any::<Index>())
            .prop_map(|(who, then, kind, at)| Step::Isolated(who, then, kind, at)),
    ]
}

fn edit(document: &mut AutoCommit, kind: u8, at: Index) {
    let Some((_, text)) = document.get(ROOT, "text").unwrap() else { return };
    let Some((_, list)) = document.get(ROOT, "list").unwrap() else { return };
    let (length, items) = (document.length(&text), document.length(&list));
    match kind {
        0 | 1 => document.splice_text(&text, at.index(length + 1), 0, "ab").unwrap(),
        2 if length > 0 => document.splice_text(&text, at.index(length), 1, "").unwrap(),
        3 if items > 0 => document.put(&list, at.index(items), 7).unwrap(),
        _ => {
            let map = document.insert_object(&list, at.index(items + 1), ObjType::Map).unwrap();
            document.put(&map, "k", 1).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(cases(48))]

    /// What automerge writes lies in its own past: also edits of an older state, whatever came since.
    #[test]
    fn honest_changes_refer_to_their_past(steps in prop::collection::vec(step(), 1..60)) {
        let mut root = AutoCommit::new().with_actor(RawActor::from(vec![9_u8; 16]));
        root.put_object(ROOT, "text", ObjType::Text).unwrap();
        root.put_object(ROOT, "list", ObjType::List).unwrap();
        let mut peers: Vec<AutoCommit> =
            (0..3_u8).map(|who| root.fork().with_actor(RawActor::from(vec![who; 16]))).collect();
        for step in &steps {
            match step {
                Step::Edit(who, kind, at) => edit(&mut peers[*who], *kind, *at),
                Step::Merge(who, from) if who != from => {
                    let mut from = peers[*from].fork();
                    peers[*who].merge(&mut from).unwrap();
                }
                Step::Merge(..) => {}
                Step::Isolated(who, then, kind, at) => {
                    let peer = &mut peers[*who];
                    let hashes: Vec<_> = peer.get_changes(&[]).iter().map(|change| change.hash()).collect();
                    peer.isolate(&[hashes[then.index(hashes.len())]]);
                    edit(peer, *kind, *at);
                    peer.commit_with(CommitOptions::default());
                    peer.integrate();
                }
            }
        }
        let mut all = root.fork();
        for peer in &mut peers {
            all.merge(peer).unwrap();
        }
        let changes: Vec<Change> =
            all.get_changes(&[]).into_iter().map(|change| Change::from_automerge(change).unwrap()).collect();
        let database = Database::on(MemoryStorage::new()).node(node(1)).limits(narrow()).open().unwrap();
        let document = DocumentId([7; 16]);
        database.collection("notes").unwrap().create_with_id(document).unwrap();
        for change in &changes {
            let admitted = offer(&database, document, change);
            prop_assert_eq!(admitted.accepted, 1, "{:?}", admitted);
        }
        let mut plain = Automerge::new();
        plain.apply_changes(changes.iter().map(|change| change.as_automerge().clone())).unwrap();
        let heads: BTreeSet<ChangeHash> = plain.get_heads().iter().map(|hash| ChangeHash(hash.0)).collect();
        let shown = database.find(document).unwrap().heads().unwrap();
        prop_assert_eq!(shown.as_slice().iter().copied().collect::<BTreeSet<_>>(), heads);
    }
}
