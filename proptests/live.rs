//! Many threads at one database: what each was told stands, and a check of the whole finds nothing while they write.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use tidelog::log::MemoryStorage;
use tidelog::{Database, DocHandle, DocumentId, Error, Lsn};

use crate::support::{
    SmallEdit, assert_whole, first_value, logged_changes, narrow, node, plain, plain_json, rows_after, without_counters,
};

/// Tries again while there is no room, or the document is on its way to the log.
fn patiently<T>(mut action: impl FnMut() -> Result<T, Error>) -> T {
    loop {
        match action() {
            Err(Error::Busy) => std::thread::yield_now(),
            other => return other.unwrap(),
        }
    }
}

fn edit(handle: &DocHandle, number: u16) {
    let small = SmallEdit((number % 13) as u8, number.wrapping_mul(7919), number);
    let commit = patiently(|| {
        handle.change(|edit| {
            small.run(edit);
            Ok(())
        })
    });
    // Half of them are waited for, so that groups of every size are made.
    if number.is_multiple_of(2) {
        commit.wait().unwrap();
    }
}

fn open(number: u8) -> Database {
    Database::on(MemoryStorage::new()).node(node(number)).limits(narrow()).open().unwrap()
}

/// The handle's value is that of the log, made by Automerge alone.
fn assert_settled(database: &Database, id: DocumentId) {
    let expected = plain_json(&plain(logged_changes(database.reader(), id).values()));
    let handle = database.find(id).unwrap();
    assert_eq!(without_counters(patiently(|| handle.to_json())), expected);
}

#[test]
fn threads_that_edit_admit_and_check_at_once_agree_in_the_end() {
    const EDITS: u16 = 200;
    let (one, other) = (open(1), open(2));
    let notes = one.collection("notes").unwrap();
    let ids: Vec<DocumentId> =
        (0..3).map(|n| notes.doc_with(&format!("note {n}"), first_value()).unwrap().id()).collect();
    other.admit_blocking(rows_after(one.reader(), Lsn::ZERO)).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = [&one, &one, &one, &other]
            .into_iter()
            .enumerate()
            .map(|(writer, database)| {
                let ids = &ids;
                scope.spawn(move || {
                    for number in 0..EDITS {
                        // Found anew each time, so that cells and views come and go.
                        let id = ids[(usize::from(number) + writer) % ids.len()];
                        edit(&database.find(id).unwrap(), number);
                    }
                })
            })
            .collect();
        for (from, to) in [(&one, &other), (&other, &one)] {
            let done = &done;
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let answer = to.admit_blocking(rows_after(from.reader(), Lsn::ZERO)).unwrap();
                    assert!(answer.refused.is_empty(), "{:?}", answer.refused);
                }
            });
        }
        let (done, checked) = (&done, &one);
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                assert_whole(checked);
            }
        });
        let ended: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        done.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(|ended| ended.unwrap());
    });
    for (from, to) in [(&one, &other), (&other, &one)] {
        to.admit_blocking(rows_after(from.reader(), Lsn::ZERO)).unwrap();
    }
    assert_eq!(one.reader().inventory(None, 9).unwrap(), other.reader().inventory(None, 9).unwrap());
    for database in [&one, &other] {
        ids.iter().for_each(|id| assert_settled(database, *id));
        assert_whole(database);
    }
}

/// Whoever creates a named document first, nobody's edits of it are lost or refused.
#[test]
fn threads_that_create_one_named_document_at_once_lose_nothing() {
    for round in 0..40 {
        let database = open(round);
        let start = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (database, start) = (&database, &start);
                scope.spawn(move || {
                    let notes = database.collection("notes").unwrap();
                    start.wait();
                    let shared = notes.doc_with("shared", json!({ "hits": {} })).unwrap();
                    for n in 0..10 {
                        let key = format!("{thread} {n}");
                        shared.change(|edit| Ok(edit.put(["hits", &key], n)?)).unwrap().wait().unwrap();
                    }
                });
            }
        });
        let shared = database.collection("notes").unwrap().doc("shared").unwrap();
        assert_eq!(shared.to_json().unwrap()["hits"].as_object().unwrap().len(), 40, "round {round}");
    }
}

#[test]
fn whoever_listens_hears_which_document_each_commit_is_about() {
    let (database, other) = (open(1), open(2));
    let mut changed = database.changed_documents();
    let mut heard = || -> Vec<DocumentId> {
        let groups = std::iter::from_fn(|| changed.try_recv().ok());
        groups.flat_map(|documents| documents.to_vec()).collect()
    };
    let notes = database.collection("notes").unwrap();
    let (note, created) = notes.create(json!({})).unwrap();
    let (second, also_created) = notes.create(json!({})).unwrap();
    created.wait().unwrap();
    also_created.wait().unwrap();
    let both = heard();
    assert!(both.contains(&note.id()) && both.contains(&second.id()));
    note.change(|edit| Ok(edit.put("mine", 1)?)).unwrap().wait().unwrap();
    assert_eq!(heard(), [note.id()], "an edit made here");
    note.delete().unwrap().wait().unwrap();
    assert_eq!(heard(), [note.id()], "a statement made here");

    let (theirs, created) = other.collection("notes").unwrap().create(json!({ "theirs": 1 })).unwrap();
    created.wait().unwrap();
    database.admit_blocking(rows_after(other.reader(), Lsn::ZERO)).unwrap();
    assert_eq!(heard(), [theirs.id()], "what came from elsewhere");
    database.admit_blocking(rows_after(other.reader(), Lsn::ZERO)).unwrap();
    assert_eq!(heard(), [], "nothing new");
}
