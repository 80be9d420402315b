//! What is counted, and what is said when there is too much of it.

use std::fmt;
use std::time::Duration;

/// What there is a quota of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Connections at once: of an address those of TCP and QUIC, of a user his WebSockets and links.
    Connections,
    /// Connections whose first request has not come, or of which it is not known whose they are.
    Openings,
    /// Listeners, feeds and long polls at once.
    Streams,
    /// New connections in a time; of a user, new WebSockets and links.
    Handshakes,
    /// Tokens that are not accepted.
    BadTokens,
    /// Requests to the API.
    Requests,
    /// Messages and other frames on WebSockets, frames and new streams on links.
    Frames,
    /// Bytes on WebSockets and links, and of requests' bodies.
    Bytes,
    /// Documents that come to be.
    Documents,
    /// Ephemeral messages.
    Presence,
}

impl Kind {
    pub(crate) const ALL: [Self; 10] = [
        Self::Connections,
        Self::Openings,
        Self::Streams,
        Self::Handshakes,
        Self::BadTokens,
        Self::Requests,
        Self::Frames,
        Self::Bytes,
        Self::Documents,
        Self::Presence,
    ];

    /// Its name in files and metrics, which stays.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Openings => "openings",
            Self::Streams => "streams",
            Self::Handshakes => "handshakes",
            Self::BadTokens => "bad_tokens",
            Self::Requests => "requests",
            Self::Frames => "frames",
            Self::Bytes => "bytes",
            Self::Documents => "documents",
            Self::Presence => "presence",
        }
    }

    /// Whether what is too much of it comes later, where that can be.
    pub(crate) fn is_waited_for(self) -> bool {
        matches!(self, Self::Frames | Self::Bytes | Self::Documents)
    }

    fn excess(self) -> &'static str {
        match self {
            Self::Connections => "too many connections",
            Self::Openings => "too many connections that ask for nothing",
            Self::Streams => "too many streams",
            Self::Handshakes => "too many new connections in a short time",
            Self::BadTokens => "too many tokens that are not accepted",
            Self::Requests => "too many requests in a short time",
            Self::Frames => "too many messages in a short time",
            Self::Bytes => "too many bytes in a short time",
            Self::Documents => "too many new documents in a short time",
            Self::Presence => "too many ephemeral messages in a short time",
        }
    }
}

/// Whose account it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// That of all who come from an address.
    Address,
    /// That of somebody who was proven to be who he says.
    User,
}

/// Somebody has had as much as he may, for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Busy {
    pub(crate) kind: Kind,
    pub(crate) whose: Whose,
    /// After which time it may be tried again; where that depends on others, a guess.
    pub(crate) retry_after: Duration,
}

impl Busy {
    /// Its fixed code.
    pub(crate) fn code(&self) -> &'static str {
        match self.kind {
            Kind::Connections | Kind::Openings => "E0710",
            Kind::Handshakes | Kind::Requests | Kind::Presence => "E0711",
            Kind::BadTokens => "E0712",
            Kind::Streams => "E0713",
            Kind::Documents => "E0714",
            Kind::Frames | Kind::Bytes => "E0715",
        }
    }

    /// The WebSocket close code that belongs to it: all are transient.
    pub(crate) fn close_code(&self) -> u16 {
        match self.kind {
            Kind::Connections | Kind::Openings | Kind::Streams => 4530,
            Kind::Handshakes | Kind::BadTokens => 4531,
            Kind::Requests | Kind::Frames | Kind::Bytes | Kind::Documents | Kind::Presence => 4529,
        }
    }

    /// [`Self::retry_after`] in ms, at least 1.
    pub(crate) fn retry_after_ms(&self) -> u64 {
        u64::try_from(self.retry_after.as_micros().div_ceil(1000)).unwrap_or(u64::MAX).max(1)
    }
}

/// What is said of it on a WebSocket or a link, where clients read the time from the last words.
impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = match self.whose {
            Whose::Address => "address",
            Whose::User => "user",
        };
        write!(f, "{} from this {whose}; retry after {} ms", self.kind.excess(), self.retry_after_ms())
    }
}
