//! Replicas linked by sessions converge, whatever is cut and whenever.
//!
//! The wires are queues of frames, one a channel, and frames of one channel stay in order, as QUIC gives. Everything
//! else is free: which channel is read next, how long the writer takes, when a link is cut and what was under way then.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use automerge::Automerge;
use automerge::transaction::Transactable as _;
use proptest::prelude::*;
use tidelog::document::Change;
use tidelog::engine::{Incoming, IncomingBody as Body};
use tidelog::history::{Origin, Reader};
use tidelog::id::{ActorId, DocumentId, Lsn, NodeId};
use tidelog::log::MemoryStorage;
use tidelog::log::record::Admission;
use tidelog::net::Identity;
use tidelog::sync::wire::{self, Role};
use tidelog::sync::{
    Admitted, Attester, Authors, Channel, IncomingBody, IncomingRow, Opened, Output, Session, SessionConfig,
    SessionError, SessionEvent, Side,
};
use tidelog::{Database, Limits};

#[derive(Clone)]
pub(super) struct Replica {
    pub(super) node: NodeId,
    pub(super) database: Database,
    /// None for one from before origins were signed.
    pub(super) attester: Option<Arc<dyn Attester>>,
}

impl Replica {
    pub(super) fn new(n: u8, limits: &Limits) -> Self {
        Self::on(n, MemoryStorage::new(), limits)
    }

    pub(super) fn on(n: u8, storage: MemoryStorage, limits: &Limits) -> Self {
        let key = Identity::from_seed(&[n + 1; 32]).unwrap();
        let node = key.node();
        let database = Database::on(storage).node(node).limits(limits.clone()).open().unwrap();
        Self { node, database, attester: Some(Arc::new(key)) }
    }

    pub(super) fn documents(&self) -> Vec<DocumentId> {
        self.database.reader().inventory(None, usize::MAX).unwrap().into_iter().map(|(id, _)| id).collect()
    }

    /// Edits one of the documents here, or makes a new one.
    pub(super) fn edit(&self, pick: usize, what: u8) {
        let documents = self.documents();
        let collection = self.database.collection("notes").unwrap();
        if documents.is_empty() || what.is_multiple_of(8) {
            collection.create(serde_json::json!({ "made": what })).unwrap().1.wait().unwrap();
            return;
        }
        let handle = self.database.find(documents[pick % documents.len()]).unwrap();
        if what % 16 == 1 {
            // Deleted already is as good.
            if let Ok(commit) = handle.delete() {
                commit.wait().unwrap();
            }
            return;
        }
        let text = "tide ".repeat(if what % 8 == 2 { 2000 } else { 1 });
        if let Ok(commit) = handle.change(|edit| Ok(edit.put(format!("k{}", what % 5), serde_json::json!(text))?)) {
            commit.wait().unwrap();
        }
    }

    /// Everything that should be equal on all replicas.
    pub(super) fn state(&self) -> BTreeMap<DocumentId, (String, [u8; 16], bool)> {
        let reader = self.database.reader();
        let state = |id| {
            let state = reader.document(id).unwrap().unwrap();
            (id, (state.heads.to_string(), state.digest.0, state.visible))
        };
        self.documents().into_iter().map(state).collect()
    }

    /// Whose each author of each document is that can be found: where the first change of his entered.
    fn owners(&self) -> BTreeMap<(DocumentId, ActorId), (NodeId, String, Admission)> {
        let found = self.documents().into_iter().filter_map(|id| self.database.find(id).ok());
        let first = found.flat_map(|handle| {
            let history = handle.history(Lsn::ZERO, usize::MAX).unwrap();
            history.into_iter().filter(|entry| entry.seq == 1).map(move |entry| (handle.id(), entry))
        });
        let owner = |origin: Origin| (origin.node, origin.principal, origin.admission);
        first.map(|(id, entry)| ((id, entry.actor), owner(entry.origin))).collect()
    }

