//! Real and generated editing histories, played by two nodes.

use std::collections::HashSet;
use std::time::Instant;

use serde_json::json;
use tidelog::engine::{Incoming, IncomingBody};
use tidelog::history::Origin;
use tidelog::log::record::Admission;
use tidelog::node::trace::{AgentFeed, Trace, TraceChange, TraceChanges, TraceOptions, traces_folder};
use tidelog::{Change, DocumentId};

use crate::links::{TestNode, converged};

fn trace(name: &str) -> Option<Trace> {
    let Some(folder) = traces_folder().expect("the traces' folder") else {
        println!("skipped: traces absent");
        return None;
    };
    Some(Trace::read(&folder.join(name)).expect("a trace"))
}

fn changes_of(trace: &Trace, id: DocumentId) -> Vec<TraceChange> {
    let began = Instant::now();
    let options = TraceOptions::with_salt(id.as_bytes().to_vec());
    let changes = TraceChanges::build(trace, &options, &mut |_, _| {}).expect("changes");
    println!("{} changes built in {:?}", changes.len(), began.elapsed());
    changes
}

async fn offer(node: &TestNode, id: DocumentId, changes: &[Change]) {
    let origin = Origin {
        node: node.database.node(),
        principal: String::new(),
        admission: Admission::Structural,
        rules_version: 0,
    };
    for group in changes.chunks(1000) {
        let row = |change: &Change| Incoming {
            document: id,
            body: IncomingBody::Change(Box::new(change.clone())),
            origin: origin.clone(),
        };
        let admitted = node.database.admit(group.iter().map(row).collect(), None, None).await.unwrap();
        assert!(admitted.missing.is_empty() && admitted.refused.is_empty(), "{admitted:?}");
    }
}

fn link(a: &TestNode, b: &TestNode) {
    b.links.dial(a.ticket.clone());
}

fn part(a: &TestNode, b: &TestNode) {
    b.links.drop_peer(a.database.node());
}

/// Two authors' interwoven history: each node plays its own author's part as far as it has seen the other's, then they
/// meet, and part again, to the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_friends_write_an_essay_in_rounds() {
    let Some(trace) = trace("concurrent/friendsforever.json.gz") else { return };
    let (a, b) = (TestNode::start(false), TestNode::start(false));
    let handle = a.database.collection("essays").unwrap().create_with_id(DocumentId::random()).unwrap();
    let id = handle.id();
    let changes = changes_of(&trace, id);
    link(&a, &b);
    converged(&a, &b).await;
    part(&a, &b);
    let began = Instant::now();
    let mut feeds = [AgentFeed::new(&changes, &[0]), AgentFeed::new(&changes, &[1])];
    let mut rounds = 0;
    while feeds.iter().any(|feed| feed.remaining() > 0) {
        for (feed, node) in feeds.iter_mut().zip([&a, &b]) {
            let graph = node.database.reader().graph(id).unwrap();
            let ready: Vec<Change> = {
                let graph = graph.lock().unwrap();
                feed.next_ready(|hash| graph.contains(hash)).iter().map(|next| next.change.clone()).collect()
            };
            offer(node, id, &ready).await;
        }
        rounds += 1;
        link(&a, &b);
        converged(&a, &b).await;
        part(&a, &b);
    }
    println!("{rounds} rounds in {:?}", began.elapsed());
    let (left, right) = (a.database.find(id).unwrap(), b.database.find(id).unwrap());
    assert_eq!(left.state().unwrap().heads, right.state().unwrap().heads);
    for handle in [left, right] {
        assert_eq!(handle.read::<String>("text").unwrap().as_deref(), Some(&*trace.end_content));
    }
    assert!(a.database.verify(true, &mut |_, _| {}).unwrap().faults.is_empty());
}

/// One side imports a long history while the other edits another document; an empty third gets all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paper_is_imported_on_one_side_while_the_other_edits() {
    let Some(trace) = trace("sequential/automerge-paper.json.gz") else { return };
    let (a, b) = (TestNode::start(false), TestNode::start(false));
    let id = a.database.collection("papers").unwrap().create_with_id(DocumentId::random()).unwrap().id();
    let changes: Vec<Change> = changes_of(&trace, id).into_iter().map(|next| next.change).collect();
    let (notes, created) = b.database.collection("notes").unwrap().create(json!({ "text": "" })).unwrap();
    created.await.unwrap();
    let began = Instant::now();
    let edits = async {
        for n in 0..2000 {
            notes.change(|edit| Ok(edit.splice("text", n, 0, "n")?)).unwrap().await.unwrap();
        }
    };
    tokio::join!(offer(&a, id, &changes), edits);
    println!("imported in {:?}", began.elapsed());
    let began = Instant::now();
    link(&a, &b);
    converged(&a, &b).await;
    println!("synchronised in {:?}: {:?}", began.elapsed(), b.links.status()[0].bytes);
    let copy = b.database.find(id).unwrap();
    assert_eq!(copy.read::<String>("text").unwrap().as_deref(), Some(&*trace.end_content));
    assert_eq!(copy.state().unwrap().heads, a.database.find(id).unwrap().state().unwrap().heads);
    let seen: HashSet<_> = changes.iter().map(Change::hash).collect();
    assert_eq!(copy.state().unwrap().change_count, seen.len() as u64);
}
