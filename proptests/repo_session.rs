//! Clients of automerge-repo's protocol, each an Automerge document with Automerge's own sync state as the stock client
//! has it, against sessions that answer from the log.
//!
//! The sockets are queues and stay in order, as WebSockets give. Everything else is free: who is served next, how long
//! the writer takes, when a socket is cut and what was under way then.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use automerge::sync::{State, SyncDoc};
use automerge::transaction::Transactable;
use automerge::{ActorId, AutoCommit, Automerge, ReadDoc};
use proptest::prelude::*;
use tidelog::document::Change;
use tidelog::engine::{Incoming, IncomingBody as Body};
use tidelog::id::{ChangeHash, CollectionName, DocumentId, Heads, Lsn, NodeId};
use tidelog::log::MemoryStorage;
use tidelog::sync::repo::wire::{Create, Ephemeral, Join, Message, Metadata, Route, StoreHeads, Sync};
use tidelog::sync::repo::{
    Hub, Moment, RepoCommon, RepoConfig, RepoFault, RepoOutput, RepoScope, RepoSession, SocketId,
};
use tidelog::sync::{Admitted, IncomingBody, IncomingRow};
use tidelog::{Database, Limits};

use crate::support::{assert_whole, cases};

const SERVER: &str = "server";
const SERVER_STORAGE: &str = "a130d50d-62c4-4b1e-9a1f-0d6f5f5f3a11";

/// A stream of choices from a seed.
fn picks(seed: u64) -> impl FnMut() -> usize {
    let mut state = seed | 1;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    }
}

/// What a client knows of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Requesting,
    Unavailable,
    Ready,
}

struct ClientDocument {
    document: AutoCommit,
    state: State,
    status: Status,
    /// How often it was said not to be there.
    unavailable: usize,
}

/// What a stock client does, without its timers.
struct Client {
    name: String,
    storage: Option<String>,
    documents: BTreeMap<DocumentId, ClientDocument>,
    welcomed: bool,
    socket: Option<SocketId>,
    heard: Vec<(String, u64, Vec<u8>)>,
    heads_heard: Vec<(String, DocumentId, Vec<String>)>,
    errors: Vec<String>,
    count: u64,
    /// Its Automerge is of before the second version of the sync protocol.
    old: bool,
    /// It hears nothing of what it is told.
    deaf: bool,
    /// Sync messages that it got.
    synced: usize,
}

impl Client {
    fn new(n: usize) -> Self {
        Self {
            name: format!("client-{n}"),
            storage: Some(format!("store-{n}")),
            documents: BTreeMap::new(),
            welcomed: false,
            socket: None,
            heard: Vec::new(),
            heads_heard: Vec::new(),
            errors: Vec::new(),
            count: 0,
            old: n == 2,
            deaf: false,
            synced: 0,
        }
    }

    fn route(&self) -> Route<'static> {
        Route { sender: self.name.clone().into(), target: SERVER.into() }
    }

    fn join(&self) -> Vec<u8> {
        let metadata = Metadata { storage: self.storage.clone().map(Into::into), ephemeral: Some(false) };
        let versions = Some(vec!["1".into()]);
        Message::Join(Join { sender: self.name.clone().into(), metadata, versions }).encode()
    }

    fn add(&mut self, id: DocumentId, mut document: AutoCommit) {
        let status = if document.get_heads().is_empty() { Status::Requesting } else { Status::Ready };
        self.documents.insert(id, ClientDocument { document, state: State::new(), status, unavailable: 0 });
    }

    /// What there is to say about a document now.
    fn say(&mut self, id: DocumentId) -> Option<Vec<u8>> {
        let route = self.route();
        if !self.welcomed {
            return None;
        }
        let open = self.documents.get_mut(&id)?;
        let mut message = open.document.sync().generate_sync_message(&mut open.state)?;
        if self.old {
            message.flags = None;
        }
        let data = message.encode();
        let sync = Sync { route, document: id, data: data.into() };
        let asks = open.status == Status::Requesting && open.document.get_heads().is_empty();
        Some(if asks { Message::Request(sync) } else { Message::Sync(sync) }.encode())
    }

    fn say_all(&mut self) -> Vec<Vec<u8>> {
        let ids: Vec<DocumentId> = self.documents.keys().copied().collect();
        ids.into_iter().filter_map(|id| self.say(id)).collect()
    }

    fn take(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let limits = Limits::DEFAULT;
        if self.deaf {
            return Vec::new();
        }
        match Message::read(bytes, &limits).unwrap() {
            Message::Peer(peer) => {
                assert_eq!((&*peer.route.target, &*peer.version), (&*self.name, "1"));
                assert_eq!(peer.metadata.storage.as_deref(), Some(SERVER_STORAGE));
                self.welcomed = true;
                self.say_all()
            }
            Message::Sync(sync) => {
                assert_eq!((&*sync.route.sender, &*sync.route.target), (SERVER, &*self.name));
                let open = self.documents.get_mut(&sync.document).expect("only documents that were asked for");
                let mut message = automerge::sync::Message::decode(&sync.data).unwrap();
                if self.old {
                    assert_eq!(sync.data[0], 0x42, "an old client reads the first version only");
                    message.flags = None;
                }
                self.synced += 1;
                // A stock client passes over what does not apply.
                let _ = open.document.sync().receive_sync_message(&mut open.state, message);
                if !open.document.get_heads().is_empty() {
                    open.status = Status::Ready;
                }
                self.say(sync.document).into_iter().collect()
            }
            Message::DocUnavailable { document, .. } => {
                let open = self.documents.get_mut(&document).unwrap();
                open.unavailable += 1;
                if open.status == Status::Requesting {
                    open.status = Status::Unavailable;
                }
                Vec::new()
            }
            Message::Ephemeral(ephemeral) => {
                assert_ne!(ephemeral.route.sender, self.name, "nobody hears himself");
                self.heard.push((ephemeral.route.sender.to_string(), ephemeral.count, ephemeral.data.to_vec()));
                // Stock clients send it back, in its author's name.
                let target = SERVER.into();
                let route = Route { target, ..ephemeral.route.clone() };
                vec![Message::Ephemeral(Ephemeral { route, ..ephemeral }).encode()]
            }
            Message::RemoteHeadsChanged { document, heads, .. } => {
                for heads in heads {
                    let texts = heads.heads.iter().map(ToString::to_string).collect();
                    self.heads_heard.push((heads.storage.to_string(), document, texts));
                }
                Vec::new()
            }
            Message::Error { message, .. } => {
                self.errors.push(message.to_string());
                Vec::new()
            }
            other => panic!("a server does not say {other:?}"),
        }
    }

    /// The connection is gone; what both are known to share may be kept.
    fn disconnect(&mut self, keep: bool) {
        self.welcomed = false;
        self.socket = None;
        for open in self.documents.values_mut() {
            open.state = if keep { State::decode(&open.state.encode()).unwrap() } else { State::new() };
        }
    }

    fn heads(&mut self, id: DocumentId) -> Heads {
        heads_of(&mut self.documents.get_mut(&id).unwrap().document)
    }
}

