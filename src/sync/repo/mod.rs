//! Clients that speak automerge-repo's protocol, as today's JavaScript applications do.
//!
//! This is the half of the endpoint that does no IO; the room `web` listens.
//!
//! [`wire`] is the messages. A [`RepoSession`] is one socket's conversation: it answers each document's sync messages
//! from the change graph and the log, through the same [`Exchange`](super::Exchange) that two nodes use, and never
//! builds a document. What concerns more than one socket goes through the [`Hub`]: who is who, who has which document
//! open, messages that are handed on and not stored, and which heads other stores have. See `docs/repo-protocol.md`.
//!
//! ```text
//!   socket --bytes--> RepoSession --rows--> writer --durable--> changed documents --> Hub::changed --> RepoSession
//!                          \------events--> Hub --notices--> other sockets' RepoSession
//! ```

mod cbor;
mod common;
mod config;
mod documents;
mod ephemeral;
mod fault;
mod hub;
mod scope;
mod session;
pub mod wire;

pub use common::RepoCommon;
pub use config::RepoConfig;
pub use ephemeral::Passing;
pub use fault::RepoFault;
pub use hub::{Hub, Notice, RepoEvent, SocketId, StoreHeadsKnown};
pub use scope::RepoScope;
pub use session::{Moment, RepoOutput, RepoSession};
