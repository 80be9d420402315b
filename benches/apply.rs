//! Remote changes, one by one, onto a document of many edits: a keystroke of somebody else's that arrives here.
//!
//! `view`: [`View::apply`] alone. `engine`: the change is admitted to the log, synced, and read from the open document;
//! the processor time of all threads. `automerge`: its own `apply_changes`. Processor time, medians.
#![allow(clippy::unwrap_used, reason = "a measurement that fails shall stop")]

mod common;

use std::time::Instant;

use common::{fresh_folder, import, median, micros, process_time, rows, thread_time};
use tidelog::document::View;
use tidelog::{Change, Database, DocumentId};

/// Keystrokes that arrive.
const ARRIVING: usize = 1000;
/// Automerge's own way takes long.
const AUTOMERGE_ARRIVING: usize = 20;

fn main() {
    let changes = common::paper();
    println!("a remote keystroke into an open document; us of processor time, median of {ARRIVING}");
    println!(
        "{:>8} {:>8} {:>8} {:>14} {:>10} {:>11}",
        "edits", "view", "engine", "engine, wall", "automerge", "automerge/engine"
    );
    for edits in [1_000, 10_000, 100_000, 250_000] {
        let (base, arriving) = changes.split_at(edits);
        let arriving = &arriving[..ARRIVING];
        let view = by_view(base, arriving);
        let (engine, wall) = by_engine(base, arriving);
        let automerge = by_automerge(base, &arriving[..AUTOMERGE_ARRIVING]);
        println!(
            "{edits:>8} {view:>8.1} {engine:>8.1} {wall:>14.1} {automerge:>10.1} {:>11.0}",
            automerge / engine
        );
    }
}

fn by_view(base: &[Change], arriving: &[Change]) -> f64 {
    let mut view = load(base);
    let mut times = Vec::with_capacity(arriving.len());
    for change in arriving {
        let before = thread_time();
        let applied = view.apply(std::slice::from_ref(change)).unwrap();
        times.push(micros(thread_time() - before));
        assert_eq!((applied.replayed, applied.grouped), (1, 0));
    }
    median(times)
}

fn by_engine(base: &[Change], arriving: &[Change]) -> (f64, f64) {
    let folder = fresh_folder("apply");
    let database = Database::builder(folder.join("data")).open().unwrap();
    let id = DocumentId([1; 16]);
    let document = import(&database, id, base);
    document.with_view(|_| Ok(())).unwrap();
    common::settle();
    let (mut times, mut walls) = (Vec::with_capacity(arriving.len()), Vec::with_capacity(arriving.len()));
    for change in arriving {
        let row = rows(id, std::slice::from_ref(change));
        let (before, began) = (process_time(), Instant::now());
        let admitted = database.admit_blocking(row).unwrap();
        let there = document.with_view(|view| Ok(view.contains(change.hash()))).unwrap();
        times.push(micros(process_time() - before));
        walls.push(micros(began.elapsed()));
        assert!(there && admitted.accepted == 1, "{admitted:?}");
    }
    assert_eq!(database.status().materializations, 1);
    (median(times), median(walls))
}

fn by_automerge(base: &[Change], arriving: &[Change]) -> f64 {
    let mut document = load(base).document().clone();
    let mut times = Vec::with_capacity(arriving.len());
    for change in arriving {
        let change = change.as_automerge().clone();
        let before = thread_time();
        document.apply_changes([change]).unwrap();
        times.push(micros(thread_time() - before));
    }
    median(times)
}

fn load(changes: &[Change]) -> View {
    let chunks: Vec<u8> = changes.iter().flat_map(|change| change.bytes().iter().copied()).collect();
    View::load(&chunks).unwrap()
}
