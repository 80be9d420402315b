//! Change feeds against a model: whoever follows one knows what is there, in whatever pieces they read it, and a feed
//! told again is the same feed.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::json;
use tidelog::feed::{
    ChangeFeed, Changes, Event, EventKind, FeedCursor, FeedDigest, Filter, Item, Opening, ResetReason,
};
use tidelog::history::fold::is_visible;
use tidelog::log::{Durability, MemoryStorage};
use tidelog::{CollectionName, Database, DocumentId, Heads, Lsn};

use crate::support::{assert_whole, cases, narrow, node, rows_after};

const COLLECTIONS: [&str; 2] = ["notes", "tasks"];
/// Documents that both databases may create, each in a collection of its own choice.
const SHARED: u8 = 3;

fn open(storage: &MemoryStorage, number: u8) -> Database {
    Database::on(storage.clone()).node(node(number)).limits(narrow()).open().unwrap()
}

#[derive(Debug, Clone)]
enum Step {
    Create { on: usize, collection: usize },
    CreateShared { on: usize, collection: usize, number: u8 },
    Edit { on: usize, which: Index, times: u8 },
    Delete { on: usize, which: Index },
    Restore { on: usize, which: Index },
    Meet { from: usize },
    Reopen,
    Follow { consumer: usize, items: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let on = 0..2usize;
    prop_oneof![
        2 => (on.clone(), 0..2usize).prop_map(|(on, collection)| Step::Create { on, collection }),
        2 => (on.clone(), 0..2usize, 0..SHARED).prop_map(|(on, collection, number)| {
            Step::CreateShared { on, collection, number }
        }),
        6 => (on.clone(), any::<Index>(), 1..4u8).prop_map(|(on, which, times)| Step::Edit { on, which, times }),
        2 => (on.clone(), any::<Index>()).prop_map(|(on, which)| Step::Delete { on, which }),
        2 => (on.clone(), any::<Index>()).prop_map(|(on, which)| Step::Restore { on, which }),
        4 => on.prop_map(|from| Step::Meet { from }),
        1 => Just(Step::Reopen),
        6 => (0..CONSUMERS, 1..9usize).prop_map(|(consumer, items)| Step::Follow { consumer, items }),
    ]
}

/// What somebody who follows a feed knows: the documents that are there, and their heads as far as they were told.
#[derive(Default)]
struct Known {
    documents: BTreeMap<DocumentId, Option<Heads>>,
}

impl Known {
    fn take(&mut self, filter: &Filter, event: &Event) {
        let id = event.document;
        match &event.kind {
            EventKind::Created(_) | EventKind::Restored(_) => drop(self.documents.insert(id, None)),
            EventKind::Changed(changed) => {
                let known = self.documents.insert(id, Some(changed.heads_after.clone()));
                if let Some(Some(before)) = known {
                    assert_eq!(before, changed.heads_before, "no change between two events is left out");
                }
            }
            EventKind::Deleted(_) | EventKind::Purged(_) => drop(self.documents.remove(&id)),
            EventKind::Moved { .. } if filter.admits(id, &event.collection) => {
                self.documents.entry(id).or_default();
            }
            EventKind::Moved { .. } => drop(self.documents.remove(&id)),
            EventKind::Standing(standing) if standing.is_there => {
                self.documents.insert(id, Some(standing.heads.clone()));
            }
            EventKind::Standing(_) => drop(self.documents.remove(&id)),
            EventKind::Withdrawn { .. } | EventKind::Void { .. } => drop(self.documents.insert(id, None)),
            other => panic!("unknown kind {other:?}"),
        }
    }

