//! Queries, listeners and indexes over HTTP and on the command line; and that what the pages say of the API is so.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_tidelog");

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A node with an HTTP port, as a user starts it.
struct Node {
    folder: TempDir,
    child: Option<Child>,
    http: String,
}

impl Node {
    fn start() -> Self {
        let mut node = Self { folder: tempfile::tempdir().unwrap(), child: None, http: "127.0.0.1:0".into() };
        node.start_again();
        node
    }

    fn start_again(&mut self) {
        let mut command = self.command(&["serve", "--listen", "127.0.0.1:0", "--http", &self.http, "--json"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let facts: Value = serde_json::from_str(&line).unwrap();
        facts["http"].as_str().unwrap().clone_into(&mut self.http);
        self.child = Some(child);
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.args(words).current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn open(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.http).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: {length}\r\n", self.http);
        stream.write_all(format!("{head}{headers}connection: close\r\n\r\n{body}").as_bytes()).unwrap();
        stream
    }

    /// Status and body of an answer.
    fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut text = String::new();
        self.open(method, path, "", &body).read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap_or_default())
    }

    fn add(&self, value: &Value) -> String {
        let (status, body) = self.ask("POST", "/v1/collections/messages/documents", value);
        assert_eq!(status, 201, "{body}");
        body["id"].as_str().unwrap().to_owned()
    }

    fn query(&self, query: &Value) -> (u16, Value) {
        self.ask("POST", "/v1/collections/messages/query", query)
    }

    fn listen(&self, query: &Value, more: &str, headers: &str) -> Events {
        let path = format!("/v1/collections/messages/listen?query={}{more}", encoded(&query.to_string()));
        Events(BufReader::new(self.open("GET", &path, headers, "")))
    }