fn heads_of(document: &mut AutoCommit) -> Heads {
    Heads::new(document.get_heads().into_iter().map(|hash| ChangeHash(hash.0)).collect())
}

struct Socket {
    session: RepoSession,
    client: usize,
    up: VecDeque<Vec<u8>>,
    down: VecDeque<Vec<u8>>,
    writer: VecDeque<(u64, Vec<IncomingRow>)>,
    /// A message was given to the socket and is not gone.
    sending: bool,
    fault: Option<RepoFault>,
}

struct World {
    database: Database,
    limits: Limits,
    path: &'static str,
    common: Arc<RepoCommon>,
    hub: Hub,
    sockets: BTreeMap<SocketId, Socket>,
    clients: Vec<Client>,
    opened: u64,
    followed: Lsn,
    start: Instant,
    ms: u64,
    bytes_down: usize,
    /// A client that nothing reaches.
    far: Option<usize>,
}

impl World {
    fn new(clients: usize, limits: &Limits) -> Self {
        let database = Database::on(MemoryStorage::new()).node(NodeId([9; 32])).limits(limits.clone()).open().unwrap();
        Self {
            database,
            limits: limits.clone(),
            path: "/sync",
            common: Arc::default(),
            hub: Hub::new(limits.repo_remembered_heads),
            sockets: BTreeMap::new(),
            clients: (0..clients).map(Client::new).collect(),
            opened: 0,
            followed: Lsn::ZERO,
            start: Instant::now(),
            ms: 0,
            bytes_down: 0,
            far: None,
        }
    }

    fn now(&self) -> Moment {
        Moment { at: self.start + Duration::from_millis(self.ms), unix_ms: 1_700_000_000_000 + self.ms }
    }

    /// Opens a socket, and closes the one that the client had without anybody hearing of it.
    fn connect(&mut self, client: usize) -> SocketId {
        self.opened += 1;
        let socket = SocketId(self.opened);
        let config = RepoConfig {
            node: self.database.node(),
            peer: SERVER.into(),
            storage: SERVER_STORAGE.into(),
            scope: RepoScope::of_path(self.path).unwrap().unwrap(),
            principal: String::new(),
            permits: None,
            common: self.common.clone(),
            limits: self.limits.clone(),
        };
        let join = self.clients[client].join();
        self.clients[client].welcomed = false;
        self.clients[client].socket = Some(socket);
        let session = RepoSession::new(config);
        let (up, down, writer) = (VecDeque::from([join]), VecDeque::new(), VecDeque::new());
        self.sockets.insert(socket, Socket { session, client, up, down, writer, sending: false, fault: None });
        socket
    }

    fn cut(&mut self, client: usize, keep: bool) {
        if let Some(socket) = self.clients[client].socket {
            self.sockets.remove(&socket);
            self.hub.handle_closed(socket);
        }
        self.clients[client].disconnect(keep);
    }

