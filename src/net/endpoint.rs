//! One UDP socket that dials and accepts.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connecting, ConnectionError, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::id::NodeId;
use crate::limits::{Limits, queues};

use super::close::CloseCode;
use super::door::{Entry, Toll, TurnedAway};
use super::error::NetError;
use super::identity::Identity;
use super::link::{Arrival, Link, canonical};
use super::refusal::Ends;
use super::ticket::Ticket;
use super::tls;

/// With more handshakes than this under way, a stranger must first prove its address. That is one more round trip for
/// it, while a forged source address costs us no state and no signature.
const PROVE_ADDRESS_ABOVE: usize = 256;

/// A handshake that takes longer has failed.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// Addresses tried of one name.
const ADDRESSES_MAX: usize = 8;

/// A node's place in the network: one UDP socket, one key. A cheap clone.
///
/// The tasks of the transport run on the tokio runtime in which it was made. It lives until [`Self::close`], or until
/// the last clone and the last link are dropped.
#[derive(Clone)]
pub struct Endpoint {
    inner: Arc<Inner>,
    /// Our own key.
    pub(super) identity: Identity,
}

struct Inner {
    endpoint: quinn::Endpoint,
    node: NodeId,
    address: SocketAddr,
    dialling: quinn::ClientConfig,
    /// One place for every connection, from its first packet to the drop of its last handle.
    connections: Arc<Semaphore>,
    connections_max: usize,
    /// One place for every handshake of a stranger.
    handshakes: Arc<Semaphore>,
    frame_bytes_max: usize,
}

impl Endpoint {
    /// Opens a socket on `address` that dials and accepts. Port 0 lets the system choose; see [`Self::local_addr`].
    ///
    /// # Errors
    /// [`NetError::AddressInUse`], [`NetError::Bind`] for any other refusal of the system or when no tokio runtime is
    /// there, [`NetError::Tls`].
    pub fn bind(identity: Identity, address: SocketAddr, limits: &Limits) -> Result<Self, NetError> {
        let accepting = tls::accepting(&identity)?;
        Self::open(&identity, address, Some(accepting), limits)
    }

    /// Opens a socket that only dials, on a port of the system's choice, over IPv6 and IPv4 where there are both.
    ///
    /// # Errors
    /// As [`Self::bind`].
    pub fn dial_only(identity: Identity, limits: &Limits) -> Result<Self, NetError> {
        Self::open(&identity, (Ipv6Addr::UNSPECIFIED, 0).into(), None, limits)
            .or_else(|_| Self::open(&identity, (Ipv4Addr::UNSPECIFIED, 0).into(), None, limits))
    }

