//! What the compiler and clippy do not hold: which room may use what, files, markers, names in documents.
//!
//! Each rule is a pure function from a path and a text to what is wrong with it, and is tried on a text that breaks it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The rooms from the ground up, each with what it may import from the crate beside itself. `error` stands beside
/// `engine`: it gathers the errors of the rooms below, and what is above may use it.
const ROOMS: [(&str, &[&str]); 19] = [
    ("mutant", &[]),
    ("file", &[]),
    ("id", &["mutant"]),
    ("limits", &[]),
    ("auth", &["file", "id", "limits"]),
    ("rules", &["id", "limits"]),
    // Of the rules, only what finds the word that was meant.
    ("quota", &["limits", "rules"]),
    ("document", &["id", "limits"]),
    ("log", &["id", "limits"]),
    ("history", &["id", "limits", "document", "log"]),
    ("sync", &["id", "limits", "document", "log", "history"]),
    ("error", &["id", "limits", "document", "log", "history", "sync"]),
    ("engine", &["mutant", "id", "limits", "document", "log", "history", "sync", "error"]),
    ("feed", &["id", "limits", "document", "log", "history", "sync", "error", "engine"]),
    ("query", &["id", "limits", "document", "log", "history", "sync", "error", "engine", "feed"]),
    ("net", &["id", "limits", "document", "log", "history", "sync", "error", "engine"]),
    (
        "access",
        &["id", "limits", "rules", "auth", "document", "log", "history", "sync", "error", "engine", "feed", "query"],
    ),
    (
        "web",
        &[
            "id", "limits", "rules", "quota", "auth", "document", "log", "history", "sync", "error", "engine", "feed",
            "query", "access",
        ],
    ),
    (
        "node",
        &[
            "file", "id", "limits", "rules", "quota", "auth", "document", "log", "history", "sync", "error", "engine",
            "feed", "query", "access", "net", "web",
        ],
    ),
];

/// Foreign crates that are confined, and the files or folders where they may be named.
const FOREIGN: [(&str, &[&str]); 25] = [
    ("automerge", &["src/document/", "src/sync/", "src/lib.rs"]),
    ("fjall", &["src/log/fjall.rs", "src/log/mod.rs"]),
    ("rustix", &["src/log/"]),
    (
        "bincode",
        &[
            "src/log/record.rs",
            "src/log/record/audit.rs",
            "src/log/record/removal.rs",
            "src/log/rows.rs",
            "src/sync/wire.rs",
            "src/sync/wire/",
        ],
    ),
    ("quinn", &["src/net/"]),
    ("rustls", &["src/net/"]),
    ("backon", &["src/net/"]),
    ("futures_core", &["src/feed/"]),
    ("axum", &["src/web/"]),
    ("hyper", &["src/web/"]),
    ("hyper_util", &["src/web/"]),
    ("tokio_tungstenite", &["src/web/"]),
    ("jsonwebtoken", &["src/auth/"]),
    ("ureq", &["src/node/keys.rs"]),
    ("clap", &["src/bin/"]),
    ("indicatif", &["src/bin/"]),
    ("mimalloc", &["src/bin/"]),
    ("comfy_table", &["src/bin/"]),
    ("tracing_subscriber", &["src/bin/"]),
    ("flate2", &["src/document/gate/inflate.rs", "src/node/trace/"]),
    (
        "tokio",
        &[
            "src/auth/",
            "src/access/",
            "src/quota/",
            "src/engine/",
            "src/feed/",
            "src/query/",
            "src/net/",
            "src/web/",
            "src/node/",
            "src/bin/",
        ],
    ),
    ("minicbor", &["src/sync/repo/cbor.rs", "src/sync/repo/wire.rs"]),
    ("regex", &["src/rules/"]),
    // For the tests alone.
    ("cel", &[]),
    ("wincode", &[]),
];

/// What is read at one sitting.
const LINES_MAX: usize = 600;

