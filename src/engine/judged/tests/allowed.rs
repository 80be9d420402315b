//! What is written down of what rules allow: their text once, before what stands under it, and by which `allow`.

use std::collections::HashMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::history::{Reader, rebuild};
use crate::log::record::{AllowedHeader, RulesHeader, WriteKind};
use crate::log::{Keyspace, Storage as _, log_key};

const TEXTS: [&str; 2] = ["match /notes/{id} { allow write; }", "match /{c}/{id} { allow read, write: if true; }"];

/// Allows everything but what sets `n` to 13; the line of the `allow` is what `n` becomes, and 99 for deletions.
#[derive(Debug, Clone, Copy)]
struct Ruled {
    principal: &'static str,
    text: &'static str,
}

struct Line<'a>(&'a Ruled);

impl Judge for Ruled {
    fn principal(&self) -> &str {
        self.principal
    }

    fn may_begin(&self, _: &CollectionName) -> bool {
        true
    }

    fn must_see(&self, _: &CollectionName) -> bool {
        true
    }

    fn look(&self, _: Deed, _: Place<'_>, _: Option<&dyn Values>) -> Result<Box<dyn Look + '_>, Error> {
        Ok(Box::new(Line(self)))
    }
}

impl Look for Line<'_> {
    fn judge(self: Box<Self>, after: Option<&dyn Values>, _: &dyn Made) -> Result<Result<Ruling, Denial>, Error> {
        let after = after.map(|values| values.json(&Path::root())).transpose()?.flatten();
        let line = after.map_or(99, |after| after["n"].as_u64().unwrap() as u32);
        let ruleset = Some(Arc::new(Ruleset::of(self.0.text)));
        Ok(match line {
            13 => Err(Denial { ruleset, ..Denial::default() }),
            line => Ok(Ruling { ruleset, allow: Some((line, "/notes/{id}".into())) }),
        })
    }
}

const ANN: Ruled = Ruled { principal: "ann", text: TEXTS[0] };

fn open(storage: MemoryStorage) -> Database {
    Database::on(storage).node(NodeId([1; 32])).open().unwrap()
}

/// Offers rows as a client of that judge does, and has what passed logged.
fn write(database: &Database, judge: &Ruled, rows: Vec<Incoming>) -> Examined {
    write_through(database, database.node(), judge, rows)
}

fn write_through(database: &Database, node: NodeId, judge: &Ruled, rows: Vec<Incoming>) -> Examined {
    let rows = rows.into_iter().map(|row| Incoming { origin: origin(judge.principal), ..row }).collect();
    let mut examined = database.examine_for(node, rows, Some(judge)).unwrap();
    let (refused, allowed) = (std::mem::take(&mut examined.refused), std::mem::take(&mut examined.allowed));
    let audit = Audit { refused, allowed, ..Audit::default() };
    let passed = std::mem::take(&mut examined.rows);
    let via = (node != database.node()).then_some(node);
    block_on(database.admit_judged(Clash::KeepFirst, passed, via, None, audit)).unwrap();
    examined
}

fn records(reader: &Reader) -> Vec<(Lsn, Record)> {
    reader.read_records(Lsn::ZERO, usize::MAX, usize::MAX).unwrap()
}

/// The texts of rules in the log, in its order; each is before the first record of its version and in the same group.
fn texts(reader: &Reader) -> Vec<String> {
    let mut texts: Vec<(u32, String)> = Vec::new();
    let mut fresh = None;
    for (lsn, record) in records(reader) {
        let version = match &record {
            Record::Rules(header) => {
                assert_eq!(fresh, None, "record {lsn}");
                assert_eq!(*header, {
                    let Ruleset { version, digest, text } = Ruleset::of(&header.text);
                    RulesHeader { version, digest, text, ..header.clone() }
                });
                fresh = Some(header.version);
                texts.push((header.version, header.text.clone()));
                continue;
            }
            Record::Footer(_) => {
                assert_eq!(fresh, None, "record {lsn}: what it was written for is not in its group");
                continue;
            }
            Record::Change(header, _) => header.rules_version,
            Record::Refused(header) => header.rules_version,
            Record::Attributed(header) => header.rules_version,
            Record::Allowed(header) => header.rules_version,
            _ => 0,
        };
        assert!(version == 0 || texts.iter().any(|(known, _)| *known == version), "record {lsn} {record:?}");
        fresh = fresh.filter(|fresh| *fresh != version);
    }
    texts.into_iter().map(|(_, text)| text).collect()
}

