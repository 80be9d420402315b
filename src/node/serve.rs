//! A running node.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};

use super::access::{AccessConfig, follow_token, read_token};
use super::admin::AdminServer;
use super::command::{CommandError, Context, Exit, LinkControl};
use super::door::{Door, Gate};
use super::peers::PeerBook;
use super::place::{OpenPlace, Place};
use crate::engine::Database;
use crate::file::replace;
use crate::id::{LogCursor, NodeId};
use crate::net::{CloseCode, Endpoint, Guards, LinkOptions, Links, NetError, Role, Ticket, UnknownKeys};
use crate::quota::{Ledger, Quotas};
use crate::web::{AllowedOrigins, WebOptions, WebServer};

/// How a node is started.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The data directory.
    pub data: PathBuf,
    /// The UDP address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The TCP address of the HTTP port; `None` for none. It takes whoever comes, so it is for this machine alone.
    pub http: Option<SocketAddr>,
    /// Whose pages may connect there, beside those of this machine.
    pub origins: AllowedOrigins,
    /// Logs what clients of the HTTP port send without trying it on its document first: cheaper, and a hostile client can
    /// then make a document unreadable in parts.
    pub structural: bool,
    /// Allows the HTTP port to be open to other machines without tokens and rules.
    pub insecure_open: bool,
    /// Who may do what.
    pub access: AccessConfig,
    /// A file that says how much one address, and one user, may have of the node; `None` for the defaults.
    pub quotas: Option<PathBuf>,
    /// Proxies that are believed where what they bring to the HTTP port comes from.
    pub proxies: Vec<IpAddr>,
    /// Nodes to allow and to dial.
    pub peers: Vec<Ticket>,
    /// The file with the token that says to those nodes who our user is; it is read again when it changes.
    pub token_file: Option<PathBuf>,
    /// Takes unknown keys that come from this machine for nodes.
    pub trust_loopback_nodes: bool,
    /// Exchanges every document in Automerge's own messages instead of streaming the log.
    pub strict: bool,
    /// How the data directory is opened.
    pub open: OpenPlace,
}

impl NodeConfig {
    /// A node on `data` that listens on `listen`, everything else at its default: the directory is made when absent, and
    /// the HTTP port has the number of `listen`, for this machine alone.
    #[must_use]
    pub fn new(data: impl Into<PathBuf>, listen: SocketAddr) -> Self {
        Self {
            data: data.into(),
            listen,
            http: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, listen.port()))),
            origins: AllowedOrigins::default(),
            structural: false,
            insecure_open: false,
            access: AccessConfig::default(),
            quotas: None,
            proxies: Vec::new(),
            peers: Vec::new(),
            token_file: None,
            trust_loopback_nodes: false,
            strict: false,
            open: OpenPlace { create: true, ..OpenPlace::default() },
        }
    }
}

/// How long a node takes at most to end.
const DRAIN_TIME: Duration = Duration::from_millis(1000);
/// How much of it the links may take.
const LINKS_TIME: Duration = Duration::from_millis(600);

/// A node that serves.
pub struct Node {
    path: PathBuf,
    context: Context,
    endpoint: Endpoint,
    admin: AdminServer,
    web: Option<WebServer>,
    links: Links,
    saving: JoinHandle<()>,
    /// Keeps rules and key sets up to date.
    access: JoinSet<()>,
    ticket: Ticket,
}

