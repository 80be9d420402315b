//! Changes that a trusted node brought and that automerge cannot apply: the rest of the document is read and edited as if
//! they were not there, and everything but views keeps them.

use std::collections::{BTreeMap, HashSet};

use automerge::marks::ExpandMark;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::json;
use tidelog::document::{EditOptions, View, ViewError};
use tidelog::engine::{Clash, Incoming, IncomingBody};
use tidelog::history::EntryKind;
use tidelog::log::MemoryStorage;
use tidelog::{Change, ChangeHash, Database, DocHandle, DocumentId, Error, Heads, Lsn};

use crate::gate::{plain_change, unappliable, ungivable};
use crate::support::{
    SmallEdit, actor, assert_whole, cases, first_value, logged_changes, narrow, node, origin, plain, plain_heads,
    plain_json, rows_after, small_edit, without_counters,
};

const DOCUMENT: DocumentId = DocumentId([7; 16]);

fn open(storage: &MemoryStorage, number: u8) -> Database {
    Database::on(storage.clone()).node(node(number)).limits(narrow()).open().unwrap()
}

fn reopened(storage: &MemoryStorage, database: Database) -> (MemoryStorage, Database) {
    database.close();
    drop(database);
    let storage = storage.killed();
    let database = open(&storage, 1);
    (storage, database)
}

fn row(change: &Change) -> Incoming {
    Incoming {
        document: DOCUMENT,
        body: IncomingBody::Change(Box::new(change.clone())),
        origin: origin(9),
        signature: None,
    }
}

/// Offers changes as a trusted node does: nobody tries them.
fn offer(database: &Database, changes: &[Change]) {
    let admitted = database.admit_blocking(changes.iter().map(row).collect()).unwrap();
    assert_eq!(
        (admitted.accepted, admitted.refused.len(), admitted.missing.len()),
        (changes.len(), 0, 0),
        "{admitted:?}"
    );
}

/// A database with the document, and the changes it begins with.
fn begun(storage: &MemoryStorage) -> (Database, Vec<Change>) {
    let database = open(storage, 1);
    let document = database.collection("notes").unwrap().create_with_id(DOCUMENT).unwrap();
    let begin = |edit: &mut tidelog::Edit<'_>| {
        first_value().as_object().unwrap().iter().try_for_each(|(key, value)| Ok(edit.put(key.as_str(), value)?))
    };
    document.change(begin).unwrap().wait().unwrap();
    let changes = logged_changes(database.reader(), DOCUMENT).into_values().collect();
    (database, changes)
}

fn document(database: &Database) -> DocHandle {
    database.find(DOCUMENT).unwrap()
}

fn put(database: &Database, key: &str, value: u64) {
    document(database).change(|edit| Ok(edit.put(key, value)?)).unwrap().wait().unwrap();
}

/// Changes that no view shows, by the rule in plain words: the bad ones, what stands on them, and what their authors
/// made later.
fn hidden(changes: &[Change], bad: &HashSet<ChangeHash>) -> HashSet<ChangeHash> {
    let mut hidden = bad.clone();
    loop {
        let before = hidden.len();
        for change in changes {
            let later = changes.iter().any(|other| {
                hidden.contains(&other.hash()) && other.actor() == change.actor() && other.seq() < change.seq()
            });
            if later || change.deps().iter().any(|dep| hidden.contains(dep)) {
                hidden.insert(change.hash());
            }
        }
        if hidden.len() == before {
            return hidden;
        }
    }
}

/// In an order in which each comes after what it depends on.
fn in_order(changes: BTreeMap<ChangeHash, Change>) -> Vec<Change> {
    let mut changes: Vec<Change> = changes.into_values().collect();
    changes.sort_by_key(|change| (change.start_op(), change.hash()));
    changes
}

