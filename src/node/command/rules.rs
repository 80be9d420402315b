//! Security rules without a node: reading a file, trying it on cases, and what those cases reach.
//!
//! A case is an object of JSON: `{name, as, do, path, before, after, change, documents, time, expect}`, as `docs/rules.md`
//! shows. Unknown members are errors, so that a slip is not a case that tries nothing.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use serde_json::{Map, Value as Json};

use super::{CommandError, Exit};
use crate::limits::rules as bounds;
use crate::rules::{
    Auth, ChangeFacts, Data, Documents, Explanation, Operation, Outcome, Request, Rules, RulesError, Value, nearest,
};

const MEMBERS: [&str; 10] = ["name", "as", "do", "path", "before", "after", "change", "documents", "time", "expect"];

/// One request of which it is known how it should be decided.
#[derive(Debug, Clone)]
pub struct RulesCase {
    /// What it is called.
    pub name: String,
    /// Whether it should be allowed, if that is said.
    pub expect: Option<bool>,
    operation: Operation,
    collection: String,
    id: String,
    auth: Option<Auth>,
    before: Option<Value>,
    after: Option<Value>,
    change: Option<ChangeFacts>,
    documents: Others,
    time_ms: i64,
}

/// Documents by their paths.
#[derive(Debug, Clone, Default)]
struct Others(BTreeMap<(String, String), Value>);

impl Documents for Others {
    fn get(&self, collection: &str, id: &str) -> Option<Value> {
        self.0.get(&(collection.to_owned(), id.to_owned())).cloned()
    }
}

/// How often something was true, false, neither, or not looked at, over all cases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage {
    /// `allow` or `function`.
    pub kind: &'static str,
    /// Its line.
    pub line: u32,
    /// The path and operations of an `allow`, or a function's name.
    pub name: String,
    /// Cases in which it was true.
    pub yes: usize,
    /// Cases in which it was false.
    pub no: usize,
    /// Cases in which it could not be evaluated.
    pub failed: usize,
    /// Cases in which it had another value than true or false.
    pub other: usize,
}

impl Coverage {
    /// Whether any case looked at it.
    #[must_use]
    pub fn is_reached(&self) -> bool {
        self.yes + self.no + self.failed + self.other > 0
    }
}

impl From<RulesError> for CommandError {
    fn from(error: RulesError) -> Self {
        Self::new(error.code(), Exit::Usage, error.to_string())
            .fix("put right what is named above; docs/rules.md has the language")
    }
}

/// Reads a file of rules.
///
/// # Errors
/// If it cannot be read, or is not rules (`E0210`).
pub fn read_rules(path: &Path) -> Result<Rules, CommandError> {
    let text = read_text(path, bounds::SOURCE_BYTES_MAX)?;
    Ok(Rules::parse(&path.display().to_string(), &text)?)
}

/// Reads a file of cases: an array, or one case alone.
///
/// # Errors
/// If it cannot be read, is no JSON, or has a member that no case has (`E0219`).
pub fn read_cases(path: &Path) -> Result<Vec<RulesCase>, CommandError> {
    let text = read_text(path, bounds::CASES_BYTES_MAX)?;
    parse_cases(&path.display().to_string(), &text)
}

/// Reads cases from text; `place` is what it is called in messages.
///
/// # Errors
/// As [`read_cases`].
pub fn parse_cases(place: &str, text: &str) -> Result<Vec<RulesCase>, CommandError> {
    let json: Json = serde_json::from_str(text).map_err(|error| CommandError::json(place, &error))?;
    let items = match json {
        Json::Array(items) => items,
        other => vec![other],
    };
    let read =
        |(index, item): (usize, &Json)| parse_case(index, item).map_err(|why| malformed(&format!("{place}: {why}")));
    items.iter().enumerate().map(read).collect()
}

fn malformed(why: &str) -> CommandError {
    CommandError::new("E0219", Exit::Usage, why).fix("docs/rules.md shows a case with everything it may have")
}

