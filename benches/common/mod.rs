//! What the measurements share: real histories, clocks of the processor, a disk that counts, and tables.
#![allow(dead_code, reason = "each bench uses a part of it")]

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tidelog::engine::{Incoming, IncomingBody};
use tidelog::history::Origin;
use tidelog::log::record::Admission;
use tidelog::log::{Durability, FjallStorage, Keyspace, Storage, StorageError, TailMark, Visit, WriteBatch};
use tidelog::node::trace::{Patch, Trace, TraceChanges, TraceKind, TraceOptions, Transaction, traces_folder};
use tidelog::{Change, Database, DocHandle, DocumentId, NodeId};

/// Edits in the paper.
pub(crate) const PAPER_EDITS: usize = 259_778;

/// A fresh folder on the disk that holds the build, never in memory.
pub(crate) fn fresh_folder(name: &str) -> PathBuf {
    let folder = cached_folder(name);
    // It may be left from an interrupted run.
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// A folder there that outlives the run.
pub(crate) fn cached_folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("bench").join(name)
}

/// The changes of the paper, one a keystroke; of a generated text of the same length where the histories are absent.
pub(crate) fn paper() -> Vec<Change> {
    let file = traces_folder().unwrap().map(|folder| folder.join("sequential/automerge-paper.json.gz"));
    let trace = match file {
        Some(file) => Trace::read(&file).unwrap(),
        None => {
            println!("the editing histories are absent (TIDELOG_TRACES): a generated one is used instead");
            generated(PAPER_EDITS)
        }
    };
    let options = TraceOptions::default();
    let changes = TraceChanges::build(&trace, &options, &mut |_, _| {}).unwrap();
    changes.into_iter().map(|made| made.change).collect()
}

/// A history of runs of typing at places that jump about, with some deletions.
fn generated(edits: usize) -> Trace {
    let (mut random, mut text, mut at) = (0x2545_F491_4F6C_DD1D_u64, Vec::new(), 0);
    let mut transactions: Vec<Transaction> = Vec::with_capacity(edits);
    for n in 0..edits {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        if random.is_multiple_of(23) {
            at = random as usize / 64 % (text.len() + 1);
        }
        let delete = random % 10 < 3 && at > 0;
        let letter = char::from(b'a' + (random % 26) as u8);
        let patch = if delete {
            at -= 1;
            text.remove(at);
            Patch { position: at, deleted: 1, inserted: String::new() }
        } else {
            text.insert(at, letter);
            at += 1;
            Patch { position: at - 1, deleted: 0, inserted: letter.to_string() }
        };
        let parents = if n == 0 { Vec::new() } else { vec![n as u32 - 1] };
        transactions.push(Transaction { parents, agent: 0, time: None, patches: vec![patch] });
    }
    Trace {
        kind: TraceKind::Sequential,
        start_content: String::new(),
        end_content: text.into_iter().collect(),
        agents: 1,
        transactions,
    }
}

/// Rows as a peer would have sent them.
pub(crate) fn rows(document: DocumentId, changes: &[Change]) -> Vec<Incoming> {
    let origin =
        Origin { node: NodeId([7; 32]), principal: String::new(), admission: Admission::Structural, rules_version: 0 };
    let row = |change: &Change| Incoming {
        document,
        body: IncomingBody::Change(Box::new(change.clone())),
        origin: origin.clone(),
        signature: None,
    };
    changes.iter().map(row).collect()
}

/// A document in `database` with these changes.
pub(crate) fn import(database: &Database, id: DocumentId, changes: &[Change]) -> DocHandle {
    let document = database.collection("documents").unwrap().create_with_id(id).unwrap();
    for part in changes.chunks(1000) {
        let admitted = database.admit_blocking(rows(id, part)).unwrap();
        assert_eq!(admitted.accepted, part.len(), "{admitted:?}");
    }
    document
}

/// The processor time of this process so far, all threads.
pub(crate) fn process_time() -> Duration {
    since_zero(clock_gettime(ClockId::ProcessCPUTime))
}

/// The processor time of this thread so far.
pub(crate) fn thread_time() -> Duration {
    since_zero(clock_gettime(ClockId::ThreadCPUTime))
}

fn since_zero(time: rustix::time::Timespec) -> Duration {
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Waits until the process's own threads do nothing: snapshots are made, tables are merged.
pub(crate) fn settle() {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(60) {
        let before = process_time();
        std::thread::sleep(Duration::from_millis(200));
        if process_time() - before < Duration::from_millis(4) {
            return;
        }
    }
}

/// The middle one.
pub(crate) fn median<T: PartialOrd + Copy>(mut all: Vec<T>) -> T {
    all.sort_unstable_by(|a, b| a.partial_cmp(b).unwrap());
    all[all.len() / 2]
}

/// Microseconds.
pub(crate) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// A disk that notes how many bytes each synced commit brought.
pub(crate) struct Counting {
    disk: FjallStorage,
    /// Bytes of keys and values of each synced commit.
    pub(crate) groups: Arc<Mutex<Vec<usize>>>,
    /// The synced commits themselves, while somebody collects them.
    pub(crate) kept: Arc<Mutex<Option<Vec<WriteBatch>>>>,
}

impl Counting {
    pub(crate) fn new(disk: FjallStorage) -> Self {
        Self { disk, groups: Arc::default(), kept: Arc::default() }
    }
}

impl Storage for Counting {
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        self.disk.get(keyspace, key)
    }

    fn scan(
        &self,
        keyspace: Keyspace,
        from: &[u8],
        to: &[u8],
        descending: bool,
        visit: Visit<'_>,
    ) -> Result<(), StorageError> {
        self.disk.scan(keyspace, from, to, descending, visit)
    }

    fn commit(&self, batch: WriteBatch, durability: Durability) -> Result<(), StorageError> {
        if durability == Durability::Synced {
            let bytes =
                |(_, key, value): &(Keyspace, Vec<u8>, Option<Vec<u8>>)| key.len() + value.as_ref().map_or(0, Vec::len);
            self.groups.lock().unwrap().push(batch.rows.iter().map(bytes).sum());
            if let Some(kept) = &mut *self.kept.lock().unwrap() {
                kept.push(batch.clone());
            }
        }
        self.disk.commit(batch, durability)
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.disk.sync()
    }

    fn read_mark(&self) -> Result<Option<TailMark>, StorageError> {
        self.disk.read_mark()
    }

    fn write_mark(&self, mark: &TailMark, sync: bool) -> Result<(), StorageError> {
        self.disk.write_mark(mark, sync)
    }

    fn free_bytes(&self) -> Result<Option<u64>, StorageError> {
        self.disk.free_bytes()
    }
}