    fn socket(&mut self, client: usize) -> &mut Socket {
        let socket = self.clients[client].socket.unwrap();
        self.sockets.get_mut(&socket).unwrap()
    }

    fn send(&mut self, client: usize, messages: impl IntoIterator<Item = Vec<u8>>) {
        if let Some(socket) = self.clients[client].socket.and_then(|socket| self.sockets.get_mut(&socket)) {
            socket.up.extend(messages);
        }
    }

    fn create(&mut self, client: usize) -> DocumentId {
        let id = DocumentId::random();
        let mut document = AutoCommit::new();
        document.put(automerge::ROOT, "made", client as i64).unwrap();
        document.commit();
        self.clients[client].add(id, document);
        let said = self.clients[client].say(id);
        self.send(client, said);
        id
    }

    fn find(&mut self, client: usize, id: DocumentId) {
        if !self.clients[client].documents.contains_key(&id) {
            self.clients[client].add(id, AutoCommit::new());
            let said = self.clients[client].say(id);
            self.send(client, said);
        }
    }

    fn edit(&mut self, client: usize, id: DocumentId, value: i64) {
        let Some(open) = self.clients[client].documents.get_mut(&id) else { return };
        if open.status != Status::Ready {
            return;
        }
        let text = "tide ".repeat(if value % 7 == 0 { 400 } else { 1 });
        open.document.put(automerge::ROOT, format!("k{}", value % 5), text + &value.to_string()).unwrap();
        open.document.commit();
        let said = self.clients[client].say(id);
        self.send(client, said);
    }

    /// Does one thing, chosen by `pick`; `false` when nothing is to do.
    fn step(&mut self, pick: usize) -> bool {
        self.ms += 1;
        let mut ready: Vec<(SocketId, usize)> = Vec::new();
        for (id, socket) in &self.sockets {
            let can = [
                !socket.up.is_empty() && socket.session.accepts(),
                !socket.down.is_empty()
                    && self.clients[socket.client].socket == Some(*id)
                    && self.far != Some(socket.client),
                !socket.writer.is_empty(),
                socket.sending,
            ];
            ready.extend((0..4).filter(|what| can[*what]).map(|what| (*id, what)));
        }
        let grown = self.followed < self.database.reader().tail().lsn;
        let choices = ready.len() + usize::from(grown);
        if choices == 0 {
            return false;
        }
        let Some((id, what)) = ready.get(pick % choices).copied() else {
            self.follow();
            return true;
        };
        let now = self.now();
        let socket = self.sockets.get_mut(&id).unwrap();
        match what {
            0 => {
                let message = socket.up.pop_front().unwrap();
                socket.session.handle_message(now, &message, self.database.reader());
            }
            1 => {
                let message = socket.down.pop_front().unwrap();
                self.bytes_down += message.len();
                let answers = self.clients[socket.client].take(&message);
                socket.up.extend(answers);
            }
            2 => {
                let (ticket, rows) = socket.writer.pop_front().unwrap();
                socket.session.handle_admitted(ticket, admit(&self.database, rows));
            }
            _ => {
                socket.sending = false;
                socket.session.handle_sent();
            }
        }
        self.poll(id);
        true
    }

    fn follow(&mut self) {
        let Some((changed, end)) = self.database.reader().changed_since(self.followed, 1000).unwrap() else { return };
        self.followed = end.lsn;
        for (document, _) in changed {
            let sockets: Vec<SocketId> = self.hub.changed(document).collect();
            for id in sockets {
                self.sockets.get_mut(&id).unwrap().session.handle_changed(document);
                self.poll(id);
            }
        }
    }

    fn poll(&mut self, id: SocketId) {
        let now = self.now();
        let mut polls = VecDeque::from([id]);
        while let Some(id) = polls.pop_front() {
            let Some(socket) = self.sockets.get_mut(&id) else { continue };
            let Some(output) = socket.session.poll(now, self.database.reader()) else { continue };
            match output {
                RepoOutput::Send(bytes) => {
                    assert!(!socket.sending, "one message at a time");
                    socket.sending = true;
                    socket.down.push_back(bytes);
                }
                RepoOutput::Admit { ticket, rows } => socket.writer.push_back((ticket, rows)),
                // This database saves by itself; nobody waits for it here.
                RepoOutput::Save(document) => socket.session.handle_saved(document),
                RepoOutput::Event(event) => {
                    for (other, notice) in self.hub.handle(id, event) {
                        if let Some(socket) = self.sockets.get_mut(&other) {
                            socket.session.handle_notice(notice);
                            polls.push_back(other);
                        }
                    }
                }
                RepoOutput::Close(fault) => {
                    socket.fault = Some(fault);
                    self.hub.handle_closed(id);
                    continue;
                }
                other => panic!("{other:?}"),
            }
            polls.push_back(id);
        }
    }

    fn run(&mut self, picks: &mut dyn FnMut() -> usize) {
        for _ in 0..100_000 {
            if !self.step(picks()) {
                return;
            }
        }
        panic!("the sockets never come to rest");
    }

