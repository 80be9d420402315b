//! What is written down of refusals: before they are told, once, within bounds, and nowhere else.

use std::time::Instant;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::super::committer::Committer;
use super::super::super::core::{Core, Input, refused_key};
use super::super::super::working_set::WorkingSet;
use super::*;
use crate::engine::refusal::Claims;
use crate::history::{Reader, open};
use crate::limits::Limits;
use crate::log::record::{RefusedHeader, RefusedWhat, WriteKind};
use crate::log::rows::{RefusedRow, decode_row};
use crate::log::{Durability, Keyspace, Log, RecoverOptions, Storage};

const ANN: By = By { principal: "ann", sees: true, rule: LOCKED };

/// What the log says was refused, in its order.
fn refusals(reader: &Reader) -> Vec<RefusedHeader> {
    let records = reader.read_records(Lsn::ZERO, usize::MAX, usize::MAX).unwrap();
    let refused = |(_, record)| match record {
        Record::Refused(header) => Some(header),
        _ => None,
    };
    records.into_iter().filter_map(refused).collect()
}

fn hash_of(header: &RefusedHeader) -> Option<ChangeHash> {
    match header.what {
        RefusedWhat::Change { hash, .. } => Some(ChangeHash(hash)),
        _ => None,
    }
}

fn kept(storage: &dyn Storage, hash: ChangeHash) -> Option<RefusedRow> {
    let key = refused_key(hash);
    let bytes = storage.get(Keyspace::Held, &key).unwrap()?;
    Some(decode_row(Keyspace::Held, &key, &bytes).unwrap())
}

#[test]
fn a_refusal_says_who_was_refused_what_and_why() {
    let (database, id) = (database(), DocumentId([1; 16]));
    let mut ann = Copy::new(1);
    let (first, bad, behind) = (ann.set("n", 1), ann.set("n", 13), ann.set("n", 14));
    offer(&database, &ANN, [vec![creation(id, "notes")], rows(id, &[&first, &bad, &behind])].concat());
    offer(&database, &ANN, vec![creation(DocumentId([2; 16]), "closed")]);
    let note = database.find(id).unwrap();
    assert!(note.change_as(Some(&ANN), None, |edit| Ok(edit.put("n", 13)?)).is_err());
    let never = By { principal: "ben", sees: true, rule: |_, _, _, _| false };
    assert!(note.delete_as(Some(&never)).is_err());
    let mut foreign = Copy { view: View::load(&ann.view.save().unwrap()).unwrap(), ..Copy::new(1) };
    foreign.view = note.with_view(|view| Ok(View::load(&view.save()?)?)).unwrap();
    let forged = foreign.set("m", 1);
    offer(&database, &By { principal: "ben", sees: false, rule: |_, _, _, _| true }, rows(id, &[&forged]));

    let names = database.reader().names();
    let listed: Vec<_> = refusals(database.reader())
        .into_iter()
        .map(|header| {
            let reason = RefusedReason::of(header.reason).unwrap();
            (hash_of(&header), header.operation, reason, names.text(header.principal).unwrap(), header.collection)
        })
        .collect();
    let (ann, ben) = ("ann".to_owned(), "ben".to_owned());
    let notes = || "notes".to_owned();
    let expected = [
        (Some(bad.hash()), WriteKind::Update, RefusedReason::NoneTrue, ann.clone(), notes()),
        (Some(behind.hash()), WriteKind::Update, RefusedReason::Behind, ann.clone(), notes()),
        (None, WriteKind::Create, RefusedReason::NoMatch, ann.clone(), "closed".to_owned()),
        (None, WriteKind::Update, RefusedReason::NoneTrue, ann, notes()),
        (None, WriteKind::Delete, RefusedReason::NoneTrue, ben.clone(), notes()),
        (Some(forged.hash()), WriteKind::Update, RefusedReason::Foreign, ben, notes()),
    ];
    assert_eq!(listed, expected);
    // What was refused left no name in the dictionary but those of who sent it.
    assert_eq!(names.all(crate::log::record::NameKind::Collection).unwrap().len(), 1);
    let row = kept(&**database.reader().storage(), bad.hash()).unwrap();
    assert_eq!(row.chunk, bad.bytes());
    // Allowed later, its bytes are kept no longer.
    offer(&database, &By { rule: |_, _, _, _| true, ..ANN }, rows(id, &[&bad, &behind]));
    assert!(kept(&**database.reader().storage(), bad.hash()).is_none());
    let found = database.verify(true, &mut |_, _| {}).unwrap();
    assert!(found.faults.is_empty(), "{found:?}");
}

