//! Durable ingest: producers that each write to a document of their own and wait for the disk after every change,
//! beside a bare file that takes the same bytes with the same number of syncs in the same run.
//!
//! `edit`: each producer edits the open document. `prepared`: each offers changes that were made before, as those of a
//! peer or a client are; what is measured then is the log alone. Producers are tasks on two threads.
//!
//! The bytes are keys and values of every row that the engine wrote with a commit group, records and projections. The
//! bare file is preallocated and written from one thread: for each group one write and one `fdatasync`. Rounds of the
//! two alternate. `store alone`: the groups of one more round, given to an empty store of the same kind by one thread
//! that does nothing else: what is left when the engine costs nothing.
//! Arguments choose some: `cargo bench --bench ingest -- prepared 256`.
#![allow(clippy::unwrap_used, reason = "a measurement that fails shall stop")]

mod common;

use std::io::{Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Counting, fresh_folder, median, micros, process_time, rows};
use tidelog::document::{EditOptions, View, ViewError};
use tidelog::id::ActorId;
use tidelog::log::{Durability, FjallStorage, Storage, WriteBatch};
use tidelog::{Change, Database, DocHandle};
use tokio::runtime::Runtime;

const ROUNDS: usize = 5;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Edit,
    Prepared,
}

impl Mode {
    fn named(name: &str) -> Option<Self> {
        match name {
            "edit" => Some(Self::Edit),
            "prepared" => Some(Self::Prepared),
            _ => None,
        }
    }
}

/// A document and the changes that are offered for it.
struct Producer {
    document: DocHandle,
    prepared: Vec<Change>,
}

fn main() {
    let chosen: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let modes: Vec<Mode> = std::env::args().filter_map(|argument| Mode::named(&argument)).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    println!("durable ingest, {ROUNDS} rounds, medians");
    println!(
        "{:>9} {:>9} {:>8} {:>10} {:>12} {:>6} {:>7} {:>10} {:>10} {:>10} {:>12} {:>12}",
        "",
        "producers",
        "changes",
        "changes/s",
        "bare file/s",
        "ratio",
        "groups",
        "per group",
        "bytes/chg",
        "cpu us/chg",
        "bare us/sync",
        "store alone/s"
    );
    for mode in [Mode::Edit, Mode::Prepared] {
        for (producers, changes) in [(1, 500), (16, 400), (256, 100)] {
            let wanted = modes.is_empty() || modes.contains(&mode);
            if wanted && (chosen.is_empty() || chosen.contains(&producers)) {
                measure(&runtime, mode, producers, changes);
            }
        }
    }
}

fn measure(runtime: &Runtime, mode: Mode, producers: usize, each: usize) {
    let folder = fresh_folder("ingest");
    let storage = Counting::new(FjallStorage::open(&folder).unwrap());
    let (counted, kept) = (storage.groups.clone(), storage.kept.clone());
    let database = Database::on(storage).open().unwrap();
    let mut all = prepare(&database, mode, producers, each * (ROUNDS + 1));
    let total = producers * each;
    let (mut ours, mut bare, mut ratios, mut cpus, mut syncs) = (vec![], vec![], vec![], vec![], vec![]);
    let mut groups = Vec::new();
    for round in 0..ROUNDS {
        counted.lock().unwrap().clear();
        let (time, cpu) = produce(runtime, &database, &mut all, each, round * each);
        groups = std::mem::take(&mut *counted.lock().unwrap());
        let (bare_time, bare_cpu) = bare_file(&folder, &groups);
        ours.push(total as f64 / time.as_secs_f64());
        bare.push(total as f64 / bare_time.as_secs_f64());
        ratios.push(bare_time.as_secs_f64() / time.as_secs_f64());
        cpus.push(micros(cpu) / total as f64);
        syncs.push(micros(bare_cpu) / groups.len() as f64);
    }
    *kept.lock().unwrap() = Some(Vec::new());
    produce(runtime, &database, &mut all, each, ROUNDS * each);
    let batches = kept.lock().unwrap().take().unwrap();
    let alone = total as f64 / store_alone(&folder, batches).as_secs_f64();
    println!(
        "{:>9} {producers:>9} {total:>8} {:>10.0} {:>12.0} {:>6.2} {:>7} {:>10.1} {:>10.0} {:>10.1} {:>12.1} {alone:>12.0}",
        if mode == Mode::Edit { "edit" } else { "prepared" },
        median(ours),
        median(bare),
        median(ratios),
        groups.len(),
        total as f64 / groups.len() as f64,
        groups.iter().sum::<usize>() as f64 / total as f64,
        median(cpus),
        median(syncs),
    );
}