/// Which `allow` let each write in, as `docs/log-format.md` says it is found: by the position of a change or a statement,
/// with the version of the rules.
fn lines(reader: &Reader) -> HashMap<Lsn, (u32, Option<u32>)> {
    let mut said: HashMap<(u32, u32, WriteKind), (Lsn, AllowedHeader)> = HashMap::new();
    let (mut found, mut stated) = (HashMap::new(), HashMap::new());
    for (lsn, record) in records(reader) {
        let (at, version, key) = match record {
            Record::Allowed(header) => {
                said.insert((header.principal, header.collection, header.operation), (lsn, header));
                continue;
            }
            Record::Lifecycle(header, bytes) => {
                stated.insert(lsn, (header.collection, Lifecycle::decode(&bytes).unwrap().kind));
                continue;
            }
            Record::Attributed(header) => {
                let at = Lsn(lsn.0 - header.statement);
                let (collection, kind) = stated[&at];
                let kind = if kind == LifecycleKind::Created { WriteKind::Create } else { WriteKind::Delete };
                (at, header.rules_version, (header.principal, collection, kind))
            }
            Record::Change(header, _) => {
                let is_first = header.deps.is_empty() && header.heads_before.is_none();
                let kind = if is_first { WriteKind::Create } else { WriteKind::Update };
                (lsn, header.rules_version, (header.principal, header.collection, kind))
            }
            _ => continue,
        };
        let near = said.get(&key).filter(|(said_at, header)| {
            header.rules_version == version && *said_at < at && at.0 - said_at.0 <= AllowedHeader::REACH
        });
        found.insert(at, (version, near.and_then(|(_, header)| header.rule.as_ref()).map(|rule| rule.line)));
    }
    found
}

/// Where a change is.
fn at(database: &Database, document: DocumentId, hash: ChangeHash) -> Lsn {
    let graph = database.reader().graph(document).unwrap();
    let graph = graph.lock().unwrap();
    graph.lsn_of(&hash).unwrap()
}

#[test]
fn the_text_of_rules_is_on_record_once_before_what_stands_under_it() {
    let (storage, id) = (MemoryStorage::new(), DocumentId([1; 16]));
    let database = open(storage.clone());
    let mut ann = Copy::new(1);
    let (first, second, third) = (ann.set("n", 1), ann.set("n", 2), ann.set("n", 3));
    let later = Ruled { text: TEXTS[1], ..ANN };
    write(&database, &ANN, [vec![creation(id, "notes")], rows(id, &[&first])].concat());
    assert_eq!(texts(database.reader()), TEXTS[..1]);
    write(&database, &later, rows(id, &[&second]));
    write(&database, &ANN, rows(id, &[&third]));
    assert_eq!(texts(database.reader()), TEXTS);
    // What is refused stands under rules as well.
    let refusing = Ruled { text: "match /{a}/{b} { allow get; }", ..ANN };
    let bad = ann.set("n", 13);
    assert_eq!(denied(&write(&database, &refusing, rows(id, &[&bad]))), [bad.hash()]);
    let all = [&TEXTS[..], &[refusing.text]].concat();
    assert_eq!(texts(database.reader()), all);
    drop(database);

    // Nor is it again after a kill, a close, and with tables that were made again from the log.
    let killed = storage.killed();
    let versions = |database: &Database| database.reader().rules_versions().unwrap();
    let expected: Vec<u32> = all.iter().map(|text| Ruleset::of(text).version).collect();
    for is_rebuilt in [false, true] {
        if is_rebuilt {
            let tail = open(killed.clone()).reader().tail().lsn;
            rebuild(&killed, tail, &mut |_, _| {}).unwrap();
        }
        let database = open(killed.clone());
        assert_eq!(versions(&database), expected);
        let mut copy = Copy::new(2 + u8::from(is_rebuilt));
        copy.view = database.find(id).unwrap().with_view(|view| Ok(View::load(&view.save()?)?)).unwrap();
        for (n, judge) in (20 + 2 * i32::from(is_rebuilt)..).zip([ANN, later]) {
            let change = copy.set("n", n);
            assert!(write(&database, &judge, rows(id, &[&change])).denied.is_empty());
        }
        assert_eq!(texts(database.reader()), all);
        let found = database.verify(true, &mut |_, _| {}).unwrap();
        assert!(found.faults.is_empty(), "{found:?}");
        database.close();
    }
}