impl Node {
    /// Opens the store, listens, allows and dials the peers, and opens the admin socket. When it returns, the node is
    /// there for others.
    ///
    /// # Errors
    /// [`CommandError`] when the data directory, the key, the port or the list of peers cannot be used.
    pub async fn start(config: NodeConfig) -> Result<Self, CommandError> {
        let is_guarded = config.access.authenticates && config.access.rules.is_some();
        let open_to_all = config.http.filter(|http| !http.ip().is_loopback() && !config.insecure_open && !is_guarded);
        if let Some(http) = open_to_all {
            return Err(CommandError::new(
                "E0117",
                Exit::Denied,
                format!("the HTTP port at {http} would let everybody on the network read and write documents"),
            )
            .fix("give --auth and --rules FILE, or listen on 127.0.0.1, or say --insecure-open"));
        }
        let token = config.token_file.as_deref().map(read_token).transpose()?;
        // Before anything is made: with rules that cannot be read nobody may come in.
        let (rules, issuers) = (config.access.read_rules()?, config.access.read_issuers()?);
        let quotas = config.quotas.as_deref().map(Quotas::read_file).transpose()?.unwrap_or_default();
        if !config.data.exists() {
            // A port that is in use would be found after a store was made for nothing.
            try_port(config.listen)?;
            if let Some(http) = config.http {
                WebServer::try_port(http).await?;
            }
        }
        let (data, open) = (config.data.clone(), config.open.clone());
        let place = tokio::task::spawn_blocking(move || Place::open(&data, &open))
            .await
            .map_err(|error| CommandError::usage(format!("opening the store failed: {error}")))??;
        let Place { path, identity, database } = place;
        let endpoint = Endpoint::bind(identity, config.listen, database.limits())?;
        let address = endpoint.local_addr();
        let unknown = UnknownKeys::of_listener(address, config.trust_loopback_nodes);
        let peers = PeerBook::load(&path, unknown)?;
        if config.access.restricts() {
            peers.allow_list().let_users_in();
        }
        for ticket in config.peers {
            if ticket.node() == endpoint.node() {
                return Err(NetError::OwnKey { node: ticket.node() }.into());
            }
            peers.add(ticket.node(), Role::Node, Some(ticket))?;
        }
        let context = Context { listening: Some(address), ..Context::direct(database.clone(), peers) };
        let access = config.access.open(&context, rules, issuers).await?;
        // Before anybody is let in: nothing that a decision rests on changes unseen.
        let mut keeping = config.access.keep(&access, &context);
        // One for both ports: whoever has enough of one has enough of the other.
        let ledger = Arc::new(Ledger::new(quotas.clone()));
        let mut web = None;
        if let Some(listen) = config.http {
            let (origins, structural) = (config.origins, config.structural);
            let (access, proxies) = (Some(access.clone()), config.proxies);
            let options = WebOptions { listen, origins, structural, access, quotas, proxies };
            web = Some(WebServer::start_beside(database.clone(), options, ledger.clone()).await?);
        }
        // Queries of before are answered at once, and not after whatever came meanwhile was read.
        database.keep_views()?;
        let ticket = super::command::ticket_of(endpoint.node(), address)?;
        let door = config.access.restricts().then(|| Arc::new(Door::new(access.clone(), ledger.clone())) as _);
        let guards = Guards { door, toll: Some(Arc::new(Gate(ledger))) };
        let options = LinkOptions { strict: config.strict, token };
        let allow = Arc::new(context.peers.allow_list().clone());
        let links = Links::start_guarded(context.database.clone(), endpoint.clone(), allow, options, guards);
        for ticket in context.peers.entries().into_iter().filter_map(|peer| peer.ticket) {
            links.dial(ticket);
        }
        if let Some(path) = config.token_file {
            keeping.spawn(follow_token(path, links.clone()));
        }
        // Set once, here.
        let _ = context.links.set(Arc::new(links.clone()));
        let saving = tokio::spawn(save_used_invites(links.clone(), context.peers.clone()));
        let admin = AdminServer::start(&path, context.clone())?;
        let http = web.as_ref().map(WebServer::address);
        tracing::info!(node = %endpoint.node().short(), %address, ?http, strict = config.strict, "listening");
        Ok(Self { path, context, endpoint, admin, web, links, saving, access: keeping, ticket })
    }

