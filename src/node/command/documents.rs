//! Commands on documents.

use serde_json::{Value, json};

use super::{Base64, Cancel, CommandError, Exit, ExportFormat, ImportRow, Output, Target};
use crate::document::{Change, Path};
use crate::engine::{Clash, Collection, Committed, Database, DocHandle, Incoming, IncomingBody};
use crate::error::Error;
use crate::history::{DocumentState, Origin};
use crate::id::{ChangeHash, CollectionName, DocumentId, Heads, Lsn};
use crate::log::record::Admission;
use crate::log::rows::IndexRow;

/// Documents read from a collection at a time.
const PAGE: usize = 256;
/// Most rows that one command lists of a log.
const ROWS_MAX: u64 = 1_000_000;

pub(super) fn collections(db: &Database, cancel: &Cancel, output: &mut dyn Output) -> Result<Value, CommandError> {
    for name in db.collections()? {
        let mut documents = 0_u64;
        each_document(&db.collection(name.as_str())?, cancel, &mut |_, _| {
            documents += 1;
            Ok(())
        })?;
        output.row(json!({ "collection": name.as_str(), "documents": documents }))?;
    }
    Ok(Value::Null)
}

pub(super) fn list(
    db: &Database,
    collection: &str,
    cancel: &Cancel,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    let collection = existing(db, collection)?;
    each_document(&collection, cancel, &mut |id, state| {
        output.row(json!({
            "id": id.to_string(),
            "collection": state.collection.as_str(),
            "name": state.name,
            "changes": state.change_count,
            "bytes": state.change_bytes,
            "heads": heads_json(&state.heads),
            "lsn": state.last_lsn.0,
            "degraded": if state.degraded { degraded_json(db, id)? } else { Value::Null },
        }))
    })?;
    Ok(Value::Null)
}

/// A collection that holds, or held, something.
fn existing(db: &Database, name: &str) -> Result<Collection, CommandError> {
    let name = CollectionName::new(name)?;
    if !db.collections()?.contains(&name) {
        return Err(CommandError::new("E0610", Exit::NotFound, format!("there is no collection {name}"))
            .fix("`tidelog ls` lists the collections; `tidelog add <collection> <json>` makes one"));
    }
    Ok(db.collection(name.as_str())?)
}

fn each_document(
    collection: &Collection,
    cancel: &Cancel,
    take: &mut dyn FnMut(DocumentId, DocumentState) -> Result<(), CommandError>,
) -> Result<(), CommandError> {
    let mut at = Lsn::ZERO;
    loop {
        cancel.check()?;
        let page = collection.list(at, PAGE)?;
        let Some((_, last)) = page.last() else { return Ok(()) };
        at = last.last_lsn;
        for (id, state) in page {
            take(id, state)?;
        }
    }
}

pub(super) fn find(db: &Database, id: &str) -> Result<DocHandle, CommandError> {
    Ok(db.find(id.parse()?)?)
}

/// A document that is not deleted.
fn find_visible(db: &Database, id: &str) -> Result<DocHandle, CommandError> {
    let handle = find(db, id)?;
    if handle.state()?.visible { Ok(handle) } else { Err(Error::Deleted(handle.id()).into()) }
}

/// The answer is `{degraded}` when changes of the document are not shown.
pub(super) fn read(
    db: &Database,
    id: &str,
    at: Option<Vec<String>>,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    let handle = find_visible(db, id)?;
    let value = match at {
        None => handle.to_json()?,
        Some(hashes) => {
            let hashes: Result<Vec<ChangeHash>, _> = hashes.iter().map(|hash| hash.parse()).collect();
            handle.at(&Heads::new(hashes?))?
        }
    };
    output.row(value)?;
    Ok(match degraded_json(db, handle.id())? {
        Value::Null => Value::Null,
        degraded => json!({ "degraded": degraded }),
    })
}

/// What of a document is not shown; null when all of it is.
fn degraded_json(db: &Database, id: DocumentId) -> Result<Value, CommandError> {
    Ok(db.reader().degraded(id)?.map_or(
        Value::Null,
        |degraded| json!({ "voids": degraded.voids, "hidden": degraded.hidden, "heads": heads_json(&degraded.heads) }),
    ))
}

/// How a document is to be created.
pub(super) struct Asked {
    pub(super) name: Option<String>,
    pub(super) id: Option<String>,
    pub(super) value: Option<Value>,
    pub(super) must_be_new: bool,
}

