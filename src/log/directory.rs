//! The data directory: made whole or not at all, owned by one process, recognised when it is opened again.
//!
//! ```text
//! tidelog-data/
//!   FORMAT       JSON: format number, store id, and the device and inode of this directory
//!   LOCK         held by the process that has it open
//!   node.key     who this node is
//!   tail.hwm     the high-water mark
//!   store/       fjall's tables
//!   admin.sock   where a running node takes commands
//! ```

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::fjall::{FjallStorage, TABLES};
use super::storage::StorageError;
use crate::id::random_bytes;

/// The newest format this tidelog reads and the one it writes.
pub const FORMAT: u32 = 1;

const FORMAT_FILE: &str = "FORMAT";
const LOCK_FILE: &str = "LOCK";
/// `FORMAT` is a few hundred bytes.
const FORMAT_BYTES_MAX: u64 = 64 << 10;

/// Why a data directory cannot be used. Nothing was written to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// There is something at the path, and it is not a tidelog store.
    #[error("{path} is not a tidelog data directory: {why}", path = path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// What was found or missed.
        why: String,
    },
    /// There is no store, and none was to be made.
    #[error("there is no tidelog data directory at {path}", path = path.display())]
    Absent {
        /// The directory.
        path: PathBuf,
    },
    /// A newer tidelog made it.
    #[error("{path} has format {found}; this tidelog reads up to {FORMAT}", path = path.display())]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Another process has it open.
    #[error("{path} is in use by another process", path = path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// It was copied from elsewhere, with its identity.
    #[error("{path} is a copy of another data directory", path = path.display())]
    Copied {
        /// The directory.
        path: PathBuf,
    },
    /// Its own files are damaged.
    #[error("{path} is damaged: {why}", path = path.display())]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The disk refused.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// What is to be done about a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenDirectory {
    /// Make it when it is absent.
    pub create: bool,
    /// Accept a copy: the caller draws a new log id.
    pub restored: bool,
}

/// An open data directory. Dropping it lets another process in.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Whether this open made it.
    created: bool,
    /// Whether it is a copy, opened as restored.
    restored: bool,
    /// The lock ends with this file.
    _lock: File,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FormatFile {
    tidelog: u32,
    store: String,
    device: u64,
    inode: u64,
    /// Over the fields above; absent in what older versions made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    check: Option<String>,
}

impl FormatFile {
    fn checksum(&self) -> String {
        let text = format!("{} {} {} {}", self.tidelog, self.store, self.device, self.inode);
        data_encoding::HEXLOWER.encode(&xxhash_rust::xxh3::xxh3_64(text.as_bytes()).to_be_bytes())
    }
}

impl Directory {
    /// Opens the directory at `path` for this process alone.
    ///
    /// A new one is made under a temporary name beside it, synced and renamed, so that no half-made directory is ever
    /// found under `path`.
    ///
    /// # Errors
    /// [`DirectoryError`]; nothing at `path` was changed.
    pub fn open(path: &Path, options: OpenDirectory) -> Result<Self, DirectoryError> {
        let path = std::path::absolute(path)
            .map_err(|error| StorageError::io(format!("resolve {}", path.display()), &error))?;
        let mut created = false;
        if is_vacant(&path)? {
            if !options.create {
                return Err(DirectoryError::Absent { path });
            }
            make(&path)?;
            created = true;
        }
        let format = read_format(&path)?;
        let lock = lock(&path)?;
        let metadata = fs::metadata(&path).map_err(|error| io("look at", &path, &error))?;
        let copied = (format.device, format.inode) != (metadata.dev(), metadata.ino());
        if copied && !options.restored {
            return Err(DirectoryError::Copied { path });
        }
        if !path.join(TABLES).is_dir() {
            // fjall would make new, empty tables without a word.
            return Err(DirectoryError::Damaged { why: format!("{TABLES}/ is missing"), path });
        }
        Ok(Self { path, created, restored: copied, _lock: lock })
    }

