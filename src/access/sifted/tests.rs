mod bounded;
mod edges;

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::access::{Access, AccessOptions, Admittance};
use crate::auth::{Authority, AuthorityOptions, TokenOrder};
use crate::document::automerge_version;
use crate::engine::sim::set_wall_clock;
use crate::engine::{block_on, now_ms, void_newest};
use crate::id::NodeId;
use crate::log::MemoryStorage;
use crate::rules::{Operation, Rules};

/// Rules that look at everything there is, each in its own way; [`World::may_read`] says the same by hand.
const RULES: [&str; 9] = [
    "match /notes/{id} { allow read: if resource.data.owner == request.auth.uid; }",
    "match /notes/{id} { allow read: if request.auth.uid in get(/rooms/$(resource.data.room)).data.members; }
     match /rooms/{id} { allow read: if request.auth.uid in resource.data.members; }",
    "match /{c}/{id} { allow read; }",
    "match /{c}/{id} { allow read: if request.auth.token.team == 'red'; }",
    "match /notes/{id} { allow read: if get(/settings/main).data.open == true; }
     match /settings/{id} { allow read; }",
    "match /notes/{id} { allow read: if exists(/$(resource.data.kind)/$(resource.data.room)); }",
    "match /notes/{id} { allow read: if request.time.toMillis() < resource.data.until; }",
    "match /notes/{id} { allow read: if false; }",
    "match /notes/{id} { allow read: if resource.data.room == 'r0' || get(/settings/main).data.open == true; }
     match /rooms/{id} { allow read: if exists(/settings/main); }",
];
const ROOMS: [&str; 3] = ["r0", "r1", "r2"];
/// Rooms, settings, and then notes.
const FIXED: usize = 4;
const NOTES_MAX: usize = 9;

/// A server that is started again, tokens that are renewed, and documents of which nothing is kept beside.
struct World {
    place: tempfile::TempDir,
    storage: MemoryStorage,
    access: Option<Access>,
    authority: Option<Arc<Authority>>,
    rules: usize,
    team: &'static str,
    token: String,
    documents: Vec<DocumentId>,
    count: u64,
    clock: u64,
}

const NODE: NodeId = NodeId([1; 32]);

impl World {
    fn new(rules: usize) -> Self {
        let mut world = Self {
            place: tempfile::tempdir().unwrap(),
            storage: MemoryStorage::new(),
            access: None,
            authority: None,
            rules,
            team: "red",
            token: String::new(),
            documents: Vec::new(),
            count: 0,
            clock: now_ms(),
        };
        world.start();
        world.renew();
        for room in ROOMS {
            world.named("rooms", room, &json!({ "members": ["ben"] }));
        }
        world.named("settings", "main", &json!({ "open": true }));
        for which in 0..4 {
            world.create(which);
        }
        world
    }

    fn start(&mut self) {
        (self.access, self.authority) = (None, None);
        self.storage = self.storage.crashed(0);
        let database = Database::on(self.storage.clone()).node(NODE).open().unwrap();
        let options = AuthorityOptions { directory: self.place.path().to_owned(), node: NODE, issuers: Vec::new() };
        let authority = Some(Arc::new(Authority::open(options).unwrap()));
        self.authority.clone_from(&authority);
        let rules = Some(self.parsed());
        self.access = Some(Access::new(database, AccessOptions { admittance: Admittance::Anybody, authority, rules }));
    }

    fn parsed(&self) -> Rules {
        Rules::parse("rules", &format!("service tidelog {{ {} }}", RULES[self.rules])).unwrap()
    }

    fn access(&self) -> &Access {
        self.access.as_ref().unwrap()
    }

    fn database(&self) -> &Database {
        &self.access().0.database
    }

    /// Another token of the same user.
    fn renew(&mut self) {
        let mut order = TokenOrder::new("ben");
        order.claims.insert("team".into(), json!(self.team));
        self.token = self.authority.as_ref().unwrap().issue(order, now_ms()).unwrap().0;
    }

    fn subject(&self) -> Subject {
        self.access().admit(Some(&self.token)).unwrap()
    }

