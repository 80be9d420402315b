//! tidelog: a real-time database whose documents merge.
pub mod document;
pub mod id;
pub mod limits;
pub mod sync;
