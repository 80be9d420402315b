//! Rules from text to decision.

use std::cell::Cell;
use std::time::Instant;

use serde_json::{Value as Json, json};

use super::request::Fields;
use super::*;

fn rules(source: &str) -> Rules {
    Rules::parse("rules.tidelog", source).unwrap_or_else(|error| panic!("{error}"))
}

/// The first problem of a text: its line, column and message.
fn problem(source: &str) -> String {
    match Rules::parse("rules.tidelog", source) {
        Ok(_) => "none".to_owned(),
        Err(error) => {
            let first = &error.problems[0];
            format!("{}:{}: {}", first.line, first.column, first.message)
        }
    }
}

fn remedy(source: &str) -> String {
    Rules::parse("rules.tidelog", source).map_or_else(|error| error.problems[0].remedy.clone(), |_| String::new())
}

/// Another document for each path.
struct Others(Json);

impl Documents for Others {
    fn get(&self, collection: &str, id: &str) -> Option<Value> {
        self.0.get(format!("/{collection}/{id}")).map(Value::from_json)
    }
}

/// What an expression comes to for ann, who updates a document: `true`, `false`, or why not.
fn judged(expression: &str) -> String {
    let rules = rules(&format!("match /notes/{{id}} {{ allow update: if {expression}; }}"));
    let ann = Auth::from_json("ann", &json!({ "role": "admin", "rooms": ["lobby", "hall"], "deep": { "er": 1 } }));
    let before = Value::from_json(&json!({
        "title": "Tides", "n": 3, "x": 1.5, "list": [1, 2, 2], "map": { "a": 1, "b": 2 }, "none": null, "yes": true,
        "at": { "$time": 1000 }, "bytes": { "$bytes": "AQI=" }, "owner": "ann",
    }));
    let after = Value::from_json(&json!({
        "title": "Tide", "n": 3, "x": 1.5, "list": [1, 2], "map": { "a": 1, "c": 2 }, "none": null, "yes": true, "new": 1,
    }));
    let change = ChangeFacts {
        author: Some("ann".into()),
        actor: "a1".into(),
        paths: vec!["title".into(), "map/c".into()],
        keys: vec!["title".into(), "map".into()],
    };
    let others = Others(json!({ "/users/ann": { "admin": true, "level": 2 } }));
    let request = Request {
        auth: Some(&ann),
        time_ms: 5000,
        before: Some(&before),
        after: Some(&after),
        change: Some(&change),
        documents: &others,
        ..Request::new(Operation::Update, "notes", "n1")
    };
    let decision = rules.decide(&request);
    let explained = rules.explain(&request);
    assert_eq!(explained.decision, decision);
    match decision.why {
        Why::Allowed => "true".into(),
        Why::NoneTrue => "false".into(),
        Why::Error { message, .. } => message,
        other => format!("{other:?}"),
    }
}

fn all(outcome: &str, expressions: &[&str]) {
    for expression in expressions {
        assert_eq!(judged(expression), outcome, "{expression}");
    }
}

