//! The log on fjall: eight tables, one journal, and the high-water mark in a file beside them.
//!
//! What fjall gives is taken with care (measured, fjall 3.1.13): a batch is atomic across tables and honours
//! `SyncData`; a failed sync poisons it until it is reopened; but it truncates its journal in silence at a flipped bit
//! and its sequence numbers lie outside its checksums. So every record and row has a checksum of its own, nothing
//! correct depends on an overwritten row, and [`TailMark`] tells when the tail is gone.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use fjall::{Database, Keyspace as Table, KeyspaceCreateOptions, PersistMode, Readable};

use super::inspect;
use super::storage::{Durability, Keyspace, Storage, StorageError, TailMark, Visit, WriteBatch};
use crate::id::{Chain, LogId, Lsn};

/// The folder of the tables, inside the data directory.
pub(super) const TABLES: &str = "store";
/// The file of the high-water mark.
pub(super) const MARK: &str = "tail.hwm";

/// How much memory the store may use for blocks it has read.
const CACHE_BYTES: u64 = 64 << 20;
/// Journals beyond this are flushed into tables.
const JOURNAL_BYTES: u64 = 128 << 20;
/// Open tables at a time; the rest of the process needs descriptors too.
const OPEN_FILES: usize = 512;

/// A [`Storage`] on fjall.
pub struct FjallStorage {
    database: Database,
    tables: [Table; Keyspace::ALL.len()],
    directory: PathBuf,
    // Protects which copy of the mark is the older one.
    mark: Mutex<MarkFile>,
}

impl FjallStorage {
    /// Opens, or makes, the tables and the mark in `directory`. The caller holds the directory's lock.
    ///
    /// What is there is checked before fjall may touch it: its layout, its manifests and its journals.
    ///
    /// # Errors
    /// [`StorageError`] with file and place when the tables are damaged, from another version, or the disk refuses.
    ///
    /// # Cost
    /// Reads the journals twice: about 128 MiB, and what was under way beside it.
    pub fn open(directory: &Path) -> Result<Self, StorageError> {
        Self::open_accepting(directory, false)
    }

