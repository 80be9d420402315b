//! Two databases in two directories, linked over QUIC on loopback.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tidelog::net::{AllowList, Endpoint, Identity, LinkOptions, Links, Ticket, UnknownKeys};
use tidelog::{Database, DocumentId, Limits};

/// A node in this process.
pub(crate) struct TestNode {
    pub(crate) database: Database,
    pub(crate) links: Links,
    pub(crate) ticket: Ticket,
    _folder: tempfile::TempDir,
}

impl TestNode {
    pub(crate) fn start(strict: bool) -> Self {
        Self::start_with(strict, UnknownKeys::LoopbackNodes)
    }

    /// One that takes keys it does not know as `unknown` says.
    pub(crate) fn start_with(strict: bool, unknown: UnknownKeys) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::generate().unwrap();
        let database = Database::builder(folder.path().join("data")).node(identity.node()).open().unwrap();
        let (links, ticket) = listen(&database, identity, strict, unknown);
        Self { database, links, ticket, _folder: folder }
    }

    fn digest(&self, id: DocumentId) -> Option<tidelog::log::record::StateDigest> {
        self.database.reader().document(id).unwrap().map(|state| state.digest)
    }
}

fn listen(database: &Database, identity: Identity, strict: bool, unknown: UnknownKeys) -> (Links, Ticket) {
    let endpoint = Endpoint::bind(identity, "127.0.0.1:0".parse().unwrap(), &Limits::DEFAULT).unwrap();
    let ticket = Ticket::new(endpoint.node(), "127.0.0.1", endpoint.local_addr().port()).unwrap();
    let allow = Arc::new(AllowList::new(unknown));
    (Links::start(database.clone(), endpoint, allow, LinkOptions { strict, ..LinkOptions::default() }), ticket)
}

/// Waits until both databases have the same documents in the same state.
pub(crate) async fn converged(a: &TestNode, b: &TestNode) {
    let (mut tail_a, mut tail_b) = (a.database.tail(), b.database.tail());
    let equal = async {
        loop {
            let all = |node: &TestNode| node.database.reader().inventory(None, usize::MAX).unwrap();
            if all(a) == all(b) {
                return;
            }
            tokio::select! {
                changed = tail_a.changed() => changed.unwrap(),
                changed = tail_b.changed() => changed.unwrap(),
            }
        }
    };
    if tokio::time::timeout(Duration::from_secs(60), equal).await.is_err() {
        panic!("not converged: {:?} and {:?}", a.links.status(), b.links.status());
    }
}

