//! Synchronisation between two databases on one machine, over QUIC on loopback: a large document to an empty peer, and
//! two nodes with ten thousand documents that meet again.
//!
//! Bytes of a reconnect are counted twice: frames with their length prefixes, between two sessions without a network;
//! and the payload of UDP both ways with everything QUIC and TLS add, handshake included.
#![allow(clippy::unwrap_used, reason = "a measurement that fails shall stop")]

mod common;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{fresh_folder, import, process_time, settle};
use tidelog::document::split;
use tidelog::engine::{Incoming, IncomingBody};
use tidelog::net::{AllowList, Endpoint, Identity, LinkOptions, Links, Ticket, UnknownKeys};
use tidelog::sync::wire::Role;
use tidelog::sync::{self, Channel, Opened, Output, Session, SessionConfig, Side};
use tidelog::{Change, Database, DocHandle, DocumentId, Limits, NodeId};
use tokio::runtime::Runtime;

const DOCUMENTS: usize = 10_000;
/// A frame's length prefix.
const PREFIX: usize = 4;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    paper_to_an_empty_peer(&runtime);
    meeting_again(&runtime);
}

/// A node in this process.
struct Node {
    database: Database,
    links: Links,
    ticket: Ticket,
}

impl Node {
    fn start(path: &Path, limits: &Limits) -> Self {
        let identity = Identity::generate().unwrap();
        let database = Database::builder(path).node(identity.node()).limits(limits.clone()).open().unwrap();
        let endpoint = Endpoint::bind(identity, "127.0.0.1:0".parse().unwrap(), &Limits::DEFAULT).unwrap();
        let ticket = Ticket::new(endpoint.node(), "127.0.0.1", endpoint.local_addr().port()).unwrap();
        let allow = Arc::new(AllowList::new(UnknownKeys::LoopbackNodes));
        let links = Links::start(database.clone(), endpoint, allow, LinkOptions::default());
        Self { database, links, ticket }
    }

    /// Bytes of UDP payload on its link, both ways.
    fn bytes(&self) -> u64 {
        self.links.status().iter().filter_map(|peer| peer.bytes).map(|(sent, received)| sent + received).sum()
    }

    fn caught_up(&self) -> bool {
        self.links.status().iter().any(|peer| peer.caught_up)
    }
}

/// Waits until `done` holds, looking whenever a log grew or a link changed.
async fn until(a: &Node, b: &Node, done: impl Fn() -> bool) {
    let (mut tail_a, mut tail_b) = (a.database.tail(), b.database.tail());
    let (mut links_a, mut links_b) = (a.links.changes(), b.links.changes());
    let mut limit = std::pin::pin!(tokio::time::sleep(Duration::from_secs(60)));
    while !done() {
        tokio::select! {
            () = &mut limit => panic!("not done after a minute: {:?} and {:?}", a.links.status(), b.links.status()),
            changed = tail_a.changed() => changed.unwrap(),
            changed = tail_b.changed() => changed.unwrap(),
            changed = links_a.changed() => changed.unwrap(),
            changed = links_b.changed() => changed.unwrap(),
        }
    }
}

fn digest(database: &Database, id: DocumentId) -> Option<tidelog::log::record::StateDigest> {
    database.reader().document(id).unwrap().map(|state| state.digest)
}

fn paper_to_an_empty_peer(runtime: &Runtime) {
    let changes = common::paper();
    let chunk_bytes: usize = changes.iter().map(|change| change.bytes().len()).sum();
    println!("a document of {} changes ({} KB of chunks) to an empty peer", changes.len(), chunk_bytes / 1000);
    println!("{:>28} {:>9} {:>9} {:>12} {:>12}", "", "s", "cpu s", "changes/s", "wire bytes");
    let mut without = Limits::DEFAULT;
    without.snapshot_tail_min = u64::MAX;
    without.snapshot_tail_bytes = u64::MAX;
    for (what, limits) in [("without a snapshot", &without), ("with one at the source", &Limits::DEFAULT)] {
        transfer(runtime, what, limits, &changes);
    }
}

fn transfer(runtime: &Runtime, what: &str, limits: &Limits, changes: &[Change]) {
    let folder = fresh_folder("paper");
    let _context = runtime.enter();
    let a = Node::start(&folder.join("a"), limits);
    let b = Node::start(&folder.join("b"), limits);
    let id = DocumentId([1; 16]);
    drop(import(&a.database, id, changes));
    settle();
    let expected = digest(&a.database, id);
    let (began, cpu) = (Instant::now(), process_time());
    b.links.dial(a.ticket.clone());
    runtime.block_on(until(&a, &b, || digest(&b.database, id) == expected));
    let (time, cpu) = (began.elapsed().as_secs_f64(), (process_time() - cpu).as_secs_f64());
    let rate = changes.len() as f64 / time;
    println!("{what:>28} {time:>9.2} {cpu:>9.2} {rate:>12.0} {:>12}", b.bytes());
    runtime.block_on(async { tokio::join!(a.links.close(), b.links.close()) });
}

