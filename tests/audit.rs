//! By which rule each write was accepted: on record, whatever became of the rules since.

use std::fs;
use std::time::{Duration, Instant};

use samod::Repo;
use serde_json::{Value, json};

use super::access::Node;
use super::samod::{dial_to, put, soon};

const RULES: &str = "
match /default/{id} {
  allow read: if request.auth != null;
  allow create: if request.resource.data.owner == request.auth.uid;
  allow update: if request.auth.token.role == 'admin';
  allow update: if resource.data.owner == request.auth.uid
    && request.resource.data.owner == resource.data.owner;
  allow delete: if request.auth.token.role == 'admin';
}
";

/// Everything a line further down, and one more who may write.
const LATER: &str = "
// What cat writes is welcome.
match /default/{id} {
  allow read: if request.auth != null;
  allow create: if request.resource.data.owner == request.auth.uid;
  allow update: if request.auth.uid == 'cat';
  allow update: if resource.data.owner == request.auth.uid;
  allow delete: if request.auth.token.role == 'admin';
}
";

fn rows(node: &Node, words: &[&str]) -> Vec<Value> {
    let text = node.run(&[words, &["--json"]].concat());
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What was accepted: who did what, by which line, under which rules.
fn accepted(node: &Node) -> Vec<(String, String, Value, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let row = |row: &Value| {
        (text(&row["user"]), text(&row["operation"]), row["rule"]["line"].clone(), text(&row["rules_version"]))
    };
    rows(node, &["audit", "ls", "--accepted"]).iter().map(row).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_trail_names_the_rule_of_every_accepted_write_also_after_the_rules_changed() {
    let mut node = Node::start(RULES);
    let token = |user: &str, role: &str| node.token(user, role, "[]");
    let (ann, ben, cat) = (token("ann", "admin"), token("ben", "writer"), token("cat", "writer"));
    let note = node.add(&ben, "default", &json!({ "owner": "ben", "text": "hello" }));
    let path = format!("/v1/collections/default/documents/{note}");
    let patch = |who: &str, value: Value| node.ask(Some(who), "PATCH", &path, &value).0;
    assert_eq!(patch(&ben, json!({ "text": "hello all" })), 200);
    assert_eq!(patch(&ann, json!({ "text": "hello, all" })), 200);
    assert_eq!(patch(&cat, json!({ "text": "mine" })), 403);

    // Over a WebSocket, by a client that knows nothing of tidelog.
    let repo = Repo::build_tokio().load().await;
    let dialler = dial_to(&repo, &format!("ws://{}/sync?access_token={ben}", node.http)).await;
    let id = note.trim_start_matches("automerge:").parse().unwrap();
    let document = soon("the document", repo.find(id)).await.unwrap().expect("it may be read");
    put(&document, "seen", 1);
    let known = document.they_have_our_changes(dialler.connection_id().unwrap());
    soon("the acknowledgement", known).await;

    // Other rules, while everything stands.
    fs::write(node.rules(), LATER).unwrap();
    let began = Instant::now();
    while patch(&cat, json!({ "text": "and cat" })) != 200 {
        assert!(began.elapsed() < Duration::from_secs(30), "{}", node.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    put(&document, "seen", 2);
    let known = document.they_have_our_changes(dialler.connection_id().unwrap());
    soon("the acknowledgement", known).await;
    assert_eq!(node.ask(Some(&ann), "DELETE", &path, &Value::Null).0, 204);
    soon("the end", repo.stop()).await;

    let digest = |text: &str| blake3::hash(text.as_bytes()).to_hex()[..8].to_owned();
    let (first, second) = (digest(RULES), digest(LATER));
    let row = |user: &str, operation: &str, line: u32, version: &String| {
        (user.to_owned(), operation.to_owned(), json!(line), version.clone())
    };
    let expected = [
        // The document's creation, and its first change.
        row("ben", "create", 4, &first),
        row("ben", "create", 4, &first),
        row("ben", "update", 6, &first),
        row("ann", "update", 5, &first),
        row("ben", "update", 6, &first),
        row("cat", "update", 6, &second),
        row("ben", "update", 7, &second),
        row("ann", "delete", 8, &second),
    ];
    assert_eq!(accepted(&node), expected);
    let listed = rows(&node, &["audit", "ls", "--accepted"]);
    // Whichever way the list is come by.
    let (from, last) = (listed[3]["lsn"].to_string(), listed.last().unwrap());
    assert_eq!(rows(&node, &["audit", "ls", "--accepted", "--from", &from]), listed[4..]);
    assert_eq!(rows(&node, &["audit", "ls", "--accepted", "--limit", "1"]), std::slice::from_ref(last));

    // Each with the words of the rules as they were.
    let show = |row: &Value| rows(&node, &["audit", "show", &row["lsn"].to_string()]).remove(0);
    let rule = |line: u32, text: &str| json!({ "line": line, "path": "/default/{id}", "text": text });
    let own = "allow update: if resource.data.owner == request.auth.uid \
        && request.resource.data.owner == resource.data.owner;";
    let over_websocket = show(&listed[4]);
    assert_eq!(over_websocket["rule"], rule(6, own), "{over_websocket}");
    assert_eq!(over_websocket["claims"]["sub"], "ben");
    assert_eq!(over_websocket["rules_version"], json!(first));
    assert_eq!(show(&listed[5])["rule"], rule(6, "allow update: if request.auth.uid == 'cat';"));
    assert_eq!(show(&listed[7])["rule"], rule(8, "allow delete: if request.auth.token.role == 'admin';"));
    let printed = node.run(&["audit", "show", &listed[2]["lsn"].to_string()]);
    assert!(printed.contains(&format!("line 6, /default/{{id}}: {own}")), "{printed}");
    // What was refused is shown with the words of what was asked.
    let refused = rows(&node, &["audit", "ls", "--refused", "--user", "cat", "--limit", "1"]).remove(0);
    let refused = show(&refused);
    assert_eq!(refused["rules"][1], rule(6, own), "{refused}");

    // And the rules themselves, byte by byte, from the data directory of a node that was killed.
    let mut child = node.child.take().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(accepted(&node), expected);
    let kept = rows(&node, &["audit", "rules"]);
    let versions: Vec<_> = kept.iter().map(|row| row["rules_version"].clone()).collect();
    assert_eq!(versions, [json!(first), json!(second)]);
    for (version, text) in [(&first, RULES), (&second, LATER)] {
        let output = node.command(&["audit", "rules", version]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
    }
    assert_eq!(node.command(&["audit", "rules", "00zz"]).output().unwrap().status.code(), Some(3));
    // So that it can be asked what a draft would change of what the rules of then decide.
    let then = node.folder.path().join("then.tidelog");
    fs::write(&then, node.run(&["audit", "rules", &first])).unwrap();
    let then = then.to_str().unwrap();
    assert!(node.run(&["rules", "replay", then, "--rules", then]).contains("0 would be refused, 0 would be allowed"));
    node.run(&["verify", "--deep"]);
}
