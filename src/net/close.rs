//! Why a link was closed, as a number that both ends read the same way.

use std::fmt;

/// The application close codes of a link.
///
/// The number travels in QUIC's `CONNECTION_CLOSE`; the name is for logs and documents; the text is for people. A new
/// code gets a new number, and no number is ever used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseCode {
    /// The peer stops. It also is what an end says that goes away without a word.
    Shutdown,
    /// The key is not on the allow-list.
    NotAllowed,
    /// The invite is unknown, used or too old.
    InviteRefused,
    /// A frame could not be read.
    BadFrame,
    /// The `Hello` asks for a version or a capability that this side does not have.
    ProtocolVersion,
    /// This side has as many links as it may have.
    TooManyConnections,
    /// The same peer has opened a newer link.
    Replaced,
    /// The key was struck off the allow-list while the link was open.
    Removed,
    /// The peer took too long over something it had to do.
    TooSlow,
    /// The `Hello` names another node than the handshake has proven.
    WrongIdentity,
    /// Both ends show the same key.
    OwnKey,
    /// A fault of this side.
    Internal,
    /// A change that cannot be taken: it does not pass the gate, or cannot be applied.
    ChangeRefused,
    /// A token is needed, and there is none, or it is not accepted or has expired.
    TokenRefused,
    /// The token, or whoever it names, was revoked.
    TokenRevoked,
    /// What the peer may read has changed while some of it was on its way.
    AccessChanged,
    /// Too much came in a short time. The reason ends with when to come again.
    Busy,
    /// The user, or the address, has as many links as it may have. The reason ends with when to come again.
    TooManyLinks,
    /// Too many new links, or tokens that are not accepted, in a short time. The reason ends with when to come again.
    TooManyNewLinks,
    /// A number that this version does not know, from a newer peer.
    Unknown(u64),
}

impl CloseCode {
    /// Every code that this version knows, by number.
    pub const ALL: [Self; 19] = [
        Self::Shutdown,
        Self::NotAllowed,
        Self::InviteRefused,
        Self::BadFrame,
        Self::ProtocolVersion,
        Self::TooManyConnections,
        Self::Replaced,
        Self::Removed,
        Self::TooSlow,
        Self::WrongIdentity,
        Self::OwnKey,
        Self::Internal,
        Self::ChangeRefused,
        Self::TokenRefused,
        Self::TokenRevoked,
        Self::AccessChanged,
        Self::Busy,
        Self::TooManyLinks,
        Self::TooManyNewLinks,
    ];

    /// The table: number, name, text.
    const fn row(self) -> (u64, &'static str, &'static str) {
        match self {
            Self::Shutdown => (0, "shutdown", "the node is shutting down"),
            Self::NotAllowed => (1, "not-allowed", "the key is not on the allow-list"),
            Self::InviteRefused => (2, "invite-refused", "the invite is unknown, used or too old"),
            Self::BadFrame => (3, "bad-frame", "a frame could not be read"),
            Self::ProtocolVersion => (4, "protocol-version", "the versions of the protocol do not meet"),
            Self::TooManyConnections => (5, "too-many-connections", "the node has as many links as it may have"),
            Self::Replaced => (6, "replaced", "the same peer has opened a newer link"),
            Self::Removed => (7, "removed", "the key was struck off the allow-list"),
            Self::TooSlow => (8, "too-slow", "the peer took too long"),
            Self::WrongIdentity => (9, "wrong-identity", "the peer names another node than its key proves"),
            Self::OwnKey => (10, "own-key", "both ends show the same key"),
            Self::Internal => (11, "internal", "the node met a fault of its own"),
            Self::ChangeRefused => (12, "change-refused", "a change cannot be taken"),
            Self::TokenRefused => (13, "token-refused", "the token is missing, not accepted, or has expired"),
            Self::TokenRevoked => (14, "token-revoked", "the token or its user was revoked"),
            Self::AccessChanged => (15, "access-changed", "what the peer may read has changed"),
            Self::Busy => (16, "busy", "too much came in a short time"),
            Self::TooManyLinks => (17, "too-many-links", "there are as many links as there may be"),
            Self::TooManyNewLinks => (18, "too-many-new-links", "too many links or bad tokens came in a short time"),
            Self::Unknown(number) => (number, "unknown", "the code belongs to a newer version"),
        }
    }

    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.row().0
    }

    /// The name in logs and documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.row().1
    }

    /// What it means, in words.
    #[must_use]
    pub const fn text(self) -> &'static str {
        self.row().2
    }

    /// The code with `number`; [`Self::Unknown`] when there is none.
    #[must_use]
    pub fn from_number(number: u64) -> Self {
        Self::ALL.into_iter().find(|code| code.number() == number).unwrap_or(Self::Unknown(number))
    }

    /// Whether a dialler may hope that the next try ends otherwise, with nothing changed on its own side.
    ///
    /// `NotAllowed` and `Removed` are among them: the remedy is a command at the *other* node, and the dialler is to
    /// come back by itself when it was given.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::Shutdown
            | Self::NotAllowed
            | Self::TooManyConnections
            | Self::Removed
            | Self::TooSlow
            | Self::BadFrame
            | Self::Internal
            | Self::AccessChanged
            | Self::Busy
            | Self::TooManyLinks
            | Self::TooManyNewLinks
            | Self::Unknown(_) => true,
            Self::InviteRefused
            | Self::ProtocolVersion
            | Self::Replaced
            | Self::WrongIdentity
            | Self::OwnKey
            | Self::ChangeRefused
            | Self::TokenRefused
            | Self::TokenRevoked => false,
        }
    }
}

impl CloseCode {
    /// Whether the reason that comes with it ends with `retry after <number> ms`: to come again sooner is of no use.
    #[must_use]
    pub const fn says_when(self) -> bool {
        matches!(self, Self::Busy | Self::TooManyLinks | Self::TooManyNewLinks)
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_own_number_and_name_and_reads_back() {
        for (n, code) in CloseCode::ALL.into_iter().enumerate() {
            assert_eq!(code.number(), n as u64, "{code}: numbers are dense, so that none is used twice");
            assert_eq!(CloseCode::from_number(code.number()), code);
            assert_eq!(CloseCode::ALL.iter().filter(|other| other.name() == code.name()).count(), 1, "{code}");
        }
        assert_eq!(CloseCode::from_number(9999), CloseCode::Unknown(9999));
    }
}
