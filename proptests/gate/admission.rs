//! Full admission: what automerge panics over never reaches the log, and what it leaves behind is never used.

use proptest::prelude::*;
use serde_json::json;
use tidelog::engine::{Clash, Examined, Incoming, IncomingBody};
use tidelog::log::MemoryStorage;
use tidelog::{Change, ChangeHash, Database, DocumentId, Error, Lsn};

use super::forge::{
    ChangeParts, OBJECT_ACTOR, OBJECT_COUNTER, PREDECESSOR_ACTOR, PREDECESSOR_COUNTER, PREDECESSORS, run, slope,
};
use crate::support::{
    SmallEdit, assert_whole, cases, first_value, logged_changes, narrow, node, origin, plain, plain_json, rows_after,
    small_edit, without_counters,
};

fn open(storage: &MemoryStorage) -> Database {
    Database::on(storage.clone()).node(node(1)).limits(narrow()).open().unwrap()
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn row(document: DocumentId, change: Change) -> Incoming {
    Incoming { document, body: IncomingBody::Change(Box::new(change)), origin: origin(9) }
}

/// Tries the rows, and offers to the log what passed.
fn offer(database: &Database, rows: Vec<Incoming>) -> Examined {
    let mut examined = database.examine(node(9), rows).unwrap();
    let rows = std::mem::take(&mut examined.rows);
    let admitted = wait(database.admit_examined(Clash::KeepFirst, rows, Some(node(9)), None)).unwrap();
    assert!(admitted.refused.is_empty(), "{admitted:?}");
    examined
}

/// A change that passes the gate and writes into an object that is not there: automerge panics over it.
fn hostile(database: &Database, document: DocumentId, actor: u8) -> Change {
    let heads = database.find(document).unwrap().heads().unwrap();
    let max_op =
        logged_changes(database.reader(), document).values().map(|change| change.start_op() + change.op_count()).max();
    unappliable(heads.as_slice(), max_op.unwrap(), (actor, 1))
}

/// A change by that author under that number that passes the gate and writes into an object that is not there.
pub(crate) fn unappliable(deps: &[ChangeHash], start: u64, author: (u8, u64)) -> Change {
    forged(deps, start, author, |parts| {
        parts.columns.set(OBJECT_ACTOR, run(1, 0)).set(OBJECT_COUNTER, run(1, 1));
    })
}

/// One that is applied, and that the document cannot give back: it replaces what was never there.
pub(crate) fn ungivable(deps: &[ChangeHash], start: u64, author: (u8, u64)) -> Change {
    forged(deps, start, author, |parts| {
        parts.columns.set(PREDECESSORS, run(1, 1)).set(PREDECESSOR_ACTOR, run(1, 0));
        parts.columns.set(PREDECESSOR_COUNTER, slope(1, 1));
    })
}

/// A change by that author under that number that sets a key at the root; on top of what may not be there.
pub(crate) fn plain_change(deps: &[ChangeHash], start: u64, author: (u8, u64)) -> Change {
    forged(deps, start, author, |_| {})
}

fn forged(deps: &[ChangeHash], start: u64, author: (u8, u64), edit: impl FnOnce(&mut ChangeParts)) -> Change {
    let mut parts = ChangeParts::one();
    (parts.actor, parts.seq, parts.start) = (vec![author.0; 16], author.1, start);
    parts.deps = deps.iter().map(|hash| hash.0).collect();
    parts.deps.sort_unstable();
    edit(&mut parts);
    Change::parse(parts.chunk()).unwrap()
}

#[test]
fn a_change_that_makes_automerge_panic_leaves_no_trace() {
    let storage = MemoryStorage::new();
    let database = open(&storage);
    let (handle, commit) = database.collection("notes").unwrap().create(json!({ "text": "tide" })).unwrap();
    commit.wait().unwrap();
    let id = handle.id();

    let bad = hostile(&database, id, 0x66);
    let hash = bad.hash();
    // Something honest comes before it, and is taken.
    let honest = {
        let other = Database::on(MemoryStorage::new()).node(node(2)).open().unwrap();
        other.admit_blocking(rows_after(database.reader(), Lsn::ZERO)).unwrap();
        let before = other.reader().tail().lsn;
        other.find(id).unwrap().change(|edit| Ok(edit.put("by", "a client")?)).unwrap().wait().unwrap();
        rows_after(other.reader(), before)
    };
    let examined = offer(&database, honest.into_iter().chain([row(id, bad.clone())]).collect());
    assert!(matches!(&examined.fault, Some(Error::Unappliable { hash: named, .. }) if *named == hash), "{examined:?}");
    let tail = database.reader().tail();
    assert!(!logged_changes(database.reader(), id).contains_key(&hash));
    assert_eq!(handle.to_json().unwrap(), json!({ "text": "tide", "by": "a client" }));
    assert_eq!(database.status().quarantined, 1);

    // Again, and after a restart, it is known by name; its descendants lack what they depend on.
    let again = offer(&database, vec![row(id, bad.clone())]).fault.unwrap();
    assert!(again.to_string().contains("quarantine since"), "{again}");
    database.close();
    drop(database);
    let database = open(&storage);
    let again = offer(&database, vec![row(id, bad)]).fault.unwrap();
    assert!(again.to_string().contains("quarantine since"), "{again}");
    assert!(database.reader().tail().lsn <= Lsn(tail.lsn.0 + 2));
    // The document lives on.
    let handle = database.find(id).unwrap();
    handle.change(|edit| Ok(edit.put("by", "its owner")?)).unwrap().wait().unwrap();
    assert_eq!(handle.to_json().unwrap(), json!({ "text": "tide", "by": "its owner" }));
    assert_whole(&database);
}

#[test]
fn the_quarantine_is_a_ring() {
    let storage = MemoryStorage::new();
    let mut limits = narrow();
    limits.quarantine_rows = 3;
    let database = Database::on(storage).node(node(1)).limits(limits).open().unwrap();
    let (handle, commit) = database.collection("notes").unwrap().create(json!({ "a": 1 })).unwrap();
    commit.wait().unwrap();
    let bad: Vec<Change> = (1..=5).map(|actor| hostile(&database, handle.id(), actor)).collect();
    let why = |change: &Change| offer(&database, vec![row(handle.id(), change.clone())]).fault.unwrap().to_string();
    for change in &bad {
        assert!(why(change).contains("panic"), "tried for the first time");
    }
    assert!(why(&bad[4]).contains("quarantine since"));
    assert!(why(&bad[0]).contains("panic"), "forgotten, tried again, and refused again");
    assert!(handle.to_json().is_ok());
}

#[test]
fn what_comes_before_what_it_depends_on_is_asked_for_again_and_never_parked() {
    let source = Database::on(MemoryStorage::new()).node(node(2)).open().unwrap();
    let handle = source.collection("notes").unwrap().doc_with("a", first_value()).unwrap();
    for n in 0..3 {
        handle.change(|edit| Ok(edit.put("n", n)?)).unwrap().wait().unwrap();
    }
    let rows = rows_after(source.reader(), Lsn::ZERO);
    let database = open(&MemoryStorage::new());
    // The last change alone: nobody created the document here.
    let examined = offer(&database, rows[rows.len() - 1..].to_vec());
    assert_eq!(examined.missing, [(handle.id(), Vec::new())]);
    // With its creation, it lacks the changes before it.
    let gap: Vec<Incoming> = [&rows[..1], &rows[rows.len() - 1..]].concat();
    let examined = offer(&database, gap);
    assert_eq!(examined.missing.len(), 1);
    assert!(logged_changes(database.reader(), handle.id()).is_empty());
    // All of it, in order.
    let examined = offer(&database, rows.clone());
    assert!(examined.missing.is_empty() && examined.fault.is_none(), "{examined:?}");
    assert_eq!(logged_changes(database.reader(), handle.id()).len(), rows.len() - 1);
    assert_eq!(database.find(handle.id()).unwrap().to_json().unwrap(), handle.to_json().unwrap());
}

proptest! {
    #![proptest_config(cases(24))]

    /// What honest clients send arrives whole, however it is cut, with local edits in between.
    #[test]
    fn honest_rows_arrive(
        edits in prop::collection::vec((0..2_u8, small_edit()), 1..60),
        cut in 1..9_usize,
    ) {
        let mut limits = narrow();
        // With no room for trial views each is built again for every batch.
        limits.trial_budget = if cut % 2 == 0 { 1 } else { limits.trial_budget };
        let server = Database::on(MemoryStorage::new()).node(node(1)).limits(limits).open().unwrap();
        let client = Database::on(MemoryStorage::new()).node(node(2)).open().unwrap();
        let handle = client.collection("notes").unwrap().doc_with("a", first_value()).unwrap();
        let id = handle.id();
        let (mut sent, mut taken) = (Lsn::ZERO, Lsn::ZERO);
        for (number, (who, edit)) in edits.into_iter().enumerate() {
            let at = if who == 0 { &client } else { &server };
            if let Ok(handle) = at.find(id) {
                let _ = handle.change(|change| { SmallEdit::run(edit, change); Ok(()) }).unwrap().wait();
            }
            if number % cut == 0 {
                let rows = rows_after(client.reader(), sent);
                sent = client.reader().tail().lsn;
                let examined = offer(&server, rows);
                prop_assert!(examined.fault.is_none() && examined.missing.is_empty(), "{examined:?}");
                let rows = rows_after(server.reader(), taken);
                taken = server.reader().tail().lsn;
                client.admit_blocking(rows).unwrap();
            }
        }
        offer(&server, rows_after(client.reader(), sent));
        client.admit_blocking(rows_after(server.reader(), taken)).unwrap();
        let (left, right) = (logged_changes(server.reader(), id), logged_changes(client.reader(), id));
        prop_assert!(left.keys().eq(right.keys()));
        let expected = plain_json(&plain(left.values()));
        prop_assert_eq!(without_counters(server.find(id).unwrap().to_json().unwrap()), expected);
        prop_assert_eq!(server.status().quarantined, 0);
        assert_whole(&server);
    }
}

/// What a keystroke of a client costs beside its way into the log.
#[test]
fn a_keystroke_is_tried_in_microseconds() {
    let client = Database::on(MemoryStorage::new()).node(node(2)).open().unwrap();
    let handle = client.collection("notes").unwrap().doc_with("a", first_value()).unwrap();
    let server = Database::on(MemoryStorage::new()).node(node(1)).open().unwrap();
    offer(&server, rows_after(client.reader(), Lsn::ZERO));
    let before = client.reader().tail().lsn;
    for n in 0..500 {
        handle.change(|edit| Ok(edit.splice("text", n, 0, "x")?)).unwrap().wait().unwrap();
    }
    let mut took = std::time::Duration::ZERO;
    for row in rows_after(client.reader(), before) {
        let began = std::time::Instant::now();
        let examined = server.examine(node(2), vec![row]).unwrap();
        took += began.elapsed();
        wait(server.admit_examined(Clash::KeepFirst, examined.rows, Some(node(2)), None)).unwrap();
    }
    println!("{:?} a keystroke", took / 500);
    assert_eq!(server.status().trials, 1);
    assert_eq!(logged_changes(server.reader(), handle.id()).len(), 501);
}
