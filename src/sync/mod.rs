//! Synchronisation: what two nodes say to each other, without sockets.
//!
//! A link between two nodes is two one-way followings. In each, one side serves its log and the other keeps a cursor
//! on it; see `docs/protocol.md`. [`wire`] is the bytes, [`gate`] what a sync message must fulfil, [`Exchange`] one
//! document's Automerge sync answered from its change graph, [`Session`] the whole conversation as a state machine
//! that does no IO. [`repo`] is the conversation with clients that speak automerge-repo's protocol instead of ours.

mod attest;
mod authors;
mod composed;
mod exchange;
mod exchanges;
mod follower;
pub mod gate;
mod guard;
mod intake;
mod origins;
mod permits;
pub mod repo;
mod session;
mod source;
pub mod wire;

pub use attest::{Attester, Unproven};
pub use authors::Authors;
pub use composed::{Chunks, Composed, State};
pub use exchange::{Arrival, Exchange, ExchangeError, GenerateError, Received};
pub use gate::GateError;
pub use guard::Proven;
pub use permits::{Leave, Permits};
pub use session::{
    Admitted, Channel, Denied, IncomingBody, IncomingRow, Opened, Output, Session, SessionConfig, SessionError,
    SessionEvent, Side,
};
