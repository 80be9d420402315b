//! What a disk can do to a store: flipped bits, files gone, power cuts, failing calls, no room left.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test panics; it does not return errors")]

mod errors;
mod flips;
mod images;
mod kill;
mod salvage;
mod store;
mod trace;
mod upstream;
