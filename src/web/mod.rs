//! The HTTP port: WebSockets for clients that speak automerge-repo's protocol.
//!
//! ```text
//!   TCP -> server.rs -- GET /sync --> upgrade.rs -> socket.rs <-> sync::repo::RepoSession
//!                                                       |  ^
//!                                                events |  | marks and notices
//!                                                       v  |
//!                            the log -- changed --> switchboard.rs (sync::repo::Hub)
//! ```
//!
//! A [`WebServer`] is one TCP port. Each socket is one task (`socket.rs`) that feeds its session and does what that asks
//! for; nothing is shared between sockets but the `switchboard.rs`, where each has a mailbox of bounded size. Bytes of
//! unfinished messages are counted over all sockets (`meter.rs`), so that no number of clients can fill the memory with
//! halves of messages. Who asks, and whose quotas pay for it, is `guest.rs`; connections beyond them are turned away in
//! `turned.rs`. `api/` is documents as JSON and the change feed, for whoever speaks HTTP. `demo.rs` is a page for
//! newcomers, `metrics.rs` numbers for those who watch a node. What is said on the socket is `docs/repo-protocol.md`.

mod api;
mod demo;
mod guest;
mod meter;
mod metrics;
mod origin;
mod server;
mod socket;
mod switchboard;
mod turned;
mod upgrade;

pub use origin::{AllowedOrigins, OriginError};
pub use server::{WebError, WebOptions, WebServer};
