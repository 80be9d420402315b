//! A database on a disk with faults, held against a plain model through random histories: what was acknowledged is
//! there after every opening, and no position of a log ever means two things.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use tidelog::document::{EditOptions, View};
use tidelog::engine::{DocHandle, Incoming, IncomingBody};
use tidelog::history::Location;
use tidelog::id::{Chain, LogCursor, LogId};
use tidelog::log::record::{CreationRank, Lifecycle, LifecycleKind};
use tidelog::log::{Keyspace, MemoryStorage, Storage as _};
use tidelog::{Change, ChangeHash, CollectionName, Commit, Database, DocumentId, Durability, Error, Heads, Lsn};

use crate::support::{
    SmallEdit, actor, assert_whole, cases, changes_in_view, first_value, logged_changes, narrow, node, origin, plain,
    plain_heads, plain_json, small_edit, without_counters,
};

#[derive(Debug, Clone)]
enum Command {
    Create,
    Named(u8),
    NamedWith(u8),
    /// Edits of one document by two handles, answered later.
    Edit(Index, Vec<SmallEdit>),
    Delete(Index),
    Restore(Index),
    /// Somebody elsewhere edits a document, on top of what is known here or of their own work.
    Elsewhere(Index, Vec<SmallEdit>),
    /// Somebody elsewhere makes a document.
    BornElsewhere(Vec<SmallEdit>),
    /// Some of what was made elsewhere is offered, some of it twice.
    Offer(Vec<Index>),
    Settle,
    Reopen,
    Kill,
    Crash(Index),
}

fn command() -> impl Strategy<Value = Command> {
    let document = || any::<Index>();
    let edits = || vec(small_edit(), 1..4);
    prop_oneof![
        2 => Just(Command::Create),
        1 => (0..3u8).prop_map(Command::Named),
        1 => (0..3u8).prop_map(Command::NamedWith),
        6 => (document(), edits()).prop_map(|(at, edits)| Command::Edit(at, edits)),
        1 => document().prop_map(Command::Delete),
        1 => document().prop_map(Command::Restore),
        4 => (document(), edits()).prop_map(|(at, edits)| Command::Elsewhere(at, edits)),
        1 => edits().prop_map(Command::BornElsewhere),
        4 => vec(any::<Index>(), 1..12).prop_map(Command::Offer),
        2 => Just(Command::Settle),
        1 => Just(Command::Reopen),
        1 => Just(Command::Kill),
        2 => any::<Index>().prop_map(Command::Crash),
    ]
}

/// What the model knows of one document.
#[derive(Default)]
struct Doc {
    /// Changes that were acknowledged.
    acknowledged: BTreeSet<ChangeHash>,
    /// Every change that exists anywhere.
    made: BTreeMap<ChangeHash, Change>,
    created: bool,
    visible: bool,
}

#[expect(clippy::large_enum_variant, reason = "a test holds a handful of them")]
enum Foreign {
    Change(DocumentId, Change),
    Creation(DocumentId, Vec<u8>),
}

struct Model {
    durability: Durability,
    storage: MemoryStorage,
    database: Option<Database>,
    documents: BTreeMap<DocumentId, Doc>,
    in_flight: Vec<(DocumentId, Commit)>,
    foreign: Vec<Foreign>,
    /// Changes offered since the database was opened: they wait in memory for what they depend on.
    offered: Vec<(DocumentId, ChangeHash)>,
    authors: u64,
    /// Every record ever acknowledged, under its name.
    records: HashMap<(LogId, Vec<u8>), Vec<u8>>,
    cursors: Vec<LogCursor>,
    /// Whether anything may have been written since the database was opened, and where its log ended then.
    written_since_open: bool,
    tail_at_open: LogCursor,
}

/// What an opening may have lost.
#[derive(Clone, Copy, PartialEq)]
enum Loss {
    /// Nothing: the database was closed.
    Nothing,
    /// What was not acknowledged.
    Unacknowledged,
    /// What was not synced.
    Unsynced,
}

impl Model {
    fn new(durability: Durability) -> Self {
        let mut model = Self {
            durability,
            storage: MemoryStorage::new(),
            database: None,
            documents: BTreeMap::new(),
            in_flight: Vec::new(),
            foreign: Vec::new(),
            offered: Vec::new(),
            authors: 0,
            records: HashMap::new(),
            cursors: Vec::new(),
            written_since_open: false,
            tail_at_open: LogCursor { log_id: LogId([0; 16]), lsn: Lsn::ZERO, chain: Chain([0; 16]) },
        };
        model.open();
        model
    }

