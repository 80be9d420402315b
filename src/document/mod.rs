//! One document: its changes, its change graph, and the materialised CRDT when somebody reads or edits it.
//!
//! A [`Change`] is one verified Automerge change chunk. A [`ChangeGraph`] knows which changes a document has and what
//! each was made on top of: enough to synchronise it. A [`View`] is the document itself, built only for those who read
//! or edit it. The document does not know that it is logged.

mod branching;
mod change;
mod differences;
mod edit;
mod error;
pub mod gate;
mod genesis;
mod graph;
pub mod json;
mod lists;
mod misfits;
mod patch;
mod path;
mod proving;
mod reading;
mod rebase;
mod replay;
mod slots;
mod split;
mod touched;
mod view;

pub use branching::{BranchingError, Scratch, TEXT_KEY, TextEdit};
pub use change::{Change, ChangeError};
pub use differences::{Patch, PatchAction};
pub use edit::Edit;
pub use error::ViewError;
pub use genesis::genesis;
pub use graph::{ChangeGraph, GraphError, Index, Node, NodeInfo};
pub use json::JsonError;
pub use misfits::automerge_version;
pub use patch::{JsonPatch, PatchError, merge};
pub use path::Path;
pub use reading::Reading;
pub use rebase::{Base, RebaseError, Rebased, rebase};
pub use split::{Pieces, split, split_and_keep, split_each};
pub use touched::{Touched, Values};
pub use view::{Applied, EditOptions, View};
