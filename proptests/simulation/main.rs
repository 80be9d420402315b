//! Deterministic simulations of whole clusters: see `docs/testing.md`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test panics; it does not return errors")]
#![allow(unreachable_pub, reason = "nothing here is seen from outside")]

mod admission;
mod checks;
mod cluster;
mod disk;
mod edits;
mod faults;
mod links;
mod quic;
mod random;
mod replica;
mod rights;
mod twins;
mod users;
mod world;