pub(super) fn add(
    db: &Database,
    collection: &str,
    asked: Asked,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    let collection = db.collection(collection)?;
    let id = match (&asked.name, &asked.id) {
        (Some(_), Some(_)) => return Err(CommandError::usage("a document has a name or an id of its own, not both")),
        (Some(name), None) => Some(DocumentId::named(collection.name(), name)),
        (None, Some(id)) => Some(id.parse()?),
        (None, None) => None,
    };
    let known = match id {
        Some(id) => db.reader().document(id)?.is_some(),
        None => false,
    };
    if let (true, true, Some(id)) = (known, asked.must_be_new, id) {
        return Err(CommandError::new("E0611", Exit::Conflict, format!("document {id} exists already"))
            .fix(format!("`tidelog get {id}` shows it, `tidelog set {id} <path> <value>` changes it")));
    }
    let handle = match (asked.name, id, asked.value) {
        (Some(name), _, Some(value)) => collection.doc_with(&name, value)?,
        (Some(name), _, None) => collection.doc(&name)?,
        (None, Some(id), value) => {
            let handle = if known { db.find(id)? } else { collection.create_with_id(id)? };
            if let (false, Some(value)) = (known, value) {
                handle.change(|edit| Ok(edit.put(Path::root(), &value)?))?.wait()?;
            }
            handle
        }
        (None, None, value) => {
            let (handle, commit) = collection.create(value.unwrap_or_else(|| json!({})))?;
            commit.wait()?;
            handle
        }
    };
    let state = handle.state()?;
    output.row(json!({
        "id": handle.id().to_string(),
        "collection": state.collection.as_str(),
        "name": state.name,
        "created": !known,
        "lsn": state.last_lsn.0,
    }))?;
    Ok(Value::Null)
}

pub(super) fn set(
    db: &Database,
    id: &str,
    path: &str,
    value: &Value,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    let handle = find(db, id)?;
    let committed = handle.change(|edit| Ok(edit.put(path, value)?))?.wait()?;
    output.row(committed_json(&handle, committed))?;
    Ok(Value::Null)
}

pub(super) fn replace(
    db: &Database,
    id: &str,
    base: &Value,
    value: &Value,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    let handle = find(db, id)?;
    let mut changed_meanwhile = false;
    let made = handle.change(|edit| {
        // Looked at under the document's lock, so that no edit gets between this and the write.
        if edit.json(Path::root())?.as_ref() != Some(base) {
            changed_meanwhile = true;
            return Err(Error::Application("the document was changed meanwhile".into()));
        }
        Ok(edit.put(Path::root(), value)?)
    });
    if changed_meanwhile {
        let why = format!("document {id} was changed by others while it was edited here");
        return Err(CommandError::new("E0612", Exit::Conflict, why).fix("edit it again, on top of what it holds now"));
    }
    let committed = made?.wait()?;
    output.row(committed_json(&handle, committed))?;
    Ok(Value::Null)
}

pub(super) fn remove(db: &Database, id: &str, output: &mut dyn Output) -> Result<Value, CommandError> {
    let handle = find(db, id)?;
    let committed = handle.delete()?.wait()?;
    output.row(committed_json(&handle, committed))?;
    Ok(Value::Null)
}

pub(super) fn restore(db: &Database, id: &str, output: &mut dyn Output) -> Result<Value, CommandError> {
    let handle = find(db, id)?;
    if handle.state()?.visible {
        let why = format!("document {} is not deleted", handle.id());
        return Err(CommandError::new("E0613", Exit::Conflict, why)
            .fix(format!("nothing needs to be done; `tidelog get {}` shows it", handle.id())));
    }
    let committed = handle.restore()?.wait()?;
    output.row(committed_json(&handle, committed))?;
    Ok(Value::Null)
}

fn committed_json(handle: &DocHandle, committed: Committed) -> Value {
    json!({
        "id": handle.id().to_string(),
        "change": committed.change.map(|hash| hash.to_string()),
        "lsn": committed.lsn.0,
    })
}

pub(super) fn heads_json(heads: &Heads) -> Vec<String> {
    heads.as_slice().iter().map(ToString::to_string).collect()
}

