//! Editing histories, keystroke by keystroke, turned into the changes of a document.
//!
//! A [`Trace`] is a file: transactions that each start from the merge of their parents and edit one text. Building it
//! with [`TraceChanges::build`] gives one change for each transaction, by one author for each agent, the same changes
//! on every machine; the order is the file's, in which everything comes after what it depends on. An [`AgentFeed`]
//! hands one agent's share out as far as it is causally complete at a node, so that several nodes play one history
//! together: each its own agents, as far as it has seen the others'.

mod changes;
mod error;
mod folder;
mod parse;
mod rounds;
mod time;

pub use changes::{TraceChange, TraceChanges, TraceOptions};
pub use error::TraceError;
pub use folder::{TRACES_VARIABLE, traces_folder};
pub use parse::{Patch, Trace, TraceKind, Transaction};
pub use rounds::AgentFeed;
