//! Durable ingest: producers that each edit a document of their own and wait for the disk after every edit, beside a
//! bare file that takes the same bytes with the same number of syncs in the same run.
//!
//! The bytes are keys and values of every row that the engine wrote with a commit group, records and projections. The
//! bare file is preallocated and written from one thread: for each group one write and one `fdatasync`.
#![allow(clippy::unwrap_used, reason = "a measurement that fails shall stop")]

mod common;

use std::io::{Seek, Write};
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use common::{Counting, fresh_folder, median};
use tidelog::{Database, DocHandle};
use tidelog::log::FjallStorage;

const ROUNDS: usize = 5;

/// What one round of the engine came to.
struct Round {
    changes: usize,
    cpu: Duration,
    groups: Vec<usize>,
}

fn main() {
    println!("durable ingest: each producer edits its document and waits for the disk, {ROUNDS} rounds, medians");
    println!(
        "{:>9} {:>10} {:>12} {:>12} {:>7} {:>8} {:>10} {:>10} {:>9}",
        "producers", "changes", "changes/s", "bare file/s", "ratio", "groups", "per group", "bytes/chg", "cpu us/chg"
    );
    for (producers, edits) in [(1, 1000), (16, 400), (256, 100)] {
        let folder = fresh_folder("ingest");
        let storage = Counting::new(FjallStorage::open(&folder).unwrap());
        let counted = storage.groups.clone();
        let database = Database::on(storage).open().unwrap();
        let notes = database.collection("notes").unwrap();
        let documents: Vec<DocHandle> = (0..producers)
            .map(|_| {
                let (document, created) = notes.create(serde_json::json!({ "text": "" })).unwrap();
                created.wait().unwrap();
                document
            })
            .collect();
        let (mut ours, mut bare, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        let mut last = None;
        for round in 0..ROUNDS {
            counted.lock().unwrap().clear();
            let (time, cpu) = produce(&documents, edits, round * edits);
            let groups = std::mem::take(&mut *counted.lock().unwrap());
            let changes = producers * edits;
            let bare_time = bare_file(&folder, &groups);
            ours.push(changes as f64 / time.as_secs_f64());
            bare.push(changes as f64 / bare_time.as_secs_f64());
            ratios.push(bare_time.as_secs_f64() / time.as_secs_f64());
            last = Some(Round { changes, cpu, groups });
        }
        let Some(Round { changes, cpu, groups }) = last else { continue };
        println!(
            "{producers:>9} {changes:>10} {:>12.0} {:>12.0} {:>7.2} {:>8} {:>10.1} {:>10.0} {:>9.1}",
            median(ours),
            median(bare),
            median(ratios),
            groups.len(),
            changes as f64 / groups.len() as f64,
            groups.iter().sum::<usize>() as f64 / changes as f64,
            cpu.as_secs_f64() * 1e6 / changes as f64,
        );
        drop(documents);
        drop(notes);
        database.close();
    }
}

/// Runs one thread for each document; all begin together. The time until the last is done.
fn produce(documents: &[DocHandle], edits: usize, at: usize) -> (Duration, Duration) {
    let start = Arc::new(Barrier::new(documents.len() + 1));
    let (began, cpu) = std::thread::scope(|scope| {
        for document in documents {
            let start = start.clone();
            scope.spawn(move || {
                start.wait();
                for n in 0..edits {
                    document.change(|edit| Ok(edit.splice("text", at + n, 0, "x")?)).unwrap().wait().unwrap();
                }
            });
        }
        let cpu = common::process_time();
        start.wait();
        let began = Instant::now();
        (began, cpu)
    });
    // The scope has ended, and with it every producer.
    (began.elapsed(), common::process_time() - cpu)
}

/// Writes the same groups to a preallocated file.
fn bare_file(folder: &Path, groups: &[usize]) -> Duration {
    let path = folder.join("bare");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&vec![0; groups.iter().sum()]).unwrap();
    file.sync_all().unwrap();
    file.rewind().unwrap();
    let bytes = vec![0x5a; groups.iter().copied().max().unwrap_or(0)];
    let began = Instant::now();
    for group in groups {
        file.write_all(&bytes[..*group]).unwrap();
        file.sync_data().unwrap();
    }
    let time = began.elapsed();
    std::fs::remove_file(&path).unwrap();
    time
}