/// What a promise about bytes is tied to: the page, and the code that writes those bytes.
const CODECS: [(&str, &[&str]); 4] = [
    (
        "docs/log-format.md",
        &["src/log/record.rs", "src/log/record/audit.rs", "src/log/record/removal.rs", "src/log/rows.rs"],
    ),
    (
        "docs/protocol.md",
        &["src/sync/wire.rs", "src/sync/wire/access.rs", "src/sync/wire/ids.rs", "src/history/signature.rs"],
    ),
    ("docs/authentication.md", &["src/auth/own.rs", "src/auth/list.rs"]),
    ("docs/repo-protocol.md", &["src/sync/repo/wire.rs", "src/sync/repo/cbor.rs"]),
];

#[test]
fn imports_point_down() {
    let faults = over_code("src", |path, code| room_of(path).map_or_else(Vec::new, |room| upward_imports(room, code)));
    assert_eq!(faults, [""; 0], "rooms import only from those below; see docs/architecture.md");
}

#[test]
fn foreign_crates_stay_in_their_rooms() {
    let faults = over_code("src", |path, code| {
        let mut faults = strayed_crates(path, code);
        if path.starts_with("src/sync/") && !path.ends_with("tests.rs") {
            faults.extend(beyond_sync(code.split("#[cfg(test)]").next().unwrap_or_default()));
        }
        faults
    });
    assert_eq!(faults, [""; 0], "a foreign crate has one room, so that it can be replaced there");
}

#[test]
fn only_the_gate_calls_automerge_s_parsers() {
    let faults =
        over_code("src", |path, code| parsing_calls(path, code.split("#[cfg(test)]").next().unwrap_or_default()));
    assert_eq!(faults, [""; 0], "bytes pass src/document/gate/ (or src/sync/gate.rs) before automerge sees them");
}

#[test]
fn every_source_file_is_in_a_room() {
    let faults = over_code("src", |path, _| {
        let known = path == "src/lib.rs" || path.starts_with("src/bin/") || room_of(path).is_some();
        if known { Vec::new() } else { vec!["belongs to no room of the table".to_owned()] }
    });
    assert_eq!(faults, [""; 0]);
}

#[test]
fn nothing_is_left_unfinished_and_no_queue_is_unbounded() {
    let mut faults = Vec::new();
    for folder in ["src", "proptests", "tests", "examples", "benches"] {
        faults.extend(over_files(folder, leftovers));
    }
    assert_eq!(faults, [""; 0]);
}

#[test]
fn every_bound_of_a_queue_is_among_the_limits() {
    assert_eq!(over_files("src", bounds_elsewhere), [""; 0]);
}

#[test]
fn files_are_short() {
    let faults = over_files("src", |_, text| {
        let lines = text.lines().count();
        if lines > LINES_MAX { vec![format!("has {lines} lines; look for a seam")] } else { Vec::new() }
    });
    assert_eq!(faults, [""; 0]);
}

#[test]
fn every_test_file_is_a_module() {
    for folder in ["proptests", "tests"] {
        let declared: BTreeSet<String> = modules_in(&read(&root().join(folder).join("main.rs")));
        let mut present = BTreeSet::new();
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let is_module = path.extension().is_some_and(|ending| ending == "rs") && name != "main";
            if is_module || path.join("mod.rs").is_file() {
                present.insert(name);
            }
        }
        assert_eq!(declared, present, "{folder}/main.rs declares exactly the files beside it");
    }
}

#[test]
fn every_test_that_a_document_names_exists_and_runs() {
    let mut named = 0;
    let mut faults = Vec::new();
    for page in markdown() {
        for (file, test) in tests_named_in(&read(&page)) {
            named += 1;
            let path = root().join(&file);
            let text = if path.is_file() { read(&path) } else { String::new() };
            if let Some(fault) = fault_of_test(&text, &test) {
                faults.push(format!("{}: {file}::{test} {fault}", relative(&page)));
            }
        }
    }
    assert_eq!(faults, [""; 0]);
    assert!(named >= 20, "docs/guarantees.md names the tests that hold each promise; {named} were found");
}

#[test]
fn links_in_documents_lead_somewhere() {
    let mut faults = Vec::new();
    for page in markdown() {
        for target in links_in(&read(&page)) {
            if !page.parent().unwrap().join(&target).exists() {
                faults.push(format!("{}: {target} does not exist", relative(&page)));
            }
        }
    }
    assert_eq!(faults, [""; 0]);
}