/// What the document shows is what automerge makes of the changes that are not hidden, and the rest is as ever.
fn check(database: &Database, bad: &HashSet<ChangeHash>) {
    let changes = in_order(logged_changes(database.reader(), DOCUMENT));
    let hidden = hidden(&changes, bad);
    let expected = plain(changes.iter().filter(|change| !hidden.contains(&change.hash())));
    let handle = document(database);
    assert_eq!(without_counters(handle.to_json().unwrap()), plain_json(&expected));
    let heads = handle.with_view(|view| Ok(view.heads())).unwrap();
    assert_eq!(heads, plain_heads(&expected));
    let state = handle.state().unwrap();
    assert_eq!(state.change_count, changes.len() as u64);
    let all: HashSet<ChangeHash> = changes.iter().flat_map(|change| change.deps().to_vec()).collect();
    let ends = changes.iter().map(Change::hash).filter(|hash| !all.contains(hash)).collect();
    assert_eq!(state.heads, Heads::new(ends), "the heads that others are told");
    // Those that stand on another are hidden by it.
    let voids: HashSet<ChangeHash> = bad
        .iter()
        .filter(|hash| {
            let others = bad.iter().filter(|other| other != hash).copied().collect();
            !self::hidden(&changes, &others).contains(*hash)
        })
        .copied()
        .collect();
    let degraded = database.reader().degraded(DOCUMENT).unwrap();
    assert_eq!(state.degraded, degraded.is_some());
    match degraded {
        None => assert!(bad.is_empty()),
        Some(degraded) => {
            assert_eq!((degraded.voids, degraded.hidden), (voids.len() as u64, hidden.len() as u64));
            assert_eq!(degraded.heads, heads);
        }
    }
    let found = database.verify(true, &mut |_, _| {}).unwrap();
    assert!(found.faults.is_empty(), "{:#?}", found.faults);
    let listed: HashSet<ChangeHash> = found
        .voids
        .iter()
        .map(|void| match database.reader().record(void.record).unwrap() {
            Some(tidelog::log::record::Record::Change(header, _)) if void.is_on_record => ChangeHash(header.hash),
            other => panic!("{void:?} is about {other:?}"),
        })
        .collect();
    assert_eq!((listed, found.voids.len()), (voids.clone(), voids.len()));
}

/// The projections made again from the log are the ones before.
fn check_rebuild(database: &Database) {
    // Nobody writes meanwhile: the saver, too, finds changes that cannot be applied, and says so in the log.
    database.close();
    let reader = database.reader();
    let without_snapshot =
        |row: tidelog::log::rows::DocumentRow| tidelog::log::rows::DocumentRow { snapshot: None, ..row };
    let before = reader.row(DOCUMENT).unwrap().map(without_snapshot);
    let index = reader.index(DOCUMENT, Lsn::ZERO).unwrap();
    tidelog::history::rebuild(&**reader.storage(), reader.tail().lsn, &mut |_, _| {}).unwrap();
    assert_eq!(reader.row(DOCUMENT).unwrap().map(without_snapshot), before);
    assert_eq!(reader.index(DOCUMENT, Lsn::ZERO).unwrap(), index);
}

fn voids_in_log(database: &Database) -> usize {
    let entries = database.reader().read_log(Lsn::ZERO, usize::MAX, usize::MAX).unwrap();
    entries.iter().filter(|entry| matches!(entry.kind, EntryKind::Void { .. })).count()
}

#[test]
fn a_change_that_cannot_be_applied_leaves_the_rest_of_its_document_readable_for_ever() {
    let storage = MemoryStorage::new();
    let (database, base) = begun(&storage);
    let next = base.last().unwrap().start_op() + base.last().unwrap().op_count();
    let bad = unappliable(&[base.last().unwrap().hash()], next, (0x66, 1));
    let on_top = plain_change(&[bad.hash()], next + 1, (0x77, 1));
    put(&database, "before", 1);
    offer(&database, &[bad.clone(), on_top.clone()]);
    let hidden = HashSet::from([bad.hash()]);
    // Deep checking finds it before anybody reads, and writes nothing.
    let found = database.verify(true, &mut |_, _| {}).unwrap();
    assert!(found.faults.is_empty() && found.voids.len() == 1 && !found.voids[0].is_on_record, "{found:?}");
    assert_eq!(voids_in_log(&database), 0);
    check(&database, &hidden);
    assert_eq!(voids_in_log(&database), 1);
    assert_eq!(document(&database).read::<u64>("before").unwrap(), Some(1));
    let degraded = database.reader().degraded(DOCUMENT).unwrap().unwrap();
    assert_eq!((degraded.voids, degraded.hidden), (1, 2));

    // Edits go on, and no snapshot is made past it.
    for n in 0..20 {
        put(&database, "after", n);
    }
    check(&database, &hidden);
    let record = database.reader().index(DOCUMENT, Lsn::ZERO).unwrap().into_iter().find_map(|(lsn, row)| match row {
        tidelog::log::rows::IndexRow::Change { hash, .. } if hash == bad.hash().0 => Some(lsn),
        _ => None,
    });
    assert!(database.reader().snapshot(DOCUMENT).unwrap().is_none_or(|saved| Some(saved.lsn) < record));
    check_rebuild(&database);
    let (storage, database) = reopened(&storage, database);
    check(&database, &hidden);
    put(&database, "after", 21);
    check(&database, &hidden);
    assert_eq!(voids_in_log(&database), 1, "it is not found again");

    // Others get all of it, and find out for themselves.
    let other = open(&MemoryStorage::new(), 2);
    other.admit_blocking(rows_after(database.reader(), Lsn::ZERO)).unwrap();
    assert_eq!(document(&other).state().unwrap().digest, document(&database).state().unwrap().digest);
    check(&other, &hidden);
    assert_eq!(document(&other).to_json().unwrap(), document(&database).to_json().unwrap());
    drop(storage);
}

