use serde_json::{Value, json};

use super::*;
use crate::limits::Limits;
use crate::log::MemoryStorage;

const SERVER: NodeId = NodeId([9; 32]);

fn open(storage: &MemoryStorage, limits: Limits) -> Database {
    Database::on(storage.clone()).node(NodeId([1; 32])).limits(limits).open().unwrap()
}

/// Edits a field and gives the change.
fn put(handle: &DocHandle, key: &str, value: impl Into<Value>) -> ChangeHash {
    handle.change(|edit| Ok(edit.put(key, value.into())?)).unwrap().wait().unwrap();
    handle.heads().unwrap().as_slice()[0]
}

fn deny(database: &Database, document: DocumentId, change: Option<ChangeHash>) {
    let row = DeniedRow { document, change, is_behind: false, why: "no".into() };
    block_on(database.take_back(SERVER, vec![row])).unwrap();
}

fn check(database: &Database) {
    let found = database.verify(true, &mut |_, _| {}).unwrap();
    assert!(found.faults.is_empty(), "{found:?}");
}

#[test]
fn what_is_taken_back_stays_so_over_a_restart_and_the_rest_is_made_anew() {
    let storage = MemoryStorage::new();
    let database = open(&storage, Limits::DEFAULT);
    let (handle, commit) = database.collection("notes").unwrap().create(json!({ "a": 1 })).unwrap();
    commit.wait().unwrap();
    let refused = put(&handle, "b", 2);
    let later = put(&handle, "c", 3);
    let last = put(&handle, "b", 4);
    deny(&database, handle.id(), Some(refused));

    let expected = json!({ "a": 1, "b": 4, "c": 3 });
    assert_eq!(handle.to_json().unwrap(), expected);
    let graph = database.reader().graph(handle.id()).unwrap();
    assert!([refused, later, last].iter().all(|hash| !graph.lock().unwrap().contains(hash)));
    // It goes on under an author of its own, and what is told twice is told once.
    put(&handle, "d", 5);
    deny(&database, handle.id(), Some(refused));
    check(&database);
    let id = handle.id();
    drop(handle);
    database.close();
    drop(database);

    let database = open(&storage, Limits::DEFAULT);
    let handle = database.find(id).unwrap();
    assert_eq!(handle.to_json().unwrap(), json!({ "a": 1, "b": 4, "c": 3, "d": 5 }));
    let rejected = database.rejected().unwrap();
    assert_eq!(rejected.len(), 1);
    assert_eq!((rejected[0].change, rejected[0].by, rejected[0].why.as_str()), (Some(refused), SERVER, "no"));
    let made = database.resubmit(&rejected[0]).unwrap();
    assert_eq!(made.left_out, 0);
    made.commit.unwrap().wait().unwrap();
    assert_eq!(handle.to_json().unwrap()["b"], 2, "handed in again, it is the last word");
    assert!(database.rejected().unwrap().is_empty());
    assert!(matches!(database.resubmit(&rejected[0]), Err(Error::NotFound(_))));
    check(&database);
}

#[test]
fn one_of_several_refused_edits_says_what_it_lost() {
    let database = open(&MemoryStorage::new(), Limits::DEFAULT);
    let (handle, commit) = database.collection("notes").unwrap().create(json!({})).unwrap();
    commit.wait().unwrap();
    let object = put(&handle, "object", json!({ "x": 1 }));
    let field = put(&handle, "/object/y", 2);
    let rows = [object, field].map(|change| DeniedRow {
        document: handle.id(),
        change: Some(change),
        is_behind: false,
        why: "no".into(),
    });
    block_on(database.take_back(SERVER, rows.into())).unwrap();
    assert_eq!(handle.to_json().unwrap(), json!({}));
    let rejected = database.rejected().unwrap();
    let of = |change| rejected.iter().find(|rejected| rejected.change == Some(change)).unwrap();
    // The field alone has no object to be in.
    let made = database.resubmit(of(field)).unwrap();
    assert_eq!((made.commit.is_none(), made.left_out), (true, 1));
    database.resubmit(of(object)).unwrap().commit.unwrap().wait().unwrap();
    assert_eq!(handle.to_json().unwrap(), json!({ "object": { "x": 1 } }));
    check(&database);
}

