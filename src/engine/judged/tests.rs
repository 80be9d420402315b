mod allowed;
mod audit;

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::document::EditOptions;
use crate::engine::judge::Ruleset;
use crate::engine::{Admitted, Clash, Examined};
use crate::history::Origin;
use crate::id::{Lsn, NodeId};
use crate::log::MemoryStorage;
use crate::log::record::{Admission, CreationRank, Record};

type Rule = fn(Deed, Option<&Value>, Option<&Value>, &[String]) -> bool;

/// Decides by a function of what is there before and after, and of the places that are written.
#[derive(Debug)]
struct By {
    principal: &'static str,
    sees: bool,
    rule: Rule,
}

struct Looking<'a>(&'a By, Deed, Option<Value>);

impl Judge for By {
    fn principal(&self) -> &str {
        self.principal
    }

    fn may_begin(&self, collection: &CollectionName) -> bool {
        collection.as_str() != "closed"
    }

    fn must_see(&self, _: &CollectionName) -> bool {
        self.sees
    }

    fn look(&self, deed: Deed, _: Place<'_>, before: Option<&dyn Values>) -> Result<Box<dyn Look + '_>, Error> {
        let before = before.map(|values| values.json(&Path::root())).transpose()?.flatten();
        Ok(Box::new(Looking(self, deed, before)))
    }
}

impl Look for Looking<'_> {
    fn judge(self: Box<Self>, after: Option<&dyn Values>, made: &dyn Made) -> Result<Result<Ruling, Denial>, Error> {
        let after = after.map(|values| values.json(&Path::root())).transpose()?.flatten();
        let places: Vec<String> = made.touched()?.places().map(str::to_owned).collect();
        let is_allowed = (self.0.rule)(self.1, self.2.as_ref(), after.as_ref(), &places);
        Ok(if is_allowed { Ok(allowed()) } else { Err(Denial::default()) })
    }
}

/// What allows everything that is allowed here.
fn allowed() -> Ruling {
    let ruleset = Ruleset::of("match /{c}/{id} { allow write; }");
    Ruling { ruleset: Some(Arc::new(ruleset)), allow: Some((1, "/{c}/{id}".into())) }
}

fn database() -> Database {
    Database::on(MemoryStorage::new()).node(NodeId([1; 32])).open().unwrap()
}

/// Somebody's copy of a document.
struct Copy {
    view: View,
    actor: ActorId,
}

impl Copy {
    fn new(actor: u8) -> Self {
        Self { view: View::new(), actor: ActorId::new(&[actor; 16]).unwrap() }
    }

