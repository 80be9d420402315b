//! Looking at fjall's files before, beside and instead of fjall.
//!
//! What fjall 3.1.13 does with damage is not what a log needs: it cuts its journal off at a flipped bit and deletes
//! what is behind it, removes a table's folder whose `current` is missing, and panics at a manifest it cannot read. So
//! its files are read here first, and nothing is opened that does not hold:
//!
//! ```text
//! store/
//!   version          "FJL" and 3
//!   lock
//!   <n>.jnl          journals, in the order of their numbers; the last one is written to     [`journal`]
//!   keyspaces/<id>/  one folder for each table, 0 is fjall's own                             [`layout`]
//!     current        the manifest's number and XXH3-128
//!     v<n>           the manifest: which table files there are, each with its XXH3-128
//!     tables/<id>    sorted rows, never changed once written                                 [`tables`]
//! ```
//!
//! A journal is a row of batches. The end of the last one may be torn: a process or the power ended while it was
//! written, and nobody was told of it. That end is cut off and the high-water mark judges what is left. An intact batch
//! *behind* a damaged one is another matter: what was acknowledged is damaged, and the store is not opened.

mod bytes;
pub(super) mod journal;
mod layout;
mod tables;

pub(super) use layout::{check_before_open, is_new};
pub(super) use tables::check_tables;

use std::path::Path;

use super::storage::StorageError;

/// The folder of the tables' folders, in fjall's.
const KEYSPACES: &str = "keyspaces";

fn damaged(path: &Path, why: impl std::fmt::Display) -> StorageError {
    StorageError::Damaged(format!("{}: {why}", path.display()))
}

fn failed(doing: &str, path: &Path, error: &std::io::Error) -> StorageError {
    StorageError::io(format!("{doing} {}", path.display()), error)
}
