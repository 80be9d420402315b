//! Stock clients of automerge-repo, of both its generations, and a browser with the demonstration page, against the
//! real server. The scripts in `tests/js/` play them, each in a process of its own; here is what only a server's owner
//! can do: start it, kill it, look at its memory.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tidelog::node::trace::{Trace, traces_folder};

const BINARY: &str = env!("CARGO_BIN_EXE_tidelog");
pub(super) const CHROMIUM: &str = "/usr/bin/chromium";
/// The longest that any script may take. Each wait inside one is shorter and says what it waited for.
const SCRIPT_TIME: Duration = Duration::from_secs(180);
/// The first client's generation and the others': `2` is 2.5.6, and `1` is 1.2.1.
const PAIRS: [&str; 3] = ["2,2", "1,2", "2,1"];

/// A folder with a data directory, and a node on it.
struct Server {
    folder: TempDir,
    node: Option<Child>,
    /// Where it listens for HTTP; the same after every start, as for a server with a name.
    http: String,
}

impl Server {
    fn start() -> Self {
        let mut server = Self { folder: tempfile::tempdir().unwrap(), node: None, http: "127.0.0.1:0".into() };
        server.start_again();
        server
    }

    fn start_again(&mut self) {
        let mut command = self.command(&["serve", "--listen", "127.0.0.1:0", "--http", &self.http, "--json"]);
        let log = File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let mut node = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(node.stdout.take().unwrap()).read_line(&mut line).unwrap();
        self.node = Some(node);
        let facts: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}{}", self.log()));
        facts["http"].as_str().unwrap().clone_into(&mut self.http);
    }

    /// Ends it: with `-KILL` at once, with `-TERM` in order.
    fn end(&mut self, signal: &str) {
        let mut node = self.node.take().unwrap();
        let killed = Command::new("kill").args([signal, &node.id().to_string()]).status().unwrap();
        assert!(killed.success());
        let status = node.wait().unwrap();
        assert!(signal == "-KILL" || status.success(), "{status}\n{}", self.log());
    }

    fn sync(&self) -> String {
        format!("ws://{}/sync", self.http)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.arg("--data").arg(self.folder.path().join("data")).args(words).stdin(Stdio::null());
        command.env_remove("TIDELOG_LOG").env_remove("RUST_LOG").env_remove("TIDELOG_HTTP");
        command
    }

    /// Runs a command that must succeed and returns its output.
    fn run(&self, words: &[&str]) -> String {
        let output = self.command(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// The memory that it has now and the most that it had, in KiB.
    fn memory(&self) -> Value {
        let status = fs::read_to_string(format!("/proc/{}/status", self.node.as_ref().unwrap().id())).unwrap();
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        json!({ "now": of("VmRSS:"), "highest": of("VmHWM:") })
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Does what a script asked for.
    fn answer(&mut self, question: &Value) -> Value {
        match question.as_str() {
            Some("memory") => return self.memory(),
            Some("kill the server") => self.end("-KILL"),
            Some("start the server") => self.start_again(),
            Some("kill and start") => {
                self.end("-KILL");
                self.start_again();
            }
            Some("stop and start") => {
                self.end("-TERM");
                self.start_again();
            }
            Some(_) => panic!("nobody knows how to {question}"),
            None => {
                let words: Vec<&str> = question.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
                return json!({ "lines": self.run(&words).lines().collect::<Vec<_>>() });
            }
        }
        json!({ "done": true })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut node) = self.node.take() {
            node.kill().unwrap();
            node.wait().unwrap();
        }
    }
}

/// A script that runs; dropped, it ends.
struct Script {
    child: Child,
    lines: Receiver<Value>,
    errors: PathBuf,
}

impl Script {
    fn start(folder: &Path, words: &[&str]) -> Self {
        let errors = folder.join("script");
        let mut child = Command::new("node")
            .arg(scripts().join(words[0]))
            .args(&words[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&errors).unwrap())
            .spawn()
            .unwrap();
        let lines = listen(child.stdout.take().unwrap());
        Self { child, lines, errors }
    }

    fn tell(&mut self, answer: &Value) {
        writeln!(self.child.stdin.as_ref().unwrap(), "{answer}").unwrap();
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }
}

/// What a script says, line by line. The packages print to the same place, and what is no message is passed over.
fn listen(output: ChildStdout) -> Receiver<Value> {
    let (sender, lines) = sync_channel(64);
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if let Ok(Value::Object(message)) = serde_json::from_str(&line)
                && sender.send(Value::Object(message)).is_err()
            {
                return;
            }
        }
    });
    lines
}

/// Runs a script to its end, and does what it asks for.
fn play(server: &mut Server, words: &[&str]) {
    let folder = server.folder.path().to_owned();
    let log = || fs::read_to_string(folder.join("log")).unwrap_or_default();
    play_with(words, &folder, &log, |question| server.answer(question));
}

/// Runs a script to its end; `answer` does what it asks for, and `log` is what its server says.
pub(super) fn play_with(
    words: &[&str],
    folder: &Path,
    log: &dyn Fn() -> String,
    mut answer: impl FnMut(&Value) -> Value,
) {
    let begun = Instant::now();
    let mut script = Script::start(folder, words);
    loop {
        let left = SCRIPT_TIME.saturating_sub(begun.elapsed());
        let message = script.lines.recv_timeout(left).unwrap_or_else(|error| {
            let errors = fs::read_to_string(&script.errors).unwrap_or_default();
            panic!("{words:?}: {error}\n{errors}\n{}", log())
        });
        if let Some(question) = message.get("ask") {
            let answer = answer(question);
            script.tell(&answer);
        } else if message.get("passed").is_some() {
            println!("{words:?}: {} ms", begun.elapsed().as_millis());
            return;
        } else if let Some(why) = message["why"].as_str() {
            let log = log();
            panic!("{words:?}: {why}\n{}", &log[log.len().saturating_sub(4000)..]);
        } else {
            println!("{message}");
        }
    }
}

