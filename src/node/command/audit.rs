//! Who was allowed what: the records that tell, and what a draft of rules would change of it.

mod rules;

use std::collections::VecDeque;
use std::ops::ControlFlow;

use serde_json::{Value, json};

pub(super) use self::rules::rules;
use self::rules::{Finder, explain};
use super::request::{AuditFilter, RulesText};
use super::watch::kind_text;
use super::{Cancel, CommandError, Exit, Output, Progress};
use crate::access::{Difference, Found, ReplayOptions, claims_at, kept, replay as replay_rules, with_change};
use crate::document::{Change, Touched};
use crate::engine::Database;
use crate::history::{Origin, Past, author_statement};
use crate::id::{ActorId, ChangeHash, CollectionName, DocumentId, Lsn};
use crate::limits::audit as bounds;
use crate::log::record::{
    ChangeHeader, Lifecycle, LifecycleHeader, LifecycleKind, NameKind, NameRef, Record, RefusedHeader, RefusedReason,
    RefusedWhat, RulesHeader,
};
use crate::rules::Rules;

/// What is listed.
struct Wanted {
    /// `None`: whoever it is.
    user: Option<NameRef>,
    collection: Option<String>,
    document: Option<DocumentId>,
    /// Whether it was refused.
    refused: Option<bool>,
}

/// Lists writes that were accepted or refused, one row each: the first `limit` after `from`, or the last, newest last.
pub(super) fn list(
    db: &Database,
    filter: AuditFilter,
    cancel: &Cancel,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    let AuditFilter { user, collection, document, refused, from, limit } = filter;
    let limit = usize::try_from(limit.clamp(1, bounds::ROWS_MAX)).unwrap_or(usize::MAX);
    let user = match user.as_deref() {
        None => None,
        Some("") => Some(0),
        Some(name) => match db.reader().names().find(NameKind::Principal, name.as_bytes())? {
            Some(reference) => Some(reference),
            // Nobody of that name ever wrote anything.
            None => return Ok(json!({ "next": null })),
        },
    };
    let document = document.map(|id| id.parse::<DocumentId>()).transpose()?;
    let wanted = Wanted { user, collection, document, refused };
    let tail = db.reader().tail().lsn;
    let mut finder = Finder::new(db);
    match from {
        Some(from) => {
            let mut at = Lsn(from);
            let mut rows = 0;
            loop {
                cancel.check()?;
                let records = db.reader().read_records(at, bounds::BYTES_PER_READ, bounds::RECORDS_PER_READ)?;
                let Some((last, _)) = records.last() else { return Ok(json!({ "next": null })) };
                let last = *last;
                for (lsn, record) in records {
                    if let Some(mut row) = row_of(db, &wanted, lsn, &record)? {
                        finder.complete(&mut row, lsn, &record)?;
                        output.row(row)?;
                        rows += 1;
                        if rows >= limit {
                            return Ok(json!({ "next": lsn.0 }));
                        }
                    }
                }
                at = last;
                output.progress(Progress::new("look", at.0, Some(tail.0)));
            }
        }
        None => {
            let mut rows = VecDeque::new();
            let mut at = tail.next();
            'pages: loop {
                cancel.check()?;
                let records = db.reader().read_records_before(at, bounds::BYTES_PER_READ, bounds::RECORDS_PER_READ)?;
                let Some((last, _)) = records.last() else { break };
                let last = *last;
                for (lsn, record) in records {
                    if let Some(row) = row_of(db, &wanted, lsn, &record)? {
                        rows.push_front((row, lsn, record));
                        if rows.len() >= limit {
                            break 'pages;
                        }
                    }
                }
                at = last;
                output.progress(Progress::new("look back", tail.0.saturating_sub(at.0), Some(tail.0)));
            }
            for (mut row, lsn, record) in rows {
                cancel.check()?;
                finder.complete(&mut row, lsn, &record)?;
                output.row(row)?;
            }
            Ok(json!({ "next": tail.0 }))
        }
    }
}

impl Wanted {
    fn wants(&self, refused: bool, principal: NameRef, document: DocumentId) -> bool {
        self.refused.is_none_or(|wanted| wanted == refused)
            && self.user.is_none_or(|user| user == principal)
            && self.document.is_none_or(|wanted| wanted == document)
    }

    fn wants_collection(&self, collection: &str) -> bool {
        self.collection.as_deref().is_none_or(|wanted| wanted == collection)
    }
}

