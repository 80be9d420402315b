//! Decisions that are on record, made again by other rules: what a draft would change.
//!
//! Every write of which the log tells that somebody was asked for is decided again, in the order of the log: by the same
//! person with the same claims, at the time of the record, on the document as it was just before it. Other documents are
//! shown as they were at the end of the commit group before: the writer had decided nothing later when it was asked.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use serde_json::Value as Json;

use super::facts::Extract;
use crate::document::{Change, Touched, View};
use crate::engine::{Database, refused_key};
use crate::error::Error;
use crate::history::Past;
use crate::id::{ChangeHash, CollectionName, DocumentId, Lsn};
use crate::limits::audit as bounds;
use crate::log::Keyspace;
use crate::log::record::{
    Admission, AllowedHeader, AttributedHeader, ChangeHeader, Claims, Lifecycle, LifecycleKind, NameRef, Record,
    RefusedHeader, RefusedReason, RefusedWhat, WriteKind,
};
use crate::log::rows::{RefusedRow, decode_row};
use crate::rules::{Auth, ChangeFacts, Data, Decision, Documents, Needs, Operation, Request, Rules, Value, Why};

/// Which decisions are made again.
#[derive(Debug, Clone, Default)]
pub struct ReplayOptions {
    /// Those after this position.
    pub from: Lsn,
    /// Those about documents of this collection; `None`: all.
    pub collection: Option<CollectionName>,
}

/// A decision that would be another.
#[derive(Debug, Clone)]
pub struct Difference {
    /// The record of what was decided.
    pub lsn: Lsn,
    /// About which document.
    pub document: DocumentId,
    /// In which collection.
    pub collection: String,
    /// Who asked; empty for nobody in particular.
    pub principal: String,
    /// For what.
    pub operation: Operation,
    /// Whether it was allowed: on record, or by the rules it is compared with.
    pub was_allowed: bool,
    /// What the draft says.
    pub draft: Decision,
    /// The `allow`s of the draft that decide: the one that allows it, or those that do not; line and path.
    pub rules: Vec<(u32, String)>,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Decided as before.
    pub same: u64,
    /// Allowed then; the draft refuses it.
    pub would_be_refused: u64,
    /// Refused then; the draft allows it.
    pub would_be_allowed: u64,
    /// Could not be decided again, by the reason.
    pub not_asked: BTreeMap<&'static str, u64>,
    /// Writes for which nobody was asked: the node's own, and those from before there were rules.
    pub beside: u64,
    /// Up to which position it went.
    pub upto: Lsn,
}

/// What is told while it goes.
#[derive(Debug)]
pub enum Found {
    /// A decision would be another.
    Difference(Box<Difference>),
    /// So far it is.
    At(Lsn),
}

const FOREIGN: &str = "refused for another reason than rules";
const EDIT: &str = "an edit over HTTP, of which nothing was kept";
const GONE: &str = "its bytes are not in quarantine any more";
const COUNTED: &str = "counted only";
const NO_CLAIMS: &str = "what is claimed of the writer is not on record";
const UNCLEAR: &str = "the document cannot be told as it was";
const OTHER_UNCLEAR: &str = "a document that rules look at cannot be told as it was";
const NO_CHANGE: &str = "a creation without a change";
const UNFIT: &str = "what was refused cannot be applied";

/// Makes decisions again under `draft`, and compares them with what is on record, or with what `current` says. `each` is
/// told of every difference, and ends it early with [`ControlFlow::Break`].
///
/// # Errors
/// [`Error`] when the log cannot be read.
///
/// # Cost
/// One pass over the log from its beginning, since what is claimed of people is anywhere in it; from `options.from` on
/// each document that rules look at is made once, and again when it had to make room.
pub fn replay(
    database: &Database,
    draft: &Rules,
    current: Option<&Rules>,
    options: &ReplayOptions,
    each: &mut dyn FnMut(Found) -> ControlFlow<()>,
) -> Result<Replayed, Error> {
    let reader = database.reader().clone();
    let mut replay = Replay {
        database,
        sets: std::iter::once(draft).chain(current).collect(),
        options,
        own: Past::new(reader.clone()),
        others: Others {
            database,
            past: RefCell::new(Past::new(reader.clone())),
            at: Cell::new(Lsn::ZERO),
            unclear: Cell::new(false),
        },
        subjects: HashMap::new(),
        allowed: HashMap::new(),
        done: Replayed::default(),
    };
    loop {
        let records = reader.read_records(replay.done.upto, bounds::BYTES_PER_READ, bounds::RECORDS_PER_READ)?;
        let Some((last, _)) = records.last() else { return Ok(replay.done) };
        let last = *last;
        for (lsn, record) in records {
            if let Some(difference) = replay.take(lsn, record)?
                && each(Found::Difference(Box::new(difference))).is_break()
            {
                return Ok(replay.done);
            }
            replay.done.upto = lsn;
        }
        if each(Found::At(last)).is_break() {
            return Ok(replay.done);
        }
    }
}

