//! All links of a node: who is let in, who is dialled and dialled again, and how each is doing.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::allow::{Admission, AdmittedBy, AllowList, Role};
use super::attester::LinkAttester;
use super::backoff::Backoff;
use super::close::CloseCode;
use super::conversation::{Conversation, Manners, Opening};
use super::door::{Entry, Guards};
use super::endpoint::{Endpoint, Handshake};
use super::error::NetError;
use super::link::Link;
use super::ticket::{Invite, Ticket};
use crate::engine::Database;
use crate::id::NodeId;
use crate::limits::links::PEERS_REMEMBERED;
use crate::sync::wire::{self, Frame, Token};
use crate::sync::{SessionConfig, SessionEvent};

/// How long a stranger with an invite may take to show it.
const INVITE_TIME: Duration = Duration::from_secs(5);
/// How long closing waits for peers to be told.
const CLOSE_TIME: Duration = Duration::from_millis(500);

/// How links are kept.
#[derive(Debug, Clone, Default)]
pub struct LinkOptions {
    /// Every document travels in Automerge sync messages only.
    pub strict: bool,
    /// What says to the nodes that are dialled who our user is.
    pub token: Option<Token>,
}

/// How one peer is doing.
#[derive(Debug, Clone, Serialize)]
pub struct PeerStatus {
    /// Who it is.
    pub node: NodeId,
    /// What it may be here; `None` when it is only dialled.
    pub role: Option<&'static str>,
    /// Where it is dialled, if it is.
    pub dialled: Option<String>,
    /// Where it is connected from or to, if it is.
    pub connected: Option<SocketAddr>,
    /// Its software.
    pub agent: Option<String>,
    /// Whether we have everything it had when the link was made.
    pub caught_up: bool,
    /// How far we have followed its log.
    pub followed: Option<u64>,
    /// Where its log ended when the link was made.
    pub tail: Option<u64>,
    /// Documents whose histories were exchanged on this link.
    pub exchanged: u64,
    /// Bytes sent and received on this link.
    pub bytes: Option<(u64, u64)>,
    /// Why the last link, or the last attempt at one, ended.
    pub last_error: Option<String>,
}

/// The links of a node. Cheap to clone; [`Links::close`] ends them all.
#[derive(Clone)]
pub struct Links {
    shared: Arc<Shared>,
}

struct Shared {
    database: Database,
    endpoint: Endpoint,
    allow: Arc<AllowList>,
    options: LinkOptions,
    attester: Arc<LinkAttester>,
    guards: Guards,
    stop: watch::Sender<bool>,
    token: watch::Sender<Option<Token>>,
    /// Raised whenever a link comes or goes, or a peer's state changes.
    changes: watch::Sender<u64>,
    ids: AtomicU64,
    // Protects what is known of each peer.
    peers: Mutex<HashMap<NodeId, Peer>>,
    // Protects the list of this room's tasks.
    tasks: Mutex<JoinSet<()>>,
}

#[derive(Default)]
struct Peer {
    current: Option<Current>,
    dialled: Option<Dialled>,
    agent: Option<String>,
    caught_up: bool,
    tail: Option<u64>,
    exchanged: u64,
    last_error: Option<String>,
}

struct Current {
    id: u64,
    link: Link,
    /// Who dialled it.
    by: NodeId,
}

struct Dialled {
    address: String,
    stop: watch::Sender<bool>,
}

impl Links {
    /// Begins to accept links on `endpoint`, for `database`. Runs on the tokio runtime it is called in.
    #[must_use]
    pub fn start(database: Database, endpoint: Endpoint, allow: Arc<AllowList>, options: LinkOptions) -> Self {
        Self::start_guarded(database, endpoint, allow, options, Guards::default())
    }

