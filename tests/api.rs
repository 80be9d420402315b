//! The HTTP API as whoever has only a socket sees it: documents as JSON, the change feed in every form, and what is said
//! when something is wrong.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use tidelog::feed::{FeedCursor, FeedDigest};
use tidelog::log::MemoryStorage;
use tidelog::web::{AllowedOrigins, WebOptions, WebServer};
use tidelog::{Database, DocumentId, Lsn};
use tokio::runtime::Runtime;

struct Server {
    runtime: Runtime,
    database: Database,
    server: Option<WebServer>,
    address: SocketAddr,
}

impl Server {
    fn start(storage: &MemoryStorage) -> Self {
        let database = Database::on(storage.clone()).open().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let options = WebOptions {
            listen: ([127, 0, 0, 1], 0).into(),
            origins: AllowedOrigins::default(),
            structural: false,
            access: None,
            quotas: tidelog::quota::Quotas::DEFAULT,
            proxies: Vec::new(),
        };
        let server = runtime.block_on(WebServer::start(database.clone(), options)).unwrap();
        Self { address: server.address(), runtime, database, server: Some(server) }
    }

    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\ncontent-length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| *name == "host") {
            head.push_str(&format!("host: {}\r\n", self.address));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        // The server may refuse before it has read all.
        let _ = stream.write_all(format!("{head}connection: close\r\n\r\n{body}").as_bytes());
        stream
    }

    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut bytes = Vec::new();
        self.send(method, path, headers, body).read_to_end(&mut bytes).unwrap();
        Answer::parse(&String::from_utf8(bytes).unwrap())
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.runtime.block_on(self.server.take().unwrap().close());
    }
}

struct Answer {
    status: u16,
    head: String,
    body: Value,
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = serde_json::from_str(body).unwrap_or(Value::String(body.to_owned()));
        Self { status, head: head.to_ascii_lowercase(), body }
    }

    fn header(&self, name: &str) -> &str {
        let line = self.head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        line.unwrap_or_else(|| panic!("no {name} in {}", self.head))
    }

    /// It is a problem of this kind, written as the standard says.
    fn assert_problem(&self, status: u16, code: &str, says: &str) {
        assert_eq!((self.status, self.body["code"].as_str()), (status, Some(code)), "{}", self.body);
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(self.body["status"], status);
        assert_eq!(self.header("x-request-id"), self.body["request_id"].as_str().unwrap());
        assert!(self.body["detail"].as_str().unwrap().contains(says), "{}", self.body);
    }
}

const NOTES: &str = "/v1/collections/notes/documents";

fn created(server: &Server, value: &Value) -> (String, String) {
    let answer = server.ask("POST", NOTES, &[("content-type", "application/json")], &value.to_string());
    assert_eq!(answer.status, 201, "{}", answer.body);
    let id = answer.body["id"].as_str().unwrap().to_owned();
    let path = format!("{NOTES}/{id}");
    assert_eq!(answer.header("location"), path.to_ascii_lowercase());
    (path, answer.header("etag").to_owned())
}

