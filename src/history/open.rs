//! Opening a store: find the log's end, check its tail, and hold the projections against it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::fold::index_key;
use super::reader::document_row;
use super::storage_id::settle_storage_id;
use super::{HistoryError, rebuild};
use crate::id::{Chain, DocumentId, Lsn, StorageId};
use crate::log::record::{Record, RecordError};
use crate::log::rows::{ProjectionRow, decode_row, encode_row};
use crate::log::{
    Keyspace, LogError, RecoverOptions, Recovered, Storage, StorageError, WriteBatch, log_key, lsn_of_key, recover,
};

/// The layout of the projections. Another number in the store means that they are made again from the log.
pub(super) const LAYOUT: u32 = 4;
pub(super) const PROJECTIONS_KEY: &[u8] = b"s:projections";
/// Under it stands the footer of the group that holds the newest checkpoint.
pub(crate) const CHECKPOINT_KEY: &[u8] = b"s:checkpoint";

/// A store that was opened and found whole.
#[derive(Debug)]
pub struct Opened {
    /// The log's end.
    pub recovered: Recovered,
    /// How many records were read to be sure.
    pub checked: u64,
    /// Whether the projections had to be made again.
    pub rebuilt: bool,
    /// Under which name automerge-repo's clients know the store.
    pub storage_id: StorageId,
}

/// Opens the store in `storage`: recovers the log, reads its tail from the newest checkpoint on, and rebuilds the
/// projections when one is missing or stale. `progress` is told of a rebuild: records done, and the last position.
///
/// # Errors
/// [`HistoryError`] when acknowledged records are missing or damaged; nothing was changed then.
///
/// # Cost
/// Reading at most `Limits::checkpoint_records` records and one group; a rebuild reads the whole log.
pub fn open(
    storage: &dyn Storage,
    options: RecoverOptions,
    progress: &mut dyn FnMut(u64, Lsn),
) -> Result<Opened, HistoryError> {
    recover_and_check(storage, options, progress).map_err(|error| match error {
        HistoryError::Storage(StorageError::Damaged(why))
        | HistoryError::Log(LogError::Storage(StorageError::Damaged(why))) => {
            StorageError::Damaged(with_files(storage, why)).into()
        }
        other => other,
    })
}

/// Adds the files that are damaged: a table that does not read does not say which of its files it was.
fn with_files(storage: &dyn Storage, why: String) -> String {
    let mut files = Vec::new();
    // The first error stands, whatever comes of looking closer.
    let _ = storage.check_files(&mut |file, fault| files.push(format!("{file}: {fault}")));
    if files.is_empty() { why } else { format!("{} ({why})", files.join("; ")) }
}

fn recover_and_check(
    storage: &dyn Storage,
    options: RecoverOptions,
    progress: &mut dyn FnMut(u64, Lsn),
) -> Result<Opened, HistoryError> {
    let recovered = recover(storage, options)?;
    let tail = recovered.tail.lsn;
    let mut rebuilt = false;
    let whole = projections_are_there(storage, tail)?;
    // What was lost from the log may have reached the other tables.
    if !whole || recovered.lost {
        tracing::warn!(%tail, "the projections are missing, of another layout, or ahead of a log that lost its tail; making them again from it");
        rebuild(storage, tail, progress)?;
        rebuilt = true;
    }
    let from = checkpoint(storage)?;
    let (checked, touched) = read_tail(storage, from)?;
    if let Some(why) = staleness(storage, &touched)? {
        tracing::warn!(%why, "a projection is stale; making all of them again from the log");
        rebuild(storage, tail, progress)?;
        rebuilt = true;
    }
    let storage_id = settle_storage_id(storage, recovered.tail.log_id)?;
    Ok(Opened { recovered, checked, rebuilt, storage_id })
}

fn projections_are_there(storage: &dyn Storage, tail: Lsn) -> Result<bool, HistoryError> {
    let expected = ProjectionRow { layout: LAYOUT, rebuilding: None };
    let row = storage.get(Keyspace::State, PROJECTIONS_KEY)?;
    let row = row.and_then(|bytes| decode_row::<ProjectionRow>(Keyspace::State, PROJECTIONS_KEY, &bytes).ok());
    if row.is_none() && tail == Lsn::ZERO {
        let mut batch = WriteBatch::default();
        batch.put(Keyspace::State, PROJECTIONS_KEY, encode_row(Keyspace::State, PROJECTIONS_KEY, &expected));
        storage.commit(batch, crate::log::Durability::Synced)?;
        return Ok(true);
    }
    Ok(row == Some(expected))
}

/// The footer behind the newest checkpoint, or the beginning.
fn checkpoint(storage: &dyn Storage) -> Result<Lsn, HistoryError> {
    let row = storage.get(Keyspace::State, CHECKPOINT_KEY)?;
    let lsn = row.and_then(|bytes| decode_row::<u64>(Keyspace::State, CHECKPOINT_KEY, &bytes).ok()).map(Lsn);
    let Some(lsn) = lsn else { return Ok(Lsn::ZERO) };
    // An old version of the row may have won; any footer will do, it only means reading more.
    let record = storage.get(Keyspace::Log, &log_key(lsn))?.map(|bytes| Record::read(lsn, &bytes));
    Ok(if matches!(record, Some(Ok(Record::Footer(_)))) { lsn } else { Lsn::ZERO })
}