pub(super) fn log(
    db: &Database,
    id: &str,
    from: Option<u64>,
    limit: u64,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    let handle = find(db, id)?;
    let limit = limit.min(ROWS_MAX);
    let after = match from {
        Some(from) => Lsn(from),
        None => last_changes_start(db, handle.id(), limit)?,
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    for entry in handle.history(after, limit)? {
        output.row(json!({
            "lsn": entry.lsn.0,
            "hash": entry.hash.to_string(),
            "actor": data_encoding::HEXLOWER.encode(entry.actor.as_bytes()),
            "seq": entry.seq,
            "ops": entry.op_count,
            "deps": entry.deps.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "time": entry.time,
            "received_ms": entry.received_ms,
            "message": entry.message,
            "node": entry.origin.node.to_string(),
        }))?;
    }
    Ok(Value::Null)
}

/// After which position the last `limit` changes of a document are.
fn last_changes_start(db: &Database, id: DocumentId, limit: u64) -> Result<Lsn, CommandError> {
    let rows = db.reader().index(id, Lsn::ZERO)?;
    let changes: Vec<Lsn> =
        rows.iter().filter(|(_, row)| matches!(row, IndexRow::Change { .. })).map(|(lsn, _)| *lsn).collect();
    let skipped = changes.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
    Ok(if skipped == 0 { Lsn::ZERO } else { changes[skipped - 1] })
}

pub(super) fn hashes(db: &Database, id: &str, output: &mut dyn Output) -> Result<Value, CommandError> {
    let id: DocumentId = id.parse()?;
    if db.reader().row(id)?.is_none() {
        return Ok(Value::Null);
    }
    let mut hashes = Vec::new();
    for (_, row) in db.reader().index(id, Lsn::ZERO)? {
        if let IndexRow::Change { hash, .. } = row {
            hashes.push(ChangeHash(hash).to_string());
        }
    }
    for page in hashes.chunks(4096) {
        output.row(json!(page))?;
    }
    Ok(Value::Null)
}

/// The answer is `{accepted, known, waiting}`.
pub(super) fn admit(db: &Database, id: &str, changes: Vec<Base64>, tried: bool) -> Result<Value, CommandError> {
    let id: DocumentId = id.parse()?;
    let origin =
        Origin { node: db.node(), principal: String::new(), admission: Admission::Structural, rules_version: 0 };
    let rows: Result<Vec<Incoming>, CommandError> = changes
        .into_iter()
        .map(|Base64(bytes)| {
            let body = IncomingBody::Change(Box::new(Change::parse(bytes)?));
            Ok(Incoming { document: id, body, origin: origin.clone(), signature: None })
        })
        .collect();
    let mut waiting = 0;
    let admitted = if tried {
        let examined = db.examine(db.node(), rows?)?;
        waiting = examined.missing.len();
        let offered = db.admit_examined(Clash::KeepFirst, examined.rows, None, None);
        let admitted = tokio::runtime::Handle::current().block_on(offered)?;
        if let Some(error) = examined.fault {
            return Err(error.into());
        }
        admitted
    } else {
        db.admit_blocking(rows?)?
    };
    if let Some((document, why)) = admitted.refused.into_iter().next() {
        return Err(Error::Refused { document, why }.into());
    }
    waiting += admitted.missing.len();
    Ok(json!({ "accepted": admitted.accepted, "known": admitted.known, "waiting": waiting }))
}

/// The answer is `{created, changed, unchanged}`. Rows are checked before any is written.
pub(super) fn import(db: &Database, collection: Option<&str>, rows: Vec<ImportRow>) -> Result<Value, CommandError> {
    let mut checked = Vec::with_capacity(rows.len());
    for row in rows {
        let name = row.collection.as_deref().or(collection).ok_or_else(|| {
            CommandError::usage("a document names no collection").fix("say where it belongs, with --collection NAME")
        })?;
        let name = CollectionName::new(name)?;
        let id = row.id.as_deref().map(str::parse::<DocumentId>).transpose()?;
        if !row.value.is_object() {
            return Err(Error::from(crate::document::ViewError::RootNotMap).into());
        }
        checked.push((db.collection(name.as_str())?, id, row));
    }
    let (mut created, mut changed, mut unchanged) = (0_u64, 0_u64, 0_u64);
    let mut commits = Vec::new();
    for (collection, id, row) in checked {
        let id = id.or_else(|| row.name.as_ref().map(|name| DocumentId::named(collection.name(), name)));
        let Some(id) = id else {
            commits.push(collection.create(row.value)?.1);
            created += 1;
            continue;
        };
        if db.reader().row(id)?.is_some() {
            let handle = db.find(id)?;
            let commit = handle.change(|edit| Ok(edit.put(Path::root(), &row.value)?))?;
            if commit.change().is_some() {
                changed += 1
            } else {
                unchanged += 1
            }
            commits.push(commit);
            continue;
        }
        created += 1;
        match row.name {
            Some(name) if DocumentId::named(collection.name(), &name) == id => {
                collection.doc_with(&name, row.value)?;
            }
            _ => {
                let handle = collection.create_with_id(id)?;
                commits.push(handle.change(|edit| Ok(edit.put(Path::root(), &row.value)?))?);
            }
        }
    }
    for commit in commits {
        commit.wait()?;
    }
    Ok(json!({ "created": created, "changed": changed, "unchanged": unchanged }))
}

pub(super) fn export(
    db: &Database,
    target: Option<Target>,
    format: ExportFormat,
    cancel: &Cancel,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    let (mut documents, mut degraded) = (0_u64, 0_u64);
    let mut write = |id: DocumentId, state: DocumentState, output: &mut dyn Output| -> Result<(), CommandError> {
        let handle = db.find(id)?;
        let mut row = json!({ "id": id.to_string(), "collection": state.collection.as_str(), "name": state.name });
        match format {
            ExportFormat::Json => row["value"] = handle.to_json()?,
            ExportFormat::Automerge => {
                let bytes = handle.with_view(|view| Ok(view.save()?))?;
                row["automerge"] = json!(data_encoding::BASE64.encode(&bytes));
            }
        }
        documents += 1;
        // Asked after it was read, which may have found it out.
        degraded += u64::from(handle.state()?.degraded);
        output.row(row)
    };
    match target {
        Some(Target::Document(id)) => {
            let handle = find_visible(db, &id)?;
            write(handle.id(), handle.state()?, output)?;
        }
        Some(Target::Collection(name)) => {
            each_document(&existing(db, &name)?, cancel, &mut |id, state| write(id, state, output))?;
        }
        None => {
            for name in db.collections()? {
                each_document(&db.collection(name.as_str())?, cancel, &mut |id, state| write(id, state, output))?;
            }
        }
    }
    Ok(json!({ "documents": documents, "degraded": degraded }))
}
