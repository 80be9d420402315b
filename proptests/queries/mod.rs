//! Queries and listeners against a model that looks at every document and compares values as the page says, sharing no
//! code with what it judges: whatever the documents, indexes and crashes, answers are the model's, and each listener's
//! changes lead from the result that it told last to the result that is.

mod model;

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};
use tidelog::document::{EditOptions, Patch, PatchAction, View};
use tidelog::engine::{Incoming, IncomingBody};
use tidelog::feed::FeedCursor;
use tidelog::history::Origin;
use tidelog::id::ActorId;
use tidelog::log::record::Admission;
use tidelog::log::{Durability, Keyspace, MemoryStorage, Storage as _};
use tidelog::query::{ChangeKind, Document, ListenOptions, Listener, QuerySnapshot, field};
use tidelog::{Collection, Database, DocumentId};

use self::model::{answer, query, value};
use crate::support::{cases, narrow, node};

#[derive(Debug, Clone)]
enum Step {
    Create(Value),
    Edit(Index, Value),
    Delete(Index),
    Restore(Index),
    Reopen { lost: Option<Index> },
    Listen(Value),
    Leave(Index),
    Resume(Index),
    Declare(usize),
    Drop(Index),
    Ask(Value),
}

const INDEXES: [&[&str]; 7] = [
    &["a"],
    &["a", "b desc"],
    &["tags elements"],
    &["b desc"],
    &["deep.x", "a"],
    &["a desc", "b"],
    &["tags elements", "a desc"],
];

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => value().prop_map(Step::Create),
        8 => (any::<Index>(), value()).prop_map(|(which, value)| Step::Edit(which, value)),
        2 => any::<Index>().prop_map(Step::Delete),
        2 => any::<Index>().prop_map(Step::Restore),
        1 => proptest::option::of(any::<Index>()).prop_map(|lost| Step::Reopen { lost }),
        4 => query().prop_map(Step::Listen),
        1 => any::<Index>().prop_map(Step::Leave),
        2 => any::<Index>().prop_map(Step::Resume),
        2 => (0..INDEXES.len()).prop_map(Step::Declare),
        1 => any::<Index>().prop_map(Step::Drop),
        4 => query().prop_map(Step::Ask),
    ]
}

/// What is there: the present values of all visible documents.
type Truth = BTreeMap<DocumentId, Value>;

/// A listener, what it told, and where it was at some moments.
struct Follower {
    asked: Value,
    listener: Listener,
    told: Vec<(DocumentId, Value)>,
    been: Vec<(FeedCursor, Vec<(DocumentId, Value)>)>,
}

struct World {
    storage: MemoryStorage,
    database: Option<Database>,
    ids: Vec<DocumentId>,
    followers: Vec<Follower>,
}

impl World {
    fn new() -> Self {
        let mut world = Self { storage: MemoryStorage::new(), database: None, ids: Vec::new(), followers: Vec::new() };
        world.open();
        world
    }

    fn open(&mut self) {
        let opened = Database::on(self.storage.clone()).node(node(1)).limits(narrow()).durability(Durability::Synced);
        self.database = Some(opened.open().unwrap());
    }

    fn collection(&self) -> Collection {
        self.database.as_ref().unwrap().collection("notes").unwrap()
    }

    fn truth(&self) -> Truth {
        let reader = self.database.as_ref().unwrap().reader();
        let mut truth = Truth::new();
        for (id, _) in reader.inventory(None, usize::MAX).unwrap() {
            let handle = self.database.as_ref().unwrap().find(id).unwrap();
            let state = handle.state().unwrap();
            if state.visible && !state.heads.as_slice().is_empty() && handle.collection().as_str() == "notes" {
                truth.insert(id, handle.to_json().unwrap());
            }
        }
        truth
    }

