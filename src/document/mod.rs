//! One document: its changes, its change graph, and the materialised CRDT when somebody reads or edits it.

mod change;
mod graph;
mod slots;

pub use change::{Change, ChangeError};
pub use graph::{ChangeGraph, GraphError, Index, Node, NodeInfo};
