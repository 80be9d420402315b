//! A client whose user may not read or write everything, linked with a node over a session: whatever changes and whenever,
//! nothing that may not be read is ever on the wire, and what both may have in common becomes equal.
//!
//! What is checked on the wire is each frame as the node gives it out, taken apart: the documents that it names must be
//! readable at that moment, but for those of which the client is told that they are not.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use proptest::prelude::*;
use serde_json::{Value, json};
use tidelog::document::Change;
use tidelog::id::{ChangeHash, DocumentId, LogCursor};
use tidelog::sync::wire::{Frame, Outcome, Role};
use tidelog::sync::{
    Admitted, Channel, Denied, IncomingBody, IncomingRow, Output, Permits, Proven, Session, SessionConfig, SessionError,
};
use tidelog::{Limits, NodeId};

use super::sync_sessions::{End, Replica, picks, reset, send, tight};

/// What the user may read, and changes that he may not make: those with a message.
#[derive(Debug, Default)]
struct Rights {
    unreadable: Mutex<HashSet<DocumentId>>,
    denied: Mutex<HashSet<ChangeHash>>,
}

impl Rights {
    fn may_not_read(&self, document: DocumentId) -> bool {
        self.unreadable.lock().unwrap().contains(&document)
    }

    /// Sorts out what may not be written, and what stands on it.
    fn judge(&self, rows: Vec<IncomingRow>) -> (Vec<IncomingRow>, Vec<Denied>) {
        let mut denied = self.denied.lock().unwrap();
        let (mut allowed, mut refused) = (Vec::new(), Vec::new());
        for row in rows {
            let changes: Vec<Change> = match &row.body {
                IncomingBody::Change(change) => vec![(**change).clone()],
                IncomingBody::Lifecycle(_) => {
                    allowed.push(row);
                    continue;
                }
                IncomingBody::Document { bytes, .. } => tidelog::document::split(bytes, &Limits::DEFAULT).unwrap(),
            };
            for change in changes {
                let hash = change.hash();
                if change.message().is_some() || change.deps().iter().any(|dep| denied.contains(dep)) {
                    denied.insert(hash);
                    let arrival = (hash, change.deps().to_vec());
                    refused.push(Denied { document: row.document, change: Some(arrival), why: "no".into() });
                } else {
                    let body = IncomingBody::Change(Box::new(change));
                    allowed.push(IncomingRow {
                        document: row.document,
                        body,
                        origin: row.origin.clone(),
                        signature: None,
                    });
                }
            }
        }
        (allowed, refused)
    }
}

impl Permits for Rights {
    fn may_read(&self, document: DocumentId) -> bool {
        !self.may_not_read(document)
    }

    fn may_announce(&self, _: DocumentId) -> bool {
        true
    }
}

const NODE: usize = 0;
const CLIENT: usize = 1;

struct World {
    replicas: [Replica; 2],
    rights: Arc<Rights>,
    ends: Option<[End; 2]>,
    now: Instant,
    limits: Limits,
    strict: bool,
    /// How often the link began anew because something was on its way that may not be read any more.
    renewed: usize,
    /// Heads that the client named.
    named: HashSet<ChangeHash>,
}

impl World {
    fn new(limits: Limits, strict: bool) -> Self {
        let replicas = [Replica::new(0, &limits), Replica::new(1, &limits)];
        let (rights, now) = (Arc::new(Rights::default()), Instant::now());
        Self { replicas, rights, ends: None, now, limits, strict, renewed: 0, named: HashSet::new() }
    }

    fn link(&mut self) {
        let end = |here: usize, there: usize| {
            let (us, peer) = (&self.replicas[here], self.replicas[there].node);
            let session = Session::new(SessionConfig {
                node: us.node,
                peer,
                role: if here == NODE { Role::Client } else { Role::Node },
                strict: self.strict,
                invite: None,
                token: None,
                guarded: here == NODE,
                cursor: us.database.reader().peer_cursor(peer).unwrap(),
                attester: None,
                agent: "test".into(),
                limits: self.limits.clone(),
            });
            End::new(session)
        };
        self.ends = Some([end(NODE, CLIENT), end(CLIENT, NODE)]);
    }

