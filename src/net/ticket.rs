//! Tickets: where a node is and which key must answer there, in one line to paste.
//!
//! ```text
//! tidelog:<node id, 52 characters of base32>@<host>:<port>[#<invite, 26 characters of base32>]
//! ```
//!
//! Without an invite a ticket is no secret: it says whom to expect, and admits nobody.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use crate::id::{NodeId, random_bytes, shortened};

use super::error::NetError;

/// Where to dial a node, the key it must prove, and perhaps an invite to show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket {
    node: NodeId,
    /// A name, an IPv4 address, or an IPv6 address without its brackets; checked by [`check_host`].
    host: String,
    port: u16,
    invite: Option<Invite>,
}

impl Ticket {
    /// Makes a ticket without an invite. `host` is a name, an IPv4 address, or an IPv6 address without brackets.
    ///
    /// # Errors
    /// [`NetError::Ticket`] when `host` is none of these or `port` is 0.
    pub fn new(node: NodeId, host: &str, port: u16) -> Result<Self, NetError> {
        let refused = |fault| NetError::Ticket { text: shortened(host), fault };
        check_host(host).map_err(refused)?;
        if port == 0 {
            return Err(refused(PORT_FAULT));
        }
        Ok(Self { node, host: host.to_owned(), port, invite: None })
    }

    /// The same ticket with `invite` to show.
    #[must_use]
    pub fn with_invite(self, invite: Invite) -> Self {
        Self { invite: Some(invite), ..self }
    }

    /// The key that must answer.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The name or address to dial, an IPv6 address without its brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The UDP port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What to show the node so that it admits an unknown key.
    #[must_use]
    pub fn invite(&self) -> Option<&Invite> {
        self.invite.as_ref()
    }

    /// Host and port as one writes them, an IPv6 address in brackets.
    #[must_use]
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Ticket {
    /// Writes the whole ticket, the invite included: this is the form to paste, not the form to log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tidelog:{}@{}", self.node, self.address())?;
        match &self.invite {
            Some(invite) => write!(f, "#{invite}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Ticket {
    /// Writes the ticket with its invite hidden.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = if self.invite.is_some() { "#…" } else { "" };
        write!(f, "tidelog:{}@{}{hidden}", self.node, self.address())
    }
}

impl FromStr for Ticket {
    type Err = NetError;

    /// Reads a ticket; the `tidelog:` in front may be absent.
    fn from_str(text: &str) -> Result<Self, NetError> {
        let text = text.trim();
        let (open, invite) = match text.split_once('#') {
            Some((open, invite)) => (open, Some(invite)),
            None => (text, None),
        };
        // The text may end up in a log, so it is shown without the invite.
        let refused = |fault| NetError::Ticket { text: shortened(open), fault };

        let rest = open.strip_prefix("tidelog:").unwrap_or(open);
        let (node, address) = rest.split_once('@').ok_or_else(|| refused("there is no @ after the node id"))?;
        let node = node.parse().map_err(|_| refused("the node id is not 52 characters of lower-case base32"))?;
        let (host, port) = split_address(address).map_err(refused)?;
        check_host(host).map_err(refused)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(|| refused(PORT_FAULT))?;
        let invite = invite
            .map(|invite| invite.parse().map_err(|_| refused("the invite after # is not 26 characters of base32")))
            .transpose()?;
        Ok(Self { node, host: host.to_owned(), port, invite })
    }
}

const PORT_FAULT: &str = "the port is not a number from 1 to 65535";

/// Splits `host:port` or `[host]:port`.
fn split_address(address: &str) -> Result<(&str, &str), &'static str> {
    if let Some(bracketed) = address.strip_prefix('[') {
        let (host, rest) = bracketed.split_once(']').ok_or("the bracket before the IPv6 address is not closed")?;
        let port = rest.strip_prefix(':').ok_or("there is no :port after the IPv6 address")?;
        // Brackets round a name would be lost when the ticket is written again.
        return if host.contains(':') { Ok((host, port)) } else { Err("only an IPv6 address may be in brackets") };
    }
    let (host, port) = address.rsplit_once(':').ok_or("there is no :port after the host")?;
    if host.contains(':') { Err("an IPv6 address must be in brackets, as in [::1]:4400") } else { Ok((host, port)) }
}

/// Whether `host` is a name, an IPv4 address or an unbracketed IPv6 address.
fn check_host(host: &str) -> Result<(), &'static str> {
    if host.is_empty() {
        return Err("the host is empty");
    }
    if host.contains(':') {
        return host.parse::<Ipv6Addr>().map(|_| ()).map_err(|_| "the host is not an IPv6 address");
    }
    // 253 is the longest name DNS can hold; the underscore is there because container networks use it.
    let fits = host.len() <= 253 && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if fits { Ok(()) } else { Err("the host is not a name or an address") }
}