    /// Writes down that this copy is a directory of its own now. To be called once its log has a new id: a copy that
    /// was accepted sooner, and stopped in between, would go on in the original's name.
    ///
    /// # Errors
    /// [`DirectoryError`]; the directory is then still a copy.
    pub fn accept(&self) -> Result<(), DirectoryError> {
        let format = read_format(&self.path)?;
        let metadata = fs::metadata(&self.path).map_err(|error| io("look at", &self.path, &error))?;
        let accepted = FormatFile { device: metadata.dev(), inode: metadata.ino(), ..format };
        self.replace(FORMAT_FILE, &encode_format(&accepted)?)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this open made it.
    #[must_use]
    pub fn created(&self) -> bool {
        self.created
    }

    /// Whether it is a copy that the caller is about to [accept](Self::accept).
    #[must_use]
    pub fn restored(&self) -> bool {
        self.restored
    }

    /// Replaces the file `name` by `bytes`, whole or not at all.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), DirectoryError> {
        let temporary = self.path.join(format!("{name}.new"));
        write_synced(&temporary, bytes)?;
        let target = self.path.join(name);
        fs::rename(&temporary, &target).map_err(|error| io("replace", &target, &error))?;
        sync_folder(&self.path)
    }
}

/// Whether there is nothing at `path`, or an empty folder.
fn is_vacant(path: &Path) -> Result<bool, DirectoryError> {
    match fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotADirectory => {
            Err(DirectoryError::Foreign { path: path.to_owned(), why: "it is a file".into() })
        }
        Err(error) => Err(io("read", path, &error)),
    }
}

/// Makes a complete data directory at the vacant `path`.
fn make(path: &Path) -> Result<(), DirectoryError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).map_err(|error| io("make", parent, &error))?;
    let name = path.file_name().map_or_else(|| "store".into(), |name| name.to_string_lossy());
    let token = data_encoding::HEXLOWER.encode(&random_bytes::<8>());
    let temporary = parent.join(format!(".{name}.{token}.new"));
    let made = fill(&temporary).and_then(|()| {
        // An empty folder is replaced by the rename; a folder that somebody has filled meanwhile is not.
        fs::rename(&temporary, path).map_err(|error| match error.kind() {
            ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists => DirectoryError::InUse { path: path.to_owned() },
            _ => io("make", path, &error),
        })
    });
    if made.is_err() {
        // Best effort: what is left has a name nobody opens.
        let _ = fs::remove_dir_all(&temporary);
    }
    made?;
    sync_folder(parent)
}

fn fill(path: &Path) -> Result<(), DirectoryError> {
    fs::create_dir(path).map_err(|error| io("make", path, &error))?;
    // An interrupted first open leaves tables that never open again; here it leaves a folder with a temporary name.
    drop(FjallStorage::open(path)?);
    let metadata = fs::metadata(path).map_err(|error| io("look at", path, &error))?;
    let format = FormatFile {
        tidelog: FORMAT,
        store: data_encoding::HEXLOWER.encode(&random_bytes::<16>()),
        device: metadata.dev(),
        inode: metadata.ino(),
        check: None,
    };
    write_synced(&path.join(FORMAT_FILE), &encode_format(&format)?)?;
    write_synced(&path.join(LOCK_FILE), b"")?;
    sync_tree(path)
}

/// Syncs every file and folder: fjall syncs what it makes, and not every folder that it makes it in.
fn sync_tree(path: &Path) -> Result<(), DirectoryError> {
    let entries = fs::read_dir(path).map_err(|error| io("read", path, &error))?;
    for entry in entries {
        let entry = entry.map_err(|error| io("read", path, &error))?;
        let kind = entry.file_type().map_err(|error| io("look at", &entry.path(), &error))?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            let synced = File::open(entry.path()).and_then(|file| file.sync_all());
            synced.map_err(|error| io("sync", &entry.path(), &error))?;
        }
    }
    sync_folder(path)
}

fn read_format(path: &Path) -> Result<FormatFile, DirectoryError> {
    let foreign = |why: String| DirectoryError::Foreign { path: path.to_owned(), why };
    let file = path.join(FORMAT_FILE);
    let bytes = match fs::metadata(&file) {
        Ok(metadata) if metadata.len() > FORMAT_BYTES_MAX => {
            return Err(foreign("its FORMAT file is no such file".into()));
        }
        Ok(_) => fs::read(&file).map_err(|error| io("read", &file, &error))?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(foreign("it has no FORMAT file".into())),
        Err(error) => return Err(io("read", &file, &error)),
    };
    let value: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|error| foreign(format!("its FORMAT file is not JSON: {error}")))?;
    match value.get("tidelog").and_then(serde_json::Value::as_u64) {
        Some(found) if found > u64::from(FORMAT) => {
            Err(DirectoryError::Newer { path: path.to_owned(), found: u32::try_from(found).unwrap_or(u32::MAX) })
        }
        Some(_) => {
            let format: FormatFile =
                serde_json::from_value(value).map_err(|error| foreign(format!("its FORMAT file: {error}")))?;
            if format.tidelog == 0 || format.check.as_ref().is_some_and(|check| *check != format.checksum()) {
                let why = format!("{FORMAT_FILE} does not match its checksum");
                return Err(DirectoryError::Damaged { path: path.to_owned(), why });
            }
            Ok(format)
        }
        None => Err(foreign("its FORMAT file names no tidelog format".into())),
    }
}