#[test]
fn operators_are_cel_s() {
    all(
        "true",
        &[
            "1 == 1.0 && 1u == 1 && 2 > 1.5 && -1 < 1u && 'a' < 'b' && false < true",
            "1 + 2 * 3 - 4 / 2 % 3 == 5",
            "-7 / 2 == -3 && -7 % 2 == -1",
            "'a' + 'b' == 'ab' && [1] + [2] == [1, 2] && b'a' + b'b' == b'ab'",
            "[1, [2, {'a': 3}]] == [1.0, [2u, {'a': 3}]]",
            "{'a': 1, 'b': 2} == {'b': 2, 'a': 1}",
            "1 != '1' && null == null && null != 0 && [] != {}",
            "9007199254740993 != 9007199254740992.0 && 9223372036854775807 < 9223372036854775808.0",
            "true ? true : 1 / 0 == 1",
            "!(0.0 / 0.0 == 0.0 / 0.0) && !(0.0 / 0.0 < 1.0) && 1.0 / 0.0 > 1.0",
            "1 in [1.0] && 'a' in {'a': 1} && !('b' in {'a': 1}) && !(1 in {'a': 1})",
            "[1, 2][1] == 2 && {'a': {'b': 3}}.a['b'] == 3",
            "duration('1h') + timestamp('1970-01-01T00:00:00Z') == timestamp(3600)",
            "timestamp('1970-01-01T01:00:00Z') - timestamp(0) == duration('60m')",
            "-9223372036854775808 < 0 && 0x10 == 16",
            "1 < 2 == true",
        ],
    );
    all("`1 / 0`: a division by zero", &["1 / 0 == 1"]);
    all("`9223372036854775807 + 1`: the result is too large", &["9223372036854775807 + 1 > 0"]);
    all("`-9223372036854775808 / -1`: the result is too large", &["-9223372036854775808 / -1 > 0"]);
    all("`1 + 1.0`: an int is not added to a double", &["1 + 1.0 == 2.0"]);
    all("`1 < 'a'`: an int is not ordered with a string", &["1 < 'a'"]);
    all("`[1][1]`: the list has no such element", &["[1][1] == 1"]);
    all("`1` is an int, where true or false should be", &["1", "!1", "1 && true", "1 ? true : true"]);
}

#[test]
fn one_term_makes_up_for_another_that_failed() {
    all("false", &["1 / 0 == 1 && false", "false && 1 / 0 == 1", "'a' && false", "resource.data.gone && false"]);
    all("true", &["1 / 0 == 1 || true", "true || 1 / 0 == 1", "resource.data.gone == 1 || true", "1 || true"]);
    all("`1 / 0`: a division by zero", &["1 / 0 == 1 && true", "1 / 0 == 1 || false", "true && 1 / 0 == 1"]);
}

#[test]
fn facts_are_looked_up() {
    all(
        "true",
        &[
            "request.auth.uid == 'ann' && request.auth != null && request['auth']['token'].role == 'admin'",
            "request.auth.token.deep.er == 1 && request.auth.token == request.auth.token",
            "request.method == 'update' && request.path == '/notes/n1' && id == 'n1'",
            "request.time == timestamp(5) && request.time.toMillis() == 5000",
            "resource.id == 'n1' && resource != null && request.resource.id == id",
            "resource.data.title == 'Tides' && request.resource.data.title == 'Tide'",
            "resource.data.map.b == 2 && resource.data['map']['b'] == 2 && resource.data.list[2] == 2",
            "resource.data.none == null && resource.data.at < request.time && resource.data.bytes == b'\\x01\\x02'",
            "request.change.author == 'ann' && request.change.actor == 'a1' && request.change != null",
            "request.change.keys == ['title', 'map'] && request.change.paths.within(['title', 'map'])",
            "has(resource.data.title) && !has(resource.data.gone) && !has(resource.data.map.z) && has(resource.data)",
            "has(request.auth.token.role) && !has(request.auth.token.gone) && has(request.auth.token)",
            "'title' in resource.data && !('gone' in resource.data) && 'a' in resource.data.map",
            "resource.data.get('gone', 7) == 7 && resource.data.get(['map', 'a'], 0) == 1",
            "resource.data[request.auth.token.role == 'admin' ? 'n' : 'x'] == 3",
            "resource == resource && resource.data == {'title': 'Tides'} || true",
        ],
    );
    all("`resource.data.gone` is not there", &["resource.data.gone == 1", "resource.data.gone == null"]);
    all("`resource.data.gone.er` is not there", &["resource.data.gone.er == 1"]);
    all("`resource.data.title.x` is not there", &["resource.data.title.x == 1"]);
    assert!(judged("has(resource.data.gone.er)").contains("is not there"));
}