    /// Everybody who has a document has what the log has, and knows that the server has it.
    fn assert_converged(&mut self) {
        let reader = self.database.reader().clone();
        for client in &mut self.clients {
            let ids: Vec<DocumentId> = client.documents.keys().copied().collect();
            for id in ids {
                let logged = reader.document(id).unwrap().map(|state| state.heads).unwrap_or_default();
                assert_eq!(client.heads(id), logged, "{} of {}", id, client.name);
                let open = &client.documents[&id];
                let told = open.state.their_heads.clone().unwrap_or_default();
                let told = Heads::new(told.into_iter().map(|hash| ChangeHash(hash.0)).collect());
                assert_eq!(told, logged, "{} of {}: what the client sees as saved", id, client.name);
                assert_eq!(open.status == Status::Ready, !logged.is_empty(), "{} of {}", id, client.name);
            }
        }
        assert_eq!(self.database.status().materializations, 0, "no document was built");
        assert_whole(&self.database);
    }
}

fn admit(database: &Database, rows: Vec<IncomingRow>) -> Admitted {
    let mut incoming = Vec::new();
    for IncomingRow { document, body, origin, .. } in rows {
        let changes = match body {
            IncomingBody::Change(change) => vec![*change],
            IncomingBody::Lifecycle(bytes) => {
                incoming.push(Incoming { document, body: Body::Lifecycle(bytes), origin, signature: None });
                continue;
            }
            IncomingBody::Document { bytes, .. } => {
                let changes = Automerge::load(&bytes).unwrap().get_changes(&[]);
                changes.into_iter().map(|change| Change::from_automerge(change).unwrap()).collect()
            }
        };
        let row = |change| Incoming {
            document,
            body: Body::Change(Box::new(change)),
            origin: origin.clone(),
            signature: None,
        };
        incoming.extend(changes.into_iter().map(row));
    }
    let admitted = database.admit_blocking(incoming).unwrap();
    assert!(admitted.refused.is_empty(), "{:?}", admitted.refused);
    Admitted { missing: admitted.missing, ..Admitted::default() }
}

/// Small bounds, so that messages are many and the socket is often full.
fn tight() -> Limits {
    let mut limits = Limits::DEFAULT;
    limits.batch_bytes = 700;
    limits.repo_batch_bytes = 700;
    limits
}

#[derive(Debug, Clone)]
enum Event {
    Create(usize),
    Find(usize, usize),
    Edit(usize, usize, i64),
    Cut(usize, bool),
    Connect(usize),
    Steps(usize),
    Say(usize, usize),
}

fn event() -> impl Strategy<Value = Event> {
    let any = any::<usize>;
    prop_oneof![
        1 => any().prop_map(Event::Create),
        2 => (any(), any()).prop_map(|(who, which)| Event::Find(who, which)),
        5 => (any(), any(), 0..1000_i64).prop_map(|(who, which, value)| Event::Edit(who, which, value)),
        1 => (any(), proptest::bool::ANY).prop_map(|(who, keep)| Event::Cut(who, keep)),
        2 => any().prop_map(Event::Connect),
        4 => (0..40_usize).prop_map(Event::Steps),
        1 => (any(), any()).prop_map(|(who, which)| Event::Say(who, which)),
    ]
}

fn ephemeral(client: &mut Client, document: DocumentId, data: &[u8]) -> Vec<u8> {
    client.count += 1;
    let session = "session".into();
    Message::Ephemeral(Ephemeral {
        route: client.route(),
        document,
        count: client.count,
        session,
        data: data.to_vec().into(),
    })
    .encode()
}

proptest! {
    #![proptest_config(cases(256))]

    /// Three clients create, find, edit offline and online, and share presence, while sockets are cut at any message
    /// and opened again with kept and with fresh sync states. Once sockets last, all have what the log has.
    #[test]
    fn clients_converge_through_cut_sockets(
        events in prop::collection::vec(event(), 1..60),
        seed in any::<u64>(),
        roomy in any::<bool>(),
    ) {
        let limits = if roomy { Limits::DEFAULT } else { tight() };
        let mut world = World::new(3, &limits);
        let mut picks = picks(seed);
        let mut ids = vec![DocumentId::random()];
        for event in events {
            match event {
                Event::Create(who) => ids.push(world.create(who % 3)),
                Event::Find(who, which) => world.find(who % 3, ids[which % ids.len()]),
                Event::Edit(who, which, value) => world.edit(who % 3, ids[which % ids.len()], value),
                Event::Cut(who, keep) => world.cut(who % 3, keep),
                Event::Connect(who) => {
                    if world.clients[who % 3].socket.is_none() {
                        world.connect(who % 3);
                    }
                }
                Event::Steps(count) => (0..count).for_each(|_| { world.step(picks()); }),
                Event::Say(who, which) => {
                    let said = ephemeral(&mut world.clients[who % 3], ids[which % ids.len()], &[1]);
                    if world.clients[who % 3].welcomed {
                        world.send(who % 3, [said]);
                    }
                }
            }
        }
        for client in 0..3 {
            if world.clients[client].socket.is_none() {
                world.connect(client);
            }
        }
        world.run(&mut picks);
        prop_assert!(world.clients.iter().all(|client| client.errors.is_empty()));
        world.assert_converged();
    }
}