    /// Does one thing on one side; `false` when nothing is to do there.
    fn step(&mut self, pick: usize) -> bool {
        let side = pick % 2;
        match self.try_step(side, pick / 2) {
            Ok(worked) => worked,
            Err(SessionError::AccessChanged) => {
                self.renewed += 1;
                self.link();
                true
            }
            Err(error) => panic!("side {side}: {error}"),
        }
    }

    fn try_step(&mut self, side: usize, pick: usize) -> Result<bool, SessionError> {
        let Some(ends) = self.ends.as_mut() else { return Ok(false) };
        let (replica, peer) = (&self.replicas[side], self.replicas[1 - side].node);
        let reader = replica.database.reader();
        let end = &mut ends[side];
        let ready = end.ready();
        if !ready.is_empty() {
            match ready[pick % ready.len()] {
                Some(channel) => end.deliver(self.now, channel, reader)?,
                None => {
                    let work = end.writer.pop_front().unwrap();
                    carry_out(end, replica, peer, &self.rights, side, work);
                }
            }
        }
        end.session.handle_tail();
        let mut worked = !ready.is_empty();
        while let Some(output) =
            self.ends.as_mut().unwrap()[side].session.poll(self.now, self.replicas[side].database.reader())?
        {
            worked = true;
            self.output(side, output)?;
        }
        Ok(worked)
    }

    fn output(&mut self, side: usize, output: Output) -> Result<(), SessionError> {
        let ends = self.ends.as_mut().unwrap();
        match output {
            Output::Send { channel, frame, finish } => {
                match (side, frame.is_empty()) {
                    (NODE, false) => check_frame(&frame, channel, &self.rights, &self.replicas, &self.named),
                    (_, false) => {
                        if let Ok(Frame::DocumentBatch(batch)) = Frame::decode(&frame) {
                            self.named.extend(batch.heads.as_slice());
                        }
                    }
                    _ => {}
                }
                send(ends, side, channel, frame, finish);
            }
            Output::Reset(channel) => reset(ends, side, channel),
            Output::Prove { .. } => {
                let permits = Some(self.rights.clone() as Arc<dyn Permits>);
                let proven = Proven { principal: "ada".into(), permits };
                ends[side].session.handle_proven(proven, self.replicas[side].database.reader())?;
            }
            Output::Event(_) => {}
            work => ends[side].writer.push_back(work),
        }
        Ok(())
    }

