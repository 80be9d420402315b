use std::collections::HashSet;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;

use super::super::{Access, AccessOptions, Admittance, Subject};
use super::*;
use crate::auth::{Authority, AuthorityOptions, TokenOrder};
use crate::document::{EditOptions, ViewError};
use crate::engine::{Clash, Judge, Source, block_on};
use crate::history::Origin;
use crate::id::{ActorId, Heads, NodeId};
use crate::limits::Limits;
use crate::log::MemoryStorage;
use crate::log::record::CreationRank;
use crate::sync::{IncomingBody, IncomingRow};

/// Rules that look at everything there is, each in its own way.
const RULES: [&str; 10] = [
    "match /{c}/{id} { allow create, update, delete; }",
    "match /{c}/{id} { allow create; allow update: if request.auth != null; }",
    "match /{c}/{id} { allow create: if request.resource.data.owner == request.auth.uid;
       allow update, delete: if resource.data.owner == request.auth.uid; }",
    "match /{c}/{id} { allow create; allow update: if request.resource.data.n < 3; allow delete: if resource.data.n == 0; }",
    "match /{c}/{id} { allow create, update: if request.auth.token.team == 'red'; }",
    "match /{c}/{id} { allow create, delete;
       allow update: if request.change.keys.hasOnly(['n', 'tag', 'c']) || request.change.author == 'ann'; }",
    "match /notes/{id} { allow create, update, delete: if get(/settings/main).data.open == true; }
     match /settings/{id} { allow create, update: if request.auth.uid == 'ann'; }",
    "match /notes/{id} { allow create, update: if exists(/settings/main) && resource.data.n != 2;
       allow create: if request.auth != null; allow delete: if request.time > timestamp(0); }
     match /settings/{id} { allow create, update, delete: if true; }",
    "match /settings/{id} { allow create, update; }",
    "match /notes/{id} { allow create, update: if resource.data.n / resource.data.n == 1 || request.auth.token.team == 'blue'; }
     match /settings/{id} { allow update: if request.resource.data.open != resource.data.open; allow create; }",
];

#[derive(Debug, Clone, Copy)]
struct Step {
    who: usize,
    which: usize,
    what: u8,
    value: i64,
}

fn step() -> impl Strategy<Value = Step> {
    (0..4_usize, 0..4_usize, 0..10_u8, 0..4_i64).prop_map(|(who, which, what, value)| Step { who, which, what, value })
}

/// Four who write: `ann` in one team and then in another, `ben`, and nobody in particular.
const NAMES: [&str; 4] = ["ann", "ann", "ben", ""];
const TEAMS: [&str; 4] = ["red", "blue", "blue", ""];

/// A store whose whole story is known.
struct World {
    database: Database,
    subjects: Vec<Arc<Subject>>,
    /// The documents as they are, by hand.
    documents: Vec<Option<View>>,
    deleted: Vec<bool>,
    /// Who tried to create which document where nobody may.
    turned_away: HashSet<(&'static str, usize)>,
    count: i64,
}

const SETTINGS: usize = 3;

fn id_of(which: usize) -> DocumentId {
    if which == SETTINGS {
        DocumentId::named(&CollectionName::new("settings").unwrap(), "main")
    } else {
        DocumentId([which as u8 + 1; 16])
    }
}

fn collection_of(which: usize) -> &'static str {
    if which == SETTINGS { "settings" } else { "notes" }
}

impl World {
    fn new(rules: &str, place: &std::path::Path) -> Self {
        let limits = Limits { refusals_per_minute: u32::MAX, ..Limits::default() };
        let node = NodeId([1; 32]);
        let database = Database::on(MemoryStorage::new()).node(node).limits(limits).open().unwrap();
        let options = AuthorityOptions { directory: place.to_owned(), node, issuers: Vec::new() };
        let authority = Arc::new(Authority::open(options).unwrap());
        let tokens: Vec<Option<String>> = (0..4)
            .map(|who| {
                let mut order = TokenOrder::new(NAMES[who]);
                order.claims.insert("team".into(), json!(TEAMS[who]));
                (!NAMES[who].is_empty()).then(|| authority.issue(order, crate::engine::now_ms()).unwrap().0)
            })
            .collect();
        let rules = Some(Rules::parse("a", rules).unwrap());
        let options = AccessOptions { admittance: Admittance::Anybody, authority: Some(authority), rules };
        let access = Access::new(database.clone(), options);
        let subjects = tokens.iter().map(|token| Arc::new(access.admit(token.as_deref()).unwrap())).collect();
        let documents = (0..4).map(|_| None).collect();
        Self { database, subjects, documents, deleted: vec![false; 4], turned_away: HashSet::new(), count: 0 }
    }