proptest! {
    #![proptest_config(cases(128))]

    /// Whatever one client sends, in whatever order, others are served as if it were not there.
    #[test]
    fn a_hostile_client_harms_nobody_else(
        script in prop::collection::vec((0..9_u8, 0..3_usize, vec_of_bytes(), prop::collection::vec(flip(), 0..3)), 1..40),
        seed in any::<u64>(),
    ) {
        let mut world = World::new(3, &tight());
        let mut picks = picks(seed);
        (0..3).for_each(|client| { world.connect(client); });
        world.run(&mut picks);
        world.clients[1].deaf = true;
        let id = world.create(0);
        let ids = [id, DocumentId::random(), DocumentId::random()];
        for (n, (kind, which, bytes, flips)) in script.into_iter().enumerate() {
            let mut message = hostile(&world.clients[1], kind, ids[which], bytes);
            for (at, byte) in flips {
                let at = at.index(message.len().max(1));
                message.get_mut(at).into_iter().for_each(|there| *there = byte);
            }
            world.send(1, [message]);
            world.edit(0, id, n as i64);
            (0..picks() % 8).for_each(|_| { world.step(picks()); });
            if world.socket(1).fault.is_some() {
                world.connect(1);
            }
        }
        world.run(&mut picks);
        world.find(2, id);
        world.run(&mut picks);
        world.clients.remove(1);
        prop_assert!(world.clients.iter().all(|client| client.errors.is_empty()));
        world.assert_converged();
    }
}

fn vec_of_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..60)
}

fn flip() -> impl Strategy<Value = (prop::sample::Index, u8)> {
    (any::<prop::sample::Index>(), any::<u8>())
}

fn hostile(client: &Client, kind: u8, document: DocumentId, bytes: Vec<u8>) -> Vec<u8> {
    let route = client.route();
    let mut doc = AutoCommit::new();
    let mut say = |changes: i64| {
        (0..changes).for_each(|n| {
            doc.put(automerge::ROOT, "n", n).unwrap();
            doc.commit();
        });
        let mut state = State::new();
        state.their_heads = Some(Vec::new());
        state.their_have = Some(vec![automerge::sync::Have::default()]);
        state.their_need = Some(Vec::new());
        let data = doc.sync().generate_sync_message(&mut state).unwrap().encode();
        Sync { route: route.clone(), document, data: data.into() }
    };
    match kind {
        0 => bytes,
        1 => client.join(),
        2 => Message::Sync(say(3)).encode(),
        3 => Message::Request(say(0)).encode(),
        4 => Message::Sync(Sync { route, document, data: bytes.into() }).encode(),
        5 => Message::DocUnavailable { route, document }.encode(),
        6 => Message::Ephemeral(Ephemeral {
            route,
            document,
            count: bytes.len() as u64,
            session: "s".into(),
            data: bytes.into(),
        })
        .encode(),
        7 => {
            let heads = vec![client.name.clone().into(), String::from_utf8_lossy(&bytes).into_owned().into()];
            let heads = vec![StoreHeads { storage: "store-0".into(), heads, timestamp: 1e300 }];
            Message::RemoteHeadsChanged { route, document, heads }.encode()
        }
        _ => {
            let collection = CollectionName::new("hostile").unwrap();
            Message::Create(Create { sender: None, document, collection, name: None }).encode()
        }
    }
}

#[test]
fn an_edit_reaches_who_has_the_document_open_and_nobody_else() {
    let mut world = World::new(3, &Limits::DEFAULT);
    let mut picks = picks(1);
    (0..3).for_each(|client| {
        world.connect(client);
    });
    world.run(&mut picks);
    let id = world.create(0);
    world.find(1, id);
    world.run(&mut picks);
    world.edit(0, id, 3);
    world.run(&mut picks);
    world.edit(1, id, 4);
    world.run(&mut picks);
    world.assert_converged();
    assert!(world.clients[2].documents.is_empty(), "a server announces nothing");
    let state = world.database.reader().document(id).unwrap().unwrap();
    assert_eq!((state.collection.as_str(), state.change_count), ("default", 3));
}

#[test]
fn a_document_that_is_not_there_is_unavailable_once_to_all_who_ask_and_found_when_it_appears() {
    let mut world = World::new(3, &Limits::DEFAULT);
    let mut picks = picks(2);
    (0..3).for_each(|client| {
        world.connect(client);
    });
    let id = DocumentId::random();
    world.find(0, id);
    world.find(1, id);
    world.run(&mut picks);
    for client in &world.clients[..2] {
        assert_eq!((client.documents[&id].status, client.documents[&id].unavailable), (Status::Unavailable, 1));
    }
    assert!(world.database.reader().document(id).unwrap().is_none(), "asking creates nothing");
    let mut document = AutoCommit::new();
    document.put(automerge::ROOT, "late", 1).unwrap();
    document.commit();
    world.clients[2].add(id, document);
    let said = world.clients[2].say(id);
    world.send(2, said);
    world.run(&mut picks);
    world.assert_converged();
    assert!(world.clients.iter().all(|client| client.documents[&id].unavailable <= 1));
}

