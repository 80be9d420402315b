//! A disk that is full, and one that fails: writes are refused by name, reads go on, nothing acknowledged is lost and
//! nothing lost is shown.

use std::time::{Duration, Instant};

use serde_json::json;
use tidelog::log::MemoryStorage;
use tidelog::{Database, Error, Limits};

use crate::support::{assert_whole, node};

/// Looks again and again until it is so. The writer looks at the disk once a second.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::yield_now();
    }
}

fn open(storage: &MemoryStorage) -> Database {
    Database::on(storage.clone()).node(node(1)).open().unwrap()
}

#[test]
fn nothing_is_written_to_an_almost_full_disk_and_writing_goes_on_when_there_is_room() {
    let storage = MemoryStorage::new();
    let database = open(&storage);
    let notes = database.collection("notes").unwrap();
    let (note, created) = notes.create(json!({ "text": "dry" })).unwrap();
    created.wait().unwrap();
    storage.set_free_bytes(Some(Limits::DEFAULT.disk_free_min - 1));
    until("the writer sees that the disk is full", || database.status().disk_full);
    let tail = database.reader().tail();
    let refused = note.change(|edit| Ok(edit.splice("text", 0, 0, "wet ")?)).err().unwrap();
    assert!(matches!(refused, Error::StorageFull) && refused.is_retryable(), "{refused}");
    assert!(matches!(notes.create(json!({})), Err(Error::StorageFull)));
    assert!(matches!(note.delete(), Err(Error::StorageFull)));
    assert!(matches!(database.admit_blocking(Vec::new()), Err(Error::StorageFull)));
    assert_eq!(note.to_json().unwrap(), json!({ "text": "dry" }), "reading goes on, and nothing was edited");
    assert_eq!(database.reader().tail(), tail);
    storage.set_free_bytes(Some(Limits::DEFAULT.disk_free_min));
    until("the writer sees that there is room", || !database.status().disk_full);
    note.change(|edit| Ok(edit.splice("text", 0, 0, "wet ")?)).unwrap().wait().unwrap();
    assert_eq!(note.to_json().unwrap(), json!({ "text": "wet dry" }));
    assert_whole(&database);
}

#[test]
fn after_a_failed_append_the_database_only_reads_and_shows_nothing_that_is_lost() {
    for good in 0..6 {
        let storage = MemoryStorage::new();
        let database = open(&storage);
        let notes = database.collection("notes").unwrap();
        let (note, created) = notes.create(json!({ "n": 0, "text": "" })).unwrap();
        created.wait().unwrap();
        storage.fail_after(good);
        let mut acknowledged = 0;
        let failed = loop {
            let commit = note.change(|edit| Ok(edit.put("n", acknowledged + 1)?)).unwrap();
            match commit.wait() {
                Ok(_) => acknowledged += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(failed.code(), "E0404", "{failed}");
        assert_eq!(note.to_json().unwrap(), json!({ "n": acknowledged, "text": "" }), "the lost edit is not shown");
        assert!(matches!(note.change(|edit| Ok(edit.put("n", 99)?)), Err(Error::ReadOnly(_))));
        assert!(database.status().failure.is_some());
        let again = open(&storage.killed());
        let found = again.find(note.id()).unwrap();
        assert_eq!(found.to_json().unwrap(), json!({ "n": acknowledged, "text": "" }));
        found.change(|edit| Ok(edit.put("n", 100)?)).unwrap().wait().unwrap();
        assert_whole(&again);
    }
}

#[test]
fn of_many_edits_on_their_way_when_an_append_fails_none_is_answered_twice_and_none_is_lost_that_was_acknowledged() {
    let storage = MemoryStorage::new();
    let database = open(&storage);
    let notes = database.collection("notes").unwrap();
    let (note, created) = notes.create(json!({ "keys": {} })).unwrap();
    created.wait().unwrap();
    storage.fail_after(3);
    let mut commits = Vec::new();
    for n in 0..2000 {
        match note.change(|edit| Ok(edit.put(["keys", &n.to_string()], n)?)) {
            Ok(commit) => commits.push(commit),
            Err(error) => {
                assert!(matches!(error, Error::ReadOnly(_) | Error::Busy), "{error}");
                break;
            }
        }
    }
    let answers: Vec<bool> = commits.into_iter().map(|commit| commit.wait().is_ok()).collect();
    let acknowledged = answers.iter().take_while(|ok| **ok).count();
    assert!(answers[acknowledged..].iter().all(|ok| !ok), "an edit was acknowledged on top of a lost one");
    assert!(acknowledged < answers.len() || answers.len() < 2000);
    let again = open(&storage.killed());
    for database in [&database, &again] {
        let json = database.find(note.id()).unwrap().to_json().unwrap();
        assert_eq!(json["keys"].as_object().unwrap().len(), acknowledged);
    }
    assert_whole(&again);
}

#[test]
fn too_large_a_change_is_refused_and_leaves_no_trace() {
    let mut limits = Limits::default();
    limits.change_bytes_max = 4000;
    let database = Database::on(MemoryStorage::new()).node(node(1)).limits(limits).open().unwrap();
    let notes = database.collection("notes").unwrap();
    let (note, created) = notes.create(json!({ "text": "" })).unwrap();
    created.wait().unwrap();
    // Text that does not compress.
    let mut state = 1u64;
    let large: String = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        char::from(b'!' + (state >> 58) as u8)
    })
    .take(20_000)
    .collect();
    let before = note.change(|edit| Ok(edit.splice("text", 0, 0, "a")?)).unwrap();
    let refused = note.change(|edit| Ok(edit.splice("text", 1, 0, &large)?)).err().unwrap();
    assert!(matches!(refused, Error::Refused { .. }), "{refused}");
    before.wait().unwrap();
    note.change(|edit| Ok(edit.splice("text", 1, 0, "b")?)).unwrap().wait().unwrap();
    assert_eq!(note.to_json().unwrap(), json!({ "text": "ab" }));
    assert!(matches!(notes.create(json!({ "text": large })), Err(Error::Refused { .. })));
    assert_eq!(database.reader().inventory(None, 9).unwrap().len(), 1);
    assert_whole(&database);
}