#[test]
fn other_documents_are_looked_up() {
    all(
        "true",
        &[
            "get(/users/$(request.auth.uid)).data.admin",
            "get('/users/' + request.auth.uid).data.level == 2 && get('users/ann').id == 'ann'",
            "exists(/databases/$(database)/documents/users/ann)".replace("$(database)", "$('x')").as_str(),
            "!exists(/users/bob) && get(/users/bob) == null",
            "exists('/databases/(default)/documents/users/ann') && exists(/databases/(default)/documents/users/ann)",
        ],
    );
    all("`get(/users/bob).data`: null has no fields", &["get(/users/bob).data.admin"]);
    all("`exists('/users')`: a document's path is /collection/id", &["exists('/users')"]);
    all("`exists(/users/$('a/b'))`: a document's path is /collection/id", &["exists(/users/$('a/b'))"]);
    let many = |count: usize| (0..count).map(|n| format!("!exists(/users/u{n})")).collect::<Vec<_>>().join(" && ");
    all("true", &[&many(10), &format!("{0} && {0}", many(10))]);
    all("Budget", &[&many(11), &format!("({}) || true", many(11))]);
}

#[test]
fn functions_of_values() {
    all(
        "true",
        &[
            "size('é€') == 2 && 'ab'.size() == 2 && size([1]) == 1 && size({}) == 0 && size(b'abc') == 3",
            "'abc'.contains('b') && 'abc'.startsWith('a') && 'abc'.endsWith('c') && 'abc'.contains('')",
            "' A '.trim().lower() == 'a' && 'ß'.upper() == 'SS' && 'a,b'.split(',') == ['a', 'b']",
            "'abc'.matches('^[a-c]+$') && 'abc'.matches('a.c') && !'xabcx'.matches('abc') && !'abc'.matches('ab|x')",
            "int('7') == 7 && int(7.9) == 7 && int(-7.9) == -7 && int(7u) == 7 && int(timestamp(9)) == 9",
            "uint(7) == 7u && uint('7') == 7u && double('1.5') == 1.5 && float(1) == 1.0 && double(2u) == 2.0",
            "string(1) == '1' && string(true) == 'true' && string(1.5) == '1.5' && string(b'a') == 'a' && bool('true')",
            "string(timestamp(0)) == '1970-01-01T00:00:00Z' && bytes('a') == b'a' && string(duration('90s')) == '90s'",
            "type(1) == int && type('a') == string && type(null) == null_type && type([]) == list && type(1.0) != int",
            "'a' is string && 1 is int && 1u is int && 1u is number && 1.5 is float && 1 is number && true is bool && [] is list",
            "{} is map && request.time is timestamp && null is null && b'' is bytes && !(1 is string)",
            "[1, 2].hasOnly([1, 2, 3]) && ![1, 4].hasOnly([1]) && [].hasOnly([])",
            "[1, 2].hasAny([2]) && ![1].hasAny([]) && [1, 2].hasAll([1.0]) && ![1].hasAll([1, 2])",
            "[1].concat([2]) == [1, 2] && {'b': 1, 'a': 2}.keys() == ['a', 'b'] && {'a': 1}.get('b', 5) == 5",
            "['a/b', 'a', 'c'].within(['a', 'c']) && !['ab'].within(['a']) && [].within([]) && !['a'].within(['a/b'])",
            "request.resource.data.diff(resource.data).affectedKeys().hasOnly(['title','list','map','new','at','bytes','owner'])",
            "request.resource.data.diff(resource.data).addedKeys() == ['new']",
            "request.resource.data.diff(resource.data).removedKeys() == ['at', 'bytes', 'owner']",
            "request.resource.data.diff(resource.data).changedKeys() == ['list', 'map', 'title']",
            "request.resource.data.diff(resource.data).unchangedKeys() == ['n', 'none', 'x', 'yes']",
        ],
    );
    all("`int('x')`: this is no int", &["int('x') == 1"]);
    all("`int(1e19)`: the result is too large", &["int(1e19) == 1"]);
    all("`uint(-1)`: the result is too large", &["uint(-1) == 1u"]);
    all("`size(1)`: an int has no size", &["size(1) == 1"]);
    all("`duration('1d')`: this is no duration", &["duration('1d') == duration('24h')"]);
}

