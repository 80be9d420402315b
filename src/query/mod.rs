//! Queries: documents found by their values, once or again whenever the result changes.
//!
//! The present values of a collection's documents are kept beside the log and follow it, from its first query on; indexes
//! are kept with them. A [`Query`] asks [`Predicate`]s of [`field`]s, orders and limits; [`Query::get`] answers once,
//! and a [`Listener`] tells each [`QuerySnapshot`] with what changed since the one before. `docs/queries.md` is what may
//! be relied on.
//!
//! From what is asked to what is stored:
//!
//! * `builder.rs` is how queries are put, `spec.rs` what one asks for and the order that it makes, `predicate.rs` its
//!   conditions (`text.rs` reads them as they are typed), `value.rs` the order of values that all of it rests on.
//! * `run.rs` finds documents, by the way that `plan.rs` chooses among the indexes (`index.rs`); listeners of one query
//!   share what was found (`shared.rs`).
//! * `view.rs` is a collection's values as those who ask see them, `worker.rs` makes them, in steps on the one thread of
//!   `views.rs`; `rows.rs` is their rows.
//! * `listener.rs` tells results again: what it knows of one is in `window.rs`, whom a change concerns in
//!   `predicates.rs` and `intervals.rs`, what is told in `snapshot.rs`; what it knows of and may not tell in `hidden.rs`.

mod builder;
mod document;
mod hidden;
mod index;
mod intervals;
mod listener;
mod plan;
mod predicate;
mod predicates;
mod rows;
mod run;
mod shared;
mod snapshot;
mod spec;
mod text;
mod value;
mod view;
mod views;
mod window;
mod worker;

pub use builder::Query;
pub use document::Document;
pub use index::IndexState;
pub use listener::{ListenOptions, Listener};
pub use predicate::{Condition, Field, Operator, Predicate, field};
pub use snapshot::{ChangeKind, DocChange, Metadata, QuerySnapshot};
#[cfg(feature = "web")]
pub(crate) use spec::Sieve;
pub use value::ValueKey;
