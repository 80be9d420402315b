//! Getting records out of a store that does not open.
//!
//! A record carries its own checksum, which covers its position: wherever one is found, it is known for what it is. So
//! records are looked for in every place by itself, and nothing has to hold together: in each journal, batch by batch
//! and behind damage row by row; and in each table file, which fjall reads as the only file of a store made for it.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::journal::{Found, Item, Journal};
use super::layout::LOG_TABLE;
use super::tables::{lone_table, reference_to};
use super::{KEYSPACES, failed};
use crate::id::Lsn;
use crate::log::fjall::{FjallStorage, MARK, TABLES, intact_mark};
use crate::log::record::Record;
use crate::log::storage::{Durability, Keyspace, Storage as _, StorageError, TailMark, WriteBatch};
use crate::log::{log_key, lsn_of_key};

/// Records written down at a time.
const PAGE: usize = 1024;
/// A value of the log is no longer than this when it is inflated.
const VALUE_BYTES_MAX: usize = 1 << 28;
/// How often a table is asked for the record behind one that it cannot read.
const STEPS_MAX: u64 = 1 << 22;

/// What was found of a log.
#[derive(Debug)]
pub struct SalvagedLog {
    /// Every intact record, under its position: the table [`Keyspace::Log`] of a store of its own.
    pub records: FjallStorage,
    /// The high-water mark, if a copy of it is intact.
    pub mark: Option<TailMark>,
    /// Files with damage in them, and what it is.
    pub damage: Vec<(String, String)>,
}

/// Collects every intact record of the data directory `damaged` in a store made in the vacant folder `scratch`.
/// `damaged` is only read. `progress` is told how many records were found.
///
/// # Errors
/// [`StorageError`] when the disk fails. Damage is what this is for, and no error.
///
/// # Cost
/// Reads everything; the records take as much room again in `scratch`.
pub fn salvage_log(damaged: &Path, scratch: &Path, progress: &mut dyn FnMut(u64)) -> Result<SalvagedLog, StorageError> {
    let staged = scratch.join("records");
    fs::create_dir_all(&staged).map_err(|error| failed("make", &staged, &error))?;
    let mut heap = Heap {
        records: FjallStorage::open(&staged)?,
        batch: WriteBatch::default(),
        damage: Vec::new(),
        found: 0,
        progress,
    };
    let store = damaged.join(TABLES);
    for table in files_in(&store.join(KEYSPACES).join(LOG_TABLE.to_string()).join("tables")) {
        let lone = scratch.join("table");
        let read = read_table(&table, &lone, &mut heap);
        // The next one gets a store of its own.
        let removed = fs::remove_dir_all(&lone);
        if let Some(why) = read? {
            // It was read in a place of our own, of which nobody has heard.
            heap.damaged(&table, why.replace(&format!("{}/", lone.display()), ""));
        }
        removed.map_err(|error| failed("remove", &lone, &error))?;
    }
    for journal in files_in(&store).into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "jnl")) {
        match read_journal(&journal, &mut heap) {
            Ok(done) => done?,
            // A sector that the disk does not give is damage as well.
            Err(error) => heap.damaged(&journal, error.to_string()),
        }
    }
    heap.write()?;
    heap.records.sync()?;
    let mark = intact_mark(&damaged.join(MARK));
    if mark.is_none() {
        heap.damaged(&damaged.join(MARK), "no copy of the high-water mark is intact");
    }
    Ok(SalvagedLog { records: heap.records, mark, damage: heap.damage })
}

/// The files in a folder, in the order of their numbers; none when it cannot be read.
fn files_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    let number = |path: &PathBuf| path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
    files.sort_by_key(number);
    files
}

/// Where intact records are put.
struct Heap<'a> {
    records: FjallStorage,
    batch: WriteBatch,
    damage: Vec<(String, String)>,
    found: u64,
    progress: &'a mut dyn FnMut(u64),
}

