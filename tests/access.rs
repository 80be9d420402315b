//! Who may do what, over real sockets: HTTP and server-sent events, stock clients over WebSocket, rules that change and
//! tokens that are revoked while connections stand.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_tidelog");

/// Rooms have members; what is in one is read by those, and written by its author. `ann` may do everything.
const RULES: &str = "
service tidelog {
  function signedIn() { return request.auth != null; }
  match /messages/{id} {
    allow read: if resource.data.room in request.auth.token.rooms;
    allow create: if signedIn() && request.resource.data.author == request.auth.uid
      && request.resource.data.room in request.auth.token.rooms;
    allow update: if resource.data.author == request.auth.uid && request.change.keys.hasOnly(['text', 'edits']);
    allow delete: if request.auth.token.role == 'admin';
  }
  match /rooms/{id} { allow get: if exists(/members/$(request.auth.uid)); }
  match /{collection}/{id} { allow read, write: if request.auth.token.role == 'admin'; }
}
";

/// A node that asks for tokens and has rules.
pub(super) struct Node {
    pub(super) folder: TempDir,
    pub(super) child: Option<Child>,
    pub(super) http: String,
}

impl Node {
    pub(super) fn start(rules: &str) -> Self {
        let mut node = Self { folder: tempfile::tempdir().unwrap(), child: None, http: "127.0.0.1:0".into() };
        fs::write(node.rules(), rules).unwrap();
        node.start_again();
        node
    }