#[test]
fn a_change_of_a_codec_is_a_change_of_its_page() {
    for (page, files) in CODECS {
        let mut hasher = blake3::Hasher::new();
        for file in files {
            hasher.update(bare_code(&read(&root().join(file))).as_bytes());
        }
        let expected = format!("codec: {}", hasher.finalize().to_hex());
        let text = read(&root().join(page));
        let stated = text.lines().rev().find(|line| !line.is_empty()).unwrap_or_default();
        assert!(
            stated == expected,
            "{} changed: hold {page} against the change (a byte that moved needs a new version), then end the page \
             with the line\n{expected}",
            files.join(" or ")
        );
    }
}

#[test]
fn the_readme_shows_the_example_that_runs() {
    let readme = read(&root().join("README.md"));
    let example = read(&root().join("examples/embed.rs"));
    let code = example.lines().filter(|line| !line.starts_with("//!")).collect::<Vec<_>>().join("\n");
    let shown = format!("```rust\n{}\n```", code.trim());
    assert!(readme.contains(&shown), "README.md shows examples/embed.rs without its first comment:\n{shown}");
}

#[test]
fn the_rules_find_what_breaks_them() {
    assert_eq!(upward_imports("log", "use crate::id::Lsn;\nuse crate::log::Record;"), [""; 0]);
    assert_eq!(upward_imports("log", "use crate::engine::Database;"), ["line 1: imports crate::engine"]);
    assert_eq!(upward_imports("sync", "fn a() {}\nlet x = crate::net::dial();"), ["line 2: imports crate::net"]);
    assert_eq!(upward_imports("log", "use crate::{id::Lsn, net::Link};").len(), 1, "a list cannot be followed");
    assert_eq!(upward_imports("log", "use crate::Database;").len(), 1, "nor a name of the root");

    assert_eq!(strayed_crates("src/log/fjall.rs", "use fjall::Database;"), [""; 0]);
    assert_eq!(strayed_crates("src/engine/core.rs", "use fjall::Database;"), ["line 1: names fjall"]);
    assert_eq!(strayed_crates("src/engine/core.rs", "use super::fjall::X;\nlet my_fjall::y"), [""; 0]);
    assert_eq!(strayed_crates("src/log/append.rs", "tokio::spawn(x)"), ["line 1: names tokio"]);
    assert_eq!(beyond_sync("use automerge::sync::State;\nuse automerge::Automerge;").len(), 1);

    assert_eq!(parsing_calls("src/a.rs", "let doc = Automerge::load(bytes);").len(), 1);
    assert_eq!(parsing_calls("src/document/gate/open.rs", "Automerge::load(bytes)"), [""; 0]);

    assert_eq!(leftovers("src/a.rs", &["to", "do!()"].concat()).len(), 1);
    assert_eq!(leftovers("src/a.rs", &["// FIX", "ME later"].concat()).len(), 1);
    assert_eq!(leftovers("src/a.rs", &["mpsc::unbounded", "_channel()"].concat()).len(), 1);
    assert_eq!(leftovers("src/a.rs", "let todos = mastodon;"), [""; 0]);
    assert_eq!(bounds_elsewhere("src/a.rs", "mpsc::channel(7);\nmpsc::channel(queues::A);").len(), 1);

    assert_eq!(tests_named_in("see `src/a.rs::it_holds`, `b::c`"), [("src/a.rs".into(), "it_holds".into())]);
    assert_eq!(fault_of_test("#[test]\nfn a() {}", "a"), None);
    assert!(fault_of_test("#[test]\n#[ignore]\nfn a() {}", "a").is_some());
    assert!(fault_of_test("fn a() {}", "a").is_some() && fault_of_test("", "a").is_some());
    assert_eq!(links_in("[a](b.md#c) [d](https://e) [f](#g)"), ["b.md"]);
    assert_eq!(bare_code("/// a\nlet b = 1; // c\n\n#[cfg(test)]\nmod tests {}"), "let b = 1; // c\n");
    assert_eq!(code_of("a // crate::b\n//! crate::c\nd"), "a \n\nd\n");
}