#[test]
fn functions_of_the_file_are_written_out_and_names_are_evaluated_when_they_are_used() {
    let source = "
      function signedIn() { return request.auth != null; }
      function owns(doc, who) { let owner = doc.data.owner; return owner == who; }
      function unused(a) { return a.b.c == 1; }
      match /notes/{id} {
        function own() { return signedIn() && owns(resource, request.auth.uid) && id == 'n1'; }
        allow update: if own();
        allow delete: if never(resource.data.gone);
        function never(x) { let y = x; let z = y + 1; return true || z == 1; }
      }";
    let rules = rules(source);
    let ann = Auth::from_json("ann", &json!({}));
    let note = Value::from_json(&json!({ "owner": "ann" }));
    let request = Request { auth: Some(&ann), before: Some(&note), ..Request::new(Operation::Update, "notes", "n1") };
    assert_eq!(rules.decide(&request), Decision { allowed: true, rule: Some(7), allow: Some(0), why: Why::Allowed });
    assert!(!rules.decide(&Request { auth: None, ..request }).allowed);
    assert!(!rules.decide(&Request { id: "n2", ..request }).allowed);
    assert!(rules.decide(&Request { operation: Operation::Delete, ..request }).allowed);
    assert_eq!(rules.functions().iter().map(|function| function.line).collect::<Vec<_>>(), [2, 3, 4, 6, 9]);
}

#[test]
fn paths_decide_which_allow_is_meant() {
    let rules = rules(
        "rules_version = '2';
        service cloud.firestore {
          match /databases/{database}/documents {
            match /messages/{id} { allow read; allow create: if id == 'a' && database == '(default)'; }
            match /messages/pinned { allow write; }
            match /{collection}/{id} { allow presence: if collection == id; }
            match /{any=**} { allow delete: if any == 'x/y'; }
            match /logs { match /{rest=**} { allow get: if rest == 'l1'; } }
          }
        }",
    );
    let allowed = |operation, collection, id| rules.decide(&Request::new(operation, collection, id)).allowed;
    assert!(allowed(Operation::Get, "messages", "x") && allowed(Operation::List, "messages", ""));
    assert!(allowed(Operation::Create, "messages", "a") && !allowed(Operation::Create, "messages", "b"));
    assert!(allowed(Operation::Update, "messages", "pinned") && !allowed(Operation::Update, "messages", "a"));
    assert!(allowed(Operation::Presence, "same", "same") && !allowed(Operation::Presence, "same", "other"));
    assert!(allowed(Operation::Delete, "x", "y") && !allowed(Operation::Delete, "x", "z"));
    assert!(allowed(Operation::Get, "logs", "l1") && !allowed(Operation::Get, "logs", "l2"));
    assert_eq!(rules.decide(&Request::new(Operation::Get, "x", "y")).why, Why::NoMatch);
    assert_eq!(rules.decide(&Request::new(Operation::Delete, "x", "z")).why, Why::NoneTrue);
}

