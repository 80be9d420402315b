//! Every cursor over every crash image: whatever of an unsynced tail is left, whoever kept a cursor goes on without a gap,
//! a repetition or another order, or is told that what they know is void.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::json;
use tidelog::feed::{ChangeFeed, Event, EventKind, FeedCursor, FeedDigest, Filter, Item, Opening, ResetReason};
use tidelog::log::{Durability, MemoryStorage};
use tidelog::{CollectionName, Database, DocumentId};

use crate::support::{cases, narrow, node};

#[derive(Debug, Clone)]
enum Step {
    Create(bool),
    Edit(Index),
    Delete(Index),
    Restore(Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => any::<bool>().prop_map(Step::Create),
        5 => any::<Index>().prop_map(Step::Edit),
        1 => any::<Index>().prop_map(Step::Delete),
        1 => any::<Index>().prop_map(Step::Restore),
    ]
}

fn filters() -> [Filter; 2] {
    [Filter::Everything, Filter::Collection(CollectionName::new("notes").unwrap())]
}

fn open(storage: &MemoryStorage, accepts_loss: bool) -> Database {
    let builder = Database::on(storage.clone()).node(node(1)).limits(narrow()).durability(Durability::Buffered);
    builder.accept_tail_loss(accepts_loss).open().unwrap()
}

/// The opening and the events of a feed, up to the log's end.
fn read(mut feed: ChangeFeed) -> (Opening, Vec<Event>) {
    let Some(Item::Opened(opening)) = feed.next_now().unwrap() else { panic!("a feed begins with its opening") };
    let mut events = Vec::new();
    while let Some(item) = feed.next_now().unwrap() {
        if let Item::Event(event) = item {
            events.push(event);
        }
    }
    (opening, events)
}

fn names(events: &[Event]) -> Vec<(u64, DocumentId, u8, [u8; 32])> {
    let name = |event: &Event| {
        let (tag, subject) = event.kind.subject();
        (event.position.0, event.document, tag, subject)
    };
    events.iter().map(name).collect()
}

/// Positions rise, and the digest runs on from `digest`.
fn assert_ordered(events: &[Event], mut digest: FeedDigest) {
    let mut before = None;
    for event in events {
        let is_standing = matches!(event.kind, EventKind::Standing(_));
        assert!(is_standing || before.is_none_or(|before| before < event.position), "{before:?} {event:?}");
        if !is_standing {
            before = Some(event.position);
        }
        let (tag, subject) = event.kind.subject();
        digest = digest.after(tag, event.position, event.document, &subject);
        assert_eq!(digest, event.cursor.digest);
    }
}

fn check(image: &Database, filter: &Filter, cursor: &FeedCursor) {
    let (_, all) = read(image.changes().filter(filter.clone()).open().unwrap());
    assert_ordered(&all, FeedDigest::default());
    let (opening, rest) = read(image.changes().filter(filter.clone()).since(*cursor).open().unwrap());
    let tail = image.reader().tail();
    match opening {
        Opening::Resumed { from } => {
            assert_eq!(from.position, cursor.position);
            assert_ordered(&rest, cursor.digest);
            let after: Vec<Event> = all.into_iter().filter(|event| event.position > cursor.position).collect();
            assert_eq!(names(&rest), names(&after), "no gap and no repetition after {}", cursor.position);
        }
        Opening::Reset { reason, .. } => {
            let is_beyond = cursor.position > tail.lsn;
            let is_renewed = cursor.log_id != tail.log_id;
            assert!(is_beyond || is_renewed, "{reason:?}: {cursor:?} {tail:?}");
            assert_eq!(reason == ResetReason::OtherLog, is_renewed);
            // Each document once, as it stands.
            let mut told: Vec<DocumentId> = rest.iter().map(|event| event.document).collect();
            told.sort_unstable();
            told.dedup();
            assert_eq!(told.len(), rest.len());
            let is_there = |event: &Event| {
                let state = image.reader().document(event.document).unwrap().unwrap();
                assert!(state.visible && filter.admits(event.document, &state.collection));
                assert!(matches!(&event.kind, EventKind::Standing(standing) if standing.heads == state.heads));
            };
            rest.iter().for_each(is_there);
            let there = image.reader().inventory(None, usize::MAX).unwrap().into_iter().filter(|(id, _)| {
                let state = image.reader().document(*id).unwrap().unwrap();
                state.visible && filter.admits(*id, &state.collection)
            });
            assert_eq!(there.count(), rest.len());
        }
        other => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn every_cursor_over_every_crash_image_goes_on_or_is_told(
        steps in vec(step(), 1..28),
        later in vec(step(), 0..4),
    ) {
        let storage = MemoryStorage::new();
        let database = open(&storage, false);
        let mut ids = Vec::new();
        let mut cursors: Vec<(Filter, FeedCursor)> = Vec::new();
        let mut feeds: Vec<(Filter, ChangeFeed)> = Vec::new();
        for filter in filters() {
            let feed = database.changes().filter(filter.clone()).open().unwrap();
            feeds.push((filter, feed));
        }
        // There is something to edit, and a tail to lose.
        for step in [Step::Create(true)].iter().chain(&steps) {
            run(&database, step, &mut ids);
            for (filter, feed) in &mut feeds {
                while let Some(item) = feed.next_now().unwrap() {
                    if let Item::Event(event) = item {
                        cursors.push((filter.clone(), event.cursor));
                    }
                }
                cursors.push((filter.clone(), feed.cursor()));
            }
        }
        drop(feeds);
        let images = storage.unsynced_batches();
        prop_assert!(images > 0, "there is a tail to lose");
        for kept in 0..=images {
            let image = open(&storage.crashed(kept), true);
            for step in &later {
                run(&image, step, &mut ids.clone());
            }
            for (filter, cursor) in &cursors {
                check(&image, filter, cursor);
            }
        }
        // A process that ended in order, or was killed, has all of it.
        drop(database);
        let image = open(&storage.killed(), false);
        for (filter, cursor) in &cursors {
            check(&image, filter, cursor);
        }
    }
}

fn run(database: &Database, step: &Step, ids: &mut Vec<DocumentId>) {
    let pick = |which: &Index| {
        let id = (!ids.is_empty()).then(|| ids[which.index(ids.len())])?;
        database.find(id).ok()
    };
    let done = match step {
        Step::Create(is_note) => {
            let collection = database.collection(if *is_note { "notes" } else { "tasks" }).unwrap();
            let (handle, commit) = collection.create(json!({ "n": ids.len() })).unwrap();
            ids.push(handle.id());
            Ok(commit)
        }
        Step::Edit(which) => match pick(which) {
            Some(handle) => handle.change(|edit| {
                let length = edit.length("")?.unwrap_or_default();
                Ok(edit.put(format!("k{length}"), length)?)
            }),
            None => return,
        },
        Step::Delete(which) => match pick(which) {
            Some(handle) => handle.delete(),
            None => return,
        },
        Step::Restore(which) => match pick(which) {
            Some(handle) => handle.restore(),
            None => return,
        },
    };
    // A deleted document is not edited, and one that is there not restored.
    if let Ok(commit) = done {
        commit.wait().unwrap();
    }
}