fn read_text(path: &Path, most: usize) -> Result<String, CommandError> {
    let open = std::fs::File::open(path);
    let mut bytes = Vec::new();
    let read = open.and_then(|file| file.take(most as u64 + 1).read_to_end(&mut bytes));
    read.map_err(|error| CommandError::file("read", path, &error))?;
    if bytes.len() > most {
        let why = format!("{} has more than {most} bytes", path.display());
        return Err(CommandError::new("E0703", Exit::Failed, why).fix("give a shorter file"));
    }
    String::from_utf8(bytes)
        .map_err(|_| CommandError::usage(format!("{} is not UTF-8", path.display())).fix("save it as UTF-8"))
}

fn parse_case(index: usize, json: &Json) -> Result<RulesCase, String> {
    let members = json.as_object().ok_or_else(|| format!("case {} is no object", index + 1))?;
    let name = match members.get("name") {
        None => format!("case {}", index + 1),
        Some(Json::String(name)) => name.clone(),
        Some(_) => return Err(format!("case {}: name is no text", index + 1)),
    };
    case_of(members, &name).map_err(|why| format!("{name}: {why}"))
}

fn case_of(members: &Map<String, Json>, name: &str) -> Result<RulesCase, String> {
    only(members, &MEMBERS)?;
    let word = |key: &str| match members.get(key) {
        Some(Json::String(text)) => Ok(text.as_str()),
        Some(_) => Err(format!("{key} is no text")),
        None => Err(format!("{key} is missing")),
    };
    let (collection, id) = segments(word("path")?)?;
    let value = |key: &str| members.get(key).filter(|json| !json.is_null()).map(Value::from_json);
    let (before, after) = (value("before"), value("after"));
    for (key, value) in [("before", &before), ("after", &after)] {
        if value.as_ref().is_some_and(|value| !matches!(value, Value::Map(_))) {
            return Err(format!("{key} is no object, as a document is"));
        }
    }
    Ok(RulesCase {
        name: name.to_owned(),
        expect: match members.get("expect").map(Json::as_str) {
            None => None,
            Some(Some("allow")) => Some(true),
            Some(Some("deny")) => Some(false),
            Some(_) => return Err("expect is `allow` or `deny`".to_owned()),
        },
        operation: word("do")?.parse()?,
        collection,
        id,
        auth: members.get("as").filter(|json| !json.is_null()).map(auth_of).transpose()?,
        before,
        after,
        change: members.get("change").filter(|json| !json.is_null()).map(change_of).transpose()?,
        documents: members.get("documents").map(documents_of).transpose()?.unwrap_or_default(),
        time_ms: members.get("time").map(time_of).transpose()?.unwrap_or(0),
    })
}

/// Refuses members that have no meaning.
fn only(members: &Map<String, Json>, known: &[&str]) -> Result<(), String> {
    let Some(unknown) = members.keys().find(|key| !known.contains(&key.as_str())) else { return Ok(()) };
    Err(match nearest(unknown, known.iter().copied()) {
        Some(near) => format!("there is no {unknown:?} here; did you mean {near:?}?"),
        None => format!("there is no {unknown:?} here; there is {}", known.join(", ")),
    })
}

fn segments(path: &str) -> Result<(String, String), String> {
    let found = path.strip_prefix('/').and_then(|rest| rest.split_once('/'));
    match found {
        Some((collection, id)) if !collection.is_empty() && !id.is_empty() && !id.contains('/') => {
            Ok((collection.to_owned(), id.to_owned()))
        }
        _ => Err(format!("{path:?} is no document's path; write it as /messages/m1")),
    }
}

fn auth_of(json: &Json) -> Result<Auth, String> {
    let members = json.as_object().ok_or("as is null or {\"uid\": .., \"token\": {..}}")?;
    only(members, &["uid", "token"])?;
    let uid = members.get("uid").and_then(Json::as_str).ok_or("as has no uid that is a text")?;
    let none = Json::Object(Map::new());
    let token = members.get("token").unwrap_or(&none);
    if token.is_object() { Ok(Auth::from_json(uid, token)) } else { Err("as.token is no object".to_owned()) }
}