#[test]
fn a_document_is_created_read_edited_and_deleted() {
    let server = Server::start(&MemoryStorage::new());
    let (path, first) = created(&server, &json!({ "title": "Tides", "tags": ["sea"] }));
    assert_eq!(server.get("/v1/collections").body, json!({ "collections": ["notes"] }));
    let read = server.get(&path);
    assert_eq!((read.status, &read.body), (200, &json!({ "title": "Tides", "tags": ["sea"] })));
    assert_eq!(read.header("etag"), first);

    let merge = ("content-type", "application/merge-patch+json");
    let merged = server.ask("PATCH", &path, &[merge], r#"{"title":"High tides","at":{"noon":true}}"#);
    assert_eq!(merged.status, 200, "{}", merged.body);
    let patch = ("content-type", "application/json-patch+json");
    let operations = json!([
        { "op": "test", "path": "/title", "value": "High tides" },
        { "op": "add", "path": "/tags/-", "value": "moon" },
        { "op": "remove", "path": "/at/noon" },
    ]);
    let patched = server.ask("PATCH", &path, &[patch], &operations.to_string());
    assert_eq!(patched.status, 200, "{}", patched.body);
    let value = json!({ "title": "High tides", "tags": ["sea", "moon"], "at": {} });
    assert_eq!(server.get(&path).body, value);
    assert_eq!(server.get(&format!("{path}?at={}", first.trim_matches('"'))).body["title"], "Tides", "as it was");

    // An edit on top of what is no more is refused; one on top of what is there is made.
    let stale = server.ask("PUT", &path, &[("if-match", &first)], r#"{"title":"mine"}"#);
    stale.assert_problem(412, "E0622", "has changed");
    assert_eq!(server.get(&path).body, value);
    let put = server.ask("PUT", &path, &[("if-match", patched.header("etag"))], r#"{"title":"mine"}"#);
    assert_eq!(put.status, 200, "{}", put.body);
    assert_eq!(server.get(&path).body, json!({ "title": "mine" }));
    let again = server.ask("PUT", &path, &[], r#"{"title":"mine"}"#);
    assert_eq!((again.body["change"].clone(), again.header("etag")), (Value::Null, put.header("etag")), "no change");

    let listed = server.get(&format!("{NOTES}?values=true"));
    assert_eq!(listed.body["documents"][0]["value"], json!({ "title": "mine" }));
    assert_eq!(listed.body["next"], Value::Null);
    assert_eq!(server.ask("DELETE", &path, &[], "").status, 204);
    server.get(&path).assert_problem(410, "E0602", "is deleted");
    assert_eq!(server.get(NOTES).body["documents"], json!([]));
}

/// What is written through the API is on the disk when it is answered.
#[test]
fn what_was_answered_outlives_the_process() {
    let storage = MemoryStorage::new();
    let server = Server::start(&storage);
    let (path, tag) = created(&server, &json!({ "n": 1 }));
    let image = storage.crashed(0);
    drop(server);
    let server = Server::start(&image);
    let read = server.get(&path);
    assert_eq!((read.status, read.header("etag")), (200, &*tag));
}

#[test]
fn a_listing_goes_on_where_it_ended() {
    let server = Server::start(&MemoryStorage::new());
    let ids: Vec<String> = (0..5).map(|n| created(&server, &json!({ "n": n })).0).collect();
    let (mut found, mut after) = (Vec::new(), Value::from(0));
    while !after.is_null() {
        let page = server.get(&format!("{NOTES}?limit=2&after={after}")).body;
        found.extend(page["documents"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()));
        after = page["next"].clone();
    }
    let expected: Vec<&str> = ids.iter().map(|path| path.rsplit_once('/').unwrap().1).collect();
    assert_eq!(found, expected);
}

#[test]
fn what_is_wrong_is_said_with_a_code() {
    let server = Server::start(&MemoryStorage::new());
    let (path, _) = created(&server, &json!({ "list": [] }));
    let absent = format!("{NOTES}/{}", DocumentId([9; 16]));
    let json = ("content-type", "application/json");
    let merge = ("content-type", "application/merge-patch+json");
    let patch = ("content-type", "application/json-patch+json");
    server.get(&absent).assert_problem(404, "E0601", "there is no document");
    server.get(&path.replace("notes", "tasks")).assert_problem(404, "E0603", "is in collection notes");
    server.get(&format!("{NOTES}/nonsense")).assert_problem(400, "E0607", "is not a document id");
    server.get("/v1/collections/a%20b/documents").assert_problem(400, "E0607", "is not a collection name");
    server.get(&format!("{NOTES}?limit=0")).assert_problem(400, "E0311", "limit");
    server.get(&format!("{NOTES}?colour=red")).assert_problem(400, "E0311", "unknown field `colour`");
    server.get(&format!("{path}?at=zz")).assert_problem(400, "E0311", "at:");
    server.get("/v1/nothing").assert_problem(404, "E0313", "nothing at this path");
    server.ask("POST", "/v1/collections", &[], "").assert_problem(405, "E0314", "method");
    server.ask("POST", NOTES, &[json], "{").assert_problem(400, "E0312", "EOF");
    server.ask("POST", NOTES, &[json], "[]").assert_problem(422, "E0605", "object at its root");
    server.ask("POST", NOTES, &[json], &"[".repeat(5000)).assert_problem(400, "E0312", "recursion");
    server.ask("PUT", &path, &[("if-match", "\"zz\"")], "{}").assert_problem(400, "E0311", "If-Match");
    server.ask("PATCH", &path, &[json], "{}").assert_problem(415, "E0318", "no kind of patch");
    server.ask("PATCH", &path, &[merge], "[]").assert_problem(400, "E0621", "is an object");
    server.ask("PATCH", &path, &[patch], r#"[{"op":"jump"}]"#).assert_problem(400, "E0621", "unknown variant");
    let missing = r#"[{"op":"add","path":"/n","value":1},{"op":"remove","path":"/x"}]"#;
    server.ask("PATCH", &path, &[patch], missing).assert_problem(409, "E0621", "operation 1");
    assert_eq!(server.get(&path).body, json!({ "list": [] }), "all of a patch or nothing");
    let long = format!("\"{}\"", "a".repeat(17 << 20));
    server.ask("POST", NOTES, &[json], &long).assert_problem(413, "E0319", "bytes");
    server.get("/v1/changes?since=nonsense").assert_problem(400, "E0311", "since");
    server.get("/v1/changes?feed=pigeon").assert_problem(400, "E0311", "pigeon");
    server.get("/v1/changes?feed=longpoll&timeout=9999").assert_problem(400, "E0311", "timeout");
    server
        .get(&format!("/v1/changes?collection=a&document={}", DocumentId([9; 16])))
        .assert_problem(400, "E0311", "document");
}

#[test]
fn pages_of_others_are_refused() {
    let server = Server::start(&MemoryStorage::new());
    let origin = ("origin", "https://elsewhere.example");
    server.ask("GET", "/v1/collections", &[origin], "").assert_problem(403, "E0315", "elsewhere.example");
    server.ask("POST", NOTES, &[origin], "{}").assert_problem(403, "E0315", "elsewhere.example");
    let host = ("host", "rebound.example");
    server.ask("GET", "/v1/collections", &[host], "").assert_problem(421, "E0316", "rebound.example");
    assert_eq!(server.get(NOTES).body["documents"], json!([]), "nothing was written");
    let own = format!("http://localhost:{}", server.address.port());
    assert_eq!(server.ask("GET", "/v1/collections", &[("origin", &own)], "").status, 200);
}

#[test]
fn pages_that_are_allowed_may_read_the_answers() {
    let server = Server::start(&MemoryStorage::new());
    let page = ("origin", "http://localhost:5173");
    let asking = [page, ("access-control-request-method", "PATCH"), ("access-control-request-headers", "if-match")];
    let told = server.ask("OPTIONS", NOTES, &asking, "");
    assert_eq!((told.status, told.header("access-control-allow-origin")), (204, page.1));
    assert!(told.header("access-control-allow-methods").contains("patch"));
    assert!(told.header("access-control-allow-headers").contains("if-match"));
    let read = server.ask("GET", NOTES, &[page], "");
    assert_eq!((read.status, read.header("access-control-allow-origin")), (200, page.1));
    let strange = [("origin", "https://elsewhere.example"), asking[1], asking[2]];
    let refused = server.ask("OPTIONS", NOTES, &strange, "");
    assert_eq!((refused.status, refused.head.contains("access-control")), (403, false), "{}", refused.head);
    assert!(!server.get(NOTES).head.contains("access-control"), "who is no page is told nothing");
}

#[test]
fn the_feed_is_read_in_pages_that_join() {
    let server = Server::start(&MemoryStorage::new());
    (0..7).for_each(|n| drop(created(&server, &json!({ "n": n }))));
    let (mut cursor, mut digest, mut kinds) = ("beginning".to_owned(), FeedDigest::default(), Vec::new());
    loop {
        let page = server.get(&format!("/v1/changes?limit=3&since={cursor}")).body;
        assert!(page["opened"]["resumed"].is_object(), "{page}");
        for event in page["events"].as_array().unwrap() {
            digest = following(digest, event);
            assert_eq!(event["digest"], digest.to_string(), "nothing was left out");
            kinds.push(event["kind"].as_str().unwrap().to_owned());
        }
        cursor = page["cursor"].as_str().unwrap().to_owned();
        if page["caught_up"] == true {
            break;
        }
    }
    assert_eq!(kinds, ["created", "changed"].repeat(7));
    let cursor: FeedCursor = cursor.parse().unwrap();
    assert_eq!(cursor.position, server.database.reader().tail().lsn);
}

/// The digest that follows, from what the event says: what `docs/feed.md` tells consumers to compute.
fn following(before: FeedDigest, event: &Value) -> FeedDigest {
    let tag = match event["kind"].as_str().unwrap() {
        "created" => 1,
        "changed" => 2,
        "deleted" => 3,
        other => panic!("{other}"),
    };
    let subject = event["change"].as_str().or(event["statement"].as_str()).unwrap();
    let bytes: Vec<u8> = (0..32).map(|at| u8::from_str_radix(&subject[2 * at..2 * at + 2], 16).unwrap()).collect();
    let position = Lsn(event["position"].as_u64().unwrap());
    let document = event["id"].as_str().unwrap().parse().unwrap();
    before.after(tag, position, document, bytes[..].try_into().unwrap())
}

#[test]
fn a_long_poll_waits_for_what_comes() {
    let server = Server::start(&MemoryStorage::new());
    let nothing = server.get("/v1/changes?feed=longpoll&timeout=0").body;
    assert_eq!((&nothing["events"], &nothing["caught_up"]), (&json!([]), &json!(true)));
    let path = format!("/v1/changes?feed=longpoll&since={}", nothing["cursor"].as_str().unwrap());
    let mut waiting = server.send("GET", &path, &[], "");
    created(&server, &json!({ "n": 1 }));
    let mut text = String::new();
    waiting.read_to_string(&mut text).unwrap();
    assert_eq!(Answer::parse(&text).body["events"][0]["kind"], "created");
}

/// The events of a stream, as a browser reads them: kind, id, data.
struct Events(BufReader<TcpStream>);

impl Events {
    fn open(server: &Server, path: &str, headers: &[(&str, &str)]) -> Self {
        let mut reader = BufReader::new(server.send("GET", path, headers, ""));
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            assert!(reader.read_line(&mut line).unwrap() > 0);
        }
        Self(reader)
    }

    fn next(&mut self) -> Option<(String, Option<String>, Value)> {
        let (mut kind, mut id, mut data) = (String::new(), None, Value::Null);
        let mut line = String::new();
        loop {
            line.clear();
            if self.0.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            match line.trim_end().split_once(": ") {
                Some(("event", text)) => kind = text.to_owned(),
                Some(("id", text)) => id = Some(text.to_owned()),
                Some(("data", text)) => data = serde_json::from_str(text).unwrap(),
                // Lengths of chunks stand between; an empty line ends the event.
                _ if !data.is_null() && line.trim().is_empty() => return Some((kind, id, data)),
                _ => {}
            }
        }
    }
}

#[test]
fn a_stream_of_events_goes_on_after_the_last_one_that_was_seen() {
    let server = Server::start(&MemoryStorage::new());
    let (path, _) = created(&server, &json!({ "n": 0 }));
    let mut events = Events::open(&server, "/v1/changes", &[("accept", "text/event-stream")]);
    let (opened, ..) = events.next().unwrap();
    let (_, first, created) = events.next().unwrap();
    assert_eq!((opened.as_str(), &created["kind"]), ("opened", &json!("created")));
    drop(events);
    for n in 1..4 {
        server.ask("PUT", &path, &[], &json!({ "n": n }).to_string());
    }
    // The browser's own way to go on; what the address says is older.
    let last = first.unwrap();
    let mut events = Events::open(&server, "/v1/changes?feed=sse&since=beginning", &[("last-event-id", &last)]);
    assert_eq!(events.next().unwrap().2["resumed"]["from"], json!(last));
    let mut changes = 0;
    let end = loop {
        let (kind, id, data) = events.next().unwrap();
        changes += u64::from(kind == "change" && data["kind"] == "changed");
        if kind == "progress" && data["progress"]["caught_up"] == true {
            break id.unwrap();
        }
    };
    assert_eq!(changes, 4);
    server.ask("PUT", &path, &[], r#"{"n":9}"#);
    let (kind, id, _) = events.next().unwrap();
    assert_eq!(kind, "change");
    assert!(id.unwrap().parse::<FeedCursor>().unwrap() > end.parse().unwrap());
}

#[test]
fn a_stream_ends_with_the_server() {
    let mut server = Server::start(&MemoryStorage::new());
    let mut events = Events::open(&server, "/v1/changes?feed=sse", &[]);
    assert_eq!(events.next().unwrap().0, "opened");
    let closing = server.server.take().unwrap();
    server.runtime.block_on(closing.close());
    while events.next().is_some() {}
    server.server = Some(
        server
            .runtime
            .block_on(WebServer::start(
                server.database.clone(),
                WebOptions {
                    listen: ([127, 0, 0, 1], 0).into(),
                    origins: AllowedOrigins::default(),
                    structural: false,
                    access: None,
                    quotas: tidelog::quota::Quotas::DEFAULT,
                    proxies: Vec::new(),
                },
            ))
            .unwrap(),
    );
}

#[test]
fn lines_of_json_are_one_item_each() {
    let server = Server::start(&MemoryStorage::new());
    created(&server, &json!({ "n": 0 }));
    let stream = server.send("GET", "/v1/changes?feed=ndjson&collection=notes", &[], "");
    let lines = BufReader::new(stream).lines().map_while(Result::ok);
    let items: Vec<Value> =
        lines.filter_map(|line| serde_json::from_str(&line).ok()).filter(Value::is_object).take(4).collect();
    let keys: Vec<&str> = items.iter().map(|item| item["kind"].as_str().unwrap_or("other")).collect();
    assert_eq!(keys, ["other", "created", "changed", "other"]);
    assert_eq!(items[3]["progress"]["caught_up"], true);
}