    fn run(&mut self, step: Step) {
        let collection = self.collection();
        let pick = |which: &Index| (!self.ids.is_empty()).then(|| self.ids[which.index(self.ids.len())]);
        match step {
            Step::Create(value) => {
                let (handle, commit) = collection.create(value).unwrap();
                commit.wait().unwrap();
                self.ids.push(handle.id());
            }
            Step::Edit(which, value) => {
                let Some(id) = pick(&which) else { return };
                let edited = collection.find(id).unwrap().change(|edit| Ok(edit.put("", &value)?));
                // A deleted document is not edited.
                if let Ok(commit) = edited {
                    commit.wait().unwrap();
                }
            }
            Step::Delete(which) => {
                if let Some(Ok(commit)) = pick(&which).map(|id| collection.find(id).unwrap().delete()) {
                    commit.wait().unwrap();
                }
            }
            Step::Restore(which) => {
                if let Some(Ok(commit)) = pick(&which).map(|id| collection.find(id).unwrap().restore()) {
                    commit.wait().unwrap();
                }
            }
            Step::Reopen { lost } => self.reopen(collection, lost),
            Step::Listen(asked) => self.listen(asked, None),
            Step::Leave(which) => {
                if !self.followers.is_empty() {
                    self.followers.remove(which.index(self.followers.len()));
                }
            }
            Step::Resume(which) => {
                if self.followers.is_empty() {
                    return;
                }
                let follower = &self.followers[which.index(self.followers.len())];
                if follower.been.is_empty() {
                    return;
                }
                let been = follower.been[which.index(follower.been.len())].clone();
                self.listen(follower.asked.clone(), Some(been));
            }
            Step::Declare(which) => drop(collection.declare_index(INDEXES[which]).unwrap()),
            Step::Drop(which) => {
                let indexes = collection.indexes().unwrap();
                if !indexes.is_empty() {
                    collection.drop_index(&indexes[which.index(indexes.len())].id).unwrap();
                }
            }
            Step::Ask(asked) => self.ask(&asked),
        }
    }

    /// Ends the process: with `lost`, some of what was not waited for is gone, among it rows that queries keep.
    fn reopen(&mut self, collection: Collection, lost: Option<Index>) {
        drop(collection);
        let been: Vec<_> =
            self.followers.drain(..).map(|follower| (follower.asked, follower.been.last().cloned())).collect();
        self.database.take().unwrap().close();
        self.storage = match lost {
            None => self.storage.killed(),
            Some(lost) => self.storage.crashed(lost.index(self.storage.unsynced_batches() + 1)),
        };
        self.open();
        for (asked, been) in been {
            self.listen(asked, been);
        }
    }

    fn listen(&mut self, asked: Value, been: Option<(FeedCursor, Vec<(DocumentId, Value)>)>) {
        let (query, _) = self.collection().query_of_json(&asked).unwrap();
        let options = ListenOptions::default();
        let (options, told) = match been {
            Some((position, told)) => (options.since(position), told),
            None => (options, Vec::new()),
        };
        let mut follower = Follower { asked, listener: query.on_snapshot(options).unwrap(), told, been: Vec::new() };
        let had = !follower.told.is_empty();
        let first = follower.listener.next_now().unwrap().unwrap();
        // All that the tests do leaves a way from then to now.
        assert!(first.is_reset() != had || !had, "a listener goes on from where it was");
        follower.take(&first);
        self.followers.push(follower);
    }

    /// Puts a query once, and its number of documents.
    fn ask(&self, asked: &Value) {
        let truth = self.truth();
        let (query, _) = self.collection().query_of_json(asked).unwrap();
        let expected = answer(asked, &truth);
        let found = query.get_now().unwrap();
        assert_eq!(pairs(found.docs()), expected, "{asked}");
        assert_eq!(query.count_now().unwrap(), expected.len(), "{asked}");
        assert!(found.doc_changes().iter().all(|change| change.kind == ChangeKind::Added));
    }

    /// Holds every listener against what is there.
    fn check(&mut self) {
        let truth = self.truth();
        for follower in &mut self.followers {
            // Once the log's end is taken in, listeners were told.
            futures_executor(&follower.listener);
            while let Some(snapshot) = follower.listener.try_next().unwrap() {
                assert!(!snapshot.is_reset() && !snapshot.doc_changes().is_empty());
                follower.take(&snapshot);
            }
            assert_eq!(follower.told, answer(&follower.asked, &truth), "{}", follower.asked);
        }
    }
}

fn futures_executor(listener: &Listener) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(listener.ready()).unwrap();
}

impl Follower {
    /// Applies the changes of a snapshot to what was told, and remembers where that is.
    fn take(&mut self, snapshot: &QuerySnapshot) {
        if snapshot.is_reset() {
            self.told.clear();
        }
        for change in snapshot.doc_changes() {
            let pair = (change.document.id, change.document.value.clone());
            if let Some(at) = change.old_index {
                assert_eq!(self.told.remove(at).0, pair.0);
            }
            if let Some(at) = change.new_index {
                self.told.insert(at, pair);
            }
        }
        assert_eq!(self.told, pairs(snapshot.docs()));
        self.been.push((snapshot.metadata().position, self.told.clone()));
    }
}