    fn json_of(&self, which: usize) -> Option<Json> {
        self.documents[which].as_ref().map(|view| view.to_json().unwrap())
    }

    /// What somebody makes of a document, and the change.
    fn edited(&mut self, step: Step) -> (View, Change) {
        self.count += 1;
        let mut view = match &self.documents[step.which] {
            Some(view) => view.copied().unwrap(),
            None => View::new(),
        };
        let actor = ActorId::new(&[step.who as u8 + 1; 16]).unwrap();
        let options = EditOptions { actor, time: self.count, message: None };
        let (is_new, count) = (self.documents[step.which].is_none(), self.count);
        let (_, change) = view.edit(options, |edit| fill(edit, step, is_new, count)).unwrap();
        (view, change.unwrap())
    }
}

fn fill(edit: &mut crate::document::Edit<'_>, step: Step, is_new: bool, count: i64) -> Result<(), ViewError> {
    // No two changes are alike.
    edit.put("c", count)?;
    if is_new {
        edit.put("owner", NAMES[step.who])?;
    }
    match step.what {
        0..=4 => edit.put("n", step.value)?,
        5 => edit.put("tag", format!("t{}", step.value))?,
        _ => edit.put("body", format!("b{}", step.value))?,
    }
    if step.which == SETTINGS { edit.put("open", step.value % 2 == 0) } else { Ok(()) }
}

/// A decision as it is to be found again: whether it can be asked, and what rules say to it.
struct Decided {
    document: DocumentId,
    principal: &'static str,
    operation: Operation,
    was_allowed: bool,
    draft: Option<bool>,
    /// The line of the `allow` that let it in.
    line: Option<u32>,
}

/// Other documents as they are, by hand.
struct AsTheyAre<'a>(&'a World);

impl Documents for AsTheyAre<'_> {
    fn get(&self, collection: &str, id: &str) -> Option<Value> {
        let which = (collection == "settings" && id == "main").then_some(SETTINGS)?;
        if self.0.deleted[which] {
            return None;
        }
        self.0.json_of(which).as_ref().map(Value::from_json)
    }
}

/// What rules say, asked with everything at hand.
fn ask(
    world: &World,
    rules: &Rules,
    step: Step,
    operation: Operation,
    before: Option<&Json>,
    after: Option<&Json>,
    change: ChangeFacts,
) -> Decision {
    let auth =
        (!NAMES[step.who].is_empty()).then(|| Auth::from_json(NAMES[step.who], &json!({ "team": TEAMS[step.who] })));
    let (before, after) = (before.map(Value::from_json), after.map(Value::from_json));
    let id = id_of(step.which).to_string();
    let request = Request {
        auth: auth.as_ref(),
        time_ms: crate::engine::now_ms() as i64,
        before: before.as_ref().map(|before| before as &dyn Data),
        after: after.as_ref().map(|after| after as &dyn Data),
        change: Some(&change),
        documents: &AsTheyAre(world),
        ..Request::new(operation, collection_of(step.which), &id)
    };
    rules.decide(&request)
}

/// The keys that differ: what is put once more is not written.
fn facts(step: Step, before: Option<&Json>, after: Option<&Json>, actor: &str) -> ChangeFacts {
    let none = json!({});
    let before = before.unwrap_or(&none);
    let all = after.unwrap_or(&none).as_object().unwrap().keys();
    let keys: Vec<String> = all.filter(|key| before.get(key) != after.unwrap().get(key)).cloned().collect();
    let author = Some(NAMES[step.who].to_owned()).filter(|name| !name.is_empty());
    ChangeFacts { author, actor: actor.to_owned(), paths: keys.clone(), keys }
}