impl Heap<'_> {
    fn damaged(&mut self, file: &Path, why: impl Into<String>) {
        self.damage.push((file.display().to_string(), why.into()));
    }

    /// Takes a row of the log if it is a record. Whether it is.
    fn take(&mut self, key: &[u8], value: &[u8]) -> bool {
        let Ok(lsn) = lsn_of_key(key) else { return false };
        if Record::read(lsn, value).is_err() {
            return false;
        }
        self.batch.put(Keyspace::Log, log_key(lsn), value.to_vec());
        self.found += 1;
        true
    }

    /// The same for a row of a journal.
    fn take_item(&mut self, item: Item<'_>) -> bool {
        let Some(value) = item.value.filter(|_| item.table == LOG_TABLE) else { return true };
        match item.inflated {
            None => self.take(item.key, value),
            Some(length) if length <= VALUE_BYTES_MAX => match lz4_flex::decompress(value, length) {
                Ok(value) => self.take(item.key, &value),
                Err(_) => false,
            },
            Some(_) => false,
        }
    }

    fn page(&mut self) -> Result<(), StorageError> {
        if self.batch.rows.len() >= PAGE { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<(), StorageError> {
        (self.progress)(self.found);
        self.records.commit(std::mem::take(&mut self.batch), Durability::Buffered)
    }
}

/// Reads one journal. The inner error is of the heap, the outer one of the journal.
fn read_journal(path: &Path, heap: &mut Heap<'_>) -> std::io::Result<Result<(), StorageError>> {
    let mut journal = Journal::open(path)?;
    let (mut at, mut last) = (0, None);
    loop {
        let mut bad = 0;
        let found = journal.read(at, &mut |item| bad += u64::from(!heap.take_item(item)))?;
        if let Err(error) = heap.page() {
            return Ok(Err(error));
        }
        match found {
            Found::End => return Ok(Ok(())),
            Found::Batch(batch) => {
                if bad > 0 {
                    heap.damaged(path, format!("byte {at}: {bad} rows of the batch are no records"));
                }
                at = batch.end;
                last = Some(batch.seqno);
            }
            Found::Broken(broken) => {
                heap.damaged(path, format!("byte {}: {}", broken.at, broken.why));
                let next = journal.intact_after(broken.start, last)?;
                let until = next.ok().flatten().map(|batch| batch.start);
                journal.rows_between(broken.at, until, LOG_TABLE, &mut |item| heap.take_item(item))?;
                match until {
                    Some(next) => at = next,
                    None => return Ok(heap.page()),
                }
            }
        }
    }
}

/// Reads one table file as the only one of a store in the folder `lone`. Says why, if it cannot be read at all.
fn read_table(file: &Path, lone: &Path, heap: &mut Heap<'_>) -> Result<Option<String>, StorageError> {
    let error = |error: std::io::Error| failed("salvage", file, &error);
    fs::create_dir_all(lone).map_err(error)?;
    drop(FjallStorage::open(lone)?);
    let id = file.file_name().and_then(|name| name.to_str()?.parse::<u64>().ok());
    let Some(id) = id else { return Ok(Some("its name is no number".to_owned())) };
    let table = lone.join(TABLES).join(KEYSPACES).join(LOG_TABLE.to_string());
    let target = table.join("tables").join(id.to_string());
    // fjall never writes to a table file; where there are no links, a copy does.
    fs::hard_link(file, &target).or_else(|_| fs::copy(file, &target).map(|_| ())).map_err(error)?;
    let manifest = lone_table(&table, id)?;
    fs::write(table.join("v0"), &manifest).map_err(error)?;
    fs::write(table.join("current"), reference_to(0, &manifest)).map_err(error)?;
    let storage = match FjallStorage::open(lone) {
        Ok(storage) => storage,
        Err(full @ StorageError::Full(_)) => return Err(full),
        Err(error) => return Ok(Some(error.to_string())),
    };
    let (mut from, mut bad, mut steps) = (0, 0_u64, 0);
    loop {
        let mut failed_to_write = None;
        let read = storage.scan(Keyspace::Log, &log_key(Lsn(from)), &[0xff; 9], false, &mut |key, value| {
            bad += u64::from(!heap.take(key, value));
            from = lsn_of_key(key).map_or(from, |lsn| lsn.0).saturating_add(1);
            match heap.page() {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed_to_write = Some(error);
                    ControlFlow::Break(())
                }
            }
        });
        if let Some(error) = failed_to_write {
            return Err(error);
        }
        match read {
            Ok(()) => break,
            Err(error) if steps < STEPS_MAX => {
                // A block that does not read ends the scan; what is behind it is asked for position by position.
                if steps == 0 {
                    heap.damaged(file, format!("from record {from} on: {error}"));
                }
                from = from.saturating_add(1);
                steps += 1;
            }
            Err(error) => {
                heap.damaged(file, format!("given up at record {from}: {error}"));
                break;
            }
        }
    }
    if bad > 0 {
        heap.damaged(file, format!("{bad} rows are no records"));
    }
    Ok(None)
}