fn meeting_again(runtime: &Runtime) {
    let folder = fresh_folder("again");
    let _context = runtime.enter();
    let a = Node::start(&folder.join("a"), &Limits::DEFAULT);
    let b = Node::start(&folder.join("b"), &Limits::DEFAULT);
    let documents = create(&a.database);
    let began = Instant::now();
    b.links.dial(a.ticket.clone());
    let all = || b.database.reader().inventory(None, DOCUMENTS + 1).unwrap().len() == DOCUMENTS;
    runtime.block_on(until(&a, &b, || all() && a.caught_up() && b.caught_up()));
    let (time, bytes) = (began.elapsed().as_secs_f64(), b.bytes());
    println!("{DOCUMENTS} documents to an empty peer: {time:.2} s, {bytes} bytes on the wire");
    hang_up(runtime, &a, &b);

    println!("two nodes with {DOCUMENTS} documents meet again");
    println!("{:>9} {:>12} {:>13} {:>12} {:>12}", "changed", "frame bytes", "frames, ms", "wire bytes", "wire, ms");
    for changed in [0, 1, 100] {
        edit(&documents[..changed]);
        let (frame_bytes, frame_time) = without_network(runtime, &a.database, &b.database, &documents[..changed]);
        edit(&documents[..changed]);
        let began = Instant::now();
        b.links.dial(a.ticket.clone());
        runtime.block_on(until(&a, &b, || a.caught_up() && b.caught_up() && equal(&a, &b, &documents[..changed])));
        let (time, bytes) = (began.elapsed().as_secs_f64() * 1e3, b.bytes());
        println!("{changed:>9} {frame_bytes:>12} {:>13.1} {bytes:>12} {time:>12.1}", frame_time.as_secs_f64() * 1e3);
        hang_up(runtime, &a, &b);
    }
    runtime.block_on(async { tokio::join!(a.links.close(), b.links.close()) });
}

fn create(database: &Database) -> Vec<DocHandle> {
    let notes = database.collection("notes").unwrap();
    let (documents, commits): (Vec<_>, Vec<_>) = (0..DOCUMENTS)
        .map(|n| notes.create(serde_json::json!({ "n": n, "text": "a note" })).unwrap())
        .map(wait_now_and_then)
        .unzip();
    commits.into_iter().flatten().for_each(|commit| {
        commit.wait().unwrap();
    });
    documents
}

/// Keeps the writer's queue from filling up.
fn wait_now_and_then((document, commit): (DocHandle, tidelog::Commit)) -> (DocHandle, Option<tidelog::Commit>) {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static MADE: AtomicUsize = AtomicUsize::new(0);
    if MADE.fetch_add(1, Ordering::Relaxed) % 1000 == 999 {
        commit.wait().unwrap();
        return (document, None);
    }
    (document, Some(commit))
}

fn edit(documents: &[DocHandle]) {
    let commits: Vec<_> =
        documents.iter().map(|document| document.change(|edit| Ok(edit.splice("text", 0, 0, "x")?)).unwrap()).collect();
    commits.into_iter().for_each(|commit| {
        commit.wait().unwrap();
    });
}

fn equal(a: &Node, b: &Node, documents: &[DocHandle]) -> bool {
    documents.iter().all(|document| digest(&a.database, document.id()) == digest(&b.database, document.id()))
}

fn hang_up(runtime: &Runtime, a: &Node, b: &Node) {
    // Cursors are stored a moment after the rows.
    std::thread::sleep(Duration::from_millis(500));
    b.links.drop_peer(a.database.node());
    let gone = |node: &Node| node.links.status().iter().all(|peer| peer.connected.is_none());
    runtime.block_on(until(a, b, || gone(a) && gone(b)));
}

/// One end of a conversation without a network.
struct End {
    database: Database,
    session: Session,
    peer: NodeId,
    /// Frames from the peer.
    incoming: VecDeque<(Channel, Vec<u8>, bool)>,
    caught_up: bool,
}

