//! samod, the Rust implementation of automerge-repo, as a client of a real node.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{SinkExt, StreamExt};
use samod::{BackoffConfig, DialError, Dialer, DialerHandle, DocHandle, Repo, Transport, Url};
use tidelog::automerge::transaction::Transactable;
use tidelog::automerge::{AutoCommit, Automerge, ROOT, ReadDoc};
use tidelog::node::{AccessConfig, Node, NodeConfig};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

/// Connects to `/sync` of a node, without TLS.
struct ToNode(Url);

impl Dialer for ToNode {
    type Error = Infallible;

    fn url(&self) -> Url {
        self.0.clone()
    }

    fn connect(&self) -> BoxFuture<'static, Result<Transport, DialError<Infallible>>> {
        let url = self.0.clone();
        Box::pin(async move {
            let address = format!("127.0.0.1:{}", url.port().unwrap());
            let stream = tokio::net::TcpStream::connect(address).await.map_err(DialError::transient)?;
            let (socket, _) =
                tokio_tungstenite::client_async(url.as_str(), stream).await.map_err(DialError::transient)?;
            let (sink, stream) = socket.split();
            let sink = sink.with(|bytes: Vec<u8>| async move { Ok::<_, SocketError>(Message::Binary(bytes.into())) });
            let stream = stream.filter_map(|message| async move {
                match message {
                    Ok(Message::Binary(bytes)) => Some(Ok(bytes.to_vec())),
                    Ok(_) => None,
                    Err(error) => Some(Err(error)),
                }
            });
            Ok(Transport::new(Box::pin(stream), Box::pin(sink)))
        })
    }
}

/// Bounds a wait; what does not come in so long does not come.
pub(super) async fn soon<T>(what: &str, waited: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), waited).await.unwrap_or_else(|_| panic!("{what} did not come"))
}

async fn client(node: &Node) -> (Repo, DialerHandle<Infallible>) {
    let repo = Repo::build_tokio().load().await;
    let dialler = dial(&repo, node).await;
    (repo, dialler)
}

async fn dial(repo: &Repo, node: &Node) -> DialerHandle<Infallible> {
    dial_to(repo, &format!("ws://{}/sync", node.http().unwrap())).await
}

/// Connects to that address.
pub(super) async fn dial_to(repo: &Repo, address: &str) -> DialerHandle<Infallible> {
    let url = Url::parse(address).unwrap();
    let dialler = repo.dial(BackoffConfig::default(), Arc::new(ToNode(url))).unwrap();
    soon("a connection", dialler.established()).await.unwrap();
    dialler
}

pub(super) fn put(document: &DocHandle, key: &str, value: i64) {
    document.with_document(|document| {
        let mut transaction = document.transaction();
        transaction.put(ROOT, key, value).unwrap();
        transaction.commit();
    });
}

fn value(document: &DocHandle, key: &str) -> Option<i64> {
    document.with_document(|document| document.get(ROOT, key).unwrap().and_then(|(value, _)| value.as_i64()))
}

async fn until(document: &DocHandle, key: &str, expected: i64) {
    let mut changes = document.changes();
    let reached = async {
        while value(document, key) != Some(expected) {
            changes.next().await.unwrap();
        }
    };
    soon(&format!("{key} = {expected}"), reached).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn samod_makes_finds_edits_parts_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(NodeConfig::new(folder.path().join("data"), "127.0.0.1:0".parse().unwrap())).await.unwrap();
    let (alice, at_alice) = client(&node).await;
    let (bob, at_bob) = client(&node).await;

    let mut first = AutoCommit::new();
    first.put(ROOT, "made", 1).unwrap();
    let hers = alice.create(Automerge::load(&first.save()).unwrap()).await.unwrap();
    soon("the acknowledgement", hers.they_have_our_changes(at_alice.connection_id().unwrap())).await;
    let id: tidelog::DocumentId = hers.document_id().to_string().parse().unwrap();
    let ours = node.database().find(id).unwrap();
    assert_eq!(ours.to_json().unwrap(), serde_json::json!({ "made": 1 }), "what is acknowledged is in the store");

    let his = soon("the document", bob.find(hers.document_id().clone())).await.unwrap().expect("it is there");
    assert_eq!(value(&his, "made"), Some(1));
    put(&his, "bob", 2);
    until(&hers, "bob", 2).await;
    ours.change(|edit| Ok(edit.put("node", 3)?)).unwrap().wait().unwrap();
    until(&hers, "node", 3).await;
    until(&his, "node", 3).await;

    let mut said = his.ephemera();
    hers.broadcast(vec![0x18, 0x2a]);
    assert_eq!(soon("an ephemeral message", said.next()).await, Some(vec![0x18, 0x2a]));

    let nowhere = samod::DocumentId::new(&mut rand::rng());
    assert!(soon("an answer", bob.find(nowhere)).await.unwrap().is_none(), "what nobody has is unavailable");

    at_bob.close();
    put(&his, "apart", 4);
    put(&hers, "meanwhile", 5);
    until_stored(&node, id, "meanwhile").await;
    let _at_bob = dial(&bob, &node).await;
    until(&hers, "apart", 4).await;
    until(&his, "meanwhile", 5).await;

    soon("the end", async { tokio::join!(alice.stop(), bob.stop()) }).await;
    node.shut_down().await;
}

/// One that may not be read for a while is heard of again when that is over, with nothing but the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn samod_hears_what_was_written_once_it_may_be_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let rules = folder.path().join("rules");
    let condition = "request.time.toMillis() < resource.data.until || request.time.toMillis() > resource.data.from";
    std::fs::write(&rules, format!("match /{{c}}/{{id}} {{ allow read: if {condition}; }}")).unwrap();
    let config = NodeConfig::new(folder.path().join("data"), "127.0.0.1:0".parse().unwrap());
    let access = AccessConfig { rules: Some(rules), ..AccessConfig::default() };
    let node = Node::start(NodeConfig { access, ..config }).await.unwrap();
    let (bob, _at_bob) = client(&node).await;
    let now = || std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    let (until_ms, from_ms) = (now() + 3_000, now() + 5_000);
    let value_then = serde_json::json!({ "n": 1, "until": until_ms, "from": from_ms });
    let (ours, commit) = node.database().collection("default").unwrap().create(value_then).unwrap();
    commit.await.unwrap();
    let his = soon("the document", bob.find(ours.id().to_string()[10..].parse().unwrap())).await.unwrap();
    let his = his.expect("it may be read at first");
    assert_eq!(value(&his, "n"), Some(1));
    tokio::time::sleep(Duration::from_millis(until_ms + 200 - now())).await;
    ours.change(|edit| Ok(edit.put("n", 2)?)).unwrap().wait().unwrap();
    tokio::time::sleep(Duration::from_millis((from_ms - 200).saturating_sub(now()))).await;
    assert_eq!(value(&his, "n"), Some(1), "it may not be read now");
    until(&his, "n", 2).await;
    soon("the end", bob.stop()).await;
    node.shut_down().await;
}

/// Waits until a key is in the node's own store.
async fn until_stored(node: &Node, id: tidelog::DocumentId, key: &str) {
    let mut tail = node.database().tail();
    let document = node.database().find(id).unwrap();
    let stored = async {
        while document.to_json().unwrap().get(key).is_none() {
            tail.changed().await.unwrap();
        }
    };
    soon(key, stored).await;
}