    /// Holds it against the store, looked at as a whole.
    fn assert_true(&self, database: &Database, filter: &Filter) {
        let reader = database.reader();
        let mut there = BTreeMap::new();
        for (id, _) in reader.inventory(None, usize::MAX).unwrap() {
            let row = reader.row(id).unwrap().unwrap();
            let state = reader.document(id).unwrap().unwrap();
            if is_visible(&row) && filter.admits(id, &state.collection) {
                there.insert(id, state.heads);
            }
        }
        let (known, expected): (Vec<_>, Vec<_>) = (self.documents.keys().collect(), there.keys().collect());
        assert_eq!(known, expected, "{filter:?}");
        for (id, heads) in &self.documents {
            assert!(heads.as_ref().is_none_or(|heads| *heads == there[id]), "{id}");
        }
    }
}

const CONSUMERS: usize = 6;

struct Consumer {
    filter: Filter,
    coalesced: bool,
    cursor: Option<FeedCursor>,
    known: Known,
    events: Vec<Event>,
}

impl Consumer {
    fn all() -> Vec<Self> {
        let filters = [
            Filter::Everything,
            Filter::Collection(CollectionName::new("notes").unwrap()),
            Filter::Document(shared(0)),
        ];
        let consumer = |filter: &Filter, coalesced| Self {
            filter: filter.clone(),
            coalesced,
            cursor: None,
            known: Known::default(),
            events: Vec::new(),
        };
        filters.iter().flat_map(|filter| [consumer(filter, false), consumer(filter, true)]).collect()
    }

    fn open(&self, database: &Database) -> ChangeFeed {
        let changes = database.changes().filter(self.filter.clone());
        let changes = if self.coalesced { changes.coalesced() } else { changes };
        match self.cursor {
            None => changes.open(),
            Some(cursor) => changes.since(cursor).open(),
        }
        .unwrap()
    }

    /// Reads so many items and stops there, as one that is stopped does.
    fn follow(&mut self, database: &Database, items: usize) {
        let mut feed = self.open(database);
        let mut digest = self.cursor.map_or(FeedDigest::default(), |cursor| cursor.digest);
        for _ in 0..items {
            let Some(item) = feed.next_now().unwrap() else { break };
            match item {
                Item::Opened(opening) => match opening {
                    Opening::Resumed { from } => assert!(!self.coalesced && from.digest == digest),
                    Opening::Rebased { from, .. } => assert!(self.coalesced && from.digest == digest),
                    other => panic!("nothing was lost: {other:?}"),
                },
                Item::Event(event) => {
                    let (tag, subject) = event.kind.subject();
                    digest = digest.after(tag, event.position, event.document, &subject);
                    assert_eq!(event.cursor.digest, digest, "whoever follows can compute it");
                    let printed: FeedCursor = event.cursor.to_string().parse().unwrap();
                    assert_eq!(printed, event.cursor);
                    event.to_json().unwrap();
                    self.known.take(&self.filter, &event);
                    self.events.push(event);
                }
                Item::Progress { cursor, .. } => assert_eq!(cursor.digest, digest),
                other => panic!("unknown item {other:?}"),
            }
        }
        self.cursor = Some(feed.cursor());
    }
}

fn shared(number: u8) -> DocumentId {
    DocumentId([number + 1; 16])
}

struct World {
    storage: MemoryStorage,
    databases: [Option<Database>; 2],
    documents: Vec<DocumentId>,
}

impl World {
    fn new() -> Self {
        let storage = MemoryStorage::new();
        let databases = [Some(open(&storage, 1)), Some(open(&MemoryStorage::new(), 2))];
        Self { storage, databases, documents: Vec::new() }
    }

    fn database(&self, on: usize) -> &Database {
        self.databases[on].as_ref().unwrap()
    }