    /// Its database, for who runs the node in a process of his own.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.context.database
    }

    /// Its key.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.endpoint.node()
    }

    /// How others dial it.
    #[must_use]
    pub fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// The address it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.endpoint.local_addr()
    }

    /// The address of its HTTP port, if it has one.
    #[must_use]
    pub fn http(&self) -> Option<SocketAddr> {
        self.web.as_ref().map(WebServer::address)
    }

    /// Its data directory, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The end of its log.
    #[must_use]
    pub fn tail(&self) -> LogCursor {
        self.context.database.reader().tail()
    }

    /// Whether its log has a new id since this start.
    #[must_use]
    pub fn log_renewed(&self) -> bool {
        self.context.database.log_renewed()
    }

    /// What a script wants to know: `{node, ticket, address, http, data, log, tail, pid}`.
    #[must_use]
    pub fn facts(&self) -> Value {
        let tail = self.tail();
        json!({
            "node": self.node().to_string(),
            "ticket": self.ticket.to_string(),
            "address": self.address().to_string(),
            "http": self.http().map(|address| address.to_string()),
            "data": self.path.display().to_string(),
            "log": tail.log_id.to_string(),
            "tail": tail.lsn.0,
            "pid": std::process::id(),
        })
    }

    /// Writes [`Self::facts`] to a file, whole or not at all, for scripts that wait for the node.
    ///
    /// # Errors
    /// [`CommandError`] when the file cannot be written.
    pub fn write_ready_file(&self, path: &Path) -> Result<(), CommandError> {
        let text = format!("{}\n", self.facts());
        replace(path, text.as_bytes()).map_err(|error| CommandError::file("write", path, &error))
    }

    /// Ends the node: no more commands, links closed, everything that was accepted on the disk. Takes at most about
    /// a second and a half; a store that is not done by then is left as after a crash, which loses nothing acknowledged.
    pub async fn shut_down(self) {
        let started = Instant::now();
        self.saving.abort();
        drop(self.access);
        self.admin.close().await;
        // The links first, so that peers hear why; what they have sent is in the writer's queue and still written.
        let web = async {
            if let Some(web) = self.web {
                web.close().await;
            }
        };
        let closing = async { tokio::join!(self.links.close(), web) };
        let in_time = tokio::time::timeout(LINKS_TIME, closing).await.is_ok();
        self.endpoint.close(CloseCode::Shutdown);
        if !in_time {
            tracing::warn!("some links or clients did not end in time");
        }
        let database = self.context.database.clone();
        let closing = tokio::task::spawn_blocking(move || database.close());
        let drain = async {
            self.endpoint.idle().await;
            // A panic while closing leaves what a crash leaves.
            let _ = closing.await;
        };
        let in_time = tokio::time::timeout(DRAIN_TIME, drain).await.is_ok();
        tracing::info!(in_time, took_ms = started.elapsed().as_millis() as u64, "closed");
    }
}

/// Whether a UDP address can be had, without keeping it.
fn try_port(address: SocketAddr) -> Result<(), NetError> {
    std::net::UdpSocket::bind(address).map(drop).map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => NetError::AddressInUse { addr: address },
        _ => NetError::Bind { addr: address, source },
    })
}

/// An invite that was used has put its user on the list: that must survive a restart.
async fn save_used_invites(links: Links, peers: Arc<PeerBook>) {
    let mut changes = links.changes();
    let mut saved = peers.allow_list().entries();
    while changes.changed().await.is_ok() {
        let now = peers.allow_list().entries();
        if now == saved {
            continue;
        }
        let book = peers.clone();
        match tokio::task::spawn_blocking(move || book.save()).await {
            Ok(Ok(())) => saved = now,
            Ok(Err(error)) => tracing::error!(%error, "the list of peers is not saved"),
            Err(error) => tracing::error!(%error, "the list of peers is not saved"),
        }
    }
}

impl LinkControl for Links {
    fn dial(&self, ticket: Ticket) {
        Self::dial(self, ticket);
    }

    fn drop_peer(&self, node: NodeId) {
        Self::drop_peer(self, node);
    }

    fn status(&self) -> Vec<Value> {
        Self::status(self).into_iter().map(peer_status).collect()
    }
}

fn peer_status(peer: crate::net::PeerStatus) -> Value {
    json!({
        "node": peer.node.to_string(),
        "role": peer.role,
        "address": peer.dialled,
        "connected": peer.connected.is_some(),
        "from": peer.connected.map(|address| address.to_string()),
        "agent": peer.agent,
        "caught_up": peer.caught_up,
        "followed": peer.followed,
        "tail": peer.tail,
        "exchanged": peer.exchanged,
        "bytes_sent": peer.bytes.map(|(sent, _)| sent),
        "bytes_received": peer.bytes.map(|(_, received)| received),
        "last_error": peer.last_error,
    })
}