#[test]
fn the_oldest_rejected_edits_are_forgotten_beyond_the_limit() {
    let database = open(&MemoryStorage::new(), Limits { rejected_rows: 2, ..Limits::DEFAULT });
    let (handle, commit) = database.collection("notes").unwrap().create(json!({})).unwrap();
    commit.wait().unwrap();
    let changes: Vec<ChangeHash> = (0..4)
        .map(|n| {
            let change = put(&handle, "n", n);
            deny(&database, handle.id(), Some(change));
            change
        })
        .collect();
    let kept: Vec<_> = database.rejected().unwrap().into_iter().map(|rejected| rejected.change.unwrap()).collect();
    assert_eq!(kept, changes[2..]);
}

#[test]
fn a_first_change_that_is_refused_leaves_an_empty_document_and_what_can_stand_without() {
    let database = open(&MemoryStorage::new(), Limits::DEFAULT);
    let (handle, commit) = database.collection("notes").unwrap().create(json!({ "title": "t" })).unwrap();
    commit.wait().unwrap();
    let first = handle.heads().unwrap().as_slice()[0];
    put(&handle, "n", 1);
    deny(&database, handle.id(), Some(first));
    assert_eq!(handle.to_json().unwrap(), json!({ "n": 1 }));
    check(&database);
}

#[test]
fn edits_on_their_way_are_taken_back_with_what_they_stand_on() {
    let database = open(&MemoryStorage::new(), Limits::DEFAULT);
    let (handle, commit) = database.collection("notes").unwrap().create(json!({})).unwrap();
    commit.wait().unwrap();
    let refused = put(&handle, "n", 0);
    let commits: Vec<Commit> =
        (0..50).map(|n| handle.change(|edit| Ok(edit.put(format!("k{n}"), n)?)).unwrap()).collect();
    deny(&database, handle.id(), Some(refused));
    commits.into_iter().for_each(|commit| _ = commit.wait().unwrap());
    let told = handle.to_json().unwrap();
    assert_eq!((told.get("n"), &told["k49"], told.as_object().unwrap().len()), (None, &json!(49), 50));
    check(&database);
}

#[tokio::test]
async fn withheld_documents_are_in_no_query_and_no_hands_until_they_are_released() {
    let storage = MemoryStorage::new();
    let database = open(&storage, Limits::DEFAULT);
    let notes = database.collection("notes").unwrap();
    let (handle, commit) = notes.create(json!({ "a": 1 })).unwrap();
    commit.wait().unwrap();
    let id = handle.id();
    database.withhold(SERVER, vec![id, DocumentId([7; 16])], true).await.unwrap();
    // Said twice, it is one record.
    let tail = database.reader().tail();
    database.withhold(SERVER, vec![id], true).await.unwrap();
    assert_eq!(database.reader().tail(), tail);
    let refused = |result: Result<Commit, Error>| assert!(matches!(result, Err(Error::Withheld(found)) if found == id));
    refused(handle.change(|edit| Ok(edit.put("a", 2)?)));
    refused(handle.delete());
    refused(handle.restore());
    let state = database.reader().document(id).unwrap().unwrap();
    assert!(state.withheld && !state.visible);
    check(&database);
    drop((handle, notes));
    database.close();
    drop(database);

    let database = open(&storage, Limits::DEFAULT);
    assert!(database.reader().document(id).unwrap().unwrap().withheld, "after a restart too");
    database.withhold(SERVER, vec![id], false).await.unwrap();
    let handle = database.find(id).unwrap();
    handle.change(|edit| Ok(edit.put("a", 2)?)).unwrap().wait().unwrap();
    assert!(handle.state().unwrap().visible);
    check(&database);
}
