//! Appending: records become commit groups, and a group is on the disk before anybody hears of it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::record::{FooterHeader, GapHeader, Record, RecordError};
use super::storage::{Durability, Keyspace, Storage, StorageError, TailMark, WriteBatch};
use crate::id::{Chain, LogCursor, LogId, Lsn};

/// Positions are reserved in blocks of this many, so that none is ever used twice, whatever a crash takes away.
pub const RESERVED_BLOCK: u64 = 1 << 20;

/// Why the log does not open or does not take a record.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The disk failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A record is not what was written.
    #[error("record {lsn}: {error}")]
    Record {
        /// Its position.
        lsn: Lsn,
        /// What is wrong.
        error: RecordError,
    },
    /// An earlier append failed: nobody can know what the disk holds until the log is opened again.
    #[error("the log takes no more writes since an append failed: {0}")]
    Poisoned(String),
    /// Records that were acknowledged are not there.
    #[error("the log ends at record {found}, but record {expected} was acknowledged: {why}")]
    TailLost {
        /// The last record found.
        found: Lsn,
        /// What the high-water mark promises.
        expected: Lsn,
        /// How it was noticed.
        why: String,
    },
    /// The chain of digests does not hold.
    #[error("record {lsn}: the chain digest does not match")]
    Chain {
        /// The footer that disagrees.
        lsn: Lsn,
    },
    /// A group does not end with a footer, or another structural rule is broken.
    #[error("record {lsn}: {why}")]
    Structure {
        /// Where.
        lsn: Lsn,
        /// What rule.
        why: String,
    },
}

/// The key of a record's row.
#[must_use]
pub fn log_key(lsn: Lsn) -> [u8; 8] {
    lsn.0.to_be_bytes()
}

/// Where the next record goes, and the digest that leads there. Pure: it assigns positions and never writes.
///
/// Invariant: `tail.lsn < next`; `chain` is the digest over everything below `next`.
#[derive(Debug, Clone)]
pub struct Appender {
    tail: LogCursor,
    next: Lsn,
    chain: Chain,
    clock_ms: u64,
}

/// Records and rows to be committed as one.
#[derive(Debug, Default)]
pub struct Group {
    /// What to write.
    pub batch: WriteBatch,
    first: Option<Lsn>,
    records: usize,
    bytes: usize,
}

/// A group with its footer: ready to be written.
#[derive(Debug)]
pub struct FinishedGroup {
    batch: WriteBatch,
    /// The cursor behind it.
    pub end: LogCursor,
}

impl Group {
    /// How many records it holds.
    #[must_use]
    pub fn records(&self) -> usize {
        self.records
    }

    /// How many bytes its records take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Appender {
    /// Appends after `tail`, with the first record at `next`. A difference is a gap, and the first record says so.
    #[must_use]
    pub fn new(tail: LogCursor, next: Lsn) -> Self {
        Self { tail, next, chain: tail.chain, clock_ms: 0 }
    }

    /// The last footer.
    #[must_use]
    pub fn tail(&self) -> LogCursor {
        self.tail
    }

    /// The position the next record will get.
    #[must_use]
    pub fn next(&self) -> Lsn {
        self.next
    }

    /// Our clock for records: `now_ms`, or the last value when the clock fell.
    pub fn clock(&mut self, now_ms: u64) -> u64 {
        self.clock_ms = self.clock_ms.max(now_ms);
        self.clock_ms
    }

    /// Starts a group. After an unclean stop the first one begins with the `gap` record.
    #[must_use]
    pub fn begin(&mut self) -> Group {
        let mut group = Group::default();
        if self.next > self.tail.lsn.next() && !mutant!(GapRecordOmitted) {
            let last = self.tail.lsn.0;
            self.push(&mut group, &Record::Gap(GapHeader { last }));
        }
        group
    }

    /// Puts `record` at the next position of `group`.
    pub fn push(&mut self, group: &mut Group, record: &Record) -> Lsn {
        let lsn = self.next;
        let (bytes, chain) = record.encode(lsn, self.chain);
        group.first.get_or_insert(lsn);
        group.records += 1;
        group.bytes += bytes.len();
        group.batch.put(Keyspace::Log, log_key(lsn), bytes);
        if !mutant!(ChainNotAdvanced) {
            self.chain = chain;
        }
        self.next = lsn.next();
        lsn
    }