#[test]
fn a_reconnecting_client_learns_that_nothing_is_new_with_few_bytes() {
    for keep in [true, false] {
        let mut world = World::new(1, &Limits::DEFAULT);
        let mut picks = picks(3);
        world.connect(0);
        world.run(&mut picks);
        let id = world.create(0);
        (0..50).for_each(|n| world.edit(0, id, n));
        world.run(&mut picks);
        world.cut(0, keep);
        world.bytes_down = 0;
        world.connect(0);
        world.run(&mut picks);
        world.assert_converged();
        assert!(world.bytes_down < 1024, "{} bytes", world.bytes_down);
    }
}

#[test]
fn what_is_said_as_saved_is_durable_before() {
    let mut world = World::new(1, &Limits::DEFAULT);
    world.connect(0);
    world.run(&mut picks(4));
    let id = world.create(0);
    for pick in 0..10_000 {
        // The writer is never served: nothing is durable.
        let withheld = world.socket(0).writer.drain(..).collect::<Vec<_>>();
        let went_on = world.step(pick);
        let told = world.clients[0].documents[&id].state.their_heads.clone().unwrap_or_default();
        assert!(told.is_empty(), "told before it was logged");
        world.socket(0).writer.extend(withheld);
        if !went_on {
            break;
        }
    }
    assert_eq!(world.socket(0).writer.len(), 1);
    world.run(&mut picks(5));
    world.assert_converged();
}

#[test]
fn presence_reaches_the_others_once_and_echoes_go_nowhere() {
    let mut world = World::new(4, &Limits::DEFAULT);
    let mut picks = picks(6);
    (0..4).for_each(|client| {
        world.connect(client);
    });
    let id = world.create(0);
    world.run(&mut picks);
    (1..3).for_each(|client| world.find(client, id));
    world.run(&mut picks);
    let said = ephemeral(&mut world.clients[0], id, b"\xb9\x00\x01\x66cursor\x03");
    world.send(0, [said.clone(), said]);
    world.run(&mut picks);
    let heard = [("client-0".to_owned(), 1, b"\xb9\x00\x01\x66cursor\x03".to_vec())];
    assert_eq!(world.clients[1].heard, heard);
    assert_eq!(world.clients[2].heard, heard);
    assert!(world.clients[0].heard.is_empty() && world.clients[3].heard.is_empty());
    // Bytes that are no value could end a stock client.
    let said = ephemeral(&mut world.clients[0], id, b"\x9f");
    world.send(0, [said]);
    // Who has not opened the document has nothing to say about it.
    let said = ephemeral(&mut world.clients[3], id, b"\x01");
    world.send(3, [said]);
    world.run(&mut picks);
    assert_eq!(world.clients[1].heard.len(), 1);
}

#[test]
fn heads_of_stores_are_told_to_subscribers_and_only_when_durable() {
    let mut world = World::new(2, &Limits::DEFAULT);
    let mut picks = picks(7);
    (0..2).for_each(|client| {
        world.connect(client);
    });
    world.run(&mut picks);
    let id = world.create(0);
    world.find(1, id);
    world.run(&mut picks);
    let (add, remove) = (vec!["store-0".into()], Vec::new());
    let subscribe = Message::RemoteSubscriptionChange { route: world.clients[1].route(), add, remove }.encode();
    world.send(1, [subscribe]);
    world.run(&mut picks);
    let last = |world: &World| world.clients[1].heads_heard.last().cloned();
    let text = |heads: Heads| -> Vec<String> {
        heads.as_slice().iter().map(|head| bs58::encode(head.0).with_check().into_string()).collect()
    };
    let heads = text(world.clients[0].heads(id));
    assert_eq!(last(&world), Some(("store-0".into(), id, heads)), "what was known before");
    world.edit(0, id, 5);
    world.run(&mut picks);
    let heads = text(world.clients[0].heads(id));
    assert_eq!(last(&world), Some(("store-0".into(), id, heads)));
    // A client may speak for a store behind it, but not of what is not durable here.
    let before = world.clients[1].heads_heard.len();
    let lie = StoreHeads { storage: "store-0".into(), heads: vec!["00".repeat(32).into()], timestamp: 9e15 };
    let route = world.clients[0].route();
    world.send(0, [Message::RemoteHeadsChanged { route, document: id, heads: vec![lie] }.encode()]);
    world.run(&mut picks);
    assert_eq!(world.clients[1].heads_heard.len(), before);
}

#[test]
fn one_name_connecting_twice_replaces_the_older_socket() {
    let mut world = World::new(1, &Limits::DEFAULT);
    let mut picks = picks(8);
    let first = world.connect(0);
    world.run(&mut picks);
    let id = world.create(0);
    world.run(&mut picks);
    world.clients[0].disconnect(true);
    world.connect(0);
    world.run(&mut picks);
    assert!(matches!(world.sockets[&first].fault, Some(RepoFault::Replaced)));
    world.edit(0, id, 1);
    world.run(&mut picks);
    world.assert_converged();
}

