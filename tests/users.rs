//! Users who come over QUIC: native clients with tokens, at a node with rules. What they may read reaches them, what they
//! may not write is taken back from their own copies, and what changes takes hold while links stand.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tidelog::net::{AllowList, Endpoint, Identity, LinkOptions, Links, UnknownKeys};
use tidelog::node::admin::Client as Admin;
use tidelog::node::command::{Collected, Request, TokenRevocation};
use tidelog::node::{AccessConfig, Node, NodeConfig};
use tidelog::sync::wire::Token;
use tidelog::{Database, DocHandle, DocumentId, Error, Limits};

/// What is in a room is read by those who are in it; notes are their authors'.
const RULES: &str = "
service tidelog {
  match /messages/{id} {
    allow read: if resource.data.room in request.auth.token.rooms;
    allow create: if request.resource.data.room in request.auth.token.rooms;
    allow update: if !('locked' in request.change.keys);
    allow delete: if request.auth.token.role == 'admin';
  }
  match /drop/{id} { allow create, update: if request.auth != null; }
  match /{collection}/{id} { allow read, write: if request.auth.token.role == 'admin'; }
}
";

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

struct Server {
    folder: TempDir,
    node: Node,
}

impl Server {
    async fn start(rules: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("rules"), rules).unwrap();
        let access =
            AccessConfig { authenticates: true, rules: Some(folder.path().join("rules")), ..AccessConfig::default() };
        let config = NodeConfig {
            access,
            http: None,
            ..NodeConfig::new(folder.path().join("data"), "127.0.0.1:0".parse().unwrap())
        };
        Self { node: Node::start(config).await.unwrap(), folder }
    }

    fn set_rules(&self, rules: &str) {
        fs::write(self.folder.path().join("rules"), rules).unwrap();
    }

    async fn call(&self, request: Request) -> Vec<Value> {
        let path: PathBuf = self.node.path().to_owned();
        let asked = move || {
            let mut client = Admin::connect(&path, Some(PATIENCE)).unwrap().expect("a running node");
            let mut rows = Collected::default();
            client.call(&request, false, &mut rows).unwrap();
            rows.rows
        };
        tokio::task::spawn_blocking(asked).await.unwrap()
    }

    async fn token(&self, user: &str, role: Option<&str>, rooms: &[&str]) -> Token {
        let claims = json!({ "rooms": rooms }).as_object().unwrap().clone();
        let request = Request::TokenNew { user: user.into(), role: role.map(str::to_owned), ttl_ms: None, claims };
        let rows = self.call(request).await;
        Token(rows[0]["token"].as_str().unwrap().to_owned())
    }

    fn add(&self, collection: &str, value: Value) -> DocHandle {
        let (handle, commit) = self.node.database().collection(collection).unwrap().create(value).unwrap();
        commit.wait().unwrap();
        handle
    }

    async fn stop(self) {
        self.node.shut_down().await;
    }
}

/// A native client of somebody.
struct Client {
    database: Database,
    links: Links,
}

impl Client {
    fn start(server: &Server, token: Option<Token>) -> Self {
        Self::over(Database::on(tidelog::log::MemoryStorage::new()), Identity::generate().unwrap(), server, token)
    }

    fn over(database: tidelog::engine::DatabaseBuilder, key: Identity, server: &Server, token: Option<Token>) -> Self {
        let database = database.node(key.node()).open().unwrap();
        let endpoint = Endpoint::bind(key, "127.0.0.1:0".parse().unwrap(), &Limits::DEFAULT).unwrap();
        let allow = Arc::new(AllowList::new(UnknownKeys::Refuse));
        let links = Links::start(database.clone(), endpoint, allow, LinkOptions { token, ..LinkOptions::default() });
        links.dial(server.node.ticket().clone());
        Self { database, links }
    }

    fn sees(&self, id: DocumentId) -> bool {
        self.database.reader().document(id).unwrap().is_some_and(|state| state.visible)
    }

    /// Whether it has any byte of a document.
    fn has(&self, id: DocumentId) -> bool {
        self.database.reader().document(id).unwrap().is_some()
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        until(&self.database, what, || holds(self)).await;
    }

    async fn caught_up(&self) {
        let mut changes = self.links.changes();
        let caught_up = changes.wait_for(|_| self.links.status().iter().any(|peer| peer.caught_up));
        tokio::time::timeout(PATIENCE, caught_up).await.expect("it catches up").unwrap();
    }

    async fn close(self) {
        self.links.close().await;
        self.database.close();
    }
}