#[test]
fn problems_are_told_with_their_places() {
    let inside = |condition: &str| problem(&format!("match /a/{{id}} {{ allow read: if {condition}; }}"));
    assert_eq!(inside("requst.auth != null"), "1:32: nothing here is called `requst`");
    assert_eq!(inside("request.atuh != null"), "1:32: request has no `atuh`");
    assert_eq!(inside("request == null"), "1:32: request is no value by itself");
    assert_eq!(inside("resource.dta.x == 1"), "1:32: resource has no `dta`");
    assert_eq!(inside("foo(1)"), "1:32: there is no function `foo`");
    assert_eq!(inside("'a'.startWith('b')"), "1:36: no value has a function `startWith`");
    assert_eq!(inside("'a'.startsWith()"), "1:36: `startsWith` takes 1 arguments, 0 are given");
    assert_eq!(inside("[1].all(x, x > 0)"), "1:36: `all` walks over a list, which rules do not do");
    assert_eq!(inside("[1].exists(x, x > 0)"), "1:36: `exists` walks over a list, which rules do not do");
    assert_eq!(inside("'a'.matches(id)"), "1:44: a regular expression must stand in the rules as it is");
    assert!(inside("'a'.matches('(')").starts_with("1:44: this is no regular expression: "));
    assert_eq!(inside("'a'.matches('(((a{99}){99}){99})')"), "1:44: this regular expression is too large");
    assert_eq!(inside("has(request.auth)"), "1:36: this is always there, and may be null");
    assert_eq!(inside("has(id)"), "1:36: has takes a place with a dot in it, as has(resource.data.room)");
    assert_eq!(inside("request.time.x == 1"), "1:32: `x` is looked for in what has no fields");
    assert_eq!(remedy("match /a/{id} { allow raed; }"), "did you mean `read`?");
    assert_eq!(remedy("mtch /a/{id} { allow read; }"), "did you mean `match`?");
    assert_eq!(remedy("match /a/{id} { allow read: if request.atuh == null; }"), "did you mean `auth`?");

    assert_eq!(
        problem("match /a { allow read; }"),
        "1:12: this allow is about no document, its path has too few segments"
    );
    assert_eq!(problem("match /a/{b}/c/{d} { allow read; }"), "1:14: this path is longer than any document's");
    assert_eq!(problem("match /{a}/{a} { allow read; }"), "1:12: two segments of this path are called `a`");
    assert_eq!(problem("allow read;"), "1:1: an allow stands outside of every match");
    assert_eq!(problem("match a { }"), "1:7: `a` stands where a path, as `/messages/{id}`, should be");
    assert_eq!(problem("match /a/{id} { allow read }"), "1:28: `}` stands where `;` should be");
    assert_eq!(problem("match /a/{id} { allow read;"), "1:28: the file ends where `}` should be");
    assert_eq!(problem("rules_version = '1';"), "1:17: this version of the rules is not known");
    assert_eq!(
        problem("function f() { return 1 } function f() { return 2; }"),
        "1:27: a function `f` is in this block already"
    );
    assert_eq!(problem("function f(a, a) { return a; }"), "1:15: two parameters are called `a`");
    assert_eq!(problem("function f() { return x; }"), "1:23: nothing here is called `x`");
    assert_eq!(problem("function f(a) { let a = 1; return a; }"), "1:21: `a` has a meaning in this function already");
    assert_eq!(
        problem("function f() { return g(); } function g() { return f(); }"),
        "1:52: functions call themselves: f -> g -> f"
    );
    assert_eq!(problem("}"), "1:1: `}` stands where match, allow or function should be");
    assert_eq!(
        problem("match /a/{id} { allow read: if f(1); } function f() { return true; }"),
        "1:32: `f` takes 0 arguments, 1 are given"
    );
}

#[test]
fn every_problem_is_told_and_each_once() {
    let source = "
      function bad() { return nobody; }
      match /a/{id} { allow read: if bad(); allow write: if bad() || other; }
      match /b/{id} { allow raed; allow get: if 1 +; allow list: if request.x; }
      match /c/{id} { allow get: if nothing; }";
    let error = Rules::parse("rules.tidelog", source).unwrap_err();
    let places: Vec<_> = error.problems.iter().map(|problem| (problem.line, problem.column)).collect();
    assert_eq!(places, [(2, 31), (3, 70), (4, 29), (4, 52), (4, 69), (5, 37)]);
    assert_eq!(error.code(), "E0210");
    let many = "match /a/{id} { allow get: if nothing; }\n".repeat(100);
    assert_eq!(Rules::parse("x", &many).unwrap_err().problems.len(), 20);
}