impl End {
    fn new(database: &Database, peer: &Database) -> Self {
        let config = SessionConfig {
            node: database.node(),
            peer: peer.node(),
            role: Role::Node,
            strict: false,
            invite: None,
            token: None,
            guarded: false,
            cursor: database.reader().peer_cursor(peer.node()).unwrap(),
            attester: None,
            agent: "tidelog/bench".into(),
            limits: Limits::DEFAULT,
        };
        Self {
            database: database.clone(),
            session: Session::new(config),
            peer: peer.node(),
            incoming: VecDeque::new(),
            caught_up: false,
        }
    }

    /// Does everything that is due; the bytes it sent, `None` when there was nothing to do.
    fn turn(&mut self, runtime: &Runtime, peer: &mut VecDeque<(Channel, Vec<u8>, bool)>) -> Option<usize> {
        let (mut bytes, mut busy) = (0, false);
        while let Some((channel, _, _)) = self.incoming.front()
            && self.session.accepts(*channel)
            && let Some((channel, frame, finish)) = self.incoming.pop_front()
        {
            busy = true;
            if !frame.is_empty() {
                self.session.handle_frame(Instant::now(), channel, &frame, self.database.reader()).unwrap();
            }
            if finish {
                self.session.handle_channel_closed(channel).unwrap();
            }
        }
        while let Some(output) = self.session.poll(Instant::now(), self.database.reader()).unwrap() {
            busy = true;
            match output {
                Output::Send { channel, frame, finish } => {
                    bytes += if frame.is_empty() { 0 } else { frame.len() + PREFIX };
                    peer.push_back((mirrored(channel), frame, finish));
                    self.session.handle_sent(channel);
                }
                Output::Reset(channel) => peer.push_back((mirrored(channel), Vec::new(), true)),
                Output::Admit { ticket, rows, cursor } => {
                    let rows = rows.into_iter().flat_map(incoming).collect();
                    let admitted = runtime.block_on(self.database.admit(rows, Some(self.peer), cursor)).unwrap();
                    let (missing, cursor_stored) = (admitted.missing, admitted.cursor_stored);
                    self.session
                        .handle_admitted(ticket, sync::Admitted { missing, cursor_stored, ..Default::default() });
                }
                Output::StoreCursor { ticket, cursor } => {
                    runtime.block_on(self.database.store_cursor(self.peer, cursor)).unwrap();
                    self.session.handle_admitted(ticket, sync::Admitted { cursor_stored: true, ..Default::default() });
                }
                Output::Event(sync::SessionEvent::CaughtUp) => self.caught_up = true,
                _ => {}
            }
        }
        busy.then_some(bytes)
    }
}

fn incoming(row: sync::IncomingRow) -> Vec<Incoming> {
    let (document, origin) = (row.document, row.origin);
    let bodies = match row.body {
        sync::IncomingBody::Change(change) => vec![IncomingBody::Change(change)],
        sync::IncomingBody::Lifecycle(bytes) => vec![IncomingBody::Lifecycle(bytes)],
        sync::IncomingBody::Document { bytes: chunk, .. } => split(&chunk, &Limits::DEFAULT)
            .unwrap()
            .into_iter()
            .map(|change| IncomingBody::Change(Box::new(change)))
            .collect(),
    };
    bodies.into_iter().map(|body| Incoming { document, body, origin: origin.clone(), signature: None }).collect()
}

/// The channel as the other side names it.
fn mirrored(channel: Channel) -> Channel {
    let other = |opened: Opened| Opened {
        by: if opened.by == Side::Us { Side::Peer } else { Side::Us },
        number: opened.number,
    };
    match channel {
        Channel::Control => Channel::Control,
        Channel::Document(opened) => Channel::Document(other(opened)),
        Channel::Stream(opened) => Channel::Stream(other(opened)),
    }
}

/// Lets two sessions talk until both have caught up and nothing is left to say.
fn without_network(runtime: &Runtime, a: &Database, b: &Database, changed: &[DocHandle]) -> (usize, Duration) {
    let (mut one, mut two) = (End::new(a, b), End::new(b, a));
    let began = Instant::now();
    let (mut bytes, mut idle) = (0, 0);
    while idle < 2 {
        idle += 1;
        for sent in [one.turn(runtime, &mut two.incoming), two.turn(runtime, &mut one.incoming)].into_iter().flatten() {
            bytes += sent;
            idle = 0;
        }
        one.session.handle_tail();
        two.session.handle_tail();
    }
    let time = began.elapsed();
    assert!(one.caught_up && two.caught_up, "a conversation ended early");
    assert!(changed.iter().all(|document| digest(a, document.id()) == digest(b, document.id())));
    (bytes, time)
}
