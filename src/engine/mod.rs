//! The engine: the only place that orders writes.
//!
//! A [`Database`] owns a store and its one writer thread. An edit runs in memory at once and goes to the writer's
//! bounded queue; the writer takes what waits, makes one commit group of it, waits for the disk, and answers: that is
//! the [`Commit`]. Rows from peers go the same road. What is appended, and in which order, is decided without IO in
//! `core.rs`; `committer.rs` writes it and shows it to those who read; `driver.rs` waits and answers. Nobody hears of
//! anything before it is on the disk.
//!
//! Documents are materialised when they are read or edited, within a budget of bytes (`working_set.rs`). They are made
//! from the log, without what automerge cannot apply (`building.rs`), and saved in the background (`snapshots.rs`). What
//! untrusted peers send is tried on the document before it is logged (`admission.rs`), and judged where rules say who may
//! write what (`judge.rs`, `judged.rs`), of which what they refuse is written down (`refusal.rs`); `offer.rs` takes what their
//! sessions give out, and does the work of each when its turn has come (`turns.rs`).

mod admission;
mod building;
mod clock;
mod collection;
mod commit;
mod committer;
mod core;
mod database;
mod driver;
mod handle;
#[cfg_attr(
    not(feature = "web"),
    allow(dead_code, reason = "who may do what is decided above, where there is an HTTP port")
)]
mod judge;
#[cfg_attr(
    not(feature = "web"),
    allow(dead_code, reason = "who may do what is decided above, where there is an HTTP port")
)]
mod judged;
#[cfg(any(feature = "quic", feature = "web"))]
mod offer;
mod owner;
mod pending;
mod refusal;
mod rejected;
#[cfg(feature = "quic")]
mod rejection;
#[cfg(feature = "sim")]
pub mod sim;
mod snapshots;
#[cfg(any(feature = "quic", feature = "web"))]
mod turns;
mod working_set;

pub use admission::Examined;
#[cfg(all(test, feature = "sim", feature = "web"))]
pub(crate) use building::void_newest;
pub(crate) use clock::now_ms;
pub use collection::Collection;
pub(crate) use commit::block_on;
pub use commit::{Commit, Committed};
#[cfg(feature = "web")]
pub(crate) use core::refused_key;
pub use core::{Admitted, Clash, Incoming, IncomingBody};
pub(crate) use database::{Attached, WeakDatabase};
pub use database::{Database, DatabaseBuilder, Status};
pub use handle::{DocHandle, HistoryEntry};
#[cfg(any(feature = "quic", feature = "web"))]
pub(crate) use judge::Judge;
#[cfg(feature = "web")]
pub(crate) use judge::{Deed, Denial, Look, Made, Place, Ruleset, Ruling};
#[cfg(any(feature = "quic", feature = "web"))]
pub(crate) use offer::Source;
#[cfg(feature = "web")]
pub(crate) use refusal::Claims;
#[cfg(feature = "quic")]
pub use rejection::{Rejected, Resubmitted};
