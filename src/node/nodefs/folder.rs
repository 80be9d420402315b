//! The folder: which documents are in it, and which files they have.

use std::fs::{self, FileType};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::id::{DocumentId, IdError, StorageId};

/// Documents in one folder, names in one of its folders, and bytes of one file that are read. More are reported and left
/// out.
const DOCUMENTS_MAX: usize = 1 << 22;
const NAMES_MAX: usize = 1 << 20;
/// Room for the largest document chunk and as much again of changes behind it.
pub(super) const FILE_BYTES_MAX: u64 = 512 << 20;
/// The storage id, with some white space that an editor may have left.
const ID_BYTES_MAX: u64 = 64;

/// A thing in the folder that is left out: where it is, and why.
pub(super) type Report<'a> = &'a mut dyn FnMut(&Path, String);

/// A data folder that was looked through.
#[derive(Debug)]
pub(super) struct Folder {
    base: PathBuf,
    /// The documents, by id.
    pub(super) documents: Vec<DocumentFolder>,
    /// Under which name clients know its server; `None` when it has none.
    pub(super) storage_id: Option<StorageId>,
    /// Keys of others than automerge-repo's.
    pub(super) other_keys: u64,
}

/// One document's place in the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DocumentFolder {
    /// Which document.
    pub(super) id: DocumentId,
    /// The name of the folder that it shares with others.
    shard: [u8; 2],
}

/// The files of one document.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// Snapshots, then changes, by name, as paths within the folder.
    pub(super) chunks: Vec<PathBuf>,
    /// Clients whose sync state is kept.
    pub(super) sync_states: u64,
    /// Things of another kind.
    pub(super) other: u64,
}

impl Folder {
    /// Looks through `base`, without opening any document's file.
    ///
    /// # Errors
    /// When `base` itself cannot be read.
    pub(super) fn look_through(base: &Path, report: Report<'_>) -> io::Result<Self> {
        let mut folder = Self { base: base.to_owned(), documents: Vec::new(), storage_id: None, other_keys: 0 };
        for (shard, kind) in folder.names(Path::new(""), report)? {
            if shard.len() != 2 || !kind.is_dir() {
                folder.other_keys += 1;
                continue;
            }
            let names = match folder.names(Path::new(&shard), report) {
                Ok(names) => names,
                Err(error) => {
                    report(Path::new(&shard), error.to_string());
                    continue;
                }
            };
            for (rest, kind) in names {
                if Path::new(&shard).join(&rest) == Path::new(STORAGE_ID_FILE) {
                    continue;
                }
                let id = document_of(&shard, &rest).filter(|_| kind.is_dir());
                match (id, <[u8; 2]>::try_from(shard.as_bytes())) {
                    (Some(id), Ok(shard)) if folder.documents.len() < DOCUMENTS_MAX => {
                        folder.documents.push(DocumentFolder { id, shard });
                    }
                    (Some(_), Ok(_)) => {
                        let why = format!("the folder has more than {DOCUMENTS_MAX} documents");
                        report(&Path::new(&shard).join(&rest), why);
                    }
                    _ => folder.other_keys += 1,
                }
            }
        }
        folder.documents.sort_unstable();
        folder.storage_id = folder.read_storage_id(report);
        Ok(folder)
    }

