//! What takes long, is large, or cannot be applied: a feed gets on all the same.

use super::turning::{Met, Walk};
use super::*;
use crate::engine::{Incoming, IncomingBody};
use crate::log::record::{CreationRank, Lifecycle, LifecycleKind};

fn notes(from_now: bool) -> Wants {
    Wants { filter: 1, coalesced: false, from_now, step_by_step: true }
}

#[test]
fn changes_that_cannot_be_applied_have_nobody_begin_anew() {
    // Of a note whose owner is looked at, and of a room that decides about others.
    for (rules, which, key, [lets, denies]) in [
        (0, FIXED, "owner", [json!("ben"), json!("ann")]),
        (1, 0, "members", [json!(["ben"]), json!([])]),
        (1, 1, "members", [json!(["ben"]), json!([])]),
    ] {
        let mut world = World::new(rules);
        let mut consumer = Consumer::new(&world, EVERYTHING);
        consumer.check(&mut world);
        for round in 0..8 {
            // He is away each time, and each time there is one more of them.
            consumer.feed = None;
            world.edit_in_vain(which, key, if round % 2 == 0 { &denies } else { &lets });
            if round % 3 == 0 {
                consumer.page(&world, 8, 100);
            }
            world.edit(which, key, if round % 4 < 2 { &denies } else { &lets });
            world.edit(which, "body", &json!(round));
            consumer.check(&mut world);
        }
        assert_eq!(consumer.resets, 0, "{rules}");
    }
}

#[test]
fn a_change_of_rights_is_told_in_as_many_pages_as_it_takes_each_document_once() {
    let mut world = World::new(1);
    for _ in 4..NOTES_MAX {
        world.create(0);
    }
    let mut consumer = Consumer::new(&world, notes(true));
    let could = consumer.expected(&world).len();
    world.edit(0, "members", &json!(["ann"]));
    consumer.feed = None;
    let (mut pages, mut told) = (0, BTreeMap::<DocumentId, usize>::new());
    // Also over a restart.
    while consumer.copy != consumer.expected(&world) {
        pages += 1;
        assert!(pages < 100, "it ends");
        if pages == 3 {
            world.start();
        }
        let before = consumer.copy.clone();
        consumer.page(&world, 16, 1);
        let gone = before.keys().filter(|document| !consumer.copy.contains_key(*document));
        gone.for_each(|document| *told.entry(*document).or_default() += 1);
    }
    assert!(pages > could - 3, "{pages}");
    assert_eq!((told.len(), consumer.resets), (could - consumer.copy.len(), 0));
    assert!(told.values().all(|times| *times == 1));
    // And so is what was written since.
    world.edit(0, "members", &json!(["ben"]));
    world.edit(FIXED, "body", &json!("late"));
    for _ in 0..100 {
        consumer.page(&world, 1, 2);
    }
    assert_eq!(consumer.copy, consumer.expected(&world));
    assert_eq!(consumer.resets, 0);
}

#[test]
fn a_feed_gets_on_however_often_everything_has_to_be_asked_about() {
    let mut world = World::new(1);
    for which in 0..5 {
        world.create(which);
    }
    for round in 0..20 {
        for which in FIXED..world.documents.len() {
            world.edit(which, "body", &json!(round));
        }
    }
    for (coalesced, stands, turns) in [(false, false, 3), (false, false, 1), (false, true, 2), (true, true, 2)] {
        let mut consumer = Consumer::new(&world, Wants { coalesced, ..notes(false) });
        let mut rounds = 0;
        while consumer.copy != consumer.expected(&world) || rounds < 10 {
            rounds += 1;
            assert!(rounds < 1000, "it ends: {coalesced} {stands} {turns} {}", consumer.copy.len());
            // Somebody else comes and goes before each look.
            world.edit(1, "members", &if rounds % 2 == 0 { json!(["ben"]) } else { json!(["ben", "eve"]) });
            match stands {
                true => consumer.follow(&world, 4, Limit::Turns(turns)),
                false => consumer.page(&world, 4, turns),
            }
        }
        assert_eq!(consumer.resets, 0);
    }
}

#[test]
fn nothing_is_told_of_an_earlier_moment_that_may_not_be_read_any_more() {
    let mut world = World::new(0);
    let mut consumer = Consumer::new(&world, notes(true));
    // Two of four are his: the others become so.
    let own = |world: &World| (FIXED..FIXED + 4).filter(|which| world.may_read(*which)).collect::<Vec<_>>();
    let his = own(&world);
    for which in (FIXED..FIXED + 4).filter(|which| !his.contains(which)) {
        world.edit(which, "owner", &json!("ben"));
    }
    consumer.page(&world, 1, 1);
    let lacks = |which: &usize| !consumer.copy.contains_key(&world.documents[*which]);
    let rest: Vec<usize> = own(&world).into_iter().filter(lacks).collect();
    assert!(!rest.is_empty(), "it was cut off in between");
    // `Consumer::take` holds what is told against what may be read at that time.
    for which in rest {
        world.edit(which, "owner", &json!("ann"));
    }
    consumer.check(&mut world);
    assert_eq!(consumer.resets, 0);
}