/// What `code`, in `room`, imports from a room that is not below it.
fn upward_imports(room: &str, code: &str) -> Vec<String> {
    let below = ROOMS.iter().find(|(name, _)| *name == room).map_or(&[][..], |(_, below)| *below);
    let mut faults = Vec::new();
    for (number, line) in (1..).zip(code.lines()) {
        for (at, _) in line.match_indices("crate::") {
            if line[..at].ends_with(is_word) || line[..at].ends_with('$') {
                continue;
            }
            let target = word_at(&line[at + "crate::".len()..]);
            if target != room && !below.contains(&target) {
                faults.push(format!("line {number}: imports crate::{target}"));
            }
        }
    }
    faults
}

/// Which confined crates `code` names although `path` is not their place.
fn strayed_crates(path: &str, code: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, places) in FOREIGN {
        if places.iter().any(|place| path.starts_with(place)) {
            continue;
        }
        let prefix = format!("{name}::");
        for (number, line) in (1..).zip(code.lines()) {
            let named = line.match_indices(&prefix).any(|(at, _)| is_outermost(&line[..at]));
            let used = line.trim() == format!("use {name};") || line.trim() == format!("pub use {name};");
            if named || used {
                faults.push(format!("line {number}: names {name}"));
            }
        }
    }
    faults
}

/// What the room `sync` uses of automerge beside its sync messages and what they are made of.
fn beyond_sync(code: &str) -> Vec<String> {
    const ALLOWED: [&str; 2] = ["sync", "ChangeHash"];
    let mut faults = Vec::new();
    for (number, line) in (1..).zip(code.lines()) {
        for (at, _) in line.match_indices("automerge::") {
            let target = word_at(&line[at + "automerge::".len()..]);
            if is_outermost(&line[..at]) && !ALLOWED.contains(&target) {
                faults.push(format!("line {number}: uses automerge::{target}"));
            }
        }
    }
    faults
}

/// Calls of functions with which automerge reads bytes, elsewhere than in the gate.
fn parsing_calls(path: &str, code: &str) -> Vec<String> {
    const CALLS: [(&str, &str); 11] = [
        ("Automerge::load", "src/document/gate/open.rs"),
        ("AutoCommit::load", "src/document/gate/open.rs"),
        ("automerge::Change::try_from", "src/document/gate/open.rs"),
        ("automerge::Change::from_bytes", "src/document/gate/open.rs"),
        (".load_incremental", "src/document/gate/open.rs"),
        ("Bundle::try_from", "src/document/gate/open.rs"),
        ("BloomFilter::try_from", "src/sync/gate.rs"),
        ("Message::decode", "src/sync/gate.rs"),
        ("State::decode", "src/sync/gate.rs"),
        (".receive_sync_message", "src/sync/gate.rs"),
        ("ExpandedChange", "src/document/gate/open.rs"),
    ];
    let mut faults = Vec::new();
    for (number, line) in (1..).zip(code.lines()) {
        let called =
            CALLS.iter().filter(|(call, place)| line.contains(call) && path != *place && !path.ends_with("tests.rs"));
        faults.extend(called.map(|(call, _)| format!("line {number}: calls {call}")));
    }
    faults
}

/// Queues whose bound is not one of `limits.rs`.
fn bounds_elsewhere(_path: &str, text: &str) -> Vec<String> {
    let code = bare_code(text);
    let is_named =
        |bound: &str| ["queues::", "limits.", "self.limits.", "items"].iter().any(|name| bound.starts_with(name));
    let mut faults = Vec::new();
    for call in ["mpsc::channel(", "sync_channel(", "broadcast::channel("] {
        for (at, _) in code.match_indices(call) {
            let bound = &code[at + call.len()..];
            if !is_named(bound) {
                let bound = bound.split(')').next().unwrap_or_default();
                faults.push(format!("a queue's bound is `{bound}`; name it in src/limits.rs"));
            }
        }
    }
    faults
}