    /// Ends `group` with its footer; `None` when it holds no record.
    pub fn finish(&mut self, mut group: Group, now_ms: u64) -> Option<FinishedGroup> {
        let first = group.first?;
        let written_ms = self.clock(now_ms);
        let footer = Record::Footer(FooterHeader { first: first.0, chain: self.chain.0, written_ms });
        let lsn = self.push(&mut group, &footer);
        self.tail = LogCursor { log_id: self.tail.log_id, lsn, chain: self.chain };
        Some(FinishedGroup { batch: group.batch, end: self.tail })
    }
}

/// The appending end of a log. There is one, owned by the writer.
pub struct Log {
    storage: Arc<dyn Storage>,
    durability: Durability,
    mark: TailMark,
    mark_synced: bool,
    poisoned: Option<String>,
    failed: Arc<AtomicBool>,
}

impl Log {
    /// Takes over a recovered log.
    #[must_use]
    pub fn new(storage: Arc<dyn Storage>, durability: Durability, recovered: &Recovered) -> Self {
        Self {
            storage,
            durability,
            mark: recovered.mark,
            mark_synced: true,
            poisoned: None,
            failed: Arc::new(AtomicBool::new(false)),
        }
    }

    /// A flag that is up once the log takes no more writes.
    #[must_use]
    pub fn failed(&self) -> Arc<AtomicBool> {
        self.failed.clone()
    }

    /// Writes `group`, waits as the database's durability says, and moves the high-water mark.
    ///
    /// # Errors
    /// [`LogError::Poisoned`] after any failure: what the disk holds is then unknown.
    ///
    /// # Cost
    /// One sync of the journal whatever the group's size, one small write of the mark; once in 2^20 records, one sync
    /// of the mark.
    pub fn commit(&mut self, group: FinishedGroup) -> Result<LogCursor, LogError> {
        self.check()?;
        let end = group.end;
        let mark = TailMark {
            lsn: end.lsn,
            chain: end.chain,
            closed: false,
            buffered: self.mark.buffered || self.durability == Durability::Buffered,
            ..self.mark
        };
        let written = self.reserve(end.lsn).and_then(|()| {
            let durability = if mutant!(AckBeforeSync) { Durability::Buffered } else { self.durability };
            self.storage.commit(group.batch, durability)?;
            // Before anybody is told: damage to the journal's tail after a kill is then always noticed.
            let mark = TailMark { reserved: self.mark.reserved, ..mark };
            self.storage.write_mark(&mark, false)?;
            self.mark = mark;
            self.mark_synced = false;
            Ok(())
        });
        written.map_err(|error| self.poison(&error))?;
        Ok(end)
    }

