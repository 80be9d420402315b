//! An open connection: first the proven stranger, then the link.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, VarInt};
use tokio::sync::OwnedSemaphorePermit;

use crate::id::NodeId;

use super::close::CloseCode;
use super::door::Entry;
use super::error::NetError;
use super::frames::{FrameReader, FrameWriter};
use super::refusal::Ends;
use super::transport;

/// A peer that has proven its key and was not judged yet.
///
/// It may have 64 KiB under way to us, no more. It becomes a [`Link`] with [`Self::admit`], or is told why not with
/// [`Self::refuse`]. Dropped, it is closed without a reason.
#[derive(Debug)]
pub struct Arrival(Link, Option<Entry>);

impl Arrival {
    pub(super) fn new(link: Link, entry: Option<Entry>) -> Self {
        Self(link, entry)
    }

    /// What its address pays for it, if that is counted.
    pub(super) fn take_entry(&mut self) -> Option<Entry> {
        self.1.take()
    }

    /// The key that the peer has proven.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.0.node()
    }

    /// Where the peer is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// Waits for the control stream of a peer that is admitted only if its first frame holds an invite.
    ///
    /// Read that frame under `Limits::hello_bytes_max` and with a time limit; the peer is still a stranger.
    ///
    /// # Errors
    /// Whatever ended the connection.
    ///
    /// # Cancel safety
    /// Safe: no stream is lost.
    pub async fn accept_bi(&self) -> Result<(FrameWriter, FrameReader), NetError> {
        self.0.accept_bi().await
    }

    /// Makes it a link, with all that a link may use.
    #[must_use]
    pub fn admit(self) -> Link {
        self.0.open_window();
        self.0
    }

    /// Makes it a link that may use no more than a stranger, until its user is proven.
    #[must_use]
    pub(super) fn hear(self) -> Link {
        self.0
    }

    /// Closes it and tells the peer why.
    pub fn refuse(self, why: &NetError) {
        self.0.close(why.close_code(), &why.to_string());
    }
}

/// Bytes of UDP payload that one link has cost so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Sent to the peer.
    pub sent: u64,
    /// Received from the peer.
    pub received: u64,
}

/// An encrypted connection with one node, whose key is proven. A cheap clone; the last one closes it when dropped.
///
/// A stream that is opened is seen by the peer only when something is sent on it.
#[derive(Clone)]
pub struct Link {
    connection: Connection,
    /// The address in here is that of the beginning; the peer may have moved since.
    ends: Ends,
    node: NodeId,
    frame_bytes_max: usize,
    /// Gives the place among the connections back with the last clone.
    _slot: Arc<OwnedSemaphorePermit>,
}

impl Link {
    pub(super) fn new(
        connection: Connection,
        node: NodeId,
        ends: Ends,
        frame_bytes_max: usize,
        slot: OwnedSemaphorePermit,
    ) -> Self {
        let ends = Ends { remote: Some(node), ..ends };
        Self { connection, ends, node, frame_bytes_max, _slot: Arc::new(slot) }
    }

