//! How much one address, and one user, may have of the HTTP port: each quota is brought to its end, and what is said
//! then is looked at. Addresses are those of loopback, of which there are many.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tidelog::net::Ticket;
use tidelog::sync::repo::wire::{Create, Ephemeral, Join, Message, Metadata, Route};
use tidelog::{CollectionName, DocumentId, Limits};
use tokio_tungstenite::tungstenite;

const BINARY: &str = env!("CARGO_BIN_EXE_tidelog");
pub(super) const HERE: [u8; 4] = [127, 0, 0, 1];
pub(super) const ELSEWHERE: [u8; 4] = [127, 0, 0, 2];
/// Where the tests watch from, so that it costs nobody else anything.
const WATCH: [u8; 4] = [127, 0, 0, 99];
/// Rates that do not fill again while a test runs.
pub(super) fn hourly(burst: u32) -> Value {
    json!({ "per_hour": 1, "burst": burst })
}

/// A node with quotas of its own.
pub(super) struct Server {
    folder: TempDir,
    child: Child,
    pub(super) http: SocketAddr,
    /// Where it is over QUIC.
    pub(super) ticket: Ticket,
    watcher: Option<String>,
}

/// An answer over HTTP.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: Value,
}

impl Answer {
    pub(super) fn code(&self) -> (u16, &str) {
        (self.status, self.body["code"].as_str().unwrap_or_default())
    }

    /// What an answer says that turns somebody away: that it does, when to come again, and why.
    fn is_busy(&self, code: &str) {
        assert_eq!(self.code(), (429, code), "{}{}", self.head, self.body);
        let ms = self.body["retry_after_ms"].as_u64().unwrap();
        let header = format!("retry-after: {}", ms.div_ceil(1000));
        assert!(ms > 0 && self.head.to_lowercase().contains(&header), "{}{}", self.head, self.body);
        assert!(self.body["detail"].as_str().unwrap().contains("retry after"), "{}", self.body);
    }
}

