//! Two real processes on real sockets play editing histories, part, and meet again.

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tidelog::automerge::marks::ExpandMark;
use tidelog::document::{EditOptions, View};
use tidelog::id::ActorId;
use tidelog::node::admin::Client;
use tidelog::node::command::{AuditFilter, Base64, Collected, Request};
use tidelog::node::trace::{AgentFeed, Trace, TraceChanges, TraceOptions, traces_folder};
use tidelog::{Change, ChangeHash, DocumentId, Error};

/// A `tidelog serve` of its own, and what this test knows about it.
pub(crate) struct Server {
    folder: TempDir,
    pub(crate) child: Child,
    node: String,
    pub(crate) ticket: String,
    /// The changes and documents it has.
    known: HashSet<ChangeHash>,
    /// How far its log was read.
    at: u64,
}

impl Server {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_tidelog"))
            .arg("--data")
            .arg(folder.path().join("data"))
            .args(["serve", "--listen", "127.0.0.1:0", "--trust-loopback-nodes", "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let facts: Value = serde_json::from_str(&line).unwrap();
        let text = |key: &str| facts[key].as_str().unwrap().to_owned();
        Self { node: text("node"), ticket: text("ticket"), folder, child, known: HashSet::new(), at: 0 }
    }

    pub(crate) fn ask(&self, request: &Request) -> (Value, Vec<Value>) {
        let path = self.folder.path().join("data");
        let mut client = Client::connect(&path, Some(Duration::from_secs(60))).unwrap().expect("a running node");
        let mut rows = Collected::default();
        let answer = client.call(request, false, &mut rows).unwrap_or_else(|error| panic!("{request:?}: {error}"));
        (answer, rows.rows)
    }

    fn create(&mut self, id: DocumentId) {
        let id = Some(id.to_string());
        self.ask(&Request::Add { collection: "essays".into(), name: None, id, value: None, must_be_new: true });
    }

    fn admit(&mut self, id: DocumentId, changes: &[Change]) {
        for group in changes.chunks(1000) {
            let changes = group.iter().map(|change| Base64(change.bytes().to_vec())).collect();
            let (answer, _) = self.ask(&Request::Admit { id: id.to_string(), changes, tried: false });
            assert_eq!(answer["waiting"], 0, "{answer}");
        }
        self.known.extend(changes.iter().map(Change::hash));
    }

    /// Waits until `rows` more records about documents are in its log.
    fn wait_for(&mut self, rows: usize) {
        if rows == 0 {
            return;
        }
        let from = self.at.to_string();
        let (answer, seen) = self.ask(&Request::Watch { target: None, from, limit: Some(rows as u64), once: false });
        assert_eq!(seen.len(), rows);
        self.at = answer["lsn"].as_u64().unwrap();
    }

    fn json(&self, id: DocumentId) -> Value {
        let (answer, mut rows) = self.ask(&Request::Read { id: id.to_string(), at: None });
        rows.pop().unwrap_or(answer)
    }

    fn hashes(&self, id: DocumentId) -> HashSet<String> {
        let (answer, rows) = self.ask(&Request::Hashes { id: id.to_string() });
        let texts = |value: &Value| match value {
            Value::Array(all) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>(),
            Value::String(one) => vec![one.clone()],
            Value::Object(map) => map.values().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        rows.iter().chain([&answer]).flat_map(texts).filter(|text| text.len() == 64).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn link(a: &Server, b: &Server) {
    b.ask(&Request::PeerAdd { peer: a.ticket.clone(), role: "node".into() });
}

fn part(a: &Server, b: &Server) {
    b.ask(&Request::PeerRemove { peer: a.node.clone() });
}

/// Links the two, waits until each has what the other had, beside `rows` lifecycle statements each, and parts them.
fn meet(a: &mut Server, b: &mut Server, before: [usize; 2], rows: [usize; 2]) {
    link(a, b);
    let all: HashSet<ChangeHash> = a.known.union(&b.known).copied().collect();
    a.wait_for(all.len() - before[0] + rows[0]);
    b.wait_for(all.len() - before[1] + rows[1]);
    a.known.clone_from(&all);
    b.known = all;
    part(a, b);
}

fn assert_equal(a: &Server, b: &Server, id: DocumentId) {
    assert_eq!(a.hashes(id), b.hashes(id));
    assert_eq!(a.json(id), b.json(id));
    for server in [a, b] {
        let (report, rows) = server.ask(&Request::Verify { deep: true });
        assert!(rows.is_empty(), "{report} {rows:?}");
    }
}

/// Three nodes in a row: at the last one an author is signed for by the first, and at the one between as well.
#[test]
fn an_author_is_signed_for_by_the_node_where_he_came_in_over_quic() {
    let (a, mut b, mut c) = (Server::start(), Server::start(), Server::start());
    let id = DocumentId::random();
    let (value, text) = (Some(json!({ "text": "tide" })), id.to_string());
    a.ask(&Request::Add { collection: "notes".into(), name: None, id: Some(text), value, must_be_new: true });
    a.ask(&Request::Set { id: id.to_string(), path: "n".into(), value: json!(1) });
    link(&a, &b);
    b.wait_for(3);
    link(&b, &c);
    c.wait_for(3);
    assert_equal(&a, &c, id);
    for (server, signed) in [(&a, Value::Null), (&b, json!(true)), (&c, json!(true))] {
        let filter = AuditFilter {
            user: None,
            collection: None,
            document: Some(id.to_string()),
            refused: None,
            from: Some(0),
            limit: 10,
        };
        let (_, rows) = server.ask(&Request::AuditList { filter });
        let shown =
            rows.iter().map(|row| server.ask(&Request::AuditShow { lsn: row["lsn"].as_u64().unwrap() }).1.remove(0));
        let of_author: Vec<Value> = shown.filter(|row| row["seq"].is_u64()).collect();
        assert_eq!(of_author.len(), 2, "{rows:?}");
        for row in of_author {
            assert_eq!(row["entered"], *a.node, "{row}");
            let expected = if row["seq"] == 1 { &signed } else { &Value::Null };
            assert_eq!(row["signed"], *expected, "{row}");
        }
    }
}

/// Two authors' interwoven history: each node plays its own author's part as far as it has seen the other's, then they
/// meet, and part again, to the end.
#[test]
fn two_processes_play_an_interwoven_history_in_rounds() {
    let Some(folder) = traces_folder().expect("the traces' folder") else {
        println!("skipped: traces absent");
        return;
    };
    let trace = Trace::read(&folder.join("concurrent/friendsforever.json.gz")).unwrap();
    let (mut a, mut b) = (Server::start(), Server::start());
    let id = DocumentId::random();
    let options = TraceOptions::with_salt(id.as_bytes().to_vec());
    let changes = TraceChanges::build(&trace, &options, &mut |_, _| {}).unwrap();
    let mut feeds = [AgentFeed::new(&changes, &[0]), AgentFeed::new(&changes, &[1])];
    a.create(id);
    meet(&mut a, &mut b, [0, 0], [1, 1]);
    let mut rounds = 0;
    while feeds.iter().any(|feed| feed.remaining() > 0) {
        let before = [a.known.len(), b.known.len()];
        for (feed, server) in feeds.iter_mut().zip([&mut a, &mut b]) {
            let ready = feed.next_ready(|hash| server.known.contains(hash));
            let ready: Vec<Change> = ready.iter().map(|next| next.change.clone()).collect();
            server.admit(id, &ready);
        }
        meet(&mut a, &mut b, before, [0, 0]);
        rounds += 1;
    }
    assert!(rounds > 100, "{rounds} rounds");
    assert_eq!(a.json(id)["text"], *trace.end_content);
    assert_equal(&a, &b, id);
}

/// Edits of one kind after the other by one author, none of which needs to succeed.
fn edits_of_every_kind(view: &mut View, actor: &ActorId, count: usize, word: &str) -> Vec<Change> {
    let mut changes = Vec::new();
    for n in 0..count {
        let options = EditOptions { actor: actor.clone(), time: n as i64, message: None };
        let (_, change) = view
            .edit(options, |edit| -> Result<(), Error> {
                match n % 10 {
                    0 => edit.splice("text", n / 20, 0, word)?,
                    1 => edit.splice("text", 1, 1, "")?,
                    2 => edit.insert("list", 0, json!({ "word": word, "n": n }))?,
                    3 => edit.put("list.0.word", json!([n]))?,
                    4 => edit.increment("counter", 1)?,
                    5 => edit.put(format!("map.{}", n % 7).as_str(), json!(word))?,
                    6 => edit.put("conflict", json!(word))?,
                    7 => edit.mark("text", 0..2, "bold", json!(n % 20 < 10), ExpandMark::Both)?,
                    8 => edit.put("nested.deep", json!({ word: { "n": n } }))?,
                    _ => drop(edit.delete(format!("map.{}", n % 7).as_str())?),
                }
                Ok(())
            })
            .unwrap();
        changes.extend(change);
    }
    changes
}

/// One long time apart: a common root, thousands of edits of every kind on each side, one connection.
#[test]
fn two_processes_agree_after_a_long_time_apart() {
    let (mut a, mut b) = (Server::start(), Server::start());
    let id = DocumentId::random();
    let mut root = View::new();
    let options = EditOptions { actor: ActorId::random(), time: 0, message: None };
    let seed = json!({
        "text": "the common root of two long branches", "list": [], "map": {}, "nested": {}, "conflict": "",
        "counter": { "$counter": 0 },
    });
    let (_, first) = root.edit(options, |edit| edit.put(tidelog::Path::root(), &seed).map_err(Error::from)).unwrap();
    let first = [first.unwrap()];
    a.create(id);
    a.admit(id, &first);
    meet(&mut a, &mut b, [0, 0], [1, 1]);
    let before = [a.known.len(), b.known.len()];
    for (server, word) in [(&mut a, "left"), (&mut b, "right")] {
        let mut view = View::load(&root.save().unwrap()).unwrap();
        let changes = edits_of_every_kind(&mut view, &ActorId::random(), 6000, word);
        assert!(changes.len() >= 5000, "{} changes", changes.len());
        server.admit(id, &changes);
    }
    meet(&mut a, &mut b, before, [0, 0]);
    assert_equal(&a, &b, id);
    assert_eq!(a.json(id)["counter"], json!({ "$counter": 1200 }));
}

/// Ten documents, edited on both sides while apart.
#[test]
fn two_processes_agree_about_ten_documents() {
    let (mut a, mut b) = (Server::start(), Server::start());
    let ids: Vec<DocumentId> = (0..10).map(|_| DocumentId::random()).collect();
    for id in &ids {
        a.create(*id);
    }
    meet(&mut a, &mut b, [0, 0], [10, 10]);
    let before = [a.known.len(), b.known.len()];
    for id in &ids {
        for (server, word) in [(&mut a, "left"), (&mut b, "right")] {
            let actor = ActorId::random();
            let mut changes = Vec::new();
            let mut view = View::new();
            for n in 0..50 {
                let options = EditOptions { actor: actor.clone(), time: n, message: None };
                let put = format!("{word}{n}");
                let (_, change) =
                    view.edit(options, |edit| edit.put(put.as_str(), json!(n)).map_err(Error::from)).unwrap();
                changes.extend(change);
            }
            server.admit(*id, &changes);
        }
    }
    meet(&mut a, &mut b, before, [0, 0]);
    for id in ids {
        assert_eq!(a.json(id).as_object().unwrap().len(), 100);
        assert_equal(&a, &b, id);
    }
}

/// A long history is imported on one side, by the command a user would give, while the other edits a second document.
#[test]
fn a_paper_is_imported_at_one_process_while_the_other_edits() {
    let Some(folder) = traces_folder().expect("the traces' folder") else {
        println!("skipped: traces absent");
        return;
    };
    let path = folder.join("sequential/automerge-paper.json.gz");
    let (mut a, mut b) = (Server::start(), Server::start());
    let notes = DocumentId::random();
    b.create(notes);
    let id = DocumentId::random();
    a.create(id);
    let mut import = Command::new(env!("CARGO_BIN_EXE_tidelog"))
        .arg("--data")
        .arg(a.folder.path().join("data"))
        .args(["import", "trace", "--json", "--document", &id.to_string()])
        .arg(&path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut edits = 0;
    let report = loop {
        b.ask(&Request::Set { id: notes.to_string(), path: "n".into(), value: json!(edits) });
        edits += 1;
        if import.try_wait().unwrap().is_some() {
            break import.wait_with_output().unwrap();
        }
    };
    assert!(report.status.success());
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    let imported = usize::try_from(report["imported"].as_u64().unwrap()).unwrap();
    assert_eq!(report["remaining"], 0, "{report}");
    // Its own records, and one statement and the changes of the document that comes.
    link(&a, &b);
    a.wait_for(1 + imported + 1 + edits);
    b.wait_for(1 + edits + 1 + imported);
    let trace = Trace::read(&path).unwrap();
    assert_eq!(b.json(id)["text"], *trace.end_content);
    assert_eq!(a.hashes(id).len(), imported);
    assert_equal(&a, &b, id);
    assert_equal(&a, &b, notes);
}