fn change_of(json: &Json) -> Result<ChangeFacts, String> {
    let members = json.as_object().ok_or("change is no object")?;
    only(members, &["author", "actor", "paths", "keys"])?;
    let text = |key: &str| match members.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(format!("change.{key} is no text")),
    };
    let texts = |key: &str| {
        let wrong = || format!("change.{key} is no list of texts");
        let Some(list) = members.get(key) else { return Ok(None) };
        let items = list.as_array().ok_or_else(wrong)?;
        let items: Option<Vec<String>> = items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
        items.map(Some).ok_or_else(wrong)
    };
    let paths = texts("paths")?.unwrap_or_default();
    let keys = texts("keys")?.unwrap_or_else(|| {
        let mut keys: Vec<String> = paths.iter().filter_map(|path| path.split('/').next()).map(str::to_owned).collect();
        keys.sort();
        keys.dedup();
        keys
    });
    Ok(ChangeFacts { author: text("author")?, actor: text("actor")?.unwrap_or_default(), paths, keys })
}

fn documents_of(json: &Json) -> Result<Others, String> {
    let members = json.as_object().ok_or("documents is no object of paths and documents")?;
    let one = |(path, data): (&String, &Json)| Ok((segments(path)?, Value::from_json(data)));
    Ok(Others(members.iter().map(one).collect::<Result<_, String>>()?))
}

/// Milliseconds since 1970, as a number, or as `{"$time": ms}`.
fn time_of(json: &Json) -> Result<i64, String> {
    let ms = match Value::from_json(json) {
        Value::Int(ms) | Value::Timestamp(ms) => Some(ms),
        _ => None,
    };
    ms.ok_or_else(|| "time is a number, the milliseconds since 1970".to_owned())
}

impl RulesCase {
    /// How rules decide it, and why.
    #[must_use]
    pub fn explain(&self, rules: &Rules) -> Explanation {
        let (before, after) = (self.before.as_ref(), self.after.as_ref());
        rules.explain(&Request {
            operation: self.operation,
            collection: &self.collection,
            id: &self.id,
            auth: self.auth.as_ref(),
            time_ms: self.time_ms,
            before: before.map(|value| value as &dyn Data),
            after: after.map(|value| value as &dyn Data),
            change: self.change.as_ref(),
            documents: &self.documents,
        })
    }

    /// What is asked, in a few words.
    #[must_use]
    pub fn asks(&self) -> String {
        let who = self.auth.as_ref().map_or("nobody", |auth| &auth.uid);
        format!("{who} {} /{}/{}", self.operation, self.collection, self.id)
    }
}

/// What cases reach of rules: every `allow` and every function, in the order of the file.
#[must_use]
pub fn coverage(rules: &Rules, cases: &[RulesCase]) -> Vec<Coverage> {
    let row = |kind, line, name| Coverage { kind, line, name, yes: 0, no: 0, failed: 0, other: 0 };
    let allows = rules.allows();
    let functions = rules.functions();
    let mut rows: Vec<Coverage> = Vec::with_capacity(allows.len() + functions.len());
    for allow in &allows {
        let operations: Vec<&str> = allow.operations.iter().map(|operation| operation.as_str()).collect();
        rows.push(row("allow", allow.line, format!("{} {}", allow.path, operations.join(", "))));
    }
    rows.extend(functions.iter().map(|function| row("function", function.line, format!("{}()", function.name))));
    for case in cases {
        for allow in case.explain(rules).allows {
            // Several may stand on one line: the path and the operation tell most of them apart.
            let own = |(_, info): &(usize, &crate::rules::AllowInfo)| {
                info.line == allow.line && info.path == allow.path && info.operations.contains(&case.operation)
            };
            if let Some((index, _)) = allows.iter().enumerate().find(own) {
                count(&mut rows[index], &allow.outcome);
            }
            let Some(tree) = allow.tree else { continue };
            tree.visit(&mut |node| {
                let Some(name) = &node.function else { return };
                let called = format!("{name}()");
                let found = rows.iter_mut().find(|row| row.kind == "function" && row.name == called);
                if let Some(row) = found {
                    count(row, &node.outcome);
                }
            });
        }
    }
    rows.sort_by_key(|row| row.line);
    rows
}