    pub(super) fn admit(
        &self,
        rows: Vec<IncomingRow>,
        via: NodeId,
        cursor: Option<tidelog::id::LogCursor>,
    ) -> Admitted {
        let mut incoming = Vec::new();
        for IncomingRow { document, body, origin, signature } in rows {
            let (changes, mut authors): (Vec<Change>, Authors) = match body {
                IncomingBody::Change(change) => {
                    incoming.push(Incoming { document, body: Body::Change(change), origin, signature });
                    continue;
                }
                IncomingBody::Lifecycle(bytes) => {
                    incoming.push(Incoming { document, body: Body::Lifecycle(bytes), origin, signature });
                    continue;
                }
                IncomingBody::Document { bytes, authors } => {
                    let changes = Automerge::load(&bytes).unwrap().get_changes(&[]).into_iter();
                    (changes.map(|change| Change::from_automerge(change).unwrap()).collect(), authors)
                }
            };
            for change in changes {
                let (origin, signature) = authors.origin(document, &change, &origin, self.database.reader());
                incoming.push(Incoming { document, body: Body::Change(Box::new(change)), origin, signature });
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let admitted = runtime.block_on(self.database.admit(incoming, Some(via), cursor)).unwrap();
        assert!(admitted.refused.is_empty(), "{:?}", admitted.refused);
        Admitted { missing: admitted.missing, cursor_stored: admitted.cursor_stored, ..Admitted::default() }
    }

    pub(super) fn store(&self, via: NodeId, cursor: tidelog::id::LogCursor) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(self.database.store_cursor(via, cursor)).unwrap();
    }
}

/// A frame, or the end of a channel.
#[derive(Clone)]
enum Wire {
    Frame(Vec<u8>),
    End,
}

/// One side of a link: its session, what is on its way to it, and what its writer has not done yet.
pub(super) struct End {
    pub(super) session: Session,
    incoming: BTreeMap<Channel, VecDeque<Wire>>,
    pub(super) writer: VecDeque<Output>,
    caught_up: bool,
}

impl End {
    pub(super) fn new(session: Session) -> Self {
        Self { session, incoming: BTreeMap::new(), writer: VecDeque::new(), caught_up: false }
    }

    /// What may be done next: channels of which a frame may be read, and the writer's work, which is none.
    pub(super) fn ready(&self) -> Vec<Option<Channel>> {
        let mut ready: Vec<Option<Channel>> = self
            .incoming
            .iter()
            .filter(|(channel, frames)| !frames.is_empty() && self.session.accepts(**channel))
            .map(|(channel, _)| Some(*channel))
            .collect();
        ready.extend((!self.writer.is_empty()).then_some(None));
        ready
    }

    /// Gives the session what is next on a channel.
    pub(super) fn deliver(&mut self, now: Instant, channel: Channel, reader: &Reader) -> Result<(), SessionError> {
        match self.incoming.get_mut(&channel).unwrap().pop_front().unwrap() {
            Wire::Frame(bytes) => self.session.handle_frame(now, channel, &bytes, reader),
            Wire::End => self.session.handle_channel_closed(channel),
        }
    }

    fn take(&mut self, channel: Channel, frame: Vec<u8>, finish: bool) {
        let wire = self.incoming.entry(mirrored(channel)).or_default();
        if !frame.is_empty() {
            wire.push_back(Wire::Frame(frame));
        }
        if finish {
            wire.push_back(Wire::End);
        }
    }
}

/// Takes a frame from one end to the other.
pub(super) fn send(ends: &mut [End; 2], side: usize, channel: Channel, frame: Vec<u8>, finish: bool) {
    ends[side].session.handle_sent(channel);
    ends[1 - side].take(channel, frame, finish);
}

/// Drops a channel.
pub(super) fn reset(ends: &mut [End; 2], side: usize, channel: Channel) {
    // What is under way may arrive or not: nothing of it does.
    ends[side].incoming.remove(&channel);
    ends[1 - side].incoming.remove(&mirrored(channel));
    ends[1 - side].take(channel, Vec::new(), true);
}

/// What becomes of a frame that one side sends on a channel.
pub(super) type Meddler = Box<dyn FnMut(usize, Channel, Vec<u8>) -> Vec<Vec<u8>>>;

pub(super) struct Link {
    sides: [usize; 2],
    pub(super) ends: [End; 2],
    pub(super) bytes: usize,
    now: Instant,
    pub(super) meddler: Option<Meddler>,
}

impl Link {
    pub(super) fn new(replicas: &[Replica], sides: [usize; 2], strict: bool, limits: &Limits) -> Self {
        Self::of(Role::Node, replicas, sides, strict, limits)
    }

