//! Commands: what an operator asks of a store, whether a node runs on it or not.
//!
//! A [`Request`] is plain data, so that it can cross the admin socket. [`execute`] carries it out in a [`Context`] and
//! hands rows of JSON to an [`Output`]; what it returns is the summary. It blocks: a node runs it on a thread that may.
//! What needs several requests (an import, say) is in [`import`], over a [`Session`](super::Session);
//! [`rules`] needs no store at all.

mod audit;
mod context;
mod documents;
mod error;
mod execute;
pub mod import;
mod output;
mod peers;
mod queries;
mod rejected;
mod request;
pub mod rules;
mod status;
mod tokens;
mod watch;

pub use context::{Cancel, Canceller, Context, LinkControl};
pub use error::{CommandError, Exit};
pub use execute::execute;
pub use output::{Collected, Output, Progress};
pub(crate) use peers::ticket_of;
pub use request::{AuditFilter, Base64, ExportFormat, ImportRow, Request, RulesText, Target, TokenRevocation};