    /// The same; with `loss`, an end of the journal that is damaged is cut off even if it holds acknowledged records.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_accepting(directory: &Path, loss: bool) -> Result<Self, StorageError> {
        let tables_path = directory.join(TABLES);
        let mut mark = MarkFile::open(&directory.join(MARK))?;
        let is_new = inspect::is_new(&tables_path)?;
        if !is_new {
            inspect::check_before_open(&tables_path, mark.newest().ok().flatten().as_ref(), loss)?;
        }
        let opened = guarded(&format!("open {}", tables_path.display()), || open_tables(&tables_path));
        let (database, tables) = opened.map_err(|error| if is_new { error } else { located(&tables_path, error) })?;
        let storage = Self { database, tables, directory: directory.to_owned(), mark: Mutex::new(mark) };
        // A recovered tail may exist in the page cache only: it must be on the disk before anybody is told of it.
        storage.sync_all()?;
        Ok(storage)
    }

    /// Moves what only the journal holds into table files, and waits for it.
    ///
    /// # Errors
    /// [`StorageError`] when the disk refuses.
    pub fn flush(&self) -> Result<(), StorageError> {
        let flush = || self.tables.iter().try_for_each(Table::rotate_memtable_and_wait);
        guarded("flush", || flush().map_err(|error| failed("flush", &error)))
    }

    fn table(&self, keyspace: Keyspace) -> &Table {
        &self.tables[keyspace as usize]
    }

    fn sync_all(&self) -> Result<(), StorageError> {
        self.database.persist(PersistMode::SyncAll).map_err(|error| failed("sync the journal", &error))
    }

    fn lock_mark(&self) -> std::sync::MutexGuard<'_, MarkFile> {
        self.mark.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl std::fmt::Debug for FjallStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FjallStorage").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Storage for FjallStorage {
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        // A table read by itself shows the rows of a batch one by one while they are put in; a snapshot, whole batches.
        let doing = || format!("read table {}", keyspace.name());
        let read = || self.database.snapshot().get(self.table(keyspace), key).map_err(|error| failed(&doing(), &error));
        Ok(guarded("read", read)?.map(|value| value.to_vec()))
    }

    fn scan(
        &self,
        keyspace: Keyspace,
        from: &[u8],
        to: &[u8],
        descending: bool,
        visit: Visit<'_>,
    ) -> Result<(), StorageError> {
        if from >= to {
            return Ok(());
        }
        let doing = format!("scan table {}", keyspace.name());
        let mut rows = guarded(&doing, || Ok(self.database.snapshot().range(self.table(keyspace), from..to)))?;
        loop {
            let row = guarded(&doing, || {
                let row = if descending { rows.next_back() } else { rows.next() };
                row.map(|row| row.into_inner().map_err(|error| failed(&doing, &error))).transpose()
            })?;
            let Some((key, value)) = row else {
                return Ok(());
            };
            if visit(&key, &value).is_break() {
                return Ok(());
            }
        }
    }

    fn commit(&self, batch: WriteBatch, durability: Durability) -> Result<(), StorageError> {
        let mode = match durability {
            Durability::Buffered => PersistMode::Buffer,
            // The journal is preallocated and its rotation syncs everything, so its data is all there is to sync.
            Durability::Synced => PersistMode::SyncData,
        };
        let mut write = self.database.batch().durability(Some(mode));
        for (keyspace, key, value) in batch.rows {
            match value {
                Some(value) => write.insert(self.table(keyspace), key, value),
                None => write.remove(self.table(keyspace), key),
            }
        }
        write.commit().map_err(|error| failed("commit", &error))
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.database.persist(PersistMode::SyncData).map_err(|error| failed("sync the journal", &error))
    }

    fn read_mark(&self) -> Result<Option<TailMark>, StorageError> {
        self.lock_mark().newest()
    }

    fn write_mark(&self, mark: &TailMark, sync: bool) -> Result<(), StorageError> {
        self.lock_mark().write(mark, sync)
    }

    fn free_bytes(&self) -> Result<Option<u64>, StorageError> {
        let stat = rustix::fs::statvfs(&self.directory)
            .map_err(|error| StorageError::io("ask for free space", &error.into()))?;
        Ok(Some(stat.f_bavail.saturating_mul(stat.f_frsize)))
    }

    fn check_files(&self, fault: &mut dyn FnMut(String, String)) -> Result<(), StorageError> {
        inspect::check_files(&self.directory.join(TABLES), fault)
    }
}

type Tables = [Table; Keyspace::ALL.len()];

fn open_tables(path: &Path) -> Result<(Database, Tables), StorageError> {
    let database = Database::builder(path)
        .cache_size(CACHE_BYTES)
        .max_journaling_size(JOURNAL_BYTES)
        .max_cached_files(Some(OPEN_FILES))
        .worker_threads(2)
        .open()
        .map_err(|error| failed(&format!("open {}", path.display()), &error))?;
    let mut tables = Vec::with_capacity(Keyspace::ALL.len());
    for keyspace in Keyspace::ALL {
        let table = database
            .keyspace(keyspace.name(), KeyspaceCreateOptions::default)
            .map_err(|error| failed(&format!("open table {}", keyspace.name()), &error))?;
        tables.push(table);
    }
    let tables = tables.try_into().map_err(|_| StorageError::Damaged("the tables do not match their list".into()))?;
    Ok((database, tables))
}

/// Runs what calls fjall: it panics at some damage, and a panic of its is an error of ours. (At some it aborts the
/// process: a panic while it holds a lock that its destructors take. So damage is looked for before it is opened.)
fn guarded<T>(doing: &str, run: impl FnOnce() -> Result<T, StorageError>) -> Result<T, StorageError> {
    // What a panic leaves behind is never used again: opening gives up, and reading changes nothing.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
        Err(StorageError::Damaged(format!("{doing}: fjall panicked: {text}")))
    })
}