/// Waits until something holds of a database, looking whenever its log grows.
async fn until(database: &Database, what: &str, holds: impl Fn() -> bool) {
    let mut tail = database.tail();
    let waited = async {
        loop {
            tail.borrow_and_update();
            if holds() {
                return;
            }
            tail.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, waited).await.unwrap_or_else(|_| panic!("not within a minute: {what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_has_what_its_user_may_read_and_nothing_else() {
    let server = Server::start(RULES).await;
    let red = server.add("messages", json!({ "room": "red", "text": "one" }));
    let blue = server.add("messages", json!({ "room": "blue", "text": "two" }));
    let other = server.add("secrets", json!({ "text": "three" }));

    let ada = Client::start(&server, Some(server.token("ada", None, &["red"]).await));
    ada.caught_up().await;
    assert!(ada.sees(red.id()) && !ada.has(blue.id()) && !ada.has(other.id()));

    // What comes later, and what is written later.
    let late = server.add("messages", json!({ "room": "red", "text": "late" }));
    server.add("messages", json!({ "room": "blue", "text": "late" }));
    ada.until("a document of the room", |ada| ada.sees(late.id())).await;
    blue.change(|edit| Ok(edit.put("text", "still not for ada")?)).unwrap().wait().unwrap();
    red.change(|edit| Ok(edit.put("text", "news")?)).unwrap().wait().unwrap();
    let text = |client: &Client, id| client.database.find(id).unwrap().read::<String>("text").unwrap();
    ada.until("an edit", |ada| text(ada, red.id()).as_deref() == Some("news")).await;
    assert!(!ada.has(blue.id()));

    // It comes into the room with all its past, and leaves it again.
    blue.change(|edit| Ok(edit.put("room", "red")?)).unwrap().wait().unwrap();
    ada.until("a document that came into the room", |ada| ada.sees(blue.id())).await;
    assert_eq!(ada.database.find(blue.id()).unwrap().to_json().unwrap(), blue.to_json().unwrap());
    let query = ada.database.collection("messages").unwrap().query();
    assert_eq!(query.count().await.unwrap(), 3);
    blue.change(|edit| Ok(edit.put("room", "black")?)).unwrap().wait().unwrap();
    ada.until("a document that left the room", |ada| !ada.sees(blue.id())).await;
    assert_eq!(query.count().await.unwrap(), 2);
    let error = ada.database.find(blue.id()).unwrap().change(|edit| Ok(edit.put("text", "mine")?)).unwrap_err();
    assert!(matches!(error, Error::Withheld(id) if id == blue.id()), "{error}");

    // Another user of the same node has others.
    let bob = Client::start(&server, Some(server.token("bob", None, &["black"]).await));
    bob.caught_up().await;
    assert!(bob.sees(blue.id()) && !bob.has(red.id()) && !bob.has(other.id()));
    let ann = Client::start(&server, Some(server.token("ann", Some("admin"), &[]).await));
    ann.caught_up().await;
    assert!(ann.sees(other.id()) && ann.sees(red.id()));
    for client in [ada, bob, ann] {
        client.close().await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_be_read_from_or_until_a_moment_comes_and_goes_with_nothing_but_the_time() {
    let server = Server::start(
        "match /messages/{id} { allow read: if request.time.toMillis() > resource.data.from
        && request.time.toMillis() < resource.data.until; }",
    )
    .await;
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    let soon = server.add("messages", json!({ "from": now + 3_000, "until": now + 3_600_000 }));
    let late = server.add("messages", json!({ "from": now + 3_600_000, "until": now + 3_600_000 }));
    let over = server.add("messages", json!({ "from": 0, "until": now + 3_000 }));
    let ada = Client::start(&server, Some(server.token("ada", None, &[]).await));
    ada.caught_up().await;
    assert!(ada.sees(over.id()) && !ada.has(soon.id()) && !ada.has(late.id()));
    let came = ada.until("a document whose time has come", |ada| ada.sees(soon.id()));
    tokio::join!(came, ada.until("a document whose time is over", |ada| !ada.sees(over.id())));
    assert!(!ada.has(late.id()));
    ada.close().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_that_counts_nobody_comes_in() {
    let server = Server::start(RULES).await;
    let red = server.add("messages", json!({ "room": "red" }));
    for token in [None, Some(Token("nonsense".into()))] {
        let client = Client::start(&server, token);
        let mut changes = client.links.changes();
        let refused = changes.wait_for(|_| {
            client
                .links
                .status()
                .iter()
                .any(|peer| peer.last_error.as_ref().is_some_and(|error| error.contains("token")))
        });
        tokio::time::timeout(PATIENCE, refused).await.expect("it is told").unwrap();
        assert!(!client.has(red.id()));
        client.close().await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_and_tokens_that_change_take_hold_on_a_link_that_stands() {
    let server = Server::start(RULES).await;
    let red = server.add("messages", json!({ "room": "red" }));
    let blue = server.add("messages", json!({ "room": "blue" }));
    let ada = Client::start(&server, Some(server.token("ada", None, &["red"]).await));
    ada.caught_up().await;
    assert!(ada.sees(red.id()) && !ada.has(blue.id()));

    // Another token of hers, for another room, over the same link.
    ada.links.set_token(server.token("ada", None, &["blue"]).await).unwrap();
    ada.until("the other room", |ada| ada.sees(blue.id()) && !ada.sees(red.id())).await;
    // And back: the document was never gone.
    ada.links.set_token(server.token("ada", None, &["red", "blue"]).await).unwrap();
    ada.until("both rooms", |ada| ada.sees(blue.id()) && ada.sees(red.id())).await;

    server.set_rules("service tidelog { match /messages/{id} { allow read: if false; } }");
    ada.until("nothing", |ada| !ada.sees(blue.id()) && !ada.sees(red.id())).await;
    red.change(|edit| Ok(edit.put("text", "not for ada")?)).unwrap().wait().unwrap();
    server.set_rules("service tidelog { match /{document=**} { allow read, write; } }");
    ada.until("everything", |ada| ada.sees(blue.id()) && ada.sees(red.id())).await;
    let text = |ada: &Client| ada.database.find(red.id()).unwrap().read::<String>("text").unwrap();
    ada.until("what was written meanwhile", |ada| text(ada).is_some()).await;

    // Revoked, she is closed out.
    server.call(Request::TokenRevoke { what: TokenRevocation::User("ada".into()) }).await;
    let mut changes = ada.links.changes();
    let refused =
        changes.wait_for(|_| ada.links.status()[0].last_error.as_ref().is_some_and(|why| why.contains("token")));
    tokio::time::timeout(PATIENCE, refused).await.expect("it is told").unwrap();
    ada.close().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_away_or_given_while_a_client_is_not_there_it_finds_when_it_comes_back() {
    let server = Server::start(RULES).await;
    let red = server.add("messages", json!({ "room": "red" }));
    let blue = server.add("messages", json!({ "room": "blue" }));
    let folder = tempfile::tempdir().unwrap();
    let token = server.token("ada", None, &["red"]).await;
    let start = |token| {
        let key = Identity::load_or_create(&folder.path().join("key")).unwrap();
        Client::over(Database::builder(folder.path().join("ada")), key, &server, Some(token))
    };
    let ada = start(token.clone());
    ada.caught_up().await;
    assert!(ada.sees(red.id()) && !ada.has(blue.id()));
    let diary = ada.database.collection("diary").unwrap();
    let own = diary.create(json!({ "text": "of nobody's business" })).unwrap().0.id();
    drop(diary);
    let Client { database, links } = ada;
    links.close().await;
    database.close();
    drop((links, database));

    red.change(|edit| Ok(edit.put("room", "black")?)).unwrap().wait().unwrap();
    blue.change(|edit| Ok(edit.put("room", "red")?)).unwrap().wait().unwrap();
    let ada = start(token);
    ada.until("the other document", |ada| ada.sees(blue.id())).await;
    ada.until("without the first", |ada| !ada.sees(red.id())).await;
    assert!(ada.sees(own), "what only she has is hers");
    let text = ada.database.find(red.id()).unwrap().to_json().unwrap();
    assert_eq!(text["room"], "red", "nothing of it came");
    ada.close().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_will_not_have_is_taken_back_and_can_be_handed_in_again() {
    let server = Server::start(RULES).await;
    let red = server.add("messages", json!({ "room": "red", "text": "" }));
    let ada = Client::start(&server, Some(server.token("ada", None, &["red"]).await));
    ada.caught_up().await;
    let copy = ada.database.find(red.id()).unwrap();
    copy.change(|edit| Ok(edit.splice("text", 0, 0, "before ")?)).unwrap().wait().unwrap();
    copy.change(|edit| Ok(edit.put("locked", true)?)).unwrap().wait().unwrap();
    copy.change(|edit| Ok(edit.splice("text", 7, 0, "after")?)).unwrap().wait().unwrap();

    ada.until("the refused edit", |ada| !ada.database.rejected().unwrap().is_empty()).await;
    let rejected = ada.database.rejected().unwrap();
    assert_eq!(rejected.len(), 1, "{rejected:?}");
    assert_eq!((rejected[0].document, rejected[0].by), (red.id(), server.node.node()));
    let expected = json!({ "room": "red", "text": "before after" });
    assert_eq!(copy.to_json().unwrap(), expected);
    until(server.node.database(), "what stood on it", || red.to_json().unwrap() == expected).await;
    ada.until("both are equal", |_| copy.state().unwrap().digest == red.state().unwrap().digest).await;

    // Once it is allowed, it is handed in again.
    server.set_rules(&RULES.replace("!('locked' in request.change.keys)", "true"));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        assert!(tokio::time::Instant::now() < deadline);
        let Some(again) = ada.database.rejected().unwrap().pop() else { break };
        let made = match ada.database.resubmit(&again) {
            Ok(made) => made,
            // It is being taken back in this very moment, or was taken as it was when the node asked again.
            Err(_) => {
                tokio::task::yield_now().await;
                continue;
            }
        };
        assert_eq!(made.left_out, 0);
        made.commit.unwrap().await.unwrap();

        // Until the rules are read it is taken back once more.
        let taken = || red.read::<bool>("locked").unwrap() == Some(true);
        let heard = || taken() || !ada.database.rejected().unwrap().is_empty();
        let (here, there) =
            (until(&ada.database, "an answer", heard), until(server.node.database(), "an answer", heard));
        tokio::select! { () = here => {}, () = there => {} }
    }
    until(server.node.database(), "the edit", || red.read::<bool>("locked").unwrap() == Some(true)).await;
    ada.until("both are equal again", |_| copy.to_json().unwrap() == red.to_json().unwrap()).await;
    // Denied and allowed in one moment, it may be on the list although it is there.
    for rejected in ada.database.rejected().unwrap() {
        assert!(ada.database.discard_rejected(&rejected).unwrap());
    }
    let found = ada.database.verify(true, &mut |_, _| {}).unwrap();
    assert!(found.faults.is_empty(), "{found:?}");

    // A deletion that is not allowed: the document is there again.
    copy.delete().unwrap().wait().unwrap();
    ada.until("the refused deletion", |ada| !ada.database.rejected().unwrap().is_empty() && ada.sees(red.id())).await;
    assert!(red.state().unwrap().visible);
    let rejected = ada.database.rejected().unwrap().pop().unwrap();
    assert_eq!(rejected.change, None);
    assert!(ada.database.discard_rejected(&rejected).unwrap());
    assert!(!ada.database.discard_rejected(&rejected).unwrap());

    // Whoever may write and not read hands in, and is told nothing of what others did.
    let drop = ada.database.collection("drop").unwrap().create(json!({ "text": "for the box" })).unwrap().0;
    until(server.node.database(), "what was handed in", || server.node.database().find(drop.id()).is_ok()).await;
    assert!(ada.sees(drop.id()), "it is hers");
    ada.close().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn however_much_is_refused_at_once_the_client_is_told_of_all_and_goes_on() {
    // Nothing may be created but messages.
    let (rules, _) = RULES.split_once("match /drop").unwrap();
    let server = Server::start(&format!("{rules} }}")).await;
    let red = server.add("messages", json!({ "room": "red", "text": "" }));
    let folder = tempfile::tempdir().unwrap();
    let key = || Identity::load_or_create(&folder.path().join("key")).unwrap();
    let open = || Database::builder(folder.path().join("ada"));
    let token = server.token("ada", None, &["red"]).await;
    let ada = Client::over(open(), key(), &server, Some(token.clone()));
    ada.caught_up().await;
    ada.close().await;

    // Offline: a document where there is to be none, a refused edit, and 1,500 letters on top of it.
    let database = open().node(key().node()).open().unwrap();
    let (secret, commit) = database.collection("secrets").unwrap().create(json!({ "text": "mine" })).unwrap();
    commit.await.unwrap();
    let copy = database.find(red.id()).unwrap();
    copy.change(|edit| Ok(edit.put("locked", true)?)).unwrap().wait().unwrap();
    for n in 0..1500 {
        let commit = copy.change(|edit| Ok(edit.splice("text", n, 0, "x")?)).unwrap();
        if n % 100 == 99 {
            commit.wait().unwrap();
        }
    }
    let handle = secret;
    let secret = handle.id();
    database.close();
    drop((copy, handle, database));

    let ada = Client::over(open(), key(), &server, Some(token));
    let expected = "x".repeat(1500);
    until(server.node.database(), "the letters", || red.read::<String>("text").unwrap() == Some(expected.clone()))
        .await;
    let refused =
        |ada: &Client, document| ada.database.rejected().unwrap().iter().filter(|one| one.document == document).count();
    ada.until("both refusals", |ada| refused(ada, red.id()) == 1 && refused(ada, secret) == 1).await;
    assert_eq!(red.read::<bool>("locked").unwrap(), None);
    assert_eq!(ada.database.find(secret).unwrap().to_json().unwrap(), json!({}), "its only edit is on the list");
    ada.close().await;
    server.stop().await;
}