    fn json(&self, words: &[&str]) -> Vec<Value> {
        let output = self.command(&[words, &["--json"]].concat()).output().unwrap();
        assert!(output.status.success(), "{words:?} {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Server-sent events as they come: id and data.
struct Events(BufReader<TcpStream>);

impl Events {
    fn next(&mut self) -> (String, Value) {
        let (mut id, mut data) = (String::new(), String::new());
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the stream ended");
            if let Some(text) = line.strip_prefix("id: ") {
                text.trim().clone_into(&mut id);
            } else if let Some(text) = line.strip_prefix("data: ") {
                text.trim().clone_into(&mut data);
            } else if line.trim().is_empty() && !data.is_empty() {
                return (id, serde_json::from_str(&data).unwrap());
            }
        }
    }

    fn changes(&mut self) -> (String, Vec<(String, i64, i64)>) {
        let (id, data) = self.next();
        let change = |change: &Value| {
            let kind = change["type"].as_str().unwrap().to_owned();
            (kind, change["oldIndex"].as_i64().unwrap(), change["newIndex"].as_i64().unwrap())
        };
        (id, data["changes"].as_array().unwrap().iter().map(change).collect())
    }
}

fn lobby() -> Value {
    json!({
        "where": {"field": "room", "op": "==", "value": "lobby"},
        "orderBy": [{"field": "at", "direction": "desc"}],
        "limit": 2,
    })
}

#[test]
fn a_query_finds_what_was_written_before_it() {
    let node = Node::start();
    for at in 0..5 {
        node.add(&json!({"room": if at == 3 { "attic" } else { "lobby" }, "at": at}));
    }
    let (status, found) = node.query(&lobby());
    assert_eq!(status, 200, "{found}");
    let ats: Vec<&Value> = found["documents"].as_array().unwrap().iter().map(|one| &one["value"]["at"]).collect();
    assert_eq!(ats, [4, 2]);
    assert_eq!(found["from_cache"], false);
    let mut counted = lobby();
    counted["count"] = json!(true);
    counted.as_object_mut().unwrap().remove("limit");
    assert_eq!(node.query(&counted).1["count"], 4);
    let (status, index) = node.ask("POST", "/v1/collections/messages/indexes", &json!({"fields": ["room", "at desc"]}));
    assert_eq!((status, &index["fields"]), (202, &json!(["room", "at desc"])));
    let place = format!("/v1/collections/messages/indexes/{}", index["id"].as_str().unwrap());
    assert_eq!(node.query(&lobby()).1["documents"], found["documents"]);
    assert_eq!(node.ask("DELETE", &place, &Value::Null).0, 204);
}

#[test]
fn what_is_wrong_with_a_query_is_said_alike_everywhere() {
    let node = Node::start();
    node.add(&json!({"a": 1}));
    for (query, code, why) in [
        (json!({"where": {"field": "a", "op": "like", "value": 1}}), "E0623", "\"like\" is no operator"),
        (json!({"limit": 1_000_000}), "E0623", "the limit is 1000000"),
        (json!({"limit": -1}), "E0623", "not understood"),
        (json!({"order": []}), "E0623", "unknown field `order`"),
        (json!([1]), "E0623", "not understood"),
    ] {
        let (status, problem) = node.query(&query);
        assert_eq!((status, problem["code"].as_str()), (400, Some(code)), "{query}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(why) && problem["fix"].is_string(), "{problem}");
        let path = format!("/v1/collections/messages/listen?query={}", encoded(&query.to_string()));
        let (status, listened) = node.ask("GET", &path, &Value::Null);
        assert_eq!((status, &listened["detail"]), (400, &problem["detail"]));
    }
    for (path, code) in [
        ("/v1/collections/messages/listen?query=%7B", "E0623"),
        ("/v1/collections/messages/listen?since=nonsense", "E0311"),
        ("/v1/collections/messages/listen?wat=1", "E0311"),
        ("/v1/collections/messages/listen?query=%7B%22count%22%3Atrue%7D", "E0623"),
    ] {
        assert_eq!(node.ask("GET", path, &Value::Null).1["code"], code, "{path}");
    }
    let bad = json!({"fields": ["a elements", "b elements"]});
    assert_eq!(node.ask("POST", "/v1/collections/messages/indexes", &bad).1["code"], "E0628");
    assert_eq!(node.ask("DELETE", "/v1/collections/messages/indexes/00", &Value::Null).1["code"], "E0628");
    let typed = node.command(&["query", "messages", "--where", "a = 1"]).output().unwrap();
    let said = String::from_utf8(typed.stderr).unwrap();
    assert!(typed.status.code() == Some(2) && said.contains("E0623") && said.contains("no operator"), "{said}");
}

#[test]
fn a_listener_goes_on_after_the_last_snapshot_that_was_seen() {
    let mut node = Node::start();
    let first = node.add(&json!({"room": "lobby", "at": 1}));
    node.add(&json!({"room": "attic", "at": 9}));
    let mut events = node.listen(&lobby(), "&patches=true", "");
    let (_, told) = events.next();
    assert_eq!((&told["reset"], &told["size"]), (&json!(true), &json!(1)));
    let second = node.add(&json!({"room": "lobby", "at": 2}));
    assert_eq!(events.changes().1, [("added".to_owned(), -1, 0)]);
    let place = |id: &str| format!("/v1/collections/messages/documents/{id}");
    node.ask("PUT", &place(&first), &json!({"room": "lobby", "at": 3}));
    let (id, told) = events.next();
    assert_eq!(told["changes"][0]["type"], "modified");
    let put = json!({"action": "put", "path": ["at"], "value": 3, "conflict": false});
    assert_eq!(told["changes"][0]["patches"], json!([put]));
    drop(events);
    // Nobody listens while one leaves the query, another comes and takes a place, and the node dies.
    node.ask("PUT", &place(&second), &json!({"room": "cellar", "at": 2}));
    node.add(&json!({"room": "lobby", "at": 0}));
    node.kill();
    node.start_again();
    let mut events = node.listen(&lobby(), "", &format!("last-event-id: {id}\r\n"));
    let (_, told) = events.next();
    assert_eq!((&told["reset"], &told["size"]), (&json!(false), &json!(2)));
    let kinds: Vec<&Value> = told["changes"].as_array().unwrap().iter().map(|change| &change["type"]).collect();
    assert_eq!(kinds, ["removed", "added"]);
    assert_eq!(told["changes"][0]["document"]["id"], json!(second));
}

#[test]
fn the_command_line_queries_and_watches_results() {
    let node = Node::start();
    for at in 0..3 {
        node.add(&json!({"room": "lobby", "at": at}));
    }
    let found = node.json(&["query", "messages", "--where", "room == \"lobby\" && at > 0", "--order-by", "at desc"]);
    let ats: Vec<&Value> = found.iter().map(|row| &row["value"]["at"]).collect();
    assert_eq!(ats, [2, 1]);
    assert_eq!(node.json(&["query", "messages", "--count"]), [json!({"count": 3})]);
    let first = node.json(&["watch", "messages", "--where", "at >= 1", "--from", "beginning", "--once"]);
    assert!(first.len() == 2 && first.iter().all(|row| row["kind"] == "added"));
    let cursor = first[0]["cursor"].as_str().unwrap();
    node.add(&json!({"room": "lobby", "at": 7}));
    let next = node.json(&["watch", "messages", "--where", "at >= 1", "--from", cursor, "--once"]);
    assert_eq!((next.len(), &next[0]["value"]["at"]), (1, &json!(7)));
    let mut watch = node.command(&["watch", "messages", "--where", "at > 7", "--json"]);
    let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It hears from now on, so whatever comes until it does is not told: another comes until one is.
    let mut lines = BufReader::new(watch.stdout.take().unwrap());
    let (stop, stopped) = std::sync::mpsc::sync_channel::<()>(1);
    let node = &node;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while stopped.recv_timeout(Duration::from_millis(50)).is_err() {
                node.add(&json!({"at": 8}));
            }
        });
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let row: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&row["kind"], &row["value"]["at"]), (&json!("added"), &json!(8)));
        stop.send(()).unwrap();
    });
    let interrupted = Command::new("kill").args(["-INT", &watch.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    assert_eq!(watch.wait().unwrap().code(), Some(130));
    let mut said = String::new();
    watch.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("tidelog watch messages --where 'at > 7' --from "), "{said}");
    assert_eq!(node.json(&["index", "add", "messages", "room", "at desc"])[0]["declared"], true);
    assert_eq!(node.json(&["index", "ls", "messages"])[0]["fields"], json!(["room", "at desc"]));
    assert_eq!(node.json(&["feed", "ls"]), [Value::Null; 0]);
    assert_eq!(node.command(&["feed", "reset", "nobody"]).output().unwrap().status.code(), Some(3));
}