struct Replay<'a> {
    database: &'a Database,
    /// The draft, and the rules it is compared with, if it is.
    sets: Vec<&'a Rules>,
    options: &'a ReplayOptions,
    own: Past,
    others: Others<'a>,
    /// The last record about what is claimed of each principal.
    subjects: HashMap<NameRef, Lsn>,
    /// The last record of which `allow` lets in what each principal writes, by collection and kind.
    allowed: HashMap<(NameRef, NameRef, WriteKind), (Lsn, AllowedHeader)>,
    done: Replayed,
}

/// One write to be decided again.
struct Case<'a> {
    lsn: Lsn,
    document: DocumentId,
    collection: &'a str,
    name: Option<String>,
    operation: Operation,
    principal: NameRef,
    /// Whether the claims that are on record here are the writer's.
    is_local: bool,
    time_ms: u64,
    was_allowed: bool,
    body: Body<'a>,
}

/// What it writes.
enum Body<'a> {
    /// A change that is in the log, and whether it was made here by an edit.
    Logged(&'a Change, bool),
    /// A change that is not.
    Refused(&'a Change),
    /// A statement: nothing.
    Statement,
    /// Nobody knows.
    Unknown(&'static str),
}

/// What a case shows to one set of rules.
#[derive(Default)]
struct Shown {
    before: Option<Extract>,
    after: Option<Extract>,
}

impl Replay<'_> {
    fn take(&mut self, lsn: Lsn, record: Record) -> Result<Option<Difference>, Error> {
        match record {
            Record::Footer(_) => {
                self.others.at.set(lsn);
                Ok(None)
            }
            Record::Subject(header) => {
                self.subjects.insert(header.principal, lsn);
                Ok(None)
            }
            Record::Allowed(header) => {
                let key = (header.principal, header.collection, header.operation);
                self.allowed.insert(key, (lsn, header));
                Ok(None)
            }
            _ if lsn <= self.options.from => Ok(None),
            Record::Change(header, chunk) => self.change(lsn, &header, chunk),
            Record::Refused(header) => self.refused(lsn, &header),
            Record::Attributed(header) => self.attributed(lsn, &header),
            _ => Ok(None),
        }
    }

    /// Whether the rules of this node let in the write at `lsn`, wherever it entered: it knows then which of them did.
    fn was_asked_here(&self, key: (NameRef, NameRef, WriteKind), rules_version: u32, lsn: Lsn) -> bool {
        self.allowed.get(&key).is_some_and(|(at, said)| {
            said.rule.is_some()
                && said.rules_version == rules_version
                && lsn.0 - at.0.min(lsn.0) <= AllowedHeader::REACH
        })
    }

    fn is_meant(&self, collection: &str) -> bool {
        self.options.collection.as_ref().is_none_or(|meant| meant.as_str() == collection)
    }

    fn change(&mut self, lsn: Lsn, header: &ChangeHeader, chunk: Vec<u8>) -> Result<Option<Difference>, Error> {
        let reader = self.database.reader();
        let collection = reader.names().collection(header.collection)?;
        if !self.is_meant(collection.as_str()) {
            return Ok(None);
        }
        // Clients came in by themselves, with or without a name; edits without one are the operator's as well.
        let is_clients = header.origin == 0 && header.admission == Admission::Full;
        if header.principal == 0 && header.rules_version == 0 && !is_clients {
            self.done.beside += 1;
            return Ok(None);
        }
        let document = DocumentId(header.document);
        let change = match Change::parse_logged(chunk) {
            Ok(change) => change,
            Err(_) => return self.unasked(UNCLEAR),
        };
        let is_first = header.deps.is_empty() && header.heads_before.is_none();
        let deed = if is_first { WriteKind::Create } else { WriteKind::Update };
        let key = (header.principal, header.collection, deed);
        let case = Case {
            lsn,
            document,
            collection: collection.as_str(),
            name: reader.document(document)?.and_then(|state| state.name),
            operation: operation_of(deed),
            principal: header.principal,
            is_local: header.origin == 0 || self.was_asked_here(key, header.rules_version, lsn),
            time_ms: header.received_ms,
            was_allowed: true,
            body: Body::Logged(&change, header.admission == Admission::Local),
        };
        self.decide(&case)
    }

    fn refused(&mut self, lsn: Lsn, header: &RefusedHeader) -> Result<Option<Difference>, Error> {
        if let RefusedWhat::More(count) = &header.what {
            if self.options.collection.is_none() {
                *self.done.not_asked.entry(COUNTED).or_default() += *count;
            }
            return Ok(None);
        }
        if !self.is_meant(&header.collection) {
            return Ok(None);
        }
        if !RefusedReason::of(header.reason).is_some_and(RefusedReason::is_of_rules) {
            return self.unasked(FOREIGN);
        }
        let change = match &header.what {
            RefusedWhat::Change { hash, .. } => kept(self.database, ChangeHash(*hash))?,
            _ => None,
        };
        let case = Case {
            lsn,
            document: DocumentId(header.document),
            collection: &header.collection,
            name: header.name.clone(),
            operation: operation_of(header.operation),
            principal: header.principal,
            is_local: true,
            time_ms: header.received_ms,
            was_allowed: false,
            body: match (&header.what, &change) {
                (RefusedWhat::Change { .. }, Some(change)) => Body::Refused(change),
                (RefusedWhat::Change { .. }, None) => Body::Unknown(GONE),
                (RefusedWhat::Statement(_), _) if header.operation == WriteKind::Delete => Body::Statement,
                (RefusedWhat::Statement(_), _) => Body::Unknown(NO_CHANGE),
                _ => Body::Unknown(EDIT),
            },
        };
        self.decide(&case)
    }

    fn attributed(&mut self, lsn: Lsn, header: &AttributedHeader) -> Result<Option<Difference>, Error> {
        let reader = self.database.reader();
        let at = Lsn(lsn.0.saturating_sub(header.statement));
        let Some(Record::Lifecycle(about, bytes)) = reader.record(at)? else { return Ok(None) };
        let Ok(said) = Lifecycle::decode(&bytes) else { return Ok(None) };
        // What is created is decided with its first change.
        if said.kind == LifecycleKind::Created {
            return Ok(None);
        }
        let document = DocumentId(about.document);
        let Some(state) = reader.document(document)? else { return Ok(None) };
        if !self.is_meant(state.collection.as_str()) {
            return Ok(None);
        }
        let key = (header.principal, about.collection, WriteKind::Delete);
        let case = Case {
            lsn: at,
            document,
            collection: state.collection.as_str(),
            name: state.name,
            operation: Operation::Delete,
            principal: header.principal,
            is_local: about.origin == 0 || self.was_asked_here(key, header.rules_version, at),
            time_ms: about.received_ms,
            was_allowed: true,
            body: Body::Statement,
        };
        self.decide(&case)
    }

    fn unasked(&mut self, why: &'static str) -> Result<Option<Difference>, Error> {
        *self.done.not_asked.entry(why).or_default() += 1;
        Ok(None)
    }

    fn decide(&mut self, case: &Case<'_>) -> Result<Option<Difference>, Error> {
        let needs: Vec<Needs> = self.sets.iter().map(|rules| rules.needs(case.operation, case.collection)).collect();
        let auth = match self.auth(case)? {
            Some(auth) => auth,
            None if needs.iter().any(|needs| needs.claims) => return self.unasked(NO_CLAIMS),
            None => {
                let uid = self.database.reader().names().text(case.principal)?;
                Some(Auth::from_json(&uid, &Json::Object(serde_json::Map::new())))
            }
        };
        let mut shown: Vec<Shown> = needs.iter().map(|_| Shown::default()).collect();
        let mut change = ChangeFacts::default();
        if needs.iter().any(|needs| needs.constant.is_none()) {
            match self.show(case, &needs, &mut change)? {
                Ok(found) => shown = found,
                Err(why) => return self.unasked(why),
            }
        }
        change.author = auth.as_ref().map(|auth| auth.uid.clone());
        self.others.unclear.set(false);
        let id = case.name.clone().unwrap_or_else(|| case.document.to_string());
        let by = |(rules, shown): (&&Rules, &Shown)| {
            rules.decide(&Request {
                operation: case.operation,
                collection: case.collection,
                id: &id,
                auth: auth.as_ref(),
                time_ms: case.time_ms as i64,
                before: shown.before.as_ref().map(|before| before as &dyn Data),
                after: shown.after.as_ref().map(|after| after as &dyn Data),
                change: Some(&change),
                documents: &self.others,
            })
        };
        let decided: Vec<Decision> = self.sets.iter().zip(&shown).map(by).collect();
        if self.others.unclear.get() {
            return self.unasked(OTHER_UNCLEAR);
        }
        let Some(draft) = decided.first().cloned() else { return Ok(None) };
        let was_allowed = decided.get(1).map_or(case.was_allowed, |current| current.allowed);
        match (was_allowed, draft.allowed) {
            (true, false) => self.done.would_be_refused += 1,
            (false, true) => self.done.would_be_allowed += 1,
            _ => {
                self.done.same += 1;
                return Ok(None);
            }
        }
        let asked = self.sets[0].asked(&Request::new(case.operation, case.collection, &id));
        let line = match &draft.why {
            Why::Error { line, .. } => Some(*line),
            _ => draft.rule,
        };
        Ok(Some(Difference {
            lsn: case.lsn,
            document: case.document,
            collection: case.collection.to_owned(),
            principal: self.database.reader().names().text(case.principal)?,
            operation: case.operation,
            was_allowed,
            rules: asked.into_iter().filter(|(at, _)| line.is_none_or(|line| line == *at)).collect(),
            draft,
        }))
    }

    /// Who asked: `Some(None)` is nobody in particular, `None` somebody of whom it is not known what was claimed.
    fn auth(&self, case: &Case<'_>) -> Result<Option<Option<Auth>>, Error> {
        if case.principal == 0 {
            return Ok(Some(None));
        }
        let Some(at) = self.subjects.get(&case.principal).filter(|_| case.is_local) else { return Ok(None) };
        let Some(claims) = claims_at(self.database, *at)? else { return Ok(None) };
        let uid = self.database.reader().names().text(case.principal)?;
        Ok(Some(Some(Auth::from_json(&uid, &claims))))
    }

    /// What of the document is shown to each set of rules, or why it cannot be.
    fn show(
        &mut self,
        case: &Case<'_>,
        needs: &[Needs],
        facts: &mut ChangeFacts,
    ) -> Result<Result<Vec<Shown>, &'static str>, Error> {
        let sees = needs.iter().any(|needs| needs.before || needs.after || needs.paths);
        let mut shown: Vec<Shown> = needs.iter().map(|_| Shown::default()).collect();
        let is_new = case.operation == Operation::Create;
        let is_gone = case.operation == Operation::Delete;
        if let Body::Unknown(why) = case.body {
            return Ok(Err(why));
        }
        if let Body::Logged(change, false) | Body::Refused(change) = case.body {
            facts.actor = change.actor().to_string();
        }
        if !sees {
            for shown in &mut shown {
                shown.before = (!is_new).then(Extract::default);
                shown.after = (!is_gone).then(Extract::default);
            }
            return Ok(Ok(shown));
        }
        let sees_paths = needs.iter().any(|needs| needs.paths);
        let mut json_before = Json::Object(serde_json::Map::new());
        let mut tried = None;
        match self.own.at(case.document, Lsn(case.lsn.0.saturating_sub(1)))? {
            Err(_) => return Ok(Err(UNCLEAR)),
            Ok(then) => {
                if !is_new {
                    for (shown, needs) in shown.iter_mut().zip(needs) {
                        shown.before = Some(Extract::of(&then.view, &needs.before_fields)?);
                    }
                }
                if sees_paths && matches!(case.body, Body::Logged(_, true)) {
                    json_before = then.view.to_json()?;
                }
                if let Body::Refused(change) = case.body {
                    match with_change(&then.view, change)? {
                        Some(view) => tried = Some(view),
                        None => return Ok(Err(UNFIT)),
                    }
                }
            }
        }
        let touched = match case.body {
            Body::Logged(change, is_edit) => {
                let then = match self.own.at(case.document, case.lsn)? {
                    Ok(then) if then.view.contains(change.hash()) => then,
                    _ => return Ok(Err(UNCLEAR)),
                };
                for (shown, needs) in shown.iter_mut().zip(needs) {
                    shown.after = Some(Extract::of(&then.view, &needs.after_fields)?);
                }
                match (sees_paths, is_edit) {
                    (false, _) => Touched::default(),
                    (true, true) => Touched::between(&json_before, &then.view.to_json()?),
                    (true, false) => then.view.touched(change)?,
                }
            }
            Body::Refused(change) => {
                let Some(view) = &tried else { return Ok(Err(UNFIT)) };
                for (shown, needs) in shown.iter_mut().zip(needs) {
                    shown.after = Some(Extract::of(view, &needs.after_fields)?);
                }
                if sees_paths { view.touched(change)? } else { Touched::default() }
            }
            Body::Statement | Body::Unknown(_) => Touched::default(),
        };
        facts.paths = touched.places().map(str::to_owned).collect();
        facts.keys = facts.paths.iter().filter_map(|path| path.split('/').next()).map(str::to_owned).collect();
        facts.keys.dedup();
        Ok(Ok(shown))
    }
}

