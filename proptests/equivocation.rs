//! One author, one number, two changes: every replica ends with the same one, and with nothing that stood on the other.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use tidelog::document::{EditOptions, View, ViewError};
use tidelog::engine::{Admitted, Clash, Incoming, IncomingBody};
use tidelog::feed::{EventKind, Item};
use tidelog::log::MemoryStorage;
use tidelog::{Change, ChangeHash, Database, DocHandle, DocumentId, Lsn};

use crate::support::{
    actor, assert_whole, cases, first_value, logged_changes, narrow, node, origin, plain, plain_heads, plain_json,
    rows_after, without_counters,
};

const DOCUMENT: DocumentId = DocumentId([7; 16]);

struct Replica {
    number: u8,
    storage: MemoryStorage,
    database: Database,
}

impl Replica {
    fn new(number: u8) -> Self {
        let storage = MemoryStorage::new();
        Self { number, database: open(&storage, number), storage }
    }

    fn document(&self) -> DocHandle {
        self.database.find(DOCUMENT).unwrap()
    }

    fn offer(&self, rows: Vec<Incoming>, clash: Clash) -> Admitted {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(self.database.admit_with(clash, rows, None, None)).unwrap()
    }

    fn offer_changes(&self, changes: &[Change], clash: Clash) -> Admitted {
        self.offer(changes.iter().map(row).collect(), clash)
    }

    fn hashes(&self) -> Vec<ChangeHash> {
        logged_changes(self.database.reader(), DOCUMENT).into_keys().collect()
    }

    /// Whoever follows a feed, and takes back what gave way, has the changes that are there; and their heads fit together
    /// where nothing gave way in between.
    fn assert_told(&self, expected: &BTreeSet<ChangeHash>) {
        for changes in [self.database.changes(), self.database.changes().document(DOCUMENT)] {
            let (mut told, mut heads) = (BTreeMap::new(), None);
            let mut feed = changes.open().unwrap();
            while let Some(item) = feed.next_now().unwrap() {
                let Item::Event(event) = item else { continue };
                match event.kind {
                    EventKind::Changed(changed) => {
                        assert!(heads.is_none_or(|heads| heads == changed.heads_before));
                        heads = Some(changed.heads_after.clone());
                        told.insert(event.position, changed.hash);
                    }
                    EventKind::Withdrawn { positions, .. } => {
                        for position in positions {
                            told.remove(&position);
                        }
                        heads = None;
                    }
                    _ => {}
                }
            }
            assert_eq!(told.into_values().collect::<BTreeSet<_>>(), *expected);
            assert!(heads.is_none_or(|heads| heads == self.document().state().unwrap().heads));
        }
    }

    /// Its log and its projections agree, also when they are made again, and so does what it shows.
    fn check(&mut self) {
        assert_whole(&self.database);
        let logged = logged_changes(self.database.reader(), DOCUMENT);
        let document = self.document();
        let changes = in_order(&logged.into_values().collect::<Vec<_>>());
        let plain = plain(&changes);
        assert_eq!(document.state().unwrap().heads, plain_heads(&plain));
        assert_eq!(without_counters(document.to_json().unwrap()), plain_json(&plain));
        self.assert_told(&logged_changes(self.database.reader(), DOCUMENT).into_keys().collect());
        let row = self.database.reader().row(DOCUMENT).unwrap();
        drop(document);
        self.database.close();
        self.storage = self.storage.killed();
        self.database = open(&self.storage, self.number);
        let tail = self.database.reader().tail().lsn;
        tidelog::history::rebuild(&**self.database.reader().storage(), tail, &mut |_, _| {}).unwrap();
        let again = self.database.reader().row(DOCUMENT).unwrap();
        let without_snapshot = |row: Option<tidelog::log::rows::DocumentRow>| {
            row.map(|row| tidelog::log::rows::DocumentRow { snapshot: None, ..row })
        };
        assert_eq!(without_snapshot(again), without_snapshot(row), "projections made again are the ones before");
        assert_whole(&self.database);
    }
}

fn open(storage: &MemoryStorage, number: u8) -> Database {
    Database::on(storage.clone()).node(node(number)).limits(narrow()).open().unwrap()
}

fn row(change: &Change) -> Incoming {
    Incoming {
        document: DOCUMENT,
        body: IncomingBody::Change(Box::new(change.clone())),
        origin: origin(9),
        signature: None,
    }
}

/// In an order in which each comes after what it depends on.
fn in_order(changes: &[Change]) -> Vec<Change> {
    let mut left = changes.to_vec();
    left.sort_by_key(|change| (change.start_op(), change.hash()));
    left
}

/// The changes that `texts` make, one after the other, by one author on top of `base`.
fn made(base: &[Change], author: u64, texts: &[String]) -> Vec<Change> {
    let chunks: Vec<u8> = base.iter().flat_map(|change| change.bytes().iter().copied()).collect();
    let mut view = View::load(&chunks).unwrap();
    let edit = |text: &String| {
        let options = EditOptions { actor: actor(author), time: 0, message: None };
        let edited = view.edit(options, |edit| -> Result<(), ViewError> { edit.splice("text", 0, 0, text) });
        edited.unwrap().1.unwrap()
    };
    texts.iter().map(edit).collect()
}

