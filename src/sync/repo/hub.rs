//! What concerns more than one socket of a server: peers by name, documents by who has them open, and messages that are
//! handed on.
//!
//! The hub does no IO and knows no session: it takes what a session puts out as [`RepoEvent`] and answers with what
//! other sessions are to be told, each a [`Notice`].

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use super::ephemeral::Passing;
use crate::id::{DocumentId, Heads};

/// Names a socket among those of one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId(pub u64);

/// What a session tells its server.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RepoEvent {
    /// A client said who it is. It is not answered before [`Notice::Welcome`] or [`Notice::Unwelcome`].
    Joined {
        /// Its peer id, which it chose itself.
        peer: String,
        /// Who it is proven to be; empty for nobody in particular.
        principal: String,
    },
    /// The client spoke of a document for the first time: it is to hear when that changes.
    Opened(DocumentId),
    /// The client wants to hear which heads these stores have, or no more.
    Subscribed {
        /// Stores to hear of.
        add: Vec<String>,
        /// Stores to hear of no more.
        remove: Vec<String>,
    },
    /// Something to hand on to whoever has the document open.
    Ephemeral(Arc<Passing>),
    /// A store has these heads. They are durable here.
    Heads(Arc<StoreHeadsKnown>),
}

/// Which heads a store has.
#[derive(Debug, Clone, PartialEq)]
pub struct StoreHeadsKnown {
    /// Names the store.
    pub storage: String,
    /// Of which document.
    pub document: DocumentId,
    /// The heads.
    pub heads: Heads,
    /// When that was so, ms since 1970.
    pub unix_ms: u64,
}

/// What a session is told by its server.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Notice {
    /// The client may go on.
    Welcome,
    /// The client's name is another's.
    Unwelcome,
    /// The client has connected again: this socket is over.
    Replaced,
    /// Somebody has something to say to whoever has a document open.
    Ephemeral(Arc<Passing>),
    /// A store has these heads.
    Heads(Arc<StoreHeadsKnown>),
}

/// What concerns more than one socket. Feed it every event of every session, and the end of every socket.
#[derive(Debug)]
pub struct Hub {
    sockets: BTreeMap<SocketId, Socket>,
    by_peer: HashMap<String, SocketId>,
    openers: HashMap<DocumentId, BTreeSet<SocketId>>,
    subscribers: HashMap<String, BTreeSet<SocketId>>,
    remembered: HashMap<(DocumentId, String), Arc<StoreHeadsKnown>>,
    /// What is remembered, the oldest first.
    order: VecDeque<(DocumentId, String)>,
    remembered_max: usize,
}

#[derive(Debug)]
struct Socket {
    peer: String,
    principal: String,
    open: BTreeSet<DocumentId>,
    subscriptions: BTreeSet<String>,
}

impl Hub {
    /// Makes a hub that remembers the heads of stores for at most so many pairs of a document and a store.
    #[must_use]
    pub fn new(remembered_max: usize) -> Self {
        Self {
            sockets: BTreeMap::new(),
            by_peer: HashMap::new(),
            openers: HashMap::new(),
            subscribers: HashMap::new(),
            remembered: HashMap::new(),
            order: VecDeque::new(),
            remembered_max,
        }
    }

    /// Takes what the session of socket `from` put out, and gives what sessions are to be told, in order.
    pub fn handle(&mut self, from: SocketId, event: RepoEvent) -> Vec<(SocketId, Notice)> {
        match event {
            RepoEvent::Joined { peer, principal } => self.handle_joined(from, peer, principal),
            RepoEvent::Opened(document) => self.handle_opened(from, document),
            RepoEvent::Subscribed { add, remove } => self.handle_subscribed(from, add, &remove),
            RepoEvent::Ephemeral(passing) => self
                .changed(passing.document)
                .filter(|socket| *socket != from)
                .map(|socket| (socket, Notice::Ephemeral(passing.clone())))
                .collect(),
            RepoEvent::Heads(heads) => self.handle_heads(from, &heads),
        }
    }