    fn open(&mut self) {
        let builder = Database::on(self.storage.clone()).node(node(1)).durability(self.durability).limits(narrow());
        let database = builder.open().unwrap();
        self.tail_at_open = database.reader().tail();
        self.database = Some(database);
        self.written_since_open = false;
    }

    fn database(&self) -> &Database {
        self.database.as_ref().unwrap()
    }

    fn pick(&self, at: &Index) -> Option<(DocumentId, DocHandle)> {
        let created: Vec<DocumentId> =
            self.documents.iter().filter(|(_, doc)| doc.created).map(|(id, _)| *id).collect();
        if created.is_empty() {
            return None;
        }
        let id = *at.get(&created);
        // A document that was created and not answered yet cannot be found.
        self.database().find(id).ok().map(|handle| (id, handle))
    }

    fn run(&mut self, command: &Command) {
        match command {
            Command::Create => {
                let notes = self.database().collection("notes").unwrap();
                let (handle, commit) = notes.create(first_value()).unwrap();
                self.note_created(handle.id(), true);
                self.note_view(&handle);
                self.in_flight.push((handle.id(), commit));
            }
            Command::Named(number) => self.named(*number, false),
            Command::NamedWith(number) => self.named(*number, true),
            Command::Edit(at, edits) => self.edit(at, edits),
            Command::Delete(at) => self.live(at, LifecycleKind::Deleted),
            Command::Restore(at) => self.live(at, LifecycleKind::Restored),
            Command::Elsewhere(at, edits) => self.elsewhere(at, edits),
            Command::BornElsewhere(edits) => self.born_elsewhere(edits),
            Command::Offer(which) => self.offer(which),
            Command::Settle => self.settle(),
            Command::Reopen => {
                self.settle();
                let before = self.database().reader().tail();
                self.database().close();
                self.reopened(before, Loss::Nothing);
            }
            Command::Kill => {
                let before = self.database().reader().tail();
                self.storage = self.storage.killed();
                self.reopened(before, Loss::Unacknowledged);
            }
            Command::Crash(kept) => {
                let before = self.database().reader().tail();
                let unsynced = self.storage.unsynced_batches();
                self.storage = self.storage.crashed(kept.index(unsynced + 1));
                let buffered = self.durability == Durability::Buffered;
                self.reopened(before, if buffered { Loss::Unsynced } else { Loss::Unacknowledged });
            }
        }
    }

    fn note_created(&mut self, id: DocumentId, visible: bool) {
        let doc = self.documents.entry(id).or_default();
        doc.created = true;
        doc.visible = visible;
        self.written_since_open = true;
    }

    fn note_view(&mut self, handle: &DocHandle) {
        let doc = self.documents.entry(handle.id()).or_default();
        for change in changes_in_view(handle) {
            doc.made.entry(change.hash()).or_insert(change);
        }
    }

    fn named(&mut self, number: u8, with_value: bool) {
        let notes = self.database().collection("named").unwrap();
        let name = format!("name {number}");
        let handle = if with_value { notes.doc_with(&name, first_value()) } else { notes.doc(&name) }.unwrap();
        if !self.documents.get(&handle.id()).is_some_and(|doc| doc.created) {
            self.note_created(handle.id(), true);
            self.note_view(&handle);
            let there = changes_in_view(&handle).iter().map(Change::hash).collect();
            self.documents.get_mut(&handle.id()).unwrap().acknowledged = there;
        }
    }

    fn edit(&mut self, at: &Index, edits: &[SmallEdit]) {
        let Some((id, handle)) = self.pick(at) else { return };
        let other = self.database().find(id).unwrap();
        for (n, small) in edits.iter().enumerate() {
            let handle = if n % 2 == 0 { &handle } else { &other };
            match handle.change(|edit| {
                small.run(edit);
                Ok(())
            }) {
                Ok(commit) => self.in_flight.push((id, commit)),
                Err(Error::Deleted(_)) => assert!(!self.documents[&id].visible),
                Err(error) => panic!("{error}"),
            }
        }
        self.written_since_open = true;
        self.note_view(&handle);
    }