    fn run(&mut self, step: &Step, consumers: &mut [Consumer]) {
        match step {
            Step::Create { on, collection } => {
                let collection = self.database(*on).collection(COLLECTIONS[*collection]).unwrap();
                let (handle, commit) = collection.create(json!({ "n": 0 })).unwrap();
                commit.wait().unwrap();
                self.documents.push(handle.id());
            }
            Step::CreateShared { on, collection, number } => {
                let collection = self.database(*on).collection(COLLECTIONS[*collection]).unwrap();
                // It may be in the other collection already.
                if collection.create_with_id(shared(*number)).is_ok() && !self.documents.contains(&shared(*number)) {
                    self.documents.push(shared(*number));
                }
            }
            Step::Edit { on, which, times } => self.with(*on, *which, |handle| {
                for n in 0..*times {
                    if let Ok(commit) = handle.change(|edit| Ok(edit.put("n", u64::from(n))?)) {
                        commit.wait().unwrap();
                    }
                }
            }),
            Step::Delete { on, which } => self.with(*on, *which, |handle| {
                handle.delete().map(|commit| commit.wait().unwrap()).ok();
            }),
            Step::Restore { on, which } => self.with(*on, *which, |handle| {
                handle.restore().map(|commit| commit.wait().unwrap()).ok();
            }),
            Step::Meet { from } => {
                let rows = rows_after(self.database(*from).reader(), Lsn::ZERO);
                self.database(1 - *from).admit_blocking(rows).unwrap();
            }
            Step::Reopen => {
                self.databases[0].take().unwrap().close();
                self.storage = self.storage.killed();
                self.databases[0] = Some(open(&self.storage, 1));
            }
            Step::Follow { consumer, items } => {
                if let Some(consumer) = consumers.get_mut(*consumer) {
                    consumer.follow(self.database(0), *items);
                }
            }
        }
    }

