//! Change feeds: the log, told to whoever wants to follow what happens to documents.
//!
//! A feed is a replay. [`Database::changes`](crate::Database::changes) reads the log from a [`FeedCursor`] to its tail
//! and then waits for more; there is one road for old and new, so that nothing is missed or told twice where they meet,
//! and whoever is slow reads at their own pace from the log, with no queue in between.
//!
//! * [`Item`]s: first how the feed goes on ([`Opening`]), then [`Event`]s in the order of the log, and now and then how
//!   far it is.
//! * An event is a function of the log up to its record: told again, it is the same.
//! * Each cursor carries a [`FeedDigest`] over all events so far; whoever recomputes it knows that nothing was skipped.
//! * A [`Consumer`] follows a feed under a name, and the database keeps its place. A [`Projection`] writes what it makes
//!   of events together with its place, so that each counts exactly once.
//! * A cursor that this log cannot prove does not fail: the feed says so and tells each document as it stands.

mod changes;
mod consumer;
mod cursor;
mod event;
mod filter;
mod projection;
mod rows;
mod standings;
mod stream;
mod teller;

pub use changes::{ChangeFeed, Changes};
pub use consumer::{Consumer, ConsumerState};
pub use cursor::{CursorError, FeedCursor};
pub use event::{Changed, Event, EventKind, FeedDigest, Item, Opening, ResetReason, Standing, Statement};
pub use filter::Filter;
pub use projection::Projection;
pub use rows::{Rows, RowsMut};
#[cfg(feature = "web")]
pub(crate) use standings::Standings;
pub use stream::ItemStream;
