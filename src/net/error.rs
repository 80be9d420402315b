//! What can go wrong between two nodes, each fault under a name of its own and with its remedy.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::id::NodeId;

use super::close::CloseCode;

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFault {
    /// The file cannot be read.
    #[error("it cannot be read ({0}): check its owner and permissions")]
    NotRead(io::Error),
    /// The file cannot be written.
    #[error("it cannot be written ({0}): check that the directory exists and may be written to")]
    NotWritten(io::Error),
    /// The file holds nothing.
    #[error("it is empty: restore it from a backup, or remove it to become a new node that its peers have to allow")]
    Empty,
    /// The file holds something else than a key.
    #[error(
        "it does not hold one line `tidelog-key-1 <64 hexadecimal digits>`: restore it from a backup, or remove it to \
         become a new node that its peers have to allow"
    )]
    Malformed,
    /// Others than the owner may read or write the file.
    #[error(
        "its mode {mode:o} lets others than its owner at the key: run `chmod 600` on it, or make a new key if it \
         may have been read"
    )]
    OpenToOthers {
        /// The permission bits found.
        mode: u32,
    },
}

/// What can go wrong on the way to a link and on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The file with our own key cannot be used.
    #[error("key file {} cannot be used: {fault}", path.display())]
    KeyFile {
        /// Which file.
        path: PathBuf,
        /// Why, and what to do.
        fault: KeyFault,
    },
    /// A token that is to be shown to other nodes is longer than a token may be.
    #[error("a token of {bytes} bytes is longer than the {max} that a link carries")]
    TokenTooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// A text is not a ticket.
    #[error(
        "{text:?} is not a ticket: {fault}; expected tidelog:<node id>@<host>:<port>, perhaps with #<invite> after it"
    )]
    Ticket {
        /// The text without its invite, shortened.
        text: String,
        /// Which part is wrong.
        fault: &'static str,
    },
    /// A text is not an invite. The text is not shown, since it may be a secret with a slip.
    #[error("this is not an invite: expected 26 characters of lower-case base32")]
    Invite,
    /// As many invites are out as may be.
    #[error("{max} invites are waiting to be used; wait until one is used or expires")]
    TooManyInvites {
        /// The limit.
        max: usize,
    },
    /// Somebody else has the UDP port.
    #[error("{addr} is in use: another node or program has this UDP port; stop it, or listen on another port")]
    AddressInUse {
        /// The address asked for.
        addr: SocketAddr,
    },
    /// The socket cannot be had.
    #[error("cannot listen on {addr}: {source}")]
    Bind {
        /// The address asked for.
        addr: SocketAddr,
        /// What the operating system says.
        source: io::Error,
    },
    /// The TLS stack refuses our own configuration or key.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    /// Both ends have the same key.
    #[error(
        "{node} is this node's own key: a node has no link to itself, and a copy of a data directory needs a key of \
         its own"
    )]
    OwnKey {
        /// That key.
        node: NodeId,
    },
    /// Nobody answers.
    #[error("{addr} cannot be reached: {why}")]
    Unreachable {
        /// Where we dialled.
        addr: String,
        /// What was found.
        why: String,
    },
    /// Somebody answers and takes no connection.
    #[error("{addr} takes no connection now: it is full or shutting down")]
    Refused {
        /// Where we dialled.
        addr: SocketAddr,
    },
    /// We have as many links as we may have.
    #[error("{max} links are open, as many as `connections_max` allows")]
    TooManyConnections {
        /// The limit.
        max: usize,
    },
    /// A key is not on the allow-list. Both ends get this error with the same key in it.
    #[error("node {node} is not allowed: to allow it, run `tidelog peer add {node}` at the node that refused it")]
    NotAllowed {
        /// The key that was refused.
        node: NodeId,
    },
    /// A key came with an invite that is of no use. Both ends get this error with the same key in it.
    #[error(
        "the invite of node {node} is unknown, used or too old: make another with `tidelog ticket --invite node`, or \
         run `tidelog peer add {node}` at the node that refused it"
    )]
    InviteRefused {
        /// The key that came with it.
        node: NodeId,
    },
    /// The dialler found another key than its ticket says.
    #[error(
        "the node at {addr} has another key than expected: {expected} was expected, {} was found; it is another node \
         or has a new key: get a new ticket from its operator",
        found.map_or_else(|| "another".to_owned(), |node| node.to_string())
    )]
    WrongKey {
        /// Where we dialled.
        addr: SocketAddr,
        /// The key in the ticket.
        expected: NodeId,
        /// The key that was shown.
        found: Option<NodeId>,
    },
    /// A dialler left because it expected another key than ours.
    #[error(
        "the dialler at {addr} expects another key than this node's {node}: its ticket is of another node or of an \
         earlier key; give it a new one from `tidelog ticket`"
    )]
    OtherKeyExpected {
        /// Who dialled.
        addr: SocketAddr,
        /// Our key.
        node: NodeId,
    },
    /// An end shows something that is not an Ed25519 key.
    #[error("the handshake with {addr} failed: {} shows something that is not an Ed25519 raw public key", whose(*ours))]
    BadKey {
        /// The peer.
        addr: SocketAddr,
        /// Whether it is this side, as the peer says.
        ours: bool,
    },
    /// An end does not hold the secret of the key it shows.
    #[error("the handshake with {addr} failed: {} does not hold the secret of the key it shows", whose(*ours))]
    KeyNotProven {
        /// The peer.
        addr: SocketAddr,
        /// Whether it is this side, as the peer says.
        ours: bool,
    },
    /// An end shows no key at all.
    #[error("the handshake with {addr} failed: {} shows no key", whose(*ours))]
    NoKey {
        /// The peer.
        addr: SocketAddr,
        /// Whether it is this side, as the peer says.
        ours: bool,
    },
    /// The other end does not speak raw public keys.
    #[error("{addr} does not identify itself by a raw public key: it is not a tidelog node")]
    NoRawKeys {
        /// The peer.
        addr: SocketAddr,
    },
    /// The other end speaks QUIC, but not this protocol.
    #[error("{addr} does not speak tidelog/1: it is another version or another program")]
    OtherProtocol {
        /// The peer.
        addr: SocketAddr,
    },
    /// The handshake or the transport failed in another way.
    #[error("the connection with {addr} failed: {why}")]
    Transport {
        /// The peer.
        addr: SocketAddr,
        /// What QUIC or TLS says.
        why: String,
    },
    /// The peer fell silent.
    #[error("nothing was heard from {addr} for too long")]
    TimedOut {
        /// The peer.
        addr: SocketAddr,
    },
    /// The peer does not know the connection any more.
    #[error("{addr} has lost the connection, as after a restart")]
    Reset {
        /// The peer.
        addr: SocketAddr,
    },
    /// The peer closed the link for a reason that has no variant of its own.
    #[error("node {} closed the link: {code}: {reason}", node.short())]
    Closed {
        /// The peer.
        node: NodeId,
        /// The code it gave.
        code: CloseCode,
        /// The words it gave, made safe to print; the code's text when it gave none.
        reason: String,
    },
    /// The session broke off: the peer broke the protocol, or this side's store does not answer.
    #[error("the session with {node} ended ({code}): {why}", code = code.name())]
    Session {
        /// The peer.
        node: NodeId,
        /// What the peer was told.
        code: CloseCode,
        /// What happened.
        why: String,
    },
    /// A stranger comes from an address that has as much of this node as it may have.
    #[error("{addr} was turned away ({code}): {why}", code = code.name())]
    TurnedAway {
        /// Where it comes from.
        addr: SocketAddr,
        /// What it was told.
        code: CloseCode,
        /// Why, and after which time it may come again.
        why: String,
    },
    /// We closed the link.
    #[error("this side has closed the link")]
    ClosedHere,
    /// The peer gave up one stream; the link lives on.
    #[error("the peer gave up a stream (number {code})")]
    StreamReset {
        /// The number it gave.
        code: u64,
    },
    /// The stream was finished or given up on this side.
    #[error("the stream was closed on this side")]
    StreamClosed,
    /// A stream ended within a frame.
    #[error("a stream ended within a frame: {got} of {expected} bytes arrived")]
    TruncatedFrame {
        /// Bytes that arrived, of the length prefix or of the body.
        got: usize,
        /// Bytes that were to come.
        expected: usize,
    },
    /// A frame is longer than it may be.
    #[error("a frame of {length} bytes is longer than the {max} allowed")]
    FrameTooLong {
        /// Its length as announced.
        length: usize,
        /// The limit.
        max: usize,
    },
}

