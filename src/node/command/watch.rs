//! Reading the log: what is in it, and what comes.

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::documents::find;
use super::{Cancel, CommandError, Exit, Output, Target};
use crate::engine::Database;
use crate::feed::{ChangeFeed, CursorError, FeedCursor, Filter, Item, Opening};
use crate::history::{Entry, EntryKind};
use crate::id::{CollectionName, DocumentId, Lsn, NodeId};
use crate::log::record::{Lifecycle, LifecycleKind};

/// Records and bytes read at a time.
const RECORDS: usize = 512;
const BYTES: usize = 1 << 20;
/// Most rows that one command lists.
const ROWS_MAX: usize = 1_000_000;

/// What happens to documents, from `from` on: a cursor, a position, `beginning` or `now`. With `once` it ends where the log
/// ends now. The summary is `{lsn, cursor}`: where to go on.
pub(super) fn watch(
    db: &Database,
    target: Option<Target>,
    from: &str,
    limit: Option<u64>,
    once: bool,
    cancel: &Cancel,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    let mut feed = feed(db, target, from)?;
    let mut left = limit.unwrap_or(u64::MAX);
    while left > 0 {
        cancel.check()?;
        let next = cancel.unless(feed.next())?;
        match next.ok_or(crate::error::Error::Closed)?? {
            Item::Opened(Opening::Resumed { .. }) => {}
            Item::Opened(opening) => output.row(opening.to_json())?,
            Item::Event(event) => {
                let mut row = event.to_json()?;
                row["lsn"] = event.position.0.into();
                output.row(row)?;
                left -= 1;
            }
            Item::Progress { caught_up: true, .. } if once => break,
            Item::Progress { .. } => {}
        }
    }
    let cursor = feed.cursor();
    Ok(json!({ "lsn": cursor.position.0, "cursor": cursor.to_string() }))
}

fn feed(db: &Database, target: Option<Target>, from: &str) -> Result<ChangeFeed, CommandError> {
    let filter = match target {
        None => Filter::Everything,
        Some(Target::Document(id)) => Filter::Document(find(db, &id)?.id()),
        // A collection that does not exist yet may be waited for.
        Some(Target::Collection(name)) => Filter::Collection(CollectionName::new(name)?),
    };
    let changes = db.changes().filter(filter.clone());
    let changes = match from {
        "beginning" => changes,
        "now" => changes.since_now(),
        text => match text.parse::<u64>() {
            Ok(given) => {
                let reader = db.reader();
                let at = position(db, given)?;
                let (footer, chain) = reader.footer_before(at)?;
                // Positions that were never used stand for the last one before them.
                let position = if reader.record(at)?.is_some() { at } else { footer };
                let beginning = FeedCursor::beginning(reader.log_id(), filter.key());
                changes.since(FeedCursor { position, chain, ..beginning })
            }
            Err(_) => changes
                .since(typed(text, "give a cursor or a position as this node printed them, `beginning` or `now`")?),
        },
    };
    Ok(changes.open()?)
}

/// A cursor that somebody typed.
pub(super) fn typed(text: &str, fix: &str) -> Result<FeedCursor, CommandError> {
    text.parse().map_err(|error: CursorError| CommandError::new("E0619", Exit::Usage, error.to_string()).fix(fix))
}

/// A position that somebody gave, if this log reaches it.
fn position(db: &Database, given: u64) -> Result<Lsn, CommandError> {
    let tail = db.reader().tail().lsn;
    if given <= tail.0 {
        return Ok(Lsn(given));
    }
    let why = format!("position {given} is beyond the end of this log, {tail}");
    Err(CommandError::new("E0614", Exit::Conflict, why)
        .fix("positions are of one log: take one that this node printed, or `--from beginning`"))
}

/// The records of the log that are about documents: the last `limit`, or the first `limit` after `from`.
pub(super) fn log(
    db: &Database,
    from: Option<u64>,
    limit: u64,
    output: &mut dyn Output,
) -> Result<Value, CommandError> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(ROWS_MAX);
    if let Some(from) = from {
        let mut at = position(db, from)?;
        let mut written = 0;
        while written < limit {
            let entries = db.reader().read_log(at, BYTES, RECORDS)?;
            let Some(last) = entries.last() else { break };
            at = last.lsn;
            for entry in entries {
                if let Some(row) = row_of(db, entry)?
                    && written < limit
                {
                    output.row(row)?;
                    written += 1;
                }
            }
        }
        return Ok(Value::Null);
    }
    for row in last_rows(db, limit)? {
        output.row(row)?;
    }
    Ok(Value::Null)
}