#[test]
fn what_is_needed_is_known_beforehand() {
    let rules = rules(
        "function owner(d) { return d.data.meta.owner; }
        match /open/{id} { allow read; allow update: if true || request.time > timestamp(0); allow delete: if false; }
        match /notes/{id} {
          allow get: if resource.data.room in request.auth.token.rooms && resource.data.a.b == 1 && resource.data.a != null;
          allow create: if request.resource.data.keys().hasOnly(['a']) && resource == null;
          allow update: if owner(resource) == request.auth.uid && request.change.paths.within(['text']);
          allow delete: if request.time > timestamp(0) && exists(/users/$(request.auth.uid)) && request.change.author == 'a';
          allow presence: if has(resource.data.a) && has(resource.data.b.c);
        }
        match /notes/special { allow list; }",
    );
    let needs = |operation, collection| rules.needs(operation, collection);
    let some = |paths: &[&[&str]]| {
        Fields::Some(paths.iter().map(|path| path.iter().map(|name| (*name).to_owned()).collect()).collect())
    };
    assert_eq!(needs(Operation::Get, "open").constant, Some(true));
    assert_eq!(needs(Operation::Delete, "open").constant, Some(false));
    assert_eq!(needs(Operation::Create, "open").constant, Some(false));
    assert_eq!(needs(Operation::Get, "elsewhere").constant, Some(false));
    assert_eq!(needs(Operation::List, "notes").constant, None, "it depends on the id");
    let get = needs(Operation::Get, "notes");
    assert_eq!((get.before, get.after, get.before_fields), (true, false, some(&[&["a"], &["room"]])));
    let create = needs(Operation::Create, "notes");
    assert_eq!((create.before, create.before_fields, create.after_fields), (true, Fields::None, Fields::All));
    let update = needs(Operation::Update, "notes");
    assert_eq!((update.paths, update.author, update.before_fields), (true, false, some(&[&["meta", "owner"]])));
    let delete = needs(Operation::Delete, "notes");
    assert!(delete.time && delete.documents && delete.author && !delete.paths && !delete.before);
    assert_eq!(needs(Operation::Presence, "notes").before_fields, some(&[&["a"], &["b"]]));
}

/// Data that counts how often it is asked, and for what.
struct Counted(Value, Cell<usize>);

impl Data for Counted {
    fn get(&self, path: &[&str]) -> Option<Value> {
        self.1.set(self.1.get() + 1);
        assert!(!path.is_empty(), "nobody needs the whole of it");
        self.0.get(path)
    }
}

#[test]
fn only_what_is_needed_is_looked_up_and_lets_once() {
    let rules = rules(
        "match /notes/{id} { allow get: if twice(resource.data.a + 1); allow get: if false && resource.data.b; }
        function twice(x) { let y = x + 1; return y + y + y == 0 || y == 3; }",
    );
    let note = Counted(Value::from_json(&json!({ "a": 1 })), Cell::new(0));
    let request = Request { before: Some(&note), ..Request::new(Operation::Get, "notes", "n") };
    assert!(rules.decide(&request).allowed);
    assert_eq!(note.1.get(), 1, "a name is evaluated once, and what comes after an answer is not");
}

#[test]
fn an_explanation_shows_every_part() {
    let rules = rules(
        "match /notes/{id} { allow get: if mine() || request.auth.token.role == 'admin'; allow get: if resource.data.gone; }
        function mine() { return resource.data.owner == request.auth.uid; }",
    );
    let bob = Auth::from_json("bob", &json!({ "role": "member" }));
    let note = Value::from_json(&json!({ "owner": "ann" }));
    let request = Request { auth: Some(&bob), before: Some(&note), ..Request::new(Operation::Get, "notes", "n") };
    let explanation = rules.explain(&request);
    assert_eq!(
        explanation.to_string(),
        "denied: no allow is true; the one on line 1 failed: `resource.data.gone` is not there\n\
        \x20 line 1, /notes/{id}: false\n\
        \x20   mine() || request.auth.token.role == 'admin'  =>  false\n\
        \x20     mine()  =>  false\n\
        \x20       resource.data.owner == request.auth.uid  =>  false\n\
        \x20         resource.data.owner  =>  \"ann\"\n\
        \x20         request.auth.uid  =>  \"bob\"\n\
        \x20     request.auth.token.role == 'admin'  =>  false\n\
        \x20       request.auth.token.role  =>  \"member\"\n\
        \x20 line 1, /notes/{id}: error: `resource.data.gone` is not there\n\
        \x20   resource.data.gone  =>  error: `resource.data.gone` is not there"
    );
    assert_eq!(explanation.to_json()["allows"][0]["tree"]["children"][0]["function"], "mine");
}