fn pairs(documents: &[Arc<Document>]) -> Vec<(DocumentId, Value)> {
    documents.iter().map(|document| (document.id, document.value.clone())).collect()
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn answers_and_listeners_are_what_a_look_at_everything_gives(steps in vec(step(), 1..40)) {
        let mut world = World::new();
        for step in steps {
            world.run(step);
            world.check();
        }
    }
}

#[test]
fn a_query_that_looks_at_too_much_names_the_index_that_helps() {
    let database = Database::on(MemoryStorage::new()).durability(Durability::Buffered).open().unwrap();
    let collection = database.collection("many").unwrap();
    for n in 0..20_050 {
        let commit = collection.create(json!({"n": n, "kind": n % 3, "tag": ["a"]}));
        match commit {
            Ok((_, commit)) if n % 512 == 0 => drop(commit.wait().unwrap()),
            Ok(_) => {}
            Err(error) => panic!("{error}"),
        }
    }
    let asked = json!({"where": {"and": [
        {"field": "kind", "op": "==", "value": 9}, {"field": "n", "op": "!=", "value": 5}
    ]}, "orderBy": [{"field": "n", "direction": "desc"}], "limit": 3});
    let (query, _) = collection.query_of_json(&asked).unwrap();
    let error = query.get_now().unwrap_err();
    assert_eq!(error.code(), "E0626", "{error}");
    assert!(error.remedy().unwrap().starts_with("declare the index [kind, n desc] on many, or ask for less"));
    let state = collection.declare_index(["kind", "n desc"]).unwrap();
    assert_eq!(state.fields, ["kind", "n desc"]);
    // Made in the background, within a bounded number of looks.
    let is_ready = || collection.indexes().unwrap().iter().any(|index| index.id == state.id && index.ready);
    while !is_ready() {
        std::thread::yield_now();
    }
    assert!(query.get_now().unwrap().docs().is_empty());
    // Dropped and declared again at once, it comes again once the old one is gone.
    collection.drop_index(&state.id).unwrap();
    while is_ready() {
        std::thread::yield_now();
    }
    collection.declare_index(["kind", "n desc"]).unwrap();
    while !is_ready() {
        std::thread::yield_now();
    }
    let largest = json!({"where": {"field": "kind", "op": "==", "value": 1}, "orderBy": [{"field": "n", "direction": "desc"}], "limit": 2});
    let found = collection.query_of_json(&largest).unwrap().0.get_now().unwrap();
    let numbers: Vec<&Value> = found.docs().iter().map(|document| &document.value["n"]).collect();
    assert_eq!(numbers, [20_047, 20_044]);
    let all = collection.query().get_now().unwrap_err();
    assert_eq!(all.code(), "E0626");
    assert_eq!(collection.query().count_now().unwrap(), 20_050);
}

#[test]
fn a_listener_ends_with_its_database() {
    let database = Database::on(MemoryStorage::new()).open().unwrap();
    let mut listener = database.collection("notes").unwrap().query().on_snapshot(ListenOptions::default()).unwrap();
    assert!(listener.next_now().unwrap().unwrap().docs().is_empty());
    database.close();
    assert_eq!(listener.next_now().unwrap().unwrap_err().code(), "E0406");
    assert!(listener.next_now().is_none());
    let error = database.collection("others").unwrap().query().get_now().unwrap_err();
    assert_eq!(error.code(), "E0406");
}

#[test]
fn asking_for_collections_that_are_not_there_keeps_nothing() {
    let storage = MemoryStorage::new();
    let database = Database::on(storage.clone()).open().unwrap();
    for n in 0..600 {
        let collection = database.collection(&format!("no{n}")).unwrap();
        assert_eq!(collection.query().count_now().unwrap(), 0);
    }
    let mut rows = 0;
    let mut visit = |_: &[u8], _: &[u8]| {
        rows += 1;
        std::ops::ControlFlow::Continue(())
    };
    storage.scan(Keyspace::State, b"v", b"w", false, &mut visit).unwrap();
    storage.scan(Keyspace::Views, &[0], &[255; 64], false, &mut visit).unwrap();
    assert_eq!(rows, 0);
    let notes = database.collection("no7").unwrap();
    notes.create(json!({"a": 1})).unwrap().1.wait().unwrap();
    assert_eq!(notes.query().get_now().unwrap().docs().len(), 1);
}