#[test]
fn a_path_confines_what_is_served_and_says_where_new_documents_go() {
    let mut world = World::new(2, &Limits::DEFAULT);
    let mut picks = picks(9);
    world.connect(0);
    world.path = "/sync/notes";
    world.connect(1);
    world.run(&mut picks);
    let (elsewhere, notes) = (world.create(0), world.create(1));
    world.run(&mut picks);
    world.find(1, elsewhere);
    world.find(0, notes);
    world.run(&mut picks);
    assert_eq!(world.clients[1].documents[&elsewhere].status, Status::Unavailable);
    assert_eq!(world.clients[0].documents[&notes].status, Status::Ready);
    let collection = |id| world.database.reader().document(id).unwrap().unwrap().collection;
    assert_eq!((collection(elsewhere).as_str(), collection(notes).as_str()), ("default", "notes"));
    // A deleted document is not there, until it is restored.
    let handle = world.database.find(notes).unwrap();
    handle.delete().unwrap().wait().unwrap();
    world.cut(0, false);
    world.clients[0].documents.clear();
    world.path = "/sync";
    world.connect(0);
    world.find(0, notes);
    world.run(&mut picks);
    assert_eq!(world.clients[0].documents[&notes].status, Status::Unavailable);
    handle.restore().unwrap().wait().unwrap();
    world.run(&mut picks);
    assert_eq!(world.clients[0].documents[&notes].status, Status::Ready);
}

#[test]
fn a_client_of_ours_says_where_its_document_goes_before_it_sends_it() {
    let mut world = World::new(1, &Limits::DEFAULT);
    let mut picks = picks(10);
    world.connect(0);
    world.run(&mut picks);
    let id = DocumentId::random();
    let collection = CollectionName::new("messages").unwrap();
    let create = Create { sender: None, document: id, collection: collection.clone(), name: None };
    world.send(0, [Message::Create(create.clone()).encode()]);
    let mut document = AutoCommit::new();
    document.put(automerge::ROOT, "a", 1).unwrap();
    document.commit();
    world.clients[0].add(id, document);
    let said = world.clients[0].say(id);
    world.send(0, said);
    world.run(&mut picks);
    world.assert_converged();
    let reader = world.database.reader().clone();
    assert_eq!(reader.document(id).unwrap().unwrap().collection, collection);
    // What exists is not moved by saying so again.
    let create = Create { collection: CollectionName::new("other").unwrap(), ..create };
    world.send(0, [Message::Create(create.clone()).encode()]);
    world.run(&mut picks);
    assert_eq!(reader.document(id).unwrap().unwrap().collection, collection);
    // Nor is a name taken that leads elsewhere.
    world.send(0, [Message::Create(Create { name: Some("config".into()), ..create }).encode()]);
    world.run(&mut picks);
    assert_eq!(world.clients[0].errors.len(), 1);
}