/// What to say about a record; nothing when it is no write, or not wanted.
fn row_of(db: &Database, wanted: &Wanted, lsn: Lsn, record: &Record) -> Result<Option<Value>, CommandError> {
    let names = db.reader().names();
    Ok(match record {
        Record::Change(header, _) => {
            if !wanted.wants(false, header.principal, DocumentId(header.document)) {
                return Ok(None);
            }
            let collection = names.collection(header.collection)?;
            if !wanted.wants_collection(collection.as_str()) {
                return Ok(None);
            }
            Some(change_row(db, lsn, header, collection.as_str())?)
        }
        Record::Lifecycle(header, bytes) => {
            let (principal, version) = attributed_to(db, lsn)?;
            if !wanted.wants(false, principal, DocumentId(header.document)) {
                return Ok(None);
            }
            let Ok(said) = Lifecycle::decode(bytes) else { return Ok(None) };
            if !wanted.wants_collection(said.collection.as_str()) {
                return Ok(None);
            }
            Some(statement_row(db, lsn, header, &said, principal, version)?)
        }
        Record::Refused(header) => {
            let is_wanted = wanted.wants(true, header.principal, DocumentId(header.document));
            if !is_wanted || !wanted.wants_collection(&header.collection) {
                return Ok(None);
            }
            Some(refused_row(db, lsn, header)?)
        }
        _ => None,
    })
}

fn change_row(db: &Database, lsn: Lsn, header: &ChangeHeader, collection: &str) -> Result<Value, CommandError> {
    let is_first = header.deps.is_empty() && header.heads_before.is_none();
    Ok(json!({
        "lsn": lsn.0,
        "time": header.received_ms / 1000,
        "verdict": "accepted",
        "operation": if is_first { "create" } else { "update" },
        "user": user_of(db, header.principal)?,
        "collection": collection,
        "id": DocumentId(header.document).to_string(),
        "change": ChangeHash(header.hash).to_string(),
        "rules_version": version_text(header.rules_version),
    }))
}

fn statement_row(
    db: &Database,
    lsn: Lsn,
    header: &LifecycleHeader,
    said: &Lifecycle,
    principal: NameRef,
    version: u32,
) -> Result<Value, CommandError> {
    Ok(json!({
        "lsn": lsn.0,
        "time": header.received_ms / 1000,
        "verdict": "accepted",
        "operation": if said.kind == LifecycleKind::Created { "create" } else { "delete" },
        "statement": kind_text(said.kind),
        "user": user_of(db, principal)?,
        "collection": said.collection.as_str(),
        "id": said.document.to_string(),
        "rules_version": version_text(version),
    }))
}

fn refused_row(db: &Database, lsn: Lsn, header: &RefusedHeader) -> Result<Value, CommandError> {
    let mut row = json!({
        "lsn": lsn.0,
        "time": header.received_ms / 1000,
        "verdict": "refused",
        "operation": header.operation.as_str(),
        "user": user_of(db, header.principal)?,
        "collection": header.collection,
        "id": DocumentId(header.document).to_string(),
        "rules_version": version_text(header.rules_version),
        "why": match RefusedReason::of(header.reason) {
            Some(reason) => reason.as_str().to_owned(),
            None => format!("reason {}", header.reason),
        },
        "rules": header.rules.iter().map(|rule| json!({ "line": rule.line, "path": rule.path })).collect::<Vec<_>>(),
    });
    if !header.detail.is_empty() {
        row["detail"] = json!(header.detail);
    }
    match &header.what {
        RefusedWhat::Change { hash, .. } => row["change"] = json!(ChangeHash(*hash).to_string()),
        RefusedWhat::Statement(kind) => row["statement"] = json!(statement_text(*kind)),
        RefusedWhat::Edit => row["edit"] = json!(true),
        RefusedWhat::More(count) => {
            row = json!({
                "lsn": lsn.0,
                "time": header.received_ms / 1000,
                "verdict": "refused",
                "user": user_of(db, header.principal)?,
                "count": count,
                "why": format!("{count} more than are listed in a minute"),
            });
        }
    }
    Ok(row)
}

/// A statement as a record of what was refused has it.
fn statement_text(kind: u8) -> &'static str {
    let kinds = [LifecycleKind::Created, LifecycleKind::Deleted, LifecycleKind::Restored];
    kind_text(kinds.into_iter().find(|known| *known as u8 == kind).unwrap_or(LifecycleKind::Purged))
}

/// Nobody in particular is null.
fn user_of(db: &Database, principal: NameRef) -> Result<Value, CommandError> {
    Ok(if principal == 0 { Value::Null } else { json!(db.reader().names().text(principal)?) })
}