#[test]
fn the_same_refusal_is_listed_once_even_over_a_restart() {
    let (storage, id) = (MemoryStorage::new(), DocumentId([1; 16]));
    let mut ann = Copy::new(1);
    let (first, bad) = (ann.set("n", 1), ann.set("n", 13));
    let database = Database::on(storage.clone()).node(NodeId([1; 32])).open().unwrap();
    offer(&database, &ANN, [vec![creation(id, "notes")], rows(id, &[&first])].concat());
    for _ in 0..3 {
        assert_eq!(denied(&offer(&database, &ANN, rows(id, &[&bad]))), [bad.hash()]);
    }
    assert_eq!(refusals(database.reader()).len(), 1);
    drop(database);
    let database = Database::on(storage.killed()).node(NodeId([1; 32])).open().unwrap();
    assert_eq!(denied(&offer(&database, &ANN, rows(id, &[&bad]))), [bad.hash()]);
    assert_eq!(refusals(database.reader()).len(), 1);
    // To somebody else it is another refusal.
    let mut ben = Copy { view: ann.view, ..Copy::new(2) };
    ben.view = database.find(id).unwrap().with_view(|view| Ok(View::load(&view.save()?)?)).unwrap();
    let other = By { principal: "ben", ..ANN };
    offer(&database, &other, rows(id, &[&bad]));
    assert_eq!(refusals(database.reader()).len(), 2);
}

/// An engine whose clock the test has.
fn committer(storage: &MemoryStorage, limits: &Limits) -> Committer {
    let opened = open(storage, RecoverOptions::default(), &mut |_, _| {}).unwrap();
    let reader = Reader::new(Arc::new(storage.clone()), NodeId([1; 32]), &opened, limits);
    Committer {
        core: Core::new(reader.clone(), limits.clone(), &opened.recovered).unwrap(),
        log: Log::new(Arc::new(storage.clone()), Durability::Synced, &opened.recovered),
        reader,
        working_set: Arc::new(WorkingSet::new(limits.memory_budget)),
    }
}

fn refuse(change: &Change, principal: &str, claims: Option<&Claims>) -> Input {
    let refusal = Refusal {
        document: DocumentId([1; 16]),
        collection: Some(CollectionName::new("notes").unwrap()),
        name: None,
        what: Refused::Change(Box::new(change.clone())),
        deed: Deed::Update,
        principal: principal.to_owned(),
        denial: Denial::default(),
        via: None,
    };
    let claims = claims.cloned().map(Arc::new);
    let audit = Audit { claims, refused: vec![refusal], ..Audit::default() };
    Input::Admit { rows: Vec::new(), via: None, cursor: None, clash: Clash::KeepFirst, audit }
}

#[test]
fn what_is_listed_and_kept_of_one_sender_in_a_minute_is_bounded_and_the_rest_is_counted() {
    let storage = MemoryStorage::new();
    let limits = Limits { refusals_per_minute: 3, refused_rows: 4, ..Limits::default() };
    let mut committer = committer(&storage, &limits);
    let mut copy = Copy::new(1);
    let changes: Vec<Change> = (0..20).map(|n| copy.set("n", n)).collect();
    let mut step = |now_ms: u64, inputs: Vec<Input>| committer.commit(now_ms, Instant::now(), inputs).unwrap();
    for change in &changes[..10] {
        step(1_000, vec![refuse(change, "ann", None)]);
    }
    step(1_000, vec![refuse(&changes[10], "ben", None)]);
    let counts = |storage: &MemoryStorage| {
        let reader = self::committer(&storage.killed(), &limits).reader;
        let listed = refusals(&reader);
        let more: Vec<u64> = listed
            .iter()
            .filter_map(|header| if let RefusedWhat::More(count) = header.what { Some(count) } else { None })
            .collect();
        (listed.iter().filter(|header| hash_of(header).is_some()).count(), more)
    };
    // The first that is not listed is on record as such at once.
    assert_eq!(counts(&storage), (4, vec![1]));
    // The others when the minute is over, whoever writes then.
    let mut step = |now_ms: u64, inputs: Vec<Input>| committer.commit(now_ms, Instant::now(), inputs).unwrap();
    step(61_000, vec![refuse(&changes[11], "ben", None)]);
    assert_eq!(counts(&storage), (5, vec![1, 6]));
    step(61_001, vec![refuse(&changes[12], "ann", None)]);
    assert_eq!(counts(&storage), (6, vec![1, 6]));
    // Of the six changes that were listed four have room.
    let held = changes.iter().filter(|change| kept(&storage, change.hash()).is_some()).count();
    assert_eq!(held, 4);
    assert!(kept(&storage, changes[12].hash()).is_some() && kept(&storage, changes[0].hash()).is_none());
}

