//! A disk that does what real ones do when the power goes, and says at once when something is written that may not be.
//!
//! A batch is whole or not at all, as with a journal whose entries have checksums. What was written and not synced is
//! lost from some point on at a power cut (and never at the end of the process). Each call may be the one at which the
//! power goes or an error comes; the caller arms that with [`SimDisk::arm`].

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, Mutex, MutexGuard};

use tidelog::log::{Durability, Keyspace, Storage, StorageError, TailMark, WriteBatch};

type Value = Arc<Vec<u8>>;
type Table = BTreeMap<Vec<u8>, Value>;

/// What is to happen at a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The power goes before anything of it is written.
    PowerBefore,
    /// The power goes when it is written and not synced.
    PowerBeforeSync,
    /// The power goes when it is on the disk and nobody heard of it.
    PowerAfterSync,
    /// It fails, and nothing of it is there.
    WriteError,
    /// It fails, and all of it is there.
    WriteErrorApplied,
    /// It is written, the sync fails, and nobody knows.
    SyncError,
    /// No room is left.
    Full,
}

#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    tables: [Table; 8],
    /// How to undo each batch since the last sync, oldest first.
    undo: Vec<Vec<(usize, Vec<u8>, Option<Value>)>>,
    mark: Option<TailMark>,
    synced_mark: Option<TailMark>,
    armed: Option<(u64, Fault)>,
    /// The power is gone.
    dead: bool,
    /// Writes fail until it is opened again.
    failing: bool,
    free: Option<u64>,
    /// The last position in the log, and what was wrong with one.
    last: u64,
    wrong: Option<String>,
}

/// What is on a disk, to be put on another one.
#[derive(Clone)]
pub struct Image {
    tables: [Table; 8],
    mark: Option<TailMark>,
}

const GAP: u8 = 5;
const FOOTER: u8 = 4;