    /// The peer, by the key it has proven.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Where the peer is now.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        canonical(self.connection.remote_address())
    }

    /// Where the peer was when the link was made: it has proven that it is there.
    pub(super) fn made_from(&self) -> SocketAddr {
        self.ends.address
    }

    /// Whether this side has dialled. The dialler opens the control stream.
    #[must_use]
    pub fn is_dialled(&self) -> bool {
        self.ends.dialled
    }

    /// Opens a stream in both directions, waiting while the peer has as many as it takes.
    ///
    /// # Errors
    /// Whatever ended the link.
    ///
    /// # Cancel safety
    /// Safe: no stream is lost.
    pub async fn open_bi(&self) -> Result<(FrameWriter, FrameReader), NetError> {
        let (send, receive) = self.connection.open_bi().await.map_err(|e| self.ends.explain(&e))?;
        Ok((self.writer(send), self.reader(receive)))
    }

    /// Waits for a stream in both directions that the peer opened.
    ///
    /// # Errors
    /// Whatever ended the link.
    ///
    /// # Cancel safety
    /// Safe: no stream is lost.
    pub async fn accept_bi(&self) -> Result<(FrameWriter, FrameReader), NetError> {
        let (send, receive) = self.connection.accept_bi().await.map_err(|e| self.ends.explain(&e))?;
        Ok((self.writer(send), self.reader(receive)))
    }

    /// Opens a stream to the peer, waiting while the peer has as many as it takes.
    ///
    /// # Errors
    /// Whatever ended the link.
    ///
    /// # Cancel safety
    /// Safe: no stream is lost.
    pub async fn open_uni(&self) -> Result<FrameWriter, NetError> {
        Ok(self.writer(self.connection.open_uni().await.map_err(|e| self.ends.explain(&e))?))
    }

    /// Waits for a stream from the peer.
    ///
    /// # Errors
    /// Whatever ended the link.
    ///
    /// # Cancel safety
    /// Safe: no stream is lost.
    pub async fn accept_uni(&self) -> Result<FrameReader, NetError> {
        Ok(self.reader(self.connection.accept_uni().await.map_err(|e| self.ends.explain(&e))?))
    }

    /// Closes the link at once. Data that the peer does not have yet is lost; see [`FrameWriter::delivered`].
    ///
    /// The peer gets `code` and `detail`, or the code's own text when `detail` is empty.
    pub fn close(&self, code: CloseCode, detail: &str) {
        let text = if detail.is_empty() { code.text() } else { detail };
        let number = VarInt::from_u64(code.number()).unwrap_or(VarInt::MAX);
        self.connection.close(number, text.as_bytes());
    }

    /// Waits until the link is closed by either side, and says why.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn closed(&self) -> NetError {
        self.ends.explain(&self.connection.closed().await)
    }

    /// Why the link is closed; `None` while it is open.
    #[must_use]
    pub fn close_reason(&self) -> Option<NetError> {
        self.connection.close_reason().map(|e| self.ends.explain(&e))
    }

    /// Lets the peer have all under way that a link may.
    pub(super) fn open_window(&self) {
        self.connection.set_receive_window(transport::RECEIVE_WINDOW);
    }

    /// How many bytes we keep for the peer until it acknowledges them; 256 KiB unless told otherwise.
    ///
    /// It bounds both what a peer that stops reading costs us and how much is under way at a time, so it is raised
    /// while a long transfer makes progress and lowered again after.
    pub fn set_send_window(&self, bytes: u64) {
        self.connection.set_send_window(bytes);
    }

    /// The time there and back, as estimated now.
    #[must_use]
    pub fn round_trip(&self) -> Duration {
        self.connection.rtt()
    }

    /// What the link has cost so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let stats = self.connection.stats();
        Traffic { sent: stats.udp_tx.bytes, received: stats.udp_rx.bytes }
    }

    fn writer(&self, stream: quinn::SendStream) -> FrameWriter {
        FrameWriter::new(stream, self.ends, self.frame_bytes_max)
    }

    fn reader(&self, stream: quinn::RecvStream) -> FrameReader {
        FrameReader::new(stream, self.ends)
    }

    /// The connection itself, for tests that misbehave on it.
    #[cfg(test)]
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({} at {})", self.node.short(), self.address())
    }
}

