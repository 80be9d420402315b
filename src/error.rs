//! Everything that can go wrong, as a user of the library meets it.
//!
//! Each error has a fixed code (`E01xx` directory and configuration, `E03xx` protocol, `E04xx` storage, `E05xx`
//! replication, `E06xx` documents, `E07xx` limits) and, where there is something to do, a remedy.

mod query;

use std::borrow::Cow;

pub use query::QueryError;

use crate::document::{ChangeError, PatchError, ViewError};
use crate::history::HistoryError;
use crate::id::{ChangeHash, CollectionName, DocumentId, IdError};
use crate::log::{LogError, StorageError};

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The data directory cannot be used.
    #[cfg(feature = "fjall")]
    #[error(transparent)]
    Directory(#[from] crate::log::DirectoryError),
    /// The store cannot be opened or read.
    #[error(transparent)]
    History(HistoryError),
    /// An append failed. What was being written may be lost; the database only reads until it is opened again.
    #[error("the database only reads since an append failed: {0}")]
    ReadOnly(String),
    /// Whoever asks may not do this.
    #[error("not allowed: {0}")]
    Denied(String),
    /// So little room is left on the disk that nothing more is written.
    #[error("the disk is almost full; nothing was written")]
    StorageFull,
    /// More waits to be written than the queue holds. Nothing was edited.
    #[error("too much is waiting to be written; nothing was edited")]
    Busy,
    /// The database was closed.
    #[error("the database is closed")]
    Closed,
    /// Nobody created such a document here.
    #[error("there is no document {0}")]
    NotFound(DocumentId),
    /// The document is deleted.
    #[error("document {0} is deleted")]
    Deleted(DocumentId),
    /// The document may not be read here any more, as the node says whose client this is.
    #[error("document {0} may not be read any more, as the node says whose client this is")]
    Withheld(DocumentId),
    /// The document is in another collection.
    #[error("document {document} is in collection {found}, not {expected}")]
    OtherCollection {
        /// The document.
        document: DocumentId,
        /// Where it is.
        found: CollectionName,
        /// Where it was looked for.
        expected: CollectionName,
    },
    /// The materialised document cannot be built, edited or read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// Bytes are no change.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// Text is no identifier.
    #[error(transparent)]
    Id(#[from] IdError),
    /// A change that was offered cannot be taken.
    #[error("document {document}: {why}")]
    Refused {
        /// The document.
        document: DocumentId,
        /// Why not.
        why: String,
    },
    /// A change from an untrusted peer cannot be applied to its document. It is in quarantine; nothing of it was logged.
    #[error("document {document}: change {hash} cannot be applied and is in quarantine: {why}")]
    Unappliable {
        /// The document.
        document: DocumentId,
        /// The change.
        hash: ChangeHash,
        /// What automerge says.
        why: String,
    },
    /// A patch cannot be made. Nothing of it was.
    #[error(transparent)]
    Patch(Box<PatchError>),
    /// The document is not as the caller last saw it. Nothing was edited.
    #[error("the document has changed: its heads are {found}")]
    Changed {
        /// Its heads now, joined by dots.
        found: String,
    },
    /// A consumer of a feed is not where it was left: another one runs under its name.
    #[error("consumer {0:?} was moved by another that runs under its name; nothing was written")]
    ConsumerMoved(String),
    /// A query, a listener or an index is refused.
    #[error(transparent)]
    Query(Box<QueryError>),
    /// The application's own error, out of the closure it gave.
    #[error("{0}")]
    Application(String),
}

impl Error {
    /// Its fixed code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            #[cfg(feature = "fjall")]
            Self::Directory(error) => directory_code(error),
            Self::History(
                HistoryError::Log(LogError::TailLost { .. } | LogError::Storage(StorageError::TailDamaged(_)))
                | HistoryError::Storage(StorageError::TailDamaged(_)),
            ) => "E0405",
            Self::History(
                HistoryError::Storage(StorageError::Full(_))
                | HistoryError::Log(LogError::Storage(StorageError::Full(_))),
            ) => "E0403",
            Self::History(
                HistoryError::Storage(StorageError::Io { .. })
                | HistoryError::Log(LogError::Storage(StorageError::Io { .. })),
            ) => "E0402",
            Self::History(_) => "E0401",
            Self::ReadOnly(_) => "E0404",
            Self::StorageFull => "E0403",
            Self::Denied(_) => "E0203",
            Self::Busy => "E0701",
            Self::Closed => "E0406",
            Self::NotFound(_) => "E0601",
            Self::Deleted(_) => "E0602",
            Self::Withheld(_) => "E0206",
            Self::OtherCollection { .. } => "E0603",
            Self::View(ViewError::Json(_)) => "E0604",
            Self::View(_) => "E0605",
            Self::Change(_) => "E0606",
            Self::Id(_) => "E0607",
            Self::Refused { .. } => "E0608",
            Self::Application(_) => "E0609",
            Self::Unappliable { .. } => "E0616",
            Self::ConsumerMoved(_) => "E0620",
            Self::Patch(_) => "E0621",
            Self::Changed { .. } => "E0622",
            Self::Query(error) => error.code(),
        }
    }

    /// Whether trying again later may help, with nothing else changed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Busy | Self::StorageFull => true,
            Self::Query(error) => matches!(**error, QueryError::NotReady { .. } | QueryError::TooManyListeners(_)),
            _ => false,
        }
    }

    /// Whether something on the disk is not what was written there.
    #[must_use]
    pub fn is_corruption(&self) -> bool {
        matches!(self.code(), "E0401" | "E0405" | "E0106")
    }

    /// What to do about it, if there is something.
    #[must_use]
    pub fn remedy(&self) -> Option<Cow<'static, str>> {
        if let Self::Query(error) = self {
            return Some(error.fix().into());
        }
        self.fixed_remedy().map(Cow::Borrowed)
    }

    fn fixed_remedy(&self) -> Option<&'static str> {
        Some(match self {
            #[cfg(feature = "fjall")]
            Self::Directory(error) => return directory_remedy(error),
            _ if self.code() == "E0405" => {
                "if the disk lost data, restart with --accept-tail-loss: the log goes on under a new id and peers refill it"
            }
            Self::History(HistoryError::Storage(StorageError::Damaged(_))) => {
                "`tidelog salvage` copies what is intact into a new store; peers or a backup refill it"
            }
            Self::History(HistoryError::Storage(_)) => "look at the disk and the system's log, then start again",
            Self::History(_) => {
                "run `tidelog verify --deep` to see every fault; peers or a backup can refill a new store"
            }
            Self::ReadOnly(_) => "look at the disk, then start again; nothing acknowledged is lost",
            Self::StorageFull => "free some space; writing goes on by itself",
            Self::Busy => "wait for earlier commits, then try again",
            Self::Deleted(_) => "`tidelog restore <id>` makes it visible again",
            Self::Withheld(_) => "ask whoever runs the node for the right to read it",
            Self::Changed { .. } => "read it again, and make the edit on what is there",
            Self::ConsumerMoved(_) => "stop one of the two, or give it a name of its own",
            Self::Denied(_) => "ask whoever runs the server for the right, or bring another token",
            Self::NotFound(_) => "`tidelog ls` lists what is here",
            _ => return None,
        })
    }
}