/// Plays a scenario with each of these pairs of generations, one after the other, on one server.
fn scenario(name: &str, pairs: &[&str]) {
    if !node_is_there() {
        return;
    }
    let mut server = Server::start();
    for pair in pairs {
        play_scenario(&mut server, name, pair, &[]);
    }
}

fn play_scenario(server: &mut Server, name: &str, pair: &str, more: &[&str]) {
    let clients = tempfile::tempdir().unwrap();
    let address = server.sync();
    let words = ["scenarios.mjs", name, pair, &address, clients.path().to_str().unwrap()];
    play(server, &[&words, more].concat());
}

fn scripts() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/js"))
}

fn demo() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo"))
}

/// Whether there is a node new enough, with the packages. `.ci/test` installs both where it can.
pub(super) fn node_is_there() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    let folders = || [scripts().to_owned(), scripts().join("v1"), demo().to_owned()];
    let there = *THERE.get_or_init(|| has_node_with(&folders().each_ref().map(PathBuf::as_path)));
    said(there)
}

/// The same for the packages of other folders.
pub(super) fn node_is_there_with(folders: &[&Path]) -> bool {
    said(has_node_with(folders))
}

fn has_node_with(folders: &[&Path]) -> bool {
    let version = Command::new("node").arg("--version").output();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let major = version.trim_start_matches('v').split('.').next().and_then(|text| text.parse().ok());
    major.is_some_and(|major: u32| major >= 20)
        && folders.iter().all(|folder| folder.join("node_modules/.package-lock.json").is_file())
}

fn said(there: bool) -> bool {
    if !there {
        println!("skipped (node absent)");
    }
    there
}

#[test]
fn clients_of_both_generations_make_find_and_edit_a_document() {
    scenario("edits", &["2,2", "1,2", "2,1", "1,1"]);
}

#[test]
fn clients_that_edited_apart_converge_when_they_come_back() {
    scenario("offline", &PAIRS);
}

#[test]
fn a_document_that_nobody_has_is_unavailable_and_appears_to_everybody_who_asked() {
    scenario("unavailable", &PAIRS);
}

#[test]
fn ephemeral_messages_reach_whoever_has_the_document_open_and_nobody_else() {
    scenario("ephemeral", &PAIRS);
    scenario("presence", &["2,2"]);
}

#[test]
fn what_a_client_was_told_is_saved_survives_kills() {
    scenario("saved", &["2,1", "1,2"]);
}

#[test]
fn the_store_has_one_name_over_kills_and_starts() {
    scenario("storage", &["2,1"]);
}

#[test]
fn of_two_clients_with_one_name_the_newer_has_it() {
    scenario("twice", &PAIRS);
}

#[test]
fn a_client_hears_what_another_client_s_store_has() {
    // A reader of the first generation hears the right heads, but in the words of the second.
    scenario("gossip", &PAIRS);
}

#[test]
fn a_path_of_one_collection_serves_no_other() {
    scenario("collections", &["2,2"]);
}

#[test]
fn the_command_line_and_clients_edit_one_document() {
    scenario("command", &["2,2", "1,2"]);
}

#[test]
fn a_folder_that_a_stock_store_wrote_is_taken_over() {
    scenario("takeover", &["2,2", "1,2", "2,1"]);
}

#[test]
fn a_client_pulls_a_long_history_from_nothing() {
    if !node_is_there() {
        return;
    }
    let Some(folder) = traces_folder().expect("the traces' folder") else {
        println!("skipped: traces absent");
        return;
    };
    let path = folder.join("sequential/rustcode.json.gz");
    let mut server = Server::start();
    let report: Value =
        serde_json::from_str(&server.run(&["import", "trace", path.to_str().unwrap(), "--json"])).unwrap();
    let length = Trace::read(&path).unwrap().end_content.chars().count().to_string();
    for pair in ["2,2", "1,2"] {
        play_scenario(&mut server, "history", pair, &[report["id"].as_str().unwrap(), &length]);
    }
}

#[test]
fn hostile_sockets_are_turned_away_and_nobody_else_notices() {
    if !node_is_there() {
        return;
    }
    let mut server = Server::start();
    let address = server.sync();
    play(&mut server, &["hostile.mjs", &address]);
}

#[test]
fn two_windows_of_the_demonstration_converge_in_a_browser() {
    if !node_is_there() {
        return;
    }
    if !Path::new(CHROMIUM).exists() {
        println!("skipped (chromium absent)");
        return;
    }
    let mut server = Server::start();
    let address = server.http.clone();
    play(&mut server, &["demo.mjs", CHROMIUM, &address]);
}

#[test]
fn the_demonstration_is_what_its_sources_build() {
    if !node_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let built = folder.path().join("dist");
    let output = Command::new("node").arg(demo().join("build.mjs")).arg(&built).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let files = |folder: &Path| {
        let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    };
    let (ours, theirs) = (files(&demo().join("dist")), files(&built));
    assert_eq!(ours.len(), theirs.len(), "{theirs:?}");
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours.file_name(), theirs.file_name());
        let same = fs::read(ours).unwrap() == fs::read(theirs).unwrap();
        assert!(same, "{} differs: run `npm run build` in examples/demo", ours.display());
    }
}