/// An IPv4 address that a dual-stack socket shows as IPv6, as the IPv4 address it is.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::net::endpoint::Endpoint;
    use crate::net::identity::Identity;

    pub(in crate::net) const LOOPBACK: &str = "127.0.0.1:0";

    pub(in crate::net) fn identity(seed: u8) -> Identity {
        Identity::from_seed(&[seed; 32]).unwrap()
    }

    pub(in crate::net) fn endpoint(seed: u8) -> Endpoint {
        Endpoint::bind(identity(seed), LOOPBACK.parse().unwrap(), &Limits::DEFAULT).unwrap()
    }

    /// Two endpoints and the two ends of a link between them.
    pub(in crate::net) struct Pair {
        pub(in crate::net) dialled: Link,
        pub(in crate::net) accepted: Link,
        pub(in crate::net) dialler: Endpoint,
        pub(in crate::net) acceptor: Endpoint,
    }

    pub(in crate::net) async fn linked() -> Pair {
        let (dialler, acceptor) = (endpoint(2), endpoint(1));
        let (dialled, arrival) = meet(&dialler, &acceptor).await;
        Pair { dialled: dialled.unwrap(), accepted: arrival.unwrap().admit(), dialler, acceptor }
    }

    /// What either side makes of one dial.
    pub(in crate::net) async fn meet(
        dialler: &Endpoint,
        acceptor: &Endpoint,
    ) -> (Result<Link, NetError>, Result<Arrival, NetError>) {
        let dial = dialler.connect_to(acceptor.node(), acceptor.local_addr());
        let accept = async { acceptor.accept().await.unwrap().finish().await };
        tokio::join!(dial, accept)
    }

    #[tokio::test]
    async fn each_end_learns_the_key_of_the_other_and_who_dialled() {
        let pair = linked().await;
        assert_eq!((pair.dialled.node(), pair.accepted.node()), (identity(1).node(), identity(2).node()));
        assert_eq!((pair.dialled.is_dialled(), pair.accepted.is_dialled()), (true, false));
        assert_eq!(pair.dialled.address(), pair.acceptor.local_addr());
        assert_eq!(pair.accepted.address(), pair.dialler.local_addr());

        let (mut writer, mut reader) = pair.dialled.open_bi().await.unwrap();
        writer.send(b"there").await.unwrap();
        let (mut back, mut forth) = pair.accepted.accept_bi().await.unwrap();
        assert_eq!(forth.read(10).await.unwrap().unwrap(), b"there");
        back.send(b"and back").await.unwrap();
        assert_eq!(reader.read(10).await.unwrap().unwrap(), b"and back");
        assert!(pair.dialled.traffic().sent > 0 && pair.dialled.traffic().received > 0);
    }

    #[tokio::test]
    async fn either_end_learns_why_the_other_has_closed() {
        for from_dialler in [true, false] {
            let pair = linked().await;
            let (here, there) =
                if from_dialler { (&pair.dialled, &pair.accepted) } else { (&pair.accepted, &pair.dialled) };
            assert!(there.close_reason().is_none());
            here.close(CloseCode::Replaced, "by \n another");
            match there.closed().await {
                NetError::Closed { node, code: CloseCode::Replaced, reason } => {
                    assert_eq!((node, reason.as_str()), (here_node(here, &pair), "by \\n another"));
                }
                other => panic!("{other:?}"),
            }
            assert!(matches!(here.closed().await, NetError::ClosedHere));
            assert!(matches!(here.open_bi().await, Err(NetError::ClosedHere)));
            assert!(matches!(there.accept_uni().await, Err(NetError::Closed { .. })));
        }
    }

    fn here_node(here: &Link, pair: &Pair) -> NodeId {
        if here.is_dialled() { pair.dialler.node() } else { pair.acceptor.node() }
    }

    #[tokio::test]
    async fn a_stranger_may_have_little_under_way_until_it_is_admitted() {
        let (dialler, acceptor) = (endpoint(2), endpoint(1));
        let (dialled, arrival) = meet(&dialler, &acceptor).await;
        let (dialled, arrival) = (dialled.unwrap(), arrival.unwrap());
        let window = vec![0; usize::try_from(transport::ARRIVAL_WINDOW.into_inner()).unwrap()];
        let mut first = dialled.connection().open_uni().await.unwrap();
        first.write_all(&window).await.unwrap();
        first.finish().unwrap();
        assert_eq!(first.stopped().await.unwrap(), None, "the window is there for it to use");

        let mut second = dialled.open_uni().await.unwrap();
        second.push(b"one more").unwrap();
        let arrives = async {
            second.finish().await.unwrap();
            second.delivered().await.unwrap();
        };
        tokio::pin!(arrives);
        // Were there room, this would be over after one round trip.
        for _ in 0..10 {
            let mut back = arrival.0.open_uni().await.unwrap();
            back.push(b"a round trip").unwrap();
            back.finish().await.unwrap();
            tokio::select! {
                outcome = back.delivered() => outcome.unwrap(),
                () = &mut arrives => panic!("a stranger had more than its window accepted"),
            }
        }
        let _link = arrival.admit();
        arrives.await;
    }
}