    fn live(&mut self, at: &Index, kind: LifecycleKind) {
        let Some((id, handle)) = self.pick(at) else { return };
        let visible = self.documents[&id].visible;
        let stated = if kind == LifecycleKind::Deleted { handle.delete() } else { handle.restore() };
        if (kind == LifecycleKind::Deleted) != visible {
            assert!(stated.is_err());
            return;
        }
        stated.unwrap().wait().unwrap();
        self.written_since_open = true;
        self.documents.get_mut(&id).unwrap().visible = !visible;
        assert_eq!(handle.state().unwrap().visible, !visible);
    }

    fn foreign_changes(&mut self, base: &[u8], edits: &[SmallEdit]) -> Vec<Change> {
        self.authors += 1;
        let mut view = View::load(base).unwrap();
        let make = |small: &SmallEdit| {
            let options = EditOptions { actor: actor(self.authors), time: 7, message: None };
            let edits = |edit: &mut tidelog::Edit<'_>| {
                small.run(edit);
                Ok::<(), Error>(())
            };
            view.edit(options, edits).unwrap().1
        };
        edits.iter().filter_map(make).collect()
    }

    fn elsewhere(&mut self, at: &Index, edits: &[SmallEdit]) {
        let known: Vec<DocumentId> = self.documents.keys().copied().collect();
        if known.is_empty() {
            return;
        }
        let id = *at.get(&known);
        // Everything made so far, or only half of it: whatever is causally whole.
        let doc = &self.documents[&id];
        let base = plain(doc.made.values());
        let upto = if at.index(2) == 0 { base.get_heads() } else { plain(doc.made.values().take(1)).get_heads() };
        let base = base.fork_at(&upto).unwrap_or(base).save();
        for change in self.foreign_changes(&base, edits) {
            self.documents.get_mut(&id).unwrap().made.insert(change.hash(), change.clone());
            self.foreign.push(Foreign::Change(id, change));
        }
    }

    fn born_elsewhere(&mut self, edits: &[SmallEdit]) {
        let id = DocumentId::random();
        let changes = self.foreign_changes(&[], edits);
        let statement = Lifecycle {
            document: id,
            collection: CollectionName::new("born").unwrap(),
            kind: LifecycleKind::Created,
            rank: CreationRank::Asked,
            lamport: 1,
            author: node(9),
            actor: None,
            time_ms: 5,
            heads: Heads::default(),
            name: None,
        };
        let doc = self.documents.entry(id).or_default();
        for change in changes {
            doc.made.insert(change.hash(), change.clone());
            self.foreign.push(Foreign::Change(id, change));
        }
        self.foreign.push(Foreign::Creation(id, statement.encode()));
    }

    fn offer(&mut self, which: &[Index]) {
        if self.foreign.is_empty() {
            return;
        }
        let mut rows = Vec::new();
        for at in which {
            let (document, body) = match at.get(&self.foreign) {
                Foreign::Change(id, change) => {
                    self.offered.push((*id, change.hash()));
                    (*id, IncomingBody::Change(Box::new(change.clone())))
                }
                Foreign::Creation(id, bytes) => {
                    let doc = self.documents.get_mut(id).unwrap();
                    if !doc.created {
                        (doc.created, doc.visible) = (true, true);
                    }
                    (*id, IncomingBody::Lifecycle(bytes.clone()))
                }
            };
            rows.push(Incoming { document, body, origin: origin(9), signature: None });
        }
        self.written_since_open = true;
        let answer = self.database().admit_blocking(rows).unwrap();
        assert!(answer.refused.is_empty(), "{:?}", answer.refused);
        self.settle();
    }

    /// Waits for every commit; then the database holds exactly what the model says.
    fn settle(&mut self) {
        for (id, commit) in std::mem::take(&mut self.in_flight) {
            let hash = commit.change();
            commit.wait().unwrap();
            self.documents.get_mut(&id).unwrap().acknowledged.extend(hash);
        }
        self.arrive();
        for (id, doc) in &self.documents {
            self.check_document(*id, doc);
        }
        self.note_log();
    }

    /// What was offered is taken once everything it depends on is.
    fn arrive(&mut self) {
        loop {
            let mut arrived = false;
            for (id, hash) in &self.offered {
                let doc = self.documents.get_mut(id).unwrap();
                let ready = doc.made[hash].deps().iter().all(|dep| doc.acknowledged.contains(dep));
                arrived |= doc.created && ready && doc.acknowledged.insert(*hash);
            }
            if !arrived {
                return;
            }
        }
    }

    fn check_document(&self, id: DocumentId, doc: &Doc) {
        let reader = self.database().reader();
        let Some(state) = reader.document(id).unwrap() else {
            assert!(!doc.created, "{id} is gone");
            return;
        };
        let logged = logged_changes(reader, id);
        let hashes: BTreeSet<ChangeHash> = logged.keys().copied().collect();
        assert_eq!(hashes, doc.acknowledged, "{id}");
        let expected = plain(logged.values());
        assert_eq!(state.heads, plain_heads(&expected));
        assert_eq!(state.change_count, hashes.len() as u64);
        assert_eq!(state.visible, doc.visible);
        let json = self.database().find(id).unwrap().to_json().unwrap();
        assert_eq!(without_counters(json), plain_json(&expected));
    }

    /// Holds every record against what its name meant before, and the cursors against the log.
    fn note_log(&mut self) {
        let (reader, records) = (self.database.as_ref().unwrap().reader(), &mut self.records);
        let tail = reader.tail();
        let scanned = self.storage.scan(Keyspace::Log, &[], &[0xff; 9], false, &mut |key, value| {
            let known = records.entry((tail.log_id, key.to_vec())).or_insert_with(|| value.to_vec());
            assert_eq!(known, value, "a position was used twice");
            ControlFlow::Continue(())
        });
        scanned.unwrap();
        self.cursors.push(tail);
        for cursor in &self.cursors {
            let expected = if cursor.log_id == tail.log_id { Location::Known } else { Location::Unknown };
            assert_eq!(reader.locate(cursor).unwrap(), expected, "{cursor:?} in a log that ends at {tail:?}");
        }
        if tail.lsn == Lsn::ZERO {
            return;
        }
        for forged in [
            LogCursor { chain: Chain([0x55; 16]), ..tail },
            LogCursor { lsn: Lsn(tail.lsn.0 - 1), ..tail },
            LogCursor { lsn: tail.lsn.next(), ..tail },
        ] {
            assert_eq!(reader.locate(&forged).unwrap(), Location::Diverged, "{forged:?}");
        }
    }

    fn reopened(&mut self, before: LogCursor, loss: Loss) {
        let unanswered: BTreeSet<DocumentId> = self.in_flight.drain(..).map(|(id, _)| id).collect();
        self.offered.clear();
        let buffered = self.durability == Durability::Buffered && loss != Loss::Nothing;
        let (wrote, moved) = (self.written_since_open, before != self.tail_at_open);
        self.database = None;
        self.open();
        let renewed = self.database().log_renewed();
        assert_eq!(renewed, before.log_id != self.database().reader().log_id());
        assert!(renewed || !(buffered && moved), "a buffered log kept its id");
        assert!(!renewed || buffered && wrote, "the log got a new id for no reason");
        self.take_over(loss, &unanswered);
        self.settle();
        assert_whole(self.database());
    }

    /// What survived becomes what is acknowledged, if no more than was allowed is missing or new.
    fn take_over(&mut self, loss: Loss, unanswered: &BTreeSet<DocumentId>) {
        let reader = self.database.as_ref().unwrap().reader().clone();
        for (id, doc) in &mut self.documents {
            let state = reader.document(*id).unwrap();
            let Some(state) = state else {
                let may_be_gone = loss == Loss::Unsynced || doc.acknowledged.is_empty() && unanswered.contains(id);
                assert!(!doc.created || may_be_gone, "{id} is gone");
                (doc.created, doc.visible) = (false, false);
                doc.acknowledged.clear();
                continue;
            };
            let there: BTreeSet<ChangeHash> = logged_changes(&reader, *id).keys().copied().collect();
            assert!(there.iter().all(|hash| doc.made.contains_key(hash)), "a change out of nowhere");
            if loss == Loss::Unsynced {
                doc.visible = state.visible;
            } else {
                assert!(doc.acknowledged.is_subset(&there), "acknowledged changes of {id} are gone");
                assert!(unanswered.contains(id) || there == doc.acknowledged);
                assert_eq!(doc.visible, state.visible);
            }
            doc.acknowledged = there;
        }
    }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn a_synced_database_keeps_what_it_acknowledged(commands in vec(command(), 1..60)) {
        let mut model = Model::new(Durability::Synced);
        commands.iter().for_each(|command| model.run(command));
        model.run(&Command::Kill);
        model.run(&Command::Reopen);
    }

    #[test]
    fn a_buffered_database_keeps_a_whole_prefix(commands in vec(command(), 1..60)) {
        let mut model = Model::new(Durability::Buffered);
        commands.iter().for_each(|command| model.run(command));
        model.run(&Command::Kill);
        model.run(&Command::Reopen);
    }
}
