//! The seam between the log and a disk: seven calls, two implementations (fjall, and memory with faults).

use std::ops::ControlFlow;

use crate::id::{Chain, LogId, Lsn};

/// The tables of a store. Eight, however many collections and documents there are: an idle table pins the journal of
/// every busy one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Keyspace {
    /// LSN -> record. The truth.
    Log,
    /// Document, LSN -> [`super::rows::IndexRow`].
    DocIx,
    /// Document -> [`super::rows::DocumentRow`].
    Docs,
    /// Collection key, last LSN -> document.
    BySeq,
    /// Document, LSN, part -> snapshot bytes.
    Snap,
    /// Names, peers, and what the store knows of itself.
    State,
    /// Changes that wait or were refused.
    Held,
    /// Values and indexes that queries and projections keep.
    Views,
}

impl Keyspace {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 8] =
        [Self::Log, Self::DocIx, Self::Docs, Self::BySeq, Self::Snap, Self::State, Self::Held, Self::Views];

    /// Its name on disk.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::DocIx => "doc_ix",
            Self::Docs => "docs",
            Self::BySeq => "by_seq",
            Self::Snap => "snap",
            Self::State => "state",
            Self::Held => "held",
            Self::Views => "views",
        }
    }
}

/// Why the disk did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The operating system refused.
    #[error("{doing}: {why}")]
    Io {
        /// What was being done, with the file's name where there is one.
        doing: String,
        /// What the operating system or the store said.
        why: String,
    },
    /// No room is left.
    #[error("the disk is full: {0}")]
    Full(String),
    /// What is on the disk is not what was written.
    #[error("damaged store: {0}")]
    Damaged(String),
    /// The end of the journal is not what was written, and what it held was acknowledged. What is before it is whole.
    #[error("the journal's end is damaged: {0}")]
    TailDamaged(String),
}

impl StorageError {
    /// Wraps an error of the operating system; a full disk keeps its own name.
    pub fn io(doing: impl Into<String>, error: &std::io::Error) -> Self {
        let doing = doing.into();
        if matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) {
            return Self::Full(format!("{doing}: {error}"));
        }
        Self::Io { doing, why: error.to_string() }
    }
}

/// What an append waits for before it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Durability {
    /// The operating system has it: survives the end of the process, not of the power.
    Buffered,
    /// The disk has it.
    #[default]
    Synced,
}

/// Rows to write as one: all of them, or none.
#[derive(Debug, Clone, Default)]
pub struct WriteBatch {
    /// Keyspace, key, and the value to put or `None` to remove, in order.
    pub rows: Vec<(Keyspace, Vec<u8>, Option<Vec<u8>>)>,
}

impl WriteBatch {
    /// Puts `value` under `key`.
    pub fn put(&mut self, keyspace: Keyspace, key: impl Into<Vec<u8>>, value: Vec<u8>) {
        self.rows.push((keyspace, key.into(), Some(value)));
    }

    /// Removes what is under `key`.
    pub fn remove(&mut self, keyspace: Keyspace, key: impl Into<Vec<u8>>) {
        self.rows.push((keyspace, key.into(), None));
    }
}

/// The high-water mark, kept beside the log: what the log must at least hold when it is opened again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TailMark {
    /// Which log.
    pub log_id: LogId,
    /// The footer of the last commit group.
    pub lsn: Lsn,
    /// The chain digest there.
    pub chain: Chain,
    /// Positions below this one may be in use. Synced before the first of them is.
    pub reserved: Lsn,
    /// The log was closed in order after `lsn`: nothing above it was ever used.
    pub closed: bool,
    /// Records were acknowledged without waiting for the disk since the log was opened.
    pub buffered: bool,
}

/// What a scan does with each row.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// A disk, as the log sees it. Every call may block; every call may fail.
pub trait Storage: Send + Sync {
    /// Reads the row under `key`.
    ///
    /// # Errors
    /// [`StorageError`] when the disk does not give it.
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError>;

    /// Visits the rows from `from` (included) to `to` (excluded), ascending or descending, until `visit` breaks.
    ///
    /// # Errors
    /// [`StorageError`] when the disk does not give a row.
    fn scan(
        &self,
        keyspace: Keyspace,
        from: &[u8],
        to: &[u8],
        descending: bool,
        visit: Visit<'_>,
    ) -> Result<(), StorageError>;

    /// Writes all rows or none, and waits as `durability` says.
    ///
    /// # Errors
    /// [`StorageError`]: whether the rows are on disk is then unknown, and the log must not be appended to again.
    fn commit(&self, batch: WriteBatch, durability: Durability) -> Result<(), StorageError>;

    /// Waits until everything committed is on the disk.
    ///
    /// # Errors
    /// As [`Self::commit`].
    fn sync(&self) -> Result<(), StorageError>;

    /// Reads the newest intact high-water mark.
    ///
    /// # Errors
    /// [`StorageError`] when there is a mark and no copy of it is intact.
    fn read_mark(&self) -> Result<Option<TailMark>, StorageError>;

    /// Writes the high-water mark, over the older of its two copies; waits for the disk if `sync`.
    ///
    /// # Errors
    /// As [`Self::commit`].
    fn write_mark(&self, mark: &TailMark, sync: bool) -> Result<(), StorageError>;

    /// How many bytes the disk has left; `None` when that has no meaning.
    ///
    /// # Errors
    /// [`StorageError`] when the operating system does not tell.
    fn free_bytes(&self) -> Result<Option<u64>, StorageError>;

    /// Holds the files themselves against their checksums, and tells `fault` each file and what is wrong with it. Rows
    /// and records are checked by who reads them. A store without files has nothing to say.
    ///
    /// # Errors
    /// [`StorageError`] when the disk fails.
    ///
    /// # Cost
    /// Reads every file.
    fn check_files(&self, fault: &mut dyn FnMut(String, String)) -> Result<(), StorageError> {
        let _ = fault;
        Ok(())
    }
}