/// A document with a change that it does not have; `None` when it cannot take it.
///
/// # Errors
/// [`Error::View`] when the document cannot be copied.
pub(crate) fn with_change(view: &View, change: &Change) -> Result<Option<View>, Error> {
    if change.deps().iter().any(|dep| !view.contains(*dep)) {
        return Ok(None);
    }
    let mut tried = view.copied()?;
    Ok(tried.apply_proven(std::slice::from_ref(change), true).is_ok().then_some(tried))
}

/// A refused change whose bytes are in quarantine.
///
/// # Errors
/// [`Error::History`] when the disk fails. Bytes that cannot be read are as good as not there.
pub(crate) fn kept(database: &Database, hash: ChangeHash) -> Result<Option<Change>, Error> {
    let key = refused_key(hash);
    let bytes = database.reader().storage().get(Keyspace::Held, &key)?;
    let row = bytes.and_then(|bytes| decode_row::<RefusedRow>(Keyspace::Held, &key, &bytes).ok());
    Ok(row.and_then(|row| Change::parse(row.chunk).ok()).filter(|change| change.hash() == hash))
}

/// What a `subject` record says is claimed of somebody; `None` when it was too long to be kept, or is none.
///
/// # Errors
/// [`Error::History`] when the log cannot be read.
pub(crate) fn claims_at(database: &Database, lsn: Lsn) -> Result<Option<Json>, Error> {
    let reader = database.reader();
    let said = |lsn: Lsn| -> Result<Option<Claims>, Error> {
        Ok(match reader.record(lsn)? {
            Some(Record::Subject(header)) => Some(header.claims),
            _ => None,
        })
    };
    let claims = match said(lsn)? {
        Some(Claims::As(back)) => said(Lsn(lsn.0.saturating_sub(back)))?,
        other => other,
    };
    Ok(match claims {
        Some(Claims::Known(text)) => serde_json::from_str(&text).ok(),
        _ => None,
    })
}

