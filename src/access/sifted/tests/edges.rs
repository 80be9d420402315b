//! What is told when, and what is asked for it.

use std::collections::BTreeSet;

use super::*;

/// A world with a consumer who has heard all.
fn heard(rules: usize) -> (World, Consumer) {
    let mut world = World::new(rules);
    let mut consumer = Consumer::new(&world, EVERYTHING);
    consumer.check(&mut world);
    (world, consumer)
}

/// What is said now, in words.
fn words(world: &World, feed: &mut SiftedFeed) -> Vec<String> {
    let mut words = Vec::new();
    loop {
        block_on(feed.pull(16)).unwrap();
        let (said, next) = feed.tell().unwrap();
        words.extend(said.into_iter().filter_map(|said| match said {
            Said::Opened(opened) => Some(opened.as_object().unwrap().keys().next().unwrap().clone()),
            Said::Event(event, _) => Some(event.kind.as_str().to_owned()),
            Said::Right(right) => Some(right.to_json()["kind"].as_str().unwrap().to_owned()),
            Said::Progress(..) => None,
        }));
        match next {
            Next::Wait => return words,
            Next::Rest(_) => feed.rests_until = Instant::now(),
            Next::Pull | Next::Work => assert!(world.documents.len() < 1000),
        }
    }
}

#[test]
fn a_resumed_feed_tells_the_difference_and_nothing_else() {
    let (mut world, mut consumer) = heard(1);
    consumer.feed = None;
    let resumed = |world: &World, consumer: &mut Consumer| {
        let mut feed = consumer.open(world);
        let words = words(world, &mut feed);
        consumer.cursor = Some(feed.cursor().to_string());
        words
    };
    // Nothing happened, and then only to the token; and to the run of the server.
    assert_eq!(resumed(&world, &mut consumer), ["resumed"]);
    world.renew();
    assert_eq!(resumed(&world, &mut consumer), ["resumed"]);
    world.start();
    assert_eq!(resumed(&world, &mut consumer), ["resumed"]);
    // Two notes are in the first room: he leaves it, and comes back.
    world.edit(0, "members", &json!(["ann"]));
    world.start();
    assert_eq!(resumed(&world, &mut consumer), ["resumed", "withheld", "withheld", "withheld"]);
    world.edit(0, "members", &json!(["ann", "ben"]));
    assert_eq!(resumed(&world, &mut consumer), ["resumed", "released", "released", "released", "changed"]);
    // Somebody else comes to a room in which he is, and to one in which he is not.
    world.edit(1, "members", &json!(["ben", "eve"]));
    assert_eq!(resumed(&world, &mut consumer), ["resumed", "changed"]);
    world.edit(2, "members", &json!([]));
    assert_eq!(resumed(&world, &mut consumer), ["resumed", "withheld", "withheld"]);
    world.edit(2, "members", &json!(["eve"]));
    assert_eq!(resumed(&world, &mut consumer), ["resumed"]);
    // Under other rules nobody knows what he was told.
    world.rules = 2;
    world.start();
    assert_eq!(resumed(&world, &mut consumer)[..2], ["reset", "standing"]);
    assert_eq!(resumed(&world, &mut consumer), ["resumed"]);
}

#[test]
fn a_standing_feed_tells_of_other_rules_what_they_change_and_asks_about_all_only_when_it_must() {
    let (mut world, mut consumer) = heard(0);
    let mut feed = consumer.feed.take().unwrap();
    for rules in [2, 7, 1, 3, 0] {
        let before = consumer.copy.clone();
        world.rules = rules;
        world.access().set_rules(world.parsed());
        let mut told = Vec::new();
        loop {
            block_on(feed.pull(16)).unwrap();
            let (said, next) = feed.tell().unwrap();
            for said in said {
                if let Said::Right(right) = &said {
                    told.push(right.document);
                }
                consumer.note(&world);
                consumer.take(&world, said);
            }
            match next {
                Next::Wait => break,
                Next::Rest(_) => feed.rests_until = Instant::now(),
                Next::Pull | Next::Work => {}
            }
        }
        assert_eq!(consumer.copy, consumer.expected(&world), "{rules}");
        let differs = |document: &DocumentId| before.contains_key(document) != consumer.copy.contains_key(document);
        let differ: BTreeSet<DocumentId> = world.documents.iter().copied().filter(differs).collect();
        assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), differ, "{rules}");
    }
    assert_eq!(consumer.resets, 0);
    // Rules that look at the note alone: what else is written has nothing asked again.
    world.edit(0, "members", &json!(["eve"]));
    assert!(!feed.turn().unwrap().is_wide);
    world.rules = 1;
    world.access().set_rules(world.parsed());
    words(&world, &mut feed);
    world.edit(4, "body", &json!(1));
    assert!(!feed.turn().unwrap().is_wide);
    world.edit(0, "members", &json!(["ben"]));
    assert!(feed.turn().unwrap().is_wide);
    // It is dear, and not done at once again.
    words(&world, &mut feed);
    world.edit(0, "members", &json!(["eve"]));
    feed.rests_until = Instant::now() + Duration::from_secs(60);
    block_on(feed.pull(16)).unwrap();
    assert!(matches!(feed.tell().unwrap(), (said, Next::Rest(_)) if said.is_empty()));
    feed.rests_until = Instant::now();
    assert_eq!(words(&world, &mut feed), ["withheld", "withheld", "withheld"]);
}