/// The first digits of the digest that `tidelog rules check` prints; null for no rules.
fn version_text(version: u32) -> Value {
    if version == 0 { Value::Null } else { json!(RulesHeader::version_text(version)) }
}

/// On whose behalf the statement in the record at `lsn` was made, and under which rules.
fn attributed_to(db: &Database, lsn: Lsn) -> Result<(NameRef, u32), CommandError> {
    // It comes right behind, after what it needs itself.
    const BEHIND: usize = 4;
    for (at, record) in db.reader().read_records(lsn, usize::MAX, BEHIND)? {
        match record {
            Record::Attributed(header) if at.0 - header.statement.min(at.0) == lsn.0 => {
                return Ok((header.principal, header.rules_version));
            }
            Record::Name(_) | Record::Subject(_) => {}
            _ => break,
        }
    }
    Ok((0, 0))
}

/// Everything that is known of one write: one row.
pub(super) fn show(db: &Database, lsn: u64, cancel: &Cancel, output: &mut dyn Output) -> Result<Value, CommandError> {
    let lsn = Lsn(lsn);
    let nothing = || {
        CommandError::new("E0222", Exit::NotFound, format!("record {lsn} is no write"))
            .fix("`tidelog audit ls` lists those that are")
    };
    let record = db.reader().record(lsn)?.ok_or_else(nothing)?;
    let all = Wanted { user: None, collection: None, document: None, refused: None };
    let mut row = row_of(db, &all, lsn, &record)?.ok_or_else(nothing)?;
    let (mut principal, mut is_local) = (0, true);
    match &record {
        Record::Change(header, chunk) => {
            (principal, is_local) = (header.principal, header.origin == 0);
            let entered = db.reader().origin_of(header)?;
            row["entered"] = json!(entered.node.to_string());
            row["signed"] = json!(is_signed(db, header, &entered)?);
            row["via"] = json!(db.reader().names().node(header.via)?.map(|node| node.to_string()));
            let change = Change::parse(chunk.clone()).map_err(crate::error::Error::from)?;
            describe(&mut row, &change);
            let mut past = Past::new(db.reader().clone());
            if let Ok(then) = past.at(DocumentId(header.document), lsn)? {
                row["touched"] = then.view.touched(&change).map_or(Value::Null, |touched| places(&touched));
            }
        }
        Record::Lifecycle(header, bytes) => {
            (principal, is_local) = (attributed_to(db, lsn)?.0, header.origin == 0);
            let said = Lifecycle::decode(bytes).ok();
            row["entered"] = json!(db.reader().names().node(header.origin)?.unwrap_or(db.node()).to_string());
            row["via"] = json!(db.reader().names().node(header.via)?.map(|node| node.to_string()));
            row["name"] = json!(said.and_then(|said| said.name));
        }
        Record::Refused(header) => {
            principal = header.principal;
            row["via"] = json!(db.reader().names().node(header.via)?.map(|node| node.to_string()));
            row["name"] = json!(header.name);
            if let RefusedWhat::Change { hash, actor, seq, bytes, .. } = &header.what {
                row["actor"] = json!(ActorId::new(actor).map(|actor| actor.to_string()));
                row["seq"] = json!(seq);
                row["bytes"] = json!(bytes);
                show_refused(db, &mut row, DocumentId(header.document), lsn, ChangeHash(*hash))?;
            }
        }
        _ => {}
    }
    Finder::new(db).complete(&mut row, lsn, &record)?;
    explain(db, &mut row, lsn, &record)?;
    // Whose rules were asked here, of him it is on record here what was claimed, wherever he wrote.
    if principal != 0 && (is_local || row["rule"].is_object()) {
        row["claims"] = claims_before(db, principal, lsn, cancel)?;
    }
    output.row(row)?;
    Ok(Value::Null)
}

/// Whether the node at which a change entered signed whose it is. Nobody signs an author's later changes, nor what was
/// written here.
fn is_signed(db: &Database, header: &ChangeHeader, entered: &Origin) -> Result<Option<bool>, CommandError> {
    let actor = ActorId::new(&db.reader().names().name(header.actor)?.bytes);
    let Some(actor) = actor.filter(|_| header.seq == 1 && header.origin != 0) else { return Ok(None) };
    let document = DocumentId(header.document);
    let statement = author_statement(document, &actor, ChangeHash(header.hash), entered);
    Ok(Some(db.reader().signature(document, &statement)?.is_some()))
}