async fn two_nodes_converge(strict: bool) {
    let (a, b) = (TestNode::start(strict), TestNode::start(strict));
    let notes = a.database.collection("notes").unwrap();
    let (note, created) = notes.create(json!({ "text": "one", "list": [1, 2, 3] })).unwrap();
    created.await.unwrap();
    b.links.dial(a.ticket.clone());
    converged(&a, &b).await;
    // Live, both ways.
    let other = b.database.find(note.id()).unwrap();
    other.change(|edit| Ok(edit.splice("text", 3, 0, " two")?)).unwrap().await.unwrap();
    converged(&a, &b).await;
    assert_eq!(note.to_json().unwrap()["text"], "one two");
    note.change(|edit| Ok(edit.put("more", 7)?)).unwrap().await.unwrap();
    note.delete().unwrap().await.unwrap();
    converged(&a, &b).await;
    assert!(!other.state().unwrap().visible);
    assert!(b.database.find(note.id()).unwrap().restore().is_ok());
    converged(&a, &b).await;
    assert_eq!(a.digest(note.id()), b.digest(note.id()));
    a.links.close().await;
    b.links.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_converge_and_stay_equal_live() {
    two_nodes_converge(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_converge_in_strict_mode() {
    two_nodes_converge(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_both_sides_did_while_apart_meets() {
    let (a, b) = (TestNode::start(false), TestNode::start(false));
    let notes = a.database.collection("notes").unwrap();
    let (note, created) = notes.create(json!({ "text": "" })).unwrap();
    created.await.unwrap();
    b.links.dial(a.ticket.clone());
    converged(&a, &b).await;
    b.links.drop_peer(a.database.node());
    let other = b.database.find(note.id()).unwrap();
    for n in 0..500 {
        note.change(|edit| Ok(edit.splice("text", n, 0, "a")?)).unwrap().await.unwrap();
        other.change(|edit| Ok(edit.splice("text", n, 0, "b")?)).unwrap().await.unwrap();
    }
    b.links.dial(a.ticket.clone());
    converged(&a, &b).await;
    assert_eq!(note.to_json().unwrap(), other.to_json().unwrap());
    assert_eq!(note.read::<String>("text").unwrap().unwrap().len(), 1000);
}

/// Waits until the node has everything its one peer had when they were linked.
async fn caught_up(node: &TestNode) {
    let mut changes = node.links.changes();
    let caught_up = changes.wait_for(|_| node.links.status()[0].caught_up);
    tokio::time::timeout(Duration::from_secs(20), caught_up).await.expect("caught up").unwrap();
}

/// A link that is made again brings what changed meanwhile, and costs what that costs, however many documents there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_made_again_brings_only_what_changed() {
    let (a, b) = (TestNode::start(false), TestNode::start(false));
    let notes = a.database.collection("notes").unwrap();
    let mut handles = Vec::new();
    for n in 0..1000 {
        let (note, created) = notes.create(json!({ "n": n })).unwrap();
        handles.push(note);
        if n % 100 == 99 {
            created.await.unwrap();
        }
    }
    b.links.dial(a.ticket.clone());
    converged(&a, &b).await;
    // What a link costs depends on the cursor that the one before left.
    caught_up(&b).await;
    for changed in [0, 1, 100] {
        b.links.drop_peer(a.database.node());
        for note in &handles[..changed] {
            note.change(|edit| Ok(edit.put("changed", changed)?)).unwrap().await.unwrap();
        }
        b.links.dial(a.ticket.clone());
        converged(&a, &b).await;
        caught_up(&b).await;
        let (sent, received) = b.links.status()[0].bytes.unwrap();
        println!("{changed} of 1000 changed: {sent} bytes sent, {received} received, handshake included");
        assert!(received < 16 * 1024 + 1024 * changed as u64, "{received} bytes for {changed} changes");
    }
}

/// An invite makes a node of a key that would otherwise only be let in as a client, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invite_makes_a_node_of_a_stranger() {
    let a = TestNode::start(false);
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::generate().unwrap();
    let database = Database::builder(folder.path().join("data")).node(identity.node()).open().unwrap();
    let endpoint = Endpoint::bind(identity, "127.0.0.1:0".parse().unwrap(), &Limits::DEFAULT).unwrap();
    let ticket = Ticket::new(endpoint.node(), "127.0.0.1", endpoint.local_addr().port()).unwrap();
    let allow = Arc::new(AllowList::new(UnknownKeys::LoopbackClients));
    let links = Links::start(database, endpoint, allow.clone(), LinkOptions::default());
    let invite = allow.invite(tidelog::net::Role::Node, std::time::SystemTime::now()).unwrap();
    a.links.dial(ticket.with_invite(invite));
    let mut changes = links.changes();
    let known = changes.wait_for(|_| links.status().iter().any(|peer| peer.role == Some("node")));
    tokio::time::timeout(Duration::from_secs(20), known).await.expect("the role").unwrap();
    assert!(!allow.awaits_invite(std::time::SystemTime::now()), "it is used up");
    links.close().await;
}

/// A change with a true checksum that writes into an object which is not there. The gate cannot know that; automerge
/// panics over it.
const UNAPPLICABLE: &str = "856f4a831ebb96fc013400106666666666666666666666666666666601020000000701020202150334014202560270027f007f017f016b017f017f007f00";

/// A client's log holds what cannot be applied (it was admitted there structurally): it goes no further than the link.
async fn a_client_that_is_closed(strict: bool) {
    let server = TestNode::start_with(strict, UnknownKeys::LoopbackClients);
    let client = TestNode::start(strict);
    let notes = client.database.collection("notes").unwrap();
    let (note, created) = notes.create(json!({ "text": "tide" })).unwrap();
    created.await.unwrap();
    client.links.dial(server.ticket.clone());
    converged(&server, &client).await;
    // What an honest client does after that is taken.
    note.change(|edit| Ok(edit.put("more", 7)?)).unwrap().await.unwrap();
    converged(&server, &client).await;

    let bytes = data_encoding::HEXLOWER.decode(UNAPPLICABLE.as_bytes()).unwrap();
    let change = tidelog::Change::parse(bytes).unwrap();
    let origin = tidelog::history::Origin {
        node: client.database.node(),
        principal: String::new(),
        admission: tidelog::log::record::Admission::Structural,
        rules_version: 0,
    };
    let body = tidelog::engine::IncomingBody::Change(Box::new(change.clone()));
    let row = tidelog::engine::Incoming { document: note.id(), body, origin, signature: None };
    let taken = client.database.admit(vec![row], None, None).await.unwrap();
    assert_eq!(taken.accepted, 1);
    let told = async {
        loop {
            let errors = client.links.status().into_iter().filter_map(|peer| peer.last_error);
            if let Some(why) = errors.into_iter().find(|why| why.contains("change-refused")) {
                return why;
            }
            tokio::task::yield_now().await;
        }
    };
    let why = tokio::time::timeout(Duration::from_secs(30), told).await;
    let why = why.unwrap_or_else(|_| panic!("the client is told: {:?}", client.links.status()));
    assert!(why.contains("quarantine") && why.contains(&change.hash().to_string()[..8]), "{why}");
    assert!(server.database.status().quarantined > 0);
    let graph = server.database.reader().graph(note.id()).unwrap();
    assert!(!graph.lock().unwrap().contains(&change.hash()));
    assert_eq!(server.database.find(note.id()).unwrap().to_json().unwrap(), json!({ "text": "tide", "more": 7 }));
    server.links.close().await;
    client.links.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_change_cannot_be_applied_is_told_and_closed() {
    a_client_that_is_closed(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_change_cannot_be_applied_is_told_and_closed_in_strict_mode() {
    a_client_that_is_closed(true).await;
}