#[test]
fn statements_and_edits_here_are_on_record_with_what_allowed_them() {
    let database = open(MemoryStorage::new());
    let notes = database.collection("notes").unwrap();
    let (note, commit) = notes.create_as(Some(&ANN), json!({"n": 4})).unwrap();
    commit.wait().unwrap();
    note.change_as(Some(&ANN), None, |edit| Ok(edit.put("n", 5)?)).unwrap().wait().unwrap();
    note.delete_as(Some(&ANN)).unwrap().wait().unwrap();
    // And one by a client, whose creation is allowed with its first change.
    let id = DocumentId([1; 16]);
    let first = Copy::new(1).set("n", 6);
    write(&database, &ANN, [vec![creation(id, "notes")], rows(id, &[&first])].concat());
    // And one over a link, which entered at the client's node and was judged here.
    let linked = DocumentId([2; 16]);
    let first = Copy::new(2).set("n", 8);
    let rows_of_ann = [vec![creation(linked, "notes")], rows(linked, &[&first])].concat();
    write_through(&database, NodeId([5; 32]), &ANN, rows_of_ann);
    // For nobody in particular, no rule was asked.
    notes.create(json!({"n": 7})).unwrap().1.wait().unwrap();
    let mut found: Vec<_> = lines(database.reader()).into_iter().collect();
    found.sort_unstable();
    let version = Ruleset::of(ANN.text).version;
    let expected =
        [Some(4), Some(4), Some(5), Some(99), Some(6), Some(6), Some(8), Some(8)].map(|line| (version, line));
    let found: Vec<_> = found.into_iter().map(|(_, line)| line).collect();
    assert_eq!(found[..8], expected, "{found:?}");
    assert_eq!(found[8..], [(0, None)], "{found:?}");
    let found = database.verify(true, &mut |_, _| {}).unwrap();
    assert!(found.faults.is_empty(), "{found:?}");
}

#[test]
fn what_another_node_decided_is_not_taken_to_be_decided_here() {
    let (storage, id) = (MemoryStorage::new(), DocumentId([1; 16]));
    let version = Ruleset::of(ANN.text).version;
    let relay = |database: &Database, change: &Change| {
        let elsewhere = Origin { node: NodeId([9; 32]), rules_version: version, ..origin("ann") };
        let row = |row| Incoming { origin: elsewhere.clone(), ..row };
        let rows: Vec<_> = [vec![creation(id, "notes")], rows(id, &[change])].concat().into_iter().map(row).collect();
        block_on(database.admit(rows, Some(NodeId([9; 32])), None)).unwrap();
    };
    let allowed = |database: &Database| {
        records(database.reader()).iter().filter(|(_, record)| matches!(record, Record::Allowed(_))).count()
    };
    let line = |database: &Database, change: &Change| lines(database.reader())[&at(database, id, change.hash())];
    let mut ann = Copy::new(1);
    let changes: Vec<Change> = (1..=7).map(|n| ann.set("n", n)).collect();

    // Where nothing was decided, nothing is to be said.
    let replica = open(MemoryStorage::new());
    relay(&replica, &changes[0]);
    assert_eq!((line(&replica, &changes[0]), allowed(&replica)), ((version, None), 0));

    let database = open(storage.clone());
    write(&database, &ANN, [vec![creation(id, "notes")], rows(id, &[&changes[0], &changes[1]])].concat());
    relay(&database, &changes[2]);
    relay(&database, &changes[3]);
    write(&database, &ANN, rows(id, &[&changes[4]]));
    database.close();
    drop(database);
    // After a close, positions go on: what was said before the start is in reach.
    let database = open(storage);
    relay(&database, &changes[5]);
    write(&database, &ANN, rows(id, &[&changes[6]]));
    let found: Vec<_> = changes.iter().map(|change| line(&database, change).1).collect();
    assert_eq!(found, [Some(1), Some(2), None, None, Some(5), None, Some(7)]);
}