    fn named(&mut self, collection: &str, name: &str, value: &Value) {
        let handle = self.database().collection(collection).unwrap().doc_with(name, value).unwrap();
        self.documents.push(handle.id());
    }

    fn create(&mut self, pick: usize) {
        self.count += 1;
        let note = json!({
            "owner": (["ben", "ann"][pick % 2]), "room": (ROOMS[pick % 3]), "kind": (["rooms", "halls"][pick / 2 % 2]),
            "until": (self.clock + 10_000 * (pick as u64 % 4)), "n": (self.count),
        });
        let (handle, commit) = self.database().collection("notes").unwrap().create(&note).unwrap();
        commit.wait().unwrap();
        self.documents.push(handle.id());
    }

    /// Changes a document, so that no two changes are alike; not one that is deleted.
    fn edit(&mut self, which: usize, key: &str, value: &Value) -> bool {
        self.count += 1;
        let handle = self.database().find(self.documents[which]).unwrap();
        if !handle.state().unwrap().visible {
            return false;
        }
        let commit = handle.change(|edit| {
            edit.put(key, value)?;
            Ok(edit.put("n", self.count)?)
        });
        commit.unwrap().wait().unwrap();
        true
    }

    /// Has a change logged that is not shown, as if automerge had failed over it.
    fn edit_in_vain(&mut self, which: usize, key: &str, value: &Value) {
        if self.edit(which, key, value) {
            let handle = self.database().find(self.documents[which]).unwrap();
            void_newest(self.database(), &handle, automerge_version());
        }
    }

    fn toggle(&mut self, which: usize) {
        let handle = self.database().find(self.documents[which]).unwrap();
        let is_there = handle.state().unwrap().visible;
        let commit = if is_there { handle.delete() } else { handle.restore() };
        commit.unwrap().wait().unwrap();
    }

    fn json_of(&self, document: DocumentId) -> Option<Value> {
        let handle = self.database().find(document).unwrap();
        handle.state().unwrap().visible.then(|| handle.to_json().unwrap())
    }

    /// Whether `ben` may read it, by hand.
    fn may_read(&self, which: usize) -> bool {
        let settings = self.json_of(self.documents[3]);
        let is_open = settings.as_ref().is_some_and(|settings| settings["open"] == json!(true));
        let Some(value) = self.json_of(self.documents[which]) else { return false };
        let has_ben = |room: &Value| room["members"].as_array().unwrap().contains(&json!("ben"));
        let place = if which < 3 {
            "rooms"
        } else if which == 3 {
            "settings"
        } else {
            "notes"
        };
        let room = || ROOMS.iter().position(|name| value["room"] == json!(name)).unwrap();
        let room_now = || self.json_of(self.documents[room()]);
        match (self.rules, place) {
            (0, "notes") => value["owner"] == json!("ben"),
            (1, "notes") => room_now().is_some_and(|room| has_ben(&room)),
            (1, "rooms") => has_ben(&value),
            (2, _) | (4, "settings") => true,
            (3, _) => self.team == "red",
            (4, "notes") => is_open,
            (5, "notes") => value["kind"] == json!("rooms") && room_now().is_some(),
            (6, "notes") => now_ms() < value["until"].as_u64().unwrap(),
            (8, "notes") => value["room"] == json!("r0") || is_open,
            (8, "rooms") => settings.is_some(),
            _ => false,
        }
    }
}

/// Which documents somebody wants to have.
#[derive(Debug, Clone, Copy)]
struct Wants {
    filter: usize,
    coalesced: bool,
    from_now: bool,
    /// Documents are asked about one at a time.
    step_by_step: bool,
}

const EVERYTHING: Wants = Wants { filter: 0, coalesced: false, from_now: false, step_by_step: false };

/// How much he takes.
#[derive(Debug, Clone, Copy)]
enum Limit {
    None,
    /// He is cut off after so many items.
    Items(usize),
    /// He does something else after so many turns.
    Turns(usize),
}

