//! The gate: what bytes from a peer or an import must fulfil before automerge sees them.
//!
//! automerge trusts the bytes it parses. A change of 69 bytes can claim millions of operations, a document of 500 KiB
//! can inflate to gigabytes, a counter near its end panics in every later edit. So every chunk is walked here first,
//! and nothing else in the crate calls automerge's parsers.
//!
//! The walk never expands. A column is a row of *runs* (a value and how often it stands); the columns of a change are
//! stepped through together, as far at a time as all of them stay in their runs. Its cost is that of the bytes that
//! are there, not of the operations they claim.
//!
//! ```text
//! chunk    = 85 6f 4a 83, first 4 bytes of the SHA-256, type (0 document, 1 change, 2 deflated change), length, contents
//! change   = deps, actor, seq, first operation, time, message, other actors, columns, extra bytes
//! document = actors, heads, columns of changes, columns of operations, head indices
//! columns  = count, (specification, length) each, then their bytes
//! ```
//!
//! A change is held to the one form in which automerge itself writes it (shortest numbers, runs as long as they can
//! be, actors in order and all of them used). A second form of the same content would come back out of a saved
//! document in the first one, under another hash, and the document would not load any more. A document chunk is
//! checked for what it costs and for what automerge reads without looking; it is only ever opened as a scratch
//! document under `catch_unwind`, and the changes that come out are checked again.
//!
//! Bundles (type 3) are an experiment of automerge 0.12 and are refused.

mod actors;
mod change;
mod chunk;
mod document;
mod error;
mod inflate;
mod input;
mod open;
mod operations;
mod runs;
mod values;

pub use change::{Claims, check_change};
pub use document::check_document;
pub use error::GateError;
pub use open::{check_chunks, open_change, open_document};

pub(super) use change::claims_of;
pub(super) use chunk::{Kind, next_chunk};
pub(super) use input::Input;
pub(super) use open::{OWN, check_own_chunks, load_checked, message_of};
