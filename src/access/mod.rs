//! Who may do what on this server: what the rules say of whom a token names, asked at every door.
//!
//! [`Access`] is what all doors of a server share: who may come in ([`Admittance`]), the rules in force, and when any
//! answer may have changed. A `Subject` is one who came in, on one connection: it answers whether a document may be
//! read ([`Permits`](crate::sync::Permits)), judges what is written (`engine::Judge`), and sifts results
//! (`query::Sieve`). Decisions are remembered only while all that they rest on is as it was:
//! the rules, the token, the document, and every other document that was looked at.
//!
//! * `shared.rs` is [`Access`]; `subject.rs` the one who asks; `judge.rs` what he writes; `vigil.rs` how he hears that answers
//!   may be others.
//! * `facts.rs` is what rules are shown of documents, and `consulted.rs` what is kept of those that they look at for the
//!   sake of others.
//! * `sifted.rs` is the change feed as one may see it, `place.rs` the cursors of it, and `moment.rs` what he might see as of
//!   some moment; `kept.rs` keeps other documents that are looked at for that.
//! * `replay.rs` makes decisions that are on record again, by other rules.

mod consulted;
mod facts;
mod judge;
mod kept;
mod moment;
mod place;
mod replay;
mod shared;
mod sifted;
#[cfg(feature = "sim")]
pub mod sim;
mod subject;
mod vigil;

pub(crate) use place::Place;
pub use replay::{Difference, Found, ReplayOptions, Replayed, replay};
#[cfg(feature = "node")]
pub(crate) use replay::{claims_at, kept, with_change};
pub use shared::{Access, AccessOptions, Admittance, Refusal};
pub(crate) use sifted::{From, Next, Said, SiftedFeed};
pub(crate) use subject::Subject;
pub(crate) use vigil::Vigil;
