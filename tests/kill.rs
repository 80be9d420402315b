//! A writer is killed with edits on their way, again and again: everything it was told to be durable is there.
//!
//! The judge is what another process wrote to a pipe as each acknowledgement came, not anything in the store.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use tidelog::{ChangeHash, Commit, Database, DocumentId};

const DIRECTORY: &str = "TIDELOG_KILL_DIRECTORY";
/// Writing threads, and commits each keeps on their way.
const WRITERS: usize = 4;
const IN_FLIGHT: usize = 32;
/// Acknowledgements before a kill: at least so many, and up to as many more.
const ACKNOWLEDGED_MIN: u64 = 1000;

/// The process that is killed. It does nothing unless it is told where.
#[test]
fn child_writer() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let database = Database::open(directory).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let database = database.clone();
            scope.spawn(move || write_forever(&database, writer));
        }
    });
}

/// Never returns: the process is killed, or its pipe is closed.
fn write_forever(database: &Database, writer: usize) {
    let notes = database.collection("notes").unwrap();
    let mut in_flight: VecDeque<(DocumentId, ChangeHash, Commit)> = VecDeque::new();
    let shared = notes.doc_with("shared", json!({ "hits": {} })).unwrap();
    for n in 0u64.. {
        let (own, created) = notes.create(json!({ "text": "", "writer": writer })).unwrap();
        in_flight.push_back((own.id(), created.change().unwrap(), created));
        for edit in 0..200u64 {
            let handle = if edit % 8 == 0 { &shared } else { &own };
            let commit = handle.change(|change| match edit % 8 {
                0 => Ok(change.put(["hits", &format!("{writer} {}", n % 8)], edit)?),
                _ => Ok(change.splice("text", 0, 0, "tide ")?),
            });
            match commit {
                // A put of the same value again changes nothing.
                Ok(commit) => in_flight.extend(commit.change().map(|hash| (handle.id(), hash, commit))),
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
            while in_flight.len() > IN_FLIGHT {
                let Some((id, hash, commit)) = in_flight.pop_front() else { break };
                commit.wait().unwrap();
                // One write a line, so that lines of two threads never mix.
                let line = format!("ack {id} {hash}\n");
                if std::io::stdout().lock().write_all(line.as_bytes()).is_err() {
                    return;
                }
            }
        }
    }
}

/// A small generator: the seed is printed, and a run with it again kills at the same counts.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Runs a writer until it has told of `count` edits, kills it, and gives every edit it told of.
fn killed_after(directory: &Path, count: u64) -> Vec<(DocumentId, ChangeHash)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::child_writer", "--nocapture"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let killed = AtomicBool::new(false);
    let mut acknowledged = Vec::new();
    for line in lines.map_while(Result::ok) {
        let Some((id, hash)) = line.strip_prefix("ack ").and_then(|rest| rest.split_once(' ')) else { continue };
        // The last line may be cut off by the kill.
        if let (Ok(id), Ok(hash)) = (id.parse(), hash.parse()) {
            acknowledged.push((id, hash));
        }
        if acknowledged.len() as u64 == count {
            // With SIGKILL; what is in the pipe already was told before, and counts.
            child.kill().unwrap();
            killed.store(true, Ordering::Relaxed);
        }
    }
    let status = child.wait().unwrap();
    assert!(killed.into_inner(), "the writer ended by itself: {status}");
    acknowledged
}

#[test]
fn what_was_acknowledged_survives_every_kill() {
    let cycles = std::env::var("TIDELOG_KILL_CYCLES").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let seed = std::env::var("TIDELOG_KILL_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0x7ede);
    println!("TIDELOG_KILL_SEED={seed}");
    let mut random = Random(seed);
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("data");
    let mut all: Vec<(DocumentId, ChangeHash)> = Vec::new();
    for cycle in 0..cycles {
        let count = ACKNOWLEDGED_MIN + random.below(ACKNOWLEDGED_MIN);
        all.extend(killed_after(&directory, count));
        let database = Database::open(&directory).unwrap();
        assert!(!database.log_renewed(), "cycle {cycle}: nothing was lost, so the log keeps its name");
        let reader = database.reader();
        // Everything of this cycle, and of all before it.
        let mut graphs = std::collections::HashMap::new();
        for (id, hash) in &all {
            let graph = graphs.entry(*id).or_insert_with(|| reader.graph(*id).unwrap());
            let lsn = graph.lock().unwrap().lsn_of(hash);
            let Some(lsn) = lsn else { panic!("cycle {cycle}: change {hash} of {id} was acknowledged and is gone") };
            assert!(lsn <= reader.tail().lsn);
        }
        // The whole check is quadratic over the cycles, so the deep one is done at the end.
        let deep = cycle + 1 == cycles;
        let found = database.verify(deep, &mut |_, _| {}).unwrap();
        assert!(found.faults.is_empty(), "cycle {cycle}: {:#?}", found.faults);
    }
    println!("{} acknowledged edits survived {cycles} kills", all.len());
}