/// The last rows. Positions may jump and some records are no rows, so it looks further and further back.
fn last_rows(db: &Database, limit: usize) -> Result<VecDeque<Value>, CommandError> {
    let tail = db.reader().tail().lsn.0;
    let mut back = (limit as u64).saturating_mul(2).saturating_add(16);
    loop {
        let mut at = Lsn(tail.saturating_sub(back));
        let from_the_beginning = at == Lsn::ZERO;
        let mut rows = VecDeque::new();
        loop {
            let entries = db.reader().read_log(at, BYTES, RECORDS)?;
            let Some(last) = entries.last() else { break };
            at = last.lsn;
            for entry in entries {
                if let Some(row) = row_of(db, entry)? {
                    rows.push_back(row);
                    if rows.len() > limit {
                        rows.pop_front();
                    }
                }
            }
        }
        if rows.len() >= limit || from_the_beginning {
            return Ok(rows);
        }
        back = back.saturating_mul(8);
    }
}

/// What to say about a record; nothing when it is of no interest.
fn row_of(db: &Database, entry: Entry) -> Result<Option<Value>, CommandError> {
    let lsn = entry.lsn.0;
    Ok(match entry.kind {
        EntryKind::Change { document, hash, via, origin, header, .. } => {
            let collection = db.reader().names().collection(header.collection)?;
            Some(json!({
                "lsn": lsn,
                "kind": "changed",
                "id": document.to_string(),
                "collection": collection.as_str(),
                "change": hash.to_string(),
                "seq": header.seq,
                "ops": header.op_count,
                "time": header.time,
                "received_ms": header.received_ms,
                "node": origin.node.to_string(),
                "via": via.map(|node| node.to_string()),
            }))
        }
        EntryKind::Lifecycle { document, via, bytes, .. } => {
            let statement = Lifecycle::decode(&bytes).map_err(|error| {
                let place = format!("record {lsn}");
                CommandError::from(crate::history::HistoryError::Row { place, error })
            })?;
            Some(lifecycle_row(lsn, document, via, &statement))
        }
        EntryKind::Withdrawn { document, winner, via, records } => {
            let Some(state) = db.reader().document(document)? else { return Ok(None) };
            Some(json!({
                "lsn": lsn,
                "kind": "withdrawn",
                "id": document.to_string(),
                "collection": state.collection.as_str(),
                "change": winner.to_string(),
                "records": records.iter().map(|lsn| lsn.0).collect::<Vec<_>>(),
                "via": via.map(|node| node.to_string()),
            }))
        }
        EntryKind::Void { document, record, automerge, why } => {
            let Some(state) = db.reader().document(document)? else { return Ok(None) };
            Some(json!({
                "lsn": lsn,
                "kind": "void",
                "id": document.to_string(),
                "collection": state.collection.as_str(),
                "record": record.0,
                "automerge": automerge,
                "why": why,
            }))
        }
        EntryKind::Withheld { document, withheld, via } => {
            let Some(state) = db.reader().document(document)? else { return Ok(None) };
            Some(json!({
                "lsn": lsn,
                "kind": if withheld { "withheld" } else { "released" },
                "id": document.to_string(),
                "collection": state.collection.as_str(),
                "via": via.map(|node| node.to_string()),
            }))
        }
        EntryKind::Footer { .. } | EntryKind::Other => None,
    })
}

/// What a statement about a document's life says.
pub(super) fn kind_text(kind: LifecycleKind) -> &'static str {
    match kind {
        LifecycleKind::Created => "created",
        LifecycleKind::Deleted => "deleted",
        LifecycleKind::Restored => "restored",
        LifecycleKind::Purged => "purged",
    }
}

fn lifecycle_row(lsn: u64, document: DocumentId, via: Option<NodeId>, statement: &Lifecycle) -> Value {
    json!({
        "lsn": lsn,
        "kind": kind_text(statement.kind),
        "id": document.to_string(),
        "collection": statement.collection.as_str(),
        "name": statement.name,
        "time": statement.time_ms / 1000,
        "node": statement.author.to_string(),
        "via": via.map(|node| node.to_string()),
    })
}
