//! What must hold of fjall's files before fjall may touch them.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::journal::{Broken, Found, Item, Journal, may_follow};
use super::tables::manifest;
use super::{KEYSPACES, LOOKS_MAX, damaged, failed};
use crate::log::storage::{Keyspace, StorageError, TailMark};

/// fjall's number of the table of records: the tables were made in the order of [`Keyspace::ALL`], from 1.
pub(in crate::log) const LOG_TABLE: u64 = Keyspace::Log as u64 + 1;

/// How much of a value says whether it was written at all. A torn sector is longer than this.
const LOOKED_AT: usize = 16;

/// Whether fjall has yet to make its files in `store`.
///
/// # Errors
/// [`StorageError`] when the disk does not tell.
pub(in crate::log) fn is_new(store: &Path) -> Result<bool, StorageError> {
    match fs::read_dir(store) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(failed("read", store, &error)),
    }
}

/// Checks the layout, the manifests and the journals in `store`, and cuts off a torn end of the last journal.
///
/// `mark` says which records were acknowledged. With `accept_loss` an end of the journal that holds acknowledged
/// records and is damaged is cut off as well.
///
/// # Errors
/// [`StorageError::Damaged`] with file and place, [`StorageError::TailDamaged`] when only the end is damaged. Nothing
/// was changed then.
///
/// # Cost
/// Reads the journals, at most half a GiB, and the manifests, a few KiB; not the table files.
pub(in crate::log) fn check_before_open(
    store: &Path,
    mark: Option<&TailMark>,
    accept_loss: bool,
) -> Result<(), StorageError> {
    check_version(&store.join("version"))?;
    for table in tables_of(store)? {
        manifest(&table)?.check_files(&table)?;
    }
    check_journals(store, mark, accept_loss)
}

fn check_version(path: &Path) -> Result<(), StorageError> {
    match fs::read(path) {
        Ok(bytes) if bytes == b"FJL\x03" => Ok(()),
        Ok(_) => Err(damaged(path, "it does not say version 3 of fjall's files")),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(damaged(path, "it is missing")),
        Err(error) => Err(failed("read", path, &error)),
    }
}

/// The folder of each table, fjall's own first.
pub(super) fn tables_of(store: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let folder = store.join(KEYSPACES);
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(&folder).map_err(|error| missing_or_failed(&folder, &error))? {
        let entry = entry.map_err(|error| failed("read", &folder, &error))?;
        let number = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok());
        match number.filter(|number| *number <= Keyspace::ALL.len() as u64) {
            Some(number) => found.insert(number),
            None => return Err(damaged(&entry.path(), "no such folder belongs here")),
        };
    }
    (0..=Keyspace::ALL.len() as u64)
        .map(|number| {
            let path = folder.join(number.to_string());
            if found.contains(&number) { Ok(path) } else { Err(damaged(&path, "it is missing")) }
        })
        .collect()
}

/// The journals in `store`, oldest first.
pub(in crate::log) fn journals_of(store: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(store).map_err(|error| missing_or_failed(store, &error))? {
        let entry = entry.map_err(|error| failed("read", store, &error))?;
        let path = entry.path();
        if path.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("jnl")) {
            continue;
        }
        let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
        match number.filter(|number| path.ends_with(format!("{number}.jnl"))) {
            Some(number) => numbers.push(number),
            None => return Err(damaged(&path, "no such journal belongs here")),
        }
    }
    numbers.sort_unstable();
    Ok(numbers.into_iter().map(|number| store.join(format!("{number}.jnl"))).collect())
}

fn missing_or_failed(path: &Path, error: &std::io::Error) -> StorageError {
    match error.kind() {
        ErrorKind::NotFound => damaged(path, "it is missing"),
        _ => failed("read", path, error),
    }
}