#[test]
fn the_openapi_page_has_the_routes_that_there_are() {
    let page: Value = serde_json::from_str(&read("docs/openapi.json")).unwrap();
    let paths = page["paths"].as_object().unwrap();
    let code = read("src/web/api/mod.rs");
    let routes: Vec<&str> =
        code.match_indices("\"/v1").map(|(at, _)| code[at + 1..].split('"').next().unwrap()).collect();
    let routes: Vec<&str> = routes.into_iter().filter(|route| !route.contains('*')).collect();
    assert_eq!(routes.len(), paths.len(), "{routes:?}");
    let node = Node::start();
    for (path, methods) in paths {
        assert!(routes.contains(&path.as_str()), "{path}");
        for method in ["get", "post", "put", "patch", "delete"] {
            let address = path.replace("{collection}", "notes").replace("{id}", "x").replace("{index}", "x");
            // A stream is not waited for.
            let address = if address.ends_with("listen") { format!("{address}?since=x") } else { address };
            let (_, answer) = node.ask(&method.to_uppercase(), &address, &Value::Null);
            let is_served = answer["code"] != "E0313" && answer["code"] != "E0314";
            assert_eq!(is_served, methods.get(method).is_some(), "{method} {path}: {answer}");
        }
    }
    // What refers to a part of the page refers to one that is there.
    let text = page.to_string();
    for (at, _) in text.match_indices("\"#/") {
        let pointer = text[at + 2..].split('"').next().unwrap();
        assert!(page.pointer(pointer).is_some(), "{pointer}");
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

#[test]
fn the_session_of_the_readme_goes_as_it_says() {
    if !Path::new("/usr/bin/curl").exists() {
        println!("skipped: curl absent");
        return;
    }
    let node = Node::start();
    let readme = read("README.md");
    let section = readme.split("## Without a client").nth(1).unwrap();
    let session = section.split("```").nth(1).unwrap();
    let mut commands = 0;
    for block in session.split("\n$ ").skip(1) {
        let (command, expected) = block.split_once('\n').unwrap_or((block, ""));
        let command = command.replace("localhost:4780", &node.http);
        let output = Command::new("bash").args(["-c", &command]).output().unwrap();
        let found = String::from_utf8(output.stdout).unwrap();
        assert!(is_like(&found, expected.trim_end()), "{command}\n{found}\nis not as\n{expected}");
        commands += 1;
    }
    assert!(commands >= 7, "{commands}");
}

/// Whether a text is as another in which `…` stands for anything.
fn is_like(found: &str, expected: &str) -> bool {
    let mut rest = found;
    for (at, part) in expected.split('…').enumerate() {
        match rest.find(part) {
            Some(0) => rest = &rest[part.len()..],
            Some(begin) if at > 0 => rest = &rest[begin + part.len()..],
            _ => return false,
        }
    }
    expected.ends_with('…') || rest.trim().is_empty()
}