fn creation(which: usize) -> IncomingBody {
    let statement = Lifecycle {
        document: id_of(which),
        collection: CollectionName::new(collection_of(which)).unwrap(),
        kind: LifecycleKind::Created,
        rank: CreationRank::Path,
        lamport: 1,
        author: NodeId([1; 32]),
        actor: None,
        time_ms: 0,
        heads: Heads::default(),
        name: None,
    };
    IncomingBody::Lifecycle(statement.encode())
}

/// Does a step under the rules in force, and says what both rules decide by hand; nothing where nobody was asked.
fn play(world: &mut World, draft: &Rules, step: Step) -> Option<Decided> {
    let rules = world.subjects[0].0.access.rules().unwrap();
    let (document, which) = (id_of(step.which), step.which);
    let before = world.json_of(which);
    let decided = |operation, was: &Decision, draft| {
        let (was_allowed, line) = (was.allowed, was.rule);
        Some(Decided { document, principal: NAMES[step.who], operation, was_allowed, draft, line })
    };
    let subject = world.subjects[step.who].clone();
    match step.what {
        9 if before.is_some() && !world.deleted[which] => {
            let by =
                |rules| ask(world, rules, step, Operation::Delete, before.as_ref(), None, facts(step, None, None, ""));
            let (was, would) = (by(&rules), by(draft).allowed);
            let done = world.database.find(document).unwrap().delete_as(Some(&*subject));
            assert_eq!(done.is_ok(), was.allowed, "{step:?}");
            if let Ok(commit) = done {
                commit.wait().unwrap();
                world.deleted[which] = true;
            }
            decided(Operation::Delete, &was, Some(would))
        }
        8 if before.is_some() && !world.deleted[which] => {
            let (after, _) = world.edited(step);
            let after = after.to_json().unwrap();
            let facts = || facts(step, before.as_ref(), Some(&after), "");
            let by = |rules| ask(world, rules, step, Operation::Update, before.as_ref(), Some(&after), facts());
            let (was, would) = (by(&rules), by(draft).allowed);
            let handle = world.database.find(document).unwrap();
            let done = handle.change_as(Some(&*subject), None, |edit| Ok(fill(edit, step, false, world.count)?));
            assert_eq!(done.is_ok(), was.allowed, "{step:?}");
            if let Ok(commit) = done {
                commit.wait().unwrap();
                world.documents[which] = Some(handle.with_view(|view| Ok(view.copied()?)).unwrap());
            }
            // Of a refused edit nothing is left that could be shown to rules that look.
            let is_known = was.allowed || draft.needs(Operation::Update, collection_of(which)).constant.is_some();
            decided(Operation::Update, &was, is_known.then_some(would))
        }
        _ => {
            let operation = if before.is_none() { Operation::Create } else { Operation::Update };
            let (view, change) = world.edited(step);
            let after = view.to_json().unwrap();
            let facts = || facts(step, before.as_ref(), Some(&after), &change.actor().to_string());
            let by = |rules| ask(world, rules, step, operation, before.as_ref(), Some(&after), facts());
            let (was, would) = (by(&rules), by(draft).allowed);
            let origin = Origin {
                node: world.database.node(),
                principal: NAMES[step.who].to_owned(),
                admission: Admission::Structural,
                rules_version: 0,
            };
            let body = IncomingBody::Change(Box::new(change.clone()));
            let mut rows = vec![IncomingRow { document, body, origin: origin.clone(), signature: None }];
            // Nothing may be created in a collection where no rule ever allows it.
            let mut was_begun = true;
            if before.is_none() {
                was_begun = subject.may_begin(&CollectionName::new(collection_of(which)).unwrap());
                rows.insert(0, IncomingRow { document, body: creation(which), origin, signature: None });
            }
            // One of them is linked by a node of her own.
            let node = if step.who == 1 { NodeId([7; 32]) } else { world.database.node() };
            let source =
                Source { node, is_trusted: false, clash: Clash::KeepFirst, judge: Some(subject as Arc<dyn Judge>) };
            let done = block_on(world.database.offer(source, rows, None)).unwrap();
            assert_eq!(done.denied.is_empty(), was.allowed, "{step:?}");
            if !was_begun {
                // Listed once for each who tries; what would have been created did not come along.
                let is_new = world.turned_away.insert((NAMES[step.who], which));
                let would = draft.needs(operation, collection_of(which)).constant;
                assert!(!was.allowed, "{step:?}");
                return if is_new { decided(operation, &was, would) } else { None };
            }
            if was.allowed {
                world.documents[which] = Some(view);
            }
            decided(operation, &was, Some(would))
        }
    }
}

