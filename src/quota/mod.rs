//! How much one address, and one user, may have of a server: so many at once, so many in a time.
//!
//! Every address and every user has an `Account`. What there are many of at once (connections, streams) is counted
//! while a `Place` is held; what comes in a time (handshakes, frames, bytes) is paid from buckets that fill again. An
//! account that owes nothing and holds nothing is as good as a new one, and only such are ever forgotten: nobody gets
//! rid of what he owes by having his account pushed out. When a table is full of accounts that count, those who come
//! share one. Time is an argument everywhere; nothing here waits.
//!
//! * `rate.rs` is buckets, `kind.rs` what is counted and what is said of it, `settings.rs` the bounds and their file.
//! * `account.rs` is one account, `table.rs` all of them, `ledger.rs` what a server keeps: both tables, tokens that were
//!   accepted lately, and how many were turned away.
//! * `address.rs` is which addresses are one, and whose word a proxy passes on.

mod account;
mod address;
mod kind;
mod ledger;
mod rate;
mod settings;
mod table;

pub(crate) use account::{Account, Place};
pub(crate) use address::client_of;
pub(crate) use kind::{Busy, Kind};
pub(crate) use ledger::{Arrival, Ledger};
pub use rate::Rate;
pub use settings::{Quota, QuotaError, Quotas};
