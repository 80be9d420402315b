//! The real binary, in folders of its own: each command without a node and through one, and each bad input.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_tidelog");

/// A folder with a data directory, and perhaps a node that runs on it.
struct Place {
    folder: TempDir,
    node: Option<Child>,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), node: None }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.arg("--data").arg(self.data()).args(words).current_dir(self.folder.path());
        command.env_remove("TIDELOG_LOG").env_remove("RUST_LOG").stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Runs a command that must succeed and returns its stdout.
    fn ok(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let (out, err) = texts(&output);
        assert!(output.status.success(), "{words:?}: {:?}\n{out}\n{err}", output.status);
        out.trim_end().to_owned()
    }

    /// Runs a command that must fail with this exit status and code, and with a remedy.
    fn fails(&self, words: &[&str], status: i32, code: &str) -> String {
        let output = self.run(words);
        let (out, err) = texts(&output);
        assert_eq!(output.status.code(), Some(status), "{words:?}\n{out}\n{err}");
        assert!(err.starts_with(&format!("error[{code}]: ")), "{words:?}\n{err}");
        assert!(err.contains("\n  fix  "), "{words:?}\n{err}");
        assert_eq!(err.matches("error[").count(), 1, "one error: {err}");
        assert_eq!(out, "", "nothing on stdout");
        err
    }

    fn json(&self, words: &[&str]) -> Vec<Value> {
        let out = self.ok(&[words, &["--json"]].concat());
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Starts a node on a free port and waits until it listens.
    fn serve(&mut self, more: &[&str]) -> Value {
        let mut command = self.command(&["serve", "--listen", "127.0.0.1:0", "--json"]);
        let mut child = command.args(more).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        self.node = Some(child);
        serde_json::from_str(&line).unwrap()
    }

    /// Sends a signal to the node and returns its exit status and how long it took.
    fn end(&mut self, signal: &str) -> (Option<i32>, Duration) {
        let mut node = self.node.take().unwrap();
        let begun = Instant::now();
        kill(&node, signal);
        let status = node.wait().unwrap();
        (status.code(), begun.elapsed())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(mut node) = self.node.take() {
            node.kill().unwrap();
            node.wait().unwrap();
        }
    }
}

fn kill(child: &Child, signal: &str) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

fn with_stdin(command: &mut Command, text: &str) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// A history by two agents that cannot be imported agent by agent at once.
fn history() -> String {
    json!({
        "kind": "concurrent", "endContent": "abc", "numAgents": 2,
        "txns": [
            { "parents": [], "agent": 0, "patches": [[0, 0, "a"]] },
            { "parents": [0], "agent": 1, "patches": [[1, 0, "b"]] },
            { "parents": [1], "agent": 0, "patches": [[2, 0, "c"]] },
        ],
    })
    .to_string()
}