/// Markers of unfinished work and queues without a bound.
fn leftovers(_path: &str, text: &str) -> Vec<String> {
    // Put together here, so that this file does not contain them.
    let words = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["XX", "X"].concat()];
    let calls = [["to", "do!"], ["unimple", "mented!"], ["unbounded", "_channel"]].map(|halves| halves.concat());
    let mut faults = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let word = words.iter().find(|word| {
            line.match_indices(word.as_str())
                .any(|(at, _)| !line[..at].ends_with(is_word) && !line[at + word.len()..].starts_with(is_word))
        });
        let call = calls.iter().find(|call| line.contains(call.as_str()));
        faults.extend(word.or(call).map(|found| format!("line {number}: {found}")));
    }
    faults
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether a path that follows `before` begins there: neither within a word nor within another path.
fn is_outermost(before: &str) -> bool {
    !before.ends_with(is_word) && (!before.ends_with(':') || before.ends_with(" ::"))
}

fn word_at(text: &str) -> &str {
    text.split(|c| !is_word(c)).next().unwrap_or_default()
}

/// The room that a file belongs to.
fn room_of(path: &str) -> Option<&'static str> {
    let name = path.strip_prefix("src/")?.split('/').next()?;
    let name = name.strip_suffix(".rs").unwrap_or(name);
    ROOMS.iter().map(|(room, _)| *room).find(|room| *room == name)
}

/// The text without its comments, line for line.
fn code_of(text: &str) -> String {
    text.lines()
        .flat_map(|line| {
            // A URL's slashes are no comment.
            let end =
                line.match_indices("//").find(|(at, _)| !line[..*at].ends_with(':')).map_or(line.len(), |(at, _)| at);
            [&line[..end], "\n"]
        })
        .collect()
}

/// The text without comment lines, empty lines and tests.
fn bare_code(text: &str) -> String {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let kept = code.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//"));
    kept.flat_map(|line| [line, "\n"]).collect()
}

fn modules_in(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';')).map(str::to_owned).collect()
}

/// Every `file.rs::test` in backticks.
fn tests_named_in(text: &str) -> Vec<(String, String)> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted
        .filter_map(|name| name.split_once(".rs::"))
        .map(|(file, test)| (format!("{file}.rs"), test.to_owned()))
        .collect()
}

/// Why `test` in a file is no test that runs, if it is none.
fn fault_of_test(text: &str, test: &str) -> Option<&'static str> {
    let Some(at) = text.find(&format!("fn {test}(")) else { return Some("does not exist") };
    // Its attributes are the lines right above it.
    let before = text[..at].trim_end().trim_end_matches("async").trim_end();
    let above = before.lines().rev().map(str::trim).take_while(|line| line.starts_with(['#', '/']));
    let attributes: Vec<&str> = above.filter(|line| line.starts_with('#')).collect();
    match attributes.iter().any(|line| line.starts_with("#[test") || line.starts_with("#[tokio::test")) {
        false => Some("is not marked as a test"),
        true if attributes.iter().any(|line| line.starts_with("#[ignore")) => Some("is ignored"),
        true => None,
    }
}

/// Every link of a page to a file.
fn links_in(text: &str) -> Vec<String> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets
        .map(|target| target.split('#').next().unwrap_or_default())
        .filter(|target| !target.is_empty() && !target.contains("://"))
        .map(str::to_owned)
        .collect()
}

/// `rule` over every Rust file in `folder`, its comments left out.
fn over_code(folder: &str, rule: impl Fn(&str, &str) -> Vec<String>) -> Vec<String> {
    over_files(folder, |path, text| rule(path, &code_of(text)))
}

/// `rule` over every Rust file in `folder`; what it finds, each with its file.
fn over_files(folder: &str, rule: impl Fn(&str, &str) -> Vec<String>) -> Vec<String> {
    let mut faults = Vec::new();
    for path in files_in(&root().join(folder), "rs") {
        let name = relative(&path);
        faults.extend(rule(&name, &read(&path)).into_iter().map(|fault| format!("{name}: {fault}")));
    }
    faults
}

fn markdown() -> Vec<PathBuf> {
    let mut pages = files_in(&root().join("docs"), "md");
    pages.extend(["README.md", "CHANGELOG.md"].map(|page| root().join(page)));
    pages
}

fn files_in(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return found };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_in(&path, ending));
        } else if path.extension().is_some_and(|its| its == ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
