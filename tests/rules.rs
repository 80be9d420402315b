//! `tidelog rules`, the real binary: no node, no store, and nothing is written.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

fn run(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidelog"));
    command.arg("--data").arg("/nowhere/at/all").arg("rules").args(words);
    command.env_remove("TIDELOG_LOG").env_remove("RUST_LOG").output().unwrap()
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

fn example(name: &str) -> String {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples").join(name).display().to_string()
}

#[test]
fn rules_are_checked_tried_explained_and_covered_without_a_node() {
    let (rules, cases) = (example("rules.tidelog"), example("rules.cases.json"));
    let (rules, cases) = (rules.as_str(), cases.as_str());
    let good = |words: &[&str]| {
        let output = run(words);
        let (out, err) = texts(&output);
        assert!(output.status.success(), "{words:?}\n{out}\n{err}");
        out
    };
    assert!(good(&["check", rules]).contains("11 allows, 3 functions"), "{}", good(&["check", rules]));
    let tested = good(&["test", rules, cases]);
    assert!(
        tested.contains("ok      a stranger does not") && tested.contains("8 cases are decided as expected"),
        "{tested}"
    );
    let place = format!("{cases}#a stranger does not");
    let explained = good(&["explain", rules, &place]);
    assert!(explained.contains("request.auth.uid in room.data.members  =>  false"), "{explained}");
    let json: Value = serde_json::from_str(&good(&["explain", rules, &place, "--json"])).unwrap();
    assert_eq!(json["allowed"], false);
    let given = good(&["explain", rules, "--case", r#"{"do": "get", "path": "/news/n1"}"#]);
    assert!(given.contains("allowed"), "{given}");
    let covered = good(&["coverage", rules, cases]);
    assert!(covered.contains("never") && covered.contains("signedIn()"), "{covered}");
    for line in good(&["coverage", rules, cases, "--json"]).lines() {
        assert!(serde_json::from_str::<Value>(line).unwrap()["reached"].is_boolean());
    }
}

#[test]
fn what_is_wrong_with_rules_and_cases_is_said_with_a_code() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let fails = |words: &[&str], status: i32, code: &str| {
        let output = run(words);
        let (out, err) = texts(&output);
        assert_eq!(output.status.code(), Some(status), "{words:?}\n{out}\n{err}");
        assert!(err.contains(&format!("error[{code}]: ")) && err.contains("\n  fix  "), "{words:?}\n{err}");
        format!("{out}{err}")
    };
    let (rules, cases) = (example("rules.tidelog"), example("rules.cases.json"));
    let bad = file("bad.tidelog", "match /a/{id} {\n  allow raed;\n}\n");
    let said = fails(&["check", &bad], 2, "E0210");
    assert!(
        said.contains("bad.tidelog:2:9: `raed` is no operation") && said.contains("did you mean `read`?"),
        "{said}"
    );
    fails(&["check", "/nowhere/rules.tidelog"], 3, "E0111");
    fails(&["test", &rules, &file("a.json", "[{")], 2, "E0604");
    let slip = file("b.json", r#"[{"do": "get", "path": "/a/b", "expcet": "deny"}]"#);
    assert!(fails(&["test", &rules, &slip], 2, "E0219").contains("did you mean \"expect\"?"));
    let wrong = file(
        "c.json",
        r#"[{"name": "w", "do": "get", "path": "/messages/m", "before": {"room": "x"}, "expect": "allow"}]"#,
    );
    let said = fails(&["test", &rules, &wrong], 1, "E0218");
    assert!(said.contains("FAILED  w: nobody get /messages/m") && said.contains("=>"), "{said}");
    fails(&["explain", &rules, &format!("{cases}#nothing like it")], 3, "E0219");
    fails(&["coverage", &rules, &cases, "--fail-under", "100"], 1, "E0220");
}