fn encode_format(format: &FormatFile) -> Result<Vec<u8>, DirectoryError> {
    let format = FormatFile { check: Some(format.checksum()), store: format.store.clone(), ..*format };
    let mut text = serde_json::to_vec_pretty(&format)
        .map_err(|error| StorageError::Io { doing: "write FORMAT".into(), why: error.to_string() })?;
    text.push(b'\n');
    Ok(text)
}

/// Takes the lock of a data directory that may be damaged, for reading it alone; `None` when it has no such file.
///
/// # Errors
/// [`DirectoryError::InUse`] when another process has it open.
pub fn lock_directory(path: &Path) -> Result<Option<File>, DirectoryError> {
    if path.join(LOCK_FILE).is_file() { lock(path).map(Some) } else { Ok(None) }
}

fn lock(path: &Path) -> Result<File, DirectoryError> {
    let file = path.join(LOCK_FILE);
    let lock = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&file)
        .map_err(|error| io("open", &file, &error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(DirectoryError::InUse { path: path.to_owned() }),
        Err(fs::TryLockError::Error(error)) => Err(io("lock", &file, &error)),
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), DirectoryError> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error| io("write", path, &error))
}

fn sync_folder(path: &Path) -> Result<(), DirectoryError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(|error| io("sync", path, &error))
}

fn io(doing: &str, path: &Path, error: &std::io::Error) -> DirectoryError {
    DirectoryError::Storage(StorageError::io(format!("{doing} {}", path.display()), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREATE: OpenDirectory = OpenDirectory { create: true, restored: false };
    const OPEN: OpenDirectory = OpenDirectory { create: false, restored: false };

    #[test]
    fn a_directory_is_made_once_and_belongs_to_one_opener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        assert!(matches!(Directory::open(&path, OPEN), Err(DirectoryError::Absent { .. })));
        let first = Directory::open(&path, CREATE).unwrap();
        assert!(first.created());
        assert!(matches!(Directory::open(&path, OPEN), Err(DirectoryError::InUse { .. })));
        drop(first);
        assert!(!Directory::open(&path, CREATE).unwrap().created());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary folder is left");
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.tex"), "precious").unwrap();
        assert!(matches!(Directory::open(folder.path(), CREATE), Err(DirectoryError::Foreign { .. })));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let file = folder.path().join("thesis.tex");
        assert!(matches!(Directory::open(&file, CREATE), Err(DirectoryError::Foreign { .. })));
    }

    #[test]
    fn a_newer_format_and_a_missing_table_folder_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        drop(Directory::open(&path, CREATE).unwrap());
        let format = fs::read_to_string(path.join(FORMAT_FILE)).unwrap();
        fs::write(path.join(FORMAT_FILE), format.replace("\"tidelog\": 1", "\"tidelog\": 7")).unwrap();
        assert!(matches!(Directory::open(&path, OPEN), Err(DirectoryError::Newer { found: 7, .. })));
        fs::write(path.join(FORMAT_FILE), format).unwrap();
        fs::rename(path.join(TABLES), path.join("elsewhere")).unwrap();
        assert!(matches!(Directory::open(&path, OPEN), Err(DirectoryError::Damaged { .. })));
        assert!(!path.join(TABLES).exists(), "nothing was made in its place");
    }

    #[test]
    fn a_copy_is_refused_until_it_is_called_restored() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        drop(Directory::open(&one, CREATE).unwrap());
        let copied = std::process::Command::new("cp").arg("-r").arg(&one).arg(&two).status().unwrap();
        assert!(copied.success());
        assert!(matches!(Directory::open(&two, OPEN), Err(DirectoryError::Copied { .. })));
        let restored = OpenDirectory { restored: true, ..OPEN };
        assert!(Directory::open(&two, restored).unwrap().restored());
        assert!(matches!(Directory::open(&two, OPEN), Err(DirectoryError::Copied { .. })), "not accepted yet");
        Directory::open(&two, restored).unwrap().accept().unwrap();
        assert!(!Directory::open(&two, OPEN).unwrap().restored());
        fs::rename(&one, folder.path().join("moved")).unwrap();
        assert!(Directory::open(&folder.path().join("moved"), OPEN).is_ok(), "moving is not copying");
    }
}