    fn read_storage_id(&self, report: Report<'_>) -> Option<StorageId> {
        let file = Path::new(STORAGE_ID_FILE);
        let bytes = match self.read(file, ID_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                report(file, error.to_string());
                return None;
            }
        };
        let text = String::from_utf8_lossy(&bytes);
        let read: Result<StorageId, IdError> = text.trim().parse();
        read.inspect_err(|error| report(file, error.to_string())).ok()
    }

    /// The files of a document.
    pub(super) fn files_of(&self, document: &DocumentFolder, report: Report<'_>) -> Files {
        let mut files = Files::default();
        let place = document.path();
        let list = |path: &Path, report: Report<'_>| {
            self.names(path, report).unwrap_or_else(|error| {
                report(path, error.to_string());
                Vec::new()
            })
        };
        let entries = list(&place, report);
        let is_folder = |wanted: &str| entries.iter().any(|(name, kind)| name == wanted && kind.is_dir());
        files.other += entries.len() as u64;
        if is_folder("sync-state") {
            files.other -= 1;
            files.sync_states += list(&place.join("sync-state"), report).len() as u64;
        }
        for wanted in ["snapshot", "incremental"].into_iter().filter(|wanted| is_folder(wanted)) {
            files.other -= 1;
            let place = place.join(wanted);
            for (name, kind) in list(&place, report) {
                if kind.is_file() {
                    files.chunks.push(place.join(name));
                } else if kind.is_dir() {
                    files.other += 1;
                } else {
                    report(&place.join(name), "it is no regular file".into());
                }
            }
        }
        files
    }

    /// Reads a file within the folder, of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// When it is no regular file, is longer, or the disk does not give it.
    pub(super) fn read(&self, file: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
        let path = self.base.join(file);
        let found = fs::symlink_metadata(&path)?;
        if !found.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(found.len().min(bytes_max)).unwrap_or(0));
        fs::File::open(&path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > bytes_max {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {bytes_max} bytes")));
        }
        Ok(bytes)
    }

    /// What is in one of the folders, by name.
    fn names(&self, place: &Path, report: Report<'_>) -> io::Result<Vec<(String, FileType)>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.base.join(place))? {
            let entry = entry?;
            if names.len() >= NAMES_MAX {
                report(place, format!("it has more than {NAMES_MAX} files; the others are left out"));
                break;
            }
            // A name that is no text is none of automerge-repo's.
            names.push((entry.file_name().to_string_lossy().into_owned(), entry.file_type()?));
        }
        names.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        Ok(names)
    }
}

/// Where the storage id stands.
const STORAGE_ID_FILE: &str = "st/orage-adapter-id";

impl DocumentFolder {
    /// Its path within the folder.
    pub(super) fn path(&self) -> PathBuf {
        let text = self.id.to_base58();
        Path::new(&*String::from_utf8_lossy(&self.shard)).join(text.get(2..).unwrap_or_default())
    }
}

/// The document whose folder `rest` in `shard` is. On a disk that does not tell capitals from small letters the first
/// document of a shard decided how it is written, so that the id's own checksum has to tell.
fn document_of(shard: &str, rest: &str) -> Option<DocumentId> {
    let mut letters = shard.chars();
    let (first, second) = (letters.next()?, letters.next()?);
    let both = |letter: char| {
        [letter, if letter.is_ascii_lowercase() { letter.to_ascii_uppercase() } else { letter.to_ascii_lowercase() }]
    };
    let spellings =
        both(first).into_iter().flat_map(|first| both(second).map(|second| format!("{first}{second}{rest}")));
    spellings.filter_map(|text| text.parse().ok().filter(|id: &DocumentId| id.to_base58() == text)).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_found_however_its_shard_is_written() {
        let id = DocumentId::random();
        let text = id.to_base58();
        let (shard, rest) = text.split_at(2);
        assert_eq!(document_of(shard, rest), Some(id));
        assert_eq!(document_of(&shard.to_ascii_uppercase(), rest), Some(id));
        assert_eq!(document_of(&shard.to_ascii_lowercase(), rest), Some(id));
        assert_eq!(document_of("su", "bduction"), None);
        assert_eq!(document_of("au", &format!("tomerge:{text}")), None, "a key that only looks like one");
        assert_eq!(document_of("é", rest), None);
        assert_eq!(document_of("", ""), None);
    }

    #[test]
    fn what_is_no_regular_file_is_not_opened() {
        let place = tempfile::tempdir().unwrap();
        let id = DocumentId::random();
        let text = id.to_base58();
        let snapshots = place.path().join(&text[..2]).join(&text[2..]).join("snapshot");
        fs::create_dir_all(snapshots.join("deeper")).unwrap();
        fs::write(snapshots.join("b"), "x").unwrap();
        std::os::unix::fs::symlink("/dev/zero", snapshots.join("a")).unwrap();
        let mut reported = Vec::new();
        let mut report = |path: &Path, _| reported.push(path.to_owned());
        let folder = Folder::look_through(place.path(), &mut report).unwrap();
        assert_eq!(folder.documents.len(), 1);
        let files = folder.files_of(&folder.documents[0], &mut report);
        assert_eq!((files.chunks.len(), files.other), (1, 1));
        assert_eq!(folder.read(&files.chunks[0], 1).unwrap(), b"x");
        assert!(folder.read(&files.chunks[0], 0).is_err(), "longer than may be read");
        assert!(reported[0].ends_with("a") && folder.read(&reported[0], 1).is_err());
    }
}