#[test]
fn what_is_released_and_taken_again_before_it_is_told_is_told_for_all_that() {
    for stands in [false, true] {
        let mut world = World::new(1);
        for _ in 0..3 {
            world.create(0);
        }
        let mut consumer = Consumer::new(&world, notes(true));
        let go_on = |world: &World, consumer: &mut Consumer| {
            consumer.feed.iter_mut().for_each(|feed| feed.rests_until = Instant::now());
            match stands {
                true => consumer.follow(world, 16, Limit::Turns(1)),
                false => consumer.page(world, 16, 1),
            }
            let cursor =
                consumer.feed.as_ref().map_or_else(|| consumer.cursor.clone().unwrap(), |f| f.cursor().to_string());
            cursor.parse::<Place>().unwrap().rights.unwrap().step.is_some()
        };
        world.edit(0, "members", &json!([]));
        while go_on(&world, &mut consumer) || consumer.copy != consumer.expected(&world) {}
        // He comes to the room, leaves it while he is told so, and is back before anything else is asked.
        world.edit(0, "members", &json!(["ben"]));
        assert!(go_on(&world, &mut consumer), "it takes more than one turn");
        world.edit(0, "members", &json!([]));
        while go_on(&world, &mut consumer) {}
        assert!(!consumer.again.is_empty());
        world.edit(0, "members", &json!(["ben"]));
        consumer.check(&mut world);
        assert_eq!(consumer.resets, 0);
    }
}

#[test]
fn every_document_is_met_whatever_changes_meanwhile() {
    let world = World::new(2);
    let database = world.database().clone();
    let create = |collection: &str, n: usize| {
        let (handle, commit) = database.collection(collection).unwrap().create(json!({ "n": n })).unwrap();
        commit.wait().unwrap();
        handle.id()
    };
    let all: Vec<DocumentId> = (0..6000).map(|n| create(["notes", "halls"][n % 7 % 2], n)).collect();
    let reader = database.reader();
    let lanes = || reader.collections().unwrap().into_iter().map(|(_, name)| (name.key(), Lsn::ZERO)).collect();
    let mut walk = Walk::new(reader, lanes()).unwrap();
    let (mut met, mut last, mut changed) = (HashMap::<DocumentId, usize>::new(), Lsn::ZERO, HashSet::new());
    let (mut count, mut pauses, began) = (0, 0, reader.tail().lsn);
    loop {
        let (lsn, document) = match walk.next().unwrap() {
            Met::Document(lsn, document) => (lsn, document),
            Met::Nothing => {
                pauses += 1;
                continue;
            }
            Met::End => break,
        };
        *met.entry(document).or_default() += 1;
        assert!(
            lsn > last || (lsn == began && last == began),
            "in the order of their last records, up to the beginning"
        );
        last = lsn;
        count += 1;
        // One that was met, and one that was not, by turns.
        if count % 50 == 0 && count < 6000 {
            let other = all[if count % 100 == 0 { count - 20 } else { 6000 - count / 2 }];
            let commit = database.find(other).unwrap().change(|edit| Ok(edit.put("n", 0)?)).unwrap();
            commit.wait().unwrap();
            changed.insert(other);
        }
    }
    assert!(!walk.is_hopeless);
    assert!(changed.len() > 64 && pauses > 0, "{} {pauses}", changed.len());
    for document in &all {
        let times = met.get(document).copied().unwrap_or_default();
        assert!((1..=2).contains(&times) && (times == 1 || changed.contains(document)), "{document} {times}");
    }
}

#[test]
fn a_document_that_changes_while_all_is_asked_about_is_told_of_once() {
    let mut world = World::new(1);
    // More than are read at a time.
    for _ in 0..1500 {
        world.create(0);
    }
    let mut consumer = Consumer::new(&world, notes(true));
    let mut feed = consumer.open(&world);
    consumer.tell(&world, &mut feed, 16, Limit::None);
    world.edit(0, "members", &json!([]));
    let mut told = Vec::new();
    loop {
        block_on(feed.pull(16)).unwrap();
        let (said, next) = feed.tell().unwrap();
        for said in said {
            let Said::Right(right) = said else { continue };
            // It is met again, further on.
            let which = world.documents.iter().position(|document| *document == right.document).unwrap();
            if told.len() < 4 {
                world.edit(which, "body", &json!("meanwhile"));
            }
            told.push(right.document);
        }
        match next {
            Next::Wait => break,
            Next::Rest(_) => feed.rests_until = Instant::now(),
            Next::Pull | Next::Work => {}
        }
    }
    assert_eq!(told.iter().collect::<HashSet<_>>().len(), told.len());
    assert_eq!(told.len(), consumer.copy.len() - consumer.expected(&world).len());
    assert!(told.len() > 1500);
}