/// Replicas of one document that all have its beginning.
fn replicas(count: u8) -> (Vec<Replica>, Vec<Change>) {
    let replicas: Vec<Replica> = (0..count).map(Replica::new).collect();
    let notes = replicas[0].database.collection("notes").unwrap();
    let document = notes.create_with_id(DOCUMENT).unwrap();
    let begin = |edit: &mut tidelog::Edit<'_>| {
        first_value().as_object().unwrap().iter().try_for_each(|(key, value)| Ok(edit.put(key.as_str(), value)?))
    };
    document.change(begin).unwrap().wait().unwrap();
    let rows = rows_after(replicas[0].database.reader(), Lsn::ZERO);
    for other in &replicas[1..] {
        assert!(other.offer(rows.clone(), Clash::SmallerHash).refused.is_empty());
    }
    let base = in_order(&logged_changes(replicas[0].database.reader(), DOCUMENT).into_values().collect::<Vec<_>>());
    (replicas, base)
}

/// Everybody hears everything from everybody, as often as it takes.
fn gossip(replicas: &[Replica], order: &[Index]) {
    let pairs: Vec<(usize, usize)> = (0..replicas.len())
        .flat_map(|from| (0..replicas.len()).filter(move |to| *to != from).map(move |to| (from, to)))
        .collect();
    let tell = |(from, to): (usize, usize)| {
        let rows = rows_after(replicas[from].database.reader(), Lsn::ZERO);
        let answer = replicas[to].offer(rows, Clash::SmallerHash);
        assert!(answer.refused.is_empty(), "{answer:?}");
    };
    order.iter().for_each(|at| tell(*at.get(&pairs)));
    for _ in 0..4 {
        pairs.iter().copied().for_each(tell);
    }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn replicas_that_logged_different_twins_end_with_the_same_one(
        lengths in vec(1..4_usize, 2..4),
        order in vec(any::<Index>(), 0..8),
        edits in vec(any::<bool>(), 3),
    ) {
        let (mut replicas, base) = replicas(3);
        let branches: Vec<Vec<Change>> = lengths
            .iter()
            .enumerate()
            .map(|(twin, length)| made(&base, 1, &(0..*length).map(|n| format!("twin {twin}.{n} ")).collect::<Vec<_>>()))
            .collect();
        for (replica, branch) in replicas.iter().zip(branches.iter().cycle()) {
            prop_assert_eq!(replica.offer_changes(branch, Clash::SmallerHash).accepted, branch.len());
        }
        for (replica, edits) in replicas.iter().zip(&edits) {
            if *edits {
                // An honest author builds on it.
                let document = replica.document();
                document.change(|edit| Ok(edit.put("honest", replica.number)?)).unwrap().wait().unwrap();
            }
        }
        gossip(&replicas, &order);
        let winner = branches.iter().min_by_key(|branch| branch[0].hash()).unwrap();
        let first = replicas[0].hashes();
        for replica in &mut replicas {
            prop_assert_eq!(&replica.hashes(), &first);
            for branch in &branches {
                for change in branch {
                    prop_assert_eq!(first.contains(&change.hash()), branch[0].hash() == winner[0].hash(), "{}", change.hash());
                }
            }
            replica.check();
        }
    }
}

#[test]
fn within_one_node_the_first_of_two_twins_stays_and_nothing_waits_for_the_other() {
    let (mut replicas, base) = replicas(1);
    let (first, second) = (made(&base, 1, &["one ".into()]), made(&base, 1, &["two ".into(), "three ".into()]));
    assert_eq!(replicas[0].offer_changes(&first, Clash::KeepFirst).accepted, 1);
    // The descendant comes first, and waits.
    let answer = replicas[0].offer_changes(&second[1..], Clash::KeepFirst);
    assert_eq!(answer.missing, [(DOCUMENT, vec![second[0].hash()])]);
    let answer = replicas[0].offer_changes(&second[..1], Clash::KeepFirst);
    assert_eq!(answer.outranked, [(DOCUMENT, second[0].hash())]);
    assert!(answer.missing.is_empty() && answer.refused.is_empty() && answer.accepted == 0, "{answer:?}");
    assert!(replicas[0].hashes().contains(&first[0].hash()));
    replicas[0].check();
}

