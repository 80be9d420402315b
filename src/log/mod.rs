//! The append-only log: the one truth of a store. Everything else in it is a projection and can be made again.
//!
//! A [`Record`](record::Record) is framed and checksummed by us and sits under its [`Lsn`](crate::id::Lsn). Records
//! are appended in commit groups; the last record of each group is its footer, which carries the running chain digest
//! and is the only place where a cursor may stand. One writer owns the [`Appender`] (which assigns positions) and the
//! [`Log`] (which writes and waits). The [`Storage`] seam has two implementations: fjall, and memory with faults.
//!
//! The log does not know what a document is: it keeps headers and opaque bytes. The promise about bytes is
//! `docs/log-format.md`.

mod append;
#[cfg(feature = "fjall")]
mod directory;
#[cfg(feature = "fjall")]
mod fjall;
#[cfg(feature = "fjall")]
mod inspect;
mod memory;
pub mod record;
pub mod rows;
mod storage;

pub use append::{
    Appender, FinishedGroup, Group, Log, LogError, RESERVED_BLOCK, RecoverOptions, Recovered, log_key, lsn_of_key,
    recover,
};
#[cfg(feature = "fjall")]
pub use directory::{Directory, DirectoryError, FORMAT, OpenDirectory, lock_directory};
#[cfg(feature = "fjall")]
pub use fjall::FjallStorage;
#[cfg(feature = "fjall")]
pub use inspect::{SalvagedLog, salvage_log};
pub use memory::MemoryStorage;
pub use storage::{Durability, Keyspace, Storage, StorageError, TailMark, Visit, WriteBatch};