    /// What the user may read becomes otherwise.
    fn turn_rights(&mut self, document: DocumentId) {
        {
            let mut unreadable = self.rights.unreadable.lock().unwrap();
            if !unreadable.remove(&document) {
                unreadable.insert(document);
            }
        }
        let Some(ends) = self.ends.as_mut() else { return };
        match ends[NODE].session.handle_access_changed(self.replicas[NODE].database.reader()) {
            Ok(()) => {
                // What a stream was reset with is gone, as is what the transport had of it.
            }
            Err(SessionError::AccessChanged) => {
                self.renewed += 1;
                self.link();
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Runs until nothing is left to do.
    fn run(&mut self, picks: &mut dyn FnMut() -> usize) {
        let mut idle = 0;
        for _ in 0..200_000 {
            let pick = picks();
            let worked = self.step(pick);
            idle = if worked { 0 } else { idle + 1 };
            if idle > 0 && !self.step(pick ^ 1) {
                return;
            }
        }
        panic!("the link never comes to rest");
    }

    /// Edits a document at one of the sides; one that is not allowed has a message.
    fn edit(&self, side: usize, pick: usize, what: u8, denied: bool) {
        let database = &self.replicas[side].database;
        let visible = |id: &DocumentId| database.reader().document(*id).unwrap().unwrap().visible;
        let documents: Vec<DocumentId> = self.replicas[side].documents().into_iter().filter(visible).collect();
        if documents.is_empty() || what.is_multiple_of(8) {
            let made = json!({ "made": what, "text": "", "list": [] });
            // By names, so that a seed makes the same documents again.
            let name = format!("{side} {}", database.reader().tail().lsn);
            database.collection("notes").unwrap().doc_with(&name, made).unwrap();
            return;
        }
        let handle = database.find(documents[pick % documents.len()]).unwrap();
        let message = denied.then(|| "denied".to_owned());
        let edited = handle.change_with(message, |edit| {
            match what % 6 {
                0 => edit.put(format!("k{}", what % 5), json!({ "by": side, "deep": { "what": what } }))?,
                1 if edit.length("text")?.is_some() => edit.splice("text", 0, 0, "ab")?,
                2 if edit.length("text")?.is_some_and(|length| length > 2) => edit.splice("text", 1, 1, "")?,
                3 if edit.length("list")?.is_some() => edit.insert("list", 0, json!([what, "x"]))?,
                4 if edit.read::<Value>("/k0/deep/what")?.is_some() => edit.put("/k0/deep/what", what)?,
                _ => edit.put(format!("k{}", what % 5), "tide ".repeat(usize::from(what) * 4))?,
            }
            Ok(())
        });
        edited.unwrap().wait().unwrap();
    }

    /// Up to where the node has the client's log.
    fn followed(&self) -> Option<LogCursor> {
        self.replicas[NODE].database.reader().peer_cursor(self.replicas[CLIENT].node).unwrap()
    }

    /// What both should have in common, once nothing is left to do.
    fn check(&self) {
        let [node, client] = [0, 1].map(|side| self.replicas[side].database.reader());
        let denied = self.rights.denied.lock().unwrap();
        for id in self.replicas[NODE].documents() {
            let there = node.document(id).unwrap().unwrap();
            let here = client.document(id).unwrap();
            if self.rights.may_not_read(id) {
                let is_own = here.as_ref().is_some_and(|_| {
                    client
                        .index(id, tidelog::Lsn::ZERO)
                        .unwrap()
                        .iter()
                        .all(|(lsn, _)| client.via(*lsn).unwrap().is_none())
                });
                assert!(is_own || here.is_none_or(|here| !here.visible), "{id} may not be read and is shown");
                continue;
            }
            let here = here.unwrap_or_else(|| panic!("{id} is missing"));
            assert!(here.visible && !here.withheld, "{id} may be read and is not shown");
            assert_eq!(here.digest, there.digest, "{id}");
            let json = |side: usize| self.replicas[side].database.find(id).unwrap().to_json().unwrap();
            assert_eq!(json(NODE), json(CLIENT));
        }
        for document in self.replicas[NODE].documents() {
            let graph = node.graph(document).unwrap();
            let graph = graph.lock().unwrap();
            assert!(denied.iter().all(|hash| !graph.contains(hash)), "a denied change is at the node");
        }
        for database in self.replicas.iter().map(|replica| &replica.database) {
            let found = database.verify(true, &mut |_, _| {}).unwrap();
            assert!(found.faults.is_empty(), "{found:?}");
        }
    }
}

fn carry_out(end: &mut End, replica: &Replica, peer: NodeId, rights: &Rights, side: usize, work: Output) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    match work {
        Output::Admit { ticket, rows, cursor } => {
            let (rows, denied) = if side == NODE { rights.judge(rows) } else { (rows, Vec::new()) };
            let cursor = cursor.filter(|_| denied.is_empty());
            let admitted = Admitted { denied, ..replica.admit(rows, peer, cursor) };
            end.session.handle_admitted(ticket, admitted);
        }
        Output::StoreCursor { ticket, cursor } => {
            replica.store(peer, cursor);
            end.session.handle_admitted(ticket, Admitted { cursor_stored: true, ..Admitted::default() });
        }
        Output::TakeBack(rows) => {
            assert_eq!(side, CLIENT);
            let count = rows.len();
            let is_all = runtime.block_on(replica.database.take_back(peer, rows)).unwrap();
            end.session.handle_taken_back(if is_all { count } else { 0 }).unwrap();
        }
        Output::Withhold { documents, withheld } => {
            assert_eq!(side, CLIENT);
            runtime.block_on(replica.database.withhold(peer, documents, withheld)).unwrap();
        }
        other => panic!("{other:?} is not for the writer"),
    }
}

/// Nothing of what may not be read is in a frame that the node gives out.
fn check_frame(
    frame: &[u8],
    channel: Channel,
    rights: &Rights,
    [node, client]: &[Replica; 2],
    named_by_client: &HashSet<ChangeHash>,
) {
    let frame = Frame::decode(frame).unwrap();
    let named: Vec<DocumentId> = match &frame {
        Frame::ChangeBatch(batch) => {
            batch.rows.iter().map(|row| batch.documents[row.document as usize]).chain(batch.documents.clone()).collect()
        }
        Frame::Inventory(page) => page.rows.iter().map(|row| row.document).collect(),
        Frame::DocumentBatch(batch) if batch.outcome == Outcome::UnknownDocument => {
            assert!(batch.rows.is_empty() && batch.heads.as_slice().is_empty());
            Vec::new()
        }
        Frame::DocumentBatch(batch) => vec![batch.document],
        Frame::StreamBegin(begin) => vec![begin.document],
        // Of a document that is not there yet there is nothing to be read.
        Frame::DocSync(part) => {
            let is_there = node.database.reader().row(part.document).unwrap().is_some();
            if is_there { vec![part.document] } else { Vec::new() }
        }
        // The client may be named what it has, or has named itself before it took it back.
        Frame::Want(want) => {
            let has = |document: DocumentId, heads: &[ChangeHash]| {
                let graph = client.database.reader().graph(document).unwrap();
                graph.lock().unwrap().contains_all(heads) || heads.iter().all(|head| named_by_client.contains(head))
            };
            let unknown = want.documents.iter().filter(|wanted| !has(wanted.document, wanted.heads.as_slice()));
            unknown.map(|wanted| wanted.document).collect()
        }
        // What the client brought itself, and what it is told it may not read any more.
        Frame::Denied(_) | Frame::Access(_) => Vec::new(),
        Frame::Hello(_) | Frame::HelloAck(_) | Frame::Ack(_) | Frame::Busy(_) | Frame::Auth(_) => Vec::new(),
        // They belong to the batch or the stream that began before and was checked.
        Frame::Part(_) | Frame::StreamPart(_) => Vec::new(),
        other => panic!("{other:?} on {channel:?}"),
    };
    for document in named {
        assert!(!rights.may_not_read(document), "{document} may not be read, and is in {frame:?}");
    }
}

/// What a node says of rights, a client does not: whoever says it is no client of ours.
#[test]
fn a_client_cannot_take_back_or_withhold_what_the_node_has() {
    use tidelog::sync::wire::{Access, Denied as DeniedFrame, DeniedRow, Listing};
    let document = DocumentId([7; 16]);
    let frames = [
        Frame::Access(Access { listing: Listing::Nothing, withheld: vec![document] }),
        Frame::Denied(DeniedFrame {
            rows: vec![DeniedRow { document, change: None, is_behind: false, why: String::new() }],
        }),
    ];
    for frame in frames {
        let mut world = World::new(Limits::DEFAULT, false);
        world.edit(NODE, 0, 0, false);
        world.link();
        world.run(&mut picks(1));
        let bytes = frame.encode().unwrap();
        let node = &mut world.ends.as_mut().unwrap()[NODE].session;
        let refused = node.handle_frame(world.now, Channel::Control, &bytes, world.replicas[NODE].database.reader());
        assert!(matches!(refused, Err(SessionError::UnexpectedFrame { .. })), "{refused:?}");
        // And before it is known who the client is, nothing is heard at all.
        world.link();
        let node = &mut world.ends.as_mut().unwrap()[NODE].session;
        let refused = node.handle_frame(world.now, Channel::Control, &bytes, world.replicas[NODE].database.reader());
        assert!(matches!(refused, Err(SessionError::UnexpectedFrame { .. })), "{refused:?}");
    }
}

/// What was denied holds the client's log up no longer than until the client has taken it back: else a link that stands
/// for long, or many that do not, would have all of it sent again.
#[test]
fn what_is_taken_back_does_not_come_again() {
    let mut world = World::new(Limits::DEFAULT, false);
    world.edit(NODE, 0, 0, false);
    world.link();
    world.run(&mut picks(1));
    for what in 1..4 {
        world.edit(CLIENT, 0, what, true);
        world.edit(CLIENT, 0, what, false);
        let before = world.replicas[CLIENT].database.reader().tail();
        world.run(&mut picks(2));
        assert!(world.followed().unwrap().lsn >= before.lsn);
    }
    assert_eq!(world.replicas[CLIENT].database.rejected().unwrap().len(), 3);
    world.check();
    // Who says he took back more than he was denied is no client of ours.
    let bytes = Frame::TakenBack(tidelog::sync::wire::TakenBack { rows: 1000 }).encode().unwrap();
    let node = &mut world.ends.as_mut().unwrap()[NODE].session;
    let refused = node.handle_frame(world.now, Channel::Control, &bytes, world.replicas[NODE].database.reader());
    assert!(matches!(refused, Err(SessionError::UnexpectedFrame { .. })), "{refused:?}");
}

#[derive(Debug, Clone)]
enum Event {
    Edit { side: usize, pick: usize, what: u8, denied: bool },
    Turn { pick: usize },
    Steps(usize),
    Link,
    Cut,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0_usize..2, any::<usize>(), any::<u8>(), prop::bool::weighted(0.25))
            .prop_map(|(side, pick, what, denied)| Event::Edit { side, pick, what, denied: denied && side == CLIENT }),
        2 => any::<usize>().prop_map(|pick| Event::Turn { pick }),
        3 => (1_usize..80).prop_map(Event::Steps),
        1 => Just(Event::Link),
        1 => Just(Event::Cut),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn what_may_not_be_read_is_never_on_the_wire_and_what_may_not_be_written_is_taken_back(
        events in prop::collection::vec(event(), 1..80),
        seed in any::<u64>(),
        roomy in any::<bool>(),
        strict in prop::bool::weighted(0.25),
    ) {
        let mut world = World::new(if roomy { Limits::DEFAULT } else { tight() }, strict);
        let mut picks = picks(seed);
        for event in events {
            match event {
                Event::Edit { side, pick, what, denied } => world.edit(side, pick, what, denied),
                Event::Turn { pick } => {
                    let documents: BTreeSet<DocumentId> = world.replicas[NODE].documents().into_iter().collect();
                    if let Some(document) = documents.iter().nth(pick % documents.len().max(1)) {
                        world.turn_rights(*document);
                    }
                }
                Event::Steps(steps) => (0..steps).for_each(|_| _ = world.step(picks())),
                Event::Link => world.link(),
                Event::Cut => world.ends = None,
            }
        }
        if world.ends.is_none() {
            world.link();
        }
        world.run(&mut picks);
        world.check();
        // And once more from nothing.
        world.link();
        let met = world.replicas[CLIENT].database.reader().tail();
        world.run(&mut picks);
        world.check();
        if !strict {
            let followed = world.followed().unwrap();
            prop_assert!(followed.lsn >= met.lsn, "the client's log is taken up to {followed:?}, and went to {met:?}");
        }
        let rejected = world.replicas[CLIENT].database.rejected().unwrap();
        prop_assert!(rejected.iter().all(|rejected| rejected.change.is_some_and(|hash| world.rights.denied.lock().unwrap().contains(&hash))));
    }
}