/// A one-time secret that admits the unknown key that shows it: 16 random bytes, 26 characters of base32 as text.
///
/// It prints whole with `{}` and hidden with `{:?}`.
#[derive(Clone)]
pub struct Invite([u8; 16]);

impl Invite {
    /// Draws a new invite.
    #[must_use]
    pub fn random() -> Self {
        Self(random_bytes())
    }

    /// Takes the bytes that came in a `Hello`.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes, as a `Hello` carries them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl PartialEq for Invite {
    /// Compares every byte whatever the first ones are, so that the time taken tells a guesser nothing.
    fn eq(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
    }
}

impl Eq for Invite {}

impl fmt::Display for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::BASE32_NOPAD_NOCASE.encode(&self.0).to_ascii_lowercase())
    }
}

impl fmt::Debug for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Invite(…)")
    }
}

impl FromStr for Invite {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        if text.len() != 26 {
            return Err(NetError::Invite);
        }
        let bytes = data_encoding::BASE32_NOPAD_NOCASE.decode(text.as_bytes()).map_err(|_| NetError::Invite)?;
        bytes.try_into().map(Self).map_err(|_| NetError::Invite)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node() -> NodeId {
        NodeId([7; 32])
    }

    #[test]
    fn names_and_both_kinds_of_address_read_back() {
        let id = node();
        for (host, address) in [
            ("example.org", "example.org:4400"),
            ("192.0.2.1", "192.0.2.1:4400"),
            ("::1", "[::1]:4400"),
            ("2001:db8::7", "[2001:db8::7]:4400"),
        ] {
            let ticket = Ticket::new(id, host, 4400).unwrap();
            assert_eq!(ticket.to_string(), format!("tidelog:{id}@{address}"));
            assert_eq!(ticket.to_string().parse::<Ticket>().unwrap(), ticket);
            assert_eq!(format!(" {id}@{address}\n").parse::<Ticket>().unwrap(), ticket, "pasted carelessly");
            let invited = ticket.with_invite(Invite::random());
            assert_eq!(invited.to_string().parse::<Ticket>().unwrap(), invited);
        }
    }

    #[test]
    fn a_malformed_ticket_is_told_which_part_is_wrong() {
        let id = node();
        for (text, part) in [
            (String::new(), "no @"),
            ("tidelog:abc@host:1".into(), "the node id"),
            (format!("tidelog:{id}"), "no @"),
            (format!("tidelog:{id}@"), "no :port"),
            (format!("tidelog:{id}@host"), "no :port"),
            (format!("tidelog:{id}@:1"), "the host is empty"),
            (format!("tidelog:{id}@host:0"), "the port"),
            (format!("tidelog:{id}@host:65536"), "the port"),
            (format!("tidelog:{id}@ho st:1"), "the host is not"),
            (format!("tidelog:{id}@::1:1"), "brackets"),
            (format!("tidelog:{id}@[::1:1"), "not closed"),
            (format!("tidelog:{id}@[::1]"), "no :port"),
            (format!("tidelog:{id}@[host]:1"), "only an IPv6"),
            (format!("tidelog:{id}@[::g]:1"), "not an IPv6"),
            (format!("tidelog:{id}@host:1#"), "the invite"),
            (format!("tidelog:{id}@host:1#secret"), "the invite"),
        ] {
            let error = text.parse::<Ticket>().unwrap_err().to_string();
            assert!(error.contains(part), "{text:?}: {error}");
            assert!(error.contains("tidelog:<node id>@<host>:<port>"), "{error}");
            assert!(!error.contains("secret"), "an invite must not reach the log: {error}");
        }
    }

    #[test]
    fn an_invite_hides_itself_from_debug_and_compares_by_every_byte() {
        let invite = Invite::random();
        let ticket = Ticket::new(node(), "host", 1).unwrap().with_invite(invite.clone());
        assert!(!format!("{invite:?} {ticket:?}").contains(&invite.to_string()));
        assert_eq!(invite.to_string().len(), 26);
        for n in 0..16 {
            let mut other = *invite.as_bytes();
            other[n] ^= 0x10;
            assert_ne!(Invite::from_bytes(other), invite);
        }
    }

    proptest! {
        #[test]
        fn whatever_reads_as_a_ticket_reads_back_from_what_it_prints(
            node: [u8; 32],
            host in "[a-f0-9:.\\[\\]_-]{1,9}|\\[[0-9a-f]{0,4}::[0-9a-f]{0,4}\\]|[a-z.]{1,9}",
            port: u16,
            invite: Option<[u8; 16]>,
        ) {
            let invite = invite.map(|bytes| format!("#{}", Invite::from_bytes(bytes))).unwrap_or_default();
            let text = format!("tidelog:{}@{host}:{port}{invite}", NodeId(node));
            if let Ok(ticket) = text.parse::<Ticket>() {
                prop_assert_eq!(ticket.to_string().parse::<Ticket>().unwrap(), ticket);
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,120}") {
            let _ = text.parse::<Ticket>();
        }
    }
}