/// One who keeps a copy of what he may read, by the feed alone: he does what `docs/feed.md` says, and knows nothing of rules.
struct Consumer {
    wants: Wants,
    feed: Option<SiftedFeed>,
    cursor: Option<String>,
    copy: BTreeMap<DocumentId, Value>,
    /// What was released and could not be read: he asks again now and then.
    again: HashSet<DocumentId>,
    saved: (Option<String>, BTreeMap<DocumentId, Value>, HashSet<DocumentId>),
    /// What he may see now.
    can: HashSet<DocumentId>,
    /// What he could see whenever he was told something.
    could: HashSet<DocumentId>,
    resets: usize,
}

impl Consumer {
    fn new(world: &World, wants: Wants) -> Self {
        let mut consumer = Self {
            wants,
            feed: None,
            cursor: None,
            copy: BTreeMap::new(),
            again: HashSet::new(),
            saved: (None, BTreeMap::new(), HashSet::new()),
            can: HashSet::new(),
            could: HashSet::new(),
            resets: 0,
        };
        if wants.from_now {
            let mut feed = consumer.open(world);
            consumer.copy = consumer.expected(world);
            consumer.cursor = Some(feed.cursor().to_string());
            // He is away from here on.
            consumer.tell(world, &mut feed, 8, Limit::None);
            consumer.save();
        }
        consumer
    }

    fn save(&mut self) {
        self.saved = (self.cursor.clone(), self.copy.clone(), self.again.clone());
    }

    fn admits(&self, world: &World, which: usize) -> bool {
        match self.wants.filter {
            0 => true,
            1 => which >= FIXED,
            _ => world.documents[which] == world.documents[FIXED],
        }
    }

    fn expected(&self, world: &World) -> BTreeMap<DocumentId, Value> {
        let all = (0..world.documents.len()).filter(|which| self.admits(world, *which) && world.may_read(*which));
        all.map(|which| (world.documents[which], world.json_of(world.documents[which]).unwrap())).collect()
    }

    fn note(&mut self, world: &World) {
        let all = (0..world.documents.len()).filter(|which| world.may_read(*which));
        self.can = all.map(|which| world.documents[which]).collect();
        // Whether a hidden document could be seen is asked of the server: that it was deleted says nothing of rights.
        let subject = world.subject();
        let is_hidden = |document: &&DocumentId| world.json_of(**document).is_none();
        let may = |document: &&DocumentId| subject.may(Operation::List, **document).unwrap();
        self.can.extend(world.documents.iter().filter(is_hidden).filter(may));
        self.could.extend(&self.can);
    }

    fn open(&mut self, world: &World) -> SiftedFeed {
        let changes = world.database().changes();
        let mut changes = match self.wants.filter {
            0 => changes,
            1 => changes.collection("notes").unwrap(),
            _ => changes.document(world.documents[FIXED]),
        };
        if self.wants.coalesced {
            changes = changes.coalesced();
        }
        let from = match &self.cursor {
            Some(text) => From::Place(text.parse().unwrap()),
            None if self.wants.from_now => From::Now,
            None => From::Beginning,
        };
        self.note(world);
        let mut feed = SiftedFeed::open(changes, from, world.subject()).unwrap();
        if self.wants.step_by_step {
            feed.stretch = Duration::ZERO;
        }
        feed
    }

    /// Reads a document that he was told of.
    fn read(&mut self, world: &World, document: DocumentId) {
        match world.json_of(document).filter(|_| world.subject().may(Operation::Get, document).unwrap()) {
            Some(value) => drop(self.copy.insert(document, value)),
            None => drop(self.copy.remove(&document)),
        }
    }