/// Gives commit groups to an empty store, one after the other.
fn store_alone(folder: &Path, batches: Vec<WriteBatch>) -> Duration {
    let path = folder.join("alone");
    std::fs::create_dir(&path).unwrap();
    let store = FjallStorage::open(&path).unwrap();
    let began = Instant::now();
    for batch in batches {
        store.commit(batch, Durability::Synced).unwrap();
    }
    began.elapsed()
}

fn prepare(database: &Database, mode: Mode, producers: usize, changes: usize) -> Vec<Producer> {
    let notes = database.collection("notes").unwrap();
    let made: Vec<_> = (0..producers).map(|_| notes.create(serde_json::json!({ "text": "" })).unwrap()).collect();
    made.into_iter()
        .map(|(document, created)| {
            created.wait().unwrap();
            let prepared = match mode {
                Mode::Edit => Vec::new(),
                Mode::Prepared => typed(&document, changes),
            };
            Producer { document, prepared }
        })
        .collect()
}

/// Keystrokes made elsewhere on top of the document, the last one first.
fn typed(document: &DocHandle, count: usize) -> Vec<Change> {
    let bytes = document.with_view(|view| Ok(view.save()?)).unwrap();
    let (mut view, actor) = (View::load(&bytes).unwrap(), ActorId::random());
    let mut changes: Vec<Change> = (0..count)
        .map(|at| {
            let options = EditOptions { actor: actor.clone(), time: 0, message: None };
            let edited = view.edit(options, |edit| -> Result<(), ViewError> { edit.splice("text", at, 0, "x") });
            edited.unwrap().1.unwrap()
        })
        .collect();
    changes.reverse();
    changes
}

/// Runs one task for each producer. The time until the last is done, and the processor time of all threads.
fn produce(
    runtime: &Runtime,
    database: &Database,
    producers: &mut [Producer],
    each: usize,
    at: usize,
) -> (Duration, Duration) {
    let (began, cpu) = (Instant::now(), process_time());
    let tasks: Vec<_> = producers
        .iter_mut()
        .map(|producer| {
            let (database, document) = (database.clone(), producer.document.clone());
            let rest = producer.prepared.len().saturating_sub(each);
            let mut prepared = producer.prepared.split_off(rest);
            runtime.spawn(async move {
                for n in 0..each {
                    match prepared.pop() {
                        Some(change) => {
                            let admitted = database.admit(rows(document.id(), &[change]), None, None).await.unwrap();
                            assert_eq!(admitted.accepted, 1, "{admitted:?}");
                        }
                        None => {
                            let commit = document.change(|edit| Ok(edit.splice("text", at + n, 0, "x")?)).unwrap();
                            commit.await.unwrap();
                        }
                    }
                }
            })
        })
        .collect();
    runtime.block_on(async {
        for task in tasks {
            task.await.unwrap();
        }
    });
    (began.elapsed(), process_time() - cpu)
}

/// Writes the same groups to a preallocated file.
fn bare_file(folder: &Path, groups: &[usize]) -> (Duration, Duration) {
    let path = folder.join("bare");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&vec![0; groups.iter().sum()]).unwrap();
    file.sync_all().unwrap();
    file.rewind().unwrap();
    let bytes = vec![0x5a; groups.iter().copied().max().unwrap_or(0)];
    let (began, cpu) = (Instant::now(), process_time());
    for group in groups {
        file.write_all(&bytes[..*group]).unwrap();
        file.sync_data().unwrap();
    }
    let taken = (began.elapsed(), process_time() - cpu);
    std::fs::remove_file(&path).unwrap();
    taken
}
