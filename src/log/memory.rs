//! A disk in memory, with the faults of a real one: what was not synced is gone after a crash, and the n-th write fails.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};

use super::storage::{Durability, Keyspace, Storage, StorageError, TailMark, Visit, WriteBatch};

type Table = BTreeMap<(Keyspace, Vec<u8>), Vec<u8>>;
type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// Rows copied out at a time.
const PAGE: usize = 256;

/// A [`Storage`] in memory. Clones share it; [`MemoryStorage::crashed`] gives what a power cut would have left.
#[derive(Debug, Clone, Default)]
pub struct MemoryStorage {
    // Protects everything: one disk has one head.
    disk: Arc<Mutex<Disk>>,
}

#[derive(Debug, Clone, Default)]
struct Disk {
    rows: Table,
    mark: Option<TailMark>,
    /// Batches committed since the last sync, oldest first; a crash keeps a prefix of them.
    unsynced: Vec<WriteBatch>,
    synced_rows: Table,
    synced_mark: Option<TailMark>,
    fail_commit_in: Option<u64>,
    free: Option<u64>,
}

impl MemoryStorage {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The disk after a power cut that kept the first `kept` batches written since the last sync.
    ///
    /// The high-water mark survives as it was last synced.
    #[must_use]
    pub fn crashed(&self, kept: usize) -> Self {
        let disk = self.lock();
        let mut rows = disk.synced_rows.clone();
        for batch in disk.unsynced.iter().take(kept) {
            apply(&mut rows, batch);
        }
        let mark = disk.synced_mark;
        Self::holding(rows, mark)
    }

    /// The disk after the process was killed: the operating system still has every write.
    #[must_use]
    pub fn killed(&self) -> Self {
        let disk = self.lock();
        Self::holding(disk.rows.clone(), disk.mark)
    }

    fn holding(rows: Table, mark: Option<TailMark>) -> Self {
        let disk = Disk { synced_rows: rows.clone(), rows, synced_mark: mark, mark, ..Disk::default() };
        Self { disk: Arc::new(Mutex::new(disk)) }
    }

    /// How many batches a power cut now could lose.
    #[must_use]
    pub fn unsynced_batches(&self) -> usize {
        self.lock().unsynced.len()
    }

    /// Makes the commit after `commits` more of them fail, and every one after that.
    pub fn fail_after(&self, commits: u64) {
        self.lock().fail_commit_in = Some(commits);
    }

    /// Says how many bytes are left on the disk.
    pub fn set_free_bytes(&self, free: Option<u64>) {
        self.lock().free = free;
    }

    /// Changes one stored value behind the log's back.
    pub fn tamper(&self, keyspace: Keyspace, key: &[u8], value: Option<Vec<u8>>) {
        let mut batch = WriteBatch::default();
        batch.rows.push((keyspace, key.to_vec(), value));
        let mut disk = self.lock();
        apply(&mut disk.rows, &batch);
        apply(&mut disk.synced_rows, &batch);
    }

    /// Up to [`PAGE`] rows between two keys; `None` when nothing can be between them.
    fn page(&self, keyspace: Keyspace, from: &Bound<Vec<u8>>, to: &Bound<Vec<u8>>, descending: bool) -> Option<Rows> {
        let (Bound::Included(first) | Bound::Excluded(first), Bound::Excluded(end)) = (from, to) else { return None };
        if first >= end {
            return None;
        }
        let disk = self.lock();
        let within = |bound: &Bound<Vec<u8>>| bound.clone().map(|key| (keyspace, key));
        let rows = disk.rows.range((within(from), within(to)));
        let copy = |(key, value): (&(Keyspace, Vec<u8>), &Vec<u8>)| (key.1.clone(), value.clone());
        Some(if descending { rows.rev().take(PAGE).map(copy).collect() } else { rows.take(PAGE).map(copy).collect() })
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn apply(rows: &mut Table, batch: &WriteBatch) {
    for (keyspace, key, value) in &batch.rows {
        match value {
            Some(value) => rows.insert((*keyspace, key.clone()), value.clone()),
            None => rows.remove(&(*keyspace, key.clone())),
        };
    }
}

impl Storage for MemoryStorage {
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.lock().rows.get(&(keyspace, key.to_vec())).cloned())
    }

    fn scan(
        &self,
        keyspace: Keyspace,
        from: &[u8],
        to: &[u8],
        descending: bool,
        visit: Visit<'_>,
    ) -> Result<(), StorageError> {
        let (mut from, mut to) = (Bound::Included(from.to_vec()), Bound::Excluded(to.to_vec()));
        // Page by page, so that a visitor may use the disk too.
        while let Some(page) = self.page(keyspace, &from, &to, descending) {
            let Some((last, _)) = page.last().cloned() else { break };
            if page.iter().any(|(key, value)| visit(key, value).is_break()) {
                break;
            }
            *(if descending { &mut to } else { &mut from }) = Bound::Excluded(last);
        }
        Ok(())
    }

    fn commit(&self, batch: WriteBatch, durability: Durability) -> Result<(), StorageError> {
        let mut disk = self.lock();
        if let Some(left) = &mut disk.fail_commit_in {
            if *left == 0 {
                return Err(StorageError::Io { doing: "commit".into(), why: "injected fault".into() });
            }
            *left -= 1;
        }
        apply(&mut disk.rows, &batch);
        disk.unsynced.push(batch);
        if durability == Durability::Synced {
            disk.sync_rows();
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.lock().sync_rows();
        Ok(())
    }

    fn read_mark(&self) -> Result<Option<TailMark>, StorageError> {
        Ok(self.lock().mark)
    }

    fn write_mark(&self, mark: &TailMark, sync: bool) -> Result<(), StorageError> {
        let mut disk = self.lock();
        disk.mark = Some(*mark);
        if sync {
            disk.synced_mark = disk.mark;
        }
        Ok(())
    }

    fn free_bytes(&self) -> Result<Option<u64>, StorageError> {
        Ok(self.lock().free)
    }
}

impl Disk {
    fn sync_rows(&mut self) {
        for batch in std::mem::take(&mut self.unsynced) {
            apply(&mut self.synced_rows, &batch);
        }
    }
}