#[test]
fn a_client_is_told_that_it_stands_on_what_cannot_be_applied_and_is_not_blamed_for_it() {
    let (database, base) = begun(&MemoryStorage::new());
    let next = base.last().unwrap().start_op() + base.last().unwrap().op_count();
    let bad = unappliable(&[base.last().unwrap().hash()], next, (0x66, 1));
    offer(&database, std::slice::from_ref(&bad));
    // It has the change from us, and sends it back: it is known. Nothing of it was read here before.
    let examined = database.examine(node(9), vec![row(&bad)]).unwrap();
    assert!(examined.fault.is_none() && examined.missing.is_empty() && examined.rows.len() == 1, "{examined:?}");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let rows = database.admit_examined(Clash::KeepFirst, examined.rows, Some(node(9)), None);
    assert_eq!(runtime.block_on(rows).unwrap().known, 1);
    let on_top = plain_change(&[bad.hash()], next + 1, (0x77, 1));
    let after = plain_change(&[base.last().unwrap().hash()], next + 1, (0x66, 2));
    for (change, words) in [(on_top, "stands on"), (after, "comes after")] {
        let examined = database.examine(node(9), vec![row(&change)]).unwrap();
        assert!(examined.rows.is_empty() && examined.missing.is_empty(), "{examined:?}");
        let why = examined.fault.unwrap();
        assert!(matches!(why, Error::Refused { .. }) && why.to_string().contains(words), "{why}");
    }
    // Beside it, its edits are taken.
    let beside = plain_change(&[base.last().unwrap().hash()], next, (0x78, 1));
    let examined = database.examine(node(9), vec![row(&beside)]).unwrap();
    assert!(examined.fault.is_none() && examined.rows.len() == 1, "{examined:?}");
    assert_eq!(database.status().quarantined, 0);
    check(&database, &HashSet::from([bad.hash()]));
}

#[test]
fn a_void_change_that_is_withdrawn_is_simply_gone() {
    let storage = MemoryStorage::new();
    let (database, base) = begun(&storage);
    let (on, next) = (base.last().unwrap().hash(), base.last().unwrap().start_op() + base.last().unwrap().op_count());
    // Of two with one author and number the one with the smaller hash stays.
    let (bad, twin) = (0x20..0x60)
        .map(|author| (unappliable(&[on], next, (author, 1)), plain_change(&[on], next, (author, 1))))
        .find(|(bad, twin)| twin.hash() < bad.hash())
        .unwrap();
    offer(&database, std::slice::from_ref(&bad));
    check(&database, &HashSet::from([bad.hash()]));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let admitted = runtime.block_on(database.admit_with(Clash::SmallerHash, vec![row(&twin)], None, None)).unwrap();
    assert_eq!(admitted.accepted, 1, "{admitted:?}");
    assert!(!document(&database).state().unwrap().degraded);
    check(&database, &HashSet::new());
    assert_eq!(document(&database).to_json().unwrap()["k"], json!(null));
    check_rebuild(&database);
    let (_storage, database) = reopened(&storage, database);
    check(&database, &HashSet::new());
    assert_whole(&database);
}