    /// [`Self::start`], where `guards` are asked what clients may do and have.
    pub(crate) fn start_guarded(
        database: Database,
        endpoint: Endpoint,
        allow: Arc<AllowList>,
        options: LinkOptions,
        guards: Guards,
    ) -> Self {
        let attester = Arc::new(LinkAttester::new(endpoint.identity.clone(), database.clone()));
        let shared = Arc::new(Shared {
            attester,
            database,
            endpoint,
            allow,
            token: watch::Sender::new(options.token.clone()),
            options,
            guards,
            stop: watch::Sender::new(false),
            changes: watch::Sender::new(0),
            ids: AtomicU64::new(0),
            peers: Mutex::default(),
            tasks: Mutex::default(),
        });
        let links = Self { shared };
        links.spawn(links.clone().accept());
        links
    }

    /// Keeps a link to the node that `ticket` names: dials it, and dials again, with growing pauses, whenever the link
    /// ends. Does nothing when it is dialled already. The key it pins is trusted as a node here.
    pub fn dial(&self, ticket: Ticket) {
        let (stop, stopped) = watch::channel(false);
        {
            let mut peers = self.peers();
            let peer = peers.entry(ticket.node()).or_default();
            if peer.dialled.is_some() {
                return;
            }
            peer.dialled = Some(Dialled { address: ticket.address(), stop });
        }
        self.spawn(self.clone().keep_dialled(ticket, stopped));
    }

    /// Shows the nodes that are dialled another token from now on, on links that stand as well.
    ///
    /// # Errors
    /// [`NetError::TokenTooLong`] when it is longer than a token may be.
    pub fn set_token(&self, token: Token) -> Result<(), NetError> {
        if token.0.len() > wire::TOKEN_BYTES_MAX {
            return Err(NetError::TokenTooLong { bytes: token.0.len(), max: wire::TOKEN_BYTES_MAX });
        }
        self.shared.token.send_replace(Some(token));
        Ok(())
    }

    /// Stops dialling a peer and closes its link. Take it off the allow-list first, or it comes back.
    pub fn drop_peer(&self, node: NodeId) {
        let Some(peer) = self.peers().remove(&node) else { return };
        if let Some(dialled) = peer.dialled {
            dialled.stop.send_replace(true);
        }
        if let Some(current) = peer.current {
            current.link.close(CloseCode::Removed, "");
        }
        self.changed();
    }

    /// How each peer is doing: the listed, the dialled and the connected ones.
    #[must_use]
    pub fn status(&self) -> Vec<PeerStatus> {
        let mut all = BTreeMap::new();
        for (node, role) in self.shared.allow.entries() {
            all.insert(node, self.peer_status(node, Some(role)));
        }
        let others: Vec<NodeId> = self.peers().keys().copied().collect();
        for node in others {
            all.entry(node).or_insert_with(|| self.peer_status(node, None));
        }
        all.into_values().collect()
    }

    fn peer_status(&self, node: NodeId, role: Option<Role>) -> PeerStatus {
        let followed = self.shared.database.reader().peer_cursor(node).ok().flatten();
        let peers = self.peers();
        let peer = peers.get(&node);
        let link = peer.and_then(|peer| peer.current.as_ref()).map(|current| &current.link);
        PeerStatus {
            node,
            role: role.map(role_name),
            dialled: peer.and_then(|peer| peer.dialled.as_ref()).map(|dialled| dialled.address.clone()),
            connected: link.map(Link::address),
            agent: peer.and_then(|peer| peer.agent.clone()),
            caught_up: link.is_some() && peer.is_some_and(|peer| peer.caught_up),
            followed: followed.map(|cursor| cursor.lsn.0),
            tail: peer.and_then(|peer| peer.tail),
            exchanged: peer.map_or(0, |peer| peer.exchanged),
            bytes: link.map(|link| (link.traffic().sent, link.traffic().received)),
            last_error: peer.and_then(|peer| peer.last_error.clone()),
        }
    }

    /// A number that rises whenever a link comes or goes or a peer's state changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// The allow-list in force.
    #[must_use]
    pub fn allow_list(&self) -> &Arc<AllowList> {
        &self.shared.allow
    }

