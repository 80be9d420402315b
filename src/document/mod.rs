//! One document: its changes, its change graph, and the materialised CRDT when somebody reads or edits it.

mod change;
mod edit;
mod genesis;
pub mod json;
mod lists;
mod path;
mod reading;
mod replay;
mod view;

pub use change::{Change, ChangeError};
pub use edit::Edit;
pub use genesis::genesis;
pub use json::JsonError;
pub use path::Path;
pub use reading::Reading;
pub use view::{Applied, EditOptions, View, ViewError};