    /// Writes rows that are no records, such as a cursor, without waiting for the disk.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn commit_rows(&mut self, batch: WriteBatch) -> Result<(), LogError> {
        self.check()?;
        self.storage.commit(batch, Durability::Buffered).map_err(|error| self.poison(&error))
    }

    /// Waits until everything written is on the disk, whatever the database's durability.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn sync(&mut self) -> Result<(), LogError> {
        self.check()?;
        self.storage.sync().map_err(|error| self.poison(&error))
    }

    /// Syncs the high-water mark if it moved since the last time. To be called about once a second.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn sync_mark(&mut self) -> Result<(), LogError> {
        if self.mark_synced || self.poisoned.is_some() {
            return Ok(());
        }
        let mark = self.mark;
        self.storage.write_mark(&mark, true).map_err(|error| self.poison(&error))?;
        self.mark_synced = true;
        Ok(())
    }

    /// Notes that the log was closed in order, which saves the next open a gap. Correctness does not need it.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn close(&mut self) -> Result<(), LogError> {
        self.check()?;
        self.storage.sync().map_err(|error| self.poison(&error))?;
        self.mark.closed = true;
        self.mark_synced = false;
        self.sync_mark()
    }

    fn reserve(&mut self, last: Lsn) -> Result<(), StorageError> {
        // A log opened after an orderly close is open again from its first record on, and its mark must say so.
        if last < self.mark.reserved && !self.mark.closed {
            return Ok(());
        }
        let reserved = Lsn(last.0.saturating_add(RESERVED_BLOCK).max(self.mark.reserved.0));
        // Synced with the reservation, hence before the first record: a power cut must find a buffered log to be one.
        let buffered = self.mark.buffered || self.durability == Durability::Buffered;
        let mark = TailMark { reserved, closed: false, buffered, ..self.mark };
        self.storage.write_mark(&mark, true)?;
        self.mark = mark;
        Ok(())
    }

    fn check(&self) -> Result<(), LogError> {
        match &self.poisoned {
            Some(why) => Err(LogError::Poisoned(why.clone())),
            None => Ok(()),
        }
    }

    fn poison(&mut self, error: &StorageError) -> LogError {
        let why = error.to_string();
        tracing::error!(%why, "an append failed; the log takes no more writes");
        self.poisoned = Some(why.clone());
        self.failed.store(true, Ordering::Release);
        LogError::Poisoned(why)
    }
}

/// What a log looked like when it was opened.
#[derive(Debug, Clone, Copy)]
pub struct Recovered {
    /// The last footer.
    pub tail: LogCursor,
    /// Where the next record goes.
    pub next: Lsn,
    /// The mark as it stands now.
    mark: TailMark,
    /// The log got a new id: cursors on the old one are void.
    pub renewed: bool,
    /// Records are missing, and that was accepted: other tables may still speak of them.
    pub lost: bool,
}

/// What may be lost when a log is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct RecoverOptions {
    /// Go on, under a new log id, when acknowledged records are missing.
    pub accept_tail_loss: bool,
    /// The store is a restored copy: it gets a new log id.
    pub restored: bool,
}

/// Finds the end of the log and holds it against the high-water mark.
///
/// # Errors
/// [`LogError::TailLost`] when acknowledged records are missing and that was not accepted; [`LogError`] for damage.
pub fn recover(storage: &dyn Storage, options: RecoverOptions) -> Result<Recovered, LogError> {
    let mark = match storage.read_mark() {
        Ok(mark) => mark,
        Err(StorageError::Damaged(why)) if options.accept_tail_loss => {
            tracing::error!(%why, "the high-water mark is damaged; going on under a new log id");
            None
        }
        Err(error) => return Err(error.into()),
    };
    let end = last_footer(storage)?;
    let Some(mark) = mark else {
        return recover_without_mark(storage, end, options);
    };
    let (found, chain) = end.unwrap_or((Lsn::ZERO, Chain::default()));
    let lost = tail_loss(storage, &mark, found)?;
    let unclean_buffered = mark.buffered && !mark.closed;
    if let Some(why) = &lost
        && !options.accept_tail_loss
        && !unclean_buffered
    {
        return Err(LogError::TailLost { found, expected: mark.lsn, why: why.clone() });
    }
    let renewed = lost.is_some() || unclean_buffered || options.restored;
    let log_id = if renewed { LogId::random() } else { mark.log_id };
    if renewed {
        tracing::warn!(%log_id, lost = ?lost, "the log goes on under a new id; peers compare documents instead of positions");
    }
    let next = if mark.closed && lost.is_none() { found.next() } else { Lsn(mark.reserved.0.max(found.next().0)) };
    if renewed {
        forget_followed(storage)?;
    }
    let mark = TailMark { log_id, lsn: found, chain, reserved: next, closed: false, buffered: false };
    storage.write_mark(&mark, true)?;
    let lost = lost.is_some();
    Ok(Recovered { tail: LogCursor { log_id, lsn: found, chain }, next, mark, renewed, lost })
}

