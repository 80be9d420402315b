//! Remote changes, one by one, onto a document of many edits: a keystroke of somebody else's that arrives here.
//!
//! `view`: [`View::apply`] alone. `engine`: the change is admitted to the log and read from the open document, with all
//! threads that take part; `synced` waits for the disk before that, and the kernel's work for one sync of one small
//! write stands beside it as `one sync`. `automerge`: its own `apply_changes`. Processor time, medians.
#![allow(clippy::unwrap_used, reason = "a measurement that fails shall stop")]

mod common;

use std::io::{Seek, Write};

use common::{fresh_folder, import, median, micros, process_time, rows, thread_time};
use tidelog::document::View;
use tidelog::log::Durability;
use tidelog::{Change, Database, DocumentId};

/// Keystrokes that arrive.
const ARRIVING: usize = 1000;
/// Automerge's own way takes long.
const AUTOMERGE_ARRIVING: usize = 20;

fn main() {
    let changes = common::paper();
    println!("a remote keystroke into an open document; us of processor time, median of {ARRIVING}");
    println!(
        "{:>8} {:>8} {:>8} {:>8} {:>9} {:>10} {:>12}",
        "edits", "view", "engine", "synced", "one sync", "automerge", "automerge/view"
    );
    for edits in [1_000, 10_000, 100_000, 250_000] {
        let (base, arriving) = changes.split_at(edits);
        let arriving = &arriving[..ARRIVING];
        let view = by_view(base, arriving);
        let engine = by_engine(base, arriving, Durability::Buffered);
        let synced = by_engine(base, arriving, Durability::Synced);
        let sync = one_sync();
        let automerge = by_automerge(base, &arriving[..AUTOMERGE_ARRIVING]);
        println!(
            "{edits:>8} {view:>8.1} {engine:>8.1} {synced:>8.1} {sync:>9.1} {automerge:>10.1} {:>12.0}",
            automerge / view
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

fn by_engine(base: &[Change], arriving: &[Change], durability: Durability) -> f64 {
    let folder = fresh_folder("apply");
    let database = Database::builder(folder.join("data")).durability(durability).open().unwrap();
    let id = DocumentId([1; 16]);
    let document = import(&database, id, base);
    document.with_view(|_| Ok(())).unwrap();
    common::settle();
    let mut times = Vec::with_capacity(arriving.len());
    for change in arriving {
        let row = rows(id, std::slice::from_ref(change));
        let before = process_time();
        let admitted = database.admit_blocking(row).unwrap();
        let there = document.with_view(|view| Ok(view.contains(change.hash()))).unwrap();
        times.push(micros(process_time() - before));
        assert!(there && admitted.accepted == 1, "{admitted:?}");
    }
    assert_eq!(database.status().materializations, 1);
    median(times)
}

/// What the kernel takes to sync 600 bytes in a preallocated file.
fn one_sync() -> f64 {
    let path = fresh_folder("apply").join("bare");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&vec![0; 600 * ARRIVING]).unwrap();
    file.sync_all().unwrap();
    file.rewind().unwrap();
    let one = || {
        let before = thread_time();
        file.write_all(&[0x5a; 600]).unwrap();
        file.sync_data().unwrap();
        micros(thread_time() - before)
    };
    median(std::iter::repeat_with(one).take(ARRIVING / 4).collect())
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
