//! Opening a data directory with the key in it.

use std::path::{Path, PathBuf};

use super::command::CommandError;
use crate::engine::Database;
use crate::id::Lsn;
use crate::limits::Limits;
use crate::log::{Directory, DirectoryError, Durability, OpenDirectory};
use crate::net::Identity;

/// The name of the key file in the data directory.
pub const KEY_FILE: &str = "node.key";

/// How a data directory is opened.
#[derive(Debug, Clone)]
pub struct OpenPlace {
    /// Makes the directory when it is absent.
    pub create: bool,
    /// Opens a copy of a data directory, under a new log id.
    pub restored: bool,
    /// Puts the key aside and draws another.
    pub new_node: bool,
    /// Goes on, under a new log id, when acknowledged records are missing.
    pub accept_tail_loss: bool,
    /// What a commit waits for.
    pub durability: Durability,
    /// All bounds.
    pub limits: Limits,
}

impl Default for OpenPlace {
    fn default() -> Self {
        Self {
            create: false,
            restored: false,
            new_node: false,
            accept_tail_loss: false,
            durability: Durability::Synced,
            limits: Limits::DEFAULT,
        }
    }
}

/// An open data directory.
pub struct Place {
    /// Its path, absolute.
    pub path: PathBuf,
    /// The key in it.
    pub identity: Identity,
    /// The store in it.
    pub database: Database,
}

impl Place {
    /// Opens the data directory at `path`.
    ///
    /// # Errors
    /// [`CommandError`] when it cannot be used, is used by another process, or the key cannot. It is as it was then.
    ///
    /// # Cost
    /// Blocks. Recovery reads the end of the log; making a directory syncs a few files.
    pub fn open(path: &Path, options: &OpenPlace) -> Result<Self, CommandError> {
        // The key is in the directory, and the store wants to know the key: so the directory is looked at first, and
        // made if it is to be. A key is never written into a folder that is not ours.
        match Directory::open(path, OpenDirectory { create: options.create, restored: false }) {
            Ok(directory) => drop(directory),
            Err(DirectoryError::Copied { .. }) if options.restored => {}
            Err(error) => return Err(error.into()),
        }
        let path = std::path::absolute(path).map_err(|error| CommandError::file("resolve", path, &error))?;
        let key = path.join(KEY_FILE);
        if options.new_node {
            put_aside(&key)?;
        }
        let identity = Identity::load_or_create(&key)?;
        let database = Database::builder(&path)
            .create(false)
            .node(identity.node())
            .restored(options.restored)
            .accept_tail_loss(options.accept_tail_loss)
            .durability(options.durability)
            .limits(options.limits.clone())
            .on_rebuild(|records, lsn: Lsn| tracing::info!(records, lsn = lsn.0, "rebuilding the tables from the log"))
            .open()?;
        Ok(Self { path, identity, database })
    }
}

/// Keeps the old key under another name: a key is never destroyed.
fn put_aside(key: &Path) -> Result<(), CommandError> {
    for number in 1..1000 {
        let aside = key.with_file_name(format!("{KEY_FILE}.old{number}"));
        if aside.exists() {
            continue;
        }
        return match std::fs::rename(key, &aside) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(CommandError::file("rename", key, &error)),
        };
    }
    Err(CommandError::usage(format!("there are too many old keys beside {}", key.display())).fix("remove some"))
}