impl SimDisk {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State::default())))
    }

    /// Lets the fault happen at the write after `writes` more.
    pub fn arm(&self, writes: u64, fault: Fault) {
        self.lock().armed = Some((writes, fault));
    }

    /// The power goes now.
    pub fn die(&self) {
        self.lock().dead = true;
    }

    /// Nothing breaks any more.
    pub fn disarm(&self) {
        self.lock().armed = None;
    }

    pub fn is_dead(&self) -> bool {
        self.lock().dead
    }

    pub fn is_failing(&self) -> bool {
        self.lock().failing
    }

    pub fn set_free(&self, free: Option<u64>) {
        self.lock().free = free;
    }

    pub fn unsynced(&self) -> usize {
        self.lock().undo.len()
    }

    /// What was written although it may not be.
    pub fn wrong(&self) -> Option<String> {
        self.lock().wrong.clone()
    }

    /// The power goes: the first `kept` unsynced batches are there, and the mark as synced or, if `mark_kept`, as
    /// written last. The disk can be used again.
    pub fn cut_power(&self, kept: usize, mark_kept: bool) {
        let mut disk = self.lock();
        while disk.undo.len() > kept {
            let Some(batch) = disk.undo.pop() else { break };
            for (table, key, value) in batch.into_iter().rev() {
                match value {
                    Some(value) => disk.tables[table].insert(key, value),
                    None => disk.tables[table].remove(&key),
                };
            }
        }
        if !mark_kept {
            disk.mark = disk.synced_mark;
        }
        disk.revive();
    }

    /// The process ended and a new one opens the store, which syncs it first.
    pub fn reopen(&self) {
        self.lock().revive();
    }

    /// What is on the disk for sure.
    pub fn image(&self) -> Image {
        let disk = self.lock();
        let mut tables = disk.tables.clone();
        for batch in disk.undo.iter().rev() {
            for (table, key, value) in batch.iter().rev() {
                match value {
                    Some(value) => tables[*table].insert(key.clone(), value.clone()),
                    None => tables[*table].remove(key),
                };
            }
        }
        Image { tables, mark: disk.synced_mark }
    }

    /// The disk with everything that was written.
    pub fn copy(&self) -> Self {
        let disk = self.lock();
        Self::of(Image { tables: disk.tables.clone(), mark: disk.mark })
    }

    pub fn of(image: Image) -> Self {
        let state = State { tables: image.tables, mark: image.mark, synced_mark: image.mark, ..State::default() };
        let disk = Self(Arc::new(Mutex::new(state)));
        disk.lock().revive();
        disk
    }

    /// The rows of a table that begin with `prefix`.
    pub fn rows(&self, keyspace: Keyspace, prefix: &[u8]) -> Vec<(Vec<u8>, Value)> {
        let disk = self.lock();
        let rows = disk.tables[keyspace as usize].range(prefix.to_vec()..);
        rows.take_while(|(key, _)| key.starts_with(prefix)).map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl State {
    fn revive(&mut self) {
        self.undo.clear();
        self.synced_mark = self.mark;
        (self.armed, self.dead, self.failing) = (None, false, false);
        let last = self.tables[Keyspace::Log as usize].last_key_value();
        self.last = last.map_or(0, |(key, _)| position(key));
    }

    fn refuse(&self) -> Result<(), StorageError> {
        match (self.dead, self.failing) {
            (true, _) => Err(io("the power is gone")),
            (_, true) => Err(io("the store failed before")),
            _ => Ok(()),
        }
    }

    /// The fault that is due now, if one is.
    fn fault(&mut self) -> Option<Fault> {
        let (left, fault) = self.armed.as_mut()?;
        if *left > 0 {
            *left -= 1;
            return None;
        }
        let fault = *fault;
        self.armed = None;
        Some(fault)
    }

    /// Writes what is synced at once: there is nothing to undo.
    fn apply_for_good(&mut self, batch: WriteBatch) {
        self.check(&batch);
        for (keyspace, key, value) in batch.rows {
            let table = &mut self.tables[keyspace as usize];
            match value {
                Some(value) => table.insert(key, Arc::new(value)),
                None => table.remove(&key),
            };
        }
        self.sync();
    }

    fn apply(&mut self, batch: WriteBatch) {
        self.check(&batch);
        let mut undo = Vec::with_capacity(batch.rows.len());
        for (keyspace, key, value) in batch.rows {
            let table = keyspace as usize;
            let before = match value {
                Some(value) => self.tables[table].insert(key.clone(), Arc::new(value)),
                None => self.tables[table].remove(&key),
            };
            undo.push((table, key, before));
        }
        self.undo.push(undo);
    }

    /// Holds the records of a batch against the rules: one after the other, a jump only behind a record that says so,
    /// a footer at the end.
    fn check(&mut self, batch: &WriteBatch) {
        let mut kind = FOOTER;
        let mut wrong = None;
        for (keyspace, key, value) in &batch.rows {
            let (Keyspace::Log, Some(value)) = (keyspace, value) else { continue };
            let lsn = position(key);
            kind = value[1];
            if lsn <= self.last || (lsn != self.last + 1 && kind != GAP) {
                wrong = Some(format!("record {lsn} was written after record {} without a gap record", self.last));
            }
            self.last = lsn;
        }
        if kind != FOOTER {
            wrong = Some(format!("the group that ends at record {} has no footer", self.last));
        }
        if self.wrong.is_none() {
            self.wrong = wrong;
        }
    }

    fn sync(&mut self) {
        self.undo.clear();
    }
}

fn position(key: &[u8]) -> u64 {
    key.try_into().map(u64::from_be_bytes).unwrap_or(0)
}

fn io(why: &str) -> StorageError {
    StorageError::Io { doing: "write".into(), why: why.into() }
}

impl Storage for SimDisk {
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.lock().tables[keyspace as usize].get(key).map(|value| value.to_vec()))
    }

    fn scan(
        &self,
        keyspace: Keyspace,
        from: &[u8],
        to: &[u8],
        descending: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        const PAGE: usize = 64;
        if from >= to {
            return Ok(());
        }
        let (mut from, mut to) = (Bound::Included(from.to_vec()), Bound::Excluded(to.to_vec()));
        let mut size = 2;
        loop {
            // Copied out page by page, so that a visitor may use the disk too.
            let page: Vec<(Vec<u8>, Value)> = {
                let disk = self.lock();
                let rows = disk.tables[keyspace as usize].range((from.clone(), to.clone()));
                let copy = |(key, value): (&Vec<u8>, &Value)| (key.clone(), value.clone());
                if descending { rows.rev().take(size).map(copy).collect() } else { rows.take(size).map(copy).collect() }
            };
            for (key, value) in &page {
                if visit(key, value).is_break() {
                    return Ok(());
                }
            }
            if page.len() < size {
                return Ok(());
            }
            size = PAGE;
            let Some((last, _)) = page.into_iter().next_back() else { return Ok(()) };
            *(if descending { &mut to } else { &mut from }) = Bound::Excluded(last);
        }
    }

    fn commit(&self, batch: WriteBatch, durability: Durability) -> Result<(), StorageError> {
        let mut disk = self.lock();
        disk.refuse()?;
        let fault = disk.fault();
        match fault {
            Some(Fault::PowerBefore) => {
                disk.dead = true;
                return Err(io("the power is gone"));
            }
            Some(Fault::WriteError) => {
                disk.failing = true;
                return Err(io("injected write error"));
            }
            Some(Fault::Full) => {
                disk.failing = true;
                return Err(StorageError::Full("injected".into()));
            }
            _ => {}
        }
        if fault.is_none() && durability == Durability::Synced {
            disk.apply_for_good(batch);
            return Ok(());
        }
        disk.apply(batch);
        match fault {
            Some(Fault::PowerBeforeSync) => {
                disk.dead = true;
                return Err(io("the power is gone"));
            }
            Some(Fault::WriteErrorApplied | Fault::SyncError) => {
                disk.failing = true;
                return Err(io("injected sync error"));
            }
            _ => {}
        }
        if durability == Durability::Synced {
            disk.sync();
        }
        if fault == Some(Fault::PowerAfterSync) {
            disk.dead = true;
            return Err(io("the power is gone"));
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StorageError> {
        let mut disk = self.lock();
        disk.refuse()?;
        disk.sync();
        Ok(())
    }

    fn read_mark(&self) -> Result<Option<TailMark>, StorageError> {
        Ok(self.lock().mark)
    }

    fn write_mark(&self, mark: &TailMark, sync: bool) -> Result<(), StorageError> {
        let mut disk = self.lock();
        disk.refuse()?;
        let fault = disk.fault();
        let power = matches!(fault, Some(Fault::PowerBefore | Fault::PowerBeforeSync | Fault::PowerAfterSync));
        if power {
            if fault != Some(Fault::PowerBefore) {
                disk.mark = Some(*mark);
            }
            disk.dead = true;
            return Err(io("the power is gone"));
        }
        if fault.is_some() {
            disk.failing = true;
            return Err(io("injected error at the mark"));
        }
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