#[test]
fn no_decision_takes_more_than_its_budget() {
    let list = (0..2000).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
    let text = "x".repeat(4000);
    let sources = [
        format!("match /a/{{id}} {{ allow get: if [{list}].hasAll([{list}]) || true; }}"),
        format!("match /a/{{id}} {{ allow get: if f('{text}') != ''; }}
          function f(a) {{ let b = a+a+a+a; let c = b+b+b+b; let d = c+c+c+c; let e = d+d+d+d; let f = e+e+e+e; return f+f; }}"),
        format!("match /a/{{id}} {{ allow get: if f('{text}').matches('(a|b|x*)*y') || true; }}
          function f(a) {{ let b = a+a+a+a; let c = b+b+b+b; let d = c+c+c+c; return d+d; }}"),
        format!("match /a/{{id}} {{ {} }}", "allow get: if [1,2,3,4,5,6,7,8,9].hasAny([0,0,0,0,0,0,0,0]);".repeat(500)),
    ];
    for source in sources {
        let rules = rules(&source);
        let began = Instant::now();
        assert_eq!(rules.decide(&Request::new(Operation::Get, "a", "b")).why, Why::Budget, "{:.80}", source);
        assert!(began.elapsed().as_secs() < 5, "it ends early");
    }
}

#[test]
fn hostile_texts_are_refused_within_bounds() {
    let inside = |condition: &str| problem(&format!("match /a/{{id}} {{ allow read: if {condition}; }}"));
    // Every function calls the one before twice: two to the nineteenth without a bound.
    let mut doubling = String::from("function f0(x) { return x == 1; }\n");
    for n in 1..19 {
        doubling.push_str(&format!("function f{n}(x) {{ return f{}(x) && f{}(x); }}\n", n - 1, n - 1));
    }
    assert!(
        problem(&format!("{doubling} match /a/{{id}} {{ allow get: if f18(id); }}")).contains("more than 4000 parts")
    );
    let mut chain = String::from("function f0() { return true; }\n");
    for n in 1..40 {
        chain.push_str(&format!("function f{n}() {{ return f{}(); }}\n", n - 1));
    }
    assert!(problem(&chain).contains("more than 20 deep"));
    assert!(inside(&format!("{}1{}", "(".repeat(1000), ")".repeat(1000))).contains("nested more than 64 deep"));
    assert!(inside(&"{'a':".repeat(10_000)).contains("nested more than 64 deep"));
    assert!(problem(&"match /a ".repeat(10_000)).contains("should be"));
    assert!(problem(&"match /a { ".repeat(1000)).contains("more than 10 deep"));
    assert!(problem(&" ".repeat(300_000)).contains("300000 bytes"));
    assert!(inside(&format!("[{}] == []", "1,".repeat(5000))).contains("none"), "one literal is one part");
    assert!(inside(&format!("[{}] == []", "id,".repeat(5000))).contains("more than 4000 parts"));
    assert!(inside(&format!("1{}", "+1".repeat(5000))).contains("nested"));
    assert!(inside(&format!("true{}", " && true".repeat(5000))).contains("more than 4000 parts"));
    let lets: String = (1..200).map(|n| format!("let a{n} = a{} + 1; ", n - 1)).collect();
    let source = format!("match /a/{{id}} {{ allow get: if f(1) > 0; }} function f(a0) {{ {lets} return a199; }}");
    let decision = rules(&source).decide(&Request::new(Operation::Get, "a", "b"));
    assert!(matches!(decision.why, Why::Allowed | Why::Budget), "{decision:?}");
    let all: String = (0..30_000).map(|n| char::from((n * 7 % 128) as u8)).collect();
    assert_ne!(problem(&all), "none");
}