#[test]
fn a_change_that_waited_is_on_record_as_allowed_to_whom_it_came_from() {
    let (database, id) = (open(MemoryStorage::new()), DocumentId([1; 16]));
    let ruleset = Arc::new(Ruleset::of(ANN.text));
    let bring = |principal: &str, rows: Vec<Incoming>, lines: &[(&Change, u32)]| {
        let of =
            |row: Incoming| Incoming { origin: Origin { rules_version: ruleset.version, ..origin(principal) }, ..row };
        let ruling = |line| Ruling { ruleset: Some(ruleset.clone()), allow: Some((line, "/notes/{id}".into())) };
        let allowed = lines.iter().map(|(change, line)| (change.hash().0, ruling(*line))).collect();
        let (rows, audit) = (rows.into_iter().map(of).collect(), Audit { allowed, ..Audit::default() });
        block_on(database.admit_judged(Clash::KeepFirst, rows, None, None, audit)).unwrap()
    };
    let mut copy = Copy::new(1);
    let changes: Vec<Change> = (1..=3).map(|n| copy.set("n", n)).collect();
    bring("ann", [vec![creation(id, "notes")], rows(id, &[&changes[0]])].concat(), &[(&changes[0], 1)]);
    let waits = bring("ann", rows(id, &[&changes[2]]), &[(&changes[2], 3)]);
    assert_eq!((waits.accepted, waits.missing.len()), (0, 1));

    // Who brings what it waits for brings it too.
    let came = bring("ben", rows(id, &[&changes[1], &changes[2]]), &[(&changes[1], 22), (&changes[2], 33)]);
    assert_eq!((came.accepted, came.known), (2, 1));
    let principal = |change: &Change| {
        let Some(Record::Change(header, _)) = database.reader().record(at(&database, id, change.hash())).unwrap()
        else {
            panic!("{change:?}");
        };
        (
            database.reader().origin_of(&header).unwrap().principal,
            lines(database.reader())[&at(&database, id, change.hash())].1,
        )
    };
    let found: Vec<_> = changes.iter().map(principal).collect();
    assert_eq!(found, [("ann".to_owned(), Some(1)), ("ben".to_owned(), Some(22)), ("ann".to_owned(), Some(3))]);
}