#[test]
fn a_client_takes_what_its_node_has_decided_and_loses_only_what_stood_on_its_own() {
    let (mut replicas, base) = replicas(2);
    let (ours, theirs) = (made(&base, 1, &["ours ".into()]), made(&base, 1, &["theirs ".into()]));
    let client = &replicas[0];
    client.offer_changes(&ours, Clash::KeepFirst);
    let beside = made(&base, 2, &["beside ".into()]);
    client.offer_changes(&beside, Clash::KeepFirst);
    let document = client.document();
    let top = document.change(|edit| Ok(edit.put("on", "top")?)).unwrap().wait().unwrap().change.unwrap();
    let before = document.state().unwrap();
    let answer = client.offer_changes(&theirs, Clash::TakeTheirs);
    assert_eq!(answer.accepted, 1, "{answer:?}");
    let text: String = document.read("text").unwrap().unwrap();
    assert!(text.contains("theirs") && text.contains("beside") && !text.contains("ours"), "{text}");
    assert_eq!(document.read::<String>("on").unwrap(), None);
    assert!(document.state().unwrap().change_count < before.change_count + 1);
    // What was made here and gave way is on a list, and is made anew from there.
    let rejected = client.database.rejected().unwrap();
    let own = rejected.iter().find(|rejected| rejected.change == Some(top)).unwrap();
    client.database.resubmit(own).unwrap().commit.unwrap().wait().unwrap();
    assert_eq!(document.read::<String>("on").unwrap().as_deref(), Some("top"));
    assert!(client.database.rejected().unwrap().iter().all(|rejected| rejected.change != Some(top)));
    // An edit goes on from there.
    document.change(|edit| Ok(edit.put("on", "again")?)).unwrap().wait().unwrap();
    replicas[0].check();
}

/// A client that hears of both twins in turn, as its node changed its mind, ends with what stood on the one that stays: also
/// with its own, which the node does not send back to it.
#[test]
fn a_client_that_takes_back_what_it_gave_up_asks_for_what_stood_on_it() {
    let (mut replicas, base) = replicas(2);
    let (stays, goes) = (made(&base, 1, &["stays ".into()]), made(&base, 1, &["goes ".into()]));
    let with = [base.clone(), stays.clone()].concat();
    let own = made(&with, 2, &["own ".into()]);
    let later = made(&[with, own.clone()].concat(), 3, &["later ".into()]);
    let client = &replicas[0];
    for changes in [&stays, &own, &later] {
        assert_eq!(client.offer_changes(changes, Clash::TakeTheirs).accepted, 1);
    }
    let answer = client.offer_changes(&goes, Clash::TakeTheirs);
    assert_eq!((answer.accepted, answer.missing), (1, vec![(DOCUMENT, Vec::new())]));
    let answer = client.offer_changes(&stays, Clash::TakeTheirs);
    assert_eq!((answer.accepted, answer.missing), (1, vec![(DOCUMENT, Vec::new())]), "it lacks what it brought itself");
    // What waits for that is not taken for something that gave way.
    let answer = client.offer_changes(&later, Clash::TakeTheirs);
    assert_eq!((answer.outranked, answer.missing), (vec![], vec![(DOCUMENT, vec![own[0].hash()])]));
    assert_eq!(client.offer_changes(&own, Clash::TakeTheirs).accepted, 2);
    let text: String = client.document().read("text").unwrap().unwrap();
    assert!(["stays", "own", "later"].iter().all(|word| text.contains(word)) && !text.contains("goes"), "{text}");
    replicas[0].check();
}

/// Others may still have what was withdrawn here, and its numbers: an honest author does not use them again.
#[test]
fn who_edited_before_a_withdrawal_edits_under_another_author_after_it() {
    let (replicas, base) = replicas(1);
    let (first, second) = (made(&base, 1, &["one ".into()]), made(&base, 1, &["two ".into()]));
    let (client, document) = (&replicas[0], replicas[0].document());
    let own = |key: &str| {
        let before = client.hashes();
        document.change(|edit| Ok(edit.put(key, 1)?)).unwrap().wait().unwrap();
        let logged = logged_changes(client.database.reader(), DOCUMENT);
        let change = logged.into_values().find(|change| !before.contains(&change.hash())).unwrap();
        (change.actor().clone(), change.seq())
    };
    client.offer_changes(&first, Clash::TakeTheirs);
    let before = [own("a"), own("b")];
    assert_eq!(before[0].0, before[1].0);
    assert_eq!(client.offer_changes(&second, Clash::TakeTheirs).accepted, 1);
    let after = own("c");
    assert!(!before.contains(&after), "{after:?} was used before");
}

/// Whoever asked for the document and was not answered compares it again on the next link: the cursor is forgotten, and
/// stored anew with what comes once nothing is asked.
#[test]
fn whoever_withdraws_changes_forgets_how_far_it_followed_who_brought_the_others() {
    let (replicas, base) = replicas(2);
    let (first, second) = (made(&base, 1, &["one ".into()]), made(&base, 1, &["two ".into()]));
    let (client, peers) = (&replicas[0], [node(8), node(9)]);
    let cursor = replicas[1].database.reader().tail();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let offer = |changes: &[Change], peer| {
        let rows = changes.iter().map(row).collect();
        runtime.block_on(client.database.admit_with(Clash::TakeTheirs, rows, Some(peer), Some(cursor))).unwrap()
    };
    for peer in peers {
        assert!(offer(&first, peer).cursor_stored);
    }
    assert!(!offer(&second, peers[1]).cursor_stored);
    assert_eq!(client.database.reader().peer_cursor(peers[1]).unwrap(), None);
    assert_eq!(client.database.reader().peer_cursor(peers[0]).unwrap(), Some(cursor));
    assert!(offer(&second, peers[1]).cursor_stored, "it is known, and nothing is missing");
    assert_eq!(client.database.reader().peer_cursor(peers[1]).unwrap(), Some(cursor));
}