    /// A link whose first side is to the other what `role` says.
    pub(super) fn of(role: Role, replicas: &[Replica], sides: [usize; 2], strict: bool, limits: &Limits) -> Self {
        let end = |here: usize, there: usize, role: Role, strict: bool| {
            let (us, peer) = (&replicas[here], replicas[there].node);
            let cursor = us.database.reader().peer_cursor(peer).unwrap();
            let session = Session::new(SessionConfig {
                node: us.node,
                peer,
                role,
                strict,
                invite: None,
                token: None,
                guarded: false,
                cursor,
                attester: us.attester.clone(),
                agent: "test".into(),
                limits: limits.clone(),
            });
            End::new(session)
        };
        let ends = [end(sides[0], sides[1], Role::Node, strict), end(sides[1], sides[0], role, false)];
        Self { sides, ends, bytes: 0, now: Instant::now(), meddler: None }
    }

    /// Does one thing on one side, chosen by `pick`; `false` when nothing is to do there.
    fn step(&mut self, replicas: &[Replica], pick: usize) -> bool {
        let side = pick % 2;
        let (replica, peer) = (&replicas[self.sides[side]], replicas[self.sides[1 - side]].node);
        let reader = replica.database.reader();
        let end = &mut self.ends[side];
        let ready = end.ready();
        if !ready.is_empty() {
            match ready[(pick / 2) % ready.len()] {
                Some(channel) => end.deliver(self.now, channel, reader).unwrap(),
                None => match end.writer.pop_front().unwrap() {
                    Output::Admit { ticket, rows, cursor } => {
                        end.session.handle_admitted(ticket, replica.admit(rows, peer, cursor));
                    }
                    Output::StoreCursor { ticket, cursor } => {
                        replica.store(peer, cursor);
                        end.session.handle_admitted(ticket, Admitted { cursor_stored: true, ..Admitted::default() });
                    }
                    other => panic!("{other:?} is not for the writer"),
                },
            }
        }
        end.session.handle_tail();
        let mut worked = !ready.is_empty();
        while let Some(output) = self.ends[side].session.poll(self.now, reader).unwrap() {
            worked = true;
            self.output(side, output);
        }
        worked
    }

    fn output(&mut self, side: usize, output: Output) {
        match output {
            Output::Send { channel, frame, finish } => {
                self.bytes += frame.len() + 4;
                let Some(meddler) = self.meddler.as_mut().filter(|_| !frame.is_empty()) else {
                    return send(&mut self.ends, side, channel, frame, finish);
                };
                let frames = meddler(side, channel, frame);
                frames.into_iter().for_each(|frame| self.ends[1 - side].take(channel, frame, false));
                send(&mut self.ends, side, channel, Vec::new(), finish);
            }
            Output::Reset(channel) => reset(&mut self.ends, side, channel),
            Output::Event(SessionEvent::CaughtUp) => self.ends[side].caught_up = true,
            Output::Event(_) => {}
            work => self.ends[side].writer.push_back(work),
        }
    }