fn whose(ours: bool) -> &'static str {
    if ours { "this node" } else { "the peer" }
}

impl NetError {
    /// Whether a dialler that tries again later, with nothing changed on its own side, may succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Refused { .. }
            | Self::TooManyConnections { .. }
            | Self::TooManyInvites { .. }
            | Self::NotAllowed { .. }
            | Self::Transport { .. }
            | Self::TimedOut { .. }
            | Self::Reset { .. }
            | Self::StreamReset { .. }
            | Self::StreamClosed
            | Self::TruncatedFrame { .. }
            | Self::FrameTooLong { .. }
            | Self::TurnedAway { .. } => true,
            Self::Closed { code, .. } => code.is_retryable(),
            Self::Session { .. } => true,
            Self::KeyFile { .. }
            | Self::Ticket { .. }
            | Self::Invite
            | Self::AddressInUse { .. }
            | Self::Bind { .. }
            | Self::Tls(_)
            | Self::OwnKey { .. }
            | Self::InviteRefused { .. }
            | Self::WrongKey { .. }
            | Self::OtherKeyExpected { .. }
            | Self::BadKey { .. }
            | Self::KeyNotProven { .. }
            | Self::NoKey { .. }
            | Self::NoRawKeys { .. }
            | Self::OtherProtocol { .. }
            | Self::TokenTooLong { .. }
            | Self::ClosedHere => false,
        }
    }

    /// When the peer closed the link, after which time it said that another is of use; `None` when it said nothing of it.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        let Self::Closed { code, reason, .. } = self else { return None };
        let (_, number) = reason.strip_suffix(" ms")?.rsplit_once("retry after ")?;
        code.says_when().then_some(Duration::from_millis(number.parse().ok()?))
    }

    /// The code to close a link with when this is the reason.
    #[must_use]
    pub fn close_code(&self) -> CloseCode {
        match self {
            Self::NotAllowed { .. } => CloseCode::NotAllowed,
            Self::InviteRefused { .. } => CloseCode::InviteRefused,
            Self::OwnKey { .. } => CloseCode::OwnKey,
            Self::TooManyConnections { .. } => CloseCode::TooManyConnections,
            Self::TruncatedFrame { .. } | Self::FrameTooLong { .. } => CloseCode::BadFrame,
            Self::TimedOut { .. } => CloseCode::TooSlow,
            Self::ClosedHere => CloseCode::Shutdown,
            Self::Session { code, .. } | Self::TurnedAway { code, .. } => *code,
            _ => CloseCode::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_peer_that_is_busy_says_when_to_come_again_and_what_it_says_is_not_believed_blindly() {
        let closed = |code, reason: &str| {
            NetError::Closed { node: NodeId([1; 32]), code, reason: reason.to_owned() }.retry_after()
        };
        let words = "too many messages in a short time from this user; retry after 1500 ms";
        for code in CloseCode::ALL {
            let said = code.says_when().then_some(Duration::from_millis(1500));
            assert_eq!(closed(code, words), said, "{code}");
            assert!(said.is_none() || code.is_retryable(), "{code}");
        }
        assert_eq!(CloseCode::ALL.into_iter().filter(|code| code.says_when()).count(), 3);
        for reason in
            ["", "ms", "retry after ms", "retry after -5 ms", "retry after 5", "retry after 99999999999999999999 ms"]
        {
            assert_eq!(closed(CloseCode::Busy, reason), None, "{reason}");
        }
        assert_eq!(NetError::ClosedHere.retry_after(), None);
    }
}
