//! Synchronisation: what two nodes say to each other, without sockets.
//!
//! A link between two nodes is two one-way followings. In each, one side serves its log and the other keeps a cursor
//! on it; see `docs/protocol.md`. [`wire`] is the bytes, [`Exchange`] one document's Automerge sync answered from its
//! change graph, [`Session`] the whole conversation as a state machine that does no IO.

mod exchange;
pub mod gate;
pub mod wire;

pub use exchange::{Arrival, Exchange, ExchangeError, GenerateError, Received};