/// The last record about each document in a stretch of the log.
type Touched = BTreeMap<DocumentId, Lsn>;

/// Reads every record after the footer `from`, follows the chain, and notes the last record about each document.
fn read_tail(storage: &dyn Storage, from: Lsn) -> Result<(u64, Touched), HistoryError> {
    let mut walk = Walk::from_footer(storage, from)?;
    let mut touched = Touched::new();
    walk_log(storage, from.next(), &mut walk, &mut |lsn, record| {
        if let Some(id) = record.document() {
            touched.insert(id, lsn);
        }
        Ok(())
    })?;
    Ok((walk.records, touched))
}

/// Why a document's rows do not follow from the log's tail, if one's do not.
fn staleness(storage: &dyn Storage, touched: &Touched) -> Result<Option<String>, HistoryError> {
    for (id, lsn) in touched {
        let row = storage.get(Keyspace::Docs, &id.0)?;
        let row = row.and_then(|bytes| document_row(&id.0, &bytes).ok()).map(|(_, row)| row);
        if row.map(|row| row.last_lsn) != Some(lsn.0) {
            return Ok(Some(format!("the row of {id} does not end at record {lsn}")));
        }
        if storage.get(Keyspace::DocIx, &index_key(*id, *lsn))?.is_none() {
            return Ok(Some(format!("the index of {id} lacks record {lsn}")));
        }
    }
    Ok(None)
}

/// A walk along the log: the chain so far, and the rules that each record must keep.
pub(super) struct Walk {
    chain: Chain,
    last: Lsn,
    group_first: Option<Lsn>,
    /// Records seen.
    pub(super) records: u64,
    /// Groups seen.
    pub(super) groups: u64,
}

impl Walk {
    /// Begins behind the footer `from`; at the beginning when it is zero.
    pub(super) fn from_footer(storage: &dyn Storage, from: Lsn) -> Result<Self, HistoryError> {
        let mut walk = Self { chain: Chain::default(), last: from, group_first: None, records: 0, groups: 0 };
        if from != Lsn::ZERO {
            let bytes = storage.get(Keyspace::Log, &log_key(from))?;
            let bytes = bytes.ok_or_else(|| HistoryError::Missing(format!("footer {from}")))?;
            match Record::read(from, &bytes).map_err(|error| LogError::Record { lsn: from, error })? {
                Record::Footer(footer) => walk.chain = Chain(footer.chain),
                _ => return Err(HistoryError::Missing(format!("footer {from}"))),
            }
        }
        Ok(walk)
    }

    /// Takes in one record.
    pub(super) fn step(&mut self, lsn: Lsn, bytes: &[u8]) -> Result<Record, LogError> {
        let broken = |why: String| LogError::Structure { lsn, why };
        let (record, chain) =
            Record::decode(lsn, bytes, self.chain).map_err(|error: RecordError| LogError::Record { lsn, error })?;
        if let Record::Gap(gap) = &record {
            if gap.last != self.last.0 || self.group_first.is_some() {
                return Err(broken(format!("the gap names record {} as the last, it is {}", gap.last, self.last)));
            }
        } else if lsn != self.last.next() {
            return Err(broken(format!(
                "records {} to {} are missing",
                self.last.next(),
                Lsn(lsn.0.saturating_sub(1))
            )));
        }
        let first = *self.group_first.get_or_insert(lsn);
        if let Record::Footer(footer) = &record {
            if footer.chain != chain.0 {
                return Err(LogError::Chain { lsn });
            }
            if footer.first != first.0 {
                return Err(broken(format!("the group is said to begin at {}, it begins at {first}", footer.first)));
            }
            self.group_first = None;
            self.groups += 1;
        }
        self.chain = chain;
        self.last = lsn;
        self.records += 1;
        Ok(record)
    }

    /// Skips what `step` refused, for a check that goes on to find every fault.
    pub(super) fn resume_after(&mut self, lsn: Lsn, record: Option<&Record>) {
        self.last = lsn;
        self.group_first.get_or_insert(lsn);
        if let Some(Record::Footer(footer)) = record {
            self.chain = Chain(footer.chain);
            self.group_first = None;
        }
    }

    /// Whether the walk is between two groups.
    pub(super) fn at_footer(&self) -> bool {
        self.group_first.is_none()
    }
}

/// Visits every record from `from` on, with the walk's rules.
pub(super) fn walk_log(
    storage: &dyn Storage,
    from: Lsn,
    walk: &mut Walk,
    visit: &mut dyn FnMut(Lsn, Record) -> Result<(), HistoryError>,
) -> Result<(), HistoryError> {
    let mut failed = None;
    storage.scan(Keyspace::Log, &log_key(from), &[0xff; 9], false, &mut |key, value| {
        let step = lsn_of_key(key).and_then(|lsn| Ok((lsn, walk.step(lsn, value)?)));
        let step = step.map_err(HistoryError::from).and_then(|(lsn, record)| visit(lsn, record));
        match step {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    failed.map_or(Ok(()), Err)
}
