//! A node with clients is killed, again and again, half of the times inside a call that writes or syncs. What it has
//! shown to another client it had on its disk before.
//!
//! One client writes, another listens; they meet only through the node. So the judge is what the second one holds: the
//! node showed it, and shows nothing that it has not acknowledged.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use tidelog::history::EntryKind;
use tidelog::log::MemoryStorage;
use tidelog::net::{AllowList, Endpoint, Identity, LinkOptions, Links, Ticket, UnknownKeys};
use tidelog::{ChangeHash, Database, DocumentId, Limits, Lsn};

use crate::store::{Random, number};
use crate::trace::strace_works;

/// Changes that the second client must have been shown before a kill.
const SHOWN_MIN: u64 = 1000;
/// Changes that must be on their way at the kill.
const IN_FLIGHT_MIN: u64 = 50;
/// The writer waits when so many are.
const IN_FLIGHT_MAX: u64 = 1500;
/// Where a node is killed: in the write of the journal, its sync, and the write of the high-water mark.
const POINTS: [&str; 3] = ["write", "fdatasync", "pwrite64"];

/// A client in this process.
struct Client {
    database: Database,
    links: Links,
}

impl Client {
    fn start() -> Self {
        let identity = Identity::generate().unwrap();
        let database = Database::on(MemoryStorage::new()).node(identity.node()).open().unwrap();
        let endpoint = Endpoint::bind(identity, "127.0.0.1:0".parse().unwrap(), &Limits::DEFAULT).unwrap();
        let allow = Arc::new(AllowList::new(UnknownKeys::Refuse));
        let links = Links::start(database.clone(), endpoint, allow, LinkOptions::default());
        Self { database, links }
    }

    fn dial(&self, ticket: &Ticket) {
        self.links.drop_peer(ticket.node());
        self.links.allow_list().allow(ticket.node(), tidelog::net::Role::Node);
        self.links.dial(ticket.clone());
    }

    /// The changes in its log after `from`, which moves behind them.
    fn changes(&self, from: &mut Lsn) -> Vec<(DocumentId, ChangeHash)> {
        let entries = self.database.reader().read_log(*from, usize::MAX, usize::MAX).unwrap();
        *from = entries.last().map_or(*from, |entry| entry.lsn);
        entries
            .into_iter()
            .filter_map(|entry| match entry.kind {
                EntryKind::Change { document, hash, .. } => Some((document, hash)),
                _ => None,
            })
            .collect()
    }
}

/// A node in a process of its own.
struct Server {
    child: Child,
    ticket: Ticket,
}