fn count(row: &mut Coverage, outcome: &Outcome) {
    match outcome {
        Outcome::True => row.yes += 1,
        Outcome::False => row.no += 1,
        Outcome::Error(_) => row.failed += 1,
        Outcome::Value(_) => row.other += 1,
        Outcome::Skipped => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(text: &str) -> String {
        parse_cases("cases.json", text)
            .map_or_else(|error| format!("{}: {}", error.code, error.message), |_| String::new())
    }

    #[test]
    fn a_case_with_everything_is_read() {
        let text = r#"[{"name": "a", "as": {"uid": "ann", "token": {"role": "admin"}}, "do": "update", "path": "/notes/n1",
            "before": {"a": 1}, "after": {"a": 2}, "change": {"author": "ann", "paths": ["a/b", "a/c"]},
            "documents": {"/users/ann": {"x": 1}}, "time": 5, "expect": "allow"}, {"do": "get", "path": "/a/b", "as": null}]"#;
        let cases = parse_cases("cases.json", text).unwrap();
        assert_eq!((cases[0].expect, cases[1].expect, cases[1].name.as_str()), (Some(true), None, "case 2"));
        assert_eq!(cases[0].change.as_ref().unwrap().keys, ["a"]);
        assert_eq!((cases[0].asks(), cases[1].asks()), ("ann update /notes/n1".into(), "nobody get /a/b".into()));
    }

    #[test]
    fn a_slip_is_an_error_that_says_what_was_meant() {
        assert_eq!(
            why(r#"[{"do": "get", "path": "/a/b", "expects": "allow"}]"#),
            "E0219: cases.json: case 1: there is no \"expects\" here; did you mean \"expect\"?"
        );
        assert!(why(r#"{"do": "gt", "path": "/a/b"}"#).contains("is no operation"));
        assert!(why(r#"{"do": "get", "path": "a/b"}"#).contains("is no document's path"));
        assert!(why(r#"{"do": "get"}"#).contains("path is missing"));
        assert!(why(r#"{"do": "get", "path": "/a/b", "as": {"uid": 1}}"#).contains("no uid"));
        assert!(why(r#"{"do": "get", "path": "/a/b", "before": 1}"#).contains("before is no object"));
        assert!(why(r#"{"do": "get", "path": "/a/b", "expect": true}"#).contains("expect is"));
        assert!(why("[").starts_with("E0604"));
    }

    #[test]
    fn coverage_counts_what_cases_reach() {
        let rules = Rules::parse(
            "r",
            "function mine() { return resource.data.owner == request.auth.uid; }
            function owner() { return resource.data.owner; }
            match /a/{id} { allow get: if mine() && owner() != null; allow delete; }",
        )
        .unwrap();
        let text = r#"[{"do": "get", "path": "/a/b", "as": {"uid": "ann"}, "before": {"owner": "ann"}},
            {"do": "get", "path": "/a/b", "as": {"uid": "bob"}, "before": {"owner": "ann"}},
            {"do": "get", "path": "/a/b", "as": {"uid": "bob"}}]"#;
        let rows = coverage(&rules, &parse_cases("c", text).unwrap());
        let counts: Vec<_> = rows.iter().map(|row| (row.line, row.yes, row.no, row.failed, row.other)).collect();
        assert_eq!(counts, [(1, 1, 1, 1, 0), (2, 0, 0, 1, 1), (3, 1, 1, 1, 0), (3, 0, 0, 0, 0)]);
        assert!(!rows[3].is_reached());
    }
}
