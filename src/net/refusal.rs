//! From what QUIC tells of a failed connection to the fault it stands for.
//!
//! Of a failed handshake only the number of its TLS alert reaches either end, not the error behind it, and the same
//! number means different things to the two. This is the one place that knows the table.

use std::net::SocketAddr;

use quinn::{ConnectionError, ReadError, WriteError};

use crate::id::NodeId;

use super::close::CloseCode;
use super::error::NetError;
use super::tls;

/// Who is at the ends of a connection, as far as an error has to name them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    pub(super) local: NodeId,
    /// The proven key; while a handshake runs, the one that was dialled or none.
    pub(super) remote: Option<NodeId>,
    pub(super) address: SocketAddr,
    pub(super) dialled: bool,
}

impl Ends {
    /// Names why a connection failed or was closed.
    pub(super) fn explain(&self, error: &ConnectionError) -> NetError {
        let addr = self.address;
        match error {
            ConnectionError::TransportError(fault) => self.failed(fault.code.into(), &fault.reason, error, true),
            ConnectionError::ConnectionClosed(close) => {
                self.failed(close.error_code.into(), &String::from_utf8_lossy(&close.reason), error, false)
            }
            ConnectionError::ApplicationClosed(close) => self.closed(close.error_code.into_inner(), &close.reason),
            ConnectionError::VersionMismatch => NetError::OtherProtocol { addr },
            ConnectionError::Reset => NetError::Reset { addr },
            ConnectionError::TimedOut => NetError::TimedOut { addr },
            ConnectionError::LocallyClosed => NetError::ClosedHere,
            ConnectionError::CidsExhausted => NetError::Transport { addr, why: error.to_string() },
        }
    }

    /// Names why reading a stream failed.
    pub(super) fn explain_read(&self, error: &ReadError) -> NetError {
        match error {
            ReadError::Reset(code) => NetError::StreamReset { code: code.into_inner() },
            ReadError::ConnectionLost(error) => self.explain(error),
            // The last two cannot happen: nothing reads out of order, and 0-RTT is off.
            ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
                NetError::StreamClosed
            }
        }
    }

    /// Names why writing to a stream failed.
    pub(super) fn explain_write(&self, error: &WriteError) -> NetError {
        match error {
            WriteError::Stopped(code) => NetError::StreamReset { code: code.into_inner() },
            WriteError::ConnectionLost(error) => self.explain(error),
            WriteError::ClosedStream | WriteError::ZeroRttRejected => NetError::StreamClosed,
        }
    }

    /// Sorts by transport error code. `here` says that this side found the fault and the other is to blame.
    ///
    /// # Source
    /// RFC 9000, section 20.1 (a TLS alert is 0x100 and its number); RFC 8446, section 6 (the alerts).
    fn failed(&self, code: u64, reason: &str, error: &ConnectionError, here: bool) -> NetError {
        const CONNECTION_REFUSED: u64 = 0x2;
        const HANDSHAKE_FAILURE: u64 = 0x100 + 40;
        const CERTIFICATE_UNKNOWN: u64 = 0x100 + 46;
        const DECRYPT_ERROR: u64 = 0x100 + 51;
        const CERTIFICATE_REQUIRED: u64 = 0x100 + 116;
        const NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;

        let (addr, ours) = (self.address, !here);
        match code {
            CONNECTION_REFUSED => NetError::Refused { addr },
            // The certificate types do not meet.
            HANDSHAKE_FAILURE => NetError::NoRawKeys { addr },
            // Only our own verifiers send this one: see `tls::Refused`.
            CERTIFICATE_UNKNOWN => match (self.dialled, here, self.remote) {
                (true, true, Some(expected)) if tls::is_wrong_key(reason) => {
                    NetError::WrongKey { addr, expected, found: tls::key_in_refusal(reason) }
                }
                (false, false, _) if tls::is_wrong_key(reason) => NetError::OtherKeyExpected { addr, node: self.local },
                _ => NetError::BadKey { addr, ours },
            },
            DECRYPT_ERROR => NetError::KeyNotProven { addr, ours },
            CERTIFICATE_REQUIRED => NetError::NoKey { addr, ours },
            NO_APPLICATION_PROTOCOL => NetError::OtherProtocol { addr },
            _ => NetError::Transport { addr, why: printable(&error.to_string()) },
        }
    }

    /// Names why the peer closed the link. Where the remedy names a key it is our own, not what the peer says.
    fn closed(&self, number: u64, reason: &[u8]) -> NetError {
        match CloseCode::from_number(number) {
            CloseCode::NotAllowed => NetError::NotAllowed { node: self.local },
            CloseCode::InviteRefused => NetError::InviteRefused { node: self.local },
            CloseCode::OwnKey => NetError::OwnKey { node: self.local },
            code => {
                let reason = printable(&String::from_utf8_lossy(reason));
                let reason = if reason.is_empty() { code.text().to_owned() } else { reason };
                NetError::Closed { node: self.remote.unwrap_or(self.local), code, reason }
            }
        }
    }
}

/// At most 200 characters of what a peer says, with everything escaped that could forge a line of a log.
fn printable(text: &str) -> String {
    text.chars().take(200).flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_peer_cannot_forge_a_line_or_flood_one() {
        assert_eq!(printable("bad\nlevel=error \u{1b}[31m"), "bad\\nlevel=error \\u{1b}[31m");
        assert_eq!(printable(&"x".repeat(1000)).len(), 200);
    }
}