    fn with(&self, on: usize, which: Index, run: impl FnOnce(tidelog::DocHandle)) {
        if self.documents.is_empty() {
            return;
        }
        if let Ok(handle) = self.database(on).find(*which.get(&self.documents)) {
            run(handle);
        }
    }
}

/// What a feed told, in short.
fn told(event: &Event) -> (Lsn, DocumentId, &'static str, FeedDigest) {
    (event.position, event.document, event.kind.as_str(), event.cursor.digest)
}

fn replayed(changes: Changes) -> Vec<Event> {
    let mut feed = changes.open().unwrap();
    let items = std::iter::from_fn(|| feed.next_now().unwrap());
    items
        .filter_map(|item| match item {
            Item::Event(event) => Some(event),
            _ => None,
        })
        .collect()
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn whoever_follows_a_feed_in_any_pieces_knows_what_is_there(steps in vec(step(), 1..60)) {
        let mut world = World::new();
        let mut consumers = Consumer::all();
        for step in &steps {
            world.run(step, &mut consumers);
        }
        let database = world.database(0);
        for consumer in &mut consumers {
            consumer.follow(database, usize::MAX);
            consumer.known.assert_true(database, &consumer.filter);
            if !consumer.coalesced {
                let again = replayed(database.changes().filter(consumer.filter.clone()));
                let (pieces, again): (Vec<_>, Vec<_>) =
                    (consumer.events.iter().map(told).collect(), again.iter().map(told).collect());
                prop_assert_eq!(pieces, again, "told again, it is the same");
            }
        }
        assert_whole(database);
    }
}

#[tokio::test]
async fn a_feed_goes_from_old_to_new_without_a_seam() {
    let database = open(&MemoryStorage::new(), 1);
    let notes = database.collection("notes").unwrap();
    let (note, created) = notes.create(json!({ "n": 0 })).unwrap();
    created.wait().unwrap();
    let writer = std::thread::spawn({
        let note = note.clone();
        move || {
            for n in 1..=300u64 {
                note.change(|edit| Ok(edit.put("n", n)?)).unwrap().wait().unwrap();
            }
        }
    });
    let mut feed = note.changes().open().unwrap();
    let (mut seen, mut changed) = (Vec::new(), 0);
    while changed < 301 {
        if let Item::Event(event) = feed.next().await.unwrap().unwrap() {
            changed += usize::from(matches!(event.kind, EventKind::Changed(_)));
            seen.push(told(&event));
        }
    }
    writer.join().unwrap();
    let again = replayed(note.changes());
    assert_eq!(seen, again.iter().map(told).collect::<Vec<_>>());
    assert!(seen.is_sorted_by_key(|(position, ..)| *position));
    database.close();
    // What was made before it was closed is still given; then it ends.
    while let Some(item) = feed.next().await {
        assert!(matches!(item.unwrap(), Item::Progress { .. }));
    }
}

/// A feed stopped at `cursor` goes on in another state of the store.
fn opening(database: &Database, cursor: FeedCursor) -> Opening {
    match database.changes().since(cursor).open().unwrap().next_now().unwrap() {
        Some(Item::Opened(opening)) => opening,
        other => panic!("{other:?}"),
    }
}

fn caught_up(database: &Database) -> FeedCursor {
    let mut feed = database.changes().open().unwrap();
    while feed.next_now().unwrap().is_some() {}
    feed.cursor()
}

#[test]
fn a_cursor_outlives_a_lost_tail_where_what_it_saw_was_kept_and_is_told_so_where_not() {
    let storage = MemoryStorage::new();
    let database = Database::on(storage.clone()).durability(Durability::Buffered).node(node(1)).open().unwrap();
    let notes = database.collection("notes").unwrap();
    let create =
        || notes.create(json!({ "n": 0 })).map(|(handle, commit)| (handle.id(), commit.wait().unwrap())).unwrap();
    create();
    storage_synced(&storage);
    let before = caught_up(&database);
    let kept = storage.unsynced_batches();
    create();
    let after = caught_up(&database);
    let lost = Database::on(storage.crashed(kept)).node(node(1)).open().unwrap();
    assert_ne!(lost.reader().log_id(), before.log_id);
    let Opening::Resumed { from } = opening(&lost, before) else { panic!("{:?}", opening(&lost, before)) };
    assert_eq!((from.position, from.log_id), (before.position, lost.reader().log_id()));
    let reset = opening(&lost, after);
    assert!(matches!(reset, Opening::Reset { reason: ResetReason::OtherLog, .. }), "{reset:?}");
    let events = replayed(lost.changes().since(after));
    assert!(matches!(&events[..], [Event { kind: EventKind::Standing(_), .. }]), "{events:?}");
    let stranger = open(&MemoryStorage::new(), 3);
    assert!(matches!(opening(&stranger, before), Opening::Reset { reason: ResetReason::OtherLog, .. }));
    let beyond = FeedCursor { position: Lsn(after.position.0 + 9), ..after };
    assert!(matches!(opening(&database, beyond), Opening::Reset { reason: ResetReason::LostTail, .. }));
    let forged = FeedCursor { chain: tidelog::id::Chain([9; 16]), ..after };
    assert!(matches!(opening(&database, forged), Opening::Reset { reason: ResetReason::LostTail, .. }));
}

fn storage_synced(storage: &MemoryStorage) {
    tidelog::log::Storage::sync(storage).unwrap();
}

#[test]
fn a_feed_of_little_says_how_far_it_is() {
    let database = open(&MemoryStorage::new(), 1);
    let (note, created) = database.collection("notes").unwrap().create(json!({ "n": 0 })).unwrap();
    created.wait().unwrap();
    let mut feed = database.changes().collection("tasks").unwrap().open().unwrap();
    let mut items = || std::iter::from_fn(|| feed.next_now().unwrap()).collect::<Vec<_>>();
    let is_caught_up = |item: &Item| match item {
        Item::Progress { cursor, caught_up: true } => cursor.position == database.reader().tail().lsn,
        _ => false,
    };
    let first = items();
    assert!(matches!(&first[..], [Item::Opened(_), last] if is_caught_up(last)), "{first:?}");
    assert!(items().is_empty(), "said once");
    note.change(|edit| Ok(edit.put("n", 1)?)).unwrap().wait().unwrap();
    let next = items();
    assert!(matches!(&next[..], [last] if is_caught_up(last)), "{next:?}");
}

mod consumers {
    use super::*;
    use std::cell::Cell;
    use tidelog::Error;
    use tidelog::feed::{Consumer, RowsMut};

    fn counter(database: &Database) -> Consumer {
        database.consumer("counter").unwrap()
    }