/// Names the damaged file, if one can be found, in an error that does not.
fn located(tables: &Path, error: StorageError) -> StorageError {
    let StorageError::Damaged(why) = error else { return error };
    let mut files = Vec::new();
    // The first error stands, whatever comes of looking closer.
    let _ = inspect::check_files(tables, &mut |file, fault| files.push(format!("{file}: {fault}")));
    if files.is_empty() {
        return StorageError::Damaged(why);
    }
    StorageError::Damaged(format!("{} ({why})", files.join("; ")))
}

/// Sorts fjall's errors into ours.
fn failed(doing: &str, error: &fjall::Error) -> StorageError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            return io_failed(doing, io);
        }
        source = inner.source();
    }
    match error {
        fjall::Error::Io(io) => io_failed(doing, io),
        fjall::Error::Poisoned => {
            StorageError::Io { doing: doing.into(), why: "an earlier write failed; reopen the store".into() }
        }
        other => StorageError::Damaged(format!("{doing}: {other:?}")),
    }
}

/// A file that ends too soon, or a place in it that cannot be, is damage; the disk did what it was asked.
fn io_failed(doing: &str, error: &std::io::Error) -> StorageError {
    use std::io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    match error.kind() {
        UnexpectedEof | InvalidData | InvalidInput => StorageError::Damaged(format!("{doing}: {error}")),
        _ => StorageError::io(doing, error),
    }
}

/// Two copies of the mark, each in a disk page of its own, written in turn, so that a torn write spoils one only.
///
/// ```text
/// offset  size  field (little-endian), at 0 and again at 4096
/// 0       4     "TLHW"
/// 4       1     version, now 1
/// 5       1     closed, 0 or 1
/// 6       1     buffered, 0 or 1
/// 7       1     0
/// 8       8     how many marks were written before this one
/// 16      16    log id
/// 32      8     LSN of the last footer
/// 40      16    chain digest there
/// 56      8     reserved LSN
/// 64      8     XXH3-64 of the 64 bytes above
/// ```
#[derive(Debug)]
struct MarkFile {
    file: File,
    path: PathBuf,
    written: u64,
}

const COPY_BYTES: usize = 72;
const COPY_OFFSETS: [u64; 2] = [0, 4096];

impl MarkFile {
    fn open(path: &Path) -> Result<Self, StorageError> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|error| StorageError::io(format!("open {}", path.display()), &error))?;
        let mut mark = Self { file, path: path.to_owned(), written: 0 };
        // Where writing goes on. That no copy is intact is for the reader to say.
        let _ = mark.newest();
        Ok(mark)
    }

    /// The newest intact copy; also where writing goes on.
    fn newest(&mut self) -> Result<Option<TailMark>, StorageError> {
        let length = self.file.metadata().map_err(|error| self.failed("read", &error))?.len();
        if length == 0 {
            return Ok(None);
        }
        let copies = COPY_OFFSETS.iter().filter_map(|offset| {
            let mut bytes = [0; COPY_BYTES];
            self.file.read_exact_at(&mut bytes, *offset).ok()?;
            decode_mark(&bytes)
        });
        match copies.max_by_key(|(written, _)| *written) {
            Some((written, mark)) => {
                self.written = written.saturating_add(1);
                Ok(Some(mark))
            }
            None => Err(StorageError::Damaged(format!("{}: no intact copy of the mark", self.path.display()))),
        }
    }

    fn write(&mut self, mark: &TailMark, sync: bool) -> Result<(), StorageError> {
        let offset = COPY_OFFSETS[(self.written % 2) as usize];
        let bytes = encode_mark(mark, self.written);
        self.file.write_all_at(&bytes, offset).map_err(|error| self.failed("write", &error))?;
        self.written += 1;
        if sync {
            self.file.sync_data().map_err(|error| self.failed("sync", &error))?;
        }
        Ok(())
    }

    fn failed(&self, doing: &str, error: &std::io::Error) -> StorageError {
        StorageError::io(format!("{doing} {}", self.path.display()), error)
    }
}

/// The newest intact mark in a file that is only read, if it has one.
pub(super) fn intact_mark(path: &Path) -> Option<TailMark> {
    let file = File::open(path).ok()?;
    MarkFile { file, path: path.to_owned(), written: 0 }.newest().ok().flatten()
}

