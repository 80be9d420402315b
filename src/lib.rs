//! tidelog: a real-time database whose documents merge.
//!
//! Every document is an Automerge CRDT. Every change to any document is appended to one durable log. Replicas
//! exchange changes over QUIC and converge, however long they were apart.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("data");
//! let database = tidelog::Database::open(&path)?;
//! let notes = database.collection("notes")?;
//! let (note, created) = notes.create(serde_json::json!({ "title": "Tides", "text": "High at noon." }))?;
//! note.change(|edit| Ok(edit.splice("text", 0, 0, "Spring tide. ")?))?.wait()?;
//! created.wait()?;
//! assert_eq!(note.read::<String>("text")?.as_deref(), Some("Spring tide. High at noon."));
//! # Ok(())
//! # }
//! ```
//!
//! The rooms, from the ground up; imports point down only:
//!
//! | room | owns |
//! |---|---|
//! | [`id`], [`limits`] | the names of things; every bound |
//! | [`document`] | one document: its changes, its change graph, the CRDT itself |
//! | [`log`] | the append-only log and its tables |
//! | [`history`] | what the log holds of each document |
//! | [`sync`] | conversations with one peer, without IO |
//! | [`engine`] | the one place that orders writes: [`Database`], [`Collection`], [`DocHandle`] |
//! | [`feed`] | the log told to those who follow what happens to documents |
//! | [`query`] | documents found by their values, once or again whenever the result changes |
//! | `rules` | security rules: who may do what, decided without IO (feature `web`) |
//! | `net` | keys, tickets, links over QUIC (feature `quic`) |
//! | `auth` | who somebody is: tokens, and who issues them (feature `web`) |
//! | `rules` | what may be done, as a file says it (feature `web`) |
//! | `quota` | how much one address, and one user, may have of a server (feature `web`) |
//! | `access` | who may do what on one server (feature `web`) |
//! | `web` | the HTTP port, for clients of automerge-repo (feature `web`) |
//! | `node` | a serving node and its commands (feature `node`) |

#[macro_use]
mod mutant;

#[cfg(feature = "web")]
pub mod access;
#[cfg(feature = "web")]
pub mod auth;
pub mod document;
pub mod engine;
pub mod error;
pub mod feed;
#[cfg(feature = "web")]
mod file;
pub mod history;
pub mod id;
pub mod limits;
pub mod log;
#[cfg(feature = "quic")]
pub mod net;
#[cfg(feature = "node")]
pub mod node;
pub mod query;
#[cfg(feature = "web")]
pub mod quota;
#[cfg(feature = "web")]
pub mod rules;
pub mod sync;
#[cfg(feature = "web")]
pub mod web;

pub use automerge;
pub use document::{Change, Edit, Path};
pub use engine::{Collection, Commit, Committed, Database, DocHandle};
#[cfg(feature = "quic")]
pub use engine::{Rejected, Resubmitted};
pub use error::Error;
pub use id::{ChangeHash, CollectionName, DocumentId, Heads, Lsn, NodeId, StorageId};
pub use limits::Limits;
pub use log::Durability;