impl From<HistoryError> for Error {
    fn from(error: HistoryError) -> Self {
        match error {
            HistoryError::Log(LogError::Poisoned(why)) => Self::ReadOnly(why),
            other => Self::History(other),
        }
    }
}

impl From<PatchError> for Error {
    fn from(error: PatchError) -> Self {
        Self::Patch(Box::new(error))
    }
}

impl From<QueryError> for Error {
    fn from(error: QueryError) -> Self {
        Self::Query(Box::new(error))
    }
}

impl From<LogError> for Error {
    fn from(error: LogError) -> Self {
        HistoryError::from(error).into()
    }
}

impl From<StorageError> for Error {
    fn from(error: StorageError) -> Self {
        HistoryError::from(error).into()
    }
}

#[cfg(feature = "fjall")]
fn directory_code(error: &crate::log::DirectoryError) -> &'static str {
    use crate::log::DirectoryError as D;
    match error {
        D::Foreign { .. } => "E0101",
        D::Absent { .. } => "E0102",
        D::Newer { .. } => "E0103",
        D::InUse { .. } => "E0104",
        D::Copied { .. } => "E0105",
        D::Damaged { .. } => "E0106",
        D::Storage(StorageError::Full(_)) => "E0403",
        D::Storage(_) => "E0402",
    }
}

#[cfg(feature = "fjall")]
fn directory_remedy(error: &crate::log::DirectoryError) -> Option<&'static str> {
    use crate::log::DirectoryError as D;
    Some(match error {
        D::Foreign { .. } => {
            "give the path of a tidelog data directory, or of a folder that is empty or does not exist yet"
        }
        D::Absent { .. } => "check --data, or run `tidelog serve` to make one",
        D::Newer { .. } => "use the tidelog that made it, or a newer one",
        D::InUse { .. } => {
            "stop the other process, or let it do the work: commands find a running node by its data directory"
        }
        D::Copied { .. } => {
            "start once with --restored: the copy gets a log of its own, so that its peers are not misled"
        }
        D::Damaged { .. } => "`tidelog salvage` copies what is intact into a new one; or restore a backup",
        D::Storage(_) => return None,
    })
}
