//! Full admission: what automerge panics over never reaches the log, and what it leaves behind is never used.

use proptest::prelude::*;
use serde_json::json;
use tidelog::engine::{Clash, Examined, Incoming, IncomingBody};
use tidelog::log::MemoryStorage;
use tidelog::node::command::{Cancel, Collected, Context, Request, execute};
use tidelog::{Change, ChangeHash, Database, DocumentId, Error, Lsn};

use super::forge::{
    ChangeParts, OBJECT_ACTOR, OBJECT_COUNTER, PREDECESSOR_ACTOR, PREDECESSOR_COUNTER, PREDECESSORS, forged, run, slope,
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
    Incoming { document, body: IncomingBody::Change(Box::new(change)), origin: origin(9), signature: None }
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
fn no_change_passes_untried_beside_one_that_is_tried() {
    let database = open(&MemoryStorage::new());
    let (handle, commit) = database.collection("notes").unwrap().create(json!({ "text": "tide" })).unwrap();
    commit.wait().unwrap();
    let id = handle.id();
    let bad = hostile(&database, id, 0x66);
    // Twice in one batch.
    let examined = offer(&database, vec![row(id, bad.clone()), row(id, bad.clone())]);
    assert!(examined.fault.is_some());
    assert!(!logged_changes(database.reader(), id).contains_key(&bad.hash()), "the second one was never tried");

    // An honest change, and a hostile one under its author's number: the first one is logged.
    let heads: Vec<[u8; 32]> = handle.heads().unwrap().as_slice().iter().map(|hash| hash.0).collect();
    let (honest, twin) = (on_top_of(&heads, 9, 0x67, false), on_top_of(&heads, 9, 0x67, true));
    assert_ne!(honest.hash(), twin.hash());
    let examined = offer(&database, vec![row(id, honest.clone()), row(id, twin.clone())]);
    assert_eq!(examined.missing, [(id, Vec::new())], "it is asked for again, when the first one's fate is known");
    let mut examined = database.examine(node(9), vec![row(id, twin.clone())]).unwrap();
    let rows = std::mem::take(&mut examined.rows);
    let admitted = wait(database.admit_examined(Clash::KeepFirst, rows, Some(node(9)), None)).unwrap();
    assert_eq!(admitted.outranked, [(id, twin.hash())]);
    let logged = logged_changes(database.reader(), id);
    assert!(logged.contains_key(&honest.hash()) && !logged.contains_key(&twin.hash()));

    // One that can be applied and that the log refuses, and a hostile one that would take its number: in one batch, and
    // the second while the first is on its way.
    let heads: Vec<[u8; 32]> = handle.heads().unwrap().as_slice().iter().map(|hash| hash.0).collect();
    let far = |actor| on_top_of(&heads, 1 << 24, actor, false);
    let twin = |actor| on_top_of(&heads, 12, actor, true);
    let mut together = database.examine(node(9), vec![row(id, far(0x70)), row(id, twin(0x70))]).unwrap();
    let rows = std::mem::take(&mut together.rows);
    let admitted = wait(database.admit_examined(Clash::KeepFirst, rows, Some(node(9)), None)).unwrap();
    assert_eq!(admitted.refused.len(), 1, "{admitted:?}");
    let first = database.examine(node(9), vec![row(id, far(0x71))]).unwrap().rows;
    let second = database.examine(node(9), vec![row(id, twin(0x71))]).unwrap();
    for rows in [first, second.rows] {
        wait(database.admit_examined(Clash::KeepFirst, rows, Some(node(9)), None)).unwrap();
    }
    let logged = logged_changes(database.reader(), id);
    for actor in [0x70, 0x71] {
        assert!(!logged.contains_key(&far(actor).hash()), "beyond the window");
        assert!(!logged.contains_key(&twin(actor).hash()), "never tried");
    }
    assert!(handle.to_json().is_ok());
    assert_whole(&database);
}

/// A change by `actor` on top of `deps`; `bad` writes into an object that is not there.
fn on_top_of(deps: &[[u8; 32]], start: u64, actor: u8, bad: bool) -> Change {
    let mut parts = ChangeParts::one();
    parts.actor = vec![actor; 16];
    parts.deps = deps.to_vec();
    parts.start = start;
    if bad {
        parts.columns.set(OBJECT_ACTOR, run(1, 0)).set(OBJECT_COUNTER, run(1, 1));
    }
    Change::parse(parts.chunk()).unwrap()
}

#[test]
fn hostile_files_of_a_folder_that_is_taken_over_leave_no_trace() {
    // Three documents: hostile changes beside honest ones, far too many hostile ones, and none.
    let folder = tempfile::tempdir().unwrap();
    let put = |id: DocumentId, kind: &str, name: &str, bytes: &[u8]| {
        let text = id.to_base58();
        let place = folder.path().join(&text[..2]).join(&text[2..]).join(kind);
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(place.join(name), bytes).unwrap();
    };
    let source = Database::on(MemoryStorage::new()).node(node(2)).open().unwrap();
    let handles: Vec<_> =
        (0..3).map(|_| source.collection("notes").unwrap().create(json!({ "text": "tide" })).unwrap().0).collect();
    for handle in &handles {
        put(handle.id(), "snapshot", "a", &handle.with_view(|view| Ok(view.save()?)).unwrap());
    }
    let heads: Vec<Vec<[u8; 32]>> =
        handles.iter().map(|handle| handle.heads().unwrap().as_slice().iter().map(|hash| hash.0).collect()).collect();
    let bad = on_top_of(&heads[0], 9, 0x66, true);
    let later = on_top_of(&[bad.hash().0], 10, 0x67, false);
    let honest = on_top_of(&heads[0], 9, 0x68, false);
    for (name, change) in [("1", &bad), ("2", &later), ("3", &honest)] {
        put(handles[0].id(), "incremental", name, change.bytes());
    }
    for actor in 0..40 {
        let change = on_top_of(&heads[1], 9, 100 + actor, true);
        put(handles[1].id(), "incremental", &format!("{actor:02}"), change.bytes());
    }

    let database = open(&MemoryStorage::new());
    let context = {
        let peers = tidelog::node::peers::PeerBook::load(folder.path(), tidelog::net::UnknownKeys::Refuse).unwrap();
        Context::direct(database.clone(), peers)
    };
    let run = || {
        let (_canceller, cancel) = Cancel::new();
        let mut rows = Collected::default();
        let request = Request::ImportAutomergeRepo { folder: folder.path().to_owned(), collection: None };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _within = runtime.enter();
        (execute(&context, request, &cancel, &mut rows).unwrap(), rows.rows)
    };
    let (answer, rows) = run();
    assert_eq!((answer["created"].as_u64(), answer["verified"].as_u64()), (Some(3), Some(3)), "{answer}");
    assert_eq!(answer["failed"].as_u64(), Some(0), "{answer}");
    let logged = logged_changes(database.reader(), handles[0].id());
    assert!(logged.contains_key(&honest.hash()), "an honest change behind a hostile one");
    assert!(!logged.contains_key(&bad.hash()) && !logged.contains_key(&later.hash()));
    assert_eq!(logged_changes(database.reader(), handles[1].id()).len(), 1);
    let said = |words: &[&str]| rows.iter().any(|row| words.iter().all(|word| row.to_string().contains(word)));
    assert!(said(&["incremental/1", &bad.hash().to_string(), "cannot be taken"]), "{rows:#?}");
    assert!(said(&["incremental/2", "or some they depend on"]), "{rows:#?}");
    assert!(rows.len() <= 3 + 41, "each is named once: {rows:#?}");
    assert!(database.status().quarantined <= 1 + 17, "the rest of the second document was left alone");
    assert_whole(&database);

    let tail = database.reader().tail();
    let (again, _) = run();
    assert_eq!((again["unchanged"].as_u64(), again["changes"].as_u64()), (Some(3), Some(0)), "{again}");
    assert_eq!(database.reader().tail(), tail);
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