    fn take(&mut self, world: &World, said: Said) {
        match said {
            Said::Opened(opened) => {
                if !opened["reset"].is_null() {
                    self.resets += 1;
                    self.copy.clear();
                    self.again.clear();
                }
            }
            Said::Event(event, place) => {
                assert!(self.can.contains(&event.document), "{:?} may not be seen", event.document);
                self.again.remove(&event.document);
                match event.to_json().unwrap()["kind"].as_str().unwrap() {
                    "deleted" | "purged" | "gone" => drop(self.copy.remove(&event.document)),
                    _ => self.read(world, event.document),
                }
                self.cursor = Some(place.to_string());
            }
            Said::Right(right) => {
                let json = right.to_json();
                let document = json["id"].as_str().unwrap().parse().unwrap();
                assert!(self.could.contains(&document), "{json}");
                self.again.remove(&document);
                if json["kind"] == "released" {
                    if json["heads"].is_null() {
                        assert!(json["name"].is_null() && json["position"].is_null(), "{json}");
                        self.again.insert(document);
                    } else {
                        assert!(self.can.contains(&document), "{json}");
                    }
                    self.read(world, document);
                } else {
                    self.copy.remove(&document);
                }
                self.cursor = Some(right.place().to_string());
            }
            Said::Progress(place, _) => self.cursor = Some(place.to_string()),
        }
    }

    /// Takes what there is, or as much of it; whether he is not cut off.
    fn tell(&mut self, world: &World, feed: &mut SiftedFeed, count: usize, limit: Limit) -> bool {
        let (mut taken, mut turns) = (0, 0);
        loop {
            self.note(world);
            block_on(feed.pull(count)).unwrap();
            let (said, next) = feed.tell().unwrap();
            for said in said {
                self.take(world, said);
                taken += 1;
                if matches!(limit, Limit::Items(items) if items == taken) {
                    return false;
                }
            }
            turns += 1;
            match next {
                Next::Wait => return true,
                _ if matches!(limit, Limit::Turns(most) if most <= turns) => return true,
                Next::Rest(_) => feed.rests_until = Instant::now(),
                Next::Pull | Next::Work => {}
            }
        }
    }

    /// One page; in so many turns at most.
    fn page(&mut self, world: &World, count: usize, turns: usize) {
        let mut feed = self.open(world);
        let mut told = 0;
        for _ in 0..turns {
            self.note(world);
            block_on(feed.pull(count)).unwrap();
            let (said, next) = feed.tell().unwrap();
            told += said.len();
            said.into_iter().for_each(|said| self.take(world, said));
            if told >= count || !matches!(next, Next::Work | Next::Pull) {
                break;
            }
        }
        self.cursor = Some(feed.cursor().to_string());
    }

    fn follow(&mut self, world: &World, count: usize, limit: Limit) {
        let mut feed = self.feed.take().unwrap_or_else(|| self.open(world));
        if self.tell(world, &mut feed, count, limit) {
            self.feed = Some(feed);
        }
    }