fn encode_mark(mark: &TailMark, written: u64) -> [u8; COPY_BYTES] {
    let mut out = [0; COPY_BYTES];
    out[..4].copy_from_slice(b"TLHW");
    out[4] = 1;
    out[5] = u8::from(mark.closed);
    out[6] = u8::from(mark.buffered);
    out[8..16].copy_from_slice(&written.to_le_bytes());
    out[16..32].copy_from_slice(&mark.log_id.0);
    out[32..40].copy_from_slice(&mark.lsn.0.to_le_bytes());
    out[40..56].copy_from_slice(&mark.chain.0);
    out[56..64].copy_from_slice(&mark.reserved.0.to_le_bytes());
    let checksum = xxhash_rust::xxh3::xxh3_64(&out[..64]);
    out[64..].copy_from_slice(&checksum.to_le_bytes());
    out
}

fn decode_mark(bytes: &[u8; COPY_BYTES]) -> Option<(u64, TailMark)> {
    let u64_at = |at: usize| bytes[at..at + 8].try_into().map(u64::from_le_bytes).ok();
    let b16_at = |at: usize| bytes[at..at + 16].try_into().ok();
    if &bytes[..4] != b"TLHW" || bytes[4] != 1 || u64_at(64)? != xxhash_rust::xxh3::xxh3_64(&bytes[..64]) {
        return None;
    }
    let mark = TailMark {
        log_id: LogId(b16_at(16)?),
        lsn: Lsn(u64_at(32)?),
        chain: Chain(b16_at(40)?),
        reserved: Lsn(u64_at(56)?),
        closed: bytes[5] == 1,
        buffered: bytes[6] == 1,
    };
    Some((u64_at(8)?, mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(lsn: u64) -> TailMark {
        TailMark {
            log_id: LogId([1; 16]),
            lsn: Lsn(lsn),
            chain: Chain([2; 16]),
            reserved: Lsn(1 << 20),
            closed: false,
            buffered: false,
        }
    }

    #[test]
    fn the_newest_intact_copy_of_the_mark_wins() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(MARK);
        let mut file = MarkFile::open(&path).unwrap();
        assert_eq!(file.newest().unwrap(), None);
        for lsn in 1..=5 {
            file.write(&mark(lsn), true).unwrap();
        }
        assert_eq!(MarkFile::open(&path).unwrap().newest().unwrap(), Some(mark(5)));
        // A torn write of the sixth spoils the copy that held the fourth.
        let raw = File::options().write(true).open(&path).unwrap();
        raw.write_all_at(&encode_mark(&mark(6), 5)[..40], COPY_OFFSETS[1]).unwrap();
        assert_eq!(MarkFile::open(&path).unwrap().newest().unwrap(), Some(mark(5)));
        raw.write_all_at(b"xx", COPY_OFFSETS[0]).unwrap();
        assert!(
            MarkFile::open(&path).unwrap().newest().is_err(),
            "two spoiled copies are a named error, not an empty log"
        );
    }

    #[test]
    fn rows_survive_reopening_and_scans_go_both_ways() {
        let folder = tempfile::tempdir().unwrap();
        let mut batch = WriteBatch::default();
        for n in 0..10u8 {
            batch.put(Keyspace::Docs, [n], vec![n; 3]);
        }
        batch.remove(Keyspace::Docs, [4]);
        FjallStorage::open(folder.path()).unwrap().commit(batch, Durability::Synced).unwrap();
        let storage = FjallStorage::open(folder.path()).unwrap();
        assert_eq!(storage.get(Keyspace::Docs, &[3]).unwrap(), Some(vec![3; 3]));
        assert_eq!(storage.get(Keyspace::Docs, &[4]).unwrap(), None);
        let mut seen = Vec::new();
        storage
            .scan(Keyspace::Docs, &[2], &[7], true, &mut |key, _| {
                seen.push(key[0]);
                if key[0] == 3 { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
            })
            .unwrap();
        assert_eq!(seen, [6, 5, 3]);
    }
}
