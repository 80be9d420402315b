//! The small steps that everything is made of.
#![allow(clippy::unwrap_used, missing_docs, reason = "a measurement that fails shall stop; criterion's own functions")]

mod common;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use tidelog::document::{ChangeGraph, EditOptions, Node, View, ViewError};
use tidelog::id::{ActorId, Chain, Lsn};
use tidelog::log::record::{Admission, ChangeHeader, Record, payload_digest};
use tidelog::{Change, Database};

/// Keystrokes in the document that is worked on.
const EDITS: usize = 20_000;

fn record(criterion: &mut Criterion) {
    let (_, change) = keystrokes(1);
    let change = &change[0];
    let header = ChangeHeader {
        document: [1; 16],
        collection: 1,
        hash: change.hash().0,
        actor: 2,
        seq: change.seq(),
        start_op: change.start_op(),
        op_count: change.op_count(),
        deps: vec![1],
        heads_before: None,
        time: change.time(),
        received_ms: 1_700_000_000_000,
        origin: 0,
        via: 0,
        principal: 0,
        admission: Admission::Local,
        rules_version: 0,
        payload_digest: payload_digest(change.bytes()),
    };
    let record = Record::Change(header, change.bytes().to_vec());
    criterion.bench_function("record encode", |bench| bench.iter(|| record.encode(Lsn(7), Chain::default())));
    let (bytes, _) = record.encode(Lsn(7), Chain::default());
    criterion.bench_function("record decode with chain", |bench| {
        bench.iter(|| Record::decode(Lsn(7), &bytes, Chain::default()).unwrap());
    });
    criterion.bench_function("change parse", |bench| bench.iter(|| Change::parse(change.bytes().to_vec()).unwrap()));
}

fn graph(criterion: &mut Criterion) {
    let (_, changes) = keystrokes(EDITS);
    criterion.bench_function("graph add, of 20,000", |bench| {
        bench.iter_batched_ref(
            ChangeGraph::new,
            |graph| {
                for (change, lsn) in changes.iter().zip(1..) {
                    graph.add(node(change, Lsn(lsn))).unwrap();
                }
            },
            BatchSize::LargeInput,
        );
    });
}

fn node(change: &Change, lsn: Lsn) -> Node<'_> {
    Node {
        hash: change.hash(),
        actor: change.actor(),
        seq: change.seq(),
        start_op: change.start_op(),
        op_count: change.op_count(),
        deps: change.deps(),
        lsn,
    }
}

fn view(criterion: &mut Criterion) {
    let (mut theirs, changes) = keystrokes(EDITS);
    let chunks: Vec<u8> = changes.iter().flat_map(|change| change.bytes().iter().copied()).collect();
    let mut ours = View::load(&chunks).unwrap();
    let (actor, mut at) = (ActorId::random(), 0);
    criterion.bench_function("view apply, a remote keystroke", |bench| {
        bench.iter_batched(
            || {
                at += 1;
                type_one(&mut theirs, &actor, at)
            },
            |change| ours.apply(&[change]).unwrap(),
            // One at a time: each is made on top of the one before.
            BatchSize::PerIteration,
        );
    });
}

fn local(criterion: &mut Criterion) {
    let folder = common::fresh_folder("small");
    let database = Database::builder(folder.join("data")).open().unwrap();
    let (note, created) = database.collection("notes").unwrap().create(serde_json::json!({ "text": "" })).unwrap();
    created.wait().unwrap();
    let mut at = 0;
    criterion.bench_function("local change, not waited for", |bench| {
        bench.iter(|| {
            loop {
                match note.change(|edit| Ok(edit.splice("text", at, 0, "x")?)) {
                    Ok(commit) => {
                        at += 1;
                        break drop(commit);
                    }
                    Err(tidelog::Error::Busy) => std::thread::yield_now(),
                    Err(error) => panic!("{error}"),
                }
            }
        });
    });
}

fn keystrokes(count: usize) -> (View, Vec<Change>) {
    let (mut view, actor) = (View::new(), ActorId::random());
    let (_, first) =
        view.edit(options(&actor), |edit| edit.put(tidelog::Path::root(), serde_json::json!({ "text": "" }))).unwrap();
    let mut changes = vec![first.unwrap()];
    while changes.len() < count {
        changes.push(type_one(&mut view, &actor, changes.len() - 1));
    }
    (view, changes)
}

fn type_one(view: &mut View, actor: &ActorId, at: usize) -> Change {
    view.edit(options(actor), |edit| -> Result<(), ViewError> { edit.splice("text", at, 0, "x").map(drop) })
        .unwrap()
        .1
        .unwrap()
}

fn options(actor: &ActorId) -> EditOptions {
    EditOptions { actor: actor.clone(), time: 0, message: None }
}

criterion_group!(small, record, graph, view, local);
criterion_main!(small);