fn check_journals(store: &Path, mark: Option<&TailMark>, accept_loss: bool) -> Result<(), StorageError> {
    let journals = journals_of(store)?;
    let Some((newest, sealed)) = journals.split_last() else {
        // fjall would begin another one and forget how it counted: what is in the tables would be invisible.
        return Err(damaged(store, "there is no journal"));
    };
    for pair in journals.windows(2) {
        let number = |path: &Path| path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        if let (Some(before), Some(after)) = (number(&pair[0]), number(&pair[1]))
            && after != before + 1
        {
            return Err(damaged(&store.join(format!("{}.jnl", before + 1)), "the journal is missing"));
        }
    }
    let mut last = None;
    for path in sealed {
        // It was synced before the next one was begun, so nothing in it can be torn.
        if let Some(tear) = Scan::of(path, &mut last)?.tear {
            return Err(place(path, &tear.broken));
        }
    }
    let mut scan = Scan::of(newest, &mut last)?;
    match scan.tear.take() {
        None => Ok(()),
        Some(tear) => {
            scan.judge(&tear, last, mark, accept_loss)?;
            cut(newest, tear.broken.start)
        }
    }
}

/// Looks for damage in the journals of a store that may be open and written to, and tells `fault` file and place.
///
/// # Errors
/// [`StorageError`] when the disk fails.
pub(super) fn check_journals_live(store: &Path, fault: &mut dyn FnMut(String, String)) -> Result<(), StorageError> {
    let journals = match journals_of(store) {
        Ok(journals) => journals,
        Err(StorageError::Damaged(why)) => {
            fault(store.display().to_string(), why);
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    for path in &journals {
        let mut found = None;
        for _ in 0..LOOKS_MAX {
            found = broken_live(path)?;
            // A batch that was being written when it was read is whole a moment later.
            if found.is_none() {
                break;
            }
        }
        if let Some(Broken { start, at, why }) = found {
            fault(path.display().to_string(), format!("byte {at}: {why} (the batch begins at byte {start})"));
        }
    }
    Ok(())
}

fn broken_live(path: &Path) -> Result<Option<Broken>, StorageError> {
    let mut last = None;
    let mut scan = match Scan::of(path, &mut last) {
        Ok(scan) => scan,
        // What it held is in the tables now.
        Err(_) if !path.exists() => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(tear) = scan.tear.take() else { return Ok(None) };
    let next = scan.journal.intact_after(tear.broken.start, last).map_err(|error| failed("read", path, &error))?;
    Ok(match next {
        Ok(None) => None,
        _ => Some(tear.broken),
    })
}

/// A journal read to its end, or to where it is broken.
struct Scan<'a> {
    path: &'a Path,
    journal: Journal,
    tear: Option<Tear>,
}

struct Tear {
    broken: Broken,
    /// The first record that the broken batch seems to hold.
    record: Option<u64>,
    /// The batch is intact but for its number.
    misnumbered: bool,
}

impl<'a> Scan<'a> {
    fn of(path: &'a Path, last: &mut Option<u64>) -> Result<Self, StorageError> {
        let error = |error: std::io::Error| failed("read", path, &error);
        let mut journal = Journal::open(path).map_err(error)?;
        let mut at = 0;
        loop {
            let mut record = None;
            let found = journal.read(at, &mut |item| note_record(&mut record, item)).map_err(error)?;
            let (broken, misnumbered) = match found {
                Found::End => return Ok(Self { path, journal, tear: None }),
                Found::Broken(broken) => (broken, false),
                Found::Batch(batch) if may_follow(*last, batch.seqno) => {
                    *last = Some(batch.seqno);
                    at = batch.end;
                    continue;
                }
                Found::Batch(batch) => {
                    let why = "the batch's number does not follow the one before it";
                    (Broken { start: batch.start, at: batch.start, why }, true)
                }
            };
            return Ok(Self { path, journal, tear: Some(Tear { broken, record, misnumbered }) });
        }
    }

    /// Whether a journal may end torn like this. An error says that it is damaged instead.
    fn judge(
        &mut self,
        tear: &Tear,
        last: Option<u64>,
        mark: Option<&TailMark>,
        accept_loss: bool,
    ) -> Result<(), StorageError> {
        let path = self.path;
        let error = |error: std::io::Error| failed("read", path, &error);
        let refused = place(path, &tear.broken);
        if tear.misnumbered {
            // A write that was not done in full would have spoiled the rows behind the number too.
            return Err(refused);
        }
        // Of a buffered log the mark may be on the disk, and the records not.
        let acknowledged = mark.filter(|mark| !mark.buffered || mark.closed).map(|mark| mark.lsn.0);
        let was_acknowledged = |record: Option<u64>| record.zip(acknowledged).is_some_and(|(is, was)| is <= was);
        let from = tear.broken.start;
        match self.journal.intact_after(from, last).map_err(error)? {
            Err(broken) => return Err(place(path, &broken)),
            Ok(Some(next)) => {
                // A commit is told once it and everything before it is on the disk. So what is torn *before* an intact
                // batch was never told only if the power failed with both on their way: the one as zeros, the other as
                // itself, and neither told.
                let record = self.first_record(next.start).map_err(error)?;
                let torn = self.journal.has_torn_zeros(from, next.start).map_err(error)?;
                if !torn || was_acknowledged(record) {
                    return Err(refused);
                }
            }
            Ok(None) if was_acknowledged(tear.record) && !accept_loss => {
                let Broken { start, at, why } = tear.broken;
                return Err(StorageError::TailDamaged(format!(
                    "{}: byte {at}: {why}; the last batch, from byte {start} on, holds acknowledged records",
                    path.display()
                )));
            }
            Ok(None) => {}
        }
        tracing::warn!(journal = %path.display(), byte = from, why = tear.broken.why, "cutting off the torn end of the journal");
        Ok(())
    }

    /// The first record in the intact batches from `at` on.
    fn first_record(&mut self, mut at: u64) -> std::io::Result<Option<u64>> {
        let mut record = None;
        while let Found::Batch(batch) = self.journal.read(at, &mut |item| note_record(&mut record, item))? {
            if record.is_some() {
                break;
            }
            at = batch.end;
        }
        Ok(record)
    }
}

/// Keeps the smallest position among the records of a batch.
///
/// A key counts only if something stands behind it. A write that was torn within a row's start or its key leaves zeros
/// from there to the end of the sector, so the key reads as a position long past, and what was never told as
/// acknowledged.
fn note_record(record: &mut Option<u64>, item: Item<'_>) {
    let written = |value: &[u8]| value.iter().take(LOOKED_AT).any(|byte| *byte != 0);
    if item.table == LOG_TABLE
        && item.value.is_some_and(written)
        && let Ok(key) = item.key.try_into()
    {
        let lsn = u64::from_be_bytes(key);
        *record = Some(record.map_or(lsn, |record| record.min(lsn)));
    }
}

fn place(path: &Path, broken: &Broken) -> StorageError {
    let Broken { start, at, why } = broken;
    damaged(
        path,
        format!("byte {at}: {why} (the batch begins at byte {start}, and it is not the torn end of a last one)"),
    )
}

fn cut(path: &Path, at: u64) -> Result<(), StorageError> {
    let cut = || {
        let file = fs::OpenOptions::new().write(true).open(path)?;
        file.set_len(at)?;
        file.sync_all()
    };
    cut().map_err(|error| failed("cut", path, &error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::id::{Chain, LogId, Lsn};
    use crate::log::fjall::{FjallStorage, TABLES};
    use crate::log::storage::{Durability, Storage as _, WriteBatch};

    /// A store with ten batches of one record each, and where they begin in the journal.
    fn ten_batches() -> (tempfile::TempDir, PathBuf, Vec<u64>) {
        ten_batches_of(700)
    }

    fn ten_batches_of(bytes: usize) -> (tempfile::TempDir, PathBuf, Vec<u64>) {
        let folder = tempfile::tempdir().unwrap();
        let storage = FjallStorage::open(folder.path()).unwrap();
        for lsn in 1..=10u64 {
            let mut batch = WriteBatch::default();
            batch.put(Keyspace::Log, lsn.to_be_bytes(), vec![lsn as u8; bytes]);
            batch.put(Keyspace::Docs, b"same key", vec![lsn as u8; 10]);
            storage.commit(batch, Durability::Synced).unwrap();
        }
        drop(storage);
        let store = folder.path().join(TABLES);
        let journal = journals_of(&store).unwrap().pop().unwrap();
        let (mut reader, mut starts) = (Journal::open(&journal).unwrap(), vec![0]);
        while let Found::Batch(batch) = reader.read(starts[starts.len() - 1], &mut |_| {}).unwrap() {
            starts.push(batch.end);
        }
        assert_eq!(starts.len(), 11);
        (folder, journal, starts)
    }

    fn mark(lsn: u64) -> TailMark {
        let reserved = Lsn(1 << 20);
        TailMark {
            log_id: LogId([1; 16]),
            lsn: Lsn(lsn),
            chain: Chain::default(),
            reserved,
            closed: false,
            buffered: false,
        }
    }

    fn overwrite(journal: &Path, at: u64, bytes: &[u8]) {
        fs::OpenOptions::new().write(true).open(journal).unwrap().write_all_at(bytes, at).unwrap();
    }

    #[test]
    fn every_flip_before_the_last_batch_is_refused_with_file_and_byte_and_nothing_is_cut() {
        let (folder, journal, starts) = ten_batches();
        let store = folder.path().join(TABLES);
        let original = fs::read(&journal).unwrap();
        for at in starts[2]..starts[5] {
            for bit in [0, 5] {
                let byte = original[at as usize];
                overwrite(&journal, at, &[byte ^ (1 << bit)]);
                // What the mark says does not matter: intact batches follow.
                let refused = check_before_open(&store, Some(&mark(1)), true).unwrap_err().to_string();
                assert!(refused.contains("0.jnl: byte "), "bit {bit} of byte {at}: {refused}");
                overwrite(&journal, at, &[byte]);
            }
        }
        assert!(fs::read(&journal).unwrap() == original);
        check_before_open(&store, Some(&mark(10)), false).unwrap();
    }

    #[test]
    fn a_torn_end_is_cut_off_unless_it_was_acknowledged() {
        let (folder, journal, starts) = ten_batches();
        let store = folder.path().join(TABLES);
        let original = fs::read(&journal).unwrap();
        overwrite(&journal, starts[9] + 300, &[0; 200]);
        let refused = check_before_open(&store, Some(&mark(10)), false);
        assert!(matches!(refused, Err(StorageError::TailDamaged(_))), "{refused:?}");
        assert_eq!(fs::metadata(&journal).unwrap().len(), original.len() as u64, "nothing was cut");
        // The mark is older than the batch: nobody was told of it.
        check_before_open(&store, Some(&mark(9)), false).unwrap();
        assert_eq!(fs::metadata(&journal).unwrap().len(), starts[9]);
        // Its loss was accepted.
        fs::write(&journal, &original).unwrap();
        overwrite(&journal, starts[9] + 300, &[0; 200]);
        check_before_open(&store, Some(&mark(10)), true).unwrap();
    }

    #[test]
    fn a_batch_that_is_torn_within_a_rows_start_or_its_key_was_told_to_nobody() {
        let (folder, journal, starts) = ten_batches();
        let store = folder.path().join(TABLES);
        let original = fs::read(&journal).unwrap();
        for torn in starts[9] + 1..starts[9] + 50 {
            fs::write(&journal, &original).unwrap();
            overwrite(&journal, torn, &vec![0; (starts[10] - torn) as usize]);
            check_before_open(&store, Some(&mark(9)), false).unwrap_or_else(|error| panic!("torn at {torn}: {error}"));
            assert_eq!(fs::metadata(&journal).unwrap().len(), starts[9]);
        }
    }

    #[test]
    fn zeros_before_an_intact_batch_are_a_power_cut_only_if_nobody_was_told_of_either() {
        let (folder, journal, starts) = ten_batches();
        let store = folder.path().join(TABLES);
        overwrite(&journal, starts[8], &[0; 512]);
        let refused = check_before_open(&store, Some(&mark(10)), true);
        assert!(matches!(refused, Err(StorageError::Damaged(_))), "{refused:?}");
        check_before_open(&store, Some(&mark(8)), false).unwrap();
        assert_eq!(fs::metadata(&journal).unwrap().len(), starts[8]);
    }

    #[test]
    fn a_sector_that_is_lost_with_the_first_bytes_of_a_batch_is_a_power_cut() {
        let in_sector = |start: u64| (start.next_multiple_of(512) - start) as usize;
        let batch = 5;
        let overhead = ten_batches().2[batch] - 700 * batch as u64;
        let fits = |bytes: &u64| (5..64).contains(&in_sector(overhead + bytes * batch as u64));
        let (folder, journal, starts) = ten_batches_of((700..1400).find(fits).unwrap() as usize);
        let lost = in_sector(starts[batch]);
        assert!((5..64).contains(&lost), "{lost} bytes of a batch before a sector's end");
        let store = folder.path().join(TABLES);
        let original = fs::read(&journal).unwrap();
        overwrite(&journal, starts[batch], &vec![0; lost]);
        check_before_open(&store, Some(&mark(batch as u64)), false).unwrap();
        assert_eq!(fs::metadata(&journal).unwrap().len(), starts[batch]);
        fs::write(&journal, &original).unwrap();
        overwrite(&journal, starts[batch], &vec![0; lost]);
        let refused = check_before_open(&store, Some(&mark(10)), true);
        assert!(matches!(refused, Err(StorageError::Damaged(_))), "{refused:?}");
    }

    #[test]
    fn a_large_journal_is_checked_while_one_waits() {
        let folder = tempfile::tempdir().unwrap();
        let storage = FjallStorage::open(folder.path()).unwrap();
        for group in 0..48u64 {
            let mut batch = WriteBatch::default();
            for n in 0..4096 {
                batch.put(Keyspace::Log, (group * 4096 + n + 1).to_be_bytes(), vec![n as u8; 220]);
            }
            storage.commit(batch, Durability::Buffered).unwrap();
        }
        drop(storage);
        let store = folder.path().join(TABLES);
        let bytes: u64 = journals_of(&store).unwrap().iter().map(|path| written(path)).sum();
        let begun = std::time::Instant::now();
        check_before_open(&store, Some(&mark(1)), false).unwrap();
        println!("{} MiB of journal checked in {:?}", bytes >> 20, begun.elapsed());
        assert!(bytes > 40 << 20 && begun.elapsed().as_secs() < 10);
    }

    fn written(path: &Path) -> u64 {
        let (mut journal, mut at) = (Journal::open(path).unwrap(), 0);
        while let Found::Batch(batch) = journal.read(at, &mut |_| {}).unwrap() {
            at = batch.end;
        }
        at
    }

    #[test]
    fn layouts_that_fjall_would_delete_or_panic_at_are_named() {
        let (folder, journal, _) = ten_batches();
        let store = folder.path().join(TABLES);
        let check = || check_before_open(&store, Some(&mark(10)), true).unwrap_err().to_string();
        fs::create_dir(store.join("keyspaces/lost+found")).unwrap();
        assert!(check().contains("lost+found"));
        fs::remove_dir(store.join("keyspaces/lost+found")).unwrap();
        for (gone, named) in
            [("keyspaces/4/current", "4/current"), ("keyspaces/2", "keyspaces/2"), ("version", "version")]
        {
            fs::rename(store.join(gone), folder.path().join("aside")).unwrap();
            assert!(check().contains(named), "{gone}");
            fs::rename(folder.path().join("aside"), store.join(gone)).unwrap();
        }
        fs::rename(&journal, store.join("2.jnl")).unwrap();
        fs::write(store.join("0.jnl"), b"").unwrap();
        assert!(check().contains("1.jnl: the journal is missing"));
        fs::remove_file(store.join("0.jnl")).unwrap();
        fs::remove_file(store.join("2.jnl")).unwrap();
        assert!(check().contains("there is no journal"));
    }
}