/// Every command on documents; the same whether a node runs or not.
fn every_document_command(place: &Place) {
    let id = place.ok(&["add", "notes", r#"{"title": "Tides", "tags": ["sea"]}"#, "-q"]);
    assert!(id.starts_with("automerge:"), "{id}");
    assert_eq!(place.json(&["get", &id]), [json!({ "title": "Tides", "tags": ["sea"] })]);
    assert!(place.ok(&["ls"]).contains("notes"));
    assert!(place.ok(&["ls", "notes", "-q"]).lines().any(|line| line == id));

    let first = place.json(&["log", &id])[0]["hash"].as_str().unwrap().to_owned();
    place.ok(&["set", &id, "title", "Spring tide"]);
    place.ok(&["set", &id, "tags.-", "\"moon\""]);
    place.ok(&["set", &id, "depth", "-3"]);
    assert_eq!(place.json(&["get", &id])[0], json!({ "title": "Spring tide", "tags": ["sea", "moon"], "depth": -3 }));
    assert_eq!(place.json(&["get", &id, "--at", &first])[0]["title"], "Tides");
    assert_eq!(place.json(&["log", &id]).len(), 4);
    assert_eq!(place.json(&["log", &id, "--limit", "1"])[0]["seq"], json!(place.json(&["log", &id])[3]["seq"]));

    place.ok(&["rm", &id]);
    place.fails(&["get", &id], 3, "E0602");
    place.fails(&["rm", &id], 3, "E0602");
    assert!(!place.ok(&["ls", "notes", "-q"]).contains(&id));
    place.ok(&["restore", &id]);
    place.fails(&["restore", &id], 6, "E0613");
    assert_eq!(place.json(&["get", &id])[0]["depth"], -3);

    let mut edit = place.command(&["edit", &id]);
    edit.env_remove("VISUAL").env("EDITOR", "sed -i s/Spring/Neap/");
    assert!(edit.status().unwrap().success());
    assert_eq!(place.json(&["get", &id])[0]["title"], "Neap tide");

    let records = place.json(&["log", "--limit", "1000"]);
    let kinds: Vec<&str> = records.iter().map(|row| row["kind"].as_str().unwrap()).collect();
    for kind in ["created", "changed", "deleted", "restored"] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }
    let watched = place.json(&["watch", &id, "--from", "beginning", "--limit", "3"]);
    assert_eq!(watched.iter().filter(|row| row["id"] == json!(id)).count(), 3);

    let named = place.ok(&["add", "notes", "{}", "--name", "diary", "-q"]);
    place.fails(&["add", "notes", "{}", "--name", "diary"], 6, "E0611");
    assert_eq!(place.json(&["get", &named])[0], json!({}));
    assert_eq!(place.json(&["status"])[0]["collections"], 1);
    assert_eq!(place.json(&["verify", "--deep"]).last().unwrap()["faults"], 0);
}

/// Imports and exports, likewise.
fn every_import_and_export(place: &Place) {
    let lines = place.file("two.ndjson", "{\"a\": 1}\n\n{\"a\": 2}\n");
    let lines = lines.to_str().unwrap();
    place.fails(&["import", lines], 2, "E0110");
    assert_eq!(place.json(&["import", lines, "--collection", "rows"])[0]["created"], 2);
    let exported = place.ok(&["export", "rows"]);
    assert_eq!(exported.lines().count(), 2);
    let again = place.file("again.ndjson", &exported);
    let answer = place.json(&["import", again.to_str().unwrap()]);
    assert_eq!(answer[0], json!({ "created": 0, "changed": 0, "unchanged": 2 }));

    let id = place.ok(&["ls", "rows", "-q"]).lines().next().unwrap().to_owned();
    let file = place.folder.path().join("one.automerge");
    place.ok(&["export", &id, "--format", "automerge", "--output", file.to_str().unwrap()]);
    let copied = place.json(&["import", file.to_str().unwrap(), "--collection", "copies"]);
    assert_eq!(copied[0]["imported"], 1);
    let copy = copied[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(place.json(&["get", &copy]), place.json(&["get", &id]));

    let trace = place.file("story.json", history());
    let trace = trace.to_str().unwrap();
    let import = |agents: &[&str]| place.json(&[&["import", "trace", trace][..], agents].concat())[0].clone();
    let first = import(&["--agents", "0"]);
    assert_eq!((&first["imported"], &first["remaining"]), (&json!(2), &json!(1)), "the root, and what needs no other");
    assert_eq!(import(&["--agents", "1"])["remaining"], 0);
    assert_eq!(import(&["--agents", "0"]), json!({ "id": first["id"], "imported": 1, "known": 2, "remaining": 0 }));
    assert_eq!(import(&[])["imported"], 0);
    assert_eq!(place.json(&["get", first["id"].as_str().unwrap()])[0], json!({ "text": "abc" }));
}

#[test]
fn every_command_works_without_a_node() {
    let place = Place::new();
    every_document_command(&place);
    every_import_and_export(&place);
    place.fails(&["ticket"], 5, "E0112");
}

#[test]
fn every_command_works_through_a_running_node() {
    let mut place = Place::new();
    let node = place.serve(&[]);
    every_document_command(&place);
    every_import_and_export(&place);
    assert_eq!(place.ok(&["ticket"]), node["ticket"].as_str().unwrap());
    assert!(place.ok(&["ticket", "--invite", "node"]).contains('#'));
    assert_eq!(place.json(&["status"])[0]["state"], "ready");
    let (status, took) = place.end("-TERM");
    assert_eq!(status, Some(0));
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(!place.data().join("admin.sock").exists());
    assert_eq!(place.json(&["verify", "--deep"]).last().unwrap()["faults"], 0);
}

#[test]
fn peers_are_added_listed_and_removed() {
    let mut place = Place::new();
    place.ok(&["add", "notes", "{}"]);
    let peer = tidelog::NodeId([3; 32]).to_string();
    assert_eq!(place.json(&["peer", "add", &peer, "--role", "client"])[0]["role"], "client");
    place.serve(&[]);
    assert_eq!(place.json(&["peer", "ls"])[0]["role"], "client");
    assert_eq!(place.json(&["peer", "rm", &peer])[0]["was"], "client");
    place.fails(&["peer", "rm", &peer], 3, "E0504");
    assert_eq!(place.json(&["peer", "ls"]), [] as [Value; 0]);
    let own = place.ok(&["ticket"]);
    let err = place.fails_in_any_way(&["peer", "add", &own]);
    assert!(err.contains("E0503"), "{err}");
}

impl Place {
    fn fails_in_any_way(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(!output.status.success(), "{words:?}");
        texts(&output).1
    }
}

#[test]
fn a_second_node_joins_the_first_and_gets_its_documents() {
    let (mut one, mut two) = (Place::new(), Place::new());
    let first = one.serve(&["--trust-loopback-nodes"]);
    let id = one.ok(&["add", "notes", r#"{"title": "here"}"#, "-q"]);
    two.serve(&["--peer", first["ticket"].as_str().unwrap()]);
    let watched = two.json(&["watch", "notes", "--from", "beginning", "--limit", "2"]);
    assert_eq!(watched[0]["kind"], "created");
    assert_eq!(two.json(&["get", &id])[0], json!({ "title": "here" }));
}

#[test]
fn a_watch_through_a_node_hears_what_comes_and_says_how_to_go_on() {
    let mut place = Place::new();
    place.serve(&[]);
    let mut watch = place.command(&["watch", "--from", "beginning", "-q"]);
    let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap());
    let id = place.ok(&["add", "notes", "{\"a\":1}", "-q"]);
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line.trim_end(), id);
    kill(&watch, "-INT");
    assert_eq!(watch.wait().unwrap().code(), Some(130));
}

#[test]
fn a_watch_goes_on_from_its_cursor() {
    let place = Place::new();
    let id = place.ok(&["add", "notes", r#"{"a": 1}"#, "-q"]);
    let first = place.json(&["watch", "--once", "--from", "beginning"]);
    let kinds: Vec<&str> = first.iter().map(|row| row["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["created", "changed"]);
    place.ok(&["set", &id, "a", "2"]);
    let after = |cursor: &Value| place.json(&["watch", "notes", "--once", "--from", cursor.as_str().unwrap()]);
    let next = after(&first[0]["cursor"]);
    assert_eq!((next.len(), &next[0]["change"]), (2, &first[1]["change"]));
    assert_eq!(after(&next[1]["cursor"]), [Value::Null; 0]);
    assert_eq!(place.json(&["watch", "--once", "--from", &first[1]["lsn"].to_string()]).len(), 1, "or a position");
    // A cursor of another log is told so, and what is there.
    let other = Place::new();
    other.ok(&["add", "notes", r#"{"a": 1}"#, "-q"]);
    let told = other.json(&["watch", "--once", "--from", next[1]["cursor"].as_str().unwrap()]);
    assert_eq!((&told[0]["reset"]["reason"], &told[1]["kind"]), (&json!("other-log"), &json!("standing")));
    place.fails(&["watch", "--from", "soon"], 2, "E0619");
}

#[test]
fn a_killed_node_leaves_everything_acknowledged_and_a_socket_that_is_no_obstacle() {
    let mut place = Place::new();
    place.serve(&[]);
    let id = place.ok(&["add", "notes", r#"{"title": "kept"}"#, "-q"]);
    place.end("-KILL");
    assert!(place.data().join("admin.sock").exists());
    assert_eq!(place.json(&["get", &id])[0], json!({ "title": "kept" }));
    place.serve(&[]);
    assert_eq!(place.json(&["get", &id])[0], json!({ "title": "kept" }));
}

#[test]
fn a_long_path_to_the_data_directory_is_no_obstacle() {
    let outer = tempfile::tempdir().unwrap();
    let long = outer.path().join("d".repeat(120));
    std::fs::create_dir(&long).unwrap();
    let mut place = Place { folder: tempfile::tempdir_in(&long).unwrap(), node: None };
    place.serve(&[]);
    assert_eq!(place.json(&["status"])[0]["running"], true);
    assert_eq!(place.end("-TERM").0, Some(0));
}

#[test]
fn a_second_process_on_a_store_is_told_so() {
    let mut place = Place::new();
    place.serve(&[]);
    let err = place.fails(&["serve", "--listen", "127.0.0.1:0"], 6, "E0104");
    assert!(err.contains("in use"), "{err}");
}

#[test]
fn a_port_in_use_is_named() {
    let (mut one, two) = (Place::new(), Place::new());
    let address = one.serve(&[])["address"].as_str().unwrap().to_owned();
    let err = two.fails(&["serve", "--listen", &address], 6, "E0108");
    assert!(err.contains(&address), "{err}");
}

#[test]
fn directories_that_are_no_stores_are_left_alone() {
    let place = Place::new();
    place.fails(&["ls"], 1, "E0102");
    place.fails(&["get", &tidelog::DocumentId([1; 16]).to_string()], 1, "E0102");
    assert!(!place.data().exists());
    std::fs::create_dir(place.data()).unwrap();
    std::fs::write(place.data().join("thesis.tex"), "precious").unwrap();
    place.fails(&["ls"], 1, "E0101");
    place.fails(&["add", "notes", "{}"], 1, "E0101");
    place.fails(&["serve", "--listen", "127.0.0.1:0"], 1, "E0101");
    assert_eq!(std::fs::read_dir(place.data()).unwrap().count(), 1);
}

#[test]
fn a_newer_format_a_copy_and_missing_tables_are_named() {
    let place = Place::new();
    place.ok(&["add", "notes", "{}"]);
    let format = place.data().join("FORMAT");
    let text = std::fs::read_to_string(&format).unwrap();
    std::fs::write(&format, text.replace("\"tidelog\": 1", "\"tidelog\": 9")).unwrap();
    place.fails(&["ls"], 1, "E0103");
    std::fs::write(&format, "{").unwrap();
    place.fails(&["ls"], 1, "E0101");
    std::fs::write(&format, text).unwrap();
    place.ok(&["ls"]);

    let original = place.folder.path().join("original");
    std::fs::rename(place.data(), &original).unwrap();
    assert!(Command::new("cp").arg("-r").arg(&original).arg(place.data()).status().unwrap().success());
    place.fails(&["ls"], 6, "E0105");
    let mut place = place;
    let before = place_log(&original);
    assert_ne!(place.serve(&["--restored", "--new-node"])["log"], json!(before));
    place.end("-TERM");
    assert!(place.data().join("node.key.old1").exists());
}

fn place_log(data: &Path) -> String {
    let output = Command::new(BINARY).arg("--data").arg(data).args(["status", "--json"]).output().unwrap();
    let row: Value = serde_json::from_slice(&output.stdout).unwrap();
    row["log"].as_str().unwrap().to_owned()
}

#[test]
fn a_key_file_that_cannot_be_used_is_named_and_left_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::new();
    place.ok(&["add", "notes", "{}"]);
    let key = place.data().join("node.key");
    let text = std::fs::read(&key).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    place.fails(&["ls"], 4, "E0107");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&key, "gibberish").unwrap();
    place.fails(&["serve", "--listen", "127.0.0.1:0"], 4, "E0107");
    assert_eq!(std::fs::read(&key).unwrap(), b"gibberish");
    std::fs::write(&key, text).unwrap();
    place.ok(&["ls"]);
}

#[test]
fn malformed_values_are_usage_errors_and_nothing_is_written() {
    let place = Place::new();
    place.fails(&["add", "notes", "{\"a\": "], 2, "E0604");
    place.fails(&["add", "notes", "[1]"], 2, "E0604");
    place.fails(&["add", "no/slash", "{}"], 2, "E0607");
    place.fails(&["serve", "--peer", "nonsense", "--listen", "127.0.0.1:0"], 2, "E0109");
    assert!(!place.data().exists());

    let id = place.ok(&["add", "notes", "{\"a\": 1}", "-q"]);
    let tail = place.json(&["status"])[0]["tail"].clone();
    place.fails(&["set", &id, "a", "{\"b\": "], 2, "E0604");
    place.fails(&["set", &id, "x.y", "1"], 3, "E0605");
    place.fails(&["get", "automerge:nonsense"], 2, "E0607");
    place.fails(&["get", &tidelog::DocumentId([1; 16]).to_string()], 3, "E0601");
    place.fails(&["ls", "nowhere"], 3, "E0610");
    place.fails(&["get", &id, "--at", "xyz"], 2, "E0607");
    place.fails(&["get", &id, "--at", &"ab".repeat(32)], 3, "E0605");
    place.fails(&["peer", "add", "nonsense"], 2, "E0109");
    place.fails(&["peer", "add", "tidelog:x@y"], 2, "E0109");
    place.fails(&["watch", "--from", "999999"], 6, "E0614");
    let lines = place.file("bad.ndjson", "{\"a\": 1}\n{\"a\": \n");
    let err = place.fails(&["import", lines.to_str().unwrap(), "--collection", "rows"], 1, "E0604");
    assert!(err.contains("line 2"), "{err}");
    place.fails(&["import", "absent.ndjson", "--collection", "rows"], 3, "E0111");
    for content in ["", "{}", "not json", "\u{1f}\u{8b}"] {
        let file = place.file("bad-trace", content);
        place.fails(&["import", "trace", file.to_str().unwrap()], 1, "E0113");
    }
    place.fails(&["import", "trace", "absent.json"], 3, "E0113");
    let story = place.file("story.json", history());
    place.fails(&["import", "trace", story.to_str().unwrap(), "--agents", "7"], 2, "E0110");
    assert_eq!(place.run(&["frobnicate"]).status.code(), Some(2));
    assert_eq!(place.run(&["set", &id]).status.code(), Some(2));
    assert_eq!(place.json(&["status"])[0]["tail"], tail, "nothing was written");
}

#[test]
fn errors_are_json_when_asked_for() {
    let place = Place::new();
    let output = place.run(&["ls", "--json"]);
    let error: Value = serde_json::from_str(&texts(&output).1).unwrap();
    assert_eq!(error["error"]["code"], "E0102");
    assert!(error["error"]["remedy"].is_string());
}

#[test]
fn documents_come_from_stdin_and_a_closed_pipe_is_no_error() {
    let place = Place::new();
    let output = with_stdin(&mut place.command(&["add", "notes", "-", "-q"]), "{\"a\": 1}");
    assert!(output.status.success());
    let lines: String = (0..5000).map(|n| format!("{{\"number\": {n}}}\n")).collect();
    let output = with_stdin(&mut place.command(&["import", "-", "--collection", "rows", "--json"]), &lines);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["created"], 5000);

    let mut export = place.command(&["export", "rows"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(export.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let output = export.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(texts(&output).1, "");
}

#[test]
fn what_is_on_the_disk_and_is_not_what_was_written_is_corruption() {
    let place = Place::new();
    place.ok(&["add", "notes", "{}"]);
    std::fs::rename(place.data().join("store"), place.data().join("elsewhere")).unwrap();
    place.fails(&["ls"], 7, "E0106");
}