#[test]
fn claims_are_written_once_and_referred_to_when_they_come_back() {
    use crate::log::record::Claims as Said;
    let storage = MemoryStorage::new();
    let mut committer = committer(&storage, &Limits::default());
    let mut copy = Copy::new(1);
    let (red, blue) = (Claims::of("ann", &json!({"team": "red"})), Claims::of("ann", &json!({"team": "blue"})));
    let long = Claims::of("ann", &json!({"x": "y".repeat(Said::BYTES_MAX)}));
    for claims in [&red, &red, &blue, &red, &long, &red] {
        let change = copy.set("n", json!(format!("{:?}{}", claims, copy.view.change_count())));
        committer.commit(1, Instant::now(), vec![refuse(&change, "ann", Some(claims))]).unwrap();
    }
    let records = committer.reader.read_records(Lsn::ZERO, usize::MAX, usize::MAX).unwrap();
    let mut said = Vec::new();
    for (lsn, record) in records {
        if let Record::Subject(header) = record {
            said.push((lsn, header.claims));
        }
    }
    let back = |at: usize| Said::As(said[at].0.0 - said[0].0.0);
    assert_eq!(said[0].1, Said::Known(r#"{"team":"red"}"#.into()));
    assert_eq!(said[1].1, Said::Known(r#"{"team":"blue"}"#.into()));
    assert_eq!(said[2].1, back(2));
    assert!(matches!(said[3].1, Said::TooLong(_)));
    assert_eq!(said[4].1, back(4));
    assert_eq!(said.len(), 5);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_was_told_to_be_refused_is_on_record_whatever_ends_the_process(
        steps in vec((0..3_u8, any::<bool>(), 0..4_usize), 1..24),
    ) {
        let (storage, id) = (MemoryStorage::new(), DocumentId([1; 16]));
        let database = Database::on(storage.clone()).node(NodeId([1; 32])).open().unwrap();
        let judge = |who: u8| By { principal: ["ann", "ben", ""][usize::from(who)], ..ANN };
        let mut shared = Copy::new(9);
        let first = shared.set("n", 0);
        offer(&database, &judge(0), [vec![creation(id, "notes")], rows(id, &[&first])].concat());
        let mut told: Vec<(ChangeHash, &str)> = Vec::new();
        for (number, (who, is_bad, more)) in (100..).zip(steps) {
            let mut copy = Copy::new(who);
            copy.view = database.find(id).unwrap().with_view(|view| Ok(View::load(&view.save()?)?)).unwrap();
            // A refused change under the marker that must be found nowhere else, and some that stand on it.
            let mut made = vec![copy.edit(|edit| {
                edit.put("n", if is_bad { 13 } else { number })?;
                edit.put("secret", format!("{}{number}", if is_bad { "marker-of-what-is-refused" } else { "open" }))
            })];
            made.extend((0..more).map(|n| copy.set("more", json!([number, n]))));
            let examined = offer(&database, &judge(who), rows(id, &made.iter().collect::<Vec<_>>()));
            prop_assert_eq!(examined.denied.is_empty(), !is_bad);
            told.extend(denied(&examined).into_iter().map(|hash| (hash, judge(who).principal)));

            let unsynced = storage.unsynced_batches();
            let images = (0..=unsynced).map(|kept| storage.crashed(kept)).chain([storage.killed()]);
            for image in images {
                let after = Database::on(image.clone()).node(NodeId([1; 32])).open().unwrap();
                let names = after.reader().names();
                let listed: Vec<(ChangeHash, String)> = refusals(after.reader())
                    .into_iter()
                    .filter_map(|header| Some((hash_of(&header)?, names.text(header.principal).unwrap())))
                    .collect();
                for (hash, who) in &told {
                    prop_assert!(listed.iter().any(|(other, name)| other == hash && name == who), "{} {}", hash, who);
                    prop_assert!(kept(&image, *hash).is_some());
                }
                drop(after);
            }
        }
        // Nothing of what was refused is in any table but the one that only the operator is shown.
        for keyspace in Keyspace::ALL.into_iter().filter(|keyspace| *keyspace != Keyspace::Held) {
            storage.scan(keyspace, &[], &[0xff; 64], false, &mut |key, value| {
                let holds = value.windows(25).any(|window| window == b"marker-of-what-is-refused");
                assert!(!holds, "{keyspace:?} {key:?}");
                std::ops::ControlFlow::Continue(())
            }).unwrap();
        }
        let note = database.find(id).unwrap();
        prop_assert!(!note.to_json().unwrap().to_string().contains("marker-of-what-is-refused"));
        let found = database.verify(true, &mut |_, _| {}).unwrap();
        prop_assert!(found.faults.is_empty(), "{:?}", found);
    }
}