    /// Runs until nothing is left to do.
    pub(super) fn run(&mut self, replicas: &[Replica], picks: &mut dyn FnMut() -> usize) {
        let mut idle = 0;
        for _ in 0..200_000 {
            let pick = picks();
            let worked = self.step(replicas, pick);
            idle = if worked { 0 } else { idle + 1 };
            if idle > 0 && !self.step(replicas, pick ^ 1) {
                return;
            }
        }
        panic!("the link never comes to rest");
    }
}

fn mirrored(channel: Channel) -> Channel {
    let turn = |opened: Opened| Opened {
        by: if opened.by == Side::Us { Side::Peer } else { Side::Us },
        number: opened.number,
    };
    match channel {
        Channel::Control => Channel::Control,
        Channel::Document(opened) => Channel::Document(turn(opened)),
        Channel::Stream(opened) => Channel::Stream(turn(opened)),
    }
}

/// Small bounds, so that pages, batches and messages are many.
pub(super) fn tight() -> Limits {
    let mut limits = Limits::DEFAULT;
    limits.batch_bytes = 700;
    limits.inventory_rows = 2;
    limits.part_bytes = 100;
    limits.exchanges_per_peer = 2;
    limits.snapshot_instead_of_changes = 4;
    limits
}

/// A stream of choices from a seed.
pub(super) fn picks(seed: u64) -> impl FnMut() -> usize {
    let mut state = seed | 1;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    }
}

/// Links every neighbour in turn until nothing changes; the second round must find nothing new.
fn settle(replicas: &[Replica], strict: bool, limits: &Limits, picks: &mut dyn FnMut() -> usize) {
    for _ in 0..2 * replicas.len() {
        for n in 1..replicas.len() {
            let mut link = Link::new(replicas, [n - 1, n], strict, limits);
            link.run(replicas, picks);
            assert!(link.ends.iter().all(|end| end.caught_up), "both sides say that they caught up");
        }
    }
    let first = replicas[0].state();
    for replica in &replicas[1..] {
        let state = replica.state();
        let unequal = |id: &&DocumentId| first.get(id) != state.get(id);
        let ids: Vec<&DocumentId> = first.keys().chain(state.keys()).filter(unequal).collect();
        let unequal: Vec<_> = ids.into_iter().map(|id| (id, first.get(id), state.get(id))).collect();
        assert!(unequal.is_empty(), "{unequal:#?}");
        assert_eq!(replica.owners(), replicas[0].owners(), "authors are the same people's everywhere");
    }
}