fn recover_without_mark(
    storage: &dyn Storage,
    end: Option<(Lsn, Chain)>,
    options: RecoverOptions,
) -> Result<Recovered, LogError> {
    let (found, chain) = end.unwrap_or((Lsn::ZERO, Chain::default()));
    if end.is_some() && !options.accept_tail_loss {
        let why = "there is no high-water mark to hold the log against".to_owned();
        return Err(LogError::TailLost { found, expected: found, why });
    }
    let log_id = LogId::random();
    // Without a mark nobody knows which positions were used: begin well above.
    let next = if end.is_some() { Lsn(found.0.saturating_add(RESERVED_BLOCK)) } else { found.next() };
    let renewed = end.is_some();
    if renewed {
        forget_followed(storage)?;
    }
    let mark = TailMark { log_id, lsn: found, chain, reserved: next, closed: false, buffered: false };
    storage.write_mark(&mark, true)?;
    Ok(Recovered { tail: LogCursor { log_id, lsn: found, chain }, next, mark, renewed, lost: renewed })
}

/// Forgets how far other logs were followed: a log that lost records lacks some that it brought to others, and a cursor
/// on theirs does not bring those back. Before the log gets its new id, so that a crash in between forgets too.
fn forget_followed(storage: &dyn Storage) -> Result<(), StorageError> {
    let mut batch = WriteBatch::default();
    storage.scan(Keyspace::State, b"p", b"q", false, &mut |key, _| {
        batch.remove(Keyspace::State, key);
        ControlFlow::Continue(())
    })?;
    if batch.rows.is_empty() { Ok(()) } else { storage.commit(batch, Durability::Synced) }
}

/// How the log falls short of its mark, if it does.
fn tail_loss(storage: &dyn Storage, mark: &TailMark, found: Lsn) -> Result<Option<String>, LogError> {
    if mark.lsn == Lsn::ZERO {
        return Ok(None);
    }
    if found < mark.lsn {
        return Ok(Some("the records after it are gone".into()));
    }
    let Some(bytes) = storage.get(Keyspace::Log, &log_key(mark.lsn))? else {
        return Ok(Some("that record is not there".into()));
    };
    let record = Record::read(mark.lsn, &bytes).map_err(|error| LogError::Record { lsn: mark.lsn, error })?;
    Ok(match record {
        Record::Footer(footer) if footer.chain == mark.chain.0 => None,
        _ => Some("another record stands in its place".into()),
    })
}

/// The last record's position and chain digest; the last record must be a footer, since groups are atomic.
fn last_footer(storage: &dyn Storage) -> Result<Option<(Lsn, Chain)>, LogError> {
    let mut last = None;
    storage.scan(Keyspace::Log, &[], &[0xff; 9], true, &mut |key, value| {
        last = Some((key.to_vec(), value.to_vec()));
        ControlFlow::Break(())
    })?;
    let Some((key, value)) = last else {
        return Ok(None);
    };
    let lsn = lsn_of_key(&key)?;
    match Record::read(lsn, &value).map_err(|error| LogError::Record { lsn, error })? {
        Record::Footer(footer) => Ok(Some((lsn, Chain(footer.chain)))),
        _ => Err(LogError::Structure { lsn, why: "the last commit group has no footer".into() }),
    }
}

