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
mod journal;
mod layout;
mod salvage;
mod tables;

pub(super) use layout::{check_before_open, is_new};
pub use salvage::{SalvagedLog, salvage_log};

use std::path::Path;

use super::storage::StorageError;

/// The folder of the tables' folders, in fjall's.
const KEYSPACES: &str = "keyspaces";

/// While a store is open its files change under whoever reads them; so often what looks wrong is looked at again.
const LOOKS_MAX: usize = 20;

/// Holds manifests, table files and journals in `store` against their checksums, and tells `fault` each file and what
/// is wrong with it. The store may be open and written to.
///
/// # Errors
/// [`StorageError`] when the disk fails.
///
/// # Cost
/// Reads every file.
pub(super) fn check_files(store: &Path, fault: &mut dyn FnMut(String, String)) -> Result<(), StorageError> {
    tables::check_tables(store, fault)?;
    layout::check_journals_live(store, fault)
}

fn damaged(path: &Path, why: impl std::fmt::Display) -> StorageError {
    StorageError::Damaged(format!("{}: {why}", path.display()))
}

fn failed(doing: &str, path: &Path, error: &std::io::Error) -> StorageError {
    StorageError::io(format!("{doing} {}", path.display()), error)
}