#[test]
fn many_who_find_it_at_a_time_write_it_down_once() {
    let (database, base) = begun(&MemoryStorage::new());
    let (on, next) = (base.last().unwrap().hash(), base.last().unwrap().start_op() + base.last().unwrap().op_count());
    let bad = unappliable(&[on], next, (0x66, 1));
    let beside = plain_change(&[on], next, (0x77, 1));
    offer(&database, std::slice::from_ref(&bad));
    std::thread::scope(|scope| {
        for number in 0..4 {
            let (database, beside) = (&database, &beside);
            scope.spawn(move || match number % 2 {
                0 => drop(document(database).to_json().unwrap()),
                _ => assert_eq!(database.examine(node(9), vec![row(beside)]).unwrap().rows.len(), 1),
            });
        }
    });
    assert_eq!(voids_in_log(&database), 1);
    check(&database, &HashSet::from([bad.hash()]));
}

/// Today's answer: what is applied is shown, though a saved document would not have it. Nothing is saved, then.
#[test]
fn what_is_applied_and_cannot_be_given_back_is_shown_and_never_saved() {
    let storage = MemoryStorage::new();
    let (database, base) = begun(&storage);
    let next = base.last().unwrap().start_op() + base.last().unwrap().op_count();
    let strange = ungivable(&[base.last().unwrap().hash()], next, (0x66, 1));
    offer(&database, std::slice::from_ref(&strange));
    for n in 0..20 {
        put(&database, "after", n);
    }
    let bad = unappliable(&[base.last().unwrap().hash()], next, (0x67, 1));
    offer(&database, std::slice::from_ref(&bad));
    let (_storage, database) = reopened(&storage, database);
    check(&database, &HashSet::from([bad.hash()]));
    put(&database, "after", 21);
    assert!(document(&database).with_view(|view| Ok(view.contains(strange.hash()))).unwrap());
    assert!(database.reader().snapshot(DOCUMENT).unwrap().is_none());

    // A client's marks, which the saved document would have to prove, are not blamed for it.
    let chunks: Vec<u8> = base.iter().flat_map(|change| change.bytes().iter().copied()).collect();
    let mut view = View::load(&chunks).unwrap();
    let mut edit = |edits: &dyn Fn(&mut tidelog::Edit<'_>) -> Result<(), ViewError>| {
        let options = EditOptions { actor: actor(1), time: 0, message: None };
        view.edit(options, edits).unwrap().1.unwrap()
    };
    let text = edit(&|edit| edit.splice("text", 0, 0, "tide"));
    let marks = edit(&|edit| edit.mark("text", 0..2, "bold", true, ExpandMark::Both));
    let examined = database.examine(node(9), vec![row(&text), row(&marks)]).unwrap();
    assert!(examined.fault.is_none() && examined.rows.len() == 2, "{examined:?}");
}