/// Reads a row's key back as a position.
///
/// # Errors
/// [`LogError::Structure`] when it is none.
pub fn lsn_of_key(key: &[u8]) -> Result<Lsn, LogError> {
    let bytes = key.try_into().map_err(|_| LogError::Structure {
        lsn: Lsn::ZERO,
        why: format!("a row of the log has a key of {} bytes", key.len()),
    })?;
    Ok(Lsn(u64::from_be_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::memory::MemoryStorage;

    fn open(storage: &MemoryStorage, durability: Durability) -> (Appender, Log, Recovered) {
        let recovered = recover(storage, RecoverOptions::default()).unwrap();
        let log = Log::new(Arc::new(storage.clone()), durability, &recovered);
        (Appender::new(recovered.tail, recovered.next), log, recovered)
    }

    fn append(appender: &mut Appender, log: &mut Log) -> Result<LogCursor, LogError> {
        let mut group = appender.begin();
        appender.push(&mut group, &Record::Checkpoint);
        log.commit(appender.finish(group, 1).unwrap())
    }

    #[test]
    fn positions_go_on_after_a_close_and_jump_a_block_after_a_kill() {
        let storage = MemoryStorage::new();
        let (mut appender, mut log, _) = open(&storage, Durability::Synced);
        assert_eq!(append(&mut appender, &mut log).unwrap().lsn, Lsn(2));
        log.close().unwrap();
        let (mut appender, mut log, recovered) = open(&storage, Durability::Synced);
        assert!(!recovered.renewed);
        assert_eq!(append(&mut appender, &mut log).unwrap().lsn, Lsn(4), "no gap");
        let (mut appender, mut log, recovered) = open(&storage.killed(), Durability::Synced);
        assert!(!recovered.renewed);
        let end = append(&mut appender, &mut log).unwrap();
        assert!(end.lsn.0 > RESERVED_BLOCK, "{end:?}");
        assert_eq!(appender.next(), end.lsn.next());
    }

    #[test]
    fn a_lost_tail_is_refused_and_accepted_only_under_a_new_id() {
        let storage = MemoryStorage::new();
        let (mut appender, mut log, first) = open(&storage, Durability::Synced);
        append(&mut appender, &mut log).unwrap();
        let end = append(&mut appender, &mut log).unwrap();
        for lsn in [end.lsn.0, end.lsn.0 - 1] {
            storage.tamper(Keyspace::Log, &log_key(Lsn(lsn)), None);
        }
        let lost = recover(&storage, RecoverOptions::default());
        assert!(matches!(lost, Err(LogError::TailLost { found: Lsn(2), expected: Lsn(4), .. })), "{lost:?}");
        let recovered = recover(&storage, RecoverOptions { accept_tail_loss: true, restored: false }).unwrap();
        assert!(recovered.renewed && recovered.tail.log_id != first.tail.log_id);
        assert!(recovered.next.0 >= RESERVED_BLOCK, "no position is used twice");
    }

    #[test]
    fn a_buffered_log_is_another_log_after_an_unclean_stop() {
        let storage = MemoryStorage::new();
        let (mut appender, mut log, first) = open(&storage, Durability::Buffered);
        append(&mut appender, &mut log).unwrap();
        let (_, _, recovered) = open(&storage.killed(), Durability::Buffered);
        assert!(recovered.renewed && recovered.tail.log_id != first.tail.log_id);
        // The mark was not synced since the first record: the reservation before it tells.
        for kept in 0..=storage.unsynced_batches() {
            let (_, _, recovered) = open(&storage.crashed(kept), Durability::Buffered);
            assert!(recovered.renewed && recovered.tail.log_id != first.tail.log_id, "{kept} batches kept");
        }
        log.close().unwrap();
        let (_, _, recovered) = open(&storage, Durability::Buffered);
        assert_eq!(recovered.tail.log_id, first.tail.log_id);
    }

    #[test]
    fn a_log_with_a_new_id_forgets_how_far_it_followed_others() {
        let storage = MemoryStorage::new();
        let (mut appender, mut log, _) = open(&storage, Durability::Synced);
        append(&mut appender, &mut log).unwrap();
        let mut batch = WriteBatch::default();
        batch.put(Keyspace::State, b"p and a peer".as_slice(), vec![1]);
        storage.commit(batch, Durability::Synced).unwrap();
        let followed = || storage.get(Keyspace::State, b"p and a peer").unwrap();
        recover(&storage, RecoverOptions::default()).unwrap();
        assert!(followed().is_some(), "the same log goes on");
        let restored = recover(&storage, RecoverOptions { accept_tail_loss: false, restored: true }).unwrap();
        assert!(restored.renewed && followed().is_none());
    }

    #[test]
    fn a_failed_append_poisons() {
        let storage = MemoryStorage::new();
        let (mut appender, mut log, _) = open(&storage, Durability::Synced);
        storage.fail_after(0);
        assert!(matches!(append(&mut appender, &mut log), Err(LogError::Poisoned(_))));
        storage.fail_after(99);
        assert!(matches!(append(&mut appender, &mut log), Err(LogError::Poisoned(_))));
        assert!(log.failed().load(Ordering::Acquire));
    }
}