#[test]
fn a_changed_or_lost_text_of_rules_is_found() {
    let (storage, id) = (MemoryStorage::new(), DocumentId([1; 16]));
    let database = open(storage.clone());
    write(&database, &ANN, [vec![creation(id, "notes")], rows(id, &[&Copy::new(1).set("n", 1)])].concat());
    let faults = || {
        let found = database.verify(true, &mut |_, _| {}).unwrap();
        found.faults.iter().map(|fault| format!("{}: {}", fault.place, fault.why)).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(faults(), "");
    let (lsn, header) = database.reader().rules(Ruleset::of(ANN.text).version).unwrap().unwrap();
    let version = RulesHeader::version_text(header.version);

    // By somebody who knows the format, checksums and all.
    let written = storage.get(Keyspace::Log, &log_key(lsn)).unwrap();
    let forge = |header: RulesHeader| {
        let (bytes, _) = Record::Rules(header).encode(lsn, crate::id::Chain::default());
        storage.tamper(Keyspace::Log, &log_key(lsn), Some(bytes));
        faults()
    };
    let found = forge(RulesHeader { text: header.text.replace("write", "get"), ..header.clone() });
    assert!(found.contains(&format!("record {lsn}: the digest of its rules does not match")), "{found}");
    assert!(found.contains("the chain digest does not match"), "{found}");
    let digest = *blake3::hash(b"match").as_bytes();
    let found = forge(RulesHeader { text: "match".into(), digest, ..header.clone() });
    assert!(found.contains(&format!("record {lsn}: its text is not that of rules {version}")), "{found}");
    storage.tamper(Keyspace::Log, &log_key(lsn), written);
    assert_eq!(faults(), "");

    let key = [&b"r"[..], &header.version.to_be_bytes()].concat();
    assert!(storage.get(Keyspace::State, &key).unwrap().is_some());
    storage.tamper(Keyspace::State, &key, None);
    let found = faults();
    assert!(found.contains(&format!("rules {version}: record {lsn} is missing")), "{found}");
    assert!(found.contains("that it speaks of are not there"), "{found}");
    drop(database);
    // It is written again then.
    let database = open(storage.killed());
    let mut ben = Copy::new(2);
    ben.view = database.find(id).unwrap().with_view(|view| Ok(View::load(&view.save()?)?)).unwrap();
    write(&database, &Ruled { principal: "ben", ..ANN }, rows(id, &[&ben.set("n", 2)]));
    assert_eq!(records(database.reader()).iter().filter(|(_, record)| matches!(record, Record::Rules(_))).count(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_write_is_on_record_with_the_allow_that_let_it_in_whatever_ends_the_process(
        steps in vec((0..3_u8, 0..2_usize, vec(1..4_u64, 1..4), 0..8_u8), 1..24),
    ) {
        let (mut storage, id) = (MemoryStorage::new(), DocumentId([1; 16]));
        let mut database = open(storage.clone());
        let mut told: Vec<(ChangeHash, u32, u32)> = Vec::new();
        let judge = |who: u8, text: usize| {
            Ruled { principal: ["ann", "ben", ""][usize::from(who)], text: TEXTS[text] }
        };
        let first = Copy::new(9).set("n", 1);
        write(&database, &judge(0, 0), [vec![creation(id, "notes")], rows(id, &[&first])].concat());
        told.push((first.hash(), Ruleset::of(TEXTS[0]).version, 1));
        for (who, text, values, end) in steps {
            match end {
                0 => {
                    database.close();
                    drop(database);
                    database = open(storage.clone());
                }
                1 => {
                    drop(database);
                    storage = storage.killed();
                    database = open(storage.clone());
                }
                _ => {}
            }
            let mut copy = Copy::new(who);
            copy.view = database.find(id).unwrap().with_view(|view| Ok(View::load(&view.save()?)?)).unwrap();
            // No two changes are alike.
            let edit = |edit: &mut Edit<'_>, n, count| {
                edit.put("n", n)?;
                edit.put("c", count)
            };
            let made: Vec<(Change, u64)> = (told.len() as u64..)
                .zip(&values)
                .map(|(count, n)| (copy.edit(|made| edit(made, *n, count)), *n))
                .collect();
            let judge = judge(who, text);
            let examined = write(&database, &judge, rows(id, &made.iter().map(|(change, _)| change).collect::<Vec<_>>()));
            prop_assert!(examined.denied.is_empty() && examined.missing.is_empty());
            let version = Ruleset::of(judge.text).version;
            told.extend(made.iter().map(|(change, n)| (change.hash(), version, *n as u32)));

            let images = (0..=storage.unsynced_batches()).map(|kept| storage.crashed(kept)).chain([storage.killed()]);
            for image in images {
                let after = open(image);
                let found = lines(after.reader());
                for (hash, version, line) in &told {
                    prop_assert_eq!(found[&at(&after, id, *hash)], (*version, Some(*line)), "{}", hash);
                }
                // No text is there twice, or after what stands under it.
                prop_assert!(texts(after.reader()).len() <= TEXTS.len());
            }
        }
        let found = database.verify(true, &mut |_, _| {}).unwrap();
        prop_assert!(found.faults.is_empty(), "{:?}", found);
    }
}