#[test]
fn what_left_for_another_collection_is_withheld_also_while_all_is_asked_about() {
    for step_by_step in [false, true] {
        let mut world = World::new(1);
        let mut consumer = Consumer::new(&world, Wants { step_by_step, ..notes(true) });
        let which = (FIXED..FIXED + 4).find(|which| world.may_read(*which)).unwrap();
        let document = world.documents[which];
        assert!(consumer.copy.contains_key(&document));
        // Another creation turns up, which counts.
        let secrets = world.database().collection("secrets").unwrap();
        let statement = Lifecycle {
            document,
            collection: secrets.name().clone(),
            kind: LifecycleKind::Created,
            rank: CreationRank::Asked,
            lamport: 0,
            author: NODE,
            actor: None,
            time_ms: world.clock,
            heads: Heads::default(),
            name: None,
        };
        let row = Incoming { body: IncomingBody::Lifecycle(statement.encode()), ..secrets.imported(document) };
        world.database().admit_blocking(vec![row]).unwrap();
        assert_eq!(world.database().reader().document(document).unwrap().unwrap().collection, *secrets.name());
        world.edit(1, "members", &json!(["ben", "eve"]));
        let mut feed = consumer.open(&world);
        assert!(feed.turn().unwrap().is_wide);
        consumer.tell(&world, &mut feed, 16, Limit::None);
        assert!(!consumer.copy.contains_key(&document));
        assert_eq!((consumer.resets, consumer.copy.is_empty()), (0, false));
    }
}

#[test]
fn a_feed_remembers_no_more_documents_than_it_may_also_while_it_rests() {
    let mut world = World::new(1);
    let mut consumer = Consumer::new(&world, EVERYTHING);
    consumer.check(&mut world);
    let mut feed = consumer.feed.take().unwrap();
    let some = |count: usize| (0..count as u128).map(|n| DocumentId(n.to_be_bytes()));
    feed.known = some(2 * bounds::KNOWN_MAX).map(|document| (document, true)).collect();
    feed.rests_on = Some(some(bounds::RESTS_ON_MAX - 1).chain([world.documents[0]]).collect());
    // Whatever is written is asked about, and rests on a room.
    world.edit(0, "members", &json!(["ben", "eve"]));
    for which in FIXED..world.documents.len() {
        world.edit(which, "body", &json!(1));
    }
    feed.moment = world.subject().moment();
    feed.rests_until = Instant::now() + Duration::from_secs(60);
    world.edit(0, "members", &json!(["ben"]));
    block_on(feed.pull(64)).unwrap();
    let (said, next) = feed.tell().unwrap();
    assert!(said.len() > 4 && next == Next::Pull, "{} {next:?}", said.len());
    assert!(feed.known.len() < bounds::KNOWN_MAX && feed.rests_on.is_none(), "{}", feed.known.len());
}

#[test]
fn a_feed_keeps_no_more_bytes_than_it_may_and_none_while_it_waits() {
    let mut world = World::new(1);
    let mut consumer = Consumer::new(&world, Wants { step_by_step: true, ..EVERYTHING });
    consumer.check(&mut world);
    let budget = world.access().0.kept.clone();
    assert_eq!(budget.bytes(), 0);
    // More than may be kept, in the rooms that decide about the notes.
    for room in 0..3 {
        world.edit(room, "text", &json!({ "$string": "x".repeat(bounds::OTHERS_BYTES / 2) }));
    }
    let mut feed = consumer.feed.take().unwrap();
    let mut most = 0;
    loop {
        block_on(feed.pull(16)).unwrap();
        consumer.note(&world);
        let (said, next) = feed.tell().unwrap();
        said.into_iter().for_each(|said| consumer.take(&world, said));
        most = most.max(budget.bytes());
        assert!(next == Next::Work || budget.bytes() == 0);
        match next {
            Next::Wait => break,
            Next::Rest(_) => feed.rests_until = Instant::now(),
            Next::Pull | Next::Work => {}
        }
    }
    assert!(most > bounds::OTHERS_BYTES / 2 && most <= 3 * bounds::OTHERS_BYTES, "{most}");
    assert_eq!(budget.bytes(), 0);

    // Nor is more read of the log than that.
    let mut word = 1_u64;
    let mut noise = || {
        let mut next = || {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            char::from(b'!' + (word >> 58) as u8)
        };
        (0..400_000).map(|_| next()).collect::<String>()
    };
    for _ in 0..8 {
        let value = json!({ "$string": noise() });
        world.edit(FIXED, "body", &value);
    }
    block_on(feed.pull(64)).unwrap();
    let bytes: usize = feed.pulled.iter().map(logged_bytes).sum();
    assert!((bounds::PULLED_BYTES..bounds::PULLED_BYTES + 500_000).contains(&bytes), "{bytes}");
    consumer.feed = Some(feed);
    consumer.check(&mut world);
}