    fn open(
        identity: &Identity,
        address: SocketAddr,
        accepting: Option<quinn::ServerConfig>,
        limits: &Limits,
    ) -> Result<Self, NetError> {
        let refused = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => NetError::AddressInUse { addr: address },
            _ => NetError::Bind { addr: address, source },
        };
        let dialling = tls::dialling(identity)?;
        let runtime = quinn::default_runtime().ok_or_else(|| refused(io::Error::other("no tokio runtime is there")))?;
        let socket = UdpSocket::bind(address).map_err(refused)?;
        let endpoint =
            quinn::Endpoint::new(quinn::EndpointConfig::default(), accepting, socket, runtime).map_err(refused)?;
        let address = endpoint.local_addr().map_err(refused)?;
        Ok(Self::on(endpoint, identity, address, dialling, limits))
    }

    /// Dials and accepts over a socket that is none of the operating system's; what the transport draws by chance follows
    /// from `seed`. For simulations.
    ///
    /// # Errors
    /// As [`Self::bind`].
    #[cfg(feature = "sim")]
    pub fn over(
        identity: &Identity,
        socket: Arc<dyn quinn::AsyncUdpSocket>,
        seed: [u8; 32],
        limits: &Limits,
    ) -> Result<Self, NetError> {
        let (accepting, dialling) = (tls::accepting(identity)?, tls::dialling(identity)?);
        let refused = |source: io::Error| NetError::Bind { addr: (Ipv4Addr::UNSPECIFIED, 0).into(), source };
        let runtime = quinn::default_runtime().ok_or_else(|| refused(io::Error::other("no tokio runtime is there")))?;
        let address = socket.local_addr().map_err(refused)?;
        let mut config = quinn::EndpointConfig::default();
        config.rng_seed(Some(seed));
        let endpoint = quinn::Endpoint::new_with_abstract_socket(config, Some(accepting), socket, runtime);
        Ok(Self::on(endpoint.map_err(refused)?, identity, address, dialling, limits))
    }

    fn on(
        endpoint: quinn::Endpoint,
        identity: &Identity,
        address: SocketAddr,
        dialling: quinn::ClientConfig,
        limits: &Limits,
    ) -> Self {
        let inner = Inner {
            endpoint,
            node: identity.node(),
            address,
            dialling,
            connections: Arc::new(Semaphore::new(limits.connections_max.min(Semaphore::MAX_PERMITS))),
            connections_max: limits.connections_max,
            handshakes: Arc::new(Semaphore::new(queues::HANDSHAKES)),
            frame_bytes_max: limits.frame_bytes_max,
        };
        Self { inner: Arc::new(inner), identity: identity.clone() }
    }

    /// Our own key.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.inner.node
    }

    /// The address that was bound, with the port the system chose.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.address
    }

    /// Waits for the next stranger that may begin its handshake; `None` once the endpoint is closed.
    ///
    /// Finish the handshake in a task of its own, so that a slow one does not hold up the next. Strangers beyond the
    /// limits are refused here, and the result is the next one.
    ///
    /// # Cancel safety
    /// Safe: no stranger is lost.
    pub async fn accept(&self) -> Option<Handshake> {
        self.accept_within(None).await
    }

    /// [`Self::accept`], where `toll` says how many may come from an address.
    pub(super) async fn accept_within(&self, toll: Option<&Arc<dyn Toll>>) -> Option<Handshake> {
        loop {
            let incoming = self.inner.endpoint.accept().await?;
            if let Some(handshake) = self.begin(incoming, toll) {
                return Some(handshake);
            }
        }
    }

    /// Admits, puts off or refuses a stranger, before anything was spent on it.
    fn begin(&self, incoming: Incoming, toll: Option<&Arc<dyn Toll>>) -> Option<Handshake> {
        let inner = &self.inner;
        let address = canonical(incoming.remote_address());
        let (Ok(slot), Ok(running)) =
            (inner.connections.clone().try_acquire_owned(), inner.handshakes.clone().try_acquire_owned())
        else {
            tracing::debug!(%address, "refused a connection: as many are open as may be");
            incoming.refuse();
            return None;
        };
        let under_way = queues::HANDSHAKES.saturating_sub(inner.handshakes.available_permits());
        let is_proven = incoming.remote_address_validated();
        // Whoever forges an address must neither pay from its account nor be refused in its name.
        let has_room = is_proven || toll.is_none_or(|toll| toll.has_room(address.ip()));
        if !is_proven && (under_way > PROVE_ADDRESS_ABOVE || !has_room) {
            if let Err(already_asked) = incoming.retry() {
                already_asked.into_incoming().refuse();
            }
            return None;
        }
        let mut entry = None;
        if let Some(toll) = toll.filter(|_| is_proven) {
            match toll.arrive(address.ip()) {
                Ok(arrived) => entry = Some(arrived),
                Err(TurnedAway { why, .. }) => {
                    tracing::debug!(%address, why, "refused a connection");
                    incoming.refuse();
                    return None;
                }
            }
        }
        let ends = Ends { local: inner.node, remote: None, address, dialled: false };
        // A wrong protocol or kind of key is in the dialler's first flight, so it already fails here.
        let connecting = incoming.accept();
        let (frame_bytes_max, toll) = (inner.frame_bytes_max, toll.cloned());
        Some(Handshake { connecting, ends, frame_bytes_max, slot, entry, toll, _running: running })
    }

    /// Dials the node of `ticket`, trying the addresses of its host in turn.
    ///
    /// The link is open before the peer has judged our key: its verdict comes with its first frame, or from
    /// [`Link::closed`].
    ///
    /// # Errors
    /// [`NetError::Unreachable`] when the host has no address or none answers within ten seconds,
    /// [`NetError::WrongKey`] when another key answers, and the other faults of a handshake. What does not depend on
    /// the address ends the search.
    ///
    /// # Cancel safety
    /// Safe: a handshake under way is given up.
    pub async fn connect(&self, ticket: &Ticket) -> Result<Link, NetError> {
        let unreachable = |why: String| NetError::Unreachable { addr: ticket.address(), why };
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((ticket.host(), ticket.port()))
            .await
            .map_err(|e| unreachable(format!("its name cannot be resolved: {e}")))?
            .take(ADDRESSES_MAX)
            .collect();
        let mut last = unreachable("its name has no address".into());
        for address in addresses {
            match self.connect_to(ticket.node(), address).await {
                Err(error @ (NetError::Unreachable { .. } | NetError::Refused { .. })) => last = error,
                outcome => return outcome,
            }
        }
        Err(last)
    }

    /// Dials `node` at `address`.
    ///
    /// # Errors
    /// As [`Self::connect`].
    ///
    /// # Cancel safety
    /// Safe: a handshake under way is given up.
    pub async fn connect_to(&self, node: NodeId, address: SocketAddr) -> Result<Link, NetError> {
        let inner = &self.inner;
        if node == inner.node {
            return Err(NetError::OwnKey { node });
        }
        let unreachable = |why: String| NetError::Unreachable { addr: address.to_string(), why };
        let own = canonical(inner.address);
        if own.ip().is_loopback() && !canonical(address).ip().is_loopback() {
            return Err(unreachable(format!("this node listens on {own} only, which nothing outside can answer")));
        }
        let Ok(slot) = inner.connections.clone().try_acquire_owned() else {
            return Err(NetError::TooManyConnections { max: inner.connections_max });
        };
        let connecting = match inner.endpoint.connect_with(inner.dialling.clone(), address, &tls::server_name(node)) {
            Ok(connecting) => connecting,
            Err(quinn::ConnectError::EndpointStopping) => return Err(NetError::ClosedHere),
            Err(e) => return Err(unreachable(e.to_string())),
        };
        let ends = Ends { local: inner.node, remote: Some(node), address, dialled: true };
        let connection = match timeout(HANDSHAKE_TIME, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(ConnectionError::TimedOut)) | Err(_) => {
                return Err(unreachable(format!("nobody answered for {} seconds", HANDSHAKE_TIME.as_secs())));
            }
            Ok(Err(error)) => return Err(ends.explain(&error)),
        };
        Ok(Link::new(connection, node, ends, inner.frame_bytes_max, slot))
    }

    /// Closes every link with `code` and lets nobody in any more. [`Self::accept`] then returns `None`.
    pub fn close(&self, code: CloseCode) {
        let number = quinn::VarInt::from_u64(code.number()).unwrap_or(quinn::VarInt::MAX);
        self.inner.endpoint.close(number, code.text().as_bytes());
    }

    /// Waits until the peers were told of every close, or can no longer be. Call it after [`Self::close`] and before
    /// the runtime ends.
    pub async fn idle(&self) {
        self.inner.endpoint.wait_idle().await;
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({} on {})", self.inner.node.short(), self.inner.address)
    }
}