#[test]
fn a_query_materialises_nothing_once_its_collection_was_read() {
    let storage = MemoryStorage::new();
    let database = Database::on(storage.clone()).open().unwrap();
    let notes = database.collection("notes").unwrap();
    for n in 0..300 {
        notes.create(json!({"n": n, "text": "x".repeat(if n == 5 { 60_000 } else { 5 }), "more": "y".repeat(if n == 5 { 60_000 } else { 5 })})).unwrap().1.wait().unwrap();
    }
    assert_eq!(notes.query().count_now().unwrap(), 300);
    drop(notes);
    database.close();
    let database = Database::on(storage.killed()).open().unwrap();
    let notes = database.collection("notes").unwrap();
    let found = notes.query().filter(field("n").ge(100)).order_by_desc("n").limit(50).get_now().unwrap();
    assert_eq!((found.docs().len(), &found.docs()[0].value["n"]), (50, &json!(299)));
    assert_eq!(database.status().materializations, 0);
    // One whose value is too large to be kept whole is found by what is kept, and read when it is returned.
    let (text, more) = ("x".repeat(60_000), "y".repeat(60_000));
    let found = notes.query().filter(field("text").eq(text.as_str())).get_now().unwrap();
    assert_eq!(found.docs()[0].value, json!({"n": 5, "text": text, "more": more}));
    assert_eq!(database.status().materializations, 1);
}

#[test]
fn a_merge_is_told_once_with_its_patches_and_its_conflicts() {
    let database = Database::on(MemoryStorage::new()).open().unwrap();
    let notes = database.collection("notes").unwrap();
    let (note, created) = notes.create(json!({"title": "Tides", "deep": {"list": [{"x": 0}]}})).unwrap();
    created.wait().unwrap();
    let options = ListenOptions::default().patches().conflicts();
    let mut listener = notes.query().on_snapshot(options).unwrap();
    let first = listener.next_now().unwrap().unwrap();
    assert_eq!(first.doc_changes()[0].conflicts, Some(vec![]));
    // Somebody else has edited the same value meanwhile.
    let saved = note.with_view(|view| Ok(view.save()?)).unwrap();
    let mut elsewhere = View::load(&saved).unwrap();
    let edit = EditOptions { actor: ActorId::random(), time: 1, message: None };
    let (_, theirs) = elsewhere.edit(edit, |edit| edit.put("deep.list.0.x", 2)).unwrap();
    note.change(|edit| Ok(edit.put("deep.list.0.x", 1)?)).unwrap().wait().unwrap();
    let ours = listener.next_now().unwrap().unwrap();
    let put = |value: i32, conflict: bool| Patch {
        path: "deep.list.0.x".into(),
        action: PatchAction::Put { value: json!(value), conflict },
    };
    assert_eq!(ours.doc_changes()[0].patches, Some(vec![put(1, false)]));
    let origin = Origin { node: node(2), principal: String::new(), admission: Admission::Structural, rules_version: 0 };
    let row = Incoming {
        document: note.id(),
        body: IncomingBody::Change(Box::new(theirs.unwrap())),
        origin,
        signature: None,
    };
    assert_eq!(database.admit_blocking(vec![row]).unwrap().accepted, 1);
    let merged = listener.next_now().unwrap().unwrap();
    let [change] = merged.doc_changes() else { panic!("{:?}", merged.doc_changes()) };
    assert_eq!((change.kind, change.old_index, change.new_index), (ChangeKind::Modified, Some(0), Some(0)));
    let all = note.with_view(|view| Ok(view.conflicts("deep.list.0.x")?)).unwrap();
    assert_eq!(change.conflicts, Some(vec![("/deep/list/0/x".to_owned(), all.clone())]));
    let won = all.last().unwrap();
    assert_eq!(&change.document.value["deep"]["list"][0]["x"], won);
    let expected = if *won == json!(2) {
        put(2, true)
    } else {
        Patch { path: "deep.list.0.x".into(), action: PatchAction::Conflict }
    };
    assert_eq!(change.patches, Some(vec![expected]));
}

#[test]
fn a_document_is_in_results_from_its_first_change_on() {
    let database = Database::on(MemoryStorage::new()).open().unwrap();
    let notes = database.collection("notes").unwrap();
    let mut listener = notes.query().on_snapshot(ListenOptions::default()).unwrap();
    assert!(listener.next_now().unwrap().unwrap().docs().is_empty());
    let note = notes.doc("named").unwrap();
    assert!(notes.query().get_now().unwrap().docs().is_empty());
    note.change(|edit| Ok(edit.put("a", 1)?)).unwrap().wait().unwrap();
    let told = listener.next_now().unwrap().unwrap();
    assert_eq!((told.doc_changes().len(), &told.docs()[0].value), (1, &json!({"a": 1})));
}
