//! Links between nodes: QUIC over TLS 1.3, where a node *is* its Ed25519 key.
//!
//! # Model
//! * An [`Identity`] is a key pair; its public half is the [`NodeId`](crate::id::NodeId). There are no certificates,
//!   names, dates or authorities: both ends prove their key in the handshake (raw public keys, RFC 7250).
//! * An [`Endpoint`] is one UDP socket. It dials others by [`Ticket`], which pins the key that must answer, and it
//!   accepts. The transport accepts *any* proven key, because only the application knows what to tell an unknown one.
//! * What arrives is therefore a [`Handshake`], then an [`Arrival`]: a proven key that may cost us very little. The
//!   [`AllowList`] judges it, and it becomes a [`Link`] or is refused with a [`CloseCode`] that names the remedy.
//! * A [`Link`] carries streams, and a stream carries frames ([`FrameWriter`], [`FrameReader`]).
//!
//! ```text
//! dialler:  Ticket -> Endpoint::connect -----------------------------------------> Link
//! acceptor: Endpoint::accept -> Handshake::finish -> Arrival -> AllowList::judge -> Link
//!                                                           \-> Arrival::refuse
//! ```
//!
//! A dialler's `connect` succeeds a round trip *before* the acceptor has judged it. Whoever dials learns the verdict
//! with the first frame, or from [`Link::closed`].
//!
//! # Source
//! RFC 9000 (QUIC), RFC 9001 (QUIC-TLS), RFC 8446 (TLS 1.3), RFC 7250 (raw public keys), RFC 8410 (Ed25519 in DER).

mod allow;
mod attester;
mod backoff;
mod close;
mod conversation;
mod door;
mod endpoint;
mod error;
mod frames;
mod identity;
mod link;
mod links;
mod refusal;
mod ticket;
mod tls;
mod transport;

#[cfg(test)]
mod hostile;

pub use allow::{Admission, AdmittedBy, AllowList, OutstandingInvite, Role, UnknownKeys};
pub use backoff::Backoff;
pub use close::CloseCode;
#[cfg(feature = "node")]
pub(crate) use door::{Change, Doorkeeper, Entry, Guards, Held, Payer, Toll, TurnedAway, Visitor, Watch};
pub use endpoint::{Endpoint, Handshake};
pub use error::{KeyFault, NetError};
pub use frames::{FrameReader, FrameWriter};
pub use identity::Identity;
pub use link::{Arrival, Link, Traffic};
pub use links::{LinkOptions, Links, PeerStatus, role_name};
pub use ticket::{Invite, Ticket};
pub use tls::ALPN;
#[cfg(feature = "node")]
pub(crate) use tls::provider;