/// A stranger whose handshake is under way. Dropped, it is given up.
#[derive(Debug)]
pub struct Handshake {
    connecting: Result<Connecting, ConnectionError>,
    ends: Ends,
    frame_bytes_max: usize,
    slot: OwnedSemaphorePermit,
    /// What its address pays, once that is proven.
    entry: Option<Entry>,
    toll: Option<Arc<dyn Toll>>,
    _running: OwnedSemaphorePermit,
}

impl Handshake {
    /// Where the stranger is, or says it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.ends.address
    }

    /// Waits until the stranger has proven its key, ten seconds at most.
    ///
    /// # Errors
    /// The fault of the handshake: [`NetError::OtherKeyExpected`], [`NetError::OtherProtocol`],
    /// [`NetError::NoRawKeys`], [`NetError::KeyNotProven`] and their like, [`NetError::TimedOut`];
    /// [`NetError::OwnKey`] when the stranger shows our own key, [`NetError::TurnedAway`] when its address has as much as
    /// it may have. The peer was told in every case.
    pub async fn finish(self) -> Result<Arrival, NetError> {
        let Self { connecting, ends, frame_bytes_max, slot, mut entry, toll, _running } = self;
        let outcome = timeout(HANDSHAKE_TIME, async { connecting?.await }).await;
        let connection = outcome.map_err(|_| NetError::TimedOut { addr: ends.address })?;
        let connection = connection.map_err(|e| ends.explain(&e))?;
        // The verifier has let nothing else pass.
        let node = tls::node_of_peer(&connection).ok_or(NetError::BadKey { addr: ends.address, ours: false })?;
        let mut refused = (node == ends.local).then_some(NetError::OwnKey { node });
        // A handshake that is done has proven the address as well.
        if let Some(toll) = toll.filter(|_| entry.is_none()) {
            match toll.arrive(ends.address.ip()) {
                Ok(arrived) => entry = Some(arrived),
                Err(TurnedAway { code, why }) => refused = Some(NetError::TurnedAway { addr: ends.address, code, why }),
            }
        }
        let arrival = Arrival::new(Link::new(connection, node, ends, frame_bytes_max, slot), entry);
        if let Some(error) = refused {
            arrival.refuse(&error);
            return Err(error);
        }
        Ok(arrival)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::net::door::{Held, Payer};
    use crate::net::link::tests::{LOOPBACK, endpoint, identity, linked, meet};

    fn limited(seed: u8, connections_max: usize) -> Endpoint {
        let limits = Limits { connections_max, ..Limits::DEFAULT };
        Endpoint::bind(identity(seed), LOOPBACK.parse().unwrap(), &limits).unwrap()
    }

    #[tokio::test]
    async fn a_port_in_use_is_named_with_its_remedy() {
        let first = endpoint(1);
        let error = Endpoint::bind(identity(2), first.local_addr(), &Limits::DEFAULT).unwrap_err();
        assert!(matches!(error, NetError::AddressInUse { addr } if addr == first.local_addr()), "{error}");
        assert!(error.to_string().contains("another port"), "{error}");
    }

    #[test]
    fn without_a_runtime_it_is_an_error_and_no_panic() {
        let error = Endpoint::bind(identity(1), LOOPBACK.parse().unwrap(), &Limits::DEFAULT).unwrap_err();
        assert!(matches!(error, NetError::Bind { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_wrong_pinned_key_is_named_at_both_ends() {
        let (dialler, acceptor) = (endpoint(2), endpoint(1));
        let dial = dialler.connect_to(identity(3).node(), acceptor.local_addr());
        let accept = async { acceptor.accept().await.unwrap().finish().await };
        let (dialled, accepted) = tokio::join!(dial, accept);
        let (dialled, accepted) = (dialled.unwrap_err(), accepted.unwrap_err());
        match dialled {
            NetError::WrongKey { expected, found, .. } => {
                assert_eq!((expected, found), (identity(3).node(), Some(acceptor.node())));
            }
            ref other => panic!("{other:?}"),
        }
        assert!(matches!(accepted, NetError::OtherKeyExpected { node, .. } if node == acceptor.node()), "{accepted:?}");
        assert!(!dialled.is_retryable() && !accepted.is_retryable());
    }

    #[tokio::test]
    async fn a_ticket_leads_to_its_node_and_both_families_meet_on_one_socket() {
        let acceptor = endpoint(1);
        let port = acceptor.local_addr().port();
        let ticket = Ticket::new(acceptor.node(), "127.0.0.1", port).unwrap();
        let dialler = Endpoint::dial_only(identity(2), &Limits::DEFAULT).unwrap();
        let (link, arrival) =
            tokio::join!(dialler.connect(&ticket), async { acceptor.accept().await.unwrap().finish().await });
        assert_eq!(link.unwrap().node(), acceptor.node());
        assert!(arrival.unwrap().address().is_ipv4(), "not in its IPv6 disguise");
    }

    #[tokio::test]
    async fn a_node_does_not_link_to_itself_nor_to_a_copy_of_itself() {
        let (one, copy) = (endpoint(1), endpoint(1));
        let error = one.connect_to(one.node(), copy.local_addr()).await.unwrap_err();
        assert!(matches!(error, NetError::OwnKey { node } if node == one.node()));

        // A copy that does not look at its own key before it dials.
        let other = endpoint(2);
        let sly = quinn_dial(&other, identity(2));
        let (link, arrival) = tokio::join!(sly, async { other.accept().await.unwrap().finish().await });
        assert!(matches!(arrival, Err(NetError::OwnKey { .. })), "{arrival:?}");
        match link.unwrap().closed().await {
            ConnectionError::ApplicationClosed(close) => {
                assert_eq!(close.error_code.into_inner(), CloseCode::OwnKey.number());
            }
            other => panic!("{other}"),
        }
    }

    /// An address of which so many may be there at once; how many were let in, and how many not.
    #[derive(Debug)]
    struct Counted {
        room: Arc<Semaphore>,
        forgets: bool,
        arrived: AtomicUsize,
        refused: AtomicUsize,
    }

    impl Counted {
        fn new(room: usize, forgets: bool) -> Arc<Self> {
            let (arrived, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
            Arc::new(Self { room: Arc::new(Semaphore::new(room)), forgets, arrived, refused })
        }

        fn counts(&self) -> (usize, usize) {
            (self.arrived.load(Ordering::SeqCst), self.refused.load(Ordering::SeqCst))
        }
    }

    impl Toll for Counted {
        fn has_room(&self, _: IpAddr) -> bool {
            self.forgets || self.room.available_permits() > 0
        }

        fn arrive(&self, address: IpAddr) -> Result<Entry, TurnedAway> {
            assert!(address.is_loopback());
            match self.room.clone().try_acquire_owned() {
                Ok(place) => {
                    self.arrived.fetch_add(1, Ordering::SeqCst);
                    Ok(Entry { payer: Arc::new(Free), connection: Box::new(place), opening: Box::new(()) })
                }
                Err(_) => {
                    self.refused.fetch_add(1, Ordering::SeqCst);
                    let why = "too many connections from this address; retry after 5000 ms".to_owned();
                    Err(TurnedAway { code: CloseCode::TooManyLinks, why })
                }
            }
        }
    }

    #[derive(Debug)]
    struct Free;

    impl Payer for Free {
        fn open(&self) -> Result<Held, TurnedAway> {
            Ok(Box::new(()))
        }
        fn read(&self, _: u64, _: u64) -> Result<Duration, TurnedAway> {
            Ok(Duration::ZERO)
        }
        fn create(&self, _: u64) -> Result<Duration, TurnedAway> {
            Ok(Duration::ZERO)
        }
    }

    /// What comes of one dial where `toll` is asked.
    async fn dialled_within(
        dialler: &Endpoint,
        acceptor: &Endpoint,
        toll: Arc<dyn Toll>,
    ) -> (Result<Link, NetError>, Option<Result<Arrival, NetError>>) {
        let accepting = acceptor.clone();
        let accepting = tokio::spawn(async move { accepting.accept_within(Some(&toll)).await.unwrap().finish().await });
        let link = dialler.connect_to(acceptor.node(), acceptor.local_addr()).await;
        if link.is_ok() {
            return (link, Some(accepting.await.unwrap()));
        }
        accepting.abort();
        (link, None)
    }

    #[tokio::test]
    async fn an_address_beyond_its_quota_is_refused_before_its_handshake_and_only_once_it_is_proven() {
        let (first, acceptor, toll) = (endpoint(2), endpoint(1), Counted::new(1, false));
        let (link, arrival) = dialled_within(&first, &acceptor, toll.clone()).await;
        let mut arrival = arrival.unwrap().unwrap();
        assert!(link.is_ok());
        assert_eq!(toll.counts(), (1, 0));
        let other = endpoint(3);
        let (link, none) = dialled_within(&other, &acceptor, toll.clone()).await;
        assert!(matches!(link, Err(NetError::Refused { .. })) && none.is_none(), "{link:?}");
        assert_eq!(toll.counts(), (1, 1));
        let stats = acceptor.inner.endpoint.stats();
        assert_eq!((stats.accepted_handshakes, stats.refused_handshakes), (1, 1), "nothing was spent on it");
        // Whoever is not counted by address after all gives the place back.
        drop(arrival.take_entry());
        let (link, arrival) = dialled_within(&other, &acceptor, toll.clone()).await;
        assert!(link.is_ok() && arrival.unwrap().is_ok());
        assert_eq!(toll.counts(), (2, 1));
    }

    #[tokio::test]
    async fn who_comes_while_the_last_place_is_taken_is_told_when_to_come_again() {
        let (dialler, acceptor, toll) = (endpoint(2), endpoint(1), Counted::new(0, true));
        let (link, arrival) = dialled_within(&dialler, &acceptor, toll).await;
        let here = arrival.unwrap().unwrap_err();
        assert!(matches!(&here, NetError::TurnedAway { code: CloseCode::TooManyLinks, .. }), "{here:?}");
        let there = link.unwrap().closed().await;
        assert!(matches!(&there, NetError::Closed { code: CloseCode::TooManyLinks, .. }), "{there:?}");
        assert!(there.is_retryable() && here.is_retryable());
        assert_eq!(there.retry_after(), Some(Duration::from_secs(5)), "{there}");
    }

    async fn quinn_dial(acceptor: &Endpoint, identity: Identity) -> Result<quinn::Connection, ConnectionError> {
        let dialler = quinn::Endpoint::client(LOOPBACK.parse().unwrap()).unwrap();
        let config = tls::dialling(&identity).unwrap();
        dialler.connect_with(config, acceptor.local_addr(), &tls::server_name(acceptor.node())).unwrap().await
    }

    #[tokio::test]
    async fn a_full_node_refuses_and_has_room_again_when_a_link_ends() {
        let (dialler, acceptor) = (endpoint(2), limited(1, 1));
        let (link, arrival) = meet(&dialler, &acceptor).await;
        let arrival = arrival.unwrap();
        let accepting = tokio::spawn({
            let acceptor = acceptor.clone();
            async move { acceptor.accept().await.unwrap().finish().await }
        });
        let error = dialler.connect_to(acceptor.node(), acceptor.local_addr()).await.unwrap_err();
        assert!(matches!(error, NetError::Refused { .. }) && error.is_retryable(), "{error:?}");
        // The limit counts what it dials as well.
        let error = acceptor.connect_to(dialler.node(), dialler.local_addr()).await.unwrap_err();
        assert!(matches!(error, NetError::TooManyConnections { max: 1 }), "{error:?}");
        drop((link, arrival));
        assert!(dialler.connect_to(acceptor.node(), acceptor.local_addr()).await.is_ok());
        assert!(accepting.await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn a_busy_node_checks_the_address_first_and_lets_an_honest_stranger_in() {
        let (dialler, acceptor) = (endpoint(2), endpoint(1));
        let busy = u32::try_from(PROVE_ADDRESS_ABOVE).unwrap();
        let _running = acceptor.inner.handshakes.clone().acquire_many_owned(busy).await.unwrap();
        let (link, arrival) = meet(&dialler, &acceptor).await;
        assert!(link.is_ok() && arrival.is_ok());
        let stats = acceptor.inner.endpoint.stats();
        assert_eq!((stats.ignored_handshakes, stats.refused_handshakes, stats.accepted_handshakes), (0, 0, 1));
        assert_eq!(acceptor.inner.handshakes.available_permits(), queues::HANDSHAKES - PROVE_ADDRESS_ABOVE);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_where_nobody_answers_is_unreachable() {
        let silent = UdpSocket::bind(LOOPBACK).unwrap();
        let error = endpoint(2).connect_to(identity(1).node(), silent.local_addr().unwrap()).await.unwrap_err();
        assert!(matches!(error, NetError::Unreachable { .. }) && error.is_retryable(), "{error:?}");
        assert!(error.to_string().contains("10 seconds"), "{error}");
    }

    #[tokio::test]
    async fn a_node_on_loopback_says_at_once_that_it_cannot_dial_out() {
        let error = endpoint(2).connect_to(identity(1).node(), "192.0.2.1:1".parse().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("127.0.0.1"), "{error}");
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_unreachable_and_named() {
        let ticket = Ticket::new(identity(1).node(), "no-such-host.invalid", 4400).unwrap();
        let error = endpoint(2).connect(&ticket).await.unwrap_err();
        assert!(matches!(&error, NetError::Unreachable { addr, .. } if addr == "no-such-host.invalid:4400"), "{error}");
    }

    #[tokio::test]
    async fn closing_tells_every_peer_and_ends_accept() {
        let pair = linked().await;
        pair.acceptor.close(CloseCode::Shutdown);
        assert!(pair.acceptor.accept().await.is_none());
        let reason = pair.dialled.closed().await;
        assert!(matches!(reason, NetError::Closed { code: CloseCode::Shutdown, .. }) && reason.is_retryable());
        assert!(matches!(pair.accepted.close_reason(), Some(NetError::ClosedHere)));
        let error = pair.acceptor.connect_to(pair.dialler.node(), pair.dialler.local_addr()).await.unwrap_err();
        assert!(matches!(error, NetError::ClosedHere), "{error:?}");
        drop(pair.accepted);
        pair.acceptor.idle().await;
    }
}