    /// Ends every link with the shutdown code and waits, half a second at most, until the peers were told.
    pub async fn close(&self) {
        self.shared.stop.send_replace(true);
        self.shared.endpoint.close(CloseCode::Shutdown);
        // A peer that does not answer finds out by itself.
        let _ = tokio::time::timeout(CLOSE_TIME, self.shared.endpoint.idle()).await;
        let mut tasks = std::mem::take(&mut *self.shared.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
    }

    async fn accept(self) {
        while let Some(handshake) = self.shared.endpoint.accept_within(self.shared.guards.toll.as_ref()).await {
            self.spawn(self.clone().receive(handshake));
        }
    }

    /// Takes in a stranger, or refuses it.
    async fn receive(self, handshake: Handshake) {
        let address = handshake.address();
        let mut arrival = match handshake.finish().await {
            Ok(arrival) => arrival,
            // There may be many.
            Err(error @ NetError::TurnedAway { .. }) => {
                return tracing::debug!(%address, %error, "a stranger was refused");
            }
            Err(error) => {
                tracing::warn!(%address, %error, "a handshake failed");
                return;
            }
        };
        // What its address has of us, until we are done with it.
        let entry = arrival.take_entry();
        let node = arrival.node();
        let judged = self.shared.allow.judge(node, arrival.address(), None, SystemTime::now());
        let (judged, opening) = if self.shared.allow.awaits_invite(SystemTime::now()) {
            // An invite may let a stranger in, and make more of a client.
            match tokio::time::timeout(INVITE_TIME, self.judge_by_invite(&arrival, judged)).await {
                Ok(Ok((judged, opening))) => (judged, Some(opening)),
                Ok(Err(error)) => return refuse(arrival, &error),
                Err(_) => return refuse(arrival, &NetError::TimedOut { addr: address }),
            }
        } else {
            (judged, None)
        };
        let admission = match judged {
            Ok(admission) => admission,
            Err(error) => return refuse(arrival, &error),
        };
        if admission.by == AdmittedBy::Invite {
            self.changed();
        }
        // Whose user has to be proven has as little as a stranger until he is.
        let is_guarded = admission.role == Role::Client && self.shared.guards.door.is_some();
        let link = if is_guarded { arrival.hear() } else { arrival.admit() };
        // What bounds a node is not its address.
        let entry = entry.filter(|_| admission.role == Role::Client);
        self.converse(link, admission.role, None, opening, entry).await;
    }

    /// Reads the first frame and judges again if it holds an invite.
    async fn judge_by_invite(
        &self,
        arrival: &super::link::Arrival,
        judged: Result<Admission, NetError>,
    ) -> Result<(Result<Admission, NetError>, Opening), NetError> {
        let (writer, mut reader) = arrival.accept_bi().await?;
        let hello = reader.read(self.shared.database.limits().hello_bytes_max).await?;
        let hello = hello.ok_or(NetError::StreamClosed)?;
        let invite = match Frame::decode(&hello) {
            Ok(Frame::Hello(wire::Hello { invite, .. })) => invite.map(Invite::from_bytes),
            _ => None,
        };
        let judged = match &invite {
            Some(_) => self.shared.allow.judge(arrival.node(), arrival.address(), invite.as_ref(), SystemTime::now()),
            None => judged,
        };
        Ok((judged, Opening { writer, reader, hello: Some(hello) }))
    }

    async fn keep_dialled(self, ticket: Ticket, mut stopped: watch::Receiver<bool>) {
        let mut backoff = Backoff::new();
        let (mut changes, mut token) = (self.changes(), self.shared.token.subscribe());
        loop {
            // The peer may have dialled us: one link is enough.
            let linked = changes.wait_for(|_| !self.is_linked(ticket.node()));
            tokio::select! {
                _ = stopped.wait_for(|stop| *stop) => return,
                free = linked => if free.is_err() { return },
            }
            let began = tokio::time::Instant::now();
            let attempt = async {
                match self.shared.endpoint.connect(&ticket).await {
                    Ok(link) => {
                        let role = self.shared.allow.role(link.node()).unwrap_or(Role::Node);
                        self.converse(link, role, ticket.invite().cloned(), None, None).await
                    }
                    Err(error) => {
                        self.note_error(ticket.node(), &error);
                        Some(error)
                    }
                }
            };
            let ended = tokio::select! {
                _ = stopped.wait_for(|stop| *stop) => return,
                ended = attempt => ended,
            };
            // A link that we closed for another one, or for a peer that said nothing, is no reason to stop.
            if *self.shared.stop.borrow() {
                return;
            }
            backoff.link_ended(began.elapsed());
            let retry_after = ended.as_ref().and_then(NetError::retry_after);
            let mut pause = match retry_after {
                Some(said) => backoff.next_delay_after(said),
                None => backoff.next_delay(),
            };
            if ended.as_ref().is_some_and(|error| !error.is_retryable()) {
                // Something has to be mended first; it may be, without our knowing.
                pause = pause.max(Backoff::DELAY_MAX / 2);
            }
            tracing::debug!(peer = %ticket.node().short(), ?pause, "dialling again after a pause");
            tokio::select! {
                _ = stopped.wait_for(|stop| *stop) => return,
                // What was refused may be let in with another token; but not whoever came too often.
                Ok(()) = token.changed(), if retry_after.is_none() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Runs the session over a link until it ends. `None` when another link to the same peer is kept instead.
    async fn converse(
        &self,
        link: Link,
        role: Role,
        invite: Option<Invite>,
        opening: Option<Opening>,
        entry: Option<Entry>,
    ) -> Option<NetError> {
        let node = link.node();
        let id = self.register(&link)?;
        let cursor = match self.shared.database.reader().peer_cursor(node) {
            Ok(cursor) => cursor,
            Err(error) => {
                tracing::warn!(peer = %node.short(), %error, "the cursor on a peer's log cannot be read; comparing documents");
                None
            }
        };
        let mut token = self.shared.token.subscribe();
        let config = SessionConfig {
            node: self.shared.database.node(),
            peer: node,
            role: match role {
                Role::Node => wire::Role::Node,
                Role::Client => wire::Role::Client,
            },
            strict: self.shared.options.strict,
            invite: invite.map(|invite| *invite.as_bytes()),
            token: link.is_dialled().then(|| token.borrow_and_update().clone()).flatten(),
            guarded: role == Role::Client && self.shared.guards.door.is_some(),
            cursor,
            attester: Some(self.shared.attester.clone()),
            agent: concat!("tidelog/", env!("CARGO_PKG_VERSION")).to_owned(),
            limits: self.shared.database.limits().clone(),
        };
        let listener = self.clone();
        let on_event = Arc::new(move |event: &SessionEvent| listener.note(node, id, event));
        let mut stop = self.shared.stop.subscribe();
        tracing::info!(peer = %node.short(), address = %link.address(), dialled = link.is_dialled(), "link open");
        let manners = Manners { door: self.shared.guards.door.clone(), token, on_event, entry };
        let conversation = Conversation::new(self.shared.database.clone(), link, config, manners);
        let span = tracing::info_span!("node", id = %self.shared.database.node().short());
        let span = tracing::info_span!(parent: &span, "conn", peer = %node.short(), transport = "quic");
        let why = conversation.run(opening, &mut stop).instrument(span).await;
        self.unregister(node, id, &why);
        Some(why)
    }

    /// Makes `link` the one link to its peer, if it is to be; of two, both sides keep the same one.
    fn register(&self, link: &Link) -> Option<u64> {
        let (own, node) = (self.shared.database.node(), link.node());
        let by = if link.is_dialled() { own } else { node };
        let id = self.shared.ids.fetch_add(1, Ordering::Relaxed);
        let mut peers = self.peers();
        let peer = peers.entry(node).or_default();
        if let Some(current) = peer.current.take_if(|current| current.link.close_reason().is_none()) {
            // Dialled by the same side, the newer one is alive for sure; else that of the smaller key stays.
            let newer = current.by == by || by == own.min(node);
            let loser = if newer { &current.link } else { link };
            loser.close(CloseCode::Replaced, "");
            if !newer {
                peer.current = Some(current);
                return None;
            }
        }
        let agent = peer.agent.take();
        *peer = Peer {
            current: Some(Current { id, link: link.clone(), by }),
            dialled: peer.dialled.take(),
            agent,
            ..Peer::default()
        };
        drop(peers);
        self.changed();
        Some(id)
    }

    fn unregister(&self, node: NodeId, id: u64, why: &NetError) {
        tracing::info!(peer = %node.short(), %why, "link closed");
        let mut peers = self.peers();
        if let Some(peer) = peers.get_mut(&node)
            && peer.current.as_ref().is_some_and(|current| current.id == id)
        {
            peer.current = None;
            peer.last_error = Some(why.to_string());
        }
        forget_strangers(&mut peers, &self.shared.allow);
        drop(peers);
        self.changed();
    }

    fn note_error(&self, node: NodeId, error: &NetError) {
        let text = error.to_string();
        if let Some(peer) = self.peers().get_mut(&node) {
            if peer.last_error.as_ref() != Some(&text) {
                tracing::warn!(peer = %node.short(), error = %text, "cannot link");
            }
            peer.last_error = Some(text);
        }
        self.changed();
    }

    fn note(&self, node: NodeId, id: u64, event: &SessionEvent) {
        {
            let mut peers = self.peers();
            let Some(peer) = peers.get_mut(&node) else { return };
            if peer.current.as_ref().is_none_or(|current| current.id != id) {
                return;
            }
            match event {
                SessionEvent::PeerHello { tail, agent, .. } => {
                    peer.tail = Some(tail.0);
                    peer.agent = Some(agent.clone());
                }
                SessionEvent::CaughtUp => peer.caught_up = true,
                SessionEvent::Exchanged { .. } => peer.exchanged += 1,
                _ => {}
            }
        }
        tracing::debug!(peer = %node.short(), ?event, "session");
        self.changed();
    }

    fn is_linked(&self, node: NodeId) -> bool {
        self.peers().get(&node).and_then(|peer| peer.current.as_ref()).is_some_and(|c| c.link.close_reason().is_none())
    }

    fn changed(&self) {
        self.shared.changes.send_modify(|n| *n += 1);
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.shared.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that ended are let go, so that the list does not grow with every link there ever was.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<NodeId, Peer>> {
        self.shared.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refuse(arrival: super::link::Arrival, why: &NetError) {
    tracing::warn!(peer = %arrival.node(), address = %arrival.address(), %why, "a peer was refused");
    arrival.refuse(why);
}

/// Forgets peers that came, went, and are nobody we know, when there are many: where any key may come, there is no end of
/// them.
fn forget_strangers(peers: &mut HashMap<NodeId, Peer>, allow: &AllowList) {
    if peers.len() > PEERS_REMEMBERED {
        let is_known = |node: &NodeId, peer: &Peer| peer.dialled.is_some() || allow.role(*node).is_some();
        peers.retain(|node, peer| peer.current.is_some() || is_known(node, peer));
    }
}

/// The word for a role in lists and commands.
#[must_use]
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Node => "node",
        Role::Client => "client",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::UnknownKeys;

    #[test]
    fn strangers_that_came_and_went_are_forgotten_and_those_we_know_are_not() {
        let allow = AllowList::new(UnknownKeys::Refuse);
        let node = |n: usize| NodeId(std::array::from_fn(|at| n.to_le_bytes().get(at).copied().unwrap_or_default()));
        let mut peers = HashMap::new();
        for n in 0..PEERS_REMEMBERED {
            peers.insert(node(n), Peer { last_error: Some("gone".into()), ..Peer::default() });
        }
        forget_strangers(&mut peers, &allow);
        assert_eq!(peers.len(), PEERS_REMEMBERED);
        allow.allow(node(5), Role::Client);
        let dialled = Dialled { address: String::new(), stop: watch::channel(false).0 };
        peers.insert(node(7), Peer { dialled: Some(dialled), ..Peer::default() });
        peers.insert(node(usize::MAX), Peer::default());
        forget_strangers(&mut peers, &allow);
        let mut left: Vec<NodeId> = peers.into_keys().collect();
        left.sort();
        assert_eq!(left, [node(5), node(7)]);
    }
}