    /// The sockets that are to hear that a document changed.
    pub fn changed(&self, document: DocumentId) -> impl Iterator<Item = SocketId> {
        self.openers.get(&document).into_iter().flatten().copied()
    }

    /// Takes note that a socket is closed.
    pub fn handle_closed(&mut self, socket: SocketId) {
        let Some(gone) = self.sockets.remove(&socket) else { return };
        if self.by_peer.get(&gone.peer) == Some(&socket) {
            self.by_peer.remove(&gone.peer);
        }
        for document in gone.open {
            remove_from(&mut self.openers, &document, socket);
        }
        for storage in gone.subscriptions {
            remove_from(&mut self.subscribers, &storage, socket);
        }
    }

    fn handle_joined(&mut self, from: SocketId, peer: String, principal: String) -> Vec<(SocketId, Notice)> {
        let mut notices = Vec::new();
        if let Some(before) = self.by_peer.get(&peer).copied().filter(|before| *before != from) {
            // A name is only what a client says; whom it belongs to is proven by whoever authenticates.
            if self.sockets.get(&before).is_some_and(|socket| socket.principal != principal) {
                return vec![(from, Notice::Unwelcome)];
            }
            self.handle_closed(before);
            notices.push((before, Notice::Replaced));
        }
        self.by_peer.insert(peer.clone(), from);
        let (open, subscriptions) = (BTreeSet::new(), BTreeSet::new());
        self.sockets.insert(from, Socket { peer, principal, open, subscriptions });
        notices.push((from, Notice::Welcome));
        notices
    }

    fn handle_opened(&mut self, from: SocketId, document: DocumentId) -> Vec<(SocketId, Notice)> {
        let Some(socket) = self.sockets.get_mut(&from) else { return Vec::new() };
        socket.open.insert(document);
        self.openers.entry(document).or_default().insert(from);
        let known = socket.subscriptions.iter().filter_map(|storage| self.remembered.get(&(document, storage.clone())));
        known.map(|heads| (from, Notice::Heads(heads.clone()))).collect()
    }

    fn handle_subscribed(&mut self, from: SocketId, add: Vec<String>, remove: &[String]) -> Vec<(SocketId, Notice)> {
        let Some(socket) = self.sockets.get_mut(&from) else { return Vec::new() };
        for storage in remove {
            socket.subscriptions.remove(storage);
            remove_from(&mut self.subscribers, storage, from);
        }
        let mut notices = Vec::new();
        for storage in add {
            for document in &socket.open {
                if let Some(heads) = self.remembered.get(&(*document, storage.clone())) {
                    notices.push((from, Notice::Heads(heads.clone())));
                }
            }
            self.subscribers.entry(storage.clone()).or_default().insert(from);
            socket.subscriptions.insert(storage);
        }
        notices
    }

    fn handle_heads(&mut self, from: SocketId, heads: &Arc<StoreHeadsKnown>) -> Vec<(SocketId, Notice)> {
        let key = (heads.document, heads.storage.clone());
        match self.remembered.get(&key) {
            Some(known) if known.unix_ms > heads.unix_ms || known.heads == heads.heads => return Vec::new(),
            Some(_) => {}
            None => self.order.push_back(key.clone()),
        }
        self.remembered.insert(key, heads.clone());
        while self.order.len() > self.remembered_max
            && let Some(oldest) = self.order.pop_front()
        {
            self.remembered.remove(&oldest);
        }
        let opened = self.openers.get(&heads.document);
        let subscribed = self.subscribers.get(&heads.storage).into_iter().flatten();
        subscribed
            .filter(|socket| **socket != from && opened.is_some_and(|opened| opened.contains(socket)))
            .map(|socket| (*socket, Notice::Heads(heads.clone())))
            .collect()
    }
}

