//! Why a history cannot be read or replayed.

use std::path::PathBuf;

use crate::document::BranchingError;

/// Why a history cannot be read or replayed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The file cannot be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The path names a folder.
    #[error("{} is a folder, not an editing history", _0.display())]
    Directory(PathBuf),
    /// The folder that was named for the histories cannot be read.
    #[error("cannot read the folder of editing histories {}: {source}", folder.display())]
    Folder {
        /// Which folder.
        folder: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file holds nothing.
    #[error("the file is empty")]
    Empty,
    /// The file begins like gzip, and is damaged or cut short.
    #[error("damaged gzip: {0}")]
    Gzip(std::io::Error),
    /// The history is larger than we take.
    #[error("the history has more than the {max} {unit} allowed")]
    TooLarge {
        /// The limit.
        max: usize,
        /// Of what.
        unit: &'static str,
    },
    /// The content is neither gzip nor JSON.
    #[error("neither JSON nor gzipped JSON: {0}")]
    NotJson(String),
    /// The content is JSON, and no editing history.
    #[error("not an editing history: {0}")]
    NotATrace(String),
    /// A transaction contradicts the ones before it.
    #[error("transaction {index}: {reason}")]
    Transaction {
        /// Which, from 0.
        index: usize,
        /// What is wrong.
        reason: String,
    },
    /// A transaction cannot be applied to the text its parents left.
    #[error("transaction {index}: {source}")]
    Edit {
        /// Which, from 0.
        index: usize,
        /// Why.
        source: BranchingError,
    },
    /// The changes were made, and their document could not be put together.
    #[error("cannot build the document: {0}")]
    Document(#[from] BranchingError),
    /// Replayed to the end, the text is not the one the history promises.
    #[error(
        "the replayed text has {found} characters and the history ends with {expected}; they differ from character {at}"
    )]
    EndContent {
        /// Characters of the replayed text.
        found: usize,
        /// Characters of the promised one.
        expected: usize,
        /// The first character that differs, from 0.
        at: usize,
    },
}
