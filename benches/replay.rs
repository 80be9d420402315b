//! A log of a million records: opening its store, replaying it, making the projections again, checking it.
//!
//! The store is built once, in the build's folder, and kept for later runs.
#![allow(clippy::unwrap_used, reason = "a measurement that fails shall stop")]

mod common;

use std::time::Instant;

use common::{cached_folder, median};
use tidelog::log::FjallStorage;
use tidelog::{Database, DocumentId, Lsn};

const DOCUMENTS: usize = 1000;
const CHANGES: usize = 1000;
/// Records read at a time.
const SLICE: usize = 4096;

fn main() {
    let path = cached_folder("million");
    build(&path);
    println!("a log of {DOCUMENTS} documents with {CHANGES} changes each, {} MB on disk", megabytes(&path));

    let mut times = Vec::new();
    for _ in 0..5 {
        let began = Instant::now();
        let database = Database::builder(&path).open().unwrap();
        times.push(began.elapsed().as_secs_f64());
        drop(database);
    }
    println!("open after an orderly close: {:.3} s (median of {times:.3?})", median(times.clone()));

    let database = Database::builder(&path).open().unwrap();
    let began = Instant::now();
    let (mut at, mut records, mut bytes) = (Lsn::ZERO, 0, 0);
    loop {
        let entries = database.reader().read_log(at, usize::MAX, SLICE).unwrap();
        let Some(last) = entries.last() else { break };
        at = last.lsn;
        records += entries.len();
        for entry in &entries {
            if let tidelog::history::EntryKind::Change { bytes: chunk, .. } = &entry.kind {
                bytes += chunk.len();
            }
        }
    }
    let time = began.elapsed().as_secs_f64();
    println!(
        "log replay: {records} records ({} MB of changes) in {time:.2} s, {:.0} records/s",
        bytes / 1_000_000,
        records as f64 / time
    );
    let began = Instant::now();
    let mut feed = database.changes().open().unwrap();
    let mut events = 0;
    while let Some(item) = feed.next_now().unwrap() {
        events += usize::from(matches!(item, tidelog::feed::Item::Event(_)));
    }
    let time = began.elapsed().as_secs_f64();
    println!("feed from the beginning: {events} events in {time:.2} s, {:.0} events/s", events as f64 / time);
    let tail = database.reader().tail().lsn;
    drop(database);

    let storage = FjallStorage::open(&path).unwrap();
    let began = Instant::now();
    tidelog::history::rebuild(&storage, tail, &mut |_, _| {}).unwrap();
    let time = began.elapsed().as_secs_f64();
    println!("projections made again from the log: {time:.2} s, {:.0} records/s", records as f64 / time);
}

/// Makes the store unless an earlier run did.
fn build(path: &std::path::Path) {
    let done = path.with_extension("done");
    if done.exists() && path.exists() {
        return;
    }
    // What an interrupted run left is of no use.
    let _ = std::fs::remove_dir_all(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let changes = common::paper();
    let began = Instant::now();
    let database = Database::builder(path).open().unwrap();
    for n in 0..DOCUMENTS {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(n as u64).to_be_bytes());
        common::import(&database, DocumentId(id), &changes[..CHANGES]);
    }
    let time = began.elapsed().as_secs_f64();
    database.close();
    println!("built in {time:.1} s, {:.0} changes/s admitted", (DOCUMENTS * CHANGES) as f64 / time);
    std::fs::write(done, "").unwrap();
}

fn megabytes(path: &std::path::Path) -> u64 {
    fn bytes(path: &std::path::Path) -> u64 {
        let Ok(entries) = std::fs::read_dir(path) else { return 0 };
        entries
            .filter_map(Result::ok)
            .map(|entry| match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => bytes(&entry.path()),
                Ok(metadata) => metadata.len(),
                Err(_) => 0,
            })
            .sum()
    }
    bytes(path) / 1_000_000
}