    fn edit(&mut self, edits: impl FnOnce(&mut Edit<'_>) -> Result<(), ViewError>) -> Change {
        let options = EditOptions { actor: self.actor.clone(), time: 0, message: None };
        self.view.edit(options, edits).unwrap().1.unwrap()
    }

    fn set(&mut self, key: &str, value: impl Into<Value>) -> Change {
        let value = value.into();
        self.edit(|edit| edit.put(key, value))
    }
}

fn creation(document: DocumentId, collection: &str) -> Incoming {
    let statement = Lifecycle {
        document,
        collection: CollectionName::new(collection).unwrap(),
        kind: LifecycleKind::Created,
        rank: CreationRank::Path,
        lamport: 1,
        author: NodeId([1; 32]),
        actor: None,
        time_ms: 0,
        heads: crate::id::Heads::default(),
        name: None,
    };
    Incoming { document, body: IncomingBody::Lifecycle(statement.encode()), origin: origin(""), signature: None }
}

fn origin(principal: &str) -> Origin {
    Origin { node: NodeId([1; 32]), principal: principal.into(), admission: Admission::Structural, rules_version: 0 }
}

/// Offers rows as a client of that judge does, and has what passed logged.
fn offer(database: &Database, judge: &By, rows: Vec<Incoming>) -> Examined {
    let mut examined = examine(database, judge, rows);
    let admitted = log(database, judge, &mut examined);
    assert!(admitted.refused.is_empty(), "{admitted:?}");
    examined
}

fn examine(database: &Database, judge: &By, rows: Vec<Incoming>) -> Examined {
    let rows = rows.into_iter().map(|row| Incoming { origin: origin(judge.principal), ..row }).collect();
    database.examine_for(database.node(), rows, Some(judge)).unwrap()
}

fn log(database: &Database, judge: &By, examined: &mut Examined) -> Admitted {
    let passed = std::mem::take(&mut examined.rows);
    let (refused, allowed) = (std::mem::take(&mut examined.refused), std::mem::take(&mut examined.allowed));
    let audit = Audit { claims: judge.claims(), refused, allowed };
    block_on(database.admit_judged(Clash::KeepFirst, passed, None, None, audit)).unwrap()
}

fn rows(document: DocumentId, changes: &[&Change]) -> Vec<Incoming> {
    let row = |change: &&Change| Incoming {
        document,
        body: IncomingBody::Change(Box::new((*change).clone())),
        origin: origin(""),
        signature: None,
    };
    changes.iter().map(row).collect()
}

fn denied(examined: &Examined) -> Vec<ChangeHash> {
    examined.denied.iter().filter_map(|denied| denied.change.as_ref().map(|(hash, _)| *hash)).collect()
}

const LOCKED: Rule = |_, before, after, _| {
    before.is_none_or(|before| before["locked"] != json!(true)) && after.is_none_or(|after| after["n"] != json!(13))
};

#[test]
fn what_is_denied_and_what_stands_on_it_is_never_logged_and_the_rest_is() {
    let (database, id) = (database(), DocumentId([1; 16]));
    let judge = By { principal: "ann", sees: true, rule: LOCKED };
    let mut ann = Copy::new(1);
    let (first, second) = (ann.set("n", 1), ann.set("n", 2));
    let mut beside = Copy { view: View::load(&ann.view.save().unwrap()).unwrap(), ..Copy::new(2) };
    let other = beside.set("m", 1);
    let (bad, behind) = (ann.set("n", 13), ann.set("n", 14));
    let all = [vec![creation(id, "notes")], rows(id, &[&first, &second, &bad, &behind, &other])].concat();
    let examined = offer(&database, &judge, all);
    assert_eq!(denied(&examined), [bad.hash(), behind.hash()]);
    // What came behind the denied one and does not stand on it is asked for again, and taken then.
    assert_eq!(examined.missing.len(), 1);
    let again = offer(&database, &judge, rows(id, &[&other]));
    assert!(again.denied.is_empty() && again.missing.is_empty());
    let note = database.find(id).unwrap();
    assert_eq!(note.to_json().unwrap(), json!({"n": 2, "m": 1}));
    let entries = note.history(Lsn::ZERO, 10).unwrap();
    assert!(
        entries
            .iter()
            .all(|entry| (&*entry.origin.principal, entry.origin.rules_version) == ("ann", allowed().version()))
    );
    assert_eq!(entries.len(), 3);
    // Nobody finds what was denied in the views that changes are tried on.
    let bold = By { principal: "ann", sees: true, rule: |_, _, _, _| true };
    assert_eq!(denied(&offer(&database, &judge, rows(id, &[&bad]))), [bad.hash()]);
    assert!(denied(&offer(&database, &bold, rows(id, &[&bad, &behind]))).is_empty());
    assert_eq!(note.to_json().unwrap(), json!({"n": 14, "m": 1}));
}

#[test]
fn each_change_is_shown_with_the_document_before_and_after_it_and_where_it_writes() {
    let (database, id) = (database(), DocumentId([2; 16]));
    let judge = By {
        principal: "ann",
        sees: true,
        rule: |deed, before, after, places| match deed {
            Deed::Create => before.is_none() && after == Some(&json!({"n": 1})) && places == ["n"],
            Deed::Update => {
                let n = |value: Option<&Value>| value.unwrap()["n"].as_i64().unwrap();
                n(after) == n(before) + 1 && places == ["n"]
            }
            Deed::Delete => before.is_some() && after.is_none() && places.is_empty(),
        },
    };
    let mut ann = Copy::new(1);
    let changes: Vec<Change> = (1..=5).map(|n| ann.set("n", n)).collect();
    let all = [vec![creation(id, "notes")], rows(id, &changes.iter().collect::<Vec<_>>())].concat();
    assert!(offer(&database, &judge, all).denied.is_empty());
    let jump = ann.set("n", 9);
    assert_eq!(denied(&offer(&database, &judge, rows(id, &[&jump]))), [jump.hash()]);
    // The same judge over edits that are made here: undone when they are denied.
    let note = database.find(id).unwrap();
    let put = |n: i64| note.change_as(Some(&judge), None, |edit| Ok(edit.put("n", n)?));
    assert!(matches!(put(8), Err(Error::Denied(_))));
    assert!(matches!(note.change_as(Some(&judge), None, |edit| Ok(edit.put("x", 6)?)), Err(Error::Denied(_))));
    assert_eq!(note.to_json().unwrap(), json!({"n": 5}));
    put(6).unwrap().wait().unwrap();
    assert_eq!(note.history(Lsn::ZERO, 10).unwrap().pop().unwrap().origin.principal, "ann");
    let (made, commit) = database.collection("notes").unwrap().create_as(Some(&judge), json!({"n": 1})).unwrap();
    commit.wait().unwrap();
    let refused = database.collection("notes").unwrap().create_as(Some(&judge), json!({"n": 2}));
    assert!(matches!(refused, Err(Error::Denied(_))));
    made.delete_as(Some(&judge)).unwrap().wait().unwrap();
    assert!(!made.state().unwrap().visible);
}

#[test]
fn a_document_none_of_whose_changes_is_allowed_is_not_there() {
    let (database, id) = (database(), DocumentId([3; 16]));
    let judge = By { principal: "ann", sees: false, rule: |deed, _, _, _| deed != Deed::Create };
    let change = Copy::new(1).set("n", 1);
    let examined = offer(&database, &judge, [vec![creation(id, "notes")], rows(id, &[&change])].concat());
    assert_eq!(denied(&examined), [change.hash()]);
    assert!(database.reader().row(id).unwrap().is_none());
    let examined = offer(&database, &judge, vec![creation(id, "closed")]);
    assert!(examined.denied.len() == 1 && examined.denied[0].change.is_none());
    // What comes with its first change is no longer its creation, whether values are looked at or not.
    for sees in [false, true] {
        let (id, judge) =
            (DocumentId([4 + u8::from(sees); 16]), By { sees, rule: |deed, _, _, _| deed == Deed::Create, ..judge });
        let mut copy = Copy::new(1);
        let (first, second) = (copy.set("n", 1), copy.set("n", 2));
        let examined = offer(&database, &judge, [vec![creation(id, "notes")], rows(id, &[&first, &second])].concat());
        assert_eq!(denied(&examined), [second.hash()]);
    }
    // Nor may one that is here be moved to where other rules hold.
    let free = By { principal: "ann", sees: false, rule: |_, _, _, _| true };
    offer(&database, &free, [vec![creation(id, "notes")], rows(id, &[&change])].concat());
    assert!(offer(&database, &free, vec![creation(id, "elsewhere")]).denied.is_empty());
    assert_eq!(database.find(id).unwrap().collection().as_str(), "notes");
}

#[test]
fn nobody_takes_an_author_over_whose_first_change_is_logged_while_he_is_judged() {
    let (database, id) = (database(), DocumentId([5; 16]));
    let free = |principal| By { principal, sees: false, rule: |_, _, _, _| true };
    let (ann, ben) = (free("ann"), free("ben"));
    let mut copy = Copy::new(1);
    let (zeroth, mut other) = (Copy::new(3).set("z", 1), Copy::new(2));
    offer(&database, &ann, [vec![creation(id, "notes")], rows(id, &[&zeroth])].concat());
    let (first, second, beside) = (copy.set("n", 1), copy.set("n", 2), other.set("m", 1));
    let mut examined = examine(&database, &ben, rows(id, &[&first, &second, &beside]));
    assert_eq!((examined.rows.len(), denied(&examined).len()), (3, 0), "nobody has that author yet");
    // From another node, where ann wrote it.
    let of_ann = Origin { admission: Admission::Full, ..origin("ann") };
    let relayed = rows(id, &[&first]).into_iter().map(|row| Incoming { origin: of_ann.clone(), ..row }).collect();
    block_on(database.admit(relayed, Some(NodeId([9; 32])), None)).unwrap();
    let admitted = log(&database, &ben, &mut examined);
    // It is asked for again, and judged by whose the author is now.
    assert_eq!((admitted.accepted, admitted.known, admitted.missing.len()), (1, 1, 1), "{admitted:?}");
    assert_eq!(denied(&offer(&database, &ben, rows(id, &[&second]))), [second.hash()]);
    assert!(offer(&database, &ann, rows(id, &[&second])).denied.is_empty());
    assert_eq!(database.reader().row(id).unwrap().unwrap().change_count, 4);
}

#[test]
fn nobody_goes_on_under_the_name_of_another_s_author() {
    let (database, id) = (database(), DocumentId([4; 16]));
    let free = |principal| By { principal, sees: false, rule: |_, _, _, _| true };
    let (ann, ben, nobody) = (free("ann"), free("ben"), free(""));
    let mut copy = Copy::new(1);
    let (first, second, third) = (copy.set("n", 1), copy.set("n", 2), copy.set("n", 3));
    offer(&database, &ann, [vec![creation(id, "notes")], rows(id, &[&first])].concat());
    for other in [&ben, &nobody] {
        let examined = offer(&database, other, rows(id, &[&second]));
        assert_eq!(denied(&examined), [second.hash()], "{other:?}");
    }
    // What is there is not judged again, whoever brings it.
    assert!(offer(&database, &ben, rows(id, &[&first])).denied.is_empty());
    assert!(offer(&database, &ann, rows(id, &[&second, &third])).denied.is_empty());
    // Who brings an author first has it, as who clones a document does.
    let mut clone = Copy { view: View::load(&copy.view.save().unwrap()).unwrap(), ..Copy::new(2) };
    let carried = clone.set("m", 1);
    assert!(offer(&database, &ben, rows(id, &[&carried])).denied.is_empty());
    let more = clone.set("m", 2);
    assert_eq!(denied(&offer(&database, &ann, rows(id, &[&more]))), [more.hash()]);
    // This node's own authors are its own.
    let note = database.find(id).unwrap();
    note.change(|edit| Ok(edit.put("here", 1)?)).unwrap().wait().unwrap();
    let own = note.history(Lsn::ZERO, 10).unwrap().pop().unwrap().actor;
    let mut forger = Copy { view: note.with_view(|view| Ok(View::load(&view.save()?)?)).unwrap(), ..Copy::new(3) };
    forger.actor = own;
    let forged = forger.set("here", 2);
    assert_eq!(denied(&offer(&database, &ann, rows(id, &[&forged]))), [forged.hash()]);
}

#[test]
fn a_word_about_a_document_that_changes_nothing_is_not_judged() {
    let (database, document) = (database(), DocumentId([7; 16]));
    let admin = By { principal: "ann", sees: false, rule: |_, _, _, _| true };
    let user = By { principal: "ada", sees: false, rule: |deed, _, _, _| deed != Deed::Delete };
    let said = |kind, lamport| {
        let IncomingBody::Lifecycle(bytes) = creation(document, "notes").body else { panic!("a statement") };
        let statement = Lifecycle { kind, lamport, ..Lifecycle::decode(&bytes).unwrap() };
        let body = IncomingBody::Lifecycle(statement.encode());
        Incoming { document, body, origin: origin(""), signature: None }
    };
    offer(&database, &admin, vec![creation(document, "notes")]);
    offer(&database, &admin, vec![said(LifecycleKind::Restored, 2), said(LifecycleKind::Deleted, 3)]);
    // A client says with every answer what it has.
    let known = vec![said(LifecycleKind::Restored, 2), said(LifecycleKind::Deleted, 3)];
    let examined = offer(&database, &user, known);
    assert!(examined.denied.is_empty() && examined.refused.is_empty() && examined.fault.is_none());
    let examined = offer(&database, &user, vec![said(LifecycleKind::Restored, 4)]);
    assert_eq!(examined.denied.len(), 1);
    assert!(!database.reader().document(document).unwrap().unwrap().visible);
}
