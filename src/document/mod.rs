//! One document: its changes, its change graph, and the materialised CRDT when somebody reads or edits it.

mod change;

pub use change::{Change, ChangeError};
