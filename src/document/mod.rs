//! One document: its changes, its change graph, and the materialised CRDT when somebody reads or edits it.

mod branching;
mod change;

pub use branching::{BranchingError, Scratch, TEXT_KEY, TextEdit};
pub use change::{Change, ChangeError};