#[test]
fn faults_close_one_socket_with_a_reason_and_leave_the_others_alone() {
    let garbage: [(&[u8], u16); 5] = [
        (b"", 1002),
        (b"\xff\xff\xff", 1007),
        (b"\xa1\x64type\x05", 1007),
        (b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff", 1002),
        (b"\x9f\x9f\x9f", 1007),
    ];
    let mut world = World::new(2, &Limits::DEFAULT);
    let mut picks = picks(11);
    world.connect(0);
    world.run(&mut picks);
    let id = world.create(0);
    world.run(&mut picks);
    for (n, (bytes, code)) in garbage.into_iter().enumerate() {
        world.cut(1, false);
        let socket = world.connect(1);
        world.run(&mut picks);
        world.send(1, [bytes.to_vec()]);
        world.run(&mut picks);
        assert_eq!(world.sockets[&socket].fault.as_ref().map(RepoFault::code), Some(code), "{bytes:?}");
        assert_eq!(world.clients[1].errors.len(), n + 1, "and the client is told");
    }
    // Sync messages that are none, and versions that are not ours.
    world.cut(1, false);
    world.connect(1);
    world.run(&mut picks);
    let route = world.clients[1].route();
    world.send(1, [Message::Sync(Sync { route, document: id, data: b"\x42\x00".into() }).encode()]);
    world.run(&mut picks);
    assert_eq!(world.socket(1).fault.as_ref().map(RepoFault::code), Some(1007));
    world.cut(1, false);
    world.connect(1);
    let join = Join { sender: "client-1".into(), metadata: Metadata::default(), versions: Some(vec!["2".into()]) };
    world.socket(1).up = VecDeque::from([Message::Join(join).encode()]);
    world.run(&mut picks);
    assert_eq!(world.clients[1].errors.last().map(String::as_str), Some("unsupported protocol version"));
    assert_eq!(world.socket(1).fault.as_ref().map(RepoFault::code), Some(1002));
    // What comes before a join, in another's name or of a type nobody knows is not heard, and nothing is closed.
    world.cut(1, false);
    world.connect(1);
    let stray = Message::DocUnavailable { route: world.clients[0].route(), document: id }.encode();
    let unknown = Message::Unknown("subduction".into()).encode();
    world.socket(1).up.push_front(stray.clone());
    world.send(1, [stray, unknown]);
    world.run(&mut picks);
    assert!(world.socket(1).fault.is_none());
    world.find(1, id);
    world.edit(0, id, 2);
    world.run(&mut picks);
    world.assert_converged();
}

#[test]
fn the_documents_of_one_socket_are_bounded() {
    let mut limits = Limits::DEFAULT;
    limits.repo_documents = 3;
    let mut world = World::new(1, &limits);
    let mut picks = picks(12);
    world.connect(0);
    world.run(&mut picks);
    for _ in 0..4 {
        world.find(0, DocumentId::random());
    }
    world.run(&mut picks);
    assert!(matches!(world.socket(0).fault, Some(RepoFault::TooMany { max: 3, .. })));
    assert_eq!(world.clients[0].errors, ["too many documents: 3 are allowed"]);
}

#[test]
fn changes_that_branch_off_at_many_authors_all_arrive() {
    let mut world = World::new(1, &tight());
    let mut picks = picks(13);
    let id = DocumentId::random();
    let mut document = AutoCommit::new();
    document.put(automerge::ROOT, "n", 0).unwrap();
    document.commit();
    for n in 0..40_u8 {
        let mut fork = document.fork().with_actor(ActorId::from([n; 16]));
        fork.put(automerge::ROOT, "n", i64::from(n)).unwrap();
        fork.commit();
        document.merge(&mut fork).unwrap();
    }
    assert!(document.get_all(automerge::ROOT, "n").unwrap().len() > 1 || document.get_heads().len() == 1);
    world.clients[0].add(id, document);
    world.connect(0);
    world.run(&mut picks);
    world.assert_converged();
    world.cut(0, false);
    world.clients[0].documents.clear();
    world.connect(0);
    world.run(&mut picks);
    world.find(0, id);
    world.run(&mut picks);
    world.assert_converged();
}

#[test]
fn edits_that_come_faster_than_a_reader_answers_reach_it_together() {
    let mut world = World::new(2, &Limits::DEFAULT);
    let mut picks = picks(14);
    (0..2).for_each(|client| {
        world.connect(client);
    });
    world.run(&mut picks);
    let id = world.create(0);
    world.find(1, id);
    world.run(&mut picks);
    let before = world.clients[1].synced;
    // The reader is far away: nothing reaches it, and what waits for it does not grow.
    world.far = Some(1);
    for n in 0..50 {
        world.edit(0, id, n);
        world.run(&mut picks);
        assert!(world.socket(1).down.len() <= 1, "one message is under way, the rest is in the log");
    }
    world.far = None;
    world.run(&mut picks);
    world.assert_converged();
    let messages = world.clients[1].synced - before;
    assert!(messages <= 4, "{messages} messages for 50 edits");
}

#[test]
fn what_was_edited_while_a_document_was_deleted_arrives_once_it_is_restored() {
    for old in [false, true] {
        let mut world = World::new(1, &Limits::DEFAULT);
        world.clients[0].old = old;
        let mut picks = picks(15);
        world.connect(0);
        world.run(&mut picks);
        let id = world.create(0);
        world.run(&mut picks);
        let handle = world.database.find(id).unwrap();
        handle.delete().unwrap().wait().unwrap();
        world.run(&mut picks);
        assert_eq!(world.clients[0].documents[&id].unavailable, 0, "nobody asked");
        let before = world.database.reader().document(id).unwrap().unwrap().change_count;
        for n in 0..80 {
            world.edit(0, id, n);
            world.run(&mut picks);
        }
        assert_eq!(world.database.reader().document(id).unwrap().unwrap().change_count, before);
        handle.restore().unwrap().wait().unwrap();
        world.run(&mut picks);
        world.assert_converged();
    }
}

#[test]
fn two_that_write_under_one_author_come_to_rest() {
    let mut world = World::new(2, &Limits::DEFAULT);
    let mut picks = picks(16);
    let id = DocumentId::random();
    for client in 0..2 {
        let mut document = AutoCommit::new().with_actor(ActorId::from([7; 16]));
        document.put(automerge::ROOT, "mine", client as i64).unwrap();
        document.commit();
        world.clients[client].add(id, document);
        world.connect(client);
    }
    world.run(&mut picks);
    let state = world.database.reader().document(id).unwrap().unwrap();
    assert_eq!(state.change_count, 1, "the first stays");
    assert!(world.clients.iter().all(|client| client.errors.is_empty() && client.synced < 100));
    // And both are still served.
    let other = world.create(0);
    world.find(1, other);
    world.run(&mut picks);
    assert_eq!(world.clients[0].heads(other), world.clients[1].heads(other));
    assert_whole(&world.database);
}