fn describe(row: &mut Value, change: &Change) {
    row["actor"] = json!(change.actor().to_string());
    row["seq"] = json!(change.seq());
    row["ops"] = json!(change.op_count());
    row["bytes"] = json!(change.bytes().len());
    row["made"] = json!(change.time());
    row["message"] = json!(change.message());
    row["deps"] = json!(change.deps().iter().map(ToString::to_string).collect::<Vec<_>>());
}

fn places(touched: &Touched) -> Value {
    json!(touched.places().collect::<Vec<_>>())
}

/// What a refused change would have done, if it is in quarantine; and where it is in the log, if it was allowed since.
fn show_refused(
    db: &Database,
    row: &mut Value,
    document: DocumentId,
    lsn: Lsn,
    hash: ChangeHash,
) -> Result<(), CommandError> {
    let found = kept(db, hash)?;
    row["quarantined"] = json!(found.is_some());
    if db.reader().row(document)?.is_some() {
        let graph = db.reader().graph(document)?;
        let graph = graph.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        row["accepted_at"] = json!(graph.lsn_of(&hash).map(|lsn| lsn.0));
    }
    let Some(change) = found else { return Ok(()) };
    describe(row, &change);
    let mut past = Past::new(db.reader().clone());
    if let Ok(then) = past.at(document, Lsn(lsn.0.saturating_sub(1)))?
        && let Some(view) = with_change(&then.view, &change)?
    {
        row["touched"] = view.touched(&change).map_or(Value::Null, |touched| places(&touched));
    }
    Ok(())
}

/// What is claimed of somebody in the last record about him before `lsn`; null when there is none, or it was too long.
fn claims_before(db: &Database, principal: NameRef, lsn: Lsn, cancel: &Cancel) -> Result<Value, CommandError> {
    let mut at = lsn;
    loop {
        cancel.check()?;
        let records = db.reader().read_records_before(at, bounds::BYTES_PER_READ, bounds::RECORDS_PER_READ)?;
        let Some((last, _)) = records.last() else { return Ok(Value::Null) };
        let last = *last;
        for (lsn, record) in records {
            if matches!(record, Record::Subject(ref header) if header.principal == principal) {
                return Ok(claims_at(db, lsn)?.unwrap_or(Value::Null));
            }
        }
        at = last;
    }
}

/// Makes recorded decisions again by a draft: one row for each that would be another, at most `limit`, and a summary.
#[expect(clippy::too_many_arguments, reason = "one command's words")]
pub(super) fn replay(
    db: &Database,
    draft: &RulesText,
    current: Option<&RulesText>,
    from: u64,
    collection: Option<&str>,
    limit: u64,
    cancel: &Cancel,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    let draft = Rules::parse(&draft.name, &draft.text)?;
    let current = current.map(|current| Rules::parse(&current.name, &current.text)).transpose()?;
    let collection = collection.map(CollectionName::new).transpose()?;
    let options = ReplayOptions { from: Lsn(from), collection };
    let tail = db.reader().tail().lsn.0;
    let limit = limit.min(bounds::ROWS_MAX);
    let (mut listed, mut failed) = (0, Ok(()));
    let done = replay_rules(db, &draft, current.as_ref(), &options, &mut |found| {
        failed = match found {
            Found::Difference(_) if listed >= limit => Ok(()),
            Found::Difference(difference) => {
                listed += 1;
                output.row(difference_row(&difference))
            }
            Found::At(lsn) => {
                output.progress(Progress::new("decide", lsn.0, Some(tail)));
                cancel.check()
            }
        };
        if failed.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    failed?;
    Ok(json!({
        "same": done.same,
        "would_be_refused": done.would_be_refused,
        "would_be_allowed": done.would_be_allowed,
        "not_asked": done.not_asked,
        "beside": done.beside,
        "upto": done.upto.0,
        "listed": listed,
    }))
}

fn difference_row(difference: &Difference) -> Value {
    let verdict = |allowed: bool| if allowed { "allowed" } else { "refused" };
    json!({
        "lsn": difference.lsn.0,
        "was": verdict(difference.was_allowed),
        "would_be": verdict(difference.draft.allowed),
        "operation": difference.operation.as_str(),
        "user": Some(&difference.principal).filter(|principal| !principal.is_empty()),
        "collection": difference.collection,
        "id": difference.document.to_string(),
        "rules": difference.rules.iter().map(|(line, path)| json!({ "line": line, "path": path })).collect::<Vec<_>>(),
        "why": difference.draft.why.to_string(),
    })
}