    pub(super) fn start_again(&mut self) {
        let rules = self.rules();
        let words = [
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--http",
            &self.http,
            "--json",
            "--auth",
            "--rules",
            rules.to_str().unwrap(),
        ];
        let log = fs::File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let mut child = self.command(&words).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let facts: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}{}", self.log()));
        facts["http"].as_str().unwrap().clone_into(&mut self.http);
        self.child = Some(child);
    }

    pub(super) fn rules(&self) -> PathBuf {
        self.folder.path().join("rules.tidelog")
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub(super) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.args(words).current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    pub(super) fn run(&self, words: &[&str]) -> String {
        let output = self.command(words).output().unwrap();
        assert!(output.status.success(), "{words:?} {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A token for somebody, with the rooms that he is in.
    pub(super) fn token(&self, user: &str, role: &str, rooms: &str) -> String {
        let claim = format!("rooms={rooms}");
        self.run(&["token", "new", "--user", user, "--role", role, "--claim", &claim, "-q"])
    }

    fn open(&self, method: &str, path: &str, token: Option<&str>, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.http).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.http);
        if let Some(token) = token {
            head += &format!("authorization: Bearer {token}\r\n");
        }
        if method == "PATCH" {
            head += "content-type: application/merge-patch+json\r\n";
        }
        stream.write_all(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
        stream
    }

    /// Status and body of an answer.
    pub(super) fn ask(&self, token: Option<&str>, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut text = String::new();
        self.open(method, path, token, &body).read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap_or_default())
    }

    pub(super) fn add(&self, token: &str, collection: &str, value: &Value) -> String {
        let (status, body) = self.ask(Some(token), "POST", &format!("/v1/collections/{collection}/documents"), value);
        assert_eq!(status, 201, "{body}\n{}", self.log());
        body["id"].as_str().unwrap().to_owned()
    }

    fn query(&self, token: &str, query: &Value) -> Value {
        let (status, found) = self.ask(Some(token), "POST", "/v1/collections/messages/query", query);
        assert_eq!(status, 200, "{found}\n{}", self.log());
        found
    }

    pub(super) fn stream(&self, token: &str, path: &str) -> Events {
        Events(BufReader::new(self.open("GET", path, Some(token), "")))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// Server-sent events as they come.
pub(super) struct Events(BufReader<TcpStream>);

impl Events {
    /// The next event: its name and data. `None` at the end.
    fn next(&mut self) -> Option<(String, Value)> {
        let (mut name, mut data) = (String::new(), String::new());
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if let Some(text) = line.strip_prefix("event: ") {
                text.trim().clone_into(&mut name);
            } else if let Some(text) = line.strip_prefix("data: ") {
                text.trim().clone_into(&mut data);
            } else if line.trim().is_empty() && !data.is_empty() {
                return Some((name, serde_json::from_str(&data).unwrap()));
            }
        }
    }

    /// The next changes of a listener: what happened to which document.
    pub(super) fn changes(&mut self) -> Vec<(String, String)> {
        let (name, data) = self.next().expect("the stream goes on");
        assert_eq!(name, "snapshot", "{data}");
        let change = |change: &Value| {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            (text(&change["type"]), text(&change["document"]["id"]))
        };
        data["changes"].as_array().unwrap().iter().map(change).collect()
    }
}

fn ids(found: &Value) -> Vec<String> {
    found["documents"].as_array().unwrap().iter().map(|document| document["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn whoever_shows_no_token_that_counts_is_told_so_and_nothing_else() {
    let node = Node::start(RULES);
    let good = node.token("ann", "admin", "[]");
    for (token, code) in [(None, "E0201"), (Some("x"), "E0202"), (Some(&good[..good.len() - 4]), "E0202")] {
        let (status, problem) = node.ask(token, "GET", "/v1/collections", &Value::Null);
        assert_eq!((status, &problem["code"]), (401, &json!(code)), "{problem}");
        assert!(!problem.to_string().contains(&good[..20]), "{problem}");
    }
    assert_eq!(node.ask(Some(&good), "GET", "/v1/collections", &Value::Null).0, 200);
    // Where headers cannot be set, in the address; and never two that differ.
    let by_address = format!("/v1/changes?limit=1&access_token={good}");
    assert_eq!(node.ask(None, "GET", &by_address, &Value::Null).0, 200);
    assert_eq!(node.ask(Some("other.to.ken"), "GET", &by_address, &Value::Null).0, 401);
    let user = node.token("ben", "user", "[]");
    for (token, status) in [(None, 401), (Some(&*user), 403), (Some(&*good), 200)] {
        assert_eq!(node.ask(token, "GET", "/metrics", &Value::Null).0, status);
    }
    assert!(!node.log().contains(&good[good.len() - 40..]), "a token is in the log");
}

#[test]
fn rules_decide_over_every_way_to_read_and_write_a_document() {
    let node = Node::start(RULES);
    let (ann, ben, eve) =
        (node.token("ann", "admin", "[]"), node.token("ben", "user", r#"["hall"]"#), node.token("eve", "user", "[]"));
    let path = |id: &str| format!("/v1/collections/messages/documents/{id}");
    let hall = node.add(&ben, "messages", &json!({"room": "hall", "author": "ben", "text": "a"}));
    let attic = node.add(&ann, "messages", &json!({"room": "attic", "author": "ann", "text": "b"}));

    // Creating: under another's name, in another's room.
    for value in [json!({"room": "hall", "author": "ann"}), json!({"room": "attic", "author": "ben"}), json!({})] {
        let (status, problem) = node.ask(Some(&ben), "POST", "/v1/collections/messages/documents", &value);
        assert_eq!((status, &problem["code"]), (403, &json!("E0203")), "{value} {problem}");
    }

    // Reading: what may not be read is not there, in the same words.
    assert_eq!(node.ask(Some(&ben), "GET", &path(&hall), &Value::Null).0, 200);
    let absent = "4NMNnkMhL8jXrdJ9jamS58PAVdXu";
    let told = |token: &str, id: &str| {
        let (status, mut problem) = node.ask(Some(token), "GET", &path(id), &Value::Null);
        problem["request_id"] = Value::Null;
        (status, problem.to_string().replace("automerge:", "").replace(id.trim_start_matches("automerge:"), "ID"))
    };
    assert_eq!(told(&ben, &attic), told(&ben, absent));
    assert_eq!(told(&ben, &attic).0, 404);
    assert_eq!(told(&eve, &hall).0, 404);

    // Editing: the author's own, and only those fields; what is denied leaves nothing behind.
    assert_eq!(node.ask(Some(&ben), "PATCH", &path(&hall), &json!({"text": "c"})).0, 200);
    for (token, id, patch, status) in [
        (&ben, &hall, json!({"room": "attic"}), 403),
        (&ben, &hall, json!({"text": "d", "author": "eve"}), 403),
        (&ben, &attic, json!({"text": "d"}), 404),
        (&eve, &hall, json!({"text": "d"}), 404),
    ] {
        let (found, problem) = node.ask(Some(token), "PATCH", &path(id), &patch);
        assert_eq!(found, status, "{patch} {problem}");
    }
    let (_, value) = node.ask(Some(&ben), "GET", &path(&hall), &Value::Null);
    assert_eq!(value, json!({"room": "hall", "author": "ben", "text": "c"}));
    assert_eq!(node.ask(Some(&ben), "DELETE", &path(&hall), &Value::Null).0, 403);
    assert_eq!(node.ask(Some(&eve), "DELETE", &path(&hall), &Value::Null).0, 404);

    // Lists, queries, counts, feeds and the names of collections.
    let listed = |token: &str| ids(&node.ask(Some(token), "GET", "/v1/collections/messages/documents", &Value::Null).1);
    assert_eq!((listed(&ben), listed(&eve)), (vec![hall.clone()], vec![]));
    assert_eq!(listed(&ann).len(), 2);
    assert_eq!(ids(&node.query(&ben, &json!({}))), [&*hall]);
    assert_eq!(node.query(&ben, &json!({"count": true}))["count"], 1);
    assert_eq!(node.query(&ann, &json!({"count": true}))["count"], 2);
    let feed = |token: &str| {
        let (status, page) = node.ask(Some(token), "GET", "/v1/changes", &Value::Null);
        assert_eq!(status, 200, "{page}");
        page["events"].to_string()
    };
    assert!(feed(&ben).contains(&hall) && !feed(&ben).contains(&attic) && !feed(&eve).contains(&hall));
    assert!(feed(&ann).contains(&attic));
    assert_eq!(node.ask(Some(&ben), "GET", "/v1/collections/messages/indexes", &Value::Null).0, 403);

    // One document decides over another.
    let room = node.add(&ann, "rooms", &json!({"topic": "tides"}));
    let room = format!("/v1/collections/rooms/documents/{room}");
    assert_eq!(node.ask(Some(&ben), "GET", &room, &Value::Null).0, 404);
    node.run(&["add", "members", "{}", "--name", "ben"]);
    assert_eq!(node.ask(Some(&ben), "GET", &room, &Value::Null).0, 200);
    assert_eq!(node.ask(Some(&eve), "GET", &room, &Value::Null).0, 404);
}

#[test]
fn a_listener_is_told_what_comes_and_goes_when_rules_and_rights_change() {
    let node = Node::start(RULES);
    let (ann, ben) = (node.token("ann", "admin", "[]"), node.token("ben", "user", r#"["hall"]"#));
    let hall = node.add(&ann, "messages", &json!({"room": "hall", "author": "ben", "text": "a"}));
    let attic = node.add(&ann, "messages", &json!({"room": "attic", "author": "ann", "text": "b"}));
    let mut heard = node.stream(&ben, "/v1/collections/messages/listen");
    assert_eq!(heard.changes(), [("added".to_owned(), hall.clone())]);

    // The document moves out of his room, and into it.
    let path = |id: &str| format!("/v1/collections/messages/documents/{id}");
    assert_eq!(node.ask(Some(&ann), "PATCH", &path(&hall), &json!({"room": "attic"})).0, 200);
    assert_eq!(heard.changes(), [("removed".to_owned(), hall.clone())]);
    assert_eq!(node.ask(Some(&ann), "PATCH", &path(&attic), &json!({"room": "hall"})).0, 200);
    assert_eq!(heard.changes(), [("added".to_owned(), attic.clone())]);

    // Other rules, while he listens.
    let changed = Instant::now();
    fs::write(node.rules(), "match /{any=**} { allow read: if request.auth.token.role == 'admin'; }").unwrap();
    assert_eq!(heard.changes(), [("removed".to_owned(), attic.clone())]);
    assert!(changed.elapsed() < Duration::from_secs(5), "{:?}", changed.elapsed());
    println!("other rules are in force for a listener after {:?}", changed.elapsed());
    // Those that cannot be read replace nothing.
    fs::write(node.rules(), "match /{any=**} { allow read: if ").unwrap();
    let begun = Instant::now();
    while !node.log().contains("rules that cannot be read replace nothing") {
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", node.log());
        assert_eq!(node.ask(Some(&ben), "GET", &path(&attic), &Value::Null).0, 404);
    }
    fs::write(node.rules(), RULES).unwrap();
    assert_eq!(heard.changes(), [("added".to_owned(), attic)]);

    // His token is revoked: the streams end, and say why.
    let mut feed = node.stream(&ben, "/v1/changes?feed=sse&since=now");
    assert_eq!(feed.next().unwrap().0, "opened");
    node.run(&["token", "revoke", "--user", "ben"]);
    for stream in [&mut heard, &mut feed] {
        let last = std::iter::from_fn(|| stream.next()).last().unwrap();
        assert_eq!((last.0.as_str(), &last.1["error"]["code"]), ("error", &json!("E0205")), "{last:?}");
    }
    assert_eq!(node.ask(Some(&ben), "GET", "/v1/collections", &Value::Null).0, 401);
}

/// Notes are for who is in their room.
pub(super) const ROOMS: &str = "
match /notes/{id} { allow read: if request.auth.uid in get(/rooms/$(resource.data.room)).data.members; }
match /{c}/{id} { allow read, write: if request.auth.token.role == 'admin'; }
";

/// What somebody has who follows the feed, and does what it says: nothing else tells him what he may read.
struct Mirror<'a> {
    token: &'a str,
    cursor: String,
    has: BTreeMap<String, Value>,
    /// What the last of it was about.
    kinds: Vec<String>,
}

impl Mirror<'_> {
    fn take(&mut self, node: &Node, event: &Value) {
        let (kind, id) = (event["kind"].as_str().unwrap(), event["id"].as_str().unwrap().to_owned());
        self.kinds.push(kind.to_owned());
        if ["withheld", "deleted", "gone", "purged"].contains(&kind) {
            self.has.remove(&id);
        } else {
            let path = format!("/v1/collections/notes/documents/{id}");
            match node.ask(Some(self.token), "GET", &path, &Value::Null) {
                (200, value) => self.has.insert(id, value),
                _ => self.has.remove(&id),
            };
        }
    }

    fn open(&mut self, opened: &Value) {
        self.kinds.clear();
        if !opened["reset"].is_null() {
            self.kinds.push(format!("reset {}", opened["reset"]["reason"].as_str().unwrap()));
            self.has.clear();
        }
    }

    fn page(&mut self, node: &Node, form: &str) {
        let path = format!("/v1/changes?collection=notes&feed={form}&since={}", self.cursor);
        let (status, page) = node.ask(Some(self.token), "GET", &path, &Value::Null);
        assert_eq!(status, 200, "{page}\n{}", node.log());
        self.open(&page["opened"]);
        page["events"].as_array().unwrap().iter().for_each(|event| self.take(node, event));
        // In whatever order the documents come.
        self.kinds.sort();
        page["cursor"].as_str().unwrap().clone_into(&mut self.cursor);
    }

    /// Until he has these.
    fn hear(&mut self, node: &Node, stream: &mut Events, wanted: &[&str]) {
        let begun = Instant::now();
        self.kinds.clear();
        while self.names() != wanted {
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}\n{}", self.has, node.log());
            let (name, data) = stream.next().expect("the stream goes on");
            match name.as_str() {
                "opened" => self.open(&data),
                "change" => self.take(node, &data),
                _ => {}
            }
        }
        println!("{wanted:?} {:?} after {:?}", self.kinds, begun.elapsed());
        // What he is told last says where to go on.
        while let Some((name, data)) = stream.next() {
            if name == "progress" && data["progress"]["caught_up"] == true {
                data["progress"]["cursor"].as_str().unwrap().clone_into(&mut self.cursor);
                break;
            }
        }
    }

    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.has.values().map(|value| value["text"].as_str().unwrap()).collect();
        names.sort_unstable();
        names
    }
}

#[test]
fn a_feed_is_whole_whatever_is_granted_or_taken_while_it_stands_and_while_nobody_listens() {
    let mut node = Node::start(ROOMS);
    let (ann, ben) = (node.token("ann", "admin", "[]"), node.token("ben", "user", "[]"));
    for (room, members) in [("hall", json!(["ben"])), ("attic", json!([])), ("cellar", json!([]))] {
        node.run(&["add", "rooms", &json!({ "members": members }).to_string(), "--name", room]);
        node.add(&ann, "notes", &json!({ "room": room, "text": room }));
    }
    let rooms = node.ask(Some(&ann), "GET", "/v1/collections/rooms/documents?values=true", &Value::Null).1;
    let let_in = |node: &Node, room: &str, members: Value| {
        let found = rooms["documents"].as_array().unwrap().iter().find(|row| row["name"] == room).unwrap();
        let path = format!("/v1/collections/rooms/documents/{}", found["id"].as_str().unwrap());
        assert_eq!(node.ask(Some(&ann), "PATCH", &path, &json!({ "members": members })).0, 200);
    };
    let mut mirror = Mirror { token: &ben, cursor: "beginning".into(), has: BTreeMap::new(), kinds: Vec::new() };

    // While he listens: a document that rules look at, and other rules.
    let mut stream = node.stream(&ben, "/v1/changes?feed=sse&collection=notes");
    mirror.hear(&node, &mut stream, &["hall"]);
    let_in(&node, "attic", json!(["ben"]));
    mirror.hear(&node, &mut stream, &["attic", "hall"]);
    assert_eq!(mirror.kinds, ["released"]);
    let_in(&node, "hall", json!([]));
    mirror.hear(&node, &mut stream, &["attic"]);
    assert_eq!(mirror.kinds, ["withheld"]);
    fs::write(
        node.rules(),
        ROOMS.replace("request.auth.uid in", "!(request.auth.uid in").replace("members;", "members);"),
    )
    .unwrap();
    mirror.hear(&node, &mut stream, &["cellar", "hall"]);
    assert_eq!(mirror.kinds.len(), 3, "{:?}", mirror.kinds);
    fs::write(node.rules(), ROOMS).unwrap();
    mirror.hear(&node, &mut stream, &["attic"]);
    drop(stream);
    let then = (mirror.cursor.clone(), mirror.has.clone());

    // While he is away, in pages, over a kill of the server.
    let_in(&node, "cellar", json!(["ann", "ben"]));
    let_in(&node, "attic", json!(["ann"]));
    let mut child = node.child.take().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    node.start_again();
    mirror.page(&node, "normal");
    assert_eq!((mirror.names(), &*mirror.kinds), (vec!["cellar"], &["released".to_owned(), "withheld".to_owned()][..]));
    let kinds = mirror.kinds.clone();
    mirror.page(&node, "normal");
    assert_eq!((mirror.names(), mirror.kinds.len()), (vec!["cellar"], 0));
    // Back to a copy of old, and to another token.
    let renewed = node.token("ben", "user", "[]");
    let now =
        std::mem::replace(&mut mirror, Mirror { token: &renewed, cursor: then.0, has: then.1, kinds: Vec::new() });
    mirror.page(&node, "normal");
    assert_eq!((mirror.names(), &mirror.kinds), (now.names(), &kinds));

    // Who may read nothing is told of nothing.
    let eve = node.token("eve", "user", "[]");
    let page = node.ask(Some(&eve), "GET", "/v1/changes", &Value::Null).1;
    assert_eq!(page["events"], json!([]), "{page}");
    // While he waits for whatever comes first.
    let waits = |node: &Node, more: &str| {
        node.ask(Some(&eve), "GET", &format!("/v1/changes?feed=longpoll&{more}"), &Value::Null).1
    };
    let mut heard = Value::Null;
    std::thread::scope(|scope| {
        let (node, mirror) = (&node, &mut mirror);
        let hears = scope.spawn(move || mirror.page(node, "longpoll"));
        // Somebody else waits for a second, for nothing. Should he still be on his way then, he is told the same.
        heard = waits(node, "timeout=1&since=now");
        assert_eq!(heard["events"], json!([]), "{heard}");
        let_in(node, "hall", json!(["ben"]));
        hears.join().unwrap();
    });
    assert_eq!((mirror.names(), &*mirror.kinds), (vec!["cellar", "hall"], &["released".to_owned()][..]));

    // Other rules meanwhile. That they are in force hears who waits for what they let him read.
    let signal = node.add(&ann, "signals", &json!({}));
    fs::write(node.rules(), format!("{ROOMS}\nmatch /signals/{{id}} {{ allow read; }}\n")).unwrap();
    let page = waits(&node, &format!("timeout=30&since={}", heard["cursor"].as_str().unwrap()));
    assert_eq!(page["events"][0]["id"], json!(signal), "{page}\n{}", node.log());
    // Nobody knows what was told by those from before, so all is told anew.
    mirror.page(&node, "normal");
    assert!(mirror.kinds.contains(&"reset rights".to_owned()), "{:?}", mirror.kinds);
    assert_eq!(mirror.names(), ["cellar", "hall"]);
}

#[test]
fn a_server_with_rules_that_cannot_be_read_does_not_start_and_one_without_is_not_open_to_others() {
    let folder = tempfile::tempdir().unwrap();
    let serve = |more: &[&str]| {
        let mut command = Command::new(BINARY);
        command.args([&["serve", "--listen", "127.0.0.1:0"], more].concat()).current_dir(folder.path());
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    fs::write(folder.path().join("rules"), "match /notes/{id} {\n  allow read: if resource.data.x =;\n}\n").unwrap();
    let told = serve(&["--rules", "rules"]);
    assert!(told.contains("E0210") && told.contains("rules:2:"), "{told}");
    assert!(!folder.path().join("tidelog-data").exists(), "nothing was made");
    fs::write(folder.path().join("rules"), "match /notes/{id} { allow read; }").unwrap();
    for more in
        [&["--http", "0.0.0.0:0"][..], &["--http", "0.0.0.0:0", "--rules", "rules"], &["--http", "0.0.0.0:0", "--auth"]]
    {
        let told = serve(more);
        assert!(told.contains("E0117") && told.contains("--auth"), "{told}");
    }
}

#[test]
fn stock_clients_read_what_they_may_and_lose_nothing_that_is_denied() {
    if !super::repo_clients::node_is_there() {
        return;
    }
    for generation in ["2", "1"] {
        let node = Node::start(HALL);
        let (ann, ben) = (node.token("ann", "owner", "[]"), node.token("ben", "guest", "[]"));
        let address = format!("ws://{}/sync", node.http);
        let words = ["access.mjs", generation, &address, &ann, &ben];
        super::repo_clients::play_with(&words, node.folder.path(), &|| node.log(), |question| {
            match question.as_str().unwrap() {
                "grant ben the garden" => drop(node.run(&["add", "grants", "{}", "--name", "ben"])),
                "let ben write" => fs::write(node.rules(), HALL.replace("// ben: ", "")).unwrap(),
                "let ben read nothing" => fs::write(node.rules(), HALL.replace("'hall'", "'nowhere'")).unwrap(),
                "revoke ben" => drop(node.run(&["token", "revoke", "--user", "ben"])),
                other => panic!("nobody knows how to {other}"),
            }
            json!({ "done": true })
        });
    }
}

/// What is in the hall is for all to read; everybody writes what he owns.
const HALL: &str = "
match /default/{id} {
  allow read: if resource.data.room in ['hall', 'garden'] || resource.data.owner == request.auth.uid;
  allow update: if resource.data.room == 'garden' && exists(/grants/$(request.auth.uid));
  allow create: if request.resource.data.owner == request.auth.uid;
  allow update: if resource.data.owner == request.auth.uid;
  // ben: allow update: if request.auth.uid == 'ben' && resource.data.room == 'hall';
}
";

#[test]
fn what_was_refused_is_on_record_after_a_kill_and_a_draft_is_tried_on_what_was_decided() {
    let mut node = Node::start(RULES);
    let (ann, ben) = (node.token("ann", "admin", "[]"), node.token("ben", "writer", r#"["red"]"#));
    let message = node.add(&ben, "messages", &json!({ "room": "red", "author": "ben", "text": "hello" }));
    let path = format!("/v1/collections/messages/documents/{message}");
    assert_eq!(node.ask(Some(&ben), "PATCH", &path, &json!({ "author": "ann" })).0, 403);
    assert_eq!(node.ask(Some(&ben), "DELETE", &path, &Value::Null).0, 403);
    // A kill takes nothing of what was told.
    let mut child = node.child.take().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let rows = |node: &Node, words: &[&str]| -> Vec<Value> {
        let text = node.run(&[&["audit", "ls", "--json"], words].concat());
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let refused = rows(&node, &["--refused"]);
    let told = |row: &Value| (row["operation"].clone(), row["user"].clone(), row["collection"].clone());
    let expected =
        [(json!("update"), json!("ben"), json!("messages")), (json!("delete"), json!("ben"), json!("messages"))];
    assert_eq!(refused.iter().map(told).collect::<Vec<_>>(), expected, "{refused:?}");
    assert!(refused.iter().all(|row| row["why"] == "no rule allows it" && row["id"] == json!(message)), "{refused:?}");
    assert_eq!(refused[0]["rules"][0], json!({ "line": 8, "path": "/messages/{id}" }), "{refused:?}");

    // The same through a running node, of an accepted change too, with what was claimed of its author.
    node.start_again();
    assert_eq!(node.ask(Some(&ann), "DELETE", &path, &Value::Null).0, 204);
    assert_eq!(rows(&node, &["--refused"]), refused);
    let accepted = rows(&node, &["--accepted", "--user", "ben", "--document", &message]);
    assert_eq!(accepted.len(), 2, "{accepted:?}");
    assert_eq!(rows(&node, &["--user", "ann", "--collection", "messages"])[0]["statement"], "deleted");
    assert_eq!(rows(&node, &["--limit", "1"])[0]["statement"], "deleted");
    assert_eq!(rows(&node, &["--from", "0", "--limit", "1"])[0]["operation"], "create");
    let change = accepted.iter().find(|row| row["change"].is_string()).unwrap();
    let shown = node.run(&["audit", "show", &change["lsn"].to_string(), "--json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown["claims"]["rooms"], &shown["claims"]["sub"]), (&json!(["red"]), &json!("ben")), "{shown}");
    assert_eq!(shown["touched"], json!(["author", "room", "text"]), "{shown}");
    assert!(node.run(&["audit", "show", &refused[0]["lsn"].to_string()]).contains("no rule allows it"));
    assert!(!node.run(&["audit", "ls"]).is_empty());

    // The rules that were in force change nothing; a draft does, and says where.
    let rules = node.rules();
    let said = node.run(&["rules", "replay", rules.to_str().unwrap()]);
    assert!(said.starts_with("3 as before, 0 would be refused, 0 would be allowed"), "{said}");
    let draft = node.folder.path().join("draft.tidelog");
    fs::write(&draft, RULES.replace("allow delete: if request.auth.token.role == 'admin'", "allow delete: if true"))
        .unwrap();
    let output = node.command(&["rules", "replay", draft.to_str().unwrap(), "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let found: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!((&found[0]["lsn"], &found[0]["would_be"]), (&refused[1]["lsn"], &json!("allowed")), "{found:?}");
    assert_eq!(found[1]["summary"]["would_be_allowed"], 1, "{found:?}");
    let compared = ["rules", "replay", draft.to_str().unwrap(), "--rules", draft.to_str().unwrap()];
    assert!(node.run(&compared).contains("0 would be refused, 0 would be allowed"));
    assert!(node.command(&["audit", "show", "1000000"]).output().unwrap().status.code() == Some(3));
    let mut child = node.child.take().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    node.run(&["verify", "--deep"]);
}