fn remove_from<K: std::hash::Hash + Eq>(map: &mut HashMap<K, BTreeSet<SocketId>>, key: &K, socket: SocketId) {
    if let Some(sockets) = map.get_mut(key) {
        sockets.remove(&socket);
        if sockets.is_empty() {
            map.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ChangeHash;

    fn join(hub: &mut Hub, socket: u64, peer: &str, principal: &str) -> Vec<(SocketId, Notice)> {
        hub.handle(SocketId(socket), RepoEvent::Joined { peer: peer.into(), principal: principal.into() })
    }

    fn heads(document: u8, storage: &str, head: u8, unix_ms: u64) -> RepoEvent {
        let heads = Heads::new(vec![ChangeHash([head; 32])]);
        let document = DocumentId([document; 16]);
        RepoEvent::Heads(Arc::new(StoreHeadsKnown { storage: storage.into(), document, heads, unix_ms }))
    }

    #[test]
    fn a_name_is_taken_over_by_the_same_principal_only() {
        let mut hub = Hub::new(8);
        assert_eq!(join(&mut hub, 1, "a", "ann"), [(SocketId(1), Notice::Welcome)]);
        assert_eq!(join(&mut hub, 2, "a", "bob"), [(SocketId(2), Notice::Unwelcome)]);
        let replaced = [(SocketId(1), Notice::Replaced), (SocketId(3), Notice::Welcome)];
        assert_eq!(join(&mut hub, 3, "a", "ann"), replaced);
        // The end of the socket that was replaced takes nothing from the newer one.
        hub.handle_closed(SocketId(1));
        assert_eq!(join(&mut hub, 4, "a", "bob"), [(SocketId(4), Notice::Unwelcome)]);
        hub.handle_closed(SocketId(3));
        assert_eq!(join(&mut hub, 4, "a", "bob"), [(SocketId(4), Notice::Welcome)]);
    }

    #[test]
    fn a_socket_that_closes_leaves_nothing_behind() {
        let mut hub = Hub::new(8);
        let document = DocumentId([1; 16]);
        for socket in [1, 2] {
            join(&mut hub, socket, &socket.to_string(), "");
            hub.handle(SocketId(socket), RepoEvent::Opened(document));
            let (add, remove) = (vec!["s".into()], Vec::new());
            hub.handle(SocketId(socket), RepoEvent::Subscribed { add, remove });
        }
        assert_eq!(hub.changed(document).count(), 2);
        assert_eq!(hub.handle(SocketId(1), heads(1, "s", 1, 1)).len(), 1);
        hub.handle_closed(SocketId(2));
        assert_eq!(hub.changed(document).collect::<Vec<_>>(), [SocketId(1)]);
        assert!(hub.handle(SocketId(1), heads(1, "s", 2, 2)).is_empty());
        hub.handle_closed(SocketId(1));
        assert!(hub.openers.is_empty() && hub.subscribers.is_empty() && hub.by_peer.is_empty());
        // Nor does a socket that is closed open anything.
        hub.handle(SocketId(1), RepoEvent::Opened(document));
        assert_eq!(hub.changed(document).count(), 0);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_never_goes_back() {
        let mut hub = Hub::new(3);
        join(&mut hub, 1, "a", "");
        hub.handle(SocketId(1), RepoEvent::Opened(DocumentId([9; 16])));
        for document in 0..10 {
            hub.handle(SocketId(2), heads(document, "s", 1, 5));
        }
        assert_eq!((hub.remembered.len(), hub.order.len()), (3, 3));
        hub.handle(SocketId(2), heads(9, "s", 2, 4));
        let told = hub.handle(SocketId(1), RepoEvent::Subscribed { add: vec!["s".into()], remove: Vec::new() });
        let Some((_, Notice::Heads(known))) = told.first() else { panic!("{told:?}") };
        assert_eq!((told.len(), known.heads.as_slice()), (1, &[ChangeHash([1; 32])][..]));
    }
}