impl Server {
    pub(super) fn start(quotas: &Value, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("quotas.json"), quotas.to_string()).unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let words = ["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--json", "--quotas", "quotas.json"];
        let mut command = Command::new(BINARY);
        command.args([&words, more].concat()).current_dir(folder.path());
        command.env_remove("TIDELOG_LOG").env_remove("RUST_LOG").env_remove("TIDELOG_HTTP");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said = || fs::read_to_string(folder.path().join("log")).unwrap();
        let facts: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}{}", said()));
        let http = facts["http"].as_str().unwrap().parse().unwrap();
        let ticket = facts["ticket"].as_str().unwrap().parse().unwrap();
        let mut server = Self { folder, child, http, ticket, watcher: None };
        if more.contains(&"--auth") {
            server.watcher = Some(server.token("watcher", "metrics"));
        }
        server
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn token(&self, user: &str, role: &str) -> String {
        self.run(&["token", "new", "--user", user, "--role", role, "-q"])
    }

    /// Runs a command on the node; what it prints.
    pub(super) fn run(&self, words: &[&str]) -> String {
        let mut command = Command::new(BINARY);
        let output = command.args(words).current_dir(self.folder.path()).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A connection from an address of loopback.
    pub(super) fn connect(&self, from: [u8; 4]) -> TcpStream {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let stream = runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from((from, 0))).unwrap();
            socket.connect(self.http).await.unwrap().into_std().unwrap()
        });
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    pub(super) fn head(&self, method: &str, path: &str, token: Option<&str>, more: &str) -> String {
        let token = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
        format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n{token}{more}", self.http)
    }

    pub(super) fn ask(&self, from: [u8; 4], token: Option<&str>, method: &str, path: &str, body: &str) -> Answer {
        let length = format!("connection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let mut stream = self.connect(from);
        stream.write_all(self.head(method, path, token, &length).as_bytes()).unwrap();
        answer(&mut stream)
    }

    fn list(&self, from: [u8; 4], token: Option<&str>) -> Answer {
        self.ask(from, token, "GET", "/v1/collections", "")
    }

    fn create(&self, token: Option<&str>) -> Answer {
        self.ask(HERE, token, "POST", "/v1/collections/notes/documents", "{}")
    }

    /// One of the server's numbers.
    pub(super) fn metric(&self, name: &str) -> u64 {
        let mut stream = self.connect(WATCH);
        let head = self.head("GET", "/metrics", self.watcher.as_deref(), "connection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("tidelog_{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    pub(super) fn refused(&self, kind: &str) -> u64 {
        self.metric(&format!("quota_refused_total{{kind=\"{kind}\"}}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Reads an answer to the end of its connection.
pub(super) fn answer(stream: &mut TcpStream) -> Answer {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_owned(), body: serde_json::from_str(body).unwrap_or_default() }
}

/// A WebSocket that says what it is told to.
pub(super) struct Socket {
    socket: tungstenite::WebSocket<TcpStream>,
    name: String,
}

impl Socket {
    /// Opens one; or says with which status it was refused.
    pub(super) fn open(server: &Server, from: [u8; 4], token: Option<&str>) -> Result<Self, u16> {
        let query = token.map(|token| format!("?access_token={token}")).unwrap_or_default();
        let stream = server.connect(from);
        match tungstenite::client::client(format!("ws://{}/sync{query}", server.http), stream) {
            Ok((socket, _)) => Ok(Self { socket, name: String::new() }),
            Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(response))) => {
                Err(response.status().as_u16())
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Opens one and says who it is.
    pub(super) fn joined(server: &Server, from: [u8; 4], token: Option<&str>, name: &str) -> Self {
        let mut socket = Self::open(server, from, token).unwrap();
        socket.name = name.to_owned();
        socket.join();
        match socket.next() {
            Ok(bytes) => assert!(matches!(read(&bytes), Message::Peer(_))),
            Err(end) => panic!("{end:?}"),
        }
        socket
    }

    pub(super) fn join(&mut self) {
        let join = Join { sender: self.name.as_str().into(), metadata: Metadata::default(), versions: None };
        let bytes = Message::Join(join).encode();
        self.send(bytes);
    }

    /// Sends bytes as they are. What is wrong shows when something is read.
    pub(super) fn send(&mut self, bytes: Vec<u8>) {
        let _ = self.socket.send(tungstenite::Message::Binary(bytes.into()));
    }

    fn create(&mut self, n: u8) -> DocumentId {
        let document = DocumentId([n; 16]);
        let collection = CollectionName::new("notes").unwrap();
        let create = Create { sender: Some(self.name.as_str().into()), document, collection, name: None };
        let bytes = Message::Create(create).encode();
        self.send(bytes);
        document
    }

    fn say(&mut self, document: DocumentId, count: u64) {
        let route = Route { sender: self.name.as_str().into(), target: "".into() };
        // A value of its own: of two that say the same, the later takes the place of the first.
        let data = vec![0x18, count as u8 | 0x80].into();
        let bytes = Message::Ephemeral(Ephemeral { route, document, count, session: "s".into(), data }).encode();
        self.send(bytes);
    }

    /// Waits until everything that was sent has been looked at; or says how it was closed.
    pub(super) fn settled(&mut self) -> Result<(), (u16, String)> {
        self.join();
        while !matches!(read(&self.next()?), Message::Peer(_)) {}
        Ok(())
    }

    /// The next message; or how it was closed.
    pub(super) fn next(&mut self) -> Result<Vec<u8>, (u16, String)> {
        loop {
            match self.socket.read() {
                Ok(tungstenite::Message::Binary(bytes)) => return Ok(bytes.to_vec()),
                Ok(tungstenite::Message::Close(Some(frame))) => {
                    return Err((frame.code.into(), frame.reason.to_string()));
                }
                Ok(tungstenite::Message::Close(None)) => return Err((1005, String::new())),
                Ok(_) => {}
                Err(error) => return Err((1006, error.to_string())),
            }
        }
    }

    /// How it is closed, whatever is said before.
    pub(super) fn end(&mut self) -> (u16, String) {
        loop {
            if let Err(end) = self.next() {
                return end;
            }
        }
    }
}

fn read(bytes: &[u8]) -> Message<'_> {
    Message::read(bytes, &Limits::DEFAULT).unwrap()
}

/// A close code with a reason that says when to come again.
pub(super) fn is_transient(end: &(u16, String), code: u16) {
    assert_eq!(end.0, code, "{end:?}");
    let words: Vec<&str> = end.1.split(' ').collect();
    let [.., "retry", "after", ms, "ms"] = words[..] else { panic!("{end:?}") };
    assert!(ms.parse::<u64>().unwrap() > 0);
}

#[test]
fn a_file_of_quotas_that_is_not_understood_keeps_the_node_from_starting() {
    let folder = tempfile::tempdir().unwrap();
    let serve = |text: Option<&str>| {
        if let Some(text) = text {
            fs::write(folder.path().join("quotas.json"), text).unwrap();
        }
        let mut command = Command::new(BINARY);
        command.args(["serve", "--listen", "127.0.0.1:0", "--quotas", "quotas.json"]).current_dir(folder.path());
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(!folder.path().join("tidelog-data").exists(), "nothing was made");
        String::from_utf8(output.stderr).unwrap()
    };
    for (text, words) in [
        (None, &["E0118", "quotas.json"][..]),
        (Some("{\n  \"user\": {\n    \"conections\": 5\n  }\n}"), &["E0118", "line 3", "did you mean `connections`?"]),
        (Some("{ \"user\": { \"frames\": 5 } }"), &["E0118", "line 1", "`frames`", "per_second"]),
        (Some("not JSON"), &["E0118", "line 1", "docs/access.md"]),
    ] {
        let told = serve(text);
        assert!(words.iter().all(|word| told.contains(word)), "{text:?}: {told}");
    }
}

#[test]
fn an_address_has_so_many_connections_and_others_are_not_touched() {
    let server = Server::start(&json!({ "address": { "connections": 4, "openings": 2 } }), &[]);
    // Two that ask for nothing, and one more.
    let silent = [server.connect(HERE), server.connect(HERE)];
    server.list(HERE, None).is_busy("E0710");
    assert_eq!(server.list(ELSEWHERE, None).status, 200);
    assert_eq!(Socket::open(&server, HERE, None).err(), Some(429));
    drop(silent);
    // Four that have asked.
    let mut sockets: Vec<Socket> = Vec::new();
    for n in 0..4 {
        // The server notices in its own time that the silent ones are gone.
        let socket = std::iter::repeat_with(|| Socket::open(&server, HERE, None)).find_map(Result::ok).unwrap();
        sockets.push(socket);
        sockets[n].name = format!("client {n}");
        sockets[n].join();
        assert!(sockets[n].next().is_ok());
    }
    server.list(HERE, None).is_busy("E0710");
    assert_eq!(Socket::open(&server, HERE, None).err(), Some(429));
    assert!(Socket::open(&server, ELSEWHERE, None).is_ok());
    assert!(server.refused("connections") >= 2 && server.refused("openings") >= 2);
    drop(sockets);
    assert!(std::iter::repeat_with(|| server.list(HERE, None).status).any(|status| status == 200));
}

#[test]
fn new_connections_and_requests_come_at_a_rate() {
    let quotas = json!({ "address": { "handshakes": hourly(6) }, "user": { "requests": hourly(3) } });
    let server = Server::start(&quotas, &["--auth"]);
    let (ann, ben) = (server.token("ann", "user"), server.token("ben", "user"));
    for _ in 0..3 {
        assert_eq!(server.list(HERE, Some(&ann)).status, 200);
    }
    server.list(HERE, Some(&ann)).is_busy("E0711");
    server.list(ELSEWHERE, Some(&ann)).is_busy("E0711");
    assert_eq!(server.list(HERE, Some(&ben)).status, 200);
    assert_eq!(server.list(HERE, Some(&ben)).status, 200);
    // The address has made six connections.
    server.list(HERE, Some(&ben)).is_busy("E0711");
    assert_eq!(server.list(ELSEWHERE, Some(&ben)).status, 200);
    assert_eq!((server.refused("requests"), server.refused("handshakes")), (2, 1));
}

#[test]
fn a_user_has_so_many_sockets_wherever_he_is_and_opens_them_at_a_rate() {
    let server = Server::start(&json!({ "user": { "connections": 2, "handshakes": hourly(5) } }), &["--auth"]);
    let (ann, ben) = (server.token("ann", "user"), server.token("ben", "user"));
    let first = Socket::joined(&server, HERE, Some(&ann), "a");
    let _second = Socket::joined(&server, ELSEWHERE, Some(&ann), "b");
    is_transient(&Socket::open(&server, HERE, Some(&ann)).unwrap().end(), 4530);
    let _other = Socket::joined(&server, HERE, Some(&ben), "c");
    drop(first);
    // Two were opened and one was tried; until the server has noticed that one is gone, it is tried again.
    let again = |_| {
        let mut socket = Socket::open(&server, HERE, Some(&ann)).unwrap();
        socket.name = "again".to_owned();
        socket.settled().err().map_or(0, |(code, _)| code)
    };
    let ends: Vec<u16> = (0..4).map(again).collect();
    let last = ends.iter().rposition(|code| *code == 4531).unwrap();
    assert_eq!(last, 3, "{ends:?}");
    is_transient(&Socket::open(&server, HERE, Some(&ann)).unwrap().end(), 4531);
    assert_eq!(server.list(HERE, Some(&ann)).status, 200);
}

#[test]
fn whoever_makes_many_documents_makes_the_next_ones_later() {
    let quotas = json!({ "user": { "documents": hourly(3) }, "address": { "documents": hourly(1) } });
    let server = Server::start(&quotas, &["--auth"]);
    let (ann, ben) = (server.token("ann", "user"), server.token("ben", "user"));
    for _ in 0..3 {
        assert_eq!(server.create(Some(&ann)).status, 201);
    }
    server.create(Some(&ann)).is_busy("E0714");
    // The same over a WebSocket: what fits is taken, and then the socket is closed.
    is_transient(&closed_by_creating(&server, Some(&ann), 1), 4529);
    is_transient(&closed_by_creating(&server, Some(&ben), 10), 4529);
    assert!(server.refused("documents") >= 3);
    // And for those who are nobody in particular, together.
    let open = Server::start(&quotas, &[]);
    assert_eq!(open.create(None).status, 201);
    open.create(None).is_busy("E0714");
    is_transient(&closed_by_creating(&open, None, 1), 4529);
}

/// Creates one document after the other until the socket is closed.
fn closed_by_creating(server: &Server, token: Option<&str>, first: u8) -> (u16, String) {
    let mut socket = Socket::joined(server, HERE, token, "maker");
    for n in first..=u8::MAX {
        socket.create(n);
        if let Err(end) = socket.settled() {
            return end;
        }
    }
    socket.end()
}

#[test]
fn streams_are_counted_while_they_last() {
    let server = Server::start(&json!({ "address": { "streams": 2 } }), &[]);
    assert_eq!(server.create(None).status, 201);
    let open = |path: &str| {
        let mut stream = server.connect(HERE);
        stream.write_all(server.head("GET", path, None, "\r\n").as_bytes()).unwrap();
        let mut line = String::new();
        let mut reader = BufReader::new(stream);
        reader.read_line(&mut line).unwrap();
        assert!(line.contains("200"), "{line}");
        reader
    };
    let streams = [open("/v1/changes?feed=sse"), open("/v1/collections/notes/listen")];
    for path in ["/v1/changes?feed=ndjson", "/v1/changes?feed=longpoll&since=now", "/v1/collections/notes/listen"] {
        server.ask(HERE, None, "GET", path, "").is_busy("E0713");
    }
    assert_eq!(server.ask(HERE, None, "GET", "/v1/changes", "").status, 200, "a page is no stream");
    drop(streams);
    let again = || server.ask(HERE, None, "GET", "/v1/changes?feed=longpoll&since=now&timeout=0", "").status;
    assert!(std::iter::repeat_with(again).any(|status| status == 200));
}

#[test]
fn bodies_are_paid_for_whether_their_length_is_said_or_not() {
    let server = Server::start(&json!({ "address": { "bytes": { "per_hour": 10, "burst": 1000 } } }), &[]);
    let body = json!({ "text": "x".repeat(900) }).to_string();
    let post = |from| server.ask(from, None, "POST", "/v1/collections/notes/documents", &body);
    assert_eq!(post(HERE).status, 201);
    assert_eq!(post(HERE).status, 201, "what was left is enough to begin with");
    post(HERE).is_busy("E0715");
    assert_eq!(server.list(HERE, None).status, 200, "what has no body costs none");
    let in_parts = || {
        let mut stream = server.connect(ELSEWHERE);
        let chunk = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        let more = format!("connection: close\r\ntransfer-encoding: chunked\r\n\r\n{chunk}");
        stream.write_all(server.head("POST", "/v1/collections/notes/documents", None, &more).as_bytes()).unwrap();
        answer(&mut stream)
    };
    assert_eq!(in_parts().status, 201);
    assert_eq!(in_parts().status, 201);
    in_parts().is_busy("E0715");
}

#[test]
fn a_socket_that_is_too_fast_is_read_later_and_closed_only_if_that_would_be_long() {
    let quotas = json!({ "address": { "frames": { "per_second": 100, "burst": 10 } } });
    let server = Server::start(&quotas, &[]);
    let mut socket = Socket::joined(&server, HERE, None, "hasty");
    // Each is answered, none too early and none too late.
    for _ in 0..40 {
        socket.join();
    }
    for n in 0..40 {
        assert!(socket.next().is_ok(), "answer {n}");
        if n == 20 {
            break;
        }
    }
    assert!(server.metric("quota_delayed_total{kind=\"frames\"}") > 0);
    assert_eq!(server.refused("frames"), 0);

    for (quotas, kind) in [
        (json!({ "user": { "frames": hourly(3) } }), "frames"),
        (json!({ "user": { "bytes": { "per_hour": 1, "burst": 200 } } }), "bytes"),
    ] {
        let server = Server::start(&quotas, &["--auth"]);
        let (ann, ben) = (server.token("ann", "user"), server.token("ben", "user"));
        let mut socket = Socket::joined(&server, HERE, Some(&ann), "hasty");
        for _ in 0..20 {
            socket.join();
        }
        is_transient(&socket.end(), 4529);
        // Who owes that much is told at once when he comes again.
        is_transient(&Socket::open(&server, HERE, Some(&ann)).unwrap().end(), 4529);
        assert!(server.refused(kind) >= 2);
        Socket::joined(&server, HERE, Some(&ben), "calm");
    }
}

/// Else a client with one long message would come again with it for ever.
#[test]
fn what_was_too_much_is_taken_before_its_socket_is_closed() {
    let server = Server::start(&json!({ "user": { "bytes": hourly(100) } }), &["--auth"]);
    let ann = server.token("ann", "user");
    let before = server.metric("log_lsn");
    let mut socket = Socket::open(&server, HERE, Some(&ann)).unwrap();
    socket.name = "x".repeat(20);
    socket.join();
    socket.create(1);
    is_transient(&socket.end(), 4529);
    assert!(server.metric("log_lsn") > before, "the document is there");
}

#[test]
fn ephemeral_messages_beyond_the_rate_are_dropped_and_nothing_else_happens() {
    let server = Server::start(&json!({ "user": { "presence": hourly(30) } }), &["--auth"]);
    let (ann, ben) = (server.token("ann", "user"), server.token("ben", "user"));
    let mut reader = Socket::joined(&server, HERE, Some(&ben), "reader");
    let mut writer = Socket::joined(&server, HERE, Some(&ann), "writer");
    let document = reader.create(1);
    writer.create(1);
    // What is said before the reader has the document open is heard by nobody.
    reader.settled().unwrap();
    writer.settled().unwrap();
    for n in 1..=100 {
        writer.say(document, n);
    }
    let mut heard = Vec::new();
    while heard.len() < 30 {
        if let Message::Ephemeral(ephemeral) = read(&reader.next().unwrap()) {
            heard.push(ephemeral.count);
        }
    }
    assert_eq!(heard, (1..=30).collect::<Vec<u64>>());
    // The socket stands, and what comes after them is answered.
    writer.settled().unwrap();
    assert_eq!(server.refused("presence"), 70);
}

#[test]
fn behind_a_proxy_clients_are_told_apart_by_its_word_alone() {
    let quotas = json!({ "address": { "documents": hourly(1) } });
    let post = |server: &Server, from, header: &str| {
        let mut stream = server.connect(from);
        let more = format!("connection: close\r\n{header}\r\ncontent-length: 2\r\n\r\n{{}}");
        stream.write_all(server.head("POST", "/v1/collections/notes/documents", None, &more).as_bytes()).unwrap();
        answer(&mut stream)
    };
    let server = Server::start(&quotas, &["--proxy", "127.0.0.1"]);
    for client in ["198.51.100.7", "198.51.100.8", "2001:db8::7"] {
        let header = format!("x-forwarded-for: 203.0.113.9, {client}");
        assert_eq!(post(&server, HERE, &header).status, 201);
        post(&server, HERE, &header).is_busy("E0714");
        // Another door of the same proxy, the same client.
        let same = if client.contains(':') { format!("[{client}]:4711") } else { client.to_owned() };
        post(&server, HERE, &format!("forwarded: for=\"{same}\"")).is_busy("E0714");
    }
    // Who is no proxy is nobody's voice.
    assert_eq!(post(&server, ELSEWHERE, "x-forwarded-for: 198.51.100.70").status, 201);
    post(&server, ELSEWHERE, "x-forwarded-for: 198.51.100.71").is_busy("E0714");
    let plain = Server::start(&quotas, &[]);
    assert_eq!(post(&plain, HERE, "x-forwarded-for: 198.51.100.7").status, 201);
    post(&plain, HERE, "x-forwarded-for: 198.51.100.8").is_busy("E0714");

    // What a proxy brings at once counts as connections, though they come over few.
    let server = Server::start(&json!({ "address": { "connections": 1 } }), &["--proxy", "127.0.0.1"]);
    let listen = |client: &str| {
        let mut stream = server.connect(HERE);
        let more = format!("x-forwarded-for: {client}\r\n\r\n");
        stream.write_all(server.head("GET", "/v1/changes?feed=sse", None, &more).as_bytes()).unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        (line.split(' ').nth(1).unwrap().parse::<u16>().unwrap(), reader)
    };
    let (first, second, third) = (listen("198.51.100.7"), listen("198.51.100.7"), listen("198.51.100.8"));
    assert_eq!((first.0, second.0, third.0), (200, 429, 200));
    assert!(matches!(server.http.ip(), IpAddr::V4(_)));
}