#[cfg(feature = "node")]
#[test]
fn commands_say_what_is_not_shown() {
    use tidelog::node::command::{Base64, Collected, ExportFormat, Request};
    use tidelog::node::{Interrupt, Session, SessionOptions};

    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _inside = runtime.enter();
    let options = SessionOptions { data: folder.path().join("data"), timeout: None, create: true };
    let mut session = Session::open(&options, Interrupt::default()).unwrap();
    let mut call = |request| {
        let mut collected = Collected::default();
        let answer = session.call(request, &mut collected).unwrap();
        (collected.rows, answer)
    };
    let list = || Request::List { collection: Some("notes".into()) };
    let value = Some(json!({ "text": "tide" }));
    let (added, _) = call(Request::Add { collection: "notes".into(), name: None, id: None, value, must_be_new: true });
    let id = added[0]["id"].as_str().unwrap().to_owned();
    let heads: Vec<ChangeHash> = vec![call(list()).0[0]["heads"][0].as_str().unwrap().parse().unwrap()];
    let bad = unappliable(&heads, 100, (0x66, 1));
    let on_top = plain_change(&[bad.hash()], 101, (0x77, 1));
    let changes = [&bad, &on_top].map(|change| Base64(change.bytes().to_vec())).to_vec();
    let (_, admitted) = call(Request::Admit { id: id.clone(), changes, tried: false });
    assert_eq!(admitted["accepted"], 2, "{admitted}");

    let (read, answer) = call(Request::Read { id, at: None });
    assert_eq!(read, [json!({ "text": "tide" })]);
    let degraded =
        json!({ "voids": 1, "hidden": 2, "heads": heads.iter().map(ToString::to_string).collect::<Vec<_>>() });
    assert_eq!(answer["degraded"], degraded);
    assert_eq!(call(list()).0[0]["degraded"], degraded);
    assert_eq!(call(Request::Status).0[0]["degraded"], 1);
    let (rows, answer) = call(Request::Verify { deep: true });
    assert_eq!((&answer["faults"], &answer["voids"]), (&json!(0), &json!(1)), "{rows:?}");
    assert!(rows[0]["void"].as_str().is_some_and(|why| why.contains("automerge")), "{rows:?}");
    let (_, answer) = call(Request::Export { target: None, format: ExportFormat::Json });
    assert_eq!(answer["degraded"], 1);
    let (rows, _) = call(Request::Log { id: None, from: Some(0), limit: 100 });
    assert!(rows.iter().any(|row| row["kind"] == "void"), "{rows:?}");
    session.close();
}

/// What it costs to find three changes in a long history, beside making the document.
#[test]
fn what_cannot_be_applied_is_found_soon_in_a_long_history() {
    let (database, mut changes) = begun(&MemoryStorage::new());
    let base = changes.len();
    let mut view = View::load(changes[0].bytes()).unwrap();
    for n in 0..6000_usize {
        let options = EditOptions { actor: actor(1), time: 0, message: None };
        let made = view.edit(options, |edit| -> Result<(), ViewError> { edit.splice("text", n, 0, "x") });
        let change = made.unwrap().1.unwrap();
        if n % 2000 == 1000 {
            let author = ((n / 2000) as u8 + 0x20, 1);
            changes.push(unappliable(change.deps(), change.start_op() + change.op_count(), author));
        }
        changes.push(change);
    }
    changes[base..].chunks(1000).for_each(|some| offer(&database, some));
    let clock = std::time::Instant::now();
    assert_eq!(document(&database).read::<String>("text").unwrap().map(|text| text.len()), Some(6000));
    let found = clock.elapsed();
    assert_eq!(voids_in_log(&database), 3);
    // Another document takes the place of this one.
    assert_eq!(narrow().memory_budget, 1);
    database.collection("notes").unwrap().create(json!({})).unwrap().1.wait().unwrap();
    let clock = std::time::Instant::now();
    document(&database).to_json().unwrap();
    println!("{found:?}, and {:?} to make it again", clock.elapsed());
}

#[derive(Debug, Clone)]
enum Step {
    /// One of two honest authors elsewhere edits.
    Edit(usize, SmallEdit),
    /// And hears what the other did.
    Merge(usize),
    /// Somebody makes a change that cannot be applied, on top of what that author has.
    Bad(usize),
    /// Somebody builds on one of those, and on what that author has.
    OnBad(Index, usize, bool),
    /// The author of one of those goes on elsewhere.
    Later(Index, usize),
    /// What there is so far reaches the database.
    Deliver,
    /// And is read there, or edited.
    Read,
    Local(SmallEdit),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..2_usize, small_edit()).prop_map(|(who, edit)| Step::Edit(who, edit)),
        2 => (0..2_usize).prop_map(Step::Merge),
        2 => (0..2_usize).prop_map(Step::Bad),
        1 => (any::<Index>(), 0..2_usize, any::<bool>()).prop_map(|(bad, who, also)| Step::OnBad(bad, who, also)),
        1 => (any::<Index>(), 0..2_usize).prop_map(|(bad, who)| Step::Later(bad, who)),
        3 => Just(Step::Deliver),
        1 => Just(Step::Read),
        2 => small_edit().prop_map(Step::Local),
    ];
    vec(step, 1..40)
}

/// A history that is made elsewhere.
struct Elsewhere {
    views: [View; 2],
    made: Vec<Change>,
    bad: Vec<Change>,
    authors: BTreeMap<u8, u64>,
}