    /// He has what he may read, once he has heard all.
    fn check(&mut self, world: &mut World) {
        world.clock += bounds::TIME_MS + 1;
        set_wall_clock(Some(world.clock));
        self.follow(world, 16, Limit::None);
        for document in self.again.clone() {
            self.read(world, document);
        }
        let expected = self.expected(world);
        let one = |map: &BTreeMap<DocumentId, Value>, id| map.get(&id).map(ToString::to_string);
        for (which, id) in world.documents.iter().enumerate() {
            assert_eq!(one(&self.copy, *id), one(&expected, *id), "document {which}");
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Edit(usize, usize, usize),
    InVain(usize, usize, usize),
    Toggle(usize),
    Create(usize),
    Rules(usize),
    Restart,
    Renew,
    Team,
    Clock(u64),
    Follow(usize),
    Turns(usize, usize),
    Cut(usize, usize),
    Page(usize, usize),
    Leave,
    Save,
    Load,
    Check,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        14 => (FIXED..FIXED + NOTES_MAX, 0..5_usize, 0..4_usize).prop_map(|(which, key, value)| Step::Edit(which, key, value)),
        6 => (0..FIXED, 0..1_usize, 0..4_usize).prop_map(|(which, key, value)| Step::Edit(which, key, value)),
        2 => (FIXED..FIXED + NOTES_MAX, 0..5_usize, 0..4_usize).prop_map(|(which, key, value)| Step::InVain(which, key, value)),
        1 => (0..FIXED, 0..1_usize, 0..4_usize).prop_map(|(which, key, value)| Step::InVain(which, key, value)),
        2 => (0..FIXED + NOTES_MAX).prop_map(Step::Toggle),
        2 => (0..12_usize).prop_map(Step::Create),
        2 => (0..RULES.len()).prop_map(Step::Rules),
        1 => Just(Step::Restart),
        1 => Just(Step::Renew),
        1 => Just(Step::Team),
        2 => (0..12_000_u64).prop_map(Step::Clock),
        12 => (1..6_usize).prop_map(Step::Follow),
        3 => (1..6_usize, 1..8_usize).prop_map(|(count, cut)| Step::Cut(count, cut)),
        8 => (1..6_usize, 1..9_usize).prop_map(|(count, turns)| Step::Turns(count, turns)),
        5 => (1..6_usize, 1..9_usize).prop_map(|(count, turns)| Step::Page(count, turns)),
        2 => Just(Step::Leave),
        1 => Just(Step::Save),
        2 => Just(Step::Load),
        2 => Just(Step::Check),
    ]
}

fn play(world: &mut World, consumer: &mut Consumer, step: &Step) {
    match *step {
        Step::Edit(which, key, value) | Step::InVain(which, key, value) => {
            let which = if which < FIXED { which } else { FIXED + which % (world.documents.len() - FIXED) };
            let until = world.clock + 6_000 * value as u64;
            let (key, value) = match which {
                0..3 => ("members", [json!(["ben"]), json!([]), json!(["ann"]), json!(["ann", "ben"])][value].clone()),
                3 => ("open", json!(value % 2 == 0)),
                _ => [
                    ("owner", json!((["ann", "ben"][value % 2]))),
                    ("room", json!((ROOMS[value % 3]))),
                    ("kind", json!((["rooms", "halls"][value % 2]))),
                    ("until", json!(until)),
                    ("body", json!(value)),
                ][key]
                    .clone(),
            };
            match step {
                Step::InVain(..) => world.edit_in_vain(which, key, &value),
                _ => _ = world.edit(which, key, &value),
            }
        }
        Step::Toggle(which) => world.toggle(which % world.documents.len()),
        Step::Create(pick) if world.documents.len() < FIXED + NOTES_MAX => world.create(pick),
        Step::Create(_) => {}
        Step::Rules(rules) => {
            world.rules = rules;
            world.access().set_rules(world.parsed());
        }
        Step::Restart => {
            consumer.feed = None;
            world.start();
        }
        Step::Renew | Step::Team => {
            consumer.feed = None;
            if matches!(step, Step::Team) {
                world.team = if world.team == "red" { "blue" } else { "red" };
            }
            world.renew();
        }
        Step::Clock(ms) => {
            world.clock += ms;
            set_wall_clock(Some(world.clock));
        }
        Step::Follow(count) => consumer.follow(world, count, Limit::None),
        Step::Turns(count, turns) => consumer.follow(world, count, Limit::Turns(turns)),
        Step::Cut(count, cut) => consumer.follow(world, count, Limit::Items(cut)),
        Step::Page(count, turns) => {
            consumer.feed = None;
            consumer.page(world, count, turns);
        }
        Step::Leave => consumer.feed = None,
        Step::Save => consumer.save(),
        Step::Load => {
            consumer.feed = None;
            (consumer.cursor, consumer.copy, consumer.again) = consumer.saved.clone();
        }
        Step::Check => consumer.check(world),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever is written, granted and taken meanwhile, and however often he is away, cut off, goes back to a copy of old
    /// or meets another run of the server, in the middle of a change of rights too.
    #[test]
    fn whoever_follows_a_feed_has_what_he_may_read(
        rules in 0..RULES.len(),
        (filter, coalesced) in (0..3_usize, any::<bool>()),
        (from_now, step_by_step) in (any::<bool>(), any::<bool>()),
        steps in vec(step(), 1..80),
    ) {
        set_wall_clock(None);
        let mut world = World::new(rules);
        set_wall_clock(Some(world.clock));
        let mut consumer = Consumer::new(&world, Wants { filter, coalesced, from_now, step_by_step });
        for step in &steps {
            play(&mut world, &mut consumer, step);
        }
        consumer.check(&mut world);
        consumer.feed = None;
        consumer.check(&mut world);
        set_wall_clock(None);
    }
}