impl Server {
    fn start(data: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tidelog"))
            .arg("--data")
            .arg(data)
            .args(["serve", "--listen", "127.0.0.1:0", "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let facts: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        Self { child, ticket: facts["ticket"].as_str().unwrap().parse().unwrap() }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Kills it at the `n`th call of `point` from now on. Whether that could be done.
    fn kill_in(mut self, point: &str, n: u64) -> bool {
        let inject = format!("inject={point}:signal=SIGKILL:when={n}");
        let pid = self.child.id().to_string();
        let options = ["-f", "-q", "-o", "/dev/null", "-e", &format!("trace={point}"), "-e", &inject, "-p", &pid];
        let mut strace = Command::new("strace").args(options).stderr(Stdio::null()).spawn().unwrap();
        // It ends with the process that it watches; or at once, if it may not watch.
        strace.wait().unwrap();
        let killed = self.child.try_wait().unwrap().is_some();
        self.kill_if_alive();
        killed
    }

    fn kill_if_alive(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }
}

/// Writes until it is told to stop; never more than so many changes ahead of what was shown.
fn write(database: &Database, written: &AtomicU64, shown: &AtomicU64, stop: &AtomicBool) {
    let notes = database.collection("notes").unwrap();
    let mut documents = Vec::new();
    for n in 0u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        if written.load(Ordering::Relaxed) >= shown.load(Ordering::Relaxed) + IN_FLIGHT_MAX {
            std::thread::yield_now();
            continue;
        }
        if documents.len() < 16 || n % 200 == 0 {
            let (handle, commit) = notes.create(json!({ "text": "", "n": n })).unwrap();
            commit.wait().unwrap();
            documents.push(handle);
        } else {
            let handle = &documents[n as usize % documents.len()];
            match handle.change(|edit| Ok(edit.splice("text", 0, 0, "tide ")?)) {
                Ok(commit) if n % 32 == 0 => drop(commit.wait().unwrap()),
                Ok(_) => {}
                Err(error) => {
                    assert!(error.is_retryable(), "{error}");
                    continue;
                }
            }
        }
        written.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn what_a_node_has_shown_to_a_client_survives_every_kill() {
    let cycles = number("TIDELOG_NODE_KILL_CYCLES", 15);
    let seed = number("TIDELOG_NODE_KILL_SEED", 0x9111);
    println!("TIDELOG_NODE_KILL_SEED={seed}");
    let inside = strace_works();
    if !inside {
        println!("skipped kills inside calls (strace absent)");
    }
    let mut random = Random(seed);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _entered = runtime.enter();
    let (writer, listener) = (Client::start(), Client::start());
    let (written, shown, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let (mut all, mut from, mut in_calls, mut in_flight) = (Vec::new(), Lsn::ZERO, 0, 0);
    std::thread::scope(|scope| {
        // A failed assertion must end the writer too, or nothing ends.
        let _stop = StopWriting(&stop);
        scope.spawn(|| write(&writer.database, &written, &shown, &stop));
        for cycle in 0..cycles {
            let server = Server::start(&data);
            writer.dial(&server.ticket);
            listener.dial(&server.ticket);
            let target = all.len() as u64 + SHOWN_MIN + random.below(SHOWN_MIN / 2);
            in_flight += runtime.block_on(wait_until_shown(&listener, &mut from, &mut all, target, &shown, &written));
            let point = POINTS[(cycle / 2 % 3) as usize];
            if inside && cycle % 2 == 1 {
                in_calls += u64::from(server.kill_in(point, 1 + random.below(4)));
            } else {
                server.kill();
            }
            all.extend(listener.changes(&mut from));
            shown.store(all.len() as u64, Ordering::Relaxed);
            check(&data, &all, cycle, cycle + 1 == cycles);
        }
        // Alive once more, everybody gets everything.
        stop.store(true, Ordering::Relaxed);
        let server = Server::start(&data);
        writer.dial(&server.ticket);
        listener.dial(&server.ticket);
        runtime.block_on(converged(&writer.database, &listener.database));
        server.kill();
    });
    let on_their_way = in_flight / cycles.max(1);
    println!(
        "{} changes shown and none lost in {cycles} kills, {in_calls} of them inside a call, about {on_their_way} on their way",
        all.len()
    );
    assert!(!inside || in_calls * 3 >= cycles, "{in_calls} of {cycles} kills inside a call");
}

struct StopWriting<'a>(&'a AtomicBool);

impl Drop for StopWriting<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

async fn wait_until_shown(
    listener: &Client,
    from: &mut Lsn,
    all: &mut Vec<(DocumentId, ChangeHash)>,
    target: u64,
    shown: &AtomicU64,
    written: &AtomicU64,
) -> u64 {
    let mut tail = listener.database.tail();
    let reached = async {
        loop {
            tail.borrow_and_update();
            all.extend(listener.changes(from));
            shown.store(all.len() as u64, Ordering::Relaxed);
            let in_flight = written.load(Ordering::Relaxed).saturating_sub(all.len() as u64);
            if all.len() as u64 >= target && in_flight >= IN_FLIGHT_MIN {
                return in_flight;
            }
            tail.changed().await.unwrap();
        }
    };
    let reached = tokio::time::timeout(Duration::from_secs(60), reached).await;
    reached.unwrap_or_else(|_| panic!("{} of {target} changes shown: {:?}", all.len(), listener.links.status()))
}

/// Everything that was shown is in the node's store.
fn check(data: &Path, all: &[(DocumentId, ChangeHash)], cycle: u64, deep: bool) {
    let database = Database::builder(data).create(false).open().unwrap();
    assert!(!database.log_renewed(), "cycle {cycle}: nothing was lost, so the log keeps its name");
    let mut graphs = HashMap::new();
    for (id, hash) in all {
        let graph = graphs.entry(*id).or_insert_with(|| database.reader().graph(*id).unwrap());
        let found = graph.lock().unwrap().lsn_of(hash).is_some();
        assert!(found, "cycle {cycle}: change {hash} of {id} was shown and is gone");
    }
    let found = database.verify(deep, &mut |_, _| {}).unwrap();
    assert!(found.faults.is_empty(), "cycle {cycle}: {:#?}", found.faults);
}

async fn converged(a: &Database, b: &Database) {
    let (mut tail_a, mut tail_b) = (a.tail(), b.tail());
    let equal = async {
        loop {
            let all = |database: &Database| database.reader().inventory(None, usize::MAX).unwrap();
            if all(a) == all(b) {
                return;
            }
            tokio::select! {
                changed = tail_a.changed() => changed.unwrap(),
                changed = tail_b.changed() => changed.unwrap(),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), equal).await.expect("not converged");
}