#[test]
fn whoever_is_cut_off_among_what_was_granted_goes_on_there() {
    let (mut world, mut consumer) = heard(1);
    world.edit(0, "members", &json!([]));
    consumer.follow(&world, 16, Limit::Items(1));
    assert!(consumer.feed.is_none());
    // Back, before he hears the rest: he is told that, and then what is so now.
    world.edit(0, "members", &json!(["ben"]));
    let copy = consumer.copy.clone();
    let mut feed = consumer.open(&world);
    assert_eq!(words(&world, &mut feed)[..4], ["resumed", "withheld", "withheld", "released"]);
    assert_eq!(consumer.copy, copy);
    consumer.check(&mut world);
    assert_eq!(consumer.resets, 0);
}

#[test]
fn whoever_was_cut_off_by_an_older_server_or_under_other_rules_begins_anew() {
    let (mut world, mut consumer) = heard(1);
    world.edit(0, "members", &json!([]));
    consumer.follow(&world, 16, Limit::Items(1));
    let place: Place = consumer.cursor.as_ref().unwrap().parse().unwrap();
    // Without a name, as they were given once among what was granted.
    let older = Place { rights: place.rights.map(Mark::unsettled), ..place };
    let copy = consumer.copy.clone();
    for (cursor, rules, resets) in [(older, 1, 1), (place, 0, 2), (place, 1, 2)] {
        world.rules = rules;
        world.access().set_rules(world.parsed());
        (consumer.feed, consumer.cursor, consumer.copy) = (None, Some(cursor.to_string()), copy.clone());
        consumer.check(&mut world);
        assert_eq!(consumer.resets, resets, "{rules}");
    }
}

#[test]
fn a_cursor_of_another_or_from_before_begins_anew() {
    let (mut world, mut consumer) = heard(1);
    consumer.feed = None;
    let whole = consumer.cursor.clone().unwrap();
    let (bare, _) = whole.split_once('.').unwrap();
    consumer.cursor = Some(bare.to_owned());
    consumer.check(&mut world);
    assert_eq!(consumer.resets, 1);
    // Where claims count, another who claims something else; who claims the same goes on.
    world.rules = 3;
    world.access().set_rules(world.parsed());
    consumer.check(&mut world);
    for (team, resets) in [("red", 1), ("blue", 2)] {
        world.team = team;
        world.renew();
        consumer.feed = None;
        consumer.check(&mut world);
        assert_eq!(consumer.resets, resets, "{team}");
    }
}

#[test]
fn what_is_written_to_a_document_after_it_left_is_not_told() {
    let (mut world, mut consumer) = heard(0);
    let mut feed = consumer.feed.take().unwrap();
    assert!(world.may_read(4));
    world.edit(4, "body", &json!(1));
    assert_eq!(words(&world, &mut feed), ["changed"]);
    world.edit(4, "owner", &json!("ann"));
    assert_eq!(words(&world, &mut feed), ["withheld"]);
    world.edit(4, "body", &json!(2));
    assert_eq!(words(&world, &mut feed), [""; 0]);
    world.edit(4, "owner", &json!("ben"));
    assert_eq!(words(&world, &mut feed), ["released", "changed"]);
    world.edit(4, "body", &json!(3));
    assert_eq!(words(&world, &mut feed), ["changed"]);
}
