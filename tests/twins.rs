//! Two changes of one author under one number, logged at two ends of a link: both ends keep the same one.

use serde_json::json;
use tidelog::document::{EditOptions, View, ViewError};
use tidelog::engine::{Clash, Incoming, IncomingBody};
use tidelog::history::Origin;
use tidelog::id::ActorId;
use tidelog::log::record::Admission;
use tidelog::net::UnknownKeys;
use tidelog::{Change, Database, DocHandle, NodeId};

use crate::links::{TestNode, converged};

/// Changes that type `texts`, one after the other, by one author on top of the document as it is.
fn typed(document: &DocHandle, author: u8, texts: &[&str]) -> Vec<Change> {
    let mut view = View::load(&document.with_view(|view| Ok(view.save()?)).unwrap()).unwrap();
    let actor = ActorId::new(&[author; 16]).unwrap();
    let edit = |text: &&str| {
        let options = EditOptions { actor: actor.clone(), time: 0, message: None };
        let edited = view.edit(options, |edit| -> Result<(), ViewError> { edit.splice("text", 0, 0, text) });
        edited.unwrap().1.unwrap()
    };
    texts.iter().map(edit).collect()
}

fn row(node: NodeId, document: &DocHandle, change: &Change) -> Incoming {
    let origin = Origin { node, principal: String::new(), admission: Admission::Structural, rules_version: 0 };
    Incoming { document: document.id(), body: IncomingBody::Change(Box::new(change.clone())), origin, signature: None }
}

fn log(node: &TestNode, document: &DocHandle, changes: &[Change]) {
    let rows = changes.iter().map(|change| row(node.database.node(), document, change));
    let admitted = node.database.admit_blocking(rows.collect()).unwrap();
    assert_eq!(admitted.accepted, changes.len(), "{admitted:?}");
}

/// Both have one document; then, apart, each logs another twin with more on top. What they have once linked again.
async fn twins(a: &TestNode, b: &TestNode) -> String {
    let notes = a.database.collection("notes").unwrap();
    let (document, created) = notes.create(json!({ "text": "." })).unwrap();
    created.await.unwrap();
    b.links.dial(a.ticket.clone());
    converged(a, b).await;
    b.links.drop_peer(a.database.node());
    let other = b.database.find(document.id()).unwrap();
    // The same author began at both ends: a restored backup does that.
    let (ours, theirs) = (typed(&document, 1, &["a1 ", "a2 ", "a3 "]), typed(&other, 1, &["b1 ", "b2 "]));
    log(a, &document, &ours);
    log(b, &other, &theirs);
    for (handle, end) in [(&document, "a"), (&other, "b")] {
        handle.change(|edit| Ok(edit.put(end, "on top")?)).unwrap().await.unwrap();
    }
    b.links.dial(a.ticket.clone());
    converged(a, b).await;
    assert_eq!(document.to_json().unwrap(), other.to_json().unwrap());
    // Both go on, on what is left.
    for handle in [&document, &other] {
        handle.change(|edit| Ok(edit.splice("text", 0, 0, "+")?)).unwrap().await.unwrap();
    }
    converged(a, b).await;
    assert_eq!(document.to_json().unwrap(), other.to_json().unwrap());
    for node in [a, b] {
        let found = node.database.verify(true, &mut |_, _| {}).unwrap();
        assert!(found.faults.is_empty(), "{:#?}", found.faults);
    }
    document.read::<String>("text").unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_logged_different_twins_agree_once_linked() {
    let text = twins(&TestNode::start(false), &TestNode::start(false)).await;
    assert!(text.starts_with("++") && text.contains("a1") != text.contains("b1"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_logged_different_twins_agree_in_strict_mode() {
    let text = twins(&TestNode::start(true), &TestNode::start(true)).await;
    assert!(text.starts_with("++") && text.contains("a1") != text.contains("b1"), "{text}");
}

/// Its node has decided, whichever hash is the smaller.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_author_numbers_were_taken_follows_its_node() {
    for strict in [false, true] {
        let (node, client) = (TestNode::start_with(strict, UnknownKeys::LoopbackClients), TestNode::start(strict));
        let text = twins(&node, &client).await;
        assert!(text.starts_with("++") && text.contains("a1") && !text.contains("b1"), "{text}");
    }
}

/// What gave way stays away when its store is salvaged.
#[test]
fn a_withdrawn_change_does_not_come_back_with_a_salvage() {
    let folder = tempfile::tempdir().unwrap();
    let (data, to) = (folder.path().join("data"), folder.path().join("salvaged"));
    let heads = |database: &Database, id| database.reader().document(id).unwrap().unwrap().heads;
    let (id, before) = {
        let database = Database::open(&data).unwrap();
        let (document, created) = database.collection("notes").unwrap().create(json!({ "text": "." })).unwrap();
        created.wait().unwrap();
        let (ours, theirs) = (typed(&document, 1, &["a1 ", "a2 "]), typed(&document, 1, &["b1 "]));
        let offer = |changes: &[Change]| {
            let rows = changes.iter().map(|change| row(database.node(), &document, change)).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(database.admit_with(Clash::TakeTheirs, rows, None, None)).unwrap().accepted
        };
        assert_eq!((offer(&ours), offer(&theirs)), (2, 1));
        (document.id(), heads(&database, document.id()))
    };
    let report = tidelog::node::salvage::salvage(&data, &to, &mut |_| {}).unwrap();
    assert!(report.damage.is_empty() && report.lost_positions == 0, "{report:?}");
    assert_eq!(heads(&Database::open(&to).unwrap(), id), before);
}
