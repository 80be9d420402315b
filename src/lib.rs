//! tidelog: a real-time database whose documents merge.
pub mod document;
pub mod history;
pub mod id;
pub mod limits;
pub mod log;
#[cfg(feature = "node")]
pub mod node;