impl Elsewhere {
    fn new(base: &[Change]) -> Self {
        let chunks: Vec<u8> = base.iter().flat_map(|change| change.bytes().iter().copied()).collect();
        let views = [View::load(&chunks).unwrap(), View::load(&chunks).unwrap()];
        Self { views, made: Vec::new(), bad: Vec::new(), authors: BTreeMap::new() }
    }

    fn next_op(&self, base: &[Change]) -> u64 {
        base.iter().chain(&self.made).map(|change| change.start_op() + change.op_count()).max().unwrap()
    }

    /// The number that comes next for an author, one new when there is none.
    fn author(&mut self, author: Option<u8>) -> (u8, u64) {
        let author = author.unwrap_or(0x40 + self.authors.len() as u8);
        let seq = self.authors.entry(author).or_default();
        *seq += 1;
        (author, *seq)
    }

    fn run(&mut self, step: &Step, base: &[Change]) {
        let next = self.next_op(base);
        match step {
            Step::Edit(who, edit) => {
                let options = EditOptions { actor: actor(*who as u64), time: 0, message: None };
                let run = |change: &mut tidelog::Edit<'_>| -> Result<(), ViewError> {
                    edit.run(change);
                    Ok(())
                };
                self.made.extend(self.views[*who].edit(options, run).unwrap().1);
            }
            Step::Merge(who) => {
                let theirs = self.views[1 - who].document().get_changes(&[]);
                let theirs: Vec<Change> =
                    theirs.into_iter().map(|change| Change::from_automerge(change).unwrap()).collect();
                self.views[*who].apply(&theirs).unwrap();
            }
            Step::Bad(who) => {
                let author = self.author(None);
                let bad = unappliable(self.views[*who].heads().as_slice(), next, author);
                self.bad.push(bad.clone());
                self.made.push(bad);
            }
            Step::OnBad(which, who, is_bad) if !self.bad.is_empty() => {
                let author = self.author(None);
                let mut deps = vec![which.get(&self.bad).hash()];
                deps.extend(self.views[*who].heads().as_slice());
                let change = if *is_bad { unappliable(&deps, next, author) } else { plain_change(&deps, next, author) };
                if *is_bad {
                    self.bad.push(change.clone());
                }
                self.made.push(change);
            }
            Step::Later(which, who) if !self.bad.is_empty() => {
                let before = which.get(&self.bad);
                let mut deps = self.views[*who].heads().as_slice().to_vec();
                // An author's changes follow one another.
                let last = self.made.iter().rfind(|change| change.actor() == before.actor());
                deps.extend(last.map(Change::hash));
                let author = self.author(Some(before.actor().as_bytes()[0]));
                self.made.push(plain_change(&deps, next, author));
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(cases(40))]

    /// Whatever arrives in between and whenever it is read: a view is what automerge makes of the rest.
    #[test]
    fn a_view_is_what_automerge_makes_of_the_changes_that_it_can_apply(steps in steps()) {
        let storage = MemoryStorage::new();
        let (database, base) = begun(&storage);
        let mut elsewhere = Elsewhere::new(&base);
        let mut delivered = 0;
        for step in steps.iter().chain([&Step::Deliver]) {
            elsewhere.run(step, &base);
            match step {
                Step::Deliver => {
                    offer(&database, &elsewhere.made[delivered..]);
                    delivered = elsewhere.made.len();
                }
                Step::Read => drop(document(&database).to_json().unwrap()),
                Step::Local(edit) => {
                    document(&database).change(|change| { edit.run(change); Ok(()) }).unwrap().wait().unwrap();
                }
                _ => {}
            }
        }
        let bad: HashSet<ChangeHash> = elsewhere.bad.iter().map(Change::hash).collect();
        document(&database).to_json().unwrap();
        check(&database, &bad);
        check_rebuild(&database);
        let (_storage, database) = reopened(&storage, database);
        check(&database, &bad);
        let other = open(&MemoryStorage::new(), 2);
        other.admit_blocking(rows_after(database.reader(), Lsn::ZERO)).unwrap();
        document(&other).to_json().unwrap();
        check(&other, &bad);
        prop_assert_eq!(document(&other).state().unwrap().digest, document(&database).state().unwrap().digest);
    }
}