fn operation_of(kind: WriteKind) -> Operation {
    match kind {
        WriteKind::Create => Operation::Create,
        WriteKind::Update => Operation::Update,
        WriteKind::Delete => Operation::Delete,
    }
}

/// Other documents as they were.
struct Others<'a> {
    database: &'a Database,
    past: RefCell<Past>,
    /// After which record.
    at: Cell<Lsn>,
    /// One of them cannot be told as it was.
    unclear: Cell<bool>,
}

impl Others<'_> {
    fn read(&self, collection: &str, id: &str) -> Result<Option<Value>, Error> {
        let Ok(name) = CollectionName::new(collection) else { return Ok(None) };
        let document = id.parse().unwrap_or_else(|_| DocumentId::named(&name, id));
        let mut past = self.past.borrow_mut();
        let then = match past.at(document, self.at.get())? {
            Ok(then) if then.is_shown() => then,
            Ok(_) => return Ok(None),
            Err(_) => {
                self.unclear.set(true);
                return Ok(None);
            }
        };
        if self.database.reader().names().collection(then.row.collection)? != name {
            return Ok(None);
        }
        Ok(Some(Value::from_json(&then.view.to_json()?)))
    }
}

impl Documents for Others<'_> {
    fn get(&self, collection: &str, id: &str) -> Option<Value> {
        self.read(collection, id).unwrap_or_else(|error| {
            tracing::warn!(collection, %error, "a document that rules look at cannot be read as it was");
            self.unclear.set(true);
            None
        })
    }
}

#[cfg(test)]
mod tests;
