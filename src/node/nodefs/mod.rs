//! Taking over what an automerge-repo sync server has on its disk.
//!
//! automerge-repo's `NodeFSStorageAdapter` keeps each value in a file of its own, named by a key of several words. The
//! first word is cut after two characters, the others are folders below:
//!
//! ```text
//! st/orage-adapter-id                    the storage id
//! 4N/MNnk…/snapshot/<hash>               one document: a document chunk, perhaps with changes behind it
//! 4N/MNnk…/incremental/<hash>            one document: change chunks
//! 4N/MNnk…/sync-state/<storage id>       what a client was known to have; not taken over
//! ```
//!
//! A document is everything in its files together: several snapshots may stand side by side. The files were written in
//! place and never synced, so a crash leaves some empty or cut off; names mean nothing. Nobody vouches for any of it:
//! each chunk passes the gate, and each change is tried before it is logged, as if a stranger had sent it.
//!
//! [`folder`] finds the files, [`causal`] puts the changes in order, [`takeover`] brings them into the log.

mod causal;
mod folder;
mod takeover;

pub(super) use takeover::import;