    /// Counts the events of each document, and all of them.
    fn count(rows: &mut RowsMut<'_>, item: &Item) -> Result<(), Error> {
        let Item::Event(event) = item else { return Ok(()) };
        for key in [&b"all"[..], event.document.as_bytes()] {
            let before = rows.row(key)?.map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap()));
            rows.put(key, (before + 1).to_be_bytes().to_vec())?;
        }
        Ok(())
    }

    fn counted(consumer: &Consumer) -> BTreeMap<Vec<u8>, u64> {
        let rows = consumer.rows().after(None, usize::MAX).unwrap();
        rows.into_iter().map(|(key, value)| (key, u64::from_be_bytes(value.try_into().unwrap()))).collect()
    }

    /// The counts that a naive reading of the whole feed gives.
    fn expected(database: &Database) -> BTreeMap<Vec<u8>, u64> {
        let mut counts = BTreeMap::new();
        for event in replayed(database.changes()) {
            *counts.entry(b"all".to_vec()).or_default() += 1;
            *counts.entry(event.document.as_bytes().to_vec()).or_default() += 1;
        }
        counts
    }

    fn catch_up(consumer: &Consumer) -> Result<(), Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async { consumer.projection().await?.catch_up(count).await })
    }

    proptest! {
        #![proptest_config(cases(48))]

        /// Ended at any instant, by a kill, an error of its own, or the disk, each event counts once.
        #[test]
        fn each_event_counts_once(steps in vec((step(), 0..4u8, 0..40u64), 1..40)) {
            let mut world = World::new();
            for (step, end, at) in &steps {
                world.run(step, &mut []);
                let consumer = counter(world.database(0));
                match end {
                    0 => catch_up(&consumer).unwrap(),
                    1 => {
                        // Its own error, after so many items.
                        let left = Cell::new(*at);
                        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                        let ended = runtime.block_on(async {
                            consumer.projection().await?.catch_up(|rows, item| {
                                if left.replace(left.get().saturating_sub(1)) == 0 {
                                    return Err(Error::Application("enough".into()));
                                }
                                count(rows, item)
                            }).await
                        });
                        prop_assert!(ended.is_ok() || matches!(ended, Err(Error::Application(_))), "{ended:?}");
                    }
                    2 => {
                        catch_up(&consumer).unwrap();
                        drop(consumer);
                        // The process ends; what was written without waiting for the disk is there.
                        world.run(&Step::Reopen, &mut []);
                    }
                    _ => {
                        // The power ends, and with it what the disk had not yet: some projections, never an event.
                        catch_up(&consumer).unwrap();
                        drop(consumer);
                        world.databases[0].take().unwrap().close();
                        let kept = (*at as usize) % (world.storage.unsynced_batches() + 1);
                        world.storage = world.storage.crashed(kept);
                        world.databases[0] = Some(open(&world.storage, 1));
                    }
                }
            }
            let database = world.database(0);
            catch_up(&counter(database)).unwrap();
            prop_assert_eq!(counted(&counter(database)), expected(database));
            let state = counter(database).state().unwrap().unwrap();
            prop_assert_eq!((state.events, state.lag(database)), (expected(database).get(&b"all"[..]).copied().unwrap_or(0), 0));
        }
    }

    #[test]
    fn of_two_under_one_name_one_is_turned_away() {
        let database = open(&MemoryStorage::new(), 1);
        let notes = database.collection("notes").unwrap();
        notes.create(json!({ "n": 0 })).unwrap().1.wait().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut first, mut second) =
                (counter(&database).projection().await.unwrap(), counter(&database).projection().await.unwrap());
            first.catch_up(count).await.unwrap();
            let refused = second.catch_up(count).await.unwrap_err();
            assert!(matches!(&refused, Error::ConsumerMoved(name) if name == "counter"), "{refused:?}");
            assert_eq!(counted(&counter(&database)), expected(&database));
            notes.create(json!({ "n": 0 })).unwrap().1.wait().unwrap();
            first.catch_up(count).await.unwrap();
            assert_eq!(counted(&counter(&database)), expected(&database));
        });
    }

    #[test]
    fn a_consumer_begins_anew_when_its_code_or_its_feed_is_another_or_it_is_told_to() {
        let database = open(&MemoryStorage::new(), 1);
        for _ in 0..3 {
            database.collection("notes").unwrap().create(json!({ "n": 0 })).unwrap().1.wait().unwrap();
        }
        database.collection("tasks").unwrap().create(json!({ "n": 0 })).unwrap().1.wait().unwrap();
        // Whose name begins with the other's: their rows stay apart.
        let neighbour = database.consumer("counter2").unwrap();
        catch_up(&neighbour).unwrap();
        catch_up(&counter(&database)).unwrap();
        let all = expected(&database);
        assert_eq!(counted(&counter(&database)), all);
        catch_up(&counter(&database).version(1)).unwrap();
        assert_eq!(counted(&counter(&database)), all, "counted anew, not twice");
        let tasks = Filter::Collection(CollectionName::new("tasks").unwrap());
        catch_up(&counter(&database).filter(tasks)).unwrap();
        assert_eq!(counted(&counter(&database))[&b"all"[..]], 2, "created and changed");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(counter(&database).reset()).unwrap();
        assert_eq!(counted(&counter(&database)), BTreeMap::new());
        assert_eq!(counter(&database).state().unwrap().unwrap().cursor, None);
        assert_eq!(counted(&neighbour), all);
        let names: Vec<String> = database.consumers().unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["counter", "counter2"]);
        assert!(database.consumer("a b").is_err() && database.consumer("").is_err());
    }

    /// A consumer in another store's copy of its rows, or after its log lost what it saw, forgets and is told anew.
    #[test]
    fn a_consumer_whose_place_is_gone_counts_what_is_there() {
        let storage = MemoryStorage::new();
        let database = Database::on(storage.clone()).durability(Durability::Buffered).node(node(1)).open().unwrap();
        let notes = database.collection("notes").unwrap();
        notes.create(json!({ "n": 0 })).unwrap().1.wait().unwrap();
        notes.create(json!({ "n": 0 })).unwrap().1.wait().unwrap();
        catch_up(&counter(&database)).unwrap();
        let row = tidelog::log::Storage::get(&storage, tidelog::log::Keyspace::State, b"ccounter").unwrap();
        // Its rows are those of a log that went on differently.
        let other = MemoryStorage::new();
        let database = open(&other, 1);
        database.collection("notes").unwrap().create(json!({ "n": 0 })).unwrap().1.wait().unwrap();
        catch_up(&counter(&database)).unwrap();
        other.tamper(tidelog::log::Keyspace::State, b"ccounter", row);
        catch_up(&counter(&database)).unwrap();
        let counted = counted(&counter(&database));
        assert_eq!((counted.len(), counted[&b"all"[..]]), (2, 1), "one document, told once as it stands");
    }

    #[tokio::test]
    async fn an_effect_outside_has_a_key_that_stays() {
        let storage = MemoryStorage::new();
        let database = open(&storage, 1);
        let mail = database.consumer("mail").unwrap();
        database.collection("notes").unwrap().create(json!({ "n": 0 })).unwrap().1.wait().unwrap();
        let next = async |mail: &Consumer| {
            let mut feed = mail.feed().await.unwrap();
            loop {
                match feed.next().await.unwrap().unwrap() {
                    Item::Event(event) => return event,
                    _ => continue,
                }
            }
        };
        let first = next(&mail).await;
        let key = mail.idempotency_key(&first);
        assert_eq!(mail.idempotency_key(&next(&mail).await), key, "not acknowledged, it comes again under its key");
        mail.acknowledge(first.cursor).await.unwrap();
        database.close();
        drop((mail, database));
        let database = open(&storage.killed(), 1);
        let mail = database.consumer("mail").unwrap();
        let second = next(&mail).await;
        assert!(second.position > first.position && mail.idempotency_key(&second) != key);
        let other = database.consumer("other").unwrap();
        assert_eq!(other.idempotency_key(&next(&other).await) == key, false, "another consumer, another effect");
    }
}