/// What was accepted, in the order of the log, with the line that the log names.
fn on_record(database: &Database) -> Vec<(DocumentId, Operation, Option<u32>)> {
    let reader = database.reader();
    let (mut said, mut found) = (HashMap::new(), Vec::new());
    for (lsn, record) in reader.read_records(Lsn::ZERO, usize::MAX, usize::MAX).unwrap() {
        let (document, key) = match record {
            Record::Allowed(header) => {
                said.insert((header.principal, header.collection, header.operation), header.rule.map(|rule| rule.line));
                continue;
            }
            Record::Change(header, _) => {
                let is_first = header.deps.is_empty() && header.heads_before.is_none();
                let kind = if is_first { WriteKind::Create } else { WriteKind::Update };
                (header.document, (header.principal, header.collection, kind))
            }
            Record::Attributed(header) => {
                let stated = reader.record(Lsn(lsn.0 - header.statement)).unwrap();
                let Some(Record::Lifecycle(about, bytes)) = stated else { panic!("{lsn}") };
                if Lifecycle::decode(&bytes).unwrap().kind == LifecycleKind::Created {
                    continue;
                }
                (about.document, (header.principal, about.collection, WriteKind::Delete))
            }
            _ => continue,
        };
        found.push((DocumentId(document), operation_of(key.2), said.get(&key).copied().flatten()));
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_replay_lists_what_asking_by_hand_lists(
        (current, draft) in (0..RULES.len(), 0..RULES.len()),
        steps in vec(step(), 1..120),
    ) {
        let place = tempfile::tempdir().unwrap();
        let mut world = World::new(RULES[current], place.path());
        let draft = Rules::parse("b", RULES[draft]).unwrap();
        let decided: Vec<Decided> = steps.iter().filter_map(|step| play(&mut world, &draft, *step)).collect();

        let mut found = Vec::new();
        let done = replay(&world.database, &draft, None, &ReplayOptions::default(), &mut |said| {
            if let Found::Difference(difference) = said {
                found.push((difference.document, difference.principal, difference.operation, difference.was_allowed));
            }
            ControlFlow::Continue(())
        }).unwrap();
        let expected: Vec<_> = decided
            .iter()
            .filter(|decided| decided.draft.is_some_and(|draft| draft != decided.was_allowed))
            .map(|decided| (decided.document, decided.principal.to_owned(), decided.operation, decided.was_allowed))
            .collect();
        prop_assert_eq!(&found, &expected, "{:?}", done);
        let same = decided.iter().filter(|decided| decided.draft == Some(decided.was_allowed)).count() as u64;
        prop_assert_eq!(done.same, same, "{:?}", done);

        // The log says itself by which `allow` each was let in.
        let allowed = decided.iter().filter(|decided| decided.was_allowed);
        let expected: Vec<_> = allowed.map(|decided| (decided.document, decided.operation, decided.line)).collect();
        prop_assert_eq!(on_record(&world.database), expected);

        // The rules that were in force would change nothing.
        let own = Rules::parse("a", RULES[current]).unwrap();
        let done = replay(&world.database, &own, None, &ReplayOptions::default(), &mut |said| {
            assert!(!matches!(said, Found::Difference(_)), "{said:?}");
            ControlFlow::Continue(())
        }).unwrap();
        prop_assert_eq!((done.would_be_refused, done.would_be_allowed), (0, 0));
        // Nor does anything differ from itself.
        let done = replay(&world.database, &draft, Some(&draft), &ReplayOptions::default(), &mut |_| ControlFlow::Continue(()));
        let done = done.unwrap();
        prop_assert_eq!((done.would_be_refused, done.would_be_allowed), (0, 0));
    }
}
