//! Tokens on the command line: of a node that runs, and of a data directory on which none does.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tempfile::TempDir;
use tidelog::auth::{Authority, AuthorityOptions};

const BINARY: &str = env!("CARGO_BIN_EXE_tidelog");

fn run(data: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    command.arg("--data").arg(data).args(words).stdin(Stdio::null());
    command.env_remove("TIDELOG_LOG").env_remove("RUST_LOG").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs a command that must succeed; what it prints, and what it says beside that.
fn ok(data: &Path, words: &[&str]) -> (String, String) {
    let output = run(data, words);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{words:?}: {:?}\n{out}\n{err}", output.status);
    (out.trim_end().to_owned(), err)
}

fn rows(data: &Path, words: &[&str]) -> Vec<Value> {
    let (out, _) = ok(data, &[words, &["--json"]].concat());
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn fails(data: &Path, words: &[&str], status: i32, code: &str) -> String {
    let output = run(data, words);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{words:?}\n{err}");
    assert!(err.starts_with(&format!("error[{code}]: ")) && err.contains("\n  fix  "), "{words:?}\n{err}");
    err
}

/// A node that runs until this is dropped.
struct Node(Child);

impl Node {
    fn start(data: &Path) -> Self {
        let mut command = Command::new(BINARY);
        command.arg("--data").arg(data).args(["serve", "--listen", "127.0.0.1:0", "--json"]).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("ticket"), "{line}");
        Self(child)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn place() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    ok(&data, &["add", "notes", "{}"]);
    (folder, data)
}

/// Whether the files in the data directory let the token in. It reads them as they are.
fn accepted(data: &Path, token: &str) -> bool {
    let status = &rows(data, &["status"])[0];
    let node = status["node"].as_str().unwrap().parse().unwrap();
    let options = AuthorityOptions { directory: data.to_owned(), node, issuers: Vec::new() };
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    Authority::open(options).unwrap().verify(token, now_ms).is_ok()
}

fn every_token_command(data: &Path) {
    let (token, narration) = ok(data, &["token", "new", "--user", "ada", "-q"]);
    assert_eq!(narration, "");
    assert_eq!(token.split('.').count(), 3);
    assert!(accepted(data, &token));
    let (shown, narration) = ok(data, &["token", "new", "--user", "bob", "--role", "editor", "--ttl", "12h"]);
    assert_eq!(shown.lines().count(), 1, "the token alone, to be piped on");
    assert!(narration.contains("Authorization: Bearer") && narration.contains("tidelog token revoke"), "{narration}");
    assert!(!narration.contains(&shown));
    let row = &rows(
        data,
        &["token", "new", "--user", "eve", "--role", "editor", "--claim", "rooms=[1]", "--claim", "team=red"],
    )[0];
    assert_eq!((&row["user"], &row["role"], &row["revoked_ms"]), (&json!("eve"), &json!("editor"), &Value::Null));
    let eve = row["token"].as_str().unwrap().to_owned();
    let claims = data_encoding::BASE64URL_NOPAD.decode(eve.split('.').nth(1).unwrap().as_bytes()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!((&claims["rooms"], &claims["team"]), (&json!([1]), &json!("red")));

    let listed = rows(data, &["token", "ls"]);
    assert!(listed.iter().all(|row| row.get("token").is_none()), "a token is shown once");
    let users: Vec<_> = listed.iter().rev().take(3).map(|row| row["user"].as_str().unwrap()).collect();
    assert_eq!(users, ["eve", "bob", "ada"]);
    let half_a_day = listed[listed.len() - 2]["expires_ms"].as_u64().unwrap()
        - listed[listed.len() - 2]["issued_ms"].as_u64().unwrap();
    assert!((43_200_000..43_201_000).contains(&half_a_day), "{half_a_day}");
    assert!(ok(data, &["token", "ls"]).0.contains("EXPIRES"));

    let id = listed[listed.len() - 3]["id"].as_str().unwrap();
    ok(data, &["token", "revoke", id]);
    assert!(!accepted(data, &token) && accepted(data, &eve));
    assert_eq!(rows(data, &["token", "revoke", "--role", "editor"])[0]["tokens"], 2);
    assert!(!accepted(data, &eve));
    let (again, _) = ok(data, &["token", "new", "--user", "ada", "-q"]);
    assert!(accepted(data, &again));
    assert_eq!(rows(data, &["token", "revoke", "--user", "ada"])[0]["tokens"], 1);
    assert!(!accepted(data, &again));

    fails(data, &["token", "revoke", &"0".repeat(32)], 3, "E0216");
    fails(data, &["token", "new", "--user", "a#b"], 2, "E0215");
    fails(data, &["token", "new", "--user", "ada", "--ttl", "401d"], 2, "E0215");
    fails(data, &["token", "new", "--user", "ada", "--claim", "sub=root"], 2, "E0215");
    fails(data, &["token", "new", "--user", "ada", "--claim", "nonsense"], 2, "E0110");
    for words in [&["token", "revoke"][..], &["token", "new"], &["token", "new", "--user", "a", "--ttl", "soon"]] {
        assert_eq!(run(data, words).status.code(), Some(2), "{words:?}");
    }
    assert_eq!(run(data, &["token", "revoke", id, "--user", "ada"]).status.code(), Some(2));
    for file in ["token.key", "tokens.json"] {
        let path = data.join(file);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{file}");
        let content = std::fs::read_to_string(path).unwrap();
        assert!([&token, &eve, &again].iter().all(|token| !content.contains(token.rsplit('.').next().unwrap())));
    }
}

#[test]
fn tokens_are_issued_listed_and_revoked_with_and_without_a_node() {
    let (_folder, data) = place();
    every_token_command(&data);
    let node = Node::start(&data);
    every_token_command(&data);
    drop(node);
    assert_eq!(rows(&data, &["token", "ls"]).len(), 8);
}

#[test]
fn commands_that_issue_at_once_lose_nothing() {
    let (_folder, data) = place();
    let node = Node::start(&data);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let data = &data;
            scope.spawn(move || ok(data, &["token", "new", "--user", &format!("user{thread}"), "-q"]));
        }
    });
    drop(node);
    let mut users: Vec<_> = rows(&data, &["token", "ls"]).iter().map(|row| row["user"].to_string()).collect();
    users.sort();
    assert_eq!(users, (0..8).map(|thread| format!("\"user{thread}\"")).collect::<Vec<_>>());
}

#[test]
fn a_data_directory_without_its_list_of_tokens_still_serves_documents() {
    let (_folder, data) = place();
    ok(&data, &["token", "new", "--user", "ada", "-q"]);
    std::fs::remove_file(data.join("tokens.json")).unwrap();
    let err = fails(&data, &["token", "ls"], 7, "E0212");
    assert!(err.contains("tokens.json") && err.contains("token.key"), "{err}");
    fails(&data, &["token", "new", "--user", "ada"], 7, "E0212");
    ok(&data, &["ls"]);
    std::fs::set_permissions(data.join("token.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(data.join("tokens.json"), "{}").unwrap();
    fails(&data, &["token", "ls"], 7, "E0212");
    std::fs::remove_file(data.join("tokens.json")).unwrap();
    assert!(fails(&data, &["token", "ls"], 4, "E0211").contains("chmod 600"));
    std::fs::remove_file(data.join("token.key")).unwrap();
    assert!(rows(&data, &["token", "ls"]).is_empty());
}