#[derive(Debug, Clone)]
enum Event {
    Edit {
        who: usize,
        pick: usize,
        what: u8,
    },
    /// A link that is cut after so many steps.
    Link {
        which: usize,
        steps: usize,
        strict: bool,
    },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (any::<usize>(), any::<usize>(), any::<u8>()).prop_map(|(who, pick, what)| Event::Edit { who, pick, what }),
        1 => (any::<usize>(), 0_usize..150, any::<bool>())
            .prop_map(|(which, steps, strict)| Event::Link { which, steps, strict }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    /// Three replicas in a row edit, delete and create while links between them come and are cut at any frame. Once
    /// links last, heads, digests and lifecycles are equal, whatever the sizes of pages and batches.
    #[test]
    fn replicas_converge_through_cut_links(
        events in prop::collection::vec(event(), 1..60),
        seed in any::<u64>(),
        roomy in any::<bool>(),
        strict in any::<bool>(),
    ) {
        let limits = if roomy { Limits::DEFAULT } else { tight() };
        let replicas: Vec<Replica> = (0..3).map(|n| Replica::new(n, &limits)).collect();
        let mut picks = picks(seed);
        for event in events {
            match event {
                Event::Edit { who, pick, what } => replicas[who % 3].edit(pick, what),
                Event::Link { which, steps, strict } => {
                    let n = which % 2;
                    let mut link = Link::new(&replicas, [n, n + 1], strict, &limits);
                    for step in 0..steps {
                        if step % 40 == 39 {
                            replicas[n + step % 2].edit(picks(), picks() as u8);
                        }
                        link.step(&replicas, picks());
                    }
                }
            }
        }
        settle(&replicas, strict, &limits, &mut picks);
    }
}

/// Users write on one node; whose their authors are is known on every other, however the document came there.
#[test]
fn an_author_is_the_same_users_on_every_node_however_the_document_came() {
    let mut limits = Limits::DEFAULT;
    (limits.snapshot_tail_min, limits.snapshot_instead_of_changes) = (4, 4);
    let first = Replica::new(0, &limits);
    let (handle, commit) = first.database.collection("notes").unwrap().create(serde_json::json!({})).unwrap();
    commit.wait().unwrap();
    // More authors than one frame names, each another user's; and one who is nobody in particular.
    let mut document = handle.with_view(|view| Ok(view.save()?)).map(|bytes| Automerge::load(&bytes).unwrap()).unwrap();
    let mut rows = Vec::new();
    for n in 0..1500_u32 {
        document.set_actor(automerge::ActorId::from(n.to_le_bytes()));
        let mut transaction = document.transaction();
        transaction.put(automerge::ROOT, "by", n).unwrap();
        transaction.commit();
        let change = Change::from_automerge(document.get_last_local_change().unwrap()).unwrap();
        let principal = if n == 0 { String::new() } else { format!("user {}", n / 2) };
        let origin = Origin { node: first.node, principal, admission: Admission::Full, rules_version: 7 };
        let body = IncomingBody::Change(Box::new(change));
        rows.push(IncomingRow { document: handle.id(), body, origin, signature: None });
    }
    for rows in rows.chunks(100) {
        first.admit(rows.to_vec(), NodeId([77; 32]), None);
    }
    while handle.state().unwrap().snapshot.is_none() {
        std::thread::yield_now();
    }
    let owners = first.owners();
    assert_eq!(owners.len(), 1500);
    // By rows of the log, as a chunk on a stream, in an exchange; and from there on in the same ways.
    for [instead, strict] in [[u64::MAX, 0], [4, 0], [4, 1]] {
        limits.snapshot_instead_of_changes = instead;
        let replicas = [Replica::new(1, &limits), Replica::new(2, &limits)];
        let relay = [first.clone(), replicas[0].clone()];
        Link::new(&relay, [0, 1], strict == 1, &limits).run(&relay, &mut picks(3));
        Link::new(&replicas, [0, 1], strict == 1, &limits).run(&replicas, &mut picks(4));
        for replica in &replicas {
            let nobody = |(_, (_, principal, _)): &(_, (NodeId, String, Admission))| principal.is_empty();
            let named = |owners: BTreeMap<_, _>| owners.into_iter().filter(|owner| !nobody(owner)).collect::<Vec<_>>();
            assert_eq!(named(replica.owners()), named(owners.clone()), "{instead} {strict}");
        }
    }
}

/// A node is believed in whose an author is; a client is not.
#[test]
fn what_a_client_says_of_authors_is_passed_over() {
    let limits = Limits::DEFAULT;
    for role in [Role::Node, Role::Client] {
        let replicas = [Replica::new(0, &limits), Replica::new(1, &limits)];
        replicas[1].edit(0, 0);
        settle(&replicas, true, &limits, &mut picks(5));
        replicas[0].edit(0, 3);
        let known = replicas[1].owners();
        let new = replicas[0].owners().into_iter().find(|(author, _)| !known.contains_key(author));
        let ((document, actor), _) = new.unwrap();
        let origin = wire::Origin { node: NodeId([9; 32]), principal: "ben".into(), admission: 2, rules_version: 0 };
        let authors = vec![wire::Author { actor: actor.as_bytes().to_vec(), origin: 0 }];
        let said = wire::Frame::Authors(wire::Authors { document, origins: vec![origin], authors });
        let mut link = Link::of(role, &replicas, [0, 1], true, &limits);
        let said = said.encode().unwrap();
        link.meddler = Some(Box::new(move |side, channel, frame| match (side, channel) {
            (0, Channel::Document(_)) => vec![said.clone(), frame],
            _ => vec![frame],
        }));
        link.run(&replicas, &mut picks(6));
        assert_eq!(replicas[0].state(), replicas[1].state());
        let said = match role {
            // That of another node is its own word, as that one did not sign it.
            Role::Node => (replicas[0].node, "ben".to_owned(), Admission::Full),
            Role::Client => (replicas[0].node, String::new(), Admission::Structural),
        };
        assert_eq!(replicas[1].owners()[&(document, actor)], said);
    }
}

/// Two replicas that share documents and went apart on them.
fn apart(limits: &Limits) -> Vec<Replica> {
    let replicas: Vec<Replica> = (0..2).map(|n| Replica::new(n, limits)).collect();
    for n in 0..40 {
        replicas[n % 2].edit(n, n as u8);
    }
    settle(&replicas, false, limits, &mut picks(7));
    for n in 0..40 {
        replicas[n % 2].edit(n / 2, (n * 7 + 3) as u8);
    }
    replicas
}

#[test]
fn a_reconnect_with_nothing_changed_costs_less_than_a_kibibyte() {
    for strict in [false, true] {
        let limits = Limits::DEFAULT;
        let replicas = apart(&limits);
        settle(&replicas, strict, &limits, &mut picks(3));
        let before: Vec<_> = replicas.iter().map(|replica| replica.database.reader().tail()).collect();
        let mut link = Link::new(&replicas, [0, 1], strict, &limits);
        link.run(&replicas, &mut picks(5));
        assert!(link.bytes < 1024, "{} bytes", link.bytes);
        assert!(link.ends.iter().all(|end| end.caught_up));
        let after: Vec<_> = replicas.iter().map(|replica| replica.database.reader().tail()).collect();
        assert_eq!(before, after, "nothing is logged for it");
    }
}

#[test]
fn an_edit_on_a_standing_link_arrives_and_is_not_sent_back() {
    let limits = Limits::DEFAULT;
    let replicas = apart(&limits);
    let mut picks = picks(11);
    settle(&replicas, false, &limits, &mut picks);
    let mut link = Link::new(&replicas, [0, 1], false, &limits);
    link.run(&replicas, &mut picks);
    for n in 0..20 {
        let (before, authors) = (link.bytes, replicas[n % 2].owners().len());
        replicas[n % 2].edit(n, 8 * (n as u8) + 3);
        link.run(&replicas, &mut picks);
        assert_eq!(replicas[0].state(), replicas[1].state());
        // With an author's first change in a document goes a signature.
        let most = if replicas[n % 2].owners().len() > authors { 600 } else { 400 };
        assert!(link.bytes - before < most, "{} bytes for a small edit, {most} at most", link.bytes - before);
    }
}

#[test]
fn a_replica_that_lost_everything_gets_it_back_even_what_it_wrote_itself() {
    for strict in [false, true] {
        let limits = tight();
        let mut replicas = apart(&limits);
        settle(&replicas, false, &limits, &mut picks(3));
        let state = replicas[0].state();
        // The same key, an empty disk.
        replicas[1] = Replica::new(1, &limits);
        settle(&replicas, strict, &limits, &mut picks(9));
        assert_eq!(replicas[1].state(), state);
    }
}

/// A peer that keeps the link and never answers about a document holds up our cursor on its log, for two minutes.
#[test]
fn a_peer_that_is_silent_about_a_document_loses_the_link() {
    let limits = Limits::DEFAULT;
    let replicas = apart(&limits);
    let mut link = Link::new(&replicas, [0, 1], true, &limits);
    for pick in 0..2000 {
        link.step(&replicas, pick);
        // What the peer says on documents' streams is never heard.
        link.ends[0].incoming.retain(|channel, _| !matches!(channel, Channel::Document(_)));
    }
    assert!(!link.ends[0].caught_up, "an exchange is under way, and the cursor waits for it");
    let reader = replicas[0].database.reader();
    assert!(link.ends[0].session.poll(link.now + Duration::from_secs(119), reader).unwrap().is_none());
    let deadline = link.ends[0].session.next_timeout().unwrap();
    assert!(deadline <= link.now + Duration::from_secs(120));
    let ended = link.ends[0].session.poll(deadline, reader);
    assert!(matches!(ended, Err(SessionError::Silent { .. })), "{ended:?}");
}
